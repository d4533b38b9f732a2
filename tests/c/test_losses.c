/* test_losses.c - losses on their own: values by hand, errors, rows of any number, no Python. */
#include <string.h>

#include "check.h"
#include "losses.h"

enum { ROOM = 1100 }; /* a row longer than those that go through the network */

static double *scratch_for(size_t n)
{
    double *scratch = malloc(bon_loss_scratch(n) * sizeof *scratch); /* ASan sees its end */
    CHECK(scratch != NULL);
    return scratch;
}

static bon_status bon(const double *scores, const double *rewards, size_t rows, size_t n,
                      size_t k, bon_baseline baseline, double *value, double *weights,
                      size_t *bad)
{
    double *scratch = scratch_for(n);
    const bon_status status = bon_bon_loss(scores, rewards, rows, n, k, baseline, scratch,
                                           value, weights, 0, bad);
    free(scratch);
    return status;
}

static bon_status rl(const double *scores, const double *rewards, const double *chance,
                     const double *win_rate, size_t rows, size_t n, bon_law law, int winners,
                     double *value, double *weights, size_t *bad)
{
    const bon_known known = {chance, win_rate, NULL};
    double *scratch = scratch_for(n);
    const bon_status status = bon_rl_loss(scores, rewards, &known, rows, n, &law, winners,
                                          scratch, value, weights, 0, bad);
    free(scratch);
    return status;
}

static bon_status sft(const double *scores, const double *logp, const uint8_t *expert,
                      const double *chance, const double *win_rate, size_t rows, size_t n,
                      double lambda, double *value, double *weights, size_t *bad)
{
    const bon_law law = {2, 0, lambda};
    const bon_known known = {chance, win_rate, NULL};
    double *scratch = scratch_for(n);
    const bon_status status = bon_sft_loss(scores, logp, expert, &known, rows, n, &law,
                                           scratch, value, weights, 0, bad);
    free(scratch);
    return status;
}

static void test_bon_known_values(void)
{
    const double rewards[] = {0, 0, 1, 1}, scores[] = {3, 1, 2, 0};
    double value[1], weights[4];
    size_t bad;
    CHECK(bon(rewards, rewards, 1, 4, 2, BON_BASELINE_SUBSET, value, weights, &bad) == BON_OK);
    CHECK_CLOSE(value[0], -5.0 / 6.0);
    for (size_t i = 0; i < 4; i++) CHECK_CLOSE(weights[i], rewards[i] * -1.0 / 3.0);
    /* the first is the best of every pair that it is in, and wrong */
    CHECK(bon(scores, rewards, 1, 4, 2, BON_BASELINE_NONE, value, weights, &bad) == BON_OK);
    CHECK_CLOSE(value[0], -2.0 / 6.0);
    CHECK_CLOSE(weights[0], 0.0);
    CHECK_CLOSE(weights[2], -2.0 / 6.0);
    CHECK_CLOSE(weights[3], -1.0 / 6.0);
}

static void test_bon_with_baseline_weighs_equal_rewards_with_zero(void)
{
    double scores[3 * 5], rewards[3 * 5], value[3], weights[3 * 5];
    size_t bad;
    for (size_t i = 0; i < 15; i++) {
        scores[i] = (double)(i % 4);
        rewards[i] = 0.1;
    }
    for (int b = BON_BASELINE_SUBSET; b <= BON_BASELINE_LOO; b++) {
        CHECK(bon(scores, rewards, 3, 5, 3, (bon_baseline)b, value, weights, &bad) == BON_OK);
        for (size_t i = 0; i < 15; i++) CHECK(weights[i] == 0.0);
    }
}

/* Rows of all lengths and numbers give what each gives alone. */
static void test_rows_do_not_depend_on_each_other(void)
{
    static double scores[9 * ROOM], rewards[9 * ROOM], weights[9 * ROOM], alone[ROOM];
    const size_t lengths[] = {3, 4, 7, 8, 9, 64, ROOM};
    double value[9], one[1];
    size_t bad;
    for (size_t c = 0; c < sizeof lengths / sizeof *lengths; c++) {
        const size_t n = lengths[c];
        for (size_t i = 0; i < 9 * n; i++) {
            scores[i] = (double)((i * 7919) % 101);
            rewards[i] = (double)((i * 104729) % 13) - 6.0;
        }
        CHECK(bon(scores, rewards, 9, n, 2, BON_BASELINE_LOO, value, weights, &bad) == BON_OK);
        for (size_t r = 0; r < 9; r++) {
            CHECK(bon(scores + r * n, rewards + r * n, 1, n, 2, BON_BASELINE_LOO, one, alone,
                      &bad) == BON_OK);
            CHECK(one[0] == value[r]);
            CHECK(memcmp(alone, weights + r * n, n * sizeof *alone) == 0);
        }
    }
}

