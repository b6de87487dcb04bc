#include "daemon/cli/loadstat.h"
#include "tests/unit/check.h"

#include <math.h>
#include <string.h>

static const uint64_t MS = 1000000;

static bool near(double a, double b)
{
    return fabs(a - b) < 1e-6;
}

static enum td_status parse(const char **items, uint32_t n, struct td_loadstat_slo *slo,
                            struct td_err *err)
{
    struct td_option_list list = {items, n};

    return td_loadstat_slo_parse(&list, slo, err);
}

/* Three answers, two failures and one that was broken off, over two seconds. */
static void test_loadstat_counts_failures_and_keeps_them_out_of_the_latencies(void **state)
{
    float gaps[2][2] = {{10.0f, 30.0f}, {20.0f, 40.0f}};
    char why[] = "429: full", gone[] = "closed";
    struct td_loadrecord records[6] = {
        {.due_ns = 1000 * MS,
         .sent_ns = 1001 * MS,
         .first_ns = 1101 * MS,
         .last_ns = 1141 * MS,
         .n_events = 3,
         .gap_ms = gaps[0],
         .n_gaps = 2,
         .has_usage = true,
         .n_input = 10,
         .n_output = 5,
         .n_cached = 4,
         .n_words = 8,
         .n_asked = 5},
        {.due_ns = 1000 * MS,
         .sent_ns = 1000 * MS,
         .first_ns = 1300 * MS,
         .last_ns = 1360 * MS,
         .n_events = 3,
         .gap_ms = gaps[1],
         .n_gaps = 2,
         .n_words = 9,
         .n_asked = 4},
        {.due_ns = 2000 * MS,
         .sent_ns = 2003 * MS,
         .first_ns = 2013 * MS,
         .last_ns = 2013 * MS,
         .n_events = 1,
         .has_usage = true,
         .n_input = 7,
         .n_output = 1,
         .n_words = 6,
         .n_asked = 1},
        {.due_ns = 2000 * MS, .sent_ns = 2000 * MS, .end = TD_LOADRECORD_REFUSED, .reason = why},
        {.due_ns = 2000 * MS,
         .sent_ns = 2000 * MS,
         .first_ns = 9000 * MS,
         .has_usage = true,
         .n_output = 1000,
         .end = TD_LOADRECORD_BROKEN,
         .reason = gone},
        {.due_ns = 2000 * MS, .sent_ns = 2000 * MS, .end = TD_LOADRECORD_CANCELLED},
    };
    struct td_loadrecord *list[6];
    struct td_loadrun run = {.records = list,
                             .n_records = 6,
                             .start_ns = 1000 * MS,
                             .end_ns = 3000 * MS,
                             .interrupted = true,
                             .most_under_way = 4};
    struct td_loadstat_slo slo = {.ttft = 150.0, .itl = 35.0};
    struct td_loadstat st;
    struct td_err err;

    (void)state;
    for (int i = 0; i < 6; i++)
        list[i] = &records[i];
    assert_int_equal(td_loadstat_take(&run, &slo, &st, &err), TD_OK);
    assert_int_equal(st.n_sent, 6);
    assert_int_equal(st.n_done, 3);
    assert_int_equal(st.n_failed, 2);
    assert_int_equal(st.n_ends[TD_LOADRECORD_REFUSED], 1);
    assert_string_equal(st.reasons[TD_LOADRECORD_REFUSED], "429: full");
    assert_int_equal(st.n_ends[TD_LOADRECORD_BROKEN], 1);
    assert_int_equal(st.n_ends[TD_LOADRECORD_CANCELLED], 1);
    assert_int_equal(st.n_input, 10 + 9 + 7); /* words where the server counts nothing */
    assert_int_equal(st.n_output, 5 + 3 + 1);
    assert_int_equal(st.n_cached, 4);
    assert_int_equal(st.n_without_usage, 1);
    assert_int_equal(st.n_short, 1);
    assert_true(near(st.duration_s, 2.0) && near(st.request_throughput, 1.5));
    assert_true(near(st.output_throughput, 4.5) && near(st.input_throughput, 13.0));
    assert_int_equal(st.ttft.n, 3);
    assert_true(near(st.ttft.mean, (100.0 + 300.0 + 10.0) / 3.0) && near(st.ttft.p50, 100.0));
    assert_true(near(st.e2e.mean, (140.0 + 360.0 + 10.0) / 3.0));
    assert_int_equal(st.itl.n, 4);
    assert_true(near(st.itl.p50, 25.0) && near(st.itl.max, 40.0));
    assert_int_equal(st.tpot.n, 2); /* one token has none */
    assert_true(near(st.tpot.mean, (40.0 / 4.0 + 60.0 / 2.0) / 2.0));
    assert_int_equal(st.lag.n, 6);
    assert_true(near(st.lag.max, 3.0));
    assert_int_equal(st.n_good, 2);
    assert_true(near(st.goodput, 1.0));
    assert_true(near(st.mean_under_way, (0.14 + 0.36 + 0.01) / 2.0));
    assert_true(st.interrupted);
}

static void test_loadstat_goodput_keeps_every_bound_that_is_given(void **state)
{
    float gaps[2] = {5.0f, 15.0f};
    struct td_loadrecord record = {.sent_ns = 1 * MS,
                                   .first_ns = 101 * MS,
                                   .last_ns = 121 * MS,
                                   .n_events = 3,
                                   .gap_ms = gaps,
                                   .n_gaps = 2,
                                   .n_asked = 3};
    struct td_loadrecord *list[1] = {&record};
    struct td_loadrun run = {.records = list, .n_records = 1, .end_ns = 1000 * MS};
    const struct {
        struct td_loadstat_slo slo;
        size_t n_good;
    } cases[] = {
        {{0}, 1},
        {{.ttft = 100.0, .tpot = 10.0, .itl = 15.0, .e2e = 120.0}, 1},
        {{.ttft = 99.0}, 0},
        {{.tpot = 9.9}, 0},
        {{.itl = 14.0}, 0},
        {{.e2e = 119.0}, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct td_loadstat st;

        assert_int_equal(td_loadstat_take(&run, &cases[i].slo, &st, NULL), TD_OK);
        assert_int_equal(st.n_good, cases[i].n_good);
    }
}

static void test_loadstat_reads_bounds_and_refuses_what_is_none(void **state)
{
    const char *good[] = {"ttft:200", "itl:50.5", "tpot:40", "e2e:5000"};
    const char *bad[] = {"ttft",    "ttft:",   "ttft:0", "ttft:-1",
                         "ttft:1x", "itl:nan", "foo:1",  "ttft:1e3"};
    struct td_loadstat_slo slo;
    struct td_err err;

    (void)state;
    assert_int_equal(parse(good, 4, &slo, &err), TD_OK);
    assert_true(slo.ttft == 200.0 && slo.itl == 50.5 && slo.tpot == 40.0 && slo.e2e == 5000.0);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(parse(&bad[i], 1, &slo, &err), TD_INVALID);
        assert_non_null(strstr(err.cause, bad[i]));
        assert_non_null(strstr(err.cause, "ttft:MS"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loadstat_counts_failures_and_keeps_them_out_of_the_latencies),
        cmocka_unit_test(test_loadstat_goodput_keeps_every_bound_that_is_given),
        cmocka_unit_test(test_loadstat_reads_bounds_and_refuses_what_is_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
