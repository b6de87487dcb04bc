#include "daemon/api/http1_conn.h"

#include "daemon/log.h"

#include <stdlib.h>
#include <string.h>

enum {
    KEPT_BYTES = 4096,         /* of input buffer, by an idle connection */
    INPUT_BYTES = 64 * 1024,   /* read ahead while a request runs, before reading stops */
    DISCARD_BYTES = 64 * 1024, /* a refused body up to this is read, to keep the connection */
    OVERHEAD_BYTES = 1 << 20 /* chunk framing that is tolerated, beside 8 bytes per byte of body */
};

/* ---- Refusals ---- */

static void refuse(struct td_http_conn *h, int http_status, const char *code, const char *message)
{
    if (!h->is_refused) {
        h->is_refused = true;
        td_openai_error_set(&h->refusal, http_status,
                            http_status >= 500 ? "server_error" : "invalid_request_error", code,
                            NULL, "%s", message);
    }
}

static void refuse_and_break(struct td_http_conn *h, int http_status, const char *code,
                             const char *message)
{
    refuse(h, http_status, code, message);
    h->is_broken = true;
}

/* ---- Parser callbacks ---- */

static int on_url(llhttp_t *parser, const char *at, size_t n)
{
    struct td_http_conn *h = parser->data;
    if (h->req->url.len == 0) {
        h->req->url.ptr = at;
    }
    h->req->url.len += n; /* the head is parsed in one piece, so the parts lie side by side */
    return 0;
}

static int on_header_field(llhttp_t *parser, const char *at, size_t n)
{
    struct td_http_conn *h = parser->data;
    struct td_http_request *req = h->req;
    if (h->state == TD_HTTP_BODY) {
        refuse_and_break(h, 400, "invalid_request", "Trailers are not accepted.");
        return HPE_USER;
    }
    if (req->n_headers == 0 || req->headers[req->n_headers - 1].has_value) {
        if (req->n_headers == TD_HTTP_MAX_HEADERS) {
            refuse_and_break(h, 431, "headers_too_large", "The request has too many headers.");
            return HPE_USER;
        }
        req->headers[req->n_headers++] = (struct td_http_header_field){.name = {at, 0}};
    }
    req->headers[req->n_headers - 1].name.len += n;
    return 0;
}

static int on_header_value(llhttp_t *parser, const char *at, size_t n)
{
    struct td_http_conn *h = parser->data;
    if (h->state == TD_HTTP_BODY || h->req->n_headers == 0) {
        return HPE_USER;
    }
    struct td_http_header_field *field = &h->req->headers[h->req->n_headers - 1];
    if (!field->has_value) {
        field->has_value = true;
        field->value.ptr = at;
    }
    field->value.len = (size_t)(at + n - field->value.ptr);
    return 0;
}

static int on_headers_complete(llhttp_t *parser)
{
    struct td_http_conn *h = parser->data;
    struct td_http_request *req = h->req;
    parser->upgrade = 0; /* offers to upgrade are ignored, as RFC 9110 7.8 allows */
    req->method = td_str_from(llhttp_method_name((llhttp_method_t)parser->method));
    req->http_minor = parser->http_minor;
    req->keep_alive = llhttp_should_keep_alive(parser) != 0;
    req->is_head = parser->method == HTTP_HEAD;
    req->is_options = parser->method == HTTP_OPTIONS;
    if (parser->http_major != 1 || parser->http_minor > 1) {
        refuse_and_break(h, 505, "http_version", "Only HTTP/1.0 and HTTP/1.1 are spoken here.");
    } else if (parser->method == HTTP_CONNECT) {
        refuse_and_break(h, 405, "method_not_allowed", "This server is no proxy.");
    }
    return h->is_broken ? HPE_USER : 0;
}

