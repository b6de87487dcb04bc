/* Open requests: accepted, sent to rank 0, their tokens turned into text, ended exactly once. */
#include "daemon/coordinator/coord_impl.h"
#include "daemon/journal/journal.h"
#include "daemon/journal/resume.h"

#include <stdlib.h>

static struct td_job **bucket_of(struct td_coord *c, uint64_t id)
{
    return &c->bucket[id % JOB_BUCKETS];
}

static struct td_job *find(struct td_coord *c, uint64_t id)
{
    struct td_job *j = *bucket_of(c, id);

    while (j && j->request.id != id)
        j = j->next_in_bucket;
    return j;
}

static void insert(struct td_coord *c, struct td_job *j)
{
    struct td_job **bucket = bucket_of(c, j->request.id);

    j->next_in_bucket = *bucket;
    *bucket = j;
    j->prev = c->last;
    if (c->last)
        c->last->next = j;
    else
        c->first = j;
    c->last = j;
    c->n_open++;
}

static uint64_t n_charged(const struct td_request *r)
{
    return (uint64_t)r->n_prompt + r->max_tokens;
}

/* `n_used`: tokens that stay charged to its key. */
static void forget(struct td_job *j, uint64_t n_used)
{
    struct td_coord *c = j->c;
    struct td_job **at = bucket_of(c, j->request.id);
    uint64_t now = uv_hrtime(), charged = n_charged(&j->request);

    while (*at != j)
        at = &(*at)->next_in_bucket;
    *at = j->next_in_bucket;
    *(j->prev ? &j->prev->next : &c->first) = j->next;
    *(j->next ? &j->next->prev : &c->last) = j->prev;
    c->n_open--;
    td_replay_forget(j);
    td_deadlines_remove(&c->deadlines, &j->deadline);
    td_quota_give_back(&c->quota, j->key, charged > n_used ? charged - n_used : 0, now);
    td_endrate_end(&c->endrate, now);
}

static uint64_t n_used(const struct td_job *j)
{
    return (uint64_t)j->request.n_prompt + j->request.n_emitted;
}

static void free_job(struct td_job *j)
{
    td_ending_deinit(&j->ending);
    td_bytes_deinit(&j->text);
    td_request_deinit(&j->request);
    td_served_release(j->served);
    free(j);
}

/* ---- what the journal keeps ---- */

/* One that cannot be kept is a gap, and what lies behind it is computed again after a restart. */
static void keep_token(struct td_job *j, const struct td_token_event *event)
{
    struct td_eventlog_token token = {
        .is_prompt = event->is_prompt, .index = event->index, .id = event->token.id};

    if (!j->number || td_resume_detail(event, &j->c->detail, NULL))
        return;
    token.detail = td_bytes_str(&j->c->detail);
    td_journal_token(j->c->journal, j->number, j->part, &token);
}

static void keep_end(struct td_job *j, enum td_finish finish, const struct td_err *error)
{
    char text[TD_BATCH_MAX_ERROR_BYTES];
    struct td_batch_end end = {.finish = finish, .n_tokens = j->request.n_emitted};

    if (!j->number || (j->c->is_leaving && finish == TD_FINISH_ERROR))
        return;
    if (finish == TD_FINISH_ERROR) {
        end.error_status = error->status;
        end.error_text = td_str_from(td_err_format(error, text, sizeof text));
    }
    td_journal_end(j->c->journal, j->number, j->part, &end);
}

/* ---- the end ---- */

static void fill_usage(const struct td_job *j, struct td_job_event *event)
{
    event->n_prompt = j->request.n_prompt;
    event->n_output = j->request.n_emitted;
    event->n_cached = j->n_cached;
}

/* The last event of a job. */
static void end(struct td_job *j, struct td_job_event *event)
{
    uint64_t now = uv_hrtime();
    bool is_late = event->finish == TD_FINISH_ERROR && event->error->status == TD_TIMED_OUT;
    bool is_failed = event->finish == TD_FINISH_ERROR && !is_late;

    fill_usage(j, event);
    event->queue_ns = j->queue_ns;
    event->first_token_ns = j->first_ns ? j->first_ns - j->accepted_ns : 0;
    event->total_ns = now - j->accepted_ns;
    j->c->n_deadlines += is_late;
    if (is_failed)
        j->c->n_failed++;
    else
        j->c->n_finished++;
    keep_end(j, event->finish, event->error);
    forget(j, is_failed && !j->first_ns ? 0 : n_used(j));
    j->on_event(j, event, j->user);
    free_job(j);
}

