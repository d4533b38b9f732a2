/* test_estimators.c - estimators on their own: values by hand, errors, no Python. */
#include <string.h>

#include "check.h"
#include "estimators.h"
#include "majority.h"

enum { ROOM = 64 };

static void test_pass_at_k_known_values(void)
{
    const int64_t n[] = {4, 4, 4, 4}, c[] = {0, 1, 2, 4}, k = 2;
    double out[4], table[ROOM];
    size_t bad;
    for (size_t room = 0; room <= ROOM; room += ROOM) {
        CHECK(bon_pass_at_k(n, c, 4, &k, 1, table, room, out, &bad) == BON_OK);
        CHECK_CLOSE(out[0], 0.0);
        CHECK_CLOSE(out[1], 1.0 / 2.0);
        CHECK_CLOSE(out[2], 5.0 / 6.0);
        CHECK_CLOSE(out[3], 1.0);
    }
}

static void test_pass_at_k_at_the_largest_n(void)
{
    const int64_t n[] = {BON_MAX_SAMPLES}, c[] = {BON_MAX_SAMPLES / 2};
    const int64_t k = BON_MAX_SAMPLES / 2;
    double out[1], table[ROOM];
    size_t bad;
    CHECK(bon_pass_at_k(n, c, 1, &k, 1, table, ROOM, out, &bad) == BON_OK);
    CHECK_CLOSE(out[0], 1.0);
}

/* Eight equal n: from the second row on the answers come from the table. */
static void test_pass_at_k_reports_first_bad_prompt(void)
{
    const int64_t n[] = {4, 4, 4, 4, 4, 4, 4, 4}, c[] = {1, 1, 1, 1, 1, 1, 5, 9}, k = 1;
    const int64_t few[] = {4, 4, 3, 1};
    double out[8], table[ROOM];
    size_t bad = 99;
    CHECK(bon_pass_at_k(n, c, 8, &k, 1, table, ROOM, out, &bad) == BON_ERR_DOMAIN);
    CHECK(bad == 6);
    const int64_t ks[] = {2, 4};
    CHECK(bon_pass_at_k(few, c, 4, ks, 2, table, ROOM, out, &bad) == BON_ERR_DOMAIN);
    CHECK(bad == 2);
    const int64_t zero = 0;
    CHECK(bon_pass_at_k(n, c, 8, &zero, 1, table, ROOM, out, &bad) == BON_ERR_DOMAIN);
}

static bon_status best(const double *scores, const double *rewards, size_t rows, size_t n,
                       int64_t k, double *out, size_t *bad)
{
    double weights[ROOM * 8], hits[(ROOM + 1) * 8], scratch[35 * ROOM + 32];
    const bon_status status = bon_rank_weights(n, &k, 1, weights, hits);
    if (status != BON_OK) return status;
    return bon_best_of_k(scores, rewards, rows, n, &k, 1, weights, hits, scratch, out, 1, 1,
                         bad);
}

static void test_best_of_k_splits_ties_evenly(void)
{
    const double scores[] = {1, 1, 0, 1}, rewards[] = {3, 6, 100, 0};
    double out[1];
    size_t bad;
    CHECK(best(scores, rewards, 1, 4, 4, out, &bad) == BON_OK);
    CHECK_CLOSE(out[0], 3.0);
    CHECK(best(rewards, rewards, 1, 4, 4, out, &bad) == BON_OK);
    CHECK_CLOSE(out[0], 100.0);
}

static void test_best_of_k_does_rows_in_any_number(void)
{
    double scores[19 * 3], out[19];
    for (size_t i = 0; i < 19 * 3; i++) scores[i] = (double)((i * 7) % 10);
    size_t bad;
    CHECK(best(scores, scores, 19, 3, 3, out, &bad) == BON_OK);
    for (size_t r = 0; r < 19; r++) {
        const double *s = scores + 3 * r;
        CHECK_CLOSE(out[r], fmax(s[0], fmax(s[1], s[2])));
    }
}

/* The ways to sort: by short keys, by whole keys where one score lies far out, by whole
 * scores where two are neighbours; all rows but one have two levels and are not sorted. */
