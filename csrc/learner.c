/* learner.c - masters, gradients and moments of a model's tensors, and the steps. */
#include "learner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model_parts.h"

/* A matrix (its n, k and float32 panels) or a vector (matrix = NULL, k = 1). */
typedef struct {
    bon_matrix *matrix;
    size_t n, k, count; /* floats in each of: */
    float *arrays[4];   /* by bon_kind; the moments are NULL before the first step */
    bool owns_weight;   /* a master of its own: the model's matrix is bfloat16 */
} tensor;

struct bon_learner {
    bon_model *model;
    bon_scope scope;
    int threads;
    tensor *tensors;
    size_t count;
    bon_model_grad grad;
    bon_backward *backward;
    uint64_t steps;
};

/* -- life ------------------------------------------------------------------ */

/* Adds one tensor and says where its gradient goes; nothing for a NULL. */
static bon_status add(bon_learner *learner, bon_matrix *matrix, float *vector, size_t size,
                      float **grad)
{
    if (!matrix && !vector) return BON_OK;
    tensor *t = &learner->tensors[learner->count++];
    *t = (tensor){.matrix = matrix, .n = size, .k = 1, .count = size};
    t->arrays[BON_WEIGHT] = vector;
    if (matrix) {
        t->n = bon_matrix_outputs(matrix);
        t->k = bon_matrix_inputs(matrix);
        t->count = bon_panels_floats(t->n, t->k);
        t->arrays[BON_WEIGHT] = bon_matrix_panels(matrix);
        t->owns_weight = t->arrays[BON_WEIGHT] == NULL;
    }
    if (t->owns_weight) {
        if (!(t->arrays[BON_WEIGHT] = malloc(t->count * sizeof(float)))) return BON_ERR_MEMORY;
        bon_matrix_get_panels(matrix, t->arrays[BON_WEIGHT], learner->threads);
    }
    if (!(t->arrays[BON_GRADIENT] = calloc(t->count, sizeof(float)))) return BON_ERR_MEMORY;
    *grad = t->arrays[BON_GRADIENT];
    return BON_OK;
}

static bon_status add_linear(bon_learner *learner, const bon_linear *linear,
                             bon_linear_grad *grad)
{
    const bon_status status = add(learner, linear->weight, NULL, 0, &grad->weight);
    if (status != BON_OK) return status;
    return add(learner, NULL, linear->bias, bon_matrix_outputs(linear->weight), &grad->bias);
}

static bon_status add_adapters(bon_learner *learner, const bon_linear *linear,
                               bon_linear_grad *grad)
{
    bon_status status = BON_OK;
    for (size_t i = 0; i < BON_ADAPTERS && status == BON_OK; i++) {
        status = add(learner, linear->adapters[i].a, NULL, 0, &grad->adapters[i].a);
        if (status == BON_OK)
            status = add(learner, linear->adapters[i].b, NULL, 0, &grad->adapters[i].b);
    }
    return status;
}

static bon_status add_layer(bon_learner *learner, const bon_layer *l, bon_layer_grad *grad)
{
    const bon_arch *a = &learner->model->arch;
    const struct { const bon_linear *linear; bon_linear_grad *grad; } linears[] = {
        {&l->qkv, &grad->qkv}, {&l->o, &grad->o}, {&l->gate_up, &grad->gate_up},
        {&l->down, &grad->down}};
    const struct { float *vector; size_t size; float **grad; } vectors[] = {
        {l->q_norm, a->head_dim, &grad->q_norm}, {l->k_norm, a->head_dim, &grad->k_norm},
        {l->attn_norm, a->hidden, &grad->attn_norm},
        {l->attn_post_norm, a->hidden, &grad->attn_post_norm},
        {l->mlp_norm, a->hidden, &grad->mlp_norm},
        {l->mlp_post_norm, a->hidden, &grad->mlp_post_norm}};
    bon_status status = BON_OK;
    for (size_t i = 0; i < sizeof linears / sizeof *linears && status == BON_OK; i++)
        status = learner->scope == BON_TRAIN_ALL
                     ? add_linear(learner, linears[i].linear, linears[i].grad)
                     : add_adapters(learner, linears[i].linear, linears[i].grad);
    if (learner->scope == BON_TRAIN_ADAPTERS) return status;
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors && status == BON_OK; i++)
        status = add(learner, NULL, vectors[i].vector, vectors[i].size, vectors[i].grad);
    return status;
}

