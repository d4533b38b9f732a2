/* test_int8.c - weights and activations as whole numbers: bit for bit against integers. */
#include "check.h"
#include "failing.h"
#include "gemm.h"
#include "int8.h"
#include "kernels.h"

#include <string.h>

static uint32_t state = 1;

static uint32_t bits(void)
{
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

static float noise(void) /* in [-1, 1) */
{
    return (float)bits() / 8388608.0f - 1.0f;
}

static size_t exchanged(size_t i) /* where the kernels look for input i */
{
    const size_t place[4] = {0, 2, 1, 3};
    return i / 4 * 4 + place[i % 4];
}

/* -- rounding ---------------------------------------------------------------- */

static void test_levels_keep_every_sum_in_32_bits(void)
{
    CHECK(bon_i8_levels(16) == 2047);
    for (size_t k = 16; k <= BON_I8_MAX_INPUTS; k += 16) {
        const int levels = bon_i8_levels(k);
        CHECK(levels >= 127 && levels <= 2047);
        CHECK((int64_t)levels * BON_I8_MOST * (int64_t)k <= INT32_MAX);
    }
}

static void test_largest_finds_every_place_and_every_nan(void)
{
    for (size_t count = 1; count <= 20; count++)
        for (size_t at = 0; at < count; at++) {
            float x[20];
            for (size_t i = 0; i < count; i++) x[i] = noise();
            x[at] = -7.5f;
            CHECK(bon_i8_largest(x, count) == 7.5f);
            x[at] = -INFINITY;
            CHECK(bon_i8_largest(x, count) == INFINITY);
            x[at] = NAN;
            x[count - 1 - at] = at % 2 ? INFINITY : x[count - 1 - at];
            CHECK(isnan(bon_i8_largest(x, count)) || at == count - 1 - at);
        }
    CHECK(bon_i8_largest(NULL, 0) == 0.0f);
}

static void test_activations_are_rounded_and_exchanged(void)
{
    for (size_t k = 1; k <= 40; k++) {
        const size_t padded = (k + 15) / 16 * 16;
        float x[40], largest = 0.0f;
        int16_t p[48];
        for (size_t i = 0; i < k; i++) {
            x[i] = noise();
            largest = fmaxf(largest, fabsf(x[i]));
        }
        memset(p, 0x55, sizeof p);
        CHECK(bon_i8_activations(x, k, padded, 2047, p) == largest / 2047.0f);
        for (size_t i = 0; i < padded; i++) {
            const float exact = i < k ? x[i] * (2047.0f / largest) : 0.0f;
            CHECK(p[exchanged(i)] == lrintf(exact));
        }
        CHECK(p[padded < 48 ? padded : 0] == (padded < 48 ? 0x5555 : p[0]));
    }
}

static void test_activations_of_zero_and_of_what_is_not_finite(void)
{
    float x[9] = {0};
    int16_t p[16];
    CHECK(bon_i8_activations(x, 9, 16, 2047, p) == 0.0f && p[0] == 0);
    x[3] = 0x1p-149f; /* 2047 / x is infinite */
    CHECK(bon_i8_activations(x, 9, 16, 2047, p) == 0.0f && p[exchanged(3)] == 0);
    x[8] = NAN;
    CHECK(isnan(bon_i8_activations(x, 9, 16, 2047, p)));
    x[8] = -INFINITY;
    CHECK(isnan(bon_i8_activations(x, 9, 16, 2047, p)));
}

/* A row as int8.h says it is: whole numbers, of which digits hold 127 at most. */
static float whole(const float *x, size_t k, int *p)
{
    float largest = 0.0f;
    double size = 0.0;
    for (size_t i = 0; i < k; i++) {
        largest = fmaxf(largest, fabsf(x[i]));
        size += fabs((double)x[i]);
    }
    const float t = fminf(largest, (float)(13 * (size / (double)k))) / 127.0f;
    for (size_t i = 0; i < k; i++) p[i] = t > 0.0f ? (int)lrintf(x[i] * (1.0f / t)) : 0;
    return t;
}

static void test_digits_and_what_is_beyond_them(void)
{
    size_t seen = 0;
    for (size_t k = 1; k <= 90; k++) {
        const size_t padded = (k + 15) / 16 * 16;
        float x[90];
        int want[90];
        int8_t p[112];
        bon_i8_far far[8];
        for (size_t i = 0; i < k; i++) x[i] = noise() * (i % 29 == 3 ? 100.0f : 1.0f);
        memset(p, 0x55, sizeof p);
        uint32_t added, sum = 0;
        size_t n_far;
        CHECK(bon_i8_most_far(k) <= 8);
        CHECK(bon_i8_digits(x, k, padded, p, &added, far, &n_far) == whole(x, k, want));
        CHECK(n_far <= bon_i8_most_far(k));
        for (size_t f = 0; f < n_far; f++) {
            CHECK(far[f].beyond != 0 && (f == 0 || far[f].input > far[f - 1].input));
            CHECK(p[far[f].input] == (far[f].beyond > 0 ? 127 : -127));
            want[far[f].input] -= far[f].beyond;
        }
        for (size_t i = 0; i < padded; i++) {
            CHECK(p[i] == (i < k ? want[i] : 0));
            sum += (uint32_t)(128 * p[i]);
        }
        CHECK(added == sum);
        CHECK(p[padded] == 0x55);
        seen += n_far;
    }
    CHECK(seen > 20);
}

/* About as many as the rule allows: all but every fourteenth are 0, so they are 14 means each,
 * and 127 * 14/13 is 137. */
static void test_as_many_beyond_as_there_can_be(void)
{
    enum { K = 1302, EVERY = 14 };
    float x[K] = {0};
    int8_t p[1312];
    bon_i8_far far[K / BON_I8_FAR + 1];
    uint32_t added;
    size_t n_far, large = 0;
    for (size_t i = 0; i < K; i += EVERY, large++) x[i] = i % 4 ? 5.0f : -5.0f;
    CHECK(bon_i8_digits(x, K, 1312, p, &added, far, &n_far) > 0.0f);
    CHECK(n_far == large && n_far <= bon_i8_most_far(K));
    for (size_t f = 0; f < n_far; f++) CHECK(far[f].beyond == (x[far[f].input] > 0 ? 10 : -10));
}

static void test_digits_of_zero_and_of_what_is_not_finite(void)
{
    float x[9] = {0};
    int8_t p[16];
    bon_i8_far far[1];
    uint32_t added;
    size_t n_far;
    CHECK(bon_i8_digits(x, 9, 16, p, &added, far, &n_far) == 0.0f && p[0] == 0 && !n_far && !added);
    x[3] = 0x1p-149f; /* 127 / x is infinite */
    CHECK(isfinite(bon_i8_digits(x, 9, 16, p, &added, far, &n_far)) && p[3] == 0 && !n_far);
    for (size_t i = 0; i < 9; i++) x[i] = 3e38f; /* their sum is no float */
    CHECK(bon_i8_digits(x, 9, 16, p, &added, far, &n_far) == 3e38f / 127.0f && p[8] == 127);
    x[8] = NAN;
    CHECK(isnan(bon_i8_digits(x, 9, 16, p, &added, far, &n_far)) && !n_far && !added);
    x[8] = -INFINITY;
    CHECK(isnan(bon_i8_digits(x, 9, 16, p, &added, far, &n_far)) && !n_far && p[0] == 0);
}

/* -- kernels ----------------------------------------------------------------- */

/* kernels: those of the route tile, or NULL for dot. */
static void check_kernel(const bon_kernels *kernels, size_t count, size_t k, size_t rows,
                         bool accumulate, bool extreme)
{
    const int most = kernels ? 2047 : 127, add = kernels ? 0 : 128;
    const size_t n = count * BON_PANEL, stride = k * BON_PANEL + 32;
    int8_t *panels = calloc(count, stride), *w = malloc(n * k);
    int16_t *x = malloc(rows * k * sizeof *x), *mixed = malloc(rows * k * sizeof *mixed);
    int32_t *y = malloc((rows * n + 1) * sizeof *y), *start = malloc(rows * n * sizeof *start);
    CHECK(panels && w && x && mixed && y && start);
    for (size_t i = 0; i < n * k; i++) w[i] = (int8_t)(extreme ? 127 : (int)(bits() % 255) - 127);
    for (size_t i = 0; i < rows * k; i++)
        x[i] = (int16_t)(extreme ? -most : (int)(bits() % (unsigned)(2 * most + 1)) - most);
    for (size_t i = 0; i < rows * k; i++)
        if (kernels)
            mixed[i / k * k + exchanged(i % k)] = x[i];
        else
            ((int8_t *)mixed)[i] = (int8_t)x[i];
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < k; i++)
            panels[j / BON_PANEL * stride + (i / 4 * BON_PANEL + j % BON_PANEL) * 4 + i % 4] =
                w[j * k + i];
    for (size_t i = 0; i < rows * n; i++) y[i] = start[i] = (int32_t)bits();
    y[rows * n] = 12345;
    const void *const next = rows % 3 == 0 ? panels : NULL; /* asked for, not read */
    if (kernels)
        kernels->i8(panels, count, stride, k, mixed, rows, k, y, n, BON_PANEL, accumulate, next);
    else
        bon_kernels_dot_i8(panels, count, stride, k, (int8_t *)mixed, rows, k, y, n, BON_PANEL,
                           accumulate, next);
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < n; j++) {
            int64_t sum = accumulate ? start[r * n + j] : 0;
            for (size_t i = 0; i < k; i++) sum += (int64_t)x[r * k + i] * (w[j * k + i] + add);
            CHECK((uint32_t)y[r * n + j] == (uint32_t)sum);
        }
    CHECK(y[rows * n] == 12345);
    free(panels);
    free(w);
    free(x);
    free(mixed);
    free(y);
    free(start);
}

