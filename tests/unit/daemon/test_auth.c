#include "daemon/api/auth.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

static const struct td_str none = {NULL, 0};

static void test_auth_without_keys_is_open(void **state)
{
    (void)state;
    struct td_auth auth = {0};
    assert_true(td_auth_check(&auth, none, none));
    assert_true(td_auth_check(&auth, TD_STR("Bearer whatever"), none));
}

static void test_auth_accepts_only_its_keys(void **state)
{
    (void)state;
    struct td_auth auth = {0};
    assert_int_equal(td_auth_add(&auth, TD_STR("sk-one"), NULL), TD_OK);
    assert_int_equal(td_auth_add(&auth, TD_STR("sk-two"), NULL), TD_OK);
    assert_true(td_auth_check(&auth, TD_STR("Bearer sk-one"), none));
    assert_true(td_auth_check(&auth, TD_STR("bearer  sk-two"), none));
    assert_true(td_auth_check(&auth, none, TD_STR("sk-two")));
    assert_int_equal(td_auth_which(&auth, TD_STR("Bearer sk-one"), none), 1);
    assert_int_equal(td_auth_which(&auth, none, TD_STR("sk-two")), 2);
    assert_int_equal(td_auth_which(&auth, TD_STR("Bearer wrong"), none), 0);
    assert_int_equal(td_auth_which(&auth, none, none), 0);
    assert_false(td_auth_check(&auth, none, none));
    assert_false(td_auth_check(&auth, TD_STR("Bearer "), none));
    assert_false(td_auth_check(&auth, TD_STR("Bearer"), none));
    assert_false(td_auth_check(&auth, TD_STR("sk-one"), none));
    assert_false(td_auth_check(&auth, TD_STR("Basic sk-one"), none));
    assert_false(td_auth_check(&auth, TD_STR("Bearer sk-on"), none));
    assert_false(td_auth_check(&auth, TD_STR("Bearer sk-one1"), none));
    /* A wrong Authorization is not made good by the other header. */
    assert_false(td_auth_check(&auth, TD_STR("Bearer wrong"), TD_STR("sk-one")));
}

static void test_auth_refuses_keys_that_no_header_can_carry(void **state)
{
    (void)state;
    struct td_auth auth = {0};
    struct td_err err = {0};
    assert_int_equal(td_auth_add(&auth, TD_STR(""), &err), TD_INVALID);
    assert_int_equal(td_auth_add(&auth, TD_STR("top secret"), &err), TD_INVALID);
    assert_null(strstr(err.cause, "secret"));
    assert_int_equal(td_auth_add(&auth, TD_STR("line\n"), &err), TD_INVALID);
    assert_int_equal(auth.n_keys, 0);
    for (int i = 0; i < TD_AUTH_MAX_KEYS; i++) {
        assert_int_equal(td_auth_add(&auth, TD_STR("k"), &err), TD_OK);
    }
    assert_int_equal(td_auth_add(&auth, TD_STR("k"), &err), TD_TOO_LARGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_auth_without_keys_is_open),
        cmocka_unit_test(test_auth_accepts_only_its_keys),
        cmocka_unit_test(test_auth_refuses_keys_that_no_header_can_carry),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
