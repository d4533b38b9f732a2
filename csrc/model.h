/* model.h - a transformer: weights in packed form, and the forward pass.
 *
 * A model is made in three steps:
 *
 *   bon_model_create     from an architecture (arch.h) and a precision
 *   bon_model_set        once per tensor of the checkpoint, in any order
 *   bon_model_missing    names the first slot that has not been set
 *
 * It may be used by several sessions at once; what a forward pass writes lives
 * in a workspace (bon_work) and a cache (cache.h) that belong to the session. Who
 * changes it (bon_model_set, adapters, a learner's step) must be alone with it.
 *
 * Matrices of one input are packed as one: q, k and v; gate and up.
 */
#ifndef BON_MODEL_H
#define BON_MODEL_H

#include "arch.h"
#include "attention.h"
#include "cache.h"
#include "gemm.h"
#include "status.h"

/* Where a tensor of the checkpoint belongs. */
typedef enum {
    BON_EMBED, BON_HEAD, BON_SCORE, BON_FINAL_NORM, /* of the model */
    BON_Q, BON_K, BON_V, BON_O, BON_GATE, BON_UP, BON_DOWN, /* of a layer, from here on */
    BON_Q_BIAS, BON_K_BIAS, BON_V_BIAS, BON_O_BIAS, BON_GATE_BIAS, BON_UP_BIAS, BON_DOWN_BIAS,
    BON_Q_NORM, BON_K_NORM, BON_ATTN_NORM, BON_ATTN_POST_NORM, BON_MLP_NORM, BON_MLP_POST_NORM,
    BON_Q_A, BON_K_A, BON_V_A, BON_O_A, BON_GATE_A, BON_UP_A, BON_DOWN_A, /* adapters (lora.h) */
    BON_Q_B, BON_K_B, BON_V_B, BON_O_B, BON_GATE_B, BON_UP_B, BON_DOWN_B,
    BON_SLOTS
} bon_slot;

/* "embed", "q_bias", ...: the words of bonaware.models. */
const char *bon_slot_name(bon_slot slot);
static inline bool bon_slot_of_layer(bon_slot slot) { return slot >= BON_Q; }

typedef struct bon_model bon_model;

/* More threads than any machine has processors: OpenMP ends the process where the
 * system refuses a thread. */
#define BON_MAX_THREADS 1024

/* Copies arch with all it points to. dtype: of matrices, any but BON_F16;
 * norms and biases are float32. BON_ERR_DOMAIN if arch contradicts itself, or not
 * 1 <= threads <= BON_MAX_THREADS. */
BON_MUST_CHECK bon_status bon_model_create(const bon_arch *arch, bon_dtype dtype, int threads,
                                           bon_model **out);
void bon_model_destroy(bon_model *model); /* accepts NULL */

/* false where the architecture has no such slot (a bias it does not use). */
bool bon_model_has(const bon_model *model, bon_slot slot);
/* The shape that a slot must have; cols is 1 for vectors. */
void bon_model_shape(const bon_model *model, bon_slot slot, size_t *rows, size_t *cols);

/* Converts and packs one tensor [rows, cols] of the shape above. layer: 0 for
 * slots of the model. Setting a slot twice overwrites it. */
BON_MUST_CHECK bon_status bon_model_set(bon_model *model, bon_slot slot, size_t layer,
                                        const void *data, bon_dtype dtype);
/* The tensor of a slot as float32 [rows, cols]; bfloat16 is widened. BON_ERR_DOMAIN
 * where bon_model_set would give it. */
BON_MUST_CHECK bon_status bon_model_get(const bon_model *model, bon_slot slot, size_t layer,
                                        float *out);
/* true and the first unset slot, or false when the model is complete. */
bool bon_model_missing(const bon_model *model, bon_slot *slot, size_t *layer);

/* Puts a low-rank adapter beside the product of BON_Q ... BON_DOWN in every layer; the
 * slots ..._A and ..._B then exist, with A and B zero. A workspace that was reserved
 * before lacks scratch for it: its passes are BON_ERR_DOMAIN until it is reserved again.
 * BON_ERR_DOMAIN: another slot, rank < 1, or there is one. BON_ERR_MEMORY: the model has
 * no adapter at all any more. */
