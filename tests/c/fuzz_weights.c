/* fuzz_weights.c - mutated safetensors files: each is read whole or refused in a sentence.
 *
 *   fuzz_weights [cases [seed]]      10000 cases of seed 1
 *
 * Valid files are built, mutated, written to a file in memory and opened. What
 * opens must keep its promises: every tensor inside the file, found by its name,
 * all bytes readable. Built with sanitizers by `make fuzz`. Case i of a seed is
 * always the same; a failure prints both, and a case that takes longer than
 * SECONDS_PER_CASE is a failure.
 */
#define _GNU_SOURCE /* memfd_create */

#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "check.h"
#include "weights.h"

#define MAX_BYTES ((size_t)1 << 16)
#define SECONDS_PER_CASE 5

typedef struct {
    unsigned char bytes[MAX_BYTES];
    size_t size;
} text;

static int file;
static char path[64]; /* of file */
static uint64_t state, seed, case_number;
static bool done;

/* -- randomness ------------------------------------------------------------ */

/* SplitMix64: Steele, Lea & Flood, Fast splittable pseudorandom number
 * generators, OOPSLA 2014. */
static uint64_t draw(void)
{
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static size_t below(size_t n) { return n > 0 ? (size_t)(draw() % n) : 0; }

/* -- valid files ----------------------------------------------------------- */

static void append(text *t, const void *bytes, size_t size)
{
    if (size > MAX_BYTES - t->size) size = MAX_BYTES - t->size;
    memcpy(t->bytes + t->size, bytes, size);
    t->size += size;
}

static void append_string(text *t, const char *string) { append(t, string, strlen(string)); }

static void append_tensor(text *t, size_t index, size_t *offset)
{
    static const struct { const char *name; size_t size; } types[] = {
        {"F32", 4}, {"BF16", 2}, {"F16", 2}, {"I64", 8}, {"U8", 1}, {"BOOL", 1}};
    static const char *const names[] = {"model.layers.%zu.mlp.up_proj.weight", "t%zu",
                                        "\\u0061\\ud83d\\ude00%zu", "\xE4\xBD\xA0\\n%zu"};
    const size_t type = below(6), rows = below(5), cols = 1 + below(7);
    const size_t end = *offset + rows * cols * types[type].size;
    char name[64], entry[256];
    (void)snprintf(name, sizeof name, names[below(4)], index); /* one of the four literals */
    (void)snprintf(entry, sizeof entry,
                   "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%zu,%zu],\"data_offsets\":[%zu,%zu]}",
                   index ? "," : "", name, types[type].name, rows, cols, *offset, end);
    append_string(t, entry);
    *offset = end;
}

static void set_header_size(text *t, uint64_t size)
{
    for (size_t i = 0; i < 8 && i < t->size; i++) t->bytes[i] = (unsigned char)(size >> (8 * i));
}

static uint64_t header_size(const text *t)
{
    uint64_t size = 0;
    for (size_t i = 8; i-- > 0;) size = size << 8 | (i < t->size ? t->bytes[i] : 0);
    return size;
}

static void build_valid_file(text *t)
{
    const size_t tensors = below(9);
    size_t offset = 0;
    t->size = 0;
    append(t, "\0\0\0\0\0\0\0\0{", 9);
    for (size_t i = 0; i < tensors; i++) append_tensor(t, i, &offset);
    if (below(2))
        append_string(t, tensors ? ",\"__metadata__\":{\"format\":\"pt\"}" : "\"__metadata__\":null");
    append_string(t, "}");
    while (t->size % 8) append_string(t, " ");
    set_header_size(t, t->size - 8);
    for (size_t i = 0; i < offset; i++) append(t, "\x7F", 1);
}

/* -- mutations ------------------------------------------------------------- */

/* The header as it is now, which a mutation may have moved beyond the file. */
static size_t header_end(const text *t)
{
    const uint64_t size = header_size(t);
    return size <= t->size - (t->size < 8 ? t->size : 8) ? 8 + (size_t)size : t->size;
}

/* Replaces removed bytes at a place by others. */
static void splice(text *t, size_t at, size_t removed, const void *bytes, size_t size)
{
    static unsigned char rest[MAX_BYTES];
    if (at > t->size) at = t->size;
    if (removed > t->size - at) removed = t->size - at;
    const size_t left = t->size - at - removed;
    memcpy(rest, t->bytes + at + removed, left);
    t->size = at;
    append(t, bytes, size);
    append(t, rest, left);
}

static void flip_bits(text *t)
{
    for (size_t i = 1 + below(4); i-- > 0 && t->size > 0;)
        t->bytes[below(t->size)] ^= (unsigned char)(1u << below(8));
}

static void truncate_file(text *t) { t->size = below(t->size + 1); }

static void extend_file(text *t)
{
    for (size_t i = below(40); i-- > 0;) append(t, "\0", 1);
}

static void edit_length(text *t)
{
    static const uint64_t sizes[] = {0, 1, 2, 7, 100000000, 100000001, UINT64_C(1) << 32,
                                     UINT64_MAX, UINT64_MAX - 7, UINT64_MAX - 8, INT64_MAX};
    const size_t choice = below(14);
    set_header_size(t, choice < 11 ? sizes[choice] : header_size(t) + choice - 12);
}

static void copy_range(text *t)
{
    unsigned char piece[64];
    const size_t from = below(t->size + 1), left = t->size - from;
    const size_t size = below((left < sizeof piece ? left : sizeof piece) + 1);
    memcpy(piece, t->bytes + from, size);
    splice(t, 8 + below(t->size), below(2) ? size : 0, piece, size);
}

static void remove_range(text *t) { splice(t, 8 + below(t->size), 1 + below(20), "", 0); }

/* A run of digits of the header becomes another number. */
static void edit_number(text *t)
{
    static const char *const numbers[] = {
        "0", "1", "-1", "00", "1.5", "1e9", "9", "100", "4294967296", "9223372036854775807",
        "9223372036854775808", "18446744073709551615", "18446744073709551616",
        "99999999999999999999999999", "null", "\"1\"", "[1]", ""};
    const size_t end = header_end(t);
    size_t at = 8 + below(end);
    while (at < end && (t->bytes[at] < '0' || t->bytes[at] > '9')) at++;
    size_t digits = 0;
    while (at + digits < end && t->bytes[at + digits] >= '0' && t->bytes[at + digits] <= '9')
        digits++;
    const char *number = numbers[below(sizeof numbers / sizeof *numbers)];
    splice(t, at, digits, number, strlen(number));
}

static void insert_token(text *t)
{
    static const char *const tokens[] = {
        "{", "}", "[", "]", ",", ":", "\"", "\\", " ", "\t", "\n", "null", "true", "1e999",
        "\\u0000", "\\ud800", "\\udfff", "\\u", "\xFF", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90",
        "\xEF\xBB\xBF", "\x01", "\"dtype\":\"F32\",", "\"shape\":[],", "\"data_offsets\":[0,0],",
        "\"__metadata__\":{},", "\"x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},",
        "\"F4\"", "[[[[[[[[[[[[[[[[", "0,0,0,0,0,0,0,0,0,0,", "//", "'", "NaN"};
    const char *token = tokens[below(sizeof tokens / sizeof *tokens)];
    const size_t end = header_end(t);
    splice(t, 8 + below(end), below(2), token, strlen(token));
}

/* Two pieces of the header between punctuation change places. */
static void swap_tokens(text *t)
{
    const size_t end = header_end(t);
    size_t start[2], size[2];
    for (int i = 0; i < 2; i++) {
        start[i] = 8 + below(end);
        while (start[i] < end && strchr(",:[]{}", t->bytes[start[i]])) start[i]++;
        size[i] = 0;
        while (start[i] + size[i] < end && size[i] < 64
               && !strchr(",:[]{}", t->bytes[start[i] + size[i]]))
            size[i]++;
    }
    const int first = start[0] <= start[1] ? 0 : 1, second = 1 - first;
    if (start[first] + size[first] > start[second] || start[second] + size[second] > t->size)
        return;
    unsigned char pieces[2][64];
    for (int i = 0; i < 2; i++) memcpy(pieces[i], t->bytes + start[i], size[i]);
    splice(t, start[second], size[second], pieces[first], size[first]);
    splice(t, start[first], size[first], pieces[second], size[second]);
}

/* The end of another valid file takes the place of this one's. */
static void cross_over(text *t)
{
    static text other;
    build_valid_file(&other);
    const size_t from = below(other.size);
    splice(t, below(t->size + 1), t->size, other.bytes + from, other.size - from);
}

static void mutate(text *t)
{
    static void (*const mutations[])(text *) = {
        flip_bits, truncate_file, extend_file, edit_length, copy_range, remove_range,
        edit_number, edit_number, insert_token, insert_token, swap_tokens, cross_over};
    for (size_t i = 1 + below(3); i-- > 0;) {
        const size_t header = header_end(t), before = t->size;
        mutations[below(sizeof mutations / sizeof *mutations)](t);
        /* Mostly repair the length, so that the header behind it is reached. */
        if (t->size != before && t->size >= 8 && below(4)) {
            const size_t moved = header + t->size - before;
            set_header_size(t, moved >= 8 && moved <= t->size + before ? moved - 8 : 0);
        }
    }
}

/* -- one case -------------------------------------------------------------- */

static void write_file(const text *t)
{
    CHECK(ftruncate(file, 0) == 0);
    CHECK(pwrite(file, t->bytes, t->size, 0) == (ssize_t)t->size);
}

static void check_tensor(const bon_weights *w, const bon_tensor *tensor, size_t file_size)
{
    CHECK(bon_weights_find(w, tensor->name) == tensor);
    CHECK(tensor->dtype != NULL && tensor->item_size >= 1 && tensor->ndim <= BON_MAX_DIMS);
    CHECK(tensor->bytes <= file_size);
    bool empty = false;
    for (size_t i = 0; i < tensor->ndim; i++) empty |= tensor->shape[i] == 0;
    size_t bytes = empty ? 0 : tensor->item_size;
    for (size_t i = 0; i < tensor->ndim && !empty; i++) bytes *= tensor->shape[i];
    CHECK(tensor->bytes == bytes);
    unsigned sum = 0;
    for (size_t i = 0; i < tensor->bytes; i++) sum += ((const unsigned char *)tensor->data)[i];
    bon_weights_release(w, tensor);
    for (size_t i = 0; i < tensor->bytes; i++) sum -= ((const unsigned char *)tensor->data)[i];
    CHECK(sum == 0);
}

static bool open_and_check(const text *t)
{
    bon_weights *w;
    char message[512];
    memset(message, 'x', sizeof message);
    const bon_status status = bon_weights_open(path, &w, message, sizeof message);
    CHECK(memchr(message, '\0', sizeof message) != NULL);
    if (status != BON_OK) {
        CHECK(status == BON_ERR_FORMAT && w == NULL && message[0] != '\0');
        return false;
    }
    size_t bytes = 0;
    for (size_t i = 0; i < bon_weights_count(w); i++) {
        check_tensor(w, bon_weights_at(w, i), t->size);
        bytes += bon_weights_at(w, i)->bytes;
    }
    CHECK(8 + header_size(t) + bytes == t->size);
    bon_weights_close(w);
    return true;
}

/* Runs at exit, also when a CHECK or a sanitizer ends the program. */
static void say_case(void)
{
    if (!done)
        fprintf(stderr, "fuzz_weights: case %" PRIu64 " of seed %" PRIu64 " failed\n", case_number,
                seed);
}

static void too_slow(int number)
{
    (void)number;
    static const char sentence[] = "fuzz_weights: a case takes too long\n";
    (void)!write(2, sentence, sizeof sentence - 1);
    abort();
}

/* Whether the file is still mapped somewhere. */
static bool is_mapped(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps != NULL);
    char line[512];
    bool found = false;
    while (fgets(line, sizeof line, maps)) found |= strstr(line, "memfd:fuzz_weights") != NULL;
    CHECK(fclose(maps) == 0);
    return found;
}

