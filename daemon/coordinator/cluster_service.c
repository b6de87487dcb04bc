#include "daemon/coordinator/cluster_service.h"

#include "daemon/coordinator/coordinator.h"

#include "proto/cluster.pb-c.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_MESSAGE_BYTES = 64 * 1024,
    DEFAULT_BLOCK_TOKENS = 16,
    DEFAULT_SEQS = 16,
    DEFAULT_BATCH = 512
};

struct td_cluster_service {
    struct td_coord *coord;
};

/* Answers a unary call, whichever way it went. */
static void answer(struct td_grpc_stream *s, enum td_status status, const ProtobufCMessage *reply,
                   struct td_err *err)
{
    struct td_bytes packed = {0};
    if (status == TD_OK) {
        status = td_rpc_pack(reply, &packed, err);
    }
    if (status == TD_OK) {
        status = td_grpc_stream_send(s, td_bytes_str(&packed), err);
    }
    if (status == TD_OK) {
        td_grpc_stream_finish(s, TD_GRPC_OK, TD_STR(""));
    } else {
        td_grpc_stream_fail(s, err);
    }
    td_bytes_deinit(&packed);
}

static enum td_status unpack(enum td_rpc_id id, struct td_grpc_stream *s, struct td_str message,
                             ProtobufCMessage **request, struct td_err *err)
{
    td_grpc_stream_ack(s, message.len);
    return td_rpc_unpack(td_rpc_method(id)->request, message, MAX_MESSAGE_BYTES, request, err);
}

/* ---- Status ---- */

static Tensord__V1__GroupState group_state(enum td_group_state state)
{
    switch (state) {
    case TD_GROUP_NONE:
        return TENSORD__V1__GROUP_STATE__GROUP_STATE_NONE;
    case TD_GROUP_LAUNCHING:
        return TENSORD__V1__GROUP_STATE__GROUP_STATE_LAUNCHING;
    case TD_GROUP_LOADING:
        return TENSORD__V1__GROUP_STATE__GROUP_STATE_LOADING;
    case TD_GROUP_READY:
        return TENSORD__V1__GROUP_STATE__GROUP_STATE_READY;
    case TD_GROUP_DRAINING:
        return TENSORD__V1__GROUP_STATE__GROUP_STATE_DRAINING;
    case TD_GROUP_LOST:
        return TENSORD__V1__GROUP_STATE__GROUP_STATE_LOST;
    case TD_GROUP_FAILED:
        break;
    }
    return TENSORD__V1__GROUP_STATE__GROUP_STATE_FAILED;
}

static Tensord__V1__RankState rank_state(const struct td_member *m)
{
    return m->lost                   ? TENSORD__V1__RANK_STATE__RANK_STATE_LOST
           : !m->attached            ? TENSORD__V1__RANK_STATE__RANK_STATE_ABSENT
           : m->loaded               ? TENSORD__V1__RANK_STATE__RANK_STATE_READY
           : m->load_total_bytes > 0 ? TENSORD__V1__RANK_STATE__RANK_STATE_LOADING
                                     : TENSORD__V1__RANK_STATE__RANK_STATE_REGISTERED;
}

static void fill_rank(const struct td_coord_status *st, uint32_t i, uint64_t now_ns,
                      Tensord__V1__RankStatus *r)
{
    const struct td_member *m = &st->members[i];
    *r = (Tensord__V1__RankStatus)TENSORD__V1__RANK_STATUS__INIT;
    uint64_t held = m->weight_bytes + m->kv_bytes;
    r->rank = m->rank;
    r->host = (char *)m->host;
    r->pid = m->pid;
    r->device = (char *)m->device;
    r->state = rank_state(m);
    r->memory_bytes = m->memory_bytes;
    r->memory_free_bytes = m->memory_bytes > held ? m->memory_bytes - held : 0;
    r->weight_bytes = m->weight_bytes;
    r->kv_bytes = m->kv_bytes;
    r->resident_bytes = m->resident_bytes;
    r->loaded_bytes = m->load_done_bytes;
    r->load_total_bytes = m->load_total_bytes;
    r->exchanged_bytes = m->exchanged_bytes;
    r->n_steps = m->n_steps;
    r->wait_ns = m->wait_ns;
    r->heartbeat_age_ns =
        m->heartbeat_ns != 0 && now_ns > m->heartbeat_ns ? now_ns - m->heartbeat_ns : 0;
    r->generation = st->generation;
    r->numerics_class = (char *)m->numerics;
    if (st->plan != NULL && i < st->plan->n_ranks) {
        const struct td_plan_rank *p = &st->plan->rank[i];
        r->stage = p->stage;
        r->tp_rank = p->tp_index;
        r->first_layer = p->layer_begin;
        r->n_layers = p->layer_end - p->layer_begin;
    }
}

