/* `tensord perplexity`: how well the model foretells a text, alone or as one MPI job. Windows of --context tokens run
 * one after another through steps that rank 0 makes; the text's tokens, windows and sums are rank 0's alone. With several
 * types of the KV cache the model is loaded and the text run once for each, and rank 0 compares the scores. */
#include "daemon/cli/command.h"
#include "daemon/cli/config.h"
#include "daemon/cli/spmd.h"
#include "daemon/text/tokenizer.h"
#include "kernels/base/clock.h"
#include "kernels/detmath.h"
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

/* The text's scores with one type of the KV cache. */
struct scores {
    const char *asked; /* as --kv-cache-dtype names it */
    enum td_dtype kv_dtype;
    size_t kv_bytes_per_token; /* all ranks together */
    double *nll;               /* [n_tokens] of each scored token, in the order of the text */
    size_t n;
    double ppl, error, mean_nll;
    double mean_diff, max_diff; /* absolute, of a token's log probability to the first type's */
    uint64_t run_ns, load_ns;
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
    struct scores scores[TD_OPTION_MAX_ENUMS];
    uint32_t n_scores;
};

/* The llama.cpp rule scores the second half of a window, but for the last token, which foretells what the window does not
 * hold. The other scores all that have a token before them in their window. */
static uint32_t first_scored(const struct measurement *m, uint32_t window_tokens)
{
    return m->opts->rule == TD_RULE_LLAMACPP ? window_tokens / 2 : 0;
}

/* Runs rows [begin, end) of a window. With `scored`, row i's logits foretell token i + 1. */
static enum td_status run_rows(struct measurement *m, const uint32_t *window, uint32_t begin,
                               uint32_t end, struct scores *scored)
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
    st = td_node_run(&s->node, &m->step, &result, m->err);
    logits = result.logits;
    for (uint32_t i = begin; !st && scored && i < end; i++, logits += n_vocab)
        scored->nll[scored->n++] =
            td_vsum_logsumexp(logits, n_vocab) - (double)logits[window[i + 1]];
    return st;
}

static enum td_status run_window(struct measurement *m, struct scores *scores,
                                 const uint32_t *window, uint32_t n)
{
    const struct td_plan *plan = m->spmd->node.plan;
    uint32_t first = first_scored(m, n), chunk = plan->max_batched_tokens,
             most = plan->max_num_seqs;
    enum td_status s = TD_OK;

    if (m->opts->prefill_chunk && (uint64_t)m->opts->prefill_chunk < chunk)
        chunk = (uint32_t)m->opts->prefill_chunk;
    most = most < chunk ? most : chunk;
    for (uint32_t i = 0; !s && i < first; i += chunk)
        s = run_rows(m, window, i, first - i < chunk ? first : i + chunk, NULL);
    for (uint32_t i = first; !s && i < n - 1; i += most)
        s = run_rows(m, window, i, n - 1 - i < most ? n - 1 : i + most, scores);
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

/* Reads the text and lays out the windows; all types of the KV cache share both. */
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
    m->blocks = calloc(m->n_blocks, sizeof *m->blocks);
    if (!m->blocks)
        return td_err_set(m->err, TD_NO_MEMORY, "no memory for a window of %u tokens", m->context);
    for (uint32_t i = 0; i < m->n_blocks; i++)
        m->blocks[i] = i;
    return td_step_open(&m->step, plan->max_batched_tokens, 1, m->n_blocks, m->err);
}

/* Room for the scores, with the plan that is loaded now. */
static enum td_status open_scores(const struct measurement *m, struct scores *scores)
{
    const struct td_plan *plan = m->spmd->node.plan;

    if (m->n_blocks > plan->n_blocks)
        return td_err_set(m->err, TD_TOO_LARGE,
                          "--context %u needs %u KV blocks of %u tokens, memory holds %u",
                          m->context, m->n_blocks, plan->block_tokens, plan->n_blocks);
    scores->kv_dtype = plan->kv_dtype;
    for (uint32_t r = 0; r < plan->n_ranks; r++)
        scores->kv_bytes_per_token += plan->rank[r].kv_bytes_per_token;
    scores->nll = calloc(m->n_tokens, sizeof *scores->nll);
    return scores->nll ? TD_OK
                       : td_err_set(m->err, TD_NO_MEMORY, "no memory for the scores of %zu tokens",
                                    m->n_tokens);
}

/* The error is the standard error of the mean, carried through exp as llama.cpp does. */
static void sum_up(struct scores *scores, const struct scores *first)
{
    double sum = 0.0, squares = 0.0, n = (double)scores->n, variance, diffs = 0.0;

    for (size_t i = 0; i < scores->n; i++) {
        double diff = fabs(scores->nll[i] - first->nll[i]);

        sum += scores->nll[i];
        squares += scores->nll[i] * scores->nll[i];
        diffs += diff;
        scores->max_diff = diff > scores->max_diff ? diff : scores->max_diff;
    }
    scores->mean_diff = diffs / n;
    scores->mean_nll = sum / n;
    scores->ppl = td_detmath_exp(scores->mean_nll);
    variance = squares / n - scores->mean_nll * scores->mean_nll;
    scores->error =
        variance > 0.0 && scores->n > 1 ? sqrt(variance / (n - 1.0)) * scores->ppl : 0.0;
}

