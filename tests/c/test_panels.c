/* test_panels.c - gradients bit for bit against chains of fmaf; rows in and out of panels. */
#include "check.h"
#include "gemm.h"
#include "panels.h"

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
    float *x = malloc((count + 1) * sizeof *x); /* + 1: also of nothing */
    CHECK(x);
    for (size_t i = 0; i < count; i++) x[i] = noise();
    return x;
}

static float *zeros(size_t count)
{
    float *x = calloc(count + 1, sizeof *x);
    CHECK(x);
    return x;
}

static bool same(const float *a, const float *b, size_t count)
{
    return memcmp(a, b, count * sizeof *a) == 0;
}

static size_t place(size_t k, size_t output, size_t input)
{
    return (output / 16 * ((k + 15) / 16 * 16) + input) * 16 + output % 16;
}

/* Panels of w [n, k], element by element. */
static float *panels_of(const float *w, size_t n, size_t k)
{
    float *panels = zeros(bon_panels_floats(n, k));
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < k; i++) panels[place(k, j, i)] = w[j * k + i];
    return panels;
}

/* -- sizes ------------------------------------------------------------------- */

static void test_panels_are_whole(void)
{
    CHECK(bon_panels_floats(1, 1) == 256);
    CHECK(bon_panels_floats(16, 32) == 16 * 32);
    CHECK(bon_panels_floats(17, 33) == 32 * 48);
    CHECK(bon_panels_floats(SIZE_MAX, 1) == 0);
    CHECK(bon_panels_floats(1, SIZE_MAX - 3) == 0);
    CHECK(bon_panels_floats((size_t)1 << 32, (size_t)1 << 32) == 0);
    CHECK(bon_panels_floats((size_t)1 << 32, (size_t)1 << 30) == 0); /* 2^64 bytes */
}

/* -- gradient ---------------------------------------------------------------- */

typedef struct {
    size_t n, k, rows, ldy, ldx;
    float *dy, *x, *start; /* start: what grad holds before */
} problem;

static problem make_problem(size_t n, size_t k, size_t rows)
{
    problem p = {.n = n, .k = k, .rows = rows, .ldy = n + 3, .ldx = k + 1};
    p.dy = noise_array(rows * p.ldy);
    p.x = noise_array(rows * p.ldx);
    float *w = noise_array(n * k);
    p.start = panels_of(w, n, k);
    free(w);
    return p;
}

static void free_problem(problem *p)
{
    free(p->dy);
    free(p->x);
    free(p->start);
}

/* In pieces of `piece` rows, with exactly the scratch that was asked for. */
static float *gradient(const problem *p, size_t piece, int threads)
{
    const size_t floats = bon_panels_floats(p->n, p->k);
    const size_t bytes = bon_gradient_scratch(p->n, p->k, threads);
    CHECK(bytes > 0 && bytes % 64 == 0);
    float *grad = zeros(floats);
    void *scratch = aligned_alloc(64, bytes);
    CHECK(scratch);
    memset(scratch, 0xff, bytes); /* NaN */
    memcpy(grad, p->start, floats * sizeof *grad);
    for (size_t r = 0; r < p->rows; r += piece)
        bon_matrix_gradient(p->n, p->k, p->dy + r * p->ldy, p->ldy, p->x + r * p->ldx, p->ldx,
                            p->rows - r < piece ? p->rows - r : piece, grad, scratch, threads);
    free(scratch);
    return grad;
}

static float *chains(const problem *p)
{
    const size_t floats = bon_panels_floats(p->n, p->k);
    float *want = zeros(floats);
    memcpy(want, p->start, floats * sizeof *want);
    for (size_t j = 0; j < p->n; j++)
        for (size_t i = 0; i < p->k; i++)
            for (size_t r = 0; r < p->rows; r++) {
                float *sum = want + place(p->k, j, i);
                *sum = fmaf(p->x[r * p->ldx + i], p->dy[r * p->ldy + j], *sum);
            }
    return want;
}

static void check_gradient(size_t n, size_t k, size_t rows)
{
    const size_t pieces[] = {rows + 1, 300, 7};
    problem p = make_problem(n, k, rows);
    float *want = chains(&p);
    for (int threads = 1; threads <= 3; threads++)
        for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
            float *grad = gradient(&p, pieces[i], threads);
            CHECK(same(grad, want, bon_panels_floats(n, k))); /* padding included */
            free(grad);
        }
    free(want);
    free_problem(&p);
}

