/* test_gemm.c - products bit for bit against a scalar chain of fmaf; oneDNN beside them. */
#include "check.h"
#include "gemm.h"
#include "kernels.h"
#include "onednn.h"

#include <string.h>

#define CANARY 12345.0f

static uint32_t state = 1;

static float noise(void) /* in [-1, 1) */
{
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

static float *noise_array(size_t count)
{
    float *x = malloc(count * sizeof *x);
    CHECK(x);
    for (size_t i = 0; i < count; i++) x[i] = noise();
    return x;
}

static float *canaries(size_t count)
{
    float *y = malloc(count * sizeof *y);
    CHECK(y);
    for (size_t i = 0; i < count; i++) y[i] = CANARY;
    return y;
}

static bool same(const float *a, const float *b, size_t count)
{
    return memcmp(a, b, count * sizeof *a) == 0;
}

static float stored(float weight, bon_dtype dtype)
{
    return dtype == BON_BF16 ? bon_bf16_to_f32(bon_f32_to_bf16(weight)) : weight;
}

static float chain(const float *x, const float *w, size_t k, bon_dtype dtype, float sum)
{
    for (size_t i = 0; i < k; i++) sum = fmaf(x[i], stored(w[i], dtype), sum);
    return sum;
}

static bon_matrix *packed(const float *w, size_t n, size_t k, bon_dtype dtype)
{
    bon_matrix *m;
    CHECK(bon_matrix_create(n, k, dtype, &m) == BON_OK);
    CHECK(bon_matrix_fill(m, 0, w, BON_F32, n, 1) == BON_OK);
    return m;
}

/* -- numbers ----------------------------------------------------------------- */

static float from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The nearer of the two neighbours in bfloat16; 2^128 stands for infinity. */
static uint16_t nearest_bf16(uint32_t bits)
{
    const uint16_t low = (uint16_t)(bits >> 16), high = (uint16_t)(low + 1);
    const bool top = (high & 0x7fff) == 0x7f80;
    const double x = fabs((double)from_bits(bits)), a = fabs((double)bon_bf16_to_f32(low));
    const double b = top ? ldexp(1.0, 128) : fabs((double)bon_bf16_to_f32(high));
    if (x - a != b - x) return x - a < b - x ? low : high;
    return low % 2 == 0 ? low : high;
}

static void test_f32_to_bf16_rounds_to_nearest_even(void)
{
    const uint32_t rest[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    for (uint32_t top = 0; top < 0x10000; top++)
        for (size_t i = 0; i < 6; i++) {
            const uint32_t bits = top << 16 | rest[i];
            const float x = from_bits(bits);
            const uint16_t got = bon_f32_to_bf16(x);
            if (isnan(x)) {
                CHECK(isnan(bon_bf16_to_f32(got)));
                CHECK(got >> 15 == bits >> 31);
            } else if (isinf(x)) {
                CHECK(got == top);
            } else {
                CHECK(got == nearest_bf16(bits));
            }
        }
}

static void test_bf16_to_f32_is_exact(void)
{
    CHECK(bon_bf16_to_f32(0x3fc0) == 1.5f);
    CHECK(bon_bf16_to_f32(0x8001) == -ldexpf(1.0f, -133));
    CHECK(isinf(bon_bf16_to_f32(0x7f80)));
}

/* -- packing ----------------------------------------------------------------- */

static void test_create_refuses_empty_and_overflowing_shapes(void)
{
    const size_t half = (size_t)1 << 32;
    bon_matrix *m = NULL;
    CHECK(bon_matrix_create(0, 4, BON_F32, &m) == BON_ERR_DOMAIN);
    CHECK(bon_matrix_create(4, 0, BON_F32, &m) == BON_ERR_DOMAIN);
    CHECK(bon_matrix_create(4, 4, BON_F16, &m) == BON_ERR_DOMAIN);
    CHECK(bon_matrix_create(half, half, BON_F32, &m) == BON_ERR_MEMORY);
    CHECK(bon_matrix_create(SIZE_MAX, 1, BON_F32, &m) == BON_ERR_MEMORY);
    CHECK(bon_matrix_create(1, SIZE_MAX - 3, BON_BF16, &m) == BON_ERR_MEMORY);
    CHECK(bon_matrix_create(half, half >> 6, BON_F32, &m) == BON_ERR_MEMORY);
    CHECK(m == NULL);
    bon_matrix_destroy(NULL);
}

static void test_matrix_knows_its_size(void)
{
    bon_matrix *m;
    CHECK(bon_matrix_create(17, 33, BON_BF16, &m) == BON_OK);
    CHECK(bon_matrix_outputs(m) == 17 && bon_matrix_inputs(m) == 33);
    CHECK(bon_matrix_bytes(m) == 32 * 48 * 2);
    bon_matrix_destroy(m);
}

static void test_row_gives_back_what_was_filled(void)
{
    const size_t n = 37;
    float row[300];
    for (size_t k = 1; k < 300; k += 13) {
        float *w = noise_array(n * k);
        for (int dtype = 0; dtype < 2; dtype++) {
            bon_matrix *m = packed(w, n, k, (bon_dtype)dtype);
            for (size_t j = 0; j < n; j++) {
                bon_matrix_row(m, j, row);
                for (size_t i = 0; i < k; i++)
                    CHECK(row[i] == stored(w[j * k + i], (bon_dtype)dtype));
            }
            bon_matrix_destroy(m);
        }
        free(w);
    }
}

static void test_matrix_is_zero_until_filled(void)
{
    float row[600];
    const size_t n = 1000, k = 600; /* the second is large enough to be mapped */
    for (size_t rows = 3; rows <= n; rows += n - 3) {
        bon_matrix *m;
        CHECK(bon_matrix_create(rows, k, BON_F32, &m) == BON_OK);
        bon_matrix_row(m, rows - 1, row);
        for (size_t i = 0; i < k; i++) CHECK(row[i] == 0.0f);
        bon_matrix_destroy(m);
    }
}

static void test_fill_in_pieces_is_fill_at_once(void)
{
    const size_t n = 61, k = 131;
    float *w = noise_array(n * k), row[131], want[131];
    for (size_t piece = 1; piece <= n; piece += 1 + piece / 3)
        for (int threads = 1; threads <= 3; threads++) {
            bon_matrix *whole = packed(w, n, k, BON_BF16), *parts;
            CHECK(bon_matrix_create(n, k, BON_BF16, &parts) == BON_OK);
            for (size_t j = 0; j < n; j += piece) {
                const size_t rows = n - j < piece ? n - j : piece;
                CHECK(bon_matrix_fill(parts, j, w + j * k, BON_F32, rows, threads) == BON_OK);
            }
            for (size_t j = 0; j < n; j++) {
                bon_matrix_row(whole, j, want);
                bon_matrix_row(parts, j, row);
                CHECK(same(row, want, k));
            }
            bon_matrix_destroy(whole);
            bon_matrix_destroy(parts);
        }
    free(w);
}

static void test_fill_converts_from_every_dtype_at_any_address(void)
{
    const uint16_t half[] = {0x3c00, 0xc100, 0x0001, 0x7c00, 0x7bff}; /* float16 */
    const float half_values[] = {1.0f, -2.5f, 0x1p-24f, INFINITY, 65504.0f};
    const uint16_t brain[] = {0x3f80, 0xc020, 0x0001, 0x7f80, 0x7f7f}; /* bfloat16 */
    char shifted[1 + sizeof half];
    float row[5];
    for (int dtype = 0; dtype < 2; dtype++) {
        bon_matrix *m;
        CHECK(bon_matrix_create(2, 5, (bon_dtype)dtype, &m) == BON_OK);
        memcpy(shifted + 1, half, sizeof half);
        CHECK(bon_matrix_fill(m, 0, shifted + 1, BON_F16, 1, 1) == BON_OK);
        memcpy(shifted + 1, brain, sizeof brain);
        CHECK(bon_matrix_fill(m, 1, shifted + 1, BON_BF16, 1, 1) == BON_OK);
        bon_matrix_row(m, 0, row);
        for (size_t i = 0; i < 5; i++) CHECK(row[i] == stored(half_values[i], (bon_dtype)dtype));
        bon_matrix_row(m, 1, row);
        for (size_t i = 0; i < 5; i++) CHECK(row[i] == bon_bf16_to_f32(brain[i]));
        bon_matrix_destroy(m);
    }
}

static void test_fill_refuses_rows_that_do_not_fit(void)
{
    const float w[8] = {0};
    bon_matrix *m;
    CHECK(bon_matrix_create(2, 4, BON_F32, &m) == BON_OK);
    CHECK(bon_matrix_fill(m, 0, w, BON_F32, 3, 1) == BON_ERR_DOMAIN);
    CHECK(bon_matrix_fill(m, 3, w, BON_F32, 0, 1) == BON_ERR_DOMAIN);
    CHECK(bon_matrix_fill(m, 1, w, BON_F32, SIZE_MAX, 1) == BON_ERR_DOMAIN);
    CHECK(bon_matrix_fill(m, 2, w, BON_F32, 0, 1) == BON_OK);
    bon_matrix_destroy(m);
}

/* -- the tile route ------------------------------------------------------------ */

/* Every number of rows up to max_rows, against the chains of max_rows rows. */
static void check_products(size_t n, size_t k, size_t max_rows, bon_dtype dtype, int threads)
{
    const size_t ldx = k + 3, ldy = n + 2;
    float *w = noise_array(n * k), *x = noise_array(max_rows * ldx);
    float *want = canaries(max_rows * ldy);
    for (size_t r = 0; r < max_rows; r++)
        for (size_t j = 0; j < n; j++)
            want[r * ldy + j] = chain(x + r * ldx, w + j * k, k, dtype, 0.0f);
    bon_matrix *m = packed(w, n, k, dtype);
    for (size_t rows = 0; rows <= max_rows; rows += 1 + rows / 25) {
        float *y = canaries(max_rows * ldy), *untouched = canaries((max_rows - rows) * ldy + 1);
        CHECK(bon_matrix_multiply(m, BON_DECODE, x, rows, ldx, y, ldy, threads) == BON_OK);
        CHECK(same(y, want, rows * ldy));
        CHECK(same(y + rows * ldy, untouched, (max_rows - rows) * ldy));
        free(y);
        free(untouched);
    }
    bon_matrix_destroy(m);
    free(w);
    free(x);
    free(want);
}

static void test_small_products_are_one_chain_per_output(void)
{
    for (size_t n = 1; n <= 40; n++)
        for (size_t k = 1 + n % 2; k <= 40; k += 1 + n % 3 / 2)
            for (int dtype = 0; dtype < 2; dtype++)
                check_products(n, k, 20, (bon_dtype)dtype, 1);
}

/* Panels in several groups, inputs in several blocks, rows in several blocks. */
static void test_blocked_products_are_one_chain_per_output(void)
{
    for (int threads = 1; threads <= 3; threads++)
        for (int dtype = 0; dtype < 2; dtype++) {
            check_products(150, 2100, 14, (bon_dtype)dtype, threads);
            check_products(77, 1301, 210, (bon_dtype)dtype, threads);
            check_products(3100, 5, 210, (bon_dtype)dtype, threads); /* as many panels as fit */
        }
}

/* Every input and output of the kernels, straight from the table; panels of y beside
 * each other or alone. */
static void check_kernel(const bon_kernels *kernels, bon_dtype dtype, size_t count, size_t k,
                         size_t rows, bool accumulate, bool alone)
{
    const size_t n = count * BON_PANEL, size = dtype == BON_F32 ? 1 : 2;
    const size_t steps = dtype == BON_F32 ? k : (k + 1) / 2, stride = steps * BON_PANEL * size + 8;
    float *w = noise_array(n * k), *x = noise_array(rows * k), *y = noise_array(rows * n);
    float *want = malloc(rows * n * sizeof *want), *panels = calloc(count, stride * sizeof *panels);
    CHECK(want && panels);
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < n; j++)
            want[r * n + j] = chain(x + r * k, w + j * k, k, dtype,
                                    accumulate ? y[r * n + j] : 0.0f);
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < k; i++) {
            const size_t lane = j % BON_PANEL, at = j / BON_PANEL * stride;
            if (dtype == BON_F32)
                panels[at + i * BON_PANEL + lane] = w[j * k + i];
            else
                ((uint16_t *)panels)[at + (i / 2 * BON_PANEL + lane) * 2 + i % 2] =
                    bon_f32_to_bf16(w[j * k + i]);
        }
    const size_t ldy = alone ? BON_PANEL : n, apart = alone ? (rows + 1) * BON_PANEL : BON_PANEL;
    float *got = canaries(count * (rows + 1) * BON_PANEL);
    for (size_t i = 0; i < rows * n; i++)
        got[i / n * ldy + i % n / BON_PANEL * apart + i % BON_PANEL] = y[i];
    const void *const next = rows % 3 == 0 ? panels : NULL; /* asked for, not read */
    if (dtype == BON_F32)
        kernels->f32(panels, count, stride, k, x, rows, k, got, ldy, apart, accumulate, next);
    else
        kernels->bf16((uint16_t *)panels, count, stride, k, x, rows, k, got, ldy, apart,
                      accumulate, next);
    for (size_t i = 0; i < rows * n; i++)
        CHECK(got[i / n * ldy + i % n / BON_PANEL * apart + i % BON_PANEL] == want[i]);
    CHECK(got[count * (rows + 1) * BON_PANEL - 1] == CANARY);
    free(w);
    free(x);
    free(y);
    free(got);
    free(want);
    free(panels);
}

