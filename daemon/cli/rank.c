#include "daemon/cli/rank.h"

#include "comm/comm_mpi.h"
#include "daemon/api/tls.h"
#include "daemon/cli/config.h"
#include "daemon/cli/spmd.h"

#include <signal.h>
#include <string.h>

static enum td_status take_key(void *user, const char *key, const char *value, size_t line,
                               struct td_err *err)
{
    struct td_rank_dial *dial = user;
    size_t len = strlen(value);

    (void)key;
    if (dial->key_bytes)
        return td_err_set(err, TD_INVALID,
                          "--cluster-key-file: line %zu holds a second key, expected one", line);
    if (len > sizeof dial->key)
        return td_err_set(err, TD_INVALID,
                          "--cluster-key-file: a key of %zu bytes, expected at most %zu", len,
                          sizeof dial->key);
    memcpy(dial->key, value, len);
    dial->key_bytes = (uint32_t)len;
    return TD_OK;
}

enum td_status td_rank_read_key(const char *path, struct td_rank_dial *dial, struct td_err *err)
{
    return td_config_read_keys(strcmp(path, "-") == 0 ? "/dev/stdin" : path, "--cluster-key-file",
                               take_key, dial, err);
}

enum td_status td_rank_open_world(struct td_comm **world, struct td_err *err)
{
    return td_comm_mpi_launched() ? td_comm_mpi_open(world, err) : td_comm_self_open(world, err);
}

enum td_status td_rank_share_dial(struct td_comm *world, enum td_status status,
                                  struct td_rank_dial *dial, struct td_err *err)
{
    status = td_node_agree(world, status, err);
    return status ? status : td_comm_bcast(world, 0, dial, sizeof *dial, err);
}

enum td_status td_rank_worker_params(uv_loop_t *loop, struct td_comm *world,
                                     const struct td_rank_dial *dial, uint32_t generation,
                                     const struct td_options *opts, struct td_worker_params *out,
                                     struct td_err *err)
{
    const struct td_tls_files files = {opts->cluster_ssl_certfile, opts->cluster_ssl_keyfile,
                                       opts->cluster_ssl_ca};

    *out = (struct td_worker_params){.loop = loop,
                                     .world = world,
                                     .host = dial->host,
                                     .port = dial->port,
                                     .key = {dial->key, dial->key_bytes},
                                     .generation = generation,
                                     .connect_limit_ns = 30000000000u};
    td_spmd_node_params(opts, &out->node);
    return files.ca ? td_tls_open_mutual(&files, true, &out->tls, err) : TD_OK;
}

enum { N_SIGNALS = 2 };

/* A worker that has a loop to itself. */
struct run {
    struct td_worker *worker;
    uv_signal_t signals[N_SIGNALS];
    bool heeded[N_SIGNALS]; /* signals[i] is open */
    enum td_status status;
    struct td_err *err;
};

static void on_end(enum td_status status, const struct td_err *err, void *user)
{
    struct run *r = user;

    r->status = status;
    if (status && err)
        *r->err = *err;
    for (int i = 0; i < N_SIGNALS; i++)
        if (r->heeded[i])
            uv_close((uv_handle_t *)&r->signals[i], NULL);
}

/* mpirun hands a SIGTERM on and kills a second later: enough to say why the group ends, not to finish what it has under way. */
static void on_signal(uv_signal_t *signal, int number)
{
    struct run *r = signal->data;
    struct td_err err;

    td_err_set(&err, TD_PEER_LOST, "it was told to end by signal %d (%s)", number,
               strsignal(number));
    td_worker_leave(r->worker, &err);
}

/* Signals that the process ignores stay so: somebody else ends it. */
static void heed_signals(struct run *r, uv_loop_t *loop)
{
    static const int numbers[N_SIGNALS] = {SIGTERM, SIGINT};

    for (int i = 0; i < N_SIGNALS; i++) {
        struct sigaction now;

        if (sigaction(numbers[i], NULL, &now) != 0 || now.sa_handler == SIG_IGN)
            continue;
        uv_signal_init(loop, &r->signals[i]);
        r->signals[i].data = r;
        uv_signal_start(&r->signals[i], on_signal, numbers[i]);
        r->heeded[i] = true;
    }
}

enum td_status td_rank_run(uv_loop_t *loop, struct td_comm *world, const struct td_rank_dial *dial,
                           uint32_t generation, const struct td_options *opts, struct td_err *err)
{
    struct run run = {.status = TD_OK, .err = err};
    struct td_worker_params params;
    enum td_status s;

    s = td_rank_worker_params(loop, world, dial, generation, opts, &params, err);
    s = s ? s : td_worker_start(&params, on_end, &run, &run.worker, err);
    if (s)
        return s;
    heed_signals(&run, loop);
    uv_run(loop, UV_RUN_DEFAULT);
    if (run.status == TD_OK) { /* else the process is about to be left */
        td_worker_close(run.worker);
        td_tls_close(params.tls);
    }
    return run.status;
}
