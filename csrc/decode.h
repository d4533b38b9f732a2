/* decode.h - a session: live samples of many prompts in slots.
 *
 *   session = bon_session_create(model, limits)
 *   p = bon_session_add_prompt(session, tokens)         any number of prompts
 *   s = bon_session_add_sample(session, p, how)         any number of samples each
 *   while bon_session_pending(session):
 *       bon_session_run(session, steps)                 until something happened
 *       take what bon_session_next_event names
 *
 * A sample waits, lives in a slot, and ends. Waiting samples enter in the order
 * in which they were added, as soon as a slot and enough cache for all their new
 * tokens are free; the first sample of a prompt to enter brings the prompt's
 * prefill with it, once, whatever the number of samples. A sample that ends
 * frees its slot and its cache at once; a prompt frees its cache with its last
 * sample, or earlier, to be read again, if that lets another in where none
 * lives. One step decodes one token for all live samples.
 *
 * What a sample draws depends on its key, its prompt and its settings alone
 * (rng.h, gemm.h: same bits), not on when or beside whom it runs.
 *
 * Budgets are counted before a sample enters, so a running sample never fails
 * for want of memory. BON_ERR_FULL means that a sample could not enter even with
 * nothing else in the session.
 *
 * Interrupted (BON_ERR_INTERRUPTED from the poll) or out of memory, every sample is
 * as it was before the step or behind it: the session can be run on, read, or
 * destroyed, and what is drawn is the same.
 */
#ifndef BON_DECODE_H
#define BON_DECODE_H

#include "model.h"
#include "rng.h"
#include "sample.h"
#include "status.h"

typedef struct {
    size_t slots;        /* most samples that live at once, >= 1 */
    size_t cache_blocks; /* budget of the cache, >= 1 */
    const int32_t *end_tokens; /* [n_end] ids that end a sample; copied */
    size_t n_end;
    const uint8_t *watch; /* [vocab] or NULL: drawing a token with a non-zero mark
                             is an event (it could complete a stop string); copied */
} bon_session_limits;

typedef enum {
    BON_WAITING, BON_LIVE,
    BON_END_TOKEN, BON_STOP_STRING, BON_LENGTH, BON_PRUNED, BON_ABORTED /* ended */
} bon_sample_state;
static inline bool bon_sample_ended(bon_sample_state state) { return state >= BON_END_TOKEN; }

typedef struct {
    bon_rng_key key; /* its prompt field is filled in by the session */
    bon_sampling how;
    size_t max_new_tokens; /* >= 1; the context may end a sample earlier */
} bon_sample_settings;

/* What a sample has drawn so far, borrowed until it is taken or runs on. */
typedef struct {
    bon_sample_state state;
    size_t length;
    const int32_t *tokens;
    const float *logp, *sampled_logp, *certainty; /* as in bon_draw */
} bon_sample_view;

typedef struct {
    uint64_t prompt_tokens, new_tokens, steps; /* prefilled; drawn; decode steps */
    double prefill_seconds, decode_seconds;
    size_t live, waiting, free_blocks;
} bon_session_stats;

typedef struct bon_session bon_session;

/* The model must outlive the session. */
BON_MUST_CHECK bon_status bon_session_create(const bon_model *model,
                                             const bon_session_limits *limits,
                                             bon_session **out);
void bon_session_destroy(bon_session *session); /* accepts NULL */

/* Scratch bytes of a session beside its cache blocks, for samples that see up to
 * `context` tokens. */
size_t bon_session_scratch_bytes(const bon_model *model, size_t slots, size_t context);

/* BON_ERR_DOMAIN if len is 0 or above the context, or (with *bad) an id is
 * outside the vocabulary. Tokens are copied. */
BON_MUST_CHECK bon_status bon_session_add_prompt(bon_session *session, const int32_t *tokens,
                                                 size_t len, size_t *prompt, size_t *bad);
BON_MUST_CHECK bon_status bon_session_add_sample(bon_session *session, size_t prompt,
                                                 const bon_sample_settings *settings,
                                                 size_t *sample);
bool bon_session_pending(const bon_session *session); /* samples live or waiting */

/* Runs until there is an event, `steps` steps are done or nothing is pending. */
BON_MUST_CHECK bon_status bon_session_run(bon_session *session, size_t steps,
                                          const bon_poll *poll);

/* The next sample that ended or drew a watched token since it was last named. */
bool bon_session_next_event(bon_session *session, size_t *sample);

/* Ends a live or waiting sample: stop string found, pruned, aborted. keep: how
 * many of its tokens remain. BON_ERR_DOMAIN if it has ended or is shorter. */
BON_MUST_CHECK bon_status bon_session_end_sample(bon_session *session, size_t sample,
                                                 bon_sample_state reason, size_t keep);
BON_MUST_CHECK bon_status bon_session_view(const bon_session *session, size_t sample,
                                           bon_sample_view *view);
/* Frees what an ended sample holds; its number is not used again. */
void bon_session_forget(bon_session *session, size_t sample);

/* Asks live samples a question without disturbing them: forks each, appends the
 * question, reads the next token's distribution, drops the fork.
 *
 *   samples   [count] live      question [len], len >= 1
 *   named     [n_named] ids     logp_out [count, n_named] nats, T = 1
 *   logits_out [count, vocab] or NULL
 *
 * BON_ERR_FULL if the cache has no room for the forks of even one sample.
 * BON_ERR_DOMAIN if a sample is not live, an id is outside the vocabulary, or
 * the context is too short. */
BON_MUST_CHECK bon_status bon_session_ask(bon_session *session, const size_t *samples,
                                          size_t count, const int32_t *question, size_t len,
                                          const int32_t *named, size_t n_named,
                                          const bon_poll *poll, float *logp_out,
                                          float *logits_out);

void bon_session_get_stats(const bon_session *session, bon_session_stats *stats);

#endif /* BON_DECODE_H */
