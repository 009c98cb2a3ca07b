/* What a model consists of, and what its modules hold, noted and compared: what `python_survey` in `modules` and
   `PythonHeld` in `runs.state` say in Python. */

#include "native.h"

#include <stdlib.h>

typedef struct {
    PyObject *dict;
    Py_ssize_t begin, end; /* of its entries */
} Holder;

typedef struct {
    PyObject_HEAD
    PyObject *empty, *containers, *tensors, *others;
    Holder *holders;
    Py_ssize_t n_holders, room_holders;
    PyObject **entries; /* keys and values in turn */
    Py_ssize_t n_entries, room_entries;
} Held;

static PyObject *str_dict, *str_buffers, *str_modules, *str_parameters, *ordered_dict;

static int held_traverse(Held *self, visitproc visit, void *arg)
{
    Py_VISIT(self->empty);
    Py_VISIT(self->containers);
    Py_VISIT(self->tensors);
    Py_VISIT(self->others);
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
    Py_CLEAR(self->others);
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

/* A module's dict of a name, new; NULL with an exception set if it has none. */
static PyObject *dict_of(PyObject *module, PyObject *name)
{
    PyObject *found = PyObject_GetAttr(module, name);
    if (found != NULL && !PyDict_CheckExact(found) && (PyObject *)Py_TYPE(found) != ordered_dict) {
        PyErr_Format(PyExc_TypeError, "%U of a module is a %s", name, Py_TYPE(found)->tp_name);
        Py_CLEAR(found);
    }
    return found;
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

/* Whether an attribute is one of the dicts that are looked into as what they are; -1 for an error. */
static int is_own(PyObject *key)
{
    if (key == str_parameters || key == str_buffers || key == str_modules)
        return 1;
    if (!PyUnicode_Check(key) || PyUnicode_CHECK_INTERNED(key))
        return 0;
    PyObject *names[] = {str_parameters, str_buffers, str_modules};
    int own = 0;
    for (size_t i = 0; own == 0 && i < Py_ARRAY_LENGTH(names); i++)
        own = PyObject_RichCompareBool(key, names[i], Py_EQ);
    return own;
}

/* Note an attribute that may hold more. */
static int add_other(Held *self, PyObject *key, PyObject *value)
{
    int own = is_own(key);
    return own ? (own < 0 ? -1 : 0) : PyList_Append(self->others, value);
}

/* Look at an attribute, once it is noted. */
static int look_at(Held *self, PyObject *key, PyObject *value, PyTypeObject *tensor, PyObject *nothing)
{
    PyTypeObject *kind = Py_TYPE(value);
    if (kind == &PyBool_Type || value == Py_None)
        return 0;
    int is_dict = kind == &PyDict_Type || (PyObject *)kind == ordered_dict;
    if (is_dict || kind == &PyList_Type || kind == &PySet_Type) {
        Py_ssize_t size = is_dict ? PyDict_GET_SIZE(value)
                          : kind == &PyList_Type ? PyList_GET_SIZE(value)
                                                 : PySet_GET_SIZE(value);
        if (!size)
            return PyList_Append(self->empty, value);
        if ((is_dict ? hold(self, value) : copy_container(self, value)) < 0)
            return -1;
        return add_other(self, key, value);
    }
    if (PyType_IsSubtype(kind, tensor))
        return PyList_Append(self->tensors, value);
    int known = PySet_Contains(nothing, (PyObject *)kind);
    return known ? (known < 0 ? -1 : 0) : add_other(self, key, value);
}

static int look_into(Held *self, PyObject *module, PyTypeObject *tensor, PyObject *nothing)
{
    PyObject *attributes = dict_of(module, str_dict);
    if (attributes == NULL)
        return -1;
    Py_ssize_t begin = self->n_entries;
    int status = hold(self, attributes);
    Py_DECREF(attributes);
    Py_ssize_t end = self->n_entries;
    for (Py_ssize_t i = begin + 1; status == 0 && i < end; i += 2)
        status = look_at(self, self->entries[i - 1], self->entries[i], tensor, nothing);
    if (status < 0)
        return -1;
    PyObject *buffers = dict_of(module, str_buffers), *name, *buffer;
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
    PyObject *modules, *tensor, *nothing;
    static char *names[] = {"modules", "tensor", "nothing", NULL};
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O!O!O!", names, &PyList_Type, &modules, &PyType_Type, &tensor, &PySet_Type, &nothing))
        return NULL;
    Held *self = (Held *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->empty = PyList_New(0);
    self->containers = PyList_New(0);
    self->tensors = PyList_New(0);
    self->others = PyList_New(0);
    int failed = self->empty == NULL || self->containers == NULL || self->tensors == NULL || self->others == NULL;
    for (Py_ssize_t i = 0; !failed && i < PyList_GET_SIZE(modules); i++)
        failed = look_into(self, PyList_GET_ITEM(modules, i), (PyTypeObject *)tensor, nothing) < 0;
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
    {"others", T_OBJECT_EX, offsetof(Held, others), READONLY, NULL},
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

/* ------------------------------------------------------------------ the survey */

/* The parts of a `Survey` in the making, and the modules that were seen. */
typedef struct {
    PyObject *modules, *structure, *weights, *seen;
} Survey;

/* Append to a list, and let go. */
static int append_new(PyObject *list, PyObject *value)
{
    int status = value == NULL ? -1 : PyList_Append(list, value);
    Py_XDECREF(value);
    return status;
}

static int survey_children(Survey *survey, PyObject *children)
{
    PyObject *name, *child;
    Py_ssize_t position = 0;
    while (PyDict_Next(children, &position, &name, &child)) {
        PyObject *number = PyLong_FromVoidPtr(child);
        int status = number == NULL ? -1 : PyList_Append(survey->structure, name);
        if (status == 0)
            status = PyList_Append(survey->structure, number);
        if (status == 0 && child != Py_None && (status = PySet_Contains(survey->seen, number)) == 0)
            status = PySet_Add(survey->seen, number) < 0 ? -1 : PyList_Append(survey->modules, child);
        Py_XDECREF(number);
        if (status < 0)
            return -1;
    }
    return 0;
}

static int survey_weights(Survey *survey, PyObject *held)
{
    PyObject *name, *weight;
    Py_ssize_t position = 0;
    while (PyDict_Next(held, &position, &name, &weight))
        if (PyList_Append(survey->weights, weight) < 0)
            return -1;
    return 0;
}

static int survey_module(Survey *survey, PyObject *module)
{
    PyObject *children = dict_of(module, str_modules);
    if (children == NULL)
        return -1;
    int status = PyList_Append(survey->structure, (PyObject *)Py_TYPE(module));
    if (status == 0)
        status = append_new(survey->structure, PyLong_FromSsize_t(PyDict_GET_SIZE(children)));
    if (status == 0)
        status = survey_children(survey, children);
    Py_DECREF(children);
    PyObject *names[] = {str_parameters, str_buffers};
    for (int i = 0; status == 0 && i < 2; i++) {
        PyObject *held = dict_of(module, names[i]);
        status = held == NULL ? -1 : survey_weights(survey, held);
        Py_XDECREF(held);
    }
    return status;
}

/* See `Survey` in `modules`. */
static PyObject *survey_model(PyObject *Py_UNUSED(module), PyObject *model)
{
    PyObject *found = NULL;
    Survey survey = {PyList_New(0), PyList_New(0), PyList_New(0), PySet_New(NULL)};
    int failed = survey.modules == NULL || survey.structure == NULL || survey.weights == NULL ||
                 survey.seen == NULL || PyList_Append(survey.modules, model) < 0;
    PyObject *number = failed ? NULL : PyLong_FromVoidPtr(model);
    failed = number == NULL || PySet_Add(survey.seen, number) < 0;
    Py_XDECREF(number);
    for (Py_ssize_t i = 0; !failed && i < PyList_GET_SIZE(survey.modules); i++) /* grows meanwhile */
        failed = survey_module(&survey, PyList_GET_ITEM(survey.modules, i)) < 0;
    if (!failed)
        found = PyTuple_Pack(3, survey.modules, survey.structure, survey.weights);
    Py_XDECREF(survey.modules);
    Py_XDECREF(survey.structure);
    Py_XDECREF(survey.weights);
    Py_XDECREF(survey.seen);
    return found;
}

/* Whether a weight is of a form: its dtype, size and device. */
static int has_form(PyObject *weight, PyObject *form, PyObject *size_of, PyObject *device_of)
{
    if (!PyTuple_CheckExact(form) || PyTuple_GET_SIZE(form) != 3)
        return 0;
    PyObject *dtype = property_of(weight, &dtype_property);
    Py_XDECREF(dtype); /* one of a few that last for good */
    if (dtype != PyTuple_GET_ITEM(form, 0))
        return dtype == NULL ? -1 : 0;
    int same = says(size_of, weight, PyTuple_GET_ITEM(form, 1));
    return same > 0 ? says(device_of, weight, PyTuple_GET_ITEM(form, 2)) : same;
}

/* Whether a number is the id of an object; -1 for an error. */
static int is_id_of(PyObject *key, PyObject *object)
{
    if (!PyLong_CheckExact(key))
        return 0;
    void *at = PyLong_AsVoidPtr(key);
    return at == NULL && PyErr_Occurred() ? -1 : at == object;
}

/* See `python_same_weights` in `capture/inventory`. */
static PyObject *same_weights(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *weights, *before, *forms, *size_of, *device_of;
    if (!PyArg_ParseTuple(
            args, "O!O!O!OO", &PyList_Type, &weights, &PyList_Type, &before, &PyList_Type, &forms, &size_of, &device_of))
        return NULL;
    if (dtype_property.name == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "forkpoint.capture.mode has to be imported first");
        return NULL;
    }
    Py_ssize_t n = PyList_GET_SIZE(weights);
    if (PyList_GET_SIZE(before) != n || PyList_GET_SIZE(forms) != n) {
        PyErr_SetString(PyExc_ValueError, "there is not one id and one form for each weight");
        return NULL;
    }
    int same = 1;
    for (Py_ssize_t i = 0; same > 0 && i < n && i < PyList_GET_SIZE(weights); i++) {
        PyObject *weight = Py_NewRef(PyList_GET_ITEM(weights, i)), *key = PyList_GET_ITEM(before, i);
        if (weight == Py_None)
            same = key == Py_None;
        else if ((same = is_id_of(key, weight)) > 0)
            same = has_form(weight, PyList_GET_ITEM(forms, i), size_of, device_of);
        Py_DECREF(weight);
    }
    return same < 0 ? NULL : PyBool_FromLong(same);
}

static PyMethodDef functions[] = {
    {"survey", survey_model, METH_O, NULL},
    {"same_weights", same_weights, METH_VARARGS, NULL},
    {NULL},
};

int add_held(PyObject *module)
{
    PyObject *collections = PyImport_ImportModule("collections");
    if (collections == NULL)
        return -1;
    ordered_dict = PyObject_GetAttrString(collections, "OrderedDict");
    Py_DECREF(collections);
    if (ordered_dict == NULL || PyModule_AddFunctions(module, functions) < 0)
        return -1;
    struct { PyObject **name; const char *text; } names[] = {
        {&str_dict, "__dict__"}, {&str_buffers, "_buffers"}, {&str_modules, "_modules"},
        {&str_parameters, "_parameters"},
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(names); i++)
        if ((*names[i].name = PyUnicode_InternFromString(names[i].text)) == NULL)
            return -1;
    return PyModule_AddType(module, &held_type);
}
