/* sample.c - one token of one row; see sample.h for what is drawn.
 *
 * Weights are exp((logit - largest) / T), so the largest is 1 and nothing can
 * overflow. Without truncation a row is read twice: once for its largest logit
 * and once for the sums of weights of blocks of 512. The cumulative distribution
 * is then inverted block by block and inside the one block that holds u, whose
 * weights are computed again instead of having been stored.
 *
 * Truncation never sorts. All three rules keep the tokens above some logit and a
 * number of those that tie with it, a cut. Each first finds a cheap lower bound of
 * its cut, gathers the few candidates above it in order of id, and works on those:
 *
 *   top-k  the k-th largest of the maxima of groups of 32 (each is a token's logit)
 *   top-p  tokens lighter than (1-p) * total / vocab weigh less than 1-p together
 *   min-p  largest + T log(min_p), which is the cut itself
 *
 * top-k and top-p are one selection: from the largest down, weights (of 1 for
 * top-k) are added until they reach a target (k or p * total).
 */
#include "sample.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>

#include "vecmath.h"

#define GROUP ((size_t)4 * BON_LANES) /* tokens whose largest logit is remembered */
#define BLOCK ((size_t)16 * GROUP)    /* tokens whose sum of weights is remembered */
#define BINS 256                      /* of a selection: 2 KiB of sums, in L1 */

/* Nats below which a token is dropped before top-p; covers the rounding of weights
 * and totals (1e-6) many times over. */
#define TOP_P_MARGIN 1e-3

typedef struct {
    double *sums;        /* [blocks] weights of 512 tokens */
    float *groups;       /* [groups] largest logit of 32 tokens */
    int32_t *id;         /* [vocab] candidates, in order of id */
    float *logit;        /* [vocab] theirs */
    float *weight;       /* [vocab] theirs */
    float *spare_logit;  /* [vocab] for find_cut */
    float *spare_weight; /* [vocab] for find_cut */
} space;

typedef struct {
    float largest;
    double sum;   /* of the logits that are not -inf; NaN or +inf if one is */
    size_t count; /* of the logits that are not -inf */
} overview;

/* Keeps the tokens above logit, and the first `ties` of those equal to it. */
typedef struct {
    float logit;
    size_t ties;
} cut;

static size_t divide_up(size_t a, size_t b) { return a / b + (a % b != 0); }

size_t bon_sample_scratch(size_t vocab)
{
    return divide_up(vocab, BLOCK) * sizeof(double) + divide_up(vocab, GROUP) * sizeof(float)
           + vocab * (4 * sizeof(float) + sizeof(int32_t));
}

static space lay_out(void *scratch, size_t vocab)
{
    space s;
    s.sums = scratch;
    s.groups = (float *)(s.sums + divide_up(vocab, BLOCK));
    s.logit = s.groups + divide_up(vocab, GROUP);
    s.weight = s.logit + vocab;
    s.spare_logit = s.weight + vocab;
    s.spare_weight = s.spare_logit + vocab;
    s.id = (int32_t *)(s.spare_weight + vocab);
    return s;
}

/* -- passes over a row ----------------------------------------------------- */

/* Group i of x [n]; the last one, if short, as a copy in padded, -inf behind it. */
static const float *group_at(const float *x, size_t n, size_t i, float padded[GROUP])
{
    if (n - i >= GROUP) return x + i;
    for (size_t j = 0; j < GROUP; j++) padded[j] = j < n - i ? x[i + j] : -INFINITY;
    return padded;
}

/* groups [n/32, rounded up] may be NULL. */
static overview look_over(const float *x, size_t n, float *groups)
{
    const __m256 banned = _mm256_set1_ps(-INFINITY);
    float padded[GROUP], largest = -INFINITY;
    bon_sum8 sum = bon_sum8_zero();
    size_t count = 0;
    for (size_t i = 0; i < n; i += GROUP) {
        const float *group = group_at(x, n, i, padded);
        __m256 top = banned;
        for (size_t j = 0; j < GROUP; j += BON_LANES) {
            const __m256 v = _mm256_loadu_ps(group + j);
            const __m256 allowed = _mm256_cmp_ps(v, banned, _CMP_NEQ_UQ);
            bon_sum8_add(&sum, _mm256_and_ps(v, allowed));
            count += (size_t)__builtin_popcount((unsigned)_mm256_movemask_ps(allowed));
            top = _mm256_max_ps(top, v);
        }
        const float group_largest = bon_max_of8(top);
        if (groups) groups[i / GROUP] = group_largest;
        if (group_largest > largest) largest = group_largest;
    }
    return (overview){largest, bon_sum8_total(&sum), count};
}

