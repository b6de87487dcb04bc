#include "daemon/coordinator/inference_call.h"

#include "daemon/journal/journal.h"
#include "daemon/text/detok.h"

#include <stdlib.h>
#include <string.h>

enum {
    POOL_BYTES = 64 * 1024, /* a longer message is unpacked on the pool */
    POOL_IDS = 8192,        /* a longer list is turned into text there */
    MAX_IDS = 1 << 22,      /* of one message */
    MAX_MESSAGES = 4096     /* of one chat */
};

/* ---- The end ---- */

void td_inference_call_free_when_over(struct td_inference_call *call)
{
    if (call->s != NULL || call->pending || call->retelling ||
        td_inference_generate_is_running(call)) {
        return;
    }
    td_kept_remove(&call->kept);
    td_rpc_free(call->request);
    td_served_release(call->served);
    free(call->messages);
    td_ids_deinit(&call->ids);
    td_bytes_deinit(&call->raw);
    td_inference_generate_free(call);
    free(call);
}

void td_inference_call_fail(struct td_inference_call *call, const struct td_err *err)
{
    if (call->s == NULL) {
        return;
    }
    td_inference_generate_count(call, err->status);
    td_grpc_stream_fail(call->s, err); /* on_close follows */
}

void td_inference_call_closed(void *user, struct td_grpc_stream *s, enum td_grpc_code code)
{
    struct td_inference_call *call = td_grpc_stream_user(s);
    (void)user;
    call->s = NULL;
    if (call->is_repeatable && call->number != 0 && td_inference_generate_is_running(call)) {
        td_inference_generate_detach(call);
        return;
    }
    td_inference_generate_stop(call);
    td_journal_drop(td_coord_journal(call->service->coord), call->ended ? 0 : call->number);
    /* Unless it was counted before. */
    td_inference_generate_count(call,
                                code == TD_GRPC_DEADLINE_EXCEEDED ? TD_TIMED_OUT : TD_CANCELLED);
    td_inference_call_free_when_over(call);
}

/* ---- Tokenize's answer ---- */

static enum td_status pack_tokens(struct td_inference_call *call)
{
    const struct td_tokenizer *tok = call->served->tok;
    Tensord__V1__TokenizeResponse m = TENSORD__V1__TOKENIZE_RESPONSE__INIT;
    struct td_bytes text = {0};
    enum td_status status = TD_OK;
    m.n_ids = m.n_pieces = call->ids.len;
    m.ids = call->ids.data;
    m.pieces = calloc(call->ids.len + 1, sizeof(*m.pieces));
    if (m.pieces == NULL || td_detok_text(tok, call->ids.data, call->ids.len, 0, &text) != TD_OK) {
        status = td_err_set(&call->err, TD_NO_MEMORY, "no memory for %zu tokens", call->ids.len);
    }
    for (size_t i = 0; i < call->ids.len && status == TD_OK; i++) {
        m.pieces[i] = td_rpc_data(td_tokenizer_piece(tok, call->ids.data[i]));
    }
    m.text = td_rpc_data(td_bytes_str(&text));
    m.max_model_len = call->served->max_model_len;
    if (status == TD_OK) {
        status = td_rpc_pack(&m.base, &call->raw, &call->err);
    }
    free(m.pieces);
    td_bytes_deinit(&text);
    return status;
}

static void send_tokens(struct td_inference_call *call)
{
    if (call->s == NULL) {
        return;
    }
    if (call->status == TD_OK) {
        call->status = td_grpc_stream_send(call->s, td_bytes_str(&call->raw), &call->err);
    }
    if (call->status != TD_OK) {
        td_inference_call_fail(call, &call->err);
        return;
    }
    td_grpc_stream_finish(call->s, TD_GRPC_OK, TD_STR(""));
}

static void pack_on_pool(uv_work_t *work)
{
    struct td_inference_call *call = work->data;
    call->status = pack_tokens(call);
}

static void on_packed(uv_work_t *work, int status)
{
    struct td_inference_call *call = work->data;
    (void)status;
    call->pending = false;
    send_tokens(call);
    td_inference_call_free_when_over(call);
}

static bool run_on_pool(struct td_inference_call *call, uv_work_cb run, uv_after_work_cb done)
{
    call->work.data = call;
    call->pending = uv_queue_work(td_coord_loop(call->service->coord), &call->work, run, done) == 0;
    return call->pending;
}

static void answer_tokens(struct td_inference_call *call)
{
    if (call->ids.len > POOL_IDS && run_on_pool(call, pack_on_pool, on_packed)) {
        return;
    }
    call->status = pack_tokens(call);
    send_tokens(call);
}

/* ---- From the prompt to ids ---- */

static void have_ids(struct td_inference_call *call)
{
    if (call->method == TD_RPC_GENERATE) {
        td_inference_generate_begin(call);
    } else {
        answer_tokens(call);
    }
}

