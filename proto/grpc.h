/* gRPC over HTTP/2 (nghttp2) on plain buffers: one connection, server or client side, and its
 * streams. Opens no socket, starts no thread and asks no clock: bytes and times are handed in.
 * One thread drives a connection and all its streams (the loop thread). Callbacks run inside
 * feed, pull, tick or close; they may call any td_grpc_stream_* function and td_grpc_drain, but
 * not feed, pull, tick or close of the same connection. */
#ifndef TD_PROTO_GRPC_H
#define TD_PROTO_GRPC_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"
#include "proto/grpc_code.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct td_grpc;        /* one connection */
struct td_grpc_stream; /* one call (or plain HTTP/2 request); valid until its on_close returned */

/* Every field has a default (td_grpc_limits_default). */
struct td_grpc_limits {
    size_t max_message_bytes;     /* of a received message, else RESOURCE_EXHAUSTED. 16 MiB */
    size_t max_queued_bytes;      /* sent and waiting in one stream, else TD_BUSY. 8 MiB */
    size_t drain_mark_bytes;      /* on_drain when the queue falls to this. 64 KiB */
    size_t max_header_list_bytes; /* metadata of a call, as RFC 9113 6.5.2 counts. 16 KiB */
    size_t max_http_body_bytes;   /* of a plain request (on_http), else 413. 1 MiB */
    uint32_t max_streams;         /* concurrent, server side. 256 */
    uint32_t window_bytes;        /* receive window of one stream. 256 KiB */
    uint32_t
        max_resets; /* client resets, and those it causes, in reset_window_ns, else closed. 500 */
    uint32_t max_control_frames; /* of a client beyond what was sent to it, the same. 2000 */
    uint64_t reset_window_ns;    /* 10 s */
    uint64_t
        header_limit_ns; /* server: for the whole headers of a call, else closed; 0: none. 10 s */
    uint64_t
        request_limit_ns; /* server: for a whole unary or plain request, else ended; 0: none. 300 s */
    uint64_t
        stall_limit_ns; /* server: in which a stream takes no byte that waits, else reset; 0: none. 30 s */
    uint64_t keepalive_ns;       /* silence after which a PING is sent; 0: never. 0 */
    uint64_t keepalive_limit_ns; /* silence after that PING which closes. 20 s */
    uint64_t drain_limit_ns;     /* a peer that ignores drain's PING gets the last GOAWAY. 1 s */
};

/* All may be NULL except on_call at a server. `user` is the connection's; a stream has its own
 * pointer. */
struct td_grpc_callbacks {
    /* Server: a call begins; metadata is readable. TD_OK accepts it. Anything else refuses it
     * with the code that td_grpc_code_from_status gives and err->cause as text (an unknown
     * method is TD_UNSUPPORTED); no other callback follows then. The answer may also be sent
     * from inside. */
    enum td_status (*on_call)(void *user, struct td_grpc_stream *s, struct td_str path,
                              struct td_err *err);
    /* Server: a complete request that is not gRPC. Answer with td_grpc_stream_http_reply, now or
     * later; on_close follows. Without this callback such a request is answered 415. Method and
     * path are borrowed until on_close, body until return. */
    void (*on_http)(void *user, struct td_grpc_stream *s, struct td_str method, struct td_str path,
                    struct td_str body);
    /* Client: the server's first headers came: the call was accepted. Metadata is readable. */
    void (*on_headers)(void *user, struct td_grpc_stream *s);
    /* One whole message, borrowed until return. Give `message.len` back with td_grpc_stream_ack
     * when it is dealt with (maybe at once): until then the peer gets no more window. */
    void (*on_message)(void *user, struct td_grpc_stream *s, struct td_str message);
    /* Server: the client sends no more messages. */
    void (*on_half_close)(void *user, struct td_grpc_stream *s);
    /* The queue of sent messages fell to the mark after it had been above it. */
    void (*on_drain)(void *user, struct td_grpc_stream *s);
    /* Exactly once for each accepted, plain or client call. Server: `code` is what was sent, or
     * CANCELLED when the client or the connection went away first. Client: the call's status;
     * text borrowed until return. */
    void (*on_close)(void *user, struct td_grpc_stream *s, enum td_grpc_code code,
                     struct td_str text);
    /* There is something to pull although no feed, pull or tick is running: schedule a pull. */
    void (*on_output)(void *user);
};

void td_grpc_limits_default(struct td_grpc_limits *limits);

/* `limits` may be NULL. Both are copied. *conn is owned by the caller. */
enum td_status td_grpc_server_open(const struct td_grpc_callbacks *callbacks,
                                   const struct td_grpc_limits *limits, void *user,
                                   struct td_grpc **conn, struct td_err *err);
enum td_status td_grpc_client_open(const struct td_grpc_callbacks *callbacks,
                                   const struct td_grpc_limits *limits, void *user,
                                   struct td_grpc **conn, struct td_err *err);
/* Ends every open stream through on_close (server CANCELLED, client UNAVAILABLE), then frees.
 * NULL is legal. */
void td_grpc_close(struct td_grpc *conn);

