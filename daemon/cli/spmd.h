/* What the commands share that run as one MPI job (or alone): generate, perplexity, bench. Opens the world, the node, the plan
 * from the options; one decision maker: rank 0. Main thread is the compute thread. */
#ifndef TD_DAEMON_CLI_SPMD_H
#define TD_DAEMON_CLI_SPMD_H

#include "daemon/cli/options.h"
#include "daemon/cli/term.h"
#include "daemon/engine/node.h"

struct td_tokenizer;

struct td_spmd {
    struct td_comm *world;
    struct td_node node;
    struct td_node_facts *facts; /* [size] */
    uint32_t rank, size;
    struct td_term term; /* rank 0's progress */
    uint64_t load_ns;    /* opening all of it */
    uint64_t pack_ns; /* of that, weights into the device's layout and memory for keys and values */
};

/* Fills what the options say of the node and of the plan. The arrays of the plan params are borrowed from `facts`' reader:
 * td_spmd_plan_params writes shares and memory into `share` and `memory` ([n] each). */
void td_spmd_node_params(const struct td_options *opts, struct td_node_params *out);
enum td_status td_spmd_plan_params(const struct td_options *opts, const struct td_spec *spec,
                                   uint32_t n_ranks, const uint64_t *memory_of_rank,
                                   uint64_t *share, struct td_plan_params *out, struct td_err *err);

/* Adds what rank 0 needs for --speculative-model. Reads its headers. */
enum td_status td_spmd_reserve_draft(const struct td_options *opts, struct td_plan_params *plan,
                                     struct td_err *err);

/* Opens and loads on every rank. The error is the same on all ranks that could agree; td_spmd_end follows in any case. */
enum td_status td_spmd_open(struct td_spmd *s, const struct td_options *opts, struct td_err *err);
/* The plan that td_spmd_load would make for these options, of the model that is loaded. Local, and alike on all ranks. */
enum td_status td_spmd_plan(const struct td_spmd *s, const struct td_options *opts,
                            struct td_plan *plan, struct td_err *err);
/* Part of open: reads the model's headers and loads it with the options' plan. May be called again: what was loaded is let go
 * first. Collective. Sets pack_ns. */
enum td_status td_spmd_load(struct td_spmd *s, const struct td_options *opts, struct td_err *err);
/* The element type of the KV cache that the options mean; of several the first. */
enum td_dtype td_spmd_kv_dtype(const struct td_options *opts, const struct td_spec *spec);
/* Rank 0: lets the followers go. */
enum td_status td_spmd_stop(struct td_spmd *s, struct td_err *err);
/* After a failure that the ranks could not agree on, `failed` leaves the others to the launcher. */
void td_spmd_close(struct td_spmd *s, bool failed);
/* The end of a command on every rank, with the status that the ranks agreed on, or that each came to alike before `s` (zero then)
 * was opened: rank 0 reports an error, all close. Nobody leaves before that, since a launcher kills the rest as soon as one rank
 * has failed. What one rank alone suffers, it reports itself. Returns the exit status. */
int td_spmd_end(struct td_spmd *s, const struct td_options *opts, enum td_status status,
                const struct td_err *err);
/* The other ranks' whole life: follows until TD_STEP_STOP. */
enum td_status td_spmd_follow(struct td_spmd *s, struct td_err *err);

#endif
