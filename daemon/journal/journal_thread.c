#include "daemon/journal/journal_impl.h"

#include "daemon/journal/journallock.h"
#include "daemon/log.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

enum {
    BATCH_MS = 50,
    BATCH_EVENTS = 256,
    EXPIRE_MS = 1000,
    MAX_LATE_BYTES = 8 << 20,
    KEPT_BYTES = 64 << 10
};

int64_t td_journal_now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---- up and down ---- */

static enum td_status open_file(struct td_journal *j, bool was_ours, struct td_err *err)
{
    const struct td_journaldb_params p = {.path = j->path, .was_ours = was_ours};
    uint64_t next = 0;
    enum td_status st = td_journaldb_open(&p, &j->db, err);

    st = st ? st : td_journaldb_next(j->db, &next, err);
    if (st) {
        td_journaldb_close(j->db);
        j->db = NULL;
        return st;
    }
    if (next > j->next_number)
        j->next_number = next;
    td_journallock_mark(j->lock_fd);
    return TD_OK;
}

enum td_status td_journal_begin_anew(struct td_journal *j, const struct td_err *damage,
                                     struct td_err *err)
{
    char aside[4200], text[600];
    enum td_status st;

    td_journaldb_close(j->db);
    j->db = NULL;
    st = td_journaldb_set_aside(j->path, aside, sizeof aside, err);
    if (st)
        return st;
    td_log_error("journal damaged and moved aside, what it held is lost to this server to=\"%s\" "
                 "error=\"%s\"",
                 aside, td_err_format(damage, text, sizeof text));
    return open_file(j, true, err);
}

enum td_status td_journal_open_db(struct td_journal *j, struct td_err *err)
{
    struct td_err damage;
    bool was_ours = true;
    enum td_status st;

    if (j->lock_fd < 0) {
        st = td_journallock_open(j->path, &j->lock_fd, &was_ours, err);
        if (st)
            return st;
    }
    st = open_file(j, was_ours, &damage);
    if (st == TD_CORRUPT)
        return td_journal_begin_anew(j, &damage, err);
    if (st && err)
        *err = damage;
    return st;
}

/* The lock is held. Who was left alone has no loop any more. */
static void wake_loop(struct td_journal *j)
{
    if (!j->is_left)
        uv_async_send(&j->async);
}

static void set_up(struct td_journal *j, bool is_up)
{
    uv_mutex_lock(&j->lock);
    j->state.is_up = is_up;
    wake_loop(j);
    uv_mutex_unlock(&j->lock);
}

static void go_down(struct td_journal *j, const struct td_err *err)
{
    char text[600];

    td_log_error("journal down, requests are accepted without it error=\"%s\"",
                 td_err_format(err, text, sizeof text));
    td_journaldb_close(j->db);
    j->db = NULL;
    j->retry_at_ns = uv_hrtime() + (uint64_t)j->p.retry_ms * 1000000u;
    set_up(j, false);
}

/* Ends that came meanwhile; requests that came meanwhile are not in it. */
static enum td_status write_events(struct td_journal *j, const struct td_eventlog *events,
                                   struct td_err *err);

static void try_to_come_back(struct td_journal *j)
{
    struct td_err err;
    enum td_status st = td_journal_open_db(j, &err);

    st = st ? st : td_journaldb_probe(j->db, &err);
    st = st ? st : td_journaldb_begin(j->db, &err);
    st = st ? st : write_events(j, &j->late, &err);
    st = st ? st : td_journaldb_commit(j->db, &err);
    st = st ? st : td_journaldb_checkpoint(j->db, true, &err);
    if (st) {
        td_journaldb_close(j->db);
        j->db = NULL;
        j->retry_at_ns = uv_hrtime() + (uint64_t)j->p.retry_ms * 1000000u;
        return;
    }
    td_eventlog_clear(&j->late);
    td_log_warn("journal is back, requests accepted while it was down are not in it path=\"%s\"",
                j->path);
    set_up(j, true);
}

/* ---- writing ---- */

static enum td_status write_event(uint64_t number, const struct td_batch *batch, void *user,
                                  struct td_err *err)
{
    struct td_journal *j = user;
    enum td_status st;

    if (!batch)
        return td_journaldb_drop(j->db, number, err);
    st = td_batch_encode(batch, &j->batch, err);
    if (st == TD_INVALID || st == TD_TOO_LARGE) /* a gap */
        return TD_OK;
    st = st ? st : td_journaldb_append(j->db, number, td_bytes_str(&j->batch), err);
    if (!st && batch->has_end)
        st = td_journaldb_end_part(j->db, number, td_journal_now_ms() + (int64_t)j->p.retention_ms,
                                   err);
    return st;
}

