#include "sampler_check.h"

#include "kernels/top.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void test_sampling_says_when_a_draw_needs_the_whole_row(void **state)
{
    struct td_sampling p;

    (void)state;
    td_sampling_default(&p);
    assert_int_equal(td_sampling_n_top(&p, 0), 0); /* no cut */
    p.top_k = 40;
    assert_int_equal(td_sampling_n_top(&p, 0), 40);
    assert_int_equal(td_sampling_n_top(&p, 24), TD_TOP_MAX);
    assert_int_equal(td_sampling_n_top(&p, 25), 0);
    p.temperature = 0;
    assert_int_equal(td_sampling_n_top(&p, 0), 1);
    assert_int_equal(td_sampling_n_top(&p, 3), 4);
    p.n_logprobs = 0; /* whoever asks for them says so elsewhere */
    assert_int_equal(td_sampling_n_top(&p, 0), 1);
    p.n_logprobs = -1;
    p.repetition_penalty = 1.1f;
    assert_int_equal(td_sampling_n_top(&p, 0), 0);
    p.repetition_penalty = 1;
    p.n_bias = 1;
    assert_int_equal(td_sampling_n_top(&p, 0), 0);
    p.n_bias = 0;
    p.dry_multiplier = 1;
    assert_int_equal(td_sampling_n_top(&p, 0), 0);
    p.dry_penalty_last_n = 0; /* DRY that looks back over nothing */
    assert_int_equal(td_sampling_n_top(&p, 0), 1);
    p.frequency_penalty = 1;
    assert_int_equal(td_sampling_n_top(&p, 0), 0);
    p.repeat_last_n = 0; /* and so with the penalties */
    p.top_n_sigma = 1;   /* greed takes the largest before it */
    assert_int_equal(td_sampling_n_top(&p, 0), 1);
    p.temperature = 1;
    assert_int_equal(td_sampling_n_top(&p, 0), 0);
    p.top_n_sigma = 0;
    assert_int_equal(td_sampling_n_top(&p, 0), 40);
    p.typical_p = 0.5f;
    p.xtc_probability = 1;
    p.dynatemp_range = 0.5f;
    assert_int_equal(td_sampling_n_top(&p, 0), 40);
    td_sampling_default(&p);
    p.top_k = 1;
    assert_int_equal(td_sampling_n_top(&p, 0), 1);
    p.mirostat = 1; /* which takes no notice of top_k */
    assert_false(td_sampling_is_greedy(&p));
    assert_true(td_sampling_has_state(&p));
    assert_int_equal(td_sampling_n_top(&p, 0), 0);
    p.mirostat = 0;
    p.top_k = INT32_MAX;
    assert_int_equal(td_sampling_n_top(&p, UINT32_MAX), 0);
}