static void fill_group(const struct td_coord_status *st, Tensord__V1__GroupStatus *g,
                       Tensord__V1__Layout *layout)
{
    g->generation = st->generation;
    g->state = group_state(st->state);
    g->n_running = st->n_running;
    g->n_waiting = st->n_waiting;
    g->kv_blocks_used = st->kv_blocks_used;
    g->prompt_tokens = st->prompt_tokens;
    g->generated_tokens = st->generated_tokens;
    g->last_error = (char *)st->last_error;
    g->n_restarts = st->n_restarts;
    if (st->served != NULL) {
        g->model = st->served->names[0];
        g->model_path = st->served->path;
        g->model_hash = (char *)st->served->hash;
    }
    if (st->n_ranks > 0) {
        g->numerics_class = (char *)st->members[0].numerics;
        g->transport = (char *)st->members[0].transport;
        g->n_steps = st->members[0].n_steps;
    }
    if (st->plan != NULL) {
        layout->tp = st->plan->tp;
        layout->pp = st->plan->pp;
        layout->ep = layout->cp = layout->dp = 1;
        g->layout = layout;
        g->kv_blocks = st->plan->n_blocks;
        g->kv_block_tokens = st->plan->block_tokens;
        g->max_model_len = st->plan->max_model_len;
        g->max_num_seqs = st->plan->max_num_seqs;
    }
}

static Tensord__V1__DrainStatus *fill_drain(const struct td_coord_status *st,
                                            Tensord__V1__DrainStatus *d)
{
    d->stops = st->drain.is_last;
    d->over = st->drain.is_over;
    d->n_open = st->n_open;
    d->n_finished = st->drain.n_finished;
    d->n_cancelled = st->drain.n_cancelled;
    if (st->drain.has_limit) {
        d->has_left_ns_case = TENSORD__V1__DRAIN_STATUS__HAS_LEFT_NS_LEFT_NS;
        d->left_ns = st->drain.left_ns;
    }
    return d;
}

static Tensord__V1__RollStatus *fill_roll(const struct td_coord_roll_status *s,
                                          Tensord__V1__RollStatus *r)
{
    static const Tensord__V1__RollPhase phases[] = {
        TENSORD__V1__ROLL_PHASE__ROLL_PHASE_NONE, TENSORD__V1__ROLL_PHASE__ROLL_PHASE_COMING,
        TENSORD__V1__ROLL_PHASE__ROLL_PHASE_LEAVING, TENSORD__V1__ROLL_PHASE__ROLL_PHASE_DONE,
        TENSORD__V1__ROLL_PHASE__ROLL_PHASE_FAILED};
    r->phase = phases[s->phase];
    r->number = s->number;
    r->old = s->old;
    r->young = s->young;
    r->has_taken_over = s->has_taken_over;
    r->n_left = s->n_left;
    r->left_ns = s->left_ns;
    r->n_moved = s->n_moved;
    r->n_finished = s->n_finished;
    r->n_replayed = s->n_replayed;
    r->load_ns = s->load_ns;
    r->error = (char *)s->error;
    return r;
}

/* One group with its ranks, as they stand in a message. */
struct group_message {
    Tensord__V1__GroupStatus group;
    Tensord__V1__Layout layout;
    Tensord__V1__RankStatus *ranks, **list;
};

