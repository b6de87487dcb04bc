/* The networks between the hosts of a group: every host's interfaces, what MPI's connections use, and how fast each network is that
 * two hosts have in common, measured by their first ranks. Collective over the world, but for deinit; the results are the
 * same on all ranks. Main thread. */
#ifndef TD_DAEMON_CLI_HOSTPATHS_H
#define TD_DAEMON_CLI_HOSTPATHS_H

#include "daemon/cli/netpath.h"

#include <stdbool.h>
#include <stdint.h>

struct td_comm;

/* Two hosts, each named by its first rank. */
struct td_hostpaths_pair {
    uint32_t a, b; /* a < b */
    uint32_t n;
    struct td_netpath paths[TD_NETPATH_MAX_PATHS]; /* [n] */
};

struct td_hostpaths {
    struct td_netpath_host *hosts;   /* [ranks] what each rank saw of its host; owned */
    struct td_hostpaths_pair *pairs; /* [n_pairs] every two hosts; owned */
    uint32_t n_pairs;
    uint32_t n_left_out; /* pairs that were not measured, for time */
};

/* `first` [ranks]: the first rank of each rank's host. After `budget_ns` no further pair is measured; one path takes at most
 * TD_PATHTEST_LIMIT_NS. To be called when messages have gone between all ranks: a connection that was never needed does not
 * show. A network that does not answer is no error. The group's deadline must be longer than the tests of one pair. */
enum td_status td_hostpaths_examine(struct td_comm *world, const uint32_t *first,
                                    uint64_t budget_ns, struct td_hostpaths *out,
                                    struct td_err *err);
void td_hostpaths_deinit(struct td_hostpaths *h);

#endif
