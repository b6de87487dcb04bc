/* The fields of connections and of their pool. Private to conn.c (one connection: bytes, TLS, closing) and conn_pool.c (all
 * of them: accepting, deadlines, limits). */
#ifndef TD_DAEMON_API_CONN_IMPL_H
#define TD_DAEMON_API_CONN_IMPL_H

#include "daemon/api/addrcount.h"
#include "daemon/api/conn.h"

#include <netinet/in.h>

struct td_tls_session;

enum {
    TD_CONN_READ_BYTES = 64 * 1024,
    TD_CONN_PLAIN_BYTES = 16 * 1024, /* one TLS record */
    TD_CONN_KEPT_BYTES = 2048,       /* of a write buffer, by an idle connection */
    TD_CONN_SNIFF_BYTES = 24         /* of the HTTP/2 preface, RFC 9113 3.4 */
};

enum td_conn_state {
    TD_CONN_SNIFF = 0, /* the first bytes are awaited */
    TD_CONN_OPEN,      /* a protocol is on top */
    TD_CONN_LINGER,    /* the queue is written, then input is dropped until the peer closes */
    TD_CONN_CLOSED     /* uv_close was called */
};

struct td_conn {
    uv_tcp_t tcp;
    uv_write_t write_req;
    uv_shutdown_t shutdown_req;
    struct td_conn_pool *pool;
    struct td_conn_service service; /* a copy: a listener may close before its connections */
    struct td_conn *prev;
    struct td_conn *next;
    struct td_conn *next_dirty; /* list of connections with something to flush */
    bool is_dirty;
    enum td_conn_state state;
    bool reading;
    bool writing;       /* write_req is under way with `inflight` */
    bool peer_closed;   /* EOF was read */
    bool shutdown_sent; /* TD_CONN_LINGER: the queue is written */
    bool was_full;      /* the queue passed its cap since ops->drained */
    struct td_tls_session *tls;
    bool first_byte_seen;
    bool needs_tls;                    /* plaintext came to a port that refuses it */
    char sniffed[TD_CONN_SNIFF_BYTES]; /* at most the HTTP/2 preface */
    size_t n_sniffed;
    struct td_bytes out;      /* for the socket, not yet handed to it */
    struct td_bytes inflight; /* borrowed by write_req while `writing` */
    const struct td_conn_ops *ops;
    void *upper;
    uint64_t deadline_ms;  /* TD_CONN_SNIFF, TD_CONN_LINGER */
    uint64_t progress_ms;  /* while `writing`: when the peer was last seen to take a byte */
    size_t progress_bytes; /* of `inflight` that were unsent then */
    size_t lingered_bytes;
    bool is_local;                   /* the peer has a loopback address */
    struct td_addrcount_entry *from; /* where it is counted; NULL: nowhere */
    char remote[INET6_ADDRSTRLEN + 10];
};

struct td_conn_pool {
    uv_loop_t *loop;
    struct td_conn_config config;
    uv_timer_t timer;
    uv_idle_t idle;
    unsigned n_handles; /* of the pool itself, until closed */
    struct td_conn *first;
    struct td_conn *dirty;
    size_t n_conns;
    size_t n_capped;     /* of those, the ones that the cap counts */
    size_t n_since_trim; /* most connections since memory was given back to the system */
    struct td_addrcount from;
    size_t buffered_bytes;
    uint64_t tick_ms;
    uint64_t refused_log_ms; /* when the last refusal was logged */
    bool retiring;           /* td_conn_pool_retire */
    bool draining;
    bool closing;
    td_conn_done_fn done;
    void *done_user;
    char read_buf[TD_CONN_READ_BYTES]; /* one read is dealt with before the next begins */
    char plain_buf[TD_CONN_PLAIN_BYTES];
};

/* Writes a whole response without a protocol on top, then closes. */
void td_conn_refuse(struct td_conn *c, const char *status_line, const char *message);
/* Takes a connection that is closed out of the pool's accounts. */
void td_conn_pool_forget(struct td_conn_pool *pool, struct td_conn *c);
/* The idle handle's callback: flushes what became dirty since. */
void td_conn_on_flush_idle(uv_idle_t *handle);
/* Frees a closed pool once its last connection and handle are gone. */
void td_conn_pool_maybe_free(struct td_conn_pool *pool);

#endif
