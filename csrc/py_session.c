/* py_session.c - the type bonaware._engine.Session: samples in slots.
 *
 * A session is used by one thread at a time: a second one that comes while a
 * call runs without the GIL gets a RuntimeError instead of a corrupted session.
 */
#include "py_engine.h"

typedef struct {
    PyObject_HEAD
    PyObject *model; /* the Model object, kept alive */
    bon_session *session;
    bool busy;
} SessionObject;

static const char *const state_names[] = {"waiting", "live", "held", "eos", "stop",
                                          "length", "pruned", "aborted"};

static bon_session *use(SessionObject *self)
{
    if (!self->busy) return self->session;
    PyErr_SetString(PyExc_RuntimeError, "session is in use by another thread");
    return NULL;
}

/* -- life ------------------------------------------------------------------ */

static int read_limits(PyObject *end_tokens, PyObject *watch, const bon_arch *arch,
                       bon_session_limits *limits)
{
    PyArrayObject *ends = as_array(end_tokens, NPY_INT32, 1, "end_tokens");
    if (ends == NULL) return -1;
    limits->end_tokens = PyArray_DATA(ends);
    limits->n_end = (size_t)PyArray_DIM(ends, 0);
    if (watch == Py_None) return 0;
    PyArrayObject *marks = as_array(watch, NPY_UINT8, 1, "watch");
    if (marks == NULL) return -1;
    if ((size_t)PyArray_DIM(marks, 0) != arch->vocab) {
        PyErr_Format(PyExc_ValueError, "watch must have one mark for each of the %zu tokens, "
                                       "got %zd", arch->vocab, PyArray_DIM(marks, 0));
        return -1;
    }
    limits->watch = PyArray_DATA(marks);
    return 0;
}

static PyObject *Session_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *model_object, *end_tokens, *watch;
    Py_ssize_t slots, blocks, ask_blocks = 0;
    int hold_ends = 0;
    static char *names[] = {"model", "slots", "cache_blocks", "end_tokens", "watch",
                            "hold_ends", "ask_blocks", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OnnOO|pn:Session", names, &model_object,
                                     &slots, &blocks, &end_tokens, &watch, &hold_ends,
                                     &ask_blocks))
        return NULL;
    bon_model *model = bon_model_of(model_object);
    if (model == NULL) return NULL;
    bon_session_limits limits = {0};
    if (read_limits(end_tokens, watch, bon_model_arch(model), &limits) < 0) return NULL;
    bon_slot slot;
    size_t layer;
    if (bon_model_missing(model, &slot, &layer))
        return PyErr_Format(PyExc_ValueError, "the model has no weights in slot %s of layer %zu",
                            bon_slot_name(slot), layer);
    if (slots < 1 || blocks < 1)
        return PyErr_Format(PyExc_ValueError, "need slots >= 1 and cache_blocks >= 1, got %zd "
                                              "and %zd", slots, blocks);
    if (ask_blocks < 0 || ask_blocks >= blocks)
        return PyErr_Format(PyExc_ValueError, "need 0 <= ask_blocks < cache_blocks = %zd, got %zd",
                            blocks, ask_blocks);
    limits.slots = (size_t)slots;
    limits.cache_blocks = (size_t)blocks;
    limits.hold_ends = hold_ends;
    limits.ask_blocks = (size_t)ask_blocks;
    SessionObject *self = (SessionObject *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    self->model = Py_NewRef(model_object);
    const bon_status status = bon_session_create(model, &limits, &self->session);
    if (status == BON_OK) return (PyObject *)self;
    Py_DECREF(self);
    return raise_engine_status(status);
}

static void Session_dealloc(SessionObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    bon_session_destroy(self->session);
    Py_XDECREF(self->model);
    type->tp_free(self);
    Py_DECREF(type);
}

/* -- prompts and samples --------------------------------------------------- */

PyDoc_STRVAR(Session_add_prompt_doc,
"add_prompt($self, tokens, /)\n--\n\n"
"Adds a prompt (int32 [len]); returns its number.");

