/* test_engine.c - cache, forward pass, sessions and scores on a small random model.
 *
 * That the numbers are a transformer's is shown against transformers in Python;
 * here: bookkeeping, same bits, interrupts at every point, a failure of every
 * allocation. Linked with --wrap for the allocators (see the Makefile).
 */
#include "check.h"
#include "score.h"
#include "small_model.h"

/* -- a large vocabulary, and sessions --------------------------------------- */

/* So large a vocabulary that a step draws in several chunks, and so large a model
 * that threads share each product. */
enum { WIDE_VOCAB = 300000, WIDE_SLOTS = 20 };
static const bon_arch wide = {
    .vocab = WIDE_VOCAB, .hidden = 8, .layers = 1, .heads = 2, .kv_heads = 1, .head_dim = DIM,
    .intermediate = 8, .max_positions = 64, .activation = BON_SILU, .norm_eps = 1e-5f,
    .tied = true, .embed_scale = 1.0f, .attn_scale = 0.4f, .window = windows, .rope = ropes,
    .ropes = 1, .rope_freq = {slow}, .rope_scale = {1.0f},
};

static bon_session *make_session(const bon_model *model, size_t slots, size_t blocks)
{
    static const int32_t ends[] = {3, 5};
    static const uint8_t watch[VOCAB] = {[7] = 1};
    bon_session *session;
    const bon_session_limits limits = {.slots = slots, .cache_blocks = blocks, .end_tokens = ends,
                                       .n_end = 2, .watch = watch};
    CHECK(bon_session_create(model, &limits, &session) == BON_OK);
    return session;
}

static size_t add_sample(bon_session *session, size_t prompt, uint64_t index)
{
    const bon_sample_settings settings = {
        .key = {.seed = 11, .sample = index}, .how = {1.5f, 0, 1.0, 0.0}, .max_new_tokens = 70};
    size_t sample;
    CHECK(bon_session_add_sample(session, prompt, &settings, &sample) == BON_OK);
    return sample;
}

static void run_to_end(bon_session *session)
{
    size_t sample;
    while (bon_session_pending(session)) {
        CHECK(bon_session_run(session, 1000, NULL) == BON_OK);
        while (bon_session_next_event(session, &sample)) continue;
    }
}

/* -- cache ----------------------------------------------------------------- */

static void test_sequences_share_and_copy_blocks(void)
{
    bon_cache *cache;
    CHECK(bon_cache_create(1, 1, 4, BON_F32, 6, &cache) == BON_OK);
    bon_seq a = {0}, b = {0}, c = {0};
    const float keys[4] = {1, 2, 3, 4}, other[4] = {5, 6, 7, 8};
    CHECK(bon_seq_reserve(cache, &a, BON_BLOCK + 1) == BON_OK);
    CHECK(bon_cache_free_blocks(cache) == 4);
    bon_cache_write(cache, &a, BON_BLOCK, 0, 0, keys, keys, true);
    a.length = BON_BLOCK + 1;

    CHECK(bon_seq_fork(cache, &a, &b) == BON_OK);
    CHECK(b.blocks[0] == a.blocks[0] && b.blocks[1] != a.blocks[1]);
    CHECK(bon_cache_free_blocks(cache) == 3);
    const float *const of_a = bon_cache_keys(cache, a.blocks[1], 0, 0);
    const float *const of_b = bon_cache_keys(cache, b.blocks[1], 0, 0);
    CHECK(of_b[16] == 2);
    bon_cache_write(cache, &b, BON_BLOCK, 0, 0, other, other, true);
    CHECK(of_a[16] == 2);
    CHECK(((const float *)bon_cache_values(cache, b.blocks[1], 0, 0))[3] == 8);

    CHECK(bon_seq_reserve(cache, &c, 4 * BON_BLOCK) == BON_ERR_FULL);
    CHECK(c.count == 0 && bon_cache_free_blocks(cache) == 3);
    bon_seq_free(cache, &a);
    CHECK(bon_cache_free_blocks(cache) == 4); /* the shared block is b's */
    CHECK(bon_seq_reserve(cache, &c, 4 * BON_BLOCK) == BON_OK);
    CHECK(bon_seq_fork(cache, &b, &a) == BON_ERR_FULL && a.count == 0);
    bon_seq_free(cache, &b);
    bon_seq_free(cache, &c);
    CHECK(bon_cache_free_blocks(cache) == 6);
    bon_cache_destroy(cache);
}

static void test_the_panels_of_a_block(void)
{
    enum { HEAD_DIM = 20, TOKEN = 19 };
    bon_cache *cache;
    CHECK(bon_cache_create(2, 2, HEAD_DIM, BON_F32, 2, &cache) == BON_OK);
    bon_seq seq = {0};
    CHECK(bon_seq_reserve(cache, &seq, 2 * BON_BLOCK) == BON_OK);
    float keys[2 * HEAD_DIM], values[2 * HEAD_DIM];
    for (int i = 0; i < 2 * HEAD_DIM; i++) {
        keys[i] = (float)i;
        values[i] = (float)-i;
    }
    for (size_t head = 0; head < 2; head++)
        bon_cache_write(cache, &seq, BON_BLOCK + TOKEN, 1, head, keys + head * HEAD_DIM,
                        values + head * HEAD_DIM, true);
    for (size_t head = 0; head < 2; head++) {
        const float *k = bon_cache_keys(cache, seq.blocks[1], 1, head);
        const float *v = bon_cache_values(cache, seq.blocks[1], 1, head);
        k += TOKEN / 16 * HEAD_DIM * 16;
        v += TOKEN * 16;
        for (size_t i = 0; i < HEAD_DIM; i++) {
            CHECK(k[i * 16 + TOKEN % 16] == keys[head * HEAD_DIM + i]);
            CHECK(v[i / 16 * BON_BLOCK * 16 + i % 16] == values[head * HEAD_DIM + i]);
        }
    }
    bon_seq_free(cache, &seq);
    bon_cache_destroy(cache);
}

