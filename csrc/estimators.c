/* estimators.c - see estimators.h for what is computed and why.
 *
 * Binomial coefficients overflow long before n gets interesting, and a
 * difference of log-gammas loses the digits of small probabilities. Here both
 * estimators are recurrences over draws, in which every term is >= 0: nothing
 * overflows and nothing cancels.
 *
 * best-of-k is a sort and a product with a table of weights, or for many k
 * running sums; rows of two levels need neither. All others work on eight
 * rows side by side: a sorting network compares the same two places of every
 * row, so eight rows cost hardly more than one and nothing branches.
 */
#include "estimators.h"

#include <math.h>
#include <stdlib.h>

#include "dispatch.h"
#include "ranking.h"
#include "running_sums.h"
#include "short_keys.h"
#include "two_levels.h"

/* -- pass@k ---------------------------------------------------------------- */

/* Draw without replacement until the first correct sample:
 *
 *   P(first hit is draw i) = P(all earlier draws miss) * hits / (n - i)
 *
 * and pass@k is the sum over draws. Requires 0 <= c <= n and 1 <= k <= n. */
static double pass_at_k(int64_t n, int64_t c, int64_t k)
{
    if (c > n - k) return 1.0; /* fewer than k wrong samples exist */

    /* C(n-c,k)/C(n,k) = C(n-k,c)/C(n,c): "k draws, c hits" and "c draws, k
     * hits" have the same chance, so take the shorter walk. */
    const int64_t draws = c < k ? c : k;
    const int64_t hits = c < k ? k : c;

    double pass = 0.0, miss = 1.0;
    for (int64_t i = 0; i < draws; i++) {
        const double left = (double)(n - i);
        pass += miss * ((double)hits / left);
        miss *= (double)(n - i - hits) / left;
        if (pass + miss == pass) break; /* all later terms sum to < miss */
    }
    return fmin(pass, 1.0); /* rounding may end a few ulp above */
}

static int counts_fit(int64_t n, int64_t c, int64_t k_max)
{
    return n >= k_max && n <= BON_MAX_SAMPLES && c >= 0 && c <= n;
}

/* How many prompts from here on have the same n; stops looking after limit. */
static size_t run_of_equal(const int64_t *n, size_t len, int64_t limit)
{
    size_t run = 1;
    while (run < len && (int64_t)run <= limit && n[run] == n[0]) run++;
    return run;
}

/* Looks up prompts for as long as they have n samples; returns how many. Most
 * are done in blocks without a branch; where one of a block differs, the block
 * is left to the loop below. mask + 1 is a power of two and the table has as
 * many rows: no look-up leaves it. */
enum { BLOCK = 64 };

static size_t look_up(const double *table, uint64_t mask, int64_t n, const int64_t *ns,
                      const int64_t *c, size_t len, size_t nk, double *out)
{
    size_t i = 0;
    for (; nk == 1 && i + BLOCK <= len; i += BLOCK) {
        uint64_t differ = 0;
        for (size_t j = i; j < i + BLOCK; j++) {
            const uint64_t cj = (uint64_t)c[j];
            differ |= (uint64_t)(ns[j] ^ n) | (uint64_t)(cj > (uint64_t)n);
            out[j] = table[cj & mask];
        }
        if (differ) break;
    }
    for (; i < len && ns[i] == n; i++) {
        const int64_t ci = c[i];
        if (ci < 0 || ci > n) break;
        const double *row = table + (size_t)ci * nk;
        for (size_t j = 0; j < nk; j++) out[i * nk + j] = row[j];
    }
    return i;
}

bon_status bon_pass_at_k(const int64_t *n, const int64_t *c, size_t len,
                         const int64_t *ks, size_t nk, double *table, size_t room,
                         double *out, size_t *bad)
{
    int64_t k_max = 1;
    *bad = 0;
    for (size_t j = 0; j < nk; j++) {
        if (ks[j] < 1) return BON_ERR_DOMAIN;
        if (ks[j] > k_max) k_max = ks[j];
    }
    for (size_t i = 0; i < len;) {
        const int64_t ni = n[i], ci = c[i];
        if (!counts_fit(ni, ci, k_max)) {
            *bad = i;
            return BON_ERR_DOMAIN;
        }
        const uint64_t mask = bon_index_mask((uint64_t)ni + 1);
        if (nk > 0 && mask < room / nk && run_of_equal(n + i, len - i, ni) > (size_t)ni) {
            for (int64_t ct = 0; ct <= ni; ct++)
                for (size_t j = 0; j < nk; j++)
                    table[(size_t)ct * nk + j] = pass_at_k(ni, ct, ks[j]);
            i += look_up(table, mask, ni, n + i, c + i, len - i, nk, out + i * nk);
            continue;
        }
        for (size_t j = 0; j < nk; j++) out[i * nk + j] = pass_at_k(ni, ci, ks[j]);
        i++;
    }
    return BON_OK;
}

