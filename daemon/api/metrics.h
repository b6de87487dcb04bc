/* The registry of counters, gauges and histograms, and its Prometheus text form (exposition format 0.0.4).
 * Loop thread only. Knows no meaning: who owns a value registers it once and updates it through its handle. */
#ifndef TD_DAEMON_API_METRICS_H
#define TD_DAEMON_API_METRICS_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

enum td_metrics_kind { TD_METRICS_COUNTER = 0, TD_METRICS_GAUGE, TD_METRICS_HISTOGRAM };

struct td_metrics_label {
    const char *name;
    const char *value; /* any UTF-8 text */
};

/* What a series is. Everything is copied. Series that share a name share kind, help and buckets. */
struct td_metrics_desc {
    enum td_metrics_kind kind;
    const char *name; /* "tensord_requests_total"; must begin with "tensord_" */
    const char *help;
    const struct td_metrics_label *labels; /* [n_labels], fixed for the life of the series */
    size_t n_labels;
    const double *buckets; /* histogram: rising finite upper bounds [n_buckets]; +Inf is added */
    size_t n_buckets;
};

enum { TD_METRICS_MAX_SERIES = 4096, TD_METRICS_MAX_BUCKETS = 64 };

/* Bounds for times between a millisecond and some minutes, in seconds. */
extern const double td_metrics_seconds_buckets[];
extern const size_t td_metrics_n_seconds_buckets;

struct td_metrics; /* the registry */
struct td_metric;  /* one series; lives as long as its registry */

enum td_status td_metrics_open(struct td_metrics **m, struct td_err *err);
void td_metrics_close(struct td_metrics *m);
/* TD_INVALID for a malformed name or label, a series that exists already, or a family that disagrees. */
enum td_status td_metrics_register(struct td_metrics *m, const struct td_metrics_desc *desc,
                                   struct td_metric **series, struct td_err *err);
/* Called at the start of every td_metrics_write, to set gauges that are cheaper to read than to keep. */
typedef void (*td_metrics_refresh_fn)(void *user);
void td_metrics_set_refresh(struct td_metrics *m, td_metrics_refresh_fn fn, void *user);

void td_metrics_add(struct td_metric *series, double amount); /* counter (amount >= 0) or gauge */
void td_metrics_set(struct td_metric *series, double value);  /* gauge */
void td_metrics_observe(struct td_metric *series, double value); /* histogram */
double td_metrics_value(const struct td_metric *series); /* counter, gauge; histogram: its count */

/* Appends the whole text, families in the order of their first registration. Content type:
 * TD_METRICS_CONTENT_TYPE. */
#define TD_METRICS_CONTENT_TYPE "text/plain; version=0.0.4; charset=utf-8"
enum td_status td_metrics_write(struct td_metrics *m, struct td_bytes *out);

#endif
