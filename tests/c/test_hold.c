/* test_hold.c - samples that are held, asked and kept, on a small random model.
 *
 * No bit of what is drawn may depend on it, an answer is that of the whole text, and
 * slots, cache and events are where decode.h says; interrupts at every point and a
 * failure of every allocation. Linked with --wrap for the allocators (see the Makefile).
 */
#include "check.h"
#include "score.h"
#include "small_model.h"

enum { SLOTS = 5, BLOCKS = 60, PROMPTS = 4, EACH = 3, SAMPLES = PROMPTS * EACH, ASK = 6 };

/* The rich model with a vocabulary that makes it large: threads share its products. */
static bon_arch large_arch(void)
{
    bon_arch arch = rich;
    arch.vocab = 50000;
    return arch;
}

static bon_session *make_session(const bon_model *model, size_t slots, size_t blocks,
                                 bool hold_ends)
{
    static const int32_t ends[] = {3, 5};
    bon_session *session;
    const bon_session_limits limits = {.slots = slots, .cache_blocks = blocks, .end_tokens = ends,
                                       .n_end = 2, .hold_ends = hold_ends};
    CHECK(bon_session_create(model, &limits, &session) == BON_OK);
    return session;
}

static size_t add_sample(bon_session *session, size_t prompt, uint64_t index, size_t limit,
                         size_t hold_at)
{
    const bon_sample_settings settings = {
        .key = {.seed = 11, .sample = index}, .how = {1.5f, 0, 1.0, 0.0},
        .max_new_tokens = limit, .hold_at = hold_at};
    size_t sample;
    CHECK(bon_session_add_sample(session, prompt, &settings, &sample) == BON_OK);
    return sample;
}

static bon_sample_view view_of(const bon_session *session, size_t sample)
{
    bon_sample_view view;
    CHECK(bon_session_view(session, sample, &view) == BON_OK);
    return view;
}

static bon_session_stats stats_of(const bon_session *session)
{
    bon_session_stats stats;
    bon_session_get_stats(session, &stats);
    return stats;
}

static size_t run_while_pending(bon_session *session) /* events */
{
    size_t sample, events = 0;
    while (bon_session_pending(session)) {
        CHECK(bon_session_run(session, 1000, NULL) == BON_OK);
        while (bon_session_next_event(session, &sample)) events++;
    }
    return events;
}

static size_t pick(uint64_t *dice, size_t below)
{
    return (size_t)((double)(noise(dice) + 0.5f) * (double)below);
}

/* -- same bits ------------------------------------------------------------- */

/* Samples of prompts that end before, on and behind the border of a block, each drawn in
 * its own way; held at random where there are dice. */
static void add_all(bon_session *session, uint64_t *dice)
{
    static const bon_sampling ways[EACH] = {
        {1.5f, 0, 1.0, 0.0}, {1.0f, 20, 1.0, 0.0}, {0.8f, 0, 0.9, 0.01}};
    for (size_t p = 0; p < PROMPTS; p++) {
        const size_t prompt = add_prompt(session, text + 7 * p, (size_t[]){5, 32, 33, 63}[p]);
        for (size_t i = 0, sample; i < EACH; i++) {
            const bon_sample_settings settings = {
                .key = {.seed = 4, .sample = i}, .how = ways[i], .max_new_tokens = 50,
                .hold_at = dice ? pick(dice, 12) : 0};
            CHECK(bon_session_add_sample(session, prompt, &settings, &sample) == BON_OK);
        }
    }
}

/* Asks some of the samples in the cache. */
static void ask_some(bon_session *session, uint64_t *dice, float *logits)
{
    size_t asked[SAMPLES], count = 0;
    for (size_t i = 0; i < SAMPLES; i++)
        if (view_of(session, i).in_cache && pick(dice, 2)) asked[count++] = i;
    float logp[SAMPLES];
    CHECK(bon_session_ask(session, asked, count, text + pick(dice, 50), 1 + pick(dice, ASK), text,
                          1, NULL, logp, pick(dice, 2) ? logits : NULL) == BON_OK);
}

