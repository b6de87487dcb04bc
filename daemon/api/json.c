#include "daemon/api/json.h"

#include "shard/jsonalloc.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* What a text costs before it is parsed: jansson recurses per level, and a container of two bytes takes it a hundred. */
struct shape {
    size_t depth;
    size_t n_values; /* about: a container counts as four, a member of an object as three */
};

static struct shape measure(struct td_str text)
{
    struct shape s = {0, 1};
    size_t depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.len; i++) {
        char c = text.ptr[i];
        if (in_string) {
            if (c == '\\') {
                i++;
            } else if (c == '"') {
                in_string = false;
            }
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            s.n_values += 4;
            depth++;
            s.depth = depth > s.depth ? depth : s.depth;
        } else if ((c == ']' || c == '}') && depth > 0) {
            depth--;
        } else if (c == ',') {
            s.n_values++;
        } else if (c == ':') {
            s.n_values += 2;
        }
    }
    return s;
}

enum td_status td_json_parse(struct td_str text, size_t max_depth, json_t **value,
                             struct td_err *err)
{
    if (max_depth == 0) {
        max_depth = TD_JSON_MAX_DEPTH;
    }
    if (text.len == 0) {
        return td_err_set(err, TD_INVALID, "the JSON text is empty");
    }
    const char *nul = memchr(text.ptr, '\0', text.len);
    if (nul !=
        NULL) { /* jansson takes one for the end of the text and would pass over what follows */
        return td_err_set(err, TD_INVALID, "not valid JSON: byte %zu is a NUL",
                          (size_t)(nul - text.ptr));
    }
    struct shape shape = measure(text);
    if (shape.depth > max_depth) {
        return td_err_set(err, TD_TOO_LARGE, "JSON is nested %zu levels deep, expected at most %zu",
                          shape.depth, max_depth);
    }
    if (shape.n_values > TD_JSON_MAX_VALUES) {
        return td_err_set(err, TD_TOO_LARGE, "JSON holds about %zu values, expected at most %d",
                          shape.n_values, TD_JSON_MAX_VALUES);
    }
    json_error_t why;
    json_t *root = td_jsonalloc_parse(text, JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
    if (root == NULL) {
        if (json_error_code(&why) == json_error_out_of_memory) {
            return td_err_set(err, TD_NO_MEMORY, "no memory for %zu bytes of JSON", text.len);
        }
        /* jansson's text quotes a piece of the input, which may be part of a prompt: only the place is told. */
        return td_err_set(err, TD_INVALID, "not valid JSON at line %d, column %d (byte %d)",
                          why.line, why.column, why.position);
    }
    *value = root;
    return TD_OK;
}

size_t td_json_utf8_length(struct td_str s)
{
    if (s.len == 0) {
        return 0;
    }
    unsigned char first = (unsigned char)s.ptr[0];
    size_t n = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    if (n == 0 || n > s.len || !td_str_is_utf8((struct td_str){s.ptr, n})) {
        return 0;
    }
    return n;
}

static enum td_status append_escaped(struct td_bytes *out, unsigned char c)
{
    switch (c) {
    case '"':
        return td_bytes_append(out, "\\\"", 2);
    case '\\':
        return td_bytes_append(out, "\\\\", 2);
    case '\n':
        return td_bytes_append(out, "\\n", 2);
    case '\r':
        return td_bytes_append(out, "\\r", 2);
    case '\t':
        return td_bytes_append(out, "\\t", 2);
    default:
        return td_bytes_appendf(out, "\\u%04x", c);
    }
}

enum td_status td_json_append_string(struct td_bytes *out, struct td_str s)
{
    enum td_status status = td_bytes_append(out, "\"", 1);
    size_t start = 0; /* of the run that needs no escape */
    size_t i = 0;
    while (status == TD_OK && i < s.len) {
        unsigned char c = (unsigned char)s.ptr[i];
        if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') {
            i++;
            continue;
        }
        size_t n = c < 0x80 ? 0 : td_json_utf8_length((struct td_str){s.ptr + i, s.len - i});
        if (n > 0) {
            i += n;
            continue;
        }
        if (i > start) {
            status = td_bytes_append(out, s.ptr + start, i - start);
        }
        if (status == TD_OK) {
            status = c < 0x80 ? append_escaped(out, c) : td_bytes_append(out, "\xef\xbf\xbd", 3);
        }
        start = ++i;
    }
    if (status == TD_OK && i > start) {
        status = td_bytes_append(out, s.ptr + start, i - start);
    }
    return status == TD_OK ? td_bytes_append(out, "\"", 1) : status;
}

enum td_status td_json_append_float(struct td_bytes *out, float value)
{
    if (!isfinite(value)) {
        return td_bytes_append(out, "-9999.0", 7);
    }
    char text[40];
    snprintf(text, sizeof(text), "%.9g", (double)value);
    char *comma = strchr(text, ','); /* the decimal point of some locales */
    if (comma != NULL) {
        *comma = '.';
    }
    return td_bytes_append(out, text, strlen(text));
}
