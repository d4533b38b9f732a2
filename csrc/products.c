/* products.c - products by own kernels: the routes tile and dot.
 *
 * Rows of x are first rounded to what the kernels read, once for all outputs. Then panels are
 * dealt to the threads in groups that lie behind each other (deal.h). Within a group rows and
 * inputs are blocked so that a block of x stays in the L2 cache while all panels of the group
 * pass over it; the chains of the kernels go on through y, so blocking does not show in the bits.
 */
#include <stdlib.h>
#include <string.h>

#include "deal.h"
#include "int8.h"
#include "kernels.h"
#include "matrix.h"
#include "threads.h"

#define ROW_BLOCK 192         /* rows of x that are worked on together */
#define X_BLOCK (192 << 10)   /* bytes of x in a block: an L2 has 512 KiB */
#define Y_BLOCK 1536          /* rows times panels of y in a block: 96 KiB */
#define GROUP 16              /* most panels dealt to a thread at a time */
#define FEW_ROWS 4            /* kernels then take four panels side by side */
#define MANY_DEALS 16         /* for each thread: one more or less hardly shows */
#define LEAST_ROWS 96         /* of a deal: each reads all weights of its panels */
#define SERIAL_WORK 200000    /* multiply-adds below which threads do not pay */

/* -- rows of x ------------------------------------------------------------- */

/* A product, and rows of x as the kernels read them. */
typedef struct {
    const bon_matrix *m;
    bool dot;
    const void *x;         /* [rows, ldx]: float32 or int16 (tile), bfloat16 or int8 (dot) */
    size_t rows, ldx;      /* ldx in numbers, of `size` bytes */
    size_t size;
    const float *scale;    /* int8: of each row */
    const uint32_t *added; /* int8 by dot: what the kernel adds to the sums of a row, */
    const bon_i8_far *far; /* [rows, bon_i8_most_far(k)] what it leaves out, */
    const size_t *n_far;   /* [rows] and how many of them there are */
    void *memory;
} product;

/* `bytes` for each row, and behind them up to 64 for its scale and such; or NULL. */
static char *allocate(product *p, size_t bytes)
{
    size_t row, all;
    if (__builtin_add_overflow(bytes, 64, &row) || __builtin_mul_overflow(p->rows, row, &all))
        return NULL;
    return p->memory = malloc(all);
}

/* Numbers from row to row: an odd number of cache lines, so that the rows of a tile do not meet
 * in the same sets of the L1 cache. */
static size_t row_length(size_t numbers, size_t size)
{
    return ((numbers * size + 63) / 64 | 1) * 64 / size;
}

static bon_status round_bf16(product *p, const float *x, size_t ldx, int threads)
{
    const size_t k = p->m->k, padded = p->m->padded_k, rows = p->rows;
    const size_t length = row_length(padded, sizeof(uint16_t));
    uint16_t *out = (uint16_t *)(void *)allocate(p, length * sizeof *out);
    if (!out) return BON_ERR_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static) \
    if (threads > 1 && rows * k > BON_PARALLEL_ABOVE)
    for (size_t r = 0; r < rows; r++) {
        uint16_t *to = out + r * length;
        for (size_t i = 0; i < k; i++) to[i] = bon_f32_to_bf16(x[r * ldx + i]);
        memset(to + k, 0, (padded - k) * sizeof *to);
    }
    p->x = out;
    p->ldx = length;
    p->size = sizeof *out;
    return BON_OK;
}

/* To 12 bits. */
static bon_status round_i8_tile(product *p, const float *x, size_t ldx, int threads)
{
    const size_t k = p->m->k, padded = p->m->padded_k, rows = p->rows;
    const size_t length = row_length(padded, sizeof(int16_t));
    int16_t *out = (int16_t *)(void *)allocate(p, length * sizeof *out);
    if (!out) return BON_ERR_MEMORY;
    float *scale = (float *)(void *)(out + rows * length);
    const int levels = bon_i8_levels(padded);
#pragma omp parallel for num_threads(threads) schedule(static) \
    if (threads > 1 && rows * k > BON_PARALLEL_ABOVE)
    for (size_t r = 0; r < rows; r++)
        scale[r] = bon_i8_activations(x + r * ldx, k, padded, levels, out + r * length);
    p->x = out;
    p->ldx = length;
    p->size = sizeof *out;
    p->scale = scale;
    return BON_OK;
}

