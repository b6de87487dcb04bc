/* NCCL between the GPUs of a group: operations on device memory that are enqueued on a stream, beside a td_comm group of
 * the same ranks, which carries what is needed to start. Loads the plug-in tensord-nccl.so (comm/nccl/), so this side needs
 * no CUDA header and runs where there is no GPU: device pointers and streams (cudaStream_t) are void *.
 *
 * Called on one thread, the one that opened the end and whose CUDA device stays the end's, except td_nccl_abort. Every wait
 * ends: with the peers, at its deadline, or at td_nccl_abort. After any error but TD_INVALID, TD_TOO_LARGE and TD_UNSUPPORTED
 * the end is unusable: later operations return the same status, after an abort TD_PEER_LOST; then abort and close it. */
#ifndef TD_COMM_NCCL_H
#define TD_COMM_NCCL_H

#include "comm/ncclsum.h"
#include "kernels/base/dtype.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct td_comm;
struct td_nccl;     /* opaque: this rank's end of one NCCL communicator */
struct td_nccl_lib; /* opaque: the plug-in and the NCCL library that it opened */

/* ---- the library ---- */

/* Opens the plug-in `plugin` and through it the NCCL library `library`. NULL: tensord-nccl.so beside the program or in its
 * package's library folder, and libnccl.so.2 where the loader finds it. Needs no GPU. *lib: returns owned, td_nccl_unload;
 * the code itself stays in the process. TD_NOT_FOUND, TD_CORRUPT (it is no such library), TD_PEER_MISMATCH (a plug-in of another
 * build), TD_DEVICE. */
enum td_status td_nccl_load(const char *plugin, const char *library, struct td_nccl_lib **lib,
                            struct td_err *err);
void td_nccl_unload(struct td_nccl_lib *lib);
/* As NCCL counts: 22809 is 2.28.9. */
int td_nccl_version(const struct td_nccl_lib *lib);
/* "NCCL 2.28.9 (built against 2.28.9, CUDA 13.0)"; returns `out`. */
const char *td_nccl_version_text(const struct td_nccl_lib *lib, char *out, size_t out_bytes);
/* TD_OK when versions[0 .. n_ranks) are one version that is new enough; else TD_PEER_MISMATCH or TD_UNSUPPORTED, with the rank,
 * its version and the expected one. */
enum td_status td_nccl_judge_versions(const int *versions, uint32_t n_ranks, struct td_err *err);

/* ---- one end ---- */

struct td_nccl_config {
    const char *plugin, *library; /* for td_nccl_load */
    int device;                   /* CUDA's ordinal */
    uint64_t open_limit_ns;       /* of td_nccl_open; 0: 60 s */
    uint64_t
        op_limit_ns; /* how long the host's part of one operation, or of the close, may take; 0: 60 s */
    /* Lets operations be captured in a graph although ranks are on several hosts and NCCL is older than 2.30.7, which may
     * deadlock when it is replayed (2.28.9 was seen to). */
    bool captures_across_hosts;
    /* Called on the end's own thread before NCCL is closed or broken off, which waits for every graph that holds an operation of it: there is
     * none any more when this returns. NULL: nobody captures. */
    void (*drop_graphs)(void *user);
    void *user;
};

/* Joins a communicator of the ranks of `comm`, in their order, each with its device. Collective over `comm`, whose deadline is
 * replaced for the call, and which is borrowed until the close: once it is given up or aborted, this end's waits end too. All ranks succeed or all fail, for one reason that names a
 * rank: it lacks the plug-in, the library or the device, or versions differ or are too old. Two ranks on one GPU need an
 * NCCL_HOSTID each. TD_PEER_TIMED_OUT when a rank does not come. */
enum td_status td_nccl_open(struct td_comm *comm, const struct td_nccl_config *config,
                            struct td_nccl **nccl, struct td_err *err);
/* Flushes and frees; an end that failed is aborted instead. Waits up to op_limit_ns for the flush. After the last operation
 * of any other thread on it. NULL is legal. */
void td_nccl_close(struct td_nccl *nccl);
/* From now on the host's part of one operation, and a wait without a limit of its own, may take so long; 0: the 60 s. */
void td_nccl_set_limit(struct td_nccl *nccl, uint64_t op_limit_ns);
/* Ends everything that is enqueued or waited for on this end. Any thread; the first call counts, and may take as long as NCCL
 * needs to give its resources back; on another thread only where nobody captures. */
