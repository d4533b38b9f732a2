/* test_sample.c - the sampler against sorting in double; `test_sample speed` times it. */
#define _POSIX_C_SOURCE 199309L
#include "sample.h"

#include <float.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "check.h"
#include "rng.h"

#define LARGEST_VOCAB ((size_t)1 << 18)
#define GUARD 64
#define U_MAX (1.0 - 0x1p-53)

static const bon_sampling plain = {1.0f, 0, 1.0, 0.0};

static float logits[LARGEST_VOCAB];
static uint64_t draws_so_far;

static double uniform(void)
{
    return bon_rng_uniform(&(bon_rng_key){.seed = 7}, draws_so_far++);
}

static float normal(void)
{
    const double radius = sqrt(-2.0 * log(1.0 - uniform()));
    return (float)(radius * cos(2.0 * acos(-1.0) * uniform()));
}

static void fill(float x, size_t vocab)
{
    for (size_t i = 0; i < vocab; i++) logits[i] = x;
}

static void fill_normal(float spread, size_t vocab)
{
    for (size_t i = 0; i < vocab; i++) logits[i] = spread * normal();
}

/* Draws with scratch of exactly the stated size, full of 0xFF (NaN), and looks behind it. */
static bon_status try_draw(size_t vocab, bon_sampling how, double u, bon_draw *out)
{
    const size_t bytes = bon_sample_scratch(vocab);
    unsigned char *scratch = aligned_alloc(64, (bytes + GUARD + 63) / 64 * 64);
    CHECK(scratch != NULL);
    memset(scratch, 0xFF, bytes);
    memset(scratch + bytes, 0xA5, GUARD);
    const bon_status status = bon_sample_token(logits, vocab, &how, u, scratch, out);
    for (size_t i = 0; i < GUARD; i++) CHECK(scratch[bytes + i] == 0xA5);
    free(scratch);
    return status;
}

static bon_draw draw(size_t vocab, bon_sampling how, double u)
{
    bon_draw out;
    CHECK(try_draw(vocab, how, u, &out) == BON_OK);
    return out;
}

/* -- reference --------------------------------------------------------------- */

#define SMALL_VOCAB 1100
#define NEAR 1e-6

typedef struct {
    size_t vocab, kept;
    bool ambiguous;            /* a token lies within NEAR of the border of top-p or min-p */
    bool keep[SMALL_VOCAB];
    double logp[SMALL_VOCAB];  /* nats, T = 1, all tokens */
    double share[SMALL_VOCAB]; /* probability after all steps */
    double certainty;
} reference;

static int by_falling_logit(const void *a, const void *b)
{
    const size_t i = *(const size_t *)a, j = *(const size_t *)b;
    if (logits[i] != logits[j]) return logits[i] < logits[j] ? 1 : -1;
    return i < j ? -1 : 1;
}

static double log_sum_exp(size_t vocab, double temperature, double largest)
{
    double sum = 0.0;
    for (size_t i = 0; i < vocab; i++) sum += exp(((double)logits[i] - largest) / temperature);
    return largest / temperature + log(sum);
}

static void reference_top_p(reference *r, const size_t *order, double p)
{
    double total = 0.0, before = 0.0;
    for (size_t i = 0; i < r->kept; i++) total += r->share[order[i]];
    size_t kept = 0;
    for (; kept < r->kept && before < p * total; kept++) {
        before += r->share[order[kept]];
        r->ambiguous |= fabs(before - p * total) < NEAR * total;
    }
    r->kept = kept;
}

