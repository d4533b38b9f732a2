/* test_learner.c - backward pass and learner on a small random model.
 *
 * That the gradients are right is shown in Python against torch and against a model
 * in float64; here: differences along a direction, same bits, faults of batches,
 * round trips, interrupts at every point, a failure of every allocation; adapters and a
 * reference among them. Linked with --wrap for the allocators (see the Makefile).
 */
#include <stdbool.h>
#include <string.h>

#include "check.h"
#include "failing.h"
#include "learner.h"

/* -- small models ----------------------------------------------------------- */

enum { VOCAB = 37, HIDDEN = 24, LAYERS = 3, HEADS = 4, KV = 2, DIM = 6, MLP = 20, CONTEXT = 60 };
enum { LARGEST = VOCAB * HIDDEN }; /* elements of a slot */

static const size_t windows[LAYERS] = {0, 9, 0};
static const uint8_t ropes[LAYERS] = {0, 1, 0};
static const float slow[DIM / 2] = {1.0f, 0.1f, 0.01f}, fast[DIM / 2] = {1.0f, 0.5f, 0.2f};

/* Every feature at once: two ropes, a window, soft-caps, biases, all norms. */
static const bon_arch rich = {
    .vocab = VOCAB, .hidden = HIDDEN, .layers = LAYERS, .heads = HEADS, .kv_heads = KV,
    .head_dim = DIM, .intermediate = MLP, .max_positions = CONTEXT,
    .activation = BON_GELU_TANH, .norm_eps = 1e-5f, .norm_offset = 1.0f, .qk_norm = true,
    .post_norms = true, .qkv_bias = true, .o_bias = true, .mlp_bias = true, .tied = false,
    .embed_scale = 2.0f, .attn_scale = 0.4f, .attn_softcap = 20.0f, .final_softcap = 30.0f,
    .window = windows, .rope = ropes, .ropes = 2, .rope_freq = {slow, fast},
    .rope_scale = {1.0f, 1.0f},
};

static bon_arch tied_arch(void)
{
    bon_arch arch = rich;
    arch.tied = true;
    arch.final_softcap = 0.0f;
    return arch;
}

static bon_arch scoring_arch(void)
{
    bon_arch arch = rich;
    arch.labels = 2;
    return arch;
}

static float noise(uint64_t *state) /* in [-0.5, 0.5) */
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(*state >> 40) / (1 << 24) - 0.5);
}

static bon_status fill_model(bon_model *model)
{
    float data[LARGEST];
    uint64_t state = 1;
    bon_slot slot;
    size_t layer, rows, cols;
    bon_status status = BON_OK;
    while (status == BON_OK && bon_model_missing(model, &slot, &layer)) {
        bon_model_shape(model, slot, &rows, &cols);
        for (size_t i = 0; i < rows * cols; i++) data[i] = noise(&state);
        status = bon_model_set(model, slot, layer, data, BON_F32);
    }
    return status;
}

/* An adapter beside every product, of different ranks. */
static bon_status add_adapters(bon_model *model)
{
    float data[LARGEST];
    uint64_t state = 3;
    size_t rows, cols;
    bon_status status = BON_OK;
    for (int s = BON_Q; s <= BON_DOWN && status == BON_OK; s++)
        status = bon_model_add_adapter(model, (bon_slot)s, 1 + (size_t)s % 3, 1.5f);
    for (int s = BON_Q_A; s <= BON_DOWN_B && status == BON_OK; s++)
        for (size_t layer = 0; layer < LAYERS && status == BON_OK; layer++) {
            bon_model_shape(model, (bon_slot)s, &rows, &cols);
            for (size_t i = 0; i < rows * cols; i++) data[i] = noise(&state);
            status = bon_model_set(model, (bon_slot)s, layer, data, BON_F32);
        }
    return status;
}

