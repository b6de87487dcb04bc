/* Who has a journal open: a file beside it, <path>.lock, held by flock(2) and naming its process. The lock goes with the
 * process, however that ends; the file stays, and tells that a journal lay there. */
#ifndef TD_DAEMON_JOURNAL_JOURNALLOCK_H
#define TD_DAEMON_JOURNAL_JOURNALLOCK_H

#include "kernels/base/err.h"

#include <stdbool.h>

/* Makes the folders of `path` (0700) and the file (0600) where they are missing. `was_there`: a journal was opened there
 * before. TD_BUSY names the process that holds it, TD_INVALID where nothing can be made or written, TD_IO for a full disk
 * and the like. */
enum td_status td_journallock_open(const char *path, int *fd, bool *was_there, struct td_err *err);
/* A journal lies there now: whatever is found in its place later is a damaged one. */
void td_journallock_mark(int fd);
void td_journallock_close(int fd); /* -1 is legal */

#endif
