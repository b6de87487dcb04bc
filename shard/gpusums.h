/* Which sums go between GPUs that read each other's memory, in one kernel, and which by NCCL (comm/nccl.h): tried when a group opens, with
 * sums of the model's own shape. The bits are the same. Knows no layers and no clock. */
#ifndef TD_SHARD_GPUSUMS_H
#define TD_SHARD_GPUSUMS_H

#include "comm/comm.h"
#include "comm/nccl.h"
#include "kernels/kern.h"

enum td_gpusums { TD_GPUSUMS_AUTO, TD_GPUSUMS_PEER, TD_GPUSUMS_NCCL };

struct td_gpusums_params {
    enum td_gpusums
        how; /* PEER: all that can; AUTO: rows up to which they were faster, if they can at all */
    struct td_nccl *nccl;  /* borrowed, as the others */
    struct td_comm *stage; /* its ranks */
    struct td_kern *kern;
    const struct td_ncclsum *sum; /* a layer's */
    size_t row_floats;
    uint32_t max_rows;
    bool records; /* sums are recorded where they are used (td_kern_record) */
    /* As td_nccl_tree_sum has them, of max_rows rows; what they hold is lost. */
    float *parts, *scratch, *out;
};

/* Collective over the stage, which decides alike. `said`: what was decided and why, "between peers up to 8 rows of 4096; ...". TD_UNSUPPORTED
 * only with PEER, for the reason. Where both ways do not give the same bits: AUTO stays with NCCL and says so, PEER returns TD_DEVICE. */
enum td_status td_gpusums_choose(const struct td_gpusums_params *params, char *said,
                                 size_t said_bytes, struct td_err *err);

#endif