static bon_model *make_model(const bon_arch *arch, bon_dtype dtype, int threads)
{
    bon_model *model;
    CHECK(bon_model_create(arch, dtype, threads, &model) == BON_OK);
    CHECK(fill_model(model) == BON_OK);
    return model;
}

#define MEMORY ((size_t)64 << 20)

static bon_learner *make_learner_of(bon_model *model, bon_scope scope, size_t memory)
{
    bon_learner *learner;
    CHECK(bon_learner_create(model, scope, memory, &learner) == BON_OK);
    return learner;
}

static bon_learner *make_learner(bon_model *model, size_t memory)
{
    return make_learner_of(model, BON_TRAIN_ALL, memory);
}

/* -- a batch ---------------------------------------------------------------- */

/* Three trees: with branches of several lengths and an empty one, without any, and
 * one that fills the context. A row may have several targets, or none. */
enum { TREES = 3, ROWS = 5 + (7 + 0 + 1) + 4 + 20 + (40 + 3), TARGETS = 33 };

typedef struct {
    bon_batch batch;
    bon_tree trees[TREES];
    int32_t tokens[ROWS], target_token[TARGETS];
    size_t target_row[TARGETS];
    float target_weight[TARGETS], target_probability[TARGETS], values[TARGETS];
    float target_kl_weight[TARGETS], target_kl[TARGETS];
} example;

static const size_t first_branches[3] = {7, 0, 1}, last_branches[2] = {40, 3};

static void make_example(example *e)
{
    *e = (example){.trees = {{0, 5, 3, first_branches}, {13, 4, 0, NULL},
                             {17, 20, 2, last_branches}}};
    uint64_t state = 7;
    for (size_t r = 0; r < ROWS; r++)
        e->tokens[r] = (int32_t)((double)(noise(&state) + 0.5f) * VOCAB);
    for (size_t t = 0; t < TARGETS; t++) {
        e->target_row[t] = t / 2 * 9 / 2 + (t % 4 == 3); /* pairs in one row, neighbours, gaps */
        e->target_token[t] = (int32_t)(t % 2);
        e->target_weight[t] = noise(&state);
        e->target_probability[t] = (float)(t % 5) / 4.0f;
        e->target_kl_weight[t] = (float)(t % 3) - 0.5f;
    }
    CHECK(e->target_row[TARGETS - 1] < ROWS);
    e->batch = (bon_batch){.trees = e->trees, .n_trees = TREES, .tokens = e->tokens,
                           .targets = TARGETS, .target_row = e->target_row,
                           .target_token = e->target_token, .target_weight = e->target_weight,
                           .temperature = 0.8f};
}

/* The batch asks for divergences too. */
static void compare(example *e)
{
    e->batch.target_kl_weight = e->target_kl_weight;
    e->batch.target_kl = e->target_kl;
}

static bon_status accumulate(bon_learner *learner, example *e)
{
    return bon_learner_accumulate(learner, &e->batch, NULL, e->values);
}

/* -- all tensors of a learner ------------------------------------------------ */

/* Calls of next_slot name every slot of a model: `slot` and `layer` begin at 0. */
static bool next_slot(const bon_model *model, bon_slot *slot, size_t *layer, size_t *count)
{
    size_t rows, cols;
    while (*slot < BON_SLOTS) {
        if (bon_model_has(model, *slot) && *layer < (bon_slot_of_layer(*slot) ? LAYERS : 1)) {
            bon_model_shape(model, *slot, &rows, &cols);
            *count = rows * cols;
            return true;
        }
        *layer = 0;
        ++*slot;
    }
    return false;
}

#define EACH_SLOT(model)                                                          \
    size_t layer = 0, count = 0;                                                  \
    for (bon_slot slot = 0; next_slot(model, &slot, &layer, &count); layer++)

static const bon_kind kinds[] = {BON_WEIGHT, BON_GRADIENT, BON_MOMENT_1, BON_MOMENT_2};

