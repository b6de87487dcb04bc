/* What the plug-in tensord-nccl.so offers to comm/nccl.c: NCCL, the CUDA runtime and one kernel behind plain C, without a
 * header of either. The plug-in decides nothing: deadlines, the abort, arguments and the group are comm/nccl.c's. Device
 * pointers and streams are opaque (cudaStream_t as void *). No function waits for a peer or for the device, but for
 * `break_off`, `destroy` and `open`, which may take as long as the library needs. One thread at a time for one end. */
#ifndef TD_COMM_NCCL_NCCLPLUG_H
#define TD_COMM_NCCL_NCCLPLUG_H

#include "comm/nccl/peersum.h"
#include "comm/treestack.h"
#include "kernels/base/dtype.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Counts changes of this header: both sides must have been built from the same one. */
enum { TD_NCCLPLUG_ABI = 2, TD_NCCLPLUG_ID_BYTES = 128, TD_NCCLPLUG_NAME_BYTES = 64 };
/* The one symbol: `const struct td_ncclplug td_ncclplug`. */
#define TD_NCCLPLUG_SYMBOL "td_ncclplug"

struct td_ncclplug_lib; /* the NCCL library of this process */
struct td_ncclplug_end; /* this rank's end of one communicator */

/* Device memory that other processes of this host open by its name, and a word of the host's that kernels look at. */
struct td_ncclplug_memory {
    void *device;
    uint32_t *is_ended;
    uint8_t name[TD_NCCLPLUG_NAME_BYTES];
};

struct td_ncclplug {
    uint32_t abi;
    int header_version; /* NCCL_VERSION_CODE that it was built against */
    int cuda_version;   /* CUDART_VERSION, 13000 */

    /* Opens `library` (NULL: libnccl.so.2 where the loader finds it) and asks its version. TD_NOT_FOUND, TD_CORRUPT
     * (functions are missing), TD_DEVICE. */
    enum td_status (*load)(const char *library, struct td_ncclplug_lib **lib, int *version,
                           struct td_err *err);
    void (*unload)(struct td_ncclplug_lib *lib);
    /* Makes `device` (CUDA's ordinal) the calling thread's. TD_DEVICE. */
    enum td_status (*use_device)(int device, struct td_err *err);
    enum td_status (*unique_id)(struct td_ncclplug_lib *lib, uint8_t id[TD_NCCLPLUG_ID_BYTES],
                                struct td_err *err);
    /* Begins to join the communicator `id` on the calling thread's device; `poll` tells when it is done. */
    enum td_status (*open)(struct td_ncclplug_lib *lib, uint32_t n_ranks, uint32_t rank,
                           const uint8_t id[TD_NCCLPLUG_ID_BYTES], struct td_ncclplug_end **end,
                           struct td_err *err);
    /* Whether something that was begun is under way; the error of what has failed since. */
    enum td_status (*poll)(struct td_ncclplug_end *end, bool *is_busy, struct td_err *err);
    /* Begins to flush what was enqueued. Then, when poll says that it is done, destroy. */
    enum td_status (*finalize)(struct td_ncclplug_end *end, struct td_err *err);
    enum td_status (*destroy)(struct td_ncclplug_end *end, struct td_err *err);
    /* Ends what is enqueued and gives the communicator back. In the place of destroy. */
    enum td_status (*break_off)(struct td_ncclplug_end *end, struct td_err *err);
    /* Frees the end, after destroy or break_off. */
    void (*close)(struct td_ncclplug_end *end);

    /* Enqueue on `stream`. They may leave the end busy; it must not be when the next one comes. */
    enum td_status (*all_gather)(struct td_ncclplug_end *end, const void *send, void *recv,
                                 size_t bytes, void *stream, struct td_err *err);
    enum td_status (*bcast)(struct td_ncclplug_end *end, uint32_t root, void *data, size_t bytes,
                            void *stream, struct td_err *err);
    enum td_status (*all_reduce)(struct td_ncclplug_end *end, const void *in, void *out, size_t n,
                                 enum td_dtype type, void *stream, struct td_err *err);
    /* Messages between group_begin and group_end go at the same time. After a failed send or recv group_end is still
     * called, and tells its error. */
    enum td_status (*group_begin)(struct td_ncclplug_end *end, struct td_err *err);
    void (*send)(struct td_ncclplug_end *end, uint32_t to, const void *data, size_t bytes,
                 void *stream);
    void (*recv)(struct td_ncclplug_end *end, uint32_t from, void *data, size_t bytes,
                 void *stream);
    enum td_status (*group_end)(struct td_ncclplug_end *end, struct td_err *err);
    /* out[i] = the join of floats i of all parts, i < n_floats. `out` may be one of the parts. */
    enum td_status (*join)(const struct td_treestack *join, float *out, size_t n_floats,
                           void *stream, struct td_err *err);

    /* Makes such memory on the calling thread's device, both cleared. TD_NO_MEMORY, TD_DEVICE: it cannot be opened by others. */
    enum td_status (*share)(size_t bytes, struct td_ncclplug_memory *memory, struct td_err *err);
    /* Frees it when the device has done what was enqueued; not while others have it open. All zero is legal. */
    void (*unshare)(struct td_ncclplug_memory *memory);
    /* Opens another process's, on the calling thread's device. TD_DEVICE: it cannot read it. */
    enum td_status (*attach)(const uint8_t name[TD_NCCLPLUG_NAME_BYTES], void **device,
                             struct td_err *err);
    /* When the device has done what was enqueued. */
    void (*detach)(void *device);
    /* td_peersum_enqueue. */
    enum td_status (*peer_sum)(const struct td_peersum *sum, void *stream, struct td_err *err);

    /* Whether a graph is being captured from `stream`. */
    enum td_status (*is_capturing)(void *stream, bool *is_capturing, struct td_err *err);
    /* Marks what is enqueued on `stream` so far; is_reached tells whether the device has come there. Works after break_off too. */
    enum td_status (*mark)(struct td_ncclplug_end *end, void *stream, struct td_err *err);
    enum td_status (*is_reached)(struct td_ncclplug_end *end, bool *is_reached, struct td_err *err);
};

#endif
