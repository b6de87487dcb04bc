#include "api_server.h"

#include "daemon/api/auth.h"
#include "daemon/api/json.h"
#include "daemon/api/openai.h"

static atomic_int n_closes;   /* on_close calls */
static atomic_int n_handled;  /* handler calls */
static atomic_int n_drains;   /* on_drain calls */
static atomic_int n_finished; /* streams written to their end */
static atomic_int max_queued; /* pieces queued before TD_BUSY */
static struct td_auth keys;
static struct td_route_table *routes;
static struct api_server *server;

/* ---- Handlers, on the loop thread ---- */

static void count_close(struct td_http_request *req, void *user)
{
    (void)req;
    (void)user;
    atomic_fetch_add(&n_closes, 1);
}

static void handle_echo(struct td_http_request *req, void *user)
{
    (void)user;
    atomic_fetch_add(&n_handled, 1);
    td_http_on_close(req, count_close, NULL);
    td_http_respond(req, 200, "application/octet-stream", td_http_body(req));
}

static void handle_show(struct td_http_request *req, void *user)
{
    (void)user;
    char text[1024];
    struct td_str query = {"", 0};
    bool has_query = td_http_query(req, "q", &query);
    struct td_str method = td_http_method(req);
    struct td_str path = td_http_path(req);
    struct td_str tail = td_http_tail(req);
    struct td_str header = td_http_header(req, "x-test");
    atomic_fetch_add(&n_handled, 1);
    snprintf(text, sizeof(text), "method=%.*s path=%.*s tail=%.*s q=%s:%.*s header=%s:%.*s.",
             (int)method.len, method.ptr, (int)path.len, path.ptr, (int)tail.len, tail.ptr,
             has_query ? "yes" : "no", (int)query.len, query.ptr, header.ptr != NULL ? "yes" : "no",
             (int)header.len, header.ptr != NULL ? header.ptr : "");
    td_http_set_header(req, "X-Request-Id", "r1");
    td_http_set_header(req, "X-Bad", "a\r\nEvil: 1");
    td_http_respond(req, 200, "text/plain", td_str_from(text));
}

struct later {
    uv_timer_t timer;
    struct td_http_request *req; /* NULL once the client went away */
    int n_left;
};

static void free_later(uv_handle_t *handle)
{
    free(handle->data);
}

static void later_closed(struct td_http_request *req, void *user)
{
    struct later *l = user;
    assert_ptr_equal(l->req, req);
    l->req = NULL;
    atomic_fetch_add(&n_closes, 1);
    uv_close((uv_handle_t *)&l->timer, free_later);
}

static void later_tick(uv_timer_t *timer)
{
    struct later *l = timer->data;
    if (l->n_left < 0) {
        td_http_respond(l->req, 200, "text/plain", TD_STR("later"));
    } else if (l->n_left > 0) {
        char piece[32];
        snprintf(piece, sizeof(piece), "piece %d;", l->n_left--);
        td_http_stream_write(l->req, td_str_from(piece));
        return;
    } else {
        td_http_stream_end(l->req);
    }
    atomic_fetch_add(&n_finished, 1);
    uv_close((uv_handle_t *)timer, free_later);
}

static void start_later(struct td_http_request *req, int n_left)
{
    struct later *l = calloc(1, sizeof(*l));
    atomic_fetch_add(&n_handled, 1);
    l->req = req;
    l->n_left = n_left;
    l->timer.data = l;
    uv_timer_init(&server->loop, &l->timer);
    uv_timer_start(&l->timer, later_tick, 10, 10);
    td_http_on_close(req, later_closed, l);
}

static void handle_later(struct td_http_request *req, void *user)
{
    (void)user;
    start_later(req, -1);
}

static void handle_stream(struct td_http_request *req, void *user)
{
    (void)user;
    td_http_stream_begin(req, 200, "text/plain", NULL, NULL);
    start_later(req, 3);
}

static void handle_endless(struct td_http_request *req, void *user)
{
    (void)user;
    td_http_stream_begin(req, 200, "text/plain", NULL, NULL);
    start_later(req, 1000000);
}

static void handle_never(struct td_http_request *req, void *user)
{
    (void)user;
    atomic_fetch_add(&n_handled, 1);
    td_http_on_close(req, count_close, NULL);
}

enum { FLOOD_PIECE = 10000, FLOOD_PIECES = 3000 };
static int flood_left;

static void flood(struct td_http_request *req, void *user)
{
    static char piece[FLOOD_PIECE];
    memset(piece, 'f', sizeof(piece));
    int n = 0;
    if (user != NULL) {
        atomic_fetch_add(&n_drains, 1);
    }
    while (flood_left > 0) {
        enum td_status status = td_http_stream_write(req, (struct td_str){piece, sizeof(piece)});
        if (status != TD_OK) {
            if (n > atomic_load(&max_queued)) {
                atomic_store(&max_queued, n);
            }
            return;
        }
        flood_left--;
        n++;
    }
    atomic_fetch_add(&n_finished, 1);
    td_http_stream_end(req);
}

