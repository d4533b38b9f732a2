/* gemm.c - packed weights, and the routes that multiply with them (matrix.h). */
#define _DEFAULT_SOURCE /* clock_gettime */
#include "gemm.h"

#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "int8.h"
#include "kernels.h"
#include "matrix.h"
#include "onednn.h"
#include "pages.h"
#include "threads.h"
#include "transpose.h"

/* -- numbers --------------------------------------------------------------- */

size_t bon_dtype_size(bon_dtype dtype)
{
    return dtype == BON_F32 ? 4 : dtype == BON_I8 ? 1 : 2;
}

/* -- life ------------------------------------------------------------------ */

const char *bon_route_name(bon_route route)
{
    static const char *const names[BON_ROUTES] = {"tile", "dot", "onednn"};
    return names[route];
}

bon_status bon_matrix_create(size_t n, size_t k, bon_dtype dtype, bon_matrix **out)
{
    *out = NULL;
    if (n == 0 || k == 0 || (dtype != BON_F32 && dtype != BON_BF16 && dtype != BON_I8)
        || (dtype == BON_I8 && k > BON_I8_MAX_INPUTS))
        return BON_ERR_DOMAIN;
    size_t bytes;
    if (n > SIZE_MAX - BON_PANEL || k > SIZE_MAX - BON_K_ALIGN
        || __builtin_mul_overflow(bon_round_up(n, BON_PANEL), bon_round_up(k, BON_K_ALIGN), &bytes)
        || __builtin_mul_overflow(bytes, bon_dtype_size(dtype), &bytes))
        return BON_ERR_MEMORY;
    bon_matrix *m = calloc(1, sizeof *m);
    if (!m) return BON_ERR_MEMORY;
    m->n = n;
    m->k = k;
    m->panels = bon_round_up(n, BON_PANEL) / BON_PANEL;
    m->padded_k = bon_round_up(k, BON_K_ALIGN);
    m->dtype = dtype;
    m->bytes = bytes;
    m->data = bon_pages_alloc(bytes);
    bon_status status = m->data ? BON_OK : BON_ERR_MEMORY;
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
    bon_pages_free(matrix->data, matrix->bytes);
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
        to_f32(src + i * bon_dtype_size(dtype), dtype, bon_smaller(step, count - i), out + i);
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
        const size_t count = bon_smaller(step, m->k - k);
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
            const size_t count = bon_smaller(step, m->k - k);
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
    bon_fine_rows *f = &m->fine;
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
    bon_fine_rows *f = &m->fine;
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
        const size_t to = bon_smaller(begin + BON_PANEL, first + rows);
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
        const bon_fine_rows *f = &matrix->fine;
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

/* -- routes ---------------------------------------------------------------- */

/* The family of oneDNN's implementations in which all rows of a block fare alike. */
#define FAMILY "brg"

static bon_status create_onednn(const bon_matrix *m, bon_phase phase, bon_onednn **out)
{
    if (m->dtype == BON_I8) return BON_ERR_BACKEND;
    /* brg:avx512_core_bf16 of oneDNN 3.2 finds panels 2.. in the wrong place then */
    if (m->dtype == BON_BF16 && m->padded_k % 32 != 0) return BON_ERR_BACKEND;
    return bon_onednn_create(m->data, m->panels, m->padded_k, m->dtype,
                             phase == BON_DECODE ? BON_DECODE_ROWS : BON_PREFILL_ROWS, FAMILY,
                             out);
}

bool bon_route_available(bon_route route, bon_dtype dtype)
{
    if (dtype == BON_F16) return false;
    if (route == BON_ROUTE_TILE) return true;
    if (route == BON_ROUTE_DOT)
        return (dtype == BON_BF16 && bon_kernels_have_dot_bf16())
               || (dtype == BON_I8 && bon_kernels_have_dot_i8());
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
    if (route == BON_ROUTE_DOT && !bon_route_available(route, matrix->dtype))
        return BON_ERR_BACKEND;
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
    return bon_multiply_own(matrix, matrix->route[phase] == BON_ROUTE_DOT, x, rows, ldx, y, ldy,
                            threads);
}

void bon_panel_multiply(const float *panels, size_t count, size_t stride, size_t k,
                        const float *x, size_t rows, size_t ldx, float *y, size_t ldy,
                        bool accumulate)
{
    bon_kernels_here()->f32(panels, count, stride, k, x, rows, ldx, y, ldy, BON_PANEL,
                            accumulate, NULL);
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
    *seconds = INFINITY;
    if (status == BON_OK) status = bon_matrix_set_route(matrix, phase, route);
    if (status == BON_ERR_BACKEND) {
        status = BON_OK;
    } else if (status == BON_OK) {
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
