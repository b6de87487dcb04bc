/* How fast requests end: their rate over the last while, by which a refused client is told when to come again. Only time in
 * which something is open counts, so that an idle night does not look like a slow server. Plain struct, pure: the time is
 * passed in. */
#ifndef TD_DAEMON_COORDINATOR_ENDRATE_H
#define TD_DAEMON_COORDINATOR_ENDRATE_H

#include <stdbool.h>
#include <stdint.h>

/* All zero: nothing is open and nothing was seen. */
struct td_endrate {
    uint32_t n_open;
    uint64_t seen_ns; /* up to which busy time is counted; valid while something is open */
    double weight;    /* of the busy time behind us, 0 to 1: recent time weighs more */
    double per_s;     /* ends per second, weighted alike */
};

void td_endrate_begin(struct td_endrate *e, uint64_t now_ns); /* one more is open */
void td_endrate_end(struct td_endrate *e, uint64_t now_ns);   /* one has ended, however */
/* Ends per second of busy time; 0 while none was seen. */
double td_endrate_per_second(const struct td_endrate *e, uint64_t now_ns);
/* Whole seconds in which `n` will probably have ended, at least 1 and at most TD_ENDRATE_MAX_WAIT_S; 1 while nothing is
 * known. */
enum { TD_ENDRATE_MAX_WAIT_S = 60 };
uint32_t td_endrate_wait_s(const struct td_endrate *e, double n, uint64_t now_ns);

#endif
