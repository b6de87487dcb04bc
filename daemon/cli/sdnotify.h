/* Datagrams to a service manager that waits at $NOTIFY_SOCKET, as systemd's sd_notify(3) has them. Main thread; knows no server. */
#ifndef TD_DAEMON_CLI_SDNOTIFY_H
#define TD_DAEMON_CLI_SDNOTIFY_H

#include "kernels/base/err.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/un.h>

/* Plain data; zeroed: nobody listens. */
struct td_sdnotify {
    bool is_open;
    int fd; /* is_open */
    struct sockaddr_un to;
    uint32_t to_bytes;    /* of `to` */
    uint64_t watchdog_ns; /* a WATCHDOG=1 is expected this often; 0: never */
};

/* Reads NOTIFY_SOCKET (a path, or "@name" without a file), WATCHDOG_USEC and WATCHDOG_PID (this process or its parent: mpirun, in
 * one job), and takes them out of the environment, so that no child speaks in our name. Without NOTIFY_SOCKET *n is zeroed.
 * TD_INVALID names a value that is none, TD_IO; nobody listens then. */
enum td_status td_sdnotify_open(struct td_sdnotify *n, struct td_err *err);
/* Sends lines such as "READY=1\nSTATUS=...". Never blocks; one that cannot be sent is lost, as the manager would miss it too. */
void td_sdnotify_send(const struct td_sdnotify *n, const char *lines);
void td_sdnotify_close(struct td_sdnotify *n);

#endif
