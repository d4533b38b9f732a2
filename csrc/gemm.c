/* gemm.c - packed weights, and the routes that multiply with them.
 *
 * Tile route: panels are dealt to the threads in groups. Within a group rows
 * and inputs are blocked so that a block of x stays in the L2 cache while all
 * panels of the group pass over it; the chains of the kernels go on through y,
 * so blocking does not show in the bits.
 */
#define _DEFAULT_SOURCE /* madvise and MAP_ANONYMOUS */
#include "gemm.h"

#include <immintrin.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "int8.h"
#include "kernels.h"
#include "onednn.h"
#include "threads.h"
#include "transpose.h"

#define K_ALIGN 16              /* inputs are padded with zeros to a multiple of this */
#define ROW_BLOCK 192           /* rows of x that are worked on together */
#define X_BLOCK_FLOATS 49152    /* of x in a block: 192 KiB; y's are 96: an L2 has 512 */
#define K_BLOCK 1024            /* inputs at a time: of a panel, what prefetch keeps in L2 */
#define GROUP 8                 /* most panels dealt to a thread at a time */
#define SERIAL_WORK 200000      /* multiply-adds below which threads do not pay */
#define HUGE_PAGE ((size_t)2 << 20)

/* Second digits of some outputs of int8, packed like a matrix of these outputs. */
typedef struct {
    size_t count, room; /* outputs; a multiple of BON_PANEL */
    size_t *output;     /* which; n: none any more */
    float *scale;
    int8_t *data;
} fine_rows;

struct bon_matrix {
    size_t n, k;
    size_t panels, padded_k; /* ceil(n/16); k rounded up to K_ALIGN */
    bon_dtype dtype;
    bon_route route[BON_PHASES];
    bon_onednn *onednn[BON_PHASES]; /* from the first set_route on */
    void *data;
    void *base; /* of the mapping, or NULL if data is from aligned_alloc */
    size_t bytes;
    float *scale; /* int8: of each output */
    bool *rough;  /* int8: which outputs need a second digit */
    fine_rows fine;
};

static size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }
static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* -- numbers --------------------------------------------------------------- */

size_t bon_dtype_size(bon_dtype dtype)
{
    return dtype == BON_F32 ? 4 : dtype == BON_I8 ? 1 : 2;
}

/* -- life ------------------------------------------------------------------ */

const char *bon_route_name(bon_route route)
{
    return route == BON_ROUTE_TILE ? "tile" : "onednn";
}

/* Zeroed memory. Large blocks are mapped, so that pages exist from their first
 * write on, and start at a huge page: the walk over weights then misses the TLB
 * five hundred times less often. */
