/* model_parts.h - what a model is made of; for the files that compute with it.
 *
 * Private to model.c (weights), forward.c, backward.c and learner.c: everybody
 * else sees model.h.
 */
#ifndef BON_MODEL_PARTS_H
#define BON_MODEL_PARTS_H

#include "lora.h"
#include "model.h"

/* y = x W^T + b, and adapters beside it. */
typedef struct {
    bon_matrix *weight; /* [outputs, inputs] */
    float *bias;        /* [outputs] or NULL */
    bon_adapter adapters[BON_ADAPTERS]; /* empty where a slot has none; by slot */
} bon_linear;

typedef struct {
    bon_linear qkv;     /* [(heads + 2*kv_heads) * head_dim, hidden] */
    bon_linear o;       /* [hidden, heads*head_dim] */
    bon_linear gate_up; /* [2*intermediate, hidden] */
    bon_linear down;    /* [hidden, intermediate] */
    float *q_norm, *k_norm;            /* [head_dim] or NULL */
    float *attn_norm, *attn_post_norm; /* [hidden]; post: or NULL */
    float *mlp_norm, *mlp_post_norm;
    uint64_t is_set; /* bit per slot */
} bon_layer;

struct bon_model {
    bon_arch arch;
    size_t *window;           /* [layers], arch.window points here */
    uint8_t *rope;            /* [layers] */
    float *rope_freq[BON_MAX_ROPES];
    bon_dtype dtype;
    int threads;
    bon_matrix *embed, *head; /* the same matrix when tied; head: NULL with labels */
    float *score;             /* [labels, hidden] or NULL */
    float *final_norm;
    uint64_t is_set;
    bon_layer *layers;
    size_t rank; /* the highest of an adapter; 0: there is none */
};

/* Where a slot lives: in a matrix or a vector, from output or element `first` on. */
typedef struct {
    bon_matrix *matrix; /* or NULL */
    float *vector;
    size_t first;
} bon_place;
bon_place bon_model_place(const bon_model *model, bon_slot slot, size_t layer);

/* Bound that keeps every product of two dimensions far from overflow. */
#define BON_MAX_DIMENSION ((size_t)1 << 24)

/* Where the steps of one layer leave their results, a row per token. For inference
 * several of them are the same buffer, and all layers share them; the backward pass
 * keeps them apart (backward.c). */
typedef struct {
    float *x;        /* [hidden] the residual stream before the layer */
    float *qkv;      /* [qkv_width] before norms and rope */
    float *turned;   /* [qkv_width] and behind them; may be qkv */
    float *attended; /* [q_width] what attention gives */
    float *o;        /* [hidden] its projection, before the post-norm */
    float *middle;   /* [hidden] the stream between attention and MLP; may be x */
    float *gate_up;  /* [2*intermediate] gate | up, before the activation */
    float *gated;    /* [intermediate], or gate_up: then in its first half */
    float *down;     /* [hidden] its projection, before the post-norm; may be o */
    float *out;      /* [hidden] the stream behind the layer; may be x */
} bon_results;

/* The adapter of a slot BON_Q ... BON_DOWN; perhaps empty. */
bon_adapter *bon_model_adapter(const bon_model *model, bon_slot slot, size_t layer);
static inline bool bon_is_adapter_a(bon_slot slot) { return slot >= BON_Q_A && slot <= BON_DOWN_A; }
static inline bool bon_is_adapter_b(bon_slot slot) { return slot >= BON_Q_B && slot <= BON_DOWN_B; }

/* A batch on its way through the layers. */
typedef struct {
    const bon_model *model;
    bon_work *work;
    bon_cache *cache;
    bon_phase phase;
    const bon_run *runs;
    size_t n_runs;
    size_t rows, context;
    const bon_poll *poll;
} bon_pass;

/* Indexes the rows and finds their angles; x [rows, hidden] gets the embeddings. */
void bon_forward_begin(bon_pass *pass, const int32_t *tokens, float *x);
/* One layer, from at->x to at->out. */
BON_MUST_CHECK bon_status bon_forward_layer(const bon_pass *pass, size_t layer,
                                            const bon_results *at);

/* y = norm(x) for rows of `hidden`. */
void bon_norm_rows(const bon_arch *a, float *y, const float *x, const float *weight,
                   size_t rows, int threads);
/* to = act(gate) * up; ld is the distance of its rows. */
void bon_gate_rows(const bon_arch *a, const float *gate_up, float *to, size_t ld, size_t rows,
                   int threads);
/* Normalises and turns q and k of every row; v is copied. */
void bon_turn_rows(const bon_pass *pass, size_t layer, const float *qkv, float *turned);
/* cos | sin of a row's angles in a layer, [head_dim]. */
const float *bon_turns_of(const bon_pass *pass, size_t layer, size_t row);

/* Scratch for adapters; without `gradient`. */
bon_adapter_scratch bon_work_adapters(const bon_work *work);

/* The workspace's own buffers, as a pass without a backward pass uses them. */
bon_results bon_work_results(const bon_work *work);

#endif /* BON_MODEL_PARTS_H */
