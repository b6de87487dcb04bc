/* Which of this host's addresses faces the hosts of a group. */
#ifndef TD_DAEMON_COORDINATOR_FACING_H
#define TD_DAEMON_COORDINATOR_FACING_H

#include "kernels/base/err.h"

#include <stddef.h>

/* Writes the local address from which the first host of an Open MPI hostfile is reached, as numbers; a loopback address when
 * that is this host. Sends nothing. May ask the resolver, so it may block: for the start. TD_IO, TD_INVALID name the file. */
enum td_status td_facing_address(const char *hostfile, char *out, size_t out_bytes,
                                 struct td_err *err);

#endif
