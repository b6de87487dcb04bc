#include "daemon/journal/journal_impl.h"

#include "daemon/api/metrics.h"
#include "daemon/journal/journallock.h"
#include "daemon/log.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    DEFAULT_PENDING_BYTES = 64 << 20,
    DEFAULT_RETRY_MS = 3000,
    DEFAULT_PATIENCE_MS = 2000,
    PATIENCE_STEPS = 8, /* how often one looks meanwhile */
    BATCH_EVENTS = 256
};
static const uint64_t DEFAULT_MAX_BYTES = (uint64_t)1 << 30;

void td_journal_append_op(struct td_journal_ops *ops, struct td_journal_op *op)
{
    if (!ops->first)
        ops->end = &ops->first;
    op->next = NULL;
    *ops->end = op;
    ops->end = &op->next;
    ops->bytes += op->text.len;
}

static void free_op(struct td_journal_op *op)
{
    td_bytes_deinit(&op->text);
    td_bytes_deinit(&op->earlier);
    td_stored_deinit(&op->stored);
    free(op);
}

/* ---- metrics ---- */

static const struct {
    enum td_metrics_kind kind;
    const char *name, *help;
} METRICS[TD_JOURNAL_N_METRICS] = {
    {TD_METRICS_GAUGE, "tensord_journal_up", "1 when accepted requests are kept on disk"},
    {TD_METRICS_GAUGE, "tensord_journal_bytes", "Bytes in use in the journal's file"},
    {TD_METRICS_COUNTER, "tensord_journal_kept_total", "Requests that were kept on disk"},
    {TD_METRICS_COUNTER, "tensord_journal_not_kept_total",
     "Requests that were accepted while the journal was down or full"},
    {TD_METRICS_COUNTER, "tensord_journal_repeated_total",
     "Requests whose idempotency key was used before"},
    {TD_METRICS_COUNTER, "tensord_journal_lost_tokens_total",
     "Tokens that were not written: down, or too much was pending"},
    {TD_METRICS_COUNTER, "tensord_journal_commits_total", "Times that something was made durable"},
};

static void tell_metrics(struct td_journal *j)
{
    struct td_journal_state s, *told = &j->told;

    if (!j->metric[0])
        return;
    td_journal_state(j, &s);
    td_metrics_set(j->metric[0], s.is_up && !j->is_stuck);
    td_metrics_set(j->metric[1], (double)s.bytes);
    td_metrics_add(j->metric[2], (double)(s.n_kept - told->n_kept));
    td_metrics_add(j->metric[3], (double)(s.n_not_kept - told->n_not_kept));
    td_metrics_add(j->metric[4], (double)(s.n_repeated - told->n_repeated));
    td_metrics_add(j->metric[5], (double)(s.n_lost_tokens - told->n_lost_tokens));
    td_metrics_add(j->metric[6], (double)(s.n_commits - told->n_commits));
    *told = s;
}

enum td_status td_journal_metrics(struct td_journal *j, struct td_metrics *metrics,
                                  struct td_err *err)
{
    for (int i = 0; i < TD_JOURNAL_N_METRICS; i++) {
        const struct td_metrics_desc desc = {
            .kind = METRICS[i].kind, .name = METRICS[i].name, .help = METRICS[i].help};
        enum td_status st = td_metrics_register(metrics, &desc, &j->metric[i], err);

        if (st) {
            j->metric[0] = NULL;
            return st;
        }
    }
    tell_metrics(j);
    return TD_OK;
}

/* ---- life ---- */

/* Before the thread runs: where nothing can be written, the journal begins down. */
static enum td_status without_a_disk(struct td_journal *j, enum td_status st,
                                     const struct td_err *err)
{
    char text[600];

    j->state.is_up = j->db != NULL;
    if (st != TD_IO)
        return st;
    td_log_error("journal down, requests are accepted without it error=\"%s\"",
                 td_err_format(err, text, sizeof text));
    return TD_OK;
}

enum td_status td_journal_open(const struct td_journal_params *params, struct td_journal **out,
                               struct td_err *err)
{
    struct td_journal *j = calloc(1, sizeof *j);
    struct td_err local;
    enum td_status st;

