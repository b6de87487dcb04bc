#include "daemon/engine/request.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct td_request make_request(uint32_t n_prompt)
{
    struct td_request r;

    td_request_init(&r);
    r.id = 7;
    r.n_prompt = n_prompt;
    r.prompt = calloc(n_prompt + 1, sizeof(*r.prompt));
    assert_non_null(r.prompt);
    for (uint32_t i = 0; i < n_prompt; i++)
        r.prompt[i] = i;
    return r;
}

static void expect_refusal(struct td_request *r, enum td_status status, const char *text)
{
    struct td_err err = {0};

    assert_int_equal(td_request_validate(r, 100, 20, &err), status);
    if (!strstr(err.cause, text))
        fail_msg("'%s' does not contain '%s'", err.cause, text);
    td_request_deinit(r);
}

static void test_request_copy_owns_everything(void **state)
{
    struct td_request r = make_request(5), copy;

    (void)state;
    r.n_stops = 2;
    r.stops[0] = strdup("end");
    r.stop_bytes[0] = 3;
    r.stops[1] = malloc(3);
    assert_non_null(r.stops[1]);
    memcpy(r.stops[1], "a\0b", 3);
    r.stop_bytes[1] = 3;
    r.sampling.seed = 99;
    assert_int_equal(td_request_set_breakers(&r, (const uint8_t *)"\x81\x02", 2, NULL), TD_OK);
    assert_int_equal(td_request_copy(&r, &copy), TD_OK);
    memset(r.stops[0], 'x', 3);
    r.prompt[2] = 77;
    td_request_deinit(&r);
    td_request_deinit(&r); /* harmless */
    assert_int_equal(copy.n_prompt, 5);
    assert_int_equal(copy.prompt[2], 2);
    assert_int_equal(copy.n_stops, 2);
    assert_memory_equal(copy.stops[0], "end", 4);
    assert_memory_equal(copy.stops[1], "a\0b", 4);
    assert_true(copy.sampling.seed == 99);
    assert_ptr_equal(copy.sampling.dry_breakers, copy.dry_breakers);
    assert_int_equal(copy.sampling.n_dry_breaker_bytes, 2);
    assert_memory_equal(copy.dry_breakers, "\x81\x02", 2);
    assert_int_equal(td_request_set_breakers(&copy, NULL, 0, NULL), TD_OK);
    assert_null(copy.sampling.dry_breakers);
    assert_int_equal(copy.sampling.n_dry_breaker_bytes, 0);
    assert_int_equal(td_request_set_breakers(&copy, (const uint8_t *)"", 1 << 20, NULL),
                     TD_TOO_LARGE);
    td_request_deinit(&copy);
}

static void test_request_validate_lowers_max_tokens_to_the_context(void **state)
{
    struct td_request r = make_request(15);
    struct td_err err;

    (void)state;
    r.max_tokens = 1000;
    r.min_tokens = 900;
    assert_int_equal(td_request_validate(&r, 100, 20, &err), TD_OK);
    assert_int_equal(r.max_tokens, 5);
    assert_int_equal(r.min_tokens, 5);
    r.max_tokens = 3;
    r.min_tokens = 0;
    assert_int_equal(td_request_validate(&r, 100, 20, &err), TD_OK);
    assert_int_equal(r.max_tokens, 3);
    td_request_deinit(&r);
    r = make_request(19);
    assert_int_equal(td_request_validate(&r, 100, 20, &err), TD_OK);
    assert_int_equal(r.max_tokens, 1);
    td_request_deinit(&r);
}

static void test_request_validate_names_the_parameter(void **state)
{
    struct td_request r;

    (void)state;
    r = make_request(0);
    expect_refusal(&r, TD_INVALID, "prompt has 0 tokens");
    r = make_request(20);
    expect_refusal(&r, TD_TOO_LARGE, "prompt has 20 tokens; the context is 20");
    r = make_request(3);
    r.prompt[1] = 100;
    expect_refusal(&r, TD_INVALID, "prompt token 1 is id 100");
    r = make_request(3);
    r.max_tokens = 0;
    expect_refusal(&r, TD_INVALID, "max_tokens is 0");
    r = make_request(3);
    r.min_tokens = 17;
    expect_refusal(&r, TD_INVALID, "min_tokens is 17");
    r = make_request(3);
    r.n_stops = 1;
    r.stops[0] = strdup("");
    expect_refusal(&r, TD_INVALID, "stop string 0 has 0 bytes");
    r = make_request(3);
    r.n_stops = 1;
    r.stops[0] = calloc(1, 300);
    r.stop_bytes[0] = 257;
    expect_refusal(&r, TD_INVALID, "257 bytes");
    r = make_request(3);
    r.n_stop_ids = 1;
    r.stop_ids[0] = 100;
    expect_refusal(&r, TD_INVALID, "stop_token_ids names token 100");
    r = make_request(3);
    r.n_stop_ids = TD_REQUEST_MAX_STOP_IDS + 1;
    expect_refusal(&r, TD_INVALID, "stop_token_ids has 17");
    r = make_request(3);
    r.sampling.top_p = 2;
    expect_refusal(&r, TD_INVALID, "top_p is 2");
}

static void test_request_salts_of_different_keys_never_meet(void **state)
{
    (void)state;
    uint64_t none = td_request_salt(2, TD_STR(""));
    uint64_t a = td_request_salt(2, TD_STR("a"));
    assert_int_equal(a, td_request_salt(2, TD_STR("a")));
    assert_true(a != none && a != td_request_salt(2, TD_STR("b")));
    assert_int_equal(td_request_salt(0, TD_STR("")), 0);
    /* Whatever the text: the key alone decides the upper bits. */
    for (uint32_t key = 0; key < 256; key++) {
        char text[8];
        snprintf(text, sizeof(text), "%u", key * 7);
        assert_int_equal(td_request_salt(key, td_str_from(text)) >> 56, key);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request_copy_owns_everything),
        cmocka_unit_test(test_request_validate_lowers_max_tokens_to_the_context),
        cmocka_unit_test(test_request_validate_names_the_parameter),
        cmocka_unit_test(test_request_salts_of_different_keys_never_meet),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