static void handle_flood(struct td_http_request *req, void *user)
{
    (void)user;
    flood_left = FLOOD_PIECES;
    td_http_on_close(req, count_close, NULL);
    td_http_stream_begin(req, 200, "text/plain", flood, &flood_left);
    flood(req, NULL);
}

static void handle_error(struct td_http_request *req, void *user)
{
    (void)user;
    struct td_openai_error e;
    struct td_str wait = {"", 0};
    if (td_http_query(req, "wait", &wait)) {
        td_http_set_header(req, "X-Retry-After", "no");
        td_http_set_header(req, "retry-after", wait.ptr);
    }
    td_openai_error_set(&e, 429, "rate_limit_error", "server_busy", NULL, "try again");
    td_http_respond_error(req, &e);
}

/* ---- Set-up ---- */

static void add_route(const char *method, const char *path, td_http_handler_fn handler,
                      const struct td_auth *auth)
{
    const struct td_route route = {
        .method = method, .path = path, .handler = handler, .auth = auth};
    assert_int_equal(td_route_add(routes, &route, NULL), TD_OK);
}

static void start_server(const struct td_conn_config *config)
{
    n_closes = n_handled = n_drains = n_finished = max_queued = 0;
    memset(&keys, 0, sizeof(keys));
    assert_int_equal(td_auth_add(&keys, TD_STR("sk-test"), NULL), TD_OK);
    assert_int_equal(td_route_table_open(&routes, NULL), TD_OK);
    add_route("POST", "/echo", handle_echo, NULL);
    add_route("GET", "/show", handle_show, NULL);
    add_route("GET", "/show/*", handle_show, NULL);
    add_route("GET", "/later", handle_later, NULL);
    add_route("GET", "/stream", handle_stream, NULL);
    add_route("GET", "/endless", handle_endless, NULL);
    add_route("GET", "/never", handle_never, NULL);
    add_route("GET", "/flood", handle_flood, NULL);
    add_route("GET", "/error", handle_error, NULL);
    add_route("POST", "/private", handle_echo, &keys);
    server = api_server_start(config, &(struct td_conn_service){.routes = routes});
}

static int setup(void **state)
{
    (void)state;
    struct td_conn_config config;
    td_conn_config_default(&config);
    config.max_body_bytes = 1 << 20;
    config.max_buffered_bytes = 3 << 20;
    config.cors_origin = "https://page.example";
    config.linger_ms = 300;
    start_server(&config);
    return 0;
}

static int setup_impatient(void **state)
{
    (void)state;
    struct td_conn_config config;
    td_conn_config_default(&config);
    config.header_timeout_ms = 200;
    config.body_idle_ms = 200;
    config.body_total_ms = 600;
    config.idle_timeout_ms = 200;
    config.write_stall_ms = 300;
    config.linger_ms = 100;
    config.max_connections = 4;
    start_server(&config);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    api_server_stop(server);
    td_route_table_close(routes);
    return 0;
}

/* ---- Client helpers ---- */

static const char *exchange(const char *request)
{
    return api_exchange(server, request, strlen(request));
}

static const char *body_of(const char *response)
{
    const char *body = strstr(response, "\r\n\r\n");
    assert_non_null(body);
    return body + 4;
}

static void assert_error_body(const char *response, int status, const char *code)
{
    assert_int_equal(api_status_of(response), status);
    json_t *v = NULL;
    assert_int_equal(td_json_parse(td_str_from(body_of(response)), 0, &v, NULL), TD_OK);
    json_t *e = json_object_get(v, "error");
    assert_true(json_is_string(json_object_get(e, "message")));
    assert_true(json_is_string(json_object_get(e, "type")));
    assert_non_null(json_object_get(e, "param"));
    assert_string_equal(json_string_value(json_object_get(e, "code")), code);
    json_decref(v);
}

static size_t count(const char *text, const char *needle)
{
    size_t n = 0;
    for (const char *p = strstr(text, needle); p != NULL; p = strstr(p + 1, needle)) {
        n++;
    }
    return n;
}

/* ---- Tests ---- */