static void check_kernels(const bon_kernels *kernels)
{
    static const size_t many[] = {48, 49, 96, 97, 120};
    for (size_t count = 1; count <= 9; count++)
        for (size_t i = 0; i < 27 + sizeof many / sizeof *many; i++) {
            const size_t rows = i < 27 ? i + 1 : many[i - 27];
            check_kernel(kernels, count, 4 + 4 * (rows % 6), rows, rows % 2, count % 2);
        }
    check_kernel(kernels, 3, 4500, 30, true, false); /* several blocks of inputs */
    check_kernel(kernels, 2, 8192, 7, false, true);  /* 2047 * 127 * 8192 is 0.99 * 2^31 */
}

static void test_kernels_of_every_instruction_set_sum_exactly(void)
{
    check_kernels(&bon_kernels_avx2);
    if (bon_kernels_have_avx512()) check_kernels(&bon_kernels_avx512);
    if (!bon_kernels_have_dot_i8()) return;
    check_kernels(NULL);
    check_kernel(NULL, 2, BON_I8_MAX_INPUTS, 1, false, true); /* sums pass 2^31 on their way */
}

/* -- products ---------------------------------------------------------------- */

/* A row of weights as whole numbers of a scale, and where more than 2 % is lost what is left as a
 * second digit; in doubles, but for the scale and the quotient, whose float is what is rounded. */