/* -- best-of-k: weights ---------------------------------------------------- */

enum { PANEL = BON_RANK_PANEL };

/* With the samples sorted best first, rank i wins a subset exactly when it is
 * in and all better ranks are out, which has the chance
 *
 *   w(i) = C(n-1-i, k-1) / C(n, k),   w(0) = k/n,
 *   w(i+1) = w(i) * (n-k-i) / (n-1-i),   0 after rank n-k. */
bon_status bon_rank_weights(size_t n, const int64_t *ks, size_t nk, double *weights,
                            double *hits)
{
    if (n < 1 || n > BON_MAX_RANKED) return BON_ERR_DOMAIN;
    for (size_t j = 0; j < nk; j++)
        if (ks[j] < 1 || ks[j] > (int64_t)n) return BON_ERR_DOMAIN;

    for (size_t j = 0; j < nk; j += PANEL) {
        double k[PANEL] = {0.0}, weight[PANEL] = {0.0}, *panel = weights + j * n;
        for (size_t c = 0; c < PANEL && j + c < nk; c++) {
            k[c] = (double)ks[j + c];
            weight[c] = k[c] / (double)n;
        }
        for (size_t i = 0; i < n; i++) {
            const double left = (double)(n - i), share = 1.0 / (left - 1.0);
            for (size_t c = 0; c < PANEL; c++) {
                panel[i * PANEL + c] = weight[c];
                weight[c] = weight[c] * (left - k[c]) * share;
            }
        }
        double hit[PANEL] = {0.0}, *sums = hits + j * (n + 1);
        for (size_t i = 0; i <= n; i++)
            for (size_t c = 0; c < PANEL; c++) {
                const int sure = (double)i > (double)n - k[c] || hit[c] > 1.0;
                sums[i * PANEL + c] = sure ? 1.0 : hit[c];
                if (i < n) hit[c] += panel[i * PANEL + c];
            }
    }
    return BON_OK;
}

/* -- best-of-k: ranking eight rows side by side ----------------------------- */

enum { LANES = BON_ABREAST };

/* The rows after those at work, at most LANES. */
typedef struct {
    const double *scores, *rewards;
    size_t rows;
} next_rows;

/* One call of bon_best_of_k, with its scratch cut up for LANES rows: element i
 * of row l is at [i * LANES + l]. */
typedef struct {
    size_t n, nk, stride; /* stride: of out */
    const int64_t *ks;    /* [nk] */
    const double *weights, *hits;
    int stream;           /* whole lines of out are written past the caches */
    int by_sums;          /* many k: running sums and not weights; see running_sums.h */
    uint64_t mask;        /* the bits of a key that hold the index of its sample */
    int32_t *places;      /* [n, LANES] keys, then where in [rows, n] the samples are, best first */
    double *keys;         /* [n, LANES] scores, then sorted; see ranking.h */
    double *values;       /* [n, LANES] rewards in order of places */
    double *scores;       /* [n, LANES] whole scores in order of places, where there are ties */
    double *pairs;        /* [n, 2]     see sort_lane */
    double *scales;       /* [n]        see running_sums.h */
    next_rows next;
    size_t parts;         /* in which they are fetched */
} ranking;

/* True if all of x [count] are finite and so small that factor does not change that. */
BON_INLINE int finite_by(double factor, const double *x, size_t count)
{
    bon_vec sum[4] = {{0.0}};
    size_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (size_t v = 0; v < 4; v++) sum[v] += factor * *bon_const_vec_at(x + i + 4 * v);
    const bon_vec all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    double total = (all[0] + all[1]) + (all[2] + all[3]);
    for (; i < count; i++) total += factor * x[i];
    return isfinite(total);
}

/* to[i * LANES + l] = element i of row l; lanes beyond `rows` repeat the last row. */
static void load_lanes(const double *from, size_t rows, size_t n, double *to)
{
    for (size_t l = 0; l < LANES; l++) {
        const double *row = from + (l < rows ? l : rows - 1) * n;
        for (size_t i = 0; i < n; i++) to[i * LANES + l] = row[i];
    }
}

/* Where in [rows, n] each lane begins; lanes beyond `rows` repeat the last row. */
BON_INLINE void find_starts(size_t rows, size_t n, bon_ints *starts)
{
    for (size_t l = 0; l < LANES; l++) (*starts)[l] = (int32_t)((l < rows ? l : rows - 1) * n);
}

