/* The tap, what it writes to, and the gate: what `capture/mode` says in Python, without an interpreted frame per call. */

#include "native.h"

/* ------------------------------------------------------------------ what was looked up once */

static PyObject *empty_tuple;
static PyObject *str_catch_up, *str_call_at_once, *str_settle, *str_make_room, *str_outputs_of, *str_results_of,
    *str_compiled, *str_call_impl, *str_out, *str_inplace;

/* What the Python side hands over, see `connect_taps`. */
static PyObject *resolved, *resolve, *code_kind, *place_after, *nowhere, *lasting, *tensor_type, *transforms,
    *transparent, *entering_of, *leaving;

/* By the class of a module, what stands for its call. */
static PyObject *entering;

static int is_connected(void);

/* ------------------------------------------------------------------ what is known of a function */

typedef struct {
    PyObject_HEAD
    int flags;
} Traits;

static PyMemberDef traits_members[] = {{"flags", T_INT, offsetof(Traits, flags), 0, NULL}, {NULL}};

static PyTypeObject traits_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "forkpoint.native.compiled.Traits",
    .tp_basicsize = sizeof(Traits),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_members = traits_members,
};

/* ------------------------------------------------------------------ the reel */

/* Its entries, each of their fields in a list of its own; and for functions, what `befores` says. */
enum { WHATS, PLACES, ARGS, KWARGS, MADE, BEFORES, LISTS };

typedef struct {
    PyObject_HEAD
    PyObject *lists[LISTS];
    PyObject *last;
    long long n_bytes, room, entry_bytes;
    int eager; /* flags of functions that can't wait to be recorded either */
    char deferred, fresh;
} Reel;

static PyObject *reel_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    Reel *self = (Reel *)type->tp_alloc(type, 0);
    for (int i = 0; self != NULL && i < LISTS; i++)
        if ((self->lists[i] = PyList_New(0)) == NULL)
            Py_CLEAR(self);
    return (PyObject *)self;
}

static int reel_traverse(Reel *self, visitproc visit, void *arg)
{
    for (int i = 0; i < LISTS; i++)
        Py_VISIT(self->lists[i]);
    Py_VISIT(self->last);
    return 0;
}

/* The lists stay: whoever writes to a reel that is being cleared finds them. */
static int reel_clear(Reel *self)
{
    for (int i = 0; i < LISTS; i++)
        if (self->lists[i] != NULL && PyList_SetSlice(self->lists[i], 0, PY_SSIZE_T_MAX, NULL) < 0)
            PyErr_Clear();
    Py_CLEAR(self->last);
    return 0;
}

