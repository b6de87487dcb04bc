#include "daemon/cli/svgplot.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Pixels. */
enum {
    WIDTH = 860,
    LEFT = 86,
    RIGHT = 24,
    HEAD = 64,       /* title and subtitle */
    PANEL = 210,     /* a panel with its title */
    PANEL_HEAD = 34, /* of that, above the plot */
    CROWDED = 4,     /* a panel with more lines is higher */
    EXTRA = 100,     /* by this */
    LEGEND_LINE = 16,
    LEGEND_MARK = 30, /* of a name in the legend: the line before it, and the gap to the next */
    LEGEND_GAP = 14,
    GAP = 22,   /* of that, below the plot */
    FOOT = 40,  /* numbers and title of the horizontal axis */
    INNER = 18, /* between the frame and the outer points */
    MAX_TICKS = 24
};

static const double APART = 0.12; /* part of the width that an infinite x stands apart */

/* Dark enough for a light background, told apart without red against green. */
static const char *const colours[] = {"#0b62a4", "#d1600a", "#2a8a68", "#8e3a96", "#8a6d00",
                                      "#c2185b", "#0097a7", "#888888", "#111111"};
_Static_assert(sizeof colours / sizeof colours[0] == TD_SVGPLOT_BLACK, "one for each");

/* Values to a line of pixels, which may run backwards. */
struct axis {
    double low, high; /* values at its ends */
    double at_low, at_high;
    bool is_log;
};

struct picture {
    const struct td_svgplot *p;
    struct td_bytes *out;
    struct axis x;
    double x_infinite; /* pixel of an infinite x */
    enum td_status failed;
};

/* ---- output ---- */

#define PUT(pic, ...)                                                                              \
    do {                                                                                           \
        if (!(pic)->failed)                                                                        \
            (pic)->failed = td_bytes_appendf((pic)->out, __VA_ARGS__);                             \
    } while (0)

static void put_text(struct picture *pic, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '<':
            PUT(pic, "&lt;");
            break;
        case '>':
            PUT(pic, "&gt;");
            break;
        case '&':
            PUT(pic, "&amp;");
            break;
        default: /* XML 1.0 knows no other control characters */
            if ((unsigned char)*text >= ' ' || *text == '\t' || *text == '\n')
                PUT(pic, "%c", *text);
        }
    }
}

/* `anchor`: start, middle or end. */
static void put_label(struct picture *pic, double x, double y, const char *anchor,
                      const char *style, const char *text)
{
    PUT(pic, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" class=\"%s\">", x, y, anchor, style);
    put_text(pic, text);
    PUT(pic, "</text>\n");
}

static void put_line(struct picture *pic, const char *style, double x1, double y1, double x2,
                     double y2)
{
    PUT(pic, "<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", style, x1,
        y1, x2, y2);
}

/* ---- axes ---- */

static double place(const struct axis *a, double value)
{
    double part = a->is_log ? (log(value) - log(a->low)) / (log(a->high) - log(a->low))
                            : (value - a->low) / (a->high - a->low);

    return a->at_low + part * (a->at_high - a->at_low);
}

/* 1, 2 or 5 times a power of ten, at least `least`. */
static double round_step(double least)
{
    double power = pow(10.0, floor(log10(least)));
    double part = least / power;

    return (part <= 1.0 ? 1.0 : part <= 2.0 ? 2.0 : part <= 5.0 ? 5.0 : 10.0) * power;
}

/* Ticks of a vertical axis, whose ends are set to round values. Returns how many. */
static size_t set_ticks(struct axis *a, double ticks[MAX_TICKS])
{
    static const double parts[] = {1.0, 2.0, 5.0};
    double first, last, stride; /* powers of ten */
    size_t n = 0;

    if (!a->is_log) {
        double step = round_step(a->high / 5.0);

        a->low = 0.0;
        a->high = ceil(a->high / step - 1e-9) * step;
        for (double t = 0.0; t <= a->high * (1.0 + 1e-9) && n < MAX_TICKS; t += step)
            ticks[n++] = t;
        return n;
    }
    first = floor(log10(a->low) + 1e-9);
    last = ceil(log10(a->high) - 1e-9);
    a->low = pow(10.0, first);
    a->high = pow(10.0, last);
    stride = ceil((last - first) / 8.0);
    for (double power = first; power <= last; power += stride)
        for (size_t i = 0; i < (last - first > 3.0 ? 1u : 3u); i++)
            if (parts[i] * pow(10.0, power) <= a->high * (1.0 + 1e-9) && n < MAX_TICKS)
                ticks[n++] = parts[i] * pow(10.0, power);
    return n;
}

