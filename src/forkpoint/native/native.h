/* What the parts of the extension share. See __init__.py for what it is for. */

#ifndef FORKPOINT_NATIVE_H
#define FORKPOINT_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

/* Each part adds its types and functions to the module; -1 with an exception set if that fails. */
int add_tap(PyObject *module);
int add_held(PyObject *module);
int add_passage(PyObject *module);
int add_values(PyObject *module);
int add_shortcuts(PyObject *module);

/* A property of tensors, without looking it up where it is torch's own. */
struct property {
    getter get;
    void *closure;
    PyObject *name;
};
extern struct property version_property, nbytes_property, dtype_property, layout_property;

/* Find the properties of a class of tensors; -1 with an exception set if that fails. */
int find_properties(PyObject *tensor_class);

/* The property of a tensor, new. */
PyObject *property_of(PyObject *tensor, struct property *property);

/* Whether what a function says of a tensor is what it should be; -1 for an error. */
int says(PyObject *function, PyObject *tensor, PyObject *expected);

/* How often a tensor was written to, new; -1 where torch keeps no count (inference mode). */
PyObject *version_of(PyObject *tensor);

/* What `Function.flags` says. */
enum { SILENT = 1, REWRITES = 2, AT_ONCE = 4, TAKES_LISTS = 8, VIEWS = 16, LOOKS_UP = 32 };

int is_tap(PyObject *object);

/* Whether a tap only notes calls of a function of these flags, or not even that. */
int tap_lets_pass(PyObject *tap, int flags);

/* Put such a call that was just made on the tape; `kwargs` is NULL without any. -1 for an error. */
int tap_note(PyObject *tap, PyObject *function, int flags, PyObject *args, PyObject *kwargs, PyObject *result);

/* Whether a value is of a kind that stays what it is, or a tuple or list of such; -1 for an error. */
int is_plain(PyObject *value);

/* Tell of what torch has told a tap. */
void tell_shortcuts(PyObject *tap, PyObject *function, int flags, PyObject *args, PyObject *kwargs);

#endif
