/* sample.h - logits -> one token and what the model thought of it.
 *
 * Order of the steps, which is Hugging Face's: temperature, top-k, top-p,
 * min-p, each applied to what the steps before it left and renormalised:
 *
 *   temperature  logits / T; T = 0 takes the largest logit (lowest id on ties)
 *   top-k        keeps the k largest; ties with the k-th are all kept
 *   top-p        keeps the smallest set of most likely tokens whose
 *                probability reaches p (the token that crosses p is kept)
 *   min-p        keeps tokens with probability >= min_p * the largest one's
 *
 * The token is the inverse of the cumulative distribution, in order of token
 * id over the kept tokens, at a uniform number u that the caller supplies:
 * nothing here is random. A row's result depends on that row alone: not on
 * threads, other rows or earlier calls. The functions allocate nothing.
 */
#ifndef BON_SAMPLE_H
#define BON_SAMPLE_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

typedef struct {
    float temperature; /* >= 0, finite */
    int32_t top_k;     /* 0 = all, otherwise >= 1 */
    float top_p;       /* (0, 1]; 1 = off */
    float min_p;       /* [0, 1]; 0 = off */
} bon_sampling;

typedef struct {
    int32_t token;
    float logp;         /* nats: log softmax(logits)[token], at T = 1, untruncated */
    float sampled_logp; /* nats: as drawn, after all steps; 0 when T = 0 */
    float certainty;    /* nats: KL(uniform || softmax(logits)) = -mean_j log(V p_j)
                           >= 0, 0 for a uniform distribution.
                           Source: Kang et al. 2025, arXiv:2502.18581 */
} bon_draw;

/* BON_ERR_DOMAIN if a bound in bon_sampling is broken. */
BON_MUST_CHECK bon_status bon_sampling_check(const bon_sampling *how);

/* Bytes of scratch that bon_sample_token needs for a vocabulary. */
size_t bon_sample_scratch(size_t vocab);

/* Draws one token of one row.
 *
 *   logits   [vocab] finite, at T = 1, after any soft-cap
 *   u                uniform in [0, 1)
 *   scratch          bon_sample_scratch(vocab) bytes, 64-byte aligned
 *
 * BON_ERR_NOT_FINITE if a logit is NaN or +inf (-inf is a banned token) or all
 * are -inf. Expected O(vocab): no full sort. */
BON_MUST_CHECK bon_status bon_sample_token(const float *logits, size_t vocab,
                                           const bon_sampling *how, double u,
                                           void *scratch, bon_draw *out);

/* log softmax(logits / temperature) at len chosen ids; temperature > 0.
 * out [len] nats. BON_ERR_DOMAIN if an id is outside [0, vocab). */
BON_MUST_CHECK bon_status bon_log_softmax_at(const float *logits, size_t vocab,
                                             float temperature,
                                             const int32_t *ids, size_t len,
                                             float *out);

#endif /* BON_SAMPLE_H */