static enum td_status begin_text(struct td_job *j, struct td_err *err)
{
    const struct td_spec *spec = j->served->spec;

    return td_ending_init(&j->ending, &j->request, spec->eos_ids, spec->n_eos, j->served->tok, err);
}

/* Puts it under its deadline and on its way. */
static enum td_status go(struct td_job *j, struct td_err *err)
{
    if (j->deadline.at_ns && td_deadlines_add(&j->c->deadlines, &j->deadline))
        return td_err_set(err, TD_NO_MEMORY, "no memory for a deadline");
    return j->c->replay_settled ? td_replay_send(j, err) : TD_OK;
}

/* The earlier of the request's own deadline and the server's; 0: none. */
static uint64_t deadline_of(const struct td_coord *c, const struct td_coord_submit *what,
                            uint64_t now_ns)
{
    uint64_t own = what->deadline_ns, limit = c->p.limits.request_timeout_ns;

    if (!limit)
        return own;
    return own && own < now_ns + limit ? own : now_ns + limit;
}

/* A job that is not open yet, with the request in it, which stays the caller's until it is opened. */
static enum td_status make(struct td_coord *c, const struct td_coord_submit *what, uint64_t now,
                           struct td_job **out, struct td_err *err)
{
    struct td_job *j;

    if (what->deadline_ns && what->deadline_ns <= now)
        return td_err_set(err, TD_TIMED_OUT, "the request's time was up before it was accepted");
    j = calloc(1, sizeof *j);
    if (!j)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a request");
    j->c = c;
    j->key = what->key;
    j->deadline = (struct td_deadline){.at_ns = deadline_of(c, what, now), .owner = j};
    what->request->id = ++c->next_id;
    j->request = *what->request; /* borrows until it is taken */
    j->served = what->served;
    j->raw_text = what->raw_text;
    j->on_event = what->on_event;
    j->user = what->user;
    j->accepted_ns = now;
    j->number = what->number;
    j->part = what->part;
    *out = j;
    return TD_OK;
}

/* One that was not opened. */
static void unmake(struct td_job *j)
{
    td_deadlines_remove(&j->c->deadlines, &j->deadline);
    td_ending_deinit(&j->ending);
    td_bytes_deinit(&j->text);
    free(j);
}

/* Nothing can fail any more. */
static void open_job(struct td_job *j, struct td_request *request)
{
    struct td_coord *c = j->c;

    td_request_init(request);
    td_served_retain(j->served);
    insert(c, j);
    td_quota_take(&c->quota, j->key, n_charged(&j->request), j->accepted_ns);
    td_endrate_begin(&c->endrate, j->accepted_ns);
}

enum td_status td_coord_submit(struct td_coord *c, const struct td_coord_submit *what,
                               struct td_job **out, struct td_err *err)
{
    struct td_request *request = what->request;
    struct td_served *served = what->served;
    struct td_coord_ask ask = {.key = what->key, .n_jobs = 1};
    uint32_t retry_after_s;
    struct td_job *j;
    enum td_status s;

    if (served != c->served)
        return td_err_set(err, TD_UNAVAILABLE, "the model is not loaded any more");
    if (request->max_tokens == 0)
        request->max_tokens = UINT32_MAX;
    if (td_coord_accepts(c) && /* else it may have no plan, and so no context */
        (s = td_request_validate(request, served->spec->n_vocab, served->max_model_len, err)))
        return s;
    ask.n_tokens = n_charged(request);
    if (!(what->admitted && td_coord_accepts(c)) &&
        (s = td_coord_admit(c, &ask, &retry_after_s, err)))
        return s;
    s = make(c, what, uv_hrtime(), &j, err);
    if (s)
        return s;
    s = begin_text(j, err);
    s = s ? s : go(j, err);
    if (s) {
        unmake(j);
        return s;
    }
    open_job(j, request);
    c->n_requests++;
    *out = j;
    return TD_OK;
}

