/* Memory of one process, mapped by another. */
#include "comm/segment.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { BYTES = 3 * 4096 };

static void test_segment_is_the_same_memory_in_another_process(void **state)
{
    struct td_segment segment;
    int status;
    pid_t pid;
    char *here;

    (void)state;
    assert_true(td_segment_open(&segment, BYTES));
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        char *there;

        close(segment.fd); /* it finds the file through its parent */
        there = td_segment_map(&segment, BYTES);
        if (!there)
            _exit(1);
        there[BYTES - 1] = 77;
        _exit(there[0] == 0 ? 0 : 2);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    here = td_segment_map(&segment, BYTES);
    assert_non_null(here);
    td_segment_close(&segment);
    assert_int_equal(here[BYTES - 1], 77);
    munmap(here, BYTES);
}

static void test_segment_maps_no_other_file(void **state)
{
    struct td_segment segment, closed, none = {.fd = -1}, other;

    (void)state;
    assert_true(td_segment_open(&segment, BYTES));
    other = closed = segment;
    other.number++;
    assert_null(td_segment_map(&other, BYTES));
    other = segment;
    other.device++;
    assert_null(td_segment_map(&other, BYTES));
    td_segment_close(&segment);
    assert_int_equal(segment.fd, -1);
    assert_null(td_segment_map(&closed, BYTES));
    assert_null(td_segment_map(&none, BYTES));
}

static void test_segment_is_none_where_files_may_not_grow(void **state)
{
    struct rlimit before, no_bytes;
    struct td_segment segment;
    bool opened;

    (void)state;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    no_bytes = (struct rlimit){0, before.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &no_bytes), 0);
    opened = td_segment_open(&segment, BYTES);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_false(opened);
    assert_int_equal(segment.fd, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_segment_is_the_same_memory_in_another_process),
        cmocka_unit_test(test_segment_maps_no_other_file),
        cmocka_unit_test(test_segment_is_none_where_files_may_not_grow),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
