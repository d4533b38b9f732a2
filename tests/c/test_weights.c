/* test_weights.c - safetensors files built in memory: what is read, what is refused. */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "weights.h"

static char path[] = "/tmp/bonaware_test_weights_XXXXXX";
static char message[512];

static void write_file(const void *bytes, size_t size)
{
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL);
    CHECK(size == 0 || fwrite(bytes, 1, size, file) == size);
    CHECK(fclose(file) == 0);
}

/* A file with this header and data_size bytes 0, 1, 2, ... of data. */
static void write_tensors(const char *header, size_t header_size, size_t data_size)
{
    static unsigned char bytes[1 << 20];
    CHECK(8 + header_size + data_size <= sizeof bytes);
    for (size_t i = 0; i < 8; i++) bytes[i] = (unsigned char)((uint64_t)header_size >> (8 * i));
    memcpy(bytes + 8, header, header_size);
    for (size_t i = 0; i < data_size; i++) bytes[8 + header_size + i] = (unsigned char)i;
    write_file(bytes, 8 + header_size + data_size);
}

static bon_weights *open_file(bon_status expected)
{
    bon_weights *weights;
    CHECK(bon_weights_open(path, &weights, message, sizeof message) == expected);
    CHECK((weights != NULL) == (expected == BON_OK));
    CHECK((message[0] != '\0') == (expected != BON_OK));
    return weights;
}

static bon_weights *open_tensors(const char *header, size_t data_size)
{
    write_tensors(header, strlen(header), data_size);
    return open_file(BON_OK);
}

/* The file is refused with a message that contains all of what. */
static void check_refused(const char *header, size_t data_size, const char *what)
{
    write_tensors(header, strlen(header), data_size);
    CHECK(open_file(BON_ERR_FORMAT) == NULL);
    if (strstr(message, what) == NULL) fprintf(stderr, "%s\n", message);
    CHECK(strstr(message, what) != NULL);
}

#define ONE "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}"

/* -- what is read ---------------------------------------------------------- */

static void test_tensors_point_into_the_file(void)
{
    bon_weights *w = open_tensors(
        " {\"b\": {\"shape\": [2, 3], \"data_offsets\": [0, 12], \"dtype\": \"BF16\"},\n"
        "\"__metadata__\": {\"format\": \"pt\"},"
        "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[12,16]}}\t ", 16);
    CHECK(bon_weights_count(w) == 2);
    const bon_tensor *a = bon_weights_find(w, "a"), *b = bon_weights_find(w, "b");
    CHECK(a == bon_weights_at(w, 0) && b == bon_weights_at(w, 1));
    CHECK(bon_weights_at(w, 2) == NULL && bon_weights_find(w, "c") == NULL);
    CHECK(strcmp(b->dtype, "BF16") == 0 && b->item_size == 2 && b->bytes == 12);
    CHECK(b->ndim == 2 && b->shape[0] == 2 && b->shape[1] == 3);
    CHECK(a->ndim == 0 && a->bytes == 4);
    CHECK(((const unsigned char *)b->data)[11] == 11 && ((const unsigned char *)a->data)[3] == 15);
    bon_weights_close(w);
    bon_weights_close(NULL);
}

