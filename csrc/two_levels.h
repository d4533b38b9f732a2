/* two_levels.h - best-of-k of a row whose scores take at most two values, without a sort.
 *
 * This is what a verifier gives that says right or wrong. The best of k samples is one of
 * the upper level, whichever it is, unless all k are of the lower one:
 *
 *   upper * hit + lower * (1 - hit)
 *
 * with the mean rewards of both levels and hit = 1 - C(n-c, k) / C(n, k), where c samples are of
 * the upper level. It comes from a table; see bon_rank_weights.
 */
#ifndef BON_TWO_LEVELS_H
#define BON_TWO_LEVELS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "dispatch.h"

typedef struct {
    size_t count;        /* samples of the upper level, at least one */
    double upper, lower; /* mean rewards; the same where there is one level */
} bon_levels;

/* False for most rows of more than two levels, by a look at five of scores [n] and without
 * a branch. */
BON_INLINE int bon_may_have_two_levels(const double *scores, size_t n)
{
    const double probes[] = {scores[n / 4], scores[n / 2], scores[n - n / 4 - 1], scores[n - 1]};
    double other = scores[0];
    int within = 1;
    for (size_t i = 0; i < sizeof probes / sizeof *probes; i++) {
        other = other == scores[0] ? probes[i] : other;
        within &= (probes[i] == scores[0]) | (probes[i] == other);
    }
    return within;
}

/* True if scores [n] take at most two values and their mean rewards [n] are finite. */
BON_INLINE int bon_find_levels(const double *scores, const double *rewards, size_t n,
                               bon_levels *of)
{
    typedef union {
        bon_vec value;
        bon_choice bits;
    } four;
    four sums[2][2] = {{{{0.0}}}}; /* by level, in two halves that do not wait for each other */
    bon_choice counts[2] = {{0}}, outside = {0};
    size_t i = 1;
    while (i < n && scores[i] == scores[0]) i++;
    double levels[2] = {scores[0], scores[i < n ? i : 0]};
    for (i = 0; i + 8 <= n; i += 8)
        for (size_t v = 0; v < 2; v++) {
            const bon_vec score = *(const bon_vec *)(scores + i + 4 * v);
            const four reward = {.value = *(const bon_vec *)(rewards + i + 4 * v)};
            const bon_choice first = score == levels[0];
            outside |= ~first & (score != levels[1]);
            counts[v] -= first; /* true is -1 */
            sums[0][v].value += ((four){.bits = reward.bits & first}).value;
            sums[1][v].value += ((four){.bits = reward.bits & ~first}).value;
        }
    double sum[2];
    for (size_t level = 0; level < 2; level++) {
        const bon_vec both = sums[level][0].value + sums[level][1].value;
        sum[level] = (both[0] + both[1]) + (both[2] + both[3]);
    }
    const bon_choice both = counts[0] + counts[1];
    size_t count = (size_t)((both[0] + both[1]) + (both[2] + both[3]));
    int wrong = (outside[0] | outside[1] | outside[2] | outside[3]) != 0;
    for (; i < n; i++) {
        const int first = scores[i] == levels[0];
        wrong |= !first && scores[i] != levels[1];
        count += (size_t)first;
        sum[!first] += rewards[i];
    }
    if (wrong || !isfinite(levels[0]) || !isfinite(levels[1])) return 0;

    double *mean = levels; /* of the rewards; where these are the scores, it is known */
    const int lower = levels[0] < levels[1]; /* the first is */
    if (scores != rewards) {
        mean[0] = sum[0] / (double)count;
        mean[1] = count < n ? sum[1] / (double)(n - count) : mean[0];
    }
    *of = (bon_levels){lower ? n - count : count, mean[lower], mean[!lower]};
    return isfinite(mean[0]) && isfinite(mean[1]);
}

#endif /* BON_TWO_LEVELS_H */
