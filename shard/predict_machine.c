/* A machine's figures: whether they can be, and what is left of them with fewer ranks (declared in predict.h). */
#include "shard/predict.h"

#include <math.h>

static bool is_rate(double v)
{
    return isfinite(v) && v > 0.0;
}

/* Where 0 says that there is none, or that it costs nothing. */
static bool is_figure(double v)
{
    return isfinite(v) && v >= 0.0;
}

static enum td_status check_rank(const struct td_machine *m, uint32_t i, struct td_err *err)
{
    const struct td_machine_rank *r = &m->rank[i];
    bool multiplies = false;

    if (r->host >= m->n_hosts)
        return td_err_set(err, TD_INVALID, "rank %u is on host %u: expected one below %u", i,
                          r->host, m->n_hosts);
    if (!is_rate(r->memory_bytes_per_s))
        return td_err_set(err, TD_INVALID, "rank %u reads %g bytes/s: expected more than 0", i,
                          r->memory_bytes_per_s);
    if (!is_figure(r->host_s))
        return td_err_set(err, TD_INVALID, "rank %u has %g s of host time: expected at least 0", i,
                          r->host_s);
    for (int k = 0; k < TD_N_RATES; k++) {
        if (!is_figure(r->ops_per_s[k]))
            return td_err_set(err, TD_INVALID, "rank %u makes %g operations/s: expected at least 0",
                              i, r->ops_per_s[k]);
        multiplies = multiplies || r->ops_per_s[k] > 0.0;
    }
    if (!multiplies)
        return td_err_set(err, TD_INVALID,
                          "rank %u makes no operations/s of any kind: expected some", i);
    return TD_OK;
}

enum td_status td_predict_check(const struct td_machine *m, struct td_err *err)
{
    const struct td_machine_link *const links[] = {&m->intra, &m->inter};

    if (m->n_ranks == 0 || m->n_ranks > TD_PLAN_MAX_RANKS || m->n_hosts == 0 ||
        m->n_hosts > TD_PLAN_MAX_RANKS)
        return td_err_set(err, TD_INVALID,
                          "a machine of %u ranks on %u hosts: expected 1 to %d of each", m->n_ranks,
                          m->n_hosts, TD_PLAN_MAX_RANKS);
    for (uint32_t i = 0; i < m->n_ranks; i++) {
        enum td_status s = check_rank(m, i, err);

        if (s)
            return s;
    }
    for (uint32_t h = 0; h < m->n_hosts; h++)
        if (!is_figure(m->host_bytes_per_s[h]))
            return td_err_set(err, TD_INVALID, "host %u reads %g bytes/s: expected at least 0", h,
                              m->host_bytes_per_s[h]);
    for (int i = 0; i < 2; i++)
        if (!is_figure(links[i]->latency_s) || !(links[i]->bytes_per_s > 0.0))
            return td_err_set(err, TD_INVALID,
                              "a link %s of %g s and %g bytes/s: expected at least 0 s and more "
                              "than 0 bytes/s",
                              i ? "between hosts" : "inside a host", links[i]->latency_s,
                              links[i]->bytes_per_s);
    return TD_OK;
}

void td_predict_shrink(const struct td_machine *m, uint32_t n, struct td_machine *out)
{
    uint32_t n_before[TD_PLAN_MAX_RANKS] = {0}, n_left[TD_PLAN_MAX_RANKS] = {0};

    *out = *m;
    out->n_ranks = n;
    out->n_hosts = 0;
    for (uint32_t i = 0; i < m->n_ranks; i++) {
        uint32_t host = m->rank[i].host;

        n_before[host]++;
        n_left[host] += i < n;
        if (i < n && host >= out->n_hosts)
            out->n_hosts = host + 1;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct td_machine_rank *r = &out->rank[i];
        double limit = m->host_bytes_per_s[r->host], more;

        if (limit == 0.0)
            continue;
        more = (double)n_before[r->host] / n_left[r->host];
        r->memory_bytes = (uint64_t)((double)r->memory_bytes * more);
        r->memory_bytes_per_s =
            fmin(r->memory_bytes_per_s * more, fmax(limit, r->memory_bytes_per_s));
        for (int k = 0; k < TD_N_RATES; k++)
            r->ops_per_s[k] *= more;
    }
}
