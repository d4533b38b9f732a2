/* kernels.h - the register-level products below gemm.c, one table per instruction set.
 *
 * A kernel multiplies rows of x with panels (gemm.h says what a panel is):
 *
 *   y[r*ldy + p*apart + j] = sum_{i<k} x[r][i] * panel p [i][j],   r < rows, p < count, j < 16
 *
 * Every y is one chain of fused multiply-adds over i = 0..k-1, from 0 or, with
 * `accumulate`, from what y holds. So all tables give the same bits, and a
 * product may be cut anywhere: rows, panels, and k (going on through y).
 *
 * `next`, or NULL: panels as far from each other, which the next call multiplies. Some of them
 * are asked for.
 *
 * int8 is the same with whole numbers: exact sums of 32 bits, in y as int32.
 *
 * Where the processor multiplies short numbers by itself, x may be as short as the panels are
 * (bon_kernels_dot_...): several products of a lane and their sum are one instruction.
 *
 * rows and k are at least 1.
 *   panels      panel p at panels + p*stride elements; 16-byte aligned or not
 *   x [rows, ldx >= k]
 *   y           whole panels are written, `apart` floats from each other: 16 where they
 *               are columns of one matrix (ldy >= 16*count), ldy = 16 where each panel
 *               of y is an array [rows][16] of its own
 *
 * The code stands in kernels_tile.h, once; kernels_*.c only say what a vector is, and what a
 * link of a chain.
 */
#ifndef BON_KERNELS_H
#define BON_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *isa;
    /* panels [k][16] */
    void (*f32)(const float *panels, size_t count, size_t stride, size_t k, const float *x,
                size_t rows, size_t ldx, float *y, size_t ldy, size_t apart,
                bool accumulate, const void *next);
    /* panels [ceil(k/2)][16][2]; of the last pair of an odd k only the first is read */
    void (*bf16)(const uint16_t *panels, size_t count, size_t stride, size_t k,
                 const float *x, size_t rows, size_t ldx, float *y, size_t ldy,
                 size_t apart, bool accumulate, const void *next);
    /* panels [k/4][16][4], k a multiple of 4; of each four inputs x holds the second and
     * third exchanged, at an even address; ldx is even */
    void (*i8)(const int8_t *panels, size_t count, size_t stride, size_t k, const int16_t *x,
               size_t rows, size_t ldx, int32_t *y, size_t ldy, size_t apart,
               bool accumulate, const void *next);
} bon_kernels;

extern const bon_kernels bon_kernels_avx2;   /* needs AVX2 and FMA */
extern const bon_kernels bon_kernels_avx512; /* needs AVX-512 F, BW, VL, DQ as well */

/* x is bfloat16 as well: the chains are over pairs of inputs, rounded as vdpbf16ps does. k is
 * even, x at a multiple of 4, ldx even. */
void bon_kernels_dot_bf16(const uint16_t *panels, size_t count, size_t stride, size_t k,
                          const uint16_t *x, size_t rows, size_t ldx, float *y, size_t ldy,
                          size_t apart, bool accumulate, const void *next);
/* x is int8 too, and in order: y = sum x * (panel + 128), modulo 2^32. k is a multiple of 4, x at
 * one, and ldx is one. */
void bon_kernels_dot_i8(const int8_t *panels, size_t count, size_t stride, size_t k,
                        const int8_t *x, size_t rows, size_t ldx, int32_t *y, size_t ldy,
                        size_t apart, bool accumulate, const void *next);

/* What this machine has; these run anywhere (they are in kernels_avx2.c). */
bool bon_kernels_have_avx512(void);
bool bon_kernels_have_dot_bf16(void);
bool bon_kernels_have_dot_i8(void);

static inline const bon_kernels *bon_kernels_here(void) /* the best of this machine */
{
    return bon_kernels_have_avx512() ? &bon_kernels_avx512 : &bon_kernels_avx2;
}

#endif /* BON_KERNELS_H */
