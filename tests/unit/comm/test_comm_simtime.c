#include "comm/comm_simtime.h"

#include "tests/unit/comm/sim_group.h"

enum { MAX = SIM_MAX_RANKS };

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint32_t log2_up(uint32_t n)
{
    uint32_t k = 0;

    while (1u << k < n)
        k++;
    return k;
}

/* The arithmetic alone. */

static void test_comm_simtime_port_time_rounds_up_and_stops_at_never(void **state)
{
    const struct td_comm_simtime_link link = {.latency_ns = 5, .message_ns = 7, .byte_ps = 300};
    const struct td_comm_simtime_link slow = {.message_ns = 7, .byte_ps = UINT64_MAX};

    (void)state;
    assert_int_equal(td_comm_simtime_port_ns(&link, 0), 7);
    assert_int_equal(td_comm_simtime_port_ns(&link, 1), 8);   /* 0.3 ns */
    assert_int_equal(td_comm_simtime_port_ns(&link, 10), 10); /* 3 ns */
    assert_int_equal(td_comm_simtime_port_ns(&link, 11), 11); /* 3.3 ns */
    assert_true(td_comm_simtime_port_ns(&slow, 2) == UINT64_MAX);
    assert_true(td_comm_simtime_port_ns(&slow, 0) == 7);
    assert_true(td_comm_simtime_add(UINT64_MAX - 3, 4) == UINT64_MAX);
    assert_true(td_comm_simtime_add(UINT64_MAX - 3, 3) == UINT64_MAX);
    assert_int_equal(td_comm_simtime_add(3, 4), 7);
}

static void test_comm_simtime_the_port_in_takes_one_message_after_another(void **state)
{
    /* First bytes at 60, 50 and 90, each 40 long: the port is busy from 50 to 90, 90 to 130 and 130 to 170. */
    struct td_comm_simtime_msg msgs[] = {{.known = true, .at_ns = 100, .port_ns = 40},
                                         {.known = true, .at_ns = 90, .port_ns = 40},
                                         {.known = true, .at_ns = 130, .port_ns = 40},
                                         {.is_send = true, .known = true, .at_ns = 20}};
    struct td_comm_simtime_exchange x = {
        .start_ns = 10, .deadline_ns = 170, .lost_ns = UINT64_MAX, .n_msgs = 4, .msgs = msgs};
    struct td_comm_simtime_verdict v = td_comm_simtime_decide(&x);

    (void)state;
    assert_int_equal(v.end, TD_COMM_SIMTIME_DONE);
    assert_int_equal(v.at_ns, 170);
    x.deadline_ns = 169;
    v = td_comm_simtime_decide(&x);
    assert_int_equal(v.end, TD_COMM_SIMTIME_LATE);
    assert_int_equal(v.at_ns, 169);
    assert_int_equal(v.msg, 2);
    msgs[2].at_ns = 1040; /* first byte long after the others: the port has been idle */
    x.deadline_ns = UINT64_MAX;
    assert_int_equal(td_comm_simtime_decide(&x).at_ns, 1040);
    msgs[3].at_ns = 2000; /* what is sent has not left before */
    assert_int_equal(td_comm_simtime_decide(&x).at_ns, 2000);
    x.start_ns = 3000; /* all that was long ago */
    assert_int_equal(td_comm_simtime_decide(&x).at_ns, 3000);
}