void td_job_cancel(struct td_job *j)
{
    struct td_coord *c = j->c;

    td_group_send_cancel(j->group, j->request.id);
    forget(j, n_used(j));
    c->n_finished++;
    free_job(j);
}

void td_job_give_up(struct td_job *j, const struct td_err *err)
{
    keep_end(j, TD_FINISH_ERROR, err);
    td_job_cancel(j);
}

void td_job_pause(struct td_job *j, bool paused)
{
    if (paused == j->paused)
        return;
    j->paused = paused;
    if (j->group && !j->is_held && paused)
        td_group_send_pause(j->group, j->request.id);
    else if (j->group && !j->is_held)
        td_group_send_resume(j->group, j->request.id);
    td_replay_paused(j);
}

uint64_t td_job_id(const struct td_job *j)
{
    return j->request.id;
}

uint64_t td_job_seed(const struct td_job *j)
{
    return j->request.sampling.seed;
}

/* Text that became sure with this token, to be counted as number `n_output`. Rank 0's verdict about the end is the one that
 * counts. */
static enum td_status show(struct td_job *j, const struct td_token_event *event, uint32_t n_output)
{
    enum td_finish verdict;
    enum td_status s = td_ending_judge(&j->ending, event->token.id, n_output, &verdict, &j->text);

    if (!s && j->raw_text && td_tokenizer_is_special(j->served->tok, event->token.id) &&
        event->finish != TD_FINISH_STOP)
        s = td_bytes_append_str(&j->text, td_tokenizer_piece(j->served->tok, event->token.id));
    return s;
}

/* What its asker is told of an event: the token, if there is one, is number `n_output` of its output. */
static enum td_status read_event(struct td_job *j, const struct td_token_event *event,
                                 uint32_t n_output, struct td_job_event *out)
{
    enum td_status s = TD_OK;

    *out = (struct td_job_event){.index = event->index,
                                 .has_token = event->has_token,
                                 .is_prompt = event->is_prompt,
                                 .token = &event->token,
                                 .text = TD_STR(""),
                                 .finish = event->finish,
                                 .error = event->error};
    td_bytes_clear(&j->text);
    if (event->is_prompt)
        return TD_OK;
    if (event->has_token)
        s = show(j, event, n_output);
    if (!s && event->finish != TD_FINISH_NONE && event->finish != TD_FINISH_ERROR)
        s = td_ending_flush(&j->ending, &j->text);
    out->text = td_bytes_str(&j->text);
    return s;
}

static void take_first(struct td_job *j, const struct td_token_event *event)
{
    struct td_coord *c = j->c;

    j->first_ns = uv_hrtime();
    j->n_cached = event->cached_tokens;
    j->queue_ns = event->queue_ns;
    c->prompt_tokens += j->request.n_prompt;
    c->cached_tokens += event->cached_tokens;
}

void td_job_token(struct group *g, const struct td_token_event *event)
{
    struct td_coord *c = g->c;
    struct td_job *j = find(c, event->request_id);
    struct td_job_event out;
    struct td_err err;
    enum td_status s = TD_OK;

    if (!j || j->group != g ||
        (event->has_token && event->index != j->request.n_emitted)) /* cancelled, or told before */
        return;
    if (event->is_prompt && event->index <= j->n_prompt_told) /* by a group that was lost */
        return;
    if (event->finish == TD_FINISH_ERROR && event->error->status == TD_NO_MEMORY &&
        td_replay_starved(j, event->error))
        return;
    if (event->is_prompt)
        j->n_prompt_told = event->index;
    if (event->has_token) {
        s = td_request_emit(&j->request, event->token.id, event->state, &err);
        c->generated_tokens++;
        if (!j->first_ns)
            take_first(j, event);
    }
    if (!s && (event->has_token || event->is_prompt))
        keep_token(j, event);
    if (!s)
        s = read_event(j, event, j->request.n_emitted, &out);
    if (event->has_token)
        td_replay_token(j);
    if (s) {
        td_err_set(&err, s, "the text of token %u could not be kept", event->index);
        td_group_send_cancel(j->group, j->request.id);
        out = (struct td_job_event){
            .index = event->index, .text = TD_STR(""), .finish = TD_FINISH_ERROR, .error = &err};
    }
    if (out.finish != TD_FINISH_NONE)
        end(j, &out);
    else
        j->on_event(j, &out, j->user);
}

