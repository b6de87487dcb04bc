/* What a link costs as a line: a message of b bytes takes alpha + b / beta. Pure arithmetic on measured points; knows no
 * transport and no clock. */
#ifndef TD_COMM_LINKFIT_H
#define TD_COMM_LINKFIT_H

#include "kernels/base/err.h"

#include <stddef.h>

struct td_linkfit_point {
    double bytes; /* at least 0 */
    double ns;    /* above 0 */
};

struct td_linkfit {
    double alpha_ns;    /* of a message without bytes; at least 0 */
    double ns_per_byte; /* 1 / beta; at least 0, and 0 where time does not rise with the bytes */
    double worst;       /* largest |line - time| / time of the points */
};

/* The line that is nearest to the points [n] by least squares of the relative errors, (line - time) / time: a microsecond
 * counts at 8 bytes as much as a millisecond at 16 MB, so small messages shape alpha. Where the nearest line has a
 * negative alpha or slope, that is 0 and the other is fitted alone. TD_INVALID: fewer than two different sizes, or a
 * point that no measurement gives. */
enum td_status td_linkfit_make(const struct td_linkfit_point *points, size_t n,
                               struct td_linkfit *fit, struct td_err *err);
/* What `bytes` take on that line, in nanoseconds. */
double td_linkfit_predict(const struct td_linkfit *fit, double bytes);
/* beta in bytes per second; infinite where ns_per_byte is 0. */
double td_linkfit_bandwidth(const struct td_linkfit *fit);

#endif
