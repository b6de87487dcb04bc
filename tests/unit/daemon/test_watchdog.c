#include "daemon/cli/watchdog.h"

#include "tests/unit/check.h"

#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MS = 1000 * 1000 };

static void pause_ms(long ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * MS};

    nanosleep(&ts, NULL);
}

/* Runs `run` in a process of its own; `said` [at least 256] gets its stderr. Returns its exit status, 99 when it came back. */
static int in_child(void (*run)(struct td_watchdog *w), char *said)
{
    int out[2], status = 0;
    ssize_t n, len = 0;
    pid_t pid;

    assert_int_equal(pipe(out), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct td_watchdog *w;

        dup2(out[1], STDERR_FILENO);
        close(out[0]);
        close(out[1]);
        alarm(30); /* whatever happens */
        if (td_watchdog_open("tool: rank 3", &w, NULL) != TD_OK)
            _exit(98);
        run(w);
        td_watchdog_close(w);
        _exit(99);
    }
    close(out[1]);
    while (len < 255 && (n = read(out[0], said + len, (size_t)(255 - len))) > 0)
        len += n;
    said[len] = '\0';
    close(out[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void hang(struct td_watchdog *w)
{
    td_watchdog_arm(w, "MPI_Bcast", 20 * MS);
    pause_ms(20000);
}

static void hang_after_calls_that_ended(struct td_watchdog *w)
{
    for (int i = 0; i < 1000; i++) {
        td_watchdog_arm(w, "MPI_Barrier", 10000ull * MS);
        td_watchdog_disarm(w);
    }
    td_watchdog_arm(w, "MPI_Allgather", 20 * MS);
    pause_ms(20000);
}

static void end_in_time(struct td_watchdog *w)
{
    td_watchdog_arm(w, "MPI_Bcast", 10000ull * MS);
    td_watchdog_disarm(w);
}

static void stay_disarmed(struct td_watchdog *w)
{
    td_watchdog_arm(w, "MPI_Bcast", 500 * MS);
    td_watchdog_disarm(w);
    pause_ms(1700); /* past the limit and the watchdog's next look */
}

static void test_watchdog_ends_a_process_that_hangs_and_says_in_what(void **state)
{
    char said[256];

    (void)state;
    assert_int_equal(in_child(hang, said), 1);
    assert_string_equal(said, "tool: rank 3: MPI_Bcast did not end within 0.02 s: given up\n");
    assert_int_equal(in_child(hang_after_calls_that_ended, said), 1);
    assert_non_null(strstr(said, "MPI_Allgather"));
}

static void test_watchdog_lets_calls_be_that_end_in_time(void **state)
{
    char said[256];

    (void)state;
    assert_int_equal(in_child(end_in_time, said), 99);
    assert_string_equal(said, "");
    assert_int_equal(in_child(stay_disarmed, said), 99);
    assert_string_equal(said, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_watchdog_ends_a_process_that_hangs_and_says_in_what),
        cmocka_unit_test(test_watchdog_lets_calls_be_that_end_in_time),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