static void reel_dealloc(Reel *self)
{
    PyObject_GC_UnTrack(self);
    reel_clear(self);
    for (int i = 0; i < LISTS; i++)
        Py_CLEAR(self->lists[i]);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* Put an entry on the tape. */
static int put(Reel *tape, PyObject *what, PyObject *place, PyObject *args, PyObject *kwargs, PyObject *made)
{
    PyObject *fields[] = {what, place, args, kwargs, made};
    for (int i = 0; i < BEFORES; i++)
        if (PyList_Append(tape->lists[i], fields[i]) < 0)
            return -1;
    return 0;
}

static PyObject *reel_add_entry(Reel *self, PyObject *const *given, Py_ssize_t n)
{
    if (n != BEFORES) {
        PyErr_Format(PyExc_TypeError, "add_entry takes five arguments, not %zd", n);
        return NULL;
    }
    if (put(self, given[0], given[1], given[2], given[3], given[4]) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef reel_methods[] = {{"add_entry", (PyCFunction)reel_add_entry, METH_FASTCALL, NULL}, {NULL}};

static PyMemberDef reel_members[] = {
    {"whats", T_OBJECT_EX, offsetof(Reel, lists[WHATS]), READONLY, NULL},
    {"places", T_OBJECT_EX, offsetof(Reel, lists[PLACES]), READONLY, NULL},
    {"args", T_OBJECT_EX, offsetof(Reel, lists[ARGS]), READONLY, NULL},
    {"kwargs", T_OBJECT_EX, offsetof(Reel, lists[KWARGS]), READONLY, NULL},
    {"made", T_OBJECT_EX, offsetof(Reel, lists[MADE]), READONLY, NULL},
    {"befores", T_OBJECT_EX, offsetof(Reel, lists[BEFORES]), READONLY, NULL},
    {"last", T_OBJECT_EX, offsetof(Reel, last), 0, NULL},
    {"n_bytes", T_LONGLONG, offsetof(Reel, n_bytes), 0, NULL},
    {"room", T_LONGLONG, offsetof(Reel, room), 0, NULL},
    {"entry_bytes", T_LONGLONG, offsetof(Reel, entry_bytes), 0, NULL},
    {"eager", T_INT, offsetof(Reel, eager), 0, NULL},
    {"deferred", T_BOOL, offsetof(Reel, deferred), 0, NULL},
    {"fresh", T_BOOL, offsetof(Reel, fresh), 0, NULL},
    {NULL},
};

static PyTypeObject reel_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "forkpoint.native.compiled.Reel",
    .tp_basicsize = sizeof(Reel),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = reel_new,
    .tp_traverse = (traverseproc)reel_traverse,
    .tp_clear = (inquiry)reel_clear,
    .tp_dealloc = (destructor)reel_dealloc,
    .tp_methods = reel_methods,
    .tp_members = reel_members,
};

/* ------------------------------------------------------------------ the tap */

typedef struct {
    PyObject_HEAD
    Reel *tape;
} Tap;

static int tap_init(Tap *self, PyObject *args, PyObject *kwargs)
{
    PyObject *tape;
    static char *names[] = {"tape", NULL};
    if (!is_connected() || !PyArg_ParseTupleAndKeywords(args, kwargs, "O!", names, &reel_type, &tape))
        return -1;
    Py_INCREF(tape);
    Py_XSETREF(self->tape, (Reel *)tape);
    return 0;
}

static int tap_traverse(Tap *self, visitproc visit, void *arg)
{
    Py_VISIT(self->tape);
    return 0;
}

static int tap_clear(Tap *self)
{
    Py_CLEAR(self->tape);
    return 0;
}

static void tap_dealloc(Tap *self)
{
    PyObject_GC_UnTrack(self);
    tap_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* The same in the table itself, new. */
static PyObject *look_up(PyObject *func)
{
    PyObject *found = PyDict_GetItemWithError(resolved, func);
    if (found != NULL)
        return Py_NewRef(found);
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError)) /* else one that can't be hashed */
            return NULL;
        PyErr_Clear();
    }
    return PyObject_CallOneArg(resolve, func);
}

/* Functions of C that were asked for last, which are never let go of, and their entries in the table of all. */
static struct { PyObject *func, *function; } functions_seen[1 << 9];

/* The function's entry in the table of all, new. */
static PyObject *function_of(PyObject *func)
{
    if (!PyCFunction_CheckExact(func) && !Py_IS_TYPE(func, &PyMethodDescr_Type))
        return look_up(func);
    size_t slot = ((size_t)func >> 4) % Py_ARRAY_LENGTH(functions_seen);
    if (functions_seen[slot].func != func) {
        PyObject *function = look_up(func);
        if (function == NULL)
            return NULL;
        Py_XSETREF(functions_seen[slot].func, Py_NewRef(func));
        Py_XSETREF(functions_seen[slot].function, function);
    }
    return Py_NewRef(functions_seen[slot].function);
}

/* Kinds of code, as `sites` tells them apart. */
enum { OUTSIDE = 1, INSIDE = 2, SKIPPED = 3, CALL = 4 };

/* What was looked up last, by addresses: code objects and places that were seen are never let go of. */
static struct { PyCodeObject *code; int kind; } kinds_seen[1 << 10];
static struct { PyObject *from; Py_ssize_t instruction; PyObject *place; } places_seen[1 << 12];

static int kind_of(PyCodeObject *code)
{
    size_t slot = ((size_t)code >> 4) % Py_ARRAY_LENGTH(kinds_seen);
    if (kinds_seen[slot].code != code) {
        PyObject *number = PyObject_CallOneArg(code_kind, (PyObject *)code);
        if (number == NULL)
            return -1;
        kinds_seen[slot].kind = (int)PyLong_AsLong(number);
        kinds_seen[slot].code = code;
        Py_DECREF(number);
    }
    return kinds_seen[slot].kind;
}

