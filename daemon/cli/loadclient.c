#include "daemon/cli/loadclient.h"

#include "daemon/api/json.h"
#include "daemon/cli/sseread.h"
#include "kernels/base/clock.h"

#include <errno.h>
#include <llhttp.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    READ_BYTES = 1 << 16,
    MAX_HEADER_BYTES = 1 << 16,
    MAX_ERROR_BYTES = 1 << 14,
    MAX_EVENT_BYTES = 4 << 20,
    TRIAL_MS = 5000
};

/* A connection. It is in the list of those with a request, or in that of the idle ones, or it closes. */
struct conn {
    uv_tcp_t tcp;
    uv_connect_t connect;
    uv_write_t write;
    struct td_loadclient *client;
    struct conn *prev, *next;

    llhttp_t parser;
    struct td_sseread events;
    struct td_bytes out;          /* the request, until it was written */
    struct td_bytes field, value; /* of the header that arrives */
    struct td_bytes error;        /* the begin of a body that is no stream */
    bool is_events, is_finished, is_complete;
    bool is_old;   /* has served a request: the server may have closed it meanwhile */
    bool is_heard; /* a byte of this answer has come */
    bool is_writing, is_dead;
    bool is_ended; /* the server sends nothing more */

    struct td_loadrecord *record; /* NULL: idle or closing */
    td_loadclient_done_fn *done;
    void *user;
};

struct td_loadclient {
    struct td_loadclient_params params;
    struct sockaddr_storage address;
    struct td_bytes head; /* of every request, up to its length */
    llhttp_settings_t settings;
    struct conn *busy, *idle;
    size_t n_busy, n_open, n_opened; /* n_open: handles that are not closed yet */
    uint64_t now_ns;                 /* when the bytes came that are looked at */
    char in[READ_BYTES];
};

static void on_connected(uv_connect_t *req, int status);

/* ---- lists ---- */

static void push(struct conn **list, struct conn *k)
{
    k->prev = NULL;
    k->next = *list;
    if (*list)
        (*list)->prev = k;
    *list = k;
}

static void take_out(struct conn **list, struct conn *k)
{
    if (k->prev)
        k->prev->next = k->next;
    else
        *list = k->next;
    if (k->next)
        k->next->prev = k->prev;
}

/* ---- the end of a request, and of a connection ---- */

static void on_closed(uv_handle_t *handle)
{
    struct conn *k = handle->data;

    k->client->n_open--;
    td_sseread_deinit(&k->events);
    td_bytes_deinit(&k->out);
    td_bytes_deinit(&k->field);
    td_bytes_deinit(&k->value);
    td_bytes_deinit(&k->error);
    free(k);
}

static void shut(struct conn *k)
{
    if (!uv_is_closing((uv_handle_t *)&k->tcp))
        uv_close((uv_handle_t *)&k->tcp, on_closed);
}

/* The request has ended as its record says. A connection is kept when all of the answer was read from it. */
static void finish(struct conn *k)
{
    struct td_loadclient *c = k->client;
    struct td_loadrecord *record = k->record;
    bool keep =
        k->is_complete && !k->is_writing && !k->is_ended && llhttp_should_keep_alive(&k->parser);

    record->end_ns = td_clock_now_ns();
    take_out(&c->busy, k);
    c->n_busy--;
    k->record = NULL;
    if (keep) {
        k->is_old = true;
        push(&c->idle, k);
    } else {
        shut(k);
    }
    k->done(k->user, record);
}

static void fail(struct conn *k, enum td_loadrecord_end end, const char *reason)
{
    k->is_complete = false; /* what is still to come must not be read as the next answer */
    td_loadrecord_fail(k->record, end, reason);
    finish(k);
}

/* ---- the answer ---- */

static int on_field(llhttp_t *parser, const char *at, size_t n)
{
    struct conn *k = parser->data;

    return td_bytes_append(&k->field, at, n) ? HPE_USER : 0;
}

static int on_value(llhttp_t *parser, const char *at, size_t n)
{
    struct conn *k = parser->data;

    return td_bytes_append(&k->value, at, n) ? HPE_USER : 0;
}

