#include "daemon/engine/engine.h"

#include "daemon/engine/blocks.h"
#include "daemon/engine/draft.h"
#include "daemon/engine/ending.h"
#include "daemon/engine/prefix.h"
#include "daemon/engine/sched.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* What came of one row. */
struct outcome {
    uint32_t index; /* of the output token, or the position in the prompt */
    bool is_prompt;
    struct td_sampled token;
    struct td_sampler_state state; /* after it */
    enum td_finish finish;
    enum td_status status; /* why there is no token; the request ends */
};

/* One request while it is open. */
struct seq {
    struct td_sched_seq core; /* first: the scheduler's pointers are cast back */
    struct td_request req; /* owned copy; its prompt buffer also holds the output and is core.ids */
    struct td_ending ending;
    struct td_sampler *sampler; /* owned; NULL before the first step */
    uint32_t n_output;
    struct td_draft draft;
    /* Of the step that is being completed: */
    uint32_t result_row; /* the first, among those that want the same */
    uint32_t asked_row;  /* the same of its prompt's, where they ask about ids */
    uint32_t n_results;
    uint32_t n_prompt_results; /* the first of them: of prompt_logprobs */
    struct outcome *outcome;   /* [n_outcomes], in the engine's */
    uint32_t n_outcomes;
    uint32_t n_drawn; /* output tokens, with those that are not told yet */

    bool cancelled;
    bool paused;             /* as it was told; the scheduler follows in the next plan */
    struct seq *prev, *next; /* all open requests */
};

struct td_engine {
    struct td_engine_params params; /* layer_kinds is not kept */
    struct td_blocks *blocks;
    struct td_sched *sched;
    struct td_drafter *drafter; /* NULL: no draft model */
    struct seq *first;
    struct seq **drawing;     /* [max_num_seqs] of the step that is being completed: who draws */
    struct outcome *outcomes; /* [max_num_seqs] of all its rows */
    const struct td_step_result *result; /* while it is being completed */
    uint32_t n_cancelled;
    uint32_t n_paused;
    bool pauses_changed;      /* since the last plan */
    uint64_t *flight_numbers; /* owned [max_flights]: a ring of those in flight */
    uint64_t n_completed;     /* steps */
    uint64_t next_number;
    struct td_engine_stats stats; /* the counters; the gauges are filled on demand */
};

/* The draft model's guess, drawn as the token itself will be. */
static uint32_t draw_draft(struct td_sched_seq *core, uint32_t n_guessed, const float *logits,
                           const struct td_top *top, uint32_t n_top, void *user)
{
    struct seq *q = (struct seq *)(void *)core;
    uint32_t n_banned, position = core->n_ids + n_guessed;
    const uint32_t *banned = td_ending_banned(&q->ending, q->n_output + n_guessed, &n_banned);
    struct td_sampled token = {.no_choice = true};

    (void)user;
    if (!q->sampler)
        return UINT32_MAX;
    if (logits)
        td_sampler_draw(q->sampler, logits, position, banned, n_banned, &token);
    else
        td_sampler_draw_top(q->sampler, top, n_top, position, banned, n_banned, &token);
    return token.no_choice ? UINT32_MAX : token.id;
}

static enum td_status open_drafter(struct td_engine *e, struct td_err *err)
{
    const struct td_engine_params *p = &e->params;
    const struct td_drafter_params dp = {.n_vocab = p->n_vocab,
                                         .draft_vocab = p->draft_vocab,
                                         .max_model_len = p->draft_positions,
                                         .n_blocks = p->n_blocks,
                                         .block_tokens = p->block_tokens,
                                         .max_num_seqs = p->max_num_seqs,
                                         .max_batched_tokens = p->max_batched_tokens,
                                         .max_tokens_per_seq = p->max_model_len,
                                         .run = p->run_draft,
                                         .run_user = p->run_draft_user,
                                         .draw = draw_draft};

    return p->run_draft && p->max_draft_tokens ? td_drafter_open(&dp, &e->drafter, err) : TD_OK;
}

