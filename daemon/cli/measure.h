/* What this machine, or the hosts of an MPI job, can do, in about a second: memory and arithmetic by the probes of `tensord bench`,
 * links by the exchange that a step makes most. Knows no plan. Collective over the world; the same on all ranks. */
#ifndef TD_DAEMON_CLI_MEASURE_H
#define TD_DAEMON_CLI_MEASURE_H

#include "daemon/engine/node.h"
#include "shard/predict.h"

struct td_measure_params {
    const struct td_node *node; /* opened, borrows: its world, cores and facts */
    uint32_t n_ranks;  /* of a world of one: so many ranks would divide this host; else unused */
    size_t row_floats; /* of one row of a sum between ranks */
    uint32_t n_rows;   /* of a prompt's step */
};

/* What was measured, for people. */
struct td_measure_report {
    char machine[160], links[200];
};

/* Fills *machine. Links between kinds of ranks of which the job has no pair are not measured: those inside a host have
 * documented figures then. */
enum td_status td_measure_machine(const struct td_measure_params *params,
                                  struct td_machine *machine, struct td_measure_report *report,
                                  struct td_err *err);

#endif
