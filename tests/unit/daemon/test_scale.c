/* Which layouts a sweep has, and what is made of figures; expected values are worked out by hand. */
#include "daemon/cli/scale.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 64 };

/* "4x1 1x4 2x2" as tensor x pipeline parallel. */
static const char *layouts_of(const int64_t *ranks, uint32_t n_ranks, unsigned kinds,
                              uint32_t n_layers)
{
    static char text[1024];
    struct td_scale_layout l[MOST];
    struct td_err err;
    uint32_t n = 0;
    size_t at = 0;

    if (td_scale_layouts(ranks, n_ranks, kinds, n_layers, l, MOST, &n, &err)) {
        snprintf(text, sizeof text, "refused: %s", err.cause);
        return text;
    }
    text[0] = '\0';
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(l[i].tp * l[i].pp, l[i].ranks);
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%ux%u", i ? " " : "", l[i].tp,
                               l[i].pp);
    }
    return text;
}

static void test_scale_lists_the_layouts_of_every_count(void **state)
{
    const int64_t ranks[] = {1, 2, 4, 12};

    (void)state;
    assert_string_equal(layouts_of(ranks, 3, TD_SCALE_ALL, 4), "1x1 2x1 1x2 4x1 1x4 2x2");
    assert_string_equal(layouts_of(ranks, 3, TD_SCALE_TP, 4), "1x1 2x1 4x1");
    assert_string_equal(layouts_of(ranks, 3, TD_SCALE_PP, 4), "1x1 1x2 1x4");
    assert_string_equal(layouts_of(ranks, 3, TD_SCALE_BOTH, 4), "1x1 2x2");
    assert_string_equal(layouts_of(ranks + 3, 1, TD_SCALE_ALL, 32), "12x1 1x12 2x6 3x4 4x3 6x2");
}

static void test_scale_makes_no_more_stages_than_there_are_layers(void **state)
{
    const int64_t ranks[] = {12};

    (void)state;
    assert_string_equal(layouts_of(ranks, 1, TD_SCALE_ALL, 4), "12x1 3x4 4x3 6x2");
    assert_non_null(strstr(layouts_of(ranks, 1, TD_SCALE_PP, 11), "refused: --layouts: none"));
    assert_non_null(strstr(layouts_of(ranks, 1, TD_SCALE_PP, 11), "11 layers"));
}

static void test_scale_refuses_a_count_twice_and_too_many_layouts(void **state)
{
    const int64_t twice[] = {2, 4, 2}, much[] = {1, 2, 4};
    struct td_scale_layout l[2];
    struct td_err err;
    uint32_t n = 77;

    (void)state;
    assert_string_equal(layouts_of(twice, 3, TD_SCALE_ALL, 4),
                        "refused: --ranks: got 2 twice, expected it once");
    assert_int_equal(td_scale_layouts(much, 3, TD_SCALE_TP, 4, l, 2, &n, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "3 layouts, expected at most 2"));
    assert_int_equal(n, 77);
}

static void test_scale_knows_the_kind_of_a_layout(void **state)
{
    const struct td_scale_layout one = {1, 1, 1}, tp = {3, 3, 1}, pp = {3, 1, 3}, both = {6, 2, 3};

    (void)state;
    assert_int_equal(td_scale_kind_of(&one), TD_SCALE_TP);
    assert_int_equal(td_scale_kind_of(&tp), TD_SCALE_TP);
    assert_int_equal(td_scale_kind_of(&pp), TD_SCALE_PP);
    assert_int_equal(td_scale_kind_of(&both), TD_SCALE_BOTH);
}

/* ---- figures ---- */

/* Owned. */
static struct td_benchread *figures(uint32_t n_threads, double decode, double prefill)
{
    struct td_benchread *r = calloc(1, sizeof *r);

    assert_non_null(r);
    r->n_threads = n_threads;
    r->decode.best = decode;
    r->prefill.best = prefill;
    return r;
}

