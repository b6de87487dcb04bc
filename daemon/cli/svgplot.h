/* Draws panels of lines above one another over a common horizontal axis, as an SVG picture that needs nothing else: axes, units,
 * legends, a light background. Pure; knows nothing of what is drawn. */
#ifndef TD_DAEMON_CLI_SVGPLOT_H
#define TD_DAEMON_CLI_SVGPLOT_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>

enum { TD_SVGPLOT_MAX_SERIES = 6 };

struct td_svgplot_series {
    const char *name;
    const double *y; /* [n of the plot]; not finite or below 0: no point there */
    bool dashed;
};

struct td_svgplot_panel {
    const char *title; /* with the unit: "time to first token, ms" */
    struct td_svgplot_series series[TD_SVGPLOT_MAX_SERIES];
    size_t n_series;
};

/* Everything is borrowed; all text is UTF-8. */
struct td_svgplot {
    const char *title, *subtitle;
    const char *x_title;
    const double
        *x;   /* [n] above 0 and rising; the last may be infinite: it stands apart, at the right */
    size_t n; /* at least 1 */
    const struct td_svgplot_panel *panels; /* [n_panels] */
    size_t n_panels;
};

/* Appends the picture. Axes whose values span more than a factor of 8 (horizontal) or 50 (vertical) are logarithmic.
 * TD_NO_MEMORY. */
enum td_status td_svgplot_write(const struct td_svgplot *p, struct td_bytes *out);

#endif