/* Lets what is held go on, and compares and forgets what has ended: how many these are. */
static size_t move_all(bon_session *session, const bon_session *calm, uint64_t *dice)
{
    size_t moved = 0;
    for (size_t i = 0; i < SAMPLES; i++) {
        const bon_sample_view view = view_of(session, i);
        if (!view.in_cache) continue;
        if (view.state == BON_HELD) {
            const size_t next = pick(dice, 3) ? view.length + 1 + pick(dice, 20) : 0;
            CHECK(bon_session_go_on(session, i, next) == BON_OK);
        } else {
            CHECK(bon_sample_ended(view.state) && same_sample(session, i, calm, i));
            bon_session_forget(session, i);
        }
        moved++;
    }
    return moved;
}

static void test_holds_and_questions_change_no_bit(const bon_arch *arch, bon_dtype dtype,
                                                   int threads)
{
    bon_model *model = make_model(arch, dtype, threads);
    bon_session *calm = make_session(model, SAMPLES, 200, false);
    add_all(calm, NULL);
    run_while_pending(calm);
    float *logits = malloc(SAMPLES * arch->vocab * sizeof *logits);
    for (uint64_t seed = 1; seed <= 2; seed++) {
        uint64_t dice = seed;
        static const int32_t ends[] = {3, 5};
        const bon_session_limits limits = {
            .slots = SLOTS, .cache_blocks = seed == 1 ? BLOCKS : 10, .end_tokens = ends,
            .n_end = 2, .hold_ends = true, .ask_blocks = bon_fork_blocks(ASK)};
        bon_session *session;
        CHECK(bon_session_create(model, &limits, &session) == BON_OK);
        add_all(session, &dice);
        size_t sample;
        do {
            while (bon_session_pending(session)) {
                CHECK(bon_session_run(session, 1 + pick(&dice, 6), NULL) == BON_OK);
                while (bon_session_next_event(session, &sample)) continue;
                ask_some(session, &dice, logits);
            }
        } while (move_all(session, calm, &dice) > 0);
        const bon_session_stats stats = stats_of(session);
        CHECK(stats.live + stats.held + stats.waiting == 0);
        CHECK(stats.free_blocks == limits.cache_blocks);
        for (size_t i = 0; i < SAMPLES; i++) CHECK(bon_sample_ended(view_of(session, i).state));
        bon_session_destroy(session);
    }
    free(logits);
    bon_session_destroy(calm);
    bon_model_destroy(model);
}

/* -- answers --------------------------------------------------------------- */

/* log P(named) behind prompt, sample and question in one fresh pass. */
static float fresh_answer(const bon_model *model, size_t prompt_len, const bon_sample_view *view,
                          const int32_t *question, size_t len, int32_t named)
{
    int32_t whole[CONTEXT];
    const size_t length = prompt_len + view->length + len;
    memcpy(whole, text, prompt_len * sizeof *text);
    memcpy(whole + prompt_len, view->tokens, view->length * sizeof *whole);
    memcpy(whole + length - len, question, len * sizeof *whole);
    float *logits = malloc(length * VOCAB * sizeof *logits), logp;
    size_t bad;
    CHECK(bon_score_logits(model, whole, length, NULL, logits, &bad) == BON_OK);
    CHECK(bon_log_softmax_at(logits + (length - 1) * VOCAB, VOCAB, 1.0f, &named, 1, &logp)
          == BON_OK);
    free(logits);
    return logp;
}