/* Every height of a tile, and on both sides of where there are many: 9 tiles of 6 rows and of 12. */
static void check_kernels(const bon_kernels *kernels)
{
    static const size_t many[] = {48, 49, 96, 97, 120};
    for (int dtype = 0; dtype < 2; dtype++)
        for (size_t count = 1; count <= 9; count++)
            for (size_t i = 0; i < 27 + sizeof many / sizeof *many; i++) {
                const size_t rows = i < 27 ? i + 1 : many[i - 27];
                check_kernel(kernels, (bon_dtype)dtype, count, 1 + rows % 6, rows, rows % 2,
                             count % 2);
                check_kernel(kernels, (bon_dtype)dtype, count, 19 + rows % 2, rows, false,
                             rows % 2);
            }
    for (int dtype = 0; dtype < 2; dtype++) /* inputs in several blocks */
        for (size_t rows = 1; rows <= 40; rows += 13)
            check_kernel(kernels, (bon_dtype)dtype, 5, 2100 + rows % 2, rows, rows % 2, false);
}

static void test_kernels_of_every_instruction_set_are_one_chain(void)
{
    check_kernels(&bon_kernels_avx2);
    if (bon_kernels_have_avx512()) check_kernels(&bon_kernels_avx512);
}

static void test_panel_multiply_goes_on_from_y(void)
{
    const size_t k = 50, rows = 9, count = 3, stride = k * BON_PANEL;
    float *panels = noise_array(count * stride), *x = noise_array(rows * k);
    const size_t ldy = count * BON_PANEL;
    float *at_once = canaries(rows * ldy), *in_two = canaries(rows * ldy);
    bon_panel_multiply(panels, count, stride, k, x, rows, k, at_once, ldy, false);
    bon_panel_multiply(panels, count, stride, 13, x, rows, k, in_two, ldy, false);
    bon_panel_multiply(panels + 13 * BON_PANEL, count, stride, k - 13, x + 13, rows, k, in_two,
                       ldy, true);
    CHECK(same(at_once, in_two, rows * ldy));
    CHECK(at_once[0] != CANARY);
    free(panels);
    free(x);
    free(at_once);
    free(in_two);
}

