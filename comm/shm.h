/* One host's shared memory as one of its ranks sees it: messages between pairs, places where a group shares data, bells
 * that wake who sleeps. Knows no MPI, no collective and no groups: members are indices on this host, 0 .. n-1.
 *
 * Every rank has one segment, all zero at first, and maps those of all others. A message from a to b goes through a ring in b's
 * segment. At a place each rank has a few buffers, used by turns, and a count of what it has shared there; data goes in
 * once and is read by all. One thread per end, but for td_shm_ring_bell. */
#ifndef TD_COMM_SHM_H
#define TD_COMM_SHM_H

#include "comm/comm_impl.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TD_SHM_PLACES = 8, TD_SHM_BUFFERS = 4, TD_SHM_BUFFER_BYTES = 128 * 1024 };

struct td_shm;

/* Of each rank of a host of n. */
size_t td_shm_segment_bytes(uint32_t n);
/* This rank's end. The memory of the segments [n] is borrowed until close; each lies on a page boundary. */
enum td_status td_shm_open(uint32_t n, uint32_t me, void *const *segments, struct td_shm **shm,
                           struct td_err *err);
/* For ranks that are processes: leaves this one's id in its segment; and, when all have done so, watches over the others. */
void td_shm_say_pid(struct td_shm *shm);
void td_shm_watch(struct td_shm *shm);
/* Tells the others that this end serves no one any more. */
void td_shm_leave(struct td_shm *shm);
void td_shm_close(struct td_shm *shm); /* NULL is legal */
/* Whether `member` has left or its process has ended. One or two system calls. */
bool td_shm_is_gone(struct td_shm *shm, uint32_t member);

/* ---- messages ---- */

/* One look at all of comm->xfers with a `local` member: moves what can be moved. *n_left: how many are not done;
 * *awaited: world rank of one of those. TD_PEER_PROTOCOL when a message has another length than expected, TD_NO_MEMORY
 * when one that is for later has no room. */
enum td_status td_shm_progress(struct td_shm *shm, struct td_comm *comm, uint32_t tag,
                               uint32_t *n_left, uint32_t *awaited, struct td_err *err);

/* ---- places ---- */

/* Bits of those that no group of this end uses, and where no member of the last one reads any more. */
uint32_t td_shm_free_places(const struct td_shm *shm);
/* From now on `place` is used by the group of `members` [n], or no more by this end. `count`: see below, the same for all
 * members and larger than any that a group before has reached. */
void td_shm_take_place(struct td_shm *shm, uint32_t place, uint64_t count, const uint32_t *members,
                       uint32_t n);
void td_shm_free_place(struct td_shm *shm, uint32_t place);
/* What a member has at a place. Written by it alone. */
struct td_shm_place {
    _Alignas(64) _Atomic uint64_t count; /* the last number that it has shared */
    _Atomic uint64_t left;               /* first count of the last group that it has closed here */
    _Alignas(64) char buffer[TD_SHM_BUFFERS]
                            [TD_SHM_BUFFER_BYTES]; /* number n is in n % TD_SHM_BUFFERS */
};
struct td_shm_place *td_shm_place_of(const struct td_shm *shm, uint32_t place, uint32_t member);
/* Says that this member has shared number `count`, and wakes those of `members` [n] who sleep. */
void td_shm_publish(struct td_shm *shm, uint32_t place, uint64_t count, const uint32_t *members,
                    uint32_t n);

/* ---- sleep ---- */

/* Before the last look: whoever moves something after this rings. */
uint32_t td_shm_arm(struct td_shm *shm);
/* Sleeps until a ring since td_shm_arm gave `bell`, or a time-out. */
void td_shm_sleep(struct td_shm *shm, uint32_t bell, uint64_t limit_ns);
void td_shm_disarm(struct td_shm *shm);
/* Wakes `member` if it sleeps. Any thread. */
void td_shm_ring_bell(struct td_shm *shm, uint32_t member);

#endif
