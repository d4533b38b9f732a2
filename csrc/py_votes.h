/* py_votes.h - what bindings of votes say about bad answers and weights. */
#ifndef BON_PY_VOTES_H
#define BON_PY_VOTES_H

#include <float.h>

#include "py_common.h"
#include "votes.h"

/* The text for place `at` of codes and weights [rows, n], which the core refused.
 * Sets ValueError and returns 1, or returns 0 if both are fine there. */
static inline int raise_vote(const int64_t *codes, const double *weights, size_t n,
                             size_t at)
{
    const size_t row = at / n, column = at % n;
    if (codes[at] < BON_NO_SAMPLE) {
        PyErr_Format(PyExc_ValueError,
                     "answer codes must be >= 0, or -1 for no vote, but row %zu, column "
                     "%zu has %lld",
                     row, column, (long long)codes[at]);
        return 1;
    }
    if (weights == NULL || codes[at] < 0) return 0;
    if (weights[at] >= 0.0 && weights[at] <= DBL_MAX) return 0;
    PyObject *weight = PyFloat_FromDouble(weights[at]);
    if (weight == NULL) return 1;
    PyErr_Format(PyExc_ValueError,
                 "weights must be finite and >= 0, but row %zu, column %zu has %R", row, column,
                 weight);
    Py_DECREF(weight);
    return 1;
}

static inline void raise_overflow(size_t row)
{
    PyErr_Format(PyExc_ValueError, "the weights of row %zu sum to more than a double holds",
                 row);
}

/* Samples in a row: places that are not BON_NO_SAMPLE. */
static inline size_t count_samples(const int64_t *codes, size_t n)
{
    size_t samples = 0;
    for (size_t i = 0; i < n; i++) samples += codes[i] != BON_NO_SAMPLE;
    return samples;
}

#endif /* BON_PY_VOTES_H */
