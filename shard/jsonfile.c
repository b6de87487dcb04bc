#include "shard/jsonfile.h"

#include "shard/jsonalloc.h"

enum td_status td_jsonfile_parse(struct td_str text, const char *what, size_t max_bytes,
                                 enum td_jsonfile_mode mode, json_t **root, struct td_err *err)
{
    size_t flags = mode == TD_JSONFILE_STRICT ? JSON_REJECT_DUPLICATES : JSON_DECODE_INT_AS_REAL;
    json_error_t why;
    json_t *value;

    if (text.len > max_bytes)
        return td_err_set(err, TD_TOO_LARGE, "%s has %zu bytes; expected at most %zu", what,
                          text.len, max_bytes);
    value = td_jsonalloc_parse(text, flags, &why);
    if (!value) {
        if (json_error_code(&why) == json_error_out_of_memory)
            return td_err_set(err, TD_NO_MEMORY, "no memory to parse %s", what);
        for (char *p = why.text; *p; p++) /* it quotes the text */
            if ((unsigned char)*p < 0x20 || (unsigned char)*p > 0x7e)
                *p = '?';
        return td_err_set(err, TD_CORRUPT, "%s, line %d, column %d: %s", what, why.line, why.column,
                          why.text);
    }
    if (!json_is_object(value)) {
        td_err_set(err, TD_CORRUPT, "%s is %s; expected a JSON object", what,
                   td_jsonfile_type_name(value));
        json_decref(value);
        return TD_CORRUPT;
    }
    *root = value;
    return TD_OK;
}

const char *td_jsonfile_type_name(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    case JSON_NULL:
        break;
    }
    return "null";
}

bool td_jsonfile_is_printable(struct td_str s)
{
    for (size_t i = 0; i < s.len; i++)
        if ((unsigned char)s.ptr[i] < 0x20 || (unsigned char)s.ptr[i] == 0x7f)
            return false;
    return td_str_is_utf8(s);
}