static enum td_status fill_group_message(const struct td_coord_status *st, uint32_t id,
                                         uint64_t now_ns, struct group_message *g,
                                         struct td_err *err)
{
    static const Tensord__V1__GroupRole roles[] = {TENSORD__V1__GROUP_ROLE__GROUP_ROLE_CURRENT,
                                                   TENSORD__V1__GROUP_ROLE__GROUP_ROLE_NEXT,
                                                   TENSORD__V1__GROUP_ROLE__GROUP_ROLE_LEAVING};
    g->group = (Tensord__V1__GroupStatus)TENSORD__V1__GROUP_STATUS__INIT;
    g->layout = (Tensord__V1__Layout)TENSORD__V1__LAYOUT__INIT;
    g->ranks = calloc(st->n_ranks + 1, sizeof(*g->ranks));
    g->list = calloc(st->n_ranks + 1, sizeof(*g->list));
    if (g->ranks == NULL || g->list == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for %u ranks", st->n_ranks);
    }
    for (uint32_t i = 0; i < st->n_ranks; i++) {
        fill_rank(st, i, now_ns, &g->ranks[i]);
        g->list[i] = &g->ranks[i];
    }
    fill_group(st, &g->group, &g->layout);
    g->group.group_id = id;
    g->group.role = roles[st->role];
    g->group.n_open = st->n_here;
    g->group.n_ranks = st->n_ranks;
    g->group.ranks = g->list;
    return TD_OK;
}

static void on_status(void *user, struct td_grpc_stream *s, struct td_str message)
{
    struct td_cluster_service *service = user;
    Tensord__V1__StatusResponse m = TENSORD__V1__STATUS_RESPONSE__INIT;
    Tensord__V1__DrainStatus drain = TENSORD__V1__DRAIN_STATUS__INIT;
    Tensord__V1__RollStatus roll = TENSORD__V1__ROLL_STATUS__INIT;
    struct group_message both[2] = {0};
    Tensord__V1__GroupStatus *groups[] = {&both[0].group, &both[1].group};
    struct td_coord_status st;
    struct td_coord_status other;
    struct td_err err = {0};
    uint64_t now_ns = uv_hrtime();
    td_grpc_stream_ack(s, message.len);
    td_coord_status(service->coord, &st);
    bool two = td_coord_status_other(service->coord, &other);
    enum td_status status = fill_group_message(&st, 0, now_ns, &both[0], &err);
    if (status == TD_OK && two) {
        status = fill_group_message(&other, 1, now_ns, &both[1], &err);
    }
    m.version = TD_VERSION;
    m.uptime_ns = now_ns - st.start_ns;
    m.n_groups = two ? 2 : 1;
    m.groups = groups;
    m.n_requests = st.n_requests;
    m.n_requests_failed = st.n_failed;
    m.ready = td_coord_is_well(service->coord);
    m.drain = st.drain.is_on ? fill_drain(&st, &drain) : NULL;
    m.roll = st.roll.phase != TD_ROLL_NONE ? fill_roll(&st.roll, &roll) : NULL;
    answer(s, status, &m.base, &err);
    for (int i = 0; i < 2; i++) {
        free(both[i].ranks);
        free(both[i].list);
    }
}

/* ---- Plan ---- */

/* `auto` as the command line has it: F32 for F32 models, F16 for others. */
static enum td_status choose_kv_dtype(const Tensord__V1__PlanRequest *m,
                                      const struct td_coord_status *st, enum td_dtype *out,
                                      struct td_err *err)
{
    if (m->kv_dtype[0] != '\0' && strcmp(m->kv_dtype, "auto") != 0) {
        return td_dtype_from_name(m->kv_dtype, out) &&
                       (*out == TD_F32 || *out == TD_F16 || *out == TD_BF16 || *out == TD_F8_E4M3 ||
                        *out == TD_Q8_0 || *out == TD_Q4_0)
                   ? TD_OK
                   : td_err_set(
                         err, TD_INVALID,
                         "kv_dtype is '%.32s', expected auto, f32, bf16, fp16, fp8, q8_0 or q4_0",
                         m->kv_dtype);
    }
    enum td_dtype model = st->served != NULL ? st->served->spec->dtype : TD_F16;
    if (m->model_path[0] != '\0') {
        struct td_checkpoint *ck;
        enum td_status status = td_checkpoint_open(m->model_path, &ck, err);
        if (status != TD_OK) {
            return status;
        }
        model = td_checkpoint_spec(ck)->dtype;
        td_checkpoint_close(ck);
    }
    *out = model == TD_F32 ? TD_F32 : TD_F16;
    return TD_OK;
}