static int on_body(llhttp_t *parser, const char *at, size_t n)
{
    struct td_http_conn *h = parser->data;
    struct td_http_request *req = h->req;
    if (h->is_refused) {
        return 0;
    }
    if (n > td_conn_config(h->c)->max_body_bytes - req->body.len) {
        refuse_and_break(h, 413, "body_too_large",
                         "The request body is larger than this server accepts.");
        return HPE_USER;
    }
    if (!td_conn_reserve_body(h->c, n)) {
        refuse_and_break(h, 503, "server_busy",
                         "Too many large requests at once: try again later.");
        return HPE_USER;
    }
    req->reserved_bytes += n;
    if (td_bytes_append(&req->body, at, n) != TD_OK) {
        refuse_and_break(h, 503, "no_memory", "No memory for the request body.");
        return HPE_USER;
    }
    return 0;
}

static int on_message_complete(llhttp_t *parser)
{
    struct td_http_conn *h = parser->data;
    h->complete = true;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
    .on_url = on_url,
    .on_header_field = on_header_field,
    .on_header_value = on_header_value,
    .on_headers_complete = on_headers_complete,
    .on_body = on_body,
    .on_message_complete = on_message_complete,
};

/* ---- Checks of a complete head ---- */

/* What decides where a message ends must have exactly one reading (RFC 9112 6, 11.2). */
static void check_framing(struct td_http_conn *h)
{
    const struct td_http_request *req = h->req;
    size_t n_host = td_http_request_count(req, "host");
    size_t n_length = td_http_request_count(req, "content-length");
    size_t n_coding = td_http_request_count(req, "transfer-encoding");
    if (req->url.len == 0 || !td_http_request_is_clean(req)) {
        refuse_and_break(h, 400, "invalid_request",
                         "The request line or a header holds bytes that may not be there.");
    } else if (n_host > 1 || (n_host == 0 && req->http_minor == 1)) {
        refuse_and_break(h, 400, "invalid_request", "HTTP/1.1 wants exactly one Host header.");
    } else if (n_length + n_coding > 1) {
        refuse_and_break(h, 400, "invalid_request",
                         "Content-Length and Transfer-Encoding must occur once, and not together.");
    } else if (n_coding == 1 && req->http_minor == 0) {
        refuse_and_break(h, 400, "invalid_request", "HTTP/1.0 has no Transfer-Encoding.");
    } else if (n_coding == 1 && !td_http_request_value_is(req, "transfer-encoding", "chunked")) {
        refuse_and_break(h, 501, "transfer_encoding",
                         "The only Transfer-Encoding here is chunked.");
    }
}

static void check_key(struct td_http_conn *h)
{
    struct td_http_request *req = h->req;
    uint32_t number;
    enum td_auth_verdict verdict = td_auth_admit(
        req->route->auth, req->route->role, td_conn_is_local(h->c),
        td_http_header(req, "authorization"), td_http_header(req, "x-api-key"), &number);
    if (verdict == TD_AUTH_ADMITTED) {
        td_log_debug("request admitted remote=%s path=%s key=%s", td_conn_remote(h->c),
                     req->route->path, td_auth_name(req->route->auth, number));
        return;
    }
    td_log_warn("request refused remote=%s path=%s error=\"%s\"", td_conn_remote(h->c),
                req->route->path, td_auth_reason(verdict));
    if (verdict != TD_AUTH_NO_KEY) {
        refuse(h, 403, "permission_denied", td_auth_reason(verdict));
        return;
    }
    refuse(h, 401, "invalid_api_key", "No API key was given, or a wrong one.");
    td_http_set_header(req, "WWW-Authenticate", "Bearer");
}

static void check_target(struct td_http_conn *h)
{
    struct td_http_request *req = h->req;
    enum td_status split = td_http_request_split_url(req);
    if (split == TD_NO_MEMORY) {
        refuse(h, 503, "no_memory", "No memory for the request.");
        return;
    }
    if (split != TD_OK) {
        refuse(h, 400, "invalid_url", "The request target is not a valid path.");
        return;
    }
    if (req->is_options) {
        return; /* asks about the path, calls nothing, and needs no key */
    }
    bool path_known = false;
    req->route = td_route_find(h->routes, req->method, td_bytes_str(&req->path), &path_known);
    if (req->route == NULL) {
        refuse(h, path_known ? 405 : 404, path_known ? "method_not_allowed" : "not_found",
               path_known ? "This path does not serve that method: see the Allow header."
                          : "There is nothing at this path.");
        if (path_known) {
            char allow[64];
            td_route_allow(h->routes, td_bytes_str(&req->path), allow, sizeof(allow));
            td_http_set_header(req, "Allow", allow);
        }
    } else if (req->route->auth != NULL) {
        check_key(h);
    }
}

