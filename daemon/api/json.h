/* JSON in and out: a strict reader over jansson, by length, and a writer that appends to a byte buffer.
 * Pure; any thread. Knows no API. Everything that the writer emits is valid JSON and valid UTF-8. */
#ifndef TD_DAEMON_API_JSON_H
#define TD_DAEMON_API_JSON_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <jansson.h>

/* The second bounds memory, which may be a hundred times the text's: lists and objects count several times. */
enum { TD_JSON_MAX_DEPTH = 64, TD_JSON_MAX_VALUES = 1 << 21 };

/* Reads one JSON text (RFC 8259), any value at the top. Of equal keys the last wins. TD_INVALID names line and
 * column; TD_TOO_LARGE when nested deeper than `max_depth` (0: TD_JSON_MAX_DEPTH) or over
 * TD_JSON_MAX_VALUES. *value is returned owned (free
 * with json_decref). jansson limits: numbers outside int64 or double are refused, and so is NUL inside a key. */
enum td_status td_json_parse(struct td_str text, size_t max_depth, json_t **value,
                             struct td_err *err);

/* Appends `s` as a quoted JSON string; bytes that are not UTF-8 become U+FFFD. */
enum td_status td_json_append_string(struct td_bytes *out, struct td_str s);
/* Appends a number with the shortest of 9 digits; what JSON cannot write (infinities, NaN) becomes -9999, the
 * OpenAI API's stand-in for log(0). */
enum td_status td_json_append_float(struct td_bytes *out, float value);

/* Length of the well-formed UTF-8 character at the start of `s`; 0 when there is none. */
size_t td_json_utf8_length(struct td_str s);

#endif
