#include "daemon/coordinator/coordinator.h"

#include "daemon/coordinator/coord_impl.h"
#include "daemon/coordinator/served.h"
#include "daemon/log.h"

#include <stdlib.h>
#include <string.h>

enum { TICK_MS = 50 };

const char *td_group_state_name(enum td_group_state state)
{
    static const char *const names[] = {"no group", "launching", "loading", "ready",
                                        "draining", "lost",      "failed"};

    return names[state];
}

uv_loop_t *td_coord_loop(struct td_coord *c)
{
    return c->p.loop;
}

struct td_journal *td_coord_journal(struct td_coord *c)
{
    return c->journal;
}

void td_coord_keep_in(struct td_coord *c, struct td_journal *journal)
{
    c->journal = journal;
}

struct td_metrics *td_coord_metrics(struct td_coord *c)
{
    return c->p.metrics;
}

bool td_coord_ready(const struct td_coord *c)
{
    return c->current->state == TD_GROUP_READY && !c->drain.is_on;
}

bool td_coord_accepts(const struct td_coord *c)
{
    return td_coord_ready(c) || (c->is_recovering && !c->drain.is_on && !c->stopping);
}

bool td_coord_is_well(const struct td_coord *c)
{
    return td_coord_ready(c) && !c->current->suspects;
}

void td_coord_on_ready(struct td_coord *c, td_coord_ready_fn *fn, void *user)
{
    if (c->n_on_ready < MAX_READY_SUBSCRIBERS) {
        c->on_ready[c->n_on_ready].fn = fn;
        c->on_ready[c->n_on_ready++].user = user;
    }
}

void td_coord_set_state(struct group *g, enum td_group_state state)
{
    struct td_coord *c = g->c;

    g->state = state;
    if (td_coord_is_well(c) == c->told_ready)
        return;
    c->told_ready = !c->told_ready;
    for (uint32_t i = 0; i < c->n_on_ready; i++)
        c->on_ready[i].fn(c->told_ready, c->on_ready[i].user);
}

enum td_status td_coord_find_model(struct td_coord *c, struct td_str name,
                                   struct td_served **served, struct td_err *err)
{
    if (!c->served)
        return td_err_set(err, TD_UNAVAILABLE, "no model is loaded");
    for (uint32_t i = 0; i < c->served->n_names; i++)
        if (name.len == 0 || td_str_eq(name, td_str_from(c->served->names[i]))) {
            *served = c->served;
            return TD_OK;
        }
    return td_err_set(err, TD_NOT_FOUND, "the model '%.*s' does not exist: this server has '%s'",
                      (int)(name.len < 100 ? name.len : 100), name.ptr, c->served->names[0]);
}

static struct td_coord_drain_status drain_status(const struct td_coord *c)
{
    const struct drain *d = &c->drain;
    uint64_t now = uv_hrtime();

    if (!d->is_on)
        return (struct td_coord_drain_status){.is_on = false};
    return (struct td_coord_drain_status){
        .is_on = true,
        .is_last = d->is_last,
        .is_over = d->is_over,
        .has_limit = d->until_ns != UINT64_MAX,
        .left_ns = d->until_ns > now && !d->is_over ? d->until_ns - now : 0,
        .n_finished = c->n_finished - d->finished_before,
        .n_cancelled = d->n_cancelled};
}

/* A group that was told to leave has not gone yet. */
static enum td_group_state shown_state(const struct td_coord *c, const struct group *g)
{
    bool drains =
        g == c->current ? c->drain.is_on && g->state == TD_GROUP_READY : g->state == TD_GROUP_NONE;

    return drains ? TD_GROUP_DRAINING : g->state;
}

/* Whether a job counts as this group's: the current one's are also those that no group has. */
static uint32_t count_here(const struct td_coord *c, const struct group *g)
{
    const struct group *other = c->next ? c->next : c->leaving;

    if (g != c->current)
        return td_replay_count(g);
    return other ? c->n_open - td_replay_count(other) : c->n_open;
}

