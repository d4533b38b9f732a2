/* backward.c - the forward pass mirrored: same steps, same names, last one first.
 *
 * backward_layer is the function to be understood; it reads beside
 * bon_forward_layer. In it, `g` is the gradient of the residual stream: of a layer's
 * out when it begins, of its x when it ends.
 */
#include "backward.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model_parts.h"
#include "threads.h"
#include "vecmath.h"

#define PART_ROWS 2048                /* rows of a part; one tree may have more */
#define LOGIT_BYTES ((size_t)64 << 20) /* of logits at a time, about */
#define LOGIT_ROWS 16                 /* and at least so many rows */
#define LOGIT_BLOCK 512               /* rows of logits where there is room: the gradient of */
                                      /* the head is read and written for every block */
#define COLUMNS 32                    /* that a thread sums at a time */

/* What a forward pass of one model over a part writes to. */
typedef struct {
    bon_work *work;
    bon_cache *cache; /* of one layer (cache.h) */
    size_t blocks;
} pass_tools;

/* A part's texts as the runs of one pass. */
typedef struct {
    bon_run *runs;    /* [n_runs] */
    bon_seq *own;     /* [n_runs] */
    bon_seq *prompts; /* [n_trees] views: the prompt's blocks with its full length */
} pass_runs;

/* The gradient of the embedding, summed over all rows of a batch for each token in it and
 * added behind the last part: a tied head adds to the same array part by part. */
typedef struct {
    int32_t *place_of; /* [vocab] a token's place, or -1 */
    int32_t *tokens;   /* [places] */
    float *sums;       /* [places, hidden] */
    size_t places, room; /* 0 places: the gradient is not asked for */
} embed_sums;

struct bon_backward {
    const bon_model *model;
    int threads;
    size_t memory;
    bon_matrix *qkv, *o, *gate_up, *down, *head; /* transposed; head: NULL with labels */
    pass_tools own;
    const bon_model *reference; /* or NULL */
    pass_tools other;           /* the reference's */
    embed_sums embed;
    char *arena; /* what a part needs, laid out by lay_out */
    size_t arena_bytes;
};

/* A part of the batch: whole trees, as the runs of one forward pass. */
typedef struct {
    const bon_tree *source;          /* the part's trees in the batch */
    size_t n_trees, n_runs, rows, context, blocks;
    size_t first_row;                /* in the batch */
    size_t first_target, targets;    /* of the batch */
    size_t target_rows;              /* rows that have targets */
    size_t logit_rows;               /* of them at a time */
    size_t kept;                     /* layers whose results are kept; the last ones, >= 1 */

    bon_tree *trees;   /* [n_trees], rows counted from the part's first */
    pass_runs own, other; /* other: of the reference */
    bool compares;        /* the batch asks for divergences from it */

    float *x;          /* [layers + 1][rows, hidden] the stream before each layer */
    float *results;    /* [kept][results_floats] */
    float *g;          /* [rows, hidden] */
    float *dh;         /* [rows, hidden] gradient of what a block reads or adds */
    float *wide;       /* [rows, max(qkv_width, 2*intermediate)] gradients of projections */
    float *narrow;     /* [rows, max(q_width, intermediate)] and of what o and down read */
    float *inverse;    /* [rows * heads] 1 / root mean square */
    float *logits;     /* [logit_rows, vocab] */
    float *slopes;     /* the same, where logits are soft-capped */
    float *others;     /* the same, of the reference */
    float *other_picked; /* [logit_rows, hidden of the reference] */
    float *picked;     /* [logit_rows, hidden] */
    float *d_picked;   /* [logit_rows, hidden] */
    size_t *picked_row; /* [logit_rows + 1] */
    void *attention, *gradient;
} part;

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }
static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* -- life ------------------------------------------------------------------ */

static bon_status make_transposed(const bon_matrix *matrix, bon_dtype dtype, bon_matrix **out)
{
    return bon_matrix_create(bon_matrix_inputs(matrix), bon_matrix_outputs(matrix), dtype, out);
}

bon_status bon_backward_create(const bon_model *model, size_t memory, bon_backward **out)
{
    *out = NULL;
    bon_backward *b = calloc(1, sizeof *b);
    if (b == NULL) return BON_ERR_MEMORY;
    b->model = model;
    b->threads = model->threads;
    b->memory = memory;
    const bon_layer *l = &model->layers[0];
    const bon_dtype dtype = model->dtype;
    bon_status status = bon_work_create(model, b->threads, &b->own.work);
    if (status == BON_OK) status = make_transposed(l->qkv.weight, dtype, &b->qkv);
    if (status == BON_OK) status = make_transposed(l->o.weight, dtype, &b->o);
    if (status == BON_OK) status = make_transposed(l->gate_up.weight, dtype, &b->gate_up);
    if (status == BON_OK) status = make_transposed(l->down.weight, dtype, &b->down);
    if (status == BON_OK && model->head) status = make_transposed(model->head, dtype, &b->head);
    b->embed.place_of = malloc(model->arch.vocab * sizeof *b->embed.place_of);
    if (status == BON_OK && !b->embed.place_of) status = BON_ERR_MEMORY;
    if (status == BON_OK) *out = b;
    else bon_backward_destroy(b);
    return status;
}

static void free_tools(pass_tools *tools)
{
    bon_work_destroy(tools->work);
    bon_cache_destroy(tools->cache);
    *tools = (pass_tools){0};
}

