/* bench_gemm.c - products with packed weights against what the machine can do.
 *
 *   D=$(python -c 'import sysconfig; print(sysconfig.get_paths()["data"])')   # oneDNN's wheels
 *   gcc -std=c11 -O3 -mavx2 -mfma -mf16c -fopenmp -isystem $D/include -Icsrc \
 *       -o /tmp/bench_gemm benchmarks/bench_gemm.c csrc/gemm.c csrc/onednn.c \
 *       csrc/kernels_*.c -L$D/lib -ldnnl -Wl,-rpath,$D/lib -lm
 *   /tmp/bench_gemm [threads] [seconds per figure]
 *
 * K = 2048 inputs, N = 16384 outputs. Several matrices take turns, so weights
 * come from DRAM. Best of the repeats; peak and bandwidth are measured around
 * every figure, and a figure's share is of the larger of the two times that the
 * machine needs at least: operations / peak, bytes of weights / bandwidth.
 */
#define _DEFAULT_SOURCE
#include <immintrin.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "gemm.h"
#include "kernels.h"

#define INPUTS 2048
#define OUTPUTS 16384
#define TOTAL_BYTES ((size_t)512 << 20) /* of the matrices that take turns */
#define MAX_ROWS 512

static const size_t ROWS[] = {1, 4, 16, 32, 64, 512};

/* -- what the machine can do ------------------------------------------------ */

#define PEAK_STEPS 3000000 /* some 5 ms */

/* Operations per second of 12 independent chains, which hide all latency. */
static double peak_avx2(int threads)
{
    const double start = omp_get_wtime();
#pragma omp parallel num_threads(threads)
    {
        __m256 acc[12], a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
        for (int i = 0; i < 12; i++) acc[i] = _mm256_set1_ps((float)i);
        for (int s = 0; s < PEAK_STEPS; s++) {
            __asm__ volatile("" : "+x"(a), "+x"(b));
#pragma GCC unroll 12
            for (int i = 0; i < 12; i++) acc[i] = _mm256_fmadd_ps(acc[i], a, b);
        }
        for (int i = 0; i < 12; i++) __asm__ volatile("" ::"x"(acc[i]));
    }
    return (double)threads * PEAK_STEPS * 12 * 8 * 2 / (omp_get_wtime() - start);
}

__attribute__((target("avx512f"))) static double peak_avx512(int threads)
{
    const double start = omp_get_wtime();
#pragma omp parallel num_threads(threads)
    {
        __m512 acc[12], a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
        for (int i = 0; i < 12; i++) acc[i] = _mm512_set1_ps((float)i);
        for (int s = 0; s < PEAK_STEPS; s++) {
            __asm__ volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 12
            for (int i = 0; i < 12; i++) acc[i] = _mm512_fmadd_ps(acc[i], a, b);
        }
        for (int i = 0; i < 12; i++) __asm__ volatile("" ::"v"(acc[i]));
    }
    return (double)threads * PEAK_STEPS * 12 * 16 * 2 / (omp_get_wtime() - start);
}

static double peak(int threads)
{
    return bon_kernels_have_avx512() ? peak_avx512(threads) : peak_avx2(threads);
}

static double bandwidth(int threads, const float *memory, size_t count)
{
    const double start = omp_get_wtime();
    const long blocks = (long)(count / 16384);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long b = 0; b < blocks; b++) {
        __m256 sum[8] = {{0}};
        for (const float *p = memory + b * 16384; p < memory + (b + 1) * 16384; p += 64)
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) sum[i] = _mm256_add_ps(sum[i], _mm256_load_ps(p + 8 * i));
        for (int i = 0; i < 8; i++) __asm__ volatile("" ::"x"(sum[i]));
    }
    return (double)blocks * 16384 * sizeof(float) / (omp_get_wtime() - start);
}

/* -- the products ------------------------------------------------------------ */

typedef struct {
    bon_matrix *matrix[16];
    size_t count;
    bon_dtype dtype;
    float *x, *y, *memory;
    size_t memory_count;
    int threads;
    double seconds;
} bench;

