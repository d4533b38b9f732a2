/* pages.h - zeroed memory, in huge pages where it is large.
 *
 * Pages exist from their first write on. Huge ones are cleared at once instead of one by one,
 * and a walk over them misses the TLB five hundred times less often: that is weights, keys and
 * values, and the rows that a forward pass works on.
 */
#ifndef BON_PAGES_H
#define BON_PAGES_H

#include <stddef.h>

/* `bytes` bytes of zeros at a multiple of 64; NULL where there is no memory. */
void *bon_pages_alloc(size_t bytes);

/* p may be NULL; bytes as they were asked for. */
void bon_pages_free(void *p, size_t bytes);

#endif /* BON_PAGES_H */
