/* forward.c - the forward pass.
 *
 * bon_forward_layer is the function to be understood: the order of its steps.
 * Everything that differs between architectures is a field of bon_arch; a step
 * that an architecture lacks is skipped by its field.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model_parts.h"
#include "pages.h"
#include "threads.h"
#include "vecmath.h"

/* -- workspace ------------------------------------------------------------- */

struct bon_work {
    const bon_model *model;
    int threads;
    size_t rows, context, rank; /* that there is room for */
    size_t bytes;
    char *memory;    /* [bytes] all of the below, 64-byte aligned */
    float *x;        /* [rows, hidden] the residual stream */
    float *normed;   /* [rows, hidden] what a block reads or adds */
    float *qkv;      /* [rows, qkv_width] */
    float *attended; /* [rows, q_width] */
    float *mlp;      /* [rows, 2*intermediate] gate | up */
    float *turns;    /* [rows, ropes, head_dim] cos | sin */
    size_t *positions; /* [rows] */
    float *low;        /* [2][rows, rank] of adapters */
    float *lift;       /* [rows, widest input or output of a product with one] */
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
    bon_pages_free(work->memory, work->bytes);
    free(work);
}

/* The most outputs that an adapter has, or inputs. */
static size_t widest(const bon_arch *a)
{
    const size_t widths[] = {bon_q_width(a), bon_kv_width(a), a->intermediate, a->hidden};
    size_t most = 0;
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        if (widths[i] > most) most = widths[i];
    return most;
}

/* Lays the parts out one behind the other in work->memory (or only counts). */
static size_t lay_out(bon_work *work, const bon_model *model, size_t rows, size_t context)
{
    const bon_arch *a = &model->arch;
    struct { void **part; size_t bytes; } parts[] = {
        {(void **)&work->x, rows * a->hidden * sizeof(float)},
        {(void **)&work->normed, rows * a->hidden * sizeof(float)},
        {(void **)&work->qkv, rows * bon_qkv_width(a) * sizeof(float)},
        {(void **)&work->attended, rows * bon_q_width(a) * sizeof(float)},
        {(void **)&work->mlp, rows * 2 * a->intermediate * sizeof(float)},
        {(void **)&work->turns, rows * a->ropes * a->head_dim * sizeof(float)},
        {(void **)&work->positions, rows * sizeof(size_t)},
        {(void **)&work->low, 2 * rows * model->rank * sizeof(float)},
        {(void **)&work->lift, (model->rank > 0 ? rows * widest(a) : 0) * sizeof(float)},
        {&work->attention, bon_attention_scratch(a, rows, context, work->threads)},
    };
    size_t at = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (work->memory) *parts[i].part = work->memory + at;
        at += (parts[i].bytes + 63) / 64 * 64;
    }
    return at;
}

size_t bon_work_bytes(const bon_model *model, size_t rows, size_t context)
{
    bon_work none = {.threads = model->threads};
    return lay_out(&none, model, rows, context);
}

bon_status bon_work_reserve(bon_work *work, size_t rows, size_t context)
{
    if (rows <= work->rows && context <= work->context
        && work->model->rank <= work->rank)
        return BON_OK;
    if (rows < work->rows) rows = work->rows;
    if (context < work->context) context = work->context;
    if (rows > BON_MAX_DIMENSION
        || bon_attention_scratch(&work->model->arch, rows, context, work->threads) == 0)
        return BON_ERR_MEMORY;
    bon_work none = {.threads = work->threads};
    const size_t bytes = lay_out(&none, work->model, rows, context);
    char *memory = bon_pages_alloc(bytes);
    if (memory == NULL) return BON_ERR_MEMORY;
    bon_pages_free(work->memory, work->bytes);
    work->memory = memory;
    work->bytes = bytes;
    lay_out(work, work->model, rows, context);
    work->rows = rows;
    work->context = context;
    work->rank = work->model->rank;
    return BON_OK;
}

bon_adapter_scratch bon_work_adapters(const bon_work *work)
{
    float *const d_low = work->low + work->rows * work->rank;
    return (bon_adapter_scratch){.low = work->low, .d_low = d_low, .lift = work->lift};
}

bon_results bon_work_results(const bon_work *work)
{
    return (bon_results){
        .x = work->x, .qkv = work->qkv, .turned = work->qkv, .attended = work->attended,
        .o = work->normed, .middle = work->x, .gate_up = work->mlp, .gated = work->mlp,
        .down = work->normed, .out = work->x};
}

/* -- steps of the forward pass --------------------------------------------- */

void bon_norm_rows(const bon_arch *a, float *y, const float *x, const float *weight,
                   size_t rows, int threads)
{
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * a->hidden > BON_PARALLEL_ABOVE)
    for (size_t r = 0; r < rows; r++)
        bon_vec_rmsnorm(y + r * a->hidden, x + r * a->hidden, weight, a->hidden, a->norm_eps,
                        a->norm_offset);
}