static void get(const bon_learner *learner, bon_kind kind, bon_slot slot, size_t layer,
                float *to)
{
    CHECK(bon_learner_get(learner, kind, slot, layer, to) == BON_OK);
}

static bool same(const bon_model *model, bon_kind kind, const bon_learner *a,
                 const bon_learner *b)
{
    float x[LARGEST], y[LARGEST];
    EACH_SLOT(model) {
        get(a, kind, slot, layer, x);
        get(b, kind, slot, layer, y);
        if (memcmp(x, y, count * sizeof *x) != 0) return false;
    }
    return true;
}

static bool is_zero(const bon_model *model, bon_kind kind, const bon_learner *learner)
{
    float x[LARGEST];
    EACH_SLOT(model) {
        get(learner, kind, slot, layer, x);
        for (size_t i = 0; i < count; i++)
            if (x[i] != 0.0f) return false;
    }
    return true;
}

/* -- gradients --------------------------------------------------------------- */

static double objective(bon_learner *learner, example *e)
{
    double sum = 0.0;
    CHECK(accumulate(learner, e) == BON_OK);
    for (size_t t = 0; t < TARGETS; t++) {
        const double value = (double)e->values[t], weight = (double)e->target_weight[t];
        const double wanted = (double)e->target_probability[t];
        if (e->batch.target_probability == NULL) sum += weight * value;
        else sum -= weight * (log1p(exp(value)) - wanted * value);
        if (e->batch.target_kl) sum += (double)e->target_kl_weight[t] * (double)e->target_kl[t];
    }
    return sum;
}

typedef enum { PLAIN, PROBABILITIES, DIVERGENCE, ADAPTERS } objectives;

/* A step along the gradient of one slot raises the objective by its length. */
static void test_the_gradient_is_a_slope(const bon_arch *arch, objectives which)
{
    bon_model *model = make_model(arch, BON_F32, 1);
    if (which == ADAPTERS) CHECK(add_adapters(model) == BON_OK);
    const bon_scope scope = which == ADAPTERS ? BON_TRAIN_ADAPTERS : BON_TRAIN_ALL;
    const bon_arch other = tied_arch();
    bon_model *reference = which == DIVERGENCE ? make_model(&other, BON_F32, 1) : NULL;
    bon_learner *learner = make_learner_of(model, scope, MEMORY);
    bon_learner *moved = make_learner_of(model, scope, MEMORY);
    example e;
    make_example(&e);
    if (arch->labels > 0) e.batch.temperature = 1.0f;
    if (which == PROBABILITIES) e.batch.target_probability = e.target_probability;
    if (which == DIVERGENCE) {
        compare(&e);
        CHECK(bon_learner_set_reference(learner, reference) == BON_OK);
        CHECK(bon_learner_set_reference(moved, reference) == BON_OK);
    }
    (void)objective(learner, &e);
    float weight[LARGEST], slope[LARGEST], there[LARGEST];
    EACH_SLOT(model) {
        if (which == ADAPTERS && slot < BON_Q_A) continue; /* not trained */
        get(learner, BON_WEIGHT, slot, layer, weight);
        get(learner, BON_GRADIENT, slot, layer, slope);
        double squares = 0.0, ends[2];
        for (size_t i = 0; i < count; i++) squares += (double)slope[i] * (double)slope[i];
        CHECK(squares > 0.0);
        const double size = 4e-3 / sqrt(squares);
        for (int end = 0; end < 2; end++) {
            for (size_t i = 0; i < count; i++)
                there[i] = weight[i] + (float)(end ? -size : size) * slope[i];
            CHECK(bon_learner_set(moved, BON_WEIGHT, slot, layer, there) == BON_OK);
            ends[end] = objective(moved, &e);
        }
        CHECK(bon_learner_set(moved, BON_WEIGHT, slot, layer, weight) == BON_OK);
        const double found = (ends[0] - ends[1]) / (2.0 * size);
        CHECK(fabs(found - squares) < 0.01 * squares + 2e-3 * sqrt(squares));
    }
    bon_learner_destroy(learner);
    bon_learner_destroy(moved);
    bon_model_destroy(model);
    bon_model_destroy(reference);
}