/* sorted [n, LANES] = from in the order of places. */
BON_INLINE void gather(const ranking *by, const double *from, double *sorted)
{
    const uint32_t *places = (const uint32_t *)by->places;
    for (size_t i = 0; i < by->n * LANES; i += 4)
        *bon_vec_at(sorted + i) = (bon_vec){from[places[i]], from[places[i + 1]],
                                            from[places[i + 2]], from[places[i + 3]]};
}

/* Rows of more doubles are left to the processor. It fetches ahead by itself, but not
 * beyond the end of a page, and eight rows of 64 fill one. */
enum { FETCHED = 128, LINE = 8 };

/* Ranking fetches so many parts of the next rows, weighing the others. */
enum { RANKING_PARTS = 4 };

/* Asks for one part of the next rows: a few lines with each step of the work, since the
 * processor waits for about twenty at a time; into the second cache, since the first is full. */
BON_INLINE void fetch_next(const ranking *by, size_t part)
{
    const next_rows *next = &by->next;
    if (by->n > FETCHED) return;
    for (size_t i = part * LINE; i < next->rows * by->n; i += by->parts * LINE) {
        __builtin_prefetch(next->scores + i, 0, 2);
        __builtin_prefetch(next->rewards + i, 0, 2);
    }
}

/* What is known of eight rows after sorting keys. TIES: in some lane neighbours agree in
 * all bits but the index. */
enum { NOT_FINITE, NOT_RANKED, NO_TIES, TIES };

/* Fills places, unless the rows are too long or their scores too far apart. */
BON_INLINE int rank_by_short_keys(const ranking *by, const double *scores, size_t rows)
{
    const int32_t mask = (int32_t)by->mask;
    if (by->n > BON_MAX_SHORT
        || !bon_load_short_keys(scores, rows, by->n, mask, by->places))
        return NOT_RANKED;
    fetch_next(by, 0);
    bon_sort_short_keys(by->places, bon_short_keys(by->n));
    fetch_next(by, 1);
    bon_ints starts, tied = {0}, before = ~*(bon_ints *)by->places;
    find_starts(rows, by->n, &starts);
    for (size_t i = 0; i < by->n; i++) {
        bon_ints *at = (bon_ints *)(by->places + i * LANES);
        const bon_ints key = *at;
        tied |= ((key ^ before) & ~mask) == 0;
        *at = (key & mask) + starts;
        before = key;
    }
    for (size_t l = 0; l < LANES; l++)
        if (tied[l]) return TIES;
    return NO_TIES;
}

/* The same with whole keys, which always serve. */
BON_INLINE int rank_by_keys(const ranking *by, const double *scores, size_t rows)
{
    bon_load_keys(scores, rows, by->n, by->mask, by->keys);
    bon_sort_keys(by->keys, by->n);
    bon_ints starts;
    uint64_t tied = 0;
    find_starts(rows, by->n, &starts);
    for (size_t i = 0; i < by->n; i++)
        for (size_t l = 0; l < LANES; l++) {
            const uint64_t key = bon_bits_of(by->keys[i * LANES + l]);
            const uint64_t before = i ? bon_bits_of(by->keys[(i - 1) * LANES + l]) : ~key;
            tied |= ((key ^ before) & ~by->mask) == 0;
            by->places[i * LANES + l] = starts[l] + (int32_t)(key & by->mask);
        }
    return tied ? TIES : NO_TIES;
}

