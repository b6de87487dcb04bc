/* The kernel that joins the parts of a tree sum on the device. Plain C to its callers. */
#ifndef TD_COMM_NCCL_JOINPARTS_H
#define TD_COMM_NCCL_JOINPARTS_H

#include "comm/treestack.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Enqueues out[i] = the join of floats i of all parts, i < n_floats, on `stream` (a cudaStream_t) of the calling thread's
 * device; no floats: nothing. The parts and `out` are device memory; `out` may be exactly one of the parts and must not
 * overlap one otherwise. Returns a cudaError_t, 0 for success. */
int td_joinparts_enqueue(const struct td_treestack *join, float *out, size_t n_floats,
                         void *stream);

#ifdef __cplusplus
}
#endif

#endif
