/* What `tensord bench serve` shows of its runs: text for people, JSON, a picture. Main thread; measures nothing. */
#ifndef TD_DAEMON_CLI_LOADPRINT_H
#define TD_DAEMON_CLI_LOADPRINT_H

#include "daemon/cli/loadstat.h"

#include <jansson.h>

/* One load of a sweep, offered and measured. */
struct td_loadprint_point {
    enum td_loadrun_kind kind;
    double value; /* requests at a time or per second (may be infinite); of a trace: 1 */
    struct td_loadrun run;
    struct td_loadstat stat;
};

/* Everything is borrowed. */
struct td_loadprint {
    const struct td_options *opts;
    const char *model, *path; /* as the server was asked */
    const struct td_load *load;
    const struct td_loadstat_slo *slo;
    const struct td_loadprint_point *points; /* [n_points] those that were run */
    size_t n_points;
};

enum { TD_LOADPRINT_NAME_BYTES = 64 };
/* "4 requests/s", "16 at a time", "all at once", "as traced". Returns out. */
const char *td_loadprint_name(const struct td_loadprint_point *point,
                              char out[TD_LOADPRINT_NAME_BYTES]);

void td_loadprint_head(const struct td_loadprint *b); /* server and settings, to stdout */
void td_loadprint_point(const struct td_loadprint *b, const struct td_loadprint_point *point);
void td_loadprint_sweep(
    const struct td_loadprint *b); /* a line per point; nothing for a single one */
/* To stderr, what makes the figures of a point doubtful. */
void td_loadprint_warn(const struct td_loadprint *b, const struct td_loadprint_point *point);

/* Settings and points, with --save-requests each request too. Returned owned; NULL without memory. */
json_t *td_loadprint_json(const struct td_loadprint *b);
/* Latency and throughput over load. TD_NO_MEMORY. */
enum td_status td_loadprint_svg(const struct td_loadprint *b, struct td_bytes *out);

#endif
