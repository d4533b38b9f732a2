/* bench_gemm.c - products with packed weights against what the machine can do.
 *
 *   D=$(python -c 'import sysconfig; print(sysconfig.get_paths()["data"])')   # oneDNN's wheels
 *   gcc -std=c11 -O3 -mavx2 -mfma -mf16c -fopenmp -isystem $D/include -Icsrc \
 *       -o /tmp/bench_gemm benchmarks/bench_gemm.c csrc/{gemm,products,int8,panels,onednn}.c \
 *       csrc/kernels_*.c -L$D/lib -ldnnl -Wl,-rpath,$D/lib -lm
 *   /tmp/bench_gemm [threads] [seconds per figure]
 *
 * K = 2048 inputs, N = 16384 outputs. Several matrices take turns, so weights
 * come from DRAM. Best of the repeats; peak and bandwidth are measured around
 * every figure, and a figure's share is of the larger of the two times that the
 * machine needs at least: operations / peak, bytes of weights / bandwidth. The peak is that of
 * the instruction the route multiplies with, as far as this program knows it: float32's for
 * tile and onednn, vdpbf16ps or vpdpbusd for dot.
 *
 * Then the three products of training, on float32 layers of small models: forward
 * y = x W^T, dx = dy W with W turned over anew, and grad += dy^T x.
 */
#define _DEFAULT_SOURCE
#include <immintrin.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

