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

static void forget(struct td_job *j)
{
    struct td_coord *c = j->c;
    struct td_job **at = bucket_of(c, j->request.id);

    while (*at != j)
        at = &(*at)->next_in_bucket;
    *at = j->next_in_bucket;
    *(j->prev ? &j->prev->next : &c->first) = j->next;
    *(j->next ? &j->next->prev : &c->last) = j->prev;
    c->n_open--;
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

    event->n_prompt = j->request.n_prompt;
    event->n_output = j->n_output;
    event->n_cached = j->n_cached;
    event->first_token_ns = j->first_ns ? j->first_ns - j->accepted_ns : 0;
    event->total_ns = now - j->accepted_ns;
    if (event->finish == TD_FINISH_ERROR)
        j->c->n_failed++;
    else
        j->c->n_finished++;
    forget(j);
    j->on_event(j, event, j->user);
    free_job(j);
}

enum td_status td_coord_submit(struct td_coord *c, struct td_served *served,
                               struct td_request *request, bool raw_text, td_job_event_fn *on_event,
                               void *user, struct td_job **out, struct td_err *err)
{
    struct td_job *j;
    enum td_status s;

    if (served != c->served || !td_coord_ready(c))
        return td_err_set(err, TD_UNAVAILABLE, "the model is not ready: %s",
                          c->draining && c->state == TD_GROUP_READY
                              ? "the server is draining"
                              : td_group_state_name(c->state));
    if (c->n_open >= c->p.max_queue + c->plan->max_num_seqs)
        return td_err_set(err, TD_BUSY,
                          "%u requests are open: expected at most %u, try again later", c->n_open,
                          c->p.max_queue + c->plan->max_num_seqs);
    if (request->max_tokens == 0)
        request->max_tokens = UINT32_MAX;
    s = td_request_validate(request, served->spec->n_vocab, served->max_model_len, err);
    if (s)
        return s;
    j = calloc(1, sizeof *j);
    if (!j)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a request");
    j->c = c;
    request->id = ++c->next_id;
    s = td_ending_init(&j->ending, request, served->spec->eos_ids, served->spec->n_eos, served->tok,
                       err);
    s = s ? s : td_group_send_submit(c, request, err);
    if (s) {
        td_ending_deinit(&j->ending);
        free(j);
        return s;
    }
    j->request = *request;
    td_request_init(request);
    j->served = served;
    td_served_retain(served);
    j->raw_text = raw_text;
    j->on_event = on_event;
    j->user = user;
    j->accepted_ns = uv_hrtime();
    insert(c, j);
    c->n_requests++;
    *out = j;
    return TD_OK;
}

void td_job_cancel(struct td_job *j)
{
    struct td_coord *c = j->c;

    td_group_send_cancel(c, j->request.id);
    forget(j);
    c->n_finished++;
    free_job(j);
}

void td_job_pause(struct td_job *j, bool paused)
{
    if (paused == j->paused)
        return;
    j->paused = paused;
    if (paused)
        td_group_send_pause(j->c, j->request.id);
    else
        td_group_send_resume(j->c, j->request.id);
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
        td_ending_judge(&j->ending, event->token.id, j->n_output, &verdict, &j->text);

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

    if (!j || (event->has_token && event->index != j->n_output)) /* cancelled, or told before */
        return;
    td_bytes_clear(&j->text);
    if (event->is_prompt) {
        out.is_prompt = true;
        out.token = &event->token;
        out.text = TD_STR("");
        j->on_event(j, &out, j->user);
        return;
    }
    if (event->has_token) {
        out.has_token = true;
        out.token = &event->token;
        j->n_output++;
        c->generated_tokens++;
        if (!j->first_ns) {
            j->first_ns = uv_hrtime();
            j->n_cached = event->cached_tokens;
            c->prompt_tokens += j->request.n_prompt;
            c->cached_tokens += event->cached_tokens;
        }
        s = show(j, event);
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

void td_job_fail_all(struct td_coord *c, const struct td_err *err)
{
    while (c->first) {
        struct td_job_event event = {.finish = TD_FINISH_ERROR, .error = err, .text = TD_STR("")};

        end(c->first, &event);
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