static reference refer(size_t vocab, bon_sampling how)
{
    reference r = {.vocab = vocab};
    size_t order[SMALL_VOCAB];
    for (size_t i = 0; i < vocab; i++) order[i] = i;
    qsort(order, vocab, sizeof *order, by_falling_logit);
    const double largest = (double)logits[order[0]], temperature = (double)how.temperature;

    const double level = log_sum_exp(vocab, 1.0, largest);
    size_t finite = 0;
    double mean = 0.0;
    for (size_t i = 0; i < vocab; i++) {
        r.logp[i] = (double)logits[i] - level;
        r.share[i] = exp(((double)logits[i] - largest) / temperature);
        if (!isinf(logits[i])) {
            mean += r.logp[i];
            finite++;
        }
    }
    r.certainty = -(mean / (double)finite + log((double)finite));

    r.kept = finite;
    if (how.top_k > 0 && (size_t)how.top_k < finite)
        for (r.kept = (size_t)how.top_k;
             r.kept < finite && logits[order[r.kept]] == logits[order[how.top_k - 1]];)
            r.kept++;
    if (how.top_p < 1.0) reference_top_p(&r, order, how.top_p);
    for (size_t i = 0; i < r.kept; i++) {
        const double share = r.share[order[i]];
        r.ambiguous |= how.min_p > 0.0 && how.min_p < 1.0 && fabs(share - how.min_p) < NEAR;
        if (share < how.min_p) r.kept = i;
    }

    double total = 0.0;
    for (size_t i = 0; i < r.kept; i++) {
        r.keep[order[i]] = true;
        total += r.share[order[i]];
    }
    for (size_t i = 0; i < vocab; i++) r.share[i] = r.keep[i] ? r.share[i] / total : 0.0;
    return r;
}

static bool close_to(float got, double want)
{
    return fabs((double)got - want) <= 3e-6 + 1e-7 * fabs(want);
}

/* One draw against the reference at u: the token whose interval of the cumulative
 * distribution holds u, or its neighbour if u is within NEAR of the border. */
static void check_draw(const reference *r, bon_sampling how, double u)
{
    const bon_draw got = draw(r->vocab, how, u);
    const size_t token = (size_t)got.token;
    CHECK(token < r->vocab && r->keep[token]);
    double before = 0.0;
    for (size_t i = 0; i < token; i++) before += r->share[i];
    CHECK(before <= u + NEAR && u <= before + r->share[token] + NEAR);
    CHECK(close_to(got.logp, r->logp[token]));
    CHECK(close_to(got.sampled_logp, log(r->share[token])));
    CHECK(close_to(got.certainty, r->certainty));
}

/* Every kept token is drawn in the middle of its interval (a sample of them when there
 * are many); its sampled_logp tells the mass of the kept set, so no other token is in. */
static void check_row(size_t vocab, bon_sampling how)
{
    const reference r = refer(vocab, how);
    if (r.ambiguous) return;
    double before = 0.0;
    const double visit = r.kept > 12 ? 12.0 / (double)r.kept : 1.0;
    for (size_t i = 0; i < vocab; i++) {
        if (r.share[i] > 4 * NEAR && uniform() < visit) {
            const double middle = before + 0.5 * r.share[i];
            CHECK((size_t)draw(vocab, how, middle).token == i);
            check_draw(&r, how, middle);
        }
        before += r.share[i];
    }
    check_draw(&r, how, 0.0);
    check_draw(&r, how, U_MAX);
    check_draw(&r, how, uniform());
}

static void fill_kind(int kind, size_t vocab)
{
    for (size_t i = 0; i < vocab; i++) {
        logits[i] = 2.5f * normal();
        if (kind == 1) logits[i] = roundf(logits[i]);              /* many ties */
        if (kind == 2) logits[i] = 100.0f + 1e-4f * logits[i];     /* nearly uniform */
        if (kind == 3 && uniform() < 0.4) logits[i] = -INFINITY;   /* banned */
        if (kind == 4) logits[i] = -30.0f * logf((float)(1 + i));  /* sorted, steep */
    }
    if (kind == 3) logits[vocab / 2] = 3.0f;
}