enum td_status td_engine_open(const struct td_engine_params *params, struct td_engine **out,
                              struct td_err *err)
{
    struct td_blocks_params bp = {.block_tokens = params->block_tokens,
                                  .max_seqs = params->max_num_seqs,
                                  .max_tokens_per_seq = params->max_model_len};
    struct td_sched_params sp = {.max_num_seqs = params->max_num_seqs,
                                 .max_batched_tokens = params->max_batched_tokens,
                                 .max_chunk_tokens = params->max_chunk_tokens,
                                 .max_flights = params->max_flights,
                                 .max_queue = params->max_queue,
                                 .block_tokens = params->block_tokens,
                                 .max_tokens_per_seq = params->max_model_len,
                                 .prefix_cache = params->prefix_cache,
                                 .n_slots = {params->n_slots[0], params->n_slots[1]},
                                 .max_stretch_percent = params->max_stretch_percent};
    struct td_engine *e;
    enum td_status st;

    if (params->n_vocab == 0 || params->n_blocks == 0 || params->max_model_len < 2)
        return td_err_set(
            err, TD_INVALID,
            "vocabulary %u, %u KV blocks, max_model_len %u: expected at least 1, 1, 2",
            params->n_vocab, params->n_blocks, params->max_model_len);
    if (params->max_draft_tokens > TD_SCHED_MAX_DRAFT)
        return td_err_set(err, TD_INVALID, "%u tokens guessed ahead: expected at most %d",
                          params->max_draft_tokens, TD_SCHED_MAX_DRAFT);
    if (params->n_eos > TD_SPEC_MAX_EOS || !params->on_event)
        return td_err_set(err, TD_INVALID, "%u end tokens, expected at most %d and a callback",
                          params->n_eos, TD_SPEC_MAX_EOS);
    e = calloc(1, sizeof(*e));
    if (!e)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the engine");
    e->params = *params;
    e->params.layer_kinds = NULL;
    e->params.max_flights = params->max_flights ? params->max_flights : 1;
    bp.pool[TD_LAYER_ATTENTION] = params->n_blocks;
    if ((st = td_blocks_open(&bp, &e->blocks, err)) ||
        (st = td_blocks_admit_model(e->blocks, params->layer_kinds, params->n_layers, err)) ||
        (st = td_sched_open(&sp, e->blocks, &e->sched, err)) || (st = open_drafter(e, err)))
        goto fail;
    e->drawing = calloc(params->max_num_seqs, sizeof(struct seq *));
    e->outcomes = calloc(params->max_num_seqs, sizeof *e->outcomes);
    e->flight_numbers = calloc(e->params.max_flights, sizeof *e->flight_numbers);
    if (!e->drawing || !e->outcomes || !e->flight_numbers) {
        st = td_err_set(err, TD_NO_MEMORY, "no memory for %u sequences", params->max_num_seqs);
        goto fail;
    }
    *out = e;
    return TD_OK;

fail:
    td_engine_close(e);
    return st;
}

static void free_seq(struct seq *q)
{
    td_sampler_close(q->sampler);
    td_ending_deinit(&q->ending);
    td_request_deinit(&q->req);
    free(q->core.hashes);
    free(q);
}

void td_engine_close(struct td_engine *e)
{
    if (!e)
        return;
    while (e->first) {
        struct seq *q = e->first;

        e->first = q->next;
        free_seq(q);
    }
    free(e->drawing);
    free(e->outcomes);
    free(e->flight_numbers);
    td_drafter_close(e->drafter);
    td_sched_close(e->sched);
    td_blocks_close(e->blocks);
    free(e);
}

void td_engine_step_caps(const struct td_engine *e, uint32_t *rows, uint32_t *seqs, uint32_t *table)
{
    td_sched_caps(e->sched, rows, seqs, table);
}

uint64_t td_engine_take_number(struct td_engine *e)
{
    return e->next_number++;
}

static struct seq *find(const struct td_engine *e, uint64_t request_id)
{
    struct seq *q = e->first;

    while (q && q->req.id != request_id)
        q = q->next;
    return q;
}

/* What the output that was told before has left behind, but for the sampler, which is opened later. */
static enum td_status replay(struct seq *q, struct td_err *err)
{
    const struct td_request *r = &q->req;
    enum td_finish finish;
    enum td_status st;

