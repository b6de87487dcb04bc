/* When what must have ended: a heap of deadlines, the next one on top. Its owner asks it at every tick of a clock that is
 * there anyway, so no request has a timer of its own. One writer; pure. */
#ifndef TD_DAEMON_COORDINATOR_DEADLINES_H
#define TD_DAEMON_COORDINATOR_DEADLINES_H

#include "kernels/base/err.h"

#include <stdint.h>

/* In the storage of whoever has the deadline; all zero: it has none. */
struct td_deadline {
    uint64_t at_ns;
    void *owner;
    uint32_t place; /* in the heap, counted from 1; 0: not in it */
};

/* All zero: empty. */
struct td_deadlines {
    struct td_deadline **heap; /* owned, [n], each no later than those at twice its place */
    uint32_t n, cap;
};

void td_deadlines_deinit(struct td_deadlines *d); /* forgets what is in it */
/* Borrows `item`, whose at_ns and owner are set, until it is removed. TD_NO_MEMORY. */
enum td_status td_deadlines_add(struct td_deadlines *d, struct td_deadline *item);
void td_deadlines_remove(struct td_deadlines *d, struct td_deadline *item); /* not in it: nothing */
/* The earliest one that is not after `now_ns`; NULL: none. It stays in the heap. */
struct td_deadline *td_deadlines_passed(const struct td_deadlines *d, uint64_t now_ns);

#endif
