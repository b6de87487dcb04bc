/* What --version prints: the program, its CPU kernels, MPI and the libraries it runs with. */
#ifndef TD_DAEMON_CLI_VERSION_H
#define TD_DAEMON_CLI_VERSION_H

#include <stdio.h>

void td_version_print(FILE *out);

#endif
