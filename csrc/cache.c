/* cache.c - the arena of key-value blocks, and sequences over it.
 *
 * The arena is one piece (pages.h): the system gives memory to the pages that
 * are written, so a generous number of blocks costs nothing until it is used.
 * Free blocks form a stack, so a freed block, still warm, is the next one taken.
 */
#include "cache.h"

#include <stdlib.h>
#include <string.h>

#include "gemm.h"
#include "pages.h"

struct bon_cache {
    size_t layers, kv_heads, head_dim;
    bon_dtype dtype;
    size_t key_bytes;  /* of one (layer, head) in a block */
    size_t head_bytes; /* keys and values of one (layer, head) */
    size_t block_bytes;
    size_t bytes;      /* of the arena */
    char *arena;
    uint32_t *free_stack;
    size_t free_count;
    uint32_t *references; /* [blocks] */
};

static size_t padded(size_t head_dim)
{
    return (head_dim + BON_PANEL - 1) / BON_PANEL * BON_PANEL;
}

size_t bon_cache_block_bytes(size_t layers, size_t kv_heads, size_t head_dim, bon_dtype dtype)
{
    if (head_dim > SIZE_MAX / 4 - BON_PANEL) return 0;
    size_t bytes = head_dim + padded(head_dim);
    if (__builtin_mul_overflow(bytes, BON_BLOCK * bon_dtype_size(dtype), &bytes)
        || __builtin_mul_overflow(bytes, kv_heads, &bytes)
        || __builtin_mul_overflow(bytes, layers, &bytes))
        return 0;
    return bytes;
}

bon_status bon_cache_create(size_t layers, size_t kv_heads, size_t head_dim, bon_dtype dtype,
                            size_t blocks, bon_cache **out)
{
    *out = NULL;
    const size_t block_bytes = bon_cache_block_bytes(layers, kv_heads, head_dim, dtype);
    size_t bytes;
    if (block_bytes == 0 || blocks < 1 || blocks >= UINT32_MAX
        || !(dtype == BON_F32 || (dtype == BON_BF16 && head_dim % 2 == 0)))
        return BON_ERR_DOMAIN;
    if (__builtin_mul_overflow(block_bytes, blocks, &bytes)) return BON_ERR_MEMORY;

    bon_cache *cache = calloc(1, sizeof *cache);
    if (cache == NULL) return BON_ERR_MEMORY;
    cache->layers = layers;
    cache->kv_heads = kv_heads;
    cache->head_dim = head_dim;
    cache->dtype = dtype;
    cache->key_bytes = BON_BLOCK * head_dim * bon_dtype_size(dtype);
    cache->head_bytes = block_bytes / layers / kv_heads;
    cache->block_bytes = block_bytes;
    cache->free_stack = malloc(blocks * sizeof *cache->free_stack);
    cache->references = calloc(blocks, sizeof *cache->references);
    cache->arena = bon_pages_alloc(bytes);
    cache->bytes = bytes;
    if (!cache->arena || !cache->free_stack || !cache->references) {
        bon_cache_destroy(cache);
        return BON_ERR_MEMORY;
    }
    for (size_t i = 0; i < blocks; i++) /* block 0 on top */
        cache->free_stack[i] = (uint32_t)(blocks - 1 - i);
    cache->free_count = blocks;
    *out = cache;
    return BON_OK;
}

void bon_cache_destroy(bon_cache *cache)
{
    if (cache == NULL) return;
    bon_pages_free(cache->arena, cache->bytes);
    free(cache->free_stack);
    free(cache->references);
    free(cache);
}

bon_dtype bon_cache_dtype(const bon_cache *cache) { return cache->dtype; }

size_t bon_cache_free_blocks(const bon_cache *cache) { return cache->free_count; }

/* -- sequences ------------------------------------------------------------- */

static bon_status grow_table(bon_seq *seq, size_t count)
{
    if (count <= seq->capacity) return BON_OK;
    const size_t capacity = count + count / 2;
    uint32_t *blocks = realloc(seq->blocks, capacity * sizeof *blocks);
    if (blocks == NULL) return BON_ERR_MEMORY;
    seq->blocks = blocks;
    seq->capacity = capacity;
    return BON_OK;
}