static bool is_shown(double y)
{
    return isfinite(y) && y >= 0.0;
}

static struct axis axis_of(const struct td_svgplot_panel *panel, size_t n, double bottom,
                           double top)
{
    struct axis a = {.low = INFINITY, .at_low = bottom, .at_high = top};

    for (size_t s = 0; s < panel->n_series; s++)
        for (size_t i = 0; i < n; i++) {
            double y = panel->series[s].y[i];

            if (!is_shown(y))
                continue;
            a.high = fmax(a.high, y);
            if (y > 0.0)
                a.low = fmin(a.low, y);
        }
    if (!(a.high > 0.0))
        a.low = a.high = 1.0; /* nothing but zeros, or nothing */
    a.is_log = panel->is_log || a.high / a.low > 50.0;
    if (a.is_log && a.high <= a.low * 1.001) /* one value: between two powers of ten */
        a.high = a.low * 1.001;
    return a;
}

static void set_x(struct picture *pic)
{
    const struct td_svgplot *p = pic->p;
    size_t n = p->n;
    double right = WIDTH - RIGHT - INNER;

    pic->x_infinite = right;
    if (isinf(p->x[n - 1])) {
        n--;
        if (n > 0)
            right -= APART * (right - LEFT);
    }
    pic->x = (struct axis){.at_low = LEFT + INNER, .at_high = right};
    if (n == 0)
        return;
    pic->x.low = p->x[0];
    pic->x.high = p->x[n - 1];
    if (pic->x.high <= pic->x.low) { /* one point: in the middle */
        pic->x.low *= 0.5;
        pic->x.high *= 1.5;
    }
    pic->x.is_log = n > 1 && (p->x_in_1024 || pic->x.high / pic->x.low > 8.0);
}

static double x_of(const struct picture *pic, size_t i)
{
    double x = pic->p->x[i];

    return isinf(x) ? pic->x_infinite : place(&pic->x, x);
}

/* ---- parts ---- */

/* "16M" where the axis counts so and it is a whole number of them. */
static void format_x(const struct td_svgplot *p, double x, char *out, size_t out_bytes)
{
    static const char *const units[] = {"", "K", "M", "G", "T"};
    size_t i = 0;

    for (; p->x_in_1024 && i < 4 && x >= 1024.0 && fmod(x, 1024.0) == 0.0; i++)
        x /= 1024.0;
    snprintf(out, out_bytes, "%.6g%s", x, units[i]);
}

/* The vertical grid lines, and at the lowest panel their numbers where there is room. */
static void put_x_ticks(struct picture *pic, double top, double bottom, bool numbers)
{
    double last = -1e9;

    for (size_t i = 0; i < pic->p->n; i++) {
        double x = x_of(pic, i);
        char text[32];

        put_line(pic, "grid", x, top, x, bottom);
        if (!numbers || x - last < 36.0)
            continue;
        last = x;
        if (isinf(pic->p->x[i]))
            snprintf(text, sizeof text, "%s",
                     pic->p->x_infinite ? pic->p->x_infinite : "all at once");
        else
            format_x(pic->p, pic->p->x[i], text, sizeof text);
        put_label(pic, isinf(pic->p->x[i]) ? x + INNER : x, bottom + 17.0,
                  isinf(pic->p->x[i]) ? "end" : "middle", "tick", text);
    }
}

static void put_y_ticks(struct picture *pic, struct axis *a)
{
    double ticks[MAX_TICKS];
    size_t n = set_ticks(a, ticks);

    for (size_t i = 0; i < n; i++) {
        double y = place(a, ticks[i]);
        char text[32];

        put_line(pic, "grid", LEFT, y, WIDTH - RIGHT, y);
        snprintf(text, sizeof text, "%.6g", ticks[i]);
        put_label(pic, LEFT - 8.0, y + 4.0, "end", "tick", text);
    }
}