enum { SHORT_KEYS, WHOLE_KEYS, WHOLE_SCORES, TWO_LEVELS, KINDS };

static void fill_scores(double *scores, size_t n, int kind)
{
    for (size_t i = 0; i < 9 * n; i++) {
        scores[i] = 1.0 + (double)((i % n * 29) % 71);
        if (kind == WHOLE_KEYS && i % n == 0) scores[i] = 1e30;
        if (kind == WHOLE_SCORES && i % n == 0) scores[i] = 71.0 * (1.0 + 0x1p-52);
        if (kind == TWO_LEVELS && i / n != 4) scores[i] = scores[i] > 35.0 ? 7.0 : 2.0;
    }
}

/* Nine rows with exactly as much memory as the header says. The rewards follow the scores,
 * so the best of n is the best. */
static void check_memory(size_t n, int kind, const int64_t *ks, size_t nk, double scale)
{
    double *weights = malloc(n * bon_rank_columns(nk) * sizeof *weights);
    double *hits = malloc((n + 1) * bon_rank_columns(nk) * sizeof *hits);
    double *scratch = malloc(bon_best_of_k_scratch(n) * sizeof *scratch);
    double *scores = malloc(9 * n * sizeof *scores), *rewards = malloc(9 * n * sizeof *rewards);
    const size_t lines = (9 * nk * sizeof(double) + 63) / 64; /* whole ones are streamed */
    double *out = aligned_alloc(64, 64 * lines);
    size_t bad;
    CHECK(weights && hits && scratch && scores && rewards && out);
    fill_scores(scores, n, kind);
    for (size_t i = 0; i < 9 * n; i++) rewards[i] = (scores[i] - 1.0) * scale;
    CHECK(bon_rank_weights(n, ks, nk, weights, hits) == BON_OK);
    CHECK(bon_best_of_k(scores, rewards, 9, n, ks, nk, weights, hits, scratch, out, nk, 1, &bad)
          == BON_OK);
    for (size_t r = 0; r < 9; r++) {
        double best = 0.0;
        for (size_t i = 0; i < n; i++) best = fmax(best, rewards[r * n + i]);
        CHECK_CLOSE(out[r * nk + nk - 1] / (best + 1.0), best / (best + 1.0));
    }
    free(out);
    free(rewards);
    free(scores);
    free(scratch);
    free(hits);
    free(weights);
}

/* Two values of k are weighed by the table, all by running sums, unless these overflow. */
static void test_best_of_k_keeps_to_its_memory(void)
{
    int64_t ks[70];
    for (size_t n = 1; n <= 70; n++)
        for (int kind = 0; kind < KINDS; kind++) {
            for (size_t k = 1; k <= n; k++) ks[k - 1] = (int64_t)k;
            check_memory(n, kind, ks, n, 1.0);
            check_memory(n, kind, ks, n, 0x1p900);
            ks[1] = (int64_t)n;
            check_memory(n, kind, ks, 2, 1.0);
        }
}

/* Of the values 0 .. n-1 the best of k is k (n + 1) / (k + 1) - 1 on average. */
static void test_best_of_k_of_all_k_is_that_of_ranks(void)
{
    enum { N = 61, ROWS = 11 };
    static double rows[ROWS * N], weights[N * 64], hits[(N + 1) * 64], scratch[35 * N + 32],
        out[ROWS * N];
    int64_t ks[N];
    size_t bad;
    for (size_t k = 1; k <= N; k++) ks[k - 1] = (int64_t)k;
    for (size_t i = 0; i < ROWS * N; i++) rows[i] = (double)((i % N * 17 + i / N) % N);
    CHECK(bon_rank_weights(N, ks, N, weights, hits) == BON_OK);
    CHECK(bon_best_of_k(rows, rows, ROWS, N, ks, N, weights, hits, scratch, out, N, 0, &bad)
          == BON_OK);
    for (size_t r = 0; r < ROWS; r++)
        for (size_t k = 1; k <= N; k++)
            CHECK_CLOSE(out[r * N + k - 1], (double)(k * (N + 1)) / (double)(k + 1) - 1.0);
}

