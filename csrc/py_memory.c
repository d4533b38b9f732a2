/* py_memory.c - bonaware._memory: large results in memory that is used again.
 *
 * The system clears every page that it hands out, and takes the pages of a large array
 * back when it dies. Clearing 50 MB takes as long as half of best_of_k, so a loop that
 * computes one result after another pays for it in every turn. Arrays made here leave
 * their block behind for the next one of that size.
 *
 * Blocks that wait are known by a list, newest first. They hold at most MOST_KEPT bytes in
 * all; what is beyond that goes back to the system.
 */
#define NPY_TARGET_VERSION NPY_1_22_API_VERSION
#include "py_module.h"

#include <pthread.h>
#include <string.h>

#include "pages.h"

/* Smaller arrays are left to NumPy: malloc uses their memory again by itself. */
#define LEAST_KEPT ((size_t)4 << 20)
#define MOST_KEPT ((size_t)256 << 20)

/* What stands before the elements; they begin with a cache line. Blocks are whole pages. */
enum { HEADER = 64, PAGE = 4096 };

typedef struct block {
    size_t capacity; /* bytes, with this header */
    struct block *older;
} block;

static block *kept = NULL;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of kept and what hangs on it */

static void give_back(block *some)
{
    while (some != NULL) {
        block *older = some->older;
        bon_pages_free(some, some->capacity);
        some = older;
    }
}

/* Gives back what is beyond `most` bytes, the oldest first. */
static void keep_at_most(size_t most)
{
    size_t total = 0;
    pthread_mutex_lock(&lock);
    block **at = &kept;
    while (*at != NULL && (*at)->capacity <= most - total) {
        total += (*at)->capacity;
        at = &(*at)->older;
    }
    block *rest = *at;
    *at = NULL;
    pthread_mutex_unlock(&lock);
    give_back(rest);
}

static block *take(size_t capacity)
{
    pthread_mutex_lock(&lock);
    block **at = &kept;
    while (*at != NULL && (*at)->capacity != capacity) at = &(*at)->older;
    block *found = *at;
    if (found != NULL) *at = found->older;
    pthread_mutex_unlock(&lock);
    return found;
}

static block *new_block(size_t capacity)
{
    block *made = bon_pages_alloc(capacity);
    if (made == NULL) { /* the kept ones may be what is missing */
        keep_at_most(0);
        made = bon_pages_alloc(capacity);
    }
    return made;
}

/* -- what NumPy asks of a handler of memory -------------------------------- */

static block *block_of(void *elements) { return (block *)((char *)elements - HEADER); }

static void *allocate(void *Py_UNUSED(context), size_t size)
{
    if (size > SIZE_MAX - HEADER - PAGE) return NULL;
    const size_t capacity = (size + HEADER + PAGE - 1) / PAGE * PAGE;
    block *to = take(capacity);
    if (to == NULL) to = new_block(capacity);
    if (to == NULL) return NULL;
    to->capacity = capacity;
    return (char *)to + HEADER;
}

static void *allocate_zeros(void *context, size_t count, size_t size)
{
    if (size > 0 && count > SIZE_MAX / size) return NULL;
    void *elements = allocate(context, count * size);
    return elements == NULL ? NULL : memset(elements, 0, count * size);
}

static void release(void *Py_UNUSED(context), void *elements, size_t Py_UNUSED(size))
{
    if (elements == NULL) return;
    block *from = block_of(elements);
    if (from->capacity > MOST_KEPT) {
        bon_pages_free(from, from->capacity);
        return;
    }
    pthread_mutex_lock(&lock);
    from->older = kept;
    kept = from;
    pthread_mutex_unlock(&lock);
    keep_at_most(MOST_KEPT);
}

/* Called by ndarray.resize. */
static void *reallocate(void *context, void *elements, size_t size)
{
    if (elements == NULL) return allocate(context, size);
    const size_t room = block_of(elements)->capacity - HEADER;
    if (size <= room) return elements;
    void *larger = allocate(context, size);
    if (larger == NULL) return NULL;
    memcpy(larger, elements, room);
    release(context, elements, room);
    return larger;
}

static PyDataMem_Handler handler = {
    .name = "bonaware",
    .version = 1,
    .allocator = {.malloc = allocate, .calloc = allocate_zeros, .realloc = reallocate,
                  .free = release},
};

/* -- empty ------------------------------------------------------------------ */

/* False also for what is no shape of an array. */
static int is_large(const PyArray_Dims *shape)
{
    for (int i = 0; i < shape->len; i++)
        if (shape->ptr[i] < 0) return 0;
    const npy_intp count = PyArray_OverflowMultiplyList(shape->ptr, shape->len);
    return count >= (npy_intp)(LEAST_KEPT / sizeof(double))
           && count <= (npy_intp)(PY_SSIZE_T_MAX / sizeof(double));
}

PyDoc_STRVAR(empty_doc,
             "empty(shape, /)\n--\n\n"
             "An array of float64 whose elements are not set.\n\n"
             "As numpy.empty, but the memory of large arrays is used again.");

static PyObject *py_empty(PyObject *Py_UNUSED(module), PyObject *arg)
{
    PyArray_Dims shape = {NULL, 0};
    if (!PyArray_IntpConverter(arg, &shape)) return NULL;
    PyObject *array = NULL, *capsule = NULL, *others = NULL;
    const int large = is_large(&shape);
    if (large) {
        capsule = PyCapsule_New(&handler, "mem_handler", NULL);
        if (capsule == NULL) goto done;
        others = PyDataMem_SetHandler(capsule);
        if (others == NULL) goto done;
    }
    array = PyArray_EMPTY(shape.len, shape.ptr, NPY_DOUBLE, 0);
    if (large) {
        PyErr_Clear(); /* it is a shape: what failed is memory */
        PyObject *ours = PyDataMem_SetHandler(others);
        if (ours == NULL) Py_CLEAR(array);
        else if (array == NULL)
            PyErr_Format(PyExc_MemoryError, "no memory for a result of the shape %R", arg);
        Py_XDECREF(ours);
    }

done:
    Py_XDECREF(others);
    Py_XDECREF(capsule);
    PyDimMem_FREE(shape.ptr);
    return array;
}

/* -- module ---------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"empty", py_empty, METH_O, empty_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "bonaware._memory",
    .m_doc = "Memory of the results of bonaware; not a public interface.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__memory(void)
{
    return PyModuleDef_Init(&module_def);
}
