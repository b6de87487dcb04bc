/* From the events of a call's candidates to messages: in which order, with what, and when the client takes them. */
#include "daemon/coordinator/inference_call.h"

#include <stdlib.h>
#include <string.h>

/* ---- At the client's pace ---- */

void td_inference_reply_pump(struct td_inference_call *call)
{
    size_t at = 0;
    while (at < call->backlog.len) {
        uint32_t n;
        memcpy(&n, call->backlog.data + at, sizeof(n));
        const struct td_str message = {call->backlog.data + at + sizeof(n), n};
        if (td_grpc_stream_send(call->s, message, NULL) != TD_OK) {
            break; /* on_drain or on_close follows */
        }
        at += sizeof(n) + n;
    }
    td_bytes_consume(&call->backlog, at);
    if (call->backlog.len > 0) {
        return;
    }
    if (!call->ended) {
        return;
    }
    if (call->end_err.status != TD_OK) {
        td_inference_call_fail(call, &call->end_err);
        return;
    }
    td_inference_generate_count(call, TD_OK);
    td_grpc_stream_finish(call->s, TD_GRPC_OK, TD_STR(""));
}

static enum td_status keep(struct td_bytes *list, struct td_str message)
{
    uint32_t n = (uint32_t)message.len;
    enum td_status status = td_bytes_reserve(list, sizeof(n) + n);
    if (status == TD_OK) {
        status = td_bytes_append(list, &n, sizeof(n));
    }
    return status == TD_OK ? td_bytes_append_str(list, message) : status;
}

/* Sends call->packed, or keeps it until the client takes it. What is known only now stands behind it: the choice's number,
 * what the first event and the last have. Two encoded messages, one behind the other, are one with the fields of both. */
static enum td_status send_packed(struct td_inference_call *call, uint32_t choice, bool is_last)
{
    Tensord__V1__GenerateEvent more = TENSORD__V1__GENERATE_EVENT__INIT;
    more.choice = choice;
    more.usage = is_last ? &call->usage : NULL;
    more.n_prompt_ids = call->echo.len;
    more.prompt_ids = call->echo.data;
    more.id = call->id;
    enum td_status status = td_rpc_pack(&more.base, &call->addition, NULL);
    td_ids_deinit(&call->echo);
    call->id[0] = '\0';
    if (status == TD_OK) {
        status = td_bytes_append_str(&call->packed, td_bytes_str(&call->addition));
    }
    if (status == TD_OK && call->backlog.len == 0) {
        status = td_grpc_stream_send(call->s, td_bytes_str(&call->packed), NULL);
        if (status != TD_BUSY) {
            return status == TD_CANCELLED ? TD_OK : status; /* on_close follows */
        }
        status = TD_OK;
    }
    return status == TD_OK ? keep(&call->backlog, td_bytes_str(&call->packed)) : status;
}

/* Whether the client has had that event of the choice, before its connection broke. The last one comes again. */
static bool is_known(const struct td_inference_call *call, uint32_t choice, uint32_t index,
                     bool is_end)
{
    return choice < call->known.len && index < call->known.data[choice] && !is_end;
}

/* What was held back of a candidate becomes that of a choice. */
static enum td_status release(struct td_inference_part *part, uint32_t choice, bool is_last)
{
    struct td_inference_call *call = part->call;
    struct td_bytes held = part->held;
    enum td_status status = TD_OK;
    uint32_t index = 0;
    part->held = (struct td_bytes){0};
    for (size_t at = 0; at < held.len && status == TD_OK; index++) {
        uint32_t n;
        memcpy(&n, held.data + at, sizeof(n));
        at += sizeof(n);
        td_bytes_clear(&call->packed);
        status = td_bytes_append(&call->packed, held.data + at, n);
        at += n;
        if (status == TD_OK && !is_known(call, choice, index, at == held.len)) {
            status = send_packed(call, choice, is_last && at == held.len);
        }
    }
    td_bytes_deinit(&held);
    return status;
}

/* All have ended: the best of them, one after the other. */
static enum td_status release_best(struct td_inference_call *call)
{
    enum td_status status = TD_OK;
    for (uint32_t place = 0; place < call->n && status == TD_OK; place++) {
        uint32_t i = 0;
        while (td_candidates_place(call->candidates, call->best_of, i) != place) {
            i++;
        }
        status = release(&call->parts[i], place, place + 1 == call->n);
    }
    return status;
}

/* ---- Messages ---- */

/* The alternatives of a token; `tops` and `list` have room for all. */
static void fill_tops(const struct td_inference_call *call, const struct td_sampled *t,
                      Tensord__V1__TopLogprob *tops, Tensord__V1__TopLogprob **list)
{
    for (uint32_t i = 0; i < t->n_top; i++) {
        tops[i] = (Tensord__V1__TopLogprob)TENSORD__V1__TOP_LOGPROB__INIT;
        tops[i].id = t->top[i].id;
        tops[i].logprob = t->top[i].logprob;
        tops[i].text = td_rpc_data(td_tokenizer_piece(call->served->tok, t->top[i].id));
        list[i] = &tops[i];
    }
}

