#include "api_server.h"

#include "daemon/api/sse.h"

static struct td_route_table *routes;
static struct api_server *server;
static atomic_int n_begun;
static atomic_int n_busy;
static atomic_int n_drained;
static atomic_int n_closes;
static struct td_http_request *waiting; /* loop thread only */

static void count_close(struct td_http_request *req, void *user)
{
    (void)user;
    atomic_fetch_add(&n_closes, 1);
    assert_ptr_equal(req, waiting);
    waiting = NULL;
}

static void handle_events(struct td_http_request *req, void *user)
{
    (void)user;
    td_sse_begin(req, NULL, NULL);
    td_sse_event(req, TD_STR("{\"a\":1}"));
    td_sse_event_with_id(req, TD_STR("12.7f"), TD_STR("two\nlines\r\nthree\rfour"));
    td_sse_event(req, TD_STR(""));
    td_sse_done(req);
}

static void handle_wait(struct td_http_request *req, void *user)
{
    (void)user;
    waiting = req;
    td_http_on_close(req, count_close, NULL);
    td_sse_begin(req, NULL, NULL);
    td_sse_event(req, TD_STR("begin"));
    atomic_fetch_add(&n_begun, 1);
}

static int next_event; /* of handle_busy */

/* Every event must arrive once and in order, whatever TD_BUSY and on_drain do in between. */
static void push_events(struct td_http_request *req, void *user)
{
    char text[4096];
    if (user != NULL) {
        atomic_fetch_add(&n_drained, 1);
    }
    for (; next_event < 2000; next_event++) {
        memset(text, '.', sizeof(text));
        int n = snprintf(text, sizeof(text), "event %d", next_event);
        text[n] = ' ';
        enum td_status status = td_sse_event(req, (struct td_str){text, sizeof(text)});
        if (status != TD_OK) {
            assert_int_equal(status, TD_BUSY);
            atomic_fetch_add(&n_busy, 1);
            return;
        }
    }
    td_sse_done(req);
}

static void handle_busy(struct td_http_request *req, void *user)
{
    (void)user;
    next_event = 0;
    td_sse_begin(req, push_events, &next_event);
    push_events(req, NULL);
}

static int setup(void **state)
{
    (void)state;
    struct td_conn_config config;
    td_conn_config_default(&config);
    config.ping_ms = 100;
    config.write_queue_bytes = 16 * 1024;
    n_begun = n_busy = n_drained = n_closes = 0;
    const struct td_route list[] = {{.method = "GET", .path = "/events", .handler = handle_events},
                                    {.method = "GET", .path = "/wait", .handler = handle_wait},
                                    {.method = "GET", .path = "/busy", .handler = handle_busy}};
    assert_int_equal(td_route_table_open(&routes, NULL), TD_OK);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(td_route_add(routes, &list[i], NULL), TD_OK);
    }
    server = api_server_start(&config, &(struct td_conn_service){.routes = routes});
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    api_server_stop(server);
    td_route_table_close(routes);
    return 0;
}

static void test_sse_frames_events_and_ends_with_done(void **state)
{
    (void)state;
    const char *request =
        "GET /events HTTP/1.0\r\n\r\n"; /* without chunks, to see the events alone */
    const char *r = api_exchange(server, request, strlen(request));
    assert_non_null(strstr(r, "\r\nContent-Type: text/event-stream; charset=utf-8\r\n"));
    assert_non_null(strstr(r, "\r\nCache-Control: no-cache\r\n"));
    assert_string_equal(strstr(r, "\r\n\r\n") + 4,
                        "data: {\"a\":1}\n\n"
                        "id: 12.7f\ndata: two\ndata: lines\ndata: three\ndata: four\n\n"
                        "data: \n\n"
                        "data: [DONE]\n\n");
}

static void send_late(struct api_server *s)
{
    (void)s;
    td_sse_event(waiting, TD_STR("late"));
    td_sse_done(waiting);
}

static void test_sse_pings_in_silence(void **state)
{
    (void)state;
    int fd = api_dial(server);
    char out[8192] = "";
    api_send_text(fd, "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(api_recv(fd, out, sizeof(out), ": ping\n\n\r\n8\r\n: ping\n\n", 3000));
    api_server_call(server, send_late);
    assert_true(api_recv(fd, out, sizeof(out), "data: late\n\n", 3000));
    assert_true(api_recv(fd, out, sizeof(out), "data: [DONE]\n\n\r\n0\r\n\r\n", 3000));
    close(fd);
    usleep(20000);
    assert_int_equal(n_closes, 0);
}

static void test_sse_loses_and_doubles_nothing_under_back_pressure(void **state)
{
    (void)state;
    int fd = api_dial(server);
    size_t cap = 16 << 20;
    char *out = calloc(1, cap);
    api_send_text(fd, "GET /busy HTTP/1.0\r\n\r\n");
    usleep(100000);
    size_t n = 0;
    ssize_t got;
    while ((got = recv(fd, out + n, cap - 1 - n, 0)) > 0) {
        n += (size_t)got;
    }
    close(fd);
    const char *p = out;
    for (int i = 0; i < 2000; i++) {
        char needle[40];
        snprintf(needle, sizeof(needle), "data: event %d ", i);
        const char *next = strstr(p, "data: event ");
        assert_non_null(next);
        assert_memory_equal(next, needle, strlen(needle));
        p = next + 1;
    }
    assert_null(strstr(p, "data: event "));
    assert_non_null(strstr(p, "data: [DONE]\n\n"));
    assert_true(n_busy > 10);
    assert_int_equal(n_busy, n_drained);
    free(out);
}

static void test_sse_notices_a_reader_that_leaves(void **state)
{
    (void)state;
    int fd = api_dial(server);
    char out[4096] = "";
    api_send_text(fd, "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(api_recv(fd, out, sizeof(out), "data: begin\n\n", 3000));
    close(fd);
    assert_true(api_wait_for(&n_closes, 1));
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(test_sse_frames_events_and_ends_with_done),
        WITH(test_sse_pings_in_silence),
        WITH(test_sse_loses_and_doubles_nothing_under_back_pressure),
        WITH(test_sse_notices_a_reader_that_leaves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
