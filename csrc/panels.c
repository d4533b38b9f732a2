/* panels.c - gradients as products of panels; rows of panels in and out.
 *
 * Gradient: panel p of dy^T x is a product of the kernels (kernels.h) in which
 * the roles have moved: the panel is 16 columns of dy, the inputs of W are the
 * rows, and the chains run over the rows of the batch. For a block of those, x
 * is turned over once for all threads; then each thread copies panels of dy and
 * passes them over blocks of inputs, which stay in the L2 cache meanwhile.
 */
#include "panels.h"

#include <stdbool.h>
#include <string.h>

#include "kernels.h"
#include "threads.h"
#include "transpose.h"

#define ROWS 512          /* of the batch at a time */
#define TURNED (ROWS + 16) /* floats from input to input of x^T: no power of two */
#define INPUTS 96         /* most inputs in a block: with ROWS, what L2 keeps */
#define GROUP 8           /* most panels of dy that a thread holds */
#define STRIP 16          /* inputs that are turned over together: a cache line of x */
#define SERIAL_WORK 200000 /* multiply-adds below which threads do not pay */

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }
static size_t parts_of(size_t x, size_t part) { return (x + part - 1) / part; }
static size_t padded(size_t x) { return parts_of(x, BON_PANEL) * BON_PANEL; }

size_t bon_panels_floats(size_t n, size_t k)
{
    size_t floats, bytes;
    if (n > SIZE_MAX - BON_PANEL || k > SIZE_MAX - BON_PANEL
        || __builtin_mul_overflow(padded(n), padded(k), &floats)
        || __builtin_mul_overflow(floats, sizeof(float), &bytes))
        return 0;
    return floats;
}

/* -- gradient -------------------------------------------------------------- */

/* One call; from block to block dy, x and rows move on. */
typedef struct {
    size_t n, k;
    const float *dy, *x;
    size_t ldy, ldx, rows;
    float *grad;
    float *turned;       /* x^T of this block, [k][TURNED] */
    float *held;         /* panels of dy, per thread [group][ROWS][16] */
    size_t group, height; /* panels and inputs of a task */
} gradient;

/* Panels dealt at a time: few enough that all threads end at about the same time,
 * and even, because kernels take two side by side. */
static size_t group_size(size_t n, size_t threads)
{
    const size_t even = (parts_of(n, BON_PANEL) / (4 * threads) / 2 + 1) * 2;
    return smaller(even, GROUP);
}

static size_t turned_floats(size_t k) { return k * TURNED; }

size_t bon_gradient_scratch(size_t n, size_t k, int threads)
{
    const size_t held = group_size(n, (size_t)threads) * ROWS * BON_PANEL;
    return padded(turned_floats(k) + held * (size_t)threads) * sizeof(float);
}

static void turn_strip(const gradient *g, size_t strip)
{
    const size_t first = strip * STRIP;
    bon_transpose(g->x + first, g->ldx, g->rows, smaller(STRIP, g->k - first),
                  g->turned + first * TURNED, TURNED);
}

/* 16 columns of dy, those that it lacks filled up with zeros. */
static void hold_panel(const gradient *g, size_t column, float *panel)
{
    const size_t lanes = smaller(BON_PANEL, g->n - column);
    const float *dy = g->dy + column;
    if (lanes == BON_PANEL) { /* copies of a known size */
        for (size_t r = 0; r < g->rows; r++)
            memcpy(panel + r * BON_PANEL, dy + r * g->ldy, BON_PANEL * sizeof *panel);
        return;
    }
    memset(panel, 0, g->rows * BON_PANEL * sizeof *panel);
    for (size_t r = 0; r < g->rows; r++)
        memcpy(panel + r * BON_PANEL, dy + r * g->ldy, lanes * sizeof *panel);
}

/* Task t: a group of panels times a block of inputs. `group` says whose panels the
 * thread holds. */
static void add_products(const gradient *g, size_t t, float *held, size_t *group)
{
    const size_t blocks = parts_of(g->k, g->height), panels = parts_of(g->n, BON_PANEL);
    const size_t panel = t / blocks * g->group, input = t % blocks * g->height;
    const size_t count = smaller(g->group, panels - panel), apart = padded(g->k) * BON_PANEL;
    for (size_t p = 0; p < count && *group != panel; p++)
        hold_panel(g, (panel + p) * BON_PANEL, held + p * ROWS * BON_PANEL);
    *group = panel;
    bon_kernels_here()->f32(held, count, ROWS * BON_PANEL, g->rows,
                            g->turned + input * TURNED, smaller(g->height, g->k - input),
                            TURNED, g->grad + panel * apart + input * BON_PANEL, BON_PANEL,
                            apart, true, NULL);
}