static void test_gradients_have_the_same_bits_in_any_room(const bon_arch *arch, bon_dtype dtype)
{
    bon_model *one = make_model(arch, dtype, 1), *two = make_model(arch, dtype, 2);
    bon_learner *calm = make_learner(two, MEMORY), *alone = make_learner(one, MEMORY);
    example e, other;
    make_example(&e);
    CHECK(accumulate(calm, &e) == BON_OK && bon_learner_norm(calm) > 0.0);
    other = e;
    CHECK(accumulate(alone, &other) == BON_OK);
    CHECK(memcmp(e.values, other.values, sizeof e.values) == 0);
    CHECK(same(two, BON_GRADIENT, calm, alone));
    size_t full = 0, fits = 0;
    for (size_t memory = 1 << 16; memory < 1 << 24; memory += memory / 5) {
        bon_learner *narrow = make_learner(one, memory);
        memset(other.values, 0, sizeof other.values);
        const bon_status status = accumulate(narrow, &other);
        if (status == BON_OK) {
            fits++;
            CHECK(memcmp(e.values, other.values, sizeof e.values) == 0);
            CHECK(same(two, BON_GRADIENT, calm, narrow));
        } else {
            CHECK(status == BON_ERR_FULL && fits == 0);
            full++;
        }
        bon_learner_destroy(narrow);
    }
    CHECK(full > 3 && fits > 10);
    bon_learner_destroy(calm);
    bon_learner_destroy(alone);
    bon_model_destroy(one);
    bon_model_destroy(two);
}

static void test_nothing_has_no_gradient(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    bon_learner *learner = make_learner(model, MEMORY);
    example e;
    make_example(&e);
    e.batch.targets = 0;
    CHECK(accumulate(learner, &e) == BON_OK && is_zero(model, BON_GRADIENT, learner));
    e.batch.n_trees = 0;
    CHECK(accumulate(learner, &e) == BON_OK && is_zero(model, BON_GRADIENT, learner));
    bon_learner_destroy(learner);
    bon_model_destroy(model);
}

static int stop_at_zero(void *arg) { return (*(long *)arg)-- == 0; }

static void test_an_interrupted_pass_can_be_made_again(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    bon_learner *learner = make_learner(model, MEMORY), *calm = make_learner(model, MEMORY);
    example e;
    make_example(&e);
    CHECK(accumulate(calm, &e) == BON_OK);
    long asked = 0;
    for (bon_status status = BON_ERR_INTERRUPTED; status != BON_OK; asked++) {
        long countdown = asked;
        const bon_poll poll = {stop_at_zero, &countdown};
        status = bon_learner_accumulate(learner, &e.batch, &poll, e.values);
        CHECK(status == BON_OK || status == BON_ERR_INTERRUPTED);
        if (status == BON_OK) break;
        bon_learner_zero(learner);
    }
    CHECK(asked > 10 * LAYERS);
    CHECK(same(model, BON_GRADIENT, learner, calm));
    bon_learner_destroy(learner);
    bon_learner_destroy(calm);
    bon_model_destroy(model);
}

static void test_values_that_are_not_finite_are_found(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    bon_learner *learner = make_learner(model, MEMORY);
    example e;
    make_example(&e);
    float norm[HIDDEN] = {[3] = NAN};
    CHECK(bon_learner_set(learner, BON_WEIGHT, BON_FINAL_NORM, 0, norm) == BON_OK);
    CHECK(accumulate(learner, &e) == BON_ERR_NOT_FINITE);
    bon_learner_destroy(learner);

    bon_model *sound = make_model(&rich, BON_F32, 1);
    learner = make_learner(sound, MEMORY);
    compare(&e);
    CHECK(bon_learner_set_reference(learner, model) == BON_OK);
    CHECK(accumulate(learner, &e) == BON_ERR_NOT_FINITE);
    bon_learner_destroy(learner);
    bon_model_destroy(sound);
    bon_model_destroy(model);
}