static void test_pairs_of_bfloat16_values(void)
{
    enum { HEAD_DIM = 20 };
    bon_cache *cache;
    CHECK(bon_cache_create(1, 1, HEAD_DIM, BON_BF16, 1, &cache) == BON_OK);
    bon_seq seq = {0};
    CHECK(bon_seq_reserve(cache, &seq, BON_BLOCK) == BON_OK);
    float first[HEAD_DIM], second[HEAD_DIM];
    for (size_t i = 0; i < HEAD_DIM; i++) {
        first[i] = 1.0f + (float)i / 2;
        second[i] = -first[i];
    }
    const uint16_t *v = bon_cache_values(cache, seq.blocks[0], 0, 0);
    for (int last = 0; last < 2; last++) { /* another thread may have written the second before */
        bon_cache_write(cache, &seq, 5, 0, 0, second, second, true);
        bon_cache_write(cache, &seq, 4, 0, 0, first, first, last);
        for (size_t i = 0; i < HEAD_DIM; i++) {
            const uint16_t *pair = v + i / 16 * BON_BLOCK * 16 + 4 * 16 + i % 16 * 2;
            CHECK(pair[0] == bon_f32_to_bf16(first[i]));
            CHECK(pair[1] == (last ? 0 : bon_f32_to_bf16(second[i])));
        }
    }
    bon_seq_free(cache, &seq);
    bon_cache_destroy(cache);
}

/* Whatever others left in a block, also beside the last value of an odd length. */
static void test_a_pass_reads_nothing_that_it_has_not_written(void)
{
    const char *name;
    bon_matrix *matrix;
    bon_model *model = make_model(&rich, BON_BF16, 1);
    for (size_t i = 0; (matrix = bon_model_matrix(model, i, &name)); i++)
        if (bon_route_available(BON_ROUTE_DOT, BON_BF16))
            CHECK(bon_matrix_set_route(matrix, BON_PREFILL, BON_ROUTE_DOT) == BON_OK);
    bon_work *work;
    CHECK(bon_work_create(model, 1, &work) == BON_OK);
    float nan[DIM];
    for (size_t i = 0; i < DIM; i++) nan[i] = NAN;
    for (size_t len = 1; len <= BON_BLOCK + 1; len++) {
        int32_t prompt[BON_BLOCK + 1];
        float fresh[(BON_BLOCK + 1) * HIDDEN];
        for (size_t i = 0; i < len; i++) prompt[i] = (int32_t)(i * 5 % VOCAB);
        for (int spoilt = 0; spoilt < 2; spoilt++) {
            bon_cache *cache;
            bon_seq seq = {0};
            const float *hidden;
            CHECK(bon_model_create_cache(model, LAYERS, 2, &cache) == BON_OK);
            CHECK(bon_seq_reserve(cache, &seq, 2 * BON_BLOCK) == BON_OK);
            for (size_t t = 0; spoilt && t < 2 * BON_BLOCK; t++)
                for (size_t layer = 0; layer < LAYERS; layer++)
                    for (size_t head = 0; head < KV; head++)
                        bon_cache_write(cache, &seq, t, layer, head, nan, nan, false);
            bon_seq_free(cache, &seq);
            CHECK(bon_model_prefill(model, work, cache, prompt, len, &seq, NULL, &hidden) == BON_OK);
            if (!spoilt) memcpy(fresh, hidden, len * HIDDEN * sizeof *hidden);
            CHECK(memcmp(hidden, fresh, len * HIDDEN * sizeof *hidden) == 0);
            bon_seq_free(cache, &seq);
            bon_cache_destroy(cache);
        }
    }
    bon_work_destroy(work);
    bon_model_destroy(model);
}

static void test_a_destroyed_cache_gives_its_addresses_back(void)
{
    for (int i = 0; i < 100; i++) { /* of 2 TB each: together more than there are */
        bon_cache *cache;
        CHECK(bon_cache_create(1, 1, 1 << 16, BON_F32, 1 << 17, &cache) == BON_OK);
        bon_cache_destroy(cache);
    }
}

static void test_cache_sizes_that_overflow_are_refused(void)
{
    bon_cache *cache;
    CHECK(bon_cache_block_bytes(SIZE_MAX / 2, 8, 64, BON_BF16) == 0);
    CHECK(bon_cache_create(SIZE_MAX / 2, 8, 64, BON_F32, 1, &cache) == BON_ERR_DOMAIN);
    CHECK(bon_cache_create((size_t)1 << 40, 8, 64, BON_F32, 1 << 20, &cache) == BON_ERR_MEMORY);
    CHECK(bon_cache_create(1, 1, 5, BON_BF16, 1, &cache) == BON_ERR_DOMAIN); /* pairs of 5 */
    CHECK(bon_cache_create(1, 1, 4, BON_I8, 1, &cache) == BON_ERR_DOMAIN);
    CHECK(cache == NULL);
    CHECK(bon_cache_block_bytes(3, 2, 20, BON_F32)
          == 2 * bon_cache_block_bytes(3, 2, 20, BON_BF16));
    bon_cache_destroy(NULL);
}

/* -- sessions -------------------------------------------------------------- */

static void test_a_sample_has_the_same_bits_wherever_it_runs(bon_dtype dtype)
{
    bon_model *model = make_model(&rich, dtype, 1), *two = make_model(&rich, dtype, 2);
    bon_session *crowd = make_session(two, 8, 1000);
    const size_t short_prompt = add_prompt(crowd, text, 5), prompt = add_prompt(crowd, text, 50);
    size_t many[9];
    for (uint64_t i = 0; i < 9; i++) {
        add_sample(crowd, short_prompt, i);
        many[i] = add_sample(crowd, prompt, i);
    }
    run_to_end(crowd);
    bon_session_stats stats;
    bon_session_get_stats(crowd, &stats);
    CHECK(stats.prompt_tokens == 55 && stats.free_blocks == 1000 && stats.live == 0);
    for (uint64_t i = 0; i < 9; i++) {
        /* Five blocks: the prompt's two and three for one sample at a time. */
        bon_session *alone = make_session(i % 2 ? model : two, 4, 5);
        const size_t sample = add_sample(alone, add_prompt(alone, text, 50), i);
        run_to_end(alone);
        CHECK(same_sample(alone, sample, crowd, many[i]));
        bon_session_destroy(alone);
    }
    CHECK(!same_sample(crowd, many[0], crowd, many[1]));
    bon_session_destroy(crowd);
    bon_model_destroy(model);
    bon_model_destroy(two);
}

