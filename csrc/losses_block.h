/* losses_block.h - eight rows of one call of losses.h, sorted and laid side by side.
 *
 * Private to losses.c, losses_law.c and losses_sft.c. Every loss that ranks is a walk over the levels
 * (groups of equal scores) of a sorted row: upwards for what depends on lower samples,
 * downwards for what depends on higher ones. Eight rows are sorted side by side (ranking.h,
 * short_keys.h) and walked side by side, so nearly everything is a loop over places, each a
 * vector of rows. What needs a power or an exponential is done row by row.
 *
 * Place 0 is the highest score; t = n-1-i samples stand below place i.
 */
#ifndef BON_LOSSES_BLOCK_H
#define BON_LOSSES_BLOCK_H

#include <math.h>
#include <stdlib.h>

#include "dispatch.h"
#include "losses.h"
#include "ranking.h"
#include "short_keys.h"

/* -- eight rows, sorted ---------------------------------------------------- */

enum {
    LANES = BON_ABREAST,
    LONG_ROW = 1024 /* from here on a network with rows to spare costs more than qsort */
};

/* One call's scratch, for eight rows: element i of row l is at [i * LANES + l]. */
typedef struct {
    size_t n;
    uint64_t mask;   /* the bits of a key that hold the column of its sample */
    int32_t *places; /* [bon_short_keys(n), LANES] the column of the sample, highest score first */
    double *keys;    /* [n, LANES] see ranking.h */
    double *scores;  /* [n, LANES] whole scores in order of places, where there are ties */
    double *rewards; /* [n, LANES] */
    double *weights; /* [n, LANES] */
    double *part[8]; /* [n, LANES] each; see levels and tilted */
    double *pairs;   /* [n, 2] see sort_lane */
    double *table;   /* [3 n] of the loss */
    double *slots;   /* [n + 1, SLOT] see fill_groups */
    double *tables;  /* [LANES, n + 1] see fill_sft_tables */
    int stream;      /* results are written past the caches */
} block;

enum { TOP, TIED, REWARD, UP_TO, BELOW, BOTH, SLOT };

/* out [.., n]: where scatter will write to, past the caches if `stream` and its lines are whole. */
static block cut_up(size_t n, double *scratch, const double *out, int stream)
{
    block b = {.n = n, .mask = bon_index_mask(n), .keys = scratch};
    b.stream = stream && bon_has_avx2() && (uintptr_t)out % 64 == 0 && n % 8 == 0;
    const size_t step = n * LANES;
    b.scores = scratch + step;
    b.rewards = scratch + 2 * step;
    b.weights = scratch + 3 * step;
    for (size_t i = 0; i < 8; i++) b.part[i] = scratch + (4 + i) * step;
    b.pairs = scratch + 12 * step;
    b.table = b.pairs + 2 * n;
    b.slots = b.table + 3 * n;
    b.tables = b.slots + SLOT * (n + 1);
    b.places = (int32_t *)(void *)(b.tables + LANES * (n + 1));
    return b;
}

static inline size_t column(const block *b, size_t place, size_t lane)
{
    return (uint32_t)b->places[place * LANES + lane];
}

/* By falling score; equal scores in the order that keys put them in. */
static int by_falling_score(const void *a, const void *b)
{
    const double *x = a, *y = b;
    if (x[0] != y[0]) return x[0] > y[0] ? -1 : 1;
    const int first = x[1] > y[1] ? -1 : 1;
    return x[0] < 0.0 ? -first : first;
}

/* Sorts one lane by its whole scores, a row [n]. */
static void sort_lane(const block *b, const double *scores, size_t lane)
{
    for (size_t i = 0; i < b->n; i++) {
        b->pairs[2 * i] = scores[i];
        b->pairs[2 * i + 1] = (double)i;
    }
    qsort(b->pairs, b->n, 2 * sizeof *b->pairs, by_falling_score);
    for (size_t i = 0; i < b->n; i++) {
        b->scores[i * LANES + lane] = b->pairs[2 * i];
        b->places[i * LANES + lane] = (int32_t)b->pairs[2 * i + 1];
    }
}

/* to [n, LANES] = elements of from [rows, n] in order of places; rows beyond `rows` repeat
 * the last. */
static void gather(const block *b, const double *from, size_t rows, double *to)
{
    const double *row[LANES];
    for (size_t l = 0; l < LANES; l++) row[l] = from + (l < rows ? l : rows - 1) * b->n;
    for (size_t i = 0; i < b->n * LANES; i += LANES) {
        const uint32_t *at = (const uint32_t *)b->places + i;
        for (size_t l = 0; l < LANES; l += 4)
            *bon_vec_at(to + i + l) = (bon_vec){row[l][at[l]], row[l + 1][at[l + 1]],
                                                row[l + 2][at[l + 2]], row[l + 3][at[l + 3]]};
    }
}

