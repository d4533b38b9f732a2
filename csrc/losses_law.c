/* losses_law.c - REINFORCE and fine-tuning on the law of best-of-k; see losses.h.
 *
 * A law gives each sample of a row a mass and the derivatives of its tilt (the laws); what
 * a sample's weight owes to the others follows from sums over higher levels (pairs). How
 * rows are sorted and walked is in losses_block.h.
 */
#include "losses.h"

#include <math.h>

#include "dispatch.h"
#include "losses_block.h"

/* -- rows ------------------------------------------------------------------ */

/* The place after the last of the level that starts at `first`, of one lane. */
static size_t level_end(const block *b, size_t first, size_t lane, int tied)
{
    size_t end = first + 1;
    if (!tied) return end;
    const double score = b->scores[first * LANES + lane];
    while (end < b->n && b->scores[end * LANES + lane] == score) end++;
    return end;
}

/* The first place of the level that ends before `end`. */
static size_t level_begin(const block *b, size_t end, size_t lane, int tied)
{
    size_t first = end - 1;
    if (!tied) return first;
    const double score = b->scores[first * LANES + lane];
    while (first > 0 && b->scores[(first - 1) * LANES + lane] == score) first--;
    return first;
}

/* x may be NULL. */
static bon_status check_within(const double *x, size_t count, size_t *bad)
{
    for (size_t i = 0; x != NULL && i < count; i++)
        if (!(x[i] >= 0.0 && x[i] <= 1.0)) {
            *bad = i;
            return BON_ERR_DOMAIN;
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

/* Tilts of levels of one sample: table[3 t ...] with t samples below it. */
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

/* What the law says of each place, [n, LANES] each. */
typedef struct {
    double *mass;  /* under the law; then times (reward - baseline) */
    double *up_to; /* d log tilt / d F; then times mass */
    double *below; /* d log tilt / d G; then times mass; untouched by the variational law */
    double *win;   /* F, without the sample's own group */
    double *beat;  /* G, likewise */
    double *from[3]; /* see add_pairs */
} tilted;

/* Which samples there are, and how they count. */
typedef struct {
    const bon_law *law;
    const double *chance, *win_rate; /* [rows, n] or NULL, as in losses.h */
    size_t own;                      /* size of a sample's group: 1, or k for winners */
    double share;                    /* of a pair, where chance is NULL */
    int winners;
} setting;

/* -- bon_rl: tilts --------------------------------------------------------- */

/* What centring needs: the sum of masses, all pairs of them, and the mean reward relative
 * to base, the reward of the largest mass: nothing is lost where one has nearly all. */
typedef struct {
    bon_vec all, pairs, mean, base;
} sums;

/* The variational law, from ranks; four lanes. Its derivative by F is lambda everywhere
 * and is left to the weight of pairs. */
BON_INLINE void tilt_by_rank(const block *b, const tilted *law, size_t lane, int tied,
                             sums *of)
{
    const double others = (double)(b->n - 1);
    bon_vec mass = {0.0}, win = {0.0}, sum = {0.0};
    *of = (sums){.base = *bon_vec_at(b->rewards + lane)};
    for (size_t i = 0; i < b->n; i++) {
        const size_t at = i * LANES + lane, t = b->n - 1 - i;
        const double one = b->table[3 * t], up = (double)t / others;
        const bon_vec level_mass = {one, one, one, one}, level_win = {up, up, up, up};
        bon_choice same = {0};
        if (i > 0) same_level(b, i, i - 1, lane, tied, &same);
        keep(&mass, &same, &level_mass);
        keep(&win, &same, &level_win);
        *bon_vec_at(law->mass + at) = mass;
        *bon_vec_at(law->win + at) = win;
        of->pairs += mass * of->all;
        of->all += mass;
        sum += mass * (*bon_vec_at(b->rewards + at) - of->base);
    }
    of->mean = sum / of->all;
}

/* Either law, from ranks; one lane. For winners, who bring their own masses, too. */
static void tilt_levels(const block *b, const tilted *law, const setting *as, size_t lane,
                        int tied)
{
    const double n = (double)b->n, own = (double)as->own;
    for (size_t first = 0, end; first < b->n; first = end) {
        end = level_end(b, first, lane, tied);
        const double up = n - (double)first, low = n - (double)end;
        const double *one = b->table + 3 * (b->n - end);
        tilt of = {one[0], one[1], one[2]};
        if (as->law->exact && end > first + 1)
            of = exact_tilt(low / n, (up - low) / n, as->law->k);
        for (size_t i = first; i < end; i++) {
            const size_t at = i * LANES + lane;
            law->mass[at] = of.mass;
            law->up_to[at] = of.up_to;
            law->below[at] = of.below;
            law->win[at] = (up - own) / (n - own);
            law->beat[at] = (low + 1.0 - own) / (n - own);
        }
    }
}

/* Either law where F of each sample is known or the samples are all outcomes; one lane
 * of the rows that chance and win_rate start at. */
static void tilt_known(const block *b, const tilted *law, const setting *as, size_t row,
                       size_t lane, int tied)
{
    const size_t n = b->n;
    const double *chance = as->chance ? as->chance + row * n : NULL;
    const double *known = as->win_rate ? as->win_rate + row * n : NULL;
    double below = 0.0, top = 0.0;
    for (size_t end = n, first; end > 0; end = first) {
        first = level_begin(b, end, lane, tied);
        double level = 0.0;
        for (size_t i = first; i < end; i++) level += chance ? chance[column(b, i, lane)] : 0.0;
        for (size_t i = first; i < end; i++) {
            const size_t at = i * LANES + lane;
            law->win[at] = known ? known[column(b, i, lane)] : below + level;
            law->beat[at] = below;
            if (law->win[at] > top) top = law->win[at];
        }
        below += level;
    }
    for (size_t i = 0; i < n; i++) {
        const size_t at = i * LANES + lane;
        const double win = law->win[at], low = law->beat[at];
        tilt of = {0.0, as->law->lambda, 0.0};
        if (as->law->exact)
            of = exact_tilt(low, win - low, as->law->k);
        else
            of.mass = exp(of.up_to * (win - top)); /* top keeps it away from 0 */
        law->mass[at] = of.mass * (chance ? chance[column(b, i, lane)] : 1.0);
        law->up_to[at] = of.up_to;
        law->below[at] = of.below;
    }
}

/* -- bon_rl: masses -------------------------------------------------------- */

/* The same sums of any masses. */
BON_INLINE void sum_masses(const block *b, const tilted *law, size_t lane, sums *of)
{
    bon_vec top = {0.0}, sum = {0.0};
    *of = (sums){.base = *bon_vec_at(b->rewards + lane)};
    for (size_t i = 0; i < b->n; i++) {
        const bon_vec mass = *bon_vec_at(law->mass + i * LANES + lane);
        const bon_choice more = mass > top;
        bon_choose(&top, &more, &mass, &top);
        bon_choose(&of->base, &more, bon_vec_at(b->rewards + i * LANES + lane), &of->base);
        of->pairs += mass * of->all;
        of->all += mass;
    }
    for (size_t i = 0; i < b->n; i++) {
        const size_t at = i * LANES + lane;
        sum += *bon_vec_at(law->mass + at) * (*bon_vec_at(b->rewards + at) - of->base);
    }
    of->mean = sum / of->all;
}

/* What a mass times (reward - base - mean) is multiplied with: v (R - b), divided by 1 -
 * sum v^2 = 2 pairs / all^2 if that many samples estimate b. 0 where one sample has all
 * the mass, and R = b there. */
BON_INLINE void scale_of(const sums *of, int estimated, bon_vec *scale)
{
    const bon_choice some = of->pairs > 0.0;
    *scale = 1.0 / of->all;
    if (estimated) *scale = (bon_vec)((bon_choice)(0.5 * of->all / of->pairs) & some);
}

/* Masses become v (R - b), likewise. */
BON_INLINE void centre_masses(const block *b, const tilted *law, size_t lane, int estimated,
                              double *value)
{
    sums of;
    bon_vec scale;
    sum_masses(b, law, lane, &of);
    scale_of(&of, estimated, &scale);
    for (size_t i = 0; i < b->n; i++) {
        const size_t at = i * LANES + lane;
        const bon_vec ahead = (*bon_vec_at(b->rewards + at) - of.base) - of.mean;
        *bon_vec_at(law->mass + at) *= scale * ahead;
    }
    for (size_t l = 0; l < 4; l++) value[l] = -(of.mean[l] + of.base[l]);
}

/* -- bon_rl: winners of groups --------------------------------------------- */

/* Groups of k neighbours. Each has a slot: its best score, how many have it, their mean
 * reward, and sums over them that add_pairs takes out. Fills the first three, of a row;
 * rewards relative to base. Returns the sum of the mean rewards. */
static double fill_groups(const double *scores, const double *rewards, double base,
                          size_t groups, size_t k, double *slots)
{
    double sum = 0.0;
    for (size_t g = 0; g < groups; g++) {
        double *slot = slots + SLOT * g, reward = 0.0, tied = 0.0, top = scores[g * k];
        for (size_t i = g * k; i < (g + 1) * k; i++) top = fmax(top, scores[i]);
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
    slots[SLOT * groups + TOP] = INFINITY; /* no sample left over wins */
    return sum;
}

/* Masses of the winners, each 1/groups shared by those that tie, times its reward less
 * the mean of the other groups' winners; one lane, whose row starts at scores and
 * rewards. Returns the value. */
static double weigh_winners(const block *b, const tilted *law, const double *scores,
                            const double *rewards, size_t k, size_t lane)
{
    const size_t groups = b->n / k;
    const double base = rewards[0];
    const double sum = fill_groups(scores, rewards, base, groups, k, b->slots);
    for (size_t i = 0; i < b->n; i++) {
        const size_t sample = column(b, i, lane), at = i * LANES + lane;
        const double *slot = b->slots + SLOT * (sample / k);
        law->mass[at] = 0.0;
        if (scores[sample] != slot[TOP]) continue;
        const double others = (sum - slot[REWARD]) / (double)(groups - 1);
        law->mass[at] = (rewards[sample] - base - others) / (slot[TIED] * (double)groups);
        law->beat[at] += (slot[TIED] - 1.0) / (double)(b->n - k);
    }
    return -(sum / (double)groups + base);
}

/* What a sample must not see of the three sums in add_pairs is what its group adds to
 * them. A winner sees its own group's `below` taken out already: it is not above itself.
 * The samples left over, with the slot after the last group's, see all. One lane. */
static void take_out_groups(const block *b, const tilted *law, const double *scores, size_t k,
                            size_t lane)
{
    const size_t groups = b->n / k;
    for (size_t g = 0; g <= groups; g++)
        b->slots[SLOT * g + UP_TO] = b->slots[SLOT * g + BELOW] = b->slots[SLOT * g + BOTH] = 0.0;
    for (size_t i = 0; i < b->n; i++) {
        const size_t at = i * LANES + lane;
        const double mass = law->mass[at];
        double *slot = b->slots + SLOT * (column(b, i, lane) / k);
        slot[UP_TO] += mass * law->up_to[at];
        slot[BELOW] += mass * law->below[at];
        slot[BOTH] += mass * (law->up_to[at] * law->win[at] + law->below[at] * law->beat[at]);
    }
    for (size_t i = 0; i < b->n; i++) {
        const size_t sample = column(b, i, lane), at = i * LANES + lane;
        const double *slot = b->slots + SLOT * (sample / k);
        const int wins = scores[sample] == slot[TOP];
        law->from[0][at] = slot[UP_TO];
        law->from[1][at] = wins ? 0.0 : slot[BELOW];
        law->from[2][at] = slot[BOTH];
    }
}

/* -- bon_rl: pairs --------------------------------------------------------- */

/* weights[j] = -(mass_j + share * sum over i != j of mass_i (1{r_i >= r_j} - win_i))
 *
 * with masses v (R - b). Downwards, the sum over all places so far; upwards, each level
 * takes the sum at its last place. */
BON_INLINE void add_ranked_pairs(const block *b, const tilted *law, const sums *of,
                                 double share, size_t lane, int tied)
{
    bon_vec both = {0.0}, higher = {0.0}, scale;
    scale_of(of, 1, &scale);
    for (size_t i = 0; i < b->n; i++) {
        const size_t at = i * LANES + lane;
        bon_vec *mass = bon_vec_at(law->mass + at), *reward = bon_vec_at(b->rewards + at);
        *mass *= scale * ((*reward - of->base) - of->mean);
        both += *mass * *bon_vec_at(law->win + at);
        higher += *mass;
        *reward = higher; /* the rewards are done */
    }
    for (size_t i = b->n; i-- > 0;) {
        const size_t at = i * LANES + lane;
        bon_choice same = {0};
        if (i + 1 < b->n) same_level(b, i, i + 1, lane, tied, &same);
        keep(&higher, &same, bon_vec_at(b->rewards + at));
        const bon_vec mass = *bon_vec_at(law->mass + at);
        const bon_vec pairs = (higher - mass) - (both - mass * *bon_vec_at(law->win + at));
        *bon_vec_at(b->weights + at) = -(mass + share * pairs);
    }
}

/* How pairs are made: with the others, with the samples of other groups, or with all. */
typedef enum { OTHERS, GROUPS, ALL } partners;

/* The same for any law, whose masses are v (R - b):
 *
 * weights[j] = -(mass_j + share * sum over partners i of
 *                mass_i (up_to_i (1{r_i >= r_j} - win_i) + below_i (1{r_i > r_j} - beat_i)))
 *
 * The sum of below at a place leaves its level out. For ALL, from[0] is the share of each
 * place. */
BON_INLINE void add_pairs(const block *b, const tilted *law, double share, partners with,
                          size_t lane, int tied)
{
    bon_vec both = {0.0}, up_to = {0.0}, below = {0.0}, in_level = {0.0}, reach = {0.0};
    for (size_t i = 0; i < b->n; i++) {
        const size_t at = i * LANES + lane;
        const bon_vec mass = *bon_vec_at(law->mass + at), above = below + in_level;
        const bon_vec zero = {0.0};
        bon_vec *up = bon_vec_at(law->up_to + at), *low = bon_vec_at(law->below + at);
        bon_choice same = {0};
        if (i > 0) same_level(b, i, i - 1, lane, tied, &same);
        keep(&below, &same, &above);
        keep(&in_level, &same, &zero);
        *up *= mass;
        *low *= mass;
        up_to += *up;
        in_level += *low;
        both += *up * *bon_vec_at(law->win + at) + *low * *bon_vec_at(law->beat + at);
        *bon_vec_at(b->rewards + at) = up_to; /* the rewards are done */
        *bon_vec_at(b->weights + at) = below;
    }
    for (size_t i = b->n; i-- > 0;) {
        const size_t at = i * LANES + lane;
        bon_choice same = {0};
        if (i + 1 < b->n) same_level(b, i, i + 1, lane, tied, &same);
        keep(&reach, &same, bon_vec_at(b->rewards + at));
        const bon_vec up = *bon_vec_at(law->up_to + at), low = *bon_vec_at(law->below + at);
        bon_vec pairs = reach + *bon_vec_at(b->weights + at) - both;
        if (with == OTHERS)
            pairs += up * (*bon_vec_at(law->win + at) - 1.0) + low * *bon_vec_at(law->beat + at);
        if (with == GROUPS)
            pairs += *bon_vec_at(law->from[2] + at) - *bon_vec_at(law->from[0] + at)
                     - *bon_vec_at(law->from[1] + at);
        bon_vec weight = pairs * share;
        if (with == ALL) weight = pairs * *bon_vec_at(law->from[0] + at);
        *bon_vec_at(b->weights + at) = -(*bon_vec_at(law->mass + at) + weight);
    }
}

/* -- bon_rl ---------------------------------------------------------------- */

static tilted parts_of(const block *b)
{
    return (tilted){b->part[0], b->part[1], b->part[2], b->part[3], b->part[4],
                    {b->part[5], b->part[6], b->part[7]}};
}

/* The variational law of samples drawn from the policy: all of it side by side. */
BON_INLINE void rl_by_rank(const block *b, const tilted *law, const setting *as, int tied,
                           double *value)
{
    for (size_t lane = 0; lane < LANES; lane += 4) {
        sums of;
        tilt_by_rank(b, law, lane, tied, &of);
        add_ranked_pairs(b, law, &of, as->law->lambda * as->share, lane, tied);
        for (size_t l = 0; l < 4; l++) value[lane + l] = -(of.mean[l] + of.base[l]);
    }
}

/* Everything else: tilts row by row. scores and rewards: `rows` of them, the first of
 * which is row `at` of the call. */
BON_INLINE void rl_by_row(const block *b, const tilted *law, const setting *as,
                          const double *scores, const double *rewards, size_t at,
                          size_t rows, int tied, double *value)
{
    const size_t n = b->n;
    for (size_t l = 0; l < LANES; l++) {
        const size_t r = l < rows ? l : rows - 1;
        if (as->chance != NULL || as->win_rate != NULL)
            tilt_known(b, law, as, at + r, l, tied);
        else
            tilt_levels(b, law, as, l, tied);
        if (as->winners)
            value[l] = weigh_winners(b, law, scores + r * n, rewards + r * n, as->own, l);
        if (as->winners) take_out_groups(b, law, scores + r * n, as->own, l);
        for (size_t i = 0; as->chance != NULL && i < n; i++)
            law->from[0][i * LANES + l] = as->chance[(at + r) * n + column(b, i, l)];
    }
    const partners with = as->chance != NULL ? ALL : as->winners ? GROUPS : OTHERS;
    for (size_t lane = 0; lane < LANES; lane += 4) {
        if (!as->winners) centre_masses(b, law, lane, as->chance == NULL, value + lane);
        add_pairs(b, law, as->share, with, lane, tied);
    }
}

/* The first of `left` rows, at most LANES, from row `at` of the call on. False where a value
 * is not finite. */
BON_INLINE int rl_rows(const block *b, const setting *as, const double *scores,
                       const double *rewards, size_t at, size_t left, double *value,
                       double *out)
{
    const size_t rows = left < LANES ? left : LANES;
    const tilted law = parts_of(b);
    double eight[LANES];
    if (!rows_finite(rewards, rows, b->n)) return 0;
    fetch_next(scores, b->n, left);
    const int found = sort_rows(b, scores, rows), tied = found == TIES;
    if (found == NOT_FINITE) return 0;
    if (scores != rewards) fetch_next(rewards, b->n, left);
    gather(b, rewards, rows, b->rewards);
    fetch_next_output(out, b->n, left);
    const int by_rank = !as->law->exact && !as->winners && !as->chance && !as->win_rate;
    if (by_rank && tied)
        rl_by_rank(b, &law, as, 1, eight);
    else if (by_rank)
        rl_by_rank(b, &law, as, 0, eight);
    else
        rl_by_row(b, &law, as, scores, rewards, at, rows, tied, eight);
    for (size_t r = 0; r < rows; r++) value[r] = eight[r];
    scatter(b, rows, out);
    return 1;
}

static int rl_rows_anywhere(const block *b, const setting *as, const double *scores,
                            const double *rewards, size_t at, size_t left, double *value,
                            double *out)
{
    return rl_rows(b, as, scores, rewards, at, left, value, out);
}

BON_AVX2 static int rl_rows_avx2(const block *b, const setting *as, const double *scores,
                                 const double *rewards, size_t at, size_t left,
                                 double *value, double *out)
{
    return rl_rows(b, as, scores, rewards, at, left, value, out);
}

static int law_fits(const bon_law *law, const double *win_rate)
{
    const int fits = law->k >= 1 && law->lambda >= 0.0 && isfinite(law->lambda);
    return fits && !(law->exact && win_rate != NULL);
}

bon_status bon_rl_loss(const double *scores, const double *rewards, const double *chance,
                       const double *win_rate, size_t rows, size_t n, const bon_law *law,
                       int winners, double *scratch, double *value, double *weights,
                       size_t *bad)
{
    *bad = 0;
    if (n > BON_MAX_LOSS_SAMPLES || !law_fits(law, win_rate)) return BON_ERR_DOMAIN;
    if (n < 1 || (chance == NULL && n < 3)) return BON_ERR_DOMAIN;
    if (winners && (chance != NULL || win_rate != NULL || n / law->k < 2 || n < law->k + 2))
        return BON_ERR_DOMAIN;
    bon_status status = check_within(chance, rows * n, bad);
    if (status == BON_OK) status = check_within(win_rate, rows * n, bad);
    if (status != BON_OK) return status;

    const block b = cut_up(n, scratch);
    setting as = {.law = law, .chance = chance, .win_rate = win_rate, .winners = winners};
    as.own = winners ? law->k : 1;
    as.share = 1.0 / ((double)(n - as.own) - (win_rate == NULL ? 1.0 : 0.0));
    if (chance == NULL) fill_tilts(law, n, b.table);
    const int avx2 = bon_has_avx2();
    for (size_t r = 0; r < rows; r += LANES) {
        const size_t at = r * n, left = rows - r;
        const int finite =
            avx2 ? rl_rows_avx2(&b, &as, scores + at, rewards + at, r, left, value + r,
                                weights + at)
                 : rl_rows_anywhere(&b, &as, scores + at, rewards + at, r, left, value + r,
                                    weights + at);
        if (finite) continue;
        const size_t some = left < LANES ? left : LANES;
        status = find_not_finite(rewards + at, scores + at, some * n, at, bad);
        if (status != BON_OK) return status;
    }
    return BON_OK;
}

/* -- bon_sft --------------------------------------------------------------- */

/* The rows of one core call, and what a block's rows have: how many experts and samples of
 * the policy each, and its value. */
typedef struct {
    const double *scores, *logp, *chance, *win_rate;
    const uint8_t *expert;
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
    const double fewest = in->chance == NULL ? 3.0 : 1.0;
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
        if (in->win_rate != NULL) continue;
        *bon_vec_at(of->win + at) = seen;
        if (in->chance == NULL) *bon_vec_at(of->win + at) = (seen - mine) / (all - mine);
    }
}

/* Fills mass, not yet normalised: what it is a multiple of, exp(-lambda top), is the same
 * for a row. */
static void tilt_policy(const block *b, const shares *of, const sft_call *in,
                        const double *top)
{
    if (in->chance == NULL && in->win_rate == NULL) {
        for (size_t i = 0; i < b->n * LANES; i += LANES)
            for (size_t l = 0; l < LANES; l++)
                of->mass[i + l] = of->mine[i + l]
                                  * in->tables[l * (b->n + 1) + (size_t)of->seen[i + l]];
        return;
    }
    for (size_t i = 0; i < b->n * LANES; i += LANES)
        for (size_t l = 0; l < LANES; l++) {
            const double weight =
                in->chance ? of->weight[i + l] : of->weight[i + l] / in->policy[l];
            const double ahead = fmin(of->win[i + l] - top[l], 0.0); /* > 0 for experts only */
            of->mass[i + l] = weight * exp(in->lambda * ahead);
        }
}

/* Normalises mass, of four lanes, and fills all with what it added up to and phi with the
 * sum over experts of log pi + lambda (F - top); b->rewards holds log pi. */
BON_INLINE void normalise(const block *b, const shares *of, double lambda, const double *top,
                          size_t lane, double *all, double *phi)
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
    const bon_vec scale = 1.0 / sum;
    for (size_t i = 0; i < b->n; i++) *bon_vec_at(of->mass + i * LANES + lane) *= scale;
    *bon_vec_at(all + lane) = sum;
    *bon_vec_at(phi + lane) = shown;
}

/* Weights of four rows. The masses are centred, which changes no expectation: by those of
 * the other samples, or by the chances of the outcomes. Pairs as in add_pairs, where
 * experts count with -1/experts. */
BON_INLINE void add_sft_pairs(const block *b, const shares *of, const sft_call *in,
                              size_t lane, int tied)
{
    const bon_vec m = *bon_const_vec_at(in->policy + lane);
    const bon_vec one_expert = 1.0 / *bon_const_vec_at(in->experts + lane);
    const double spared = in->win_rate == NULL ? 1.0 : 0.0;
    const bon_vec of_lower = in->lambda / (m - 1.0 - spared), of_others = 1.0 / (m - 1.0);
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
        if (in->chance != NULL) {
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
 * each row, or 1; relative to it no row loses all its mass to underflow. */
static void gather_shares(const block *b, const shares *of, const sft_call *in, size_t at,
                          size_t rows, double *top)
{
    const size_t step = b->n * LANES, start = at * b->n;
    gather(b, in->logp + start, rows, b->rewards);
    gather_policy(b, in->expert + start, rows, of->mine);
    if (in->chance != NULL) {
        gather(b, in->chance + start, rows, of->weight);
        for (size_t i = 0; i < step; i++) of->weight[i] *= of->mine[i];
    }
    for (size_t l = 0; l < LANES; l++) top[l] = 1.0;
    if (in->win_rate == NULL) return;
    gather(b, in->win_rate + start, rows, of->win);
    for (size_t l = 0; l < LANES; l++) top[l] = 0.0;
    for (size_t i = 0; i < step; i++)
        if (of->mine[i] > 0.0 && of->win[i] > top[i % LANES]) top[i % LANES] = of->win[i];
}

/* The first of `left` rows, at most LANES, from row `at` of the call on. False where a value
 * is not finite. */
BON_INLINE int sft_block(const block *b, sft_call *in, size_t at, size_t left, double *out)
{
    const size_t rows = left < LANES ? left : LANES, start = at * b->n;
    const int by_rank = in->chance == NULL && in->win_rate == NULL;
    shares of = {b->part[0], b->part[0], b->part[1], b->part[2], b->part[3],
                 b->part[4], b->part[5]};
    if (in->chance != NULL) of.weight = b->part[6];
    double top[LANES], all[LANES], phi[LANES];
    if (!rows_finite(in->logp + start, rows, b->n)) return 0;
    fetch_next(in->scores + start, b->n, left);
    const int found = sort_rows(b, in->scores + start, rows), tied = found == TIES;
    if (found == NOT_FINITE) return 0;
    fetch_next(in->logp + start, b->n, left);
    gather_shares(b, &of, in, at, rows, top);
    if (by_rank) fill_sft_tables(in, b->n);
    for (size_t lane = 0; lane < LANES; lane += 4) count_wins(b, &of, in, lane, tied);
    fetch_next_output(out, b->n, left);
    tilt_policy(b, &of, in, top);
    for (size_t lane = 0; lane < LANES; lane += 4) {
        normalise(b, &of, in->lambda, top, lane, all, phi);
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
                        const double *chance, const double *win_rate, size_t rows,
                        size_t n, const bon_law *law, double *scratch, double *value,
                        double *weights, size_t *bad)
{
    *bad = 0;
    if (n < 1 || n > BON_MAX_LOSS_SAMPLES || law->exact || !law_fits(law, win_rate))
        return BON_ERR_DOMAIN;
    bon_status status = check_within(chance, rows * n, bad);
    if (status == BON_OK) status = check_within(win_rate, rows * n, bad);
    if (status != BON_OK) return status;

    const block b = cut_up(n, scratch);
    sft_call in = {.scores = scores, .logp = logp, .chance = chance, .win_rate = win_rate,
                   .expert = expert, .lambda = law->lambda, .tables = b.tables};
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
    return BON_OK;
}
