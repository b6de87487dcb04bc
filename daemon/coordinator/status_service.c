#include "daemon/coordinator/status_service.h"

#include "daemon/api/http1.h"
#include "daemon/api/json.h"
#include "daemon/api/openai.h"
#include "daemon/coordinator/coordinator.h"
#include "daemon/coordinator/drain_service.h"
#include "daemon/coordinator/gpu_metrics.h"
#include "daemon/coordinator/roll_service.h"

#include <string.h>

/* Appends `"name":"text"` behind a comma. */
static enum td_status text(struct td_bytes *out, const char *name, const char *value)
{
    enum td_status s = td_bytes_appendf(out, ",\"%s\":", name);

    return s ? s : td_json_append_string(out, td_str_from(value));
}

static enum td_status number(struct td_bytes *out, const char *name, uint64_t value)
{
    return td_bytes_appendf(out, ",\"%s\":%llu", name, (unsigned long long)value);
}

static const char *rank_state(const struct td_member *m)
{
    return m->lost               ? "lost"
           : m->loaded           ? "ready"
           : !m->attached        ? "absent"
           : m->load_total_bytes ? "loading"
                                 : "registered";
}

static enum td_status write_rank(const struct td_coord_status *st, uint32_t i, struct td_bytes *out)
{
    const struct td_member *m = &st->members[i];
    const struct td_plan_rank *p = st->plan && i < st->plan->n_ranks ? &st->plan->rank[i] : NULL;
    uint64_t now = uv_hrtime();
    enum td_status s = td_bytes_appendf(out, "%s{\"rank\":%u", i ? "," : "", m->rank);

    /* null until it registers: whoever sends a signal to 0 ends itself. */
    s = s        ? s
        : m->pid ? number(out, "pid", (uint64_t)m->pid)
                 : td_bytes_append_str(out, TD_STR(",\"pid\":null"));
    s = s ? s : text(out, "host", m->host);
    s = s ? s : text(out, "device", m->device);
    s = s ? s : text(out, "state", rank_state(m));
    s = s ? s : number(out, "n_cores", m->n_cores);
    s = s ? s : number(out, "memory_bytes", m->memory_bytes);
    s = s ? s : number(out, "weight_bytes", m->weight_bytes);
    s = s ? s : number(out, "kv_bytes", m->kv_bytes);
    s = s ? s : number(out, "resident_bytes", m->resident_bytes);
    if (p && !s)
        s = td_bytes_appendf(out, ",\"stage\":%u,\"tp_rank\":%u,\"first_layer\":%u,\"n_layers\":%u",
                             p->stage, p->tp_index, p->layer_begin, p->layer_end - p->layer_begin);
    s = s ? s : number(out, "loaded_bytes", m->load_done_bytes);
    s = s ? s : number(out, "load_total_bytes", m->load_total_bytes);
    s = s ? s : number(out, "exchanged_bytes", m->exchanged_bytes);
    s = s ? s : number(out, "n_steps", m->n_steps);
    s = s ? s : number(out, "wait_ns", m->wait_ns);
    s = s ? s : number(out, "step_ns", m->step_ns);
    s = s ? s : number(out, "gap_ns", m->gap_ns);
    s = s ? s : number(out, "n_gaps", m->n_gaps);
    s = s ? s
          : number(out, "heartbeat_age_ns",
                   m->heartbeat_ns && now > m->heartbeat_ns ? now - m->heartbeat_ns : 0);
    s = s ? s : number(out, "generation", st->generation);
    s = s ? s : text(out, "numerics_class", m->numerics);
    if (!s && m->bus_id[0]) {
        s = td_bytes_append_str(out, TD_STR(",\"gpu\":"));
        s = s ? s : td_gpu_metrics_json(m, out);
    }
    return s ? s : td_bytes_append_str(out, TD_STR("}"));
}

/* The class that all ranks run in; empty while they differ or are not there. */
static const char *common_class(const struct td_coord_status *st)
{
    for (uint32_t i = 1; i < st->n_ranks; i++)
        if (strcmp(st->members[i].numerics, st->members[0].numerics) != 0)
            return "";
    return st->n_ranks ? st->members[0].numerics : "";
}

static enum td_status write_group(const struct td_coord_status *st,
                                  const struct td_coord_limits *limits, uint32_t id,
                                  struct td_bytes *out)
{
    const struct td_served *served = st->served;
    const struct td_plan *plan = st->plan;
    uint64_t n_steps = 0;
    enum td_status s =
        td_bytes_appendf(out, "{\"group_id\":%u,\"generation\":%u", id, st->generation);