static enum td_status make_plan(struct td_coord *coord, const Tensord__V1__PlanRequest *m,
                                struct td_bytes *text, struct td_bytes *json, struct td_err *err)
{
    struct td_coord_status st;
    td_coord_status(coord, &st);
    uint32_t n_ranks = m->n_ranks != 0 ? m->n_ranks : (uint32_t)m->n_memory_bytes;
    struct td_plan_params wish = {
        .n_ranks = n_ranks,
        .tp = m->tp,
        .pp = m->pp,
        .memory_bytes = m->n_memory_bytes > 0 ? m->memory_bytes : NULL,
        .block_tokens = st.plan != NULL ? st.plan->block_tokens : DEFAULT_BLOCK_TOKENS,
        .max_model_len = m->max_model_len,
        .max_num_seqs = m->max_num_seqs != 0 ? m->max_num_seqs
                        : st.plan != NULL    ? st.plan->max_num_seqs
                                             : DEFAULT_SEQS,
        .max_batched_tokens = st.plan != NULL ? st.plan->max_batched_tokens : DEFAULT_BATCH,
    };
    if (n_ranks > TD_PLAN_MAX_RANKS ||
        (uint64_t)m->tp * (m->pp != 0 ? m->pp : 1) > TD_PLAN_MAX_RANKS) {
        return td_err_set(err, TD_INVALID,
                          "n_ranks is %u, tp %u and pp %u: expected at most %d ranks", n_ranks,
                          m->tp, m->pp, TD_PLAN_MAX_RANKS);
    }
    if (m->n_memory_bytes > 0 && m->n_memory_bytes != n_ranks) {
        return td_err_set(err, TD_INVALID, "memory_bytes has %zu numbers, the plan has %u ranks",
                          m->n_memory_bytes, n_ranks);
    }
    enum td_status status = choose_kv_dtype(m, &st, &wish.kv_dtype, err);
    return status == TD_OK ? td_coord_plan(coord, m->model_path, n_ranks, &wish, text, json, err)
                           : status;
}

static void on_plan(void *user, struct td_grpc_stream *s, struct td_str message)
{
    struct td_cluster_service *service = user;
    Tensord__V1__PlanResponse reply = TENSORD__V1__PLAN_RESPONSE__INIT;
    ProtobufCMessage *request = NULL;
    struct td_bytes text = {0};
    struct td_bytes json = {0};
    struct td_err err = {0};
    enum td_status status = unpack(TD_RPC_PLAN, s, message, &request, &err);
    if (status == TD_OK) {
        status = make_plan(service->coord, (Tensord__V1__PlanRequest *)(void *)request, &text,
                           &json, &err);
    }
    reply.text = td_rpc_data(td_bytes_str(&text));
    reply.json = td_rpc_data(td_bytes_str(&json));
    answer(s, status, &reply.base, &err);
    td_rpc_free(request);
    td_bytes_deinit(&text);
    td_bytes_deinit(&json);
}

/* ---- LoadModel, UnloadModel, Drain, Replace: answered when it is done ---- */

struct action {
    struct td_cluster_service *service;
    struct td_grpc_stream *s; /* NULL: the client is gone, the action goes on */
    bool running;
};

static enum td_status on_action_call(void *user, struct td_grpc_stream *s, struct td_err *err)
{
    struct action *a = calloc(1, sizeof(*a));
    if (a == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for a call");
    }
    a->service = user;
    a->s = s;
    td_grpc_stream_set_user(s, a);
    return TD_OK;
}

