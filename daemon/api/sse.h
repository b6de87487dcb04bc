/* Server-sent events (WHATWG HTML, section 9.2) on an HTTP/1.1 answer. Loop thread only. */
#ifndef TD_DAEMON_API_SSE_H
#define TD_DAEMON_API_SSE_H

#include "daemon/api/http1.h"

/* Begins the event stream: 200, text/event-stream, no caching or proxy buffering, a comment as ping in silence.
 * `on_drain` as in td_http_stream_begin. */
void td_sse_begin(struct td_http_request *req, td_http_notify_fn on_drain, void *user);
/* One event; line breaks in `data` make several data lines. TD_OK, TD_BUSY (nothing was queued) or TD_CANCELLED. */
enum td_status td_sse_event(struct td_http_request *req, struct td_str data);
/* The same under an id, by which a client that comes back says what it has; no line breaks in it, empty: none. */
enum td_status td_sse_event_with_id(struct td_http_request *req, struct td_str id,
                                    struct td_str data);
/* The event "[DONE]" and the end of the answer; always accepted. The request is over. */
void td_sse_done(struct td_http_request *req);

#endif