int main(int argc, char **argv)
{
    const uint64_t cases = argc > 1 ? strtoull(argv[1], NULL, 10) : 10000;
    seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    file = memfd_create("fuzz_weights", MFD_CLOEXEC);
    CHECK(file >= 0);
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    const struct rlimit few_files = {32, 32};
    CHECK(setrlimit(RLIMIT_NOFILE, &few_files) == 0); /* finds descriptors left open */
    CHECK(signal(SIGALRM, too_slow) != SIG_ERR);
    CHECK(atexit(say_case) == 0);

    static text t;
    uint64_t accepted = 0;
    for (case_number = 0; case_number < cases; case_number++) {
        state = seed << 32 ^ case_number;
        build_valid_file(&t);
        const bool mutated = case_number % 16 != 0; /* the rest must open */
        if (mutated) mutate(&t);
        write_file(&t);
        (void)alarm(SECONDS_PER_CASE);
        const bool opened = open_and_check(&t);
        (void)alarm(0);
        CHECK(mutated || opened);
        accepted += opened;
    }
    printf("%" PRIu64 " safetensors files of seed %" PRIu64 ": %" PRIu64 " read, %" PRIu64
           " refused\n", cases, seed, accepted, cases - accepted);
    CHECK(!is_mapped());
    done = true;
    return 0;
}