/* The place that goes on from a place with an instruction, borrowed. */
static PyObject *onward(PyObject *from, PyCodeObject *code, int offset)
{
    Py_ssize_t instruction = (Py_ssize_t)code + offset;
    size_t slot = ((size_t)instruction >> 1 ^ (size_t)from >> 4) % Py_ARRAY_LENGTH(places_seen);
    if (places_seen[slot].from != from || places_seen[slot].instruction != instruction) {
        PyObject *place = PyObject_CallFunction(place_after, "OOi", from, code, offset);
        if (place == NULL)
            return NULL;
        Py_DECREF(place); /* held by the one before it */
        places_seen[slot].from = from;
        places_seen[slot].instruction = instruction;
        places_seen[slot].place = place;
    }
    return places_seen[slot].place;
}

/* The place that a call comes from, new. */
static PyObject *place_of_call(void)
{
    PyFrameObject *frame = PyEval_GetFrame();
    PyObject *place = nowhere;
    Py_XINCREF(frame);
    while (frame != NULL && place != NULL) {
        PyCodeObject *code = PyFrame_GetCode(frame);
        int kind = kind_of(code);
        if (kind < 0)
            place = NULL;
        else if (kind == OUTSIDE || kind == INSIDE)
            place = onward(place, code, PyFrame_GetLasti(frame));
        Py_DECREF(code);
        if (kind == OUTSIDE || kind == CALL)
            break;
        PyFrameObject *back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = back;
    }
    Py_XDECREF(frame);
    return Py_XNewRef(place);
}

/* Whether keywords say that a call changes one of its arguments; -1 for an error. */
static int keywords_write(PyObject *kwargs)
{
    PyObject *value = PyDict_GetItemWithError(kwargs, str_out);
    if (value != NULL && value != Py_None)
        return 1;
    if (value == NULL && PyErr_Occurred())
        return -1;
    value = PyDict_GetItemWithError(kwargs, str_inplace);
    if (value == NULL)
        return PyErr_Occurred() ? -1 : 0;
    return PyObject_IsTrue(value);
}

/* Whether a value is of a kind that stays what it is; -1 for an error. */
static int is_lasting(PyObject *value)
{
    PyTypeObject *kind = Py_TYPE(value);
    return (PyObject *)kind == tensor_type ? 1 : PySet_Contains(lasting, (PyObject *)kind);
}

/* Whether all in a tuple or list are; -1 for an error. */
static int all_lasting(PyObject *values)
{
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(values); i++) {
        int lasts = is_lasting(PySequence_Fast_GET_ITEM(values, i));
        if (lasts <= 0)
            return lasts;
    }
    return 1;
}

int is_plain(PyObject *value)
{
    return PyTuple_CheckExact(value) || PyList_CheckExact(value) ? all_lasting(value) : is_lasting(value);
}

static PyObject *frozen_items(PyObject *value);

/* Arguments as they are now: the model may change a list among them before the tape is read. */
static PyObject *frozen(PyObject *value)
{
    if (!PyTuple_CheckExact(value) && !PyList_Check(value) && !PyDict_CheckExact(value))
        return Py_NewRef(value);
    if (PyTuple_CheckExact(value)) {
        int lasts = all_lasting(value);
        if (lasts)
            return lasts < 0 ? NULL : Py_NewRef(value);
    }
    if (Py_EnterRecursiveCall(" while arguments are noted"))
        return NULL;
    PyObject *copy = frozen_items(value);
    Py_LeaveRecursiveCall();
    return copy;
}

