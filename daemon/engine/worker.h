/* A worker's loop side: one connection to the coordinator, over which it registers, is told what to load, and reports. It
 * computes nothing; the compute thread does (compute.h). Loop thread only.
 * When the coordinator is gone, or silent for longer than the lease that it grants with every ping, the worker ends itself:
 * nothing of an old group may outlive it. */
#ifndef TD_DAEMON_ENGINE_WORKER_H
#define TD_DAEMON_ENGINE_WORKER_H

#include "daemon/engine/compute.h"

#include <uv.h>

struct td_tls;
struct td_worker;

struct td_worker_params {
    uv_loop_t *loop;       /* borrows */
    struct td_comm *world; /* borrows */
    const char *host;      /* of the coordinator; borrows during start */
    uint16_t port;
    struct td_str key;   /* cluster key; empty: none. Borrows during start */
    struct td_tls *tls;  /* mutual TLS, client side; NULL: plaintext. Borrows */
    uint32_t generation; /* which launch of the group this is; 0: not launched by a coordinator */
    uint64_t connect_limit_ns; /* how long to try to reach the coordinator */
    struct td_node_params node;
};
/* Called once from the loop when the worker has ended: TD_OK after a shutdown that was asked for. All handles are closed. */
typedef void td_worker_end_fn(enum td_status status, const struct td_err *err, void *user);

enum td_status td_worker_start(const struct td_worker_params *params, td_worker_end_fn *on_end,
                               void *user, struct td_worker **worker, struct td_err *err);
/* Ends the worker for a reason of its own, such as a signal: the coordinator is told `why`, which on_end gives back. What the group
 * has under way is lost. */
void td_worker_leave(struct td_worker *w, const struct td_err *why);
/* After on_end. Joins the compute thread, which after a failure may still finish a kernel: a process that only wants to be gone
 * leaves instead. */
void td_worker_close(struct td_worker *w);

#endif
