/* losses.c - see losses.h for what is computed and why.
 *
 * Every loss that ranks is a walk over the levels (groups of equal scores) of a sorted
 * row: upwards for what depends on lower samples, downwards for what depends on higher
 * ones. Sorting is done for eight rows side by side (ranking.h), the walk row by row.
 * Sums over subsets are recurrences in ratios of binomials, so nothing overflows.
 */
#include "losses.h"

#include <math.h>
#include <stdlib.h>

#include "dispatch.h"
#include "ranking.h"

/* -- a sorted row ---------------------------------------------------------- */

/* From here on a network with rows to spare costs more than sorting each row. */
enum { LONG_ROW = 1024 };

/* What a loss keeps of one row; [t] is the sample at place t, lowest score first. */
typedef struct {
    size_t n;
    double *keys;    /* [n, BON_ABREAST] of eight rows; see ranking.h */
    double *pairs;   /* [n, 2] see sort_whole */
    double *scores;  /* [t] */
    size_t *order;   /* [t] its column */
    double *rewards; /* [t] */
    double *mass;    /* [t] under the law; then times (reward - baseline) */
    double *up_to;   /* [t] d log tilt / d F, times mass; then the same for G in `below` */
    double *below;   /* [t] */
    double *win;     /* [t] F, without the sample's own group */
    double *beat;    /* [t] G, likewise */
    double *table;   /* [3 n] of the loss */
    double *slots;   /* [6 (n + 1)] see fill_groups */
} sorted_row;

static sorted_row cut_up(size_t n, double *scratch)
{
    sorted_row row = {.n = n, .keys = scratch};
    double *at = scratch + BON_ABREAST * n;
    double **const parts[] = {&row.scores, &row.rewards, &row.mass, &row.up_to,
                              &row.below,  &row.win,     &row.beat};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++, at += n) *parts[i] = at;
    row.pairs = at;
    row.table = at + 2 * n;
    row.slots = row.table + 3 * n;
    row.order = (size_t *)(void *)(row.slots + 6 * (n + 1));
    return row;
}

static void sort_abreast(const double *scores, size_t rows, size_t n, double *keys)
{
    bon_load_keys(scores, rows, n, bon_index_mask(n), keys);
    bon_sort_keys(keys, n);
}

BON_AVX2 static void sort_abreast_avx2(const double *scores, size_t rows, size_t n,
                                       double *keys)
{
    bon_load_keys(scores, rows, n, bon_index_mask(n), keys);
    bon_sort_keys(keys, n);
}

/* By score; equal scores in the order that keys put them in. */
static int by_score(const void *a, const void *b)
{
    const double *x = a, *y = b;
    if (x[0] != y[0]) return x[0] < y[0] ? -1 : 1;
    const int first = x[1] < y[1] ? -1 : 1;
    return x[0] < 0.0 ? -first : first;
}

static void sort_whole(sorted_row *row, const double *scores)
{
    for (size_t i = 0; i < row->n; i++) {
        row->pairs[2 * i] = scores[i];
        row->pairs[2 * i + 1] = (double)i;
    }
    qsort(row->pairs, row->n, 2 * sizeof *row->pairs, by_score);
    for (size_t t = 0; t < row->n; t++) {
        row->scores[t] = row->pairs[2 * t];
        row->order[t] = (size_t)row->pairs[2 * t + 1];
    }
}

/* Scores and order of row l of those in keys. */
static void take_sorted(sorted_row *row, const double *scores, size_t l)
{
    const uint64_t mask = bon_index_mask(row->n);
    double before = -INFINITY;
    int rising = 1;
    for (size_t t = 0; t < row->n; t++) {
        const double key = row->keys[(row->n - 1 - t) * BON_ABREAST + l];
        const size_t i = (size_t)(bon_bits_of(key) & mask);
        const double score = scores[i];
        rising &= score >= before;
        row->order[t] = i;
        row->scores[t] = before = score;
    }
    if (!rising) sort_whole(row, scores); /* scores that differ in the bits of the index */
}

/* Sorts the row that starts at scores + at. Eight rows at a time go through the network,
 * when the first of them is asked for. */
