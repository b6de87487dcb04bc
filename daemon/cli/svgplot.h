/* Draws panels of lines above one another over a common horizontal axis, as an SVG picture that needs nothing else: axes, units,
 * legends, a light background. Pure; knows nothing of what is drawn. */
#ifndef TD_DAEMON_CLI_SVGPLOT_H
#define TD_DAEMON_CLI_SVGPLOT_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>

enum { TD_SVGPLOT_MAX_SERIES = 16 };

/* Of a line: one of these or 1 .. TD_SVGPLOT_N_COLOURS; 0: by its place in the panel. */
enum { TD_SVGPLOT_N_COLOURS = 7, TD_SVGPLOT_GREY, TD_SVGPLOT_BLACK };

struct td_svgplot_series {
    const char *name; /* NULL: not in the legend, and in the colour of the one before it */
    const double *y;  /* [n of the plot]; not finite or below 0: no point there */
    bool dashed;
    size_t colour;
};

struct td_svgplot_panel {
    const char *title; /* with the unit: "time to first token, ms" */
    struct td_svgplot_series series[TD_SVGPLOT_MAX_SERIES];
    size_t n_series;
    bool is_log; /* the vertical axis, whatever the values span */
};

/* Everything is borrowed; all text is UTF-8. */
struct td_svgplot {
    const char *title, *subtitle;
    const char *x_title;
    const double
        *x; /* [n] above 0 and rising; the last may be infinite: it stands apart, at the right */
    const char *x_infinite; /* what stands below an infinite x; NULL: "all at once" */
    size_t n;               /* at least 1 */
    const struct td_svgplot_panel *panels; /* [n_panels] */
    size_t n_panels;
    bool x_in_1024; /* a logarithmic axis with ticks like 8K and 1M, in powers of 1024 */
};

/* Appends the picture. A panel with more lines than fit beside its title has their names below it, and more than four lines
 * more height. Axes whose values span more than a factor of 8 (horizontal) or 50 (vertical) are logarithmic.
 * TD_NO_MEMORY. */
enum td_status td_svgplot_write(const struct td_svgplot *p, struct td_bytes *out);
/* The same of several plots with axes of their own, one above the other in one picture. */
enum td_status td_svgplot_stack(const struct td_svgplot *plots, size_t n, struct td_bytes *out);

#endif
