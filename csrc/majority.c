/* majority.c - see majority.h for what is computed and why.
 *
 * Three ways to count, all of them sums of terms of one sign:
 *
 *   count_votes   a vote each: by the number of votes m of the winner, from
 *                 large to small. Answers with fewer than m votes are in one
 *                 factor (1+x)^rest, multiplied in step by step as in Horner's
 *                 scheme; the others are multiplied out one by one, apart for
 *                 each number of winners s, because winners share.
 *   sweep_sums    weights: the same, by the weight of the winner.
 *   draw_orders   random orders with running sums.
 *
 * Polynomials are scaled by 2^(-1/2) per sample, which halves the range that
 * binomial coefficients need on either side of 1.
 */
#include "majority.h"

#include <math.h>
#include <string.h>

#include "dispatch.h"
#include "rng.h"

#define SCALE 0.70710678118654752440 /* 2^(-1/2) */

/* -- the tally of a row ---------------------------------------------------- */

/* Zeros before and after an array that is read four at a time. */
enum { PAD = 4 };

/* One row. Arrays are scratch for n places. */
typedef struct {
    size_t samples, voters, answers;
    size_t k_max;
    double idle;      /* mean reward of samples without answer, 0 if none */
    int32_t *groups;  /* [n] see bon_group_votes */
    int32_t *slots;   /* its scratch */
    int32_t *counts;  /* [answers] votes */
    double *values;   /* [answers] mean reward */
    double *sum;      /* [k_max + 1] the result: coefficients by samples drawn */
} tally;

static bon_status take_votes(const int64_t *codes, const double *rewards, size_t n,
                             tally *row, size_t *bad)
{
    const bon_status status =
        bon_group_votes(codes, n, row->slots, row->groups, &row->answers, bad);
    if (status != BON_OK) return status;

    row->samples = row->voters = 0;
    row->idle = 0.0;
    memset(row->counts, 0, row->answers * sizeof *row->counts);
    memset(row->values, 0, row->answers * sizeof *row->values);
    for (size_t i = 0; i < n; i++) {
        const int32_t group = row->groups[i];
        if (group == BON_NO_SAMPLE) continue;
        const double reward = rewards[i];
        if (!isfinite(reward)) {
            *bad = i;
            return BON_ERR_NOT_FINITE;
        }
        row->samples++;
        if (group == BON_NO_VOTE) {
            row->idle += reward;
            continue;
        }
        row->voters++;
        row->counts[group]++;
        row->values[group] += reward;
    }
    for (size_t g = 0; g < row->answers; g++) row->values[g] /= (double)row->counts[g];
    if (row->samples > row->voters) row->idle /= (double)(row->samples - row->voters);
    return BON_OK;
}

/* -- tables ---------------------------------------------------------------- */

static size_t exact_votes(size_t n) { return n < BON_MAX_EXACT_VOTES ? n : BON_MAX_EXACT_VOTES; }

/* Row c of the triangle: C(c, j) for j = 0 .. c. */
static const double *choose(const double *table, size_t c) { return table + c * (c + 1) / 2; }

size_t bon_majority_table(size_t n)
{
    const size_t rows = exact_votes(n) + 1;
    return rows * (rows + 1) / 2;
}

void bon_fill_majority_table(size_t n, double *table)
{
    table[0] = 1.0;
    for (size_t c = 1; c <= exact_votes(n); c++) {
        const double *above = choose(table, c - 1);
        double *row = table + c * (c + 1) / 2;
        row[0] = SCALE * above[0];
        for (size_t j = 1; j < c; j++) row[j] = SCALE * (above[j - 1] + above[j]);
        row[c] = SCALE * above[c - 1];
    }
}

/* -- polynomials ----------------------------------------------------------- */

/* Multiplies p [len] by (scale * (1 + x)) ^ times, up to degree top. There are
 * PAD zeros before p and room for PAD after p[top]. */
