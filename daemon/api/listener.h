/* One listening socket: binds, reports the real port, hands accepted connections to the pool. Loop thread. */
#ifndef TD_DAEMON_API_LISTENER_H
#define TD_DAEMON_API_LISTENER_H

#include "daemon/api/conn.h"

struct td_listener;

struct td_listener_config {
    const char *host; /* "127.0.0.1", "::1", "0.0.0.0", "::" or a name that resolves */
    uint16_t port;    /* 0: the system chooses */
    struct td_conn_service service;
};

/* Binds and listens at once; copies the config (its pointers are borrowed). Resolving a name may block, so this is for
 * the start. TD_INVALID for a host that does not resolve; TD_IO names host, port and the reason, for a port in use
 * "in use by another process". */
enum td_status td_listener_open(struct td_conn_pool *pool, uv_loop_t *loop,
                                const struct td_listener_config *config, struct td_listener **l,
                                struct td_err *err);
uint16_t td_listener_port(const struct td_listener *l);       /* the real one */
const char *td_listener_address(const struct td_listener *l); /* "127.0.0.1:8000", "[::1]:8000" */
/* True when only processes of this host can connect. */
bool td_listener_is_loopback(const struct td_listener *l);
/* Stops accepting; frees from the loop, before the pool's `done`. The service must live until the pool is closed.
 * NULL is legal. */
void td_listener_close(struct td_listener *l);

#endif