/* A line with a mark at each value; a missing one leaves a gap. */
static void put_series(struct picture *pic, const struct axis *a,
                       const struct td_svgplot_series *series, const char *colour)
{
    const char *command = "M";

    PUT(pic, "<path fill=\"none\" stroke=\"%s\" stroke-width=\"2\"%s d=\"", colour,
        series->dashed ? " stroke-dasharray=\"6 4\"" : "");
    for (size_t i = 0; i < pic->p->n; i++) {
        bool shown = is_shown(series->y[i]) && (!a->is_log || series->y[i] > 0.0);

        if (shown)
            PUT(pic, "%s%.1f %.1f ", command, x_of(pic, i), place(a, series->y[i]));
        command = shown ? "L" : "M";
    }
    PUT(pic, "\"/>\n");
    for (size_t i = 0; i < pic->p->n; i++)
        if (is_shown(series->y[i]) && (!a->is_log || series->y[i] > 0.0))
            PUT(pic, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\" stroke=\"#ffffff\"/>\n",
                x_of(pic, i), place(a, series->y[i]), colour);
}

/* One that was given, else one for each name: a line without a name has that of the line before it. */
static const char *colour_of(const struct td_svgplot_panel *panel, size_t s)
{
    size_t colour = panel->series[s].colour, n_names = 0;

    for (size_t i = 1; i <= s; i++)
        n_names += panel->series[i].name != NULL;
    return colours[colour ? colour - 1 : n_names % TD_SVGPLOT_N_COLOURS];
}

/* About the width of a text of the size of the legend's. */
static double width_of(const char *text)
{
    return 7.2 * (double)strlen(text);
}

static double legend_width(const struct td_svgplot_panel *panel, size_t s)
{
    const char *name = panel->series[s].name;

    return name ? LEGEND_MARK + width_of(name) + LEGEND_GAP : 0.0;
}

static size_t count_names(const struct td_svgplot_panel *panel)
{
    size_t n = 0;

    for (size_t s = 0; s < panel->n_series; s++)
        n += panel->series[s].name != NULL;
    return n;
}

/* Lines of names below the title; 0: they stand beside it, or there is nothing to tell apart. */
static size_t legend_lines(const struct td_svgplot_panel *panel)
{
    double total = 0.0, at = 0.0, room = WIDTH - RIGHT - LEFT;
    size_t n = 1;

    for (size_t s = 0; s < panel->n_series; s++) {
        double width = legend_width(panel, s);

        total += width;
        if (at > 0.0 && at + width - LEGEND_GAP > room) {
            at = 0.0;
            n++;
        }
        at += width;
    }
    return count_names(panel) < 2 || total + 1.1 * width_of(panel->title) <= room ? 0 : n;
}

static void put_name(struct picture *pic, const struct td_svgplot_panel *panel, size_t s, double x,
                     double y)
{
    PUT(pic,
        "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" "
        "stroke-width=\"2\"%s/>\n",
        x, y - 4.0, x + LEGEND_MARK - 6.0, y - 4.0, colour_of(panel, s),
        panel->series[s].dashed ? " stroke-dasharray=\"6 4\"" : "");
    put_label(pic, x + LEGEND_MARK, y, "start", "legend", panel->series[s].name);
}

/* Beside the title, up to the right end; or from the left in lines of its own below it. `y` is the title's. */
static void put_legend(struct picture *pic, const struct td_svgplot_panel *panel, double y)
{
    size_t n_lines = legend_lines(panel);
    double x = n_lines ? LEFT : WIDTH - RIGHT + LEGEND_GAP;

    if (count_names(panel) < 2)
        return;
    for (size_t s = 0; s < panel->n_series && n_lines == 0; s++)
        x -= legend_width(panel, s);
    y += n_lines ? LEGEND_LINE : 0;
    for (size_t s = 0; s < panel->n_series; s++) {
        double width = legend_width(panel, s);

        if (width <= 0.0)
            continue;
        if (n_lines && x > LEFT && x + width - LEGEND_GAP > WIDTH - RIGHT) {
            x = LEFT;
            y += LEGEND_LINE;
        }
        put_name(pic, panel, s, x, y);
        x += width;
    }
}

