/* The same matrix as on the simulated group, over real MPI: this program starts itself under mpirun, and every rank
 * leaves its verdict as a file in a directory that the parent reads. */
#include "comm/comm_mpi.h"

#include "kernels/base/clock.h"
#include "tests/unit/comm/comm_check.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <mpi.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum { MS = 1000 * 1000, JOB_LIMIT_MS = 60 * 1000 };

extern char **environ;

static const char *self_path;

static void pause_ms(long ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * MS};

    nanosleep(&ts, NULL);
}

/* ---- one rank ---- */

/* Leaves the verdict, and with `stay` waits for the others': mpirun ends them all when one exits without finalising. */
static void report(const char *dir, uint32_t rank, uint32_t size, const char *fail, bool stay)
{
    char path[512];
    char ready[600];
    FILE *f;

    snprintf(path, sizeof path, "%s/rank.%u", dir, rank);
    snprintf(ready, sizeof ready, "%s.part", path);
    f = fopen(ready, "w");
    if (!f || fprintf(f, "%s", fail) < 0 || fclose(f) != 0 || rename(ready, path) != 0)
        exit(3);
    for (int waited = 0; stay && waited < 10000; waited += 10) {
        uint32_t n = 0;

        for (uint32_t r = 0; r < size; r++) {
            snprintf(path, sizeof path, "%s/rank.%u", dir, r);
            n += access(path, F_OK) == 0;
        }
        if (n == size)
            return;
        pause_ms(10);
    }
}

static void run_matrix(struct comm_check *k)
{
    static const size_t sizes[] = {0, 1, 5, 4096, 65537, 1048579, 16777216};
    static const size_t in_pieces[] = {1, 999, 1000, 1001, 3000, 12345};
    uint32_t n = td_comm_size(k->comm);
    struct td_comm_mpi_place place = {0};
    struct td_comm *host = NULL;
    struct td_err err;

    if (!td_comm_mpi_place(&place) || place.rank != td_comm_rank(k->comm) || place.size != n ||
        place.local_size != n || place.local_rank >= n) {
        check_fail(k, "the environment says another place", place.rank, place.size);
        return;
    }
    td_comm_set_deadline(k->comm, 30000ull * MS);
    if (!check_sizes(k, sizes, sizeof sizes / sizeof sizes[0]) || !check_sums(k, 12, n > 2) ||
        !check_split(k) || !check_split(k))
        return;
    td_comm_mpi_set_piece(k->comm, 1000);
    if (!check_sizes(k, in_pieces, sizeof in_pieces / sizeof in_pieces[0]) ||
        !check_sums(k, 4, false))
        return;
    if (!check_ok(k, td_comm_split_host(k->comm, &host, &err), &err))
        return;
    if (td_comm_size(host) != n || td_comm_rank(host) != td_comm_rank(k->comm))
        check_fail(k, "host group", td_comm_size(host), td_comm_rank(host));
    td_comm_close(host);
    check_ok(k, td_comm_barrier(k->comm, &err), &err);
}

/* What does not ask the environment, by every algorithm. */
static void run_cluster(struct comm_check *k)
{
    static const size_t sizes[] = {0, 1, 5, 4096, 65537, 1048579, 16777216};

    td_comm_set_deadline(k->comm, 30000ull * MS);
    k->two_levels = strcmp(td_comm_transport(k->comm), "shm+mpi") == 0;
    if (check_sizes(k, sizes, sizeof sizes / sizeof sizes[0]) && check_sums(k, 12, true) &&
        check_algorithms(k, 3, true) && check_split(k))
        check_split(k);
}

static void two_per_host(void)
{
    td_comm_mpi_configure(false, 2);
}

static void run_two_per_host(struct comm_check *k)
{
    if (strcmp(td_comm_transport(k->comm), "shm+mpi") != 0)
        check_fail(k, td_comm_transport(k->comm), 0, 0);
    run_cluster(k);
}

static void messages_only(void)
{
    td_comm_mpi_configure(true, 0);
}

/* A rank whose files may not grow has no memory to share. */
static void no_memory(void)
{
    struct td_comm_mpi_place place = {0};
    struct rlimit none = {0, RLIM_INFINITY};
    int provided;

    MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &provided);
    signal(SIGXFSZ, SIG_IGN);
    if (!td_comm_mpi_place(&place) || (place.rank == 1 && setrlimit(RLIMIT_FSIZE, &none) != 0))
        exit(3);
}