static void describe(struct td_coord *c, const struct group *g, struct td_coord_status *out)
{
    for (uint32_t i = 0; i < g->n_ranks; i++)
        g->published[i] = g->members[i].public;
    *out =
        (struct td_coord_status){.state = shown_state(c, g),
                                 .role = g == c->current ? TD_ROLE_CURRENT
                                         : g == c->next  ? TD_ROLE_NEXT
                                                         : TD_ROLE_LEAVING,
                                 .drain = drain_status(c),
                                 .n_rolls_done = c->roll.n_done,
                                 .n_rolls_failed = c->roll.n_failed,
                                 .generation = g->generation,
                                 .n_restarts = c->n_restarts,
                                 .n_ranks = g->n_ranks,
                                 .members = g->published,
                                 .plan = g->load ? g->plan : NULL,
                                 .served = c->served,
                                 .n_running = g->n_running < c->n_open ? g->n_running : c->n_open,
                                 .n_waiting = g->n_waiting,
                                 .n_open = c->n_open,
                                 .n_here = count_here(c, g),
                                 .kv_blocks_used = g->kv_blocks_used,
                                 .kv_blocks_idle = g->kv_blocks_idle,
                                 .kv_blocks_memory = g->kv_blocks_memory,
                                 .kv_blocks_file = g->kv_blocks_file,
                                 .kv_blocks_read = g->kv_blocks_read,
                                 .kv_failed_reads = g->kv_failed_reads,
                                 .prompt_tokens = c->prompt_tokens,
                                 .draft_tokens = g->draft_tokens,
                                 .right_drafts = g->right_drafts,
                                 .device_draws = g->device_draws,
                                 .cached_tokens = c->cached_tokens,
                                 .generated_tokens = c->generated_tokens,
                                 .n_requests = c->n_requests,
                                 .n_failed = c->n_failed,
                                 .n_deadlines = c->n_deadlines,
                                 .start_ns = c->start_ns,
                                 .last_error = c->last_error.cause};
    memcpy(out->n_refused, c->n_refused, sizeof out->n_refused);
    td_roll_describe(c, &out->roll);
}

void td_coord_status(struct td_coord *c, struct td_coord_status *out)
{
    describe(c, c->current, out);
}

bool td_coord_status_other(struct td_coord *c, struct td_coord_status *out)
{
    const struct group *other = c->next ? c->next : c->leaving;

    if (other)
        describe(c, other, out);
    return other != NULL;
}

/* ---- operator's actions ---- */

enum td_status td_coord_plan(struct td_coord *c, const char *path, uint32_t n_ranks,
                             const struct td_plan_params *wish, struct td_bytes *text,
                             struct td_bytes *json, struct td_err *err)
{
    const struct group *g = c->current;
    struct td_checkpoint *ck = NULL;
    struct td_plan_model *model = calloc(1, sizeof *model);
    struct td_plan *plan = calloc(1, sizeof *plan);
    struct td_plan_params p = *wish;
    uint64_t memory[TD_PLAN_MAX_RANKS] = {0};
    enum td_status s = TD_OK;

    p.n_ranks = n_ranks ? n_ranks : p.tp ? p.tp * (p.pp ? p.pp : 1) : g->n_ranks ? g->n_ranks : 1;
    if (!model || !plan)
        s = td_err_set(err, TD_NO_MEMORY, "no memory to plan");
    if (!s && !(path && path[0]) && !c->served)
        s = td_err_set(err, TD_INVALID, "model_path is empty and no model is loaded");
    s = s ? s : td_checkpoint_open(path && path[0] ? path : c->served->path, &ck, err);
    s = s ? s : td_plan_model_read(ck, model, err);
    p.device = g->n_ranks && g->members[0].public.attached ? g->members[0].public.device_kind
                                                           : c->p.wish.device;
    if (!s && !p.memory_bytes && p.n_ranks == g->n_ranks) {
        for (uint32_t i = 0; i < g->n_ranks; i++)
            memory[i] = g->members[i].public.memory_bytes;
        p.memory_bytes = memory;
    }
    if (p.n_ranks != c->p.wish.n_ranks)
        p.share = NULL;
    s = s ? s : td_plan_make(model, &p, plan, err);
    if (!s && (td_plan_print(plan, model, text) || td_plan_print_json(plan, model, json)))
        s = td_err_set(err, TD_NO_MEMORY, "no memory to print the plan");
    td_checkpoint_close(ck);
    free(plan);
    free(model);
    return s;
}

