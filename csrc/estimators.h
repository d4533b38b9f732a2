/* estimators.h - what k tries would give, estimated from n >= k samples.
 *
 * A model was sampled n times on one prompt. A user will draw only k of such
 * samples. Two questions, both answered by averaging over all C(n,k) subsets
 * of size k in closed form, so both answers are unbiased for k fresh samples:
 *
 *   pass@k      how often is at least one of the k samples correct?
 *   best-of-k   what reward does the sample have that a selector picks of k?
 *
 * (The third, how often the most frequent answer of k is correct, is in
 * majority.h.) None has an unbiased estimate for k > n, so k > n is an error.
 *
 * Sources: pass@k is eq. 1 of Chen et al. 2021 (arXiv:2107.03374). best-of-k
 * is the U-statistic whose kernel is "reward of the best-scored of k"
 * (Hoeffding 1948, Ann. Math. Stat. 19:293).
 *
 * Rules that hold for every function here:
 *   - Arrays belong to the caller and are not kept after the call.
 *   - Nothing allocates, blocks or touches global state, so any number of
 *     threads may call at once if their outputs and scratch do not overlap.
 *     No index comes from memory that another thread may write: a racing
 *     writer can spoil a result, not memory.
 *   - On error the outputs are unspecified and *bad, where there is one,
 *     holds the index of the first offending element.
 */
#ifndef BON_ESTIMATORS_H
#define BON_ESTIMATORS_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

/* Largest sample count: up to here int64 -> double is exact. */
#define BON_MAX_SAMPLES ((int64_t)1 << 53)

/* pass@k of each prompt: out[i, j] = 1 - C(n[i]-c[i], ks[j]) / C(n[i], ks[j]).
 *
 *   n          [len]      samples drawn,    ks[j] <= n[i] <= BON_MAX_SAMPLES
 *   c          [len]      samples correct,  0 <= c[i] <= n[i]
 *   ks         [nk]       tries,            ks[j] >= 1
 *   table      [room]     scratch; where more than n[i] neighbours have equal n
 *                         and 2 * (n[i] + 1) * nk <= room, the answers for all
 *                         c are computed once and looked up; the same bits
 *                         either way
 *   out        [len, nk]  probability in [0, 1]; small ones keep their relative
 *                         accuracy (about min(c, k) roundings)
 *   bad                   index into n and c
 *
 * BON_ERR_DOMAIN if any bound above is broken. One lookup per prompt, or
 * O(min(c[i], k)), and never more than about 6*sqrt(n[i]) steps: by then the
 * rest is below rounding.
 */
BON_MUST_CHECK bon_status bon_pass_at_k(const int64_t *n, const int64_t *c,
                                        size_t len, const int64_t *ks, size_t nk,
                                        double *table, size_t room, double *out,
                                        size_t *bad);

/* Largest n of best-of-k: an index into eight rows fits into 32 bits. */
#define BON_MAX_RANKED ((size_t)1 << 28)

/* A table of weights holds this many values of k side by side. */
#define BON_RANK_PANEL 8

/* Columns of a table of weights for nk values of k: whole panels. */
static inline size_t bon_rank_columns(size_t nk)
{
    return (nk + BON_RANK_PANEL - 1) / BON_RANK_PANEL * BON_RANK_PANEL;
}

/* The chance that rank i (0 = best) is the best of k drawn from n without
 * replacement, C(n-1-i, k-1) / C(n, k): what bon_best_of_k weighs rewards with.
 *
 *   ks       [nk]   1 <= ks[j] <= n
 *   weights  [bon_rank_columns(nk) / BON_RANK_PANEL, n, BON_RANK_PANEL], 0 where padded:
 *                   the weights that are used together lie together
 *   hits            of the same shape with n + 1 for n: the chance that one of the i best
 *                   ranks is among k, which is the sum of their weights, and 1 for i > n-k
 *
 * BON_ERR_DOMAIN if n or some ks[j] is out of range. O(n * nk).
 */
BON_MUST_CHECK bon_status bon_rank_weights(size_t n, const int64_t *ks, size_t nk,
                                           double *weights, double *hits);

/* Doubles of scratch that bon_best_of_k needs for rows of n samples. */
static inline size_t bon_best_of_k_scratch(size_t n) { return 35 * n + 32; }

/* Expected reward of the highest-scored of k samples, per row and k.
 *
 * Samples with equal scores are equally likely to be picked. Ties are the
 * common case (a 0/1 verifier), and breaking them by position would let the
 * order of the samples leak into the estimate.
 *
 *   scores   [rows, n]  the selector's view; may be the same array as rewards
 *   rewards  [rows, n]  the user's view
 *   ks       [nk]       samples per selection
 *   weights, hits       from bon_rank_weights for the same n, ks and nk
 *   scratch             bon_best_of_k_scratch(n) doubles; fastest, as weights are,
 *                       where it begins on a cache line
 *   out                 [rows, nk] with `stride` doubles from row to row:
 *                       expected reward, in the unit of rewards
 *   stream              running sums, and rows of two levels, are written past the caches
 *                       where lines of out are whole
 *   bad                 flat index into scores and rewards
 *
 * BON_ERR_DOMAIN if n or some k is out of range (*bad is not set),
 * BON_ERR_NOT_FINITE if a score or reward is NaN or infinite.
 *
 * O(n log^2 n + n * nk) per row, eight rows at a time; for n <= 512 weighing is O(n^2)
 * whatever nk; where every k is 1, a plain mean, and where the scores of a row have two
 * values, O(n + nk). Error: about n roundings, relative to
 * the largest |reward|.
 */
BON_MUST_CHECK bon_status bon_best_of_k(const double *scores, const double *rewards,
                                        size_t rows, size_t n, const int64_t *ks,
                                        size_t nk, const double *weights,
                                        const double *hits, double *scratch, double *out,
                                        size_t stride, int stream, size_t *bad);

/* Mean preference over a reference of each row, and its standard error.
 *
 *   preferences  [rows, n]  in [0, 1]; NaN is a comparison that was not made
 *   rates        [rows]     mean of the m values that are not NaN; NaN where a value is
 *                           outside [0, 1] or m = 0: the caller says which
 *   errors       [rows]     sqrt(sum of squared deviations / (m - 1) / m), NaN for m = 1
 *
 * One pass over most rows; a second, in the cache, where a value is NaN or the first lies
 * far from the mean. Error: about n roundings.
 */
void bon_win_rate(const double *preferences, size_t rows, size_t n, double *rates,
                  double *errors);

#endif /* BON_ESTIMATORS_H */
