#include "deploy/netlab/transit.h"

#include "tests/unit/check.h"

#include <stdlib.h>
#include <string.h>

#define MS 1000000ull

static struct td_transit *open_with(const struct td_transit_rules *rules)
{
    struct td_transit *t = NULL;

    assert_int_equal(td_transit_open(1, &t, NULL), TD_OK);
    td_transit_set_rules(t, rules, 0);
    return t;
}

/* Takes the frame that is due next, checks when, and returns its first byte. */
static unsigned char take_at(struct td_transit *t, uint64_t due_ns)
{
    struct td_frame *f;
    unsigned char first;

    assert_int_equal(td_transit_next_ns(t), due_ns);
    assert_null(td_transit_take(t, due_ns - 1));
    f = td_transit_take(t, due_ns);
    assert_non_null(f);
    first = f->data[0];
    free(f);
    return first;
}

static void add(struct td_transit *t, uint32_t from, uint32_t to, char what, uint64_t at_ns)
{
    td_transit_add(t, from, to, &what, 1, 1, at_ns);
}

static void test_transit_adds_the_delay_of_the_link(void **state)
{
    struct td_transit_rules rules = {.links[0][1].delay_ns = 5 * MS, .links[2][1].delay_ns = MS};
    struct td_transit *t = open_with(&rules);

    (void)state;
    assert_int_equal(td_transit_next_ns(t), UINT64_MAX);
    assert_null(td_transit_take(t, UINT64_MAX - 1));
    add(t, 0, 1, 'a', 10 * MS);
    add(t, 2, 1, 'b', 11 * MS);
    add(t, 1, 0, 'c', 12 * MS - 1); /* no delay that way */
    assert_int_equal(take_at(t, 12 * MS - 1), 'c');
    assert_int_equal(take_at(t, 12 * MS), 'b');
    assert_int_equal(take_at(t, 15 * MS), 'a');
    assert_int_equal(td_transit_held_bytes(t), 0);
    assert_int_equal(td_transit_count(t, 1)->passed, 2);
    assert_int_equal(td_transit_count(t, 0)->passed, 1);
    td_transit_close(t);
}

/* 1500 bytes at 100 Mbit/s take 120 us; both links end at the same port. */
static void test_transit_lets_a_port_take_no_more_than_its_rate(void **state)
{
    struct td_transit_rules rules = {.rate_bps = 100000000, .links[2][1].delay_ns = 7};
    struct td_transit *t = open_with(&rules);
    const uint64_t one_ns = 120000;

    (void)state;
    td_transit_add(t, 0, 1, "a", 1, 1500, 1000);
    td_transit_add(t, 2, 1, "b", 1, 1500, 1000);
    td_transit_add(t, 0, 1, "c", 1, 750, 2000);
    td_transit_add(t, 0, 2, "x", 1, 1500, 2000); /* another port waits for nobody */
    assert_int_equal(take_at(t, 1000 + one_ns), 'a');
    assert_int_equal(take_at(t, 2000 + one_ns), 'x');
    assert_int_equal(take_at(t, 1000 + 2 * one_ns + 7), 'b');
    assert_int_equal(take_at(t, 1000 + 2 * one_ns + one_ns / 2), 'c');
    td_transit_add(t, 0, 1, "d", 1, 1500, 10 * MS); /* the port was idle meanwhile */
    assert_int_equal(take_at(t, 10 * MS + one_ns), 'd');
    td_transit_close(t);
}

