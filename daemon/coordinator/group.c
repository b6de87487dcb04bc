/* A group of workers: the places of its ranks, and what they are told. */
#include "daemon/coordinator/coord_impl.h"

#include <stdlib.h>

enum td_status td_group_open(struct td_coord *c, struct group **out, struct td_err *err)
{
    struct group *g = calloc(1, sizeof *g);

    if (!g)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a group");
    g->c = c;
    td_vigil_init(&g->vigil, c->p.dead_ns, uv_hrtime());
    *out = g;
    return TD_OK;
}

void td_group_forget_members(struct group *g)
{
    for (uint32_t i = 0; i < g->n_ranks; i++) {
        struct td_grpc_stream *stream = g->members[i].stream;

        if (!stream)
            continue;
        td_grpc_stream_set_user(stream, NULL);
        g->members[i].stream = NULL;
        td_grpc_stream_finish(stream, TD_GRPC_UNAVAILABLE, TD_STR("the group was ended"));
    }
    for (uint32_t i = 0; i < g->n_ranks; i++)
        g->members[i] = (struct member){.public.rank = i, .group = g};
}

void td_group_close(struct group *g)
{
    if (!g)
        return;
    td_farewell_finish(g);
    td_group_forget_members(g);
    td_compute_load_free(g->load);
    free(g->plan);
    free(g->members);
    free(g->published);
    free(g);
}

struct group *td_group_find(const struct td_coord *c, uint32_t generation)
{
    struct group *const all[] = {c->current, c->next, c->leaving};

    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (all[i] && all[i]->generation == generation)
            return all[i];
    return NULL;
}

enum td_status td_group_size(struct group *g, uint32_t n, struct td_err *err)
{
    struct member *members = calloc(n, sizeof *members);
    struct td_member *published = calloc(n, sizeof *published);

    if (!members || !published) {
        free(members);
        free(published);
        return td_err_set(err, TD_NO_MEMORY, "no memory for %u ranks", n);
    }
    free(g->members);
    free(g->published);
    g->members = members;
    g->published = published;
    g->n_ranks = n;
    for (uint32_t i = 0; i < n; i++)
        g->members[i] = (struct member){.public.rank = i, .group = g};
    return TD_OK;
}

bool td_group_all_attached(const struct group *g)
{
    for (uint32_t i = 0; i < g->n_ranks; i++)
        if (!g->members[i].stream)
            return false;
    return g->n_ranks > 0;
}

/* ---- to the workers ---- */

enum td_status td_group_send(struct group *g, struct member *m,
                             td_wire_coordinator_message *message, struct td_err *err)
{
    enum td_status s;

    message->generation = g->generation;
    message->model_id = 1;
    message->cookie = m->cookie;
    s = m->stream ? td_rpc_pack(&message->base, &g->c->packed, err)
                  : td_err_set(err, TD_PEER_LOST, "rank %u is not attached", m->public.rank);
    s = s ? s : td_grpc_stream_send(m->stream, td_bytes_str(&g->c->packed), err);
    /* Its stream is about to end: nobody has cancelled what was to be sent. */
    return s == TD_CANCELLED ? td_err_set(err, TD_PEER_LOST, "rank %u is lost", m->public.rank) : s;
}

#define MESSAGE(name)                                                                              \
    td_wire_coordinator_message name = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__INIT

/* Rank 0 has got one more submit: the others may sleep. A rank that cannot be told would sleep on while rank 0 waits for it: its
 * stream ends, so that it is noticed as lost. */
static void wake_others(struct group *g)
{
    Tensord__Worker__V1__Wake wake = TENSORD__WORKER__V1__WAKE__INIT;
    struct td_err err;

    wake.n_submits = ++g->n_submits;
    for (uint32_t i = 1; i < g->n_ranks; i++) {
        MESSAGE(m);

        m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_WAKE;
        m.wake = &wake;
        if (td_group_send(g, &g->members[i], &m, &err) && g->members[i].stream)
            td_grpc_stream_fail(g->members[i].stream, &err);
    }
}

enum td_status td_group_send_submit(struct group *g, const struct td_request *r, struct td_err *err)
{
    enum td_status s = TD_OK;
    MESSAGE(m);

    m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_SUBMIT;
    m.submit = td_wire_submit_make(r, g->n_submits + 1, &g->c->arena);
    if (!m.submit)
        s = td_err_set(err, TD_NO_MEMORY, "no memory for a request");
    s = s ? s : td_group_send(g, &g->members[0], &m, err);
    td_arena_rewind(&g->c->arena);
    if (s)
        return s;
    wake_others(g);
    return TD_OK;
}

void td_group_send_pause(struct group *g, uint64_t request_id)
{
    Tensord__Worker__V1__Pause pause = TENSORD__WORKER__V1__PAUSE__INIT;
    MESSAGE(m);

    pause.request_id = request_id;
    m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_PAUSE;
    m.pause = &pause;
    if (g && g->n_ranks)
        (void)td_group_send(g, &g->members[0], &m, NULL);
}

void td_group_send_resume(struct group *g, uint64_t request_id)
{
    Tensord__Worker__V1__Resume resume = TENSORD__WORKER__V1__RESUME__INIT;
    MESSAGE(m);

    if (!g || !g->n_ranks)
        return;
    resume.request_id = request_id;
    resume.number = g->n_submits + 1;
    m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_RESUME;
    m.resume = &resume;
    if (!td_group_send(g, &g->members[0], &m, NULL))
        wake_others(g);
}

void td_group_send_cancel(struct group *g, uint64_t request_id)
{
    Tensord__Worker__V1__Cancel cancel = TENSORD__WORKER__V1__CANCEL__INIT;
    MESSAGE(m);

    cancel.request_id = request_id;
    m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_CANCEL;
    m.cancel = &cancel;
    if (g && g->n_ranks)
        (void)td_group_send(g, &g->members[0], &m, NULL);
}

void td_group_send_all_drain(struct group *g)
{
    Tensord__Worker__V1__Drain drain = TENSORD__WORKER__V1__DRAIN__INIT;

    for (uint32_t i = 0; i < g->n_ranks; i++) {
        MESSAGE(m);

        m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_DRAIN;
        m.drain = &drain;
        (void)td_group_send(g, &g->members[i], &m, NULL);
        g->members[i].public.loaded = false;
        g->members[i].public.weight_bytes = g->members[i].public.kv_bytes = 0;
        g->members[i].public.load_done_bytes = g->members[i].public.load_total_bytes = 0;
    }
}

void td_group_shutdown(struct group *g, const char *reason)
{
    Tensord__Worker__V1__Shutdown shutdown = TENSORD__WORKER__V1__SHUTDOWN__INIT;

    shutdown.reason = (char *)reason;
    for (uint32_t i = 0; i < g->n_ranks; i++) {
        MESSAGE(m);

        m.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_SHUTDOWN;
        m.shutdown = &shutdown;
        (void)td_group_send(g, &g->members[i], &m, NULL);
    }
}