void td_coord_load_finished(struct td_coord *c, const struct td_err *err)
{
    td_coord_done_fn *done = c->load_done;

    c->load_done = NULL;
    c->load_work = NULL;
    if (done)
        done(err ? err->status : TD_OK, err, uv_hrtime() - c->current->load_start_ns,
             c->current->generation, c->load_user);
}

/* Opening a model reads files, so it happens on the pool. */
struct load_work {
    uv_work_t work;
    struct td_coord *c;
    char *path, *name, *draft_path;
    struct td_served *served;
    enum td_status status;
    struct td_err err;
};

static void load_run(uv_work_t *work)
{
    struct load_work *l = work->data;
    const char *names[] = {l->name};

    l->status =
        td_served_open(l->path, names, l->name ? 1 : 0, l->draft_path, false, &l->served, &l->err);
}

static void load_opened(uv_work_t *work, int status)
{
    struct load_work *l = work->data;
    struct td_coord *c = l->c;

    if (status == UV_ECANCELED)
        l->status = td_err_set(&l->err, TD_CANCELLED, "the server is stopping");
    if (c->load_work !=
        l) { /* it was answered meanwhile: the group was lost, or the server stops */
        if (!l->status)
            td_served_release(l->served);
    } else if (l->status) {
        td_coord_load_finished(c, &l->err);
    } else {
        c->load_work = NULL;
        c->served = l->served;
        td_drain_forget(c);
        if (td_group_all_attached(c->current))
            td_group_plan_and_load(c->current);
    }
    free(l->path);
    free(l->name);
    free(l->draft_path);
    free(l);
}

void td_coord_load_model(struct td_coord *c, const struct td_coord_load *load,
                         td_coord_done_fn *done, void *user)
{
    struct load_work *l = NULL;
    struct td_err err;
    enum td_dtype kv_dtype = TD_F16;

    if (c->served || c->load_done)
        td_err_set(&err, TD_BUSY, "'%s' is loaded or being loaded: unload it first",
                   c->served ? c->served->names[0] : "a model");
    else if (!load->path || !load->path[0])
        td_err_set(&err, TD_INVALID, "model_path is empty");
    else if (load->kv_dtype && load->kv_dtype[0] && strcmp(load->kv_dtype, "auto") != 0 &&
             !td_dtype_from_name(load->kv_dtype, &kv_dtype))
        td_err_set(&err, TD_INVALID,
                   "kv_dtype '%.32s': expected auto, f32, bf16, fp16, fp8, q8_0 or q4_0",
                   load->kv_dtype);
    else if (!(l = calloc(1, sizeof *l)) || !(l->path = strdup(load->path)))
        td_err_set(&err, TD_NO_MEMORY, "no memory to load a model");
    if (!l || !l->path) {
        free(l);
        done(err.status, &err, 0, 0, user);
        return;
    }
    l->name = load->served_name && load->served_name[0] ? strdup(load->served_name) : NULL;
    l->draft_path = load->draft_path && load->draft_path[0] ? strdup(load->draft_path) : NULL;
    l->c = c;
    l->work.data = l;
    c->p.wish.tp = load->tp;
    c->p.wish.pp = load->pp;
    c->p.wish.max_model_len = load->max_model_len;
    if (load->max_num_seqs)
        c->p.wish.max_num_seqs = load->max_num_seqs;
    c->p.kv_dtype_auto =
        !load->kv_dtype || !load->kv_dtype[0] || strcmp(load->kv_dtype, "auto") == 0;
    c->p.wish.kv_dtype = kv_dtype;
    c->load_done = done;
    c->load_user = user;
    c->load_work = l;
    c->current->load_start_ns = uv_hrtime();
    uv_queue_work(c->p.loop, &l->work, load_run, load_opened);
}

void td_coord_unload_model(struct td_coord *c, struct td_str name, td_coord_done_fn *done,
                           void *user)
{
    struct group *g = c->current;
    struct td_served *served;
    struct td_err err, gone;
    uint32_t n;

    if (td_roll_check_over(c, &err)) {
        done(err.status, &err, 0, 0, user);
        return;
    }
    if (td_coord_find_model(c, name, &served, &err) || g->state != TD_GROUP_READY) {
        if (c->served && g->state != TD_GROUP_READY)
            td_err_set(&err, TD_UNAVAILABLE, "the group is %s", td_group_state_name(g->state));
        done(err.status, &err, 0, 0, user);
        return;
    }
    td_err_set(&gone, TD_UNAVAILABLE, "the model was unloaded");
    n = td_job_cancel_all(c, &gone);
    c->is_recovering = false;
    td_group_send_all_drain(g);
    td_compute_load_free(g->load);
    g->load = NULL;
    c->served = NULL;
    td_served_release(served);
    td_coord_set_state(g, TD_GROUP_LAUNCHING); /* workers are here and wait for a model */
    done(TD_OK, NULL, n, 0, user);
}

