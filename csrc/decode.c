/* decode.c - the scheduler: who waits, who lives, who rests, who has ended.
 *
 * One step is: let waiting samples enter (prefilling their prompt if they are
 * its first), run the newest token of every live sample through the model, draw
 * the next ones, retire those that ended. Whoever has a slot is a resident: live
 * or held, or ended and kept. Residents are kept sorted by prompt, so that
 * attention serves all samples of a prompt together.
 *
 * A small model is not worth waking threads for each of its products: there the
 * live samples, or those that are asked, are dealt out to the threads, and each
 * computes its share alone, in a workspace of its own. Rows do not depend on their
 * batch, so the bits are the same either way.
 *
 * A question is a batch of forks. It writes to blocks of its own, and the newest
 * token of a sample goes through the model again when the sample does: neither
 * what is asked nor how its products are computed reaches what is drawn.
 *
 * All memory that a sample needs is taken when it enters; a step allocates
 * nothing and cannot fail for want of memory.
 */
#define _POSIX_C_SOURCE 199309L
#include "decode.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pages.h"
#include "threads.h"

/* Logits of one chunk of rows take about this many floats: 16 MB. */
#define LOGIT_FLOATS ((size_t)1 << 22)

typedef struct {
    int32_t *tokens;
    size_t length;
    uint64_t hash;
    bon_seq seq;            /* filled while any sample of it is resident */
    float *logits;          /* [vocab] behind the last token, or NULL: not prefilled */
    size_t waiting, residents; /* samples */
} prompt_record;

typedef struct {
    bon_sample_settings settings;
    size_t prompt;
    bon_sample_state state;
    bool has_event;
    bool resident; /* has a slot, and its tokens are in the cache */
    size_t limit;  /* tokens it may draw: settings and context */
    size_t length; /* tokens drawn; all but the last are in the cache */
    bon_seq seq;   /* own tokens, behind the prompt */
    int32_t *tokens; /* [limit] each, one allocation that starts here */
    float *logp, *sampled_logp, *certainty;
} sample_record;

struct bon_session {
    const bon_model *model;
    bon_work **works;     /* [shards]; the first also prefills */
    size_t shards;        /* 1, or the model's threads for a small model */
    int pass_threads;     /* inside one pass */
    bon_cache *cache;
    size_t slots;
    int32_t *end_tokens;
    size_t n_end;
    uint8_t *watch; /* [vocab] or NULL */

    prompt_record *prompts;
    size_t n_prompts, prompts_capacity;
    sample_record *samples;
    size_t n_samples, samples_capacity;
    size_t next_waiting;  /* samples enter in the order of their numbers */
    size_t n_waiting;
    size_t *residents;    /* [slots] sample numbers, sorted by prompt */
    size_t n_residents;
    size_t n_live, n_held; /* of them */
    bool hold_ends;
    size_t ask_blocks;
    size_t *events;       /* [samples_capacity] sample numbers, oldest first */
    size_t n_events, first_event;

    size_t chunk_rows;    /* rows of logits at a time, of all shards */
    float *logits;        /* [chunk_rows, vocab] */
    char *draw_scratch;   /* [threads] pieces of scratch_bytes */
    size_t scratch_bytes;
    bon_draw *draws;      /* [slots] */
    bon_status *statuses; /* [slots] */
    size_t *stepping;     /* [slots] the samples of the step under way */
    bon_run *runs;        /* [slots] */
    int32_t *tokens;      /* [slots] */
    bon_session_stats stats;
};

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }
static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

/* -- life ------------------------------------------------------------------ */

/* A multiple of the shards, so that each has as many. */
static size_t logit_rows(const bon_model *model, size_t slots)
{
    const size_t threads = (size_t)bon_model_threads(model);
    const size_t rows = min_size(slots, max_size(16, LOGIT_FLOATS / bon_model_arch(model)->vocab));
    return (rows + threads - 1) / threads * threads;
}

static size_t draw_scratch_bytes(const bon_model *model)
{
    return (bon_sample_scratch(bon_model_arch(model)->vocab) + 63) / 64 * 64;
}

size_t bon_session_scratch_bytes(const bon_model *model, size_t slots, size_t context)
{
    const bon_arch *a = bon_model_arch(model);
    const size_t rows = max_size(max_size(slots, BON_CHUNK), bon_model_prefill_rows(model));
    return (logit_rows(model, slots) + slots) * a->vocab * sizeof(float) /* and of prompts */
           + (size_t)bon_model_threads(model) * draw_scratch_bytes(model)
           + bon_work_bytes(model, rows, context);
}

