/* test_vecmath.c - the vector mathematics against the C library in double. */
#include "vecmath.h"

#include <float.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "check.h"
#include "gemm.h"

#define MAX_LEN 1200

/* Distance in units in the last place of the exact value. */
static double ulps(float got, double want)
{
    const float nearest = (float)want;
    const float ulp = nextafterf(fabsf(nearest), INFINITY) - fabsf(nearest);
    return fabs((double)got - want) / (double)ulp;
}

static uint64_t random_state = 1;

static double uniform(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(random_state >> 11) * 0x1p-53;
}

static float uniform_in(float low, float high)
{
    return low + (high - low) * (float)uniform();
}

typedef enum { EXP, TANH, SILU, GELU } function;

static void apply(function f, float *x)
{
    float ones[BON_LANES];
    for (size_t i = 0; i < BON_LANES; i++) ones[i] = 1.0f;
    switch (f) {
    case EXP: _mm256_storeu_ps(x, bon_exp8(_mm256_loadu_ps(x))); break;
    case TANH: _mm256_storeu_ps(x, bon_tanh8(_mm256_loadu_ps(x))); break;
    case SILU: bon_vec_silu_mul(x, ones, BON_LANES); break;
    case GELU: bon_vec_gelu_tanh_mul(x, ones, BON_LANES); break;
    }
}

static double exact(function f, double x)
{
    const double root = sqrt(2.0 / acos(-1.0));
    switch (f) {
    case EXP: return exp(x);
    case TANH: return tanh(x);
    case SILU: return x / (1.0 + exp(-x));
    case GELU: return x / (1.0 + exp(-2.0 * root * (x + 0.044715 * x * x * x)));
    }
    return NAN;
}

/* Largest error in ulp over points spread evenly, and over sizes spread evenly in
 * the logarithm down to 1e-30. */
static double largest_error(function f, float low, float high)
{
    double worst = 0.0;
    for (int step = 0; step < 50000; step++) {
        float x[BON_LANES], y[BON_LANES];
        for (size_t i = 0; i < BON_LANES; i++) {
            const float even = uniform_in(low, high);
            x[i] = i % 2 ? even : even * powf(10.0f, uniform_in(-30.0f, 0.0f));
        }
        memcpy(y, x, sizeof y);
        apply(f, y);
        for (size_t i = 0; i < BON_LANES; i++) {
            const double want = exact(f, (double)x[i]);
            if (fabs(want) < (double)FLT_MIN) continue;
            worst = fmax(worst, ulps(y[i], want));
            if (f == GELU) CHECK(fabs((double)y[i] - want) <= 0x1p-22 * fabs((double)x[i]));
        }
    }
    return worst;
}

static void functions_keep_their_stated_accuracy(void)
{
    const double e = largest_error(EXP, -87.33f, 88.72f);
    const double t = fmax(largest_error(TANH, -1.5f, 1.5f), largest_error(TANH, -20.0f, 20.0f));
    const double s = largest_error(SILU, -80.0f, 80.0f);
    const double g = largest_error(GELU, -5.0f, 5.0f);
    printf("  largest error in ulp: exp %.3f, tanh %.3f, silu %.3f, gelu_tanh %.3f\n", e, t, s, g);
    CHECK(e <= 1.5 && t <= 2.0 && s <= 3.0 && g <= 64.0);
}

