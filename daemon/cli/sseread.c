#include "daemon/cli/sseread.h"

#include <string.h>

void td_sseread_init(struct td_sseread *r, size_t max_bytes)
{
    *r = (struct td_sseread){.line.cap_limit = max_bytes, .data.cap_limit = max_bytes};
}

void td_sseread_reset(struct td_sseread *r)
{
    td_bytes_clear(&r->line);
    td_bytes_clear(&r->data);
    r->in_event = r->has_line = r->after_cr = r->past_start = false;
}

void td_sseread_deinit(struct td_sseread *r)
{
    td_bytes_deinit(&r->line);
    td_bytes_deinit(&r->data);
}

static enum td_status end_event(struct td_sseread *r, td_sseread_fn *fn, void *user)
{
    struct td_str data = td_bytes_str(&r->data);
    bool go_on = true;

    r->in_event = r->has_line = false;
    if (data.len > 0) {
        data.len--; /* the newline of its last line */
        go_on = fn(user, data, r->first_ns);
    }
    td_bytes_clear(&r->data);
    return go_on ? TD_OK : TD_CANCELLED;
}

/* A whole line without its end. Of the fields only "data" matters to who reads answers. */
static enum td_status take_line(struct td_sseread *r, struct td_str line, td_sseread_fn *fn,
                                void *user)
{
    struct td_str mark = TD_STR("\xef\xbb\xbf"), name = TD_STR("data");
    enum td_status s;

    if (!r->past_start && td_str_starts(line, mark))
        line = (struct td_str){line.ptr + mark.len, line.len - mark.len};
    r->past_start = true;
    if (line.len == 0)
        return end_event(r, fn, user);
    if (line.ptr[0] == ':') { /* a comment, which keeps a silent connection alive */
        r->in_event = r->has_line;
        return TD_OK;
    }
    r->has_line = true;
    if (!td_str_starts(line, name) || (line.len > name.len && line.ptr[name.len] != ':'))
        return TD_OK;
    line = (struct td_str){line.ptr + name.len, line.len - name.len};
    if (line.len > 0)
        line = (struct td_str){line.ptr + 1, line.len - 1};
    if (line.len > 0 && line.ptr[0] == ' ')
        line = (struct td_str){line.ptr + 1, line.len - 1};
    s = td_bytes_append_str(&r->data, line);
    return s ? s : td_bytes_append(&r->data, "\n", 1);
}

/* Bytes up to the first '\r' or '\n', or all. */
static size_t line_length(struct td_str bytes)
{
    const char *end = memchr(bytes.ptr, '\n', bytes.len);
    size_t n = end ? (size_t)(end - bytes.ptr) : bytes.len;
    const char *cr = memchr(bytes.ptr, '\r', n);

    return cr ? (size_t)(cr - bytes.ptr) : n;
}

enum td_status td_sseread_feed(struct td_sseread *r, struct td_str bytes, uint64_t now_ns,
                               td_sseread_fn *fn, void *user)
{
    enum td_status s = TD_OK;

    while (!s && bytes.len > 0) {
        size_t n;
        struct td_str piece;
        bool ended;

        if (r->after_cr) {
            r->after_cr = false;
            if (bytes.ptr[0] == '\n') {
                bytes = (struct td_str){bytes.ptr + 1, bytes.len - 1};
                continue;
            }
        }
        n = line_length(bytes);
        ended = n < bytes.len;
        piece = (struct td_str){bytes.ptr, n};
        if (n > 0 && !r->in_event) {
            r->in_event = true;
            r->first_ns = now_ns;
        }
        if (!ended || r->line.len > 0) {
            s = td_bytes_append_str(&r->line, piece);
            piece = td_bytes_str(&r->line);
        }
        if (!s && ended) {
            r->after_cr = bytes.ptr[n] == '\r';
            s = take_line(r, piece, fn, user);
            td_bytes_clear(&r->line);
        }
        n += ended;
        bytes = (struct td_str){bytes.ptr + n, bytes.len - n};
    }
    return s;
}
