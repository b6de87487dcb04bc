#include "daemon/engine/wireflight.h"

#include <string.h>

void td_wireflight_at_make(struct td_whereabouts *at, Tensord__Worker__V1__Whereabouts *out)
{
    *out = (Tensord__Worker__V1__Whereabouts)TENSORD__WORKER__V1__WHEREABOUTS__INIT;
    out->stage = (Tensord__Worker__V1__Stage)at->stage;
    out->step_number = at->number;
    out->elapsed_ns = at->elapsed_ns;
    out->limit_ns = at->limit_ns;
    out->operation = at->op;
    out->n_operations = at->n_ops;
    out->operation_ns = at->op_ns;
    out->n_rows = at->n_rows;
}

void td_wireflight_at_read(const Tensord__Worker__V1__Whereabouts *in, struct td_whereabouts *out)
{
    size_t n;

    memset(out, 0, sizeof *out);
    if (!in)
        return;
    if (in->stage == TENSORD__WORKER__V1__STAGE__STAGE_STEP)
        out->stage = TD_RECORDER_STEP;
    else if (in->stage == TENSORD__WORKER__V1__STAGE__STAGE_BETWEEN)
        out->stage = TD_RECORDER_BETWEEN;
    out->number = in->step_number;
    out->elapsed_ns = in->elapsed_ns;
    out->limit_ns = in->limit_ns;
    out->n_ops = in->n_operations;
    out->op_ns = in->operation_ns;
    out->n_rows = in->n_rows;
    for (n = 0; in->operation[n] && n + 1 < sizeof out->op; n++) {
        char c = in->operation[n];
        bool is_name = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';

        out->op[n] = is_name ? c : '?';
    }
}

uint32_t td_wireflight_marks_read(Tensord__Worker__V1__StepMark *const *in, size_t n,
                                  struct td_recorder_mark out[TD_RECORDER_MARKS])
{
    uint32_t n_read = 0;

    for (; n_read < n && n_read < TD_RECORDER_MARKS; n_read++)
        out[n_read] = (struct td_recorder_mark){in[n_read]->number, in[n_read]->hash};
    return n_read;
}

static void put_step(const struct td_recorder_step *s, Tensord__Worker__V1__FlightStep *out)
{
    *out = (Tensord__Worker__V1__FlightStep)TENSORD__WORKER__V1__FLIGHT_STEP__INIT;
    out->number = s->number;
    out->hash = s->hash;
    out->kind = s->kind;
    out->n_rows = s->n_rows;
    out->n_seqs = s->n_seqs;
    out->status = s->status;
    out->begin_ns = s->begin_ns;
    out->told_ns = s->told_ns;
    out->end_ns = s->end_ns;
    out->exchange_ns = s->exchange_ns;
}

Tensord__Worker__V1__Flight *td_wireflight_make(struct td_whereabouts *at, uint64_t now_ns,
                                                const struct td_recorder_step *steps, uint32_t n,
                                                struct td_arena *arena)
{
    Tensord__Worker__V1__Flight *m = td_arena_alloc(arena, sizeof *m);
    Tensord__Worker__V1__Whereabouts *where = td_arena_alloc(arena, sizeof *where);
    Tensord__Worker__V1__FlightStep *all = td_arena_alloc(arena, (n + 1) * sizeof *all);
    Tensord__Worker__V1__FlightStep **list = td_arena_alloc(arena, (n + 1) * sizeof(void *));

    if (!m || !where || !all || !list)
        return NULL;
    *m = (Tensord__Worker__V1__Flight)TENSORD__WORKER__V1__FLIGHT__INIT;
    td_wireflight_at_make(at, where);
    for (uint32_t i = 0; i < n; i++) {
        put_step(&steps[i], &all[i]);
        list[i] = &all[i];
    }
    m->at = where;
    m->timestamp_ns = now_ns;
    m->n_steps = n;
    m->steps = list;
    return m;
}

uint32_t td_wireflight_steps_read(const Tensord__Worker__V1__Flight *in,
                                  struct td_recorder_step out[TD_RECORDER_STEPS])
{
    size_t n = in->n_steps < TD_RECORDER_STEPS ? in->n_steps : TD_RECORDER_STEPS;

    for (size_t i = 0; i < n; i++) {
        const Tensord__Worker__V1__FlightStep *s = in->steps[in->n_steps - n + i];

        out[i] = (struct td_recorder_step){.number = s->number,
                                           .hash = s->hash,
                                           .kind = s->kind,
                                           .n_rows = s->n_rows,
                                           .n_seqs = s->n_seqs,
                                           .status = s->status,
                                           .begin_ns = s->begin_ns,
                                           .told_ns = s->told_ns,
                                           .end_ns = s->end_ns,
                                           .exchange_ns = s->exchange_ns};
    }
    return (uint32_t)n;
}
