/* Frames between the ports of the lab's switch: which pass, when each is due, in which order, in how much memory.
 * Pure: the time comes in as an argument, and so do frames. It must not know sockets, interfaces or the text of rules.
 * One thread. Ports are numbered from 0; a link is what leads from one port to another, one way. */
#ifndef TD_DEPLOY_NETLAB_TRANSIT_H
#define TD_DEPLOY_NETLAB_TRANSIT_H

#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    TD_TRANSIT_PORTS = 16,
    TD_TRANSIT_QUEUE_BYTES = 4 << 20, /* most that may wait for a receiving port with a rate */
    TD_TRANSIT_PORT_BYTES = 64 << 20, /* most held for a receiving port, waiting and under way */
    TD_TRANSIT_ALL_BYTES = 256 << 20, /* most held for all of them */
};

/* One way from one port to another. */
struct td_transit_link {
    uint64_t delay_ns;
    uint64_t jitter_ns; /* each frame takes up to so much longer, evenly spread */
    uint32_t loss_ppm;  /* of a million frames, so many are lost */
    bool blocked;       /* all are */
};

struct td_transit_rules {
    uint64_t rate_bps; /* bits per second that a receiving port takes; 0: no limit */
    struct td_transit_link links[TD_TRANSIT_PORTS][TD_TRANSIT_PORTS]; /* [from][to] */
};

/* What became of the frames for one receiving port. */
struct td_transit_count {
    uint64_t passed;  /* taken out by td_transit_take */
    uint64_t lost;    /* by loss_ppm */
    uint64_t blocked; /* on a blocked link, or on one that was blocked while they were under way */
    uint64_t full;    /* did not fit into one of the three caps, or into memory */
};

/* A frame under way. */
struct td_frame {
    uint64_t due_ns;
    uint64_t number; /* of all frames ever added: equal deadlines keep the order */
    uint32_t from, to;
    size_t len; /* bytes of data */
    unsigned char data[];
};

struct td_transit;

/* Returns owned. `seed` begins the draws of losses and jitters. The first rules: everything passes at once. */
enum td_status td_transit_open(uint64_t seed, struct td_transit **transit, struct td_err *err);
void td_transit_close(struct td_transit *t); /* frees the frames that it holds; NULL is legal */

/* Replaces the rules. A frame under way comes no later than one that would be sent now; on a link that is blocked now it
 * is dropped. Frames of one link keep their order. Never fails. */
void td_transit_set_rules(struct td_transit *t, const struct td_transit_rules *rules,
                          uint64_t now_ns);

/* A frame that came in on `from` at `at_ns`, for `to` (both below TD_TRANSIT_PORTS). Copies `len` bytes of `data`. On
 * the wire it takes `wire_bytes`, which count for the rate. Dropped frames are counted. */
void td_transit_add(struct td_transit *t, uint32_t from, uint32_t to, const void *data, size_t len,
                    size_t wire_bytes, uint64_t at_ns);

/* When the next frame is due; UINT64_MAX when there is none. */
uint64_t td_transit_next_ns(const struct td_transit *t);

/* The first frame, if it is due; else NULL. Returns owned: free() it. */
struct td_frame *td_transit_take(struct td_transit *t, uint64_t now_ns);

/* Counters of that receiving port since the beginning. Borrows until the next call. */
const struct td_transit_count *td_transit_count(const struct td_transit *t, uint32_t to);
size_t td_transit_held_bytes(const struct td_transit *t); /* of all frames under way */

#endif