static int on_value_complete(llhttp_t *parser)
{
    struct conn *k = parser->data;
    struct td_str type = TD_STR("text/event-stream");

    if (k->field.len == 12 && strncasecmp(k->field.data, "content-type", 12) == 0)
        k->is_events =
            k->value.len >= type.len && strncasecmp(k->value.data, type.ptr, type.len) == 0;
    td_bytes_clear(&k->field);
    td_bytes_clear(&k->value);
    return 0;
}

static bool on_event(void *user, struct td_str data, uint64_t first_ns)
{
    struct conn *k = user;

    return td_loadrecord_take_event(k->record, data, first_ns, &k->is_finished);
}

static int on_body(llhttp_t *parser, const char *at, size_t n)
{
    struct conn *k = parser->data;
    struct td_str bytes = {at, n};
    enum td_status s;

    if (k->is_events && llhttp_get_status_code(parser) == 200) {
        s = td_sseread_feed(&k->events, bytes, k->client->now_ns, on_event, k);
        if (s && s != TD_CANCELLED)
            td_loadrecord_fail(k->record, TD_LOADRECORD_BROKEN,
                               "an event of the stream is too long");
        return s ? HPE_USER : 0;
    }
    if (n > MAX_ERROR_BYTES - k->error.len)
        n = MAX_ERROR_BYTES - k->error.len;
    return td_bytes_append(&k->error, at, n) ? HPE_USER : 0;
}

/* 100 (Continue) and its like come before the answer. */
static int on_complete(llhttp_t *parser)
{
    struct conn *k = parser->data;

    k->is_complete = llhttp_get_status_code(parser) >= 200;
    return k->is_complete ? HPE_PAUSED : 0;
}

/* The server's own words about a status that is not 200: of OpenAI's error object, or none. */
static void note_status(struct conn *k, int status)
{
    enum td_loadrecord_end end =
        status == 429 || status == 503 ? TD_LOADRECORD_REFUSED : TD_LOADRECORD_HTTP;
    char text[320];
    json_t *root = NULL;
    const char *message = NULL;

    if (td_json_parse(td_bytes_str(&k->error), 0, &root, NULL) == TD_OK)
        message = json_string_value(json_object_get(json_object_get(root, "error"), "message"));
    snprintf(text, sizeof text, "%d%s%s", status, message ? ": " : "", message ? message : "");
    td_loadrecord_fail(k->record, end, text);
    json_decref(root);
}

static void answer_complete(struct conn *k)
{
    struct td_loadrecord *r = k->record;
    int status = r->http_status;

    if (status != 200)
        note_status(k, status);
    else if (!k->is_events)
        td_loadrecord_fail(r, TD_LOADRECORD_BROKEN, "the answer is no stream of events");
    else if (!k->is_finished)
        td_loadrecord_fail(r, TD_LOADRECORD_BROKEN, "the stream ended before its last event");
    else if (r->n_events == 0 && r->n_output == 0)
        td_loadrecord_fail(r, TD_LOADRECORD_EMPTY, "the answer holds no token");
    else if (r->n_events == 0) /* tokens that have no text: the end is all that was seen of them */
        r->first_ns = r->last_ns;
    finish(k);
}

/* ---- sending ---- */

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct conn *k = handle->data;

    (void)suggested;
    *buf = uv_buf_init(k->client->in, READ_BYTES);
}

static struct conn *open_conn(struct td_loadclient *c)
{
    struct conn *k = calloc(1, sizeof *k);

    if (!k)
        return NULL;
    if (uv_tcp_init(c->params.loop, &k->tcp)) {
        free(k);
        return NULL;
    }
    k->tcp.data = k->connect.data = k->write.data = k;
    k->client = c;
    td_sseread_init(&k->events, MAX_EVENT_BYTES);
    k->field.cap_limit = k->value.cap_limit = MAX_HEADER_BYTES;
    c->n_open++;
    c->n_opened++;
    return k;
}

/* A failure here is reported by the next tick, so that `done` never runs inside of td_loadclient_start. */
static void connect_conn(struct conn *k)
{
    int code = uv_tcp_connect(&k->connect, &k->tcp, (const struct sockaddr *)&k->client->address,
                              on_connected);

    if (code) {
        k->is_dead = true;
        td_loadrecord_fail(k->record, TD_LOADRECORD_CONNECT, uv_strerror(code));
    }
}

