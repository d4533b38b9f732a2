/* weights.c - safetensors: read the header once, check everything, map the data.
 *
 * The header is copied out of the file before it is parsed, so that another
 * process that writes into the file cannot change it between a check and a use.
 * Strings are decoded in place in that copy (an escape is never shorter than
 * what it stands for), and the names of the tensors stay there.
 *
 * The grammar is fixed, three objects deep, so the parser has one function per
 * level and no recursion: a hostile header can neither exhaust the stack nor
 * make it do more than one pass. Names are sorted and searched by bisection.
 */
#define _DEFAULT_SOURCE /* madvise; the POSIX spelling does nothing in glibc */

#include "weights.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define LENGTH_BYTES 8
#define MAX_HEADER 100000000 /* of the safetensors library */
#define SHOWN_NAME 100       /* bytes of an untrusted name in a message */

typedef struct {
    bon_tensor tensor;
    size_t begin, end; /* data_offsets */
} entry;

struct bon_weights {
    char *header; /* [header_size], holds the names */
    size_t header_size;
    entry *entries; /* by name, no two alike */
    size_t count, capacity;
    unsigned char *map; /* the whole file, or NULL */
    size_t map_size;
};

/* Where a sentence about the file goes. */
typedef struct {
    char *text;
    size_t size;
} message;

static const struct {
    const char *name;
    size_t item_size;
} dtypes[] = {
    {"BOOL", 1},    {"U8", 1},           {"I8", 1},           {"F8_E5M2", 1}, {"F8_E4M3", 1},
    {"F8_E8M0", 1}, {"F8_E4M3FNUZ", 1}, {"F8_E5M2FNUZ", 1}, {"I16", 2},     {"U16", 2},
    {"F16", 2},     {"BF16", 2},         {"I32", 4},          {"U32", 4},     {"F32", 4},
    {"F64", 8},     {"I64", 8},          {"U64", 8},          {"C64", 8},
};

/* -- messages -------------------------------------------------------------- */

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
static bon_status refuse(message out, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (out.size > 0) (void)vsnprintf(out.text, out.size, format, args);
    va_end(args);
    return BON_ERR_FORMAT;
}

static bon_status system_error(message out, const char *what)
{
    const int reason = errno;
    char text[128];
    if (strerror_r(reason, text, sizeof text) != 0) text[0] = '\0';
    (void)refuse(out, "cannot %s: %s", what, text);
    errno = reason;
    return BON_ERR_IO;
}

/* An untrusted string for a message: control characters become '?', and a long
 * one is cut between two characters. */
typedef struct {
    char text[SHOWN_NAME + 4];
} shown;

static shown show(const char *name)
{
    shown out;
    size_t length = strlen(name);
    const bool cut = length > SHOWN_NAME;
    if (cut) {
        length = SHOWN_NAME;
        while (length > 0 && ((unsigned char)name[length] & 0xC0) == 0x80) length--;
    }
    for (size_t i = 0; i < length; i++) {
        const unsigned char byte = (unsigned char)name[i];
        out.text[i] = byte < 0x20 || byte == 0x7F ? '?' : name[i];
    }
    memcpy(out.text + length, cut ? "..." : "", cut ? 4 : 1);
    return out;
}

/* -- JSON ------------------------------------------------------------------ */

typedef struct {
    char *text;
    size_t size, at;
    message out;
} reader;

static bon_status expected(const reader *r, const char *what)
{
    if (r->at >= r->size)
        return refuse(r->out, "the header must be JSON: expected %s at its byte %zu, where it ends",
                      what, r->at);
    const unsigned char byte = (unsigned char)r->text[r->at];
    if (byte > 0x20 && byte < 0x7F)
        return refuse(r->out, "the header must be JSON: expected %s at its byte %zu, found '%c'",
                      what, r->at, byte);
    return refuse(r->out, "the header must be JSON: expected %s at its byte %zu, found 0x%02X",
                  what, r->at, byte);
}

static void skip_blanks(reader *r)
{
    while (r->at < r->size
           && (r->text[r->at] == ' ' || r->text[r->at] == '\n' || r->text[r->at] == '\t'
               || r->text[r->at] == '\r'))
        r->at++;
}

