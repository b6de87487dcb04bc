/* Data that each member of a group gives to all others of its host by writing it once into shared memory, where they read
 * it. Every member on the host calls td_share_publish the same number of times; what was given in one publish may be read
 * until this rank's second publish after it. Only for groups with a place in shared memory. */
#ifndef TD_COMM_SHARE_H
#define TD_COMM_SHARE_H

#include "comm/comm_impl.h"
#include "comm/shm.h"

enum { TD_SHARE_BYTES = TD_SHM_BUFFER_BYTES }; /* at most, in one publish */

static inline bool td_share_has(const struct td_comm *comm)
{
    return comm->share.place >= 0;
}

/* Where to write what the next publish gives. Waits until the others have read what was there. Who gives nothing need not
 * call it. */
enum td_status td_share_room(struct td_comm *comm, void **room, struct td_err *err);
/* Gives what was written, `sent_bytes` of it to others (for the statistics). Does not wait. */
void td_share_publish(struct td_comm *comm, size_t sent_bytes);
/* What member `lane` of this host has given in this rank's last publish, or in the one before (`back` 1). Waits for it. */
enum td_status td_share_await(struct td_comm *comm, uint32_t lane, uint32_t back, const void **data,
                              struct td_err *err);

#endif
