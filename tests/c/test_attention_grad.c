/* test_attention_grad.c - attention's backward pass against loops in double, and
 * those loops against finite differences of the attention that they state. */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "attention_grad.h"
#include "check.h"
#include "gemm.h"

#define LENGTH(array) (sizeof(array) / sizeof *(array))

/* -- the formula, in double ------------------------------------------------ */

typedef struct {
    bon_arch arch;
    size_t window[2];
    const bon_tree *trees;
    size_t n_trees, rows, width; /* of the batch; of qkv */
} problem;

/* Batch rows that a row sees: some of the prompt, some of its own part. */
typedef struct {
    size_t prompt, prompt_count, own, own_count;
} view;

/* Calls the rows of a tree 0, 1, ... */
static view seen_by(const bon_tree *tree, size_t row, size_t window)
{
    size_t position = row, origin = 0, before = 0;
    if (row >= tree->prompt_rows) {
        size_t branch = 0;
        before = origin = tree->prompt_rows;
        while (row >= origin + tree->branch_rows[branch]) origin += tree->branch_rows[branch++];
        position = before + (row - origin);
    }
    const size_t first = window && position + 1 > window ? position + 1 - window : 0;
    view v = {.prompt = tree->first_row + (first < before ? first : before)};
    v.prompt_count = tree->first_row + before - v.prompt;
    v.own = tree->first_row + origin + (first > before ? first - before : 0);
    v.own_count = tree->first_row + row + 1 - v.own;
    return v;
}

static size_t seen_row(const view *v, size_t i)
{
    return i < v->prompt_count ? v->prompt + i : v->own + (i - v->prompt_count);
}

static size_t tree_rows(const bon_tree *tree)
{
    size_t rows = tree->prompt_rows;
    for (size_t b = 0; b < tree->branches; b++) rows += tree->branch_rows[b];
    return rows;
}

