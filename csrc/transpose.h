/* transpose.h - 32-bit words turned over, a block that fits the registers at a time. */
#ifndef BON_TRANSPOSE_H
#define BON_TRANSPOSE_H

#include <immintrin.h>
#include <stddef.h>

/* to[c*ld_to + r] = from[r*ld_from + c] for r, c < 8. The words may be anything: they
 * are moved and never computed with. */
static inline void bon_transpose_8x8(const void *from, size_t ld_from, void *to, size_t ld_to)
{
    const float *in = from;
    float *out = to;
    __m256 row[8], pair[8], quad[8];
    for (size_t r = 0; r < 8; r++) row[r] = _mm256_loadu_ps(in + r * ld_from);
    for (size_t i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
    for (size_t i = 0; i < 8; i += 4)
        for (size_t j = 0; j < 2; j++) {
            quad[i + 2 * j] = _mm256_shuffle_ps(pair[i + j], pair[i + j + 2], 0x44);
            quad[i + 2 * j + 1] = _mm256_shuffle_ps(pair[i + j], pair[i + j + 2], 0xee);
        }
    for (size_t c = 0; c < 4; c++) {
        _mm256_storeu_ps(out + c * ld_to, _mm256_permute2f128_ps(quad[c], quad[c + 4], 0x20));
        _mm256_storeu_ps(out + (c + 4) * ld_to,
                         _mm256_permute2f128_ps(quad[c], quad[c + 4], 0x31));
    }
}

/* The same for any number of rows and columns. */
static inline void bon_transpose(const float *from, size_t ld_from, size_t rows,
                                 size_t columns, float *to, size_t ld_to)
{
    const size_t even_rows = rows / 8 * 8, even_columns = columns / 8 * 8;
    for (size_t r = 0; r < even_rows; r += 8)
        for (size_t c = 0; c < even_columns; c += 8)
            bon_transpose_8x8(from + r * ld_from + c, ld_from, to + c * ld_to + r, ld_to);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = r < even_rows ? even_columns : 0; c < columns; c++)
            to[c * ld_to + r] = from[r * ld_from + c];
}

#endif /* BON_TRANSPOSE_H */
