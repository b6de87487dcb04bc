#include "daemon/api/openai_parse.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool td_openai_parse_fail(struct td_openai_parser *p, const char *param, const char *code,
                          const char *fmt, ...)
{
    char text[sizeof(p->e->message)];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    td_openai_error_set(p->e, 400, "invalid_request_error", code, param, "%s", text);
    return false;
}

bool td_openai_parse_fail_memory(struct td_openai_parser *p)
{
    td_openai_error_set(p->e, 503, "service_unavailable_error", "no_memory", NULL,
                        "No memory for this request: try again later.");
    return false;
}

bool td_openai_parse_fail_type(struct td_openai_parser *p, const char *param, const json_t *value,
                               const char *expected)
{
    static const char *const names[] = {"an object", "a list",    "a string",  "an integer",
                                        "a number",  "a boolean", "a boolean", "null"};
    return td_openai_parse_fail(p, param, "invalid_type",
                                "Invalid type for '%s': expected %s, got %s.", param, expected,
                                names[json_typeof(value)]);
}

bool td_openai_parse_unsupported(struct td_openai_parser *p, const char *param, const char *what)
{
    return td_openai_parse_fail(p, param, "unsupported_parameter",
                                "'%s' %s: this is not supported by this server yet.", param, what);
}

/* A field that is present and not null; null counts as absent, as the API's nullable fields want. */
const json_t *td_openai_parse_field(const struct td_openai_parser *p, const char *name)
{
    const json_t *value = json_object_get(p->root, name);
    return value == NULL || json_is_null(value) ? NULL : value;
}

bool td_openai_parse_copy(struct td_openai_parser *p, const json_t *value, struct td_str *out)
{
    size_t n = json_string_length(value);
    char *text = td_arena_strndup(&p->req->arena, json_string_value(value), n);
    if (text == NULL) {
        return td_openai_parse_fail_memory(p);
    }
    *out = (struct td_str){text, n};
    return true;
}

bool td_openai_parse_bool(struct td_openai_parser *p, const char *name, bool *out)
{
    const json_t *value = td_openai_parse_field(p, name);
    if (value == NULL) {
        return true;
    }
    if (!json_is_boolean(value)) {
        return td_openai_parse_fail_type(p, name, value, "a boolean");
    }
    *out = json_is_true(value);
    return true;
}

/* Integers may be written as 16.0, as some clients do. */
bool td_openai_parse_integer_of(const json_t *value, int64_t *out)
{
    if (json_is_integer(value)) {
        *out = json_integer_value(value);
        return true;
    }
    if (json_is_real(value)) {
        double d = json_real_value(value);
        if (d == floor(d) && fabs(d) <= 9007199254740992.0) {
            *out = (int64_t)d;
            return true;
        }
    }
    return false;
}

bool td_openai_parse_int(struct td_openai_parser *p, const char *name, int64_t low, int64_t high,
                         bool *present, int64_t *out)
{
    const json_t *value = td_openai_parse_field(p, name);
    *present = false;
    if (value == NULL) {
        return true;
    }
    int64_t n;
    if (!td_openai_parse_integer_of(value, &n)) {
        return td_openai_parse_fail_type(p, name, value, "an integer");
    }
    if (n < low || n > high) {
        return td_openai_parse_fail(
            p, name, "invalid_value",
            "Invalid value for '%s': %lld, expected an integer from %lld to %lld.", name,
            (long long)n, (long long)low, (long long)high);
    }
    *present = true;
    *out = n;
    return true;
}

bool td_openai_parse_float(struct td_openai_parser *p, const char *name, double low, double high,
                           bool open_low, float *out)
{
    const json_t *value = td_openai_parse_field(p, name);
    if (value == NULL) {
        return true;
    }
    if (!json_is_number(value)) {
        return td_openai_parse_fail_type(p, name, value, "a number");
    }
    double d = json_number_value(value);
    /* What underflows to 0 in F32 would break an open lower bound only after this check. */
    if (!(d >= low && d <= high) || (open_low && !((float)d > (float)low))) {
        return td_openai_parse_fail(
            p, name, "invalid_value",
            "Invalid value for '%s': %g, expected a number %s %g and at most %g.", name, d,
            open_low ? "above" : "of at least", low, high);
    }
    *out = (float)d;
    return true;
}

/* One token id; ids are checked against the vocabulary later, by who knows it. */
bool td_openai_parse_id(struct td_openai_parser *p, const json_t *value, const char *param,
                        uint32_t *out)
{
    int64_t n;
    if (!td_openai_parse_integer_of(value, &n)) {
        return td_openai_parse_fail_type(p, param, value, "a token id");
    }
    if (n < 0 || n > INT32_MAX) {
        return td_openai_parse_fail(p, param, "invalid_value",
                                    "Invalid value for '%s': %lld is no token id.", param,
                                    (long long)n);
    }
    *out = (uint32_t)n;
    return true;
}

bool td_openai_parse_text_is(const json_t *value, const char *a, const char *b)
{
    const char *text = json_string_value(value);
    return text != NULL && (strcmp(text, a) == 0 || (b != NULL && strcmp(text, b) == 0));
}