static void test_rows_at_distant_positions_do_not_touch(void)
{
    bon_model *model = make_model(&rich, BON_F32, 2);
    const bon_session_limits limits = {.slots = 32, .cache_blocks = 1000};
    bon_session *crowd;
    CHECK(bon_session_create(model, &limits, &crowd) == BON_OK);
    /* One sample is far ahead of others of its prompt; more prompts than full items. */
    const size_t prompt = add_prompt(crowd, text, 60), far = add_sample(crowd, prompt, 0);
    CHECK(bon_session_run(crowd, 45, NULL) == BON_OK);
    size_t late[2], others[20];
    for (uint64_t i = 0; i < 20; i++)
        others[i] = add_sample(crowd, add_prompt(crowd, text + i, 3 + 2 * i), i);
    CHECK(bon_session_run(crowd, 1, NULL) == BON_OK); /* more rows, that see less */
    for (uint64_t i = 0; i < 2; i++) late[i] = add_sample(crowd, prompt, 1 + i);
    size_t named;
    while (bon_session_next_event(crowd, &named)) continue;
    CHECK(bon_session_run(crowd, 1, NULL) == BON_OK);
    /* The same in the opposite order: a question to the one behind, then to the far one. */
    const size_t asked[2] = {late[0], far};
    float together[2 * VOCAB], one[VOCAB], logp[2];
    CHECK(bon_session_ask(crowd, asked, 2, text, 3, text, 1, NULL, logp, together) == BON_OK);
    for (size_t i = 0; i < 2; i++) {
        CHECK(bon_session_ask(crowd, &asked[i], 1, text, 3, text, 1, NULL, logp, one) == BON_OK);
        CHECK(memcmp(together + i * VOCAB, one, sizeof one) == 0);
    }
    run_to_end(crowd);
    for (uint64_t i = 0; i < 23; i++) {
        bon_session *alone;
        CHECK(bon_session_create(model, &limits, &alone) == BON_OK);
        const size_t own = add_prompt(alone, i < 20 ? text + i : text, i < 20 ? 3 + 2 * i : 60);
        const size_t sample = add_sample(alone, own, i < 20 ? i : i - 20);
        const size_t there = i < 20 ? others[i] : i == 20 ? far : late[i - 21];
        run_to_end(alone);
        CHECK(same_sample(alone, sample, crowd, there));
        bon_session_destroy(alone);
    }
    bon_session_destroy(crowd);
    bon_model_destroy(model);
}

static bon_session *wide_session(const bon_model *model)
{
    bon_session *session;
    const bon_session_limits limits = {.slots = WIDE_SLOTS, .cache_blocks = 80};
    const bon_sample_settings settings = {.how = {1.0f, 0, 1.0, 0.0}, .max_new_tokens = 3};
    CHECK(bon_session_create(model, &limits, &session) == BON_OK);
    for (size_t i = 0, sample; i < WIDE_SLOTS; i++)
        CHECK(bon_session_add_sample(session, add_prompt(session, text + i, 4), &settings, &sample)
              == BON_OK);
    return session;
}

static void test_a_step_in_several_chunks_of_logits(void)
{
    bon_model *model = make_model(&wide, BON_F32, 2);
    CHECK(bon_model_pass_threads(model) == 2);
    bytes_asked = 0;
    bon_session *calm = wide_session(model);
    CHECK(bon_session_run(calm, 1, NULL) == BON_OK);
    CHECK(bytes_asked < bon_session_scratch_bytes(model, WIDE_SLOTS, 7) + (1 << 18));
    CHECK(bytes_asked > bon_session_scratch_bytes(model, WIDE_SLOTS, 7) * 9 / 10);
    run_to_end(calm);

    /* Stopped between two chunks, those behind the second draw what they would have. */
    bon_session *session = wide_session(model);
    CHECK(bon_session_run(session, 1, NULL) == BON_OK);
    long countdown = 5; /* four products and the first chunk have been asked for */
    const bon_poll poll = {stop_at_zero, &countdown};
    CHECK(bon_session_run(session, 1, &poll) == BON_ERR_INTERRUPTED);
    bon_sample_view first, last;
    CHECK(bon_session_view(session, 0, &first) == BON_OK && first.length == 3);
    CHECK(bon_session_view(session, WIDE_SLOTS - 1, &last) == BON_OK && last.length == 2);
    run_to_end(session);
    for (size_t i = 0; i < WIDE_SLOTS; i++) CHECK(same_sample(session, i, calm, i));

    float logp[60];
    size_t bad;
    countdown = 9; /* two passes of four products, and the first chunk */
    CHECK(bon_score_logp(model, text, 3, text, &(size_t){60}, 1, 1.0f, &poll, logp, &bad)
          == BON_ERR_INTERRUPTED);
    countdown = 10;
    CHECK(bon_score_logp(model, text, 3, text, &(size_t){60}, 1, 1.0f, &poll, logp, &bad)
          == BON_OK);
    bon_session_destroy(session);
    bon_session_destroy(calm);
    bon_model_destroy(model);
}

