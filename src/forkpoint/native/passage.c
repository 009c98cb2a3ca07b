/* Comparing a stretch of the tape with a passage: what `PythonPattern` in `capture/pattern` says in Python. */

#include "native.h"

#include <stdlib.h>

/* What the Python side hands over, see `connect_passages`. */
static PyObject *size_of, *stride_of, *device_of, *is_conj, *is_neg, *use_count, *strided, *state_of;

static PyObject *one, *str_rows;

/* ------------------------------------------------------------------ lists of numbers */

typedef struct {
    Py_ssize_t n, *at;
} Numbers;

static int numbers_from(PyObject *owner, const char *name, Numbers *numbers)
{
    PyObject *given = PyObject_GetAttrString(owner, name);
    PyObject *items = given == NULL ? NULL : PySequence_Fast(given, "a sequence of numbers was expected");
    Py_XDECREF(given);
    if (items == NULL)
        return -1;
    numbers->n = PySequence_Fast_GET_SIZE(items);
    numbers->at = malloc(sizeof(Py_ssize_t) * (numbers->n ? numbers->n : 1));
    for (Py_ssize_t i = 0; numbers->at != NULL && !PyErr_Occurred() && i < numbers->n; i++) {
        numbers->at[i] = PyLong_AsSsize_t(PySequence_Fast_GET_ITEM(items, i));
        if (numbers->at[i] < 0 && !PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "a pattern has no negative numbers");
    }
    Py_DECREF(items);
    if (numbers->at == NULL)
        PyErr_NoMemory();
    return PyErr_Occurred() ? -1 : 0;
}

static PyObject *tuple_from(PyObject *owner, const char *name)
{
    PyObject *given = PyObject_GetAttrString(owner, name);
    PyObject *items = given == NULL ? NULL : PySequence_Tuple(given);
    Py_XDECREF(given);
    return items;
}

/* ------------------------------------------------------------------ the pattern */

typedef struct {
    PyObject_HEAD
    Numbers entering, functions, n_outputs, sizes, groups, group_sizes, tensor_groups, constants, valued, inner, sources, looked_at, externals,
        updated, updated_rows, updated_holders, pushed, queued, queued_rows;
    PyObject *names;  /* of each entry's keywords, or None */
    PyObject *group_kinds, *kinds, *values, *dtypes, *shapes, *strides, *devices;
    PyObject *external_marks, *external_strides, *external_states, *external_forms;
    PyObject *updated_marks, *updated_homes;
    Py_ssize_t total_outputs, total;
} Pattern;

#define FOR_NUMBERS(DO) \
    DO(entering) DO(functions) DO(n_outputs) DO(sizes) DO(groups) DO(group_sizes) DO(tensor_groups) DO(constants) DO(valued) \
    DO(inner) DO(sources) DO(looked_at) DO(externals) DO(updated) DO(updated_rows) DO(updated_holders) DO(pushed) DO(queued) \
    DO(queued_rows)
#define FOR_OBJECTS(DO) \
    DO(names) DO(group_kinds) DO(kinds) DO(values) DO(dtypes) DO(shapes) DO(strides) DO(devices) DO(external_marks) \
    DO(external_strides) DO(external_states) DO(external_forms) DO(updated_marks) DO(updated_homes)

static int pattern_traverse(Pattern *self, visitproc visit, void *arg)
{
#define VISIT(name) Py_VISIT(self->name);
    FOR_OBJECTS(VISIT)
#undef VISIT
    return 0;
}

static int pattern_clear(Pattern *self)
{
#define CLEAR(name) Py_CLEAR(self->name);
    FOR_OBJECTS(CLEAR)
#undef CLEAR
    return 0;
}