static struct td_scale_point point_of(uint32_t ranks, uint32_t prompt, uint32_t depth,
                                      struct td_benchread *read)
{
    return (struct td_scale_point){
        .layout = {ranks, ranks, 1}, .prompt_tokens = prompt, .depth = depth, .read = read};
}

static void test_scale_compares_with_one_rank_of_the_same_lengths(void **state)
{
    struct td_scale_point p[] = {
        point_of(2, 128, 0, figures(4, 150.0, 900.0)), /* before what it is held against */
        point_of(1, 128, 0, figures(2, 100.0, 1000.0)),
        point_of(1, 128, 64, figures(1, 50.0, 500.0)),
        point_of(4, 128, 64, figures(4, 160.0, 1000.0)),
        point_of(2, 512, 0, figures(2, 10.0, 10.0)), /* nothing to compare with */
        point_of(8, 128, 0, NULL),
    };

    (void)state;
    td_scale_compare(p, sizeof p / sizeof p[0]);
    assert_true(p[1].decode.speed_up == 1.0 && p[1].decode.efficiency == 1.0);
    assert_true(p[0].decode.speed_up == 1.5 &&
                p[0].decode.efficiency == 0.75); /* twice the threads */
    assert_true(p[0].prefill.speed_up == 0.9 && p[0].prefill.efficiency == 0.45);
    assert_true(p[3].decode.speed_up == 3.2 && p[3].decode.efficiency == 0.8);
    assert_true(p[3].prefill.speed_up == 2.0 && p[3].prefill.efficiency == 0.5);
    assert_true(isnan(p[4].decode.speed_up) && isnan(p[4].decode.efficiency));
    for (size_t i = 0; i < sizeof p / sizeof p[0]; i++)
        free(p[i].read);
}

static void test_scale_tells_how_far_off_a_prediction_is(void **state)
{
    struct td_prediction prediction = {.decode.tokens_per_s = 125.0, .prefill.tokens_per_s = 800.0};
    struct td_scale_point p = point_of(1, 128, 0, figures(1, 100.0, 1000.0));

    (void)state;
    td_scale_predict(&p, &prediction);
    assert_true(p.decode.error == 0.25);
    assert_true(fabs(p.prefill.error + 0.2) < 1e-12);
    assert_true(p.prefill.predicted.tokens_per_s == 800.0);
    td_scale_predict(&p, NULL);
    assert_true(isnan(p.decode.error) && isnan(p.prefill.error));
    free(p.read);
}

static void test_scale_asks_for_the_tokens_before_the_decoded_one(void **state)
{
    struct td_benchread *r = figures(1, 1.0, 1.0);
    struct td_predict_load load;

    (void)state;
    r->decode.depth =
        132.5; /* of 8 tokens behind 128: 129 to 136 with themselves, 128 to 135 before */
    r->prefill.n_tokens = 512;
    load = td_scale_load(r, 64);
    assert_true(load.depth == 131 || load.depth == 132);
    assert_int_equal(load.prompt_tokens, 512);
    assert_int_equal(load.prefill_chunk, 64);
    assert_int_equal(load.batch, 1);
    r->decode.depth = 1.0; /* the first token of all */
    assert_int_equal(td_scale_load(r, 0).depth, 0);
    free(r);
}

/* ---- machines ---- */

static struct td_machine a, b, joined; /* too large for the stack */

static void set_machines(void)
{
    a = (struct td_machine){.n_ranks = 2,
                            .n_hosts = 2,
                            .rank = {{.memory_bytes_per_s = 10e9, .ops_per_s = {5.0, 2.0, 1.0}},
                                     {.host = 1, .memory_bytes_per_s = 30e9}},
                            .host_bytes_per_s = {10e9, 30e9},
                            .intra = {2e-6, 7e9},
                            .inter = {50e-6, 2e9}};
    b = a;
    b.rank[0].memory_bytes_per_s = 12e9;
    b.rank[0].ops_per_s[0] = 4.0;
    b.rank[0].ops_per_s[2] = 3.0;
    b.rank[1].memory_bytes_per_s = 20e9;
    b.host_bytes_per_s[0] = 12e9;
    b.host_bytes_per_s[1] = 26e9;
}