BON_INLINE void add_samples(double *p, size_t len, size_t times, size_t top)
{
    for (size_t t = 0; t < times; t++) {
        if (len <= top) len++;
        for (size_t i = (len - 1) / 4 * 4 + 4; i > 0;) {
            i -= 4;
            const bon_vec here = *(const bon_vec *)(p + i);
            const bon_vec below = *(const bon_vec *)(p + i - 1);
            *(bon_vec *)(p + i) = SCALE * (here + below);
        }
    }
}

/* to[x] = sum over j < m of b[j] * from[x - j], plus f * p[x] + g * q[x], for
 * x < len. There are m - 1 zeros before from; all arrays have PAD to spare. */
BON_INLINE void extend(double *to, size_t len, const double *from, const double *b,
                       size_t m, const double *p, double f, const double *q, double g)
{
    for (size_t x = 0; x < len; x += 4) {
        bon_vec sum = f * *(const bon_vec *)(p + x) + g * *(const bon_vec *)(q + x);
        for (size_t j = 0; j < m; j++) sum += b[j] * *(const bon_vec *)(from + x - j);
        *(bon_vec *)(to + x) = sum;
    }
}

/* -- a vote each: exactly --------------------------------------------------- */

/* The answers that can have m votes, and products over them: row s of `plain`
 * and `paid` belongs to s winners, and its element x to x + s * m samples. */
typedef struct {
    size_t m, top;         /* votes of a winner; most samples (k_max) */
    size_t winners;        /* most winners that fit into top samples */
    size_t before, stride; /* zeros before a row; doubles from row to row */
    double *plain;         /* number of subsets */
    double *paid;          /* the same, times the sum of the winners' values */
    double *next;          /* a row at work */
    double *zeros;         /* [top + 1] zeros, for what there is none of */
} level;

/* Elements of the row of s winners among `answers`; 0 if they cannot be. */
static size_t row_length(const level *at, size_t s, size_t answers)
{
    if (s > answers || s * at->m > at->top) return 0;
    const size_t all = (answers - s) * (at->m - 1) + 1, fit = at->top - s * at->m + 1;
    return all < fit ? all : fit;
}

static double *row_of(const level *at, double *rows, size_t s)
{
    return rows + s * at->stride + at->before;
}

/* For winners with one vote the number of samples is the number of winners, so
 * one row, with an element per number of winners, is enough. Where one answer is
 * paid its products are written before they are read. */
static void clear_level(level *at, size_t answers, size_t paid)
{
    at->winners = answers < at->top / at->m ? answers : at->top / at->m;
    at->before = at->m == 1 ? PAD : (at->m - 1 + PAD - 1) / PAD * PAD;
    at->stride = at->before + 2 * PAD
                 + (at->m == 1 ? at->winners + 1 : row_length(at, 0, answers));
    const size_t rows = at->m == 1 ? 1 : at->winners + 1;
    memset(at->plain, 0, rows * at->stride * sizeof *at->plain);
    if (paid > 1) memset(at->paid, 0, rows * at->stride * sizeof *at->paid);
    row_of(at, at->plain, 0)[0] = 1.0;
}

/* Which products an answer takes part in: nothing is paid before the first that
 * has a value, and `plain` is of no more use after the last. */
typedef struct {
    double value;
    int first, last;
} payment;

/* Multiplies by one more answer, chances[j] for j votes of it. `answers` counts
 * it. Rows are done from many winners to few: s needs the old s and s - 1. */
BON_INLINE void include_answer(const level *at, const double *chances, payment pay,
                               size_t answers)
{
    const double win = chances[at->m];
    for (size_t s = answers < at->winners ? answers : at->winners;; s--) {
        const size_t len = row_length(at, s, answers);
        double *plain = row_of(at, at->plain, s), *paid = row_of(at, at->paid, s);
        const double *fewer_plain = s > 0 ? plain - at->stride : at->zeros;
        const double *fewer_paid = s > 0 && !pay.first ? paid - at->stride : at->zeros;
        if (s > 0 && pay.value != 0.0) {
            extend(at->next, len, paid, chances, pay.first ? 0 : at->m, fewer_paid, win,
                   fewer_plain, win * pay.value);
            memcpy(paid, at->next, len * sizeof *paid);
        }
        if (!pay.last) {
            extend(at->next, len, plain, chances, at->m, fewer_plain, win, at->zeros, 0.0);
            memcpy(plain, at->next, len * sizeof *plain);
        }
        if (s == 0) break;
    }
}