static void run_messages(struct comm_check *k)
{
    const struct rlimit any = {RLIM_INFINITY, RLIM_INFINITY};

    if (setrlimit(RLIMIT_FSIZE, &any) != 0) /* for the verdict */
        exit(3);
    if (strcmp(td_comm_transport(k->comm), "mpi") != 0)
        check_fail(k, td_comm_transport(k->comm), 0, 0);
    run_cluster(k);
}

static enum td_status sum_of_two(struct td_comm *c, struct td_err *err)
{
    const struct td_leaf_run runs[8] = {{0, 1}, {1, 2}, {2, 3}, {3, 4},
                                        {4, 5}, {5, 6}, {6, 7}, {7, 8}};
    struct td_tree_layout layout = {td_comm_size(c), runs};
    static float parts[5000];
    static float scratch[8 * 5000];
    static float out[5000];

    return td_comm_tree_sum(c, &layout, parts, 5000, scratch, out, err);
}

/* Rank 0 sleeps; the others' sum ends at the deadline. */
static void run_stall(struct comm_check *k)
{
    uint64_t start_ns;
    uint64_t took_ms;
    enum td_status got;
    struct td_err err = {0};

    if (!check_ok(k, td_comm_barrier(k->comm, &err), &err))
        return;
    if (td_comm_rank(k->comm) == 0) {
        pause_ms(1500);
        return;
    }
    td_comm_set_deadline(k->comm, 300ull * MS);
    start_ns = td_clock_now_ns();
    got = sum_of_two(k->comm, &err);
    took_ms = (td_clock_now_ns() - start_ns) / MS;
    if (got != TD_PEER_TIMED_OUT || !strstr(err.cause, "rank 0 did not answer within 0.300 s"))
        check_fail(k, err.cause, (size_t)got, 0);
    if (took_ms < 300 || took_ms > 1400)
        check_fail(k, "the deadline was not kept (ms)", took_ms, 0);
    if (td_comm_barrier(k->comm, &err) != TD_PEER_TIMED_OUT)
        check_fail(k, "the group could be used after a time-out", 0, 0);
}

static void *abort_soon(void *comm)
{
    pause_ms(100);
    td_comm_abort(comm);
    return NULL;
}

/* Nobody sends; each rank's wait is ended by a thread of its own. */
static void run_abort(struct comm_check *k)
{
    pthread_t thread;
    struct td_comm *sub = NULL;
    uint64_t start_ns;
    enum td_status got;
    uint8_t byte;
    struct td_err err = {0};

    if (!check_ok(k, td_comm_split(k->comm, 0, 0, &sub, &err), &err))
        return;
    if (pthread_create(&thread, NULL, abort_soon, k->comm) != 0)
        exit(3);
    start_ns = td_clock_now_ns();
    got = td_comm_recv(sub, (td_comm_rank(sub) + 1) % td_comm_size(sub), &byte, 1, &err);
    if (got != TD_PEER_LOST)
        check_fail(k, err.cause, (size_t)got, 0);
    if (td_clock_now_ns() - start_ns > 1400ull * MS)
        check_fail(k, "abort took too long", 0, 0);
    pthread_join(thread, NULL);
    td_comm_close(sub);
}

/* Rank 0 sends too little, then too much. */
static void run_lengths(struct comm_check *k)
{
    char data[64] = {0};
    struct td_err err = {0};

    td_comm_set_deadline(k->comm, 5000ull * MS);
    if (td_comm_rank(k->comm) == 0) {
        check_ok(k, td_comm_send(k->comm, 1, data, 8, &err), &err);
        check_ok(k, td_comm_send(k->comm, 2, data, 32, &err), &err);
    } else if (td_comm_recv(k->comm, 0, data, 16, &err) != TD_PEER_PROTOCOL) {
        check_fail(k, "a message of another length was taken", 0, 0);
    }
}

static const struct mode {
    const char *name;
    void (*run)(struct comm_check *k);
    bool fails;            /* the group ends without MPI_Finalize */
    void (*prepare)(void); /* before the group is opened, or NULL */
} modes[] = {{"matrix", run_matrix, false, NULL},
             {"hosts", run_two_per_host, false, two_per_host},
             {"messages", run_messages, false, messages_only},
             {"no-memory", run_messages, false, no_memory},
             {"stall", run_stall, true, NULL},
             {"abort", run_abort, true, NULL},
             {"lengths", run_lengths, true, NULL}};