static PyObject *Session_add_prompt(SessionObject *self, PyObject *arg)
{
    bon_session *session = use(self);
    PyArrayObject *tokens = session ? as_array(arg, NPY_INT32, 1, "tokens") : NULL;
    if (tokens == NULL) return NULL;
    const bon_arch *arch = bon_model_arch(bon_model_of(self->model));
    const size_t len = (size_t)PyArray_DIM(tokens, 0);
    size_t prompt, bad;
    const bon_status status =
        bon_session_add_prompt(session, PyArray_DATA(tokens), len, &prompt, &bad);
    if (status == BON_OK) return PyLong_FromSize_t(prompt);
    if (status != BON_ERR_DOMAIN) return raise_engine_status(status);
    if (len < 1 || len > arch->max_positions)
        return PyErr_Format(PyExc_ValueError, "a prompt needs 1 to %zu tokens (the model's "
                                              "context), got %zu", arch->max_positions, len);
    return PyErr_Format(PyExc_ValueError, "token ids must lie in [0, %zu), but token %zu of the "
                                          "prompt is %d",
                        arch->vocab, bad, ((const int32_t *)PyArray_DATA(tokens))[bad]);
}

PyDoc_STRVAR(Session_add_samples_doc,
"add_samples($self, prompt, indices, temperatures, top_k, top_p, min_p,\n"
"            max_new_tokens, seed, repeat, hold_at=0, /)\n--\n\n"
"Adds one sample per index (uint64 [m]) at its temperature (float32 [m]); the key\n"
"of its random numbers is (seed, prompt, repeat, index). It is held with hold_at\n"
"tokens (0: never). Returns their numbers.");

static PyObject *Session_add_samples(SessionObject *self, PyObject *args)
{
    Py_ssize_t prompt, max_new_tokens, hold_at = 0;
    PyObject *index_object, *temperature_object;
    unsigned long long seed, repeat;
    bon_sample_settings settings = {0};
    if (!PyArg_ParseTuple(args, "nOOiddnKK|n:add_samples", &prompt, &index_object,
                          &temperature_object, &settings.how.top_k, &settings.how.top_p,
                          &settings.how.min_p, &max_new_tokens, &seed, &repeat, &hold_at))
        return NULL;
    bon_session *session = use(self);
    if (session == NULL) return NULL;
    PyArrayObject *indices = as_array(index_object, NPY_UINT64, 1, "indices");
    PyArrayObject *temperatures =
        indices ? as_array(temperature_object, NPY_FLOAT, 1, "temperatures") : NULL;
    if (temperatures == NULL) return NULL;
    const npy_intp count = PyArray_DIM(indices, 0);
    if (PyArray_DIM(temperatures, 0) != count)
        return PyErr_Format(PyExc_ValueError, "indices and temperatures must have equal length, "
                                              "got %zd and %zd",
                            count, PyArray_DIM(temperatures, 0));
    if (hold_at < 0)
        return PyErr_Format(PyExc_ValueError, "need hold_at >= 0, got %zd", hold_at);
    settings.hold_at = (size_t)hold_at;
    settings.max_new_tokens = max_new_tokens < 0 ? 0 : (size_t)max_new_tokens;
    settings.key.seed = seed;
    settings.key.repeat = repeat;

    PyObject *numbers = PyList_New(count);
    for (npy_intp i = 0; numbers && i < count; i++) {
        settings.key.sample = ((const uint64_t *)PyArray_DATA(indices))[i];
        settings.how.temperature = ((const float *)PyArray_DATA(temperatures))[i];
        size_t sample = 0;
        const bon_status status =
            bon_session_add_sample(session, (size_t)prompt, &settings, &sample);
        PyObject *number = status == BON_OK ? PyLong_FromSize_t(sample) : NULL;
        if (status == BON_ERR_DOMAIN)
            PyErr_Format(PyExc_ValueError,
                         "need a known prompt, temperature >= 0, top_k >= 0, 0 < top_p <= 1, "
                         "0 <= min_p <= 1 and max_new_tokens >= 1");
        else if (status != BON_OK)
            raise_engine_status(status);
        if (number == NULL) Py_CLEAR(numbers);
        else PyList_SET_ITEM(numbers, i, number);
    }
    return numbers;
}