/* Fills places from sorted keys. Returns whether neighbours agree but for the index. */
static int take_places(const block *b)
{
    uint64_t tied = 0;
    for (size_t i = 0; i < b->n * LANES; i += LANES)
        for (size_t l = 0; l < LANES; l++) {
            const uint64_t key = bon_bits_of(b->keys[i + l]);
            const uint64_t before = i ? bon_bits_of(b->keys[i - LANES + l]) : ~key;
            tied |= ((key ^ before) & ~b->mask) == 0;
            b->places[i + l] = (int32_t)(key & b->mask);
        }
    return tied != 0;
}

/* What is known of a sorted block; TIES: some scores are equal, and b->scores holds all. */
enum { NOT_FINITE = -1, NO_TIES, TIES };

/* The same with short keys. NOT_FINITE also where the rows are too long or their scores too
 * far apart: then nothing is sorted. */
BON_INLINE int sort_short_keys(const block *b, const double *scores, size_t rows)
{
    const int32_t mask = (int32_t)b->mask;
    if (b->n > BON_MAX_SHORT || !bon_load_short_keys(scores, rows, b->n, mask, b->places))
        return NOT_FINITE;
    bon_sort_short_keys(b->places, bon_short_keys(b->n));
    bon_ints tied = {0}, before = ~*(bon_ints *)b->places;
    for (size_t i = 0; i < b->n; i++) {
        bon_ints *at = (bon_ints *)(b->places + i * LANES);
        const bon_ints key = *at;
        tied |= ((key ^ before) & ~mask) == 0;
        *at = key & mask;
        before = key;
    }
    int any = 0;
    for (size_t l = 0; l < LANES; l++) any |= tied[l];
    return any ? TIES : NO_TIES;
}

/* A bit for each lane whose scores do not fall: keys that agree but for the index may
 * stand in the wrong order. */
BON_INLINE int lanes_not_falling(const block *b)
{
    bon_choice wrong[2] = {{0}};
    for (size_t i = LANES; i < b->n * LANES; i += LANES)
        for (size_t v = 0; v < 2; v++) {
            const double *at = b->scores + i + 4 * v;
            wrong[v] |= *bon_const_vec_at(at) > *bon_const_vec_at(at - LANES);
        }
    int bits = 0;
    for (size_t l = 0; l < LANES; l++) bits |= (wrong[l / 4][l % 4] != 0) << l;
    return bits;
}

/* Fewer than eight long rows, each by itself. */
static void sort_long_rows(const block *b, const double *scores, size_t rows)
{
    for (size_t l = 0; l < rows; l++) sort_lane(b, scores + l * b->n, l);
    for (size_t i = 0; i < b->n * LANES; i += LANES)
        for (size_t l = rows; l < LANES; l++) {
            b->places[i + l] = b->places[i + rows - 1];
            b->scores[i + l] = b->scores[i + rows - 1];
        }
}

BON_INLINE int rows_finite(const double *x, size_t rows, size_t n)
{
    int finite = 1;
    for (size_t r = 0; r < rows; r++) finite &= bon_all_finite(x + r * n, n);
    return finite;
}

/* Short keys give way to whole ones, these to whole scores. */
BON_INLINE int sort_short_rows(const block *b, const double *scores, size_t rows)
{
    const int found = sort_short_keys(b, scores, rows);
    if (found == NO_TIES) return NO_TIES;
    if (found == TIES) {
        gather(b, scores, rows, b->scores);
        if (!lanes_not_falling(b)) return TIES;
    }
    if (!rows_finite(scores, rows, b->n)) return NOT_FINITE;
    bon_load_keys(scores, rows, b->n, b->mask, b->keys);
    bon_sort_keys(b->keys, b->n);
    if (!take_places(b)) return NO_TIES;
    gather(b, scores, rows, b->scores);
    const int wrong = lanes_not_falling(b);
    for (size_t l = 0; wrong && l < LANES; l++)
        if (wrong >> l & 1) sort_lane(b, scores + (l < rows ? l : rows - 1) * b->n, l);
    return TIES;
}

static int sort_short_rows_anywhere(const block *b, const double *scores, size_t rows)
{
    return sort_short_rows(b, scores, rows);
}

BON_AVX2 static int sort_short_rows_avx2(const block *b, const double *scores, size_t rows)
{
    return sort_short_rows(b, scores, rows);
}

/* Sorts `rows` rows of scores. Returns NOT_FINITE, NO_TIES or TIES. */
static int sort_rows(const block *b, const double *scores, size_t rows)
{
    if (rows < LANES && b->n >= LONG_ROW) {
        if (!rows_finite(scores, rows, b->n)) return NOT_FINITE;
        sort_long_rows(b, scores, rows);
        return TIES;
    }
    return bon_has_avx2() ? sort_short_rows_avx2(b, scores, rows)
                          : sort_short_rows_anywhere(b, scores, rows);
}

