/* py_common.h - what every binding does the same way: arrays in, errors out.
 *
 * Included once by each csrc/py_X.c, in place of Python.h and NumPy's headers.
 * The binding knows Python and no mathematics: arrays arrive in exactly the
 * layout the core wants or are refused, so no copy is ever made in C and every
 * input is borrowed from the caller for the length of the call.
 *
 * Long row-wise work is cut into chunks, and between two chunks the binding
 * looks at Ctrl-C:
 *
 *   const size_t chunk = rows_per_chunk(steps_per_row);
 *   for (size_t at = 0; at < rows; at += chunk) {
 *       Py_BEGIN_ALLOW_THREADS
 *       status = bon_...(min_size(chunk, rows - at), ...);
 *       Py_END_ALLOW_THREADS
 *       if (status != BON_OK) ...;
 *       if (PyErr_CheckSignals() < 0) goto done;
 *   }
 */
#ifndef BON_PY_COMMON_H
#define BON_PY_COMMON_H

#ifndef PY_SSIZE_T_CLEAN
#define PY_SSIZE_T_CLEAN
#endif
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>

#include "status.h"

/* Inner steps between two looks at Ctrl-C: some 10 ms of work. */
#define CHUNK_STEPS ((size_t)1 << 21)

static inline size_t rows_per_chunk(size_t steps_per_row)
{
    const size_t rows = CHUNK_STEPS / (steps_per_row + 1);
    return rows > 0 ? rows : 1;
}

static inline size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

/* obj as an array of this type and number of dimensions that the core can read
 * in place, or NULL with TypeError set. Returns a borrowed reference. */
static inline PyArrayObject *as_array(PyObject *obj, int typenum, int ndim,
                                      const char *name)
{
    if (!PyArray_Check(obj)) {
        PyErr_Format(PyExc_TypeError, "%s must be a numpy array, got %.200s",
                     name, Py_TYPE(obj)->tp_name);
        return NULL;
    }
    PyArrayObject *array = (PyArrayObject *)obj;
    if (PyArray_EquivTypenums(PyArray_TYPE(array), typenum)
        && PyArray_NDIM(array) == ndim && PyArray_ISCARRAY_RO(array))
        return array;

    PyArray_Descr *wanted = PyArray_DescrFromType(typenum);
    if (wanted == NULL) return NULL;
    PyErr_Format(PyExc_TypeError,
                 "%s must be a C-contiguous %S array of %d dimension(s), "
                 "got dtype %S with %d dimension(s)%s",
                 name, (PyObject *)wanted, ndim, (PyObject *)PyArray_DESCR(array),
                 PyArray_NDIM(array),
                 PyArray_ISCARRAY_RO(array)
                     ? "" : ", not contiguous, aligned and native");
    Py_DECREF(wanted);
    return NULL;
}

/* The same for an array that the core writes to. */
static inline PyArrayObject *as_output(PyObject *obj, int typenum, int ndim,
                                       const char *name)
{
    PyArrayObject *array = as_array(obj, typenum, ndim, name);
    if (array == NULL || PyArray_ISWRITEABLE(array)) return array;
    PyErr_Format(PyExc_ValueError, "%s must be writeable", name);
    return NULL;
}

/* True for a result that no cache holds until it is read again. */
static inline int is_beyond_caches(PyArrayObject *out)
{
    return PyArray_NBYTES(out) >= (npy_intp)16 << 20;
}

/* True when both have the same shape; else ValueError names both shapes. */
static inline int same_shape(PyArrayObject *a, const char *a_name,
                             PyArrayObject *b, const char *b_name)
{
    if (PyArray_SAMESHAPE(a, b)) return 1;
    PyObject *a_shape = PyArray_IntTupleFromIntp(PyArray_NDIM(a), PyArray_DIMS(a));
    PyObject *b_shape = PyArray_IntTupleFromIntp(PyArray_NDIM(b), PyArray_DIMS(b));
    if (a_shape && b_shape)
        PyErr_Format(PyExc_ValueError,
                     "%s and %s must have the same shape, got %S and %S", a_name,
                     b_name, a_shape, b_shape);
    Py_XDECREF(a_shape);
    Py_XDECREF(b_shape);
    return 0;
}

/* Part of the rows of an array. */
typedef struct {
    size_t start, stop;
} row_range;

/* True for 0 <= start <= stop <= rows; else ValueError. */
static inline int as_range(Py_ssize_t start, Py_ssize_t stop, npy_intp rows,
                           row_range *range)
{
    if (0 <= start && start <= stop && stop <= rows) {
        *range = (row_range){(size_t)start, (size_t)stop};
        return 1;
    }
    PyErr_Format(PyExc_ValueError,
                 "need 0 <= start <= stop <= rows, got start=%zd, stop=%zd with %zd rows",
                 start, stop, rows);
    return 0;
}

/* The kind of exception that a status is, for a text that the caller wrote. */
static inline PyObject *status_type(bon_status status)
{
    switch (status) {
    case BON_ERR_DOMAIN:
    case BON_ERR_NOT_FINITE:
    case BON_ERR_FORMAT: return PyExc_ValueError;
    case BON_ERR_MEMORY:
    case BON_ERR_FULL: return PyExc_MemoryError;
    case BON_ERR_IO: return PyExc_OSError;
    case BON_ERR_INTERRUPTED: return PyExc_KeyboardInterrupt;
    case BON_OK:
    case BON_ERR_BACKEND: break;
    }
    return PyExc_RuntimeError;
}

/* Sets the exception of a status with the caller's text (what was needed, what
 * was found) and returns NULL. A Python exception that the poll behind
 * BON_ERR_INTERRUPTED has already set is kept. */
static inline PyObject *raise_status(bon_status status, const char *text)
{
    if (!(status == BON_ERR_INTERRUPTED && PyErr_Occurred()))
        PyErr_SetString(status_type(status), text);
    return NULL;
}

#endif /* BON_PY_COMMON_H */
