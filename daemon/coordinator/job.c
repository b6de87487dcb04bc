/* Open requests: accepted, sent to rank 0, their tokens turned into text, ended exactly once. */
#include "daemon/coordinator/coord_impl.h"

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

/* The last event of a job. */
static void end(struct td_job *j, struct td_job_event *event)
{
    uint64_t now = uv_hrtime();
    bool is_late = event->finish == TD_FINISH_ERROR && event->error->status == TD_TIMED_OUT;
    bool is_failed = event->finish == TD_FINISH_ERROR && !is_late;

    event->n_prompt = j->request.n_prompt;
    event->n_output = j->request.n_emitted;
    event->n_cached = j->n_cached;
    event->queue_ns = j->queue_ns;
    event->first_token_ns = j->first_ns ? j->first_ns - j->accepted_ns : 0;
    event->total_ns = now - j->accepted_ns;
    j->c->n_deadlines += is_late;
    if (is_failed)
        j->c->n_failed++;
    else
        j->c->n_finished++;
    forget(j, is_failed && !j->first_ns ? 0 : n_used(j));
    j->on_event(j, event, j->user);
    free_job(j);
}

/* Whatever of a new job can fail. Undone by the caller. */
static enum td_status start(struct td_job *j, const struct td_coord_submit *what,
                            struct td_err *err)
{
    const struct td_served *served = what->served;
    enum td_status s = td_ending_init(&j->ending, what->request, served->spec->eos_ids,
                                      served->spec->n_eos, served->tok, err);

    if (!s && j->deadline.at_ns && td_deadlines_add(&j->c->deadlines, &j->deadline))
        s = td_err_set(err, TD_NO_MEMORY, "no memory for a deadline");
    return s || !j->c->replay_settled ? s : td_replay_send(j, err);
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

enum td_status td_coord_submit(struct td_coord *c, const struct td_coord_submit *what,
                               struct td_job **out, struct td_err *err)
{
    struct td_request *request = what->request;
    struct td_served *served = what->served;
    struct td_coord_ask ask = {.key = what->key, .n_jobs = 1};
    uint64_t now = uv_hrtime();
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
    if (what->deadline_ns && what->deadline_ns <= now)
        return td_err_set(err, TD_TIMED_OUT, "the request's time was up before it was accepted");
    j = calloc(1, sizeof *j);
    if (!j)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a request");
    j->c = c;
    j->key = what->key;
    j->deadline = (struct td_deadline){.at_ns = deadline_of(c, what, now), .owner = j};
    request->id = ++c->next_id;
    j->request = *request; /* borrows until it is taken */
    j->served = served;
    s = start(j, what, err);
    if (s) {
        td_deadlines_remove(&c->deadlines, &j->deadline);
        td_ending_deinit(&j->ending);
        free(j);
        return s;
    }
    td_request_init(request);
    td_served_retain(served);
    j->raw_text = what->raw_text;
    j->on_event = what->on_event;
    j->user = what->user;
    j->accepted_ns = now;
    insert(c, j);
    td_quota_take(&c->quota, j->key, n_charged(&j->request), now);
    td_endrate_begin(&c->endrate, now);
    c->n_requests++;
    *out = j;
    return TD_OK;
}

void td_job_cancel(struct td_job *j)
{
    struct td_coord *c = j->c;

    td_group_send_cancel(c, j->request.id);
    forget(j, n_used(j));
    c->n_finished++;
    free_job(j);
}

void td_job_pause(struct td_job *j, bool paused)
{
    if (paused == j->paused)
        return;
    j->paused = paused;
    if (j->is_sent && !j->is_held && paused)
        td_group_send_pause(j->c, j->request.id);
    else if (j->is_sent && !j->is_held)
        td_group_send_resume(j->c, j->request.id);
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

/* Text that became sure with this token. Rank 0's verdict about the end is the one that counts. */
static enum td_status show(struct td_job *j, const struct td_token_event *event)
{
    enum td_finish verdict;
    enum td_status s =
        td_ending_judge(&j->ending, event->token.id, j->request.n_emitted, &verdict, &j->text);

    if (!s && j->raw_text && td_tokenizer_is_special(j->served->tok, event->token.id) &&
        event->finish != TD_FINISH_STOP)
        s = td_bytes_append_str(&j->text, td_tokenizer_piece(j->served->tok, event->token.id));
    return s;
}

void td_job_token(struct td_coord *c, const struct td_token_event *event)
{
    struct td_job *j = find(c, event->request_id);
    struct td_job_event out = {
        .finish = event->finish, .error = event->error, .index = event->index};
    struct td_err err;
    enum td_status s = TD_OK;

    if (!j ||
        (event->has_token && event->index != j->request.n_emitted)) /* cancelled, or told before */
        return;
    td_bytes_clear(&j->text);
    if (event->is_prompt && event->index <= j->n_prompt_told) /* by a group that was lost */
        return;
    if (event->is_prompt) {
        j->n_prompt_told = event->index;
        out.is_prompt = true;
        out.token = &event->token;
        out.text = TD_STR("");
        j->on_event(j, &out, j->user);
        return;
    }
    if (event->has_token) {
        out.has_token = true;
        out.token = &event->token;
        s = td_request_emit(&j->request, event->token.id, event->state, &err);
        c->generated_tokens++;
        if (!j->first_ns) {
            j->first_ns = uv_hrtime();
            j->n_cached = event->cached_tokens;
            j->queue_ns = event->queue_ns;
            c->prompt_tokens += j->request.n_prompt;
            c->cached_tokens += event->cached_tokens;
        }
        s = s ? s : show(j, event);
        td_replay_token(j);
    }
    if (!s && event->finish != TD_FINISH_NONE && event->finish != TD_FINISH_ERROR)
        s = td_ending_flush(&j->ending, &j->text);
    if (s) {
        td_err_set(&err, s, "the text of token %u could not be kept", event->index);
        td_group_send_cancel(c, j->request.id);
        out.finish = TD_FINISH_ERROR;
        out.error = &err;
    }
    out.text = td_bytes_str(&j->text);
    if (out.finish != TD_FINISH_NONE)
        end(j, &out);
    else
        j->on_event(j, &out, j->user);
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
        td_group_send_cancel(c, j->request.id);
        end(j, &event);
    }
}

uint32_t td_job_cancel_all(struct td_coord *c, const struct td_err *err)
{
    uint32_t n = c->n_open;

    for (struct td_job *j = c->first; j; j = j->next)
        td_group_send_cancel(c, j->request.id);
    td_job_fail_all(c, err);
    return n;
}
