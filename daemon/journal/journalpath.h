/* Where a server's journal lies unless it is told otherwise. Pure. */
#ifndef TD_DAEMON_JOURNAL_JOURNALPATH_H
#define TD_DAEMON_JOURNAL_JOURNALPATH_H

#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What decides. */
struct td_journalpath_facts {
    bool is_root;           /* /var/lib/tensord */
    const char *state_home; /* $XDG_STATE_HOME; counts when it is an absolute path */
    const char *home;       /* $HOME, for .local/state; likewise */
    uint16_t port;          /* one journal for each */
};
/* Writes FOLDER/tensord/journal-PORT.db to `out` [n_bytes]. TD_INVALID: there is no such folder to name. TD_TOO_LARGE. */
enum td_status td_journalpath_choose(const struct td_journalpath_facts *facts, char *out,
                                     size_t n_bytes, struct td_err *err);

#endif
