/* attention.c - softmax(q K^T) V over a shared prompt and a sequence's own tokens.
 *
 * Work is cut into items: up to ITEM_ROWS rows that share a prefix, for one
 * key-value head and the `group` query heads that use it. An item gathers its
 * queries into a matrix [rows*group, head_dim]; then
 *
 *   scores   prompt blocks: one product for all rows of the item
 *            own blocks:    one product per run
 *   weights  exp(score - the row's largest), over the row's own columns, and their sum
 *   output   the same two kinds of product, with values, divided by the sum
 *
 * Columns of a score row: prompt token t is column t, own token t is column
 * own_column + t, where own_column is the prompt's length rounded up to whole
 * blocks. Products write whole panels: columns of the last one that no token has hold whatever
 * the block held, and are cleared or not read.
 *
 * With `dot` products read queries and weights as bfloat16; a row of weights then fills the
 * first half of its row of scores. The sum is that of the rounded weights, and the largest is 1,
 * which is exact: of an output only what smaller weights bring is rounded.
 */
#include "attention.h"

#include <math.h>
#include <string.h>

#include "deal.h"
#include "gemm.h"
#include "kernels.h"
#include "threads.h"
#include "vecmath.h"

#define ITEM_ROWS 32     /* at most */
#define LEAST_QUERIES 24 /* of an item, where it could have more */
#define DEALS 2          /* for each thread, at least, where items can be that many */

typedef struct {
    size_t first_row, rows; /* of the batch */
    size_t first_run, runs; /* that the rows touch */
} item;

/* One thread's scratch. */
typedef struct {
    void *q;       /* [ITEM_ROWS*group, head_dim] */
    float *scores; /* [ITEM_ROWS*group, columns], and then weights */
    float *sums;   /* [ITEM_ROWS*group] of a row's weights */
    float *out;    /* [ITEM_ROWS*group, padded head_dim] */
    size_t columns;
} scratch_view;

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static size_t block_of(size_t token) { return token / BON_BLOCK * BON_BLOCK; }

static size_t panels_for(size_t tokens) { return (tokens + BON_PANEL - 1) / BON_PANEL; }

static size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }

static size_t score_columns(size_t context)
{
    return round_up(context, BON_BLOCK) + BON_BLOCK; /* prompt and own part round up */
}

static size_t thread_floats(const bon_arch *arch, size_t context)
{
    const size_t rows = ITEM_ROWS * (arch->heads / arch->kv_heads);
    return rows * (round_up(arch->head_dim, 16) * 2 + score_columns(context)) + round_up(rows, 16);
}

size_t bon_attention_scratch(const bon_arch *arch, size_t rows, size_t context, int threads)
{
    const size_t items = round_up(rows * sizeof(item), 64);
    if (context > SIZE_MAX / 1024 / ITEM_ROWS / arch->heads / sizeof(float)) return 0;
    return items + thread_floats(arch, context) * sizeof(float) * (size_t)threads;
}

/* Rows of an item: ITEM_ROWS, or fewer where threads would have nothing to do. */
static size_t rows_of_items(const bon_arch *arch, size_t rows, size_t threads)
{
    const size_t group = arch->heads / arch->kv_heads;
    size_t each = ITEM_ROWS;
    while (threads > 1 && each / 2 * group >= LEAST_QUERIES
           && (rows + each - 1) / each * arch->kv_heads < DEALS * threads)
        each /= 2;
    return each;
}

static size_t cut_into_items(const bon_run *runs, size_t n_runs, size_t most, item *items)
{
    size_t count = 0;
    for (size_t r = 0; r < n_runs; r++) {
        for (size_t done = 0; done < runs[r].rows;) {
            item *last = count ? &items[count - 1] : NULL;
            if (!last || last->rows == most
                || runs[last->first_run].prefix != runs[r].prefix) {
                last = &items[count++];
                *last = (item){runs[r].first_row + done, 0, r, 0};
            }
            size_t take = most - last->rows;
            if (take > runs[r].rows - done) take = runs[r].rows - done;
            last->rows += take;
            last->runs = r - last->first_run + 1;
            done += take;
        }
    }
    return count;
}

/* The rows [begin, end) of a run that lie in an item. */
static void overlap(const item *it, const bon_run *run, size_t *begin, size_t *end)
{
    const size_t run_end = run->first_row + run->rows, item_end = it->first_row + it->rows;
    *begin = run->first_row > it->first_row ? run->first_row : it->first_row;
    *end = run_end < item_end ? run_end : item_end;
}

