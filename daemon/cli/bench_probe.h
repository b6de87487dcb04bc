/* Memory bandwidth of a group's hosts, measured by all their ranks together. Knows no model. */
#ifndef TD_DAEMON_CLI_BENCH_PROBE_H
#define TD_DAEMON_CLI_BENCH_PROBE_H

#include "comm/comm.h"
#include "kernels/base/err.h"

#include <sched.h>
#include <stdint.h>

struct td_bench_probe_params {
    struct td_comm *world;
    uint32_t n_threads;   /* of this rank */
    uint64_t most_memory; /* bytes that this rank may take for it; 0: not known */
    cpu_set_t
        cores; /* that the process was started with; the caller is back on its own afterwards */
};

/* Collective over the world. Bytes per second of the best way and pass, summed over the hosts; the same on all ranks. Takes
 * about a second. */
enum td_status td_bench_probe_run(const struct td_bench_probe_params *params,
                                  double *bytes_per_second, struct td_err *err);

#endif