/* Steps over blanks and the character, if that is what follows. */
static bool accept(reader *r, char c)
{
    skip_blanks(r);
    if (r->at >= r->size || r->text[r->at] != c) return false;
    r->at++;
    return true;
}

static bon_status read_hex4(reader *r, uint32_t *out)
{
    uint32_t code = 0;
    for (int i = 0; i < 4; i++, r->at++) {
        const char c = r->at < r->size ? r->text[r->at] : '\0';
        uint32_t digit;
        if (c >= '0' && c <= '9')
            digit = (uint32_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (uint32_t)(c - 'a') + 10;
        else if (c >= 'A' && c <= 'F')
            digit = (uint32_t)(c - 'A') + 10;
        else
            return expected(r, "four hexadecimal digits behind \\u");
        code = code * 16 + digit;
    }
    *out = code;
    return BON_OK;
}

static size_t put_utf8(char *out, uint32_t code)
{
    unsigned char *byte = (unsigned char *)out;
    if (code < 0x80) {
        byte[0] = (unsigned char)code;
        return 1;
    }
    if (code < 0x800) {
        byte[0] = (unsigned char)(0xC0 | code >> 6);
        byte[1] = (unsigned char)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code < 0x10000) {
        byte[0] = (unsigned char)(0xE0 | code >> 12);
        byte[1] = (unsigned char)(0x80 | (code >> 6 & 0x3F));
        byte[2] = (unsigned char)(0x80 | (code & 0x3F));
        return 3;
    }
    byte[0] = (unsigned char)(0xF0 | code >> 18);
    byte[1] = (unsigned char)(0x80 | (code >> 12 & 0x3F));
    byte[2] = (unsigned char)(0x80 | (code >> 6 & 0x3F));
    byte[3] = (unsigned char)(0x80 | (code & 0x3F));
    return 4;
}

/* Behind "\u": one code point, of one escape or of a surrogate pair. */
static bon_status read_code_point(reader *r, uint32_t *out)
{
    uint32_t high = 0, low = 0;
    bon_status status = read_hex4(r, &high);
    if (status != BON_OK) return status;
    *out = high;
    if (high < 0xD800 || high > 0xDFFF) return BON_OK;

    if (high > 0xDBFF || r->size - r->at < 2 || r->text[r->at] != '\\'
        || r->text[r->at + 1] != 'u')
        return expected(r, "the other half of a surrogate pair");
    r->at += 2;
    status = read_hex4(r, &low);
    if (status != BON_OK) return status;
    if (low < 0xDC00 || low > 0xDFFF) return expected(r, "the other half of a surrogate pair");
    *out = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
    return BON_OK;
}

/* Behind a backslash: appends what the escape stands for. */
static bon_status read_escape(reader *r, char *text, size_t *length)
{
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    const char c = r->at < r->size ? r->text[r->at] : '\0';
    const char *letter = c != '\0' ? strchr(letters, c) : NULL;
    if (letter != NULL) {
        text[(*length)++] = meanings[letter - letters];
        r->at++;
        return BON_OK;
    }
    if (c != 'u') return expected(r, "a JSON escape");
    r->at++;
    uint32_t code;
    const bon_status status = read_code_point(r, &code);
    if (status == BON_OK) *length += put_utf8(text + *length, code);
    return status;
}

/* A string, decoded and zero-terminated in place. U+0000 inside is refused only
 * where the caller compares strlen(*out) with *length. */
static bon_status read_string(reader *r, char **out, size_t *length)
{
    if (!accept(r, '"')) return expected(r, "a string");
    char *text = r->text + r->at;
    size_t used = 0;
    while (r->at < r->size && (unsigned char)r->text[r->at] >= 0x20) {
        const char c = r->text[r->at++];
        if (c == '"') {
            text[used] = '\0';
            *out = text;
            *length = used;
            return BON_OK;
        }
        if (c != '\\') {
            text[used++] = c;
            continue;
        }
        const bon_status status = read_escape(r, text, &used);
        if (status != BON_OK) return status;
    }
    return expected(r, "the end of a string");
}

/* The next key of an object whose '{' has been read, with its ':'. *key is NULL
 * at the end of the object. */
static bon_status next_key(reader *r, bool *first, char **key)
{
    *key = NULL;
    if (accept(r, '}')) return BON_OK;
    if (!*first && !accept(r, ',')) return expected(r, "',' or '}'");
    *first = false;

    size_t length;
    const bon_status status = read_string(r, key, &length);
    if (status != BON_OK) return status;
    if (strlen(*key) != length)
        return refuse(r->out, "a key of the header must not contain U+0000, but \"%s\" does",
                      show(*key).text);
    return accept(r, ':') ? BON_OK : expected(r, "':'");
}

/* A whole number without sign, fraction or exponent. */
static bon_status read_size(reader *r, size_t *out)
{
    skip_blanks(r);
    const size_t start = r->at;
    size_t value = 0;
    while (r->at < r->size && r->text[r->at] >= '0' && r->text[r->at] <= '9') {
        const size_t digit = (size_t)(r->text[r->at] - '0');
        if (value > (SIZE_MAX - digit) / 10)
            return refuse(r->out,
                          "sizes and offsets must be below 2**64, but the number at byte %zu of "
                          "the header is not",
                          start);
        value = value * 10 + digit;
        r->at++;
    }
    if (r->at == start) return expected(r, "a whole number >= 0");
    if (r->at - start > 1 && r->text[start] == '0') {
        r->at = start;
        return expected(r, "a number without leading zeros");
    }
    *out = value;
    return BON_OK;
}

/* [n, n, ...] with at most max numbers. */
static bon_status read_sizes(reader *r, size_t *out, size_t max, size_t *count)
{
    *count = 0;
    if (!accept(r, '[')) return expected(r, "'['");
    if (accept(r, ']')) return BON_OK;
    do {
        if (*count == max)
            return refuse(r->out,
                          "the list at byte %zu of the header must have at most %zu numbers, but "
                          "has more",
                          r->at, max);
        const bon_status status = read_size(r, &out[(*count)++]);
        if (status != BON_OK) return status;
    } while (accept(r, ','));
    return accept(r, ']') ? BON_OK : expected(r, "',' or ']'");
}

/* -- the header ------------------------------------------------------------ */

static bon_status read_dtype(reader *r, bon_tensor *tensor)
{
    char *text;
    size_t length;
    const bon_status status = read_string(r, &text, &length);
    if (status != BON_OK) return status;
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        if (strcmp(text, dtypes[i].name) == 0 && strlen(text) == length) {
            tensor->dtype = dtypes[i].name;
            tensor->item_size = dtypes[i].item_size;
            return BON_OK;
        }
    }
    return refuse(r->out,
                  "tensor \"%s\" must have a dtype of whole bytes that safetensors knows, such as "
                  "F32 or BF16, found \"%s\"",
                  show(tensor->name).text, show(text).text);
}

