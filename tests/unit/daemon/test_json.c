#include "daemon/api/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JSON_DIR TD_SHARED "/data/json-parsing"

/* What jansson, and so this server, refuses although RFC 8259 allows it. */
static const char *const known_refusals[] = {"y_object_escaped_null_in_key.json"};

static bool is_known_refusal(const char *name)
{
    for (size_t i = 0; i < sizeof(known_refusals) / sizeof(known_refusals[0]); i++) {
        if (strcmp(known_refusals[i], name) == 0) {
            return true;
        }
    }
    return false;
}

static char *read_file(const char *path, size_t *len)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    *len = (size_t)ftell(f);
    rewind(f);
    /* Exactly as long as the text, so that a sanitizer sees any read past its end. */
    char *data = malloc(*len > 0 ? *len : 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *len, f), *len);
    fclose(f);
    return data;
}

static void test_json_reads_the_public_suite(void **state)
{
    (void)state;
    DIR *dir = opendir(JSON_DIR);
    if (dir == NULL) {
        print_message("SKIP: no test data at %s\n", JSON_DIR);
        skip();
    }
    size_t n_files = 0;
    size_t n_wrong = 0;
    struct dirent *entry;
    while ((entry = readdir(dir)) != NULL) {
        const char *name = entry->d_name;
        size_t n = strlen(name);
        if (n < 7 || strcmp(name + n - 5, ".json") != 0) {
            continue;
        }
        char path[1024];
        snprintf(path, sizeof(path), "%s/%s", JSON_DIR, name);
        size_t len;
        char *text = read_file(path, &len);
        json_t *value = NULL;
        struct td_err err = {0};
        enum td_status status = td_json_parse((struct td_str){text, len}, 1000, &value, &err);
        bool accepted = status == TD_OK;
        bool expected = name[0] == 'y' && !is_known_refusal(name);
        if (name[0] != 'i' && accepted != expected) {
            print_message("%s was %s\n", name, accepted ? "accepted" : "refused");
            n_wrong++;
        }
        assert_true(accepted == (value != NULL));
        assert_true(accepted || err.cause[0] != '\0');
        json_decref(value);
        free(text);
        n_files++;
    }
    closedir(dir);
    assert_true(n_files > 200);
    assert_int_equal(n_wrong, 0);
}

static void test_json_refuses_what_is_nested_too_deep(void **state)
{
    (void)state;
    char text[2 * TD_JSON_MAX_DEPTH + 3];
    size_t n = TD_JSON_MAX_DEPTH;
    memset(text, '[', n);
    memset(text + n, ']', n);
    json_t *value = NULL;
    struct td_err err = {0};
    assert_int_equal(td_json_parse((struct td_str){text, 2 * n}, 0, &value, &err), TD_OK);
    json_decref(value);
    n++;
    memset(text, '[', n);
    memset(text + n, ']', n);
    value = NULL;
    assert_int_equal(td_json_parse((struct td_str){text, 2 * n}, 0, &value, &err), TD_TOO_LARGE);
    assert_null(value);
    struct td_str brackets = TD_STR("\"[[[[[[\\\"[[[[\"");
    assert_int_equal(td_json_parse(brackets, 2, &value, &err), TD_OK);
    json_decref(value);
}

static void test_json_refuses_what_would_take_much_memory(void **state)
{
    (void)state;
    size_t n = 3 * 600000;
    char *text = malloc(n + 2);
    assert_non_null(text);
    text[0] = '[';
    for (size_t i = 0; i < n; i += 3) {
        memcpy(text + 1 + i, "[],", 3);
    }
    text[n] = ']';
    json_t *value = NULL;
    struct td_err err = {0};
    assert_int_equal(td_json_parse((struct td_str){text, n + 1}, 0, &value, &err), TD_TOO_LARGE);
    assert_null(value);
    free(text);
}