static int by_falling_score(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* Sorts one lane by whole scores. */
static void sort_lane(const ranking *by, size_t lane)
{
    double *scores = by->scores + lane, *values = by->values + lane, *pairs = by->pairs;
    for (size_t i = 0; i < by->n; i++) {
        pairs[2 * i] = scores[i * LANES];
        pairs[2 * i + 1] = values[i * LANES];
    }
    qsort(pairs, by->n, 2 * sizeof *pairs, by_falling_score);
    for (size_t i = 0; i < by->n; i++) {
        scores[i * LANES] = pairs[2 * i];
        values[i * LANES] = pairs[2 * i + 1];
    }
}

/* Which lanes are not in falling order of whole scores, as all bits of an element. */
BON_INLINE void find_wrong(const ranking *by, bon_choice wrong[2])
{
    wrong[0] = wrong[1] = (bon_choice){0};
    for (size_t i = LANES; i < by->n * LANES; i += LANES)
        for (size_t v = 0; v < 2; v++) {
            const double *at = by->scores + i + 4 * v;
            wrong[v] |= *bon_const_vec_at(at) > *bon_const_vec_at(at - LANES);
        }
}

/* Fills values and, where there are ties, scores. Keys that agree but for the index may
 * stand in the wrong order: short keys give way to whole ones, these to whole scores. */
BON_INLINE int rank_rows(const ranking *by, const double *scores, const double *rewards,
                         size_t rows)
{
    bon_choice wrong[2];
    int found = rank_by_short_keys(by, scores, rows);
    if (found == TIES) {
        gather(by, scores, by->scores);
        find_wrong(by, wrong);
        const bon_choice any = wrong[0] | wrong[1];
        if (any[0] | any[1] | any[2] | any[3]) found = NOT_RANKED;
    }
    const int whole = found == NOT_RANKED;
    if (whole && !finite_by(0.0, scores, rows * by->n)) return NOT_FINITE;
    if (whole) found = rank_by_keys(by, scores, rows);
    fetch_next(by, 2);
    gather(by, rewards, by->values);
    fetch_next(by, 3);
    if (!whole || found == NO_TIES) return found;

    gather(by, scores, by->scores);
    find_wrong(by, wrong);
    for (size_t l = 0; l < LANES; l++)
        if (wrong[l / 4][l % 4]) sort_lane(by, l);
    return found;
}

/* Gives each of equal scores the mean of their rewards: weighed by rank, they
 * then share their chances evenly. Forwards, sum and count of the equals so
 * far; backwards, the mean found at the last of them. */
BON_INLINE void share_ties(const ranking *by)
{
    const double *scores = by->scores;
    double *values = by->values, *counts = by->keys; /* keys are done */
    bon_vec sum[2] = {{0.0}}, count[2] = {{0.0}}, mean[2], before[2];
    for (size_t v = 0; v < 2; v++) before[v] = *bon_const_vec_at(scores + 4 * v);
    for (size_t i = 0; i < by->n * LANES; i += LANES)
        for (size_t v = 0; v < 2; v++) {
            const size_t at = i + 4 * v;
            const bon_vec score = *bon_const_vec_at(scores + at);
            const bon_choice same = score == before[v];
            sum[v] = (bon_vec)((bon_choice)sum[v] & same) + *bon_vec_at(values + at);
            count[v] = (bon_vec)((bon_choice)count[v] & same) + 1.0;
            *bon_vec_at(values + at) = sum[v];
            *bon_vec_at(counts + at) = count[v];
            before[v] = score;
        }
    for (size_t v = 0; v < 2; v++) mean[v] = sum[v] / count[v];
    for (size_t i = by->n * LANES; i > 0;) {
        i -= LANES;
        for (size_t v = 0; v < 2; v++) {
            const size_t at = i + 4 * v;
            const bon_vec score = *bon_const_vec_at(scores + at);
            const bon_vec here = *bon_vec_at(values + at) / *bon_vec_at(counts + at);
            const bon_choice same = score == before[v];
            bon_choose(&mean[v], &same, &mean[v], &here);
            *bon_vec_at(values + at) = mean[v];
            before[v] = score;
        }
    }
}

/* -- best-of-k: the weighted sum ------------------------------------------- */

/* out[l, j] = sum over ranks of panel[rank, j] * values[rank, l] for four lanes. */
BON_INLINE void weigh_four(const double *values, const double *panel, size_t ranks,
                           double *out, size_t out_stride)
{
    bon_vec sum[4][2] = {{{0}}};
    for (size_t i = 0; i < ranks; i++) {
        const double *v = values + i * LANES, *w = panel + i * PANEL;
        const bon_vec w0 = *(const bon_vec *)w, w1 = *(const bon_vec *)(w + 4);
        for (size_t l = 0; l < 4; l++) {
            sum[l][0] += v[l] * w0;
            sum[l][1] += v[l] * w1;
        }
    }
    for (size_t l = 0; l < 4; l++) {
        *(bon_vec *)(out + l * out_stride) = sum[l][0];
        *(bon_vec *)(out + l * out_stride + 4) = sum[l][1];
    }
}

/* Ranks that can win for at least one of these k; never more than n. */
static size_t winning_ranks(size_t n, const int64_t *ks, size_t nk)
{
    size_t ranks = 0;
    for (size_t j = 0; j < nk; j++) {
        const size_t of_k = n - (size_t)ks[j] + 1;
        if (of_k > ranks && of_k <= n) ranks = of_k;
    }
    return ranks;
}

BON_INLINE void weigh_by_table(const ranking *by, const double *values, size_t rows, double *out)
{
    double part[4 * PANEL];
    for (size_t j = 0; j < by->nk; j += PANEL) {
        const size_t columns = by->nk - j < PANEL ? by->nk - j : PANEL;
        const size_t ranks = winning_ranks(by->n, by->ks + j, columns);
        const double *panel = by->weights + j * by->n;
        fetch_next(by, RANKING_PARTS + j / PANEL);
        for (size_t l = 0; l < rows; l += 4) {
            double *to = out + l * by->stride + j;
            if (columns == PANEL && l + 4 <= rows) {
                weigh_four(values + l, panel, ranks, to, by->stride);
                continue;
            }
            weigh_four(values + l, panel, ranks, part, PANEL);
            for (size_t m = l; m < rows && m < l + 4; m++)
                for (size_t c = 0; c < columns; c++)
                    to[(m - l) * by->stride + c] = part[(m - l) * PANEL + c];
        }
    }
}

/* -- best-of-k: the weighted sum for many k ---------------------------------- */

/* True if the table would take longer than running sums over all ranks. */
static int sums_are_faster(size_t n, const int64_t *ks, size_t nk)
{
    size_t products = 0;
    for (size_t j = 0; j < nk; j += PANEL)
        products += PANEL * winning_ranks(n, ks + j, nk - j < PANEL ? nk - j : PANEL);
    return n <= BON_MAX_SUMS && 8 * products > 3 * n * n;
}

/* to[l * stride + c] = from[c][l] for a line of columns and four lanes, of which `lane` is
 * first. */
BON_INLINE void turn_line(const double *const from[LINE], size_t lane, double *to, size_t stride,
                          int stream)
{
    bon_vec x[LINE];
    for (size_t c = 0; c < LINE; c++) x[c] = *bon_const_vec_at(from[c] + lane);
    bon_turn(x);
    bon_turn(x + 4);
    for (size_t l = 0; l < 4; l++)
        for (size_t c = 0; c < LINE; c += 4) {
            double *at = to + (lane + l) * stride + c;
            if (stream) bon_stream(at, &x[c + l]);
            else *bon_vec_at(at) = x[c + l];
        }
}

/* A line of columns from j on of eight rows, or as many as there are of both. What was summed
 * for k stands at the lowest rank that can win; mask keeps a k that changes meanwhile in memory. */
BON_INLINE void write_sums(const ranking *by, const double *values, size_t j, size_t rows,
                           double *out, int stream)
{
    const size_t columns = by->nk - j < LINE ? by->nk - j : LINE;
    const double *from[LINE];
    for (size_t c = 0; c < LINE; c++)
        from[c] = values + ((by->n - (size_t)by->ks[c < columns ? j + c : j]) & by->mask) * LANES;
    if (columns == LINE && rows == LANES) {
        for (size_t l = 0; l < LANES; l += 4) turn_line(from, l, out + j, by->stride, stream);
        return;
    }
    for (size_t l = 0; l < rows; l++)
        for (size_t c = 0; c < columns; c++) out[l * by->stride + j + c] = from[c][l];
}

/* The values are lost. fma: see running_sums.h. */
BON_INLINE void weigh_by_sums(const ranking *by, double *values, size_t rows, double *out,
                              int fma)
{
    for (size_t s = 0; s < by->n; s += BON_ROUNDS) {
        fetch_next(by, RANKING_PARTS + s / BON_ROUNDS);
        bon_sum_rounds(values, by->n - s, by->scales + s, fma);
    }
    if (fma && by->stream)
        for (size_t j = 0; j < by->nk; j += LINE) write_sums(by, values, j, rows, out, 1);
    else
        for (size_t j = 0; j < by->nk; j += LINE) write_sums(by, values, j, rows, out, 0);
}

BON_AVX2_FMA static void weigh_by_sums_fma(const ranking *by, double *values, size_t rows,
                                           double *out)
{
    weigh_by_sums(by, values, rows, out, 1);
}

/* The values are lost. moderate: BON_SUM_GROWTH times as much is finite. */
BON_INLINE void weigh(const ranking *by, double *values, int moderate, size_t rows, double *out)
{
    if (!by->by_sums || !moderate) weigh_by_table(by, values, rows, out);
    else if (bon_has_fma()) weigh_by_sums_fma(by, values, rows, out);
    else weigh_by_sums(by, values, rows, out, 0);
}

/* -- best-of-k: two levels -------------------------------------------------- */

/* Which of at most LANES rows have two levels, as bits: each row for itself, so that what
 * comes of it does not depend on its neighbours. */
BON_INLINE unsigned find_levels(const ranking *by, const double *scores, const double *rewards,
                                size_t rows, bon_levels *levels)
{
    unsigned two = 0;
    for (size_t l = 0, at = 0; l < rows; l++, at += by->n)
        if (bon_may_have_two_levels(scores + at, by->n)
            && bon_find_levels(scores + at, rewards + at, by->n, &levels[l]))
            two |= 1u << l;
    return two;
}

static unsigned find_levels_anywhere(const ranking *by, const double *scores,
                                     const double *rewards, size_t rows, bon_levels *levels)
{
    return find_levels(by, scores, rewards, rows, levels);
}

BON_AVX2 static unsigned find_levels_avx2(const ranking *by, const double *scores,
                                          const double *rewards, size_t rows,
                                          bon_levels *levels)
{
    return find_levels(by, scores, rewards, rows, levels);
}

BON_INLINE void weigh_row_of_levels(const ranking *by, const bon_levels *levels, double *out,
                                    int stream)
{
    const double *hits = by->hits + levels->count * PANEL;
    for (size_t j = 0; j < by->nk; j += PANEL) {
        bon_vec best[2];
        for (size_t v = 0; v < 2; v++) {
            const bon_vec hit = *bon_const_vec_at(hits + j * (by->n + 1) + 4 * v);
            best[v] = levels->upper * hit + levels->lower * (1.0 - hit);
        }
        if (by->nk - j < PANEL) {
            for (size_t c = 0; c < by->nk - j; c++) out[j + c] = best[c / 4][c % 4];
            return;
        }
        for (size_t v = 0; v < 2; v++) {
            if (stream) bon_stream(out + j + 4 * v, &best[v]);
            else *bon_vec_at(out + j + 4 * v) = best[v];
        }
    }
}

/* The rows that find_levels found. */
BON_INLINE void weigh_levels(const ranking *by, const bon_levels *levels, unsigned two,
                             double *out, int stream)
{
    for (size_t l = 0; two >> l; l++)
        if (two >> l & 1) weigh_row_of_levels(by, &levels[l], out + l * by->stride, stream);
}

static void weigh_levels_anywhere(const ranking *by, const bon_levels *levels, unsigned two,
                                  double *out)
{
    weigh_levels(by, levels, two, out, 0);
}

BON_AVX2 static void weigh_levels_avx2(const ranking *by, const bon_levels *levels,
                                       unsigned two, double *out)
{
    if (by->stream) weigh_levels(by, levels, two, out, 1);
    else weigh_levels(by, levels, two, out, 0);
}


/* -- best-of-k: rows ------------------------------------------------------- */

/* From here on a network with lanes to spare costs more than sorting each row. */
enum { LONG_ROW = 1024 };

/* A few long rows, one by one. */
BON_INLINE void best_of_long_rows(const ranking *by, const double *scores,
                                 const double *rewards, size_t rows, double *out)
{
    load_lanes(scores, rows, by->n, by->scores);
    load_lanes(rewards, rows, by->n, by->values);
    for (size_t l = 0; l < rows; l++) sort_lane(by, l);
    share_ties(by);
    weigh_by_table(by, by->values, rows, out);
}

/* At most LANES rows. False where a value is not finite. */
BON_INLINE int best_of_rows(const ranking *by, const double *scores,
                                   const double *rewards, size_t rows, double *out)
{
    const int perfect = scores == rewards; /* equal scores have equal rewards */
    const size_t n = by->n;
    const int moderate = finite_by(BON_SUM_GROWTH, rewards, rows * n);
    if (!moderate && !finite_by(0.0, rewards, rows * n)) return 0;
    if (rows < LANES && n >= LONG_ROW) {
        if (!finite_by(0.0, scores, rows * n)) return 0;
        best_of_long_rows(by, scores, rewards, rows, out);
    } else if (perfect) {
        bon_load_keys(scores, rows, n, 0, by->keys);
        bon_sort_keys(by->keys, n);
        weigh(by, by->keys, moderate, rows, out);
    } else {
        const int found = rank_rows(by, scores, rewards, rows);
        if (found == NOT_FINITE) return 0;
        if (found == TIES) share_ties(by);
        weigh(by, by->values, moderate, rows, out);
    }
    return 1;
}

/* The mean of one row; NaN or infinite where a value is, or where it overflows. */
BON_INLINE double mean_of_row(const double *row, size_t n)
{
    bon_vec sum[4] = {{0}};
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t v = 0; v < 4; v++) sum[v] += *(const bon_vec *)(row + i + 4 * v);
    const bon_vec all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    double total = (all[0] + all[1]) + (all[2] + all[3]);
    for (; i < n; i++) total += row[i];
    return total / (double)n;
}