void bon_backward_destroy(bon_backward *b)
{
    if (b == NULL) return;
    bon_matrix *const matrices[] = {b->qkv, b->o, b->gate_up, b->down, b->head};
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++)
        bon_matrix_destroy(matrices[i]);
    free_tools(&b->own);
    free_tools(&b->other);
    free(b->embed.place_of);
    free(b->embed.tokens);
    free(b->embed.sums);
    free(b->arena);
    free(b);
}

bon_status bon_backward_set_reference(bon_backward *b, const bon_model *reference)
{
    const bon_arch *a = &b->model->arch, *r = &reference->arch;
    if (a->labels > 0 || r->labels > 0 || r->vocab != a->vocab
        || r->max_positions < a->max_positions)
        return BON_ERR_DOMAIN;
    free_tools(&b->other);
    b->reference = NULL;
    const bon_status status = bon_work_create(reference, b->threads, &b->other.work);
    if (status == BON_OK) b->reference = reference;
    return status;
}

/* -- batches --------------------------------------------------------------- */

static const char *fault_of_trees(const bon_model *model, const bon_batch *batch, size_t *rows,
                                  size_t *index, long *found)
{
    const size_t limit = model->arch.max_positions;
    *rows = 0;
    for (size_t t = 0; t < batch->n_trees; t++) {
        const bon_tree *tree = &batch->trees[t];
        *index = t;
        *found = (long)tree->prompt_rows;
        if (tree->prompt_rows < 1) return "a prompt needs at least one token";
        if (tree->prompt_rows > limit) return "a prompt must fit the model's context";
        *rows += tree->prompt_rows;
        for (size_t i = 0; i < tree->branches; i++) {
            *found = (long)tree->branch_rows[i];
            if (tree->branch_rows[i] > limit - tree->prompt_rows)
                return "a prompt and its completion must fit the model's context";
            *rows += tree->branch_rows[i];
        }
    }
    return NULL;
}

const char *bon_batch_fault(const bon_model *model, const bon_batch *batch, size_t *index,
                            long *found)
{
    const bon_arch *a = &model->arch;
    const size_t kinds = a->labels > 0 ? a->labels : a->vocab;
    size_t rows;
    const char *fault = fault_of_trees(model, batch, &rows, index, found);
    for (size_t r = 0; fault == NULL && r < rows; r++) {
        *index = r;
        *found = batch->tokens[r];
        if (batch->tokens[r] < 0 || (size_t)batch->tokens[r] >= a->vocab)
            fault = "token ids must lie in the vocabulary";
    }
    for (size_t t = 0; fault == NULL && t < batch->targets; t++) {
        *index = t;
        *found = batch->target_token[t];
        if (batch->target_token[t] < 0 || (size_t)batch->target_token[t] >= kinds)
            return "targets must lie in the vocabulary, or be labels of the score head";
        *found = (long)batch->target_row[t];
        if (batch->target_row[t] >= rows
            || (t > 0 && batch->target_row[t] < batch->target_row[t - 1]))
            return "rows of targets must exist and ascend";
        *found = BON_NO_NUMBER;
        if (!isfinite(batch->target_weight[t])) return "weights must be finite";
        if (batch->target_probability
            && !(batch->target_probability[t] >= 0.0f && batch->target_probability[t] <= 1.0f))
            return "probabilities must lie in [0, 1]";
        if (batch->target_kl_weight && !isfinite(batch->target_kl_weight[t]))
            return "weights of the divergence must be finite";
    }
    return fault;
}

/* -- parts ----------------------------------------------------------------- */

static void count_tree(part *p, const bon_tree *tree)
{
    p->n_trees++;
    p->n_runs++;
    p->rows += tree->prompt_rows;
    p->context = larger(p->context, tree->prompt_rows);
    p->blocks += bon_blocks_for(tree->prompt_rows);
    for (size_t i = 0; i < tree->branches; i++) {
        const size_t rows = tree->branch_rows[i];
        p->n_runs += rows > 0;
        p->rows += rows;
        p->context = larger(p->context, tree->prompt_rows + rows);
        p->blocks += bon_blocks_for(rows);
    }
}

static void count_targets(part *p, const bon_batch *batch, size_t from)
{
    p->first_target = from;
    p->targets = p->target_rows = 0;
    for (size_t t = from; t < batch->targets
                          && batch->target_row[t] < p->first_row + p->rows; t++) {
        p->target_rows += p->targets == 0 || batch->target_row[t] != batch->target_row[t - 1];
        p->targets++;
    }
}

/* Floats that a layer leaves for the backward pass. */
static size_t results_floats(const bon_arch *a, size_t rows)
{
    const size_t width = bon_qkv_width(a) + bon_q_width(a) + a->hidden + 2 * a->intermediate;
    return rows * (width + (a->post_norms ? 2 * a->hidden : 0));
}

/* For the gradients of a weight, of which `transposed` is one, and of its adapters. */
static size_t gradient_scratch(const bon_backward *b, const bon_matrix *transposed)
{
    const size_t n = bon_matrix_inputs(transposed), k = bon_matrix_outputs(transposed);
    const size_t rank = b->model->rank, of_weight = bon_gradient_scratch(n, k, b->threads);
    if (rank == 0) return of_weight;
    return larger(of_weight, larger(bon_gradient_scratch(rank, k, b->threads),
                                    bon_gradient_scratch(n, rank, b->threads)));
}

