/* py_estimators.c - the Python module bonaware._estimators.
 *
 * This file knows Python and no mathematics; estimators.c and majority.c know
 * mathematics and no Python. The division of labour with bonaware/estimators.py
 * is: Python converts, C checks.
 */
#include "py_module.h"

#include "estimators.h"
#include "majority.h"
#include "py_votes.h"

/* -- helpers --------------------------------------------------------------- */

/* Doubles of the table of bon_pass_at_k, and the rows for which filling it once
 * more does not show. */
#define PASS_TABLE ((size_t)1 << 16)
#define PASS_ROWS ((size_t)4096)

/* Doubles of a table of rank weights, if eight values of k fit. */
#define RANK_TABLE ((size_t)1 << 22)

/* The values of k as an array with all of them in 1 .. n, or NULL with an
 * exception set. */
static PyArrayObject *as_ks(PyObject *obj, npy_intp n, int64_t *k_max)
{
    PyArrayObject *ks = as_array(obj, NPY_INT64, 1, "k");
    if (ks == NULL) return NULL;
    const int64_t *data = PyArray_DATA(ks);
    *k_max = 1;
    for (npy_intp j = 0; j < PyArray_DIM(ks, 0); j++) {
        const int64_t k = data[j];
        if (k < 1 || k > n) {
            PyErr_Format(PyExc_ValueError,
                         "need 1 <= k <= n, got k=%lld with n=%zd samples", (long long)k,
                         n);
            return NULL;
        }
        if (k > *k_max) *k_max = k;
    }
    return ks;
}

/* True if out is [rows, nk]; else ValueError. */
static int fits(PyArrayObject *out, npy_intp rows, npy_intp nk)
{
    if (PyArray_DIM(out, 0) == rows && PyArray_DIM(out, 1) == nk) return 1;
    PyErr_Format(PyExc_ValueError, "out must have the shape (%zd, %zd), got (%zd, %zd)",
                 rows, nk, PyArray_DIM(out, 0), PyArray_DIM(out, 1));
    return 0;
}

/* -- functions ------------------------------------------------------------- */

/* Every function writes rows start .. stop-1 of out, so that several threads can
 * share one call's work, and has the same four parts: parse, check, compute in
 * chunks without the GIL, and one exit at done that drops what it owns. */

PyDoc_STRVAR(pass_at_k_doc,
"pass_at_k(n, c, k, out, start, stop, /)\n--\n\n"
"See bonaware.estimators.pass_at_k. n, c: int64 [len]; k: int64 [nk];\n"
"out: float64 [len, nk].");

static PyObject *py_pass_at_k(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *n_obj, *c_obj, *k_obj, *out_obj;
    Py_ssize_t start, stop;
    if (!PyArg_ParseTuple(args, "OOOOnn:pass_at_k", &n_obj, &c_obj, &k_obj, &out_obj, &start,
                          &stop))
        return NULL;

    PyArrayObject *n, *c, *k, *out;
    row_range range;
    if ((n = as_array(n_obj, NPY_INT64, 1, "n")) == NULL
        || (c = as_array(c_obj, NPY_INT64, 1, "c")) == NULL
        || (k = as_array(k_obj, NPY_INT64, 1, "k")) == NULL
        || (out = as_output(out_obj, NPY_DOUBLE, 2, "out")) == NULL
        || !same_shape(n, "n", c, "c")
        || !fits(out, PyArray_DIM(n, 0), PyArray_DIM(k, 0))
        || !as_range(start, stop, PyArray_DIM(n, 0), &range))
        return NULL;
    const size_t nk = (size_t)PyArray_DIM(k, 0);
    const int64_t *n_data = PyArray_DATA(n), *c_data = PyArray_DATA(c);
    const int64_t *ks = PyArray_DATA(k);
    int64_t k_max = 1;
    for (size_t j = 0; j < nk; j++) {
        if (ks[j] < 1)
            return PyErr_Format(PyExc_ValueError, "k must be >= 1, got %lld",
                                (long long)ks[j]);
        if (ks[j] > k_max) k_max = ks[j];
    }

    PyObject *result = NULL;
    double *table = PyMem_New(double, PASS_TABLE);
    if (table == NULL) return PyErr_NoMemory();

    double *out_data = PyArray_DATA(out);
    size_t chunk = rows_per_chunk(nk * (size_t)k_max);
    if (chunk < PASS_ROWS) chunk = PASS_ROWS;
    for (size_t at = range.start; at < range.stop; at += chunk) {
        size_t bad = 0;
        bon_status status;
        Py_BEGIN_ALLOW_THREADS
        status = bon_pass_at_k(n_data + at, c_data + at, min_size(chunk, range.stop - at), ks,
                               nk, table, PASS_TABLE, out_data + at * nk, &bad);
        Py_END_ALLOW_THREADS
        if (status != BON_OK) {
            bad += at;
            PyErr_Format(PyExc_ValueError,
                         "need 0 <= c <= n and k <= n <= 2**53, but problem "
                         "%zu has n=%lld, c=%lld, k=%lld",
                         bad, (long long)n_data[bad], (long long)c_data[bad],
                         (long long)k_max);
            goto done;
        }
        if (PyErr_CheckSignals() < 0) goto done;
    }
    result = Py_NewRef(Py_None);

done:
    PyMem_Free(table);
    return result;
}