static enum td_status measure(struct measurement *m, struct scores *scores)
{
    uint64_t start = td_clock_now_ns();
    size_t done = 0;
    enum td_status s = TD_OK;

    for (uint32_t w = 0; !s && w < m->n_windows; w++) {
        size_t n = m->n_tokens - done < m->context ? m->n_tokens - done : m->context;

        s = run_window(m, scores, m->ids.data + done, (uint32_t)n);
        done += n;
        if (!s)
            td_term_progress(&m->spmd->term, "perplexity", done, m->n_tokens, "tokens");
    }
    scores->run_ns = td_clock_now_ns() - start;
    if (!s)
        sum_up(scores, &m->scores[0]);
    return s;
}

static double change_percent(const struct measurement *m, const struct scores *scores)
{
    return 100.0 * (scores->ppl / m->scores[0].ppl - 1.0);
}

/* What each type of the KV cache costs and changes. */
static void print_table(const struct measurement *m)
{
    printf("%-12s %10s %12s %10s %10s %12s %12s %9s\n", "kv cache", "bytes/tok", "perplexity",
           "+/-", "change", "mean |diff|", "max |diff|", "seconds");
    for (uint32_t i = 0; i < m->n_scores; i++) {
        const struct scores *one = &m->scores[i];
        char name[32];

        snprintf(name, sizeof name,
                 one->asked == td_options_kv_dtypes[TD_KV_DTYPE_AUTO] ? "%s (%s)" : "%s",
                 one->asked, td_dtype_info(one->kv_dtype)->name);
        printf("%-12s %10zu %12.4f %10.5f %+9.4f%% %12.6f %12.6f %9.2f\n", name,
               one->kv_bytes_per_token, one->ppl, one->error, change_percent(m, one),
               one->mean_diff, one->max_diff, (double)one->run_ns * 1e-9);
    }
    printf("diff: of a token's log probability to the first row's\n");
}

static void print_text(const struct measurement *m)
{
    const struct scores *first = &m->scores[0];
    double seconds = (double)first->run_ns * 1e-9;

    if (m->n_scores == 1)
        printf("perplexity  %.4f +/- %.5f\n", first->ppl, first->error);
    else
        print_table(m);
    printf("scored      %zu of %zu tokens in %u windows of %u (rule %s)\n", first->n, m->n_tokens,
           m->n_windows, m->context, m->opts->rule == TD_RULE_LLAMACPP ? "llamacpp" : "all");
    if (m->n_scores > 1)
        return;
    printf("speed       %.1f tokens/s, %.2f s\n", (double)m->n_tokens / seconds, seconds);
    printf("kv cache    %s\n", td_dtype_info(first->kv_dtype)->name);
}

/* What belongs to one type of the KV cache. --verbose adds every score. */
static json_t *json_of(const struct measurement *m, const struct scores *scores)
{
    double seconds = (double)scores->run_ns * 1e-9;
    json_t *nll = m->opts->verbose ? json_array() : NULL;
    json_t *out =
        json_pack("{s:f,s:f,s:f,s:f,s:f,s:f,s:s,s:I}", "perplexity", scores->ppl, "error",
                  scores->error, "mean_nll", scores->mean_nll, "load_seconds",
                  (double)scores->load_ns * 1e-9, "seconds", seconds, "tokens_per_second",
                  (double)m->n_tokens / seconds, "kv_dtype", td_dtype_info(scores->kv_dtype)->name,
                  "kv_bytes_per_token", (json_int_t)scores->kv_bytes_per_token);
    bool ok = out && !m->opts->verbose == !nll;

    for (size_t i = 0; ok && nll && i < scores->n; i++)
        ok = json_array_append_new(nll, json_real(scores->nll[i])) == 0;
    if (ok && nll)
        ok = json_object_set(out, "nll", nll) == 0;
    json_decref(nll);
    if (ok)
        return out;
    json_decref(out);
    return NULL;
}

/* One row for each type, the first one too. */
static json_t *json_comparison(const struct measurement *m)
{
    json_t *rows = json_array();

    for (uint32_t i = 0; rows && i < m->n_scores; i++) {
        const struct scores *one = &m->scores[i];
        json_t *row = json_of(m, one);
        json_t *diff = json_pack("{s:s,s:f,s:f,s:f}", "kv_cache_dtype", one->asked,
                                 "change_percent", change_percent(m, one), "mean_abs_difference",
                                 one->mean_diff, "max_abs_difference", one->max_diff);

        if (!row || !diff || json_object_update(row, diff) || json_array_append(rows, row)) {
            json_decref(rows);
            rows = NULL;
        }
        json_decref(row);
        json_decref(diff);
    }
    return rows;
}