#define MODEL_TENSORS 4  /* embed, head, score, final_norm */
#define LAYER_TENSORS 14 /* four products with biases and six norms; or seven adapters */

static bon_status add_all(bon_learner *learner)
{
    bon_model *m = learner->model;
    bon_model_grad *grad = &learner->grad;
    const bool untied = m->head && m->head != m->embed;
    bon_status status =
        add(learner, NULL, m->score, m->arch.labels * m->arch.hidden, &grad->score);
    if (learner->scope == BON_TRAIN_ALL) {
        if (status == BON_OK) status = add(learner, m->embed, NULL, 0, &grad->embed);
        if (status == BON_OK && untied) status = add(learner, m->head, NULL, 0, &grad->head);
        if (m->head == m->embed) grad->head = grad->embed;
        if (status == BON_OK)
            status = add(learner, NULL, m->final_norm, m->arch.hidden, &grad->final_norm);
    }
    for (size_t l = 0; l < m->arch.layers && status == BON_OK; l++)
        status = add_layer(learner, &m->layers[l], &grad->layers[l]);
    return status;
}

bon_status bon_learner_create(bon_model *model, bon_scope scope, size_t memory,
                              bon_learner **out)
{
    *out = NULL;
    if (model->dtype == BON_I8) return BON_ERR_DOMAIN;
    bon_learner *learner = calloc(1, sizeof *learner);
    if (learner == NULL) return BON_ERR_MEMORY;
    const size_t layers = model->arch.layers;
    learner->model = model;
    learner->scope = scope;
    learner->threads = model->threads;
    learner->tensors = calloc(MODEL_TENSORS + LAYER_TENSORS * layers, sizeof(tensor));
    learner->grad.layers = calloc(layers, sizeof *learner->grad.layers);
    bon_status status = BON_ERR_MEMORY;
    if (learner->tensors && learner->grad.layers) status = add_all(learner);
    if (status == BON_OK) status = bon_backward_create(model, memory, &learner->backward);
    if (status == BON_OK) *out = learner;
    else bon_learner_destroy(learner);
    return status;
}

void bon_learner_destroy(bon_learner *learner)
{
    if (learner == NULL) return;
    for (size_t i = 0; i < learner->count; i++) {
        tensor *t = &learner->tensors[i];
        if (t->owns_weight) free(t->arrays[BON_WEIGHT]);
        for (int kind = BON_GRADIENT; kind <= BON_MOMENT_2; kind++) free(t->arrays[kind]);
    }
    bon_backward_destroy(learner->backward);
    free(learner->grad.layers);
    free(learner->tensors);
    free(learner);
}

/* -- learning -------------------------------------------------------------- */

bon_status bon_learner_accumulate(bon_learner *learner, const bon_batch *batch,
                                  const bon_poll *poll, float *values)
{
    return bon_backward_run(learner->backward, batch, &learner->grad, poll, values);
}

bon_status bon_learner_set_reference(bon_learner *learner, const bon_model *reference)
{
    return bon_backward_set_reference(learner->backward, reference);
}

void bon_learner_zero(bon_learner *learner)
{
    for (size_t i = 0; i < learner->count; i++)
        memset(learner->tensors[i].arrays[BON_GRADIENT], 0,
               learner->tensors[i].count * sizeof(float));
}

double bon_learner_norm(const bon_learner *learner)
{
    double sum = 0.0;
    for (size_t i = 0; i < learner->count; i++)
        sum += bon_sum_squares(learner->tensors[i].arrays[BON_GRADIENT],
                               learner->tensors[i].count, learner->threads);
    return sqrt(sum);
}