bon_status bon_session_create(const bon_model *model, const bon_session_limits *limits,
                              bon_session **out)
{
    *out = NULL;
    const bon_arch *a = bon_model_arch(model);
    if (limits->slots < 1 || limits->slots > 1 << 20
        || limits->ask_blocks >= limits->cache_blocks)
        return BON_ERR_DOMAIN;
    bon_session *s = calloc(1, sizeof *s);
    if (s == NULL) return BON_ERR_MEMORY;
    s->model = model;
    s->slots = limits->slots;
    s->hold_ends = limits->hold_ends;
    s->ask_blocks = limits->ask_blocks;
    s->chunk_rows = logit_rows(model, s->slots);
    s->scratch_bytes = draw_scratch_bytes(model);

    bon_status status =
        bon_model_create_cache(model, a->layers, limits->cache_blocks, &s->cache);
    if (status != BON_OK) goto done;
    s->pass_threads = bon_model_pass_threads(model);
    s->shards = (size_t)(bon_model_threads(model) / s->pass_threads);
    status = BON_ERR_MEMORY;
    if (!(s->works = calloc(s->shards, sizeof(bon_work *)))) goto done;
    for (size_t i = 0; i < s->shards; i++)
        if ((status = bon_work_create(model, s->pass_threads, &s->works[i])) != BON_OK) goto done;
    status = BON_ERR_MEMORY;
    if (!(s->residents = calloc(s->slots, sizeof *s->residents))
        || !(s->stepping = calloc(s->slots, sizeof *s->stepping))
        || !(s->runs = calloc(s->slots, sizeof *s->runs))
        || !(s->tokens = calloc(s->slots, sizeof *s->tokens))
        || !(s->draws = calloc(s->slots, sizeof *s->draws))
        || !(s->statuses = calloc(s->slots, sizeof *s->statuses))
        || !(s->logits = bon_pages_alloc(s->chunk_rows * a->vocab * sizeof(float)))
        || !(s->draw_scratch = aligned_alloc(64, (size_t)bon_model_threads(model)
                                                     * s->scratch_bytes)))
        goto done;
    if (limits->n_end) {
        if (!(s->end_tokens = malloc(limits->n_end * sizeof *s->end_tokens))) goto done;
        memcpy(s->end_tokens, limits->end_tokens, limits->n_end * sizeof *s->end_tokens);
        s->n_end = limits->n_end;
    }
    if (limits->watch) {
        if (!(s->watch = malloc(a->vocab))) goto done;
        memcpy(s->watch, limits->watch, a->vocab);
    }
    *out = s;
    s = NULL;
    status = BON_OK;
done:
    bon_session_destroy(s);
    return status;
}

void bon_session_destroy(bon_session *s)
{
    if (s == NULL) return;
    for (size_t i = 0; i < s->n_samples; i++) {
        free(s->samples[i].tokens);
        free(s->samples[i].seq.blocks);
    }
    for (size_t i = 0; i < s->n_prompts; i++) {
        free(s->prompts[i].tokens);
        free(s->prompts[i].logits);
        free(s->prompts[i].seq.blocks);
    }
    free(s->samples);
    free(s->prompts);
    free(s->events);
    free(s->residents);
    free(s->stepping);
    free(s->runs);
    free(s->tokens);
    free(s->draws);
    free(s->statuses);
    bon_pages_free(s->logits, s->chunk_rows * bon_model_arch(s->model)->vocab * sizeof(float));
    free(s->draw_scratch);
    free(s->end_tokens);
    free(s->watch);
    for (size_t i = 0; s->works && i < s->shards; i++) bon_work_destroy(s->works[i]);
    free(s->works);
    bon_cache_destroy(s->cache);
    free(s);
}

/* -- prompts and samples --------------------------------------------------- */

static bool tokens_are_known(const bon_model *model, const int32_t *tokens, size_t len,
                             size_t *bad)
{
    const size_t vocab = bon_model_arch(model)->vocab;
    for (*bad = 0; *bad < len; ++*bad)
        if (tokens[*bad] < 0 || (size_t)tokens[*bad] >= vocab) return false;
    return true;
}

static bool grow(void **array, size_t *capacity, size_t need, size_t item)
{
    if (need <= *capacity) return true;
    const size_t wanted = max_size(16, need + need / 2);
    void *bigger = realloc(*array, wanted * item);
    if (bigger == NULL) return false;
    *array = bigger;
    *capacity = wanted;
    return true;
}

