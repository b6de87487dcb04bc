/* `tensord perplexity`: how well the model foretells a text, alone or as one MPI job. Windows of --context tokens run
 * one after another through steps that rank 0 makes; the text's tokens, windows and sums are rank 0's alone. */
#include "daemon/cli/command.h"
#include "daemon/cli/config.h"
#include "daemon/cli/spmd.h"
#include "daemon/text/tokenizer.h"
#include "kernels/base/clock.h"
#include "shard/detmath.h"
#include "shard/vsum.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_TEXT_BYTES = 1 << 30,
    DEFAULT_CONTEXT = 512,
    MAX_CONTEXT = 1 << 20,
    DEFAULT_SCORED_ROWS = 64 /* rows with logits in one step, when --max-num-seqs is not said */
};

/* What rank 0 keeps of one measurement. */
struct measurement {
    const struct td_options *opts;
    struct td_spmd *spmd;
    struct td_err *err;
    uint32_t context; /* tokens of a whole window */
    struct td_ids ids;
    int64_t bos; /* in front of every window; -1: none */
    struct td_step step;
    uint32_t *blocks; /* [n_blocks] block table of the one sequence: the first blocks, in order */
    uint32_t n_blocks;
    uint32_t n_windows;
    size_t n_tokens; /* of all windows, run */
    double *nll;     /* [n_tokens] of each scored token, in the order of the text */
    size_t n_scored;
    double ppl, error, mean_nll;
    uint64_t run_ns;
};

/* The llama.cpp rule scores the second half of a window, but for the last token, which foretells what the window does not
 * hold. The other scores all that have a token before them in their window. */
static uint32_t first_scored(const struct measurement *m, uint32_t window_tokens)
{
    return m->opts->rule == TD_RULE_LLAMACPP ? window_tokens / 2 : 0;
}

/* Runs rows [begin, end) of a window. Where `scored`, row i's logits foretell token i + 1. */
static enum td_status run_rows(struct measurement *m, const uint32_t *window, uint32_t begin,
                               uint32_t end, bool scored)
{
    struct td_spmd *s = m->spmd;
    size_t n_vocab = s->node.model->spec->n_vocab;
    struct td_step_result result;
    const float *logits;
    enum td_status st;

    td_step_reset(&m->step, TD_STEP_RUN, s->node.n_steps);
    td_step_add_seq(&m->step, m->blocks, m->n_blocks, UINT32_MAX);
    for (uint32_t i = begin; i < end; i++) {
        uint32_t token = i == 0 && m->bos >= 0 ? (uint32_t)m->bos : window[i];

        td_step_add_row(&m->step, token, i, scored ? TD_WANT_LOGITS : TD_WANT_NONE);
    }
    st = td_node_lead(&s->node, &m->step, &result, m->err);
    logits = result.logits;
    for (uint32_t i = begin; !st && scored && i < end; i++, logits += n_vocab)
        m->nll[m->n_scored++] = td_vsum_logsumexp(logits, n_vocab) - (double)logits[window[i + 1]];
    return st;
}

static enum td_status run_window(struct measurement *m, const uint32_t *window, uint32_t n)
{
    const struct td_plan *plan = m->spmd->node.plan;
    uint32_t first = first_scored(m, n), chunk = plan->max_batched_tokens,
             most = plan->max_num_seqs;
    enum td_status s = TD_OK;

    if (m->opts->prefill_chunk && (uint64_t)m->opts->prefill_chunk < chunk)
        chunk = (uint32_t)m->opts->prefill_chunk;
    most = most < chunk ? most : chunk;
    for (uint32_t i = 0; !s && i < first; i += chunk)
        s = run_rows(m, window, i, first - i < chunk ? first : i + chunk, false);
    for (uint32_t i = first; !s && i < n - 1; i += most)
        s = run_rows(m, window, i, n - 1 - i < most ? n - 1 : i + most, true);
    return s;
}

static enum td_status read_ids(struct measurement *m)
{
    const struct td_options *o = m->opts;
    struct td_tokenizer *tok = NULL;
    struct td_bytes text = {0};
    uint32_t n_vocab = m->spmd->node.model->spec->n_vocab;
    enum td_status s = td_config_read_file(o->file, "--file", MAX_TEXT_BYTES, &text, m->err);