static PyObject *frozen_items(PyObject *value)
{
    if (PyDict_CheckExact(value)) {
        PyObject *given = PyDict_Copy(value), *copy = PyDict_New(), *key, *held; /* nobody else changes the copy */
        Py_ssize_t position = 0;
        while (given != NULL && copy != NULL && PyDict_Next(given, &position, &key, &held)) {
            PyObject *item = frozen(held);
            if (item == NULL || PyDict_SetItem(copy, key, item) < 0)
                Py_CLEAR(copy);
            Py_XDECREF(item);
        }
        if (given == NULL)
            Py_CLEAR(copy);
        Py_XDECREF(given);
        return copy;
    }
    PyObject *given = PyList_Check(value) ? PyList_AsTuple(value) : Py_NewRef(value);
    PyObject *copy = given == NULL ? NULL : PyList_New(0);
    for (Py_ssize_t i = 0; copy != NULL && i < PyTuple_GET_SIZE(given); i++) {
        PyObject *item = frozen(PyTuple_GET_ITEM(given, i));
        if (item == NULL || PyList_Append(copy, item) < 0)
            Py_CLEAR(copy);
        Py_XDECREF(item);
    }
    Py_XDECREF(given);
    if (copy != NULL && PyTuple_CheckExact(value))
        Py_SETREF(copy, PyList_AsTuple(copy));
    return copy;
}

/* Keywords as they are now: torch makes a dict for each call. */
static PyObject *frozen_keywords(PyObject *kwargs)
{
    PyObject *key, *value;
    Py_ssize_t position = 0;
    int lasts = 1;
    while (lasts > 0 && PyDict_Next(kwargs, &position, &key, &value))
        lasts = is_lasting(value);
    return lasts > 0 ? Py_NewRef(kwargs) : lasts < 0 ? NULL : frozen(kwargs);
}

/* Count what a value needs. */
static int add_bytes(Reel *tape, PyObject *tensor)
{
    PyObject *n_bytes = property_of(tensor, &nbytes_property);
    if (n_bytes == NULL) { /* a sparse one, which is not digested */
        if (!PyErr_ExceptionMatches(PyExc_RuntimeError))
            return -1;
        PyErr_Clear();
        return 0;
    }
    long long n = PyLong_AsLongLong(n_bytes);
    Py_DECREF(n_bytes);
    if (n == -1 && PyErr_Occurred())
        return -1;
    tape->n_bytes += n;
    return 0;
}

/* Whether vmap or grad are at work; -1 for an error. */
static int inside_transform(void)
{
    PyObject *interpreter = PyObject_CallNoArgs(transforms);
    if (interpreter == NULL)
        return -1;
    Py_DECREF(interpreter);
    return interpreter != Py_None;
}

/* Call a method of the tape for what it does. */
static int ask_tape(Reel *tape, PyObject *name)
{
    PyObject *nothing = PyObject_CallMethodNoArgs((PyObject *)tape, name);
    Py_XDECREF(nothing);
    return nothing == NULL ? -1 : 0;
}

static PyObject *at_once(Tap *self, PyObject *function, PyObject *place, PyObject *args, PyObject *kwargs)
{
    PyObject *keywords = kwargs != NULL ? Py_NewRef(kwargs) : PyDict_New();
    if (keywords == NULL)
        return NULL;
    PyObject *result = PyObject_CallMethodObjArgs(
        (PyObject *)self->tape, str_call_at_once, (PyObject *)self, function, place, args, keywords, NULL);
    Py_DECREF(keywords);
    return result;
}

/* Count what the values need that a function made. */
static int add_all_bytes(Reel *tape, PyObject *made)
{
    if (!PyTuple_CheckExact(made))
        return add_bytes(tape, made);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(made); i++)
        if (add_bytes(tape, PyTuple_GET_ITEM(made, i)) < 0)
            return -1;
    return 0;
}

