/* The text in which the lab tells its switch the ports and the rules; one statement per line:
 *
 *     port K NAME                 port K (from 0) is the network interface NAME
 *     rate BITS_PER_SECOND        of every receiving port; 0: no limit
 *     all DELAY_NS JITTER_NS LOSS_PPM         of every link
 *     link FROM TO DELAY_NS JITTER_NS LOSS_PPM  of that one, one way
 *     block FROM TO               nothing passes from port to port, one way
 *
 * `all` comes before `link`. Pure; it must not know sockets or whether an interface exists. */
#ifndef TD_DEPLOY_NETLAB_LINKRULES_H
#define TD_DEPLOY_NETLAB_LINKRULES_H

#include "deploy/netlab/transit.h"
#include "kernels/base/bytes.h"

enum { TD_LINKRULES_NAME_BYTES = 16 }; /* IFNAMSIZ: with the NUL */

struct td_linkrules {
    char ports[TD_TRANSIT_PORTS][TD_LINKRULES_NAME_BYTES]; /* empty: no such port */
    struct td_transit_rules rules;
};

/* Fails with TD_INVALID, naming the line, what it says and what was expected. */
enum td_status td_linkrules_parse(struct td_str text, struct td_linkrules *out, struct td_err *err);

#endif
