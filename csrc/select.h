/* select.h - which of the n samples of a prompt to hand out.
 *
 * A selector sees scores or answers, never rewards. All three have one rule for
 * what they cannot tell apart: the lowest index, that is, the sample drawn
 * first, so that drawing more samples never changes a choice without a reason.
 *
 * The rules of estimators.h hold here too. On error *bad holds the flat index
 * of the first offending element, or of the first place of a row at fault.
 */
#ifndef BON_SELECT_H
#define BON_SELECT_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"
#include "votes.h"

/* The sample with the highest score; the first of equals.
 *
 *   scores  [rows, n]  not NaN where there is a sample; infinite ones are fine
 *   mask    [rows, n]  0 where no sample is; NULL: all places hold one
 *   out     [rows]     index of the chosen sample in its row
 *
 * BON_ERR_NOT_FINITE for a NaN, BON_ERR_DOMAIN for a row without a sample. Each
 * score is read from memory once.
 */
BON_MUST_CHECK bon_status bon_best_of_n(const double *scores, const unsigned char *mask,
                                        size_t rows, size_t n, int64_t *out, size_t *bad);

/* The first sample of the answer with the most votes, or with the largest sum of
 * weights; of equal answers the one that was seen first. Where no sample has an
 * answer: the first sample.
 *
 *   codes    [rows, n]  answers, see votes.h; n <= BON_MAX_VOTES
 *   weights  [rows, n]  finite and >= 0 where there is an answer; NULL: all equal
 *   scratch             bon_majority_choice_scratch(n) bytes, aligned as doubles
 *   out      [rows]     index of the chosen sample in its row
 *
 * BON_ERR_DOMAIN for a bad code, a negative weight or a row without a sample,
 * BON_ERR_NOT_FINITE for a weight. O(n) per row.
 */
BON_MUST_CHECK bon_status bon_majority(const int64_t *codes, const double *weights,
                                       size_t rows, size_t n, void *scratch, int64_t *out,
                                       size_t *bad);

size_t bon_majority_choice_scratch(size_t n);

#endif /* BON_SELECT_H */