static void exp_is_exact_at_the_ends(void)
{
    const float x[BON_LANES] = {0.0f, -0.0f, -INFINITY, INFINITY, NAN, -88.0f, 88.73f, -1e30f};
    float y[BON_LANES];
    memcpy(y, x, sizeof y);
    apply(EXP, y);
    CHECK(y[0] == 1.0f && y[1] == 1.0f && y[2] == 0.0f && isinf(y[3]) && isnan(y[4]));
    CHECK(y[5] == 0.0f && isinf(y[6]) && y[7] == 0.0f);

    float ends[BON_LANES] = {88.7228317f, -87.3365402f, 1e30f};
    apply(EXP, ends);
    CHECK(isfinite(ends[0]) && ends[0] > 3.4e38f);
    CHECK(ends[1] >= FLT_MIN && ends[1] < 1.0001f * FLT_MIN);
    CHECK(isinf(ends[2]));

    union {
        uint32_t bits;
        float value;
    } payload = {0x7fc00080u}; /* its low bits would move the exponent */
    float nan[BON_LANES] = {payload.value};
    apply(EXP, nan);
    CHECK(isnan(nan[0]));
}

static void exp_is_right_at_every_change_of_exponent(void)
{
    for (int n = -125; n <= 127; n++) {
        const float border = (float)((n + 0.5) * log(2.0));
        float x[BON_LANES], y[BON_LANES];
        x[0] = border;
        for (size_t i = 1; i < BON_LANES; i++)
            x[i] = nextafterf(x[i - 1], i % 2 ? INFINITY : -INFINITY) + (float)i * 1e-6f;
        memcpy(y, x, sizeof y);
        apply(EXP, y);
        for (size_t i = 0; i < BON_LANES; i++)
            if (x[i] <= 88.72f) CHECK(ulps(y[i], exp((double)x[i])) <= 2.0);
    }
}

static void tanh_keeps_sign_and_limits(void)
{
    float x[BON_LANES] = {0.0f, -0.0f, 30.0f, -30.0f, INFINITY, -INFINITY, NAN, 1e-38f};
    apply(TANH, x);
    CHECK(x[0] == 0.0f && x[1] == 0.0f && signbit(x[1]));
    CHECK(x[2] == 1.0f && x[3] == -1.0f && x[4] == 1.0f && x[5] == -1.0f);
    CHECK(isnan(x[6]) && x[7] == 1e-38f);
}

static void activations_of_large_arguments_are_their_limits(void)
{
    float silu[BON_LANES] = {1e4f, -1e4f, 0.0f}, gelu[BON_LANES] = {1e4f, -1e4f, 0.0f};
    apply(SILU, silu);
    apply(GELU, gelu);
    CHECK(silu[0] == 1e4f && silu[1] == 0.0f && silu[2] == 0.0f);
    CHECK(gelu[0] == 1e4f && gelu[1] == 0.0f && gelu[2] == 0.0f);
}

/* -- rows ------------------------------------------------------------------ */

static void reductions_match_double_for_every_length(void)
{
    float x[MAX_LEN], e[MAX_LEN];
    for (size_t n = 0; n <= 200; n++) {
        double squares = 0.0, exps = 0.0;
        float largest = -INFINITY;
        for (size_t i = 0; i < n; i++) {
            e[i] = x[i] = uniform_in(-9.0f, 9.0f);
            if (i % 17 == 3) e[i] = x[i] = -INFINITY;
            if (isfinite(x[i])) squares += (double)x[i] * (double)x[i];
            exps += exp((double)x[i] - 2.5);
            largest = fmaxf(largest, x[i]);
        }
        CHECK(bon_vec_max(x, n) == largest);
        const double sum = (double)bon_vec_exp_sum(e, n, 2.5f);
        CHECK(fabs(sum - exps) <= 1e-6 * exps);
        for (size_t i = 0; i < n; i++) {
            CHECK(fabs((double)e[i] - exp((double)x[i] - 2.5)) <= 1e-6 * (double)e[i]);
            if (!isfinite(x[i])) x[i] = 0.0f;
        }
        CHECK(fabs(bon_vec_dot(x, x, n) - squares) <= 2e-7 * squares);
    }
}

