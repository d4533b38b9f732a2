/* attention_grad.c - dq, dk, dv of softmax(q K^T) V, a tree's head at a time.
 *
 * A task is one key-value head of one tree, with all query heads of its group. It
 * holds a text in scratch: the prompt and as many whole branches as make up some
 * BATCH_ROWS rows; their tokens count from 0 without a gap. What is held of a text
 * is k and v as rows, k turned (dimension by dimension), and the sums dk and dv.
 *
 * Rows are lanes here: scores are kept as [token][row], so that a softmax is a walk
 * down the tokens with 8 rows in a register, and no row of queries waits for another.
 * A tile is 16 rows of one query head, that is one panel of gemm.h; a block is up to
 * four tiles:
 *
 *   per tile    scores [tokens, 16] = k  (q turned)      x = rows of k, panel = q
 *               dp     [tokens, 16] = v  (g turned)
 *               p, ds from both
 *               dq     [dim, 16]    = (k turned) ds      panel = ds
 *   per block   dv [tokens, dim]   += p  g               x = p, panels = rows of g
 *               dk [tokens, dim]   += ds q
 *
 * This way nothing as large as the scores is ever turned; ds alone is written twice,
 * as the panel of its tile and as columns of the block's matrix.
 *
 * A row sees two ranges of tokens: of the prompt, and of its own part of the text (a
 * row of the prompt sees its own part only). A tile's products run over what any of
 * its rows sees; lanes that do not see a token have p = 0 there. So the rows of short
 * branches share tiles, and waste appears at the edges of their own parts alone.
 */
#include "attention_grad.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "gemm.h"
#include "threads.h"
#include "vecmath.h"

#define TILE BON_PANEL
#define BLOCK_TILES 4 /* sums of dk and dv then stay 64 steps in registers */
#define BLOCK (BLOCK_TILES * TILE)
#define BATCH_ROWS 256 /* of branches: enough to fill blocks, few enough for the L2 cache */
#define TURN_CHUNK 256 /* tokens of ds that stay in the L1 cache while dq is summed */

enum { PROMPT, OWN, PARTS };

typedef struct {
    size_t begin, end;
} range;

/* Up to 16 rows of the text, of one query head. */
typedef struct {
    size_t row, rows, head;
    range seen[PARTS]; /* tokens that any row sees */
    int32_t first[PARTS][TILE], last[PARTS][TILE]; /* and those that each lane sees */
} tile;

/* What stays the same in a call, the head of a task, and its thread's scratch. */
typedef struct {
    const bon_arch *arch;
    const float *qkv, *dout;
    float *dqkv;
    size_t window, group, dim, padded; /* padded: dim rounded up to whole panels */
    size_t width, k_column, v_column;  /* of qkv */
    size_t first_head;                 /* query head */

    size_t prompt;                      /* tokens of the prompt, the first of the text */
    size_t prompt_row, branch_row;      /* of the batch: token 0's and the first branch's */
    int32_t *origin;                    /* [tokens] first token of the branch or prompt */
    float *k, *v;                       /* [tokens, dim] */
    float *k_turned;                    /* [dim, turned] */
    size_t turned;
    float *dk, *dv;                     /* [tokens, padded] */
    float *scores, *dp;                 /* [tokens, TILE]; dp turns into ds */
    float *p, *ds;                      /* [tokens, BLOCK] */
    float *q_turned, *g_turned, *dq;    /* [dim, TILE] */
    float *q_panels, *g_panels;         /* [padded/16][BLOCK][16] */
} task;

static size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }
static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }
static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* -- scratch --------------------------------------------------------------- */

/* Rows of branches that stand in a text at a time: whole branches from `from` on,
 * at least one, while they fit into BATCH_ROWS. Sets *to behind the last. */
static size_t take_branches(const bon_tree *tree, size_t from, size_t *to)
{
    size_t rows = 0, b = from;
    for (; b < tree->branches; b++) {
        const size_t more = tree->branch_rows[b];
        if (b > from && more > BATCH_ROWS - smaller(rows, BATCH_ROWS)) break;
        rows += more;
    }
    *to = b;
    return rows;
}

