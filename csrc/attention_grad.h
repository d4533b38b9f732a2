/* attention_grad.h - the backward pass of attention over prompts and their continuations.
 *
 * Training computes a prompt once for all samples that continue it, so the unit is
 * a tree: the prompt and its branches. With positions that count from the prompt's
 * first token, row r of a prompt sees its rows 0..r; row t of a branch sees the
 * whole prompt and rows 0..t of its own branch; both inside the layer's window.
 *
 * For a row with query q (group = heads / kv_heads query heads share the keys and
 * values of one head), over the tokens that it sees:
 *
 *   s = attn_scale * q.k       s = c tanh(s/c) where c = attn_softcap > 0
 *   p = softmax(s)             out = sum p v
 *
 * and with g = the gradient of out:
 *
 *   dp = g.v                   ds = p (dp - sum p dp) (1 - (s/c)^2) attn_scale
 *   dq = sum ds k              dk += ds q              dv += p g
 *
 * The prompt's dk and dv collect from its own rows and from those of all branches.
 *
 * p is computed again from q and k instead of being kept since the forward pass, from both as
 * float32, also where the forward pass rounded them to bfloat16: its rounding is passed over.
 * Sums of a product are float32 chains (gemm.h), those over a softmax in double.
 * Every sum has one order, so results do not depend on the number of threads, and
 * those of a tree do not depend on the other trees.
 */
#ifndef BON_ATTENTION_GRAD_H
#define BON_ATTENTION_GRAD_H

#include "arch.h"

/* A prompt and the texts that continue it. Its rows stand together in the batch:
 * the prompt's, then branch 0's, branch 1's, ... */
typedef struct {
    size_t first_row;          /* in the batch */
    size_t prompt_rows;        /* >= 1 */
    size_t branches;           /* >= 0 */
    const size_t *branch_rows; /* [branches], each >= 0; borrowed for the call */
} bon_tree;

/* Bytes of scratch, 0 if that overflows: per thread some 4*(5*head_dim + 160) for
 * each token of the longest text, or of a prompt and 256 rows of its branches. */
size_t bon_attention_grad_scratch(const bon_arch *arch, const bon_tree *trees, size_t n_trees,
                                  int threads);

/* dqkv = the gradient of qkv, for one layer and all heads.
 *
 *   trees    [n_trees], n_trees >= 1; every row of the batch is in one tree
 *   qkv      [rows, (heads + 2*kv_heads)*head_dim]: q, k and v of a row side by
 *            side, after norms and rope; q is not scaled
 *   dout     [rows, heads*head_dim] gradient of attention's output
 *   dqkv     [rows, as qkv]; every element is written; overlaps no other array
 *   scratch  bon_attention_grad_scratch bytes, 64-byte aligned
 *   threads  >= 1; a tree's heads (kv_heads of them) are dealt to the threads
 *
 * Cost: five products of 2*head_dim operations for each query head and each pair of
 * a row and a token that it sees.
 */
void bon_attention_backward(const bon_arch *arch, size_t layer, const bon_tree *trees,
                            size_t n_trees, const float *qkv, const float *dout, float *dqkv,
                            void *scratch, int threads);

#endif /* BON_ATTENTION_GRAD_H */
