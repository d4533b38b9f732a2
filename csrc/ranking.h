/* ranking.h - sorts eight rows of scores side by side, each with its samples.
 *
 * A sorting network compares the same two places of every row, so eight rows cost
 * hardly more than one and nothing branches. What is sorted are keys: scores whose
 * lowest bits are replaced by the index of the sample, so that the order comes for
 * free. Keys that agree in all other bits may stand in the wrong order, where their
 * scores differ in those bits only: the caller looks at the whole scores again.
 *
 * Element i of row l is at [i * BON_ABREAST + l].
 */
#ifndef BON_RANKING_H
#define BON_RANKING_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "dispatch.h"

enum { BON_ABREAST = 8 };

static inline uint64_t bon_bits_of(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline double bon_from_bits(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The bits that hold 0 .. n-1. */
static inline uint64_t bon_index_mask(uint64_t n)
{
    uint64_t mask = 1;
    while (mask < n) mask *= 2;
    return mask - 1;
}

BON_INLINE bon_vec *bon_vec_at(double *x) { return (bon_vec *)x; }
BON_INLINE const bon_vec *bon_const_vec_at(const double *x) { return (const bon_vec *)x; }

/* a where chosen, else b. */
BON_INLINE void bon_choose(bon_vec *to, const bon_choice *chosen, const bon_vec *a,
                           const bon_vec *b)
{
    *to = (bon_vec)(((bon_choice)*a & *chosen) | ((bon_choice)*b & ~*chosen));
}

/* True if all of row [n] are finite: 0 * x is NaN where x is not. */
BON_INLINE int bon_all_finite(const double *row, size_t n)
{
    bon_vec check[2] = {{0.0}};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t v = 0; v < 2; v++) check[v] += 0.0 * *bon_const_vec_at(row + i + 4 * v);
    const bon_vec both = check[0] + check[1];
    double all = (both[0] + both[1]) + (both[2] + both[3]);
    for (; i < n; i++) all += 0.0 * row[i];
    return all == 0.0;
}

/* keys [n, BON_ABREAST] = scores [rows, n] with the index of the sample in the bits of
 * mask; -0.0 counts as 0.0. Rows beyond `rows` repeat the last. */
BON_INLINE void bon_load_keys(const double *scores, size_t rows, size_t n, uint64_t mask,
                              double *keys)
{
    const int64_t low = (int64_t)mask;
    for (size_t l = 0; l < BON_ABREAST; l++) {
        const double *row = scores + (l < rows ? l : rows - 1) * n;
        double *to = keys + l;
        size_t i = 0;
        for (; i + 4 <= n; i += 4) {
            const bon_vec x = *bon_const_vec_at(row + i) + 0.0; /* -0.0 becomes 0.0 */
            const bon_choice place = (bon_choice){0, 1, 2, 3} + (int64_t)i;
            const bon_vec key = (bon_vec)(((bon_choice)x & ~low) | (place & low));
            for (size_t j = 0; j < 4; j++) to[(i + j) * BON_ABREAST] = key[j];
        }
        for (; i < n; i++)
            to[i * BON_ABREAST] =
                bon_from_bits((bon_bits_of(row[i] + 0.0) & ~mask) | (i & mask));
    }
}

/* Puts the larger of each pair into a. */
BON_INLINE void bon_compare_exchange(double *restrict a, double *restrict b)
{
    double x[BON_ABREAST], y[BON_ABREAST];
    for (size_t l = 0; l < BON_ABREAST; l++) {
        x[l] = a[l];
        y[l] = b[l];
    }
    for (size_t l = 0; l < BON_ABREAST; l++) a[l] = x[l] > y[l] ? x[l] : y[l];
    for (size_t l = 0; l < BON_ABREAST; l++) b[l] = x[l] < y[l] ? x[l] : y[l];
}

/* Sorts every row by falling key with Batcher's merge exchange, which serves any n.
 * Source: Knuth, TAOCP vol. 3, 5.2.2, algorithm M. */
BON_INLINE void bon_sort_keys(double *keys, size_t n)
{
    size_t top = 1;
    while (2 * top < n) top *= 2;
    for (size_t p = top; p > 0; p /= 2) {
        for (size_t q = top, first = 0, apart = p;; q /= 2) {
            /* all i with (i & p) == first come in blocks of p neighbours */
            for (size_t block = first; block + apart < n; block += 2 * p) {
                const size_t end = block + p < n - apart ? block + p : n - apart;
                for (size_t i = block; i < end; i++)
                    bon_compare_exchange(keys + i * BON_ABREAST,
                                         keys + (i + apart) * BON_ABREAST);
            }
            if (q == p) break;
            apart = q - p;
            first = p;
        }
    }
}

#endif /* BON_RANKING_H */
