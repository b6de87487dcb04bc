/* The group of workers: their control streams, registration, loading, and what follows when one is lost. */
#include "daemon/coordinator/coord_impl.h"
#include "daemon/engine/draft.h"
#include "daemon/log.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_MESSAGE_BYTES = 16 << 20 };

static const uint64_t SECOND = 1000000000u;

/* ---- to the workers ---- */

static enum td_status send_to(struct td_coord *c, struct member *m,
                              td_wire_coordinator_message *message, struct td_err *err)
{
    enum td_status s;

    message->generation = c->generation;
    message->model_id = 1;
    message->cookie = m->cookie;
    s = m->stream ? td_rpc_pack(&message->base, &c->packed, err)
                  : td_err_set(err, TD_PEER_LOST, "rank %u is not attached", m->public.rank);
    s = s ? s : td_grpc_stream_send(m->stream, td_bytes_str(&c->packed), err);
    /* Its stream is about to end: nobody has cancelled what was to be sent. */
    return s == TD_CANCELLED ? td_err_set(err, TD_PEER_LOST, "rank %u is lost", m->public.rank) : s;
}

enum td_status td_group_send(struct td_coord *c, struct member *m,
                             td_wire_coordinator_message *message, struct td_err *err)
{
    return send_to(c, m, message, err);
}

#define MESSAGE(name)                                                                              \
    td_wire_coordinator_message name = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__INIT

/* Rank 0 has got one more submit: the others may sleep. A rank that cannot be told would sleep on while rank 0 waits for it: its
 * stream ends, so that it is noticed as lost. */
static void wake_others(struct td_coord *c)
{
    Tensord__Worker__V1__Wake wake = TENSORD__WORKER__V1__WAKE__INIT;
    struct td_err err;

    wake.n_submits = ++c->n_submits;
    for (uint32_t i = 1; i < c->n_ranks; i++) {
        MESSAGE(m);

        m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_WAKE;
        m.wake = &wake;
        if (send_to(c, &c->members[i], &m, &err) && c->members[i].stream)
            td_grpc_stream_fail(c->members[i].stream, &err);
    }
}

enum td_status td_group_send_submit(struct td_coord *c, const struct td_request *r,
                                    struct td_err *err)
{
    enum td_status s = TD_OK;
    MESSAGE(m);

    m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_SUBMIT;
    m.submit = td_wire_submit_make(r, c->n_submits + 1, &c->arena);
    if (!m.submit)
        s = td_err_set(err, TD_NO_MEMORY, "no memory for a request");
    s = s ? s : send_to(c, &c->members[0], &m, err);
    td_arena_rewind(&c->arena);
    if (s)
        return s;
    wake_others(c);
    return TD_OK;
}

void td_group_send_pause(struct td_coord *c, uint64_t request_id)
{
    Tensord__Worker__V1__Pause pause = TENSORD__WORKER__V1__PAUSE__INIT;
    MESSAGE(m);

    pause.request_id = request_id;
    m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_PAUSE;
    m.pause = &pause;
    if (c->n_ranks)
        (void)send_to(c, &c->members[0], &m, NULL);
}

void td_group_send_resume(struct td_coord *c, uint64_t request_id)
{
    Tensord__Worker__V1__Resume resume = TENSORD__WORKER__V1__RESUME__INIT;
    MESSAGE(m);

    resume.request_id = request_id;
    resume.number = c->n_submits + 1;
    m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_RESUME;
    m.resume = &resume;
    if (c->n_ranks && !send_to(c, &c->members[0], &m, NULL))
        wake_others(c);
}

void td_group_send_cancel(struct td_coord *c, uint64_t request_id)
{
    Tensord__Worker__V1__Cancel cancel = TENSORD__WORKER__V1__CANCEL__INIT;
    MESSAGE(m);

    cancel.request_id = request_id;
    m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_CANCEL;
    m.cancel = &cancel;
    if (c->n_ranks)
        (void)send_to(c, &c->members[0], &m, NULL);
}