static bon_status allocate(bon_matrix *m)
{
    if (m->bytes < HUGE_PAGE) {
        m->data = aligned_alloc(64, round_up(m->bytes, 64));
        if (!m->data) return BON_ERR_MEMORY;
        memset(m->data, 0, m->bytes);
        return BON_OK;
    }
    if (m->bytes > SIZE_MAX - HUGE_PAGE) return BON_ERR_MEMORY;
    void *base = mmap(NULL, m->bytes + HUGE_PAGE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return BON_ERR_MEMORY;
    m->base = base;
    m->data = (char *)base + (HUGE_PAGE - (uintptr_t)base % HUGE_PAGE) % HUGE_PAGE;
    /* Advice only: without huge pages the product is slower and still right. */
    (void)madvise(m->data, m->bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    return BON_OK;
}

bon_status bon_matrix_create(size_t n, size_t k, bon_dtype dtype, bon_matrix **out)
{
    *out = NULL;
    if (n == 0 || k == 0 || (dtype != BON_F32 && dtype != BON_BF16 && dtype != BON_I8)
        || (dtype == BON_I8 && k > BON_I8_MAX_INPUTS))
        return BON_ERR_DOMAIN;
    size_t bytes;
    if (n > SIZE_MAX - BON_PANEL || k > SIZE_MAX - K_ALIGN
        || __builtin_mul_overflow(round_up(n, BON_PANEL), round_up(k, K_ALIGN), &bytes)
        || __builtin_mul_overflow(bytes, bon_dtype_size(dtype), &bytes))
        return BON_ERR_MEMORY;
    bon_matrix *m = calloc(1, sizeof *m);
    if (!m) return BON_ERR_MEMORY;
    m->n = n;
    m->k = k;
    m->panels = round_up(n, BON_PANEL) / BON_PANEL;
    m->padded_k = round_up(k, K_ALIGN);
    m->dtype = dtype;
    m->bytes = bytes;
    bon_status status = allocate(m);
    if (status == BON_OK && dtype == BON_I8
        && (!(m->scale = calloc(n, sizeof *m->scale))
            || !(m->rough = calloc(n, sizeof *m->rough))))
        status = BON_ERR_MEMORY;
    if (status != BON_OK) {
        bon_matrix_destroy(m);
        return status;
    }
    *out = m;
    return BON_OK;
}

void bon_matrix_destroy(bon_matrix *matrix)
{
    if (!matrix) return;
    for (int phase = 0; phase < BON_PHASES; phase++) bon_onednn_destroy(matrix->onednn[phase]);
    if (matrix->base)
        munmap(matrix->base, matrix->bytes + HUGE_PAGE);
    else
        free(matrix->data);
    free(matrix->scale);
    free(matrix->rough);
    free(matrix->fine.output);
    free(matrix->fine.scale);
    free(matrix->fine.data);
    free(matrix);
}

size_t bon_matrix_bytes(const bon_matrix *matrix)
{
    const size_t scales =
        matrix->scale ? matrix->n * (sizeof *matrix->scale + sizeof *matrix->rough) : 0;
    return matrix->bytes + scales + matrix->fine.room * matrix->padded_k;
}

size_t bon_matrix_outputs(const bon_matrix *matrix) { return matrix->n; }
size_t bon_matrix_inputs(const bon_matrix *matrix) { return matrix->k; }

size_t bon_matrix_fine_rows(const bon_matrix *matrix)
{
    size_t rows = 0;
    for (size_t i = 0; i < matrix->fine.count; i++)
        rows += matrix->fine.output[i] < matrix->n;
    return rows;
}

/* -- packing --------------------------------------------------------------- */

/* A panel is a transposition of 32-bit words: one float32, or a pair of
 * neighbouring bfloat16. Rows are converted into a small buffer of words, which
 * stays in the L1 cache while it is turned into lines of 16 lanes. */
#define PACK_WORDS 128

static size_t inputs_per_word(bon_dtype dtype) { return 4 / bon_dtype_size(dtype); }

static void to_f32(const char *src, bon_dtype dtype, size_t count, float *out)
{
    uint16_t half[4 * PACK_WORDS];
    if (dtype == BON_F32) {
        memcpy(out, src, count * sizeof *out);
        return;
    }
    memcpy(half, src, count * sizeof *half);
    if (dtype == BON_BF16)
        for (size_t i = 0; i < count; i++) out[i] = bon_bf16_to_f32(half[i]);
    else
        for (size_t i = 0; i < count; i++) out[i] = _cvtsh_ss(half[i]);
}

static void to_f32_row(const char *src, bon_dtype dtype, size_t count, float *out)
{
    const size_t step = 4 * PACK_WORDS;
    for (size_t i = 0; i < count; i += step)
        to_f32(src + i * bon_dtype_size(dtype), dtype, smaller(step, count - i), out + i);
}

/* `count` inputs of one row as words of the packed dtype, the last one padded with 0;
 * scale, loss: of a row of int8. */
static void to_words(const char *src, bon_dtype src_dtype, size_t count, bon_dtype dtype,
                     float scale, bon_i8_loss *loss, uint32_t *words)
{
    float f[4 * PACK_WORDS];
    uint16_t b[2 * PACK_WORDS] = {0};
    if (dtype != BON_BF16) to_f32(src, src_dtype, count, f);
    if (dtype == BON_F32) {
        memcpy(words, f, count * sizeof *f);
        return;
    }
    if (dtype == BON_I8) {
        words[(count - 1) / 4] = 0;
        bon_i8_weights(f, count, scale, (int8_t *)words, loss);
        return;
    }
    if (src_dtype == BON_BF16) {
        memcpy(b, src, count * sizeof *b);
    } else {
        to_f32(src, src_dtype, count, f);
        for (size_t i = 0; i < count; i++) b[i] = bon_f32_to_bf16(f[i]);
    }
    memcpy(words, b, (count + 1) / 2 * sizeof *words);
}

/* out[w*16 + r] = words[r][w]; `words` is full width whatever is used of it. */
static void transpose(uint32_t words[][PACK_WORDS], size_t rows, size_t used, uint32_t *out)
{
    size_t w = 0;
    if (rows == BON_PANEL)
        for (; w + 8 <= used; w += 8) {
            bon_transpose_8x8(&words[0][w], PACK_WORDS, out + w * BON_PANEL, BON_PANEL);
            bon_transpose_8x8(&words[8][w], PACK_WORDS, out + w * BON_PANEL + 8, BON_PANEL);
        }
    for (; w < used; w++)
        for (size_t r = 0; r < rows; r++) out[w * BON_PANEL + r] = words[r][w];
}

/* Rows lane..lane+rows-1 of one panel. */
static void pack_panel(const bon_matrix *m, size_t panel, size_t lane, size_t rows,
                       const char *src, bon_dtype src_dtype)
{
    const size_t per_word = inputs_per_word(m->dtype), step = PACK_WORDS * per_word;
    const size_t size = bon_dtype_size(src_dtype);
    uint32_t *out = (uint32_t *)m->data + panel * (m->padded_k / per_word) * BON_PANEL + lane;
    uint32_t words[BON_PANEL][PACK_WORDS];
    bon_i8_loss loss[BON_PANEL] = {{0.0, 0.0}};
    const size_t first = panel * BON_PANEL + lane;
    for (size_t k = 0; k < m->k; k += step) {
        const size_t count = smaller(step, m->k - k);
        const size_t used = (count + per_word - 1) / per_word;
        for (size_t r = 0; r < rows; r++)
            to_words(src + (r * m->k + k) * size, src_dtype, count, m->dtype,
                     m->scale ? m->scale[first + r] : 0.0f, &loss[r], words[r]);
        transpose(words, rows, used, out);
        out += used * BON_PANEL;
    }
    for (size_t r = 0; m->rough && r < rows; r++)
        m->rough[first + r] = bon_i8_is_rough(&loss[r], m->k);
}

/* -- int8: scales, and second digits ----------------------------------------- */

/* Scales of outputs from..to-1, whose weights stand at src. */
static void find_scales(bon_matrix *m, size_t from, size_t to, const char *src,
                        bon_dtype src_dtype)
{
    const size_t size = bon_dtype_size(src_dtype), step = 4 * PACK_WORDS;
    float some[4 * PACK_WORDS];
    for (size_t row = from; row < to; row++, src += m->k * size) {
        float largest = 0.0f;
        for (size_t k = 0; k < m->k; k += step) {
            const size_t count = smaller(step, m->k - k);
            to_f32(src + k * size, src_dtype, count, some);
            const float here = bon_i8_largest(some, count);
            if (!(here <= largest)) largest = here;
        }
        m->scale[row] = largest / BON_I8_MOST;
    }
}

static size_t place_i8(size_t padded_k, size_t row, size_t k)
{
    return ((row / BON_PANEL * (padded_k / 4) + k / 4) * BON_PANEL + row % BON_PANEL) * 4 + k % 4;
}

/* A place for one more second digit: *place or the first behind it that is not used. */
static bon_status find_place(bon_matrix *m, size_t *place)
{
    fine_rows *f = &m->fine;
    while (*place < f->count && f->output[*place] < m->n) ++*place;
    if (*place < f->room) return BON_OK;
    const size_t room = f->room + BON_PANEL;
    size_t *output = realloc(f->output, room * sizeof *output);
    if (output) f->output = output;
    float *scale = realloc(f->scale, room * sizeof *scale);
    if (scale) f->scale = scale;
    int8_t *data = realloc(f->data, room * m->padded_k);
    if (data) f->data = data;
    if (!output || !scale || !data) return BON_ERR_MEMORY;
    memset(data + f->room * m->padded_k, 0, BON_PANEL * m->padded_k);
    f->room = room;
    return BON_OK;
}

/* What rounding left of a row, as its second digit; rest holds the row itself. */
static bon_status add_fine(bon_matrix *m, size_t row, float *rest, int8_t *digits,
                           size_t *place)
{
    const bon_status status = find_place(m, place);
    if (status != BON_OK) return status;
    fine_rows *f = &m->fine;
    const int8_t *first = m->data;
    const float scale = m->scale[row] / (2 * BON_I8_MOST);
    bon_i8_loss left = {0.0, 0.0};
    for (size_t k = 0; k < m->k; k++)
        rest[k] -= m->scale[row] * (float)first[place_i8(m->padded_k, row, k)];
    bon_i8_weights(rest, m->k, scale, digits, &left);
    for (size_t k = 0; k < m->k; k++) f->data[place_i8(m->padded_k, *place, k)] = digits[k];
    f->output[*place] = row;
    f->scale[*place] = scale;
    if (*place == f->count) f->count++;
    return BON_OK;
}

/* Gives second digits to those of the rows that need one, in place of earlier ones. */
static bon_status refine(bon_matrix *m, size_t first, const void *src, bon_dtype src_dtype,
                         size_t rows)
{
    for (size_t i = 0; i < m->fine.count; i++)
        if (m->fine.output[i] >= first && m->fine.output[i] < first + rows)
            m->fine.output[i] = m->n;
    float *weights = malloc(m->k * sizeof *weights);
    int8_t *digits = malloc(m->k);
    size_t place = 0;
    bon_status status = weights && digits ? BON_OK : BON_ERR_MEMORY;
    for (size_t r = 0; r < rows && status == BON_OK; r++) {
        if (!m->rough[first + r]) continue;
        to_f32_row((const char *)src + r * m->k * bon_dtype_size(src_dtype), src_dtype, m->k,
                   weights);
        status = add_fine(m, first + r, weights, digits, &place);
    }
    free(weights);
    free(digits);
    return status;
}

bon_status bon_matrix_fill(bon_matrix *matrix, size_t first, const void *src,
                           bon_dtype src_dtype, size_t rows, int threads)
{
    if (first > matrix->n || rows > matrix->n - first) return BON_ERR_DOMAIN;
    if (rows == 0) return BON_OK;
    const long low = (long)(first / BON_PANEL), high = (long)((first + rows - 1) / BON_PANEL);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && high > low)
    for (long p = low; p <= high; p++) {
        const size_t begin = (size_t)p * BON_PANEL;
        const size_t from = begin > first ? begin : first;
        const size_t to = smaller(begin + BON_PANEL, first + rows);
        const char *rows_of_panel =
            (const char *)src + (from - first) * matrix->k * bon_dtype_size(src_dtype);
        if (matrix->dtype == BON_I8) find_scales(matrix, from, to, rows_of_panel, src_dtype);
        pack_panel(matrix, (size_t)p, from - begin, to - from, rows_of_panel, src_dtype);
    }
    return matrix->dtype == BON_I8 ? refine(matrix, first, src, src_dtype, rows) : BON_OK;
}

void bon_matrix_row(const bon_matrix *matrix, size_t row, float *out)
{
    const size_t start = row / BON_PANEL * matrix->padded_k * BON_PANEL, lane = row % BON_PANEL;
    if (matrix->dtype == BON_I8) {
        const int8_t *data = matrix->data;
        for (size_t k = 0; k < matrix->k; k++)
            out[k] = matrix->scale[row] * (float)data[place_i8(matrix->padded_k, row, k)];
        const fine_rows *f = &matrix->fine;
        for (size_t i = 0; i < f->count; i++)
            for (size_t k = 0; f->output[i] == row && k < matrix->k; k++)
                out[k] += f->scale[i] * (float)f->data[place_i8(matrix->padded_k, i, k)];
    } else if (matrix->dtype == BON_F32) {
        const float *panel = (const float *)matrix->data + start;
        for (size_t k = 0; k < matrix->k; k++) out[k] = panel[k * BON_PANEL + lane];
    } else {
        const uint16_t *panel = (const uint16_t *)matrix->data + start;
        for (size_t k = 0; k < matrix->k; k++)
            out[k] = bon_bf16_to_f32(panel[(k / 2 * BON_PANEL + lane) * 2 + k % 2]);
    }
}

/* -- weights as float32 panels, and turned over ------------------------------ */

float *bon_matrix_panels(bon_matrix *matrix)
{
    return matrix->dtype == BON_F32 ? matrix->data : NULL;
}

/* Two inputs of 16 lanes: a line of pairs of bfloat16, and two of float32. */
static void widen_line(const uint32_t *pairs, float *lines)
{
    uint32_t bits[2 * BON_PANEL];
    for (size_t j = 0; j < BON_PANEL; j++) bits[j] = pairs[j] << 16;
    for (size_t j = 0; j < BON_PANEL; j++) bits[BON_PANEL + j] = pairs[j] & 0xffff0000u;
    memcpy(lines, bits, sizeof bits);
}

static void round_line(const float *lines, uint32_t *pairs)
{
    for (size_t j = 0; j < BON_PANEL; j++)
        pairs[j] = bon_f32_to_bf16(lines[j])
                   | (uint32_t)bon_f32_to_bf16(lines[BON_PANEL + j]) << 16;
}

void bon_matrix_get_panels(const bon_matrix *matrix, float *panels, int threads)
{
    const size_t size = matrix->padded_k * BON_PANEL;
#pragma omp parallel for num_threads(threads) schedule(static) \
    if (threads > 1 && matrix->panels * size > BON_PARALLEL_ABOVE)
    for (long p = 0; p < (long)matrix->panels; p++) {
        float *to = panels + (size_t)p * size;
        if (matrix->dtype == BON_F32) {
            memcpy(to, (const float *)matrix->data + (size_t)p * size, size * sizeof *to);
            continue;
        }
        const uint32_t *from = (const uint32_t *)matrix->data + (size_t)p * size / 2;
        for (size_t i = 0; i < size / 2; i += BON_PANEL) widen_line(from + i, to + 2 * i);
    }
}

void bon_matrix_set_panels(bon_matrix *matrix, const float *panels, int threads)
{
    const size_t size = matrix->padded_k * BON_PANEL;
#pragma omp parallel for num_threads(threads) schedule(static) \
    if (threads > 1 && matrix->panels * size > BON_PARALLEL_ABOVE)
    for (long p = 0; p < (long)matrix->panels; p++) {
        const float *from = panels + (size_t)p * size;
        if (matrix->dtype == BON_F32) {
            memcpy((float *)matrix->data + (size_t)p * size, from, size * sizeof *from);
            continue;
        }
        uint32_t *to = (uint32_t *)matrix->data + (size_t)p * size / 2;
        for (size_t i = 0; i < size / 2; i += BON_PANEL) round_line(from + 2 * i, to + i);
    }
}

/* 16 outputs times 16 inputs are one piece of memory in both layouts. */
#define BLOCK_WORDS (BON_PANEL * BON_PANEL)

static void transpose_f32_block(const uint32_t *from, uint32_t *to)
{
    for (size_t r = 0; r < BON_PANEL; r += 8)
        for (size_t c = 0; c < BON_PANEL; c += 8)
            bon_transpose_8x8(from + r * BON_PANEL + c, BON_PANEL, to + c * BON_PANEL + r,
                              BON_PANEL);
}

/* Words are pairs of inputs; turned over, a line holds the inputs of one output.
 * Two such lines, merged number by number, are a line of pairs of outputs. */
static void transpose_bf16_block(const uint32_t *from, uint32_t *to)
{
    uint32_t turned[BON_PANEL][8];
    bon_transpose_8x8(from, BON_PANEL, turned[0], 8);
    bon_transpose_8x8(from + 8, BON_PANEL, turned[8], 8);
    for (size_t r = 0; r < BON_PANEL; r += 2) {
        const __m256i even = _mm256_loadu_si256((const __m256i *)turned[r]);
        const __m256i odd = _mm256_loadu_si256((const __m256i *)turned[r + 1]);
        const __m256i low = _mm256_unpacklo_epi16(even, odd);
        const __m256i high = _mm256_unpackhi_epi16(even, odd);
        __m256i *line = (__m256i *)(to + r / 2 * BON_PANEL);
        _mm256_storeu_si256(line, _mm256_permute2x128_si256(low, high, 0x20));
        _mm256_storeu_si256(line + 1, _mm256_permute2x128_si256(low, high, 0x31));
    }
}

void bon_matrix_transpose(const bon_matrix *src, bon_matrix *dst, int threads)
{
    const size_t words = BLOCK_WORDS / inputs_per_word(src->dtype);
    const bool serial = threads == 1 || src->n * src->k < BON_PARALLEL_ABOVE;
#pragma omp parallel for num_threads(threads) schedule(static) if (!serial)
    for (long q = 0; q < (long)dst->panels; q++)
        for (size_t p = 0; p < src->panels; p++) {
            const size_t at = p * dst->panels + (size_t)q, to = (size_t)q * src->panels + p;
            (src->dtype == BON_F32 ? transpose_f32_block : transpose_bf16_block)(
                (const uint32_t *)src->data + at * words, (uint32_t *)dst->data + to * words);
        }
}

/* -- the tile route -------------------------------------------------------- */

/* Rows of x; for int8 also as whole numbers p [rows, padded_k], in the order of the
 * kernels, and the scale of each. */
typedef struct {
    const float *x;
    size_t ldx;
    const int16_t *p;
    const float *scale;
} input;

/* y [rows, 16*count] of `count` panels from `panel` on. */
static void multiply_panels(const bon_matrix *m, size_t panel, size_t count, const float *x,
                            size_t rows, size_t ldx, float *y, size_t ldy)
{
    const bon_kernels *kernel = bon_kernels_here();
    const size_t stride = m->padded_k * BON_PANEL;
    const size_t step = smaller(K_BLOCK, X_BLOCK_FLOATS / rows / K_ALIGN * K_ALIGN);
    for (size_t k = 0; k < m->k; k += step) {
        const size_t at = panel * stride + k * BON_PANEL, part = smaller(step, m->k - k);
        if (m->dtype == BON_F32)
            kernel->f32((const float *)m->data + at, count, stride, part, x + k, rows, ldx,
                        y, ldy, BON_PANEL, k > 0);
        else
            kernel->bf16((const uint16_t *)m->data + at, count, stride, part, x + k, rows,
                         ldx, y, ldy, BON_PANEL, k > 0);
    }
}

/* The same of panels of int8: sums of whole numbers. */
static void multiply_panels_i8(const int8_t *panels, size_t count, size_t k, const int16_t *p,
                               size_t rows, int32_t *sums, size_t ldy)
{
    const bon_kernels *kernel = bon_kernels_here();
    const size_t step = smaller(2 * K_BLOCK, 2 * X_BLOCK_FLOATS / rows / K_ALIGN * K_ALIGN);
    for (size_t at = 0; at < k; at += step)
        kernel->i8(panels + at * BON_PANEL, count, k * BON_PANEL, smaller(step, k - at), p + at,
                   rows, k, sums, ldy, BON_PANEL, at > 0);
}

/* Up to GROUP panels for rows row..row+rows-1, by way of a block of y of their own: rows of
 * y itself may lie pages apart, and the last panel may be wider than y. */
static void multiply_group(const bon_matrix *m, size_t panel, size_t count, const input *in,
                           size_t row, size_t rows, float *y, size_t ldy)
{
    union {
        float y[ROW_BLOCK * GROUP * BON_PANEL];
        int32_t sums[ROW_BLOCK * GROUP * BON_PANEL];
    } block;
    const size_t columns = count * BON_PANEL, column = panel * BON_PANEL;
    const size_t used = smaller(columns, m->n - column);
    y += row * ldy + column;
    if (m->dtype != BON_I8) {
        multiply_panels(m, panel, count, in->x + row * in->ldx, rows, in->ldx, block.y, columns);
        for (size_t r = 0; r < rows; r++)
            memcpy(y + r * ldy, block.y + r * columns, used * sizeof *y);
        return;
    }
    multiply_panels_i8((const int8_t *)m->data + panel * m->padded_k * BON_PANEL, count,
                       m->padded_k, in->p + row * m->padded_k, rows, block.sums, columns);
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < used; j++)
            y[r * ldy + j] =
                in->scale[row + r] * m->scale[column + j] * (float)block.sums[r * columns + j];
}