    for (uint32_t i = 0; i < r->n_emitted; i++) {
        if ((st = td_ending_judge(&q->ending, r->emitted[i], i + 1, &finish, NULL)))
            return td_err_set(err, st, "no memory for the text of request %llu",
                              (unsigned long long)r->id);
        if (finish != TD_FINISH_NONE)
            return td_err_set(err, TD_INVALID, "output token %u ends the request that is replayed",
                              i);
        q->core.ids[q->core.n_ids++] = r->emitted[i];
    }
    q->n_output = r->n_emitted;
    return TD_OK;
}

/* The least of a row that its draws can do with: its largest logits, an id that the device draws, or all of it. */
static void choose_want(struct seq *q, bool device_draws)
{
    const struct td_sampling *sampling = &q->req.sampling;
    uint32_t n_banned = q->req.min_tokens ? q->ending.n_ids : 0;

    if (sampling->n_logprobs >= 0 && !device_draws)
        return;
    q->core.logprobs = (uint32_t)(sampling->n_logprobs + 1);
    q->core.n_top = td_sampling_n_top(sampling, n_banned);
    if (q->core.n_top && (int64_t)q->core.n_top < sampling->n_logprobs)
        q->core.n_top = (uint32_t)sampling->n_logprobs;
    if (device_draws && q->core.n_top == 0 && td_sampling_draws_row(sampling, n_banned))
        q->core.draws = sampling;
}

/* The copy that the engine works on, checked, with room for its output. */
static enum td_status open_seq(const struct td_engine *e, const struct td_request *r,
                               struct seq **out, struct td_err *err)
{
    const struct td_engine_params *p = &e->params;
    struct td_request checked = *r; /* borrows the arrays of `r` */
    enum td_status st;
    struct seq *q;
    uint32_t *ids;

    if ((st = td_request_validate(&checked, p->n_vocab, p->max_model_len, err)))
        return st;
    q = calloc(1, sizeof(*q));
    if (!q || td_request_copy(&checked, &q->req)) {
        free(q);
        goto no_memory;
    }
    q->core.n_ids = checked.n_prompt;
    q->core.cap_ids = checked.n_prompt + checked.max_tokens; /* <= max_model_len */
    ids = realloc(q->req.prompt, (size_t)q->core.cap_ids * sizeof(*ids));
    if (!ids) {
        free_seq(q);
        goto no_memory;
    }
    q->req.prompt = q->core.ids = ids;
    q->core.priority = checked.priority;
    if (p->prefix_cache && !checked.no_prefix_cache && checked.prompt_logprobs < 0) {
        q->core.salt = checked.cache_salt;
        q->core.hashes = calloc(q->core.cap_ids / p->block_tokens + 1, sizeof(*q->core.hashes));
        if (!q->core.hashes) {
            free_seq(q);
            goto no_memory;
        }
    }
    /* Without stop strings nobody here needs the text. */
    st = td_ending_init(&q->ending, &q->req, p->eos_ids, p->n_eos,
                        checked.n_stops ? p->tokenizer : NULL, err);
    st = st ? st : replay(q, err);
    if (st) {
        free_seq(q);
        return st;
    }
    if (q->req.prompt_logprobs >= 0 && !q->n_output) {
        q->core.want_to = q->req.n_prompt - 1;
        q->core.prompt_logprobs = p->draws ? (uint32_t)(q->req.prompt_logprobs + 1) : 0;
    }
    if (q->core.want_to == 0 || q->core.prompt_logprobs)
        choose_want(q, p->draws);
    *out = q;
    return TD_OK;

no_memory:
    return td_err_set(err, TD_NO_MEMORY, "no memory for a request of %u tokens",
                      checked.n_prompt + checked.max_tokens);
}

enum td_status td_engine_submit(struct td_engine *e, const struct td_request *r, uint64_t now_ns,
                                struct td_err *err)
{
    struct seq *q;
    enum td_status st;

