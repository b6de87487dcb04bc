/* How fast the links of a group are: half the round trip of one byte, and how fast large messages go, for every pair of
 * ranks. Built on the operations of comm.h alone, so it holds on every transport. Compute thread. Decides nothing about
 * what it finds. */
#ifndef TD_COMM_LINKPROBE_H
#define TD_COMM_LINKPROBE_H

#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct td_comm;

enum { TD_LINKPROBE_BULK_BYTES = 4 << 20, TD_LINKPROBE_TURN_NS = 40 * 1000 * 1000 };

/* Equal on all ranks, but for the buffer's place. */
struct td_linkprobe_params {
    uint64_t
        budget_ns;    /* of the whole: a pair that would begin later is not measured; 0: no limit */
    uint64_t turn_ns; /* what one pair takes, less where the budget has less for each; 0: 40 ms */
    void *buffer;     /* [bulk_bytes], borrowed; after a failure comm.h's rule for buffers holds */
    size_t bulk_bytes; /* largest message, > 0 */
    bool at_once;      /* disjoint pairs measure at the same time, where no two share a link */
};

/* From one rank to another; zeros: not measured, or a rank with itself. */
struct td_linkprobe_link {
    uint64_t
        latency_ns; /* half of a round trip of one byte, the median; equal in both directions */
    double bytes_per_second; /* of the largest messages that fitted into the turn, the median */
};

/* Measures every pair, one at a time unless at_once says otherwise, in the rounds of a tournament: where the budget ends
 * early, every rank has had about as many pairs. Ranks whose turn it is not sleep. Fills links [size x size], row: sender,
 * the same on all ranks. Collective; blocks for about turn_ns per pair, or per round with at_once. A turn should be shorter
 * than the deadline of the group's operations: TD_PEER_TIMED_OUT, TD_PEER_LOST as any operation; TD_INVALID for a size or a
 * buffer that cannot be. */
enum td_status td_linkprobe_run(struct td_comm *comm, const struct td_linkprobe_params *params,
                                struct td_linkprobe_link *links, struct td_err *err);

/* The pair of `rank` in round `round` of a tournament of n ranks: its partner, or `rank` itself where it pauses. There are
 * td_linkprobe_rounds(n) rounds, and in them every two ranks meet exactly once (circle method). */
uint32_t td_linkprobe_partner(uint32_t n, uint32_t round, uint32_t rank);
uint32_t td_linkprobe_rounds(uint32_t n);

#endif
