/* The state of one HTTP/1.1 connection. Private to http1.c (from bytes to requests) and http1_reply.c (from answers to
 * bytes). */
#ifndef TD_DAEMON_API_HTTP1_CONN_H
#define TD_DAEMON_API_HTTP1_CONN_H

#include "daemon/api/conn.h"
#include "daemon/api/http1_request.h"
#include "daemon/api/openai.h"

#include <llhttp.h>

enum td_http_state {
    TD_HTTP_HEAD = 0, /* collecting the request line and headers */
    TD_HTTP_BODY,
    TD_HTTP_RUNNING /* the handler has the request */
};

/* RFC 9112 line ends, watched byte by byte because llhttp lets some of it pass. */
struct td_http_head_scan {
    bool after_cr;
    size_t n_lines;
    size_t line_bytes;
};

struct td_http_conn {
    struct td_conn *c;
    const struct td_route_table *routes;
    llhttp_t parser;
    enum td_http_state state;
    struct td_bytes in;   /* read and not yet parsed */
    struct td_bytes head; /* of the request that is arriving */
    struct td_http_head_scan scan;
    struct td_http_request *req; /* from its complete head to the end of its answer */
    bool complete;               /* the parser reached the end of the message */
    bool is_refused;             /* `refusal` answers the request instead of its handler */
    bool is_broken;              /* after `refusal` nothing more can be parsed */
    struct td_openai_error refusal;
    size_t body_wire_bytes;
    uint64_t since_ms; /* when the present state began: first byte of a head, body, idling */
    uint64_t read_ms;  /* last byte of a body */
};

/* Frees the present request without an answer. */
void td_http_reply_drop(struct td_http_conn *h);
/* Writes one piece of a stream, whatever is queued. TD_CANCELLED once the connection is closing. */
enum td_status td_http_reply_piece(struct td_http_request *req, struct td_str data);

#endif