/* Put a call that was made on the tape; -1 for an error. `version` is the one that the last value had before. */
static int record(
    Reel *tape, PyObject *function, int flags, PyObject *place, PyObject *args, PyObject *kwargs, PyObject *version,
    PyObject *result)
{
    PyObject *made = NULL, *kept_args = NULL, *kept_kwargs = NULL;
    int status = -1, hidden = inside_transform();
    if (hidden)
        return hidden < 0 ? -1 : 0; /* inside vmap or grad: these tensors are not the model's own */
    if ((PyObject *)Py_TYPE(result) == tensor_type) {
        made = Py_NewRef(result);
        Py_XSETREF(tape->last, Py_NewRef(result));
    } else {
        made = PyObject_CallMethodOneArg((PyObject *)tape, str_outputs_of, result);
        if (made == NULL)
            return -1;
        if (PyTuple_CheckExact(made) && PyTuple_GET_SIZE(made) == 0) {
            Py_DECREF(made);
            return 0;
        }
    }
    tape->n_bytes += tape->entry_bytes;
    if (!(flags & VIEWS) && add_all_bytes(tape, made) < 0)
        goto done;
    kept_args = flags & TAKES_LISTS ? frozen(args) : Py_NewRef(args);
    kept_kwargs = kwargs != NULL ? frozen_keywords(kwargs) : Py_NewRef(Py_None);
    if (kept_args != NULL && kept_kwargs != NULL &&
        put(tape, function, place, kept_args, kept_kwargs, made) == 0)
        status = PyList_Append(tape->lists[BEFORES], version);
done:
    Py_DECREF(made);
    Py_XDECREF(kept_args);
    Py_XDECREF(kept_kwargs);
    return status;
}

/* What was recorded last is over when another function is called, and too much may be kept alive. The version of the last
   value then, new. */
static PyObject *go_on(Reel *tape)
{
    if (tape->fresh && ask_tape(tape, str_settle) < 0)
        return NULL;
    if (tape->n_bytes > tape->room && ask_tape(tape, str_make_room) < 0)
        return NULL;
    PyObject *last = Py_XNewRef(tape->last);
    if (last == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the tape has no last value");
        return NULL;
    }
    PyObject *version = version_of(last);
    Py_DECREF(last);
    return version;
}

static PyObject *follow(Tap *self, PyObject *func, PyObject *args, PyObject *kwargs)
{
    Reel *tape = self->tape;
    PyObject *result = NULL, *place = NULL, *version = NULL;
    PyObject *function = function_of(func);
    if (function == NULL)
        return NULL;
    Py_INCREF(tape);
    if (!PyObject_TypeCheck(function, &traits_type)) {
        PyErr_Format(PyExc_TypeError, "what is known of a function is a %s", Py_TYPE(function)->tp_name);
        goto done;
    }
    int flags = ((Traits *)function)->flags;
    tell_shortcuts((PyObject *)self, function, flags, args, kwargs);
    if (flags & SILENT) {
        if (!(flags & REWRITES) || ask_tape(tape, str_catch_up) == 0)
            result = PyObject_Call(func, args, kwargs);
        goto done;
    }
    place = place_of_call();
    int writes = place == NULL || kwargs == NULL ? 0 : keywords_write(kwargs);
    if (place == NULL || writes < 0)
        goto done;
    if (!tape->deferred || flags & (AT_ONCE | tape->eager) || writes) {
        result = at_once(self, function, place, args, kwargs);
        goto done;
    }
    version = go_on(tape);
    if (version != NULL)
        result = PyObject_Call(func, args, kwargs);
    if (result != NULL && record(tape, function, flags, place, args, kwargs, version, result) < 0)
        Py_CLEAR(result);
done:
    Py_DECREF(tape);
    Py_DECREF(function);
    Py_XDECREF(place);
    Py_XDECREF(version);
    return result;
}

int tap_lets_pass(PyObject *tap, int flags)
{
    Reel *tape = ((Tap *)tap)->tape;
    if (flags & SILENT)
        return !(flags & REWRITES);
    return tape != NULL && tape->deferred && !(flags & (AT_ONCE | tape->eager));
}

int tap_note(PyObject *tap, PyObject *function, int flags, PyObject *args, PyObject *kwargs, PyObject *result)
{
    Reel *tape = (Reel *)Py_NewRef(((Tap *)tap)->tape);
    PyObject *place = place_of_call(), *version = place == NULL ? NULL : go_on(tape);
    int status = version == NULL ? -1 : record(tape, function, flags, place, args, kwargs, version, result);
    Py_DECREF(tape);
    Py_XDECREF(place);
    Py_XDECREF(version);
    return status;
}

