/* model.c - the weights of a model: their shapes, their places, packing them.
 *
 * The forward pass that reads them is in forward.c, its mirror image in backward.c.
 */
#include "model.h"

#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#include "model_parts.h"

static const char *const slot_names[BON_SLOTS] = {
    "embed", "head", "score", "final_norm",
    "q", "k", "v", "o", "gate", "up", "down",
    "q_bias", "k_bias", "v_bias", "o_bias", "gate_bias", "up_bias", "down_bias",
    "q_norm", "k_norm", "attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm",
    "q_a", "k_a", "v_a", "o_a", "gate_a", "up_a", "down_a",
    "q_b", "k_b", "v_b", "o_b", "gate_b", "up_b", "down_b",
};

const char *bon_slot_name(bon_slot slot) { return slot_names[slot]; }

/* -- life ------------------------------------------------------------------ */

#define MAX_LAYERS ((size_t)1 << 14)

static bool in_range(size_t x, size_t high) { return x >= 1 && x <= high; }

static bool arch_is_sound(const bon_arch *a)
{
    if (!in_range(a->vocab, BON_MAX_DIMENSION) || !in_range(a->hidden, BON_MAX_DIMENSION)
        || !in_range(a->layers, MAX_LAYERS) || !in_range(a->heads, 1 << 16)
        || !in_range(a->kv_heads, a->heads) || !in_range(a->head_dim, 1 << 16)
        || !in_range(a->intermediate, BON_MAX_DIMENSION)
        || !in_range(a->max_positions, (size_t)1 << 31)
        || a->labels > BON_MAX_DIMENSION || !in_range(a->ropes, BON_MAX_ROPES))
        return false;
    if (a->heads % a->kv_heads != 0 || a->head_dim % 2 != 0) return false;
    if (bon_qkv_width(a) > BON_MAX_DIMENSION) return false;
    for (size_t l = 0; l < a->layers; l++)
        if (a->rope[l] >= a->ropes) return false;
    return true;
}

static void *copy_of(const void *src, size_t bytes)
{
    void *dst = malloc(bytes);
    if (dst) memcpy(dst, src, bytes);
    return dst;
}

static bool make_vectors(bon_layer *l, const bon_arch *a)
{
    const struct { float **vector; size_t size; bool used; } vectors[] = {
        {&l->attn_norm, a->hidden, true},
        {&l->mlp_norm, a->hidden, true},
        {&l->attn_post_norm, a->hidden, a->post_norms},
        {&l->mlp_post_norm, a->hidden, a->post_norms},
        {&l->q_norm, a->head_dim, a->qk_norm},
        {&l->k_norm, a->head_dim, a->qk_norm},
        {&l->qkv.bias, bon_qkv_width(a), a->qkv_bias},
        {&l->o.bias, a->hidden, a->o_bias},
        {&l->gate_up.bias, 2 * a->intermediate, a->mlp_bias},
        {&l->down.bias, a->hidden, a->mlp_bias},
    };
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        if (vectors[i].used
            && !(*vectors[i].vector = calloc(vectors[i].size, sizeof(float))))
            return false;
    return true;
}

static bon_status make_layer(bon_layer *l, const bon_arch *a, bon_dtype dtype)
{
    const struct { bon_matrix **matrix; size_t outputs, inputs; } matrices[] = {
        {&l->qkv.weight, bon_qkv_width(a), a->hidden},
        {&l->o.weight, a->hidden, bon_q_width(a)},
        {&l->gate_up.weight, 2 * a->intermediate, a->hidden},
        {&l->down.weight, a->hidden, a->intermediate},
    };
    bon_status status = make_vectors(l, a) ? BON_OK : BON_ERR_MEMORY;
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices && status == BON_OK; i++)
        status = bon_matrix_create(matrices[i].outputs, matrices[i].inputs, dtype,
                                   matrices[i].matrix);
    return status;
}

