/* gRPC status codes and the one place where they meet td_status.
 * Codes and names are those of the public gRPC specification (statuscodes). Pure. */
#ifndef TD_PROTO_GRPC_CODE_H
#define TD_PROTO_GRPC_CODE_H

#include "kernels/base/err.h"

#include <stdint.h>

enum td_grpc_code {
    TD_GRPC_OK = 0,
    TD_GRPC_CANCELLED = 1,
    TD_GRPC_UNKNOWN = 2,
    TD_GRPC_INVALID_ARGUMENT = 3,
    TD_GRPC_DEADLINE_EXCEEDED = 4,
    TD_GRPC_NOT_FOUND = 5,
    TD_GRPC_ALREADY_EXISTS = 6,
    TD_GRPC_PERMISSION_DENIED = 7,
    TD_GRPC_RESOURCE_EXHAUSTED = 8,
    TD_GRPC_FAILED_PRECONDITION = 9,
    TD_GRPC_ABORTED = 10,
    TD_GRPC_OUT_OF_RANGE = 11,
    TD_GRPC_UNIMPLEMENTED = 12,
    TD_GRPC_INTERNAL = 13,
    TD_GRPC_UNAVAILABLE = 14,
    TD_GRPC_DATA_LOSS = 15,
    TD_GRPC_UNAUTHENTICATED = 16
};

enum td_grpc_code td_grpc_code_from_status(enum td_status status);
enum td_status td_grpc_code_to_status(enum td_grpc_code code);
/* "DEADLINE_EXCEEDED"; "UNKNOWN" for a number that is none. */
const char *td_grpc_code_name(enum td_grpc_code code);
/* What a client makes of a call that ended without a grpc-status: by the HTTP status of the
 * response (0: none came), or by the HTTP/2 error code of the reset. */
enum td_grpc_code td_grpc_code_from_http(int http_status);
enum td_grpc_code td_grpc_code_from_reset(uint32_t h2_error);

#endif
