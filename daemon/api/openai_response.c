#include "daemon/api/json.h"
#include "daemon/api/openai.h"

#include <inttypes.h>
#include <stdio.h>

void td_openai_id(enum td_openai_kind kind, uint64_t random_hi, uint64_t random_lo,
                  char out[TD_OPENAI_ID_BYTES])
{
    snprintf(out, TD_OPENAI_ID_BYTES, "%s-%016" PRIx64 "%016" PRIx64,
             kind == TD_OPENAI_CHAT ? "chatcmpl" : "cmpl", random_hi, random_lo);
}

const char *td_openai_finish_name(enum td_finish finish)
{
    switch (finish) {
    case TD_FINISH_NONE:
        return NULL;
    case TD_FINISH_LENGTH:
        return "length";
    default:
        return "stop";
    }
}

/* Once one append failed, the rest does nothing: the body is thrown away whole. */
struct writer {
    struct td_bytes *out;
    enum td_status status;
};

static void put(struct writer *w, const char *text)
{
    if (w->status == TD_OK) {
        w->status = td_bytes_append_str(w->out, td_str_from(text));
    }
}

static void put_string(struct writer *w, struct td_str s)
{
    if (w->status == TD_OK) {
        w->status = td_json_append_string(w->out, s);
    }
}

static void put_int(struct writer *w, int64_t value)
{
    if (w->status == TD_OK) {
        w->status = td_bytes_appendf(w->out, "%" PRId64, value);
    }
}

static void put_float(struct writer *w, float value)
{
    if (w->status == TD_OK) {
        w->status = td_json_append_float(w->out, value);
    }
}

static void put_head(struct writer *w, const struct td_openai_reply *reply, const char *object)
{
    put(w, "{\"id\":");
    put_string(w, reply->id);
    put(w, ",\"object\":\"");
    put(w, object);
    put(w, "\",\"created\":");
    put_int(w, reply->created);
    put(w, ",\"model\":");
    put_string(w, reply->model);
    put(w, ",\"choices\":[");
}

static void put_usage(struct writer *w, const struct td_openai_usage *usage)
{
    put(w, "{\"prompt_tokens\":");
    put_int(w, usage->prompt_tokens);
    put(w, ",\"completion_tokens\":");
    put_int(w, usage->completion_tokens);
    put(w, ",\"total_tokens\":");
    put_int(w, (int64_t)usage->prompt_tokens + usage->completion_tokens);
    put(w, ",\"prompt_tokens_details\":{\"cached_tokens\":");
    put_int(w, usage->cached_tokens);
    put(w, "}}");
}

static void put_finish(struct writer *w, enum td_finish finish)
{
    const char *name = td_openai_finish_name(finish);
    if (name == NULL) {
        put(w, "null");
        return;
    }
    put(w, "\"");
    put(w, name);
    put(w, "\"");
}

/* The chat API shows every token as text and as bytes: a token may hold a part of a character. */
static void put_chat_token(struct writer *w, struct td_str token, float logprob)
{
    put(w, "{\"token\":");
    put_string(w, token);
    put(w, ",\"logprob\":");
    put_float(w, logprob);
    put(w, ",\"bytes\":[");
    for (size_t i = 0; i < token.len; i++) {
        put(w, i > 0 ? "," : "");
        put_int(w, (unsigned char)token.ptr[i]);
    }
    put(w, "]");
}

static void put_chat_logprobs(struct writer *w, const struct td_openai_choice *c)
{
    put(w, "{\"content\":[");
    for (size_t i = 0; i < c->n_logprobs; i++) {
        const struct td_openai_logprob *lp = &c->logprobs[i];
        put(w, i > 0 ? "," : "");
        put_chat_token(w, lp->token, lp->logprob);
        put(w, ",\"top_logprobs\":[");
        for (size_t j = 0; j < lp->n_top; j++) {
            put(w, j > 0 ? "," : "");
            put_chat_token(w, lp->top[j].token, lp->top[j].logprob);
            put(w, "}");
        }
        put(w, "]}");
    }
    put(w, "],\"refusal\":null}");
}

/* The completions API names tokens by text alone. Bytes that are no text are written as "bytes:\xe2\x80", so that two
 * of them stay two keys of one map. */
