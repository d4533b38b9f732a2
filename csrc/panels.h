/* panels.h - float32 matrices in panels: gradients of products, rows in and out.
 *
 * A matrix [n outputs, k inputs] in panels of 16 outputs is what packed float32
 * weights are (gemm.h), here as a bare array: output 16p + j, input i stands at
 *
 *   panels[(p*K + i)*16 + j],   K = k rounded up to a multiple of 16
 *
 * and what lies beyond the outputs and inputs is zero and stays zero. Weights,
 * gradients and the optimiser's moments share this layout, so the optimiser
 * (adamw.h) works element by element and knows no shapes.
 *
 * Nothing here allocates or fails. Results do not depend on the threads.
 */
#ifndef BON_PANELS_H
#define BON_PANELS_H

#include <stddef.h>
#include <stdint.h>

#define BON_PANEL 16 /* outputs per panel: one AVX-512 register of float32 */

/* Floats of the panels of [n, k]; 0 if that, in bytes, overflows. */
size_t bon_panels_floats(size_t n, size_t k);

/* Bytes of scratch that a gradient of [n, k] needs, a multiple of 64. */
size_t bon_gradient_scratch(size_t n, size_t k, int threads);

/* grad += dy^T x: the gradient in W of sum(dy * y) for y = x W^T.
 *   dy [rows, ldy >= n]   x [rows, ldx >= k], both finite
 *   grad      panels of [n, k]
 *   scratch   bon_gradient_scratch(n, k, threads) bytes, at a multiple of 64
 * Every element is one chain of fused multiply-adds over the rows in order,
 * continued from what grad holds: rows may be cut over several calls, and the
 * bits are those of one. */
void bon_matrix_gradient(size_t n, size_t k, const float *dy, size_t ldy, const float *x,
                         size_t ldx, size_t rows, float *grad, void *scratch, int threads);

/* Outputs first..first+rows-1 of the panels of [n, k] as rows of `out` [rows, k],
 * and back. What would lie beyond output n is left out; first <= n. */
void bon_panels_unpack(const float *panels, size_t n, size_t k, size_t first, size_t rows,
                       float *out, int threads);
void bon_panels_pack(float *panels, size_t n, size_t k, size_t first, size_t rows,
                     const float *in, int threads);

/* Output row_of[r] += x[r] for r < rows, in order: the gradient of an embedding.
 * x [rows, ldx >= k]; 0 <= row_of[r] < n of the panels. */
void bon_panels_scatter(float *panels, size_t k, const int32_t *row_of, const float *x,
                        size_t ldx, size_t rows, int threads);

#endif /* BON_PANELS_H */
