/* `tensord serve`: the coordinator with its APIs. Three forms: it launches its group with mpirun (the default), a group dials
 * in (--no-launch), or it is itself one MPI job, of which rank 0 coordinates on its own loop. */
#include "comm/comm_mpi.h"
#include "daemon/api/grpc_serve.h"
#include "daemon/api/listener.h"
#include "daemon/api/metrics.h"
#include "daemon/cli/command.h"
#include "daemon/cli/credentials.h"
#include "daemon/cli/manager.h"
#include "daemon/cli/rank.h"
#include "daemon/cli/spmd.h"
#include "daemon/cli/statedir.h"
#include "daemon/coordinator/cluster_service.h"
#include "daemon/coordinator/coord_metrics.h"
#include "daemon/coordinator/drain_service.h"
#include "daemon/coordinator/facing.h"
#include "daemon/coordinator/group.h"
#include "daemon/coordinator/health_service.h"
#include "daemon/coordinator/inference_service.h"
#include "daemon/coordinator/launch.h"
#include "daemon/coordinator/openai_service.h"
#include "daemon/coordinator/roll_service.h"
#include "daemon/coordinator/status_service.h"
#include "daemon/journal/journal.h"
#include "daemon/log.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    WATCH_MS = 100,
    STOP_LIMIT_MS = 5000,
    N_SIGNALS = 4,
    MAX_LAUNCHES = 2, /* one group may be on its way while another still serves */
    OTHER_FILES = 128 /* descriptors beside the connections: listeners, pipes, workers, files */
};

/* A launch of the group of one generation. */
struct launch {
    struct server *server;
    struct td_launch *launch; /* NULL: none */
    uint32_t generation;
};

struct server {
    const struct td_options *opts;
    uv_loop_t loop;
    uv_signal_t signals[N_SIGNALS];
    uv_timer_t watch; /* load progress; while stopping, whether all is gone */
    bool draining, stopping, pool_closed;
    uint64_t stop_ns;
    int exit_status;
    struct td_term term;
    struct td_manager manager;
    enum td_group_state shown;

    struct td_credentials credentials;
    struct td_rank_dial dial; /* how workers reach this process, and their key */
    char dial_address[300];   /* "host:port" */
    char control_host[256];   /* where the control stream is served */
    char model[4096], draft[4096],
        offload_dir[4096]; /* absolute, since workers may run elsewhere */
    char ssl_ca[4096], ssl_cert[4096], ssl_key[4096]; /* the same, of the workers' TLS */
    char state_dir[480];                              /* "": there is none */
    struct td_route_table *routes;
    struct td_grpc_serve_table *rpc; /* public */
    struct td_grpc_serve_table
        *control_rpc; /* of the workers' own listener; NULL: they use the public one */
    struct td_conn_pool *pool;
    struct td_listener *listener, *control;
    struct td_metrics *metrics;
    struct td_journal *journal; /* NULL: none is kept */
    struct td_coord *coord;
    struct td_coord_metrics *coord_metrics;
    struct launch launches[MAX_LAUNCHES];
    struct td_openai_service *openai;
    struct td_inference_service *inference;
    struct td_cluster_service *cluster;
    struct td_health_service *health;
    uint64_t share[TD_PLAN_MAX_RANKS];

    struct td_comm *world;    /* one job: this rank's; NULL else */
    struct td_worker *worker; /* one job: rank 0's own */
    bool worker_ended;
};

/* ---- launches ---- */

static bool any_launch(const struct server *s)
{
    for (int i = 0; i < MAX_LAUNCHES; i++)
        if (s->launches[i].launch)
            return true;
    return false;
}

static void stop_launches(struct server *s)
{
    for (int i = 0; i < MAX_LAUNCHES; i++)
        if (s->launches[i].launch)
            td_launch_stop(s->launches[i].launch);
}

/* ---- stopping ---- */

static void on_pool_closed(void *user)
{
    struct server *s = user;

    s->pool_closed = true;
    uv_close((uv_handle_t *)&s->watch, NULL);
    for (int i = 0; i < N_SIGNALS; i++)
        uv_close((uv_handle_t *)&s->signals[i], NULL);
}

