#include "daemon/cli/bench.h"
#include "kernels/base/clock.h"

#include <stdlib.h>
#include <string.h>

enum {
    WARM_UP_STEPS = 4,
    MOST_TRIALS = TD_OVERLAPCHOICE_MOST_STEPS /* a prompt is a step or more */
};

/* A sequence: its run of b->blocks. */
struct sequence {
    uint32_t first_block, n_blocks;
};

static struct sequence sequence_of(const struct td_bench *b, enum td_bench_case which, uint32_t i)
{
    uint32_t t = b->spmd->node.plan->block_tokens;
    uint32_t one = (b->n_prompt + b->n_gen + t - 1) / t, deep = (b->n_depth + b->n_gen + t - 1) / t;
    uint32_t each = (b->n_fill + b->n_gen + t - 1) / t;

    if (which == TD_BENCH_DEPTH)
        return (struct sequence){one, deep};
    if (which == TD_BENCH_BATCH)
        return (struct sequence){one + (b->result[TD_BENCH_DEPTH].asked ? deep : 0) + i * each,
                                 each};
    return (struct sequence){0, one};
}

/* A step under construction; the other ranks get it from rank 0. */
static void begin_step(struct td_bench *b)
{
    td_step_reset(&b->step, TD_STEP_RUN, b->spmd->node.n_steps);
}

/* Rows of one sequence; of the last one the largest logit is wanted where `last` says so, as greedy requests do. */
static void add_rows(struct td_bench *b, struct sequence seq, uint32_t position, uint32_t n,
                     bool last)
{
    td_step_add_seq(&b->step, b->blocks + seq.first_block, seq.n_blocks, UINT32_MAX);
    for (uint32_t i = 0; i < n; i++)
        if (last && i + 1 == n)
            td_step_add_top_row(&b->step, b->ids[(position + i) % b->n_ids], position + i, 1);
        else
            td_step_add_row(&b->step, b->ids[(position + i) % b->n_ids], position + i,
                            TD_WANT_NONE);
}

static enum td_status run_step(struct td_bench *b)
{
    struct td_step_result none;
    enum td_status s;

    if (b->spmd->rank == 0)
        return td_node_run(&b->spmd->node, &b->step, &none, b->err);
    do
        s = td_node_follow(&b->spmd->node, b->err);
    while (!s && !b->spmd->node.is_complete);
    return s;
}

/* Most rows of a prompt in one step. */
static uint32_t chunk_of(const struct td_bench *b)
{
    uint32_t most = b->spmd->node.plan->max_batched_tokens;

    return b->opts->prefill_chunk && (uint64_t)b->opts->prefill_chunk < most
               ? (uint32_t)b->opts->prefill_chunk
               : most;
}

/* Positions 0 .. n - 1 of a sequence, in chunks of what a step may hold. */
static enum td_status run_prompt(struct td_bench *b, struct sequence seq, uint32_t n)
{
    uint32_t chunk = chunk_of(b);
    enum td_status s = TD_OK;

    for (uint32_t i = 0; !s && i < n; i += chunk) {
        uint32_t rows = n - i < chunk ? n - i : chunk;

        begin_step(b);
        add_rows(b, seq, i, rows, i + rows == n);
        s = run_step(b);
    }
    return s;
}

/* One token after the other. Their ids are drawn, not sampled: the sampler is not what is measured. */
static enum td_status run_tokens(struct td_bench *b, struct sequence seq, uint32_t position,
                                 uint32_t n)
{
    enum td_status s = TD_OK;

    for (uint32_t i = 0; !s && i < n; i++) {
        begin_step(b);
        add_rows(b, seq, position + i, 1, true);
        s = run_step(b);
    }
    return s;
}

static enum td_status run_batch(struct td_bench *b, uint32_t n)
{
    enum td_status s = TD_OK;

    for (uint32_t i = 0; !s && i < n; i++) {
        begin_step(b);
        for (uint32_t q = 0; q < b->n_batch; q++)
            add_rows(b, sequence_of(b, TD_BENCH_BATCH, q), b->n_fill + i, 1, true);
        s = run_step(b);
    }
    return s;
}

