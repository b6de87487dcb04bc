/* tree_sum over several hosts with several ranks: through the memory of each, by messages between them. Included by the files of
 * tree_sum only. */
#ifndef TD_COMM_SUMLANES_H
#define TD_COMM_SUMLANES_H

#include "comm/sumparts.h"

/* `n_lanes` ranks of each host join a slice of what their host holds and exchange it between the hosts, by doubling or in one
 * shot; the others of the host get the sum from them. One lane is a leader. `slot` [TD_SUM_MAX_EXCHANGES]. */
enum td_status td_sumlanes_go(struct td_sumcall *s, uint32_t n_lanes, bool doubles,
                              const uint32_t *slot);

#endif
