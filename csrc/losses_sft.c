/* losses_sft.c - fine-tuning on the law of best-of-k; see losses.h.
 *
 * Demonstrations and samples of the policy are sorted together; what a sample's weight owes
 * to the others follows from sums over higher levels, as in losses_law.c. How rows are
 * sorted and walked is in losses_block.h.
 */
#include "losses.h"

#include <math.h>

#include "dispatch.h"
#include "losses_block.h"

/* The rows of one core call, and what a block's rows have: how many experts and samples of
 * the policy each, and its value. */
typedef struct {
    const double *scores, *logp;
    const uint8_t *expert;
    const bon_known *known;
    double lambda;
    double *tables; /* [LANES, n + 1] see fill_sft_tables */
    double table_of[LANES];
    double experts[LANES], policy[LANES], value[LANES];
} sft_call;

/* Table of a row with m samples of the policy: exp(lambda ((c-1)/(m-1) - 1)) / m at c >= 1,
 * and 0 at 0. Made again where m is not that of the row before. */
static void fill_sft_tables(sft_call *in, size_t n)
{
    for (size_t l = 0; l < LANES; l++) {
        const double m = in->policy[l], strength = in->lambda / (m - 1.0);
        double *table = in->tables + l * (n + 1);
        if (in->table_of[l] == m) continue;
        in->table_of[l] = m;
        for (size_t c = 0; (double)c <= m; c++)
            table[c] = c == 0 ? 0.0 : exp(strength * ((double)c - m)) / m;
    }
}

/* Counts the samples of eight rows from row `at` on. False, with *bad, where a row lacks
 * experts or samples of the policy. */
static int count_samples(sft_call *in, size_t at, size_t rows, size_t n, size_t *bad)
{
    const double fewest = in->known->chance == NULL ? 3.0 : 1.0;
    for (size_t l = 0; l < LANES; l++) {
        const size_t r = at + (l < rows ? l : rows - 1);
        size_t experts = 0;
        for (size_t i = 0; i < n; i++) experts += in->expert[r * n + i] != 0;
        in->experts[l] = (double)experts;
        in->policy[l] = (double)(n - experts);
        *bad = r * n;
        if (experts < 1 || in->policy[l] < fewest) return 0;
    }
    return 1;
}

/* to [n, LANES] = 1 for samples of the policy and 0 for experts, in order of places. */
static void gather_policy(const block *b, const uint8_t *expert, size_t rows, double *to)
{
    for (size_t i = 0; i < b->n; i++)
        for (size_t l = 0; l < LANES; l++) {
            const uint8_t *row = expert + (l < rows ? l : rows - 1) * b->n;
            to[i * LANES + l] = row[column(b, i, l)] ? 0.0 : 1.0;
        }
}

/* What a sample is to its row, [n, LANES] each. */
typedef struct {
    double *mine;   /* 1 for samples of the policy, 0 for experts */
    double *weight; /* under the policy, of its samples: 1 if drawn, else the chance */
    double *seen;   /* weights of lower and equal scores, itself included */
    double *win;    /* F, without the sample itself */
    double *mass;   /* under the law, of the policy's samples; adds up to 1 */
    double *higher, *shown; /* see add_sft_pairs */
} shares;

/* Fills seen and win. Of the policy's samples, an expert is compared with all, and each of
 * them with all others; of outcomes, all with all. Four lanes. */
BON_INLINE void count_wins(const block *b, const shares *of, const sft_call *in, size_t lane,
                           int tied)
{
    bon_vec all = {0.0}, above = {0.0}, level = {0.0};
    for (size_t i = 0; i < b->n; i++) all += *bon_vec_at(of->weight + i * LANES + lane);
    for (size_t i = 0; i < b->n; i++) {
        const size_t at = i * LANES + lane;
        bon_choice same = {0};
        if (i > 0) same_level(b, i, i - 1, lane, tied, &same);
        keep(&level, &same, &above);
        above += *bon_vec_at(of->weight + at);
        const bon_vec seen = all - level, mine = *bon_vec_at(of->mine + at);
        *bon_vec_at(of->seen + at) = seen;
        if (in->known->win_rate != NULL) continue;
        *bon_vec_at(of->win + at) = seen;
        if (in->known->chance == NULL) *bon_vec_at(of->win + at) = (seen - mine) / (all - mine);
    }
}

/* Fills mass, not yet normalised: what it is a multiple of, exp(-lambda top), is the same
 * for a row. */
