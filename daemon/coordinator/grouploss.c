/* A group's loss, and the launch that follows it. */
#include "daemon/coordinator/coord_impl.h"
#include "daemon/log.h"

static const uint64_t SECOND = 1000000000u;

/* It did what it is for: its end says nothing about the next one's. */
static bool has_run(const struct group *g)
{
    return g->was_ready && (g->has_stepped || !g->c->first);
}

/* That a process ended there tells something only while its group had done nothing yet. */
void td_group_blame(const struct member *m, bool silent)
{
    struct td_hosts *hosts = m->group->c->hosts;

    if (hosts && (silent || !has_run(m->group)) &&
        td_hosts_blame(hosts, m->public.host, silent, uv_hrtime()))
        td_log_warn("host stands aside host=%s rank=%u seconds=%u", m->public.host, m->public.rank,
                    (unsigned)(TD_HOSTS_ASIDE_NS / SECOND));
}

/* Waits before the next launch: at once after a group that had been ready, then longer and longer. */
static uint64_t back_off(const struct td_coord *c)
{
    static const uint64_t ms[] = {0, 200, 1000, 5000, 15000};
    uint32_t n = c->n_failures < 5 ? c->n_failures : 4;

    return ms[n] * 1000000u;
}

void td_group_plan_relaunch(struct td_coord *c)
{
    if (c->p.launcher.start && !c->current->launched && !td_roll_is_coming(c))
        c->relaunch_at_ns = uv_hrtime() + back_off(c) + 1;
}

/* What a lost group had is gone. */
void td_group_forget_state(struct group *g)
{
    g->was_ready = g->has_stepped = g->suspects = false;
    g->n_running = g->n_waiting = g->kv_blocks_used = g->kv_blocks_idle = 0;
    g->kv_blocks_memory = g->kv_blocks_file = 0;
}

static void give_up(struct group *g)
{
    struct td_coord *c = g->c;
    struct td_err told;

    td_err_set(&told, TD_UNAVAILABLE, "the group of workers was lost: %.250s", c->last_error.cause);
    c->is_recovering = false;
    c->is_leaving = c->p.on_failed != NULL;
    td_coord_set_state(g, TD_GROUP_FAILED);
    td_job_fail_all(c, &told);
    td_coord_load_finished(c, &c->last_error);
    td_farewell_stop(g);
    if (c->p.on_failed)
        c->p.on_failed(&c->last_error, c->p.user);
}

void td_group_lose(struct group *g, const struct td_err *err)
{
    struct td_coord *c = g->c;
    char text[600];
    /* Before any group was ready, errors of our own input are final: no relaunch can mend them. */
    bool is_final = !g->was_ready && c->n_restarts == 0 && err->status < TD_PEER_LOST;
    bool counts = !has_run(g);

    if (g->state == TD_GROUP_LOST || g->state == TD_GROUP_FAILED)
        return;
    if (g != c->current) {
        td_roll_lost(g, err);
        return;
    }
    c->last_error = *err;
    td_log_error("group lost generation=%u error=\"%s\"", g->generation,
                 td_err_format(err, text, sizeof text));
    c->is_recovering = c->is_recovering || g->was_ready;
    td_group_forget_state(g);
    td_coord_set_state(g, TD_GROUP_LOST);
    /* A request that kills its group does not use up the launches. */
    c->n_failures = td_replay_lost(g) || !counts ? 0 : c->n_failures + 1;
    if (!is_final)
        td_farewell_begin(g, &c->last_error);
    td_group_forget_members(g);
    if (td_group_drop_model(g, &c->last_error)) {
        is_final = false;
        c->n_failures = 0;
    }
    if (is_final || c->n_failures >= 5) {
        give_up(g);
        return;
    }
    td_farewell_stop(g);
    td_group_plan_relaunch(c); /* or when the launch has ended */
}

void td_coord_launcher_fell(struct td_coord *c, uint32_t generation, const struct td_err *err)
{
    struct group *g = td_group_find(c, generation);

    if (!g)
        return;
    if (g->state != TD_GROUP_LOST && g->state != TD_GROUP_FAILED && g->state != TD_GROUP_NONE)
        td_group_lose(g, err);
    td_farewell_launcher_fell(g, err);
}

void td_coord_launch_ended(struct td_coord *c, uint32_t generation, const struct td_err *err)
{
    struct group *g = td_group_find(c, generation);

    if (!g)
        return;
    g->launched = false;
    td_farewell_launch_ended(g);
    if (g->state != TD_GROUP_LOST && g->state != TD_GROUP_FAILED && g->state != TD_GROUP_NONE)
        td_group_lose(g, err);
    else if (g == c->current && g->state == TD_GROUP_LOST)
        td_group_plan_relaunch(c);
}

enum td_status td_group_launch(struct group *g, struct td_err *err)
{
    struct td_coord *c = g->c;
    const char *hostfile = NULL;
    uint32_t n = c->p.n_ranks;
    enum td_status s = TD_OK;

    g->generation = ++c->n_launches;
    g->launch_ns = uv_hrtime();
    if (c->hosts)
        s = td_hosts_choose(c->hosts, c->p.n_ranks, uv_hrtime(), &hostfile, &n, err);
    if (!s && n != c->p.n_ranks)
        td_log_warn("group with fewer ranks generation=%u ranks=%u wished=%u", g->generation, n,
                    c->p.n_ranks);
    if (!s && n != g->n_ranks)
        s = td_group_size(g, n, err);
    s = s ? s : c->p.launcher.start(c->p.launcher.user, g->generation, n, hostfile, err);
    g->launched = !s;
    return s;
}

static void relaunch(struct td_coord *c)
{
    struct group *g = c->current;
    struct td_err err;

    c->relaunch_at_ns = 0;
    c->n_restarts++;
    td_log_info("group relaunched generation=%u", c->n_launches + 1);
    td_coord_set_state(g, TD_GROUP_LAUNCHING);
    g->load_start_ns = uv_hrtime();
    if (td_group_launch(g, &err))
        td_group_lose(g, &err);
}

/* Time since `then`, which may have been taken after `now` in the same turn. */
static uint64_t since(uint64_t now, uint64_t then)
{
    return now > then ? now - then : 0;
}

/* Until all ranks have registered: 20 times what it took so far, at least 5 s, and twice as long after each that failed. */
static uint64_t launch_limit(const struct td_coord *c)
{
    uint64_t limit = 20 * c->slowest_launch_ns;

    if (!c->slowest_launch_ns)
        return c->p.launch_limit_ns;
    limit = limit > 5 * SECOND ? limit : 5 * SECOND;
    limit <<= c->n_failures < 8 ? c->n_failures : 8;
    return limit < c->p.launch_limit_ns ? limit : c->p.launch_limit_ns;
}

void td_group_tick(struct group *g, uint64_t now)
{
    struct td_coord *c = g->c;
    struct td_err err;

    if (g == c->current && c->relaunch_at_ns && now >= c->relaunch_at_ns && now >= c->fence_ns)
        relaunch(c);
    if (g->state == TD_GROUP_LAUNCHING && g->launched && !td_group_all_attached(g) &&
        since(now, g->launch_ns) > launch_limit(c)) {
        td_err_set(&err, TD_PEER_TIMED_OUT,
                   "not all workers registered within %llu s of their launch",
                   (unsigned long long)(launch_limit(c) / SECOND));
        td_group_lose(g, &err);
    }
    td_group_watch(g, now);
}
