/* lora.c - low-rank adapters: products of float32 matrices of few outputs or inputs. */
#include "lora.h"

bon_status bon_adapter_create(size_t first, size_t outputs, size_t inputs, size_t rank,
                              float scale, bon_adapter *adapter)
{
    *adapter = (bon_adapter){.first = first, .scale = scale};
    bon_status status = bon_matrix_create(rank, inputs, BON_F32, &adapter->a);
    if (status == BON_OK) status = bon_matrix_create(outputs, rank, BON_F32, &adapter->b);
    if (status != BON_OK) bon_adapter_free(adapter);
    return status;
}

void bon_adapter_free(bon_adapter *adapter)
{
    bon_matrix_destroy(adapter->a);
    bon_matrix_destroy(adapter->b);
    *adapter = (bon_adapter){0};
}

static void scale_all(float *x, size_t count, float factor)
{
    for (size_t i = 0; i < count; i++) x[i] *= factor;
}

static void add_rows(float *y, size_t ldy, const float *x, size_t rows, size_t width)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < width; i++) y[r * ldy + i] += x[r * width + i];
}

bon_status bon_adapter_add(const bon_adapter *adapter, bon_phase phase, const float *x,
                           size_t rows, size_t ldx, float *y, size_t ldy,
                           const bon_adapter_scratch *scratch, int threads)
{
    const size_t rank = bon_matrix_outputs(adapter->a), width = bon_matrix_outputs(adapter->b);
    bon_status status = bon_matrix_multiply(adapter->a, phase, x, rows, ldx, scratch->low, rank,
                                            threads);
    if (status != BON_OK) return status;
    scale_all(scratch->low, rows * rank, adapter->scale);
    status = bon_matrix_multiply(adapter->b, phase, scratch->low, rows, rank, scratch->lift,
                                 width, threads);
    if (status == BON_OK) add_rows(y + adapter->first, ldy, scratch->lift, rows, width);
    return status;
}

/* y [rows, inputs of w] = x w, through a transposed copy of w. */
static bon_status multiply_back(const bon_matrix *w, const float *x, size_t rows, size_t ldx,
                                float *y, int threads)
{
    const size_t inputs = bon_matrix_inputs(w);
    bon_matrix *transposed;
    bon_status status = bon_matrix_create(inputs, bon_matrix_outputs(w), BON_F32, &transposed);
    if (status != BON_OK) return status;
    bon_matrix_transpose(w, transposed, threads);
    status = bon_matrix_multiply(transposed, BON_PREFILL, x, rows, ldx, y, inputs, threads);
    bon_matrix_destroy(transposed);
    return status;
}

bon_status bon_adapter_backward(const bon_adapter *adapter, const float *dy, size_t lddy,
                                const float *x, size_t rows, size_t ldx, float *grad_a,
                                float *grad_b, float *dx, const bon_adapter_scratch *scratch,
                                int threads)
{
    const size_t rank = bon_matrix_outputs(adapter->a), inputs = bon_matrix_inputs(adapter->a);
    const size_t width = bon_matrix_outputs(adapter->b);
    const float *dy_here = dy + adapter->first;
    bon_status status = bon_matrix_multiply(adapter->a, BON_PREFILL, x, rows, ldx, scratch->low,
                                            rank, threads);
    if (status != BON_OK) return status;
    scale_all(scratch->low, rows * rank, adapter->scale);
    if (grad_b)
        bon_matrix_gradient(width, rank, dy_here, lddy, scratch->low, rank, rows, grad_b,
                            scratch->gradient, threads);

    status = multiply_back(adapter->b, dy_here, rows, lddy, scratch->d_low, threads);
    if (status != BON_OK) return status;
    scale_all(scratch->d_low, rows * rank, adapter->scale);
    if (grad_a)
        bon_matrix_gradient(rank, inputs, scratch->d_low, rank, x, ldx, rows, grad_a,
                            scratch->gradient, threads);
    status = multiply_back(adapter->a, scratch->d_low, rows, rank, scratch->lift, threads);
    if (status == BON_OK) add_rows(dx, inputs, scratch->lift, rows, inputs);
    return status;
}