static void stop(struct server *s, int exit_status)
{
    if (s->stopping)
        return;
    s->stopping = true;
    s->exit_status = exit_status;
    s->stop_ns = uv_hrtime();
    td_manager_stopping(&s->manager, (uint64_t)STOP_LIMIT_MS * 1000000u);
    td_coord_stop(s->coord);
    td_journal_stop(s->journal);
    td_health_service_stop(s->health);
    td_listener_close(s->listener);
    td_listener_close(s->control);
    td_conn_pool_drain(s->pool);
}

/* Closes the pool when everything has ended by itself, or its time is up. */
static void watch_stop(struct server *s)
{
    bool late = uv_hrtime() - s->stop_ns > (uint64_t)STOP_LIMIT_MS * 1000000u;
    bool workers_gone = !any_launch(s) && (!s->worker || s->worker_ended);

    if (late)
        stop_launches(s);
    if (!workers_gone && !late)
        return;
    if (any_launch(s) || (td_conn_pool_count(s->pool) && !late))
        return;
    uv_timer_stop(&s->watch);
    td_conn_pool_close(s->pool, on_pool_closed, s);
}

static void on_drained(enum td_status status, const struct td_err *err, uint64_t n_finished,
                       uint64_t n_ended, void *user)
{
    (void)status;
    (void)err;
    td_log_info("drained finished=%llu ended=%llu", (unsigned long long)n_finished,
                (unsigned long long)n_ended);
    stop(user, TD_EXIT_OK);
}

/* How long open requests have. Open MPI kills the ranks of one job a while after it handed on a SIGTERM: half of that is theirs,
 * the other half is for telling them. SIGUSR1, which it only hands on, leaves all the time. */
static double drain_limit_s(const struct server *s, int number)
{
    const char *text = getenv("OMPI_MCA_odls_base_sigkill_timeout");
    double kill_s = text ? strtod(text, NULL) : 1, limit_s = s->opts->drain_timeout;

    if (!s->world || number == SIGUSR1 || !(kill_s / 2 < limit_s))
        return limit_s;
    return kill_s > 0 ? kill_s / 2 : 0;
}

/* Nothing new is taken, and who asks learns that; what is open ends, or is ended at the limit; then the process stops. */
static void drain(struct server *s, int number)
{
    uint64_t limit_ns = (uint64_t)(drain_limit_s(s, number) * 1e9);
    struct td_coord_status status;

    td_coord_status(s->coord, &status);
    if (status.n_open == 0 || limit_ns == 0) {
        td_log_info("stopping signal=%d", number);
        stop(s, TD_EXIT_OK);
        return;
    }
    td_log_info("draining signal=%d open=%u timeout_s=%.4g", number, status.n_open,
                (double)limit_ns * 1e-9);
    s->draining = true;
    td_manager_stopping(&s->manager, limit_ns + (uint64_t)STOP_LIMIT_MS * 1000000u);
    td_conn_pool_retire(s->pool);
    td_coord_drain_last(s->coord, limit_ns, on_drained, s);
}

static void on_signal(uv_signal_t *signal, int number)
{
    struct server *s = signal->data;

    if (number == SIGHUP) {
        td_credentials_reload(&s->credentials);
        return;
    }
    if (!s->draining && !s->stopping) {
        drain(s, number);
        return;
    }
    td_log_info("stopping at once signal=%d", number); /* the second one */
    stop(s, TD_EXIT_OK);
    stop_launches(s);
}

/* ---- the group's processes ---- */

static void on_launch_fall(const struct td_launch_end *end, void *user)
{
    struct launch *l = user;
    struct td_err err;

    td_launch_describe(end, TD_PEER_LOST, &err);
    if (!l->server->stopping)
        td_coord_launcher_fell(l->server->coord, l->generation, &err);
}

static void on_launch_end(const struct td_launch_end *end, void *user)
{
    struct launch *l = user;
    struct server *s = l->server;
    uint32_t generation = l->generation;
    struct td_err err;

    td_launch_describe(end, TD_PEER_LOST, &err);
    td_launch_close(l->launch);
    *l = (struct launch){.launch = NULL};
    if (s->stopping)
        return;
    td_coord_launch_ended(s->coord, generation, &err);
}

static struct launch *free_launch(struct server *s)
{
    for (int i = 0; i < MAX_LAUNCHES; i++)
        if (!s->launches[i].launch)
            return &s->launches[i];
    return NULL;
}

