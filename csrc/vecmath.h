/* vecmath.h - exponentials, activations and row reductions on 8 floats at once.
 *
 * For AVX2 with FMA; unaligned pointers are fine; nothing is allocated. A result
 * depends on the values and on the length only, never on the address or on what
 * stands beside the row: whole groups of 8 and the padded last group run through
 * the same instructions.
 *
 * Sums add four groups of 8 floats as a tree and the trees in double, in an order
 * fixed by the length: relative error at most 2^-23 for terms >= 0, any length.
 *
 * Accuracy, measured against double in tests/c/test_vecmath.c:
 *
 *   bon_exp8    1.5 ulp; a result below FLT_MIN is 0
 *   bon_tanh8   2 ulp, also near 0
 *   silu        3 ulp where the result is >= FLT_MIN
 *   gelu_tanh   2^-22 |x| (its relative error grows to 2^-18 at x = -5, where the
 *               function itself multiplies the rounding of its argument)
 */
#ifndef BON_VECMATH_H
#define BON_VECMATH_H

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BON_LANES 8

#define BON_GELU_LINEAR 1.59576912f  /* 2 sqrt(2/pi) */
#define BON_GELU_CUBIC 0.0713548163f /* 0.044715 of that */

/* -- parts of a row -------------------------------------------------------- */

/* Lane masks of the first count lanes, 0 <= count <= 8. */
static inline __m256i bon_first_lanes(size_t count)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), lane);
}

/* The first count floats at p; the other lanes are fill and are not read. */
static inline __m256 bon_load_first(const float *p, size_t count, float fill)
{
    if (count >= BON_LANES) return _mm256_loadu_ps(p);
    const __m256i mask = bon_first_lanes(count);
    return _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, mask),
                            _mm256_castsi256_ps(mask));
}

static inline void bon_store_first(float *p, size_t count, __m256 v)
{
    if (count >= BON_LANES)
        _mm256_storeu_ps(p, v);
    else
        _mm256_maskstore_ps(p, bon_first_lanes(count), v);
}

static inline float bon_max_of8(__m256 v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* A running sum: eight doubles in two registers. */
typedef struct {
    __m256d low, high;
} bon_sum8;

static inline bon_sum8 bon_sum8_zero(void)
{
    return (bon_sum8){_mm256_setzero_pd(), _mm256_setzero_pd()};
}

static inline void bon_sum8_add(bon_sum8 *sum, __m256 v)
{
    sum->low = _mm256_add_pd(sum->low, _mm256_cvtps_pd(_mm256_castps256_ps128(v)));
    sum->high = _mm256_add_pd(sum->high, _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
}

static inline double bon_sum8_total(const bon_sum8 *sum)
{
    const __m256d four = _mm256_add_pd(sum->low, sum->high);
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four),
                                   _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

/* -- bfloat16 ---------------------------------------------------------------- */

/* x rounded to bfloat16, to nearest even as bon_f32_to_bf16 does, and still float32. */
static inline __m256 bon_round_bf16(__m256 x)
{
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    const __m256 rounded = _mm256_blendv_ps(_mm256_castsi256_ps(_mm256_add_epi32(bits, half)),
                                            _mm256_castsi256_ps(quiet), nan);
    return _mm256_and_ps(rounded, _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000u)));
}

/* Sixteen bfloat16: those of a, and behind them those of b, both rounded before. */
static inline __m256i bon_pack_bf16(__m256 a, __m256 b)
{
    const __m256i low = _mm256_srli_epi32(_mm256_castps_si256(a), 16);
    const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(b), 16);
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
}

/* The first count of x, rounded before. */
static inline void bon_store_first_bf16(uint16_t *p, size_t count, __m256 x)
{
    const __m128i all = _mm256_castsi256_si128(bon_pack_bf16(x, x));
    memcpy(p, &all, (count < BON_LANES ? count : BON_LANES) * sizeof *p);
}