/* Winners share evenly: sum[x] += paid / winners. */
BON_INLINE void add_level(const level *at, size_t answers, double *sum)
{
    for (size_t s = 1; s <= at->winners; s++) {
        const double share = 1.0 / (double)s;
        const double *paid = at->m == 1 ? at->paid + at->before + s : row_of(at, at->paid, s);
        const size_t len = at->m == 1 ? 1 : row_length(at, s, answers);
        for (size_t x = 0; x < len; x++) sum[s * at->m + x] += share * paid[x];
    }
}

/* The same for winners with one vote. */
BON_INLINE void include_single(const level *at, const double *chances, payment pay,
                               size_t answers)
{
    double *plain = row_of(at, at->plain, 0), *paid = row_of(at, at->paid, 0);
    const size_t len = (answers < at->winners ? answers : at->winners) + 1;
    if (pay.value != 0.0) {
        extend(at->next, len, paid, chances, pay.first ? 0 : 2, plain - 1,
               chances[1] * pay.value, at->zeros, 0.0);
        memcpy(paid, at->next, len * sizeof *paid);
    }
    if (!pay.last) {
        extend(at->next, len, plain, chances, 2, at->zeros, 0.0, at->zeros, 0.0);
        memcpy(plain, at->next, len * sizeof *plain);
    }
}

/* Answers with a value and without, each by falling number of votes. */
typedef struct {
    const tally *row;
    const double *table;
    int32_t *order;         /* [answers] those without value, then those with */
    size_t unpaid, answers; /* lengths */
} ballot;

static void sort_answers(ballot *by)
{
    const tally *row = by->row;
    by->unpaid = by->answers = 0;
    for (int with_value = 0; with_value < 2; with_value++) {
        const size_t first = by->answers;
        for (size_t g = 0; g < row->answers; g++) {
            if ((row->values[g] != 0.0) != with_value) continue;
            size_t at = by->answers++;
            for (; at > first && row->counts[by->order[at - 1]] < row->counts[g]; at--)
                by->order[at] = by->order[at - 1];
            by->order[at] = (int32_t)g;
        }
        if (!with_value) by->unpaid = by->answers;
    }
}

/* Adds the subsets that are won with m votes; the first `unpaid` of the answers
 * without value and the first `paid` of those with value can have as many. */
BON_INLINE void count_level(const ballot *by, level *at, size_t unpaid, size_t paid)
{
    const tally *row = by->row;
    const int32_t *with_value = by->order + by->unpaid;
    if (unpaid == 0 && paid == 1) {
        const int32_t only = with_value[0];
        row->sum[at->m] += row->values[only] * choose(by->table, (size_t)row->counts[only])[at->m];
        return;
    }
    const size_t answers = unpaid + paid;
    clear_level(at, answers, paid);
    for (size_t i = 0; i < answers; i++) {
        const int32_t g = i < unpaid ? by->order[i] : with_value[i - unpaid];
        const payment pay = {row->values[g], i == unpaid, i + 1 == answers};
        const double *chances = choose(by->table, (size_t)row->counts[g]);
        if (at->m == 1) include_single(at, chances, pay, i + 1);
        else include_answer(at, chances, pay, i + 1);
    }
    add_level(at, answers, row->sum);
}

