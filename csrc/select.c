/* select.c - see select.h. */
#include "select.h"

#include <math.h>
#include <string.h>

#include "dispatch.h"

/* -- the best score -------------------------------------------------------- */

/* Four candidates: their scores and where they stand. */
typedef struct {
    bon_vec score;
    bon_choice place;
} four;

/* Takes the four from place i on where they are larger; flags NaN in is_nan. */
BON_INLINE void compare(four *best, const double *row, size_t i, bon_choice *is_nan)
{
    const bon_vec x = *(const bon_vec *)(row + i);
    const bon_choice larger = x > best->score, place = (bon_choice){0, 1, 2, 3} + (int64_t)i;
    best->score = (bon_vec)(((bon_choice)x & larger) | ((bon_choice)best->score & ~larger));
    best->place = (place & larger) | (best->place & ~larger);
    *is_nan |= x != x;
}

/* The first place of the largest of row [n >= 8], or n where a score is NaN. Each
 * lane keeps the first of its largest; two vectors, because one would wait for
 * itself. */
BON_INLINE size_t best_of_lanes(const double *row, size_t n)
{
    four best[2];
    for (size_t v = 0; v < 2; v++) {
        best[v].score = *(const bon_vec *)(row + 4 * v);
        best[v].place = (bon_choice){0, 1, 2, 3} + (int64_t)(4 * v);
    }
    bon_choice is_nan = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        compare(&best[0], row, i, &is_nan);
        compare(&best[1], row, i + 4, &is_nan);
    }
    double top = best[0].score[0];
    for (size_t l = 1; l < 8; l++) {
        const double score = best[l / 4].score[l % 4];
        top = score > top ? score : top;
    }
    int64_t first = (int64_t)n;
    for (size_t v = 0; v < 2; v++) {
        const bon_choice equal = best[v].score == top;
        const bon_choice where = (best[v].place & equal) | ((int64_t)n & ~equal);
        for (size_t l = 0; l < 4; l++) first = where[l] < first ? where[l] : first;
    }
    size_t place = (size_t)first;
    int64_t any_nan = is_nan[0] | is_nan[1] | is_nan[2] | is_nan[3];
    for (; i < n; i++) {
        any_nan |= isnan(row[i]);
        if (row[i] > top) place = i;
        if (row[i] > top) top = row[i];
    }
    return any_nan ? n : place;
}

BON_INLINE size_t best_place(const double *row, size_t n)
{
    if (n >= 8) return best_of_lanes(row, n);
    size_t place = 0;
    for (size_t i = 0; i < n; i++) {
        if (isnan(row[i])) return n;
        if (row[i] > row[place]) place = i;
    }
    return place;
}

static size_t best_place_anywhere(const double *row, size_t n) { return best_place(row, n); }
BON_AVX2 static size_t best_place_avx2(const double *row, size_t n) { return best_place(row, n); }

/* The same with places left out; -1 where all are. */
static int64_t best_of_some(const double *row, const unsigned char *mask, size_t n)
{
    int64_t best = -1;
    double top = 0.0;
    for (size_t i = 0; i < n; i++) {
        if (!mask[i]) continue;
        const double score = row[i];
        if (isnan(score)) return (int64_t)n;
        if (best < 0 || score > top) {
            best = (int64_t)i;
            top = score;
        }
    }
    return best;
}

static size_t find_nan(const double *row, const unsigned char *mask, size_t n)
{
    size_t i = 0;
    while (i + 1 < n && !(isnan(row[i]) && (mask == NULL || mask[i]))) i++;
    return i;
}

bon_status bon_best_of_n(const double *scores, const unsigned char *mask, size_t rows,
                         size_t n, int64_t *out, size_t *bad)
{
    const int avx2 = bon_has_avx2();
    for (size_t r = 0; r < rows; r++) {
        const double *row = scores + r * n;
        const unsigned char *some = mask ? mask + r * n : NULL;
        if (n == 0) out[r] = -1;
        else if (some) out[r] = best_of_some(row, some, n);
        else out[r] = (int64_t)(avx2 ? best_place_avx2(row, n) : best_place_anywhere(row, n));
        *bad = r * n;
        if (out[r] < 0) return BON_ERR_DOMAIN;
        if (out[r] == (int64_t)n) {
            *bad += find_nan(row, some, n);
            return BON_ERR_NOT_FINITE;
        }
    }
    return BON_OK;
}

/* -- votes ----------------------------------------------------------------- */

size_t bon_majority_choice_scratch(size_t n)
{
    return 2 * n * sizeof(int64_t) + (bon_group_scratch(n) + n) * sizeof(int32_t);
}

/* Index of the first vote for the answer with the largest total, or of the first
 * sample; -1 where no place holds one. totals [answers] is scratch. */
static int64_t choose(const int32_t *groups, const int64_t *weights, size_t n,
                      size_t answers, int64_t *totals)
{
    memset(totals, 0, answers * sizeof *totals);
    int64_t first = -1;
    for (size_t i = 0; i < n; i++) {
        if (first < 0 && groups[i] != BON_NO_SAMPLE) first = (int64_t)i;
        if (groups[i] >= 0) totals[groups[i]] += weights ? weights[i] : 1;
    }
    size_t winner = 0; /* answers are numbered in the order of their first vote */
    for (size_t g = 1; g < answers; g++)
        if (totals[g] > totals[winner]) winner = g;
    for (size_t i = 0; answers > 0 && i < n; i++)
        if (groups[i] == (int32_t)winner) return (int64_t)i;
    return first;
}

bon_status bon_majority(const int64_t *codes, const double *weights, size_t rows, size_t n,
                        void *scratch, int64_t *out, size_t *bad)
{
    *bad = 0;
    if (n > BON_MAX_VOTES) return BON_ERR_DOMAIN;
    int64_t *totals = scratch, *fixed = totals + n;
    int32_t *groups = (int32_t *)(fixed + n), *slots = groups + n;
    for (size_t r = 0; r < rows; r++) {
        const size_t first = r * n;
        size_t answers = 0;
        bon_status status = bon_group_votes(codes + first, n, slots, groups, &answers, bad);
        if (status == BON_OK && weights != NULL)
            status = bon_fix_weights(weights + first, groups, n, fixed, bad);
        if (status == BON_OK) {
            *bad = 0;
            out[r] = choose(groups, weights ? fixed : NULL, n, answers, totals);
            if (out[r] < 0) status = BON_ERR_DOMAIN;
        }
        if (status != BON_OK) {
            *bad += first;
            return status;
        }
    }
    return BON_OK;
}
