/* The error record: the cause is never cut off by context. */
#include "tests/unit/check.h"

#include "kernels/base/err.h"

#include <string.h>

static void test_err_reads_context_outermost_first_and_cause_last(void **state)
{
    struct td_err err;
    char text[600];

    (void)state;
    assert_int_equal(td_err_set(&err, TD_CORRUPT, "tensor '%s' ends at byte %d, file has %d",
                                "blk.7.ffn_up", 8192, 4096),
                     TD_CORRUPT);
    assert_int_equal(td_err_context(&err, "'%s'", "m.gguf"), TD_CORRUPT);
    assert_int_equal(td_err_context(&err, "load rank %d", 3), TD_CORRUPT);
    assert_string_equal(
        td_err_format(&err, text, sizeof text),
        "load rank 3: 'm.gguf': tensor 'blk.7.ffn_up' ends at byte 8192, file has 4096");
}

static void test_err_long_context_leaves_the_cause_whole(void **state)
{
    struct td_err err;
    char text[600];

    (void)state;
    td_err_set(&err, TD_IO, "the cause");
    for (int i = 0; i < 50; i++)
        td_err_context(&err, "a rather long context number %d", i);
    td_err_format(&err, text, sizeof text);
    assert_non_null(strstr(text, ": the cause"));
    assert_true(strlen(err.context) < sizeof err.context);
    td_err_set(&err, TD_IO, "%0500d", 1);
    assert_int_equal(strlen(err.cause), sizeof err.cause - 1);
    assert_string_equal(err.context, "");
}

static void test_err_may_be_absent_and_every_status_has_a_name(void **state)
{
    (void)state;
    assert_int_equal(td_err_set(NULL, TD_BUSY, "nobody listens"), TD_BUSY);
    assert_string_equal(td_status_name(TD_PEER_LOST), "peer lost");
    assert_string_equal(td_status_name((enum td_status)999), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_err_reads_context_outermost_first_and_cause_last),
        cmocka_unit_test(test_err_long_context_leaves_the_cause_whole),
        cmocka_unit_test(test_err_may_be_absent_and_every_status_has_a_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