/* Tokens of the longest text that a tree needs. */
static size_t text_tokens(const bon_tree *tree)
{
    size_t rows = 0;
    for (size_t from = 0, to; from < tree->branches; from = to)
        rows = larger(rows, take_branches(tree, from, &to));
    return rows > SIZE_MAX - tree->prompt_rows ? SIZE_MAX : tree->prompt_rows + rows;
}

static size_t longest_text(const bon_tree *trees, size_t n_trees)
{
    size_t tokens = 0;
    for (size_t t = 0; t < n_trees; t++) tokens = larger(tokens, text_tokens(&trees[t]));
    return tokens;
}

/* An odd number of cache lines: rows of it do not meet in the same sets of a cache. */
static size_t turned_width(size_t tokens) { return round_up(tokens, 32) + 16; }

/* Of one thread, for texts of `tokens`, which are rounded up to keep the parts aligned. */
static size_t thread_floats(const bon_arch *arch, size_t tokens)
{
    const size_t dim = arch->head_dim, padded = round_up(dim, BON_PANEL);
    const size_t per_token = 2 * dim + 2 * padded + 2 * TILE + 2 * BLOCK + 1;
    return round_up(tokens, 16) * per_token + turned_width(tokens) * dim + 3 * TILE * dim
           + 2 * BLOCK * padded;
}

size_t bon_attention_grad_scratch(const bon_arch *arch, const bon_tree *trees, size_t n_trees,
                                  int threads)
{
    const size_t tokens = longest_text(trees, n_trees);
    size_t bytes; /* token numbers are int32, so the size of one thread's part is safe */
    if (tokens > INT32_MAX
        || __builtin_mul_overflow(thread_floats(arch, tokens), sizeof(float), &bytes)
        || __builtin_mul_overflow(bytes, (size_t)threads, &bytes))
        return 0;
    return bytes;
}

/* The next `count` floats. */
static float *take(float **scratch, size_t count)
{
    float *here = *scratch;
    *scratch += count;
    return here;
}

static void carve(task *t, float *scratch, size_t tokens)
{
    const size_t rounded = round_up(tokens, 16);
    t->turned = turned_width(tokens);
    t->k = take(&scratch, rounded * t->dim);
    t->v = take(&scratch, rounded * t->dim);
    t->dk = take(&scratch, rounded * t->padded);
    t->dv = take(&scratch, rounded * t->padded);
    t->scores = take(&scratch, rounded * TILE);
    t->dp = take(&scratch, rounded * TILE);
    t->p = take(&scratch, rounded * BLOCK);
    t->ds = take(&scratch, rounded * BLOCK);
    t->origin = (int32_t *)(void *)take(&scratch, rounded);
    t->k_turned = take(&scratch, t->turned * t->dim);
    t->q_turned = take(&scratch, TILE * t->dim);
    t->g_turned = take(&scratch, TILE * t->dim);
    t->dq = take(&scratch, TILE * t->dim);
    t->q_panels = take(&scratch, BLOCK * t->padded);
    t->g_panels = take(&scratch, BLOCK * t->padded);
}

/* -- turning matrices ------------------------------------------------------ */

