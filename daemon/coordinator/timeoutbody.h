/* The body of an operator's HTTP call that has a time: {} or {"timeout": seconds}. Pure but for the request's own accessors. */
#ifndef TD_DAEMON_COORDINATOR_TIMEOUTBODY_H
#define TD_DAEMON_COORDINATOR_TIMEOUTBODY_H

#include "kernels/base/err.h"

#include <stdint.h>

struct td_http_request;

/* *timeout_ns is the time when none is given, and becomes the one that is: 0 to 86400 s. TD_INVALID names what is wrong: a type that is
 * not application/json, a body over 4096 bytes, another member, no number. */
enum td_status td_timeoutbody_read(struct td_http_request *req, uint64_t *timeout_ns,
                                   struct td_err *err);

#endif
