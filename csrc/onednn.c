/* onednn.c - see onednn.h; the only file that includes dnnl.h. */
#include "onednn.h"

#include <dnnl.h>
#include <stdlib.h>
#include <string.h>

#include "threads.h"

#define CHUNK 512 /* rows whose copy is held at a time; a multiple of every block */
#define ALIGN 64

/* One shape of primitive. */
typedef struct {
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t primitive;
} shape;

struct bon_onednn {
    const char *panels;
    size_t count, k, rows;
    bon_dtype dtype;
    dnnl_engine_t engine;
    shape whole, rest; /* GROUP panels; the count % GROUP panels at the end */
};

static size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }
static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* oneDNN plans for as many threads as OpenMP would use by default. */
static int set_default_threads(int threads)
{
#ifdef _OPENMP
    const int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    return before;
#else
    return threads;
#endif
}

/* -- life -------------------------------------------------------------------- */

static dnnl_status_t describe(const bon_onednn *p, size_t panels, dnnl_primitive_desc_t *out)
{
    const bool f32 = p->dtype == BON_F32;
    const dnnl_data_type_t type = f32 ? dnnl_f32 : dnnl_bf16;
    const dnnl_dim_t m = (dnnl_dim_t)p->rows, k = (dnnl_dim_t)p->k;
    const dnnl_dim_t n = (dnnl_dim_t)(panels * BON_PANEL);
    const dnnl_dims_t x_shape = {m, k}, w_shape = {k, n}, y_shape = {m, n};
    dnnl_memory_desc_t x = NULL, w = NULL, y = NULL;
    dnnl_primitive_attr_t attr = NULL;

    dnnl_status_t status = dnnl_memory_desc_create_with_tag(&x, 2, x_shape, type, dnnl_ab);
    if (status == dnnl_success)
        status = dnnl_memory_desc_create_with_tag(&w, 2, w_shape, type,
                                                  f32 ? dnnl_BA16a16b : dnnl_BA16a16b2a);
    if (status == dnnl_success)
        status = dnnl_memory_desc_create_with_tag(&y, 2, y_shape, dnnl_f32, dnnl_ab);
    if (status == dnnl_success) status = dnnl_primitive_attr_create(&attr);
    if (status == dnnl_success)
        status = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (status == dnnl_success)
        status = dnnl_matmul_primitive_desc_create(out, p->engine, x, w, NULL, y, attr);
    dnnl_primitive_attr_destroy(attr);
    dnnl_memory_desc_destroy(y);
    dnnl_memory_desc_destroy(w);
    dnnl_memory_desc_destroy(x);
    return status;
}

static bon_status prepare(const bon_onednn *p, size_t panels, const char *family, shape *out)
{
    const char *name;
    if (panels == 0) return BON_OK;
    if (describe(p, panels, &out->desc) != dnnl_success
        || dnnl_primitive_desc_query(out->desc, dnnl_query_impl_info_str, 0, (void *)&name)
               != dnnl_success
        || strncmp(name, family, strlen(family)) != 0
        || dnnl_primitive_create(&out->primitive, out->desc) != dnnl_success)
        return BON_ERR_BACKEND;
    return BON_OK;
}

bon_status bon_onednn_create(const void *panels, size_t count, size_t k, bon_dtype dtype,
                             size_t rows, const char *family, bon_onednn **out)
{
    *out = NULL;
    bon_onednn *p = calloc(1, sizeof *p);
    if (!p) return BON_ERR_MEMORY;
    p->panels = panels;
    p->count = count;
    p->k = k;
    p->rows = rows;
    p->dtype = dtype;
    const int threads = set_default_threads(1);
    bon_status status = BON_ERR_BACKEND;
    if (dnnl_engine_create(&p->engine, dnnl_cpu, 0) == dnnl_success)
        status = prepare(p, smaller(count, BON_ONEDNN_GROUP), family, &p->whole);
    if (status == BON_OK && count > BON_ONEDNN_GROUP)
        status = prepare(p, count % BON_ONEDNN_GROUP, family, &p->rest);
    (void)set_default_threads(threads);
    if (status == BON_OK)
        *out = p;
    else
        bon_onednn_destroy(p);
    return status;
}