/* To 8 bits, and what is beyond them. */
static bon_status round_i8_dot(product *p, const float *x, size_t ldx, int threads)
{
    const size_t k = p->m->k, padded = p->m->padded_k, length = row_length(padded, 1);
    const size_t rows = p->rows, most = bon_i8_most_far(k);
    int8_t *digits = (int8_t *)allocate(p, length + most * sizeof(bon_i8_far));
    if (!digits) return BON_ERR_MEMORY;
    bon_i8_far *far = (bon_i8_far *)(void *)(digits + rows * length);
    size_t *n_far = (size_t *)(void *)(far + rows * most);
    float *scale = (float *)(void *)(n_far + rows);
    uint32_t *added = (uint32_t *)(void *)(scale + rows);
#pragma omp parallel for num_threads(threads) schedule(static) \
    if (threads > 1 && rows * k > BON_PARALLEL_ABOVE)
    for (size_t r = 0; r < rows; r++)
        scale[r] = bon_i8_digits(x + r * ldx, k, padded, digits + r * length, &added[r],
                                 far + r * most, &n_far[r]);
    p->x = digits;
    p->ldx = length;
    p->size = 1;
    p->scale = scale;
    p->added = added;
    p->far = far;
    p->n_far = n_far;
    return BON_OK;
}

static bon_status round_rows(product *p, const float *x, size_t ldx, int threads)
{
    if (p->m->dtype == BON_I8) return (p->dot ? round_i8_dot : round_i8_tile)(p, x, ldx, threads);
    if (p->dot) return round_bf16(p, x, ldx, threads);
    p->x = x;
    p->ldx = ldx;
    p->size = sizeof *x;
    return BON_OK;
}

/* -- panels ---------------------------------------------------------------- */

/* y [rows, ldy] = rows of x times `count` panels, y in float32 or, for int8, int32. The panels
 * behind them come next where there are `more`. */
static void multiply_panels(const product *p, const void *panels, size_t count, size_t row,
                            size_t rows, void *y, size_t ldy, bool more)
{
    const bon_kernels *kernel = bon_kernels_here();
    const bon_dtype dtype = p->m->dtype;
    const size_t size = bon_dtype_size(dtype), stride = p->m->padded_k * BON_PANEL;
    const size_t width = p->size == sizeof(float) ? p->m->k : p->m->padded_k; /* of x */
    const size_t step = X_BLOCK / p->size / rows / BON_K_ALIGN * BON_K_ALIGN;
    for (size_t k = 0; k < width; k += step) {
        const void *from = (const char *)panels + k * BON_PANEL * size;
        const void *x = (const char *)p->x + (row * p->ldx + k) * p->size;
        const size_t part = bon_smaller(step, width - k);
        const bool go_on = k > 0;
        const void *next = k + step < width ? (const char *)from + step * BON_PANEL * size
                           : more ? (const char *)panels + count * stride * size : NULL;
#define CALL(KERNEL)                                                                       \
    KERNEL(from, count, stride, part, x, rows, p->ldx, y, ldy, BON_PANEL, go_on, next)
        if (dtype == BON_F32)
            CALL(kernel->f32);
        else if (dtype == BON_BF16 && p->dot)
            CALL(bon_kernels_dot_bf16);
        else if (dtype == BON_BF16)
            CALL(kernel->bf16);
        else if (p->dot)
            CALL(bon_kernels_dot_i8);
        else
            CALL(kernel->i8);
#undef CALL
    }
    for (size_t r = 0; p->far && r < rows; r++)
        bon_i8_add_far(p->far + (row + r) * bon_i8_most_far(p->m->k), p->n_far[row + r], panels,
                       count, stride, (int32_t *)y + r * ldy);
}

/* Sums of whole numbers become part of a row of y. */
static void put_row(const product *p, size_t row, const int32_t *sums, size_t count,
                    const float *scale, float *y)
{
    const uint32_t added = p->added ? p->added[row] : 0;
    const float t = p->scale[row];
    for (size_t j = 0; j < count; j++)
        y[j] = t * scale[j] * (float)(int32_t)((uint32_t)sums[j] - added);
}

/* Panels panel..panel+count-1 for rows row..row+rows-1 of x. Sums of whole numbers, and a last
 * panel that is wider than y, go by way of a block of their own. */
static void multiply_block(const product *p, size_t panel, size_t count, size_t row, size_t rows,
                           float *y, size_t ldy, bool more)
{
    union {
        float y[Y_BLOCK * BON_PANEL];
        int32_t sums[Y_BLOCK * BON_PANEL];
    } block;
    const bon_matrix *m = p->m;
    const size_t columns = count * BON_PANEL, column = panel * BON_PANEL;
    const size_t used = bon_smaller(columns, m->n - column);
    const void *panels =
        (const char *)m->data + column * m->padded_k * bon_dtype_size(m->dtype);
    y += row * ldy + column;
    if (m->dtype != BON_I8 && used == columns) {
        multiply_panels(p, panels, count, row, rows, y, ldy, more);
        return;
    }
    multiply_panels(p, panels, count, row, rows, &block, columns, more);
    for (size_t r = 0; r < rows; r++)
        if (m->dtype == BON_I8)
            put_row(p, row + r, block.sums + r * columns, used, m->scale + column, y + r * ldy);
        else
            memcpy(y + r * ldy, block.y + r * columns, used * sizeof *y);
}