    s = s ? s : td_tokenizer_open(m->spmd->node.ck, &tok, m->err);
    s = s ? s : td_tokenizer_encode(tok, td_bytes_str(&text), TD_ENCODE_BOS, &m->ids, m->err);
    if (!s) { /* a text cannot spell BOS here, so it is there only where the model wants it */
        m->bos = td_tokenizer_bos(tok);
        m->bos = m->ids.len && m->bos == (int64_t)m->ids.data[0] ? m->bos : -1;
    }
    for (size_t i = 0; !s && i < m->ids.len; i++)
        if (m->ids.data[i] >= n_vocab)
            s = td_err_set(m->err, TD_CORRUPT,
                           "the tokenizer gives id %u, the model's vocabulary has %u",
                           m->ids.data[i], n_vocab);
    td_tokenizer_close(tok);
    td_bytes_deinit(&text);
    return s;
}

/* Reads the text and lays out the windows. */
static enum td_status prepare(struct measurement *m)
{
    const struct td_plan *plan = m->spmd->node.plan;
    enum td_status s = read_ids(m);
    size_t rest;

    if (s)
        return s;
    m->n_windows = (uint32_t)(m->ids.len / m->context);
    m->n_tokens = (size_t)m->n_windows * m->context;
    rest = m->ids.len - m->n_tokens;
    if (m->opts->rule == TD_RULE_ALL && rest >= 2) { /* the last window may be shorter */
        m->n_windows++;
        m->n_tokens += rest;
    }
    if (m->n_windows == 0)
        return td_err_set(
            m->err, TD_INVALID,
            "--file '%s' has %zu tokens: expected at least %u, one window of --context",
            m->opts->file, m->ids.len, m->opts->rule == TD_RULE_ALL ? 2 : m->context);
    if (m->context > plan->max_model_len)
        td_term_line(&m->spmd->term,
                     "tensord perplexity: --context %u is longer than the model's %u positions",
                     m->context, plan->max_model_len);
    m->n_blocks = (m->context + plan->block_tokens - 1) / plan->block_tokens;
    if (m->n_blocks > plan->n_blocks)
        return td_err_set(m->err, TD_TOO_LARGE,
                          "--context %u needs %u KV blocks of %u tokens, memory holds %u",
                          m->context, m->n_blocks, plan->block_tokens, plan->n_blocks);
    m->blocks = calloc(m->n_blocks, sizeof *m->blocks);
    m->nll = calloc(m->n_tokens, sizeof *m->nll);
    if (!m->blocks || !m->nll)
        return td_err_set(m->err, TD_NO_MEMORY, "no memory for the scores of %zu tokens",
                          m->n_tokens);
    for (uint32_t i = 0; i < m->n_blocks; i++)
        m->blocks[i] = i;
    return td_step_open(&m->step, plan->max_batched_tokens, 1, m->n_blocks, m->err);
}

/* The error is the standard error of the mean, carried through exp as llama.cpp does. */
static void sum_up(struct measurement *m)
{
    double sum = 0.0, squares = 0.0, n = (double)m->n_scored, variance;

    for (size_t i = 0; i < m->n_scored; i++) {
        sum += m->nll[i];
        squares += m->nll[i] * m->nll[i];
    }
    m->mean_nll = sum / n;
    m->ppl = td_detmath_exp(m->mean_nll);
    variance = squares / n - m->mean_nll * m->mean_nll;
    m->error = variance > 0.0 && m->n_scored > 1 ? sqrt(variance / (n - 1.0)) * m->ppl : 0.0;
}

static enum td_status measure(struct measurement *m)
{
    uint64_t start = td_clock_now_ns();
    size_t done = 0;
    enum td_status s = TD_OK;

    for (uint32_t w = 0; !s && w < m->n_windows; w++) {
        size_t n = m->n_tokens - done < m->context ? m->n_tokens - done : m->context;

        s = run_window(m, m->ids.data + done, (uint32_t)n);
        done += n;
        if (!s)
            td_term_progress(&m->spmd->term, "perplexity", done, m->n_tokens, "tokens");
    }
    m->run_ns = td_clock_now_ns() - start;
    if (!s)
        sum_up(m);
    return s;
}

static void print_text(const struct measurement *m)
{
    double seconds = (double)m->run_ns * 1e-9;

    printf("perplexity  %.4f +/- %.5f\n", m->ppl, m->error);
    printf("scored      %zu of %zu tokens in %u windows of %u (rule %s)\n", m->n_scored,
           m->n_tokens, m->n_windows, m->context,
           m->opts->rule == TD_RULE_LLAMACPP ? "llamacpp" : "all");
    printf("speed       %.1f tokens/s, %.2f s\n", (double)m->n_tokens / seconds, seconds);
    printf("kv cache    %s\n", td_dtype_info(m->spmd->node.plan->kv_dtype)->name);
}

