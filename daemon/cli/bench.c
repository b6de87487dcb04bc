/* `tensord bench`: prompt and decode speed of a model, alone or as one MPI job, and how much of the memory's bandwidth
 * decoding uses. A made-up prompt runs through steps that rank 0 makes, one sequence at a time. */
#include "daemon/cli/bench_probe.h"
#include "daemon/cli/command.h"
#include "daemon/cli/spmd.h"
#include "kernels/base/clock.h"

#include <jansson.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { WARM_UP_TOKENS = 4 };

/* Mean and sample standard deviation over the repetitions. */
struct speed {
    double mean, spread;
};

struct bench {
    const struct td_options *opts;
    struct td_spmd *spmd;
    struct td_err *err;
    struct td_step step;
    uint32_t n_prompt, n_gen, n_runs;
    uint32_t *prompt;           /* [n_prompt] */
    uint32_t *blocks, n_blocks; /* block table of the one sequence: the first blocks, in order */
    double *prompt_tps, *decode_tps; /* [n_runs] tokens per second */
    uint64_t n_done, n_total;        /* tokens run, for progress */
    double before, after;            /* bytes per second that the hosts' memory gave */
};

/* Bytes that one decode step reads, over all ranks. */
struct reads {
    double weights;
    double kv; /* at the mean depth of the decode steps */
    double depth;
};

static uint32_t largest(const float *logits, uint32_t n)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

/* Runs `n` tokens from `position` on; the last row's most likely token comes back where `next` is given. */
static enum td_status run_rows(struct bench *b, const uint32_t *tokens, uint32_t position,
                               uint32_t n, uint32_t *next)
{
    struct td_node *node = &b->spmd->node;
    const float *logits;
    enum td_status s;

    td_step_reset(&b->step, TD_STEP_RUN, node->n_steps);
    td_step_add_seq(&b->step, b->blocks, b->n_blocks, UINT32_MAX);
    for (uint32_t i = 0; i < n; i++)
        td_step_add_row(&b->step, tokens[i], position + i,
                        next && i == n - 1 ? TD_WANT_LOGITS : TD_WANT_NONE);
    s = td_node_lead(node, &b->step, &logits, b->err);
    if (!s && next)
        *next = largest(logits, node->model->spec->n_vocab);
    return s;
}

static void show_progress(struct bench *b, uint32_t n)
{
    b->n_done += n;
    td_term_progress(&b->spmd->term, "measuring", b->n_done, b->n_total, "tokens");
}

/* One prompt and `n_gen` tokens after it. */
static enum td_status run_once(struct bench *b, uint32_t n_prompt, uint32_t n_gen,
                               double *prompt_tps, double *decode_tps)
{
    uint32_t chunk = b->spmd->node.plan->max_batched_tokens, token = 0;
    uint64_t start = td_clock_now_ns(), middle;
    enum td_status s = TD_OK;

    if (b->opts->prefill_chunk && (uint64_t)b->opts->prefill_chunk < chunk)
        chunk = (uint32_t)b->opts->prefill_chunk;
    for (uint32_t i = 0; !s && i < n_prompt; i += chunk) {
        uint32_t n = n_prompt - i < chunk ? n_prompt - i : chunk;

        s = run_rows(b, b->prompt + i, i, n, i + n == n_prompt ? &token : NULL);
        show_progress(b, n);
    }
    middle = td_clock_now_ns();
    for (uint32_t i = 0; !s && i < n_gen; i++) {
        s = run_rows(b, &token, n_prompt + i, 1, &token);
        show_progress(b, 1);
    }
    *prompt_tps = n_prompt / ((double)(middle - start) * 1e-9);
    *decode_tps = n_gen / ((double)(td_clock_now_ns() - middle) * 1e-9);
    return s;
}

