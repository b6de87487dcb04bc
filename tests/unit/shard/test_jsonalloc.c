/* JSON read and built while memory is short, at every allocation that jansson makes. Its lexer's buffer begins with 16 bytes and doubles:
 * the texts have tokens that end before, at and behind every such place. */
#include "tests/unit/alloc_fault.h"

#include "shard/jsonalloc.h"

static enum td_status parse(void *arg, struct td_err *err)
{
    const char *text = arg;
    json_error_t why;
    json_t *value = td_jsonalloc_parse(td_str_from(text), JSON_DECODE_ANY, &why);
    bool is_short = !value && json_error_code(&why) == json_error_out_of_memory;
    enum td_status s = TD_OK;
    uint64_t failures;
    char *again;

    if (!value) {
        if (!is_short)
            return td_err_set(err, TD_CORRUPT, "line %d: %s", why.line, why.text);
        return td_err_set(err, TD_NO_MEMORY, "%s", why.text);
    }
    failures = td_jsonalloc_failures();
    again = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    if (!again || td_jsonalloc_failures() != failures)
        s = alloc_no_memory(err);
    else
        assert_string_equal(again, text); /* what was read is all of it */
    free(again);
    json_decref(value);
    return s;
}

static void test_jsonalloc_reads_strings_of_every_length(void **state)
{
    char text[300];

    (void)state;
    for (size_t n = 0; n < 140; n++) {
        text[0] = '[';
        text[1] = '"';
        memset(text + 2, 'x', n);
        strcpy(text + 2 + n, "\",{\"k\":\"v\"}]");
        (void)parse(text, NULL);
        for (long k = 1;; k++) {
            struct td_err err = {0};
            enum td_status s;

            alloc_fault_arm(k, false);
            s = parse(text, &err);
            if (!alloc_fault_disarm()) {
                assert_int_equal(s, TD_OK);
                break;
            }
            assert_true(s == TD_OK || s == TD_NO_MEMORY);
        }
    }
}

static void test_jsonalloc_reads_numbers_of_every_length(void **state)
{
    (void)state;
    for (int n = 1; n < 40; n++) {
        char text[160];

        /* Digits, a fraction and an exponent: any of its characters may be the one for which the buffer has to grow. */
        snprintf(text, sizeof text, "[%.*s.%.*se-%d,1]", n,
                 "1111111111111111111111111111111111111111", n,
                 "5555555555555555555555555555555555555555", n);
        for (long k = 1;; k++) {
            json_error_t why;
            json_t *value;

            alloc_fault_arm(k, false);
            value = td_jsonalloc_parse(td_str_from(text), 0, &why);
            if (!alloc_fault_disarm()) {
                assert_true(json_is_real(json_array_get(value, 0)));
                assert_int_equal(json_array_size(value), 2);
                json_decref(value);
                break;
            }
            assert_null(value);
            assert_int_equal(json_error_code(&why), json_error_out_of_memory);
        }
    }
}

static void test_jsonalloc_reads_documents_whole_or_not_at_all(void **state)
{
    (void)state;
    (void)alloc_sweep("an object", parse,
                      "{\"a\":[1,2,3,4,5,6,7,8,9,10],\"b\":{\"c\":null,\"d\":true},"
                      "\"a longer key than the others\":\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"}");
    (void)alloc_sweep("a string", parse, "\"\"");
    (void)alloc_sweep("a number", parse, "-12345678901234567");
}

static void test_jsonalloc_tells_broken_text_from_short_memory(void **state)
{
    json_error_t why;

    (void)state;
    assert_null(td_jsonalloc_parse(TD_STR("{\"a\":\n tru}"), 0, &why));
    assert_int_equal(json_error_code(&why), json_error_invalid_syntax);
    assert_int_equal(why.line, 2);
    assert_null(td_jsonalloc_parse(TD_STR("[1"), 0, &why));
    assert_int_not_equal(json_error_code(&why), json_error_out_of_memory);
    assert_null(td_jsonalloc_parse(TD_STR(""), 0, NULL));
    alloc_fault_arm(1, false);
    assert_null(td_jsonalloc_parse(TD_STR("[1]"), 0, &why));
    assert_true(alloc_fault_disarm());
    assert_int_equal(json_error_code(&why), json_error_out_of_memory);
}

static void test_jsonalloc_counts_what_a_builder_lost(void **state)
{
    uint64_t before = td_jsonalloc_failures();
    json_t *list = json_array();

    (void)state;
    alloc_fault_arm(1, false);
    json_array_append_new(list, json_string("lost"));
    assert_true(alloc_fault_disarm());
    assert_int_equal(json_array_size(list), 0); /* and jansson says nothing of it */
    assert_int_equal(td_jsonalloc_failures(), before + 1);
    json_decref(list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_jsonalloc_reads_strings_of_every_length),
        cmocka_unit_test(test_jsonalloc_reads_numbers_of_every_length),
        cmocka_unit_test(test_jsonalloc_reads_documents_whole_or_not_at_all),
        cmocka_unit_test(test_jsonalloc_tells_broken_text_from_short_memory),
        cmocka_unit_test(test_jsonalloc_counts_what_a_builder_lost),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