static enum td_status launch_start(void *user, uint32_t generation, uint32_t n_ranks,
                                   const char *hostfile, struct td_err *err)
{
    struct server *s = user;
    const struct td_options *o = s->opts;
    char threads[32], memory[32], gpu_share[32];
    struct launch *l = free_launch(s);
    size_t n_args = 0;
    const char *args[] = {"--threads",
                          threads,
                          "--device",
                          o->device,
                          "--gpu-memory-utilization",
                          gpu_share,
                          "--cuda-graphs",
                          td_options_word(o, &o->cuda_graphs),
                          "--exact",
                          td_options_word(o, &o->exact),
                          "--gpu-exchange",
                          td_options_word(o, &o->gpu_exchange),
                          "--gpu-sums",
                          td_options_word(o, &o->gpu_sums),
                          "--cpu-isa",
                          td_options_word(o, &o->cpu_isa),
                          "--transport",
                          td_options_word(o, &o->transport),
                          "--exchange-dtype",
                          td_options_word(o, &o->exchange_dtype),
                          "--sum-algorithm",
                          td_options_word(o, &o->sum_algorithm),
                          "--overlap",
                          td_options_word(o, &o->overlap),
                          NULL, /* what only some groups have */
                          NULL,
                          NULL,
                          NULL,
                          NULL,
                          NULL,
                          NULL,
                          NULL,
                          NULL,
                          NULL,
                          NULL,
                          NULL,
                          NULL};
    struct td_launch_params p = {.loop = &s->loop,
                                 .n_ranks = n_ranks,
                                 .hostfile = hostfile,
                                 .coordinator = s->dial_address,
                                 .cluster_key = {s->dial.key, s->dial.key_bytes},
                                 .generation = generation,
                                 .keeper = "/proc/self/exe",
                                 .on_fall = on_launch_fall,
                                 .worker_args = args};

    while (args[n_args])
        n_args++;
    if (o->memory_bytes) {
        args[n_args++] = "--memory-bytes";
        args[n_args++] = memory;
    }
    if (o->cuda_plugin) {
        args[n_args++] = "--cuda-plugin";
        args[n_args++] = o->cuda_plugin;
    }
    if (o->nccl_plugin) {
        args[n_args++] = "--nccl-plugin";
        args[n_args++] = o->nccl_plugin;
    }
    if (o->cluster_ssl_ca) { /* paths: nothing secret stands on a command line */
        const char *const tls[] = {"--cluster-ssl-ca",       s->ssl_ca,
                                   "--cluster-ssl-certfile", s->ssl_cert,
                                   "--cluster-ssl-keyfile",  s->ssl_key};

        memcpy(&args[n_args], tls, sizeof tls);
    }
    snprintf(threads, sizeof threads, "%lld", (long long)o->threads);
    snprintf(gpu_share, sizeof gpu_share, "%.9g", o->gpu_memory_utilization);
    snprintf(memory, sizeof memory, "%llu", (unsigned long long)o->memory_bytes);
    if (!l)
        return td_err_set(err, TD_BUSY, "%d launches have not ended: expected no more",
                          MAX_LAUNCHES);
    *l = (struct launch){.server = s, .generation = generation};
    return td_launch_start(&p, on_launch_end, l, &l->launch, err);
}

static void launch_stop(void *user, uint32_t generation)
{
    struct server *s = user;

    for (int i = 0; i < MAX_LAUNCHES; i++)
        if (s->launches[i].launch && s->launches[i].generation == generation)
            td_launch_stop(s->launches[i].launch);
}

static void on_worker_end(enum td_status status, const struct td_err *err, void *user)
{
    struct server *s = user;

    s->worker_ended = true;
    if (status && !s->stopping) {
        td_log_error("rank 0 ended error=\"%s\"", err->cause);
        stop(s, TD_EXIT_FAILURE);
    }
}

static void on_group_failed(const struct td_err *err, void *user)
{
    char text[600];

    fprintf(stderr, "tensord serve: %s\n", td_err_format(err, text, sizeof text));
    stop(user, TD_EXIT_FAILURE);
}

/* ---- telling people ---- */

static void show_ready(struct server *s, const struct td_coord_status *status)
{
    td_term_end(&s->term);
    printf("serving %s at %s://%s  (%u rank%s: tensor parallel %u x pipeline parallel %u, context "
           "%u tokens)\n",
           status->served->names[0], s->credentials.tls ? "https" : "http",
           td_listener_address(s->listener), status->n_ranks, status->n_ranks == 1 ? "" : "s",
           status->plan->tp, status->plan->pp, status->plan->max_model_len);
    fflush(stdout);
}