/* Lays the arrays of a part out in `arena` (or only counts, where that is NULL). */
static size_t lay_out(const bon_backward *b, part *p, char *arena)
{
    const bon_arch *a = &b->model->arch;
    const size_t f = sizeof(float), rows = p->rows, hidden = rows * a->hidden * f;
    const size_t logits = b->head ? p->logit_rows * a->vocab * f : 0;
    size_t gradient = 0;
    const bon_matrix *const matrices[] = {b->qkv, b->o, b->gate_up, b->down, b->head};
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++)
        if (matrices[i]) gradient = larger(gradient, gradient_scratch(b, matrices[i]));
    struct { void **at; size_t bytes; } arrays[] = {
        {(void **)&p->trees, p->n_trees * sizeof *p->trees},
        {(void **)&p->own.runs, p->n_runs * sizeof(bon_run)},
        {(void **)&p->own.own, p->n_runs * sizeof(bon_seq)},
        {(void **)&p->own.prompts, p->n_trees * sizeof(bon_seq)},
        {(void **)&p->other.runs, p->compares * p->n_runs * sizeof(bon_run)},
        {(void **)&p->other.own, p->compares * p->n_runs * sizeof(bon_seq)},
        {(void **)&p->other.prompts, p->compares * p->n_trees * sizeof(bon_seq)},
        {(void **)&p->x, (a->layers + 1) * hidden},
        {(void **)&p->results, p->kept * results_floats(a, rows) * f},
        {(void **)&p->g, hidden},
        {(void **)&p->dh, hidden},
        {(void **)&p->wide, rows * larger(bon_qkv_width(a), 2 * a->intermediate) * f},
        {(void **)&p->narrow, rows * larger(bon_q_width(a), a->intermediate) * f},
        {(void **)&p->inverse, rows * a->heads * f},
        {(void **)&p->logits, logits},
        {(void **)&p->slopes, a->final_softcap > 0.0f ? logits : 0},
        {(void **)&p->others, p->compares ? logits : 0},
        {(void **)&p->other_picked,
         p->compares ? p->logit_rows * b->reference->arch.hidden * f : 0},
        {(void **)&p->picked, p->logit_rows * a->hidden * f},
        {(void **)&p->d_picked, p->logit_rows * a->hidden * f},
        {(void **)&p->picked_row, (p->logit_rows + 1) * sizeof *p->picked_row},
        {&p->attention, bon_attention_grad_scratch(a, p->source, p->n_trees, b->threads)},
        {&p->gradient, gradient},
    };
    size_t at = 0;
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        if (arena) *arrays[i].at = arena + at;
        at += (arrays[i].bytes + 63) / 64 * 64;
    }
    return at;
}

/* Of a pass of `model`: the workspace, keys and values of one layer. */
static size_t pass_bytes(const bon_model *model, const part *p)
{
    return bon_work_bytes(model, p->rows, p->context)
           + p->blocks * bon_model_block_bytes(model, 1);
}

/* All that a part takes, and the batch. SIZE_MAX if that overflows. */
static size_t bytes_of(const bon_backward *b, part *p)
{
    if (p->rows > BON_MAX_DIMENSION) return SIZE_MAX;
    return b->embed.places * b->model->arch.hidden * sizeof(float) + lay_out(b, p, NULL)
           + pass_bytes(b->model, p)
           + (p->compares ? pass_bytes(b->reference, p) : 0);
}

/* More rows of logits at a time, as far as the budget has room for them. */
static void widen_blocks(const bon_backward *b, part *p)
{
    part wider = *p;
    wider.logit_rows = smaller(LOGIT_BLOCK, p->target_rows);
    for (; wider.logit_rows > p->logit_rows; wider.logit_rows /= 2)
        if (bytes_of(b, &wider) <= b->memory) *p = wider;
}

/* The part of the trees from `first` on: as many as make PART_ROWS rows and fit with all
 * results kept; if not even one does, that one with as many layers kept as fit. */
static bon_status plan(const bon_backward *b, const bon_batch *batch, size_t first,
                       size_t first_target, part *p)
{
    const bon_arch *a = &b->model->arch;
    const size_t limit = larger(LOGIT_ROWS, LOGIT_BYTES / sizeof(float) / a->vocab);
    part next = {.source = &batch->trees[first], .first_row = batch->trees[first].first_row,
                 .kept = a->layers, .compares = batch->target_kl_weight != NULL};
    *p = next;
    for (size_t t = first; t < batch->n_trees; t++) {
        count_tree(&next, &batch->trees[t]);
        count_targets(&next, batch, first_target);
        next.logit_rows = larger(1, smaller(limit, next.target_rows));
        if (t > first && (next.rows > PART_ROWS || bytes_of(b, &next) > b->memory)) break;
        *p = next;
    }
    for (; bytes_of(b, p) > b->memory; p->kept--)
        if (p->kept == 1) return BON_ERR_FULL;
    widen_blocks(b, p);
    return BON_OK;
}

static void free_runs(const part *p, pass_tools *tools, pass_runs *texts)
{
    for (size_t r = 0; r < p->n_runs; r++) bon_seq_free(tools->cache, &texts->own[r]);
}

static void close_part(bon_backward *b, part *p)
{
    free_runs(p, &b->own, &p->own);
    if (p->compares) free_runs(p, &b->other, &p->other);
}

/* The trees as runs of one pass: a prompt's own sequence, and a view of it at full
 * length that its branches have as prefix. */
