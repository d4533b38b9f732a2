/* py_model.c - the type bonaware._engine.Model: packed weights, logits, logp, scores. */
#include "py_engine.h"
#include "int8.h"
#include "score.h"

typedef struct {
    PyObject_HEAD
    bon_model *model;
    int users;     /* calls that read it now, perhaps without the GIL */
    bool changing; /* a call changes it now */
    unsigned long adapter_changes;
} ModelObject;

/* Heap types live as long as the process; one interpreter only (module slots). */
static PyTypeObject *model_type;

bon_model *bon_model_of(PyObject *object)
{
    if (!PyObject_TypeCheck(object, model_type)) {
        PyErr_Format(PyExc_TypeError, "model must be a Model, got %.200s",
                     Py_TYPE(object)->tp_name);
        return NULL;
    }
    return ((ModelObject *)object)->model;
}

int bon_model_begin_use(PyObject *model)
{
    ModelObject *self = (ModelObject *)model;
    if (self->changing) {
        PyErr_SetString(PyExc_RuntimeError, "another thread is changing the model's weights");
        return -1;
    }
    self->users++;
    return 0;
}

void bon_model_end_use(PyObject *model) { ((ModelObject *)model)->users--; }

int bon_model_begin_change(PyObject *model)
{
    ModelObject *self = (ModelObject *)model;
    if (self->users > 0 || self->changing) {
        PyErr_SetString(PyExc_RuntimeError, "weights cannot be changed while another thread uses "
                                            "the model");
        return -1;
    }
    self->changing = true;
    return 0;
}

void bon_model_end_change(PyObject *model) { ((ModelObject *)model)->changing = false; }

unsigned long bon_model_adapter_changes(PyObject *model)
{
    return ((ModelObject *)model)->adapter_changes;
}

/* -- architecture ---------------------------------------------------------- */

/* A borrowed field of the dict, or NULL with ValueError naming it. */
static PyObject *field(PyObject *dict, const char *name)
{
    PyObject *value = PyDict_GetItemString(dict, name);
    if (value == NULL) PyErr_Format(PyExc_ValueError, "arch has no field %s", name);
    return value;
}

static int get_size(PyObject *dict, const char *name, size_t *out)
{
    PyObject *value = field(dict, name);
    if (value == NULL) return -1;
    *out = PyLong_AsSize_t(value);
    return PyErr_Occurred() ? -1 : 0;
}

static int get_float(PyObject *dict, const char *name, float *out)
{
    PyObject *value = field(dict, name);
    if (value == NULL) return -1;
    *out = (float)PyFloat_AsDouble(value);
    return PyErr_Occurred() ? -1 : 0;
}

static int get_bool(PyObject *dict, const char *name, bool *out)
{
    PyObject *value = field(dict, name);
    if (value == NULL) return -1;
    const int truth = PyObject_IsTrue(value);
    *out = truth > 0;
    return truth < 0 ? -1 : 0;
}

/* Borrowed data of an array field of a given type and length. */
static const void *get_array(PyObject *dict, const char *name, int typenum, size_t length)
{
    PyObject *value = field(dict, name);
    PyArrayObject *array = value ? as_array(value, typenum, 1, name) : NULL;
    if (array == NULL) return NULL;
    if ((size_t)PyArray_DIM(array, 0) != length) {
        PyErr_Format(PyExc_ValueError, "arch.%s must have length %zu, got %zd", name, length,
                     PyArray_DIM(array, 0));
        return NULL;
    }
    return PyArray_DATA(array);
}