static void digits(const float *w, size_t k, float *scale, int *first, int *second)
{
    float largest = 0.0f;
    double lost = 0.0, size = 0.0;
    for (size_t i = 0; i < k; i++) largest = fmaxf(largest, fabsf(w[i]));
    *scale = largest / 127.0f;
    for (size_t i = 0; i < k; i++) {
        first[i] = *scale > 0.0f ? (int)lrintf(w[i] * (1.0f / *scale)) : 0;
        const double rest = w[i] - *scale * (float)first[i];
        lost += rest * rest;
        size += fabs((double)w[i]);
    }
    const float fine = *scale / 254.0f;
    const bool needed = sqrt(lost / (double)k) > 0.02 * size / (double)k;
    for (size_t i = 0; i < k; i++) {
        const float rest = w[i] - *scale * (float)first[i];
        second[i] = needed ? (int)lrintf(fminf(fmaxf(rest * (1.0f / fine), -127), 127)) : 0;
    }
}

/* Adds t * s * sum(p * q) to y; a sum of no digits is not counted. */
static void add_product(const int *p, const int *q, size_t k, float t, float s, float *y)
{
    int64_t sum = 0;
    for (size_t i = 0; i < k; i++) sum += (int64_t)p[i] * q[i];
    if (sum != 0) *y += t * s * (float)sum;
}

