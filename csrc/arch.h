/* arch.h - an architecture as data. The forward pass branches on these fields
 * and on nothing else; it does not know the names of models.
 *
 * bonaware/models/NAME.py turns a config.json into these fields (dataclass Arch
 * in bonaware/models/__init__.py: same names, same order, same meaning).
 */
#ifndef BON_ARCH_H
#define BON_ARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { BON_SILU, BON_GELU_TANH } bon_activation;

#define BON_MAX_ROPES 2

typedef struct {
    size_t vocab;
    size_t hidden;
    size_t layers;
    size_t heads;
    size_t kv_heads;      /* divides heads */
    size_t head_dim;      /* even */
    size_t intermediate;  /* width of the MLP */
    size_t max_positions; /* context: prompt + new tokens */
    size_t labels;        /* 0: predicts tokens; else a score head of so many labels
                             in place of the vocabulary projection */

    bon_activation activation; /* of the gate: act(gate) * up */
    float norm_eps;
    float norm_offset;    /* RMSNorm multiplies by (norm_offset + weight): 0, Gemma 1 */
    bool qk_norm;         /* RMSNorm over head_dim of q and k before rope */
    bool post_norms;      /* a norm behind attention and one behind the MLP, before
                             each is added back (Gemma 2 and 3) */
    bool qkv_bias, o_bias, mlp_bias;
    bool tied;            /* vocabulary projection = embedding */

    float embed_scale;    /* embeddings are multiplied by it: 1, Gemma sqrt(hidden) */
    float attn_scale;     /* q.k is multiplied by it */
    float attn_softcap;   /* c*tanh(s/c) on scaled scores; 0 = none */
    float final_softcap;  /* the same on logits; 0 = none */

    /* Per layer [layers]: window 0 = all earlier tokens, w = the last w tokens
     * with the token itself; rope = which of the frequency tables. */
    const size_t *window;
    const uint8_t *rope;

    /* Rotary embedding: angle = position * frequency, halves (i, i + head_dim/2)
     * turn together; cos and sin are multiplied by rope_scale. */
    size_t ropes;                              /* 1 or 2 */
    const float *rope_freq[BON_MAX_ROPES];     /* [head_dim/2] each */
    float rope_scale[BON_MAX_ROPES];
} bon_arch;

static inline size_t bon_q_width(const bon_arch *a) { return a->heads * a->head_dim; }
static inline size_t bon_kv_width(const bon_arch *a) { return a->kv_heads * a->head_dim; }
static inline size_t bon_qkv_width(const bon_arch *a)
{
    return bon_q_width(a) + 2 * bon_kv_width(a);
}

#endif /* BON_ARCH_H */
