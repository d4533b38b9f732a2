/* adamw.c - AdamW in one pass over weights, gradients and moments. */
#include "adamw.h"

#include <math.h>
#include <stdbool.h>

#include "threads.h"
#include "vecmath.h"

#define BLOCK 16384 /* elements dealt to a thread at a time */

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* -- the step -------------------------------------------------------------- */

/* What all elements of a step have in common. */
typedef struct {
    float keep;         /* 1 - lr * weight_decay */
    float grad_scale;
    float fresh1;       /* 1 - beta1 */
    float beta2, fresh2; /* and 1 - beta2 */
    float root2;        /* sqrt(1 - beta2^step) */
    float eps, size;    /* size = lr / (1 - beta1^step) */
} constants;

static constants constants_of(const bon_adamw *o, uint64_t step, float grad_scale)
{
    const double t = (double)step;
    return (constants){.keep = (float)(1.0 - o->lr * o->weight_decay),
                       .grad_scale = grad_scale,
                       .fresh1 = (float)(1.0 - o->beta1),
                       .beta2 = (float)o->beta2,
                       .fresh2 = (float)(1.0 - o->beta2),
                       .root2 = (float)sqrt(1.0 - pow(o->beta2, t)),
                       .eps = (float)o->eps,
                       .size = (float)(o->lr / (1.0 - pow(o->beta1, t)))};
}

static void step_block(const constants *c, float *w, const float *g, float *m, float *v,
                       size_t count)
{
    const __m256 scale = _mm256_set1_ps(c->grad_scale), keep = _mm256_set1_ps(c->keep);
    const __m256 fresh1 = _mm256_set1_ps(c->fresh1), fresh2 = _mm256_set1_ps(c->fresh2);
    const __m256 beta2 = _mm256_set1_ps(c->beta2), root2 = _mm256_set1_ps(c->root2);
    const __m256 eps = _mm256_set1_ps(c->eps), size = _mm256_set1_ps(c->size);
    for (size_t i = 0; i < count; i += BON_LANES) {
        const size_t left = count - i;
        const __m256 grad = _mm256_mul_ps(bon_load_first(g + i, left, 0.0f), scale);
        const __m256 decayed = _mm256_mul_ps(bon_load_first(w + i, left, 0.0f), keep);
        __m256 first = bon_load_first(m + i, left, 0.0f);
        __m256 second = bon_load_first(v + i, left, 0.0f);
        first = _mm256_fmadd_ps(fresh1, _mm256_sub_ps(grad, first), first);
        second = _mm256_fmadd_ps(_mm256_mul_ps(fresh2, grad), grad,
                                 _mm256_mul_ps(beta2, second));
        const __m256 spread = _mm256_div_ps(_mm256_sqrt_ps(second), root2);
        const __m256 change = _mm256_div_ps(first, _mm256_add_ps(spread, eps));
        bon_store_first(m + i, left, first);
        bon_store_first(v + i, left, second);
        bon_store_first(w + i, left, _mm256_fnmadd_ps(size, change, decayed));
    }
}

void bon_adamw_step(const bon_adamw *o, uint64_t step, float grad_scale, float *w,
                    const float *g, float *m, float *v, size_t count, int threads)
{
    const constants c = constants_of(o, step, grad_scale);
    const long blocks = (long)((count + BLOCK - 1) / BLOCK);
    const bool serial = threads == 1 || count < BON_PARALLEL_ABOVE;
#pragma omp parallel for num_threads(threads) schedule(static) if (!serial)
    for (long b = 0; b < blocks; b++) {
        const size_t i = (size_t)b * BLOCK;
        step_block(&c, w + i, g + i, m + i, v + i, smaller(BLOCK, count - i));
    }
}

/* -- the norm -------------------------------------------------------------- */

#define PARTS 512 /* most parts that are summed by themselves, whatever the threads */

/* A square of a float is exact in double, also in a fused multiply-add. */
static inline void add_squares(bon_sum8 *sum, __m256 x)
{
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    sum->low = _mm256_fmadd_pd(low, low, sum->low);
    sum->high = _mm256_fmadd_pd(high, high, sum->high);
}

static double sum_part(const float *g, size_t count)
{
    bon_sum8 even = bon_sum8_zero(), odd = bon_sum8_zero();
    size_t i = 0;
    for (; i + 2 * BON_LANES <= count; i += 2 * BON_LANES) {
        add_squares(&even, _mm256_loadu_ps(g + i));
        add_squares(&odd, _mm256_loadu_ps(g + i + BON_LANES));
    }
    for (; i < count; i += BON_LANES) add_squares(&even, bon_load_first(g + i, count - i, 0.0f));
    return bon_sum8_total(&even) + bon_sum8_total(&odd);
}

double bon_sum_squares(const float *g, size_t count, int threads)
{
    const size_t blocks = (count + BLOCK - 1) / BLOCK;
    const size_t part = (blocks + PARTS - 1) / PARTS * BLOCK; /* elements */
    const bool serial = threads == 1 || count < BON_PARALLEL_ABOVE;
    double sums[PARTS] = {0}, total = 0.0;
#pragma omp parallel for num_threads(threads) schedule(static) if (!serial)
    for (long p = 0; p < PARTS; p++) {
        const size_t i = (size_t)p * part;
        if (i < count) sums[p] = sum_part(g + i, smaller(part, count - i));
    }
    for (size_t p = 0; p < PARTS; p++) total += sums[p];
    return total;
}
