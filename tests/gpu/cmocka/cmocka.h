/* As much of cmocka as tests/ops uses, for a machine that has none and reaches no network. A failed test ends its process: each
 * test has one of its own, so that the others run, and one line says how it ended, as tests/gpu.sh counts them. */
#ifndef TD_TESTS_GPU_CMOCKA_H
#define TD_TESTS_GPU_CMOCKA_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct CMUnitTest {
    const char *name;
    void (*run)(void **state);
    int (*setup)(void **state), (*teardown)(void **state);
};

#define cmocka_unit_test(test)                                                                     \
    {                                                                                              \
#test, test, NULL, NULL                                                                    \
    }
#define cmocka_unit_test_setup_teardown(test, setup, teardown)                                     \
    {                                                                                              \
#test, test, setup, teardown                                                               \
    }
#define print_message(...) printf(__VA_ARGS__)
#define fail_msg(...)                                                                              \
    do {                                                                                           \
        printf("%s:%d: ", __FILE__, __LINE__);                                                     \
        printf(__VA_ARGS__);                                                                       \
        putchar('\n');                                                                             \
        fflush(stdout);                                                                            \
        _exit(1);                                                                                  \
    } while (0)
#define assert_true(c)                                                                             \
    do {                                                                                           \
        if (!(c))                                                                                  \
            fail_msg("not so: %s", #c);                                                            \
    } while (0)
#define assert_false(c) assert_true(!(c))
#define assert_non_null(p) assert_true((p) != NULL)
#define assert_int_equal(a, b)                                                                     \
    do {                                                                                           \
        long long td_a = (long long)(a), td_b = (long long)(b);                                    \
                                                                                                   \
        if (td_a != td_b)                                                                          \
            fail_msg("%s is %lld, expected %lld", #a, td_a, td_b);                                 \
    } while (0)
#define assert_string_equal(a, b) assert_true(strcmp(a, b) == 0)
#define assert_memory_equal(a, b, n) assert_true(memcmp(a, b, n) == 0)
#define skip() _exit(77)

static inline int td_cmocka_run(const struct CMUnitTest *tests, size_t n, int (*setup)(void **),
                                int (*teardown)(void **))
{
    size_t n_failed = 0;

    for (size_t i = 0; i < n; i++) {
        int status = 0;
        pid_t pid;

        fflush(stdout);
        pid = fork();
        if (pid == 0) {
            void *state = NULL;

            if (setup && setup(&state))
                fail_msg("setting up failed");
            if (tests[i].setup && tests[i].setup(&state))
                fail_msg("setting up failed");
            tests[i].run(&state);
            if (tests[i].teardown && tests[i].teardown(&state))
                fail_msg("tearing down failed");
            if (teardown && teardown(&state))
                fail_msg("tearing down failed");
            fflush(stdout);
            _exit(0);
        }
        if (pid < 0 || waitpid(pid, &status, 0) < 0 || !WIFEXITED(status) ||
            (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 77)) {
            printf("FAILED: 1 ranks: %s: status %d\n", tests[i].name, status);
            n_failed++;
        } else if (WEXITSTATUS(status) == 0) {
            printf("ok: %s\n", tests[i].name);
        }
    }
    return (int)n_failed;
}

#define cmocka_run_group_tests(tests, setup, teardown)                                             \
    td_cmocka_run(tests, sizeof(tests) / sizeof(tests)[0], setup, teardown)
#define cmocka_run_group_tests_name(name, tests, setup, teardown)                                  \
    cmocka_run_group_tests(tests, setup, teardown)

#endif