void td_group_send_all_drain(struct td_coord *c)
{
    Tensord__Worker__V1__Drain drain = TENSORD__WORKER__V1__DRAIN__INIT;

    for (uint32_t i = 0; i < c->n_ranks; i++) {
        MESSAGE(m);

        m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_DRAIN;
        m.drain = &drain;
        (void)send_to(c, &c->members[i], &m, NULL);
        c->members[i].public.loaded = false;
        c->members[i].public.weight_bytes = c->members[i].public.kv_bytes = 0;
        c->members[i].public.load_done_bytes = c->members[i].public.load_total_bytes = 0;
    }
}

void td_group_shutdown(struct td_coord *c, const char *reason)
{
    Tensord__Worker__V1__Shutdown shutdown = TENSORD__WORKER__V1__SHUTDOWN__INIT;

    shutdown.reason = (char *)reason;
    for (uint32_t i = 0; i < c->n_ranks; i++) {
        MESSAGE(m);

        m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_SHUTDOWN;
        m.shutdown = &shutdown;
        (void)send_to(c, &c->members[i], &m, NULL);
    }
}

/* ---- the group's end ---- */

static void forget_members(struct td_coord *c)
{
    for (uint32_t i = 0; i < c->n_ranks; i++) {
        struct td_grpc_stream *stream = c->members[i].stream;

        if (!stream)
            continue;
        td_grpc_stream_set_user(stream, NULL);
        c->members[i].stream = NULL;
        td_grpc_stream_finish(stream, TD_GRPC_UNAVAILABLE, TD_STR("the group was ended"));
    }
    memset(c->members, 0, c->n_ranks * sizeof *c->members);
    for (uint32_t i = 0; i < c->n_ranks; i++)
        c->members[i].public.rank = i;
}

