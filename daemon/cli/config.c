#include "daemon/cli/config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <yaml.h>

enum { MAX_KEYS = 256, MAX_KEY_BYTES = 64 };

/* Where the event loop stands; the keys seen so far are kept to refuse a second one. */
struct reader {
    const char *path;
    td_config_fn *fn;
    void *user;
    bool in_map;
    bool in_list;
    bool has_key; /* a key was read, its value comes next */
    size_t n_items;
    size_t n_keys;
    char keys[MAX_KEYS][MAX_KEY_BYTES]; /* the last one is the current key */
};

static enum td_status refuse(const struct reader *r, const yaml_event_t *event, struct td_err *err,
                             const char *why)
{
    return td_err_set(err, TD_INVALID, "'%s' line %zu: %s", r->path, event->start_mark.line + 1,
                      why);
}

static enum td_status take_key(struct reader *r, const yaml_event_t *event, struct td_err *err)
{
    size_t len = event->data.scalar.length;
    const char *text = (const char *)event->data.scalar.value;

    if (len == 0 || len >= MAX_KEY_BYTES || strlen(text) != len)
        return refuse(r, event, err, "a key must have 1 to 63 bytes");
    if (r->n_keys == MAX_KEYS)
        return refuse(r, event, err, "more than 256 keys");
    for (size_t i = 0; i < r->n_keys; i++)
        if (strcmp(r->keys[i], text) == 0)
            return td_err_set(err, TD_INVALID, "'%s' line %zu: key '%s' occurs twice", r->path,
                              event->start_mark.line + 1, text);
    memcpy(r->keys[r->n_keys++], text, len + 1);
    r->has_key = true;
    return TD_OK;
}

static enum td_status take_value(struct reader *r, const yaml_event_t *event, struct td_err *err)
{
    const char *text = (const char *)event->data.scalar.value;
    bool plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;

    if (strlen(text) != event->data.scalar.length)
        return refuse(r, event, err, "a value holds a NUL byte");
    if (plain && (!*text || strcmp(text, "~") == 0 || strcmp(text, "null") == 0))
        return td_err_set(err, TD_INVALID, "'%s' line %zu: key '%s' has no value", r->path,
                          event->start_mark.line + 1, r->keys[r->n_keys - 1]);
    return r->fn(r->user, r->keys[r->n_keys - 1], text, event->start_mark.line + 1, err);
}

static enum td_status take_scalar(struct reader *r, const yaml_event_t *event, struct td_err *err)
{
    enum td_status status;

    if (event->data.scalar.anchor)
        return refuse(r, event, err, "anchors are not read here");
    if (r->in_list) {
        r->n_items++;
        return take_value(r, event, err);
    }
    if (!r->in_map)
        return event->data.scalar.length == 0
                   ? TD_OK /* only comments, or an explicit empty document */
                   : refuse(r, event, err, "expected a map, 'name: value' on each line");
    if (!r->has_key)
        return take_key(r, event, err);
    status = take_value(r, event, err);
    r->has_key = false;
    return status;
}

static enum td_status take_event(struct reader *r, const yaml_event_t *event, struct td_err *err)
{
    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        if (r->in_map || r->n_keys > 0)
            return refuse(r, event, err, "expected one document, found a second");
        return TD_OK;
    case YAML_MAPPING_START_EVENT:
        if (r->in_map || r->in_list)
            return refuse(r, event, err, "expected a flat map, found a map inside it");
        if (event->data.mapping_start.anchor)
            return refuse(r, event, err, "anchors are not read here");
        r->in_map = true;
        return TD_OK;
    case YAML_MAPPING_END_EVENT:
        r->in_map = false;
        return TD_OK;
    case YAML_SEQUENCE_START_EVENT:
        if (!r->in_map || !r->has_key || r->in_list)
            return refuse(r, event, err, "a list may only be the value of a key");
        r->in_list = true;
        r->n_items = 0;
        return TD_OK;
    case YAML_SEQUENCE_END_EVENT:
        if (r->n_items == 0)
            return refuse(r, event, err, "an empty list says nothing");
        r->in_list = r->has_key = false;
        return TD_OK;
    case YAML_ALIAS_EVENT:
        return refuse(r, event, err, "aliases are not read here");
    case YAML_SCALAR_EVENT:
        return take_scalar(r, event, err);
    default:
        return TD_OK;
    }
}

