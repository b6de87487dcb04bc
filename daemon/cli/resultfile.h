/* A file that a command writes its results to, named by an option. */
#ifndef TD_DAEMON_CLI_RESULTFILE_H
#define TD_DAEMON_CLI_RESULTFILE_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

/* Whether it can be written: found out now rather than after an hour of measuring. `path` NULL: nothing is asked. Creates the
 * file. TD_INVALID, naming --`flag`. */
enum td_status td_resultfile_check(const char *flag, const char *path, struct td_err *err);
/* Puts `text` there in the place of what it held. TD_IO, naming --`flag`. */
enum td_status td_resultfile_write(const char *flag, const char *path, struct td_str text,
                                   struct td_err *err);

#endif
