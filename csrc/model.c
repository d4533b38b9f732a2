/* model.c - packing the weights, and the forward pass.
 *
 * bon_model_forward is the one long function here: the order of its steps is the
 * thing to be understood. Everything that differs between architectures is a
 * field of bon_arch; a step that an architecture lacks is skipped by its field.
 */
#include "model.h"

#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "threads.h"
#include "vecmath.h"

typedef struct {
    bon_matrix *qkv;     /* [(heads + 2*kv_heads) * head_dim, hidden] */
    bon_matrix *o;       /* [hidden, heads*head_dim] */
    bon_matrix *gate_up; /* [2*intermediate, hidden] */
    bon_matrix *down;    /* [hidden, intermediate] */
    float *qkv_bias, *o_bias, *gate_up_bias, *down_bias; /* NULL: none */
    float *q_norm, *k_norm;                              /* [head_dim] or NULL */
    float *attn_norm, *attn_post_norm;                   /* [hidden]; post: or NULL */
    float *mlp_norm, *mlp_post_norm;
    uint32_t is_set; /* bit per slot */
} layer_weights;

struct bon_model {
    bon_arch arch;
    size_t *window;              /* [layers], arch.window points here */
    uint8_t *rope;               /* [layers] */
    float *rope_freq[BON_MAX_ROPES];
    bon_dtype dtype;
    int threads;
    bon_matrix *embed, *head; /* the same matrix when tied */
    float *final_norm;
    uint32_t is_set;
    layer_weights *layers;
};

static const char *const slot_names[BON_SLOTS] = {
    "embed", "head", "final_norm",
    "q", "k", "v", "o", "gate", "up", "down",
    "q_bias", "k_bias", "v_bias", "o_bias", "gate_bias", "up_bias", "down_bias",
    "q_norm", "k_norm", "attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm",
};

const char *bon_slot_name(bon_slot slot) { return slot_names[slot]; }

/* -- life ------------------------------------------------------------------ */

static size_t q_width(const bon_arch *a) { return a->heads * a->head_dim; }
static size_t kv_width(const bon_arch *a) { return a->kv_heads * a->head_dim; }
static size_t qkv_width(const bon_arch *a) { return q_width(a) + 2 * kv_width(a); }

/* Bounds that keep every product of two dimensions far from overflow. */
#define MAX_DIMENSION ((size_t)1 << 24)
#define MAX_LAYERS ((size_t)1 << 14)

static bool in_range(size_t x, size_t high) { return x >= 1 && x <= high; }

