/* kernels_tile.h - the tile kernels, for any width of vector; included once per file of them.
 *
 * A tile is R rows times W panels, held in registers while k runs: R + W loads
 * feed R*W multiply-adds. Few rows take more panels side by side, so that there
 * are always enough independent chains to hide the latency of a multiply-add,
 * and enough streams from memory. R and W are constants after inlining; loops
 * over them disappear.
 *
 * Tiles of the same panels follow each other, BLOCK lines of them at a time, which stay in
 * the L2 cache: the first tile brings them there, and all together ask for the lines that come
 * next. Without that memory would be idle while the later tiles compute. Where many tiles
 * follow, one slow tile costs less than all the asking, and the kernels do without.
 * A tile asks for its lines of y when it begins, so that they are there when it ends.
 *
 * The including file defines, before it:
 *
 *   vec            a vector of LANES float32, LANES = 8 or 16
 *   vec_zero, vec_load, vec_store
 *   vec_line(p)            LANES words of a panel, as vec_fma reads them
 *   vec_word(p)            the four bytes at p in every lane
 *   vec_fma(a, b, c)       a*b + c, of each lane's word: of float32, or what the file is for
 *   WORDS_ROWS_1, _2, _4   highest tile that the registers hold, for 1, 2, 4 panels side by
 *                          side; at most 12
 *   BULK                   panels side by side when there are many rows
 *
 * and, where panels of shorter numbers are to be widened in registers, WIDEN and
 *
 *   vec_even, vec_odd      of LANES pairs of bfloat16, the first and the second, widened
 *   vec_bytes_even, _odd   of the four int8 of a lane, the first and third, or the second
 *                          and fourth, as two int16
 *   vec_dot(a, b, c)       c + the sum of a lane's two products, in int32
 *   BF16_ROWS_..., I8_ROWS_...
 */
#define VECS (16 / LANES) /* vectors per panel */
#define MAX_ROWS 12
#define MAX_VECS (4 * VECS)
#define FEW_TILES 8 /* more of them do not ask for the panels that come next */
#define BLOCK 512 /* lines */
#define BURST 8   /* lines after which a tile asks again: few, or lines that are at hand wait
                   * behind those that come from memory */
#define LINE 64 /* bytes: one word of each lane, an input of float32, 2 of bfloat16, 4 of int8 */
/* With UBSan's check of every unrolled address the compiler needs half a minute
 * per file; a wrong address is found by ASan as well. */
#define UNCHECKED __attribute__((no_sanitize("undefined")))
#define INLINE UNCHECKED __attribute__((always_inline)) static inline
#ifdef __SANITIZE_ADDRESS__ /* else the checks of all addresses take minutes to compile */
#define UNROLL
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

typedef struct {
    const char *panels;
    size_t stride; /* bytes from panel to panel */
    size_t k;      /* inputs; words where no panel is widened */
    const float *x; /* words, of whatever numbers: seen by vec_word only */
    size_t ldx;
    float *y; /* float32 or int32, seen by loads and stores of vectors only */
    size_t ldy, apart; /* floats from row to row and from panel to panel of y */
    bool accumulate;
    const char *next;     /* panels to be multiplied after these, or NULL */
    size_t inputs, words; /* in a line: numbers of a panel, words of a row of x */
    const char *ahead;    /* panels to prefetch: `asks` lines per burst, */
    size_t asks, hurry;   /* and then `hurry` bytes on */
} task;

/* -- one tile -------------------------------------------------------------- */

/* Where vector v of row r lies in y. */
INLINE float *place(const task *t, size_t r, size_t v)
{
    return t->y + r * t->ldy + v / VECS * t->apart + v % VECS * LANES;
}