BON_INLINE void count_votes(ballot *by, level *at)
{
    const tally *row = by->row;
    const int32_t *unpaid = by->order, *end_unpaid, *paid, *end_paid;
    sort_answers(by);
    end_unpaid = paid = end_paid = by->order + by->unpaid;
    end_paid = by->order + by->answers;

    size_t most = 0, votes = 0; /* votes: of all answers with at least m */
    for (size_t g = 0; g < row->answers; g++)
        if ((size_t)row->counts[g] > most) most = (size_t)row->counts[g];
    if (most > at->top) most = at->top;
    for (size_t m = most; m > 0; m--) {
        size_t more = 0;
        for (; unpaid < end_unpaid && (size_t)row->counts[*unpaid] >= m; unpaid++)
            more += (size_t)row->counts[*unpaid];
        for (; paid < end_paid && (size_t)row->counts[*paid] >= m; paid++)
            more += (size_t)row->counts[*paid];
        if (votes > 0) add_samples(row->sum, (votes < at->top ? votes : at->top) + 1, more, at->top);
        votes += more;
        at->m = m;
        if (paid > end_unpaid)
            count_level(by, at, (size_t)(unpaid - by->order), (size_t)(paid - end_unpaid));
    }
}

static void count_votes_anywhere(ballot *by, level *at) { count_votes(by, at); }
BON_AVX2 static void count_votes_avx2(ballot *by, level *at) { count_votes(by, at); }

/* -- weights: exactly ------------------------------------------------------- */

/* The subsets of an answer's votes with one sum of weights and one size. */
typedef struct {
    int64_t weight;
    int64_t drawn;  /* votes in the subset */
    double subsets; /* how many, scaled */
    double paid;    /* sum over them of the mean reward of their votes */
} vote_sum;

/* All of them, each answer's by rising weight and size. */
typedef struct {
    const tally *row;
    const int64_t *weights; /* [n] */
    vote_sum *sums;         /* [BON_MAX_EXACT_SUMS] all answers */
    vote_sum *work;         /* [2, BON_MAX_EXACT_SUMS] the answer at work */
    size_t *next, *end;     /* [answers] what is left of each */
    size_t *start;          /* [answers] of each in the three below */
    double *below, *level, *paid; /* [voters + answers] per votes drawn: subsets that
                                     weigh less, as much, and the latter times reward */
} sweep;

static int comes_before(const vote_sum *a, const vote_sum *b)
{
    return a->weight != b->weight ? a->weight < b->weight : a->drawn < b->drawn;
}

/* One more vote: every subset without it and with it. Returns the new length,
 * or 0 if there are too many. */
static size_t add_vote(const vote_sum *old, size_t len, int64_t weight, double reward,
                       vote_sum *merged)
{
    size_t without = 0, with = 0, made = 0;
    while (with < len) {
        if (made == BON_MAX_EXACT_SUMS) return 0;
        const vote_sum add = {old[with].weight + weight, old[with].drawn + 1,
                              SCALE * old[with].subsets,
                              SCALE * (old[with].paid + reward * old[with].subsets)};
        vote_sum one = add;
        if (without < len && !comes_before(&add, &old[without])) {
            one = old[without];
            one.subsets *= SCALE;
            one.paid *= SCALE;
            if (!comes_before(&old[without++], &add)) {
                one.subsets += add.subsets;
                one.paid += add.paid;
                with++;
            }
        } else {
            with++;
        }
        merged[made++] = one;
    }
    return made;
}

/* The sums of answer g go to by->sums from `used` on; returns the new `used`,
 * or 0 if there are too many. The empty subset weighs less than any other. */
