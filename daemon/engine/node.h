/* One rank of a group: its checkpoint, device, plan and shard, and the step loop's two sides (rank 0 leads, the others
 * follow). Owned by the compute thread; knows no sockets and no requests. Everything here is collective over the world unless
 * it says otherwise: all ranks call it together, and an error on one rank is an error on all. */
#ifndef TD_DAEMON_ENGINE_NODE_H
#define TD_DAEMON_ENGINE_NODE_H

#include "comm/comm.h"
#include "daemon/engine/draftmodel.h"
#include "daemon/engine/overlapchoice.h"
#include "daemon/engine/recorder.h"
#include "daemon/engine/sumchoice.h"
#include "kernels/cpu/cores.h"
#include "kernels/kern.h"
#include "shard/plan.h"
#include "shard/shard.h"
#include "shard/step.h"

#include <stdbool.h>

/* What one rank brings. Gathered with td_node_gather, or reported to the coordinator. */
struct td_node_facts {
    char version[32];
    char host[64];
    char device[32]; /* "cpu avx512" */
    enum td_devicekind device_kind;
    char bus_id[32];   /* of a GPU; empty: a CPU */
    char numerics[32]; /* class; must be equal on all ranks */
    char model_hash[33];
    char mpi[64];          /* the library's version, "Open MPI v4.1.4" */
    uint64_t memory_bytes; /* this rank may use */
    uint32_t n_cores;      /* physical ones in its affinity mask */
    uint32_t n_threads;
    int64_t pid;
};

/* How ranks on GPUs exchange activations: by NCCL where all of them can, by it or not at all, through the host's memory. */
enum td_node_gpu_exchange { TD_NODE_EXCHANGE_AUTO, TD_NODE_EXCHANGE_NCCL, TD_NODE_EXCHANGE_HOST };

struct td_node_params {
    uint32_t n_threads;      /* 0: physical cores / ranks that share them */
    const char *isa;         /* as td_kern_cpu_params has it */
    const char *device;      /* "cpu", "cuda" or "cuda:N"; NULL: "cpu" */
    const char *cuda_plugin; /* as td_kern_cuda_params has it */
    bool cuda_graphs;
    bool exact;       /* of a GPU: no library multiplies in an order of its own */
    double gpu_share; /* of a GPU's free memory that its ranks may use */
    enum td_node_gpu_exchange gpu_exchange;
    enum td_gpusums gpu_sums;
    const char *nccl_plugin; /* as td_nccl_config has it */
    struct td_sumchoice_params sums;
    enum td_exchange_dtype exchange;
    enum td_overlap_mode overlap; /* rank 0's counts */
    uint64_t memory_bytes;        /* cap; 0: the machine's share */
    struct td_recorder *recorder; /* borrows; of steps; NULL: none */
    td_weights_progress_fn *progress;
    void *user;
};

/* The facts that are to be equal on all ranks; a group whose ranks differ in the first three is refused. */
enum td_node_fact {
    TD_NODE_VERSION,
    TD_NODE_MODEL_HASH,
    TD_NODE_NUMERICS,
    TD_NODE_MPI,
    TD_NODE_N_FACTS,
    TD_NODE_N_REFUSED = TD_NODE_MPI
};