INLINE void begin(size_t R, size_t W, const task *t, vec acc[][MAX_VECS])
{
    UNROLL for (size_t r = 0; r < R; r++) {
        UNROLL for (size_t v = 0; v < W * VECS; v++)
            acc[r][v] = t->accumulate ? vec_load(place(t, r, v)) : vec_zero();
    }
    if (t->accumulate) return;
    UNROLL for (size_t r = 0; r < R; r++) {
        UNROLL for (size_t v = 0; v < W * VECS; v += VECS) __builtin_prefetch(place(t, r, v), 1);
    }
}

INLINE void end(size_t R, size_t W, const task *t, vec acc[][MAX_VECS])
{
    UNROLL for (size_t r = 0; r < R; r++) {
        UNROLL for (size_t v = 0; v < W * VECS; v++)
            vec_store(place(t, r, v), acc[r][v]);
    }
}

/* How far a tile has come. Every third row of x has a pointer, from which an address reaches
 * the next two. The compiler must not see where the pointers come from: it would rather find
 * each row's address from the one before, with an addition per row and step. */
typedef struct {
    const char *line; /* of the first panel */
    const float *row[MAX_ROWS / 3];
    const char *ahead;
} cursor;

INLINE cursor start(size_t R, const task *t)
{
    cursor c = {.line = t->panels, .ahead = t->ahead};
    UNROLL for (size_t r = 0; r < R; r += 3) c.row[r / 3] = t->x + r * t->ldx;
    return c;
}

INLINE void go_on(size_t R, cursor *c, size_t lines, size_t words)
{
    c->line += lines * LINE;
    UNROLL for (size_t g = 0; g < (R + 2) / 3; g++) {
        c->row[g] += words;
        __asm__("" : "+r"(c->row[g]));
    }
}

INLINE void prefetch(size_t W, const task *t, cursor *c)
{
    for (size_t i = 0; i < t->asks; i++) {
        UNROLL for (size_t w = 0; w < W; w++)
            _mm_prefetch(c->ahead + w * t->stride + i * LINE, _MM_HINT_T0);
    }
    c->ahead += t->hurry;
}

/* Vector v of a line of all panels, and the word of row r of x. */
INLINE vec load_line(const task *t, const cursor *c, size_t line, size_t v)
{
    const char *panel = c->line + v / VECS * t->stride + line * LINE;
    return vec_line((const float *)panel + v % VECS * LANES);
}

INLINE const float *word_of(const task *t, const cursor *c, size_t r, size_t word)
{
    return c->row[r / 3] + r % 3 * t->ldx + word;
}

/* One link of all chains: acc[r][v] += x[r] * b[v]. */
INLINE void add_link(size_t R, size_t W, const task *t, const cursor *c, size_t word, const vec *b,
                 vec acc[][MAX_VECS])
{
    UNROLL for (size_t r = 0; r < R; r++) {
        const vec a = vec_word(word_of(t, c, r, word));
        UNROLL for (size_t v = 0; v < W * VECS; v++) acc[r][v] = vec_fma(a, b[v], acc[r][v]);
    }
}

INLINE void line_words(size_t R, size_t W, const task *t, const cursor *c, size_t line,
                       vec acc[][MAX_VECS])
{
    vec b[MAX_VECS];
    UNROLL for (size_t v = 0; v < W * VECS; v++) b[v] = load_line(t, c, line, v);
    add_link(R, W, t, c, line, b, acc);
}

INLINE void tile_words(size_t R, size_t W, bool ask, const task *t)
{
    vec acc[MAX_ROWS][MAX_VECS];
    cursor c = start(R, t);
    begin(R, W, t, acc);
    size_t i = 0;
    while (i + 4 <= t->k) {
        const size_t turns = (t->k - i) / 4 < BURST / 4 ? (t->k - i) / 4 : BURST / 4;
        if (ask) prefetch(W, t, &c);
        for (const size_t stop = i + 4 * turns; i < stop; i += 4) {
            UNROLL for (size_t line = 0; line < 4; line++) line_words(R, W, t, &c, line, acc);
            go_on(R, &c, 4, 4);
        }
    }
    for (; i < t->k; i++) {
        line_words(R, W, t, &c, 0, acc);
        go_on(R, &c, 1, 1);
    }
    end(R, W, t, acc);
}