    if (find(e, r->id))
        return td_err_set(err, TD_INVALID, "request id %llu is in use", (unsigned long long)r->id);
    if ((st = open_seq(e, r, &q, err)))
        return st;
    if ((st = td_sched_submit(e->sched, &q->core, now_ns, err))) {
        free_seq(q);
        return st;
    }
    q->next = e->first;
    if (e->first)
        e->first->prev = q;
    e->first = q;
    return TD_OK;
}

bool td_engine_cancel(struct td_engine *e, uint64_t request_id)
{
    struct seq *q = find(e, request_id);

    if (!q || q->cancelled)
        return false;
    q->cancelled = true;
    e->n_cancelled++;
    return true;
}

bool td_engine_pause(struct td_engine *e, uint64_t request_id, bool paused)
{
    struct seq *q = find(e, request_id);

    if (!q || q->cancelled)
        return false;
    if (q->paused != paused) {
        q->paused = paused;
        e->n_paused += paused ? 1 : -1u;
        e->pauses_changed = true;
    }
    return true;
}

static void apply_pauses(struct td_engine *e)
{
    for (struct seq *q = e->first; e->pauses_changed && q; q = q->next)
        if (q->paused && q->core.state != TD_SCHED_OUT)
            td_sched_remove(e->sched, &q->core);
        else if (!q->paused && q->core.state == TD_SCHED_OUT)
            td_sched_resume(e->sched, &q->core);
    e->pauses_changed = false;
}

/* Takes a sequence out of everything, frees it and then sends its final event, so that the callback may submit the
 * same id again. */
static void end_seq(struct td_engine *e, struct seq *q, struct td_token_event *event)
{
    td_sched_remove(e->sched, &q->core);
    *(q->prev ? &q->prev->next : &e->first) = q->next;
    if (q->next)
        q->next->prev = q->prev;
    if (q->cancelled)
        e->n_cancelled--;
    if (q->paused)
        e->n_paused--;
    event->request_id = q->req.id;
    event->index = event->has_token ? q->n_output - 1 : q->n_output;
    e->stats.n_finished[event->finish]++;
    free_seq(q);
    e->params.on_event(event, e->params.user);
}

static void end_without_token(struct td_engine *e, struct seq *q, enum td_finish finish,
                              const struct td_err *error)
{
    struct td_token_event event = {.finish = finish, .error = error};

    end_seq(e, q, &event);
}

static void sweep_cancelled(struct td_engine *e)
{
    /* A callback may cancel or submit; then the list is read again from its start. */
    while (e->n_cancelled > 0) {
        struct seq *q = e->first;

        while (!q->cancelled)
            q = q->next;
        end_without_token(e, q, TD_FINISH_CANCELLED, NULL);
    }
}

static bool in_flight(const struct td_engine *e)
{
    return td_sched_n_flights(e->sched) > 0;
}

/* The number of the oldest step in flight. */
static uint64_t flight_number(const struct td_engine *e)
{
    return e->flight_numbers[e->n_completed % e->params.max_flights];
}

/* Samplers of sequences that are in a step for the first time. Failure shows when their logits come. */
static void open_samplers(struct td_engine *e)
{
    uint32_t n;
    const struct td_sched_part *parts = td_sched_newest(e->sched, &n);

    for (uint32_t i = 0; i < n; i++) {
        struct seq *q = (struct seq *)(void *)parts[i].seq;

        if (q->sampler)
            continue;
        if (td_sampler_open(&q->req.sampling, e->params.n_vocab, &q->sampler, NULL))
            continue;
        td_sampler_accept_prompt(q->sampler, q->req.prompt, q->req.n_prompt);
        for (uint32_t k = 0; k < q->req.n_emitted; k++)
            td_sampler_accept(q->sampler, q->req.emitted[k]);
        if (q->req.n_emitted && td_sampling_has_state(&q->req.sampling))
            (void)td_sampler_set_state(q->sampler, q->req.state, NULL); /* checked at submit */
    }
}