static void test_comm_simtime_the_earliest_failure_counts(void **state)
{
    struct td_comm_simtime_msg msgs[] = {
        {.known = true, .at_ns = 100},
        {.known = true, .at_ns = 80, .status = TD_PEER_LOST},
        {.known = true, .at_ns = 70, .status = TD_PEER_LOST},
        {.known = false},
    };
    struct td_comm_simtime_exchange x = {.start_ns = 10,
                                         .deadline_ns = UINT64_MAX,
                                         .lost_ns = UINT64_MAX,
                                         .n_msgs = 4,
                                         .msgs = msgs};
    struct td_comm_simtime_verdict v = td_comm_simtime_decide(&x);

    (void)state;
    assert_int_equal(v.end, TD_COMM_SIMTIME_FAILED);
    assert_int_equal(v.at_ns, 70);
    assert_int_equal(v.msg, 2);
    x.start_ns = 75; /* noticed before it began */
    assert_int_equal(td_comm_simtime_decide(&x).at_ns, 75);
    x.deadline_ns = 75; /* at one time the deadline goes first */
    v = td_comm_simtime_decide(&x);
    assert_int_equal(v.end, TD_COMM_SIMTIME_LATE);
    assert_int_equal(v.msg, 0);
    x.lost_ns = 75; /* and this rank's own loss before it */
    v = td_comm_simtime_decide(&x);
    assert_int_equal(v.end, TD_COMM_SIMTIME_LOST);
    assert_int_equal(v.at_ns, 75);
    x = (struct td_comm_simtime_exchange){
        .deadline_ns = UINT64_MAX, .lost_ns = UINT64_MAX, .n_msgs = 1, .msgs = &msgs[3]};
    v = td_comm_simtime_decide(&x); /* never comes */
    assert_int_equal(v.end, TD_COMM_SIMTIME_LATE);
    assert_true(v.at_ns == UINT64_MAX);
    x = (struct td_comm_simtime_exchange){
        .deadline_ns = UINT64_MAX, .lost_ns = 100, .n_msgs = 1, .msgs = msgs};
    assert_int_equal(td_comm_simtime_decide(&x).end, TD_COMM_SIMTIME_LOST);
    x.lost_ns = 101;
    assert_int_equal(td_comm_simtime_decide(&x).end, TD_COMM_SIMTIME_DONE);
}

/* Messages from one rank to another. */

static void two_messages(struct sim_rank *r)
{
    struct td_comm_stats stats;

    if (td_comm_rank(r->check.comm) == 0) {
        send_to(r, 1, 100);
        expect_now(r, D(100)); /* as long as the port takes */
        td_comm_sim_advance(r->check.comm, 50);
        send_to(r, 1, 1000);
        expect_now(r, D(100) + 50 + D(1000));
        return;
    }
    recv_from(r, 0, 100);
    expect_now(r, D(100) + A);
    td_comm_stats(r->check.comm, &stats);
    if (stats.wait_ns != D(100) + A)
        check_fail(&r->check, "statistics are not in virtual time", stats.wait_ns, 0);
    recv_from(r, 0, 1000);
    expect_now(r, D(100) + 50 + D(1000) + A);
}

static void test_comm_sim_a_message_takes_port_time_and_latency(void **state)
{
    struct td_comm *comms[2];
    struct sim_rank ranks[2];

    (void)state;
    sim_open(2, &flat, comms);
    sim_run(2, comms, two_messages, NULL, ranks);
}

static void late_receiver(struct sim_rank *r)
{
    if (td_comm_rank(r->check.comm) == 0) {
        send_to(r, 1, 100); /* buffered */
        expect_now(r, D(100));
        send_to(r, 1, 5000); /* waits for the receiver, which asks at 1000000 */
        expect_now(r, 1000000);
        send_to(r, 1, 5000); /* and asks for this one at once */
        expect_now(r, 1000000 + D(5000));
        return;
    }
    td_comm_sim_advance(r->check.comm, 1000000);
    recv_from(r, 0, 100);
    expect_now(r, 1000000); /* it has long been there */
    recv_from(r, 0, 5000);
    expect_now(r, 1000000);
    recv_from(r, 0, 5000);
    expect_now(r, 1000000 + D(5000) + A);
}

static void test_comm_sim_a_receive_ends_at_the_later_of_arrival_and_own_time(void **state)
{
    struct td_comm *comms[2];
    struct sim_rank ranks[2];

    (void)state;
    sim_open(2, &flat, comms);
    sim_run(2, comms, late_receiver, NULL, ranks);
}

/* Collectives. Every rank starts at 0. */

enum { BIG = 262144 };

static void barrier(struct sim_rank *r)
{
    struct td_err err;

    check_ok(&r->check, td_comm_barrier(r->check.comm, &err), &err);
}

