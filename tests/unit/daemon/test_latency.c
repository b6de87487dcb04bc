#include "daemon/cli/latency.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The value at a rank that counts from 0 and may lie between two: found without sorting, by counting who is smaller. */
static double value_at(const double *v, size_t n, size_t rank)
{
    for (size_t i = 0; i < n; i++) {
        size_t below = 0, equal = 0;

        for (size_t k = 0; k < n; k++) {
            below += v[k] < v[i];
            equal += v[k] == v[i];
        }
        if (below <= rank && rank < below + equal)
            return v[i];
    }
    fail();
    return 0.0;
}

static double naive_percentile(const double *v, size_t n, double percent)
{
    double at = percent / 100.0 * (double)(n - 1);
    size_t low = (size_t)at;
    double a = value_at(v, n, low), b = value_at(v, n, low + 1 < n ? low + 1 : low);

    return a + (at - (double)low) * (b - a);
}

static void test_latency_percentiles_are_those_of_the_definition(void **state)
{
    unsigned seed = (unsigned)time(NULL);

    (void)state;
    printf("seed %u\n", seed);
    srand(seed);
    for (size_t n = 1; n < 60; n++) {
        struct td_latency l = {0};
        struct td_latency_summary sum;
        double v[60], mean = 0.0, squares = 0.0;

        for (size_t i = 0; i < n; i++) {
            v[i] = (double)(rand() % 40) / 8.0; /* with equal ones among them */
            mean += v[i] / (double)n;
            assert_int_equal(td_latency_add(&l, v[i]), TD_OK);
        }
        for (size_t i = 0; i < n; i++)
            squares += (v[i] - mean) * (v[i] - mean);
        td_latency_summarise(&l, &sum);
        assert_int_equal(sum.n, n);
        assert_true(fabs(sum.mean - mean) < 1e-9);
        assert_true(fabs(sum.sd - sqrt(squares / (double)n)) < 1e-9);
        assert_true(sum.min == value_at(v, n, 0) && sum.max == value_at(v, n, n - 1));
        assert_true(fabs(sum.p50 - naive_percentile(v, n, 50.0)) < 1e-9);
        assert_true(fabs(sum.p90 - naive_percentile(v, n, 90.0)) < 1e-9);
        assert_true(fabs(sum.p95 - naive_percentile(v, n, 95.0)) < 1e-9);
        assert_true(fabs(sum.p99 - naive_percentile(v, n, 99.0)) < 1e-9);
        for (double p = 0.0; p <= 100.0; p += 6.25)
            assert_true(fabs(td_latency_percentile(&l, p) - naive_percentile(v, n, p)) < 1e-9);
        td_latency_deinit(&l);
    }
}

/* numpy.percentile(range(1, 11), [0, 50, 90, 99, 100]) of NumPy 1.26. */
static void test_latency_interpolates_as_numpy_does(void **state)
{
    const double expected[5][2] = {{0, 1.0}, {50, 5.5}, {90, 9.1}, {99, 9.91}, {100, 10.0}};
    struct td_latency l = {0};

    (void)state;
    for (int i = 10; i > 0; i--)
        assert_int_equal(td_latency_add(&l, i), TD_OK);
    for (int i = 0; i < 5; i++)
        assert_true(fabs(td_latency_percentile(&l, expected[i][0]) - expected[i][1]) < 1e-12);
    assert_int_equal(td_latency_add(&l, 0.5), TD_OK); /* what was sorted is sorted again */
    assert_true(td_latency_percentile(&l, 0.0) == 0.5);
    td_latency_deinit(&l);
}

static void test_latency_of_nothing_is_zero(void **state)
{
    struct td_latency l = {0};
    struct td_latency_summary sum;

    (void)state;
    td_latency_summarise(&l, &sum);
    assert_int_equal(sum.n, 0);
    assert_true(sum.mean == 0.0 && sum.p99 == 0.0 && sum.max == 0.0);
    assert_true(td_latency_percentile(&l, 50.0) == 0.0);
    td_latency_deinit(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_latency_percentiles_are_those_of_the_definition),
        cmocka_unit_test(test_latency_interpolates_as_numpy_does),
        cmocka_unit_test(test_latency_of_nothing_is_zero),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
