/* Shortcuts: for what models call most a tap is told without torch's own way to it.

   Before torch tells a function mode of a call it parses the arguments, looks the function up by its name, takes the mode
   off its stack and looks up what the mode has to be asked for; what the mode then calls parses the arguments again. For
   calls of a few microseconds that is a good part of it. So while a tap is at work, methods, properties and functions of
   torch that are called often are entered another way. One pointer in each of these objects says how, and they are
   otherwise left as they are: whoever compares functions by identity, as modes and subclasses of tensors do, finds the
   same ones. (For subscripts, which Python does not look up, it is the slot of the class.) The other way takes the tap off
   torch's stack, makes the call, has the tap note it and puts the tap back. Where it can't be taken (the tap is not on top
   of the stack of the thread, a call can't wait to be recorded or has arguments of other people's classes) torch's own way
   is, and so it is for whatever has no shortcut.

   What the tap would be told is not assumed. The first call goes torch's way, and the shortcut keeps the function that the
   tap was told of, if the arguments were those of the call. */

#include "native.h"

enum { MOST = 1 << 9, SLOTS = 1 << 11 };

typedef struct {
    PyObject *target;       /* a method, a function, a property, or a class whose instances are subscripted */
    vectorcallfunc call;    /* how a method or a function is entered otherwise; NULL for one that only takes tuples */
    PyGetSetDef *property;  /* the same of a property */
    PyGetSetDef own;        /* how it is read with a tap at work */
    binaryfunc subscript;   /* the same of a subscript */
    PyObject *function;     /* what is known of the function that the tap was told of; NULL before */
    int flags;
    int refused;            /* whether the tap was told something else than what was called */
} Shortcut;

static Shortcut shortcuts[MOST];
static int n_shortcuts;
static Shortcut *by_address[SLOTS];

/* The tap at work. */
static PyObject *at_work;

/* Torch's functions that say whether modes are asked, take the one on top off its stack, and put one on. */
static PyObject *is_enabled, *pop_mode, *push_mode;

/* A call as it came. */
typedef struct {
    Shortcut *shortcut;
    PyObject *const *args; /* by position, then by keyword */
    Py_ssize_t n;
    PyObject *names;       /* of keywords, or NULL */
} Given;

/* The call that torch is about to tell the tap of. */
static const Given *asked;

/* Where the shortcut of an object is to be found, or put. There are more slots than shortcuts. */
static Shortcut **slot_of(PyObject *target)
{
    size_t slot = ((size_t)target >> 4) % SLOTS;
    while (by_address[slot] != NULL && by_address[slot]->target != target)
        slot = (slot + 1) % SLOTS;
    return &by_address[slot];
}

/* ------------------------------------------------------------------ what the tap is told of */

void tell_shortcuts(PyObject *tap, PyObject *function, int flags, PyObject *args, PyObject *kwargs)
{
    const Given *given = asked;
    if (given == NULL || tap != at_work)
        return;
    asked = NULL;
    Py_ssize_t n_names = given->names == NULL ? 0 : PyTuple_GET_SIZE(given->names);
    int same = PyTuple_GET_SIZE(args) == given->n && (kwargs == NULL ? 0 : PyDict_GET_SIZE(kwargs)) == n_names;
    for (Py_ssize_t i = 0; same && i < given->n; i++)
        same = PyTuple_GET_ITEM(args, i) == given->args[i];
    given->shortcut->refused = !same;
    if (same) {
        given->shortcut->flags = flags;
        Py_XSETREF(given->shortcut->function, Py_NewRef(function));
    }
}

/* ------------------------------------------------------------------ the tap on torch's stack */

static PyObject *call_torch(PyObject *function, PyObject *argument)
{
    return PyCFunction_GET_FUNCTION(function)(PyCFunction_GET_SELF(function), argument);
}

/* Take the tap at work off torch's stack, new; NULL without an exception if torch would not ask it. */
static PyObject *take_off(void)
{
    PyObject *enabled = call_torch(is_enabled, NULL);
    Py_XDECREF(enabled); /* one of two that last for good */
    if (enabled != Py_True)
        return NULL;
    PyObject *mode = call_torch(pop_mode, NULL);
    if (mode == NULL || mode == at_work)
        return mode;
    PyObject *nothing = call_torch(push_mode, mode);
    Py_DECREF(mode);
    Py_XDECREF(nothing);
    return NULL;
}

