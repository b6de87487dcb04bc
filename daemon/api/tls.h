/* TLS of the server side over memory: ciphertext in and out as bytes, no socket. OpenSSL does the work.
 * A context is shared by the connections of a listener; loop thread only. */
#ifndef TD_DAEMON_API_TLS_H
#define TD_DAEMON_API_TLS_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

struct td_tls;         /* certificate, key and policy */
struct td_tls_session; /* one connection */

/* Loads a PEM certificate chain and its key, and checks that they fit. TLS 1.2 or later, no renegotiation. Of the
 * protocols that a client offers (ALPN), http/1.1 is taken before h2: gRPC clients offer h2 alone, and the OpenAI API
 * is served over HTTP/1.1. TD_INVALID or TD_IO names the file. */
enum td_status td_tls_open(const char *cert_path, const char *key_path, struct td_tls **tls,
                           struct td_err *err);
void td_tls_close(struct td_tls *tls);

/* Borrows `tls` until close. */
enum td_status td_tls_session_open(struct td_tls *tls, struct td_tls_session **session,
                                   struct td_err *err);
void td_tls_session_close(struct td_tls_session *session);
/* Takes all `n_bytes` of ciphertext. */
enum td_status td_tls_session_feed(struct td_tls_session *session, const void *data, size_t n_bytes,
                                   struct td_err *err);
/* Goes on with the handshake, then decrypts up to `cap` bytes. *n_bytes 0: feed more. After the peer's close_notify,
 * *closed is set. TD_PEER_PROTOCOL when the peer breaks TLS; an alert may be left to pull. */
enum td_status td_tls_session_read(struct td_tls_session *session, void *out, size_t cap,
                                   size_t *n_bytes, bool *closed, struct td_err *err);
/* Encrypts all of it; only after the handshake (the first byte was read). */
enum td_status td_tls_session_write(struct td_tls_session *session, const void *data,
                                    size_t n_bytes, struct td_err *err);
/* Queues close_notify. */
void td_tls_session_shutdown(struct td_tls_session *session);
/* Ciphertext for the peer: at most `cap` bytes, 0 when there is none. */
size_t td_tls_session_pull(struct td_tls_session *session, void *out, size_t cap);

#endif
