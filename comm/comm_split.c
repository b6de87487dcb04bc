#include "comm/comm_impl.h"
#include "comm/shm.h"

/* What every rank tells the others when a group is split. */
struct ballot {
    int32_t colour;
    int32_t key;
    uint32_t next_context;
    uint32_t free_places; /* bits; all when it shares no memory */
};

/* Members of `colour` by (key, old rank). Returns how many; `rank` is this end's place among them. */
static uint32_t choose(const struct td_comm *comm, const struct ballot *ballots, int32_t colour,
                       uint32_t members[TD_COMM_MAX_RANKS], uint32_t *rank)
{
    uint32_t old[TD_COMM_MAX_RANKS];
    uint32_t n = 0;

    for (uint32_t r = 0; r < comm->size; r++) {
        uint32_t at;

        if (ballots[r].colour != colour)
            continue;
        for (at = n++; at > 0 && ballots[old[at - 1]].key > ballots[r].key; at--)
            old[at] = old[at - 1];
        old[at] = r;
    }
    for (uint32_t i = 0; i < n; i++) {
        members[i] = comm->members[old[i]];
        if (old[i] == comm->rank)
            *rank = i;
    }
    return n;
}

/* The new group's context is the largest that any rank of the old group would use next, and all of them go on behind
 * it: two groups that share a pair of ranks therefore never share a context. Groups of one split share it, but no
 * rank. Its place in shared memory is one that all its members have free, on every host the same. */
enum td_status td_comm_split(struct td_comm *comm, int colour, int key, struct td_comm **sub,
                             struct td_err *err)
{
    const struct td_comm_world *world = comm->world;
    struct ballot own = {colour, key, world->next_context,
                         world->shm ? td_shm_free_places(world->shm) : UINT32_MAX};
    struct ballot ballots[TD_COMM_MAX_RANKS];
    size_t bytes[TD_COMM_MAX_RANKS];
    uint32_t members[TD_COMM_MAX_RANKS];
    uint32_t rank = 0;
    uint32_t context = 0;
    uint32_t free_places = (1u << TD_SHM_PLACES) - 1;
    int32_t place;
    uint32_t n;
    struct td_comm *made;
    enum td_status status;

    for (uint32_t r = 0; r < comm->size; r++)
        bytes[r] = sizeof own;
    status = td_comm_all_gather(comm, &own, bytes, ballots, err);
    if (status != TD_OK) {
        td_err_context(err, "split");
        return status;
    }
    for (uint32_t r = 0; r < comm->size; r++) {
        if (ballots[r].next_context > context)
            context = ballots[r].next_context;
        if (ballots[r].colour == colour)
            free_places &= ballots[r].free_places;
    }
    comm->world->next_context = context + 1;
    if (context >= comm->world->n_contexts)
        return td_err_set(err, TD_TOO_LARGE,
                          "split: group number %u, but the tags of '%s' have room for %u groups",
                          context, comm->world->transport->name, comm->world->n_contexts);
    if (colour < 0) {
        *sub = NULL;
        return TD_OK;
    }
    n = choose(comm, ballots, colour, members, &rank);
    place = free_places ? __builtin_ctz(free_places) : -1;
    status = td_comm_group_open(comm->world, members, n, rank, context, place, &made, err);
    if (status != TD_OK)
        return status;
    made->op_limit_ns = comm->op_limit_ns;
    made->spin_ns = comm->spin_ns;
    *sub = made;
    return TD_OK;
}

enum td_status td_comm_split_host(struct td_comm *comm, struct td_comm **sub, struct td_err *err)
{
    return td_comm_split(comm, (int)comm->world->hosts[comm->world->rank], 0, sub, err);
}
