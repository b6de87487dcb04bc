#include "daemon/text/stop.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct td_stop *open_stop(bool include, size_t n, const char *const *strings)
{
    struct td_str s[16];
    struct td_stop *stop = NULL;

    for (size_t i = 0; i < n; i++)
        s[i] = td_str_from(strings[i]);
    assert_int_equal(td_stop_open(s, n, include, &stop, NULL), TD_OK);
    return stop;
}

#define OPEN(include, ...)                                                                         \
    open_stop(include, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *),                \
              (const char *const[]){__VA_ARGS__})

/* Pushes `text` and checks all that has been written so far. */
static void check_push(struct td_stop *stop, struct td_bytes *out, const char *text, bool matched,
                       const char *written)
{
    bool hit;

    assert_int_equal(td_stop_push(stop, td_str_from(text), out, &hit), TD_OK);
    assert_int_equal(hit, matched);
    assert_int_equal(td_stop_matched(stop), matched);
    assert_string_equal(out->data ? out->data : "", written);
}

static void test_stop_holds_back_what_may_become_a_stop(void **state)
{
    struct td_stop *stop = OPEN(false, "END", "\n\n");
    struct td_bytes out = {0};

    (void)state;
    check_push(stop, &out, "abcE", false, "abc");
    assert_int_equal(td_stop_held_bytes(stop), 1);
    check_push(stop, &out, "N", false, "abc");
    check_push(stop, &out, "x\n", false, "abcENx");
    check_push(stop, &out, "y", false, "abcENx\ny");
    check_push(stop, &out, "EN", false, "abcENx\ny");
    check_push(stop, &out, "Dzzz", true, "abcENx\ny");
    check_push(stop, &out, "more", true, "abcENx\ny");
    td_bytes_deinit(&out);
    td_stop_close(stop);
    td_stop_close(NULL);
}

static void test_stop_keeps_the_string_when_asked(void **state)
{
    struct td_stop *stop = OPEN(true, "END");
    struct td_bytes out = {0};

    (void)state;
    check_push(stop, &out, "abEN", false, "ab");
    check_push(stop, &out, "Dxyz", true, "abEND");
    td_bytes_deinit(&out);
    td_stop_close(stop);
}

static void test_stop_flush_gives_the_tail_back(void **state)
{
    struct td_stop *stop = OPEN(false, "aab");
    struct td_bytes out = {0};

    (void)state;
    check_push(stop, &out, "xaaa", false, "xa");
    assert_int_equal(td_stop_flush(stop, &out), TD_OK);
    assert_string_equal(out.data, "xaaa");
    assert_int_equal(td_stop_held_bytes(stop), 0);
    td_bytes_clear(&out);
    td_stop_reset(stop);
    check_push(stop, &out, "baab", true, "b");
    td_bytes_deinit(&out);
    td_stop_close(stop);
}

static void test_stop_first_end_wins_then_the_longest(void **state)
{
    struct td_stop *stop = OPEN(false, "bcde", "c", "abc");
    struct td_bytes out = {0};

    (void)state;
    check_push(stop, &out, "xxabcde", true, "xx");
    td_bytes_deinit(&out);
    td_stop_close(stop);
}

static void test_stop_without_strings_passes_all(void **state)
{
    struct td_stop *stop = NULL;
    struct td_bytes out = {0};
    bool hit = true;

    (void)state;
    assert_int_equal(td_stop_open(NULL, 0, false, &stop, NULL), TD_OK);
    check_push(stop, &out, "anything", false, "anything");
    assert_int_equal(td_stop_flush(stop, &out), TD_OK);
    assert_int_equal(td_stop_push(stop, td_str_from("x"), NULL, &hit), TD_OK);
    assert_false(hit);
    td_bytes_deinit(&out);
    td_stop_close(stop);
}

static void test_stop_refuses_an_empty_string(void **state)
{
    struct td_str empty = {"", 0};
    struct td_stop *stop = NULL;
    struct td_err err;

    (void)state;
    assert_int_equal(td_stop_open(&empty, 1, false, &stop, &err), TD_INVALID);
    assert_null(stop);
}

/* The plain meaning of the header, over the whole text at once: bytes that stay, and whether a stop was found. */
static size_t naive(const char *text, size_t len, const char *const *strings, size_t n,
                    bool include, bool *hit)
{
    for (size_t end = 1; end <= len; end++) {
        size_t longest = 0;

        for (size_t i = 0; i < n; i++) {
            size_t l = strlen(strings[i]);

            if (l <= end && memcmp(text + end - l, strings[i], l) == 0 && l > longest)
                longest = l;
        }
        if (longest) {
            *hit = true;
            return include ? end : end - longest;
        }
    }
    *hit = false;
    return len;
}

static void test_stop_does_not_care_how_text_is_cut(void **state)
{
    unsigned seed = 20240817;
    size_t n_hits = 0;

    (void)state;
    printf("seed %u\n", seed);
    srand(seed);
    for (int round = 0; round < 4000; round++) {
        char strings[3][8], text[65];
        const char *list[3];
        size_t n = 1 + (size_t)rand() % 3, at = 0, want;
        bool include = rand() % 2, want_hit, hit = false;
        struct td_bytes out = {0};
        struct td_stop *stop;

        for (size_t i = 0; i < n; i++) {
            size_t l = 2 + (size_t)rand() % 6;

            for (size_t k = 0; k < l; k++)
                strings[i][k] = (char)('a' + rand() % 2);
            strings[i][l] = '\0';
            list[i] = strings[i];
        }
        for (size_t k = 0; k < 64; k++)
            text[k] = (char)('a' + rand() % 10 / 4);
        text[64] = '\0';
        want = naive(text, 64, list, n, include, &want_hit);
        stop = open_stop(include, n, list);
        while (at < 64) {
            size_t len = (size_t)rand() % 7;

            len = len > 64 - at ? 64 - at : len;
            assert_int_equal(td_stop_push(stop, (struct td_str){text + at, len}, &out, &hit),
                             TD_OK);
            at += len;
            /* Nothing is shown that must go, and no more is held than a stop string is long. */
            assert_true(out.len <= want);
            if (!hit)
                assert_true(out.len + 7 > (at < want ? at : want));
        }
        if (!hit)
            assert_int_equal(td_stop_flush(stop, &out), TD_OK);
        assert_int_equal(hit, want_hit);
        assert_int_equal(out.len, want);
        assert_memory_equal(out.data ? out.data : "", text, want);
        n_hits += hit;
        td_bytes_deinit(&out);
        td_stop_close(stop);
    }
    assert_in_range(n_hits, 500, 3999);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop_holds_back_what_may_become_a_stop),
        cmocka_unit_test(test_stop_keeps_the_string_when_asked),
        cmocka_unit_test(test_stop_flush_gives_the_tail_back),
        cmocka_unit_test(test_stop_first_end_wins_then_the_longest),
        cmocka_unit_test(test_stop_without_strings_passes_all),
        cmocka_unit_test(test_stop_refuses_an_empty_string),
        cmocka_unit_test(test_stop_does_not_care_how_text_is_cut),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
