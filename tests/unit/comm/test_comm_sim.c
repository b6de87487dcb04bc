#include "comm/comm_sim.h"

#include "kernels/base/clock.h"
#include "tests/unit/comm/comm_threads.h"

static void run_group(uint32_t n, uint64_t seed, rank_fn fn, void *shared,
                      void (*meanwhile)(struct td_comm **comms))
{
    struct td_comm *comms[MAX_RANKS];
    struct td_err err;

    assert_int_equal(td_comm_sim_open(n, comms, &err), TD_OK);
    run_ends(n, comms, seed, false, fn, shared, meanwhile);
}

static void all_sizes(struct comm_check *k, void *shared)
{
    static const size_t sizes[] = {0,    1,    2,     3,      64,      1000,
                                   2048, 2049, 65536, 262147, 1048576, 16777216};

    (void)shared;
    check_sizes(k, sizes, sizeof sizes / sizeof sizes[0]);
}

static void test_comm_sim_moves_every_size_between_1_to_8_ranks(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= MAX_RANKS; n++)
        run_group(n, 100 + n, all_sizes, NULL, NULL);
}

static void all_sums(struct comm_check *k, void *shared)
{
    (void)shared;
    check_sums(k, 12, true);
}

static void test_comm_sim_tree_sum_has_the_same_bits_for_any_layout(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= MAX_RANKS; n++)
        run_group(n, 7 * n, all_sums, NULL, NULL);
}

static void all_sums_of_self(struct comm_check *k)
{
    static const size_t sizes[] = {0, 1, 5000};

    assert_true(check_sizes(k, sizes, 3) && check_sums(k, 12, true) && check_split(k));
}

static void test_comm_self_does_every_operation(void **state)
{
    struct comm_check k = {.seed = 3};
    struct td_comm_stats stats;
    struct td_comm *sub;
    struct td_err err;

    (void)state;
    assert_int_equal(td_comm_self_open(&k.comm, &err), TD_OK);
    assert_string_equal(td_comm_transport(k.comm), "self");
    all_sums_of_self(&k);
    td_comm_stats(k.comm, &stats);
    assert_int_equal(stats.sent_bytes, 0);
    assert_true(stats.n_ops > 10);
    td_comm_stats_reset(k.comm);
    td_comm_stats(k.comm, &stats);
    assert_int_equal(stats.n_ops, 0);
    assert_int_equal(td_comm_split_host(k.comm, &sub, &err), TD_OK);
    td_comm_abort(k.comm);
    assert_int_equal(td_comm_barrier(sub, &err), TD_PEER_LOST);
    td_comm_close(sub);
    td_comm_close(k.comm);
    td_comm_close(NULL);
}

static void split_twice(struct comm_check *k, void *shared)
{
    (void)shared;
    if (check_split(k))
        check_split(k);
}

static void test_comm_sim_split_groups_do_not_mix(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= MAX_RANKS; n++)
        run_group(n, n, split_twice, NULL, NULL);
}

static void split_by_host(struct comm_check *k, void *shared)
{
    uint32_t me = td_comm_rank(k->comm);
    struct td_comm *host = NULL;
    struct td_err err;

    (void)shared;
    td_comm_sim_set_host(k->comm, me / 3);
    if (!check_ok(k, td_comm_split_host(k->comm, &host, &err), &err))
        return;
    if (td_comm_size(host) != (me / 3 == 2 ? 1 : 3) || td_comm_rank(host) != me % 3)
        check_fail(k, "host group", td_comm_size(host), td_comm_rank(host));
    td_comm_close(host);
}

static void test_comm_sim_split_host_follows_the_hosts(void **state)
{
    (void)state;
    run_group(7, 0, split_by_host, NULL, NULL);
}

