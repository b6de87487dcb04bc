#include "comm/comm.h"

#include <stdlib.h>

/* What a rank tells: one layout on all, for they are of one program. */
struct verdict {
    uint32_t status; /* enum td_status */
    char cause[320];
};

enum td_status td_comm_agree(struct td_comm *comm, enum td_status mine, enum td_status *all,
                             struct td_err *err)
{
    struct verdict own = {.status = (uint32_t)mine}, *verdict;
    const uint32_t n = td_comm_size(comm);
    size_t bytes[TD_TREE_MAX_RANKS];
    enum td_status st;

    verdict = calloc(n, sizeof *verdict);
    if (!verdict)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the state of %u ranks", n);
    if (mine)
        td_err_format(err, own.cause, sizeof own.cause);
    for (uint32_t r = 0; r < n; r++)
        bytes[r] = sizeof own;
    st = td_comm_all_gather(comm, &own, bytes, verdict, err);
    *all = TD_OK;
    for (uint32_t r = 0; !st && !*all && r < n; r++)
        if (verdict[r].status)
            *all = td_err_set(err, (enum td_status)verdict[r].status, "rank %u: %.*s", r,
                              (int)sizeof own.cause - 1, verdict[r].cause);
    free(verdict);
    return st;
}
