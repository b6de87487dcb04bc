/* `tensord generate`: one prompt through the whole engine, alone or as one MPI job, without a network service. */
#include "daemon/cli/command.h"
#include "daemon/cli/config.h"
#include "daemon/cli/spmd.h"
#include "daemon/engine/draft.h"
#include "daemon/engine/engine.h"
#include "daemon/text/breakers.h"
#include "daemon/text/chat.h"
#include "daemon/text/detok.h"
#include "daemon/text/stop.h"
#include "daemon/text/tokenizer.h"
#include "kernels/base/clock.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

enum { MAX_PROMPT_BYTES = 64 << 20 };

/* What rank 0 keeps of one generation. */
struct generation {
    const struct td_options *opts;
    struct td_spmd *spmd;
    struct td_tokenizer *tok;
    struct td_engine *engine;
    struct td_step step;
    struct td_request request;
    uint32_t
        n_wanted; /* tokens to keep; the engine makes one more, so that the last one's logits exist */
    struct td_detok detok;
    struct td_stop *stop;
    struct td_bytes text;
    struct td_sampled *out; /* [n_wanted] */
    uint32_t n_out;
    bool ended;      /* no further token is kept */
    uint32_t n_rows; /* whose logits were drawn from */
    bool done;       /* the row of the last kept token has been hashed */
    enum td_finish finish;
    enum td_status failed;
    struct td_err *err;
    XXH3_state_t *hash;
    uint64_t start_ns, first_ns, last_ns;
    uint64_t decode_exchanged_at; /* activation bytes sent when the first token was there */
    uint64_t rss_ready_bytes;     /* resident memory when all is loaded and opened */
};

static bool is_eos(const struct generation *g, uint32_t id)
{
    const struct td_spec *spec = g->spmd->node.model->spec;

    for (uint32_t i = 0; i < spec->n_eos; i++)
        if (spec->eos_ids[i] == id)
            return true;
    return false;
}

static void keep_token(struct generation *g, const struct td_sampled *token)
{
    size_t shown = g->text.len;
    struct td_bytes piece = {0};
    bool matched = false;

    g->out[g->n_out++] = *token;
    g->last_ns = td_clock_now_ns();
    if (g->n_out == 1)
        g->first_ns = g->last_ns;
    if (!g->opts->ignore_eos && is_eos(g, token->id)) {
        g->ended = true;
        g->finish = TD_FINISH_STOP;
        return;
    }
    if (!g->failed)
        g->failed = td_detok_push(&g->detok, token->id, &piece);
    if (!g->failed)
        g->failed = td_stop_push(g->stop, td_bytes_str(&piece), &g->text, &matched);
    td_bytes_deinit(&piece);
    if (!g->opts->json) {
        fwrite(g->text.data + shown, 1, g->text.len - shown, stdout);
        fflush(stdout);
    }
    if (matched || g->n_out == g->n_wanted) {
        g->ended = true;
        g->finish = matched ? TD_FINISH_STOP : TD_FINISH_LENGTH;
    }
}

static void on_event(const struct td_token_event *event, void *user)
{
    struct generation *g = user;

    if (event->finish == TD_FINISH_ERROR && !g->failed) {
        *g->err = *event->error;
        g->failed = event->error->status;
    }
    if (g->done) /* a draft beyond the end was right */
        return;
    g->n_rows += event->has_token;
    if (event->has_token && g->ended)
        g->done = true;
    else if (event->has_token)
        keep_token(g, &event->token);
    if (event->finish != TD_FINISH_NONE)
        g->done = true;
}

static enum td_status read_prompt(struct generation *g, struct td_ids *ids)
{
    const struct td_options *o = g->opts;
    struct td_bytes buffer = {0};
    struct td_str text = td_str_from(o->prompt ? o->prompt : "");
    struct td_chat *chat = NULL;
    enum td_status s = TD_OK;