static void on_encoded(enum td_status status, struct td_ids *ids, const struct td_err *err,
                       void *user)
{
    struct td_inference_call *call = user;
    call->pending = false;
    if (call->s != NULL && status == TD_OK) {
        call->ids = *ids;
        *ids = (struct td_ids){0};
        have_ids(call);
    } else if (call->s != NULL) {
        td_inference_call_fail(call, err);
    }
    td_inference_call_free_when_over(call);
}

static enum td_status take_ids(struct td_inference_call *call, const Tensord__V1__TokenIds *given,
                               struct td_err *err)
{
    if (given->n_ids > MAX_IDS) {
        return td_err_set(err, TD_TOO_LARGE, "token_ids has %zu ids, expected at most %d",
                          given->n_ids, MAX_IDS);
    }
    for (size_t i = 0; i < given->n_ids; i++) {
        if (given->ids[i] >= call->served->spec->n_vocab) {
            return td_err_set(err, TD_INVALID, "token_ids[%zu] is %u, the vocabulary has %u", i,
                              given->ids[i], call->served->spec->n_vocab);
        }
    }
    return td_ids_append_n(&call->ids, given->ids, given->n_ids) == TD_OK
               ? TD_OK
               : td_err_set(err, TD_NO_MEMORY, "no memory for %zu ids", given->n_ids);
}

/* "developer" is OpenAI's newer word for "system". */
static enum td_status take_role(struct td_str role, size_t i, struct td_str *out,
                                struct td_err *err)
{
    if (td_str_eq(role, TD_STR("system")) || td_str_eq(role, TD_STR("developer"))) {
        *out = TD_STR("system");
    } else if (td_str_eq(role, TD_STR("user"))) {
        *out = TD_STR("user");
    } else if (td_str_eq(role, TD_STR("assistant"))) {
        *out = TD_STR("assistant");
    } else {
        return td_err_set(err, TD_INVALID,
                          "chat.messages[%zu].role is '%.*s', expected system, user or assistant",
                          i, (int)(role.len < 32 ? role.len : 32), role.ptr);
    }
    return TD_OK;
}

static enum td_status take_chat(struct td_inference_call *call, const Tensord__V1__ChatPrompt *chat,
                                struct td_coord_encode *what, struct td_err *err)
{
    if (call->served->chat == NULL) {
        td_err_set(err, TD_UNSUPPORTED, "%s", call->served->chat_err.cause);
        td_err_context(err, "the model '%s' cannot chat", call->served->names[0]);
        return TD_UNSUPPORTED;
    }
    if (chat->continue_final_message) {
        return td_err_set(err, TD_UNSUPPORTED, "chat.continue_final_message is not built yet");
    }
    if (chat->n_messages == 0 || chat->n_messages > MAX_MESSAGES) {
        return td_err_set(err, TD_INVALID, "chat has %zu messages, expected 1 to %d",
                          chat->n_messages, MAX_MESSAGES);
    }
    call->messages = calloc(chat->n_messages, sizeof(*call->messages));
    if (call->messages == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for %zu messages", chat->n_messages);
    }
    enum td_status status = TD_OK;
    for (size_t i = 0; i < chat->n_messages && status == TD_OK; i++) {
        call->messages[i].content = td_rpc_str(chat->messages[i]->content);
        status = take_role(td_rpc_str(chat->messages[i]->role), i, &call->messages[i].role, err);
    }
    what->messages = call->messages;
    what->n_messages = chat->n_messages;
    what->add_generation_prompt = !chat->no_generation_prompt;
    return status;
}

/* The three forms that Generate and Tokenize share; NULL or an empty one: not given. */
struct prompt {
    bool has_text;
    struct td_str text;
    const Tensord__V1__TokenIds *ids;
    const Tensord__V1__ChatPrompt *chat;
    bool no_special_tokens;
    const char *model;
};

static struct prompt prompt_of(const struct td_inference_call *call)
{
    struct prompt p = {0};
    if (call->method == TD_RPC_GENERATE) {
        const Tensord__V1__GenerateRequest *m = (const void *)call->request;
        p.has_text = m->prompt_case == TENSORD__V1__GENERATE_REQUEST__PROMPT_TEXT;
        p.text = p.has_text ? td_rpc_str(m->text) : TD_STR("");
        p.ids =
            m->prompt_case == TENSORD__V1__GENERATE_REQUEST__PROMPT_TOKEN_IDS ? m->token_ids : NULL;
        p.chat = m->prompt_case == TENSORD__V1__GENERATE_REQUEST__PROMPT_CHAT ? m->chat : NULL;
        p.no_special_tokens = m->no_special_tokens;
        p.model = m->model;
    } else {
        const Tensord__V1__TokenizeRequest *m = (const void *)call->request;
        p.has_text = m->input_case == TENSORD__V1__TOKENIZE_REQUEST__INPUT_TEXT;
        p.text = p.has_text ? td_rpc_str(m->text) : TD_STR("");
        p.ids =
            m->input_case == TENSORD__V1__TOKENIZE_REQUEST__INPUT_TOKEN_IDS ? m->token_ids : NULL;
        p.chat = m->input_case == TENSORD__V1__TOKENIZE_REQUEST__INPUT_CHAT ? m->chat : NULL;
        p.no_special_tokens = m->no_special_tokens;
        p.model = m->model;
    }
    return p;
}

