#include "proto/grpc_internal.h"
#include "proto/grpc_text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_CALL_HEADERS = 8 };

enum td_status td_grpc_client_open(const struct td_grpc_callbacks *callbacks,
                                   const struct td_grpc_limits *limits, void *user,
                                   struct td_grpc **conn, struct td_err *err)
{
    return td_grpc_open(false, callbacks, limits, user, conn, err);
}

static nghttp2_nv pair(struct td_str name, struct td_str value)
{
    return (nghttp2_nv){(uint8_t *)name.ptr, (uint8_t *)value.ptr, name.len, value.len,
                        NGHTTP2_NV_FLAG_NONE};
}

static enum td_status check_meta(const struct td_grpc_call_params *params, struct td_err *err)
{
    for (size_t i = 0; i < params->n_meta; i++) {
        const struct td_grpc_meta *m = &params->meta[i];
        if (!td_grpc_meta_is_name(m->name) || td_str_starts(m->name, TD_STR("grpc-")))
            return td_err_set(err, TD_INVALID, "'%.*s' is no name for metadata", (int)m->name.len,
                              m->name.ptr);
        if (!td_grpc_meta_is_bin(m->name) && !td_grpc_meta_is_value(m->value))
            return td_err_set(err, TD_INVALID, "the metadata '%.*s' has a byte outside 0x20..0x7e",
                              (int)m->name.len, m->name.ptr);
    }
    return TD_OK;
}

/* Writes the request's headers. "-bin" values are encoded into `scratch`, one after the other. */
static enum td_status fill_headers(const struct td_grpc_call_params *params, const char *timeout,
                                   nghttp2_nv *nv, size_t *n_nv, struct td_bytes *scratch)
{
    size_t n = 0, bin_bytes = 0;
    for (size_t i = 0; i < params->n_meta; i++)
        if (td_grpc_meta_is_bin(params->meta[i].name))
            bin_bytes += params->meta[i].value.len / 3 * 4 + 4;
    /* Reserved once, so that the slices into it stay valid. */
    enum td_status st = td_bytes_reserve(scratch, bin_bytes);
    if (st)
        return st;
    nv[n++] = pair(TD_STR(":method"), TD_STR("POST"));
    nv[n++] = pair(TD_STR(":scheme"), params->tls ? TD_STR("https") : TD_STR("http"));
    nv[n++] = pair(TD_STR(":path"), params->path);
    nv[n++] =
        pair(TD_STR(":authority"), params->authority.len ? params->authority : TD_STR("localhost"));
    nv[n++] = pair(TD_STR("te"), TD_STR("trailers"));
    nv[n++] = pair(TD_STR("content-type"), TD_STR("application/grpc"));
    nv[n++] = pair(TD_STR("user-agent"), TD_STR("tensord/" TD_VERSION));
    if (timeout[0])
        nv[n++] = pair(TD_STR("grpc-timeout"), td_str_from(timeout));
    for (size_t i = 0; i < params->n_meta; i++) {
        struct td_str value = params->meta[i].value;
        if (td_grpc_meta_is_bin(params->meta[i].name)) {
            size_t before = scratch->len;
            st = td_grpc_text_base64_encode(value, scratch);
            if (st)
                return st;
            value = (struct td_str){scratch->data + before, scratch->len - before};
        }
        nv[n++] = pair(params->meta[i].name, value);
    }
    *n_nv = n;
    return TD_OK;
}

enum td_status td_grpc_client_call(struct td_grpc *conn, uint64_t now_ns,
                                   const struct td_grpc_call_params *params,
                                   struct td_grpc_stream **s, struct td_err *err)
{
    char timeout[TD_GRPC_TEXT_TIMEOUT_BYTES] = "";
    struct td_bytes scratch = {0};
    size_t n_nv = 0;
    enum td_status st = check_meta(params, err);
    if (st)
        return st;
    conn->now_ns = now_ns > conn->now_ns ? now_ns : conn->now_ns;
    if (conn->broken || conn->draining || nghttp2_session_check_request_allowed(conn->session) == 0)
        return td_err_set(err, TD_UNAVAILABLE, "the connection is closing, no call can begin");
    if (params->timeout_ns)
        td_grpc_text_timeout_format(params->timeout_ns, timeout);
    nghttp2_nv *nv = calloc(N_CALL_HEADERS + params->n_meta, sizeof *nv);
    struct td_grpc_stream *call = nv ? td_grpc_stream_new(conn, 0) : NULL;
    if (!call || fill_headers(params, timeout, nv, &n_nv, &scratch)) {
        st = td_err_set(err, TD_NO_MEMORY, "no memory for a call");
        goto fail;
    }
    nghttp2_data_provider provider = {.source.ptr = call, .read_callback = td_grpc_stream_read};
    call->id = nghttp2_submit_request(conn->session, NULL, nv, n_nv, &provider, call);
    if (call->id < 0) {
        st = td_err_set(err, call->id == NGHTTP2_ERR_NOMEM ? TD_NO_MEMORY : TD_UNAVAILABLE,
                        "begin a call: %s", nghttp2_strerror(call->id));
        goto fail;
    }
    call->kind = TD_GRPC_KIND_CALL;
    call->accepted = true;
    call->user = params->user;
    if (params->timeout_ns)
        call->deadline_ns =
            params->timeout_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + params->timeout_ns;
    td_bytes_deinit(&scratch);
    free(nv);
    *s = call;
    td_grpc_note_output(conn);
    return TD_OK;
fail:
    if (call)
        td_grpc_stream_free(call);
    td_bytes_deinit(&scratch);
    free(nv);
    return st;
}

