#include "daemon/api/grpc_serve.h"

#include "daemon/api/conn.h"
#include "daemon/api/openai.h"
#include "daemon/log.h"
#include "kernels/base/clock.h"
#include "proto/rpc_reflection.h"

#include <stdlib.h>
#include <string.h>

enum {
    PULL_BYTES = 16 * 1024,
    RETIRE_IDLE_MS = 1000 /* without a call, before a retiring connection gets GOAWAY */
};
static const uint64_t default_keepalive_ns = 60ull * 1000 * 1000 * 1000;

struct td_grpc_serve_table {
    struct td_grpc_limits limits;
    bool served[TD_N_RPCS];
    struct td_grpc_serve_handler handlers[TD_N_RPCS];
};

struct grpc_conn {
    struct td_conn *c;
    const struct td_grpc_serve_table *table;
    struct td_grpc *grpc;
    uint64_t idle_since_ms; /* no call is open; 0 while one is */
    bool is_broken;         /* the peer broke HTTP/2: what is left to say is said, then the end */
};

enum td_status td_grpc_serve_table_open(const struct td_grpc_limits *limits,
                                        struct td_grpc_serve_table **table, struct td_err *err)
{
    struct td_grpc_serve_table *t = calloc(1, sizeof(*t));
    if (t == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for the gRPC method table");
    }
    if (limits != NULL) {
        t->limits = *limits;
    } else {
        td_grpc_limits_default(&t->limits);
    }
    if (t->limits.keepalive_ns == 0) {
        t->limits.keepalive_ns = default_keepalive_ns;
    }
    *table = t;
    return TD_OK;
}

void td_grpc_serve_table_close(struct td_grpc_serve_table *table)
{
    free(table);
}

void td_grpc_serve_add(struct td_grpc_serve_table *table, enum td_rpc_id id,
                       const struct td_grpc_serve_handler *handler)
{
    table->served[id] = true;
    table->handlers[id] = *handler;
}

const struct td_grpc_serve_handler *td_grpc_serve_at(const struct td_grpc_serve_table *table,
                                                     enum td_rpc_id id)
{
    return table->served[id] ? &table->handlers[id] : NULL;
}

void td_grpc_serve_log(const struct td_grpc_serve_table *table)
{
    for (int i = 0; i < TD_N_RPCS; i++) {
        const struct td_grpc_serve_handler *h = td_grpc_serve_at(table, (enum td_rpc_id)i);
        if (h != NULL) {
            td_log_debug("rpc path=%s for=%s", td_rpc_method((enum td_rpc_id)i)->path,
                         h->role == TD_AUTH_OPERATOR ? "operators"
                         : h->auth != NULL           ? "clients"
                                                     : "everybody");
        }
    }
}

/* ---- Reflection ---- */

static void on_reflection_message(void *user, struct td_grpc_stream *s, struct td_str message)
{
    (void)user;
    struct td_bytes reply = {0};
    struct td_err err = {0};
    enum td_status status = td_rpc_reflection_answer(message, &reply, &err);
    td_grpc_stream_ack(s, message.len);
    if (status == TD_OK) {
        status = td_grpc_stream_send(s, td_bytes_str(&reply), &err);
    }
    if (status != TD_OK && status != TD_CANCELLED) {
        td_grpc_stream_fail(s, &err);
    }
    td_bytes_deinit(&reply);
}

static void on_reflection_half_close(void *user, struct td_grpc_stream *s)
{
    (void)user;
    td_grpc_stream_finish(s, TD_GRPC_OK, TD_STR(""));
}

void td_grpc_serve_add_reflection(struct td_grpc_serve_table *table, const struct td_auth *auth)
{
    const struct td_grpc_serve_handler handler = {
        .auth = auth,
        .on_message = on_reflection_message,
        .on_half_close = on_reflection_half_close,
    };
    td_grpc_serve_add(table, TD_RPC_REFLECTION, &handler);
    td_grpc_serve_add(table, TD_RPC_REFLECTION_ALPHA, &handler);
}

/* ---- From streams to handlers ---- */

/* The handler of an accepted call, NULL for a plain request. The stream's user pointer belongs to the handler, so the
 * method is found again by its path. */
