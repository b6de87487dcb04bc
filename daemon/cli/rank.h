/* A process that is a rank of a served group: its world, what rank 0 tells the others at the start, and its worker. Shared by
 * `worker` and by `serve` as one MPI job. */
#ifndef TD_DAEMON_CLI_RANK_H
#define TD_DAEMON_CLI_RANK_H

#include "daemon/cli/options.h"
#include "daemon/engine/worker.h"

enum { TD_RANK_MAX_KEY = 1024 };

/* How to reach the coordinator; plain data, broadcast by rank 0. */
struct td_rank_dial {
    char host[256];
    uint16_t port;
    uint32_t key_bytes;
    char key[TD_RANK_MAX_KEY];
};

/* Reads the cluster key, one line of `path` ("-": of standard input), into the dial. TD_INVALID, TD_IO; never shows it. */
enum td_status td_rank_read_key(const char *path, struct td_rank_dial *dial, struct td_err *err);
/* The world of this process: MPI where a launcher started it, else a world of one. */
enum td_status td_rank_open_world(struct td_comm **world, struct td_err *err);
/* Collective: rank 0's `dial` reaches everyone. `status` of rank 0 travels along, so that its failure ends all. */
enum td_status td_rank_share_dial(struct td_comm *world, enum td_status status,
                                  struct td_rank_dial *dial, struct td_err *err);
/* Runs a worker on `loop` until it ends, where nothing else runs on that loop. Returns its status. SIGTERM and SIGINT, unless the
 * process ignores them, end it with an error that the coordinator is told. */
enum td_status td_rank_run(uv_loop_t *loop, struct td_comm *world, const struct td_rank_dial *dial,
                           uint32_t generation, const struct td_options *opts, struct td_err *err);
/* Fills the worker's params from these; the dial is borrowed. With --cluster-ssl-ca it opens the TLS context out->tls,
 * which the caller closes after the worker. TD_INVALID, TD_IO name its file. */
enum td_status td_rank_worker_params(uv_loop_t *loop, struct td_comm *world,
                                     const struct td_rank_dial *dial, uint32_t generation,
                                     const struct td_options *opts, struct td_worker_params *out,
                                     struct td_err *err);

#endif
