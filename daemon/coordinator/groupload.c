/* A group's load: the plan for those who are there, what each rank is told to load, and that all have. */
#include "daemon/coordinator/coord_impl.h"
#include "daemon/engine/draft.h"
#include "daemon/log.h"

#include <stdlib.h>
#include <string.h>

bool td_group_drop_model(struct group *g, const struct td_err *err)
{
    struct td_coord *c = g->c;

    if (!c->load_done)
        return false;
    td_log_warn("model refused path=%s error=\"%s\"", c->served ? c->served->path : "", err->cause);
    td_compute_load_free(g->load);
    g->load = NULL;
    td_served_release(c->served);
    c->served = NULL;
    td_coord_load_finished(c, err);
    return true;
}

static struct td_compute_load *make_load(struct group *g)
{
    const struct td_coord *c = g->c;
    struct td_compute_load *load = calloc(1, sizeof *load);
    const char *draft = c->served->draft_path, *dir = c->p.offload_dir;

    if (load) {
        load->path = strdup(c->served->path);
        load->offload_dir = dir ? strdup(dir) : NULL;
        load->draft_path = draft ? strdup(draft) : NULL;
    }
    if (!load || !load->path || (dir && !load->offload_dir) || (draft && !load->draft_path)) {
        td_compute_load_free(load);
        return NULL;
    }
    memcpy(load->model_hash, c->served->hash, sizeof load->model_hash);
    load->verify = c->p.verify;
    load->max_queue = c->p.limits.max_queue + c->p.wish.max_num_seqs;
    load->prefix_cache = c->p.prefix_cache;
    load->max_draft_tokens =
        c->p.max_draft_tokens || !draft ? c->p.max_draft_tokens : TD_DRAFT_DEFAULT_TOKENS;
    load->max_stretch_percent = c->p.max_stretch_percent;
    load->op_limit_ns = c->p.op_limit_ns;
    load->plan = c->p.wish;
    load->plan.n_ranks = g->n_ranks;
    load->plan.device = g->members[0].public.device_kind; /* which they have in common */
    if (g->n_ranks != c->p.n_ranks && c->p.n_ranks) {     /* another layout, of whom is left */
        load->plan.tp = load->plan.pp = 0;
        load->plan.share = NULL;
    }
    if (c->p.kv_dtype_auto)
        load->plan.kv_dtype = c->served->spec->dtype == TD_F32 ? TD_F32 : TD_F16;
    for (uint32_t i = 0; i < g->n_ranks; i++) {
        load->memory[i] = g->members[i].public.memory_bytes;
        load->share[i] = load->plan.share ? load->plan.share[i] : 0;
    }
    load->plan.memory_bytes = load->memory;
    load->plan.share = load->plan.share ? load->share : NULL;
    return load;
}

static enum td_status check_numerics(const struct group *g, struct td_err *err)
{
    for (uint32_t i = 1; i < g->n_ranks; i++)
        if (strcmp(g->members[i].public.numerics, g->members[0].public.numerics) != 0)
            return td_err_set(err, TD_PEER_MISMATCH,
                              "rank %u on %s computes in class '%s', rank 0 on %s in '%s'", i,
                              g->members[i].public.host, g->members[i].public.numerics,
                              g->members[0].public.host, g->members[0].public.numerics);
    return TD_OK;
}

/* A group that is to take over holds what the present one does, in the memory that is free now, or does not come. */
static enum td_status make_successor_plan(struct group *g, struct td_err *err)
{
    const struct td_plan_model *model = g->c->served->plan_model;
    struct td_plan_params *p = &g->load->plan;
    uint32_t needed = g->c->served->max_model_len, room;
    enum td_status s = td_plan_make(model, p, g->plan, err);

    if (!s && g->plan->max_model_len >= needed)
        return TD_OK;
    p->max_model_len = needed;
    if (!td_plan_make(model, p, g->plan, err))
        return TD_OK;
    p->max_model_len = 0; /* as much as fits */
    s = td_plan_make(model, p, g->plan, err);
    room = g->plan->max_model_len;
    if (s)
        return s;
    return td_err_set(err, TD_TOO_LARGE,
                      "beside the group that serves there is room for a context of %u tokens in "
                      "the memory that is free now, and that group serves %u",
                      room, needed);
}

