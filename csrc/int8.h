/* int8.h - numbers as whole multiples of a scale: weights of 8 bits, activations of 12 or 8.
 *
 * A weight row w becomes s * q, s = max|w| / 127 and q whole, -127..127. Where the error is
 * more than BON_I8_LOSS of the weights, because a few are far larger than the others (some
 * seven times as large as a normal law's standard deviation), the row has a second digit:
 * w = s * q + s/254 * d, d in -127..127 as well; it is then as good as 16 bits.
 *
 * A row of activations x becomes t * p, p whole. Route tile: |p| <= levels, as many as sums of k
 * products fit in 32 bits, at most 2047. Route dot, where the processor multiplies bytes four
 * times as fast: |p| <= 127, but for the few inputs that are BON_I8_FAR times as large as the
 * mean or more. These are as whole as the others, and what they have beyond 127 is added to the
 * sums one by one: a few inputs of thousands would else take the others' digits away.
 *
 * Sums are exact, so no order of summation, thread or kernel shows in them;
 * y = (float)(t * s) * (float)sum, and where weights have second digits a sum more.
 */
#ifndef BON_INT8_H
#define BON_INT8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BON_I8_MOST 127          /* largest |q| */
#define BON_I8_LOSS 0.02         /* root mean square of the error over the mean |w| */
#define BON_I8_FAR 13            /* means are 127 steps: 3 % of the mean are lost (rms) */
#define BON_I8_MAX_INPUTS 131072 /* beyond it activations would have less than 8 bits */

/* Largest |p| for rows of k inputs, k <= BON_I8_MAX_INPUTS. */
int bon_i8_levels(size_t k);

/* Largest |x|; NaN where there is one. */
float bon_i8_largest(const float *x, size_t count);

/* What rounding loses of a row, summed up from part to part. */
typedef struct {
    double error, size; /* sums of squared errors and of |w| */
} bon_i8_loss;

/* q[i] = x[i] / scale to the nearest whole number, ties to even, at most 127; 0 for scale 0. */
void bon_i8_weights(const float *x, size_t count, float scale, int8_t *q, bon_i8_loss *loss);

/* Whether that is more than BON_I8_LOSS of a row of k. */
bool bon_i8_is_rough(const bon_i8_loss *loss, size_t k);

/* A row of k activations as p [padded], of each four the second and third exchanged, as the
 * kernels read them, zeros behind. Returns t, or NaN where x is not finite. */
float bon_i8_activations(const float *x, size_t k, size_t padded, int levels, int16_t *p);

/* An input whose whole number is 127 + beyond, or -127 + beyond if beyond < 0. */
typedef struct {
    uint32_t input;
    int32_t beyond;
} bon_i8_far;

/* A row of k activations as digits p [padded], -127..127, in order, zeros behind, and its
 * inputs beyond that in far [bon_i8_most_far(k)]. Returns t, or NaN where x is not finite.
 * `added` is 128 times the sum of p, modulo 2^32. */
float bon_i8_digits(const float *x, size_t k, size_t padded, int8_t *p, uint32_t *added,
                    bon_i8_far *far, size_t *n_far);

static inline size_t bon_i8_most_far(size_t k) { return k / BON_I8_FAR + 1; }

/* sums [count*16] += what the inputs in far have beyond, times their weights in panels
 * [k/4][16][4] that stand `stride` bytes apart. */
void bon_i8_add_far(const bon_i8_far *far, size_t n_far, const int8_t *panels, size_t count,
                    size_t stride, int32_t *sums);

#endif /* BON_INT8_H */