/* Ids spread over the vocabulary, the same in every run with the same seed. */
static void make_prompt(struct bench *b)
{
    const struct td_spec *spec = b->spmd->node.model->spec;
    uint64_t x = td_options_is_set(b->opts, &b->opts->seed) ? (uint64_t)b->opts->seed : 1;

    for (uint32_t i = 0; i < b->n_prompt; i++) {
        x = x * 6364136223846793005u +
            1442695040888963407u; /* Knuth's MMIX generator; its high bits are the good ones */
        b->prompt[i] = (uint32_t)((x >> 33) % spec->n_vocab);
    }
    if (spec->bos_id >= 0)
        b->prompt[0] = (uint32_t)spec->bos_id;
}

static enum td_status prepare(struct bench *b)
{
    const struct td_plan *plan = b->spmd->node.plan;

    b->n_blocks = (b->n_prompt + b->n_gen + plan->block_tokens - 1) / plan->block_tokens;
    b->prompt = calloc(b->n_prompt, sizeof *b->prompt);
    b->blocks = calloc(b->n_blocks, sizeof *b->blocks);
    b->prompt_tps = calloc(b->n_runs, sizeof *b->prompt_tps);
    b->decode_tps = calloc(b->n_runs, sizeof *b->decode_tps);
    if (!b->prompt || !b->blocks || !b->prompt_tps || !b->decode_tps)
        return td_err_set(b->err, TD_NO_MEMORY, "no memory for %u runs", b->n_runs);
    for (uint32_t i = 0; i < b->n_blocks; i++)
        b->blocks[i] = i;
    make_prompt(b);
    return td_step_open(&b->step, plan->max_batched_tokens, 1, b->n_blocks, b->err);
}

static enum td_status lead(struct bench *b)
{
    uint32_t warm = b->n_gen < WARM_UP_TOKENS ? b->n_gen : WARM_UP_TOKENS;
    enum td_status s = prepare(b), stop;

    b->n_total = (uint64_t)(b->n_prompt + b->n_gen) * b->n_runs + b->n_prompt + warm;
    if (!s) /* not counted: memory is touched and threads are awake afterwards */
        s = run_once(b, b->n_prompt, warm, &b->prompt_tps[0], &b->decode_tps[0]);
    for (uint32_t i = 0; !s && i < b->n_runs; i++)
        s = run_once(b, b->n_prompt, b->n_gen, &b->prompt_tps[i], &b->decode_tps[i]);
    td_term_end(&b->spmd->term);
    if (s >= TD_PEER_LOST)
        return s;
    stop = td_spmd_stop(b->spmd, s ? NULL : b->err); /* the group is whole: let the others go */
    return s ? s : stop;
}

static struct speed speed_of(const double *runs, uint32_t n)
{
    struct speed v = {0.0, 0.0};

    for (uint32_t i = 0; i < n; i++)
        v.mean += runs[i] / n;
    for (uint32_t i = 0; n > 1 && i < n; i++)
        v.spread += (runs[i] - v.mean) * (runs[i] - v.mean) / (n - 1);
    v.spread = sqrt(v.spread);
    return v;
}

/* All weights but the embedding, of which a token needs one row; a tied head is read whole. Keys and values up to the
 * token's own, on every rank that holds them. */
static struct reads reads_of(const struct bench *b)
{
    const struct td_plan *plan = b->spmd->node.plan;
    const struct td_plan_model *model = b->spmd->node.model;
    size_t row = td_dtype_row_bytes(model->embed, model->spec->d_model);
    struct reads v = {.depth = b->n_prompt + (b->n_gen + 1) / 2.0};

    for (uint32_t r = 0; r < plan->n_ranks; r++) {
        const struct td_plan_rank *rank = &plan->rank[r];

        v.weights += (double)rank->weight_bytes;
        if (!model->spec->tied_head)
            v.weights -= (double)(row * (rank->vocab_end - rank->vocab_begin));
        v.kv += (double)rank->kv_bytes_per_token * v.depth;
    }
    return v;
}

