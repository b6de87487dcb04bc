/* The layouts as people and programs read them (declared in layouts.h). */
#include "shard/jsonalloc.h"
#include "shard/layouts.h"
#include "shard/machinejson.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const rates[TD_N_RATES] = {
    [TD_RATE_INT8] = "int8", [TD_RATE_BF16] = "bf16", [TD_RATE_F32] = "f32"};

static const char *rate(double v, char out[16])
{
    snprintf(out, 16, "%.*f", v < 10.0 ? 2 : v < 1000.0 ? 1 : 0, v);
    return out;
}

/* ---- text ---- */

/* Neighbours with the same figures, which one line tells of. */
static bool is_alike(const struct td_machine *m, uint32_t a, uint32_t b)
{
    struct td_machine_rank x = m->rank[a], y = m->rank[b];

    return x.memory_bytes == y.memory_bytes && x.memory_bytes_per_s == y.memory_bytes_per_s &&
           memcmp(x.ops_per_s, y.ops_per_s, sizeof x.ops_per_s) == 0 &&
           x.has_tiles == y.has_tiles && x.host_s == y.host_s &&
           m->host_bytes_per_s[x.host] == m->host_bytes_per_s[y.host];
}

static enum td_status print_ranks(const struct td_machine *m, uint32_t first, uint32_t n,
                                  struct td_bytes *out)
{
    const struct td_machine_rank *r = &m->rank[first];
    uint32_t n_hosts = m->rank[first + n - 1].host - r->host + 1;
    char name[32];
    enum td_status s;

    snprintf(name, sizeof name, n > 1 ? "%u-%u" : "%u", first, first + n - 1);
    s = td_bytes_appendf(out, "rank%-6s%s on %u host%s: each reads %.1f GB/s", n > 1 ? "s" : "",
                         name, n_hosts, n_hosts == 1 ? "" : "s", r->memory_bytes_per_s * 1e-9);
    if (!s && m->host_bytes_per_s[r->host] > 0.0)
        s = td_bytes_appendf(out, " (%.1f GB/s all of a host)",
                             m->host_bytes_per_s[r->host] * 1e-9);
    for (int k = 0; !s && k < TD_N_RATES; k++)
        if (r->ops_per_s[k] > 0.0)
            s = td_bytes_appendf(out, ", %s %.0f Gop/s", rates[k], r->ops_per_s[k] * 1e-9);
    if (!s && r->has_tiles)
        s = td_bytes_appendf(out, " with tiles");
    if (!s && r->memory_bytes)
        s = td_bytes_appendf(out, ", has %.1f GiB",
                             (double)r->memory_bytes / (double)((uint64_t)1 << 30));
    return s ? s : td_bytes_appendf(out, ", %.0f us of host time per step\n", r->host_s * 1e6);
}

static enum td_status print_links(const struct td_machine *m,
                                  const struct td_layouts_source *source, struct td_bytes *out)
{
    const char *lead = ": ";
    enum td_status s = TD_OK;

    if (m->n_ranks == 1)
        return TD_OK;
    s = td_bytes_appendf(out, "links     %s", source->links);
    for (int inter = 0; !s && inter < 2; inter++) {
        const struct td_machine_link *link = inter ? &m->inter : &m->intra;

        if (!td_machinejson_has_link(m, inter))
            continue;
        s = td_bytes_appendf(out, "%s%.1f us and %.2f GB/s %s", lead, link->latency_s * 1e6,
                             link->bytes_per_s * 1e-9, inter ? "between hosts" : "inside a host");
        lead = ", ";
    }
    return s ? s : td_bytes_appendf(out, "\n");
}

static enum td_status print_machine(const struct td_layouts *l,
                                    const struct td_layouts_source *source, struct td_bytes *out)
{
    const struct td_machine *m = l->machine;
    enum td_status s = td_bytes_appendf(out, "machine   %s\n", source->machine);

    for (uint32_t first = 0; !s && first < m->n_ranks;) {
        uint32_t n = 1;

        while (first + n < m->n_ranks && is_alike(m, first, first + n))
            n++;
        s = print_ranks(m, first, n, out);
        first += n;
    }
    return s ? s : print_links(m, source, out);
}

static enum td_status print_row(const struct td_layouts *l, uint32_t i, struct td_bytes *out)
{
    const struct td_layout *r = &l->row[i];
    const struct td_predict_phase *d = &r->speed.decode, *b = &r->speed.batch,
                                  *p = &r->speed.prefill;
    double exchange = (d->part_s[TD_PART_LATENCY] + d->part_s[TD_PART_BANDWIDTH]) * 1e6;
    char x[16], y[16], z[16];

