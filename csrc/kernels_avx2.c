/* kernels_avx2.c - the tile kernels with 16 registers of 8 float32. */
#pragma GCC target("avx2,fma,prfchw")
#include "kernels.h"

#include <immintrin.h>
#include <string.h>

#define WIDEN
typedef __m256 vec;
#define LANES 8
#define WORDS_ROWS_1 6
#define WORDS_ROWS_2 3
#define WORDS_ROWS_4 1
#define BF16_ROWS_1 6
#define BF16_ROWS_2 2
#define BF16_ROWS_4 1
#define I8_ROWS_1 6
#define I8_ROWS_2 2
#define I8_ROWS_4 1
#define BULK 1
#define vec_zero _mm256_setzero_ps
#define vec_load _mm256_loadu_ps
#define vec_line vec_load
#define vec_store _mm256_storeu_ps
#define vec_fma _mm256_fmadd_ps

static inline vec vec_word(const void *p)
{
    float word;
    memcpy(&word, p, sizeof word);
    return _mm256_set1_ps(word);
}
static inline vec vec_even(vec pair)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pair), 16));
}
static inline vec vec_odd(vec pair)
{
    const __m256i high = _mm256_set1_epi32((int)0xffff0000u);
    return _mm256_and_ps(pair, _mm256_castsi256_ps(high));
}
static inline vec vec_bytes_even(vec four)
{
    const __m256i high = _mm256_slli_epi16(_mm256_castps_si256(four), 8);
    return _mm256_castsi256_ps(_mm256_srai_epi16(high, 8));
}
static inline vec vec_bytes_odd(vec four)
{
    return _mm256_castsi256_ps(_mm256_srai_epi16(_mm256_castps_si256(four), 8));
}
static inline vec vec_dot(vec a, vec b, vec c)
{
    const __m256i pairs = _mm256_madd_epi16(_mm256_castps_si256(a), _mm256_castps_si256(b));
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(c), pairs));
}

#include "kernels_tile.h"

const bon_kernels bon_kernels_avx2 = {"avx2", f32, bf16, i8};

bool bon_kernels_have_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
           && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool bon_kernels_have_dot_bf16(void)
{
    return bon_kernels_have_avx512() && __builtin_cpu_supports("avx512bf16");
}

bool bon_kernels_have_dot_i8(void)
{
    return bon_kernels_have_avx512() && __builtin_cpu_supports("avx512vnni");
}