static double seconds_since(uint64_t start)
{
    return (double)(td_clock_now_ns() - start) * 1e-9;
}

/* Everybody's counts, to all. */
static enum td_status gather_counts(struct td_bench *b, struct td_bench_counts *all)
{
    struct td_shard_stats stats;
    struct td_gpuhealth_sample gpu;
    struct td_bench_counts mine = {.run_ns = b->spmd->node.run_ns};
    size_t bytes[TD_PLAN_MAX_RANKS];

    td_shard_stats(b->spmd->node.shard, &stats);
    mine.inside_ns = stats.wait_ns;
    mine.sent_bytes = stats.exchanged_bytes;
    mine.n_exchanges = stats.n_exchanges;
    if (b->gpu) {
        td_gpuhealth_read(b->gpu, &gpu);
        mine.gpu_energy = gpu.value[TD_GPU_ENERGY];
    }
    for (uint32_t r = 0; r < b->spmd->size; r++)
        bytes[r] = sizeof mine;
    return td_comm_all_gather(b->spmd->world, &mine, bytes, all, b->err);
}

/* Whether rank r is the first one on its GPU, which others may share. */
static bool is_first_on_gpu(const struct td_node_facts *facts, uint32_t r)
{
    for (uint32_t i = 0; i < r; i++)
        if (strcmp(facts[i].host, facts[r].host) == 0 &&
            strcmp(facts[i].bus_id, facts[r].bus_id) == 0)
            return false;
    return true;
}

static void count_run(struct td_bench *b, enum td_bench_case which, struct td_bench_run *run)
{
    struct td_bench_counts *before = b->counts, *after = b->counts + b->spmd->size;
    struct td_bench_work *w = &b->result[which].work;
    uint64_t run_ns[TD_PLAN_MAX_RANKS], inside_ns[TD_PLAN_MAX_RANKS];

    w->sent_bytes = w->n_exchanges = 0.0;
    for (uint32_t r = 0; r < b->spmd->size; r++) {
        run_ns[r] = after[r].run_ns - before[r].run_ns;
        inside_ns[r] = after[r].inside_ns - before[r].inside_ns;
        w->sent_bytes += (double)(after[r].sent_bytes - before[r].sent_bytes);
        w->n_exchanges += (double)(after[r].n_exchanges - before[r].n_exchanges);
    }
    run->split = td_stepsplit_of(b->spmd->size, run_ns, inside_ns);
    run->joules = 0.0;
    for (uint32_t r = 0; r < b->spmd->size; r++)
        if (before[r].gpu_energy && is_first_on_gpu(b->spmd->facts, r))
            run->joules += (double)(after[r].gpu_energy - before[r].gpu_energy) * 1e-3;
}

static enum td_status run_rows(struct td_bench *b, enum td_bench_case which)
{
    struct sequence seq = sequence_of(b, which, 0);

    switch (which) {
    case TD_BENCH_PREFILL:
        return run_prompt(b, seq, b->n_prompt);
    case TD_BENCH_BATCH:
        return run_batch(b, b->n_gen);
    case TD_BENCH_DEPTH:
        return run_tokens(b, seq, b->n_depth, b->n_gen);
    default:
        return run_tokens(b, seq, b->n_prompt, b->n_gen);
    }
}

enum td_status td_bench_run_case(struct td_bench *b, enum td_bench_case which,
                                 struct td_bench_run *run)
{
    enum td_status s = gather_counts(b, b->counts);
    uint64_t start = td_clock_now_ns();

    s = s ? s : run_rows(b, which);
    run->seconds = seconds_since(start);
    s = s ? s : gather_counts(b, b->counts + b->spmd->size);
    if (!s)
        count_run(b, which, run);
    return s;
}

enum td_status td_bench_run_load(struct td_bench *b, double *pack, double *first)
{
    uint64_t start = td_clock_now_ns();
    enum td_status s = td_spmd_load(b->spmd, b->opts, b->err);

