/* The coordinator's own gauges and counters. */
#ifndef TD_DAEMON_COORDINATOR_COORD_METRICS_H
#define TD_DAEMON_COORDINATOR_COORD_METRICS_H

#include "kernels/base/err.h"

struct td_coord;
struct td_coord_metrics;

/* Registers them in td_coord_metrics(c) and keeps them fresh whenever the text is written. */
enum td_status td_coord_metrics_open(struct td_coord *c, struct td_coord_metrics **m,
                                     struct td_err *err);
void td_coord_metrics_close(struct td_coord_metrics *m);

#endif
