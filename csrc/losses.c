/* losses.c - the exact gradient of best-of-k, and rewards 0 and 1; see losses.h.
 *
 * Sums over subsets are recurrences in ratios of binomials, so nothing overflows. How rows
 * are sorted and walked is in losses_block.h.
 */
#include "losses.h"

#include <math.h>

#include "dispatch.h"
#include "losses_block.h"

/* -- bon: the exact gradient ----------------------------------------------- */

/* A sample with t samples below it is the best of a random subset of k with the chance
 * first[t] = C(t,k-1)/C(n,k). What it counts for others is second[t]: with "subset", that
 * it is second best, below one given sample, C(t,k-2)/C(n,k); with the others, that it is
 * best and one given lower sample is in the subset, C(t-1,k-2)/C(n,k). */
typedef struct {
    size_t k;
    bon_baseline baseline;
    double *first, *second; /* [n] */
} subsets;

static void fill_subsets(const subsets *of, size_t n)
{
    const double size = (double)n, k = (double)of->k;
    double second = k / size * ((k - 1.0) / (size - k + 1.0)); /* C(n-1,k-2)/C(n,k) */
    of->first[n - 1] = k / size;
    for (size_t t = n - 1;; t--) {
        const double place = (double)t;
        const double lower = t > 0 ? second * fmax(place - k + 2.0, 0.0) / place : 0.0;
        of->second[t] = of->baseline == BON_BASELINE_SUBSET ? second : lower;
        if (t == 0) break;
        of->first[t - 1] = of->first[t] * fmax(place - k + 1.0, 0.0) / place;
        second = lower;
    }
}

/* Running sums over the level of a place, from its lowest place up; at the highest they
 * are those of the level. */
typedef struct {
    double *reward, *count, *first, *second; /* [n, LANES] */
    double *lower, *alone; /* [n, LANES] at the start: see weigh_against_subset */
} levels;

BON_INLINE void subtract(const block *b, size_t lane, const bon_vec *base)
{
    for (size_t i = 0; i < b->n; i++) *bon_vec_at(b->rewards + i * LANES + lane) -= *base;
}

/* k = 1: each reward against the mean of the others. */
BON_INLINE void weigh_single(const block *b, size_t lane, bon_vec *best)
{
    bon_vec sum = {0.0};
    for (size_t i = b->n; i-- > 0;) sum += *bon_vec_at(b->rewards + i * LANES + lane);
    *best = sum / (double)b->n;
    for (size_t i = 0; i < b->n; i++)
        *bon_vec_at(b->weights + i * LANES + lane) =
            (*best - *bon_vec_at(b->rewards + i * LANES + lane)) / (double)(b->n - 1);
}

/* Baseline "subset" where no scores are equal. */
BON_INLINE void weigh_untied(const block *b, const subsets *of, const bon_vec *base,
                             size_t lane, bon_vec *best)
{
    bon_vec lower = {0.0}, sum = {0.0};
    for (size_t t = 0; t < b->n; t++) {
        const size_t at = (b->n - 1 - t) * LANES + lane;
        const bon_vec reward = *bon_vec_at(b->rewards + at) - *base;
        const bon_vec wins = of->first[t] * reward;
        *bon_vec_at(b->weights + at) = lower - wins;
        lower += of->second[t] * reward;
        sum += wins;
    }
    *best = sum;
}

/* Fills the running sums, upwards. In `lower` the lower levels' second[t] times mean
 * reward add up, in best first[t] times mean reward over all levels. */
BON_INLINE void sum_levels(const block *b, const subsets *of, const levels *sums,
                           size_t lane, int tied, bon_vec *best)
{
    const bon_vec zero = {0.0}, one = {1.0, 1.0, 1.0, 1.0};
    bon_vec reward = zero, count = one, first = zero, second = zero, lower = zero;
    bon_vec alone = zero, total = zero;
    for (size_t t = 0; t < b->n; t++) {
        const size_t i = b->n - 1 - t, at = i * LANES + lane;
        bon_choice same = {0};
        if (t > 0) same_level(b, i, i + 1, lane, tied, &same);
        const bon_vec mean = reward / count, below = lower + second * mean;
        const bon_vec here = {of->first[t], of->first[t], of->first[t], of->first[t]};
        const bon_vec before = total + first * mean;
        keep(&lower, &same, &below);
        keep(&total, &same, &before);
        keep(&alone, &same, &here);
        reward = (bon_vec)((bon_choice)reward & same) + *bon_vec_at(b->rewards + at);
        count = (bon_vec)((bon_choice)count & same) + one;
        first = (bon_vec)((bon_choice)first & same) + here;
        second = (bon_vec)((bon_choice)second & same) + of->second[t];
        *bon_vec_at(sums->reward + at) = reward;
        *bon_vec_at(sums->count + at) = count;
        *bon_vec_at(sums->first + at) = first;
        *bon_vec_at(sums->second + at) = second;
        *bon_vec_at(sums->lower + at) = lower;
        *bon_vec_at(sums->alone + at) = alone;
    }
    *best = total + first * (reward / count);
}