static bon_status copy_arch(bon_model *model, const bon_arch *arch)
{
    model->arch = *arch;
    model->window = copy_of(arch->window, arch->layers * sizeof *arch->window);
    model->rope = copy_of(arch->rope, arch->layers);
    if (!model->window || !model->rope) return BON_ERR_MEMORY;
    for (size_t i = 0; i < arch->ropes; i++) {
        model->rope_freq[i] = copy_of(arch->rope_freq[i], arch->head_dim / 2 * sizeof(float));
        if (!model->rope_freq[i]) return BON_ERR_MEMORY;
        model->arch.rope_freq[i] = model->rope_freq[i];
    }
    model->arch.window = model->window;
    model->arch.rope = model->rope;
    return BON_OK;
}

bon_status bon_model_create(const bon_arch *arch, bon_dtype dtype, int threads, bon_model **out)
{
    *out = NULL;
    if (!arch_is_sound(arch) || threads < 1 || threads > BON_MAX_THREADS
        || (dtype != BON_F32 && dtype != BON_BF16 && dtype != BON_I8))
        return BON_ERR_DOMAIN;
    bon_model *model = calloc(1, sizeof *model);
    if (model == NULL) return BON_ERR_MEMORY;
    model->dtype = dtype;
    model->threads = threads;

    bon_status status = copy_arch(model, arch);
    if (status != BON_OK) goto done;
    status = BON_ERR_MEMORY;
    if (!(model->layers = calloc(arch->layers, sizeof *model->layers))) goto done;
    if (!(model->final_norm = calloc(arch->hidden, sizeof(float)))) goto done;
    if ((status = bon_matrix_create(arch->vocab, arch->hidden, dtype, &model->embed)) != BON_OK)
        goto done;
    if (arch->labels > 0) {
        if (!(model->score = calloc(arch->labels * arch->hidden, sizeof(float)))) {
            status = BON_ERR_MEMORY;
            goto done;
        }
    } else if (arch->tied) {
        model->head = model->embed;
    } else {
        status = bon_matrix_create(arch->vocab, arch->hidden, dtype, &model->head);
        if (status != BON_OK) goto done;
    }
    for (size_t l = 0; l < arch->layers; l++)
        if ((status = make_layer(&model->layers[l], arch, dtype)) != BON_OK) goto done;
    *out = model;
    model = NULL;
done:
    bon_model_destroy(model);
    return status;
}

static void destroy_layer(bon_layer *l)
{
    bon_linear *const linears[] = {&l->qkv, &l->o, &l->gate_up, &l->down};
    for (size_t i = 0; i < sizeof linears / sizeof *linears; i++) {
        bon_matrix_destroy(linears[i]->weight);
        free(linears[i]->bias);
        for (size_t j = 0; j < BON_ADAPTERS; j++) bon_adapter_free(&linears[i]->adapters[j]);
    }
    float *const vectors[] = {l->q_norm, l->k_norm, l->attn_norm, l->attn_post_norm, l->mlp_norm,
                              l->mlp_post_norm};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) free(vectors[i]);
}

void bon_model_destroy(bon_model *model)
{
    if (model == NULL) return;
    for (size_t l = 0; model->layers && l < model->arch.layers; l++)
        destroy_layer(&model->layers[l]);
    if (model->head != model->embed) bon_matrix_destroy(model->head);
    bon_matrix_destroy(model->embed);
    free(model->layers);
    free(model->score);
    free(model->final_norm);
    free(model->window);
    free(model->rope);
    for (size_t i = 0; i < BON_MAX_ROPES; i++) free(model->rope_freq[i]);
    free(model);
}

/* -- adapters -------------------------------------------------------------- */

bon_adapter *bon_model_adapter(const bon_model *model, bon_slot slot, size_t layer)
{
    bon_layer *l = &model->layers[layer];
    switch (slot) {
    case BON_Q: return &l->qkv.adapters[0];
    case BON_K: return &l->qkv.adapters[1];
    case BON_V: return &l->qkv.adapters[2];
    case BON_O: return &l->o.adapters[0];
    case BON_GATE: return &l->gate_up.adapters[0];
    case BON_UP: return &l->gate_up.adapters[1];
    default: return &l->down.adapters[0];
    }
}