static bon_status make_moments(bon_learner *learner)
{
    for (size_t i = 0; i < learner->count; i++)
        for (int kind = BON_MOMENT_1; kind <= BON_MOMENT_2; kind++) {
            tensor *t = &learner->tensors[i];
            if (!t->arrays[kind] && !(t->arrays[kind] = calloc(t->count, sizeof(float))))
                return BON_ERR_MEMORY;
        }
    return BON_OK;
}

/* The model gets what the masters hold. */
static void publish(bon_learner *learner, const tensor *t)
{
    if (t->owns_weight)
        bon_matrix_set_panels(t->matrix, t->arrays[BON_WEIGHT], learner->threads);
}

bon_status bon_learner_step(bon_learner *learner, const bon_adamw *options, double grad_scale)
{
    const bon_status status = make_moments(learner);
    if (status != BON_OK) return status;
    learner->steps++;
    for (size_t i = 0; i < learner->count; i++) {
        tensor *t = &learner->tensors[i];
        bon_adamw o = *options;
        if (!t->matrix) o.weight_decay = 0.0;
        bon_adamw_step(&o, learner->steps, (float)grad_scale, t->arrays[BON_WEIGHT],
                       t->arrays[BON_GRADIENT], t->arrays[BON_MOMENT_1],
                       t->arrays[BON_MOMENT_2], t->count, learner->threads);
        publish(learner, t);
    }
    bon_learner_zero(learner);
    return BON_OK;
}

uint64_t bon_learner_steps(const bon_learner *learner) { return learner->steps; }
void bon_learner_set_steps(bon_learner *learner, uint64_t steps) { learner->steps = steps; }

/* -- in and out ------------------------------------------------------------ */

/* Finds the tensor of a slot and the row (or element) that it starts at. */
static tensor *find(const bon_learner *learner, bon_slot slot, size_t layer, size_t *first)
{
    const bon_model *m = learner->model;
    if ((unsigned)slot >= BON_SLOTS || !bon_model_has(m, slot)
        || layer >= (bon_slot_of_layer(slot) ? m->arch.layers : 1))
        return NULL;
    const bon_place at = bon_model_place(m, slot, layer);
    *first = at.first;
    for (size_t i = 0; i < learner->count; i++) {
        tensor *t = &learner->tensors[i];
        if (at.matrix ? t->matrix == at.matrix : t->arrays[BON_WEIGHT] == at.vector) return t;
    }
    return NULL;
}

bon_status bon_learner_get(const bon_learner *learner, bon_kind kind, bon_slot slot,
                           size_t layer, float *out)
{
    size_t rows, cols, first;
    const tensor *t = find(learner, slot, layer, &first);
    if (t == NULL) return BON_ERR_DOMAIN;
    bon_model_shape(learner->model, slot, &rows, &cols);
    const float *from = t->arrays[kind];
    if (from == NULL)
        memset(out, 0, rows * cols * sizeof *out);
    else if (t->matrix)
        bon_panels_unpack(from, t->n, t->k, first, rows, out, learner->threads);
    else
        memcpy(out, from + first, rows * cols * sizeof *out);
    return BON_OK;
}

bon_status bon_learner_set(bon_learner *learner, bon_kind kind, bon_slot slot, size_t layer,
                           const float *in)
{
    size_t rows, cols, first;
    tensor *t = find(learner, slot, layer, &first);
    if (t == NULL) return BON_ERR_DOMAIN;
    bon_status status = kind >= BON_MOMENT_1 ? make_moments(learner) : BON_OK;
    if (status != BON_OK) return status;
    bon_model_shape(learner->model, slot, &rows, &cols);
    if (t->matrix)
        bon_panels_pack(t->arrays[kind], t->n, t->k, first, rows, in, learner->threads);
    else
        memcpy(t->arrays[kind] + first, in, rows * cols * sizeof *in);
    if (kind == BON_WEIGHT) publish(learner, t);
    return BON_OK;
}
