/* kernels_avx512.c - the tile kernels with 32 registers of 16 float32.
 *
 * Entered only where bon_kernels_have_avx512() says so. */
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prfchw")
#include "kernels.h"

#include <immintrin.h>
#include <string.h>

#define WIDEN
typedef __m512 vec;
#define LANES 16
#define WORDS_ROWS_1 6
#define WORDS_ROWS_2 12
#define WORDS_ROWS_4 4
#define BF16_ROWS_1 6
#define BF16_ROWS_2 12
#define BF16_ROWS_4 4
#define I8_ROWS_1 6
#define I8_ROWS_2 8
#define I8_ROWS_4 4
#define BULK 2
#define vec_zero _mm512_setzero_ps
#define vec_load _mm512_loadu_ps
#define vec_line vec_load
#define vec_store _mm512_storeu_ps
#define vec_fma _mm512_fmadd_ps

static inline vec vec_word(const void *p)
{
    float word;
    memcpy(&word, p, sizeof word);
    return _mm512_set1_ps(word);
}
static inline vec vec_even(vec pair)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(pair), 16));
}
static inline vec vec_odd(vec pair)
{
    const __m512i high = _mm512_set1_epi32((int)0xffff0000u);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pair), high));
}
static inline vec vec_bytes_even(vec four)
{
    const __m512i high = _mm512_slli_epi16(_mm512_castps_si512(four), 8);
    return _mm512_castsi512_ps(_mm512_srai_epi16(high, 8));
}
static inline vec vec_bytes_odd(vec four)
{
    return _mm512_castsi512_ps(_mm512_srai_epi16(_mm512_castps_si512(four), 8));
}
static inline vec vec_dot(vec a, vec b, vec c)
{
    const __m512i pairs = _mm512_madd_epi16(_mm512_castps_si512(a), _mm512_castps_si512(b));
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(c), pairs));
}

#include "kernels_tile.h"

const bon_kernels bon_kernels_avx512 = {"avx512", f32, bf16, i8};