static void pattern_dealloc(Pattern *self)
{
    PyObject_GC_UnTrack(self);
    pattern_clear(self);
#define FREE(name) free(self->name.at);
    FOR_NUMBERS(FREE)
#undef FREE
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static int all_below(Numbers *numbers, Py_ssize_t end)
{
    for (Py_ssize_t i = 0; i < numbers->n; i++)
        if (numbers->at[i] < 0 || numbers->at[i] >= end)
            return 0;
    return 1;
}

/* Whether the lists that say how many values there are are as long as they have to be, and of the right kinds. */
static int has_sound_lists(Pattern *self)
{
    if (PyTuple_GET_SIZE(self->names) != self->sizes.n || PyTuple_GET_SIZE(self->group_kinds) != self->groups.n ||
        self->groups.n != self->group_sizes.n || self->functions.n != self->n_outputs.n)
        return 0;
    for (Py_ssize_t i = 0; i < self->sizes.n; i++)
        if (PyTuple_GET_ITEM(self->names, i) != Py_None && !PyTuple_CheckExact(PyTuple_GET_ITEM(self->names, i)))
            return 0;
    for (Py_ssize_t i = 0; i < self->groups.n; i++) {
        PyObject *kind = PyTuple_GET_ITEM(self->group_kinds, i);
        if (!PyType_Check(kind) || (!PyType_IsSubtype((PyTypeObject *)kind, &PyList_Type) &&
                                    !PyType_IsSubtype((PyTypeObject *)kind, &PyTuple_Type)))
            return 0;
    }
    return 1;
}

/* Whether each group is among the values that come before what is in it. */
static int groups_come_before(Pattern *self)
{
    Py_ssize_t filled = self->total - self->total_outputs;
    for (Py_ssize_t i = 0; i < self->groups.n; i++)
        filled -= self->group_sizes.at[i];
    for (Py_ssize_t i = 0; i < self->groups.n; i++) {
        if (self->groups.at[i] >= filled)
            return 0;
        filled += self->group_sizes.at[i];
    }
    return 1;
}

/* Whether all numbers are of values in the pool, and all lists as long as they have to be. */
static int fits(Pattern *self)
{
    Numbers *in_pool[] = {
        &self->tensor_groups, &self->constants, &self->valued, &self->inner, &self->sources, &self->externals,
        &self->updated, &self->pushed, &self->queued};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(in_pool); i++)
        if (!all_below(in_pool[i], self->total))
            return 0;
    struct { PyObject *objects; Py_ssize_t n; } lengths[] = {
        {self->names, self->sizes.n}, {self->group_kinds, self->groups.n}, {self->kinds, self->constants.n},
        {self->values, self->valued.n}, {self->dtypes, self->total_outputs}, {self->shapes, self->looked_at.n},
        {self->strides, self->looked_at.n}, {self->devices, self->looked_at.n},
        {self->external_marks, self->externals.n}, {self->external_strides, self->externals.n},
        {self->external_states, self->externals.n},
        {self->external_forms, self->externals.n}, {self->updated_marks, self->updated.n},
        {self->updated_homes, self->updated.n},
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(lengths); i++)
        if (PyTuple_GET_SIZE(lengths[i].objects) != lengths[i].n)
            return 0;
    return self->functions.n == self->n_outputs.n && self->groups.n == self->group_sizes.n &&
           self->inner.n == self->sources.n && self->updated.n == self->updated_rows.n &&
           self->updated.n == self->updated_holders.n &&
           self->queued.n == self->queued_rows.n && all_below(&self->entering, self->sizes.n) &&
           all_below(&self->functions, self->sizes.n) && all_below(&self->looked_at, self->total_outputs) &&
           groups_come_before(self);
}