    if (o->prompt_ids.n) {
        for (uint32_t i = 0; !s && i < o->prompt_ids.n; i++)
            s = td_ids_append(ids, o->prompt_ids.ids[i]);
        return s ? td_err_set(g->err, s, "no memory for %u prompt ids", o->prompt_ids.n) : TD_OK;
    }
    if (!o->prompt) {
        s = td_config_read_file(o->prompt_file ? o->prompt_file : "/dev/stdin",
                                o->prompt_file ? "--prompt-file" : "standard input",
                                MAX_PROMPT_BYTES, &buffer, g->err);
        text = td_bytes_str(&buffer);
    }
    if (!s && o->chat) {
        struct td_chat_message message = {TD_STR("user"), text};

        s = td_chat_open(td_checkpoint_chat_template(g->spmd->node.ck), &chat, g->err);
        s = s ? s : td_chat_encode(chat, g->tok, &message, 1, true, ids, g->err);
    } else if (!s) {
        s = td_tokenizer_encode(g->tok, text, TD_ENCODE_BOS | TD_ENCODE_SPECIAL, ids, g->err);
    }
    td_chat_close(chat);
    td_bytes_deinit(&buffer);
    if (!s && ids->len == 0)
        s = td_err_set(g->err, TD_INVALID, "the prompt is empty: expected at least one token");
    return s;
}

static void fill_sampling(const struct td_options *o, struct td_sampling *s)
{
    s->temperature = (float)o->temperature;
    s->dynatemp_range = (float)o->dynatemp_range;
    s->dynatemp_exponent = (float)o->dynatemp_exponent;
    s->top_k = (int32_t)o->top_k;
    s->top_p = (float)o->top_p;
    s->min_p = (float)o->min_p;
    s->typical_p = (float)o->typical_p;
    s->top_n_sigma = (float)o->top_n_sigma;
    s->xtc_probability = (float)o->xtc_probability;
    s->xtc_threshold = (float)o->xtc_threshold;
    s->repetition_penalty = (float)o->repetition_penalty;
    s->presence_penalty = (float)o->presence_penalty;
    s->frequency_penalty = (float)o->frequency_penalty;
    s->repeat_last_n = (int32_t)o->repeat_last_n;
    s->dry_multiplier = (float)o->dry_multiplier;
    s->dry_base = (float)o->dry_base;
    s->dry_allowed_length = (int32_t)o->dry_allowed_length;
    s->dry_penalty_last_n = (int32_t)o->dry_penalty_last_n;
    s->mirostat = (int32_t)o->mirostat;
    s->mirostat_tau = (float)o->mirostat_tau;
    s->mirostat_eta = (float)o->mirostat_eta;
    s->seed = td_options_is_set(o, &o->seed) ? (uint64_t)o->seed : td_clock_now_ns();
    /* The JSON object always tells the chosen tokens' own. */
    s->n_logprobs = o->json && o->logprobs < 0 ? 0 : (int32_t)o->logprobs;
}

/* The tokens that end a sequence for DRY. */
static enum td_status break_sequences(struct generation *g, struct td_request *r)
{
    const struct td_option_list *list = &g->opts->dry_sequence_breakers;
    struct td_str texts[TD_BREAKERS_MAX];
    uint32_t n = list->n == 1 && strcmp(list->items[0], "none") == 0 ? 0 : list->n;
    struct td_breakers *breakers = NULL;
    enum td_status s;

    if (!td_sampling_has_dry(&r->sampling))
        return TD_OK;
    if (n > TD_BREAKERS_MAX)
        return td_err_set(g->err, TD_INVALID,
                          "--dry-sequence-breakers has %u texts, expected at most %d", n,
                          TD_BREAKERS_MAX);
    for (uint32_t i = 0; i < n; i++)
        texts[i] = td_str_from(list->items[i]);
    s = td_breakers_open(g->tok, &breakers, g->err);
    s = s ? s : td_request_break_at(r, breakers, list->n ? texts : NULL, n, g->err);
    td_breakers_close(breakers);
    return s;
}

static enum td_status prepare(struct generation *g)
{
    const struct td_options *o = g->opts;
    const struct td_plan *plan = g->spmd->node.plan;
    const struct td_spec *spec = g->spmd->node.model->spec;
    struct td_str stops[TD_REQUEST_MAX_STOPS];
    struct td_ids ids = {0};
    struct td_request *r = &g->request;
    enum td_status s = td_tokenizer_open(g->spmd->node.ck, &g->tok, g->err);