static void on_action_close(void *user, struct td_grpc_stream *s, enum td_grpc_code code)
{
    struct action *a = td_grpc_stream_user(s);
    (void)user;
    (void)code;
    a->s = NULL;
    if (!a->running) {
        free(a);
    }
}

/* The action has ended: answers and frees when nobody waits. */
static void end_action(struct action *a, enum td_status status, const ProtobufCMessage *reply,
                       const struct td_err *cause)
{
    struct td_err err = cause != NULL ? *cause : (struct td_err){.status = status};
    a->running = false;
    if (a->s == NULL) {
        free(a);
        return;
    }
    answer(a->s, status, reply, &err); /* on_close follows */
}

static void on_loaded(enum td_status status, const struct td_err *err, uint64_t load_ns, uint64_t b,
                      void *user)
{
    struct action *a = user;
    Tensord__V1__LoadModelResponse reply = TENSORD__V1__LOAD_MODEL_RESPONSE__INIT;
    struct td_coord_status st;
    (void)b;
    td_coord_status(a->service->coord, &st);
    if (st.served != NULL) {
        reply.model = st.served->names[0];
    }
    reply.generation = st.generation;
    reply.load_ns = load_ns;
    end_action(a, status, &reply.base, err);
}

static void on_load(void *user, struct td_grpc_stream *s, struct td_str message)
{
    struct td_cluster_service *service = user;
    struct action *a = td_grpc_stream_user(s);
    ProtobufCMessage *request;
    struct td_err err = {0};
    if (unpack(TD_RPC_LOAD_MODEL, s, message, &request, &err) != TD_OK) {
        td_grpc_stream_fail(s, &err);
        return;
    }
    const Tensord__V1__LoadModelRequest *m = (const void *)request;
    const struct td_coord_load load = {
        .path = m->model_path,
        .served_name = m->served_name[0] != '\0' ? m->served_name : NULL,
        .tp = m->tp,
        .pp = m->pp,
        .max_model_len = m->max_model_len,
        .max_num_seqs = m->max_num_seqs,
        .kv_dtype = m->kv_dtype,
        .draft_path = m->speculative_model,
    };
    a->running = true;
    td_coord_load_model(service->coord, &load, on_loaded, a);
    td_rpc_free(request);
}

static void on_unloaded(enum td_status status, const struct td_err *err, uint64_t n_cancelled,
                        uint64_t b, void *user)
{
    Tensord__V1__UnloadModelResponse reply = TENSORD__V1__UNLOAD_MODEL_RESPONSE__INIT;
    (void)b;
    reply.n_cancelled = n_cancelled;
    end_action(user, status, &reply.base, err);
}

static void on_unload(void *user, struct td_grpc_stream *s, struct td_str message)
{
    struct td_cluster_service *service = user;
    struct action *a = td_grpc_stream_user(s);
    ProtobufCMessage *request;
    struct td_err err = {0};
    if (unpack(TD_RPC_UNLOAD_MODEL, s, message, &request, &err) != TD_OK) {
        td_grpc_stream_fail(s, &err);
        return;
    }
    a->running = true;
    td_coord_unload_model(service->coord,
                          td_str_from(((Tensord__V1__UnloadModelRequest *)(void *)request)->model),
                          on_unloaded, a);
    td_rpc_free(request);
}

static void on_drained(enum td_status status, const struct td_err *err, uint64_t n_finished,
                       uint64_t n_cancelled, void *user)
{
    Tensord__V1__DrainResponse reply = TENSORD__V1__DRAIN_RESPONSE__INIT;
    reply.n_finished = n_finished;
    reply.n_cancelled = n_cancelled;
    end_action(user, status, &reply.base, err);
}

