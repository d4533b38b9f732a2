/* py_learner.c - the type bonaware._engine.Learner: gradients and steps of a model. */
#include "py_engine.h"

#include <float.h>

#include "learner.h"

typedef struct {
    PyObject_HEAD
    PyObject *model;     /* the Model object, kept alive */
    PyObject *reference; /* another, or NULL */
    bon_learner *learner;
    bool busy;       /* a call runs without the GIL */
    bool adapters;   /* are what it trains: they must be those of when it was made */
    unsigned long adapter_changes;
} LearnerObject;

static PyObject *Learner_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *object;
    Py_ssize_t memory;
    int adapters = 0;
    static char *names[] = {"model", "memory", "adapters", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "On|p:Learner", names, &object, &memory,
                                     &adapters))
        return NULL;
    bon_model *model = bon_model_of(object);
    if (model == NULL) return NULL;
    if (memory < 1) return PyErr_Format(PyExc_ValueError, "need memory >= 1, got %zd", memory);
    LearnerObject *self = (LearnerObject *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    if (bon_model_begin_use(object) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    bon_status status;
    Py_BEGIN_ALLOW_THREADS
    status = bon_learner_create(model, adapters ? BON_TRAIN_ADAPTERS : BON_TRAIN_ALL,
                                (size_t)memory, &self->learner);
    Py_END_ALLOW_THREADS
    bon_model_end_use(object);
    if (status == BON_ERR_DOMAIN) {
        Py_DECREF(self);
        return PyErr_Format(PyExc_ValueError, "a model in int8 cannot learn: load it in float32 "
                                              "or bfloat16");
    }
    if (status != BON_OK) {
        Py_DECREF(self);
        return raise_engine_status(status);
    }
    self->model = Py_NewRef(object);
    self->adapters = adapters;
    self->adapter_changes = bon_model_adapter_changes(object);
    return (PyObject *)self;
}

static void Learner_dealloc(LearnerObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    bon_learner_destroy(self->learner);
    Py_XDECREF(self->model);
    Py_XDECREF(self->reference);
    type->tp_free(self);
    Py_DECREF(type);
}

/* 0, or -1 with RuntimeError set while another thread is inside, or once the adapters
 * that it trains are gone. */
static int enter(LearnerObject *self)
{
    if (self->adapters && self->adapter_changes != bon_model_adapter_changes(self->model)) {
        PyErr_SetString(PyExc_RuntimeError, "the model has got other adapters since: those that "
                                            "this learner trained are gone");
        return -1;
    }
    if (!self->busy) {
        self->busy = true;
        return 0;
    }
    PyErr_SetString(PyExc_RuntimeError, "the learner is in use by another thread");
    return -1;
}

/* Around what changes the model's weights: 0, or -1 with RuntimeError set. */
static int enter_change(LearnerObject *self)
{
    if (enter(self) < 0) return -1;
    if (bon_model_begin_change(self->model) == 0) return 0;
    self->busy = false;
    return -1;
}

static void leave_change(LearnerObject *self)
{
    bon_model_end_change(self->model);
    self->busy = false;
}

/* The same around what reads the weights of the model, or of the reference too. */
static int enter_use(LearnerObject *self, bool reference)
{
    if (enter(self) < 0) return -1;
    if (bon_model_begin_use(self->model) == 0) {
        if (!reference || bon_model_begin_use(self->reference) == 0) return 0;
        bon_model_end_use(self->model);
    }
    self->busy = false;
    return -1;
}

static void leave_use(LearnerObject *self, bool reference)
{
    if (reference) bon_model_end_use(self->reference);
    bon_model_end_use(self->model);
    self->busy = false;
}

/* -- batches --------------------------------------------------------------- */

/* One argument of accumulate: an array whose length is `length`. */
static const void *get_part(PyObject *object, int typenum, size_t length, const char *name)
{
    PyArrayObject *array = as_array(object, typenum, 1, name);
    if (array == NULL) return NULL;
    if ((size_t)PyArray_DIM(array, 0) == length) return PyArray_DATA(array);
    PyErr_Format(PyExc_ValueError, "%s must have length %zu, got %zd", name, length,
                 PyArray_DIM(array, 0));
    return NULL;
}

static size_t length_of(PyObject *object)
{
    return PyArray_Check(object) && PyArray_NDIM((PyArrayObject *)object) == 1
               ? (size_t)PyArray_DIM((PyArrayObject *)object, 0) : 0;
}

/* The trees of a batch from their sizes: NULL with an exception set, or to be freed. */
static bon_tree *read_trees(PyObject *prompts, PyObject *counts, PyObject *lengths,
                            size_t *n_trees, size_t *rows)
{
    *n_trees = length_of(prompts);
    const size_t *prompt_rows = get_part(prompts, NPY_UINTP, *n_trees, "prompt_rows");
    const size_t *branches = get_part(counts, NPY_UINTP, *n_trees, "branches");
    const size_t given = length_of(lengths);
    const size_t *branch_rows = get_part(lengths, NPY_UINTP, given, "branch_rows");
    if (!prompt_rows || !branches || !branch_rows) return NULL;
    bon_tree *trees = PyMem_New(bon_tree, *n_trees + 1);
    if (trees == NULL) return (bon_tree *)PyErr_NoMemory();
    size_t used = 0;
    bool sound = true;
    *rows = 0;
    for (size_t t = 0; t < *n_trees && sound; t++) {
        trees[t] = (bon_tree){*rows, prompt_rows[t], branches[t], branch_rows + used};
        sound = branches[t] <= given - used && !__builtin_add_overflow(*rows, prompt_rows[t], rows);
        for (size_t i = 0; i < branches[t] && sound; i++)
            sound = !__builtin_add_overflow(*rows, branch_rows[used++], rows);
    }
    if (sound && used == given) return trees;
    PyMem_Free(trees);
    PyErr_SetString(PyExc_ValueError, "branches must count the entries of branch_rows");
    return NULL;
}

PyDoc_STRVAR(Learner_accumulate_doc,
"accumulate($self, tokens, prompt_rows, branches, branch_rows, target_row, target_token,\n"
"           target_weight, temperature, target_probability=None, target_kl_weight=None, /)\n"
"--\n\n"
"Adds a batch's gradient. Two float32 arrays [targets]: log-probabilities or scores, and\n"
"divergences from the reference or None.");

static PyObject *Learner_accumulate(LearnerObject *self, PyObject *args)
{
    PyObject *tokens, *prompts, *counts, *lengths, *rows_of, *target_tokens, *weights;
    PyObject *probabilities = Py_None, *kl_weights = Py_None;
    float temperature;
    bon_batch batch = {0};
    size_t rows = 0;
    if (!PyArg_ParseTuple(args, "OOOOOOOf|OO:accumulate", &tokens, &prompts, &counts, &lengths,
                          &rows_of, &target_tokens, &weights, &temperature, &probabilities,
                          &kl_weights))
        return NULL;
    if (kl_weights != Py_None && self->reference == NULL)
        return PyErr_Format(PyExc_ValueError, "target_kl_weight needs a reference");
    if (!(temperature > 0.0f && temperature <= 1e30f))
        return PyErr_Format(PyExc_ValueError, "need a finite temperature > 0");
    bon_tree *trees = read_trees(prompts, counts, lengths, &batch.n_trees, &rows);
    if (trees == NULL) return NULL;
    PyArrayObject *values = NULL, *divergences = NULL;
    PyObject *result = NULL;
    batch.trees = trees;
    batch.temperature = temperature;
    batch.targets = length_of(rows_of);
    if (!(batch.tokens = get_part(tokens, NPY_INT32, rows, "tokens"))
        || !(batch.target_row = get_part(rows_of, NPY_UINTP, batch.targets, "target_row"))
        || !(batch.target_token =
                 get_part(target_tokens, NPY_INT32, batch.targets, "target_token"))
        || !(batch.target_weight =
                 get_part(weights, NPY_FLOAT, batch.targets, "target_weight"))
        || (probabilities != Py_None
            && !(batch.target_probability =
                     get_part(probabilities, NPY_FLOAT, batch.targets, "target_probability")))
        || (kl_weights != Py_None
            && !(batch.target_kl_weight =
                     get_part(kl_weights, NPY_FLOAT, batch.targets, "target_kl_weight"))))
        goto done;
    size_t index;
    long found;
    const char *fault = bon_batch_fault(bon_model_of(self->model), &batch, &index, &found);
    if (fault) {
        if (found == BON_NO_NUMBER)
            PyErr_Format(PyExc_ValueError, "%s: number %zu of the batch is not", fault, index);
        else
            PyErr_Format(PyExc_ValueError, "%s: number %zu of the batch has %ld", fault, index,
                         found);
        goto done;
    }
    const npy_intp shape = (npy_intp)batch.targets;
    values = (PyArrayObject *)PyArray_SimpleNew(1, &shape, NPY_FLOAT);
    if (batch.target_kl_weight)
        divergences = (PyArrayObject *)PyArray_SimpleNew(1, &shape, NPY_FLOAT);
    if (values == NULL || (batch.target_kl_weight && divergences == NULL)
        || enter_use(self, divergences != NULL) < 0)
        goto done;
    if (divergences) batch.target_kl = PyArray_DATA(divergences);
    py_poll poll;
    if (py_poll_begin(&poll, self->model) < 0) {
        leave_use(self, divergences != NULL);
        goto done;
    }
    const bon_status status =
        bon_learner_accumulate(self->learner, &batch, &poll.poll, PyArray_DATA(values));
    if (status != BON_OK) bon_learner_zero(self->learner);
    py_poll_end(&poll);
    leave_use(self, divergences != NULL);
    if (status == BON_OK)
        result = PyTuple_Pack(2, values, divergences ? (PyObject *)divergences : Py_None);
    else if (status == BON_ERR_FULL)
        PyErr_Format(PyExc_MemoryError, "one prompt with its completions does not fit into the "
                                        "memory for training: allow more, or split them");
    else
        raise_engine_status(status);
done:
    Py_XDECREF(values);
    Py_XDECREF(divergences);
    PyMem_Free(trees);
    return result;
}

PyDoc_STRVAR(Learner_set_reference_doc,
"set_reference($self, model, /)\n--\n\n"
"The model that divergences are taken from: of the same vocabulary.");

static PyObject *Learner_set_reference(LearnerObject *self, PyObject *object)
{
    bon_model *reference = bon_model_of(object);
    if (reference == NULL || enter(self) < 0) return NULL;
    const bon_status status = bon_learner_set_reference(self->learner, reference);
    self->busy = false;
    if (status == BON_ERR_DOMAIN)
        return PyErr_Format(PyExc_ValueError, "a reference predicts tokens of the same vocabulary "
                                              "and has no smaller context");
    if (status != BON_OK) return raise_engine_status(status);
    Py_XSETREF(self->reference, Py_NewRef(object));
    Py_RETURN_NONE;
}

/* -- steps ----------------------------------------------------------------- */

PyDoc_STRVAR(Learner_zero_doc, "zero($self, /)\n--\n\nForgets the gradient.");

static PyObject *Learner_zero(LearnerObject *self, PyObject *Py_UNUSED(args))
{
    if (enter(self) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    bon_learner_zero(self->learner);
    Py_END_ALLOW_THREADS
    self->busy = false;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Learner_norm_doc, "norm($self, /)\n--\n\nEuclidean norm of the gradient.");

static PyObject *Learner_norm(LearnerObject *self, PyObject *Py_UNUSED(args))
{
    double norm;
    if (enter(self) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    norm = bon_learner_norm(self->learner);
    Py_END_ALLOW_THREADS
    self->busy = false;
    return PyFloat_FromDouble(norm);
}

PyDoc_STRVAR(Learner_step_doc,
"step($self, lr, beta1, beta2, eps, weight_decay, grad_scale, /)\n--\n\n"
"AdamW with grad_scale * gradient; then the gradient is zero.");

static PyObject *Learner_step(LearnerObject *self, PyObject *args)
{
    bon_adamw o;
    double scale;
    if (!PyArg_ParseTuple(args, "dddddd:step", &o.lr, &o.beta1, &o.beta2, &o.eps,
                          &o.weight_decay, &scale))
        return NULL;
    if (!(o.lr >= 0 && o.lr <= FLT_MAX && o.beta1 >= 0 && o.beta1 < 1 && o.beta2 >= 0
          && o.beta2 < 1 && o.eps >= FLT_MIN && o.eps <= FLT_MAX && o.weight_decay >= 0
          && o.weight_decay <= FLT_MAX))
        return PyErr_Format(PyExc_ValueError, "need a finite lr >= 0, 0 <= beta1, beta2 < 1, a "
                                              "finite eps > 0, 1.2e-38 at least, and a finite "
                                              "weight_decay >= 0");
    bon_status status;
    if (enter_change(self) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = bon_learner_step(self->learner, &o, scale);
    Py_END_ALLOW_THREADS
    leave_change(self);
    if (status != BON_OK) return raise_engine_status(status);
    Py_RETURN_NONE;
}

/* -- tensors --------------------------------------------------------------- */

static int find_kind(const char *name, bon_kind *kind)
{
    static const char *const names[] = {"weight", "gradient", "moment_1", "moment_2"};
    for (int k = BON_WEIGHT; k <= BON_MOMENT_2; k++) {
        if (strcmp(name, names[k]) != 0) continue;
        *kind = (bon_kind)k;
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "a kind is weight, gradient, moment_1 or moment_2, got %s",
                 name);
    return -1;
}

/* Shape of a slot that exists: the number of its dimensions, or -1. */
static int find_shape(LearnerObject *self, bon_slot slot, Py_ssize_t layer, npy_intp *shape)
{
    const bon_model *model = bon_model_of(self->model);
    const size_t layers = bon_slot_of_layer(slot) ? bon_model_arch(model)->layers : 1;
    size_t rows, cols;
    if (!bon_model_has(model, slot) || layer < 0 || (size_t)layer >= layers) {
        PyErr_Format(PyExc_ValueError, "this architecture has no slot %s in layer %zd",
                     bon_slot_name(slot), layer);
        return -1;
    }
    bon_model_shape(model, slot, &rows, &cols);
    shape[0] = (npy_intp)rows;
    shape[1] = (npy_intp)cols;
    return cols == 1 ? 1 : 2;
}

PyDoc_STRVAR(Learner_get_doc,
"get($self, kind, slot, layer, /)\n--\n\n"
"A copy of a slot's weight, gradient, moment_1 or moment_2 as float32.");

static PyObject *Learner_get(LearnerObject *self, PyObject *args)
{
    const char *kind_name, *slot_name;
    Py_ssize_t layer;
    bon_kind kind;
    bon_slot slot;
    npy_intp shape[2];
    int ndim;
    if (!PyArg_ParseTuple(args, "ssn:get", &kind_name, &slot_name, &layer)
        || find_kind(kind_name, &kind) < 0 || bon_find_slot(slot_name, &slot) < 0
        || (ndim = find_shape(self, slot, layer, shape)) < 0)
        return NULL;
    PyArrayObject *out = (PyArrayObject *)PyArray_SimpleNew(ndim, shape, NPY_FLOAT);
    if (out == NULL || enter_use(self, false) < 0) {
        Py_XDECREF(out);
        return NULL;
    }
    bon_status status;
    Py_BEGIN_ALLOW_THREADS
    status = bon_learner_get(self->learner, kind, slot, (size_t)layer, PyArray_DATA(out));
    Py_END_ALLOW_THREADS
    leave_use(self, false);
    if (status == BON_OK) return (PyObject *)out;
    Py_DECREF(out);
    return raise_engine_status(status);
}

PyDoc_STRVAR(Learner_set_doc,
"set($self, kind, slot, layer, array, /)\n--\n\n"
"Puts a slot's weight, gradient, moment_1 or moment_2 in place.");

static PyObject *Learner_set(LearnerObject *self, PyObject *args)
{
    const char *kind_name, *slot_name;
    Py_ssize_t layer;
    PyObject *object;
    bon_kind kind;
    bon_slot slot;
    npy_intp shape[2];
    int ndim;
    if (!PyArg_ParseTuple(args, "ssnO:set", &kind_name, &slot_name, &layer, &object)
        || find_kind(kind_name, &kind) < 0 || bon_find_slot(slot_name, &slot) < 0
        || (ndim = find_shape(self, slot, layer, shape)) < 0)
        return NULL;
    PyArrayObject *array = as_array(object, NPY_FLOAT, ndim, slot_name);
    if (array == NULL) return NULL;
    if (!PyArray_CompareLists(PyArray_DIMS(array), shape, ndim))
        return PyErr_Format(PyExc_ValueError, "slot %s must have shape [%zd, %zd]", slot_name,
                            shape[0], shape[1]);
    if (enter_change(self) < 0) return NULL;
    bon_status status;
    Py_BEGIN_ALLOW_THREADS
    status = bon_learner_set(self->learner, kind, slot, (size_t)layer, PyArray_DATA(array));
    Py_END_ALLOW_THREADS
    leave_change(self);
    if (status != BON_OK) return raise_engine_status(status);
    Py_RETURN_NONE;
}

static PyObject *get_steps(LearnerObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(bon_learner_steps(self->learner));
}

static int set_steps(LearnerObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    const unsigned long long steps = value ? PyLong_AsUnsignedLongLong(value) : 0;
    if (value == NULL) PyErr_SetString(PyExc_TypeError, "steps cannot be deleted");
    if (PyErr_Occurred()) return -1;
    bon_learner_set_steps(self->learner, steps);
    return 0;
}

/* -- type ------------------------------------------------------------------ */

static PyMethodDef methods[] = {
    {"accumulate", (PyCFunction)Learner_accumulate, METH_VARARGS, Learner_accumulate_doc},
    {"set_reference", (PyCFunction)Learner_set_reference, METH_O, Learner_set_reference_doc},
    {"zero", (PyCFunction)Learner_zero, METH_NOARGS, Learner_zero_doc},
    {"norm", (PyCFunction)Learner_norm, METH_NOARGS, Learner_norm_doc},
    {"step", (PyCFunction)Learner_step, METH_VARARGS, Learner_step_doc},
    {"get", (PyCFunction)Learner_get, METH_VARARGS, Learner_get_doc},
    {"set", (PyCFunction)Learner_set, METH_VARARGS, Learner_set_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef properties[] = {
    {"steps", (getter)get_steps, (setter)set_steps, "steps that were made", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, Learner_new},
    {Py_tp_dealloc, Learner_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {Py_tp_doc, "Learner(model, memory, adapters=False)\n--\n\nGradients of a Model, or of its adapters, "
                "and AdamW."},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "bonaware._engine.Learner",
    .basicsize = sizeof(LearnerObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

int bon_add_learner_type(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    const int status = type ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_XDECREF(type);
    return status;
}
