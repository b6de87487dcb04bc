/* One launch of a group's processes: `mpirun` as a child, its output as log lines, and its end with everything that
 * belonged to it (ranks of this host, session files, shared memory). Owns the child, its pipes and a fresh directory.
 * Loop thread only; knows no group, no plan and no control stream.
 *
 * libuv cannot set PR_SET_PDEATHSIG on the child, so mpirun is not killed with us. The ranks end themselves when the
 * control stream to the coordinator closes (engine/worker.h), and mpirun ends with its last rank; a keeper (keeper.h) ends
 * what does not, a rank that was stopped for instance, and removes the directory. */
#ifndef TD_DAEMON_COORDINATOR_LAUNCH_H
#define TD_DAEMON_COORDINATOR_LAUNCH_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct td_launch;

/* Ports of MPI's own, one range per host: 16 for mpirun and its daemons, 64 for the ranks' TCP. They know no key: the
 * range is for the firewall. */
enum { TD_LAUNCH_PORT_BASE = 47100, TD_LAUNCH_OOB_PORTS = 16, TD_LAUNCH_RANK_PORTS = 64 };

/* Bytes of a command's output as they come, of mpirun and all ranks together. Called from the loop, with the user of
 * td_launch_start. */
typedef void td_launch_output_fn(const char *data, size_t n, bool is_stderr, void *user);

/* How a launch ended. Borrowed during the callback. */
struct td_launch_end {
    int64_t exit_status; /* of mpirun */
    int term_signal;     /* that killed mpirun; 0: none */
    bool stopped;        /* td_launch_stop or _close was called */
    bool by_itself;      /* but mpirun was gone before */
    const char *lines;   /* what it printed last, joined by "; "; "" when nothing */
};
/* Called once from the loop, when mpirun is gone, its ranks on this host are gone and its directory is removed. */
typedef void td_launch_end_fn(const struct td_launch_end *end, void *user);

/* Everything is borrowed during td_launch_start only. */
struct td_launch_params {
    uv_loop_t *loop;           /* borrows until td_launch_close's end */
    const char *program;       /* what the ranks run, on every host; NULL: this program */
    const char *mpirun;        /* name (looked up in PATH) or path; NULL: "mpirun" */
    uint32_t n_ranks;          /* 0: as many as the hostfile has places, for a command only */
    const char *hostfile;      /* NULL: all ranks on this host */
    const char *command;       /* that the ranks run instead of "worker"; NULL: worker */
    const char *coordinator;   /* "host:port" that the workers dial; a command has none */
    struct td_str cluster_key; /* one line, goes over stdin to rank 0; empty: none */
    uint32_t generation;
    const char *const
        *worker_args; /* more arguments of the worker or the command, ends with NULL; may be NULL */
    /* Takes the output instead of the log; NULL: lines go to the log, tagged with their rank. */
    td_launch_output_fn *on_output;
    /* Words before mpirun that run it elsewhere on this host, the first a file's path; ends with NULL; may be NULL. */
    const char *const *prefix;
    /* This program, for a process that clears up should this one be killed (td_keeper_run); NULL: none. */
    const char *keeper;
    /* mpirun was killed by a signal of somebody else's, which says that its ranks are as good as gone; `lines` are not known yet, and
     * on_end follows. NULL: nobody is told. Called from the loop. */
    td_launch_end_fn *on_fall;
    const char *tmp_base; /* where the fresh directory is made; NULL: chosen */
    uint16_t port_base;   /* 0: TD_LAUNCH_PORT_BASE */
};

/* Starts mpirun. TD_NOT_FOUND says what to install when there is none; TD_INVALID for a hostfile that cannot be read;
 * TD_IO, TD_NO_MEMORY. The command line of the ranks is
 *     program worker --coordinator HOST:PORT --generation G [--cluster-key-file -] worker_args...
 * or, with a command, `program command worker_args...`;
 * "-" means that the key is the first line of rank 0's stdin. An MCA choice that the environment holds
 * (OMPI_MCA_<name>) is left as the user set it. */
enum td_status td_launch_start(const struct td_launch_params *params, td_launch_end_fn *on_end,
                               void *user, struct td_launch **launch, struct td_err *err);
/* The fence: kills mpirun, and with it every rank on every host. on_end follows. Again, or late, it does nothing. */
void td_launch_stop(struct td_launch *l);
/* Frees; before the end it stops first, and on_end is not called any more. Legal inside on_end; NULL is legal. */
void td_launch_close(struct td_launch *l);
/* For a rank: holds the launch's directory on this host for its life, and removes what dead launches left beside it, which on a
 * host without a coordinator nobody else does. Blocks for some milliseconds. */
void td_launch_join(void);
int td_launch_pid(const struct td_launch *l); /* of mpirun */

/* "mpirun was killed by signal 9 (Killed): <lines>" as an error of `status`. Returns it. */
enum td_status td_launch_describe(const struct td_launch_end *end, enum td_status status,
                                  struct td_err *err);

#endif
