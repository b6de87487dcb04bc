/* What the HTTP calls of an operator have in common: a body that may have a time, and an answer of one member, which is how
 * what was asked for stands now. */
#ifndef TD_DAEMON_COORDINATOR_OPERATOR_CALL_H
#define TD_DAEMON_COORDINATOR_OPERATOR_CALL_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdint.h>

struct td_coord;
struct td_coord_status;
struct td_http_request;

/* The body, {} or {"timeout": seconds}: *timeout_ns is the time when none is given, and becomes the one that is: 0 to 86400 s.
 * TD_INVALID names what is wrong: a type that is not application/json, a body over 4096 bytes, another member, no number. */
enum td_status td_operator_call_timeout(struct td_http_request *req, uint64_t *timeout_ns,
                                        struct td_err *err);

/* Appends one JSON value. */
typedef enum td_status td_operator_call_write_fn(const struct td_coord_status *status,
                                                 struct td_bytes *out);
/* Answers with `err` where its status says so, else with {"member": value}. */
void td_operator_call_answer(struct td_http_request *req, struct td_coord *coord,
                             const char *member, td_operator_call_write_fn *write,
                             const struct td_err *err);

#endif
