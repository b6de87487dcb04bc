/* What the ranks of one host read of each other's GPUs, and the sums that go that way: one kernel (nccl/peersum.h) where NCCL needs an
 * exchange and a join. Inside of nccl.h; included by nccl.c, nccl_ops.c and its own file only. */
#ifndef TD_COMM_NCCLPEERS_H
#define TD_COMM_NCCLPEERS_H

#include "comm/nccl/ncclplug.h"
#include "comm/ncclsum.h"

struct td_ncclpeers;

/* Collective over `comm`: all succeed or all fail for one reason. TD_UNSUPPORTED: not between these ranks. */
enum td_status td_ncclpeers_open(struct td_comm *comm, const struct td_ncclplug *plug,
                                 struct td_ncclpeers **peers, struct td_err *err);
/* `together`: on all ranks, none of which is in a sum; they wait for each other before their memory goes. NULL is legal. */
void td_ncclpeers_close(struct td_ncclpeers *peers, bool together);
/* Ends the sums that wait. Any thread. */
void td_ncclpeers_end(struct td_ncclpeers *peers);

/* Sums of up to so many floats go this way; 0, at first: none. The same on all ranks. */
void td_ncclpeers_set_most(struct td_ncclpeers *peers, size_t n_floats);
/* The most floats that could. */
size_t td_ncclpeers_limit(const struct td_ncclsum *sum);
bool td_ncclpeers_takes(const struct td_ncclpeers *peers, const struct td_ncclsum *sum,
                        size_t n_floats);
/* One that it takes. */
enum td_status td_ncclpeers_sum(struct td_ncclpeers *peers, const struct td_ncclsum *sum,
                                const float *parts, size_t n_floats, float *out, void *stream,
                                struct td_err *err);

#endif