/* -- best-of-k ------------------------------------------------------------- */

/* The arrays of one call, borrowed, and its scratch. */
typedef struct {
    const double *scores, *rewards;
    row_range range;
    size_t n;
    double *weights, *hits, *scratch;
    int stream;
} ranked;

/* Doubles of a cache line. */
enum { LINE = 8 };

/* The first double of the line that begins at p or after it. */
static double *next_line(double *p)
{
    const size_t into = (uintptr_t)p / sizeof *p % LINE;
    return into ? p + LINE - into : p;
}

/* Columns ks[0 .. nk-1] of out, with `stride` doubles from row to row.
 * Returns 0, or -1 with an exception set. */
static int best_columns(const ranked *in, const int64_t *ks, size_t nk, double *out,
                        size_t stride)
{
    bon_status status;
    Py_BEGIN_ALLOW_THREADS
    status = bon_rank_weights(in->n, ks, nk, in->weights, in->hits);
    Py_END_ALLOW_THREADS
    if (status != BON_OK) {
        PyErr_Format(PyExc_ValueError, "need n <= 2**28 samples in a row, got %zu", in->n);
        return -1;
    }
    const size_t stop = in->range.stop;
    size_t chunk = rows_per_chunk(in->n * (nk + 32) / 8);
    if (chunk > 8) chunk = chunk / 8 * 8; /* the core does eight rows at a time */
    for (size_t at = in->range.start; at < stop; at += chunk) {
        size_t bad = 0;
        Py_BEGIN_ALLOW_THREADS
        status = bon_best_of_k(in->scores + at * in->n, in->rewards + at * in->n,
                               min_size(chunk, stop - at), in->n, ks, nk, in->weights,
                               in->hits, in->scratch, out + at * stride, stride, in->stream,
                               &bad);
        Py_END_ALLOW_THREADS
        if (status != BON_OK) {
            PyErr_Format(PyExc_ValueError,
                         "scores and rewards must be finite, but row %zu, column %zu is not",
                         at + bad / in->n, bad % in->n);
            return -1;
        }
        if (PyErr_CheckSignals() < 0) return -1;
    }
    return 0;
}

PyDoc_STRVAR(best_of_k_doc,
"best_of_k(scores, rewards, k, out, start, stop, /)\n--\n\n"
"See bonaware.estimators.best_of_k. scores, rewards: float64 [rows, n], scores is\n"
"rewards for a perfect selector; k: int64 [nk]; out: float64 [rows, nk].");

