/* py_losses.c - the Python module bonaware._losses.
 *
 * This file knows Python and no mathematics; losses.c knows mathematics and no Python.
 * bonaware/losses converts and says what is wrong with a prompt; what is refused here are
 * arrays that the core could not read, and numbers that it refuses.
 */
#include "py_module.h"

#include "losses.h"

/* -- helpers --------------------------------------------------------------- */

/* The arrays of one call, borrowed, and its scratch. */
typedef struct {
    size_t n;
    row_range range;
    double *value, *weights, *scratch;
    int stream;
} call;

/* obj as float64 [rows, n] like scores, or NULL with an exception set. */
static PyArrayObject *as_like(PyObject *obj, const char *name, PyArrayObject *scores)
{
    PyArrayObject *array = as_array(obj, NPY_DOUBLE, 2, name);
    return array && same_shape(array, name, scores, "scores") ? array : NULL;
}

/* The same for an array that may be None: then *data is NULL. Returns 0, or -1. */
static int as_optional(PyObject *obj, const char *name, PyArrayObject *scores,
                       const double **data)
{
    *data = NULL;
    if (obj == Py_None) return 0;
    PyArrayObject *array = as_like(obj, name, scores);
    if (array == NULL) return -1;
    *data = PyArray_DATA(array);
    return 0;
}

/* float64 [rows] with one element for each row of `like`, or NULL. */
static PyArrayObject *as_rows(PyObject *obj, const char *name, PyArrayObject *like,
                              int written)
{
    PyArrayObject *array = written ? as_output(obj, NPY_DOUBLE, 1, name)
                                   : as_array(obj, NPY_DOUBLE, 1, name);
    if (array == NULL || PyArray_DIM(array, 0) == PyArray_DIM(like, 0)) return array;
    PyErr_Format(PyExc_ValueError, "%s must have one element for each of %zd rows, got %zd",
                 name, PyArray_DIM(like, 0), PyArray_DIM(array, 0));
    return NULL;
}

/* What is known of the policy, of which each may be None. Returns 0, or -1. */
static int as_known(PyObject *chance, PyObject *win_rate, PyObject *log_normaliser,
                    PyArrayObject *scores, bon_known *known)
{
    *known = (bon_known){NULL, NULL, NULL};
    if (as_optional(chance, "chance", scores, &known->chance) < 0
        || as_optional(win_rate, "win_rate", scores, &known->win_rate) < 0)
        return -1;
    if (log_normaliser == Py_None) return 0;
    PyArrayObject *array = as_rows(log_normaliser, "log_normaliser", scores, 0);
    if (array == NULL) return -1;
    known->log_normaliser = PyArray_DATA(array);
    return 0;
}

/* The same from row `at` on. */
static bon_known known_at(const bon_known *known, size_t at, size_t n)
{
    return (bon_known){
        .chance = known->chance ? known->chance + at * n : NULL,
        .win_rate = known->win_rate ? known->win_rate + at * n : NULL,
        .log_normaliser = known->log_normaliser ? known->log_normaliser + at : NULL,
    };
}

/* Checks what every call has; allocates the scratch, which the caller frees. */
static int begin(PyArrayObject *scores, PyObject *value_obj, PyObject *weights_obj,
                 Py_ssize_t start, Py_ssize_t stop, call *in)
{
    PyArrayObject *value, *weights;
    *in = (call){.n = (size_t)PyArray_DIM(scores, 1)};
    if ((value = as_rows(value_obj, "value", scores, 1)) == NULL
        || (weights = as_output(weights_obj, NPY_DOUBLE, 2, "weights")) == NULL
        || !same_shape(weights, "weights", scores, "scores")
        || !as_range(start, stop, PyArray_DIM(scores, 0), &in->range))
        return -1;
    if (in->n > BON_MAX_LOSS_SAMPLES) {
        PyErr_Format(PyExc_ValueError, "need n <= 2**30 samples in a row, got %zu", in->n);
        return -1;
    }
    in->value = PyArray_DATA(value);
    in->weights = PyArray_DATA(weights);
    in->stream = is_beyond_caches(weights);
    in->scratch = PyMem_New(double, bon_loss_scratch(in->n));
    if (in->scratch != NULL) return 0;
    PyErr_NoMemory();
    return -1;
}