#define DOT(INSTRUCTION, REGISTER) INSTRUCTION " %%zmm16, %%zmm17, %%zmm" #REGISTER "\n"
#define DOTS(I) DOT(I, 0) DOT(I, 1) DOT(I, 2) DOT(I, 3) DOT(I, 4) DOT(I, 5) DOT(I, 6) DOT(I, 7)
#define PEAK_DOT(NAME, TARGET, INSTRUCTION, OPERATIONS)                                   \
    __attribute__((target("avx512f," TARGET))) static double NAME(int threads)            \
    {                                                                                     \
        const double start = omp_get_wtime();                                             \
        _Pragma("omp parallel num_threads(threads)")                                      \
        for (int s = 0; s < PEAK_STEPS; s++)                                              \
            __asm__ volatile(DOTS(INSTRUCTION)::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", \
                             "xmm5", "xmm6", "xmm7");                                     \
        return (double)threads * PEAK_STEPS * 8 * OPERATIONS / (omp_get_wtime() - start); \
    }
PEAK_DOT(peak_dot_bf16, "avx512bf16", "vdpbf16ps", 64)
PEAK_DOT(peak_dot_i8, "avx512vnni", "vpdpbusd", 128)

static double peak(int threads, bon_route route, bon_dtype dtype)
{
    if (route == BON_ROUTE_DOT)
        return dtype == BON_I8 ? peak_dot_i8(threads) : peak_dot_bf16(threads);
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

static const char *name_of(bon_dtype dtype)
{
    return dtype == BON_F32 ? "float32" : dtype == BON_BF16 ? "bfloat16" : "int8";
}

typedef struct {
    bon_matrix *matrix[TOTAL_BYTES / (INPUTS * OUTPUTS)];
    size_t count;
    bon_dtype dtype;
    float *x, *y, *memory;
    size_t memory_count;
    int threads;
    double seconds;
} bench;

static bon_status load(bench *b, bon_dtype dtype)
{
    memset(b->matrix, 0, sizeof b->matrix);
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
                   name_of(dtype),
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
        const double p = peak(b->threads, route, b->dtype);
        const double r = bandwidth(b->threads, b->memory, b->memory_count);
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
           name_of(b->dtype), bon_route_name(route), rows,
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

/* -- the products of training ------------------------------------------------- */

static const struct {
    size_t n, k, rows;
} LAYERS[] = {{128, 128, 4096}, {384, 128, 4096},  {288, 288, 4096},  {1536, 288, 4096},
              {288, 768, 4096}, {32000, 288, 512}, {4864, 896, 2048}, {896, 4864, 2048}};

typedef struct {
    bon_matrix *w, *turned;
    float *x, *y, *dx, *grad;
    void *scratch;
} layer;

static float *ones(size_t count)
{
    float *p = malloc(count * sizeof *p);
    for (size_t i = 0; p && i < count; i++) p[i] = 1.0f;
    return p;
}

static bon_status create_layer(layer *l, size_t n, size_t k, size_t rows, int threads)
{
    l->x = ones(rows * k);
    l->dx = ones(rows * k);
    l->y = ones(rows * n);
    l->grad = ones(bon_panels_floats(n, k));
    l->scratch = aligned_alloc(64, bon_gradient_scratch(n, k, threads));
    bon_status status = bon_matrix_create(n, k, BON_F32, &l->w);
    if (status == BON_OK) status = bon_matrix_create(k, n, BON_F32, &l->turned);
    if (status != BON_OK || !l->x || !l->dx || !l->y || !l->grad || !l->scratch)
        return BON_ERR_MEMORY;
    bon_matrix_set_panels(l->w, l->grad, threads);
    return BON_OK;
}

static void destroy_layer(layer *l)
{
    bon_matrix_destroy(l->w);
    bon_matrix_destroy(l->turned);
    free(l->x);
    free(l->dx);
    free(l->y);
    free(l->grad);
    free(l->scratch);
}

static double since(double *start) /* the seconds from start on; start is now */
{
    const double before = *start;
    *start = omp_get_wtime();
    return *start - before;
}

static void keep_least(double *least, double seconds)
{
    if (seconds < *least) *least = seconds;
}

static bon_status train_layer(const bench *b, size_t n, size_t k, size_t rows)
{
    layer l = {0};
    bon_status status = create_layer(&l, n, k, rows, b->threads);
    double forward = 1e9, turn = 1e9, back = 1e9, gradient = 1e9;
    const double stop = omp_get_wtime() + b->seconds;
    while (status == BON_OK && omp_get_wtime() < stop) {
        double clock = omp_get_wtime();
        status = bon_matrix_multiply(l.w, BON_PREFILL, l.x, rows, k, l.y, n, b->threads);
        keep_least(&forward, since(&clock));
        if (status != BON_OK) break;
        bon_matrix_transpose(l.w, l.turned, b->threads);
        keep_least(&turn, since(&clock));
        status = bon_matrix_multiply(l.turned, BON_PREFILL, l.y, rows, n, l.dx, k, b->threads);
        keep_least(&back, since(&clock));
        bon_matrix_gradient(n, k, l.y, n, l.x, k, rows, l.grad, l.scratch, b->threads);
        keep_least(&gradient, since(&clock));
    }
    const double giga = 2e-9 * (double)rows * (double)n * (double)k;
    if (status == BON_OK)
        printf("%5zu %5zu %5zu  %7.1f %7.1f %7.1f GFLOP/s  %8.0f us\n", n, k, rows,
               giga / forward, giga / back, giga / gradient, 1e6 * turn);
    fflush(stdout);
    destroy_layer(&l);
    return status;
}

static bon_status run_training(const bench *b)
{
    bon_status status = BON_OK;
    printf("#   n     k  rows  forward      dx    grad            turning W over\n");
    for (size_t i = 0; i < sizeof LAYERS / sizeof *LAYERS && status == BON_OK; i++)
        status = train_layer(b, LAYERS[i].n, LAYERS[i].k, LAYERS[i].rows);
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
    if (run_dtype(&b, BON_F32) != BON_OK || run_dtype(&b, BON_BF16) != BON_OK
        || run_dtype(&b, BON_I8) != BON_OK || run_training(&b) != BON_OK) {
        fprintf(stderr, "a product failed\n");
        return 1;
    }
    free(b.x);
    free(b.y);
    free(b.memory);
    return 0;
}
