/* Inside of `tensord bench`: what bench.c decides, bench_case.c measures and bench_print.c shows. All ranks run the same
 * script: each step is led by rank 0 and followed by the others, each probe is taken by all. Main thread. */
#ifndef TD_DAEMON_CLI_BENCH_H
#define TD_DAEMON_CLI_BENCH_H

#include "daemon/cli/bench_probe.h"
#include "daemon/cli/measure.h"
#include "daemon/cli/spmd.h"
#include "daemon/engine/gpuhealth.h"
#include "daemon/engine/stepsplit.h"

#include <stdbool.h>
#include <stdint.h>

/* The cases, in the order in which they are shown. The last two come from one run: loading, then one token. */
enum td_bench_case {
    TD_BENCH_DECODE,
    TD_BENCH_PREFILL,
    TD_BENCH_BATCH,
    TD_BENCH_DEPTH,
    TD_BENCH_LOAD,
    TD_BENCH_FIRST,
    TD_BENCH_N_CASES
};

/* What a rank has counted since its model was loaded. */
struct td_bench_counts {
    uint64_t run_ns;    /* inside steps */
    uint64_t inside_ns; /* of it in exchanges */
    uint64_t sent_bytes, n_exchanges;
    uint64_t gpu_energy; /* mJ, of its GPU since the driver was loaded; 0: unknown */
};

/* One repetition between two probes. */
struct td_bench_run {
    double seconds;
    struct td_stepsplit
        split;     /* of them; the rest is the host's: making steps and telling the ranks */
    double joules; /* that the GPUs of the group drew; 0: unknown */
    struct td_bench_limits limits; /* the better one of the two, each by itself */
    bool steady; /* the two differ by 20 % at most in what the case is held against */
};

/* What one repetition of a case does, over all ranks. */
struct td_bench_work {
    uint64_t n_tokens;   /* that come out or, of a prompt, go in; of load: bytes of weights */
    uint64_t n_steps;    /* in which the weights are read once */
    double weight_bytes; /* read in one step */
    double kv_bytes;     /* read in one step, in the mean */
    double depth;        /* tokens before and with the row, in the mean */
    double matrix_ops,
        attn_ops; /* of the repetition: two per weight and row; and scores and sums of attention */
    double sent_bytes, n_exchanges; /* of one repetition, over all ranks; counted, not computed */
};

struct td_bench_result {
    bool asked;
    uint32_t n_runs;           /* kept */
    uint32_t n_repeated;       /* thrown away because the machine was not steady */
    struct td_bench_run *runs; /* [repetitions] */
    struct td_bench_work work;
};

/* What a prediction needs to know of the group's hosts and links. */
struct td_bench_group {
    bool measured; /* not where a CPU has no probe for its arithmetic */
    struct td_machine machine;
    struct td_measure_report report;
};

struct td_bench {
    const struct td_options *opts;
    struct td_spmd *spmd;
    struct td_err *err;
    struct td_bench_probe *probe;
    enum td_peak peak; /* the multiplication that most of the weights need */
    bool has_peak;     /* this CPU has an instruction for it */
    uint32_t n_prompt, n_gen, n_batch, n_depth, n_fill; /* n_fill: prompt of a batch's sequence */
    uint32_t n_runs;                                    /* repetitions of a case */
    struct td_step step;                                /* rank 0's */
    uint32_t *blocks; /* [blocks of the plan]: 0, 1, 2 ..; each sequence has a run of its own */
    uint32_t *ids;    /* [n_ids] random tokens; position p of every sequence has ids[p % n_ids] */
    uint32_t n_ids;
    uint64_t n_done, n_total;    /* runs, for progress */
    struct td_bench_limits best; /* of all probes */
    uint32_t n_probes;
    struct td_bench_counts *counts; /* [2 x ranks] before and after a run */
    struct td_gpuhealth *gpu;       /* of this rank; NULL: a CPU, or nobody tells */
    struct td_bench_result result[TD_BENCH_N_CASES];
    struct td_bench_group *groups; /* [2] before and after all cases; NULL without --json */
};

const char *td_bench_case_name(enum td_bench_case which);
/* Whether the case is held against the arithmetic rather than the memory. */
static inline bool td_bench_case_computes(enum td_bench_case which)
{
    return which == TD_BENCH_PREFILL || which == TD_BENCH_BATCH;
}
/* KV blocks that all asked cases need at once. Needs no model but `block_tokens`. */
uint64_t td_bench_blocks(const struct td_bench *bench, uint32_t block_tokens);

/* ---- bench_case.c; collective ---- */

/* After loading: step, ids, and what each case's work is. Local. */
enum td_status td_bench_prepare(struct td_bench *bench);
/* Runs the prompts that the asked cases stand on, uncounted. */
enum td_status td_bench_fill(struct td_bench *bench);
/* One repetition of a case before TD_BENCH_LOAD: what it took on rank 0, and where that went. */
enum td_status td_bench_run_case(struct td_bench *bench, enum td_bench_case which,
                                 struct td_bench_run *run);
/* Lets the model go, loads it and runs one token: *pack seconds for the weights, *first until the token. What was prepared
 * stays valid. */
enum td_status td_bench_run_load(struct td_bench *bench, double *pack, double *first);

/* ---- bench_print.c; rank 0 ---- */

void td_bench_print_text(const struct td_bench *bench);
enum td_status td_bench_print_json(const struct td_bench *bench);

/* `tensord bench machine`: the probes alone. Returns an exit status. */
int td_bench_machine(const struct td_options *opts);
/* What the CPU calls itself, "unknown" where nobody says. */
void td_bench_cpu_name(char *out, size_t out_bytes);

#endif