static bon_status check_row(const overview *row)
{
    if (row->count == 0 || isnan(row->sum) || row->sum == HUGE_VAL) return BON_ERR_NOT_FINITE;
    return BON_OK;
}

/* 1/T as the factor of (logit - largest), which must not become infinite: 0 * inf. */
static float inverse(float temperature)
{
    return (float)fmin(1.0 / (double)temperature, (double)FLT_MAX);
}

static __m256 weigh8(const float *x, __m256 largest, __m256 factor)
{
    return bon_exp8(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x), largest), factor));
}

static double block_weight(const float *x, size_t n, float largest, float factor)
{
    const __m256 top = _mm256_set1_ps(largest), by = _mm256_set1_ps(factor);
    float padded[GROUP];
    bon_sum8 sum = bon_sum8_zero();
    for (size_t i = 0; i < n; i += GROUP) {
        const float *group = group_at(x, n, i, padded);
        const __m256 ab = _mm256_add_ps(weigh8(group, top, by), weigh8(group + 8, top, by));
        const __m256 cd = _mm256_add_ps(weigh8(group + 16, top, by), weigh8(group + 24, top, by));
        bon_sum8_add(&sum, _mm256_add_ps(ab, cd));
    }
    return bon_sum8_total(&sum);
}

/* Sum of the weights of x [n]; sums [n/512, rounded up] of its blocks unless NULL. */
static double total_weight(const float *x, size_t n, float largest, float factor, double *sums)
{
    double total = 0.0;
    for (size_t i = 0; i < n; i += BLOCK) {
        const size_t length = n - i < BLOCK ? n - i : BLOCK;
        const double sum = block_weight(x + i, length, largest, factor);
        if (sums) sums[i / BLOCK] = sum;
        total += sum;
    }
    return total;
}

static void store_weights(const float *x, size_t n, float largest, float factor, float *weight)
{
    const __m256 top = _mm256_set1_ps(largest), by = _mm256_set1_ps(factor);
    for (size_t i = 0; i < n; i += BON_LANES) {
        const __m256 v = _mm256_sub_ps(bon_load_first(x + i, n - i, -INFINITY), top);
        bon_store_first(weight + i, n - i, bon_exp8(_mm256_mul_ps(v, by)));
    }
}

/* -- the inverse of the cumulative distribution ---------------------------- */

/* The token of x [n] at target in [0, total): blocks, then weights are taken off the
 * target until it falls below 0, which only a weight > 0 can do. Where rounding keeps
 * it above, the last weight > 0 is the one. */
static size_t invert(const float *x, size_t n, float largest, float factor,
                     const double *sums, double target)
{
    const size_t blocks = divide_up(n, BLOCK);
    size_t block = 0;
    double rest = target, after = target;
    for (size_t b = 0; b < blocks && after >= 0.0; b++) {
        if (sums[b] <= 0.0) continue;
        block = b;
        rest = after;
        after -= sums[b];
    }

    float weight[BLOCK];
    const size_t first = block * BLOCK;
    const size_t length = n - first < BLOCK ? n - first : BLOCK;
    store_weights(x + first, length, largest, factor, weight);
    size_t chosen = 0;
    for (size_t i = 0; i < length && rest >= 0.0; i++) {
        if (weight[i] <= 0.0f) continue;
        chosen = i;
        rest -= (double)weight[i];
    }
    return first + chosen;
}

/* The lowest id among the largest logits. */
static size_t first_largest(const float *x, float largest, const float *groups)
{
    size_t i = 0;
    while (groups[i / GROUP] < largest) i += GROUP;
    while (x[i] < largest) i++;
    return i;
}

/* -- selection ------------------------------------------------------------- */

