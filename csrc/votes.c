/* votes.c - see votes.h. */
#include "votes.h"

#include <math.h>
#include <string.h>

/* -- groups ---------------------------------------------------------------- */

size_t bon_group_scratch(size_t n)
{
    size_t slots = 4;
    while (slots < 2 * n) slots *= 2;
    return slots;
}

/* Where the search for a code begins. Source: Knuth, TAOCP vol. 3, 6.4,
 * multiplicative hashing with 2^64 divided by the golden ratio. */
static size_t first_slot(int64_t code, size_t slots)
{
    const uint64_t mixed = (uint64_t)code * UINT64_C(0x9E3779B97F4A7C15);
    return (size_t)(mixed >> 32) & (slots - 1);
}

/* A slot holds 1 + the place of the first vote for its answer, or 0: there are
 * never more votes than half the slots, so every search ends. */
bon_status bon_group_votes(const int64_t *codes, size_t n, int32_t *scratch,
                           int32_t *groups, size_t *count, size_t *bad)
{
    const size_t slots = bon_group_scratch(n);
    memset(scratch, 0, slots * sizeof *scratch);
    size_t answers = 0;
    for (size_t i = 0; i < n; i++) {
        const int64_t code = codes[i];
        if (code < BON_NO_SAMPLE) {
            *bad = i;
            return BON_ERR_DOMAIN;
        }
        if (code < 0) {
            groups[i] = (int32_t)code;
            continue;
        }
        size_t slot = first_slot(code, slots);
        while (scratch[slot] != 0 && codes[scratch[slot] - 1] != code)
            slot = (slot + 1) & (slots - 1);
        if (scratch[slot] == 0) {
            scratch[slot] = (int32_t)i + 1;
            groups[i] = (int32_t)answers++;
        } else {
            groups[i] = groups[scratch[slot] - 1];
        }
    }
    *count = answers;
    return BON_OK;
}

/* -- weights --------------------------------------------------------------- */

enum { WEIGHT_BITS = 52 };

bon_status bon_fix_weights(const double *weights, const int32_t *groups, size_t n,
                           int64_t *fixed, size_t *bad)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        const double weight = groups[i] < 0 ? 0.0 : weights[i];
        sum += weight;
        if (weight >= 0.0 && isfinite(sum)) continue;
        *bad = i;
        return isfinite(weight) ? BON_ERR_DOMAIN : BON_ERR_NOT_FINITE;
    }
    int exponent = 0;
    (void)frexp(sum, &exponent); /* sum < 2^exponent */
    for (size_t i = 0; i < n; i++) {
        const double weight = groups[i] < 0 ? 0.0 : weights[i];
        const double unit = fmin(fmax(weight, 0.0), sum); /* a writer may race us */
        fixed[i] = (int64_t)rint(ldexp(unit, WEIGHT_BITS - exponent));
    }
    return BON_OK;
}
