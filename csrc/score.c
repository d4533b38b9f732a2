/* score.c - logits, log-probabilities and scores of given texts.
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
    return bon_model_create_cache(model, bon_model_arch(model)->layers, blocks, cache);
}

bon_status bon_score_logits(const bon_model *model, const int32_t *tokens, size_t len,
                            const bon_poll *poll, float *logits, size_t *bad)
{
    const bon_arch *a = bon_model_arch(model);
    *bad = len;
    if (a->labels > 0 || len < 1 || len > a->max_positions) return BON_ERR_DOMAIN;
    *bad = 0;
    if (!tokens_are_known(model, tokens, len, bad)) return BON_ERR_DOMAIN;

    bon_work *work = NULL;
    bon_cache *cache = NULL;
    bon_seq seq = {0};
    bon_status status = bon_work_create(model, bon_model_pass_threads(model), &work);
    if (status == BON_OK) status = make_cache(model, bon_blocks_for(len), &cache);
    if (status == BON_OK) status = bon_work_reserve(work, min_size(len, BON_CHUNK), len);
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

/* One call's texts and tools. */
typedef struct {
    const bon_model *model;
    const int32_t *prompt, *completions;
    size_t prompt_len;
    const size_t *lengths;
    size_t count;
    size_t unread; /* tokens at the end of a completion that are not fed: 1 where they
                      are only predicted, 0 where the score stands behind them */
    const bon_poll *poll;
    int threads;
    bon_work *work;
    bon_cache *cache;
    bon_seq seq; /* the prompt's */
} scorer;

/* Rows that completion c feeds. */
static size_t rows_of(const scorer *s, size_t c)
{
    return s->lengths[c] > s->unread ? s->lengths[c] - s->unread : 0;
}

/* Where the completions that go together with completion c end: as many as fit into
 * BON_CHUNK rows, and at least one. */
static size_t end_of_group(const scorer *s, size_t c)
{
    size_t end = c + 1;
    for (size_t rows = rows_of(s, c); end < s->count && end - c < BON_CHUNK; end++) {
        rows += rows_of(s, end);
        if (rows > BON_CHUNK) break;
    }
    return end;
}

static size_t blocks_of_largest_group(const scorer *s)
{
    size_t most = 1;
    for (size_t c = 0; c < s->count;) {
        const size_t end = end_of_group(s, c);
        size_t blocks = 0;
        for (; c < end; c++) blocks += bon_blocks_for(rows_of(s, c));
        if (blocks > most) most = blocks;
    }
    return most;
}

static size_t cache_blocks(const scorer *s)
{
    return bon_blocks_for(s->prompt_len) + blocks_of_largest_group(s);
}

static size_t context_of(const scorer *s)
{
    size_t longest = 0;
    for (size_t c = 0; c < s->count; c++)
        if (rows_of(s, c) > longest) longest = rows_of(s, c);
    return s->prompt_len + longest;
}

/* Whether texts are known and fit; else *bad is as score.h says. */
static bool texts_are_sound(const scorer *s, size_t *bad)
{
    const size_t most = bon_model_arch(s->model)->max_positions;
    size_t total = 0;
    *bad = SIZE_MAX;
    if (s->prompt_len < 1 || s->prompt_len > most) return false;
    for (size_t c = 0; c < s->count; total += s->lengths[c++])
        if (s->lengths[c] > most + s->unread - s->prompt_len) return false;
    *bad = 0;
    return tokens_are_known(s->model, s->prompt, s->prompt_len, bad)
           && tokens_are_known(s->model, s->completions, total, bad);
}

/* Makes the tools and runs the prompt; *last is the row behind its last token. */
static bon_status begin(scorer *s, const float **last)
{
    bon_status status = bon_work_create(s->model, s->threads, &s->work);
    if (status == BON_OK) status = make_cache(s->model, cache_blocks(s), &s->cache);
    if (status == BON_OK)
        status = bon_work_reserve(s->work, BON_CHUNK, context_of(s));
    if (status == BON_OK)
        status = bon_model_prefill(s->model, s->work, s->cache, s->prompt, s->prompt_len, &s->seq,
                                   s->poll, last);
    return status;
}

static void end(scorer *s)
{
    if (s->cache) bon_seq_free(s->cache, &s->seq);
    bon_cache_destroy(s->cache);
    bon_work_destroy(s->work);
}

/* Rows of one completion in a batch. */
typedef struct {
    size_t c;
    const int32_t *tokens; /* the first row's */
    size_t rows;
    bool last; /* no more rows of this completion follow */
} piece;

