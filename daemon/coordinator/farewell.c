/* The end of a group, told by its ranks: those that still answer are told to die and send their records first; then the launcher
 * ends what is left, and one report is written. */
#include "daemon/coordinator/coord_impl.h"
#include "daemon/engine/wireflight.h"
#include "daemon/log.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A loop thread answers within a millisecond; one that does not is not waited for. */
static const uint64_t PATIENCE_NS = 250000000u;

static void stop_launch(struct group *g)
{
    if (g->launched && g->c->p.launcher.stop)
        g->c->p.launcher.stop(g->c->p.launcher.user, g->generation);
}

/* Of this generation, made when something is first known that a report should say. */
static struct td_flight *flight_of(struct group *g)
{
    struct td_farewell *f = &g->farewell;

    if (!f->flight && g->n_ranks)
        f->flight = td_flight_open(g->generation, g->n_ranks);
    return f->flight;
}

/* ---- the report ---- */

struct report {
    uv_work_t work;
    char folder[512];
    char name[64];
    struct td_bytes text;
    char verdict[700];
    uint32_t generation;
    char path[640];
    enum td_status status;
    struct td_err err;
};

static void save(uv_work_t *work)
{
    struct report *r = work->data;

    r->status = td_flight_save(r->folder, r->name, td_bytes_str(&r->text), r->path, sizeof r->path,
                               &r->err);
}

static void saved(uv_work_t *work, int status)
{
    struct report *r = work->data;

    if (status == 0 && r->status)
        td_log_warn("flight report not written error=\"%s\"", r->err.cause);
    if (status == 0 && !r->status)
        td_log_error("flight report generation=%u file=%s verdict=\"%s\"", r->generation, r->path,
                     r->verdict);
    td_bytes_deinit(&r->text);
    free(r);
}

static void write_report(struct group *g, const struct td_flight *f)
{
    struct report *r = calloc(1, sizeof *r);
    struct timespec now;
    struct tm utc;
    char when[40], stamp[32];

    if (!r)
        return;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(stamp, sizeof stamp, "%Y%m%dT%H%M%S", &utc);
    snprintf(r->name, sizeof r->name, "%s.%03ldZ-g%u", stamp, now.tv_nsec / 1000000, f->generation);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &utc);
    td_flight_verdict(f, r->verdict, sizeof r->verdict);
    for (char *p = r->verdict; *p; p++)
        *p = *p == '"' ? '\'' : *p;
    r->generation = f->generation;
    r->work.data = r;
    if (!g->c->p.state_dir) {
        td_log_error("group's end generation=%u verdict=\"%s\"", r->generation, r->verdict);
        free(r);
        return;
    }
    snprintf(r->folder, sizeof r->folder, "%s", g->c->p.state_dir);
    if (td_flight_write(f, when, &r->text) ||
        uv_queue_work(g->c->p.loop, &r->work, save, saved) != 0) {
        td_bytes_deinit(&r->text);
        free(r);
    }
}

/* When the ranks have spoken and the launcher has ended, which knows whether mpirun went first. */
static void finish_report(struct group *g)
{
    struct td_farewell *f = &g->farewell;

    if (f->is_open || !f->is_due)
        return;
    write_report(g, f->flight);
    td_flight_close(f->flight);
    f->flight = NULL;
    f->is_due = false;
}

static void finish_when_launch_ended(struct group *g)
{
    if (!g->c->p.launcher.start || !g->launched)
        finish_report(g);
}

/* ---- the ranks' last words ---- */

static void part(struct parting *p)
{
    struct td_grpc_stream *stream = p->stream;

    p->stream = NULL;
    if (stream)
        td_grpc_stream_finish(stream, TD_GRPC_UNAVAILABLE, TD_STR("the group was ended"));
}

/* All have spoken, or their time is up. */
static void end_words(struct group *g)
{
    struct td_farewell *f = &g->farewell;

    if (!f->is_open)
        return;
    f->is_open = false;
    for (uint32_t i = 0; i < f->n_partings; i++)
        part(&f->partings[i]);
    free(f->partings);
    f->partings = NULL;
    f->n_partings = 0;
    if (f->stop_due)
        stop_launch(g);
    f->stop_due = false;
    finish_when_launch_ended(g);
}

/* A rank that is silent, or has told all, is not waited for. */
static bool is_awaited(const struct group *g)
{
    const struct td_farewell *f = &g->farewell;

    for (uint32_t i = 0; i < f->n_partings; i++) {
        const struct td_flight_rank *r = &f->flight->ranks[f->partings[i].rank];

        if (f->partings[i].stream && r->end != TD_FLIGHT_SILENT && !r->has_record)
            return true;
    }
    return false;
}

static void end_words_when_told(struct group *g)
{
    if (g->farewell.is_open && !is_awaited(g))
        end_words(g);
}

static bool send_die(struct group *g, struct member *m, const char *reason)
{
    Tensord__Worker__V1__Shutdown shutdown = TENSORD__WORKER__V1__SHUTDOWN__INIT;
    td_wire_coordinator_message message = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__INIT;

    shutdown.reason = (char *)reason;
    shutdown.die = true;
    message.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_SHUTDOWN;
    message.shutdown = &shutdown;
    return td_group_send(g, m, &message, NULL) == TD_OK;
}

