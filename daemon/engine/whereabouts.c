#include "daemon/engine/whereabouts.h"

#include "comm/comm.h"
#include "kernels/base/clock.h"

#include <stdio.h>

/* What a look adds at most to what came before it. */
static const uint64_t BEAT_NS = 100000000u;

bool td_whereabouts_look(struct td_whereabouts_watch *watch, const struct td_recorder *recorder,
                         const struct td_comm *world, uint64_t awake_ns, struct td_whereabouts *out)
{
    struct td_recorder_now now;
    struct td_comm_at at;
    uint64_t now_ns = td_clock_now_ns(), age_ns;

    td_comm_look_at(world, &at);
    if (!td_recorder_look(recorder, &now))
        return false;
    age_ns = now_ns > now.since_ns ? now_ns - now.since_ns : 0;
    age_ns = age_ns < BEAT_NS ? age_ns : BEAT_NS;
    if (watch->stage != now.stage || watch->number != now.step.number) {
        watch->stage = now.stage;
        watch->number = now.step.number;
        watch->stage_from_ns = awake_ns > age_ns ? awake_ns - age_ns : 0;
    }
    if (watch->op != at.op || watch->n_begun != at.n_begun) {
        watch->op = at.op;
        watch->n_begun = at.n_begun;
        watch->op_from_ns = awake_ns;
    }
    *out = (struct td_whereabouts){
        .stage = now.stage,
        .number = now.step.number,
        .elapsed_ns = awake_ns - watch->stage_from_ns,
        .limit_ns = now.limit_ns,
        .n_ops = now.base_ops == UINT64_MAX ? 0 : at.n_begun - now.base_ops + 1,
        .op_ns = at.op ? awake_ns - watch->op_from_ns : 0,
        .n_rows = now.stage == TD_RECORDER_STEP ? now.step.n_rows : 0};
    snprintf(out->op, sizeof out->op, "%s", at.op ? at.op : "");
    return true;
}

const char *td_whereabouts_describe(const struct td_whereabouts *at, char *text, size_t bytes)
{
    char exchange[96] = "";

    if (at->op[0] && at->n_ops > 1)
        snprintf(exchange, sizeof exchange, ", in its exchange %llu, %s, for %.1f s",
                 (unsigned long long)(at->n_ops - 1), at->op, (double)at->op_ns * 1e-9);
    else if (at->op[0])
        snprintf(exchange, sizeof exchange, ", in %s for %.1f s", at->op, (double)at->op_ns * 1e-9);
    else if (at->n_ops)
        snprintf(exchange, sizeof exchange, ", computing behind exchange %llu",
                 (unsigned long long)(at->n_ops - 1));
    switch (at->stage) {
    case TD_RECORDER_STEP:
        snprintf(text, bytes, "in step %llu (%u rows) for %.1f s%s", (unsigned long long)at->number,
                 at->n_rows, (double)at->elapsed_ns * 1e-9, exchange);
        break;
    case TD_RECORDER_BETWEEN:
        snprintf(text, bytes, "before step %llu for %.1f s%s", (unsigned long long)at->number,
                 (double)at->elapsed_ns * 1e-9, exchange);
        break;
    default:
        snprintf(text, bytes, "at rest before step %llu for %.1f s%s",
                 (unsigned long long)at->number, (double)at->elapsed_ns * 1e-9, exchange);
    }
    return text;
}