static const struct td_grpc_serve_handler *handler_of(const struct grpc_conn *g,
                                                      const struct td_grpc_stream *s)
{
    struct td_str path;
    if (!td_grpc_stream_metadata(s, ":path", 0, &path)) {
        return NULL;
    }
    const struct td_rpc_method *method = td_rpc_find(path);
    return method != NULL ? td_grpc_serve_at(g->table, method->id) : NULL;
}

static enum td_status refuse_caller(struct grpc_conn *g, struct td_grpc_stream *s,
                                    const struct td_rpc_method *method,
                                    enum td_auth_verdict verdict, struct td_err *err)
{
    td_log_warn("call refused remote=%s method=%s error=\"%s\"", td_conn_remote(g->c), method->path,
                td_auth_reason(verdict));
    if (verdict != TD_AUTH_NO_KEY) {
        td_grpc_stream_finish(s, TD_GRPC_PERMISSION_DENIED, td_str_from(td_auth_reason(verdict)));
    }
    return td_err_set(err, TD_DENIED, "%s", td_auth_reason(verdict));
}

static enum td_status on_call(void *user, struct td_grpc_stream *s, struct td_str path,
                              struct td_err *err)
{
    struct grpc_conn *g = user;
    const struct td_rpc_method *method = td_rpc_find(path);
    const struct td_grpc_serve_handler *handler =
        method != NULL ? td_grpc_serve_at(g->table, method->id) : NULL;
    if (handler == NULL) {
        return td_err_set(err, TD_UNSUPPORTED, "method '%.*s' is not served here",
                          (int)(path.len < 128 ? path.len : 128), path.ptr);
    }
    struct td_str authorization = {NULL, 0};
    struct td_str x_api_key = {NULL, 0};
    td_grpc_stream_metadata(s, "authorization", 0, &authorization);
    td_grpc_stream_metadata(s, "x-api-key", 0, &x_api_key);
    uint32_t number;
    enum td_auth_verdict verdict = td_auth_admit(
        handler->auth, handler->role, td_conn_is_local(g->c), authorization, x_api_key, &number);
    if (verdict != TD_AUTH_ADMITTED) {
        return refuse_caller(g, s, method, verdict, err);
    }
    if (number > 0) {
        td_log_debug("call admitted remote=%s method=%s key=%s", td_conn_remote(g->c), method->path,
                     td_auth_name(handler->auth, number));
    }
    if (!method->client_streams) {
        td_grpc_stream_set_unary(s);
    }
    if (method->id != TD_RPC_ATTACH) {
        td_grpc_stream_limit_message(s, td_conn_config(g->c)->max_body_bytes);
    }
    return handler->on_call != NULL ? handler->on_call(handler->user, s, err) : TD_OK;
}

static void on_http(void *user, struct td_grpc_stream *s, struct td_str method, struct td_str path,
                    struct td_str body)
{
    (void)method;
    (void)path;
    (void)body;
    struct td_openai_error e;
    struct td_bytes text = {0};
    td_grpc_stream_set_user(
        s, user); /* no handler knows this pointer: on_close tells plain requests by it */
    td_openai_error_set(&e, 415, "invalid_request_error", "use_http_1_1", NULL,
                        "HTTP/2 carries gRPC here; other requests are served over HTTP/1.1.");
    if (td_openai_error_write(&e, &text) != TD_OK) {
        td_bytes_clear(&text);
    }
    td_grpc_stream_http_reply(s, 415, TD_STR("application/json"), td_bytes_str(&text));
    td_bytes_deinit(&text);
}

static void on_message(void *user, struct td_grpc_stream *s, struct td_str message)
{
    const struct td_grpc_serve_handler *handler = handler_of(user, s);
    if (handler != NULL && handler->on_message != NULL) {
        handler->on_message(handler->user, s, message);
    } else {
        td_grpc_stream_ack(s, message.len);
    }
}

static void on_half_close(void *user, struct td_grpc_stream *s)
{
    const struct td_grpc_serve_handler *handler = handler_of(user, s);
    if (handler != NULL && handler->on_half_close != NULL) {
        handler->on_half_close(handler->user, s);
    }
}

static void on_stream_drain(void *user, struct td_grpc_stream *s)
{
    const struct td_grpc_serve_handler *handler = handler_of(user, s);
    if (handler != NULL && handler->on_drain != NULL) {
        handler->on_drain(handler->user, s);
    }
}