/* y as int8.h says it is. */
static void expected(const float *w, const float *x, size_t n, size_t k, size_t rows, size_t ldx,
                     bon_route route, float *y, size_t ldy)
{
    int *first = malloc(n * k * sizeof *first), *second = malloc(n * k * sizeof *second);
    int *p = malloc(k * sizeof *p);
    float *scale = malloc(n * sizeof *scale), t;
    CHECK(first && second && p && scale);
    const int levels = bon_i8_levels((k + 15) / 16 * 16);
    for (size_t j = 0; j < n; j++)
        digits(w + j * k, k, scale + j, first + j * k, second + j * k);
    for (size_t r = 0; r < rows; r++) {
        if (route == BON_ROUTE_DOT) {
            t = whole(x + r * ldx, k, p);
        } else {
            float largest = 0.0f;
            for (size_t i = 0; i < k; i++) largest = fmaxf(largest, fabsf(x[r * ldx + i]));
            t = largest / (float)levels;
            for (size_t i = 0; i < k; i++)
                p[i] = (int)lrintf(x[r * ldx + i] * ((float)levels / largest));
        }
        for (size_t j = 0; j < n; j++) {
            float *to = y + r * ldy + j;
            *to = 0.0f;
            add_product(p, first + j * k, k, t, scale[j], to);
            add_product(p, second + j * k, k, t, scale[j] / 254.0f, to);
        }
    }
    free(first);
    free(second);
    free(p);
    free(scale);
}

/* Weights like a model's; every seventh row has one that is 60 times as large as the others. */
static float *weights(size_t n, size_t k)
{
    float *w = malloc(n * k * sizeof *w);
    CHECK(w);
    for (size_t i = 0; i < n * k; i++) w[i] = noise();
    for (size_t j = 3; j < n; j += 7) w[j * k + j % k] = 60.0f;
    return w;
}

/* Every number of rows, on several threads, against max_rows at once in integers; every fifth
 * row of x has numbers that are 60 times as large as the others. */
static void check_products(size_t n, size_t k, size_t max_rows, bon_route route, int threads)
{
    const size_t ldx = k + 3, ldy = n + 2;
    float *w = weights(n, k), *x = malloc(max_rows * ldx * sizeof *x);
    float *want = malloc(max_rows * ldy * sizeof *want), *y = malloc(max_rows * ldy * sizeof *y);
    CHECK(x && want && y);
    for (size_t i = 0; i < max_rows * ldx; i++) x[i] = noise();
    for (size_t r = 2; r < max_rows; r += 5)
        for (size_t i = r % k; i < k; i += 331) x[r * ldx + i] = i % 2 ? 60.0f : -45.0f;
    expected(w, x, n, k, max_rows, ldx, route, want, ldy);
    bon_matrix *m;
    CHECK(bon_matrix_create(n, k, BON_I8, &m) == BON_OK);
    CHECK(bon_matrix_fill(m, 0, w, BON_F32, n, threads) == BON_OK);
    CHECK(bon_matrix_set_route(m, BON_DECODE, route) == BON_OK);
    for (size_t rows = 0; rows <= max_rows; rows += 1 + rows / 25) {
        for (size_t i = 0; i < max_rows * ldy; i++) y[i] = 99.0f;
        CHECK(bon_matrix_multiply(m, BON_DECODE, x, rows, ldx, y, ldy, threads) == BON_OK);
        for (size_t r = 0; r < max_rows; r++)
            for (size_t j = 0; j < ldy; j++)
                CHECK(y[r * ldy + j] == (r < rows && j < n ? want[r * ldy + j] : 99.0f));
    }
    bon_matrix_destroy(m);
    free(w);
    free(x);
    free(want);
    free(y);
}

static void test_products_are_those_of_whole_numbers(void)
{
    for (int route = BON_ROUTE_TILE; route <= BON_ROUTE_DOT; route++) {
        if (!bon_route_available((bon_route)route, BON_I8)) continue;
        for (size_t n = 1; n <= 40; n += 3)
            for (size_t k = 1; k <= 40; k += 2) check_products(n, k, 9, (bon_route)route, 1);
        for (int threads = 1; threads <= 3; threads++) {
            check_products(150, 2100, 14, (bon_route)route, threads);
            check_products(77, 4301, 210, (bon_route)route, threads);
            check_products(3100, 5, 210, (bon_route)route, threads); /* as many panels as fit */
        }
    }
}