static PyObject *tap_torch_function(Tap *self, PyObject *const *given, Py_ssize_t n)
{
    if (n < 2 || n > 4) {
        PyErr_Format(PyExc_TypeError, "__torch_function__ takes a function, types, arguments and keywords, not %zd", n);
        return NULL;
    }
    if (self->tape == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a tap without a tape");
        return NULL;
    }
    PyObject *args = n > 2 ? PySequence_Tuple(given[2]) : Py_NewRef(empty_tuple);
    if (args == NULL)
        return NULL;
    PyObject *kwargs = NULL, *result = NULL;
    if (n > 3 && PyDict_Check(given[3]))
        kwargs = PyDict_GET_SIZE(given[3]) ? Py_NewRef(given[3]) : NULL;
    else if (n > 3 && given[3] != Py_None) { /* a mapping */
        kwargs = PyDict_New();
        if (kwargs == NULL || PyDict_Update(kwargs, given[3]) < 0)
            goto done;
    }
    result = follow(self, given[0], args, kwargs);
done:
    Py_DECREF(args);
    Py_XDECREF(kwargs);
    return result;
}

static PyMethodDef tap_methods[] = {
    {"__torch_function__", (PyCFunction)tap_torch_function, METH_FASTCALL, NULL},
    {NULL},
};

/* An attribute. torch asks for this one by a string that it makes anew for each call, which no cache of Python's knows: it
   would be looked for in every class that the tap is of. */
static PyObject *tap_getattro(Tap *self, PyObject *name)
{
    if (PyUnicode_CheckExact(name) && PyUnicode_GET_LENGTH(name) == 18 &&
        PyUnicode_CompareWithASCIIString(name, "__torch_function__") == 0)
        return PyCFunction_New(&tap_methods[0], (PyObject *)self);
    return PyObject_GenericGetAttr((PyObject *)self, name);
}

static PyTypeObject tap_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "forkpoint.native.compiled.Tap",
    .tp_basicsize = sizeof(Tap),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)tap_init,
    .tp_traverse = (traverseproc)tap_traverse,
    .tp_clear = (inquiry)tap_clear,
    .tp_dealloc = (destructor)tap_dealloc,
    .tp_getattro = (getattrofunc)tap_getattro,
    .tp_methods = tap_methods,
};

int is_tap(PyObject *object)
{
    return PyObject_TypeCheck(object, &tap_type);
}

/* ------------------------------------------------------------------ the gate */

/* Stands in for `nn.Module.__call__`, as `capture/taps` says. */
typedef struct {
    PyObject_HEAD
    Reel *tape;
    PyObject *original; /* nn.Module.__call__ itself */
    PyObject *other;    /* what does it where functions are not seen, or not inside a module: (module, *args, **kwargs) */
    PyObject *is_opaque;
    int is_torchs;      /* whether the original only calls `_call_impl` of a module that is not compiled */
    unsigned long thread;
} Gate;

static PyObject *gate_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *tape, *original, *other, *is_opaque;
    int is_torchs;
    static char *keywords[] = {"tape", "original", "other", "is_opaque", "is_torchs", NULL};
    if (!is_connected() || !PyArg_ParseTupleAndKeywords(
            args, kwargs, "O!OOOp", keywords, &reel_type, &tape, &original, &other, &is_opaque, &is_torchs))
        return NULL;
    Gate *self = (Gate *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->tape = (Reel *)Py_NewRef(tape);
    self->original = Py_NewRef(original);
    self->other = Py_NewRef(other);
    self->is_opaque = Py_NewRef(is_opaque);
    self->is_torchs = is_torchs;
    self->thread = PyThread_get_thread_ident();
    return (PyObject *)self;
}

static int gate_traverse(Gate *self, visitproc visit, void *arg)
{
    Py_VISIT(self->tape);
    Py_VISIT(self->original);
    Py_VISIT(self->other);
    Py_VISIT(self->is_opaque);
    return 0;
}

static int gate_clear(Gate *self)
{
    Py_CLEAR(self->tape);
    Py_CLEAR(self->original);
    Py_CLEAR(self->other);
    Py_CLEAR(self->is_opaque);
    return 0;
}