    if (!j || !(j->path = strdup(params->path))) {
        free(j);
        return td_err_set(err, TD_NO_MEMORY, "no memory for a journal");
    }
    j->p = *params;
    j->p.path = j->path;
    j->p.max_bytes = params->max_bytes ? params->max_bytes : DEFAULT_MAX_BYTES;
    j->p.max_pending_bytes =
        params->max_pending_bytes ? params->max_pending_bytes : DEFAULT_PENDING_BYTES;
    j->p.retry_ms = params->retry_ms ? params->retry_ms : DEFAULT_RETRY_MS;
    j->p.patience_ms = params->patience_ms ? params->patience_ms : DEFAULT_PATIENCE_MS;
    j->lock_fd = -1;
    uv_mutex_init(&j->lock);
    uv_cond_init(&j->changed);
    st = without_a_disk(j, td_journal_open_db(j, &local), &local);
    if (st) {
        if (err)
            *err = local;
        td_journal_close(j);
        return st;
    }
    *out = j;
    return TD_OK;
}

enum td_status td_journal_restore(struct td_journal *j, bool ended, td_journal_visit_fn *visit,
                                  void *user, struct td_err *err)
{
    uint32_t n_damaged = 0;
    struct td_err damage, local;
    enum td_status st;

    if (!j->db)
        return TD_OK;
    st = td_journaldb_each(j->db, ended, td_journal_now_ms(), visit, user, &n_damaged, &damage);
    if (n_damaged)
        td_log_error("journal has damaged requests, which are left out path=\"%s\" n=%u", j->path,
                     n_damaged);
    if (st == TD_CORRUPT) /* found only now; what was visited is in use, and is not kept any more */
        st = without_a_disk(j, td_journal_begin_anew(j, &damage, &local), &local);
    else
        local = damage;
    if (st && err)
        *err = local;
    return st;
}

/* ---- who waits for an answer ---- */

static void wait_for(struct td_journal *j, struct td_journal_op *op)
{
    uint64_t every_ms = j->p.patience_ms / PATIENCE_STEPS + 1;

    op->begin_ns = uv_hrtime();
    op->older = j->newest;
    *(j->newest ? &j->newest->newer : &j->oldest) = op;
    j->newest = op;
    if (j->has_timer && !uv_is_active((uv_handle_t *)&j->timer))
        uv_timer_start(&j->timer, j->timer.timer_cb, every_ms, every_ms);
}

static void wait_no_more(struct td_journal *j, struct td_journal_op *op)
{
    *(op->older ? &op->older->newer : &j->oldest) = op->newer;
    *(op->newer ? &op->newer->older : &j->newest) = op->older;
    op->older = op->newer = NULL;
    if (!j->oldest && j->has_timer)
        uv_timer_stop(&j->timer);
}

/* Answers in the place of the thread, which has it still. */
static void give_up(struct td_journal *j, struct td_journal_op *op)
{
    const struct td_journal_answer answer = {.verdict = TD_JOURNAL_NOT_KEPT};
    struct td_stored nothing = {0};
    struct td_err err;

    wait_no_more(j, op);
    op->is_given_up = true;
    if (op->on_accept) {
        op->on_accept(&answer, op->user);
    } else {
        td_err_set(&err, TD_UNAVAILABLE, "the journal does not answer at present");
        op->on_find(TD_UNAVAILABLE, &nothing, &err, op->user);
    }
}

static void set_stuck(struct td_journal *j, bool is_stuck)
{
    if (j->is_stuck == is_stuck)
        return;
    j->is_stuck = is_stuck;
    if (is_stuck)
        td_log_error("journal stuck, its disk has not answered for %.4g s, requests are accepted "
                     "without it path=\"%s\"",
                     j->p.patience_ms * 1e-3, j->path);
    else
        td_log_warn("journal answers again path=\"%s\"", j->path);
    tell_metrics(j);
}

static void on_timer(uv_timer_t *timer)
{
    struct td_journal *j = timer->data;
    uint64_t limit = (uint64_t)j->p.patience_ms * 1000000u, now = uv_hrtime();

    while (j->oldest && now - j->oldest->begin_ns >= limit) {
        set_stuck(j, true);
        give_up(j, j->oldest);
    }
}