/* A vocabulary in which drawing takes so long that the threads of a small model meet. */
static void test_threads_that_share_the_samples_do_not_meet(void)
{
    bon_arch arch = wide;
    arch.vocab = 20000;
    const bon_sample_settings settings = {.how = {1.0f, 50, 0.9, 0.01}, .max_new_tokens = 12};
    const bon_session_limits limits[3] = {{.slots = 33, .cache_blocks = 80},
                                          {.slots = 33, .cache_blocks = 80},
                                          {.slots = 1, .cache_blocks = 80}};
    bon_model *models[3];
    bon_session *sessions[3];
    for (int i = 0; i < 3; i++) {
        models[i] = make_model(&arch, BON_F32, (int[]){1, 3, 2}[i]);
        CHECK(bon_model_pass_threads(models[i]) == 1);
        CHECK(bon_session_create(models[i], &limits[i], &sessions[i]) == BON_OK);
        const size_t prompt = add_prompt(sessions[i], (int32_t[]){1, 2, 3}, 3);
        for (size_t k = 0, sample; k < 33; k++) {
            bon_sample_settings own = settings;
            own.key.sample = k;
            CHECK(bon_session_add_sample(sessions[i], prompt, &own, &sample) == BON_OK);
        }
        bon_session_stats stats, later;
        CHECK(bon_session_run(sessions[i], 1, NULL) == BON_OK);
        bon_session_get_stats(sessions[i], &stats);
        long countdown = 0;
        const bon_poll poll = {stop_at_zero, &countdown};
        CHECK(bon_session_run(sessions[i], 1, &poll) == BON_ERR_INTERRUPTED);
        bon_session_get_stats(sessions[i], &later);
        CHECK(later.new_tokens < stats.new_tokens + stats.live);
        run_to_end(sessions[i]);
        bon_session_get_stats(sessions[i], &stats);
        CHECK(stats.prompt_tokens == 3); /* once, also where a sample waits */
    }
    for (int i = 1; i < 3; i++) {
        for (size_t k = 0; k < 33; k++) CHECK(same_sample(sessions[0], k, sessions[i], k));
    }
    for (int i = 0; i < 3; i++) {
        bon_session_destroy(sessions[i]);
        bon_model_destroy(models[i]);
    }
}

static void test_drawn_logp_equals_scored_logp(size_t prompt_len)
{
    bon_model *model = make_model(&rich, BON_F32, 2);
    bon_session *session = make_session(model, 8, 1000);
    const size_t prompt = add_prompt(session, text, prompt_len);
    int32_t tokens[8 * 70];
    float drawn[8 * 70], scored[8 * 70];
    size_t lengths[8], total = 0, bad;
    for (uint64_t i = 0; i < 8; i++) add_sample(session, prompt, i);
    run_to_end(session);
    for (size_t i = 0; i < 8; i++) {
        bon_sample_view view;
        CHECK(bon_session_view(session, i, &view) == BON_OK);
        lengths[i] = view.length;
        memcpy(tokens + total, view.tokens, view.length * sizeof *tokens);
        memcpy(drawn + total, view.logp, view.length * sizeof *drawn);
        total += view.length;
    }
    CHECK(bon_score_logp(model, text, prompt_len, tokens, lengths, 8, 1.0f, NULL, scored, &bad)
          == BON_OK);
    for (size_t i = 0; i < total; i++) CHECK(fabsf(drawn[i] - scored[i]) < 1e-4f);
    bon_session_destroy(session);
    bon_model_destroy(model);
}

static void test_a_completion_scores_the_same_wherever_it_stands(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    /* In chunks, in a batch, filling one exactly (70 + 58 rows), beginning the next; empty
     * ones and single tokens between them. All are prefixes of one text. */
    const size_t lengths[] = {140, 30, 40, 71, 0, 59, 1, 2, 129, 0, 130, 66, 65, 140};
    enum { COUNT = sizeof lengths / sizeof *lengths };
    int32_t tokens[COUNT * 140];
    float together[COUNT * 140], alone[140];
    size_t total = 0, at = 0, bad;
    for (size_t c = 0; c < COUNT; total += lengths[c++])
        memcpy(tokens + total, text, lengths[c] * sizeof *text);
    CHECK(bon_score_logp(model, text, 3, tokens, lengths, COUNT, 2.0f, NULL, together, &bad)
          == BON_OK);
    CHECK(bon_score_logp(model, text, 3, text, lengths, 1, 2.0f, NULL, alone, &bad) == BON_OK);
    for (size_t c = 0; c < COUNT; at += lengths[c++])
        CHECK(memcmp(together + at, alone, lengths[c] * sizeof *alone) == 0);

    int32_t whole[143];
    float *logits = malloc(143 * VOCAB * sizeof *logits), want;
    memcpy(whole, text, 3 * sizeof *text);
    memcpy(whole + 3, text, 140 * sizeof *text);
    CHECK(bon_score_logits(model, whole, 143, NULL, logits, &bad) == BON_OK);
    for (size_t i = 0; i < 140; i++) {
        CHECK(bon_log_softmax_at(logits + (2 + i) * VOCAB, VOCAB, 2.0f, &text[i], 1, &want)
              == BON_OK);
        CHECK(fabsf(alone[i] - want) < 1e-4f);
    }
    free(logits);
    bon_model_destroy(model);
}

