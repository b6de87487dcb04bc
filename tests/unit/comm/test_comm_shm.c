/* The matrix over shared memory between threads, on one host and on hosts that only exchange messages. */
#include "comm/shm.h"
#include "comm/wait.h"
#include "kernels/base/clock.h"
#include "tests/unit/comm/comm_threads.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static void run_group(uint32_t n, const uint32_t *hosts, uint64_t seed, rank_fn fn, void *shared,
                      void (*meanwhile)(struct td_comm **comms))
{
    struct td_comm *comms[MAX_RANKS];
    struct td_err err;

    assert_int_equal(td_comm_shm_open(n, hosts, comms, &err), TD_OK);
    run_ends(n, comms, seed, hosts != NULL, fn, shared, meanwhile);
}

static void all_sizes(struct comm_check *k, void *shared)
{
    static const size_t sizes[] = {0,    1,     2,      3,      64,     1000,    2048,
                                   2049, 65536, 262144, 262145, 262147, 1048576, 16777216};

    (void)shared;
    check_sizes(k, sizes, sizeof sizes / sizeof sizes[0]);
}

static void test_comm_shm_moves_every_size_between_1_to_8_ranks(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= MAX_RANKS; n++)
        run_group(n, NULL, 100 + n, all_sizes, NULL, NULL);
}

static void all_sums(struct comm_check *k, void *shared)
{
    (void)shared;
    if (check_sums(k, 12, true) && check_tree_sum(k, k->seed, 7, 1u << 20, CHECK_OUT_IN_PARTS))
        check_algorithms(k, 4, true);
}

static void test_comm_shm_tree_sum_has_the_same_bits_by_every_algorithm(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= MAX_RANKS; n++)
        run_group(n, NULL, 7 * n, all_sums, NULL, NULL);
}

static void all_of_a_cluster(struct comm_check *k, void *shared)
{
    static const size_t sizes[] = {0, 1, 5, 4096, 300000};

    (void)shared;
    if (check_sizes(k, sizes, sizeof sizes / sizeof sizes[0]) && check_sums(k, 12, true) &&
        check_algorithms(k, 6, true) && check_split(k))
        check_split(k);
}

