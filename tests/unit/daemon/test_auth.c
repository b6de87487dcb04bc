#include "daemon/api/auth.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
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

static enum td_status add_numbered(struct td_auth *auth, int i)
{
    char key[16];
    snprintf(key, sizeof(key), "k%d", i);
    return td_auth_add(auth, td_str_from(key), NULL);
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
        assert_int_equal(add_numbered(&auth, i), TD_OK);
        assert_int_equal(add_numbered(&auth, i), TD_OK); /* the same again */
    }
    assert_int_equal(auth.n_keys, TD_AUTH_MAX_KEYS);
    assert_int_equal(td_auth_add(&auth, TD_STR("one-more"), &err), TD_TOO_LARGE);
}

static enum td_status add_line(struct td_auth *auth, const char *line, enum td_auth_role role,
                               struct td_err *err)
{
    return td_auth_add_line(auth, td_str_from(line), role, err);
}

static void test_auth_takes_names_and_says_what_is_wrong_without_the_key(void **state)
{
    (void)state;
    static const struct {
        const char *line, *says;
    } wrong[] = {
        {":sk-secret", "no name"},          {"a b:sk-secret", "no name"},
        {"a/b:sk-secret", "no name"},       {"key-7:sk-secret", "kept for keys without a name"},
        {"alice:other-secret", "two keys"}, {"bob:sk-a", "'alice' is there a second time"},
        {"sk-a", "a second time"},          {"carol:", "0 bytes"},
    };
    struct td_auth auth = {0};
    struct td_err err = {0};
    assert_int_equal(add_line(&auth, "alice:sk-a", TD_AUTH_CLIENT, &err), TD_OK);
    assert_int_equal(add_line(&auth, "sk-b", TD_AUTH_CLIENT, &err), TD_OK);
    assert_int_equal(add_line(&auth, "with.colon_-1:a:b", TD_AUTH_CLIENT, &err), TD_OK);
    assert_string_equal(td_auth_name(&auth, 1), "alice");
    assert_string_equal(td_auth_name(&auth, 2), "key-2");
    assert_int_equal(td_auth_which(&auth, TD_STR("Bearer a:b"), none), 3);
    assert_int_equal(td_auth_which(&auth, TD_STR("Bearer alice:sk-a"), none), 0);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        assert_int_equal(add_line(&auth, wrong[i].line, TD_AUTH_CLIENT, &err), TD_INVALID);
        assert_non_null(strstr(err.cause, wrong[i].says));
        assert_null(strstr(err.cause, "secret"));
    }
    assert_int_equal(add_line(&auth, "sk-b", TD_AUTH_OPERATOR, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "operator"));
    assert_int_equal(auth.n_keys, 3);
}

static void test_auth_numbers_outlive_a_reload_and_are_given_to_nobody_else(void **state)
{
    (void)state;
    struct td_auth auth = {0};
    struct td_auth fresh = {0};
    struct td_err err = {0};
    add_line(&auth, "alice:sk-a", TD_AUTH_CLIENT, NULL);
    add_line(&auth, "sk-b", TD_AUTH_CLIENT, NULL);
    add_line(&auth, "carol:sk-c", TD_AUTH_CLIENT, NULL);
    add_line(&fresh, "dave:sk-d", TD_AUTH_CLIENT, NULL);
    add_line(&fresh, "sk-e", TD_AUTH_CLIENT, NULL);
    add_line(&fresh, "carol:sk-new", TD_AUTH_CLIENT, NULL);
    add_line(&fresh, "sk-b", TD_AUTH_CLIENT, NULL);
    assert_int_equal(td_auth_replace(&auth, &fresh, &err), TD_OK);
    assert_int_equal(td_auth_which(&auth, TD_STR("Bearer sk-a"), none), 0);
    assert_int_equal(td_auth_which(&auth, TD_STR("Bearer sk-c"), none), 0);
    assert_int_equal(td_auth_which(&auth, TD_STR("Bearer sk-b"), none), 2);
    assert_int_equal(td_auth_which(&auth, TD_STR("Bearer sk-new"), none), 3);
    assert_int_equal(td_auth_which(&auth, TD_STR("Bearer sk-d"), none), 4);
    assert_int_equal(td_auth_which(&auth, TD_STR("Bearer sk-e"), none), 5);
    assert_string_equal(td_auth_name(&auth, 5), "key-5");
    /* The first set again: alice has her number back. */
    memset(&fresh, 0, sizeof(fresh));
    add_line(&fresh, "alice:sk-a2", TD_AUTH_CLIENT, NULL);
    assert_int_equal(td_auth_replace(&auth, &fresh, &err), TD_OK);
    assert_int_equal(td_auth_which(&auth, TD_STR("Bearer sk-a2"), none), 1);
    assert_int_equal(td_auth_which(&auth, TD_STR("Bearer sk-b"), none), 0);
    assert_false(td_auth_check(&auth, TD_STR("Bearer sk-a"), none));
    /* Numbers run out: nothing changes. */
    memset(&fresh, 0, sizeof(fresh));
    for (int i = 0; i < TD_AUTH_MAX_KEYS - 4; i++) {
        assert_int_equal(add_numbered(&fresh, i), TD_OK);
    }
    assert_int_equal(td_auth_replace(&auth, &fresh, &err), TD_TOO_LARGE);
    assert_int_equal(td_auth_which(&auth, TD_STR("Bearer sk-a2"), none), 1);
}