/* Every k is 1: scores do not matter, but must be finite all the same. */
BON_INLINE int mean_of_rows(const ranking *by, const double *scores, const double *rewards,
                            size_t rows, double *out)
{
    double check = 0.0; /* 0 * x is NaN where x is not finite */
    for (size_t r = 0; r < rows; r++) {
        const double mean = mean_of_row(rewards + r * by->n, by->n);
        check += 0.0 * mean;
        if (scores != rewards) check += 0.0 * mean_of_row(scores + r * by->n, by->n);
        for (size_t j = 0; j < by->nk; j++) out[r * by->stride + j] = mean;
    }
    return check == 0.0;
}

BON_INLINE int some_rows(const ranking *by, const double *scores, const double *rewards,
                         size_t rows, double *out)
{
    return by->weights ? best_of_rows(by, scores, rewards, rows, out)
                       : mean_of_rows(by, scores, rewards, rows, out);
}

static int some_rows_anywhere(const ranking *by, const double *scores,
                              const double *rewards, size_t rows, double *out)
{
    return some_rows(by, scores, rewards, rows, out);
}

BON_AVX2 static int some_rows_avx2(const ranking *by, const double *scores,
                                   const double *rewards, size_t rows, double *out)
{
    return some_rows(by, scores, rewards, rows, out);
}

