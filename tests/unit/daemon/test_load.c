/* The load against theory: every bound is six standard errors of what is measured, so that no seed fails by chance. */
#include "daemon/cli/load.h"
#include "daemon/cli/loadtrace.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N = 100000 };
static const double ERRORS = 6.0;

static uint64_t a_seed(void)
{
    uint64_t seed = (uint64_t)time(NULL) * 2654435761u;

    printf("seed %llu\n", (unsigned long long)seed);
    return seed;
}

static struct td_load load_of(uint64_t seed, const char *input, const char *output)
{
    struct td_load l = {.seed = seed, .prefix_groups = 1};
    struct td_err err;

    assert_int_equal(td_load_dist_parse("input-len", input, &l.input, &err), TD_OK);
    assert_int_equal(td_load_dist_parse("output-len", output, &l.output, &err), TD_OK);
    return l;
}

static void test_load_gaps_are_exponential(void **state)
{
    struct td_load l = load_of(a_seed(), "1", "1");
    double sum = 0.0, squares = 0.0;
    size_t beyond[4] = {0}; /* longer than 0.5, 1, 2 and 4 */

    (void)state;
    for (uint64_t i = 0; i < N; i++) {
        double gap = td_load_gap(&l, i);

        assert_true(gap >= 0.0);
        sum += gap;
        squares += gap * gap;
        for (int k = 0; k < 4; k++)
            beyond[k] += gap > 0.5 * (1 << k);
    }
    assert_true(fabs(sum / N - 1.0) < ERRORS / sqrt(N));
    /* The square's mean is 2, its variance 24 - 4. */
    assert_true(fabs(squares / N - 2.0) < ERRORS * sqrt(20.0 / N));
    for (int k = 0; k < 4; k++) {
        double p = exp(-0.5 * (1 << k));

        assert_true(fabs((double)beyond[k] / N - p) < ERRORS * sqrt(p * (1.0 - p) / N));
    }
}

static void check_lengths(const char *input, double mean, double sd, double slack)
{
    struct td_load l = load_of(a_seed(), input, "1");
    double sum = 0.0, squares = 0.0, got_mean, got_sd;

    for (uint64_t i = 0; i < N; i++) {
        struct td_load_request r;

        td_load_request(&l, i, &r);
        assert_true(r.n_input >= 1 && r.n_input <= TD_LOAD_MAX_TOKENS);
        sum += r.n_input;
        squares += (double)r.n_input * r.n_input;
    }
    got_mean = sum / N;
    got_sd = sqrt(squares / N - got_mean * got_mean);
    printf("%s: mean %.3f, sd %.3f\n", input, got_mean, got_sd);
    assert_true(fabs(got_mean - mean) < ERRORS * sd / sqrt(N) + slack);
    assert_true(fabs(got_sd - sd) <= 0.03 * sd + slack);
}

static void test_load_lengths_follow_their_distribution(void **state)
{
    (void)state;
    check_lengths("77", 77.0, 0.0, 1e-9);
    check_lengths("uniform:10:109", 59.5, sqrt((100.0 * 100.0 - 1.0) / 12.0), 1e-9);
    check_lengths("10:109", 59.5, sqrt((100.0 * 100.0 - 1.0) / 12.0), 1e-9);
    check_lengths("normal:500:50", 500.0, 50.0, 0.01);
    check_lengths("lognormal:500:200", 500.0, 200.0, 0.01);
}

static void test_load_uniform_reaches_both_ends_evenly(void **state)
{
    struct td_load l = load_of(a_seed(), "3:6", "1:2");
    size_t n[8] = {0}, n_output[3] = {0};

    (void)state;
    for (uint64_t i = 0; i < N; i++) {
        struct td_load_request r;

        td_load_request(&l, i, &r);
        assert_true(r.n_input >= 3 && r.n_input <= 6 && r.n_output >= 1 && r.n_output <= 2);
        n[r.n_input]++;
        n_output[r.n_output]++;
    }
    for (int k = 3; k <= 6; k++)
        assert_true(fabs((double)n[k] / N - 0.25) < ERRORS * sqrt(0.25 * 0.75 / N));
    assert_true(fabs((double)n_output[1] / N - 0.5) < ERRORS * 0.5 / sqrt(N));
}

static char *prompt_of(const struct td_load *l, uint32_t run, uint64_t index)
{
    struct td_bytes out = {0};

    assert_int_equal(td_load_prompt(l, run, index, &out), TD_OK);
    return out.data;
}

static size_t n_words(const char *text)
{
    size_t n = *text != '\0';

    for (; *text; text++)
        n += *text == ' ';
    return n;
}

