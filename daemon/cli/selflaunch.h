/* A command that starts itself again as an MPI job, and shows that job's output as its own: one mpirun in the foreground, with the
 * flags that the coordinator gives it (daemon/coordinator/launch.h). Main thread; runs a loop of its own until the job has ended
 * and everything of it is gone. */
#ifndef TD_DAEMON_CLI_SELFLAUNCH_H
#define TD_DAEMON_CLI_SELFLAUNCH_H

#include "kernels/base/err.h"

#include <stdint.h>

struct td_selflaunch_params {
    const char *command;     /* "doctor" */
    uint32_t n_ranks;        /* 0: as many as the hostfile has places */
    const char *hostfile;    /* NULL: this host */
    const char *const *args; /* of the command, ends with NULL */
    uint64_t limit_ns;       /* the job is ended after it */
};

/* Writes the job's standard output to ours, its standard error to ours without what mpirun says of ranks that ended with a
 * status; that is shown where no rank said anything. *exit_status is the job's. TD_INVALID for a hostfile that cannot be read,
 * TD_NOT_FOUND without mpirun, TD_PEER_TIMED_OUT at the limit, TD_CANCELLED by a signal, TD_PEER_LOST for mpirun itself. */
enum td_status td_selflaunch_run(const struct td_selflaunch_params *params, int *exit_status,
                                 struct td_err *err);

#endif