static void destroy_shape(shape *s)
{
    if (s->primitive) dnnl_primitive_destroy(s->primitive);
    if (s->desc) dnnl_primitive_desc_destroy(s->desc);
}

void bon_onednn_destroy(bon_onednn *product)
{
    if (!product) return;
    destroy_shape(&product->whole);
    destroy_shape(&product->rest);
    if (product->engine) dnnl_engine_destroy(product->engine);
    free(product);
}

/* -- one block ----------------------------------------------------------------- */

static const_dnnl_memory_desc_t memory_of(const shape *s, int argument)
{
    return dnnl_primitive_desc_query_md(s->desc, dnnl_query_exec_arg_md, argument);
}

static size_t scratch_bytes(const shape *s)
{
    return s->desc ? dnnl_memory_desc_get_size(memory_of(s, DNNL_ARG_SCRATCHPAD)) : 0;
}

/* y = x w^T for one block, on this thread. */
static dnnl_status_t execute(const bon_onednn *p, const shape *s, void *x, void *w, void *y,
                             void *scratch)
{
    const int arguments[] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST,
                             DNNL_ARG_SCRATCHPAD};
    void *const data[] = {x, w, y, scratch};
    dnnl_exec_arg_t list[4] = {{0, NULL}};
    dnnl_stream_t stream = NULL;
    dnnl_status_t status = dnnl_stream_create(&stream, p->engine, dnnl_stream_default_flags);
    for (int i = 0; i < 4 && status == dnnl_success; i++) {
        list[i].arg = arguments[i];
        status = dnnl_memory_create(&list[i].memory, memory_of(s, arguments[i]), p->engine,
                                    data[i]);
    }
    if (status == dnnl_success) status = dnnl_primitive_execute(s->primitive, stream, 4, list);
    if (status == dnnl_success) status = dnnl_stream_wait(stream);
    for (int i = 0; i < 4; i++)
        if (list[i].memory) dnnl_memory_destroy(list[i].memory);
    if (stream) dnnl_stream_destroy(stream);
    return status;
}

/* -- a product -------------------------------------------------------------------- */

/* One allocation: the copy of x, then per thread a block of y and oneDNN's scratch. */
typedef struct {
    char *x;
    char *threads;
    size_t y_bytes, thread_bytes;
} workspace;

static bon_status allocate(const bon_onednn *p, size_t rows, int threads, workspace *out)
{
    const size_t whole = scratch_bytes(&p->whole), rest = scratch_bytes(&p->rest);
    const size_t x_bytes = round_up(rows * p->k * bon_dtype_size(p->dtype), ALIGN);
    out->y_bytes = round_up(p->rows * BON_ONEDNN_GROUP * BON_PANEL * sizeof(float), ALIGN);
    out->thread_bytes = out->y_bytes + round_up(whole > rest ? whole : rest, ALIGN);
    out->x = aligned_alloc(ALIGN, x_bytes + out->thread_bytes * (size_t)threads);
    if (!out->x) return BON_ERR_MEMORY;
    out->threads = out->x + x_bytes;
    return BON_OK;
}

/* A row of x in the product's dtype, filled up to k with zeros. */
static void copy_row(const bon_onednn *p, const float *x, size_t width, char *to)
{
    if (p->dtype == BON_F32) {
        memcpy(to, x, width * sizeof *x);
    } else {
        uint16_t *half = (uint16_t *)to;
        for (size_t i = 0; i < width; i++) half[i] = bon_f32_to_bf16(x[i]);
    }
    const size_t size = bon_dtype_size(p->dtype);
    memset(to + width * size, 0, (p->k - width) * size);
}