static void test_bon_rejects_bad_k_and_finds_what_is_not_finite(void)
{
    double x[2 * 3] = {1, 2, 3, 4, 5, NAN}, fine[6] = {0}, value[2], weights[6];
    size_t bad = 99;
    const bon_baseline subset = BON_BASELINE_SUBSET;
    CHECK(bon(fine, fine, 2, 3, 0, subset, value, weights, &bad) == BON_ERR_DOMAIN);
    CHECK(bon(fine, fine, 2, 3, 4, subset, value, weights, &bad) == BON_ERR_DOMAIN);
    CHECK(bon(fine, fine, 2, 3, SIZE_MAX, subset, value, weights, &bad) == BON_ERR_DOMAIN);
    CHECK(bon(fine, fine, 2, 3, 3, BON_BASELINE_LOO, value, weights, &bad) == BON_ERR_DOMAIN);
    CHECK(bon(fine, fine, 6, 1, 1, subset, value, weights, &bad) == BON_ERR_DOMAIN);
    CHECK(bon(fine, fine, 0, 3, 2, subset, value, weights, &bad) == BON_OK);
    CHECK(bon(x, fine, 2, 3, 2, subset, value, weights, &bad) == BON_ERR_NOT_FINITE);
    CHECK(bad == 5);
    x[4] = INFINITY;
    CHECK(bon(fine, x, 2, 3, 2, subset, value, weights, &bad) == BON_ERR_NOT_FINITE);
    CHECK(bad == 4);
}

/* Two right of four: v = 1/(2+2e) on right and e/(2+2e) on wrong with e = exp(-2/3 lambda). */
static void test_rl_known_values(void)
{
    const double rewards[] = {1, 0, 1, 0}, lambda = 3.0, e = exp(-2.0 / 3.0 * lambda);
    const double right = 1.0 / (2.0 + 2.0 * e), wrong = e * right;
    const double c = right * (1.0 - 2.0 * right) / (1.0 - 2.0 * (right * right + wrong * wrong));
    double value[1], weights[4];
    size_t bad;
    CHECK(rl(rewards, rewards, NULL, NULL, 1, 4, (bon_law){4, 0, lambda}, 0, value, weights,
             &bad) == BON_OK);
    CHECK_CLOSE(value[0], -2.0 * right);
    /* others of a right sample: one right, of F = 1, and two wrong, of F = 1/3 */
    const double pairs = c * (1.0 - 1.0) + 2.0 * -c * (0.0 - 1.0 / 3.0);
    CHECK_CLOSE(weights[0], -c - lambda / 2.0 * pairs);
    CHECK_CLOSE(weights[1], c + lambda / 2.0 * pairs);
}

static void test_rl_forms_are_finite_and_agree_on_equal_rewards(void)
{
    double scores[17 * 9], ones[17 * 9], rates[17 * 9], chance[17 * 9];
    double value[17], weights[17 * 9];
    size_t bad;
    for (size_t i = 0; i < 17 * 9; i++) {
        scores[i] = (double)((i * 31) % 5);
        ones[i] = 0.3;
        rates[i] = scores[i] / 4.0;
        chance[i] = 1.0 / 9.0;
    }
    for (int form = 0; form < 6; form++) {
        const bon_law law = {4, form % 2, 4.9};
        const double *given = form >= 4 ? chance : NULL, *known = form == 4 ? rates : NULL;
        CHECK(rl(scores, ones, given, known, 17, 9, law, form == 2 || form == 3, value, weights,
                 &bad) == BON_OK);
        for (size_t i = 0; i < 17 * 9; i++) CHECK(weights[i] == 0.0);
        for (size_t r = 0; r < 17; r++) CHECK_CLOSE(value[r], -0.3);
    }
}

