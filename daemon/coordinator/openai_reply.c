/* From a call's parts to response bodies and event streams. */
#include "daemon/api/sse.h"
#include "daemon/coordinator/openai_call.h"

#include <stdlib.h>
#include <string.h>

/* ---- From events to parts ---- */

static uint32_t count_chars(struct td_str s)
{
    uint32_t n = 0;
    for (size_t i = 0; i < s.len; i++) {
        n += ((unsigned char)s.ptr[i] & 0xC0) != 0x80;
    }
    return n;
}

static enum td_status keep_token(struct td_openai_part *part, const struct td_sampled *token)
{
    const struct td_tokenizer *tok = part->call->served->tok;
    if (part->n_tokens == part->cap_tokens) {
        size_t cap = part->cap_tokens > 0 ? 2 * part->cap_tokens : 16;
        struct td_openai_token *grown = realloc(part->tokens, cap * sizeof(*grown));
        if (grown == NULL) {
            return TD_NO_MEMORY;
        }
        part->tokens = grown;
        part->cap_tokens = cap;
    }
    part->tokens[part->n_tokens++] = (struct td_openai_token){*token, part->n_chars};
    if (!td_tokenizer_is_special(tok, token->id)) {
        part->n_chars += count_chars(td_tokenizer_piece(tok, token->id));
    }
    return TD_OK;
}

enum td_status td_openai_reply_take(struct td_openai_part *part, const struct td_job_event *event)
{
    enum td_status status = td_bytes_append_str(&part->text, event->text);
    if (event->finish != TD_FINISH_NONE) {
        part->finish = event->finish;
        part->n_prompt = event->n_prompt;
        part->n_cached = event->n_cached;
        part->n_output = event->n_output;
    }
    if (event->has_token && part->call->request.best_of > part->call->request.n) {
        part->logprob += (double)event->token->logprob;
    }
    if (status == TD_OK && event->has_token && part->call->request.want_logprobs) {
        /* The end token is no part of the answer's text, and so not of its log probabilities. */
        bool is_end = event->finish == TD_FINISH_STOP &&
                      td_tokenizer_is_special(part->call->served->tok, event->token->id);
        status = is_end ? TD_OK : keep_token(part, event->token);
    }
    return status;
}

/* ---- Log probabilities ---- */

struct logprobs {
    struct td_openai_logprob *tokens; /* owned */
    struct td_openai_top *tops;       /* owned */
};

static void logprobs_deinit(struct logprobs *lp)
{
    free(lp->tokens);
    free(lp->tops);
}

static enum td_status logprobs_init(struct logprobs *lp, const struct td_openai_part *part)
{
    const struct td_tokenizer *tok = part->call->served->tok;
    size_t n_tops = 0;
    for (size_t i = 0; i < part->n_tokens; i++) {
        n_tops += part->tokens[i].sampled.n_top;
    }
    lp->tokens = calloc(part->n_tokens + 1, sizeof(*lp->tokens));
    lp->tops = calloc(n_tops + 1, sizeof(*lp->tops));
    if (lp->tokens == NULL || lp->tops == NULL) {
        logprobs_deinit(lp);
        return TD_NO_MEMORY;
    }
    struct td_openai_top *top = lp->tops;
    for (size_t i = 0; i < part->n_tokens; i++) {
        const struct td_sampled *s = &part->tokens[i].sampled;
        lp->tokens[i] = (struct td_openai_logprob){
            .token = td_tokenizer_piece(tok, s->id),
            .logprob = s->logprob,
            .text_offset = part->tokens[i].text_offset,
            .n_top = s->n_top,
            .top = top,
        };
        for (uint32_t k = 0; k < s->n_top; k++) {
            *top++ =
                (struct td_openai_top){td_tokenizer_piece(tok, s->top[k].id), s->top[k].logprob};
        }
    }
    return TD_OK;
}

/* ---- The whole answer ---- */

static struct td_openai_reply reply_of(const struct td_openai_call *call)
{
    return (struct td_openai_reply){
        .kind = call->endpoint->kind,
        .id = td_str_from(call->id),
        .model = td_str_from(call->served->names[0]),
        .created = call->created,
    };
}

static struct td_openai_usage usage_of(const struct td_openai_call *call)
{
    struct td_openai_usage usage = {0};
    for (size_t i = 0; i < call->n_parts; i++) {
        const struct td_openai_part *part = &call->parts[i];
        usage.completion_tokens += part->n_output;
        if (part->choice == 0) { /* a prompt counts once, however many answers it gets */
            usage.prompt_tokens += part->n_prompt;
            usage.cached_tokens += part->n_cached;
        }
    }
    return usage;
}

/* ---- The best candidates ---- */

static bool is_better(const struct td_openai_part *a, const struct td_openai_part *b)
{
    double x = a->logprob / (a->n_output > 0 ? a->n_output : 1);
    double y = b->logprob / (b->n_output > 0 ? b->n_output : 1);
    return x > y || (x == y && a->choice < b->choice);
}

/* The place of a candidate among those of its prompt, by log probability per token. */
static uint32_t place_of(const struct td_openai_part *part)
{
    const struct td_openai_part *first = part - part->choice;
    uint32_t place = 0;
    for (uint32_t i = 0; i < part->call->request.best_of; i++) {
        place += is_better(&first[i], part);
    }
    return place;
}

/* The choice that a candidate becomes; n_choices or more: none. */
static size_t choice_of(const struct td_openai_part *part, size_t n_choices)
{
    const struct td_openai_request *request = &part->call->request;
    size_t prompt = (size_t)(part - part->call->parts) / request->best_of;
    uint32_t place = request->best_of > request->n ? place_of(part) : part->choice;
    return place < request->n ? prompt * request->n + place : n_choices;
}