bon_status bon_session_add_prompt(bon_session *s, const int32_t *tokens, size_t len,
                                  size_t *prompt, size_t *bad)
{
    *bad = 0;
    if (len < 1 || len > bon_model_arch(s->model)->max_positions
        || !tokens_are_known(s->model, tokens, len, bad))
        return BON_ERR_DOMAIN;
    if (!grow((void **)&s->prompts, &s->prompts_capacity, s->n_prompts + 1, sizeof *s->prompts))
        return BON_ERR_MEMORY;
    prompt_record *p = &s->prompts[s->n_prompts];
    *p = (prompt_record){.length = len, .hash = bon_hash_tokens(tokens, len)};
    if (!(p->tokens = malloc(len * sizeof *tokens))) return BON_ERR_MEMORY;
    memcpy(p->tokens, tokens, len * sizeof *tokens);
    *prompt = s->n_prompts++;
    return BON_OK;
}

static size_t token_limit(const bon_session *s, size_t prompt, size_t max_new_tokens)
{
    return min_size(max_new_tokens,
                    bon_model_arch(s->model)->max_positions - s->prompts[prompt].length);
}

bon_status bon_session_add_sample(bon_session *s, size_t prompt,
                                  const bon_sample_settings *settings, size_t *sample)
{
    if (prompt >= s->n_prompts || settings->max_new_tokens < 1) return BON_ERR_DOMAIN;
    bon_status status = bon_sampling_check(&settings->how);
    if (status != BON_OK) return status;
    size_t capacity = s->samples_capacity; /* events grow with the samples */
    if (!grow((void **)&s->events, &capacity, s->n_samples + 1, sizeof *s->events)
        || !grow((void **)&s->samples, &s->samples_capacity, s->n_samples + 1,
                 sizeof *s->samples))
        return BON_ERR_MEMORY;
    sample_record *r = &s->samples[s->n_samples];
    *r = (sample_record){.settings = *settings, .prompt = prompt, .state = BON_WAITING};
    r->settings.key.prompt = s->prompts[prompt].hash;
    r->limit = token_limit(s, prompt, settings->max_new_tokens);
    s->prompts[prompt].waiting++;
    s->n_waiting++;
    *sample = s->n_samples++;
    return BON_OK;
}

static void add_event(bon_session *s, size_t sample)
{
    if (s->samples[sample].has_event) return;
    if (s->first_event == s->n_events) s->first_event = s->n_events = 0;
    if (s->n_events == s->samples_capacity) { /* at most one event per sample: room in front */
        s->n_events -= s->first_event;
        memmove(s->events, s->events + s->first_event, s->n_events * sizeof *s->events);
        s->first_event = 0;
    }
    s->samples[sample].has_event = true;
    s->events[s->n_events++] = sample;
}

bool bon_session_next_event(bon_session *s, size_t *sample)
{
    if (s->first_event == s->n_events) return false;
    *sample = s->events[s->first_event++];
    s->samples[*sample].has_event = false;
    return true;
}

/* -- retiring -------------------------------------------------------------- */

static void release_prompt(bon_session *s, prompt_record *p)
{
    bon_seq_free(s->cache, &p->seq);
    free(p->logits);
    p->logits = NULL;
}

/* A resident gives its slot and its cache back. */
static void leave(bon_session *s, size_t sample)
{
    sample_record *r = &s->samples[sample];
    size_t i = 0;
    while (s->residents[i] != sample) i++;
    memmove(&s->residents[i], &s->residents[i + 1],
            (--s->n_residents - i) * sizeof *s->residents);
    s->prompts[r->prompt].residents--;
    bon_seq_free(s->cache, &r->seq);
    r->resident = false;
}

static void release_unused_prompt(bon_session *s, prompt_record *p)
{
    if (p->residents + p->waiting == 0) release_prompt(s, p);
}

/* Whether an ended sample stays among the residents. */
static bool stays(const bon_session *s, const sample_record *r, bon_sample_state reason)
{
    const bool by_itself =
        reason == BON_END_TOKEN || reason == BON_STOP_STRING || reason == BON_LENGTH;
    return s->hold_ends && by_itself && r->resident && r->length > 0;
}

