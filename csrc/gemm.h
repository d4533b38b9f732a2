/* gemm.h - products of activations with packed weights, y = x W^T.
 *
 * Weights are packed once, at load, into panels of 16 outputs that every route
 * can read, so there is one copy of them in memory:
 *
 *   float32   panel p, input k, lane j  ->  data[(p*K + k)*16 + j]
 *   bfloat16  panel p, input k, lane j  ->  data[((p*K/2 + k/2)*16 + j)*2 + k%2]
 *   int8      panel p, input k, lane j  ->  data[((p*K/4 + k/4)*16 + j)*4 + k%4]
 *
 * where output n = 16p + j and K is the number of inputs rounded up to a
 * multiple of 16; what lies beyond the inputs and outputs is zero. In oneDNN's
 * words this is BA16a16b, BA16a16b2a and BA16a16b4a of the [K, N] matrix. Activations
 * and results are float32; sums are in float32, those of int8 exact (int8.h).
 *
 * Same bits. A row of y depends on that row of x alone: not on the number of
 * rows, their order, the threads or the part of N that is asked for. Every
 * route keeps this by itself. Two routes round activations differently, or sum in
 * another order, so a route is chosen per (machine, dtype, shape, phase), never by
 * the number of rows:
 *
 *   tile      own kernels (AVX2 or AVX-512; products.c): each y[r][n] is one chain of fused
 *             multiply-adds over k = 0..K-1, starting from 0 (or from y, when
 *             accumulating), whatever the blocking. bfloat16 weights are
 *             widened in registers, exactly. int8: activations are rounded to 12 bits
 *             of each row; sums of whole numbers.
 *   dot       own kernels with the processor's products of short numbers: activations are
 *             rounded to what the weights are, bfloat16 (AVX512_BF16; chains of pairs) or int8
 *             and what few inputs have beyond it (AVX512_VNNI; sums of whole numbers).
 *             In bfloat16 subnormal numbers count as zero, whatever the processor's mode.
 *   onednn    dnnl matmul (onednn.h) on blocks of fixed size: a product costs
 *             as much as one of a whole number of blocks. For bfloat16 the
 *             activations are rounded to bfloat16 first (that is what makes it
 *             fast where the machine has the instruction). oneDNN 3.2 has fit
 *             implementations from AVX-512 on: f32, and bf16 with AVX512_BF16.
 *
 * Nothing outside gemm.c, products.c, their kernels and onednn.c knows what a panel looks
 * like, except where panels are worked on as bare arrays: panels.h, adamw.h and
 * attention_grad.c for training, and cache.h, whose panels attention.c gives to the kernels.
 */
#ifndef BON_GEMM_H
#define BON_GEMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "panels.h"
#include "status.h"

#define BON_DECODE_ROWS 16  /* rows of one block of the oneDNN route in decode */
#define BON_PREFILL_ROWS 64 /* and in prefill */

/* F16: source only; I8: packed only */
typedef enum { BON_F32, BON_BF16, BON_F16, BON_I8 } bon_dtype;
size_t bon_dtype_size(bon_dtype dtype);