static void test_an_answer_is_that_of_the_whole_text(void)
{
    bon_model *model = make_model(&rich, BON_F32, 2);
    bon_session *session = make_session(model, 8, 200, true);
    const size_t prompt = add_prompt(session, text, 33);
    for (uint64_t i = 0; i < 6; i++) add_sample(session, prompt, i, 40, i % 2 ? 0 : 2 + 3 * i);
    size_t sample, states[BON_ABORTED + 1] = {0}, all[6] = {0, 1, 2, 3, 4, 5};
    CHECK(bon_session_run(session, 2, NULL) == BON_OK);
    CHECK(bon_session_end_sample(session, 1, BON_STOP_STRING, 2) == BON_OK); /* of three */
    do {
        float logp[12];
        CHECK(bon_session_ask(session, all, 6, text + 40, 5, text, 2, NULL, logp, NULL) == BON_OK);
        for (size_t i = 0; i < 6; i++) {
            const bon_sample_view view = view_of(session, i);
            for (size_t k = 0; k < 2; k++) {
                const float want = fresh_answer(model, 33, &view, text + 40, 5, text[k]);
                CHECK(fabsf(logp[2 * i + k] - want) < 1e-5f);
            }
            states[view.state]++;
        }
        while (bon_session_next_event(session, &sample)) continue;
        CHECK(bon_session_run(session, 4, NULL) == BON_OK);
    } while (bon_session_pending(session));
    CHECK(states[BON_LIVE] && states[BON_HELD] && states[BON_STOP_STRING]);
    CHECK(states[BON_END_TOKEN] + states[BON_LENGTH] > 0);
    bon_session_destroy(session);
    bon_model_destroy(model);
}

/* Held samples of two prompts, asked in an odd order. */
static void ask_crowd(const bon_model *model, size_t blocks, size_t len, float *logp, float *logits)
{
    enum { CROWD = 20 };
    bon_session *session = make_session(model, CROWD, blocks, false);
    size_t asked[CROWD];
    for (size_t p = 0, sample; p < 2; p++) {
        const size_t prompt = add_prompt(session, text + p, 10 + 30 * p);
        for (uint64_t i = 0; i < CROWD / 2; i++) {
            sample = add_sample(session, prompt, i, 30, 2 + i % 3);
            asked[7 * sample % CROWD] = sample;
        }
    }
    run_while_pending(session);
    for (size_t i = 0; i < CROWD; i++) { /* an end token drawn early: another is asked twice */
        if (!view_of(session, asked[i]).in_cache) asked[i] = asked[(i + 1) % CROWD];
        CHECK(view_of(session, asked[i]).in_cache);
    }
    CHECK(bon_session_ask(session, asked, CROWD, text, len, text, 3, NULL, logp, logits) == BON_OK);
    bon_session_destroy(session);
}

static void test_answers_do_not_depend_on_threads_and_room(size_t len)
{
    float want[60], got[60], *logits = malloc(20 * VOCAB * sizeof *logits);
    float *there = malloc(20 * VOCAB * sizeof *there);
    bon_model *one = make_model(&rich, BON_F32, 1);
    ask_crowd(one, 500, len, want, logits);
    CHECK(want[0] != want[3]);
    for (int threads = 1; threads <= 3; threads++) {
        bon_model *model = make_model(&rich, BON_F32, threads);
        for (size_t spare = bon_fork_blocks(len), all = 6 * spare; spare < all; spare += spare) {
            ask_crowd(model, 3 + 20 + spare, len, got, there);
            CHECK(memcmp(got, want, sizeof want) == 0);
            CHECK(memcmp(there, logits, 20 * VOCAB * sizeof *logits) == 0);
        }
        ask_crowd(model, 500, len, got, NULL);
        CHECK(memcmp(got, want, sizeof want) == 0);
        bon_model_destroy(model);
    }
    free(logits);
    free(there);
    bon_model_destroy(one);
}

