/* Slices, UTF-8, growable buffers. */
#include "tests/unit/check.h"

#include "kernels/base/bytes.h"

#include <string.h>

static void test_bytes_grow_keep_their_terminator_and_respect_their_cap(void **state)
{
    struct td_bytes b = {.cap_limit = 100};

    (void)state;
    assert_string_equal(td_bytes_str(&b).ptr, "");
    assert_int_equal(td_bytes_reserve(&b, 10), TD_OK);
    assert_string_equal(b.data, "");
    for (int i = 0; i < 10; i++)
        assert_int_equal(td_bytes_appendf(&b, "%d,", i), TD_OK);
    assert_string_equal(b.data, "0,1,2,3,4,5,6,7,8,9,");
    td_bytes_consume(&b, 4);
    assert_string_equal(b.data, "2,3,4,5,6,7,8,9,");
    assert_int_equal(td_bytes_append(&b, "x\0y", 3), TD_OK);
    assert_int_equal(b.len, 19);
    assert_int_equal(b.data[19], '\0');
    assert_int_equal(td_bytes_appendf(&b, "%090d", 1), TD_TOO_LARGE);
    assert_int_equal(b.len, 19);
    assert_int_equal(td_bytes_reserve(&b, SIZE_MAX), TD_TOO_LARGE);
    td_bytes_consume(&b, 1000);
    assert_int_equal(b.len, 0);
    assert_string_equal(b.data, "");
    td_bytes_deinit(&b);
    assert_int_equal(b.cap_limit, 100);
}

static void test_bytes_slices_compare_by_content(void **state)
{
    (void)state;
    assert_true(td_str_eq(TD_STR("ab"), td_str_from("ab")));
    assert_false(td_str_eq(TD_STR("ab"), TD_STR("abc")));
    assert_true(td_str_eq(TD_STR(""), td_str_from(NULL)));
    assert_true(td_str_starts(TD_STR("abc"), TD_STR("ab")));
    assert_true(td_str_starts(TD_STR("abc"), TD_STR("")));
    assert_false(td_str_starts(TD_STR("a"), TD_STR("ab")));
}

/* Unicode 15, table 3-7. */
static void test_bytes_utf8_is_what_unicode_says(void **state)
{
    static const struct {
        const char *text;
        size_t len;
        bool ok;
    } cases[] = {
        {"", 0, true},
        {"a\0b", 3, true},
        {"\xC2\x80", 2, true},
        {"\xDF\xBF", 2, true},
        {"\xE0\xA0\x80", 3, true},
        {"\xED\x9F\xBF", 3, true},
        {"\xEF\xBF\xBF", 3, true},
        {"\xF0\x90\x80\x80", 4, true},
        {"\xF4\x8F\xBF\xBF", 4, true},
        {"\x80", 1, false},
        {"\xC0\x80", 2, false},         /* overlong */
        {"\xC1\xBF", 2, false},         /* overlong */
        {"\xE0\x9F\xBF", 3, false},     /* overlong */
        {"\xED\xA0\x80", 3, false},     /* surrogate */
        {"\xF0\x8F\xBF\xBF", 4, false}, /* overlong */
        {"\xF4\x90\x80\x80", 4, false}, /* past U+10FFFF */
        {"\xF5\x80\x80\x80", 4, false},
        {"\xE2\x82", 2, false}, /* cut */
        {"\xE2\x82\x41", 3, false},
        {"\xFF", 1, false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct td_str s = {cases[i].text, cases[i].len};

        assert_int_equal(td_str_is_utf8(s), cases[i].ok);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_grow_keep_their_terminator_and_respect_their_cap),
        cmocka_unit_test(test_bytes_slices_compare_by_content),
        cmocka_unit_test(test_bytes_utf8_is_what_unicode_says),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