/* to [rows, outputs] = from [rows, ld] W^T + b. */
static bon_status project(const bon_pass *pass, const bon_linear *linear, const float *from,
                          size_t ld, float *to)
{
    if (bon_should_stop(pass->poll)) return BON_ERR_INTERRUPTED;
    if (pass->work->rank < pass->model->rank) return BON_ERR_DOMAIN;
    const size_t outputs = bon_matrix_outputs(linear->weight);
    bon_status status = bon_matrix_multiply(linear->weight, pass->phase, from, pass->rows, ld, to,
                                            outputs, pass->work->threads);
    if (status == BON_OK && linear->bias)
        for (size_t r = 0; r < pass->rows; r++)
            for (size_t i = 0; i < outputs; i++) to[r * outputs + i] += linear->bias[i];
    const bon_adapter_scratch scratch = bon_work_adapters(pass->work);
    for (size_t i = 0; i < BON_ADAPTERS && status == BON_OK; i++)
        if (linear->adapters[i].a)
            status = bon_adapter_add(&linear->adapters[i], pass->phase, from, pass->rows, ld, to,
                                     outputs, &scratch, pass->work->threads);
    return status;
}

/* to = x + h, where h goes through the block's post-norm if there is one. */
static void add_residual(const bon_pass *pass, float *to, const float *x, const float *h,
                         const float *post_norm)
{
    const bon_arch *a = &pass->model->arch;
    if (post_norm) {
        bon_norm_rows(a, pass->work->normed, h, post_norm, pass->rows, pass->work->threads);
        h = pass->work->normed;
    }
    const size_t hidden = a->hidden;
    const int threads = pass->work->threads;
#pragma omp parallel for num_threads(threads) \
    if (threads > 1 && pass->rows * hidden > BON_PARALLEL_ABOVE)
    for (size_t r = 0; r < pass->rows; r++)
        for (size_t i = r * hidden; i < (r + 1) * hidden; i++) to[i] = x[i] + h[i];
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

const float *bon_turns_of(const bon_pass *pass, size_t layer, size_t row)
{
    const bon_arch *a = &pass->model->arch;
    return pass->work->turns + (row * a->ropes + a->rope[layer]) * a->head_dim;
}

void bon_turn_rows(const bon_pass *pass, size_t layer, const float *qkv, float *turned)
{
    const bon_arch *a = &pass->model->arch;
    const bon_layer *w = &pass->model->layers[layer];
    const size_t dim = a->head_dim, width = bon_qkv_width(a);
    const int threads = pass->work->threads;
#pragma omp parallel for num_threads(threads) \
    if (threads > 1 && pass->rows * width > BON_PARALLEL_ABOVE / 4)
    for (size_t r = 0; r < pass->rows; r++) {
        float *to = turned + r * width;
        if (turned != qkv) memcpy(to, qkv + r * width, width * sizeof *to);
        for (size_t head = 0; head < a->heads + a->kv_heads; head++) {
            float *at = to + head * dim;
            const float *norm = head < a->heads ? w->q_norm : w->k_norm;
            if (norm) bon_vec_rmsnorm(at, at, norm, dim, a->norm_eps, a->norm_offset);
            turn(at, bon_turns_of(pass, layer, r), dim);
        }
    }
}

void bon_gate_rows(const bon_arch *a, const float *gate_up, float *to, size_t ld, size_t rows,
                   int threads)
{
    const size_t width = a->intermediate;
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * width > BON_PARALLEL_ABOVE / 4)
    for (size_t r = 0; r < rows; r++) {
        const float *from = gate_up + r * 2 * width;
        float *at = to + r * ld;
        if (at != from) memcpy(at, from, width * sizeof *at);
        if (a->activation == BON_SILU) bon_vec_silu_mul(at, from + width, width);
        else bon_vec_gelu_tanh_mul(at, from + width, width);
    }
}

static size_t index_rows(bon_work *work, const bon_run *runs, size_t n_runs, size_t *context)
{
    size_t rows = 0;
    *context = 0;
    for (size_t r = 0; r < n_runs; r++) {
        const size_t position = bon_run_position(&runs[r]);
        for (size_t i = 0; i < runs[r].rows; i++) work->positions[rows++] = position + i;
        if (position + runs[r].rows > *context) *context = position + runs[r].rows;
    }
    return rows;
}

/* -- the forward pass ------------------------------------------------------ */

void bon_forward_begin(bon_pass *pass, const int32_t *tokens, float *x)
{
    const bon_arch *a = &pass->model->arch;
    bon_work *work = pass->work;
    pass->rows = index_rows(work, pass->runs, pass->n_runs, &pass->context);
#pragma omp parallel for num_threads(work->threads) \
    if (work->threads > 1 && pass->rows * a->hidden > BON_PARALLEL_ABOVE / 4)
    for (size_t r = 0; r < pass->rows; r++) {
        bon_matrix_row(pass->model->embed, (size_t)tokens[r], x + r * a->hidden);
        if (a->embed_scale != 1.0f) bon_vec_scale(x + r * a->hidden, a->hidden, a->embed_scale);
    }
    find_turns(a, work->positions, pass->rows, work->turns, work->threads);
}

