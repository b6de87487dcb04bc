#include "daemon/engine/stepsplit.h"

struct td_stepsplit td_stepsplit_of(uint32_t n, const uint64_t *run_ns, const uint64_t *inside_ns)
{
    struct td_stepsplit split = {0};
    double run = 0.0, inside = 0.0, least = 0.0;

    for (uint32_t r = 0; r < n; r++) {
        /* Two counts of one rank may be read at slightly different times. */
        double in = (double)(inside_ns[r] < run_ns[r] ? inside_ns[r] : run_ns[r]);

        run += (double)run_ns[r] / n;
        inside += in / n;
        least = r == 0 || in < least ? in : least;
    }
    split.compute = (run - inside) * 1e-9;
    split.exchange = least * 1e-9;
    split.wait = (inside - least) * 1e-9;
    return split;
}