static bon_status make_runs(const part *p, pass_tools *tools, pass_runs *texts)
{
    size_t row = 0, n = 0;
    for (size_t t = 0; t < p->n_trees; t++) {
        const bon_tree *tree = &p->source[t];
        for (size_t i = 0; i <= tree->branches; i++) {
            const size_t rows = i == 0 ? tree->prompt_rows : tree->branch_rows[i - 1];
            if (rows == 0) continue;
            const bon_status status = bon_seq_reserve(tools->cache, &texts->own[n], rows);
            if (status != BON_OK) return status;
            if (i == 0) {
                texts->prompts[t] = texts->own[n];
                texts->prompts[t].length = rows;
            }
            texts->runs[n] = (bon_run){.prefix = i == 0 ? NULL : &texts->prompts[t],
                                       .own = &texts->own[n], .first_row = row, .rows = rows};
            row += rows;
            n++;
        }
    }
    return BON_OK;
}

/* Room for the pass of one model over a part, and its runs. */
static bon_status open_pass(const bon_model *model, const part *p, pass_tools *tools,
                            pass_runs *texts)
{
    memset(texts->own, 0, p->n_runs * sizeof *texts->own);
    bon_status status = bon_work_reserve(tools->work, p->rows, p->context);
    if (status == BON_OK && p->blocks > tools->blocks) {
        bon_cache_destroy(tools->cache);
        tools->blocks = 0;
        status = bon_model_create_cache(model, 1, p->blocks, &tools->cache);
        if (status == BON_OK) tools->blocks = p->blocks;
    }
    return status == BON_OK ? make_runs(p, tools, texts) : status;
}

/* Memory, caches and runs of a planned part. */
static bon_status open_part(bon_backward *b, part *p)
{
    const size_t bytes = lay_out(b, p, NULL);
    if (bytes > b->arena_bytes) {
        free(b->arena);
        b->arena_bytes = 0;
        if (!(b->arena = aligned_alloc(64, bytes))) return BON_ERR_MEMORY;
        b->arena_bytes = bytes;
    }
    lay_out(b, p, b->arena);
    for (size_t t = 0, row = 0; t < p->n_trees; t++) {
        p->trees[t] = p->source[t];
        p->trees[t].first_row = row;
        if (t + 1 < p->n_trees) row += p->source[t + 1].first_row - p->source[t].first_row;
    }
    bon_status status = open_pass(b->model, p, &b->own, &p->own);
    if (status != BON_OK) {
        free_runs(p, &b->own, &p->own);
        return status;
    }
    if (p->compares) status = open_pass(b->reference, p, &b->other, &p->other);
    if (status != BON_OK) close_part(b, p);
    return status;
}

/* Where a layer's results lie. Those that are not kept share the set of the first one that
 * is: forward they come before it, backward behind it. */
static bon_results results_of(const bon_backward *b, const part *p, size_t layer)
{
    const bon_arch *a = &b->model->arch;
    const size_t first_kept = a->layers - p->kept;
    const size_t set = layer < first_kept ? 0 : layer - first_kept;
    float *at = p->results + set * results_floats(a, p->rows);
    bon_results r = bon_work_results(b->own.work);
    r.turned = r.qkv; /* the workspace holds what is quickly made again */
    r.gated = r.gate_up;
    r.x = p->x + layer * p->rows * a->hidden;
    r.out = r.x + p->rows * a->hidden;
    struct { float **to; size_t width; } kept[] = {
        {&r.qkv, bon_qkv_width(a)}, {&r.attended, bon_q_width(a)}, {&r.middle, a->hidden},
        {&r.gate_up, 2 * a->intermediate},
        {&r.o, a->post_norms ? a->hidden : 0}, {&r.down, a->post_norms ? a->hidden : 0}};
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        if (kept[i].width) *kept[i].to = at;
        at += p->rows * kept[i].width;
    }
    return r;
}

/* -- sums over rows -------------------------------------------------------- */

/* to[i] += sum of y[row][i], one chain per column. */
static void add_column_sums(float *to, const float *y, size_t rows, size_t width, int threads)
{
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * width > BON_PARALLEL_ABOVE)
    for (size_t c = 0; c < width; c += COLUMNS)
        for (size_t r = 0; r < rows; r++)
            for (size_t i = c; i < smaller(c + COLUMNS, width); i++) to[i] += y[r * width + i];
}

/* Vectors that were normalised: `heads` of `width` floats in each row of `ld`. */
typedef struct {
    size_t rows, heads, width, ld;
} vectors;

static size_t place(const vectors *s, size_t v)
{
    return v / s->heads * s->ld + v % s->heads * s->width;
}

/* For y = x / rms(x) * (offset + w): dx becomes dy's gradient in x, or is increased by
 * it; dw too is added to. dy is used up. dx may be dy if it is not increased.
 *   inverse  [rows * heads] scratch */
static void norm_backward(const bon_arch *a, const vectors *s, const float *x, const float *w,
                          float *dy, float *dx, bool increase, float *dw, float *inverse,
                          int threads)
{
    const size_t count = s->rows * s->heads, width = s->width;
#pragma omp parallel for num_threads(threads) if (threads > 1 && count * width > BON_PARALLEL_ABOVE)
    for (size_t v = 0; v < count; v++) {
        const float *at = x + place(s, v);
        const double mean = bon_vec_dot(at, at, width) / (double)width;
        inverse[v] = (float)(1.0 / sqrt(mean + (double)a->norm_eps));
    }
    if (dw) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && count * width > BON_PARALLEL_ABOVE)
        for (size_t c = 0; c < width; c += COLUMNS)
            for (size_t v = 0; v < count; v++) {
                const float *xs = x + place(s, v), *ds = dy + place(s, v);
                for (size_t i = c; i < smaller(c + COLUMNS, width); i++)
                    dw[i] += ds[i] * (xs[i] * inverse[v]);
            }
    }
