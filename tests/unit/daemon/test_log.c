#include "daemon/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int pipe_fds[2];

static int setup(void **state)
{
    (void)state;
    unsetenv("JOURNAL_STREAM");
    if (pipe(pipe_fds) != 0) {
        return -1;
    }
    td_log_set_fd(pipe_fds[1]);
    td_log_set_level(TD_LOG_INFO);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    td_log_set_fd(STDERR_FILENO);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    return 0;
}

static size_t read_all(char *out, size_t size)
{
    close(pipe_fds[1]);
    size_t n = 0;
    ssize_t got;
    while ((got = read(pipe_fds[0], out + n, size - 1 - n)) > 0) {
        n += (size_t)got;
    }
    out[n] = '\0';
    pipe_fds[1] = dup(STDERR_FILENO);
    return n;
}

static void test_log_writes_time_level_and_pairs_on_one_line(void **state)
{
    (void)state;
    char out[16384];
    td_log_info("listening host=%s port=%d", "127.0.0.1", 8000);
    read_all(out, sizeof(out));
    assert_int_equal(out[4], '-');
    assert_int_equal(out[10], 'T');
    assert_int_equal(out[23], 'Z');
    assert_string_equal(out + 24, " info listening host=127.0.0.1 port=8000\n");
}

static void test_log_drops_what_is_below_the_level(void **state)
{
    (void)state;
    char out[16384];
    td_log_debug("hidden");
    td_log_set_level(TD_LOG_ERROR);
    td_log_warn("hidden too");
    td_log_error("seen");
    read_all(out, sizeof(out));
    assert_null(strstr(out, "hidden"));
    assert_non_null(strstr(out, " error seen\n"));
}

static void test_log_keeps_an_event_with_newlines_on_one_line(void **state)
{
    (void)state;
    char out[16384];
    td_log_warn("bad name=\"%s\"", "a\nb\x1b[31m");
    size_t n = read_all(out, sizeof(out));
    assert_ptr_equal(strchr(out, '\n'), out + n - 1);
    assert_non_null(strstr(out, "name=\"a\\nb\\x1b[31m\""));
}

static void test_log_cuts_a_line_that_is_too_long(void **state)
{
    (void)state;
    char out[16384];
    char *big = malloc(9000);
    memset(big, 'x', 8999);
    big[8999] = '\0';
    td_log_info("big value=%s", big);
    free(big);
    size_t n = read_all(out, sizeof(out));
    assert_true(n < 4200);
    assert_string_equal(out + n - 5, "x...\n");
    big = malloc(4001); /* escapes make a line longer than its text */
    memset(big, 1, 4000);
    big[4000] = '\0';
    pipe_fds[0] = -1;
    assert_int_equal(pipe(pipe_fds), 0);
    td_log_set_fd(pipe_fds[1]);
    td_log_info("%s", big);
    free(big);
    n = read_all(out, sizeof(out));
    assert_true(n < 4200);
    assert_string_equal(out + n - 4, "...\n");
}

static void test_log_gives_the_priority_to_the_journal(void **state)
{
    (void)state;
    char out[16384];
    setenv("JOURNAL_STREAM", "8:1", 1);
    td_log_error("x");
    td_log_info("y");
    unsetenv("JOURNAL_STREAM");
    read_all(out, sizeof(out));
    assert_memory_equal(out, "<3>", 3);
    assert_non_null(strstr(out, "\n<6>"));
}

static void test_log_knows_its_levels_by_name(void **state)
{
    (void)state;
    enum td_log_level level = TD_LOG_INFO;
    assert_true(td_log_level_from_name("WARNING", &level));
    assert_int_equal(level, TD_LOG_WARN);
    assert_true(td_log_level_from_name("debug", &level));
    assert_int_equal(level, TD_LOG_DEBUG);
    assert_false(td_log_level_from_name("loud", &level));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_log_writes_time_level_and_pairs_on_one_line, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_log_drops_what_is_below_the_level, setup, teardown),
        cmocka_unit_test_setup_teardown(test_log_keeps_an_event_with_newlines_on_one_line, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_log_cuts_a_line_that_is_too_long, setup, teardown),
        cmocka_unit_test_setup_teardown(test_log_gives_the_priority_to_the_journal, setup,
                                        teardown),
        cmocka_unit_test(test_log_knows_its_levels_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