static void on_drain_request(void *user, struct td_grpc_stream *s, struct td_str message)
{
    struct td_cluster_service *service = user;
    struct action *a = td_grpc_stream_user(s);
    ProtobufCMessage *request;
    struct td_err err = {0};
    if (unpack(TD_RPC_DRAIN, s, message, &request, &err) != TD_OK) {
        td_grpc_stream_fail(s, &err);
        return;
    }
    a->running = true;
    td_coord_drain(service->coord, ((Tensord__V1__DrainRequest *)(void *)request)->timeout_ns,
                   on_drained, a);
    td_rpc_free(request);
}

static void on_replaced(enum td_status status, const struct td_err *err, uint64_t generation,
                        uint64_t load_ns, void *user)
{
    struct action *a = user;
    Tensord__V1__ReplaceResponse reply = TENSORD__V1__REPLACE_RESPONSE__INIT;
    Tensord__V1__RollStatus roll = TENSORD__V1__ROLL_STATUS__INIT;
    struct td_coord_status st;
    (void)generation;
    (void)load_ns;
    td_coord_status(a->service->coord, &st);
    reply.roll = fill_roll(&st.roll, &roll);
    end_action(a, status, &reply.base, err);
}

static void on_replace(void *user, struct td_grpc_stream *s, struct td_str message)
{
    struct td_cluster_service *service = user;
    struct action *a = td_grpc_stream_user(s);
    ProtobufCMessage *request;
    struct td_err err = {0};
    enum td_status status = unpack(TD_RPC_REPLACE, s, message, &request, &err);
    if (status == TD_OK) {
        const Tensord__V1__ReplaceRequest *m = (const void *)request;
        bool has =
            m->has_timeout_ns_case == TENSORD__V1__REPLACE_REQUEST__HAS_TIMEOUT_NS_TIMEOUT_NS;
        status = td_coord_replace(service->coord, has ? m->timeout_ns : TD_COORD_ROLL_NS, m->wait,
                                  on_replaced, a, &err);
        td_rpc_free(request);
    }
    a->running = status == TD_OK;
    if (status != TD_OK) {
        td_grpc_stream_fail(s, &err);
    }
}

static void on_cancel_drain(void *user, struct td_grpc_stream *s, struct td_str message)
{
    struct td_cluster_service *service = user;
    Tensord__V1__CancelDrainResponse reply = TENSORD__V1__CANCEL_DRAIN_RESPONSE__INIT;
    struct td_err err = {0};
    td_grpc_stream_ack(s, message.len);
    enum td_status status = td_coord_drain_cancel(service->coord, &err);
    answer(s, status, &reply.base, &err);
}

/* ---- The service ---- */

enum td_status td_cluster_service_open(struct td_coord *coord, struct td_grpc_serve_table *table,
                                       const struct td_auth *auth,
                                       struct td_cluster_service **service, struct td_err *err)
{
    struct td_cluster_service *s = calloc(1, sizeof(*s));
    if (s == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for the Cluster service");
    }
    s->coord = coord;
    struct td_grpc_serve_handler handler = {.auth = auth, .user = s, .on_message = on_status};
    td_grpc_serve_add(table, TD_RPC_STATUS, &handler);
    handler.role = TD_AUTH_OPERATOR;
    handler.on_message = on_plan;
    td_grpc_serve_add(table, TD_RPC_PLAN, &handler);
    handler.on_message = on_cancel_drain;
    td_grpc_serve_add(table, TD_RPC_CANCEL_DRAIN, &handler);
    handler.on_call = on_action_call;
    handler.on_close = on_action_close;
    handler.on_message = on_load;
    td_grpc_serve_add(table, TD_RPC_LOAD_MODEL, &handler);
    handler.on_message = on_unload;
    td_grpc_serve_add(table, TD_RPC_UNLOAD_MODEL, &handler);
    handler.on_message = on_drain_request;
    td_grpc_serve_add(table, TD_RPC_DRAIN, &handler);
    handler.on_message = on_replace;
    td_grpc_serve_add(table, TD_RPC_REPLACE, &handler);
    *service = s;
    return TD_OK;
}

void td_cluster_service_close(struct td_cluster_service *service)
{
    free(service);
}