static void test_what_cannot_be_asked_is_refused(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    bon_session *session = make_session(model, 2, 40, true);
    const size_t prompt = add_prompt(session, text, 100);
    const size_t one = add_sample(session, prompt, 0, 40, 10);
    const size_t ended = add_sample(session, prompt, 1, 40, 0);
    const size_t waiting = add_sample(session, prompt, 2, 40, 0);
    CHECK(bon_session_run(session, 1, NULL) == BON_OK);
    CHECK(bon_session_end_sample(session, ended, BON_PRUNED, 1) == BON_OK);
    const size_t asked[2] = {one, ended}, unknown = 9;
    const int32_t strange[2] = {1, VOCAB};
    float logp[2];
    const size_t fits = CONTEXT - 100 - view_of(session, one).length;
    CHECK(bon_session_ask(session, &one, 1, text, fits, text, 1, NULL, logp, NULL) == BON_OK);
    CHECK(bon_session_ask(session, &one, 0, text, 3, text, 1, NULL, NULL, NULL) == BON_OK);
    CHECK(bon_session_ask(session, &one, 1, text, fits + 1, text, 1, NULL, logp, NULL)
          == BON_ERR_DOMAIN);
    CHECK(bon_session_ask(session, &one, 1, text, SIZE_MAX, text, 1, NULL, logp, NULL)
          == BON_ERR_DOMAIN);
    CHECK(bon_session_ask(session, &one, 1, text, 0, text, 1, NULL, logp, NULL) == BON_ERR_DOMAIN);
    CHECK(bon_session_ask(session, asked, 2, text, 3, text, 1, NULL, logp, NULL)
          == BON_ERR_DOMAIN);
    CHECK(bon_session_ask(session, &waiting, 1, text, 3, text, 1, NULL, logp, NULL)
          == BON_ERR_DOMAIN);
    CHECK(bon_session_ask(session, &unknown, 1, text, 3, text, 1, NULL, logp, NULL)
          == BON_ERR_DOMAIN);
    CHECK(bon_session_ask(session, &one, 1, strange, 2, text, 1, NULL, logp, NULL)
          == BON_ERR_DOMAIN);
    CHECK(bon_session_ask(session, &one, 1, text, 3, strange, 2, NULL, logp, NULL)
          == BON_ERR_DOMAIN);
    bon_session_destroy(session);
    bon_model_destroy(model);
}

/* -- rest ------------------------------------------------------------------ */

static void test_a_held_sample_draws_nothing_until_it_goes_on(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    const bon_session_limits limits = {.slots = 4, .cache_blocks = 40}; /* no end tokens */
    bon_session *session;
    CHECK(bon_session_create(model, &limits, &session) == BON_OK);
    const size_t prompt = add_prompt(session, text, 20);
    const size_t first = add_sample(session, prompt, 0, 30, 1);
    const size_t second = add_sample(session, prompt, 1, 30, 4);
    size_t sample;
    CHECK(bon_session_run(session, 100, NULL) == BON_OK); /* held as it enters */
    CHECK(bon_session_next_event(session, &sample) && sample == first);
    CHECK(!bon_session_next_event(session, &sample));
    CHECK(view_of(session, first).state == BON_HELD && view_of(session, first).length == 1);
    CHECK(view_of(session, second).state == BON_LIVE && bon_session_pending(session));
    CHECK(run_while_pending(session) == 1);
    CHECK(view_of(session, second).state == BON_HELD && view_of(session, second).length == 4);

    bon_session_stats stats = stats_of(session);
    CHECK(stats.live == 0 && stats.held == 2 && stats.waiting == 0 && stats.free_blocks == 37);
    CHECK(bon_session_run(session, 100, NULL) == BON_OK);
    CHECK(!bon_session_next_event(session, &sample) && stats_of(session).steps == stats.steps);
    bon_session_forget(session, first); /* not while it is held */
    CHECK(view_of(session, first).length == 1 && stats_of(session).held == 2);

    CHECK(bon_session_go_on(session, second, 4) == BON_ERR_DOMAIN);
    CHECK(bon_session_go_on(session, second, 3) == BON_ERR_DOMAIN);
    CHECK(bon_session_go_on(session, 2, 9) == BON_ERR_DOMAIN);
    CHECK(bon_session_go_on(session, second, 5) == BON_OK);
    CHECK(bon_session_go_on(session, second, 6) == BON_ERR_DOMAIN); /* lives */
    CHECK(run_while_pending(session) == 1);
    CHECK(view_of(session, second).state == BON_HELD && view_of(session, second).length == 5);
    CHECK(bon_session_go_on(session, first, 0) == BON_OK);
    CHECK(run_while_pending(session) == 1);
    CHECK(view_of(session, first).state == BON_LENGTH && view_of(session, first).length == 30);
    CHECK(view_of(session, second).length == 5);
    CHECK(bon_session_go_on(session, first, 0) == BON_ERR_DOMAIN); /* has ended */
    CHECK(bon_session_end_sample(session, second, BON_ABORTED, 5) == BON_OK);
    stats = stats_of(session);
    CHECK(stats.live + stats.held == 0 && stats.free_blocks == 40);
    bon_session_destroy(session);
    bon_model_destroy(model);
}