/* -- functions of 8 floats ------------------------------------------------- */

/* exp(x): x = n ln 2 + r with |r| <= ln(2)/2, a polynomial for exp(r) with relative
 * error 3e-9, and n added to the exponent bits. 0 below ln(FLT_MIN), +inf above
 * ln(FLT_MAX), NaN for NaN, exactly 1 at 0. */
static inline __m256 bon_exp8(__m256 x)
{
    const __m256 log2_e = _mm256_set1_ps(1.44269504f);
    const __m256 ln2 = _mm256_set1_ps(0.693147182f), ln2_rest = _mm256_set1_ps(-1.90465430e-9f);
    const __m256 lowest = _mm256_set1_ps(-87.3365402f), highest = _mm256_set1_ps(88.7228317f);
    /* 1.5 * 2^23: a sum with it is rounded to a whole number, held in its low bits. */
    const __m256 rounder = _mm256_set1_ps(12582912.0f);

    const __m256 shifted = _mm256_fmadd_ps(x, log2_e, rounder);
    const __m256 n = _mm256_sub_ps(shifted, rounder);
    const __m256 r = _mm256_fnmadd_ps(n, ln2_rest, _mm256_fnmadd_ps(n, ln2, x));

    __m256 q = _mm256_set1_ps(0x1.6a2434p-10f);
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0x1.1239e2p-7f));
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0x1.5558f2p-5f));
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0x1.555492p-3f));
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0x1.fffffcp-2f));
    const __m256 exp_r = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(r, r), q, r),
                                       _mm256_set1_ps(1.0f));

    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    __m256 y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(exp_r), exponent));
    y = _mm256_and_ps(y, _mm256_cmp_ps(x, lowest, _CMP_GE_OQ));
    const __m256 infinite = _mm256_add_ps(x, _mm256_set1_ps(INFINITY)); /* NaN for NaN */
    return _mm256_blendv_ps(y, infinite, _mm256_cmp_ps(x, highest, _CMP_NLE_UQ));
}

/* tanh(x): an odd polynomial (relative error 5e-9) up to 0.625, where
 * 1 - 2 / (exp(2|x|) + 1) would cancel; that expression beyond. */
static inline __m256 bon_tanh8(__m256 x)
{
    const __m256 sign_bit = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1.0f);
    const __m256 size = _mm256_andnot_ps(sign_bit, x);

    const __m256 x2 = _mm256_mul_ps(x, x);
    __m256 q = _mm256_set1_ps(-0.005704986397f);
    q = _mm256_fmadd_ps(q, x2, _mm256_set1_ps(0.0206390862f));
    q = _mm256_fmadd_ps(q, x2, _mm256_set1_ps(-0.0537397154f));
    q = _mm256_fmadd_ps(q, x2, _mm256_set1_ps(0.1333144158f));
    q = _mm256_fmadd_ps(q, x2, _mm256_set1_ps(-0.3333328068f));
    const __m256 small = _mm256_fmadd_ps(_mm256_mul_ps(size, x2), q, size);

    const __m256 e = bon_exp8(_mm256_add_ps(size, size));
    const __m256 large = _mm256_sub_ps(
        one, _mm256_div_ps(_mm256_set1_ps(2.0f), _mm256_add_ps(e, one)));
    const __m256 is_large = _mm256_cmp_ps(size, _mm256_set1_ps(0.625f), _CMP_GT_OQ);
    return _mm256_or_ps(_mm256_blendv_ps(small, large, is_large), _mm256_and_ps(sign_bit, x));
}

