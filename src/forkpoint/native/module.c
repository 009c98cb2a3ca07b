/* The module. */

#include "native.h"

/* See `FORM` in `__init__.py`. */
#define FORM 10

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "compiled", NULL, -1, NULL};

PyMODINIT_FUNC PyInit_compiled(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL || PyModule_AddIntMacro(module, FORM) < 0 || add_tap(module) < 0 || add_held(module) < 0 ||
        add_passage(module) < 0 || add_values(module) < 0 || add_shortcuts(module) < 0) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