static bool arch_is_sound(const bon_arch *a)
{
    if (!in_range(a->vocab, MAX_DIMENSION) || !in_range(a->hidden, MAX_DIMENSION)
        || !in_range(a->layers, MAX_LAYERS) || !in_range(a->heads, 1 << 16)
        || !in_range(a->kv_heads, a->heads) || !in_range(a->head_dim, 1 << 16)
        || !in_range(a->intermediate, MAX_DIMENSION)
        || !in_range(a->max_positions, (size_t)1 << 31) || !in_range(a->ropes, BON_MAX_ROPES))
        return false;
    if (a->heads % a->kv_heads != 0 || a->head_dim % 2 != 0) return false;
    if (qkv_width(a) > MAX_DIMENSION) return false;
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

static bool make_vectors(layer_weights *l, const bon_arch *a)
{
    const struct { float **vector; size_t size; bool used; } vectors[] = {
        {&l->attn_norm, a->hidden, true},
        {&l->mlp_norm, a->hidden, true},
        {&l->attn_post_norm, a->hidden, a->post_norms},
        {&l->mlp_post_norm, a->hidden, a->post_norms},
        {&l->q_norm, a->head_dim, a->qk_norm},
        {&l->k_norm, a->head_dim, a->qk_norm},
        {&l->qkv_bias, qkv_width(a), a->qkv_bias},
        {&l->o_bias, a->hidden, a->o_bias},
        {&l->gate_up_bias, 2 * a->intermediate, a->mlp_bias},
        {&l->down_bias, a->hidden, a->mlp_bias},
    };
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        if (vectors[i].used
            && !(*vectors[i].vector = calloc(vectors[i].size, sizeof(float))))
            return false;
    return true;
}

static bon_status make_layer(layer_weights *l, const bon_arch *a, bon_dtype dtype)
{
    bon_status status;
    if ((status = bon_matrix_create(qkv_width(a), a->hidden, dtype, &l->qkv)) != BON_OK
        || (status = bon_matrix_create(a->hidden, q_width(a), dtype, &l->o)) != BON_OK
        || (status = bon_matrix_create(2 * a->intermediate, a->hidden, dtype, &l->gate_up))
               != BON_OK
        || (status = bon_matrix_create(a->hidden, a->intermediate, dtype, &l->down)) != BON_OK)
        return status;
    return make_vectors(l, a) ? BON_OK : BON_ERR_MEMORY;
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
        || (dtype != BON_F32 && dtype != BON_BF16))
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
    model->head = model->embed;
    if (!arch->tied) {
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

static void destroy_layer(layer_weights *l)
{
    bon_matrix_destroy(l->qkv);
    bon_matrix_destroy(l->o);
    bon_matrix_destroy(l->gate_up);
    bon_matrix_destroy(l->down);
    float *const vectors[] = {l->qkv_bias, l->o_bias, l->gate_up_bias, l->down_bias, l->q_norm,
                              l->k_norm, l->attn_norm, l->attn_post_norm, l->mlp_norm,
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
    free(model->final_norm);
    free(model->window);
    free(model->rope);
    for (size_t i = 0; i < BON_MAX_ROPES; i++) free(model->rope_freq[i]);
    free(model);
}

/* -- slots ----------------------------------------------------------------- */

bool bon_model_has(const bon_model *model, bon_slot slot)
{
    const bon_arch *a = &model->arch;
    switch (slot) {
    case BON_HEAD: return !a->tied;
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
    *cols = 1;
    switch (slot) {
    case BON_EMBED: case BON_HEAD: *rows = a->vocab; *cols = a->hidden; break;
    case BON_Q: *rows = q_width(a); *cols = a->hidden; break;
    case BON_K: case BON_V: *rows = kv_width(a); *cols = a->hidden; break;
    case BON_O: *rows = a->hidden; *cols = q_width(a); break;
    case BON_GATE: case BON_UP: *rows = a->intermediate; *cols = a->hidden; break;
    case BON_DOWN: *rows = a->hidden; *cols = a->intermediate; break;
    case BON_Q_BIAS: *rows = q_width(a); break;
    case BON_K_BIAS: case BON_V_BIAS: *rows = kv_width(a); break;
    case BON_GATE_BIAS: case BON_UP_BIAS: *rows = a->intermediate; break;
    case BON_Q_NORM: case BON_K_NORM: *rows = a->head_dim; break;
    default: *rows = a->hidden; break;
    }
}

/* Where a slot lives: a matrix and the output it starts at, or a vector. */
typedef struct {
    bon_matrix *matrix;
    size_t first;
    float *vector;
} place;

static place place_of(const bon_model *m, bon_slot slot, size_t layer)
{
    const bon_arch *a = &m->arch;
    const layer_weights *l = &m->layers[layer];
    const size_t k = q_width(a), v = k + kv_width(a), up = a->intermediate;
    switch (slot) {
    case BON_EMBED: return (place){.matrix = m->embed};
    case BON_HEAD: return (place){.matrix = m->head};
    case BON_FINAL_NORM: return (place){.vector = m->final_norm};
    case BON_Q: return (place){.matrix = l->qkv};
    case BON_K: return (place){.matrix = l->qkv, .first = k};
    case BON_V: return (place){.matrix = l->qkv, .first = v};
    case BON_O: return (place){.matrix = l->o};
    case BON_GATE: return (place){.matrix = l->gate_up};
    case BON_UP: return (place){.matrix = l->gate_up, .first = up};
    case BON_DOWN: return (place){.matrix = l->down};
    case BON_Q_BIAS: return (place){.vector = l->qkv_bias};
    case BON_K_BIAS: return (place){.vector = l->qkv_bias + k};
    case BON_V_BIAS: return (place){.vector = l->qkv_bias + v};
    case BON_O_BIAS: return (place){.vector = l->o_bias};
    case BON_GATE_BIAS: return (place){.vector = l->gate_up_bias};
    case BON_UP_BIAS: return (place){.vector = l->gate_up_bias + up};
    case BON_DOWN_BIAS: return (place){.vector = l->down_bias};
    case BON_Q_NORM: return (place){.vector = l->q_norm};
    case BON_K_NORM: return (place){.vector = l->k_norm};
    case BON_ATTN_NORM: return (place){.vector = l->attn_norm};
    case BON_ATTN_POST_NORM: return (place){.vector = l->attn_post_norm};
    case BON_MLP_NORM: return (place){.vector = l->mlp_norm};
    case BON_MLP_POST_NORM: return (place){.vector = l->mlp_post_norm};
    case BON_SLOTS: break;
    }
    return (place){0};
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

bon_status bon_model_set(bon_model *model, bon_slot slot, size_t layer, const void *data,
                         bon_dtype dtype)
{
    if ((unsigned)slot >= BON_SLOTS || !bon_model_has(model, slot)
        || layer >= (bon_slot_of_layer(slot) ? model->arch.layers : 1))
        return BON_ERR_DOMAIN;
    size_t rows, cols;
    bon_model_shape(model, slot, &rows, &cols);
    const place at = place_of(model, slot, layer);
    if (at.matrix) {
        const bon_status status =
            bon_matrix_fill(at.matrix, at.first, data, dtype, rows, model->threads);
        if (status != BON_OK) return status;
    } else {
        for (size_t i = 0; i < rows; i++) at.vector[i] = element(data, dtype, i);
    }
    *(bon_slot_of_layer(slot) ? &model->layers[layer].is_set : &model->is_set) |= 1u << slot;
    return BON_OK;
}

bool bon_model_missing(const bon_model *model, bon_slot *slot, size_t *layer)
{
    for (int s = 0; s < BON_SLOTS; s++) {
        const bool of_layer = bon_slot_of_layer((bon_slot)s);
        if (!bon_model_has(model, (bon_slot)s)) continue;
        for (size_t l = 0; l < (of_layer ? model->arch.layers : 1); l++) {
            const uint32_t is_set = of_layer ? model->layers[l].is_set : model->is_set;
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
    static const char *const names[] = {"qkv", "o", "gate_up", "down", "head", "embed"};
    if (i < 4 * model->arch.layers) {
        layer_weights *l = &model->layers[i / 4];
        bon_matrix *const matrices[] = {l->qkv, l->o, l->gate_up, l->down};
        *name = names[i % 4];
        return matrices[i % 4];
    }
    i -= 4 * model->arch.layers;
    if (i == 1 && model->head == model->embed) return NULL;
    *name = i < 2 ? names[4 + i] : NULL;
    return i == 0 ? model->head : i == 1 ? model->embed : NULL;
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

/* -- workspace ------------------------------------------------------------- */

struct bon_work {
    const bon_model *model;
    int threads;
    size_t bytes;   /* of memory */
    size_t rows, runs, context;
    char *memory;   /* all of the below, 64-byte aligned */
    float *x;       /* [rows, hidden] the residual stream */
    float *h;       /* [rows, hidden] what a block reads or adds */
    float *qkv;     /* [rows, qkv_width] */
    float *q;       /* [rows, q_width] queries after rope; then attention's output */
    float *mlp;     /* [rows, 2*intermediate] gate | up */
    float *turns;   /* [rows, ropes, head_dim] cos | sin */
    size_t *positions; /* [rows] */
    size_t *run_of;    /* [rows] */
    void *attention;
};

bon_status bon_work_create(const bon_model *model, int threads, bon_work **out)
{
    *out = calloc(1, sizeof **out);
    if (*out == NULL) return BON_ERR_MEMORY;
    (*out)->model = model;
    (*out)->threads = threads;
    return BON_OK;
}

void bon_work_destroy(bon_work *work)
{
    if (work == NULL) return;
    free(work->memory);
    free(work);
}

/* Lays the parts out one behind the other in work->memory (or only counts). */
static size_t lay_out(bon_work *work, const bon_model *model, size_t rows, size_t runs,
                      size_t context)
{
    const bon_arch *a = &model->arch;
    struct { void **part; size_t bytes; } parts[] = {
        {(void **)&work->x, rows * a->hidden * sizeof(float)},
        {(void **)&work->h, rows * a->hidden * sizeof(float)},
        {(void **)&work->qkv, rows * qkv_width(a) * sizeof(float)},
        {(void **)&work->q, rows * q_width(a) * sizeof(float)},
        {(void **)&work->mlp, rows * 2 * a->intermediate * sizeof(float)},
        {(void **)&work->turns, rows * a->ropes * a->head_dim * sizeof(float)},
        {(void **)&work->positions, rows * sizeof(size_t)},
        {(void **)&work->run_of, rows * sizeof(size_t)},
        {&work->attention, bon_attention_scratch(a, rows, runs, context, work->threads)},
    };
    size_t at = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (work->memory) *parts[i].part = work->memory + at;
        at += (parts[i].bytes + 63) / 64 * 64;
    }
    return at;
}

size_t bon_work_bytes(const bon_model *model, size_t rows, size_t runs, size_t context)
{
    bon_work none = {.threads = model->threads};
    return lay_out(&none, model, rows, runs, context);
}

bon_status bon_work_reserve(bon_work *work, size_t rows, size_t runs, size_t context)
{
    if (rows <= work->rows && runs <= work->runs && context <= work->context) return BON_OK;
    if (rows < work->rows) rows = work->rows;
    if (runs < work->runs) runs = work->runs;
    if (context < work->context) context = work->context;
    if (rows > MAX_DIMENSION || bon_attention_scratch(&work->model->arch, rows, runs, context,
                                                      work->threads) == 0)
        return BON_ERR_MEMORY;
    bon_work none = {.threads = work->threads};
    char *memory = aligned_alloc(64, lay_out(&none, work->model, rows, runs, context));
    if (memory == NULL) return BON_ERR_MEMORY;
    free(work->memory);
    work->memory = memory;
    lay_out(work, work->model, rows, runs, context);
    work->rows = rows;
    work->runs = runs;
    work->context = context;
    return BON_OK;
}

/* -- steps of the forward pass --------------------------------------------- */

static void norm_rows(const bon_arch *a, float *y, const float *x, const float *weight,
                      size_t rows, int threads)
{
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * a->hidden > BON_PARALLEL_ABOVE)
    for (size_t r = 0; r < rows; r++)
        bon_vec_rmsnorm(y + r * a->hidden, x + r * a->hidden, weight, a->hidden, a->norm_eps,
                        a->norm_offset);
}

static void add_bias(float *y, const float *bias, size_t rows, size_t width)
{
    if (bias == NULL) return;
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < width; i++) y[r * width + i] += bias[i];
}

/* x += h, where h went through the block's post-norm if there is one. */
static void add_residual(const bon_arch *a, float *x, float *h, const float *post_norm,
                         size_t rows, int threads)
{
    if (post_norm) norm_rows(a, h, h, post_norm, rows, threads);
    for (size_t i = 0; i < rows * a->hidden; i++) x[i] += h[i];
}

/* cos and sin of every row's angles. The angle is rounded to float32 before the
 * functions are taken, as PyTorch does: at position 8000 that is visible. */
static void find_turns(const bon_arch *a, const size_t *positions, size_t rows, float *turns,
                       int threads)
{
    const size_t half = a->head_dim / 2;
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * half * 16 > BON_PARALLEL_ABOVE)
    for (size_t r = 0; r < rows; r++)
        for (size_t t = 0; t < a->ropes; t++) {
            float *to = turns + (r * a->ropes + t) * a->head_dim;
            for (size_t i = 0; i < half; i++) {
                const float angle = (float)positions[r] * a->rope_freq[t][i];
                to[i] = cosf(angle) * a->rope_scale[t];
                to[half + i] = sinf(angle) * a->rope_scale[t];
            }
        }
}

static void turn(float *head, const float *cos_sin, size_t dim)
{
    const size_t half = dim / 2;
    for (size_t i = 0; i < half; i++) {
        const float c = cos_sin[i], s = cos_sin[half + i], lo = head[i], hi = head[half + i];
        head[i] = lo * c - hi * s;
        head[half + i] = hi * c + lo * s;
    }
}

/* Splits a row of q|k|v: normalises and turns q and k, leaves q in the
 * workspace and k, v in the cache. */
static void place_qkv(const bon_model *model, const layer_weights *w, size_t layer,
                      bon_work *work, bon_cache *cache, const bon_run *runs, size_t row)
{
    const bon_arch *a = &model->arch;
    const size_t dim = a->head_dim;
    const bon_run *run = &runs[work->run_of[row]];
    const float *cos_sin = work->turns + (row * a->ropes + a->rope[layer]) * dim;
    float *qkv = work->qkv + row * qkv_width(a);
    for (size_t head = 0; head < a->heads + a->kv_heads; head++) {
        float *at = qkv + head * dim;
        const float *norm = head < a->heads ? w->q_norm : w->k_norm;
        if (norm) bon_vec_rmsnorm(at, at, norm, dim, a->norm_eps, a->norm_offset);
        turn(at, cos_sin, dim);
    }
    memcpy(work->q + row * q_width(a), qkv, q_width(a) * sizeof(float));
    bon_cache_write(cache, run->own, run->own->length + (row - run->first_row), layer,
                    qkv + q_width(a), qkv + q_width(a) + kv_width(a));
}

static void gate(const bon_arch *a, float *mlp, size_t rows, int threads)
{
    const size_t width = a->intermediate;
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * width > BON_PARALLEL_ABOVE / 4)
    for (size_t r = 0; r < rows; r++) {
        float *at = mlp + r * 2 * width;
        if (a->activation == BON_SILU) bon_vec_silu_mul(at, at + width, width);
        else bon_vec_gelu_tanh_mul(at, at + width, width);
    }
}

static size_t index_rows(bon_work *work, const bon_run *runs, size_t n_runs, size_t *context)
{
    size_t rows = 0;
    *context = 0;
    for (size_t r = 0; r < n_runs; r++) {
        const size_t position = bon_run_position(&runs[r]);
        for (size_t i = 0; i < runs[r].rows; i++, rows++) {
            work->positions[rows] = position + i;
            work->run_of[rows] = r;
        }
        if (position + runs[r].rows > *context) *context = position + runs[r].rows;
    }
    return rows;
}

/* -- the forward pass ------------------------------------------------------ */

/* One product between two looks at the poll; leaves through `done`. */
#define PRODUCT(matrix, from, from_width, to, to_width)                                   \
    do {                                                                                  \
        if (bon_should_stop(poll)) return BON_ERR_INTERRUPTED;                            \
        const bon_status product_status = bon_matrix_multiply(                            \
            (matrix), phase, (from), rows, (from_width), (to), (to_width), threads);      \
        if (product_status != BON_OK) return product_status;                              \
    } while (0)

bon_status bon_model_forward(const bon_model *model, bon_work *work, bon_cache *cache,
                             bon_phase phase, const int32_t *tokens, const bon_run *runs,
                             size_t n_runs, const bon_poll *poll, const float **hidden)
{
    const bon_arch *a = &model->arch;
    const int threads = work->threads;
    size_t context;
    const size_t rows = index_rows(work, runs, n_runs, &context);
    float *const x = work->x, *const h = work->h;

    for (size_t r = 0; r < rows; r++) {
        bon_matrix_row(model->embed, (size_t)tokens[r], x + r * a->hidden);
        if (a->embed_scale != 1.0f) bon_vec_scale(x + r * a->hidden, a->hidden, a->embed_scale);
    }
    find_turns(a, work->positions, rows, work->turns, threads);

    for (size_t l = 0; l < a->layers; l++) {
        const layer_weights *w = &model->layers[l];

        /* attention: x += o(attend(qkv(norm(x)))) */
        norm_rows(a, h, x, w->attn_norm, rows, threads);
        PRODUCT(w->qkv, h, a->hidden, work->qkv, qkv_width(a));
        add_bias(work->qkv, w->qkv_bias, rows, qkv_width(a));
#pragma omp parallel for num_threads(threads) \
    if (threads > 1 && rows * qkv_width(a) > BON_PARALLEL_ABOVE / 4)
        for (size_t r = 0; r < rows; r++) place_qkv(model, w, l, work, cache, runs, r);
        bon_attention(cache, a, l, runs, n_runs, work->q, work->q, work->attention, context,
                      threads);
        PRODUCT(w->o, work->q, q_width(a), h, a->hidden);
        add_bias(h, w->o_bias, rows, a->hidden);
        add_residual(a, x, h, w->attn_post_norm, rows, threads);

        /* MLP: x += down(act(gate(norm(x))) * up(norm(x))) */
        norm_rows(a, h, x, w->mlp_norm, rows, threads);
        PRODUCT(w->gate_up, h, a->hidden, work->mlp, 2 * a->intermediate);
        add_bias(work->mlp, w->gate_up_bias, rows, 2 * a->intermediate);
        gate(a, work->mlp, rows, threads);
        PRODUCT(w->down, work->mlp, 2 * a->intermediate, h, a->hidden);
        add_bias(h, w->down_bias, rows, a->hidden);
        add_residual(a, x, h, w->mlp_post_norm, rows, threads);
    }
    norm_rows(a, h, x, model->final_norm, rows, threads);

    for (size_t r = 0; r < n_runs; r++) runs[r].own->length += runs[r].rows;
    *hidden = h;
    return BON_OK;
}

#undef PRODUCT

bon_status bon_model_prefill(const bon_model *model, bon_work *work, bon_cache *cache,
                             const int32_t *tokens, size_t len, bon_seq *seq,
                             const bon_poll *poll, const float **hidden)
{
    bon_status status = bon_work_reserve(work, len < BON_CHUNK ? len : BON_CHUNK, 1, len);
    if (status == BON_OK) status = bon_seq_reserve(cache, seq, len);
    for (size_t at = 0; at < len && status == BON_OK; at += BON_CHUNK) {
        const bon_run run = {.own = seq, .rows = len - at < BON_CHUNK ? len - at : BON_CHUNK};
        status = bon_model_forward(model, work, cache, BON_PREFILL, tokens + at, &run, 1, poll,
                                   hidden);
    }
    return status;
}

bon_status bon_model_logits(const bon_model *model, bon_phase phase, const float *hidden,
                            size_t rows, float *logits, int threads)
{
    const bon_arch *a = &model->arch;
    const bon_status status = bon_matrix_multiply(model->head, phase, hidden, rows, a->hidden,
                                                  logits, a->vocab, threads);
    if (status == BON_OK && a->final_softcap > 0.0f) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (size_t r = 0; r < rows; r++)
            bon_vec_softcap(logits + r * a->vocab, a->vocab, a->final_softcap);
    }
    return status;
}
