/* --help and the README's table, printed from the tables of commands and options. Main thread; knows no values. */
#ifndef TD_DAEMON_CLI_HELP_H
#define TD_DAEMON_CLI_HELP_H

#include "daemon/cli/command.h"

#include <stdio.h>

void td_help_overview(FILE *out); /* the commands, one line each */
void td_help_command(FILE *out, const struct td_command *command);
/* Every option as a Markdown table, as the README has it between its <!-- options --> markers. */
void td_help_markdown(FILE *out);

#endif
