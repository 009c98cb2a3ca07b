/* What modules hold, noted and compared: what `PythonHeld` in `kept` says in Python. */

#include "native.h"

#include <stdlib.h>

typedef struct {
    PyObject *dict;
    Py_ssize_t begin, end; /* of its entries */
} Holder;

typedef struct {
    PyObject_HEAD
    PyObject *empty, *containers, *tensors;
    Holder *holders;
    Py_ssize_t n_holders, room_holders;
    PyObject **entries; /* keys and values in turn */
    Py_ssize_t n_entries, room_entries;
} Held;

static PyObject *str_dict, *str_buffers, *ordered_dict;

static int held_traverse(Held *self, visitproc visit, void *arg)
{
    Py_VISIT(self->empty);
    Py_VISIT(self->containers);
    Py_VISIT(self->tensors);
    for (Py_ssize_t i = 0; i < self->n_holders; i++)
        Py_VISIT(self->holders[i].dict);
    for (Py_ssize_t i = 0; i < self->n_entries; i++)
        Py_VISIT(self->entries[i]);
    return 0;
}

static int held_clear(Held *self)
{
    Py_ssize_t n_holders = self->n_holders, n_entries = self->n_entries;
    self->n_holders = self->n_entries = 0;
    Py_CLEAR(self->empty);
    Py_CLEAR(self->containers);
    Py_CLEAR(self->tensors);
    for (Py_ssize_t i = 0; i < n_holders; i++)
        Py_DECREF(self->holders[i].dict);
    for (Py_ssize_t i = 0; i < n_entries; i++)
        Py_DECREF(self->entries[i]);
    return 0;
}