/* -- the dot route --------------------------------------------------------------- */

/* Rounded activations times weights, in doubles, to 1e-5 of what is summed up. */
static void check_near(const float *got, const float *x, const float *w, size_t n, size_t k,
                       size_t rows, size_t ldy, bon_dtype dtype)
{
    for (size_t r = 0; r < rows; r++) {
        CHECK(got[r * ldy + n] == CANARY && got[r * ldy + n + 1] == CANARY);
        for (size_t j = 0; j < n; j++) {
            double sum = 0.0, size = 0.0;
            for (size_t i = 0; i < k; i++) {
                const double term = (double)stored(x[r * k + i], dtype)
                                    * (double)stored(w[j * k + i], dtype);
                sum += term;
                size += fabs(term);
            }
            CHECK(fabs((double)got[r * ldy + j] - sum) <= 1e-5 * size);
        }
    }
}

/* The right numbers, and bits that depend neither on the number of rows nor on the threads. */
static void check_dot(size_t n, size_t k, size_t most)
{
    const size_t ldy = n + 2;
    float *w = noise_array(n * k), *x = noise_array(most * k), *want = canaries(most * ldy);
    bon_matrix *m = packed(w, n, k, BON_BF16);
    CHECK(bon_matrix_set_route(m, BON_DECODE, BON_ROUTE_DOT) == BON_OK);
    CHECK(bon_matrix_multiply(m, BON_DECODE, x, most, k, want, ldy, 1) == BON_OK);
    check_near(want, x, w, n, k, most, ldy, BON_BF16);
    for (size_t rows = 1; rows <= most; rows += 1 + rows / 20)
        for (int threads = 1; threads <= 3; threads++) {
            float *y = canaries(rows * ldy);
            const float *from = x + (most - rows) * k; /* the last rows */
            CHECK(bon_matrix_multiply(m, BON_DECODE, from, rows, k, y, ldy, threads) == BON_OK);
            CHECK(same(y, want + (most - rows) * ldy, rows * ldy));
            free(y);
        }
    bon_matrix_destroy(m);
    free(w);
    free(x);
    free(want);
}

