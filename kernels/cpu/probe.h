/* How fast this process's threads can read memory: what a decode step's speed is held against.
 * Owns a buffer and a pool of its own, so it runs between steps, not beside them. The threads may run wherever the caller
 * may: who binds threads to cores lets go of them before the open. */
#ifndef TD_KERNELS_CPU_PROBE_H
#define TD_KERNELS_CPU_PROBE_H

#include "kernels/base/err.h"

#include <stddef.h>
#include <stdint.h>

struct td_probe;

/* Allocates and touches `bytes` (at least 1 MiB per thread is sensible). TD_NO_MEMORY. */
enum td_status td_probe_open(uint32_t n_threads, size_t bytes, struct td_probe **probe,
                             struct td_err *err);
void td_probe_close(struct td_probe *probe); /* NULL is legal */

/* Ways of reading that differ in how many places of the buffer a thread reads at a time: which is fastest depends on the
 * machine, so callers take the best of all. */
uint32_t td_probe_ways(void);
/* Reads the whole buffer once with all threads in one of the ways; returns when all are done. */
void td_probe_pass(struct td_probe *probe, uint32_t way);

#endif
