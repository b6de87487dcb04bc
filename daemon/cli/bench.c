/* `tensord bench`: how fast a model loads, reads a prompt and decodes, alone or as one MPI job, and what share of the
 * machine that is: probes of memory and arithmetic stand before and after every repetition. `tensord bench machine` shows the
 * probes alone. This file decides what is run; all ranks come to the same. */
#include "daemon/cli/bench.h"

#include "daemon/cli/command.h"

#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

static const double STEADY = 0.2; /* two probes side by side may differ by this part */

static const char *const names[TD_BENCH_N_CASES] = {"decode", "prefill", "batch",
                                                    "depth",  "load",    "first"};

const char *td_bench_case_name(enum td_bench_case which)
{
    return names[which];
}

static enum td_status read_cases(struct td_bench *b)
{
    const struct td_option_list *list = &b->opts->cases;

    for (int c = 0; c < TD_BENCH_N_CASES; c++)
        b->result[c].asked = list->n == 0;
    for (uint32_t i = 0; i < list->n; i++) {
        int c = 0;

        while (c < TD_BENCH_N_CASES && strcmp(names[c], list->items[i]) != 0)
            c++;
        if (c == TD_BENCH_N_CASES)
            return td_err_set(
                b->err, TD_INVALID,
                "--cases: got '%.80s', expected decode, prefill, batch, depth, load or first",
                list->items[i]);
        b->result[c].asked = true;
    }
    return TD_OK;
}

uint64_t td_bench_blocks(const struct td_bench *b, uint32_t block_tokens)
{
    uint64_t one = (b->n_prompt + b->n_gen + block_tokens - 1) / block_tokens;

    if (b->result[TD_BENCH_BATCH].asked)
        one += (uint64_t)b->n_batch * ((b->n_fill + b->n_gen + block_tokens - 1) / block_tokens);
    if (b->result[TD_BENCH_DEPTH].asked)
        one += (b->n_depth + b->n_gen + block_tokens - 1) / block_tokens;
    return one;
}

/* A length that nobody asked for gives way to a short model; one that was asked for is refused. */
static enum td_status fit(struct td_bench *b, const char *flag, const int64_t *asked, int64_t limit,
                          uint32_t *out)
{
    int64_t n = *asked, gen = b->opts->gen_tokens;

    if (!td_options_is_set(b->opts, asked) && gen < limit && n > limit - gen)
        n = limit - gen;
    if (n + gen > limit)
        return td_err_set(
            b->err, TD_INVALID,
            "--%s %lld and --gen-tokens %lld need %lld positions: expected at most %lld", flag,
            (long long)n, (long long)gen, (long long)(n + gen), (long long)limit);
    *out = (uint32_t)n;
    return TD_OK;
}

/* Lengths from the options and the model's headers, and room for exactly the sequences that are run. Local; the same on all
 * ranks. */
static enum td_status size_run(struct td_bench *b, struct td_options *opts)
{
    struct td_checkpoint *ck = NULL;
    const struct td_spec *spec;
    int64_t limit;
    size_t head;
    enum td_status s = read_cases(b);

    s = s ? s : td_checkpoint_open(opts->model, &ck, b->err);
    if (s)
        return s;
    spec = td_checkpoint_spec(ck);
    limit = spec->max_positions;
    if (opts->max_model_len && opts->max_model_len < limit)
        limit = opts->max_model_len;
    b->n_gen = (uint32_t)opts->gen_tokens;
    b->n_batch = (uint32_t)opts->batch;
    b->n_runs = (uint32_t)opts->repetitions;
    s = fit(b, "prompt-tokens", &b->opts->prompt_tokens, limit, &b->n_prompt);
    if (!s && b->result[TD_BENCH_DEPTH].asked)
        s = fit(b, "depth", &b->opts->depth, limit, &b->n_depth);
    if (!s && b->result[TD_BENCH_BATCH].asked)
        s = fit(b, "batch-depth", &b->opts->batch_depth, limit, &b->n_fill);
    if (!s && b->result[TD_BENCH_BATCH].asked && opts->batch > opts->max_num_batched_tokens)
        s = td_err_set(b->err, TD_INVALID,
                       "--batch %lld is one step: expected at most --max-num-batched-tokens %lld",
                       (long long)opts->batch, (long long)opts->max_num_batched_tokens);
    if (!s && b->result[TD_BENCH_BATCH].asked &&
        td_options_is_set(b->opts, &b->opts->max_num_seqs) && opts->batch > opts->max_num_seqs)
        s = td_err_set(b->err, TD_INVALID, "--batch %lld: expected at most --max-num-seqs %lld",
                       (long long)opts->batch, (long long)opts->max_num_seqs);
    opts->max_model_len = (int64_t)(b->n_prompt > b->n_depth ? b->n_prompt : b->n_depth) + b->n_gen;
    if (!td_options_is_set(b->opts, &b->opts->max_num_seqs))
        opts->max_num_seqs = b->result[TD_BENCH_BATCH].asked ? opts->batch + 2 : 2;
    if (!opts->kv_cache_memory_bytes) { /* of all layers and heads: enough for any rank */
        head = td_dtype_row_bytes(td_spmd_kv_dtype(opts, spec), spec->head_dim);
        opts->kv_cache_memory_bytes = 2 * (uint64_t)spec->n_layers * spec->n_kv_heads * head *
                                      (uint64_t)opts->block_size *
                                      td_bench_blocks(b, (uint32_t)opts->block_size);
    }
    td_checkpoint_close(ck);
    return s;
}

