#include "comm/linkfit.h"

#include "tests/unit/check.h"

#include <math.h>
#include <string.h>

static void assert_near(double got, double want, double part)
{
    if (!(fabs(got - want) <= part * fabs(want)))
        fail_msg("got %.17g, expected %.17g", got, want);
}

/* Times of alpha + bytes * slope at 8 bytes, 8 KB, 64 KB, 1 MB and 16 MB. */
static size_t on_line(double alpha, double slope, struct td_linkfit_point *points)
{
    static const double sizes[] = {8, 8192, 65536, 1048576, 16777216};

    for (size_t i = 0; i < 5; i++)
        points[i] = (struct td_linkfit_point){sizes[i], alpha + slope * sizes[i]};
    return 5;
}

static void test_linkfit_finds_the_line_that_the_points_lie_on(void **state)
{
    static const struct {
        double alpha_ns, ns_per_byte;
    } lines[] = {{250, 0.1}, {50e3, 8}, {1e6, 0.001}, {0.5, 1e-3}, {5e6, 0.0}};
    struct td_linkfit_point points[5];
    struct td_linkfit fit;
    struct td_err err;

    (void)state;
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        size_t n = on_line(lines[i].alpha_ns, lines[i].ns_per_byte, points);

        assert_int_equal(td_linkfit_make(points, n, &fit, &err), TD_OK);
        assert_near(fit.alpha_ns, lines[i].alpha_ns, 1e-9);
        if (lines[i].ns_per_byte > 0.0) {
            assert_near(fit.ns_per_byte, lines[i].ns_per_byte, 1e-6);
            assert_near(td_linkfit_bandwidth(&fit), 1e9 / lines[i].ns_per_byte, 1e-6);
        } else {
            assert_true(fit.ns_per_byte >= 0.0 && fit.ns_per_byte < 1e-9);
        }
        assert_true(fit.worst < 1e-9);
        assert_near(td_linkfit_predict(&fit, 1e6), lines[i].alpha_ns + lines[i].ns_per_byte * 1e6,
                    1e-6);
    }
}

/* (0, 1), (1, 2), (1, 4) with weights 1, 1/4, 1/16. Normal equations: 21/16 a + 5/16 b = 7/4 and 5/16 a + 5/16 b = 3/4,
 * so a = 1 and b = 7/5: the line is 1 at 0 and 2.4 at 1. Without weights it would be 3 at 1. */
static void test_linkfit_weighs_errors_relative_to_the_time(void **state)
{
    static const struct td_linkfit_point points[] = {{0, 1}, {1, 2}, {1, 4}};
    struct td_linkfit fit;
    struct td_err err;

    (void)state;
    assert_int_equal(td_linkfit_make(points, 3, &fit, &err), TD_OK);
    assert_near(fit.alpha_ns, 1.0, 1e-12);
    assert_near(fit.ns_per_byte, 1.4, 1e-12);
    assert_near(fit.worst, 1.6 / 4.0, 1e-12);
    assert_near(td_linkfit_predict(&fit, 10), 15.0, 1e-12);
}

/* Through (1, 1) and (2, 4) goes 3 x - 2. Held at alpha 0: b = (1 + 8/16) / (1 + 4/16) = 1.2. */
static void test_linkfit_holds_a_negative_alpha_at_zero(void **state)
{
    static const struct td_linkfit_point points[] = {{1, 1}, {2, 4}};
    struct td_linkfit fit;
    struct td_err err;

    (void)state;
    assert_int_equal(td_linkfit_make(points, 2, &fit, &err), TD_OK);
    assert_true(fit.alpha_ns == 0.0);
    assert_near(fit.ns_per_byte, 1.2, 1e-12);
    assert_near(fit.worst, 1.6 / 4.0, 1e-12);
}

/* Falling times: the constant with the least relative errors is (1/2 + 1/1) / (1/4 + 1/1) = 1.2. */
static void test_linkfit_holds_a_falling_line_level(void **state)
{
    static const struct td_linkfit_point points[] = {{8, 2}, {8000, 1}};
    struct td_linkfit fit;
    struct td_err err;

    (void)state;
    assert_int_equal(td_linkfit_make(points, 2, &fit, &err), TD_OK);
    assert_near(fit.alpha_ns, 1.2, 1e-12);
    assert_true(fit.ns_per_byte == 0.0 && isinf(td_linkfit_bandwidth(&fit)));
    assert_near(fit.worst, 0.4, 1e-12);
}

static void test_linkfit_refuses_what_makes_no_line(void **state)
{
    static const struct {
        struct td_linkfit_point points[2];
        size_t n;
        const char *word;
    } cases[] = {
        {{{8, 1}}, 0, "two sizes"},          {{{8, 1}}, 1, "two sizes"},
        {{{8, 1}, {8, 2}}, 2, "two sizes"},  {{{8, 1}, {16, 0}}, 2, "point 1"},
        {{{8, -1}, {16, 1}}, 2, "point 0"},  {{{-8, 1}, {16, 1}}, 2, "point 0"},
        {{{8, NAN}, {16, 1}}, 2, "point 0"}, {{{8, 1}, {INFINITY, 1}}, 2, "point 1"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct td_linkfit fit = {.alpha_ns = -7};
        struct td_err err = {0};

        assert_int_equal(td_linkfit_make(cases[i].points, cases[i].n, &fit, &err), TD_INVALID);
        assert_non_null(strstr(err.cause, cases[i].word));
        assert_true(fit.alpha_ns == -7); /* written on success only */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linkfit_finds_the_line_that_the_points_lie_on),
        cmocka_unit_test(test_linkfit_weighs_errors_relative_to_the_time),
        cmocka_unit_test(test_linkfit_holds_a_negative_alpha_at_zero),
        cmocka_unit_test(test_linkfit_holds_a_falling_line_level),
        cmocka_unit_test(test_linkfit_refuses_what_makes_no_line),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
