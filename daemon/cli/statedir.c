#include "daemon/cli/statedir.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Makes every folder of the path that is not there. */
static int make_all(const char *path)
{
    char part[PATH_MAX];
    size_t n = strlen(path);

    if (n >= sizeof part) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(part, path, n + 1);
    for (size_t i = 1; i <= n; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        part[i] = '\0';
        if (mkdir(part, 0700) != 0 && errno != EEXIST)
            return -1;
        part[i] = path[i];
    }
    return access(path, W_OK | X_OK);
}

enum td_status td_statedir_open(const char *wish, char *out, size_t bytes, struct td_err *err)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char path[PATH_MAX], real[PATH_MAX];

    if (wish)
        snprintf(path, sizeof path, "%s", wish);
    else if (state && *state == '/')
        snprintf(path, sizeof path, "%.4000s/tensord", state);
    else if (home && *home == '/')
        snprintf(path, sizeof path, "%.4000s/.local/state/tensord", home);
    else
        return td_err_set(err, TD_NOT_FOUND, "no --state-dir, and neither XDG_STATE_HOME nor HOME");
    if (make_all(path) != 0 || !realpath(path, real))
        return td_err_set(err, wish ? TD_INVALID : TD_NOT_FOUND,
                          "--state-dir '%.200s': %s, expected a folder that can be written", path,
                          strerror(errno));
    if (strlen(real) >= bytes)
        return td_err_set(err, TD_INVALID,
                          "--state-dir '%.200s' is too long: expected below %zu bytes", real,
                          bytes);
    memcpy(out, real, strlen(real) + 1);
    return TD_OK;
}