#pragma omp parallel for num_threads(threads) if (threads > 1 && count * width > BON_PARALLEL_ABOVE)
    for (size_t v = 0; v < count; v++) {
        const float *xs = x + place(s, v);
        float *ds = dy + place(s, v), *to = dx + place(s, v);
        for (size_t i = 0; i < width; i++) ds[i] *= a->norm_offset + w[i];
        const double along = bon_vec_dot(ds, xs, width) / (double)width;
        const float scale = inverse[v], back = (float)along * scale * scale * scale;
        for (size_t i = 0; i < width; i++)
            to[i] = (increase ? to[i] : 0.0f) + (ds[i] * scale - xs[i] * back);
    }
}

/* -- steps of the backward pass -------------------------------------------- */

/* For y = from W^T + b: dy adds to the gradients of W and b, and d_from = dy W. */
static bon_status project_backward(bon_backward *b, const part *p, const bon_pass *pass,
                                   const bon_linear *linear, bon_matrix *transposed,
                                   const bon_linear_grad *grad, const float *dy,
                                   const float *from, size_t ld, float *d_from)
{
    const size_t outputs = bon_matrix_outputs(linear->weight);
    const size_t inputs = bon_matrix_inputs(linear->weight);
    if (bon_should_stop(pass->poll)) return BON_ERR_INTERRUPTED;
    if (grad->weight)
        bon_matrix_gradient(outputs, inputs, dy, outputs, from, ld, p->rows, grad->weight,
                            p->gradient, b->threads);
    if (grad->bias) add_column_sums(grad->bias, dy, p->rows, outputs, b->threads);
    if (bon_should_stop(pass->poll)) return BON_ERR_INTERRUPTED;
    bon_matrix_transpose(linear->weight, transposed, b->threads);
    bon_status status = bon_matrix_multiply(transposed, BON_PREFILL, dy, p->rows, outputs, d_from,
                                            inputs, b->threads);
    bon_adapter_scratch scratch = bon_work_adapters(b->own.work);
    scratch.gradient = p->gradient;
    for (size_t i = 0; i < BON_ADAPTERS && status == BON_OK; i++)
        if (linear->adapters[i].a)
            status = bon_adapter_backward(&linear->adapters[i], dy, outputs, from, p->rows, ld,
                                          grad->adapters[i].a, grad->adapters[i].b, d_from,
                                          &scratch, b->threads);
    return status;
}

/* dh = the gradient of what was added to the stream, before its post-norm. */
static void residual_backward(const bon_backward *b, const part *p, const float *h,
                              const float *post_norm, float *d_norm)
{
    const bon_arch *a = &b->model->arch;
    const vectors rows = {p->rows, 1, a->hidden, a->hidden};
    memcpy(p->dh, p->g, p->rows * a->hidden * sizeof(float));
    if (post_norm)
        norm_backward(a, &rows, h, post_norm, p->dh, p->dh, false, d_norm, p->inverse,
                      b->threads);
}

/* g += the gradient through the norm that a block begins with. */
static void block_backward(const bon_backward *b, const part *p, const float *x,
                           const float *norm, float *d_norm)
{
    const bon_arch *a = &b->model->arch;
    const vectors rows = {p->rows, 1, a->hidden, a->hidden};
    norm_backward(a, &rows, x, norm, p->dh, p->g, true, d_norm, p->inverse, b->threads);
}

/* d [rows, 2*intermediate] from that of act(gate) * up [rows, intermediate]. */
static void gate_backward(const bon_backward *b, const part *p, const float *gate_up,
                          const float *d_gated, float *d)
{
    const bon_arch *a = &b->model->arch;
    const size_t width = a->intermediate;
    const int threads = b->threads;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (size_t r = 0; r < p->rows; r++) {
        const float *from = gate_up + r * 2 * width, *in = d_gated + r * width;
        float *to = d + r * 2 * width;
        if (a->activation == BON_SILU)
            bon_vec_silu_grad(from, from + width, in, to, to + width, width);
        else
            bon_vec_gelu_tanh_grad(from, from + width, in, to, to + width, width);
    }
}

static void turn_back(float *head, const float *cos_sin, size_t dim)
{
    const size_t half = dim / 2;
    for (size_t i = 0; i < half; i++) {
        const float c = cos_sin[i], s = cos_sin[half + i], lo = head[i], hi = head[half + i];
        head[i] = lo * c + hi * s;
        head[half + i] = hi * c - lo * s;
    }
}

/* d [rows, qkv_width]: from the gradient behind norms and rope to that before. */
static void turn_rows_backward(const bon_backward *b, const part *p, const bon_pass *pass,
                               size_t layer, const float *qkv, const bon_layer_grad *grad,
                               float *d)
{
    const bon_arch *a = &b->model->arch;
    const bon_layer *w = &b->model->layers[layer];
    const size_t dim = a->head_dim, width = bon_qkv_width(a), k = bon_q_width(a);
    const int threads = b->threads;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (size_t r = 0; r < p->rows; r++)
        for (size_t head = 0; head < a->heads + a->kv_heads; head++)
            turn_back(d + r * width + head * dim, bon_turns_of(pass, layer, r), dim);
    if (!a->qk_norm) return;
    const vectors queries = {p->rows, a->heads, dim, width};
    const vectors keys = {p->rows, a->kv_heads, dim, width};
    norm_backward(a, &queries, qkv, w->q_norm, d, d, false, grad->q_norm, p->inverse, threads);
    norm_backward(a, &keys, qkv + k, w->k_norm, d + k, d + k, false, grad->k_norm, p->inverse,
                  threads);
}