static void test_rl_rejects_what_has_no_law(void)
{
    const double x[] = {1, 2, 3, 4}, over[] = {0, 0.5, 1.5, 0}, nan[] = {1, NAN, 3, 4};
    double value[1], weights[4];
    size_t bad = 99;
    const bon_law fine = {2, 0, 1.0}, exact = {2, 1, 1.0};
    CHECK(rl(x, x, NULL, NULL, 1, 4, (bon_law){0, 0, 1.0}, 0, value, weights, &bad)
          == BON_ERR_DOMAIN);
    CHECK(rl(x, x, NULL, NULL, 1, 4, (bon_law){2, 0, NAN}, 0, value, weights, &bad)
          == BON_ERR_DOMAIN);
    CHECK(rl(x, x, NULL, x, 1, 4, exact, 0, value, weights, &bad) == BON_ERR_DOMAIN);
    CHECK(rl(x, x, NULL, NULL, 2, 2, fine, 0, value, weights, &bad) == BON_ERR_DOMAIN);
    CHECK(rl(x, x, NULL, NULL, 1, 3, fine, 1, value, weights, &bad) == BON_ERR_DOMAIN);
    CHECK(rl(x, x, NULL, over, 1, 4, fine, 0, value, weights, &bad) == BON_ERR_DOMAIN);
    CHECK(bad == 2);
    CHECK(rl(x, x, over, NULL, 1, 4, fine, 0, value, weights, &bad) == BON_ERR_DOMAIN);
    CHECK(bad == 2);
    CHECK(rl(x, nan, NULL, NULL, 1, 4, fine, 0, value, weights, &bad) == BON_ERR_NOT_FINITE);
    CHECK(bad == 1);
}

/* Two right of three: F = 1 and 1/4; t of the right ones with Z = e, of the wrong one less. */
static void test_rl_known_normaliser(void)
{
    const double rewards[] = {1, 0, 1}, rates[] = {1, 0.25, 1}, lambda = 2.0, log_z[] = {1.9};
    const bon_known known = {NULL, rates, log_z};
    const bon_law law = {2, 0, lambda};
    const double right = exp(lambda - 1.9), wrong = exp(0.25 * lambda - 1.9);
    const double c = right * wrong / 6.0, of_wrong = -2.0 * right * wrong / 6.0;
    double value[1], weights[3], *scratch = scratch_for(3);
    size_t bad;
    CHECK(bon_rl_loss(rewards, rewards, &known, 1, 3, &law, 0, scratch, value, weights, 0, &bad)
          == BON_OK);
    CHECK_CLOSE(value[0], -(2.0 * right + (1.0 - right) + (1.0 - wrong)) / 3.0);
    /* others of the wrong sample: two right ones of F = 1. Of a right one: one of those, and
     * the wrong sample, whose c has lost the term of the one */
    CHECK_CLOSE(weights[1], -of_wrong);
    CHECK_CLOSE(weights[0], -(c + lambda * 0.5 * of_wrong * (0.0 - 0.25)));
    free(scratch);
}

static void test_normalisers_of_no_law_are_rejected(void)
{
    const double x[] = {0.5, 1, 0, 0, 1, 0.5}, over[] = {0.9, 1.1}, under[] = {0.9, 0.4};
    const double nan[] = {NAN, 0.9}, fine[] = {0.9, 1.0};
    const double *wrong[] = {over, under, nan};
    const uint8_t expert[6] = {0};
    const bon_law law = {2, 0, 1.0};
    double value[2], weights[6], *scratch = scratch_for(3);
    size_t bad;
    for (size_t i = 0; i < 3; i++) {
        const bon_known known = {NULL, x, wrong[i]};
        CHECK(bon_rl_loss(x, x, &known, 2, 3, &law, 0, scratch, value, weights, 0, &bad)
              == BON_ERR_DOMAIN);
        CHECK(bad == (i < 2 ? 3 : 0));
        CHECK(bon_sft_loss(x, x, expert, &known, 2, 3, &law, scratch, value, weights, 0, &bad)
              == BON_ERR_DOMAIN);
    }
    const bon_known alone = {NULL, NULL, fine}, with_chance = {x, x, fine}, both = {NULL, x, fine};
    CHECK(bon_rl_loss(x, x, &alone, 2, 3, &law, 0, scratch, value, weights, 0, &bad)
          == BON_ERR_DOMAIN);
    CHECK(bon_rl_loss(x, x, &with_chance, 2, 3, &law, 0, scratch, value, weights, 0, &bad)
          == BON_ERR_DOMAIN);
    CHECK(bon_rl_loss(x, x, &both, 2, 3, &law, 0, scratch, value, weights, 0, &bad) == BON_OK);
    free(scratch);
}

