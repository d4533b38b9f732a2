/* rng.c - Philox 4x64-10 and the hash of a prompt; see rng.h. */
#include "rng.h"

__extension__ typedef unsigned __int128 wide;

/* Multipliers and key increments of Philox 4x64 (the increments are the golden ratio
 * minus 1 and sqrt(3) - 1, times 2^64). */
#define PHILOX_M0 UINT64_C(0xD2E7470EE14C6C93)
#define PHILOX_M1 UINT64_C(0xCA5A826395121157)
#define PHILOX_W0 UINT64_C(0x9E3779B97F4A7C15)
#define PHILOX_W1 UINT64_C(0xBB67AE8584CAA73B)
#define PHILOX_ROUNDS 10

#define FNV_OFFSET UINT64_C(14695981039346656037)
#define FNV_PRIME UINT64_C(1099511628211)

void bon_rng_block(const bon_rng_key *key, uint64_t position, uint64_t out[4])
{
    uint64_t c0 = position, c1 = key->sample, c2 = key->repeat, c3 = key->stream;
    uint64_t k0 = key->seed, k1 = key->prompt;
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        const wide p0 = (wide)PHILOX_M0 * c0, p1 = (wide)PHILOX_M1 * c2;
        c0 = (uint64_t)(p1 >> 64) ^ c1 ^ k0;
        c2 = (uint64_t)(p0 >> 64) ^ c3 ^ k1;
        c1 = (uint64_t)p1;
        c3 = (uint64_t)p0;
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

double bon_rng_uniform(const bon_rng_key *key, uint64_t position)
{
    uint64_t words[4];
    bon_rng_block(key, position, words);
    return (double)(words[0] >> 11) * 0x1p-53;
}

/* Every bit of h reaches every bit of the result. */
static uint64_t fmix64(uint64_t h)
{
    h = (h ^ (h >> 33)) * UINT64_C(0xFF51AFD7ED558CCD);
    h = (h ^ (h >> 33)) * UINT64_C(0xC4CEB9FE1A85EC53);
    return h ^ (h >> 33);
}

uint64_t bon_hash_tokens(const int32_t *tokens, size_t len)
{
    uint64_t h = FNV_OFFSET;
    for (size_t i = 0; i < len; i++) {
        const uint32_t token = (uint32_t)tokens[i];
        for (unsigned shift = 0; shift < 32; shift += 8)
            h = (h ^ (token >> shift & 0xFF)) * FNV_PRIME;
    }
    return fmix64(h);
}