static void on_watch(uv_timer_t *timer)
{
    struct server *s = timer->data;
    struct td_coord_status status;
    uint64_t done = 0, total = 0;

    td_manager_tick(&s->manager, s->coord, uv_hrtime());
    if (s->stopping) {
        watch_stop(s);
        return;
    }
    td_coord_status(s->coord, &status);
    if (status.state == TD_GROUP_LOADING) {
        for (uint32_t i = 0; i < status.n_ranks; i++) {
            done += status.members[i].load_done_bytes;
            total += status.members[i].load_total_bytes;
        }
        if (total)
            td_term_progress(&s->term, "loading", done, total, "B");
    }
    if (status.state == TD_GROUP_READY && s->shown != TD_GROUP_READY)
        show_ready(s, &status);
    s->shown = status.state;
}

/* ---- listening ---- */

static bool is_wildcard(const char *host)
{
    return strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0;
}

/* Where workers find the control stream: --control-host, else the address that faces the hostfile, else the public one. */
static enum td_status choose_control_host(struct server *s, struct td_err *err)
{
    const struct td_options *o = s->opts;

    if (o->control_host)
        snprintf(s->control_host, sizeof s->control_host, "%s", o->control_host);
    else if (o->hostfile && !s->world)
        return td_facing_address(o->hostfile, s->control_host, sizeof s->control_host, err);
    else
        snprintf(s->control_host, sizeof s->control_host, "%s",
                 is_wildcard(o->host) || s->credentials.tls ? "127.0.0.1" : o->host);
    return TD_OK;
}

/* Workers have a listener of their own where the public one is at another address or speaks TLS only, and where they show
 * certificates. */
static bool has_own_control(const struct server *s)
{
    const char *host = s->opts->host;

    return s->credentials.tls || s->credentials.cluster_tls ||
           (strcmp(s->control_host, host) != 0 && !is_wildcard(host));
}

static enum td_status open_listeners(struct server *s, struct td_err *err)
{
    const struct td_options *o = s->opts;
    struct td_listener_config public = {
        .host = o->host,
        .port = (uint16_t)o->port,
        .service = {.tls = s->credentials.tls, .routes = s->routes, .rpc = s->rpc}};
    struct td_listener_config control = {
        .host = s->control_host,
        .service = {.tls = s->credentials.cluster_tls, .is_uncapped = true, .rpc = s->control_rpc}};
    bool own = has_own_control(s);
    enum td_status st = td_listener_open(s->pool, &s->loop, &public, &s->listener, err);

    if (!st && own) { /* the same port where the addresses differ */
        bool same = is_wildcard(o->host) || strcmp(s->control_host, o->host) == 0;

        control.port = same ? 0 : td_listener_port(s->listener);
        st = td_listener_open(s->pool, &s->loop, &control, &s->control, err);
    }
    if (st)
        return st;
    if (o->no_launch && !s->dial.key_bytes && !s->credentials.cluster_tls &&
        !td_listener_is_loopback(own ? s->control : s->listener) && !o->insecure)
        return td_err_set(
            err, TD_INVALID,
            "workers could dial in to %s without a key: give --cluster-key-file, --cluster-ssl-ca "
            "or --insecure",
            s->control_host);
    if (is_wildcard(s->control_host))
        gethostname(s->dial.host, sizeof s->dial.host - 1);
    else
        snprintf(s->dial.host, sizeof s->dial.host, "%s", s->control_host);
    s->dial.port = td_listener_port(own ? s->control : s->listener);
    snprintf(s->dial_address, sizeof s->dial_address,
             strchr(s->dial.host, ':') ? "[%s]:%u" : "%s:%u", s->dial.host, s->dial.port);
    if (own)
        td_log_info("workers' control stream at %s", td_listener_address(s->control));
    return TD_OK;
}

/* A path that cannot be resolved stays as it is: opening it will say what is wrong. */
static const char *absolute(const char *path, char out[4096])
{
    if (path && !realpath(path, out))
        snprintf(out, 4096, "%s", path);
    return path ? out : NULL;
}

/* Ranks that a launch starts: told, or what the layout needs. */
static uint32_t n_launched(const struct td_options *o)
{
    uint32_t tp = (uint32_t)o->tensor_parallel_size, pp = (uint32_t)o->pipeline_parallel_size;

    if (o->ranks)
        return (uint32_t)o->ranks;
    return tp || pp ? (tp ? tp : 1) * (pp ? pp : 1) : o->shares.n ? o->shares.n : 1;
}