BON_INLINE void at_least_one(bon_vec *x)
{
    const bon_vec one = {1.0, 1.0, 1.0, 1.0};
    const bon_choice more = *x > one;
    bon_choose(x, &more, x, &one);
}

/* Baseline "subset". Let a level have m samples from place L on, counted from below, with
 * mean reward M. One of them, i, and j >= 1 others as the best of a subset: without i the
 * best falls by (R_i - mean of the others) / (j + 1), which adds up over subsets to the
 * mean of `first` over the level less first[L]. Alone at the top: R_i less the best of
 * those below, which adds up to first[L] R_i - sum over t < L of second[t] * mean of t's
 * level. */
BON_INLINE void weigh_against_subset(const block *b, const levels *sums, size_t lane)
{
    bon_vec mean = {0.0}, shared = {0.0}, scale = {0.0};
    for (size_t i = 0; i < b->n; i++) {
        const size_t at = i * LANES + lane;
        bon_choice same = {0};
        if (i > 0) same_level(b, i, i - 1, lane, 1, &same);
        const bon_vec m = *bon_vec_at(sums->count + at), alone = *bon_vec_at(sums->alone + at);
        bon_vec others = m - 1.0;
        at_least_one(&others);
        const bon_vec level_mean = *bon_vec_at(sums->reward + at) / m;
        const bon_vec level_shared = *bon_vec_at(sums->first + at) / m - alone;
        const bon_vec level_scale = m / others;
        keep(&mean, &same, &level_mean);
        keep(&shared, &same, &level_shared);
        keep(&scale, &same, &level_scale);
        const bon_vec reward = *bon_vec_at(b->rewards + at);
        *bon_vec_at(b->weights + at) = *bon_vec_at(sums->lower + at) - alone * reward
                                       - shared * ((reward - mean) * scale);
    }
}

/* Baseline "none": minus a_i = the sum over subsets with i of the reward of the best. In
 * the level of i, subsets whose best level it is have the mean reward of the others,
 * C(L+m-1,k-1) of them, and (R_i - mean of the others) as above; a higher level at place
 * t is best in C(t-1,k-2) subsets with i. */
BON_INLINE void weigh_subsets(const block *b, const subsets *of, const levels *sums,
                              size_t lane, int tied)
{
    bon_vec mean = {0.0}, wins = {0.0}, last = {0.0}, rest = {0.0}, higher = {0.0};
    bon_vec in_level = {0.0};
    for (size_t i = 0; i < b->n; i++) {
        const size_t at = i * LANES + lane, t = b->n - 1 - i;
        bon_choice same = {0};
        if (i > 0) same_level(b, i, i - 1, lane, tied, &same);
        const bon_vec m = *bon_vec_at(sums->count + at), above = higher + in_level;
        bon_vec level_rest = m - 1.0;
        at_least_one(&level_rest);
        const bon_vec level_mean = *bon_vec_at(sums->reward + at) / m;
        const bon_vec level_wins = *bon_vec_at(sums->first + at) / m;
        const bon_vec level_last = {of->first[t], of->first[t], of->first[t], of->first[t]};
        const bon_vec level_in = *bon_vec_at(sums->second + at) * level_mean;
        keep(&mean, &same, &level_mean);
        keep(&wins, &same, &level_wins);
        keep(&last, &same, &level_last);
        keep(&rest, &same, &level_rest);
        keep(&higher, &same, &above);
        keep(&in_level, &same, &level_in);
        const bon_vec reward = *bon_vec_at(b->rewards + at);
        const bon_vec others = mean - (reward - mean) / rest;
        *bon_vec_at(b->weights + at) = -(others * last + (reward - others) * wins + higher);
    }
}

/* "none": what the shift of the rewards took from a_i, which is in the share k/n of all
 * subsets. "loo": a_i - (k/n) (best-of-k of the others), and the subsets without i are all
 * subsets but those with i. */