static void check_body(struct td_http_conn *h)
{
    struct td_http_request *req = h->req;
    struct td_str expect = td_http_header(req, "expect");
    struct td_str coding = td_http_header(req, "content-encoding");
    if (h->parser.content_length > td_conn_config(h->c)->max_body_bytes) {
        refuse_and_break(h, 413, "body_too_large",
                         "The request body is larger than this server accepts.");
    } else if (coding.len > 0 && !td_http_request_value_is(req, "content-encoding", "identity")) {
        refuse(h, 415, "content_encoding", "Compressed request bodies are not accepted.");
    } else if (expect.len > 0 && !td_http_request_value_is(req, "expect", "100-continue")) {
        refuse(h, 417, "expectation_failed", "The only expectation known here is 100-continue.");
    }
    req->expects_continue = expect.len > 0 && req->http_minor == 1;
}

/* ---- From bytes to requests ---- */

static void answer_refusal(struct td_http_conn *h)
{
    struct td_openai_error error = h->refusal;
    if (!h->complete) {
        h->req->keep_alive = false; /* where the next request begins is not known */
    }
    td_http_respond_error(h->req, &error);
}

static void answer_options(struct td_http_conn *h)
{
    char allow[64];
    td_route_allow(h->routes, td_bytes_str(&h->req->path), allow, sizeof(allow));
    td_http_set_header(h->req, "Allow", allow);
    td_http_request_add_preflight(h->req, td_conn_config(h->c)->cors_origin, allow);
    td_http_respond(h->req, 204, NULL, TD_STR(""));
}

static void dispatch(struct td_http_conn *h)
{
    struct td_http_request *req = h->req;
    if (h->is_refused) {
        answer_refusal(h);
    } else if (req->is_options) {
        answer_options(h);
    } else {
        h->state = TD_HTTP_RUNNING;
        req->is_dispatched = true;
        req->route->handler(req, req->route->user);
    }
}