/* -- running --------------------------------------------------------------- */

static PyObject *list_events(bon_session *session)
{
    PyObject *list = PyList_New(0);
    size_t sample;
    while (list && bon_session_next_event(session, &sample)) {
        bon_sample_view view;
        if (bon_session_view(session, sample, &view) != BON_OK) continue;
        PyObject *item = Py_BuildValue("ns", (Py_ssize_t)sample, state_names[view.state]);
        if (item == NULL || PyList_Append(list, item) < 0) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

PyDoc_STRVAR(Session_run_doc,
"run($self, steps, /)\n--\n\n"
"Decodes until something happened, at most `steps` tokens per sample. Returns\n"
"[(sample, state), ...] of samples that ended, were held or drew a watched token; those\n"
"of a run that raised come with the next. Returns at once where nothing is pending.");

static PyObject *Session_run(SessionObject *self, PyObject *arg)
{
    const size_t steps = PyLong_AsSize_t(arg);
    if (PyErr_Occurred()) return NULL;
    bon_session *session = use(self);
    if (session == NULL) return NULL;
    py_poll poll;
    if (py_poll_begin(&poll, self->model) < 0) return NULL;
    self->busy = true;
    const bon_status status = bon_session_run(session, steps, &poll.poll);
    self->busy = false;
    py_poll_end(&poll);
    if (status == BON_ERR_FULL)
        return PyErr_Format(PyExc_MemoryError,
                            "the memory budget has too few cache blocks for even one sample");
    if (status != BON_OK) return raise_engine_status(status);
    if (PyErr_CheckSignals() < 0) return NULL;
    return list_events(session);
}

static int find_state(const char *name, bon_sample_state *state)
{
    for (int s = BON_END_TOKEN; s <= BON_ABORTED; s++) {
        if (strcmp(name, state_names[s]) != 0) continue;
        *state = (bon_sample_state)s;
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "no finish reason is named %s", name);
    return -1;
}

PyDoc_STRVAR(Session_end_doc,
"end($self, sample, reason, /)\n--\n\n"
"Ends a sample that waits, lives or is held: its slot and cache are free at once, or\n"
"when it is forgotten (hold_ends, and the reason is eos, stop or length).");

static PyObject *Session_end(SessionObject *self, PyObject *args)
{
    Py_ssize_t sample;
    const char *reason;
    bon_sample_state state;
    bon_sample_view view;
    bon_session *session = use(self);
    if (!session || !PyArg_ParseTuple(args, "ns:end", &sample, &reason)
        || find_state(reason, &state) < 0)
        return NULL;
    if (bon_session_view(session, (size_t)sample, &view) != BON_OK
        || bon_session_end_sample(session, (size_t)sample, state, view.length) != BON_OK)
        return PyErr_Format(PyExc_ValueError, "sample %zd is not waiting, live or held", sample);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Session_go_on_doc,
"go_on($self, samples, hold_at, /)\n--\n\n"
"Held samples (uintp) live again, to be held next with hold_at tokens (0: never).\n"
"Where one cannot, those before it have gone on.");

static PyObject *raise_go_on_error(bon_session *session, size_t sample, Py_ssize_t hold_at)
{
    bon_sample_view view;
    if (bon_session_view(session, sample, &view) != BON_OK)
        return PyErr_Format(PyExc_IndexError, "the session has no sample %zu", sample);
    if (view.state != BON_HELD)
        return PyErr_Format(PyExc_ValueError, "only held samples can go on, but sample %zu is "
                                              "in the state %s", sample, state_names[view.state]);
    return PyErr_Format(PyExc_ValueError, "hold_at must be 0 or more than the tokens drawn, but "
                                          "sample %zu has %zu and hold_at is %zd",
                        sample, view.length, hold_at);
}

static PyObject *Session_go_on(SessionObject *self, PyObject *args)
{
    PyObject *object;
    Py_ssize_t hold_at;
    bon_session *session = use(self);
    if (!session || !PyArg_ParseTuple(args, "On:go_on", &object, &hold_at)) return NULL;
    if (hold_at < 0)
        return PyErr_Format(PyExc_ValueError, "need hold_at >= 0, got %zd", hold_at);
    PyArrayObject *samples = as_array(object, NPY_UINTP, 1, "samples");
    if (samples == NULL) return NULL;
    for (npy_intp i = 0; i < PyArray_DIM(samples, 0); i++) {
        const size_t sample = ((const size_t *)PyArray_DATA(samples))[i];
        if (bon_session_go_on(session, sample, (size_t)hold_at) != BON_OK)
            return raise_go_on_error(session, sample, hold_at);
    }
    Py_RETURN_NONE;
}

static PyObject *copy_out(int typenum, const void *data, size_t first, size_t length)
{
    npy_intp shape = (npy_intp)(length - first);
    PyObject *array = PyArray_SimpleNew(1, &shape, typenum);
    if (array && length > first) /* int32 and float32 alike are four bytes */
        memcpy(PyArray_DATA((PyArrayObject *)array), (const char *)data + first * 4,
               (length - first) * 4);
    return array;
}

PyDoc_STRVAR(Session_view_doc,
"view($self, sample, /)\n--\n\n"
"(state, tokens int32, logp, sampled_logp, certainty float32) of a sample, copied.");

static PyObject *Session_view(SessionObject *self, PyObject *arg)
{
    const Py_ssize_t sample = PyLong_AsSsize_t(arg);
    bon_session *session = PyErr_Occurred() ? NULL : use(self);
    bon_sample_view view;
    if (session == NULL) return NULL;
    if (bon_session_view(session, (size_t)sample, &view) != BON_OK)
        return PyErr_Format(PyExc_IndexError, "the session has no sample %zd", sample);
    PyObject *tokens = copy_out(NPY_INT32, view.tokens, 0, view.length);
    PyObject *logp = copy_out(NPY_FLOAT, view.logp, 0, view.length);
    PyObject *sampled_logp = copy_out(NPY_FLOAT, view.sampled_logp, 0, view.length);
    PyObject *certainty = copy_out(NPY_FLOAT, view.certainty, 0, view.length);
    PyObject *result = NULL;
    if (tokens && logp && sampled_logp && certainty)
        result = Py_BuildValue("sOOOO", state_names[view.state], tokens, logp, sampled_logp,
                               certainty);
    Py_XDECREF(tokens);
    Py_XDECREF(logp);
    Py_XDECREF(sampled_logp);
    Py_XDECREF(certainty);
    return result;
}

PyDoc_STRVAR(Session_tail_doc,
"tail($self, sample, count, /)\n--\n\n"
"The newest tokens (int32, at most `count`) of a sample.");

static PyObject *Session_tail(SessionObject *self, PyObject *args)
{
    Py_ssize_t sample, count;
    bon_sample_view view;
    bon_session *session = use(self);
    if (!session || !PyArg_ParseTuple(args, "nn:tail", &sample, &count)) return NULL;
    if (count < 0 || bon_session_view(session, (size_t)sample, &view) != BON_OK)
        return PyErr_Format(PyExc_IndexError, "the session has no sample %zd, or count %zd < 0",
                            sample, count);
    const size_t first = (size_t)count < view.length ? view.length - (size_t)count : 0;
    return copy_out(NPY_INT32, view.tokens, first, view.length);
}

PyDoc_STRVAR(Session_forget_doc,
"forget($self, sample, /)\n--\n\n"
"Frees what an ended sample holds, its slot and cache too.");

static PyObject *Session_forget(SessionObject *self, PyObject *arg)
{
    const Py_ssize_t sample = PyLong_AsSsize_t(arg);
    bon_session *session = PyErr_Occurred() ? NULL : use(self);
    if (session == NULL) return NULL;
    bon_session_forget(session, (size_t)sample);
    Py_RETURN_NONE;
}

/* -- questions ------------------------------------------------------------- */

PyDoc_STRVAR(Session_ask_doc,
"ask($self, samples, question, named, /)\n--\n\n"
"Log-probabilities (float32 [samples, named]) of named tokens behind a question,\n"
"and the logits there (float32 [samples, vocab]), for samples (uintp) in the cache:\n"
"live, held, or ended and kept. They go on as if they had not been asked.");

typedef struct {
    const size_t *samples;
    const int32_t *question, *named;
    size_t count, len, n_named;
} asking;

/* The first token of a list that the vocabulary lacks, as an error; 0 if it has all. */
static int refuse_unknown_tokens(const char *list, const int32_t *tokens, size_t len, size_t vocab)
{
    for (size_t i = 0; i < len; i++) {
        if (tokens[i] >= 0 && (size_t)tokens[i] < vocab) continue;
        PyErr_Format(PyExc_ValueError, "token ids must lie in [0, %zu), but token %zu of %s is %d",
                     vocab, i, list, tokens[i]);
        return -1;
    }
    return 0;
}

static int refuse_sample(bon_session *session, size_t sample, size_t len, size_t context)
{
    bon_sample_view view;
    if (bon_session_view(session, sample, &view) != BON_OK)
        PyErr_Format(PyExc_IndexError, "the session has no sample %zu", sample);
    else if (!view.in_cache)
        PyErr_Format(PyExc_ValueError, "only samples in the cache can be asked, but sample %zu "
                                       "is not: its state is %s",
                     sample, state_names[view.state]);
    else if (view.prompt_length + view.length + len > context)
        PyErr_Format(PyExc_ValueError,
                     "prompt, sample and question must fit into the context of %zu tokens, but "
                     "those of sample %zu have %zu + %zu + %zu",
                     context, sample, view.prompt_length, view.length, len);
    else
        return 0;
    return -1;
}

/* Says what is wrong with a question that the engine has refused. */
static PyObject *raise_ask_error(bon_session *session, const asking *q, const bon_arch *arch)
{
    if (q->len < 1) {
        PyErr_SetString(PyExc_ValueError, "a question needs at least one token, got none");
        return NULL;
    }
    if (refuse_unknown_tokens("the question", q->question, q->len, arch->vocab) < 0
        || refuse_unknown_tokens("named", q->named, q->n_named, arch->vocab) < 0)
        return NULL;
    for (size_t i = 0; i < q->count; i++)
        if (refuse_sample(session, q->samples[i], q->len, arch->max_positions) < 0) return NULL;
    return raise_engine_status(BON_ERR_DOMAIN);
}

static PyObject *Session_ask(SessionObject *self, PyObject *args)
{
    PyObject *objects[3];
    bon_session *session = use(self);
    if (!session
        || !PyArg_ParseTuple(args, "OOO:ask", &objects[0], &objects[1], &objects[2]))
        return NULL;
    PyArrayObject *samples = as_array(objects[0], NPY_UINTP, 1, "samples");
    PyArrayObject *question = samples ? as_array(objects[1], NPY_INT32, 1, "question") : NULL;
    PyArrayObject *named = question ? as_array(objects[2], NPY_INT32, 1, "named") : NULL;
    if (named == NULL) return NULL;
    const bon_arch *arch = bon_model_arch(bon_model_of(self->model));
    const asking q = {
        PyArray_DATA(samples), PyArray_DATA(question), PyArray_DATA(named),
        (size_t)PyArray_DIM(samples, 0), (size_t)PyArray_DIM(question, 0),
        (size_t)PyArray_DIM(named, 0)};
    npy_intp shape[2] = {PyArray_DIM(samples, 0), PyArray_DIM(named, 0)};
    npy_intp logits_shape[2] = {shape[0], (npy_intp)arch->vocab};
    PyArrayObject *logp = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_FLOAT);
    PyArrayObject *logits = (PyArrayObject *)PyArray_SimpleNew(2, logits_shape, NPY_FLOAT);
    PyObject *result = NULL;
    py_poll poll;
    if (logp == NULL || logits == NULL || py_poll_begin(&poll, self->model) < 0) goto done;
    self->busy = true;
    const bon_status status = bon_session_ask(
        session, q.samples, q.count, q.question, q.len, q.named, q.n_named, &poll.poll,
        PyArray_DATA(logp), PyArray_DATA(logits));
    self->busy = false;
    py_poll_end(&poll);
    if (status == BON_OK)
        result = PyTuple_Pack(2, logp, logits);
    else if (status == BON_ERR_DOMAIN)
        raise_ask_error(session, &q, arch);
    else if (status == BON_ERR_FULL)
        PyErr_SetString(PyExc_MemoryError, "the memory budget has no cache blocks left to fork "
                                           "even one sample for a question");
    else
        raise_engine_status(status);
done:
    Py_XDECREF(logp);
    Py_XDECREF(logits);
    return result;
}

/* -- state ----------------------------------------------------------------- */

static PyObject *Session_pending(SessionObject *self, void *Py_UNUSED(closure))
{
    bon_session *session = use(self);
    return session ? PyBool_FromLong(bon_session_pending(session)) : NULL;
}

PyDoc_STRVAR(Session_stats_doc,
"stats($self, /)\n--\n\n"
"dict: prompt_tokens, new_tokens, steps, prefill_seconds, decode_seconds, live, held,\n"
"waiting, free_blocks.");

static PyObject *Session_stats(SessionObject *self, PyObject *Py_UNUSED(args))
{
    bon_session *session = use(self);
    if (session == NULL) return NULL;
    bon_session_stats s;
    bon_session_get_stats(session, &s);
    return Py_BuildValue("{s:K,s:K,s:K,s:d,s:d,s:n,s:n,s:n,s:n}", "prompt_tokens",
                         (unsigned long long)s.prompt_tokens, "new_tokens",
                         (unsigned long long)s.new_tokens, "steps", (unsigned long long)s.steps,
                         "prefill_seconds", s.prefill_seconds, "decode_seconds",
                         s.decode_seconds, "live", (Py_ssize_t)s.live, "held",
                         (Py_ssize_t)s.held, "waiting", (Py_ssize_t)s.waiting, "free_blocks",
                         (Py_ssize_t)s.free_blocks);
}

static PyMethodDef Session_methods[] = {
    {"add_prompt", (PyCFunction)Session_add_prompt, METH_O, Session_add_prompt_doc},
    {"add_samples", (PyCFunction)Session_add_samples, METH_VARARGS, Session_add_samples_doc},
    {"run", (PyCFunction)Session_run, METH_O, Session_run_doc},
    {"end", (PyCFunction)Session_end, METH_VARARGS, Session_end_doc},
    {"go_on", (PyCFunction)Session_go_on, METH_VARARGS, Session_go_on_doc},
    {"view", (PyCFunction)Session_view, METH_O, Session_view_doc},
    {"tail", (PyCFunction)Session_tail, METH_VARARGS, Session_tail_doc},
    {"forget", (PyCFunction)Session_forget, METH_O, Session_forget_doc},
    {"ask", (PyCFunction)Session_ask, METH_VARARGS, Session_ask_doc},
    {"stats", (PyCFunction)Session_stats, METH_NOARGS, Session_stats_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Session_getset[] = {
    {"pending", (getter)Session_pending, NULL, "Whether a sample lives, or one that waits can enter.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Session_slots[] = {
    {Py_tp_doc, "Session(model, slots, cache_blocks, end_tokens, watch, hold_ends=False,\n"
                "        ask_blocks=0)\n--\n\n"
                "Live samples of many prompts; see csrc/decode.h."},
    {Py_tp_new, Session_new},
    {Py_tp_dealloc, Session_dealloc},
    {Py_tp_methods, Session_methods},
    {Py_tp_getset, Session_getset},
    {0, NULL},
};

static PyType_Spec Session_spec = {
    .name = "bonaware._engine.Session",
    .basicsize = sizeof(SessionObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Session_slots,
};

int bon_add_session_type(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &Session_spec, NULL);
    if (type == NULL) return -1;
    const int added = PyModule_AddObjectRef(module, "Session", type);
    Py_DECREF(type);
    return added;
}