/* Adds the second digits' part of one panel of them. */
static void multiply_fine(const bon_matrix *m, size_t panel, const input *in, size_t row,
                          size_t rows, float *y, size_t ldy)
{
    int32_t sums[ROW_BLOCK * BON_PANEL];
    const fine_rows *f = &m->fine;
    multiply_panels_i8(f->data + panel * m->padded_k * BON_PANEL, 1, m->padded_k,
                       in->p + row * m->padded_k, rows, sums, BON_PANEL);
    const size_t first = panel * BON_PANEL, count = smaller(BON_PANEL, f->count - first);
    for (size_t j = first; j < first + count; j++)
        for (size_t r = 0; r < rows && f->output[j] < m->n; r++)
            y[(row + r) * ldy + f->output[j]] +=
                in->scale[row + r] * f->scale[j] * (float)sums[r * BON_PANEL + j - first];
}

/* Panels dealt at a time: few enough that all threads end at about the same time,
 * and even, because kernels take two side by side. */
static size_t group_size(size_t panels, size_t threads)
{
    return smaller(round_up(panels / (4 * threads) + 1, 2), GROUP);
}

static void multiply_tile(const bon_matrix *m, const input *in, size_t rows, float *y,
                          size_t ldy, int threads)
{
    const size_t group = group_size(m->panels, (size_t)threads);
    const long groups = (long)((m->panels + group - 1) / group);
    const bool serial = threads == 1 || groups == 1 || m->n * m->k < SERIAL_WORK / rows;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (!serial)
    for (long g = 0; g < groups; g++) {
        const size_t first = (size_t)g * group, count = smaller(group, m->panels - first);
        for (size_t r = 0; r < rows; r += ROW_BLOCK)
            multiply_group(m, first, count, in, r, smaller(ROW_BLOCK, rows - r), y, ldy);
    }
}