void td_grpc_stream_half_close(struct td_grpc_stream *s)
{
    if (s->conn->is_server || s->ended)
        return;
    s->ended = true;
    td_grpc_stream_resume(s);
}

void td_grpc_client_headers(struct td_grpc_stream *s, bool end)
{
    struct td_grpc *conn = s->conn;
    struct td_str value;
    if (s->meta_status) {
        td_grpc_stream_refuse(s, TD_GRPC_RESOURCE_EXHAUSTED, td_str_from(s->meta_err.cause));
        return;
    }
    if (s->got_headers)
        return;
    if (td_grpc_meta_last(&s->meta, TD_STR(":status"), &value))
        for (size_t i = 0; i < value.len && i < 3; i++)
            s->http_status = s->http_status * 10 + (value.ptr[i] - '0');
    if (s->http_status / 100 == 1 && !end) {
        s->http_status = 0;
        td_grpc_meta_clear(&s->meta);
        return;
    }
    s->got_headers = true;
    bool typed = td_grpc_meta_last(&s->meta, TD_STR("content-type"), &value) &&
                 td_grpc_text_is_content_type(value);
    char text[96];
    if (s->http_status != 200) {
        snprintf(text, sizeof text, "the server answered HTTP status %d, expected 200",
                 s->http_status);
        td_grpc_stream_refuse(s, td_grpc_code_from_http(s->http_status), td_str_from(text));
    } else if (!typed && !(end && td_grpc_meta_last(&s->meta, TD_STR("grpc-status"), &value))) {
        td_grpc_stream_refuse(s, TD_GRPC_UNKNOWN,
                              TD_STR("the answer's content-type is not application/grpc"));
    } else if (!end && conn->cb.on_headers && s->accepted && !s->reset) {
        conn->cb.on_headers(conn->user, s);
    }
}

void td_grpc_client_expire(struct td_grpc_stream *s)
{
    td_grpc_stream_refuse(s, TD_GRPC_DEADLINE_EXCEEDED, TD_STR("the call's deadline passed"));
}

/* The server's status, when it came. The message is decoded into the stream's text. */
static bool status_from_trailers(struct td_grpc_stream *s)
{
    struct td_str value;
    if (!s->remote_ended || !td_grpc_meta_last(&s->meta, TD_STR("grpc-status"), &value))
        return false;
    unsigned code = 0;
    for (size_t i = 0; i < value.len && i < 3; i++)
        code = value.ptr[i] >= '0' && value.ptr[i] <= '9'
                   ? code * 10 + (unsigned)(value.ptr[i] - '0')
                   : 1000;
    if (value.len == 0 || value.len > 2 || code > TD_GRPC_UNAUTHENTICATED)
        code = TD_GRPC_UNKNOWN;
    struct td_bytes text = {0};
    if (td_grpc_meta_last(&s->meta, TD_STR("grpc-message"), &value))
        td_grpc_text_percent_decode(value, &text);
    td_grpc_stream_set_text(s, (enum td_grpc_code)code, td_bytes_str(&text));
    td_bytes_deinit(&text);
    return true;
}

void td_grpc_client_closed(struct td_grpc_stream *s, bool conn_gone, uint32_t h2_error)
{
    struct td_grpc *conn = s->conn;
    char text[96];
    bool owed = s->accepted;
    s->accepted = false;
    if (!s->has_code && !status_from_trailers(s)) {
        if (conn_gone) {
            td_grpc_stream_set_text(s, TD_GRPC_UNAVAILABLE,
                                    TD_STR("the connection to the server was lost"));
        } else if (s->remote_ended) {
            td_grpc_stream_set_text(s, TD_GRPC_UNKNOWN,
                                    TD_STR("the answer ended without a grpc-status"));
        } else if (s->reset) {
            td_grpc_stream_set_text(s, TD_GRPC_CANCELLED, TD_STR("the call was cancelled here"));
        } else if (h2_error != NGHTTP2_NO_ERROR) {
            snprintf(text, sizeof text, "the server reset the call: %s",
                     nghttp2_http2_strerror(h2_error));
            td_grpc_stream_set_text(s, td_grpc_code_from_reset(h2_error), td_str_from(text));
        } else {
            td_grpc_stream_set_text(s, TD_GRPC_UNKNOWN,
                                    TD_STR("the answer ended without a grpc-status"));
        }
    } else if (s->code == TD_GRPC_OK && td_grpc_frame_is_partial(&s->in)) {
        td_grpc_stream_set_text(s, TD_GRPC_INTERNAL, TD_STR("the answer ended inside a message"));
    }
    s->ended = true;
    s->reset = true;
    s->dropping = true;
    if (owed && conn->cb.on_close)
        conn->cb.on_close(conn->user, s, s->code, (struct td_str){s->text, s->text_len});
}
