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
 * Samples can rest. One with hold_at is held when it has drawn so many tokens:
 * it keeps slot and cache and draws nothing until bon_session_go_on, or until it
 * is ended. Where the limits say hold_ends, one that ends by itself (end token,
 * stop string, length) keeps both until it is forgotten. What keeps its cache can
 * be asked a question (bon_session_ask).
 *
 *       waiting -> live <-> held -> pruned, aborted
 *                    \-> end token, stop string, length [-> forgotten]
 *
 * Samples that rest can fill all slots, or the cache, so that none moves. Then
 * nothing is pending and bon_session_run returns at once, although samples may
 * wait: the caller lets some go on, ends or forgets them. Who runs until nothing
 * is pending and then looks at what rests never spins and never waits in vain.
 *
 * What a sample draws depends on its key, its prompt and its settings alone
 * (rng.h, gemm.h: same bits), not on when or beside whom it runs, nor on where it
 * was held or what it was asked.
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
    size_t slots;        /* most samples that live or rest at once, >= 1 */
    size_t cache_blocks; /* budget of the cache, >= 1 */
    const int32_t *end_tokens; /* [n_end] ids that end a sample; copied */
    size_t n_end;
    const uint8_t *watch; /* [vocab] or NULL: drawing a token with a non-zero mark
                             is an event (it could complete a stop string); copied */
    bool hold_ends;    /* what ends by itself keeps slot and cache until forgotten */
    size_t ask_blocks; /* below cache_blocks: entering samples leave so many free;
                          bon_fork_blocks(len) always fork one for a question */
} bon_session_limits;

/* Cache blocks that a fork takes, at most, for a question of len tokens. */
static inline size_t bon_fork_blocks(size_t len) { return bon_blocks_for(BON_BLOCK + len); }

typedef enum {
    BON_WAITING, BON_LIVE, BON_HELD,
    BON_END_TOKEN, BON_STOP_STRING, BON_LENGTH, BON_PRUNED, BON_ABORTED /* ended */
} bon_sample_state;
static inline bool bon_sample_ended(bon_sample_state state) { return state >= BON_END_TOKEN; }

typedef struct {
    bon_rng_key key; /* its prompt field is filled in by the session */
    bon_sampling how;
    size_t max_new_tokens; /* >= 1; the context may end a sample earlier */
    size_t hold_at; /* held with so many tokens, if it has not ended; 0: never */
} bon_sample_settings;

/* What a sample has drawn so far, borrowed until it is taken or runs on. */
typedef struct {
    bon_sample_state state;
    bool in_cache; /* it can be asked */
    size_t prompt_length, length;
    const int32_t *tokens;
    const float *logp, *sampled_logp, *certainty; /* as in bon_draw */
} bon_sample_view;

typedef struct {
    uint64_t prompt_tokens, new_tokens, steps; /* prefilled; drawn; decode steps */
    double prefill_seconds, decode_seconds;
    size_t live, held, waiting, free_blocks;
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
/* Whether a sample lives, or one that waits can enter beside those that rest. */
bool bon_session_pending(const bon_session *session);

/* Runs until there is an event, `steps` steps are done or nothing is pending. */
BON_MUST_CHECK bon_status bon_session_run(bon_session *session, size_t steps,
                                          const bon_poll *poll);

/* The next sample that ended, was held or drew a watched token since it was last
 * named. What is held may have drawn a watched token with its last. */
bool bon_session_next_event(bon_session *session, size_t *sample);

/* A held sample lives again, to be held next with hold_at tokens (0: never).
 * BON_ERR_DOMAIN if it is not held or has as many tokens already. */
BON_MUST_CHECK bon_status bon_session_go_on(bon_session *session, size_t sample,
                                            size_t hold_at);

/* Ends a sample that waits, lives or is held: stop string found, pruned, aborted.
 * keep: how many of its tokens remain; without any it keeps no cache either.
 * BON_ERR_DOMAIN if it has ended or is shorter. */
BON_MUST_CHECK bon_status bon_session_end_sample(bon_session *session, size_t sample,
                                                 bon_sample_state reason, size_t keep);
BON_MUST_CHECK bon_status bon_session_view(const bon_session *session, size_t sample,
                                           bon_sample_view *view);
/* Frees what an ended sample holds, slot and cache too; its number is not used
 * again. No effect on others. */
void bon_session_forget(bon_session *session, size_t sample);

/* Asks samples a question without disturbing them: forks each, appends the
 * question, reads the next token's distribution, drops the fork. Takes samples in
 * batches of some BON_CHUNK rows: len + 1 rows per sample, because the newest token
 * is not in the cache yet. Samples of a prompt best stand next to each other.
 *
 *   samples   [count] that are in the cache: live, held, or ended and kept
 *   question  [len], len >= 1
 *   named     [n_named] ids     logp_out [count, n_named] nats, T = 1
 *   logits_out [count, vocab] or NULL
 *
 * BON_ERR_FULL if the cache has no room for the fork of even one sample.
 * BON_ERR_DOMAIN if a sample is not in the cache, an id is outside the vocabulary,
 * or prompt, sample and question together are longer than the context. */
BON_MUST_CHECK bon_status bon_session_ask(bon_session *session, const size_t *samples,
                                          size_t count, const int32_t *question, size_t len,
                                          const int32_t *named, size_t n_named,
                                          const bon_poll *poll, float *logp_out,
                                          float *logits_out);

void bon_session_get_stats(const bon_session *session, bon_session_stats *stats);

#endif /* BON_DECODE_H */
