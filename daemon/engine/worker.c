#include "daemon/engine/worker.h"

#include "daemon/api/tls.h"
#include "daemon/engine/gpuwatch.h"
#include "daemon/engine/steplimit.h"
#include "daemon/engine/vigil.h"
#include "daemon/engine/wire.h"
#include "daemon/engine/wireflight.h"
#include "daemon/log.h"
#include "kernels/base/clock.h"
#include "proto/grpc.h"
#include "proto/rpc.h"

#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    RETRY_MS = 200,
    READ_BYTES = 65536,
    PLAIN_BYTES = 16384,
    MAX_EVENTS = 256,
    LAST_WORDS_MS = 20
};

/* Until the coordinator grants one of its own. */
static const uint64_t FIRST_LEASE_NS = 10000000000u;

struct td_worker {
    struct td_worker_params p;
    td_worker_end_fn *on_end;
    void *user;
    struct td_compute *compute;
    struct td_gpuwatch *gpu;       /* NULL: a CPU, or nobody has registered yet */
    struct td_bytes authorization; /* "Bearer KEY" */
    struct sockaddr_storage address;
    char target[300]; /* "host:port" */

    uv_tcp_t tcp;
    uv_timer_t timer; /* heartbeat; before that, the next try to connect */
    uv_async_t wake;  /* from the compute thread */
    uv_connect_t connect;
    int n_handles; /* open ones, the watch over a GPU among them */
    bool tcp_open, connected, ending;
    uint64_t start_ns;
    char read_buffer[READ_BYTES];

    struct td_tls_session *tls; /* NULL: plaintext */
    struct td_grpc *grpc;
    struct td_grpc_stream *stream;
    uint64_t cookie;
    uint32_t group_id, model_id;
    bool device_ready, registered, leaving;
    struct td_vigil vigil; /* over the coordinator, while there is a lease */
    struct td_vigil_peer coordinator;
    struct td_whereabouts_watch watch; /* over the compute thread */
    uint64_t
        called_from_ns; /* awake time since which it rests although it is called; 0: it does not */
    struct td_arena arena; /* one message */
    struct td_bytes packed;
    struct td_compute_load *assigned;
    char model_hash[33];

    enum td_status end_status;
    struct td_err end_err;
};

struct write_req {
    uv_write_t req;
    char data[];
};

static void finish(struct td_worker *w, enum td_status status, const struct td_err *err);

/* From inside a callback of the gRPC connection, which must not be closed there: the next heartbeat does. */
static void give_up(struct td_worker *w, const struct td_err *err)
{
    if (w->leaving)
        return;
    w->leaving = true;
    w->end_status = err->status;
    w->end_err = *err;
}

/* ---- bytes ---- */

static void on_written(uv_write_t *req, int status)
{
    struct td_worker *w = req->data;

    free(req);
    if (status < 0 && status != UV_ECANCELED && !w->ending) {
        td_err_set(&w->end_err, TD_PEER_LOST, "writing to the coordinator at %s: %s", w->target,
                   uv_strerror(status));
        finish(w, TD_PEER_LOST, &w->end_err);
    }
}

/* Up to READ_BYTES for the socket: what gRPC has, or its ciphertext and that of the handshake. */
static size_t pull(struct td_worker *w, char *out)
{
    char plain[PLAIN_BYTES];
    size_t n;

    if (!w->tls)
        return td_grpc_pull(w->grpc, out, READ_BYTES);
    n = td_tls_session_pull(w->tls, out, READ_BYTES);
    while (n == 0 && td_tls_session_is_open(w->tls)) {
        size_t n_plain = td_grpc_pull(w->grpc, plain, sizeof plain);

        if (n_plain == 0 || td_tls_session_write(w->tls, plain, n_plain, NULL))
            break;
        n = td_tls_session_pull(w->tls, out, READ_BYTES);
    }
    return n;
}