BON_INLINE void finish_baseline(const block *b, const subsets *of, size_t lane,
                                const bon_vec *base, const bon_vec *best)
{
    const double n = (double)b->n, k = (double)of->k;
    const int loo = of->baseline == BON_BASELINE_LOO;
    const double scale = loo ? n / (n - k) : 1.0;
    const bon_vec shift = loo ? *best * (k / (n - k)) : *base * (-k / n);
    for (size_t i = 0; i < b->n; i++) {
        bon_vec *weight = bon_vec_at(b->weights + i * LANES + lane);
        *weight = *weight * scale + shift;
    }
}

/* Four rows of a sorted block. Rewards are taken relative to `first`, any of their row:
 * equal rewards then give exact zeros. */
BON_INLINE void weigh_four(const block *b, const subsets *of, const double *first,
                           size_t lane, int tied, double *value)
{
    const levels sums = {b->part[0], b->part[1], b->part[2],
                         b->part[3], b->part[4], b->part[5]};
    const bon_vec base = *bon_const_vec_at(first + lane);
    bon_vec best;
    if (of->baseline == BON_BASELINE_SUBSET && of->k > 1 && !tied) {
        weigh_untied(b, of, &base, lane, &best);
    } else if (of->baseline == BON_BASELINE_SUBSET && of->k == 1) {
        subtract(b, lane, &base);
        weigh_single(b, lane, &best);
    } else {
        subtract(b, lane, &base);
        sum_levels(b, of, &sums, lane, tied, &best);
        if (of->baseline == BON_BASELINE_SUBSET) {
            weigh_against_subset(b, &sums, lane);
        } else {
            weigh_subsets(b, of, &sums, lane, tied);
            finish_baseline(b, of, lane, &base, &best);
        }
    }
    best += base;
    for (size_t l = 0; l < 4; l++) value[lane + l] = -best[l];
}

/* The first of `left` rows, at most LANES. False where a value is not finite. */
BON_INLINE int bon_rows(const block *b, const subsets *of, const double *scores,
                        const double *rewards, size_t left, double *value, double *out)
{
    const size_t rows = left < LANES ? left : LANES;
    double eight[LANES], base[LANES];
    if (!rows_finite(rewards, rows, b->n)) return 0;
    fetch_next(scores, b->n, left);
    const int found = sort_rows(b, scores, rows);
    if (found == NOT_FINITE) return 0;
    if (scores != rewards) fetch_next(rewards, b->n, left);
    gather(b, rewards, rows, b->rewards);
    fetch_next_output(b, out, left);
    for (size_t l = 0; l < LANES; l++) base[l] = rewards[(l < rows ? l : rows - 1) * b->n];
    for (size_t lane = 0; lane < LANES; lane += 4)
        weigh_four(b, of, base, lane, found == TIES, eight);
    for (size_t r = 0; r < rows; r++) value[r] = eight[r];
    scatter(b, rows, out);
    return 1;
}

static int bon_rows_anywhere(const block *b, const subsets *of, const double *scores,
                             const double *rewards, size_t left, double *value, double *out)
{
    return bon_rows(b, of, scores, rewards, left, value, out);
}

BON_AVX2 static int bon_rows_avx2(const block *b, const subsets *of, const double *scores,
                                  const double *rewards, size_t left, double *value,
                                  double *out)
{
    return bon_rows(b, of, scores, rewards, left, value, out);
}

bon_status bon_bon_loss(const double *scores, const double *rewards, size_t rows, size_t n,
                        size_t k, bon_baseline baseline, double *scratch, double *value,
                        double *weights, int stream, size_t *bad)
{
    *bad = 0;
    if (n > BON_MAX_LOSS_SAMPLES || k < 1 || k > n) return BON_ERR_DOMAIN;
    if ((baseline == BON_BASELINE_SUBSET && n < 2) || (baseline == BON_BASELINE_LOO && n == k))
        return BON_ERR_DOMAIN;

    const block b = cut_up(n, scratch, weights, stream);
    const subsets of = {k, baseline, b.table, b.table + n};
    fill_subsets(&of, n);
    const int avx2 = bon_has_avx2();
    for (size_t r = 0; r < rows; r += LANES) {
        const size_t at = r * n, left = rows - r;
        const int finite =
            avx2 ? bon_rows_avx2(&b, &of, scores + at, rewards + at, left, value + r, weights + at)
                 : bon_rows_anywhere(&b, &of, scores + at, rewards + at, left, value + r,
                                     weights + at);
        if (finite) continue;
        const size_t some = left < LANES ? left : LANES;
        const bon_status status =
            find_not_finite(rewards + at, scores + at, some * n, at, bad);
        if (status != BON_OK) return status;
    }
    if (b.stream) bon_end_streams();
    return BON_OK;
}

