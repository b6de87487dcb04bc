#include "daemon/journal/journalpath.h"

#include <stdio.h>

static bool is_absolute(const char *path)
{
    return path && path[0] == '/';
}

enum td_status td_journalpath_choose(const struct td_journalpath_facts *facts, char *out,
                                     size_t n_bytes, struct td_err *err)
{
    const char *folder = "/var/lib", *below = "";
    int n;

    if (is_absolute(facts->state_home)) {
        folder = facts->state_home;
    } else if (!facts->is_root) {
        folder = facts->home;
        below = "/.local/state";
    }
    if (!is_absolute(folder))
        return td_err_set(err, TD_INVALID,
                          "there is no folder for a journal: neither XDG_STATE_HOME nor HOME is an "
                          "absolute path");
    n = snprintf(out, n_bytes, "%s%s/tensord/journal-%u.db", folder, below, facts->port);
    if (n < 0 || (size_t)n >= n_bytes)
        return td_err_set(err, TD_TOO_LARGE,
                          "the path of a journal has %d bytes, expected below %zu", n, n_bytes);
    return TD_OK;
}
