#include "proto/grpc_code.h"

#include <nghttp2/nghttp2.h>
#include <stddef.h>

enum td_grpc_code td_grpc_code_from_status(enum td_status status)
{
    switch (status) {
    case TD_OK:
        return TD_GRPC_OK;
    case TD_INVALID:
        return TD_GRPC_INVALID_ARGUMENT;
    case TD_NOT_FOUND:
        return TD_GRPC_NOT_FOUND;
    case TD_UNSUPPORTED:
        return TD_GRPC_UNIMPLEMENTED;
    case TD_TOO_LARGE:
        return TD_GRPC_OUT_OF_RANGE;
    case TD_BUSY:
    case TD_NO_MEMORY:
        return TD_GRPC_RESOURCE_EXHAUSTED;
    case TD_CANCELLED:
        return TD_GRPC_CANCELLED;
    case TD_CORRUPT:
        return TD_GRPC_DATA_LOSS;
    case TD_DENIED:
        return TD_GRPC_UNAUTHENTICATED;
    case TD_UNAVAILABLE:
    case TD_PEER_LOST:
    case TD_PEER_TIMED_OUT:
        return TD_GRPC_UNAVAILABLE;
    case TD_TIMED_OUT:
        return TD_GRPC_DEADLINE_EXCEEDED;
    case TD_PEER_MISMATCH:
        return TD_GRPC_FAILED_PRECONDITION;
    case TD_POISON:
    case TD_PEER_PROTOCOL:
    case TD_IO:
    case TD_DEVICE:
    case TD_INTERNAL:
        return TD_GRPC_INTERNAL;
    }
    return TD_GRPC_UNKNOWN;
}

enum td_status td_grpc_code_to_status(enum td_grpc_code code)
{
    switch (code) {
    case TD_GRPC_OK:
        return TD_OK;
    case TD_GRPC_CANCELLED:
        return TD_CANCELLED;
    case TD_GRPC_INVALID_ARGUMENT:
    case TD_GRPC_ALREADY_EXISTS:
        return TD_INVALID;
    case TD_GRPC_DEADLINE_EXCEEDED:
        return TD_TIMED_OUT;
    case TD_GRPC_NOT_FOUND:
        return TD_NOT_FOUND;
    case TD_GRPC_PERMISSION_DENIED:
    case TD_GRPC_UNAUTHENTICATED:
        return TD_DENIED;
    case TD_GRPC_RESOURCE_EXHAUSTED:
    case TD_GRPC_ABORTED:
        return TD_BUSY;
    case TD_GRPC_FAILED_PRECONDITION:
        return TD_PEER_MISMATCH;
    case TD_GRPC_OUT_OF_RANGE:
        return TD_TOO_LARGE;
    case TD_GRPC_UNIMPLEMENTED:
        return TD_UNSUPPORTED;
    case TD_GRPC_UNAVAILABLE:
        return TD_UNAVAILABLE;
    case TD_GRPC_DATA_LOSS:
        return TD_CORRUPT;
    case TD_GRPC_UNKNOWN:
    case TD_GRPC_INTERNAL:
        return TD_INTERNAL;
    }
    return TD_INTERNAL;
}

const char *td_grpc_code_name(enum td_grpc_code code)
{
    static const char *const names[] = {"OK",
                                        "CANCELLED",
                                        "UNKNOWN",
                                        "INVALID_ARGUMENT",
                                        "DEADLINE_EXCEEDED",
                                        "NOT_FOUND",
                                        "ALREADY_EXISTS",
                                        "PERMISSION_DENIED",
                                        "RESOURCE_EXHAUSTED",
                                        "FAILED_PRECONDITION",
                                        "ABORTED",
                                        "OUT_OF_RANGE",
                                        "UNIMPLEMENTED",
                                        "INTERNAL",
                                        "UNAVAILABLE",
                                        "DATA_LOSS",
                                        "UNAUTHENTICATED"};
    size_t i = (size_t)code;
    return i < sizeof names / sizeof *names ? names[i] : "UNKNOWN";
}

enum td_grpc_code td_grpc_code_from_http(int http_status)
{
    switch (http_status) {
    case 400:
        return TD_GRPC_INTERNAL;
    case 401:
        return TD_GRPC_UNAUTHENTICATED;
    case 403:
        return TD_GRPC_PERMISSION_DENIED;
    case 404:
        return TD_GRPC_UNIMPLEMENTED;
    case 429:
    case 502:
    case 503:
    case 504:
        return TD_GRPC_UNAVAILABLE;
    default:
        return TD_GRPC_UNKNOWN;
    }
}

enum td_grpc_code td_grpc_code_from_reset(uint32_t h2_error)
{
    switch (h2_error) {
    case NGHTTP2_REFUSED_STREAM:
        return TD_GRPC_UNAVAILABLE;
    case NGHTTP2_CANCEL:
        return TD_GRPC_CANCELLED;
    case NGHTTP2_ENHANCE_YOUR_CALM:
        return TD_GRPC_RESOURCE_EXHAUSTED;
    case NGHTTP2_INADEQUATE_SECURITY:
        return TD_GRPC_PERMISSION_DENIED;
    default:
        return TD_GRPC_INTERNAL;
    }
}