static enum td_status open_coord(struct server *s, struct td_err *err)
{
    const struct td_options *o = s->opts;
    const struct td_coord_limits limits = {
        .max_queue = (uint32_t)o->max_queue,
        .max_open_per_key = (uint32_t)o->max_concurrency_per_key,
        .tokens_per_minute_per_key = (uint32_t)o->max_tokens_per_minute_per_key,
        .request_timeout_ns = (uint64_t)(o->request_timeout * 1e9)};
    struct td_coord_params p = {.loop = &s->loop,
                                .metrics = s->metrics,
                                .model = s->model,
                                .names = o->served_model_name.items,
                                .n_names = o->served_model_name.n,
                                .verify = o->verify,
                                .n_ranks = s->world ? td_comm_size(s->world) : (uint32_t)o->ranks,
                                .kv_dtype_auto = o->kv_cache_dtype.value[0] == TD_KV_DTYPE_AUTO,
                                .limits = limits,
                                .prefix_cache = !o->no_prefix_cache,
                                .draft_path = absolute(o->speculative_model, s->draft),
                                .offload_dir = absolute(o->kv_offload_path, s->offload_dir),
                                .max_draft_tokens = (uint32_t)o->speculative_tokens,
                                .max_stretch_percent = (uint32_t)o->max_step_stretch,
                                .op_limit_ns = 60000000000u,
                                .dead_ns = (uint64_t)(o->heartbeat_timeout * 1e9),
                                .state_dir = s->state_dir[0] ? s->state_dir : NULL,
                                .on_failed = on_group_failed,
                                .user = s};
    struct td_spec any = {.dtype = TD_F16};
    enum td_status st = td_spmd_plan_params(o, &any, p.n_ranks ? p.n_ranks : o->shares.n, NULL,
                                            s->share, &p.wish, err);

    if (st)
        return st;
    if (!s->world && !o->no_launch) {
        p.launcher = (struct td_group_launcher){launch_start, launch_stop, s};
        p.n_ranks = n_launched(o);
        p.hostfile = o->hostfile;
    }
    return td_coord_open(&p, &s->coord, err);
}

static enum td_status open_services(struct server *s, struct td_err *err)
{
    const struct td_auth *keys = &s->credentials.api;
    const struct td_auth *api = keys->n_clients ? keys : NULL;
    struct td_openai_service_params openai = {
        .coord = s->coord, .routes = s->routes, .auth = api, .metrics_auth = api};
    enum td_status st = td_coord_metrics_open(s->coord, &s->coord_metrics, err);

    st = st ? st : td_openai_service_open(&openai, &s->openai, err);
    st = st ? st : td_status_service_open(s->coord, s->routes, api, err);
    st = st ? st : td_drain_service_open(s->coord, s->routes, keys, err);
    st = st ? st : td_roll_service_open(s->coord, s->routes, keys, err);
    st = st ? st : td_inference_service_open(s->coord, s->rpc, api, &s->inference, err);
    st = st ? st : td_cluster_service_open(s->coord, s->rpc, keys, &s->cluster, err);
    st = st ? st : td_health_service_open(s->coord, s->rpc, NULL, &s->health, err);
    if (st)
        return st;
    td_grpc_serve_add_reflection(s->rpc, api);
    td_coord_serve_workers(s->coord, s->control_rpc ? s->control_rpc : s->rpc,
                           s->credentials.cluster.n_keys ? &s->credentials.cluster : NULL);
    td_route_log(s->routes);
    td_grpc_serve_log(s->rpc);
    return TD_OK;
}

static uint32_t to_ms(double seconds)
{
    return (uint32_t)(seconds * 1e3);
}

static void connection_limits(const struct td_options *o, struct td_conn_config *conn)
{
    td_conn_config_default(conn);
    conn->max_connections = (uint32_t)o->max_connections;
    conn->max_per_address = (uint32_t)o->max_connections_per_address;
    conn->max_header_bytes = o->max_header_bytes;
    conn->max_body_bytes = o->max_body_bytes;
    if (conn->max_buffered_bytes < 2 * conn->max_body_bytes)
        conn->max_buffered_bytes = 2 * conn->max_body_bytes;
    conn->header_timeout_ms = to_ms(o->header_timeout);
    conn->body_total_ms = to_ms(o->body_timeout);
    conn->body_idle_ms = conn->body_total_ms / 10;
    conn->idle_timeout_ms = to_ms(o->idle_timeout);
    conn->write_stall_ms = to_ms(o->stall_timeout);
}