/* Even and uneven hosts, neighbours apart, a rank alone. */
static void test_comm_shm_on_several_hosts_does_the_same(void **state)
{
    static const struct {
        uint32_t n, hosts[MAX_RANKS];
    } clusters[] = {
        {2, {0, 1}},
        {3, {0, 0, 1}},
        {3, {5, 7, 7}},
        {4, {0, 0, 1, 1}},
        {4, {0, 1, 0, 1}},
        {5, {0, 0, 0, 1, 1}},
        {6, {2, 2, 1, 1, 0, 0}},
        {7, {0, 1, 2, 0, 1, 2, 0}},
        {8, {0, 0, 0, 0, 4, 4, 4, 4}},
        {8, {0, 0, 1, 1, 2, 2, 3, 3}},
        {8, {0, 1, 1, 1, 1, 1, 1, 1}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof clusters / sizeof clusters[0]; i++)
        run_group(clusters[i].n, clusters[i].hosts, 900 + i, all_of_a_cluster, NULL, NULL);
}

static void many_groups(struct comm_check *k, void *shared)
{
    (void)shared;
    for (int i = 0; i < 40; i++) {
        if (!check_split(k))
            return;
    }
}

static void test_comm_shm_splits_many_times(void **state)
{
    (void)state;
    run_group(5, NULL, 11, many_groups, NULL, NULL);
}

/* More groups at a time than there are places: the later ones send messages. */
static void more_groups_than_places(struct comm_check *k, void *shared)
{
    struct td_comm *groups[12];
    struct td_err err;
    bool ok = true;

    (void)shared;
    for (int i = 0; i < 12; i++) {
        if (!check_ok(k, td_comm_split(k->comm, 0, 0, &groups[i], &err), &err))
            return;
    }
    for (int i = 0; i < 12 && ok; i++) {
        struct comm_check sub = {
            .comm = groups[i], .seed = k->seed + (uint64_t)i, .two_levels = k->two_levels};

        ok = check_sums(&sub, 3, false) && check_bcast(&sub, 1, 70000) &&
             check_gather(&sub, 5000, 0, true);
        if (!ok)
            memcpy(k->fail, sub.fail, sizeof k->fail);
    }
    for (int i = 0; i < 12; i++)
        td_comm_close(groups[i]);
}

static void test_comm_shm_groups_without_a_place_work_as_well(void **state)
{
    static const uint32_t hosts[] = {0, 1, 1, 0, 2};

    (void)state;
    run_group(3, NULL, 5, more_groups_than_places, NULL, NULL);
    run_group(5, hosts, 6, more_groups_than_places, NULL, NULL);
}

/* Ranks 0 and 1 leave a group of three, and make one of their own before rank 2 has read what was said in the old one. */
static void a_group_after_another(struct comm_check *k, void *shared)
{
    struct td_comm *two = NULL, *all = NULL, *next = NULL;
    uint32_t me = td_comm_rank(k->comm), word = me == 0 ? 1111 : 0, other = me == 0 ? 2222 : 0;
    struct td_err err;

    (void)shared;
    if (!check_ok(k, td_comm_split(k->comm, me < 2 ? 0 : 1, 0, &two, &err), &err) ||
        !check_ok(k, td_comm_split(k->comm, 0, 0, &all, &err), &err))
        return;
    if (me == 2)
        pause_ms(50);
    if (check_ok(k, td_comm_bcast(all, 0, &word, sizeof word, &err), &err) && word != 1111)
        check_fail(k, "a later group wrote over a broadcast", word, 1111);
    td_comm_close(all);
    if (check_ok(k, td_comm_split(two, 0, 0, &next, &err), &err)) {
        for (int i = 0; i < TD_SHM_BUFFERS; i++)
            check_ok(k, td_comm_bcast(next, 0, &other, sizeof other, &err), &err);
        td_comm_close(next);
    }
    td_comm_close(two);
}

static void test_comm_shm_a_new_group_leaves_what_others_still_read(void **state)
{
    (void)state;
    run_group(3, NULL, 1, a_group_after_another, NULL, NULL);
}

/* One rank is far behind the others: nothing that it has not read is written over. */
static void one_is_slow(struct comm_check *k, void *shared)
{
    struct td_err err;

    (void)shared;
    for (uint32_t i = 0; i < 200; i++) {
        uint32_t words[500];

        for (uint32_t w = 0; w < 500; w++)
            words[w] = td_comm_rank(k->comm) == 0 ? i * 1000 + w : 0;
        if (td_comm_rank(k->comm) == 2 && i % 20 == 0)
            pause_ms(3);
        if (!check_ok(k, td_comm_bcast(k->comm, 0, words, sizeof words, &err), &err))
            return;
        for (uint32_t w = 0; w < 500; w++) {
            if (words[w] != i * 1000 + w) {
                check_fail(k, "a broadcast was written over", i, words[w]);
                return;
            }
        }
    }
}

static void test_comm_shm_a_writer_waits_for_the_slowest_reader(void **state)
{
    (void)state;
    run_group(3, NULL, 1, one_is_slow, NULL, NULL);
}

/* ---- rest ---- */

static atomic_bool has_errand;

/* Ranks that rest are called by a broadcast of rank 0, by a ring with an errand, by an abort; and go back by themselves. */
static void rest_and_be_called(struct comm_check *k, void *shared)
{
    uint32_t me = td_comm_rank(k->comm);
    uint32_t word = me == 0 ? 7 : 0;
    struct td_err err;

    (void)shared;
    if (td_comm_can_rest(k->comm, 0) != (me > 0)) {
        check_fail(k, "who may rest", me, 0);
        return;
    }
    if (me == 0) {
        pause_ms(60);
    } else {
        if (td_comm_rest(k->comm, 0, 5 * MS, &has_errand))
            check_fail(k, "called by nobody", me, 0);
        while (!td_comm_rest(k->comm, 0, 1000ull * MS, &has_errand))
            ;
    }
    if (!check_ok(k, td_comm_bcast(k->comm, 0, &word, sizeof word, &err), &err) || word != 7) {
        check_fail(k, "another word", word, me);
        return;
    }
    atomic_fetch_add(&n_ready, 1);
    if (me > 0) {
        uint64_t start = td_clock_now_ns();

        if (td_comm_rest(k->comm, 0, 20000ull * MS, &has_errand))
            check_fail(k, "called by a ring", me, 0);
        if (td_clock_now_ns() - start > 5000ull * MS)
            check_fail(k, "the ring was not heard", me, 0);
    }
}

static void ring_all(struct td_comm **comms)
{
    while (atomic_load(&n_ready) < 3)
        pause_ms(1);
    pause_ms(20);
    atomic_store(&has_errand, true);
    for (uint32_t r = 0; r < 3; r++)
        td_comm_ring(comms[r]);
}

static void test_comm_shm_a_resting_rank_is_called_and_rung(void **state)
{
    (void)state;
    atomic_store(&has_errand, false);
    run_group(3, NULL, 1, rest_and_be_called, NULL, ring_all);
}

/* ---- faults ---- */

enum operation { RECV, SEND, BCAST, ALL_GATHER, GATHER, BARRIER, TREE_SUM, N_OPERATIONS };
enum { FIRST_COLLECTIVE = BCAST };

static enum td_status do_operation(struct td_comm *c, uint32_t op, uint32_t victim,
                                   struct td_err *err)
{
    static char sink[MAX_RANKS][MAX_RANKS * 70000];
    static float floats[MAX_RANKS][MAX_RANKS * 5000];
    uint32_t me = td_comm_rank(c), n = td_comm_size(c);
    char data[70000] = {0};
    struct td_leaf_run runs[MAX_RANKS];
    struct td_tree_layout layout = {n, runs};
    float out[5000], own[5000] = {0};
    size_t bytes[MAX_RANKS];

    for (uint32_t r = 0; r < n; r++) {
        bytes[r] = sizeof data;
        runs[r] = (struct td_leaf_run){r, r + 1};
    }
    switch (op) {
    case RECV:
        return td_comm_recv(c, victim, data, sizeof data, err);
    case SEND:
        return td_comm_send(c, victim, data, sizeof data, err);
    case BCAST:
        return td_comm_bcast(c, victim, data, sizeof data, err);
    case ALL_GATHER:
        return td_comm_all_gather(c, data, bytes, sink[me], err);
    case GATHER:
        return td_comm_gather(c, (victim + 1) % n, data, bytes, sink[me], err);
    case BARRIER:
        return td_comm_barrier(c, err);
    default:
        return td_comm_tree_sum(c, &layout, own, 5000, floats[me], out, err);
    }
}

struct fault {
    uint32_t op;
    bool deadline;
};

/* The last rank leaves (or stays away till the others' deadline); the others are in `op`. */
static void run_fault(struct comm_check *k, void *shared)
{
    const struct fault *f = shared;
    uint32_t n = td_comm_size(k->comm), victim = n - 1;
    enum td_status want = f->deadline ? TD_PEER_TIMED_OUT : TD_PEER_LOST, got;
    uint64_t start, took_ms;
    struct td_err err = {0};

    if (f->deadline)
        td_comm_set_deadline(k->comm, 150ull * MS);
    if (td_comm_rank(k->comm) == victim) {
        pause_ms(f->deadline ? 400 : 20);
        if (!f->deadline)
            td_comm_abort(k->comm);
        return;
    }
    start = td_clock_now_ns();
    /* A rank that needs nothing of the victim passes; the barrier then tells it. */
    got = do_operation(k->comm, f->op, victim, &err);
    if (got == TD_OK)
        got = td_comm_barrier(k->comm, &err);
    took_ms = (td_clock_now_ns() - start) / MS;
    if (got != want && got != TD_PEER_LOST)
        check_fail(k, err.cause, (size_t)got, f->op);
    if (took_ms > 5000)
        check_fail(k, "it took too long (ms)", took_ms, f->op);
    if (td_comm_barrier(k->comm, &err) != got)
        check_fail(k, "the group was used after its end", (size_t)got, f->op);
}

static void test_comm_shm_a_lost_rank_ends_every_wait(void **state)
{
    (void)state;
    for (uint32_t op = 0; op < N_OPERATIONS; op++) {
        for (int deadline = 0; deadline < 2; deadline++) {
            struct fault f = {op, deadline};

            run_group(3, NULL, op, run_fault, &f, NULL);
            run_group(2, NULL, op, run_fault, &f, NULL);
        }
    }
}

/* A rank that is a process of its own, in `op` again and again until another one is lost. Returns its exit status. */
static int run_process(struct td_comm *c, uint32_t op, uint32_t victim, atomic_uint *n_watching)
{
    enum td_status status;
    struct td_err err;

    td_comm_set_deadline(c, 10000ull * MS);
    td_shm_say_pid(c->world->shm);
    status = td_comm_barrier(c, &err);
    td_shm_watch(c->world->shm);
    atomic_fetch_add(n_watching, 1);
    while (status == TD_OK)
        status = do_operation(c, op, victim, &err);
    return (int)status;
}

static void kill_in(uint32_t n, uint32_t op, long after_us)
{
    struct timespec after = {.tv_nsec = after_us * 1000};
    atomic_uint *n_watching =
        mmap(NULL, sizeof *n_watching, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct td_comm *comms[MAX_RANKS];
    pid_t pids[MAX_RANKS];
    struct td_err err;

    assert_ptr_not_equal(n_watching, MAP_FAILED);
    assert_int_equal(td_comm_shm_open(n, NULL, comms, &err), TD_OK);
    for (uint32_t r = 0; r < n; r++) {
        pids[r] = fork();
        assert_true(pids[r] >= 0);
        if (pids[r] == 0)
            _exit(run_process(comms[r], op, n - 1, n_watching));
    }
    while (atomic_load(n_watching) < n)
        pause_ms(1);
    nanosleep(&after, NULL);
    kill(pids[n - 1], SIGKILL);
    for (uint32_t r = 0; r < n; r++) {
        int status;

        assert_int_equal(waitpid(pids[r], &status, 0), pids[r]);
        assert_int_equal(status, r == n - 1 ? SIGKILL : TD_PEER_LOST << 8);
        td_comm_close(comms[r]);
    }
    munmap(n_watching, sizeof *n_watching);
}

static void test_comm_shm_a_killed_process_ends_every_wait(void **state)
{
    (void)state;
    for (uint32_t op = FIRST_COLLECTIVE; op < N_OPERATIONS; op++) {
        for (uint32_t i = 0; i < 5; i++)
            kill_in(2 + i % 2, op, 2000 + 777 * i);
    }
}

/* What a rank gave right before it left is there at the next look, so there is one. */
static void test_comm_shm_a_wait_looks_once_more_after_the_others_end(void **state)
{
    struct td_comm *comms[2];
    struct td_wait w;
    struct td_err err;

    (void)state;
    assert_int_equal(td_comm_shm_open(2, NULL, comms, &err), TD_OK);
    comms[0]->op = "test";
    comms[0]->deadline_ns = UINT64_MAX;
    td_wait_begin(&w, comms[0], true);
    assert_int_equal(td_wait_pause(&w, 1, &err), TD_OK);
    pause_ms(15); /* another look at its life is due */
    td_comm_abort(comms[1]);
    assert_int_equal(td_wait_pause(&w, 1, &err), TD_OK);
    assert_int_equal(td_wait_pause(&w, 1, &err), TD_PEER_LOST);
    td_wait_end(&w);
    td_comm_close(comms[0]);
    td_comm_close(comms[1]);
}

static void run_aborted(struct comm_check *k, void *shared)
{
    struct td_err err;
    char byte;

    (void)shared;
    atomic_fetch_add(&n_ready, 1);
    if (td_comm_recv(k->comm, (td_comm_rank(k->comm) + 1) % 2, &byte, 1, &err) != TD_PEER_LOST)
        check_fail(k, "an abort did not end the wait", 0, 0);
}

static void abort_both(struct td_comm **comms)
{
    while (atomic_load(&n_ready) < 2)
        pause_ms(1);
    pause_ms(30); /* asleep by now */
    td_comm_abort(comms[0]);
    td_comm_abort(comms[1]);
}

static void test_comm_shm_abort_from_another_thread_ends_a_wait(void **state)
{
    (void)state;
    run_group(2, NULL, 1, run_aborted, NULL, abort_both);
}

static void run_lengths(struct comm_check *k, void *shared)
{
    char data[64] = {0};
    struct td_err err = {0};

    (void)shared;
    if (td_comm_rank(k->comm) == 0)
        check_ok(k, td_comm_send(k->comm, 1, data, 8, &err), &err);
    else if (td_comm_recv(k->comm, 0, data, 16, &err) != TD_PEER_PROTOCOL ||
             !strstr(err.cause, "rank 0 sent 8 bytes, expected 16"))
        check_fail(k, err.cause, 0, 0);
}

static void test_comm_shm_refuses_messages_of_another_length(void **state)
{
    (void)state;
    run_group(2, NULL, 1, run_lengths, NULL, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comm_shm_moves_every_size_between_1_to_8_ranks),
        cmocka_unit_test(test_comm_shm_tree_sum_has_the_same_bits_by_every_algorithm),
        cmocka_unit_test(test_comm_shm_on_several_hosts_does_the_same),
        cmocka_unit_test(test_comm_shm_splits_many_times),
        cmocka_unit_test(test_comm_shm_groups_without_a_place_work_as_well),
        cmocka_unit_test(test_comm_shm_a_new_group_leaves_what_others_still_read),
        cmocka_unit_test(test_comm_shm_a_writer_waits_for_the_slowest_reader),
        cmocka_unit_test(test_comm_shm_a_resting_rank_is_called_and_rung),
        cmocka_unit_test(test_comm_shm_a_lost_rank_ends_every_wait),
        cmocka_unit_test(test_comm_shm_a_killed_process_ends_every_wait),
        cmocka_unit_test(test_comm_shm_a_wait_looks_once_more_after_the_others_end),
        cmocka_unit_test(test_comm_shm_abort_from_another_thread_ends_a_wait),
        cmocka_unit_test(test_comm_shm_refuses_messages_of_another_length),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