/* The adapter that a slot ..._A or ..._B is a part of. */
static bon_adapter *adapter_of_part(const bon_model *model, bon_slot part, size_t layer)
{
    const int base = bon_is_adapter_a(part) ? BON_Q_A : BON_Q_B;
    return bon_model_adapter(model, (bon_slot)((int)part - base + BON_Q), layer);
}

bon_status bon_model_add_adapter(bon_model *model, bon_slot slot, size_t rank, float scale)
{
    if (slot < BON_Q || slot > BON_DOWN || rank < 1 || rank > BON_MAX_DIMENSION
        || bon_model_adapter(model, slot, 0)->a)
        return BON_ERR_DOMAIN;
    size_t outputs, inputs;
    bon_model_shape(model, slot, &outputs, &inputs);
    bon_status status = BON_OK;
    for (size_t l = 0; l < model->arch.layers && status == BON_OK; l++)
        status = bon_adapter_create(bon_model_place(model, slot, l).first, outputs, inputs, rank,
                                    scale, bon_model_adapter(model, slot, l));
    if (status != BON_OK) bon_model_remove_adapters(model);
    else if (rank > model->rank) model->rank = rank;
    return status;
}

void bon_model_remove_adapters(bon_model *model)
{
    for (size_t l = 0; l < model->arch.layers; l++)
        for (int s = BON_Q; s <= BON_DOWN; s++)
            bon_adapter_free(bon_model_adapter(model, (bon_slot)s, l));
    model->rank = 0;
}

/* -- slots ----------------------------------------------------------------- */

bool bon_model_has(const bon_model *model, bon_slot slot)
{
    const bon_arch *a = &model->arch;
    if (bon_is_adapter_a(slot) || bon_is_adapter_b(slot))
        return adapter_of_part(model, slot, 0)->a != NULL;
    switch (slot) {
    case BON_HEAD: return !a->tied && a->labels == 0;
    case BON_SCORE: return a->labels > 0;
    case BON_Q_BIAS: case BON_K_BIAS: case BON_V_BIAS: return a->qkv_bias;
    case BON_O_BIAS: return a->o_bias;
    case BON_GATE_BIAS: case BON_UP_BIAS: case BON_DOWN_BIAS: return a->mlp_bias;
    case BON_Q_NORM: case BON_K_NORM: return a->qk_norm;
    case BON_ATTN_POST_NORM: case BON_MLP_POST_NORM: return a->post_norms;
    default: return true;
    }
}

void bon_model_shape(const bon_model *model, bon_slot slot, size_t *rows, size_t *cols)
{
    const bon_arch *a = &model->arch;
    if (bon_is_adapter_a(slot) || bon_is_adapter_b(slot)) {
        const bon_adapter *adapter = adapter_of_part(model, slot, 0);
        const bon_matrix *matrix = bon_is_adapter_a(slot) ? adapter->a : adapter->b;
        *rows = bon_matrix_outputs(matrix);
        *cols = bon_matrix_inputs(matrix);
        return;
    }
    *cols = 1;
    switch (slot) {
    case BON_EMBED: case BON_HEAD: *rows = a->vocab; *cols = a->hidden; break;
    case BON_SCORE: *rows = a->labels; *cols = a->hidden; break;
    case BON_Q: *rows = bon_q_width(a); *cols = a->hidden; break;
    case BON_K: case BON_V: *rows = bon_kv_width(a); *cols = a->hidden; break;
    case BON_O: *rows = a->hidden; *cols = bon_q_width(a); break;
    case BON_GATE: case BON_UP: *rows = a->intermediate; *cols = a->hidden; break;
    case BON_DOWN: *rows = a->hidden; *cols = a->intermediate; break;
    case BON_Q_BIAS: *rows = bon_q_width(a); break;
    case BON_K_BIAS: case BON_V_BIAS: *rows = bon_kv_width(a); break;
    case BON_GATE_BIAS: case BON_UP_BIAS: *rows = a->intermediate; break;
    case BON_Q_NORM: case BON_K_NORM: *rows = a->head_dim; break;
    default: *rows = a->hidden; break;
    }
}