/* Reads what stands behind a batch: the rows of its pieces, in their order. */
typedef bon_status reader(void *arg, const piece *pieces, size_t count, const float *hidden);

/* Feeds completion c, however long, in chunks. */
static bon_status feed_one(const scorer *s, size_t c, const int32_t *tokens, reader *read,
                           void *arg)
{
    bon_seq own = {0};
    const size_t rows = rows_of(s, c);
    bon_status status = bon_seq_reserve(s->cache, &own, rows);
    for (size_t at = 0; at < rows && status == BON_OK; at += BON_CHUNK) {
        const piece one = {c, tokens + at, min_size(rows - at, BON_CHUNK), rows - at <= BON_CHUNK};
        const bon_run run = {&s->seq, &own, 0, one.rows};
        const float *hidden;
        status = bon_model_forward(s->model, s->work, s->cache, BON_PREFILL, one.tokens, &run, 1,
                                   s->poll, &hidden);
        if (status == BON_OK) status = read(arg, &one, 1, hidden);
    }
    bon_seq_free(s->cache, &own);
    return status;
}

/* Feeds completions c to stop - 1, whose rows fit into one batch. */
static bon_status feed_group(const scorer *s, size_t c, size_t stop, const int32_t *tokens,
                             reader *read, void *arg)
{
    bon_run runs[BON_CHUNK];
    bon_seq own[BON_CHUNK] = {{0}};
    piece pieces[BON_CHUNK];
    int32_t batch[BON_CHUNK];
    size_t count = 0, rows = 0;
    bon_status status = BON_OK;
    for (; c < stop && status == BON_OK; tokens += s->lengths[c++]) {
        const size_t take = rows_of(s, c);
        if (take == 0) continue;
        status = bon_seq_reserve(s->cache, &own[count], take);
        runs[count] = (bon_run){&s->seq, &own[count], rows, take};
        pieces[count++] = (piece){c, tokens, take, true};
        memcpy(batch + rows, tokens, take * sizeof *batch);
        rows += take;
    }
    const float *hidden;
    if (status == BON_OK && rows > 0)
        status = bon_model_forward(s->model, s->work, s->cache, BON_PREFILL, batch, runs, count,
                                   s->poll, &hidden);
    if (status == BON_OK && rows > 0) status = read(arg, pieces, count, hidden);
    for (size_t r = 0; r < count; r++) bon_seq_free(s->cache, &own[r]);
    return status;
}

static bon_status feed_all(const scorer *s, reader *read, void *arg)
{
    const int32_t *tokens = s->completions;
    bon_status status = BON_OK;
    for (size_t c = 0; c < s->count && status == BON_OK;) {
        const size_t stop = end_of_group(s, c);
        status = rows_of(s, c) > BON_CHUNK ? feed_one(s, c, tokens, read, arg)
                                           : feed_group(s, c, stop, tokens, read, arg);
        while (c < stop) tokens += s->lengths[c++];
    }
    return status;
}

size_t bon_score_bytes(const bon_model *model, size_t prompt_len, const size_t *lengths,
                       size_t count)
{
    const bon_arch *a = bon_model_arch(model);
    const scorer s = {.model = model, .prompt_len = prompt_len, .lengths = lengths,
                      .count = count};
    return bon_work_bytes(model, bon_model_prefill_rows(model), context_of(&s))
           + cache_blocks(&s) * bon_model_block_bytes(model, a->layers)
           + (a->labels == 0 ? LOGIT_ROWS * a->vocab * sizeof(float) : 0);
}

/* -- log-probabilities ----------------------------------------------------- */

typedef struct {
    const scorer *s;
    float temperature;
    float *logits; /* [LOGIT_ROWS, vocab] */
    float *logp;   /* as the completions */
} logp_reader;

/* logp of targets[i] behind row i of hidden. */
static bon_status read_targets(const logp_reader *r, const float *hidden, const int32_t *targets,
                               size_t rows, float *logp)
{
    const bon_arch *a = bon_model_arch(r->s->model);
    bon_status status = BON_OK;
    for (size_t at = 0; at < rows && status == BON_OK; at += LOGIT_ROWS) {
        const size_t count = min_size(LOGIT_ROWS, rows - at);
        if (bon_should_stop(r->s->poll)) return BON_ERR_INTERRUPTED;
        status = bon_model_logits(r->s->model, BON_PREFILL, hidden + at * a->hidden, count,
                                  r->logits, r->s->threads);
        for (size_t i = at; i < at + count && status == BON_OK; i++)
            status = bon_log_softmax_at(r->logits + (i - at) * a->vocab, a->vocab,
                                        r->temperature, &targets[i], 1, &logp[i]);
    }
    return status;
}