/* Calls back for everything that the thread is done with. */
static void deliver(struct td_journal *j)
{
    struct td_journal_op *op, *next;

    uv_mutex_lock(&j->lock);
    op = j->done.first;
    j->done = (struct td_journal_ops){0};
    uv_mutex_unlock(&j->lock);
    if (op)
        set_stuck(j, false);
    tell_metrics(j);
    for (; op; op = next) {
        next = op->next;
        if (op->is_given_up) { /* what was begun without it is not to go on after a restart */
            td_journal_drop(j, op->answer.number);
        } else {
            wait_no_more(j, op);
            if (op->on_accept)
                op->on_accept(&op->answer, op->user);
            else
                op->on_find(op->status, &op->stored, &op->err, op->user);
        }
        free_op(op);
    }
}

static void on_async(uv_async_t *async)
{
    deliver(async->data);
}

enum td_status td_journal_start(struct td_journal *j, struct td_err *err)
{
    if (uv_async_init(j->p.loop, &j->async, on_async))
        return td_err_set(err, TD_NO_MEMORY, "no memory for the journal's wake-up");
    j->async.data = j;
    j->has_async = true;
    uv_timer_init(j->p.loop, &j->timer);
    j->timer.data = j;
    j->timer.timer_cb = on_timer;
    j->has_timer = true;
    if (uv_thread_create(&j->thread, td_journal_main, j))
        return td_err_set(err, TD_NO_MEMORY, "the system gave no thread for the journal");
    j->has_thread = true;
    return TD_OK;
}

/* False: it hangs in the disk, and is left to the end of the process. */
static bool join(struct td_journal *j)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += j->p.patience_ms / 1000;
    until.tv_nsec += (long)(j->p.patience_ms % 1000) * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    return pthread_timedjoin_np(j->thread, NULL, &until) == 0;
}

void td_journal_stop(struct td_journal *j)
{
    if (!j)
        return;
    uv_mutex_lock(&j->lock);
    j->stopping = true;
    uv_cond_signal(&j->changed);
    uv_mutex_unlock(&j->lock);
    if (j->has_thread && !join(j)) {
        uv_mutex_lock(&j->lock);
        j->is_left = true;
        uv_mutex_unlock(&j->lock);
    }
    j->has_thread = false;
    if (j->is_left) {
        set_stuck(j, true);
        while (j->oldest)
            give_up(j, j->oldest);
    }
    if (!j->is_left)
        deliver(j);
    if (j->has_async)
        uv_close((uv_handle_t *)&j->async, NULL);
    if (j->has_timer)
        uv_close((uv_handle_t *)&j->timer, NULL);
    j->has_async = j->has_timer = false;
}

void td_journal_close(struct td_journal *j)
{
    if (!j || j->is_left)
        return;
    td_journaldb_close(j->db);
    td_journallock_close(j->lock_fd);
    td_eventlog_deinit(&j->events);
    td_eventlog_deinit(&j->work);
    td_eventlog_deinit(&j->late);
    td_bytes_deinit(&j->batch);
    uv_cond_destroy(&j->changed);
    uv_mutex_destroy(&j->lock);
    free(j->path);
    free(j);
}

/* ---- accepts and finds ---- */

static size_t pending(const struct td_journal *j)
{
    return j->todo.bytes + j->events.bytes.len;
}

/* Whether so many bytes more may wait for the thread. */
static bool takes(struct td_journal *j, size_t n_bytes)
{
    bool fits;

    uv_mutex_lock(&j->lock);
    fits = !j->stopping && !j->is_stuck && pending(j) + n_bytes <= j->p.max_pending_bytes;
    uv_mutex_unlock(&j->lock);
    return fits;
}

static void hand_over(struct td_journal *j, struct td_journal_op *op)
{
    wait_for(j, op);
    uv_mutex_lock(&j->lock);
    td_journal_append_op(&j->todo, op);
    uv_cond_signal(&j->changed);
    uv_mutex_unlock(&j->lock);
}

static struct td_journal_op *new_op(struct td_str id, struct td_str idempotency,
                                    struct td_str record)
{
    struct td_journal_op *op = calloc(1, sizeof *op);
    const char *at;