static void sort_row(sorted_row *row, const double *scores, size_t r, size_t rows)
{
    const size_t n = row->n, l = r % BON_ABREAST, first = r - l;
    const size_t some = rows - first < BON_ABREAST ? rows - first : BON_ABREAST;
    if (some < BON_ABREAST && n >= LONG_ROW) {
        sort_whole(row, scores + r * n);
        return;
    }
    if (l == 0) {
        if (bon_has_avx2())
            sort_abreast_avx2(scores + first * n, some, n, row->keys);
        else
            sort_abreast(scores + first * n, some, n, row->keys);
    }
    take_sorted(row, scores + r * n, l);
}

/* The end of the level that starts at place low. */
static inline size_t level_end(const sorted_row *row, size_t low)
{
    const double score = row->scores[low];
    size_t up = low + 1;
    while (up < row->n && row->scores[up] == score) up++;
    return up;
}

/* The start of the level that ends at place up. */
static inline size_t level_start(const sorted_row *row, size_t up)
{
    const double score = row->scores[up - 1];
    size_t low = up - 1;
    while (low > 0 && row->scores[low - 1] == score) low--;
    return low;
}

/* -- checks ---------------------------------------------------------------- */

/* 0 * x is NaN where x is not finite. */
static int all_finite(const double *x, size_t count)
{
    double zero[4] = {0.0};
    size_t i = 0;
    for (; i + 4 <= count; i += 4)
        for (size_t j = 0; j < 4; j++) zero[j] += 0.0 * x[i + j];
    for (; i < count; i++) zero[0] += 0.0 * x[i];
    return zero[0] + zero[1] + zero[2] + zero[3] == 0.0;
}

static bon_status check_finite(const double *x, size_t count, size_t *bad)
{
    if (x == NULL || all_finite(x, count)) return BON_OK;
    for (*bad = 0; *bad + 1 < count && isfinite(x[*bad]);) ++*bad;
    return BON_ERR_NOT_FINITE;
}

static bon_status check_within(const double *x, size_t count, size_t *bad)
{
    for (size_t i = 0; x != NULL && i < count; i++)
        if (!(x[i] >= 0.0 && x[i] <= 1.0)) {
            *bad = i;
            return BON_ERR_DOMAIN;
        }
    return BON_OK;
}

/* -- bon: the exact gradient ----------------------------------------------- */

/* With samples in rising order, place t is the best of a random subset of k with the
 * chance first[t] = C(t,k-1)/C(n,k), and second best, below one given better sample,
 * with second[t] = C(t,k-2)/C(n,k) = first[t+1] - first[t]. */
typedef struct {
    size_t k;
    bon_baseline baseline;
    double *first, *second; /* [n] */
} subsets;

static void fill_subsets(const subsets *of, size_t n)
{
    const double size = (double)n, k = (double)of->k;
    of->first[n - 1] = k / size;
    of->second[n - 1] = k / size * ((k - 1.0) / (size - k + 1.0));
    for (size_t t = n - 1; t > 0; t--) {
        const double place = (double)t;
        of->first[t - 1] = of->first[t] * fmax(place - k + 1.0, 0.0) / place;
        of->second[t - 1] = of->second[t] * fmax(place - k + 2.0, 0.0) / place;
    }
}

static double sum_of(const double *x, size_t low, size_t up)
{
    double sum = 0.0;
    for (size_t t = low; t < up; t++) sum += x[t];
    return sum;
}

/* Baseline "subset". Let a level have m samples from place L on, with mean reward M. One
 * of them, i, and j >= 1 others as the best of a subset: without i the best falls by
 * (R_i - mean of the others) / (j + 1), which adds up over subsets to the mean of `first`
 * over the level less first[L]. Alone at the top: R_i less the best of those below, which
 * adds up to first[L] R_i - sum over t < L of second[t] * mean of t's level. Rewards
 * relative to `base`. Returns best-of-k. */