/* -- bon_rlb --------------------------------------------------------------- */

/* The sum of a row; *other is 0 if all of it are 0 or 1. */
BON_INLINE double sum_binary(const double *row, size_t n, int64_t *other)
{
    bon_vec sum[2] = {{0.0}};
    bon_choice fits[2];
    fits[0] = fits[1] = ~(bon_choice){0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t v = 0; v < 2; v++) {
            const bon_vec x = *bon_const_vec_at(row + i + 4 * v);
            sum[v] += x;
            fits[v] &= (x == 0.0) | (x == 1.0);
        }
    sum[0] += sum[1];
    fits[0] &= fits[1];
    double total = (sum[0][0] + sum[0][1]) + (sum[0][2] + sum[0][3]);
    *other = ~(fits[0][0] & fits[0][1] & fits[0][2] & fits[0][3]);
    for (; i < n; i++) {
        total += row[i];
        *other |= !(row[i] == 0.0 || row[i] == 1.0);
    }
    return total;
}

BON_INLINE void weigh_row(const double *row, double right, double wrong, size_t n, double *out)
{
    const bon_vec hit = {right, right, right, right}, miss = {wrong, wrong, wrong, wrong};
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const bon_choice holds = *bon_const_vec_at(row + i) != 0.0;
        bon_choose(bon_vec_at(out + i), &holds, &hit, &miss);
    }
    for (; i < n; i++) out[i] = row[i] != 0.0 ? right : wrong;
}

BON_INLINE size_t count_rows(const double *rewards, size_t rows, size_t n, double *correct)
{
    for (size_t r = 0; r < rows; r++) {
        int64_t other;
        correct[r] = sum_binary(rewards + r * n, n, &other);
        if (other != 0) return r;
    }
    return rows;
}

static size_t count_rows_anywhere(const double *rewards, size_t rows, size_t n,
                                  double *correct)
{
    return count_rows(rewards, rows, n, correct);
}

BON_AVX2 static size_t count_rows_avx2(const double *rewards, size_t rows, size_t n,
                                       double *correct)
{
    return count_rows(rewards, rows, n, correct);
}

/* Where the row has a value that is neither 0 nor 1. */
static bon_status find_not_binary(const double *rewards, size_t row, size_t n, size_t *bad)
{
    for (*bad = row * n; *bad + 1 < (row + 1) * n; ++*bad)
        if (!(rewards[*bad] == 0.0 || rewards[*bad] == 1.0)) break;
    return BON_ERR_DOMAIN;
}

bon_status bon_count_correct(const double *rewards, size_t rows, size_t n,
                             double *correct, size_t *bad)
{
    const size_t done = bon_has_avx2() ? count_rows_avx2(rewards, rows, n, correct)
                                       : count_rows_anywhere(rewards, rows, n, correct);
    return done == rows ? BON_OK : find_not_binary(rewards, done, n, bad);
}

void bon_two_weights(const double *rewards, const double *hit, const double *miss,
                     size_t rows, size_t n, double *weights)
{
    for (size_t r = 0; r < rows; r++)
        weigh_row(rewards + r * n, hit[r], miss[r], n, weights + r * n);
}

BON_INLINE size_t weigh_counted(const double *rewards, const double *hit, const double *miss,
                                size_t rows, size_t n, double *correct, double *weights)
{
    for (size_t r = 0; r < rows; r++) {
        if (count_rows(rewards + r * n, 1, n, correct + r) == 0) return r;
        const size_t count = (size_t)correct[r];
        weigh_row(rewards + r * n, hit[count], miss[count], n, weights + r * n);
    }
    return rows;
}

static size_t weigh_counted_anywhere(const double *rewards, const double *hit,
                                     const double *miss, size_t rows, size_t n,
                                     double *correct, double *weights)
{
    return weigh_counted(rewards, hit, miss, rows, n, correct, weights);
}

BON_AVX2 static size_t weigh_counted_avx2(const double *rewards, const double *hit,
                                          const double *miss, size_t rows, size_t n,
                                          double *correct, double *weights)
{
    return weigh_counted(rewards, hit, miss, rows, n, correct, weights);
}

bon_status bon_weigh_by_count(const double *rewards, const double *hit, const double *miss,
                              size_t rows, size_t n, double *correct, double *weights,
                              size_t *bad)
{
    const size_t done =
        bon_has_avx2() ? weigh_counted_avx2(rewards, hit, miss, rows, n, correct, weights)
                       : weigh_counted_anywhere(rewards, hit, miss, rows, n, correct, weights);
    return done == rows ? BON_OK : find_not_binary(rewards, done, n, bad);
}