static void retire(bon_session *s, size_t sample, bon_sample_state reason)
{
    sample_record *r = &s->samples[sample];
    prompt_record *p = &s->prompts[r->prompt];
    if (r->state == BON_WAITING) {
        p->waiting--;
        s->n_waiting--;
    } else if (r->state == BON_HELD) {
        s->n_held--;
    } else {
        s->n_live--;
    }
    if (stays(s, r, reason)) r->seq.length = min_size(r->seq.length, r->length - 1);
    else if (r->resident) leave(s, sample);
    r->state = reason;
    release_unused_prompt(s, p);
    add_event(s, sample);
}

bon_status bon_session_end_sample(bon_session *s, size_t sample, bon_sample_state reason,
                                  size_t keep)
{
    if (sample >= s->n_samples || bon_sample_ended(s->samples[sample].state)
        || !bon_sample_ended(reason) || keep > s->samples[sample].length)
        return BON_ERR_DOMAIN;
    s->samples[sample].length = keep;
    retire(s, sample, reason);
    return BON_OK;
}

static void hold(bon_session *s, size_t sample)
{
    s->samples[sample].state = BON_HELD;
    s->n_live--;
    s->n_held++;
    add_event(s, sample);
}

bon_status bon_session_go_on(bon_session *s, size_t sample, size_t hold_at)
{
    if (sample >= s->n_samples || s->samples[sample].state != BON_HELD
        || (hold_at > 0 && hold_at <= s->samples[sample].length))
        return BON_ERR_DOMAIN;
    s->samples[sample].settings.hold_at = hold_at;
    s->samples[sample].state = BON_LIVE;
    s->n_held--;
    s->n_live++;
    return BON_OK;
}

bon_status bon_session_view(const bon_session *s, size_t sample, bon_sample_view *view)
{
    if (sample >= s->n_samples) return BON_ERR_DOMAIN;
    const sample_record *r = &s->samples[sample];
    *view = (bon_sample_view){
        .state = r->state, .in_cache = r->resident, .length = r->length,
        .prompt_length = s->prompts[r->prompt].length, .tokens = r->tokens, .logp = r->logp,
        .sampled_logp = r->sampled_logp, .certainty = r->certainty};
    return BON_OK;
}

void bon_session_forget(bon_session *s, size_t sample)
{
    if (sample >= s->n_samples || !bon_sample_ended(s->samples[sample].state)) return;
    sample_record *r = &s->samples[sample];
    if (r->resident) leave(s, sample);
    release_unused_prompt(s, &s->prompts[r->prompt]);
    free(r->tokens);
    r->tokens = NULL;
    r->logp = r->sampled_logp = r->certainty = NULL;
    r->length = 0;
}

/* -- drawing --------------------------------------------------------------- */

static bool is_end_token(const bon_session *s, int32_t token)
{
    for (size_t i = 0; i < s->n_end; i++)
        if (s->end_tokens[i] == token) return true;
    return false;
}

static void append(bon_session *s, size_t sample, const bon_draw *draw)
{
    sample_record *r = &s->samples[sample];
    r->tokens[r->length] = draw->token;
    r->logp[r->length] = draw->logp;
    r->sampled_logp[r->length] = draw->sampled_logp;
    r->certainty[r->length] = draw->certainty;
    r->length++;
    s->stats.new_tokens++;
    if (is_end_token(s, draw->token)) retire(s, sample, BON_END_TOKEN);
    else if (r->length == r->limit) retire(s, sample, BON_LENGTH);
    else if (r->length == r->settings.hold_at) hold(s, sample);
    else if (s->watch && s->watch[draw->token]) add_event(s, sample);
}

static bon_status draw_one(const bon_session *s, size_t sample, const float *logits,
                           int thread, bon_draw *draw)
{
    const sample_record *r = &s->samples[sample];
    return bon_sample_token(logits, bon_model_arch(s->model)->vocab, &r->settings.how,
                            bon_rng_uniform(&r->settings.key, r->length),
                            s->draw_scratch + (size_t)thread * s->scratch_bytes, draw);
}

/* -- entering -------------------------------------------------------------- */

static bon_status prefill(bon_session *s, prompt_record *p, const bon_poll *poll)
{
    const double start = seconds_now();
    const bon_arch *a = bon_model_arch(s->model);
    const float *last;
    float *logits = malloc(a->vocab * sizeof *logits);
    if (logits == NULL) return BON_ERR_MEMORY;
    bon_status status = bon_model_prefill(s->model, s->works[0], s->cache, p->tokens, p->length,
                                          &p->seq, poll, &last);
    if (status == BON_OK)
        status = bon_model_logits(s->model, BON_PREFILL, last, 1, logits, s->pass_threads);
    if (status != BON_OK) {
        bon_seq_free(s->cache, &p->seq);
        free(logits);
        return status;
    }
    p->logits = logits;
    s->stats.prompt_tokens += p->length;
    s->stats.prefill_seconds += seconds_now() - start;
    return BON_OK;
}

