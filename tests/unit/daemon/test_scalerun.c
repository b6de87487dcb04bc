/* Children of a sweep: what comes of their output, their failures, limits and signals; and where netlab is looked for. */
#include "daemon/cli/scalelab.h"
#include "tests/unit/check.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const uint64_t S = 1000000000u;

static enum td_status shell(struct td_scalerun *run, const char *script, uint64_t limit_ns,
                            struct td_bytes *out, struct td_err *err)
{
    const char *const argv[] = {"/bin/sh", "-c", script, NULL};

    return td_scalerun_tool(run, argv, limit_ns, out, err);
}

static int setup(void **state)
{
    struct td_scalerun *run = NULL;

    if (td_scalerun_open(&run, NULL))
        return -1;
    *state = run;
    return 0;
}

static int teardown(void **state)
{
    td_scalerun_close(*state);
    return 0;
}

static void test_scalerun_gives_all_that_a_tool_printed(void **state)
{
    struct td_bytes out = {0};
    struct td_err err;

    /* More than a pipe holds; what comes on the other channel is not among it. */
    assert_int_equal(
        shell(*state,
              "echo no >&2; i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890; "
              "i=$((i+1)); done",
              20 * S, &out, &err),
        TD_OK);
    assert_int_equal(out.len, 3000 * 32);
    assert_memory_equal(out.data, "01234567", 8);
    td_bytes_deinit(&out);
}

static void test_scalerun_says_why_a_tool_failed(void **state)
{
    struct td_bytes out = {0};
    struct td_err err;
    const char *const missing[] = {"/no/such/program", NULL};

    assert_int_equal(shell(*state, "echo 'what is wrong' >&2; exit 3", 20 * S, &out, &err),
                     TD_UNAVAILABLE);
    assert_string_equal(err.cause, "what is wrong");
    assert_int_equal(shell(*state, "exit 3", 20 * S, &out, &err), TD_UNAVAILABLE);
    assert_non_null(strstr(err.cause, "exit status 3"));
    assert_int_equal(shell(*state, "kill -KILL $$", 20 * S, &out, &err), TD_UNAVAILABLE);
    assert_non_null(strstr(err.cause, "signal 9"));
    assert_int_equal(td_scalerun_tool(*state, missing, S, &out, &err), TD_NOT_FOUND);
    assert_non_null(strstr(err.cause, "/no/such/program"));
    assert_int_equal(shell(*state, "true", 20 * S, &out, &err), TD_OK); /* and goes on */
    td_bytes_deinit(&out);
}

static void test_scalerun_ends_a_tool_at_its_limit(void **state)
{
    struct td_bytes out = {0};
    struct td_err err;

    assert_int_equal(shell(*state, "exec sleep 1000", S / 10, &out, &err), TD_PEER_TIMED_OUT);
    assert_non_null(strstr(err.cause, "0.1 s"));
    td_bytes_deinit(&out);
}

static void test_scalerun_starts_nothing_after_a_signal(void **state)
{
    struct td_scalerun *run = NULL;
    struct td_scalerun_job job = {.n_ranks = 1, .command = "version", .limit_ns = S};
    struct td_bytes out = {0};
    struct td_err err;

    (void)state;
    assert_int_equal(td_scalerun_open(&run, &err), TD_OK);
    assert_int_equal(td_scalerun_signal(run), 0);
    assert_int_equal(raise(SIGTERM), 0);
    /* What was begun is put away all the same: tools go on. */
    assert_int_equal(shell(run, "echo done", 20 * S, &out, &err), TD_OK);
    assert_memory_equal(out.data, "done\n", 5);
    assert_int_equal(td_scalerun_signal(run), SIGTERM);
    assert_int_equal(td_scalerun_start(run, &job, &out, &err), TD_CANCELLED);
    assert_non_null(strstr(err.cause, "signal 15"));
    assert_int_equal(out.len, 5);
    td_bytes_deinit(&out);
    td_scalerun_close(run);
}

