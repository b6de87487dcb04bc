/* Accepted connections: bytes between a socket and the protocol above it, with TLS in between where it is configured.
 * A connection starts by looking at its first bytes: TLS, then gRPC (HTTP/2) or HTTP/1.1. Owns the socket, the write
 * queue, the deadlines and the connection cap; knows no request. Loop thread only, nothing blocks. */
#ifndef TD_DAEMON_API_CONN_H
#define TD_DAEMON_API_CONN_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <uv.h>

struct td_conn;
struct td_conn_pool; /* all connections of one loop, over all its listeners */
struct td_tls;
struct td_route_table;
struct td_grpc_serve_table;

/* Limits of the connection layer; every one has a default (td_conn_config_default). */
struct td_conn_config {
    uint32_t max_connections; /* over it: 503 and close. 1024 */
    uint32_t
        max_per_address; /* of those from one address (addrcount.h): 429 and close. 0: no limit */
    uint32_t header_timeout_ms; /* TLS handshake, and request head from its first byte. 10 s */
    uint32_t body_idle_ms;      /* longest silence within a body. 30 s */
    uint32_t body_total_ms;     /* a whole body. 300 s */
    uint32_t idle_timeout_ms;   /* keep-alive without a request; gRPC without a call. 75 s */
    uint32_t write_stall_ms;    /* no byte taken by a peer that has bytes waiting. 30 s */
    uint32_t linger_ms;         /* after the last byte, for the peer to read an error. 2 s */
    uint32_t ping_ms;           /* silence of an event stream before a comment is sent. 15 s */
    size_t write_queue_bytes;   /* per connection, above the kernel's buffer. 256 KiB */
    int sndbuf_bytes;           /* SO_SNDBUF; 0 leaves the system's. 128 KiB */
    size_t max_header_bytes;    /* request line and headers; over it: 431. 32 KiB */
    size_t max_body_bytes;      /* over it: 413. 32 MiB */
    size_t max_buffered_bytes;  /* bodies of all connections together; over it: 503. 256 MiB */
    const char
        *cors_origin; /* Access-Control-Allow-Origin, "*" or an origin; NULL: no CORS. Borrowed */
};
void td_conn_config_default(struct td_conn_config *config);

/* What the connections of one listener serve. What it points to is borrowed until the pool is closed. */
struct td_conn_service {
    struct td_tls *tls;   /* NULL: plaintext only */
    bool allow_plaintext; /* with tls: plaintext is served too, else refused */
    bool
        is_uncapped; /* the caps on connections do not hold here and are not used up: workers must get in */
    const struct td_route_table *routes;   /* HTTP/1.1; NULL: refused */
    const struct td_grpc_serve_table *rpc; /* gRPC; NULL: refused */
};

/* The loop is borrowed until td_conn_pool_close's callback ran. */
enum td_status td_conn_pool_open(uv_loop_t *loop, const struct td_conn_config *config,
                                 struct td_conn_pool **pool, struct td_err *err);
size_t td_conn_pool_count(const struct td_conn_pool *pool); /* open connections */
/* From now on every answer says Connection: close, and a gRPC connection without calls gets GOAWAY; what is open goes on and
 * new connections are taken, so that clients learn that this server is about to go. Listeners stay open. */
void td_conn_pool_retire(struct td_conn_pool *pool);
/* Stops politely: idle connections close, running requests end normally (Connection: close, GOAWAY). Listeners are
 * closed first. td_conn_pool_count tells when the last has gone. */
void td_conn_pool_drain(struct td_conn_pool *pool);
/* Closes every connection now, then frees the pool and calls `done` (may be NULL) from the loop. */
typedef void (*td_conn_done_fn)(void *user);
void td_conn_pool_close(struct td_conn_pool *pool, td_conn_done_fn done, void *user);

/* Takes over one waiting connection of a listening socket (for listener.c). A failure concerns that one alone. */
enum td_status td_conn_accept(struct td_conn_pool *pool, const struct td_conn_service *service,
                              uv_stream_t *server, struct td_err *err);

/* ---- For the protocol on top (http1.c, grpc_serve.c) ---- */

/* Calls from a connection to its protocol; `upper` is the protocol's own object. None is made from inside a
 * td_conn_* call. */
struct td_conn_ops {
    void (*data)(void *upper, const char *data, size_t n_bytes);
    void (*eof)(void *upper); /* the peer sends no more */
    void (*flush)(
        void *
            upper); /* before a write, and when the queue has room: output may be added; may be NULL */
    void (*drained)(void *upper); /* the write queue fell to half of its cap or below */
    void (*tick)(void *upper,
                 uint64_t now_ms); /* a few times per shortest timeout; at least every second */
    void (*drain)(void *upper);    /* end soon: td_conn_pool_drain */
    void (*closed)(void *upper);   /* the last call: frees the object */
};

const struct td_conn_config *td_conn_config(const struct td_conn *c);
const struct td_conn_service *td_conn_service(const struct td_conn *c);
uv_loop_t *td_conn_loop(const struct td_conn *c);
uint64_t td_conn_now_ms(const struct td_conn *c); /* the loop's clock */
bool td_conn_draining(
    const struct td_conn *c); /* or retiring: no connection is kept for a next request */
bool td_conn_is_tls(const struct td_conn *c);
const char *td_conn_remote(const struct td_conn *c); /* "127.0.0.1:4711" */
bool td_conn_is_local(const struct td_conn *c);      /* the peer has a loopback address */
/* Queues bytes (copied); they leave before the loop sleeps. TD_CANCELLED once closing. No cap: callers ask
 * td_conn_queued_bytes first. */
enum td_status td_conn_write(struct td_conn *c, const void *data, size_t n_bytes);
size_t td_conn_queued_bytes(const struct td_conn *c);
void td_conn_want_flush(struct td_conn *c); /* asks for ops->flush before the loop sleeps */
void td_conn_want_drained(
    struct td_conn *c);                /* asks for ops->drained although the cap was not reached */
void td_conn_pause(struct td_conn *c); /* no more data than what is under way */
void td_conn_resume(struct td_conn *c);
void td_conn_finish(
    struct td_conn *c);                /* close once the queue is written; later input is dropped */
void td_conn_abort(struct td_conn *c); /* close now */
bool td_conn_closing(const struct td_conn *c);
/* The account of buffered bodies over all connections. Reserving fails with false over max_buffered_bytes. */
bool td_conn_reserve_body(struct td_conn *c, size_t n_bytes);
void td_conn_release_body(struct td_conn *c, size_t n_bytes);

#endif
