/* The engine over a simulated model: the test keeps a KV cache of tokens, writes each row through its block table,
 * reads each sequence back through it and hashes what it reads into logits. Content that was lost or overwritten, a
 * wrong table or a wrong position gives other ids than the same request alone. */
#include "tests/unit/daemon/letters.h"

#include "daemon/engine/engine.h"
#include "daemon/engine/sched.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum {
    N_VOCAB = 61,
    EOS = 3,
    MAX_LEN = 64,
    MAX_REQUESTS = 24,
    MAX_BLOCKS = 32,
    MAX_SLOTS = 40,
    MAX_FLIGHTS = 4
};

#if defined(__has_feature)
#define HAS_FEATURE(x) __has_feature(x)
#else
#define HAS_FEATURE(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
    HAS_FEATURE(address_sanitizer) || HAS_FEATURE(thread_sanitizer)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#if SANITIZED
/* The sanitizers' own hook; gcc ships no header for it. */
int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void *, size_t),
                                              void (*on_free)(const volatile void *));
static size_t n_allocations;

static void count_malloc(const volatile void *p, size_t n)
{
    (void)p;
    (void)n;
    n_allocations++;
}

static void count_free(const volatile void *p)
{
    (void)p;
}
#else
/* glibc's allocator under its other names, so that calls can be counted on the way. */
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *malloc(size_t n);
void *calloc(size_t n, size_t size);
void *realloc(void *p, size_t n);
static size_t n_allocations;

void *malloc(size_t n)
{
    n_allocations++;
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    n_allocations++;
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    n_allocations++;
    return __libc_realloc(p, n);
}
#endif

static uint64_t rng_state;

static uint32_t rng(uint32_t n)
{
    uint64_t z = (rng_state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 32) % n;
}

static bool is_forgetful; /* the model sees the last token only, and so repeats itself */

/* The simulated model: logits are a hash of all tokens up to here. */
static void toy_logits(const uint32_t *ids, uint32_t n, float logits[N_VOCAB])
{
    uint64_t h = 0xcbf29ce484222325u;

    for (uint32_t i = is_forgetful ? n - 1 : 0; i < n; i++)
        h = (h ^ ids[i]) * 0x100000001b3u;
    for (uint32_t v = 0; v < N_VOCAB; v++) {
        uint64_t z = (h ^ (v * 0x9e3779b97f4a7c15u)) * 0xbf58476d1ce4e5b9u;

        z ^= z >> 29;
        z *= 0x94d049bb133111ebu;
        logits[v] = (float)(z >> 40) * 0x1p-24f * 6;
    }
}

/* The n largest of them; the toy's logits are all different from each other but by chance, and never infinite. */
static void toy_top(const uint32_t *ids, uint32_t n_ids, uint32_t n, struct td_top *top)
{
    float logits[N_VOCAB];

    toy_logits(ids, n_ids, logits);
    for (uint32_t k = 0; k < n; k++) {
        top[k] = TD_TOP_NONE;
        for (uint32_t v = 0; v < N_VOCAB; v++)
            if (logits[v] > top[k].value)
                top[k] = (struct td_top){logits[v], v};
        if (top[k].id < N_VOCAB)
            logits[top[k].id] = -INFINITY;
    }
}

/* A device's draw, by its words: largest first until top_p of the weight is there, none below min_p, then along the ids. */
static uint32_t toy_draw(const uint32_t *ids, uint32_t n_ids, const struct td_draw *d)
{
    float logits[N_VOCAB];
    struct td_top order[N_VOCAB];
    double weight[N_VOCAB], left[N_VOCAB] = {0}, sum = 0, share = 0, run = 0;
    uint32_t id = 0;

    toy_logits(ids, n_ids, logits);
    td_top_clear(order, N_VOCAB);
    for (uint32_t v = 0; v < N_VOCAB; v++)
        td_top_insert(order, N_VOCAB, (struct td_top){logits[v], v});
    for (uint32_t v = 0; v < N_VOCAB; v++)
        sum += weight[v] = nearbyint(
            ldexp(td_detmath_exp(((double)logits[v] - (double)order[0].value) * d->inv_t), 34));
    for (uint32_t k = 0; k < N_VOCAB && share < (double)d->top_p * sum; k++) {
        double w = weight[order[k].id];

        share += w;
        left[order[k].id] = w >= (double)d->min_p * weight[order[0].id] ? w : 0;
    }
    for (sum = 0; id < N_VOCAB; id++)
        sum += left[id];
    for (id = 0; (run += left[id]) <= (double)d->u * sum; id++)
        ;
    return id;
}

/* What a device measures of an id; UINT32_MAX: of none. */
static struct td_measure toy_measure(const uint32_t *ids, uint32_t n_ids, uint32_t id)
{
    struct td_measure m = {.max = -INFINITY, .id = id};
    float logits[N_VOCAB];

    toy_logits(ids, n_ids, logits);
    for (uint32_t v = 0; v < N_VOCAB; v++)
        m.max = logits[v] > m.max ? logits[v] : m.max;
    m.value = id < N_VOCAB ? logits[id] : NAN;
    for (uint32_t v = 0; v < N_VOCAB; v++) {
        m.sum +=
            ldexp(nearbyint(ldexp(td_detmath_exp((double)logits[v] - (double)m.max), 34)), -34);
        m.n_before += logits[v] > m.value || (logits[v] == m.value && v < id);
    }
    return m;
}

struct client {
    struct td_request req;
    uint32_t got[MAX_LEN]; /* output ids by events */
    uint32_t n_got;
    uint32_t n_final;
    enum td_finish finish;
    enum td_status error;
    bool cancelled;
    bool paused;
    uint32_t n_late; /* tokens since it was paused */
    uint32_t n_prompt_told;
    uint64_t submit_ns, queue_ns;
};

struct world {
    uint64_t now_ns;
    struct td_engine *engine;
    struct td_step step;
    uint32_t block_tokens;
    struct td_engine_params params;
    struct client client[MAX_REQUESTS];
    uint32_t n_clients;
    bool inside_submit;
    uint32_t cancel_from_callback; /* one in so many events; 0: never */
    struct cell {
        uint32_t token;
        uint32_t position;
    } kv[MAX_BLOCKS * 16], slot[MAX_SLOTS * 16];
    enum { EMPTY, FULL, BROKEN } slot_state[MAX_SLOTS];
    uint32_t fail_moves; /* one in so many; 0: none */
    struct cell draft_kv[MAX_BLOCKS * 16];
    uint32_t draft_errs;  /* the draft model is wrong once in so many; 0: never */
    uint32_t draft_fails; /* its step fails once in so many; 0: never */
    float draft_logits[16 * N_VOCAB];
    struct td_top draft_top[16 * TD_TOP_MAX];
    struct td_move_result moves;
    bool has_pauses;
    uint64_t n_drafts, n_draws, n_measured, n_asked;
    uint32_t idle_streak; /* steps without rows of the oldest request */
    uint64_t n_cached;    /* tokens, by events */
    struct brought {      /* by a step that is not complete yet */
        uint64_t number;
        uint32_t n_rows;
        float logits[16 * N_VOCAB];
        struct td_top top[16 * TD_TOP_MAX];
        uint32_t drawn[16];
        struct td_measure top_measure[16], draw_measure[16], asked_measure[16];
        struct td_top draw_top[16 * TD_TOP_MAX], asked_top[16 * TD_TOP_MAX];
        struct td_move_result moves;
        struct td_step_result result;
    } flight[MAX_FLIGHTS];
    uint32_t n_flown, n_landed;
    struct brought *at; /* the newest */
};

