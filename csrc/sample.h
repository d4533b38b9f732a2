/* sample.h - logits -> one token and what the model thought of it.
 *
 * Order of the steps, which is Hugging Face's: temperature, top-k, top-p,
 * min-p, each applied to what the steps before it left and renormalised:
 *
 *   temperature  logits / T; T = 0 takes the largest logit (lowest id on ties)
 *   top-k        keeps the k largest; ties with the k-th are all kept
 *   top-p        keeps the smallest set of most likely tokens whose
 *                probability reaches p (the token that crosses p is kept);
 *                of equal logits at the border the lowest ids are kept
 *   min-p        keeps tokens with probability >= min_p * the largest one's
 *
 * The token is the inverse of the cumulative distribution, in order of token
 * id over the kept tokens, at a uniform number u that the caller supplies:
 * nothing here is random. A token that is banned, dropped or has a probability
 * below 1.2e-38 of the largest is never drawn, whatever u. A row's result
 * depends on that row alone: not on threads, other rows or earlier calls. The
 * functions allocate nothing.
 *
 * Accuracy, before the result is rounded to float, for any logits in [-50, 50]
 * and up to 2^18 tokens: logp and certainty 1e-6 nats, sampled_logp 1e-6 nats at
 * T = 1 and 3e-6 at other temperatures. The token is the exact one unless u lies
 * within 1e-6 of a border between two tokens.
 */
#ifndef BON_SAMPLE_H
#define BON_SAMPLE_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

typedef struct {
    float temperature; /* >= 0, finite */
    int32_t top_k;     /* 0 = all, otherwise >= 1 */
    double top_p;      /* (0, 1]; 1 = off */
    double min_p;      /* [0, 1]; 0 = off */
} bon_sampling;

typedef struct {
    int32_t token;
    float logp;         /* nats: log softmax(logits)[token], at T = 1, untruncated */
    float sampled_logp; /* nats: as drawn, after all steps; 0 when T = 0 */
    float certainty;    /* nats: KL(uniform || softmax(logits)) = -mean_j log(V p_j)
                           over the V tokens that are not banned; >= 0, 0 for a
                           uniform distribution.
                           Source: Kang et al. 2025, arXiv:2502.18581 */
} bon_draw;

/* BON_ERR_DOMAIN if a bound in bon_sampling is broken. */
BON_MUST_CHECK bon_status bon_sampling_check(const bon_sampling *how);

/* Bytes of scratch that bon_sample_token needs for a vocabulary. */
size_t bon_sample_scratch(size_t vocab);

/* Draws one token of one row.
 *
 *   logits   [vocab] finite or -inf (a banned token), at T = 1, after any
 *            soft-cap; 1 <= vocab <= INT32_MAX
 *   u                uniform in [0, 1)
 *   scratch          bon_sample_scratch(vocab) bytes, 64-byte aligned
 *
 * BON_ERR_DOMAIN if how, vocab or u is out of bounds, BON_ERR_NOT_FINITE if a
 * logit is NaN or +inf or all are -inf; out is then untouched. O(vocab): two
 * passes over the row, one more for T other than 1, and no sort. */
BON_MUST_CHECK bon_status bon_sample_token(const float *logits, size_t vocab,
                                           const bon_sampling *how, double u,
                                           void *scratch, bon_draw *out);

/* log softmax(logits / temperature) at len chosen ids; temperature > 0 and finite.
 * out [len] nats, -inf for a banned token; the same sums as bon_sample_token, so the
 * same bits as its logp (T = 1) or sampled_logp (nothing truncated). BON_ERR_DOMAIN if
 * an id is outside [0, vocab), BON_ERR_NOT_FINITE as above; out is then untouched. */
BON_MUST_CHECK bon_status bon_log_softmax_at(const float *logits, size_t vocab,
                                             float temperature,
                                             const int32_t *ids, size_t len,
                                             float *out);

#endif /* BON_SAMPLE_H */