static void test_dot_route_rounds_activations_and_sums_the_same_in_any_batch(void)
{
    if (!bon_kernels_have_dot_bf16()) return;
    for (size_t n = 1; n <= 70; n += 3)
        for (size_t k = 1; k <= 40; k += 3) check_dot(n, k, 20);
    check_dot(150, 2100, 30);
    check_dot(77, 4301, 210);
    check_dot(3100, 5, 210);
}

static void test_dot_route_is_for_short_numbers_where_the_processor_multiplies_them(void)
{
    CHECK(bon_route_available(BON_ROUTE_DOT, BON_BF16) == bon_kernels_have_dot_bf16());
    CHECK(bon_route_available(BON_ROUTE_DOT, BON_I8) == bon_kernels_have_dot_i8());
    CHECK(!bon_route_available(BON_ROUTE_DOT, BON_F32));
    CHECK(!bon_route_available(BON_ROUTE_DOT, BON_F16));
    bon_matrix *m;
    CHECK(bon_matrix_create(4, 4, BON_F32, &m) == BON_OK);
    CHECK(bon_matrix_set_route(m, BON_DECODE, BON_ROUTE_DOT) == BON_ERR_BACKEND);
    CHECK(bon_matrix_route(m, BON_DECODE) == BON_ROUTE_TILE);
    bon_matrix_destroy(m);
}