void td_nccl_abort(struct td_nccl *nccl);
/* TD_OK while nothing has failed on the way, else NCCL's error. Does not wait. */
enum td_status td_nccl_poll(struct td_nccl *nccl, struct td_err *err);
/* Waits until the device has done what is enqueued on `stream`. `limit_ns` from now on; 0: op_limit_ns. TD_PEER_TIMED_OUT,
 * TD_PEER_LOST, TD_DEVICE. Not while the stream is being captured. */
enum td_status td_nccl_wait(struct td_nccl *nccl, void *stream, uint64_t limit_ns,
                            struct td_err *err);
/* How long what `enqueue` puts on the stream takes from there to its end, the best of a few times, after that before it has ended. The errors
 * of both. */
enum td_status td_nccl_time(struct td_nccl *nccl, void *stream,
                            enum td_status (*enqueue)(void *user, struct td_err *err), void *user,
                            uint64_t *ns, struct td_err *err);
/* Whether operations may be captured in a graph here: one host, or an NCCL that is known to bear it, or configured. Where
 * not, an operation on a stream that is being captured returns TD_UNSUPPORTED. */
bool td_nccl_captures(const struct td_nccl *nccl);

/* Memory of the GPUs that the ranks read of each other (CUDA IPC), so that a tree sum can be one kernel of ours. Collective over the group
 * of td_nccl_open; the same answer on all ranks. TD_UNSUPPORTED with the reason: not between these ranks, and nothing has changed. */
enum td_status td_nccl_open_peers(struct td_nccl *nccl, struct td_err *err);
/* From now on tree sums of up to so many floats go that way, with the same bits; 0, at first: none. The same on all ranks, between two
 * sums. Ranks of such a sum spin on their devices until the last one is there, or td_nccl_abort. */
void td_nccl_set_peer_sums(struct td_nccl *nccl, size_t most_floats);
/* The most floats that could; 0: not open. */
size_t td_nccl_peer_limit(const struct td_nccl *nccl, const struct td_ncclsum *sum);

/* ---- operations ---- */

/* Every rank enqueues the operations of a communicator in the same order. They return when the device has them in its
 * queue, allocate nothing and wait for no device; the first one with a peer connects to it and so waits for that peer, up to
 * op_limit_ns. They may be captured in a graph, in thread-local or relaxed mode, once each of them has run outside of
 * one. Buffers are device memory, borrowed until the stream has passed. No bytes enqueues nothing. */
enum td_status td_nccl_send(struct td_nccl *nccl, uint32_t to, const void *data, size_t bytes,
                            void *stream, struct td_err *err);
enum td_status td_nccl_recv(struct td_nccl *nccl, uint32_t from, void *data, size_t bytes,
                            void *stream, struct td_err *err);
/* Both at the same time, so a ring of ranks may call it. */
enum td_status td_nccl_sendrecv(struct td_nccl *nccl, uint32_t to, const void *data, size_t bytes,
                                uint32_t from, void *recv, size_t recv_bytes, void *stream,
                                struct td_err *err);
enum td_status td_nccl_bcast(struct td_nccl *nccl, uint32_t root, void *data, size_t bytes,
                             void *stream, struct td_err *err);
/* Rank r gives bytes[r] from `send`; everyone gets all of them, in rank order, in `recv` (sum of bytes), of which the own place may
 * be `send` where all give as many. */
enum td_status td_nccl_all_gather(struct td_nccl *nccl, const void *send, const size_t *bytes,
                                  void *recv, void *stream, struct td_err *err);
/* As all_gather, but only `root` receives (recv is ignored elsewhere). */
enum td_status td_nccl_gather(struct td_nccl *nccl, uint32_t root, const void *send,
                              const size_t *bytes, void *recv, void *stream, struct td_err *err);
/* NCCL's own sum of n elements (F32, F16, BF16), in an order that depends on the number of ranks and the size: not exact,
 * only where --exact does not rule. `out` may be `in`. */
enum td_status td_nccl_all_reduce_inexact(struct td_nccl *nccl, const void *in, void *out, size_t n,
                                          enum td_dtype type, void *stream, struct td_err *err);
/* The sum of td_comm_tree_sum, the same bits: parts go from rank to rank as they are, and a kernel joins them in the tree's
 * order. `sum` is of this rank, borrowed for the call. `parts` [own parts x n_floats]; `scratch` [td_ncclsum_parts(sum) x
 * n_floats], apart from the others; `out` [n_floats], which may be exactly one part of `parts`. */
enum td_status td_nccl_tree_sum(struct td_nccl *nccl, const struct td_ncclsum *sum,
                                const float *parts, size_t n_floats, float *scratch, float *out,
                                void *stream, struct td_err *err);

#endif