/* -- faults of batches ------------------------------------------------------- */

static void expect_fault(const bon_model *model, const example *e, const char *start,
                         size_t where, long what)
{
    size_t index = SIZE_MAX;
    long found = 0;
    const char *fault = bon_batch_fault(model, &e->batch, &index, &found);
    CHECK(fault && strncmp(fault, start, strlen(start)) == 0);
    CHECK(index == where && found == what);
}

static void test_faults_are_found_and_named(void)
{
    bon_arch scoring = scoring_arch();
    bon_model *model = make_model(&rich, BON_F32, 1), *scorer = make_model(&scoring, BON_F32, 1);
    size_t index;
    long found;
    example good, e;
    make_example(&good);
    CHECK(bon_batch_fault(model, &good.batch, &index, &found) == NULL);
    CHECK(bon_batch_fault(scorer, &good.batch, &index, &found) == NULL);

#define DAMAGE(what)        \
    make_example(&e); \
    what
    DAMAGE(e.trees[1].prompt_rows = 0);
    expect_fault(model, &e, "a prompt needs at least one token", 1, 0);
    DAMAGE(e.trees[1].prompt_rows = CONTEXT + 1);
    expect_fault(model, &e, "a prompt must fit", 1, CONTEXT + 1);
    DAMAGE(e.trees[2].prompt_rows = 21);
    expect_fault(model, &e, "a prompt and its completion must fit", 2, 40);
    DAMAGE(e.tokens[9] = VOCAB);
    expect_fault(model, &e, "token ids must lie", 9, VOCAB);
    DAMAGE(e.tokens[ROWS - 1] = -1);
    expect_fault(model, &e, "token ids must lie", ROWS - 1, -1);
    DAMAGE(e.target_token[4] = VOCAB);
    expect_fault(model, &e, "targets must lie", 4, VOCAB);
    DAMAGE(e.target_token[4] = -2);
    expect_fault(model, &e, "targets must lie", 4, -2);
    DAMAGE(e.target_token[4] = 2);
    expect_fault(scorer, &e, "targets must lie", 4, 2);
    DAMAGE(e.target_row[TARGETS - 1] = ROWS);
    expect_fault(model, &e, "rows of targets must exist", TARGETS - 1, ROWS);
    DAMAGE(e.target_row[6] = 0);
    expect_fault(model, &e, "rows of targets must exist and ascend", 6, 0);
    DAMAGE(e.target_weight[8] = NAN);
    expect_fault(model, &e, "weights must be finite", 8, BON_NO_NUMBER);
    DAMAGE(e.target_probability[3] = 1.5f);
    e.batch.target_probability = e.target_probability;
    expect_fault(scorer, &e, "probabilities must lie", 3, BON_NO_NUMBER);
    e.target_probability[3] = NAN;
    expect_fault(scorer, &e, "probabilities must lie", 3, BON_NO_NUMBER);
#undef DAMAGE
    bon_model_destroy(model);
    bon_model_destroy(scorer);
}

/* -- steps, in and out ------------------------------------------------------- */

static const bon_adamw options = {.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8,
                                  .weight_decay = 0.1};

static void take_steps(bon_learner *learner, example *e, int count)
{
    for (int i = 0; i < count; i++) {
        CHECK(accumulate(learner, e) == BON_OK);
        CHECK(bon_learner_step(learner, &options, 0.5) == BON_OK);
    }
}