static void begin_answer(struct conn *k)
{
    llhttp_init(&k->parser, HTTP_RESPONSE, &k->client->settings);
    k->parser.data = k;
    td_sseread_reset(&k->events);
    td_bytes_clear(&k->field);
    td_bytes_clear(&k->value);
    td_bytes_clear(&k->error);
    k->is_events = k->is_finished = k->is_complete = k->is_heard = false;
}

/* The connection is gone in the middle of a request. One that the server closed while it was idle may take the request with
 * it: that is no fault of the server, and the request goes out again. */
static void lose(struct conn *k, const char *reason)
{
    struct td_loadclient *c = k->client;
    struct conn *fresh = k->is_old && !k->is_heard ? open_conn(c) : NULL;

    if (!fresh) {
        fail(k, TD_LOADRECORD_BROKEN, reason);
        return;
    }
    fresh->record = k->record;
    fresh->done = k->done;
    fresh->user = k->user;
    k->record = NULL;
    take_out(&c->busy, k);
    push(&c->busy, fresh);
    /* A write under way still reads the old one's bytes. */
    if (td_bytes_append_str(&fresh->out, td_bytes_str(&k->out)))
        fresh->is_dead = true;
    shut(k);
    begin_answer(fresh);
    if (fresh->is_dead)
        td_loadrecord_fail(fresh->record, TD_LOADRECORD_BROKEN, "no memory to send it again");
    else
        connect_conn(fresh);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct conn *k = stream->data;
    llhttp_errno_t code;

    if (n == 0)
        return;
    k->client->now_ns = td_clock_now_ns();
    if (!k->record) { /* idle: the server closes it, or sends what nobody asked for */
        take_out(&k->client->idle, k);
        shut(k);
        return;
    }
    if (n < 0 && n != UV_EOF) {
        lose(k, uv_strerror((int)n));
        return;
    }
    k->is_heard |= n > 0;
    k->is_ended |= n < 0;
    code = n > 0 ? llhttp_execute(&k->parser, buf->base, (size_t)n) : llhttp_finish(&k->parser);
    k->record->http_status = llhttp_get_status_code(&k->parser);
    if (k->record->end != TD_LOADRECORD_OK)
        fail(k, k->record->end, "");
    else if (k->is_complete)
        answer_complete(k);
    else if (n < 0)
        lose(k, "the connection was closed within the answer");
    else if (code != HPE_OK)
        fail(k, TD_LOADRECORD_BROKEN, "the answer is no HTTP/1.1");
}

static void on_written(uv_write_t *req, int status)
{
    struct conn *k = req->data;

    k->is_writing = false;
    /* The server may have refused the request before it was whole: its answer can still be read. */
    (void)status;
}

static void send_out(struct conn *k)
{
    uv_buf_t buf = uv_buf_init(k->out.data, (unsigned)k->out.len);
    int code = uv_write(&k->write, (uv_stream_t *)&k->tcp, &buf, 1, on_written);

    k->is_writing = code == 0;
    if (code) {
        k->is_dead = true;
        td_loadrecord_fail(k->record, TD_LOADRECORD_BROKEN, uv_strerror(code));
    }
}

static void on_connected(uv_connect_t *req, int status)
{
    struct conn *k = req->data;

    if (uv_is_closing((uv_handle_t *)&k->tcp))
        return;
    if (!status) {
        uv_tcp_nodelay(&k->tcp, 1);
        status = uv_read_start((uv_stream_t *)&k->tcp, on_alloc, on_read);
    }
    if (status)
        fail(k, TD_LOADRECORD_CONNECT, uv_strerror(status));
    else
        send_out(k);
}

enum td_status td_loadclient_start(struct td_loadclient *c, struct td_str body,
                                   struct td_loadrecord *record, td_loadclient_done_fn *done,
                                   void *user)
{
    struct conn *k = c->idle;
    enum td_status s;

    if (k)
        take_out(&c->idle, k);
    else
        k = open_conn(c);
    if (!k)
        return TD_NO_MEMORY;
    td_bytes_clear(&k->out);
    s = td_bytes_append_str(&k->out, td_bytes_str(&c->head));
    s = s ? s : td_bytes_appendf(&k->out, "Content-Length: %zu\r\n\r\n", body.len);
    s = s ? s : td_bytes_append_str(&k->out, body);
    if (s) {
        shut(k);
        return s;
    }
    k->record = record;
    k->done = done;
    k->user = user;
    begin_answer(k);
    push(&c->busy, k);
    c->n_busy++;
    record->sent_ns = td_clock_now_ns();
    if (k->is_old)
        send_out(k);
    else
        connect_conn(k);
    return TD_OK;
}

