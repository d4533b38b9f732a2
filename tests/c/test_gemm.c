/* test_gemm.c - products bit for bit against a scalar chain of fmaf. */
#include "check.h"
#include "gemm.h"

#include <string.h>

#define CANARY 12345.0f

static uint32_t state = 1;
static float noise(void)
{
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

static void fill_noise(float *x, size_t count)
{
    for (size_t i = 0; i < count; i++) x[i] = noise();
}

static void check_product(size_t n, size_t k, size_t rows, bon_dtype dtype, int threads)
{
    static float w[4096], x[4096], y[4096];
    const size_t ldx = k + 3, ldy = n + 2;
    fill_noise(w, n * k);
    fill_noise(x, rows * ldx);
    for (size_t i = 0; i < rows * ldy; i++) y[i] = CANARY;
    bon_matrix *m;
    CHECK(bon_matrix_create(n, k, dtype, &m) == BON_OK);
    CHECK(bon_matrix_fill(m, 0, w, BON_F32, n, threads) == BON_OK);
    CHECK(bon_matrix_multiply(m, BON_DECODE, x, rows, ldx, y, ldy, threads) == BON_OK);
    for (size_t r = 0; r < rows; r++) {
        for (size_t j = 0; j < n; j++) {
            float sum = 0.0f;
            for (size_t i = 0; i < k; i++) {
                float weight = w[j * k + i];
                if (dtype == BON_BF16) weight = bon_bf16_to_f32(bon_f32_to_bf16(weight));
                sum = fmaf(x[r * ldx + i], weight, sum);
            }
            CHECK(memcmp(&sum, &y[r * ldy + j], sizeof sum) == 0);
        }
        CHECK(y[r * ldy + n] == CANARY && y[r * ldy + n + 1] == CANARY);
    }
    bon_matrix_destroy(m);
}

static void test_multiply_is_one_chain_per_output(void)
{
    for (size_t n = 1; n <= 40; n++)
        for (size_t k = 1; k <= 40; k += 1 + (n % 3))
            for (size_t rows = 1; rows <= 20; rows += 1 + (k % 3)) {
                check_product(n, k, rows, BON_F32, 1);
                check_product(n, k, rows, BON_BF16, 1);
            }
}

int main(void)
{
    test_multiply_is_one_chain_per_output();
    puts("ok");
    return 0;
}
