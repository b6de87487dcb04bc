#include "daemon/cli/loadtrace.h"

#include "daemon/api/json.h"
#include "daemon/cli/load.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { READ_BYTES = 1 << 16 };

static enum td_status line_error(size_t line, const char *what, struct td_err *err)
{
    return td_err_set(err, TD_INVALID,
                      "line %zu: %s: expected {\"timestamp\": MILLISECONDS, \"input_length\": N or "
                      "\"prompt\": TEXT, \"output_length\": N}",
                      line, what);
}

/* A whole number of tokens, 1 to TD_LOAD_MAX_TOKENS. */
static bool read_length(const json_t *object, const char *key, uint32_t *out)
{
    const json_t *value = json_object_get(object, key);
    json_int_t n = json_integer_value(value);

    if (!json_is_integer(value) || n < 1 || n > TD_LOAD_MAX_TOKENS)
        return false;
    *out = (uint32_t)n;
    return true;
}

static enum td_status read_blocks(const json_t *object, size_t line, struct td_loadtrace_row *row,
                                  struct td_err *err)
{
    const json_t *ids = json_object_get(object, "hash_ids");
    size_t n = json_array_size(ids), covered = n * TD_LOADTRACE_BLOCK_TOKENS;

    if (!ids || row->prompt)
        return TD_OK;
    /* Published traces have a length that ends within the last block. */
    if (!json_is_array(ids) || covered < row->n_input ||
        covered - row->n_input >= TD_LOADTRACE_BLOCK_TOKENS)
        return line_error(line, "hash_ids is no list of one number per 512 tokens of input_length",
                          err);
    row->blocks = calloc(n, sizeof *row->blocks);
    if (!row->blocks)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the trace");
    for (size_t i = 0; i < n; i++) {
        json_int_t id = json_integer_value(json_array_get(ids, i));

        if (!json_is_integer(json_array_get(ids, i)) || id < 0 || id > UINT32_MAX)
            return line_error(line, "hash_ids holds what is no number from 0 to 2^32-1", err);
        row->blocks[i] = (uint32_t)id;
    }
    row->n_blocks = (uint32_t)n;
    return TD_OK;
}

static enum td_status read_row(const json_t *object, size_t line, struct td_loadtrace_row *row,
                               struct td_err *err)
{
    const json_t *time = json_object_get(object, "timestamp");
    const json_t *prompt = json_object_get(object, "prompt");

    if (!json_is_object(object))
        return line_error(line, "it is no object", err);
    row->at_s = json_number_value(time) * 1e-3;
    if (!json_is_number(time) || !(row->at_s >= 0.0 && row->at_s <= 1e9))
        return line_error(line, "timestamp is no time", err);
    if (!read_length(object, "output_length", &row->n_output))
        return line_error(line, "output_length is no length", err);
    if (prompt) {
        if (!json_is_string(prompt) || json_string_length(prompt) == 0 ||
            strlen(json_string_value(prompt)) != json_string_length(prompt))
            return line_error(line, "prompt is no text", err);
        row->prompt = strdup(json_string_value(prompt));
        if (!row->prompt)
            return td_err_set(err, TD_NO_MEMORY, "no memory for the trace");
    } else if (!read_length(object, "input_length", &row->n_input)) {
        return line_error(line, "input_length is no length, and there is no prompt", err);
    }
    return read_blocks(object, line, row, err);
}

static enum td_status read_line(struct td_loadtrace *t, struct td_str text, size_t line,
                                size_t *cap, struct td_err *err)
{
    struct td_loadtrace_row *wider;
    json_t *object = NULL;
    enum td_status s;

    if (t->n_rows == TD_LOADTRACE_MAX_ROWS)
        return td_err_set(err, TD_TOO_LARGE, "it has more than %d requests", TD_LOADTRACE_MAX_ROWS);
    if (t->n_rows == *cap) {
        *cap = *cap ? 2 * *cap : 64;
        wider = realloc(t->rows, *cap * sizeof *wider);
        if (!wider)
            return td_err_set(err, TD_NO_MEMORY, "no memory for the trace");
        t->rows = wider;
    }
    if (text.len > TD_LOADTRACE_MAX_LINE_BYTES)
        return line_error(line, "it is too long", err);
    s = td_json_parse(text, 0, &object, err);
    if (s == TD_NO_MEMORY)
        return s;
    if (s)
        return line_error(line, "it is no JSON", err);
    t->rows[t->n_rows] = (struct td_loadtrace_row){0};
    t->n_rows++;
    s = read_row(object, line, &t->rows[t->n_rows - 1], err);
    json_decref(object);
    if (!s && t->n_rows > 1 && t->rows[t->n_rows - 1].at_s < t->rows[t->n_rows - 2].at_s)
        s = line_error(line, "timestamp is before that of the line above", err);
    return s;
}

static bool is_blank(struct td_str s)
{
    for (size_t i = 0; i < s.len; i++)
        if (!strchr(" \t\r", s.ptr[i]) || !s.ptr[i])
            return false;
    return true;
}

enum td_status td_loadtrace_parse(struct td_str text, struct td_loadtrace **out, struct td_err *err)
{
    struct td_loadtrace *t = calloc(1, sizeof *t);
    size_t line = 0, cap = 0;
    enum td_status s = t ? TD_OK : td_err_set(err, TD_NO_MEMORY, "no memory for the trace");

    while (!s && text.len > 0) {
        const char *end = memchr(text.ptr, '\n', text.len);
        size_t n = end ? (size_t)(end - text.ptr) : text.len;
        struct td_str row = {text.ptr, n};

        line++;
        n += end != NULL;
        text = (struct td_str){text.ptr + n, text.len - n};
        if (!is_blank(row))
            s = read_line(t, row, line, &cap, err);
    }
    if (!s && t->n_rows == 0)
        s = td_err_set(err, TD_INVALID, "it holds no request");
    if (s) {
        td_loadtrace_close(t);
        return s;
    }
    for (size_t i = t->n_rows; i-- > 0;)
        t->rows[i].at_s -= t->rows[0].at_s;
    *out = t;
    return TD_OK;
}

enum td_status td_loadtrace_open(const char *path, struct td_loadtrace **out, struct td_err *err)
{
    FILE *f = fopen(path, "re");
    struct td_bytes text = {0};
    char piece[READ_BYTES];
    size_t n;
    enum td_status s = TD_OK;

    if (!f)
        return td_err_set(err, errno == ENOENT ? TD_NOT_FOUND : TD_IO,
                          "the trace '%.160s' cannot be read: %s", path, strerror(errno));
    while (!s && (n = fread(piece, 1, sizeof piece, f)) > 0)
        s = td_bytes_append(&text, piece, n);
    if (s)
        s = td_err_set(err, s, "no memory for the trace");
    else if (ferror(f))
        s = td_err_set(err, TD_IO, "it cannot be read: %s", strerror(errno));
    fclose(f);
    s = s ? s : td_loadtrace_parse(td_bytes_str(&text), out, err);
    td_bytes_deinit(&text);
    if (s)
        td_err_context(err, "trace '%.120s'", path);
    return s;
}

void td_loadtrace_close(struct td_loadtrace *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n_rows; i++) {
        free(t->rows[i].prompt);
        free(t->rows[i].blocks);
    }
    free(t->rows);
    free(t);
}
