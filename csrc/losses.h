/* losses.h - losses that know of best-of-k: one weight per sample on grad log pi.
 *
 * A policy was sampled n times on one prompt. At deployment k samples will be drawn
 * and the one of the highest score is kept; equal scores are equally likely to be. Each
 * function here computes, per prompt, the estimate of a loss that is to be minimised
 * and weights such that
 *
 *   gradient of the loss = sum over samples of weights[i] * grad log pi(sample i).
 *
 * Sources: the objectives and the variational law are those of Chow et al. 2024
 * (arXiv:2412.15287). The exact gradient (bon_bon_loss) is derived in
 * docs/design/losses.md; without ties and with scores = rewards it is that of Walder &
 * Karkhanis 2025 (arXiv:2505.15201).
 *
 * Rules that hold for every function here:
 *   - Arrays belong to the caller and are not kept after the call.
 *   - Nothing allocates, blocks or touches global state, so any number of threads may
 *     call at once if their outputs and scratch do not overlap.
 *   - Rows are independent: what stands beside a row shows in the last bits at most, since
 *     eight rows are sorted in the same way.
 *   - Scratch is aligned for doubles; its size in doubles is given by a function.
 *   - stream: weights are written past the caches where their lines are whole.
 *   - On error the outputs are unspecified and *bad holds the flat index of the first
 *     offending element: BON_ERR_NOT_FINITE for NaN and infinity, BON_ERR_DOMAIN for
 *     whatever else breaks a bound below (then *bad is the row times n, if a row is it).
 *   - O(n log^2 n) per row for up to a thousand samples, sorted eight rows side by side;
 *     O(n log n) from there on. Error: about n roundings, relative to the largest term.
 */
#ifndef BON_LOSSES_H
#define BON_LOSSES_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

/* Largest n: an index of a sample fits into the low bits of a key. */
#define BON_MAX_LOSS_SAMPLES ((size_t)1 << 30)

/* Doubles of scratch for rows of n samples. */
static inline size_t bon_loss_scratch(size_t n) { return 123 * n + 46; }

/* What is subtracted from the reward of a subset's best, for sample i of the subset. */
typedef enum {
    BON_BASELINE_SUBSET, /* the reward of the best of the subset without i */
    BON_BASELINE_LOO,    /* best-of-k of the other n-1 samples */
    BON_BASELINE_NONE    /* 0 */
} bon_baseline;

/* Minus the expected reward of the best of k, with its exact gradient.
 *
 *   weights[i] = -1/C(n,k) * sum over subsets S of size k with i of
 *                (reward of the best of S - baseline)
 *
 * For k = 1 the best of the empty subset is the mean reward of the other samples.
 *
 *   scores   [rows, n]  may be the same array as rewards
 *   rewards  [rows, n]
 *   k                   1 <= k <= n; n >= 2 for BON_BASELINE_SUBSET, n > k for _LOO
 *   value    [rows]     minus the unbiased estimate of best-of-k
 *   weights  [rows, n]  unbiased; exactly 0 for _SUBSET and _LOO if all rewards of a
 *                       row are equal
 *   bad                 into scores and rewards
 */
BON_MUST_CHECK bon_status bon_bon_loss(const double *scores, const double *rewards,
                                       size_t rows, size_t n, size_t k,
                                       bon_baseline baseline, double *scratch,
                                       double *value, double *weights, int stream,
                                       size_t *bad);

/* How the best of k is distributed, given the policy. F is the probability of an equal
 * or lower score, G of a lower one.
 *
 *   variational   pi(y) exp(lambda F(y)) / normaliser
 *   exact         pi(y) (F^k - G^k) / (F - G)
 */
typedef struct {
    size_t k;      /* samples that the selector sees, >= 1 */
    int exact;     /* which of the two laws */
    double lambda; /* of the variational law, finite and >= 0 */
} bon_law;

/* What is known of the policy; NULL: it is estimated from the samples. All NULL: they were
 * drawn from the policy, and nothing more is known. */
typedef struct {
    /* [rows, n] the samples are all outcomes of the policy, once each, with these
     * probabilities >= 0 of sum 1: then nothing is estimated, and pairs of a sample with
     * itself count. */
    const double *chance;
    /* [rows, n] F of each sample, in [0, 1]; for the variational law only. */
    const double *win_rate;
    /* [rows] nats, with win_rate and without chance: the logarithm of the expectation of
     * exp(lambda F) under the policy, in [log((exp(lambda)-1)/lambda), lambda]; the first is
     * that of a policy whose scores never tie. */
    const double *log_normaliser;
} bon_known;

