/* int8.h - numbers as whole multiples of a scale: weights of 8 bits, activations of 12 or 8.
 *
 * A weight row w becomes s * q, s = max|w| / 127 and q whole, -127..127. Where the error is
 * more than BON_I8_LOSS of the weights, because a few are far larger than the others (some
 * seven times as large as a normal law's standard deviation), the row has a second digit:
 * w = s * q + s/254 * d, d in -127..127 as well; it is then as good as 16 bits.
 *
 * A row of activations x becomes t * p, with |p| <= levels: as many as sums of k products fit
 * in 32 bits, at most 2047 (route tile); or digits like a row of weights, with a second one
 * where the error is more than BON_I8_X_LOSS (route dot: where the processor multiplies bytes
 * four times as fast). Sums are exact, so no order of summation, thread or kernel shows in
 * them; y = (float)(t * s) * (float)sum, and of second digits a sum more.
 */
#ifndef BON_INT8_H
#define BON_INT8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BON_I8_MOST 127          /* largest |q| */
#define BON_I8_LOSS 0.02         /* root mean square of the error over the mean |w| */
#define BON_I8_X_LOSS 0.05       /* the same of activations rounded to 8 bits */
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

/* Whether that is more than `most` of a row of k: root mean square of the error over the mean. */
bool bon_i8_is_rough(const bon_i8_loss *loss, size_t k, double most);

/* A row of k activations as p [padded], of each four the second and third exchanged, as the
 * kernels read them, zeros behind. Returns t, or NaN where x is not finite. */
float bon_i8_activations(const float *x, size_t k, size_t padded, int levels, int16_t *p);

/* A row of k activations as first digits p [padded], in order, zeros behind. Returns t, or NaN
 * where x is not finite. `added` is 128 times their sum, modulo 2^32; `rough` says whether the
 * row needs second digits. */
float bon_i8_digits(const float *x, size_t k, size_t padded, int8_t *p, uint32_t *added,
                    bool *rough);

/* Second digits d [padded] of a row whose first are p, times t: what rounding left of it.
 * Returns their scale, t/254. */
float bon_i8_second_digits(const float *x, size_t k, size_t padded, float t, const int8_t *p,
                           int8_t *d, uint32_t *added);

#endif /* BON_INT8_H */