static int run_mode(const struct mode *mode, const char *dir)
{
    struct comm_check k = {.seed = 77};
    struct td_comm *again;
    uint32_t rank, size;
    int finalised = 0;
    struct td_err err;

    if (mode->prepare)
        mode->prepare();
    if (td_comm_mpi_open(&k.comm, &err) != TD_OK) {
        fprintf(stderr, "%s\n", err.cause);
        return 3;
    }
    rank = td_comm_rank(k.comm);
    size = td_comm_size(k.comm);
    k.seed += size;
    mode->run(&k);
    if (mode->fails && rank == 0)
        td_comm_abort(k.comm); /* the others gave up: finalising would wait for them */
    td_comm_close(k.comm);
    MPI_Finalized(&finalised);
    if (!mode->fails && !finalised) /* what `prepare` has initialised */
        MPI_Finalize();
    if (td_comm_mpi_open(&again, &err) != TD_UNSUPPORTED)
        snprintf(k.fail, sizeof k.fail, "MPI was opened after its end");
    report(dir, rank, size, k.fail, mode->fails);
    if (mode->fails)
        _exit(0);
    return 0;
}

static int run_rank(const char *mode, const char *dir)
{
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        if (strcmp(mode, modes[i].name) == 0)
            return run_mode(&modes[i], dir);
    }
    return 3;
}

/* ---- the parent ---- */

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)st;
    (void)kind;
    (void)ftw;
    remove(path);
    return 0;
}

/* mpirun's own words go to a file, shown when a rank leaves no verdict. */
static void print_log(const char *dir)
{
    char path[512];
    char line[512];
    FILE *f;

    snprintf(path, sizeof path, "%s/log", dir);
    f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        print_error("%s", line);
    if (f)
        fclose(f);
}