/* Open requests count on the context that they were accepted with: it becomes smaller only when it must. */
static enum td_status make_plan(struct group *g, struct td_err *err)
{
    const struct td_coord *c = g->c;
    struct td_plan_params *p = &g->load->plan;
    uint32_t wished = p->max_model_len;

    if (g == c->next)
        return make_successor_plan(g, err);
    if (c->is_recovering) {
        p->max_model_len = c->served->max_model_len;
        if (!td_plan_make(c->served->plan_model, p, g->plan, err))
            return TD_OK;
        p->max_model_len = wished;
    }
    return td_plan_make(c->served->plan_model, p, g->plan, err);
}

static enum td_status tell_load(struct group *g, struct td_err *err)
{
    enum td_status s = TD_OK;

    for (uint32_t i = 0; !s && i < g->n_ranks; i++) {
        td_wire_coordinator_message m = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__INIT;

        m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_ASSIGN;
        m.assign = td_wire_assign_make(g->load, i, &g->c->arena);
        s = m.assign ? td_group_send(g, &g->members[i], &m, err)
                     : td_err_set(err, TD_NO_MEMORY, "no memory for a plan");
        td_arena_rewind(&g->c->arena);
    }
    for (uint32_t i = 0; !s && i < g->n_ranks; i++) {
        Tensord__Worker__V1__Load load = TENSORD__WORKER__V1__LOAD__INIT;
        td_wire_coordinator_message m = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__INIT;

        m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_LOAD;
        m.load = &load;
        s = td_group_send(g, &g->members[i], &m, err);
    }
    return s;
}

void td_group_plan_and_load(struct group *g)
{
    struct td_err err;
    enum td_status s = check_numerics(g, &err);

    td_compute_load_free(g->load);
    g->load = NULL;
    if (!s && !g->plan && !(g->plan = calloc(1, sizeof *g->plan)))
        s = td_err_set(&err, TD_NO_MEMORY, "no memory for the plan");
    if (!s && !(g->load = make_load(g)))
        s = td_err_set(&err, TD_NO_MEMORY, "no memory for a load");
    if (!s && g->c->served->draft)
        s = td_draftmodel_reserve(g->c->served->draft, &g->load->plan, &err);
    s = s ? s : make_plan(g, &err);
    if (s && td_group_drop_model(g, &err)) {
        td_coord_set_state(g, TD_GROUP_LAUNCHING); /* the workers stay and wait for a model */
        return;
    }
    if (!s) {
        if (g == g->c->current)
            g->c->served->max_model_len = g->plan->max_model_len;
        g->load->plan.tp = g->plan->tp;
        g->load->plan.pp = g->plan->pp;
        g->n_submits = 0;
        g->load_start_ns = uv_hrtime();
        td_coord_set_state(g, TD_GROUP_LOADING);
    }
    s = s ? s : tell_load(g, &err);
    if (s)
        td_group_lose(g, &err);
}

void td_group_loaded(struct member *m, const Tensord__Worker__V1__Ready *r)
{
    struct group *g = m->group;

    m->public.loaded = true;
    m->steps = (struct td_stepwatch){.n_marks = 0}; /* those of the model before are over */
    snprintf(m->public.transport, sizeof m->public.transport, "%s", r->transport);
    m->public.gpu_energy_before = 0; /* the next heartbeat tells it */
    m->public.weight_bytes = r->weight_bytes;
    m->public.kv_bytes = r->kv_bytes;
    m->public.resident_bytes = r->resident_bytes;
    for (uint32_t i = 0; i < g->n_ranks; i++)
        if (!g->members[i].public.loaded)
            return;
    if (g->state != TD_GROUP_LOADING)
        return;
    g->was_ready = true;
    td_log_info("group ready generation=%u ranks=%u tp=%u pp=%u load_ms=%llu", g->generation,
                g->n_ranks, g->plan->tp, g->plan->pp,
                (unsigned long long)((uv_hrtime() - g->load_start_ns) / 1000000u));
    if (g == g->c->next) {
        td_roll_take_over(g);
        return;
    }
    td_coord_set_state(g, TD_GROUP_READY);
    td_coord_load_finished(g->c, NULL);
    td_replay_turn(g->c);
}
