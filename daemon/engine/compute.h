/* The compute thread of a worker: it owns MPI, the device and the shard, and on rank 0 the engine. The loop thread talks to it
 * through one queue down (td_compute_post) and one queue up (td_compute_take). Idle ranks sleep here, not inside a
 * collective: when rank 0 has nothing to run it tells the others how many requests it has seen, and they wait until the
 * loop thread hears of more. */
#ifndef TD_DAEMON_ENGINE_COMPUTE_H
#define TD_DAEMON_ENGINE_COMPUTE_H

#include "daemon/engine/engine.h"
#include "daemon/engine/node.h"

struct td_compute;

/* What a group has to load, equal on all ranks. */
struct td_compute_load {
    char *path;          /* owned by the command */
    char model_hash[33]; /* that the files must have; empty: not checked */
    bool verify;
    struct td_plan_params plan; /* its arrays point to the two below */
    uint64_t share[TD_PLAN_MAX_RANKS];
    uint64_t memory[TD_PLAN_MAX_RANKS];
    uint32_t max_queue;
    bool prefix_cache;
    char *draft_path;  /* owned; of a draft model that rank 0 loads; NULL: none */
    char *offload_dir; /* owned; each rank's folder for KV blocks that leave memory; NULL: none */
    uint32_t max_draft_tokens;
    uint32_t max_stretch_percent;
    uint64_t op_limit_ns;
};

enum td_compute_verb {
    TD_COMPUTE_LOAD,   /* all ranks */
    TD_COMPUTE_SUBMIT, /* rank 0 */
    TD_COMPUTE_CANCEL, /* rank 0 */
    TD_COMPUTE_PAUSE,  /* rank 0 */
    TD_COMPUTE_RESUME, /* rank 0; `n_submits` as with WAKE */
    TD_COMPUTE_WAKE,   /* other ranks: that many requests went to rank 0 */
    TD_COMPUTE_UNLOAD, /* all ranks: stop serving, free the model, wait for the next load */
    TD_COMPUTE_EXIT    /* all ranks: as unload, then the thread ends */
};

struct td_compute_command {
    enum td_compute_verb verb;
    struct td_compute_load *load; /* LOAD: takes */
    struct td_request *request;   /* SUBMIT: takes (deinit and free) */
    uint64_t
        number; /* SUBMIT, WAKE: counts submits since load; CANCEL, PAUSE, RESUME: request id */
    uint64_t n_submits; /* RESUME: counts as a submit */
};

enum td_compute_kind {
    TD_COMPUTE_DEVICE,   /* the device is open: facts */
    TD_COMPUTE_PROGRESS, /* of loading */
    TD_COMPUTE_LOADED,
    TD_COMPUTE_TOKEN,
    TD_COMPUTE_REFUSED, /* a submit failed: err, request_id */
    TD_COMPUTE_UNLOADED,
    TD_COMPUTE_FAILED, /* err; the thread has ended */
    TD_COMPUTE_EXITED  /* the thread has ended as asked */
};

struct td_compute_event {
    enum td_compute_kind kind;
    struct td_token_event token; /* TOKEN; its error pointer points to `err` once taken */
    uint64_t request_id;
    uint64_t done_bytes, total_bytes;
    struct td_err err;
};

/* Counters that any thread may read at any time. */
struct td_compute_gauges {
    uint64_t n_steps, step_ns, exchanged_bytes, wait_ns;
    uint64_t gap_ns, n_gaps; /* between steps that followed each other */
    uint64_t progress;       /* rises while the thread is alive or asleep as it should */
    uint32_t n_running, n_waiting, kv_blocks_used, kv_blocks_idle, kv_blocks;
    uint32_t kv_blocks_outside[TD_OFFLOAD_TIERS];
    uint64_t kv_blocks_read, kv_failed_reads;
    uint64_t prompt_tokens, generated_tokens, draft_tokens, right_drafts, device_draws;
    size_t weight_bytes, kv_bytes, buffer_bytes;
    uint64_t load_ns;
    /* Of the plan, from TD_COMPUTE_LOADED on. */
    uint32_t kv_block_tokens, max_model_len;
    struct td_plan_rank place; /* this rank's */
    const char *transport;     /* of activations, static */
};

/* Called on the compute thread when there is something to take; must only wake the loop. */
typedef void td_compute_notify_fn(void *user);

/* Starts the thread, which opens the device first. `world` is borrowed until td_compute_close. */
enum td_status td_compute_start(struct td_comm *world, const struct td_node_params *node,
                                td_compute_notify_fn *notify, void *user,
                                struct td_compute **compute, struct td_err *err);
/* Takes the command's contents. Any thread. TD_NO_MEMORY frees them. */
enum td_status td_compute_post(struct td_compute *c, const struct td_compute_command *command);
/* The next event in order; false when there is none. Loop thread. */
bool td_compute_take(struct td_compute *c, struct td_compute_event *event);
void td_compute_gauges(const struct td_compute *c, struct td_compute_gauges *out);
/* Whether a command was posted that the thread has not taken yet. Never waits for it. Any thread. */
bool td_compute_is_called(const struct td_compute *c);
/* What the thread is at and its last steps; never waits for it. Any thread. */
const struct td_recorder *td_compute_recorder(const struct td_compute *c);
/* Valid from TD_COMPUTE_DEVICE, with the model's hash from TD_COMPUTE_LOADED. Any thread. */
void td_compute_facts(const struct td_compute *c, struct td_node_facts *out);
/* Ends every wait inside the group's operations. Any thread. */
void td_compute_abort(struct td_compute *c);
/* Joins the thread, which must have been told to exit or have failed, and frees. */
void td_compute_close(struct td_compute *c);
void td_compute_load_free(struct td_compute_load *load);

#endif
