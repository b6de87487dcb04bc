#include "comm/wait.h"

#include "comm/shm.h"
#include "kernels/base/clock.h"
#include "kernels/base/relax.h"

#include <sched.h>
#include <time.h>

enum {
    BLIND_LOOKS = 400,           /* before the first look at the clock: about 10 us */
    YIELD_NS = 200 * 1000,       /* after the spin, before the first sleep */
    NAP_NS = 50 * 1000,          /* where no bell can ring */
    NAP_AFTER_NS = 10 * 1000000, /* of a wait */
    CHECK_NS = 10 * 1000000, /* between two looks whether the other lives; also the longest sleep */
    LOOKS_PER_CLOCK = 8
};

static void nap(uint64_t ns)
{
    struct timespec ts = {.tv_nsec = (long)ns};

    nanosleep(&ts, NULL);
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Whether the awaited rank, if it is one of this host, has left or died. */
static bool is_gone(const struct td_wait *w, uint32_t awaited)
{
    const struct td_comm_world *world = w->comm->world;

    return world->shm && world->local[awaited] >= 0 &&
           td_shm_is_gone(world->shm, (uint32_t)world->local[awaited]);
}

/* Now and then looks after the awaited rank. What it gave before it went still counts, so the wait ends only if it is awaited
 * after one more look. */
static enum td_status check_life(struct td_wait *w, uint32_t awaited, uint64_t now_ns,
                                 struct td_err *err)
{
    if (w->gone == awaited)
        return td_comm_report_lost(w->comm, awaited, err);
    if (now_ns < w->next_check_ns)
        return TD_OK;
    w->next_check_ns = now_ns + CHECK_NS;
    if (is_gone(w, awaited))
        w->gone = awaited;
    return TD_OK;
}

enum td_status td_wait_pause(struct td_wait *w, uint32_t awaited, struct td_err *err)
{
    struct td_comm *comm = w->comm;
    struct td_comm_world *world = comm->world;
    uint64_t now_ns, waited_ns;
    enum td_status status;

    w->n_looks++;
    if (comm->spin_ns && (w->n_looks < BLIND_LOOKS || w->n_looks % LOOKS_PER_CLOCK)) {
        td_relax_core();
        return TD_OK;
    }
    now_ns = td_clock_now_ns();
    if (!w->began_ns) {
        w->began_ns = now_ns;
        w->next_check_ns = now_ns + CHECK_NS;
    }
    if (atomic_load_explicit(&world->failed, memory_order_relaxed) != TD_OK)
        return td_comm_report_failed(comm, err);
    if (now_ns >= td_comm_deadline(comm, now_ns))
        return td_comm_report_timeout(comm, awaited, err);
    status = check_life(w, awaited, now_ns, err);
    if (status != TD_OK || w->gone == awaited)
        return status;
    waited_ns = now_ns - w->began_ns;
    if (waited_ns < comm->spin_ns)
        return TD_OK;
    w->n_looks |= LOOKS_PER_CLOCK - 1; /* from here on every look is a long one */
    if (w->armed) {
        td_shm_sleep(world->shm, w->bell, min_u64(CHECK_NS, comm->deadline_ns - now_ns));
        td_shm_disarm(world->shm);
        w->armed = false;
    } else if (!comm->naps && waited_ns < comm->spin_ns + YIELD_NS) {
        sched_yield();
    } else if (w->may_sleep) {
        w->bell = td_shm_arm(world->shm);
        w->armed = true;
    } else if (!comm->naps && waited_ns < NAP_AFTER_NS) {
        sched_yield();
    } else {
        nap(NAP_NS);
    }
    return TD_OK;
}

void td_wait_end(struct td_wait *w)
{
    if (w->armed)
        td_shm_disarm(w->comm->world->shm);
    w->armed = false;
}
