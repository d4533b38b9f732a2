/* int8.c - rounding of weights and activations; see int8.h. */
#include "int8.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

int bon_i8_levels(size_t k)
{
    const size_t most = (size_t)INT32_MAX / (BON_I8_MOST * k);
    return most < 2047 ? (int)most : 2047;
}

/* As whole numbers: the bits of a NaN are above those of infinity and all others. */
float bon_i8_largest(const float *x, size_t count)
{
    __m256i most = _mm256_setzero_si256();
    const __m256i size = _mm256_set1_epi32(0x7fffffff);
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        most = _mm256_max_epi32(
            most, _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(x + i)), size));
    int32_t lanes[8], largest = 0;
    memcpy(lanes, &most, sizeof lanes);
    for (size_t l = 0; l < 8; l++) largest = lanes[l] > largest ? lanes[l] : largest;
    for (; i < count; i++) {
        int32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    float value;
    memcpy(&value, &largest, sizeof value);
    return value;
}

/* Adds four numbers to four sums. */
static void add_up(__m256d *sums, __m256 eight)
{
    *sums = _mm256_add_pd(*sums, _mm256_cvtps_pd(_mm256_castps256_ps128(eight)));
    *sums = _mm256_add_pd(*sums, _mm256_cvtps_pd(_mm256_extractf128_ps(eight, 1)));
}

static double total(__m256d sums)
{
    double four[4];
    memcpy(four, &sums, sizeof four);
    return (four[0] + four[1]) + (four[2] + four[3]);
}

void bon_i8_weights(const float *x, size_t count, float scale, int8_t *q, bon_i8_loss *loss)
{
    const float inverse = isfinite(1.0f / scale) ? 1.0f / scale : 0.0f; /* else next to 0 */
    const __m256 most = _mm256_set1_ps(BON_I8_MOST), least = _mm256_set1_ps(-BON_I8_MOST);
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256d error = _mm256_setzero_pd(), size = error;
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256 w = _mm256_loadu_ps(x + i);
        const __m256 exact = _mm256_mul_ps(w, _mm256_set1_ps(inverse));
        const __m256i whole =
            _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(exact, least), most));
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole),
                                              _mm256_extracti128_si256(whole, 1));
        const __m128i bytes = _mm_packs_epi16(words, words);
        memcpy(q + i, &bytes, 8);
        const __m256 near = _mm256_mul_ps(_mm256_set1_ps(scale), _mm256_cvtepi32_ps(whole));
        const __m256 rest = _mm256_sub_ps(w, near);
        add_up(&error, _mm256_mul_ps(rest, rest));
        add_up(&size, _mm256_andnot_ps(sign, w));
    }
    for (; i < count; i++) {
        q[i] = (int8_t)lrintf(fminf(fmaxf(x[i] * inverse, -BON_I8_MOST), BON_I8_MOST));
        const double rest = x[i] - scale * (float)q[i];
        loss->error += rest * rest;
        loss->size += fabs((double)x[i]);
    }
    loss->error += total(error);
    loss->size += total(size);
}

bool bon_i8_is_rough(const bon_i8_loss *loss, size_t k)
{
    return sqrt(loss->error * (double)k) > BON_I8_LOSS * loss->size;
}

float bon_i8_activations(const float *x, size_t k, size_t padded, int levels, int16_t *p)
{
    const float largest = bon_i8_largest(x, k), inverse = (float)levels / largest;
    if (!isfinite(largest) || !isfinite(inverse)) { /* the latter: zeros, or next to it */
        memset(p, 0, padded * sizeof *p);
        return isfinite(largest) ? 0.0f : NAN;
    }
    const __m256 scale = _mm256_set1_ps(inverse);
    size_t i = 0;
    for (; i + 8 <= k; i += 8) {
        const __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), scale));
        __m128i eight = _mm_packs_epi32(_mm256_castsi256_si128(whole),
                                        _mm256_extracti128_si256(whole, 1));
        eight = _mm_shufflehi_epi16(_mm_shufflelo_epi16(eight, 0xd8), 0xd8);
        _mm_storeu_si128((__m128i *)(p + i), eight);
    }
    if (i < padded) memset(p + i, 0, (padded - i) * sizeof *p);
    for (; i < k; i++) {
        static const int8_t place[4] = {0, 2, 1, 3};
        p[i / 4 * 4 + (size_t)place[i % 4]] = (int16_t)lrintf(x[i] * inverse);
    }
    return largest / (float)levels;
}