static double weigh_against_subset(const sorted_row *row, const subsets *of, double *weights)
{
    double lower = 0.0, best = 0.0;
    for (size_t low = 0, up; low < row->n; low = up) {
        up = level_end(row, low);
        const double alone = of->first[low];
        if (up == low + 1) {
            const double reward = row->rewards[low];
            weights[row->order[low]] = lower - alone * reward;
            lower += of->second[low] * reward;
            best += alone * reward;
            continue;
        }
        const double m = (double)(up - low), mean = sum_of(row->rewards, low, up) / m;
        const double wins = sum_of(of->first, low, up), shared = wins / m - alone;
        for (size_t t = low; t < up; t++) {
            const double ahead = (row->rewards[t] - mean) * (m / (m - 1.0));
            weights[row->order[t]] = lower - alone * row->rewards[t] - shared * ahead;
        }
        lower += sum_of(of->second, low, up) * mean;
        best += wins * mean;
    }
    return best;
}

/* Baseline "none": weights[i] = -(sum over subsets with i of the reward of the best).
 * In the level of i, subsets whose best level it is have the mean reward of the others,
 * C(L+m-1,k-1) of them, and (R_i - mean of the others) as above; a higher level at place
 * t is best in C(t-1,k-2) subsets with i. Returns best-of-k. */
static double weigh_subsets(const sorted_row *row, const subsets *of, double *weights)
{
    double higher = 0.0, best = 0.0;
    for (size_t up = row->n, low; up > 0; up = low) {
        low = level_start(row, up);
        const double m = (double)(up - low), mean = sum_of(row->rewards, low, up) / m;
        const double wins = sum_of(of->first, low, up), last = of->first[up - 1];
        for (size_t t = low; t < up; t++) {
            const double reward = row->rewards[t];
            const double others = m > 1.0 ? mean - (reward - mean) / (m - 1.0) : reward;
            weights[row->order[t]] =
                -(others * last + (reward - others) * (wins / m) + higher);
        }
        higher += (low > 0 ? sum_of(of->second, low - 1, up - 1) : 0.0) * mean;
        best += wins * mean;
    }
    return best;
}

/* Baseline "loo" from the weights of "none": a_i - (k/n) (best-of-k of the others), and
 * the subsets without i are all subsets but those with i. */
static void subtract_others(double best, size_t n, size_t k, double *weights)
{
    const double left = (double)(n - k);
    for (size_t i = 0; i < n; i++)
        weights[i] = ((double)n * weights[i] + (double)k * best) / left;
}

/* k = 1: each reward against the mean of the others. */
static double weigh_single(const sorted_row *row, double *weights)
{
    const double mean = sum_of(row->rewards, 0, row->n) / (double)row->n;
    for (size_t t = 0; t < row->n; t++)
        weights[row->order[t]] = (mean - row->rewards[t]) / (double)(row->n - 1);
    return mean;
}

static double lowest(const double *x, size_t n)
{
    double low = x[0];
    for (size_t i = 1; i < n; i++) low = x[i] < low ? x[i] : low;
    return low;
}

static double bon_row(sorted_row *row, const subsets *of, const double *rewards,
                      double *weights)
{
    const size_t n = row->n;
    const double base = lowest(rewards, n); /* equal rewards then give exact zeros */
    for (size_t t = 0; t < n; t++) row->rewards[t] = rewards[row->order[t]] - base;
    double best;
    if (of->baseline == BON_BASELINE_SUBSET) {
        best = of->k == 1 ? weigh_single(row, weights)
                          : weigh_against_subset(row, of, weights);
    } else {
        best = weigh_subsets(row, of, weights);
        if (of->baseline == BON_BASELINE_LOO)
            subtract_others(best, n, of->k, weights);
        else /* what base is worth: i is in the share k/n of all subsets */
            for (size_t i = 0; i < n; i++) weights[i] -= base * (double)of->k / (double)n;
    }
    return -(best + base);
}