/* -- oneDNN ---------------------------------------------------------------------- */

/* What the route promises, whatever the family: bits that depend neither on the
 * number of rows nor on their place nor on the threads, and the right numbers. */
static void check_onednn(const char *family, size_t n, size_t k, bon_dtype dtype, size_t block)
{
    const size_t most = 2 * block + 5, ldy = n + 2;
    float *w = noise_array(n * k), *x = noise_array(most * k), *want = canaries(most * ldy);
    float *flipped = malloc(most * k * sizeof *x), *y = canaries(most * ldy);
    CHECK(flipped);
    for (size_t r = 0; r < most; r++)
        memcpy(flipped + r * k, x + (most - 1 - r) * k, k * sizeof *x);
    const size_t padded = (k + 15) / 16 * 16, panels = (n + 15) / 16;
    const size_t bytes = panels * 16 * padded * bon_dtype_size(dtype);
    char *data = aligned_alloc(64, bytes);
    CHECK(data);
    memset(data, 0, bytes);
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < k; i++) {
            const size_t lane = j % 16, at = j / 16 * padded * 16;
            if (dtype == BON_F32)
                ((float *)data)[at + i * 16 + lane] = w[j * k + i];
            else
                ((uint16_t *)data)[at + (i / 2 * 16 + lane) * 2 + i % 2] =
                    bon_f32_to_bf16(w[j * k + i]);
        }
    bon_onednn *product;
    CHECK(bon_onednn_create(data, panels, padded, dtype, block, family, &product) == BON_OK);
    CHECK(bon_onednn_multiply(product, x, most, k, k, want, n, ldy, 1) == BON_OK);
    check_near(want, x, w, n, k, most, ldy, dtype);
    for (size_t rows = 1; rows <= most; rows += 1 + rows / 20)
        for (int threads = 1; threads <= 2; threads++) {
            CHECK(bon_onednn_multiply(product, x, rows, k, k, y, n, ldy, threads) == BON_OK);
            CHECK(same(y, want, rows * ldy));
        }
    CHECK(bon_onednn_multiply(product, flipped, most, k, k, y, n, ldy, 2) == BON_OK);
    for (size_t r = 0; r < most; r++) CHECK(same(y + r * ldy, want + (most - 1 - r) * ldy, n));
    bon_onednn_destroy(product);
    free(data);
    free(w);
    free(x);
    free(flipped);
    free(want);
    free(y);
}