/* 128 times the sum of digits, modulo 2^32; count is a multiple of 16. */
static uint32_t sum_128(const int8_t *p, size_t count)
{
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sums = _mm256_setzero_si256();
    for (size_t i = 0; i < count; i += 16) {
        const __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(p + i)));
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(words, ones));
    }
    uint32_t lanes[8], sum = 0;
    memcpy(lanes, &sums, sizeof lanes);
    for (size_t l = 0; l < 8; l++) sum += lanes[l];
    return 128 * sum;
}

/* Sum of |x|. */
static double sum_of_sizes(const float *x, size_t k)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256d sums = _mm256_setzero_pd();
    size_t i = 0;
    for (; i + 8 <= k; i += 8) add_up(&sums, _mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)));
    double sum = total(sums);
    for (; i < k; i++) sum += fabs((double)x[i]);
    return sum;
}

/* Eight whole numbers as digits; those that are beyond them are noted. */
static void put_digits(__m256i whole, size_t input, int8_t *p, bon_i8_far *far, size_t *n_far)
{
    const __m256i most = _mm256_set1_epi32(BON_I8_MOST), least = _mm256_set1_epi32(-BON_I8_MOST);
    const __m256i near = _mm256_min_epi32(_mm256_max_epi32(whole, least), most);
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(near), _mm256_extracti128_si256(near, 1));
    const __m128i bytes = _mm_packs_epi16(words, words);
    memcpy(p + input, &bytes, 8);
    const __m256i beyond = _mm256_sub_epi32(whole, near);
    if (_mm256_testz_si256(beyond, beyond)) return;
    int32_t lanes[8];
    memcpy(lanes, &beyond, sizeof lanes);
    for (size_t l = 0; l < 8; l++)
        if (lanes[l] != 0) far[(*n_far)++] = (bon_i8_far){(uint32_t)(input + l), lanes[l]};
}

float bon_i8_digits(const float *x, size_t k, size_t padded, int8_t *p, uint32_t *added,
                    bon_i8_far *far, size_t *n_far)
{
    const float largest = bon_i8_largest(x, k);
    *added = 0;
    *n_far = 0;
    if (!isfinite(largest)) {
        memset(p, 0, padded);
        return NAN;
    }
    const float far_from = (float)(BON_I8_FAR * (sum_of_sizes(x, k) / (double)k));
    const float t = fminf(largest, far_from) / BON_I8_MOST;
    const float inverse = isfinite(1.0f / t) ? 1.0f / t : 0.0f; /* else next to 0 */
    const __m256 scale = _mm256_set1_ps(inverse);
    for (size_t i = 0; i < padded; i += 8) {
        float eight[8] = {0};
        if (i < k && k - i < 8) memcpy(eight, x + i, (k - i) * sizeof *x);
        const __m256 v = _mm256_loadu_ps(i + 8 <= k ? x + i : eight);
        put_digits(_mm256_cvtps_epi32(_mm256_mul_ps(v, scale)), i, p, far, n_far);
    }
    *added = sum_128(p, padded);
    return t;
}

void bon_i8_add_far(const bon_i8_far *far, size_t n_far, const int8_t *panels, size_t count,
                    size_t stride, int32_t *sums)
{
    if (n_far == 0) return;
    for (size_t panel = 0; panel < count; panel++, panels += stride, sums += 16) {
        __m256i low = _mm256_loadu_si256((const __m256i *)(void *)sums);
        __m256i high = _mm256_loadu_si256((const __m256i *)(void *)(sums + 8));
        for (const bon_i8_far *f = far; f < far + n_far; f++) {
            const __m256i *fours = (const __m256i *)(const void *)(panels + f->input / 4 * 64);
            const __m128i up = _mm_cvtsi32_si128((int)(24 - f->input % 4 * 8)); /* to the top */
            const __m256i by = _mm256_set1_epi32(f->beyond);
            const __m256i a = _mm256_sll_epi32(_mm256_loadu_si256(fours), up);
            const __m256i b = _mm256_sll_epi32(_mm256_loadu_si256(fours + 1), up);
            low = _mm256_add_epi32(low, _mm256_mullo_epi32(_mm256_srai_epi32(a, 24), by));
            high = _mm256_add_epi32(high, _mm256_mullo_epi32(_mm256_srai_epi32(b, 24), by));
        }
        _mm256_storeu_si256((__m256i *)(void *)sums, low);
        _mm256_storeu_si256((__m256i *)(void *)(sums + 8), high);
    }
}
