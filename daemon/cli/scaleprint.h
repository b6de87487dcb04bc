/* What `tensord bench scale` shows: a table, JSON, a picture. Main thread; measures nothing. */
#ifndef TD_DAEMON_CLI_SCALEPRINT_H
#define TD_DAEMON_CLI_SCALEPRINT_H

#include "daemon/cli/options.h"
#include "daemon/cli/scale.h"
#include "shard/plan.h"

#include <jansson.h>

/* Everything is borrowed. */
struct td_scaleprint {
    const struct td_options *opts;
    const struct td_plan_model *model;
    const char *cpu;
    uint32_t n_cores;                    /* of this host */
    const struct td_linkspec *lab;       /* NULL: no lab */
    const struct td_scale_point *points; /* [n] those that were run, with figures or a failure */
    uint32_t n;
};

enum { TD_SCALEPRINT_NAME_BYTES = 128 };
/* "2 ranks, tensor parallel 2, prompt 128, depth 0, delay 50us, rate 1gbit". Returns out. */
const char *td_scaleprint_name(const struct td_scale_point *point,
                               char out[TD_SCALEPRINT_NAME_BYTES]);

void td_scaleprint_text(const struct td_scaleprint *p); /* to stdout */
/* Returned owned; NULL without memory. */
json_t *td_scaleprint_json(const struct td_scaleprint *p);
/* Tokens per second over ranks, of a lab over latency and over rate. TD_NO_MEMORY; TD_INVALID when no point has figures. */
enum td_status td_scaleprint_svg(const struct td_scaleprint *p, struct td_bytes *out,
                                 struct td_err *err);

#endif
