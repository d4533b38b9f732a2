/* onednn.h - products with packed panels by oneDNN: gemm.c's third route.
 *
 * A product is cut into blocks of a fixed number of rows (the last one filled
 * up with zeros) times BON_ONEDNN_GROUP panels. Each block is one oneDNN
 * primitive that runs on one thread, so the bits depend neither on how many
 * rows there are nor on the threads. bfloat16 activations are rounded to
 * bfloat16 first; sums and results are float32.
 *
 * Only implementations of a named family are taken. "brg" (brgemm) treats every
 * row of a block alike; "gemm" does not (with 32 rows on AVX2 four rows differ
 * from the others in the last bits), and "ref" is a plain loop, right and slow.
 */
#ifndef BON_ONEDNN_H
#define BON_ONEDNN_H

#include <stdbool.h>
#include <stddef.h>

#include "gemm.h"
#include "status.h"

#define BON_ONEDNN_GROUP 8 /* panels per primitive */

typedef struct bon_onednn bon_onednn;

/* Prepares products with `count` panels of k inputs (gemm.h), k a multiple of
 * 16. The panels are borrowed until destroy, and may change.
 *   rows    per block; products with fewer rows cost as much
 *   family  what the name of oneDNN's implementation has to start with
 * BON_ERR_BACKEND if oneDNN has none of this family here. */
BON_MUST_CHECK bon_status bon_onednn_create(const void *panels, size_t count, size_t k,
                                            bon_dtype dtype, size_t rows,
                                            const char *family, bon_onednn **out);
void bon_onednn_destroy(bon_onednn *product); /* accepts NULL */

/* y[r][j] for r < rows, j < n <= 16*count; x has `width` <= k inputs. Errors:
 * BON_ERR_MEMORY, BON_ERR_BACKEND. */
BON_MUST_CHECK bon_status bon_onednn_multiply(const bon_onednn *product, const float *x,
                                              size_t rows, size_t width, size_t ldx,
                                              float *y, size_t n, size_t ldy, int threads);

#endif /* BON_ONEDNN_H */
