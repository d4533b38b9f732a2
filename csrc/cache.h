/* cache.h - keys and values of past tokens, in blocks that sequences share.
 *
 * One arena is cut into blocks of BON_BLOCK tokens. A block holds the keys and
 * values of its tokens for every layer and key-value head, laid out as panels
 * that kernels.h reads, because attention is two products: scores = q K^T and
 * output = p V.
 *
 *           per (layer, head)          float32          bfloat16
 *   keys    BON_BLOCK/16 panels        [head_dim][16]   [head_dim/2][16][2]    lane = token
 *   values  ceil(head_dim/16) panels   [BON_BLOCK][16]  [BON_BLOCK/2][16][2]   lane = dimension
 *
 * In bfloat16 numbers are rounded to nearest even, and what stands in a pair beside the value of
 * a token that was written as the last is 0: a kernel may read it.
 *
 * A sequence (bon_seq) is a table of block numbers and a length. Blocks are
 * counted: a fork shares the full blocks of its parent and copies the last one
 * if it is partly filled, so parent and fork then grow apart without seeing
 * each other. Memory of the arena is touched only where blocks are used.
 *
 *       prompt   [b0][b1][b2 ..]           one prompt, held once
 *       sample 0         own [b7][b9 .]    tokens behind the prompt
 *       sample 1         own [b8]
 *       fork of sample 0 own [b7][b4 .]    b7 shared, b9 copied to b4
 */
#ifndef BON_CACHE_H
#define BON_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gemm.h"
#include "status.h"

#define BON_BLOCK 32 /* tokens per block: two panels of keys */

typedef struct bon_cache bon_cache;

typedef struct {
    uint32_t *blocks; /* [capacity], the first `count` are held */
    size_t count, capacity;
    size_t length;    /* tokens written */
} bon_seq;

/* Bytes of one block of BON_F32 or BON_BF16, for which head_dim is even; 0 if that overflows. */
size_t bon_cache_block_bytes(size_t layers, size_t kv_heads, size_t head_dim, bon_dtype dtype);

/* An arena of `blocks` blocks, 1 <= blocks < 2^32. BON_ERR_MEMORY if the
 * address space is refused. With layers = 1 all layers of a model share one place,
 * each writing over the one before: training needs no more. */
BON_MUST_CHECK bon_status bon_cache_create(size_t layers, size_t kv_heads, size_t head_dim,
                                           bon_dtype dtype, size_t blocks, bon_cache **out);
void bon_cache_destroy(bon_cache *cache); /* accepts NULL */
bon_dtype bon_cache_dtype(const bon_cache *cache);

size_t bon_cache_free_blocks(const bon_cache *cache);
static inline size_t bon_blocks_for(size_t tokens)
{
    return tokens / BON_BLOCK + (tokens % BON_BLOCK != 0);
}

/* Makes room for `tokens` tokens in all. BON_ERR_FULL (sequence unchanged) if
 * too few blocks are free, BON_ERR_MEMORY if the table cannot grow. */
BON_MUST_CHECK bon_status bon_seq_reserve(bon_cache *cache, bon_seq *seq, size_t tokens);

/* dst, empty, becomes a fork of src. Errors as bon_seq_reserve; dst then empty. */
BON_MUST_CHECK bon_status bon_seq_fork(bon_cache *cache, const bon_seq *src, bon_seq *dst);

/* Gives all blocks back and frees the table; the sequence is empty again. */
void bon_seq_free(bon_cache *cache, bon_seq *seq);

/* The panels of a block. Strides: keys head_dim*16 numbers, values BON_BLOCK*16. */
void *bon_cache_keys(const bon_cache *cache, uint32_t block, size_t layer, size_t head);
void *bon_cache_values(const bon_cache *cache, uint32_t block, size_t layer, size_t head);

/* Stores the keys and values [head_dim] of one head of a token at a position that
 * has been reserved; last: no token follows it so far. Does not change the length. Tokens and
 * heads may be written by several threads at a time. */
void bon_cache_write(bon_cache *cache, const bon_seq *seq, size_t position, size_t layer,
                     size_t head, const float *keys, const float *values, bool last);

#endif /* BON_CACHE_H */