/* Block `row` x `panel` of y, by way of the thread's own block. */
static dnnl_status_t multiply_block(const bon_onednn *p, const workspace *w, size_t row,
                                    size_t panel, float *y, size_t rows, size_t n, size_t ldy)
{
    const size_t size = bon_dtype_size(p->dtype);
    const size_t panels = smaller(BON_ONEDNN_GROUP, p->count - panel);
    const size_t column = panel * BON_PANEL, columns = panels * BON_PANEL;
    const bool whole = panels == smaller(BON_ONEDNN_GROUP, p->count);
    char *mine = w->threads + (size_t)bon_thread_index() * w->thread_bytes;
    const float *block = (const float *)mine;
    const dnnl_status_t status =
        execute(p, whole ? &p->whole : &p->rest, w->x + row * p->k * size,
                (char *)p->panels + column * p->k * size, mine, mine + w->y_bytes);
    if (status != dnnl_success || column >= n) return status;
    for (size_t r = 0; r < smaller(p->rows, rows - row); r++)
        memcpy(y + (row + r) * ldy + column, block + r * columns,
               smaller(columns, n - column) * sizeof *y);
    return status;
}

static bon_status multiply_chunk(const bon_onednn *p, const float *x, size_t rows,
                                 size_t width, size_t ldx, float *y, size_t n, size_t ldy,
                                 int threads)
{
    const size_t blocks = (rows + p->rows - 1) / p->rows, size = bon_dtype_size(p->dtype);
    const size_t groups = (p->count + BON_ONEDNN_GROUP - 1) / BON_ONEDNN_GROUP;
    workspace w;
    const bon_status status = allocate(p, blocks * p->rows, threads, &w);
    if (status != BON_OK) return status;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
#pragma omp for schedule(static)
        for (long r = 0; r < (long)(blocks * p->rows); r++)
            copy_row(p, x + smaller((size_t)r, rows - 1) * ldx, (size_t)r < rows ? width : 0,
                     w.x + (size_t)r * p->k * size);
#pragma omp for schedule(dynamic, 1)
        for (long i = 0; i < (long)(groups * blocks); i++)
            failed |= multiply_block(p, &w, (size_t)i % blocks * p->rows,
                                     (size_t)i / blocks * BON_ONEDNN_GROUP, y, rows, n, ldy)
                      != dnnl_success;
    }
    free(w.x);
    return failed ? BON_ERR_BACKEND : BON_OK;
}

bon_status bon_onednn_multiply(const bon_onednn *product, const float *x, size_t rows,
                               size_t width, size_t ldx, float *y, size_t n, size_t ldy,
                               int threads)
{
    bon_status status = BON_OK;
    const int before = set_default_threads(1);
    for (size_t r = 0; r < rows && status == BON_OK; r += CHUNK)
        status = multiply_chunk(product, x + r * ldx, smaller(CHUNK, rows - r), width, ldx,
                                y + r * ldy, n, ldy, threads);
    (void)set_default_threads(before);
    return status;
}

/* -- what is here ---------------------------------------------------------------- */

const char *bon_onednn_isa(void)
{
    switch (dnnl_get_effective_cpu_isa()) {
    case dnnl_cpu_isa_sse41: return "sse41";
    case dnnl_cpu_isa_avx: return "avx";
    case dnnl_cpu_isa_avx2: return "avx2";
    case dnnl_cpu_isa_avx2_vnni: return "avx2_vnni";
    case dnnl_cpu_isa_avx2_vnni_2: return "avx2_vnni_2";
    case dnnl_cpu_isa_avx512_core: return "avx512_core";
    case dnnl_cpu_isa_avx512_core_vnni: return "avx512_core_vnni";
    case dnnl_cpu_isa_avx512_core_bf16: return "avx512_core_bf16";
    case dnnl_cpu_isa_avx512_core_fp16: return "avx512_core_fp16";
    case dnnl_cpu_isa_avx512_core_amx: return "avx512_core_amx";
    case dnnl_cpu_isa_avx512_core_amx_fp16: return "avx512_core_amx_fp16";
    default: return "other";
    }
}

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

const char *bon_onednn_version(void)
{
    return TEXT(DNNL_VERSION_MAJOR) "." TEXT(DNNL_VERSION_MINOR) "." TEXT(DNNL_VERSION_PATCH);
}