static enum td_status encode(struct td_inference_call *call, struct td_err *err)
{
    const struct prompt p = prompt_of(call);
    struct td_served *served = NULL;
    enum td_status status =
        td_coord_find_model(call->service->coord, td_str_from(p.model), &served, err);
    if (status != TD_OK) {
        return status;
    }
    call->served = served;
    td_served_retain(served);
    struct td_coord_encode what = {
        .served = call->served, .text = p.text, .with_bos = !p.no_special_tokens};
    if (p.ids != NULL) {
        return take_ids(call, p.ids, err);
    }
    if (p.chat != NULL) {
        status = take_chat(call, p.chat, &what, err);
    } else if (!p.has_text) {
        status = td_err_set(err, TD_INVALID, "nothing was given: expected text, token_ids or chat");
    }
    if (status == TD_OK) {
        status = td_coord_encode(call->service->coord, &what, on_encoded, call, err);
        call->pending = status == TD_OK;
    }
    return status;
}

/* ---- From bytes to the request ---- */

static enum td_status unpack(struct td_inference_call *call, struct td_str bytes)
{
    return td_rpc_unpack(td_rpc_method(call->method)->request, bytes, 0, &call->request,
                         &call->err);
}

static void go_on(struct td_inference_call *call)
{
    enum td_status status = call->status;
    if (status == TD_OK && call->method == TD_RPC_RESUME) {
        td_inference_resume_begin(call);
        return;
    }
    if (status == TD_OK) {
        status = encode(call, &call->err);
    }
    if (status != TD_OK) {
        td_inference_call_fail(call, &call->err);
    } else if (!call->pending) {
        have_ids(call);
    }
}

static void unpack_on_pool(uv_work_t *work)
{
    struct td_inference_call *call = work->data;
    call->status = unpack(call, td_bytes_str(&call->raw));
}

static void on_unpacked(uv_work_t *work, int status)
{
    struct td_inference_call *call = work->data;
    (void)status;
    call->pending = false;
    td_bytes_deinit(&call->raw);
    if (call->s != NULL) {
        go_on(call);
    }
    td_inference_call_free_when_over(call);
}

void td_inference_call_message(void *user, struct td_grpc_stream *s, struct td_str message)
{
    struct td_inference_call *call = td_grpc_stream_user(s);
    (void)user;
    td_grpc_stream_ack(s, message.len);
    if (message.len > POOL_BYTES && td_bytes_append_str(&call->raw, message) == TD_OK &&
        run_on_pool(call, unpack_on_pool, on_unpacked)) {
        return;
    }
    call->status = unpack(call, message);
    td_bytes_deinit(&call->raw);
    go_on(call);
}

/* Which of the service's keys the call brought. */
static uint32_t key_of(const struct td_inference_service *service, struct td_grpc_stream *s)
{
    struct td_str authorization = {NULL, 0};
    struct td_str x_api_key = {NULL, 0};
    if (service->auth == NULL) {
        return 0;
    }
    td_grpc_stream_metadata(s, "authorization", 0, &authorization);
    td_grpc_stream_metadata(s, "x-api-key", 0, &x_api_key);
    return td_auth_which(service->auth, authorization, x_api_key);
}

struct td_inference_call *td_inference_call_new(struct td_inference_service *service,
                                                struct td_grpc_stream *s, enum td_rpc_id method)
{
    struct td_inference_call *call = calloc(1, sizeof(*call));
    if (call == NULL) {
        return NULL;
    }
    call->service = service;
    call->s = s;
    call->method = method;
    call->start_ns = uv_hrtime();
    if (s != NULL) {
        call->key = key_of(service, s);
        td_grpc_stream_set_user(s, call);
    }
    return call;
}

static enum td_status open_call(struct td_inference_service *service, struct td_grpc_stream *s,
                                enum td_rpc_id method, struct td_err *err)
{
    return td_inference_call_new(service, s, method) != NULL
               ? TD_OK
               : td_err_set(err, TD_NO_MEMORY, "no memory for a call");
}

enum td_status td_inference_call_open_generate(void *user, struct td_grpc_stream *s,
                                               struct td_err *err)
{
    return open_call(user, s, TD_RPC_GENERATE, err);
}

enum td_status td_inference_call_open_resume(void *user, struct td_grpc_stream *s,
                                             struct td_err *err)
{
    return open_call(user, s, TD_RPC_RESUME, err);
}

enum td_status td_inference_call_open_tokenize(void *user, struct td_grpc_stream *s,
                                               struct td_err *err)
{
    return open_call(user, s, TD_RPC_TOKENIZE, err);
}