/* Of up to 8 rows and columns; the compiler makes one copy for whole squares. */
static inline void turn_square(const float *from, size_t ld, size_t height, size_t width,
                               float *to, size_t ld_to)
{
    __m256 row[8], pair[8], quad[8];
    for (size_t r = 0; r < 8; r++)
        row[r] = r < height ? bon_load_first(from + r * ld, width, 0.0f) : _mm256_setzero_ps();
    for (size_t i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
    for (size_t i = 0; i < 8; i += 4)
        for (size_t j = 0; j < 2; j++) {
            quad[i + 2 * j] = _mm256_shuffle_ps(pair[i + j], pair[i + j + 2], 0x44);
            quad[i + 2 * j + 1] = _mm256_shuffle_ps(pair[i + j], pair[i + j + 2], 0xee);
        }
    for (size_t c = 0; c < 4; c++) {
        row[c] = _mm256_permute2f128_ps(quad[c], quad[c + 4], 0x20);
        row[c + 4] = _mm256_permute2f128_ps(quad[c], quad[c + 4], 0x31);
    }
    for (size_t c = 0; c < width; c++) bon_store_first(to + c * ld_to, height, row[c]);
}

/* to[c][r] = from[r][c] for from [rows, columns]. */
static void turn(const float *from, size_t ld, size_t rows, size_t columns, float *to,
                 size_t ld_to)
{
    for (size_t r = 0; r < rows; r += 8)
        for (size_t c = 0; c < columns; c += 8) {
            const size_t height = smaller(8, rows - r), width = smaller(8, columns - c);
            if (height == 8 && width == 8)
                turn_square(from + r * ld + c, ld, 8, 8, to + c * ld_to + r, ld_to);
            else
                turn_square(from + r * ld + c, ld, height, width, to + c * ld_to + r, ld_to);
        }
}

/* -- the text -------------------------------------------------------------- */

static size_t batch_row(const task *t, size_t token)
{
    return token < t->prompt ? t->prompt_row + token : t->branch_row + (token - t->prompt);
}

/* Brings in k and v of some tokens, which are the prompt or follow it. */
static void load_tokens(task *t, range tokens)
{
    const size_t dim = t->dim, count = tokens.end - tokens.begin;
    for (size_t i = tokens.begin; i < tokens.end; i++) {
        const float *row = t->qkv + batch_row(t, i) * t->width;
        memcpy(t->k + i * dim, row + t->k_column, dim * sizeof *row);
        memcpy(t->v + i * dim, row + t->v_column, dim * sizeof *row);
    }
    turn(t->k + tokens.begin * dim, dim, count, dim, t->k_turned + tokens.begin, t->turned);
    memset(t->dk + tokens.begin * t->padded, 0, count * t->padded * sizeof(float));
    memset(t->dv + tokens.begin * t->padded, 0, count * t->padded * sizeof(float));
}

static void store_tokens(const task *t, range tokens)
{
    for (size_t i = tokens.begin; i < tokens.end; i++) {
        float *row = t->dqkv + batch_row(t, i) * t->width;
        memcpy(row + t->k_column, t->dk + i * t->padded, t->dim * sizeof *row);
        memcpy(row + t->v_column, t->dv + i * t->padded, t->dim * sizeof *row);
    }
}

/* -- what a tile sees ------------------------------------------------------ */

/* Sets what a lane sees and widens what the tile sees. Lanes without a row copy the last
 * row's, so that no softmax is empty. */
static void see(const task *t, tile *it, size_t lane)
{
    const size_t token = it->row + smaller(lane, it->rows - 1);
    const size_t origin = (size_t)t->origin[token];
    const size_t before = token < t->prompt ? 0 : t->prompt; /* tokens in front of its own */
    const size_t position = before + (token - origin), window = t->window;
    const size_t first = window && position + 1 > window ? position + 1 - window : 0;
    const range seen[PARTS] = {
        [PROMPT] = {smaller(first, before), before},
        [OWN] = {origin + (first > before ? first - before : 0), token + 1},
    };
    for (int part = 0; part < PARTS; part++) {
        it->first[part][lane] = (int32_t)seen[part].begin;
        it->last[part][lane] = (int32_t)seen[part].end - 1;
        range *all = &it->seen[part];
        all->begin = lane ? smaller(all->begin, seen[part].begin) : seen[part].begin;
        all->end = lane ? larger(all->end, seen[part].end) : seen[part].end;
    }
}

/* Tile `number` of the rows: the heads of a group follow each other. */
static void place_tile(const task *t, range rows, size_t number, tile *it)
{
    it->row = rows.begin + number / t->group * TILE;
    it->rows = smaller(TILE, rows.end - it->row);
    it->head = t->first_head + number % t->group;
    for (size_t lane = 0; lane < TILE; lane++) see(t, it, lane);
}

/* -- softmax and its gradient, 8 lanes ------------------------------------- */

/* Scales, caps and hides scores [tokens, TILE]; the largest of each lane so far. */
static __m256 finish_scores(const bon_arch *arch, float *scores, range seen,
                            const int32_t *first, const int32_t *last, __m256 top)
{
    const __m256i from = _mm256_loadu_si256((const __m256i *)(const void *)first);
    const __m256i to = _mm256_loadu_si256((const __m256i *)(const void *)last);
    const __m256 scale = _mm256_set1_ps(arch->attn_scale);
    const __m256 cap = _mm256_set1_ps(arch->attn_softcap);
    const __m256 hidden = _mm256_set1_ps(-INFINITY);
    for (size_t i = seen.begin; i < seen.end; i++) {
        const __m256i here = _mm256_set1_epi32((int)i);
        const __m256i out = _mm256_or_si256(_mm256_cmpgt_epi32(from, here),
                                            _mm256_cmpgt_epi32(here, to));
        __m256 s = _mm256_mul_ps(_mm256_loadu_ps(scores + i * TILE), scale);
        if (arch->attn_softcap > 0.0f)
            s = _mm256_mul_ps(bon_tanh8(_mm256_div_ps(s, cap)), cap);
        s = _mm256_blendv_ps(s, hidden, _mm256_castsi256_ps(out));
        _mm256_storeu_ps(scores + i * TILE, s);
        top = _mm256_max_ps(top, s);
    }
    return top;
}

/* p = exp(s - top); adds p to *sum and p dp to *dot. */
static void exponentials(const float *scores, const float *dp, float *p, range seen,
                         __m256 top, bon_sum8 *sum, bon_sum8 *dot)
{
    for (size_t begin = seen.begin; begin < seen.end; begin += 16) {
        const size_t end = smaller(begin + 16, seen.end);
        __m256 few = _mm256_setzero_ps(), few_dot = few;
        for (size_t i = begin; i < end; i++) {
            const __m256 e = bon_exp8(_mm256_sub_ps(_mm256_loadu_ps(scores + i * TILE), top));
            _mm256_storeu_ps(p + i * BLOCK, e);
            few = _mm256_add_ps(few, e);
            few_dot = _mm256_fmadd_ps(e, _mm256_loadu_ps(dp + i * TILE), few_dot);
        }
        bon_sum8_add(sum, few);
        bon_sum8_add(dot, few_dot);
    }
}

/* p becomes a probability; ds, both copies: `dp` as the tile's panel and `ds`. */
static void score_gradients(const bon_arch *arch, const float *scores, float *dp, float *p,
                            float *ds, range seen, __m256 per_sum, __m256 mean)
{
    const __m256 scale = _mm256_set1_ps(arch->attn_scale), one = _mm256_set1_ps(1.0f);
    const __m256 cap = _mm256_set1_ps(arch->attn_softcap);
    for (size_t i = seen.begin; i < seen.end; i++) {
        const __m256 prob = _mm256_mul_ps(_mm256_loadu_ps(p + i * BLOCK), per_sum);
        const __m256 above = _mm256_sub_ps(_mm256_loadu_ps(dp + i * TILE), mean);
        __m256 d = _mm256_mul_ps(prob, _mm256_mul_ps(above, scale));
        if (arch->attn_softcap > 0.0f) {
            const __m256 share = _mm256_div_ps(_mm256_loadu_ps(scores + i * TILE), cap);
            const __m256 slope = _mm256_fnmadd_ps(share, share, one);
            d = _mm256_mul_ps(d, _mm256_max_ps(slope, _mm256_setzero_ps())); /* hidden: 0 */
        }
        _mm256_storeu_ps(p + i * BLOCK, prob);
        _mm256_storeu_ps(dp + i * TILE, d);
        _mm256_storeu_ps(ds + i * BLOCK, d);
    }
}

static __m256 narrow(__m256d low, __m256d high)
{
    return _mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low));
}