enum { HAS_DTYPE = 1, HAS_SHAPE = 2, HAS_OFFSETS = 4, HAS_ALL = 7 };

static bon_status read_field(reader *r, const char *key, entry *e, int *seen)
{
    size_t offsets[2], count;
    int field;
    bon_status status;
    if (strcmp(key, "dtype") == 0) {
        field = HAS_DTYPE;
        status = read_dtype(r, &e->tensor);
    } else if (strcmp(key, "shape") == 0) {
        field = HAS_SHAPE;
        status = read_sizes(r, e->tensor.shape, BON_MAX_DIMS, &e->tensor.ndim);
    } else if (strcmp(key, "data_offsets") == 0) {
        field = HAS_OFFSETS;
        status = read_sizes(r, offsets, 2, &count);
        if (status == BON_OK && count != 2) status = expected(r, "two data_offsets before here");
        if (status == BON_OK) {
            e->begin = offsets[0];
            e->end = offsets[1];
        }
    } else {
        return refuse(r->out,
                      "tensor \"%s\" must have dtype, shape and data_offsets and nothing else, "
                      "found \"%s\"",
                      show(e->tensor.name).text, show(key).text);
    }
    if (status == BON_OK && (*seen & field))
        return refuse(r->out, "tensor \"%s\" must have one %s, but has two",
                      show(e->tensor.name).text, key);
    *seen |= field;
    return status;
}