/* Other numbers for every kind and slot: written, or found to be there. */
static void visit_all(bon_learner *learner, const bon_model *model, bool write)
{
    float x[LARGEST], y[LARGEST];
    uint64_t state = 100;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        EACH_SLOT(model) {
            for (size_t i = 0; i < count; i++) x[i] = noise(&state);
            if (write) CHECK(bon_learner_set(learner, kinds[k], slot, layer, x) == BON_OK);
            get(learner, kinds[k], slot, layer, y);
            CHECK(memcmp(x, y, count * sizeof *x) == 0);
            if (kinds[k] != BON_WEIGHT) continue;
            CHECK(bon_model_get(model, slot, layer, y) == BON_OK);
            for (size_t i = 0; i < count; i++) CHECK(fabsf(x[i] - y[i]) <= 0.002f);
        }
    }
}

static void test_what_is_set_is_what_is_got(bon_dtype dtype)
{
    bon_model *model = make_model(&rich, dtype, 1);
    bon_learner *learner = make_learner(model, MEMORY);
    CHECK(is_zero(model, BON_MOMENT_1, learner) && is_zero(model, BON_MOMENT_2, learner));
    visit_all(learner, model, true);
    visit_all(learner, model, false); /* no slot has touched another */
    bon_learner_set_steps(learner, 12);
    CHECK(bon_learner_steps(learner) == 12);
    float x[LARGEST] = {0};
    CHECK(bon_learner_get(learner, BON_WEIGHT, BON_Q, LAYERS, x) == BON_ERR_DOMAIN);
    CHECK(bon_learner_set(learner, BON_WEIGHT, BON_EMBED, 1, x) == BON_ERR_DOMAIN);
    CHECK(bon_learner_get(learner, BON_WEIGHT, BON_SCORE, 0, x) == BON_ERR_DOMAIN);
    CHECK(bon_learner_get(learner, BON_WEIGHT, BON_SLOTS, 0, x) == BON_ERR_DOMAIN);
    bon_learner_destroy(learner);
    bon_model_destroy(model);
}

static void test_a_state_that_is_restored_goes_on_bit_for_bit(bon_dtype dtype)
{
    bon_arch arch = tied_arch();
    bon_model *model = make_model(&arch, dtype, 2), *fresh = make_model(&arch, dtype, 1);
    bon_learner *learner = make_learner(model, MEMORY), *restored = make_learner(fresh, MEMORY);
    example e;
    make_example(&e);
    take_steps(learner, &e, 3);
    CHECK(bon_learner_steps(learner) == 3 && is_zero(model, BON_GRADIENT, learner));
    float x[LARGEST];
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        EACH_SLOT(model) {
            get(learner, kinds[k], slot, layer, x);
            CHECK(bon_learner_set(restored, kinds[k], slot, layer, x) == BON_OK);
        }
    }
    bon_learner_set_steps(restored, 3);
    take_steps(learner, &e, 2);
    take_steps(restored, &e, 2);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        CHECK(same(model, kinds[k], learner, restored));
    bon_learner_destroy(learner);
    bon_learner_destroy(restored);
    bon_model_destroy(model);
    bon_model_destroy(fresh);
}

/* Steps too small for bfloat16 add up in the masters, and move the model in the end. */
static void test_masters_keep_what_bfloat16_would_lose(void)
{
    bon_model *model = make_model(&rich, BON_BF16, 1);
    bon_learner *learner = make_learner(model, MEMORY);
    const bon_adamw tiny = {.lr = 1e-5, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8};
    example e;
    make_example(&e);
    enum { COUNT = MLP * HIDDEN };
    float start[COUNT], master[COUNT], held[COUNT], first[COUNT];
    CHECK(bon_model_get(model, BON_GATE, 1, start) == BON_OK);
    size_t moved = 0, moved_at_once = 0;
    for (int step = 0; step < 60; step++) {
        CHECK(accumulate(learner, &e) == BON_OK);
        CHECK(bon_learner_step(learner, &tiny, 1.0) == BON_OK);
        if (step == 0) CHECK(bon_model_get(model, BON_GATE, 1, first) == BON_OK);
    }
    get(learner, BON_WEIGHT, BON_GATE, 1, master);
    CHECK(bon_model_get(model, BON_GATE, 1, held) == BON_OK);
    for (size_t i = 0; i < COUNT; i++) {
        moved += held[i] != start[i];
        moved_at_once += first[i] != start[i];
        CHECK(master[i] != start[i]);
        CHECK(fabsf(held[i] - master[i]) <= fabsf(master[i]) / 256.0f); /* 8 bits */
    }
    CHECK(moved > COUNT / 4 && moved_at_once < moved / 4);
    bon_learner_destroy(learner);
    bon_model_destroy(model);
}

