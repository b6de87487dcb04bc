/* gRPC on a listener: which methods are served by whom, and the protocol on top of a connection that moves bytes
 * between the socket and proto/grpc. Checks keys before a method is called. Loop thread only. Knows no message type:
 * handlers get and send encoded messages (td_grpc_stream_*, td_rpc_unpack, td_rpc_pack). */
#ifndef TD_DAEMON_API_GRPC_SERVE_H
#define TD_DAEMON_API_GRPC_SERVE_H

#include "daemon/api/auth.h"
#include "proto/grpc.h"
#include "proto/rpc.h"

struct td_conn;
struct td_conn_ops;
struct td_grpc_serve_table;

/* Who serves one method. Callbacks as in proto/grpc.h, with this `user`; any may be NULL. The stream's user pointer
 * (td_grpc_stream_set_user) is the handler's to use. */
struct td_grpc_serve_handler {
    const struct td_auth
        *auth; /* keys that may call it, in metadata "authorization" or "x-api-key"; NULL: open */
    enum td_auth_role role; /* TD_AUTH_OPERATOR: not for clients' keys, see td_auth_admit */
    void *user;
    /* The call begins, and its key is right. TD_OK accepts it; anything else refuses it with err->cause. */
    enum td_status (*on_call)(void *user, struct td_grpc_stream *s, struct td_err *err);
    /* Give message.len back with td_grpc_stream_ack. Without this callback messages are dropped. */
    void (*on_message)(void *user, struct td_grpc_stream *s, struct td_str message);
    void (*on_half_close)(void *user, struct td_grpc_stream *s);
    void (*on_drain)(void *user, struct td_grpc_stream *s);
    /* Exactly once for every call that on_call accepted. */
    void (*on_close)(void *user, struct td_grpc_stream *s, enum td_grpc_code code);
};

/* `limits` may be NULL; copied. keepalive_ns 0 becomes 60 s, so that a client that vanished is noticed. */
enum td_status td_grpc_serve_table_open(const struct td_grpc_limits *limits,
                                        struct td_grpc_serve_table **table, struct td_err *err);
void td_grpc_serve_table_close(struct td_grpc_serve_table *table);
/* Copies the handler. A method that was not added is answered UNIMPLEMENTED. */
void td_grpc_serve_add(struct td_grpc_serve_table *table, enum td_rpc_id id,
                       const struct td_grpc_serve_handler *handler);
/* Serves reflection, v1 and v1alpha. */
void td_grpc_serve_add_reflection(struct td_grpc_serve_table *table, const struct td_auth *auth);
/* Writes every method to the log, at debug level, with who may call it. */
void td_grpc_serve_log(const struct td_grpc_serve_table *table);
/* NULL when the method is not served: lets a test call every one of them without a key. */
const struct td_grpc_serve_handler *td_grpc_serve_at(const struct td_grpc_serve_table *table,
                                                     enum td_rpc_id id);
/* "127.0.0.1:4711" of the connection that carries the call, for logs. Only for streams of this layer. */
const char *td_grpc_serve_remote(const struct td_grpc_stream *s);

/* ---- For conn.c ---- */
enum td_status td_grpc_serve_conn_open(struct td_conn *c, const struct td_grpc_serve_table *table,
                                       const struct td_conn_ops **ops, void **upper,
                                       struct td_err *err);

#endif