/* Minus the expected reward under a law of the best of k: REINFORCE on that law.
 *
 * With masses v_i of the samples under the law and b = sum v_i R_i, the gradient is that
 * of sum v_i (R_i - b) / (1 - sum v_i^2) * (log pi(y_i) + log of the law's tilt), the
 * tilt's own gradient falling on the other samples: d F(y_i) is the sum over others j of
 * (1{r_i >= r_j} - F_i) grad log pi(y_j), divided by n-2 (by n-1 for a given F).
 *
 * With a given normaliser t_i = exp(lambda F_i) / normaliser has the expectation 1, and the
 * same gradient is a mean over triples of different samples,
 *
 *   c_i        = mean over others l of t_i t_l (R_i - R_l) / n
 *   weights[j] = -(c_j + lambda/(n-2) * sum over i != j of (1{r_i >= r_j} - F_i) *
 *                        (c_i without its term of j))
 *
 *   scores    [rows, n]
 *   rewards   [rows, n]
 *   winners              0: every sample stands for the law with its mass. 1: the samples
 *                        are cut into n/k groups of k neighbours, whose winners are draws
 *                        of the exact law, each against the mean of the others; pairs are
 *                        between groups, and samples left over take part in them. Needs
 *                        all of known to be NULL
 *   value     [rows]     -b; with a given normaliser -mean of (t_i R_i + (1 - t_i) times the
 *                        mean reward of the others)
 *   weights   [rows, n]  unbiased where chance or the normaliser is given, else consistent,
 *                        biased for finite n; exactly 0 if all rewards of a row are equal
 *   bad                  into the arrays [rows, n]
 *
 * BON_ERR_DOMAIN also for n < 3 drawn samples, or fewer than 2k (and k+2) with winners.
 */
BON_MUST_CHECK bon_status bon_rl_loss(const double *scores, const double *rewards,
                                      const bon_known *known, size_t rows, size_t n,
                                      const bon_law *law, int winners, double *scratch,
                                      double *value, double *weights, int stream,
                                      size_t *bad);

/* Minus the mean log-probability of expert samples under the variational law.
 *
 * The gradient of -log law(y*) is -(grad phi(y*) - expectation of grad phi under the law)
 * with phi = log pi + lambda F; expectation and F are estimated from the samples of the
 * policy, as in bon_rl_loss, where they are not known.
 *
 *   scores    [rows, n]
 *   logp      [rows, n]  nats; for the value only
 *   expert    [rows, n]  nonzero: a demonstration; else a sample of the policy
 *   known                chance for the samples of the policy, win_rate for all samples
 *   law                  its lambda; must not be exact
 *   value     [rows]     nats; exact where chance or the normaliser is given
 *   weights   [rows, n]  unbiased where chance or the normaliser is given, else consistent,
 *                        biased for finite n
 *
 * BON_ERR_DOMAIN also for a row without expert, or with fewer than 3 samples of the
 * policy (1 where chance is given).
 */
BON_MUST_CHECK bon_status bon_sft_loss(const double *scores, const double *logp,
                                       const uint8_t *expert, const bon_known *known,
                                       size_t rows, size_t n, const bon_law *law,
                                       double *scratch, double *value, double *weights,
                                       int stream, size_t *bad);

/* correct[r] = how many of rewards [rows, n] are 1 in row r. BON_ERR_DOMAIN where a
 * reward is neither 0 nor 1. */
BON_MUST_CHECK bon_status bon_count_correct(const double *rewards, size_t rows, size_t n,
                                            double *correct, size_t *bad);

/* weights[r, i] = hit[r] where rewards[r, i] is not 0, else miss[r]. */
void bon_two_weights(const double *rewards, const double *hit, const double *miss,
                     size_t rows, size_t n, double *weights);

/* Both in one pass: correct as above, and hit [n + 1] or miss [n + 1] of the row's count as
 * weights. */
BON_MUST_CHECK bon_status bon_weigh_by_count(const double *rewards, const double *hit,
                                             const double *miss, size_t rows, size_t n,
                                             double *correct, double *weights, size_t *bad);

#endif /* BON_LOSSES_H */
