#include "daemon/cli/term.h"
#include "tests/unit/check.h"

#include <stdlib.h>
#include <string.h>

/* Output into memory: never a terminal, so that a test says itself what it is. */
struct screen {
    char *text;
    size_t len;
    FILE *out;
    struct td_term term;
};

static void open_screen(struct screen *s, bool is_tty, unsigned columns)
{
    s->out = open_memstream(&s->text, &s->len);
    assert_non_null(s->out);
    td_term_init(&s->term, s->out);
    assert_false(s->term.is_tty);
    s->term.is_tty = is_tty;
    s->term.fixed_columns = columns;
    s->term.interval_ns = UINT64_MAX; /* only the first and the final one are shown */
}

static void close_screen(struct screen *s)
{
    fclose(s->out);
    free(s->text);
}

static void test_term_rewrites_one_line_on_a_terminal_and_ends_it(void **state)
{
    struct screen s;

    (void)state;
    open_screen(&s, true, 80);
    td_term_progress(&s.term, "loading", 1024, 4096, "B");
    assert_string_equal(s.text, "\rloading   25 %  1.0 KiB of 4.0 KiB\033[K");
    td_term_progress(&s.term, "loading", 2048, 4096, "B"); /* too soon */
    td_term_progress(&s.term, "loading", 4096, 4096, "B");
    assert_string_equal(s.text, "\rloading   25 %  1.0 KiB of 4.0 KiB\033[K"
                                "\rloading  100 %  4.0 KiB of 4.0 KiB\033[K\n");
    assert_false(s.term.line_open);
    close_screen(&s);
}

static void test_term_prints_plain_lines_elsewhere(void **state)
{
    struct screen s;

    (void)state;
    open_screen(&s, false, 0);
    td_term_progress(&s.term, "bench", 1, 5, "runs");
    td_term_progress(&s.term, "bench", 2, 5, "runs");
    td_term_progress(&s.term, "bench", 5, 5, "runs");
    assert_string_equal(s.text, "bench   20 %  1 of 5 runs\nbench  100 %  5 of 5 runs\n");
    close_screen(&s);
}

static void test_term_cuts_a_line_at_the_width_and_no_wide_character_in_half(void **state)
{
    struct screen s;

    (void)state;
    open_screen(&s, true, 6); /* five may be written; each of these takes two columns */
    td_term_progress(&s.term, "\xe6\xbc\xa2\xe5\xad\x97\xe6\xbc\xa2", 0, 1, "x");
    assert_string_equal(s.text, "\r\xe6\xbc\xa2\xe5\xad\x97\033[K");
    close_screen(&s);
}

static void test_term_clears_a_standing_line_before_another_and_ends_it_once(void **state)
{
    struct screen s;

    (void)state;
    open_screen(&s, true, 80);
    td_term_progress(&s.term, "a", 1, 0, "x");
    td_term_line(&s.term, "rank %d is ready", 3);
    assert_string_equal(s.text, "\ra  1 x\033[K\r\033[Krank 3 is ready\n");
    td_term_end(&s.term);
    assert_string_equal(s.text, "\ra  1 x\033[K\r\033[Krank 3 is ready\n");
    close_screen(&s);
}

static void test_term_writes_byte_counts_for_people(void **state)
{
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {{0, "0 B"},
                 {1023, "1023 B"},
                 {1536, "1.5 KiB"},
                 {629145600, "600.0 MiB"},
                 {UINT64_MAX, "16777216.0 TiB"}};
    char text[32];

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_string_equal(td_term_bytes(cases[i].bytes, text, sizeof text), cases[i].text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_term_rewrites_one_line_on_a_terminal_and_ends_it),
        cmocka_unit_test(test_term_prints_plain_lines_elsewhere),
        cmocka_unit_test(test_term_cuts_a_line_at_the_width_and_no_wide_character_in_half),
        cmocka_unit_test(test_term_clears_a_standing_line_before_another_and_ends_it_once),
        cmocka_unit_test(test_term_writes_byte_counts_for_people),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
