#include "kernels/base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum td_status td_err_set(struct td_err *err, enum td_status status, const char *fmt, ...)
{
    if (err) {
        va_list ap;

        err->status = status;
        err->context[0] = '\0';
        va_start(ap, fmt);
        vsnprintf(err->cause, sizeof err->cause, fmt, ap);
        va_end(ap);
    }
    return status;
}

enum td_status td_err_context(struct td_err *err, const char *fmt, ...)
{
    char inner[sizeof err->context];
    va_list ap;
    size_t used;
    int n;

    if (!err)
        return TD_INTERNAL;
    memcpy(inner, err->context, sizeof inner);
    va_start(ap, fmt);
    n = vsnprintf(err->context, sizeof err->context, fmt, ap);
    va_end(ap);
    used = n > 0 ? (size_t)n : 0;
    if (used + 3 < sizeof err->context && inner[0]) {
        size_t room = sizeof err->context - used - 3, len = strlen(inner);

        len = len < room ? len : room;
        memcpy(err->context + used, ": ", 2);
        memcpy(err->context + used + 2, inner, len);
        err->context[used + 2 + len] = '\0';
    }
    return err->status;
}

const char *td_err_format(const struct td_err *err, char *out, size_t out_bytes)
{
    if (err->context[0])
        snprintf(out, out_bytes, "%.191s: %.319s", err->context, err->cause);
    else
        snprintf(out, out_bytes, "%s", err->cause);
    return out;
}

const char *td_status_name(enum td_status status)
{
    switch (status) {
    case TD_OK:
        return "ok";
    case TD_INVALID:
        return "invalid";
    case TD_NOT_FOUND:
        return "not found";
    case TD_UNSUPPORTED:
        return "unsupported";
    case TD_TOO_LARGE:
        return "too large";
    case TD_BUSY:
        return "busy";
    case TD_CANCELLED:
        return "cancelled";
    case TD_CORRUPT:
        return "corrupt";
    case TD_DENIED:
        return "denied";
    case TD_UNAVAILABLE:
        return "unavailable";
    case TD_TIMED_OUT:
        return "timed out";
    case TD_POISON:
        return "poison";
    case TD_PEER_LOST:
        return "peer lost";
    case TD_PEER_TIMED_OUT:
        return "peer timed out";
    case TD_PEER_PROTOCOL:
        return "peer protocol";
    case TD_PEER_MISMATCH:
        return "peer mismatch";
    case TD_NO_MEMORY:
        return "no memory";
    case TD_IO:
        return "i/o";
    case TD_DEVICE:
        return "device";
    case TD_INTERNAL:
        return "internal";
    }
    return "unknown";
}