static bon_status read_tensor(reader *r, entry *e)
{
    if (!accept(r, '{')) return expected(r, "'{'");
    int seen = 0;
    for (bool first = true;;) {
        char *key;
        bon_status status = next_key(r, &first, &key);
        if (status == BON_OK && key != NULL) status = read_field(r, key, e, &seen);
        if (status != BON_OK) return status;
        if (key == NULL) break;
    }
    if (seen != HAS_ALL)
        return refuse(r->out,
                      "tensor \"%s\" must have dtype, shape and data_offsets, but has no %s",
                      show(e->tensor.name).text,
                      !(seen & HAS_DTYPE)   ? "dtype"
                      : !(seen & HAS_SHAPE) ? "shape"
                                            : "data_offsets");
    return BON_OK;
}

/* {string: string}, looked at and forgotten. */
static bon_status read_metadata(reader *r)
{
    skip_blanks(r);
    if (r->size - r->at >= 4 && memcmp(r->text + r->at, "null", 4) == 0) {
        r->at += 4;
        return BON_OK;
    }
    if (!accept(r, '{')) return expected(r, "'{' behind \"__metadata__\"");
    for (bool first = true;;) {
        char *key, *value;
        size_t length;
        bon_status status = next_key(r, &first, &key);
        if (status == BON_OK && key != NULL) status = read_string(r, &value, &length);
        if (status != BON_OK || key == NULL) return status;
    }
}

/* Room for one more entry, or NULL. */
static entry *new_entry(bon_weights *w)
{
    if (w->count == w->capacity) {
        const size_t capacity = w->capacity ? 2 * w->capacity : 64;
        entry *grown = capacity <= SIZE_MAX / sizeof *grown
                           ? realloc(w->entries, capacity * sizeof *grown)
                           : NULL;
        if (grown == NULL) return NULL;
        w->entries = grown;
        w->capacity = capacity;
    }
    return &w->entries[w->count++];
}

static bon_status read_header(bon_weights *w, message out)
{
    reader r = {w->header, w->header_size, 0, out};
    if (!accept(&r, '{')) return expected(&r, "'{'");
    bool has_metadata = false;
    for (bool first = true;;) {
        char *key;
        bon_status status = next_key(&r, &first, &key);
        if (status != BON_OK) return status;
        if (key == NULL) break;
        if (strcmp(key, "__metadata__") == 0) {
            if (has_metadata) return refuse(out, "the header must have one __metadata__, not two");
            has_metadata = true;
            status = read_metadata(&r);
        } else {
            entry *e = new_entry(w);
            if (e == NULL) return BON_ERR_MEMORY;
            e->tensor.name = key;
            status = read_tensor(&r, e);
        }
        if (status != BON_OK) return status;
    }
    skip_blanks(&r);
    return r.at == r.size ? BON_OK : expected(&r, "nothing more");
}

/* Length of the valid UTF-8 sequence at text, or 0. */
static size_t utf8_length(const unsigned char *text, size_t left)
{
    const unsigned char lead = text[0];
    if (lead < 0x80) return 1;
    const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead < 0xC2 || lead > 0xF4 || left < length) return 0;
    for (size_t i = 1; i < length; i++)
        if ((text[i] & 0xC0) != 0x80) return 0;
    /* too long for its value, a surrogate, or beyond U+10FFFF */
    if ((lead == 0xE0 && text[1] < 0xA0) || (lead == 0xED && text[1] > 0x9F)
        || (lead == 0xF0 && text[1] < 0x90) || (lead == 0xF4 && text[1] > 0x8F))
        return 0;
    return length;
}

static bon_status check_utf8(const char *text, size_t size, message out)
{
    for (size_t at = 0; at < size;) {
        const size_t length = utf8_length((const unsigned char *)text + at, size - at);
        if (length == 0)
            return refuse(out, "the header must be UTF-8, but its byte %zu is 0x%02X", at,
                          (unsigned char)text[at]);
        at += length;
    }
    return BON_OK;
}

