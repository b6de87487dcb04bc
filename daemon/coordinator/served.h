/* Opening the model that a coordinator serves: checkpoint, tokenizer, breakers, chat template, sampling defaults, and the headers of
 * a draft model. */
#ifndef TD_DAEMON_COORDINATOR_SERVED_H
#define TD_DAEMON_COORDINATOR_SERVED_H

#include "daemon/coordinator/coordinator.h"

/* Reads headers, hashes and builds the tokenizer: blocks; any thread. No names: the last part of the path. `draft_path`: a draft
 * model, which must have the same vocabulary; NULL: none. On success *out is owned (td_served_release). */
enum td_status td_served_open(const char *path, const char *const *names, uint32_t n_names,
                              const char *draft_path, bool verify, struct td_served **out,
                              struct td_err *err);

#endif
