/* What a server tells its service manager: that it is ready, what it does, that it still does it, that it stops. Looked at by
 * serve's timer; nothing happens where nobody listens (sdnotify.h). Main thread. */
#ifndef TD_DAEMON_CLI_MANAGER_H
#define TD_DAEMON_CLI_MANAGER_H

#include "daemon/cli/sdnotify.h"

struct td_coord;

struct td_manager {
    struct td_sdnotify notify;
    bool waits_for_group; /* ready means listening: the group is somebody else's */
    bool is_ready, is_unsound;
    uint64_t fed_ns, told_ns, asked_ns; /* last WATCHDOG=1, STATUS=, EXTEND_TIMEOUT_USEC= */
    uint64_t progress;                  /* of the start when more time was last asked for */
    char status[200];                   /* last told */
};

/* Reads the environment. What is wrong there is logged, and nobody is told anything then. */
void td_manager_open(struct td_manager *m, bool waits_for_group);
/* Once the server listens, and then a few times a second: READY=1 when requests can be served, more time as long as a start makes
 * progress, the state in words, WATCHDOG=1 as long as the coordinator does what is due. `now_ns` is uv_hrtime's. */
void td_manager_tick(struct td_manager *m, struct td_coord *coord, uint64_t now_ns);
/* The process is about to end, within `left_ns`. */
void td_manager_stopping(struct td_manager *m, uint64_t left_ns);
void td_manager_close(struct td_manager *m);

#endif
