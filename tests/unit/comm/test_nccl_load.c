/* NCCL's side of a group where there is no GPU: what is missing is said, by every rank, and nothing waits for ever. */
#include "comm/nccl.h"
#include "comm/nccl_impl.h"

#include "kernels/base/clock.h"
#include "tests/unit/check.h"
#include "tests/unit/comm/comm_threads.h"

#include <stdlib.h>
#include <unistd.h>

static void expect(enum td_status expected, const char *plugin, const char *library, const char *a,
                   const char *b)
{
    struct td_nccl_lib *lib = NULL;
    struct td_err err = {.status = TD_OK};

    assert_int_equal(td_nccl_load(plugin, library, &lib, &err), expected);
    assert_null(lib);
    if (!strstr(err.cause, a) || !strstr(err.cause, b))
        fail_msg("'%s', expected '%s' and '%s' in it", err.cause, a, b);
}

static void test_nccl_load_says_which_plugin_is_not_there(void **state)
{
    (void)state;
    /* Beside this program, in the tests' folder, there is none. */
    expect(TD_NOT_FOUND, NULL, NULL, "tensord-nccl.so does not open",
           "neither beside the program nor in");
    expect(TD_NOT_FOUND, "/nonexistent/x.so", NULL, "/nonexistent/x.so does not open",
           "No such file");
}

static void test_nccl_load_refuses_what_is_no_plugin(void **state)
{
    char path[] = "/tmp/td-no-plugin-XXXXXX";
    int fd = mkstemp(path);

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "not a library\n", 14), 14);
    close(fd);
    expect(TD_NOT_FOUND, path, NULL, path, "does not open");
    unlink(path);
    expect(TD_CORRUPT, "libm.so.6", NULL, "'libm.so.6' has no td_ncclplug",
           "expected tensord's NCCL plug-in");
}

static void test_nccl_load_refuses_a_plugin_of_another_build(void **state)
{
    (void)state;
    expect(TD_UNSUPPORTED, OTHER_BUILD_PLUGIN, NULL, "has interface 8, expected 2",
           "of another build");
}

static void test_nccl_judge_versions_wants_one_version_that_is_new_enough(void **state)
{
    const int equal[3] = {22809, 22809, 22809}, oldest[1] = {21901};
    const int unequal[3] = {22809, 22809, 23007}, old[2] = {21805, 21805}, ancient[1] = {2708};
    struct td_err err;

    (void)state;
    assert_int_equal(td_nccl_judge_versions(equal, 3, &err), TD_OK);
    assert_int_equal(td_nccl_judge_versions(oldest, 1, &err), TD_OK);
    assert_int_equal(td_nccl_judge_versions(unequal, 3, &err), TD_PEER_MISMATCH);
    assert_string_equal(err.cause, "rank 2 has NCCL 2.30.7 and rank 0 has 2.28.9: expected one "
                                   "version on all ranks");
    assert_int_equal(td_nccl_judge_versions(old, 2, &err), TD_UNSUPPORTED);
    assert_string_equal(err.cause, "NCCL 2.18.5, expected 2.19.1 or newer");
    assert_int_equal(td_nccl_judge_versions(ancient, 1, &err), TD_UNSUPPORTED);
    assert_string_equal(err.cause, "NCCL 2.7.8, expected 2.19.1 or newer");
}

/* Every rank's own part fails: all return the first rank's reason. */
static void open_without_plugin(struct comm_check *k, void *shared)
{
    struct td_nccl_config config = {.plugin = "/nonexistent/x.so", .open_limit_ns = 20000ull * MS};
    struct td_nccl *nccl = NULL;
    struct td_err err;
    char text[400];
    enum td_status status = td_nccl_open(k->comm, &config, &nccl, &err);

    (void)shared;
    td_err_format(&err, text, sizeof text);
    if (status != TD_NOT_FOUND || nccl ||
        !strstr(text, "open NCCL: rank 0: the plug-in /nonexistent/x.so does not open"))
        snprintf(k->fail, sizeof k->fail, "status %d: %s", (int)status, text);
    if (td_nccl_open(k->comm, &config, &nccl, NULL) != TD_NOT_FOUND)
        check_fail(k, "without room for the error it is another one", 0, 0);
}

static void run_shm(uint32_t n, rank_fn fn)
{
    struct td_comm *comms[MAX_RANKS];
    struct td_err err;

    assert_int_equal(td_comm_shm_open(n, NULL, comms, &err), TD_OK);
    run_ends(n, comms, 1, false, fn, NULL, NULL);
}

static void test_nccl_open_fails_on_all_ranks_for_the_same_reason(void **state)
{
    (void)state;
    run_shm(1, open_without_plugin);
    run_shm(3, open_without_plugin);
}