/* x / (1 + exp(-z)): silu for z = x. */
static inline __m256 bon_gated8(__m256 x, __m256 z)
{
    const __m256 e = bon_exp8(_mm256_sub_ps(_mm256_setzero_ps(), z));
    return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

/* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), by 1 + tanh(t) = 2 / (1 + exp(-2t)),
 * which does not cancel for negative x.
 * Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2. */
static inline __m256 bon_gelu_tanh8(__m256 x)
{
    const __m256 linear = _mm256_set1_ps(BON_GELU_LINEAR);
    const __m256 cubic = _mm256_set1_ps(BON_GELU_CUBIC);
    const __m256 z = _mm256_mul_ps(x, _mm256_fmadd_ps(_mm256_mul_ps(x, x), cubic, linear));
    return bon_gated8(x, z);
}

/* -- reductions of a row --------------------------------------------------- */

/* The largest of x [n] (none NaN); -inf when n is 0. */
static inline float bon_vec_max(const float *x, size_t n)
{
    const __m256 none = _mm256_set1_ps(-INFINITY);
    __m256 a = none, b = none, c = none, d = none;
    size_t i = 0;
    for (; i + 4 * BON_LANES <= n; i += 4 * BON_LANES) {
        a = _mm256_max_ps(a, _mm256_loadu_ps(x + i));
        b = _mm256_max_ps(b, _mm256_loadu_ps(x + i + BON_LANES));
        c = _mm256_max_ps(c, _mm256_loadu_ps(x + i + 2 * BON_LANES));
        d = _mm256_max_ps(d, _mm256_loadu_ps(x + i + 3 * BON_LANES));
    }
    for (; i < n; i += BON_LANES) a = _mm256_max_ps(a, bon_load_first(x + i, n - i, -INFINITY));
    return bon_max_of8(_mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d)));
}

/* Sum of the n products x*y. */
static inline double bon_vec_dot(const float *x, const float *y, size_t n)
{
    bon_sum8 sum = bon_sum8_zero();
    size_t i = 0;
    for (; i + 4 * BON_LANES <= n; i += 4 * BON_LANES) {
        __m256 part[4];
        for (size_t j = 0; j < 4; j += 2) {
            const float *u = x + i + j * BON_LANES, *v = y + i + j * BON_LANES;
            part[j] = _mm256_mul_ps(_mm256_loadu_ps(u + BON_LANES),
                                    _mm256_loadu_ps(v + BON_LANES));
            part[j] = _mm256_fmadd_ps(_mm256_loadu_ps(u), _mm256_loadu_ps(v), part[j]);
        }
        bon_sum8_add(&sum, _mm256_add_ps(part[0], part[2]));
    }
    for (; i < n; i += BON_LANES)
        bon_sum8_add(&sum, _mm256_mul_ps(bon_load_first(x + i, n - i, 0.0f),
                                         bon_load_first(y + i, n - i, 0.0f)));
    return bon_sum8_total(&sum);
}

/* x [n] = exp(x - shift), shift finite; returns the sum. -inf becomes 0. */
static inline float bon_vec_exp_sum(float *x, size_t n, float shift)
{
    const __m256 by = _mm256_set1_ps(shift);
    bon_sum8 sum = bon_sum8_zero();
    size_t i = 0;
    for (; i + 4 * BON_LANES <= n; i += 4 * BON_LANES) {
        __m256 e[4];
        for (size_t j = 0; j < 4; j++) {
            float *at = x + i + j * BON_LANES;
            e[j] = bon_exp8(_mm256_sub_ps(_mm256_loadu_ps(at), by));
            _mm256_storeu_ps(at, e[j]);
        }
        bon_sum8_add(&sum, _mm256_add_ps(_mm256_add_ps(e[0], e[1]), _mm256_add_ps(e[2], e[3])));
    }
    for (; i < n; i += BON_LANES) {
        const __m256 e = bon_exp8(_mm256_sub_ps(bon_load_first(x + i, n - i, -INFINITY), by));
        bon_store_first(x + i, n - i, e);
        bon_sum8_add(&sum, e);
    }
    return (float)bon_sum8_total(&sum);
}

/* out [n] = exp(x - shift) in bfloat16, shift finite; returns the sum of these. out may begin
 * where x does, or before. */
