/* short_keys.h - sorts eight short rows of scores side by side, in 32-bit keys.
 *
 * The same idea as ranking.h, at less than half its cost: a key is the place of a score
 * between the best and the worst of its row, rounded down, with the index of the sample
 * in its lowest bits. Eight keys fit into one vector, and the network works on eight of
 * them at a time without going back to memory.
 *
 * Rounding down never swaps two scores, but makes neighbours equal. That is rare where
 * scores spread evenly over their range, and the rule where one of them lies far out:
 * the caller looks at the whole scores wherever keys agree, and takes ranking.h where
 * they tell another order.
 *
 * Key i of row l is at [i * BON_ABREAST + l].
 */
#ifndef BON_SHORT_KEYS_H
#define BON_SHORT_KEYS_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "dispatch.h"
#include "ranking.h"

/* Longer rows leave too few bits for the scores: from here on keys agree in most rows. */
enum { BON_MAX_SHORT = 512 };

/* The largest place. Its successor could be rounded to a 32-bit integer too many. */
#define BON_WORST_PLACE 2147483646.0

/* Keys that the network of rows of n works on: a power of two. */
static inline size_t bon_short_keys(size_t n)
{
    size_t size = 8;
    while (size < n) size *= 2;
    return size;
}

/* -- keys of scores -------------------------------------------------------- */

BON_INLINE void bon_raise(bon_vec *to, const bon_vec *x)
{
    const bon_choice larger = *x > *to;
    bon_choose(to, &larger, x, to);
}

BON_INLINE void bon_lower(bon_vec *to, const bon_vec *x)
{
    const bon_choice smaller = *x < *to;
    bon_choose(to, &smaller, x, to);
}

/* The best and the worst of a row are among these four each; sum gains all of it. */
BON_INLINE void bon_extremes_of(const double *row, size_t n, bon_vec *best, bon_vec *worst,
                                bon_vec *sum)
{
    const bon_vec first = {row[0], row[0], row[0], row[0]};
    bon_vec high[2] = {first, first}, low[2] = {first, first};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t v = 0; v < 2; v++) {
            const bon_vec x = *bon_const_vec_at(row + i + 4 * v);
            bon_raise(&high[v], &x);
            bon_lower(&low[v], &x);
            sum[v] += x;
        }
    for (; i < n; i++) {
        const bon_vec x = {row[i], row[i], row[i], row[i]};
        bon_raise(&high[0], &x);
        bon_lower(&low[0], &x);
        sum[0] += x;
    }
    bon_raise(&high[0], &high[1]);
    bon_lower(&low[0], &low[1]);
    *best = high[0];
    *worst = low[0];
}

/* Element i of x[l] becomes element l of x[i]. */
BON_INLINE void bon_turn(bon_vec x[4])
{
    bon_vec a[4];
    for (size_t l = 0; l < 4; l += 2) {
        a[l] = __builtin_shufflevector(x[l], x[l + 1], 0, 4, 2, 6);
        a[l + 1] = __builtin_shufflevector(x[l], x[l + 1], 1, 5, 3, 7);
    }
    for (size_t l = 0; l < 2; l++) {
        x[l] = __builtin_shufflevector(a[l], a[l + 2], 0, 1, 4, 5);
        x[l + 2] = __builtin_shufflevector(a[l], a[l + 2], 2, 3, 6, 7);
    }
}

/* The best scores of eight rows and how many places there are to a unit of score; 0 where a
 * score is not finite or they are too far apart. */
BON_INLINE int bon_scales_of(const double *const row[BON_ABREAST], size_t n, bon_vec best[2],
                             bon_vec scale[2])
{
    const bon_vec most = {DBL_MAX, DBL_MAX, DBL_MAX, DBL_MAX};
    bon_vec sum[2] = {{0.0}};
    for (size_t v = 0; v < 2; v++) {
        bon_vec high[4], low[4];
        for (size_t l = 0; l < 4; l++)
            bon_extremes_of(row[4 * v + l], n, &high[l], &low[l], sum);
        bon_turn(high);
        bon_turn(low);
        for (size_t l = 1; l < 4; l++) {
            bon_raise(&high[0], &high[l]);
            bon_lower(&low[0], &low[l]);
        }
        const bon_vec range = high[0] - low[0], places = BON_WORST_PLACE / range;
        const bon_choice few = places < most, any = range != 0.0;
        best[v] = high[0];
        bon_choose(&scale[v], &few, &places, &most);
        scale[v] = (bon_vec)((bon_choice)scale[v] & any);
        sum[v] += range;
    }
    const bon_vec all = sum[0] + sum[1];
    return isfinite((all[0] + all[1]) + (all[2] + all[3]));
}