static void test_a_question_leaves_no_trace(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    bon_session *asked = make_session(model, 8, 40), *left = make_session(model, 8, 40);
    const size_t p = add_prompt(asked, text, 33), q = add_prompt(left, text, 33);
    size_t live[8], count = 0;
    for (uint64_t i = 0; i < 6; i++) {
        add_sample(asked, p, i);
        add_sample(left, q, i);
    }
    const int32_t question[4] = {9, 8, 9, 10}, named[2] = {1, 2};
    float logp[16], *logits = malloc(8 * VOCAB * sizeof *logits);
    for (int round = 0; round < 40 && bon_session_pending(asked); round++) {
        size_t sample;
        CHECK(bon_session_run(asked, 1, NULL) == BON_OK);
        while (bon_session_next_event(asked, &sample)) continue;
        count = 0;
        for (size_t i = 0; i < 6; i++) {
            bon_sample_view view;
            CHECK(bon_session_view(asked, i, &view) == BON_OK);
            if (view.state == BON_LIVE && view.length < 60) live[count++] = i;
        }
        if (count == 0) continue;
        CHECK(bon_session_ask(asked, live, count, question, 4, named, 2, NULL, logp, logits)
              == BON_OK);
        bon_sample_view view; /* the same question to a fresh text */
        CHECK(bon_session_view(asked, live[0], &view) == BON_OK);
        int32_t whole[33 + 70 + 4];
        float *fresh = malloc((33 + view.length + 4) * VOCAB * sizeof *fresh);
        size_t bad, len = 33;
        memcpy(whole, text, 33 * sizeof *text);
        memcpy(whole + len, view.tokens, view.length * sizeof *whole);
        memcpy(whole + len + view.length, question, sizeof question);
        len += view.length + 4;
        CHECK(bon_score_logits(model, whole, len, NULL, fresh, &bad) == BON_OK);
        for (size_t v = 0; v < VOCAB; v++)
            CHECK(fabsf(fresh[(len - 1) * VOCAB + v] - logits[v]) < 1e-4f);
        free(fresh);
    }
    run_to_end(asked);
    run_to_end(left);
    for (size_t i = 0; i < 6; i++) CHECK(same_sample(asked, i, left, i));
    bon_session_stats stats;
    bon_session_get_stats(asked, &stats);
    CHECK(stats.free_blocks == 40);
    live[0] = 0; /* has ended */
    CHECK(bon_session_ask(asked, live, 1, question, 4, named, 2, NULL, logp, logits)
          == BON_ERR_DOMAIN);
    free(logits);
    bon_session_destroy(asked);
    bon_session_destroy(left);
    bon_model_destroy(model);
}

static void test_questions_in_little_room(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    /* Beside the prompt's two blocks and three for each sample: one fork, or all. */
    bon_session *narrow = make_session(model, 8, 21), *roomy = make_session(model, 8, 100);
    bon_session *const both[2] = {narrow, roomy};
    float logp[2][12], *logits[2];
    const size_t asked[6] = {0, 1, 2, 3, 4, 5};
    const int32_t named[2] = {1, 2};
    for (int i = 0; i < 2; i++) {
        const size_t prompt = add_prompt(both[i], text, 33);
        const bon_sample_settings settings = {.how = {1.0f, 0, 1.0, 0.0}, .max_new_tokens = 70};
        for (size_t k = 0, sample; k < 6; k++) {
            bon_sample_settings own = settings;
            own.key.sample = 20 + k;
            CHECK(bon_session_add_sample(both[i], prompt, &own, &sample) == BON_OK);
        }
        CHECK(bon_session_run(both[i], 1, NULL) == BON_OK);
        bon_session_stats stats;
        bon_session_get_stats(both[i], &stats);
        CHECK(stats.live == 6);
        logits[i] = malloc(6 * VOCAB * sizeof **logits);
        CHECK(bon_session_ask(both[i], asked, 6, text, 4, named, 2, NULL, logp[i], logits[i])
              == BON_OK);
        bon_session_get_stats(both[i], &stats);
        CHECK(stats.live == 6 && stats.free_blocks == (i ? 80 : 1));
    }
    CHECK(memcmp(logp[0], logp[1], sizeof logp[0]) == 0);
    CHECK(memcmp(logits[0], logits[1], 6 * VOCAB * sizeof **logits) == 0);
    CHECK(logp[0][0] != logp[0][2] && logits[0][0] != logits[0][VOCAB]);
    CHECK(bon_session_ask(narrow, asked, 6, text, 40, named, 2, NULL, logp[0], NULL)
          == BON_ERR_FULL); /* a fork of two blocks */
    bon_sample_view view;
    CHECK(bon_session_view(roomy, 0, &view) == BON_OK);
    const size_t left = CONTEXT - 33 - view.length;
    CHECK(bon_session_ask(roomy, asked, 1, text, left, named, 2, NULL, logp[0], NULL) == BON_OK);
    CHECK(bon_session_ask(roomy, asked, 1, text, left + 1, named, 2, NULL, logp[0], NULL)
          == BON_ERR_DOMAIN);
    for (int i = 0; i < 2; i++) {
        run_to_end(both[i]);
        free(logits[i]);
    }
    for (size_t k = 0; k < 6; k++) CHECK(same_sample(narrow, k, roomy, k));
    bon_session_destroy(narrow);
    bon_session_destroy(roomy);
    bon_model_destroy(model);
}

static void test_every_event_is_named_once(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    uint8_t watch[VOCAB];
    memset(watch, 1, sizeof watch);
    bon_session *session;
    const bon_session_limits limits = {.slots = 12, .cache_blocks = 100, .watch = watch};
    CHECK(bon_session_create(model, &limits, &session) == BON_OK);
    const size_t prompt = add_prompt(session, text, 10);
    size_t sample;
    for (uint64_t i = 0; i < 16; i++) add_sample(session, prompt, i); /* events have room for 16 */
    CHECK(bon_session_run(session, 5, NULL) == BON_OK); /* stops where they have entered */
    bon_sample_view view;
    for (size_t i = 0; i < 12; i++)
        CHECK(bon_session_view(session, i, &view) == BON_OK && view.length == 1);
    for (size_t i = 0; i < 5; i++) {
        CHECK(bon_session_next_event(session, &sample) && sample == i);
    }
    CHECK(bon_session_end_sample(session, 9, BON_STOP_STRING, 1) == BON_OK); /* is named already */
    for (size_t i = 0; i < 5; i++)
        CHECK(bon_session_end_sample(session, i, BON_STOP_STRING, 1) == BON_OK);
    for (size_t i = 5; i < 17; i++)
        CHECK(bon_session_next_event(session, &sample) && sample == i % 12);
    CHECK(!bon_session_next_event(session, &sample));
    CHECK(bon_session_run(session, 5, NULL) == BON_OK);
    size_t named = 0;
    while (bon_session_next_event(session, &sample)) named++;
    CHECK(named == 4); /* only those that have entered: the others have not run on */
    CHECK(bon_session_run(session, 5, NULL) == BON_OK);
    for (named = 0; bon_session_next_event(session, &sample); named++) {
        CHECK(bon_session_view(session, sample, &view) == BON_OK);
        CHECK(view.length == 2);
    }
    CHECK(named == 10);
    bon_session_destroy(session);
    bon_model_destroy(model);
}