static void held_dealloc(Held *self)
{
    PyObject_GC_UnTrack(self);
    held_clear(self);
    free(self->holders);
    free(self->entries);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* Room for some more of what an array holds. */
static int grow(void **array, Py_ssize_t *room, Py_ssize_t needed, size_t size)
{
    if (needed <= *room)
        return 0;
    Py_ssize_t wanted = needed > 2 * *room ? needed : 2 * *room;
    void *larger = realloc(*array, wanted * size);
    if (larger == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    *array = larger;
    *room = wanted;
    return 0;
}

static int add_entry(Held *self, PyObject *key, PyObject *value)
{
    if (grow((void **)&self->entries, &self->room_entries, self->n_entries + 2, sizeof(PyObject *)) < 0)
        return -1;
    self->entries[self->n_entries++] = Py_NewRef(key);
    self->entries[self->n_entries++] = Py_NewRef(value);
    return 0;
}

/* Note the entries of a dict. */
static int hold(Held *self, PyObject *dict)
{
    if (grow((void **)&self->holders, &self->room_holders, self->n_holders + 1, sizeof(Holder)) < 0)
        return -1;
    Holder *holder = &self->holders[self->n_holders];
    holder->begin = self->n_entries;
    if (PyDict_CheckExact(dict)) {
        PyObject *key, *value;
        Py_ssize_t position = 0;
        while (PyDict_Next(dict, &position, &key, &value))
            if (add_entry(self, key, value) < 0)
                return -1;
    } else { /* whose order is its own */
        PyObject *items = PyMapping_Items(dict);
        if (items == NULL)
            return -1;
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(items); i++) {
            PyObject *item = PyList_GET_ITEM(items, i);
            if (add_entry(self, PyTuple_GET_ITEM(item, 0), PyTuple_GET_ITEM(item, 1)) < 0) {
                Py_DECREF(items);
                return -1;
            }
        }
        Py_DECREF(items);
    }
    holder->end = self->n_entries;
    holder->dict = Py_NewRef(dict);
    self->n_holders++;
    return 0;
}

/* A list or a set with a copy of it. */
static int copy_container(Held *self, PyObject *value)
{
    PyObject *copy = PyList_Check(value) ? PyList_GetSlice(value, 0, PyList_GET_SIZE(value)) : PySet_New(value);
    PyObject *pair = copy == NULL ? NULL : PyTuple_Pack(2, value, copy);
    int status = pair == NULL ? -1 : PyList_Append(self->containers, pair);
    Py_XDECREF(copy);
    Py_XDECREF(pair);
    return status;
}

/* Look at an attribute, once it is noted. */
static int look_at(Held *self, PyObject *value, PyTypeObject *tensor)
{
    PyTypeObject *kind = Py_TYPE(value);
    if (kind == &PyBool_Type || value == Py_None)
        return 0;
    if (kind == &PyDict_Type || (PyObject *)kind == ordered_dict)
        return PyDict_GET_SIZE(value) ? hold(self, value) : PyList_Append(self->empty, value);
    if (kind == &PyList_Type)
        return PyList_GET_SIZE(value) ? copy_container(self, value) : PyList_Append(self->empty, value);
    if (kind == &PySet_Type)
        return PySet_GET_SIZE(value) ? copy_container(self, value) : PyList_Append(self->empty, value);
    return PyType_IsSubtype(kind, tensor) ? PyList_Append(self->tensors, value) : 0;
}

static int look_into(Held *self, PyObject *module, PyTypeObject *tensor)
{
    PyObject *attributes = PyObject_GetAttr(module, str_dict);
    if (attributes == NULL)
        return -1;
    Py_ssize_t begin = self->n_entries;
    int status = hold(self, attributes);
    Py_DECREF(attributes);
    Py_ssize_t end = self->n_entries;
    for (Py_ssize_t i = begin + 1; status == 0 && i < end; i += 2)
        status = look_at(self, self->entries[i], tensor);
    if (status < 0)
        return -1;
    PyObject *buffers = PyObject_GetAttr(module, str_buffers), *name, *buffer;
    if (buffers == NULL)
        return -1;
    Py_ssize_t position = 0;
    while (status == 0 && PyDict_Next(buffers, &position, &name, &buffer))
        if (buffer != Py_None)
            status = PyList_Append(self->tensors, buffer);
    Py_DECREF(buffers);
    return status;
}

static PyObject *held_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *modules, *tensor;
    static char *names[] = {"modules", "tensor", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!", names, &PyList_Type, &modules, &PyType_Type, &tensor))
        return NULL;
    Held *self = (Held *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->empty = PyList_New(0);
    self->containers = PyList_New(0);
    self->tensors = PyList_New(0);
    int failed = self->empty == NULL || self->containers == NULL || self->tensors == NULL;
    for (Py_ssize_t i = 0; !failed && i < PyList_GET_SIZE(modules); i++)
        failed = look_into(self, PyList_GET_ITEM(modules, i), (PyTypeObject *)tensor) < 0;
    if (failed)
        Py_CLEAR(self);
    return (PyObject *)self;
}

/* Whether a dict holds what was noted, in the same order; -1 for an error. */
static int is_as_noted(Held *self, Holder *holder)
{
    Py_ssize_t position = 0, i = holder->begin;
    if (2 * PyDict_GET_SIZE(holder->dict) != holder->end - holder->begin)
        return 0;
    if (PyDict_CheckExact(holder->dict)) {
        PyObject *key, *value;
        while (PyDict_Next(holder->dict, &position, &key, &value)) {
            if (i >= holder->end || self->entries[i] != key || self->entries[i + 1] != value)
                return 0;
            i += 2;
        }
        return 1;
    }
    PyObject *items = PyMapping_Items(holder->dict);
    if (items == NULL)
        return -1;
    int same = 2 * PyList_GET_SIZE(items) == holder->end - holder->begin;
    for (; same && i < holder->end; i += 2) {
        PyObject *item = PyList_GET_ITEM(items, (i - holder->begin) / 2);
        same = PyTuple_GET_ITEM(item, 0) == self->entries[i] && PyTuple_GET_ITEM(item, 1) == self->entries[i + 1];
    }
    Py_DECREF(items);
    return same;
}

static PyObject *held_changed(Held *self, PyObject *Py_UNUSED(nothing))
{
    PyObject *changed = PyList_New(0);
    for (Py_ssize_t h = 0; changed != NULL && h < self->n_holders; h++) {
        Holder *holder = &self->holders[h];
        int same = is_as_noted(self, holder);
        if (same > 0)
            continue;
        PyObject *keys = PyList_New(0), *values = PyList_New(0), *found = NULL;
        int failed = same < 0 || keys == NULL || values == NULL;
        for (Py_ssize_t i = holder->begin; !failed && i < holder->end; i += 2)
            failed = PyList_Append(keys, self->entries[i]) < 0 || PyList_Append(values, self->entries[i + 1]) < 0;
        if (!failed)
            found = PyTuple_Pack(3, holder->dict, keys, values);
        if (found == NULL || PyList_Append(changed, found) < 0)
            Py_CLEAR(changed);
        Py_XDECREF(keys);
        Py_XDECREF(values);
        Py_XDECREF(found);
    }
    return changed;
}

static PyObject *held_filled(Held *self, PyObject *Py_UNUSED(nothing))
{
    PyObject *filled = PyList_New(0);
    for (Py_ssize_t i = 0; filled != NULL && i < PyList_GET_SIZE(self->empty); i++) {
        PyObject *container = PyList_GET_ITEM(self->empty, i);
        Py_ssize_t size = PyDict_Check(container) ? PyDict_GET_SIZE(container)
                          : PyList_Check(container) ? PyList_GET_SIZE(container)
                                                    : PySet_GET_SIZE(container);
        if (size && PyList_Append(filled, container) < 0)
            Py_CLEAR(filled);
    }
    return filled;
}

static PyMethodDef held_methods[] = {
    {"changed", (PyCFunction)held_changed, METH_NOARGS, NULL},
    {"filled", (PyCFunction)held_filled, METH_NOARGS, NULL},
    {NULL},
};

static PyMemberDef held_members[] = {
    {"containers", T_OBJECT_EX, offsetof(Held, containers), READONLY, NULL},
    {"tensors", T_OBJECT_EX, offsetof(Held, tensors), READONLY, NULL},
    {NULL},
};

static PyTypeObject held_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "forkpoint.native.compiled.Held",
    .tp_basicsize = sizeof(Held),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = held_new,
    .tp_traverse = (traverseproc)held_traverse,
    .tp_clear = (inquiry)held_clear,
    .tp_dealloc = (destructor)held_dealloc,
    .tp_methods = held_methods,
    .tp_members = held_members,
};

int add_held(PyObject *module)
{
    PyObject *collections = PyImport_ImportModule("collections");
    if (collections == NULL)
        return -1;
    ordered_dict = PyObject_GetAttrString(collections, "OrderedDict");
    Py_DECREF(collections);
    str_dict = PyUnicode_InternFromString("__dict__");
    str_buffers = PyUnicode_InternFromString("_buffers");
    if (ordered_dict == NULL || str_dict == NULL || str_buffers == NULL)
        return -1;
    return PyModule_AddType(module, &held_type);
}