static struct world world;

static struct client *client_of(struct world *w, uint64_t id)
{
    assert_true(id < w->n_clients);
    return &w->client[id];
}

/* In order, each once, and as the plainest sum says. */
/* Its log probability and its rank behind so many ids, and those of the n_top most likely. */
static void check_logprobs(const struct td_sampled *token, const uint32_t *ids, uint32_t n,
                           int32_t n_top)
{
    struct td_top top[N_VOCAB];
    float logits[N_VOCAB];
    double sum = 0;

    toy_logits(ids, n, logits);
    toy_top(ids, n, N_VOCAB, top);
    for (uint32_t v = 0; v < N_VOCAB; v++)
        sum += exp((double)logits[v]);
    assert_true(fabs((double)logits[token->id] - log(sum) - (double)token->logprob) < 1e-5);
    assert_int_equal(top[token->rank - 1].id, token->id);
    assert_int_equal(token->n_top, n_top);
    for (int32_t i = 0; i < n_top; i++) {
        assert_int_equal(token->top[i].id, top[i].id);
        assert_true(fabs((double)top[i].value - log(sum) - (double)token->top[i].logprob) < 1e-5);
    }
}

static void check_prompt_event(struct client *c, const struct td_token_event *event)
{
    assert_false(event->has_token);
    assert_int_equal(event->index, ++c->n_prompt_told);
    assert_int_equal(event->token.id, c->req.prompt[event->index]);
    check_logprobs(&event->token, c->req.prompt, event->index, c->req.prompt_logprobs);
}

static void on_event(const struct td_token_event *event, void *user)
{
    struct world *w = user;
    struct client *c = client_of(w, event->request_id);

    assert_false(w->inside_submit);
    assert_int_equal(c->n_final, 0);
    if (event->is_prompt) {
        check_prompt_event(c, event);
        return;
    }
    assert_int_equal(event->index, c->n_got);
    if (event->has_token && event->index == 0) {
        assert_int_equal(c->n_prompt_told, c->req.prompt_logprobs < 0 ? 0 : c->req.n_prompt - 1);
        assert_true(event->cached_tokens < c->req.n_prompt);
        assert_int_equal(event->cached_tokens % w->block_tokens, 0);
        if (!w->params.prefix_cache || c->req.no_prefix_cache || c->req.prompt_logprobs >= 0)
            assert_int_equal(event->cached_tokens, 0);
        w->n_cached += event->cached_tokens;
    } else {
        assert_int_equal(event->cached_tokens, 0);
    }
    if (event->has_token && event->index == 0)
        c->queue_ns = event->queue_ns;
    assert_true(event->queue_ns <= w->now_ns - c->submit_ns);
    if (event->has_token) {
        c->n_late += c->paused;
        assert_true(c->n_late <= 1 + w->params.max_draft_tokens); /* those of the step in flight */
        assert_false(c->cancelled);
        if (c->req.sampling.n_logprobs >= 0) {
            uint32_t ids[MAX_LEN];

            memcpy(ids, c->req.prompt, c->req.n_prompt * sizeof *ids);
            memcpy(ids + c->req.n_prompt, c->got, c->n_got * sizeof *ids);
            check_logprobs(&event->token, ids, c->req.n_prompt + c->n_got,
                           c->req.sampling.n_logprobs);
        }
        c->got[c->n_got++] = event->token.id;
    }
    if (event->finish != TD_FINISH_NONE) {
        c->n_final++;
        c->finish = event->finish;
        assert_true((event->finish == TD_FINISH_ERROR) == (event->error != NULL));
        c->error = event->error ? event->error->status : TD_OK;
    } else {
        assert_true(event->has_token);
    }
    if (w->cancel_from_callback && rng(w->cancel_from_callback) == 0) {
        uint64_t other = rng(w->n_clients);

        if (td_engine_cancel(w->engine, other))
            w->client[other].cancelled = true;
    }
}

static void open_world(struct world *w, struct td_engine_params p)
{
    uint32_t rows, seqs, table;
    struct td_err err = {0};

    memset(w, 0, sizeof(*w));
    p.n_vocab = N_VOCAB;
    p.on_event = on_event;
    p.user = w;
    p.n_eos = 1;
    p.eos_ids[0] = EOS;
    w->params = p;
    w->block_tokens = p.block_tokens;
    if (td_engine_open(&p, &w->engine, &err))
        fail_msg("%s", err.cause);
    td_engine_step_caps(w->engine, &rows, &seqs, &table);
    assert_int_equal(td_step_open(&w->step, rows, seqs, table, NULL), TD_OK);
}

static void close_world(struct world *w)
{
    td_engine_close(w->engine);
    td_step_close(&w->step);
    for (uint32_t i = 0; i < w->n_clients; i++)
        td_request_deinit(&w->client[i].req);
}

static struct client *add_client(struct world *w, uint32_t n_prompt, uint32_t max_tokens)
{
    struct client *c = &w->client[w->n_clients];

    assert_true(w->n_clients < MAX_REQUESTS);
    memset(c, 0, sizeof(*c));
    td_request_init(&c->req);
    c->req.id = w->n_clients++;
    c->req.prompt = calloc(n_prompt, sizeof(uint32_t));
    assert_non_null(c->req.prompt);
    c->req.n_prompt = n_prompt;
    for (uint32_t i = 0; i < n_prompt; i++)
        c->req.prompt[i] = rng(N_VOCAB);
    c->req.max_tokens = max_tokens;
    c->req.sampling.temperature = 0;
    return c;
}

static enum td_status submit(struct world *w, struct client *c, struct td_err *err)
{
    enum td_status st;

    w->inside_submit = true;
    c->submit_ns = w->now_ns;
    st = td_engine_submit(w->engine, &c->req, w->now_ns, err);
    w->inside_submit = false;
    return st;
}

/* Whether ids[0 .. n-1] begin some open request's prompt and output. */
static bool is_known(const struct world *w, const uint32_t *ids, uint32_t n, uint32_t only)
{
    for (uint32_t c = 0; c < w->n_clients; c++) {
        const struct client *k = &w->client[c];
        uint32_t n_head = n < k->req.n_prompt ? n : k->req.n_prompt;

        if (k->n_final || (only != UINT32_MAX && c != only) || n > k->req.n_prompt + k->n_got)
            continue;
        if (memcmp(ids, k->req.prompt, n_head * sizeof(*ids)) == 0 &&
            memcmp(ids + n_head, k->got, (n - n_head) * sizeof(*ids)) == 0)
            return true;
    }
    return false;
}

