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

void bon_i8_weights(const float *x, size_t count, float scale, int8_t *q)
{
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    for (size_t i = 0; i < count; i++) {
        const float whole = fminf(fmaxf(x[i] * inverse, -BON_I8_MOST), BON_I8_MOST);
        q[i] = (int8_t)lrintf(whole);
    }
}

bool bon_i8_is_rough(const float *x, const int8_t *q, size_t count, float scale, float *rest)
{
    double error = 0.0, size = 0.0;
    for (size_t i = 0; i < count; i++) {
        rest[i] = x[i] - scale * (float)q[i];
        error += (double)rest[i] * (double)rest[i];
        size += fabs((double)x[i]);
    }
    return sqrt(error * (double)count) > BON_I8_LOSS * size;
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