static inline float bon_vec_exp_sum_bf16(const float *x, size_t n, float shift, uint16_t *out)
{
    const __m256 by = _mm256_set1_ps(shift);
    bon_sum8 sum = bon_sum8_zero();
    size_t i = 0;
    for (; i + 4 * BON_LANES <= n; i += 4 * BON_LANES) {
        __m256 e[4];
        for (size_t j = 0; j < 4; j++)
            e[j] = bon_round_bf16(
                bon_exp8(_mm256_sub_ps(_mm256_loadu_ps(x + i + j * BON_LANES), by)));
        for (size_t j = 0; j < 4; j += 2)
            _mm256_storeu_si256((__m256i_u *)(void *)(out + i + j * BON_LANES),
                                bon_pack_bf16(e[j], e[j + 1]));
        bon_sum8_add(&sum, _mm256_add_ps(_mm256_add_ps(e[0], e[1]), _mm256_add_ps(e[2], e[3])));
    }
    for (; i < n; i += BON_LANES) {
        const __m256 v = _mm256_sub_ps(bon_load_first(x + i, n - i, -INFINITY), by);
        const __m256 e = bon_round_bf16(bon_exp8(v));
        bon_store_first_bf16(out + i, n - i, e);
        bon_sum8_add(&sum, e);
    }
    return (float)bon_sum8_total(&sum);
}

/* -- maps of a row --------------------------------------------------------- */

/* log of the sum of exp(factor * x); x [n], n >= 1, none NaN, at least one finite. */
static inline float bon_vec_log_sum_exp(const float *x, size_t n, float factor)
{
    const __m256 by = _mm256_set1_ps(factor);
    const float top = factor * bon_vec_max(x, n);
    const __m256 shift = _mm256_set1_ps(top);
    bon_sum8 sum = bon_sum8_zero();
    for (size_t i = 0; i < n; i += BON_LANES) {
        const __m256 v = _mm256_mul_ps(bon_load_first(x + i, n - i, -INFINITY), by);
        bon_sum8_add(&sum, bon_exp8(_mm256_sub_ps(v, shift)));
    }
    return top + (float)log(bon_sum8_total(&sum));
}

/* x [n] *= factor. */
static inline void bon_vec_scale(float *x, size_t n, float factor)
{
    const __m256 by = _mm256_set1_ps(factor);
    for (size_t i = 0; i < n; i += BON_LANES)
        bon_store_first(x + i, n - i, _mm256_mul_ps(bon_load_first(x + i, n - i, 0.0f), by));
}

/* out [n] = factor * x in bfloat16. */
static inline void bon_vec_scale_bf16(const float *x, size_t n, float factor, uint16_t *out)
{
    const __m256 by = _mm256_set1_ps(factor);
    for (size_t i = 0; i < n; i += BON_LANES) {
        const __m256 v = _mm256_mul_ps(bon_load_first(x + i, n - i, 0.0f), by);
        bon_store_first_bf16(out + i, n - i, bon_round_bf16(v));
    }
}

/* x [n] = softmax(x); at least one entry finite, -inf gets 0. */
static inline void bon_vec_softmax(float *x, size_t n)
{
    const float sum = bon_vec_exp_sum(x, n, bon_vec_max(x, n));
    bon_vec_scale(x, n, 1.0f / sum);
}

/* x [n] = cap * tanh(x / cap), cap > 0. */
static inline void bon_vec_softcap(float *x, size_t n, float cap)
{
    const __m256 by = _mm256_set1_ps(cap);
    for (size_t i = 0; i < n; i += BON_LANES) {
        const __m256 v = _mm256_div_ps(bon_load_first(x + i, n - i, 0.0f), by);
        bon_store_first(x + i, n - i, _mm256_mul_ps(bon_tanh8(v), by));
    }
}