/* BON_OK if all are finite after all: a sum of large values overflows. */
static bon_status find_not_finite(const double *scores, const double *rewards, size_t first,
                                  size_t end, size_t *bad)
{
    for (size_t at = first; at < end; at++)
        if (!isfinite(scores[at]) || !isfinite(rewards[at])) {
            *bad = at;
            return BON_ERR_NOT_FINITE;
        }
    return BON_OK;
}

/* How the sorted rewards are weighed. */
static void plan(ranking *by)
{
    const size_t n = by->n, nk = by->nk;
    by->by_sums = sums_are_faster(n, by->ks, nk);
    if (by->by_sums) bon_find_scales(n, by->scales);
    const size_t steps = by->by_sums ? (n + BON_ROUNDS - 1) / BON_ROUNDS : (nk + PANEL - 1) / PANEL;
    by->parts = RANKING_PARTS + steps;
}

bon_status bon_best_of_k(const double *scores, const double *rewards, size_t rows,
                         size_t n, const int64_t *ks, size_t nk, const double *weights,
                         const double *hits, double *scratch, double *out, size_t stride,
                         int stream, size_t *bad)
{
    if (n < 1 || n > BON_MAX_RANKED) return BON_ERR_DOMAIN;
    int all_one = 1;
    for (size_t j = 0; j < nk; j++) {
        if (ks[j] < 1 || ks[j] > (int64_t)n) return BON_ERR_DOMAIN;
        all_one = all_one && ks[j] == 1;
    }
    const int avx2 = bon_has_avx2();
    double *columns = scratch + n * LANES + 32; /* places: 32 bits, fewer than 2n or 8 rows */
    ranking by = {
        .n = n, .nk = nk, .stride = stride, .ks = ks,
        .weights = all_one ? NULL : weights, .hits = hits,
        .stream = stream && avx2 && ((uintptr_t)out | stride * sizeof *out) % 64 == 0,
        .mask = bon_index_mask(n),
        .places = (int32_t *)scratch,
        .keys = columns,
        .values = columns + n * LANES,
        .scores = columns + 2 * n * LANES,
        .pairs = columns + 3 * n * LANES,
        .scales = columns + 3 * n * LANES + 2 * n,
    };
    plan(&by);
    for (size_t row = 0; row < rows; row += LANES) {
        const size_t some = rows - row < LANES ? rows - row : LANES, at = row * n;
        double *to = out + row * stride;
        const size_t after = rows - row - some;
        by.next = (next_rows){scores + at + some * n, rewards + at + some * n,
                              after < LANES ? after : LANES};
        bon_levels levels[LANES];
        const unsigned two =
            by.weights == NULL ? 0
            : avx2 ? find_levels_avx2(&by, scores + at, rewards + at, some, levels)
                   : find_levels_anywhere(&by, scores + at, rewards + at, some, levels);
        const int finite =
            two == (1u << some) - 1 ? 1
            : avx2 ? some_rows_avx2(&by, scores + at, rewards + at, some, to)
                   : some_rows_anywhere(&by, scores + at, rewards + at, some, to);
        if (avx2) weigh_levels_avx2(&by, levels, two, to);
        else weigh_levels_anywhere(&by, levels, two, to);
        if (finite) continue;
        const bon_status status = find_not_finite(scores, rewards, at, at + some * n, bad);
        if (status != BON_OK) return status;
    }
    if (by.stream) bon_end_streams();
    return BON_OK;
}

