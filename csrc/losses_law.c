/* losses_law.c - REINFORCE on the law of best-of-k; see losses.h.
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
    const bon_known *known;
    size_t own;   /* size of a sample's group: 1, or k for winners */
    double share; /* of a pair, where no chance is known */
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
    const double *chance = as->known->chance ? as->known->chance + row * n : NULL;
    const double *known = as->known->win_rate ? as->known->win_rate + row * n : NULL;
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

/* -- bon_rl: a law that is known ------------------------------------------- */

/* Sums over samples: of t, of t R and of c, as in losses.h. */
typedef struct {
    double mass, gain, ahead;
} tally;

static void count(tally *to, const block *b, const tilted *law, size_t at, double times)
{
    const double mass = times * law->mass[at];
    to->mass += mass;
    to->gain += mass * b->rewards[at];
    to->ahead += times * law->up_to[at];
}

/* Fills win, mass with t, up_to with c, and makes rewards relative to that of the largest t;
 * one lane, whose F and normaliser these are. Returns the value. */
static double centre_known(const block *b, const tilted *law, double lambda,
                           const double *win_rate, double log_normaliser, size_t lane)
{
    const double n = (double)b->n;
    double top = 0.0, base = 0.0, mass = 0.0, gain = 0.0, rewards = 0.0;
    for (size_t i = 0; i < b->n; i++) {
        const size_t at = i * LANES + lane;
        law->win[at] = win_rate[column(b, i, lane)];
        law->mass[at] = exp(lambda * law->win[at] - log_normaliser);
        mass += law->mass[at];
        if (i > 0 && law->mass[at] <= top) continue;
        top = law->mass[at];
        base = b->rewards[at];
    }
    for (size_t i = 0; i < b->n; i++) {
        const size_t at = i * LANES + lane;
        b->rewards[at] -= base;
        gain += law->mass[at] * b->rewards[at];
        rewards += b->rewards[at];
    }
    for (size_t i = 0; i < b->n; i++) {
        const size_t at = i * LANES + lane;
        law->up_to[at] = law->mass[at] * (mass * b->rewards[at] - gain) / (n * (n - 1.0));
    }
    return -(base + (gain + rewards + (gain - mass * rewards) / (n - 1.0)) / n);
}

/* Weights of one lane; of c_i its term of j is taken out. */
static void add_known_pairs(const block *b, const tilted *law, double lambda, size_t lane,
                            int tied)
{
    const double n = (double)b->n, term = 1.0 / (n * (n - 1.0));
    tally both = {0}, up_to = {0};
    for (size_t i = 0; i < b->n; i++)
        count(&both, b, law, i * LANES + lane, law->win[i * LANES + lane]);
    for (size_t first = 0, end; first < b->n; first = end) {
        end = level_end(b, first, lane, tied);
        for (size_t i = first; i < end; i++) count(&up_to, b, law, i * LANES + lane, 1.0);
        for (size_t i = first; i < end; i++) {
            const size_t at = i * LANES + lane;
            const double own = law->up_to[at] * (1.0 - law->win[at]);
            const double with_j = (up_to.gain - both.gain)
                                  - b->rewards[at] * (up_to.mass - both.mass);
            const double pairs = up_to.ahead - both.ahead - own - law->mass[at] * term * with_j;
            b->weights[at] = -(law->up_to[at] + lambda / (n - 2.0) * pairs);
        }
    }
}

/* Rows whose F and normaliser are known; the first is row `at` of the call. */
static void rl_known(const block *b, const tilted *law, const setting *as, size_t at,
                     size_t rows, int tied, double *value)
{
    const double lambda = as->law->lambda;
    for (size_t l = 0; l < LANES; l++) {
        const size_t r = at + (l < rows ? l : rows - 1);
        value[l] = centre_known(b, law, lambda, as->known->win_rate + r * b->n,
                                as->known->log_normaliser[r], l);
        add_known_pairs(b, law, lambda, l, tied);
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
    const double *chance = as->known->chance;
    for (size_t l = 0; l < LANES; l++) {
        const size_t r = l < rows ? l : rows - 1;
        if (chance != NULL || as->known->win_rate != NULL)
            tilt_known(b, law, as, at + r, l, tied);
        else
            tilt_levels(b, law, as, l, tied);
        if (as->winners)
            value[l] = weigh_winners(b, law, scores + r * n, rewards + r * n, as->own, l);
        if (as->winners) take_out_groups(b, law, scores + r * n, as->own, l);
        for (size_t i = 0; chance != NULL && i < n; i++)
            law->from[0][i * LANES + l] = chance[(at + r) * n + column(b, i, l)];
    }
    const partners with = chance != NULL ? ALL : as->winners ? GROUPS : OTHERS;
    for (size_t lane = 0; lane < LANES; lane += 4) {
        if (!as->winners) centre_masses(b, law, lane, chance == NULL, value + lane);
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
    fetch_next_output(b, out, left);
    const bon_known *known = as->known;
    const int by_rank = !as->law->exact && !as->winners && !known->chance && !known->win_rate;
    if (known->log_normaliser)
        rl_known(b, &law, as, at, rows, tied, eight);
    else if (by_rank && tied)
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

bon_status bon_rl_loss(const double *scores, const double *rewards, const bon_known *known,
                       size_t rows, size_t n, const bon_law *law, int winners,
                       double *scratch, double *value, double *weights, int stream,
                       size_t *bad)
{
    bon_status status = check_law(law, known, rows, n, bad);
    if (status != BON_OK) return status;
    const int drawn = known->chance == NULL, ranked = known->win_rate == NULL;
    if (drawn && n < 3) return BON_ERR_DOMAIN;
    if (winners && (!drawn || !ranked || n / law->k < 2 || n < law->k + 2))
        return BON_ERR_DOMAIN;

    const block b = cut_up(n, scratch, weights, stream);
    setting as = {.law = law, .known = known, .winners = winners};
    as.own = winners ? law->k : 1;
    as.share = 1.0 / ((double)(n - as.own) - (ranked ? 1.0 : 0.0));
    if (drawn) fill_tilts(law, n, b.table);
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
    if (b.stream) bon_end_streams();
    return BON_OK;
}
