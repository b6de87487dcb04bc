/* The text of --netlab: what it becomes, and what is refused in which words. */
#include "daemon/cli/linkspec.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-12 * fabs(b);
}

static void test_linkspec_reads_delays_in_seconds_and_rates_in_bits(void **state)
{
    struct td_linkspec spec;

    (void)state;
    assert_int_equal(
        td_linkspec_parse("rate=0,1gbit,2.5mbit,1kbit;delay=0,50us,1.5ms,10s", &spec, NULL), TD_OK);
    assert_int_equal(spec.n_delays, 4);
    assert_int_equal(spec.n_rates, 4);
    assert_true(spec.delay[0].value == 0.0 && near(spec.delay[1].value, 50e-6));
    assert_true(near(spec.delay[2].value, 1.5e-3) && near(spec.delay[3].value, 10.0));
    assert_true(spec.rate[0].value == 0.0 && near(spec.rate[1].value, 1e9));
    assert_true(near(spec.rate[2].value, 2.5e6) && near(spec.rate[3].value, 1e3));
    assert_string_equal(spec.delay[2].text, "1.5ms"); /* as it was written, for netlab */
    assert_string_equal(spec.rate[0].text, "0");
}

static void test_linkspec_leaves_what_is_not_named_as_the_machine_is(void **state)
{
    struct td_linkspec spec;

    (void)state;
    assert_int_equal(td_linkspec_parse("delay=1ms", &spec, NULL), TD_OK);
    assert_int_equal(spec.n_rates, 1);
    assert_true(spec.rate[0].value == 0.0);
    assert_int_equal(td_linkspec_parse("rate=10gbit", &spec, NULL), TD_OK);
    assert_int_equal(spec.n_delays, 1);
    assert_string_equal(spec.delay[0].text, "0");
}

static void test_linkspec_names_what_is_wrong(void **state)
{
    static const char *const cases[][2] = {
        {"", "got ''"},
        {"50us", "expected delay=VALUES"},
        {"delay", "expected delay=VALUES"},
        {"delays=1ms", "got 'delays=1ms'"},
        {"delay=", "delay: got ''"},
        {"delay=1ms,", "delay: got ''"},
        {"delay=,1ms", "delay: got ''"},
        {"delay=1ms;", "got ''"},
        {"delay=5", "got '5', expected 0 or a number with us, ms or s"},
        {"delay=-1ms", "got '-1ms'"},
        {"delay=1 ms", "got '1 ms'"},
        {"delay=1e-3s", "got '1e-3s'"},
        {"delay=.5ms", "got '.5ms'"},
        {"delay=1.ms", "got '1.ms'"},
        {"delay=11s", "at most 10s"},
        {"delay=1234567890us", "got '1234567890us'"},
        {"delay=1ms;delay=2ms", "delay: got it twice"},
        {"delay=1ms,1000us", "got '1000us' after '1ms'"},
        {"rate=1", "rate: got '1', expected 0 or a number with kbit"},
        {"rate=1Gbit", "got '1Gbit'"},
        {"rate=0.5kbit", "1kbit to 1000gbit"},
        {"rate=1001gbit", "1kbit to 1000gbit"},
        {"rate=1gbit;jitter=1ms", "got 'jitter=1ms'"},
        {"delay=1us,2us,3us,4us,5us,6us,7us", "expected at most 6"},
        {"delay=1111111111111111111111111111111111111111111us", "delay: got '1111"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct td_linkspec spec = {.n_delays = 77};
        struct td_err err;

        assert_int_equal(td_linkspec_parse(cases[i][0], &spec, &err), TD_INVALID);
        if (!strstr(err.cause, cases[i][1]))
            fail_msg("'%s' is refused with '%s', without '%s'", cases[i][0], err.cause,
                     cases[i][1]);
        assert_int_equal(spec.n_delays, 77); /* nothing is written then */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linkspec_reads_delays_in_seconds_and_rates_in_bits),
        cmocka_unit_test(test_linkspec_leaves_what_is_not_named_as_the_machine_is),
        cmocka_unit_test(test_linkspec_names_what_is_wrong),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