static void on_close(void *user, struct td_grpc_stream *s, enum td_grpc_code code,
                     struct td_str text)
{
    (void)text;
    if (td_grpc_stream_user(s) == user) {
        return; /* a plain request, see on_http */
    }
    const struct td_grpc_serve_handler *handler = handler_of(user, s);
    if (handler != NULL && handler->on_close != NULL) {
        handler->on_close(handler->user, s, code);
    }
}

static void on_output(void *user)
{
    struct grpc_conn *g = user;
    td_conn_want_flush(g->c);
}

static const struct td_grpc_callbacks callbacks = {
    .on_call = on_call,
    .on_http = on_http,
    .on_message = on_message,
    .on_half_close = on_half_close,
    .on_drain = on_stream_drain,
    .on_close = on_close,
    .on_output = on_output,
};

const char *td_grpc_serve_remote(const struct td_grpc_stream *s)
{
    const struct grpc_conn *g = td_grpc_user(td_grpc_stream_conn(s));
    return td_conn_remote(g->c);
}

/* ---- The connection's calls ---- */

static void on_flush(void *upper)
{
    struct grpc_conn *g = upper;
    size_t cap = td_conn_config(g->c)->write_queue_bytes;
    char buf[PULL_BYTES];
    /* Beyond the cap the messages stay in their streams, whose queues have caps of their own. */
    while (td_conn_queued_bytes(g->c) < cap) {
        size_t n = td_grpc_pull(g->grpc, buf, sizeof(buf));
        if (n == 0) {
            break;
        }
        if (td_conn_write(g->c, buf, n) != TD_OK) {
            return;
        }
    }
    if (td_grpc_wants_close(g->grpc) || (g->is_broken && !td_grpc_wants_write(g->grpc))) {
        td_conn_finish(g->c);
    }
}

static void on_data(void *upper, const char *data, size_t n_bytes)
{
    struct grpc_conn *g = upper;
    if (!g->is_broken && td_grpc_feed(g->grpc, td_clock_now_ns(), data, n_bytes, NULL) != TD_OK) {
        g->is_broken = true;
    }
    td_conn_want_flush(g->c);
}

static void on_eof(void *upper)
{
    struct grpc_conn *g = upper;
    td_conn_abort(g->c); /* HTTP/2 has no half-closed connections: open calls are cancelled */
}

static void on_drained(void *upper)
{
    struct grpc_conn *g = upper;
    td_conn_want_flush(g->c);
}

static void on_tick(void *upper, uint64_t now_ms)
{
    struct grpc_conn *g = upper;
    uint32_t limit_ms = td_conn_config(g->c)->idle_timeout_ms;
    if (td_conn_draining(g->c) && limit_ms > RETIRE_IDLE_MS) {
        limit_ms = RETIRE_IDLE_MS;
    }
    td_grpc_tick(g->grpc, td_clock_now_ns());
    if (td_grpc_n_streams(g->grpc) > 0) {
        g->idle_since_ms = 0;
    } else if (g->idle_since_ms == 0) {
        g->idle_since_ms = now_ms;
    } else if (now_ms >= g->idle_since_ms + limit_ms) {
        td_grpc_drain(g->grpc); /* GOAWAY: the client connects again when it has a call */
    }
    td_conn_want_flush(g->c);
}

static void on_conn_drain(void *upper)
{
    struct grpc_conn *g = upper;
    td_grpc_drain(g->grpc);
    td_conn_want_flush(g->c);
}

static void on_closed(void *upper)
{
    struct grpc_conn *g = upper;
    td_grpc_close(g->grpc);
    free(g);
}

static const struct td_conn_ops grpc_ops = {
    .data = on_data,
    .eof = on_eof,
    .flush = on_flush,
    .drained = on_drained,
    .tick = on_tick,
    .drain = on_conn_drain,
    .closed = on_closed,
};

enum td_status td_grpc_serve_conn_open(struct td_conn *c, const struct td_grpc_serve_table *table,
                                       const struct td_conn_ops **ops, void **upper,
                                       struct td_err *err)
{
    struct grpc_conn *g = calloc(1, sizeof(*g));
    if (g == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for a gRPC connection");
    }
    g->c = c;
    g->table = table;
    enum td_status status = td_grpc_server_open(&callbacks, &table->limits, g, &g->grpc, err);
    if (status != TD_OK) {
        free(g);
        return status;
    }
    *ops = &grpc_ops;
    *upper = g;
    return TD_OK;
}