    if (!r->fits)
        return td_bytes_appendf(out, "%5u %3u %3u  %s\n", r->n_ranks, r->tp, r->pp, r->obstacle);
    return td_bytes_appendf(
        out, "%5u %3u %3u  %9s  %9s  %9s  %13.0f  %s%s%s%s%s%s\n", r->n_ranks, r->tp, r->pp,
        rate(d->tokens_per_s, x), r->batch_fits ? rate(b->tokens_per_s, y) : "no room",
        rate(p->tokens_per_s, z), exchange, td_predict_part_name(d->bottleneck),
        r->batch_fits ? " / " : "", r->batch_fits ? td_predict_part_name(b->bottleneck) : "", " / ",
        td_predict_part_name(p->bottleneck), i == l->best ? "  <" : "");
}

enum td_status td_layouts_print(const struct td_layouts *l, const struct td_layouts_source *source,
                                struct td_bytes *out)
{
    const struct td_spec *spec = l->model->spec;
    char batch[32];
    enum td_status s =
        td_bytes_appendf(out, "model     %s (%s, %u layers), most weights %s\n", l->model->name,
                         spec->name, spec->n_layers, td_dtype_info(spec->dtype)->name);

    s = s ? s : print_machine(l, source, out);
    snprintf(batch, sizeof batch, "batch %u", l->load.batch);
    s = s ? s
          : td_bytes_appendf(
                out,
                "asked     one sequence and %u at a depth of %u, a prompt of %u tokens\n\n"
                "ranks  tp  pp     decode  %9s     prompt  exchange/token  limited by (decode / "
                "%s / prompt)\n"
                "                   tok/s      tok/s      tok/s              us\n",
                l->load.batch, l->load.depth, l->load.prompt_tokens, batch, batch);
    for (uint32_t i = 0; !s && i < l->n; i++)
        s = print_row(l, i, out);
    s = s ? s : td_bytes_appendf(out, "\n");
    return s ? s : td_layouts_advise(l, out);
}

/* ---- JSON ---- */

static json_t *phase_json(const struct td_predict_phase *p)
{
    static const char *const keys[TD_N_PARTS] = {"memory", "arithmetic", "exchange_latency",
                                                 "exchange_bandwidth", "host"};
    json_t *parts = json_object();

    for (int i = 0; i < TD_N_PARTS; i++)
        json_object_set_new(parts, keys[i], json_real(p->part_s[i]));
    return json_pack("{s:f,s:f,s:o,s:s,s:f,s:f}", "tokens_per_second", p->tokens_per_s,
                     "seconds_per_token", p->token_s, "seconds_per_token_by_part", parts,
                     "bottleneck", keys[p->bottleneck], "exchanges", p->n_exchanges, "seconds",
                     p->step_s);
}

static json_t *row_json(const struct td_layout *r)
{
    json_t *j =
        json_pack("{s:I,s:I,s:I,s:b}", "ranks", (json_int_t)r->n_ranks, "tensor_parallel",
                  (json_int_t)r->tp, "pipeline_parallel", (json_int_t)r->pp, "fits", (int)r->fits);

    if (!r->fits) {
        json_object_set_new(j, "obstacle", json_string(r->obstacle));
        return j;
    }
    json_object_set_new(j, "most_weight_bytes", json_integer((json_int_t)r->weight_bytes));
    json_object_set_new(j, "decode", phase_json(&r->speed.decode));
    json_object_set_new(j, "batch", r->batch_fits ? phase_json(&r->speed.batch) : json_null());
    json_object_set_new(j, "prefill", phase_json(&r->speed.prefill));
    return j;
}

static json_t *choice_json(const struct td_layouts *l, uint32_t i)
{
    return i == l->n ? json_null()
                     : json_pack("{s:I,s:I,s:I}", "ranks", (json_int_t)l->row[i].n_ranks,
                                 "tensor_parallel", (json_int_t)l->row[i].tp, "pipeline_parallel",
                                 (json_int_t)l->row[i].pp);
}

enum td_status td_layouts_print_json(const struct td_layouts *l,
                                     const struct td_layouts_source *source, struct td_bytes *out)
{
    struct td_bytes advice = {0};
    uint64_t failures = td_jsonalloc_failures();
    json_t *rows = json_array(), *root;
    char *text;
    enum td_status s = td_layouts_advise(l, &advice);

    if (s) {
        json_decref(rows);
        return s;
    }
    for (uint32_t i = 0; i < l->n; i++)
        json_array_append_new(rows, row_json(&l->row[i]));
    root =
        json_pack("{s:s,s:o,s:{s:I,s:I,s:I},s:o,s:{s:o,s:o,s:o},s:s}", "model", l->model->name,
                  "machine", td_machinejson_encode(l->machine, source->machine, source->links),
                  "asked", "batch", (json_int_t)l->load.batch, "depth", (json_int_t)l->load.depth,
                  "prompt_tokens", (json_int_t)l->load.prompt_tokens, "layouts", rows, "fastest",
                  "decode", choice_json(l, l->best), "batch", choice_json(l, l->best_batch),
                  "prefill", choice_json(l, l->best_prefill), "advice", advice.data);
    text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    s = text && td_jsonalloc_failures() == failures ? td_bytes_appendf(out, "%s\n", text)
                                                    : TD_NO_MEMORY;
    free(text);
    json_decref(root);
    td_bytes_deinit(&advice);
    return s;
}