/* Rows of each shard but the last, of so many rows in all. */
static size_t share_of(const bon_session *s, size_t rows)
{
    return (rows + s->shards - 1) / s->shards;
}

/* Memory for all that the sample can draw, and its blocks. */
static bon_status make_room(bon_session *s, sample_record *r)
{
    const size_t context = s->prompts[r->prompt].length + r->limit;
    const size_t rows = share_of(s, min_size(s->slots, s->n_residents + s->n_waiting));
    for (size_t i = 0; i < s->shards; i++) {
        const bon_status status = bon_work_reserve(s->works[i], rows, context);
        if (status != BON_OK) return status;
    }
    if (r->tokens == NULL) {
        r->tokens = malloc(r->limit * (sizeof(int32_t) + 3 * sizeof(float)));
        if (r->tokens == NULL) return BON_ERR_MEMORY;
        r->logp = (float *)(r->tokens + r->limit);
        r->sampled_logp = r->logp + r->limit;
        r->certainty = r->sampled_logp + r->limit;
    }
    return bon_seq_reserve(s->cache, &r->seq, r->limit);
}

static void insert_resident(bon_session *s, size_t sample)
{
    size_t i = s->n_residents++;
    for (; i > 0 && s->samples[s->residents[i - 1]].prompt > s->samples[sample].prompt; i--)
        s->residents[i] = s->residents[i - 1];
    s->residents[i] = sample;
    s->samples[sample].resident = true;
    s->prompts[s->samples[sample].prompt].residents++;
}

/* Blocks that must be free for a sample to enter, whose prompt is `read` already. */
static size_t blocks_to_enter(const bon_session *s, const sample_record *r, bool read)
{
    return bon_blocks_for(r->limit) + s->ask_blocks
           + (read ? 0 : bon_blocks_for(s->prompts[r->prompt].length));
}

static bon_status enter_one(bon_session *s, size_t sample, const bon_poll *poll)
{
    sample_record *r = &s->samples[sample];
    prompt_record *p = &s->prompts[r->prompt];
    bon_status status = BON_OK;
    if (r->limit == 0) { /* the prompt fills the context */
        retire(s, sample, BON_LENGTH);
        return BON_OK;
    }
    if (blocks_to_enter(s, r, p->logits != NULL) > bon_cache_free_blocks(s->cache))
        return BON_ERR_FULL;
    if (p->logits == NULL && (status = prefill(s, p, poll)) != BON_OK) return status;

    bon_draw draw;
    if ((status = make_room(s, r)) != BON_OK
        || (status = draw_one(s, sample, p->logits, 0, &draw)) != BON_OK) {
        bon_seq_free(s->cache, &r->seq);
        return status;
    }
    r->state = BON_LIVE;
    p->waiting--;
    s->n_waiting--;
    s->n_live++;
    insert_resident(s, sample);
    append(s, sample, &draw);
    return BON_OK;
}

/* A prompt that is read, and all of whose samples wait. */
static bool is_idle(const prompt_record *p) { return p->logits != NULL && p->residents == 0; }

/* Where no sample lives: frees the cache of idle prompts; they will be read again.
 * Returns whether there was any. */
static bool release_idle_prompts(bon_session *s)
{
    bool any = false;
    for (prompt_record *p = s->prompts; p < s->prompts + s->n_prompts; p++) {
        if (!is_idle(p)) continue;
        release_prompt(s, p);
        any = true;
    }
    return any;
}

static bon_status enter(bon_session *s, const bon_poll *poll)
{
    while (s->n_residents < s->slots && s->n_waiting > 0) {
        const size_t sample = s->next_waiting;
        if (s->samples[sample].state == BON_WAITING) {
            if (bon_should_stop(poll)) return BON_ERR_INTERRUPTED;
            const bon_status status = enter_one(s, sample, poll);
            if (status == BON_ERR_FULL && s->n_live > 0) return BON_OK; /* later */
            if (status == BON_ERR_FULL && release_idle_prompts(s)) continue;
            if (status == BON_ERR_FULL && s->n_residents > 0) return BON_OK; /* see pending */
            if (status != BON_OK) return status;
        }
        s->next_waiting++;
    }
    return BON_OK;
}