static void test_a_model_that_computes_nan_says_so(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    float nans[HIDDEN];
    for (int i = 0; i < HIDDEN; i++) nans[i] = NAN;
    bon_session *session = make_session(model, 4, 40);
    const size_t prompt = add_prompt(session, text, 10);
    add_sample(session, prompt, 0);
    add_sample(session, prompt, 1);
    CHECK(bon_session_run(session, 1, NULL) == BON_OK);
    CHECK(bon_model_set(model, BON_FINAL_NORM, 0, nans, BON_F32) == BON_OK);
    bon_session_stats stats;
    bon_sample_view before, after;
    CHECK(bon_session_view(session, 0, &before) == BON_OK);
    CHECK(bon_session_run(session, 1, NULL) == BON_ERR_NOT_FINITE);
    CHECK(bon_session_view(session, 0, &after) == BON_OK && after.length == before.length);
    add_sample(session, add_prompt(session, text, 20), 0);
    CHECK(bon_session_run(session, 1, NULL) == BON_ERR_NOT_FINITE);
    bon_session_get_stats(session, &stats); /* two prompts of one block, three of each sample */
    CHECK(stats.live == 2 && stats.waiting == 1 && stats.free_blocks == 40 - 2 - 2 * 3);
    for (size_t i = 0; i < 3; i++)
        CHECK(bon_session_end_sample(session, i, BON_ABORTED, 0) == BON_OK);
    bon_session_get_stats(session, &stats);
    CHECK(stats.free_blocks == 40);
    bon_session_destroy(session);
    bon_model_destroy(model);
}

static void test_every_slot_of_a_model_is_asked_for(void)
{
    bon_model *model;
    CHECK(bon_model_create(&rich, BON_F32, 1, &model) == BON_OK);
    const float zeros[VOCAB * HIDDEN] = {0};
    bon_slot slot;
    size_t layer, count = 0;
    for (; bon_model_missing(model, &slot, &layer); count++)
        CHECK(bon_model_set(model, slot, layer, zeros, BON_F32) == BON_OK);
    /* no score head beside a vocabulary projection, and no adapters */
    CHECK(count == BON_Q - 1 + (BON_Q_A - BON_Q) * LAYERS);
    bon_model_destroy(model);
}

static void test_entering_samples_can_be_interrupted(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    bon_session *session = make_session(model, 4, 40);
    const size_t prompt = add_prompt(session, text, 10);
    const bon_sample_settings settings = {.how = {1.0f, 0, 1.0, 0.0}, .max_new_tokens = 1};
    for (size_t i = 0, sample; i < 1000; i++) { /* all end as they enter */
        bon_sample_settings own = settings;
        own.key.sample = i;
        CHECK(bon_session_add_sample(session, prompt, &own, &sample) == BON_OK);
    }
    long countdown = 100;
    const bon_poll poll = {stop_at_zero, &countdown};
    CHECK(bon_session_run(session, 1, &poll) == BON_ERR_INTERRUPTED);
    bon_session_stats stats;
    bon_session_get_stats(session, &stats);
    CHECK(stats.waiting > 900 && stats.waiting < 1000);
    run_to_end(session);
    for (size_t i = 0; i < 1000; i++) { /* an end token counts as one at the limit too */
        bon_sample_view view;
        CHECK(bon_session_view(session, i, &view) == BON_OK && view.length == 1);
        const bool end = view.tokens[0] == 3 || view.tokens[0] == 5;
        CHECK(view.state == (end ? BON_END_TOKEN : BON_LENGTH));
    }
    bon_session_destroy(session);
    bon_model_destroy(model);
}

static void test_a_waiting_sample_does_not_keep_its_prompt_in_the_way_of_others(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    bon_session *narrow = make_session(model, 4, 5), *roomy = make_session(model, 4, 100);
    size_t a[2], b[2], number[2][4];
    for (int i = 0; i < 2; i++) { /* one sample and its prompt fill the narrow one */
        bon_session *session = i ? roomy : narrow;
        a[i] = add_prompt(session, text, 40);
        b[i] = add_prompt(session, text + 9, 50);
        const size_t order[4] = {a[i], b[i], a[i], b[i]};
        for (uint64_t k = 0; k < 4; k++) number[i][k] = add_sample(session, order[k], k);
        run_to_end(session);
    }
    for (size_t k = 0; k < 4; k++)
        CHECK(same_sample(narrow, number[0][k], roomy, number[1][k]));
    bon_session_stats stats;
    bon_session_get_stats(roomy, &stats);
    CHECK(stats.prompt_tokens == 40 + 50);
    bon_session_get_stats(narrow, &stats);
    CHECK(stats.prompt_tokens == 2 * (40 + 50) && stats.free_blocks == 5);
    bon_session_destroy(narrow);
    bon_session_destroy(roomy);
    bon_model_destroy(model);
}

static void test_interrupts_lose_nothing(int threads)
{
    bon_model *model = make_model(&rich, BON_F32, threads);
    bon_session *calm = make_session(model, 3, 40);
    size_t prompt = add_prompt(calm, text, 140), sample;
    for (uint64_t i = 0; i < 5; i++) add_sample(calm, prompt, i);
    run_to_end(calm);
    for (long at = 0; at < 60; at += 1 + at / 8) {
        bon_session *session = make_session(model, 3, 40);
        prompt = add_prompt(session, text, 140);
        for (uint64_t i = 0; i < 5; i++) add_sample(session, prompt, i);
        long countdown = at;
        const bon_poll poll = {stop_at_zero, &countdown};
        bon_status status;
        do {
            status = bon_session_run(session, 1000, &poll);
            while (bon_session_next_event(session, &sample)) continue;
        } while (status == BON_OK && bon_session_pending(session));
        CHECK(status == BON_ERR_INTERRUPTED);
        run_to_end(session);
        for (size_t i = 0; i < 5; i++) CHECK(same_sample(session, i, calm, i));
        bon_session_destroy(session);
    }
    bon_session_destroy(calm);
    bon_model_destroy(model);
}

