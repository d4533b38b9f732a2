/* score.c - logits and log-probabilities of given texts.
 *
 * Completions are packed into batches of up to BON_CHUNK rows behind their shared
 * prompt; one that is longer goes through in chunks. Logits exist only for
 * LOGIT_ROWS rows at a time.
 */
#include "score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sample.h"

#define LOGIT_ROWS 32

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

static bool tokens_are_known(const bon_model *model, const int32_t *tokens, size_t len,
                             size_t *bad)
{
    const size_t vocab = bon_model_arch(model)->vocab;
    for (size_t i = 0; i < len; i++, ++*bad)
        if (tokens[i] < 0 || (size_t)tokens[i] >= vocab) return false;
    return true;
}

static bon_status make_cache(const bon_model *model, size_t blocks, bon_cache **cache)
{
    const bon_arch *a = bon_model_arch(model);
    return bon_cache_create(a->layers, a->kv_heads, a->head_dim, blocks, cache);
}

bon_status bon_score_logits(const bon_model *model, const int32_t *tokens, size_t len,
                            const bon_poll *poll, float *logits, size_t *bad)
{
    const bon_arch *a = bon_model_arch(model);
    *bad = len;
    if (len < 1 || len > a->max_positions) return BON_ERR_DOMAIN;
    *bad = 0;
    if (!tokens_are_known(model, tokens, len, bad)) return BON_ERR_DOMAIN;

    bon_work *work = NULL;
    bon_cache *cache = NULL;
    bon_seq seq = {0};
    bon_status status = bon_work_create(model, bon_model_pass_threads(model), &work);
    if (status == BON_OK) status = make_cache(model, bon_blocks_for(len), &cache);
    if (status == BON_OK) status = bon_work_reserve(work, min_size(len, BON_CHUNK), 1, len);
    if (status == BON_OK) status = bon_seq_reserve(cache, &seq, len);
    for (size_t at = 0; at < len && status == BON_OK; at += BON_CHUNK) {
        const bon_run run = {.own = &seq, .rows = min_size(len - at, BON_CHUNK)};
        const float *hidden;
        status = bon_model_forward(model, work, cache, BON_PREFILL, tokens + at, &run, 1, poll,
                                   &hidden);
        if (status == BON_OK)
            status = bon_model_logits(model, BON_PREFILL, hidden, run.rows,
                                      logits + at * a->vocab, bon_model_pass_threads(model));
    }
    if (cache) bon_seq_free(cache, &seq);
    bon_cache_destroy(cache);
    bon_work_destroy(work);
    return status;
}

/* -- completions ----------------------------------------------------------- */

/* One call's tools. */
typedef struct {
    const bon_model *model;
    bon_work *work;
    bon_cache *cache;
    const bon_poll *poll;
    int threads;
    float temperature;
    float *logits; /* [LOGIT_ROWS, vocab] */
} scorer;

/* logp of targets[i] behind row i of hidden. */
static bon_status read_targets(const scorer *s, const float *hidden, const int32_t *targets,
                               size_t rows, float *logp)
{
    const bon_arch *a = bon_model_arch(s->model);
    bon_status status = BON_OK;
    for (size_t at = 0; at < rows && status == BON_OK; at += LOGIT_ROWS) {
        const size_t count = min_size(LOGIT_ROWS, rows - at);
        if (bon_should_stop(s->poll)) return BON_ERR_INTERRUPTED;
        status = bon_model_logits(s->model, BON_PREFILL, hidden + at * a->hidden, count,
                                  s->logits, s->threads);
        for (size_t i = at; i < at + count && status == BON_OK; i++)
            status = bon_log_softmax_at(s->logits + (i - at) * a->vocab, a->vocab,
                                        s->temperature, &targets[i], 1, &logp[i]);
    }
    return status;
}

/* Rows that a completion feeds: all but its last token predict all but its first. */
static size_t rows_of(size_t length) { return length > 1 ? length - 1 : 0; }

/* One completion of any length, in chunks. */
static bon_status score_long(const scorer *s, const bon_seq *prompt, const int32_t *tokens,
                             size_t length, float *logp)
{
    bon_seq own = {0};
    bon_status status = bon_seq_reserve(s->cache, &own, rows_of(length));
    for (size_t at = 0; at < rows_of(length) && status == BON_OK; at += BON_CHUNK) {
        const bon_run run = {prompt, &own, 0, min_size(rows_of(length) - at, BON_CHUNK)};
        const float *hidden;
        status = bon_model_forward(s->model, s->work, s->cache, BON_PREFILL, tokens + at, &run, 1,
                                   s->poll, &hidden);
        if (status == BON_OK)
            status = read_targets(s, hidden, tokens + at + 1, run.rows, logp + at + 1);
    }
    bon_seq_free(s->cache, &own);
    return status;
}