static void add_block(const gradient *g, int threads)
{
    const long strips = (long)parts_of(g->k, STRIP);
    const long tasks = (long)(parts_of(parts_of(g->n, BON_PANEL), g->group)
                              * parts_of(g->k, g->height));
    const bool serial = threads == 1 || g->n * g->k < SERIAL_WORK / g->rows;
#pragma omp parallel num_threads(threads) if (!serial)
    {
        float *held = g->held + (size_t)bon_thread_index() * g->group * ROWS * BON_PANEL;
        size_t group = SIZE_MAX;
#pragma omp for schedule(static)
        for (long s = 0; s < strips; s++) turn_strip(g, (size_t)s);
#pragma omp for schedule(dynamic, 1)
        for (long t = 0; t < tasks; t++) add_products(g, (size_t)t, held, &group);
    }
}

void bon_matrix_gradient(size_t n, size_t k, const float *dy, size_t ldy, const float *x,
                         size_t ldx, size_t rows, float *grad, void *scratch, int threads)
{
    gradient g = {.n = n, .k = k, .ldy = ldy, .ldx = ldx, .grad = grad, .turned = scratch,
                  .held = (float *)scratch + turned_floats(k),
                  .group = group_size(n, (size_t)threads),
                  .height = parts_of(k, parts_of(k, INPUTS))};
    for (size_t r = 0; r < rows; r += ROWS) {
        g.dy = dy + r * ldy;
        g.x = x + r * ldx;
        g.rows = smaller(ROWS, rows - r);
        add_block(&g, threads);
    }
}

/* -- rows in and out --------------------------------------------------------- */

/* The outputs first..last-1 that panel p holds: lanes from..to-1. */
static void lanes_of(size_t p, size_t first, size_t last, size_t *from, size_t *to)
{
    const size_t begin = p * BON_PANEL;
    *from = (begin > first ? begin : first) - begin;
    *to = smaller(begin + BON_PANEL, last) - begin;
}

void bon_panels_unpack(const float *panels, size_t n, size_t k, size_t first, size_t rows,
                       float *out, int threads)
{
    const size_t last = first + smaller(rows, n - first), stride = padded(k) * BON_PANEL;
    const long low = (long)(first / BON_PANEL), high = (long)parts_of(last, BON_PANEL);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && high > low + 1)
    for (long p = low; p < high; p++) {
        size_t from, to;
        lanes_of((size_t)p, first, last, &from, &to);
        bon_transpose(panels + (size_t)p * stride + from, BON_PANEL, k, to - from,
                      out + ((size_t)p * BON_PANEL + from - first) * k, k);
    }
}

void bon_panels_pack(float *panels, size_t n, size_t k, size_t first, size_t rows,
                     const float *in, int threads)
{
    const size_t last = first + smaller(rows, n - first), stride = padded(k) * BON_PANEL;
    const long low = (long)(first / BON_PANEL), high = (long)parts_of(last, BON_PANEL);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && high > low + 1)
    for (long p = low; p < high; p++) {
        size_t from, to;
        lanes_of((size_t)p, first, last, &from, &to);
        bon_transpose(in + ((size_t)p * BON_PANEL + from - first) * k, k, to - from, k,
                      panels + (size_t)p * stride + from, BON_PANEL);
    }
}

/* Threads share the inputs: every element has one writer, which goes by the rows. */
void bon_panels_scatter(float *panels, size_t k, const int32_t *row_of, const float *x,
                        size_t ldx, size_t rows, int threads)
{
    const size_t stride = padded(k) * BON_PANEL, share = parts_of(k, (size_t)threads);
    const bool serial = threads == 1 || rows * k < BON_PARALLEL_ABOVE;
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (!serial)
    for (long part = 0; part < (long)parts_of(k, share); part++) {
        const size_t begin = (size_t)part * share, end = smaller(begin + share, k);
        for (size_t r = 0; r < rows; r++) {
            const size_t row = (size_t)row_of[r];
            float *lane = panels + row / BON_PANEL * stride + row % BON_PANEL;
            for (size_t i = begin; i < end; i++) lane[i * BON_PANEL] += x[r * ldx + i];
        }
    }
}
