/* The request object behind http1.h: its fields, how its target is split, and how the head of its answer is written.
 * Private to http1*.c. Plain text work; knows no socket. */
#ifndef TD_DAEMON_API_HTTP1_REQUEST_H
#define TD_DAEMON_API_HTTP1_REQUEST_H

#include "daemon/api/http1.h"
#include "kernels/base/arena.h"

enum { TD_HTTP_MAX_HEADERS = 100, TD_HTTP_MAX_EXTRA_BYTES = 4096 };

struct td_http_conn;

struct td_http_header_field {
    struct td_str name;
    struct td_str value;
    bool has_value; /* the value began, maybe empty */
};

struct td_http_request {
    struct td_http_conn *owner;
    struct td_bytes head; /* as received; url and headers point into it */
    struct td_str method; /* static text */
    struct td_str url;
    struct td_bytes path;  /* decoded */
    struct td_str query;   /* raw, without '?' */
    struct td_arena arena; /* decoded query values */
    int http_minor;
    size_t n_headers;
    struct td_http_header_field headers[TD_HTTP_MAX_HEADERS];
    struct td_bytes body;
    size_t reserved_bytes; /* of the pool's account */
    const struct td_route *route;
    bool keep_alive;
    bool is_head;
    bool is_options;
    bool expects_continue;
    bool is_dispatched; /* the handler was called */
    bool is_streaming;  /* td_http_stream_begin was called */
    bool is_chunked;
    bool wants_drain;      /* a write was answered TD_BUSY */
    struct td_bytes extra; /* header lines of the answer */
    struct td_str ping;
    uint64_t last_write_ms;
    td_http_notify_fn on_close;
    void *on_close_user;
    td_http_notify_fn on_drain;
    void *on_drain_user;
};

/* Takes the bytes of `head` (which is left empty). NULL without memory. */
struct td_http_request *td_http_request_new(struct td_http_conn *owner, struct td_bytes *head);
void td_http_request_free(struct td_http_request *req);
/* How often a header occurs; whether the first of that name equals `value` but for case. */
size_t td_http_request_count(const struct td_http_request *req, const char *name);
bool td_http_request_value_is(const struct td_http_request *req, const char *name,
                              const char *value);
/* False when a header name is no token (RFC 9110 5.1) or a value or the target holds control bytes or spaces that may not
 * be there: llhttp, as Debian builds it, lets some of that pass. The url must not be empty. */
bool td_http_request_is_clean(const struct td_http_request *req);
/* Splits url into path and query and decodes the path; false when it is malformed. */
enum td_status td_http_request_split_url(struct td_http_request *req);
/* The answer to a CORS preflight, when the request is one and `origin` allows it. */
void td_http_request_add_preflight(struct td_http_request *req, const char *origin,
                                   const char *methods);
/* Appends status line and headers. `length` SIZE_MAX: chunked or until close, as the request's fields say. */
enum td_status td_http_request_format_head(const struct td_http_request *req, int http_status,
                                           const char *content_type, size_t length,
                                           const char *cors_origin, struct td_bytes *out);

#endif
