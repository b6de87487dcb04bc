/* What `tensord bench comm` shows: tables for people, JSON, a picture. Main thread of rank 0; measures nothing. */
#ifndef TD_DAEMON_CLI_COMMPRINT_H
#define TD_DAEMON_CLI_COMMPRINT_H

#include "daemon/cli/commrun.h"
#include "kernels/base/bytes.h"

#include <jansson.h>

/* Everything is borrowed. */
struct td_commprint {
    const struct td_commset *set;
    const struct td_commrun *run; /* no rows: one rank */
    uint32_t n_ranks, n_hosts;
    uint32_t n_rounds;
    bool shares_cores;     /* a host has more ranks than cores for them */
    bool was_tried;        /* what a sum takes by itself was found by trying, not by the rule */
    const char *transport; /* of the group as the program has it */
    const char *no_bare;   /* why there is no bare exchange; NULL: there is one */
};

void td_commprint_text(const struct td_commprint *p);
/* Returns owned; NULL when memory is short. */
json_t *td_commprint_json(const struct td_commprint *p);
/* Latency against bytes, a panel for each operation with sizes, a line for each contender. Appends to `out`. TD_NO_MEMORY;
 * TD_INVALID when there is nothing to draw. */
enum td_status td_commprint_svg(const struct td_commprint *p, struct td_bytes *out);

#endif