/* All have it; ranks 2 and 4 have not, each for its own reason. */
static void agree(struct comm_check *k, void *shared)
{
    const uint32_t me = td_comm_rank(k->comm);
    enum td_status mine = TD_OK, all = TD_INVALID;
    struct td_err err;

    (void)shared;
    if (!check_ok(k, td_comm_agree(k->comm, TD_OK, &all, &err), &err))
        return;
    if (all != TD_OK)
        check_fail(k, "a status that no rank has", all, TD_OK);
    if (me == 2)
        mine = td_err_set(&err, TD_NOT_FOUND, "no file");
    if (me == 4)
        mine = td_err_set(&err, TD_NO_MEMORY, "no memory");
    if (check_ok(k, td_comm_agree(k->comm, mine, &all, &err), &err) &&
        (all != TD_NOT_FOUND || err.status != TD_NOT_FOUND || strcmp(err.cause, "rank 2: no file")))
        check_fail(k, err.cause, all, TD_NOT_FOUND);
}

static void test_comm_sim_ranks_agree_on_the_first_that_failed(void **state)
{
    (void)state;
    run_group(5, 0, agree, NULL, NULL);
}

/* Wrong arguments. */

static void misuse(struct comm_check *k, void *shared)
{
    struct td_comm *c = k->comm;
    struct td_leaf_run gap[2] = {{0, 2}, {3, 4}};
    struct td_leaf_run beyond[2] = {{0, 2}, {2, 5}};
    struct td_leaf_run shortened[2] = {{0, 2}, {2, 3}};
    struct td_tree_layout layout = {4, gap};
    float f[8] = {0};
    size_t bytes[2] = {4, 4};
    size_t huge[2] = {SIZE_MAX, 2};
    char data[8] = {0};
    struct td_err err;

    (void)shared;
#define EXPECT_INVALID(call)                                                                       \
    if ((call) != TD_INVALID)                                                                      \
    check_fail(k, "accepted " #call, 0, 0)
    EXPECT_INVALID(td_comm_send(c, td_comm_rank(c), data, 1, &err));
    EXPECT_INVALID(td_comm_send(c, 2, data, 1, &err));
    EXPECT_INVALID(td_comm_recv(c, UINT32_MAX, data, 1, &err));
    EXPECT_INVALID(td_comm_send(c, 1 - td_comm_rank(c), NULL, 1, &err));
    EXPECT_INVALID(td_comm_sendrecv(c, 2, data, 1, 0, NULL, 0, &err));
    EXPECT_INVALID(td_comm_sendrecv(c, 0, NULL, 0, td_comm_rank(c), data, 1, &err));
    EXPECT_INVALID(td_comm_sendrecv(c, 0, NULL, 0, 1 - td_comm_rank(c), NULL, 1, &err));
    EXPECT_INVALID(td_comm_bcast(c, 2, data, 1, &err));
    EXPECT_INVALID(td_comm_bcast(c, 0, NULL, 1, &err));
    EXPECT_INVALID(td_comm_all_gather(c, data, NULL, data, &err));
    EXPECT_INVALID(td_comm_all_gather(c, data, bytes, NULL, &err));
    EXPECT_INVALID(td_comm_all_gather(c, data, huge, data, &err));
    EXPECT_INVALID(td_comm_gather(c, 9, data, bytes, data, &err));
    EXPECT_INVALID(td_comm_tree_sum(c, &layout, f, 1, f, f, &err));
    layout.runs = beyond;
    EXPECT_INVALID(td_comm_tree_sum(c, &layout, f, 1, f, f, &err));
    layout.runs = shortened;
    EXPECT_INVALID(td_comm_tree_sum(c, &layout, f, 1, f, f, &err));
    if (!strstr(err.cause, "end at leaf 3, expected 4"))
        check_fail(k, err.cause, 0, 0);
    layout = (struct td_tree_layout){65, beyond};
    EXPECT_INVALID(td_comm_tree_sum(c, &layout, f, 1, f, f, &err));
    layout = (struct td_tree_layout){5, beyond};
    EXPECT_INVALID(td_comm_tree_sum(c, &layout, NULL, 1, f, f, &err));
    EXPECT_INVALID(td_comm_tree_sum(c, &layout, f, 1, NULL, f, &err));
    EXPECT_INVALID(td_comm_tree_sum(c, &layout, f, SIZE_MAX / 8, f, f, &err));
#undef EXPECT_INVALID
    check_bcast(k, 0, 10); /* the group is still good */
}

static void test_comm_refuses_wrong_arguments_and_goes_on(void **state)
{
    (void)state;
    run_group(2, 0, misuse, NULL, NULL);
}

static void different_lengths(struct comm_check *k, void *shared)
{
    char data[16] = {0};
    struct td_err err;

    (void)shared;
    if (td_comm_rank(k->comm) == 0) {
        check_ok(k, td_comm_send(k->comm, 1, data, 8, &err), &err);
        return;
    }
    if (td_comm_recv(k->comm, 0, data, 16, &err) != TD_PEER_PROTOCOL ||
        !strstr(err.cause, "rank 0 sent 8 bytes, expected 16"))
        check_fail(k, "a short message was taken", 0, 0);
}

static void test_comm_sim_finds_messages_of_another_length(void **state)
{
    (void)state;
    run_group(2, 0, different_lengths, NULL, NULL);
}

/* Rank 0 broadcasts while rank 1 receives: a bug of the caller that must not look like success. */
static void different_operations(struct comm_check *k, void *shared)
{
    uint32_t word = 0;
    struct td_err err;

    (void)shared;
    td_comm_set_deadline(k->comm, 60 * MS);
    if (td_comm_rank(k->comm) == 0)
        check_ok(k, td_comm_bcast(k->comm, 0, &word, sizeof word, &err), &err);
    else if (td_comm_recv(k->comm, 0, &word, sizeof word, &err) != TD_PEER_TIMED_OUT)
        check_fail(k, "a receive took a broadcast", 0, 0);
}

static void test_comm_sim_different_operations_do_not_mix(void **state)
{
    (void)state;
    run_group(2, 0, different_operations, NULL, NULL);
}

/* Loss, deadline and abort. Rank 0 stays away; the others wait in one operation after another kind. */

enum op { OP_TREE_SUM, OP_BCAST, OP_ALL_GATHER, OP_GATHER, OP_BARRIER, OP_RECV, OP_SEND, N_OPS };

struct wait_case {
    enum op op;
    uint64_t op_limit_ns;
    enum td_status expected;
    uint64_t at_most_ms;
    bool in_split_group;
    bool leaves; /* rank 0 closes its end at once */
};

static void await_ready(uint32_t n)
{
    while (atomic_load(&n_ready) < n)
        pause_ms(1);
    pause_ms(30);
}

static enum td_status wait_in(struct td_comm *c, enum op op, struct td_err *err)
{
    static char big[10000];
    char data[MAX_RANKS * 4] = {0};
    char all[MAX_RANKS * 4];
    size_t bytes[MAX_RANKS];
    struct td_leaf_run runs[MAX_RANKS];
    struct td_tree_layout layout = {MAX_RANKS, runs};
    float parts[TD_TREE_MAX_PARTS * 2] = {0};
    float scratch[MAX_RANKS * 2];
    float out[2];

    for (uint32_t r = 0; r < td_comm_size(c); r++) {
        bytes[r] = 4;
        runs[r] = (struct td_leaf_run){r, r + 1 == td_comm_size(c) ? MAX_RANKS : r + 1};
    }
    switch (op) {
    case OP_TREE_SUM:
        return td_comm_tree_sum(c, &layout, parts, 2, scratch, out, err);
    case OP_BCAST:
        return td_comm_bcast(c, 0, data, 4, err);
    case OP_ALL_GATHER:
        return td_comm_all_gather(c, data, bytes, all, err);
    case OP_GATHER:
        return td_comm_gather(c, td_comm_rank(c), data, bytes, all, err);
    case OP_BARRIER:
        return td_comm_barrier(c, err);
    case OP_RECV:
        return td_comm_recv(c, 0, data, 4, err);
    case OP_SEND:
        return td_comm_send(c, 0, big, sizeof big, err);
    case N_OPS:
        break;
    }
    return TD_OK;
}

static void wait_for_rank_0(struct comm_check *k, void *shared)
{
    const struct wait_case *w = shared;
    struct td_comm *sub = NULL;
    struct td_comm *c = k->comm;
    uint64_t start_ns;
    uint64_t took_ms;
    enum td_status got;
    enum td_status later;
    struct td_err err;

    td_comm_set_deadline(k->comm, w->op_limit_ns);
    if (w->in_split_group && check_ok(k, td_comm_split(k->comm, 0, 0, &sub, &err), &err))
        c = sub;
    atomic_fetch_add(&n_ready, 1);
    start_ns = td_clock_now_ns();
    if (td_comm_rank(c) == 0) {
        td_comm_close(sub);
        if (w->leaves) {
            td_comm_close(k->comm);
            k->comm = NULL;
        }
        return;
    }
    got = wait_in(c, w->op, &err);
    took_ms = (td_clock_now_ns() - start_ns) / MS;
    later = td_comm_barrier(k->comm, NULL);
    if (got != w->expected)
        check_fail(k, "status is not as expected (operation, status)", (size_t)w->op, (size_t)got);
    if (later != w->expected)
        check_fail(k, "a later operation said another status", (size_t)w->op, (size_t)later);
    if (took_ms > w->at_most_ms)
        check_fail(k, "took too long (operation, ms)", (size_t)w->op, took_ms);
    if (took_ms < w->op_limit_ns / MS && w->expected == TD_PEER_TIMED_OUT)
        check_fail(k, "gave up too early (operation, ms)", (size_t)w->op, took_ms);
    td_comm_close(sub);
}

static void kill_rank_0(struct td_comm **comms)
{
    await_ready(4);
    td_comm_sim_kill(comms[0]);
}

static void test_comm_sim_a_killed_rank_is_lost_to_every_operation(void **state)
{
    (void)state;
    for (int op = 0; op < N_OPS; op++) {
        struct wait_case w = {.op = (enum op)op, .expected = TD_PEER_LOST, .at_most_ms = 350};

        run_group(4, 0, wait_for_rank_0, &w, kill_rank_0);
        w.in_split_group = true;
        run_group(4, 0, wait_for_rank_0, &w, kill_rank_0);
    }
}

static void test_comm_sim_a_rank_that_left_is_lost(void **state)
{
    struct wait_case w = {
        .op = OP_TREE_SUM, .expected = TD_PEER_LOST, .at_most_ms = 350, .leaves = true};

    (void)state;
    run_group(3, 0, wait_for_rank_0, &w, NULL);
}

static void test_comm_sim_the_deadline_ends_every_operation(void **state)
{
    (void)state;
    for (int op = 0; op < N_OPS; op++) {
        struct wait_case w = {.op = (enum op)op,
                              .op_limit_ns = 60 * MS,
                              .expected = TD_PEER_TIMED_OUT,
                              .at_most_ms = 350};

        run_group(4, 0, wait_for_rank_0, &w, NULL);
    }
}

static void abort_the_others(struct td_comm **comms)
{
    await_ready(4);
    for (int r = 1; r < 4; r++)
        td_comm_abort(comms[r]);
}

static void test_comm_sim_abort_from_another_thread_ends_a_wait(void **state)
{
    (void)state;
    for (int op = 0; op < N_OPS; op++) {
        struct wait_case w = {.op = (enum op)op, .expected = TD_PEER_LOST, .at_most_ms = 350};

        run_group(4, 0, wait_for_rank_0, &w, abort_the_others);
        w.in_split_group = true;
        run_group(4, 0, wait_for_rank_0, &w, abort_the_others);
    }
}

static void send_and_die(struct comm_check *k, void *shared)
{
    uint32_t word = 5;
    struct td_err err;

    (void)shared;
    if (td_comm_rank(k->comm) == 0) {
        check_ok(k, td_comm_send(k->comm, 1, &word, sizeof word, &err), &err);
        td_comm_sim_kill(k->comm);
        if (td_comm_send(k->comm, 1, &word, sizeof word, &err) != TD_PEER_LOST)
            check_fail(k, "a killed rank went on", 0, 0);
        return;
    }
    pause_ms(50);
    word = 0;
    check_ok(k, td_comm_recv(k->comm, 0, &word, sizeof word, &err), &err);
    if (word != 5 || td_comm_recv(k->comm, 0, &word, sizeof word, &err) != TD_PEER_LOST)
        check_fail(k, "the last message", word, 0);
}

static void test_comm_sim_what_was_sent_before_the_kill_arrives(void **state)
{
    (void)state;
    run_group(2, 0, send_and_die, NULL, NULL);
}

static void test_comm_sim_refuses_no_ranks_and_too_many(void **state)
{
    struct td_comm *comms[1];
    struct td_err err;

    (void)state;
    assert_int_equal(td_comm_sim_open(0, comms, &err), TD_INVALID);
    assert_int_equal(td_comm_sim_open(TD_TREE_MAX_RANKS + 1, comms, &err), TD_INVALID);
}

static void test_comm_large_sum_over_three_ranks_takes_two_rounds(void **state)
{
    const size_t most = 256 * 1024 / sizeof(float); /* that goes at once (comm.h) */

    (void)state;
    assert_int_equal(td_comm_tree_sum_rounds(1, most + 1), 0);
    assert_int_equal(td_comm_tree_sum_rounds(2, most + 1), 1);
    assert_int_equal(td_comm_tree_sum_rounds(3, most), 1);
    assert_int_equal(td_comm_tree_sum_rounds(3, most + 1), 2);
}

/* Rank 1 waits for rank 0, which sends only when it has seen that from its own thread. */
static void see_the_wait(struct comm_check *k, void *shared)
{
    struct td_comm *const *comms = shared;
    struct td_comm_at at = {NULL, 0};
    uint64_t end_ns = td_clock_now_ns() + 10000000000u;
    struct td_err err;
    int word = 5;

    if (td_comm_rank(k->comm) == 1) {
        check_ok(k, td_comm_recv(k->comm, 0, &word, sizeof word, &err), &err);
        return;
    }
    while (!at.op && td_clock_now_ns() < end_ns)
        td_comm_look_at(comms[1], &at);
    if (!at.op || strcmp(at.op, "recv") != 0 || at.n_begun != 1)
        check_fail(k, at.op ? at.op : "rank 1 is in no operation, expected its first, recv",
                   (size_t)at.n_begun, 1);
    check_ok(k, td_comm_send(k->comm, 1, &word, sizeof word, &err), &err);
}

static void test_comm_shows_another_thread_what_a_rank_waits_in(void **state)
{
    struct td_comm *comms[2];
    struct td_comm_at at;
    struct td_err err;

    (void)state;
    assert_int_equal(td_comm_sim_open(2, comms, &err), TD_OK);
    td_comm_look_at(comms[0], &at);
    assert_null(at.op);
    assert_int_equal(at.n_begun, 0);
    run_ends(2, comms, 1, false, see_the_wait, comms, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comm_sim_moves_every_size_between_1_to_8_ranks),
        cmocka_unit_test(test_comm_sim_tree_sum_has_the_same_bits_for_any_layout),
        cmocka_unit_test(test_comm_self_does_every_operation),
        cmocka_unit_test(test_comm_sim_split_groups_do_not_mix),
        cmocka_unit_test(test_comm_sim_split_host_follows_the_hosts),
        cmocka_unit_test(test_comm_sim_ranks_agree_on_the_first_that_failed),
        cmocka_unit_test(test_comm_refuses_wrong_arguments_and_goes_on),
        cmocka_unit_test(test_comm_sim_finds_messages_of_another_length),
        cmocka_unit_test(test_comm_sim_different_operations_do_not_mix),
        cmocka_unit_test(test_comm_sim_a_killed_rank_is_lost_to_every_operation),
        cmocka_unit_test(test_comm_sim_a_rank_that_left_is_lost),
        cmocka_unit_test(test_comm_shows_another_thread_what_a_rank_waits_in),
        cmocka_unit_test(test_comm_sim_the_deadline_ends_every_operation),
        cmocka_unit_test(test_comm_sim_abort_from_another_thread_ends_a_wait),
        cmocka_unit_test(test_comm_sim_what_was_sent_before_the_kill_arrives),
        cmocka_unit_test(test_comm_sim_refuses_no_ranks_and_too_many),
        cmocka_unit_test(test_comm_large_sum_over_three_ranks_takes_two_rounds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
