/* An HTTP/1.1 connection that is fed what a client sends. The first byte says how the input is cut. The input is served
 * twice, whole and cut: both must give the same requests and the same answers, or a proxy in front of us could be made to
 * see other requests than we do. The connection layer is this file's own; http1*.c knows no other. */
#include "tests/fuzz/fuzz.h"

#include "daemon/api/conn.h"
#include "daemon/api/http1.h"
#include "daemon/api/sse.h"

enum later_kind { LATER_NONE, LATER_PLAIN, LATER_SSE };

/* Stands for conn.c's, which is not linked because every function of it that http1*.c calls is here. */
struct td_conn {
    struct td_conn_config config;
    const struct td_conn_ops *ops;
    void *upper;
    bool closing, want_flush, want_drained;
    size_t reserved_bytes;
    uint64_t now_ms;
    struct td_bytes out;     /* not yet taken by the client */
    struct td_bytes log;     /* requests as the handlers see them, then the bytes of the answers */
    struct td_bytes answers; /* taken by the client */
    struct td_http_request *later; /* waits for its answer */
    enum later_kind kind;
    int n_pieces; /* of the stream that are left */
};

static struct td_conn *serving; /* the one that is fed: handlers are not told theirs */

/* ---- The connection layer ---- */

const struct td_conn_config *td_conn_config(const struct td_conn *c)
{
    return &c->config;
}

uint64_t td_conn_now_ms(const struct td_conn *c)
{
    return c->now_ms;
}

bool td_conn_draining(const struct td_conn *c)
{
    return c->config.max_connections == 0; /* never */
}

bool td_conn_is_local(const struct td_conn *c)
{
    return !c->closing;
}

const char *td_conn_remote(const struct td_conn *c)
{
    return c->closing ? "" : "127.0.0.1:1";
}

enum td_status td_conn_write(struct td_conn *c, const void *data, size_t n_bytes)
{
    if (c->closing)
        return TD_CANCELLED;
    FUZZ_CHECK(td_bytes_append(&c->out, data, n_bytes) == TD_OK);
    return TD_OK;
}

size_t td_conn_queued_bytes(const struct td_conn *c)
{
    return c->out.len;
}

void td_conn_want_flush(struct td_conn *c)
{
    c->want_flush = true;
}

void td_conn_want_drained(struct td_conn *c)
{
    c->want_drained = true;
}

/* Input is handed over in any case: what the loop has read comes after a pause too. */
void td_conn_pause(struct td_conn *c)
{
    (void)c;
}

void td_conn_resume(struct td_conn *c)
{
    (void)c;
}

void td_conn_finish(struct td_conn *c)
{
    c->closing = true;
}

void td_conn_abort(struct td_conn *c)
{
    c->closing = true;
}

bool td_conn_closing(const struct td_conn *c)
{
    return c->closing;
}

bool td_conn_reserve_body(struct td_conn *c, size_t n_bytes)
{
    if (n_bytes > c->config.max_buffered_bytes - c->reserved_bytes)
        return false;
    c->reserved_bytes += n_bytes;
    return true;
}

void td_conn_release_body(struct td_conn *c, size_t n_bytes)
{
    FUZZ_CHECK(n_bytes <= c->reserved_bytes);
    c->reserved_bytes -= n_bytes;
}

/* ---- Handlers ---- */

static void note(struct td_str s)
{
    FUZZ_CHECK(td_bytes_appendf(&serving->log, "%zu:", s.len) == TD_OK);
    FUZZ_CHECK(td_bytes_append_str(&serving->log, s) == TD_OK);
}

static void see(struct td_http_request *req)
{
    struct td_str path = td_http_path(req), value = {"", 0};

    FUZZ_CHECK(path.len > 0 && memchr(path.ptr, '\0', path.len) == NULL);
    FUZZ_CHECK(td_http_body(req).len <= serving->config.max_body_bytes);
    note(td_http_method(req));
    note(path);
    note(td_http_tail(req));
    note(td_http_body(req));
    note(td_http_header(req, "host"));
    if (td_http_query(req, "q", &value))
        note(value);
}

static void handle_echo(struct td_http_request *req, void *user)
{
    (void)user;
    see(req);
    td_http_set_header(req, "X-Echo", "1");
    td_http_respond(req, 200, "text/plain", td_http_body(req));
}

static void on_later_close(struct td_http_request *req, void *user)
{
    struct td_conn *c = user;

    FUZZ_CHECK(c->later == req);
    c->later = NULL;
}

static void handle_later(struct td_http_request *req, void *user)
{
    struct td_bytes body = {0};

    see(req);
    td_http_take_body(req, &body);
    td_bytes_deinit(&body);
    FUZZ_CHECK(serving->later == NULL); /* one request at a time */
    serving->later = req;
    serving->kind = user ? LATER_SSE : LATER_PLAIN;
    serving->n_pieces = 30;
    td_http_on_close(req, on_later_close, serving);
    if (user)
        td_sse_begin(req, NULL, NULL);
}