static void test_json_takes_the_last_of_equal_keys(void **state)
{
    (void)state;
    json_t *value = NULL;
    assert_int_equal(td_json_parse(TD_STR("{\"a\":1,\"a\":2}"), 0, &value, NULL), TD_OK);
    assert_int_equal(json_integer_value(json_object_get(value, "a")), 2);
    json_decref(value);
}

static void test_json_error_tells_the_place_and_not_the_text(void **state)
{
    (void)state;
    json_t *value = NULL;
    struct td_err err = {0};
    assert_int_equal(td_json_parse(TD_STR("{\"secret words\" 1}"), 0, &value, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "line 1"));
    assert_null(strstr(err.cause, "secret"));
    assert_int_equal(td_json_parse(TD_STR(""), 0, &value, &err), TD_INVALID);
    assert_int_equal(td_json_parse(TD_STR("1\0"), 0, &value, &err), TD_INVALID);
    assert_int_equal(td_json_parse(TD_STR("{}\0garbage"), 0, &value, &err), TD_INVALID);
}

static void check_string(const char *bytes, size_t n, const char *expected)
{
    struct td_bytes out = {0};
    assert_int_equal(td_json_append_string(&out, (struct td_str){bytes, n}), TD_OK);
    assert_string_equal(out.data, expected);
    json_t *value = NULL;
    assert_int_equal(td_json_parse(td_bytes_str(&out), 0, &value, NULL), TD_OK);
    json_decref(value);
    td_bytes_deinit(&out);
}

static void test_json_writes_any_bytes_as_a_valid_string(void **state)
{
    (void)state;
    check_string("", 0, "\"\"");
    check_string("a\"\\\n\r\t\x01\x7f", 8, "\"a\\\"\\\\\\n\\r\\t\\u0001\\u007f\"");
    check_string("\0", 1, "\"\\u0000\"");
    check_string("gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80", 11,
                 "\"gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80\"");
    check_string("x\xc3", 2, "\"x\xef\xbf\xbd\"");
    check_string("\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
    check_string("\xf0\x9f\x98", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
}

static void test_json_writes_random_bytes_that_read_back(void **state)
{
    (void)state;
    uint32_t seed = 12345;
    print_message("seed %u\n", seed);
    for (int round = 0; round < 2000; round++) {
        char bytes[64];
        for (size_t i = 0; i < sizeof(bytes); i++) {
            seed = seed * 1664525u + 1013904223u;
            bytes[i] = (char)(seed >> 24);
        }
        struct td_bytes out = {0};
        json_t *value = NULL;
        assert_int_equal(td_json_append_string(&out, (struct td_str){bytes, sizeof(bytes)}), TD_OK);
        assert_true(td_str_is_utf8(td_bytes_str(&out)));
        assert_int_equal(td_json_parse(td_bytes_str(&out), 0, &value, NULL), TD_OK);
        assert_true(json_is_string(value));
        json_decref(value);
        td_bytes_deinit(&out);
    }
}

static void test_json_writes_floats_that_read_back(void **state)
{
    (void)state;
    const float values[] = {0, -0.5f, -1.0e-7f, -23.456789f, 3.4e38f, 1.17549435e-38f};
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        struct td_bytes out = {0};
        assert_int_equal(td_json_append_float(&out, values[i]), TD_OK);
        assert_true(strtof(out.data, NULL) == values[i]);
        td_bytes_deinit(&out);
    }
    struct td_bytes out = {0};
    assert_int_equal(td_json_append_float(&out, -INFINITY), TD_OK);
    assert_string_equal(out.data, "-9999.0");
    td_bytes_deinit(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_reads_the_public_suite),
        cmocka_unit_test(test_json_refuses_what_is_nested_too_deep),
        cmocka_unit_test(test_json_refuses_what_would_take_much_memory),
        cmocka_unit_test(test_json_takes_the_last_of_equal_keys),
        cmocka_unit_test(test_json_error_tells_the_place_and_not_the_text),
        cmocka_unit_test(test_json_writes_any_bytes_as_a_valid_string),
        cmocka_unit_test(test_json_writes_random_bytes_that_read_back),
        cmocka_unit_test(test_json_writes_floats_that_read_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