static void test_load_is_the_same_for_equal_seeds_and_another_for_others(void **state)
{
    uint64_t seed = a_seed();
    struct td_load a = load_of(seed, "lognormal:40:20", "5:50"), b = a, c = a;
    size_t n_equal = 0;

    (void)state;
    c.seed = seed + 1;
    for (uint64_t i = 0; i < 200; i++) {
        struct td_load_request ra, rb, rc;
        char *pa = prompt_of(&a, 3, i), *pb = prompt_of(&b, 3, i), *pc = prompt_of(&c, 3, i);
        char *other = prompt_of(&a, 4, i);

        td_load_request(&a, i, &ra);
        td_load_request(&b, i, &rb);
        td_load_request(&c, i, &rc);
        assert_memory_equal(&ra, &rb, sizeof ra);
        assert_true(td_load_gap(&a, i) == td_load_gap(&b, i));
        assert_true(td_load_gap(&a, i) != td_load_gap(&c, i));
        assert_string_equal(pa, pb);
        assert_int_equal(n_words(pa), ra.n_input);
        assert_int_equal(n_words(other),
                         ra.n_input); /* another run: the same length, other words */
        if (ra.n_input > 8) {
            assert_string_not_equal(pa, pc);
            assert_string_not_equal(pa, other);
        }
        n_equal += ra.n_input == rc.n_input;
        free(pa);
        free(pb);
        free(pc);
        free(other);
    }
    assert_true(n_equal < 100);
}

/* Words that two texts have in common from the start. */
static size_t common_words(const char *a, const char *b)
{
    size_t n = 0, last = 0;

    while (a[n] && a[n] == b[n]) {
        n++;
        if ((a[n] == ' ' || !a[n]) && (b[n] == ' ' || !b[n]))
            last = n;
    }
    char *text = strndup(a, last);
    size_t words = n_words(text);

    free(text);
    return words;
}

static void test_load_shares_the_asked_part_within_a_group(void **state)
{
    struct td_load l = load_of(a_seed(), "200", "1");

    (void)state;
    l.prefix_share = 0.75;
    l.prefix_groups = 3;
    for (uint64_t i = 1; i < 12; i++) {
        char *first = prompt_of(&l, 0, 0), *text = prompt_of(&l, 0, i);
        size_t common = common_words(first, text);

        /* Words behind the prefix are equal by chance, one in several hundred. */
        if (i % 3 == 0)
            assert_true(common >= 150 && common < 155);
        else
            assert_true(common < 5);
        free(first);
        free(text);
    }
    l.prefix_share = 1.0;
    for (uint64_t i = 3; i < 9; i += 3) {
        char *first = prompt_of(&l, 0, 0), *text = prompt_of(&l, 0, i);
        char *warm = prompt_of(&l, TD_LOAD_WARMUP, i);

        assert_string_equal(first, text);
        assert_true(common_words(first, warm) < 5);
        free(first);
        free(text);
        free(warm);
    }
}

static void test_load_plays_a_trace_back(void **state)
{
    struct td_load l = {.seed = a_seed(), .prefix_groups = 1};
    struct td_loadtrace *trace;
    struct td_load_request r;
    struct td_err err;
    char *a, *b, *c, *d;

    (void)state;
    assert_int_equal(
        td_loadtrace_parse(
            TD_STR(
                "{\"timestamp\":5,\"prompt\":\"say \\\"it\\\"\",\"output_length\":7}\n"
                "{\"timestamp\":9,\"input_length\":700,\"output_length\":3,\"hash_ids\":[4,5]}\n"
                "{\"timestamp\":9,\"input_length\":1024,\"output_length\":3,\"hash_ids\":[4,6]}\n"
                "{\"timestamp\":9,\"input_length\":512,\"output_length\":3}\n"),
            &trace, &err),
        TD_OK);
    l.trace = trace;
    td_load_request(&l, 0, &r);
    assert_int_equal(r.n_output, 7);
    assert_int_equal(r.n_input, 0);
    td_load_request(&l, 1, &r);
    assert_int_equal(r.n_input, 700);
    a = prompt_of(&l, 0, 0);
    b = prompt_of(&l, 0, 1);
    c = prompt_of(&l, 0, 2);
    d = prompt_of(&l, 0, 3);
    assert_string_equal(a, "say \"it\"");
    assert_int_equal(n_words(b), 700);
    assert_int_equal(n_words(c), 1024);
    assert_int_equal(n_words(d), 512);
    assert_true(common_words(b, c) >= 512 && common_words(b, c) < 517);
    assert_true(common_words(b, d) < 5);
    free(a);
    free(b);
    free(c);
    free(d);
    td_loadtrace_close(trace);
}

static void test_load_refuses_lengths_that_are_none(void **state)
{
    static const char *const bad[] = {"",           "0",           "-3",          "1.5",
                                      "x",          "5:",          "9:5",         "1:1.5",
                                      "0:4",        "normal:5",    "normal:0:1",  "normal:a:b",
                                      "lognormal:", "uniform:7",   "2000000",     "1:2000000",
                                      "gamma:1:2",  "normal:5:9x", "normal:5:9:1"};
    struct td_load_dist d;
    struct td_err err;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(td_load_dist_parse("input-len", bad[i], &d, &err), TD_INVALID);
        assert_non_null(strstr(err.cause, "--input-len"));
        assert_non_null(strstr(err.cause, bad[i]));
        assert_non_null(strstr(err.cause, "normal:MEAN:SD"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load_gaps_are_exponential),
        cmocka_unit_test(test_load_lengths_follow_their_distribution),
        cmocka_unit_test(test_load_uniform_reaches_both_ends_evenly),
        cmocka_unit_test(test_load_is_the_same_for_equal_seeds_and_another_for_others),
        cmocka_unit_test(test_load_shares_the_asked_part_within_a_group),
        cmocka_unit_test(test_load_plays_a_trace_back),
        cmocka_unit_test(test_load_refuses_lengths_that_are_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