/* That a process ended there tells something only while its group had done nothing yet. */
void td_group_blame(struct td_coord *c, const struct member *m, bool silent)
{
    bool has_run = c->was_ready && (c->has_stepped || !c->first);

    if (c->hosts && (silent || !has_run) &&
        td_hosts_blame(c->hosts, m->public.host, silent, uv_hrtime()))
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

/* True while somebody waits for a LoadModel: whatever its ranks failed for, it is answered, the model is dropped and the server
 * waits for another one. A model that no group can load must not use up the launches. */
static bool drop_model(struct td_coord *c, const struct td_err *err)
{
    if (!c->load_done)
        return false;
    td_log_warn("model refused path=%s error=\"%s\"", c->served ? c->served->path : "", err->cause);
    td_compute_load_free(c->load);
    c->load = NULL;
    td_served_release(c->served);
    c->served = NULL;
    td_coord_load_finished(c, err);
    return true;
}

void td_group_lose(struct td_coord *c, const struct td_err *err)
{
    char text[600];
    /* Before any group was ready, errors of our own input are final: no relaunch can mend them. */
    bool is_final = !c->was_ready && c->n_restarts == 0 && err->status < TD_PEER_LOST;
    bool has_run; /* it did what it is for: its end says nothing about the next one's */
    struct td_err told;

    if (c->state == TD_GROUP_LOST || c->state == TD_GROUP_FAILED)
        return;
    c->last_error = *err;
    td_log_error("group lost generation=%u error=\"%s\"", c->generation,
                 td_err_format(err, text, sizeof text));
    has_run = c->was_ready && (c->has_stepped || !c->first);
    c->is_recovering = c->is_recovering || c->was_ready;
    c->was_ready = c->has_stepped = c->suspects = false;
    c->n_running = c->n_waiting = c->kv_blocks_used = c->kv_blocks_idle = 0;
    c->kv_blocks_memory = c->kv_blocks_file = 0;
    td_coord_set_state(c, TD_GROUP_LOST);
    /* A request that kills its group does not use up the launches. */
    c->n_failures = td_replay_lost(c) || has_run ? 0 : c->n_failures + 1;
    if (!is_final)
        td_farewell_begin(c, &c->last_error);
    forget_members(c);
    if (drop_model(c, &c->last_error)) {
        is_final = false;
        c->n_failures = 0;
    }
    if (is_final || c->n_failures >= 5) {
        td_err_set(&told, TD_UNAVAILABLE, "the group of workers was lost: %.250s", err->cause);
        c->is_recovering = false;
        c->is_leaving = c->p.on_failed != NULL;
        td_coord_set_state(c, TD_GROUP_FAILED);
        td_job_fail_all(c, &told);
        td_coord_load_finished(c, &c->last_error);
        td_farewell_stop(c);
        if (c->p.on_failed)
            c->p.on_failed(&c->last_error, c->p.user);
        return;
    }
    td_farewell_stop(c); /* the relaunch is due when the launcher has ended */
    if (c->p.launcher.start && !c->launched)
        c->relaunch_at_ns = uv_hrtime() + back_off(c) + 1;
}

void td_coord_launch_ended(struct td_coord *c, const struct td_err *err)
{
    c->launched = false;
    td_farewell_launch_ended(c);
    if (c->state != TD_GROUP_LOST && c->state != TD_GROUP_FAILED && c->state != TD_GROUP_NONE)
        td_group_lose(c, err);
    else if (c->state == TD_GROUP_LOST && c->p.launcher.start)
        c->relaunch_at_ns = uv_hrtime() + back_off(c) + 1;
}

enum td_status td_group_size(struct td_coord *c, uint32_t n, struct td_err *err)
{
    struct member *members = calloc(n, sizeof *members);
    struct td_member *published = calloc(n, sizeof *published);

    if (!members || !published) {
        free(members);
        free(published);
        return td_err_set(err, TD_NO_MEMORY, "no memory for %u ranks", n);
    }
    free(c->members);
    free(c->published);
    c->members = members;
    c->published = published;
    c->n_ranks = n;
    for (uint32_t i = 0; i < n; i++)
        c->members[i].public.rank = i;
    return TD_OK;
}

enum td_status td_group_launch(struct td_coord *c, struct td_err *err)
{
    const char *hostfile = NULL;
    uint32_t n = c->p.n_ranks;
    enum td_status s = TD_OK;

    c->generation++;
    if (c->hosts)
        s = td_hosts_choose(c->hosts, c->p.n_ranks, uv_hrtime(), &hostfile, &n, err);
    if (!s && n != c->p.n_ranks)
        td_log_warn("group with fewer ranks generation=%u ranks=%u wished=%u", c->generation, n,
                    c->p.n_ranks);
    if (!s && n != c->n_ranks)
        s = td_group_size(c, n, err);
    s = s ? s : c->p.launcher.start(c->p.launcher.user, c->generation, n, hostfile, err);
    c->launched = !s;
    return s;
}

static void relaunch(struct td_coord *c)
{
    struct td_err err;

    c->relaunch_at_ns = 0;
    c->n_restarts++;
    td_log_info("group relaunched generation=%u", c->generation + 1);
    td_coord_set_state(c, TD_GROUP_LAUNCHING);
    c->load_start_ns = uv_hrtime();
    if (td_group_launch(c, &err))
        td_group_lose(c, &err);
}

/* Time since `then`, which may have been taken after `now` in the same turn. */
static uint64_t since(uint64_t now, uint64_t then)
{
    return now > then ? now - then : 0;
}

void td_group_tick(struct td_coord *c, uint64_t now)
{
    struct td_err err;

    if (c->relaunch_at_ns && now >= c->relaunch_at_ns && now >= c->fence_ns)
        relaunch(c);
    if (c->state == TD_GROUP_LAUNCHING && c->launched && !td_group_all_attached(c) &&
        since(now, c->load_start_ns) > c->p.launch_limit_ns) {
        td_err_set(&err, TD_PEER_TIMED_OUT,
                   "not all workers registered within %llu s of their launch",
                   (unsigned long long)(c->p.launch_limit_ns / SECOND));
        td_group_lose(c, &err);
    }
    td_group_watch(c, now);
}

/* ---- registration ---- */

bool td_group_all_attached(const struct td_coord *c)
{
    for (uint32_t i = 0; i < c->n_ranks; i++)
        if (!c->members[i].stream)
            return false;
    return c->n_ranks > 0;
}

static enum td_status check_register(struct td_coord *c, const td_wire_worker_message *m,
                                     struct td_err *err)
{
    const Tensord__Worker__V1__Register *r = m->register_;
    enum td_status s;

    if (strcmp(r->version, TD_VERSION) != 0)
        return td_err_set(err, TD_PEER_MISMATCH,
                          "worker on %.60s has tensord %.30s, the coordinator has %s", r->host,
                          r->version, TD_VERSION);
    if (c->p.launcher.start && m->generation != c->generation)
        return td_err_set(err, TD_PEER_MISMATCH,
                          "worker on %.60s belongs to generation %u, expected %u", r->host,
                          m->generation, c->generation);
    if (r->world_size == 0 || r->world_size > TD_PLAN_MAX_RANKS || r->world_rank >= r->world_size)
        return td_err_set(err, TD_PEER_PROTOCOL, "worker on %.60s says it is rank %u of %u",
                          r->host, r->world_rank, r->world_size);
    if (c->stopping)
        return td_err_set(err, TD_UNAVAILABLE, "the server is stopping");
    if (c->state == TD_GROUP_FAILED)
        return td_err_set(err, TD_UNAVAILABLE, "the group was given up: %.250s",
                          c->last_error.cause);
    if (c->n_ranks == 0) {
        s = td_group_size(c, r->world_size, err);
        if (s)
            return s;
    }
    if (r->world_size != c->n_ranks)
        return td_err_set(err, TD_PEER_MISMATCH,
                          "worker on %.60s belongs to a job of %u ranks, expected %u", r->host,
                          r->world_size, c->n_ranks);
    if (c->members[r->world_rank].stream)
        return td_err_set(err, TD_PEER_MISMATCH, "rank %u is already here, from process %lld on %s",
                          r->world_rank, (long long)c->members[r->world_rank].public.pid,
                          c->members[r->world_rank].public.host);
    for (uint32_t i = 0; i < c->n_ranks; i++)
        if (c->members[i].stream && c->members[i].generation != m->generation)
            return td_err_set(err, TD_PEER_MISMATCH,
                              "worker on %.60s is of job %u, rank %u on %s, which is here already, "
                              "of job %u",
                              r->host, m->generation, i, c->members[i].public.host,
                              c->members[i].generation);
    return TD_OK;
}

static void on_register(struct td_coord *c, struct td_grpc_stream *stream,
                        const td_wire_worker_message *message)
{
    const Tensord__Worker__V1__Register *r = message->register_;
    struct member *m;
    struct td_err err;

    if (check_register(c, message, &err)) {
        td_log_warn("worker refused remote=%s error=\"%s\"", td_grpc_serve_remote(stream),
                    err.cause);
        td_grpc_stream_fail(stream, &err);
        return;
    }
    m = &c->members[r->world_rank];
    *m = (struct member){
        .stream = stream, .cookie = message->cookie, .generation = message->generation};
    m->public = (struct td_member){.rank = r->world_rank,
                                   .pid = r->pid,
                                   .attached = true,
                                   .n_cores = r->n_cores,
                                   .memory_bytes = r->memory_free_bytes,
                                   .heartbeat_ns = uv_hrtime()};
    snprintf(m->public.host, sizeof m->public.host, "%s", r->host);
    snprintf(m->public.device, sizeof m->public.device, "%s", r->device_name);
    snprintf(m->public.numerics, sizeof m->public.numerics, "%s",
             r->n_numerics_classes ? r->numerics_classes[0] : "");
    td_grpc_stream_set_user(stream, m);
    td_vigil_heard(&c->vigil, &m->peer);
    td_log_debug("worker registered rank=%u host=%s pid=%lld", r->world_rank, m->public.host,
                 (long long)r->pid);
    if (c->state == TD_GROUP_LOST || c->state == TD_GROUP_NONE) {
        td_coord_set_state(c, TD_GROUP_LAUNCHING);
        c->load_start_ns = uv_hrtime();
    }
    if (td_group_all_attached(c) && c->served)
        td_group_plan_and_load(c);
}

/* ---- planning and loading ---- */

static struct td_compute_load *make_load(struct td_coord *c)
{
    struct td_compute_load *load = calloc(1, sizeof *load);
    const char *draft = c->served->draft_path, *dir = c->p.offload_dir;

    if (load) {
        load->path = strdup(c->served->path);
        load->offload_dir = dir ? strdup(dir) : NULL;
        load->draft_path = draft ? strdup(draft) : NULL;
    }
    if (!load || !load->path || (dir && !load->offload_dir) || (draft && !load->draft_path)) {
        td_compute_load_free(load);
        return NULL;
    }
    memcpy(load->model_hash, c->served->hash, sizeof load->model_hash);
    load->verify = c->p.verify;
    load->max_queue = c->p.limits.max_queue + c->p.wish.max_num_seqs;
    load->prefix_cache = c->p.prefix_cache;
    load->max_draft_tokens =
        c->p.max_draft_tokens || !draft ? c->p.max_draft_tokens : TD_DRAFT_DEFAULT_TOKENS;
    load->max_stretch_percent = c->p.max_stretch_percent;
    load->op_limit_ns = c->p.op_limit_ns;
    load->plan = c->p.wish;
    load->plan.n_ranks = c->n_ranks;
    if (c->n_ranks != c->p.n_ranks && c->p.n_ranks) { /* another layout, of whom is left */
        load->plan.tp = load->plan.pp = 0;
        load->plan.share = NULL;
    }
    if (c->p.kv_dtype_auto)
        load->plan.kv_dtype = c->served->spec->dtype == TD_F32 ? TD_F32 : TD_F16;
    for (uint32_t i = 0; i < c->n_ranks; i++) {
        load->memory[i] = c->members[i].public.memory_bytes;
        load->share[i] = load->plan.share ? load->plan.share[i] : 0;
    }
    load->plan.memory_bytes = load->memory;
    load->plan.share = load->plan.share ? load->share : NULL;
    return load;
}

static enum td_status check_numerics(const struct td_coord *c, struct td_err *err)
{
    for (uint32_t i = 1; i < c->n_ranks; i++)
        if (strcmp(c->members[i].public.numerics, c->members[0].public.numerics) != 0)
            return td_err_set(err, TD_PEER_MISMATCH,
                              "rank %u on %s computes in class '%s', rank 0 on %s in '%s'", i,
                              c->members[i].public.host, c->members[i].public.numerics,
                              c->members[0].public.host, c->members[0].public.numerics);
    return TD_OK;
}

/* Open requests count on the context that they were accepted with: it becomes smaller only when it must. */
static enum td_status make_plan(struct td_coord *c, struct td_err *err)
{
    struct td_plan_params *p = &c->load->plan;
    uint32_t wished = p->max_model_len;

    if (c->is_recovering) {
        p->max_model_len = c->served->max_model_len;
        if (!td_plan_make(c->served->plan_model, p, c->plan, err))
            return TD_OK;
        p->max_model_len = wished;
    }
    return td_plan_make(c->served->plan_model, p, c->plan, err);
}

void td_group_plan_and_load(struct td_coord *c)
{
    struct td_err err;
    enum td_status s = check_numerics(c, &err);

    td_compute_load_free(c->load);
    c->load = NULL;
    if (!s && !c->plan && !(c->plan = calloc(1, sizeof *c->plan)))
        s = td_err_set(&err, TD_NO_MEMORY, "no memory for the plan");
    if (!s && !(c->load = make_load(c)))
        s = td_err_set(&err, TD_NO_MEMORY, "no memory for a load");
    if (!s && c->served->draft)
        s = td_draftmodel_reserve(c->served->draft, &c->load->plan, &err);
    s = s ? s : make_plan(c, &err);
    if (s && drop_model(c, &err)) {
        td_coord_set_state(c, TD_GROUP_LAUNCHING); /* the workers stay and wait for a model */
        return;
    }
    if (!s) {
        c->served->max_model_len = c->plan->max_model_len;
        c->load->plan.tp = c->plan->tp;
        c->load->plan.pp = c->plan->pp;
        c->n_submits = 0;
        c->load_start_ns = uv_hrtime();
        td_coord_set_state(c, TD_GROUP_LOADING);
    }
    for (uint32_t i = 0; !s && i < c->n_ranks; i++) {
        MESSAGE(m);

        m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_ASSIGN;
        m.assign = td_wire_assign_make(c->load, i, &c->arena);
        s = m.assign ? send_to(c, &c->members[i], &m, &err)
                     : td_err_set(&err, TD_NO_MEMORY, "no memory for a plan");
        td_arena_rewind(&c->arena);
    }
    for (uint32_t i = 0; !s && i < c->n_ranks; i++) {
        Tensord__Worker__V1__Load load = TENSORD__WORKER__V1__LOAD__INIT;
        MESSAGE(m);

        m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_LOAD;
        m.load = &load;
        s = send_to(c, &c->members[i], &m, &err);
    }
    if (s)
        td_group_lose(c, &err);
}

static void on_ready(struct td_coord *c, struct member *m, const Tensord__Worker__V1__Ready *r)
{
    m->public.loaded = true;
    m->steps = (struct td_stepwatch){.n_marks = 0}; /* those of the model before are over */
    m->public.weight_bytes = r->weight_bytes;
    m->public.kv_bytes = r->kv_bytes;
    m->public.resident_bytes = r->resident_bytes;
    for (uint32_t i = 0; i < c->n_ranks; i++)
        if (!c->members[i].public.loaded)
            return;
    if (c->state != TD_GROUP_LOADING)
        return;
    c->was_ready = true;
    td_log_info("group ready generation=%u ranks=%u tp=%u pp=%u load_ms=%llu", c->generation,
                c->n_ranks, c->plan->tp, c->plan->pp,
                (unsigned long long)((uv_hrtime() - c->load_start_ns) / 1000000u));
    td_coord_set_state(c, TD_GROUP_READY);
    td_coord_load_finished(c, NULL);
    td_replay_turn(c);
}

/* What only rank 0 knows. */
static void note_gauges(struct td_coord *c, const Tensord__Worker__V1__Heartbeat *h)
{
    c->n_running = h->n_running;
    c->n_waiting = h->n_waiting;
    c->kv_blocks_used = h->kv_blocks_used;
    c->kv_blocks_idle = h->kv_blocks_idle;
    c->kv_blocks_memory = h->kv_blocks_memory;
    c->kv_blocks_file = h->kv_blocks_file;
    c->kv_blocks_read = h->kv_blocks_read;
    c->kv_failed_reads = h->kv_failed_reads;
    c->draft_tokens = h->draft_tokens;
    c->right_drafts = h->right_drafts;
}

static void on_heartbeat(struct td_coord *c, struct member *m,
                         const Tensord__Worker__V1__Heartbeat *h)
{
    m->public.exchanged_bytes = h->exchanged_bytes;
    m->public.n_steps = h->n_steps;
    m->public.wait_ns = h->wait_ns;
    m->public.step_ns = h->step_ns;
    m->public.gap_ns = h->gap_ns;
    m->public.n_gaps = h->n_gaps;
    if (m->public.rank == 0)
        note_gauges(c, h);
    td_group_watch_steps(c, m, h);
}

static void on_tokens(struct td_coord *c, const Tensord__Worker__V1__Tokens *t)
{
    struct td_token_event event;
    struct td_err error, err;

    for (size_t i = 0; i < t->n_events; i++)
        if (td_wire_token_read(t->events[i], &event, &error, &err))
            td_log_warn("token event dropped error=\"%s\"", err.cause);
        else
            td_job_token(c, &event);
    c->has_stepped = c->has_stepped || t->n_events > 0;
}

/* ---- the stream ---- */

static enum td_status on_call(void *user, struct td_grpc_stream *s, struct td_err *err)
{
    (void)user;
    (void)err;
    td_grpc_stream_set_user(s, NULL);
    td_grpc_stream_start(s);
    return TD_OK;
}

static void on_member_message(struct td_coord *c, struct member *m,
                              const td_wire_worker_message *message)
{
    struct td_err err;

    m->public.heartbeat_ns = uv_hrtime();
    td_vigil_heard(&c->vigil, &m->peer);
    switch (message->body_case) {
    case TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_LOAD_PROGRESS:
        m->public.load_done_bytes = message->load_progress->done_bytes;
        m->public.load_total_bytes = message->load_progress->total_bytes;
        break;
    case TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_READY:
        on_ready(c, m, message->ready);
        break;
    case TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_HEARTBEAT:
        on_heartbeat(c, m, message->heartbeat);
        break;
    case TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_TOKENS:
        on_tokens(c, message->tokens);
        break;
    case TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_FAILED:
        td_err_set(&err, (enum td_status)message->failed->status, "rank %u on %s: %.*s",
                   m->public.rank, m->public.host,
                   (int)(message->failed->text.len < 240 ? message->failed->text.len : 240),
                   (const char *)message->failed->text.data);
        td_farewell_failed(c, m->public.rank, message->failed);
        td_group_lose(c, &err);
        break;
    case TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_FLIGHT:
        td_farewell_record(c, m->public.rank, message->flight);
        break;
    default:
        break;
    }
}

static void on_message(void *user, struct td_grpc_stream *s, struct td_str bytes)
{
    struct td_coord *c = user;
    struct member *m = td_grpc_stream_user(s);
    ProtobufCMessage *raw;
    const td_wire_worker_message *message;
    struct td_err err;

    td_grpc_stream_ack(s, bytes.len);
    if (td_rpc_unpack(&tensord__worker__v1__worker_message__descriptor, bytes, MAX_MESSAGE_BYTES,
                      &raw, &err)) {
        td_grpc_stream_fail(s, &err);
        return;
    }
    message = (const td_wire_worker_message *)(const void *)raw;
    if (td_farewell_message(c, s, message)) {
        td_rpc_free(raw);
        return;
    }
    if (message->body_case == TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_REGISTER && !m) {
        on_register(c, s, message);
    } else if (!m || message->cookie != m->cookie) {
        td_err_set(&err, TD_PEER_PROTOCOL, "a message before Register, or with a foreign cookie");
        if (!m)
            td_grpc_stream_fail(s, &err);
    } else {
        on_member_message(c, m, message);
    }
    td_rpc_free(raw);
}

static void on_half_close(void *user, struct td_grpc_stream *s)
{
    (void)user;
    td_grpc_stream_finish(s, TD_GRPC_OK, TD_STR(""));
}

static void on_close(void *user, struct td_grpc_stream *s, enum td_grpc_code code)
{
    struct td_coord *c = user;
    struct member *m = td_grpc_stream_user(s);
    struct td_err err;

    (void)code;
    td_farewell_closed(c, s);
    if (!m || m->stream != s)
        return;
    m->stream = NULL;
    m->public.attached = false;
    m->public.lost = true;
    if (c->state == TD_GROUP_NONE)
        return;
    td_err_set(&err, TD_PEER_LOST, "rank %u on %s (process %lld) closed its control stream",
               m->public.rank, m->public.host, (long long)m->public.pid);
    td_group_blame(c, m, false);
    td_farewell_vanished(c, m->public.rank);
    td_group_lose(c, &err);
}

void td_coord_serve_workers(struct td_coord *c, struct td_grpc_serve_table *table,
                            const struct td_auth *cluster_key)
{
    struct td_grpc_serve_handler handler = {.auth = cluster_key,
                                            .user = c,
                                            .on_call = on_call,
                                            .on_message = on_message,
                                            .on_half_close = on_half_close,
                                            .on_close = on_close};

    td_grpc_serve_add(table, TD_RPC_ATTACH, &handler);
}
