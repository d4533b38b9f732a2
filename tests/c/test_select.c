/* test_select.c - selectors on their own: values by hand, errors, no Python. */
#include "check.h"
#include "select.h"

static void test_best_of_n_is_the_first_of_the_largest(void)
{
    enum { N = 19 };
    double scores[2 * N] = {0};
    int64_t out[2];
    size_t bad;
    for (size_t at = 0; at < N; at++) {
        for (size_t i = 0; i < 2 * N; i++) scores[i] = -1.0;
        scores[at] = scores[N - 1] = 2.0;
        CHECK(bon_best_of_n(scores, NULL, 2, N, out, &bad) == BON_OK);
        CHECK(out[0] == (int64_t)at && out[1] == 0);
    }
}

static void test_best_of_n_looks_at_samples_only(void)
{
    const double scores[] = {9, NAN, -INFINITY, 9, 1, 1};
    const unsigned char mask[] = {0, 0, 1, 0, 1, 1}, none[] = {1, 0, 1, 0, 0, 0};
    int64_t out[2];
    size_t bad = 99;
    CHECK(bon_best_of_n(scores, mask, 2, 3, out, &bad) == BON_OK);
    CHECK(out[0] == 2 && out[1] == 1);
    CHECK(bon_best_of_n(scores, none, 2, 3, out, &bad) == BON_ERR_DOMAIN && bad == 3);
    CHECK(bon_best_of_n(scores, NULL, 2, 3, out, &bad) == BON_ERR_NOT_FINITE && bad == 1);
    CHECK(bon_best_of_n(scores, NULL, 1, 0, out, &bad) == BON_ERR_DOMAIN && bad == 0);
}

enum { N = 5 };

static bon_status vote(const int64_t *codes, const double *weights, size_t rows,
                       int64_t *out, size_t *bad)
{
    void *scratch = malloc(bon_majority_choice_scratch(N));
    CHECK(scratch != NULL);
    const bon_status status = bon_majority(codes, weights, rows, N, scratch, out, bad);
    free(scratch);
    return status;
}

static void test_majority_takes_the_first_of_equals(void)
{
    const int64_t codes[] = {-1, 3, 7, 7, 3, /**/ -2, -1, -1, -2, -1, /**/ 4, 5, 5, 6, 6};
    const double weights[] = {9, 1, 1, 1, 1.5, /**/ 0, 0, 0, 0, 0, /**/ 5, 2, 2, 3, 1};
    int64_t out[3];
    size_t bad;
    CHECK(vote(codes, NULL, 3, out, &bad) == BON_OK);
    CHECK(out[0] == 1 && out[1] == 1 && out[2] == 1);
    CHECK(vote(codes, weights, 3, out, &bad) == BON_OK);
    CHECK(out[0] == 1 && out[1] == 1 && out[2] == 0);
}

static void test_majority_rejects_by_position(void)
{
    int64_t codes[] = {0, 0, 0, 0, 0, 1, 1, 1, 1, 1}, out[2];
    double weights[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    size_t bad = 99;
    weights[8] = -1;
    CHECK(vote(codes, weights, 2, out, &bad) == BON_ERR_DOMAIN && bad == 8);
    weights[8] = NAN;
    CHECK(vote(codes, weights, 2, out, &bad) == BON_ERR_NOT_FINITE && bad == 8);
    weights[8] = weights[9] = 1.5e308;
    CHECK(vote(codes, weights, 2, out, &bad) == BON_ERR_DOMAIN && bad == 9);
    codes[7] = -4;
    CHECK(vote(codes, NULL, 2, out, &bad) == BON_ERR_DOMAIN && bad == 7);
    for (size_t i = N; i < 2 * N; i++) codes[i] = BON_NO_SAMPLE;
    CHECK(vote(codes, NULL, 2, out, &bad) == BON_ERR_DOMAIN && bad == N);
}

int main(void)
{
    test_best_of_n_is_the_first_of_the_largest();
    test_best_of_n_looks_at_samples_only();
    test_majority_takes_the_first_of_equals();
    test_majority_rejects_by_position();
    return 0;
}