#ifdef WIDEN

/* Two inputs, or only the first. */
INLINE void line_bf16(size_t R, size_t W, const task *t, const cursor *c, size_t line,
                      bool both, vec acc[][MAX_VECS])
{
    vec b[MAX_VECS], pair[MAX_VECS];
    UNROLL for (size_t v = 0; v < W * VECS; v++) pair[v] = load_line(t, c, line, v);
    UNROLL for (size_t v = 0; v < W * VECS; v++) b[v] = vec_even(pair[v]);
    add_link(R, W, t, c, 2 * line, b, acc);
    if (!both) return;
    UNROLL for (size_t v = 0; v < W * VECS; v++) b[v] = vec_odd(pair[v]);
    add_link(R, W, t, c, 2 * line + 1, b, acc);
}

INLINE void tile_bf16(size_t R, size_t W, bool ask, const task *t)
{
    vec acc[MAX_ROWS][MAX_VECS];
    cursor c = start(R, t);
    begin(R, W, t, acc);
    size_t i = 0;
    while (i + 4 <= t->k) {
        const size_t turns = (t->k - i) / 4 < BURST / 2 ? (t->k - i) / 4 : BURST / 2;
        if (ask) prefetch(W, t, &c);
        for (const size_t stop = i + 4 * turns; i < stop; i += 4) {
            UNROLL for (size_t line = 0; line < 2; line++) line_bf16(R, W, t, &c, line, true, acc);
            go_on(R, &c, 2, 4);
        }
    }
    for (; i + 2 <= t->k; i += 2) {
        line_bf16(R, W, t, &c, 0, true, acc);
        go_on(R, &c, 1, 2);
    }
    if (i < t->k) line_bf16(R, W, t, &c, 0, false, acc);
    end(R, W, t, acc);
}

/* One link of int8: two inputs of each of the panels' four. */
INLINE void link_i8(size_t R, size_t W, const task *t, const cursor *c, size_t word,
                    const vec *b, vec acc[][MAX_VECS])
{
    UNROLL for (size_t r = 0; r < R; r++) {
        const vec a = vec_word(word_of(t, c, r, word));
        UNROLL for (size_t v = 0; v < W * VECS; v++) {
            acc[r][v] = vec_dot(a, b[v], acc[r][v]);
            /* Else the compiler adds the products of both links first, as whole numbers
             * allow, and has no registers left. */
            __asm__("" : "+v"(acc[r][v]));
        }
    }
}

INLINE void line_i8(size_t R, size_t W, const task *t, const cursor *c, size_t line,
                    vec acc[][MAX_VECS])
{
    vec b[MAX_VECS], four[MAX_VECS];
    UNROLL for (size_t v = 0; v < W * VECS; v++) four[v] = load_line(t, c, line, v);
    UNROLL for (size_t v = 0; v < W * VECS; v++) b[v] = vec_bytes_even(four[v]);
    link_i8(R, W, t, c, 2 * line, b, acc);
    UNROLL for (size_t v = 0; v < W * VECS; v++) b[v] = vec_bytes_odd(four[v]);
    link_i8(R, W, t, c, 2 * line + 1, b, acc);
}

INLINE void tile_i8(size_t R, size_t W, bool ask, const task *t)
{
    vec acc[MAX_ROWS][MAX_VECS];
    cursor c = start(R, t);
    begin(R, W, t, acc);
    size_t i = 0;
    while (i + 8 <= t->k) {
        const size_t turns = (t->k - i) / 8 < BURST / 2 ? (t->k - i) / 8 : BURST / 2;
        if (ask) prefetch(W, t, &c);
        for (const size_t stop = i + 8 * turns; i < stop; i += 8) {
            UNROLL for (size_t line = 0; line < 2; line++) line_i8(R, W, t, &c, line, acc);
            go_on(R, &c, 2, 4);
        }
    }
    if (i < t->k) line_i8(R, W, t, &c, 0, acc);
    end(R, W, t, acc);
}

