/* From a call's parts to response bodies and event streams. */
#include "daemon/api/sse.h"
#include "daemon/coordinator/openai_call.h"

#include "daemon/engine/ending.h"
#include "daemon/text/detok.h"

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

static enum td_status keep_token(const struct td_tokenizer *tok, struct td_openai_tokens *list,
                                 const struct td_sampled *token, bool is_first)
{
    if (list->n == list->cap) {
        size_t cap = list->cap > 0 ? 2 * list->cap : 16;
        struct td_openai_token *grown = realloc(list->item, cap * sizeof(*grown));
        if (grown == NULL) {
            return TD_NO_MEMORY;
        }
        list->item = grown;
        list->cap = cap;
    }
    list->item[list->n++] = (struct td_openai_token){*token, is_first, list->n_chars};
    if (!td_tokenizer_is_special(tok, token->id)) {
        list->n_chars += count_chars(td_tokenizer_piece(tok, token->id));
    }
    return TD_OK;
}

/* The prompt's first token, of which no event tells. */
static enum td_status begin_prompt(struct td_openai_part *part)
{
    if (part->prompt_tokens.n > 0 || part->prompt.len == 0) {
        return TD_OK;
    }
    const struct td_sampled first = {.id = part->prompt.data[0]};
    return keep_token(part->call->served->tok, &part->prompt_tokens, &first, true);
}

static enum td_status take_prompt(struct td_openai_part *part, const struct td_job_event *event)
{
    enum td_status status = begin_prompt(part);
    return status == TD_OK
               ? keep_token(part->call->served->tok, &part->prompt_tokens, event->token, false)
               : status;
}

/* One output token, which is no part of an answer that was to hold none. */
static enum td_status take_token(struct td_openai_part *part, const struct td_job_event *event)
{
    const struct td_tokenizer *tok = part->call->served->tok;
    enum td_status status = td_bytes_append_str(&part->text, event->text);
    if (status == TD_OK && event->has_token && part->call->request.want_logprobs) {
        /* The end token is no part of the answer's text, and so not of its log probabilities. */
        bool is_end =
            event->finish == TD_FINISH_STOP && td_tokenizer_is_special(tok, event->token->id);
        status = is_end ? TD_OK : keep_token(tok, &part->tokens, event->token, false);
    }
    return status;
}

/* What its client has had is not told again, nor the prompt in front of it. */
static void pass_over_known(struct td_openai_part *part)
{
    td_bytes_clear(&part->text);
    part->tokens.n = 0;
    part->echoed = true;
    part->n_sent = part->n_taken;
}

enum td_status td_openai_reply_take(struct td_openai_part *part, const struct td_job_event *event)
{
    const struct td_openai_request *request = &part->call->request;
    bool has_none = request->has_max_tokens && request->max_tokens == 0;
    enum td_status status;
    if (event->is_prompt) {
        return take_prompt(part, event);
    }
    status = begin_prompt(part);
    part->has_begun = part->has_begun ||
                      (event->finish != TD_FINISH_ERROR && event->finish != TD_FINISH_CANCELLED);
    if (event->finish != TD_FINISH_NONE) {
        part->finish =
            has_none && event->finish == TD_FINISH_STOP ? TD_FINISH_LENGTH : event->finish;
        part->n_prompt = event->n_prompt;
        part->n_cached = event->n_cached;
        part->n_output = has_none ? 0 : event->n_output;
    }
    if (status == TD_OK && !has_none) {
        status = take_token(part, event);
    }
    if (status == TD_OK && event->has_token && ++part->n_taken <= part->n_known) {
        pass_over_known(part);
    }
    return status;
}

/* ---- The prompt in front of the answer ---- */

static const struct td_openai_part *first_of(const struct td_openai_part *part)
{
    return part - part->choice;
}

/* Whether the answer may be shown: the log probabilities of the prompt in front of it come from another job. */
static bool may_show(const struct td_openai_part *part)
{
    const struct td_openai_request *request = &part->call->request;
    return !request->echo || !request->want_logprobs || first_of(part)->has_begun;
}

/* The prompt's tokens in front of those of the answer. Of their alternatives as many as the answer's tokens have:
 * prompt_logprobs may have asked for more. */
