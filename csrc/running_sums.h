/* running_sums.h - weighs ranked values for every k at once, by additions alone.
 *
 * With v(0), v(1) .. v(n-1) the values of a row, best rank first, the best of k is
 *
 *   sum over i of C(n-1-i, k-1) * v(i)  /  C(n, k)
 *
 * and for all k = 1 .. n the binomials need no table: Pascal's triangle makes them.
 * Replace each place by the sum of all up to it. Then the last place holds the sum for
 * k = 1, the last but one after another round the sum for k = 2, and so on: n rounds, each
 * a place shorter, n * n / 2 additions. None of them subtracts, so a result is as accurate
 * as a sum of products with the weights: about n roundings.
 *
 * Source: the triangle is Horner's for the coefficients of p(x + 1), Phil. Trans. 109:308, 1819.
 */
#ifndef BON_RUNNING_SUMS_H
#define BON_RUNNING_SUMS_H

#include <stddef.h>

#include "dispatch.h"
#include "ranking.h"

/* The longest rows, and what sums may grow by there: C(n, k) < 2**n. */
enum { BON_MAX_SUMS = 512 };
#define BON_SUM_GROWTH 0x1p512

/* Rounds done side by side: two vectors of eight rows each, and the processor has 16. */
enum { BON_ROUNDS = 7 };

#if defined(__x86_64__)
#define BON_AVX2_FMA __attribute__((target("avx2,fma")))
static inline int bon_has_fma(void) { return bon_has_avx2() && __builtin_cpu_supports("fma"); }

/* to += 1 * x: the same bits as to += x, from units that additions leave idle. */
BON_AVX2_FMA static inline void bon_add_as_product(bon_vec *to, const bon_vec *x,
                                                   const bon_vec *one)
{
    *to = (bon_vec)_mm256_fmadd_pd((__m256d)*one, (__m256d)*x, (__m256d)*to);
}
#else
#define BON_AVX2_FMA
static inline int bon_has_fma(void) { return 0; }
static inline void bon_add_as_product(bon_vec *to, const bon_vec *x, const bon_vec *one)
{
    *to += *one * *x;
}
#endif

/* The next place of every round. Round t is t places behind the first, so that none waits
 * for another. */
BON_INLINE void bon_next_sums(bon_vec sums[BON_ROUNDS][2], const double *at, const bon_vec *one,
                              int fma)
{
    for (size_t t = BON_ROUNDS - 1; t > 0; t--)
        for (size_t v = 0; v < 2; v++) {
            if (fma && t % 2) bon_add_as_product(&sums[t][v], &sums[t - 1][v], one);
            else sums[t][v] += sums[t - 1][v];
        }
    for (size_t v = 0; v < 2; v++) sums[0][v] += *bon_const_vec_at(at + 4 * v);
}

/* The next BON_ROUNDS rounds over values [places, BON_ABREAST]. The last place of each round
 * is final and multiplied by its scale, scales[0] for the first of these rounds. */
BON_INLINE void bon_sum_rounds(double *values, size_t places, const double *scales, int fma)
{
    const size_t last = BON_ROUNDS - 1;
    const bon_vec one = {1.0, 1.0, 1.0, 1.0};
    bon_vec sums[BON_ROUNDS][2] = {{{0.0}}};
    double *at = values;
    size_t i = 0;
    for (; i < last && i < places; i++, at += BON_ABREAST) bon_next_sums(sums, at, &one, fma);
    for (; i < places; i++, at += BON_ABREAST) {
        bon_next_sums(sums, at, &one, fma);
        for (size_t v = 0; v < 2; v++)
            *bon_vec_at(at - last * BON_ABREAST + 4 * v) = sums[last][v];
    }
    for (size_t t = 0; t < BON_ROUNDS && t < places; t++) {
        at -= BON_ABREAST;
        for (size_t v = 0; v < 2; v++) *bon_vec_at(at + 4 * v) = sums[t][v] * scales[t];
    }
}

/* scales [n]: 1 / C(n, k) for k = 1 .. n. */
static inline void bon_find_scales(size_t n, double *scales)
{
    double ways = 1.0;
    scales[n - 1] = 1.0;
    for (size_t k = 1; k <= n / 2; k++) {
        ways = ways * (double)(n - k + 1) / (double)k;
        scales[k - 1] = scales[n - k - 1] = 1.0 / ways;
    }
}

#endif /* BON_RUNNING_SUMS_H */