/* All weights and all activations as large as they get, either sign: +-k, exactly. */
static void test_the_largest_sums_are_exact(void)
{
    const size_t k = BON_I8_MAX_INPUTS;
    float *w = malloc(2 * k * sizeof *w), *x = malloc(2 * k * sizeof *x), y[4];
    CHECK(w && x);
    for (size_t i = 0; i < 2 * k; i++) w[i] = x[i] = i < k ? 1.0f : -1.0f;
    bon_matrix *m;
    CHECK(bon_matrix_create(2, k, BON_I8, &m) == BON_OK);
    CHECK(bon_matrix_fill(m, 0, w, BON_F32, 2, 1) == BON_OK);
    for (int route = BON_ROUTE_TILE; route <= BON_ROUTE_DOT; route++) {
        if (bon_matrix_set_route(m, BON_DECODE, (bon_route)route) != BON_OK) continue;
        CHECK(bon_matrix_multiply(m, BON_DECODE, x, 2, k, y, 2, 1) == BON_OK);
        for (size_t i = 0; i < 4; i++) {
            const float want = i % 3 == 0 ? (float)k : -(float)k;
            CHECK(fabsf(y[i] / want - 1.0f) < 1e-6f); /* of the scales */
        }
    }
    bon_matrix_destroy(m);
    free(w);
    free(x);
}

static void test_rows_with_large_weights_have_a_second_digit(void)
{
    const size_t n = 40, k = 500;
    float *w = weights(n, k), row[500];
    bon_matrix *m;
    CHECK(bon_matrix_create(n, k, BON_I8, &m) == BON_OK);
    const size_t bytes = bon_matrix_bytes(m);
    CHECK(bytes == 48 * 512 + n * (sizeof(float) + 1));
    CHECK(bon_matrix_fill(m, 0, w, BON_F32, n, 2) == BON_OK);
    CHECK(bon_matrix_fine_rows(m) == 6 && bon_matrix_bytes(m) == bytes + 16 * 512);
    for (int again = 0; again < 5; again++) /* all but one of them */
        CHECK(bon_matrix_fill(m, 5, w + 5 * k, BON_F32, n - 5, 2) == BON_OK);
    CHECK(bon_matrix_fine_rows(m) == 6 && bon_matrix_bytes(m) == bytes + 16 * 512);
    for (size_t j = 0; j < n; j++) {
        bon_matrix_row(m, j, row);
        const float scale = bon_i8_largest(w + j * k, k) / 127.0f;
        const float allowed = j % 7 == 3 ? scale / 508.0f : scale / 2.0f;
        for (size_t i = 0; i < k; i++) CHECK(fabsf(row[i] - w[j * k + i]) <= allowed * 1.01f);
    }
    /* filled again, by rows that need none: nothing is left of the second digits */
    for (size_t i = 0; i < n * k; i++) w[i] = noise();
    CHECK(bon_matrix_fill(m, 0, w, BON_F32, n, 1) == BON_OK);
    CHECK(bon_matrix_fine_rows(m) == 0);
    float x[500], y[40], want[40];
    for (size_t i = 0; i < k; i++) x[i] = noise();
    expected(w, x, n, k, 1, k, BON_ROUTE_TILE, want, n);
    CHECK(bon_matrix_multiply(m, BON_PREFILL, x, 1, k, y, n, 1) == BON_OK);
    CHECK(memcmp(y, want, sizeof y) == 0);
    bon_matrix_destroy(m);
    free(w);
}

static void test_what_is_not_finite_is_not_hidden(void)
{
    float w[2 * 20], x[2 * 20], y[4];
    for (size_t i = 0; i < 40; i++) w[i] = x[i] = noise();
    x[25] = NAN;
    bon_matrix *m;
    CHECK(bon_matrix_create(2, 20, BON_I8, &m) == BON_OK);
    CHECK(bon_matrix_fill(m, 0, w, BON_F32, 2, 1) == BON_OK);
    CHECK(bon_matrix_multiply(m, BON_DECODE, x, 2, 20, y, 2, 1) == BON_OK);
    CHECK(isfinite(y[0]) && isfinite(y[1]) && isnan(y[2]) && isnan(y[3]));
    if (bon_matrix_set_route(m, BON_DECODE, BON_ROUTE_DOT) == BON_OK) {
        CHECK(bon_matrix_multiply(m, BON_DECODE, x, 2, 20, y, 2, 1) == BON_OK);
        CHECK(isfinite(y[0]) && isfinite(y[1]) && isnan(y[2]) && isnan(y[3]));
    }
    bon_matrix_destroy(m);
}