static void put_token_name(struct writer *w, struct td_str token)
{
    if (td_str_is_utf8(token)) {
        put_string(w, token);
        return;
    }
    put(w, "\"bytes:");
    for (size_t i = 0; i < token.len; i++) {
        char text[8];
        snprintf(text, sizeof(text), "\\\\x%02x", (unsigned char)token.ptr[i]);
        put(w, text);
    }
    put(w, "\"");
}

static void put_top_map(struct writer *w, const struct td_openai_logprob *lp)
{
    bool has_chosen = false;
    put(w, "{");
    for (size_t j = 0; j < lp->n_top; j++) {
        bool repeated =
            false; /* different ids may have the same text: the more likely one names it */
        for (size_t k = 0; k < j; k++) {
            repeated |= td_str_eq(lp->top[k].token, lp->top[j].token);
        }
        if (repeated) {
            continue;
        }
        put(w, j > 0 ? "," : "");
        put_token_name(w, lp->top[j].token);
        put(w, ":");
        put_float(w, lp->top[j].logprob);
        has_chosen |= td_str_eq(lp->top[j].token, lp->token);
    }
    if (!has_chosen) {
        put(w, lp->n_top > 0 ? "," : "");
        put_token_name(w, lp->token);
        put(w, ":");
        put_float(w, lp->logprob);
    }
    put(w, "}");
}

static void put_completion_logprobs(struct writer *w, const struct td_openai_choice *c)
{
    put(w, "{\"tokens\":[");
    for (size_t i = 0; i < c->n_logprobs; i++) {
        put(w, i > 0 ? "," : "");
        put_token_name(w, c->logprobs[i].token);
    }
    put(w, "],\"token_logprobs\":[");
    for (size_t i = 0; i < c->n_logprobs; i++) {
        put(w, i > 0 ? "," : "");
        if (c->logprobs[i].is_first) {
            put(w, "null");
        } else {
            put_float(w, c->logprobs[i].logprob);
        }
    }
    put(w, "],\"top_logprobs\":[");
    for (size_t i = 0; i < c->n_logprobs; i++) {
        put(w, i > 0 ? "," : "");
        if (c->logprobs[i].is_first) {
            put(w, "null");
        } else {
            put_top_map(w, &c->logprobs[i]);
        }
    }
    put(w, "],\"text_offset\":[");
    for (size_t i = 0; i < c->n_logprobs; i++) {
        put(w, i > 0 ? "," : "");
        put_int(w, c->logprobs[i].text_offset);
    }
    put(w, "]}");
}

static void put_prompt_token(struct writer *w, uint32_t id, struct td_str token, float logprob,
                             uint32_t rank)
{
    put(w, "\"");
    put_int(w, id);
    put(w, "\":{\"logprob\":");
    put_float(w, logprob);
    put(w, ",\"rank\":");
    put_int(w, rank);
    put(w, ",\"decoded_token\":");
    put_token_name(w, token);
    put(w, "}");
}

/* As vLLM has them: a map by id for each token of the prompt, with the token's own entry. */
static void put_prompt_logprobs(struct writer *w, const struct td_openai_choice *c)
{
    put(w, ",\"prompt_logprobs\":[");
    for (size_t i = 0; i < c->n_prompt_logprobs; i++) {
        const struct td_openai_logprob *lp = &c->prompt_logprobs[i];
        put(w, i > 0 ? "," : "");
        if (lp->is_first) {
            put(w, "null");
            continue;
        }
        put(w, "{");
        for (size_t k = 0; k < lp->n_top; k++) {
            put_prompt_token(w, lp->top[k].id, lp->top[k].token, lp->top[k].logprob,
                             (uint32_t)k + 1);
            put(w, k + 1 < lp->n_top || lp->rank > lp->n_top ? "," : "");
        }
        if (lp->rank > lp->n_top) {
            put_prompt_token(w, lp->id, lp->token, lp->logprob, lp->rank);
        }
        put(w, "}");
    }
    put(w, "]");
}