/* A row predicts the token behind its own. */
static bon_status read_logp(void *arg, const piece *pieces, size_t count, const float *hidden)
{
    const logp_reader *r = arg;
    int32_t targets[BON_CHUNK];
    float logp[BON_CHUNK];
    size_t rows = 0;
    for (size_t i = 0; i < count; rows += pieces[i++].rows)
        memcpy(targets + rows, pieces[i].tokens + 1, pieces[i].rows * sizeof *targets);
    const bon_status status = read_targets(r, hidden, targets, rows, logp);
    if (status != BON_OK) return status;
    rows = 0;
    for (size_t i = 0; i < count; rows += pieces[i++].rows)
        memcpy(r->logp + (pieces[i].tokens + 1 - r->s->completions), logp + rows,
               pieces[i].rows * sizeof *logp);
    return BON_OK;
}

/* The prompt's last row predicts every completion's first token. */
static bon_status read_first_tokens(const logp_reader *r, const float *last)
{
    const scorer *s = r->s;
    const bon_arch *a = bon_model_arch(s->model);
    bon_status status = bon_model_logits(s->model, BON_PREFILL, last, 1, r->logits, s->threads);
    for (size_t c = 0, at = 0; c < s->count && status == BON_OK; at += s->lengths[c++])
        if (s->lengths[c] > 0)
            status = bon_log_softmax_at(r->logits, a->vocab, r->temperature, &s->completions[at],
                                        1, &r->logp[at]);
    return status;
}

bon_status bon_score_logp(const bon_model *model, const int32_t *prompt, size_t prompt_len,
                          const int32_t *completions, const size_t *lengths, size_t count,
                          float temperature, const bon_poll *poll, float *logp, size_t *bad)
{
    const bon_arch *a = bon_model_arch(model);
    scorer s = {.model = model, .prompt = prompt, .prompt_len = prompt_len,
                .completions = completions, .lengths = lengths, .count = count, .unread = 1,
                .poll = poll, .threads = bon_model_pass_threads(model)};
    *bad = SIZE_MAX;
    if (a->labels > 0 || !(temperature > 0.0f && temperature < INFINITY)
        || !texts_are_sound(&s, bad))
        return BON_ERR_DOMAIN;

    logp_reader r = {.s = &s, .temperature = temperature, .logp = logp,
                     .logits = malloc(LOGIT_ROWS * a->vocab * sizeof(float))};
    const float *last;
    bon_status status = r.logits ? begin(&s, &last) : BON_ERR_MEMORY;
    if (status == BON_OK) status = read_first_tokens(&r, last);
    if (status == BON_OK) status = feed_all(&s, read_logp, &r);
    end(&s);
    free(r.logits);
    return status;
}

/* -- scores ---------------------------------------------------------------- */

typedef struct {
    const scorer *s;
    float *values; /* [count, labels] */
} value_reader;

static bon_status read_values(void *arg, const piece *pieces, size_t count, const float *hidden)
{
    const value_reader *r = arg;
    const bon_arch *a = bon_model_arch(r->s->model);
    for (size_t i = 0; i < count; i++) {
        hidden += pieces[i].rows * a->hidden;
        if (pieces[i].last)
            bon_model_scores(r->s->model, hidden - a->hidden, 1,
                             r->values + pieces[i].c * a->labels);
    }
    return BON_OK;
}

bon_status bon_score_values(const bon_model *model, const int32_t *prompt, size_t prompt_len,
                            const int32_t *completions, const size_t *lengths, size_t count,
                            const bon_poll *poll, float *values, size_t *bad)
{
    const bon_arch *a = bon_model_arch(model);
    scorer s = {.model = model, .prompt = prompt, .prompt_len = prompt_len,
                .completions = completions, .lengths = lengths, .count = count,
                .poll = poll, .threads = bon_model_pass_threads(model)};
    *bad = SIZE_MAX;
    if (a->labels == 0 || !texts_are_sound(&s, bad)) return BON_ERR_DOMAIN;

    value_reader r = {&s, values};
    const float *last;
    bon_status status = begin(&s, &last);
    for (size_t c = 0; c < count && status == BON_OK; c++)
        if (lengths[c] == 0) bon_model_scores(model, last, 1, values + c * a->labels);
    if (status == BON_OK) status = feed_all(&s, read_values, &r);
    end(&s);
    return status;
}
