/* py_engine.c - the Python module bonaware._engine: its functions and its types.
 *
 * py_weights.c, py_model.c, py_session.c and py_learner.c hold one type each. All of them know
 * Python and no mathematics; the contract of each call is in the core's headers.
 */
#define BON_IMPORT_NUMPY
#include "py_engine.h"

#include <time.h>

#include "py_weights.h"

/* -- interrupts ------------------------------------------------------------ */

#define POLL_SECONDS 0.01

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int stop_for_signal(void *arg)
{
    py_poll *poll = arg;
    const double now = seconds_now();
    if (now < poll->next) return 0;
    poll->next = now + POLL_SECONDS;
    PyEval_RestoreThread(poll->state);
    const int stop = PyErr_CheckSignals() < 0;
    poll->state = PyEval_SaveThread();
    return stop;
}

int py_poll_begin(py_poll *poll, PyObject *model)
{
    if (bon_model_begin_use(model) < 0) return -1;
    *poll = (py_poll){.poll = {stop_for_signal, poll}, .model = model,
                      .next = seconds_now() + POLL_SECONDS};
    poll->state = PyEval_SaveThread();
    return 0;
}

void py_poll_end(py_poll *poll)
{
    PyEval_RestoreThread(poll->state);
    bon_model_end_use(poll->model);
}

PyObject *raise_engine_status(bon_status status)
{
    if (status == BON_ERR_INTERRUPTED) return NULL;
    if (status == BON_ERR_MEMORY) return PyErr_NoMemory();
    if (status == BON_ERR_NOT_FINITE)
        return PyErr_Format(PyExc_ValueError, "the model computed a logit that is NaN or "
                                              "infinite: its weights are damaged or do not fit "
                                              "its config.json");
    if (status == BON_ERR_BACKEND)
        return PyErr_Format(PyExc_RuntimeError, "oneDNN refused or failed a matrix product");
    return PyErr_Format(PyExc_RuntimeError, "unexpected status %d of the engine", (int)status);
}

/* -- functions ------------------------------------------------------------- */

PyDoc_STRVAR(rng_uniform_doc,
"rng_uniform(seed, prompt, repeat, sample, position, /)\n--\n\n"
"The uniform number in [0, 1) that a sample draws its token at `position` with.\n"
"All arguments are unsigned 64-bit integers; see csrc/rng.h.");

static PyObject *py_rng_uniform(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long seed, prompt, repeat, sample, position;
    if (!PyArg_ParseTuple(args, "KKKKK:rng_uniform", &seed, &prompt, &repeat, &sample, &position))
        return NULL;
    const bon_rng_key key = {seed, prompt, repeat, sample, 0};
    return PyFloat_FromDouble(bon_rng_uniform(&key, position));
}

PyDoc_STRVAR(hash_tokens_doc,
"hash_tokens(tokens, /)\n--\n\n"
"The 64-bit hash of token ids (int32 [len]) that keys a prompt's random numbers.");

static PyObject *py_hash_tokens(PyObject *Py_UNUSED(module), PyObject *arg)
{
    PyArrayObject *tokens = as_array(arg, NPY_INT32, 1, "tokens");
    if (tokens == NULL) return NULL;
    return PyLong_FromUnsignedLongLong(
        bon_hash_tokens(PyArray_DATA(tokens), (size_t)PyArray_DIM(tokens, 0)));
}

PyDoc_STRVAR(sample_doc,
"sample(logits, u, temperature, top_k, top_p, min_p, /)\n--\n\n"
"Draws one token per row: logits float32 [rows, vocab], u float64 [rows] in [0, 1),\n"
"temperature float32 [rows]. Returns token int32, logp, sampled_logp, certainty\n"
"float32, each [rows]; see csrc/sample.h.");

static bon_status sample_rows(const float *logits, size_t rows, size_t vocab, const double *u,
                              const float *temperature, bon_sampling how, void *scratch,
                              int32_t *token, float *const out[3], size_t *bad)
{
    for (*bad = 0; *bad < rows; ++*bad) {
        bon_draw draw;
        how.temperature = temperature[*bad];
        bon_status status = bon_sampling_check(&how);
        if (status == BON_OK)
            status = bon_sample_token(logits + *bad * vocab, vocab, &how, u[*bad], scratch,
                                      &draw);
        if (status != BON_OK) return status;
        token[*bad] = draw.token;
        out[0][*bad] = draw.logp;
        out[1][*bad] = draw.sampled_logp;
        out[2][*bad] = draw.certainty;
    }
    return BON_OK;
}

