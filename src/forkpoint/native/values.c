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

/* Where tensors lie: see `python_addresses` in `capture/digest/batch`. */
static PyObject *addresses(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *tensors, *data_ptr, *found = NULL;
    if (!PyArg_ParseTuple(args, "O!O", &PyList_Type, &tensors, &data_ptr))
        return NULL;
    PyObject *all = PyList_AsTuple(tensors); /* which nobody else changes */
    Py_ssize_t n = all == NULL ? 0 : PyTuple_GET_SIZE(all);
    PyObject *places = PyBytes_FromStringAndSize(NULL, n * (Py_ssize_t)sizeof(long long)), *odd = PyList_New(0);
    if (all == NULL || places == NULL || odd == NULL)
        goto done;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *address = PyObject_CallOneArg(data_ptr, PyTuple_GET_ITEM(all, i));
        long long place = address == NULL ? -1 : PyLong_AsLongLong(address);
        Py_XDECREF(address);
        if (place == -1 && PyErr_Occurred())
            goto done;
        ((long long *)PyBytes_AS_STRING(places))[i] = place;
        if (place & 3) {
            PyObject *entry = PyLong_FromSsize_t(i);
            int failed = entry == NULL || PyList_Append(odd, entry) < 0;
            Py_XDECREF(entry);
            if (failed)
                goto done;
        }
    }
    found = PyTuple_Pack(2, places, odd);
done:
    Py_XDECREF(all);
    Py_XDECREF(places);
    Py_XDECREF(odd);
    return found;
}

static PyMethodDef functions[] = {
    {"versions", versions, METH_O, NULL},
    {"addresses", addresses, METH_VARARGS, NULL},
    {NULL},
};

int add_values(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
