/* What a server knows callers and workers by: API keys of clients and operators, the cluster key, certificates. Read at the
 * start, and the files of keys and certificates again on SIGHUP. Loop thread; reads small files and may block on them.
 * Nothing of a key reaches a log or an error, only names and counts do. */
#ifndef TD_DAEMON_CLI_CREDENTIALS_H
#define TD_DAEMON_CLI_CREDENTIALS_H

#include "daemon/api/auth.h"
#include "daemon/api/tls.h"
#include "daemon/cli/rank.h"

struct td_metrics;

struct td_credentials {
    const struct td_options *opts; /* borrows */
    struct td_auth api;            /* clients' and operators' keys */
    struct td_auth cluster;        /* the workers' key; no key: they need none */
    struct td_tls *tls;            /* of the public listener; NULL: plaintext */
    struct td_tls *cluster_tls;    /* of the workers' listener, mutual; NULL: plaintext */
    struct td_metrics *metrics;
    struct td_metric *requests[TD_AUTH_MAX_KEYS]; /* by number - 1; NULL: not registered yet */
};

/* Zero-initialised storage of the caller's, which must not move. The cluster key comes from its file or, for a group that
 * this process starts (`starts_group`), is drawn; it goes into the dial too. TD_INVALID, TD_IO name the file and the line. */
enum td_status td_credentials_open(struct td_credentials *c, const struct td_options *opts,
                                   bool starts_group, struct td_rank_dial *dial,
                                   struct td_err *err);
void td_credentials_close(struct td_credentials *c);
/* Counts requests by the name of their key: tensord_key_requests_total. `metrics` is borrowed. */
enum td_status td_credentials_count(struct td_credentials *c, struct td_metrics *metrics,
                                    struct td_err *err);
/* Whether a file was given that td_credentials_reload would read. */
bool td_credentials_can_reload(const struct td_options *opts);
/* Reads keys and certificates again, each of the three by itself: what cannot be read or does not fit stays as it was, and
 * the log says so. Requests and connections that are open go on. */
void td_credentials_reload(struct td_credentials *c);

#endif