/* The last rank stays away. */
static void open_while_one_stays_away(struct comm_check *k, void *shared)
{
    struct td_nccl_config config = {.plugin = "/nonexistent/x.so", .open_limit_ns = 200ull * MS};
    struct td_nccl *nccl = NULL;
    struct td_err err;
    enum td_status status;

    (void)shared;
    if (td_comm_rank(k->comm) == td_comm_size(k->comm) - 1) {
        pause_ms(1000);
        return;
    }
    status = td_nccl_open(k->comm, &config, &nccl, &err);
    if (status != TD_PEER_TIMED_OUT && status != TD_PEER_LOST) /* lost: told so by the other one */
        snprintf(k->fail, sizeof k->fail, "status %d: %s", (int)status, err.cause);
}

static void test_nccl_open_does_not_wait_for_ever_for_a_rank_that_stays_away(void **state)
{
    (void)state;
    run_shm(2, open_while_one_stays_away);
    run_shm(3, open_while_one_stays_away);
}

#ifdef NCCL_PLUGIN

static void test_nccl_load_says_which_library_is_not_there(void **state)
{
    (void)state;
    expect(TD_NOT_FOUND, NCCL_PLUGIN, "/nonexistent/libnccl.so.2", "NCCL library does not open",
           "/nonexistent/libnccl.so.2");
    expect(TD_CORRUPT, NCCL_PLUGIN, "libm.so.6", "'libm.so.6' has no ncclGetVersion",
           "expected an NCCL library");
}

static void test_nccl_load_tells_the_version_of_a_library_that_is_there(void **state)
{
    struct td_nccl_lib *lib;
    struct td_err err;
    char text[128];
    int major, minor, patch;
    enum td_status status = td_nccl_load(NCCL_PLUGIN, NULL, &lib, &err);

    (void)state;
    if (status == TD_NOT_FOUND && strstr(err.cause, "NCCL library does not open"))
        TD_SKIP("cuda: no libnccl.so.2 here");
    assert_int_equal(status, TD_OK);
    assert_int_equal(sscanf(td_nccl_version_text(lib, text, sizeof text),
                            "NCCL %d.%d.%d (built against ", &major, &minor, &patch),
                     3);
    assert_int_equal(td_nccl_version(lib), major * 10000 + minor * 100 + patch);
    printf("%s\n", text);
    td_nccl_unload(lib);
    td_nccl_unload(NULL);
}

static void open_without_device(struct comm_check *k, void *shared)
{
    struct td_nccl_config config = {.plugin = NCCL_PLUGIN, .open_limit_ns = 20000ull * MS};
    struct td_nccl *nccl = NULL;
    struct td_err err;
    char text[400];
    enum td_status status = td_nccl_open(k->comm, &config, &nccl, &err);

    (void)shared;
    td_err_format(&err, text, sizeof text);
    if (status != TD_DEVICE || nccl || !strstr(text, "open NCCL: rank 0: cudaGetDeviceCount: CUDA"))
        snprintf(k->fail, sizeof k->fail, "status %d: %s", (int)status, text);
    td_nccl_close(nccl); /* NULL is legal */
}

static void test_nccl_open_without_a_gpu_says_so_on_all_ranks(void **state)
{
    struct td_nccl_lib *lib;
    struct td_err err;

    (void)state;
    if (td_nccl_load(NCCL_PLUGIN, NULL, &lib, &err) != TD_OK)
        TD_SKIP("cuda: no libnccl.so.2 here");
    td_nccl_unload(lib);
    run_shm(1, open_without_device);
    run_shm(4, open_without_device);
}

#else

static void test_nccl_load_says_which_library_is_not_there(void **state)
{
    (void)state;
    TD_SKIP("cuda: the plug-in is not part of this build");
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nccl_load_says_which_plugin_is_not_there),
        cmocka_unit_test(test_nccl_load_refuses_what_is_no_plugin),
        cmocka_unit_test(test_nccl_load_refuses_a_plugin_of_another_build),
        cmocka_unit_test(test_nccl_judge_versions_wants_one_version_that_is_new_enough),
        cmocka_unit_test(test_nccl_open_fails_on_all_ranks_for_the_same_reason),
        cmocka_unit_test(test_nccl_open_does_not_wait_for_ever_for_a_rank_that_stays_away),
        cmocka_unit_test(test_nccl_load_says_which_library_is_not_there),
#ifdef NCCL_PLUGIN
        cmocka_unit_test(test_nccl_load_tells_the_version_of_a_library_that_is_there),
        cmocka_unit_test(test_nccl_open_without_a_gpu_says_so_on_all_ranks),
#endif
    };

    setenv("CUDA_VISIBLE_DEVICES", "", 1); /* no GPU here, whatever the machine has */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
