/* A machine's figures as JSON and back. What is missing or wrong in it, tests/unit/daemon/test_benchread.c tries. */
#include "shard/machinejson.h"
#include "tests/unit/check.h"

#include <string.h>

static struct td_machine in, out; /* too large for the stack */

static void fill(void)
{
    in = (struct td_machine){
        .n_ranks = 3,
        .n_hosts = 2,
        .rank = {{.memory_bytes = 123456789,
                  .memory_bytes_per_s = 1.1e10,
                  .ops_per_s = {3e11, 0.0, 1e11},
                  .has_tiles = true,
                  .host_s = 2e-5},
                 {.memory_bytes_per_s = 1.2e10, .ops_per_s = {1.0, 2.0, 3.0}},
                 {.host = 1, .memory_bytes_per_s = 1.3e10, .ops_per_s = {0.0, 0.0, 5e10}}},
        .host_bytes_per_s = {2.5e10, 0.0},
        .intra = {1.5e-6, 7.25e9},
        .inter = {5.5e-5, 1.25e9}};
}

static void test_machinejson_comes_back_as_it_went(void **state)
{
    struct td_err err;
    json_t *j;

    (void)state;
    fill();
    j = td_machinejson_encode(&in, "here", "there");
    assert_non_null(j);
    assert_string_equal(json_string_value(json_object_get(j, "source")), "here");
    assert_string_equal(json_string_value(json_object_get(j, "links_source")), "there");
    if (td_machinejson_decode(j, &out, &err))
        fail_msg("%s", err.cause);
    assert_int_equal(out.n_ranks, 3);
    assert_int_equal(out.n_hosts, 2);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(out.rank[i].memory_bytes, in.rank[i].memory_bytes);
        assert_int_equal(out.rank[i].host, in.rank[i].host);
        assert_true(out.rank[i].memory_bytes_per_s == in.rank[i].memory_bytes_per_s);
        assert_memory_equal(out.rank[i].ops_per_s, in.rank[i].ops_per_s,
                            sizeof in.rank[i].ops_per_s);
        assert_int_equal(out.rank[i].has_tiles, in.rank[i].has_tiles);
        assert_true(out.rank[i].host_s == in.rank[i].host_s);
    }
    assert_true(out.host_bytes_per_s[0] == 2.5e10 && out.host_bytes_per_s[1] == 0.0);
    assert_true(out.intra.latency_s == 1.5e-6 && out.intra.bytes_per_s == 7.25e9);
    assert_true(out.inter.latency_s == 5.5e-5 && out.inter.bytes_per_s == 1.25e9);
    json_decref(j);
}

static void test_machinejson_leaves_out_links_that_nobody_has(void **state)
{
    struct td_err err;
    json_t *j;

    (void)state;
    fill();
    in.n_ranks = 2; /* both on host 0 */
    in.n_hosts = 1;
    j = td_machinejson_encode(&in, "", "");
    assert_non_null(json_object_get(j, "intra_host"));
    assert_null(json_object_get(j, "inter_host"));
    assert_int_equal(td_machinejson_decode(j, &out, &err), TD_OK);
    assert_true(out.inter.latency_s == 0.0); /* of no effect */
    json_decref(j);
    in.n_ranks = 1;
    j = td_machinejson_encode(&in, "", "");
    assert_null(json_object_get(j, "intra_host"));
    assert_int_equal(td_machinejson_decode(j, &out, &err), TD_OK);
    json_decref(j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_machinejson_comes_back_as_it_went),
        cmocka_unit_test(test_machinejson_leaves_out_links_that_nobody_has),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