static bon_status backward_layer(bon_backward *b, const part *p, const bon_pass *pass,
                                 size_t layer, const bon_layer_grad *grad)
{
    const bon_arch *a = &b->model->arch;
    const bon_layer *w = &b->model->layers[layer];
    const bon_results at = results_of(b, p, layer);
    float *const h = bon_work_results(b->own.work).o; /* the workspace's [rows, hidden] */
    const int threads = b->threads;
    bon_status status = BON_OK;
    if (layer < a->layers - p->kept) status = bon_forward_layer(pass, layer, &at);
    if (status != BON_OK) return status;

    /* MLP: out = middle + down(act(gate(norm(middle))) * up(norm(middle))) */
    residual_backward(b, p, at.down, w->mlp_post_norm, grad->mlp_post_norm);
    bon_gate_rows(a, at.gate_up, at.gated, a->intermediate, p->rows, threads);
    status = project_backward(b, p, pass, &w->down, b->down, &grad->down, p->dh, at.gated,
                              a->intermediate, p->narrow);
    if (status != BON_OK) return status;
    gate_backward(b, p, at.gate_up, p->narrow, p->wide);
    bon_norm_rows(a, h, at.middle, w->mlp_norm, p->rows, threads);
    status = project_backward(b, p, pass, &w->gate_up, b->gate_up, &grad->gate_up, p->wide, h,
                              a->hidden, p->dh);
    if (status != BON_OK) return status;
    block_backward(b, p, at.middle, w->mlp_norm, grad->mlp_norm);

    /* attention: middle = x + o(attend(qkv(norm(x)))) */
    residual_backward(b, p, at.o, w->attn_post_norm, grad->attn_post_norm);
    status = project_backward(b, p, pass, &w->o, b->o, &grad->o, p->dh, at.attended,
                              bon_q_width(a), p->narrow);
    if (status != BON_OK) return status;
    bon_turn_rows(pass, layer, at.qkv, at.turned);
    bon_attention_backward(a, layer, p->trees, p->n_trees, at.turned, p->narrow, p->wide,
                           p->attention, threads);
    turn_rows_backward(b, p, pass, layer, at.qkv, grad, p->wide);
    bon_norm_rows(a, h, at.x, w->attn_norm, p->rows, threads);
    status = project_backward(b, p, pass, &w->qkv, b->qkv, &grad->qkv, p->wide, h, a->hidden,
                              p->dh);
    if (status != BON_OK) return status;
    block_backward(b, p, at.x, w->attn_norm, grad->attn_norm);
    return BON_OK;
}

/* -- targets --------------------------------------------------------------- */

/* Soft-caps a row of logits; slopes gets the derivative. */
static void softcap(const bon_arch *a, float *logits, float *slopes)
{
    bon_vec_softcap(logits, a->vocab, a->final_softcap);
    for (size_t i = 0; i < a->vocab; i++) {
        const float part_of_cap = logits[i] / a->final_softcap;
        slopes[i] = 1.0f - part_of_cap * part_of_cap;
    }
}

/* others [vocab] = log p - log q, from logits of p and of q; x is 1/temperature. */
static void log_ratios(const float *logits, float *others, size_t vocab, float x)
{
    const float shift = bon_vec_log_sum_exp(others, vocab, x)
                        - bon_vec_log_sum_exp(logits, vocab, x);
    for (size_t i = 0; i < vocab; i++) others[i] = (logits[i] - others[i]) * x + shift;
}

/* One row of logits with its targets from..to-1: their log-probabilities, and the
 * gradient in the logits in place. others: NULL, or the row of the reference's logits. */
static void log_softmax_backward(const bon_arch *a, const bon_batch *batch, size_t from,
                                 size_t to, float *logits, float *slopes, float *others,
                                 float *values)
{
    const size_t vocab = a->vocab;
    const float x = 1.0f / batch->temperature;
    if (a->final_softcap > 0.0f) softcap(a, logits, slopes);
    if (others) log_ratios(logits, others, vocab, x);
    const float top = bon_vec_max(logits, vocab) * x;
    float weight = 0.0f, kl_weight = 0.0f;
    for (size_t t = from; t < to; t++) {
        values[t] = logits[batch->target_token[t]] * x - top;
        weight += batch->target_weight[t];
        if (others) kl_weight += batch->target_kl_weight[t];
    }
    bon_vec_scale(logits, vocab, x);
    const float sum = bon_vec_exp_sum(logits, vocab, top);
    bon_vec_scale(logits, vocab, 1.0f / sum);
    if (others) {
        const float kl = (float)bon_vec_dot(logits, others, vocab);
        for (size_t t = from; t < to; t++) batch->target_kl[t] = kl;
        for (size_t i = 0; i < vocab; i++)
            logits[i] *= (kl_weight * (others[i] - kl) - weight) * x;
    } else {
        bon_vec_scale(logits, vocab, -weight * x);
    }
    for (size_t t = from; t < to; t++) {
        values[t] -= logf(sum);
        logits[batch->target_token[t]] += batch->target_weight[t] * x;
    }
    if (a->final_softcap > 0.0f)
        for (size_t i = 0; i < vocab; i++) logits[i] *= slopes[i];
}