static void test_comm_sim_a_barrier_takes_log2_rounds(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= MAX; n++) {
        struct td_comm *comms[MAX];
        struct sim_rank ranks[MAX];

        sim_open(n, &flat, comms);
        sim_run(n, comms, barrier, NULL, ranks);
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(ranks[i].end_ns, log2_up(n) * (D(0) + A));
    }
}

struct bytes_case {
    size_t bytes;
    uint32_t root;
};

static void bcast(struct sim_rank *r)
{
    const struct bytes_case *c = r->shared;

    check_bcast(&r->check, c->root, c->bytes);
}

/* In a binomial tree over n = 2^k ranks rank r (from the root) hears after a latency for each set bit of r. Counted from
 * the highest bit down, k - ctz(r) sends stand before its message on the way, and ctz(r) sends are its own. */
static void test_comm_sim_a_broadcast_takes_log2_levels(void **state)
{
    static const struct bytes_case cases[] = {{100, 0}, {2048, 1}, {2049, 0}, {100000, 1}};

    (void)state;
    for (uint32_t k = 0; 1u << k <= MAX; k++) {
        for (size_t c = 0; c < 4; c++) {
            uint32_t n = 1u << k;
            struct bytes_case one = {cases[c].bytes, cases[c].root % n};
            struct td_comm *comms[MAX];
            struct sim_rank ranks[MAX];

            sim_open(n, &flat, comms);
            sim_run(n, comms, bcast, &one, ranks);
            for (uint32_t i = 0; i < n; i++)
                assert_int_equal(ranks[(i + one.root) % n].end_ns,
                                 (uint64_t)__builtin_popcount(i) * A + k * D(one.bytes));
        }
    }
}

static void test_comm_sim_a_broadcast_to_5_ranks(void **state)
{
    /* 0 sends to 4, 2, 1 in turn; 2 sends to 3. */
    const uint64_t d = D(100);
    const uint64_t expected[5] = {3 * d, 3 * d + A, 3 * d + A, 3 * d + 2 * A, d + A};
    struct bytes_case one = {100, 0};
    struct td_comm *comms[5];
    struct sim_rank ranks[5];

    (void)state;
    sim_open(5, &flat, comms);
    sim_run(5, comms, bcast, &one, ranks);
    for (uint32_t i = 0; i < 5; i++)
        assert_int_equal(ranks[i].end_ns, expected[i]);
}

static void gather(struct sim_rank *r)
{
    const struct bytes_case *c = r->shared;
    bool all = c->root == UINT32_MAX;
    uint32_t n = td_comm_size(r->check.comm);
    uint32_t me = td_comm_rank(r->check.comm);
    size_t bytes[MAX];
    uint8_t *send = check_alloc(c->bytes);
    uint8_t *recv = check_alloc(c->bytes * n);
    struct td_err err;

    for (uint32_t i = 0; i < n; i++)
        bytes[i] = c->bytes;
    check_fill(send, c->bytes, me);
    check_ok(&r->check,
             all ? td_comm_all_gather(r->check.comm, send, bytes, recv, &err)
                 : td_comm_gather(r->check.comm, c->root, send, bytes, recv, &err),
             &err);
    for (uint32_t i = 0; i < n && (all || me == c->root); i++)
        check_same(&r->check, "gather", recv + i * c->bytes, c->bytes, i);
    free(send);
    free(recv);
}

/* Each rank's port sends n - 1 messages; the k-th of each goes to another rank, so that they do not meet. */
static void test_comm_sim_an_all_gather_takes_one_latency(void **state)
{
    static const size_t sizes[] = {100, 30000};

    (void)state;
    for (uint32_t n = 1; n <= MAX; n++) {
        struct bytes_case c = {sizes[n % 2], UINT32_MAX};
        struct td_comm *comms[MAX];
        struct sim_rank ranks[MAX];

        sim_open(n, &flat, comms);
        sim_run(n, comms, gather, &c, ranks);
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(ranks[i].end_ns, n == 1 ? 0 : (n - 1) * D(c.bytes) + A);
    }
}

