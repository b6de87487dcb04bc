/* tree_sum by messages: everybody's subtrees to everybody, in slices, by doubling. All add the same subtrees in the same
 * order. Included by the files of tree_sum only. */
#ifndef TD_COMM_SUMMESSAGE_H
#define TD_COMM_SUMMESSAGE_H

#include "comm/sumparts.h"

/* Who exchanges: all ranks of the group, or one of each host. Borrowed. */
struct td_summessage_party {
    struct td_sumparts *parts; /* of the participants */
    const uint32_t *who;       /* [n] their ranks */
    uint32_t n;
    uint32_t me; /* this one's index */
};

/* Everybody's subtrees go to everybody, which joins them all: one message per pair, one delay. `own` [own parts x count];
 * `room` [all parts x count] takes the others', and with packed floats this one's too. Writes `out` [count]. */
enum td_status td_summessage_one_shot(struct td_sumcall *s, const struct td_summessage_party *party,
                                      const float *own, float *room, size_t count, float *out,
                                      uint32_t slot);
/* Every rank joins one slice of the floats from all parts, then the slices are exchanged: the same additions, so the same bits,
 * but fewer bytes. Costs a second delay and a second slot. */
enum td_status td_summessage_two_shot(struct td_sumcall *s, const uint32_t *slot);
/* Recursive doubling: in round k blocks of 2^k neighbours exchange what they have joined so far: as many delays as n has binary
 * digits, and one message per rank and round. For parts that ascend. `room` [all parts x count] holds this one's own already.
 * Writes `out` [count]. `slot` [TD_SUM_MAX_EXCHANGES]. */
enum td_status td_summessage_doubling(struct td_sumcall *s, const struct td_summessage_party *party,
                                      float *room, size_t count, float *out, const uint32_t *slot);

#endif