BON_AVX2 static void stream_row(const double *row, size_t n, double *out)
{
    for (size_t i = 0; i < n; i += 4) bon_stream(out + i, bon_const_vec_at(row + i));
}

/* out [rows, n] = what b->weights holds, back in the order of the samples. */
static void scatter(const block *b, size_t rows, double *out)
{
    for (size_t l = 0; l < rows; l++, out += b->n) {
        double *row = b->stream ? b->keys : out; /* keys are done */
        for (size_t i = 0; i < b->n; i++) row[column(b, i, l)] = b->weights[i * LANES + l];
        if (b->stream) stream_row(row, b->n, out);
    }
}

/* Where places i and j, neighbours, are of one level; four lanes from `lane` on. */
BON_INLINE void same_level(const block *b, size_t i, size_t j, size_t lane, int tied,
                           bon_choice *same)
{
    *same = (bon_choice){0};
    if (tied)
        *same = *bon_const_vec_at(b->scores + i * LANES + lane)
                == *bon_const_vec_at(b->scores + j * LANES + lane);
}

/* x where kept, else y. */
BON_INLINE void keep(bon_vec *x, const bon_choice *kept, const bon_vec *y)
{
    bon_choose(x, kept, x, y);
}

/* Rows up to this many samples are asked for before they are needed. The processor fetches
 * ahead by itself, but not beyond the end of a page, and eight rows of 64 fill one. */
enum { FETCHED = 128 };

/* Asks for the eight rows after those at x, if there are `left` or more. */
BON_INLINE void fetch_next(const double *x, size_t n, size_t left)
{
    if (n > FETCHED || left < 2 * LANES) return;
    for (size_t i = LANES * n; i < 2 * LANES * n; i += 8) __builtin_prefetch(x + i);
}

BON_INLINE void fetch_next_output(const block *b, const double *x, size_t left)
{
    if (b->stream || b->n > FETCHED || left < 2 * LANES) return;
    for (size_t i = LANES * b->n; i < 2 * LANES * b->n; i += 8) __builtin_prefetch(x + i, 1);
}

/* -- checks ---------------------------------------------------------------- */

/* x may be NULL. */
static bon_status check_finite(const double *x, size_t count, size_t *bad)
{
    for (size_t i = 0; x != NULL && i < count; i++)
        if (!isfinite(x[i])) {
            *bad = i;
            return BON_ERR_NOT_FINITE;
        }
    return BON_OK;
}

/* Of two arrays [count] that are not both finite, the first place where one is not; `at`
 * is where they start. */
static bon_status find_not_finite(const double *x, const double *y, size_t count, size_t at,
                                  size_t *bad)
{
    bon_status status = check_finite(x, count, bad);
    if (status == BON_OK) status = check_finite(y, count, bad);
    *bad += at;
    return status;
}

/* x may be NULL. */
static inline bon_status check_within(const double *x, size_t count, size_t *bad)
{
    for (size_t i = 0; x != NULL && i < count; i++)
        if (!(x[i] >= 0.0 && x[i] <= 1.0)) {
            *bad = i;
            return BON_ERR_DOMAIN;
        }
    return BON_OK;
}

/* x [rows] may be NULL. F is uniform on [0, 1] where nothing ties, and no lower with ties. */
static inline bon_status check_normalisers(const double *x, double lambda, size_t rows, size_t n,
                                           size_t *bad)
{
    const double slack = 1e-6;
    const double least = lambda > 0.0 ? lambda + log(-expm1(-lambda) / lambda) : 0.0;
    for (size_t r = 0; x != NULL && r < rows; r++)
        if (!(x[r] >= least - slack && x[r] <= lambda + slack)) {
            *bad = r * n;
            return BON_ERR_DOMAIN;
        }
    return BON_OK;
}

/* Whether there is such a law, and such a policy. */
static inline bon_status check_law(const bon_law *law, const bon_known *known, size_t rows,
                                   size_t n, size_t *bad)
{
    *bad = 0;
    if (n < 1 || n > BON_MAX_LOSS_SAMPLES) return BON_ERR_DOMAIN;
    if (law->k < 1 || !(law->lambda >= 0.0 && isfinite(law->lambda))) return BON_ERR_DOMAIN;
    if (law->exact && known->win_rate != NULL) return BON_ERR_DOMAIN;
    if (known->log_normaliser != NULL && (known->win_rate == NULL || known->chance != NULL))
        return BON_ERR_DOMAIN;
    bon_status status = check_within(known->chance, rows * n, bad);
    if (status == BON_OK) status = check_within(known->win_rate, rows * n, bad);
    if (status != BON_OK) return status;
    return check_normalisers(known->log_normaliser, law->lambda, rows, n, bad);
}

#endif /* BON_LOSSES_BLOCK_H */