static PyObject *py_best_of_k(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *scores_obj, *rewards_obj, *k_obj, *out_obj;
    Py_ssize_t start, stop;
    if (!PyArg_ParseTuple(args, "OOOOnn:best_of_k", &scores_obj, &rewards_obj, &k_obj,
                          &out_obj, &start, &stop))
        return NULL;

    PyArrayObject *scores, *rewards, *k, *out;
    int64_t k_max;
    ranked in = {0};
    if ((scores = as_array(scores_obj, NPY_DOUBLE, 2, "scores")) == NULL
        || (rewards = as_array(rewards_obj, NPY_DOUBLE, 2, "rewards")) == NULL
        || !same_shape(scores, "scores", rewards, "rewards")
        || (k = as_ks(k_obj, PyArray_DIM(rewards, 1), &k_max)) == NULL
        || (out = as_output(out_obj, NPY_DOUBLE, 2, "out")) == NULL
        || !fits(out, PyArray_DIM(rewards, 0), PyArray_DIM(k, 0))
        || !as_range(start, stop, PyArray_DIM(rewards, 0), &in.range))
        return NULL;
    in.scores = PyArray_DATA(scores);
    in.rewards = PyArray_DATA(rewards);
    in.n = (size_t)PyArray_DIM(rewards, 1);
    const size_t nk = (size_t)PyArray_DIM(k, 0);
    if (start == stop || nk == 0) Py_RETURN_NONE;

    in.stream = is_beyond_caches(out);

    /* As many columns at a time as keep the tables small. */
    const size_t fit = RANK_TABLE / in.n / 8 * 8;
    const size_t columns = min_size(nk, fit > 8 ? fit : 8);

    PyObject *result = NULL;
    const size_t line = bon_rank_columns(columns), table = in.n * line; /* whole lines */
    double *memory = PyMem_New(double, LINE + 2 * table + line + bon_best_of_k_scratch(in.n));
    if (memory == NULL) return PyErr_NoMemory();
    in.weights = next_line(memory);
    in.hits = in.weights + table;
    in.scratch = in.hits + table + line;

    const int64_t *ks = PyArray_DATA(k);
    double *out_data = PyArray_DATA(out);
    for (size_t at = 0; at < nk; at += columns)
        if (best_columns(&in, ks + at, min_size(columns, nk - at), out_data + at, nk) < 0)
            goto done;
    result = Py_NewRef(Py_None);

done:
    PyMem_Free(memory);
    return result;
}

/* -- win rate -------------------------------------------------------------- */

PyDoc_STRVAR(win_rate_doc,
"win_rate(preferences, rates, errors, start, stop, /)\n--\n\n"
"See bonaware.estimators.win_rate. preferences: float64 [rows, n]; rates, errors:\n"
"float64 [rows, 1], NaN where the row has no rate.");

static PyObject *py_win_rate(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *preferences_obj, *rates_obj, *errors_obj;
    Py_ssize_t start, stop;
    if (!PyArg_ParseTuple(args, "OOOnn:win_rate", &preferences_obj, &rates_obj, &errors_obj,
                          &start, &stop))
        return NULL;

    PyArrayObject *preferences, *rates, *errors;
    row_range range;
    if ((preferences = as_array(preferences_obj, NPY_DOUBLE, 2, "preferences")) == NULL
        || (rates = as_output(rates_obj, NPY_DOUBLE, 2, "rates")) == NULL
        || (errors = as_output(errors_obj, NPY_DOUBLE, 2, "errors")) == NULL
        || !fits(rates, PyArray_DIM(preferences, 0), 1)
        || !same_shape(rates, "rates", errors, "errors")
        || !as_range(start, stop, PyArray_DIM(preferences, 0), &range))
        return NULL;
    const size_t n = (size_t)PyArray_DIM(preferences, 1);
    const double *data = PyArray_DATA(preferences);
    double *rates_data = PyArray_DATA(rates), *errors_data = PyArray_DATA(errors);
    const size_t chunk = rows_per_chunk(n);
    for (size_t at = range.start; at < range.stop; at += chunk) {
        Py_BEGIN_ALLOW_THREADS
        bon_win_rate(data + at * n, min_size(chunk, range.stop - at), n, rates_data + at,
                     errors_data + at);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() < 0) return NULL;
    }
    Py_RETURN_NONE;
}

/* -- majority@k ------------------------------------------------------------ */

/* Steps of one row: see the costs in majority.h. */
static size_t majority_steps(size_t n, int weighted)
{
    return weighted || n > BON_MAX_EXACT_VOTES ? BON_RESAMPLES * 4 * n : n * n;
}

static void raise_majority(const int64_t *codes, const double *weights, size_t n,
                           size_t bad, bon_status status, int64_t k_max)
{
    const size_t row = bad / n;
    if (raise_vote(codes, weights, n, bad)) return;
    if (status == BON_ERR_NOT_FINITE)
        PyErr_Format(PyExc_ValueError,
                     "rewards must be finite, but row %zu, column %zu is not", row, bad % n);
    else if (count_samples(codes + row * n, n) < (size_t)k_max)
        PyErr_Format(PyExc_ValueError,
                     "need 1 <= k <= n, but row %zu has n=%zu samples, k=%lld", row,
                     count_samples(codes + row * n, n), (long long)k_max);
    else
        raise_overflow(row);
}