/* -- win rate -------------------------------------------------------------- */

BON_INLINE double sum_of(const bon_vec *a, const bon_vec *b)
{
    const bon_vec both = *a + *b;
    return (both[0] + both[1]) + (both[2] + both[3]);
}

/* How many of row [n] are not NaN, and their sum; 0 where one is outside [0, 1]. */
BON_INLINE double count_made(const double *row, size_t n, double *sum)
{
    bon_vec sums[2] = {{0.0}};
    bon_choice counts[2] = {{0}}, outside = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t v = 0; v < 2; v++) {
            const bon_vec x = *bon_const_vec_at(row + i + 4 * v);
            const bon_choice made = x == x;
            outside |= (x < 0.0) | (x > 1.0);
            sums[v] += (bon_vec)((bon_choice)x & made);
            counts[v] -= made; /* true is -1 */
        }
    const bon_choice both = counts[0] + counts[1];
    double count = (double)((both[0] + both[1]) + (both[2] + both[3]));
    *sum = sum_of(&sums[0], &sums[1]);
    int wrong = (outside[0] | outside[1] | outside[2] | outside[3]) != 0;
    for (; i < n; i++) {
        if (isnan(row[i])) continue;
        wrong |= row[i] < 0.0 || row[i] > 1.0;
        *sum += row[i];
        count += 1.0;
    }
    return wrong ? 0.0 : count;
}