/* Where no sample lives and some rest: whether the next that waits can enter, be it
 * that idle prompts are released for it. */
static bool next_can_enter(const bon_session *s)
{
    const sample_record *r = &s->samples[s->next_waiting];
    while (r->state != BON_WAITING) r++;
    size_t free_blocks = bon_cache_free_blocks(s->cache);
    for (const prompt_record *p = s->prompts; p < s->prompts + s->n_prompts; p++)
        if (is_idle(p)) free_blocks += p->seq.count;
    const bool read = s->prompts[r->prompt].residents > 0;
    return r->limit == 0 || blocks_to_enter(s, r, read) <= free_blocks;
}

bool bon_session_pending(const bon_session *s)
{
    if (s->n_live > 0 || s->n_waiting == 0) return s->n_live > 0;
    if (s->n_residents == 0) return true; /* it enters, or running says why not */
    return s->n_residents < s->slots && next_can_enter(s);
}

/* -- one step -------------------------------------------------------------- */

/* Draws the next token of rows [first, first + rows) of the step, whose hidden
 * states are given, into draws and statuses. One thread of logits and scratch
 * belongs to the shard, or all of them to the only one. */
static void draw_rows(bon_session *s, size_t shard, size_t first, size_t rows,
                      const float *hidden, const bon_poll *poll)
{
    const bon_arch *a = bon_model_arch(s->model);
    const size_t chunk = s->chunk_rows / s->shards;
    float *logits = s->logits + shard * chunk * a->vocab;
    for (size_t at = 0; at < rows; at += chunk) {
        const size_t count = min_size(chunk, rows - at);
        const bon_status status =
            bon_should_stop(poll)
                ? BON_ERR_INTERRUPTED
                : bon_model_logits(s->model, BON_DECODE, hidden + at * a->hidden, count, logits,
                                   s->pass_threads);
#pragma omp parallel for num_threads(s->pass_threads) schedule(static) \
    if (s->pass_threads > 1 && count * a->vocab > BON_PARALLEL_ABOVE / 4)
        for (size_t i = 0; i < count; i++) {
            const size_t row = first + at + i;
            s->statuses[row] =
                status != BON_OK ? status
                                 : draw_one(s, s->stepping[row], logits + i * a->vocab,
                                            (int)shard + bon_thread_index(), &s->draws[row]);
        }
    }
}

/* One shard of a step: rows [first, first + rows) through the model. A row that
 * gets no token is as it was. */
static void step_rows(bon_session *s, size_t shard, size_t first, size_t rows,
                      const bon_poll *poll)
{
    for (size_t i = first; i < first + rows; i++) {
        sample_record *r = &s->samples[s->stepping[i]];
        s->tokens[i] = r->tokens[r->length - 1];
        s->runs[i] = (bon_run){&s->prompts[r->prompt].seq, &r->seq, i - first, 1};
    }
    const float *hidden;
    const bon_status status =
        bon_model_forward(s->model, s->works[shard], s->cache, BON_DECODE, s->tokens + first,
                          s->runs + first, rows, poll, &hidden);
    if (status == BON_OK) draw_rows(s, shard, first, rows, hidden, poll);
    for (size_t i = first; i < first + rows; i++) {
        if (status != BON_OK) s->statuses[i] = status;
        else if (s->statuses[i] != BON_OK) s->samples[s->stepping[i]].seq.length--;
    }
}

/* The shards run side by side; the first, on the calling thread, looks at poll. */
static bon_status step(bon_session *s, const bon_poll *poll)
{
    const double start = seconds_now();
    const size_t rows = s->n_live, share = share_of(s, rows);
    for (size_t i = 0, at = 0; i < s->n_residents; i++)
        if (s->samples[s->residents[i]].state == BON_LIVE) s->stepping[at++] = s->residents[i];
    if (s->shards == 1 || share == rows) {
        step_rows(s, 0, 0, rows, poll);
    } else {
#pragma omp parallel for num_threads((int)s->shards) schedule(static, 1)
        for (size_t shard = 0; shard < s->shards; shard++)
            if (shard * share < rows)
                step_rows(s, shard, shard * share, min_size(share, rows - shard * share),
                          shard == 0 ? poll : NULL);
    }
    bon_status status = BON_OK;
    for (size_t i = 0; i < rows; i++) {
        if (s->statuses[i] == BON_OK) append(s, s->stepping[i], &s->draws[i]);
        else if (status == BON_OK) status = s->statuses[i];
    }
    s->stats.steps++;
    s->stats.decode_seconds += seconds_now() - start;
    return status;
}