/* Each allocation fails in turn; what failed is done again, and is right. */
static void test_failing_allocations_are_reported(void)
{
    const size_t n = 40, k = 50;
    float *w = weights(n, k), x[50], y[40], want[40];
    for (size_t i = 0; i < k; i++) x[i] = noise();
    expected(w, x, n, k, 1, k, BON_ROUTE_TILE, want, n);
    bon_matrix *m = NULL;
    bon_status status = BON_ERR_MEMORY;
    long fail_at = 0;
    for (; status == BON_ERR_MEMORY; fail_at++) {
        allocations_left = fail_at;
        status = bon_matrix_create(n, k, BON_I8, &m);
        allocations_left = -1;
        CHECK((status == BON_OK) == (m != NULL));
    }
    CHECK(fail_at == 5); /* the matrix, its data, its scales and marks */
    for (status = BON_ERR_MEMORY, fail_at = 0; status == BON_ERR_MEMORY; fail_at++) {
        allocations_left = fail_at;
        status = bon_matrix_fill(m, 0, w, BON_F32, n, 1);
        allocations_left = -1;
    }
    CHECK(fail_at == 6); /* two rows of scratch, three arrays of second digits */
    allocations_left = 0;
    CHECK(bon_matrix_multiply(m, BON_DECODE, x, 1, k, y, n, 1) == BON_ERR_MEMORY);
    allocations_left = -1;
    CHECK(bon_matrix_multiply(m, BON_DECODE, x, 1, k, y, n, 1) == BON_OK);
    CHECK(memcmp(y, want, sizeof y) == 0);
    if (bon_matrix_set_route(m, BON_DECODE, BON_ROUTE_DOT) == BON_OK) {
        allocations_left = 0;
        CHECK(bon_matrix_multiply(m, BON_DECODE, x, 1, k, y, n, 1) == BON_ERR_MEMORY);
        allocations_left = -1;
    }
    bon_matrix_destroy(m);
    free(w);
}

static void test_rows_of_zeros_and_of_next_to_nothing(void)
{
    float w[2 * 24] = {0}, x[24], y[2], row[24];
    w[24] = 1e-40f; /* 127 / w is infinite */
    for (size_t i = 0; i < 24; i++) x[i] = noise();
    bon_matrix *m;
    CHECK(bon_matrix_create(2, 24, BON_I8, &m) == BON_OK);
    CHECK(bon_matrix_fill(m, 0, w, BON_F32, 2, 1) == BON_OK);
    CHECK(bon_matrix_multiply(m, BON_DECODE, x, 1, 24, y, 2, 1) == BON_OK);
    CHECK(y[0] == 0.0f && y[1] == 0.0f);
    bon_matrix_row(m, 1, row);
    for (size_t i = 1; i < 24; i++) CHECK(row[i] == 0.0f);
    bon_matrix_destroy(m);
}

static void test_int8_is_not_for_onednn_and_has_a_most_of_inputs(void)
{
    bon_matrix *m = NULL;
    CHECK(bon_matrix_create(1, BON_I8_MAX_INPUTS + 1, BON_I8, &m) == BON_ERR_DOMAIN && !m);
    CHECK(bon_route_available(BON_ROUTE_TILE, BON_I8));
    CHECK(!bon_route_available(BON_ROUTE_ONEDNN, BON_I8));
    CHECK(bon_matrix_create(16, 16, BON_I8, &m) == BON_OK);
    CHECK(bon_matrix_set_route(m, BON_DECODE, BON_ROUTE_ONEDNN) == BON_ERR_BACKEND);
    bon_matrix_destroy(m);
}

int main(void)
{
    test_levels_keep_every_sum_in_32_bits();
    test_largest_finds_every_place_and_every_nan();
    test_activations_are_rounded_and_exchanged();
    test_activations_of_zero_and_of_what_is_not_finite();
    test_digits_and_what_is_beyond_them();
    test_as_many_beyond_as_there_can_be();
    test_digits_of_zero_and_of_what_is_not_finite();
    test_kernels_of_every_instruction_set_sum_exactly();
    test_products_are_those_of_whole_numbers();
    test_the_largest_sums_are_exact();
    test_rows_with_large_weights_have_a_second_digit();
    test_what_is_not_finite_is_not_hidden();
    test_failing_allocations_are_reported();
    test_rows_of_zeros_and_of_next_to_nothing();
    test_int8_is_not_for_onednn_and_has_a_most_of_inputs();
    puts("test_int8: ok");
    return 0;
}