/* Put it back and let go of it, whether or not an exception is set; -1 for an error. */
static int put_back(PyObject *tap)
{
    PyObject *kind, *value, *traceback;
    PyErr_Fetch(&kind, &value, &traceback);
    PyObject *nothing = call_torch(push_mode, tap);
    Py_DECREF(tap);
    if (nothing != NULL) {
        Py_DECREF(nothing);
        PyErr_Restore(kind, value, traceback);
        return 0;
    }
    Py_XDECREF(kind);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return -1;
}

/* ------------------------------------------------------------------ making a call */

/* Keywords as a dict, new. */
static PyObject *keywords_of(const Given *given)
{
    PyObject *keywords = PyDict_New();
    for (Py_ssize_t i = 0; keywords != NULL && i < PyTuple_GET_SIZE(given->names); i++)
        if (PyDict_SetItem(keywords, PyTuple_GET_ITEM(given->names, i), given->args[given->n + i]) < 0)
            Py_CLEAR(keywords);
    return keywords;
}

/* Positional arguments as a tuple, new. */
static PyObject *positional_of(const Given *given)
{
    PyObject *args = PyTuple_New(given->n);
    for (Py_ssize_t i = 0; args != NULL && i < given->n; i++)
        PyTuple_SET_ITEM(args, i, Py_NewRef(given->args[i]));
    return args;
}

static int has_keywords(const Given *given)
{
    return given->names != NULL && PyTuple_GET_SIZE(given->names) != 0;
}

/* Whether keywords may say that a call changes one of its arguments. */
static int may_write(const Given *given)
{
    for (Py_ssize_t i = 0; given->names != NULL && i < PyTuple_GET_SIZE(given->names); i++) {
        PyObject *name = PyTuple_GET_ITEM(given->names, i);
        if (PyUnicode_CompareWithASCIIString(name, "out") == 0 || PyUnicode_CompareWithASCIIString(name, "inplace") == 0)
            return 1;
    }
    return 0;
}

/* Make a call as if there were no shortcut. Where it takes tuples only, they are handed over or NULL. */
static PyObject *make(const Given *given, PyObject *args, PyObject *kwargs)
{
    Shortcut *shortcut = given->shortcut;
    if (shortcut->call != NULL)
        return shortcut->call(shortcut->target, given->args, given->n, given->names);
    if (shortcut->subscript != NULL)
        return shortcut->subscript(given->args[0], given->args[1]);
    if (shortcut->property != NULL)
        return shortcut->property->get(given->args[0], shortcut->property->closure);
    PyCFunctionWithKeywords function =
        (PyCFunctionWithKeywords)(void (*)(void))PyCFunction_GET_FUNCTION(shortcut->target);
    PyObject *positional = args == NULL ? positional_of(given) : Py_NewRef(args), *result = NULL;
    PyObject *keywords = kwargs == NULL && has_keywords(given) ? keywords_of(given) : Py_XNewRef(kwargs);
    if (positional != NULL && (keywords != NULL || !has_keywords(given)))
        result = function(PyCFunction_GET_SELF(shortcut->target), positional, keywords);
    Py_XDECREF(positional);
    Py_XDECREF(keywords);
    return result;
}

/* Make a call and have the tap, which is off torch's stack, note it if it was one: torch tells of none that it refuses. */
static PyObject *make_and_note(PyObject *tap, const Given *given)
{
    const Shortcut *shortcut = given->shortcut;
    PyObject *args = positional_of(given), *kwargs = has_keywords(given) ? keywords_of(given) : NULL, *result = NULL;
    if (args != NULL && (kwargs != NULL || !has_keywords(given)))
        result = make(given, args, kwargs);
    if (result != NULL && result != Py_NotImplemented &&
        tap_note(tap, shortcut->function, shortcut->flags, args, kwargs, result) < 0)
        Py_CLEAR(result);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    return result;
}

/* Make a call torch's way, to find out what the tap is told of it. */
static PyObject *make_and_ask(const Given *given)
{
    asked = given;
    PyObject *result = make(given, NULL, NULL);
    asked = NULL;
    return result;
}