/* The tile route of int8: rounds x, once for all outputs. */
static bon_status multiply_i8(const bon_matrix *m, const float *x, size_t rows, size_t ldx,
                              float *y, size_t ldy, int threads)
{
    const size_t k = m->padded_k;
    size_t bytes;
    if (__builtin_mul_overflow(rows, k * sizeof(int16_t) + sizeof(float), &bytes))
        return BON_ERR_MEMORY;
    int16_t *p = malloc(bytes);
    if (!p) return BON_ERR_MEMORY;
    float *scale = (float *)(void *)(p + rows * k);
    const int levels = bon_i8_levels(k);
#pragma omp parallel for num_threads(threads) schedule(static) \
    if (threads > 1 && rows * k > BON_PARALLEL_ABOVE)
    for (long r = 0; r < (long)rows; r++)
        scale[r] = bon_i8_activations(x + (size_t)r * ldx, m->k, k, levels, p + (size_t)r * k);
    const input in = {x, ldx, p, scale};
    multiply_tile(m, &in, rows, y, ldy, threads);
    const long fine = (long)((m->fine.count + BON_PANEL - 1) / BON_PANEL);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1 && fine > 1)
    for (long panel = 0; panel < fine; panel++)
        for (size_t r = 0; r < rows; r += ROW_BLOCK)
            multiply_fine(m, (size_t)panel, &in, r, smaller(ROW_BLOCK, rows - r), y, ldy);
    free(p);
    return BON_OK;
}