/* Lanes lane..lane+7 of a tile, whose columns in p and ds begin at `column`. */
static void lanes_backward(const task *t, const tile *it, size_t column, size_t lane)
{
    float *scores = t->scores + lane, *dp = t->dp + lane;
    float *p = t->p + column + lane, *ds = t->ds + column + lane;
    __m256 top = _mm256_set1_ps(-INFINITY);
    for (int part = 0; part < PARTS; part++)
        top = finish_scores(t->arch, scores, it->seen[part], &it->first[part][lane],
                            &it->last[part][lane], top);
    bon_sum8 sum = bon_sum8_zero(), dot = sum;
    for (int part = 0; part < PARTS; part++)
        exponentials(scores, dp, p, it->seen[part], top, &sum, &dot);
    const __m256d one = _mm256_set1_pd(1.0);
    const __m256d low = _mm256_div_pd(one, sum.low), high = _mm256_div_pd(one, sum.high);
    const __m256 mean = narrow(_mm256_mul_pd(dot.low, low), _mm256_mul_pd(dot.high, high));
    for (int part = 0; part < PARTS; part++)
        score_gradients(t->arch, scores, dp, p, ds, it->seen[part], narrow(low, high), mean);
}

/* -- one tile -------------------------------------------------------------- */

/* A tile's rows of x, once as the panel [dim][16] and once, from `column` on, as
 * rows of panels [padded/16][BLOCK][16]. Lanes without a row are 0. */