struct td_node {
    struct td_comm *world; /* borrows */
    uint32_t host;         /* the lowest rank of this rank's host */
    cpu_set_t mask;        /* hardware threads of the process, before its threads took seats */
    struct td_comm *stage; /* the ranks of this stage of a pipeline; NULL: there is one stage */
    struct td_checkpoint *ck;
    struct td_plan_model *model;
    struct td_plan *plan; /* NULL until loaded */
    struct td_kern *kern;
    uint32_t cuda_device;      /* CUDA's ordinal, of a GPU */
    struct td_kern *host_kern; /* the CPU beside a GPU: its threads; NULL where `kern` is the CPU */
    struct td_shard *shard;
    struct td_draftmodel *draft; /* rank 0; NULL: none */
    bool draft_failed;           /* a step of it: it is not asked again */
    struct td_node_facts facts;
    bool owns_cores; /* every thread has a core of its own: spinning harms nobody */
    struct td_cores_share cores;
    cpu_set_t
        sum_cpus; /* for exchanges beside the device's threads: theirs, where they have seats */
    struct td_overlapchoice overlap; /* rank 0: into how many parts steps are cut */
    uint64_t spin_ns;                /* how long the device's threads spin on after a step */
    struct td_node_params params;
    struct td_step step;                /* follower's */
    struct td_move_result *moves;       /* [pp] of the steps under way, by number */
    struct td_move_result *all_moves;   /* [size], on rank 0 where there are slots */
    struct td_move_result joined_moves; /* of the last complete step, of all ranks; rank 0 */
    uint64_t n_failed_moves;            /* on this rank, since load */
    void *wire;                         /* encoded step */
    size_t wire_bytes;
    bool is_complete;     /* a step was, in the last turn */
    uint64_t n_complete;  /* number of the last complete step, and 1 */
    uint64_t step_end_ns; /* of the last step that was run; 0: the group rested since */
    uint64_t
        step_limit_ns; /* rank 0, for the record: how long the next one may take; 0: for ever */
    uint64_t recorded_wait_ns; /* inside exchanges until the last record */
    /* Since load: */
    uint64_t run_ns; /* inside steps */
    uint64_t gap_ns,
        n_gaps; /* between steps that followed each other: when the shard had nothing to do */
    uint64_t
        n_steps; /* completed, so also the number of the next; any thread may read it as a sign of life */
};

/* Opens the device and fills the facts but for the model's hash. */
enum td_status td_node_open(struct td_node *node, struct td_comm *world,
                            const struct td_node_params *params, struct td_err *err);
/* Opens the checkpoint at `path` (headers only) and hashes it, with `verify` every byte. */
enum td_status td_node_open_model(struct td_node *node, const char *path, bool verify,
                                  struct td_err *err);
/* Everyone's facts, in rank order, on every rank. `all` [size]. Fails when version, model hash or numerics differ. */
enum td_status td_node_gather(struct td_node *node, struct td_node_facts *all, struct td_err *err);
/* "numerics class"; and one of the facts as text. Static; borrowed from `facts`. */
const char *td_node_fact_name(enum td_node_fact fact);
const char *td_node_fact_text(const struct td_node_facts *facts, enum td_node_fact fact);
/* Checks that the facts agree, naming the first rank that differs and what it has. Local. */
enum td_status td_node_compare(const struct td_node_facts *all, uint32_t n, struct td_err *err);
/* Plans and loads. `plan` params are equal on all ranks. Paths are borrowed during the call: `offload_dir`, this rank's folder for
 * KV blocks that leave memory, NULL where the plan wants none; `draft_path`, a draft model that rank 0 loads, NULL: none. */
enum td_status td_node_load(struct td_node *node, const struct td_plan_params *plan,
                            const char *offload_dir, const char *draft_path, struct td_err *err);
/* Frees the shard and the checkpoint; the device stays. Local. */
void td_node_unload(struct td_node *node);
void td_node_close(struct td_node *node);

/* `status` of this rank becomes the group's: if any rank failed, all get that rank's error. */
enum td_status td_node_agree(struct td_comm *world, enum td_status status, struct td_err *err);

/* Rank 0: says into how many parts the step is cut, sends it to all and runs it, or, in a pipeline, its first stage. Where *result says that a step is complete, it is of
 * that step; in a pipeline so many turns later as there are other stages, each with a step that begins or with TD_STEP_FLUSH. */
enum td_status td_node_lead(struct td_node *node, struct td_step *step,
                            struct td_step_result *result, struct td_err *err);
/* Rank 0, with nothing in the pipeline: a step from its beginning to its end. `step` may be the node's own. */
enum td_status td_node_run(struct td_node *node, struct td_step *step,
                           struct td_step_result *result, struct td_err *err);
/* Rank 0, where there is a draft model: a td_drafter_run_fn whose user is the node. Local. */
bool td_node_run_draft(const struct td_step *step, struct td_step_result *result, uint64_t *ns,
                       void *node);
/* Nothing follows the last step: what comes next is no gap between steps. */
void td_node_rest(struct td_node *node);
/* Other ranks: the group in which rank 0's next word comes, as its rank 0. */
struct td_comm *td_node_ear(const struct td_node *node);
/* Other ranks: receive one step into node->step and run it when it is TD_STEP_RUN. */
enum td_status td_node_follow(struct td_node *node, struct td_err *err);

#endif