/* Rows of one core call: some 30 steps for each sample, in whole groups of eight. */
static size_t chunk_of(const call *in)
{
    const size_t groups = rows_per_chunk(30 * in->n) / 8;
    return groups > 0 ? 8 * groups : 8;
}

/* Sets the exception of a status at the flat index `bad`. */
static void raise_at(bon_status status, const char *what, const call *in, size_t bad)
{
    const size_t n = in->n > 0 ? in->n : 1;
    if (status == BON_ERR_NOT_FINITE)
        PyErr_Format(PyExc_ValueError, "%s must be finite, but row %zu, column %zu is not",
                     what, bad / n, bad % n);
    else
        PyErr_Format(status_type(status),
                     "k, n or a number is out of its range at row %zu, column %zu",
                     bad / n, bad % n);
}

/* What follows a core call on the rows from `at` on: 0, or -1 with an exception set. */
static int after(bon_status status, const char *what, const call *in, size_t at, size_t bad)
{
    if (status == BON_OK) return PyErr_CheckSignals();
    raise_at(status, what, in, at * in->n + bad);
    return -1;
}

/* -- bon ------------------------------------------------------------------- */

PyDoc_STRVAR(bon_doc,
"bon(scores, rewards, k, baseline, value, weights, start, stop, /)\n--\n\n"
"See bonaware.losses.bon. scores, rewards: float64 [rows, n], may be the same;\n"
"baseline: BASELINES.index(name); value: float64 [rows]; weights: float64 [rows, n].");

static PyObject *py_bon(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *scores_obj, *rewards_obj, *value_obj, *weights_obj;
    Py_ssize_t k, start, stop;
    int baseline;
    if (!PyArg_ParseTuple(args, "OOniOOnn:bon", &scores_obj, &rewards_obj, &k, &baseline,
                          &value_obj, &weights_obj, &start, &stop))
        return NULL;
    PyArrayObject *scores, *rewards;
    call in;
    if ((scores = as_array(scores_obj, NPY_DOUBLE, 2, "scores")) == NULL
        || (rewards = as_like(rewards_obj, "rewards", scores)) == NULL)
        return NULL;
    if (k < 1 || baseline < BON_BASELINE_SUBSET || baseline > BON_BASELINE_NONE)
        return PyErr_Format(PyExc_ValueError, "need k >= 1 and 0 <= baseline <= 2, got %zd, %d",
                            k, baseline);
    if (begin(scores, value_obj, weights_obj, start, stop, &in) < 0) return NULL;

    PyObject *result = NULL;
    const double *ranked = PyArray_DATA(scores), *truth = PyArray_DATA(rewards);
    const size_t chunk = chunk_of(&in), n = in.n, end = in.range.stop;
    for (size_t at = in.range.start; at < end; at += chunk) {
        size_t bad = 0;
        bon_status status;
        Py_BEGIN_ALLOW_THREADS
        status = bon_bon_loss(ranked + at * n, truth + at * n, min_size(chunk, end - at), n,
                              (size_t)k, (bon_baseline)baseline, in.scratch, in.value + at,
                              in.weights + at * n, in.stream, &bad);
        Py_END_ALLOW_THREADS
        if (after(status, "scores and rewards", &in, at, bad) < 0) goto done;
    }
    result = Py_NewRef(Py_None);

done:
    PyMem_Free(in.scratch);
    return result;
}

/* -- bon_rl ---------------------------------------------------------------- */

/* True for a law that the core takes; else ValueError. */
static int as_law(Py_ssize_t k, int exact, double lambda, bon_law *law)
{
    *law = (bon_law){.k = (size_t)k, .exact = exact, .lambda = lambda};
    if (k >= 1 && lambda >= 0.0 && Py_IS_FINITE(lambda)) return 1;
    PyErr_Format(PyExc_ValueError, "need k >= 1 and a finite strength >= 0, got k=%zd", k);
    return 0;
}

PyDoc_STRVAR(bon_rl_doc,
"bon_rl(scores, rewards, chance, win_rate, log_normaliser, k, exact, strength, winners, value,"
" weights, start, stop, /)\n--\n\n"
"See bonaware.losses.bon_rl_v. scores, rewards: float64 [rows, n]; chance, win_rate: the\n"
"same or None; log_normaliser: float64 [rows] or None; exact, winners: bool; value: float64\n"
"[rows]; weights: float64 [rows, n].");