static double dot(const double *a, const double *b, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* The capped scores s and probabilities p of one row and query head. */
static void probabilities(const problem *pr, const view *v, const double *q,
                          const double *keys, double *s, double *p)
{
    const size_t count = v->prompt_count + v->own_count;
    const double cap = (double)pr->arch.attn_softcap;
    double top = -INFINITY, sum = 0.0;
    for (size_t i = 0; i < count; i++) {
        const double *k = keys + seen_row(v, i) * pr->width;
        s[i] = (double)pr->arch.attn_scale * dot(q, k, pr->arch.head_dim);
        if (cap > 0.0) s[i] = cap * tanh(s[i] / cap);
        if (s[i] > top) top = s[i];
    }
    for (size_t i = 0; i < count; i++) sum += p[i] = exp(s[i] - top);
    for (size_t i = 0; i < count; i++) p[i] /= sum;
}

/* Where head h's q, k and v stand in a row of qkv. */
static size_t q_at(const problem *pr, size_t h) { return h * pr->arch.head_dim; }
static size_t k_at(const problem *pr, size_t h)
{
    return (pr->arch.heads + h * pr->arch.kv_heads / pr->arch.heads) * pr->arch.head_dim;
}
static size_t v_at(const problem *pr, size_t h)
{
    return k_at(pr, h) + pr->arch.kv_heads * pr->arch.head_dim;
}

/* One row and query head: adds to *value the product of dout and the output; with
 * dqkv, adds the gradients of that. */
static void attend(const problem *pr, const view *v, size_t row, size_t h, const double *qkv,
                   const double *dout, double *value, double *dqkv)
{
    const size_t dim = pr->arch.head_dim, count = v->prompt_count + v->own_count;
    const double cap = (double)pr->arch.attn_softcap, scale = (double)pr->arch.attn_scale;
    const double *q = qkv + row * pr->width + q_at(pr, h);
    const double *g = dout + (row * pr->arch.heads + h) * dim;
    double *s = malloc(3 * count * sizeof *s), *p = s + count, *dp = p + count, mean = 0.0;
    CHECK(s);
    probabilities(pr, v, q, qkv + k_at(pr, h), s, p);
    for (size_t i = 0; i < count; i++) {
        dp[i] = dot(g, qkv + seen_row(v, i) * pr->width + v_at(pr, h), dim);
        mean += p[i] * dp[i];
    }
    *value += mean;
    for (size_t i = 0; dqkv && i < count; i++) {
        const size_t at = seen_row(v, i) * pr->width;
        double ds = p[i] * (dp[i] - mean) * scale;
        if (cap > 0.0) ds *= 1.0 - s[i] / cap * (s[i] / cap);
        for (size_t d = 0; d < dim; d++) {
            dqkv[row * pr->width + q_at(pr, h) + d] += ds * qkv[at + k_at(pr, h) + d];
            dqkv[at + k_at(pr, h) + d] += ds * q[d];
            dqkv[at + v_at(pr, h) + d] += p[i] * g[d];
        }
    }
    free(s);
}

/* The sum of dout times attention's output, and its gradient (dqkv may be NULL). */
static double whole(const problem *pr, const double *qkv, const double *dout, double *dqkv)
{
    double value = 0.0;
    if (dqkv) memset(dqkv, 0, pr->rows * pr->width * sizeof *dqkv);
    for (size_t t = 0; t < pr->n_trees; t++)
        for (size_t row = 0; row < tree_rows(&pr->trees[t]); row++) {
            const view v = seen_by(&pr->trees[t], row, pr->arch.window[1]);
            for (size_t h = 0; h < pr->arch.heads; h++)
                attend(pr, &v, pr->trees[t].first_row + row, h, qkv, dout, &value, dqkv);
        }
    return value;
}

/* -- problems -------------------------------------------------------------- */

/* Layer 1 has the window, so that layer 0's is not looked at. */
static void set_up(problem *pr, const bon_tree *trees, size_t n_trees, size_t kv_heads,
                   size_t group, size_t dim, size_t window, float cap)
{
    *pr = (problem){.trees = trees, .n_trees = n_trees, .window = {3, window}};
    pr->arch = (bon_arch){.heads = kv_heads * group, .kv_heads = kv_heads, .head_dim = dim,
                          .attn_scale = 1.5f / sqrtf((float)dim), .attn_softcap = cap,
                          .window = pr->window};
    pr->width = (pr->arch.heads + 2 * kv_heads) * dim;
    for (size_t t = 0; t < n_trees; t++) pr->rows += tree_rows(&trees[t]);
}

static uint32_t random_state = 1;
static float random_float(void) /* in [-2, 2) */
{
    random_state = random_state * 1664525u + 1013904223u;
    return (float)(random_state >> 8) / (float)(1 << 22) - 2.0f;
}

static float *random_floats(size_t count)
{
    float *x = malloc(count * sizeof *x);
    CHECK(x);
    for (size_t i = 0; i < count; i++) x[i] = random_float();
    return x;
}

static double *widened(const float *x, size_t count)
{
    double *y = malloc(count * sizeof *y);
    CHECK(y);
    for (size_t i = 0; i < count; i++) y[i] = (double)x[i];
    return y;
}

/* dqkv by the function under test, which finds garbage in its output and scratch. */
static float *backward(const problem *pr, const float *qkv, const float *dout, int threads)
{
    const size_t bytes =
        bon_attention_grad_scratch(&pr->arch, pr->trees, pr->n_trees, threads);
    const size_t count = pr->rows * pr->width;
    void *scratch = aligned_alloc(64, bytes);
    float *dqkv = malloc(count * sizeof *dqkv);
    CHECK(bytes > 0 && bytes % 64 == 0 && scratch && dqkv);
    memset(scratch, 0xff, bytes); /* NaN */
    memset(dqkv, 0xff, count * sizeof *dqkv);
    bon_attention_backward(&pr->arch, 1, pr->trees, pr->n_trees, qkv, dout, dqkv, scratch,
                           threads);
    free(scratch);
    return dqkv;
}

/* Largest difference in `count` columns from `column` on, relative to the largest element. */
static double difference(const problem *pr, const float *got, const double *want,
                         size_t column, size_t count)
{
    double most = 0.0, largest = 0.0;
    for (size_t r = 0; r < pr->rows; r++)
        for (size_t c = column; c < column + count; c++) {
            const size_t i = r * pr->width + c;
            const double off = fabs((double)got[i] - want[i]);
            if (!(off <= most)) most = isnan(off) ? INFINITY : off;
            if (fabs(want[i]) > largest) largest = fabs(want[i]);
        }
    return most == 0.0 ? 0.0 : most / largest;
}

static void check_case(const bon_tree *trees, size_t n_trees, size_t kv_heads, size_t group,
                       size_t dim, size_t window, float cap)
{
    problem pr;
    set_up(&pr, trees, n_trees, kv_heads, group, dim, window, cap);
    const size_t out = pr.rows * pr.arch.heads * dim, all = pr.rows * pr.width;
    float *qkv = random_floats(all), *dout = random_floats(out);
    double *qkv2 = widened(qkv, all), *dout2 = widened(dout, out);
    double *want = malloc(all * sizeof *want);
    CHECK(want);
    whole(&pr, qkv2, dout2, want);
    float *got = backward(&pr, qkv, dout, 1);
    const size_t q = pr.arch.heads * dim, kv = kv_heads * dim;
    CHECK(difference(&pr, got, want, 0, q) <= 1e-5);
    CHECK(difference(&pr, got, want, q, kv) <= 1e-5);
    CHECK(difference(&pr, got, want, q + kv, kv) <= 1e-5);
    free(qkv), free(dout), free(qkv2), free(dout2), free(want), free(got);
}

/* Branches, and two batches of texts: with every kind of edge, and of one long text. */
static const size_t mixed[] = {1, 0, 31, 33, 100, 0, 20, 20, 20, 20, 20, 20, 3, 1};
static const size_t few[] = {7, 0, 12};
static const size_t wide[] = {300, 5, 0, 251, 5, 1};
static const bon_tree forest[] = {
    {0, 37, LENGTH(mixed), mixed}, {326, 1, LENGTH(few), few}, {346, 50, 0, NULL}};
static const bon_tree tall[] = {{0, 300, LENGTH(wide), wide}};

/* -- tests ----------------------------------------------------------------- */

static void test_loops_are_the_gradient_of_attention(void)
{
    static const bon_tree trees[] = {{0, 5, 3, few}, {24, 4, 0, NULL}};
    const size_t windows[] = {0, 1, 5};
    for (size_t w = 0; w < LENGTH(windows); w++)
        for (int capped = 0; capped < 2; capped++) {
            problem pr;
            set_up(&pr, trees, LENGTH(trees), 2, 2, 4, windows[w], capped ? 5.0f : 0.0f);
            const size_t all = pr.rows * pr.width, out = pr.rows * pr.arch.heads * 4;
            float *qkv = random_floats(all), *dout = random_floats(out);
            double *x = widened(qkv, all), *g = widened(dout, out);
            double *gradient = malloc(all * sizeof *gradient);
            CHECK(gradient);
            whole(&pr, x, g, gradient);
            const double step = 1e-5;
            for (size_t i = 0; i < all; i++) {
                const double at = x[i];
                x[i] = at + step;
                const double above = whole(&pr, x, g, NULL);
                x[i] = at - step;
                const double below = whole(&pr, x, g, NULL);
                x[i] = at;
                CHECK(fabs((above - below) / (2.0 * step) - gradient[i]) <= 1e-7);
            }
            free(qkv), free(dout), free(x), free(g), free(gradient);
        }
}

static void test_backward_is_the_formula(void)
{
    const size_t groups[] = {1, 2, 7}, dims[] = {2, 8, 20, 64, 80}, windows[] = {0, 1, 5, 40};
    for (size_t g = 0; g < LENGTH(groups); g++)
        for (size_t d = 0; d < LENGTH(dims); d++)
            for (size_t w = 0; w < LENGTH(windows); w++)
                check_case(forest, LENGTH(forest), groups[g] == 7 ? 1 : 2, groups[g], dims[d],
                           windows[w], (g + d + w) % 2 ? 5.0f : 0.0f);
}

/* A text longer than a batch of branches, batches that end between branches, and
 * more tokens than a chunk of any product. */
static void test_backward_is_the_formula_of_long_texts(void)
{
    const size_t windows[] = {0, 40, 280};
    for (size_t w = 0; w < LENGTH(windows); w++)
        check_case(tall, 1, 1, 2, 8, windows[w], 0.0f);
}

static void test_threads_change_no_bit(void)
{
    const size_t windows[] = {0, 40};
    for (size_t w = 0; w < LENGTH(windows); w++) {
        problem pr;
        set_up(&pr, forest, LENGTH(forest), 3, 2, 20, windows[w], 5.0f);
        float *qkv = random_floats(pr.rows * pr.width);
        float *dout = random_floats(pr.rows * pr.arch.heads * 20);
        float *one = backward(&pr, qkv, dout, 1);
        for (int threads = 2; threads <= 3; threads++) {
            float *more = backward(&pr, qkv, dout, threads);
            CHECK(memcmp(one, more, pr.rows * pr.width * sizeof *one) == 0);
            free(more);
        }
        free(qkv), free(dout), free(one);
    }
}

/* Scores whose exponentials would overflow, and rows that look at one token only. */
static void test_backward_bears_large_scores(void)
{
    static const bon_tree trees[] = {{0, 20, 3, few}};
    for (int capped = 0; capped < 2; capped++) {
        problem pr;
        set_up(&pr, trees, 1, 1, 1, 16, 0, capped ? 5.0f : 0.0f);
        pr.arch.attn_scale = 300.0f;
        float *qkv = random_floats(pr.rows * pr.width), *dout = random_floats(pr.rows * 16);
        float *got = backward(&pr, qkv, dout, 1);
        for (size_t i = 0; i < pr.rows * pr.width; i++) CHECK(isfinite(got[i]));
        free(qkv), free(dout), free(got);
    }
}

static void test_a_tree_does_not_depend_on_the_others(void)
{
    static const bon_tree both[] = {{0, 5, 3, few}, {24, 37, LENGTH(mixed), mixed}};
    problem pr, first;
    set_up(&pr, both, 2, 2, 2, 20, 5, 0.0f);
    set_up(&first, both, 1, 2, 2, 20, 5, 0.0f);
    float *qkv = random_floats(pr.rows * pr.width), *dout = random_floats(pr.rows * 4 * 20);
    float *of_both = backward(&pr, qkv, dout, 2), *of_one = backward(&first, qkv, dout, 1);
    CHECK(memcmp(of_both, of_one, first.rows * first.width * sizeof *of_one) == 0);
    free(qkv), free(dout), free(of_both), free(of_one);
}

static void test_scratch_is_bounded_by_the_longest_text(void)
{
    static const size_t equal[40] = {[0 ... 39] = 100};
    const bon_tree one = {0, 30, 1, equal}, many = {0, 30, 40, equal};
    const bon_tree longest = {0, 30, LENGTH(wide), wide};
    problem pr;
    set_up(&pr, &one, 1, 2, 2, 64, 0, 0.0f);
    const size_t bytes = bon_attention_grad_scratch(&pr.arch, &one, 1, 1);
    CHECK(bon_attention_grad_scratch(&pr.arch, &many, 1, 1) < 3 * bytes);
    CHECK(bon_attention_grad_scratch(&pr.arch, &one, 1, 3) == 3 * bytes);
    const bon_tree texts[] = {one, longest, many};
    CHECK(bon_attention_grad_scratch(&pr.arch, texts, 3, 1)
          == bon_attention_grad_scratch(&pr.arch, &longest, 1, 1));
}

static void test_scratch_is_zero_where_it_overflows(void)
{
    const size_t endless[] = {1, SIZE_MAX};
    const bon_tree prompt = {0, SIZE_MAX / 64, 0, NULL}, branch = {0, 2, 2, endless};
    const bon_tree small = {0, 2, 0, NULL};
    problem pr;
    set_up(&pr, &small, 1, 1, 1, 64, 0, 0.0f);
    CHECK(bon_attention_grad_scratch(&pr.arch, &prompt, 1, 1) == 0);
    CHECK(bon_attention_grad_scratch(&pr.arch, &branch, 1, 1) == 0);
}

int main(void)
{
    if (!bon_cpu_supported()) return 0;
    test_loops_are_the_gradient_of_attention();
    test_backward_is_the_formula();
    test_backward_is_the_formula_of_long_texts();
    test_threads_change_no_bit();
    test_backward_bears_large_scores();
    test_a_tree_does_not_depend_on_the_others();
    test_scratch_is_bounded_by_the_longest_text();
    test_scratch_is_zero_where_it_overflows();
    return 0;
}
