#include "comm/share.h"

#include "comm/wait.h"

/* Waits until member `lane` has shared number `count`. */
static enum td_status await_count(struct td_comm *comm, uint32_t lane, uint64_t count,
                                  struct td_err *err)
{
    const struct td_topology *t = &comm->topology;
    struct td_shm *shm = comm->world->shm;
    uint32_t place = (uint32_t)comm->share.place;
    uint32_t member = comm->share.local[lane];
    enum td_status status = TD_OK;
    struct td_wait w;

    if (comm->share.seen[lane] >= count)
        return TD_OK;
    td_wait_begin(&w, comm, true);
    while (status == TD_OK && (comm->share.seen[lane] = td_shm_count(shm, place, member)) < count)
        status = td_wait_pause(&w, comm->members[td_topology_rank(t, t->my_host, lane)], err);
    td_wait_end(&w);
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
    *room = td_shm_buffer(comm->world->shm, (uint32_t)share->place,
                          share->local[comm->topology.my_lane], next);
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
        *data = td_shm_buffer(comm->world->shm, (uint32_t)share->place, share->local[lane], number);
    return status;
}
