#include "daemon/cli/clockskew.h"

#include "comm/comm.h"

#include <string.h>
#include <time.h>

enum { N_SAMPLES = 32 };

static int64_t wall_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t td_clockskew_best(const struct td_clockskew_sample *samples, uint32_t n)
{
    const struct td_clockskew_sample *best = &samples[0];

    for (uint32_t i = 1; i < n; i++)
        if (samples[i].came_ns - samples[i].sent_ns < best->came_ns - best->sent_ns)
            best = &samples[i];
    return best->answered_ns - (best->sent_ns + (best->came_ns - best->sent_ns) / 2);
}

static enum td_status ask(struct td_comm *world, uint32_t rank, int64_t *offset_ns,
                          struct td_err *err)
{
    struct td_clockskew_sample samples[N_SAMPLES];
    enum td_status s = TD_OK;

    for (uint32_t i = 0; !s && i < N_SAMPLES; i++) {
        struct td_clockskew_sample *x = &samples[i];

        x->sent_ns = wall_ns();
        s = td_comm_send(world, rank, &x->sent_ns, sizeof x->sent_ns, err);
        s = s ? s : td_comm_recv(world, rank, &x->answered_ns, sizeof x->answered_ns, err);
        x->came_ns = wall_ns();
    }
    if (!s)
        *offset_ns = td_clockskew_best(samples, N_SAMPLES);
    return s;
}

static enum td_status answer(struct td_comm *world, struct td_err *err)
{
    enum td_status s = TD_OK;

    for (uint32_t i = 0; !s && i < N_SAMPLES; i++) {
        int64_t asked, now;

        s = td_comm_recv(world, 0, &asked, sizeof asked, err);
        now = wall_ns();
        s = s ? s : td_comm_send(world, 0, &now, sizeof now, err);
    }
    return s;
}

enum td_status td_clockskew_measure(struct td_comm *world, const bool *is_asked, int64_t *offset_ns,
                                    struct td_err *err)
{
    uint32_t n = td_comm_size(world), me = td_comm_rank(world);
    enum td_status s = TD_OK;

    memset(offset_ns, 0, n * sizeof *offset_ns);
    for (uint32_t r = 1; !s && r < n; r++) {
        if (!is_asked[r])
            continue;
        if (me == 0)
            s = ask(world, r, &offset_ns[r], err);
        else if (me == r)
            s = answer(world, err);
    }
    return s ? s : td_comm_bcast(world, 0, offset_ns, n * sizeof *offset_ns, err);
}
