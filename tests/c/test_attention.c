/* test_attention.c - attention over caches of both kinds, against loops in double that round
 * what the kind rounds, and each run alone against the same run among others. */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "attention.h"
#include "check.h"
#include "kernels.h"

enum { HEADS = 4, KV_HEADS = 2, DIM = 20, LAYERS = 2, WINDOW = 37, GROUP = HEADS / KV_HEADS };
enum { Q = HEADS * DIM, KV = KV_HEADS * DIM, MOST_ROWS = 128, MOST_RUNS = 16, BLOCKS = 64 };
#define LENGTH(array) (sizeof(array) / sizeof *(array))

/* -- inputs ---------------------------------------------------------------- */

/* In [-1, 1], of all bits of a float. */
static float noise(size_t a, size_t b, size_t c)
{
    uint64_t x = a * 0x9e3779b97f4a7c15u + b * 0xbf58476d1ce4e5b9u + c * 0x94d049bb133111ebu;
    x = (x ^ x >> 31) * 0xd6e8feb86659fd93u;
    return (float)((double)(x >> 11) * 0x1p-52 - 1.0);
}

/* Number i of the key or value of a token: sequences 0 .. are runs' own, PREFIX the prompt. */
enum { PREFIX = 100, SECOND_PREFIX };
static float key(size_t seq, size_t layer, size_t token, size_t i)
{
    return 3.0f * noise(seq * 2 + layer, token, i);
}
static float value(size_t seq, size_t layer, size_t token, size_t i)
{
    return noise(seq * 2 + layer + 1000, token, i);
}

typedef struct {
    bon_dtype dtype; /* of the cache */
    bool dot;
    double error;    /* of an output; values are at most 1 */
} cache_kind;

/* By dot weights are rounded, by up to 2^-8 of each; what that does to an output was measured. */
static const cache_kind KINDS[] = {{BON_F32, false, 3e-6}, {BON_BF16, false, 3e-6},
                                   {BON_BF16, true, 0x1p-9}};

static double rounded(bool round, float x)
{
    return round ? bon_bf16_to_f32(bon_f32_to_bf16(x)) : x;
}

/* -- batches --------------------------------------------------------------- */

/* What a run sees and has: numbers of tokens, and which prompt, or none. */
typedef struct {
    size_t prefix, own, rows;
} plan;

typedef struct {
    const cache_kind *kind;
    bon_arch arch;
    size_t window[LAYERS];
    bon_cache *cache;
    bon_seq prefixes[2], own[MOST_RUNS];
    bon_run runs[MOST_RUNS];
    size_t name[MOST_RUNS]; /* of a run's own sequence, for key and value */
    size_t n_runs, rows, context;
} batch;

static const size_t PREFIX_TOKENS[] = {45, 64};

/* Tokens from..to-1; all at a time are a chunk, one by one what decoding writes. */
static void write_tokens(batch *b, bon_seq *seq, size_t name, size_t from, size_t to, bool chunk)
{
    float k[DIM], v[DIM];
    for (size_t token = from; token < to; token++)
        for (size_t layer = 0; layer < LAYERS; layer++)
            for (size_t head = 0; head < KV_HEADS; head++) {
                for (size_t i = 0; i < DIM; i++) {
                    k[i] = key(name, layer, token, head * DIM + i);
                    v[i] = value(name, layer, token, head * DIM + i);
                }
                bon_cache_write(b->cache, seq, token, layer, head, k, v,
                                !chunk || token + 1 == to);
            }
}

/* Leaves NaN in every number of every block. */
static void spoil(bon_cache *cache)
{
    bon_seq seq = {0};
    float nan[DIM];
    for (size_t i = 0; i < DIM; i++) nan[i] = NAN;
    CHECK(bon_seq_reserve(cache, &seq, BLOCKS * BON_BLOCK) == BON_OK);
    for (size_t token = 0; token < BLOCKS * BON_BLOCK; token++)
        for (size_t layer = 0; layer < LAYERS; layer++)
            for (size_t head = 0; head < KV_HEADS; head++)
                bon_cache_write(cache, &seq, token, layer, head, nan, nan, false);
    bon_seq_free(cache, &seq);
}