bon_status bon_seq_reserve(bon_cache *cache, bon_seq *seq, size_t tokens)
{
    const size_t need = bon_blocks_for(tokens);
    if (need <= seq->count) return BON_OK;
    if (need - seq->count > cache->free_count) return BON_ERR_FULL;
    const bon_status status = grow_table(seq, need);
    if (status != BON_OK) return status;
    while (seq->count < need) {
        const uint32_t block = cache->free_stack[--cache->free_count];
        cache->references[block] = 1;
        seq->blocks[seq->count++] = block;
    }
    return BON_OK;
}

bon_status bon_seq_fork(bon_cache *cache, const bon_seq *src, bon_seq *dst)
{
    const size_t full = src->length / BON_BLOCK;
    bon_status status = grow_table(dst, full + 1);
    if (status != BON_OK) return status;
    for (; dst->count < full; dst->count++) {
        dst->blocks[dst->count] = src->blocks[dst->count];
        cache->references[src->blocks[dst->count]]++;
    }
    if (src->length > full * BON_BLOCK) {
        status = bon_seq_reserve(cache, dst, src->length);
        if (status != BON_OK) {
            bon_seq_free(cache, dst);
            return status;
        }
        memcpy(cache->arena + dst->blocks[full] * cache->block_bytes,
               cache->arena + src->blocks[full] * cache->block_bytes, cache->block_bytes);
    }
    dst->length = src->length;
    return BON_OK;
}

void bon_seq_free(bon_cache *cache, bon_seq *seq)
{
    while (seq->count > 0) {
        const uint32_t block = seq->blocks[--seq->count];
        if (--cache->references[block] == 0)
            cache->free_stack[cache->free_count++] = block;
    }
    free(seq->blocks);
    *seq = (bon_seq){0};
}

/* -- panels ---------------------------------------------------------------- */

void *bon_cache_keys(const bon_cache *cache, uint32_t block, size_t layer, size_t head)
{
    const size_t at = cache->layers == 1 ? 0 : layer;
    return cache->arena + block * cache->block_bytes
           + (at * cache->kv_heads + head) * cache->head_bytes;
}

void *bon_cache_values(const bon_cache *cache, uint32_t block, size_t layer, size_t head)
{
    return (char *)bon_cache_keys(cache, block, layer, head) + cache->key_bytes;
}

/* k and v are the panels of a token's block. */
static void write_f32(size_t dim, size_t token, const float *keys, const float *values, float *k,
                      float *v)
{
    k += token / BON_PANEL * dim * BON_PANEL + token % BON_PANEL;
    for (size_t i = 0; i < dim; i++) k[i * BON_PANEL] = keys[i];
    v += token * BON_PANEL;
    for (size_t i = 0; i < dim; i++)
        v[i / BON_PANEL * BON_BLOCK * BON_PANEL + i % BON_PANEL] = values[i];
}

/* The same, rounded. A pair of values belongs to two tokens, which two threads may be writing. */
static void write_bf16(size_t dim, size_t token, const float *keys, const float *values,
                       uint16_t *k, uint16_t *v, bool last)
{
    k += token / BON_PANEL * dim * BON_PANEL + token % BON_PANEL * 2;
    for (size_t i = 0; i < dim; i += 2) {
        k[i * BON_PANEL] = bon_f32_to_bf16(keys[i]);
        k[i * BON_PANEL + 1] = bon_f32_to_bf16(keys[i + 1]);
    }
    v += token / 2 * 2 * BON_PANEL + token % 2;
    const bool clear = last && token % 2 == 0;
    for (size_t i = 0; i < dim; i++) {
        uint16_t *at = v + i / BON_PANEL * BON_BLOCK * BON_PANEL + i % BON_PANEL * 2;
        *at = bon_f32_to_bf16(values[i]);
        if (clear) at[1] = 0;
    }
}

void bon_cache_write(bon_cache *cache, const bon_seq *seq, size_t position, size_t layer,
                     size_t head, const float *keys, const float *values, bool last)
{
    const size_t dim = cache->head_dim, token = position % BON_BLOCK;
    const uint32_t block = seq->blocks[position / BON_BLOCK];
    void *k = bon_cache_keys(cache, block, layer, head);
    void *v = bon_cache_values(cache, block, layer, head);
    if (cache->dtype == BON_F32) write_f32(dim, token, keys, values, k, v);
    else write_bf16(dim, token, keys, values, k, v, last);
}