static bon_status load(bench *b, bon_dtype dtype)
{
    b->dtype = dtype;
    b->count = TOTAL_BYTES / (INPUTS * OUTPUTS * bon_dtype_size(dtype));
    for (size_t i = 0; i < b->count; i++) {
        bon_status status = bon_matrix_create(OUTPUTS, INPUTS, dtype, &b->matrix[i]);
        if (status != BON_OK) return status;
        const double start = omp_get_wtime();
        status = bon_matrix_fill(b->matrix[i], 0, b->memory, BON_F32, OUTPUTS, b->threads);
        if (status != BON_OK) return status;
        if (i == 0)
            printf("# packed float32 -> %s at %.2f GB/s (of packed bytes)\n",
                   dtype == BON_F32 ? "float32" : "bfloat16",
                   (double)bon_matrix_bytes(b->matrix[i]) / (omp_get_wtime() - start) / 1e9);
    }
    return BON_OK;
}

static bon_status run(const bench *b, bon_route route, size_t rows)
{
    const double operations = 2.0 * (double)rows * INPUTS * OUTPUTS;
    const double bytes = (double)bon_matrix_bytes(b->matrix[0]);
    double top_peak = 0, top_read = 0, seconds = 1e9;
    const double stop = omp_get_wtime() + b->seconds;
    do {
        const double p = peak(b->threads), r = bandwidth(b->threads, b->memory, b->memory_count);
        if (p > top_peak) top_peak = p;
        if (r > top_read) top_read = r;
        for (size_t i = 0; i < b->count; i++) {
            const double start = omp_get_wtime();
            const bon_status status =
                bon_matrix_multiply(b->matrix[i], rows >= 64 ? BON_PREFILL : BON_DECODE, b->x,
                                    rows, INPUTS, b->y, OUTPUTS, b->threads);
            if (status != BON_OK) return status;
            const double taken = omp_get_wtime() - start;
            if (taken < seconds) seconds = taken;
        }
    } while (omp_get_wtime() < stop);
    const double least = operations / top_peak > bytes / top_read ? operations / top_peak
                                                                   : bytes / top_read;
    printf("%-8s %-7s %4zu  %8.1f GFLOP/s %6.1f GB/s | %6.0f %6.1f | %3.0f %%\n",
           b->dtype == BON_F32 ? "float32" : "bfloat16", bon_route_name(route), rows,
           operations / seconds / 1e9, bytes / seconds / 1e9, top_peak / 1e9, top_read / 1e9,
           100 * least / seconds);
    fflush(stdout);
    return BON_OK;
}

static bon_status run_dtype(bench *b, bon_dtype dtype)
{
    bon_status status = load(b, dtype);
    for (int route = 0; route < BON_ROUTES; route++) {
        if (!bon_route_available((bon_route)route, dtype)) continue;
        for (size_t i = 0; i < b->count && status == BON_OK; i++)
            for (int phase = 0; phase < BON_PHASES && status == BON_OK; phase++)
                status = bon_matrix_set_route(b->matrix[i], (bon_phase)phase, (bon_route)route);
        for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS && status == BON_OK; i++)
            status = run(b, (bon_route)route, ROWS[i]);
    }
    for (size_t i = 0; i < b->count; i++) bon_matrix_destroy(b->matrix[i]);
    return status;
}

int main(int argc, char **argv)
{
    bench b = {.threads = argc > 1 ? atoi(argv[1]) : omp_get_num_procs(),
               .seconds = argc > 2 ? atof(argv[2]) : 2.0,
               .memory_count = (size_t)INPUTS * OUTPUTS};
    b.x = aligned_alloc(64, MAX_ROWS * INPUTS * sizeof *b.x);
    b.y = aligned_alloc(64, MAX_ROWS * OUTPUTS * sizeof *b.y);
    b.memory = aligned_alloc((size_t)2 << 20, b.memory_count * sizeof *b.memory);
    if (!b.x || !b.y || !b.memory) return 1;
    (void)madvise(b.memory, b.memory_count * sizeof *b.memory, MADV_HUGEPAGE); /* as weights */
    for (size_t i = 0; i < MAX_ROWS * INPUTS; i++) b.x[i] = (float)(i % 7) - 3.0f;
    for (size_t i = 0; i < b.memory_count; i++) b.memory[i] = (float)(i % 11) - 5.0f;

    printf("# %d threads, kernels %s, oneDNN %s on %s\n", b.threads, bon_gemm_isa(),
           bon_onednn_version(), bon_onednn_isa());
    printf("# dtype  route   rows   product                      | peak   read  | of limit\n");
    if (run_dtype(&b, BON_F32) != BON_OK || run_dtype(&b, BON_BF16) != BON_OK) {
        fprintf(stderr, "a product failed\n");
        return 1;
    }
    free(b.x);
    free(b.y);
    free(b.memory);
    return 0;
}