static void print_text(const struct bench *b)
{
    const struct td_spmd *s = b->spmd;
    const struct td_plan *plan = s->node.plan;
    struct speed prompt = speed_of(b->prompt_tps, b->n_runs),
                 decode = speed_of(b->decode_tps, b->n_runs);
    struct reads reads = reads_of(b);
    double used = (reads.weights + reads.kv) * decode.mean,
           best = b->before > b->after ? b->before : b->after;
    char total[32], weights[32], kv[32];
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);

    td_term_bytes(plan->model_bytes, total, sizeof total);
    printf("model      %s (%s), %s of weights\n", s->node.model->name, s->node.model->spec->name,
           total);
    printf(
        "layout     %u rank%s: tensor parallel %u x pipeline parallel %u, %s, %u thread%s each\n",
        plan->n_ranks, plan->n_ranks == 1 ? "" : "s", plan->tp, plan->pp, s->facts[0].device,
        s->facts[0].n_threads, s->facts[0].n_threads == 1 ? "" : "s");
    printf("prompt     %.1f +/- %.1f tokens/s (%u tokens, %u runs)\n", prompt.mean, prompt.spread,
           b->n_prompt, b->n_runs);
    printf("decode     %.1f +/- %.1f tokens/s (%u tokens, %u runs)\n", decode.mean, decode.spread,
           b->n_gen, b->n_runs);
    td_term_bytes((uint64_t)(reads.weights + reads.kv), total, sizeof total);
    td_term_bytes((uint64_t)reads.weights, weights, sizeof weights);
    td_term_bytes((uint64_t)reads.kv, kv, sizeof kv);
    printf("reads      %s per token: %s of weights, %s of keys and values at %.0f tokens\n", total,
           weights, kv, reads.depth);
    printf("bandwidth  %.2f GB/s of %.2f GB/s measured: %.0f %%\n", used * 1e-9, best * 1e-9,
           100.0 * used / best);
    if (cache > 0 && reads.weights < (double)cache)
        printf(
            "           the weights fit in the CPU's caches, so memory is hardly the limit here\n");
}

static json_t *speed_json(const double *runs, uint32_t n, uint32_t n_tokens)
{
    struct speed v = speed_of(runs, n);
    json_t *all = json_array();

    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(all, json_real(runs[i]));
    return json_pack("{s:I,s:f,s:f,s:o}", "tokens", (json_int_t)n_tokens, "tokens_per_second",
                     v.mean, "spread", v.spread, "runs", all);
}

static json_t *ranks_json(const struct td_spmd *s)
{
    json_t *all = json_array();

    for (uint32_t r = 0; r < s->size; r++) {
        const struct td_plan_rank *rank = &s->node.plan->rank[r];

        json_array_append_new(all,
                              json_pack("{s:I,s:s,s:s,s:I,s:I,s:I}", "rank", (json_int_t)r, "host",
                                        s->facts[r].host, "device", s->facts[r].device, "threads",
                                        (json_int_t)s->facts[r].n_threads, "weight_bytes",
                                        (json_int_t)rank->weight_bytes, "kv_bytes_per_token",
                                        (json_int_t)rank->kv_bytes_per_token));
    }
    return all;
}

static enum td_status print_json(const struct bench *b)
{
    const struct td_plan *plan = b->spmd->node.plan;
    struct reads reads = reads_of(b);
    double used = (reads.weights + reads.kv) * speed_of(b->decode_tps, b->n_runs).mean;
    double best = b->before > b->after ? b->before : b->after;
    json_t *root = json_pack(
        "{s:s,s:s,s:I,s:I,s:o,s:o,s:{s:f,s:f,s:f,s:f},s:{s:f,s:f,s:f,s:f},s:I,s:f,s:{s:I,s:I},s:o}",
        "model", b->spmd->node.model->name, "architecture", b->spmd->node.model->spec->name,
        "model_bytes", (json_int_t)plan->model_bytes, "repetitions", (json_int_t)b->n_runs,
        "prompt", speed_json(b->prompt_tps, b->n_runs, b->n_prompt), "decode",
        speed_json(b->decode_tps, b->n_runs, b->n_gen), "bytes_read_per_token", "total",
        reads.weights + reads.kv, "weights", reads.weights, "kv", reads.kv, "depth", reads.depth,
        "memory_bandwidth", "before_bytes_per_second", b->before, "after_bytes_per_second",
        b->after, "used_bytes_per_second", used, "share", used / best, "exchanged_bytes_per_token",
        (json_int_t)td_plan_exchanged_bytes(plan), "load_seconds", (double)b->spmd->load_ns * 1e-9,
        "layout", "tensor_parallel", (json_int_t)plan->tp, "pipeline_parallel",
        (json_int_t)plan->pp, "ranks", ranks_json(b->spmd));
    bool ok = root && json_dumpf(root, stdout, JSON_COMPACT) == 0;

