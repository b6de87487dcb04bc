/* Children of `tensord bench scale`, one at a time: MPI jobs of this program, with the mpirun line that the coordinator uses
 * (daemon/coordinator/launch.h), and small tools. Holds signals from open to close, so that a caller can put away what it made.
 * Main thread; runs a loop of its own in each call. */
#ifndef TD_DAEMON_CLI_SCALERUN_H
#define TD_DAEMON_CLI_SCALERUN_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct td_scalerun;

/* Everything is borrowed during the call. */
struct td_scalerun_job {
    uint32_t n_ranks;
    const char *hostfile;      /* NULL: this host */
    const char *const *prefix; /* as td_launch_params has it */
    const char *tmp_base;      /* the same */
    const char *command;       /* of this program: "bench" */
    const char *const *args;   /* of it, ends with NULL */
    uint64_t limit_ns;         /* the job is ended after it */
    bool shows_errors;         /* its standard error goes to ours as well */
};

enum td_status td_scalerun_open(struct td_scalerun **run, struct td_err *err);
void td_scalerun_close(struct td_scalerun *run); /* NULL is legal; signals act again */
/* SIGINT, SIGTERM or SIGHUP, if one came since open; 0: none did. */
int td_scalerun_signal(struct td_scalerun *run);

/* Runs the job until it and everything of it is gone, and appends its standard output to *out. TD_CANCELLED after a signal, also
 * when it came before; TD_PEER_TIMED_OUT at the limit; TD_PEER_LOST with what the job said when it failed; of mpirun
 * what td_launch_start has. */
enum td_status td_scalerun_start(struct td_scalerun *run, const struct td_scalerun_job *job,
                                 struct td_bytes *out, struct td_err *err);
/* Runs a program by its path, argv ends with NULL. A signal does not end it, the limit does. TD_NOT_FOUND, TD_IO; TD_UNAVAILABLE with
 * what it said when it failed. */
enum td_status td_scalerun_tool(struct td_scalerun *run, const char *const *argv, uint64_t limit_ns,
                                struct td_bytes *out, struct td_err *err);

/* From a failed job's standard error what tells most: the first line in which this program names an error, else all lines
 * but frames and progress, joined. Writes one line. Returns out. */
const char *td_scalerun_reason(struct td_str text, char *out, size_t out_bytes);

#endif
