/* The group seam: what the ranks of one group say to each other inside a step.
 * One table of operations per transport (self, mpi, sim); callers use td_comm_*, which check arguments once. Called on
 * the compute thread only, except td_comm_abort. Knows no requests, sockets or addresses. Every wait honours the
 * deadline and the abort. After any error but TD_INVALID and TD_TOO_LARGE (found before a byte is sent) this end is
 * unusable, with every group split from it and the one that it was split from: all later operations return the same
 * status at once. The buffers of a failed operation may still be read or written by the transport, so they live until
 * the process ends or are not used again. */
#ifndef TD_COMM_COMM_H
#define TD_COMM_COMM_H

#include "comm/tree.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct td_comm; /* opaque handle of one rank's end of one group */

/* Bytes and time since the last reset. Written by the owner thread; read there. */
struct td_comm_stats {
    uint64_t sent_bytes; /* payload this rank sent to other ranks */
    uint64_t n_ops;
    uint64_t wait_ns; /* spent inside operations */
};

/* A world of one. */
enum td_status td_comm_self_open(struct td_comm **comm, struct td_err *err);
/* `n_ranks` ends of one simulated group in this process, for tests: comms[0..n_ranks). Each end is driven by its own
 * thread. */
enum td_status td_comm_sim_open(uint32_t n_ranks, struct td_comm **comms, struct td_err *err);
/* The world of an MPI job. Initialises MPI (MPI_THREAD_MULTIPLE) on first use. Collective, and the only call that
 * waits without a deadline: the launcher watches over it. TD_UNSUPPORTED after MPI was finalised or given up in this
 * process. */
enum td_status td_comm_mpi_open(struct td_comm **comm, struct td_err *err);
/* A new group of those ranks that gave the same colour, ordered by key then old rank. Collective over `comm`. A
 * negative colour joins none: *sub is NULL. The new group starts with `comm`'s deadline and spin. */
enum td_status td_comm_split(struct td_comm *comm, int colour, int key, struct td_comm **sub,
                             struct td_err *err);
/* The ranks that share this host's memory, as a group. Collective. */
enum td_status td_comm_split_host(struct td_comm *comm, struct td_comm **sub, struct td_err *err);
/* Frees; closing the last MPI group finalises MPI unless the group was aborted. NULL is legal. */
void td_comm_close(struct td_comm *comm);

uint32_t td_comm_rank(const struct td_comm *comm);
uint32_t td_comm_size(const struct td_comm *comm);
const char *td_comm_transport(const struct td_comm *comm); /* "self", "sim", "mpi" */
void td_comm_stats(const struct td_comm *comm, struct td_comm_stats *out);
void td_comm_stats_reset(struct td_comm *comm);
/* How long one operation may wait for its peers; 0 means no limit. Default 0. */
void td_comm_set_deadline(struct td_comm *comm, uint64_t op_limit_ns);
/* How long a wait spins before it yields the core at every probe. 0 for ranks that share cores. Default: 50 us on MPI
 * where every rank of the host has a core, else 0. */
void td_comm_set_spin(struct td_comm *comm, uint64_t spin_ns);
/* Makes every present and later wait of this end, in all its groups, return TD_PEER_LOST. Any thread; not after the
 * close of `comm`. */
void td_comm_abort(struct td_comm *comm);

/* Every rank calls the operations of a group in the same order. A send may wait until its receiver takes the message
 * (above 2048 bytes it mostly does), so two ranks must not send to each other at once. No bytes is legal and sends
 * nothing. */
enum td_status td_comm_send(struct td_comm *comm, uint32_t to, const void *data, size_t bytes,
                            struct td_err *err);
enum td_status td_comm_recv(struct td_comm *comm, uint32_t from, void *data, size_t bytes,
                            struct td_err *err);
/* Sends to one rank and receives from one, perhaps another, at the same time: neither waits for the other, so a ring of ranks may call
 * it. No bytes in a direction is legal; its rank means nothing then. */
enum td_status td_comm_sendrecv(struct td_comm *comm, uint32_t to, const void *data, size_t bytes,
                                uint32_t from, void *recv, size_t recv_bytes, struct td_err *err);
/* In: at the root `data`; out: everywhere. `bytes` is equal on all ranks. */
enum td_status td_comm_bcast(struct td_comm *comm, uint32_t root, void *data, size_t bytes,
                             struct td_err *err);
/* Rank r gives bytes[r] from `send`; everyone gets all of them, in rank order, in `recv` (sum of bytes). */
enum td_status td_comm_all_gather(struct td_comm *comm, const void *send, const size_t *bytes,
                                  void *recv, struct td_err *err);
/* As all_gather, but only `root` receives (recv is ignored elsewhere). */
enum td_status td_comm_gather(struct td_comm *comm, uint32_t root, const void *send,
                              const size_t *bytes, void *recv, struct td_err *err);
enum td_status td_comm_barrier(struct td_comm *comm, struct td_err *err);

/* Who owns which leaves of one sum. Rank r owns runs[r] (possibly empty); runs are disjoint, ascending, and cover
 * 0 .. n_leaves. */
struct td_tree_layout {
    uint32_t n_leaves;
    const struct td_leaf_run *runs; /* [size of the group], borrowed for the call */
};
/* Sums over leaves in the fixed tree. `parts` holds this rank's subtrees (td_tree_parts order), each [n_floats],
 * contiguous. `scratch` has room for all parts of the group in leaf order: n_parts(group) * n_floats floats; `parts`
 * may lie at its own place in there. Writes `out` [n_floats] on every rank, the same bits; it may be exactly one part
 * of `parts`, and is not in `scratch` otherwise. Moves floats point to point and never calls a reduction of the
 * transport. */
enum td_status td_comm_tree_sum(struct td_comm *comm, const struct td_tree_layout *layout,
                                const float *parts, size_t n_floats, float *scratch, float *out,
                                struct td_err *err);
/* Payload bytes that rank `rank` sends in one such operation, for the plan: exactly what the stats count. Not linear
 * in n_floats: a sum of more than 256 KB over three ranks or more goes another way, which sends less. */
size_t td_comm_tree_sum_bytes(const struct td_tree_layout *layout, uint32_t n_ranks, uint32_t rank,
                              size_t n_floats);

#endif