bon_place bon_model_place(const bon_model *m, bon_slot slot, size_t layer)
{
    const bon_arch *a = &m->arch;
    const bon_layer *l = &m->layers[layer];
    const size_t k = bon_q_width(a), v = k + bon_kv_width(a), up = a->intermediate;
    switch (slot) {
    case BON_EMBED: return (bon_place){.matrix = m->embed};
    case BON_HEAD: return (bon_place){.matrix = m->head};
    case BON_SCORE: return (bon_place){.vector = m->score};
    case BON_FINAL_NORM: return (bon_place){.vector = m->final_norm};
    case BON_Q: return (bon_place){.matrix = l->qkv.weight};
    case BON_K: return (bon_place){.matrix = l->qkv.weight, .first = k};
    case BON_V: return (bon_place){.matrix = l->qkv.weight, .first = v};
    case BON_O: return (bon_place){.matrix = l->o.weight};
    case BON_GATE: return (bon_place){.matrix = l->gate_up.weight};
    case BON_UP: return (bon_place){.matrix = l->gate_up.weight, .first = up};
    case BON_DOWN: return (bon_place){.matrix = l->down.weight};
    case BON_Q_BIAS: return (bon_place){.vector = l->qkv.bias};
    case BON_K_BIAS: return (bon_place){.vector = l->qkv.bias, .first = k};
    case BON_V_BIAS: return (bon_place){.vector = l->qkv.bias, .first = v};
    case BON_O_BIAS: return (bon_place){.vector = l->o.bias};
    case BON_GATE_BIAS: return (bon_place){.vector = l->gate_up.bias};
    case BON_UP_BIAS: return (bon_place){.vector = l->gate_up.bias, .first = up};
    case BON_DOWN_BIAS: return (bon_place){.vector = l->down.bias};
    case BON_Q_NORM: return (bon_place){.vector = l->q_norm};
    case BON_K_NORM: return (bon_place){.vector = l->k_norm};
    case BON_ATTN_NORM: return (bon_place){.vector = l->attn_norm};
    case BON_ATTN_POST_NORM: return (bon_place){.vector = l->attn_post_norm};
    case BON_MLP_NORM: return (bon_place){.vector = l->mlp_norm};
    case BON_MLP_POST_NORM: return (bon_place){.vector = l->mlp_post_norm};
    default: break;
    }
    const bon_adapter *adapter = adapter_of_part(m, slot, layer);
    return (bon_place){.matrix = bon_is_adapter_a(slot) ? adapter->a : adapter->b};
}

static float element(const void *data, bon_dtype dtype, size_t i)
{
    if (dtype == BON_F32) {
        float x;
        memcpy(&x, (const char *)data + i * sizeof x, sizeof x);
        return x;
    }
    uint16_t bits;
    memcpy(&bits, (const char *)data + i * sizeof bits, sizeof bits);
    return dtype == BON_BF16 ? bon_bf16_to_f32(bits) : _cvtsh_ss(bits);
}

static bool is_slot(const bon_model *model, bon_slot slot, size_t layer)
{
    return (unsigned)slot < BON_SLOTS && bon_model_has(model, slot)
           && layer < (bon_slot_of_layer(slot) ? model->arch.layers : 1);
}

