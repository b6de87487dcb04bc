#include "comm/linkfit.h"

#include <math.h>

/* Weight of a point, with which the squares of errors are those of relative errors. */
static double weight(const struct td_linkfit_point *point)
{
    return 1.0 / (point->ns * point->ns);
}

/* The line before its parts are held at 0. Sums are about the means, so that no large numbers are subtracted. */
static void free_line(const struct td_linkfit_point *points, size_t n, struct td_linkfit *fit)
{
    double w = 0.0, bytes = 0.0, ns = 0.0, spread = 0.0, rise = 0.0;

    for (size_t i = 0; i < n; i++) {
        w += weight(&points[i]);
        bytes += weight(&points[i]) * points[i].bytes;
        ns += weight(&points[i]) * points[i].ns;
    }
    bytes /= w;
    ns /= w;
    for (size_t i = 0; i < n; i++) {
        double apart = points[i].bytes - bytes;

        spread += weight(&points[i]) * apart * apart;
        rise += weight(&points[i]) * apart * (points[i].ns - ns);
    }
    fit->ns_per_byte = rise / spread;
    fit->alpha_ns = ns - fit->ns_per_byte * bytes;
    if (fit->ns_per_byte < 0.0)
        *fit = (struct td_linkfit){.alpha_ns = ns};
}

/* The line through no time at no bytes. */
static void line_from_zero(const struct td_linkfit_point *points, size_t n, struct td_linkfit *fit)
{
    double square = 0.0, product = 0.0;

    for (size_t i = 0; i < n; i++) {
        square += weight(&points[i]) * points[i].bytes * points[i].bytes;
        product += weight(&points[i]) * points[i].bytes * points[i].ns;
    }
    *fit = (struct td_linkfit){.ns_per_byte = product / square};
}

static enum td_status check(const struct td_linkfit_point *points, size_t n, struct td_err *err)
{
    size_t different = 0;

    for (size_t i = 0; i < n; i++) {
        if (!isfinite(points[i].bytes) || points[i].bytes < 0.0 || !isfinite(points[i].ns) ||
            points[i].ns <= 0.0)
            return td_err_set(err, TD_INVALID,
                              "point %zu of a line: %g ns for %g bytes, expected a time above 0 "
                              "and no less than 0 bytes",
                              i, points[i].ns, points[i].bytes);
        different += points[i].bytes != points[0].bytes;
    }
    if (different == 0)
        return td_err_set(err, TD_INVALID, "a line through points of one size, expected two sizes");
    return TD_OK;
}

enum td_status td_linkfit_make(const struct td_linkfit_point *points, size_t n,
                               struct td_linkfit *fit, struct td_err *err)
{
    enum td_status status = check(points, n, err);
    struct td_linkfit f = {0};

    if (status != TD_OK)
        return status;
    free_line(points, n, &f);
    if (f.alpha_ns < 0.0)
        line_from_zero(points, n, &f);
    for (size_t i = 0; i < n; i++)
        f.worst = fmax(f.worst,
                       fabs(td_linkfit_predict(&f, points[i].bytes) - points[i].ns) / points[i].ns);
    *fit = f;
    return TD_OK;
}

double td_linkfit_predict(const struct td_linkfit *fit, double bytes)
{
    return fit->alpha_ns + bytes * fit->ns_per_byte;
}

double td_linkfit_bandwidth(const struct td_linkfit *fit)
{
    return fit->ns_per_byte > 0.0 ? 1e9 / fit->ns_per_byte : INFINITY;
}
