#include "api_server.h"

#include "daemon/api/grpc_serve.h"
#include "kernels/base/clock.h"

static struct td_auth keys;
static struct td_grpc_serve_table *table;
static struct td_route_table *routes;
static struct api_server *server;
static atomic_int n_calls;
static atomic_int n_closes;
static atomic_int last_code;
static atomic_int n_drains;

/* ---- Handlers, on the loop thread: messages are opaque bytes to this layer ---- */

static void echo_message(void *user, struct td_grpc_stream *s, struct td_str message)
{
    (void)user;
    td_grpc_stream_ack(s, message.len);
    assert_int_equal(td_grpc_stream_send(s, message, NULL), TD_OK);
}

static void finish_ok(void *user, struct td_grpc_stream *s)
{
    (void)user;
    td_grpc_stream_finish(s, TD_GRPC_OK, TD_STR(""));
}

static enum td_status count_call(void *user, struct td_grpc_stream *s, struct td_err *err)
{
    (void)user;
    (void)err;
    assert_int_equal(strncmp(td_grpc_serve_remote(s), "127.0.0.1:", 10), 0);
    atomic_fetch_add(&n_calls, 1);
    td_grpc_stream_set_user(s, &n_calls); /* the pointer is the handler's own */
    return TD_OK;
}

static void count_close(void *user, struct td_grpc_stream *s, enum td_grpc_code code)
{
    (void)user;
    assert_ptr_equal(td_grpc_stream_user(s), &n_calls);
    atomic_store(&last_code, (int)code);
    atomic_fetch_add(&n_closes, 1);
}

enum { PIECES = 400, PIECE = 50000 };
static int n_sent;

static void send_pieces(void *user, struct td_grpc_stream *s)
{
    static char piece[PIECE];
    (void)user;
    while (n_sent < PIECES) {
        if (td_grpc_stream_send(s, (struct td_str){piece, sizeof(piece)}, NULL) != TD_OK) {
            return;
        }
        n_sent++;
    }
    td_grpc_stream_finish(s, TD_GRPC_OK, TD_STR(""));
}

static void on_pieces_drain(void *user, struct td_grpc_stream *s)
{
    atomic_fetch_add(&n_drains, 1);
    send_pieces(user, s);
}

static int setup_idle(uint32_t idle_timeout_ms)
{
    struct td_conn_config config;
    td_conn_config_default(&config);
    config.idle_timeout_ms = idle_timeout_ms;
    n_calls = n_closes = n_drains = 0;
    n_sent = 0;
    last_code = -1;
    memset(&keys, 0, sizeof(keys));
    assert_int_equal(td_auth_add(&keys, TD_STR("sk-test"), NULL), TD_OK);
    struct td_grpc_limits limits;
    td_grpc_limits_default(&limits);
    limits.max_queued_bytes = 1 << 20;
    assert_int_equal(td_grpc_serve_table_open(&limits, &table, NULL), TD_OK);
    struct td_grpc_serve_handler h = {.on_call = count_call,
                                      .on_message = echo_message,
                                      .on_half_close = finish_ok,
                                      .on_close = count_close};
    td_grpc_serve_add(table, TD_RPC_TOKENIZE, &h);
    h.auth = &keys;
    td_grpc_serve_add(table, TD_RPC_MODEL_INFO, &h);
    h = (struct td_grpc_serve_handler){.on_call = count_call,
                                       .on_half_close = send_pieces,
                                       .on_drain = on_pieces_drain,
                                       .on_close = count_close};
    td_grpc_serve_add(table, TD_RPC_GENERATE, &h);
    h = (struct td_grpc_serve_handler){.on_call = count_call, .on_close = count_close};
    td_grpc_serve_add(table, TD_RPC_ATTACH, &h);
    td_grpc_serve_add_reflection(table, NULL);
    assert_int_equal(td_route_table_open(&routes, NULL), TD_OK);
    server = api_server_start(&config, &(struct td_conn_service){.routes = routes, .rpc = table});
    return 0;
}

static int setup(void **state)
{
    (void)state;
    return setup_idle(400);
}

static int setup_patient(void **state)
{
    (void)state;
    return setup_idle(600000);
}

static int teardown(void **state)
{
    (void)state;
    api_server_stop(server);
    td_route_table_close(routes);
    td_grpc_serve_table_close(table);
    return 0;
}

/* ---- A blocking client over proto/grpc ---- */

struct client {
    struct td_grpc *conn;
    int fd;
    size_t n_messages;
    size_t n_bytes;
    bool closed;
    enum td_grpc_code code;
    char text[256];
};

static void client_message(void *user, struct td_grpc_stream *s, struct td_str message)
{
    struct client *c = user;
    c->n_messages++;
    c->n_bytes += message.len;
    td_grpc_stream_ack(s, message.len);
}

static void client_closed(void *user, struct td_grpc_stream *s, enum td_grpc_code code,
                          struct td_str text)
{
    struct client *c = user;
    (void)s;
    c->closed = true;
    c->code = code;
    snprintf(c->text, sizeof(c->text), "%.*s", (int)text.len, text.ptr);
}

