/* The group seam: what the ranks of one group say to each other inside a step.
 * One table of operations per transport (self, mpi, shm, sim); callers use td_comm_*, which check arguments once. One thread at a
 * time uses an end, in whichever of its groups: the compute thread, or in its place the one of sumthread.h; only td_comm_abort
 * and td_comm_ring are for any thread. Knows no requests, sockets or addresses. Every wait honours the deadline and the abort. After any error but TD_INVALID and TD_TOO_LARGE (found before a byte is sent) this end is
 * unusable, with every group split from it and the one that it was split from: all later operations return the same
 * status at once. The buffers of a failed operation may still be read or written by the transport, so they live until
 * the process ends or are not used again. */
#ifndef TD_COMM_COMM_H
#define TD_COMM_COMM_H

#include "comm/tree.h"
#include "kernels/base/err.h"

#include <stdatomic.h>
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
/* The same over shared memory, as it is between the processes of a host; ranks r with equal hosts[r] are on one host,
 * others exchange messages only. `hosts` NULL: all on one. */
enum td_status td_comm_shm_open(uint32_t n_ranks, const uint32_t *hosts, struct td_comm **comms,
                                struct td_err *err);
/* The world of an MPI job. Ranks of one host share memory; where some rank cannot, all send messages. Initialises MPI
 * (MPI_THREAD_MULTIPLE) on first use, and ignores SIGPIPE from then on where nobody handles it: a peer's death is no signal.
 * Collective, and the only call that waits without a deadline: the launcher watches over it. TD_UNSUPPORTED after MPI was
 * finalised or given up in this process. */
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
/* "self", "sim", "mpi"; "shm" when all ranks are on one host and share its memory, "shm+mpi" when some do. */
const char *td_comm_transport(const struct td_comm *comm);
void td_comm_stats(const struct td_comm *comm, struct td_comm_stats *out);
void td_comm_stats_reset(struct td_comm *comm);
/* What a rank is at, as another thread sees it while the owner goes on. */
struct td_comm_at {
    const char *op;   /* "tree_sum", the operation it is in, static; NULL: in none */
    uint64_t n_begun; /* operations so far, of all groups of this world */
};
/* Any thread; not after the close of `comm`. */
void td_comm_look_at(const struct td_comm *comm, struct td_comm_at *out);
/* How long one operation may wait for its peers; 0 means no limit. Default 0. */
void td_comm_set_deadline(struct td_comm *comm, uint64_t op_limit_ns);
/* How long a wait spins before it yields the core at every look, and a moment later sleeps until it is woken. 0 for ranks that
 * share cores. Default: 50 us on MPI where every rank of the host has a core, else 0. */
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
/* What all ranks have got: each tells its own status, with the cause in *err. *all is TD_OK where every rank's is, else that of the lowest rank
 * whose is not, and *err "rank 3: its cause": the same on all. What is returned is of the exchange alone. */
enum td_status td_comm_agree(struct td_comm *comm, enum td_status mine, enum td_status *all,
                             struct td_err *err);

/* For a rank that has nothing to do until `root` broadcasts in this group. Whether that can wake it: `root`'s word reaches it
 * through its host's memory. */
bool td_comm_can_rest(const struct td_comm *comm, uint32_t root);
/* Sleeps until the broadcast has come to this host or the group is given up (true: call td_comm_bcast), or until td_comm_ring,
 * limit_ns, or because *unless is true (false). */
bool td_comm_rest(struct td_comm *comm, uint32_t root, uint64_t limit_ns,
                  const atomic_bool *unless);
/* Ends this end's td_comm_rest after *unless was set. Any thread; not after the close of `comm`. */
void td_comm_ring(struct td_comm *comm);

/* Who owns which leaves of one sum. Rank r owns runs[r] (possibly empty); runs are disjoint, ascending, and cover
 * 0 .. n_leaves. */
