/* deal.h - numbered tasks, dealt to the threads of a parallel region.
 *
 * Every thread first goes through tasks of its own, one behind the other: it knows what comes
 * next, and comes back to what it wrote in the loop before. Then it helps the others.
 *
 *   bon_deal deal;
 *   bon_deal_open(&deal, tasks, threads);
 *   #pragma omp parallel num_threads(threads)
 *   for (bon_hand hand = {0}; bon_deal_take(&deal, &hand);) work(hand.task);
 */
#ifndef BON_DEAL_H
#define BON_DEAL_H

#include <stdbool.h>
#include <stddef.h>

#include "threads.h"

#define BON_DEAL_SHARES 64 /* more threads than that begin in the same ones */

typedef struct {
    size_t tasks, shares;
    struct {
        _Alignas(64) size_t next;
    } share[BON_DEAL_SHARES];
} bon_deal;

/* A thread's place in a deal; 0 at first. */
typedef struct {
    size_t task;
    bool more;   /* the thread takes task + 1 next, unless another one has taken it by then */
    size_t done; /* shares that have no task left */
} bon_hand;

static inline void bon_deal_open(bon_deal *deal, size_t tasks, size_t threads)
{
    deal->tasks = tasks;
    deal->shares = threads < BON_DEAL_SHARES ? threads : BON_DEAL_SHARES;
    for (size_t s = 0; s < deal->shares; s++) deal->share[s].next = tasks * s / deal->shares;
}

/* The next task of this thread; false where none is left. */
static inline bool bon_deal_take(bon_deal *deal, bon_hand *hand)
{
    for (; hand->done < deal->shares; hand->done++) {
        const size_t s = ((size_t)bon_thread_index() + hand->done) % deal->shares;
        const size_t end = deal->tasks * (s + 1) / deal->shares;
        size_t task;
#pragma omp atomic capture
        task = deal->share[s].next++;
        if (task >= end) continue;
        hand->task = task;
        hand->more = task + 1 < end;
        return true;
    }
    return false;
}

#endif /* BON_DEAL_H */