bon_status bon_session_run(bon_session *s, size_t steps, const bon_poll *poll)
{
    for (size_t i = 0; i < steps && s->first_event == s->n_events; i++) {
        const bon_status entered = enter(s, poll);
        if (entered != BON_OK) return entered;
        if (s->first_event != s->n_events || s->n_live == 0) break;
        const bon_status stepped = step(s, poll);
        if (stepped != BON_OK) return stepped;
    }
    return BON_OK;
}

void bon_session_get_stats(const bon_session *s, bon_session_stats *stats)
{
    *stats = s->stats;
    stats->live = s->n_live;
    stats->held = s->n_held;
    stats->waiting = s->n_waiting;
    stats->free_blocks = bon_cache_free_blocks(s->cache);
}

/* -- questions ------------------------------------------------------------- */

/* A question under way; what it needs for `most` samples at a time. */
typedef struct {
    const int32_t *question; /* [len] */
    size_t len;
    const int32_t *named;
    size_t n_named;
    const bon_poll *poll;
    size_t most;
    bon_seq *forks;       /* [most], empty between batches */
    bon_run *runs;        /* [most] */
    int32_t *rows;        /* [most, len + 1] token ids */
    float *hidden;        /* [most, hidden] behind the question */
    bon_status *statuses; /* [shards] */
} asking;

static void free_asking(asking *q)
{
    free(q->forks);
    free(q->runs);
    free(q->rows);
    free(q->hidden);
    free(q->statuses);
}

static bon_status make_asking(const bon_session *s, size_t count, asking *q)
{
    q->most = min_size(count, max_size(s->shards, BON_CHUNK / (q->len + 1)));
    q->forks = calloc(q->most, sizeof *q->forks);
    q->runs = malloc(q->most * sizeof *q->runs);
    q->rows = malloc(q->most * (q->len + 1) * sizeof *q->rows);
    q->hidden = malloc(q->most * bon_model_arch(s->model)->hidden * sizeof *q->hidden);
    q->statuses = malloc(s->shards * sizeof *q->statuses);
    return q->forks && q->runs && q->rows && q->hidden && q->statuses ? BON_OK : BON_ERR_MEMORY;
}

/* Forks samples[0..*take-1], as many of them as there is room for: *take. */
static bon_status open_forks(bon_session *s, asking *q, const size_t *samples, size_t *take)
{
    for (size_t i = 0; i < *take; i++) {
        const sample_record *r = &s->samples[samples[i]];
        bon_status status = bon_seq_fork(s->cache, &r->seq, &q->forks[i]);
        if (status == BON_OK)
            status = bon_seq_reserve(s->cache, &q->forks[i], r->length + q->len);
        if (status == BON_ERR_FULL && i > 0) {
            bon_seq_free(s->cache, &q->forks[i]);
            *take = i;
        } else if (status != BON_OK) {
            return status;
        }
    }
    return BON_OK;
}

/* Room in every workspace for its share of the batch. */
static bon_status reserve_shares(const bon_session *s, const asking *q, const size_t *samples,
                                 size_t count)
{
    const size_t share = share_of(s, count);
    size_t context = 0;
    for (size_t i = 0; i < count; i++) {
        const sample_record *r = &s->samples[samples[i]];
        context = max_size(context, s->prompts[r->prompt].length + r->length + q->len);
    }
    for (size_t i = 0; i < s->shards; i++) {
        const bon_status status = bon_work_reserve(s->works[i], share * (q->len + 1), context);
        if (status != BON_OK) return status;
    }
    return BON_OK;
}

/* Logits and log-probabilities of `count` samples from their hidden states, some
 * rows at a time in the shard's part of the session's logits, or straight into
 * logits_out. */
static bon_status read_answers(bon_session *s, const asking *q, size_t shard, size_t count,
                               const float *hidden, float *logp_out, float *logits_out)
{
    const bon_arch *a = bon_model_arch(s->model);
    const size_t chunk = s->chunk_rows / s->shards;
    for (size_t at = 0; at < count; at += chunk) {
        const size_t rows = min_size(chunk, count - at);
        float *logits = logits_out ? logits_out + at * a->vocab
                                   : s->logits + shard * chunk * a->vocab;
        bon_status status = bon_model_logits(s->model, BON_PREFILL, hidden + at * a->hidden, rows,
                                             logits, s->pass_threads);
        for (size_t i = 0; i < rows && status == BON_OK; i++)
            status = bon_log_softmax_at(logits + i * a->vocab, a->vocab, 1.0f, q->named,
                                        q->n_named, logp_out + (at + i) * q->n_named);
        if (status != BON_OK) return status;
    }
    return BON_OK;
}

