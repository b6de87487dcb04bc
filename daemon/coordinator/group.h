/* Life of a coordinator and of the one group of workers it leads: who launches it, what it loads, how its end is noticed.
 * For serve.c; services see coordinator.h. Loop thread only. */
#ifndef TD_DAEMON_COORDINATOR_GROUP_H
#define TD_DAEMON_COORDINATOR_GROUP_H

#include "daemon/coordinator/coordinator.h"

struct td_auth;
struct td_grpc_serve_table;

/* Whoever starts and ends the group's processes. NULL functions: nobody here does (a group that dials in, or one job). */
struct td_group_launcher {
    /* Starts generation `generation` with `n_ranks` on the hosts of `hostfile` (NULL: here); td_coord_launch_ended follows once for
     * every start that succeeded. */
    enum td_status (*start)(void *user, uint32_t generation, uint32_t n_ranks, const char *hostfile,
                            struct td_err *err);
    /* Ends all processes of that generation; td_coord_launch_ended follows. */
    void (*stop)(void *user, uint32_t generation);
    void *user;
};

struct td_coord_params {
    uv_loop_t *loop;            /* borrows */
    struct td_metrics *metrics; /* borrows */
    const char *model;          /* path; NULL: none until LoadModel */
    const char *const *names;   /* [n_names] served names; none: the last part of the path */
    uint32_t n_names;
    bool verify;
    uint32_t n_ranks; /* 0: as many as the first worker says; a launcher wants to know */
    const char *
        hostfile; /* borrows during open; of the launcher; NULL: none. Some of its hosts may stand aside (hosts.h) */
    /* What the options wish of the plan: tp, pp, share (borrowed for ever), block_tokens, max_*, kv_bytes. */
    struct td_plan_params wish;
    bool kv_dtype_auto; /* wish.kv_dtype is chosen by the model */
    struct td_coord_limits limits;
    bool prefix_cache;
    const char *draft_path;       /* borrows; of a draft model; NULL: none */
    const char *offload_dir;      /* borrows for ever; of KV blocks in files; NULL: none */
    uint32_t max_draft_tokens;    /* that a step may guess ahead for one sequence; 0: none */
    uint32_t max_stretch_percent; /* of a step by prompts beside running answers; 0: no limit */
    uint64_t op_limit_ns;         /* of one exchange */
    uint64_t
        dead_ns; /* silence after which a rank counts as lost; 0: 1 s. A rank's lease is twice that */
    const char *state_dir;    /* borrows; for reports on lost groups; NULL: only the log tells */
    uint64_t launch_limit_ns; /* from launch to all registered; 0: 60 s */
    struct td_group_launcher launcher;
    /* The group is given up for good: before it was ever ready, or after too many failures. NULL is legal. */
    void (*on_failed)(const struct td_err *err, void *user);
    void *user;
};

/* Opens the model (reads headers and the tokenizer: blocks). */
enum td_status td_coord_open(const struct td_coord_params *params, struct td_coord **c,
                             struct td_err *err);
/* Accepted requests are kept there (borrows); before td_coord_start. */
void td_coord_keep_in(struct td_coord *c, struct td_journal *journal);
/* Serves the workers' control stream on `table`. */
void td_coord_serve_workers(struct td_coord *c, struct td_grpc_serve_table *table,
                            const struct td_auth *cluster_key);
/* Launches the first group, or waits for one to dial in. */
enum td_status td_coord_start(struct td_coord *c, struct td_err *err);
/* From the launcher, before td_coord_launch_ended: it was itself killed, as `err` says, and its group is lost with it. */
void td_coord_launcher_fell(struct td_coord *c, uint32_t generation, const struct td_err *err);
/* From the launcher: the group of that generation has ended; `err` says how, with the last lines it printed. */
void td_coord_launch_ended(struct td_coord *c, uint32_t generation, const struct td_err *err);
/* Ends all jobs and tells the workers to leave. The launcher stops them otherwise. */
void td_coord_stop(struct td_coord *c);
/* After the loop has no more events for it (all streams closed). */
void td_coord_close(struct td_coord *c);

#endif