/* What lies at a place goes to another; one that failed, or comes from where something failed, leaves nothing there. */
static bool move_block(struct world *w, const struct td_step_move *m)
{
    uint32_t bt = w->block_tokens, n_slots = w->params.n_slots[0] + w->params.n_slots[1];
    bool out = m->kind == TD_MOVE_OUT, in = m->kind == TD_MOVE_IN;
    const struct cell *from = (out ? w->kv : w->slot) + (size_t)m->from * bt;
    struct cell *to = (in ? w->kv : w->slot) + (size_t)m->to * bt;
    bool ok = !w->fail_moves || rng(w->fail_moves);

    assert_true(m->from < (out ? w->params.n_blocks : n_slots));
    assert_true(m->to < (in ? w->params.n_blocks : n_slots));
    if (!out) {
        assert_int_not_equal(w->slot_state[m->from], EMPTY);
        ok = ok && w->slot_state[m->from] == FULL;
    }
    if (m->kind == TD_MOVE_DOWN)
        assert_true(m->from < w->params.n_slots[0] && m->to >= w->params.n_slots[0]);
    if (!in)
        w->slot_state[m->to] = ok ? FULL : BROKEN;
    memmove(to, from, bt * sizeof *to);
    if (!ok)
        memset(to, 0xff, bt * sizeof *to);
    return ok;
}

static void run_moves(struct world *w)
{
    memset(&w->at->moves, 0, sizeof w->at->moves);
    for (uint32_t i = 0; i < w->step.n_moves; i++) {
        const struct td_step_move *m = &w->step.moves[i];
        bool reads = m->kind == TD_MOVE_IN;
        bool in_file = (reads ? m->from : m->to) >= w->params.n_slots[0];
        uint64_t ns = 1 + rng(rng(8) ? 50 : 2000);

        w->at->moves.failed[i] = !move_block(w, m);
        if (w->at->moves.failed[i])
            continue;
        (reads ? w->at->moves.n_read : w->at->moves.n_written)[in_file]++;
        (reads ? w->at->moves.read_ns : w->at->moves.write_ns)[in_file] += ns;
        w->at->moves.ns += ns;
    }
}

/* Runs the planned step on the simulated cache. `oldest`: the open request that must have rows in it. */
static void run_model(struct world *w, uint32_t oldest)
{
    const struct td_step *st = &w->step;
    bool written[MAX_BLOCKS] = {false}, oldest_seen = oldest == UINT32_MAX;
    uint32_t n_users[MAX_BLOCKS] = {0};
    uint32_t n_logits = 0, n_tops = 0, n_draws = 0, n_asked = 0, first = 0;

    w->at = &w->flight[w->n_flown++ % MAX_FLIGHTS];
    w->at->number = st->number;
    w->at->n_rows = st->n_rows;
    run_moves(w);
    w->at->result = (struct td_step_result){.logits = w->at->logits,
                                            .top = w->at->top,
                                            .n_top = st->n_top,
                                            .drawn = w->at->drawn,
                                            .top_measure = w->at->top_measure,
                                            .draw_measure = w->at->draw_measure,
                                            .draw_top = w->at->draw_top,
                                            .asked_measure = w->at->asked_measure,
                                            .asked_top = w->at->asked_top,
                                            .n_draw_top = st->logprobs ? st->logprobs - 1 : 0,
                                            .moves = st->n_moves ? &w->at->moves : NULL};
    for (uint32_t r = 0; r < st->n_rows; r++) {
        const struct td_step_seq *q = &st->seqs[st->rows[r].seq];
        uint32_t pos = st->rows[r].position, cell;

        assert_true(pos / w->block_tokens < q->n_blocks);
        cell = st->table[q->first_block + pos / w->block_tokens] * w->block_tokens +
               pos % w->block_tokens;
        written[cell / w->block_tokens] = true;
        w->kv[cell].token = st->rows[r].token;
        w->kv[cell].position = pos;
    }
    for (uint32_t s = 0; s < st->n_seqs; s++) {
        const struct td_step_seq *q = &st->seqs[s];
        uint32_t ids[MAX_LEN], n_own, last = st->rows[first + q->n_rows - 1].position;

        for (uint32_t b = 0; b < q->n_blocks; b++) { /* who writes a block has it alone */
            uint32_t id = st->table[q->first_block + b];

            assert_true(id < w->params.n_blocks);
            n_users[id]++;
            assert_true(n_users[id] == 1 || (w->params.prefix_cache && !written[id]));
        }
        /* From the first row on that wants something all do: the last of a prompt, those of its log probabilities, drafts. */
        n_own = 1;
        while (n_own < q->n_rows && st->rows[first + n_own - 1].want == TD_WANT_NONE)
            n_own++;
        for (uint32_t i = 0; i < q->n_rows; i++) {
            assert_int_equal(st->rows[first + i].seq, s);
            assert_int_equal(st->rows[first + i].position, last + 1 - q->n_rows + i);
            assert_true(i + 1 < n_own || st->rows[first + n_own - 1].want == TD_WANT_MEASURE ||
                        st->rows[first + i].want == st->rows[first + n_own - 1].want);
        }
        w->n_drafts += q->n_rows - n_own;
        for (uint32_t pos = 0; pos <= last; pos++) {
            uint32_t cell = st->table[q->first_block + pos / w->block_tokens] * w->block_tokens +
                            pos % w->block_tokens;

            assert_int_equal(w->kv[cell].position, pos);
            ids[pos] = w->kv[cell].token;
        }
        last -= q->n_rows - n_own; /* of its own tokens */
        assert_true(is_known(w, ids, last + 1, UINT32_MAX));
        oldest_seen = oldest_seen || is_known(w, ids, last + 1, oldest);
        for (uint32_t i = n_own - 1; i < q->n_rows; i++, last++)
            if (st->rows[first + i].want == TD_WANT_LOGITS)
                toy_logits(ids, last + 1, w->at->logits + n_logits++ * N_VOCAB);
            else if (st->rows[first + i].want == TD_WANT_TOP) {
                toy_top(ids, last + 1, st->n_top, w->at->top + n_tops * st->n_top);
                w->at->top_measure[n_tops++] = toy_measure(ids, last + 1, UINT32_MAX);
            } else if (st->rows[first + i].want == TD_WANT_DRAW) {
                const uint32_t n = w->at->result.n_draw_top;

                w->at->drawn[n_draws] = toy_draw(ids, last + 1, &st->draws[n_draws]);
                w->at->draw_measure[n_draws] = toy_measure(ids, last + 1, w->at->drawn[n_draws]);
                toy_top(ids, last + 1, n, w->at->draw_top + n_draws++ * n);
            } else if (st->rows[first + i].want == TD_WANT_MEASURE) {
                const uint32_t n = w->at->result.n_draw_top;

                w->at->asked_measure[n_asked] = toy_measure(ids, last + 1, st->asked[n_asked]);
                toy_top(ids, last + 1, n, w->at->asked_top + n_asked++ * n);
            }
        assert_true(n_logits + n_tops + n_draws + n_asked <= w->params.max_num_seqs);
        assert_true(w->params.draws || (n_draws == 0 && st->logprobs == 0));
        w->n_draws += n_draws;
        w->n_measured += st->logprobs ? n_tops + n_draws : 0;
        w->n_asked += n_asked;
        first += q->n_rows;
    }
    assert_int_equal(first, st->n_rows);
    w->idle_streak = oldest_seen ? 0 : w->idle_streak + 1;
    /* Nobody starves. Who is passed over for cached blocks, or comes back from a pause, may wait for others to end. */
    /* With several steps in flight the oldest is in one of them; it may end, and the next oldest be in another. */
    assert_true(w->idle_streak <
                (w->params.prefix_cache || w->has_pauses ? 500 : 1 + 4 * w->params.max_flights));
}

