/* What is left of a launch on this host is ended and removed. Private to launch*.c and keeper.c. Blocks: for libuv's pool. */
#ifndef TD_DAEMON_COORDINATOR_LAUNCH_END_H
#define TD_DAEMON_COORDINATOR_LAUNCH_END_H

#include <stdbool.h>

#define TD_LAUNCH_DIR_NAME "tensord-" /* and six characters of mkdtemp's */
enum { TD_LAUNCH_SWEEP_AGE_S = 60 };

/* Whether a path is that of a launch's directory, there, and of this user. */
bool td_launch_end_is_ours(const char *dir);
/* Waits until no process of the launch with that directory is left; after a second the rest is killed. */
void td_launch_end_processes(const char *dir);
/* Removes the directory and what is in it. */
void td_launch_end_remove(const char *dir);
/* Removes directories in `base` whose coordinator is gone: ours, older than that, locked by nobody.
 * One that is younger may have been made by a coordinator that has not locked it yet. */
void td_launch_end_sweep(const char *base, int min_age_s);

#endif