static size_t window_start(size_t position, size_t window)
{
    return window && position + 1 > window ? position + 1 - window : 0;
}

/* What stays the same while one item is worked on. */
typedef struct {
    const bon_cache *cache;
    bool dot;
    size_t size; /* bytes of a query's number, and of a weight */
    const bon_arch *arch;
    size_t layer, head, group; /* key-value head; query heads per key-value head */
    size_t prefix_length, own_column, value_panels;
    size_t first_visible; /* first text position that any row of the item sees */
} setting;

/* -- the two products ------------------------------------------------------ */

/* y [rows, ldy] = rows of x times panels of the cache, or added to. */
static void multiply(const setting *s, const void *panels, size_t count, size_t stride, size_t k,
                     const void *x, size_t rows, size_t ldx, float *y, size_t ldy,
                     bool accumulate, const void *next)
{
    const bon_kernels *kernel = bon_kernels_here();
    if (s->dot)
        bon_kernels_dot_bf16(panels, count, stride, round_up(k, 2), x, rows, ldx, y, ldy,
                             BON_PANEL, accumulate, next);
    else if (bon_cache_dtype(s->cache) == BON_BF16)
        kernel->bf16(panels, count, stride, k, x, rows, ldx, y, ldy, BON_PANEL, accumulate, next);
    else
        kernel->f32(panels, count, stride, k, x, rows, ldx, y, ldy, BON_PANEL, accumulate, next);
}

/* The keys, or values, of the block in which a token lies. */
static const void *keys_at(const setting *s, const bon_seq *seq, size_t token)
{
    return bon_cache_keys(s->cache, seq->blocks[token / BON_BLOCK], s->layer, s->head);
}

static const void *values_at(const setting *s, const bon_seq *seq, size_t token)
{
    return bon_cache_values(s->cache, seq->blocks[token / BON_BLOCK], s->layer, s->head);
}

/* scores[rows][t] = q . key t, for the blocks that hold tokens from..to-1 of a
 * sequence; column t of `scores` belongs to token t. `next`: the keys that come then. */
static void score_blocks(const setting *s, const bon_seq *seq, size_t from, size_t to,
                         const void *q, size_t rows, float *scores, size_t ld, const void *next)
{
    const size_t dim = s->arch->head_dim;
    for (size_t t = block_of(from); t < to; t += BON_BLOCK)
        multiply(s, keys_at(s, seq, t), panels_for(smaller(to - t, BON_BLOCK)), dim * BON_PANEL,
                 dim, q, rows, dim, scores + t, ld, false,
                 t + BON_BLOCK < to ? keys_at(s, seq, t + BON_BLOCK) : next);
}

/* out[rows] += sum over tokens from..to-1 of weight[row][t] * value t; starts from 0 unless
 * `accumulate`. Token 0 is column `column`. Whole blocks below `from` do not take part; weights
 * are 0 for tokens of the first block that lie below it. */
static bool value_blocks(const setting *s, const bon_seq *seq, size_t from, size_t to,
                         const float *weights, size_t column, size_t ld, float *out, size_t rows,
                         bool accumulate)
{
    for (size_t t = block_of(from); t < to; t += BON_BLOCK) {
        multiply(s, values_at(s, seq, t), s->value_panels, BON_BLOCK * BON_PANEL,
                 smaller(to - t, BON_BLOCK), (const char *)weights + (column + t) * s->size, rows,
                 ld * sizeof *weights / s->size, out, s->value_panels * BON_PANEL, accumulate,
                 t + BON_BLOCK < to ? values_at(s, seq, t + BON_BLOCK) : NULL);
        accumulate = true;
    }
    return accumulate;
}

/* -- softmax --------------------------------------------------------------- */

static void hide(float *scores, size_t from, size_t to)
{
    for (size_t i = from; i < to; i++) scores[i] = -INFINITY;
}

static void clear(const setting *s, float *weights, size_t from, size_t to)
{
    if (from < to) memset((char *)weights + from * s->size, 0, (to - from) * s->size);
}

/* Turns a row of scores into weights and returns their sum. The row stands at `position` and
 * sees own tokens up to own_last; columns up to own_column + own_end are zeroed
 * behind them because a neighbour's product reads them. The sums start at a
 * column that depends on this row alone. */
