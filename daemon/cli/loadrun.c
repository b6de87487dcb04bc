#include "daemon/cli/loadrun.h"

#include "daemon/cli/loadtrace.h"
#include "kernels/base/clock.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum {
    TICK_MS = 100,
    STARTS_AT_ONCE = 16, /* then answers are looked at again, whose times must not wait */
    PREPARED_BYTES = 64 << 20
};

struct run {
    const struct td_loadrun_params *p;
    struct td_loadrun *out;
    size_t cap_records;
    uv_poll_t clock; /* over timer_fd: the loop's own timers have a grain of a millisecond */
    uv_timer_t tick;
    uv_signal_t signals[2];
    int timer_fd;
    int n_handles;        /* that are open */
    uint64_t next_due_ns; /* open loop: of the request that is sent next */
    uint64_t n_done, n_failed;
    uint32_t n_paused;       /* closed loop: places that wait after a failure */
    struct td_bytes *bodies; /* [n_bodies] of the first requests, made before the start */
    size_t n_bodies;
    struct td_bytes prompt, body; /* of one that is made when it is sent */
    enum td_status failed;
};

static uint64_t to_ns(double seconds)
{
    return seconds >= 1e9 ? (uint64_t)1e18 : (uint64_t)llround(seconds * 1e9);
}

/* ---- what to send ---- */

static enum td_status make_body(struct run *r, uint64_t index, struct td_bytes *out)
{
    struct td_load_request request;
    enum td_status s;

    td_bytes_clear(&r->prompt);
    td_load_request(r->p->load, index, &request);
    s = td_load_prompt(r->p->load, r->p->run, index, &r->prompt);
    return s ? s : td_loadbody_write(r->p->body, td_bytes_str(&r->prompt), request.n_output, out);
}

/* Bodies that are ready need no time between a request's due time and its sending. */
static enum td_status prepare(struct run *r)
{
    size_t bytes = 0, n = r->p->n_requests;
    enum td_status s = TD_OK;

    if (n == 0)
        return TD_OK;
    r->bodies = calloc(n, sizeof *r->bodies);
    if (!r->bodies)
        return TD_NO_MEMORY;
    for (size_t i = 0; !s && i < n && bytes < PREPARED_BYTES; i++) {
        s = make_body(r, i, &r->bodies[i]);
        bytes += r->bodies[i].cap;
        r->n_bodies++;
    }
    return s;
}

static enum td_status take_body(struct run *r, uint64_t index, struct td_str *out)
{
    enum td_status s = TD_OK;

    if (index < r->n_bodies) {
        *out = td_bytes_str(&r->bodies[index]);
        return TD_OK;
    }
    td_bytes_clear(&r->body);
    s = make_body(r, index, &r->body);
    *out = td_bytes_str(&r->body);
    return s;
}

/* ---- when to send ---- */

/* Whether there will be another request at all. */
static bool has_more(const struct run *r)
{
    uint64_t due = r->p->kind == TD_LOADRUN_CLOSED ? td_clock_now_ns() : r->next_due_ns;

    if (r->out->interrupted || r->failed)
        return false;
    if (r->p->n_requests && r->out->n_records >= r->p->n_requests)
        return false;
    return r->p->duration_s <= 0.0 || due < r->out->start_ns + to_ns(r->p->duration_s);
}

static bool is_due(const struct run *r)
{
    size_t places = td_loadclient_under_way(r->p->client) + r->n_paused;

    if (!has_more(r))
        return false;
    return r->p->kind == TD_LOADRUN_CLOSED ? places < r->p->concurrency
                                           : r->next_due_ns <= td_clock_now_ns();
}

/* When request `index` of an open loop is due, given that of the one before it. */
static uint64_t due_after(const struct run *r, uint64_t index, uint64_t before_ns)
{
    const struct td_loadrun_params *p = r->p;

    if (p->kind == TD_LOADRUN_TRACE)
        return r->out->start_ns + to_ns(p->load->trace->rows[index % p->load->trace->n_rows].at_s);
    return isinf(p->rate) ? before_ns : before_ns + to_ns(td_load_gap(p->load, index) / p->rate);
}

static void check_end(struct run *r)
{
    if (r->failed ||
        (td_loadclient_under_way(r->p->client) == 0 && r->n_paused == 0 && !has_more(r)))
        uv_stop(r->p->loop);
}