/* Waits for the job's end at most JOB_LIMIT_MS. */
static void await_job(pid_t pid)
{
    for (int waited = 0; waited < JOB_LIMIT_MS; waited += 10) {
        int status;

        if (waitpid(pid, &status, WNOHANG) == pid)
            return;
        pause_ms(10);
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void run_job(const char *mode, uint32_t n)
{
    char dir[] = "/dev/shm/tensord-comm-XXXXXX";
    char count[16];
    char log[64];
    char *argv[] = {(char *)"mpirun",        (char *)"-n", count, (char *)(uintptr_t)self_path,
                    (char *)(uintptr_t)mode, dir,          NULL};
    posix_spawn_file_actions_t actions;
    char fail[1024] = "";
    pid_t pid;
    int rc;

    assert_non_null(mkdtemp(dir));
    snprintf(count, sizeof count, "%u", n);
    snprintf(log, sizeof log, "%s/log", dir);
    setenv("OMPI_MCA_orte_tmpdir_base", dir, 1);
    setenv("OMPI_MCA_btl_vader_backing_directory", dir, 1);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    rc = posix_spawnp(&pid, "mpirun", &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (rc == 0)
        await_job(pid);
    for (uint32_t r = 0; r < n && rc == 0 && !fail[0]; r++) {
        char path[64];
        FILE *f;

        snprintf(path, sizeof path, "%s/rank.%u", dir, r);
        f = fopen(path, "r");
        if (!f) {
            snprintf(fail, sizeof fail, "%s: rank %u of %u left no verdict", mode, r, n);
            print_log(dir);
            break;
        }
        fail[fread(fail, 1, sizeof fail - 1, f)] = '\0';
        fclose(f);
    }
    nftw(dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    assert_int_equal(rc, 0);
    if (fail[0])
        fail_msg("%s", fail);
}

/* True when mpirun is there; else says so and skips. */
static void need_mpirun(void)
{
    const char *path = getenv("PATH");
    char try[4096];

#ifdef __SANITIZE_THREAD__
    print_message("SKIPPED: Open MPI is not built for ThreadSanitizer\n");
    skip();
#endif
    for (const char *at = path; at && *at;) {
        size_t len = strcspn(at, ":");

        snprintf(try, sizeof try, "%.*s/mpirun", (int)len, at);
        if (access(try, X_OK) == 0)
            return;
        at += len + (at[len] == ':');
    }
    print_message("SKIPPED: no mpirun in PATH (Debian: openmpi-bin)\n");
    skip();
}

static void test_comm_mpi_matrix_on_1_2_3_4_5_and_8_ranks(void **state)
{
    static const uint32_t ranks[] = {1, 2, 3, 4, 5, 8};

    (void)state;
    need_mpirun();
    for (size_t i = 0; i < sizeof ranks / sizeof ranks[0]; i++)
        run_job("matrix", ranks[i]);
}

static void test_comm_mpi_on_several_hosts_and_by_messages_alone_does_the_same(void **state)
{
    (void)state;
    need_mpirun();
    for (uint32_t n = 3; n <= 6; n++)
        run_job("hosts", n);
    run_job("messages", 3);
}

static void test_comm_mpi_sends_messages_where_a_rank_has_no_memory_to_share(void **state)
{
    (void)state;
    need_mpirun();
    run_job("no-memory", 3);
}

static void test_comm_mpi_a_rank_that_sleeps_times_the_others_out(void **state)
{
    (void)state;
    need_mpirun();
    run_job("stall", 3);
}

static void test_comm_mpi_abort_from_another_thread_ends_a_wait(void **state)
{
    (void)state;
    need_mpirun();
    run_job("abort", 2);
}

static void test_comm_mpi_refuses_messages_of_another_length(void **state)
{
    (void)state;
    need_mpirun();
    run_job("lengths", 3);
}

static void test_comm_mpi_names_its_library_without_initialising(void **state)
{
    int initialised = 1;

    (void)state;
    assert_true(strlen(td_comm_mpi_version()) > 3);
    assert_null(strchr(td_comm_mpi_version(), '\n'));
    MPI_Initialized(&initialised);
    assert_false(initialised);
}

static void clear_launchers(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK",
                                        "SLURM_PROCID", "SLURM_STEP_ID"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        unsetenv(names[i]);
}

static void test_comm_mpi_reads_its_place_from_the_launchers_environment(void **state)
{
    struct td_comm_mpi_place place;

    (void)state;
    clear_launchers();
    assert_false(td_comm_mpi_launched());
    setenv("SLURM_PROCID", "3", 1); /* a batch script */
    setenv("SLURM_NTASKS", "8", 1);
    setenv("SLURM_LOCALID", "1", 1);
    assert_false(td_comm_mpi_launched());
    setenv("SLURM_STEP_ID", "0", 1);
    assert_true(td_comm_mpi_place(&place));
    assert_int_equal(place.rank, 3);
    assert_int_equal(place.size, 8);
    assert_int_equal(place.local_rank, 1);
    setenv("PMI_RANK", "x1", 1); /* no number: no rank */
    assert_true(td_comm_mpi_place(&place));
    assert_int_equal(place.rank, 3);
    setenv("OMPI_COMM_WORLD_RANK", "5", 1);
    setenv("OMPI_COMM_WORLD_SIZE", "6", 1);
    setenv("OMPI_COMM_WORLD_LOCAL_RANK", "2", 1);
    setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "3", 1);
    assert_true(td_comm_mpi_place(&place));
    assert_int_equal(place.rank, 5);
    assert_int_equal(place.size, 6);
    assert_int_equal(place.local_rank, 2);
    assert_int_equal(place.local_size, 3);
    clear_launchers();
    unsetenv("OMPI_COMM_WORLD_SIZE");
    unsetenv("OMPI_COMM_WORLD_LOCAL_RANK");
    unsetenv("OMPI_COMM_WORLD_LOCAL_SIZE");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comm_mpi_names_its_library_without_initialising),
        cmocka_unit_test(test_comm_mpi_reads_its_place_from_the_launchers_environment),
        cmocka_unit_test(test_comm_mpi_matrix_on_1_2_3_4_5_and_8_ranks),
        cmocka_unit_test(test_comm_mpi_on_several_hosts_and_by_messages_alone_does_the_same),
        cmocka_unit_test(test_comm_mpi_sends_messages_where_a_rank_has_no_memory_to_share),
        cmocka_unit_test(test_comm_mpi_a_rank_that_sleeps_times_the_others_out),
        cmocka_unit_test(test_comm_mpi_abort_from_another_thread_ends_a_wait),
        cmocka_unit_test(test_comm_mpi_refuses_messages_of_another_length),
    };

    if (argc == 3)
        return run_rank(argv[1], argv[2]);
    self_path = argv[0];
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 1);
    setenv("OMPI_MCA_pml", "ob1", 1);
    setenv("OMPI_MCA_btl", "self,vader,tcp", 1);
    setenv("OMPI_MCA_osc", "^ucx", 1);
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 1);
    /* Open MPI keeps memory until the process ends. */
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
