/* A small process that outlives a coordinator which was killed: it ends what is left of that one's launch on this host and removes
 * its directory. While the coordinator lives it sleeps; when the launch has ended in order it finds nothing to do. The
 * parent's part runs on the loop thread. */
#ifndef TD_DAEMON_COORDINATOR_KEEPER_H
#define TD_DAEMON_COORDINATOR_KEEPER_H

#include "kernels/base/err.h"

#include <stdbool.h>
#include <uv.h>

struct td_keeper;

/* The word behind the program's name; the launch's directory follows. */
#define TD_KEEPER_WORD "keep-launch"

/* Starts `program keep-launch dir`. Borrows both during the call. TD_IO, TD_NO_MEMORY. */
enum td_status td_keeper_start(uv_loop_t *loop, const char *program, const char *dir,
                               struct td_keeper **keeper, struct td_err *err);
/* The launch has ended and its directory is gone: the process ends, and then the handle frees itself. NULL is legal. */
void td_keeper_close(struct td_keeper *k);

/* The process itself: waits until nobody holds the other end of its standard input. Refuses (false) what is no directory of a
 * launch of this user. */
bool td_keeper_run(const char *dir);

#endif