/* Several completions whose rows fit into one batch. */
static bon_status score_batch(const scorer *s, const bon_seq *prompt, const int32_t *tokens,
                              const size_t *lengths, size_t count, float *logp)
{
    bon_run runs[BON_CHUNK];
    bon_seq own[BON_CHUNK] = {{0}};
    int32_t batch[BON_CHUNK], targets[BON_CHUNK];
    float read[BON_CHUNK];
    size_t n_runs = 0, rows = 0;
    bon_status status = BON_OK;
    for (size_t c = 0, at = 0; c < count && status == BON_OK; at += lengths[c++]) {
        const size_t take = rows_of(lengths[c]);
        if (take == 0) continue;
        status = bon_seq_reserve(s->cache, &own[n_runs], take);
        runs[n_runs] = (bon_run){prompt, &own[n_runs], rows, take};
        n_runs++;
        memcpy(batch + rows, tokens + at, take * sizeof *batch);
        memcpy(targets + rows, tokens + at + 1, take * sizeof *targets);
        rows += take;
    }
    const float *hidden;
    if (status == BON_OK && rows > 0)
        status = bon_model_forward(s->model, s->work, s->cache, BON_PREFILL, batch, runs, n_runs,
                                   s->poll, &hidden);
    if (status == BON_OK && rows > 0) status = read_targets(s, hidden, targets, rows, read);
    for (size_t c = 0, at = 0, row = 0; c < count && status == BON_OK; at += lengths[c++]) {
        memcpy(logp + at + 1, read + row, rows_of(lengths[c]) * sizeof *logp);
        row += rows_of(lengths[c]);
    }
    for (size_t r = 0; r < n_runs; r++) bon_seq_free(s->cache, &own[r]);
    return status;
}

/* How many completions, from the first on, go together: as many as fit into
 * BON_CHUNK rows, and at least one. */
static size_t group_size(const size_t *lengths, size_t count)
{
    size_t size = 1;
    for (size_t rows = rows_of(lengths[0]); size < count && size < BON_CHUNK; size++) {
        rows += rows_of(lengths[size]);
        if (rows > BON_CHUNK) break;
    }
    return size;
}

static size_t blocks_of_largest_group(const size_t *lengths, size_t count)
{
    size_t most = 1;
    for (size_t at = 0; at < count;) {
        const size_t size = group_size(lengths + at, count - at);
        size_t blocks = 0;
        for (size_t end = at + size; at < end; at++) blocks += bon_blocks_for(lengths[at]);
        if (blocks > most) most = blocks;
    }
    return most;
}

static bool texts_fit(const bon_arch *a, size_t prompt_len, const size_t *lengths, size_t count,
                      size_t *total, size_t *longest)
{
    *total = *longest = 0;
    if (prompt_len < 1 || prompt_len > a->max_positions) return false;
    for (size_t c = 0; c < count; c++) {
        if (lengths[c] > a->max_positions + 1 - prompt_len) return false;
        *total += lengths[c];
        if (lengths[c] > *longest) *longest = lengths[c];
    }
    return true;
}

bon_status bon_score_logp(const bon_model *model, const int32_t *prompt, size_t prompt_len,
                          const int32_t *completions, const size_t *lengths, size_t count,
                          float temperature, const bon_poll *poll, float *logp, size_t *bad)
{
    const bon_arch *a = bon_model_arch(model);
    size_t total, longest;
    *bad = SIZE_MAX;
    if (!texts_fit(a, prompt_len, lengths, count, &total, &longest)
        || !(temperature > 0.0f && temperature < INFINITY))
        return BON_ERR_DOMAIN;
    *bad = 0;
    if (!tokens_are_known(model, prompt, prompt_len, bad)
        || !tokens_are_known(model, completions, total, bad))
        return BON_ERR_DOMAIN;

    scorer s = {.model = model, .poll = poll, .threads = bon_model_pass_threads(model),
                .temperature = temperature};
    bon_seq seq = {0};
    const float *hidden;
    bon_status status = bon_work_create(model, s.threads, &s.work);
    const size_t blocks = bon_blocks_for(prompt_len) + blocks_of_largest_group(lengths, count);
    if (status == BON_OK) status = make_cache(model, blocks, &s.cache);
    if (status == BON_OK)
        status = bon_work_reserve(s.work, BON_CHUNK, BON_CHUNK, prompt_len + longest);
    if (status == BON_OK && !(s.logits = malloc(LOGIT_ROWS * a->vocab * sizeof(float))))
        status = BON_ERR_MEMORY;
    if (status == BON_OK)
        status = bon_model_prefill(model, s.work, s.cache, prompt, prompt_len, &seq, poll,
                                   &hidden);

    /* The prompt's last row predicts every completion's first token. */
    if (status == BON_OK)
        status = bon_model_logits(model, BON_PREFILL,
                                  hidden + (prompt_len - 1) % BON_CHUNK * a->hidden, 1,
                                  s.logits, s.threads);
    for (size_t c = 0, at = 0; c < count && status == BON_OK; at += lengths[c++])
        if (lengths[c] > 0)
            status = bon_log_softmax_at(s.logits, a->vocab, temperature, &completions[at], 1,
                                        &logp[at]);
    for (size_t c = 0, at = 0; c < count && status == BON_OK;) {
        const size_t size = group_size(lengths + c, count - c);
        status = rows_of(lengths[c]) > BON_CHUNK
                     ? score_long(&s, &seq, completions + at, lengths[c], logp + at)
                     : score_batch(&s, &seq, completions + at, lengths + c, size, logp + at);
        for (size_t end = c + size; c < end; c++) at += lengths[c];
    }

    if (s.cache) bon_seq_free(s.cache, &seq);
    bon_cache_destroy(s.cache);
    bon_work_destroy(s.work);
    free(s.logits);
    return status;
}