/* Whether all arguments are such that torch runs no code of others to find out what they are: while it does, modes are on
   its stack. -1 for an error. */
static int has_plain_arguments(const Given *given)
{
    Py_ssize_t n = given->n + (given->names == NULL ? 0 : PyTuple_GET_SIZE(given->names));
    int plain = 1;
    for (Py_ssize_t i = 0; plain > 0 && i < n; i++)
        plain = is_plain(given->args[i]);
    return plain;
}

/* Whether the tap need not be told of a call torch's way, as far as that depends on the call; -1 for an error. */
static int may_be_short(const Given *given)
{
    Shortcut *shortcut = given->shortcut;
    if (at_work == NULL || shortcut->refused)
        return 0;
    if (shortcut->function != NULL && (!tap_lets_pass(at_work, shortcut->flags) || may_write(given)))
        return 0;
    return has_plain_arguments(given);
}

static PyObject *enter(const Given *given)
{
    Shortcut *shortcut = given->shortcut;
    if (shortcut == NULL) {
        PyErr_SetString(PyExc_SystemError, "what has no shortcut was entered by one");
        return NULL;
    }
    PyObject *tap = may_be_short(given) > 0 ? take_off() : NULL;
    if (tap == NULL)
        return PyErr_Occurred() ? NULL : make(given, NULL, NULL);
    if (shortcut->function == NULL)
        return put_back(tap) < 0 ? NULL : make_and_ask(given);
    PyObject *result = shortcut->flags & SILENT ? make(given, NULL, NULL) : make_and_note(tap, given);
    if (put_back(tap) < 0)
        Py_CLEAR(result);
    return result;
}

/* ------------------------------------------------------------------ the ways in */

static PyObject *enter_call(PyObject *target, PyObject *const *args, size_t n, PyObject *names)
{
    Given given = {*slot_of(target), args, PyVectorcall_NARGS(n), names};
    return enter(&given);
}

static PyObject *enter_property(PyObject *tensor, void *shortcut)
{
    Given given = {(Shortcut *)shortcut, &tensor, 1, NULL};
    return enter(&given);
}

static PyObject *enter_subscript(PyObject *tensor, PyObject *index)
{
    PyObject *args[] = {tensor, index};
    PyTypeObject *kind = Py_TYPE(tensor);
    while (*slot_of((PyObject *)kind) == NULL && kind->tp_base != NULL)
        kind = kind->tp_base; /* one made in C may have taken this over */
    Given given = {*slot_of((PyObject *)kind), args, 2, NULL};
    return enter(&given);
}

/* Have a shortcut taken, or no longer. What somebody else has changed stays as it is. */
static void take(Shortcut *shortcut, int taken)
{
    PyObject *target = shortcut->target;
    if (shortcut->property != NULL) {
        PyGetSetDef **now = &((PyGetSetDescrObject *)target)->d_getset;
        if (*now == (taken ? shortcut->property : &shortcut->own))
            *now = taken ? &shortcut->own : shortcut->property;
    } else if (shortcut->subscript != NULL) {
        binaryfunc *now = &((PyTypeObject *)target)->tp_as_mapping->mp_subscript;
        if (*now == (taken ? shortcut->subscript : enter_subscript))
            *now = taken ? enter_subscript : shortcut->subscript;
    } else {
        vectorcallfunc *now = PyCFunction_CheckExact(target) ? &((PyCFunctionObject *)target)->vectorcall
                                                             : &((PyMethodDescrObject *)target)->vectorcall;
        if (*now == (taken ? shortcut->call : enter_call))
            *now = taken ? enter_call : shortcut->call;
    }
}

/* ------------------------------------------------------------------ the module */

/* Whether a class takes elements in C, not by a function of Python, whose own calls a tap has to be told of. */
static int has_own_subscript(PyTypeObject *kind)
{
    PyObject *found = PyObject_GetAttrString((PyObject *)kind, "__getitem__");
    int is_own = found != NULL && Py_IS_TYPE(found, &PyWrapperDescr_Type) &&
                 ((PyWrapperDescrObject *)found)->d_wrapped == (void *)kind->tp_as_mapping->mp_subscript;
    Py_XDECREF(found);
    PyErr_Clear();
    return is_own;
}