/* Adds what the second digits of the weights in one panel of them give. */
static void add_fine(const product *p, size_t panel, size_t row, size_t rows, float *y,
                     size_t ldy)
{
    int32_t sums[ROW_BLOCK * BON_PANEL];
    const bon_fine_rows *f = &p->m->fine;
    const size_t first = panel * BON_PANEL, count = bon_smaller(BON_PANEL, f->count - first);
    multiply_panels(p, f->data + first * p->m->padded_k, 1, row, rows, sums, BON_PANEL, false);
    for (size_t r = 0; r < rows; r++) {
        float *to = y + (row + r) * ldy, some[BON_PANEL];
        put_row(p, row + r, sums + r * BON_PANEL, count, f->scale + first, some);
        for (size_t j = 0; j < count; j++)
            if (f->output[first + j] < p->m->n) to[f->output[first + j]] += some[j];
    }
}

/* -- products -------------------------------------------------------------- */

/* Panels dealt at a time, where a block has so many rows: few, so that all threads end at about
 * the same time, and a multiple of those that kernels take side by side: two, or four where rows
 * are few. */
static size_t group_size(size_t panels, size_t threads, size_t rows)
{
    const size_t most = bon_smaller(Y_BLOCK / rows, GROUP) / 2 * 2;
    const size_t wide = rows > FEW_ROWS ? 2 : 4;
    const size_t deals = rows > FEW_ROWS ? MANY_DEALS : 4; /* few rows are soon done */
    const size_t whole = panels / (deals * threads) / wide * wide;
    return bon_smaller(whole < wide ? wide : whole, most);
}

/* In how many deals the rows of a group go, so that all threads end at about the same time:
 * one, unless there are few groups and not as many for each thread. */
static size_t deals_of_rows(size_t rows, size_t groups, size_t threads)
{
    if (groups % threads == 0 || groups >= MANY_DEALS * threads) return 1;
    size_t deals = (rows + ROW_BLOCK - 1) / ROW_BLOCK;
    while (groups * deals % threads && rows / (deals + 1) >= LEAST_ROWS) deals++;
    return deals;
}

static void multiply(const product *p, float *y, size_t ldy, int threads)
{
    const size_t panels = p->m->panels, rows = p->rows;
    const size_t group = group_size(panels, (size_t)threads, bon_smaller(ROW_BLOCK, rows));
    const size_t groups = (panels + group - 1) / group;
    const size_t deals = deals_of_rows(rows, groups, (size_t)threads);
    const long fine = (long)((p->m->fine.count + BON_PANEL - 1) / BON_PANEL);
    const bool serial =
        threads == 1 || groups * deals == 1 || p->m->n * p->m->k < SERIAL_WORK / rows;
    bon_deal all;
    bon_deal_open(&all, groups * deals, serial ? 1 : (size_t)threads);
#pragma omp parallel num_threads(threads) if (!serial)
    for (bon_hand hand = {0}; bon_deal_take(&all, &hand);) {
        const size_t panel = hand.task / deals * group, deal = hand.task % deals;
        const size_t count = bon_smaller(group, panels - panel), end = rows * (deal + 1) / deals;
        for (size_t r = rows * deal / deals; r < end; r += ROW_BLOCK)
            multiply_block(p, panel, count, r, bon_smaller(ROW_BLOCK, end - r), y, ldy,
                           hand.more && deal == deals - 1);
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1 && fine > 1)
    for (long panel = 0; panel < fine; panel++)
        for (size_t r = 0; r < rows; r += ROW_BLOCK)
            add_fine(p, (size_t)panel, r, bon_smaller(ROW_BLOCK, rows - r), y, ldy);
}

bon_status bon_multiply_own(const bon_matrix *m, bool dot, const float *x, size_t rows,
                            size_t ldx, float *y, size_t ldy, int threads)
{
    product p = {.m = m, .dot = dot, .rows = rows};
    const bon_status status = round_rows(&p, x, ldx, threads);
    if (status != BON_OK) return status;
    multiply(&p, y, ldy, threads);
    free(p.memory);
    return BON_OK;
}
