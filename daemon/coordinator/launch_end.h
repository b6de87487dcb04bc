/* What is left of a launch on this host is ended and removed. Private to launch*.c. Blocks: for libuv's pool. */
#ifndef TD_DAEMON_COORDINATOR_LAUNCH_END_H
#define TD_DAEMON_COORDINATOR_LAUNCH_END_H

/* Waits until no process of the launch with that directory is left; after a second the rest is killed. */
void td_launch_end_processes(const char *dir);
/* Removes the directory and what is in it. */
void td_launch_end_remove(const char *dir);

#endif