static void open_batch(batch *b, const cache_kind *kind, float softcap, const plan *plans,
                       const size_t *names, size_t count)
{
    *b = (batch){.kind = kind, .n_runs = count, .window = {0, WINDOW}};
    b->arch = (bon_arch){.heads = HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .layers = LAYERS,
                         .attn_scale = 0.4f, .attn_softcap = softcap, .window = b->window};
    CHECK(bon_cache_create(LAYERS, KV_HEADS, DIM, kind->dtype, BLOCKS, &b->cache) == BON_OK);
    spoil(b->cache);
    for (size_t p = 0; p < 2; p++) {
        CHECK(bon_seq_reserve(b->cache, &b->prefixes[p], PREFIX_TOKENS[p]) == BON_OK);
        write_tokens(b, &b->prefixes[p], PREFIX + p, 0, PREFIX_TOKENS[p], true);
        b->prefixes[p].length = PREFIX_TOKENS[p];
    }
    for (size_t r = 0; r < count; r++) {
        const plan *p = &plans[r];
        const bon_seq *prefix = p->prefix ? &b->prefixes[p->prefix - PREFIX] : NULL;
        CHECK(bon_seq_reserve(b->cache, &b->own[r], p->own + p->rows) == BON_OK);
        b->name[r] = names[r];
        write_tokens(b, &b->own[r], names[r], 0, p->own, false);
        b->own[r].length = p->own;
        b->runs[r] = (bon_run){prefix, &b->own[r], b->rows, p->rows};
        b->rows += p->rows;
        const size_t context = bon_run_position(&b->runs[r]) + p->rows;
        if (context > b->context) b->context = context;
    }
    CHECK(b->rows <= MOST_ROWS);
}

static void close_batch(batch *b)
{
    for (size_t p = 0; p < 2; p++) bon_seq_free(b->cache, &b->prefixes[p]);
    for (size_t r = 0; r < b->n_runs; r++) bon_seq_free(b->cache, &b->own[r]);
    bon_cache_destroy(b->cache);
}

static float query(const batch *b, size_t run, size_t row, size_t i)
{
    return 2.0f * noise(b->name[run] + 5000, b->runs[run].own->length + row, i);
}

static void attend(const batch *b, size_t layer, int threads, float *out)
{
    static float qkv[MOST_ROWS * (Q + 2 * KV)];
    for (size_t r = 0; r < b->n_runs; r++)
        for (size_t row = 0; row < b->runs[r].rows; row++) {
            float *to = qkv + (b->runs[r].first_row + row) * (Q + 2 * KV);
            for (size_t i = 0; i < Q; i++) to[i] = query(b, r, row, i);
            for (size_t i = 0; i < KV; i++) {
                to[Q + i] = key(b->name[r], layer, b->own[r].length + row, i);
                to[Q + KV + i] = value(b->name[r], layer, b->own[r].length + row, i);
            }
        }
    const size_t bytes = bon_attention_scratch(&b->arch, b->rows, b->context, threads);
    void *scratch = aligned_alloc(64, (bytes + 63) / 64 * 64);
    CHECK(scratch != NULL);
    bon_attention(b->cache, b->kind->dot, &b->arch, layer, b->runs, b->n_runs, qkv, out, scratch,
                  b->context, threads);
    free(scratch);
}

/* -- the formula, in double ------------------------------------------------ */

/* One head of one row. */
static void expect(const batch *b, size_t layer, size_t run, size_t row, size_t head, double *out)
{
    const bon_run *r = &b->runs[run];
    const bool bf16 = b->kind->dtype == BON_BF16;
    const size_t before = r->prefix ? r->prefix->length : 0;
    const size_t prefix = r->prefix ? PREFIX + (size_t)(r->prefix - b->prefixes) : 0;
    const size_t position = bon_run_position(r) + row, window = b->window[layer];
    const size_t first = window && position + 1 > window ? position + 1 - window : 0;
    double weight[512], sum = 0.0;
    for (size_t i = 0; i < DIM; i++) out[i] = 0.0;
    for (size_t t = first; t <= position; t++) {
        const size_t name = t < before ? prefix : b->name[run], token = t < before ? t : t - before;
        double score = 0.0;
        for (size_t i = 0; i < DIM; i++) {
            const float scaled = query(b, run, row, head * DIM + i) * b->arch.attn_scale;
            score += rounded(b->kind->dot, scaled)
                     * rounded(bf16, key(name, layer, token, head / GROUP * DIM + i));
        }
        const double cap = (double)b->arch.attn_softcap;
        weight[t] = exp(cap > 0.0 ? cap * tanh(score / cap) : score);
        sum += weight[t];
        for (size_t i = 0; i < DIM; i++)
            out[i] += weight[t] * rounded(bf16, value(name, layer, token, head / GROUP * DIM + i));
    }
    for (size_t i = 0; i < DIM; i++) out[i] /= sum;
}