static int read_ropes(PyObject *dict, bon_arch *arch)
{
    PyObject *tables = field(dict, "rope_freq"), *scales = field(dict, "rope_scale");
    if (!tables || !scales) return -1;
    if (!PyTuple_Check(tables) || !PyTuple_Check(scales)
        || PyTuple_GET_SIZE(tables) != PyTuple_GET_SIZE(scales)
        || PyTuple_GET_SIZE(tables) < 1 || PyTuple_GET_SIZE(tables) > BON_MAX_ROPES) {
        PyErr_Format(PyExc_ValueError, "arch.rope_freq and arch.rope_scale must be tuples of "
                                       "equal length 1 or 2");
        return -1;
    }
    arch->ropes = (size_t)PyTuple_GET_SIZE(tables);
    for (size_t i = 0; i < arch->ropes; i++) {
        PyArrayObject *table =
            as_array(PyTuple_GET_ITEM(tables, (Py_ssize_t)i), NPY_FLOAT, 1, "rope_freq");
        if (table == NULL) return -1;
        if ((size_t)PyArray_DIM(table, 0) != arch->head_dim / 2) {
            PyErr_Format(PyExc_ValueError, "arch.rope_freq must hold head_dim/2 = %zu "
                                           "frequencies, got %zd",
                         arch->head_dim / 2, PyArray_DIM(table, 0));
            return -1;
        }
        arch->rope_freq[i] = PyArray_DATA(table);
        arch->rope_scale[i] =
            (float)PyFloat_AsDouble(PyTuple_GET_ITEM(scales, (Py_ssize_t)i));
        if (PyErr_Occurred()) return -1;
    }
    return 0;
}

static int read_arch(PyObject *dict, bon_arch *arch)
{
    const struct { const char *name; size_t *to; } sizes[] = {
        {"vocab", &arch->vocab}, {"hidden", &arch->hidden}, {"layers", &arch->layers},
        {"heads", &arch->heads}, {"kv_heads", &arch->kv_heads},
        {"head_dim", &arch->head_dim}, {"intermediate", &arch->intermediate},
        {"max_positions", &arch->max_positions}, {"labels", &arch->labels}};
    const struct { const char *name; float *to; } floats[] = {
        {"norm_eps", &arch->norm_eps}, {"norm_offset", &arch->norm_offset},
        {"embed_scale", &arch->embed_scale}, {"attn_scale", &arch->attn_scale},
        {"attn_softcap", &arch->attn_softcap}, {"final_softcap", &arch->final_softcap}};
    const struct { const char *name; bool *to; } bools[] = {
        {"qk_norm", &arch->qk_norm}, {"post_norms", &arch->post_norms},
        {"qkv_bias", &arch->qkv_bias}, {"o_bias", &arch->o_bias},
        {"mlp_bias", &arch->mlp_bias}, {"tied", &arch->tied}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (get_size(dict, sizes[i].name, sizes[i].to) < 0) return -1;
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
        if (get_float(dict, floats[i].name, floats[i].to) < 0) return -1;
    for (size_t i = 0; i < sizeof bools / sizeof *bools; i++)
        if (get_bool(dict, bools[i].name, bools[i].to) < 0) return -1;

    PyObject *activation = field(dict, "activation");
    if (activation == NULL) return -1;
    if (PyUnicode_Check(activation) && PyUnicode_CompareWithASCIIString(activation, "silu") == 0)
        arch->activation = BON_SILU;
    else if (PyUnicode_Check(activation)
             && PyUnicode_CompareWithASCIIString(activation, "gelu_tanh") == 0)
        arch->activation = BON_GELU_TANH;
    else {
        PyErr_Format(PyExc_ValueError, "arch.activation must be \"silu\" or \"gelu_tanh\", "
                                       "got %R", activation);
        return -1;
    }
    if (!(arch->window = get_array(dict, "window", NPY_UINTP, arch->layers))
        || !(arch->rope = get_array(dict, "rope", NPY_UINT8, arch->layers)))
        return -1;
    return read_ropes(dict, arch);
}

static int read_dtype(PyObject *name, bon_dtype *dtype)
{
    if (PyUnicode_CompareWithASCIIString(name, "float32") == 0) *dtype = BON_F32;
    else if (PyUnicode_CompareWithASCIIString(name, "bfloat16") == 0) *dtype = BON_BF16;
    else if (PyUnicode_CompareWithASCIIString(name, "int8") == 0) *dtype = BON_I8;
    else {
        PyErr_Format(PyExc_ValueError,
                     "dtype must be \"float32\", \"bfloat16\" or \"int8\", got %R", name);
        return -1;
    }
    return 0;
}

static PyObject *Model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *dict, *dtype_name;
    int threads;
    bon_dtype dtype;
    bon_arch arch = {0};
    static char *names[] = {"arch", "dtype", "threads", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!Ui:Model", names, &PyDict_Type, &dict,
                                     &dtype_name, &threads)
        || read_arch(dict, &arch) < 0 || read_dtype(dtype_name, &dtype) < 0)
        return NULL;
    ModelObject *self = (ModelObject *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    const bon_status status = bon_model_create(&arch, dtype, threads, &self->model);
    if (status == BON_OK) return (PyObject *)self;
    Py_DECREF(self);
    if (status == BON_ERR_DOMAIN)
        return PyErr_Format(PyExc_ValueError,
                            "need 1 <= threads <= %d and an architecture whose sizes are "
                            "positive, with kv_heads dividing heads and an even head_dim, and "
                            "in int8 matrices of at most %d inputs",
                            BON_MAX_THREADS, BON_I8_MAX_INPUTS);
    return raise_engine_status(status);
}