static void gather(const task *t, const tile *it, const float *x, size_t ld, size_t column,
                   float *turned, float *panels)
{
    if (it->rows < TILE) memset(turned, 0, TILE * t->dim * sizeof *turned);
    turn(x, ld, it->rows, t->dim, turned, TILE);
    for (size_t d = 0; d < t->padded; d += BON_LANES) {
        const size_t count = d < t->dim ? smaller(BON_LANES, t->dim - d) : 0;
        float *to = panels + (d / BON_PANEL * BLOCK + column) * BON_PANEL + d % BON_PANEL;
        for (size_t r = 0; r < TILE; r++) {
            __m256 few = _mm256_setzero_ps();
            if (r < it->rows && count > 0) few = bon_load_first(x + r * ld + d, count, 0.0f);
            _mm256_storeu_ps(to + r * BON_PANEL, few);
        }
    }
}

static void scatter_dq(const task *t, const tile *it)
{
    float *to = t->dqkv + batch_row(t, it->row) * t->width + it->head * t->dim;
    turn(t->dq, TILE, t->dim, it->rows, to, t->width);
}

static void tile_backward(const task *t, const tile *it, size_t column)
{
    const size_t row = batch_row(t, it->row), at = it->head * t->dim, dim = t->dim;
    const size_t out_width = t->arch->heads * dim;
    gather(t, it, t->qkv + row * t->width + at, t->width, column, t->q_turned, t->q_panels);
    gather(t, it, t->dout + row * out_width + at, out_width, column, t->g_turned, t->g_panels);

    for (int part = 0; part < PARTS; part++) {
        const size_t i = it->seen[part].begin, count = it->seen[part].end - i;
        if (count == 0) continue; /* nothing stands before a row of the prompt */
        bon_panel_multiply(t->q_turned, 1, 0, dim, t->k + i * dim, count, dim,
                           t->scores + i * TILE, TILE, false);
        bon_panel_multiply(t->g_turned, 1, 0, dim, t->v + i * dim, count, dim,
                           t->dp + i * TILE, TILE, false);
    }
    for (size_t lane = 0; lane < TILE; lane += BON_LANES) lanes_backward(t, it, column, lane);
    bool begun = false;
    for (int part = 0; part < PARTS; part++)
        for (size_t i = it->seen[part].begin; i < it->seen[part].end; i += TURN_CHUNK) {
            bon_panel_multiply(t->dp + i * TILE, 1, 0, smaller(TURN_CHUNK, it->seen[part].end - i),
                               t->k_turned + i, dim, t->turned, t->dq, TILE, begun);
            begun = true;
        }
    scatter_dq(t, it);
}

/* -- one block ------------------------------------------------------------- */

/* dk and dv of some tokens that `count` tiles see, the block's tiles from `first` on. */
static void add_products(const task *t, range tokens, size_t first, size_t count)
{
    const size_t rows = tokens.end - tokens.begin, panels = t->padded / BON_PANEL;
    const size_t x = tokens.begin * BLOCK + first * TILE, y = tokens.begin * t->padded;
    const size_t from = first * TILE * BON_PANEL, stride = BLOCK * BON_PANEL;
    bon_panel_multiply(t->g_panels + from, panels, stride, count * TILE, t->p + x, rows, BLOCK,
                       t->dv + y, t->padded, true);
    bon_panel_multiply(t->q_panels + from, panels, stride, count * TILE, t->ds + x, rows, BLOCK,
                       t->dk + y, t->padded, true);
}