static size_t sums_of_answer(sweep *by, size_t n, const double *rewards, int32_t g,
                             size_t used)
{
    vote_sum *now = by->work, *then = by->work + BON_MAX_EXACT_SUMS;
    size_t len = 1;
    now[0] = (vote_sum){.weight = 0, .drawn = 0, .subsets = 1.0, .paid = 0.0};
    for (size_t i = 0; i < n; i++) {
        if (by->row->groups[i] != g) continue;
        len = add_vote(now, len, by->weights[i], rewards[i], then);
        if (len == 0) return 0;
        vote_sum *swap = now;
        now = then;
        then = swap;
    }
    if (used + len > BON_MAX_EXACT_SUMS) return 0;
    const size_t start = by->start[g], votes = (size_t)by->row->counts[g];
    memset(by->below + start, 0, (votes + 1) * sizeof *by->below);
    by->below[start] = now[0].subsets;
    by->next[g] = used;
    for (size_t i = 1; i < len; i++) {
        now[i].paid /= (double)now[i].drawn;
        by->sums[used++] = now[i];
    }
    by->end[g] = used;
    return used;
}

/* False if there are too many sums. */
static int list_sums(sweep *by, size_t n, const double *rewards)
{
    size_t used = 0, start = 0;
    for (size_t g = 0; g < by->row->answers; g++) {
        by->start[g] = start;
        start += (size_t)by->row->counts[g] + 1;
        used = sums_of_answer(by, n, rewards, (int32_t)g, used);
        if (used == 0) return 0;
    }
    return 1;
}

/* to[i + j] += p[i] * q[j] up to to[top]. */
static void add_product(double *restrict to, size_t top, const double *p, size_t p_top,
                        const double *q, size_t q_top)
{
    for (size_t i = 0; i <= p_top && i <= top; i++) {
        const size_t last = q_top < top - i ? q_top : top - i;
        for (size_t j = 0; j <= last; j++) to[i + j] += p[i] * q[j];
    }
}

/* Multiplies by answer g, as in include_answer; degree: of what is there. */
static void include_weighted(const sweep *by, const level *at, size_t g, int tied,
                             size_t degree, size_t winners)
{
    const size_t votes = (size_t)by->row->counts[g], bytes = (at->top + 1) * sizeof(double);
    const double *below = by->below + by->start[g], *as_much = by->level + by->start[g];
    const double *worth = by->paid + by->start[g];
    for (size_t s = winners + (size_t)tied;; s--) {
        double *plain = row_of(at, at->plain, s), *paid = row_of(at, at->paid, s);
        if (s > 0) {
            memset(at->next, 0, bytes);
            add_product(at->next, at->top, paid, degree, below, votes);
            if (tied) {
                add_product(at->next, at->top, paid - at->stride, degree, as_much, votes);
                add_product(at->next, at->top, plain - at->stride, degree, worth, votes);
            }
            memcpy(paid, at->next, bytes);
        }
        memset(at->next, 0, bytes);
        add_product(at->next, at->top, plain, degree, below, votes);
        if (tied && s > 0)
            add_product(at->next, at->top, plain - at->stride, degree, as_much, votes);
        memcpy(plain, at->next, bytes);
        if (s == 0) break;
    }
}

/* Adds the subsets whose winners weigh what by->level holds; `tied` answers can. */
static void sweep_level(const sweep *by, level *at, const unsigned char *can, size_t tied)
{
    const size_t rows = tied + 1;
    size_t degree = 0, winners = 0;
    memset(at->plain, 0, rows * at->stride * sizeof *at->plain);
    memset(at->paid, 0, rows * at->stride * sizeof *at->paid);
    row_of(at, at->plain, 0)[0] = 1.0;
    for (int pass = 0; pass < 2; pass++)
        for (size_t g = 0; g < by->row->answers; g++) {
            if (can[g] != pass) continue;
            include_weighted(by, at, g, pass, degree, winners);
            degree += (size_t)by->row->counts[g];
            if (degree > at->top) degree = at->top;
            winners += (size_t)pass;
        }
    for (size_t s = 1; s <= tied; s++)
        for (size_t x = 0; x <= at->top; x++)
            by->row->sum[x] += row_of(at, at->paid, s)[x] / (double)s;
}

/* Moves the sums of weight `least` of answer g into by->level and by->paid.
 * True where there are any; *worth is set where one of them pays. */