enum td_status td_openai_reply_respond(struct td_openai_call *call)
{
    const size_t n_choices = call->n_prompts * call->request.n;
    struct td_openai_choice *choices = calloc(n_choices, sizeof(*choices));
    struct logprobs *lps = calloc(n_choices, sizeof(*lps));
    enum td_status status = choices != NULL && lps != NULL ? TD_OK : TD_NO_MEMORY;
    struct td_bytes body = {0};
    for (size_t i = 0; i < call->n_parts && status == TD_OK; i++) {
        const struct td_openai_part *part = &call->parts[i];
        size_t at = choice_of(part, n_choices);
        if (at >= n_choices) {
            continue;
        }
        choices[at] = (struct td_openai_choice){
            .index = (uint32_t)at, .text = td_bytes_str(&part->text), .finish = part->finish};
        if (call->request.want_logprobs && (status = logprobs_init(&lps[at], part)) == TD_OK) {
            choices[at].has_logprobs = true;
            choices[at].logprobs = lps[at].tokens;
            choices[at].n_logprobs = part->n_tokens;
        }
    }
    if (status == TD_OK) {
        const struct td_openai_reply reply = reply_of(call);
        const struct td_openai_usage usage = usage_of(call);
        status = td_openai_response_write(&reply, choices, n_choices, &usage, &body);
    }
    if (status == TD_OK) {
        td_http_respond(call->http, 200, "application/json", td_bytes_str(&body));
    }
    for (size_t i = 0; lps != NULL && i < n_choices; i++) {
        logprobs_deinit(&lps[i]);
    }
    free(lps);
    free(choices);
    td_bytes_deinit(&body);
    return status;
}

/* ---- The stream ---- */

/* TD_OK: queued. Anything else: not now, or never again. */
static enum td_status send_event(struct td_openai_call *call, enum td_status written,
                                 struct td_bytes *body)
{
    enum td_status status = written;
    if (status == TD_OK) {
        status = td_sse_event(call->http, td_bytes_str(body));
    } else {
        td_http_stream_abort(call->http); /* without memory an event would be lost silently */
    }
    td_bytes_deinit(body);
    return status;
}

static enum td_status send_role(struct td_openai_part *part)
{
    struct td_openai_call *call = part->call;
    const struct td_openai_reply reply = reply_of(call);
    struct td_bytes body = {0};
    if (call->endpoint->kind != TD_OPENAI_CHAT || part->role_sent) {
        return TD_OK;
    }
    enum td_status status =
        td_openai_chunk_role_write(&reply, part->index, call->request.include_usage, &body);
    status = send_event(call, status, &body);
    part->role_sent = status == TD_OK;
    return status;
}

/* One chunk with the text and tokens that came since the last one, or with the end. */
static enum td_status send_chunk(struct td_openai_part *part, enum td_finish finish)
{
    struct td_openai_call *call = part->call;
    const struct td_openai_reply reply = reply_of(call);
    struct td_openai_choice choice = {
        .index = part->index, .text = td_bytes_str(&part->text), .finish = finish};
    struct logprobs lp = {NULL, NULL};
    struct td_bytes body = {0};
    enum td_status status = TD_OK;
    if (part->n_tokens > 0 && (status = logprobs_init(&lp, part)) == TD_OK) {
        choice.has_logprobs = true;
        choice.logprobs = lp.tokens;
        choice.n_logprobs = part->n_tokens;
    }
    if (status == TD_OK) {
        status = td_openai_chunk_write(&reply, &choice, call->request.include_usage, &body);
    }
    status = send_event(call, status, &body);
    logprobs_deinit(&lp);
    if (status == TD_OK) {
        td_bytes_clear(&part->text);
        part->n_tokens = 0;
    }
    return status;
}

static enum td_status pump_part(struct td_openai_part *part)
{
    enum td_status status = send_role(part);
    if (status == TD_OK && part->text.len > 0) {
        status = send_chunk(part, TD_FINISH_NONE);
    }
    if (status == TD_OK && !part->finish_sent &&
        (part->finish == TD_FINISH_STOP || part->finish == TD_FINISH_LENGTH)) {
        status = send_chunk(part, part->finish);
        part->finish_sent = status == TD_OK;
    }
    return status;
}

static enum td_status send_error(struct td_openai_call *call)
{
    struct td_bytes body = {0};
    enum td_status status = td_openai_error_write(&call->error, &body);
    return send_event(call, status, &body);
}

static enum td_status send_usage(struct td_openai_call *call)
{
    const struct td_openai_reply reply = reply_of(call);
    const struct td_openai_usage usage = usage_of(call);
    struct td_bytes body = {0};
    enum td_status status = td_openai_chunk_usage_write(&reply, &usage, &body);
    return send_event(call, status, &body);
}

bool td_openai_reply_pump(struct td_openai_call *call)
{
    bool all_sent = true;
    for (size_t i = 0; i < call->n_parts; i++) {
        if (pump_part(&call->parts[i]) != TD_OK) {
            return false; /* on_drain or on_close follows */
        }
        all_sent &= call->parts[i].finish_sent;
    }
    if (call->failed) {
        if (send_error(call) != TD_OK) {
            return false;
        }
        td_http_stream_end(call->http);
        return true;
    }
    if (!all_sent || (call->request.include_usage && send_usage(call) != TD_OK)) {
        return false;
    }
    td_sse_done(call->http);
    return true;
}