static void client_open(struct client *c)
{
    static const struct td_grpc_callbacks callbacks = {.on_message = client_message,
                                                       .on_close = client_closed};
    memset(c, 0, sizeof(*c));
    c->fd = api_dial(server);
    assert_int_equal(td_grpc_client_open(&callbacks, NULL, c, &c->conn, NULL), TD_OK);
}

/* Moves bytes until `*until` is true, the server closes, or `ms` pass. */
static void client_pump(struct client *c, const bool *until, int ms)
{
    char buf[16384];
    for (uint64_t end = api_now_ms() + (uint64_t)ms; api_now_ms() < end;) {
        size_t n;
        while ((n = td_grpc_pull(c->conn, buf, sizeof(buf))) > 0) {
            api_send(c->fd, buf, n);
        }
        if (*until) {
            return;
        }
        struct pollfd p = {.fd = c->fd, .events = POLLIN};
        if (poll(&p, 1, 20) > 0) {
            ssize_t got = recv(c->fd, buf, sizeof(buf), 0);
            if (got <= 0) {
                return;
            }
            td_grpc_feed(c->conn, td_clock_now_ns(), buf, (size_t)got, NULL);
        }
    }
}

static void client_close(struct client *c)
{
    td_grpc_close(c->conn);
    close(c->fd);
}

static struct td_grpc_stream *client_call(struct client *c, const char *path, const char *key)
{
    const struct td_grpc_meta meta = {TD_STR("authorization"), td_str_from(key)};
    const struct td_grpc_call_params params = {
        .path = td_str_from(path), .meta = &meta, .n_meta = key[0] != '\0' ? 1 : 0};
    struct td_grpc_stream *s = NULL;
    c->closed = false;
    assert_int_equal(td_grpc_client_call(c->conn, td_clock_now_ns(), &params, &s, NULL), TD_OK);
    return s;
}

static enum td_grpc_code unary(struct client *c, const char *path, const char *key)
{
    struct td_grpc_stream *s = client_call(c, path, key);
    assert_int_equal(td_grpc_stream_send(s, TD_STR("hello"), NULL), TD_OK);
    td_grpc_stream_half_close(s);
    client_pump(c, &c->closed, 5000);
    assert_true(c->closed);
    return c->code;
}

static void test_grpc_serve_answers_a_unary_call(void **state)
{
    (void)state;
    struct client c;
    client_open(&c);
    for (int i = 1; i <= 3; i++) {
        assert_int_equal(unary(&c, "/tensord.v1.Inference/Tokenize", ""), TD_GRPC_OK);
        assert_int_equal(c.n_messages, i);
        assert_true(api_wait_for(&n_closes, i));
        assert_int_equal(last_code, TD_GRPC_OK);
    }
    client_close(&c);
}

static void test_grpc_serve_wants_the_key_of_the_method(void **state)
{
    (void)state;
    struct client c;
    client_open(&c);
    const char *path = "/tensord.v1.Inference/ModelInfo";
    assert_int_equal(unary(&c, path, ""), TD_GRPC_UNAUTHENTICATED);
    assert_int_equal(unary(&c, path, "Bearer wrong"), TD_GRPC_UNAUTHENTICATED);
    assert_int_equal(n_calls, 0);
    assert_int_equal(unary(&c, path, "Bearer sk-test"), TD_GRPC_OK);
    assert_int_equal(n_calls, 1);
    client_close(&c);
    assert_true(api_wait_for(&n_closes, 1));
}

static void test_grpc_serve_tells_what_it_does_not_serve(void **state)
{
    (void)state;
    struct client c;
    client_open(&c);
    assert_int_equal(unary(&c, "/tensord.v1.Cluster/Status", ""), TD_GRPC_UNIMPLEMENTED);
    assert_int_equal(unary(&c, "/no.such.Service/Method", ""), TD_GRPC_UNIMPLEMENTED);
    assert_non_null(strstr(c.text, "/no.such.Service/Method"));
    client_close(&c);
    assert_int_equal(n_closes, 0);
}

static void test_grpc_serve_streams_at_the_clients_pace(void **state)
{
    (void)state;
    struct client c;
    client_open(&c);
    struct td_grpc_stream *s = client_call(&c, "/tensord.v1.Inference/Generate", "");
    assert_int_equal(td_grpc_stream_send(s, TD_STR("x"), NULL), TD_OK);
    td_grpc_stream_half_close(s);
    client_pump(&c, &c.closed, 20000);
    assert_true(c.closed);
    assert_int_equal(c.code, TD_GRPC_OK);
    assert_int_equal(c.n_messages, PIECES);
    assert_int_equal(c.n_bytes, (size_t)PIECES * PIECE);
    assert_true(n_drains > 3); /* 20 MB through a queue of 1 MB */
    client_close(&c);
}

static void test_grpc_serve_tells_the_handler_that_the_client_left(void **state)
{
    (void)state;
    struct client c;
    bool never = false;
    client_open(&c);
    client_call(&c, "/tensord.worker.v1.Worker/Attach", "");
    client_pump(&c, &never, 100);
    assert_true(api_wait_for(&n_calls, 1));
    client_close(&c);
    assert_true(api_wait_for(&n_closes, 1));
    assert_int_equal(last_code, TD_GRPC_CANCELLED);
    assert_true(api_wait_conns(server, 0));
}

