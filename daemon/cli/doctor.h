/* What `tensord doctor` has found, for its printing. Plain data of rank 0's. */
#ifndef TD_DAEMON_CLI_DOCTOR_H
#define TD_DAEMON_CLI_DOCTOR_H

#include "comm/linkprobe.h"
#include "daemon/cli/hostpaths.h"
#include "daemon/engine/preflight.h"
#include "kernels/base/err.h"

struct td_doctor {
    uint32_t n_ranks;
    const char *transport;            /* between hosts: "mpi"; static */
    struct td_preflight_facts *facts; /* [n_ranks] */
    struct td_linkprobe_link *links;  /* [n_ranks x n_ranks] row: sender */
    struct td_hostpaths paths;
    struct td_verdict_report report;
};

/* On standard output: a table for people, or one JSON object. */
void td_doctor_print(const struct td_doctor *d);
enum td_status td_doctor_print_json(const struct td_doctor *d, struct td_err *err);

#endif