/* lambda = 0: the law is the policy, and the loss is plain fine-tuning. */
static void test_sft_without_tilt_is_fine_tuning(void)
{
    const double scores[] = {3, 1, 2, 0, 1}, logp[] = {-1, -2, -3, -4, -5};
    const uint8_t expert[] = {1, 0, 0, 0, 1};
    double value[1], weights[5];
    size_t bad;
    CHECK(sft(scores, logp, expert, NULL, NULL, 1, 5, 0.0, value, weights, &bad) == BON_OK);
    CHECK_CLOSE(value[0], 3.0);
    for (size_t i = 0; i < 5; i++) CHECK_CLOSE(weights[i], expert[i] ? -0.5 : 0.0);
}

static void test_sft_rows_have_their_own_experts(void)
{
    double scores[10 * 6], logp[10 * 6], value[10], weights[10 * 6], one[1], alone[6];
    uint8_t expert[10 * 6];
    size_t bad;
    for (size_t i = 0; i < 60; i++) {
        scores[i] = (double)((i * 17) % 7);
        logp[i] = -(double)(i % 11);
        expert[i] = i % 6 <= i / 6 % 3; /* one, two or three of six */
    }
    CHECK(sft(scores, logp, expert, NULL, NULL, 10, 6, 2.3, value, weights, &bad) == BON_OK);
    for (size_t r = 0; r < 10; r++) {
        CHECK(sft(scores + 6 * r, logp + 6 * r, expert + 6 * r, NULL, NULL, 1, 6, 2.3, one,
                  alone, &bad) == BON_OK);
        CHECK(one[0] == value[r]);
        CHECK(memcmp(alone, weights + 6 * r, sizeof alone) == 0);
    }
}

/* An outcome that is also a demonstration has its chance as an outcome only. */
static void test_sft_of_outcomes_leaves_the_chance_of_experts_out(void)
{
    const double scores[] = {1, 0, 1, 2}, logp[] = {-1, -2, -3, -4};
    const double some[] = {0, 0.5, 0.3, 0.2}, more[] = {0.3, 0.5, 0.3, 0.2};
    const uint8_t expert[] = {1, 0, 0, 0};
    double value[2], weights[2][4];
    size_t bad;
    CHECK(sft(scores, logp, expert, some, NULL, 1, 4, 2.0, value, weights[0], &bad) == BON_OK);
    CHECK(sft(scores, logp, expert, more, NULL, 1, 4, 2.0, value + 1, weights[1], &bad) == BON_OK);
    CHECK(value[0] == value[1]);
    CHECK(memcmp(weights[0], weights[1], sizeof weights[0]) == 0);
}

static void test_sft_rejects_rows_without_experts_or_policy(void)
{
    const double x[10] = {0}, nan[10] = {[7] = NAN};
    uint8_t expert[10] = {1, 0, 0, 0, 0};
    double value[2], weights[10];
    size_t bad = 99;
    CHECK(sft(x, x, expert, NULL, NULL, 2, 5, 1.0, value, weights, &bad) == BON_ERR_DOMAIN);
    CHECK(bad == 5);
    memset(expert + 5, 1, 3);
    CHECK(sft(x, x, expert, NULL, NULL, 2, 5, 1.0, value, weights, &bad) == BON_ERR_DOMAIN);
    CHECK(bad == 5);
    CHECK(sft(x, x, expert, x, x, 2, 5, 1.0, value, weights, &bad) == BON_OK);
    expert[7] = 0;
    CHECK(sft(x, nan, expert, NULL, NULL, 2, 5, 1.0, value, weights, &bad)
          == BON_ERR_NOT_FINITE);
    CHECK(bad == 7);
}