static void test_ended_samples_free_slot_and_cache_at_once(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    bon_session *session = make_session(model, 2, 8); /* room for two samples at most */
    const size_t prompt = add_prompt(session, text, 20);
    size_t sample;
    for (uint64_t i = 0; i < 4; i++) add_sample(session, prompt, i);
    CHECK(bon_session_run(session, 1, NULL) == BON_OK);
    while (bon_session_next_event(session, &sample)) continue;
    bon_session_stats before, after;
    bon_session_get_stats(session, &before);
    CHECK(before.live == 2 && before.waiting == 2);
    CHECK(bon_session_end_sample(session, 0, BON_PRUNED, 1) == BON_OK);
    CHECK(bon_session_end_sample(session, 3, BON_ABORTED, 0) == BON_OK); /* was waiting */
    bon_session_get_stats(session, &after);
    CHECK(after.live == 1 && after.waiting == 1 && after.free_blocks == before.free_blocks + 3);
    CHECK(bon_session_end_sample(session, 0, BON_PRUNED, 0) == BON_ERR_DOMAIN);
    CHECK(bon_session_end_sample(session, 1, BON_LIVE, 0) == BON_ERR_DOMAIN);
    CHECK(bon_session_end_sample(session, 99, BON_PRUNED, 0) == BON_ERR_DOMAIN);
    CHECK(bon_session_next_event(session, &sample) && sample == 0);
    CHECK(bon_session_next_event(session, &sample) && sample == 3);
    CHECK(bon_session_run(session, 1, NULL) == BON_OK);
    bon_session_get_stats(session, &after);
    CHECK(after.live == 2 && after.waiting == 0); /* the waiting one has entered */
    bon_sample_view view;
    CHECK(bon_session_view(session, 0, &view) == BON_OK && view.length == 1);
    bon_session_forget(session, 0);
    CHECK(bon_session_view(session, 0, &view) == BON_OK && view.length == 0);
    bon_session_destroy(session); /* with live samples */
    bon_model_destroy(model);
}

static void test_bad_calls_are_refused(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    bon_session *session = make_session(model, 2, 3);
    const int32_t unknown[3] = {1, 2, VOCAB};
    size_t prompt, sample, bad;
    CHECK(bon_session_add_prompt(session, unknown, 3, &prompt, &bad) == BON_ERR_DOMAIN && bad == 2);
    CHECK(bon_session_add_prompt(session, text, 0, &prompt, &bad) == BON_ERR_DOMAIN);
    CHECK(bon_session_add_prompt(session, text, CONTEXT + 1, &prompt, &bad) == BON_ERR_DOMAIN);
    prompt = add_prompt(session, text, 40);
    bon_sample_settings settings = {.how = {1.0f, 0, 1.0, 0.0}, .max_new_tokens = 0};
    CHECK(bon_session_add_sample(session, prompt, &settings, &sample) == BON_ERR_DOMAIN);
    settings.max_new_tokens = 5;
    CHECK(bon_session_add_sample(session, 7, &settings, &sample) == BON_ERR_DOMAIN);
    settings.how.top_p = 0.0;
    CHECK(bon_session_add_sample(session, prompt, &settings, &sample) == BON_ERR_DOMAIN);
    add_sample(session, prompt, 0); /* needs two blocks and three: there are three */
    CHECK(bon_session_run(session, 1, NULL) == BON_ERR_FULL);
    CHECK(bon_session_end_sample(session, 0, BON_ABORTED, 0) == BON_OK);
    CHECK(!bon_session_pending(session));

    float logits[VOCAB], logp[4];
    const size_t fits = CONTEXT + 1 - 40, too_long = fits + 1;
    CHECK(bon_score_logits(model, unknown, 3, NULL, logits, &bad) == BON_ERR_DOMAIN && bad == 2);
    CHECK(bon_score_logp(model, text, 40, unknown, &(size_t){3}, 1, 1.0f, NULL, logp, &bad)
              == BON_ERR_DOMAIN && bad == 42);
    CHECK(bon_score_logp(model, text, 40, text, &too_long, 1, 1.0f, NULL, logp, &bad)
              == BON_ERR_DOMAIN && bad == SIZE_MAX);
    float all[CONTEXT];
    CHECK(bon_score_logp(model, text, 40, text, &fits, 1, 1.0f, NULL, all, &bad) == BON_OK);
    CHECK(bon_score_logp(model, text, 1, text, &(size_t){1}, 1, 0.0f, NULL, logp, &bad)
              == BON_ERR_DOMAIN && bad == SIZE_MAX);
    CHECK(bon_score_logp(model, text, 1, text, &(size_t){1}, 1, INFINITY, NULL, logp, &bad)
              == BON_ERR_DOMAIN && bad == SIZE_MAX);

    bon_arch wrong = rich;
    bon_model *none;
    wrong.kv_heads = 3;
    CHECK(bon_model_create(&wrong, BON_F32, 1, &none) == BON_ERR_DOMAIN && none == NULL);
    CHECK(bon_model_create(&rich, BON_F32, BON_MAX_THREADS + 1, &none) == BON_ERR_DOMAIN);
    wrong = rich;
    wrong.ropes = 1; /* and layer 1 wants the second */
    CHECK(bon_model_create(&wrong, BON_F32, 1, &none) == BON_ERR_DOMAIN);
    wrong = rich;
    wrong.head_dim = 7;
    CHECK(bon_model_create(&wrong, BON_F32, 1, &none) == BON_ERR_DOMAIN);
    CHECK(bon_model_set(model, BON_Q, LAYERS, logits, BON_F32) == BON_ERR_DOMAIN);
    bon_session_destroy(session);
    bon_model_destroy(model);
}

