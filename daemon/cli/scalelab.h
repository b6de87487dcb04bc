/* The lab of `tensord bench scale --netlab`: hosts on this machine and the links between them, made by deploy/netlab (its README
 * says how). One lab at a time; its name tells our process, so that it meets no other. Main thread. */
#ifndef TD_DAEMON_CLI_SCALELAB_H
#define TD_DAEMON_CLI_SCALELAB_H

#include "daemon/cli/linkspec.h"
#include "daemon/cli/scalerun.h"

enum { TD_SCALELAB_MIN_HOSTS = 2, TD_SCALELAB_MAX_HOSTS = 16 };

struct td_scalelab;

/* Finds netlab's path: $NETLAB_COMMAND, else in the source tree or the installed data that `program_dir`, the folder of an
 * executable, belongs to. TD_NOT_FOUND says where it was looked for. */
enum td_status td_scalelab_find(const char *program_dir, char *out, size_t out_bytes,
                                struct td_err *err);

/* Makes n_hosts hosts on one switch. `run` is borrowed until close. TD_NOT_FOUND without netlab; TD_UNAVAILABLE with what
 * netlab said, such as that it needs root. What it had made is gone then. */
enum td_status td_scalelab_open(struct td_scalerun *run, uint32_t n_hosts, struct td_scalelab **lab,
                                struct td_err *err);
/* Ends everything of the lab, whatever became of it. TD_UNAVAILABLE when something is left. NULL is legal. */
enum td_status td_scalelab_close(struct td_scalelab *lab, struct td_err *err);
/* Gives all links one delay and one rate. */
enum td_status td_scalelab_shape(struct td_scalelab *lab, const struct td_linkspec_value *delay,
                                 const struct td_linkspec_value *rate, struct td_err *err);

/* For jobs over the lab's hosts, one rank each: borrowed until close. */
const char *td_scalelab_hostfile(const struct td_scalelab *lab);
const char *const *td_scalelab_prefix(const struct td_scalelab *lab);

#endif
