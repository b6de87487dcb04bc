/* The probe of links over simulated ranks: who meets whom, what every rank gets, and how it ends when a rank fails. Its
 * numbers are times of this machine; they are held to what must be true of them on any. */
#include "comm/linkprobe.h"

#include "comm/comm.h"
#include "comm/comm_sim.h"
#include "kernels/base/clock.h"
#include "tests/unit/check.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_RANKS = 5, BULK = 1 << 18, MS = 1000 * 1000 };

struct rank {
    pthread_t thread;
    struct td_comm *comm;
    struct td_linkprobe_params params;
    struct td_linkprobe_link links[MAX_RANKS * MAX_RANKS];
    enum td_status status;
    struct td_err err;
    uint64_t elapsed_ns, sent_bytes;
    bool is_absent;
};

static void *run_rank(void *arg)
{
    struct rank *r = arg;
    struct td_comm_stats stats;
    uint64_t start = td_clock_now_ns();

    r->params.buffer = malloc(BULK);
    if (!r->is_absent)
        r->status = td_linkprobe_run(r->comm, &r->params, r->links, &r->err);
    r->elapsed_ns = td_clock_now_ns() - start;
    td_comm_stats(r->comm, &stats);
    r->sent_bytes = stats.sent_bytes;
    return NULL;
}

static void start(struct rank *ranks, uint32_t n, const struct td_linkprobe_params *params,
                  uint64_t deadline_ns)
{
    struct td_comm *comms[MAX_RANKS];
    struct td_err err;

    assert_int_equal(td_comm_sim_open(n, comms, &err), TD_OK);
    for (uint32_t r = 0; r < n; r++) {
        ranks[r].comm = comms[r];
        ranks[r].params = *params;
        ranks[r].params.bulk_bytes = params->bulk_bytes ? params->bulk_bytes : BULK;
        td_comm_set_deadline(comms[r], deadline_ns);
        memset(ranks[r].links, 0xff, sizeof ranks[r].links);
    }
    for (uint32_t r = 0; r < n; r++)
        assert_int_equal(pthread_create(&ranks[r].thread, NULL, run_rank, &ranks[r]), 0);
}

static void finish(struct rank *ranks, uint32_t n)
{
    for (uint32_t r = 0; r < n; r++)
        pthread_join(ranks[r].thread, NULL);
    for (uint32_t r = 0; r < n; r++) {
        td_comm_close(ranks[r].comm);
        free(ranks[r].params.buffer);
    }
}

static void test_linkprobe_lets_every_two_ranks_meet_once(void **state)
{
    (void)state;
    assert_int_equal(td_linkprobe_rounds(0), 0);
    assert_int_equal(td_linkprobe_rounds(1), 0);
    assert_int_equal(td_linkprobe_partner(1, 0, 0), 0);
    for (uint32_t n = 2; n <= 33; n++) {
        uint8_t met[33][33] = {{0}};

        assert_int_equal(td_linkprobe_rounds(n), n - 1 + n % 2);
        for (uint32_t round = 0; round < td_linkprobe_rounds(n); round++) {
            uint32_t n_pauses = 0;

            for (uint32_t a = 0; a < n; a++) {
                uint32_t b = td_linkprobe_partner(n, round, a);

                assert_true(b < n);
                assert_int_equal(td_linkprobe_partner(n, round, b), a);
                n_pauses += a == b;
                met[a][b]++;
            }
            assert_int_equal(n_pauses, n % 2);
        }
        for (uint32_t a = 0; a < n; a++)
            for (uint32_t b = 0; b < n; b++)
                assert_int_equal(met[a][b], a != b || n % 2);
    }
}

/* What must hold of two ranks: no time is longer than the whole took, and no message of `bulk` bytes slower than that. */
static void check_links(const struct rank *ranks, uint32_t n, size_t bulk)
{
    const struct td_linkprobe_link *links = ranks[0].links;

    for (uint32_t a = 0; a < n; a++) {
        for (uint32_t b = 0; b < n; b++) {
            const struct td_linkprobe_link *l = &links[a * n + b];

            if (a == b) {
                assert_int_equal(l->latency_ns, 0);
                assert_true(l->bytes_per_second == 0.0);
                continue;
            }
            assert_true(l->latency_ns > 0);
            assert_int_equal(l->latency_ns, links[b * n + a].latency_ns);
            assert_true(2 * l->latency_ns <= ranks[a].elapsed_ns);
            assert_true(l->bytes_per_second * (double)ranks[a].elapsed_ns * 1e-9 >= (double)bulk);
        }
    }
}

static void check_group(uint32_t n, bool at_once, size_t bulk)
{
    const struct td_linkprobe_params params = {
        .turn_ns = 2 * MS, .bulk_bytes = bulk, .at_once = at_once};
    struct rank ranks[MAX_RANKS] = {{0}};

    start(ranks, n, &params, 60000ull * MS);
    finish(ranks, n);
    for (uint32_t r = 0; r < n; r++) {
        assert_int_equal(ranks[r].status, TD_OK);
        assert_memory_equal(ranks[r].links, ranks[0].links, n * n * sizeof ranks[0].links[0]);
        assert_true(n == 1 ||
                    ranks[r].sent_bytes >= (n - 1) * bulk); /* one message to each at least */
    }
    check_links(ranks, n, bulk);
}

