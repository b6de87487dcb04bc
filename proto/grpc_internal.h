/* What grpc.c, grpc_stream.c, grpc_server.c and grpc_client.c share: the connection and the
 * stream as they are. Included by nobody else. */
#ifndef TD_PROTO_GRPC_INTERNAL_H
#define TD_PROTO_GRPC_INTERNAL_H

#include "proto/grpc.h"
#include "proto/grpc_frame.h"
#include "proto/grpc_meta.h"

#include <nghttp2/nghttp2.h>

enum { TD_GRPC_MAX_TRAILERS = 8, TD_GRPC_MAX_TEXT_BYTES = 1024 };

enum td_grpc_kind {
    TD_GRPC_KIND_NEW,  /* server: headers are not whole yet */
    TD_GRPC_KIND_CALL, /* gRPC */
    TD_GRPC_KIND_HTTP  /* server: a plain request */
};

struct td_grpc_stream {
    struct td_grpc *conn;
    struct td_grpc_stream *prev, *next; /* in conn->streams */
    void *user;
    int32_t id; /* HTTP/2 stream id */
    enum td_grpc_kind kind;
    struct td_grpc_meta_list meta;
    enum td_status meta_status; /* first error of a received pair */
    struct td_err meta_err;
    uint64_t deadline_ns; /* 0: none */
    uint64_t begun_ns;    /* when its headers began to come */
    uint64_t moved_ns;    /* when the peer last took a byte, or found none waiting */

    struct td_grpc_frame in; /* CALL */
    struct td_bytes body;    /* HTTP: request body */
    size_t unacked_bytes;    /* given to on_message and not acknowledged */
    size_t owed_bytes;       /* received and not yet given back to the peer's window */
    uint32_t n_messages;

    struct td_bytes out; /* framed messages, or an HTTP reply */
    size_t out_at;       /* bytes of out that were pulled */

    enum td_grpc_code code; /* server: to be sent; client: decided here (has_code) */
    char text[TD_GRPC_MAX_TEXT_BYTES];
    size_t text_len;
    struct td_bytes trailer_text; /* names and values, one after the other */
    size_t n_trailers;
    size_t trailer_bytes[TD_GRPC_MAX_TRAILERS][2]; /* of name and value */

    bool accepted;     /* on_close is owed */
    bool unary;        /* exactly one request message */
    bool remote_ended; /* END_STREAM came */
    bool dropping;     /* received bytes are not looked at any more */
    bool headers_sent; /* submitted */
    bool ended;        /* nothing may be queued any more: finished, half closed or reset */
    bool sent_end;     /* server: END_STREAM went out */
    bool reset;        /* RST_STREAM was submitted here */
    bool deferred;     /* the data provider waits for more */
    bool above_mark;   /* on_drain is owed when the queue falls */
    bool want_drain;   /* on_drain is due after this frame */
    bool has_code;     /* client: code and text were decided on this side */
    bool got_headers;  /* client: the final response headers came */
    int http_status;   /* client */
};

struct td_grpc {
    struct td_grpc_callbacks cb;
    struct td_grpc_limits limits;
    void *user;
    nghttp2_session *session;
    struct td_grpc_stream *streams;
    size_t n_streams;
    bool is_server;

    const uint8_t *pending; /* a chunk of nghttp2 that is not yet pulled whole */
    size_t n_pending;

    uint64_t now_ns;          /* last told */
    uint64_t heard_ns;        /* when the peer last sent anything */
    uint64_t ping_sent_ns;    /* keepalive PING on its way; 0: none */
    uint64_t drain_sent_ns;   /* first GOAWAY of a drain */
    uint64_t resets_since_ns; /* start of the counting window */
    uint32_t n_resets;
    uint32_t n_control; /* frames that cost the peer little, beyond what it was sent, since then */
    uint32_t n_want_drain; /* streams with want_drain */
    int depth;             /* inside feed, pull, tick, close */
    bool output_told;      /* on_output was called since the last pull */
    bool draining;
    bool drained; /* the last GOAWAY is submitted */
    bool broken;  /* the session cannot go on */
    bool silent;  /* keepalive found no peer */
    bool calmed;  /* told to calm down: what it still sends is not looked at */
};

/* grpc.c */
void td_grpc_note_output(struct td_grpc *conn);
enum td_status td_grpc_open(bool is_server, const struct td_grpc_callbacks *callbacks,
                            const struct td_grpc_limits *limits, void *user, struct td_grpc **conn,
                            struct td_err *err);

/* grpc_stream.c */
struct td_grpc_stream *td_grpc_stream_new(struct td_grpc *conn, int32_t id);
void td_grpc_stream_free(struct td_grpc_stream *s);
void td_grpc_stream_set_text(struct td_grpc_stream *s, enum td_grpc_code code, struct td_str text);
/* Received body bytes. */
void td_grpc_stream_take(struct td_grpc_stream *s, struct td_str data);
/* The received side is given up: what comes is thrown away and its window given back. */
void td_grpc_stream_drop_input(struct td_grpc_stream *s);
void td_grpc_stream_resume(struct td_grpc_stream *s);
ssize_t td_grpc_stream_read(nghttp2_session *session, int32_t id, uint8_t *buf, size_t cap,
                            uint32_t *flags, nghttp2_data_source *source, void *user);
/* Ends the call because of an error in what was received: server finishes, client resets. */
void td_grpc_stream_refuse(struct td_grpc_stream *s, enum td_grpc_code code, struct td_str text);

/* grpc_server.c */
void td_grpc_server_begin(struct td_grpc_stream *s); /* headers are whole */
void td_grpc_server_end(struct td_grpc_stream *s);   /* END_STREAM came */
void td_grpc_server_submit_trailer(struct td_grpc_stream *s);
void td_grpc_server_expire(struct td_grpc_stream *s); /* the deadline passed */
void td_grpc_server_late(struct td_grpc_stream *s);   /* the request did not come in time */
void td_grpc_server_closed(struct td_grpc_stream *s); /* calls on_close if it is owed */

/* grpc_client.c */
void td_grpc_client_headers(struct td_grpc_stream *s, bool end);
void td_grpc_client_expire(struct td_grpc_stream *s);
void td_grpc_client_closed(struct td_grpc_stream *s, bool conn_gone, uint32_t h2_error);

#endif