/* All that is in the draft model's cache but the guesses belongs to some request. */
static void check_drafted(const struct world *w, const uint32_t *ids, uint32_t n)
{
    uint32_t known = n;

    while (known > 0 && !is_known(w, ids, known, UINT32_MAX))
        known--;
    assert_true(known + TD_SCHED_MAX_DRAFT >= n && known > 0);
}

/* The draft model: the same, but that it takes another token for the last one now and then. */
static bool run_draft(const struct td_step *st, struct td_step_result *result, uint64_t *ns,
                      void *user)
{
    struct world *w = user;
    uint32_t n_logits = 0, n_tops = 0;

    *ns = st->n_rows * 5;
    *result =
        (struct td_step_result){.logits = w->draft_logits, .top = w->draft_top, .n_top = st->n_top};
    for (uint32_t r = 0; r < st->n_rows; r++) {
        const struct td_step_row *row = &st->rows[r];
        const struct td_step_seq *q = &st->seqs[row->seq];
        uint32_t ids[MAX_LEN], n = row->position + 1;

        assert_true(n <= w->params.draft_positions);
        for (uint32_t pos = 0; pos < n; pos++) {
            uint32_t bt = w->block_tokens;
            struct cell *cell;

            assert_true(pos / bt < q->n_blocks);
            cell = &w->draft_kv[st->table[q->first_block + pos / bt] * bt + pos % bt];
            if (pos + 1 == n)
                *cell = (struct cell){row->token, pos};
            assert_int_equal(cell->position, pos);
            ids[pos] = cell->token;
        }
        check_drafted(w, ids, n);
        if (w->draft_errs && rng(w->draft_errs) == 0)
            ids[n - 1] = rng(N_VOCAB);
        if (row->want == TD_WANT_LOGITS)
            toy_logits(ids, n, w->draft_logits + n_logits++ * N_VOCAB);
        else if (row->want == TD_WANT_TOP)
            toy_top(ids, n, st->n_top, w->draft_top + n_tops++ * st->n_top);
    }
    assert_true(n_logits + n_tops <= w->params.max_num_seqs);
    return !w->draft_fails || rng(w->draft_fails);
}

/* The request by itself, without engine, scheduler, batch or cache. */
static void generate_alone(const struct td_request *r, uint32_t max_len, uint32_t *out,
                           uint32_t *n_out, enum td_finish *finish)
{
    uint32_t ids[MAX_LEN + 1], n = r->n_prompt, banned[1 + TD_REQUEST_MAX_STOP_IDS], n_ban = 0;
    struct td_sampler *s;

    memcpy(ids, r->prompt, n * sizeof(*ids));
    assert_int_equal(td_sampler_open(&r->sampling, N_VOCAB, &s, NULL), TD_OK);
    td_sampler_accept_prompt(s, ids, n);
    if (!r->ignore_eos)
        banned[n_ban++] = EOS;
    for (uint32_t i = 0; i < r->n_stop_ids; i++)
        banned[n_ban++] = r->stop_ids[i];
    *finish = TD_FINISH_NONE;
    for (*n_out = 0; *finish == TD_FINISH_NONE;) {
        float logits[N_VOCAB];
        struct td_sampled t;

        toy_logits(ids, n, logits);
        td_sampler_draw(s, logits, n, banned, *n_out < r->min_tokens ? n_ban : 0, &t);
        td_sampler_accept(s, t.id);
        ids[n++] = t.id;
        out[(*n_out)++] = t.id;
        for (uint32_t i = 0; i < n_ban; i++)
            if (banned[i] == t.id)
                *finish = TD_FINISH_STOP;
        if (*finish == TD_FINISH_NONE && (*n_out == r->max_tokens || n == max_len))
            *finish = TD_FINISH_LENGTH;
    }
    td_sampler_close(s);
}

static void check_client(const struct client *c, uint32_t max_len)
{
    uint32_t want[MAX_LEN + 1], n_want;
    enum td_finish finish;

    generate_alone(&c->req, max_len, want, &n_want, &finish);
    assert_true(c->n_got <= n_want);
    assert_memory_equal(c->got, want, c->n_got * sizeof(*want));
    assert_int_equal(c->n_final, 1);
    if (c->finish == TD_FINISH_CANCELLED) {
        assert_true(c->cancelled);
    } else if (c->finish != TD_FINISH_ERROR) {
        assert_int_equal(c->finish, finish);
        assert_int_equal(c->n_got, n_want);
    }
}

static void expect_idle(struct world *w)
{
    struct td_engine_stats stats;
    struct td_err err = {0};

    td_engine_stats(w->engine, 0, &stats);
    assert_int_equal(stats.n_running, 0);
    assert_int_equal(stats.n_waiting, 0);
    assert_int_equal(stats.n_blocks_used, stats.n_blocks_idle);
    if (td_engine_check(w->engine, &err))
        fail_msg("%s", err.cause);
}

static struct td_engine_params small_engine(void)
{
    return (struct td_engine_params){.max_model_len = 32,
                                     .max_num_seqs = 4,
                                     .max_batched_tokens = 16,
                                     .max_queue = 8,
                                     .block_tokens = 4,
                                     .n_blocks = 16};
}

static bool run_step(struct world *w)
{
    struct td_err err = {0};

    if (!td_engine_plan_step(w->engine, w->now_ns, &w->step))
        return false;
    run_model(w, UINT32_MAX);
    if (td_engine_complete_step(w->engine, w->step.number, &w->at->result, 0, &err))
        fail_msg("%s", err.cause);
    return true;
}