static void test_scale_measures_drift_over_all_hosts(void **state)
{
    (void)state;
    set_machines();
    assert_true(fabs(td_scale_drift(&a, &b) - 0.05) < 1e-12); /* 38 of 40 GB/s */
    assert_true(fabs(td_scale_drift(&b, &a) - 0.05) < 1e-12);
    assert_true(td_scale_drift(&a, &a) == 0.0);
    assert_false(td_scale_has_drifted(0.04));
    assert_true(td_scale_has_drifted(0.06));
    assert_false(td_scale_has_drifted(NAN)); /* nobody knows */
}

static void test_scale_joins_the_better_of_two_takes(void **state)
{
    const struct td_scale_sizes sizes = {1000.0, 1e6};

    (void)state;
    set_machines();
    td_scale_join(&a, &b, &sizes, &joined);
    assert_true(joined.rank[0].memory_bytes_per_s == 12e9);
    assert_true(joined.rank[1].memory_bytes_per_s == 30e9);
    assert_true(joined.rank[0].ops_per_s[0] == 5.0 && joined.rank[0].ops_per_s[2] == 3.0);
    assert_true(joined.host_bytes_per_s[0] == 12e9 && joined.host_bytes_per_s[1] == 30e9);
}

static double time_of(struct td_machine_link link, double bytes)
{
    return link.latency_s + bytes / link.bytes_per_s;
}

/* 200 us and 1 GB/s, but once a megabyte took 41 ms: the line turns, and a fifth of the latency is gone. */
static void test_scale_joins_links_by_the_better_time_of_each_size(void **state)
{
    const struct td_scale_sizes sizes = {1000.0, 1e6};

    (void)state;
    set_machines();
    a.inter = (struct td_machine_link){200e-6, 1e9};
    b.inter = (struct td_machine_link){161e-6, 1e6 / (41e-3 - 161e-6)};
    td_scale_join(&a, &b, &sizes, &joined);
    assert_true(fabs(joined.inter.latency_s - 200e-6) < 1e-9);
    assert_true(fabs(joined.inter.bytes_per_s - 1e9) < 1.0);
    /* Each has the better time of one size. */
    a.inter = (struct td_machine_link){100e-6, 1e9}; /* 101 us, 1100 us */
    b.inter = (struct td_machine_link){150e-6, 2e9}; /* 150.5 us, 650 us */
    td_scale_join(&a, &b, &sizes, &joined);
    assert_true(fabs(time_of(joined.inter, 1000.0) - 101e-6) < 1e-12);
    assert_true(fabs(time_of(joined.inter, 1e6) - 650e-6) < 1e-12);
    /* Nothing is faster than the faster of both. */
    a.inter = (struct td_machine_link){100e-6, 1e9};
    b.inter = (struct td_machine_link){0.0, 1e9};
    td_scale_join(&a, &b, &sizes, &joined);
    assert_true(joined.inter.latency_s == 0.0 && fabs(joined.inter.bytes_per_s - 1e9) < 1.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scale_lists_the_layouts_of_every_count),
        cmocka_unit_test(test_scale_makes_no_more_stages_than_there_are_layers),
        cmocka_unit_test(test_scale_refuses_a_count_twice_and_too_many_layouts),
        cmocka_unit_test(test_scale_knows_the_kind_of_a_layout),
        cmocka_unit_test(test_scale_compares_with_one_rank_of_the_same_lengths),
        cmocka_unit_test(test_scale_tells_how_far_off_a_prediction_is),
        cmocka_unit_test(test_scale_asks_for_the_tokens_before_the_decoded_one),
        cmocka_unit_test(test_scale_measures_drift_over_all_hosts),
        cmocka_unit_test(test_scale_joins_the_better_of_two_takes),
        cmocka_unit_test(test_scale_joins_links_by_the_better_time_of_each_size),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