/* Every connection is a descriptor: takes as many as are needed and the hard limit has. No more than that, since programs
 * that are started from here may walk through all they could have open. */
static void raise_file_limit(uint32_t max_connections)
{
    rlim_t needed = (rlim_t)max_connections + OTHER_FILES;
    struct rlimit files;

    if (getrlimit(RLIMIT_NOFILE, &files) || files.rlim_cur >= needed)
        return;
    files.rlim_cur = needed < files.rlim_max ? needed : files.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &files))
        (void)getrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur < needed)
        td_log_warn("fewer open files are allowed than --max-connections needs files=%llu "
                    "needed=%llu",
                    (unsigned long long)files.rlim_cur, (unsigned long long)needed);
}

/* Prompts of a whole context travel over the control stream. */
static void message_limits(const struct td_options *o, struct td_grpc_limits *limits)
{
    td_grpc_limits_default(limits);
    limits->max_header_list_bytes = o->max_header_bytes / 2;
    limits->header_limit_ns = (uint64_t)(o->header_timeout * 1e9);
    limits->request_limit_ns = (uint64_t)(o->body_timeout * 1e9);
    limits->stall_limit_ns = (uint64_t)(o->stall_timeout * 1e9);
    limits->max_message_bytes = (size_t)64 << 20;
    limits->max_queued_bytes = (size_t)256 << 20;
    limits->max_streams = 1024;
}

/* Without one that was asked for, a server without a place for reports still serves. */
static enum td_status open_state_dir(struct server *s, struct td_err *err)
{
    enum td_status st =
        td_statedir_open(s->opts->state_dir, s->state_dir, sizeof s->state_dir, err);

    if (st && !s->opts->state_dir) {
        td_log_warn("no folder for reports error=\"%s\"", err->cause);
        return TD_OK;
    }
    return st;
}

/* Without one that was named, a server without a place for a journal still serves; where another process has it, neither does. */
static enum td_status open_journal(struct server *s, struct td_err *err)
{
    const struct td_options *o = s->opts;
    struct td_journal_params p = {.loop = &s->loop,
                                  .path = o->journal,
                                  .retention_ms = (uint64_t)(o->journal_retention * 1e3)};
    char path[520];
    enum td_status st;

    if (o->no_journal || (!o->journal && (o->port == 0 || !s->state_dir[0]))) {
        td_log_info("no journal: requests end with this process");
        return TD_OK;
    }
    snprintf(path, sizeof path, "%s/journal-%lld.db", s->state_dir, (long long)o->port);
    p.path = o->journal ? o->journal : path;
    st = td_journal_open(&p, &s->journal, err);
    st = st ? st : td_journal_metrics(s->journal, s->metrics, err);
    if (st)
        return st;
    td_coord_keep_in(s->coord, s->journal);
    /* What was open when the process before this one ended goes on. */
    st = td_openai_service_restore(s->openai, err);
    st = st ? st : td_inference_service_restore(s->inference, err);
    return st ? st : td_journal_start(s->journal, err);
}

static enum td_status open_server(struct server *s, struct td_err *err)
{
    const struct td_options *o = s->opts;
    struct td_conn_config conn;
    struct td_grpc_limits limits;
    enum td_status st = td_credentials_open(&s->credentials, o, !o->no_launch, &s->dial, err);

    absolute(o->model, s->model);
    absolute(o->cluster_ssl_ca, s->ssl_ca);
    absolute(o->cluster_ssl_certfile, s->ssl_cert);
    absolute(o->cluster_ssl_keyfile, s->ssl_key);
    connection_limits(o, &conn);
    message_limits(o, &limits);
    raise_file_limit(conn.max_connections);
    st = st ? st : open_state_dir(s, err);
    st = st ? st : choose_control_host(s, err);
    st = st ? st : td_metrics_open(&s->metrics, err);
    st = st ? st : td_credentials_count(&s->credentials, s->metrics, err);
    st = st ? st : open_coord(s, err);
    st = st ? st : td_route_table_open(&s->routes, err);
    st = st ? st : td_grpc_serve_table_open(&limits, &s->rpc, err);
    if (!st && has_own_control(s))
        st = td_grpc_serve_table_open(&limits, &s->control_rpc, err);
    st = st ? st : open_services(s, err);
    st = st ? st : td_conn_pool_open(&s->loop, &conn, &s->pool, err);
    st = st ? st : open_listeners(s, err);
    return st ? st : open_journal(s, err);
}