static void rounding_to_bfloat16_is_that_of_one_number(void)
{
    const uint32_t some[] = {0, 0x80000000u, 0x3f808000u, 0x3f818000u, 0x3f818001u, 0x3f7fffffu,
                             0x7f7fffffu, 0x7f800000u, 0xff800000u, 0x7fc00000u, 0x7f800001u,
                             0xffffffffu, 1, 0x8000u, 0x18000u};
    float x[sizeof some / sizeof *some];
    uint16_t got[sizeof some / sizeof *some];
    memcpy(x, some, sizeof some);
    for (size_t n = 0; n <= sizeof some / sizeof *some; n++) {
        memset(got, 0x55, sizeof got);
        bon_vec_scale_bf16(x, n, 1.0f, got);
        for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
            const uint16_t want = i < n ? bon_f32_to_bf16(x[i] * 1.0f) : 0x5555;
            CHECK(got[i] == want);
        }
    }
}

static void weights_in_bfloat16_and_their_sum(void)
{
    for (size_t n = 0; n <= 200; n++) {
        float x[240], e[240];
        uint16_t apart[240];
        for (size_t i = 0; i < 240; i++) x[i] = e[i] = uniform_in(-12.0f, 2.5f);
        if (n > 3) x[2] = e[2] = -INFINITY;
        bon_vec_exp_sum(e, n, 2.5f);
        const float sum = bon_vec_exp_sum_bf16(x, n, 2.5f, apart);
        double want = 0.0;
        for (size_t i = 0; i < n; i++) {
            CHECK(apart[i] == bon_f32_to_bf16(e[i]));
            want += (double)bon_bf16_to_f32(apart[i]);
        }
        CHECK(fabs((double)sum - want) <= 2e-7 * want);
        for (size_t before = 0; before < 40; before += 13) { /* in place, and to a place before */
            float row[240];
            memcpy(row + before, x, n * sizeof *x);
            uint16_t *out = (uint16_t *)(void *)row + before;
            CHECK(bon_vec_exp_sum_bf16(row + before, n, 2.5f, out) == sum);
            CHECK(memcmp(out, apart, n * sizeof *apart) == 0);
        }
    }
}

static void long_sums_of_equal_terms_do_not_drift(void)
{
    const size_t n = 1 << 20;
    float *x = malloc(n * sizeof *x);
    CHECK(x != NULL);
    for (size_t i = 0; i < n; i++) x[i] = -2.302585f;
    const double want = (double)n * exp((double)-2.302585f);
    CHECK(fabs((double)bon_vec_exp_sum(x, n, 0.0f) - want) <= 4e-7 * want);
    for (size_t i = 0; i < n; i++) x[i] = 0.1f;
    const double squares = (double)n * (double)0.1f * (double)0.1f;
    CHECK(fabs(bon_vec_dot(x, x, n) - squares) <= 2e-7 * squares);
    free(x);
}

static void softmax_sums_to_one_and_keeps_ratios(void)
{
    for (size_t n = 1; n <= 100; n++) {
        float x[100], p[100];
        for (size_t i = 0; i < n; i++) p[i] = x[i] = uniform_in(-60.0f, 60.0f);
        if (n > 4) p[2] = x[2] = -INFINITY;
        bon_vec_softmax(p, n);
        double sum = 0.0, exps = 0.0;
        const double largest = (double)bon_vec_max(x, n);
        for (size_t i = 0; i < n; i++) exps += exp((double)x[i] - largest);
        for (size_t i = 0; i < n; i++) {
            const double want = exp((double)x[i] - largest) / exps;
            CHECK(fabs((double)p[i] - want) <= 1e-5 * want + 1e-37);
            sum += (double)p[i];
        }
        CHECK(fabs(sum - 1.0) <= 1e-6);
        if (n > 4) CHECK(p[2] == 0.0f);
    }
}