static int take_level(sweep *by, size_t g, int64_t least, int *worth)
{
    const size_t start = by->start[g], bytes = ((size_t)by->row->counts[g] + 1) * sizeof(double);
    int any = 0;
    for (; by->next[g] < by->end[g]; by->next[g]++) {
        const vote_sum *one = &by->sums[by->next[g]];
        if (one->weight != least) break;
        if (!any) {
            memset(by->level + start, 0, bytes);
            memset(by->paid + start, 0, bytes);
            any = 1;
        }
        by->level[start + (size_t)one->drawn] = one->subsets;
        by->paid[start + (size_t)one->drawn] = one->paid;
        *worth = *worth || one->paid != 0.0;
    }
    return any;
}

static void sweep_sums(sweep *by, level *at, unsigned char *can)
{
    const size_t answers = by->row->answers;
    at->before = 0;
    at->stride = at->top + 1;
    for (;;) {
        int64_t least = INT64_MAX;
        for (size_t g = 0; g < answers; g++)
            if (by->next[g] < by->end[g] && by->sums[by->next[g]].weight < least)
                least = by->sums[by->next[g]].weight;
        if (least == INT64_MAX) return;

        size_t tied = 0;
        int worth = 0;
        for (size_t g = 0; g < answers; g++) {
            can[g] = (unsigned char)take_level(by, g, least, &worth);
            tied += can[g];
        }
        if (worth) sweep_level(by, at, can, tied);
        for (size_t g = 0; g < answers; g++)
            for (size_t j = 0; can[g] && j <= (size_t)by->row->counts[g]; j++)
                by->below[by->start[g] + j] += by->level[by->start[g] + j];
    }
}

/* -- weights: random orders -------------------------------------------------- */

/* One random order of the samples, drawn step by step. */
typedef struct {
    bon_rng_key key;
    uint64_t words[4];
    uint64_t taken; /* 32-bit numbers */
} shuffler;

/* A number below `range`; the bias of at most range / 2^32 is far below the
 * error of the estimate. */
static size_t draw_below(shuffler *from, size_t range)
{
    if (from->taken % 8 == 0) bon_rng_block(&from->key, from->taken / 8, from->words);
    const uint64_t half = from->words[from->taken % 8 / 2] >> (from->taken % 2 * 32);
    from->taken++;
    return (size_t)((half & UINT32_MAX) * range >> 32);
}

typedef struct {
    const tally *row;
    const double *rewards;  /* [n] */
    const int64_t *weights; /* [n] */
    int32_t *samples;       /* [n] places that hold one */
    int32_t *order;         /* [n] the same, shuffled */
    int64_t *totals;        /* [answers] weight so far, -1: none seen */
    double *firsts;         /* [answers] reward of the first seen */
} running;

/* Adds to row->sum[k] the reward of the winner of the first k, for every k. */
static void draw_order(const running *vote, shuffler *from)
{
    const tally *row = vote->row;
    for (size_t g = 0; g < row->answers; g++) vote->totals[g] = -1;
    memcpy(vote->order, vote->samples, row->samples * sizeof *vote->order);
    int64_t best = -1;
    double tied = 0.0, winners = 1.0, reward = 0.0;
    for (size_t j = 0; j < row->k_max; j++) {
        const size_t pick = j + draw_below(from, row->samples - j);
        const int32_t i = vote->order[pick], g = row->groups[i];
        vote->order[pick] = vote->order[j];
        if (g < 0) {
            if (j == 0) reward = vote->rewards[i];
        } else {
            const int fresh = vote->totals[g] < 0;
            if (fresh) vote->firsts[g] = vote->rewards[i];
            vote->totals[g] += vote->weights[i] + fresh;
            if (vote->totals[g] > best) {
                best = vote->totals[g];
                tied = vote->firsts[g];
                winners = 1.0;
            } else if (vote->totals[g] == best && (fresh || vote->weights[i] > 0)) {
                tied += vote->firsts[g];
                winners += 1.0;
            }
            reward = tied / winners;
        }
        row->sum[j + 1] += reward;
    }
}