#endif

/* -- all tiles of some panels ------------------------------------------------ */

typedef struct {
    size_t wide, rows; /* W and the largest R */
    void (*few)(const task *t, size_t rows);
    void (*many)(const task *t, size_t rows); /* without prefetch */
} shape;

#define CASE(R, KIND, LIMIT, W, ASK)                                                      \
    case R:                                                                               \
        if (R <= LIMIT) tile_##KIND(R, W, ASK, t);                                        \
        break;
#define DEFINE_TILES(NAME, KIND, LIMIT, W, ASK)                                           \
    UNCHECKED static void NAME(const task *t, size_t rows)                                \
    {                                                                                     \
        switch (rows) {                                                                   \
            CASE(1, KIND, LIMIT, W, ASK)                                                  \
            CASE(2, KIND, LIMIT, W, ASK)                                                  \
            CASE(3, KIND, LIMIT, W, ASK)                                                  \
            CASE(4, KIND, LIMIT, W, ASK)                                                  \
            CASE(5, KIND, LIMIT, W, ASK)                                                  \
            CASE(6, KIND, LIMIT, W, ASK)                                                  \
            CASE(7, KIND, LIMIT, W, ASK)                                                  \
            CASE(8, KIND, LIMIT, W, ASK)                                                  \
            CASE(9, KIND, LIMIT, W, ASK)                                                  \
            CASE(10, KIND, LIMIT, W, ASK)                                                 \
            CASE(11, KIND, LIMIT, W, ASK)                                                 \
            CASE(12, KIND, LIMIT, W, ASK)                                                 \
        }                                                                                 \
    }
