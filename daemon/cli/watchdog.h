/* Ends the process when a call that has no deadline of its own does not come back. Watches one thread. */
#ifndef TD_DAEMON_CLI_WATCHDOG_H
#define TD_DAEMON_CLI_WATCHDOG_H

#include "kernels/base/err.h"

#include <stdint.h>

struct td_watchdog;

/* Starts its thread, which sleeps but for one look a second. `name` begins its last words, "tensord bench comm: rank 1";
 * it is copied. */
enum td_status td_watchdog_open(const char *name, struct td_watchdog **watchdog,
                                struct td_err *err);
/* From now on: when td_watchdog_disarm is not called within `limit_ns`, it says on stderr that `what` did not end, and leaves
 * the process with TD_EXIT_FAILURE, without MPI's and libc's farewells. `what` is borrowed until then. */
void td_watchdog_arm(struct td_watchdog *watchdog, const char *what, uint64_t limit_ns);
void td_watchdog_disarm(struct td_watchdog *watchdog);
void td_watchdog_close(struct td_watchdog *watchdog); /* NULL is legal */

#endif