static void softcap_matches_double(void)
{
    const float caps[] = {1.0f, 30.0f, 50.0f};
    for (size_t c = 0; c < 3; c++)
        for (size_t n = 0; n <= 40; n++) {
            float x[40], y[40];
            for (size_t i = 0; i < n; i++) y[i] = x[i] = uniform_in(-200.0f, 200.0f);
            bon_vec_softcap(y, n, caps[c]);
            for (size_t i = 0; i < n; i++) {
                const double cap = (double)caps[c], want = cap * tanh((double)x[i] / cap);
                CHECK(fabs((double)y[i] - want) <= 5e-7 * fabs(want));
            }
        }
}

static void gates_multiply_by_up(void)
{
    for (size_t n = 0; n <= 40; n++) {
        float g[40], up[40], silu[40], gelu[40];
        for (size_t i = 0; i < n; i++) {
            silu[i] = gelu[i] = g[i] = uniform_in(-4.0f, 4.0f);
            up[i] = uniform_in(-3.0f, 3.0f);
        }
        bon_vec_silu_mul(silu, up, n);
        bon_vec_gelu_tanh_mul(gelu, up, n);
        for (size_t i = 0; i < n; i++) {
            const double want_silu = exact(SILU, (double)g[i]) * (double)up[i];
            const double want_gelu = exact(GELU, (double)g[i]) * (double)up[i];
            CHECK(fabs((double)silu[i] - want_silu) <= 6e-7 * fabs(want_silu));
            CHECK(fabs((double)gelu[i] - want_gelu) <= 1e-6 * fabs(want_gelu) + 1e-30);
        }
    }
}

static void rmsnorm_matches_double_also_in_place(void)
{
    for (size_t n = 1; n <= 130; n++)
        for (int offset = 0; offset <= 1; offset++) {
            float x[130], w[130], y[130];
            double squares = 0.0;
            for (size_t i = 0; i < n; i++) {
                x[i] = uniform_in(-5.0f, 5.0f);
                w[i] = uniform_in(-1.0f, 1.0f);
                squares += (double)x[i] * (double)x[i];
            }
            bon_vec_rmsnorm(y, x, w, n, 1e-5f, (float)offset);
            const double scale = 1.0 / sqrt(squares / (double)n + (double)1e-5f);
            for (size_t i = 0; i < n; i++) {
                const double want = (double)x[i] * scale * ((double)w[i] + offset);
                CHECK(fabs((double)y[i] - want) <= 4e-7 * (fabs((double)x[i]) * scale));
            }
            bon_vec_rmsnorm(x, x, w, n, 1e-5f, (float)offset);
            CHECK(memcmp(x, y, n * sizeof *x) == 0);
        }
}

static void results_do_not_depend_on_the_address(void)
{
    float a[MAX_LEN], b[MAX_LEN], at_zero[300];
    for (size_t i = 0; i < 300; i++) at_zero[i] = uniform_in(-9.0f, 9.0f);
    memcpy(a, at_zero, sizeof at_zero);
    const float sum = bon_vec_exp_sum(a, 300, 1.0f);
    for (size_t shift = 1; shift < 20; shift++) {
        for (size_t i = 0; i < MAX_LEN; i++) b[i] = uniform_in(-1.0f, 1.0f);
        memcpy(b + shift, at_zero, sizeof at_zero);
        CHECK(bon_vec_exp_sum(b + shift, 300, 1.0f) == sum);
        CHECK(memcmp(a, b + shift, sizeof at_zero) == 0);
    }
}

int main(void)
{
    functions_keep_their_stated_accuracy();
    exp_is_exact_at_the_ends();
    exp_is_right_at_every_change_of_exponent();
    tanh_keeps_sign_and_limits();
    activations_of_large_arguments_are_their_limits();
    reductions_match_double_for_every_length();
    rounding_to_bfloat16_is_that_of_one_number();
    weights_in_bfloat16_and_their_sum();
    long_sums_of_equal_terms_do_not_drift();
    softmax_sums_to_one_and_keeps_ratios();
    softcap_matches_double();
    gates_multiply_by_up();
    rmsnorm_matches_double_also_in_place();
    results_do_not_depend_on_the_address();
    return 0;
}