    putchar('\n');
    json_decref(root);
    return ok ? TD_OK
              : td_err_set(b->err, TD_NO_MEMORY, "no memory for the JSON of %u runs", b->n_runs);
}

/* Room for one sequence of the prompt and its answer. A prompt length that nobody asked for gives way to a short model.
 * Reads headers only; local. */
static enum td_status size_run(struct td_options *opts, struct td_err *err)
{
    struct td_checkpoint *ck = NULL;
    int64_t limit;
    enum td_status s = td_checkpoint_open(opts->model, &ck, err);

    if (s)
        return s;
    limit = td_checkpoint_spec(ck)->max_positions;
    td_checkpoint_close(ck);
    if (opts->max_model_len && opts->max_model_len < limit)
        limit = opts->max_model_len;
    if (!td_options_is_set(opts, &opts->prompt_tokens) && opts->gen_tokens < limit &&
        opts->prompt_tokens > limit - opts->gen_tokens)
        opts->prompt_tokens = limit - opts->gen_tokens;
    if (opts->prompt_tokens + opts->gen_tokens > limit)
        return td_err_set(
            err, TD_INVALID,
            "--prompt-tokens %lld and --gen-tokens %lld need %lld positions: expected at most %lld",
            (long long)opts->prompt_tokens, (long long)opts->gen_tokens,
            (long long)(opts->prompt_tokens + opts->gen_tokens), (long long)limit);
    opts->max_model_len = opts->prompt_tokens + opts->gen_tokens;
    if (!td_options_is_set(opts, &opts->max_num_seqs))
        opts->max_num_seqs = 1;
    return TD_OK;
}

/* Opens, measures and closes on every rank. */
static enum td_status run(struct bench *b, const cpu_set_t *cores)
{
    struct td_spmd *s = b->spmd;
    struct td_bench_probe_params probe = {.world = s->world,
                                          .n_threads = s->node.facts.n_threads,
                                          .most_memory = s->node.facts.memory_bytes / 8,
                                          .cores = *cores};
    enum td_status st;

    if (s->rank == 0)
        td_term_line(&s->term, "measuring the memory");
    st = td_bench_probe_run(&probe, &b->before, b->err);
    if (st)
        return st;
    st = s->rank == 0 ? lead(b) : td_spmd_follow(s, b->err);
    if (st >= TD_PEER_LOST)
        return st;
    st = td_node_agree(s->world, st, b->err);
    return st ? st : td_bench_probe_run(&probe, &b->after, b->err);
}

int td_cmd_bench(const struct td_options *asked)
{
    struct td_err err;
    struct td_spmd spmd = {0};
    struct td_options opts = *asked; /* borrows all that `asked` owns */
    struct bench b = {.opts = &opts, .spmd = &spmd, .err = &err};
    enum td_status s = size_run(&opts, &err);
    cpu_set_t cores;
    bool is_lead;

    CPU_ZERO(&cores);
    (void)sched_getaffinity(0, sizeof cores, &cores); /* before the device binds this thread */
    b.n_prompt = (uint32_t)opts.prompt_tokens;
    b.n_gen = (uint32_t)opts.gen_tokens;
    b.n_runs = (uint32_t)opts.repetitions;
    s = s ? s : td_spmd_open(&spmd, &opts, &err);
    if (s)
        return td_spmd_end(&spmd, &opts, s, &err);
    is_lead = spmd.rank == 0;
    s = run(&b, &cores);
    if (!s && is_lead && opts.json)
        s = print_json(&b);
    else if (!s && is_lead)
        print_text(&b);
    td_step_close(&b.step);
    free(b.prompt);
    free(b.blocks);
    free(b.prompt_tps);
    free(b.decode_tps);
    return td_spmd_end(&spmd, &opts, s, &err);
}