static void draws_match_sorting_in_double_for_all_options(void)
{
    const size_t vocabs[] = {1, 2, 3, 7, 8, 33, 100, 513, SMALL_VOCAB};
    const float temperatures[] = {1e-3f, 0.5f, 1.0f, 1.7f, 50.0f};
    const double top_p[] = {1.0, 0.999, 0.9, 0.3, 1e-6}, min_p[] = {0.0, 0.02, 0.4, 1.0};
    size_t rows = 0;
    for (size_t v = 0; v < sizeof vocabs / sizeof *vocabs; v++) {
        const size_t vocab = vocabs[v];
        const int32_t top_k[] = {0, 1, 2, 5, 40, (int32_t)vocab, (int32_t)vocab + 3};
        for (int kind = 0; kind < 5; kind++)
            for (size_t t = 0; t < 5; t++)
                for (size_t k = 0; k < 7; k++)
                    for (size_t p = 0; p < 5; p++)
                        for (size_t m = 0; m < 4; m++) {
                            if (vocab > 100 && uniform() < 0.9) continue;
                            fill_kind(kind, vocab);
                            check_row(vocab, (bon_sampling){temperatures[t], top_k[k],
                                                            top_p[p], min_p[m]});
                            rows++;
                        }
    }
    printf("  %zu rows\n", rows);
}

/* -- single rules ------------------------------------------------------------ */

static size_t count_kept(size_t vocab, bon_sampling how)
{
    size_t kept = 0, steps = 4096;
    bool seen[64] = {false};
    CHECK(vocab <= 64);
    for (size_t i = 0; i < steps; i++) {
        const size_t token = (size_t)draw(vocab, how, (double)i / (double)steps).token;
        kept += !seen[token];
        seen[token] = true;
    }
    return kept;
}

static void top_k_keeps_all_ties_with_the_kth(void)
{
    const float row[] = {1, 3, 2, 2, 0, 2, 1};
    memcpy(logits, row, sizeof row);
    const size_t want[] = {7, 1, 4, 4, 4, 6, 6, 7, 7};
    for (int32_t k = 0; k <= 8; k++)
        CHECK(count_kept(7, (bon_sampling){1.0f, k, 1.0, 0.0}) == want[k]);
}

static void top_p_of_equal_logits_keeps_the_lowest_ids(void)
{
    fill(0.25f, 10);
    for (int tenths = 1; tenths <= 10; tenths++) {
        const bon_sampling how = {1.0f, 0, tenths / 10.0, 0.0};
        CHECK(count_kept(10, how) == (size_t)tenths);
        CHECK(draw(10, how, U_MAX).token == tenths - 1);
    }
    CHECK(count_kept(10, (bon_sampling){1.0f, 0, 0.35, 0.0}) == 4);
}

/* Hugging Face's order: top-p sees the distribution that top-k left. */
static void top_p_is_taken_of_what_top_k_left(void)
{
    const double p[] = {0.4, 0.3, 0.2, 0.1};
    for (size_t i = 0; i < 4; i++) logits[i] = (float)log(p[i]);
    CHECK(count_kept(4, (bon_sampling){1.0f, 0, 0.55, 0.0}) == 2); /* 0.4 < 0.55 */
    CHECK(count_kept(4, (bon_sampling){1.0f, 2, 0.55, 0.0}) == 1); /* 0.4 / 0.7 > 0.55 */
    CHECK(count_kept(4, (bon_sampling){1.0f, 0, 0.95, 0.6}) == 2); /* 0.2 / 0.4 < 0.6 */
}

static void temperature_zero_takes_the_lowest_of_the_largest(void)
{
    for (size_t vocab = 1; vocab <= 70; vocab++)
        for (size_t first = 0; first < vocab; first++) {
            fill(-1.0f, vocab);
            logits[first] = logits[vocab - 1] = 2.0f;
            const bon_draw got = draw(vocab, (bon_sampling){0.0f, 3, 0.5, 0.1}, 0.99);
            CHECK((size_t)got.token == first && got.sampled_logp == 0.0f);
            const double others = (double)vocab - (first == vocab - 1 ? 1.0 : 2.0);
            const double sum = (first == vocab - 1 ? 1.0 : 2.0) + others * exp(-3.0);
            CHECK(close_to(got.logp, -log(sum)));
        }
}

static void one_token_left_has_probability_one(void)
{
    fill_normal(3.0f, 500);
    logits[123] = 40.0f;
    const bon_sampling hows[] = {{0.7f, 1, 1.0, 0.0}, {1.0f, 0, 1e-9, 0.0}, {2.0f, 0, 1.0, 1.0},
                                 {1e-30f, 0, 1.0, 0.0}, {FLT_TRUE_MIN, 0, 0.5, 0.5}};
    for (size_t i = 0; i < 5; i++)
        for (int u = 0; u < 5; u++) {
            const bon_draw got = draw(500, hows[i], u == 4 ? U_MAX : u * 0.25);
            CHECK(got.token == 123 && got.sampled_logp == 0.0f);
        }
}