static enum td_status write_events(struct td_journal *j, const struct td_eventlog *events,
                                   struct td_err *err)
{
    return td_eventlog_each(events, write_event, j, err);
}

/* Ended requests make way, the oldest first; `is_full` when that does not help. */
static enum td_status make_room(struct td_journal *j, struct td_err *err)
{
    uint64_t bytes = 0;
    uint32_t n = 1;
    enum td_status st = td_journaldb_bytes(j->db, &bytes, err);

    while (!st && bytes > j->p.max_bytes && n) {
        st = td_journaldb_expire(j->db, INT64_MAX, &n, err);
        st = st ? st : td_journaldb_bytes(j->db, &bytes, err);
    }
    if (!st && (bytes > j->p.max_bytes) != j->is_full) {
        j->is_full = !j->is_full;
        if (j->is_full)
            td_log_error("journal full of open requests, more are accepted without it path=\"%s\" "
                         "bytes=%llu limit=%llu",
                         j->path, (unsigned long long)bytes, (unsigned long long)j->p.max_bytes);
        else
            td_log_warn("journal has room again path=\"%s\"", j->path);
    }
    uv_mutex_lock(&j->lock);
    j->state.bytes = bytes;
    uv_mutex_unlock(&j->lock);
    return st;
}

static enum td_status write_accept(struct td_journal *j, struct td_journal_op *op,
                                   struct td_err *err)
{
    const struct td_journaldb_accept a = {.number = j->next_number,
                                          .id = op->id,
                                          .idempotency = op->idempotency,
                                          .owner = op->owner,
                                          .body_hash = op->body_hash,
                                          .n_parts = op->n_parts,
                                          .record = op->record,
                                          .now_ms = td_journal_now_ms()};
    enum td_journaldb_verdict verdict;
    enum td_status st = td_journaldb_accept(j->db, &a, &verdict, &op->earlier, err);
    char text[600];

    if (st == TD_INVALID) {
        td_log_warn("request not kept error=\"%s\"", td_err_format(err, text, sizeof text));
        return TD_OK;
    }
    if (st)
        return st;
    op->answer.verdict = verdict == TD_JOURNALDB_KEPT       ? TD_JOURNAL_KEPT
                         : verdict == TD_JOURNALDB_REPEATED ? TD_JOURNAL_REPEATED
                                                            : TD_JOURNAL_CONFLICT;
    if (verdict == TD_JOURNALDB_KEPT)
        op->answer.number = j->next_number++;
    else
        op->answer.id = td_bytes_str(&op->earlier);
    return TD_OK;
}

static enum td_status write_all(struct td_journal *j, struct td_journal_op *ops, struct td_err *err)
{
    enum td_status st = td_journaldb_begin(j->db, err);

    for (struct td_journal_op *op = ops; !st && op; op = op->next)
        if (op->on_accept && !j->is_full)
            st = write_accept(j, op, err);
    st = st ? st : write_events(j, &j->work, err);
    st = st ? st : td_journaldb_commit(j->db, err);
    if (st) {
        td_journaldb_rollback(j->db);
        for (struct td_journal_op *op = ops; op; op = op->next)
            op->answer = (struct td_journal_answer){.verdict = TD_JOURNAL_NOT_KEPT};
        return st;
    }
    uv_mutex_lock(&j->lock);
    j->state.n_commits++;
    uv_mutex_unlock(&j->lock);
    return TD_OK;
}

static bool has_accept(const struct td_journal_op *ops)
{
    for (; ops; ops = ops->next)
        if (ops->on_accept)
            return true;
    return false;
}

/* Everything at hand in one commit. A damaged file makes way for a new one, once. */
static void write_work(struct td_journal *j, struct td_journal_op *ops)
{
    struct td_err err, damage;
    enum td_status st;

    if (!j->db || (!j->work.n && !has_accept(ops)))
        return;
    st = write_all(j, ops, &err);
    if (st == TD_CORRUPT) {
        damage = err;
        st = td_journal_begin_anew(j, &damage, &err);
        st = st ? st : write_all(j, ops, &err);
    }
    st = st ? st : make_room(j, &err);
    st = st ? st : td_journaldb_checkpoint(j->db, false, &err);
    if (st)
        go_down(j, &err);
}