static void find_range(const float *x, size_t n, float *low, float *high)
{
    __m256 least = _mm256_set1_ps(x[0]), most = least;
    for (size_t i = 0; i < n; i += BON_LANES) {
        const __m256 v = bon_load_first(x + i, n - i, x[0]);
        least = _mm256_min_ps(least, v);
        most = _mm256_max_ps(most, v);
    }
    *low = -bon_max_of8(_mm256_sub_ps(_mm256_setzero_ps(), least));
    *high = bon_max_of8(most);
}

/* Equal parts of the range of some logits, numbered from the largest down. */
typedef struct {
    double high, scale;
    int last;
} binning;

static binning bins_between(float low, float high)
{
    const double range = (double)high - (double)low, scale = (BINS - 1) / range;
    return (binning){(double)high, scale, (int)(range * scale)};
}

static __m256i bins_of8(const binning *bins, __m256 logit)
{
    const __m256d high = _mm256_set1_pd(bins->high), scale = _mm256_set1_pd(bins->scale);
    const __m256d a = _mm256_cvtps_pd(_mm256_castps256_ps128(logit));
    const __m256d b = _mm256_cvtps_pd(_mm256_extractf128_ps(logit, 1));
    return _mm256_set_m128i(_mm256_cvttpd_epi32(_mm256_mul_pd(_mm256_sub_pd(high, b), scale)),
                            _mm256_cvttpd_epi32(_mm256_mul_pd(_mm256_sub_pd(high, a), scale)));
}

/* The bin in which the sum of weights from the largest logit down reaches target, the
 * last one if none does; *before grows by the weights of the bins above it. */
static int find_bin(const binning *bins, const float *logit, const float *weight, size_t n,
                    double target, double *before)
{
    double sum[BINS] = {0.0};
    for (size_t i = 0; i < n; i += BON_LANES) {
        int32_t bin[BON_LANES];
        const __m256 x = bon_load_first(logit + i, n - i, (float)bins->high);
        _mm256_storeu_si256((__m256i *)bin, bins_of8(bins, x));
        for (size_t j = 0; j < BON_LANES && i + j < n; j++)
            sum[bin[j]] += (double)weight[i + j];
    }
    int bin = 0;
    while (bin < bins->last && *before + sum[bin] < target) *before += sum[bin++];
    return bin;
}

/* Copies the members of a bin into the spare arrays (in place if they are the source);
 * returns how many. */
static size_t members_of(const binning *bins, int bin, const float *logit, const float *weight,
                         size_t n, const space *s)
{
    const __m256i wanted = _mm256_set1_epi32(bin);
    size_t members = 0;
    for (size_t i = 0; i < n; i += BON_LANES) {
        const __m256 x = bon_load_first(logit + i, n - i, (float)bins->high);
        const __m256i found = _mm256_and_si256(bon_first_lanes(n - i < 8 ? n - i : 8),
                                               _mm256_cmpeq_epi32(bins_of8(bins, x), wanted));
        unsigned mask = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(found));
        for (; mask != 0; mask &= mask - 1) {
            const size_t at = i + (size_t)__builtin_ctz(mask);
            s->spare_logit[members] = logit[at];
            s->spare_weight[members++] = weight[at];
        }
    }
    return members;
}

/* From the largest logit down: the cut at which the sum of weights reaches target > 0,
 * or a cut that keeps all if it never does. n >= 1, logits finite, weights >= 0. Every
 * round goes on inside one of 256 bins until all logits in it are equal: two or three
 * rounds for a vocabulary, 35 at the very most, as a float spans 2^278 steps. */
static cut find_cut(const float *logit, const float *weight, size_t n, double target,
                    const space *s)
{
    double before = 0.0;
    for (;;) {
        float low, high;
        find_range(logit, n, &low, &high);
        if (low == high) {
            size_t ties = 0;
            for (; ties < n && before < target; ties++) before += (double)weight[ties];
            return (cut){low, ties};
        }

        const binning bins = bins_between(low, high);
        const int bin = find_bin(&bins, logit, weight, n, target, &before);
        n = members_of(&bins, bin, logit, weight, n, s);
        logit = s->spare_logit;
        weight = s->spare_weight;
    }
}