static float softmax_row(const setting *s, float *x, size_t position, size_t own_end)
{
    const size_t first = window_start(position, s->arch->window[s->layer]);
    const size_t prefix = s->prefix_length, own = s->own_column;
    const size_t own_last = position - prefix;
    const size_t first_column = first < prefix ? first : own + (first - prefix);
    const size_t begin = first_column / BON_PANEL * BON_PANEL;
    const size_t end = own + own_last + 1;

    if (s->arch->attn_softcap > 0.0f) {
        if (begin < prefix) bon_vec_softcap(x + begin, prefix - begin, s->arch->attn_softcap);
        const size_t start = begin > own ? begin : own;
        bon_vec_softcap(x + start, end - start, s->arch->attn_softcap);
    }
    hide(x, begin, first_column);
    if (begin < own) hide(x, prefix, own); /* then begin < prefix too */

    const float top = bon_vec_max(x + begin, end - begin);
    const float sum = s->dot ? bon_vec_exp_sum_bf16(x + begin, end - begin, top,
                                                    (uint16_t *)(void *)x + begin)
                             : bon_vec_exp_sum(x + begin, end - begin, top);

    const size_t low = s->first_visible;
    const size_t low_column = low < prefix ? low : own + (low - prefix);
    clear(s, x, low_column / BON_BLOCK * BON_BLOCK, begin);
    clear(s, x, end, own + round_up(own_end, 2)); /* pairs of columns are read */
    return sum;
}

/* -- one item -------------------------------------------------------------- */

static void gather_queries(const setting *s, const item *it, const float *qkv, void *to)
{
    const size_t width = s->group * s->arch->head_dim, ld = bon_qkv_width(s->arch);
    const float scale = s->arch->attn_scale;
    for (size_t row = 0; row < it->rows; row++) {
        const float *from = qkv + (it->first_row + row) * ld + s->head * width;
        if (s->dot)
            bon_vec_scale_bf16(from, width, scale, (uint16_t *)to + row * width);
        else
            for (size_t i = 0; i < width; i++) ((float *)to)[row * width + i] = from[i] * scale;
    }
}

static void scatter_outputs(const setting *s, const item *it, const float *from,
                            const float *sums, float *out)
{
    const size_t dim = s->arch->head_dim, width = s->arch->heads * dim;
    const size_t ld = s->value_panels * BON_PANEL;
    for (size_t row = 0; row < it->rows; row++) {
        float *to = out + (it->first_row + row) * width + s->head * s->group * dim;
        for (size_t g = 0; g < s->group; g++, to += dim, from += ld) {
            const float share = 1.0f / *sums++;
            for (size_t i = 0; i < dim; i++) to[i] = from[i] * share;
        }
    }
}

static void attend(setting s, const item *it, const bon_run *runs, const float *qkv, float *out,
                   const scratch_view *w)
{
    const size_t group = s.group, ld = w->columns, dim = s.arch->head_dim;
    const size_t out_ld = s.value_panels * BON_PANEL;
    const size_t window = s.arch->window[s.layer];
    const size_t end_run = it->first_run + it->runs;
    const bon_seq *prefix = runs[it->first_run].prefix;
    s.prefix_length = prefix ? prefix->length : 0;
    s.own_column = round_up(s.prefix_length, BON_BLOCK);

    s.first_visible = SIZE_MAX;
    for (size_t r = it->first_run; r < end_run; r++) {
        size_t begin, end;
        overlap(it, &runs[r], &begin, &end);
        const size_t position = bon_run_position(&runs[r]) + (begin - runs[r].first_row);
        const size_t first = window_start(position, window);
        if (first < s.first_visible) s.first_visible = first;
    }
    const bool sees_prefix = s.first_visible < s.prefix_length;
    const size_t own_from = sees_prefix ? 0 : s.first_visible - s.prefix_length;

    gather_queries(&s, it, qkv, w->q);
    if (sees_prefix)
        score_blocks(&s, prefix, s.first_visible, s.prefix_length, w->q, it->rows * group,
                     w->scores, ld, keys_at(&s, runs[it->first_run].own, own_from));
    for (size_t r = it->first_run; r < end_run; r++) {
        size_t begin, end;
        overlap(it, &runs[r], &begin, &end);
        const size_t at = (begin - it->first_row) * group;
        const size_t own_start = runs[r].own->length + (begin - runs[r].first_row);
        const size_t own_end = own_start + (end - begin);
        score_blocks(&s, runs[r].own, own_from, own_end, (char *)w->q + at * dim * s.size,
                     (end - begin) * group, w->scores + at * ld + s.own_column, ld,
                     r + 1 < end_run ? keys_at(&s, runs[r + 1].own, own_from) : NULL);
        for (size_t i = 0; i < (end - begin) * group; i++)
            w->sums[at + i] = softmax_row(&s, w->scores + (at + i) * ld,
                                          s.prefix_length + own_start + i / group, own_end);
    }

    bool begun = false;
    if (sees_prefix)
        begun = value_blocks(&s, prefix, s.first_visible, s.prefix_length, w->scores, 0, ld,
                             w->out, it->rows * group, false);
    for (size_t r = it->first_run; r < end_run; r++) {
        size_t begin, end;
        overlap(it, &runs[r], &begin, &end);
        const size_t at = (begin - it->first_row) * group;
        const size_t own_end = runs[r].own->length + (end - runs[r].first_row);
        value_blocks(&s, runs[r].own, own_from, own_end, w->scores + at * ld, s.own_column, ld,
                     w->out + at * out_ld, (end - begin) * group, begun);
    }
    scatter_outputs(&s, it, w->out, w->sums, out);
}