static void propose_drafts(struct td_engine *e)
{
    for (struct seq *q = e->first; q; q = q->next) {
        if (q->core.n_flying) /* its guesses are being verified */
            continue;
        if (q->core.n_draft) {
            td_draft_judge(&q->draft, q->core.n_draft, q->core.n_right);
            td_drafter_judge(&q->core);
        }
        q->core.n_draft = 0;
        if (!e->params.max_draft_tokens || !td_sched_is_decoding(&q->core))
            continue;
        q->core.n_draft = td_draft_wish(&q->draft, e->params.max_draft_tokens);
        if (!e->drafter)
            q->core.n_draft =
                td_draft_lookup(q->core.ids, q->core.n_ids, q->core.n_draft, q->core.draft);
    }
}

bool td_engine_plan_step(struct td_engine *e, uint64_t now_ns, struct td_step *step)
{
    uint64_t newest;

    td_step_reset(step, TD_STEP_RUN, e->next_number);
    if (td_sched_n_flights(e->sched) == e->params.max_flights)
        return false;
    sweep_cancelled(e);
    apply_pauses(e);
    propose_drafts(e);
    td_sched_begin(e->sched, now_ns, step);
    if (e->drafter)
        td_drafter_guess(e->drafter, e->sched);
    if (!td_sched_plan(e->sched, step))
        return false;
    open_samplers(e);
    newest = e->n_completed + td_sched_n_flights(e->sched) - 1;
    e->flight_numbers[newest % e->params.max_flights] = e->next_number++;
    e->stats.n_steps++;
    e->stats.n_rows += step->n_rows;
    return true;
}

/* Why one row of logits gave no token; the request ends. */
static void end_with_error(struct td_engine *e, struct seq *q, enum td_status status)
{
    struct td_token_event event = {.finish = TD_FINISH_ERROR};
    struct td_err error;

    event.error = &error;
    if (status == TD_CORRUPT)
        td_err_set(&error, status,
                   "no token can follow position %u: every allowed logit is NaN or -infinity",
                   q->core.n_ids - 1);
    else
        td_err_set(&error, status, "no memory for the sampler or the text of request %llu",
                   (unsigned long long)q->req.id);
    end_seq(e, q, &event);
}

/* ---- What a step brought: first every sequence draws, at the same time as others, then all is told in order ---- */

/* The log probability of the prompt's next token, of a row of those that ask about it or that have all logits. */
static void measure_prompt(const struct td_engine *e, struct seq *q, uint32_t row,
                           const struct td_step_result *result, struct outcome *o)
{
    const uint32_t n_top = (uint32_t)q->req.prompt_logprobs;

    *o = (struct outcome){.index = ++q->core.want_from, .is_prompt = true};
    o->token.id = q->req.prompt[o->index];
    if (q->core.prompt_logprobs)
        td_sampler_measured(&result->asked_measure[row],
                            result->asked_top + (size_t)row * result->n_draw_top,
                            result->n_draw_top, n_top, &o->token);
    else
        td_sampler_logprobs(result->logits + (size_t)row * e->params.n_vocab, e->params.n_vocab,
                            n_top, &o->token);
}

/* Draws from one row and judges. True: the sequence goes on, and its next row's result counts. */
static bool draw_row(const struct td_engine *e, struct seq *q, uint32_t row,
                     const struct td_step_result *result, struct outcome *o)
{
    const uint32_t n_logprobs = q->core.logprobs ? q->core.logprobs - 1 : 0;
    const uint32_t *banned;
    uint32_t n_banned;

    *o = (struct outcome){.index = q->n_drawn};
    if (!q->sampler) {
        o->status = TD_NO_MEMORY;
        return false;
    }
    banned = td_ending_banned(&q->ending, q->n_drawn, &n_banned);
    if (q->core.draws) {
        o->token = (struct td_sampled){.id = result->drawn[row],
                                       .no_choice = result->drawn[row] == UINT32_MAX};
        if (q->core.logprobs)
            td_sampler_measured(&result->draw_measure[row],
                                result->draw_top + (size_t)row * result->n_draw_top,
                                result->n_draw_top, n_logprobs, &o->token);
    } else if (q->core.n_top) {
        const struct td_top *top = result->top + (size_t)row * result->n_top;

        td_sampler_draw_top(q->sampler, top, result->n_top, q->core.n_ids, banned, n_banned,
                            &o->token);
        if (q->core.logprobs)
            td_sampler_measured(&result->top_measure[row], top, result->n_top, n_logprobs,
                                &o->token);
    } else
        td_sampler_draw(q->sampler, result->logits + (size_t)row * e->params.n_vocab, q->core.n_ids,
                        banned, n_banned, &o->token);
    if (o->token.no_choice)
        o->status = TD_CORRUPT;
    else
        o->status = td_ending_judge(&q->ending, o->token.id, q->n_drawn + 1, &o->finish, NULL);
    if (o->status)
        return false;
    q->n_drawn++;
    td_sampler_accept(q->sampler, o->token.id);
    if (td_sampling_has_state(&q->req.sampling))
        o->state = td_sampler_state(q->sampler);
    return td_sched_append(&q->core, o->token.id) && o->finish == TD_FINISH_NONE;
}