    s = s ? s : read_prompt(g, &ids);
    if (s)
        goto done;
    if (ids.len + 2 > plan->max_model_len) {
        s = td_err_set(g->err, TD_TOO_LARGE,
                       "a prompt of %zu tokens: the context holds %u with the answer", ids.len,
                       plan->max_model_len);
        goto done;
    }
    g->n_wanted = plan->max_model_len - (uint32_t)ids.len - 1;
    g->n_wanted = (uint64_t)o->max_tokens < g->n_wanted ? (uint32_t)o->max_tokens : g->n_wanted;
    g->out = calloc(g->n_wanted, sizeof *g->out);
    if (!g->out) {
        s = td_err_set(g->err, TD_NO_MEMORY, "no memory for %u tokens", g->n_wanted);
        goto done;
    }
    if (o->stop.n > TD_REQUEST_MAX_STOPS) {
        s = td_err_set(g->err, TD_INVALID, "%u stop strings: expected at most %d", o->stop.n,
                       TD_REQUEST_MAX_STOPS);
        goto done;
    }
    for (uint32_t i = 0; i < o->stop.n; i++)
        stops[i] = td_str_from(o->stop.items[i]);
    s = td_stop_open(stops, o->stop.n, false, &g->stop, g->err);
    td_detok_init(&g->detok, g->tok, TD_DETOK_SKIP_SPECIAL | (o->chat ? 0 : TD_DETOK_CONTINUE));
    td_request_init(r);
    r->id = 1;
    r->prompt = ids.data;
    r->n_prompt = (uint32_t)ids.len;
    ids = (struct td_ids){0};
    r->max_tokens = g->n_wanted + 1;
    r->ignore_eos = true; /* the end is seen here, one row later */
    fill_sampling(o, &r->sampling);
    s = s ? s : break_sequences(g, r);
    s = s ? s : td_request_validate(r, spec->n_vocab, plan->max_model_len, g->err);

done:
    free(ids.data);
    return s;
}

static enum td_status run(struct generation *g)
{
    const struct td_plan *plan = g->spmd->node.plan;
    const struct td_spec *spec = g->spmd->node.model->spec;
    struct td_engine_params p = {.n_vocab = spec->n_vocab,
                                 .max_model_len = plan->max_model_len,
                                 .max_num_seqs = plan->max_num_seqs,
                                 .max_batched_tokens = plan->max_batched_tokens,
                                 .max_chunk_tokens = (uint32_t)g->opts->prefill_chunk,
                                 .max_draft_tokens = (uint32_t)g->opts->speculative_tokens,
                                 .max_queue = 1,
                                 .max_flights = plan->pp,
                                 .block_tokens = plan->block_tokens,
                                 .n_blocks = plan->n_blocks,
                                 .layer_kinds = spec->layer_kind,
                                 .n_layers = spec->n_layers,
                                 .on_event = on_event,
                                 .user = g};
    struct td_shard_stats stats;
    uint32_t n_under_way = 0; /* steps */
    struct td_draftmodel *draft = g->spmd->node.draft;
    uint32_t rows, seqs, table;
    enum td_status s;

    if (draft) {
        p.max_draft_tokens = p.max_draft_tokens ? p.max_draft_tokens : TD_DRAFT_DEFAULT_TOKENS;
        p.run_draft = td_node_run_draft;
        p.run_draft_user = &g->spmd->node;
        p.draft_vocab = td_draftmodel_n_vocab(draft);
        p.draft_positions = td_draftmodel_positions(draft);
    }
    s = td_engine_open(&p, &g->engine, g->err);
    if (s)
        return s;
    td_engine_step_caps(g->engine, &rows, &seqs, &table);
    s = td_step_open(&g->step, rows, seqs, table, g->err);
    g->hash = XXH3_createState();
    if (!s && !g->hash)
        s = td_err_set(g->err, TD_NO_MEMORY, "no memory for the hash of the logits");
    s = s ? s : td_engine_submit(g->engine, &g->request, 0, g->err);
    if (s)
        return s;
    XXH3_64bits_reset(g->hash);
    g->start_ns = td_clock_now_ns();
    while (!g->done) {
        struct td_step_result result;
        uint32_t before = g->n_rows;
        bool begins = td_engine_plan_step(g->engine, 0, &g->step);

        if (!begins && n_under_way == 0)
            break;
        if (!begins)
            td_step_reset(&g->step, TD_STEP_FLUSH, td_engine_take_number(g->engine));
        n_under_way += begins;
        s = td_node_lead(&g->spmd->node, &g->step, &result, g->err);
        if (s)
            return s;
        if (!result.is_complete)
            continue;
        n_under_way--;
        s = td_engine_complete_step(g->engine, result.number, &result, 0, g->err);
        if (result.logits) /* --json asks for logprobs, and so for whole rows */
            XXH3_64bits_update(g->hash, result.logits,
                               (size_t)(g->n_rows - before) * spec->n_vocab *
                                   sizeof *result.logits);
        if (s || g->failed)
            return s ? s : g->failed;
        if (g->n_out == 1 && !g->decode_exchanged_at) {
            td_shard_stats(g->spmd->node.shard, &stats);
            g->decode_exchanged_at = stats.exchanged_bytes;
        }
    }
    if (g->done) {
        s = td_detok_flush(&g->detok, &g->text);
        s = s ? s : td_stop_flush(g->stop, &g->text);
    }
    return s;
}