/* Drops the candidates below the cut; returns how many are left. */
static size_t apply_cut(const space *s, size_t n, cut at)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) { /* written always, counted if it is kept */
        const float x = s->logit[i];
        s->id[kept] = s->id[i];
        s->logit[kept] = x;
        kept += x > at.logit;
        if (x == at.logit && at.ties > 0) {
            at.ties--;
            kept++;
        }
    }
    return kept;
}

/* The tokens with logits of at least bound (finite) become the candidates. */
static size_t gather(const float *x, size_t n, float bound, const space *s)
{
    const __m256 least = _mm256_set1_ps(bound);
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    size_t found = 0;
    for (size_t i = 0; i < n; i += BON_LANES) {
        if (s->groups[i / GROUP] < bound) {
            i += GROUP - BON_LANES;
            continue;
        }
        const __m256 v = bon_load_first(x + i, n - i, -INFINITY);
        unsigned mask = (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(v, least, _CMP_GE_OQ));
        if (mask == 0xFF) {
            const __m256i id = _mm256_add_epi32(lane, _mm256_set1_epi32((int)i));
            _mm256_storeu_si256((__m256i *)(s->id + found), id);
            _mm256_storeu_ps(s->logit + found, v);
            found += BON_LANES;
            continue;
        }
        for (; mask != 0; mask &= mask - 1) {
            const size_t at = i + (size_t)__builtin_ctz(mask);
            s->id[found] = (int32_t)at;
            s->logit[found++] = x[at];
        }
    }
    return found;
}

/* -- bounds of the cuts ---------------------------------------------------- */

static void fill_ones(float *weight, size_t n)
{
    for (size_t i = 0; i < n; i++) weight[i] = 1.0f;
}

/* A logit that at least k tokens reach; -FLT_MAX if there are fewer groups than k. */
static float top_k_bound(size_t groups, size_t k, const space *s)
{
    size_t finite = 0;
    for (size_t i = 0; i < groups; i++) {
        s->logit[finite] = s->groups[i];
        finite += s->groups[i] >= -FLT_MAX;
    }
    if (finite < k) return -FLT_MAX;
    fill_ones(s->weight, finite);
    return find_cut(s->logit, s->weight, finite, (double)k, s).logit;
}

/* The smallest finite float >= largest + T nats, nats <= 0: above -inf is -FLT_MAX. */
static float logit_below(float largest, float temperature, double nats)
{
    const double exact = (double)largest + (double)temperature * nats;
    const float near = (float)exact;
    return (double)near < exact ? nextafterf(near, INFINITY) : near;
}

static float top_p_bound(const overview *row, const bon_sampling *how, double total)
{
    const double nats = log((1.0 - how->top_p) * total / (double)row->count) - TOP_P_MARGIN;
    return logit_below(row->largest, how->temperature, nats);
}

/* -- truncation ------------------------------------------------------------ */

/* The tokens that top-k, top-p and min-p keep become the candidates; at least one is.
 * total: of the weights of the whole row, used by top-p without top-k. */
static size_t keep_tokens(const float *x, size_t vocab, const overview *row,
                          const bon_sampling *how, double total, const space *s)
{
    const float factor = inverse(how->temperature);
    const bool some = how->top_k > 0, nucleus = how->top_p < 1.0, relative = how->min_p > 0.0;
    const float min_p_cut =
        relative ? logit_below(row->largest, how->temperature, log(how->min_p)) : -FLT_MAX;

    float bound = min_p_cut;
    if (some)
        bound = top_k_bound(divide_up(vocab, GROUP), (size_t)how->top_k, s);
    else if (nucleus)
        bound = fmaxf(bound, top_p_bound(row, how, total));

    size_t n = gather(x, vocab, bound, s);
    if (some) {
        fill_ones(s->weight, n);
        const cut kth = find_cut(s->logit, s->weight, n, (double)how->top_k, s);
        n = apply_cut(s, n, (cut){kth.logit, SIZE_MAX});
    }
    if (nucleus) {
        if (some) total = total_weight(s->logit, n, row->largest, factor, NULL);
        store_weights(s->logit, n, row->largest, factor, s->weight);
        n = apply_cut(s, n, find_cut(s->logit, s->weight, n, how->top_p * total, s));
    }
    if (relative) n = apply_cut(s, n, (cut){min_p_cut, SIZE_MAX});
    return n;
}

