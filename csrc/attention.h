/* attention.h - many rows look at one shared prompt and at their own tokens.
 *
 * A batch is a list of runs; a run is some consecutive tokens of one sequence:
 * a chunk of a prompt, one token of each live sample, or a question behind a
 * sample. The keys that a run sees are its prefix (the prompt, shared by all
 * samples of it) and its own tokens, causally, inside the layer's window.
 *
 * Runs with the same prefix that stand next to each other are served together:
 * their scores against the prompt are one matrix product. A row's result
 * depends on that row, its prefix and its own tokens, and not on its
 * neighbours: every sum runs over the columns of the row in their fixed order,
 * and columns that only a neighbour sees have weight exactly 0.
 */
#ifndef BON_ATTENTION_H
#define BON_ATTENTION_H

#include "arch.h"
#include "cache.h"
#include "status.h"

typedef struct {
    const bon_seq *prefix; /* shared prompt, or NULL */
    bon_seq *own;          /* room for length + rows is reserved; length is that
                              before the run */
    size_t first_row;      /* in the batch */
    size_t rows;           /* >= 1 */
} bon_run;

/* Position in the text of the run's first row. */
static inline size_t bon_run_position(const bon_run *run)
{
    return (run->prefix ? run->prefix->length : 0) + run->own->length;
}

/* Bytes of scratch for batches of up to `rows` rows that see up to `context` tokens; 0 if that
 * overflows. */
size_t bon_attention_scratch(const bon_arch *arch, size_t rows, size_t context, int threads);

/* out[row] = attention of qkv[row] in one layer, all heads.
 *
 *   dot      with a cache of bfloat16: queries and the softmax's weights are rounded to
 *            bfloat16 too, and products are the processor's (kernels.h); else both stay float32
 *   qkv      [rows, heads*head_dim | kv_heads*head_dim | kv_heads*head_dim], after rope; keys
 *            and values are stored in the cache first, all before any is read: a prefix may be
 *            what another run of the batch writes
 *   out      [rows, heads*head_dim]; may not overlap qkv
 *   scratch  bon_attention_scratch bytes, 64-byte aligned
 */
void bon_attention(bon_cache *cache, bool dot, const bon_arch *arch, size_t layer,
                   const bon_run *runs, size_t n_runs, const float *qkv, float *out,
                   void *scratch, size_t context, int threads);

#endif /* BON_ATTENTION_H */