static void test_release_keeps_the_numbers(void)
{
    static const char header[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[100000],"
                                 "\"data_offsets\":[0,100000]}}";
    bon_weights *w = open_tensors(header, 100000);
    const bon_tensor *a = bon_weights_find(w, "a");
    bon_weights_release(w, a);
    CHECK(((const unsigned char *)a->data)[99999] == (unsigned char)99999);
    bon_weights_close(w);
}

static void test_empty_header_and_empty_tensors_are_fine(void)
{
    bon_weights *w = open_tensors("{}", 0);
    CHECK(bon_weights_count(w) == 0 && bon_weights_find(w, "") == NULL);
    bon_weights_close(w);

    w = open_tensors("{\"z\":{\"dtype\":\"F32\",\"shape\":[0,18446744073709551615],"
                     "\"data_offsets\":[1,1]},\"\":" ONE "}", 1);
    CHECK(bon_weights_find(w, "z")->bytes == 0 && bon_weights_find(w, "")->bytes == 1);
    bon_weights_release(w, bon_weights_find(w, "z"));
    bon_weights_close(w);
}

static void test_escapes_become_utf8(void)
{
    bon_weights *w = open_tensors(
        "{\"\\u0061\\u00e9\\u4F60\\ud83d\\uDE00\\\"\\\\\\/\\b\\f\\n\\r\\t\":" ONE "}", 1);
    CHECK(bon_weights_find(w, "a\xC3\xA9\xE4\xBD\xA0\xF0\x9F\x98\x80\"\\/\b\f\n\r\t") != NULL);
    bon_weights_close(w);
}

static void test_last_of_equal_names_counts(void)
{
    bon_weights *w = open_tensors(
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[7],\"data_offsets\":[3,9]},\"b\":"
        "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]},\"\\u0061\":" ONE "}", 2);
    CHECK(bon_weights_count(w) == 2 && bon_weights_find(w, "a")->bytes == 1);
    bon_weights_close(w);
}

static void test_every_dtype_has_its_size(void)
{
    static const struct { const char *name; size_t bytes; } types[] = {
        {"BOOL", 1}, {"U8", 1}, {"I8", 1}, {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"F8_E8M0", 1},
        {"F8_E4M3FNUZ", 1}, {"F8_E5M2FNUZ", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2}, {"BF16", 2},
        {"I32", 4}, {"U32", 4}, {"F32", 4}, {"F64", 8}, {"I64", 8}, {"U64", 8}, {"C64", 8}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        char header[128];
        (void)snprintf(header, sizeof header,
                       "{\"a\":{\"dtype\":\"%s\",\"shape\":[3],\"data_offsets\":[0,%zu]}}",
                       types[i].name, 3 * types[i].bytes);
        bon_weights *w = open_tensors(header, 3 * types[i].bytes);
        CHECK(bon_weights_find(w, "a")->item_size == types[i].bytes);
        bon_weights_close(w);
    }
}

/* Many names with the same beginning, many of them twice: sorted, not compared
 * pairwise. (Quadratic work on 20000 names takes minutes under sanitizers.) */
static void test_many_tensors_are_found(void)
{
    enum { COUNT = 10000 };
    static char header[2 * COUNT * 70];
    size_t size = 0;
    for (int i = 0; i < 2 * COUNT; i++)
        size += (size_t)snprintf(header + size, sizeof header - size,
                                 "%c\"n%d\":{\"dtype\":\"U8\",\"shape\":[],"
                                 "\"data_offsets\":[%d,%d]}",
                                 i ? ',' : '{', i % COUNT, i % COUNT, i % COUNT + 1);
    CHECK(size + 2 < sizeof header);
    header[size] = '}';
    header[size + 1] = '\0';
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL);
    const unsigned char length[8] = {(unsigned char)(size + 1), (unsigned char)((size + 1) >> 8),
                                     (unsigned char)((size + 1) >> 16)};
    static const unsigned char data[COUNT];
    CHECK(fwrite(length, 1, 8, file) == 8 && fwrite(header, 1, size + 1, file) == size + 1);
    CHECK(fwrite(data, 1, COUNT, file) == COUNT && fclose(file) == 0);

    bon_weights *w = open_file(BON_OK);
    CHECK(bon_weights_count(w) == COUNT);
    for (int i = 0; i < COUNT; i++) {
        char name[16];
        (void)snprintf(name, sizeof name, "n%d", i);
        const bon_tensor *tensor = bon_weights_find(w, name);
        CHECK(tensor != NULL);
        CHECK((const char *)tensor->data - (const char *)bon_weights_find(w, "n0")->data == i);
    }
    bon_weights_close(w);
}

/* -- what is refused ------------------------------------------------------- */

static void test_file_must_be_there_and_regular(void)
{
    bon_weights *w;
    CHECK(bon_weights_open("/nowhere/at all", &w, message, sizeof message) == BON_ERR_IO);
    CHECK(w == NULL && errno == ENOENT && strstr(message, "cannot open the file: ") != NULL);
    CHECK(bon_weights_open("/", &w, message, sizeof message) == BON_ERR_IO);
    CHECK(errno == EISDIR);
    CHECK(bon_weights_open("/dev/null", &w, message, sizeof message) == BON_ERR_FORMAT);
    CHECK(strcmp(message, "weights must be a regular file") == 0);
    char pipe_path[sizeof path + 5];
    (void)snprintf(pipe_path, sizeof pipe_path, "%s_pipe", path);
    CHECK(mkfifo(pipe_path, 0600) == 0); /* opening it to read would wait for a writer */
    CHECK(bon_weights_open(pipe_path, &w, message, sizeof message) == BON_ERR_FORMAT);
    CHECK(unlink(pipe_path) == 0);
}