static void test_dropped_samples_let_others_in_at_once(void)
{
    bon_model *model = make_model(&rich, BON_F32, 2);
    bon_session *session = make_session(model, 4, 14, true); /* a prompt's block, four of three */
    const size_t prompt = add_prompt(session, text, 20);
    for (uint64_t i = 0; i < 8; i++) add_sample(session, prompt, i, 70, 2);
    size_t sample;
    CHECK(bon_session_run(session, 3, NULL) == BON_OK);
    while (bon_session_next_event(session, &sample)) continue;
    const bon_session_stats stats = stats_of(session);
    CHECK(stats.held == 4 && stats.live == 0 && stats.waiting == 4 && stats.free_blocks == 1);
    CHECK(!bon_session_pending(session)); /* every slot is taken by one that rests */
    CHECK(bon_session_run(session, 3, NULL) == BON_OK && stats_of(session).steps == stats.steps);

    for (size_t i = 0; i < 3; i++)
        CHECK(bon_session_end_sample(session, i, i ? BON_PRUNED : BON_ABORTED, 2) == BON_OK);
    CHECK(stats_of(session).held == 1 && stats_of(session).free_blocks == 10);
    CHECK(bon_session_pending(session));
    for (size_t i = 0; i < 3; i++)
        CHECK(bon_session_next_event(session, &sample) && sample == i);
    CHECK(bon_session_run(session, 1, NULL) == BON_OK);
    CHECK(stats_of(session).waiting == 1 && stats_of(session).free_blocks == 1);
    bon_session_destroy(session);
    bon_model_destroy(model);
}

static void test_what_ends_by_itself_is_kept_until_forgotten(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    bon_session *session = make_session(model, 4, 40, true);
    const size_t prompt = add_prompt(session, text, 20);
    for (uint64_t i = 0; i < 4; i++) add_sample(session, prompt, i, 40, 3);
    const size_t late = add_sample(session, prompt, 9, 40, 0);
    run_while_pending(session);
    CHECK(stats_of(session).held == 4 && stats_of(session).free_blocks == 40 - 1 - 4 * 2);
    const bon_sample_state reasons[4] = {BON_STOP_STRING, BON_LENGTH, BON_END_TOKEN,
                                         BON_STOP_STRING};
    for (size_t i = 0; i < 4; i++) /* of the last no token remains: nothing to be asked */
        CHECK(bon_session_end_sample(session, i, reasons[i], i == 3 ? 0 : 2) == BON_OK);
    CHECK(stats_of(session).held == 0 && stats_of(session).free_blocks == 40 - 1 - 3 * 2);
    CHECK(view_of(session, 0).in_cache && view_of(session, 1).in_cache);
    CHECK(view_of(session, 2).in_cache && !view_of(session, 3).in_cache);
    run_while_pending(session); /* in the slot of the last */
    CHECK(bon_sample_ended(view_of(session, late).state) && view_of(session, late).in_cache);

    const size_t kept[4] = {0, 1, 2, late};
    for (size_t i = 0; i < 4; i++) {
        float logp;
        CHECK(bon_session_ask(session, &kept[i], 1, text, 3, text, 1, NULL, &logp, NULL) == BON_OK);
        bon_session_forget(session, kept[i]);
        bon_session_forget(session, kept[i]); /* once is enough */
        CHECK(bon_session_ask(session, &kept[i], 1, text, 3, text, 1, NULL, &logp, NULL)
              == BON_ERR_DOMAIN);
        /* the prompt's block with the last of them */
        CHECK(stats_of(session).free_blocks == (i < 3 ? 40 - 1 - 2 * (3 - i) : 40));
    }
    bon_session_destroy(session);
    bon_model_destroy(model);
}

