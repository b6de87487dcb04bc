/* One rank's model: its weights, KV memory, buffers and its ends of the groups, driven one step at a time.
 * Owned and called by the compute thread. Knows no requests, no sockets and no clock; time is seen by the trace callback.
 *
 * All ranks of the group open together and run the same steps in the same order. */
#ifndef TD_SHARD_SHARD_H
#define TD_SHARD_SHARD_H

#include "comm/comm.h"
#include "comm/nccl.h"
#include "kernels/kern.h"
#include "shard/gpusums.h"
#include "shard/kv.h"
#include "shard/plan.h"
#include "shard/step.h"
#include "shard/weights.h"

#include <sched.h>

struct td_shard;

struct td_shard_params {
    const struct td_checkpoint *ck;    /* borrows until close */
    const struct td_plan_model *model; /* borrows until close */
    const struct td_plan *plan;        /* borrows until close; equal on all ranks */
    struct td_kern *kern;              /* borrows */
    struct td_comm *world;             /* borrows; its rank is the plan's rank */
    /* Hardware threads for the exchanges of a step in parts, borrows until close; NULL: those of the compute thread. */
    const cpu_set_t *sum_cpus;
    const struct td_nccl_config *
        nccl; /* borrows for the call; for exchanges from device to device; NULL: through the host */
    bool needs_nccl;                  /* else the host's memory will do where there is no NCCL */
    enum td_gpusums gpu_sums;         /* of sums by NCCL: which go between peers */
    bool device_is_shared;            /* on some rank another shard is on the same device */
    const char *offload_dir;          /* borrows; NULL where the plan has no slots in a file */
    td_weights_progress_fn *progress; /* may be NULL */
    void *user;
};

/* Collective. Loads this rank's slice and opens its groups. */
enum td_status td_shard_open(const struct td_shard_params *params, struct td_shard **shard,
                             struct td_err *err);
void td_shard_close(struct td_shard *shard); /* NULL is legal */

/* Runs one TD_STEP_RUN step on every rank, from its beginning to its end. *result is rank 0's, borrowed until the next step; no
 * logits elsewhere. At most max_num_seqs rows may want something. Not while other steps are in the pipeline.
 * With tensor parallelism a step with part_rows is computed in parts, which take turns in every layer; while others are computed the
 * sums of one travel on a thread of their own. Its bits are the same. */
enum td_status td_shard_step(struct td_shard *shard, const struct td_step *step,
                             struct td_step_result *result, struct td_err *err);

/* The same in parts, so that the stages of a pipeline work on different steps at once. All ranks call them in turns of
 * td_shard_front, td_shard_shift, td_shard_back; as many steps as there are stages may be under way. A step without rows is legal
 * here.
 *   front: stage 0 computes its layers of a step that begins; the other stages nothing.
 *   shift: every stage hands on what it has computed. `step`: the one that begins in this turn, on every rank; NULL: none does. Where one
 *   leaves the last stage, stage 0 computes the head, and *result on rank 0 is this step's; its number is told on every rank.
 *   back: the other stages compute theirs of td_shard_due. */
enum td_status td_shard_front(struct td_shard *shard, const struct td_step *step,
                              struct td_err *err);
enum td_status td_shard_shift(struct td_shard *shard, const struct td_step *step,
                              struct td_step_result *result, struct td_err *err);
const struct td_step *td_shard_due(const struct td_shard *shard); /* NULL: nothing */
enum td_status td_shard_back(struct td_shard *shard, struct td_err *err);

/* Moves one block's contents on this rank. After any error but TD_INVALID and TD_DEVICE the place it should have gone to holds
 * nothing, and all else goes on. */
enum td_status td_shard_move(struct td_shard *shard, const struct td_step_move *move,
                             struct td_err *err);

struct td_shard_stats {
    size_t weight_bytes; /* from the allocator */
    size_t kv_bytes;
    size_t buffer_bytes;
    uint64_t exchanged_bytes; /* activations sent to other ranks since open */
    uint64_t wait_ns;         /* of the compute thread for the exchanges */
    uint64_t n_exchanges;
};
/* Whether rows of a step may want draws or measures: on rank 0, whose device makes them of all logits: its own, or also
 * those that the others of its stage give it from device to device. */
bool td_shard_draws(const struct td_shard *shard);
void td_shard_stats(const struct td_shard *shard, struct td_shard_stats *out);
/* Of sums by NCCL: which go between peers, and why (gpusums.h); empty: none. */
const char *td_shard_gpu_sums(const struct td_shard *shard);
/* "nccl", "shm", "mpi" and so on: how the ranks of this stage exchange data. */
const char *td_shard_transport(const struct td_shard *shard);
/* Why it is not "nccl" although that was asked for; empty: it is, or was not. */
const char *td_shard_nccl_refused(const struct td_shard *shard);
/* How the sums over the ranks of a stage travel; on all of them alike. */
void td_shard_set_sums(struct td_shard *shard, const struct td_sum_choices *choices,
                       enum td_exchange_dtype dtype);
/* Sets the time limit of every exchange; 0: none. Aborting the world ends waiting ones. */
void td_shard_set_deadline(struct td_shard *shard, uint64_t op_limit_ns);

#endif