static void gate_dealloc(Gate *self)
{
    PyObject_GC_UnTrack(self);
    gate_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* Whether functions that a module calls must not be seen; -1 for an error. */
static int is_opaque(Gate *self, PyObject *module)
{
    PyObject *answer = PyDict_GetItemWithError(transparent, (PyObject *)Py_TYPE(module));
    if (answer == NULL && PyErr_Occurred())
        return -1;
    if (answer == Py_True) {
        PyObject *call = PyObject_GetAttr(module, str_compiled);
        if (call == NULL && !PyErr_ExceptionMatches(PyExc_AttributeError))
            return -1;
        PyErr_Clear();
        Py_XDECREF(call);
        if (call == Py_None)
            return 0;
    }
    answer = PyObject_CallOneArg(self->is_opaque, module);
    if (answer == NULL)
        return -1;
    int opaque = PyObject_IsTrue(answer);
    Py_DECREF(answer);
    return opaque;
}

/* Put the call of a module on the tape. `given` is what goes in by position; `hidden` whether vmap or grad are at work. */
static int enter(Reel *tape, PyObject *module, PyObject *given, PyObject *kwargs, int hidden)
{
    PyObject *what = PyDict_GetItemWithError(entering, (PyObject *)Py_TYPE(module));
    if (what == NULL) {
        if (PyErr_Occurred() || (what = PyObject_CallOneArg(entering_of, (PyObject *)Py_TYPE(module))) == NULL)
            return -1;
        int failed = PyDict_SetItem(entering, (PyObject *)Py_TYPE(module), what);
        Py_DECREF(what);
        if (failed < 0)
            return -1;
    }
    if (tape->n_bytes > tape->room && ask_tape(tape, str_make_room) < 0)
        return -1;
    PyObject *keywords = hidden || kwargs == NULL || PyDict_GET_SIZE(kwargs) == 0 ? Py_None : kwargs;
    return put(tape, what, nowhere, hidden ? empty_tuple : given, keywords, module);
}

/* The tensors in what a module returned, new. The tape itself knows those that are further inside. */
static PyObject *results_of(Reel *tape, PyObject *result)
{
    if ((PyObject *)Py_TYPE(result) == tensor_type)
        return PyTuple_Pack(1, result);
    if (!PyTuple_CheckExact(result))
        return PyObject_CallMethodOneArg((PyObject *)tape, str_results_of, result);
    Py_ssize_t n = 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(result); i++) {
        PyObject *item = PyTuple_GET_ITEM(result, i);
        if ((PyObject *)Py_TYPE(item) == tensor_type)
            n++;
        else if (item != Py_None)
            return PyObject_CallMethodOneArg((PyObject *)tape, str_results_of, result);
    }
    PyObject *outputs = PyTuple_New(n);
    for (Py_ssize_t i = 0, at = 0; outputs != NULL && i < PyTuple_GET_SIZE(result); i++)
        if (PyTuple_GET_ITEM(result, i) != Py_None)
            PyTuple_SET_ITEM(outputs, at++, Py_NewRef(PyTuple_GET_ITEM(result, i)));
    return outputs;
}

/* Put the return of a module on the tape; NULL for one that failed. */
static int leave(Reel *tape, PyObject *result, int hidden)
{
    PyObject *outputs = hidden || result == NULL ? Py_NewRef(empty_tuple) : results_of(tape, result);
    if (outputs == NULL)
        return -1;
    int status = put(tape, leaving, nowhere, outputs, Py_None, Py_None);
    Py_DECREF(outputs);
    return status;
}

/* Make the call of a module that may be looked into. */
static PyObject *call_module(Gate *self, PyObject *args, PyObject *given, PyObject *kwargs)
{
    if (!self->is_torchs)
        return PyObject_Call(self->original, args, kwargs);
    PyObject *implementation = PyObject_GetAttr(PyTuple_GET_ITEM(args, 0), str_call_impl);
    PyObject *result = implementation == NULL ? NULL : PyObject_Call(implementation, given, kwargs);
    Py_XDECREF(implementation);
    return result;
}