static void test_a_prompt_stays_for_those_of_it_that_wait(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    bon_session *session = make_session(model, 1, 40, true);
    const size_t prompt = add_prompt(session, text, 20);
    const size_t first = add_sample(session, prompt, 0, 1, 0);
    const size_t second = add_sample(session, prompt, 1, 1, 0);
    run_while_pending(session);
    CHECK(view_of(session, second).state == BON_WAITING);
    bon_session_forget(session, first);
    CHECK(stats_of(session).free_blocks == 39);
    run_while_pending(session);
    bon_session_forget(session, second);
    CHECK(stats_of(session).prompt_tokens == 20 && stats_of(session).free_blocks == 40);
    bon_session_destroy(session);
    bon_model_destroy(model);
}

static void test_an_end_comes_before_a_hold(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    bon_session *calm = make_session(model, 8, 100, false);
    size_t prompt = add_prompt(calm, text, 20), ended = 0;
    for (uint64_t i = 0; i < 8; i++) add_sample(calm, prompt, i, 25, 0);
    run_while_pending(calm);
    bon_session *session = make_session(model, 8, 100, false);
    prompt = add_prompt(session, text, 20);
    for (size_t i = 0; i < 8; i++) { /* each is to be held where it ends */
        add_sample(session, prompt, i, 25, view_of(calm, i).length);
        ended += view_of(calm, i).state == BON_END_TOKEN;
    }
    CHECK(ended > 0 && ended < 8);
    run_while_pending(session);
    for (size_t i = 0; i < 8; i++) CHECK(same_sample(session, i, calm, i));
    CHECK(stats_of(session).held == 0 && stats_of(session).free_blocks == 100);
    bon_session_destroy(session);
    bon_session_destroy(calm);
    bon_model_destroy(model);
}

static void test_a_watched_token_at_a_hold_is_one_event(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    uint8_t watch[VOCAB];
    memset(watch, 1, sizeof watch);
    const bon_session_limits limits = {.slots = 4, .cache_blocks = 40, .watch = watch};
    bon_session *session;
    CHECK(bon_session_create(model, &limits, &session) == BON_OK);
    size_t named = 9, count = 0;
    const size_t sample = add_sample(session, add_prompt(session, text, 20), 0, 30, 2);
    for (; bon_session_pending(session); count++) {
        CHECK(bon_session_run(session, 5, NULL) == BON_OK);
        CHECK(bon_session_next_event(session, &named) && named == sample);
        CHECK(!bon_session_next_event(session, &named));
    }
    CHECK(count == 2 && view_of(session, sample).state == BON_HELD);
    bon_session_destroy(session);
    bon_model_destroy(model);
}

static void test_nothing_is_pending_where_the_cache_is_full_of_rest(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    bon_session *session = make_session(model, 4, 9, false);
    /* A prompt of one block and a sample of two; one that cannot stand beside it. */
    const size_t small = add_prompt(session, text, 20), big = add_prompt(session, text, 100);
    const size_t first = add_sample(session, small, 0, 40, 1);
    const size_t wide = add_sample(session, big, 0, 40, 1); /* four and two */
    const size_t wider = add_sample(session, big, 1, 50, 1);
    CHECK(bon_session_end_sample(session, wider, BON_ABORTED, 0) == BON_OK);
    const size_t small_too = add_sample(session, small, 1, 40, 1);
    run_while_pending(session);
    CHECK(stats_of(session).held == 2 && stats_of(session).waiting == 1);
    CHECK(stats_of(session).free_blocks == 0 && !bon_session_pending(session));
    CHECK(bon_session_end_sample(session, wide, BON_PRUNED, 0) == BON_OK);
    CHECK(bon_session_pending(session));
    run_while_pending(session);
    CHECK(stats_of(session).held == 2 && stats_of(session).free_blocks == 4);

    /* Too large beside what rests, but not for an empty session. */
    const size_t later = add_sample(session, big, 2, 40, 1);
    CHECK(!bon_session_pending(session));
    CHECK(bon_session_run(session, 9, NULL) == BON_OK && stats_of(session).waiting == 1);
    CHECK(bon_session_end_sample(session, first, BON_PRUNED, 1) == BON_OK);
    CHECK(bon_session_pending(session));
    run_while_pending(session);
    CHECK(view_of(session, later).state == BON_HELD && stats_of(session).free_blocks == 0);

    /* Too large at any time: that is an error, where nothing rests any more. */
    bon_session *narrow = make_session(model, 4, 5, false);
    const size_t little = add_sample(narrow, add_prompt(narrow, text, 20), 0, 40, 1);
    add_sample(narrow, add_prompt(narrow, text, 100), 0, 40, 1);
    run_while_pending(narrow);
    CHECK(!bon_session_pending(narrow) && bon_session_run(narrow, 1, NULL) == BON_OK);
    CHECK(bon_session_end_sample(narrow, little, BON_PRUNED, 1) == BON_OK);
    CHECK(bon_session_pending(narrow) && bon_session_run(narrow, 1, NULL) == BON_OK); /* event */
    size_t sample;
    CHECK(bon_session_next_event(narrow, &sample) && sample == little);
    CHECK(bon_session_run(narrow, 1, NULL) == BON_ERR_FULL);
    CHECK(view_of(session, small_too).state == BON_HELD);
    bon_session_destroy(session);
    bon_session_destroy(narrow);
    bon_model_destroy(model);
}