static void randomise_sampling(struct client *c)
{
    struct td_sampling *s = &c->req.sampling;

    s->temperature = rng(3) ? 0.5f + 0.1f * (float)rng(10) : 0;
    s->top_k = rng(2) ? 0 : (int32_t)rng(20);
    s->top_p = rng(2) ? 1 : 0.7f;
    s->min_p = rng(3) ? 0 : 0.05f;
    s->seed = rng(1000);
    s->choice = rng(3);
    s->repetition_penalty = rng(3) ? 1 : 1.3f;
    s->presence_penalty = rng(3) ? 0 : 0.4f;
    s->frequency_penalty = rng(3) ? 0 : 0.2f;
    s->n_logprobs = (int32_t)rng(4) - 1;
    if (rng(3) == 0) {
        s->typical_p = rng(2) ? 1 : 0.8f;
        s->top_n_sigma = rng(2) ? -1 : 2;
        s->xtc_probability = rng(2) ? 0 : 0.5f;
        s->xtc_threshold = 0.05f;
        s->dynatemp_range = rng(2) || s->temperature == 0 ? 0 : 0.3f;
        s->dry_multiplier = rng(2) ? 0 : 0.8f;
        s->dry_allowed_length = 1;
        s->repeat_last_n = (int32_t)rng(20) - 1;
    } else if (rng(4) == 0) { /* in the place of all cuts */
        s->mirostat = 1 + (int32_t)rng(2);
        s->mirostat_tau = 3;
        s->temperature = 0.9f;
        s->top_k = 0;
        s->top_p = 1;
        s->min_p = 0;
    }
    if (!s->mirostat &&
        rng(2)) { /* nothing that needs a whole row, but for temperature without top_k */
        s->repetition_penalty = 1;
        s->presence_penalty = s->frequency_penalty = 0;
        s->dry_multiplier = 0;
        s->top_n_sigma = -1;
    }
    c->req.ignore_eos = rng(4) == 0;
    c->req.min_tokens = rng(3) ? 0 : rng(c->req.max_tokens + 1);
    if (rng(4) == 0) {
        c->req.n_stop_ids = 1;
        c->req.stop_ids[0] = rng(N_VOCAB);
    }
}

/* The first request in the order of priority and submission that is still open, not paused and not cancelled. */
static uint32_t oldest_open(const struct world *w)
{
    uint32_t best = UINT32_MAX;

    for (uint32_t i = 0; i < w->n_clients; i++)
        if (!w->client[i].n_final && !w->client[i].cancelled && !w->client[i].paused &&
            (best == UINT32_MAX || w->client[i].req.priority < w->client[best].req.priority))
            best = i;
    return best;
}

/* Most requests begin as an earlier one and its output do; some use other salts, or no cache. */
static void begin_like_another(struct world *w, struct client *c)
{
    const struct client *other = &w->client[rng(w->n_clients)];
    uint32_t n = rng(MAX_LEN);

    c->req.cache_salt = rng(4) ? 0 : rng(3);
    c->req.no_prefix_cache = rng(8) == 0;
    if (rng(4) == 0)
        return;
    for (uint32_t i = 0; i < n && i < c->req.n_prompt; i++)
        if (i < other->req.n_prompt)
            c->req.prompt[i] = other->req.prompt[i];
        else if (i < other->req.n_prompt + other->n_got)
            c->req.prompt[i] = other->got[i - other->req.n_prompt];
}

static void random_arrival(struct world *w)
{
    struct td_engine_params *p = &w->params;
    struct td_engine_stats stats;
    struct client *c;
    struct td_err err = {0};
    enum td_status st;

    c = add_client(w, 1 + rng(p->max_model_len - 1), 1 + rng(30));
    begin_like_another(w, c);
    randomise_sampling(c);
    c->req.prompt_logprobs = rng(6) ? -1 : (int32_t)rng(4);
    c->req.priority = rng(3) ? 0 : (int32_t)rng(3) - 1;
    td_engine_stats(w->engine, 0, &stats);
    st = submit(w, c, &err);
    if (stats.n_waiting >= p->max_queue) {
        if (st != TD_BUSY)
            fail_msg("%s", err.cause);
        td_request_deinit(&c->req);
        w->n_clients--;
    } else if (st) {
        fail_msg("%s", err.cause);
    }
}

static void random_cancel(struct world *w)
{
    uint32_t i = rng(w->n_clients + 1);
    bool was_open = i < w->n_clients && !w->client[i].n_final && !w->client[i].cancelled;

    assert_int_equal(td_engine_cancel(w->engine, i), was_open);
    if (was_open)
        w->client[i].cancelled = true;
}

static void random_pause(struct world *w)
{
    struct client *c = &w->client[rng(w->n_clients)];
    bool is_open = !c->n_final && !c->cancelled;

    assert_int_equal(td_engine_pause(w->engine, c->req.id, !c->paused), is_open);
    if (!is_open)
        return;
    w->has_pauses = true;
    c->paused = !c->paused;
    c->n_late = 0;
}

static bool resume_all(struct world *w)
{
    bool any = false;

    for (uint32_t i = 0; i < w->n_clients; i++)
        if (w->client[i].paused && !w->client[i].n_final && !w->client[i].cancelled) {
            assert_true(td_engine_pause(w->engine, i, false));
            w->client[i].paused = false;
            any = true;
        }
    return any;
}

/* As threads might: in another order than one would. */
static void run_backwards(void *user, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg)
{
    (void)user;
    while (n-- > 0)
        task(arg, n);
}

/* The oldest step in flight is complete. */
static void land(struct world *w)
{
    const struct brought *b = &w->flight[w->n_landed++ % MAX_FLIGHTS];

    assert_int_equal(td_engine_complete_step(w->engine, b->number, &b->result,
                                             b->n_rows * (50 + (uint64_t)rng(20)), NULL),
                     TD_OK);
}

/* Sums over all workloads. */
struct sums {
    uint64_t n_together; /* steps that were planned with another in flight */
    uint64_t n_preemptions, n_cached, n_drafts, n_draws, n_measured, n_asked, n_right, n_read,
        n_failed_reads, n_in_file;
    uint64_t n_model_drafts, n_right_model_drafts; /* of draft models that never err */
};