static void compare(const batch *b, size_t layer, const float *out)
{
    double want[DIM];
    for (size_t r = 0; r < b->n_runs; r++)
        for (size_t row = 0; row < b->runs[r].rows; row++)
            for (size_t head = 0; head < HEADS; head++) {
                expect(b, layer, r, row, head, want);
                const float *got = out + (b->runs[r].first_row + row) * Q + head * DIM;
                for (size_t i = 0; i < DIM; i++)
                    CHECK(fabs((double)got[i] - want[i]) <= b->kind->error);
            }
}

/* -- tests ----------------------------------------------------------------- */

/* Odd and even lengths, at and beside the ends of blocks, more rows than an item holds, runs
 * that share a prompt, have another or none, and windows that begin in either part. */
static const plan PLANS[] = {
    {PREFIX, 0, 1}, {PREFIX, 1, 1}, {PREFIX, 31, 1}, {PREFIX, 32, 2}, {PREFIX, 6, 5},
    {PREFIX, 70, 1}, {SECOND_PREFIX, 2, 1}, {SECOND_PREFIX, 0, 33}, {0, 0, 41}, {0, 13, 1},
};
static const size_t NAMES[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};

static void test_outputs_are_those_of_the_formula(const cache_kind *kind, float softcap)
{
    static float out[LAYERS][MOST_ROWS * Q], again[MOST_ROWS * Q];
    batch b;
    open_batch(&b, kind, softcap, PLANS, NAMES, LENGTH(PLANS));
    for (size_t layer = 0; layer < LAYERS; layer++) {
        attend(&b, layer, 1, out[layer]);
        compare(&b, layer, out[layer]);
    }
    close_batch(&b);
    for (int turn = 0; turn < 15; turn++) { /* often: threads must wait for each other's keys */
        const int threads = 3 << turn % 3;  /* items of 32 rows, and of 16 */
        open_batch(&b, kind, softcap, PLANS, NAMES, LENGTH(PLANS)); /* nothing is stored yet */
        for (size_t layer = 0; layer < LAYERS; layer++) {
            attend(&b, layer, threads, again);
            CHECK(memcmp(out[layer], again, b.rows * Q * sizeof *again) == 0);
        }
        close_batch(&b);
    }
}

static void test_a_run_alone_has_the_same_bits(const cache_kind *kind)
{
    static float out[MOST_ROWS * Q], alone[MOST_ROWS * Q];
    batch all, one;
    open_batch(&all, kind, 0.0f, PLANS, NAMES, LENGTH(PLANS));
    for (size_t layer = 0; layer < LAYERS; layer++) {
        attend(&all, layer, 2, out);
        for (size_t r = 0; r < LENGTH(PLANS); r++) {
            open_batch(&one, kind, 0.0f, &PLANS[r], &NAMES[r], 1);
            attend(&one, layer, 1, alone);
            CHECK(memcmp(alone, out + all.runs[r].first_row * Q, one.rows * Q * sizeof *out) == 0);
            close_batch(&one);
        }
    }
    close_batch(&all);
}

int main(void)
{
    for (size_t k = 0; k < LENGTH(KINDS); k++) {
        if (KINDS[k].dot && !bon_kernels_have_dot_bf16()) continue;
        test_outputs_are_those_of_the_formula(&KINDS[k], 0.0f);
        test_outputs_are_those_of_the_formula(&KINDS[k], 5.0f);
        test_a_run_alone_has_the_same_bits(&KINDS[k]);
    }
    return 0;
}
