/* kernels_dot_i8.c - the tile kernels with vpdpbusd: fours of int8 times fours.
 *
 * One side of the instruction is unsigned: weights, with 128 added. Entered only where
 * bon_kernels_have_dot_i8() says so. */
#pragma GCC target("avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prfchw")
#include "kernels.h"

#include <immintrin.h>
#include <string.h>

typedef __m512i vec;
#define LANES 16
#define WORDS_ROWS_1 6
#define WORDS_ROWS_2 12
#define WORDS_ROWS_4 4
#define BULK 2
#define vec_zero _mm512_setzero_si512
#define vec_load _mm512_loadu_si512
#define vec_store _mm512_storeu_si512

static inline vec vec_line(const void *fours)
{
    return _mm512_xor_si512(vec_load(fours), _mm512_set1_epi8(-128));
}
static inline vec vec_word(const void *four)
{
    int32_t bits;
    memcpy(&bits, four, sizeof bits);
    return _mm512_set1_epi32(bits);
}
static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_dpbusd_epi32(c, b, a);
}

#include "kernels_tile.h"

void bon_kernels_dot_i8(const int8_t *panels, size_t count, size_t stride, size_t k,
                        const int8_t *x, size_t rows, size_t ldx, int32_t *y, size_t ldy,
                        size_t apart, bool accumulate, const void *next)
{
    words(panels, count, stride / 4, k / 4, x, rows, ldx / 4, y, ldy, apart, accumulate, next);
}
