/* The workers' control streams: who may register, what the ranks say, and that one is gone. */
#include "daemon/coordinator/coord_impl.h"
#include "daemon/log.h"

#include <string.h>

enum { MAX_MESSAGE_BYTES = 16 << 20 };

/* The group that a worker which says `generation` belongs to. Without a launcher there is one; another than the current takes nobody
 * once it was lost or told to leave. */
static struct group *group_of(struct td_coord *c, uint32_t generation)
{
    struct group *g = c->p.launcher.start ? td_group_find(c, generation) : c->current;
    bool is_over = g && (g->state == TD_GROUP_LOST || g->state == TD_GROUP_NONE);

    return g == c->current || !is_over ? g : NULL;
}

static enum td_status check_register(struct td_coord *c, const td_wire_worker_message *m,
                                     struct td_err *err)
{
    const Tensord__Worker__V1__Register *r = m->register_;
    struct group *g = group_of(c, m->generation);
    enum td_status s;

    if (strcmp(r->version, TD_VERSION) != 0)
        return td_err_set(err, TD_PEER_MISMATCH,
                          "worker on %.60s has tensord %.30s, the coordinator has %s", r->host,
                          r->version, TD_VERSION);
    if (!g)
        return td_err_set(err, TD_PEER_MISMATCH,
                          "worker on %.60s belongs to generation %u, expected %u", r->host,
                          m->generation, c->current->generation);
    if (r->world_size == 0 || r->world_size > TD_PLAN_MAX_RANKS || r->world_rank >= r->world_size)
        return td_err_set(err, TD_PEER_PROTOCOL, "worker on %.60s says it is rank %u of %u",
                          r->host, r->world_rank, r->world_size);
    if (c->stopping)
        return td_err_set(err, TD_UNAVAILABLE, "the server is stopping");
    if (g->state == TD_GROUP_FAILED)
        return td_err_set(err, TD_UNAVAILABLE, "the group was given up: %.250s",
                          c->last_error.cause);
    if (g->n_ranks == 0) {
        s = td_group_size(g, r->world_size, err);
        if (s)
            return s;
    }
    if (r->world_size != g->n_ranks)
        return td_err_set(err, TD_PEER_MISMATCH,
                          "worker on %.60s belongs to a job of %u ranks, expected %u", r->host,
                          r->world_size, g->n_ranks);
    if (g->members[r->world_rank].stream)
        return td_err_set(err, TD_PEER_MISMATCH, "rank %u is already here, from process %lld on %s",
                          r->world_rank, (long long)g->members[r->world_rank].public.pid,
                          g->members[r->world_rank].public.host);
    for (uint32_t i = 0; i < g->n_ranks; i++)
        if (g->members[i].stream && g->members[i].generation != m->generation)
            return td_err_set(err, TD_PEER_MISMATCH,
                              "worker on %.60s is of job %u, rank %u on %s, which is here already, "
                              "of job %u",
                              r->host, m->generation, i, g->members[i].public.host,
                              g->members[i].generation);
    return TD_OK;
}

/* How long a launch takes, for judging the next ones. A group that dials in was launched by nobody here. */
static void note_launch(const struct group *g)
{
    uint64_t took = uv_hrtime() - g->launch_ns;

    if (g->launched && took > g->c->slowest_launch_ns)
        g->c->slowest_launch_ns = took;
}

static void on_register(struct td_coord *c, struct td_grpc_stream *stream,
                        const td_wire_worker_message *message)
{
    const Tensord__Worker__V1__Register *r = message->register_;
    struct group *g;
    struct member *m;
    struct td_err err;

    if (check_register(c, message, &err)) {
        td_log_warn("worker refused remote=%s error=\"%s\"", td_grpc_serve_remote(stream),
                    err.cause);
        td_grpc_stream_fail(stream, &err);
        return;
    }
    g = group_of(c, message->generation);
    m = &g->members[r->world_rank];
    *m = (struct member){
        .group = g, .stream = stream, .cookie = message->cookie, .generation = message->generation};
    m->public = (struct td_member){.rank = r->world_rank,
                                   .pid = r->pid,
                                   .attached = true,
                                   .n_cores = r->n_cores,
                                   .device_kind = td_wire_device_read(r->device_kind),
                                   .memory_bytes = r->memory_free_bytes,
                                   .heartbeat_ns = uv_hrtime()};
    snprintf(m->public.host, sizeof m->public.host, "%s", r->host);
    snprintf(m->public.device, sizeof m->public.device, "%s", r->device_name);
    snprintf(m->public.numerics, sizeof m->public.numerics, "%s",
             r->n_numerics_classes ? r->numerics_classes[0] : "");
    snprintf(m->public.bus_id, sizeof m->public.bus_id, "%s", r->bus_id);
    td_grpc_stream_set_user(stream, m);
    td_vigil_heard(&g->vigil, &m->peer);
    td_log_debug("worker registered rank=%u host=%s pid=%lld", r->world_rank, m->public.host,
                 (long long)r->pid);
    if (g->state == TD_GROUP_LOST || g->state == TD_GROUP_NONE) {
        td_coord_set_state(g, TD_GROUP_LAUNCHING);
        g->load_start_ns = uv_hrtime();
    }
    if (td_group_all_attached(g))
        note_launch(g);
    if (td_group_all_attached(g) && c->served)
        td_group_plan_and_load(g);
}