static PyObject *py_bon_rl(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *scores_obj, *rewards_obj, *chance_obj, *win_rate_obj, *normaliser_obj;
    PyObject *value_obj, *weights_obj;
    Py_ssize_t k, start, stop;
    int exact, winners;
    double lambda;
    if (!PyArg_ParseTuple(args, "OOOOOnpdpOOnn:bon_rl", &scores_obj, &rewards_obj, &chance_obj,
                          &win_rate_obj, &normaliser_obj, &k, &exact, &lambda, &winners,
                          &value_obj, &weights_obj, &start, &stop))
        return NULL;
    PyArrayObject *scores, *rewards;
    bon_known known;
    bon_law law;
    call in;
    if ((scores = as_array(scores_obj, NPY_DOUBLE, 2, "scores")) == NULL
        || (rewards = as_like(rewards_obj, "rewards", scores)) == NULL
        || as_known(chance_obj, win_rate_obj, normaliser_obj, scores, &known) < 0
        || !as_law(k, exact, lambda, &law)
        || begin(scores, value_obj, weights_obj, start, stop, &in) < 0)
        return NULL;

    PyObject *result = NULL;
    const double *ranked = PyArray_DATA(scores), *truth = PyArray_DATA(rewards);
    const size_t chunk = chunk_of(&in), n = in.n, end = in.range.stop;
    for (size_t at = in.range.start; at < end; at += chunk) {
        size_t bad = 0;
        const bon_known here = known_at(&known, at, n);
        bon_status status;
        Py_BEGIN_ALLOW_THREADS
        status = bon_rl_loss(ranked + at * n, truth + at * n, &here, min_size(chunk, end - at),
                             n, &law, winners, in.scratch, in.value + at,
                             in.weights + at * n, in.stream, &bad);
        Py_END_ALLOW_THREADS
        if (after(status, "scores and rewards", &in, at, bad) < 0) goto done;
    }
    result = Py_NewRef(Py_None);

done:
    PyMem_Free(in.scratch);
    return result;
}

/* -- bon_sft --------------------------------------------------------------- */

/* True, with ValueError set, where this row [n] lacks experts or samples of the policy. */
static int raise_too_few(const uint8_t *expert, size_t row, size_t n, size_t fewest)
{
    size_t experts = 0;
    for (size_t i = 0; i < n; i++) experts += expert[i] != 0;
    if (experts > 0 && n - experts >= fewest) return 0;
    PyErr_Format(PyExc_ValueError,
                 "need 1 demonstration (expert True) and %zu samples of the policy in every "
                 "row, but row %zu has %zu and %zu",
                 fewest, row, experts, n - experts);
    return 1;
}

PyDoc_STRVAR(bon_sft_doc,
"bon_sft(scores, logp, expert, chance, win_rate, log_normaliser, k, strength, value, weights,"
" start, stop, /)\n--\n\n"
"See bonaware.losses.bon_sft. scores, logp: float64 [rows, n]; expert: bool [rows, n];\n"
"chance, win_rate: float64 [rows, n] or None; log_normaliser: float64 [rows] or None; value:\n"
"float64 [rows]; weights: float64 [rows, n].");

static PyObject *py_bon_sft(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *scores_obj, *logp_obj, *expert_obj, *chance_obj, *win_rate_obj, *normaliser_obj;
    PyObject *value_obj, *weights_obj;
    Py_ssize_t k, start, stop;
    double lambda;
    if (!PyArg_ParseTuple(args, "OOOOOOndOOnn:bon_sft", &scores_obj, &logp_obj, &expert_obj,
                          &chance_obj, &win_rate_obj, &normaliser_obj, &k, &lambda, &value_obj,
                          &weights_obj, &start, &stop))
        return NULL;
    PyArrayObject *scores, *logp, *expert;
    bon_known known;
    bon_law law;
    call in;
    if ((scores = as_array(scores_obj, NPY_DOUBLE, 2, "scores")) == NULL
        || (logp = as_like(logp_obj, "logp", scores)) == NULL
        || (expert = as_array(expert_obj, NPY_BOOL, 2, "expert")) == NULL
        || !same_shape(expert, "expert", scores, "scores")
        || as_known(chance_obj, win_rate_obj, normaliser_obj, scores, &known) < 0
        || !as_law(k, 0, lambda, &law)
        || begin(scores, value_obj, weights_obj, start, stop, &in) < 0)
        return NULL;

    PyObject *result = NULL;
    const double *ranked = PyArray_DATA(scores), *nats = PyArray_DATA(logp);
    const uint8_t *shown = PyArray_DATA(expert);
    const size_t chunk = chunk_of(&in), n = in.n, end = in.range.stop;
    for (size_t at = in.range.start; at < end; at += chunk) {
        size_t bad = 0;
        const bon_known here = known_at(&known, at, n);
        bon_status status;
        Py_BEGIN_ALLOW_THREADS
        status = bon_sft_loss(ranked + at * n, nats + at * n, shown + at * n, &here,
                              min_size(chunk, end - at), n, &law, in.scratch, in.value + at,
                              in.weights + at * n, in.stream, &bad);
        Py_END_ALLOW_THREADS
        const size_t row = at + bad / n, fewest = known.chance ? 1 : 3;
        if (status == BON_ERR_DOMAIN && raise_too_few(shown + row * n, row, n, fewest))
            goto done;
        if (after(status, "scores and logp", &in, at, bad) < 0) goto done;
    }
    result = Py_NewRef(Py_None);

done:
    PyMem_Free(in.scratch);
    return result;
}