static void test_message_may_be_short_or_absent(void)
{
    write_file("", 0);
    bon_weights *w;
    char four[4];
    CHECK(bon_weights_open(path, &w, four, sizeof four) == BON_ERR_FORMAT);
    CHECK(strcmp(four, "a s") == 0);
    CHECK(bon_weights_open(path, &w, NULL, 0) == BON_ERR_FORMAT);
}

static void test_header_size_must_fit(void)
{
    write_file("\2\0\0\0\0\0\0", 7);
    CHECK(open_file(BON_ERR_FORMAT) == NULL && strstr(message, "at least 8 bytes, found 7"));
    write_file("\3\0\0\0\0\0\0\0{}", 10);
    CHECK(open_file(BON_ERR_FORMAT) == NULL && strstr(message, "claims 3 bytes"));
    write_file("\1\xE1\xF5\5\0\0\0\0{}", 10); /* 100000001 */
    CHECK(open_file(BON_ERR_FORMAT) == NULL && strstr(message, "at most 100000000 bytes"));
    write_file("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF{}", 10);
    CHECK(open_file(BON_ERR_FORMAT) == NULL && strstr(message, "18446744073709551615"));
}

static void test_header_must_be_utf8(void)
{
    static const char *const bad[] = {
        "{\"\x80\"", "{\"\xC0\x80\"", "{\"\xC1\xBF\"", "{\"\xE0\x9F\xBF\"", "{\"\xED\xA0\x80\"",
        "{\"\xF0\x8F\xBF\xBF\"", "{\"\xF4\x90\x80\x80\"", "{\"\xF5\x80\x80\x80\"", "{\"\xE4\xBD",
        "{\"\xFF\"", "{\"\xC3(\""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check_refused(bad[i], 0, "must be UTF-8, but its byte 2 is 0x");
}

static void test_header_must_be_json(void)
{
    static const struct { const char *header, *what; } bad[] = {
        {"", "expected '{' at its byte 0, where it ends"},
        {"[]", "expected '{' at its byte 0, found '['"},
        {"{", "expected a string"},
        {"{} x", "expected nothing more at its byte 3, found 'x'"},
        {"{}\f", "found 0x0C"},
        {"{\"a\"", "expected ':'"},
        {"{\"a\":", "expected '{'"},
        {"{\"a\":" ONE, "expected ',' or '}'"},
        {"{\"a\":" ONE ",}", "expected a string"},
        {"{\"a\":" ONE " \"b\":" ONE "}", "expected ',' or '}'"},
        {"{,}", "expected a string"},
        {"{\"a", "expected the end of a string"},
        {"{\"a\n\":" ONE "}", "expected the end of a string at its byte 3, found 0x0A"},
        {"{\"\\x\"", "expected a JSON escape at its byte 3, found 'x'"},
        {"{\"\\", "expected a JSON escape"},
        {"{\"\\u12g4\"", "expected four hexadecimal digits behind \\u at its byte 6"},
        {"{\"\\u12", "expected four hexadecimal digits"},
        {"{\"\\ud800\"", "the other half of a surrogate pair"},
        {"{\"\\udc00\"", "the other half of a surrogate pair"},
        {"{\"\\ud800\\n\"", "the other half of a surrogate pair"},
        {"{\"\\ud800\\ue000\"", "the other half of a surrogate pair"},
        {"{\"\\ud800\\u0041\"", "the other half of a surrogate pair"},
        {"{\"a\\u0000b\":" ONE "}", "must not contain U+0000, but \"a\" does"},
        {"{\"__metadata__\":[]}", "expected '{' behind \"__metadata__\""},
        {"{\"__metadata__\":nul}", "expected '{'"},
        {"{\"__metadata__\":{\"a\":1}}", "expected a string"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", "one __metadata__, not two"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check_refused(bad[i].header, 1, bad[i].what);
}

static void test_tensor_must_have_its_three_fields(void)
{
    static const struct { const char *fields, *what; } bad[] = {
        {"[]", "expected '{'"},
        {"{}", "has no dtype"},
        {"{\"dtype\":\"U8\"}", "has no shape"},
        {"{\"dtype\":\"U8\",\"shape\":[1]}", "has no data_offsets"},
        {"{\"dtype\":\"U8\",\"dtype\":\"U8\"}", "must have one dtype, but has two"},
        {"{\"dtype\":\"U8\",\"x\":1}", "and nothing else, found \"x\""},
        {"{\"dtype\":\"F4\"}", "must have a dtype of whole bytes that safetensors knows"},
        {"{\"dtype\":\"f32\"}", "found \"f32\""},
        {"{\"dtype\":\"U8\\u0000\"}", "must have a dtype"},
        {"{\"dtype\":8}", "expected a string"},
        {"{\"shape\":null}", "expected '['"},
        {"{\"shape\":[1,]}", "expected a whole number"},
        {"{\"shape\":[1 2]}", "expected ',' or ']'"},
        {"{\"shape\":[1.0]}", "expected ',' or ']' at its byte 16, found '.'"},
        {"{\"shape\":[1e0]}", "found 'e'"},
        {"{\"shape\":[-1]}", "expected a whole number >= 0"},
        {"{\"shape\":[01]}", "expected a number without leading zeros"},
        {"{\"shape\":[18446744073709551616]}", "must be below 2**64"},
        {"{\"shape\":[99999999999999999999999]}", "must be below 2**64"},
        {"{\"shape\":[1,1,1,1,1,1,1,1,1]}", "at most 8 numbers"},
        {"{\"data_offsets\":[0]}", "two data_offsets"},
        {"{\"data_offsets\":[0,1,2]}", "at most 2 numbers"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char header[256];
        (void)snprintf(header, sizeof header, "{\"a\":%s}", bad[i].fields);
        check_refused(header, 1, bad[i].what);
    }
}

static void test_offsets_must_cover_the_data(void)
{
    static const struct { const char *shape, *offsets, *what; } bad[] = {
        {"1", "1,2", "must start at byte 0 of the data"},
        {"0", "1,0", "found data_offsets [1, 0]"},
        {"0", "0,18446744073709551615", "must have 0 bytes"},
        {"2", "0,1", "must have 2 bytes by its shape and dtype, found 1"},
        {"1", "0,1", "need 1 bytes, the file has 2 behind its header"},
        {"3", "0,3", "need 3 bytes, the file has 2 behind its header (truncated?)"},
        {"4294967296,4294967296", "0,0", "must have less than 2**64 bytes"},
        {"18446744073709551615,2,0", "0,0", "must have less than 2**64 bytes"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char header[256];
        (void)snprintf(header, sizeof header,
                       "{\"a\":{\"dtype\":\"U8\",\"shape\":[%s],\"data_offsets\":[%s]}}",
                       bad[i].shape, bad[i].offsets);
        check_refused(header, 2, bad[i].what);
    }
    check_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],"
                  "\"data_offsets\":[0,0]}}", 0, "must have less than 2**64 bytes");
    /* as many bytes as its offsets say, counted modulo 2**64 */
    check_refused("{\"a\":" ONE ",\"b\":{\"dtype\":\"U8\",\"shape\":[18446744073709551615],"
                  "\"data_offsets\":[1,0]}}", 0, "found data_offsets [1, 0]");
    check_refused("{\"a\":" ONE ",\"b\":" ONE "}", 1, "tensor \"b\" must start at byte 1");
}

static void test_names_in_messages_are_short_and_printable(void)
{
    char header[600];
    const int used = snprintf(header, sizeof header, "{\"\\u001b[31m");
    memset(header + used, 'x', 94); /* with ESC[31m 99 bytes of the 100 shown */
    (void)snprintf(header + used + 94, sizeof header - (size_t)used - 94,
                   "\xE4\xBD\xA0%0200d\":{}}", 0);
    check_refused(header, 0, "tensor \"?[31m");
    CHECK(strstr(message, "xxx...\"") != NULL); /* cut before the character, not in it */
}

int main(void)
{
    const int file = mkstemp(path);
    CHECK(file >= 0 && close(file) == 0);
    test_tensors_point_into_the_file();
    test_release_keeps_the_numbers();
    test_empty_header_and_empty_tensors_are_fine();
    test_escapes_become_utf8();
    test_last_of_equal_names_counts();
    test_every_dtype_has_its_size();
    test_many_tensors_are_found();
    test_file_must_be_there_and_regular();
    test_message_may_be_short_or_absent();
    test_header_size_must_fit();
    test_header_must_be_utf8();
    test_header_must_be_json();
    test_tensor_must_have_its_three_fields();
    test_offsets_must_cover_the_data();
    test_names_in_messages_are_short_and_printable();
    CHECK(unlink(path) == 0);
    return 0;
}
