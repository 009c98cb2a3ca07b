/* What a batch of digests and a flush ask of many tensors at once. */

#include "native.h"

struct property version_property, nbytes_property, dtype_property, layout_property;

static PyObject *str_number, *tensor_class;

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

/* What a call of a function with a tensor returns, as a number; -1 with an exception set for an error. */
static long long number_from(PyObject *function, PyObject *tensor)
{
    PyObject *found = PyObject_CallOneArg(function, tensor);
    long long number = found == NULL ? -1 : PyLong_AsLongLong(found);
    Py_XDECREF(found);
    return number;
}

/* Where tensors lie, and how they are digested: see `python_addresses` in `capture/digest/batch`. */
static PyObject *addresses(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *tensors, *plans, *data_ptr, *is_neg, *found = NULL;
    if (!PyArg_ParseTuple(args, "O!O!OO", &PyList_Type, &tensors, &PyList_Type, &plans, &data_ptr, &is_neg))
        return NULL;
    PyObject *all = PyList_AsTuple(tensors), *how = PyList_AsTuple(plans); /* which nobody else changes */
    Py_ssize_t n = all == NULL ? 0 : PyTuple_GET_SIZE(all), size = n * (Py_ssize_t)sizeof(long long);
    PyObject *places = PyBytes_FromStringAndSize(NULL, size), *numbers = PyBytes_FromStringAndSize(NULL, size);
    PyObject *odd = PyList_New(0);
    if (all == NULL || how == NULL || places == NULL || numbers == NULL || odd == NULL)
        goto done;
    if (PyTuple_GET_SIZE(how) != n) {
        PyErr_SetString(PyExc_ValueError, "there is not one plan for each tensor");
        goto done;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *tensor = PyTuple_GET_ITEM(all, i);
        long long place = number_from(data_ptr, tensor), negated = PyErr_Occurred() ? 0 : number_from(is_neg, tensor);
        PyObject *number = PyErr_Occurred() ? NULL : PyObject_GetAttr(PyTuple_GET_ITEM(how, i), str_number);
        ((long long *)PyBytes_AS_STRING(numbers))[i] = number == NULL ? -1 : PyLong_AsLongLong(number);
        ((long long *)PyBytes_AS_STRING(places))[i] = place;
        Py_XDECREF(number);
        if (PyErr_Occurred())
            goto done;
        if (place & 3 || negated) {
            PyObject *entry = PyLong_FromSsize_t(i);
            int failed = entry == NULL || PyList_Append(odd, entry) < 0;
            Py_XDECREF(entry);
            if (failed)
                goto done;
        }
    }
    found = PyTuple_Pack(3, places, numbers, odd);
done:
    Py_XDECREF(all);
    Py_XDECREF(how);
    Py_XDECREF(places);
    Py_XDECREF(numbers);
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
    if ((str_number = PyUnicode_InternFromString("number")) == NULL)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
