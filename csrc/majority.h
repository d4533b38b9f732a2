/* majority.h - how often the most frequent answer of k samples is right.
 *
 * Of the n samples of a prompt, k are drawn without replacement; the answer
 * with the most votes (or the largest sum of weights) wins and one of its
 * samples, the first drawn, is handed out. The estimate is the expected reward
 * of that sample, over all subsets and all orders, hence unbiased for k fresh
 * samples.
 *
 * Ties. A selector takes, of equally frequent answers, the one that was seen
 * first. In a random order answers with equal counts are exchangeable, so each
 * of them is equally likely to be seen first: winners share evenly.
 * No vote. Where none of the k samples has an answer a selector takes the
 * first of them, so the estimate is the mean reward of samples without answer.
 *
 * Without weights the result is exact, for every k at once. Let answer g have
 * c_g votes. In the generating function in x (samples drawn), "m votes for g"
 * is C(c_g, m) x^m and "fewer than m" is the sum of the terms below, so
 *
 *   C(n,k) * estimate = [x^k] sum over m >= 1 and sets S of answers,
 *     (mean value of S) * prod_{g in S} C(c_g,m) x^m * prod_{others} fewer(m)
 *
 * and for an answer with c < m votes fewer(m) is just (1+x)^c. With weights,
 * m becomes every value that a sum of weights of one answer can take; there
 * are few of them where answers have few votes or weights few values: then the
 * result is exact too. Else it is the mean over BON_RESAMPLES random orders of
 * the samples, each of which gives one unbiased estimate for every k: the
 * standard error of a row is at most (largest - smallest reward) / 64.
 *
 * The rules of estimators.h hold here too.
 */
#ifndef BON_MAJORITY_H
#define BON_MAJORITY_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"
#include "votes.h"

/* Most samples of a row that are counted exactly: scaled binomial coefficients
 * of larger rows would leave the range of double. */
#define BON_MAX_EXACT_VOTES ((size_t)1500)

/* Most sums of weights of one answer, all answers of a row together, that are
 * swept through exactly. Two votes for an answer have four sums (none, either,
 * both), equal sums of equally many votes count once. */
#define BON_MAX_EXACT_SUMS ((size_t)2048)

/* Random orders of a row that is too large for both. */
#define BON_RESAMPLES 1024

/* Doubles of the table and bytes of the scratch, aligned as doubles, for rows of
 * n samples. */
size_t bon_majority_table(size_t n);
size_t bon_majority_scratch(size_t n, int weighted);

/* Binomial coefficients C(c, j) * 2^(-c/2), row after row, for all c up to
 * min(n, BON_MAX_EXACT_VOTES). */
void bon_fill_majority_table(size_t n, double *table);

/* Expected reward of the winner of a vote among k samples, per row and k.
 *
 *   codes    [rows, n]   answers, see votes.h; rows may differ in how many
 *                        places hold a sample, k is at most that number
 *   weights  [rows, n]   finite, >= 0; NULL: every vote counts the same
 *   rewards  [rows, n]   finite where there is a sample
 *   ks       [nk]        samples per vote, >= 1
 *   table                from bon_fill_majority_table for this n
 *   scratch              bon_majority_scratch(n, weights != NULL) bytes
 *   seed, row            of the random orders: row is the number of the first
 *                        row, so that results do not depend on the chunks
 *   out      [rows, nk]  in the unit of rewards
 *   bad                  flat index into codes: of the bad code, weight or
 *                        reward, or where a row with fewer than k samples starts
 *
 * BON_ERR_DOMAIN or BON_ERR_NOT_FINITE. Cost per row: about n^2 steps, at most
 * n^3/18 (many answers with equally many votes). Error of the exact result:
 * about 2n roundings, relative to the largest |reward|.
 */
BON_MUST_CHECK bon_status bon_majority_at_k(const int64_t *codes, const double *weights,
                                            const double *rewards, size_t rows, size_t n,
                                            const int64_t *ks, size_t nk,
                                            const double *table, void *scratch,
                                            uint64_t seed, uint64_t row, double *out,
                                            size_t *bad);

#endif /* BON_MAJORITY_H */
