#include "daemon/coordinator/endrate.h"

#include <math.h>

/* An end that is so long ago weighs 1/e of one that just was. */
#define MEMORY_S 20.0

/* What is left of the past's weight when busy time goes on until `now_ns`. */
static double fade(const struct td_endrate *e, uint64_t now_ns)
{
    if (!e->n_open || now_ns <= e->seen_ns)
        return 1.0;
    return exp(-(double)(now_ns - e->seen_ns) * 1e-9 / MEMORY_S);
}

static void go_to(struct td_endrate *e, uint64_t now_ns)
{
    double kept = fade(e, now_ns);

    e->weight = e->weight * kept + (1.0 - kept);
    e->per_s *= kept;
    e->seen_ns = now_ns;
}

void td_endrate_begin(struct td_endrate *e, uint64_t now_ns)
{
    go_to(e, now_ns);
    e->n_open++;
}

void td_endrate_end(struct td_endrate *e, uint64_t now_ns)
{
    go_to(e, now_ns);
    e->per_s += 1.0 / MEMORY_S;
    e->n_open--;
}

double td_endrate_per_second(const struct td_endrate *e, uint64_t now_ns)
{
    double kept = fade(e, now_ns);
    double weight = e->weight * kept + (1.0 - kept);

    /* Divided by the weight, since the average began at zero and not at a rate (as in Adam, arXiv 1412.6980, section 3). */
    return weight > 0.0 ? e->per_s * kept / weight : 0.0;
}

uint32_t td_endrate_wait_s(const struct td_endrate *e, double n, uint64_t now_ns)
{
    double rate = td_endrate_per_second(e, now_ns);
    double s = rate > 0.0 ? ceil(n / rate) : 1.0;

    return s < 1.0 ? 1 : s > TD_ENDRATE_MAX_WAIT_S ? TD_ENDRATE_MAX_WAIT_S : (uint32_t)s;
}
