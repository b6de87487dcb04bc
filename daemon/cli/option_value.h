/* One option's value: from text to the typed field. Pure; knows neither where the text came from nor other options. */
#ifndef TD_DAEMON_CLI_OPTION_VALUE_H
#define TD_DAEMON_CLI_OPTION_VALUE_H

#include "daemon/cli/options.h"

enum { TD_OPTION_MAX_LIST = 1024, TD_OPTION_MAX_IDS = 1 << 20 };

/* Reads `value` as the row's type and range say and writes `field` (of that type; a list is appended to). Texts are
 * copied into `arena`. TD_INVALID when it is no such value (td_options_expected says what is), TD_NO_MEMORY. */
enum td_status td_option_value_parse(const struct td_option *row, const char *value,
                                     struct td_arena *arena, void *field);
/* The same for an INT row of a command that takes several: whole numbers from sweep_min to max, separated by commas. */
enum td_status td_option_value_parse_ints(const struct td_option *row, const char *value,
                                          struct td_option_ints *out);

#endif
