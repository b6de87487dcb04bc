/* Where a server keeps what outlives it: reports on groups that were lost. Main thread. */
#ifndef TD_DAEMON_CLI_STATEDIR_H
#define TD_DAEMON_CLI_STATEDIR_H

#include "kernels/base/err.h"

#include <stddef.h>

/* Makes the folder: `wish`, or without one (NULL) $XDG_STATE_HOME/tensord, else ~/.local/state/tensord. `out` gets its absolute path.
 * TD_INVALID for a wish that cannot be made, with the reason; TD_NOT_FOUND where there is no wish and no such place. */
enum td_status td_statedir_open(const char *wish, char *out, size_t bytes, struct td_err *err);

#endif