/* All messages come at once, and the root's port takes them one after another. */
static void test_comm_sim_a_gather_waits_at_the_root_s_port(void **state)
{
    static const size_t sizes[] = {100, 30000};

    (void)state;
    for (uint32_t n = 2; n <= MAX; n++) {
        struct bytes_case c = {sizes[n % 2], n / 2};
        struct td_comm *comms[MAX];
        struct sim_rank ranks[MAX];

        sim_open(n, &flat, comms);
        sim_run(n, comms, gather, &c, ranks);
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(ranks[i].end_ns, i == c.root ? A + (n - 1) * D(c.bytes) : D(c.bytes));
    }
}

struct sum_case {
    size_t n_floats;
    uint32_t n_leaves; /* rank r owns leaf r, if there is one */
};

static void tree_sum(struct sim_rank *r)
{
    const struct sum_case *c = r->shared;
    uint32_t n = td_comm_size(r->check.comm);
    uint32_t me = td_comm_rank(r->check.comm);
    struct td_leaf_run runs[MAX];
    struct td_tree_layout layout = {c->n_leaves, runs};
    float *parts = check_alloc(c->n_floats * sizeof(float));
    float *scratch = check_alloc(c->n_leaves * c->n_floats * sizeof(float));
    float *out = check_alloc(c->n_floats * sizeof(float));
    struct td_err err;

    for (uint32_t i = 0; i < n; i++)
        runs[i] = i < c->n_leaves ? (struct td_leaf_run){i, i + 1} : (struct td_leaf_run){0, 0};
    for (size_t i = 0; i < c->n_floats; i++)
        parts[i] = (float)me + 1;
    check_ok(&r->check,
             td_comm_tree_sum(r->check.comm, &layout, parts, c->n_floats, scratch, out, &err),
             &err);
    for (size_t i = 0; i < c->n_floats; i++) { /* 1 + 2 + ... + n_leaves, exact in float */
        if (out[i] != (float)(c->n_leaves * (c->n_leaves + 1) / 2)) {
            check_fail(&r->check, "sum", i, c->n_leaves);
            break;
        }
    }
    free(parts);
    free(scratch);
    free(out);
}

/* Up to 256 KB, or two ranks: everybody sends its part to everybody. */
static void test_comm_sim_a_small_tree_sum_takes_one_latency(void **state)
{
    (void)state;
    for (uint32_t n = 2; n <= MAX; n++) {
        struct sum_case c = {n == 2 ? BIG : 64 * n, n};
        struct td_comm *comms[MAX];
        struct sim_rank ranks[MAX];

        sim_open(n, &flat, comms);
        sim_run(n, comms, tree_sum, &c, ranks);
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(ranks[i].end_ns, (n - 1) * D(c.n_floats * 4) + A);
    }
}

/* Above it every rank joins one n-th for all, twice n - 1 messages of an n-th part and two latencies. */
static void test_comm_sim_a_large_tree_sum_takes_two_latencies(void **state)
{
    (void)state;
    for (uint32_t n = 3; n <= 8; n++) {
        struct sum_case c = {840 * 16 * 5,
                             n}; /* 840 is a multiple of 3 to 8, a slice one of 16 floats */
        struct td_comm *comms[MAX];
        struct sim_rank ranks[MAX];

        sim_open(n, &flat, comms);
        sim_run(n, comms, tree_sum, &c, ranks);
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(ranks[i].end_ns, 2 * ((n - 1) * D(c.n_floats * 4 / n) + A));
    }
}

static void test_comm_sim_a_rank_without_leaves_sends_nothing(void **state)
{
    /* Ranks 0 and 1 of 4 own leaves. 0 sends to 1, 2, 3 in turn, 1 to 2, 3, 0. */
    struct sum_case c = {100, 2};
    const uint64_t d = D(400);
    const uint64_t expected[4] = {3 * d + A, max_u64(3 * d, d + A), 2 * d + A, 3 * d + A};
    struct td_comm *comms[4];
    struct sim_rank ranks[4];

    (void)state;
    sim_open(4, &flat, comms);
    sim_run(4, comms, tree_sum, &c, ranks);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(ranks[i].end_ns, expected[i]);
}