static void test_http1_gives_the_handler_the_request(void **state)
{
    (void)state;
    const char *r = exchange("GET /show/a%20b%C3%A4?x=1&q=c+d%2F&q=2 HTTP/1.1\r\nHost: h\r\n"
                             "X-TEST:  some value \t\r\nConnection: close\r\n\r\n");
    assert_int_equal(api_status_of(r), 200);
    assert_string_equal(body_of(r), "method=GET path=/show/a b\xc3\xa4 tail=a b\xc3\xa4 q=yes:c d/ "
                                    "header=yes:some value.");
    assert_non_null(strstr(r, "\r\nContent-Type: text/plain\r\n"));
    assert_non_null(strstr(r, "\r\nX-Request-Id: r1\r\n"));
    assert_non_null(strstr(r, "\r\nConnection: close\r\n"));
    assert_non_null(strstr(r, "\r\nAccess-Control-Allow-Origin: https://page.example\r\n"));
    assert_non_null(strstr(r, " GMT\r\n"));
    assert_null(strstr(r, "Evil"));
    r = exchange("GET http://h/show HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_string_equal(body_of(r), "method=GET path=/show tail= q=no: header=no:.");
}

static void test_http1_answers_head_without_a_body(void **state)
{
    (void)state;
    const char *r = exchange("HEAD /show HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_int_equal(api_status_of(r), 200);
    assert_non_null(strstr(r, "\r\nContent-Length: 46\r\n"));
    assert_string_equal(body_of(r), "");
    r = exchange("HEAD /stream HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_int_equal(api_status_of(r), 200);
    assert_string_equal(body_of(r), "");
}

static void test_http1_answers_options_and_preflights(void **state)
{
    (void)state;
    const char *r =
        exchange("OPTIONS /private HTTP/1.1\r\nHost: h\r\nOrigin: https://page.example\r\n"
                 "Access-Control-Request-Method: POST\r\n"
                 "Access-Control-Request-Headers: authorization,x-stainless-os\r\n"
                 "Connection: close\r\n\r\n");
    assert_int_equal(api_status_of(r), 204);
    assert_non_null(strstr(r, "\r\nAllow: POST, OPTIONS\r\n"));
    assert_non_null(
        strstr(r, "\r\nAccess-Control-Allow-Headers: authorization,x-stainless-os\r\n"));
    assert_null(strstr(r, "Content-Length"));
    r = exchange("OPTIONS * HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_int_equal(api_status_of(r), 204);
}

static void test_http1_tells_unknown_paths_and_methods(void **state)
{
    (void)state;
    const char *r = exchange("GET /nothing HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_error_body(r, 404, "not_found");
    r = exchange("DELETE /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_error_body(r, 405, "method_not_allowed");
    assert_non_null(strstr(r, "\r\nAllow: POST, OPTIONS\r\n"));
    r = exchange("GET /bad%zz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_error_body(r, 400, "invalid_url");
    r = exchange("GET /show%00 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_error_body(r, 400, "invalid_url");
    r = exchange("CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_int_equal(api_status_of(r), 405);
    assert_int_equal(n_handled, 0);
}

static void test_http1_asks_for_a_key_before_it_reads_the_body(void **state)
{
    (void)state;
    const char *r = exchange("POST /private HTTP/1.1\r\nHost: h\r\nContent-Length: 900000\r\n\r\n");
    assert_error_body(r, 401, "invalid_api_key");
    assert_non_null(strstr(r, "\r\nWWW-Authenticate: Bearer\r\n"));
    r = exchange("POST /private HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-tesT\r\n"
                 "Content-Length: 1\r\nConnection: close\r\n\r\nx");
    assert_error_body(r, 401, "invalid_api_key");
    assert_int_equal(n_handled, 0);
    r = exchange("POST /private HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-test\r\n"
                 "Content-Length: 1\r\nConnection: close\r\n\r\nx");
    assert_int_equal(api_status_of(r), 200);
    r = exchange("POST /private HTTP/1.1\r\nHost: h\r\nX-Api-Key: sk-test\r\n"
                 "Content-Length: 1\r\nConnection: close\r\n\r\nx");
    assert_int_equal(api_status_of(r), 200);
}

/* The probes are ways in which two servers have read one byte stream as different requests. Each hides "GET /show" where
 * only a wrong reading finds it; none may reach a handler, and the connection must end. */
static void test_http1_refuses_every_smuggling_probe(void **state)
{
    (void)state;
#define HIDDEN "GET /show HTTP/1.1\r\nHost: h\r\n\r\n"
    static const struct {
        const char *name;
        const char *request;
    } probes[] = {
        {"length and chunked",
         "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
         "0\r\n\r\n" HIDDEN},
        {"chunked and length",
         "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"
         "0\r\n\r\n" HIDDEN},
        {"two lengths",
         "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 33\r\n"
         "\r\n" HIDDEN},
        {"two equal lengths",
         "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n" HIDDEN},
        {"list of lengths",
         "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 0, 33\r\n\r\n" HIDDEN},
        {"space before the colon",
         "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length : 33\r\n\r\n" HIDDEN},
        {"signed length", "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: +0\r\n\r\n" HIDDEN},
        {"negative length", "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n" HIDDEN},
        {"huge length",
         "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551616\r\n\r\n" HIDDEN},
        {"other coding",
         "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" HIDDEN},
        {"coding after chunked",
         "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n"
         "0\r\n\r\n" HIDDEN},
        {"coding before chunked",
         "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"
         "0\r\n\r\n" HIDDEN},
        {"two codings", "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
                        "Transfer-Encoding: identity\r\n\r\n0\r\n\r\n" HIDDEN},
        {"chunked in HTTP/1.0",
         "POST /echo HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" HIDDEN},
        {"folded line", "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n "
                        "chunked\r\n\r\n0\r\n\r\n" HIDDEN},
        {"folded by a tab",
         "POST /echo HTTP/1.1\r\nHost: h\r\nX: a\r\n\tContent-Length: 33\r\n\r\n" HIDDEN},
        {"bare LF after a header",
         "POST /echo HTTP/1.1\r\nHost: h\r\nX: a\nContent-Length: 33\r\n\r\n" HIDDEN},
        {"bare LF as the end", "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 33\r\n\n" HIDDEN},
        {"bare CR in a value",
         "POST /echo HTTP/1.1\r\nHost: h\r\nX: a\rContent-Length: 33\r\n\r\n" HIDDEN},
        {"no host", "POST /echo HTTP/1.1\r\nContent-Length: 0\r\n\r\n" HIDDEN},
        {"two hosts",
         "POST /echo HTTP/1.1\r\nHost: h\r\nHost: i\r\nContent-Length: 0\r\n\r\n" HIDDEN},
        {"bad chunk size",
         "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" HIDDEN},
        {"signed chunk size",
         "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n+0\r\n\r\n" HIDDEN},
        {"chunk size over 64 bits",
         "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
         "10000000000000000\r\n\r\n" HIDDEN},
        {"chunk size and bare LF",
         "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\n\n" HIDDEN},
        {"chunk extension with bare LF",
         "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0;a\n\r\n" HIDDEN},
        {"chunk longer than its size", "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: "
                                       "chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n" HIDDEN},
        {"trailer", "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                    "0\r\nContent-Length: 33\r\n\r\n" HIDDEN},
        {"no version", "POST /echo\r\nHost: h\r\n\r\n" HIDDEN},
        {"version 1.2", "POST /echo HTTP/1.2\r\nHost: h\r\nContent-Length: 0\r\n\r\n" HIDDEN},
        {"space in a header name", "POST /echo HTTP/1.1\r\nHost: h\r\nX Y: a\r\n\r\n" HIDDEN},
        {"space that ends a header name",
         "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" HIDDEN},
        {"control byte in a value", "POST /echo HTTP/1.1\r\nHost: h\r\nX: a\x01\r\n\r\n" HIDDEN},
        {"two spaces in the target", "GET /show /x HTTP/1.1\r\nHost: h\r\n\r\n" HIDDEN},
        {"tab in the request line", "GET\t/show HTTP/1.1\r\nHost: h\r\n\r\n" HIDDEN},
        {"empty header name", "POST /echo HTTP/1.1\r\nHost: h\r\n: a\r\n\r\n" HIDDEN},
    };
    size_t n_wrong = 0;
    for (size_t i = 0; i < sizeof(probes) / sizeof(probes[0]); i++) {
        int before = atomic_load(&n_handled);
        const char *r = exchange(probes[i].request);
        int status = api_status_of(r);
        bool refused = (status == 400 || status == 501 || status == 505) &&
                       count(r, "\r\nDate: ") == 1 && strstr(r, "Connection: close") != NULL;
        if (!refused || atomic_load(&n_handled) != before) {
            print_message("probe '%s': %.200s\n", probes[i].name, r);
            n_wrong++;
        }
    }
    static const char nul[] = "GET /show HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n";
    assert_int_equal(api_status_of(api_exchange(server, nul, sizeof(nul) - 1)), 400);
    assert_int_equal(n_wrong, 0);
    assert_int_equal(n_handled, 0);
}

static void test_http1_reads_bodies_of_both_kinds_in_any_cut(void **state)
{
    (void)state;
    static const char *const requests[] = {
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\nConnection: close\r\n\r\nhello "
        "world",
        "\r\nPOST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\nConnection: "
        "close\r\n\r\n"
        "5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\n\r\n"};
    for (size_t i = 0; i < 2; i++) {
        for (size_t step = 1; step < 40; step += 12) {
            size_t n = strlen(requests[i]);
            int fd = api_dial(server);
            for (size_t sent = 0; sent < n; sent += step) {
                api_send(fd, requests[i] + sent, n - sent < step ? n - sent : step);
                usleep(200);
            }
            char out[4096] = "";
            assert_true(api_recv(fd, out, sizeof(out), NULL, 5000));
            assert_int_equal(api_status_of(out), 200);
            assert_string_equal(body_of(out), "hello world");
            close(fd);
        }
    }
    assert_int_equal(n_closes, 0);
}

static void test_http1_serves_pipelined_requests_in_order(void **state)
{
    (void)state;
    const char *r = exchange("GET /later HTTP/1.1\r\nHost: h\r\n\r\n"
                             "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\none"
                             "GET /stream HTTP/1.1\r\nHost: h\r\n\r\n"
                             "GET /nothing HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"
                             "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
                             "Connection: close\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"
                             "GET /show HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_int_equal(count(r, "HTTP/1.1 200 "), 4);
    assert_int_equal(count(r, "HTTP/1.1 404 "), 1);
    const char *a = strstr(r, "later");
    const char *b = strstr(r, "\r\n\r\none");
    const char *c = strstr(r, "piece 3;");
    const char *d = strstr(r, "HTTP/1.1 404 ");
    const char *e = strstr(r, "\r\n\r\ntwo");
    assert_true(a != NULL && b != NULL && c != NULL && d != NULL && e != NULL);
    assert_true(a < b && b < c && c < d && d < e);
    assert_int_equal(n_handled, 4); /* what follows "Connection: close" is not read */
}

static void test_http1_serves_many_pipelined_requests(void **state)
{
    (void)state;
    enum { N = 5000 };
    static const char one[] = "GET /show HTTP/1.1\r\nHost: h\r\n\r\n";
    static const char last[] = "GET /show HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    char *all = malloc(N * sizeof(one) + sizeof(last));
    size_t n = 0;
    for (int i = 0; i < N; i++) {
        memcpy(all + n, one, sizeof(one) - 1);
        n += sizeof(one) - 1;
    }
    memcpy(all + n, last, sizeof(last) - 1);
    n += sizeof(last) - 1;
    int fd = api_dial(server);
    api_send(fd, all, n);
    free(all);
    char *out = calloc(1, 4 << 20);
    assert_true(api_recv(fd, out, 4 << 20, NULL, 20000));
    assert_int_equal(count(out, "HTTP/1.1 200 "), N + 1);
    free(out);
    close(fd);
}

static void test_http1_keeps_a_connection_and_closes_it_when_asked(void **state)
{
    (void)state;
    int fd = api_dial(server);
    char out[4096] = "";
    for (int i = 0; i < 3; i++) {
        out[0] = '\0';
        api_send_text(fd, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nping");
        assert_true(api_recv(fd, out, sizeof(out), "\r\n\r\nping", 5000));
        assert_null(strstr(out, "Connection:"));
    }
    out[0] = '\0';
    api_send_text(fd, "GET /show HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_true(api_recv(fd, out, sizeof(out), "header=no:.", 5000));
    assert_non_null(strstr(out, "\r\nConnection: keep-alive\r\n"));
    out[0] = '\0';
    api_send_text(fd, "GET /show HTTP/1.0\r\n\r\n");
    assert_true(api_recv(fd, out, sizeof(out), NULL, 5000));
    assert_non_null(strstr(out, "\r\nConnection: close\r\n"));
    close(fd);
    assert_true(api_wait_conns(server, 0));
}

static void test_http1_limits_heads_and_bodies(void **state)
{
    (void)state;
    size_t n = 40000;
    char *big = malloc(n + 100);
    size_t head = (size_t)sprintf(big, "GET /show HTTP/1.1\r\nHost: h\r\nX: ");
    memset(big + head, 'x', n);
    memcpy(big + head + n, "\r\n\r\n", 5);
    assert_error_body(api_exchange(server, big, head + n + 4), 431, "headers_too_large");
    free(big);
    char many[8192] = "GET /show HTTP/1.1\r\nHost: h\r\n";
    for (int i = 0; i < 120; i++) {
        strcat(many, "A: b\r\n");
    }
    strcat(many, "\r\n");
    assert_error_body(exchange(many), 431, "headers_too_large");
    const char *r = exchange("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1048577\r\n\r\n");
    assert_error_body(r, 413, "body_too_large");
    /* A chunked body tells its length only by being too long. */
    size_t chunk = 64 * 1024;
    char *data = malloc(chunk + 16);
    int fd = api_dial(server);
    char out[4096] = "";
    api_send_text(fd, "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    size_t lead = (size_t)sprintf(data, "%zx\r\n", chunk);
    memset(data + lead, 'y', chunk);
    memcpy(data + lead + chunk, "\r\n", 2);
    for (int i = 0; i < 20; i++) {
        api_send(fd, data, lead + chunk + 2);
    }
    assert_true(api_recv(fd, out, sizeof(out), NULL, 5000));
    assert_error_body(out, 413, "body_too_large");
    close(fd);
    /* One byte per chunk with a long extension costs more than it carries. */
    fd = api_dial(server);
    out[0] = '\0';
    api_send_text(fd, "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    lead = (size_t)sprintf(data, "1;");
    memset(data + lead, 'e', 1000);
    memcpy(data + lead + 1000, "\r\nz\r\n", 5);
    for (int i = 0; i < 1200; i++) {
        api_send(fd, data, lead + 1005);
    }
    assert_true(api_recv(fd, out, sizeof(out), NULL, 5000));
    assert_error_body(out, 400, "invalid_request");
    close(fd);
    free(data);
    assert_int_equal(n_handled, 0);
}

static void test_http1_limits_the_bodies_of_all_connections_together(void **state)
{
    (void)state;
    size_t n = 1000000;
    char *body = calloc(1, n);
    int fds[4];
    for (int i = 0; i < 3; i++) { /* three bodies of almost a megabyte wait for their last byte */
        fds[i] = api_dial(server);
        api_send_text(fds[i], "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n");
        api_send(fds[i], body, n - 1);
    }
    usleep(100000);
    fds[3] = api_dial(server);
    api_send_text(fds[3], "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n");
    api_send(fds[3], body, n);
    char *out = calloc(1, 2 << 20);
    assert_true(api_recv(fds[3], out, 2 << 20, NULL, 5000));
    assert_error_body(out, 503, "server_busy");
    close(fds[3]);
    for (int i = 0; i < 3; i++) {
        memset(out, 0, 4096);
        api_send(fds[i], "x", 1);
        assert_true(api_recv(fds[i], out, 4096, "200 OK", 5000));
        close(fds[i]);
    }
    assert_true(api_wait_conns(server, 0));
    /* What they held is free again. */
    int fd = api_dial(server);
    out[0] = '\0';
    api_send_text(fd, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n");
    api_send(fd, body, n);
    assert_true(api_recv(fd, out, 4096, "200 OK", 5000));
    close(fd);
    free(out);
    free(body);
}

static void test_http1_knows_expect_100_continue(void **state)
{
    (void)state;
    int fd = api_dial(server);
    char out[4096] = "";
    api_send_text(fd,
                  "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n"
                  "Connection: close\r\n\r\n");
    assert_true(api_recv(fd, out, sizeof(out), "100 Continue\r\n\r\n", 5000));
    api_send_text(fd, "ok");
    assert_true(api_recv(fd, out, sizeof(out), NULL, 5000));
    assert_non_null(strstr(out, "HTTP/1.1 200 OK"));
    close(fd);
    const char *r = exchange("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n"
                             "Expect: 100-continue\r\n\r\n");
    assert_int_equal(api_status_of(r), 413);
    r = exchange("POST /private HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n"
                 "Expect: 100-continue\r\n\r\n");
    assert_int_equal(api_status_of(r), 401);
    assert_null(strstr(r, "100 Continue"));
    r = exchange("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: magic\r\n"
                 "Connection: close\r\n\r\n12345");
    assert_int_equal(api_status_of(r), 417);
    r = exchange("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Encoding: gzip\r\n"
                 "Connection: close\r\n\r\n12345");
    assert_int_equal(api_status_of(r), 415);
}

static void test_http1_ignores_offers_to_upgrade(void **state)
{
    (void)state;
    const char *r =
        exchange("GET /show HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\n"
                 "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
                 "POST /echo HTTP/1.1\r\nHost: h\r\nConnection: upgrade, close\r\n"
                 "Upgrade: websocket\r\nContent-Length: 3\r\n\r\nend");
    assert_int_equal(count(r, "HTTP/1.1 200 OK"), 2);
    assert_non_null(strstr(r, "\r\n\r\nend"));
}

static void test_http1_streams_in_chunks(void **state)
{
    (void)state;
    const char *r = exchange("GET /stream HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_non_null(strstr(r, "\r\nTransfer-Encoding: chunked\r\n"));
    assert_string_equal(body_of(r), "8\r\npiece 3;\r\n8\r\npiece 2;\r\n8\r\npiece 1;\r\n0\r\n\r\n");
    r = exchange("GET /stream HTTP/1.0\r\n\r\n");
    assert_null(strstr(r, "Transfer-Encoding"));
    assert_string_equal(body_of(r), "piece 3;piece 2;piece 1;");
    assert_int_equal(n_closes, 0);
    assert_int_equal(n_finished, 2);
}

static void test_http1_tells_the_handler_once_that_the_client_left(void **state)
{
    (void)state;
    static const char *const requests[] = {"GET /never HTTP/1.1\r\nHost: h\r\n\r\n",
                                           "GET /later HTTP/1.1\r\nHost: h\r\n\r\n",
                                           "GET /endless HTTP/1.1\r\nHost: h\r\n\r\n"};
    for (int i = 0; i < 3; i++) {
        int fd = api_dial(server);
        api_send_text(fd, requests[i]);
        if (i == 2) {
            char out[4096] = "";
            assert_true(api_recv(fd, out, sizeof(out), "piece 999998", 5000));
        } else {
            assert_true(api_wait_for(&n_handled, i + 1));
        }
        if (i == 1) {
            struct linger now = {.l_onoff = 1}; /* a reset instead of a polite end */
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
        }
        close(fd);
        assert_true(api_wait_for(&n_closes, i + 1));
    }
    usleep(50000);
    assert_int_equal(n_closes, 3);
    assert_int_equal(n_finished, 0);
    assert_true(api_wait_conns(server, 0));
}

static void test_http1_tells_the_handler_when_the_server_closes(void **state)
{
    (void)state;
    int fd = api_dial(server);
    api_send_text(fd, "GET /endless HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(api_wait_for(&n_handled, 1));
    teardown(state); /* with the stream still open */
    assert_int_equal(n_closes, 1);
    close(fd);
    setup(state);
}

static void test_http1_holds_back_a_writer_whose_client_does_not_read(void **state)
{
    (void)state;
    int fd = api_dial(server);
    api_send_text(fd, "GET /flood HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    usleep(300000);
    assert_int_equal(n_finished, 0); /* 30 MB do not fit anywhere */
    assert_true(max_queued > 0 && max_queued < 3000000 / FLOOD_PIECE);
    static char out[1 << 16];
    size_t total = 0;
    ssize_t n;
    while ((n = recv(fd, out, sizeof(out), 0)) > 0) {
        total += (size_t)n;
    }
    close(fd);
    assert_true(total > (size_t)FLOOD_PIECE * FLOOD_PIECES);
    assert_int_equal(n_finished, 1);
    assert_true(n_drains > 10);
    assert_int_equal(n_closes, 0);
}

static void drain(struct api_server *s)
{
    td_conn_pool_drain(s->pool);
}

static void test_http1_ends_politely_when_the_server_drains(void **state)
{
    (void)state;
    int idle = api_dial(server);
    char out[4096] = "";
    api_send_text(idle, "GET /show HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(api_recv(idle, out, sizeof(out), "header=no:.", 5000));
    int busy = api_dial(server);
    api_send_text(busy, "GET /stream HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(api_wait_for(&n_handled, 2));
    api_server_call(server, drain);
    assert_true(api_recv(idle, out, sizeof(out), NULL, 5000));
    out[0] = '\0';
    assert_true(api_recv(busy, out, sizeof(out), NULL, 5000));
    assert_non_null(strstr(out, "piece 1;\r\n0\r\n\r\n"));
    close(idle);
    close(busy);
    assert_true(api_wait_conns(server, 0));
    assert_int_equal(n_closes, 0);
}

static void retire(struct api_server *s)
{
    td_conn_pool_retire(s->pool);
}

static void test_http1_tells_every_client_when_the_server_retires(void **state)
{
    (void)state;
    const char *request = "GET /show HTTP/1.1\r\nHost: h\r\n\r\n";
    int before = api_dial(server);
    int streams = api_dial(server);
    char out[4096] = "";
    api_send_text(before, request);
    assert_true(api_recv(before, out, sizeof(out), "header=no:.", 5000));
    assert_null(strstr(out, "\r\nConnection: close\r\n"));
    api_send_text(streams, "GET /stream HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(api_wait_for(&n_handled, 2));
    api_server_call(server, retire);
    out[0] = '\0';
    api_send_text(before, request); /* still open: it gets an answer, then the end */
    assert_true(api_recv(before, out, sizeof(out), NULL, 5000));
    assert_non_null(strstr(out, "\r\nConnection: close\r\n"));
    assert_non_null(strstr(out, "header=no:."));
    out[0] = '\0';
    assert_true(api_recv(streams, out, sizeof(out), NULL, 5000));
    assert_non_null(strstr(out, "piece 1;\r\n0\r\n\r\n"));
    int after = api_dial(server); /* new ones are taken */
    out[0] = '\0';
    api_send_text(after, request);
    assert_true(api_recv(after, out, sizeof(out), NULL, 5000));
    assert_non_null(strstr(out, "\r\nConnection: close\r\n"));
    close(before);
    close(streams);
    close(after);
    assert_true(api_wait_conns(server, 0));
    assert_int_equal(n_closes, 0);
}

static void test_http1_says_retry_after_with_429(void **state)
{
    (void)state;
    const char *r = exchange("GET /error HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_error_body(r, 429, "server_busy");
    assert_non_null(strstr(r, "\r\nRetry-After: 1\r\n"));
    r = exchange("GET /error?wait=17 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_non_null(strstr(r, "\r\nretry-after: 17\r\n")); /* who knows better says so */
    assert_null(strstr(r, "\r\nRetry-After:"));
}

static void test_http1_gives_up_on_slow_clients(void **state)
{
    (void)state;
    /* A header byte now and then. */
    int slow = api_dial(server);
    char out[4096] = "";
    const char *head = "GET /show HTTP/1.1\r\nHost: h\r\nX: ";
    uint64_t start = api_now_ms();
    for (size_t i = 0; head[i] != '\0' && api_now_ms() < start + 900; i++) {
        api_send(slow, head + i, 1);
        usleep(30000);
    }
    assert_true(api_recv(slow, out, sizeof(out), NULL, 2000));
    assert_error_body(out, 408, "request_timeout");
    assert_true(api_now_ms() - start < 2500);
    close(slow);
    /* A body that stops. */
    int stops = api_dial(server);
    out[0] = '\0';
    api_send_text(stops, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc");
    assert_true(api_recv(stops, out, sizeof(out), NULL, 2000));
    assert_error_body(out, 408, "request_timeout");
    close(stops);
    /* A body that never stops trickling. */
    int trickles = api_dial(server);
    out[0] = '\0';
    api_send_text(trickles, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n");
    start = api_now_ms();
    for (int i = 0; i < 40; i++) {
        api_send(trickles, "t", 1);
        usleep(30000);
    }
    assert_true(api_recv(trickles, out, sizeof(out), NULL, 2000));
    assert_error_body(out, 408, "request_timeout");
    close(trickles);
    /* Nothing at all, and nothing after a request. */
    int silent = api_dial(server);
    out[0] = '\0';
    assert_true(api_recv(silent, out, sizeof(out), NULL, 2000));
    assert_string_equal(out, "");
    close(silent);
    int idle = api_dial(server);
    api_send_text(idle, "GET /show HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(api_recv(idle, out, sizeof(out), NULL, 2000));
    assert_int_equal(api_status_of(out), 200);
    close(idle);
    assert_true(api_wait_conns(server, 0));
}

static void test_http1_gives_up_on_clients_that_do_not_read(void **state)
{
    (void)state;
    int fd = api_dial(server);
    api_send_text(fd, "GET /flood HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(api_wait_for(&n_closes, 1));
    assert_int_equal(n_finished, 0);
    close(fd);
    /* The same by pipelining requests without reading the answers. */
    fd = api_dial(server);
    static const char one[] = "GET /show HTTP/1.1\r\nHost: h\r\n\r\n";
    for (int i = 0; i < 200000; i++) {
        if (send(fd, one, sizeof(one) - 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
            break;
        }
    }
    assert_true(api_wait_conns(server, 0));
    close(fd);
}

static void test_http1_waits_long_for_a_handler(void **state)
{
    (void)state;
    int fd = api_dial(server);
    char out[1024] = "";
    api_send_text(fd, "GET /never HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_false(
        api_recv(fd, out, sizeof(out), NULL, 1200)); /* no timeout of the client's applies */
    assert_int_equal(n_closes, 0);
    close(fd);
    assert_true(api_wait_for(&n_closes, 1));
}

static void test_http1_refuses_connections_over_the_cap(void **state)
{
    (void)state;
    int fds[5];
    for (int i = 0; i < 4; i++) {
        fds[i] = api_dial(server);
        api_send_text(fds[i], "GET /never HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    assert_true(api_wait_for(&n_handled, 4));
    fds[4] = api_dial(server);
    char out[1024] = "";
    api_send_text(fds[4], "GET /show HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(api_recv(fds[4], out, sizeof(out), NULL, 2000));
    assert_error_body(out, 503, "too_many_connections");
    for (int i = 0; i < 5; i++) {
        close(fds[i]);
    }
    assert_true(api_wait_conns(server, 0));
    const char *r = exchange("GET /show HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_int_equal(api_status_of(r), 200);
}

static void test_http1_survives_random_bytes(void **state)
{
    (void)state;
    uint32_t seed = 99;
    print_message("seed %u\n", seed);
    static const char base[] =
        "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        "GET /show?q=%41 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nConnection: close\r\n\r\nxx";
    for (int round = 0; round < 400; round++) {
        char text[sizeof(base)];
        memcpy(text, base, sizeof(base));
        for (int k = 0; k < 1 + round % 4; k++) {
            seed = seed * 1664525u + 1013904223u;
            text[(seed >> 8) % (sizeof(base) - 1)] = (char)(seed >> 24);
        }
        int fd = api_dial(server);
        char out[8192] = "";
        api_send(fd, text, sizeof(text) - 1);
        shutdown(fd, SHUT_WR);
        assert_true(api_recv(fd, out, sizeof(out), NULL, 5000));
        close(fd);
    }
    assert_true(api_wait_conns(server, 0));
}

#define WITH(test, up) cmocka_unit_test_setup_teardown(test, up, teardown)

int main(void)
{
    td_log_set_level(TD_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        WITH(test_http1_gives_the_handler_the_request, setup),
        WITH(test_http1_answers_head_without_a_body, setup),
        WITH(test_http1_answers_options_and_preflights, setup),
        WITH(test_http1_tells_unknown_paths_and_methods, setup),
        WITH(test_http1_asks_for_a_key_before_it_reads_the_body, setup),
        WITH(test_http1_refuses_every_smuggling_probe, setup),
        WITH(test_http1_reads_bodies_of_both_kinds_in_any_cut, setup),
        WITH(test_http1_serves_pipelined_requests_in_order, setup),
        WITH(test_http1_serves_many_pipelined_requests, setup),
        WITH(test_http1_keeps_a_connection_and_closes_it_when_asked, setup),
        WITH(test_http1_limits_heads_and_bodies, setup),
        WITH(test_http1_limits_the_bodies_of_all_connections_together, setup),
        WITH(test_http1_knows_expect_100_continue, setup),
        WITH(test_http1_ignores_offers_to_upgrade, setup),
        WITH(test_http1_streams_in_chunks, setup),
        WITH(test_http1_tells_the_handler_once_that_the_client_left, setup),
        WITH(test_http1_tells_the_handler_when_the_server_closes, setup),
        WITH(test_http1_holds_back_a_writer_whose_client_does_not_read, setup),
        WITH(test_http1_ends_politely_when_the_server_drains, setup),
        WITH(test_http1_tells_every_client_when_the_server_retires, setup),
        WITH(test_http1_says_retry_after_with_429, setup),
        WITH(test_http1_survives_random_bytes, setup),
        WITH(test_http1_gives_up_on_slow_clients, setup_impatient),
        WITH(test_http1_gives_up_on_clients_that_do_not_read, setup_impatient),
        WITH(test_http1_waits_long_for_a_handler, setup_impatient),
        WITH(test_http1_refuses_connections_over_the_cap, setup_impatient),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
