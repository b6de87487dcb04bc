/* Times that were measured, and what is told of them: mean, spread and percentiles, exact because all are kept. Plain state,
 * one writer; knows nothing of what was timed. */
#ifndef TD_DAEMON_CLI_LATENCY_H
#define TD_DAEMON_CLI_LATENCY_H

#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>

/* Zero-initialise. */
struct td_latency {
    double *ms; /* [n], owned; in any order */
    size_t n, cap;
    bool sorted;
};

/* All in milliseconds; all 0 when n is. */
struct td_latency_summary {
    size_t n;
    double mean, sd, min, p50, p90, p95, p99, max; /* sd: of the whole, divided by n */
};

enum td_status td_latency_add(struct td_latency *l, double ms); /* TD_NO_MEMORY */
/* The value below which `percent` (0 to 100) of all lie, interpolated linearly between the two nearest ranks: definition 7
 * of Hyndman and Fan, "Sample Quantiles in Statistical Packages" (1996), which NumPy takes too. 0 when there are none.
 * Sorts. */
double td_latency_percentile(struct td_latency *l, double percent);
void td_latency_summarise(struct td_latency *l, struct td_latency_summary *out);
void td_latency_deinit(struct td_latency *l);

#endif