static void pump(struct td_worker *w)
{
    while (w->connected && !w->ending && (w->tls || td_grpc_wants_write(w->grpc))) {
        struct write_req *req = malloc(sizeof *req + READ_BYTES);
        uv_buf_t buf;
        struct td_err err;
        size_t n;
        int rc;

        if (!req)
            return; /* the next heartbeat tries again */
        n = pull(w, req->data);
        req->req.data = w;
        buf = uv_buf_init(req->data, (unsigned)n);
        rc = n ? uv_write(&req->req, (uv_stream_t *)&w->tcp, &buf, 1, on_written) : 0;
        if (n && !rc)
            continue;
        free(req);
        if (rc) {
            td_err_set(&err, TD_PEER_LOST, "writing to the coordinator at %s: %s", w->target,
                       uv_strerror(rc));
            give_up(w, &err);
        }
        return;
    }
}

static void send_message(struct td_worker *w, td_wire_worker_message *m)
{
    struct td_err err;

    m->group_id = w->group_id;
    m->generation = w->p.generation;
    m->model_id = w->model_id;
    m->cookie = w->cookie;
    if (w->stream && (td_rpc_pack(&m->base, &w->packed, &err) ||
                      td_grpc_stream_send(w->stream, td_bytes_str(&w->packed), &err)))
        give_up(w, &err);
    td_arena_rewind(&w->arena);
    pump(w);
}

#define MESSAGE(name) td_wire_worker_message name = TENSORD__WORKER__V1__WORKER_MESSAGE__INIT

/* ---- the end ---- */

static void on_one_closed(void *user)
{
    struct td_worker *w = user;

    if (--w->n_handles == 0)
        w->on_end(w->end_status, &w->end_err, w->user);
}

static void on_closed(uv_handle_t *handle)
{
    on_one_closed(handle->data);
}

static void finish(struct td_worker *w, enum td_status status, const struct td_err *err)
{
    if (w->ending)
        return;
    w->ending = true;
    w->end_status = status;
    if (err && err != &w->end_err)
        w->end_err = *err;
    if (status)
        td_compute_abort(w->compute);
    td_grpc_close(w->grpc); /* ends the stream */
    w->grpc = NULL;
    w->stream = NULL;
    if (w->tcp_open)
        uv_close((uv_handle_t *)&w->tcp, on_closed);
    uv_close((uv_handle_t *)&w->timer, on_closed);
    uv_close((uv_handle_t *)&w->wake, on_closed);
    if (w->gpu)
        td_gpuwatch_close(w->gpu, on_one_closed, w);
}

/* ---- from the compute thread ---- */

static void register_now(struct td_worker *w)
{
    struct td_node_facts f;
    Tensord__Worker__V1__Register r = TENSORD__WORKER__V1__REGISTER__INIT;
    char *numerics[] = {f.numerics};
    MESSAGE(m);

    if (!w->device_ready || !w->stream || w->registered)
        return;
    td_compute_facts(w->compute, &f);
    r.version = f.version;
    r.world_rank = td_comm_rank(w->p.world);
    r.world_size = td_comm_size(w->p.world);
    r.host = f.host;
    r.pid = f.pid;
    r.device_kind = td_wire_device_make(f.device_kind);
    r.device_name = f.device;
    r.bus_id = f.bus_id;
    r.memory_total_bytes = f.memory_bytes;
    r.memory_free_bytes = f.memory_bytes;
    r.n_cores = f.n_cores;
    r.n_numerics_classes = 1;
    r.numerics_classes = numerics;
    m.body_case = TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_REGISTER;
    m.register_ = &r;
    w->registered = true;
    if (f.bus_id[0] && !w->gpu && !td_gpuwatch_open(w->p.loop, f.bus_id, &w->gpu, NULL))
        w->n_handles++;
    td_vigil_init(&w->vigil, FIRST_LEASE_NS, uv_hrtime());
    td_vigil_heard(&w->vigil, &w->coordinator);
    send_message(w, &m);
}

