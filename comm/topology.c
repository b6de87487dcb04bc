#include "comm/topology.h"

uint32_t td_topology_room(uint32_t n_ranks)
{
    return 5 * n_ranks + 1;
}

void td_topology_make(struct td_topology *t, const uint32_t *hosts, uint32_t n_ranks, uint32_t rank,
                      uint32_t *room)
{
    uint32_t at = 0;

    *t = (struct td_topology){.host = room,
                              .lane = room + n_ranks,
                              .ranks = room + (size_t)2 * n_ranks,
                              .every = room + (size_t)3 * n_ranks,
                              .first = room + (size_t)4 * n_ranks,
                              .least = n_ranks};
    for (uint32_t r = 0; r < n_ranks; r++) {
        uint32_t same = 0;

        t->every[r] = r;
        while (same < r && hosts[same] != hosts[r])
            same++;
        t->host[r] = same < r ? t->host[same] : t->n_hosts++;
    }
    for (uint32_t h = 0; h < t->n_hosts; h++) {
        uint32_t n;

        t->first[h] = at;
        for (uint32_t r = 0; r < n_ranks; r++) {
            if (t->host[r] != h)
                continue;
            t->lane[r] = at - t->first[h];
            t->ranks[at++] = r;
        }
        n = at - t->first[h];
        t->least = n < t->least ? n : t->least;
        t->most = n > t->most ? n : t->most;
    }
    t->first[t->n_hosts] = at;
    t->my_host = t->host[rank];
    t->my_lane = t->lane[rank];
    t->n_here = t->first[t->my_host + 1] - t->first[t->my_host];
}
