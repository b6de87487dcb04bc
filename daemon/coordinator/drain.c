/* No new requests, those that are open to their end: at an operator's word, who may take it back, or before the process stops. */
#include "daemon/coordinator/coord_impl.h"

static void tell(struct td_coord *c, enum td_status status, const struct td_err *err)
{
    struct drain d = c->drain;

    c->drain.n_waiters = 0; /* who is told may drain, stop or cancel */
    for (uint32_t i = 0; i < d.n_waiters; i++)
        d.waiter[i].done(status, err, c->n_finished - d.finished_before, d.n_cancelled,
                         d.waiter[i].user);
}

/* The last drain's limit is a promise to whoever waits for the process' end. */
static void set_limit(struct td_coord *c, uint64_t timeout_ns, bool is_last)
{
    struct drain *d = &c->drain;
    uint64_t now = uv_hrtime(), until = UINT64_MAX;

    if (timeout_ns && timeout_ns < UINT64_MAX - now)
        until = now + timeout_ns;
    if (d->is_last && !is_last && until >= d->until_ns)
        return;
    d->until_ns = until;
    d->limit_ns = timeout_ns;
}

static void begin(struct td_coord *c, uint64_t timeout_ns, bool is_last, td_coord_done_fn *done,
                  void *user)
{
    struct drain *d = &c->drain;
    struct td_err err;

    /* The last place is kept for the process itself. */
    if (done && !is_last && d->n_waiters == MAX_DRAIN_WAITERS - 1) {
        td_err_set(&err, TD_BUSY, "%d wait for the end of a drain: expected no more",
                   MAX_DRAIN_WAITERS - 1);
        done(TD_BUSY, &err, 0, 0, user);
        return;
    }
    if (!d->is_on || d->is_over)
        *d = (struct drain){.is_last = d->is_last, .finished_before = c->n_finished};
    d->is_on = true;
    set_limit(c, timeout_ns, is_last);
    d->is_last |= is_last;
    if (done && d->n_waiters < MAX_DRAIN_WAITERS) {
        d->waiter[d->n_waiters].done = done;
        d->waiter[d->n_waiters++].user = user;
    }
    td_coord_set_state(c->current, c->current->state); /* tells that it is not ready any more */
}

void td_coord_drain(struct td_coord *c, uint64_t timeout_ns, td_coord_done_fn *done, void *user)
{
    begin(c, timeout_ns, false, done, user);
}

void td_coord_drain_last(struct td_coord *c, uint64_t timeout_ns, td_coord_done_fn *done,
                         void *user)
{
    begin(c, timeout_ns, true, done, user);
}

enum td_status td_coord_drain_cancel(struct td_coord *c, struct td_err *err)
{
    struct td_err why;

    if (c->drain.is_last || c->stopping)
        return td_err_set(err, TD_UNAVAILABLE, "the server is stopping: that cannot be taken back");
    if (!c->drain.is_on)
        return TD_OK;
    td_err_set(&why, TD_CANCELLED, "the drain was taken back");
    c->drain.is_on = false;
    tell(c, TD_CANCELLED, &why);
    td_coord_set_state(c->current, c->current->state);
    return TD_OK;
}

void td_drain_tick(struct td_coord *c, uint64_t now_ns)
{
    struct drain *d = &c->drain;
    struct td_err err;

    if (!d->is_on || d->is_over)
        return;
    if (c->n_open && now_ns >= d->until_ns) {
        td_err_set(&err, TD_UNAVAILABLE,
                   "the server %s, and the request did not end within %.4g s%s",
                   d->is_last ? "is stopping" : "drains", (double)d->limit_ns * 1e-9,
                   d->is_last ? " (at most --drain-timeout)" : "");
        c->is_leaving |= d->is_last;
        d->n_cancelled += td_job_cancel_all(c, &err);
    }
    if (c->n_open > 0)
        return;
    d->is_over = true;
    tell(c, TD_OK, NULL);
}

void td_drain_forget(struct td_coord *c)
{
    if (c->drain.is_over && !c->drain.is_last)
        c->drain.is_on = false;
}

void td_drain_stop(struct td_coord *c)
{
    if (!c->drain.is_on || c->drain.is_over)
        return;
    c->drain.is_over = true;
    tell(c, TD_OK, NULL);
}
