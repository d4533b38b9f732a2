/* kernels_tile.h - the tile kernels, for any width of vector; included once per table.
 *
 * The including file defines, before it:
 *
 *   vec            a vector of LANES float32, LANES = 8 or 16
 *   LANES, TILE    TILE = how many accumulators fit into the registers
 *   BULK           panels side by side when there are many rows
 *   vec_zero, vec_load, vec_store, vec_set1, vec_fma(a, b, c) = a*b + c
 *   vec_even, vec_odd   the bfloat16 numbers in the low and high halves of
 *                       LANES 32-bit words, widened
 *
 * A tile is R rows times W panels, held in registers while k runs: R + W loads
 * feed R*W multiply-adds. Few rows take more panels side by side, so that there
 * are always enough independent chains to hide the latency of a multiply-add.
 * R and W are constants after inlining; loops over them disappear.
 */
#define VECS (16 / LANES) /* vectors per panel */
#define MAX_ROWS 12
#define ROW_LIMIT(W) (TILE / ((W) * VECS) < MAX_ROWS ? TILE / ((W) * VECS) : MAX_ROWS)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

typedef struct {
    const void *panels;
    size_t stride, k;
    const float *x;
    size_t ldx;
    float *y;
    size_t ldy;
    bool accumulate;
} task;

INLINE void begin(size_t R, size_t W, const task *t, vec acc[][TILE])
{
    UNROLL for (size_t r = 0; r < R; r++) {
        UNROLL for (size_t v = 0; v < W * VECS; v++)
            acc[r][v] = t->accumulate ? vec_load(t->y + r * t->ldy + v * LANES) : vec_zero();
    }
}

INLINE void end(size_t R, size_t W, const task *t, vec acc[][TILE])
{
    UNROLL for (size_t r = 0; r < R; r++) {
        UNROLL for (size_t v = 0; v < W * VECS; v++)
            vec_store(t->y + r * t->ldy + v * LANES, acc[r][v]);
    }
}

/* One step of all chains: acc[r][v] += x[r][i] * b[v]. */
INLINE void step(size_t R, size_t W, const float *x, size_t ldx, const vec *b,
                 vec acc[][TILE])
{
    UNROLL for (size_t r = 0; r < R; r++) {
        const vec a = vec_set1(x[r * ldx]);
        UNROLL for (size_t v = 0; v < W * VECS; v++) acc[r][v] = vec_fma(a, b[v], acc[r][v]);
    }
}

INLINE void tile_f32(size_t R, size_t W, const task *t)
{
    vec acc[MAX_ROWS][TILE];
    begin(R, W, t, acc);
    const float *w = t->panels, *x = t->x;
    for (size_t i = 0; i < t->k; i++, w += 16, x++) {
        vec b[TILE];
        UNROLL for (size_t v = 0; v < W * VECS; v++)
            b[v] = vec_load(w + v / VECS * t->stride + v % VECS * LANES);
        step(R, W, x, t->ldx, b, acc);
    }
    end(R, W, t, acc);
}

INLINE void tile_bf16(size_t R, size_t W, const task *t)
{
    vec acc[MAX_ROWS][TILE];
    begin(R, W, t, acc);
    const uint16_t *w = t->panels;
    const float *x = t->x;
    for (size_t i = 0; i < t->k; i += 2, w += 32, x += 2) {
        vec b[TILE], pair[TILE];
        UNROLL for (size_t v = 0; v < W * VECS; v++)
            pair[v] = vec_load_pairs(w + v / VECS * t->stride + v % VECS * LANES * 2);
        UNROLL for (size_t v = 0; v < W * VECS; v++) b[v] = vec_even(pair[v]);
        step(R, W, x, t->ldx, b, acc);
        if (i + 1 == t->k) break;
        UNROLL for (size_t v = 0; v < W * VECS; v++) b[v] = vec_odd(pair[v]);
        step(R, W, x + 1, t->ldx, b, acc);
    }
    end(R, W, t, acc);
}

#define CASE(KIND, R, W)                                                                  \
    case R:                                                                               \
        if (R <= ROW_LIMIT(W)) tile_##KIND(R, W, t);                                      \
        break;

/* All rows for W panels side by side, in tiles of nearly equal height. */
#define DEFINE_COLUMN(KIND, W)                                                            \
    static void tile_##KIND##_##W(const task *t, size_t rows)                             \
    {                                                                                     \
        switch (rows) {                                                                   \
            CASE(KIND, 1, W) CASE(KIND, 2, W) CASE(KIND, 3, W) CASE(KIND, 4, W)           \
            CASE(KIND, 5, W) CASE(KIND, 6, W) CASE(KIND, 7, W) CASE(KIND, 8, W)           \
            CASE(KIND, 9, W) CASE(KIND, 10, W) CASE(KIND, 11, W) CASE(KIND, 12, W)        \
        }                                                                                 \
    }                                                                                     \
    static void column_##KIND##_##W(task t, size_t rows)                                  \
    {                                                                                     \
        for (size_t left = (rows + ROW_LIMIT(W) - 1) / ROW_LIMIT(W); left > 0; left--) {  \
            const size_t height = (rows + left - 1) / left;                               \
            tile_##KIND##_##W(&t, height);                                                \
            t.x += height * t.ldx;                                                        \
            t.y += height * t.ldy;                                                        \
            rows -= height;                                                               \
        }                                                                                 \
    }

#define DEFINE_KERNEL(KIND, TYPE)                                                         \
    DEFINE_COLUMN(KIND, 4)                                                                \
    DEFINE_COLUMN(KIND, 2)                                                                \
    DEFINE_COLUMN(KIND, 1)                                                                \
    static void KIND(const TYPE *panels, size_t count, size_t stride, size_t k,           \
                     const float *x, size_t rows, size_t ldx, float *y, size_t ldy,       \
                     bool accumulate)                                                     \
    {                                                                                     \
        size_t p = 0;                                                                     \
        if (rows <= ROW_LIMIT(4))                                                         \
            for (; p + 4 <= count; p += 4)                                                \
                column_##KIND##_4((task){panels + p * stride, stride, k, x, ldx,          \
                                         y + p * 16, ldy, accumulate}, rows);             \
        if (rows <= ROW_LIMIT(2) || BULK == 2)                                            \
            for (; p + 2 <= count; p += 2)                                                \
                column_##KIND##_2((task){panels + p * stride, stride, k, x, ldx,          \
                                         y + p * 16, ldy, accumulate}, rows);             \
        for (; p < count; p++)                                                            \
            column_##KIND##_1((task){panels + p * stride, stride, k, x, ldx,              \
                                     y + p * 16, ldy, accumulate}, rows);                 \
    }

DEFINE_KERNEL(f32, float)
DEFINE_KERNEL(bf16, uint16_t)