BON_MUST_CHECK bon_status bon_model_add_adapter(bon_model *model, bon_slot slot, size_t rank,
                                                float scale);
/* A learner that trains them (learner.h) must not be used any more. */
void bon_model_remove_adapters(bon_model *model);

const bon_arch *bon_model_arch(const bon_model *model);
bon_dtype bon_model_dtype(const bon_model *model);
int bon_model_threads(const bon_model *model);
size_t bon_model_bytes(const bon_model *model); /* of packed weights */

/* A cache for a model's keys and values (cache.h): of float32 for weights of float32, else of
 * bfloat16. layers: all, or 1. And the bytes of one of its blocks; 0 if that overflows. */
BON_MUST_CHECK bon_status bon_model_create_cache(const bon_model *model, size_t layers,
                                                 size_t blocks, bon_cache **out);
size_t bon_model_block_bytes(const bon_model *model, size_t layers);

/* Threads that pay inside one forward pass: 1 for a model so small that waking
 * threads for each product would cost more than the products. */
int bon_model_pass_threads(const bon_model *model);

/* Matrices by shape, to choose routes: i = 0.. until NULL. */
bon_matrix *bon_model_matrix(bon_model *model, size_t i, const char **name);

/* -- forward pass ---------------------------------------------------------- */

/* Scratch of a forward pass, grown on demand by bon_work_reserve; its passes run
 * on `threads` threads. */
typedef struct bon_work bon_work;
BON_MUST_CHECK bon_status bon_work_create(const bon_model *model, int threads,
                                          bon_work **out);
void bon_work_destroy(bon_work *work); /* accepts NULL */
/* Room for batches of `rows` rows that see `context` tokens. On BON_ERR_MEMORY the room is as
 * before. */
BON_MUST_CHECK bon_status bon_work_reserve(bon_work *work, size_t rows, size_t context);
/* What bon_work_reserve would hold, in bytes. */
size_t bon_work_bytes(const bon_model *model, size_t rows, size_t context);

/* Runs the layers over a batch and writes its keys and values to the cache.
 *
 *   tokens  [rows] ids below vocab (the caller has checked), rows of all runs
 *   runs    [n_runs] in order of rows; room is reserved in each run's own
 *           sequence and in the workspace
 *   poll    asked between matrix products
 *   hidden  points into the workspace: [rows, hidden] after the final norm,
 *           valid until the next call
 *
 * The lengths of the runs' sequences are raised by their rows at the very end:
 * on BON_ERR_INTERRUPTED the sequences are as before. */
BON_MUST_CHECK bon_status bon_model_forward(const bon_model *model, bon_work *work,
                                            bon_cache *cache, bon_phase phase,
                                            const int32_t *tokens, const bon_run *runs,
                                            size_t n_runs, const bon_poll *poll,
                                            const float **hidden);

/* Rows of texts that are read side by side. */
#define BON_CHUNK 128

/* Rows of a text that go through the layers together: BON_CHUNK, or more where a model is so
 * small that its products are short all the same. A product is what Ctrl-C waits for. */
size_t bon_model_prefill_rows(const bon_model *model);

/* Runs a text of len >= 1 tokens into an empty sequence, bon_model_prefill_rows at a time,
 * reserving cache and workspace itself. last: [hidden] of the last token. On an error the
 * sequence holds a part of the text: free it. */
BON_MUST_CHECK bon_status bon_model_prefill(const bon_model *model, bon_work *work,
                                            bon_cache *cache, const int32_t *tokens, size_t len,
                                            bon_seq *seq, const bon_poll *poll,
                                            const float **last);

/* logits [rows, vocab] of rows of `hidden` [rows, hidden], soft-capped. Only where
 * arch.labels is 0. */
BON_MUST_CHECK bon_status bon_model_logits(const bon_model *model, bon_phase phase,
                                           const float *hidden, size_t rows, float *logits,
                                           int threads);

/* scores [rows, labels] of rows of `hidden`. Only where arch.labels > 0. */
void bon_model_scores(const bon_model *model, const float *hidden, size_t rows, float *scores);

#endif /* BON_MODEL_H */
