/* Inside of nccl.h: the library that nccl_load.c opens, the end that nccl.c holds, and what stands around each operation of
 * nccl_ops.c. Included by these only. */
#ifndef TD_COMM_NCCL_IMPL_H
#define TD_COMM_NCCL_IMPL_H

#include "comm/nccl/ncclplug.h"
#include "comm/ncclpeers.h"

#include <pthread.h>
#include <stdatomic.h>

struct td_nccl_lib {
    void *handle; /* of the plug-in */
    const struct td_ncclplug *plug;
    struct td_ncclplug_lib *nccl;
    int version;
};

struct td_nccl {
    struct td_nccl_lib *lib;
    const struct td_ncclplug *plug; /* lib's */
    struct td_ncclplug_end *end;
    uint32_t rank;
    uint32_t n_ranks;
    uint64_t op_limit_ns;
    struct td_comm *comm;       /* borrowed; of the same ranks */
    struct td_ncclpeers *peers; /* owned; NULL: sums go by NCCL */
    bool captures;
    void (*drop_graphs)(void *user); /* of td_nccl_config */
    void *user;
    atomic_int failed;      /* enum td_status; TD_OK while usable. Set once, by the owner */
    atomic_bool is_aborted; /* any thread */
    pthread_mutex_t
        lock; /* around every call on the communicator, so that abort comes between two of them */
    bool is_given_back; /* under lock: there is no communicator any more */
};

/* 22809 as "2.28.9"; returns `out`. */
const char *td_nccl_number(int version, char *out, size_t out_bytes);

/* Refuses on an end that failed or was aborted. */
enum td_status td_nccl_check_usable(struct td_nccl *n, const char *op, struct td_err *err);
/* Gives the end up for an error that `err` holds. What an abort breaks off is reported as the abort. */
enum td_status td_nccl_give_up(struct td_nccl *n, const char *op, enum td_status status,
                               struct td_err *err);
/* Puts in front of an error of the plug-in, which says what it called, who asked for it. Returns `status`. */
enum td_status td_nccl_with_context(struct td_nccl *n, const char *op, enum td_status status,
                                    struct td_err *err);
/* Every operation on the communicator stands between begin, which holds the lock when it returns TD_OK, and finish, which
 * takes what enqueueing returned, and waits until the host's part is done. */
enum td_status td_nccl_begin(struct td_nccl *n, const char *op, void *stream, struct td_err *err);
enum td_status td_nccl_finish(struct td_nccl *n, const char *op, enum td_status status,
                              struct td_err *err);

#endif
