#include "comm/comm_simtime.h"

enum { PS_PER_NS = 1000 };

uint64_t td_comm_simtime_add(uint64_t a_ns, uint64_t b_ns)
{
    return a_ns > UINT64_MAX - b_ns ? UINT64_MAX : a_ns + b_ns;
}

uint64_t td_comm_simtime_port_ns(const struct td_comm_simtime_link *link, size_t bytes)
{
    uint64_t ps;

    if (link->byte_ps && bytes > UINT64_MAX / link->byte_ps)
        return UINT64_MAX;
    ps = bytes * link->byte_ps;
    return td_comm_simtime_add(link->message_ns, ps / PS_PER_NS + (ps % PS_PER_NS != 0));
}

static uint64_t first_byte_ns(const struct td_comm_simtime_msg *m)
{
    return m->at_ns - (m->port_ns < m->at_ns ? m->port_ns : m->at_ns);
}

/* A port that is never idle while a message waits has taken the last one, in whatever order it took them, at the
 * largest of: a first byte's arrival plus all that arrives then or later. */
static uint64_t port_end_ns(const struct td_comm_simtime_exchange *x, uint32_t i)
{
    uint64_t from_ns = first_byte_ns(&x->msgs[i]);
    uint64_t end_ns = from_ns;

    for (uint32_t j = 0; j < x->n_msgs; j++) {
        if (!x->msgs[j].is_send && first_byte_ns(&x->msgs[j]) >= from_ns)
            end_ns = td_comm_simtime_add(end_ns, x->msgs[j].port_ns);
    }
    return end_ns;
}

/* UINT64_MAX when a message never comes or leaves. */
static uint64_t end_ns(const struct td_comm_simtime_exchange *x)
{
    uint64_t end = x->start_ns;

    for (uint32_t i = 0; i < x->n_msgs; i++) {
        if (!x->msgs[i].known || x->msgs[i].status != TD_OK)
            return UINT64_MAX;
    }
    for (uint32_t i = 0; i < x->n_msgs; i++) {
        const struct td_comm_simtime_msg *m = &x->msgs[i];
        uint64_t at_ns = m->is_send ? m->at_ns : port_end_ns(x, i);

        if (at_ns > end)
            end = at_ns;
    }
    return end;
}

/* The first message that has not come or left by the deadline; when only the port was too slow, the last one. */
static uint32_t late_msg(const struct td_comm_simtime_exchange *x)
{
    uint32_t last = 0;

    for (uint32_t i = 0; i < x->n_msgs; i++) {
        const struct td_comm_simtime_msg *m = &x->msgs[i];

        if (!m->known || m->status != TD_OK || m->at_ns > x->deadline_ns)
            return i;
        if (m->at_ns > x->msgs[last].at_ns)
            last = i;
    }
    return last;
}

struct td_comm_simtime_verdict
td_comm_simtime_decide(const struct td_comm_simtime_exchange *exchange)
{
    const struct td_comm_simtime_exchange *x = exchange;
    struct td_comm_simtime_verdict failed = {TD_COMM_SIMTIME_FAILED, UINT64_MAX, 0};
    uint64_t end = end_ns(x);

    if (end < x->lost_ns && end <= x->deadline_ns)
        return (struct td_comm_simtime_verdict){TD_COMM_SIMTIME_DONE, end, 0};
    for (uint32_t i = 0; i < x->n_msgs; i++) {
        const struct td_comm_simtime_msg *m = &x->msgs[i];
        uint64_t at_ns = m->at_ns > x->start_ns ? m->at_ns : x->start_ns;

        if (m->known && m->status != TD_OK && at_ns < failed.at_ns) {
            failed.at_ns = at_ns;
            failed.msg = i;
        }
    }
    if (x->lost_ns < UINT64_MAX && x->lost_ns <= x->deadline_ns && x->lost_ns <= failed.at_ns)
        return (struct td_comm_simtime_verdict){TD_COMM_SIMTIME_LOST, x->lost_ns, 0};
    if (x->deadline_ns <= failed.at_ns)
        return (struct td_comm_simtime_verdict){TD_COMM_SIMTIME_LATE, x->deadline_ns, late_msg(x)};
    return failed;
}