static void test_onednn_rows_do_not_depend_on_each_other(void)
{
    if (!bon_route_available(BON_ROUTE_ONEDNN, BON_F32)) /* oneDNN has nothing better */
        check_onednn("ref", 150, 23, BON_F32, BON_DECODE_ROWS);
    for (int dtype = 0; dtype < 2; dtype++) {
        if (!bon_route_available(BON_ROUTE_ONEDNN, (bon_dtype)dtype)) continue;
        check_onednn("brg", 150, 90, (bon_dtype)dtype, BON_DECODE_ROWS);
        check_onednn("brg", 300, 1111, (bon_dtype)dtype, BON_DECODE_ROWS);
        check_onednn("brg", 300, 1111, (bon_dtype)dtype, BON_PREFILL_ROWS);
    }
}

/* Where bfloat16 is accepted it is right, whatever the number of inputs. */
static void test_onednn_refuses_inputs_that_it_would_look_for_in_the_wrong_place(void)
{
    const size_t n = 70;
    for (size_t k = 8; k <= 200; k += 8) {
        float *w = noise_array(n * k), *x = noise_array(20 * k), *y = canaries(20 * (n + 2));
        bon_matrix *m = packed(w, n, k, BON_BF16);
        const bon_status status = bon_matrix_set_route(m, BON_DECODE, BON_ROUTE_ONEDNN);
        if ((k + 15) / 16 % 2 != 0 || !bon_route_available(BON_ROUTE_ONEDNN, BON_BF16)) {
            CHECK(status == BON_ERR_BACKEND);
        } else {
            CHECK(status == BON_OK);
            CHECK(bon_matrix_multiply(m, BON_DECODE, x, 20, k, y, n + 2, 2) == BON_OK);
            check_near(y, x, w, n, k, 20, n + 2, BON_BF16);
        }
        bon_matrix_destroy(m);
        free(w);
        free(x);
        free(y);
    }
}

static void test_onednn_refuses_what_no_implementation_serves(void)
{
    float panels[16 * 16] = {0};
    bon_onednn *product = NULL;
    CHECK(bon_onednn_create(panels, 1, 16, BON_F32, 16, "none", &product) == BON_ERR_BACKEND);
    CHECK(product == NULL);
    bon_onednn_destroy(NULL);
}

/* -- routes -------------------------------------------------------------------------- */

static void test_tile_route_serves_both_dtypes_and_is_the_default(void)
{
    bon_matrix *m;
    CHECK(bon_matrix_create(4, 4, BON_F32, &m) == BON_OK);
    CHECK(bon_matrix_route(m, BON_PREFILL) == BON_ROUTE_TILE);
    CHECK(bon_matrix_route(m, BON_DECODE) == BON_ROUTE_TILE);
    CHECK(bon_route_available(BON_ROUTE_TILE, BON_F32));
    CHECK(bon_route_available(BON_ROUTE_TILE, BON_BF16));
    CHECK(!bon_route_available(BON_ROUTE_TILE, BON_F16));
    bon_matrix_destroy(m);
}

