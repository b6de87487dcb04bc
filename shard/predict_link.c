/* What messages between a machine's ranks take (declared in predict_impl.h). */
#include "shard/predict_impl.h"

#include <math.h>

/* The ranks of a group by host. */
struct group {
    double all_bytes, bytes[TD_PLAN_MAX_RANKS]; /* that they send to one other rank */
    uint32_t n[TD_PLAN_MAX_RANKS];
    bool crosses; /* it has ranks on two hosts at least */
};

static void add_message(struct td_predict_cost *cost, const struct td_machine_link *link,
                        uint32_t rounds, double seconds)
{
    cost->part_s[TD_PART_LATENCY] += rounds * link->latency_s;
    cost->part_s[TD_PART_BANDWIDTH] += seconds;
    cost->n_exchanges += rounds;
}

static void sort_by_host(const struct td_machine *m, uint32_t first, uint32_t n,
                         const double *bytes, struct group *out)
{
    *out = (struct group){.all_bytes = 0.0};
    for (uint32_t i = 0; i < n; i++) {
        uint32_t host = m->rank[first + i].host;

        out->bytes[host] += bytes[i];
        out->n[host]++;
        out->all_bytes += bytes[i];
        out->crosses = out->crosses || host != m->rank[first].host;
    }
}

/* `inside` bytes at the busiest rank of a host and `between` bytes at the busiest host, at the same time. */
static void add_exchange(struct td_predict_cost *cost, const struct td_machine *m,
                         const struct group *g, uint32_t rounds, double inside, double between)
{
    double seconds = inside / m->intra.bytes_per_s;

    if (g->crosses)
        seconds = fmax(seconds, between / m->inter.bytes_per_s);
    add_message(cost, g->crosses ? &m->inter : &m->intra, rounds, seconds);
}

void td_predict_link_all(struct td_predict_cost *cost, const struct td_machine *m, uint32_t first,
                         uint32_t n, const double *bytes, uint32_t rounds)
{
    double inside = 0.0, between = 0.0;
    struct group g;

    if (n < 2 || rounds == 0)
        return;
    sort_by_host(m, first, n, bytes, &g);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t host = m->rank[first + i].host;
        double rank_out = bytes[i] * (g.n[host] - 1), rank_in = g.bytes[host] - bytes[i];
        double host_out = g.bytes[host] * (n - g.n[host]),
               host_in = (g.all_bytes - g.bytes[host]) * g.n[host];

        inside = fmax(inside, fmax(rank_out, rank_in));
        between = fmax(between, fmax(host_out, host_in));
    }
    add_exchange(cost, m, &g, rounds, inside, between);
}

void td_predict_link_gather(struct td_predict_cost *cost, const struct td_machine *m,
                            uint32_t first, uint32_t n, const double *bytes)
{
    uint32_t root = m->rank[first].host;
    struct group g;

    if (n < 2)
        return;
    sort_by_host(m, first, n, bytes, &g);
    add_exchange(cost, m, &g, 1, g.bytes[root] - bytes[0], g.all_bytes - g.bytes[root]);
}

void td_predict_link_broadcast(struct td_predict_cost *cost, const struct td_machine *m,
                               uint32_t first, uint32_t n, double bytes)
{
    uint32_t bit = 1;

    while (bit < n)
        bit *= 2;
    for (bit /= 2; bit; bit /= 2) {
        const struct td_machine_link *link = &m->intra;

        for (uint32_t i = 0; i + bit < n; i += 2 * bit)
            if (m->rank[first + i].host != m->rank[first + i + bit].host)
                link = &m->inter;
        add_message(cost, link, 1, bytes / link->bytes_per_s);
    }
}

void td_predict_link_hand_on(struct td_predict_cost *cost, const struct td_machine *m,
                             uint32_t first, uint32_t to, uint32_t n, double bytes)
{
    uint32_t n_out[TD_PLAN_MAX_RANKS] = {0}, n_in[TD_PLAN_MAX_RANKS] = {0}, most = 0;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t a = m->rank[first + i].host, b = m->rank[to + i].host;

        if (a == b)
            continue;
        n_out[a]++;
        n_in[b]++;
        most = n_out[a] > most ? n_out[a] : most;
        most = n_in[b] > most ? n_in[b] : most;
    }
    if (most)
        add_message(cost, &m->inter, 1, most * bytes / m->inter.bytes_per_s);
    else
        add_message(cost, &m->intra, 1, bytes / m->intra.bytes_per_s);
}