static void test_a_sample_ends_with_the_context(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    const bon_session_limits limits = {.slots = 4, .cache_blocks = 100};
    bon_session *session;
    CHECK(bon_session_create(model, &limits, &session) == BON_OK);
    int32_t full[CONTEXT];
    for (size_t i = 0; i < CONTEXT; i++) full[i] = text[i % 100];
    const size_t nearly = add_sample(session, add_prompt(session, text, 140), 0);
    const size_t none = add_sample(session, add_prompt(session, full, CONTEXT), 0);
    run_to_end(session);
    bon_sample_view view;
    CHECK(bon_session_view(session, nearly, &view) == BON_OK);
    CHECK(view.state == BON_LENGTH && view.length == CONTEXT - 140);
    CHECK(bon_session_view(session, none, &view) == BON_OK);
    CHECK(view.state == BON_LENGTH && view.length == 0);
    bon_session_destroy(session);
    bon_model_destroy(model);
}

/* -- every allocation fails once ------------------------------------------- */

static bon_status draw_and_score(void)
{
    bon_model *model = NULL;
    bon_session *session = NULL;
    bon_status status = bon_model_create(&rich, BON_F32, 1, &model);
    if (status == BON_OK) status = fill_model(model);
    const bon_session_limits limits = {.slots = 3, .cache_blocks = 30};
    if (status == BON_OK) status = bon_session_create(model, &limits, &session);
    size_t prompt, sample, bad;
    if (status == BON_OK) status = bon_session_add_prompt(session, text, 10, &prompt, &bad);
    const bon_sample_settings settings = {.how = {1.0f, 0, 1.0, 0.0}, .max_new_tokens = 6};
    for (int i = 0; i < 20 && status == BON_OK; i++)
        status = bon_session_add_sample(session, prompt, &settings, &sample);
    if (status == BON_OK) status = bon_session_run(session, 2, NULL);
    const size_t asked = 0;
    float logp[20];
    if (status == BON_OK)
        status = bon_session_ask(session, &asked, 1, text, 2, text, 1, NULL, logp, NULL);
    while (status == BON_OK && bon_session_pending(session)) {
        status = bon_session_run(session, 100, NULL);
        while (bon_session_next_event(session, &sample)) continue;
    }
    if (status == BON_OK)
        status = bon_score_logp(model, text, 5, text, &(size_t){20}, 1, 1.0f, NULL, logp, &bad);
    allocations_left = -1;
    bon_session_destroy(session);
    bon_model_destroy(model);
    return status;
}

static void test_a_session_runs_on_where_memory_was_short(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    bon_session *calm = make_session(model, 4, 40);
    const size_t prompt = add_prompt(calm, text, 10);
    for (uint64_t i = 0; i < 2; i++) add_sample(calm, prompt, i);
    run_to_end(calm);
    bon_status status = BON_ERR_MEMORY;
    for (long fail_at = 0; status == BON_ERR_MEMORY; fail_at++) {
        bon_session *session = make_session(model, 4, 40);
        const size_t p = add_prompt(session, text, 10);
        for (uint64_t i = 0; i < 2; i++) add_sample(session, p, i);
        CHECK(bon_session_run(session, 1, NULL) == BON_OK);
        /* One that sees more than there is room for yet. */
        const size_t late = add_sample(session, add_prompt(session, text, 140), 9);
        allocations_left = fail_at;
        status = bon_session_run(session, 1, NULL);
        allocations_left = -1;
        if (status != BON_OK)
            CHECK(bon_session_end_sample(session, late, BON_ABORTED, 0) == BON_OK);
        run_to_end(session);
        for (size_t i = 0; i < 2; i++) CHECK(same_sample(session, i, calm, i));
        CHECK(fail_at > 4 || status == BON_ERR_MEMORY);
        bon_session_destroy(session);
    }
    CHECK(status == BON_OK);
    bon_session_destroy(calm);
    bon_model_destroy(model);
}

static void test_no_failed_allocation_leaks_or_crashes(void)
{
    long fail_at = 0;
    for (;; fail_at++) {
        allocations_left = fail_at;
        const bon_status status = draw_and_score();
        if (status == BON_OK) break;
        CHECK(status == BON_ERR_MEMORY);
    }
    CHECK(fail_at > 60);
}

int main(void)
{
    write_text();
    test_sequences_share_and_copy_blocks();
    test_the_panels_of_a_block();
    test_pairs_of_bfloat16_values();
    test_a_pass_reads_nothing_that_it_has_not_written();
    test_a_destroyed_cache_gives_its_addresses_back();
    test_cache_sizes_that_overflow_are_refused();
    test_a_sample_has_the_same_bits_wherever_it_runs(BON_F32);
    test_a_sample_has_the_same_bits_wherever_it_runs(BON_BF16);
    test_rows_at_distant_positions_do_not_touch();
    test_a_step_in_several_chunks_of_logits();
    test_threads_that_share_the_samples_do_not_meet();
    test_drawn_logp_equals_scored_logp(40);
    test_drawn_logp_equals_scored_logp(135);
    test_a_completion_scores_the_same_wherever_it_stands();
    test_a_question_leaves_no_trace();
    test_entering_samples_can_be_interrupted();
    test_interrupts_lose_nothing(1);
    test_interrupts_lose_nothing(2);
    test_questions_in_little_room();
    test_every_event_is_named_once();
    test_a_model_that_computes_nan_says_so();
    test_every_slot_of_a_model_is_asked_for();
    test_a_waiting_sample_does_not_keep_its_prompt_in_the_way_of_others();
    test_ended_samples_free_slot_and_cache_at_once();
    test_bad_calls_are_refused();
    test_a_sample_ends_with_the_context();
    test_a_session_runs_on_where_memory_was_short();
    test_no_failed_allocation_leaks_or_crashes();
    return 0;
}
