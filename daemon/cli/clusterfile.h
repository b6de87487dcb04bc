/* A cluster that is not here, as a YAML file tells of it (deploy/clusters/). Main thread, blocking read with a cap on the size.
 * Knows neither a model nor a plan. */
#ifndef TD_DAEMON_CLI_CLUSTERFILE_H
#define TD_DAEMON_CLI_CLUSTERFILE_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"
#include "shard/predict.h"

/* Reads the file into *machine, ranks host by host in the order of the file. TD_INVALID names file, line and key, what stands
 * there and what was expected: for a key that is unknown, missing or there twice, a wrong type, a number out of range.
 * TD_NOT_FOUND and TD_IO when it cannot be read, TD_TOO_LARGE past TD_CONFIG_MAX_BYTES. */
enum td_status td_clusterfile_read(const char *path, struct td_machine *machine,
                                   struct td_err *err);
/* The same from memory; `path` is only for messages. */
enum td_status td_clusterfile_parse(struct td_str text, const char *path,
                                    struct td_machine *machine, struct td_err *err);

#endif
