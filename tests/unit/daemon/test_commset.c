#include "daemon/cli/commset.h"

#include "tests/unit/check.h"

#include <string.h>

static void test_commset_reads_sizes_in_powers_of_1024(void **state)
{
    static const struct {
        const char *text;
        size_t bytes;
        const char *shown;
    } cases[] = {
        {"4", 4, "4"},
        {"8", 8, "8"},
        {"1000", 1000, "1000"},
        {"1024", 1024, "1K"},
        {"8K", 8192, "8K"},
        {"8KiB", 8192, "8K"},
        {"1M", 1048576, "1M"},
        {"3MiB", 3145728, "3M"},
        {"1536K", 1572864, "1536K"},
        {"1G", 1073741824, "1G"},
        {"1GiB", 1073741824, "1G"},
        {"1073741824", 1073741824, "1G"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char shown[TD_COMMSET_SIZE_BYTES];
        size_t bytes = 0;
        struct td_err err;

        assert_int_equal(td_commset_parse_size(cases[i].text, &bytes, &err), TD_OK);
        assert_int_equal(bytes, cases[i].bytes);
        assert_string_equal(td_commset_format_size(bytes, shown), cases[i].shown);
    }
}

static void test_commset_refuses_what_is_no_size(void **state)
{
    static const char *const texts[] = {"",
                                        "0",
                                        "K",
                                        "8k",
                                        "8 K",
                                        "-8",
                                        "+8",
                                        "8.5",
                                        "10",
                                        "1",
                                        "8KB",
                                        "8KiBs",
                                        "2G",
                                        "1025M",
                                        "8x",
                                        "0x8",
                                        "8K,1M",
                                        "1073741828",
                                        "99999999999",
                                        "17179869184G",
                                        "18446744073709551624",
                                        "4 ",
                                        " 4",
                                        "4294967296K"};

    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        size_t bytes = 77;
        struct td_err err = {0};
        char quoted[64];

        snprintf(quoted, sizeof quoted, "got '%s'", texts[i]);
        assert_int_equal(td_commset_parse_size(texts[i], &bytes, &err), TD_INVALID);
        assert_int_equal(bytes, 77);
        assert_non_null(strstr(err.cause, "--sizes"));
        assert_non_null(strstr(err.cause, quoted));
    }
}

static void test_commset_sorts_sizes_and_counts_each_once(void **state)
{
    const char *sizes[] = {"1M", "8", "8K", "8192", "8"},
               *ops[] = {"sendrecv", "tree_sum", "sendrecv"};
    struct td_option_list none = {0}, some = {sizes, 5}, named = {ops, 3};
    struct td_commset set;
    struct td_err err;

    (void)state;
    assert_int_equal(td_commset_read(&some, &named, 2, &set, &err), TD_OK);
    assert_int_equal(set.n_sizes, 3);
    assert_int_equal(set.bytes[0], 8);
    assert_int_equal(set.bytes[1], 8192);
    assert_int_equal(set.bytes[2], 1048576);
    assert_int_equal(set.ops, 1 << TD_COMMSET_TREE_SUM | 1 << TD_COMMSET_SENDRECV);

    assert_int_equal(td_commset_read(&none, &none, 2, &set, &err), TD_OK);
    assert_int_equal(set.n_sizes, 5);
    assert_int_equal(set.bytes[4], 16777216);
    assert_int_equal(set.ops, (1 << TD_COMMSET_N_OPS) - 1);
}

/* 2 GiB / 16 MiB = 128 ranks: with one more, every rank would have to hold more than 2 GiB. */
static void test_commset_leaves_out_what_many_ranks_cannot_hold(void **state)
{
    const char *sizes[] = {"8", "16M"};
    struct td_option_list none = {0}, some = {sizes, 2};
    struct td_commset set;
    struct td_err err = {0};

    (void)state;
    assert_int_equal(td_commset_read(&none, &none, 128, &set, &err), TD_OK);
    assert_int_equal(set.bytes[set.n_sizes - 1], 16777216);
    assert_int_equal(td_commset_read(&none, &none, 129, &set, &err), TD_OK);
    assert_int_equal(set.bytes[set.n_sizes - 1], 1048576);
    assert_int_equal(td_commset_read(&some, &none, 128, &set, &err), TD_OK);
    assert_int_equal(td_commset_read(&some, &none, 129, &set, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "16M of each of 129 ranks"));
}

static void test_commset_refuses_unknown_operations_and_too_many_sizes(void **state)
{
    const char *ops[] = {"bcast", "allreduce"}, *sizes[TD_COMMSET_MAX_SIZES + 1];
    char texts[TD_COMMSET_MAX_SIZES + 1][8];
    struct td_option_list none = {0}, named = {ops, 2}, many = {sizes, TD_COMMSET_MAX_SIZES};
    struct td_commset set = {.ops = 77};
    struct td_err err = {0};

    (void)state;
    assert_int_equal(td_commset_read(&none, &named, 2, &set, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "--operations: got 'allreduce'"));
    assert_non_null(strstr(err.cause, "tree_sum, bcast, all_gather, sendrecv, barrier"));
    assert_int_equal(set.ops, 77); /* written on success only */
    for (size_t i = 0; i <= TD_COMMSET_MAX_SIZES; i++) {
        snprintf(texts[i], sizeof texts[i], "%zu", 4 * (i + 1));
        sizes[i] = texts[i];
    }
    assert_int_equal(td_commset_read(&many, &none, 2, &set, &err), TD_OK);
    many.n++;
    assert_int_equal(td_commset_read(&many, &none, 2, &set, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "more than 32"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_commset_reads_sizes_in_powers_of_1024),
        cmocka_unit_test(test_commset_refuses_what_is_no_size),
        cmocka_unit_test(test_commset_sorts_sizes_and_counts_each_once),
        cmocka_unit_test(test_commset_leaves_out_what_many_ranks_cannot_hold),
        cmocka_unit_test(test_commset_refuses_unknown_operations_and_too_many_sizes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