static void banned_and_weightless_tokens_are_never_drawn(void)
{
    const double us[] = {0.0, 0x1p-53, 0.5, U_MAX};
    for (size_t vocab = 3; vocab < 1500; vocab += 97)
        for (size_t at = 1; at + 1 < vocab; at += 61)
            for (int banned = 0; banned <= 1; banned++)
                for (size_t i = 0; i < 4; i++) {
                    fill(banned ? -INFINITY : -200.0f, vocab);
                    logits[at] = 1.0f;
                    CHECK((size_t)draw(vocab, plain, us[i]).token == at);
                    const bon_sampling hot = {1.5f, 0, 1.0 - 0x1p-53, 0.0};
                    CHECK((size_t)draw(vocab, hot, us[i]).token == at);
                }
}

/* The blocks' sums, rounded and taken off one by one, often leave something of it. */
static void the_largest_u_draws_the_last_token_with_weight(void)
{
    const size_t vocab = 100000, allowed = 90000;
    for (int row = 0; row < 40; row++) {
        fill_normal(4.0f, vocab);
        for (size_t i = allowed; i < vocab; i++) logits[i] = -INFINITY;
        logits[allowed - 1] = 15.0f;
        CHECK((size_t)draw(vocab, plain, U_MAX).token == allowed - 1);
        CHECK((size_t)draw(vocab, (bon_sampling){1.0f, 95000, 1.0, 0.0}, U_MAX).token
              == allowed - 1);
    }
}

static void min_p_compares_logits_exactly(void)
{
    for (int i = 1; i < 200; i++) {
        const double min_p = i / 200.0, border = 2.0 + 0.5 * log(min_p);
        fill(-9.0f, 40);
        logits[3] = 2.0f;
        logits[20] = (float)border;
        const size_t want = (double)logits[20] >= border ? 2 : 1;
        CHECK(count_kept(40, (bon_sampling){0.5f, 0, 1.0, min_p}) == want);
    }
}

static void certainty_counts_the_tokens_that_are_not_banned(void)
{
    for (size_t vocab = 1; vocab < 1000; vocab += 7) {
        fill(3.25f, vocab);
        const float certainty = draw(vocab, plain, 0.5).certainty;
        CHECK(certainty >= 0.0f && certainty <= 1e-6f);
    }
    fill(3.25f, 1000);
    CHECK(fabsf(draw(1000, plain, 0.5).certainty) <= 1e-6f);
    for (size_t i = 0; i < 1000; i += 2) logits[i] = -INFINITY;
    CHECK(fabsf(draw(1000, plain, 0.5).certainty) <= 1e-6f);
    logits[501] += 1.0f; /* 1 of 500 */
    const double want = log(499.0 + exp(1.0)) - 1.0 / 500.0 - log(500.0);
    CHECK(fabs((double)draw(1000, plain, 0.5).certainty - want) <= 1e-6);
}

static void extreme_logits_and_temperatures_stay_finite(void)
{
    fill_normal(1.0f, 300);
    logits[7] = FLT_MAX;
    logits[8] = -FLT_MAX;
    const float temperatures[] = {FLT_TRUE_MIN, 1e-30f, 1e-3f, 1.0f, 1e30f, FLT_MAX};
    for (size_t t = 0; t < 6; t++)
        for (int32_t k = 0; k < 80; k += 20) {
            const bon_draw got = draw(300, (bon_sampling){temperatures[t], k, 0.9, 1e-6}, 0.3);
            CHECK(t > 3 || (got.token == 7 && got.logp == 0.0f));
            CHECK(!isnan(got.logp) && !isnan(got.sampled_logp) && !isnan(got.certainty));
        }
    fill_normal(1.0f, 300); /* neighbouring floats, hundreds of binary orders apart */
    for (int i = 0; i < 250; i++) logits[i] = ldexpf(1.0f, i - 140);
    for (size_t i = 0; i < 300; i++) logits[i] = i % 2 ? -logits[i] : logits[i];
    for (int32_t k = 1; k <= 300; k += 7)
        CHECK(draw(300, (bon_sampling){FLT_MAX, k, 1.0, 0.0}, 0.5).token >= 0);
}

