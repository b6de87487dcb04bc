/* A new group takes the place of the one that serves: both run for a while, and no request notices. */
#include "daemon/coordinator/coord_impl.h"
#include "daemon/log.h"

/* Ranks that were told to leave do so within a second. */
static const uint64_t LEAVE_NS = 5000000000u;

const char *td_roll_phase_name(enum td_roll_phase phase)
{
    static const char *const names[] = {"none", "coming", "leaving", "done", "failed"};

    return names[phase];
}

const char *td_group_role_name(enum td_group_role role)
{
    static const char *const names[] = {"current", "next", "leaving"};

    return names[role];
}

bool td_roll_is_coming(const struct td_coord *c)
{
    return c->next && c->next->state != TD_GROUP_LOST;
}

enum td_status td_roll_check_over(const struct td_coord *c, struct td_err *err)
{
    if (c->next)
        return td_err_set(err, TD_BUSY,
                          "a roll is under way: launch %u is to take the place of launch %u",
                          c->next->generation, c->current->generation);
    if (c->leaving)
        return td_err_set(err, TD_BUSY,
                          "a roll is under way: launch %u still leaves, with %u requests open",
                          c->leaving->generation, td_replay_count(c->leaving));
    return TD_OK;
}

void td_roll_describe(const struct td_coord *c, struct td_coord_roll_status *out)
{
    const struct roll *r = &c->roll;
    uint64_t now = uv_hrtime();
    uint32_t n_left = c->leaving ? td_replay_count(c->leaving) : 0;

    *out = (struct td_coord_roll_status){.phase = r->phase,
                                         .number = r->number,
                                         .old = r->old,
                                         .young = r->young,
                                         .has_taken_over = r->has_taken_over,
                                         .n_left = n_left,
                                         .left_ns =
                                             n_left && r->until_ns > now ? r->until_ns - now : 0,
                                         .n_moved = r->n_moved,
                                         .n_finished = r->n_stayed - r->n_replayed - n_left,
                                         .n_replayed = r->n_replayed,
                                         .load_ns = r->load_ns,
                                         .error = r->phase == TD_ROLL_FAILED ? r->err.cause : ""};
}

static void tell(struct td_coord *c, const struct td_err *err)
{
    td_coord_done_fn *done = c->roll.done;

    c->roll.done = NULL; /* who is told may roll again */
    if (done)
        done(err ? err->status : TD_OK, err, c->roll.young, c->roll.load_ns, c->roll.user);
}

/* ---- the new group ---- */

static enum td_status check_replaceable(const struct td_coord *c, struct td_err *err)
{
    const struct group *g = c->current;

    if (c->stopping || c->drain.is_last)
        return td_err_set(err, TD_UNAVAILABLE, "the server is stopping");
    if (!c->p.launcher.start)
        return td_err_set(err, TD_UNSUPPORTED,
                          "this server does not launch its group, so it cannot launch another one: "
                          "end the group's own job and let a new one dial in, and open requests go "
                          "on there");
    if (!c->served || c->load_done)
        return td_err_set(err, TD_UNAVAILABLE, "no model is loaded that a new group could serve");
    if (td_roll_check_over(c, err))
        return err->status;
    if (g->state != TD_GROUP_READY)
        return td_err_set(err, TD_UNAVAILABLE,
                          "the group is %s, expected a ready one: it is launched anew by itself",
                          td_group_state_name(g->state));
    return TD_OK;
}

enum td_status td_coord_replace(struct td_coord *c, uint64_t timeout_ns, bool waits,
                                td_coord_done_fn *done, void *user, struct td_err *err)
{
    struct roll *r = &c->roll;
    struct group *g;
    enum td_status s = check_replaceable(c, err);

    s = s ? s : td_group_open(c, &g, err);
    if (s)
        return s;
    g->state = TD_GROUP_LAUNCHING;
    g->load_start_ns = uv_hrtime();
    s = td_group_launch(g, err);
    if (s) {
        td_group_close(g);
        return s;
    }
    c->next = g;
    *r = (struct roll){.phase = TD_ROLL_COMING,
                       .number = r->number + 1,
                       .old = c->current->generation,
                       .young = g->generation,
                       .start_ns = g->load_start_ns,
                       .timeout_ns = timeout_ns,
                       .n_done = r->n_done,
                       .n_failed = r->n_failed,
                       .waits = waits,
                       .done = done,
                       .user = user};
    td_log_info("roll begins number=%u old=%u new=%u timeout_s=%.4g", r->number, r->old, r->young,
                (double)timeout_ns * 1e-9);
    return TD_OK;
}