    if (s)
        return s;
    *pack = (double)b->spmd->pack_ns * 1e-9;
    s = run_prompt(b, sequence_of(b, TD_BENCH_DECODE, 0), 1);
    *first = seconds_since(start);
    return s;
}

/* Prompts until rank 0 has found out into how many parts their steps are cut. */
static enum td_status settle(struct td_bench *b, struct sequence seq)
{
    const struct td_node *node = &b->spmd->node;
    uint32_t chunk = chunk_of(b), rows = b->n_prompt < chunk ? b->n_prompt : chunk;
    enum td_status s = TD_OK;

    for (uint32_t i = 0; !s && i < MOST_TRIALS; i++) {
        bool tries = td_overlapchoice_tries(&node->overlap, rows);

        s = td_comm_bcast(b->spmd->world, 0, &tries, sizeof tries, b->err);
        if (!s && !tries)
            break;
        s = s ? s : run_prompt(b, seq, b->n_prompt);
    }
    return s;
}

enum td_status td_bench_fill(struct td_bench *b)
{
    uint32_t warm = b->n_gen < WARM_UP_STEPS ? b->n_gen : WARM_UP_STEPS;
    struct sequence one = sequence_of(b, TD_BENCH_DECODE, 0);
    bool decodes = b->result[TD_BENCH_DECODE].asked, prefills = b->result[TD_BENCH_PREFILL].asked;
    enum td_status s = TD_OK;

    if (decodes || prefills)
        s = run_prompt(b, one, b->n_prompt);
    if (!s && prefills)
        s = settle(b, one);
    if (!s && decodes)
        s = run_tokens(b, one, b->n_prompt, warm);
    if (!s && b->result[TD_BENCH_DEPTH].asked) {
        struct sequence deep = sequence_of(b, TD_BENCH_DEPTH, 0);

        if (b->spmd->rank == 0)
            td_term_line(&b->spmd->term, "running %u tokens for the decode at that depth",
                         b->n_depth);
        s = run_prompt(b, deep, b->n_depth);
        s = s ? s : run_tokens(b, deep, b->n_depth, warm);
    }
    if (b->result[TD_BENCH_BATCH].asked) {
        for (uint32_t q = 0; !s && q < b->n_batch; q++)
            s = run_prompt(b, sequence_of(b, TD_BENCH_BATCH, q), b->n_fill);
        s = s ? s : run_batch(b, warm);
    }
    return s;
}

/* ---- what a case does ---- */

/* Weights of one row's way through all layers, and of the head. */
static void count_weights(const struct td_spec *spec, double *layers, double *head)
{
    double d = spec->d_model, q = (double)spec->n_heads * spec->head_dim;
    double kv = (double)spec->n_kv_heads * spec->head_dim;

    *layers = spec->n_layers * (2.0 * d * q + 2.0 * d * kv + 3.0 * d * spec->d_ff);
    *head = (double)spec->n_vocab * d;
}

/* `n_seqs` sequences with n tokens each from `position` on, in steps of `rows` tokens of each; `heads` rows want logits. */
static struct td_bench_work count_work(const struct td_bench *b, uint32_t n_seqs, uint32_t position,
                                       uint32_t n, uint32_t rows, double heads)
{
    const struct td_plan *plan = b->spmd->node.plan;
    const struct td_plan_model *model = b->spmd->node.model;
    const struct td_spec *spec = model->spec;
    size_t embed_row = td_dtype_row_bytes(model->embed, spec->d_model);
    double layers, head, all = (double)n_seqs * n, kv_per_token = 0.0;
    struct td_bench_work w = {.n_tokens = (uint64_t)n_seqs * n,
                              .n_steps = (n + rows - 1) / rows,
                              .depth = position + (n + 1) / 2.0};

    count_weights(spec, &layers, &head);
    /* All weights but the embedding, of which a token needs one row; a tied head is read whole. */
    for (uint32_t r = 0; r < plan->n_ranks; r++) {
        const struct td_plan_rank *rank = &plan->rank[r];

        w.weight_bytes += (double)rank->weight_bytes;
        if (!spec->tied_head)
            w.weight_bytes -= (double)(embed_row * (rank->vocab_end - rank->vocab_begin));
        kv_per_token += (double)rank->kv_bytes_per_token;
    }
    /* Each sequence's keys and values up to the step's last token, once for all its rows. */
    w.kv_bytes = kv_per_token * n_seqs * (rows == 1 ? w.depth : position + (n + rows) / 2.0);
    w.matrix_ops = 2.0 * (layers * all + head * heads);
    w.attn_ops = 4.0 * spec->n_layers * spec->n_heads * spec->head_dim * all * w.depth;
    return w;
}