/* -- accuracy ---------------------------------------------------------------- */

static double worst_error(size_t vocab, float temperature)
{
    const double largest = (double)logits[0]; /* any level near the largest will do */
    const double level = log_sum_exp(vocab, 1.0, largest);
    const double warm = log_sum_exp(vocab, (double)temperature, largest);
    double worst = 0.0;
    for (int i = 0; i < 8; i++) {
        const bon_draw got = draw(vocab, (bon_sampling){temperature, 0, 1.0, 0.0}, uniform());
        const double x = (double)logits[got.token], raw = x - level;
        const double sampled = x / (double)temperature - warm;
        worst = fmax(worst, fabs((double)got.logp - raw) - 0x1p-24 * fabs(raw));
        const double off = fabs((double)got.sampled_logp - sampled) - 0x1p-24 * fabs(sampled);
        worst = fmax(worst, temperature == 1.0f ? off : off / 3.0);
    }
    return worst;
}

/* The hardest rows: one token leads and all others share one weight, so that every
 * rounding is the same one and nothing averages out. */
static void logp_is_within_1e_6_of_double(void)
{
    const size_t vocabs[] = {50257, 128256, LARGEST_VOCAB};
    double worst = 0.0;
    for (size_t v = 0; v < 3; v++)
        for (int row = 0; row < 12; row++) {
            const float gap = 6.0f + 0.7137f * (float)row, temperature = row % 2 ? 1.0f : 0.7f;
            fill(23.4567f - gap, vocabs[v]);
            logits[0] = 23.4567f;
            worst = fmax(worst, worst_error(vocabs[v], temperature));
        }
    for (int kind = 0; kind < 3; kind++) {
        for (size_t i = 0; i < LARGEST_VOCAB; i++)
            logits[i] = kind == 0 ? 3.0f * normal()
                        : kind == 1 ? -50.0f + 100.0f * (float)uniform()
                                    : 49.9f;
        worst = fmax(worst, worst_error(LARGEST_VOCAB, 1.0f));
        worst = fmax(worst, worst_error(LARGEST_VOCAB, 1.3f));
    }
    printf("  largest error of logp: %.1e nats\n", worst);
    CHECK(worst <= 1e-6);
}

static void log_softmax_at_gives_the_same_bits_as_a_draw(void)
{
    const float temperatures[] = {1.0f, 0.6f};
    fill_normal(2.0f, 5000);
    logits[17] = -INFINITY;
    for (size_t t = 0; t < 2; t++)
        for (int i = 0; i < 20; i++) {
            const bon_draw got = draw(5000, (bon_sampling){temperatures[t], 0, 1.0, 0.0},
                                      uniform());
            const int32_t ids[] = {got.token, 17, got.token};
            float logp[3];
            CHECK(bon_log_softmax_at(logits, 5000, temperatures[t], ids, 3, logp) == BON_OK);
            CHECK(logp[0] == got.sampled_logp && logp[2] == logp[0]);
            CHECK(isinf(logp[1]) && logp[1] < 0.0f);
            if (t == 0) CHECK(logp[0] == got.logp);
        }
}

/* -- distribution and reproducibility ---------------------------------------- */

/* Chi-square over the kept tokens; 99.99 % lie below the limit. */
static void check_frequencies(size_t vocab, bon_sampling how, size_t draws, double limit)
{
    const reference r = refer(vocab, how);
    size_t count[64] = {0};
    for (size_t i = 0; i < draws; i++)
        count[draw(vocab, how, bon_rng_uniform(&(bon_rng_key){.seed = 3}, i)).token]++;
    double chi_square = 0.0;
    for (size_t i = 0; i < vocab; i++) {
        const double want = (double)draws * r.share[i], off = (double)count[i] - want;
        CHECK(r.keep[i] || count[i] == 0);
        if (r.keep[i]) chi_square += off * off / want;
    }
    printf("  chi-square of %zu draws over %zu tokens: %.1f\n", draws, r.kept, chi_square);
    CHECK(chi_square < limit);
}

