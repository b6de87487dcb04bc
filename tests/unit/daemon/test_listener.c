#include "api_server.h"

static uv_loop_t loop;
static struct td_conn_pool *pool;

static int setup(void **state)
{
    (void)state;
    struct td_conn_config config;
    td_conn_config_default(&config);
    return uv_loop_init(&loop) == 0 && td_conn_pool_open(&loop, &config, &pool, NULL) == TD_OK ? 0
                                                                                               : -1;
}

static void count_done(void *user)
{
    ++*(int *)user;
}

static int teardown(void **state)
{
    (void)state;
    int done = 0;
    td_conn_pool_close(pool, count_done, &done);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(done, 1);
    return uv_loop_close(&loop);
}

static enum td_status try_open(const char *host, uint16_t port, struct td_listener **l,
                               struct td_err *err)
{
    const struct td_listener_config config = {.host = host, .port = port};
    return td_listener_open(pool, &loop, &config, l, err);
}

static void test_listener_reports_the_port_that_the_system_chose(void **state)
{
    (void)state;
    struct td_listener *l = NULL;
    char address[32];
    assert_int_equal(try_open("127.0.0.1", 0, &l, NULL), TD_OK);
    assert_true(td_listener_port(l) > 0);
    snprintf(address, sizeof(address), "127.0.0.1:%u", (unsigned)td_listener_port(l));
    assert_string_equal(td_listener_address(l), address);
    assert_true(td_listener_is_loopback(l));
    td_listener_close(l);
    td_listener_close(NULL);
}

static void test_listener_names_host_and_port_that_are_in_use(void **state)
{
    (void)state;
    struct td_listener *first = NULL;
    struct td_listener *second = NULL;
    struct td_err err = {0};
    char expected[128];
    assert_int_equal(try_open("127.0.0.1", 0, &first, NULL), TD_OK);
    uint16_t port = td_listener_port(first);
    assert_int_equal(try_open("127.0.0.1", port, &second, &err), TD_IO);
    assert_null(second);
    snprintf(expected, sizeof(expected),
             "cannot listen on host '127.0.0.1' port %u: the port is in use by another process",
             (unsigned)port);
    assert_string_equal(err.cause, expected);
    td_listener_close(first);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(try_open("127.0.0.1", port, &second, &err), TD_OK); /* free again */
    td_listener_close(second);
}

static void test_listener_names_a_host_that_is_none(void **state)
{
    (void)state;
    struct td_listener *l = NULL;
    struct td_err err = {0};
    assert_int_equal(try_open("999.1.1.1", 0, &l, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "'999.1.1.1'"));
    assert_int_equal(try_open("192.0.2.1", 0, &l, &err), TD_IO); /* RFC 5737: never ours */
    assert_non_null(strstr(err.cause, "192.0.2.1"));
    assert_null(l);
}

static void test_listener_binds_beyond_loopback_and_ipv6(void **state)
{
    (void)state;
    struct td_listener *l = NULL;
    struct td_listener *l6 = NULL;
    struct td_err err = {0};
    assert_int_equal(try_open("0.0.0.0", 0, &l, &err), TD_OK);
    assert_false(td_listener_is_loopback(l));
    td_listener_close(l);
    if (try_open("::1", 0, &l6, &err) != TD_OK) {
        print_message("no IPv6 here: %s\n", err.cause);
        assert_non_null(strstr(err.cause, "::1"));
        return;
    }
    assert_int_equal(strncmp(td_listener_address(l6), "[::1]:", 6), 0);
    assert_true(td_listener_is_loopback(l6));
    td_listener_close(l6);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(test_listener_reports_the_port_that_the_system_chose),
        WITH(test_listener_names_host_and_port_that_are_in_use),
        WITH(test_listener_names_a_host_that_is_none),
        WITH(test_listener_binds_beyond_loopback_and_ipv6),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