static void test_linkprobe_gives_every_rank_the_same_matrix(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= MAX_RANKS; n++) {
        check_group(n, false, 4096);
        check_group(n, true, 4096);
    }
    check_group(2, false, 1);
    check_group(3, false, 2048); /* the largest that the simulator buffers */
}

static void test_linkprobe_grows_to_the_largest_message_that_fits(void **state)
{
    const struct td_linkprobe_params params = {.turn_ns = 4000ull * MS, .bulk_bytes = BULK};
    struct rank ranks[MAX_RANKS] = {{0}};

    (void)state;
    start(ranks, 2, &params, 60000ull * MS);
    finish(ranks, 2);
    assert_int_equal(ranks[0].status, TD_OK);
    check_links(ranks, 2, BULK);
    /* 64 KiB, then eight of the largest, orders and pings beside them. */
    assert_in_range(ranks[0].sent_bytes, (1 << 16) + 8 * BULK, (1 << 16) + 8 * BULK + 65536);
}

static void test_linkprobe_measures_nothing_without_time(void **state)
{
    const struct td_linkprobe_params params = {.budget_ns = 1};
    struct rank ranks[MAX_RANKS] = {{0}};

    (void)state;
    start(ranks, 3, &params, 60000ull * MS);
    finish(ranks, 3);
    for (uint32_t r = 0; r < 3; r++) {
        assert_int_equal(ranks[r].status, TD_OK);
        for (uint32_t i = 0; i < 9; i++) {
            assert_int_equal(ranks[r].links[i].latency_ns, 0);
            assert_true(ranks[r].links[i].bytes_per_second == 0.0);
        }
    }
}

static void test_linkprobe_ends_at_the_deadline_when_a_rank_is_absent(void **state)
{
    const struct td_linkprobe_params params = {.turn_ns = 1 * MS};
    struct rank ranks[MAX_RANKS] = {{0}};

    (void)state;
    ranks[2].is_absent = true;
    start(ranks, 4, &params, 200ull * MS);
    finish(ranks, 4);
    for (uint32_t r = 0; r < 4; r++)
        if (r != 2)
            assert_in_range(ranks[r].status, TD_PEER_LOST, TD_PEER_TIMED_OUT);
}

static void pause_ms(long ms)
{
    const struct timespec time = {ms / 1000, ms % 1000 * MS};

    nanosleep(&time, NULL);
}

static void test_linkprobe_ends_when_it_is_aborted(void **state)
{
    const struct td_linkprobe_params params = {.turn_ns = 60000ull * MS};
    struct rank ranks[MAX_RANKS] = {{0}};

    (void)state;
    ranks[1].is_absent = true; /* so that it cannot end before */
    start(ranks, 2, &params, 0);
    pause_ms(20);
    td_comm_abort(ranks[0].comm);
    finish(ranks, 2);
    assert_int_equal(ranks[0].status, TD_PEER_LOST);
}

static void test_linkprobe_tells_of_a_rank_that_is_lost(void **state)
{
    const struct td_linkprobe_params params = {.turn_ns = 50 * MS};
    struct rank ranks[MAX_RANKS] = {{0}};

    (void)state;
    start(ranks, 3, &params, 60000ull * MS);
    pause_ms(5);
    td_comm_sim_kill(ranks[1].comm);
    finish(ranks, 3);
    for (uint32_t r = 0; r < 3; r++)
        assert_int_equal(ranks[r].status, TD_PEER_LOST);
}

static void test_linkprobe_refuses_no_buffer(void **state)
{
    struct td_linkprobe_params params = {.bulk_bytes = 5};
    struct td_linkprobe_link link;
    struct td_comm *comm;
    struct td_err err;
    uint8_t byte;

    (void)state;
    assert_int_equal(td_comm_self_open(&comm, &err), TD_OK);
    assert_int_equal(td_linkprobe_run(comm, &params, &link, &err), TD_INVALID);
    params = (struct td_linkprobe_params){.buffer = &byte};
    assert_int_equal(td_linkprobe_run(comm, &params, &link, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "at least 1 byte"));
    td_comm_close(comm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linkprobe_lets_every_two_ranks_meet_once),
        cmocka_unit_test(test_linkprobe_gives_every_rank_the_same_matrix),
        cmocka_unit_test(test_linkprobe_grows_to_the_largest_message_that_fits),
        cmocka_unit_test(test_linkprobe_measures_nothing_without_time),
        cmocka_unit_test(test_linkprobe_ends_at_the_deadline_when_a_rank_is_absent),
        cmocka_unit_test(test_linkprobe_ends_when_it_is_aborted),
        cmocka_unit_test(test_linkprobe_tells_of_a_rank_that_is_lost),
        cmocka_unit_test(test_linkprobe_refuses_no_buffer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
