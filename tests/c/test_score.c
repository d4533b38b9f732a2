/* test_score.c - scores of completions against one forward pass per text.
 *
 * Bookkeeping is looked at here (chunks, groups, empty completions, errors,
 * interrupts); that the numbers are those of transformers is shown in Python.
 */
#include "score.h"

#include <stdbool.h>
#include <string.h>

#include "check.h"

enum { VOCAB = 37, HIDDEN = 24, LAYERS = 2, LABELS = 3, CONTEXT = 400 };

static const size_t windows[LAYERS] = {0, 9};
static const uint8_t ropes[LAYERS] = {0, 0};
static const float freq[3] = {1.0f, 0.1f, 0.01f};

static bon_model *make_model(size_t labels, int threads)
{
    const bon_arch arch = {
        .vocab = VOCAB, .hidden = HIDDEN, .layers = LAYERS, .heads = 4, .kv_heads = 2,
        .head_dim = 6, .intermediate = 20, .max_positions = CONTEXT, .labels = labels,
        .activation = BON_SILU, .norm_eps = 1e-5f, .tied = true, .embed_scale = 1.0f,
        .attn_scale = 0.4f, .window = windows, .rope = ropes, .ropes = 1, .rope_freq = {freq},
        .rope_scale = {1.0f},
    };
    bon_model *model;
    CHECK(bon_model_create(&arch, BON_F32, threads, &model) == BON_OK);
    static float data[VOCAB * HIDDEN];
    uint64_t state = 1;
    bon_slot slot;
    size_t layer, rows, cols;
    while (bon_model_missing(model, &slot, &layer)) {
        bon_model_shape(model, slot, &rows, &cols);
        CHECK(rows * cols <= VOCAB * HIDDEN);
        for (size_t i = 0; i < rows * cols; i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            data[i] = (float)((double)(state >> 40) / (1 << 24) - 0.5);
        }
        CHECK(bon_model_set(model, slot, layer, data, BON_F32) == BON_OK);
        static float again[VOCAB * HIDDEN];
        CHECK(bon_model_get(model, slot, layer, again) == BON_OK);
        CHECK(memcmp(again, data, rows * cols * sizeof *data) == 0);
    }
    return model;
}

static void fill(int32_t *tokens, size_t len, int32_t seed)
{
    for (size_t i = 0; i < len; i++) tokens[i] = (int32_t)((i * 7 + (size_t)seed * 5) % VOCAB);
}

/* The scores behind a text that goes through the model alone, in chunks. */
static void scores_of(const bon_model *model, const int32_t *tokens, size_t len, float *scores)
{
    bon_work *work;
    bon_cache *cache;
    bon_seq seq = {0};
    const float *last;
    CHECK(bon_work_create(model, 1, &work) == BON_OK);
    CHECK(bon_model_create_cache(model, LAYERS, bon_blocks_for(len), &cache) == BON_OK);
    CHECK(bon_model_prefill(model, work, cache, tokens, len, &seq, NULL, &last) == BON_OK);
    bon_model_scores(model, last, 1, scores);
    bon_seq_free(cache, &seq);
    bon_cache_destroy(cache);
    bon_work_destroy(work);
}

/* Lengths: none, in groups, exactly a batch (100 + 28), just beyond, in chunks. */
static void test_values_are_those_of_each_text_alone(void)
{
    enum { COUNT = 9, PROMPT = 70 };
    static const size_t lengths[COUNT] = {0, 1, 100, 28, 129, 0, 300, 2, 128};
    static int32_t tokens[1000], text[CONTEXT];
    float values[COUNT * LABELS], want[LABELS];
    for (int threads = 1; threads <= 2; threads++) {
        bon_model *model = make_model(LABELS, threads);
        size_t at = 0, bad;
        for (size_t c = 0; c < COUNT; at += lengths[c++]) fill(tokens + at, lengths[c], (int32_t)c);
        fill(text, PROMPT, 11);
        memset(values, 0xff, sizeof values);
        CHECK(bon_score_values(model, text, PROMPT, tokens, lengths, COUNT, NULL, values, &bad)
              == BON_OK);
        at = 0;
        for (size_t c = 0; c < COUNT; at += lengths[c++]) {
            memcpy(text + PROMPT, tokens + at, lengths[c] * sizeof *tokens);
            scores_of(model, text, PROMPT + lengths[c], want);
            for (size_t i = 0; i < LABELS; i++)
                CHECK(fabsf(values[c * LABELS + i] - want[i]) <= 1e-5f);
        }
        bon_model_destroy(model);
    }
}