/* -- the tensors ----------------------------------------------------------- */

/* Equal names in the order of the file: names lie in the header. */
static int by_name(const void *a, const void *b)
{
    const bon_tensor *x = &((const entry *)a)->tensor, *y = &((const entry *)b)->tensor;
    const int order = strcmp(x->name, y->name);
    return order != 0 ? order : (x->name > y->name) - (x->name < y->name);
}

static int by_offsets(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

/* Of entries with one name only the last stays. */
static void drop_repeated_names(bon_weights *w)
{
    qsort(w->entries, w->count, sizeof *w->entries, by_name);
    size_t kept = 0;
    for (size_t i = 0; i < w->count; i++) {
        const bool repeated = i + 1 < w->count
                              && strcmp(w->entries[i].tensor.name, w->entries[i + 1].tensor.name)
                                     == 0;
        if (!repeated) w->entries[kept++] = w->entries[i];
    }
    w->count = kept;
}

/* Bytes of shape and dtype; false on overflow. */
static bool count_bytes(const bon_tensor *tensor, size_t *out)
{
    size_t count = 1;
    for (size_t i = 0; i <= tensor->ndim; i++) {
        const size_t factor = i < tensor->ndim ? tensor->shape[i] : tensor->item_size;
        if (factor != 0 && count > SIZE_MAX / factor) return false;
        count *= factor;
    }
    *out = count;
    return true;
}

/* The tensors, sorted by offsets, must cover data_size bytes one behind the
 * other. Sets bytes; begin and end are below data_size afterwards. */
static bon_status check_layout(bon_weights *w, size_t data_size, message out)
{
    size_t start = 0;
    for (size_t i = 0; i < w->count; i++) {
        entry *e = &w->entries[i];
        const char *name = e->tensor.name;
        if (e->begin != start || e->end < e->begin)
            return refuse(out,
                          "tensor \"%s\" must start at byte %zu of the data, where the one before "
                          "it ends, found data_offsets [%zu, %zu]",
                          show(name).text, start, e->begin, e->end);
        if (!count_bytes(&e->tensor, &e->tensor.bytes))
            return refuse(out,
                          "tensor \"%s\" must have less than 2**64 bytes, but its shape has more",
                          show(name).text);
        if (e->end - e->begin != e->tensor.bytes)
            return refuse(out,
                          "tensor \"%s\" must have %zu bytes by its shape and dtype, found %zu in "
                          "data_offsets",
                          show(name).text, e->tensor.bytes, e->end - e->begin);
        start = e->end;
    }
    if (start != data_size)
        return refuse(out,
                      "the tensors must cover all data: they need %zu bytes, the file has %zu "
                      "behind its header%s",
                      start, data_size, start > data_size ? " (truncated?)" : "");
    return BON_OK;
}

static bon_status index_tensors(bon_weights *w, message out)
{
    if (w->count > 0) {
        drop_repeated_names(w);
        qsort(w->entries, w->count, sizeof *w->entries, by_offsets);
    }
    const size_t data_at = LENGTH_BYTES + w->header_size;
    const bon_status status = check_layout(w, w->map_size - data_at, out);
    if (status != BON_OK || w->count == 0) return status;
    for (size_t i = 0; i < w->count; i++)
        w->entries[i].tensor.data = w->map + data_at + w->entries[i].begin;
    qsort(w->entries, w->count, sizeof *w->entries, by_name);
    return BON_OK;
}

/* -- the file -------------------------------------------------------------- */

static bon_status read_at(int file, void *buffer, size_t size, size_t at, message out)
{
    for (size_t done = 0; done < size;) {
        const ssize_t got = pread(file, (char *)buffer + done, size - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return system_error(out, "read the file");
        if (got == 0) return refuse(out, "the file became shorter while it was read");
        done += (size_t)got;
    }
    return BON_OK;
}

static bon_status read_header_size(int file, bon_weights *w, message out)
{
    if (w->map_size < LENGTH_BYTES)
        return refuse(out, "a safetensors file must have at least 8 bytes, found %zu", w->map_size);
    unsigned char bytes[LENGTH_BYTES];
    const bon_status status = read_at(file, bytes, sizeof bytes, 0, out);
    if (status != BON_OK) return status;
    uint64_t size = 0;
    for (size_t i = LENGTH_BYTES; i-- > 0;) size = size << 8 | bytes[i];
    if (size > MAX_HEADER)
        return refuse(out,
                      "the header must have at most %d bytes, but the file claims %llu (not a "
                      "safetensors file?)",
                      MAX_HEADER, (unsigned long long)size);
    if (size > w->map_size - LENGTH_BYTES)
        return refuse(out,
                      "the header must lie in the file: it claims %llu bytes, the file has %zu",
                      (unsigned long long)size, w->map_size);
    w->header_size = (size_t)size;
    return BON_OK;
}

static bon_status check_file(int file, bon_weights *w, message out)
{
    struct stat info;
    if (fstat(file, &info) != 0) return system_error(out, "look at the file");
    if (S_ISDIR(info.st_mode)) {
        errno = EISDIR;
        return system_error(out, "open the file");
    }
    if (!S_ISREG(info.st_mode)) return refuse(out, "weights must be a regular file");
    if ((uintmax_t)info.st_size > SIZE_MAX) return BON_ERR_MEMORY;
    w->map_size = (size_t)info.st_size;
    return BON_OK;
}

static bon_status load(int file, bon_weights *w, message out)
{
    bon_status status = check_file(file, w, out);
    if (status == BON_OK) status = read_header_size(file, w, out);
    if (status != BON_OK) return status;

    w->header = malloc(w->header_size + (w->header_size == 0));
    if (w->header == NULL) return BON_ERR_MEMORY;
    status = read_at(file, w->header, w->header_size, LENGTH_BYTES, out);
    if (status == BON_OK) status = check_utf8(w->header, w->header_size, out);
    if (status == BON_OK) status = read_header(w, out);
    if (status != BON_OK) return status;

    void *map = mmap(NULL, w->map_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (map == MAP_FAILED) return system_error(out, "map the file");
    w->map = map;
    return index_tensors(w, out);
}

bon_status bon_weights_open(const char *path, bon_weights **out, char *text, size_t size)
{
    const message sentence = {text, size};
    *out = NULL;
    if (size > 0) text[0] = '\0';
    bon_weights *w = calloc(1, sizeof *w);
    if (w == NULL) return BON_ERR_MEMORY;

    /* O_NONBLOCK: opening a pipe must not wait for its writer. */
    const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) {
        const bon_status status = system_error(sentence, "open the file");
        free(w);
        return status;
    }
    const bon_status status = load(file, w, sentence);
    const int reason = errno;
    if (status == BON_OK)
        *out = w;
    else
        bon_weights_close(w);
    (void)close(file);
    errno = reason;
    return status;
}

void bon_weights_close(bon_weights *w)
{
    if (w == NULL) return;
    if (w->map != NULL) (void)munmap(w->map, w->map_size);
    free(w->entries);
    free(w->header);
    free(w);
}

/* -- looking up ------------------------------------------------------------ */

size_t bon_weights_count(const bon_weights *w) { return w->count; }

const bon_tensor *bon_weights_at(const bon_weights *w, size_t index)
{
    return index < w->count ? &w->entries[index].tensor : NULL;
}

const bon_tensor *bon_weights_find(const bon_weights *w, const char *name)
{
    size_t low = 0, high = w->count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const int order = strcmp(name, w->entries[middle].tensor.name);
        if (order == 0) return &w->entries[middle].tensor;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

void bon_weights_release(const bon_weights *w, const bon_tensor *tensor)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t begin = (size_t)((const unsigned char *)tensor->data - w->map);
    const size_t first = (begin + page - 1) / page * page;
    const size_t last = (begin + tensor->bytes) / page * page;
    if (first < last) (void)madvise(w->map + first, last - first, MADV_DONTNEED);
}