/* One shard of a batch: samples [first, first + count) through the model. */
static bon_status ask_share(bon_session *s, const asking *q, const size_t *samples, size_t shard,
                            size_t first, size_t count, float *logp_out, float *logits_out)
{
    const bon_arch *a = bon_model_arch(s->model);
    const size_t rows = q->len + 1; /* of a sample: its newest token, and the question */
    int32_t *tokens = q->rows + first * rows;
    float *last = q->hidden + first * a->hidden;
    for (size_t i = 0; i < count; i++) {
        const sample_record *r = &s->samples[samples[first + i]];
        tokens[i * rows] = r->tokens[r->length - 1];
        memcpy(tokens + i * rows + 1, q->question, q->len * sizeof *tokens);
        q->runs[first + i] = (bon_run){&s->prompts[r->prompt].seq, &q->forks[first + i],
                                       i * rows, rows};
    }
    const float *hidden;
    const bon_status status =
        bon_model_forward(s->model, s->works[shard], s->cache, BON_PREFILL, tokens,
                          q->runs + first, count, shard == 0 ? q->poll : NULL, &hidden);
    if (status != BON_OK) return status;
    for (size_t i = 0; i < count; i++)
        memcpy(last + i * a->hidden, hidden + ((i + 1) * rows - 1) * a->hidden,
               a->hidden * sizeof *last);
    return read_answers(s, q, shard, count, last, logp_out + first * q->n_named,
                        logits_out ? logits_out + first * a->vocab : NULL);
}

/* Asks samples[0..*take-1], or as many of them as there is room for: *take. */
static bon_status ask_batch(bon_session *s, asking *q, const size_t *samples, size_t *take,
                            float *logp_out, float *logits_out)
{
    bon_status status = open_forks(s, q, samples, take);
    const size_t count = *take, share = share_of(s, count);
    if (status == BON_OK) status = reserve_shares(s, q, samples, count);
    if (status == BON_OK && share == count) {
        status = ask_share(s, q, samples, 0, 0, count, logp_out, logits_out);
    } else if (status == BON_OK) {
        const size_t shards = (count + share - 1) / share;
#pragma omp parallel for num_threads((int)shards) schedule(static, 1)
        for (size_t i = 0; i < shards; i++)
            q->statuses[i] = ask_share(s, q, samples, i, i * share,
                                       min_size(share, count - i * share), logp_out, logits_out);
        for (size_t i = 0; i < shards && status == BON_OK; i++) status = q->statuses[i];
    }
    for (size_t i = 0; i < q->most; i++) bon_seq_free(s->cache, &q->forks[i]);
    return status;
}

static bool can_be_asked(const bon_session *s, size_t sample, size_t len)
{
    if (sample >= s->n_samples || !s->samples[sample].resident) return false;
    const sample_record *r = &s->samples[sample];
    const size_t most = bon_model_arch(s->model)->max_positions;
    return len <= most - s->prompts[r->prompt].length - r->length;
}

bon_status bon_session_ask(bon_session *s, const size_t *samples, size_t count,
                           const int32_t *question, size_t len, const int32_t *named,
                           size_t n_named, const bon_poll *poll, float *logp_out,
                           float *logits_out)
{
    const bon_arch *a = bon_model_arch(s->model);
    size_t bad;
    if (len < 1 || len >= a->max_positions || !tokens_are_known(s->model, question, len, &bad)
        || !tokens_are_known(s->model, named, n_named, &bad))
        return BON_ERR_DOMAIN;
    for (size_t i = 0; i < count; i++)
        if (!can_be_asked(s, samples[i], len)) return BON_ERR_DOMAIN;
    if (count == 0) return BON_OK;

    asking q = {.question = question, .len = len, .named = named, .n_named = n_named, .poll = poll};
    bon_status status = make_asking(s, count, &q);
    const size_t batches = (count + q.most - 1) / q.most; /* of equal size */
    for (size_t at = 0, take; at < count && status == BON_OK; at += take) {
        take = min_size((count + batches - 1) / batches, count - at);
        status = ask_batch(s, &q, samples + at, &take, logp_out + at * n_named,
                           logits_out ? logits_out + at * a->vocab : NULL);
    }
    free_asking(&q);
    return status;
}