static void test_an_idle_prompt_makes_room_beside_those_that_rest(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    bon_session *session = make_session(model, 4, 10, false);
    const size_t small = add_prompt(session, text, 20), big = add_prompt(session, text, 100);
    add_sample(session, small, 0, 40, 1);                        /* 1 block and 2 */
    const size_t gone = add_sample(session, big, 0, 20, 1);      /* 4 and 1 */
    const size_t middle = add_sample(session, small, 1, 100, 1); /* 4 more */
    const size_t last = add_sample(session, big, 1, 20, 1);
    CHECK(run_while_pending(session) == 2);
    CHECK(stats_of(session).held == 2 && stats_of(session).free_blocks == 2);
    /* No sample of the big prompt has a slot any more, but one waits: it is read, and idle. */
    CHECK(bon_session_end_sample(session, gone, BON_PRUNED, 1) == BON_OK);
    CHECK(stats_of(session).free_blocks == 3 && bon_session_pending(session));
    CHECK(run_while_pending(session) == 2);
    CHECK(view_of(session, middle).state == BON_HELD && view_of(session, last).state == BON_WAITING);
    CHECK(stats_of(session).free_blocks == 3);
    CHECK(bon_session_end_sample(session, middle, BON_PRUNED, 1) == BON_OK);
    run_while_pending(session);
    CHECK(view_of(session, last).state == BON_HELD);
    CHECK(stats_of(session).prompt_tokens == 20 + 2 * 100);
    bon_session_destroy(session);
    bon_model_destroy(model);
}

static void test_entering_samples_leave_room_for_a_question(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    bon_session *session;
    bon_session_limits limits = {.slots = 4, .cache_blocks = 8, .ask_blocks = 8};
    CHECK(bon_session_create(model, &limits, &session) == BON_ERR_DOMAIN);
    const size_t lengths[] = {1, 2, 31, 32, 33, 64, 65};
    for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
        const size_t len = lengths[k], spare = bon_fork_blocks(len);
        limits = (bon_session_limits){
            .slots = 4, .cache_blocks = 1 + 2 * 2 + spare, .ask_blocks = spare};
        CHECK(bon_session_create(model, &limits, &session) == BON_OK);
        const size_t prompt = add_prompt(session, text, 5);
        for (uint64_t i = 0; i < 3; i++) add_sample(session, prompt, i, 33, i == 0 ? 1 : 32);
        CHECK(bon_session_run(session, 1, NULL) == BON_OK);
        CHECK(stats_of(session).waiting == 1 && stats_of(session).free_blocks == spare);
        size_t sample, both[2] = {0, 1};
        do { /* also with 32 tokens, one of them not in the cache: the most that a fork takes */
            float logp[2];
            CHECK(bon_session_ask(session, both, 2, text, len, text, 1, NULL, logp, NULL)
                  == BON_OK);
            while (bon_session_next_event(session, &sample)) continue;
            CHECK(bon_session_run(session, 1, NULL) == BON_OK);
        } while (view_of(session, 1).state == BON_LIVE);
        CHECK(view_of(session, 1).length == 32);
        float logp[2];
        CHECK(bon_session_ask(session, both, 2, text, len, text, 1, NULL, logp, NULL) == BON_OK);
        bon_session_destroy(session);
    }
    bon_model_destroy(model);
}