static void test_comm_sim_ranks_of_one_host_are_nearer(void **state)
{
    /* Ranks 0, 1 on one host and 2, 3 on another; each sends to the next three in turn. What comes to rank 0: from 1
     * near and early; from 3, as its first, first byte at A; from 2, as its second behind a near one, first byte at
     * A + near_D, when the port is busy: until A + D, then with this one. To rank 1: from 0 near and early; from 3, as
     * its second, first byte at A + D; from 2, as its third, at A + near_D + D, which waits likewise. Ranks 2 and 3 see
     * the same. */
    struct sum_case c = {100, 4};
    const uint64_t d = D(400);
    const uint64_t even = A + 2 * d;
    const uint64_t odd = A + 3 * d;
    struct td_comm *comms[4];
    struct sim_rank ranks[4];

    (void)state;
    sim_open(4, &two_level, comms);
    for (uint32_t i = 0; i < 4; i++)
        td_comm_sim_set_host(comms[i], i / 2);
    sim_run(4, comms, tree_sum, &c, ranks);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(ranks[i].end_ns, i % 2 ? odd : even);
}

static void pair_of_hosts(struct sim_rank *r)
{
    if (td_comm_rank(r->check.comm) == 0) {
        send_to(r, 1, 1000);
        send_to(r, 2, 1000);
        expect_now(r, near_D(1000) + D(1000));
    } else {
        recv_from(r, 0, 1000);
        expect_now(r, td_comm_rank(r->check.comm) == 1 ? near_D(1000) + NEAR_A
                                                       : near_D(1000) + D(1000) + A);
    }
}

static void test_comm_sim_each_link_has_its_own_cost(void **state)
{
    struct td_comm *comms[3];
    struct sim_rank ranks[3];

    (void)state;
    sim_open(3, &two_level, comms);
    td_comm_sim_set_host(comms[2], 1);
    sim_run(3, comms, pair_of_hosts, NULL, ranks);
}

static void every_operation(struct sim_rank *r)
{
    static const size_t sizes[] = {0, 1, 2048, 2049, 70000};

    r->check.seed = 5;
    (void)(check_sizes(&r->check, sizes, 5) && check_sums(&r->check, 4, false) &&
           check_split(&r->check));
}

static void test_comm_sim_every_operation_works_in_virtual_time(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 5; n++) {
        struct td_comm *comms[MAX];
        struct sim_rank ranks[MAX];

        sim_open(n, &two_level, comms);
        for (uint32_t i = 0; i < n; i++)
            td_comm_sim_set_host(comms[i], i / 2);
        sim_run(n, comms, every_operation, NULL, ranks);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comm_simtime_port_time_rounds_up_and_stops_at_never),
        cmocka_unit_test(test_comm_simtime_the_port_in_takes_one_message_after_another),
        cmocka_unit_test(test_comm_simtime_the_earliest_failure_counts),
        cmocka_unit_test(test_comm_sim_a_message_takes_port_time_and_latency),
        cmocka_unit_test(test_comm_sim_a_receive_ends_at_the_later_of_arrival_and_own_time),
        cmocka_unit_test(test_comm_sim_a_barrier_takes_log2_rounds),
        cmocka_unit_test(test_comm_sim_a_broadcast_takes_log2_levels),
        cmocka_unit_test(test_comm_sim_a_broadcast_to_5_ranks),
        cmocka_unit_test(test_comm_sim_an_all_gather_takes_one_latency),
        cmocka_unit_test(test_comm_sim_a_gather_waits_at_the_root_s_port),
        cmocka_unit_test(test_comm_sim_a_small_tree_sum_takes_one_latency),
        cmocka_unit_test(test_comm_sim_a_large_tree_sum_takes_two_latencies),
        cmocka_unit_test(test_comm_sim_a_rank_without_leaves_sends_nothing),
        cmocka_unit_test(test_comm_sim_ranks_of_one_host_are_nearer),
        cmocka_unit_test(test_comm_sim_each_link_has_its_own_cost),
        cmocka_unit_test(test_comm_sim_every_operation_works_in_virtual_time),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