static void random_workload(struct world *w, struct sums *sums)
{
    struct td_engine_params p = {.block_tokens = 1 + rng(5), .max_queue = 1 + rng(8)};
    struct td_engine_stats stats;
    uint32_t n_arrivals = 1 + rng(MAX_REQUESTS), steps = 0, cancel_rate = rng(3) ? 40 : 8,
             pause_rate = rng(2) ? 1000000 : 4 + rng(20);
    uint64_t number = 0;
    bool fail_midway = rng(10) == 0;

    p.max_model_len = 8 + rng(MAX_LEN - 8);
    p.n_blocks = (p.max_model_len + p.block_tokens - 1) / p.block_tokens + rng(4);
    while (p.n_blocks > MAX_BLOCKS)
        p.n_blocks = (--p.max_model_len + p.block_tokens - 1) / p.block_tokens;
    p.max_num_seqs = 1 + rng(rng(2) ? 6 : 14);
    p.max_batched_tokens = p.max_num_seqs + rng(20);
    p.max_chunk_tokens = rng(2) ? 0 : 1 + rng(9);
    p.parallel = rng(2) ? NULL : run_backwards;
    p.draws = rng(2);
    p.prefix_cache = rng(4) > 0;
    for (uint32_t t = 0; t < TD_OFFLOAD_TIERS && p.prefix_cache && rng(2); t++)
        p.n_slots[t] = rng(MAX_SLOTS / 2);
    p.max_draft_tokens = rng(2) ? 0 : 1 + rng(TD_SCHED_MAX_DRAFT);
    is_forgetful = rng(2);
    if (p.max_draft_tokens && rng(2)) {
        p.run_draft = run_draft;
        p.run_draft_user = w;
        p.draft_vocab = N_VOCAB;
        p.draft_positions = rng(3) ? p.max_model_len : 1 + rng(p.max_model_len);
    }
    p.max_stretch_percent = rng(2) ? 0 : 1 + rng(200);
    p.max_flights = rng(2) ? 0 : 2 + rng(MAX_FLIGHTS - 1);
    open_world(w, p);
    w->cancel_from_callback = rng(4) ? 0 : 30;
    w->fail_moves = rng(2) ? 0 : 2 + rng(10);
    w->draft_errs = rng(2) ? 0 : 1 + rng(6);
    w->draft_fails = rng(8) ? 0 : 2 + rng(10);
    for (;; w->now_ns += rng(100)) {
        uint32_t n = rng(3);

        while (n-- > 0 && w->n_clients < n_arrivals)
            random_arrival(w);
        if (rng(cancel_rate) == 0)
            random_cancel(w);
        if (td_engine_plan_step(w->engine, w->now_ns, &w->step)) {
            assert_true(w->step.number == number++);
            assert_true(w->step.n_rows <= p.max_batched_tokens);
            assert_true(w->step.n_seqs <= p.max_num_seqs);
            assert_true(w->n_flown - w->n_landed < (p.max_flights ? p.max_flights : 1));
            run_model(w, oldest_open(w));
            sums->n_together += w->n_flown - w->n_landed > 1;
        } else if (w->n_flown == w->n_landed) {
            if (w->n_clients == n_arrivals && !resume_all(w))
                break;
            continue;
        }
        if (rng(cancel_rate) == 0)
            random_cancel(w); /* in flight */
        if (rng(pause_rate) == 0)
            random_pause(w);
        if (fail_midway && steps == 10) {
            td_engine_fail_all(w->engine, &(struct td_err){.status = TD_PEER_LOST});
            w->n_landed = w->n_flown;
            expect_idle(w);
        } else if (w->n_flown - w->n_landed == p.max_flights || rng(2) || p.max_flights < 2) {
            land(w);
        }
        {
            struct td_err err;

            if (td_engine_check(w->engine, &err))
                fail_msg("%s", err.cause);
        }
        td_engine_stats(w->engine, 0, &stats);
        sums->n_in_file += stats.n_blocks_outside[TD_OFFLOAD_FILE];
        assert_true(++steps < 5000);
    }
    expect_idle(w);
    td_engine_stats(w->engine, 0, &stats);
    for (uint32_t i = 0; i < w->n_clients; i++)
        check_client(&w->client[i], p.max_model_len);
    assert_int_equal(stats.n_cached_tokens, w->n_cached);
    assert_true(stats.n_right_drafts <= stats.n_draft_tokens);
    assert_true(stats.n_draft_tokens <=
                w->n_drafts); /* some were of requests that ended meanwhile */
    sums->n_preemptions += stats.n_preemptions;
    sums->n_cached += w->n_cached;
    sums->n_drafts += stats.n_draft_tokens;
    sums->n_draws += w->n_draws;
    sums->n_measured += w->n_measured;
    sums->n_asked += w->n_asked;
    sums->n_right += stats.n_right_drafts;
    if (p.run_draft && !w->draft_errs) {
        sums->n_model_drafts += stats.n_draft_tokens;
        sums->n_right_model_drafts += stats.n_right_drafts;
    }
    sums->n_read += stats.n_blocks_read;
    sums->n_failed_reads += stats.n_failed_reads;
    is_forgetful = false;
    close_world(w);
}

static uint64_t current_seed;

static void test_engine_random_workloads_give_each_request_its_own_ids(void **state)
{
    const char *text = getenv("TD_TEST_SEED");
    uint64_t first = text ? strtoull(text, NULL, 10) : 1;
    struct sums sums = {0};
    uint32_t rounds = text ? 1 : 2000;

    (void)state;
    for (uint32_t i = 0; i < rounds; i++) {
        current_seed = first + i;
        rng_state = current_seed * 0x2545f4914f6cdd1du;
        random_workload(&world, &sums);
    }
    print_message("%u workloads, %llu preemptions, %llu cached tokens, %llu of %llu drafts right, "
                  "%llu blocks "
                  "read back and %llu times not\n",
                  rounds, (unsigned long long)sums.n_preemptions, (unsigned long long)sums.n_cached,
                  (unsigned long long)sums.n_right, (unsigned long long)sums.n_drafts,
                  (unsigned long long)sums.n_read, (unsigned long long)sums.n_failed_reads);
    assert_true(text || (sums.n_read > 1000 && sums.n_failed_reads > 50 && sums.n_in_file > 1000));
    assert_true(text || sums.n_together > 5000);
    assert_true(text || (sums.n_preemptions > 1000 && sums.n_cached > 10000));
    print_message("%llu of %llu drafts of a perfect model right\n",
                  (unsigned long long)sums.n_right_model_drafts,
                  (unsigned long long)sums.n_model_drafts);
    /* All but those behind an end. */
    assert_true(text || (sums.n_model_drafts > 500 &&
                         sums.n_right_model_drafts > sums.n_model_drafts * 9 / 10));
    assert_true(text || (sums.n_right > 500 && sums.n_drafts > sums.n_right + 100));
    assert_true(sums.n_draws > 300 && sums.n_measured > 300 && sums.n_asked > 300);
}

static int tell_seed(void **state)
{
    (void)state;
    print_message("the last workload's seed was %llu; TD_TEST_SEED=%llu repeats it\n",
                  (unsigned long long)current_seed, (unsigned long long)current_seed);
    return 0;
}

static void test_engine_emits_the_end_token_and_honours_ignore_eos(void **state)
{
    struct world *w = &world;
    uint32_t stops = 0, went_on = 0;

    (void)state;
    rng_state = 31;
    open_world(w, small_engine());
    for (uint32_t i = 0; i < 8; i++) {
        struct client *c = add_client(w, 3, 29);

        c->req.sampling.temperature = 1;
        c->req.sampling.seed = i;
        c->req.sampling.n_bias = 1;
        c->req.sampling.bias[0] = (struct td_logit_bias){EOS, 2};
        c->req.ignore_eos = i % 2;
        assert_int_equal(submit(w, c, NULL), TD_OK);
    }
    while (run_step(w))
        ;
    for (uint32_t i = 0; i < 8; i++) {
        struct client *c = &w->client[i];

        check_client(c, 32);
        for (uint32_t j = 0; j + 1 < c->n_got; j++)
            went_on += c->got[j] == EOS;
        if (c->finish == TD_FINISH_STOP) {
            assert_false(c->req.ignore_eos);
            assert_int_equal(c->got[c->n_got - 1], EOS);
            stops++;
        } else {
            assert_int_equal(c->finish, TD_FINISH_LENGTH);
            assert_int_equal(c->n_got, 29);
        }
    }
    assert_true(stops > 0 && went_on > 0);
    expect_idle(w);
    close_world(w);
}

