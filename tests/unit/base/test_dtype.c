/* Names and block sizes of element types (ggml's GGUF specification). */
#include "tests/unit/check.h"

#include "kernels/base/clock.h"
#include "kernels/base/dtype.h"

static void test_dtype_rows_are_whole_blocks(void **state)
{
    (void)state;
    assert_int_equal(td_dtype_row_bytes(TD_F32, 3), 12);
    assert_int_equal(td_dtype_row_bytes(TD_BF16, 3), 6);
    assert_int_equal(td_dtype_row_bytes(TD_Q8_0, 64), 68);
    assert_int_equal(td_dtype_row_bytes(TD_Q4_0, 64), 36);
    assert_int_equal(td_dtype_row_bytes(TD_Q8_0, 33), 0);
}

static void test_dtype_names_are_those_that_users_write(void **state)
{
    enum td_dtype t;

    (void)state;
    assert_true(td_dtype_from_name("BFloat16", &t) && t == TD_BF16);
    assert_true(td_dtype_from_name("fp16", &t) && t == TD_F16);
    assert_true(td_dtype_from_name("q4_0", &t) && t == TD_Q4_0);
    assert_false(td_dtype_from_name("int3", &t));
}

static void test_clock_never_goes_back(void **state)
{
    uint64_t before = td_clock_now_ns();

    (void)state;
    for (int i = 0; i < 1000; i++) {
        uint64_t now = td_clock_now_ns();

        assert_true(now >= before);
        before = now;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dtype_rows_are_whole_blocks),
        cmocka_unit_test(test_dtype_names_are_those_that_users_write),
        cmocka_unit_test(test_clock_never_goes_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
