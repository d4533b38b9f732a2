/* Memory in pages: zeros at a cache line, of any size, and a refusal where there is none. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "failing.h"
#include "pages.h"

static int all_zero(const char *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (p[i] != 0) return 0;
    return 1;
}

static void test_memory_is_zero_and_can_be_written(void)
{
    const size_t sizes[] = {0, 1, 63, 64, 4096, ((size_t)2 << 20) - 1, (size_t)2 << 20,
                            ((size_t)2 << 20) + 1, (size_t)5 << 20, ((size_t)6 << 20) + 4097};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int again = 0; again < 3; again++) {
            char *p = bon_pages_alloc(sizes[i]);
            CHECK(p != NULL && (uintptr_t)p % 64 == 0);
            CHECK(all_zero(p, sizes[i]));
            memset(p, 7, sizes[i]);
            bon_pages_free(p, sizes[i]);
        }
    bon_pages_free(NULL, 0);
    bon_pages_free(NULL, (size_t)4 << 20);
}

static void test_pieces_do_not_overlap(void)
{
    enum { PIECES = 9 };
    char *p[PIECES];
    const size_t bytes = ((size_t)2 << 20) + 5000;
    for (size_t i = 0; i < PIECES; i++) {
        CHECK((p[i] = bon_pages_alloc(bytes)) != NULL);
        memset(p[i], (int)i + 1, bytes);
    }
    for (size_t i = 0; i < PIECES; i += 2) bon_pages_free(p[i], bytes);
    for (size_t i = 1; i < PIECES; i += 2) {
        CHECK(p[i][0] == (char)(i + 1) && p[i][bytes - 1] == (char)(i + 1));
        bon_pages_free(p[i], bytes);
    }
}

static void test_too_much_is_refused(void)
{
    CHECK(bon_pages_alloc(SIZE_MAX) == NULL);
    CHECK(bon_pages_alloc(SIZE_MAX / 2) == NULL);
    allocations_left = 0;
    CHECK(bon_pages_alloc(100) == NULL && bon_pages_alloc((size_t)3 << 20) == NULL);
    allocations_left = -1;
}

int main(void)
{
    test_memory_is_zero_and_can_be_written();
    test_pieces_do_not_overlap();
    test_too_much_is_refused();
    return 0;
}
