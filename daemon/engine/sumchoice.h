/* How the sums of a group travel: as its user says, or as was fastest when it was tried, which is kept in a file for the next
 * start on the same hosts: ${XDG_CACHE_HOME:-$HOME/.cache}/tensord/sums-HASH, rank 0's. Compute thread. */
#ifndef TD_DAEMON_ENGINE_SUMCHOICE_H
#define TD_DAEMON_ENGINE_SUMCHOICE_H

#include "comm/comm.h"

#include <stdbool.h>

struct td_sumchoice_params {
    enum td_sum_algorithm algorithm; /* TD_SUM_AUTO: what is fastest */
    bool measure;                    /* try, whatever the file says and whoever shares cores */
    bool may_measure; /* this rank owns its cores; where all do, times mean something */
};

/* Collective over `group`, parameters but `may_measure` equal on all ranks; the result is too. `host`: this rank's name. TD_INVALID for an
 * algorithm that this group has no use for, which names those that it has. */
enum td_status td_sumchoice_make(struct td_comm *group, const char *host,
                                 const struct td_sumchoice_params *params,
                                 struct td_sum_choices *choices, struct td_err *err);

#endif