static void Model_dealloc(ModelObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    bon_model_destroy(self->model);
    type->tp_free(self);
    Py_DECREF(type);
}

/* -- weights --------------------------------------------------------------- */

int bon_find_slot(const char *name, bon_slot *slot)
{
    for (int s = 0; s < BON_SLOTS; s++) {
        if (strcmp(name, bon_slot_name((bon_slot)s)) != 0) continue;
        *slot = (bon_slot)s;
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "no slot is named %s", name);
    return -1;
}

/* The slot (name, layer), with its shape; or -1 with ValueError set. */
static int slot_at(ModelObject *self, const char *name, Py_ssize_t layer, bon_slot *slot,
                   size_t *rows, size_t *cols)
{
    if (bon_find_slot(name, slot) < 0) return -1;
    const size_t layers = bon_slot_of_layer(*slot) ? bon_model_arch(self->model)->layers : 1;
    if (!bon_model_has(self->model, *slot) || layer < 0 || (size_t)layer >= layers) {
        PyErr_Format(PyExc_ValueError, "this architecture has no slot %s in layer %zd", name,
                     layer);
        return -1;
    }
    bon_model_shape(self->model, *slot, rows, cols);
    return 0;
}

/* The core's name for an array's elements; uint16 holds bfloat16. */
static int source_dtype(PyArrayObject *array, bon_dtype *dtype)
{
    switch (PyArray_TYPE(array)) {
    case NPY_FLOAT: *dtype = BON_F32; return 0;
    case NPY_UINT16: *dtype = BON_BF16; return 0;
    case NPY_HALF: *dtype = BON_F16; return 0;
    default:
        PyErr_Format(PyExc_TypeError, "a tensor must be float32, float16 or uint16 (bfloat16 "
                                      "bits), got %S", (PyObject *)PyArray_DESCR(array));
        return -1;
    }
}

PyDoc_STRVAR(Model_set_doc,
"set($self, slot, layer, array, /)\n--\n\n"
"Packs one tensor into its slot; uint16 arrays are taken as bfloat16.");

