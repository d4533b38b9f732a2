/* rng.h - counter-based random numbers: Philox 4x64-10.
 *
 * A draw is a pure function of what it is for, so samples do not depend on the
 * batch, the slot, the thread or how many siblings they have:
 *
 *   key      words 0, 1: seed of the run, hash of the prompt's tokens
 *   counter  words 0..3: position of the token in the sample, index of the
 *            sample, equal prompts before this one in the call, stream
 *
 * All of the key and counter is used as it is, nothing is folded together, so
 * two different purposes never share a block. The trainer adds its step as
 * the stream; decoding uses stream 0.
 *
 * Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
 * The same numbers come from numpy.random.Philox(key=[seed, prompt],
 * counter=[position, sample, repeat, stream]), except that the first block of
 * NumPy's generator belongs to counter + 1 and ours to the counter itself. So
 * NumPy's random_raw(4 * n) started one position earlier gives our blocks of n
 * positions in a row, and Generator.random() on a fresh one bon_rng_uniform.
 */
#ifndef BON_RNG_H
#define BON_RNG_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t seed;   /* of the run */
    uint64_t prompt; /* bon_hash_tokens of the prompt */
    uint64_t repeat; /* equal prompts before this one in the call */
    uint64_t sample; /* index of the sample within its prompt */
    uint64_t stream; /* 0 for decoding */
} bon_rng_key;

/* The four 64-bit words of block (key, position). */
void bon_rng_block(const bon_rng_key *key, uint64_t position, uint64_t out[4]);

/* Uniform in [0, 1) with 53 random bits: the upper bits of word 0 of the block. */
double bon_rng_uniform(const bon_rng_key *key, uint64_t position);

/* A 64-bit hash of len token ids: FNV-1a over their little-endian bytes with a
 * final mix (murmur3's fmix64). Stable across machines and versions: stored
 * runs depend on it. */
uint64_t bon_hash_tokens(const int32_t *tokens, size_t len);

#endif /* BON_RNG_H */