/* Few rows read W > BULK streams, and the processor's own prefetch is best at that. */
#define DEFINE_SHAPE(KIND, LIMIT, W)                                                      \
    DEFINE_TILES(few_##KIND##_##W, KIND, LIMIT, W, W <= BULK)                             \
    DEFINE_TILES(many_##KIND##_##W, KIND, LIMIT, W, false)
#define SHAPE(KIND, LIMIT, W)                                                             \
    {W, LIMIT, few_##KIND##_##W, W <= BULK ? many_##KIND##_##W : few_##KIND##_##W}

#define SHAPES 3

DEFINE_SHAPE(words, WORDS_ROWS_4, 4)
DEFINE_SHAPE(words, WORDS_ROWS_2, 2)
DEFINE_SHAPE(words, WORDS_ROWS_1, 1)
static const shape words_shapes[SHAPES] = {
    SHAPE(words, WORDS_ROWS_4, 4), SHAPE(words, WORDS_ROWS_2, 2), SHAPE(words, WORDS_ROWS_1, 1)};

#ifdef WIDEN
DEFINE_SHAPE(bf16, BF16_ROWS_4, 4)
DEFINE_SHAPE(bf16, BF16_ROWS_2, 2)
DEFINE_SHAPE(bf16, BF16_ROWS_1, 1)
DEFINE_SHAPE(i8, I8_ROWS_4, 4)
DEFINE_SHAPE(i8, I8_ROWS_2, 2)
DEFINE_SHAPE(i8, I8_ROWS_1, 1)
static const shape bf16_shapes[SHAPES] = {
    SHAPE(bf16, BF16_ROWS_4, 4), SHAPE(bf16, BF16_ROWS_2, 2), SHAPE(bf16, BF16_ROWS_1, 1)};
static const shape i8_shapes[SHAPES] = {
    SHAPE(i8, I8_ROWS_4, 4), SHAPE(i8, I8_ROWS_2, 2), SHAPE(i8, I8_ROWS_1, 1)};
#endif

/* All rows for a block of `wide` panels, in tiles of nearly equal height; `next` are the lines
 * that follow, or NULL. */
static void block(task t, const shape *s, size_t rows, const char *next)
{
    const size_t tiles = (rows + s->rows - 1) / s->rows;
    t.ahead = next;
    t.hurry = next ? BURST * LINE / tiles : 0;
    t.asks = (t.hurry + LINE - 1) / LINE;
    void (*const tile)(const task *, size_t) = tiles > FEW_TILES ? s->many : s->few;
    for (size_t left = tiles; left > 0; left--) {
        const size_t height = (rows + left - 1) / left;
        tile(&t, height);
        t.x += height * t.ldx;
        t.y += height * t.ldy;
        if (next) t.ahead += t.k / t.inputs * t.hurry / BURST;
        rows -= height;
    }
}

/* All of `wide` panels. */
static void column(task t, const shape *s, size_t rows)
{
    const char *const next = t.next;
    for (size_t left = t.k; left > 0; left -= t.k) {
        t.k = left < BLOCK * t.inputs ? left : BLOCK * t.inputs;
        block(t, s, rows, left > t.k ? t.panels + BLOCK * LINE : next);
        t.panels += BLOCK * LINE;
        t.x += BLOCK * t.words;
        t.accumulate = true;
    }
}

static void product(task t, const shape *shapes, size_t count, size_t rows)
{
    const char *const next = t.next;
    for (const shape *s = shapes; s < shapes + SHAPES; s++) {
        if (rows > s->rows && s->wide > BULK) continue;
        for (; count >= s->wide; count -= s->wide) {
            const char *const behind = t.panels + s->wide * t.stride;
            t.next = count > s->wide ? behind : next;
            column(t, s, rows);
            t.panels = behind;
            t.y += s->wide * t.apart;
        }
    }
}

/* All sizes in words. */
static void words(const void *panels, size_t count, size_t stride, size_t k, const void *x,
                  size_t rows, size_t ldx, void *y, size_t ldy, size_t apart,
                  bool accumulate, const void *next)
{
    const task t = {.panels = panels, .stride = stride * sizeof(float),
                    .k = k, .x = x, .ldx = ldx, .y = y, .ldy = ldy, .apart = apart,
                    .accumulate = accumulate, .next = next, .inputs = 1, .words = 1};
    product(t, words_shapes, count, rows);
}

#ifdef WIDEN

static void f32(const float *panels, size_t count, size_t stride, size_t k, const float *x,
                size_t rows, size_t ldx, float *y, size_t ldy, size_t apart,
                bool accumulate, const void *next)
{
    words(panels, count, stride, k, x, rows, ldx, y, ldy, apart, accumulate, next);
}

static void bf16(const uint16_t *panels, size_t count, size_t stride, size_t k,
                 const float *x, size_t rows, size_t ldx, float *y, size_t ldy,
                 size_t apart, bool accumulate, const void *next)
{
    const task t = {.panels = (const char *)panels, .stride = stride * sizeof *panels,
                    .k = k, .x = x, .ldx = ldx, .y = y, .ldy = ldy, .apart = apart,
                    .accumulate = accumulate, .next = next, .inputs = 2, .words = 2};
    product(t, bf16_shapes, count, rows);
}

static void i8(const int8_t *panels, size_t count, size_t stride, size_t k, const int16_t *x,
               size_t rows, size_t ldx, int32_t *y, size_t ldy, size_t apart,
               bool accumulate, const void *next)
{
    const task t = {.panels = (const char *)panels, .stride = stride * sizeof *panels,
                    .k = k, .x = (const float *)(const void *)x, .ldx = ldx / 2,
                    .y = (float *)(void *)y, .ldy = ldy, .apart = apart,
                    .accumulate = accumulate, .next = next, .inputs = 4, .words = 2};
    product(t, i8_shapes, count, rows);
}

#endif
