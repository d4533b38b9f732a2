/* pages.c - see pages.h. */
#define _DEFAULT_SOURCE /* madvise and MAP_ANONYMOUS */
#include "pages.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_PAGE ((size_t)2 << 20)

#ifdef MAP_NORESERVE
#define UNRESERVED MAP_NORESERVE
#else
#define UNRESERVED 0
#endif

/* Begins with a huge page. The last may be of small ones, so that none is wasted. */
static void *map(size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), length = (bytes + page - 1) / page * page;
    char *base = mmap(NULL, length + HUGE_PAGE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | UNRESERVED, -1, 0);
    if (base == MAP_FAILED) return NULL;
    const size_t before = (HUGE_PAGE - (uintptr_t)base % HUGE_PAGE) % HUGE_PAGE;
    if (before > 0) munmap(base, before);
    munmap(base + before + length, HUGE_PAGE - before);
#ifdef MADV_HUGEPAGE /* advice only: without huge pages all is slower and still right */
    (void)madvise(base + before, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    return base + before;
}

void *bon_pages_alloc(size_t bytes)
{
    if (bytes > SIZE_MAX - 2 * HUGE_PAGE) return NULL;
    if (bytes >= HUGE_PAGE) return map(bytes);
    const size_t size = (bytes + 63) / 64 * 64;
    void *p = aligned_alloc(64, size > 0 ? size : 64);
    return p ? memset(p, 0, size) : NULL;
}

void bon_pages_free(void *p, size_t bytes)
{
    if (p != NULL && bytes >= HUGE_PAGE) munmap(p, bytes);
    else free(p);
}
