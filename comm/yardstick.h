/* What a group's own operations are held against: the calls of MPI that do the same, and between two ranks of one host a bare
 * exchange, the least that a sum of two vectors can take. For measurement only. Compute thread; of an MPI job whose world
 * is open (td_comm_mpi_open), over all its ranks in their order, each call collective.
 *
 * MPI's calls wait without a deadline: whoever measures watches over them. The bare exchange has one. After a failure MPI is
 * not called again. */
#ifndef TD_COMM_YARDSTICK_H
#define TD_COMM_YARDSTICK_H

#include "comm/comm.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct td_yardstick;

/* For messages and sums of at most `most_bytes`, below 2^31. The bare exchange takes two buffers of that size per rank in
 * shared memory. `world` is asked for its rank and size only. TD_UNSUPPORTED when MPI is not up. */
enum td_status td_yardstick_open(const struct td_comm *world, size_t most_bytes,
                                 struct td_yardstick **yardstick, struct td_err *err);
/* `failed`: the job is on its way out, MPI is not called. NULL is legal. */
void td_yardstick_close(struct td_yardstick *yardstick, bool failed);

/* MPI_Allreduce of floats with MPI_SUM, in MPI's own order; its result goes nowhere but into a comparison. */
enum td_status td_yardstick_sum(struct td_yardstick *y, const float *in, size_t n_floats,
                                float *out, struct td_err *err);
/* MPI_Bcast. */
enum td_status td_yardstick_bcast(struct td_yardstick *y, uint32_t root, void *data, size_t bytes,
                                  struct td_err *err);
/* MPI_Allgather: `bytes` of each rank; `recv` has room for those of all. */
enum td_status td_yardstick_all_gather(struct td_yardstick *y, const void *send, size_t bytes,
                                       void *recv, struct td_err *err);
/* MPI_Sendrecv, `bytes` in each direction. */
enum td_status td_yardstick_sendrecv(struct td_yardstick *y, uint32_t to, const void *send,
                                     uint32_t from, void *recv, size_t bytes, struct td_err *err);
/* MPI_Barrier. */
enum td_status td_yardstick_barrier(struct td_yardstick *y, struct td_err *err);

/* Why there is no bare exchange, "3 ranks, it is one of 2"; NULL: there is one. The same on all ranks. */
const char *td_yardstick_no_bare(const struct td_yardstick *y);
/* out = rank 0's `in` + rank 1's, on both. Each copies its floats to a buffer of its own that the other can read, sets a flag,
 * waits for the other's flag and adds; two buffers by turns, so no second wait is needed. TD_PEER_TIMED_OUT after
 * `limit_ns`. */
enum td_status td_yardstick_bare_sum(struct td_yardstick *y, const float *in, size_t n_floats,
                                     float *out, uint64_t limit_ns, struct td_err *err);

#endif
