/* Which links a sweep goes through: the text of --netlab, "delay=0,50us,1ms;rate=0,1gbit". Pure; makes no link. */
#ifndef TD_DAEMON_CLI_LINKSPEC_H
#define TD_DAEMON_CLI_LINKSPEC_H

#include "kernels/base/err.h"

#include <stdint.h>

enum { TD_LINKSPEC_MAX = 6, TD_LINKSPEC_TEXT_BYTES = 32 };

struct td_linkspec_value {
    char text[TD_LINKSPEC_TEXT_BYTES]; /* as it was written: "50us" */
    double value;                      /* seconds one way, or bits per second; 0: no limit */
};

struct td_linkspec {
    uint32_t n_delays, n_rates; /* at least 1 each: what is not named is one "0" */
    struct td_linkspec_value delay[TD_LINKSPEC_MAX], rate[TD_LINKSPEC_MAX];
};

/* Delays have us, ms or s, at most 10s; rates kbit, mbit or gbit, 1kbit to 1000gbit; a bare 0 is legal in both. TD_INVALID
 * names the part that is wrong or comes twice, and what was expected. */
enum td_status td_linkspec_parse(const char *text, struct td_linkspec *out, struct td_err *err);

#endif