static void give_up(struct run *r, enum td_status s)
{
    r->failed = s;
    uv_stop(r->p->loop);
}

static void on_done(void *user, struct td_loadrecord *record);

static struct td_loadrecord *add_record(struct run *r)
{
    struct td_loadrun *out = r->out;
    struct td_loadrecord **wider, *record;

    if (out->n_records == r->cap_records) {
        r->cap_records = r->cap_records ? 2 * r->cap_records : 256;
        wider = realloc(out->records, r->cap_records * sizeof *wider);
        if (!wider)
            return NULL;
        out->records = wider;
    }
    record = calloc(1, sizeof *record);
    if (record)
        out->records[out->n_records++] = record;
    return record;
}

static void start_one(struct run *r, uint64_t due_ns)
{
    uint64_t index = r->out->n_records;
    struct td_loadrecord *record = add_record(r);
    struct td_load_request request;
    struct td_str body;
    enum td_status s = record ? TD_OK : TD_NO_MEMORY;
    size_t under_way;

    if (!s) {
        td_load_request(r->p->load, index, &request);
        *record = (struct td_loadrecord){.index = index,
                                         .due_ns = due_ns,
                                         .n_words = request.n_input,
                                         .n_asked = request.n_output};
        s = take_body(r, index, &body);
    }
    s = s ? s : td_loadclient_start(r->p->client, body, record, on_done, r);
    if (s) {
        give_up(r, s);
        return;
    }
    under_way = td_loadclient_under_way(r->p->client);
    if (under_way > r->out->most_under_way)
        r->out->most_under_way = (uint32_t)under_way;
    if (r->p->kind != TD_LOADRUN_CLOSED)
        r->next_due_ns = due_after(r, index + 1, r->next_due_ns);
}