static void test_engine_bans_end_and_stop_ids_before_min_tokens(void **state)
{
    struct world *w = &world;
    struct client *c;

    (void)state;
    rng_state = 32;
    open_world(w, small_engine());
    c = add_client(w, 3, 20);
    c->req.min_tokens = 10;
    c->req.n_stop_ids = 1;
    c->req.stop_ids[0] = 17;
    c->req.sampling.n_bias = 2;
    c->req.sampling.bias[0] = (struct td_logit_bias){EOS, 50};
    c->req.sampling.bias[1] = (struct td_logit_bias){17, 60};
    assert_int_equal(submit(w, c, NULL), TD_OK);
    while (run_step(w))
        ;
    assert_int_equal(c->n_got, 11);
    assert_int_equal(c->got[10], 17);
    assert_int_equal(c->finish, TD_FINISH_STOP);
    for (uint32_t i = 0; i < 10; i++)
        assert_true(c->got[i] != EOS && c->got[i] != 17);
    close_world(w);
}

static void test_engine_cancel_ends_waiting_running_and_in_flight_requests(void **state)
{
    struct world *w = &world;
    struct td_engine_params p = small_engine();
    struct td_engine_stats stats;

    (void)state;
    rng_state = 33;
    p.max_num_seqs = 2;
    open_world(w, p);
    for (uint32_t i = 0; i < 4; i++) {
        struct client *c = add_client(w, 4, 25);

        c->req.ignore_eos = true;
        assert_int_equal(submit(w, c, NULL), TD_OK);
    }
    assert_true(run_step(w));
    assert_true(run_step(w));
    assert_true(td_engine_cancel(w->engine, 0)); /* running */
    assert_false(td_engine_cancel(w->engine, 0));
    assert_true(td_engine_cancel(w->engine, 3)); /* waiting */
    assert_false(td_engine_cancel(w->engine, 77));
    w->client[0].cancelled = w->client[3].cancelled = true;
    assert_int_equal(w->client[0].n_final, 0);
    assert_true(td_engine_plan_step(w->engine, w->now_ns, &w->step)); /* frees and tells */
    assert_int_equal(w->client[0].finish, TD_FINISH_CANCELLED);
    assert_int_equal(w->client[3].finish, TD_FINISH_CANCELLED);
    assert_int_equal(w->client[0].n_got, 2);
    assert_int_equal(w->client[3].n_got, 0);
    run_model(w, UINT32_MAX);
    assert_true(td_engine_cancel(w->engine, 1)); /* in flight */
    w->client[1].cancelled = true;
    td_engine_stats(w->engine, 0, &stats);
    assert_int_equal(stats.n_running, 2);
    assert_int_equal(td_engine_complete_step(w->engine, w->step.number, &w->at->result, 0, NULL),
                     TD_OK);
    assert_int_equal(w->client[1].finish, TD_FINISH_CANCELLED);
    assert_int_equal(w->client[1].n_got, 2); /* the token in flight is dropped */
    while (run_step(w))
        ;
    assert_int_equal(w->client[2].finish, TD_FINISH_LENGTH);
    td_engine_stats(w->engine, 0, &stats);
    assert_true(stats.n_finished[TD_FINISH_CANCELLED] == 3);
    assert_true(stats.n_finished[TD_FINISH_LENGTH] == 1);
    assert_true(stats.n_output_tokens == 25 + 2 + 2);
    assert_true(stats.n_prompt_tokens == 12);
    expect_idle(w);
    close_world(w);
}

static void test_engine_ends_at_a_stop_string_across_tokens(void **state)
{
    struct world *w = &world;
    struct td_engine_params p = small_engine();
    struct td_tokenizer *tok = open_letters(N_VOCAB, EOS);

    (void)state;
    p.tokenizer = tok;
    for (uint32_t round = 0; round < 40; round++) {
        uint32_t want[MAX_LEN + 1], n_want, n_min = round % 2 ? 12 : 0, at;
        enum td_finish finish;
        struct client *c;
        char text[MAX_LEN + 1] = {0}, stop[3] = {0}, *found;

        rng_state = 50 + round;
        open_world(w, p);
        c = add_client(w, 5, 26);
        c->req.sampling.temperature = 1;
        c->req.ignore_eos = true;
        generate_alone(&c->req, 32, want, &n_want, &finish);
        for (uint32_t i = 0, n = 0; i < n_want; i++)
            if (want[i] != EOS) /* writes nothing */
                text[n++] = letter(want[i]);
        at = 3 + rng(20);
        memcpy(stop, text + at, 2);
        c->req.min_tokens = n_min;
        c->req.n_stops = 2;
        c->req.stops[0] = strdup("\xc3\xa9");
        c->req.stop_bytes[0] = 2;
        c->req.stops[1] = strdup(stop);
        c->req.stop_bytes[1] = 2;
        assert_int_equal(submit(w, c, NULL), TD_OK);
        while (run_step(w))
            ;
        /* Which text counts: of the tokens after the first n_min. */
        found = text;
        for (uint32_t i = 0; i < n_min; i++)
            found += want[i] != EOS;
        found = strstr(found, stop);
        assert_memory_equal(c->got, want, c->n_got * sizeof(*want));
        if (found) {
            uint32_t n_letters = 0;

            for (uint32_t i = 0; i < c->n_got; i++)
                n_letters += want[i] != EOS;
            assert_int_equal(c->finish, TD_FINISH_STOP);
            assert_int_equal(n_letters, (uint32_t)(found - text) + 2);
            assert_true(c->got[c->n_got - 1] != EOS);
        } else {
            assert_true(n_min > 0);
            assert_int_equal(c->finish, TD_FINISH_LENGTH);
        }
        expect_idle(w);
        close_world(w);
    }
    td_tokenizer_close(tok);
}

static void test_engine_refuses_what_it_cannot_do_and_says_why(void **state)
{
    struct world *w = &world;
    struct client *c;
    struct td_err err;
    static const enum td_layer_kind kinds[2] = {TD_LAYER_ATTENTION, TD_LAYER_RECURRENT};
    struct td_engine_params p = small_engine();
    struct td_engine *e;

    (void)state;
    rng_state = 34;
    open_world(w, p);
    c = add_client(w, 32, 1);
    assert_int_equal(submit(w, c, &err), TD_TOO_LARGE);
    c = add_client(w, 3, 5);
    c->req.n_stops = 1;
    c->req.stops[0] = strdup("end");
    c->req.stop_bytes[0] = 3;
    assert_int_equal(submit(w, c, &err), TD_UNSUPPORTED);
    assert_non_null(strstr(err.cause, "tokenizer"));
    for (uint32_t i = 0; i < 8; i++)
        assert_int_equal(submit(w, add_client(w, 3, 5), &err), TD_OK);
    c = add_client(w, 3, 5);
    assert_int_equal(submit(w, c, &err), TD_BUSY);
    c->req.id = 5;
    assert_int_equal(submit(w, c, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "request id 5 is in use"));
    while (run_step(w))
        ;
    expect_idle(w);
    assert_int_equal(td_engine_complete_step(w->engine, w->step.number, &w->at->result, 0, &err),
                     TD_INVALID);
    close_world(w);

    p.n_vocab = N_VOCAB;
    p.on_event = on_event;
    p.layer_kinds = kinds;
    p.n_layers = 2;
    assert_int_equal(td_engine_open(&p, &e, &err), TD_UNSUPPORTED);
    assert_non_null(strstr(err.cause, "layer 1 needs a recurrent state"));
    p.n_layers = 1;
    p.n_blocks = 7;
    assert_int_equal(td_engine_open(&p, &e, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "7 blocks of 4 tokens"));
}