static bool heeds(const struct server *s, int number)
{
    if (number == SIGUSR1) /* mpirun hands it on */
        return s->world != NULL;
    /* Without anything to read again a closed terminal ends the server, as it ends other programs. */
    return number != SIGHUP || td_credentials_can_reload(s->opts);
}

static void start_watching(struct server *s)
{
    static const int numbers[N_SIGNALS] = {SIGTERM, SIGINT, SIGUSR1, SIGHUP};

    for (int i = 0; i < N_SIGNALS; i++) {
        uv_signal_init(&s->loop, &s->signals[i]);
        s->signals[i].data = s;
        if (heeds(s, numbers[i]))
            uv_signal_start(&s->signals[i], on_signal, numbers[i]);
    }
    uv_timer_init(&s->loop, &s->watch);
    s->watch.data = s;
    uv_timer_start(&s->watch, on_watch, WATCH_MS, WATCH_MS);
}

static void close_server(struct server *s)
{
    td_openai_service_close(s->openai);
    td_inference_service_close(s->inference);
    td_cluster_service_close(s->cluster);
    td_health_service_close(s->health);
    td_coord_metrics_close(s->coord_metrics);
    td_coord_close(s->coord);
    td_journal_close(s->journal);
    td_grpc_serve_table_close(s->control_rpc);
    td_grpc_serve_table_close(s->rpc);
    td_route_table_close(s->routes);
    td_credentials_close(&s->credentials);
    td_metrics_close(s->metrics);
    td_manager_close(&s->manager);
}

/* The coordinator's process; in one job also rank 0. */
static int coordinate(struct server *s)
{
    struct td_worker_params worker;
    struct td_err err;
    enum td_status st;

    td_manager_open(&s->manager, s->opts->no_launch && !s->world);
    st = open_server(s, &err);
    if (s->world) {
        st = td_rank_share_dial(s->world, st, &s->dial, &err);
        if (!st) {
            st = td_rank_worker_params(&s->loop, s->world, &s->dial, 0, s->opts, &worker, &err);
            st = st ? st : td_worker_start(&worker, on_worker_end, s, &s->worker, &err);
        }
    }
    st = st ? st : td_coord_start(s->coord, &err);
    if (st)
        return td_command_report(s->opts, &err); /* nothing has been served: the process ends */
    start_watching(s);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    if (s->worker && s->exit_status != TD_EXIT_OK)
        return s
            ->exit_status; /* its compute thread may still be at work: the process is left as it is */
    td_worker_close(s->worker);
    if (s->world)
        td_tls_close(worker.tls);
    close_server(s);
    uv_loop_close(&s->loop);
    return s->exit_status;
}

/* The other ranks of one job. */
static int follow(struct server *s)
{
    struct td_err err;
    enum td_status st = td_rank_share_dial(s->world, TD_OK, &s->dial, &err);

    signal(SIGTERM, SIG_IGN); /* rank 0 ends the job in order, and its end ends this one */
    signal(SIGINT, SIG_IGN);
    signal(SIGUSR1, SIG_IGN);
    st = st ? st : td_rank_run(&s->loop, s->world, &s->dial, 0, s->opts, &err);
    if (st)
        td_log_error("rank %u ended error=\"%s\"", td_comm_rank(s->world), err.cause);
    return st ? TD_EXIT_FAILURE : TD_EXIT_OK;
}

int td_cmd_serve(const struct td_options *opts)
{
    struct server *s = calloc(1, sizeof *s);
    struct td_err err;
    int status;

    if (!s) {
        td_err_set(&err, TD_NO_MEMORY, "no memory for a server");
        return td_command_report(opts, &err);
    }
    signal(SIGPIPE, SIG_IGN);
    s->opts = opts;
    uv_loop_init(&s->loop);
    td_term_init(&s->term, stderr);
    if (td_comm_mpi_launched() && td_comm_mpi_open(&s->world, &err))
        return td_command_report(opts, &err);
    status = s->world && td_comm_rank(s->world) > 0 ? follow(s) : coordinate(s);
    if (s->world && status) { /* MPI cannot be left in order without the others */
        fflush(NULL);
        _exit(status);
    }
    td_comm_close(s->world);
    free(s);
    return status;
}
