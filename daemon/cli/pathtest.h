/* One path between two hosts measured with plain TCP: a byte to and fro, then a short bulk transfer. One side listens at an
 * address, the other connects from one; both know a number that tells them from strangers. Blocks, within the limits below. */
#ifndef TD_DAEMON_CLI_PATHTEST_H
#define TD_DAEMON_CLI_PATHTEST_H

#include "daemon/cli/netpath.h"
#include "kernels/base/err.h"

#include <stdint.h>

/* Longest that a path takes, on either side. */
#define TD_PATHTEST_LIMIT_NS 2000000000u

/* A socket that listens at the address, at a port that is free. The caller closes *fd. TD_IO. */
enum td_status td_pathtest_listen(const struct td_netpath_address *at, int *fd, uint16_t *port,
                                  struct td_err *err);
/* Answers the one who connects and knows `nonce`, until that one ends or the limit. */
void td_pathtest_answer(int fd, uint64_t nonce);
/* Measures: sets is_measured, and where the other side answered the rest of *path too. */
void td_pathtest_measure(const struct td_netpath_address *from, const struct td_netpath_address *to,
                         uint16_t port, uint64_t nonce, struct td_netpath *path);

#endif