/* Sends the log probabilities of the prompt that are there. */
static enum td_status send_prompt(struct td_inference_call *call)
{
    struct td_inference_prompt *p = call->prompt;
    Tensord__V1__GenerateEvent m = TENSORD__V1__GENERATE_EVENT__INIT;
    Tensord__V1__PromptLogprob item[TD_INFERENCE_PROMPT_TOKENS];
    Tensord__V1__PromptLogprob *list[TD_INFERENCE_PROMPT_TOKENS];
    Tensord__V1__TopLogprob tops[TD_INFERENCE_PROMPT_TOKENS][TD_SAMPLER_MAX_LOGPROBS];
    Tensord__V1__TopLogprob *top_list[TD_INFERENCE_PROMPT_TOKENS][TD_SAMPLER_MAX_LOGPROBS];
    for (uint32_t i = 0; i < p->n; i++) {
        const struct td_sampled *t = &p->token[i];
        item[i] = (Tensord__V1__PromptLogprob)TENSORD__V1__PROMPT_LOGPROB__INIT;
        item[i].position = p->position + i;
        item[i].id = t->id;
        item[i].text = td_rpc_data(td_tokenizer_piece(call->served->tok, t->id));
        if (item[i].position > 0) {
            item[i].has_logprob_case = TENSORD__V1__PROMPT_LOGPROB__HAS_LOGPROB_LOGPROB;
            item[i].logprob = t->logprob;
            item[i].rank = t->rank;
            item[i].n_top_logprobs = t->n_top;
            item[i].top_logprobs = top_list[i];
            fill_tops(call, t, tops[i], top_list[i]);
        }
        list[i] = &item[i];
    }
    m.n_prompt_logprobs = p->n;
    m.prompt_logprobs = list;
    p->position += p->n;
    p->n = 0;
    enum td_status status = td_rpc_pack(&m.base, &call->packed, NULL);
    return status == TD_OK ? send_packed(call, 0, false) : status;
}

static enum td_status take_prompt(struct td_inference_call *call, const struct td_sampled *token)
{
    struct td_inference_prompt *p = call->prompt;
    enum td_status status = p->n == TD_INFERENCE_PROMPT_TOKENS ? send_prompt(call) : TD_OK;
    p->token[p->n++] = *token;
    return status;
}

/* The prompt is told to its end, and who had to wait for that goes on. */
static enum td_status end_prompt(struct td_inference_call *call)
{
    enum td_status status = call->prompt->n > 0 ? send_prompt(call) : TD_OK;
    free(call->prompt);
    call->prompt = NULL;
    for (uint32_t i = 1; call->best_of == call->n && i < call->n && status == TD_OK; i++) {
        status = release(&call->parts[i], i, false);
    }
    return status;
}

static enum td_status pack_event(struct td_inference_call *call, const struct td_job_event *event)
{
    Tensord__V1__GenerateEvent m = TENSORD__V1__GENERATE_EVENT__INIT;
    Tensord__V1__TopLogprob tops[TD_SAMPLER_MAX_LOGPROBS];
    Tensord__V1__TopLogprob *top_list[TD_SAMPLER_MAX_LOGPROBS];
    m.index = event->index;
    m.text = td_rpc_data(event->text);
    if (event->has_token) {
        m.has_token_case = TENSORD__V1__GENERATE_EVENT__HAS_TOKEN_TOKEN_ID;
        m.token_id = event->token->id;
    }
    if (event->has_token && call->wants_logprobs) {
        m.has_logprob_case = TENSORD__V1__GENERATE_EVENT__HAS_LOGPROB_LOGPROB;
        m.logprob = event->token->logprob;
        fill_tops(call, event->token, tops, top_list);
        m.n_top_logprobs = event->token->n_top;
        m.top_logprobs = top_list;
    }
    if (event->finish != TD_FINISH_NONE) {
        m.finish_reason = event->finish == TD_FINISH_LENGTH
                              ? TENSORD__V1__FINISH_REASON__FINISH_REASON_LENGTH
                              : TENSORD__V1__FINISH_REASON__FINISH_REASON_STOP;
    }
    return td_rpc_pack(&m.base, &call->packed, NULL);
}

/* ---- Events ---- */

/* The earlier of two times, of which the first to come is any. */
static uint64_t earlier(bool is_first, uint64_t a, uint64_t b)
{
    return is_first || b < a ? b : a;
}

/* A candidate has ended. */
static void add_usage(struct td_inference_part *part, const struct td_job_event *event)
{
    struct td_inference_call *call = part->call;
    Tensord__V1__Usage *u = &call->usage;
    bool is_first = call->n_open == call->best_of;
    u->prompt_tokens = event->n_prompt;
    u->completion_tokens += event->n_output;
    u->cached_tokens = part == call->parts ? event->n_cached : u->cached_tokens;
    u->queue_ns = earlier(is_first, u->queue_ns, event->queue_ns);
    u->first_token_ns = earlier(is_first, u->first_token_ns, event->first_token_ns);
    u->total_ns = event->total_ns > u->total_ns ? event->total_ns : u->total_ns;
    call->n_open--;
}

enum td_status td_inference_reply_take(struct td_inference_part *part,
                                       const struct td_job_event *event)
{
    struct td_inference_call *call = part->call;
    uint32_t number = (uint32_t)(part - call->parts);
    bool is_compared = call->best_of > call->n;
    enum td_status status = TD_OK;
    if (event->is_prompt) {
        return call->prompt != NULL ? take_prompt(call, event->token) : TD_OK;
    }
    if (call->prompt != NULL && number == 0) {
        status = end_prompt(call);
    }
    if (event->finish != TD_FINISH_NONE) {
        add_usage(part, event);
        call->ended = call->n_open == 0;
    }
    if (status == TD_OK) {
        status = pack_event(call, event);
    }
    if (status != TD_OK) {
        return status;
    }
    if (!is_compared && call->prompt == NULL) {
        bool is_end = event->finish != TD_FINISH_NONE;
        return is_known(call, number, event->index, is_end)
                   ? TD_OK
                   : send_packed(call, number, call->ended);
    }
    status = keep(&part->held, td_bytes_str(&call->packed));
    return status == TD_OK && is_compared && call->ended ? release_best(call) : status;
}