static void draw_orders(const running *vote, size_t n, uint64_t seed, uint64_t prompt)
{
    size_t samples = 0;
    for (size_t i = 0; i < n; i++)
        if (vote->row->groups[i] != BON_NO_SAMPLE) vote->samples[samples++] = (int32_t)i;
    for (uint64_t order = 0; order < BON_RESAMPLES; order++) {
        shuffler from = {.key = {.seed = seed, .prompt = prompt, .sample = order}};
        draw_order(vote, &from);
    }
    for (size_t k = 1; k <= vote->row->k_max; k++) vote->row->sum[k] /= BON_RESAMPLES;
}

/* -- rows ------------------------------------------------------------------ */

/* Everything a row needs, laid out in the caller's scratch. */
typedef struct {
    tally row;
    ballot by;
    level at;
    sweep weighed;
    running vote;
    int64_t *weights;   /* [n] */
    unsigned char *can; /* [answers] */
} workspace;

/* Hands out pieces of scratch; where base is NULL it only adds up. */
typedef struct {
    char *base;
    size_t used; /* bytes */
} pieces;

static void *piece(pieces *from, size_t count, size_t size)
{
    const size_t start = from->used;
    from->used += (count * size + 7) / 8 * 8;
    return from->base ? from->base + start : NULL;
}

static double *padded(pieces *from, size_t count)
{
    double *start = piece(from, count + 2 * PAD, sizeof *start);
    return start ? start + PAD : NULL;
}

/* Doubles of the products in count_votes: rows of winners times samples, over
 * all m; or in sweep_level, where every answer may tie. */
static size_t product_size(size_t n, int weighted)
{
    const size_t exact = exact_votes(n);
    return weighted ? (exact + 2) * (exact + 14) : exact * exact / 2 + 16 * exact + 64;
}

static size_t lay_out(size_t n, int weighted, void *scratch, workspace *work)
{
    pieces from = {scratch, 0};
    const size_t sums = weighted ? BON_MAX_EXACT_SUMS : 0, some = weighted ? n : 0;
    const size_t product = product_size(n, weighted);
    work->row.groups = piece(&from, n, sizeof(int32_t));
    work->row.slots = piece(&from, bon_group_scratch(n), sizeof(int32_t));
    work->row.counts = piece(&from, n, sizeof(int32_t));
    work->row.values = piece(&from, n, sizeof(double));
    work->row.sum = padded(&from, n + 1);
    work->by.order = piece(&from, n, sizeof(int32_t));
    work->at.plain = padded(&from, product);
    work->at.paid = padded(&from, product);
    work->at.next = padded(&from, n + 1);
    work->at.zeros = padded(&from, n + 1);
    work->vote.samples = piece(&from, n, sizeof(int32_t));
    work->vote.order = piece(&from, n, sizeof(int32_t));
    work->vote.totals = piece(&from, n, sizeof(int64_t));
    work->vote.firsts = piece(&from, n, sizeof(double));
    work->weights = piece(&from, n, sizeof(int64_t));
    work->can = piece(&from, some, 1);
    work->weighed.sums = piece(&from, sums, sizeof(vote_sum));
    work->weighed.work = piece(&from, 2 * sums, sizeof(vote_sum));
    work->weighed.next = piece(&from, some, sizeof(size_t));
    work->weighed.end = piece(&from, some, sizeof(size_t));
    work->weighed.start = piece(&from, some, sizeof(size_t));
    work->weighed.below = piece(&from, 2 * some, sizeof(double));
    work->weighed.level = piece(&from, 2 * some, sizeof(double));
    work->weighed.paid = piece(&from, 2 * some, sizeof(double));
    return from.used;
}

size_t bon_majority_scratch(size_t n, int weighted)
{
    workspace work;
    return lay_out(n, weighted, NULL, &work);
}