bon_status bon_bon_loss(const double *scores, const double *rewards, size_t rows, size_t n,
                        size_t k, bon_baseline baseline, double *scratch, double *value,
                        double *weights, size_t *bad)
{
    *bad = 0;
    if (n > BON_MAX_LOSS_SAMPLES || k < 1 || k > n) return BON_ERR_DOMAIN;
    if ((baseline == BON_BASELINE_SUBSET && n < 2) || (baseline == BON_BASELINE_LOO && n == k))
        return BON_ERR_DOMAIN;
    bon_status status = check_finite(rewards, rows * n, bad);
    if (status == BON_OK && scores != rewards) status = check_finite(scores, rows * n, bad);
    if (status != BON_OK) return status;

    sorted_row row = cut_up(n, scratch);
    const subsets of = {k, baseline, row.table, row.table + n};
    fill_subsets(&of, n);
    for (size_t r = 0; r < rows; r++) {
        sort_row(&row, scores, r, rows);
        value[r] = bon_row(&row, &of, rewards + r * n, weights + r * n);
    }
    return BON_OK;
}

/* -- laws ------------------------------------------------------------------ */

/* pi_bon / pi of a level that has the chance `level` on top of `below`, and the
 * derivatives of its logarithm by F = below + level and by G = below. In the ratio G/F
 * nothing is lost to differences of powers. */
typedef struct {
    double mass, up_to, below;
} tilt;

static tilt exact_tilt(double below, double level, size_t k)
{
    const double f = below + level, power = (double)k;
    if (k == 1 || level == 0.0) return (tilt){level == 0.0 ? 0.0 : 1.0, 0.0, 0.0};
    const double log_ratio = level < f ? log1p(-level / f) : -INFINITY;
    const double hit = -expm1(power * log_ratio); /* 1 - (G/F)^k */
    const double slope = power / (f * hit);
    return (tilt){
        .mass = pow(f, power) * hit / level,
        .up_to = slope - 1.0 / level,
        .below = 1.0 / level - slope * exp((power - 1.0) * log_ratio),
    };
}

/* Tilts of levels with one sample, by the place of the sample: table[3 t ...]. */
static void fill_tilts(const bon_law *law, size_t n, double *table)
{
    const double one = 1.0 / (double)n;
    for (size_t t = 0; t < n; t++) {
        tilt of;
        if (law->exact)
            of = exact_tilt((double)t * one, one, law->k);
        else
            of = (tilt){exp(law->lambda * ((double)t / (double)(n - 1) - 1.0)), law->lambda, 0};
        table[3 * t] = of.mass;
        table[3 * t + 1] = of.up_to;
        table[3 * t + 2] = of.below;
    }
}

static tilt tilt_of_level(const sorted_row *row, const bon_law *law, size_t low, size_t up)
{
    if (law->exact && up > low + 1) {
        const double n = (double)row->n;
        return exact_tilt((double)low / n, (double)(up - low) / n, law->k);
    }
    const double *of = row->table + 3 * (up - 1);
    return (tilt){of[0], of[1], of[2]};
}

/* -- bon_rl: masses -------------------------------------------------------- */

/* Fills mass, up_to, below, win and beat, for samples drawn from the policy. `own` is the
 * size of a sample's group, none of which it is compared with. */
static void tilt_drawn(sorted_row *row, const bon_law *law, size_t own)
{
    const double others = (double)(row->n - own);
    for (size_t low = 0, up; low < row->n; low = up) {
        up = level_end(row, low);
        const tilt of = tilt_of_level(row, law, low, up);
        const double win = ((double)up - (double)own) / others;
        const double beat = ((double)low + 1.0 - (double)own) / others;
        for (size_t t = low; t < up; t++) {
            row->mass[t] = of.mass;
            row->up_to[t] = of.up_to;
            row->below[t] = of.below;
            row->win[t] = win;
            row->beat[t] = beat;
        }
    }
}

static double largest(const double *x, size_t n)
{
    double top = x[0];
    for (size_t i = 1; i < n; i++) top = x[i] > top ? x[i] : top;
    return top;
}

/* The same where F of each sample is known. */
static void tilt_known(sorted_row *row, const bon_law *law, const double *win_rate)
{
    const double top = largest(win_rate, row->n); /* keeps exp away from 0 */
    for (size_t t = 0; t < row->n; t++) {
        row->win[t] = win_rate[row->order[t]];
        row->mass[t] = exp(law->lambda * (row->win[t] - top));
        row->up_to[t] = law->lambda;
        row->below[t] = row->beat[t] = 0.0;
    }
}