/* -- interrupts and memory -------------------------------------------------- */

/* Six samples, the half of them held; then a question. */
static bon_status hold_and_ask(bon_session *session, const bon_poll *poll, long fail_at)
{
    static const size_t asked[6] = {0, 1, 2, 3, 4, 5};
    float logp[6];
    const size_t prompt = add_prompt(session, text, 40);
    for (uint64_t i = 0; i < 6; i++) add_sample(session, prompt, i, 30, i % 2 ? 0 : 1);
    CHECK(bon_session_run(session, 1, NULL) == BON_OK);
    const bon_session_stats before = stats_of(session);
    CHECK(before.held == 3 && before.live == 3);
    allocations_left = fail_at;
    const bon_status status =
        bon_session_ask(session, asked, 6, text, 30, text, 1, poll, logp, NULL);
    allocations_left = -1;
    CHECK(stats_of(session).free_blocks == before.free_blocks);
    for (size_t i = 0; i < 6; i += 2) CHECK(bon_session_go_on(session, i, 0) == BON_OK);
    run_while_pending(session);
    CHECK(stats_of(session).free_blocks == 40);
    return status;
}

static void test_questions_that_fail_leave_no_trace(int threads)
{
    bon_model *model = make_model(&rich, BON_F32, threads);
    bon_session *calm = make_session(model, 8, 40, false);
    CHECK(hold_and_ask(calm, NULL, -1) == BON_OK);
    bon_status stopped = BON_ERR_INTERRUPTED, failed = BON_ERR_MEMORY;
    long at = 0;
    for (; stopped != BON_OK || failed != BON_OK; at++) {
        long countdown = at;
        const bon_poll poll = {stop_at_zero, &countdown};
        bon_session *interrupted = make_session(model, 8, 40, false);
        bon_session *starved = make_session(model, 8, 40, false);
        if (stopped != BON_OK) stopped = hold_and_ask(interrupted, &poll, -1);
        CHECK(stopped == BON_OK || stopped == BON_ERR_INTERRUPTED);
        if (failed != BON_OK) failed = hold_and_ask(starved, NULL, at);
        CHECK(failed == BON_OK || failed == BON_ERR_MEMORY);
        for (size_t i = 0; i < 6; i++) {
            CHECK(stopped == BON_OK || same_sample(interrupted, i, calm, i));
            CHECK(failed == BON_OK || same_sample(starved, i, calm, i));
        }
        bon_session_destroy(interrupted);
        bon_session_destroy(starved);
    }
    CHECK(at > 12);
    bon_session_destroy(calm);
    bon_model_destroy(model);
}

int main(void)
{
    write_text();
    const bon_arch large = large_arch();
    for (int threads = 1; threads <= 2; threads++) {
        test_holds_and_questions_change_no_bit(&rich, BON_F32, threads);
        test_holds_and_questions_change_no_bit(&rich, BON_BF16, threads);
        test_questions_that_fail_leave_no_trace(threads);
    }
    test_holds_and_questions_change_no_bit(&large, BON_F32, 2);
    test_an_answer_is_that_of_the_whole_text();
    test_answers_do_not_depend_on_threads_and_room(4);
    test_answers_do_not_depend_on_threads_and_room(100);
    test_what_cannot_be_asked_is_refused();
    test_a_held_sample_draws_nothing_until_it_goes_on();
    test_dropped_samples_let_others_in_at_once();
    test_what_ends_by_itself_is_kept_until_forgotten();
    test_a_prompt_stays_for_those_of_it_that_wait();
    test_an_end_comes_before_a_hold();
    test_a_watched_token_at_a_hold_is_one_event();
    test_nothing_is_pending_where_the_cache_is_full_of_rest();
    test_an_idle_prompt_makes_room_beside_those_that_rest();
    test_entering_samples_leave_room_for_a_question();
    return 0;
}