/* What only rank 0 knows. */
static void note_gauges(struct group *g, const Tensord__Worker__V1__Heartbeat *h)
{
    g->n_running = h->n_running;
    g->n_waiting = h->n_waiting;
    g->kv_blocks_used = h->kv_blocks_used;
    g->kv_blocks_idle = h->kv_blocks_idle;
    g->kv_blocks_memory = h->kv_blocks_memory;
    g->kv_blocks_file = h->kv_blocks_file;
    g->kv_blocks_read = h->kv_blocks_read;
    g->kv_failed_reads = h->kv_failed_reads;
    g->draft_tokens = h->draft_tokens;
    g->right_drafts = h->right_drafts;
    g->device_draws = h->device_draws;
}

static void note_gpu(struct td_member *m, const Tensord__Worker__V1__Heartbeat *h)
{
    m->gpu.has = 0;
    for (size_t i = 0; i < h->n_gpu; i++)
        if ((uint32_t)h->gpu[i]->figure < TD_GPU_N_FIGURES) {
            m->gpu.has |= 1u << h->gpu[i]->figure;
            m->gpu.value[h->gpu[i]->figure] = h->gpu[i]->value;
        }
    if (m->loaded && !m->gpu_energy_before && td_gpuhealth_has(&m->gpu, TD_GPU_ENERGY))
        m->gpu_energy_before = m->gpu.value[TD_GPU_ENERGY];
}

static void on_heartbeat(struct member *m, const Tensord__Worker__V1__Heartbeat *h)
{
    m->public.exchanged_bytes = h->exchanged_bytes;
    m->public.n_steps = h->n_steps;
    m->public.wait_ns = h->wait_ns;
    m->public.step_ns = h->step_ns;
    m->public.gap_ns = h->gap_ns;
    m->public.n_gaps = h->n_gaps;
    m->public.n_generated = h->generated_tokens;
    note_gpu(&m->public, h);
    if (m->public.rank == 0)
        note_gauges(m->group, h);
    td_group_watch_steps(m, h);
}

static void on_tokens(struct group *g, const Tensord__Worker__V1__Tokens *t)
{
    struct td_token_event event;
    struct td_err error, err;

    for (size_t i = 0; i < t->n_events; i++)
        if (td_wire_token_read(t->events[i], &event, &error, &err))
            td_log_warn("token event dropped error=\"%s\"", err.cause);
        else
            td_job_token(g, &event);
    g->has_stepped = g->has_stepped || t->n_events > 0;
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

static void on_member_message(struct member *m, const td_wire_worker_message *message)
{
    struct group *g = m->group;
    struct td_err err;

    m->public.heartbeat_ns = uv_hrtime();
    td_vigil_heard(&g->vigil, &m->peer);
    switch (message->body_case) {
    case TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_LOAD_PROGRESS:
        m->public.load_done_bytes = message->load_progress->done_bytes;
        m->public.load_total_bytes = message->load_progress->total_bytes;
        break;
    case TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_READY:
        td_group_loaded(m, message->ready);
        break;
    case TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_HEARTBEAT:
        on_heartbeat(m, message->heartbeat);
        break;
    case TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_TOKENS:
        on_tokens(g, message->tokens);
        break;
    case TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_FAILED:
        td_err_set(&err, (enum td_status)message->failed->status, "rank %u on %s: %.*s",
                   m->public.rank, m->public.host,
                   (int)(message->failed->text.len < 240 ? message->failed->text.len : 240),
                   (const char *)message->failed->text.data);
        td_farewell_failed(g, m->public.rank, message->failed);
        td_group_lose(g, &err);
        break;
    case TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_FLIGHT:
        td_farewell_record(g, m->public.rank, message->flight);
        break;
    default:
        break;
    }
}

static bool is_last_word(struct td_coord *c, const struct td_grpc_stream *s,
                         const td_wire_worker_message *message)
{
    return td_farewell_message(c->current, s, message) ||
           (c->next && td_farewell_message(c->next, s, message)) ||
           (c->leaving && td_farewell_message(c->leaving, s, message));
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
    if (is_last_word(c, s, message)) {
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
        on_member_message(m, message);
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
    struct group *const all[] = {c->current, c->next, c->leaving};
    struct member *m = td_grpc_stream_user(s);
    struct group *g;
    struct td_err err;

    (void)code;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (all[i])
            td_farewell_closed(all[i], s);
    if (!m || m->stream != s)
        return;
    g = m->group;
    m->stream = NULL;
    m->public.attached = false;
    m->public.lost = g->state != TD_GROUP_NONE; /* else it was told to leave */
    if (g->state == TD_GROUP_NONE)
        return;
    td_err_set(&err, TD_PEER_LOST, "rank %u on %s (process %lld) closed its control stream",
               m->public.rank, m->public.host, (long long)m->public.pid);
    td_group_blame(m, false);
    td_farewell_vanished(g, m->public.rank);
    td_group_lose(g, &err);
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