/* ---- told again ---- */

/* It was counted then. */
static void take_first_again(struct td_job *j, const struct td_token_event *event)
{
    j->first_ns = j->accepted_ns;
    j->n_cached = event->cached_tokens;
}

/* A run of tokens, of the prompt or of the output. The last one of the output brings the end, as it did then, when that is none of
 * an error. */
static enum td_status retell(struct td_job *j, const struct td_stored_part *part, bool is_prompt,
                             struct td_err *err)
{
    const struct td_stored_tokens *tokens = is_prompt ? &part->prompt : &part->output;
    bool ends = !is_prompt && part->has_end && part->end.finish != TD_FINISH_ERROR;
    enum td_status s = TD_OK;

    for (uint32_t i = 0; !s && i < tokens->n; i++) {
        struct td_token_event event;
        struct td_job_event out;

        s = td_resume_event(tokens, is_prompt, i, &event, err);
        if (s)
            return s;
        if (is_prompt)
            j->n_prompt_told = event.index;
        else if (i == 0)
            take_first_again(j, &event);
        if (ends && i + 1 == tokens->n)
            event.finish = part->end.finish;
        s = read_event(j, &event, i + 1, &out);
        if (s)
            return td_err_set(err, s, "the text of token %u could not be kept", i);
        if (out.finish != TD_FINISH_NONE)
            fill_usage(j, &out);
        j->on_event(j, &out, j->user);
    }
    return s;
}

/* An end that no token brought. */
static void retell_end(struct td_job *j, const struct td_stored_part *part)
{
    struct td_job_event out = {.text = TD_STR(""), .finish = part->end.finish};
    struct td_err error;

    if (part->end.finish == TD_FINISH_ERROR) {
        td_err_set(&error, part->end.error_status, "%.*s", (int)part->end.error_text.len,
                   part->end.error_text.ptr);
        out.error = &error;
    } else if (part->output.n > 0) {
        return;
    }
    fill_usage(j, &out);
    j->on_event(j, &out, j->user);
}

enum td_status td_coord_restore(struct td_coord *c, const struct td_coord_submit *what,
                                const struct td_stored_part *part, struct td_job **out,
                                struct td_err *err)
{
    struct td_job *j;
    enum td_status s;

    *out = NULL;
    if (what->served != c->served)
        return td_err_set(err, TD_UNAVAILABLE, "the model is not loaded any more");
    s = make(c, what, uv_hrtime(), &j, err);
    if (s)
        return s;
    s = begin_text(j, err);
    s = s ? s : retell(j, part, true, err);
    s = s ? s : retell(j, part, false, err);
    if (!s && part->has_end) {
        retell_end(j, part);
        td_request_deinit(what->request);
        td_request_init(what->request);
        unmake(j);
        return TD_OK;
    }
    s = s ? s : go(j, err);
    if (s) {
        unmake(j);
        return s;
    }
    open_job(j, what->request);
    *out = j;
    return TD_OK;
}

void td_job_fail(struct td_job *j, const struct td_err *err)
{
    struct td_job_event event = {.finish = TD_FINISH_ERROR, .error = err, .text = TD_STR("")};

    end(j, &event);
}

void td_job_fail_all(struct td_coord *c, const struct td_err *err)
{
    while (c->first)
        td_job_fail(c->first, err);
}

void td_job_expire(struct td_coord *c, uint64_t now_ns)
{
    struct td_deadline *d;
    struct td_err err;

    while ((d = td_deadlines_passed(&c->deadlines, now_ns)) != NULL) {
        struct td_job *j = d->owner;
        struct td_job_event event = {.finish = TD_FINISH_ERROR, .error = &err, .text = TD_STR("")};

        td_err_set(&err, TD_TIMED_OUT,
                   "the request's time was up after %.1f s, with %u tokens generated",
                   (double)(now_ns - j->accepted_ns) * 1e-9, j->request.n_emitted);
        td_group_send_cancel(j->group, j->request.id);
        end(j, &event);
    }
}

uint32_t td_job_cancel_all(struct td_coord *c, const struct td_err *err)
{
    uint32_t n = c->n_open;

    for (struct td_job *j = c->first; j; j = j->next)
        td_group_send_cancel(j->group, j->request.id);
    td_job_fail_all(c, err);
    return n;
}