    if (!op || td_bytes_reserve(&op->text, id.len + idempotency.len + record.len + 1)) {
        free(op);
        return NULL;
    }
    at = op->text.data; /* there is room for all: it does not move */
    td_bytes_append_str(&op->text, id);
    td_bytes_append_str(&op->text, idempotency);
    td_bytes_append_str(&op->text, record);
    op->id = (struct td_str){at, id.len};
    op->idempotency = (struct td_str){at + id.len, idempotency.len};
    op->record = (struct td_str){at + id.len + idempotency.len, record.len};
    return op;
}

enum td_status td_journal_accept(struct td_journal *j, const struct td_record *record,
                                 td_journal_accept_fn *done, void *user, struct td_err *err)
{
    struct td_bytes bytes = {0};
    struct td_journal_op *op;
    enum td_status st = td_record_encode(record, &bytes, err);

    if (st)
        return st;
    if (!takes(j, bytes.len)) {
        uv_mutex_lock(&j->lock);
        j->state.n_not_kept++;
        uv_mutex_unlock(&j->lock);
        td_bytes_deinit(&bytes);
        return td_err_set(err, TD_UNAVAILABLE, "the journal takes nothing at present");
    }
    op = new_op(record->id, record->idempotency, td_bytes_str(&bytes));
    td_bytes_deinit(&bytes);
    if (!op)
        return td_err_set(err, TD_NO_MEMORY, "no memory to keep a request");
    op->owner = record->owner;
    memcpy(op->body_hash, record->body_hash, sizeof op->body_hash);
    op->n_parts = td_record_n_parts(record);
    op->on_accept = done;
    op->user = user;
    op->answer.verdict = TD_JOURNAL_NOT_KEPT;
    hand_over(j, op);
    return TD_OK;
}

enum td_status td_journal_find(struct td_journal *j, uint64_t owner, struct td_str id,
                               struct td_str idempotency, td_journal_find_fn *done, void *user,
                               struct td_err *err)
{
    struct td_journal_op *op;

    if (!takes(j, 0))
        return td_err_set(err, TD_UNAVAILABLE, "the journal cannot be read at present");
    op = new_op(id, idempotency, TD_STR(""));
    if (!op)
        return td_err_set(err, TD_NO_MEMORY, "no memory to look for a request");
    op->owner = owner;
    op->on_find = done;
    op->user = user;
    hand_over(j, op);
    return TD_OK;
}

/* ---- what became of them ---- */

/* After an event was added, or could not be; the lock is held and let go. */
static void added(struct td_journal *j, uint32_t n_before, uint32_t n_lost)
{
    j->state.n_lost_tokens += n_lost;
    if (n_before == 0 && j->events.n)
        j->first_event_ns = uv_hrtime();
    if (j->events.n != n_before && (n_before == 0 || j->events.n == BATCH_EVENTS))
        uv_cond_signal(&j->changed);
    uv_mutex_unlock(&j->lock);
}

void td_journal_token(struct td_journal *j, uint64_t number, uint32_t part,
                      const struct td_eventlog_token *token)
{
    uint32_t n;
    bool lost;

    if (!j || !number)
        return;
    uv_mutex_lock(&j->lock);
    n = j->events.n;
    lost = pending(j) > j->p.max_pending_bytes ||
           td_eventlog_token(&j->events, number, part, token) != TD_OK;
    added(j, n, lost);
}

/* Ends are as many as open requests, and so are bounded by them. */
void td_journal_end(struct td_journal *j, uint64_t number, uint32_t part,
                    const struct td_batch_end *end)
{
    uint32_t n;

    if (!j || !number)
        return;
    uv_mutex_lock(&j->lock);
    n = j->events.n;
    td_eventlog_end(&j->events, number, part, end);
    added(j, n, 0);
}

void td_journal_drop(struct td_journal *j, uint64_t number)
{
    uint32_t n;

    if (!j || !number)
        return;
    uv_mutex_lock(&j->lock);
    n = j->events.n;
    td_eventlog_drop(&j->events, number);
    added(j, n, 0);
}

void td_journal_state(struct td_journal *j, struct td_journal_state *state)
{
    uv_mutex_lock(&j->lock);
    *state = j->state;
    state->pending_bytes = pending(j);
    uv_mutex_unlock(&j->lock);
}