static int all_equal(const int64_t *weights, const tally *row, size_t n)
{
    int64_t first = -1;
    for (size_t i = 0; i < n; i++) {
        if (row->groups[i] < 0) continue;
        if (first < 0) first = weights[i];
        if (weights[i] != first) return 0;
    }
    return first != 0;
}

/* After the winners: samples without an answer, in all numbers, and the subsets
 * that have no others; then from numbers of subsets to the mean over them. */
static void finish_exact(const tally *row, size_t top, const double *table)
{
    const size_t idle = row->samples - row->voters;
    if (idle > 0) {
        double none = row->idle; /* and no vote drawn: SCALE per voter */
        for (size_t i = 0; i < row->voters; i++) none *= SCALE;
        row->sum[0] += none;
        const size_t len = (row->voters < top ? row->voters : top) + 1;
        add_samples(row->sum, len, idle, top);
    }
    const double *subsets = choose(table, row->samples);
    for (size_t k = 1; k <= top; k++) row->sum[k] /= subsets[k];
}

/* work->weights holds the weights if `weighted`. */
static void count_row(workspace *work, size_t n, const double *rewards, int weighted,
                      const double *table, uint64_t seed, uint64_t prompt)
{
    tally *row = &work->row;
    memset(row->sum - PAD, 0, (row->k_max + 1 + 2 * PAD) * sizeof *row->sum);
    work->at.top = row->k_max;
    work->by = (ballot){.row = row, .table = table, .order = work->by.order};
    work->weighed.row = work->vote.row = row;
    work->weighed.weights = work->vote.weights = work->weights;
    work->vote.rewards = rewards;

    if (row->samples <= BON_MAX_EXACT_VOTES) {
        if (!weighted || all_equal(work->weights, row, n)) {
            if (bon_has_avx2()) count_votes_avx2(&work->by, &work->at);
            else count_votes_anywhere(&work->by, &work->at);
            finish_exact(row, row->k_max, table);
            return;
        }
        if (list_sums(&work->weighed, n, rewards)) {
            sweep_sums(&work->weighed, &work->at, work->can);
            finish_exact(row, row->k_max, table);
            return;
        }
    }
    draw_orders(&work->vote, n, seed, prompt);
}

bon_status bon_majority_at_k(const int64_t *codes, const double *weights,
                             const double *rewards, size_t rows, size_t n,
                             const int64_t *ks, size_t nk, const double *table,
                             void *scratch, uint64_t seed, uint64_t row_number, double *out,
                             size_t *bad)
{
    *bad = 0;
    if (n > BON_MAX_VOTES) return BON_ERR_DOMAIN;
    workspace work;
    (void)lay_out(n, weights != NULL, scratch, &work);
    memset(work.at.zeros - PAD, 0, (n + 1 + 2 * PAD) * sizeof(double));
    size_t k_max = 0;
    for (size_t j = 0; j < nk; j++) {
        if (ks[j] < 1 || ks[j] > (int64_t)n) return BON_ERR_DOMAIN;
        if ((size_t)ks[j] > k_max) k_max = (size_t)ks[j];
    }
    work.row.k_max = k_max;
    for (size_t r = 0; r < rows; r++) {
        const size_t first = r * n;
        bon_status status = take_votes(codes + first, rewards + first, n, &work.row, bad);
        if (status == BON_OK && work.row.samples < k_max) {
            *bad = 0;
            status = BON_ERR_DOMAIN;
        }
        if (status == BON_OK && weights != NULL)
            status = bon_fix_weights(weights + first, work.row.groups, n, work.weights, bad);
        if (status != BON_OK) {
            *bad += first;
            return status;
        }
        if (weights == NULL && n > BON_MAX_EXACT_VOTES)
            for (size_t i = 0; i < n; i++) work.weights[i] = 1;
        count_row(&work, n, rewards + first, weights != NULL, table, seed, row_number + r);
        for (size_t j = 0; j < nk; j++) out[r * nk + j] = work.row.sum[ks[j]];
    }
    return BON_OK;
}