static void tilt_policy(const block *b, const shares *of, const sft_call *in,
                        const double *top)
{
    if (in->known->chance == NULL && in->known->win_rate == NULL) {
        for (size_t i = 0; i < b->n * LANES; i += LANES)
            for (size_t l = 0; l < LANES; l++)
                of->mass[i + l] = of->mine[i + l]
                                  * in->tables[l * (b->n + 1) + (size_t)of->seen[i + l]];
        return;
    }
    for (size_t i = 0; i < b->n * LANES; i += LANES)
        for (size_t l = 0; l < LANES; l++) {
            const double weight =
                in->known->chance ? of->weight[i + l] : of->weight[i + l] / in->policy[l];
            const double ahead = fmin(of->win[i + l] - top[l], 0.0); /* > 0 for experts only */
            of->mass[i + l] = weight * exp(in->lambda * ahead);
        }
}

/* Normalises mass, of four lanes, by all, which is filled with what it adds up to where it
 * is not known. Fills phi with the sum over experts of log pi + lambda (F - top); b->rewards
 * holds log pi. */
BON_INLINE void normalise(const block *b, const shares *of, double lambda, const double *top,
                          int known, size_t lane, double *all, double *phi)
{
    bon_vec sum = {0.0}, shown = {0.0};
    const bon_vec highest = *bon_const_vec_at(top + lane);
    for (size_t i = 0; i < b->n; i++) {
        const size_t at = i * LANES + lane;
        const bon_vec expert = 1.0 - *bon_vec_at(of->mine + at);
        const bon_vec ahead = *bon_vec_at(of->win + at) - highest;
        sum += *bon_vec_at(of->mass + at);
        shown += expert * (*bon_vec_at(b->rewards + at) + lambda * ahead);
    }
    if (known) sum = *bon_const_vec_at(all + lane);
    const bon_vec scale = 1.0 / sum;
    for (size_t i = 0; i < b->n; i++) *bon_vec_at(of->mass + i * LANES + lane) *= scale;
    *bon_vec_at(all + lane) = sum;
    *bon_vec_at(phi + lane) = shown;
}

/* Weights of four rows. The masses are centred, which changes no expectation: by those of
 * the other samples, by the chances of the outcomes, or by 1/m where the normaliser is known
 * and theirs add up to 1 on average. Pairs as in add_pairs, where
 * experts count with -1/experts. */
BON_INLINE void add_sft_pairs(const block *b, const shares *of, const sft_call *in,
                              size_t lane, int tied)
{
    const bon_vec m = *bon_const_vec_at(in->policy + lane);
    const bon_vec one_expert = 1.0 / *bon_const_vec_at(in->experts + lane);
    const double spared = in->known->win_rate == NULL ? 1.0 : 0.0;
    const bon_vec of_lower = in->lambda / (m - 1.0 - spared);
    const bon_vec of_others = 1.0 / (m - (in->known->log_normaliser == NULL ? 1.0 : 0.0));
    const bon_vec of_shown = in->lambda / (m - spared);
    bon_vec both = {0.0}, shown_both = {0.0}, higher = {0.0}, shown = {0.0};
    for (size_t i = 0; i < b->n; i++) {
        const size_t at = i * LANES + lane;
        const bon_vec mass = *bon_vec_at(of->mass + at), win = *bon_vec_at(of->win + at);
        const bon_vec expert = (1.0 - *bon_vec_at(of->mine + at)) * one_expert;
        both += mass * win;
        shown_both += expert * win;
        higher += mass;
        shown += expert;
        *bon_vec_at(of->higher + at) = higher;
        *bon_vec_at(of->shown + at) = shown;
    }
    for (size_t i = b->n; i-- > 0;) {
        const size_t at = i * LANES + lane;
        bon_choice same = {0};
        if (i + 1 < b->n) same_level(b, i, i + 1, lane, tied, &same);
        keep(&higher, &same, bon_vec_at(of->higher + at));
        keep(&shown, &same, bon_vec_at(of->shown + at));
        const bon_vec mass = *bon_vec_at(of->mass + at), win = *bon_vec_at(of->win + at);
        const bon_vec above = shown - shown_both;
        bon_vec weight;
        if (in->known->chance != NULL) {
            const bon_vec chance = *bon_vec_at(of->weight + at);
            weight = mass - chance + in->lambda * chance * ((higher - both) - above);
        } else {
            const bon_vec lower = (higher - mass) - (both - mass * win);
            weight = (mass * m - 1.0) * of_others + lower * of_lower - above * of_shown;
        }
        const bon_vec of_expert = -one_expert;
        const bon_choice drawn = *bon_vec_at(of->mine + at) > 0.5;
        bon_choose(bon_vec_at(b->weights + at), &drawn, &weight, &of_expert);
    }
}

/* Gathers what is known of a block's samples. top: the largest F of the policy's samples of
 * each row, or 1; relative to it no row loses all its mass to underflow, which may happen,
 * and is right, where the normaliser is known. */