static void count_cases(struct td_bench *b)
{
    uint32_t chunk = b->spmd->node.plan->max_batched_tokens, rows = b->n_prompt;

    if (b->opts->prefill_chunk && (uint64_t)b->opts->prefill_chunk < chunk)
        chunk = (uint32_t)b->opts->prefill_chunk;
    rows = rows < chunk ? rows : chunk;
    b->result[TD_BENCH_DECODE].work = count_work(b, 1, b->n_prompt, b->n_gen, 1, b->n_gen);
    b->result[TD_BENCH_PREFILL].work = count_work(b, 1, 0, b->n_prompt, rows, 1);
    b->result[TD_BENCH_BATCH].work =
        count_work(b, b->n_batch, b->n_fill, b->n_gen, 1, (double)b->n_batch * b->n_gen);
    b->result[TD_BENCH_DEPTH].work = count_work(b, 1, b->n_depth, b->n_gen, 1, b->n_gen);
    b->result[TD_BENCH_FIRST].work = count_work(b, 1, 0, 1, 1, 1);
    b->result[TD_BENCH_LOAD].work = (struct td_bench_work){.n_steps = 1};
    for (uint32_t r = 0; r < b->spmd->node.plan->n_ranks; r++) /* every weight, the embedding too */
        b->result[TD_BENCH_LOAD].work.weight_bytes +=
            (double)b->spmd->node.plan->rank[r].weight_bytes;
}

/* Ids spread over the vocabulary, the same in every run with the same seed. */
static void draw_ids(struct td_bench *b)
{
    const struct td_spec *spec = b->spmd->node.model->spec;
    uint64_t x = td_options_is_set(b->opts, &b->opts->seed) ? (uint64_t)b->opts->seed : 1;

    for (uint32_t i = 0; i < b->n_ids; i++) {
        x = x * 6364136223846793005u +
            1442695040888963407u; /* Knuth's MMIX generator; its high bits are the good ones */
        b->ids[i] = (uint32_t)((x >> 33) % spec->n_vocab);
    }
    if (spec->bos_id >= 0)
        b->ids[0] = (uint32_t)spec->bos_id;
}

enum td_status td_bench_prepare(struct td_bench *b)
{
    const struct td_plan *plan = b->spmd->node.plan;
    uint64_t need = td_bench_blocks(b, plan->block_tokens);

    if (need > plan->n_blocks)
        return td_err_set(
            b->err, TD_TOO_LARGE,
            "the cases need %llu blocks of keys and values, and there is room for %u: "
            "expected more --kv-cache-memory-bytes or --max-num-seqs, or fewer --cases",
            (unsigned long long)need, plan->n_blocks);
    b->n_ids = (b->n_prompt > b->n_depth ? b->n_prompt : b->n_depth) + b->n_gen;
    b->ids = calloc(b->n_ids, sizeof *b->ids);
    b->blocks = calloc(plan->n_blocks, sizeof *b->blocks);
    if (!b->ids || !b->blocks)
        return td_err_set(b->err, TD_NO_MEMORY, "no memory for %u tokens", b->n_ids);
    for (uint32_t i = 0; i < plan->n_blocks; i++)
        b->blocks[i] = i;
    draw_ids(b);
    count_cases(b);
    return td_step_open(&b->step, plan->max_batched_tokens, plan->max_num_seqs, plan->n_blocks,
                        b->err);
}