/* The results of a sequence's rows: of its prompt, of its last token, then of drafts as long as they were right. */
static void draw_rows(void *arg, uint32_t i)
{
    struct td_engine *e = arg;
    struct seq *q = e->drawing[i];
    const struct td_step_result *result = e->result;
    const uint32_t asked = q->core.prompt_logprobs ? q->n_prompt_results : 0;
    uint32_t row = q->result_row;
    bool goes_on = q->n_results > q->n_prompt_results;

    q->n_drawn = q->n_output;
    q->n_outcomes = 0;
    for (uint32_t k = 0; k < asked; k++)
        measure_prompt(e, q, q->asked_row + k, result, &q->outcome[q->n_outcomes++]);
    for (uint32_t k = asked; k < q->n_prompt_results; k++)
        measure_prompt(e, q, row++, result, &q->outcome[q->n_outcomes++]);
    while (goes_on)
        goes_on = draw_row(e, q, row++, result, &q->outcome[q->n_outcomes++]);
}

/* False: the sequence is gone. */
static bool tell(struct td_engine *e, struct seq *q, const struct outcome *o)
{
    struct td_token_event event = {.request_id = q->req.id,
                                   .index = o->index,
                                   .is_prompt = o->is_prompt,
                                   .has_token = !o->is_prompt,
                                   .token = o->token,
                                   .state = o->state,
                                   .finish = o->finish};

    if (o->status) {
        end_with_error(e, q, o->status == TD_CORRUPT ? TD_CORRUPT : TD_NO_MEMORY);
        return false;
    }
    if (!o->is_prompt) {
        if (q->n_output++ == 0) {
            e->stats.n_prompt_tokens += q->req.n_prompt;
            e->stats.n_cached_tokens += q->core.n_cached;
            event.cached_tokens = q->core.n_cached;
            event.queue_ns = q->core.queue_ns;
        }
        e->stats.n_output_tokens++;
        e->stats.n_device_draws += q->core.draws != NULL;
    }
    if (event.finish != TD_FINISH_NONE) {
        end_seq(e, q, &event);
        return false;
    }
    e->params.on_event(&event, e->params.user);
    return true;
}

static void tell_all(struct td_engine *e, struct seq *q)
{
    const struct outcome *o = q->outcome;
    uint32_t n = q->n_outcomes;

    if (q->n_results > q->n_prompt_results) {
        e->stats.n_draft_tokens += q->n_results - q->n_prompt_results - 1;
        e->stats.n_right_drafts += n - q->n_prompt_results - 1;
    }
    for (uint32_t k = 0; k < n && !q->cancelled; k++)
        if (!tell(e, q, &o[k]))
            return;
}

/* Draws that walk whole rows are worth other threads. */
static void draw_all(struct td_engine *e, uint32_t n, uint32_t n_whole)
{
    if (n_whole > 1 && e->params.parallel)
        e->params.parallel(e->params.parallel_user, n, draw_rows, e);
    else
        for (uint32_t i = 0; i < n; i++)
            draw_rows(e, i);
}

/* Where each sequence finds its rows' results, and who draws: returns how many; *n_whole rows are whole logits. Those whose sequences
 * have left are passed over. */