/* The same for a score head: values, gradient of the row's hidden state, and of the head. */
static void scores_backward(const bon_model *model, const bon_batch *batch, size_t from,
                            size_t to, const float *hidden, float *d_hidden, float *d_score,
                            float *values)
{
    const size_t width = model->arch.hidden;
    memset(d_hidden, 0, width * sizeof *d_hidden);
    for (size_t t = from; t < to; t++) {
        const size_t label = (size_t)batch->target_token[t];
        const float *w = model->score + label * width;
        const float score = (float)bon_vec_dot(hidden, w, width);
        float weight = batch->target_weight[t];
        if (batch->target_probability)
            weight *= batch->target_probability[t] - 1.0f / (1.0f + expf(-score));
        for (size_t i = 0; i < width; i++) d_hidden[i] += weight * w[i];
        if (d_score)
            for (size_t i = 0; i < width; i++) d_score[label * width + i] += weight * hidden[i];
        values[t] = score;
    }
}

/* Rows with targets from `first` on, as many as logits are made of at a time:
 * picked_row[i] is the first target of the i-th of them. Returns their number. */
static size_t pick_rows(const part *p, const bon_batch *batch, size_t first)
{
    const size_t end = p->first_target + p->targets;
    size_t count = 0;
    for (size_t t = first; t < end; t++) {
        if (t > first && batch->target_row[t] == batch->target_row[t - 1]) continue;
        p->picked_row[count] = t;
        if (count++ == p->logit_rows) return p->logit_rows;
    }
    p->picked_row[count] = end;
    return count;
}

/* The reference's logits of the picked rows, from its final hidden states. */
static bon_status other_logits(const bon_backward *b, const part *p, const bon_batch *batch,
                               size_t rows, const float *other_hidden)
{
    const size_t hidden = b->reference->arch.hidden;
    for (size_t r = 0; r < rows; r++) {
        const size_t row = batch->target_row[p->picked_row[r]] - p->first_row;
        memcpy(p->other_picked + r * hidden, other_hidden + row * hidden,
               hidden * sizeof(float));
    }
    return bon_model_logits(b->reference, BON_PREFILL, p->other_picked, rows, p->others,
                            b->threads);
}

/* d_picked from the final hidden states `picked` of some rows. */
static bon_status head_backward(bon_backward *b, const part *p, const bon_batch *batch,
                                size_t rows, const float *other_hidden,
                                const bon_model_grad *grad, float *values)
{
    const bon_model *model = b->model;
    const bon_arch *a = &model->arch;
    const size_t hidden = a->hidden, vocab = a->vocab;
    const int threads = b->threads;
    if (a->labels > 0) {
        for (size_t r = 0; r < rows; r++)
            scores_backward(model, batch, p->picked_row[r], p->picked_row[r + 1],
                            p->picked + r * hidden, p->d_picked + r * hidden, grad->score,
                            values);
        return BON_OK;
    }
    bon_status status = bon_matrix_multiply(model->head, BON_PREFILL, p->picked, rows, hidden,
                                            p->logits, vocab, threads);
    if (status == BON_OK && other_hidden)
        status = other_logits(b, p, batch, rows, other_hidden);
    if (status != BON_OK) return status;
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * vocab > BON_PARALLEL_ABOVE / 4)
    for (size_t r = 0; r < rows; r++)
        log_softmax_backward(a, batch, p->picked_row[r], p->picked_row[r + 1],
                             p->logits + r * vocab, p->slopes + r * vocab,
                             other_hidden ? p->others + r * vocab : NULL, values);
    if (grad->head)
        bon_matrix_gradient(vocab, hidden, p->logits, vocab, p->picked, hidden, rows, grad->head,
                            p->gradient, threads);
    return bon_matrix_multiply(b->head, BON_PREFILL, p->logits, rows, vocab, p->d_picked, hidden,
                               threads);
}

/* Values of the targets, and g = the gradient of the stream behind the last layer. */
static bon_status targets_backward(bon_backward *b, const part *p, const bon_pass *pass,
                                   const bon_batch *batch, const float *other_hidden,
                                   const bon_model_grad *grad, float *values)
{
    const bon_model *model = b->model;
    const bon_arch *a = &model->arch;
    const size_t hidden = a->hidden, bytes = hidden * sizeof(float);
    const float *x = p->x + a->layers * p->rows * hidden;
    float *const stream = bon_work_results(b->own.work).x; /* the rows of x that were picked */
    memset(p->g, 0, p->rows * bytes);
    for (size_t t = p->first_target; t < p->first_target + p->targets;) {
        if (bon_should_stop(pass->poll)) return BON_ERR_INTERRUPTED;
        const size_t rows = pick_rows(p, batch, t);
        const vectors picked = {rows, 1, hidden, hidden};
        for (size_t r = 0; r < rows; r++)
            memcpy(stream + r * hidden,
                   x + (batch->target_row[p->picked_row[r]] - p->first_row) * hidden, bytes);
        bon_norm_rows(a, p->picked, stream, model->final_norm, rows, b->threads);
        const bon_status status = head_backward(b, p, batch, rows, other_hidden, grad, values);
        if (status != BON_OK) return status;
        for (size_t i = t; i < p->picked_row[rows]; i++)
            if (!isfinite(values[i]) || (p->compares && !isfinite(batch->target_kl[i])))
                return BON_ERR_NOT_FINITE;
        norm_backward(a, &picked, stream, model->final_norm, p->d_picked, p->d_picked, false,
                      grad->final_norm, p->inverse, b->threads);
        for (size_t r = 0; r < rows; r++)
            memcpy(p->g + (batch->target_row[p->picked_row[r]] - p->first_row) * hidden,
                   p->d_picked + r * hidden, bytes);
        t = p->picked_row[rows];
    }
    return BON_OK;
}

