#include "daemon/text/textnorm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <utf8proc.h>

#include <cmocka.h>

static void check_run(const struct td_textnorm *n, const char *text, const char *want)
{
    struct td_bytes buffers[2] = {{0}, {0}}, got = {0};
    struct td_regex_work re = {0};
    struct td_str out;
    struct td_err err = {0};

    if (td_textnorm_run(n, td_str_from(text), buffers, &re, &out, &err))
        fail_msg("%s", err.cause);
    assert_int_equal(td_bytes_append_str(&got, out), TD_OK);
    assert_string_equal(got.data, want);
    td_bytes_deinit(&got);
    td_regex_work_deinit(&re);
    td_bytes_deinit(&buffers[0]);
    td_bytes_deinit(&buffers[1]);
}

/* Against utf8proc's own map, which orders marks in another way, over random text full of marks. */
static void test_textnorm_forms_equal_utf8procs(void **state)
{
    static const int32_t alphabet[] = {'a',    'e',    0x301,  0x327,   0x323,  0xE9,
                                       0x1EAD, 0xAC01, 0x1100, 0x1161,  0x11A8, 0xFB01,
                                       0x212B, 0x344,  0xFDFA, 0x1D15E, 0x345,  0x5B0};
    static const struct {
        enum td_textnorm_kind kind;
        utf8proc_option_t options;
    } forms[] = {{TD_TEXTNORM_NFC, UTF8PROC_STABLE | UTF8PROC_COMPOSE},
                 {TD_TEXTNORM_NFD, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE},
                 {TD_TEXTNORM_NFKC, UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
                 {TD_TEXTNORM_NFKD, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT}};
    unsigned seed = 4711;

    (void)state;
    printf("seed %u\n", seed);
    srand(seed);
    for (int round = 0; round < 2000; round++) {
        size_t form = (size_t)rand() % 4, n_chars = 1 + (size_t)rand() % 20;
        struct td_textnorm n = {0};
        utf8proc_uint8_t text[128], *want = NULL;
        utf8proc_ssize_t len = 0;

        for (size_t i = 0; i < n_chars; i++)
            len += utf8proc_encode_char(
                alphabet[(size_t)rand() % (sizeof alphabet / sizeof *alphabet)], text + len);
        text[len] = '\0';
        assert_true(utf8proc_map(text, len, &want, forms[form].options) >= 0);
        assert_non_null(td_textnorm_add(&n, forms[form].kind));
        check_run(&n, (char *)text, (char *)want);
        td_textnorm_deinit(&n);
        free(want);
    }
}

static void test_textnorm_runs_its_stages_in_order(void **state)
{
    struct td_textnorm n = {0};
    struct td_textnorm_stage *stage = td_textnorm_add(&n, TD_TEXTNORM_STRIP);

    (void)state;
    stage->left = stage->right = true;
    stage = td_textnorm_add(&n, TD_TEXTNORM_PREPEND);
    assert_int_equal(td_bytes_append_str(&stage->text, TD_STR("_")), TD_OK);
    stage = td_textnorm_add(&n, TD_TEXTNORM_REPLACE);
    assert_int_equal(td_bytes_append_str(&stage->from, TD_STR("  ")), TD_OK);
    assert_int_equal(td_bytes_append_str(&stage->text, TD_STR("__")), TD_OK);
    stage = td_textnorm_add(&n, TD_TEXTNORM_REPLACE);
    assert_int_equal(td_regex_open(TD_STR("[0-9]+"), false, &stage->pattern, NULL), TD_OK);
    assert_int_equal(td_bytes_append_str(&stage->text, TD_STR("#")), TD_OK);
    check_run(&n, " \t a   b12c3\xE3\x80\x80\n", "_a__ b#c#");
    check_run(&n, " ", "");
    check_run(&n, "", "");
    td_textnorm_deinit(&n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_textnorm_forms_equal_utf8procs),
        cmocka_unit_test(test_textnorm_runs_its_stages_in_order),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