/* Nine rows of 64: whole lines, past the caches or not. */
static void test_results_past_the_caches_are_the_same(void)
{
    enum { ROWS = 9, N = 64 };
    static double scores[ROWS * N], rewards[ROWS * N];
    double *plain = aligned_alloc(64, sizeof scores), *streamed = aligned_alloc(64, sizeof scores);
    double value[ROWS], *scratch = scratch_for(N);
    const bon_known unknown = {NULL, NULL, NULL};
    const bon_law law = {4, 0, 1.5};
    uint8_t expert[ROWS * N];
    size_t bad;
    CHECK(plain && streamed);
    for (size_t i = 0; i < ROWS * N; i++) {
        scores[i] = (double)(i * 37 % 101 / (1 + i / N));
        rewards[i] = (double)(i * 29 % 7);
        expert[i] = i % N < 3;
    }
    for (int stream = 0; stream < 2; stream++)
        CHECK(bon_bon_loss(scores, rewards, ROWS, N, 4, BON_BASELINE_SUBSET, scratch, value,
                           stream ? streamed : plain, stream, &bad) == BON_OK);
    CHECK(memcmp(plain, streamed, sizeof scores) == 0);
    for (int stream = 0; stream < 2; stream++)
        CHECK(bon_rl_loss(scores, rewards, &unknown, ROWS, N, &law, 0, scratch, value,
                          stream ? streamed : plain, stream, &bad) == BON_OK);
    CHECK(memcmp(plain, streamed, sizeof scores) == 0);
    for (int stream = 0; stream < 2; stream++)
        CHECK(bon_sft_loss(scores, rewards, expert, &unknown, ROWS, N, &law, scratch, value,
                           stream ? streamed : plain, stream, &bad) == BON_OK);
    CHECK(memcmp(plain, streamed, sizeof scores) == 0);
    free(plain);
    free(streamed);
    free(scratch);
}

static void test_binary_rewards_are_counted_and_weighed(void)
{
    double rewards[2 * 9] = {1, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    const double hit[] = {-2, -3}, miss[] = {4, 5};
    double correct[2], weights[18];
    size_t bad = 99;
    CHECK(bon_count_correct(rewards, 2, 9, correct, &bad) == BON_OK);
    CHECK(correct[0] == 3.0 && correct[1] == 0.0);
    bon_two_weights(rewards, hit, miss, 2, 9, weights);
    CHECK(weights[0] == -2.0 && weights[1] == 4.0 && weights[9] == 5.0);
    const double right[10] = {9, 0, 0, -7}, wrong[10] = {6, 0, 0, 8};
    CHECK(bon_weigh_by_count(rewards, right, wrong, 2, 9, correct, weights, &bad) == BON_OK);
    CHECK(correct[0] == 3.0 && correct[1] == 0.0);
    CHECK(weights[0] == -7.0 && weights[1] == 8.0 && weights[8] == -7.0 && weights[9] == 6.0);
    rewards[17] = 0.5;
    CHECK(bon_weigh_by_count(rewards, right, wrong, 2, 9, correct, weights, &bad)
          == BON_ERR_DOMAIN);
    CHECK(bad == 17);
    CHECK(bon_count_correct(rewards, 2, 9, correct, &bad) == BON_ERR_DOMAIN);
    CHECK(bad == 17);
    rewards[3] = NAN;
    CHECK(bon_count_correct(rewards, 2, 9, correct, &bad) == BON_ERR_DOMAIN);
    CHECK(bad == 3);
}

int main(void)
{
    test_bon_known_values();
    test_bon_with_baseline_weighs_equal_rewards_with_zero();
    test_rows_do_not_depend_on_each_other();
    test_bon_rejects_bad_k_and_finds_what_is_not_finite();
    test_rl_known_values();
    test_rl_forms_are_finite_and_agree_on_equal_rewards();
    test_rl_rejects_what_has_no_law();
    test_rl_known_normaliser();
    test_normalisers_of_no_law_are_rejected();
    test_sft_without_tilt_is_fine_tuning();
    test_sft_rows_have_their_own_experts();
    test_sft_of_outcomes_leaves_the_chance_of_experts_out();
    test_sft_rejects_rows_without_experts_or_policy();
    test_results_past_the_caches_are_the_same();
    test_binary_rewards_are_counted_and_weighed();
    return 0;
}
