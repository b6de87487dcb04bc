#include "daemon/api/route.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void handle(struct td_http_request *req, void *user)
{
    (void)req;
    (void)user;
}

static const struct td_route list = {.method = "GET", .path = "/v1/models", .handler = handle};
static const struct td_route one = {.method = "GET", .path = "/v1/models/*", .handler = handle};
static const struct td_route chat = {.method = "POST", .path = "/v1/models/x", .handler = handle};

static struct td_route_table *make_table(void)
{
    struct td_route_table *t = NULL;
    assert_int_equal(td_route_table_open(&t, NULL), TD_OK);
    assert_int_equal(td_route_add(t, &list, NULL), TD_OK);
    assert_int_equal(td_route_add(t, &one, NULL), TD_OK);
    assert_int_equal(td_route_add(t, &chat, NULL), TD_OK);
    return t;
}

static void test_route_finds_exact_paths_and_patterns(void **state)
{
    (void)state;
    struct td_route_table *t = make_table();
    bool known;
    assert_ptr_equal(td_route_find(t, TD_STR("GET"), TD_STR("/v1/models"), &known),
                     td_route_at(t, 0));
    assert_ptr_equal(td_route_find(t, TD_STR("HEAD"), TD_STR("/v1/models"), &known),
                     td_route_at(t, 0));
    assert_ptr_equal(td_route_find(t, TD_STR("GET"), TD_STR("/v1/models/a/b"), &known),
                     td_route_at(t, 1));
    assert_null(td_route_find(t, TD_STR("GET"), TD_STR("/v1/models/"), &known));
    assert_false(known);
    assert_null(td_route_find(t, TD_STR("GET"), TD_STR("/v1/modelsx"), &known));
    assert_false(known);
    assert_null(td_route_find(t, TD_STR("PUT"), TD_STR("/v1/models"), &known));
    assert_true(known);
    /* An exact path hides the pattern, so that its methods are its own. */
    assert_null(td_route_find(t, TD_STR("GET"), TD_STR("/v1/models/x"), &known));
    assert_true(known);
    td_route_table_close(t);
}

static void test_route_names_the_methods_of_a_path(void **state)
{
    (void)state;
    struct td_route_table *t = make_table();
    char allow[64];
    td_route_allow(t, TD_STR("/v1/models"), allow, sizeof(allow));
    assert_string_equal(allow, "GET, HEAD, OPTIONS");
    td_route_allow(t, TD_STR("/v1/models/x"), allow, sizeof(allow));
    assert_string_equal(allow, "POST, OPTIONS");
    td_route_table_close(t);
}

static void test_route_refuses_doubles_and_bad_paths(void **state)
{
    (void)state;
    struct td_route_table *t = make_table();
    struct td_err err = {0};
    assert_int_equal(td_route_add(t, &list, &err), TD_INVALID);
    struct td_route bad = {.method = "GET", .path = "x", .handler = handle};
    assert_int_equal(td_route_add(t, &bad, &err), TD_INVALID);
    td_route_table_close(t);
    td_route_table_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_route_finds_exact_paths_and_patterns),
        cmocka_unit_test(test_route_names_the_methods_of_a_path),
        cmocka_unit_test(test_route_refuses_doubles_and_bad_paths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
