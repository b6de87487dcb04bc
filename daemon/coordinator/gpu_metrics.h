/* What the GPUs of a group tell of themselves, as metrics and as JSON. */
#ifndef TD_DAEMON_COORDINATOR_GPU_METRICS_H
#define TD_DAEMON_COORDINATOR_GPU_METRICS_H

#include "daemon/api/metrics.h"
#include "daemon/coordinator/coordinator.h"

struct td_gpu_metrics;

enum td_status td_gpu_metrics_open(struct td_metrics *metrics, struct td_gpu_metrics **m,
                                   struct td_err *err);
void td_gpu_metrics_close(struct td_gpu_metrics *m); /* NULL is legal */
/* A rank's series appear when its GPU first tells the figure. */
void td_gpu_metrics_refresh(struct td_gpu_metrics *m, const struct td_coord_status *status);

/* Appends {"bus_id": .., "power_watts": ..} with those figures that there are. */
enum td_status td_gpu_metrics_json(const struct td_member *member, struct td_bytes *out);

#endif