void bon_panel_multiply(const float *panels, size_t count, size_t stride, size_t k,
                        const float *x, size_t rows, size_t ldx, float *y, size_t ldy,
                        bool accumulate)
{
    bon_kernels_here()->f32(panels, count, stride, k, x, rows, ldx, y, ldy, BON_PANEL,
                            accumulate);
}

/* -- routes ---------------------------------------------------------------- */

/* The family of oneDNN's implementations in which all rows of a block fare alike. */
#define FAMILY "brg"

static bon_status create_onednn(const bon_matrix *m, bon_phase phase, bon_onednn **out)
{
    if (m->dtype == BON_I8) return BON_ERR_BACKEND;
    return bon_onednn_create(m->data, m->panels, m->padded_k, m->dtype,
                             phase == BON_DECODE ? BON_DECODE_ROWS : BON_PREFILL_ROWS, FAMILY,
                             out);
}

bool bon_route_available(bon_route route, bon_dtype dtype)
{
    if (dtype == BON_F16) return false;
    if (route == BON_ROUTE_TILE) return true;
    bon_matrix *m;
    bon_onednn *product = NULL;
    if (bon_matrix_create(BON_ONEDNN_GROUP * BON_PANEL, 256, dtype, &m) != BON_OK) return false;
    const bool available = create_onednn(m, BON_PREFILL, &product) == BON_OK;
    bon_onednn_destroy(product);
    bon_matrix_destroy(m);
    return available;
}