static uint32_t find_results(struct td_engine *e, uint32_t *n_whole)
{
    uint32_t n, found[TD_WANTS] = {0}, n_outcomes = 0, n_drawing = 0;
    const struct td_sched_part *parts = td_sched_oldest(e->sched, &n);

    for (uint32_t i = 0; i < n; i++) {
        const struct td_sched_part *part = &parts[i];
        struct seq *q = (struct seq *)(void *)part->seq;

        const uint32_t n_results = part->n_asked + part->n_wanted;

        if (q && n_results && !q->cancelled) {
            q->n_results = n_results;
            q->n_prompt_results = n_results - (part->reaches_end ? 1 + part->n_draft : 0);
            q->result_row = found[part->want];
            q->asked_row = found[TD_WANT_MEASURE];
            q->outcome = e->outcomes + n_outcomes;
            e->drawing[n_drawing++] = q;
        }
        found[part->want] += part->n_wanted;
        found[TD_WANT_MEASURE] += part->n_asked;
        n_outcomes += n_results;
    }
    *n_whole = found[TD_WANT_LOGITS];
    return n_drawing;
}

enum td_status td_engine_complete_step(struct td_engine *e, uint64_t number,
                                       const struct td_step_result *result, uint64_t step_ns,
                                       struct td_err *err)
{
    uint32_t n_drawing, n_whole;
    uint64_t moves_ns = result->moves ? result->moves->ns : 0;

    if (!in_flight(e) || number != flight_number(e))
        return td_err_set(err, TD_INVALID, "step %llu is complete, but %s %llu",
                          (unsigned long long)number,
                          in_flight(e) ? "in flight is step" : "none is in flight; the next is",
                          (unsigned long long)(in_flight(e) ? flight_number(e) : e->next_number));
    n_drawing = find_results(e, &n_whole);
    td_sched_complete(e->sched, step_ns > moves_ns ? step_ns - moves_ns : 0, result->moves);
    e->n_completed++;
    e->result = result;
    draw_all(e, n_drawing, n_whole);
    /* Callbacks may submit and cancel meanwhile: neither frees a sequence. */
    for (uint32_t i = 0; i < n_drawing; i++)
        tell_all(e, e->drawing[i]);
    sweep_cancelled(e);
    return TD_OK;
}

void td_engine_fail_all(struct td_engine *e, const struct td_err *cause)
{
    /* What a callback submits now is younger and is not touched. */
    struct seq *q = e->first;

    td_sched_abandon(e->sched);
    while (q) {
        struct seq *next = q->next;

        end_without_token(e, q, q->cancelled ? TD_FINISH_CANCELLED : TD_FINISH_ERROR,
                          q->cancelled ? NULL : cause);
        q = next;
    }
}

void td_engine_stats(const struct td_engine *e, uint64_t now_ns, struct td_engine_stats *stats)
{
    *stats = e->stats;
    stats->n_running = td_sched_n_running(e->sched);
    stats->n_waiting = td_sched_n_waiting(e->sched);
    stats->n_paused = e->n_paused;
    stats->n_blocks = td_blocks_n_total(e->blocks, TD_LAYER_ATTENTION);
    stats->n_blocks_used = stats->n_blocks - td_blocks_n_free(e->blocks, TD_LAYER_ATTENTION);
    stats->n_blocks_idle = td_blocks_n_idle(e->blocks, TD_LAYER_ATTENTION);
    for (uint32_t t = 0; t < TD_OFFLOAD_TIERS && td_sched_prefix(e->sched); t++)
        stats->n_blocks_outside[t] = td_prefix_n_outside(td_sched_prefix(e->sched), t);
    stats->n_blocks_read = td_sched_n_read(e->sched);
    stats->n_failed_reads = td_sched_n_failed_reads(e->sched);
    stats->oldest_wait_ns = td_sched_oldest_wait_ns(e->sched, now_ns);
    stats->n_preemptions = td_sched_n_preemptions(e->sched);
}

enum td_status td_engine_check(const struct td_engine *e, struct td_err *err)
{
    const struct td_prefix *prefix = td_sched_prefix(e->sched);
    enum td_status st = td_blocks_check(e->blocks, err);

    return st || !prefix ? st : td_prefix_check(prefix, err);
}