static void end_of_no_numbers(bool draws)
{
    struct world *w = &world;
    struct td_engine_params p = small_engine();

    rng_state = 35;
    p.draws = draws;
    open_world(w, p);
    for (uint32_t i = 0; i < 4; i++) {
        struct client *c = add_client(w, 3, 6);

        td_sampling_default(&c->req.sampling);
        c->req.sampling.temperature = i % 2 ? 0 : 1; /* the largest logit; all, or a draw */
        c->req.ignore_eos = true;
        assert_int_equal(submit(w, c, NULL), TD_OK);
    }
    assert_true(run_step(w));
    assert_true(td_engine_plan_step(w->engine, w->now_ns, &w->step));
    run_model(w, UINT32_MAX);
    for (uint32_t v = 0; v < N_VOCAB; v++)
        w->at->logits[v] = NAN;
    w->at->top[0] = TD_TOP_NONE;
    w->at->drawn[0] = UINT32_MAX;
    assert_int_equal(td_engine_complete_step(w->engine, w->step.number, &w->at->result, 0, NULL),
                     TD_OK);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(w->client[i].finish, TD_FINISH_ERROR);
        assert_int_equal(w->client[i].error, TD_CORRUPT);
    }
    while (run_step(w))
        ;
    for (uint32_t i = 2; i < 4; i++) { /* their neighbours do not notice */
        check_client(&w->client[i], 32);
        assert_int_equal(w->client[i].finish, TD_FINISH_LENGTH);
    }
    expect_idle(w);
    close_world(w);
}

static void test_engine_ends_a_request_whose_logits_are_not_numbers(void **state)
{
    (void)state;
    end_of_no_numbers(false);
    end_of_no_numbers(true);
}

static void test_engine_tells_how_long_a_request_waited_for_its_first_step(void **state)
{
    struct td_engine_params p = small_engine();
    struct world *w = &world;
    struct client *c[2];

    (void)state;
    p.max_num_seqs = 1;
    open_world(w, p);
    w->now_ns = 1000;
    for (int i = 0; i < 2; i++, w->now_ns += 10) {
        c[i] = add_client(w, 3, 2);
        c[i]->req.ignore_eos = true;
        assert_int_equal(submit(w, c[i], NULL), TD_OK);
    }
    while (run_step(w)) /* the first takes the steps at 1020 and 1120 */
        w->now_ns += 100;
    assert_int_equal(c[0]->queue_ns, 20);
    assert_int_equal(c[1]->queue_ns, 1220 - 1010);
    close_world(w);
}

static void test_engine_numbers_ascend_by_one_over_all_kinds_of_steps(void **state)
{
    struct world *w = &world;
    struct client *c;

    (void)state;
    rng_state = 36;
    open_world(w, small_engine());
    assert_true(td_engine_take_number(w->engine) == 0);
    assert_false(td_engine_plan_step(w->engine, w->now_ns, &w->step)); /* takes none */
    assert_true(td_engine_take_number(w->engine) == 1);
    c = add_client(w, 3, 2);
    c->req.ignore_eos = true;
    assert_int_equal(submit(w, c, NULL), TD_OK);
    assert_true(td_engine_plan_step(w->engine, w->now_ns, &w->step));
    assert_true(w->step.number == 2);
    assert_true(td_engine_take_number(w->engine) == 3);
    run_model(w, UINT32_MAX);
    {
        struct td_step other = {.number = 3};

        assert_int_equal(td_engine_complete_step(w->engine, other.number, &w->at->result, 0, NULL),
                         TD_INVALID);
    }
    assert_int_equal(td_engine_complete_step(w->engine, w->step.number, &w->at->result, 0, NULL),
                     TD_OK);
    assert_true(td_engine_plan_step(w->engine, w->now_ns, &w->step));
    assert_true(w->step.number == 4);
    td_engine_fail_all(w->engine, &(struct td_err){.status = TD_PEER_LOST});
    assert_int_equal(c->finish, TD_FINISH_ERROR);
    assert_int_equal(c->error, TD_PEER_LOST);
    assert_false(td_engine_plan_step(w->engine, w->now_ns, &w->step));
    expect_idle(w);
    close_world(w);
}

static void test_engine_allocates_nothing_between_first_and_last_token(void **state)
{
    struct world *w = &world;
    struct td_engine_params p = small_engine();
    struct td_engine_stats stats;
    struct td_tokenizer *tok = open_letters(N_VOCAB, EOS);
    size_t before;

    (void)state;
    rng_state = 37;
    p.tokenizer = tok;
    p.n_blocks = 9; /* so that a preemption is among the steps */
#if SANITIZED
    __sanitizer_install_malloc_and_free_hooks(count_malloc, count_free);
#endif
    open_world(w, p);
    for (uint32_t i = 0; i < 4; i++) {
        struct client *c = add_client(w, 4, 20);

        c->req.ignore_eos = true;
        c->req.sampling.temperature = 1;
        c->req.sampling.top_k = 10;
        c->req.sampling.top_p = 0.9f;
        c->req.sampling.repetition_penalty = 1.1f;
        c->req.sampling.n_logprobs = 5;
        c->req.n_stops = 1;
        c->req.stops[0] = strdup("no such text");
        c->req.stop_bytes[0] = 12;
        assert_int_equal(submit(w, c, NULL), TD_OK);
    }
    before = n_allocations;
    assert_true(run_step(w));
    assert_true(n_allocations > before); /* the samplers: the counter works */
    before = n_allocations;
    while (run_step(w))
        ;
    assert_true(n_allocations == before);
    td_engine_stats(w->engine, 0, &stats);
    assert_true(stats.n_preemptions > 0);
    for (uint32_t i = 0; i < 4; i++)
        check_client(&w->client[i], 32);
    close_world(w);
    td_tokenizer_close(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_engine_random_workloads_give_each_request_its_own_ids,
                                  tell_seed),
        cmocka_unit_test(test_engine_emits_the_end_token_and_honours_ignore_eos),
        cmocka_unit_test(test_engine_bans_end_and_stop_ids_before_min_tokens),
        cmocka_unit_test(test_engine_cancel_ends_waiting_running_and_in_flight_requests),
        cmocka_unit_test(test_engine_ends_at_a_stop_string_across_tokens),
        cmocka_unit_test(test_engine_refuses_what_it_cannot_do_and_says_why),
        cmocka_unit_test(test_engine_ends_a_request_whose_logits_are_not_numbers),
        cmocka_unit_test(test_engine_tells_how_long_a_request_waited_for_its_first_step),
        cmocka_unit_test(test_engine_numbers_ascend_by_one_over_all_kinds_of_steps),
        cmocka_unit_test(test_engine_allocates_nothing_between_first_and_last_token),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