/* Against a plain list: every frame once, none before its earliest time, each link in order. */
static void test_transit_keeps_the_order_of_each_link_under_jitter(void **state)
{
    enum { N = 20000 };
    static uint64_t at_ns[N];
    struct td_transit_rules rules = {.rate_bps = 0};
    unsigned last[TD_TRANSIT_PORTS][TD_TRANSIT_PORTS] = {{0}};
    unsigned seed = 11, n_taken = 0, n_late = 0;
    struct td_transit *t;

    (void)state;
    print_message("seed %u\n", seed);
    srand(seed);
    for (int from = 0; from < TD_TRANSIT_PORTS; from++)
        for (int to = 0; to < TD_TRANSIT_PORTS; to++)
            rules.links[from][to] =
                (struct td_transit_link){.delay_ns = (uint64_t)rand() % 1000, .jitter_ns = 5000};
    t = open_with(&rules);
    for (unsigned i = 0; i < N || td_transit_next_ns(t) != UINT64_MAX; i++) {
        struct td_frame *f;
        uint64_t now = 10ull * i;

        if (i < N) {
            at_ns[i] = now;
            td_transit_add(t, (uint32_t)rand() % TD_TRANSIT_PORTS,
                           (uint32_t)rand() % TD_TRANSIT_PORTS, &i, sizeof i, 60, now);
        }
        while ((f = td_transit_take(t, now)) != NULL) {
            const struct td_transit_link *link = &rules.links[f->from][f->to];
            unsigned number;

            memcpy(&number, f->data, sizeof number);
            assert_true(number + 1 > last[f->from][f->to]);
            last[f->from][f->to] = number + 1;
            assert_true(f->due_ns <= now && f->due_ns >= at_ns[number] + link->delay_ns);
            /* The jitter is spread evenly: more than a third of all is later than half of it. */
            n_late += f->due_ns > at_ns[number] + link->delay_ns + link->jitter_ns / 2;
            n_taken++;
            free(f);
        }
    }
    assert_int_equal(n_taken, N);
    assert_true(n_late > N / 3);
    td_transit_close(t);
}

/* Binomial with n = 10^6, p = 0.03: six standard deviations are 1024. */
static void test_transit_loses_the_share_that_is_asked_for(void **state)
{
    enum { N = 1000000, EXPECTED = 30000, BOUND = 1024 };
    struct td_transit_rules rules = {.links[0][1].loss_ppm = 30000,
                                     .links[0][2].loss_ppm = 1000000};
    struct td_transit *t = open_with(&rules);
    uint64_t lost;

    (void)state;
    for (int i = 0; i < N; i++) {
        add(t, 0, 1, 'a', 0);
        free(td_transit_take(t, 0));
    }
    lost = td_transit_count(t, 1)->lost;
    print_message("lost %llu\n", (unsigned long long)lost);
    assert_true(lost > EXPECTED - BOUND && lost < EXPECTED + BOUND);
    assert_int_equal(td_transit_count(t, 1)->passed, N - lost);
    for (int i = 0; i < 1000; i++)
        add(t, 0, 2, 'a', 0);
    assert_int_equal(td_transit_count(t, 2)->lost, 1000);
    td_transit_close(t);
}

static void test_transit_drops_what_does_not_fit(void **state)
{
    enum { FRAME = 64 * 1024 };
    struct td_transit_rules slow = {.rate_bps = 1000000}, far = {.links[0][1].delay_ns = MS};
    static unsigned char frame[FRAME];
    struct td_transit *t = open_with(&slow);
    const struct td_transit_count *count = td_transit_count(t, 1);

    (void)state;
    /* 4 MiB may wait in front of a frame: 64 of these, and the one behind them. */
    for (int i = 0; i < 100; i++)
        td_transit_add(t, 0, 1, frame, sizeof frame, sizeof frame, 0);
    assert_int_equal(count->full, 35);
    td_transit_close(t);

    /* Without a rate it is the memory of the port that ends: 64 MiB with what a frame takes besides. */
    t = open_with(&far);
    count = td_transit_count(t, 1);
    for (int i = 0; i < 1100; i++)
        td_transit_add(t, 0, 1, frame, sizeof frame, sizeof frame, 0);
    assert_int_equal(count->full, 1100 - (64 << 20) / (FRAME + (int)sizeof(struct td_frame)));
    assert_true(td_transit_held_bytes(t) <= 64 << 20);
    td_transit_close(t);
}

/* 16 ports, 256 MiB: the fifth receiver finds no room although its own share is empty. */
static void test_transit_bounds_the_memory_of_all_ports(void **state)
{
    enum { FRAME = 64 * 1024 };
    struct td_transit_rules far = {.rate_bps = 0};
    static unsigned char frame[FRAME];
    struct td_transit *t;
    size_t n_held = 0;

    (void)state;
    for (int to = 0; to < TD_TRANSIT_PORTS; to++)
        far.links[0][to].delay_ns = MS;
    t = open_with(&far);
    for (uint32_t to = 1; to < 6; to++)
        for (int i = 0; i < 1024; i++)
            td_transit_add(t, 0, to, frame, sizeof frame, sizeof frame, 0);
    for (struct td_frame *f; (f = td_transit_take(t, MS)) != NULL; free(f))
        n_held++;
    assert_int_equal(n_held, (256 << 20) / (FRAME + (int)sizeof(struct td_frame)));
    td_transit_close(t);
}

