/* Which ranks of a group are on one host. Pure; every rank has the same picture. */
#ifndef TD_COMM_TOPOLOGY_H
#define TD_COMM_TOPOLOGY_H

#include <stddef.h>
#include <stdint.h>

struct td_topology {
    uint32_t n_hosts;
    uint32_t my_host;     /* index of this rank's */
    uint32_t my_lane;     /* this rank's place among the members of its host */
    uint32_t n_here;      /* members on this host, with this rank */
    uint32_t least, most; /* members of the host with fewest, with most */
    uint32_t *host;       /* [n_ranks] index of a rank's host, in the order of their first ranks */
    uint32_t *lane;       /* [n_ranks] place among the members of its host */
    uint32_t *
        first; /* [n_hosts + 1] host h's members are ranks[first[h] .. first[h + 1] - 1], ascending */
    uint32_t *ranks; /* [n_ranks] */
    uint32_t *every; /* [n_ranks] 0, 1, 2 ... */
};

/* Fills it from a name per rank, hosts[r] (equal means the same host), for `rank`. The arrays are in `room`, of
 * td_topology_room(n_ranks) words, borrowed as long as the topology is used. */
uint32_t td_topology_room(uint32_t n_ranks);
void td_topology_make(struct td_topology *t, const uint32_t *hosts, uint32_t n_ranks, uint32_t rank,
                      uint32_t *room);
/* The rank that is member `lane` of host `h`. */
static inline uint32_t td_topology_rank(const struct td_topology *t, uint32_t h, uint32_t lane)
{
    return t->ranks[t->first[h] + lane];
}

#endif
