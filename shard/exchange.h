/* How the ranks of a shard hand each other activations: from device to device (comm/nccl.h), enqueued on the device's stream, or through
 * memory of the host (comm/comm.h), where each operation waits for the device first. The bits are the same. Knows no layers; owned and
 * called by the compute thread. */
#ifndef TD_SHARD_EXCHANGE_H
#define TD_SHARD_EXCHANGE_H

#include "comm/comm.h"
#include "comm/nccl.h"
#include "kernels/kern.h"
#include "shard/gpusums.h"

#include <sched.h>

struct td_exchange;

struct td_exchange_params {
    struct td_kern *kern;              /* borrowed */
    struct td_comm *world;             /* borrowed */
    uint32_t stage, tp_index;          /* of this rank */
    uint32_t tp, pp;                   /* of all */
    const struct td_nccl_config *nccl; /* borrowed for the call; NULL: through the host's memory */
    bool needs_nccl;                   /* no other way will do */
    /* All ranks enqueue the same operations step for step, so that a step that one of them records or replays is recorded or replayed by
     * all: NCCL wants that. */
    bool in_step;
    const cpu_set_t *sum_cpus; /* borrowed; as td_sumthread_open has it */
};

/* Collective over `world`. Where NCCL is asked for but not needed, and some rank cannot have it, all go through the host's memory. */
enum td_status td_exchange_open(const struct td_exchange_params *params, struct td_exchange **x,
                                struct td_err *err);
void td_exchange_close(struct td_exchange *x); /* NULL is legal */

/* Whether buffers are the device's alone. Else they are memory that device and host share. */
bool td_exchange_is_direct(const struct td_exchange *x);
/* Whether what it does may be recorded (td_kern_record). */
bool td_exchange_records(const struct td_exchange *x);
/* Why it is not direct although that was asked for; empty: it is, or was not. */
const char *td_exchange_refused(const struct td_exchange *x);
/* "nccl", or what td_comm_transport says of the ranks of this stage. */
const char *td_exchange_transport(const struct td_exchange *x);
struct td_comm *td_exchange_stage(struct td_exchange *x); /* the ranks of this stage */
void td_exchange_set_deadline(struct td_exchange *x, uint64_t op_limit_ns);
/* Since open. What goes from device to device is waited for by nobody but the device: no time of it is counted. */
void td_exchange_stats(const struct td_exchange *x, struct td_comm_stats *out);

/* Waits until the device has done everything enqueued so far, as long as one operation may take. */
enum td_status td_exchange_sync(struct td_exchange *x, struct td_err *err);

/* Rank r of the stage gives bytes[r] from `send`; all of them, in rank order, in `recv`. */
enum td_status td_exchange_all_gather(struct td_exchange *x, const void *send, const size_t *bytes,
                                      void *recv, struct td_err *err);
/* As all_gather, but only the first rank of the stage receives (recv is ignored elsewhere). */
enum td_status td_exchange_gather(struct td_exchange *x, const void *send, const size_t *bytes,
                                  void *recv, struct td_err *err);
/* To a rank of the world and from one, perhaps another, at the same time. */
enum td_status td_exchange_sendrecv(struct td_exchange *x, uint32_t to, const void *data,
                                    size_t bytes, uint32_t from, void *recv, size_t recv_bytes,
                                    struct td_err *err);

/* One layer's sum over the ranks of the stage. */
struct td_exchange_sum {
    struct td_tree_layout layout; /* its runs are borrowed */
    struct td_ncclsum on_device;
};
enum td_status td_exchange_sum_make(const struct td_exchange *x,
                                    const struct td_tree_layout *layout,
                                    struct td_exchange_sum *sum, struct td_err *err);
/* Which sums go between GPUs that read each other's memory (gpusums.h), from those of `sum` over rows of row_floats. Collective over the
 * stage; nothing where it is not direct. Buffers as below, of max_rows rows; what they hold is lost. Before anything is recorded. */
enum td_status td_exchange_choose_sums(struct td_exchange *x, enum td_gpusums how,
                                       const struct td_exchange_sum *sum, size_t row_floats,
                                       uint32_t max_rows, float *parts, float *scratch, float *out,
                                       struct td_err *err);
/* What was chosen, and why; empty: there is no choice. */
const char *td_exchange_chosen_sums(const struct td_exchange *x);
/* td_comm_tree_sum. With `meanwhile` it may travel while something else is computed: *number is not 0 then, and td_exchange_await stands
 * before `out` is read. */
enum td_status td_exchange_tree_sum(struct td_exchange *x, const struct td_exchange_sum *sum,
                                    const float *parts, size_t n_floats, float *scratch, float *out,
                                    bool meanwhile, uint64_t *number, struct td_err *err);
enum td_status td_exchange_await(struct td_exchange *x, uint64_t number, struct td_err *err);
/* Until nothing travels any more, however it ends. */
void td_exchange_await_all(struct td_exchange *x);
/* A sum that was enqueued without td_exchange_tree_sum, since it had been recorded. */
void td_exchange_count(struct td_exchange *x, const struct td_exchange_sum *sum, size_t n_floats);

#endif