enum td_status td_config_parse(struct td_str text, const char *path, td_config_fn *fn, void *user,
                               struct td_err *err)
{
    struct reader r = {.path = path, .fn = fn, .user = user};
    enum td_status status = TD_OK;
    yaml_parser_t parser;
    bool ended = false;

    if (!yaml_parser_initialize(&parser))
        return td_err_set(err, TD_NO_MEMORY, "no memory to read '%s'", path);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text.ptr, text.len);
    while (status == TD_OK && !ended) {
        yaml_event_t event;

        if (!yaml_parser_parse(&parser, &event)) {
            status = td_err_set(err, TD_INVALID, "'%s' line %zu: no valid YAML: %s", path,
                                parser.problem_mark.line + 1,
                                parser.problem ? parser.problem : "unreadable");
            break;
        }
        ended = event.type == YAML_STREAM_END_EVENT;
        status = take_event(&r, &event, err);
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    return status;
}

enum td_status td_config_read(const char *path, td_config_fn *fn, void *user, struct td_err *err)
{
    struct td_bytes text = {0};
    enum td_status status = td_config_read_file(path, "--config", TD_CONFIG_MAX_BYTES, &text, err);

    if (status == TD_OK)
        status = td_config_parse(td_bytes_str(&text), path, fn, user, err);
    td_bytes_deinit(&text);
    return status;
}

enum td_status td_config_read_file(const char *path, const char *what, size_t max_bytes,
                                   struct td_bytes *out, struct td_err *err)
{
    enum td_status status = TD_OK;
    size_t start = out->len, n;
    char block[16384];
    FILE *file = fopen(path, "rb");

    if (!file)
        return td_err_set(err, errno == ENOENT ? TD_NOT_FOUND : TD_IO, "%s: cannot open '%s': %s",
                          what, path, strerror(errno));
    while ((n = fread(block, 1, sizeof block, file)) > 0) {
        if (n > max_bytes - (out->len - start)) {
            status = td_err_set(err, TD_TOO_LARGE, "%s: '%s' has more than %zu bytes", what, path,
                                max_bytes);
            break;
        }
        status = td_bytes_append(out, block, n);
        if (status != TD_OK) {
            td_err_set(err, status, "%s: no memory for '%s'", what, path);
            break;
        }
    }
    if (status == TD_OK && ferror(file))
        status = td_err_set(err, TD_IO, "%s: cannot read '%s': %s", what, path, strerror(errno));
    fclose(file);
    explicit_bzero(block, sizeof block);
    return status;
}

enum td_status td_config_read_keys(const char *path, const char *what, td_config_fn *fn, void *user,
                                   struct td_err *err)
{
    struct td_bytes text = {0};
    enum td_status status = td_config_read_file(path, what, TD_CONFIG_MAX_BYTES, &text, err);
    size_t line = 0, n_found = 0;
    char *p = text.data, *end = text.data ? text.data + text.len : NULL;

    while (status == TD_OK && p < end) {
        char *stop = memchr(p, '\n', (size_t)(end - p));
        char *next = stop ? stop + 1 : end;

        if (!stop)
            stop = end;
        line++;
        while (p < stop && (*p == ' ' || *p == '\t'))
            p++;
        while (stop > p && (stop[-1] == ' ' || stop[-1] == '\t' || stop[-1] == '\r'))
            stop--;
        for (char *c = p; c < stop && status == TD_OK; c++)
            if ((unsigned char)*c < 0x20 || *c == 0x7f)
                status = td_err_set(err, TD_INVALID, "%s: '%s' line %zu holds a control character",
                                    what, path, line);
        if (status == TD_OK && p < stop && *p != '#') {
            *stop = '\0'; /* at most data[len], which is a NUL of the buffer already */
            n_found++;
            status = fn(user, NULL, p, line, err);
        }
        p = next;
    }
    if (status == TD_OK && n_found == 0)
        status =
            td_err_set(err, TD_INVALID, "%s: '%s' holds no key, expected one per line", what, path);
    if (text.data)
        explicit_bzero(text.data, text.len);
    td_bytes_deinit(&text);
    return status;
}