bon_status bon_model_set(bon_model *model, bon_slot slot, size_t layer, const void *data,
                         bon_dtype dtype)
{
    if (!is_slot(model, slot, layer)) return BON_ERR_DOMAIN;
    size_t rows, cols;
    bon_model_shape(model, slot, &rows, &cols);
    const bon_place at = bon_model_place(model, slot, layer);
    if (at.matrix) {
        const bon_status status =
            bon_matrix_fill(at.matrix, at.first, data, dtype, rows, model->threads);
        if (status != BON_OK) return status;
    } else {
        for (size_t i = 0; i < rows * cols; i++) at.vector[at.first + i] = element(data, dtype, i);
    }
    *(bon_slot_of_layer(slot) ? &model->layers[layer].is_set : &model->is_set) |= (uint64_t)1 << slot;
    return BON_OK;
}

bon_status bon_model_get(const bon_model *model, bon_slot slot, size_t layer, float *out)
{
    if (!is_slot(model, slot, layer)) return BON_ERR_DOMAIN;
    size_t rows, cols;
    bon_model_shape(model, slot, &rows, &cols);
    const bon_place at = bon_model_place(model, slot, layer);
    if (!at.matrix) {
        memcpy(out, at.vector + at.first, rows * cols * sizeof *out);
        return BON_OK;
    }
    for (size_t r = 0; r < rows; r++)
        bon_matrix_row(at.matrix, at.first + r, out + r * cols);
    return BON_OK;
}

bool bon_model_missing(const bon_model *model, bon_slot *slot, size_t *layer)
{
    for (int s = 0; s < BON_Q_A; s++) {
        const bool of_layer = bon_slot_of_layer((bon_slot)s);
        if (!bon_model_has(model, (bon_slot)s)) continue;
        for (size_t l = 0; l < (of_layer ? model->arch.layers : 1); l++) {
            const uint64_t is_set = of_layer ? model->layers[l].is_set : model->is_set;
            if (is_set >> s & 1) continue;
            *slot = (bon_slot)s;
            *layer = l;
            return true;
        }
    }
    return false;
}

const bon_arch *bon_model_arch(const bon_model *model) { return &model->arch; }
bon_dtype bon_model_dtype(const bon_model *model) { return model->dtype; }
int bon_model_threads(const bon_model *model) { return model->threads; }

bon_matrix *bon_model_matrix(bon_model *model, size_t i, const char **name)
{
    static const char *const names[] = {"qkv", "o", "gate_up", "down"};
    if (i < 4 * model->arch.layers) {
        bon_layer *l = &model->layers[i / 4];
        bon_matrix *const matrices[] = {l->qkv.weight, l->o.weight, l->gate_up.weight,
                                        l->down.weight};
        *name = names[i % 4];
        return matrices[i % 4];
    }
    i -= 4 * model->arch.layers;
    if (model->head && i-- == 0) {
        *name = "head";
        return model->head;
    }
    *name = "embed";
    return i == 0 && model->embed != model->head ? model->embed : NULL;
}

static bon_dtype cache_dtype(const bon_model *model)
{
    return model->dtype == BON_F32 ? BON_F32 : BON_BF16;
}

bon_status bon_model_create_cache(const bon_model *model, size_t layers, size_t blocks,
                                  bon_cache **out)
{
    const bon_arch *a = &model->arch;
    return bon_cache_create(layers, a->kv_heads, a->head_dim, cache_dtype(model), blocks, out);
}

size_t bon_model_block_bytes(const bon_model *model, size_t layers)
{
    const bon_arch *a = &model->arch;
    return bon_cache_block_bytes(layers, a->kv_heads, a->head_dim, cache_dtype(model));
}

size_t bon_model_bytes(const bon_model *model)
{
    size_t bytes = 0;
    const char *name;
    bon_matrix *matrix;
    for (size_t i = 0; (matrix = bon_model_matrix((bon_model *)(uintptr_t)model, i, &name)); i++)
        bytes += bon_matrix_bytes(matrix);
    return bytes;
}

/* A model of this size stays in the processor's cache, and its products take
 * microseconds: as long as waking a thread. */
#define SMALL_MODEL ((size_t)8 << 20)

int bon_model_pass_threads(const bon_model *model)
{
    return bon_model_bytes(model) <= SMALL_MODEL ? 1 : model->threads;
}

