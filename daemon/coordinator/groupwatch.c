/* Watching over the group: pings that renew the ranks' leases, silence, steps that do not end, ranks that ran different steps. */
#include "daemon/coordinator/coord_impl.h"
#include "daemon/engine/wireflight.h"
#include "daemon/log.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Twice the time after which a rank counts as lost: a coordinator that was stopped or starved for that long and no longer finds
 * its ranks alive. */
static uint64_t lease_ns(const struct group *g)
{
    return 2 * g->c->p.dead_ns;
}

/* Renews every rank's lease. */
static void ping_all(struct group *g, uint64_t now)
{
    Tensord__Worker__V1__Ping ping = TENSORD__WORKER__V1__PING__INIT;

    ping.timestamp_ns = now;
    ping.lease_ns = lease_ns(g);
    for (uint32_t i = 0; i < g->n_ranks; i++) {
        td_wire_coordinator_message m = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__INIT;

        m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_PING;
        m.ping = &ping;
        if (g->members[i].stream) /* one that cannot be told is lost, and noticed as such */
            (void)td_group_send(g, &g->members[i], &m, NULL);
    }
    g->last_ping_ns = now;
}

/* Processes of this host are seen to be gone before a relaunch. A silent rank on another host may still hold its device's memory: it
 * gets the time that its lease needs to run out, with a beat on the way and two looks. */
static void raise_fence(struct group *g, const struct member *silent)
{
    uint64_t left_ns = lease_ns(g) + 3 * TD_VIGIL_BEAT_MS * 1000000u;
    uint64_t silence_ns = td_vigil_silence_ns(&g->vigil, &silent->peer);
    char host[sizeof silent->public.host] = "";

    gethostname(host, sizeof host - 1);
    if (strcmp(host, silent->public.host) != 0)
        g->c->fence_ns = uv_hrtime() + (left_ns > silence_ns ? left_ns - silence_ns : 0);
}

/* Suspicion turns readiness red at once; silence beyond the limit is the group's end. */
static void watch_silence(struct group *g)
{
    bool suspects = false;
    struct td_err err;

    for (uint32_t i = 0; i < g->n_ranks; i++) {
        const struct member *m = &g->members[i];
        enum td_vigil_verdict verdict = td_vigil_judge(&g->vigil, &m->peer);
        uint64_t silence_ms = td_vigil_silence_ns(&g->vigil, &m->peer) / 1000000u;

        if (!m->stream || verdict == TD_VIGIL_WELL)
            continue;
        if (verdict == TD_VIGIL_DEAD) {
            td_err_set(&err, TD_PEER_LOST, "rank %u on %s has been silent for %llu ms", i,
                       m->public.host, (unsigned long long)silence_ms);
            raise_fence(g, m);
            td_group_blame(m, true);
            td_group_lose(g, &err);
            return;
        }
        if (!g->suspects && !suspects)
            td_log_warn("rank suspected rank=%u host=%s silent_ms=%llu", i, m->public.host,
                        (unsigned long long)silence_ms);
        suspects = true;
    }
    if (g->suspects && !suspects)
        td_log_info("all ranks are heard of again");
    g->suspects = suspects;
    td_coord_set_state(g, g->state);
}

void td_group_watch(struct group *g, uint64_t now)
{
    td_vigil_look(&g->vigil, now);
    td_farewell_tick(g, now);
    if (now - g->last_ping_ns >= TD_VIGIL_BEAT_MS * 1000000u)
        ping_all(g, now);
    watch_silence(g);
}

/* ---- steps ---- */

/* What the ranks told, and room for who is blamed. */
struct rollcall {
    const struct td_stepwatch *ranks[TD_PLAN_MAX_RANKS];
    bool blamed[TD_PLAN_MAX_RANKS];
};

static void name_blamed(const struct group *g, const struct rollcall *roll, char *out, size_t bytes)
{
    size_t n = 0;
    uint32_t n_named = 0;

    out[0] = '\0';
    for (uint32_t r = 0; r < g->n_ranks; r++) {
        int more;

        if (!roll->blamed[r])
            continue;
        more = snprintf(out + n, bytes - n, "%srank %u on %.40s", n_named++ ? ", " : "", r,
                        g->members[r].public.host);
        if (more < 0 || (size_t)more >= bytes - n)
            return;
        n += (size_t)more;
    }
}

static void blame(struct group *g, const struct rollcall *roll)
{
    for (uint32_t r = 0; r < g->n_ranks; r++)
        if (roll->blamed[r])
            td_farewell_blame(g, r);
}

static bool is_late(struct group *g, struct rollcall *roll, struct td_err *err)
{
    const struct td_whereabouts *lead = &g->members[0].steps.at;
    char names[160], at[160];
    uint32_t first = 0;

    if (!td_stepwatch_is_late(&g->members[0].steps))
        return false;
    td_stepwatch_blame(roll->ranks, g->n_ranks, g->plan && g->plan->pp == 1, roll->blamed);
    while (!roll->blamed[first])
        first++;
    name_blamed(g, roll, names, sizeof names);
    td_err_set(err, TD_PEER_TIMED_OUT, "step %llu did not end within %.3g s: %s stand%s still, %s",
               (unsigned long long)lead->number, (double)lead->limit_ns * 1e-9, names,
               strchr(names, ',') ? "" : "s",
               td_whereabouts_describe(&g->members[first].steps.at, at, sizeof at));
    return true;
}

static bool is_astray(struct group *g, uint32_t rank, struct rollcall *roll, struct td_err *err)
{
    char names[200];
    uint64_t number;

    if (!td_stepwatch_differ(roll->ranks, g->n_ranks, rank, &number, roll->blamed))
        return false;
    name_blamed(g, roll, names, sizeof names);
    td_err_set(err, TD_PEER_MISMATCH,
               "ranks ran different steps up to step %llu: rank %u has hash %016llx, rank 0 "
               "%016llx; against most: %s",
               (unsigned long long)number, rank,
               (unsigned long long)*td_stepwatch_hash(roll->ranks[rank], number),
               (unsigned long long)*td_stepwatch_hash(roll->ranks[0], number), names);
    return true;
}

void td_group_watch_steps(struct member *m, const Tensord__Worker__V1__Heartbeat *h)
{
    struct group *g = m->group;
    struct td_recorder_mark marks[TD_RECORDER_MARKS];
    struct td_whereabouts at;
    struct rollcall roll = {.blamed = {false}};
    struct td_err err;
    uint32_t n = td_wireflight_marks_read(h->marks, h->n_marks, marks);

    td_wireflight_at_read(h->at, &at);
    td_stepwatch_note(&m->steps, &at, marks, n);
    if (g->state != TD_GROUP_READY && g->state != TD_GROUP_DRAINING)
        return;
    for (uint32_t r = 0; r < g->n_ranks; r++)
        roll.ranks[r] = &g->members[r].steps;
    if (m->public.rank == 0 ? is_late(g, &roll, &err) : is_astray(g, m->public.rank, &roll, &err)) {
        blame(g, &roll);
        td_group_lose(g, &err);
    }
}