    for (uint32_t i = 0; i < st->n_ranks; i++)
        n_steps = st->members[i].n_steps > n_steps ? st->members[i].n_steps : n_steps;
    s = s ? s : text(out, "role", td_group_role_name(st->role));
    s = s ? s : text(out, "state", td_group_state_name(st->state));
    s = s ? s : text(out, "model", served ? served->names[0] : "");
    s = s ? s : text(out, "model_path", served ? served->path : "");
    s = s ? s : text(out, "model_hash", served ? served->hash : "");
    if (!s)
        s = td_bytes_appendf(out, ",\"layout\":{\"tp\":%u,\"pp\":%u,\"ep\":1,\"cp\":1,\"dp\":1}",
                             plan ? plan->tp : 0, plan ? plan->pp : 0);
    s = s ? s : text(out, "numerics_class", common_class(st));
    s = s ? s : text(out, "transport", st->n_ranks ? st->members[0].transport : "");
    s = s ? s : number(out, "n_running", st->n_running);
    s = s ? s : number(out, "n_waiting", st->n_waiting);
    s = s ? s : number(out, "n_open", st->n_here);
    s = s ? s : number(out, "kv_blocks", plan ? plan->n_blocks : 0);
    s = s ? s : number(out, "kv_blocks_used", st->kv_blocks_used);
    s = s ? s : number(out, "kv_blocks_idle", st->kv_blocks_idle);
    s = s ? s : number(out, "kv_blocks_offloaded_memory", st->kv_blocks_memory);
    s = s ? s : number(out, "kv_blocks_offloaded_file", st->kv_blocks_file);
    s = s ? s : number(out, "kv_blocks_read", st->kv_blocks_read);
    s = s ? s : number(out, "kv_reads_failed", st->kv_failed_reads);
    s = s ? s : number(out, "kv_block_tokens", plan ? plan->block_tokens : 0);
    s = s ? s : number(out, "max_model_len", plan ? plan->max_model_len : 0);
    s = s ? s : number(out, "max_num_seqs", plan ? plan->max_num_seqs : 0);
    s = s ? s : number(out, "max_queue", limits->max_queue);
    s = s ? s : number(out, "max_concurrency_per_key", limits->max_open_per_key);
    s = s ? s : number(out, "max_tokens_per_minute_per_key", limits->tokens_per_minute_per_key);
    s = s ? s : number(out, "request_timeout_ns", limits->request_timeout_ns);
    s = s ? s : number(out, "n_steps", n_steps);
    s = s ? s : number(out, "prompt_tokens", st->prompt_tokens);
    s = s ? s : number(out, "cached_tokens", st->cached_tokens);
    s = s ? s : number(out, "draft_tokens", st->draft_tokens);
    s = s ? s : number(out, "right_drafts", st->right_drafts);
    s = s ? s : number(out, "device_draws", st->device_draws);
    s = s ? s : number(out, "generated_tokens", st->generated_tokens);
    s = s ? s : number(out, "n_restarts", st->n_restarts);
    s = s ? s : text(out, "last_error", st->last_error);
    s = s ? s : td_bytes_append_str(out, TD_STR(",\"ranks\":["));
    for (uint32_t i = 0; !s && i < st->n_ranks; i++)
        s = write_rank(st, i, out);
    return s ? s : td_bytes_append_str(out, TD_STR("]}"));
}

enum td_status td_status_service_write(struct td_coord *coord, struct td_bytes *out)
{
    struct td_coord_status st, other;
    uint64_t n_refused = 0;
    enum td_status s = td_bytes_append_str(out, TD_STR("{\"version\":\"" TD_VERSION "\""));

    td_coord_status(coord, &st);
    s = s ? s : number(out, "uptime_ns", uv_hrtime() - st.start_ns);
    s = s ? s : td_bytes_appendf(out, ",\"ready\":%s", td_coord_is_well(coord) ? "true" : "false");
    s = s ? s : number(out, "n_requests", st.n_requests);
    s = s ? s : number(out, "n_requests_failed", st.n_failed);
    for (int i = 0; i < TD_N_REFUSALS; i++)
        n_refused += st.n_refused[i];
    s = s ? s : number(out, "n_requests_refused", n_refused);
    s = s ? s : number(out, "n_deadlines_passed", st.n_deadlines);
    s = s ? s : td_bytes_append_str(out, TD_STR(",\"drain\":"));
    s = s ? s : td_drain_service_write(&st, out);
    s = s ? s : td_bytes_append_str(out, TD_STR(",\"roll\":"));
    s = s ? s : td_roll_service_write(&st, out);
    s = s ? s : td_bytes_append_str(out, TD_STR(",\"groups\":["));
    s = s ? s : write_group(&st, td_coord_limits(coord), 0, out);
    if (!s && td_coord_status_other(coord, &other)) {
        s = td_bytes_append_str(out, TD_STR(","));
        s = s ? s : write_group(&other, td_coord_limits(coord), 1, out);
    }
    return s ? s : td_bytes_append_str(out, TD_STR("]}"));
}

static void answer(struct td_http_request *req, void *user)
{
    struct td_bytes out = {0};
    struct td_openai_error error;

    if (td_status_service_write(user, &out)) {
        td_openai_error_set(&error, 503, "server_error", NULL, NULL, "no memory for the status");
        td_http_respond_error(req, &error);
    } else {
        td_http_respond(req, 200, "application/json", td_bytes_str(&out));
    }
    td_bytes_deinit(&out);
}

enum td_status td_status_service_open(struct td_coord *coord, struct td_route_table *routes,
                                      const struct td_auth *auth, struct td_err *err)
{
    struct td_route route = {
        .method = "GET", .path = "/status", .auth = auth, .handler = answer, .user = coord};

    return td_route_add(routes, &route, err);
}
