/* The types of a quantised model's matrices. Expected types are those of files that llama.cpp's quantiser wrote. */
#include "shard/mix.h"
#include "tests/unit/check.h"

static void test_mix_falls_back_where_blocks_do_not_fit(void **state)
{
    static const struct {
        enum td_dtype wanted, by_256, by_192, by_172;
    } rule[] = {
        {TD_F32, TD_F32, TD_F32, TD_F32},          {TD_BF16, TD_BF16, TD_BF16, TD_BF16},
        {TD_F16, TD_F16, TD_F16, TD_F16},          {TD_Q8_0, TD_Q8_0, TD_Q8_0, TD_F16},
        {TD_Q4_0, TD_Q4_0, TD_Q4_0, TD_F16},       {TD_Q5_1, TD_Q5_1, TD_Q5_1, TD_F16},
        {TD_Q2_K, TD_Q2_K, TD_Q4_0, TD_F16},       {TD_Q3_K, TD_Q3_K, TD_Q4_0, TD_F16},
        {TD_Q4_K, TD_Q4_K, TD_Q5_0, TD_F16},       {TD_Q5_K, TD_Q5_K, TD_Q5_1, TD_F16},
        {TD_Q6_K, TD_Q6_K, TD_Q8_0, TD_F16},       {TD_IQ4_XS, TD_IQ4_XS, TD_IQ4_NL, TD_F16},
        {TD_IQ4_NL, TD_IQ4_NL, TD_IQ4_NL, TD_F16}, {TD_MXFP4, TD_MXFP4, TD_MXFP4, TD_F16}};

    (void)state;
    for (size_t i = 0; i < sizeof rule / sizeof rule[0]; i++) {
        assert_int_equal(td_mix_type(rule[i].wanted, false, false, 256), rule[i].by_256);
        assert_int_equal(td_mix_type(rule[i].wanted, false, false, 192), rule[i].by_192);
        assert_int_equal(td_mix_type(rule[i].wanted, false, false, 172), rule[i].by_172);
        assert_int_equal(td_mix_type(rule[i].wanted, true, true, 192), rule[i].by_192);
    }
}

static void test_mix_gives_the_head_six_bits_or_more(void **state)
{
    (void)state;
    for (int t = 0; t < TD_N_DTYPES; t++) {
        enum td_dtype type = (enum td_dtype)t, head = td_mix_type(type, true, false, 256);
        size_t wanted = td_dtype_row_bytes(type, 256), six = td_dtype_row_bytes(TD_Q6_K, 256);

        assert_int_equal(head, wanted < six ? TD_Q6_K : type);
        assert_int_equal(td_mix_type(type, true, true, 256), type);
    }
    assert_int_equal(td_mix_type(TD_Q4_0, true, false, 192), TD_Q8_0);
    assert_int_equal(td_mix_type(TD_Q2_K, true, false, 172), TD_F16);
}

static void test_mix_numbers_are_those_of_gguf_files(void **state)
{
    (void)state;
    assert_int_equal(td_mix_file_type(TD_F32), 0);
    assert_int_equal(td_mix_file_type(TD_F16), 1);
    assert_int_equal(td_mix_file_type(TD_Q4_0), 2);
    assert_int_equal(td_mix_file_type(TD_Q8_0), 7);
    assert_int_equal(td_mix_file_type(TD_Q6_K), 18);
    assert_int_equal(td_mix_file_type(TD_BF16), 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mix_falls_back_where_blocks_do_not_fit),
        cmocka_unit_test(test_mix_gives_the_head_six_bits_or_more),
        cmocka_unit_test(test_mix_numbers_are_those_of_gguf_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
