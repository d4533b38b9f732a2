/* test_rng.c - Philox against NumPy's words, the hash, and the shape of the draws. */
#include "rng.h"

#include "check.h"

/* NumPy 2.4: numpy.random.Philox(key=[seed, prompt], counter=c - 1).random_raw(4) with
 * c = [position, sample, repeat, stream] as one 256-bit number, lowest word first. */
static const struct {
    bon_rng_key key; /* seed, prompt, repeat, sample, stream */
    uint64_t position;
    uint64_t words[4];
} golden[] = {
    {{0, 0, 0, 0, 0}, 0,
     {0x16554D9ECA36314CU, 0xDB20FE9D672D0FDCU,
      0xD7E772CEE186176BU, 0x7E68B68AEC7BA23BU}},
    {{1, 0, 0, 0, 0}, 1,
     {0x4DB6A27B756282DFU, 0xD944FA03BABE0E2FU,
      0x27F872E577060D32U, 0x07F697696A0482A2U}},
    {{0, 0, 0, 1, 0}, 0,
     {0xE85FACF8B3B067D6U, 0xFDBC6A61C123B5F8U,
      0x349BDE9A4B8D60C1U, 0x39212690DF8B178AU}},
    {{0, 0, 1, 0, 0}, 0,
     {0x19BF6BE67257DF0BU, 0xECE365A9064C1231U,
      0x236F185079E2A282U, 0xD6338E39FDFEA88AU}},
    {{0, 0, 0, 0, 1}, 0,
     {0x0BCEBD58167D0F31U, 0x7834E0E0D3A96D3FU,
      0x956B8D281546D14FU, 0xA7028EC2003149EAU}},
    {{0x3039U, 0x9E3779B97F4A7C15U, 3, 41, 7}, 1023,
     {0x305E95EA6D6556CFU, 0xAD6DA63E397F64B1U,
      0x2555EDDE4A93F6A1U, 0x48144B5F359F6500U}},
    {{UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX}, UINT64_MAX,
     {0x87B092C3013FE90BU, 0x438C3C67BE8D0224U,
      0x9CC7D7C69CD777B6U, 0xA09CAEBF594F0BA0U}},
    {{0x123456789ABCDEFU, 0xFEDCBA9876543210U, 0, 0x100000000U, 0}, 0x10000000000U,
     {0x3E6EEE18291A0DADU, 0xB96FE3B788082554U,
      0x49B33FE8BC9E0E18U, 0xBE39E4D023DEB2DCU}},
};

static void blocks_are_numpys(void)
{
    for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
        uint64_t words[4];
        bon_rng_block(&golden[i].key, golden[i].position, words);
        for (size_t j = 0; j < 4; j++) CHECK(words[j] == golden[i].words[j]);
        const double u = bon_rng_uniform(&golden[i].key, golden[i].position);
        CHECK(u == (double)(words[0] >> 11) / 9007199254740992.0);
        CHECK(u >= 0.0 && u < 1.0);
    }
}

static void every_field_has_its_own_blocks(void)
{
    bon_rng_key keys[6] = {{0}};
    keys[1].seed = keys[2].prompt = keys[3].repeat = keys[4].sample = keys[5].stream = 1;
    for (size_t i = 0; i < 6; i++)
        for (size_t j = 0; j < 6; j++)
            CHECK((i == j) == (bon_rng_uniform(&keys[i], 2) == bon_rng_uniform(&keys[j], 2)));
}

/* Chi-square of one field counting up, the others 0: 255 degrees of freedom, where 99.99 %
 * lie below 347. */
static void draws_along_a_field_are_uniform(void)
{
    enum { BINS = 256, DRAWS = 1 << 17 };
    for (size_t field = 0; field < 6; field++) {
        int count[BINS] = {0};
        for (uint64_t i = 0; i < DRAWS; i++) {
            uint64_t at[6] = {0};
            at[field] = i;
            const bon_rng_key key = {at[0], at[1], at[2], at[3], at[4]};
            count[(size_t)(bon_rng_uniform(&key, at[5]) * BINS)]++;
        }
        double chi_square = 0.0;
        for (size_t b = 0; b < BINS; b++) {
            const double want = (double)DRAWS / BINS, off = count[b] - want;
            chi_square += off * off / want;
        }
        CHECK(chi_square < 347.0);
    }
}

/* From a separate implementation of FNV-1a and fmix64 over the bytes in Python. */
static void hashes_are_stable(void)
{
    const int32_t zeros[] = {0, 0}, few[] = {1, 2, 3}, words[] = {128000, 9906, 1917};
    const int32_t ends[] = {-1, INT32_MAX, INT32_MIN};
    CHECK(bon_hash_tokens(NULL, 0) == 0xEFD01F60BA992926U);
    CHECK(bon_hash_tokens(zeros, 1) == 0x4D33A93727192487U);
    CHECK(bon_hash_tokens(zeros, 2) == 0x7BD3144F29C0CC9EU);
    CHECK(bon_hash_tokens(few, 3) == 0xF50E90AAE860FE4CU);
    CHECK(bon_hash_tokens(ends, 3) == 0xF5B13A8C5E89FB89U);
    CHECK(bon_hash_tokens(words, 3) == 0xA0D6B183B50036F2U);
}

static void hashes_of_different_prompts_differ_in_half_their_bits(void)
{
    int32_t tokens[8] = {5, 17, 3, 900, 128255, 0, 0, 42};
    const uint64_t base = bon_hash_tokens(tokens, 8);
    int bits = 0;
    for (size_t i = 0; i < 8; i++)
        for (int bit = 0; bit < 31; bit++) {
            tokens[i] ^= 1 << bit;
            bits += __builtin_popcountll(bon_hash_tokens(tokens, 8) ^ base);
            tokens[i] ^= 1 << bit;
        }
    const double mean = bits / (8.0 * 31.0);
    CHECK(mean > 30.5 && mean < 33.5);
}

int main(void)
{
    blocks_are_numpys();
    every_field_has_its_own_blocks();
    draws_along_a_field_are_uniform();
    hashes_are_stable();
    hashes_of_different_prompts_differ_in_half_their_bits();
    return 0;
}