/* -- embeddings ------------------------------------------------------------ */

static size_t rows_of(const bon_batch *batch)
{
    if (batch->n_trees == 0) return 0;
    const bon_tree *last = &batch->trees[batch->n_trees - 1];
    size_t rows = last->first_row + last->prompt_rows;
    for (size_t i = 0; i < last->branches; i++) rows += last->branch_rows[i];
    return rows;
}

/* Every token of the batch gets a place, and zeros there. */
static bon_status open_sums(bon_backward *b, const bon_batch *batch)
{
    embed_sums *e = &b->embed;
    const size_t rows = rows_of(batch), hidden = b->model->arch.hidden;
    for (size_t i = 0; i < b->model->arch.vocab; i++) e->place_of[i] = -1;
    for (size_t r = 0; r < rows; r++) {
        int32_t *place = &e->place_of[batch->tokens[r]];
        if (*place < 0) *place = (int32_t)e->places++;
    }
    if (e->places > e->room) {
        free(e->tokens);
        free(e->sums);
        e->room = 0;
        e->tokens = malloc(e->places * sizeof *e->tokens);
        e->sums = malloc(e->places * hidden * sizeof *e->sums);
        if (!e->tokens || !e->sums) return BON_ERR_MEMORY;
        e->room = e->places;
    }
    for (size_t r = 0; r < rows; r++) e->tokens[e->place_of[batch->tokens[r]]] = batch->tokens[r];
    if (rows > 0) memset(e->sums, 0, e->places * hidden * sizeof *e->sums);
    return BON_OK;
}

/* sums += g of each row's token; threads share the columns. */
static void add_to_sums(bon_backward *b, const part *p, const int32_t *tokens)
{
    const size_t hidden = b->model->arch.hidden;
    const int threads = b->threads;
#pragma omp parallel for num_threads(threads) if (threads > 1 && p->rows * hidden > BON_PARALLEL_ABOVE)
    for (size_t c = 0; c < hidden; c += COLUMNS)
        for (size_t r = 0; r < p->rows; r++) {
            float *to = b->embed.sums + (size_t)b->embed.place_of[tokens[r]] * hidden;
            const float *g = p->g + r * hidden;
            for (size_t i = c; i < smaller(c + COLUMNS, hidden); i++) to[i] += g[i];
        }
}

/* -- the whole ------------------------------------------------------------- */

static bon_status run_part(bon_backward *b, part *p, const bon_batch *batch,
                           const bon_model_grad *grad, const bon_poll *poll, float *values)
{
    const bon_arch *a = &b->model->arch;
    const int32_t *tokens = batch->tokens + p->first_row;
    bon_pass pass = {.model = b->model, .work = b->own.work, .cache = b->own.cache,
                     .phase = BON_PREFILL, .runs = p->own.runs, .n_runs = p->n_runs,
                     .poll = poll};
    const float *other_hidden = NULL;
    bon_status status = BON_OK;
    if (p->compares)
        status = bon_model_forward(b->reference, b->other.work, b->other.cache, BON_PREFILL,
                                   tokens, p->other.runs, p->n_runs, poll, &other_hidden);
    bon_forward_begin(&pass, tokens, p->x);
    for (size_t l = 0; l < a->layers && status == BON_OK; l++) {
        const bon_results at = results_of(b, p, l);
        status = bon_forward_layer(&pass, l, &at);
    }
    if (status == BON_OK)
        status = targets_backward(b, p, &pass, batch, other_hidden, grad, values);
    for (size_t l = a->layers; l-- > 0 && status == BON_OK;)
        status = backward_layer(b, p, &pass, l, &grad->layers[l]);
    if (status == BON_OK && grad->embed) {
        if (a->embed_scale != 1.0f) bon_vec_scale(p->g, p->rows * a->hidden, a->embed_scale);
        add_to_sums(b, p, tokens);
    }
    return status;
}

bon_status bon_backward_run(bon_backward *b, const bon_batch *batch, const bon_model_grad *grad,
                            const bon_poll *poll, float *values)
{
    if (b->head) bon_matrix_transpose(b->model->head, b->head, b->threads);
    b->embed.places = 0;
    bon_status status = grad->embed ? open_sums(b, batch) : BON_OK;
    for (size_t tree = 0, target = 0; tree < batch->n_trees && status == BON_OK;) {
        part p;
        status = plan(b, batch, tree, target, &p);
        if (status == BON_OK) status = open_part(b, &p);
        if (status != BON_OK) return status;
        status = run_part(b, &p, batch, grad, poll, values);
        close_part(b, &p);
        tree += p.n_trees;
        target += p.targets;
    }
    if (status == BON_OK && grad->embed)
        bon_panels_scatter(grad->embed, b->model->arch.hidden, b->embed.tokens, b->embed.sums,
                           b->model->arch.hidden, b->embed.places, b->threads);
    return status;
}