/* What is to be called otherwise, if the target is of a kind for which there can be a shortcut; whether it is. */
static int look_at(Shortcut *shortcut, PyObject *target)
{
    *shortcut = (Shortcut){.target = target};
    if (Py_IS_TYPE(target, &PyMethodDescr_Type)) {
        shortcut->call = ((PyMethodDescrObject *)target)->vectorcall;
        return shortcut->call != NULL;
    }
    if (PyCFunction_CheckExact(target)) {
        shortcut->call = ((PyCFunctionObject *)target)->vectorcall;
        return shortcut->call != NULL ||
               (PyCFunction_GET_FLAGS(target) & ~METH_STATIC) == (METH_VARARGS | METH_KEYWORDS);
    }
    if (Py_IS_TYPE(target, &PyGetSetDescr_Type)) {
        shortcut->property = ((PyGetSetDescrObject *)target)->d_getset;
        shortcut->own = *shortcut->property;
        shortcut->own.get = enter_property;
        shortcut->own.closure = shortcut;
        return shortcut->property->get != NULL && shortcut->property->set == NULL; /* which has the same closure */
    }
    if (PyType_Check(target) && PyType_HasFeature((PyTypeObject *)target, Py_TPFLAGS_HEAPTYPE)) {
        shortcut->subscript = ((PyTypeObject *)target)->tp_as_mapping->mp_subscript;
        return shortcut->subscript != NULL && has_own_subscript((PyTypeObject *)target);
    }
    return 0;
}

/* Make shortcuts to some targets, to no more than there is room for and to nothing that can't have one; how many there are
   now. Whatever is left goes torch's way. */
static PyObject *shorten(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *targets, *enabled, *pop, *push;
    if (!PyArg_ParseTuple(
            args, "O!O!O!O!", &PyTuple_Type, &targets, &PyCFunction_Type, &enabled, &PyCFunction_Type, &pop,
            &PyCFunction_Type, &push))
        return NULL;
    if (PyCFunction_GET_FLAGS(enabled) != METH_NOARGS || PyCFunction_GET_FLAGS(pop) != METH_NOARGS ||
        PyCFunction_GET_FLAGS(push) != METH_O) {
        PyErr_SetString(PyExc_TypeError, "torch's functions for its stack of modes take other arguments");
        return NULL;
    }
    Py_XSETREF(is_enabled, Py_NewRef(enabled));
    Py_XSETREF(pop_mode, Py_NewRef(pop));
    Py_XSETREF(push_mode, Py_NewRef(push));
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(targets) && n_shortcuts < MOST; i++) {
        PyObject *target = PyTuple_GET_ITEM(targets, i);
        Shortcut **slot = slot_of(target);
        if (*slot == NULL && look_at(&shortcuts[n_shortcuts], target)) {
            Py_INCREF(target);
            *slot = &shortcuts[n_shortcuts++];
        }
    }
    return PyLong_FromLong(n_shortcuts);
}

/* Take all shortcuts to a tap, unless some are taken: in another thread, or for a run in which this one is made. */
static PyObject *take_shortcuts(PyObject *Py_UNUSED(module), PyObject *tap)
{
    if (!is_tap(tap)) {
        PyErr_Format(PyExc_TypeError, "shortcuts lead to a tap, not to a %s", Py_TYPE(tap)->tp_name);
        return NULL;
    }
    if (at_work == NULL) {
        at_work = Py_NewRef(tap);
        for (int i = 0; i < n_shortcuts; i++)
            take(&shortcuts[i], 1);
    }
    Py_RETURN_NONE;
}

/* Leave them, if they are taken to this tap. */
static PyObject *leave_shortcuts(PyObject *Py_UNUSED(module), PyObject *tap)
{
    if (at_work == tap) {
        for (int i = 0; i < n_shortcuts; i++)
            take(&shortcuts[i], 0);
        Py_CLEAR(at_work);
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"shorten", shorten, METH_VARARGS, NULL},
    {"take_shortcuts", take_shortcuts, METH_O, NULL},
    {"leave_shortcuts", leave_shortcuts, METH_O, NULL},
    {NULL},
};

int add_shortcuts(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
