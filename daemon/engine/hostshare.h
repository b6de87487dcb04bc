/* What one of the processes of a host may take of it: memory, processor time, cores. Reads the system's files (proc(5),
 * cgroups(7)) and asks its neighbours; decides nothing about the model. */
#ifndef TD_DAEMON_ENGINE_HOSTSHARE_H
#define TD_DAEMON_ENGINE_HOSTSHARE_H

#include "kernels/base/err.h"

#include <stdint.h>

struct td_comm;
struct td_cores_share;

/* Bytes that new allocations may take on this host within its control group's limit, 0 when unknown. */
uint64_t td_hostshare_memory_bytes(void);
/* Whole hardware threads of processor time that the control group named in `self` (/proc/self/cgroup), or one above it, is
 * limited to (cpu.max below `root`, /sys/fs/cgroup); at least 1; 0 without a limit. */
uint32_t td_hostshare_quota(const char *root, const char *self);
/* Bytes that the control group named in `self`, or one above it, is limited to: memory.max of version 2, or version 1's
 * memory.limit_in_bytes below root/memory. 0 without a limit. */
uint64_t td_hostshare_memory_limit(const char *root, const char *self);
/* This process's cores and threads; `n_threads` are asked for, 0: as many as it should have. Collective over the processes of
 * the host. */
enum td_status td_hostshare_cores(struct td_comm *host, uint32_t n_threads,
                                  struct td_cores_share *share, struct td_err *err);

#endif