static void test_set_route_is_for_one_phase_and_keeps_the_old_one_on_error(void)
{
    float w[32 * 64], x[3 * 64], tile[3 * 32], y[3 * 32];
    for (size_t i = 0; i < 32 * 64; i++) w[i] = noise();
    for (size_t i = 0; i < 3 * 64; i++) x[i] = noise();
    for (int dtype = 0; dtype < 2; dtype++) {
        bon_matrix *m = packed(w, 32, 64, (bon_dtype)dtype);
        CHECK(bon_matrix_multiply(m, BON_DECODE, x, 3, 64, tile, 32, 1) == BON_OK);
        const bool available = bon_route_available(BON_ROUTE_ONEDNN, (bon_dtype)dtype);
        const bon_status status = bon_matrix_set_route(m, BON_PREFILL, BON_ROUTE_ONEDNN);
        CHECK(status == (available ? BON_OK : BON_ERR_BACKEND));
        CHECK(bon_matrix_route(m, BON_PREFILL)
              == (available ? BON_ROUTE_ONEDNN : BON_ROUTE_TILE));
        CHECK(bon_matrix_route(m, BON_DECODE) == BON_ROUTE_TILE);
        CHECK(bon_matrix_multiply(m, BON_PREFILL, x, 3, 64, y, 32, 1) == BON_OK);
        for (size_t i = 0; i < 3 * 32; i++) CHECK(fabsf(y[i] - tile[i]) < 0.1f);
        CHECK(bon_matrix_set_route(m, BON_PREFILL, BON_ROUTE_TILE) == BON_OK);
        CHECK(bon_matrix_multiply(m, BON_PREFILL, x, 3, 64, y, 32, 1) == BON_OK);
        CHECK(same(y, tile, 3 * 32));
        bon_matrix_destroy(m);
    }
}

static void test_measure_gives_seconds_and_keeps_the_route(void)
{
    bon_matrix *m;
    double seconds = -1.0;
    CHECK(bon_matrix_create(40, 30, BON_BF16, &m) == BON_OK);
    CHECK(bon_matrix_measure(m, BON_ROUTE_TILE, 4, 3, 1, &seconds) == BON_OK);
    CHECK(seconds > 0.0 && seconds < 1.0);
    const bool available = bon_route_available(BON_ROUTE_ONEDNN, BON_BF16);
    CHECK(bon_matrix_measure(m, BON_ROUTE_ONEDNN, 100, 2, 2, &seconds) == BON_OK);
    CHECK(isfinite(seconds) == available);
    CHECK(bon_matrix_route(m, BON_PREFILL) == BON_ROUTE_TILE);
    bon_matrix_destroy(m);
    CHECK(bon_matrix_create(40, 30, BON_F32, &m) == BON_OK); /* never by dot */
    CHECK(bon_matrix_measure(m, BON_ROUTE_DOT, 4, 3, 1, &seconds) == BON_OK && isinf(seconds));
    bon_matrix_destroy(m);
}

static void test_names(void)
{
    CHECK(strcmp(bon_route_name(BON_ROUTE_TILE), "tile") == 0);
    CHECK(strcmp(bon_route_name(BON_ROUTE_DOT), "dot") == 0);
    CHECK(strcmp(bon_route_name(BON_ROUTE_ONEDNN), "onednn") == 0);
    CHECK(strcmp(bon_gemm_isa(), bon_kernels_have_avx512() ? "avx512" : "avx2") == 0);
    CHECK(strncmp(bon_onednn_version(), "3.", 2) == 0);
    CHECK(strcmp(bon_onednn_isa(), "other") != 0);
    CHECK(bon_cpu_supported());
    CHECK(bon_dtype_size(BON_F32) == 4 && bon_dtype_size(BON_BF16) == 2);
}

int main(void)
{
    test_f32_to_bf16_rounds_to_nearest_even();
    test_bf16_to_f32_is_exact();
    test_create_refuses_empty_and_overflowing_shapes();
    test_matrix_knows_its_size();
    test_row_gives_back_what_was_filled();
    test_matrix_is_zero_until_filled();
    test_fill_in_pieces_is_fill_at_once();
    test_fill_converts_from_every_dtype_at_any_address();
    test_fill_refuses_rows_that_do_not_fit();
    test_small_products_are_one_chain_per_output();
    test_blocked_products_are_one_chain_per_output();
    test_kernels_of_every_instruction_set_are_one_chain();
    test_panel_multiply_goes_on_from_y();
    test_dot_route_rounds_activations_and_sums_the_same_in_any_batch();
    test_dot_route_is_for_short_numbers_where_the_processor_multiplies_them();
    test_onednn_rows_do_not_depend_on_each_other();
    test_onednn_refuses_inputs_that_it_would_look_for_in_the_wrong_place();
    test_onednn_refuses_what_no_implementation_serves();
    test_tile_route_serves_both_dtypes_and_is_the_default();
    test_set_route_is_for_one_phase_and_keeps_the_old_one_on_error();
    test_measure_gives_seconds_and_keeps_the_route();
    test_names();
    return 0;
}
