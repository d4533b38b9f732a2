/* score.h - what the model thinks of given texts, without drawing.
 *
 * Each call makes its own workspace and cache and frees them, so any number of
 * threads may score with one model at once. Prompts and completions are never
 * copied per sample: a prompt runs once for all its completions.
 */
#ifndef BON_SCORE_H
#define BON_SCORE_H

#include "model.h"

/* logits [len, vocab] at every position of a text, 1 <= len <= max_positions.
 * BON_ERR_DOMAIN with *bad = index of an id outside the vocabulary, or len: its
 * length, or a model with a score head. */
BON_MUST_CHECK bon_status bon_score_logits(const bon_model *model, const int32_t *tokens,
                                           size_t len, const bon_poll *poll, float *logits,
                                           size_t *bad);

/* Log-probabilities, in nats at a finite `temperature` > 0, of every token of several
 * completions of one prompt.
 *
 *   prompt       [prompt_len], prompt_len >= 1
 *   completions  one behind the other; lengths [count], each >= 0, and
 *                prompt_len + length <= max_positions + 1 (the last token is
 *                predicted, not read)
 *   logp         as completions
 *   bad          on BON_ERR_DOMAIN: index of an unknown id in prompt followed by
 *                completions, or SIZE_MAX: a length, the temperature or a model
 *                with a score head */
BON_MUST_CHECK bon_status bon_score_logp(const bon_model *model, const int32_t *prompt,
                                         size_t prompt_len, const int32_t *completions,
                                         const size_t *lengths, size_t count,
                                         float temperature, const bon_poll *poll, float *logp,
                                         size_t *bad);

/* Scores of several completions of one prompt by a model with a score head: those
 * behind the last token of prompt + completion.
 *
 *   prompt, completions, lengths, bad   as above, but prompt_len + length <=
 *                max_positions: every token is read; an empty completion has the
 *                score of the prompt
 *   values       [count, labels]; BON_ERR_DOMAIN where the model has no score head */
BON_MUST_CHECK bon_status bon_score_values(const bon_model *model, const int32_t *prompt,
                                           size_t prompt_len, const int32_t *completions,
                                           const size_t *lengths, size_t count,
                                           const bon_poll *poll, float *values, size_t *bad);

/* Bytes of cache and scratch that the calls above need at most for these lengths. */
size_t bon_score_bytes(const bon_model *model, size_t prompt_len, const size_t *lengths,
                       size_t count);

#endif /* BON_SCORE_H */
