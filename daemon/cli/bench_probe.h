/* What a group's hosts can do, measured by all their ranks together: reading memory and multiplying. Knows no model.
 * Opened once and taken many times, so that a probe stands before and after every measurement. Collective over the world, but
 * for close; the numbers are the same on all ranks. */
#ifndef TD_DAEMON_CLI_BENCH_PROBE_H
#define TD_DAEMON_CLI_BENCH_PROBE_H

#include "comm/comm.h"
#include "kernels/base/err.h"
#include "kernels/cpu/probe_peak.h"

#include <stdint.h>

struct td_bench_probe;

struct td_bench_probe_params {
    struct td_comm *world;              /* borrows until close */
    uint32_t n_threads;                 /* of this rank; at most those of `cores` */
    uint64_t most_memory;               /* bytes that this rank may take for it; 0: not known */
    uint64_t idle_ns;                   /* how long this rank's own threads spin on after a step */
    const struct td_cores_share *cores; /* this rank's, as the device has them */
};

/* Bytes and operations per second, summed over the hosts; 0: not measured, or a host has no instruction for it. */
struct td_bench_limits {
    double memory;
    double peak[TD_N_PEAKS];
};

/* Bits of what is taken. */
enum { TD_BENCH_MEMORY = 1 << TD_N_PEAKS, TD_BENCH_ALL = (TD_BENCH_MEMORY << 1) - 1 };
static inline unsigned td_bench_peak_bit(enum td_peak kind)
{
    return 1u << kind;
}

enum td_status td_bench_probe_open(const struct td_bench_probe_params *params,
                                   struct td_bench_probe **probe, struct td_err *err);
void td_bench_probe_close(struct td_bench_probe *probe); /* NULL is legal */
/* The best of several short samples of everything in `what`: about 0.1 s for memory and 40 ms for each kind. Others in
 * *limits stay as they are. */
enum td_status td_bench_probe_take(struct td_bench_probe *probe, unsigned what,
                                   struct td_bench_limits *limits, struct td_err *err);

#endif