static void describe_member(const struct group *g, const struct member *m, struct td_flight_rank *r)
{
    snprintf(r->host, sizeof r->host, "%s", m->public.host);
    r->pid = m->public.pid;
    r->silence_ns = td_vigil_silence_ns(&g->vigil, &m->peer);
    if (!r->has_record)
        r->at = m->steps.at;
}

/* Its stream is no member's any more: what comes on it are last words. */
static void begin_parting(struct group *g, struct member *m, uint32_t rank)
{
    struct td_farewell *f = &g->farewell;

    td_grpc_stream_set_user(m->stream, NULL);
    f->partings[f->n_partings++] = (struct parting){m->stream, m->cookie, rank};
    m->stream = NULL;
}

void td_farewell_begin(struct group *g, const struct td_err *err)
{
    struct td_farewell *f = &g->farewell;
    struct td_flight *flight;

    end_words(g);
    finish_report(g); /* of a generation whose launcher has not told yet */
    flight = flight_of(g);
    f->partings = calloc(g->n_ranks ? g->n_ranks : 1, sizeof *f->partings);
    if (!flight || !f->partings) { /* then only the log tells */
        free(f->partings);
        f->partings = NULL;
        return;
    }
    flight->cause = *err;
    for (uint32_t i = 0; i < g->n_ranks; i++) {
        struct member *m = &g->members[i];

        describe_member(g, m, &flight->ranks[i]);
        if (!m->public.pid)
            td_flight_end_rank(flight, i, TD_FLIGHT_ABSENT);
        else if (m->stream && td_vigil_judge(&g->vigil, &m->peer) != TD_VIGIL_WELL)
            td_flight_end_rank(flight, i, TD_FLIGHT_SILENT);
        if (m->stream && send_die(g, m, err->cause))
            begin_parting(g, m, i);
    }
    f->is_open = f->is_due = true;
    f->until_ns = uv_hrtime() + PATIENCE_NS;
}

void td_farewell_stop(struct group *g)
{
    g->farewell.stop_due = true;
    if (g->farewell.is_open) {
        end_words_when_told(g);
        return;
    }
    g->farewell.stop_due = false;
    stop_launch(g);
}

void td_farewell_tick(struct group *g, uint64_t now)
{
    if (g->farewell.is_open && now >= g->farewell.until_ns)
        end_words(g);
}

void td_farewell_finish(struct group *g)
{
    end_words(g);
    finish_report(g);
    td_flight_close(g->farewell.flight);
    g->farewell.flight = NULL;
}

void td_farewell_launch_ended(struct group *g)
{
    finish_when_launch_ended(g);
}

void td_farewell_launcher_fell(struct group *g, const struct td_err *err)
{
    struct td_flight *flight = flight_of(g);

    if (flight)
        snprintf(flight->launcher, sizeof flight->launcher, "%.239s", err->cause);
}

/* ---- what is noticed of a rank ---- */

void td_farewell_blame(struct group *g, uint32_t rank)
{
    if (flight_of(g))
        td_flight_end_rank(g->farewell.flight, rank, TD_FLIGHT_BLAMED);
}

void td_farewell_vanished(struct group *g, uint32_t rank)
{
    struct td_flight *flight = flight_of(g);

    if (flight && flight->ranks[rank].end == TD_FLIGHT_TOLD && !flight->ranks[rank].has_record)
        td_flight_end_rank(flight, rank, TD_FLIGHT_VANISHED);
}

void td_farewell_failed(struct group *g, uint32_t rank, const Tensord__Worker__V1__Failed *m)
{
    struct td_flight *flight = flight_of(g);

    if (!flight)
        return;
    td_flight_end_rank(flight, rank, TD_FLIGHT_FAILED);
    snprintf(flight->ranks[rank].error, sizeof flight->ranks[rank].error, "%.*s",
             (int)(m->text.len < 230 ? m->text.len : 230), (const char *)m->text.data);
}

void td_farewell_record(struct group *g, uint32_t rank, const Tensord__Worker__V1__Flight *m)
{
    struct td_flight *flight = flight_of(g);
    struct td_recorder_step *steps = malloc(TD_RECORDER_STEPS * sizeof *steps);
    struct td_flight_rank *r;

    if (!flight || !steps) {
        free(steps);
        return;
    }
    r = &flight->ranks[rank];
    free(r->steps);
    r->steps = steps;
    r->n_steps = td_wireflight_steps_read(m, steps);
    td_wireflight_at_read(m->at, &r->at);
    r->record_ns = m->timestamp_ns;
    r->has_record = true;
}

static struct parting *parting_of(struct group *g, const struct td_grpc_stream *s)
{
    for (uint32_t i = 0; i < g->farewell.n_partings; i++)
        if (g->farewell.partings[i].stream == s)
            return &g->farewell.partings[i];
    return NULL;
}

bool td_farewell_message(struct group *g, const struct td_grpc_stream *s,
                         const td_wire_worker_message *message)
{
    struct parting *p = parting_of(g, s);

    if (!p)
        return false;
    if (message->cookie != p->cookie)
        return true;
    if (message->body_case == TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_FAILED)
        td_farewell_failed(g, p->rank, message->failed);
    if (message->body_case == TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_FLIGHT) {
        td_farewell_record(g, p->rank, message->flight);
        part(p);
        end_words_when_told(g);
    }
    return true;
}

void td_farewell_closed(struct group *g, const struct td_grpc_stream *s)
{
    struct parting *p = parting_of(g, s);

    if (!p)
        return;
    p->stream = NULL;
    td_farewell_vanished(g, p->rank);
    end_words_when_told(g);
}