/* Bytes from the peer, any cut; all are taken. An error means that the connection is broken:
 * pull what is left, then close. A server's first bytes are the client preface "PRI *
 * HTTP/2.0...". */
enum td_status td_grpc_feed(struct td_grpc *conn, uint64_t now_ns, const void *data, size_t n_bytes,
                            struct td_err *err);
/* Fills `out` with at most `cap` bytes for the peer; returns how many, 0 when there is nothing
 * now. */
size_t td_grpc_pull(struct td_grpc *conn, void *out, size_t cap);
bool td_grpc_wants_write(const struct td_grpc *conn); /* pull would give bytes */
bool td_grpc_wants_close(
    const struct td_grpc *conn); /* nothing more will come or go: close the socket */
/* Deadlines, keepalive and drain. Call at td_grpc_next_tick_ns or later. */
void td_grpc_tick(struct td_grpc *conn, uint64_t now_ns);
uint64_t td_grpc_next_tick_ns(const struct td_grpc *conn); /* UINT64_MAX: none needed */
/* Server: GOAWAY. Running calls end normally, new ones are refused; wants_close follows the
 * last. */
void td_grpc_drain(struct td_grpc *conn);
void *td_grpc_user(const struct td_grpc *conn);
size_t td_grpc_n_streams(const struct td_grpc *conn); /* open */

/* One metadata pair; a name that ends in "-bin" has a binary value, encoded on the way.
 * Borrowed. */
struct td_grpc_meta {
    struct td_str name; /* lower case */
    struct td_str value;
};

struct td_grpc_call_params {
    struct td_str path;              /* "/tensord.worker.v1.Worker/Attach" */
    struct td_str authority;         /* "host:port"; empty: "localhost" */
    bool tls;                        /* scheme https */
    uint64_t timeout_ns;             /* sent as grpc-timeout and kept by tick; 0: none */
    const struct td_grpc_meta *meta; /* [n_meta], copied */
    size_t n_meta;
    void *user; /* the stream's */
};
/* Client: begins a call. `now_ns` is the base of the timeout. TD_UNAVAILABLE when the connection
 * is closing. */
enum td_status td_grpc_client_call(struct td_grpc *conn, uint64_t now_ns,
                                   const struct td_grpc_call_params *params,
                                   struct td_grpc_stream **s, struct td_err *err);
/* Client: no more messages will be sent. */
void td_grpc_stream_half_close(struct td_grpc_stream *s);

void td_grpc_stream_set_user(struct td_grpc_stream *s, void *user);
void *td_grpc_stream_user(const struct td_grpc_stream *s);
struct td_grpc *td_grpc_stream_conn(const struct td_grpc_stream *s);
/* The nth (0 first) value of a received metadata name; "-bin" values are decoded. Borrowed until
 * on_close. Server: of the request, also pseudo-headers such as ":authority". Client: of headers
 * and trailers. */
bool td_grpc_stream_metadata(const struct td_grpc_stream *s, const char *name, size_t nth,
                             struct td_str *value);
uint64_t td_grpc_stream_deadline_ns(
    const struct td_grpc_stream *s); /* 0: none. On tick's clock; tick enforces it */
/* Server, in on_call: exactly one request message is expected; a second, or none, ends the call. */
void td_grpc_stream_set_unary(struct td_grpc_stream *s);

/* Queues one message (copied). Never blocks. TD_BUSY: over max_queued_bytes, nothing was queued,
 * wait for on_drain (an empty queue takes a message of any size). TD_CANCELLED: the stream is
 * finished, half closed or reset. */
enum td_status td_grpc_stream_send(struct td_grpc_stream *s, struct td_str message,
                                   struct td_err *err);
/* A lower limit than the connection's max_message_bytes for what this stream receives. */
void td_grpc_stream_limit_message(struct td_grpc_stream *s, size_t max_bytes);
size_t td_grpc_stream_queued_bytes(const struct td_grpc_stream *s); /* not yet pulled */
void td_grpc_stream_ack(struct td_grpc_stream *s, size_t n_bytes);
/* Server: sends the response headers now, before any message, so that the client sees the call
 * accepted. */
void td_grpc_stream_start(struct td_grpc_stream *s);
/* Server: adds one trailing metadata pair (copied), before finish. TD_BUSY: over 8. */
enum td_status td_grpc_stream_add_trailer(struct td_grpc_stream *s, struct td_grpc_meta meta,
                                          struct td_err *err);
/* Server: the status, after what is queued. The first call counts; later ones do nothing.
 * Received messages are dropped from then on; on_close follows when the trailers are pulled. */
void td_grpc_stream_finish(struct td_grpc_stream *s, enum td_grpc_code code, struct td_str text);
/* Server: finish with the code and text of an error. */
void td_grpc_stream_fail(struct td_grpc_stream *s, const struct td_err *err);
/* Server: answers an on_http request, whole. `content_type` may be empty when there is no body. */
void td_grpc_stream_http_reply(struct td_grpc_stream *s, int http_status,
                               struct td_str content_type, struct td_str body);
/* Resets the stream now, either side; queued messages are lost. on_close (CANCELLED) follows. */
void td_grpc_stream_cancel(struct td_grpc_stream *s);

#endif
