#include "deploy/netlab/linkrules.h"

#include "tests/unit/check.h"

#include <string.h>

static void test_linkrules_reads_every_statement(void **state)
{
    const struct td_str text = TD_STR("port 0 lab-p0\n"
                                      "port 15  a23456789012345\n"
                                      "\n"
                                      "rate 1000000000\n"
                                      "all 50000 10 0\n"
                                      "link 2 0 1000000 0 1000000\n"
                                      "block 0 2"); /* the last line needs no end */
    struct td_linkrules got;

    (void)state;
    assert_int_equal(td_linkrules_parse(text, &got, NULL), TD_OK);
    assert_string_equal(got.ports[0], "lab-p0");
    assert_string_equal(got.ports[1], "");
    assert_string_equal(got.ports[15], "a23456789012345");
    assert_int_equal(got.rules.rate_bps, 1000000000);
    for (int from = 0; from < TD_TRANSIT_PORTS; from++) {
        for (int to = 0; to < TD_TRANSIT_PORTS; to++) {
            const struct td_transit_link *link = &got.rules.links[from][to];
            const bool is_far = from == 2 && to == 0;

            assert_int_equal(link->delay_ns, is_far ? 1000000 : 50000);
            assert_int_equal(link->jitter_ns, is_far ? 0 : 10);
            assert_int_equal(link->loss_ppm, is_far ? 1000000 : 0);
            assert_int_equal(link->blocked, from == 0 && to == 2);
        }
    }
}

static void test_linkrules_takes_nothing_for_an_open_switch(void **state)
{
    const struct td_linkrules none = {.rules.rate_bps = 0};
    struct td_linkrules got;

    (void)state;
    memset(&got, 1, sizeof got);
    assert_int_equal(td_linkrules_parse(TD_STR(""), &got, NULL), TD_OK);
    assert_memory_equal(&got, &none, sizeof got);
}

static void test_linkrules_names_what_is_wrong(void **state)
{
    static const struct {
        const char *text, *line, *expected;
    } cases[] = {
        {"port 0 a\nspeed 1\n", "line 2: got 'speed 1'", "port, rate, all, link or block"},
        {"port 16 a", "line 1: got 'port 16 a'", "K from 0 to 15"},
        {"port -1 a", "'port -1 a'", "K from 0 to 15"},
        {"port 0", "'port 0'", "NAME"},
        {"port 0 a2345678901234567", "line 1", "15 bytes"},
        {"rate", "'rate'", "bits per second"},
        {"rate 1e9", "'rate 1e9'", "bits per second"},
        {"rate 1000000000001", "line 1", "10^12"},
        {"rate 18446744073709551617", "line 1", "10^12"},
        {"all 1 2", "'all 1 2'", "DELAY_NS JITTER_NS LOSS_PPM"},
        {"all 60000000001 0 0", "line 1", "a minute"},
        {"all 0 0 1000001", "line 1", "1000000"},
        {"link 0 1 2 3", "line 1", "FROM TO"},
        {"link 0 1 2 3 4 5", "line 1", "FROM TO"},
        {"link 0 1 2 3 4 5 6 7 8 9", "line 1", "FROM TO"},
        {"link 0 99 2 3 4", "line 1", "FROM TO"},
        {"block 0", "'block 0'", "FROM TO"},
        {"block 0 1x", "'block 0 1x'", "ports from 0 to 15"},
        {"block\t0 1", "line 1", "begins with"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct td_linkrules got = {.rules.rate_bps = 7};
        struct td_err err;

        assert_int_equal(td_linkrules_parse(td_str_from(cases[i].text), &got, &err), TD_INVALID);
        if (!strstr(err.cause, cases[i].line) || !strstr(err.cause, cases[i].expected))
            fail_msg("'%s' gives '%s'", cases[i].text, err.cause);
        assert_int_equal(got.rules.rate_bps, 7); /* written on success only */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linkrules_reads_every_statement),
        cmocka_unit_test(test_linkrules_takes_nothing_for_an_open_switch),
        cmocka_unit_test(test_linkrules_names_what_is_wrong),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