/* gate [n] = silu(gate) * up [n]. */
static inline void bon_vec_silu_mul(float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i += BON_LANES) {
        const __m256 g = bon_load_first(gate + i, n - i, 0.0f);
        const __m256 u = bon_load_first(up + i, n - i, 0.0f);
        bon_store_first(gate + i, n - i, _mm256_mul_ps(bon_gated8(g, g), u));
    }
}

/* gate [n] = gelu_tanh(gate) * up [n]. */
static inline void bon_vec_gelu_tanh_mul(float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i += BON_LANES) {
        const __m256 g = bon_load_first(gate + i, n - i, 0.0f);
        const __m256 u = bon_load_first(up + i, n - i, 0.0f);
        bon_store_first(gate + i, n - i, _mm256_mul_ps(bon_gelu_tanh8(g), u));
    }
}

/* Gradients of gate and up [n] from d [n], that of act(gate) * up, for an activation
 * x sigma(z) with z = x (linear + cubic x^2) and sigma(z) = 1 / (1 + exp(-z)). */
static inline void bon_vec_gate_grad(const float *gate, const float *up, const float *d,
                                     float *d_gate, float *d_up, size_t n, float linear,
                                     float cubic)
{
    const __m256 one = _mm256_set1_ps(1.0f), a = _mm256_set1_ps(linear);
    const __m256 b = _mm256_set1_ps(cubic), b3 = _mm256_set1_ps(3.0f * cubic);
    for (size_t i = 0; i < n; i += BON_LANES) {
        const __m256 x = bon_load_first(gate + i, n - i, 0.0f), x2 = _mm256_mul_ps(x, x);
        const __m256 sigma = bon_gated8(one, _mm256_mul_ps(x, _mm256_fmadd_ps(x2, b, a)));
        const __m256 act = _mm256_mul_ps(x, sigma);
        const __m256 slope = _mm256_fmadd_ps(x2, b3, a); /* dz/dx */
        const __m256 rest = _mm256_mul_ps(act, _mm256_sub_ps(one, sigma));
        const __m256 d_act = _mm256_fmadd_ps(rest, slope, sigma);
        const __m256 in = bon_load_first(d + i, n - i, 0.0f);
        const __m256 u = bon_load_first(up + i, n - i, 0.0f);
        bon_store_first(d_gate + i, n - i, _mm256_mul_ps(_mm256_mul_ps(in, u), d_act));
        bon_store_first(d_up + i, n - i, _mm256_mul_ps(in, act));
    }
}

static inline void bon_vec_silu_grad(const float *gate, const float *up, const float *d,
                                     float *d_gate, float *d_up, size_t n)
{
    bon_vec_gate_grad(gate, up, d, d_gate, d_up, n, 1.0f, 0.0f);
}

static inline void bon_vec_gelu_tanh_grad(const float *gate, const float *up, const float *d,
                                          float *d_gate, float *d_up, size_t n)
{
    bon_vec_gate_grad(gate, up, d, d_gate, d_up, n, BON_GELU_LINEAR, BON_GELU_CUBIC);
}

/* y [n] = x / sqrt(mean(x^2) + eps) * (offset + w); y may be x; n >= 1.
 * Source: Zhang and Sennrich 2019, arXiv:1910.07467, equation 4. */
static inline void bon_vec_rmsnorm(float *y, const float *x, const float *w, size_t n,
                                   float eps, float offset)
{
    const double mean = bon_vec_dot(x, x, n) / (double)n;
    const __m256 scale = _mm256_set1_ps((float)(1.0 / sqrt(mean + (double)eps)));
    const __m256 plus = _mm256_set1_ps(offset);
    for (size_t i = 0; i < n; i += BON_LANES) {
        const __m256 v = _mm256_mul_ps(bon_load_first(x + i, n - i, 0.0f), scale);
        const __m256 weight = _mm256_add_ps(bon_load_first(w + i, n - i, 0.0f), plus);
        bon_store_first(y + i, n - i, _mm256_mul_ps(v, weight));
    }
}

#endif /* BON_VECMATH_H */