/* The arithmetic that most weight bytes need. Without an instruction for BF16 pairs they are widened to F32. */
static enum td_peak peak_of(enum td_dtype type)
{
    switch (type) {
    case TD_BF16:
        return td_probe_peak_instruction(TD_PEAK_BF16) ? TD_PEAK_BF16 : TD_PEAK_F32;
    case TD_F32:
    case TD_F16:
    case TD_F8_E4M3:
        return TD_PEAK_F32;
    default:
        return TD_PEAK_INT8;
    }
}

static bool steady(double a, double b)
{
    return fabs(a - b) <= STEADY * (a > b ? a : b);
}

static enum td_status take_probe(struct td_bench *b, struct td_bench_limits *limits)
{
    enum td_status s =
        td_bench_probe_take(b->probe, TD_BENCH_MEMORY | td_bench_peak_bit(b->peak), limits, b->err);

    if (s)
        return s;
    b->n_probes++;
    b->best.memory = fmax(b->best.memory, limits->memory);
    b->best.peak[b->peak] = fmax(b->best.peak[b->peak], limits->peak[b->peak]);
    b->has_peak = limits->peak[b->peak] > 0.0;
    return TD_OK;
}

static bool is_steady(const struct td_bench *b, enum td_bench_case which,
                      const struct td_bench_limits *before, const struct td_bench_limits *after)
{
    return td_bench_case_computes(which) ? steady(before->peak[b->peak], after->peak[b->peak])
                                         : steady(before->memory, after->memory);
}

/* Keeps a run, or counts it as one to be repeated: as many as there are repetitions may be. The probes are equal on all ranks,
 * so all decide alike. */
static bool keep(struct td_bench *b, enum td_bench_case which, struct td_bench_run run,
                 const struct td_bench_limits *before, const struct td_bench_limits *after)
{
    struct td_bench_result *r = &b->result[which];

    run.steady = is_steady(b, which, before, after);
    run.limits.memory = fmax(before->memory, after->memory);
    run.limits.peak[b->peak] = fmax(before->peak[b->peak], after->peak[b->peak]);
    if (!run.steady && r->n_repeated < b->n_runs) {
        r->n_repeated++;
        return false;
    }
    r->runs[r->n_runs++] = run;
    b->n_done++;
    td_term_progress(&b->spmd->term, "measuring", b->n_done, b->n_total, "runs");
    return true;
}

/* Loading and the first token, which one run gives both of. A run that is repeated is so for both. */
static enum td_status measure_loads(struct td_bench *b, struct td_bench_limits *before)
{
    enum td_bench_case first = b->result[TD_BENCH_LOAD].asked ? TD_BENCH_LOAD : TD_BENCH_FIRST;
    struct td_bench_limits after = {0};
    double seconds[2];
    enum td_status s = TD_OK;

    while (!s && b->result[first].asked && b->result[first].n_runs < b->n_runs) {
        s = td_bench_run_load(b, &seconds[0], &seconds[1]);
        s = s ? s : take_probe(b, &after);
        if (s)
            return s;
        if (keep(b, first, (struct td_bench_run){.seconds = seconds[first - TD_BENCH_LOAD]}, before,
                 &after) &&
            first == TD_BENCH_LOAD && b->result[TD_BENCH_FIRST].asked) {
            b->result[TD_BENCH_FIRST].n_repeated = b->n_runs; /* goes with the other */
            (void)keep(b, TD_BENCH_FIRST, (struct td_bench_run){.seconds = seconds[1]}, before,
                       &after);
        }
        *before = after;
    }
    if (first == TD_BENCH_LOAD)
        b->result[TD_BENCH_FIRST].n_repeated = b->result[first].n_repeated;
    return s;
}

/* The cases in turn, so that each sees the same minutes of the machine. */
static enum td_status measure_steps(struct td_bench *b, struct td_bench_limits *before)
{
    struct td_bench_limits after = {0};
    enum td_status s = TD_OK;

