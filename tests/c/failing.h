/* failing.h - allocations that are counted and fail on demand.
 *
 * A test that includes it is linked with --wrap for the allocators (see the Makefile).
 */
#ifndef BON_FAILING_H
#define BON_FAILING_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>

static long allocations_left = -1; /* -1: all succeed */
static size_t bytes_asked;

static inline bool allocation_fails(void)
{
    if (allocations_left < 0) return false;
    return allocations_left == 0 || allocations_left-- == 0;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__real_mmap(void *at, size_t size, int protection, int flags, int file, off_t offset);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int file, off_t offset);

void *__wrap_malloc(size_t size)
{
    bytes_asked += size;
    return allocation_fails() ? NULL : __real_malloc(size);
}
void *__wrap_calloc(size_t count, size_t size)
{
    bytes_asked += count * size;
    return allocation_fails() ? NULL : __real_calloc(count, size);
}
void *__wrap_realloc(void *old, size_t size)
{
    bytes_asked += size;
    return allocation_fails() ? NULL : __real_realloc(old, size);
}
void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    bytes_asked += size;
    return allocation_fails() ? NULL : __real_aligned_alloc(alignment, size);
}
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int file, off_t offset)
{
    if (file == -1) bytes_asked += size - ((size_t)2 << 20); /* pages.c gives a huge page back */
    return allocation_fails() ? MAP_FAILED
                              : __real_mmap(at, size, protection, flags, file, offset);
}

#endif /* BON_FAILING_H */