static void frequencies_are_the_probabilities(void)
{
    fill_normal(1.5f, 40);
    check_frequencies(40, plain, 1000000, 81.0);                            /* 39 degrees */
    check_frequencies(40, (bon_sampling){1.3f, 30, 0.95, 0.01}, 200000, 70.0);
}

static void a_row_alone_decides_its_draw(void)
{
    const bon_sampling hows[] = {plain, {0.8f, 40, 0.9, 0.01}, {1.0f, 0, 0.9, 0.0}};
    const size_t vocab = 4001;
    void *scratch = aligned_alloc(64, (bon_sample_scratch(vocab) + 63) / 64 * 64);
    float *copy = malloc((vocab + 8) * sizeof *copy);
    CHECK(scratch != NULL && copy != NULL);
    memset(scratch, 0, bon_sample_scratch(vocab));
    for (size_t h = 0; h < 3; h++)
        for (size_t shift = 0; shift < 8; shift++) {
            fill_normal(2.0f, vocab);
            memcpy(copy + shift, logits, vocab * sizeof *copy);
            const double u = uniform();
            const bon_draw want = draw(vocab, hows[h], u);
            bon_draw got; /* another address, scratch as the last row left it */
            CHECK(bon_sample_token(copy + shift, vocab, &hows[h], u, scratch, &got) == BON_OK);
            CHECK(memcmp(&got, &want, sizeof got) == 0);
        }
    free(scratch);
    free(copy);
}

/* -- errors ------------------------------------------------------------------ */

static void bad_options_are_refused(void)
{
    const bon_sampling bad[] = {
        {-0.1f, 0, 1.0, 0.0}, {INFINITY, 0, 1.0, 0.0}, {NAN, 0, 1.0, 0.0}, {1.0f, -1, 1.0, 0.0},
        {1.0f, 0, 0.0, 0.0},  {1.0f, 0, 1.1, 0.0},     {1.0f, 0, (double)NAN, 0.0},
        {1.0f, 0, 1.0, -0.1}, {1.0f, 0, 1.0, 1.1},     {1.0f, 0, 1.0, (double)NAN},
    };
    bon_draw out = {.token = -7};
    fill(0.0f, 10);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(bon_sampling_check(&bad[i]) == BON_ERR_DOMAIN);
        CHECK(try_draw(10, bad[i], 0.5, &out) == BON_ERR_DOMAIN);
    }
    CHECK(bon_sampling_check(&plain) == BON_OK);
    CHECK(try_draw(10, plain, 1.0, &out) == BON_ERR_DOMAIN);
    CHECK(try_draw(10, plain, -0x1p-60, &out) == BON_ERR_DOMAIN);
    CHECK(try_draw(10, plain, (double)NAN, &out) == BON_ERR_DOMAIN);
    CHECK(try_draw(0, plain, 0.5, &out) == BON_ERR_DOMAIN);
    CHECK(out.token == -7);
}

static void rows_that_are_no_distribution_are_refused(void)
{
    const bon_sampling hows[] = {plain, {0.0f, 0, 1.0, 0.0}, {0.7f, 5, 0.9, 0.1}};
    const float wrong[] = {NAN, -NAN, INFINITY};
    bon_draw out = {.token = -7};
    float logp[1] = {5.0f};
    for (size_t h = 0; h < 3; h++)
        for (size_t vocab = 1; vocab < 100; vocab += 9)
            for (size_t at = 0; at < vocab; at++)
                for (size_t w = 0; w < 3; w++) {
                    fill(-INFINITY, vocab);
                    if (at % 2) fill(1.0f, vocab);
                    logits[at] = wrong[w];
                    CHECK(try_draw(vocab, hows[h], 0.5, &out) == BON_ERR_NOT_FINITE);
                    CHECK(bon_log_softmax_at(logits, vocab, 1.0f, &(int32_t){0}, 1, logp)
                          == BON_ERR_NOT_FINITE);
                }
    fill(-INFINITY, 50);
    for (size_t h = 0; h < 3; h++)
        CHECK(try_draw(50, hows[h], 0.5, &out) == BON_ERR_NOT_FINITE);
    CHECK(out.token == -7 && logp[0] == 5.0f);
}