static void gather_shares(const block *b, const shares *of, const sft_call *in, size_t at,
                          size_t rows, double *top)
{
    const size_t step = b->n * LANES, start = at * b->n;
    gather(b, in->logp + start, rows, b->rewards);
    gather_policy(b, in->expert + start, rows, of->mine);
    if (in->known->chance != NULL) {
        gather(b, in->known->chance + start, rows, of->weight);
        for (size_t i = 0; i < step; i++) of->weight[i] *= of->mine[i];
    }
    for (size_t l = 0; l < LANES; l++) top[l] = 1.0;
    if (in->known->win_rate == NULL) return;
    gather(b, in->known->win_rate + start, rows, of->win);
    if (in->known->log_normaliser != NULL) return;
    for (size_t l = 0; l < LANES; l++) top[l] = 0.0;
    for (size_t i = 0; i < step; i++)
        if (of->mine[i] > 0.0 && of->win[i] > top[i % LANES]) top[i % LANES] = of->win[i];
}

/* The first of `left` rows, at most LANES, from row `at` of the call on. False where a value
 * is not finite. */
BON_INLINE int sft_block(const block *b, sft_call *in, size_t at, size_t left, double *out)
{
    const size_t rows = left < LANES ? left : LANES, start = at * b->n;
    const int by_rank = in->known->chance == NULL && in->known->win_rate == NULL;
    const int known = in->known->log_normaliser != NULL;
    shares of = {b->part[0], b->part[0], b->part[1], b->part[2], b->part[3],
                 b->part[4], b->part[5]};
    if (in->known->chance != NULL) of.weight = b->part[6];
    double top[LANES], all[LANES], phi[LANES];
    if (!rows_finite(in->logp + start, rows, b->n)) return 0;
    fetch_next(in->scores + start, b->n, left);
    const int found = sort_rows(b, in->scores + start, rows), tied = found == TIES;
    if (found == NOT_FINITE) return 0;
    fetch_next(in->logp + start, b->n, left);
    gather_shares(b, &of, in, at, rows, top);
    if (by_rank) fill_sft_tables(in, b->n);
    for (size_t lane = 0; lane < LANES; lane += 4) count_wins(b, &of, in, lane, tied);
    fetch_next_output(b, out, left);
    tilt_policy(b, &of, in, top);
    for (size_t l = 0; known && l < LANES; l++)
        all[l] = exp(in->known->log_normaliser[at + (l < rows ? l : rows - 1)] - in->lambda);
    for (size_t lane = 0; lane < LANES; lane += 4) {
        normalise(b, &of, in->lambda, top, known, lane, all, phi);
        add_sft_pairs(b, &of, in, lane, tied);
    }
    for (size_t l = 0; l < LANES; l++) in->value[l] = log(all[l]) - phi[l] / in->experts[l];
    scatter(b, rows, out);
    return 1;
}

static int sft_block_anywhere(const block *b, sft_call *in, size_t at, size_t left,
                              double *out)
{
    return sft_block(b, in, at, left, out);
}

BON_AVX2 static int sft_block_avx2(const block *b, sft_call *in, size_t at, size_t left,
                                   double *out)
{
    return sft_block(b, in, at, left, out);
}

bon_status bon_sft_loss(const double *scores, const double *logp, const uint8_t *expert,
                        const bon_known *known, size_t rows, size_t n,
                        const bon_law *law, double *scratch, double *value,
                        double *weights, int stream, size_t *bad)
{
    bon_status status = check_law(law, known, rows, n, bad);
    if (status != BON_OK) return status;
    if (law->exact) return BON_ERR_DOMAIN;

    const block b = cut_up(n, scratch, weights, stream);
    sft_call in = {.scores = scores, .logp = logp, .expert = expert, .known = known,
                   .lambda = law->lambda, .tables = b.tables};
    const int avx2 = bon_has_avx2();
    for (size_t r = 0; r < rows; r += LANES) {
        const size_t some = rows - r < LANES ? rows - r : LANES, at = r * n;
        if (!count_samples(&in, r, some, n, bad)) return BON_ERR_DOMAIN;
        const int finite = avx2 ? sft_block_avx2(&b, &in, r, rows - r, weights + at)
                                : sft_block_anywhere(&b, &in, r, rows - r, weights + at);
        for (size_t l = 0; l < some; l++) value[r + l] = in.value[l];
        if (finite) continue;
        status = find_not_finite(scores + at, logp + at, some * n, at, bad);
        if (status != BON_OK) return status;
    }
    if (b.stream) bon_end_streams();
    return BON_OK;
}