static void test_gradient_is_one_chain_per_weight(void)
{
    const size_t shapes[][2] = {{1, 1},   {16, 16}, {17, 33},  {33, 15},
                                {40, 97}, {3, 200}, {150, 64}, {161, 130}};
    const size_t rows[] = {0, 1, 5, 257, 513, 1000};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
            check_gradient(shapes[s][0], shapes[s][1], rows[r]);
}

/* Groups of panels and blocks of inputs in every number: 8 threads, 9 panels. */
static void test_gradient_of_many_threads_is_that_of_one(void)
{
    problem p = make_problem(139, 301, 600);
    float *want = gradient(&p, 600, 1);
    for (int threads = 2; threads <= 8; threads += 3) {
        float *grad = gradient(&p, 600, threads);
        CHECK(same(grad, want, bon_panels_floats(p.n, p.k)));
        free(grad);
    }
    free(want);
    free_problem(&p);
}

static void test_gradient_is_the_derivative_of_the_product(void)
{
    problem p = make_problem(45, 30, 21);
    memset(p.start, 0, bon_panels_floats(p.n, p.k) * sizeof *p.start);
    float *grad = gradient(&p, p.rows, 2);
    for (size_t j = 0; j < p.n; j++)
        for (size_t i = 0; i < p.k; i++) {
            double sum = 0.0;
            for (size_t r = 0; r < p.rows; r++)
                sum += (double)p.dy[r * p.ldy + j] * (double)p.x[r * p.ldx + i];
            CHECK(fabs((double)grad[place(p.k, j, i)] - sum) < 1e-5);
        }
    free(grad);
    free_problem(&p);
}

/* -- rows in and out ----------------------------------------------------------- */

static void check_rows(size_t n, size_t k, size_t piece, int threads)
{
    float *w = noise_array(n * k), *want = panels_of(w, n, k), *out = zeros(n * k + 1);
    float *panels = zeros(bon_panels_floats(n, k));
    out[n * k] = CANARY;
    for (size_t first = 0; first < n; first += piece) {
        bon_panels_pack(panels, n, k, first, piece, w + first * k, threads);
        bon_panels_unpack(want, n, k, first, piece, out + first * k, threads);
    }
    CHECK(same(panels, want, bon_panels_floats(n, k)));
    CHECK(same(out, w, n * k) && out[n * k] == CANARY);
    free(w);
    free(want);
    free(out);
    free(panels);
}

static void test_rows_come_out_of_panels_as_they_went_in(void)
{
    const size_t shapes[][2] = {{1, 1}, {16, 16}, {37, 50}, {64, 7}, {100, 131}};
    const size_t pieces[] = {1, 5, 16, 23, 1000};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++)
            for (int threads = 1; threads <= 3; threads++)
                check_rows(shapes[s][0], shapes[s][1], pieces[i], threads);
}

static void test_no_rows_are_no_rows(void)
{
    float panels[256] = {0}, row[16] = {CANARY};
    bon_panels_unpack(panels, 16, 16, 16, 3, row, 2);
    bon_panels_pack(panels, 16, 16, 16, 3, row, 2);
    bon_panels_unpack(panels, 16, 16, 5, 0, row, 2);
    CHECK(row[0] == CANARY && panels[5] == 0.0f);
}

static void check_scatter(size_t n, size_t k, size_t rows)
{
    const size_t ldx = k + 2, floats = bon_panels_floats(n, k);
    float *w = noise_array(n * k), *x = noise_array(rows * ldx), *start = panels_of(w, n, k);
    int32_t *row_of = malloc((rows + 1) * sizeof *row_of);
    CHECK(row_of);
    for (size_t r = 0; r < rows; r++) {
        state = state * 1664525u + 1013904223u;
        row_of[r] = (int32_t)((state >> 8) % n);
        for (size_t i = 0; i < k; i++) w[(size_t)row_of[r] * k + i] += x[r * ldx + i];
    }
    float *want = panels_of(w, n, k), *panels = zeros(floats);
    for (int threads = 1; threads <= 5; threads++) {
        memcpy(panels, start, floats * sizeof *panels);
        bon_panels_scatter(panels, k, row_of, x, ldx, rows, threads);
        CHECK(same(panels, want, floats));
    }
    free(w);
    free(x);
    free(start);
    free(row_of);
    free(want);
    free(panels);
}

static void test_scatter_adds_the_rows_in_order(void)
{
    check_scatter(1, 1, 3);
    check_scatter(50, 37, 0);
    check_scatter(33, 3, 20000);  /* fewer inputs than threads */
    check_scatter(21, 131, 1000); /* every output many times */
}

/* -- packed weights -------------------------------------------------------------- */

