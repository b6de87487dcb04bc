/* `tensord plan --predict`: measures this machine or reads of another one, and shows what every layout's speed would be. Main
 * thread; as an MPI job all ranks measure and rank 0 prints. */
#ifndef TD_DAEMON_CLI_PLAN_PREDICT_H
#define TD_DAEMON_CLI_PLAN_PREDICT_H

#include "daemon/cli/options.h"

/* Reads the model's headers only. Returns an exit status. */
int td_plan_predict(const struct td_options *opts);

#endif