static void test_scalerun_finds_the_reason_in_what_a_job_said(void **state)
{
    static const char *const cases[][2] = {
        {"", ""},
        {"-----------\nThere are not enough slots\nthat were requested.\n----------\n",
         "There are not enough slots that were requested."},
        {"measuring 10 %\ntensord bench: --batch 600: expected less\n-------\nmpirun: Exit code: "
         "1\n",
         "tensord bench: --batch 600: expected less"},
        {"tensord: warning: the variable X names no option\ntensord bench: no memory\n",
         "tensord bench: no memory"},
        {"loading    2 %  1 KiB of 7 MiB\nmeasuring  100 %  2 of 2 runs\nkilled\n", "killed"},
        {"no newline", "no newline"},
        {"a\x1b[31m\tb\r\n", "a[31mb"},
        {"0123456789012345678901234567890123456789012345678901234567890123456789",
         "012345678901234567890123456789012345678901234567890123456789012"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[64];

        assert_string_equal(td_scalerun_reason(td_str_from(cases[i][0]), text, sizeof text),
                            cases[i][1]);
    }
}

/* ---- netlab ---- */

static void make_program(const char *path)
{
    FILE *f = fopen(path, "we");

    assert_non_null(f);
    fclose(f);
    assert_int_equal(chmod(path, 0755), 0);
}

static void
test_scalelab_finds_netlab_in_the_tree_the_installation_and_the_environment(void **state)
{
    /* Where the program lies, and netlab as seen from there. */
    static const char *const places[][3] = {
        {"build", "deploy/netlab", "deploy/netlab/netlab"},
        {"build/asan", "deploy/netlab", "deploy/netlab/netlab"},
        {"usr/bin", "usr/share/tensord/netlab", "usr/share/tensord/netlab/netlab"},
    };
    char root[] = "/tmp/td-scalelab-XXXXXX", command[256], folder[128], program[128], found[512];
    struct td_err err;

    (void)state;
    unsetenv("NETLAB_COMMAND");
    assert_non_null(mkdtemp(root));
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        struct stat a, b;

        snprintf(folder, sizeof folder, "%s/%s", root, places[i][0]);
        snprintf(command, sizeof command, "rm -rf %s/* && mkdir -p %s %s/%s", root, folder, root,
                 places[i][1]);
        assert_int_equal(system(command), 0);
        assert_int_equal(td_scalelab_find(folder, found, sizeof found, &err), TD_NOT_FOUND);
        assert_non_null(strstr(err.cause, "NETLAB_COMMAND"));
        assert_non_null(strstr(err.cause, folder));
        snprintf(program, sizeof program, "%s/%s", root, places[i][2]);
        make_program(program);
        assert_int_equal(td_scalelab_find(folder, found, sizeof found, &err), TD_OK);
        assert_int_equal(stat(found, &a) | stat(program, &b), 0);
        assert_true(a.st_ino == b.st_ino);
    }
    setenv("NETLAB_COMMAND", "/no/such/netlab", 1);
    assert_int_equal(td_scalelab_find(folder, found, sizeof found, &err), TD_NOT_FOUND);
    assert_non_null(strstr(err.cause, "/no/such/netlab"));
    setenv("NETLAB_COMMAND", program, 1);
    assert_int_equal(td_scalelab_find("/", found, sizeof found, &err), TD_OK);
    assert_string_equal(found, program);
    unsetenv("NETLAB_COMMAND");
    snprintf(command, sizeof command, "rm -rf %s", root);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_scalerun_gives_all_that_a_tool_printed, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_scalerun_says_why_a_tool_failed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_scalerun_ends_a_tool_at_its_limit, setup, teardown),
        cmocka_unit_test(test_scalerun_starts_nothing_after_a_signal),
        cmocka_unit_test(test_scalerun_finds_the_reason_in_what_a_job_said),
        cmocka_unit_test(
            test_scalelab_finds_netlab_in_the_tree_the_installation_and_the_environment),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
