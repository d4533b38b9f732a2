/* matrix.h - what a packed matrix is made of: shared by gemm.c, which packs, and products.c. */
#ifndef BON_MATRIX_H
#define BON_MATRIX_H

#include "gemm.h"
#include "onednn.h"

#define BON_K_ALIGN 16 /* inputs are padded with zeros to a multiple of this */

/* Second digits of some outputs of int8, packed like a matrix of these outputs. */
typedef struct {
    size_t count, room; /* outputs; a multiple of BON_PANEL */
    size_t *output;     /* which; n: none any more */
    float *scale;
    int8_t *data;
} bon_fine_rows;

struct bon_matrix {
    size_t n, k;
    size_t panels, padded_k; /* ceil(n/16); k rounded up to BON_K_ALIGN */
    bon_dtype dtype;
    bon_route route[BON_PHASES];
    bon_onednn *onednn[BON_PHASES]; /* from the first set_route on */
    void *data;
    size_t bytes;
    float *scale; /* int8: of each output */
    bool *rough;  /* int8: which outputs need a second digit */
    bon_fine_rows fine;
};

static inline size_t bon_round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }
static inline size_t bon_smaller(size_t a, size_t b) { return a < b ? a : b; }

/* bon_matrix_multiply by own kernels: the route dot, or tile. */
BON_MUST_CHECK bon_status bon_multiply_own(const bon_matrix *m, bool dot, const float *x,
                                           size_t rows, size_t ldx, float *y, size_t ldy,
                                           int threads);

#endif /* BON_MATRIX_H */
