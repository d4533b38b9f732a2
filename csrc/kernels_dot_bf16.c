/* kernels_dot_bf16.c - the tile kernels with vdpbf16ps: pairs of bfloat16 times pairs.
 *
 * Entered only where bon_kernels_have_dot_bf16() says so. */
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prfchw")
#include "kernels.h"

#include <immintrin.h>
#include <string.h>

typedef __m512 vec;
#define LANES 16
#define WORDS_ROWS_1 6
#define WORDS_ROWS_2 12
#define WORDS_ROWS_4 4
#define BULK 2
#define vec_zero _mm512_setzero_ps
#define vec_load _mm512_loadu_ps
#define vec_line vec_load
#define vec_store _mm512_storeu_ps

static inline vec vec_word(const void *pair)
{
    int32_t bits;
    memcpy(&bits, pair, sizeof bits);
    return _mm512_castsi512_ps(_mm512_set1_epi32(bits));
}
static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_dpbf16_ps(c, (__m512bh)b, (__m512bh)a);
}

#include "kernels_tile.h"

void bon_kernels_dot_bf16(const uint16_t *panels, size_t count, size_t stride, size_t k,
                          const uint16_t *x, size_t rows, size_t ldx, float *y, size_t ldy,
                          size_t apart, bool accumulate, const void *next)
{
    words(panels, count, stride / 2, k / 2, x, rows, ldx / 2, y, ldy, apart, accumulate, next);
}