/* Numbers with 17 digits, so that equal text means equal bits. --verbose adds every score. */
static enum td_status print_json(const struct measurement *m)
{
    const struct td_plan *plan = m->spmd->node.plan;
    double seconds = (double)m->run_ns * 1e-9;
    json_t *root = json_pack(
        "{s:f,s:f,s:f,s:s,s:I,s:I,s:I,s:I,s:f,s:f,s:f,s:s,s:{s:I,s:I}}", "perplexity", m->ppl,
        "error", m->error, "mean_nll", m->mean_nll, "rule",
        m->opts->rule == TD_RULE_LLAMACPP ? "llamacpp" : "all", "context", (json_int_t)m->context,
        "windows", (json_int_t)m->n_windows, "tokens", (json_int_t)m->n_tokens, "scored_tokens",
        (json_int_t)m->n_scored, "load_seconds", (double)m->spmd->load_ns * 1e-9, "seconds",
        seconds, "tokens_per_second", (double)m->n_tokens / seconds, "kv_dtype",
        td_dtype_info(plan->kv_dtype)->name, "layout", "tensor_parallel", (json_int_t)plan->tp,
        "pipeline_parallel", (json_int_t)plan->pp);
    json_t *nll = m->opts->verbose ? json_array() : NULL;
    bool ok = root && !m->opts->verbose == !nll;

    for (size_t i = 0; ok && nll && i < m->n_scored; i++)
        ok = json_array_append_new(nll, json_real(m->nll[i])) == 0;
    if (ok && nll)
        ok = json_object_set(root, "nll", nll) == 0;
    ok = ok && json_dumpf(root, stdout, JSON_COMPACT) == 0;
    putchar('\n');
    json_decref(nll);
    json_decref(root);
    return ok ? TD_OK
              : td_err_set(m->err, TD_INTERNAL, "a perplexity of %g cannot be printed as JSON",
                           m->ppl);
}

static enum td_status lead(struct measurement *m)
{
    enum td_status s = prepare(m), stop;

    s = s ? s : measure(m);
    if (s >= TD_PEER_LOST)
        return s;
    stop = td_spmd_stop(m->spmd, s ? NULL : m->err); /* the group is whole: let the others go */
    return s ? s : stop;
}

/* Memory for one window, unless the options ask for more. A window may be longer than the sequences that the model was
 * trained for (rotary positions go on), so it takes the blocks of as many of them as it needs. Reads headers only; local. */
static enum td_status size_run(struct td_options *opts, uint32_t *context, struct td_err *err)
{
    struct td_checkpoint *ck = NULL;
    uint64_t limit, n_seqs;
    enum td_status s = td_checkpoint_open(opts->model, &ck, err);

    if (s)
        return s;
    limit = td_checkpoint_spec(ck)->max_positions;
    td_checkpoint_close(ck);
    if (!opts->context)
        opts->context = limit < DEFAULT_CONTEXT ? (int64_t)limit : DEFAULT_CONTEXT;
    if (opts->max_model_len && opts->context > opts->max_model_len)
        return td_err_set(err, TD_INVALID,
                          "--context %lld: expected at most --max-model-len, which is %lld",
                          (long long)opts->context, (long long)opts->max_model_len);
    if (opts->context > MAX_CONTEXT)
        return td_err_set(err, TD_TOO_LARGE, "--context %lld: expected at most %d",
                          (long long)opts->context, MAX_CONTEXT);
    *context = (uint32_t)opts->context;
    limit = *context < limit ? *context : limit;
    n_seqs = (*context + limit - 1) / limit;
    opts->max_model_len = (int64_t)limit;
    if (!td_options_is_set(opts, &opts->max_num_seqs))
        opts->max_num_seqs = DEFAULT_SCORED_ROWS;
    if ((uint64_t)opts->max_num_seqs < n_seqs)
        opts->max_num_seqs = (int64_t)n_seqs;
    return TD_OK;
}

int td_cmd_perplexity(const struct td_options *asked)
{
    struct td_err err;
    struct td_spmd spmd = {0};
    struct td_options opts = *asked; /* borrows all that `asked` owns */
    struct measurement m = {.opts = &opts, .spmd = &spmd, .err = &err};
    enum td_status s = size_run(&opts, &m.context, &err);
    bool is_lead;

    s = s ? s : td_spmd_open(&spmd, &opts, &err);
    if (s)
        return td_spmd_end(&spmd, &opts, s, &err);
    is_lead = spmd.rank == 0;
    s = is_lead ? lead(&m) : td_spmd_follow(&spmd, &err);
    if (s < TD_PEER_LOST)
        s = td_node_agree(spmd.world, s, &err);
    if (!s && is_lead && opts.json)
        s = print_json(&m);
    else if (!s && is_lead)
        print_text(&m);
    td_step_close(&m.step);
    free(m.blocks);
    free(m.nll);
    td_ids_deinit(&m.ids);
    return td_spmd_end(&spmd, &opts, s, &err);
}