    for (uint32_t i = 0; !s && i < b->n_runs; i++)
        for (int c = 0; !s && c < TD_BENCH_LOAD; c++)
            for (bool kept = !b->result[c].asked; !s && !kept;) {
                struct td_bench_run run = {0};

                s = td_bench_run_case(b, (enum td_bench_case)c, &run);
                s = s ? s : take_probe(b, &after);
                if (!s)
                    kept = keep(b, (enum td_bench_case)c, run, before, &after);
                *before = after;
            }
    return s;
}

/* The group as a prediction sees it, before (0) or after (1) the cases. Collective. */
static enum td_status measure_group(struct td_bench *b, int when)
{
    struct td_measure_params params = {.node = &b->spmd->node,
                                       .n_ranks = b->spmd->size,
                                       .row_floats = b->spmd->node.model->spec->d_model,
                                       .n_rows = b->spmd->node.plan->max_batched_tokens};
    bool can = td_probe_peak_instruction(TD_PEAK_F32) != NULL;
    enum td_status s;

    if (!b->groups)
        return TD_OK;
    s = td_node_agree(b->spmd->world, can ? TD_OK : td_err_set(b->err, TD_UNSUPPORTED, "no probe"),
                      b->err);
    if (s == TD_UNSUPPORTED)
        return TD_OK;
    s = s ? s
          : td_measure_machine(&params, &b->groups[when].machine, &b->groups[when].report, b->err);
    b->groups[when].measured = !s;
    return s;
}

static enum td_status measure(struct td_bench *b)
{
    struct td_spmd *spmd = b->spmd;
    struct td_bench_probe_params params = {.world = spmd->world,
                                           .n_threads = spmd->node.facts.n_threads,
                                           .most_memory = spmd->node.facts.memory_bytes / 8,
                                           .idle_ns = 2 * spmd->node.spin_ns,
                                           .cores = &spmd->node.cores};
    struct td_bench_limits before = {0};
    enum td_status s = td_bench_prepare(b);

    for (int c = 0; !s && c < TD_BENCH_N_CASES; c++) {
        b->result[c].runs = calloc(b->n_runs, sizeof *b->result[c].runs);
        b->n_total += b->result[c].asked ? b->n_runs : 0;
        if (!b->result[c].runs)
            s = td_err_set(b->err, TD_NO_MEMORY, "no memory for %u runs", b->n_runs);
    }
    b->counts = calloc((size_t)2 * spmd->size, sizeof *b->counts);
    if (b->opts->json)
        b->groups = calloc(2, sizeof *b->groups);
    if (!b->counts || (b->opts->json && !b->groups))
        s = td_err_set(b->err, TD_NO_MEMORY, "no memory for %u ranks", spmd->size);
    s = td_node_agree(spmd->world, s, b->err);
    s = s ? s : measure_group(b, 0);
    s = s ? s : td_bench_probe_open(&params, &b->probe, b->err);
    s = s ? s : take_probe(b, &before);
    spmd->node.params.progress = NULL; /* loading again is one of the runs */
    s = s ? s : measure_loads(b, &before);
    s = s ? s : td_bench_fill(b);
    s = s ? s : take_probe(b, &before);
    s = s ? s : measure_steps(b, &before);
    s = s ? s : measure_group(b, 1);
    td_term_end(&spmd->term);
    return s;
}

int td_cmd_bench(const struct td_options *asked)
{
    struct td_err err;
    struct td_spmd spmd = {0};
    struct td_options opts = *asked; /* borrows all that `asked` owns */
    struct td_bench b = {.opts = asked, .spmd = &spmd, .err = &err};
    enum td_status s;
    bool is_lead;

    if (strcmp(asked->model, "machine") == 0)
        return td_bench_machine(asked);
    s = size_run(&b, &opts);
    b.opts = &opts;
    s = s ? s : td_spmd_open(&spmd, &opts, &err);
    if (s)
        return td_spmd_end(&spmd, &opts, s, &err);
    is_lead = spmd.rank == 0;
    if (td_kern_bus_id(spmd.node.kern)[0]) /* without it no energy is known */
        (void)td_gpuhealth_open(td_kern_bus_id(spmd.node.kern), &b.gpu, NULL);
    b.peak = peak_of(spmd.node.model->spec->dtype);
    s = measure(&b);
    if (!s && is_lead && opts.json)
        s = td_bench_print_json(&b);
    else if (!s && is_lead)
        td_bench_print_text(&b);
    td_bench_probe_close(b.probe);
    td_gpuhealth_close(b.gpu);
    td_step_close(&b.step);
    free(b.blocks);
    free(b.ids);
    free(b.counts);
    free(b.groups);
    for (int c = 0; c < TD_BENCH_N_CASES; c++)
        free(b.result[c].runs);
    return td_spmd_end(&spmd, &opts, s, &err);
}
