/* learner.h - trains a model's weights in place.
 *
 *   bon_learner_accumulate   adds the gradient of a batch, any number of times
 *   bon_learner_norm         of the gradient so far, to clip by
 *   bon_learner_step         AdamW; then the gradient is zero again
 *
 * A tensor of the learner is a packed matrix of the model (q, k and v are one) or a
 * vector. Weights are float32: those of a float32 model are trained where they are;
 * of bfloat16 matrices the learner keeps float32 masters and rounds them into the
 * model after each step. Gradients and moments lie as the weights do.
 *
 * The model must not be in use by anybody else while a step runs.
 */
#ifndef BON_LEARNER_H
#define BON_LEARNER_H

#include "adamw.h"
#include "backward.h"

typedef struct bon_learner bon_learner;

/* What there is of each weight. */
typedef enum { BON_WEIGHT, BON_GRADIENT, BON_MOMENT_1, BON_MOMENT_2 } bon_kind;

/* What is trained: all weights; or the adapters that the model has (lora.h), and its
 * score head. */
typedef enum { BON_TRAIN_ALL, BON_TRAIN_ADAPTERS } bon_scope;

/* memory: bytes of scratch for a backward pass (backward.h), beside 4 bytes for every
 * weight, 8 more from the first step on, and 4 for masters. The model outlives it. */
BON_MUST_CHECK bon_status bon_learner_create(bon_model *model, bon_scope scope, size_t memory,
                                             bon_learner **out);
void bon_learner_destroy(bon_learner *learner); /* accepts NULL */

/* Adds the gradient of a batch (backward.h); values [targets]. After an error the
 * gradient holds a part of the batch: bon_learner_zero. */
BON_MUST_CHECK bon_status bon_learner_accumulate(bon_learner *learner, const bon_batch *batch,
                                                 const bon_poll *poll, float *values);
void bon_learner_zero(bon_learner *learner);
/* As bon_backward_set_reference. */
BON_MUST_CHECK bon_status bon_learner_set_reference(bon_learner *learner,
                                                    const bon_model *reference);

/* sqrt of the sum of all squares of the gradient. */
double bon_learner_norm(const bon_learner *learner);

/* One step with grad_scale * gradient. Weight decay is for matrices only; vectors
 * (norms, biases) have none. BON_ERR_MEMORY leaves everything as it was. */
BON_MUST_CHECK bon_status bon_learner_step(bon_learner *learner, const bon_adamw *options,
                                           double grad_scale);
/* Steps so far; to be set when moments are restored. */
uint64_t bon_learner_steps(const bon_learner *learner);
void bon_learner_set_steps(bon_learner *learner, uint64_t steps);

/* Copies what belongs to a slot, [rows, cols] of bon_model_shape, out and in. Setting
 * weights changes the model. Moments that no step has made yet are 0.
 * BON_ERR_DOMAIN: the model has no such slot, or it is not trained. */
BON_MUST_CHECK bon_status bon_learner_get(const bon_learner *learner, bon_kind kind,
                                          bon_slot slot, size_t layer, float *out);
BON_MUST_CHECK bon_status bon_learner_set(bon_learner *learner, bon_kind kind, bon_slot slot,
                                          size_t layer, const float *in);

#endif /* BON_LEARNER_H */
