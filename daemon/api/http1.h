/* HTTP/1.1 requests and their answers (RFC 9110, 9112): what a handler sees, and the protocol on top of a connection.
 * One request at a time per connection; a handler may answer at once or later. Loop thread only.
 *
 * A request lives until it is answered (td_http_respond*, td_http_stream_end) or until its on_close callback returned,
 * whichever is first; the handler keeps its pointer no longer than that. */
#ifndef TD_DAEMON_API_HTTP1_H
#define TD_DAEMON_API_HTTP1_H

#include "daemon/api/route.h"

struct td_http_request;
struct td_conn;
struct td_conn_ops;
struct td_openai_error;

typedef void (*td_http_notify_fn)(struct td_http_request *req, void *user);

/* ---- The request. Slices are borrowed for its life. ---- */
struct td_str td_http_method(const struct td_http_request *req);
struct td_str td_http_path(
    const struct td_http_request *req); /* decoded, without the query; may hold any byte but NUL */
struct td_str
td_http_tail(const struct td_http_request *req); /* what "*" of the route stands for; else empty */
/* The decoded value of a query parameter; false when it is absent. */
bool td_http_query(struct td_http_request *req, const char *name, struct td_str *value);
/* The first header of that name, in any case, trimmed; {NULL, 0} when absent. */
struct td_str td_http_header(const struct td_http_request *req, const char *name);
/* Which of the route's API keys the request brought, counted from 1; 0: the route is open. */
uint32_t td_http_key(const struct td_http_request *req);
struct td_str td_http_body(const struct td_http_request *req);
/* Moves the body to the caller (free with td_bytes_deinit), who may then use it on another thread and longer than the
 * request lives. */
void td_http_take_body(struct td_http_request *req, struct td_bytes *body);
const char *td_http_remote(const struct td_http_request *req); /* "127.0.0.1:4711" */

/* ---- The answer. Exactly one of td_http_respond, td_http_respond_error, td_http_stream_begin. ---- */

/* Called exactly once, from the loop, if the client goes away (or the server closes it) before the request is answered
 * whole; never after that and never from inside another call. The request ends when it returns. Set it from the handler
 * before the handler returns. Without it an unanswered request just ends. */
void td_http_on_close(struct td_http_request *req, td_http_notify_fn on_close, void *user);
/* Adds a header to the answer, before it begins. Names and values with control bytes are dropped, as are more than
 * 4 KiB in all. */
void td_http_set_header(struct td_http_request *req, const char *name, const char *value);

/* The whole answer. `content_type` NULL leaves it out. The request is over. */
void td_http_respond(struct td_http_request *req, int http_status, const char *content_type,
                     struct td_str body);
/* The whole answer in OpenAI's error form; 429 and 503 get Retry-After: 1 unless that header was set. The request is over. */
void td_http_respond_error(struct td_http_request *req, const struct td_openai_error *error);

/* Begins an answer in pieces (chunked). `on_drain` (may be NULL) is called when the write queue has fallen to half of
 * its cap after a write was answered TD_BUSY. */
void td_http_stream_begin(struct td_http_request *req, int http_status, const char *content_type,
                          td_http_notify_fn on_drain, void *user);
/* Queues one piece (copied). TD_BUSY: the queue is at its cap; nothing was queued, keep the piece and wait for
 * on_drain. TD_CANCELLED: the client is gone, on_close follows. */
enum td_status td_http_stream_write(struct td_http_request *req, struct td_str data);
/* Ends the answer, the second after one last piece; always accepted. The request is over. */
void td_http_stream_end(struct td_http_request *req);
void td_http_stream_end_with(struct td_http_request *req, struct td_str last);
/* Cuts the connection in the middle of the answer, so that the client sees it as incomplete. on_close follows. */
void td_http_stream_abort(struct td_http_request *req);
/* For sse.c: after `ping_ms` of silence `ping` is written by itself (static text; empty: none). */
void td_http_stream_set_ping(struct td_http_request *req, struct td_str ping);

/* ---- For conn.c ---- */
enum td_status td_http_conn_open(struct td_conn *c, const struct td_route_table *routes,
                                 const struct td_conn_ops **ops, void **upper, struct td_err *err);

#endif