/* The same where the samples are all outcomes, with these chances. */
static void tilt_outcomes(sorted_row *row, const bon_law *law, const double *chance,
                          const double *win_rate)
{
    if (win_rate != NULL) tilt_known(row, law, win_rate);
    double below = 0.0;
    for (size_t low = 0, up; low < row->n; low = up) {
        up = level_end(row, low);
        double level = 0.0;
        for (size_t t = low; t < up; t++) level += chance[row->order[t]];
        tilt of = {exp(law->lambda * (below + level - 1.0)), law->lambda, 0.0};
        if (law->exact) of = exact_tilt(below, level, law->k);
        for (size_t t = low; t < up; t++) {
            if (win_rate == NULL) {
                row->mass[t] = of.mass;
                row->up_to[t] = of.up_to;
                row->below[t] = of.below;
                row->win[t] = below + level;
                row->beat[t] = below;
            }
            row->mass[t] *= chance[row->order[t]];
        }
        below += level;
    }
}

/* Masses become v (R - b), divided by 1 - sum v^2 if that many samples estimate b.
 * Returns b. Rewards relative to that of the largest mass, and 1 - v as the sum of the
 * rest: nothing is lost where one sample has nearly all. */
static double centre_masses(sorted_row *row, const double *rewards, int estimated)
{
    const size_t n = row->n;
    size_t top = n - 1;
    for (size_t t = 0; t < n; t++)
        if (row->mass[t] > row->mass[top]) top = t;
    const double base = rewards[row->order[top]];
    double rest = 0.0, sum = 0.0;
    for (size_t t = 0; t < n; t++) {
        row->rewards[t] = rewards[row->order[t]] - base;
        sum += row->mass[t] * row->rewards[t];
        if (t != top) rest += row->mass[t];
    }
    const double all = rest + row->mass[top], mean = sum / all;
    double pairs = row->mass[top] * rest;
    for (size_t t = 0; t < n; t++)
        if (t != top) pairs += row->mass[t] * (all - row->mass[t]);
    /* pairs / all^2 = 1 - sum v^2: 0 where one sample has all the mass, and R = b there */
    const double scale = !estimated ? 1.0 / all : pairs > 0.0 ? all / pairs : 0.0;
    for (size_t t = 0; t < n; t++) row->mass[t] *= scale * (row->rewards[t] - mean);
    return mean + base;
}

/* -- bon_rl: winners of groups --------------------------------------------- */

/* Groups of k neighbours. Each has a slot: its best score, how many have it, their mean
 * reward, and sums over them that add_pairs takes out. */
enum { TOP, TIED, REWARD, UP_TO, BELOW, BOTH, SLOT };

/* Fills TOP, TIED and REWARD, relative to base. Returns the sum of REWARD. */
static double fill_groups(const double *scores, const double *rewards, double base,
                          size_t groups, size_t k, double *slots)
{
    double sum = 0.0;
    for (size_t g = 0; g < groups; g++) {
        double *slot = slots + SLOT * g, reward = 0.0, tied = 0.0;
        const double top = largest(scores + g * k, k);
        for (size_t i = g * k; i < (g + 1) * k; i++)
            if (scores[i] == top) {
                reward += rewards[i] - base;
                tied += 1.0;
            }
        slot[TOP] = top;
        slot[TIED] = tied;
        slot[REWARD] = reward / tied;
        sum += slot[REWARD];
    }
    return sum;
}

/* Masses of the winners, each 1/groups shared by those that tie, times its reward less
 * the mean of the other groups' winners. Returns the mean reward of all winners. */
static double weigh_winners(sorted_row *row, const double *scores, const double *rewards,
                            size_t k)
{
    const size_t groups = row->n / k;
    const double base = rewards[0];
    const double sum = fill_groups(scores, rewards, base, groups, k, row->slots);
    for (size_t t = 0; t < row->n; t++) {
        const size_t i = row->order[t], g = i / k;
        const double *slot = row->slots + SLOT * g;
        if (g >= groups || row->scores[t] != slot[TOP]) {
            row->mass[t] = 0.0;
            continue;
        }
        const double others = (sum - slot[REWARD]) / (double)(groups - 1);
        row->mass[t] = (rewards[i] - base - others) / (slot[TIED] * (double)groups);
        row->beat[t] += (slot[TIED] - 1.0) / (double)(row->n - k);
    }
    return sum / (double)groups + base;
}

