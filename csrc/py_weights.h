/* py_weights.h - the Python type bonaware._engine.Weights, for py_engine.c. */
#ifndef BON_PY_WEIGHTS_H
#define BON_PY_WEIGHTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "weights.h"

/* Adds the type to the module. Called once from its exec slot, after NumPy has
 * been imported. 0, or -1 with an exception set. */
int bon_add_weights_type(PyObject *module);

/* The tensor of that name (a str), borrowed: it lives as long as weights. NULL
 * with TypeError (weights is no Weights, name no str) or KeyError set. */
const bon_tensor *bon_weights_tensor(PyObject *weights, PyObject *name);

#endif /* BON_PY_WEIGHTS_H */
