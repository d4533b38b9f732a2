/* py_weights.h - the Python type bonaware._engine.Weights, for py_engine.c. */
#ifndef BON_PY_WEIGHTS_H
#define BON_PY_WEIGHTS_H

#include <Python.h>

/* Adds the type to the module; 0, or -1 with an exception set. */
int bon_add_weights_type(PyObject *module);

#endif /* BON_PY_WEIGHTS_H */