/* Attention multiplies as the product before it does, where cache and machine allow that. */
static bool multiplies_pairs(const bon_pass *pass, const bon_layer *layer)
{
    return bon_cache_dtype(pass->cache) == BON_BF16
           && bon_matrix_route(layer->qkv.weight, pass->phase) == BON_ROUTE_DOT
           && bon_route_available(BON_ROUTE_DOT, BON_BF16);
}

bon_status bon_forward_layer(const bon_pass *pass, size_t layer, const bon_results *at)
{
    const bon_arch *a = &pass->model->arch;
    const bon_layer *w = &pass->model->layers[layer];
    const size_t rows = pass->rows, hidden = a->hidden;
    float *const h = pass->work->normed;
    const int threads = pass->work->threads;
    bon_status status;

    /* attention: middle = x + o(attend(qkv(norm(x)))) */
    bon_norm_rows(a, h, at->x, w->attn_norm, rows, threads);
    if ((status = project(pass, &w->qkv, h, hidden, at->qkv)) != BON_OK) return status;
    bon_turn_rows(pass, layer, at->qkv, at->turned);
    bon_attention(pass->cache, multiplies_pairs(pass, w), a, layer, pass->runs, pass->n_runs,
                  at->turned, at->attended, pass->work->attention, pass->context, threads);
    status = project(pass, &w->o, at->attended, bon_q_width(a), at->o);
    if (status != BON_OK) return status;
    add_residual(pass, at->middle, at->x, at->o, w->attn_post_norm);

    /* MLP: out = middle + down(act(gate(norm(middle))) * up(norm(middle))) */
    bon_norm_rows(a, h, at->middle, w->mlp_norm, rows, threads);
    if ((status = project(pass, &w->gate_up, h, hidden, at->gate_up)) != BON_OK) return status;
    const size_t ld = at->gated == at->gate_up ? 2 * a->intermediate : a->intermediate;
    bon_gate_rows(a, at->gate_up, at->gated, ld, rows, threads);
    if ((status = project(pass, &w->down, at->gated, ld, at->down)) != BON_OK) return status;
    add_residual(pass, at->out, at->middle, at->down, w->mlp_post_norm);
    return BON_OK;
}

bon_status bon_model_forward(const bon_model *model, bon_work *work, bon_cache *cache,
                             bon_phase phase, const int32_t *tokens, const bon_run *runs,
                             size_t n_runs, const bon_poll *poll, const float **hidden)
{
    bon_pass pass = {.model = model, .work = work, .cache = cache, .phase = phase, .runs = runs,
                     .n_runs = n_runs, .poll = poll};
    const bon_results at = bon_work_results(work);
    bon_forward_begin(&pass, tokens, at.x);
    for (size_t l = 0; l < model->arch.layers; l++) {
        const bon_status status = bon_forward_layer(&pass, l, &at);
        if (status != BON_OK) return status;
    }
    bon_norm_rows(&model->arch, work->normed, work->x, model->final_norm, pass.rows,
                  work->threads);

    for (size_t r = 0; r < n_runs; r++) runs[r].own->length += runs[r].rows;
    *hidden = work->normed;
    return BON_OK;
}

/* Multiply-adds of the longest product that more rows than BON_CHUNK may make: some 20 ms at 200
 * GFLOP/s. */
#define PREFILL_WORK ((size_t)1 << 31)
#define MOST_PREFILL_ROWS 256

size_t bon_model_prefill_rows(const bon_model *model)
{
    const bon_arch *a = &model->arch;
    const size_t rows = PREFILL_WORK / (2 * a->intermediate * a->hidden);
    if (rows <= BON_CHUNK) return BON_CHUNK;
    return rows < MOST_PREFILL_ROWS ? rows : MOST_PREFILL_ROWS;
}

bon_status bon_model_prefill(const bon_model *model, bon_work *work, bon_cache *cache,
                             const int32_t *tokens, size_t len, bon_seq *seq,
                             const bon_poll *poll, const float **last)
{
    const size_t most = bon_model_prefill_rows(model);
    bon_status status = bon_work_reserve(work, len < most ? len : most, len);
    if (status == BON_OK) status = bon_seq_reserve(cache, seq, len);
    for (size_t at = 0; at < len && status == BON_OK; at += most) {
        const bon_run run = {.own = seq, .rows = len - at < most ? len - at : most};
        const float *hidden;
        status = bon_model_forward(model, work, cache, BON_PREFILL, tokens + at, &run, 1, poll,
                                   &hidden);
        if (status == BON_OK) *last = hidden + (run.rows - 1) * model->arch.hidden;
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

void bon_model_scores(const bon_model *model, const float *hidden, size_t rows, float *scores)
{
    const bon_arch *a = &model->arch;
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < a->labels; i++)
            scores[r * a->labels + i] = (float)bon_vec_dot(
                hidden + r * a->hidden, model->score + i * a->hidden, a->hidden);
}