/* From an object with attributes of these names. */
static PyObject *pattern_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *given;
    static char *keywords[] = {"given", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O", keywords, &given))
        return NULL;
    if (state_of == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "forkpoint.capture.pattern has to be imported first");
        return NULL;
    }
    Pattern *self = (Pattern *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
#define READ(name) \
    if (numbers_from(given, #name, &self->name) < 0) \
        goto failed;
    FOR_NUMBERS(READ)
#undef READ
#define READ(name) \
    if ((self->name = tuple_from(given, #name)) == NULL) \
        goto failed;
    FOR_OBJECTS(READ)
#undef READ
    if (!has_sound_lists(self))
        goto refused;
    for (Py_ssize_t i = 0; i < self->n_outputs.n; i++)
        self->total_outputs += self->n_outputs.at[i];
    self->total = self->total_outputs;
    for (Py_ssize_t i = 0; i < self->sizes.n; i++) {
        PyObject *names = PyTuple_GET_ITEM(self->names, i);
        self->total += self->sizes.at[i] + (names == Py_None ? 0 : PyTuple_GET_SIZE(names));
    }
    for (Py_ssize_t i = 0; i < self->group_sizes.n; i++)
        self->total += self->group_sizes.at[i];
    if (fits(self))
        return (PyObject *)self;
refused:
    PyErr_SetString(PyExc_ValueError, "a pattern speaks of more values than its entries have");
failed:
    Py_DECREF(self);
    return NULL;
}

/* ------------------------------------------------------------------ the pool */

/* Append the values of a dict, if its keys are these; 1 if they are, 0 if not, -1 for an error. */
static int put_keywords(PyObject *pool, Py_ssize_t *n, PyObject *names, PyObject *given)
{
    if (names == Py_None || !PyDict_CheckExact(given))
        return names == Py_None && given == Py_None;
    if (PyDict_GET_SIZE(given) != PyTuple_GET_SIZE(names))
        return 0;
    PyObject *key, *value;
    Py_ssize_t position = 0, i = 0;
    while (PyDict_Next(given, &position, &key, &value)) {
        PyObject *name = PyTuple_GET_ITEM(names, i++);
        int same = name == key ? 1 : PyObject_RichCompareBool(name, key, Py_EQ);
        if (same <= 0)
            return same;
        PyList_SET_ITEM(pool, (*n)++, Py_NewRef(value));
    }
    return 1;
}

/* Append what is in a list or tuple, if it is of that kind and size. */
static int put_group(PyObject *pool, Py_ssize_t *n, PyObject *group, PyObject *kind, Py_ssize_t size)
{
    if ((PyObject *)Py_TYPE(group) != kind || PySequence_Fast_GET_SIZE(group) != size)
        return 0;
    for (Py_ssize_t i = 0; i < size; i++)
        PyList_SET_ITEM(pool, (*n)++, Py_NewRef(PySequence_Fast_GET_ITEM(group, i)));
    return 1;
}

/* Fill the pool; 1 if the values lie as they should, 0 if not, -1 for an error. */
static int fill(Pattern *self, PyObject *pool, PyObject *all_args, PyObject *all_kwargs, PyObject *all_made, Py_ssize_t position)
{
    Py_ssize_t n = 0;
    for (Py_ssize_t i = 0; i < self->functions.n; i++) {
        PyObject *made = PyList_GET_ITEM(all_made, position + self->functions.at[i]);
        int several = PyTuple_CheckExact(made);
        if ((several ? PyTuple_GET_SIZE(made) : 1) != self->n_outputs.at[i])
            return 0;
        for (Py_ssize_t k = 0; k < self->n_outputs.at[i]; k++)
            PyList_SET_ITEM(pool, n++, Py_NewRef(several ? PyTuple_GET_ITEM(made, k) : made));
    }
    for (Py_ssize_t i = 0; i < self->sizes.n; i++) {
        PyObject *args = PyList_GET_ITEM(all_args, position + i);
        if (!PyTuple_Check(args) || PyTuple_GET_SIZE(args) != self->sizes.at[i])
            return 0;
        for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(args); k++)
            PyList_SET_ITEM(pool, n++, Py_NewRef(PyTuple_GET_ITEM(args, k)));
    }
    for (Py_ssize_t i = 0; i < self->sizes.n; i++) {
        int same = put_keywords(pool, &n, PyTuple_GET_ITEM(self->names, i), PyList_GET_ITEM(all_kwargs, position + i));
        if (same <= 0)
            return same;
    }
    for (Py_ssize_t i = 0; i < self->groups.n; i++) {
        PyObject *group = PyList_GET_ITEM(pool, self->total_outputs + self->groups.at[i]);
        if (!put_group(pool, &n, group, PyTuple_GET_ITEM(self->group_kinds, i), self->group_sizes.at[i]))
            return 0;
    }
    return 1;
}

int says(PyObject *function, PyObject *tensor, PyObject *expected)
{
    PyObject *found = PyObject_CallOneArg(function, tensor);
    int same = found == NULL ? -1 : PyObject_RichCompareBool(found, expected, Py_EQ);
    Py_XDECREF(found);
    return same;
}

/* Whether the values of the pool are what they should be. */
static int is_like(Pattern *self, PyObject *pool)
{
    for (Py_ssize_t i = 0; i < self->constants.n; i++)
        if ((PyObject *)Py_TYPE(PyList_GET_ITEM(pool, self->constants.at[i])) != PyTuple_GET_ITEM(self->kinds, i))
            return 0;
    for (Py_ssize_t i = 0; i < self->inner.n; i++)
        if (PyList_GET_ITEM(pool, self->inner.at[i]) != PyList_GET_ITEM(pool, self->sources.at[i]))
            return 0;
    for (Py_ssize_t i = 0; i < self->valued.n; i++) {
        PyObject *value = PyList_GET_ITEM(pool, self->valued.at[i]);
        int same = PyObject_RichCompareBool(value, PyTuple_GET_ITEM(self->values, i), Py_EQ);
        if (same <= 0)
            return same;
    }
    for (Py_ssize_t i = 0; i < self->total_outputs; i++) {
        PyObject *dtype = property_of(PyList_GET_ITEM(pool, i), &dtype_property);
        Py_XDECREF(dtype); /* one of a few that last for good */
        if (dtype != PyTuple_GET_ITEM(self->dtypes, i))
            return dtype == NULL ? -1 : 0;
    }
    for (Py_ssize_t i = 0; i < self->looked_at.n; i++) {
        PyObject *value = PyList_GET_ITEM(pool, self->looked_at.at[i]);
        int same = says(size_of, value, PyTuple_GET_ITEM(self->shapes, i));
        if (same > 0)
            same = says(stride_of, value, PyTuple_GET_ITEM(self->strides, i));
        if (same > 0)
            same = says(device_of, value, PyTuple_GET_ITEM(self->devices, i));
        if (same <= 0)
            return same;
    }
    return 1;
}

/* Whether columns have as many entries from a position on as the pattern; if not, with an exception set. */
static int has_entries(Pattern *self, PyObject *const *columns, Py_ssize_t position)
{
    for (int i = 0; i < 3; i++)
        if (!PyList_CheckExact(columns[i]) || position < 0 || position + self->sizes.n > PyList_GET_SIZE(columns[i])) {
            PyErr_SetString(PyExc_ValueError, "there are fewer entries than the pattern has");
            return 0;
        }
    return 1;
}

/* What was found if a stretch is the same, None if it is not, NULL for an error; takes over what was found. */
static PyObject *found_if(int same, PyObject *found)
{
    if (same > 0)
        return found;
    Py_XDECREF(found);
    if (same < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *pattern_pool(Pattern *self, PyObject *const *given, Py_ssize_t n)
{
    if (n != 4) {
        PyErr_Format(PyExc_TypeError, "pool takes args, kwargs, made and a position, not %zd arguments", n);
        return NULL;
    }
    Py_ssize_t position = PyLong_AsSsize_t(given[3]);
    if (position == -1 && PyErr_Occurred())
        return NULL;
    if (!has_entries(self, given, position))
        return NULL;
    PyObject *pool = PyList_New(self->total);
    int same = pool == NULL ? -1 : fill(self, pool, given[0], given[1], given[2], position);
    if (same > 0)
        same = is_like(self, pool);
    return found_if(same, pool);
}

/* ------------------------------------------------------------------ what is known of tensors */

static int is_pool(Pattern *self, PyObject *pool)
{
    return PyList_CheckExact(pool) && PyList_GET_SIZE(pool) == self->total;
}

/* Whether a weak reference is one to an object, which somebody holds; -1 for an error. */
static int is_reference_to(PyObject *reference, PyObject *object)
{
    PyObject *held;
    if (!PyWeakref_CheckRef(reference))
        return 0;
#if PY_VERSION_HEX >= 0x030D0000
    if (PyWeakref_GetRef(reference, &held) < 0)
        return -1;
    Py_XDECREF(held); /* whoever asks holds the object */
#else
    held = PyWeakref_GetObject(reference);
#endif
    return held == object;
}

/* What is known of a tensor, borrowed; NULL without an exception if nothing is. */
static PyObject *known_of(PyObject *known, PyObject *tensor)
{
    PyObject *key = PyLong_FromVoidPtr(tensor);
    if (key == NULL)
        return NULL;
    PyObject *found = PyDict_GetItemWithError(known, key);
    Py_DECREF(key);
    if (found == NULL || !PyTuple_CheckExact(found) || PyTuple_GET_SIZE(found) != 4)
        return NULL;
    int same = is_reference_to(PyTuple_GET_ITEM(found, 0), tensor);
    return same > 0 ? found : NULL;
}

/* Whether what is made of a tensor depends on more than its size, dtype and strides; -1 for an error. */
static int is_odd(PyObject *value)
{
    PyObject *layout = property_of(value, &layout_property);
    if (layout == NULL)
        return -1;
    Py_DECREF(layout); /* one of a few that last for good */
    if (layout != strided)
        return 1;
    int is = says(is_conj, value, Py_True);
    return is ? is : says(is_neg, value, Py_True);
}

/* Whether a tensor's row is of the form that it was the last time, which is one object, so that its state is the same. */
static int is_of_form(PyObject *found, PyObject *form, PyObject *rows)
{
    PyObject *number = PyTuple_GET_ITEM(found, 2);
    if (!PyLong_CheckExact(number) || !PyList_CheckExact(rows))
        return 0;
    Py_ssize_t event = PyLong_AsSsize_t(number);
    if (event < 0)
        return PyErr_Occurred() ? -1 : form == Py_None;
    if (event >= PyList_GET_SIZE(rows))
        return 0;
    PyObject *row = PyList_GET_ITEM(rows, event);
    return PyTuple_CheckExact(row) && PyTuple_GET_SIZE(row) > 2 && PyTuple_GET_ITEM(row, 2) == form;
}

static int external_is_like(
    Pattern *self, Py_ssize_t i, PyObject *value, PyObject *found, PyObject *tape, PyObject *rows)
{
    if (PyTuple_GET_ITEM(found, 1) != PyTuple_GET_ITEM(self->external_marks, i))
        return 0;
    int same = says(stride_of, value, PyTuple_GET_ITEM(self->external_strides, i));
    if (same > 0) {
        int odd = is_odd(value);
        same = odd < 0 ? -1 : !odd;
    }
    PyObject *state = PyTuple_GET_ITEM(self->external_states, i);
    if (same <= 0 || state == Py_None)
        return same;
    same = is_of_form(found, PyTuple_GET_ITEM(self->external_forms, i), rows);
    if (same == 0) {
        PyObject *now = PyObject_CallFunctionObjArgs(state_of, tape, found, NULL);
        same = now == NULL ? -1 : PyObject_RichCompareBool(now, state, Py_EQ);
        Py_XDECREF(now);
    }
    return same;
}

static PyObject *pattern_rows_before(Pattern *self, PyObject *const *given, Py_ssize_t n)
{
    if (n != 3 || !is_pool(self, given[0]) || !PyDict_CheckExact(given[1])) {
        PyErr_SetString(PyExc_TypeError, "rows_before takes a pool, what is known of tensors, and the tape");
        return NULL;
    }
    PyObject *all = PyObject_GetAttr(given[2], str_rows);
    PyObject *pool = given[0], *rows = all == NULL ? NULL : PyList_New(self->externals.n);
    int same = rows == NULL ? -1 : 1;
    for (Py_ssize_t i = 0; same > 0 && i < self->externals.n; i++) {
        PyObject *value = PyList_GET_ITEM(pool, self->externals.at[i]);
        PyObject *found = known_of(given[1], value);
        same = found == NULL ? (PyErr_Occurred() ? -1 : 0) : external_is_like(self, i, value, found, given[2], all);
        if (same > 0)
            PyList_SET_ITEM(rows, i, Py_NewRef(PyTuple_GET_ITEM(found, 2)));
    }
    Py_XDECREF(all);
    return found_if(same, rows);
}

/* Whether nobody but the tape and the pool holds what the stretch's tensors are in. */
static int is_all_held_once(Pattern *self, PyObject *pool, PyObject *const *columns, Py_ssize_t position)
{
    PyObject *args = columns[0], *kwargs = columns[1], *made = columns[2];
    for (Py_ssize_t i = 0; i < self->sizes.n; i++) {
        PyObject *given = PyList_GET_ITEM(args, position + i), *keywords = PyList_GET_ITEM(kwargs, position + i);
        if ((self->sizes.at[i] && Py_REFCNT(given) != 1) || (keywords != Py_None && Py_REFCNT(keywords) != 1))
            return 0;
    }
    for (Py_ssize_t i = 0; i < self->functions.n; i++) {
        PyObject *outputs = PyList_GET_ITEM(made, position + self->functions.at[i]);
        if (PyTuple_CheckExact(outputs) && Py_REFCNT(outputs) != 1)
            return 0;
    }
    for (Py_ssize_t i = 0; i < self->tensor_groups.n; i++) /* the pool holds it, too */
        if (Py_REFCNT(PyList_GET_ITEM(pool, self->tensor_groups.at[i])) != 2)
            return 0;
    return 1;
}

/* Whether a tensor is gone with the stretch that it is of: nothing else holds it, neither in Python nor in torch. */
static int goes_with_it(PyObject *tensor, Py_ssize_t holders)
{
    return Py_REFCNT(tensor) == holders ? says(use_count, tensor, one) : 0;
}

static int note_one(Pattern *self, Py_ssize_t i, PyObject *tensor, PyObject *known, Py_ssize_t base)
{
    PyObject *key = PyLong_FromVoidPtr(tensor), *reference = PyWeakref_NewRef(tensor, NULL);
    PyObject *row = PyLong_FromSsize_t(base + self->updated_rows.at[i]), *entry = NULL;
    if (key != NULL && reference != NULL && row != NULL)
        entry = PyTuple_Pack(
            4, reference, PyTuple_GET_ITEM(self->updated_marks, i), row, PyTuple_GET_ITEM(self->updated_homes, i));
    int status = entry == NULL ? -1 : PyDict_SetItem(known, key, entry);
    Py_XDECREF(key);
    Py_XDECREF(reference);
    Py_XDECREF(row);
    Py_XDECREF(entry);
    return status;
}

static PyObject *pattern_note(Pattern *self, PyObject *const *given, Py_ssize_t n)
{
    if (n != 7 || !is_pool(self, given[0]) || !PyDict_CheckExact(given[1])) {
        PyErr_SetString(
            PyExc_TypeError, "note takes a pool, what is known of tensors, the first row, args, kwargs, made and a position");
        return NULL;
    }
    Py_ssize_t base = PyLong_AsSsize_t(given[2]), position = PyLong_AsSsize_t(given[6]);
    if (PyErr_Occurred() || !has_entries(self, &given[3], position))
        return NULL;
    int once = is_all_held_once(self, given[0], &given[3], position);
    for (Py_ssize_t i = 0; i < self->updated.n; i++) {
        PyObject *tensor = PyList_GET_ITEM(given[0], self->updated.at[i]);
        int goes = once ? goes_with_it(tensor, self->updated_holders.at[i]) : 0;
        if (goes < 0 || (!goes && note_one(self, i, tensor, given[1], base) < 0))
            return NULL;
    }
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ taking over */

/* The frames of the modules that a stretch enters, and of those of the stack that it needs. */
static PyObject *pattern_frames(Pattern *self, PyObject *const *given, Py_ssize_t n)
{
    if (n != 5 || !PyList_CheckExact(given[0]) || !PyDict_CheckExact(given[2]) || !PyList_CheckExact(given[3])) {
        PyErr_SetString(PyExc_TypeError, "frames takes made, a position, frames by modules, the stack, and a number");
        return NULL;
    }
    PyObject *made = given[0], *frames = given[2], *stack = given[3];
    Py_ssize_t position = PyLong_AsSsize_t(given[1]), below = PyLong_AsSsize_t(given[4]), n_entered = self->entering.n;
    if (PyErr_Occurred())
        return NULL;
    if (position < 0 || below < 0 || position + self->sizes.n > PyList_GET_SIZE(made)) {
        PyErr_SetString(PyExc_ValueError, "there are fewer entries than the pattern has");
        return NULL;
    }
    Py_ssize_t size = PyList_GET_SIZE(stack);
    if (below > size || size == 0)
        Py_RETURN_NONE;
    PyObject *found = PyTuple_New(n_entered + below);
    for (Py_ssize_t i = 0; found != NULL && i < n_entered; i++) {
        PyObject *key = PyLong_FromVoidPtr(PyList_GET_ITEM(made, position + self->entering.at[i]));
        PyObject *frame = key == NULL ? NULL : PyDict_GetItemWithError(frames, key);
        Py_XDECREF(key);
        if (frame == NULL || frame == PyList_GET_ITEM(stack, 0)) {
            Py_DECREF(found);
            if (PyErr_Occurred())
                return NULL;
            Py_RETURN_NONE;
        }
        PyTuple_SET_ITEM(found, i, Py_NewRef(frame));
    }
    for (Py_ssize_t i = 0; found != NULL && i < below; i++)
        PyTuple_SET_ITEM(found, n_entered + i, Py_NewRef(PyList_GET_ITEM(stack, size - below + i)));
    return found;
}

/* Note the values that are to be digested, and their rows; returns those that a batch gets. */
static PyObject *pattern_queue(Pattern *self, PyObject *const *given, Py_ssize_t n)
{
    if (n != 4 || !is_pool(self, given[0]) || !PyList_CheckExact(given[2]) || !PyList_CheckExact(given[3])) {
        PyErr_SetString(PyExc_TypeError, "queue takes a pool, the first row, and lists of values and of rows");
        return NULL;
    }
    Py_ssize_t base = PyLong_AsSsize_t(given[1]);
    if (base == -1 && PyErr_Occurred())
        return NULL;
    for (Py_ssize_t i = 0; i < self->queued.n; i++) {
        PyObject *row = PyLong_FromSsize_t(base + self->queued_rows.at[i]);
        int failed = row == NULL || PyList_Append(given[2], PyList_GET_ITEM(given[0], self->queued.at[i])) < 0 ||
                     PyList_Append(given[3], row) < 0;
        Py_XDECREF(row);
        if (failed)
            return NULL;
    }
    PyObject *pushed = PyTuple_New(self->pushed.n);
    for (Py_ssize_t i = 0; pushed != NULL && i < self->pushed.n; i++)
        PyTuple_SET_ITEM(pushed, i, Py_NewRef(PyList_GET_ITEM(given[0], self->pushed.at[i])));
    return pushed;
}

static PyMethodDef pattern_methods[] = {
    {"pool", (PyCFunction)pattern_pool, METH_FASTCALL, NULL},
    {"rows_before", (PyCFunction)pattern_rows_before, METH_FASTCALL, NULL},
    {"note", (PyCFunction)pattern_note, METH_FASTCALL, NULL},
    {"frames", (PyCFunction)pattern_frames, METH_FASTCALL, NULL},
    {"queue", (PyCFunction)pattern_queue, METH_FASTCALL, NULL},
    {NULL},
};

static PyTypeObject pattern_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "forkpoint.native.compiled.Pattern",
    .tp_basicsize = sizeof(Pattern),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = pattern_new,
    .tp_traverse = (traverseproc)pattern_traverse,
    .tp_clear = (inquiry)pattern_clear,
    .tp_dealloc = (destructor)pattern_dealloc,
    .tp_methods = pattern_methods,
};

/* ------------------------------------------------------------------ the module */

static PyObject *connect_passages(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject **kept[] = {&size_of, &stride_of, &device_of, &is_conj, &is_neg, &use_count, &strided, &state_of};
    PyObject *given[Py_ARRAY_LENGTH(kept)];
    if (!PyArg_ParseTuple(
            args, "OOOOOOOO", &given[0], &given[1], &given[2], &given[3], &given[4], &given[5], &given[6], &given[7]))
        return NULL;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(kept); i++)
        Py_XSETREF(*kept[i], Py_NewRef(given[i]));
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"connect_passages", connect_passages, METH_VARARGS, NULL},
    {NULL},
};

int add_passage(PyObject *module)
{
    one = PyLong_FromLong(1);
    str_rows = PyUnicode_InternFromString("rows");
    if (one == NULL || str_rows == NULL || PyModule_AddFunctions(module, functions) < 0)
        return -1;
    return PyModule_AddType(module, &pattern_type);
}