/* Sum of squared deviations of those that are not NaN. */
BON_INLINE double sum_of_squares(const double *row, size_t n, double mean)
{
    bon_vec sums[2] = {{0.0}};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t v = 0; v < 2; v++) {
            const bon_vec apart = *bon_const_vec_at(row + i + 4 * v) - mean;
            const bon_choice made = apart == apart;
            sums[v] += (bon_vec)((bon_choice)(apart * apart) & made);
        }
    double sum = sum_of(&sums[0], &sums[1]);
    for (; i < n; i++)
        if (!isnan(row[i])) sum += (row[i] - mean) * (row[i] - mean);
    return sum;
}

/* Sum and sum of squares of what lies between the first of row [n] and each. False where
 * one is NaN, or not surely in [0, 1]. */
BON_INLINE int sums_from_first(const double *row, size_t n, double *sum, double *squares)
{
    bon_vec sums[2] = {{0.0}}, of_squares[2] = {{0.0}};
    bon_choice outside = {0}; /* in the bit of the sign */
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t v = 0; v < 2; v++) {
            const bon_vec x = *bon_const_vec_at(row + i + 4 * v), apart = x - row[0];
            outside |= (bon_choice)x | (x > 1.0);
            sums[v] += apart;
            of_squares[v] += apart * apart;
        }
    *sum = sum_of(&sums[0], &sums[1]);
    *squares = sum_of(&of_squares[0], &of_squares[1]);
    int inside = (outside[0] | outside[1] | outside[2] | outside[3]) >= 0;
    for (; i < n; i++) {
        const double apart = row[i] - row[0];
        inside &= row[i] >= 0.0 && row[i] <= 1.0;
        *sum += apart;
        *squares += apart * apart;
    }
    return inside && !isnan(*sum);
}

/* More than this of the squares must not cancel in their difference with a squared sum. */
#define MOST_CANCELLED 8.0

/* One pass where every comparison was made. The first value is as good a centre as the
 * mean unless it lies far from most others; then the mean is taken in a second pass. */
BON_INLINE void win_rate_of_row(const double *row, size_t n, double *rate, double *error)
{
    double sum, squares, count = (double)n;
    if (n > 1 && sums_from_first(row, n, &sum, &squares)) {
        *rate = (count * row[0] + sum) / count;
        const double around_mean = squares - sum * sum / count;
        if (squares > MOST_CANCELLED * around_mean) squares = sum_of_squares(row, n, *rate);
        else squares = around_mean;
    } else {
        count = count_made(row, n, &sum);
        *rate = count > 0.0 ? sum / count : NAN;
        squares = count > 1.0 ? sum_of_squares(row, n, *rate) : NAN;
    }
    *error = sqrt(squares / (count - 1.0) / count);
}

BON_INLINE void win_rate(const double *preferences, size_t rows, size_t n, double *rates,
                         double *errors)
{
    for (size_t r = 0; r < rows; r++)
        win_rate_of_row(preferences + r * n, n, &rates[r], &errors[r]);
}

BON_AVX2 static void win_rate_avx2(const double *preferences, size_t rows, size_t n,
                                   double *rates, double *errors)
{
    win_rate(preferences, rows, n, rates, errors);
}

void bon_win_rate(const double *preferences, size_t rows, size_t n, double *rates,
                  double *errors)
{
    if (bon_has_avx2()) win_rate_avx2(preferences, rows, n, rates, errors);
    else win_rate(preferences, rows, n, rates, errors);
}