/* The clock rings at `at_ns`, at once when that is past. */
static void set_clock(struct run *r, uint64_t at_ns)
{
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(at_ns / 1000000000u),
                                           .tv_nsec = (long)(at_ns % 1000000000u)}};

    timerfd_settime(r->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static void on_clock(uv_poll_t *handle, int status, int events)
{
    struct run *r = handle->data;
    uint64_t rings;

    (void)status;
    (void)events;
    if (read(r->timer_fd, &rings, sizeof rings) < 0 && errno != EAGAIN)
        give_up(r, TD_IO);
    for (int i = 0; i < STARTS_AT_ONCE && is_due(r); i++)
        start_one(r, r->p->kind == TD_LOADRUN_CLOSED ? td_clock_now_ns() : r->next_due_ns);
    if (r->p->kind != TD_LOADRUN_CLOSED ? has_more(r) : is_due(r))
        set_clock(r, r->p->kind == TD_LOADRUN_CLOSED ? td_clock_now_ns() : r->next_due_ns);
    check_end(r);
}

static void on_done(void *user, struct td_loadrecord *record)
{
    struct run *r = user;
    bool ok = record->end == TD_LOADRECORD_OK;

    r->n_done++;
    r->n_failed += !ok;
    if (r->p->kind == TD_LOADRUN_CLOSED && has_more(r)) {
        if (ok)
            start_one(r, record->end_ns);
        else
            r->n_paused++;
    }
    check_end(r);
}

/* ---- beside it ---- */

static void show(struct run *r)
{
    const struct td_loadrun_params *p = r->p;
    double elapsed = (double)(td_clock_now_ns() - r->out->start_ns) * 1e-9;
    char label[160];

    if (!p->term || !p->term->is_tty)
        return;
    snprintf(label, sizeof label, "%s: %zu under way, %llu failed", p->label,
             td_loadclient_under_way(p->client), (unsigned long long)r->n_failed);
    if (p->duration_s <= 0.0)
        td_term_progress(p->term, label, r->n_done, p->n_requests, "requests");
    else /* of unknown length once the last request was sent */
        td_term_progress(p->term, label, (uint64_t)elapsed,
                         elapsed < p->duration_s ? (uint64_t)ceil(p->duration_s) : 0, "s");
}

static void on_tick(uv_timer_t *handle)
{
    struct run *r = handle->data;
    uint64_t now = td_clock_now_ns(), patience = to_ns(r->p->timeout_s);

    td_loadclient_tick(r->p->client, now > patience ? now - patience : 0);
    if (r->n_paused) {
        r->n_paused = 0;
        set_clock(r, now);
    }
    show(r);
    check_end(r);
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct run *r = handle->data;

    (void)number;
    r->out->interrupted = true;
    r->n_paused = 0;
    td_loadclient_cancel(r->p->client);
    check_end(r);
}

/* ---- from start to end ---- */

static void on_closed(uv_handle_t *handle)
{
    struct run *r = handle->data;

    r->n_handles--;
}

static void close_handle(struct run *r, uv_handle_t *handle)
{
    handle->data = r;
    uv_close(handle, on_closed);
}

static int open_handles(struct run *r)
{
    static const int numbers[2] = {SIGINT, SIGTERM};
    uv_loop_t *loop = r->p->loop;
    int code = uv_poll_init(loop, &r->clock, r->timer_fd);

    if (code)
        return code;
    r->n_handles = 4; /* the others' initialisation cannot fail on Linux */
    r->clock.data = r->tick.data = r;
    uv_timer_init(loop, &r->tick);
    for (int i = 0; i < 2; i++) {
        uv_signal_init(loop, &r->signals[i]);
        r->signals[i].data = r;
    }
    code = uv_poll_start(&r->clock, UV_READABLE, on_clock);
    code = code ? code : uv_timer_start(&r->tick, on_tick, TICK_MS, TICK_MS);
    for (int i = 0; i < 2 && !code; i++)
        code = uv_signal_start(&r->signals[i], on_signal, numbers[i]);
    return code;
}

static void close_handles(struct run *r)
{
    if (r->n_handles == 0)
        return;
    close_handle(r, (uv_handle_t *)&r->clock);
    close_handle(r, (uv_handle_t *)&r->tick);
    close_handle(r, (uv_handle_t *)&r->signals[0]);
    close_handle(r, (uv_handle_t *)&r->signals[1]);
    while (r->n_handles > 0)
        uv_run(r->p->loop, UV_RUN_NOWAIT);
}

static enum td_status offer(struct run *r, struct td_err *err)
{
    uint64_t idle_ns;
    double wall_ns;
    int code = open_handles(r);

    if (code)
        return td_err_set(err, TD_IO, "no timer for the load: %s", uv_strerror(code));
    idle_ns = uv_metrics_idle_time(r->p->loop);
    r->out->start_ns = r->next_due_ns = td_clock_now_ns();
    set_clock(r, r->out->start_ns);
    uv_run(r->p->loop, UV_RUN_DEFAULT);
    r->out->end_ns = td_clock_now_ns();
    wall_ns = (double)(r->out->end_ns - r->out->start_ns);
    r->out->busy = fmax(0.0, 1.0 - (double)(uv_metrics_idle_time(r->p->loop) - idle_ns) / wall_ns);
    return r->failed ? td_err_set(err, r->failed, "the load cannot go on: %s",
                                  r->failed == TD_IO ? "no timer" : "no memory")
                     : TD_OK;
}

enum td_status td_loadrun_go(const struct td_loadrun_params *params, struct td_loadrun *out,
                             struct td_err *err)
{
    struct td_loadrun result = {0};
    struct run r = {.p = params, .out = &result};
    enum td_status s;

    r.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (r.timer_fd < 0)
        return td_err_set(err, TD_IO, "no timer for the load: %s", strerror(errno));
    s = prepare(&r);
    s = s ? td_err_set(err, s, "no memory for the requests") : offer(&r, err);
    if (s)
        td_loadclient_cancel(params->client);
    close_handles(&r);
    close(r.timer_fd);
    show(&r); /* the final one, of a run that came to its end */
    if (params->term)
        td_term_end(params->term);
    for (size_t i = 0; i < r.n_bodies; i++)
        td_bytes_deinit(&r.bodies[i]);
    free(r.bodies);
    td_bytes_deinit(&r.prompt);
    td_bytes_deinit(&r.body);
    if (s)
        td_loadrun_deinit(&result);
    else
        *out = result;
    return s;
}

void td_loadrun_deinit(struct td_loadrun *r)
{
    for (size_t i = 0; i < r->n_records; i++) {
        td_loadrecord_deinit(r->records[i]);
        free(r->records[i]);
    }
    free(r->records);
    *r = (struct td_loadrun){0};
}
