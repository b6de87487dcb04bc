/* Datagrams to a socket that this test holds, by path and by an abstract name, and environments that are wrong. */
#include "tests/unit/check.h"

#include "daemon/cli/sdnotify.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char folder[] = "/tmp/tensord-test-XXXXXX";
static char path[64];

static int setup(void **state)
{
    (void)state;
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    return 0;
}

/* A bound socket; `name` as NOTIFY_SOCKET has it. */
static int listen_at(const char *name)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    size_t len = strlen(name);
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);

    memcpy(a.sun_path, name, len);
    if (*name == '@')
        a.sun_path[0] = '\0';
    assert_true(fd >= 0);
    assert_int_equal(
        bind(fd, (struct sockaddr *)&a, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)),
        0);
    return fd;
}

static void check_arrives(const char *name)
{
    struct td_sdnotify n;
    char text[64] = "";
    int fd = listen_at(name);

    setenv("NOTIFY_SOCKET", name, 1);
    assert_int_equal(td_sdnotify_open(&n, NULL), TD_OK);
    td_sdnotify_send(&n, "READY=1\nSTATUS=serving");
    assert_int_equal(recv(fd, text, sizeof text - 1, MSG_DONTWAIT), 22);
    assert_string_equal(text, "READY=1\nSTATUS=serving");
    assert_int_equal(n.watchdog_ns, 0);
    assert_null(getenv("NOTIFY_SOCKET"));
    td_sdnotify_close(&n);
    td_sdnotify_send(&n, "READY=1"); /* to nobody */
    assert_int_equal(recv(fd, text, sizeof text, MSG_DONTWAIT), -1);
    close(fd);
}

static void test_sdnotify_sends_to_a_path(void **state)
{
    (void)state;
    check_arrives(path);
}

static void test_sdnotify_sends_to_an_abstract_name(void **state)
{
    char name[64];

    (void)state;
    snprintf(name, sizeof name, "@tensord-test-%d", (int)getpid());
    check_arrives(name);
}

static void test_sdnotify_without_a_manager_is_silent(void **state)
{
    struct td_sdnotify n;

    (void)state;
    setenv("WATCHDOG_USEC", "30000000", 1);
    assert_int_equal(td_sdnotify_open(&n, NULL), TD_OK);
    assert_false(n.is_open);
    assert_int_equal(n.watchdog_ns, 0);
    td_sdnotify_send(&n, "READY=1");
    td_sdnotify_close(&n);
}

static void test_sdnotify_survives_a_manager_that_is_gone(void **state)
{
    struct td_sdnotify n;

    (void)state;
    setenv("NOTIFY_SOCKET", "/nonexistent/notify", 1);
    assert_int_equal(td_sdnotify_open(&n, NULL), TD_OK);
    td_sdnotify_send(&n, "READY=1");
    td_sdnotify_close(&n);
}

static void check_watchdog(const char *usec, const char *pid, uint64_t expected_ns)
{
    struct td_sdnotify n;

    setenv("NOTIFY_SOCKET", "@x", 1);
    setenv("WATCHDOG_USEC", usec, 1);
    if (pid)
        setenv("WATCHDOG_PID", pid, 1);
    assert_int_equal(td_sdnotify_open(&n, NULL), TD_OK);
    assert_int_equal(n.watchdog_ns, expected_ns);
    assert_null(getenv("WATCHDOG_USEC"));
    assert_null(getenv("WATCHDOG_PID"));
    td_sdnotify_close(&n);
}

static void test_sdnotify_reads_the_watchdog_of_this_process(void **state)
{
    char pid[16];

    (void)state;
    check_watchdog("30000000", NULL, 30000000000u);
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    check_watchdog("1500", pid, 1500000u);
    snprintf(pid, sizeof pid, "%d", (int)getppid());
    check_watchdog("1500", pid, 1500000u);
    check_watchdog("1500", "4194305", 0); /* above the largest process that Linux numbers */
}

static void test_sdnotify_names_what_is_wrong(void **state)
{
    static const struct {
        const char *name, *value, *expected;
    } wrong[] = {
        {"NOTIFY_SOCKET", "vsock:2:1", "'vsock:2:1'"},
        {"NOTIFY_SOCKET", "@", "'@'"},
        {"NOTIFY_SOCKET", "", "''"},
        {"WATCHDOG_USEC", "-5", "'-5'"},
        {"WATCHDOG_USEC", "0", "'0'"},
        {"WATCHDOG_USEC", "10 s", "'10 s'"},
        {"WATCHDOG_USEC", "99999999999999999999", "'99999999999999999999'"},
        {"WATCHDOG_PID", "me", "'me'"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct td_sdnotify n;
        struct td_err err;

        setenv("NOTIFY_SOCKET", "@x", 1);
        setenv("WATCHDOG_USEC", "1000", 1);
        setenv("WATCHDOG_PID", "1", 1);
        setenv(wrong[i].name, wrong[i].value, 1);
        assert_int_equal(td_sdnotify_open(&n, &err), TD_INVALID);
        assert_non_null(strstr(err.cause, wrong[i].name));
        assert_non_null(strstr(err.cause, wrong[i].expected));
        assert_false(n.is_open);
        assert_null(getenv("NOTIFY_SOCKET"));
    }
}

static void test_sdnotify_refuses_a_path_that_no_address_holds(void **state)
{
    char longest[109], text[32];
    struct td_sdnotify n;
    struct td_err err;

    (void)state;
    memset(longest, 'a', sizeof longest - 1); /* 108 bytes: sun_path without its NUL */
    longest[0] = '/';
    longest[sizeof longest - 1] = '\0';
    setenv("NOTIFY_SOCKET", longest, 1);
    assert_int_equal(td_sdnotify_open(&n, &err), TD_INVALID);
    snprintf(text, sizeof text, "has 108 bytes");
    assert_non_null(strstr(err.cause, text));
    longest[107] = '\0';
    setenv("NOTIFY_SOCKET", longest, 1);
    assert_int_equal(td_sdnotify_open(&n, &err), TD_OK);
    td_sdnotify_close(&n);
}

#define WITH(test) cmocka_unit_test_setup(test, setup)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(test_sdnotify_sends_to_a_path),
        WITH(test_sdnotify_sends_to_an_abstract_name),
        WITH(test_sdnotify_without_a_manager_is_silent),
        WITH(test_sdnotify_survives_a_manager_that_is_gone),
        WITH(test_sdnotify_reads_the_watchdog_of_this_process),
        WITH(test_sdnotify_names_what_is_wrong),
        WITH(test_sdnotify_refuses_a_path_that_no_address_holds),
    };
    int failed;

    if (!mkdtemp(folder))
        return 1;
    snprintf(path, sizeof path, "%s/notify", folder);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    rmdir(folder);
    return failed;
}