static uint64_t resident_bytes(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    unsigned long long size = 0, resident = 0;

    if (!f)
        return 0;
    if (fscanf(f, "%llu %llu", &size, &resident) != 2)
        resident = 0;
    fclose(f);
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void tell_ready(struct td_worker *w)
{
    Tensord__Worker__V1__Ready ready = TENSORD__WORKER__V1__READY__INIT;
    struct td_compute_gauges g;
    struct td_node_facts f;
    MESSAGE(m);

    td_compute_gauges(w->compute, &g);
    td_compute_facts(w->compute, &f);
    ready.weight_bytes = g.weight_bytes;
    ready.kv_bytes = g.kv_bytes;
    ready.kv_blocks = g.kv_blocks;
    ready.kv_block_tokens = g.kv_block_tokens;
    ready.max_model_len = g.max_model_len;
    ready.resident_bytes = resident_bytes();
    ready.load_ns = g.load_ns;
    ready.stage = g.place.stage;
    ready.tp_rank = g.place.tp_index;
    ready.first_layer = g.place.layer_begin;
    ready.n_layers = g.place.layer_end - g.place.layer_begin;
    ready.transport = (char *)g.transport;
    ready.model_hash = f.model_hash;
    ready.numerics_class = f.numerics;
    m.body_case = TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_READY;
    m.ready = &ready;
    send_message(w, &m);
}

static void tell_progress(struct td_worker *w, const struct td_compute_event *e)
{
    Tensord__Worker__V1__LoadProgress p = TENSORD__WORKER__V1__LOAD_PROGRESS__INIT;
    MESSAGE(m);

    p.phase = TENSORD__WORKER__V1__LOAD_PHASE__LOAD_PHASE_WEIGHTS;
    p.done_bytes = e->done_bytes;
    p.total_bytes = e->total_bytes;
    m.body_case = TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_LOAD_PROGRESS;
    m.load_progress = &p;
    send_message(w, &m);
}

/* What the compute thread is at. One that is called and rests on hangs. */
static bool look(struct td_worker *w, struct td_whereabouts *at)
{
    uint64_t awake_ns = w->vigil.awake_ns;

    if (!td_whereabouts_look(&w->watch, td_compute_recorder(w->compute), w->p.world, awake_ns, at))
        return false;
    if (at->stage != TD_RECORDER_REST || !td_compute_is_called(w->compute)) {
        w->called_from_ns = 0;
        return true;
    }
    if (!w->called_from_ns)
        w->called_from_ns = awake_ns;
    at->elapsed_ns = awake_ns - w->called_from_ns;
    at->limit_ns = TD_STEPLIMIT_LEAST_NS;
    return true;
}

/* What the recorder has, whatever the compute thread does. Without memory, or when the thread is in the way, it is left out. */
static void tell_flight(struct td_worker *w)
{
    const struct td_recorder *recorder = td_compute_recorder(w->compute);
    struct td_recorder_step *steps = malloc(TD_RECORDER_STEPS * sizeof *steps);
    struct td_whereabouts at;
    MESSAGE(m);

    td_vigil_look(&w->vigil, uv_hrtime());
    if (steps && td_whereabouts_look(&w->watch, recorder, w->p.world, w->vigil.awake_ns, &at)) {
        uint32_t n = td_recorder_steps(recorder, steps, TD_RECORDER_STEPS);

        m.body_case = TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_FLIGHT;
        m.flight = td_wireflight_make(&at, td_clock_now_ns(), steps, n, &w->arena);
        if (m.flight)
            send_message(w, &m);
    }
    free(steps);
}

/* The record goes first: Failed is the last that the coordinator reads. */
static void tell_failed(struct td_worker *w, const struct td_err *err)
{
    Tensord__Worker__V1__Failed failed = TENSORD__WORKER__V1__FAILED__INIT;
    MESSAGE(m);

    tell_flight(w);
    failed.status = (uint32_t)err->status;
    failed.text = td_rpc_data(td_str_from(err->cause));
    failed.context = td_rpc_data(td_str_from(err->context));
    m.body_case = TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_FAILED;
    m.failed = &failed;
    send_message(w, &m);
}

static void tell_tokens(struct td_worker *w, Tensord__Worker__V1__TokenEvent **events, size_t n)
{
    Tensord__Worker__V1__Tokens tokens = TENSORD__WORKER__V1__TOKENS__INIT;
    MESSAGE(m);

    if (n == 0)
        return;
    tokens.n_events = n;
    tokens.events = events;
    m.body_case = TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_TOKENS;
    m.tokens = &tokens;
    send_message(w, &m);
}

static void tell_bye(struct td_worker *w)
{
    Tensord__Worker__V1__Bye bye = TENSORD__WORKER__V1__BYE__INIT;
    MESSAGE(m);

    bye.reason = (char *)"shutdown";
    m.body_case = TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_BYE;
    m.bye = &bye;
    send_message(w, &m);
    if (w->stream)
        td_grpc_stream_half_close(w->stream);
    pump(w);
}

/* Takes what the compute thread has to say; tokens of one turn travel together. */
static void on_wake(uv_async_t *async)
{
    struct td_worker *w = async->data;
    Tensord__Worker__V1__TokenEvent *tokens[MAX_EVENTS];
    struct td_compute_event e;
    size_t n = 0;

    while (!w->ending && td_compute_take(w->compute, &e)) {
        if (e.kind == TD_COMPUTE_REFUSED) {
            e.token = (struct td_token_event){
                .request_id = e.request_id, .finish = TD_FINISH_ERROR, .error = &e.err};
            e.kind = TD_COMPUTE_TOKEN;
        }
        if (e.kind == TD_COMPUTE_TOKEN) {
            tokens[n] = td_wire_token_make(&e.token, &w->arena);
            if (!tokens[n]) { /* a token that is not told would leave its request open for ever */
                td_err_set(&e.err, TD_NO_MEMORY, "no memory for the tokens of a step");
                give_up(w, &e.err);
                break;
            }
            n++;
            if (n == MAX_EVENTS) {
                tell_tokens(w, tokens, n);
                n = 0;
            }
            continue;
        }
        tell_tokens(w, tokens, n);
        n = 0;
        switch (e.kind) {
        case TD_COMPUTE_DEVICE:
            w->device_ready = true;
            register_now(w);
            break;
        case TD_COMPUTE_PROGRESS:
            tell_progress(w, &e);
            break;
        case TD_COMPUTE_LOADED:
            tell_ready(w);
            break;
        case TD_COMPUTE_FAILED:
            tell_failed(w, &e.err);
            give_up(w, &e.err);
            break;
        case TD_COMPUTE_EXITED:
            w->leaving = true;
            tell_bye(w);
            break;
        default:
            break;
        }
    }
    if (!w->ending)
        tell_tokens(w, tokens, n);
}

static void notify(void *user)
{
    uv_async_send(&((struct td_worker *)user)->wake);
}

/* Figures that the GPU tells; returns how many. */
static size_t read_gpu(struct td_worker *w, Tensord__Worker__V1__GpuReading *readings,
                       Tensord__Worker__V1__GpuReading **list)
{
    const struct td_gpuhealth_sample *sample = td_gpuwatch_look(w->gpu);
    size_t n = 0;

    for (uint32_t i = 0; i < TD_GPU_N_FIGURES; i++) {
        if (!td_gpuhealth_has(sample, (enum td_gpu_figure)i))
            continue;
        readings[n] = (Tensord__Worker__V1__GpuReading)TENSORD__WORKER__V1__GPU_READING__INIT;
        readings[n].figure = (Tensord__Worker__V1__GpuFigure)i; /* numbered alike */
        readings[n].value = sample->value[i];
        list[n] = &readings[n];
        n++;
    }
    return n;
}

static void tell_heartbeat(struct td_worker *w)
{
    Tensord__Worker__V1__Heartbeat h = TENSORD__WORKER__V1__HEARTBEAT__INIT;
    const struct td_recorder *recorder = td_compute_recorder(w->compute);
    Tensord__Worker__V1__StepMark marks[TD_RECORDER_MARKS], *list[TD_RECORDER_MARKS];
    Tensord__Worker__V1__GpuReading readings[TD_GPU_N_FIGURES], *gpu[TD_GPU_N_FIGURES];
    struct td_recorder_mark read[TD_RECORDER_MARKS];
    Tensord__Worker__V1__Whereabouts where;
    struct td_whereabouts at;
    struct td_compute_gauges g;
    MESSAGE(m);

    td_compute_gauges(w->compute, &g);
    h.progress = g.progress;
    h.timestamp_ns = uv_hrtime();
    h.n_running = g.n_running;
    h.n_waiting = g.n_waiting;
    h.kv_blocks_used = g.kv_blocks_used;
    h.kv_blocks_idle = g.kv_blocks_idle;
    h.kv_blocks_memory = g.kv_blocks_outside[TD_OFFLOAD_MEMORY];
    h.kv_blocks_file = g.kv_blocks_outside[TD_OFFLOAD_FILE];
    h.kv_blocks_read = g.kv_blocks_read;
    h.kv_failed_reads = g.kv_failed_reads;
    h.draft_tokens = g.draft_tokens;
    h.right_drafts = g.right_drafts;
    h.device_draws = g.device_draws;
    h.exchanged_bytes = g.exchanged_bytes;
    h.n_steps = g.n_steps;
    h.wait_ns = g.wait_ns;
    h.step_ns = g.step_ns;
    h.gap_ns = g.gap_ns;
    h.n_gaps = g.n_gaps;
    h.prompt_tokens = g.prompt_tokens;
    h.generated_tokens = g.generated_tokens;
    if (look(w, &at)) {
        td_wireflight_at_make(&at, &where);
        h.at = &where;
    }
    h.n_gpu = w->gpu ? read_gpu(w, readings, gpu) : 0;
    h.gpu = gpu;
    h.n_marks = td_recorder_marks(recorder, read);
    h.marks = list;
    for (size_t i = 0; i < h.n_marks; i++) {
        marks[i] = (Tensord__Worker__V1__StepMark)TENSORD__WORKER__V1__STEP_MARK__INIT;
        marks[i].number = read[i].number;
        marks[i].hash = read[i].hash;
        list[i] = &marks[i];
    }
    m.body_case = TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_HEARTBEAT;
    m.heartbeat = &h;
    send_message(w, &m);
}

/* A rank whose coordinator is silent may have been replaced: it ends, whatever its compute thread does. */
static bool is_lease_over(struct td_worker *w)
{
    td_vigil_look(&w->vigil, uv_hrtime());
    if (td_vigil_judge(&w->vigil, &w->coordinator) != TD_VIGIL_DEAD)
        return false;
    w->end_status = td_err_set(
        &w->end_err, TD_PEER_LOST, "the coordinator at %s has been silent for %llu ms", w->target,
        (unsigned long long)(td_vigil_silence_ns(&w->vigil, &w->coordinator) / 1000000u));
    return true;
}

static void on_heartbeat(uv_timer_t *timer)
{
    struct td_worker *w = timer->data;

    if (w->leaving || is_lease_over(w)) {
        finish(w, w->end_status, &w->end_err);
        return;
    }
    td_grpc_tick(w->grpc, uv_hrtime());
    if (w->registered)
        tell_heartbeat(w);
}

/* ---- from the coordinator ---- */

static void post(struct td_worker *w, struct td_compute_command command)
{
    struct td_err err;

    if (td_compute_post(w->compute, &command)) {
        td_err_set(&err, TD_NO_MEMORY, "no memory for a command");
        give_up(w, &err);
    }
}

static void on_submit(struct td_worker *w, const Tensord__Worker__V1__Submit *m)
{
    struct td_request *r = calloc(1, sizeof *r);
    struct td_err err;
    enum td_status s = r ? td_wire_submit_read(m, r, &err)
                         : td_err_set(&err, TD_NO_MEMORY, "no memory for a request");

    if (!s) {
        post(w, (struct td_compute_command){
                    .verb = TD_COMPUTE_SUBMIT, .request = r, .number = m->number});
        return;
    }
    free(r);
    give_up(w, &err);
}

static void on_ping(struct td_worker *w, const Tensord__Worker__V1__Ping *m)
{
    if (m->lease_ns == w->vigil.dead_ns || m->lease_ns == 0)
        return;
    td_vigil_limit(&w->vigil, m->lease_ns);
}

/* The group is given up: this process ends at once, with its last words on the way. */
static void on_die(struct td_worker *w, const Tensord__Worker__V1__Shutdown *m)
{
    struct td_err err;

    if (w->leaving)
        return;
    tell_flight(w);
    td_err_set(&err, TD_CANCELLED, "the coordinator at %s gave the group up: %.200s", w->target,
               m->reason);
    give_up(w, &err);
    if (w->stream)
        td_grpc_stream_half_close(w->stream);
    pump(w);
    uv_timer_start(&w->timer, on_heartbeat, LAST_WORDS_MS, LAST_WORDS_MS);
}

static void on_assign(struct td_worker *w, const td_wire_coordinator_message *m)
{
    struct td_err err;

    td_compute_load_free(w->assigned);
    w->assigned = NULL;
    w->group_id = m->group_id;
    w->model_id = m->model_id;
    if (m->adapter_id)
        td_err_set(&err, TD_UNSUPPORTED, "adapter %u: expected none", m->adapter_id);
    else if (m->assign->rank != td_comm_rank(w->p.world) ||
             m->assign->group_size != td_comm_size(w->p.world))
        td_err_set(&err, TD_PEER_PROTOCOL, "assigned rank %u of %u, this is rank %u of %u",
                   m->assign->rank, m->assign->group_size, td_comm_rank(w->p.world),
                   td_comm_size(w->p.world));
    else if (!td_wire_assign_read(m->assign, &w->assigned, &err))
        return;
    tell_failed(w, &err);
    give_up(w, &err);
}

static void on_message(void *user, struct td_grpc_stream *s, struct td_str bytes)
{
    struct td_worker *w = user;
    ProtobufCMessage *raw;
    td_wire_coordinator_message *m;
    struct td_err err;

    td_grpc_stream_ack(s, bytes.len);
    if (w->ending)
        return;
    if (td_rpc_unpack(&tensord__worker__v1__coordinator_message__descriptor, bytes, 0, &raw,
                      &err)) {
        give_up(w, &err);
        return;
    }
    m = (td_wire_coordinator_message *)(void *)raw;
    if (m->cookie == w->cookie) { /* else meant for another life */
        if (w->coordinator.is_watched)
            td_vigil_heard(&w->vigil, &w->coordinator);
        switch (m->body_case) {
        case TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_PING:
            on_ping(w, m->ping);
            break;
        case TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_ASSIGN:
            on_assign(w, m);
            break;
        case TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_LOAD:
            if (w->assigned)
                post(w, (struct td_compute_command){.verb = TD_COMPUTE_LOAD, .load = w->assigned});
            w->assigned = NULL;
            break;
        case TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_SUBMIT:
            on_submit(w, m->submit);
            break;
        case TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_PAUSE:
            post(w, (struct td_compute_command){.verb = TD_COMPUTE_PAUSE,
                                                .number = m->pause->request_id});
            break;
        case TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_RESUME:
            post(w, (struct td_compute_command){.verb = TD_COMPUTE_RESUME,
                                                .number = m->resume->request_id,
                                                .n_submits = m->resume->number});
            break;
        case TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_WAKE:
            post(w, (struct td_compute_command){.verb = TD_COMPUTE_WAKE,
                                                .number = m->wake->n_submits});
            break;
        case TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_CANCEL:
            post(w, (struct td_compute_command){.verb = TD_COMPUTE_CANCEL,
                                                .number = m->cancel->request_id});
            break;
        case TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_DRAIN: /* drained: the model may go */
            post(w, (struct td_compute_command){.verb = TD_COMPUTE_UNLOAD});
            break;
        case TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_SHUTDOWN:
            if (m->shutdown->die) {
                on_die(w, m->shutdown);
                break;
            }
            w->coordinator.is_watched =
                false; /* it may be gone before this rank has left in order */
            post(w, (struct td_compute_command){.verb = TD_COMPUTE_EXIT});
            break;
        default:
            break;
        }
    }
    td_rpc_free(raw);
}

static void on_stream_close(void *user, struct td_grpc_stream *s, enum td_grpc_code code,
                            struct td_str text)
{
    struct td_worker *w = user;
    struct td_err err;

    (void)s;
    w->stream = NULL;
    if (w->ending || w->leaving)
        return;
    td_err_set(&err, code == TD_GRPC_UNAVAILABLE ? TD_PEER_LOST : td_grpc_code_to_status(code),
               "the coordinator at %s ended the control stream: %.*s", w->target,
               (int)(text.len < 200 ? text.len : 200), text.ptr);
    give_up(w, &err);
}

static enum td_status feed_tls(struct td_worker *w, const char *data, size_t n, struct td_err *err)
{
    enum td_status s = td_tls_session_feed(w->tls, data, n, err);
    char plain[PLAIN_BYTES];
    bool closed = false;
    size_t n_plain = 1;

    while (!s && n_plain > 0 && !w->ending) {
        s = td_tls_session_read(w->tls, plain, sizeof plain, &n_plain, &closed, err);
        if (!s && n_plain > 0)
            s = td_grpc_feed(w->grpc, uv_hrtime(), plain, n_plain, err);
    }
    return s ? td_err_context(err, "control stream to the coordinator at %s", w->target) : TD_OK;
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct td_worker *w = stream->data;
    struct td_err err;

    if (w->ending)
        return;
    if (n < 0) {
        if (w->leaving) {
            finish(w, w->end_status, &w->end_err);
            return;
        }
        td_err_set(&err, TD_PEER_LOST, "the coordinator at %s is gone: %s", w->target,
                   uv_strerror((int)n));
        finish(w, TD_PEER_LOST, &err);
        return;
    }
    if (w->tls ? feed_tls(w, buf->base, (size_t)n, &err)
               : td_grpc_feed(w->grpc, uv_hrtime(), buf->base, (size_t)n, &err)) {
        pump(w); /* an alert, perhaps */
        finish(w, err.status, &err);
        return;
    }
    pump(w);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct td_worker *w = handle->data;

    (void)suggested;
    *buf = uv_buf_init(w->read_buffer, sizeof w->read_buffer);
}

/* ---- connecting ---- */

static void try_connect(uv_timer_t *timer);

static void on_tcp_closed(uv_handle_t *handle)
{
    struct td_worker *w = handle->data;

    w->n_handles--;
    if (!w->ending)
        uv_timer_start(&w->timer, try_connect, RETRY_MS, 0);
    else if (w->n_handles == 0)
        w->on_end(w->end_status, &w->end_err, w->user);
}

static void on_connect(uv_connect_t *req, int status)
{
    struct td_worker *w = req->data;
    struct td_grpc_meta meta = {TD_STR("authorization"), td_bytes_str(&w->authorization)};
    struct td_grpc_call_params call = {.path = td_str_from(td_rpc_method(TD_RPC_ATTACH)->path),
                                       .authority = td_str_from(w->target),
                                       .tls = w->tls != NULL,
                                       .meta = &meta,
                                       .n_meta = w->authorization.len ? 1 : 0};
    struct td_err err;

    if (w->ending)
        return;
    if (status < 0) {
        if (uv_hrtime() - w->start_ns > w->p.connect_limit_ns) {
            td_err_set(&err, TD_PEER_LOST, "cannot reach the coordinator at %s: %s", w->target,
                       uv_strerror(status));
            finish(w, TD_PEER_LOST, &err);
            return;
        }
        w->tcp_open = false;
        uv_close((uv_handle_t *)&w->tcp, on_tcp_closed);
        return;
    }
    w->connected = true;
    uv_tcp_nodelay(&w->tcp, 1);
    uv_read_start((uv_stream_t *)&w->tcp, on_alloc, on_read);
    if (w->tls && feed_tls(w, "", 0, &err)) { /* begins the handshake */
        finish(w, err.status, &err);
        return;
    }
    if (td_grpc_client_call(w->grpc, uv_hrtime(), &call, &w->stream, &err)) {
        finish(w, err.status, &err);
        return;
    }
    uv_timer_start(&w->timer, on_heartbeat, TD_VIGIL_BEAT_MS, TD_VIGIL_BEAT_MS);
    register_now(w);
    pump(w);
}

static void try_connect(uv_timer_t *timer)
{
    struct td_worker *w = timer->data;
    int rc;

    if (w->leaving) { /* the compute thread failed meanwhile */
        finish(w, w->end_status, &w->end_err);
        return;
    }
    uv_tcp_init(w->p.loop, &w->tcp);
    w->tcp.data = w;
    w->tcp_open = true;
    w->n_handles++;
    w->connect.data = w;
    rc = uv_tcp_connect(&w->connect, &w->tcp, (const struct sockaddr *)&w->address, on_connect);
    if (rc) {
        struct td_err err;

        td_err_set(&err, TD_IO, "cannot connect to the coordinator at %s: %s", w->target,
                   uv_strerror(rc));
        finish(w, TD_IO, &err);
    }
}

static enum td_status resolve(struct td_worker *w, const char *host, uint16_t port,
                              struct td_err *err)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found = NULL;
    char service[8];
    int rc;

    snprintf(w->target, sizeof w->target, strchr(host, ':') ? "[%.255s]:%u" : "%.255s:%u", host,
             port);
    snprintf(service, sizeof service, "%u", port);
    rc = getaddrinfo(host, service, &hints, &found);
    if (rc)
        return td_err_set(err, TD_INVALID, "coordinator '%.255s': %s", host, gai_strerror(rc));
    memcpy(&w->address, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return TD_OK;
}

enum td_status td_worker_start(const struct td_worker_params *params, td_worker_end_fn *on_end,
                               void *user, struct td_worker **out, struct td_err *err)
{
    static const struct td_grpc_callbacks callbacks = {.on_message = on_message,
                                                       .on_close = on_stream_close};
    struct td_grpc_limits limits;
    struct td_worker *w = calloc(1, sizeof *w);
    enum td_status s;

    if (!w)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a worker");
    w->p = *params;
    w->on_end = on_end;
    w->user = user;
    w->start_ns = uv_hrtime();
    uv_random(NULL, NULL, &w->cookie, sizeof w->cookie, 0, NULL);
    td_arena_init(&w->arena, 0, 0);
    td_grpc_limits_default(&limits);
    limits.max_message_bytes = (size_t)256 << 20; /* prompts of a whole context */
    limits.max_queued_bytes = (size_t)256 << 20;
    s = resolve(w, params->host, params->port, err);
    if (!s && params->key.len &&
        (td_bytes_append_str(&w->authorization, TD_STR("Bearer ")) ||
         td_bytes_append_str(&w->authorization, params->key)))
        s = td_err_set(err, TD_NO_MEMORY, "no memory for a worker");
    if (!s && params->tls)
        s = td_tls_session_open(params->tls, &w->tls, err);
    s = s ? s : td_grpc_client_open(&callbacks, &limits, w, &w->grpc, err);
    if (s)
        goto fail;
    uv_timer_init(w->p.loop, &w->timer);
    w->timer.data = w;
    uv_async_init(w->p.loop, &w->wake, on_wake);
    w->wake.data = w;
    w->n_handles = 2;
    s = td_compute_start(w->p.world, &w->p.node, notify, w, &w->compute, err);
    if (s) /* the two handles stay with the loop, which ends with the process */
        return s;
    uv_timer_start(&w->timer, try_connect, 0, 0);
    *out = w;
    return TD_OK;

fail:
    td_tls_session_close(w->tls);
    td_grpc_close(w->grpc);
    td_bytes_deinit(&w->authorization);
    free(w);
    return s;
}

void td_worker_leave(struct td_worker *w, const struct td_err *why)
{
    if (w->ending || w->leaving)
        return;
    if (w->registered)
        tell_failed(w, why);
    give_up(w, why);
}

void td_worker_close(struct td_worker *w)
{
    const struct td_compute_command exit_command = {.verb = TD_COMPUTE_EXIT};

    if (!w)
        return;
    if (w->end_status != TD_OK) /* its waits were aborted: it ends at once, or after its kernel */
        (void)td_compute_post(w->compute, &exit_command);
    td_compute_close(w->compute);
    td_compute_load_free(w->assigned);
    td_tls_session_close(w->tls);
    td_bytes_deinit(&w->authorization);
    td_bytes_deinit(&w->packed);
    td_arena_deinit(&w->arena);
    free(w);
}
