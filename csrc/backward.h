/* backward.h - gradients of what a model says of given texts: forward.c mirrored.
 *
 * The objective is a weighted sum over targets,
 *
 *   sum_t weight[t] * log p(token[t] | what row t has read)      of a language model
 *   sum_t weight[t] * score of label token[t] behind row t       of a score head
 *
 * plus, for a language model with a reference, the exact divergence at each target,
 *
 *   sum_t kl_weight[t] * KL(p || p of the reference)  at the row of t, over the vocabulary
 *
 * and bon_backward_run adds its gradient in every weight to given arrays. Texts come
 * as trees (attention_grad.h): a prompt is computed once for all samples that
 * continue it, forward and backward.
 *
 * Memory. The batch is worked on in parts of whole trees, of some thousand rows. The
 * residual stream is kept for each layer; what else the backward pass needs is kept
 * for as many layers as the budget allows and computed again for the others, from
 * the same numbers in the same order. Logits exist for some rows at a time.
 *
 * Same bits. Every sum over rows is one chain in the order of the rows, so neither
 * the budget, nor the parts, nor the threads show in the gradients.
 */
#ifndef BON_BACKWARD_H
#define BON_BACKWARD_H

#include <limits.h>

#include "attention_grad.h"
#include "lora.h"
#include "model.h"

typedef struct {
    const bon_tree *trees; /* [n_trees]; first_row counts on without gaps from 0 */
    size_t n_trees;
    const int32_t *tokens; /* [rows of all trees] */
    size_t targets;
    const size_t *target_row;    /* [targets] ascending */
    const int32_t *target_token; /* [targets] ids, or labels of a score head */
    const float *target_weight;  /* [targets] */
    /* NULL, or [targets] in [0, 1], of a score head: the objective is then
     * -sum weight * cross-entropy of sigmoid(score) with these probabilities. */
    const float *target_probability;
    /* NULL, or [targets]: weights of the divergence from a reference model, and where its
     * values [targets], in nats, go. */
    const float *target_kl_weight;
    float *target_kl;
    float temperature; /* > 0, of log p; 1 for scores */
} bon_batch;

/* What is wrong with a batch: NULL if nothing, else what must hold, with the index of
 * the first tree, token, target that breaks it (found: what is there instead, or
 * BON_NO_NUMBER where that is not a whole number). */
#define BON_NO_NUMBER LONG_MIN
const char *bon_batch_fault(const bon_model *model, const bon_batch *batch, size_t *index,
                            long *found);

/* Where gradients are added; a NULL is not computed. Matrices as float32 panels
 * (panels.h) of the packed weights, vectors as they are. */
typedef struct {
    float *weight, *bias;
    struct { float *a, *b; } adapters[BON_ADAPTERS];
} bon_linear_grad;

typedef struct {
    bon_linear_grad qkv, o, gate_up, down;
    float *q_norm, *k_norm, *attn_norm, *attn_post_norm, *mlp_norm, *mlp_post_norm;
} bon_layer_grad;

typedef struct {
    float *embed, *head; /* the same array when tied */
    float *score, *final_norm;
    bon_layer_grad *layers;
} bon_model_grad;

typedef struct bon_backward bon_backward; /* scratch, and weights the other way round */

/* memory: bytes of scratch that one call may use. */
BON_MUST_CHECK bon_status bon_backward_create(const bon_model *model, size_t memory,
                                              bon_backward **out);
void bon_backward_destroy(bon_backward *backward); /* accepts NULL */

/* The model that batches with target_kl_weight are held against: predicts tokens over
 * the same vocabulary with no smaller context, and outlives `backward`. BON_ERR_DOMAIN
 * if not. */
BON_MUST_CHECK bon_status bon_backward_set_reference(bon_backward *backward,
                                                     const bon_model *reference);

/* Adds the gradient of the batch; values [targets] gets the log-probabilities or
 * scores. The batch has no fault (bon_batch_fault). BON_ERR_FULL: one tree does not fit
 * into the memory. BON_ERR_NOT_FINITE: a value or a divergence is not. On an
 * error a part of the gradient has been added. */
BON_MUST_CHECK bon_status bon_backward_run(bon_backward *backward, const bon_batch *batch,
                                           const bon_model_grad *grad, const bon_poll *poll,
                                           float *values);

#endif /* BON_BACKWARD_H */