/* Row l of block becomes column l. */
BON_INLINE void bon_transpose(bon_ints block[8])
{
    bon_ints a[8], b[8];
    for (size_t l = 0; l < 8; l += 2) {
        const bon_ints x = block[l], y = block[l + 1];
        a[l] = __builtin_shufflevector(x, y, 0, 8, 1, 9, 4, 12, 5, 13);
        a[l + 1] = __builtin_shufflevector(x, y, 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (size_t l = 0; l < 8; l += 4)
        for (size_t m = 0; m < 2; m++) {
            const bon_ints x = a[l + m], y = a[l + m + 2];
            b[l + 2 * m] = __builtin_shufflevector(x, y, 0, 1, 8, 9, 4, 5, 12, 13);
            b[l + 2 * m + 1] = __builtin_shufflevector(x, y, 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (size_t l = 0; l < 4; l++) {
        block[l] = __builtin_shufflevector(b[l], b[l + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        block[l + 4] = __builtin_shufflevector(b[l], b[l + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

/* The places of eight neighbours of a row. */
BON_INLINE void bon_eight_places(const double *row, double best, double scale, bon_ints *to)
{
    const bon_vec a = (best - *bon_const_vec_at(row)) * scale;
    const bon_vec b = (best - *bon_const_vec_at(row + 4)) * scale;
    const bon_four_ints x = __builtin_convertvector(a, bon_four_ints);
    const bon_four_ints y = __builtin_convertvector(b, bon_four_ints);
    *to = __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7);
}

/* keys [bon_short_keys(n), BON_ABREAST] of scores [rows, n], n <= BON_MAX_SHORT, with the
 * index of the sample in the bits of mask; rows beyond `rows` repeat the last. 0 where
 * bon_scales_of finds no scale. */
BON_INLINE int bon_load_short_keys(const double *scores, size_t rows, size_t n, int32_t mask,
                                   int32_t *keys)
{
    const double *row[BON_ABREAST];
    bon_vec highest[2], places[2];
    for (size_t l = 0; l < BON_ABREAST; l++) row[l] = scores + (l < rows ? l : rows - 1) * n;
    if (!bon_scales_of(row, n, highest, places)) return 0;
    const double *best = (const double *)highest, *scale = (const double *)places;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const bon_ints index = (bon_ints){0, 1, 2, 3, 4, 5, 6, 7} + (int32_t)i;
        bon_ints block[8];
        for (size_t l = 0; l < BON_ABREAST; l++) {
            bon_eight_places(row[l] + i, best[l], scale[l], &block[l]);
            block[l] = (block[l] & ~mask) | index;
        }
        bon_transpose(block);
        for (size_t l = 0; l < 8; l++) *(bon_ints *)(keys + (i + l) * BON_ABREAST) = block[l];
    }
    for (; i < n; i++)
        for (size_t l = 0; l < BON_ABREAST; l++) {
            const int32_t place = (int32_t)((best[l] - row[l][i]) * scale[l]);
            keys[i * BON_ABREAST + l] = (place & ~mask) | (int32_t)i;
        }
    for (i = n * BON_ABREAST; i < bon_short_keys(n) * BON_ABREAST; i++) keys[i] = INT32_MAX;
    return 1;
}

/* -- the network ----------------------------------------------------------- */

/* a <= b afterwards, row by row. */
BON_INLINE void bon_order(bon_ints *a, bon_ints *b)
{
    const bon_ints x = *a, y = *b;
    for (size_t l = 0; l < BON_ABREAST; l++) (*a)[l] = x[l] < y[l] ? x[l] : y[l];
    for (size_t l = 0; l < BON_ABREAST; l++) (*b)[l] = x[l] > y[l] ? x[l] : y[l];
}

/* The fewest comparisons that sort eight: 19. Source: Knuth, TAOCP vol. 3, 5.3.4. */
BON_INLINE void bon_sort_eight(bon_ints x[8])
{
    for (size_t i = 0; i < 8; i += 4)
        for (size_t j = i; j < i + 2; j++) bon_order(&x[j], &x[j + 2]);
    for (size_t i = 0; i < 4; i++) bon_order(&x[i], &x[i + 4]);
    for (size_t i = 0; i < 8; i += 2) bon_order(&x[i], &x[i + 1]);
    for (size_t i = 2; i < 4; i++) bon_order(&x[i], &x[i + 2]);
    for (size_t i = 1; i < 4; i += 2) bon_order(&x[i], &x[i + 3]);
    for (size_t i = 1; i < 7; i += 2) bon_order(&x[i], &x[i + 1]);
}

/* Steps of a merge between keys that are half, half / 2 .. 1 apart, half <= 4. */
BON_INLINE void bon_merge_eight(bon_ints x[8], size_t half)
{
    for (size_t i = 0; half == 4 && i < 4; i++) bon_order(&x[i], &x[i + 4]);
    for (size_t i = 0; half >= 2 && i < 8; i += 4)
        for (size_t j = i; j < i + 2; j++) bon_order(&x[j], &x[j + 2]);
    for (size_t i = 0; i < 8; i += 2) bon_order(&x[i], &x[i + 1]);
}

/* The first three steps of a merge of two runs of run >= 8 keys: the second run backwards
 * against the first, then in each of them keys that are run / 2 and run / 4 apart. */
BON_INLINE void bon_merge_runs(int32_t *keys, size_t run)
{
    const size_t apart = run / 4;
    for (size_t i = 0; i < apart; i++) {
        bon_ints *up[4], *down[4], x[4], y[4];
        for (size_t j = 0; j < 4; j++) {
            const size_t at = i + j * apart;
            up[j] = (bon_ints *)(keys + at * BON_ABREAST);
            down[j] = (bon_ints *)(keys + (2 * run - 1 - at) * BON_ABREAST);
            x[j] = *up[j];
            y[j] = *down[j];
        }
        for (size_t j = 0; j < 4; j++) bon_order(&x[j], &y[j]);
        for (size_t j = 0; j < 2; j++) {
            bon_order(&x[j], &x[j + 2]);
            bon_order(&y[j + 2], &y[j]);
        }
        for (size_t j = 0; j < 4; j += 2) {
            bon_order(&x[j], &x[j + 1]);
            bon_order(&y[j + 1], &y[j]);
        }
        for (size_t j = 0; j < 4; j++) {
            *up[j] = x[j];
            *down[j] = y[j];
        }
    }
}

/* half: 0 sorts eight neighbours, 1 to 4 are the last steps of a merge. */
BON_INLINE void bon_each_eight(int32_t *keys, size_t size, size_t half)
{
    for (size_t at = 0; at < size; at += 8) {
        bon_ints *block = (bon_ints *)(keys + at * BON_ABREAST), x[8];
        for (size_t i = 0; i < 8; i++) x[i] = block[i];
        if (half == 0) bon_sort_eight(x);
        else bon_merge_eight(x, half);
        for (size_t i = 0; i < 8; i++) block[i] = x[i];
    }
}

/* Sorts every row of keys [size, BON_ABREAST], size = bon_short_keys(n): the best score
 * first. Source: the merge of Batcher 1968, "Sorting networks and their applications",
 * AFIPS 32, with the second run read backwards, so that all comparisons point one way. */
BON_INLINE void bon_sort_short_keys(int32_t *keys, size_t size)
{
    bon_each_eight(keys, size, 0);
    for (size_t run = 8; run < size; run *= 2) {
        for (size_t at = 0; at < size; at += 2 * run)
            bon_merge_runs(keys + at * BON_ABREAST, run);
        size_t half = run / 8;
        for (; half > 4; half /= 2)
            for (size_t at = 0; at < size; at += 2 * half)
                for (size_t i = at; i < at + half; i++)
                    bon_order((bon_ints *)(keys + i * BON_ABREAST),
                              (bon_ints *)(keys + (i + half) * BON_ABREAST));
        if (half == 4) bon_each_eight(keys, size, 4);
        else if (half == 2) bon_each_eight(keys, size, 2);
        else bon_each_eight(keys, size, 1);
    }
}

#endif /* BON_SHORT_KEYS_H */
