/* test_adamw.c - AdamW against torch's formula in scalar double; sums against long double. */
#include "adamw.h"
#include "check.h"

#include <float.h>
#include <stdbool.h>
#include <string.h>

static uint32_t state = 1;

static float noise(void) /* in [-1, 1) */
{
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

static float *noise_array(size_t count, float size)
{
    float *x = malloc((count + 1) * sizeof *x);
    CHECK(x);
    for (size_t i = 0; i < count; i++) x[i] = size * noise();
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

/* -- the step ---------------------------------------------------------------- */

typedef struct {
    double w, m, v;
} element;

/* torch.optim.adamw._single_tensor_adamw, line by line, for one element. */
static void scalar_step(const bon_adamw *o, uint64_t step, double g, element *e)
{
    e->w *= 1.0 - o->lr * o->weight_decay;
    e->m += (g - e->m) * (1.0 - o->beta1);
    e->v = e->v * o->beta2 + (1.0 - o->beta2) * g * g;
    const double correction1 = 1.0 - pow(o->beta1, (double)step);
    const double correction2 = 1.0 - pow(o->beta2, (double)step);
    const double step_size = o->lr / correction1;
    const double spread = sqrt(e->v) / sqrt(correction2) + o->eps;
    e->w += -step_size * (e->m / spread);
}

static void check_steps(const bon_adamw *o, uint64_t first, float grad_scale, float size)
{
    enum { COUNT = 1003, STEPS = 20 };
    float *w = noise_array(COUNT, 1.0f), *m = zeros(COUNT), *v = zeros(COUNT);
    element *want = calloc(COUNT, sizeof *want);
    CHECK(want);
    for (size_t i = 0; i < COUNT; i++) want[i].w = (double)w[i];
    for (uint64_t step = first; step < first + STEPS; step++) {
        float *g = noise_array(COUNT, size);
        for (size_t i = 0; i < COUNT; i++)
            scalar_step(o, step, (double)g[i] * (double)grad_scale, &want[i]);
        bon_adamw_step(o, step, grad_scale, w, g, m, v, COUNT, 1);
        free(g);
    }
    const double gradient = (double)(size * grad_scale);
    const double far = STEPS * o->lr / (1.0 - pow(o->beta1, (double)first)); /* the longest way */
    for (size_t i = 0; i < COUNT; i++) {
        CHECK(fabs((double)w[i] - want[i].w) <= 1e-5 * far + STEPS * 1.2e-7);
        CHECK(fabs((double)m[i] - want[i].m) <= 4e-7 * gradient);
        CHECK(fabs((double)v[i] - want[i].v) <= 4e-6 * want[i].v);
    }
    free(w);
    free(m);
    free(v);
    free(want);
}

static void test_twenty_steps_are_those_of_torch(void)
{
    const bon_adamw usual = {1e-4, 0.9, 0.999, 1e-8, 0.01};
    const bon_adamw other = {3e-2, 0.8, 0.95, 1e-3, 0.5};
    const bon_adamw plain = {1e-3, 0.0, 0.0, 1e-8, 0.0};
    check_steps(&usual, 1, 1.0f, 1.0f);
    check_steps(&usual, 1, 0.37f, 1e-3f);
    check_steps(&usual, 1000000, 1.0f, 1e-6f);
    check_steps(&other, 1, 1.0f, 10.0f);
    check_steps(&plain, 1, 1.0f, 1.0f);
}

/* By hand: m = .1 g, v = .001 g^2, both corrected back to g and g^2. */
static void test_first_step_is_lr_in_the_direction_of_the_gradient(void)
{
    const bon_adamw o = {0.125, 0.9, 0.999, 1e-12, 0.5};
    float w[] = {1.0f, 1.0f, 0.0f}, m[3] = {0}, v[3] = {0};
    const float g[] = {4.0f, -1e-3f, 0.0f};
    bon_adamw_step(&o, 1, 1.0f, w, g, m, v, 3, 1);
    CHECK(fabsf(w[0] - (0.9375f - 0.125f)) < 1e-6f);
    CHECK(fabsf(w[1] - (0.9375f + 0.125f)) < 1e-6f);
    CHECK(w[2] == 0.0f && m[2] == 0.0f && v[2] == 0.0f); /* as the padding of panels */
    CHECK(fabsf(m[0] - 0.4f) < 1e-6f && fabsf(v[0] - 0.016f) < 1e-7f);
    CHECK(g[0] == 4.0f);
}

static void test_elements_depend_neither_on_threads_nor_on_their_place(void)
{
    const bon_adamw o = {1e-3, 0.9, 0.95, 1e-8, 0.1};
    const size_t count = 100003;
    float *w = noise_array(count, 1.0f), *g = noise_array(count, 1.0f);
    float *m = noise_array(count, 0.1f), *v = noise_array(count, 0.1f);
    for (size_t i = 0; i < count; i++) v[i] *= v[i];
    float *got[3], *want[3], *const start[3] = {w, m, v};
    for (size_t a = 0; a < 3; a++) {
        got[a] = zeros(count);
        want[a] = zeros(count);
        memcpy(want[a], start[a], count * sizeof(float));
    }
    for (size_t i = 0; i < count; i++) /* one by one */
        bon_adamw_step(&o, 7, 0.5f, want[0] + i, g + i, want[1] + i, want[2] + i, 1, 1);
    for (int threads = 1; threads <= 3; threads++) {
        for (size_t a = 0; a < 3; a++) memcpy(got[a], start[a], count * sizeof(float));
        bon_adamw_step(&o, 7, 0.5f, got[0], g, got[1], got[2], count, threads);
        for (size_t a = 0; a < 3; a++) CHECK(same(got[a], want[a], count));
    }
    for (size_t a = 0; a < 3; a++) {
        free(got[a]);
        free(want[a]);
        free(start[a]);
    }
    free(g);
}

/* -- the norm ------------------------------------------------------------------ */

static void check_sum(size_t count)
{
    float *g = noise_array(count, 1.0f);
    long double want = 0.0L;
    for (size_t i = 0; i < count; i++) want += (long double)g[i] * (long double)g[i];
    const double sum = bon_sum_squares(g, count, 1);
    CHECK(fabsl((long double)sum - want) <= 1e-13L * want);
    for (int threads = 2; threads <= 5; threads++) CHECK(bon_sum_squares(g, count, threads) == sum);
    free(g);
}

static void test_sum_of_squares_is_right_and_the_same_for_any_threads(void)
{
    const size_t counts[] = {0, 1, 7, 8, 9, 17, 16384, 16385, 100000, 9000001};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) check_sum(counts[i]);
}

static void test_squares_neither_overflow_nor_vanish(void)
{
    const float large[] = {FLT_MAX, -FLT_MAX}, small[] = {FLT_MIN, FLT_MIN, FLT_MIN, FLT_MIN};
    CHECK(bon_sum_squares(large, 2, 1) == 2.0 * (double)FLT_MAX * (double)FLT_MAX);
    CHECK(bon_sum_squares(small, 4, 1) == 4.0 * (double)FLT_MIN * (double)FLT_MIN);
    const float broken[] = {1.0f, NAN};
    CHECK(isnan(bon_sum_squares(broken, 2, 1)));
}

int main(void)
{
    test_twenty_steps_are_those_of_torch();
    test_first_step_is_lr_in_the_direction_of_the_gradient();
    test_elements_depend_neither_on_threads_nor_on_their_place();
    test_sum_of_squares_is_right_and_the_same_for_any_threads();
    test_squares_neither_overflow_nor_vanish();
    return 0;
}
