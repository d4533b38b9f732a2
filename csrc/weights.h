/* weights.h - one safetensors file, mapped read-only, every bound checked.
 *
 *   bytes 0..7     u64 little-endian: length H of the header, H <= 100 MB
 *   bytes 8..8+H   JSON object, may be surrounded by blanks:
 *                  name -> {"dtype": "F32", "shape": [..], "data_offsets": [b, e]}
 *                  and optionally "__metadata__" -> {string: string} or null
 *   the rest       the data; offsets count from its start; the tensors cover it
 *                  without a gap or an overlap
 *
 * A file is refused, never repaired: whatever the safetensors library 0.8
 * refuses is refused here. Beyond that these are refused too, because the
 * engine could not use them or would have to guess: an unknown field of a
 * tensor, a tensor written as a JSON array, more than BON_MAX_DIMS dimensions,
 * types of less than a byte (F4, F6_*), U+0000 in a name. A name that occurs
 * twice means its last entry, as in the library.
 *
 * After a successful open every tensor lies inside the map, and nothing of the
 * header is read again: a file that is overwritten later changes numbers and
 * never bounds. (A file that another process truncates while it is mapped still
 * raises SIGBUS: that is the operating system's contract, as for every mmap.)
 *
 * Cost of open: O(H + tensors * log tensors) time, H + 128 bytes per tensor.
 */
#ifndef BON_WEIGHTS_H
#define BON_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

#define BON_MAX_DIMS 8

typedef struct {
    const char *name;         /* zero-terminated UTF-8, owned by the weights */
    const char *dtype;        /* "F32", "BF16", "F16", "I64", ...: as in the format */
    size_t item_size;         /* bytes */
    size_t ndim;              /* <= BON_MAX_DIMS */
    size_t shape[BON_MAX_DIMS];
    const void *data;         /* into the map; aligned to item_size or not at all */
    size_t bytes;
} bon_tensor;

typedef struct bon_weights bon_weights;

/* Opens and checks the file. On error *out is NULL and message (message_size
 * bytes, 512 are enough) holds what was required and what was found, without
 * the path:
 *   BON_ERR_IO      the system refused; errno keeps its reason
 *   BON_ERR_FORMAT  the content breaks the format, or is not a regular file
 *   BON_ERR_MEMORY  */
BON_MUST_CHECK bon_status bon_weights_open(const char *path, bon_weights **out,
                                           char *message, size_t message_size);
void bon_weights_close(bon_weights *weights); /* accepts NULL */

/* Tensors are numbered in the order of their names' bytes. */
size_t bon_weights_count(const bon_weights *weights);
const bon_tensor *bon_weights_at(const bon_weights *weights, size_t index);

/* O(log tensors), or NULL. */
const bon_tensor *bon_weights_find(const bon_weights *weights, const char *name);

/* Tells the system that the tensor's pages are no longer needed in memory; a
 * later read brings them back from the file. Pages shared with a neighbour stay. */
void bon_weights_release(const bon_weights *weights, const bon_tensor *tensor);

#endif /* BON_WEIGHTS_H */