/* Resident memory of this process, mapped files included (proc_pid_statm(5)); 0 when unknown. */
static uint64_t resident_bytes(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    unsigned long long pages = 0;

    if (!f)
        return 0;
    if (fscanf(f, "%*u %llu", &pages) != 1)
        pages = 0;
    fclose(f);
    return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Per rank, gathered at the end. */
struct rank_report {
    uint64_t weight_bytes, kv_bytes, buffer_bytes, decode_exchanged_bytes, wait_ns;
    uint64_t rss_before_bytes; /* resident memory before anything was opened, MPI included */
    uint64_t rss_ready_bytes;
};

/* Collective. What only the caller knows, such as the bytes sent after the first token, comes in `mine`. */
static enum td_status gather_reports(struct td_spmd *s, struct rank_report mine,
                                     struct rank_report *all, struct td_err *err)
{
    struct td_shard_stats stats;
    size_t bytes[TD_PLAN_MAX_RANKS];

    td_shard_stats(s->node.shard, &stats);
    mine.weight_bytes = stats.weight_bytes;
    mine.kv_bytes = stats.kv_bytes;
    mine.buffer_bytes = stats.buffer_bytes;
    mine.wait_ns = stats.wait_ns;
    for (uint32_t r = 0; r < s->size; r++)
        bytes[r] = sizeof mine;
    return td_comm_all_gather(s->world, &mine, bytes, all, err);
}

static json_t *text_json(const struct td_bytes *text)
{
    struct td_str s = td_bytes_str(text);

    return json_stringn(s.ptr, s.len);
}

static json_t *logprobs_json(const struct generation *g)
{
    json_t *all = json_array();

    for (uint32_t i = 0; i < g->n_out; i++) {
        json_t *top = json_array();

        for (uint32_t k = 0; k < g->out[i].n_top; k++)
            json_array_append_new(top, json_pack("{s:I,s:f}", "id", (json_int_t)g->out[i].top[k].id,
                                                 "logprob", (double)g->out[i].top[k].logprob));
        json_array_append_new(all, json_pack("{s:I,s:f,s:o}", "id", (json_int_t)g->out[i].id,
                                             "logprob", (double)g->out[i].logprob, "top", top));
    }
    return all;
}

static void print_json(const struct generation *g, const struct rank_report *reports, uint64_t hash)
{
    const struct td_spmd *s = g->spmd;
    json_t *ids = json_array(), *ranks = json_array(), *prompt = json_array(), *root;
    struct td_engine_stats stats;
    uint32_t n_decode =
        g->n_out; /* decode steps: one per kept token, the last one's row included */
    char hex[17];

    snprintf(hex, sizeof hex, "%016llx", (unsigned long long)hash);
    for (uint32_t i = 0; i < g->n_out; i++)
        json_array_append_new(ids, json_integer(g->out[i].id));
    for (uint32_t i = 0; i < g->request.n_prompt; i++)
        json_array_append_new(prompt, json_integer(g->request.prompt[i]));
    for (uint32_t r = 0; r < s->size; r++)
        json_array_append_new(
            ranks, json_pack("{s:I,s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:f,s:f}", "rank", (json_int_t)r,
                             "host", s->facts[r].host, "device", s->facts[r].device, "threads",
                             (json_int_t)s->facts[r].n_threads, "weight_bytes",
                             (json_int_t)reports[r].weight_bytes, "kv_bytes",
                             (json_int_t)reports[r].kv_bytes, "buffer_bytes",
                             (json_int_t)reports[r].buffer_bytes, "rss_before_bytes",
                             (json_int_t)reports[r].rss_before_bytes, "rss_ready_bytes",
                             (json_int_t)reports[r].rss_ready_bytes, "exchanged_bytes_per_token",
                             n_decode ? (double)reports[r].decode_exchanged_bytes / n_decode : 0.0,
                             "wait_seconds", (double)reports[r].wait_ns * 1e-9));
    root = json_pack(
        "{s:o,s:o,s:o,s:s,s:s,s:{s:f,s:f,s:f,s:f},s:{s:I,s:I},s:o}", "prompt_ids", prompt, "ids",
        ids, "text", text_json(&g->text), "finish_reason",
        g->finish == TD_FINISH_STOP ? "stop" : "length", "logits_hash", hex, "timings",
        "load_seconds", (double)s->load_ns * 1e-9, "prompt_seconds",
        (double)(g->first_ns - g->start_ns) * 1e-9, "decode_seconds",
        (double)(g->last_ns - g->first_ns) * 1e-9, "decode_tokens_per_second",
        g->n_out > 1 ? (double)(g->n_out - 1) / ((double)(g->last_ns - g->first_ns) * 1e-9) : 0.0,
        "layout", "tensor_parallel", (json_int_t)s->node.plan->tp, "pipeline_parallel",
        (json_int_t)s->node.plan->pp, "ranks", ranks);
    if (root)
        json_object_set_new(root, "logprobs", logprobs_json(g));
    td_engine_stats(g->engine, 0, &stats);
    if (root)
        json_object_set_new(root, "drafts",
                            json_pack("{s:I,s:I}", "verified", (json_int_t)stats.n_draft_tokens,
                                      "right", (json_int_t)stats.n_right_drafts));
    json_dumpf(root, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(root);
}

static enum td_status lead(struct generation *g)
{
    enum td_status s = prepare(g);

    g->rss_ready_bytes = resident_bytes();
    s = s ? s : run(g);
    if (s == TD_OK || s < TD_PEER_LOST) { /* the group is whole: let the others go */
        enum td_status stop = td_spmd_stop(g->spmd, s ? NULL : g->err);

        s = s ? s : stop;
    }
    return s;
}

/* The first step with logits ends the prefill; what is sent after it is complete is decoding's. */
static enum td_status follow(struct td_spmd *s, uint64_t *decode_exchanged, struct td_err *err)
{
    const struct td_step *step = &s->node.step;
    struct td_shard_stats stats;
    uint64_t at_first_token = 0, first = UINT64_MAX; /* that step's number */
    bool prefilled = false;
    enum td_status st;

    do {
        st = td_node_follow(&s->node, err);
        if (!st && first == UINT64_MAX && step->kind == TD_STEP_RUN && td_step_n_wanted(step))
            first = step->number;
        if (!st && !prefilled && s->node.n_complete && s->node.n_complete - 1 >= first) {
            td_shard_stats(s->node.shard, &stats);
            at_first_token = stats.exchanged_bytes;
            prefilled = true;
        }
    } while (!st && step->kind != TD_STEP_STOP);
    td_shard_stats(s->node.shard, &stats);
    *decode_exchanged = stats.exchanged_bytes - at_first_token;
    return st;
}

int td_cmd_generate(const struct td_options *opts)
{
    struct td_err err;
    struct td_spmd spmd = {0};
    struct generation g = {.opts = opts, .spmd = &spmd, .err = &err};
    struct rank_report *reports = NULL;
    struct rank_report mine = {.rss_before_bytes = resident_bytes()};
    struct td_shard_stats stats;
    enum td_status s = td_spmd_open(&spmd, opts, &err);
    bool is_lead;

    if (s)
        return td_spmd_end(&spmd, opts, s, &err);
    is_lead = spmd.rank == 0;
    if (is_lead) {
        s = lead(&g);
        td_shard_stats(spmd.node.shard, &stats);
        mine.decode_exchanged_bytes = stats.exchanged_bytes - g.decode_exchanged_at;
        mine.rss_ready_bytes = g.rss_ready_bytes;
    } else {
        mine.rss_ready_bytes = resident_bytes();
        s = follow(&spmd, &mine.decode_exchanged_bytes, &err);
    }
    if (s < TD_PEER_LOST)
        s = td_node_agree(spmd.world, s, &err);
    reports = calloc(spmd.size, sizeof *reports);
    if (!s && !reports)
        s = td_err_set(&err, TD_NO_MEMORY, "no memory for the report of %u ranks", spmd.size);
    s = s ? s : gather_reports(&spmd, mine, reports, &err);
    if (!s && is_lead) {
        if (opts->json)
            print_json(&g, reports, XXH3_64bits_digest(g.hash));
        else
            putchar('\n');
    }
    free(reports);
    td_engine_close(g.engine);
    td_step_close(&g.step);
    td_request_deinit(&g.request);
    td_stop_close(g.stop);
    td_bytes_deinit(&g.text);
    td_tokenizer_close(g.tok);
    XXH3_freeState(g.hash);
    free(g.out);
    return td_spmd_end(&spmd, opts, s, &err);
}
