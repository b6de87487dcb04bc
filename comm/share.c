#include "comm/share.h"

#include "comm/wait.h"

enum { EAGER_LOOKS = 200 }; /* less than a microsecond, without anything between them */

/* Waits until member `lane` has shared number `count`. */
static enum td_status await_count(struct td_comm *comm, uint32_t lane, uint64_t count,
                                  struct td_err *err)
{
    const struct td_topology *t = &comm->topology;
    _Atomic uint64_t *at = &comm->share.at[lane]->count;
    uint64_t seen = comm->share.seen[lane];
    enum td_status status = TD_OK;
    struct td_wait w;

    for (int i = 0; i < EAGER_LOOKS && seen < count; i++)
        seen = atomic_load_explicit(at, memory_order_acquire);
    if (seen < count) {
        td_wait_begin(&w, comm, true);
        while (status == TD_OK && (seen = atomic_load_explicit(at, memory_order_acquire)) < count)
            status = td_wait_pause(&w, comm->members[td_topology_rank(t, t->my_host, lane)], err);
        td_wait_end(&w);
    }
    comm->share.seen[lane] = seen;
    return status;
}

/* Number m takes the buffer of m - TD_SHM_BUFFERS. A rank that has published p may still read p - 1, so all others must
 * have published m - TD_SHM_BUFFERS + 2. */
enum td_status td_share_room(struct td_comm *comm, void **room, struct td_err *err)
{
    struct td_share *share = &comm->share;
    uint64_t next = share->count + 1;

    for (uint32_t lane = 0; lane < comm->topology.n_here; lane++) {
        enum td_status status = lane == comm->topology.my_lane
                                    ? TD_OK
                                    : await_count(comm, lane, next - TD_SHM_BUFFERS + 2, err);

        if (status != TD_OK)
            return status;
    }
    *room = share->at[comm->topology.my_lane]->buffer[next % TD_SHM_BUFFERS];
    return TD_OK;
}

void td_share_publish(struct td_comm *comm, size_t sent_bytes)
{
    struct td_share *share = &comm->share;

    share->count++;
    comm->stats.sent_bytes += sent_bytes;
    td_shm_publish(comm->world->shm, (uint32_t)share->place, share->count, share->local,
                   comm->topology.n_here);
}

enum td_status td_share_await(struct td_comm *comm, uint32_t lane, uint32_t back, const void **data,
                              struct td_err *err)
{
    struct td_share *share = &comm->share;
    uint64_t number = share->count - back;
    enum td_status status = await_count(comm, lane, number, err);

    if (status == TD_OK)
        *data = share->at[lane]->buffer[number % TD_SHM_BUFFERS];
    return status;
}
