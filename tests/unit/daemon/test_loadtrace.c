#include "daemon/cli/loadtrace.h"
#include "tests/unit/check.h"

#include <string.h>

static void test_loadtrace_reads_times_lengths_and_texts(void **state)
{
    struct td_loadtrace *t;
    struct td_err err;

    (void)state;
    assert_int_equal(
        td_loadtrace_parse(
            TD_STR(
                "\n{\"timestamp\": 1500, \"input_length\": 3, \"output_length\": 4, \"x\": []}\r\n"
                "  \n{\"timestamp\": 1750.5, \"prompt\": \"a\\nb\", \"output_length\": 1}"),
            &t, &err),
        TD_OK);
    assert_int_equal(t->n_rows, 2);
    assert_true(t->rows[0].at_s == 0.0);
    assert_int_equal(t->rows[0].n_input, 3);
    assert_int_equal(t->rows[0].n_output, 4);
    assert_null(t->rows[0].prompt);
    assert_true(t->rows[1].at_s > 0.2504 && t->rows[1].at_s < 0.2506);
    assert_string_equal(t->rows[1].prompt, "a\nb");
    assert_int_equal(t->rows[1].n_input, 0);
    td_loadtrace_close(t);
    td_loadtrace_close(NULL);
}

static void test_loadtrace_names_the_line_that_is_wrong(void **state)
{
#define GOOD "{\"timestamp\":7,\"input_length\":3,\"output_length\":4}\n"
    static const struct {
        const char *text, *words[2];
    } bad[] = {
        {"", {"no request", ""}},
        {"\n \n", {"no request", ""}},
        {GOOD "\n{", {"line 3", "no JSON"}},
        {GOOD "[]", {"line 2", "no object"}},
        {"{\"input_length\":3,\"output_length\":4}", {"line 1", "timestamp"}},
        {"{\"timestamp\":-1,\"input_length\":3,\"output_length\":4}", {"line 1", "timestamp"}},
        {"{\"timestamp\":\"1\",\"input_length\":3,\"output_length\":4}", {"line 1", "timestamp"}},
        {GOOD "{\"timestamp\":6,\"input_length\":3,\"output_length\":4}", {"line 2", "before"}},
        {"{\"timestamp\":1,\"input_length\":0,\"output_length\":4}", {"line 1", "input_length"}},
        {"{\"timestamp\":1,\"output_length\":4}", {"line 1", "input_length"}},
        {"{\"timestamp\":1,\"input_length\":3}", {"line 1", "output_length"}},
        {"{\"timestamp\":1,\"input_length\":3,\"output_length\":2000000}", {"", "output_length"}},
        {"{\"timestamp\":1,\"prompt\":\"\",\"output_length\":4}", {"line 1", "prompt"}},
        {"{\"timestamp\":1,\"prompt\":\"a\\u0000b\",\"output_length\":4}", {"line 1", "prompt"}},
        {"{\"timestamp\":1,\"input_length\":513,\"output_length\":4,\"hash_ids\":[1]}",
         {"line 1", "hash_ids"}},
        {"{\"timestamp\":1,\"input_length\":512,\"output_length\":4,\"hash_ids\":[1,2]}",
         {"line 1", "hash_ids"}},
        {"{\"timestamp\":1,\"input_length\":5,\"output_length\":4,\"hash_ids\":[-1]}",
         {"line 1", "hash_ids"}},
    };
#undef GOOD

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct td_loadtrace *t = NULL;
        struct td_err err;

        assert_int_equal(td_loadtrace_parse(td_str_from(bad[i].text), &t, &err), TD_INVALID);
        assert_null(t);
        assert_non_null(strstr(err.cause, bad[i].words[0]));
        assert_non_null(strstr(err.cause, bad[i].words[1]));
    }
}

static void test_loadtrace_names_a_file_that_is_absent(void **state)
{
    struct td_loadtrace *t;
    struct td_err err;

    (void)state;
    assert_int_equal(td_loadtrace_open("/nonexistent.jsonl", &t, &err), TD_NOT_FOUND);
    assert_non_null(strstr(err.cause, "/nonexistent.jsonl"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loadtrace_reads_times_lengths_and_texts),
        cmocka_unit_test(test_loadtrace_names_the_line_that_is_wrong),
        cmocka_unit_test(test_loadtrace_names_a_file_that_is_absent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
