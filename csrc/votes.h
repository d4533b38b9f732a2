/* votes.h - the answers of one prompt as groups, for selectors and estimators.
 *
 * An answer is a code: any int64 >= 0, equal codes are equal answers. Two codes
 * are not answers: BON_NO_VOTE, a sample without an answer, which is drawn like
 * any other but does not vote; BON_NO_SAMPLE, a place where no sample is.
 */
#ifndef BON_VOTES_H
#define BON_VOTES_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

#define BON_NO_VOTE ((int64_t)-1)
#define BON_NO_SAMPLE ((int64_t)-2)

/* Most places in a row: a group is an int32. */
#define BON_MAX_VOTES ((size_t)1 << 28)

/* int32 of scratch that bon_group_votes needs: at least two slots per place. */
size_t bon_group_scratch(size_t n);

/* Numbers the answers 0, 1, ... in the order of their first vote.
 *
 *   codes    [n]  the answers of one row
 *   scratch       bon_group_scratch(n) int32
 *   groups   [n]  the number of each answer; where none is, the code itself
 *   count         how many answers there are
 *   bad           index of the first code below BON_NO_SAMPLE
 *
 * BON_ERR_DOMAIN for such a code. O(n).
 */
BON_MUST_CHECK bon_status bon_group_votes(const int64_t *codes, size_t n,
                                          int32_t *scratch, int32_t *groups,
                                          size_t *count, size_t *bad);

/* Weights as integers, so that sums of them do not depend on the order and
 * equal sums are equal: rounded to a multiple of about 2^-52 of their sum, the
 * rounding of doubles. Weights that are integers with a sum below 2^52 stay in
 * exact proportion.
 *
 *   weights  [n]  finite and >= 0 where used
 *   groups   [n]  from bon_group_votes; only places with a group >= 0 are used
 *   fixed    [n]  their sum is at most 2^52 + n; 0 where not used
 *   bad           index of the first weight that is at fault
 *
 * BON_ERR_NOT_FINITE or BON_ERR_DOMAIN (negative, or the sum overflows).
 */
BON_MUST_CHECK bon_status bon_fix_weights(const double *weights, const int32_t *groups,
                                          size_t n, int64_t *fixed, size_t *bad);

#endif /* BON_VOTES_H */