static void test_many_completions_without_tokens_fit_into_groups(void)
{
    enum { COUNT = 300 };
    bon_model *model = make_model(LABELS, 1);
    static size_t lengths[COUNT];
    static float values[COUNT * LABELS];
    float want[LABELS];
    int32_t text[5], token = 4;
    size_t bad;
    fill(text, 5, 1);
    lengths[COUNT - 1] = 1;
    CHECK(bon_score_values(model, text, 5, &token, lengths, COUNT, NULL, values, &bad) == BON_OK);
    scores_of(model, text, 5, want);
    for (size_t c = 0; c < COUNT - 1; c++)
        CHECK(memcmp(values + c * LABELS, want, sizeof want) == 0);
    CHECK(memcmp(values + (COUNT - 1) * LABELS, want, sizeof want) != 0);
    CHECK(bon_score_values(model, text, 5, NULL, NULL, 0, NULL, NULL, &bad) == BON_OK);
    bon_model_destroy(model);
}

static void test_what_cannot_be_scored_is_refused(void)
{
    bon_model *scorer = make_model(1, 1), *causal = make_model(0, 1);
    int32_t text[CONTEXT], unknown[3] = {1, 2, VOCAB};
    float value, logits[VOCAB];
    size_t bad;
    fill(text, CONTEXT, 1);
    CHECK(bon_score_values(causal, text, 3, text, &(size_t){2}, 1, NULL, &value, &bad)
              == BON_ERR_DOMAIN && bad == SIZE_MAX);
    CHECK(bon_score_logits(scorer, text, 1, NULL, logits, &bad) == BON_ERR_DOMAIN && bad == 1);
    CHECK(bon_score_logp(scorer, text, 3, text, &(size_t){2}, 1, 1.0f, NULL, logits, &bad)
              == BON_ERR_DOMAIN && bad == SIZE_MAX);
    CHECK(bon_score_values(scorer, text, 0, text, &(size_t){2}, 1, NULL, &value, &bad)
              == BON_ERR_DOMAIN && bad == SIZE_MAX);
    CHECK(bon_score_values(scorer, text, 390, text, &(size_t){10}, 1, NULL, &value, &bad)
          == BON_OK);
    CHECK(bon_score_values(scorer, text, 390, text, &(size_t){11}, 1, NULL, &value, &bad)
              == BON_ERR_DOMAIN && bad == SIZE_MAX);
    CHECK(bon_score_values(scorer, text, 4, unknown, &(size_t){3}, 1, NULL, &value, &bad)
              == BON_ERR_DOMAIN && bad == 6);
    bon_model_destroy(scorer);
    bon_model_destroy(causal);
}

static int stop_at_zero(void *arg) { return (*(int *)arg)-- <= 0; }

/* Whenever it is stopped, nothing leaks and the same call succeeds afterwards. */
static void test_scores_can_be_stopped_at_every_point(void)
{
    bon_model *model = make_model(1, 1);
    int32_t text[CONTEXT];
    const size_t lengths[] = {5, 150, 3};
    float values[3], want[3];
    size_t bad;
    fill(text, CONTEXT, 2);
    CHECK(bon_score_values(model, text, 9, text, lengths, 3, NULL, want, &bad) == BON_OK);
    bon_status status = BON_ERR_INTERRUPTED;
    int polls = 0;
    for (; status == BON_ERR_INTERRUPTED; polls++) {
        int left = polls;
        const bon_poll poll = {stop_at_zero, &left};
        status = bon_score_values(model, text, 9, text, lengths, 3, &poll, values, &bad);
    }
    CHECK(status == BON_OK && polls > 4 * LAYERS);
    CHECK(memcmp(values, want, sizeof want) == 0);
    bon_model_destroy(model);
}

int main(void)
{
    test_values_are_those_of_each_text_alone();
    test_many_completions_without_tokens_fit_into_groups();
    test_what_cannot_be_scored_is_refused();
    test_scores_can_be_stopped_at_every_point();
    return 0;
}
