/* A tree sum in one kernel, between GPUs that read each other's memory: every rank puts its parts into its own memory, tells the others,
 * waits until all have, and joins what it reads there. Plain C to its callers. */
#ifndef TD_COMM_NCCL_PEERSUM_H
#define TD_COMM_NCCL_PEERSUM_H

#include "comm/treestack.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    TD_PEERSUM_MAX_RANKS = 16,
    TD_PEERSUM_BLOCKS = 32,
    TD_PEERSUM_FLOATS = 128 * 1024, /* of one rank's parts, most */
    TD_PEERSUM_SLOTS = 2
};

/* What a rank lets the others read; they write its `arrived` and nothing else. Cleared before the first sum. A slot is written again two
 * sums later: a rank that is there has heard from all the others in the sum between, which they began when they had read it. */
struct td_peersum_memory {
    uint32_t arrived[TD_PEERSUM_MAX_RANKS]
                    [TD_PEERSUM_BLOCKS]; /* the turn that a rank's block is at */
    uint32_t turn[TD_PEERSUM_BLOCKS];    /* sums that the own block has done, modulo 2^32 */
    uint32_t unused[480];                /* to 4 KiB */
    float slot[TD_PEERSUM_SLOTS][TD_PEERSUM_FLOATS];
};

/* One sum of one rank. All ranks enqueue the same sums in the same order. */
struct td_peersum {
    struct td_treestack
        join[TD_PEERSUM_SLOTS]; /* of the others' parts in that slot, and the own in `parts` */
    struct td_peersum_memory *of[TD_PEERSUM_MAX_RANKS]; /* of the ranks, the own too */
    const uint32_t *
        is_ended; /* the host's memory: when it is not 0 nobody waits any more, and `out` is not written */
    uint32_t rank, n_ranks;
    const float *parts; /* [n_own x n_floats]; n_own * n_floats is at most TD_PEERSUM_FLOATS */
    uint32_t n_own;
    size_t n_floats;
    float *out; /* [n_floats]; may be exactly one of `parts` */
};

/* Enqueues it on `stream` (a cudaStream_t) of the calling thread's device; it may be captured. Returns a cudaError_t, 0 for success. */
int td_peersum_enqueue(const struct td_peersum *sum, void *stream);

#ifdef __cplusplus
}
#endif

#endif