static void drain(struct api_server *s)
{
    td_conn_pool_drain(s->pool);
}

static void test_grpc_serve_drains_and_closes_idle_connections(void **state)
{
    (void)state;
    struct client idle;
    struct client busy;
    bool never = false;
    client_open(&idle);
    assert_int_equal(unary(&idle, "/tensord.v1.Inference/Tokenize", ""), TD_GRPC_OK);
    client_pump(&idle, &never, 3000); /* returns when the server closes */
    assert_true(api_wait_conns(server, 0));
    client_close(&idle);
    client_open(&busy);
    struct td_grpc_stream *s = client_call(&busy, "/tensord.v1.Inference/Tokenize", "");
    client_pump(&busy, &never, 100);
    api_server_call(server, drain);
    client_pump(&busy, &never, 100);
    assert_int_equal(td_grpc_stream_send(s, TD_STR("last"), NULL), TD_OK);
    td_grpc_stream_half_close(s);
    client_pump(&busy, &busy.closed, 3000);
    assert_int_equal(busy.code, TD_GRPC_OK);
    client_pump(&busy, &never, 2000);
    assert_true(api_wait_conns(server, 0));
    client_close(&busy);
}

static void retire(struct api_server *s)
{
    td_conn_pool_retire(s->pool);
}

/* Calls go on, new connections are taken, and one without calls is told to go. */
static void test_grpc_serve_sends_idle_clients_away_when_it_retires(void **state)
{
    (void)state;
    struct client busy;
    struct client later;
    bool never = false;
    client_open(&busy);
    struct td_grpc_stream *s = client_call(&busy, "/tensord.v1.Inference/Tokenize", "");
    client_pump(&busy, &never, 100);
    api_server_call(server, retire);
    client_open(&later);
    assert_int_equal(unary(&later, "/tensord.v1.Inference/Tokenize", ""), TD_GRPC_OK);
    client_pump(&later, &never, 5000); /* returns when the server closes */
    assert_true(api_wait_conns(server, 1));
    client_close(&later);
    assert_int_equal(td_grpc_stream_send(s, TD_STR("last"), NULL), TD_OK);
    td_grpc_stream_half_close(s);
    client_pump(&busy, &busy.closed, 3000);
    assert_int_equal(busy.code, TD_GRPC_OK);
    client_pump(&busy, &never, 5000);
    assert_true(api_wait_conns(server, 0));
    client_close(&busy);
}

static void test_grpc_serve_reflects(void **state)
{
    (void)state;
    struct client c;
    client_open(&c);
    struct td_grpc_stream *s =
        client_call(&c, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "");
    /* ServerReflectionRequest.list_services = "": field 7, wire type 2 */
    assert_int_equal(td_grpc_stream_send(s, TD_STR("\x3a\x00"), NULL), TD_OK);
    td_grpc_stream_half_close(s);
    client_pump(&c, &c.closed, 3000);
    assert_int_equal(c.code, TD_GRPC_OK);
    assert_int_equal(c.n_messages, 1);
    assert_true(c.n_bytes > 50);
    client_close(&c);
}

static void test_grpc_serve_shares_the_port_with_http(void **state)
{
    (void)state;
    const char *request = "GET /nothing HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    assert_int_equal(api_status_of(api_exchange(server, request, strlen(request))), 404);
    /* The preface in pieces, then silence: the connection goes when nothing comes of it. */
    int fd = api_dial(server);
    char out[4096];
    out[0] = '\0';
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for (size_t i = 0; i < sizeof(preface) - 1; i++) {
        api_send(fd, preface + i, 1);
        usleep(500);
    }
    assert_true(api_wait_conns(server, 0));
    close(fd);
    /* Junk after the preface ends the connection. */
    fd = api_dial(server);
    api_send(fd, preface, sizeof(preface) - 1);
    api_send(fd, "GET / HTTP/1.1\r\nHost: h\r\n\r\nGET / HTTP/1.1\r\n\r\n", 46);
    assert_true(api_recv(fd, out, sizeof(out), NULL, 3000));
    close(fd);
    assert_true(api_wait_conns(server, 0));
    assert_int_equal(n_calls, 0);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    td_log_set_level(TD_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        WITH(test_grpc_serve_answers_a_unary_call),
        WITH(test_grpc_serve_wants_the_key_of_the_method),
        WITH(test_grpc_serve_tells_what_it_does_not_serve),
        WITH(test_grpc_serve_streams_at_the_clients_pace),
        WITH(test_grpc_serve_tells_the_handler_that_the_client_left),
        WITH(test_grpc_serve_drains_and_closes_idle_connections),
        cmocka_unit_test_setup_teardown(test_grpc_serve_sends_idle_clients_away_when_it_retires,
                                        setup_patient, teardown),
        WITH(test_grpc_serve_reflects),
        WITH(test_grpc_serve_shares_the_port_with_http),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
