#include "shard/machinejson.h"

#include <string.h>

static const char *const rates[TD_N_RATES] = {
    [TD_RATE_INT8] = "int8", [TD_RATE_BF16] = "bf16", [TD_RATE_F32] = "f32"};
static const char *const link_names[] = {"intra_host", "inter_host"};
/* Of a link that nobody uses: legal, and of no effect. */
static const struct td_machine_link UNUSED = {0.0, 1e12};

bool td_machinejson_has_link(const struct td_machine *m, bool inter)
{
    return inter ? m->n_hosts > 1 : m->n_ranks > m->n_hosts;
}

json_t *td_machinejson_encode(const struct td_machine *m, const char *source,
                              const char *links_source)
{
    const struct td_machine_link *const links[] = {&m->intra, &m->inter};
    json_t *ranks = json_array();
    json_t *j = json_pack("{s:s,s:s}", "source", source, "links_source", links_source);

    for (uint32_t i = 0; i < m->n_ranks; i++) {
        const struct td_machine_rank *r = &m->rank[i];
        json_t *ops = json_object();

        for (int k = 0; k < TD_N_RATES; k++)
            json_object_set_new(ops, rates[k],
                                r->ops_per_s[k] > 0.0 ? json_real(r->ops_per_s[k]) : json_null());
        json_array_append_new(
            ranks, json_pack("{s:I,s:f,s:f,s:o,s:b,s:I,s:f}", "host", (json_int_t)r->host,
                             "memory_bytes_per_second", r->memory_bytes_per_s,
                             "host_memory_bytes_per_second", m->host_bytes_per_s[r->host],
                             "ops_per_second", ops, "tiles", (int)r->has_tiles, "memory_bytes",
                             (json_int_t)r->memory_bytes, "host_seconds_per_step", r->host_s));
    }
    json_object_set_new(j, "ranks", ranks);
    for (int i = 0; i < 2; i++)
        if (td_machinejson_has_link(m, i))
            json_object_set_new(j, link_names[i],
                                json_pack("{s:f,s:f}", "latency_seconds", links[i]->latency_s,
                                          "bytes_per_second", links[i]->bytes_per_s));
    return j;
}

/* ---- reading ---- */

static enum td_status read_number(const json_t *object, const char *key, double *out,
                                  struct td_err *err)
{
    const json_t *j = json_object_get(object, key);

    if (!json_is_number(j))
        return td_err_set(err, TD_INVALID, "the machine's '%s' is %s: expected a number", key,
                          j ? "none" : "missing");
    *out = json_number_value(j);
    return TD_OK;
}

/* Up to 2^53, which a double still holds whole. */
static enum td_status read_count(const json_t *object, const char *key, uint64_t most,
                                 uint64_t *out, struct td_err *err)
{
    const json_t *j = json_object_get(object, key);
    json_int_t value = json_integer_value(j);

    if (!json_is_integer(j) || value < 0 || (uint64_t)value > most)
        return td_err_set(err, TD_INVALID,
                          "the machine's '%s' is %s: expected a whole number from 0 to %llu", key,
                          j ? "none" : "missing", (unsigned long long)most);
    *out = (uint64_t)value;
    return TD_OK;
}

static enum td_status read_rates(const json_t *ops, struct td_machine_rank *r, struct td_err *err)
{
    enum td_status s = TD_OK;

    for (int k = 0; !s && k < TD_N_RATES; k++)
        if (!json_is_null(json_object_get(ops, rates[k])))
            s = read_number(ops, rates[k], &r->ops_per_s[k], err);
    return s;
}

static enum td_status read_rank(const json_t *j, struct td_machine *m, struct td_machine_rank *r,
                                struct td_err *err)
{
    double host_bytes_per_s = 0.0;
    uint64_t host = 0;
    enum td_status s = read_count(j, "host", TD_PLAN_MAX_RANKS - 1, &host, err);

    s = s ? s : read_number(j, "memory_bytes_per_second", &r->memory_bytes_per_s, err);
    s = s ? s : read_number(j, "host_memory_bytes_per_second", &host_bytes_per_s, err);
    s = s ? s : read_count(j, "memory_bytes", (uint64_t)1 << 53, &r->memory_bytes, err);
    s = s ? s : read_number(j, "host_seconds_per_step", &r->host_s, err);
    s = s ? s : read_rates(json_object_get(j, "ops_per_second"), r, err);
    r->has_tiles = json_is_true(json_object_get(j, "tiles"));
    r->host = (uint32_t)host;
    if (s)
        return s;
    m->host_bytes_per_s[host] = host_bytes_per_s;
    m->n_hosts = r->host >= m->n_hosts ? r->host + 1 : m->n_hosts;
    return TD_OK;
}

static enum td_status read_link(const json_t *root, struct td_machine *m, bool inter,
                                struct td_err *err)
{
    struct td_machine_link *link = inter ? &m->inter : &m->intra;
    const json_t *j = json_object_get(root, link_names[inter]);
    enum td_status s;

    *link = UNUSED;
    if (!td_machinejson_has_link(m, inter))
        return TD_OK;
    s = read_number(j, "latency_seconds", &link->latency_s, err);
    s = s ? s : read_number(j, "bytes_per_second", &link->bytes_per_s, err);
    if (s)
        td_err_context(err, "%s", link_names[inter]);
    return s;
}

enum td_status td_machinejson_decode(const json_t *json, struct td_machine *m, struct td_err *err)
{
    const json_t *ranks = json_object_get(json, "ranks");
    size_t n = json_array_size(ranks);
    enum td_status s = TD_OK;

    memset(m, 0, sizeof *m);
    if (n == 0 || n > TD_PLAN_MAX_RANKS)
        return td_err_set(err, TD_INVALID,
                          "the machine's 'ranks' has %zu entries: expected a list of 1 to %d", n,
                          TD_PLAN_MAX_RANKS);
    for (size_t i = 0; !s && i < n; i++)
        s = read_rank(json_array_get(ranks, i), m, &m->rank[i], err);
    m->n_ranks = (uint32_t)n;
    s = s ? s : read_link(json, m, false, err);
    s = s ? s : read_link(json, m, true, err);
    return s ? s : td_predict_check(m, err);
}