struct td_tree_layout {
    uint32_t n_leaves;
    const struct td_leaf_run *runs; /* [size of the group], borrowed for the call */
};
/* Sums over leaves in the fixed tree. `parts` holds this rank's subtrees (td_tree_parts order), each [n_floats],
 * contiguous. `scratch` has room for all parts of the group: n_parts(group) * n_floats floats, apart from `parts` and
 * `out`. Writes `out` [n_floats] on every rank, the same bits; it may be exactly one part of `parts`. Moves floats from
 * rank to rank and never calls a reduction of the transport; the bits do not depend on the algorithm. */
enum td_status td_comm_tree_sum(struct td_comm *comm, const struct td_tree_layout *layout,
                                const float *parts, size_t n_floats, float *scratch, float *out,
                                struct td_err *err);
/* Payload bytes that rank `rank` sends in one such operation, for the plan: exactly what the stats count where no other
 * algorithm was set or measured and all ranks are on one host, or each on its own. Not linear in n_floats: a sum of more
 * than 256 KB over three ranks or more goes in two shots, which sends less (through shared memory in pieces of 128 KB at most,
 * in each of which the ranks' slices are rounded to 16 floats: some ranks send a little more, others less). */
size_t td_comm_tree_sum_bytes(const struct td_tree_layout *layout, uint32_t n_ranks, uint32_t rank,
                              size_t n_floats);
/* Messages that wait for each other in one such operation, so the delays of a link that it takes: 0 for one rank. */
uint32_t td_comm_tree_sum_rounds(uint32_t n_ranks, size_t n_floats);

/* Ways to bring the parts of a tree_sum together; all give the same bits. */
enum td_sum_algorithm {
    TD_SUM_AUTO,     /* what was measured, else a rule */
    TD_SUM_ONE_SHOT, /* every rank's parts go to every rank */
    TD_SUM_TWO_SHOT, /* every rank joins a slice, then the slices go to every rank */
    TD_SUM_DOUBLING, /* recursive doubling: log2(ranks) rounds of one message */
    /* Several hosts: inside each through its shared memory, between them by a leader of each, or by lanes (every rank a
     * slice, with the ranks of the same place on other hosts), in one shot or by doubling. */
    TD_SUM_LEADERS,
    TD_SUM_LANES,
    TD_SUM_LEADERS_DOUBLING,
    TD_SUM_LANES_DOUBLING,
    TD_N_SUM_ALGORITHMS
};
const char *td_comm_sum_name(enum td_sum_algorithm algorithm); /* "one-shot" */
/* Whether it is another way than the ones before it for this group. TD_SUM_AUTO: always. */
bool td_comm_sum_supports(const struct td_comm *comm, enum td_sum_algorithm algorithm);
/* Takes `algorithm` for all sums of this group that support it; TD_SUM_AUTO: the measured ones again. On all ranks alike. */
void td_comm_set_sum_algorithm(struct td_comm *comm, enum td_sum_algorithm algorithm);
/* What a sum of n_floats takes. */
enum td_sum_algorithm td_comm_sum_algorithm(const struct td_comm *comm, size_t n_floats);

/* What floats of a sum are on their way between hosts, or between ranks that share no memory. Anything but F32 is inexact: the
 * same on all ranks, but not the same for another layout. */
enum td_exchange_dtype { TD_EXCHANGE_F32, TD_EXCHANGE_BF16, TD_EXCHANGE_Q8_0 };
void td_comm_set_exchange(struct td_comm *comm,
                          enum td_exchange_dtype dtype); /* on all ranks alike */

/* What was measured to be the fastest for sums of 2^c to 2^(c+1) - 1 bytes (n_floats * 4). */
enum { TD_SUM_CLASSES = 28 };
struct td_sum_choices {
    enum td_sum_algorithm by_class[TD_SUM_CLASSES]; /* TD_SUM_AUTO: not measured */
};
void td_comm_set_sum_choices(struct td_comm *comm, const struct td_sum_choices *choices);

#endif