static void test_best_of_k_rejects_bad_k_and_nan(void)
{
    const double r[] = {1, 2, NAN, 4}, fine[] = {1, 1, 1, 1};
    double out[2];
    size_t bad = 99;
    CHECK(best(r, r, 2, 2, 0, out, &bad) == BON_ERR_DOMAIN);
    CHECK(best(r, r, 2, 2, 3, out, &bad) == BON_ERR_DOMAIN);
    CHECK(best(r, r, 2, 0, 1, out, &bad) == BON_ERR_DOMAIN);
    CHECK(bad == 99);
    for (int64_t k = 1; k <= 2; k++) {
        CHECK(best(r, r, 2, 2, k, out, &bad) == BON_ERR_NOT_FINITE);
        CHECK(bad == 2);
        CHECK(best(r, fine, 2, 2, k, out, &bad) == BON_ERR_NOT_FINITE);
        CHECK(best(fine, r, 2, 2, k, out, &bad) == BON_ERR_NOT_FINITE);
        CHECK(bad == 2);
    }
}

static void test_win_rate_leaves_out_what_is_nan(void)
{
    const double wins[] = {1, 0, NAN, 0.5, NAN, NAN, 0.25, NAN, 1.5};
    double rates[3], errors[3];
    bon_win_rate(wins, 3, 3, rates, errors);
    CHECK_CLOSE(rates[0], 0.5);
    CHECK_CLOSE(errors[0], 0.5);
    CHECK_CLOSE(rates[1], 0.5);
    CHECK(isnan(errors[1]));
    CHECK(isnan(rates[2]) && isnan(errors[2]));
}

/* One pass serves the first row; the others lie too far from their first value. */
static void test_win_rate_of_rows_without_nan(void)
{
    double wins[3 * 33] = {0.0}, rates[3], errors[3];
    for (size_t i = 0; i < 33; i += 2) wins[i] = 1.0;
    wins[33] = 1.0;
    wins[66] = -0.0;
    wins[98] = 1.0;
    bon_win_rate(wins, 3, 33, rates, errors);
    CHECK_CLOSE(rates[0], 17.0 / 33.0);
    CHECK_CLOSE(errors[0], sqrt(17.0 * 16.0 / 33.0 / 32.0 / 33.0));
    for (size_t r = 1; r < 3; r++) {
        CHECK_CLOSE(rates[r], 1.0 / 33.0);
        CHECK_CLOSE(errors[r], 1.0 / 33.0);
    }
}

/* Exactly as much scratch as the header says, so that ASan sees a byte more. */
static bon_status vote(const int64_t *codes, const double *weights, const double *rewards,
                       size_t rows, size_t n, const int64_t *ks, size_t nk, double *out,
                       size_t *bad)
{
    void *scratch = malloc(bon_majority_scratch(n, weights != NULL) + 1);
    double *table = malloc(bon_majority_table(n) * sizeof *table);
    CHECK(scratch != NULL && table != NULL);
    bon_fill_majority_table(n, table);
    const bon_status status = bon_majority_at_k(codes, weights, rewards, rows, n, ks, nk,
                                                table, scratch, 7, 0, out, bad);
    free(table);
    free(scratch);
    return status;
}

static void test_majority_at_k_known_values(void)
{
    const int64_t codes[] = {5, 5, 9, -1, -2}, ks[] = {1, 2, 3, 4};
    const double rewards[] = {1, 1, 0, 0, NAN}, weights[] = {1, 1, 2.5, NAN, NAN};
    double out[4];
    size_t bad;
    CHECK(vote(codes, NULL, rewards, 1, 5, ks, 4, out, &bad) == BON_OK);
    CHECK_CLOSE(out[0], 1.0 / 2.0); /* the mean */
    CHECK_CLOSE(out[1], 4.0 / 6.0); /* 55 and twice 5- win, 59 twice is a tie, 9- loses */
    CHECK_CLOSE(out[2], 3.0 / 4.0); /* 559, 55- win, 59- twice is a tie */
    CHECK_CLOSE(out[3], 1.0);
    CHECK(vote(codes, weights, rewards, 1, 5, ks, 4, out, &bad) == BON_OK);
    CHECK_CLOSE(out[1], 3.0 / 6.0);
    CHECK_CLOSE(out[3], 0.0);
}

