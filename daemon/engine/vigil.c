#include "daemon/engine/vigil.h"

static const uint64_t MS = 1000000u;

void td_vigil_limit(struct td_vigil *v, uint64_t dead_ns)
{
    uint64_t missed_ns = TD_VIGIL_MISSED_BEATS * TD_VIGIL_BEAT_MS * MS;

    v->suspect_ns = dead_ns / 2 < missed_ns ? dead_ns / 2 : missed_ns;
    v->dead_ns = dead_ns;
}

void td_vigil_init(struct td_vigil *v, uint64_t dead_ns, uint64_t now_ns)
{
    *v = (struct td_vigil){.last_look_ns = now_ns};
    td_vigil_limit(v, dead_ns);
}

void td_vigil_look(struct td_vigil *v, uint64_t now_ns)
{
    uint64_t gap_ns = now_ns > v->last_look_ns ? now_ns - v->last_look_ns : 0;

    v->awake_ns += gap_ns <= TD_VIGIL_MAX_GAP_MS * MS ? gap_ns : TD_VIGIL_BEAT_MS * MS;
    v->last_look_ns = now_ns > v->last_look_ns ? now_ns : v->last_look_ns;
}

void td_vigil_heard(const struct td_vigil *v, struct td_vigil_peer *peer)
{
    peer->is_watched = true;
    peer->heard_ns = v->awake_ns;
}

uint64_t td_vigil_silence_ns(const struct td_vigil *v, const struct td_vigil_peer *peer)
{
    return peer->is_watched ? v->awake_ns - peer->heard_ns : 0;
}

enum td_vigil_verdict td_vigil_judge(const struct td_vigil *v, const struct td_vigil_peer *peer)
{
    uint64_t silence_ns = td_vigil_silence_ns(v, peer);

    return !peer->is_watched             ? TD_VIGIL_WELL
           : silence_ns >= v->dead_ns    ? TD_VIGIL_DEAD
           : silence_ns >= v->suspect_ns ? TD_VIGIL_SUSPECT
                                         : TD_VIGIL_WELL;
}