static enum td_status echo_tokens(struct td_openai_part *part)
{
    const struct td_openai_tokens *prompt = &first_of(part)->prompt_tokens;
    const uint32_t most = (uint32_t)part->call->request.sampling.n_logprobs;
    const size_t n = prompt->n + part->tokens.n;
    struct td_openai_token *all = calloc(n + 1, sizeof(*all));
    if (all == NULL) {
        return TD_NO_MEMORY;
    }
    for (size_t i = 0; i < prompt->n; i++) {
        all[i] = prompt->item[i];
        all[i].sampled.n_top = all[i].sampled.n_top < most ? all[i].sampled.n_top : most;
    }
    for (size_t i = prompt->n; i < n; i++) {
        all[i] = part->tokens.item[i - prompt->n];
        all[i].text_offset += prompt->n_chars;
    }
    free(part->tokens.item);
    part->tokens = (struct td_openai_tokens){
        .item = all, .n = n, .cap = n + 1, .n_chars = part->tokens.n_chars + prompt->n_chars};
    return TD_OK;
}

/* The prompt's text as it came, or that of its ids, before the first of the answer. */
static enum td_status echo(struct td_openai_part *part)
{
    const struct td_openai_request *request = &part->call->request;
    const struct td_openai_part *first = first_of(part);
    struct td_bytes text = {0};
    if (!request->echo || part->echoed) {
        return TD_OK;
    }
    const struct td_openai_prompt *prompt =
        &request->prompts[(size_t)(part - part->call->parts) / request->best_of];
    enum td_status status = prompt->is_ids
                                ? td_detok_text(part->call->served->tok, first->prompt.data,
                                                first->prompt.len, TD_ENDING_DETOK_FLAGS, &text)
                                : td_bytes_append_str(&text, prompt->text);
    if (status == TD_OK) {
        status = td_bytes_append_str(&text, td_bytes_str(&part->text));
    }
    if (status == TD_OK && request->want_logprobs) {
        status = echo_tokens(part);
    }
    if (status != TD_OK) {
        td_bytes_deinit(&text);
        return status;
    }
    td_bytes_deinit(&part->text);
    part->text = text;
    part->echoed = true;
    return TD_OK;
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

/* The caller frees with logprobs_deinit, also after a failure. */
static enum td_status logprobs_init(struct logprobs *lp, const struct td_openai_part *part,
                                    const struct td_openai_tokens *tokens)
{
    const struct td_tokenizer *tok = part->call->served->tok;
    size_t n_tops = 0;
    for (size_t i = 0; i < tokens->n; i++) {
        n_tops += tokens->item[i].sampled.n_top;
    }
    lp->tokens = calloc(tokens->n + 1, sizeof(*lp->tokens));
    lp->tops = calloc(n_tops + 1, sizeof(*lp->tops));
    if (lp->tokens == NULL || lp->tops == NULL) {
        return TD_NO_MEMORY;
    }
    struct td_openai_top *top = lp->tops;
    for (size_t i = 0; i < tokens->n; i++) {
        const struct td_sampled *s = &tokens->item[i].sampled;
        lp->tokens[i] = (struct td_openai_logprob){
            .token = td_tokenizer_piece(tok, s->id),
            .id = s->id,
            .is_first = tokens->item[i].is_first,
            .logprob = s->logprob,
            .rank = s->rank,
            .text_offset = tokens->item[i].text_offset,
            .n_top = s->n_top,
            .top = top,
        };
        for (uint32_t k = 0; k < s->n_top; k++) {
            *top++ = (struct td_openai_top){s->top[k].id, td_tokenizer_piece(tok, s->top[k].id),
                                            s->top[k].logprob};
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

/* The choice that a candidate becomes; n_choices or more: none. */
static size_t choice_of(const struct td_openai_part *part, size_t n_choices)
{
    const struct td_openai_request *request = &part->call->request;
    size_t prompt = (size_t)(part - part->call->parts) / request->best_of;
    uint32_t place = part->choice;
    if (request->best_of > request->n) {
        place = td_candidates_place(first_of(part)->candidate, request->best_of, part->choice);
    }
    return place < request->n ? prompt * request->n + place : n_choices;
}

enum td_status td_openai_reply_respond(struct td_openai_call *call)
{
    const size_t n_choices = call->n_prompts * call->request.n;
    struct td_openai_choice *choices = calloc(n_choices, sizeof(*choices));
    struct logprobs *lps = calloc(2 * n_choices, sizeof(*lps)); /* of a choice, and of its prompt */
    enum td_status status = choices != NULL && lps != NULL ? TD_OK : TD_NO_MEMORY;
    struct td_bytes body = {0};
    for (size_t i = 0; i < call->n_parts && status == TD_OK; i++) {
        struct td_openai_part *part = &call->parts[i];
        size_t at = choice_of(part, n_choices);
        if (at >= n_choices || (status = echo(part)) != TD_OK) {
            continue;
        }
        choices[at] = (struct td_openai_choice){
            .index = (uint32_t)at, .text = td_bytes_str(&part->text), .finish = part->finish};
        if (call->request.want_logprobs &&
            (status = logprobs_init(&lps[2 * at], part, &part->tokens)) == TD_OK) {
            choices[at].has_logprobs = true;
            choices[at].logprobs = lps[2 * at].tokens;
            choices[at].n_logprobs = part->tokens.n;
        }
        if (status == TD_OK && call->request.prompt_logprobs >= 0 &&
            (status = logprobs_init(&lps[2 * at + 1], part, &first_of(part)->prompt_tokens)) ==
                TD_OK) {
            choices[at].has_prompt_logprobs = true;
            choices[at].prompt_logprobs = lps[2 * at + 1].tokens;
            choices[at].n_prompt_logprobs = first_of(part)->prompt_tokens.n;
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
    for (size_t i = 0; lps != NULL && i < 2 * n_choices; i++) {
        logprobs_deinit(&lps[i]);
    }
    free(lps);
    free(choices);
    td_bytes_deinit(&body);
    return status;
}

/* ---- The stream ---- */

/* The state of the call is that after the event. TD_OK: queued. Anything else: not now, or never again. */
static enum td_status send_event(struct td_openai_call *call, enum td_status written,
                                 struct td_bytes *body)
{
    struct td_bytes id = {0};
    enum td_status status = written;
    if (status == TD_OK && call->has_ids && !call->failed) {
        status = td_openai_position_write(call, &id);
    }
    if (status == TD_OK) {
        status = td_sse_event_with_id(call->http, td_bytes_str(&id), td_bytes_str(body));
    } else {
        td_http_stream_abort(call->http); /* without memory an event would be lost silently */
    }
    td_bytes_deinit(&id);
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
    part->role_sent = true;
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
    const uint32_t n_before = part->n_sent;
    enum td_status status = TD_OK;
    if (part->tokens.n > 0 && (status = logprobs_init(&lp, part, &part->tokens)) == TD_OK) {
        choice.has_logprobs = true;
        choice.logprobs = lp.tokens;
        choice.n_logprobs = part->tokens.n;
    }
    if (status == TD_OK) {
        status = td_openai_chunk_write(&reply, &choice, call->request.include_usage, &body);
    }
    part->n_sent = part->n_taken;
    part->finish_sent = finish != TD_FINISH_NONE;
    status = send_event(call, status, &body);
    logprobs_deinit(&lp);
    if (status == TD_OK) {
        td_bytes_clear(&part->text);
        part->tokens.n = 0;
    } else {
        part->n_sent = n_before;
        part->finish_sent = false;
    }
    return status;
}

static enum td_status pump_part(struct td_openai_part *part)
{
    bool is_over = part->finish == TD_FINISH_STOP || part->finish == TD_FINISH_LENGTH;
    enum td_status status = send_role(part);
    if (status != TD_OK || part->finish_sent || !may_show(part) ||
        (part->text.len == 0 && !is_over)) {
        return status;
    }
    status = echo(part);
    if (status != TD_OK) {
        td_http_stream_abort(part->call->http);
        return status;
    }
    if (part->text.len > 0) {
        status = send_chunk(part, TD_FINISH_NONE);
    }
    if (status == TD_OK && is_over) {
        status = send_chunk(part, part->finish);
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
    if (call->usage_sent) {
        return TD_OK;
    }
    enum td_status status = td_openai_chunk_usage_write(&reply, &usage, &body);
    call->usage_sent = true;
    status = send_event(call, status, &body);
    call->usage_sent = status == TD_OK;
    return status;
}

bool td_openai_reply_pump(struct td_openai_call *call)
{
    bool all_sent = true;
    for (size_t i = 0; i < call->n_parts; i++) {
        if (pump_part(&call->parts[i]) != TD_OK) {
            return false; /* on_drain or on_close follows */
        }
        /* A client that came back may have had an end that is computed again. */
        all_sent &= call->parts[i].finish_sent && call->parts[i].finish != TD_FINISH_NONE;
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