/* -- bon_rl: pairs --------------------------------------------------------- */

/* Which pairs of samples count, and how much each. */
typedef struct {
    const double *chance; /* [n] of the outcomes: all pairs, by the chance of the lower */
    double share;         /* of a pair, where chance is NULL */
    size_t k;             /* size of the groups that winners come from, or 0 */
} pairing;

/* What the sample at place t must not see of the three sums in add_pairs. */
typedef struct {
    double up_to, below, both;
} inside;

static inline inside inside_of(const sorted_row *row, const pairing *with, size_t t)
{
    if (with->chance != NULL) return (inside){0.0, 0.0, 0.0};
    if (with->k == 0)
        return (inside){row->up_to[t], 0.0,
                        row->up_to[t] * row->win[t] + row->below[t] * row->beat[t]};
    const double *slot = row->slots + SLOT * (row->order[t] / with->k);
    const int wins = row->scores[t] == slot[TOP];
    return (inside){slot[UP_TO], wins ? 0.0 : slot[BELOW], slot[BOTH]};
}

/* Sums of up_to, below and both over each group; the samples left over have a slot of 0. */
static void sum_groups(sorted_row *row, size_t k)
{
    const size_t groups = row->n / k;
    for (size_t g = 0; g <= groups; g++) {
        double *slot = row->slots + SLOT * g;
        slot[UP_TO] = slot[BELOW] = slot[BOTH] = 0.0;
        if (g == groups) slot[TOP] = INFINITY;
    }
    for (size_t t = 0; t < row->n; t++) {
        double *slot = row->slots + SLOT * (row->order[t] / k);
        slot[UP_TO] += row->up_to[t];
        slot[BELOW] += row->below[t];
        slot[BOTH] += row->up_to[t] * row->win[t] + row->below[t] * row->beat[t];
    }
}

/* weights[j] = -(mass_j + sum over i of mass_i (up_to_i (1{r_i >= r_j} - win_i)
 *                                             + below_i (1{r_i > r_j} - beat_i)) share)
 * downwards, with running sums over the higher levels. */
static void add_pairs(sorted_row *row, const pairing *with, double *weights)
{
    double both = 0.0, up_to = 0.0, below = 0.0;
    for (size_t t = 0; t < row->n; t++) {
        row->up_to[t] *= row->mass[t];
        row->below[t] *= row->mass[t];
        both += row->up_to[t] * row->win[t] + row->below[t] * row->beat[t];
    }
    if (with->k > 0) sum_groups(row, with->k);
    for (size_t up = row->n, low; up > 0; up = low) {
        low = level_start(row, up);
        up_to += sum_of(row->up_to, low, up);
        for (size_t t = low; t < up; t++) {
            const inside own = inside_of(row, with, t);
            const size_t i = row->order[t];
            const double pairs =
                (up_to - own.up_to) + (below - own.below) - (both - own.both);
            const double share = with->chance != NULL ? with->chance[i] : with->share;
            weights[i] = -(row->mass[t] + share * pairs);
        }
        below += sum_of(row->below, low, up);
    }
}

/* -- bon_rl ---------------------------------------------------------------- */

static bon_status check_law(const bon_law *law, const double *win_rate)
{
    const int fits = law->k >= 1 && law->lambda >= 0.0 && isfinite(law->lambda);
    return fits && !(law->exact && win_rate != NULL) ? BON_OK : BON_ERR_DOMAIN;
}

static bon_status check_inputs(const double *scores, const double *more,
                               const double *chance, const double *win_rate, size_t count,
                               size_t *bad)
{
    bon_status status = check_finite(scores, count, bad);
    if (status == BON_OK) status = check_finite(more, count, bad);
    if (status == BON_OK) status = check_within(chance, count, bad);
    if (status == BON_OK) status = check_within(win_rate, count, bad);
    return status;
}