static PyObject *Model_set(ModelObject *self, PyObject *args)
{
    const char *name;
    Py_ssize_t layer;
    PyArrayObject *array;
    bon_slot slot;
    bon_dtype dtype;
    size_t rows, cols;
    if (!PyArg_ParseTuple(args, "snO!:set", &name, &layer, &PyArray_Type, &array)
        || slot_at(self, name, layer, &slot, &rows, &cols) < 0 || source_dtype(array, &dtype) < 0)
        return NULL;
    const int ndim = PyArray_NDIM(array);
    /* Alignment is not asked for: a file may place a tensor anywhere. */
    if (!PyArray_IS_C_CONTIGUOUS(array) || PyArray_ISBYTESWAPPED(array) || ndim < 1 || ndim > 2
        || (size_t)PyArray_DIM(array, 0) != rows
        || (ndim == 2 ? (size_t)PyArray_DIM(array, 1) : 1) != cols)
        return PyErr_Format(PyExc_ValueError,
                            "slot %s must be a contiguous array of shape [%zu, %zu], got %d "
                            "dimension(s) and %zd elements",
                            name, rows, cols, ndim, PyArray_SIZE(array));
    bon_status status;
    if (bon_model_begin_change((PyObject *)self) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = bon_model_set(self->model, slot, (size_t)layer, PyArray_DATA(array), dtype);
    Py_END_ALLOW_THREADS
    bon_model_end_change((PyObject *)self);
    if (status != BON_OK) return raise_engine_status(status);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Model_get_doc,
"get($self, slot, layer, /)\n--\n\n"
"The tensor of a slot, unpacked: float32 [rows, cols], or [rows] for a vector.");

static PyObject *Model_get(ModelObject *self, PyObject *args)
{
    const char *name;
    Py_ssize_t layer;
    bon_slot slot;
    size_t rows, cols;
    if (!PyArg_ParseTuple(args, "sn:get", &name, &layer)
        || slot_at(self, name, layer, &slot, &rows, &cols) < 0)
        return NULL;
    npy_intp shape[2] = {(npy_intp)rows, (npy_intp)cols};
    PyArrayObject *out = (PyArrayObject *)PyArray_SimpleNew(cols == 1 ? 1 : 2, shape, NPY_FLOAT);
    if (out == NULL || bon_model_begin_use((PyObject *)self) < 0) {
        Py_XDECREF(out);
        return NULL;
    }
    bon_status status;
    Py_BEGIN_ALLOW_THREADS
    status = bon_model_get(self->model, slot, (size_t)layer, PyArray_DATA(out));
    Py_END_ALLOW_THREADS
    bon_model_end_use((PyObject *)self);
    if (status == BON_OK) return (PyObject *)out;
    Py_DECREF(out);
    return raise_engine_status(status);
}

PyDoc_STRVAR(Model_missing_doc,
"missing($self, /)\n--\n\n"
"(slot, layer) of the first slot that was not set, or None.");

static PyObject *Model_missing(ModelObject *self, PyObject *Py_UNUSED(args))
{
    bon_slot slot;
    size_t layer;
    if (!bon_model_missing(self->model, &slot, &layer)) Py_RETURN_NONE;
    return Py_BuildValue("sn", bon_slot_name(slot), (Py_ssize_t)layer);
}

/* -- adapters -------------------------------------------------------------- */

PyDoc_STRVAR(Model_add_adapter_doc,
"add_adapter($self, slot, rank, scale, /)\n--\n\n"
"Puts a zero adapter of low rank beside a product, in every layer.");

static PyObject *Model_add_adapter(ModelObject *self, PyObject *args)
{
    const char *name;
    Py_ssize_t rank;
    float scale;
    bon_slot slot;
    if (!PyArg_ParseTuple(args, "snf:add_adapter", &name, &rank, &scale)
        || bon_find_slot(name, &slot) < 0)
        return NULL;
    if (bon_model_begin_change((PyObject *)self) < 0) return NULL;
    const bon_status status =
        rank < 1 ? BON_ERR_DOMAIN : bon_model_add_adapter(self->model, slot, (size_t)rank, scale);
    self->adapter_changes++;
    bon_model_end_change((PyObject *)self);
    if (status == BON_ERR_DOMAIN)
        return PyErr_Format(PyExc_ValueError,
                            "need rank >= 1 and a slot of q, k, v, o, gate, up, down without an "
                            "adapter, got %s and rank %zd", name, rank);
    if (status != BON_OK) return raise_engine_status(status);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Model_remove_adapters_doc, "remove_adapters($self, /)\n--\n\nRemoves them all.");

static PyObject *Model_remove_adapters(ModelObject *self, PyObject *Py_UNUSED(args))
{
    if (bon_model_begin_change((PyObject *)self) < 0) return NULL;
    bon_model_remove_adapters(self->model);
    self->adapter_changes++;
    bon_model_end_change((PyObject *)self);
    Py_RETURN_NONE;
}

/* -- routes ---------------------------------------------------------------- */

static bon_matrix *matrix_at(ModelObject *self, Py_ssize_t index)
{
    const char *name;
    bon_matrix *matrix =
        index < 0 ? NULL : bon_model_matrix(self->model, (size_t)index, &name);
    if (matrix == NULL) PyErr_Format(PyExc_IndexError, "the model has no matrix %zd", index);
    return matrix;
}

static int find_route(const char *name, bon_route *route)
{
    for (int r = 0; r < BON_ROUTES; r++) {
        if (strcmp(name, bon_route_name((bon_route)r)) != 0) continue;
        *route = (bon_route)r;
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "no route is named %s", name);
    return -1;
}

static int find_phase(const char *name, bon_phase *phase)
{
    *phase = strcmp(name, "prefill") == 0 ? BON_PREFILL : BON_DECODE;
    if (*phase == BON_PREFILL || strcmp(name, "decode") == 0) return 0;
    PyErr_Format(PyExc_ValueError, "phase must be \"prefill\" or \"decode\", got %s", name);
    return -1;
}

PyDoc_STRVAR(Model_matrices_doc,
"matrices($self, /)\n--\n\n"
"[(name, outputs, inputs), ...] of every packed matrix, in index order.");

static PyObject *Model_matrices(ModelObject *self, PyObject *Py_UNUSED(args))
{
    PyObject *list = PyList_New(0);
    const char *name;
    bon_matrix *matrix;
    for (size_t i = 0; list && (matrix = bon_model_matrix(self->model, i, &name)); i++) {
        PyObject *item = Py_BuildValue("snn", name, (Py_ssize_t)bon_matrix_outputs(matrix),
                                       (Py_ssize_t)bon_matrix_inputs(matrix));
        if (item == NULL || PyList_Append(list, item) < 0) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

PyDoc_STRVAR(Model_set_route_doc,
"set_route($self, index, phase, route, /)\n--\n\n"
"Chooses who computes a matrix's products in a phase.");

static PyObject *Model_set_route(ModelObject *self, PyObject *args)
{
    Py_ssize_t index;
    const char *phase_name, *route_name;
    bon_phase phase;
    bon_route route;
    bon_matrix *matrix;
    if (!PyArg_ParseTuple(args, "nss:set_route", &index, &phase_name, &route_name)
        || !(matrix = matrix_at(self, index)) || find_phase(phase_name, &phase) < 0
        || find_route(route_name, &route) < 0)
        return NULL;
    if (bon_model_begin_change((PyObject *)self) < 0) return NULL;
    const bon_status status = bon_matrix_set_route(matrix, phase, route);
    bon_model_end_change((PyObject *)self);
    if (status != BON_OK)
        return PyErr_Format(PyExc_ValueError, "route %s cannot serve this matrix here",
                            route_name);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Model_measure_doc,
"measure($self, index, route, rows, repeats, /)\n--\n\n"
"Seconds of one product by a route: the best of `repeats`; infinite where it cannot serve it.");

static PyObject *Model_measure(ModelObject *self, PyObject *args)
{
    Py_ssize_t index, rows;
    int repeats;
    const char *route_name;
    bon_route route;
    bon_matrix *matrix;
    double seconds = 0.0;
    if (!PyArg_ParseTuple(args, "nsni:measure", &index, &route_name, &rows, &repeats)
        || !(matrix = matrix_at(self, index)) || find_route(route_name, &route) < 0)
        return NULL;
    if (rows < 1 || repeats < 1)
        return PyErr_Format(PyExc_ValueError, "need rows >= 1 and repeats >= 1, got %zd and %d",
                            rows, repeats);
    bon_status status;
    const int threads = bon_model_threads(self->model);
    if (bon_model_begin_use((PyObject *)self) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = bon_matrix_measure(matrix, route, (size_t)rows, repeats, threads, &seconds);
    Py_END_ALLOW_THREADS
    bon_model_end_use((PyObject *)self);
    return status == BON_OK ? PyFloat_FromDouble(seconds) : raise_engine_status(status);
}

/* -- logits, logp and scores ----------------------------------------------- */

/* True where the model has the head that a call needs; else ValueError. */
static bool has_head(ModelObject *self, bool of_scores)
{
    if ((bon_model_arch(self->model)->labels > 0) == of_scores) return true;
    PyErr_SetString(PyExc_ValueError, of_scores ? "scores need a model with a score head"
                                                : "logits need a model without a score head");
    return false;
}

/* A prompt and its completions, one behind the other; borrowed. */
typedef struct {
    const int32_t *prompt, *completions;
    const size_t *lengths;
    size_t prompt_len, total, count;
} texts;

/* 0, or -1 with an exception set. */
static int get_texts(PyObject *const objects[3], texts *t)
{
    PyArrayObject *prompt = as_array(objects[0], NPY_INT32, 1, "prompt");
    PyArrayObject *tokens = prompt ? as_array(objects[1], NPY_INT32, 1, "completions") : NULL;
    PyArrayObject *lengths = tokens ? as_array(objects[2], NPY_UINTP, 1, "lengths") : NULL;
    if (lengths == NULL) return -1;
    *t = (texts){PyArray_DATA(prompt), PyArray_DATA(tokens), PyArray_DATA(lengths),
                 (size_t)PyArray_DIM(prompt, 0), (size_t)PyArray_DIM(tokens, 0),
                 (size_t)PyArray_DIM(lengths, 0)};
    size_t left = t->total, i = 0;
    for (; i < t->count && t->lengths[i] <= left; i++) left -= t->lengths[i];
    if (i == t->count && left == 0) return 0;
    PyErr_Format(PyExc_ValueError, "lengths must add up to the %zu tokens of completions",
                 t->total);
    return -1;
}

/* Sets the exception of a call with texts and returns NULL. `needs`: what the call
 * needs beside texts of at most `most` tokens. */
static PyObject *raise_text_status(ModelObject *self, bon_status status, const texts *t,
                                   size_t bad, const char *needs, size_t most)
{
    if (status != BON_ERR_DOMAIN) return raise_engine_status(status);
    if (bad == SIZE_MAX)
        return PyErr_Format(PyExc_ValueError,
                            "need %sa prompt of at least one token and prompt + completion of at "
                            "most %zu tokens, got a prompt of %zu",
                            needs, most, t->prompt_len);
    return PyErr_Format(PyExc_ValueError,
                        "token ids must lie in [0, %zu), but token %zu of prompt and "
                        "completions does not",
                        bon_model_arch(self->model)->vocab, bad);
}

PyDoc_STRVAR(Model_logits_doc,
"logits($self, tokens, /)\n--\n\n"
"int32 [T] -> float32 [T, vocab].");

static PyObject *Model_logits(ModelObject *self, PyObject *arg)
{
    PyArrayObject *tokens = as_array(arg, NPY_INT32, 1, "tokens");
    if (tokens == NULL || !has_head(self, false)) return NULL;
    const bon_arch *arch = bon_model_arch(self->model);
    const size_t len = (size_t)PyArray_DIM(tokens, 0);
    npy_intp shape[2] = {(npy_intp)len, (npy_intp)arch->vocab};
    if (len < 1 || len > arch->max_positions)
        return PyErr_Format(PyExc_ValueError, "need 1 to %zu tokens (the model's context), got "
                                              "%zu", arch->max_positions, len);
    PyArrayObject *out = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_FLOAT);
    if (out == NULL) return NULL;
    size_t bad;
    py_poll poll;
    if (py_poll_begin(&poll, (PyObject *)self) < 0) {
        Py_DECREF(out);
        return NULL;
    }
    const bon_status status = bon_score_logits(self->model, PyArray_DATA(tokens), len,
                                               &poll.poll, PyArray_DATA(out), &bad);
    py_poll_end(&poll);
    if (status == BON_OK) return (PyObject *)out;
    Py_DECREF(out);
    if (status == BON_ERR_DOMAIN)
        return PyErr_Format(PyExc_ValueError,
                            "token ids must lie in [0, %zu), but tokens[%zu] does not",
                            arch->vocab, bad);
    return raise_engine_status(status);
}

PyDoc_STRVAR(Model_logp_doc,
"logp($self, prompt, completions, lengths, temperature, /)\n--\n\n"
"Log-probabilities of completions (int32, one behind the other; lengths uintp)\n"
"of one prompt (int32). Returns float32, as completions.");

static PyObject *Model_logp(ModelObject *self, PyObject *args)
{
    PyObject *objects[3];
    float temperature;
    texts t;
    if (!PyArg_ParseTuple(args, "OOOf:logp", &objects[0], &objects[1], &objects[2],
                          &temperature)
        || get_texts(objects, &t) < 0 || !has_head(self, false))
        return NULL;
    npy_intp shape = (npy_intp)t.total;
    PyArrayObject *out = (PyArrayObject *)PyArray_SimpleNew(1, &shape, NPY_FLOAT);
    if (out == NULL) return NULL;
    size_t bad;
    py_poll poll;
    if (py_poll_begin(&poll, (PyObject *)self) < 0) {
        Py_DECREF(out);
        return NULL;
    }
    const bon_status status =
        bon_score_logp(self->model, t.prompt, t.prompt_len, t.completions, t.lengths, t.count,
                       temperature, &poll.poll, PyArray_DATA(out), &bad);
    py_poll_end(&poll);
    if (status == BON_OK) return (PyObject *)out;
    Py_DECREF(out);
    /* the last token is predicted, not read: it may stand behind the context */
    return raise_text_status(self, status, &t, bad, "a finite temperature > 0, ",
                             bon_model_arch(self->model)->max_positions + 1);
}

PyDoc_STRVAR(Model_score_doc,
"score($self, prompt, completions, lengths, /)\n--\n\n"
"Scores behind the last token of completions (int32, one behind the other;\n"
"lengths uintp) of one prompt (int32). Returns float32 [count, labels].");

static PyObject *Model_score(ModelObject *self, PyObject *args)
{
    PyObject *objects[3];
    texts t;
    if (!PyArg_ParseTuple(args, "OOO:score", &objects[0], &objects[1], &objects[2])
        || get_texts(objects, &t) < 0 || !has_head(self, true))
        return NULL;
    const bon_arch *arch = bon_model_arch(self->model);
    npy_intp shape[2] = {(npy_intp)t.count, (npy_intp)arch->labels};
    PyArrayObject *out = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_FLOAT);
    if (out == NULL) return NULL;
    size_t bad;
    py_poll poll;
    if (py_poll_begin(&poll, (PyObject *)self) < 0) {
        Py_DECREF(out);
        return NULL;
    }
    const bon_status status =
        bon_score_values(self->model, t.prompt, t.prompt_len, t.completions, t.lengths, t.count,
                         &poll.poll, PyArray_DATA(out), &bad);
    py_poll_end(&poll);
    if (status == BON_OK) return (PyObject *)out;
    Py_DECREF(out);
    return raise_text_status(self, status, &t, bad, "", arch->max_positions);
}

/* -- sizes ----------------------------------------------------------------- */

PyDoc_STRVAR(Model_scratch_bytes_doc,
"scratch_bytes($self, slots, context, /)\n--\n\n"
"Bytes that a session of so many slots needs beside its cache, for samples that\n"
"see up to `context` tokens.");

static PyObject *Model_scratch_bytes(ModelObject *self, PyObject *args)
{
    Py_ssize_t slots, context;
    if (!PyArg_ParseTuple(args, "nn:scratch_bytes", &slots, &context)) return NULL;
    return PyLong_FromSize_t(
        bon_session_scratch_bytes(self->model, (size_t)slots, (size_t)context));
}

PyDoc_STRVAR(Model_score_bytes_doc,
"score_bytes($self, prompt_len, lengths, /)\n--\n\n"
"Bytes of cache and scratch that logits, logp and score need for a prompt of\n"
"prompt_len tokens and completions of these lengths (uintp).");

static PyObject *Model_score_bytes(ModelObject *self, PyObject *args)
{
    Py_ssize_t prompt_len;
    PyObject *object;
    if (!PyArg_ParseTuple(args, "nO:score_bytes", &prompt_len, &object)) return NULL;
    PyArrayObject *lengths = as_array(object, NPY_UINTP, 1, "lengths");
    if (lengths == NULL) return NULL;
    return PyLong_FromSize_t(bon_score_bytes(self->model, (size_t)prompt_len,
                                             PyArray_DATA(lengths),
                                             (size_t)PyArray_DIM(lengths, 0)));
}

static PyObject *Model_bytes(ModelObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(bon_model_bytes(self->model));
}

static PyObject *Model_fine_rows(ModelObject *self, void *Py_UNUSED(closure))
{
    size_t rows = 0;
    const char *name;
    bon_matrix *matrix;
    for (size_t i = 0; (matrix = bon_model_matrix(self->model, i, &name)); i++)
        rows += bon_matrix_fine_rows(matrix);
    return PyLong_FromSize_t(rows);
}

static PyObject *Model_block_bytes(ModelObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(
        bon_model_block_bytes(self->model, bon_model_arch(self->model)->layers));
}

static PyMethodDef Model_methods[] = {
    {"set", (PyCFunction)Model_set, METH_VARARGS, Model_set_doc},
    {"get", (PyCFunction)Model_get, METH_VARARGS, Model_get_doc},
    {"add_adapter", (PyCFunction)Model_add_adapter, METH_VARARGS, Model_add_adapter_doc},
    {"remove_adapters", (PyCFunction)Model_remove_adapters, METH_NOARGS,
     Model_remove_adapters_doc},
    {"missing", (PyCFunction)Model_missing, METH_NOARGS, Model_missing_doc},
    {"matrices", (PyCFunction)Model_matrices, METH_NOARGS, Model_matrices_doc},
    {"set_route", (PyCFunction)Model_set_route, METH_VARARGS, Model_set_route_doc},
    {"measure", (PyCFunction)Model_measure, METH_VARARGS, Model_measure_doc},
    {"logits", (PyCFunction)Model_logits, METH_O, Model_logits_doc},
    {"logp", (PyCFunction)Model_logp, METH_VARARGS, Model_logp_doc},
    {"score", (PyCFunction)Model_score, METH_VARARGS, Model_score_doc},
    {"score_bytes", (PyCFunction)Model_score_bytes, METH_VARARGS, Model_score_bytes_doc},
    {"scratch_bytes", (PyCFunction)Model_scratch_bytes, METH_VARARGS, Model_scratch_bytes_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Model_getset[] = {
    {"bytes", (getter)Model_bytes, NULL, "Bytes of packed weights.", NULL},
    {"fine_rows", (getter)Model_fine_rows, NULL,
     "Outputs of int8 matrices that have a second digit; see csrc/int8.h.", NULL},
    {"block_bytes", (getter)Model_block_bytes, NULL, "Bytes of a cache block.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Model_slots[] = {
    {Py_tp_doc, "Model(arch, dtype, threads)\n--\n\nA transformer; see csrc/model.h."},
    {Py_tp_new, Model_new},
    {Py_tp_dealloc, Model_dealloc},
    {Py_tp_methods, Model_methods},
    {Py_tp_getset, Model_getset},
    {0, NULL},
};

static PyType_Spec Model_spec = {
    .name = "bonaware._engine.Model",
    .basicsize = sizeof(ModelObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Model_slots,
};

int bon_add_model_type(PyObject *module)
{
    model_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Model_spec, NULL);
    return model_type ? PyModule_AddObjectRef(module, "Model", (PyObject *)model_type) : -1;
}