/* ---- the whole ---- */

void td_loadclient_tick(struct td_loadclient *c, uint64_t before_ns)
{
    struct conn *next;

    for (struct conn *k = c->busy; k; k = next) {
        next = k->next;
        if (k->is_dead)
            fail(k, k->record->end, "");
        else if (k->record->sent_ns < before_ns)
            fail(k, TD_LOADRECORD_TIMEOUT, "no whole answer within --request-timeout");
    }
}

void td_loadclient_cancel(struct td_loadclient *c)
{
    while (c->busy)
        fail(c->busy, TD_LOADRECORD_CANCELLED, "stopped");
}

size_t td_loadclient_under_way(const struct td_loadclient *c)
{
    return c->n_busy;
}

size_t td_loadclient_connections(const struct td_loadclient *c)
{
    return c->n_opened;
}

/* Whether somebody answers there; blocks for TRIAL_MS at most. 0 or an errno. */
static int try_address(const struct addrinfo *a)
{
    int fd = socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol);
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    int code = 0;
    socklen_t size = sizeof code;

    if (fd < 0)
        return errno;
    if (connect(fd, a->ai_addr, a->ai_addrlen) != 0) {
        code = errno;
        if (code == EINPROGRESS) {
            code = poll(&p, 1, TRIAL_MS) > 0 ? 0 : ETIMEDOUT;
            if (!code)
                getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &size);
        }
    }
    close(fd);
    return code;
}

static enum td_status find_address(struct td_loadclient *c, struct td_err *err)
{
    const struct td_client_url *u = c->params.url;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list = NULL;
    int code = getaddrinfo(u->host, u->port, &hints, &list);
    int failed = ENOENT;

    if (code)
        return td_err_set(err, TD_UNAVAILABLE, "the host '%s' of --url: %s", u->host,
                          gai_strerror(code));
    for (const struct addrinfo *a = list; a && failed; a = a->ai_next) {
        failed = try_address(a);
        if (!failed)
            memcpy(&c->address, a->ai_addr, a->ai_addrlen);
    }
    freeaddrinfo(list);
    return failed ? td_err_set(err, TD_UNAVAILABLE, "no server answers at %s port %s: %s", u->host,
                               u->port, strerror(failed))
                  : TD_OK;
}

enum td_status td_loadclient_open(const struct td_loadclient_params *params,
                                  struct td_loadclient **out, struct td_err *err)
{
    const struct td_client_url *u = params->url;
    struct td_loadclient *c = calloc(1, sizeof *c);
    bool bracket = strchr(u->host, ':') != NULL;
    enum td_status s;

    if (!c)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the connections");
    c->params = *params;
    llhttp_settings_init(&c->settings);
    c->settings.on_header_field = on_field;
    c->settings.on_header_value = on_value;
    c->settings.on_header_value_complete = on_value_complete;
    c->settings.on_body = on_body;
    c->settings.on_message_complete = on_complete;
    s = td_bytes_appendf(&c->head,
                         "POST %s%s HTTP/1.1\r\nHost: %s%s%s:%s\r\nUser-Agent: tensord/" TD_VERSION
                         "\r\nAccept: text/event-stream\r\nContent-Type: application/json\r\n",
                         u->prefix, params->path, bracket ? "[" : "", u->host, bracket ? "]" : "",
                         u->port);
    if (!s && params->api_key)
        s = td_bytes_appendf(&c->head, "Authorization: Bearer %s\r\n", params->api_key);
    s = s ? td_err_set(err, s, "no memory for the connections") : find_address(c, err);
    if (s) {
        td_loadclient_close(c);
        return s;
    }
    *out = c;
    return TD_OK;
}

void td_loadclient_close(struct td_loadclient *c)
{
    if (!c)
        return;
    td_loadclient_cancel(c);
    while (c->idle) {
        struct conn *k = c->idle;

        take_out(&c->idle, k);
        shut(k);
    }
    while (c->n_open > 0)
        uv_run(c->params.loop, UV_RUN_ONCE);
    td_bytes_deinit(&c->head);
    free(c);
}
