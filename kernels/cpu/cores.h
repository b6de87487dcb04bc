/* Which physical cores, hardware threads and NUMA nodes there are, and how the processes of one host divide them. Only
 * td_cores_open asks the system (through hwloc); the rest is pure, and knows no ranks: a caller says how many processes
 * share the host and which of them it is. Binds nobody. Any thread. */
#ifndef TD_KERNELS_CPU_CORES_H
#define TD_KERNELS_CPU_CORES_H

#include "kernels/base/err.h"

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    TD_CORES_MAX_CPUS = CPU_SETSIZE
}; /* hardware threads of a host; of more the first are used */

struct td_cores; /* the machine */

/* Where one thread runs. */
struct td_cores_seat {
    uint32_t cpu;  /* hardware thread, as the system numbers them */
    uint32_t node; /* NUMA node; as the system numbers them */
};

/* What the machine has that this process is not kept from, by a cpuset for instance. `synthetic` is another machine in
 * hwloc's synthetic form ("numa:2 core:4 pu:2"); NULL: this one. Without topology every hardware thread is a core. */
enum td_status td_cores_open(const char *synthetic, struct td_cores **cores, struct td_err *err);
void td_cores_close(struct td_cores *cores);
/* Physical cores with at least one hardware thread in `mask`. */
uint32_t td_cores_count(const struct td_cores *cores, const cpu_set_t *mask);
/* With the calling thread's own mask; at least 1. */
uint32_t td_cores_count_mine(const struct td_cores *cores);

/* All processes of the host, in the same order everywhere. */
struct td_cores_ask {
    const cpu_set_t *masks;  /* [n] hardware threads that each may use */
    const uint32_t *threads; /* [n] that each wants; 0: as many as are its own */
    uint32_t n, me;
    uint32_t
        n_quota; /* processor time that all of them may take together, in hardware threads; 0: no limit */
};
/* `me`'s part. */
struct td_cores_share {
    uint32_t n_threads;
    uint32_t n_cores; /* physical cores that it and those with the same mask may use */
    /* Every thread has a hardware thread that no other process was given: it may spin. */
    bool owned;
    /* Threads have seats, neighbours on neighbouring cores and node by node; not under a quota, where the system places them. */
    bool seated;
    struct td_cores_seat seats[TD_CORES_MAX_CPUS]; /* [n_threads] */
};
/* Processes with the same mask divide its physical cores evenly, each a run of neighbours, inside one NUMA node wherever it
 * fits into one; the hardware threads of a core stay together. Masks that nobody else has a part in are their process's
 * own. Without a wish there are as many threads as cores, so in sum never more than cores, but at least one each. More
 * threads than cores use the other hardware threads of the same cores; more than those are not seated. */
void td_cores_divide(const struct td_cores *cores, const struct td_cores_ask *ask,
                     struct td_cores_share *share);
/* "threads 2 on cores 0-1 (1 NUMA node)", with the hardware threads' numbers; at most `bytes` with the end. */
void td_cores_describe(const struct td_cores_share *share, char *text, size_t bytes);

#endif