void td_roll_take_over(struct group *g)
{
    struct td_coord *c = g->c;
    struct roll *r = &c->roll;
    struct group *old = c->current;
    uint64_t now = uv_hrtime();

    c->current = g;
    c->next = NULL;
    c->leaving = old;
    c->n_failures = 0;
    c->served->max_model_len = g->plan->max_model_len;
    if (old->state == TD_GROUP_READY) /* else it was lost meanwhile */
        old->state = TD_GROUP_DRAINING;
    r->phase = TD_ROLL_LEAVING;
    r->has_taken_over = true;
    r->load_ns = now - r->start_ns;
    r->until_ns = r->timeout_ns < UINT64_MAX - now ? now + r->timeout_ns : UINT64_MAX;
    r->n_moved = old->state == TD_GROUP_LOST ? c->n_open : td_replay_move(old, false);
    r->n_stayed = td_replay_count(old);
    td_log_info("roll: the new group takes over number=%u old=%u new=%u moved=%llu running=%llu",
                r->number, r->old, r->young, (unsigned long long)r->n_moved,
                (unsigned long long)r->n_stayed);
    td_coord_set_state(g, TD_GROUP_READY);
    td_replay_turn(c);
    if (!r->waits)
        tell(c, NULL);
}

/* ---- the other group is lost ---- */

/* The present group's launch waited for this one. */
static void next_lost(struct td_coord *c, const struct td_err *err)
{
    c->roll.err = *err;
    if (c->current->state != TD_GROUP_LOST)
        return;
    c->n_failures++;
    td_group_plan_relaunch(c);
}

void td_roll_lost(struct group *g, const struct td_err *err)
{
    struct td_coord *c = g->c;
    /* What is wrong with our own input says all: its ranks have nothing to add. */
    bool tells = g->was_ready || err->status >= TD_PEER_LOST;
    char text[600];

    td_log_error("group lost generation=%u role=%s error=\"%s\"", g->generation,
                 td_group_role_name(g == c->next ? TD_ROLE_NEXT : TD_ROLE_LEAVING),
                 td_err_format(err, text, sizeof text));
    td_group_forget_state(g);
    g->state = TD_GROUP_LOST;
    if (g == c->leaving) {
        c->roll.n_replayed += td_replay_count(g);
        td_replay_lost(g);
    }
    if (tells)
        td_farewell_begin(g, err);
    td_group_forget_members(g);
    td_farewell_stop(g);
    if (g == c->next)
        next_lost(c, err);
    else
        td_replay_turn(c);
}

/* ---- the old group leaves ---- */

static void send_off(struct td_coord *c, uint64_t now_ns)
{
    c->leaving->state = TD_GROUP_NONE;
    c->roll.stop_ns = now_ns + LEAVE_NS;
    td_group_shutdown(c->leaving, "another group has taken its place");
}

static void let_leave(struct td_coord *c, uint64_t now_ns)
{
    struct group *g = c->leaving;
    struct roll *r = &c->roll;

    if (g->state == TD_GROUP_DRAINING) {
        if (now_ns >= r->until_ns) {
            r->n_replayed += td_replay_move(g, true);
            td_replay_turn(c);
        }
        if (td_replay_count(g) == 0)
            send_off(c, now_ns);
    } else if (r->stop_ns && now_ns >= r->stop_ns && g->launched) {
        td_log_warn("a group that was told to leave did not generation=%u", g->generation);
        r->stop_ns = 0;
        c->p.launcher.stop(c->p.launcher.user, g->generation);
    }
}

static bool has_gone(const struct group *g)
{
    return !g->launched && !g->farewell.is_open &&
           (g->state == TD_GROUP_LOST || g->state == TD_GROUP_NONE);
}

static void finish_coming(struct td_coord *c)
{
    struct roll *r = &c->roll;

    td_group_close(c->next);
    c->next = NULL;
    r->phase = TD_ROLL_FAILED;
    r->n_failed++;
    td_log_error("roll failed number=%u new=%u error=\"%s\"", r->number, r->young, r->err.cause);
    tell(c, &r->err);
}

static void finish_leaving(struct td_coord *c)
{
    struct td_coord_roll_status s;
    struct roll *r = &c->roll;

    td_group_close(c->leaving);
    c->leaving = NULL;
    r->phase = TD_ROLL_DONE;
    r->n_done++;
    td_roll_describe(c, &s);
    td_log_info("roll ended number=%u old=%u new=%u moved=%llu finished=%llu replayed=%llu",
                r->number, r->old, r->young, (unsigned long long)s.n_moved,
                (unsigned long long)s.n_finished, (unsigned long long)s.n_replayed);
    tell(c, NULL);
}

void td_roll_tick(struct td_coord *c, uint64_t now_ns)
{
    if (c->next)
        td_group_tick(c->next, now_ns);
    if (c->leaving && c->leaving->state != TD_GROUP_NONE)
        td_group_tick(c->leaving, now_ns);
    if (c->leaving)
        let_leave(c, now_ns);
    if (c->next && has_gone(c->next))
        finish_coming(c);
    if (c->leaving && has_gone(c->leaving))
        finish_leaving(c);
}

void td_roll_stop(struct td_coord *c, const struct td_err *err)
{
    if (c->roll.phase == TD_ROLL_COMING) {
        c->roll.phase = TD_ROLL_FAILED;
        c->roll.err = *err;
    }
    tell(c, err);
}