static void test_sampling_validate_names_the_parameter(void **state)
{
    struct td_sampling p;
    struct td_err err;

    (void)state;
#define REFUSES(field, value, text)                                                                \
    do {                                                                                           \
        td_sampling_default(&p);                                                                   \
        assert_int_equal(td_sampling_validate(&p, 10, &err), TD_OK);                               \
        p.field = (value);                                                                         \
        assert_int_equal(td_sampling_validate(&p, 10, &err), TD_INVALID);                          \
        assert_non_null(strstr(err.cause, text));                                                  \
    } while (0)
    REFUSES(temperature, -0.5f, "temperature is -0.5");
    REFUSES(temperature, NAN, "temperature");
    REFUSES(temperature, INFINITY, "temperature");
    REFUSES(top_k, -2, "top_k is -2");
    REFUSES(top_p, 0, "top_p is 0");
    REFUSES(top_p, 1.5f, "top_p is 1.5");
    REFUSES(min_p, -0.1f, "min_p");
    REFUSES(repetition_penalty, 0, "repetition_penalty");
    REFUSES(presence_penalty, 2.5f, "presence_penalty is 2.5");
    REFUSES(frequency_penalty, NAN, "frequency_penalty");
    REFUSES(typical_p, 0, "typical_p is 0, expected a number in (0, 1]");
    REFUSES(typical_p, 1.5f, "typical_p is 1.5");
    REFUSES(top_n_sigma, -2, "top_n_sigma is -2, expected a number in [-1, 100]");
    REFUSES(top_n_sigma, NAN, "top_n_sigma");
    REFUSES(xtc_probability, 1.1f, "xtc_probability is 1.1");
    REFUSES(xtc_threshold, -0.1f, "xtc_threshold is -0.1");
    REFUSES(dynatemp_range, -1, "dynatemp_range is -1");
    REFUSES(dynatemp_exponent, INFINITY, "dynatemp_exponent is inf");
    REFUSES(repeat_last_n, -2, "repeat_last_n is -2, expected an integer from -1 to 1048576");
    REFUSES(repeat_last_n, TD_SAMPLING_MAX_WINDOW + 1, "repeat_last_n is 1048577");
    REFUSES(dry_multiplier, -1, "dry_multiplier is -1");
    REFUSES(dry_base, 0.5f, "dry_base is 0.5, expected a number in [1, 100]");
    REFUSES(dry_allowed_length, 0, "dry_allowed_length is 0, expected an integer from 1");
    REFUSES(dry_penalty_last_n, -2, "dry_penalty_last_n is -2");
    REFUSES(n_dry_breaker_bytes, 3, "dry_sequence_breakers are a set of 3 bytes");
    REFUSES(mirostat, 3, "mirostat is 3, expected an integer from 0 to 2");
    REFUSES(mirostat_tau, 0, "mirostat_tau is 0, expected a number in (0, 100]");
    REFUSES(mirostat_eta, 11, "mirostat_eta is 11");
    REFUSES(n_logprobs, 21, "logprobs is 21");
    REFUSES(n_bias, 301, "logit_bias");
#undef REFUSES
    td_sampling_default(&p);
    p.n_bias = 1;
    p.bias[0] = (struct td_logit_bias){10, 1};
    assert_int_equal(td_sampling_validate(&p, 10, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "token 10"));
    assert_int_equal(td_sampling_validate(&p, 0, &err), TD_OK);
    p.bias[0] = (struct td_logit_bias){9, 101};
    assert_int_equal(td_sampling_validate(&p, 10, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "101"));
}

static void test_sampling_validate_refuses_what_cannot_be_meant_together(void **state)
{
    struct td_sampling p;
    struct td_err err;

    (void)state;
#define REFUSES(field, value, text)                                                                \
    do {                                                                                           \
        struct td_sampling q = p;                                                                  \
                                                                                                   \
        assert_int_equal(td_sampling_validate(&q, 10, &err), TD_OK);                               \
        q.field = (value);                                                                         \
        assert_int_equal(td_sampling_validate(&q, 10, &err), TD_INVALID);                          \
        assert_non_null(strstr(err.cause, text));                                                  \
    } while (0)
    td_sampling_default(&p);
    p.mirostat = 2;
    p.top_k = 20; /* a model's own defaults may set these three */
    p.top_p = 0.9f;
    p.min_p = 0.1f;
    REFUSES(typical_p, 0.5f, "typical_p is 0.5 together with mirostat 2");
    REFUSES(top_n_sigma, 1, "top_n_sigma is 1 together with mirostat 2");
    REFUSES(xtc_probability, 1, "xtc_probability is 1 together with mirostat 2");
    REFUSES(dynatemp_range, 1, "dynatemp_range is 1 together with mirostat 2");
    REFUSES(temperature, 0, "temperature is 0");
    p.mirostat = 0;
    p.dynatemp_range = 0.5f;
    REFUSES(temperature, 0, "dynatemp_range 0.5");
#undef REFUSES
}

static void test_sampling_defaults_are_those_of_the_field(void **state)
{
    struct td_sampling p;

    (void)state;
    td_sampling_default(&p);
    assert_true(p.temperature == 1 && p.top_p == 1 && p.top_k == 0 && p.min_p == 0);
    assert_true(p.typical_p == 1 && p.top_n_sigma == -1);
    assert_true(p.xtc_probability == 0 && p.xtc_threshold == 0.1f);
    assert_true(p.dry_multiplier == 0 && p.dry_base == 1.75f);
    assert_true(p.dry_allowed_length == 2 && p.dry_penalty_last_n == -1);
    assert_true(p.mirostat == 0 && p.mirostat_tau == 5 && p.mirostat_eta == 0.1f);
    assert_true(p.dynatemp_range == 0 && p.dynatemp_exponent == 1 && p.repeat_last_n == -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sampling_says_when_a_draw_needs_the_whole_row),
        cmocka_unit_test(test_sampling_validate_names_the_parameter),
        cmocka_unit_test(test_sampling_validate_refuses_what_cannot_be_meant_together),
        cmocka_unit_test(test_sampling_defaults_are_those_of_the_field),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