static void test_majority_at_k_adds_up_over_answers_of_every_kind_of_row(void)
{
    enum { N = 48, ROWS = 24 };
    static int64_t codes[ROWS * N];
    static double rewards[ROWS * N], weights[ROWS * N], out[ROWS * N], sum[ROWS * N];
    int64_t ks[N];
    size_t bad;
    for (size_t k = 0; k < N; k++) ks[k] = (int64_t)k + 1;
    for (size_t i = 0; i < ROWS * N; i++) {
        codes[i] = (int64_t)((i * i + i / N) % (i / N + 1)); /* row r: up to r + 1 answers */
        weights[i] = (double)(i % 3);
    }
    for (int weighted = 0; weighted < 2; weighted++) {
        memset(sum, 0, sizeof sum);
        for (int64_t answer = 0; answer < ROWS; answer++) {
            for (size_t i = 0; i < ROWS * N; i++) rewards[i] = codes[i] == answer;
            CHECK(vote(codes, weighted ? weights : NULL, rewards, ROWS, N, ks, N, out, &bad)
                  == BON_OK);
            for (size_t i = 0; i < ROWS * N; i++) sum[i] += out[i];
        }
        for (size_t i = 0; i < ROWS * N; i++) CHECK_CLOSE(sum[i], 1.0);
    }
}

static void test_majority_at_k_of_too_many_sums_is_resampled(void)
{
    enum { N = 40 };
    int64_t codes[N], k = N;
    double rewards[N], weights[N], out[1];
    size_t bad;
    for (size_t i = 0; i < N; i++) {
        codes[i] = (int64_t)(i % 2);
        rewards[i] = (double)codes[i];
        weights[i] = 1.0 + (double)codes[i] + 1.0 / (double)(i + 3);
    }
    CHECK(vote(codes, weights, rewards, 1, N, &k, 1, out, &bad) == BON_OK);
    CHECK_CLOSE(out[0], 1.0);
}

static void test_majority_at_k_rejects_by_position(void)
{
    int64_t codes[] = {0, 1, 0, 1}, k = 2;
    double rewards[] = {0, 0, 0, 0}, weights[] = {1, 1, 1, 1}, out[2];
    size_t bad = 99;
    codes[3] = -3;
    CHECK(vote(codes, NULL, rewards, 2, 2, &k, 1, out, &bad) == BON_ERR_DOMAIN && bad == 3);
    codes[3] = -2;
    CHECK(vote(codes, NULL, rewards, 2, 2, &k, 1, out, &bad) == BON_ERR_DOMAIN && bad == 2);
    codes[3] = 1;
    rewards[1] = INFINITY;
    CHECK(vote(codes, NULL, rewards, 2, 2, &k, 1, out, &bad) == BON_ERR_NOT_FINITE);
    CHECK(bad == 1);
    rewards[1] = 0;
    weights[3] = -1;
    CHECK(vote(codes, weights, rewards, 2, 2, &k, 1, out, &bad) == BON_ERR_DOMAIN);
    CHECK(bad == 3);
    k = 3;
    CHECK(vote(codes, NULL, rewards, 2, 2, &k, 1, out, &bad) == BON_ERR_DOMAIN);
}

int main(void)
{
    test_pass_at_k_known_values();
    test_pass_at_k_at_the_largest_n();
    test_pass_at_k_reports_first_bad_prompt();
    test_best_of_k_splits_ties_evenly();
    test_best_of_k_does_rows_in_any_number();
    test_best_of_k_keeps_to_its_memory();
    test_best_of_k_of_all_k_is_that_of_ranks();
    test_best_of_k_rejects_bad_k_and_nan();
    test_win_rate_leaves_out_what_is_nan();
    test_win_rate_of_rows_without_nan();
    test_majority_at_k_known_values();
    test_majority_at_k_adds_up_over_answers_of_every_kind_of_row();
    test_majority_at_k_of_too_many_sums_is_resampled();
    test_majority_at_k_rejects_by_position();
    return 0;
}