static double panel_height(const struct td_svgplot_panel *panel)
{
    return PANEL + LEGEND_LINE * (double)legend_lines(panel) +
           (panel->n_series > CROWDED ? EXTRA : 0);
}

static void put_panel(struct picture *pic, const struct td_svgplot_panel *panel, double start,
                      bool is_last)
{
    double names = LEGEND_LINE * (double)legend_lines(panel);
    double top = start + PANEL_HEAD + names, bottom = start + panel_height(panel) - GAP;
    struct axis a = axis_of(panel, pic->p->n, bottom, top);

    put_y_ticks(pic, &a);
    put_x_ticks(pic, top, bottom, is_last);
    PUT(pic, "<rect class=\"frame\" x=\"%d\" y=\"%.1f\" width=\"%d\" height=\"%.1f\"/>\n", LEFT,
        top, WIDTH - RIGHT - LEFT, bottom - top);
    put_label(pic, LEFT, top - names - 9.0, "start", "panel", panel->title);
    put_legend(pic, panel, top - names - 9.0);
    for (size_t s = 0; s < panel->n_series; s++)
        put_series(pic, &a, &panel->series[s], colour_of(panel, s));
}

static int height_of(const struct td_svgplot *p)
{
    int height = HEAD + FOOT;

    for (size_t i = 0; i < p->n_panels; i++)
        height += (int)panel_height(&p->panels[i]);
    return height;
}

/* One plot as an element of its own, `top` pixels below the picture's edge. */
static void put_plot(struct picture *pic, int top)
{
    const struct td_svgplot *p = pic->p;
    int height = height_of(p);
    double start = HEAD;

    set_x(pic);
    PUT(pic,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" y=\"%d\" width=\"%d\" height=\"%d\" "
        "viewBox=\"0 0 %d %d\" "
        "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\">\n<style>\n"
        ".title { font-size: 18px; font-weight: bold; fill: #111111 }\n"
        ".sub { font-size: 12px; fill: #555555 }\n"
        ".panel { font-size: 13px; font-weight: bold; fill: #222222 }\n"
        ".legend, .tick { font-size: 12px; fill: #333333 }\n"
        ".axis { font-size: 13px; fill: #222222 }\n"
        ".grid { stroke: #e4e4e4; stroke-width: 1 }\n"
        ".frame { fill: none; stroke: #999999; stroke-width: 1 }\n"
        "</style>\n<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n",
        top, WIDTH, height, WIDTH, height, WIDTH, height);
    put_label(pic, LEFT, 28.0, "start", "title", p->title);
    put_label(pic, LEFT, 48.0, "start", "sub", p->subtitle);
    for (size_t i = 0; i < p->n_panels; i++) {
        put_panel(pic, &p->panels[i], start, i + 1 == p->n_panels);
        start += panel_height(&p->panels[i]);
    }
    put_label(pic, (LEFT + WIDTH - RIGHT) / 2.0, height - 12.0, "middle", "axis", p->x_title);
    PUT(pic, "</svg>\n");
}

enum td_status td_svgplot_write(const struct td_svgplot *p, struct td_bytes *out)
{
    struct picture pic = {.p = p, .out = out};

    put_plot(&pic, 0);
    return pic.failed;
}

enum td_status td_svgplot_stack(const struct td_svgplot *plots, size_t n, struct td_bytes *out)
{
    struct picture pic = {.out = out};
    int top = 0;

    for (size_t i = 0; i < n; i++)
        top += height_of(&plots[i]);
    PUT(&pic,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d "
        "%d\">\n",
        WIDTH, top, WIDTH, top);
    top = 0;
    for (size_t i = 0; i < n; i++) {
        pic.p = &plots[i];
        put_plot(&pic, top);
        top += height_of(&plots[i]);
    }
    PUT(&pic, "</svg>\n");
    return pic.failed;
}