static void test_weight_decay_is_for_matrices(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1);
    bon_learner *learner = make_learner(model, MEMORY);
    float before[LARGEST], after[LARGEST];
    get(learner, BON_WEIGHT, BON_DOWN, 1, before);
    CHECK(bon_learner_step(learner, &options, 1.0) == BON_OK); /* the gradient is 0 */
    get(learner, BON_WEIGHT, BON_DOWN, 1, after);
    for (size_t i = 0; i < HIDDEN * MLP; i++)
        CHECK(fabsf(after[i] - before[i] * 0.999f) <= 1e-7f);
    bon_model *other = make_model(&rich, BON_F32, 1);
    const bon_slot vectors[] = {BON_Q_BIAS, BON_MLP_NORM, BON_Q_NORM};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        size_t rows, cols;
        bon_model_shape(model, vectors[i], &rows, &cols);
        CHECK(bon_model_get(other, vectors[i], 1, before) == BON_OK);
        get(learner, BON_WEIGHT, vectors[i], 1, after);
        CHECK(memcmp(before, after, rows * sizeof *before) == 0);
    }
    bon_learner_destroy(learner);
    bon_model_destroy(model);
    bon_model_destroy(other);
}

/* -- every allocation fails once --------------------------------------------- */

/* lean: only adapters, and a reference to keep to. */
static bon_status learn(const bon_arch *arch, bon_dtype dtype, bool lean, bon_model *reference)
{
    bon_model *model = NULL;
    bon_learner *learner = NULL;
    example e;
    make_example(&e);
    bon_status status = bon_model_create(arch, dtype, 1, &model);
    if (status == BON_OK) status = fill_model(model);
    if (status == BON_OK && lean) status = add_adapters(model);
    if (status == BON_OK)
        status = bon_learner_create(model, lean ? BON_TRAIN_ADAPTERS : BON_TRAIN_ALL, MEMORY,
                                    &learner);
    if (status == BON_OK && lean) status = bon_learner_set_reference(learner, reference);
    if (lean) compare(&e);
    e.batch.n_trees = 1;
    e.batch.targets = 5;
    if (status == BON_OK) status = accumulate(learner, &e);
    e.batch.n_trees = TREES;
    e.batch.targets = TARGETS;
    if (status == BON_OK) status = accumulate(learner, &e); /* needs more room */
    if (status == BON_OK) status = bon_learner_step(learner, &options, 1.0);
    if (status == BON_OK) status = accumulate(learner, &e);
    allocations_left = -1;
    bon_learner_destroy(learner);
    bon_model_destroy(model);
    return status;
}

static void test_no_failed_allocation_leaks_or_crashes(const bon_arch *arch, bon_dtype dtype,
                                                       bool lean)
{
    bon_model *reference = lean ? make_model(arch, BON_F32, 1) : NULL;
    long fail_at = 0;
    for (;; fail_at++) {
        allocations_left = fail_at;
        const bon_status status = learn(arch, dtype, lean, reference);
        if (status == BON_OK) break;
        CHECK(status == BON_ERR_MEMORY);
    }
    CHECK(fail_at > 100);
    bon_model_destroy(reference);
}