bon_status bon_rl_loss(const double *scores, const double *rewards, const double *chance,
                       const double *win_rate, size_t rows, size_t n, const bon_law *law,
                       int winners, double *scratch, double *value, double *weights,
                       size_t *bad)
{
    *bad = 0;
    if (n > BON_MAX_LOSS_SAMPLES || check_law(law, win_rate) != BON_OK) return BON_ERR_DOMAIN;
    if (n < 1 || (chance == NULL && n < 3)) return BON_ERR_DOMAIN;
    if (winners && (chance != NULL || win_rate != NULL || n / law->k < 2 || n < law->k + 2))
        return BON_ERR_DOMAIN;
    const bon_status status = check_inputs(scores, rewards, chance, win_rate, rows * n, bad);
    if (status != BON_OK) return status;

    sorted_row row = cut_up(n, scratch);
    const size_t own = winners ? law->k : 1;
    const double pairs = (double)(n - own) - (win_rate == NULL ? 1.0 : 0.0);
    pairing with = {.share = 1.0 / pairs, .k = winners ? law->k : 0};
    if (chance == NULL) fill_tilts(law, n, row.table);
    for (size_t r = 0; r < rows; r++) {
        const size_t at = r * n;
        const double *known = win_rate == NULL ? NULL : win_rate + at;
        sort_row(&row, scores, r, rows);
        if (chance != NULL)
            tilt_outcomes(&row, law, with.chance = chance + at, known);
        else if (known != NULL)
            tilt_known(&row, law, known);
        else
            tilt_drawn(&row, law, own);
        value[r] = winners ? -weigh_winners(&row, scores + at, rewards + at, law->k)
                           : -centre_masses(&row, rewards + at, chance == NULL);
        add_pairs(&row, &with, weights + at);
    }
    return BON_OK;
}

/* -- bon_sft --------------------------------------------------------------- */

/* The samples of the policy among those of a row, which alone make up its law. */
typedef struct {
    double experts, policy; /* how many */
    double strength;        /* lambda */
    double lower;           /* what a pair of policy samples counts, .. */
    double shown;           /* .. and one of an expert with a policy sample */
} sft_counts;

static sft_counts count_samples(const uint8_t *expert, size_t n, const bon_law *law,
                                int known)
{
    double experts = 0.0;
    for (size_t i = 0; i < n; i++) experts += expert[i] != 0;
    const double policy = (double)n - experts, spared = known ? 0.0 : 1.0;
    return (sft_counts){experts, policy, law->lambda, 1.0 / (policy - 1.0 - spared),
                        1.0 / (policy - spared)};
}

/* Fills win, and mass with what a sample of the policy counts in the law, 0 for experts,
 * before normalising. Of the policy's samples, an expert is compared with all, and each
 * of them with all others. */
static void weigh_policy(sorted_row *row, const sft_counts *of, const uint8_t *expert,
                         const double *chance, const double *win_rate)
{
    const size_t n = row->n;
    double seen = 0.0; /* of the policy, up to this level: a number, or a chance */
    for (size_t low = 0, up; low < n; low = up) {
        up = level_end(row, low);
        for (size_t t = low; t < up; t++) {
            const size_t i = row->order[t];
            if (!expert[i]) seen += chance != NULL ? chance[i] : 1.0;
        }
        for (size_t t = low; t < up; t++) {
            const size_t i = row->order[t];
            if (win_rate != NULL)
                row->win[t] = win_rate[i];
            else if (chance != NULL)
                row->win[t] = seen;
            else
                row->win[t] = expert[i] ? seen / of->policy : (seen - 1.0) / (of->policy - 1.0);
        }
    }
    const double top = largest(row->win, n);
    for (size_t t = 0; t < n; t++) {
        const size_t i = row->order[t];
        const double weight = expert[i] ? 0.0 : chance != NULL ? chance[i] : 1.0 / of->policy;
        row->mass[t] = weight * exp(of->strength * (row->win[t] - top));
    }
}

/* Normalises mass and returns the loss. */
static double sft_value(sorted_row *row, const sft_counts *of, const double *logp,
                        const uint8_t *expert)
{
    const double top = largest(row->win, row->n), all = sum_of(row->mass, 0, row->n);
    double phi = 0.0;
    for (size_t t = 0; t < row->n; t++) {
        const size_t i = row->order[t];
        if (expert[i]) phi += logp[i] + of->strength * (row->win[t] - top);
        row->mass[t] /= all;
    }
    return log(all) - phi / of->experts;
}