static void log_softmax_at_refuses_ids_outside_the_vocabulary(void)
{
    float logp[2] = {5.0f, 5.0f};
    fill(0.0f, 10);
    const int32_t wrong[] = {-1, 10, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < 4; i++) {
        const int32_t ids[] = {3, wrong[i]};
        CHECK(bon_log_softmax_at(logits, 10, 1.0f, ids, 2, logp) == BON_ERR_DOMAIN);
    }
    const float cold[] = {0.0f, -1.0f, NAN, INFINITY};
    for (size_t i = 0; i < 4; i++)
        CHECK(bon_log_softmax_at(logits, 10, cold[i], &(int32_t){3}, 1, logp) == BON_ERR_DOMAIN);
    CHECK(logp[0] == 5.0f && logp[1] == 5.0f);
}

/* -- speed ------------------------------------------------------------------- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Microseconds of processor time per draw: the best of ten rounds. */
static double microseconds(size_t vocab, const bon_sampling *how, void *scratch)
{
    double best = INFINITY;
    for (int round = 0; round < 10; round++) {
        const int draws = (int)(1000000 / vocab) + 1;
        bon_draw out;
        const double start = now();
        for (int i = 0; i < draws; i++)
            CHECK(bon_sample_token(logits, vocab, how, (i + 0.5) / draws, scratch, &out)
                  == BON_OK);
        best = fmin(best, (now() - start) / draws);
    }
    return 1e6 * best;
}

static void print_speed(void)
{
    const size_t vocabs[] = {32000, 128256, 256000};
    const struct {
        const char *name;
        bon_sampling how;
    } cases[] = {
        {"T=0", {0.0f, 0, 1.0, 0.0}},          {"plain", {1.0f, 0, 1.0, 0.0}},
        {"T=0.7", {0.7f, 0, 1.0, 0.0}},        {"top-k 50", {1.0f, 50, 1.0, 0.0}},
        {"top-p 0.95", {1.0f, 0, 0.95, 0.0}},  {"min-p 0.05", {1.0f, 0, 1.0, 0.05}},
        {"all three", {0.7f, 50, 0.95, 0.05}},
    };
    for (int peaked = 1; peaked >= 0; peaked--)
        for (size_t v = 0; v < 3; v++) {
            fill_normal(peaked ? 3.0f : 1.0f, vocabs[v]);
            for (size_t i = 0; peaked && i < 40; i++)
                logits[(size_t)(uniform() * (double)vocabs[v])] = 14.0f + 8.0f * (float)uniform();
            void *scratch = aligned_alloc(64, (bon_sample_scratch(vocabs[v]) + 63) / 64 * 64);
            CHECK(scratch != NULL);
            printf("%s, vocabulary %zu, us per draw:", peaked ? "peaked" : "flat", vocabs[v]);
            for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
                printf("  %s %.0f", cases[c].name,
                       microseconds(vocabs[v], &cases[c].how, scratch));
            printf("\n");
            free(scratch);
        }
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "speed") == 0) {
        print_speed();
        return 0;
    }
    draws_match_sorting_in_double_for_all_options();
    top_k_keeps_all_ties_with_the_kth();
    top_p_of_equal_logits_keeps_the_lowest_ids();
    top_p_is_taken_of_what_top_k_left();
    temperature_zero_takes_the_lowest_of_the_largest();
    one_token_left_has_probability_one();
    banned_and_weightless_tokens_are_never_drawn();
    the_largest_u_draws_the_last_token_with_weight();
    min_p_compares_logits_exactly();
    certainty_counts_the_tokens_that_are_not_banned();
    extreme_logits_and_temperatures_stay_finite();
    logp_is_within_1e_6_of_double();
    log_softmax_at_gives_the_same_bits_as_a_draw();
    frequencies_are_the_probabilities();
    a_row_alone_decides_its_draw();
    bad_options_are_refused();
    rows_that_are_no_distribution_are_refused();
    log_softmax_at_refuses_ids_outside_the_vocabulary();
    return 0;
}