/* Cuts the tokens where a tile begins or ceases to see them. From tile to tile both
 * ends only grow and there is no gap, so tiles that see a token follow each other. */
static void add_part(const task *t, const tile *tiles, size_t count, int part)
{
    size_t i = tiles[0].seen[part].begin, first = 0, behind = 0;
    while (first < count) {
        while (behind < count && tiles[behind].seen[part].begin <= i) behind++;
        size_t next = tiles[first].seen[part].end;
        if (behind < count) next = smaller(next, tiles[behind].seen[part].begin);
        if (next > i) add_products(t, (range){i, next}, first, behind - first);
        i = next;
        while (first < count && tiles[first].seen[part].end <= i) first++;
    }
}

static void block_backward(const task *t, range rows, size_t number, size_t count)
{
    tile tiles[BLOCK_TILES];
    size_t begin = t->prompt;
    for (size_t i = 0; i < count; i++) {
        place_tile(t, rows, number + i, &tiles[i]);
        begin = smaller(begin, tiles[i].seen[PROMPT].begin);
    }
    for (size_t i = 0; i < count; i++) {
        tiles[i].seen[PROMPT].begin = begin; /* a branch's first rows see the most */
        tile_backward(t, &tiles[i], i * TILE);
    }
    for (int part = 0; part < PARTS; part++) add_part(t, tiles, count, part);
}

static void rows_backward(const task *t, range rows)
{
    const size_t tiles = (rows.end - rows.begin + TILE - 1) / TILE * t->group;
    for (size_t number = 0; number < tiles; number += BLOCK_TILES)
        block_backward(t, rows, number, smaller(BLOCK_TILES, tiles - number));
}

/* -- one tree -------------------------------------------------------------- */

static void tree_backward(task *t, const bon_tree *tree)
{
    const range prompt = {0, tree->prompt_rows};
    t->prompt = tree->prompt_rows;
    t->prompt_row = tree->first_row;
    t->branch_row = tree->first_row + tree->prompt_rows;
    memset(t->origin, 0, t->prompt * sizeof *t->origin);
    load_tokens(t, prompt);
    rows_backward(t, prompt);
    for (size_t from = 0, to; from < tree->branches; from = to) {
        const range batch = {t->prompt, t->prompt + take_branches(tree, from, &to)};
        size_t token = batch.begin;
        for (size_t b = from; b < to; b++) {
            const size_t origin = token;
            while (token < origin + tree->branch_rows[b]) t->origin[token++] = (int32_t)origin;
        }
        load_tokens(t, batch);
        rows_backward(t, batch);
        store_tokens(t, batch);
        t->branch_row += batch.end - batch.begin;
    }
    store_tokens(t, prompt);
}

void bon_attention_backward(const bon_arch *arch, size_t layer, const bon_tree *trees,
                            size_t n_trees, const float *qkv, const float *dout, float *dqkv,
                            void *scratch, int threads)
{
    const size_t tokens = longest_text(trees, n_trees), dim = arch->head_dim;
    const size_t group = arch->heads / arch->kv_heads, kv = arch->kv_heads;
    const long tasks = (long)(n_trees * kv);
#pragma omp parallel num_threads(threads) if (tasks > 1 && threads > 1)
    {
        task t = {
            .arch = arch, .qkv = qkv, .dout = dout, .dqkv = dqkv,
            .window = arch->window[layer], .group = group, .dim = dim,
            .padded = round_up(dim, BON_PANEL), .width = (arch->heads + 2 * kv) * dim,
        };
        carve(&t, (float *)scratch + (size_t)bon_thread_index() * thread_floats(arch, tokens),
              tokens);
#pragma omp for schedule(dynamic, 1)
        for (long number = 0; number < tasks; number++) {
            const size_t head = (size_t)number % kv;
            t.first_head = head * group;
            t.k_column = (arch->heads + head) * dim;
            t.v_column = (arch->heads + kv + head) * dim;
            tree_backward(&t, &trees[(size_t)number / kv]);
        }
    }
}