static void find(struct td_journal *j, struct td_journal_op *op)
{
    if (j->db)
        op->status = td_journaldb_find(j->db, op->owner, op->id, op->idempotency,
                                       td_journal_now_ms(), &op->stored, &op->err);
    else
        op->status = td_err_set(&op->err, TD_UNAVAILABLE, "the journal cannot be read at present");
}

static void count(struct td_journal_state *s, const struct td_journal_op *op)
{
    if (!op->on_accept)
        return;
    s->n_kept += op->answer.verdict == TD_JOURNAL_KEPT;
    s->n_not_kept += op->answer.verdict == TD_JOURNAL_NOT_KEPT;
    s->n_repeated +=
        op->answer.verdict == TD_JOURNAL_REPEATED || op->answer.verdict == TD_JOURNAL_CONFLICT;
}

static void hand_back(struct td_journal *j, struct td_journal_op *ops)
{
    struct td_journal_op *next;

    for (struct td_journal_op *op = ops; op; op = op->next)
        if (op->on_find)
            find(j, op);
    uv_mutex_lock(&j->lock);
    for (struct td_journal_op *op = ops; op; op = next) {
        next = op->next;
        count(&j->state, op);
        td_journal_append_op(&j->done, op);
    }
    if (ops)
        wake_loop(j);
    uv_mutex_unlock(&j->lock);
}

/* Tokens are computed again; ends are not told twice. */
static void keep_ends(struct td_journal *j)
{
    uint32_t n_before = j->late.n;

    td_eventlog_keep_ends(&j->work, &j->late, MAX_LATE_BYTES);
    uv_mutex_lock(&j->lock);
    j->state.n_lost_tokens += j->work.n - (j->late.n - n_before);
    uv_mutex_unlock(&j->lock);
}

static void expire(struct td_journal *j)
{
    struct td_err err;
    uint32_t n = 0;
    enum td_status st = td_journaldb_expire(j->db, td_journal_now_ms(), &n, &err);

    uv_mutex_lock(&j->lock);
    j->state.n_expired += n;
    uv_mutex_unlock(&j->lock);
    if (!st && n)
        st = make_room(j, &err);
    st = st ? st : td_journaldb_checkpoint(j->db, false, &err);
    if (st)
        go_down(j, &err);
}

static void keep_house(struct td_journal *j)
{
    uint64_t now = uv_hrtime();

    if (!j->db && now >= j->retry_at_ns) {
        try_to_come_back(j);
    } else if (j->db && now >= j->expire_at_ns) {
        j->expire_at_ns = now + (uint64_t)EXPIRE_MS * 1000000u;
        expire(j);
    }
}

/* ---- the thread ---- */

static bool is_due(const struct td_journal *j, uint64_t now_ns)
{
    return j->stopping || j->todo.first || j->events.n >= BATCH_EVENTS ||
           (j->events.n && now_ns >= j->first_event_ns + (uint64_t)BATCH_MS * 1000000u);
}

/* Waits for work, or for the time to look after the file. Returns whether it shall end when this is done. */
static bool take_work(struct td_journal *j, struct td_journal_op **ops)
{
    uint64_t begin = uv_hrtime(), now = begin, until = begin + (uint64_t)EXPIRE_MS * 1000000u;
    struct td_eventlog empty;
    bool stopping;

    uv_mutex_lock(&j->lock);
    for (; !is_due(j, now) && now < until; now = uv_hrtime()) {
        uint64_t end = until;

        if (j->events.n && j->first_event_ns + (uint64_t)BATCH_MS * 1000000u < end)
            end = j->first_event_ns + (uint64_t)BATCH_MS * 1000000u;
        if (end > now)
            uv_cond_timedwait(&j->changed, &j->lock, end - now);
    }
    if (j->work.bytes.cap > KEPT_BYTES)
        td_eventlog_deinit(&j->work);
    td_eventlog_clear(&j->work);
    empty = j->work;
    if (is_due(j, now)) {
        j->work = j->events;
        j->events = empty;
    }
    *ops = j->todo.first;
    j->todo = (struct td_journal_ops){0};
    stopping = j->stopping;
    uv_mutex_unlock(&j->lock);
    return stopping;
}

void td_journal_main(void *journal)
{
    struct td_journal *j = journal;
    struct td_journal_op *ops;
    struct td_err err;
    bool stopping;

    pthread_setname_np(pthread_self(), "journal");
    do {
        stopping = take_work(j, &ops);
        write_work(j, ops);
        if (!j->db && j->work.n)
            keep_ends(j);
        hand_back(j, ops);
        keep_house(j);
    } while (!stopping);
    if (j->db)
        td_journaldb_checkpoint(j->db, true, &err);
}