static inline float bon_bf16_to_f32(uint16_t x)
{
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Rounds to nearest even. A NaN keeps its sign and upper payload and becomes
 * quiet: rounding could carry it into infinity, cutting leave no payload. */
static inline uint16_t bon_f32_to_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const uint32_t quiet = bits >> 16 | 0x40u;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

typedef enum { BON_PREFILL, BON_DECODE, BON_PHASES } bon_phase;
typedef enum { BON_ROUTE_TILE, BON_ROUTE_DOT, BON_ROUTE_ONEDNN, BON_ROUTES } bon_route;
const char *bon_route_name(bon_route route);

typedef struct bon_matrix bon_matrix; /* packed weights W [n outputs, k inputs] */

/* An all-zero packed matrix; fill it with rows. dtype: BON_F32, BON_BF16 or BON_I8. */
BON_MUST_CHECK bon_status bon_matrix_create(size_t n, size_t k, bon_dtype dtype,
                                            bon_matrix **out);
void bon_matrix_destroy(bon_matrix *matrix); /* accepts NULL */

/* Packs src [rows, k], row-major, of any dtype, as outputs first..first+rows-1.
 * Conversions round to nearest even. BON_ERR_DOMAIN if the rows do not fit. Rows of int8 that
 * need a second digit (int8.h) take more memory: BON_ERR_MEMORY, and they are rough then. */
BON_MUST_CHECK bon_status bon_matrix_fill(bon_matrix *matrix, size_t first,
                                          const void *src, bon_dtype src_dtype,
                                          size_t rows, int threads);
/* Unpacks output `row` as float32 [k]: an embedding lookup. */
void bon_matrix_row(const bon_matrix *matrix, size_t row, float *out);
size_t bon_matrix_bytes(const bon_matrix *matrix);
size_t bon_matrix_outputs(const bon_matrix *matrix);
size_t bon_matrix_inputs(const bon_matrix *matrix);
size_t bon_matrix_fine_rows(const bon_matrix *matrix); /* with a second digit */

/* Weights that learn are float32 or bfloat16: what follows is not for int8.
 *
 * dst = W^T, for gradients in x: dx = dy W is a product with dst. dst was created with
 * as many outputs as src has inputs and the other way round, and with src's dtype. */
void bon_matrix_transpose(const bon_matrix *src, bon_matrix *dst, int threads);

/* The weights as float32 panels of [n, k] (panels.h): in place, and NULL for bfloat16;
 * copied, bfloat16 widened; and copied back, rounded to nearest even for bfloat16.
 * What multiplies with weights while they are written sees some of each. */
float *bon_matrix_panels(bon_matrix *matrix);
void bon_matrix_get_panels(const bon_matrix *matrix, float *panels, int threads);
void bon_matrix_set_panels(bon_matrix *matrix, const float *panels, int threads);

/* Which route serves a phase. Setting one that the machine or the dtype cannot
 * serve is BON_ERR_BACKEND, as is oneDNN's for bfloat16 where the inputs, rounded up to a
 * multiple of 16, are none of 32. Default: tile in both. Not while a product runs. */
bool bon_route_available(bon_route route, bon_dtype dtype);
BON_MUST_CHECK bon_status bon_matrix_set_route(bon_matrix *matrix, bon_phase phase,
                                               bon_route route);
bon_route bon_matrix_route(const bon_matrix *matrix, bon_phase phase);

/* y[r][j] = sum_k x[r][k] * W[j][k] for r < rows, j < n.
 *   x  [rows, ldx >= k]   y  [rows, ldy >= n]; they do not overlap
 * Deterministic for any number of threads, and many may multiply at a time. The
 * tile route cannot fail and allocates nothing, but where x is rounded first, for int8
 * and by the route dot, it is copied, and BON_ERR_MEMORY possible; oneDNN's copies x (at most
 * 512 rows at a time) and may give that or BON_ERR_BACKEND. */
BON_MUST_CHECK bon_status bon_matrix_multiply(const bon_matrix *matrix, bon_phase phase,
                                              const float *x, size_t rows, size_t ldx,
                                              float *y, size_t ldy, int threads);

/* Single-thread product with bare float32 panels.
 *   panels  count panels of [k][16], panel p at panels + p*stride (in floats)
 *   y       [rows, ldy]; panel p writes columns 16p..16p+15
 *   accumulate  continue the chains from y instead of from 0 */
void bon_panel_multiply(const float *panels, size_t count, size_t stride, size_t k,
                        const float *x, size_t rows, size_t ldx,
                        float *y, size_t ldy, bool accumulate);

/* Seconds that one product takes by a route now, infinite where the route cannot serve the
 * matrix: best of `repeats`, with `rows` rows of x. From BON_PREFILL_ROWS rows on it is a
 * product of the prefill. The matrix keeps its routes. Used at load to choose. */
BON_MUST_CHECK bon_status bon_matrix_measure(bon_matrix *matrix, bon_route route,
                                             size_t rows, int repeats, int threads,
                                             double *seconds);

/* What this build and machine offer, for show_config. Static strings. */
const char *bon_gemm_isa(void);     /* kernels in use: "avx2" | "avx512" */
const char *bon_onednn_isa(void);   /* oneDNN's effective instruction set */
const char *bon_onednn_version(void);

/* false where the processor lacks AVX2 and FMA: nothing else may be called. */
bool bon_cpu_supported(void);

#endif /* BON_GEMM_H */