/* -- public ---------------------------------------------------------------- */

bon_status bon_sampling_check(const bon_sampling *how)
{
    if (!(how->temperature >= 0.0f && how->temperature <= FLT_MAX)) return BON_ERR_DOMAIN;
    if (how->top_k < 0) return BON_ERR_DOMAIN;
    if (!(how->top_p > 0.0 && how->top_p <= 1.0)) return BON_ERR_DOMAIN;
    if (!(how->min_p >= 0.0 && how->min_p <= 1.0)) return BON_ERR_DOMAIN;
    return BON_OK;
}

/* Nats of one logit in a row with this largest logit and sum of weights, <= 0: the
 * largest one's weight of exactly 1 is in the sum. */
static float log_share(float logit, float largest, float temperature, double total)
{
    return (float)(((double)logit - (double)largest) / (double)temperature - log(total));
}

/* Draws by how, T > 0. s->sums and total: of the whole row at T = 1. */
static size_t draw(const float *x, size_t vocab, const overview *row, const bon_sampling *how,
                   double u, double total, const space *s, float *sampled_logp)
{
    const bool all = how->top_k == 0 && how->top_p >= 1.0 && how->min_p <= 0.0;
    const bool nucleus = how->top_k == 0 && how->top_p < 1.0;
    const float factor = inverse(how->temperature);
    if ((all || nucleus) && factor != 1.0f)
        total = total_weight(x, vocab, row->largest, factor, s->sums);

    size_t n = vocab;
    if (!all) {
        n = keep_tokens(x, vocab, row, how, total, s);
        x = s->logit;
        total = total_weight(x, n, row->largest, factor, s->sums);
    }
    const size_t i = invert(x, n, row->largest, factor, s->sums, u * total);
    *sampled_logp = log_share(x[i], row->largest, how->temperature, total);
    return all ? i : (size_t)s->id[i];
}

bon_status bon_sample_token(const float *logits, size_t vocab, const bon_sampling *how,
                            double u, void *scratch, bon_draw *out)
{
    if (bon_sampling_check(how) != BON_OK || vocab < 1 || vocab > INT32_MAX
        || !(u >= 0.0 && u < 1.0))
        return BON_ERR_DOMAIN;
    const space s = lay_out(scratch, vocab);
    const overview row = look_over(logits, vocab, s.groups);
    const bon_status status = check_row(&row);
    if (status != BON_OK) return status;

    const double total = total_weight(logits, vocab, row.largest, 1.0f, s.sums);
    const double level = log(total) + (double)row.largest; /* log of the sum of exp(logits) */
    const double count = (double)row.count;

    float sampled_logp = 0.0f;
    const size_t token =
        how->temperature <= 0.0f
            ? first_largest(logits, row.largest, s.groups)
            : draw(logits, vocab, &row, how, u, total, &s, &sampled_logp);
    *out = (bon_draw){
        .token = (int32_t)token,
        .logp = log_share(logits[token], row.largest, 1.0f, total),
        .sampled_logp = sampled_logp,
        .certainty = (float)fmax(level - row.sum / count - log(count), 0.0),
    };
    return BON_OK;
}

bon_status bon_log_softmax_at(const float *logits, size_t vocab, float temperature,
                              const int32_t *ids, size_t len, float *out)
{
    if (!(temperature > 0.0f && temperature <= FLT_MAX) || vocab < 1 || vocab > INT32_MAX)
        return BON_ERR_DOMAIN;
    for (size_t i = 0; i < len; i++)
        if ((size_t)ids[i] >= vocab) return BON_ERR_DOMAIN; /* so is a negative one */
    const overview row = look_over(logits, vocab, NULL);
    const bon_status status = check_row(&row);
    if (status != BON_OK) return status;

    const double total = total_weight(logits, vocab, row.largest, inverse(temperature), NULL);
    for (size_t i = 0; i < len; i++)
        out[i] = log_share(logits[ids[i]], row.largest, temperature, total);
    return BON_OK;
}