PyDoc_STRVAR(majority_at_k_doc,
"majority_at_k(codes, weights, rewards, k, seed, out, start, stop, /)\n--\n\n"
"See bonaware.estimators.majority_at_k. codes: int64 [rows, n], -1 does not vote,\n"
"-2 is no sample; weights: float64 [rows, n] or None; rewards: float64 [rows, n];\n"
"k: int64 [nk]; seed: 0 <= int < 2**64; out: float64 [rows, nk].");

static PyObject *py_majority_at_k(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *codes_obj, *weights_obj, *rewards_obj, *k_obj, *out_obj;
    unsigned long long seed;
    Py_ssize_t start, stop;
    if (!PyArg_ParseTuple(args, "OOOOKOnn:majority_at_k", &codes_obj, &weights_obj,
                          &rewards_obj, &k_obj, &seed, &out_obj, &start, &stop))
        return NULL;

    PyArrayObject *codes, *weights = NULL, *rewards, *k, *out;
    int64_t k_max;
    row_range range;
    if ((codes = as_array(codes_obj, NPY_INT64, 2, "codes")) == NULL
        || (weights_obj != Py_None
            && ((weights = as_array(weights_obj, NPY_DOUBLE, 2, "weights")) == NULL
                || !same_shape(codes, "codes", weights, "weights")))
        || (rewards = as_array(rewards_obj, NPY_DOUBLE, 2, "rewards")) == NULL
        || !same_shape(codes, "codes", rewards, "rewards")
        || (k = as_ks(k_obj, PyArray_DIM(codes, 1), &k_max)) == NULL
        || (out = as_output(out_obj, NPY_DOUBLE, 2, "out")) == NULL
        || !fits(out, PyArray_DIM(codes, 0), PyArray_DIM(k, 0))
        || !as_range(start, stop, PyArray_DIM(codes, 0), &range))
        return NULL;
    const size_t n = (size_t)PyArray_DIM(codes, 1), nk = (size_t)PyArray_DIM(k, 0);
    if (n > BON_MAX_VOTES)
        return PyErr_Format(PyExc_ValueError, "need n <= 2**28 samples in a row, got %zu", n);

    PyObject *result = NULL;
    double *table = PyMem_New(double, bon_majority_table(n));
    void *scratch = PyMem_Malloc(bon_majority_scratch(n, weights != NULL));
    if (table == NULL || scratch == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    bon_fill_majority_table(n, table);
    const int64_t *codes_data = PyArray_DATA(codes), *ks = PyArray_DATA(k);
    const double *rewards_data = PyArray_DATA(rewards);
    const double *weights_data = weights ? PyArray_DATA(weights) : NULL;
    double *out_data = PyArray_DATA(out);
    const size_t chunk = rows_per_chunk(majority_steps(n, weights != NULL));
    for (size_t at = range.start; at < range.stop; at += chunk) {
        size_t bad = 0;
        const double *some = weights_data ? weights_data + at * n : NULL;
        bon_status status;
        Py_BEGIN_ALLOW_THREADS
        status = bon_majority_at_k(codes_data + at * n, some, rewards_data + at * n,
                                   min_size(chunk, range.stop - at), n, ks, nk, table,
                                   scratch, (uint64_t)seed, at, out_data + at * nk, &bad);
        Py_END_ALLOW_THREADS
        if (status != BON_OK) {
            raise_majority(codes_data, weights_data, n, at * n + bad, status, k_max);
            goto done;
        }
        if (PyErr_CheckSignals() < 0) goto done;
    }
    result = Py_NewRef(Py_None);

done:
    PyMem_Free(scratch);
    PyMem_Free(table);
    return result;
}

/* -- module ---------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"pass_at_k", py_pass_at_k, METH_VARARGS, pass_at_k_doc},
    {"best_of_k", py_best_of_k, METH_VARARGS, best_of_k_doc},
    {"win_rate", py_win_rate, METH_VARARGS, win_rate_doc},
    {"majority_at_k", py_majority_at_k, METH_VARARGS, majority_at_k_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "bonaware._estimators",
    .m_doc = "C side of bonaware.estimators; not a public interface.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__estimators(void)
{
    return PyModuleDef_Init(&module_def);
}
