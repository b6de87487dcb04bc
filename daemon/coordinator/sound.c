/* Whether the coordinator does what is due. Each check is of something that its tick, every 50 ms, should have done long ago. */
#include "daemon/coordinator/coord_impl.h"

/* Longer than a loop thread on a loaded machine is kept away from the processor. */
static const uint64_t late_ns = 5000000000u;

static bool is_late(uint64_t due_ns, uint64_t now_ns)
{
    return due_ns < now_ns && now_ns - due_ns > late_ns;
}

static bool refuse(struct td_err *err, const char *what, uint64_t due_ns, uint64_t now_ns)
{
    td_err_set(err, TD_INTERNAL, "%s %.1f s ago", what, (double)(now_ns - due_ns) * 1e-9);
    return false;
}

bool td_coord_is_sound(const struct td_coord *c, uint64_t now_ns, struct td_err *err)
{
    const struct drain *d = &c->drain;
    uint64_t due_ns = c->relaunch_at_ns > c->fence_ns ? c->relaunch_at_ns : c->fence_ns;

    if (c->stopping || !c->timer_open)
        return true;
    if (is_late(c->current->vigil.last_look_ns, now_ns))
        return refuse(err, "the coordinator's last look at its group was",
                      c->current->vigil.last_look_ns, now_ns);
    if (c->relaunch_at_ns && is_late(due_ns, now_ns))
        return refuse(err, "a new group was due", due_ns, now_ns);
    if (d->is_on && !d->is_over && is_late(d->until_ns, now_ns))
        return refuse(err, "the end of the drain was due", d->until_ns, now_ns);
    if (c->leaving && c->leaving->state == TD_GROUP_DRAINING && is_late(c->roll.until_ns, now_ns))
        return refuse(err, "the end of the group that leaves was due", c->roll.until_ns, now_ns);
    return true;
}
