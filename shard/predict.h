/* How fast a plan would run, before anything is loaded: a pure function from (model, plan, machine) to seconds per token.
 * Bytes, operations and messages are counted from the plan; how well kernels use a machine is one table in predict.c. No I/O
 * and no clock: whoever calls it measured the machine, or read of it. */
#ifndef TD_SHARD_PREDICT_H
#define TD_SHARD_PREDICT_H

#include "kernels/base/err.h"
#include "shard/plan.h"

#include <stdbool.h>
#include <stdint.h>

/* What the arithmetic of a kind of weights is held against. */
enum td_predict_rate {
    TD_RATE_INT8, /* int8 dot products: the quantised types */
    TD_RATE_BF16, /* BF16 pairs into F32 */
    TD_RATE_F32,  /* F32 multiply-adds; attention too */
    TD_N_RATES
};

/* One rank's part of a machine: what its own threads, or its own device, reach while no other rank works. */
struct td_machine_rank {
    uint64_t memory_bytes;        /* that it may use; 0: unknown, not checked */
    uint32_t host;                /* its index, < n_hosts */
    double memory_bytes_per_s;    /* read; > 0 */
    double ops_per_s[TD_N_RATES]; /* a multiplication and its addition are two; 0: it has no such
                                     instruction, and another kind takes its place; one is > 0 */
    bool has_tiles;               /* int8 weights are multiplied in tiles (AMX) */
    double host_s; /* of a step when nothing computes: scheduling, sampling, starting; >= 0 */
};

/* A message of b bytes takes latency_s + b / bytes_per_s, from the sender's call until the receiver goes on. */
struct td_machine_link {
    double latency_s; /* >= 0 */
    double
        bytes_per_s; /* > 0; each way, of one rank inside a host, of a whole host between hosts */
};

struct td_machine {
    uint32_t
        n_ranks; /* a plan of fewer ranks takes the first of them as they are (see td_predict_shrink) */
    uint32_t n_hosts;
    struct td_machine_rank rank[TD_PLAN_MAX_RANKS];
    double host_bytes_per_s[TD_PLAN_MAX_RANKS]; /* [n_hosts] memory that all ranks of a host read
                                                   together; 0: each has its own */
    struct td_machine_link intra, inter;        /* pairs of ranks on one host, on different hosts */
};

/* What the step is asked for. */
struct td_predict_load {
    uint32_t batch;         /* sequences of the batched decode; >= 1 */
    uint32_t depth;         /* tokens that stand before a decoded one */
    uint32_t prompt_tokens; /* of the prompt, which begins at position 0; >= 1 */
    uint32_t prefill_chunk; /* tokens of it in one step; 0: the plan's max_batched_tokens */
};

/* Where the time of a token goes. */
enum td_predict_part {
    TD_PART_MEMORY,     /* reading weights, keys and values */
    TD_PART_ARITHMETIC, /* multiplying */
    TD_PART_LATENCY,    /* of exchanges: delays of the link */
    TD_PART_BANDWIDTH,  /* of exchanges: bytes over the link */
    TD_PART_HOST,       /* the rest of a step */
    TD_N_PARTS
};

struct td_predict_phase {
    double part_s[TD_N_PARTS];       /* per token */
    double token_s;                  /* per token: their sum */
    double tokens_per_s;             /* of all sequences */
    enum td_predict_part bottleneck; /* the largest part */
    double n_exchanges; /* per step: messages that wait for each other; of a prompt: per prompt */
    double step_s;      /* per step; of a prompt: until all of it is read */
};

struct td_prediction {
    struct td_predict_phase decode;  /* one sequence at the depth */
    struct td_predict_phase batch;   /* `batch` sequences, each at the depth */
    struct td_predict_phase prefill; /* the prompt */
};

/* Predicts the plan's speed. A step of tensor-parallel ranks is as slow as its slowest one at every exchange. One sequence, and a
 * prompt, pass the stages of a pipeline one after another; the batched decode keeps all stages busy with an even part of the
 * sequences each, as the engine does. Rows want their largest logit only, as greedy requests do. TD_INVALID when the machine has
 * fewer ranks than the plan, or a figure that its comment excludes. */
enum td_status td_predict(const struct td_plan_model *model, const struct td_plan *plan,
                          const struct td_machine *machine, const struct td_predict_load *load,
                          struct td_prediction *out, struct td_err *err);
/* Part of td_predict: checks every figure of the machine. */
enum td_status td_predict_check(const struct td_machine *machine, struct td_err *err);
/* The machine when only its first n ranks (1 to n_ranks) take part. Ranks that share a host's memory share its cores too, so those
 * that are left have more of both; a rank with memory of its own stays as it is. */
void td_predict_shrink(const struct td_machine *machine, uint32_t n, struct td_machine *out);
/* "memory", "arithmetic", "exchange latency", "exchange bandwidth", "host time". */
const char *td_predict_part_name(enum td_predict_part part);

/* The table of what kernels reach. Shares are of the machine's figures. */
struct td_predict_share {
    double memory;    /* one row: of the memory's rate */
    double ops;       /* many rows: of the arithmetic's rate */
    double ops_tiles; /* the same where the CPU has tiles */
    enum td_predict_rate rate;
};
/* Of matrices of this type. */
struct td_predict_share td_predict_share_of(enum td_dtype type);
/* Of keys and values: reading them, and their scores and sums. */
struct td_predict_share td_predict_share_of_attention(void);

#endif