static void test_auth_operators_calls_are_for_operators(void **state)
{
    (void)state;
    const struct td_str client = TD_STR("Bearer sk-c");
    const struct td_str boss = TD_STR("Bearer sk-o");
    struct td_auth keys = {0};
    uint32_t n = 9;
    /* No keys at all: clients from everywhere, operators from this host. */
    assert_int_equal(td_auth_admit(NULL, TD_AUTH_CLIENT, false, none, none, &n), TD_AUTH_ADMITTED);
    assert_int_equal(n, 0);
    assert_int_equal(td_auth_admit(NULL, TD_AUTH_OPERATOR, true, none, none, &n), TD_AUTH_ADMITTED);
    assert_int_equal(td_auth_admit(&keys, TD_AUTH_OPERATOR, false, none, none, &n),
                     TD_AUTH_NO_OPERATORS);
    /* Clients' keys only: nobody, on this host neither. */
    add_line(&keys, "c:sk-c", TD_AUTH_CLIENT, NULL);
    assert_int_equal(td_auth_admit(&keys, TD_AUTH_OPERATOR, true, client, none, &n),
                     TD_AUTH_NO_OPERATORS);
    assert_int_equal(td_auth_admit(&keys, TD_AUTH_OPERATOR, true, none, none, &n), TD_AUTH_NO_KEY);
    /* Both. */
    add_line(&keys, "o:sk-o", TD_AUTH_OPERATOR, NULL);
    assert_int_equal(td_auth_admit(&keys, TD_AUTH_OPERATOR, true, client, none, &n),
                     TD_AUTH_NOT_OPERATOR);
    assert_int_equal(td_auth_admit(&keys, TD_AUTH_OPERATOR, false, boss, none, &n),
                     TD_AUTH_ADMITTED);
    assert_int_equal(n, 2);
    assert_int_equal(td_auth_admit(&keys, TD_AUTH_CLIENT, false, boss, none, &n), TD_AUTH_ADMITTED);
    assert_int_equal(td_auth_admit(&keys, TD_AUTH_CLIENT, true, none, none, &n), TD_AUTH_NO_KEY);
    /* Operators' keys only: clients need none. */
    memset(&keys, 0, sizeof(keys));
    add_line(&keys, "o:sk-o", TD_AUTH_OPERATOR, NULL);
    assert_int_equal(td_auth_admit(&keys, TD_AUTH_CLIENT, false, none, none, &n), TD_AUTH_ADMITTED);
    assert_int_equal(td_auth_admit(&keys, TD_AUTH_OPERATOR, true, none, none, &n), TD_AUTH_NO_KEY);
}

static void test_auth_owners_are_the_same_in_every_process(void **state)
{
    static struct td_auth one;
    static struct td_auth two;
    static struct td_auth three;
    (void)state;
    memset(&one, 0, sizeof(one));
    memset(&two, 0, sizeof(two));
    memset(&three, 0, sizeof(three));
    add_line(&one, "ann:sk-a", TD_AUTH_CLIENT, NULL);
    add_line(&one, "sk-b", TD_AUTH_CLIENT, NULL);
    add_line(&two, "sk-c", TD_AUTH_CLIENT, NULL);
    add_line(&two, "sk-b", TD_AUTH_CLIENT, NULL);
    add_line(&two, "ann:sk-new", TD_AUTH_CLIENT, NULL);
    uint64_t ann = td_auth_owner(&one, 1);
    uint64_t b = td_auth_owner(&one, 2);
    assert_true(ann != 0 && b != 0 && ann != b);
    assert_int_equal(td_auth_of_owner(&one, ann), 1);
    assert_int_equal(td_auth_of_owner(&two, ann), 3); /* by its name, whatever the key is */
    assert_int_equal(td_auth_of_owner(&two, b), 2);   /* by the key, which has no name */
    add_line(&three, "b:sk-b", TD_AUTH_CLIENT, NULL);
    assert_int_equal(td_auth_of_owner(&three, b), 0); /* a name makes it another's */
    assert_int_equal(td_auth_owner(&one, 0), 0);
    assert_int_equal(td_auth_owner(&one, 3), 0);
    assert_int_equal(td_auth_owner(NULL, 1), 0);
    assert_int_equal(td_auth_of_owner(&one, 0), 0);
    assert_int_equal(td_auth_of_owner(NULL, ann), 0);
    assert_int_equal(td_auth_replace(&one, &three, NULL), TD_OK);
    assert_int_equal(td_auth_owner(&one, 1), 0); /* removed */
    assert_int_equal(td_auth_of_owner(&one, ann), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_auth_without_keys_is_open),
        cmocka_unit_test(test_auth_accepts_only_its_keys),
        cmocka_unit_test(test_auth_refuses_keys_that_no_header_can_carry),
        cmocka_unit_test(test_auth_takes_names_and_says_what_is_wrong_without_the_key),
        cmocka_unit_test(test_auth_numbers_outlive_a_reload_and_are_given_to_nobody_else),
        cmocka_unit_test(test_auth_operators_calls_are_for_operators),
        cmocka_unit_test(test_auth_owners_are_the_same_in_every_process),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
