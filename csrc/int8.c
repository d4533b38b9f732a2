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

bool bon_i8_is_rough(const bon_i8_loss *loss, size_t k, double most)
{
    return sqrt(loss->error * (double)k) > most * loss->size;
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

float bon_i8_digits(const float *x, size_t k, size_t padded, int8_t *p, uint32_t *added,
                    bool *rough)
{
    const float largest = bon_i8_largest(x, k), t = largest / BON_I8_MOST;
    bon_i8_loss loss = {0.0, 0.0};
    memset(p + k, 0, padded - k);
    if (isfinite(largest))
        bon_i8_weights(x, k, t, p, &loss);
    else
        memset(p, 0, k);
    *added = sum_128(p, padded);
    *rough = bon_i8_is_rough(&loss, k, BON_I8_X_LOSS);
    return isfinite(largest) ? t : NAN;
}

float bon_i8_second_digits(const float *x, size_t k, size_t padded, float t, const int8_t *p,
                           int8_t *d, uint32_t *added)
{
    const float scale = t / (2 * BON_I8_MOST);
    bon_i8_loss loss = {0.0, 0.0};
    float rest[512];
    for (size_t i = 0; i < k; i += 512) {
        const size_t count = k - i < 512 ? k - i : 512;
        for (size_t j = 0; j < count; j++) rest[j] = x[i + j] - t * (float)p[i + j];
        bon_i8_weights(rest, count, scale, d + i, &loss);
    }
    memset(d + k, 0, padded - k);
    *added = sum_128(d, padded);
    return scale;
}