static void put_logprobs(struct writer *w, enum td_openai_kind kind,
                         const struct td_openai_choice *c)
{
    put(w, ",\"logprobs\":");
    if (!c->has_logprobs) {
        put(w, "null");
    } else if (kind == TD_OPENAI_CHAT) {
        put_chat_logprobs(w, c);
    } else {
        put_completion_logprobs(w, c);
    }
    if (c->has_prompt_logprobs) {
        put_prompt_logprobs(w, c);
    }
    put(w, ",\"finish_reason\":");
    put_finish(w, c->finish);
    put(w, "}");
}

enum td_status td_openai_response_write(const struct td_openai_reply *reply,
                                        const struct td_openai_choice *choices, size_t n_choices,
                                        const struct td_openai_usage *usage, struct td_bytes *out)
{
    struct writer w = {out, TD_OK};
    bool chat = reply->kind == TD_OPENAI_CHAT;
    put_head(&w, reply, chat ? "chat.completion" : "text_completion");
    for (size_t i = 0; i < n_choices; i++) {
        put(&w, i > 0 ? ",{\"index\":" : "{\"index\":");
        put_int(&w, choices[i].index);
        put(&w, chat ? ",\"message\":{\"role\":\"assistant\",\"content\":" : ",\"text\":");
        put_string(&w, choices[i].text);
        put(&w, chat ? ",\"refusal\":null}" : "");
        put_logprobs(&w, reply->kind, &choices[i]);
    }
    put(&w, "],\"usage\":");
    put_usage(&w, usage);
    put(&w, "}");
    return w.status;
}

static const char *chunk_object(const struct td_openai_reply *reply)
{
    return reply->kind == TD_OPENAI_CHAT ? "chat.completion.chunk" : "text_completion";
}

enum td_status td_openai_chunk_role_write(const struct td_openai_reply *reply, uint32_t index,
                                          bool include_usage, struct td_bytes *out)
{
    struct writer w = {out, TD_OK};
    put_head(&w, reply, chunk_object(reply));
    put(&w, "{\"index\":");
    put_int(&w, index);
    put(&w,
        ",\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null},\"logprobs\":null,"
        "\"finish_reason\":null}]");
    put(&w, include_usage ? ",\"usage\":null}" : "}");
    return w.status;
}

enum td_status td_openai_chunk_write(const struct td_openai_reply *reply,
                                     const struct td_openai_choice *choice, bool include_usage,
                                     struct td_bytes *out)
{
    struct writer w = {out, TD_OK};
    put_head(&w, reply, chunk_object(reply));
    put(&w, "{\"index\":");
    put_int(&w, choice->index);
    if (reply->kind == TD_OPENAI_COMPLETION) {
        put(&w, ",\"text\":");
        put_string(&w, choice->text);
    } else if (choice->text.len > 0) {
        put(&w, ",\"delta\":{\"content\":");
        put_string(&w, choice->text);
        put(&w, "}");
    } else {
        put(&w, ",\"delta\":{}");
    }
    put_logprobs(&w, reply->kind, choice);
    put(&w, include_usage ? "],\"usage\":null}" : "]}");
    return w.status;
}

enum td_status td_openai_chunk_usage_write(const struct td_openai_reply *reply,
                                           const struct td_openai_usage *usage,
                                           struct td_bytes *out)
{
    struct writer w = {out, TD_OK};
    put_head(&w, reply, chunk_object(reply));
    put(&w, "],\"usage\":");
    put_usage(&w, usage);
    put(&w, "}");
    return w.status;
}

static void put_model(struct writer *w, const struct td_openai_model *model)
{
    put(w, "{\"id\":");
    put_string(w, model->id);
    put(w, ",\"object\":\"model\",\"created\":");
    put_int(w, model->created);
    put(w, ",\"owned_by\":\"tensord\"");
    if (model->max_model_len > 0) {
        put(w, ",\"max_model_len\":");
        put_int(w, model->max_model_len);
    }
    put(w, "}");
}

enum td_status td_openai_model_write(const struct td_openai_model *model, struct td_bytes *out)
{
    struct writer w = {out, TD_OK};
    put_model(&w, model);
    return w.status;
}

enum td_status td_openai_models_write(const struct td_openai_model *models, size_t n_models,
                                      struct td_bytes *out)
{
    struct writer w = {out, TD_OK};
    put(&w, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < n_models; i++) {
        put(&w, i > 0 ? "," : "");
        put_model(&w, &models[i]);
    }
    put(&w, "]}");
    return w.status;
}
