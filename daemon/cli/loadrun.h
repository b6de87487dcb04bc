/* Offers a load to a server for a while: requests at their times (open loop), or a fixed number at a time, each followed by the
 * next (closed loop); gathers a record of each. Runs the loop on the calling thread until the last answer has come; SIGINT and
 * SIGTERM end it early. Knows no statistics. */
#ifndef TD_DAEMON_CLI_LOADRUN_H
#define TD_DAEMON_CLI_LOADRUN_H

#include "daemon/cli/load.h"
#include "daemon/cli/loadbody.h"
#include "daemon/cli/loadclient.h"
#include "daemon/cli/term.h"

enum td_loadrun_kind {
    TD_LOADRUN_CLOSED, /* `concurrency` at a time */
    TD_LOADRUN_RATE,   /* Poisson arrivals, `rate` per second in the mean; infinite: all at once */
    TD_LOADRUN_TRACE   /* at the times of the trace */
};

/* What is pointed to is borrowed during the run. */
struct td_loadrun_params {
    uv_loop_t *loop;              /* configured with UV_METRICS_IDLE_TIME */
    struct td_loadclient *client; /* on that loop */
    const struct td_load *load;
    const struct td_loadbody *body;
    enum td_loadrun_kind kind;
    double rate;
    uint32_t concurrency;
    uint64_t n_requests;  /* 0: no limit; then duration_s is one */
    double duration_s;    /* none is sent that is due later; 0: no limit */
    double timeout_s;     /* for a whole answer */
    uint32_t run;         /* which texts (load.h) */
    struct td_term *term; /* progress; NULL: none */
    const char *label;    /* of the progress */
};

struct td_loadrun {
    struct td_loadrecord **records; /* [n_records], owned, in the order of sending */
    size_t n_records;
    uint64_t start_ns, end_ns; /* from the first moment to the end of the last answer */
    double busy;               /* part of that time in which this thread was not waiting */
    uint32_t most_under_way;
    bool interrupted;
};

/* After a failed request of a closed loop its place stays empty for a moment (100 ms at most), so that a server that refuses is
 * not flooded. TD_NO_MEMORY, TD_IO; *out is set on success only (td_loadrun_deinit). */
enum td_status td_loadrun_go(const struct td_loadrun_params *params, struct td_loadrun *out,
                             struct td_err *err);
void td_loadrun_deinit(struct td_loadrun *r);

#endif
