/* lora.h - low-rank adapters beside a product, and their gradients.
 *
 *   y = x W^T + b + scale * (x A^T) B^T        A [rank, inputs], B [outputs, rank]
 *
 * Adapters are float32 whatever the model is: a small change of a bfloat16 weight
 * would be rounded away. They are products of their own, never merged here.
 *
 * Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
 */
#ifndef BON_LORA_H
#define BON_LORA_H

#include "gemm.h"

#define BON_ADAPTERS 3 /* most beside one product: q, k and v are one */

typedef struct {
    size_t first; /* output of the product that it starts at */
    float scale;
    bon_matrix *a, *b;
} bon_adapter;

/* A and B zero. BON_ERR_MEMORY: *adapter is empty. */
BON_MUST_CHECK bon_status bon_adapter_create(size_t first, size_t outputs, size_t inputs,
                                             size_t rank, float scale, bon_adapter *adapter);
void bon_adapter_free(bon_adapter *adapter); /* accepts an empty one */

/* Scratch of the two calls below, for rows of a batch. */
typedef struct {
    float *low, *d_low; /* [rows, rank] each */
    float *lift;        /* [rows, larger of outputs and inputs] */
    void *gradient;     /* bon_gradient_scratch of A and of B; backward only */
} bon_adapter_scratch;

/* y [rows, ldy], of all outputs of the product, gets the adapter's part added. */
BON_MUST_CHECK bon_status bon_adapter_add(const bon_adapter *adapter, bon_phase phase,
                                          const float *x, size_t rows, size_t ldx, float *y,
                                          size_t ldy, const bon_adapter_scratch *scratch,
                                          int threads);

/* From dy [rows, lddy], of all outputs, adds to grad_a and grad_b (panels; or NULL) and
 * to dx [rows, inputs]. */
BON_MUST_CHECK bon_status bon_adapter_backward(const bon_adapter *adapter, const float *dy,
                                               size_t lddy, const float *x, size_t rows,
                                               size_t ldx, float *grad_a, float *grad_b,
                                               float *dx, const bon_adapter_scratch *scratch,
                                               int threads);

#endif /* BON_LORA_H */