/* ---- life ---- */

static void on_tick(uv_timer_t *timer)
{
    struct td_coord *c = timer->data;
    uint64_t now = uv_hrtime();

    td_group_tick(c->current, now);
    td_roll_tick(c, now);
    td_replay_turn(c);
    td_job_expire(c, now);
    td_drain_tick(c, now);
}

enum td_status td_coord_open(const struct td_coord_params *params, struct td_coord **out,
                             struct td_err *err)
{
    struct td_coord *c = calloc(1, sizeof *c);
    enum td_status s = TD_OK;

    if (!c)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the coordinator");
    c->p = *params;
    c->p.dead_ns = params->dead_ns ? params->dead_ns : 1000000000u;
    c->p.launch_limit_ns = params->launch_limit_ns ? params->launch_limit_ns : 60000000000u;
    c->start_ns = uv_hrtime();
    td_quota_init(&c->quota,
                  &(struct td_quota_limits){params->limits.max_open_per_key,
                                            params->limits.tokens_per_minute_per_key},
                  c->start_ns);
    td_arena_init(&c->arena, 0, 0);
    s = td_group_open(c, &c->current, err);
    if (!s && params->model)
        s = td_served_open(params->model, params->names, params->n_names, params->draft_path,
                           params->verify, &c->served, err);
    if (!s && params->hostfile && params->launcher.start)
        s = td_hosts_open(params->hostfile, &c->hosts, err);
    if (!s && params->n_ranks)
        s = td_group_size(c->current, params->n_ranks, err);
    if (s) {
        td_coord_close(c);
        return s;
    }
    *out = c;
    return TD_OK;
}

enum td_status td_coord_start(struct td_coord *c, struct td_err *err)
{
    struct group *g = c->current;

    uv_timer_init(c->p.loop, &c->timer);
    c->timer.data = c;
    c->timer_open = true;
    td_vigil_init(&g->vigil, c->p.dead_ns, uv_hrtime());
    uv_timer_start(&c->timer, on_tick, TICK_MS, TICK_MS);
    g->load_start_ns = uv_hrtime();
    if (!c->p.launcher.start)
        return TD_OK;
    g->state = TD_GROUP_LAUNCHING;
    return td_group_launch(g, err);
}

static void stop_group(struct group *g)
{
    struct td_group_launcher *l = &g->c->p.launcher;
    /* Ranks that start or load hear nothing yet. */
    bool deaf = g->state == TD_GROUP_LOADING || !td_group_all_attached(g);

    td_coord_set_state(g, TD_GROUP_NONE);
    td_farewell_finish(g);
    td_group_shutdown(g, "the server is stopping");
    if (deaf && g->launched && l->stop)
        l->stop(l->user, g->generation);
}

void td_coord_stop(struct td_coord *c)
{
    struct td_err err;

    td_err_set(&err, TD_UNAVAILABLE, "the server is stopping");
    c->stopping = c->is_leaving = true;
    c->drain.n_cancelled += c->n_open;
    td_job_fail_all(c, &err);
    c->relaunch_at_ns = 0;
    td_coord_load_finished(c, &err);
    td_drain_stop(c);
    td_roll_stop(c, &err);
    stop_group(c->current);
    if (c->next)
        stop_group(c->next);
    if (c->leaving)
        stop_group(c->leaving);
    if (c->timer_open)
        uv_close((uv_handle_t *)&c->timer, NULL);
    c->timer_open = false;
}

void td_coord_close(struct td_coord *c)
{
    if (!c)
        return;
    td_group_close(c->current);
    td_group_close(c->next);
    td_group_close(c->leaving);
    td_served_release(c->served);
    td_bytes_deinit(&c->packed);
    td_bytes_deinit(&c->detail);
    td_hosts_close(c->hosts);
    td_arena_deinit(&c->arena);
    td_deadlines_deinit(&c->deadlines);
    free(c);
}
