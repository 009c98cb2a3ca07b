/* What a batch of digests and a flush ask of many tensors at once. */

#include "native.h"

struct property version_property, nbytes_property, dtype_property, layout_property;

static PyObject *tensor_class;

PyObject *property_of(PyObject *tensor, struct property *property)
{
    if (property->get != NULL && (PyObject *)Py_TYPE(tensor) == tensor_class)
        return property->get(tensor, property->closure);
    return PyObject_GetAttr(tensor, property->name);
}

PyObject *version_of(PyObject *tensor)
{
    PyObject *version = property_of(tensor, &version_property);
    if (version != NULL || !PyErr_ExceptionMatches(PyExc_RuntimeError))
        return version;
    PyErr_Clear();
    return PyLong_FromLong(-1);
}

static int find_property(struct property *property, const char *name)
{
    property->get = NULL;
    if ((property->name = PyUnicode_InternFromString(name)) == NULL)
        return -1;
    PyObject *found = PyObject_GetAttr(tensor_class, property->name);
    if (found == NULL)
        return -1;
    if (Py_IS_TYPE(found, &PyGetSetDescr_Type)) {
        property->get = ((PyGetSetDescrObject *)found)->d_getset->get;
        property->closure = ((PyGetSetDescrObject *)found)->d_getset->closure;
    }
    Py_DECREF(found); /* held by its class */
    return 0;
}

int find_properties(PyObject *tensor)
{
    Py_XSETREF(tensor_class, Py_NewRef(tensor));
    struct { struct property *property; const char *name; } wanted[] = {
        {&version_property, "_version"}, {&nbytes_property, "nbytes"}, {&dtype_property, "dtype"},
        {&layout_property, "layout"},
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(wanted); i++)
        if (find_property(wanted[i].property, wanted[i].name) < 0)
            return -1;
    return 0;
}

static PyObject *versions(PyObject *Py_UNUSED(module), PyObject *tensors)
{
    if (!PyList_CheckExact(tensors) || tensor_class == NULL) {
        PyErr_SetString(PyExc_TypeError, "versions takes a list of tensors, once forkpoint.capture.mode was imported");
        return NULL;
    }
    PyObject *found = PyList_New(0);
    for (Py_ssize_t i = 0; found != NULL && i < PyList_GET_SIZE(tensors); i++) {
        PyObject *tensor = Py_NewRef(PyList_GET_ITEM(tensors, i)), *version = version_of(tensor);
        if (version == NULL || PyList_Append(found, version) < 0)
            Py_CLEAR(found);
        Py_DECREF(tensor);
        Py_XDECREF(version);
    }
    return found;
}

/* What a function says of an object; -1 with an exception set if that fails, and else never. */
static long long number_of(PyObject *function, PyObject *object)
{
    PyObject *answer = PyObject_CallOneArg(function, object);
    long long number = answer == NULL ? -1 : PyLong_AsLongLong(answer);
    Py_XDECREF(answer);
    if (number == -1 && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "an address or a size of -1");
    return number;
}

/* Where a plain tensor lies, and how many bytes from there on belong to its storage; -1 with an exception set if that
   can't be told. */
static int look_up_place(PyObject *tensor, PyObject *functions, long long *address, long long *room)
{
    PyObject *storage = PyObject_CallOneArg(PyTuple_GET_ITEM(functions, 0), tensor);
    long long begin = storage == NULL ? -1 : number_of(PyTuple_GET_ITEM(functions, 1), storage);
    long long size = begin == -1 ? -1 : number_of(PyTuple_GET_ITEM(functions, 2), storage);
    long long place = size == -1 ? -1 : number_of(PyTuple_GET_ITEM(functions, 3), tensor);
    Py_XDECREF(storage);
    if (place == -1)
        return -1;
    *address = begin ? place : 0;
    *room = begin && begin + size > place ? begin + size - place : 0;
    return 0;
}

/* Where tensors lie: see `python_places` in `capture/digest/places`. */
static PyObject *places(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *tensors, *plain, *functions, *other, *found = NULL;
    if (!PyArg_ParseTuple(args, "O!O!O!O", &PyList_Type, &tensors, &PyTuple_Type, &plain, &PyTuple_Type, &functions, &other))
        return NULL;
    if (PyTuple_GET_SIZE(plain) != 2 || PyTuple_GET_SIZE(functions) != 4) {
        PyErr_SetString(PyExc_TypeError, "places takes two classes and four functions");
        return NULL;
    }
    PyObject *all = PyList_AsTuple(tensors); /* which nobody else changes */
    Py_ssize_t n = all == NULL ? 0 : PyTuple_GET_SIZE(all);
    PyObject *addresses = PyBytes_FromStringAndSize(NULL, n * (Py_ssize_t)sizeof(long long));
    PyObject *rooms = PyBytes_FromStringAndSize(NULL, n * (Py_ssize_t)sizeof(long long));
    if (all == NULL || addresses == NULL || rooms == NULL)
        goto done;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *tensor = PyTuple_GET_ITEM(all, i), *kind = (PyObject *)Py_TYPE(tensor);
        long long *address = (long long *)PyBytes_AS_STRING(addresses) + i;
        long long *room = (long long *)PyBytes_AS_STRING(rooms) + i;
        if (kind == PyTuple_GET_ITEM(plain, 0) || kind == PyTuple_GET_ITEM(plain, 1)) {
            if (look_up_place(tensor, functions, address, room) == 0)
                continue;
            if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) /* else one without a storage */
                goto done;
            PyErr_Clear();
            *address = *room = 0;
        } else {
            PyObject *place = PyObject_CallOneArg(other, tensor);
            int told = place != NULL && PyArg_ParseTuple(place, "LL", address, room);
            Py_XDECREF(place);
            if (!told)
                goto done;
        }
    }
    found = PyTuple_Pack(2, addresses, rooms);
done:
    Py_XDECREF(all);
    Py_XDECREF(addresses);
    Py_XDECREF(rooms);
    return found;
}

static PyMethodDef functions[] = {
    {"versions", versions, METH_O, NULL},
    {"places", places, METH_VARARGS, NULL},
    {NULL},
};

int add_values(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