/* The head is in h->head: parses and checks it, and decides about the body. */
static void take_head(struct td_http_conn *h)
{
    struct td_http_request *req = td_http_request_new(h, &h->head);
    if (req == NULL) {
        td_conn_abort(h->c);
        return;
    }
    h->req = req;
    h->complete = false;
    h->is_refused = false;
    h->is_broken = false;
    h->body_wire_bytes = 0;
    h->since_ms = td_conn_now_ms(h->c);
    h->read_ms = h->since_ms;
    llhttp_init(&h->parser, HTTP_REQUEST, &settings);
    h->parser.data = h;
    llhttp_errno_t rc = llhttp_execute(&h->parser, req->head.data, req->head.len);
    if (rc != HPE_OK && rc != HPE_PAUSED) {
        refuse_and_break(h, 400, "invalid_request", "The request is not valid HTTP/1.1.");
    }
    if (!h->is_broken) {
        check_framing(h);
    }
    if (!h->is_broken) {
        check_target(h);
        check_body(h);
    }
    h->state = TD_HTTP_BODY;
    bool is_chunked = td_http_request_count(req, "transfer-encoding") > 0;
    if (h->is_broken || h->complete) {
        dispatch(h);
    } else if (h->is_refused &&
               (is_chunked || req->expects_continue || h->parser.content_length > DISCARD_BYTES)) {
        answer_refusal(h);
    } else if (req->expects_continue) {
        td_conn_write(h->c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    }
}

/* Returns how many bytes of `data` belong to the head; sets *done at its end. Refuses bare CR and LF, NUL and folded
 * lines: each has been read differently by different servers. */
static size_t scan_head(struct td_http_conn *h, const char *data, size_t n, bool *done)
{
    struct td_http_head_scan *s = &h->scan;
    for (size_t i = 0; i < n; i++) {
        char ch = data[i];
        if (s->after_cr) {
            s->after_cr = false;
            if (ch != '\n') {
                refuse_and_break(h, 400, "invalid_request", "A header line ends in a bare CR.");
            } else if (s->line_bytes == 0 && s->n_lines > 0) {
                *done = true;
                return i + 1;
            }
            s->n_lines += s->line_bytes > 0;
            s->line_bytes = 0;
        } else if (ch == '\r') {
            s->after_cr = true;
        } else if (ch == '\n' || ch == '\0') {
            refuse_and_break(h, 400, "invalid_request", "A header line holds a bare LF or a NUL.");
        } else {
            if (s->line_bytes == 0 && s->n_lines > 0 && (ch == ' ' || ch == '\t')) {
                refuse_and_break(h, 400, "invalid_request",
                                 "Folded header lines are not accepted.");
            }
            s->line_bytes++;
        }
        if (h->is_broken) {
            return i + 1;
        }
    }
    return n;
}

/* A head that cannot be parsed has no request to answer: one is made to carry the refusal. */
static void break_off(struct td_http_conn *h)
{
    h->req = td_http_request_new(h, &h->head);
    if (h->req == NULL) {
        td_conn_abort(h->c);
        return;
    }
    h->req->http_minor = 1;
    h->complete = false;
    answer_refusal(h);
}

static size_t read_head(struct td_http_conn *h, const char *data, size_t n)
{
    bool done = false;
    if (h->head.len == 0) {
        h->since_ms = td_conn_now_ms(h->c); /* the head's deadline runs from its first byte */
        h->is_refused = false;
        h->is_broken = false;
    }
    size_t room = td_conn_config(h->c)->max_header_bytes - h->head.len;
    size_t used = scan_head(h, data, n < room ? n : room, &done);
    if (td_bytes_append(&h->head, data, used) != TD_OK) {
        td_conn_abort(h->c);
        return used;
    }
    if (!done && !h->is_broken && used == room) {
        refuse_and_break(h, 431, "headers_too_large",
                         "The request's headers are larger than this server accepts.");
    }
    if (h->is_broken) {
        break_off(h);
    } else if (done) {
        take_head(h);
    }
    return used;
}

static size_t read_body(struct td_http_conn *h, const char *data, size_t n)
{
    llhttp_errno_t rc = llhttp_execute(&h->parser, data, n);
    size_t used = rc == HPE_OK ? n : (size_t)(llhttp_get_error_pos(&h->parser) - data);
    h->read_ms = td_conn_now_ms(h->c);
    h->body_wire_bytes += used;
    if (rc != HPE_OK && rc != HPE_PAUSED) {
        refuse_and_break(h, 400, "invalid_request", "The request body is not valid HTTP/1.1.");
    } else if (!h->is_refused && h->body_wire_bytes > OVERHEAD_BYTES + 9 * h->req->body.len) {
        refuse_and_break(h, 400, "invalid_request", "The request body is mostly chunk framing.");
    }
    if (h->is_broken || h->complete) {
        dispatch(h);
    }
    return used;
}

/* Parses what was read, one request at a time, until one waits for its answer or the input is used up. */
static void process(struct td_http_conn *h)
{
    size_t used = 0;
    while (used < h->in.len && h->state != TD_HTTP_RUNNING && !td_conn_closing(h->c)) {
        if (h->state == TD_HTTP_HEAD &&
            td_conn_queued_bytes(h->c) > td_conn_config(h->c)->write_queue_bytes) {
            td_conn_want_drained(h->c); /* the client does not read its answers: no more requests */
            break;
        }
        const char *data = h->in.data + used;
        size_t n = h->in.len - used;
        used += h->state == TD_HTTP_HEAD ? read_head(h, data, n) : read_body(h, data, n);
    }
    if (td_conn_closing(h->c)) {
        td_bytes_deinit(&h->in);
        return;
    }
    td_bytes_consume(&h->in, used);
    if (h->in.len == 0 && h->in.cap > KEPT_BYTES) {
        td_bytes_deinit(&h->in);
    }
    if (h->in.len > INPUT_BYTES) {
        td_conn_pause(h->c);
    } else {
        td_conn_resume(h->c);
    }
}

/* ---- The connection's calls ---- */

static void on_data(void *upper, const char *data, size_t n_bytes)
{
    struct td_http_conn *h = upper;
    if (td_bytes_append(&h->in, data, n_bytes) != TD_OK) {
        td_conn_abort(h->c);
        return;
    }
    process(h);
}

static void on_eof(void *upper)
{
    struct td_http_conn *h = upper;
    /* A client that closes only its sending side cannot be told from one that is gone; both end a running request. */
    if (h->req != NULL || h->head.len > 0 || h->in.len > 0) {
        td_conn_abort(h->c);
    } else {
        td_conn_finish(h->c);
    }
}

static void on_flush(void *upper)
{
    struct td_http_conn *h = upper;
    if (h->in.len > 0 && h->state != TD_HTTP_RUNNING) {
        process(h);
    }
}

static void on_drained(void *upper)
{
    struct td_http_conn *h = upper;
    if (h->req != NULL && h->req->wants_drain) {
        h->req->wants_drain = false;
        if (h->req->on_drain != NULL) {
            h->req->on_drain(h->req, h->req->on_drain_user);
        }
    } else {
        on_flush(h);
    }
}

static void on_timeout(struct td_http_conn *h)
{
    refuse_and_break(h, 408, "request_timeout", "The request did not arrive in time.");
    if (h->req != NULL) {
        answer_refusal(h);
    } else {
        break_off(h);
    }
}

static void on_tick(void *upper, uint64_t now_ms)
{
    struct td_http_conn *h = upper;
    const struct td_conn_config *config = td_conn_config(h->c);
    if (h->state == TD_HTTP_RUNNING) {
        struct td_http_request *req = h->req;
        if (req->is_streaming && req->ping.len > 0 && td_conn_queued_bytes(h->c) == 0 &&
            now_ms >= req->last_write_ms + config->ping_ms) {
            td_http_reply_piece(req, req->ping);
        }
    } else if (h->state == TD_HTTP_BODY) {
        if (now_ms >= h->read_ms + config->body_idle_ms ||
            now_ms >= h->since_ms + config->body_total_ms) {
            on_timeout(h);
        }
    } else if (h->head.len > 0) {
        if (now_ms >= h->since_ms + config->header_timeout_ms) {
            on_timeout(h);
        }
    } else if (h->in.len == 0 && now_ms >= h->since_ms + config->idle_timeout_ms) {
        td_conn_finish(h->c);
    }
}

static void on_conn_drain(void *upper)
{
    struct td_http_conn *h = upper;
    if (h->req == NULL && h->head.len == 0 && h->in.len == 0) {
        td_conn_finish(h->c);
    }
}

static void on_closed(void *upper)
{
    struct td_http_conn *h = upper;
    if (h->req != NULL) {
        if (h->req->is_dispatched && h->req->on_close != NULL) {
            h->req->on_close(h->req, h->req->on_close_user);
        }
        /* A callback that answers, although it is too late, has ended the request itself. */
        if (h->req != NULL) {
            td_http_reply_drop(h);
        }
    }
    td_bytes_deinit(&h->head);
    td_bytes_deinit(&h->in);
    free(h);
}

static const struct td_conn_ops http_ops = {
    .data = on_data,
    .eof = on_eof,
    .flush = on_flush,
    .drained = on_drained,
    .tick = on_tick,
    .drain = on_conn_drain,
    .closed = on_closed,
};

enum td_status td_http_conn_open(struct td_conn *c, const struct td_route_table *routes,
                                 const struct td_conn_ops **ops, void **upper, struct td_err *err)
{
    struct td_http_conn *h = calloc(1, sizeof(*h));
    if (h == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for an HTTP connection");
    }
    h->c = c;
    h->routes = routes;
    h->since_ms = td_conn_now_ms(c);
    *ops = &http_ops;
    *upper = h;
    return TD_OK;
}
