/* Tasks that are dealt: each is taken once, by whichever threads come. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "deal.h"

enum { MOST = 1000 };

/* `threads` says how many the deal is for, and `come` how many take part. */
static void check_deal(size_t tasks, size_t threads, int come)
{
    static int taken[MOST];
    memset(taken, 0, sizeof taken);
    bon_deal deal;
    bon_deal_open(&deal, tasks, threads);
#pragma omp parallel num_threads(come)
    for (bon_hand hand = {0}; bon_deal_take(&deal, &hand);) {
#pragma omp atomic
        taken[hand.task]++;
    }
    for (size_t i = 0; i < MOST; i++) CHECK(taken[i] == (i < tasks));
}

static void test_every_task_is_taken_once(void)
{
    const size_t tasks[] = {0, 1, 2, 7, 64, 65, MOST};
    const size_t threads[] = {1, 2, 3, 8, BON_DEAL_SHARES, BON_DEAL_SHARES + 9};
    for (size_t i = 0; i < sizeof tasks / sizeof *tasks; i++)
        for (size_t j = 0; j < sizeof threads / sizeof *threads; j++)
            for (int come = 1; come <= 9; come += 4) check_deal(tasks[i], threads[j], come);
}

/* One thread goes through all shares in order, and knows where the next task is its neighbour. */
static void test_a_thread_alone_takes_all_in_order(void)
{
    bon_deal deal;
    bon_deal_open(&deal, 10, 3); /* 0-2, 3-5, 6-9 */
    size_t next = 0;
    for (bon_hand hand = {0}; bon_deal_take(&deal, &hand); next++) {
        CHECK(hand.task == next);
        CHECK(hand.more == (next != 2 && next != 5 && next != 9));
    }
    CHECK(next == 10);
}

/* A second thread begins with its own share; the first helps with what is left of it. */
static void test_threads_begin_with_their_own(void)
{
    bon_deal deal;
    bon_deal_open(&deal, 10, 2);
    size_t first[2] = {MOST, MOST};
    int there = 1;
#pragma omp parallel num_threads(2)
    {
        const int me = bon_thread_index();
        bon_hand hand = {0};
        if (bon_deal_take(&deal, &hand)) first[me] = hand.task;
#ifdef _OPENMP
#pragma omp single
        there = omp_get_num_threads();
#endif
    }
    CHECK(first[0] == 0);
    if (there == 2) CHECK(first[1] == 5);
    size_t left = 0;
    for (bon_hand hand = {0}; bon_deal_take(&deal, &hand);) left++;
    CHECK(left == 10 - (size_t)there);
}

int main(void)
{
    test_every_task_is_taken_once();
    test_a_thread_alone_takes_all_in_order();
    test_threads_begin_with_their_own();
    return 0;
}