/* Stores keys and values of the item's rows and head. */
static void store(bon_cache *cache, const setting *s, const item *it, const bon_run *runs,
                  const float *qkv)
{
    const size_t dim = s->arch->head_dim, keys = bon_q_width(s->arch) + s->head * dim;
    for (size_t r = it->first_run; r < it->first_run + it->runs; r++) {
        size_t begin, end;
        overlap(it, &runs[r], &begin, &end);
        for (size_t row = begin; row < end; row++) {
            const float *from = qkv + row * bon_qkv_width(s->arch) + keys;
            bon_cache_write(cache, runs[r].own, runs[r].own->length + (row - runs[r].first_row),
                            s->layer, s->head, from, from + bon_kv_width(s->arch),
                            row + 1 == runs[r].first_row + runs[r].rows);
        }
    }
}

void bon_attention(bon_cache *cache, bool dot, const bon_arch *arch, size_t layer,
                   const bon_run *runs, size_t n_runs, const float *qkv, float *out,
                   void *scratch, size_t context, int threads)
{
    const size_t rows = runs[n_runs - 1].first_row + runs[n_runs - 1].rows;
    const size_t group = arch->heads / arch->kv_heads;
    const size_t padded = round_up(arch->head_dim, BON_PANEL);
    item *items = scratch;
    const size_t count =
        cut_into_items(runs, n_runs, rows_of_items(arch, rows, (size_t)threads), items);
    float *floats = (float *)((char *)scratch + round_up(rows * sizeof(item), 64));
    const size_t tasks = count * arch->kv_heads;
    const setting all = {.cache = cache, .dot = dot,
                         .size = dot ? sizeof(uint16_t) : sizeof(float), .arch = arch,
                         .layer = layer, .group = group, .value_panels = padded / BON_PANEL};
    const bool serial = tasks == 1 || threads == 1;
    bon_deal first, second;
    bon_deal_open(&first, tasks, serial ? 1 : (size_t)threads);
    bon_deal_open(&second, tasks, serial ? 1 : (size_t)threads);

#pragma omp parallel num_threads(threads) if (!serial)
    {
        float *mine = floats + (size_t)bon_thread_index() * thread_floats(arch, context);
        scratch_view w = {.q = mine, .columns = score_columns(context)};
        w.out = mine + ITEM_ROWS * group * padded;
        w.sums = w.out + ITEM_ROWS * group * padded;
        w.scores = w.sums + round_up(ITEM_ROWS * group, 16);
        setting s = all;
        for (bon_hand hand = {0}; bon_deal_take(&first, &hand);) {
            s.head = hand.task % arch->kv_heads;
            store(cache, &s, &items[hand.task / arch->kv_heads], runs, qkv);
        }
#pragma omp barrier /* items read what others store: of their run, or of a run that is a prefix */
        for (bon_hand hand = {0}; bon_deal_take(&second, &hand);) {
            s.head = hand.task % arch->kv_heads;
            attend(s, &items[hand.task / arch->kv_heads], runs, qkv, out, &w);
        }
    }
}
