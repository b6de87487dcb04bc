#include "daemon/text/pretok.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* Checks that `p` cuts `text` into `want`, whose pieces are parted by '|'. */
static void check_cut(const struct td_pretok *p, const char *text, bool at_start, const char *want)
{
    struct td_pretok_work work = {0};
    struct td_regex_work re = {0};
    const struct td_pretok_spans *spans;
    struct td_bytes got = {0};
    struct td_str out;
    struct td_err err = {0};

    if (td_pretok_run(p, td_str_from(text), at_start, &work, &re, &out, &spans, &err))
        fail_msg("%s", err.cause);
    for (size_t i = 0; i < spans->len; i++) {
        if (i)
            assert_int_equal(td_bytes_append(&got, "|", 1), TD_OK);
        assert_int_equal(td_bytes_append(&got, out.ptr + spans->data[i].at, spans->data[i].len),
                         TD_OK);
    }
    assert_string_equal(got.data ? got.data : "", want);
    td_bytes_deinit(&got);
    td_regex_work_deinit(&re);
    td_pretok_work_deinit(&work);
}

/* The example of the Hugging Face tokenizers' documentation of split behaviors. */
static void test_pretok_splits_as_each_behavior_says(void **state)
{
    static const struct {
        enum td_pretok_behavior behavior;
        const char *want;
    } cases[] = {{TD_PRETOK_REMOVED, "the|final|countdown"},
                 {TD_PRETOK_ISOLATED, "the|-|final|-|-|countdown"},
                 {TD_PRETOK_WITH_PREVIOUS, "the-|final-|-|countdown"},
                 {TD_PRETOK_WITH_NEXT, "the|-final|-|-countdown"},
                 {TD_PRETOK_CONTIGUOUS, "the|-|final|--|countdown"}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct td_pretok p = {0};

        assert_int_equal(td_pretok_add_split(&p, TD_STR("-"), cases[i].behavior, false, NULL),
                         TD_OK);
        check_cut(&p, "the-final--countdown", true, cases[i].want);
        check_cut(&p, "", true, "");
        td_pretok_deinit(&p);
    }
}

static void test_pretok_inverts_and_chains_splits(void **state)
{
    struct td_pretok p = {0};

    (void)state;
    assert_int_equal(
        td_pretok_add_split(&p, TD_STR("\\w+|[^\\w\\s]+"), TD_PRETOK_REMOVED, true, NULL), TD_OK);
    assert_int_equal(td_pretok_add_split(&p, TD_STR("\\p{N}"), TD_PRETOK_ISOLATED, false, NULL),
                     TD_OK);
    check_cut(&p, "Hey,  n12 \xC3\xA9t\xC3\xA9_!", true, "Hey|,|n|1|2|\xC3\xA9t\xC3\xA9_|!");
    td_pretok_deinit(&p);
}

static void test_pretok_metaspace_marks_the_front(void **state)
{
    struct td_pretok p = {0};
    struct td_pretok_stage *stage = td_pretok_add(&p, TD_PRETOK_METASPACE);

    (void)state;
    assert_int_equal(td_bytes_append_str(&stage->mark, TD_STR("_")), TD_OK);
    stage->behavior = TD_PRETOK_WITH_NEXT;
    stage->front = TD_PRETOK_FIRST;
    assert_int_equal(td_regex_open(TD_STR("_"), true, &stage->pattern, NULL), TD_OK);
    check_cut(&p, "Hey my  friend", true, "_Hey|_my|_|_friend");
    check_cut(&p, "Hey you", false, "Hey|_you");
    check_cut(&p, " Hey", true, "_Hey");
    stage->front = TD_PRETOK_ALWAYS;
    check_cut(&p, "Hey", false, "_Hey");
    stage->front = TD_PRETOK_NEVER;
    check_cut(&p, "Hey", true, "Hey");
    td_regex_close(stage->pattern);
    stage->pattern = NULL;
    check_cut(&p, "a b", true, "a_b");
    td_pretok_deinit(&p);
}

static void test_pretok_puts_a_space_in_front_of_each_piece(void **state)
{
    struct td_pretok p = {0};

    (void)state;
    assert_int_equal(td_pretok_add_split(&p, TD_STR("(?=x)"), TD_PRETOK_ISOLATED, false, NULL),
                     TD_OK);
    assert_int_equal(td_pretok_add_split(&p, TD_STR("-"), TD_PRETOK_REMOVED, false, NULL), TD_OK);
    assert_non_null(td_pretok_add(&p, TD_PRETOK_SPACE_FRONT));
    check_cut(&p, "ax- b-c", true, " ax| b| c"); /* a match of nothing cuts nothing */
    td_pretok_deinit(&p);
}

/* White_Space in Oniguruma's sense: U+180E is none, U+0085 is; "$" is the very end only. */
static void test_pretok_patterns_mean_what_they_mean_in_oniguruma(void **state)
{
    struct td_pretok p = {0};

    (void)state;
    assert_int_equal(td_pretok_add_split(&p, TD_STR("\\s"), TD_PRETOK_REMOVED, false, NULL), TD_OK);
    check_cut(&p,
              "a\xE1\xA0\x8E"
              "b\xC2\x85"
              "c\xE3\x80\x80"
              "d",
              true,
              "a\xE1\xA0\x8E"
              "b|c|d");
    td_pretok_deinit(&p);
    assert_int_equal(td_pretok_add_split(&p, TD_STR("b$|[$]"), TD_PRETOK_REMOVED, false, NULL),
                     TD_OK);
    check_cut(&p, "ab\n", true, "ab\n");
    check_cut(&p, "c$ab", true, "c|a");
    td_pretok_deinit(&p);
}

static void test_pretok_gives_up_on_a_pattern_without_end(void **state)
{
    struct td_pretok p = {0};
    struct td_pretok_work work = {0};
    struct td_regex_work re = {0};
    const struct td_pretok_spans *spans;
    struct td_str out;
    struct td_err err = {0};

    (void)state;
    assert_int_equal(
        td_pretok_add_split(&p, TD_STR("(a+a+)+[bc]"), TD_PRETOK_ISOLATED, false, NULL), TD_OK);
    assert_int_equal(
        td_pretok_run(&p, TD_STR("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
                      true, &work, &re, &out, &spans, &err),
        TD_TOO_LARGE);
    td_regex_work_deinit(&re);
    td_pretok_work_deinit(&work);
    td_pretok_deinit(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pretok_splits_as_each_behavior_says),
        cmocka_unit_test(test_pretok_inverts_and_chains_splits),
        cmocka_unit_test(test_pretok_metaspace_marks_the_front),
        cmocka_unit_test(test_pretok_puts_a_space_in_front_of_each_piece),
        cmocka_unit_test(test_pretok_patterns_mean_what_they_mean_in_oniguruma),
        cmocka_unit_test(test_pretok_gives_up_on_a_pattern_without_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