/* The call of a module, the first of the arguments. */
static PyObject *gate_call(Gate *self, PyObject *args, PyObject *kwargs)
{
    Py_ssize_t n = PyTuple_GET_SIZE(args);
    if (PyThread_get_thread_ident() != self->thread)
        return PyObject_Call(self->original, args, kwargs);
    int opaque = n < 1 || !self->tape->deferred ? 1 : is_opaque(self, PyTuple_GET_ITEM(args, 0));
    if (opaque)
        return opaque < 0 ? NULL : PyObject_Call(self->other, args, kwargs);
    int hidden = inside_transform(); /* whatever begins inside a call ends there */
    PyObject *given = hidden < 0 ? NULL : PyTuple_GetSlice(args, 1, n), *result = NULL;
    if (given != NULL && enter(self->tape, PyTuple_GET_ITEM(args, 0), given, kwargs, hidden) == 0)
        result = call_module(self, args, given, kwargs);
    else
        goto done;
    if (result != NULL) {
        if (leave(self->tape, result, hidden) < 0)
            Py_CLEAR(result);
        goto done;
    }
#if PY_VERSION_HEX >= 0x030C0000
    PyObject *error = PyErr_GetRaisedException();
    if (leave(self->tape, NULL, hidden) < 0)
        PyErr_Clear();
    PyErr_SetRaisedException(error);
#else
    PyObject *kind, *value, *traceback;
    PyErr_Fetch(&kind, &value, &traceback);
    if (leave(self->tape, NULL, hidden) < 0)
        PyErr_Clear();
    PyErr_Restore(kind, value, traceback);
#endif
done:
    Py_XDECREF(given);
    return result;
}

static PyTypeObject gate_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "forkpoint.native.compiled.Gate",
    .tp_basicsize = sizeof(Gate),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = gate_new,
    .tp_traverse = (traverseproc)gate_traverse,
    .tp_clear = (inquiry)gate_clear,
    .tp_dealloc = (destructor)gate_dealloc,
    .tp_call = (ternaryfunc)gate_call,
};

/* ------------------------------------------------------------------ the module */

/* Take over what the Python side knows, once. */
static PyObject *connect_taps(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject **kept[] = {&resolved, &resolve, &code_kind, &place_after, &nowhere, &lasting, &tensor_type, &transforms,
                         &transparent, &entering_of, &leaving};
    PyObject *given[Py_ARRAY_LENGTH(kept)];
    if (!PyArg_ParseTuple(
            args, "O!OOOOO!O!OO!OO", &PyDict_Type, &given[0], &given[1], &given[2], &given[3], &given[4],
            &PyFrozenSet_Type, &given[5], &PyType_Type, &given[6], &given[7], &PyDict_Type, &given[8], &given[9],
            &given[10]) ||
        find_properties(given[6]) < 0)
        return NULL;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(kept); i++)
        Py_XSETREF(*kept[i], Py_NewRef(given[i]));
    Py_RETURN_NONE;
}

static int is_connected(void)
{
    if (leaving == NULL)
        PyErr_SetString(PyExc_RuntimeError, "forkpoint.capture.mode has to be imported first");
    return leaving != NULL;
}

static PyMethodDef functions[] = {{"connect_taps", connect_taps, METH_VARARGS, NULL}, {NULL}};

int add_tap(PyObject *module)
{
    struct { PyObject **name; const char *text; } names[] = {
        {&str_catch_up, "catch_up"}, {&str_call_at_once, "call_at_once"}, {&str_settle, "settle"},
        {&str_make_room, "make_room"}, {&str_outputs_of, "outputs_of"}, {&str_compiled, "_compiled_call_impl"}, {&str_call_impl, "_call_impl"}, {&str_results_of, "results_of"}, {&str_out, "out"}, {&str_inplace, "inplace"},
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(names); i++)
        if ((*names[i].name = PyUnicode_InternFromString(names[i].text)) == NULL)
            return -1;
    empty_tuple = PyTuple_New(0);
    entering = PyDict_New();
    if (empty_tuple == NULL || entering == NULL || PyModule_AddFunctions(module, functions) < 0)
        return -1;
    PyTypeObject *types[] = {&traits_type, &reel_type, &tap_type, &gate_type};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(types); i++)
        if (PyModule_AddType(module, types[i]) < 0)
            return -1;
    return 0;
}
