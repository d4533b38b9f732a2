/* small_model.h - what tests of the engine share: a small random model. */
#ifndef BON_SMALL_MODEL_H
#define BON_SMALL_MODEL_H

#include <stdbool.h>
#include <string.h>

#include "check.h"
#include "decode.h"
#include "failing.h"

/* -- a small model ---------------------------------------------------------- */

enum { VOCAB = 37, HIDDEN = 24, LAYERS = 3, HEADS = 4, KV = 2, DIM = 6, MLP = 20, CONTEXT = 150 };

static const size_t windows[LAYERS] = {0, 9, 0};
static const uint8_t ropes[LAYERS] = {0, 1, 0};
static const float slow[DIM / 2] = {1.0f, 0.1f, 0.01f}, fast[DIM / 2] = {1.0f, 0.5f, 0.2f};

/* Every feature at once: two ropes, a window, soft-caps, biases, all norms. */
static const bon_arch rich = {
    .vocab = VOCAB, .hidden = HIDDEN, .layers = LAYERS, .heads = HEADS, .kv_heads = KV,
    .head_dim = DIM, .intermediate = MLP, .max_positions = CONTEXT,
    .activation = BON_GELU_TANH, .norm_eps = 1e-5f, .norm_offset = 1.0f, .qk_norm = true,
    .post_norms = true, .qkv_bias = true, .o_bias = true, .mlp_bias = true, .tied = false,
    .embed_scale = 2.0f, .attn_scale = 0.4f, .attn_softcap = 20.0f, .final_softcap = 30.0f,
    .window = windows, .rope = ropes, .ropes = 2, .rope_freq = {slow, fast},
    .rope_scale = {1.0f, 1.0f},
};

static inline float noise(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(*state >> 40) / (1 << 24) - 0.5);
}

static inline bon_status fill_model(bon_model *model)
{
    uint64_t state = 1;
    bon_slot slot;
    size_t layer, rows, cols;
    bon_status status = BON_OK;
    while (status == BON_OK && bon_model_missing(model, &slot, &layer)) {
        bon_model_shape(model, slot, &rows, &cols);
        float *data = __real_malloc(rows * cols * sizeof *data);
        for (size_t i = 0; i < rows * cols; i++) data[i] = noise(&state);
        status = bon_model_set(model, slot, layer, data, BON_F32);
        free(data);
    }
    return status;
}

static inline bon_model *make_model(const bon_arch *arch, bon_dtype dtype, int threads)
{
    bon_model *model;
    CHECK(bon_model_create(arch, dtype, threads, &model) == BON_OK);
    CHECK(fill_model(model) == BON_OK);
    return model;
}

/* -- sessions ---------------------------------------------------------------- */

static inline size_t add_prompt(bon_session *session, const int32_t *tokens, size_t len)
{
    size_t prompt, bad;
    CHECK(bon_session_add_prompt(session, tokens, len, &prompt, &bad) == BON_OK);
    return prompt;
}

static inline bool same_sample(const bon_session *a, size_t i, const bon_session *b, size_t j)
{
    bon_sample_view x, y;
    CHECK(bon_session_view(a, i, &x) == BON_OK && bon_session_view(b, j, &y) == BON_OK);
    return x.state == y.state && x.length == y.length
           && memcmp(x.tokens, y.tokens, x.length * sizeof *x.tokens) == 0
           && memcmp(x.logp, y.logp, x.length * sizeof *x.logp) == 0
           && memcmp(x.sampled_logp, y.sampled_logp, x.length * sizeof *x.sampled_logp) == 0
           && memcmp(x.certainty, y.certainty, x.length * sizeof *x.certainty) == 0;
}

/* A poll that asks to stop when *arg calls have gone by. */
static inline int stop_at_zero(void *arg) { return (*(long *)arg)-- == 0; }

/* What prompts and questions are cut from. */
static int32_t text[140];

static inline void write_text(void)
{
    uint64_t state = 99;
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        text[i] = (int32_t)((double)(noise(&state) + 0.5f) * VOCAB);
}

#endif /* BON_SMALL_MODEL_H */