static bon_matrix *packed(const float *w, size_t n, size_t k, bon_dtype dtype)
{
    bon_matrix *m;
    CHECK(bon_matrix_create(n, k, dtype, &m) == BON_OK);
    if (w) CHECK(bon_matrix_fill(m, 0, w, BON_F32, n, 1) == BON_OK);
    return m;
}

static float stored(float weight, bon_dtype dtype)
{
    return dtype == BON_BF16 ? bon_bf16_to_f32(bon_f32_to_bf16(weight)) : weight;
}

static void check_panels_of_matrix(size_t n, size_t k, bon_dtype dtype, int threads)
{
    const size_t floats = bon_panels_floats(n, k);
    float *w = noise_array(n * k), *panels = panels_of(w, n, k), *got = noise_array(floats);
    bon_matrix *m = packed(NULL, n, k, dtype);
    bon_matrix_set_panels(m, panels, threads);
    bon_matrix_get_panels(m, got, threads);
    for (size_t i = 0; i < floats; i++) CHECK(got[i] == stored(panels[i], dtype));
    float *row = zeros(k);
    for (size_t j = 0; j < n; j++) {
        bon_matrix_row(m, j, row);
        for (size_t i = 0; i < k; i++) CHECK(row[i] == stored(w[j * k + i], dtype));
    }
    const float *in_place = bon_matrix_panels(m);
    CHECK((in_place == NULL) == (dtype == BON_BF16));
    if (in_place) CHECK(same(in_place, panels, floats));
    bon_matrix_destroy(m);
    free(row);
    free(w);
    free(panels);
    free(got);
}

/* All weights of W^T, and that its padding is zero: a matrix of the transposed rows. */
static void check_transpose(size_t n, size_t k, bon_dtype dtype, int threads)
{
    float *w = noise_array(n * k), *turned = noise_array(n * k);
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < k; i++) turned[i * n + j] = w[j * k + i];
    const size_t floats = bon_panels_floats(k, n);
    float *got = noise_array(floats), *expected = noise_array(floats);
    bon_matrix *m = packed(w, n, k, dtype), *dst = packed(NULL, k, n, dtype);
    bon_matrix *want = packed(turned, k, n, dtype);
    bon_matrix_transpose(m, dst, threads);
    bon_matrix_get_panels(dst, got, 1);
    bon_matrix_get_panels(want, expected, 1);
    CHECK(same(got, expected, floats));
    bon_matrix_destroy(m);
    bon_matrix_destroy(dst);
    bon_matrix_destroy(want);
    free(w);
    free(turned);
    free(got);
    free(expected);
}

static void test_weights_are_read_written_and_turned_over_in_both_dtypes(void)
{
    const size_t shapes[][2] = {{1, 1}, {16, 16}, {17, 33}, {45, 2}, {129, 300}, {300, 257}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int dtype = 0; dtype < 2; dtype++)
            for (int threads = 1; threads <= 3; threads++) {
                check_panels_of_matrix(shapes[s][0], shapes[s][1], (bon_dtype)dtype, threads);
                check_transpose(shapes[s][0], shapes[s][1], (bon_dtype)dtype, threads);
            }
}

static void test_panels_of_a_matrix_round_to_nearest_even(void)
{
    const uint32_t bits[] = {0x3f808000u, 0x3f818000u, 0x3f808001u, 0x3f807fffu, 0xbf818000u};
    const float want[] = {0x1p0f, 0x1.04p0f, 0x1.02p0f, 0x1p0f, -0x1.04p0f};
    float panels[256] = {0}, got[256];
    for (size_t i = 0; i < 5; i++) memcpy(&panels[i * 16], &bits[i], sizeof bits[i]);
    bon_matrix *m = packed(NULL, 1, 5, BON_BF16);
    bon_matrix_set_panels(m, panels, 1);
    bon_matrix_get_panels(m, got, 1);
    for (size_t i = 0; i < 5; i++) CHECK(got[i * 16] == want[i]);
    bon_matrix_destroy(m);
}

int main(void)
{
    test_panels_are_whole();
    test_gradient_is_one_chain_per_weight();
    test_gradient_of_many_threads_is_that_of_one();
    test_gradient_is_the_derivative_of_the_product();
    test_rows_come_out_of_panels_as_they_went_in();
    test_no_rows_are_no_rows();
    test_scatter_adds_the_rows_in_order();
    test_weights_are_read_written_and_turned_over_in_both_dtypes();
    test_panels_of_a_matrix_round_to_nearest_even();
    return 0;
}
