/* Many streaming requests to one server at a time, over plain HTTP/1.1 connections that are kept, and when each part of an
 * answer came. Everything runs on one libuv loop and nothing blocks but td_loadclient_open; timestamps are taken first thing
 * when bytes come. Loop thread only; knows no load and no statistics. */
#ifndef TD_DAEMON_CLI_LOADCLIENT_H
#define TD_DAEMON_CLI_LOADCLIENT_H

#include "daemon/cli/client.h"
#include "daemon/cli/loadrecord.h"
#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdint.h>
#include <uv.h>

struct td_loadclient;

/* A request has ended: the record is complete. May start another one. */
typedef void td_loadclient_done_fn(void *user, struct td_loadrecord *record);

struct td_loadclient_params {
    uv_loop_t *loop;                 /* borrowed */
    const struct td_client_url *url; /* borrowed; no TLS */
    const char *path;                /* "/v1/completions", behind the url's prefix; borrowed */
    const char *api_key;             /* NULL: none; borrowed */
};

/* Finds the address that answers, by connecting once, which blocks. TD_UNAVAILABLE names the url's host and why. */
enum td_status td_loadclient_open(const struct td_loadclient_params *params,
                                  struct td_loadclient **out, struct td_err *err);
/* Sends `body` (JSON, borrowed during the call) and fills *record, which is borrowed until `done` is called for it. `done` never
 * runs before this returns. TD_NO_MEMORY: nothing was started. */
enum td_status td_loadclient_start(struct td_loadclient *c, struct td_str body,
                                   struct td_loadrecord *record, td_loadclient_done_fn *done,
                                   void *user);
/* Ends what began before `before_ns` as timed out; also reports connections that failed while they were opened. To be called
 * several times a second. */
void td_loadclient_tick(struct td_loadclient *c, uint64_t before_ns);
/* Ends everything under way as cancelled. */
void td_loadclient_cancel(struct td_loadclient *c);
size_t td_loadclient_under_way(const struct td_loadclient *c);
size_t td_loadclient_connections(const struct td_loadclient *c); /* opened so far */
/* Closes all connections, which runs the loop for a moment, and frees. NULL is legal. */
void td_loadclient_close(struct td_loadclient *c);

#endif
