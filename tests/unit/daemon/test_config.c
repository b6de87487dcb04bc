#include "daemon/cli/config.h"
#include "tests/unit/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Everything the reader said, "key@line=value;" after one another. */
struct heard {
    char text[4096];
    size_t n_calls;
    size_t fail_at; /* call that answers TD_DENIED; 0: none */
};

static enum td_status hear(void *user, const char *key, const char *value, size_t line,
                           struct td_err *err)
{
    struct heard *h = user;
    size_t len = strlen(h->text);

    h->n_calls++;
    if (h->n_calls == h->fail_at)
        return td_err_set(err, TD_DENIED, "told to fail");
    snprintf(h->text + len, sizeof h->text - len, "%s@%zu=%s;", key ? key : "-", line, value);
    return TD_OK;
}

static enum td_status parse(const char *yaml, struct heard *h, struct td_err *err)
{
    memset(h, 0, sizeof *h);
    return td_config_parse(td_str_from(yaml), "c.yaml", hear, h, err);
}

static void test_config_tells_scalars_and_list_elements_with_their_lines(void **state)
{
    struct heard h;
    struct td_err err;

    (void)state;
    assert_int_equal(parse("# a comment\nmodel: /m\nport: 8001\nstop:\n  - 'a b'\n  - \"c\\n\"\n"
                           "shares: 3:1:1\napi-key: [x, y]\nname: \"\"\n",
                           &h, &err),
                     TD_OK);
    assert_string_equal(h.text, "model@2=/m;port@3=8001;stop@5=a b;stop@6=c\n;shares@7=3:1:1;"
                                "api-key@8=x;api-key@8=y;name@9=;");
}

static void test_config_takes_an_empty_file_as_an_empty_map(void **state)
{
    struct heard h;
    struct td_err err;

    (void)state;
    assert_int_equal(parse("", &h, &err), TD_OK);
    assert_int_equal(parse("# nothing\n", &h, &err), TD_OK);
    assert_int_equal(parse("---\n", &h, &err), TD_OK);
    assert_int_equal(parse("{}\n", &h, &err), TD_OK);
    assert_int_equal(h.n_calls, 0);
}

static void test_config_refuses_what_is_no_flat_map_and_names_the_line(void **state)
{
    static const struct {
        const char *yaml, *says;
    } cases[] = {
        {"a: 1\nb: {c: 2}\n", "line 2"},
        {"a: 1\nb:\n  c: 2\n", "flat map"},
        {"- a\n- b\n", "line 1"},
        {"just text\n", "expected a map"},
        {"a: [[1]]\n", "a list may only be"},
        {"a: []\n", "empty list"},
        {"a: 1\nb: 2\na: 3\n", "line 3: key 'a' occurs twice"},
        {"a:\n", "key 'a' has no value"},
        {"a: ~\n", "key 'a' has no value"},
        {"a: null\n", "key 'a' has no value"},
        {"a: &x 1\nb: *x\n", "anchors"},
        {"a: *x\n", "aliases"},
        {"a: 1\n---\nb: 2\n", "second"},
        {"? [a]\n: 1\n", "a list may only be"},
        {"a: 1\n\tb: 2\n", "no valid YAML"},
        {"a: 'unclosed\n", "no valid YAML"},
        {"a: \"x\\0y\"\n", "NUL"},
        {"a: \xff\n", "no valid YAML"},
        {"a: \xc3(\n", "no valid YAML"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct heard h;
        struct td_err err = {0};

        if (parse(cases[i].yaml, &h, &err) != TD_INVALID || !strstr(err.cause, cases[i].says) ||
            !strstr(err.cause, "'c.yaml' line "))
            fail_msg("case %zu: status %d, '%s', expected '%s'", i, err.status, err.cause,
                     cases[i].says);
    }
}

static void test_config_stops_at_the_listener_error(void **state)
{
    struct heard h = {.fail_at = 2};
    struct td_err err;

    (void)state;
    assert_int_equal(td_config_parse(td_str_from("a: 1\nb: 2\nc: 3\n"), "c.yaml", hear, &h, &err),
                     TD_DENIED);
    assert_int_equal(h.n_calls, 2);
    assert_string_equal(err.cause, "told to fail");
}

static void write_file(char path[32], const char *text, size_t len)
{
    FILE *file;
    int fd;

    strcpy(path, "/tmp/td_config_XXXXXX");
    fd = mkstemp(path);
    assert_true(fd >= 0);
    file = fdopen(fd, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, len, file), len);
    assert_int_equal(fclose(file), 0);
}

static void test_config_names_a_file_that_is_missing_or_a_folder(void **state)
{
    struct heard h = {0};
    struct td_err err;

    (void)state;
    assert_int_equal(td_config_read("/nonexistent/c.yaml", hear, &h, &err), TD_NOT_FOUND);
    assert_non_null(strstr(err.cause, "'/nonexistent/c.yaml'"));
    assert_int_equal(td_config_read("/", hear, &h, &err), TD_IO);
    assert_non_null(strstr(err.cause, "directory"));
}

static void test_config_refuses_a_file_over_the_cap(void **state)
{
    struct td_bytes out = {0};
    struct td_err err;
    char path[32];

    (void)state;
    write_file(path, "0123456789", 10);
    assert_int_equal(td_config_read_file(path, "--file", 10, &out, &err), TD_OK);
    assert_int_equal(out.len, 10);
    td_bytes_clear(&out);
    assert_int_equal(td_config_read_file(path, "--file", 9, &out, &err), TD_TOO_LARGE);
    assert_non_null(strstr(err.cause, "more than 9 bytes"));
    td_bytes_deinit(&out);
    unlink(path);
}

static void test_config_reads_keys_without_blanks_and_comments(void **state)
{
    static const char text[] = "# keys\n\n  one \r\ntwo\n#three\n\tfour";
    struct heard h = {0};
    struct td_err err;
    char path[32];

    (void)state;
    write_file(path, text, sizeof text - 1);
    assert_int_equal(td_config_read_keys(path, "--api-key-file", hear, &h, &err), TD_OK);
    assert_string_equal(h.text, "-@3=one;-@4=two;-@6=four;");
    unlink(path);
}

static void test_config_refuses_keys_with_control_characters_without_showing_them(void **state)
{
    struct heard h = {0};
    struct td_err err;
    char path[32];

    (void)state;
    write_file(path, "good\nhidden\001key\n", 16);
    assert_int_equal(td_config_read_keys(path, "--api-key-file", hear, &h, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "line 2"));
    assert_null(strstr(err.cause, "hidden"));
    unlink(path);
    write_file(path, "# none\n", 7);
    assert_int_equal(td_config_read_keys(path, "--api-key-file", hear, &h, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "holds no key"));
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_tells_scalars_and_list_elements_with_their_lines),
        cmocka_unit_test(test_config_takes_an_empty_file_as_an_empty_map),
        cmocka_unit_test(test_config_refuses_what_is_no_flat_map_and_names_the_line),
        cmocka_unit_test(test_config_stops_at_the_listener_error),
        cmocka_unit_test(test_config_names_a_file_that_is_missing_or_a_folder),
        cmocka_unit_test(test_config_refuses_a_file_over_the_cap),
        cmocka_unit_test(test_config_reads_keys_without_blanks_and_comments),
        cmocka_unit_test(test_config_refuses_keys_with_control_characters_without_showing_them),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