static void answer_later(struct td_conn *c)
{
    struct td_http_request *req = c->later;

    if (c->kind == LATER_SSE && c->n_pieces > 0) {
        while (c->n_pieces > 0 && td_sse_event(req, TD_STR("a piece\nof text")) == TD_OK)
            c->n_pieces--;
        return;
    }
    c->later = NULL;
    if (c->kind == LATER_SSE)
        td_sse_done(req);
    else
        td_http_respond(req, 200, "text/plain", TD_STR("later"));
}

/* ---- One connection ---- */

static const struct td_route_table *open_routes(void)
{
    static char sse[] = "sse";
    static struct td_auth keys; /* reachable until the process ends, as the table */
    struct td_route_table *table = NULL;
    const struct td_route list[] = {
        {.method = "GET", .path = "/a", .handler = handle_echo},
        {.method = "POST", .path = "/a", .handler = handle_echo},
        {.method = "POST", .path = "/l", .handler = handle_later},
        {.method = "POST", .path = "/s", .handler = handle_later, .user = sse},
        {.method = "GET", .path = "/t/*", .handler = handle_echo},
        {.method = "GET", .path = "/k", .auth = &keys, .handler = handle_echo},
    };

    FUZZ_CHECK(td_auth_add(&keys, TD_STR("key"), NULL) == TD_OK);
    FUZZ_CHECK(td_route_table_open(&table, NULL) == TD_OK);
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        FUZZ_CHECK(td_route_add(table, &list[i], NULL) == TD_OK);
    return table;
}

/* What happens on the loop after input was read: late answers, a client that takes its bytes, what was asked for. */
static void settle(struct td_conn *c)
{
    while (!c->closing && (c->later || c->want_flush || c->want_drained || c->out.len > 0)) {
        if (c->later)
            answer_later(c);
        if (c->want_flush && !c->closing) {
            c->want_flush = false;
            c->ops->flush(c->upper);
        }
        FUZZ_CHECK(td_bytes_append_str(&c->answers, td_bytes_str(&c->out)) == TD_OK);
        td_bytes_clear(&c->out);
        if (c->want_drained && !c->closing) {
            c->want_drained = false;
            c->ops->drained(c->upper);
        }
    }
}

/* Blanks what may differ: the dates and, of a last answer that is a refusal, all but its status. Which of two faults in
 * one body is named first depends on the pieces. */
static void blank(struct td_bytes *b)
{
    static const char date[] = "Date: ", line[] = "HTTP/1.1 ";
    size_t last = b->len;

    for (size_t i = 0; i + sizeof date + 29 < b->len; i++) {
        if (memcmp(b->data + i, date, sizeof date - 1) == 0)
            memset(b->data + i + sizeof date - 1, '-', 29);
        if (memcmp(b->data + i, line, sizeof line - 1) == 0)
            last = i + sizeof line - 1;
    }
    if (last < b->len && b->data[last] >= '4')
        b->len = last + 3;
}

/* Serves `in` in pieces of `cut` bytes; returns what was seen and answered (owned). */
static struct td_bytes serve(struct td_str in, size_t cut, bool times_out)
{
    static const struct td_route_table *routes;
    struct td_conn c = {.config = {.max_connections = 1,
                                   .header_timeout_ms = 10,
                                   .body_idle_ms = 10,
                                   .body_total_ms = 100,
                                   .idle_timeout_ms = 10,
                                   .ping_ms = 5,
                                   .write_queue_bytes = 512,
                                   .max_header_bytes = 1024,
                                   .max_body_bytes = 512,
                                   .max_buffered_bytes = 600,
                                   .cors_origin = "*"}};

    if (!routes)
        routes = open_routes();
    serving = &c;
    FUZZ_CHECK(td_http_conn_open(&c, routes, &c.ops, &c.upper, NULL) == TD_OK);
    while (in.len > 0 && !c.closing) {
        size_t n = in.len < cut ? in.len : cut;

        c.ops->data(c.upper, in.ptr, n);
        settle(&c);
        in = (struct td_str){in.ptr + n, in.len - n};
    }
    c.now_ms = 1000;
    if (!c.closing && times_out)
        c.ops->tick(c.upper, c.now_ms);
    if (!c.closing)
        c.ops->eof(c.upper);
    settle(&c);
    c.ops->closed(c.upper);
    FUZZ_CHECK(c.later == NULL && c.reserved_bytes == 0);
    FUZZ_CHECK(td_bytes_append_str(&c.answers, td_bytes_str(&c.out)) == TD_OK);
    blank(&c.answers);
    note(td_bytes_str(&c.answers));
    td_bytes_deinit(&c.answers);
    td_bytes_deinit(&c.out);
    return c.log;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t choice;
    struct td_str in = fuzz_split(data, size, &choice);
    struct td_bytes whole = serve(in, SIZE_MAX, choice & 1);
    struct td_bytes cut = serve(in, (size_t)(choice >> 1) + 1, choice & 1);

    if (!td_str_eq(td_bytes_str(&whole), td_bytes_str(&cut)))
        fprintf(stderr, "whole:\n%s\ncut:\n%s\n", whole.data, cut.data);
    FUZZ_CHECK(td_str_eq(td_bytes_str(&whole), td_bytes_str(&cut)));
    td_bytes_deinit(&cut);
    td_bytes_deinit(&whole);
    return 0;
}