static void test_transit_blocks_one_way(void **state)
{
    struct td_transit_rules rules = {.links[0][1] = {.delay_ns = MS},
                                     .links[1][0] = {.delay_ns = MS}};
    struct td_transit *t = open_with(&rules);

    (void)state;
    add(t, 0, 1, 'a', 0);
    add(t, 1, 0, 'b', 1);
    rules.links[0][1].blocked = true;
    td_transit_set_rules(t, &rules, 2); /* also what is under way */
    add(t, 0, 1, 'c', 3);
    add(t, 1, 0, 'd', 3);
    assert_int_equal(take_at(t, MS + 1), 'b');
    assert_int_equal(take_at(t, MS + 3), 'd');
    assert_int_equal(td_transit_next_ns(t), UINT64_MAX);
    assert_int_equal(td_transit_count(t, 1)->blocked, 2);
    assert_int_equal(td_transit_held_bytes(t), 0);
    rules.links[0][1].blocked = false;
    td_transit_set_rules(t, &rules, 4);
    add(t, 0, 1, 'e', 5);
    assert_int_equal(take_at(t, MS + 5), 'e');
    td_transit_close(t);
}

static void test_transit_hurries_what_is_under_way_when_rules_get_faster(void **state)
{
    struct td_transit_rules slow = {.rate_bps = 1000, .links[0][1].delay_ns = 10000 * MS},
                            fast = {.links[0][1].delay_ns = MS};
    struct td_transit *t = open_with(&slow);

    (void)state;
    for (char what = 'a'; what < 'k'; what++)
        td_transit_add(t, 0, 1, &what, 1, 1500, 0); /* 12 s each */
    assert_int_equal(take_at(t, 22000 * MS), 'a');
    td_transit_set_rules(t, &fast, 30000 * MS);
    add(t, 0, 1, 'z', 30000 * MS);
    for (char what = 'b'; what < 'k'; what++)
        assert_int_equal(take_at(t, 30000 * MS + MS), what);
    assert_int_equal(take_at(t, 30000 * MS + MS), 'z');
    td_transit_close(t);
}

static void test_transit_keeps_the_rate_when_other_rules_change(void **state)
{
    struct td_transit_rules rules = {.rate_bps = 100000000};
    struct td_transit *t = open_with(&rules);

    (void)state;
    for (char what = 'a'; what < 'e'; what++)
        td_transit_add(t, 0, 1, &what, 1, 1500, 0);
    rules.links[2][1].blocked = true;
    td_transit_set_rules(t, &rules, 1000);
    td_transit_add(t, 0, 1, "e", 1, 1500, 1000);
    for (char what = 'a'; what < 'f'; what++)
        assert_int_equal(take_at(t, 120000 * (uint64_t)(what - 'a' + 1)), what);
    td_transit_close(t);
}

static void test_transit_frees_what_is_under_way(void **state)
{
    struct td_transit_rules rules = {.links[0][1].delay_ns = MS};
    struct td_transit *t = open_with(&rules);

    (void)state;
    for (int i = 0; i < 1000; i++)
        add(t, 0, 1, 'a', 0);
    assert_true(td_transit_held_bytes(t) > 0);
    td_transit_close(t);
    td_transit_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_transit_adds_the_delay_of_the_link),
        cmocka_unit_test(test_transit_lets_a_port_take_no_more_than_its_rate),
        cmocka_unit_test(test_transit_keeps_the_order_of_each_link_under_jitter),
        cmocka_unit_test(test_transit_loses_the_share_that_is_asked_for),
        cmocka_unit_test(test_transit_drops_what_does_not_fit),
        cmocka_unit_test(test_transit_bounds_the_memory_of_all_ports),
        cmocka_unit_test(test_transit_blocks_one_way),
        cmocka_unit_test(test_transit_hurries_what_is_under_way_when_rules_get_faster),
        cmocka_unit_test(test_transit_keeps_the_rate_when_other_rules_change),
        cmocka_unit_test(test_transit_frees_what_is_under_way),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
