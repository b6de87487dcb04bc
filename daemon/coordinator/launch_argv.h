/* What a launch is made of: mpirun's command line and environment, and the directory for its files. Private to
 * launch*.c. Reads the environment and /sys; starts nothing. */
#ifndef TD_DAEMON_COORDINATOR_LAUNCH_ARGV_H
#define TD_DAEMON_COORDINATOR_LAUNCH_ARGV_H

#include "daemon/coordinator/launch.h"

#define TD_LAUNCH_NO_MPIRUN                                                                        \
    "'%s' is not there: install Open MPI (Debian and Ubuntu: apt-get install openmpi-bin) or put " \
    "its mpirun into PATH"

/* Marks every process of a launch on this host; the value is its directory. */
#define TD_LAUNCH_MARK "TD_LAUNCH_DIR"

struct td_launch_argv {
    char **args; /* ends with NULL; [0] is the file to run */
    size_t n_args;
    char **env; /* ends with NULL */
    size_t n_env;
};

/* Makes a fresh directory, readable by us alone, in a short path on memory where there is one, and removes what dead
 * coordinators left beside it. *lock is a descriptor that shows as long as it is open that the directory is in use.
 * TD_IO names the places tried. */
enum td_status td_launch_argv_make_dir(const struct td_launch_params *params, char *dir,
                                       size_t dir_bytes, int *lock, struct td_err *err);
enum td_status td_launch_argv_init(struct td_launch_argv *argv,
                                   const struct td_launch_params *params, const char *dir,
                                   struct td_err *err);
void td_launch_argv_deinit(struct td_launch_argv *argv);

#endif
