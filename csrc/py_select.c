/* py_select.c - the Python module bonaware._select.
 *
 * This file knows Python and no mathematics; select.c knows mathematics and no
 * Python. The division of labour with bonaware/select.py is: Python converts,
 * C checks.
 */
#include "py_module.h"

#include "py_votes.h"
#include "select.h"

/* Every function writes rows start .. stop-1 of out, so that several threads can
 * share one call's work, and has the same parts: parse, check, compute in chunks
 * without the GIL. */

/* True if out is [rows]; else ValueError. */
static int fits(PyArrayObject *out, npy_intp rows)
{
    if (PyArray_DIM(out, 0) == rows) return 1;
    PyErr_Format(PyExc_ValueError, "out must have the length %zd, got %zd", rows,
                 PyArray_DIM(out, 0));
    return 0;
}

static void raise_empty_row(size_t row)
{
    PyErr_Format(PyExc_ValueError, "need at least one sample to choose from, but row %zu has none",
                 row);
}

PyDoc_STRVAR(best_of_n_doc,
"best_of_n(scores, mask, out, start, stop, /)\n--\n\n"
"See bonaware.select.best_of_n. scores: float64 [rows, n]; mask: bool [rows, n] or\n"
"None; out: int64 [rows].");

static PyObject *py_best_of_n(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *scores_obj, *mask_obj, *out_obj;
    Py_ssize_t start, stop;
    if (!PyArg_ParseTuple(args, "OOOnn:best_of_n", &scores_obj, &mask_obj, &out_obj, &start,
                          &stop))
        return NULL;

    PyArrayObject *scores, *mask = NULL, *out;
    row_range range;
    if ((scores = as_array(scores_obj, NPY_DOUBLE, 2, "scores")) == NULL
        || (mask_obj != Py_None
            && ((mask = as_array(mask_obj, NPY_BOOL, 2, "mask")) == NULL
                || !same_shape(scores, "scores", mask, "mask")))
        || (out = as_output(out_obj, NPY_INT64, 1, "out")) == NULL
        || !fits(out, PyArray_DIM(scores, 0))
        || !as_range(start, stop, PyArray_DIM(scores, 0), &range))
        return NULL;
    const size_t n = (size_t)PyArray_DIM(scores, 1);
    const double *scores_data = PyArray_DATA(scores);
    const unsigned char *mask_data = mask ? PyArray_DATA(mask) : NULL;
    int64_t *out_data = PyArray_DATA(out);
    const size_t chunk = rows_per_chunk(n);
    for (size_t at = range.start; at < range.stop; at += chunk) {
        size_t bad = 0;
        const unsigned char *some = mask_data ? mask_data + at * n : NULL;
        bon_status status;
        Py_BEGIN_ALLOW_THREADS
        status = bon_best_of_n(scores_data + at * n, some, min_size(chunk, range.stop - at), n,
                               out_data + at, &bad);
        Py_END_ALLOW_THREADS
        if (status == BON_ERR_NOT_FINITE)
            PyErr_Format(PyExc_ValueError,
                         "scores must not be NaN, but row %zu, column %zu is", at + bad / n,
                         bad % n);
        else if (status != BON_OK)
            raise_empty_row(n > 0 ? at + bad / n : at);
        if (status != BON_OK || PyErr_CheckSignals() < 0) return NULL;
    }
    Py_RETURN_NONE;
}

static void raise_majority(const int64_t *codes, const double *weights, size_t n,
                           size_t row, size_t column)
{
    if (n > 0 && raise_vote(codes, weights, n, row * n + column)) return;
    if (count_samples(codes + row * n, n) == 0) raise_empty_row(row);
    else raise_overflow(row);
}

PyDoc_STRVAR(majority_doc,
"majority(codes, weights, out, start, stop, /)\n--\n\n"
"See bonaware.select.majority and weighted_majority. codes: int64 [rows, n], -1 does\n"
"not vote, -2 is no sample; weights: float64 [rows, n] or None; out: int64 [rows].");

static PyObject *py_majority(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *codes_obj, *weights_obj, *out_obj;
    Py_ssize_t start, stop;
    if (!PyArg_ParseTuple(args, "OOOnn:majority", &codes_obj, &weights_obj, &out_obj, &start,
                          &stop))
        return NULL;

    PyArrayObject *codes, *weights = NULL, *out;
    row_range range;
    if ((codes = as_array(codes_obj, NPY_INT64, 2, "codes")) == NULL
        || (weights_obj != Py_None
            && ((weights = as_array(weights_obj, NPY_DOUBLE, 2, "weights")) == NULL
                || !same_shape(codes, "codes", weights, "weights")))
        || (out = as_output(out_obj, NPY_INT64, 1, "out")) == NULL
        || !fits(out, PyArray_DIM(codes, 0))
        || !as_range(start, stop, PyArray_DIM(codes, 0), &range))
        return NULL;
    const size_t n = (size_t)PyArray_DIM(codes, 1);
    if (n > BON_MAX_VOTES)
        return PyErr_Format(PyExc_ValueError, "need n <= 2**28 samples in a row, got %zu", n);

    PyObject *result = NULL;
    void *scratch = PyMem_Malloc(bon_majority_choice_scratch(n));
    if (scratch == NULL) return PyErr_NoMemory();

    const int64_t *codes_data = PyArray_DATA(codes);
    const double *weights_data = weights ? PyArray_DATA(weights) : NULL;
    int64_t *out_data = PyArray_DATA(out);
    const size_t chunk = rows_per_chunk(8 * n);
    for (size_t at = range.start; at < range.stop; at += chunk) {
        size_t bad = 0;
        const double *some = weights_data ? weights_data + at * n : NULL;
        bon_status status;
        Py_BEGIN_ALLOW_THREADS
        status = bon_majority(codes_data + at * n, some, min_size(chunk, range.stop - at), n,
                              scratch, out_data + at, &bad);
        Py_END_ALLOW_THREADS
        if (status != BON_OK) {
            const size_t width = n > 0 ? n : 1;
            raise_majority(codes_data, weights_data, n, at + bad / width, bad % width);
            goto done;
        }
        if (PyErr_CheckSignals() < 0) goto done;
    }
    result = Py_NewRef(Py_None);

done:
    PyMem_Free(scratch);
    return result;
}

/* -- module ---------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"best_of_n", py_best_of_n, METH_VARARGS, best_of_n_doc},
    {"majority", py_majority, METH_VARARGS, majority_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "bonaware._select",
    .m_doc = "C side of bonaware.select; not a public interface.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__select(void)
{
    return PyModuleDef_Init(&module_def);
}