/* The first type's values, and of several types the rows of the table. Numbers with 17 digits, so that equal text means equal
 * bits. */
static enum td_status print_json(const struct measurement *m)
{
    const struct td_plan *plan = m->spmd->node.plan;
    json_t *root = json_of(m, &m->scores[0]);
    json_t *run = json_pack("{s:s,s:I,s:I,s:I,s:I,s:{s:I,s:I}}", "rule",
                            m->opts->rule == TD_RULE_LLAMACPP ? "llamacpp" : "all", "context",
                            (json_int_t)m->context, "windows", (json_int_t)m->n_windows, "tokens",
                            (json_int_t)m->n_tokens, "scored_tokens", (json_int_t)m->scores[0].n,
                            "layout", "tensor_parallel", (json_int_t)plan->tp, "pipeline_parallel",
                            (json_int_t)plan->pp);
    bool ok = root && run && json_object_update(root, run) == 0;

    if (ok && m->n_scores > 1)
        ok = json_object_set_new(root, "kv_cache", json_comparison(m)) == 0;
    ok = ok && json_dumpf(root, stdout, JSON_COMPACT) == 0;
    putchar('\n');
    json_decref(run);
    json_decref(root);
    return ok ? TD_OK
              : td_err_set(m->err, TD_INTERNAL, "a perplexity of %g cannot be printed as JSON",
                           m->scores[0].ppl);
}

static enum td_status lead(struct measurement *m, struct scores *scores)
{
    enum td_status s = m->blocks ? TD_OK : prepare(m), stop;

    s = s ? s : open_scores(m, scores);
    s = s ? s : measure(m, scores);
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

/* Each type by itself as the options' only one. */
static void choose(struct td_options *opts, const struct td_options *asked, uint32_t i)
{
    opts->kv_cache_dtype = (struct td_option_enums){1, {asked->kv_cache_dtype.value[i]}};
}

/* That every type has a plan, before the text is run with any. Alike on all ranks. */
static enum td_status check_types(struct td_options *opts, const struct td_options *asked,
                                  const struct td_spmd *spmd, struct td_err *err)
{
    struct td_plan *plan = malloc(sizeof *plan);
    enum td_status s = plan ? TD_OK : td_err_set(err, TD_NO_MEMORY, "no memory for the plan");

    for (uint32_t i = 1; !s && i < asked->kv_cache_dtype.n; i++) {
        choose(opts, asked, i);
        s = td_spmd_plan(spmd, opts, plan, err);
    }
    free(plan);
    return s;
}

/* Every rank: loads the model for type `i`, unless it is the first, and runs the text. */
static enum td_status run_type(struct measurement *m, struct td_options *opts,
                               const struct td_options *asked, uint32_t i)
{
    struct scores *scores = &m->scores[i];
    uint64_t start = td_clock_now_ns();
    enum td_status s = TD_OK;

    choose(opts, asked, i);
    scores->asked = td_options_kv_dtypes[asked->kv_cache_dtype.value[i]];
    scores->load_ns = m->spmd->load_ns;
    if (i > 0) {
        s = td_spmd_load(m->spmd, opts, m->err);
        scores->load_ns = td_clock_now_ns() - start;
    }
    if (s)
        return s;
    s = m->spmd->rank == 0 ? lead(m, scores) : td_spmd_follow(m->spmd, m->err);
    m->n_scores = i + 1;
    return s < TD_PEER_LOST ? td_node_agree(m->spmd->world, s, m->err) : s;
}

int td_cmd_perplexity(const struct td_options *asked)
{
    struct td_err err;
    struct td_spmd spmd = {0};
    struct td_options opts = *asked; /* borrows all that `asked` owns */
    struct measurement m = {.opts = &opts, .spmd = &spmd, .err = &err};
    enum td_status s = size_run(&opts, &m.context, &err);

    choose(&opts, asked, 0);
    s = s ? s : td_spmd_open(&spmd, &opts, &err);
    s = s ? s : check_types(&opts, asked, &spmd, &err);
    for (uint32_t i = 0; !s && i < asked->kv_cache_dtype.n; i++)
        s = run_type(&m, &opts, asked, i);
    if (!s && spmd.rank == 0 && opts.json)
        s = print_json(&m);
    else if (!s && spmd.rank == 0)
        print_text(&m);
    td_step_close(&m.step);
    free(m.blocks);
    for (uint32_t i = 0; i < TD_OPTION_MAX_ENUMS; i++)
        free(m.scores[i].nll);
    td_ids_deinit(&m.ids);
    return td_spmd_end(&spmd, &opts, s, &err);
}