bon_status bon_matrix_set_route(bon_matrix *matrix, bon_phase phase, bon_route route)
{
    if (route == BON_ROUTE_ONEDNN && !matrix->onednn[phase]) {
        const bon_status status = create_onednn(matrix, phase, &matrix->onednn[phase]);
        if (status != BON_OK) return status;
    }
    matrix->route[phase] = route;
    return BON_OK;
}

bon_route bon_matrix_route(const bon_matrix *matrix, bon_phase phase)
{
    return matrix->route[phase];
}

bon_status bon_matrix_multiply(const bon_matrix *matrix, bon_phase phase, const float *x,
                               size_t rows, size_t ldx, float *y, size_t ldy, int threads)
{
    if (rows == 0) return BON_OK;
    if (matrix->route[phase] == BON_ROUTE_ONEDNN)
        return bon_onednn_multiply(matrix->onednn[phase], x, rows, matrix->k, ldx, y,
                                   matrix->n, ldy, threads);
    if (matrix->dtype == BON_I8) return multiply_i8(matrix, x, rows, ldx, y, ldy, threads);
    const input in = {.x = x, .ldx = ldx};
    multiply_tile(matrix, &in, rows, y, ldy, threads);
    return BON_OK;
}

static double now(void)
{
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bon_status time_products(const bon_matrix *m, bon_phase phase, const float *x,
                                size_t rows, float *y, int repeats, int threads,
                                double *seconds)
{
    for (int i = 0; i < repeats; i++) {
        const double start = now();
        const bon_status status =
            bon_matrix_multiply(m, phase, x, rows, m->k, y, m->n, threads);
        const double taken = now() - start;
        if (status != BON_OK) return status;
        if (i == 0 || taken < *seconds) *seconds = taken;
    }
    return BON_OK;
}

bon_status bon_matrix_measure(bon_matrix *matrix, bon_route route, size_t rows, int repeats,
                              int threads, double *seconds)
{
    const bon_phase phase = rows < BON_PREFILL_ROWS ? BON_DECODE : BON_PREFILL;
    const bon_route before = matrix->route[phase];
    float *x = calloc(rows, matrix->k * sizeof *x), *y = calloc(rows, matrix->n * sizeof *y);
    bon_status status = x && y ? BON_OK : BON_ERR_MEMORY;
    if (status == BON_OK) status = bon_matrix_set_route(matrix, phase, route);
    if (status == BON_OK) {
        for (size_t i = 0; i < rows * matrix->k; i++) x[i] = (float)(i * 97 % 256) / 128 - 1;
        status = time_products(matrix, phase, x, rows, y, repeats, threads, seconds);
        matrix->route[phase] = before;
    }
    free(x);
    free(y);
    return status;
}

/* -- what is here ---------------------------------------------------------- */

bool bon_cpu_supported(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
           && __builtin_cpu_supports("f16c");
}

const char *bon_gemm_isa(void) { return bon_kernels_here()->isa; }
