/* The same matrix as on the simulated group, over real MPI: this program starts itself under mpirun, and every rank
 * leaves its verdict as a file in a directory that the parent reads. */
#include "comm/comm_mpi.h"

#include "kernels/base/clock.h"
#include "tests/unit/comm/comm_check.h"
#include "tests/unit/comm/mpi_job.h"

#include <mpi.h>
#include <pthread.h>
#include <sys/resource.h>

enum { MS = 1000 * 1000, JOB_LIMIT_MS = 60 * 1000 };

static const char *self_path;

/* ---- one rank ---- */

/* Leaves the verdict, and with `stay` waits for the others': mpirun ends them all when one exits without finalising. */
static void report(const char *dir, uint32_t rank, uint32_t size, const char *fail, bool stay)
{
    job_leave(dir, "rank", rank, fail);
    for (int waited = 0; stay && waited < 10000; waited += 10) {
        uint32_t n = 0;

        for (uint32_t r = 0; r < size; r++)
            n += job_has_left(dir, "rank", r);
        if (n == size)
            return;
        job_pause_ms(10);
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
        job_pause_ms(1500);
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
    job_pause_ms(100);
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

static void run_job(const char *mode, uint32_t n)
{
    char count[16];
    char fail[1024] = "";
    const char *words[] = {"mpirun", "-n", count, self_path, mode, "DIR", NULL};
    struct mpi_job job;

    snprintf(count, sizeof count, "%u", n);
    job_start(&job, words);
    job_await(&job, JOB_LIMIT_MS);
    for (uint32_t r = 0; r < n && !fail[0]; r++) {
        if (!job_read(&job, "rank", r, fail, sizeof fail)) {
            snprintf(fail, sizeof fail, "%s: rank %u of %u left no verdict", mode, r, n);
            job_print_log(&job);
        }
    }
    job_remove(&job);
    if (fail[0])
        fail_msg("%s", fail);
}

static void test_comm_mpi_matrix_on_1_2_3_4_5_and_8_ranks(void **state)
{
    static const uint32_t ranks[] = {1, 2, 3, 4, 5, 8};

    (void)state;
    job_need_mpirun();
    for (size_t i = 0; i < sizeof ranks / sizeof ranks[0]; i++)
        run_job("matrix", ranks[i]);
}

static void test_comm_mpi_on_several_hosts_and_by_messages_alone_does_the_same(void **state)
{
    (void)state;
    job_need_mpirun();
    for (uint32_t n = 3; n <= 6; n++)
        run_job("hosts", n);
    run_job("messages", 3);
}

static void test_comm_mpi_sends_messages_where_a_rank_has_no_memory_to_share(void **state)
{
    (void)state;
    job_need_mpirun();
    run_job("no-memory", 3);
}

static void test_comm_mpi_a_rank_that_sleeps_times_the_others_out(void **state)
{
    (void)state;
    job_need_mpirun();
    run_job("stall", 3);
}

static void test_comm_mpi_abort_from_another_thread_ends_a_wait(void **state)
{
    (void)state;
    job_need_mpirun();
    run_job("abort", 2);
}

static void test_comm_mpi_refuses_messages_of_another_length(void **state)
{
    (void)state;
    job_need_mpirun();
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
    job_set_environment();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
