#include "daemon/cli/svgplot.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 16 };

/* One tag from behind its '<'; returns behind its '>'. Attributes must be name="value" with a blank before. */
static const char *check_tag(const char *at, char names[MAX_DEPTH][16], size_t *depth)
{
    size_t len = strcspn(at, " />\n");

    if (*at == '/') {
        len = strcspn(at + 1, ">");
        assert_true(*depth > 0);
        (*depth)--;
        assert_int_equal(strlen(names[*depth]), len);
        assert_memory_equal(names[*depth], at + 1, len);
        return at + 1 + len + 1;
    }
    assert_true(len > 0 && len < 16 && *depth < MAX_DEPTH);
    memcpy(names[*depth], at, len);
    names[*depth][len] = '\0';
    (*depth)++;
    for (at += len; *at == ' ';) {
        at++;
        len = strspn(at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-");
        assert_true(len > 0 && at[len] == '=' && at[len + 1] == '"');
        at += len + 2;
        len = strcspn(at, "\"<");
        assert_true(at[len] == '"');
        at += len + 1;
    }
    if (*at == '/') {
        (*depth)--;
        at++;
    }
    assert_true(*at == '>');
    return at + 1;
}

/* The document is one element of well-formed XML (of the part of XML that pictures use). */
static void check_well_formed(const char *text)
{
    char names[MAX_DEPTH][16];
    size_t depth = 0, n_roots = 0;

    while (*text) {
        if (*text == '<') {
            n_roots += depth == 0;
            text = check_tag(text + 1, names, &depth);
            continue;
        }
        if (*text == '&')
            assert_true(strncmp(text, "&lt;", 4) == 0 || strncmp(text, "&gt;", 4) == 0 ||
                        strncmp(text, "&amp;", 5) == 0);
        assert_true((unsigned char)*text >= ' ' || *text == '\n');
        if (depth == 0)
            assert_true(*text == '\n');
        text++;
    }
    assert_int_equal(depth, 0);
    assert_int_equal(n_roots, 1);
}

static size_t count(const char *text, const char *word)
{
    size_t n = 0;

    for (; (text = strstr(text, word)) != NULL; text += strlen(word))
        n++;
    return n;
}

static struct td_bytes draw(const double *x, size_t n, const double *y, const double *z)
{
    struct td_svgplot_panel panels[] = {
        {.title = "a <b> & c, ms",
         .series = {{.name = "p50", .y = y}, {.name = "p99", .y = z, .dashed = true}},
         .n_series = 2},
        {.title = "rate", .series = {{.name = "rate", .y = z}}, .n_series = 1}};
    struct td_svgplot plot = {.title = "model <x> & \x01\"y\"",
                              .subtitle = "url",
                              .x_title = "load",
                              .x = x,
                              .n = n,
                              .panels = panels,
                              .n_panels = 2};
    struct td_bytes out = {0};

    assert_int_equal(td_svgplot_write(&plot, &out), TD_OK);
    return out;
}

/* Every pixel that is named lies in the picture: no value has run off, none is no number. */
static void check_inside(const char *text)
{
    assert_null(strstr(text, "nan"));
    assert_null(strstr(text, "inf"));
    for (const char *at = text; (at = strstr(at, "<circle cx=\"")) != NULL; at++) {
        double x = atof(at + 12), y = atof(strstr(at, "cy=\"") + 4);

        assert_true(x > 0.0 && x < 860.0 && y > 60.0 && y < 540.0);
    }
}

static void test_svgplot_is_well_formed_and_marks_every_value(void **state)
{
    static const struct {
        double x[5], y[5], z[5];
        size_t n, n_marks;
    } cases[] = {
        {{1, 2, 4, 8, 16}, {10, 11, 12, 15, 20}, {20, 22, 30, 60, 90}, 5, 15},
        {{1, 2, 3, 4, INFINITY}, {1, 1, 1, 1, 1}, {0.01, 1, 100, 1000, 99999}, 5, 15},
        {{4}, {3}, {0}, 1, 3},
        {{INFINITY}, {3}, {7}, 1, 3},
        {{2, 2, 5}, {NAN, 3, 4}, {NAN, NAN, NAN}, 3, 2},
        {{1, 2}, {0, 0}, {0, 0}, 2, 6},
        {{1, 1000}, {1e-9, 1e9}, {1e300, 1}, 2, 6},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct td_bytes out = draw(cases[i].x, cases[i].n, cases[i].y, cases[i].z);

        check_well_formed(out.data);
        check_inside(out.data);
        assert_int_equal(count(out.data, "<circle"), cases[i].n_marks);
        assert_int_equal(count(out.data, "a &lt;b&gt; &amp; c, ms"), 1);
        assert_int_equal(count(out.data, ">p99<"), 1);
        assert_int_equal(count(out.data, "all at once"), isinf(cases[i].x[cases[i].n - 1]));
        td_bytes_deinit(&out);
    }
}

static void test_svgplot_puts_larger_values_higher_and_further_right(void **state)
{
    const double x[] = {1, 2, 3}, y[] = {10, 20, 15}, z[] = {1, 1, 1};
    struct td_bytes out = draw(x, 3, y, z);
    double at[3][2];
    const char *mark = out.data;

    (void)state;
    for (int i = 0; i < 3; i++) {
        mark = strstr(mark, "<circle cx=\"");
        assert_non_null(mark);
        at[i][0] = atof(mark + 12);
        at[i][1] = atof(strstr(mark, "cy=\"") + 4);
        mark++;
    }
    assert_true(at[0][0] < at[1][0] && at[1][0] < at[2][0]);
    assert_true(at[1][1] < at[2][1] && at[2][1] < at[0][1]);
    assert_true(fabs((at[0][0] + at[2][0]) / 2.0 - at[1][0]) < 0.11); /* a linear axis */
    td_bytes_deinit(&out);
}

/* Axes by powers, ticks in powers of 1024, a line's own colour, and more names than fit beside the title. */
static void test_svgplot_names_many_lines_below_the_title(void **state)
{
    static const char *const names[] = {
        "shm one-shot",      "shm two-shot",      "shm doubling", "messages one-shot",
        "messages two-shot", "messages doubling", "MPI_Allreduce"};
    enum { N = sizeof names / sizeof names[0] };
    const double x[] = {8, 12, 8192, 1 << 20}, y[] = {1, 2, 3, 4};
    struct td_svgplot_panel panel = {.title = "tree_sum, us", .n_series = N, .is_log = true};
    struct td_svgplot plot = {.title = "t",
                              .subtitle = "s",
                              .x_title = "bytes",
                              .x = x,
                              .n = 4,
                              .panels = &panel,
                              .n_panels = 1,
                              .x_in_1024 = true};
    double lowest = 0.0, title_y = 0.0, frame_y, at[4];
    struct td_bytes out = {0};
    const char *mark;

    (void)state;
    for (size_t s = 0; s < N; s++)
        panel.series[s] = (struct td_svgplot_series){.name = names[s], .y = y};
    panel.series[N - 1].colour = TD_SVGPLOT_GREY;
    assert_int_equal(td_svgplot_write(&plot, &out), TD_OK);
    check_well_formed(out.data);
    check_inside(out.data);
    for (mark = out.data; (mark = strstr(mark, "<text x=")) != NULL; mark++)
        if (strncmp(strstr(mark, ">") + 1, "tree_sum", 8) == 0)
            title_y = atof(strstr(mark, " y=\"") + 4);
    frame_y = atof(strstr(strstr(out.data, "class=\"frame\" x="), " y=\"") + 4);
    for (mark = out.data; (mark = strstr(mark, "<text x=")) != NULL; mark++) {
        double left = atof(mark + 9), low = atof(strstr(mark, " y=\"") + 4);

        if (strncmp(strstr(mark, "class="), "class=\"legend\"", 14) != 0)
            continue;
        assert_true(left > 0.0 && left < 800.0);
        assert_true(low > title_y && low < frame_y);
        lowest = low > lowest ? low : lowest;
    }
    assert_true(lowest > title_y + 20.0); /* two lines of names */
    for (size_t s = 0; s < N; s++)
        assert_non_null(strstr(out.data, names[s]));
    assert_int_equal(count(out.data, ">8<") + count(out.data, ">8K<") + count(out.data, ">1M<"), 3);
    assert_int_equal(count(out.data, "stroke=\"#888888\""), 2); /* line and its sample */
    mark = out.data;
    for (int i = 0; i < 4; i++) {
        mark = strstr(mark, "<circle cx=\"");
        assert_non_null(mark);
        at[i] = atof(strstr(mark, "cy=\"") + 4);
        mark++;
    }
    /* By powers: from 1 to 2 is as far as from 2 to 4, though the values would fit a linear axis. */
    assert_true(fabs((at[0] - at[1]) - (at[1] - at[3])) < 0.21 && at[0] > at[1] + 5.0);
    td_bytes_deinit(&out);
}

static void test_svgplot_stacks_pictures_that_do_not_overlap(void **state)
{
    const double x[] = {1, 2, INFINITY}, y[] = {10, 20, 30};
    const struct td_svgplot_panel panels[] = {
        {.title = "one", .series = {{.name = "a", .y = y}}, .n_series = 1},
        {.title = "two", .series = {{.name = "a", .y = y}}, .n_series = 1}};
    const struct td_svgplot plots[] = {{.title = "upper",
                                        .subtitle = "",
                                        .x_title = "x",
                                        .x = x,
                                        .x_infinite = "no <limit>",
                                        .n = 3,
                                        .panels = panels,
                                        .n_panels = 2},
                                       {.title = "lower",
                                        .subtitle = "",
                                        .x_title = "x",
                                        .x = x,
                                        .n = 2,
                                        .panels = panels,
                                        .n_panels = 1}};
    struct td_bytes out = {0};
    const char *upper, *lower;
    int top, height, all;

    (void)state;
    assert_int_equal(td_svgplot_stack(plots, 2, &out), TD_OK);
    check_well_formed(out.data);
    assert_int_equal(count(out.data, "<circle"), 3 + 3 + 2);
    assert_int_equal(count(out.data, "no &lt;limit&gt;"), 1);
    assert_int_equal(count(out.data, "all at once"), 0);
    upper = strstr(strstr(out.data, "<svg") + 1, "<svg");
    lower = strstr(upper + 1, "<svg");
    assert_non_null(lower);
    all = atoi(strstr(out.data, "height=\"") + 8);
    height = atoi(strstr(upper, "height=\"") + 8);
    top = atoi(strstr(lower, " y=\"") + 4);
    assert_int_equal(atoi(strstr(upper, " y=\"") + 4), 0);
    assert_true(height > 2 * 100);
    assert_int_equal(top, height); /* one begins where the other ends */
    assert_int_equal(all, top + atoi(strstr(lower, "height=\"") + 8));
    td_bytes_deinit(&out);
}

static void test_svgplot_gives_a_series_without_a_name_the_colour_before_it(void **state)
{
    const double x[] = {1, 2}, y[] = {10, 20};
    const struct td_svgplot_panel panel = {.title = "t",
                                           .series = {{.name = "a", .y = y, .dashed = false},
                                                      {.y = y, .dashed = true},
                                                      {.name = "b", .y = y, .dashed = false},
                                                      {.y = y, .dashed = true}},
                                           .n_series = 4};
    const struct td_svgplot plot = {.title = "t",
                                    .subtitle = "s",
                                    .x_title = "x",
                                    .x = x,
                                    .n = 2,
                                    .panels = &panel,
                                    .n_panels = 1};
    struct td_bytes out = {0};
    char colour[4][8];
    const char *at;

    (void)state;
    assert_int_equal(td_svgplot_write(&plot, &out), TD_OK);
    check_well_formed(out.data);
    assert_int_equal(count(out.data, "class=\"legend\""), 2);
    at = out.data;
    for (int i = 0; i < 4; i++) {
        at = strstr(at, "<path fill=\"none\" stroke=\"");
        assert_non_null(at);
        at += strlen("<path fill=\"none\" stroke=\"");
        snprintf(colour[i], sizeof colour[i], "%.7s", at);
    }
    assert_string_equal(colour[0], colour[1]);
    assert_string_equal(colour[2], colour[3]);
    assert_string_not_equal(colour[0], colour[2]);
    td_bytes_deinit(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_svgplot_is_well_formed_and_marks_every_value),
        cmocka_unit_test(test_svgplot_puts_larger_values_higher_and_further_right),
        cmocka_unit_test(test_svgplot_names_many_lines_below_the_title),
        cmocka_unit_test(test_svgplot_stacks_pictures_that_do_not_overlap),
        cmocka_unit_test(test_svgplot_gives_a_series_without_a_name_the_colour_before_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
