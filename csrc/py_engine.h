/* py_engine.h - what the files of the module bonaware._engine share. */
#ifndef BON_PY_ENGINE_H
#define BON_PY_ENGINE_H

/* One table of NumPy's functions for the module; py_engine.c imports it. */
#define PY_ARRAY_UNIQUE_SYMBOL bon_engine_numpy
#ifndef BON_IMPORT_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include "py_common.h"

#include "decode.h"

/* Add the types to the module; 0, or -1 with an exception set. */
int bon_add_model_type(PyObject *module);
int bon_add_session_type(PyObject *module);
int bon_add_learner_type(PyObject *module);

/* The model inside a Model object, borrowed, or NULL with TypeError set. */
bon_model *bon_model_of(PyObject *object);

/* The slot of this name; 0, or -1 with ValueError set. */
int bon_find_slot(const char *name, bon_slot *slot);

/* A poll that lets Python handle signals (Ctrl-C) while the core runs with a model and
 * without the GIL: it takes the GIL back for a moment, at most every POLL_SECONDS.
 *
 *   py_poll poll;
 *   if (py_poll_begin(&poll, model) < 0) ...;   releases the GIL; RuntimeError is set
 *                                               while another thread changes the model
 *   status = core call(&poll.poll);
 *   py_poll_end(&poll);                         takes it back
 *
 * After BON_ERR_INTERRUPTED the exception of the signal handler is set. */
typedef struct {
    bon_poll poll;
    PyObject *model;
    PyThreadState *state;
    double next;
} py_poll;
int py_poll_begin(py_poll *poll, PyObject *model);
void py_poll_end(py_poll *poll);

/* Around a call that changes a model's weights, with or without the GIL: -1 with
 * RuntimeError set while another thread reads or changes them. */
int bon_model_begin_change(PyObject *model);
void bon_model_end_change(PyObject *model);
/* The same for reading; py_poll_begin and py_poll_end do it. */
int bon_model_begin_use(PyObject *model);
void bon_model_end_use(PyObject *model);

/* Grows whenever adapters are added or removed: who holds pointers to them looks. */
unsigned long bon_model_adapter_changes(PyObject *model);

/* Sets the exception for a status of the engine: MemoryError, RuntimeError for
 * oneDNN, ValueError for a model that computes NaN; nothing for an interrupt,
 * whose exception is set already. Statuses that a caller can say more about are
 * handled before. Returns NULL. */
PyObject *raise_engine_status(bon_status status);

#endif /* BON_PY_ENGINE_H */