/* Weights of a row whose masses are normalised. The masses are centred, which changes no
 * expectation: by those of the other samples, or by the chances of the outcomes. Pairs as
 * in add_pairs, where experts count with -1/experts. */
static void weigh_sft(sorted_row *row, const sft_counts *of, const uint8_t *expert,
                      const double *chance, double *weights)
{
    double both = 0.0, shown_both = 0.0, higher = 0.0, shown = 0.0;
    for (size_t t = 0; t < row->n; t++) {
        both += row->mass[t] * row->win[t];
        if (expert[row->order[t]]) shown_both += row->win[t] / of->experts;
    }
    for (size_t up = row->n, low; up > 0; up = low) {
        low = level_start(row, up);
        for (size_t t = low; t < up; t++) {
            higher += row->mass[t];
            if (expert[row->order[t]]) shown += 1.0 / of->experts;
        }
        for (size_t t = low; t < up; t++) {
            const size_t i = row->order[t];
            const double mass = row->mass[t];
            if (expert[i]) {
                weights[i] = -1.0 / of->experts;
            } else if (chance != NULL) {
                const double pairs = (higher - both) - (shown - shown_both);
                weights[i] = mass - chance[i] + of->strength * chance[i] * pairs;
            } else {
                const double lower = (higher - mass) - (both - mass * row->win[t]);
                const double pairs = lower * of->lower - (shown - shown_both) * of->shown;
                weights[i] = (mass * of->policy - 1.0) / (of->policy - 1.0)
                             + of->strength * pairs;
            }
        }
    }
}

bon_status bon_sft_loss(const double *scores, const double *logp, const uint8_t *expert,
                        const double *chance, const double *win_rate, size_t rows,
                        size_t n, const bon_law *law, double *scratch, double *value,
                        double *weights, size_t *bad)
{
    *bad = 0;
    if (n < 1 || n > BON_MAX_LOSS_SAMPLES || law->exact
        || check_law(law, win_rate) != BON_OK)
        return BON_ERR_DOMAIN;
    const bon_status status = check_inputs(scores, logp, chance, win_rate, rows * n, bad);
    if (status != BON_OK) return status;

    sorted_row row = cut_up(n, scratch);
    const double fewest = chance == NULL ? 3.0 : 1.0;
    for (size_t r = 0; r < rows; r++) {
        const size_t at = r * n;
        const uint8_t *shown = expert + at;
        const double *chances = chance == NULL ? NULL : chance + at;
        const double *known = win_rate == NULL ? NULL : win_rate + at;
        const sft_counts of = count_samples(shown, n, law, known != NULL);
        if (of.experts < 1.0 || of.policy < fewest) {
            *bad = at;
            return BON_ERR_DOMAIN;
        }
        sort_row(&row, scores, r, rows);
        weigh_policy(&row, &of, shown, chances, known);
        value[r] = sft_value(&row, &of, logp + at, shown);
        weigh_sft(&row, &of, shown, chances, weights + at);
    }
    return BON_OK;
}

/* -- bon_rlb --------------------------------------------------------------- */

bon_status bon_count_correct(const double *rewards, size_t rows, size_t n,
                             double *correct, size_t *bad)
{
    for (size_t r = 0; r < rows; r++) {
        double sum = 0.0;
        size_t other = n;
        for (size_t i = 0; i < n; i++) {
            const double reward = rewards[r * n + i];
            const int fits = (reward == 0.0) | (reward == 1.0);
            sum += reward;
            if (!fits && other == n) other = i;
        }
        correct[r] = sum;
        if (other == n) continue;
        *bad = r * n + other;
        return BON_ERR_DOMAIN;
    }
    return BON_OK;
}

void bon_two_weights(const double *rewards, const double *hit, const double *miss,
                     size_t rows, size_t n, double *weights)
{
    for (size_t r = 0; r < rows; r++) {
        const double right = hit[r], wrong = miss[r];
        for (size_t i = r * n; i < (r + 1) * n; i++)
            weights[i] = rewards[i] != 0.0 ? right : wrong;
    }
}