/* -- bon_rlb --------------------------------------------------------------- */

static PyObject *raise_not_binary(const double *rewards, size_t bad, size_t n)
{
    PyObject *found = PyFloat_FromDouble(rewards[bad]);
    if (found == NULL) return NULL;
    PyErr_Format(PyExc_ValueError, "rewards must be 0 or 1, but row %zu, column %zu is %R",
                 bad / n, bad % n, found);
    Py_DECREF(found);
    return NULL;
}

PyDoc_STRVAR(count_correct_doc,
"count_correct(rewards, correct, start, stop, /)\n--\n\n"
"How many rewards of each row are 1; the others must be 0. rewards: float64 [rows, n];\n"
"correct: float64 [rows].");

static PyObject *py_count_correct(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *rewards_obj, *correct_obj;
    Py_ssize_t start, stop;
    if (!PyArg_ParseTuple(args, "OOnn:count_correct", &rewards_obj, &correct_obj, &start,
                          &stop))
        return NULL;
    PyArrayObject *rewards, *correct;
    row_range range;
    if ((rewards = as_array(rewards_obj, NPY_DOUBLE, 2, "rewards")) == NULL
        || (correct = as_rows(correct_obj, "correct", rewards, 1)) == NULL
        || !as_range(start, stop, PyArray_DIM(rewards, 0), &range))
        return NULL;
    const size_t n = (size_t)PyArray_DIM(rewards, 1), chunk = rows_per_chunk(n);
    const double *truth = PyArray_DATA(rewards);
    double *out = PyArray_DATA(correct);
    for (size_t at = range.start; at < range.stop; at += chunk) {
        size_t bad = 0;
        bon_status status;
        Py_BEGIN_ALLOW_THREADS
        status = bon_count_correct(truth + at * n, min_size(chunk, range.stop - at), n,
                                   out + at, &bad);
        Py_END_ALLOW_THREADS
        if (status != BON_OK) return raise_not_binary(truth, at * n + bad, n);
        if (PyErr_CheckSignals() < 0) return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(two_weights_doc,
"two_weights(rewards, hit, miss, weights, start, stop, /)\n--\n\n"
"weights = hit where a reward is not 0, else miss. rewards, weights: float64 [rows, n];\n"
"hit, miss: float64 [rows].");

static PyObject *py_two_weights(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *rewards_obj, *hit_obj, *miss_obj, *weights_obj;
    Py_ssize_t start, stop;
    if (!PyArg_ParseTuple(args, "OOOOnn:two_weights", &rewards_obj, &hit_obj, &miss_obj,
                          &weights_obj, &start, &stop))
        return NULL;
    PyArrayObject *rewards, *hit, *miss, *weights;
    row_range range;
    if ((rewards = as_array(rewards_obj, NPY_DOUBLE, 2, "rewards")) == NULL
        || (hit = as_rows(hit_obj, "hit", rewards, 0)) == NULL
        || (miss = as_rows(miss_obj, "miss", rewards, 0)) == NULL
        || (weights = as_output(weights_obj, NPY_DOUBLE, 2, "weights")) == NULL
        || !same_shape(weights, "weights", rewards, "rewards")
        || !as_range(start, stop, PyArray_DIM(rewards, 0), &range))
        return NULL;
    const size_t n = (size_t)PyArray_DIM(rewards, 1), chunk = rows_per_chunk(n);
    const double *truth = PyArray_DATA(rewards);
    const double *right = PyArray_DATA(hit), *wrong = PyArray_DATA(miss);
    double *out = PyArray_DATA(weights);
    for (size_t at = range.start; at < range.stop; at += chunk) {
        Py_BEGIN_ALLOW_THREADS
        bon_two_weights(truth + at * n, right + at, wrong + at,
                        min_size(chunk, range.stop - at), n, out + at * n);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() < 0) return NULL;
    }
    Py_RETURN_NONE;
}

/* float64 [n + 1]: one for each number of rewards that a row may have, or NULL. */
static PyArrayObject *as_by_count(PyObject *obj, const char *name, PyArrayObject *rewards)
{
    PyArrayObject *array = as_array(obj, NPY_DOUBLE, 1, name);
    if (array == NULL || PyArray_DIM(array, 0) == PyArray_DIM(rewards, 1) + 1) return array;
    PyErr_Format(PyExc_ValueError, "%s must have an element for each of 0 to %zd, got %zd",
                 name, PyArray_DIM(rewards, 1), PyArray_DIM(array, 0));
    return NULL;
}

PyDoc_STRVAR(weigh_by_count_doc,
"weigh_by_count(rewards, hit, miss, correct, weights, start, stop, /)\n--\n\n"
"count_correct, and weights = hit[correct] where a reward is not 0, else miss[correct].\n"
"rewards, weights: float64 [rows, n]; hit, miss: float64 [n + 1]; correct: float64 [rows].");

static PyObject *py_weigh_by_count(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *rewards_obj, *hit_obj, *miss_obj, *correct_obj, *weights_obj;
    Py_ssize_t start, stop;
    if (!PyArg_ParseTuple(args, "OOOOOnn:weigh_by_count", &rewards_obj, &hit_obj, &miss_obj,
                          &correct_obj, &weights_obj, &start, &stop))
        return NULL;
    PyArrayObject *rewards, *hit, *miss, *correct, *weights;
    row_range range;
    if ((rewards = as_array(rewards_obj, NPY_DOUBLE, 2, "rewards")) == NULL
        || (hit = as_by_count(hit_obj, "hit", rewards)) == NULL
        || (miss = as_by_count(miss_obj, "miss", rewards)) == NULL
        || (correct = as_rows(correct_obj, "correct", rewards, 1)) == NULL
        || (weights = as_output(weights_obj, NPY_DOUBLE, 2, "weights")) == NULL
        || !same_shape(weights, "weights", rewards, "rewards")
        || !as_range(start, stop, PyArray_DIM(rewards, 0), &range))
        return NULL;
    const size_t n = (size_t)PyArray_DIM(rewards, 1), chunk = rows_per_chunk(n);
    const double *truth = PyArray_DATA(rewards);
    const double *right = PyArray_DATA(hit), *wrong = PyArray_DATA(miss);
    double *counts = PyArray_DATA(correct), *out = PyArray_DATA(weights);
    for (size_t at = range.start; at < range.stop; at += chunk) {
        size_t bad = 0;
        bon_status status;
        Py_BEGIN_ALLOW_THREADS
        status = bon_weigh_by_count(truth + at * n, right, wrong,
                                    min_size(chunk, range.stop - at), n, counts + at,
                                    out + at * n, &bad);
        Py_END_ALLOW_THREADS
        if (status != BON_OK) return raise_not_binary(truth, at * n + bad, n);
        if (PyErr_CheckSignals() < 0) return NULL;
    }
    Py_RETURN_NONE;
}

/* -- module ---------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"bon", py_bon, METH_VARARGS, bon_doc},
    {"bon_rl", py_bon_rl, METH_VARARGS, bon_rl_doc},
    {"bon_sft", py_bon_sft, METH_VARARGS, bon_sft_doc},
    {"count_correct", py_count_correct, METH_VARARGS, count_correct_doc},
    {"two_weights", py_two_weights, METH_VARARGS, two_weights_doc},
    {"weigh_by_count", py_weigh_by_count, METH_VARARGS, weigh_by_count_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "bonaware._losses",
    .m_doc = "C side of bonaware.losses; not a public interface.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__losses(void)
{
    return PyModuleDef_Init(&module_def);
}