static void test_a_learner_goes_on_where_memory_was_short(void)
{
    bon_arch arch = tied_arch();
    bon_model *model = make_model(&arch, BON_F32, 1);
    bon_learner *calm = make_learner(model, MEMORY);
    example e;
    make_example(&e);
    CHECK(accumulate(calm, &e) == BON_OK);
    bon_status status = BON_ERR_MEMORY;
    long fail_at = 0;
    for (; status == BON_ERR_MEMORY; fail_at++) {
        bon_learner *learner = make_learner(model, MEMORY);
        allocations_left = fail_at;
        status = accumulate(learner, &e);
        allocations_left = -1;
        if (status == BON_ERR_MEMORY) {
            bon_learner_zero(learner);
            CHECK(accumulate(learner, &e) == BON_OK);
        }
        CHECK(same(model, BON_GRADIENT, learner, calm));
        bon_learner_destroy(learner);
    }
    CHECK(status == BON_OK && fail_at > 5);
    bon_learner_destroy(calm);
    bon_model_destroy(model);
}

static void test_a_step_without_memory_changes_nothing(void)
{
    bon_model *model = make_model(&rich, BON_F32, 1), *same_model = make_model(&rich, BON_F32, 1);
    bon_learner *learner = make_learner(model, MEMORY), *calm = make_learner(same_model, MEMORY);
    example e;
    make_example(&e);
    CHECK(accumulate(learner, &e) == BON_OK && accumulate(calm, &e) == BON_OK);
    allocations_left = 7;
    CHECK(bon_learner_step(learner, &options, 1.0) == BON_ERR_MEMORY);
    allocations_left = -1;
    CHECK(bon_learner_steps(learner) == 0);
    CHECK(same(model, BON_WEIGHT, learner, calm) && same(model, BON_GRADIENT, learner, calm));
    CHECK(bon_learner_step(learner, &options, 1.0) == BON_OK);
    CHECK(bon_learner_step(calm, &options, 1.0) == BON_OK);
    CHECK(same(model, BON_WEIGHT, learner, calm) && same(model, BON_MOMENT_2, learner, calm));
    bon_learner_destroy(learner);
    bon_learner_destroy(calm);
    bon_model_destroy(model);
    bon_model_destroy(same_model);
}

int main(void)
{
    const bon_arch tied = tied_arch(), scoring = scoring_arch();
    test_the_gradient_is_a_slope(&rich, PLAIN);
    test_the_gradient_is_a_slope(&tied, PLAIN);
    test_the_gradient_is_a_slope(&scoring, PLAIN);
    test_the_gradient_is_a_slope(&scoring, PROBABILITIES);
    test_the_gradient_is_a_slope(&rich, DIVERGENCE);
    test_the_gradient_is_a_slope(&rich, ADAPTERS);
    test_gradients_have_the_same_bits_in_any_room(&rich, BON_F32);
    test_gradients_have_the_same_bits_in_any_room(&tied, BON_BF16);
    test_nothing_has_no_gradient();
    test_an_interrupted_pass_can_be_made_again();
    test_values_that_are_not_finite_are_found();
    test_faults_are_found_and_named();
    test_what_is_set_is_what_is_got(BON_F32);
    test_what_is_set_is_what_is_got(BON_BF16);
    test_a_state_that_is_restored_goes_on_bit_for_bit(BON_F32);
    test_a_state_that_is_restored_goes_on_bit_for_bit(BON_BF16);
    test_masters_keep_what_bfloat16_would_lose();
    test_weight_decay_is_for_matrices();
    test_no_failed_allocation_leaks_or_crashes(&tied, BON_F32, false);
    test_no_failed_allocation_leaks_or_crashes(&rich, BON_BF16, false);
    test_no_failed_allocation_leaks_or_crashes(&rich, BON_BF16, true);
    test_no_failed_allocation_leaks_or_crashes(&scoring, BON_F32, false);
    test_a_learner_goes_on_where_memory_was_short();
    test_a_step_without_memory_changes_nothing();
    return 0;
}