static PyObject *py_sample(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *objects[3];
    bon_sampling how = {0};
    if (!PyArg_ParseTuple(args, "OOOidd:sample", &objects[0], &objects[1], &objects[2],
                          &how.top_k, &how.top_p, &how.min_p))
        return NULL;
    PyArrayObject *logits = as_array(objects[0], NPY_FLOAT, 2, "logits");
    PyArrayObject *u = logits ? as_array(objects[1], NPY_DOUBLE, 1, "u") : NULL;
    PyArrayObject *temperature = u ? as_array(objects[2], NPY_FLOAT, 1, "temperature") : NULL;
    if (temperature == NULL) return NULL;
    npy_intp rows = PyArray_DIM(logits, 0), vocab = PyArray_DIM(logits, 1);
    if (PyArray_DIM(u, 0) != rows || PyArray_DIM(temperature, 0) != rows || vocab < 1)
        return PyErr_Format(PyExc_ValueError,
                            "logits [rows, vocab >= 1], u [rows] and temperature [rows] must "
                            "agree, got rows %zd, %zd, %zd and vocab %zd",
                            rows, PyArray_DIM(u, 0), PyArray_DIM(temperature, 0), vocab);

    PyObject *arrays[4] = {NULL}, *result = NULL;
    void *scratch = NULL;
    for (int i = 0; i < 4; i++)
        if (!(arrays[i] = PyArray_SimpleNew(1, &rows, i ? NPY_FLOAT : NPY_INT32))) goto done;
    if (!(scratch = aligned_alloc(64, (bon_sample_scratch((size_t)vocab) + 63) / 64 * 64))) {
        PyErr_NoMemory();
        goto done;
    }
    float *out[3];
    for (int i = 0; i < 3; i++) out[i] = PyArray_DATA((PyArrayObject *)arrays[i + 1]);
    size_t bad;
    bon_status status;
    Py_BEGIN_ALLOW_THREADS
    status = sample_rows(PyArray_DATA(logits), (size_t)rows, (size_t)vocab, PyArray_DATA(u),
                         PyArray_DATA(temperature), how, scratch,
                         PyArray_DATA((PyArrayObject *)arrays[0]), out, &bad);
    Py_END_ALLOW_THREADS
    if (status != BON_OK) {
        PyErr_Format(PyExc_ValueError,
                     status == BON_ERR_DOMAIN
                         ? "need 0 <= u < 1, temperature >= 0, top_k >= 0, 0 < top_p <= 1 "
                           "and 0 <= min_p <= 1, row %zu breaks one of them"
                         : "logits must be finite or -inf and not all -inf, row %zu is not",
                     bad);
        goto done;
    }
    result = PyTuple_Pack(4, arrays[0], arrays[1], arrays[2], arrays[3]);
done:
    for (int i = 0; i < 4; i++) Py_XDECREF(arrays[i]);
    free(scratch);
    return result;
}

PyDoc_STRVAR(config_doc,
"config()\n--\n\n"
"What this build and machine offer: dict of isa, onednn_version, onednn_isa, routes.");

static PyObject *py_config(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    PyObject *routes = PyDict_New();
    if (routes == NULL) return NULL;
    static const struct { const char *name; bon_dtype dtype; } dtypes[] = {
        {"float32", BON_F32}, {"bfloat16", BON_BF16}, {"int8", BON_I8}};
    for (int d = 0; d < 3; d++) {
        PyObject *list = PyList_New(0);
        if (list == NULL || PyDict_SetItemString(routes, dtypes[d].name, list) < 0) goto fail;
        Py_DECREF(list);
        for (int r = 0; r < BON_ROUTES; r++) {
            if (!bon_route_available((bon_route)r, dtypes[d].dtype)) continue;
            PyObject *name = PyUnicode_FromString(bon_route_name((bon_route)r));
            const int failed = name == NULL || PyList_Append(list, name) < 0;
            Py_XDECREF(name);
            if (failed) goto fail_routes;
        }
        continue;
    fail:
        Py_XDECREF(list);
    fail_routes:
        Py_DECREF(routes);
        return NULL;
    }
    return Py_BuildValue("{s:s,s:s,s:s,s:N}", "isa", bon_gemm_isa(), "onednn_version",
                         bon_onednn_version(), "onednn_isa", bon_onednn_isa(), "routes", routes);
}

/* -- module ---------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"rng_uniform", py_rng_uniform, METH_VARARGS, rng_uniform_doc},
    {"hash_tokens", py_hash_tokens, METH_O, hash_tokens_doc},
    {"sample", py_sample, METH_VARARGS, sample_doc},
    {"config", py_config, METH_NOARGS, config_doc},
    {NULL, NULL, 0, NULL},
};

static int exec_module(PyObject *module)
{
    if (PyArray_ImportNumPyAPI() < 0) return -1;
    if (!bon_cpu_supported()) {
        PyErr_SetString(PyExc_ImportError,
                        "bonaware's engine needs a processor with AVX2 and FMA");
        return -1;
    }
    if (bon_add_weights_type(module) < 0 || bon_add_model_type(module) < 0
        || bon_add_session_type(module) < 0 || bon_add_learner_type(module) < 0)
        return -1;
    if (PyModule_AddIntConstant(module, "MAX_THREADS", BON_MAX_THREADS) < 0) return -1;
    return PyModule_AddIntConstant(module, "BLOCK_TOKENS", BON_BLOCK);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, exec_module},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "bonaware._engine",
    .m_doc = "C side of bonaware.lm; not a public interface.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__engine(void) { return PyModuleDef_Init(&module_def); }
