/* How fast this process's threads can read memory and multiply: what the speed of a step is held against.
 * Owns a buffer and a pool of its own, so it runs between steps, not beside them. One owner; every pass blocks until all
 * threads are done. */
#ifndef TD_KERNELS_CPU_PROBE_H
#define TD_KERNELS_CPU_PROBE_H

#include "kernels/base/err.h"
#include "kernels/cpu/cores.h"
#include "kernels/cpu/probe_peak.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct td_probe;

struct td_probe_params {
    uint32_t n_threads; /* with the caller; >= 1 */
    size_t bytes;       /* of the buffer, rounded to 2 MiB; much more than the caches is sensible */
    /* Of each thread, the caller's first, which is bound for good. NULL: nobody is bound. */
    const struct td_cores_seat *seats;
};

/* Allocates and touches the buffer. TD_NO_MEMORY. */
enum td_status td_probe_open(const struct td_probe_params *params, struct td_probe **probe,
                             struct td_err *err);
void td_probe_close(struct td_probe *probe); /* NULL is legal */

/* Ways of reading that differ in how many places of the buffer a thread reads at a time: which is fastest depends on the
 * machine, so callers take the best of all. */
uint32_t td_probe_ways(void);
/* Reads the whole buffer once with all threads in one of the ways. Returns how many bytes it has. */
uint64_t td_probe_read(struct td_probe *probe, uint32_t way);
/* Multiplies for about 12 ms with all threads. Returns how many operations that was; 0 where the CPU has no instruction. */
uint64_t td_probe_multiply(struct td_probe *probe, enum td_peak kind);

#endif
