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
    GAP = 22,        /* of that, below the plot */
    FOOT = 40,       /* numbers and title of the horizontal axis */
    INNER = 18,      /* between the frame and the outer points */
    MAX_TICKS = 24
};

static const double APART = 0.12; /* part of the width that an infinite x stands apart */

/* Dark enough for a light background, told apart without red against green. */
static const char *const colours[TD_SVGPLOT_MAX_SERIES] = {"#0b62a4", "#d1600a", "#2a8a68",
                                                           "#8e3a96", "#8a6d00", "#555555"};

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
    a.is_log = a.high / a.low > 50.0;
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
    pic->x.is_log = n > 1 && pic->x.high / pic->x.low > 8.0;
}

static double x_of(const struct picture *pic, size_t i)
{
    double x = pic->p->x[i];

    return isinf(x) ? pic->x_infinite : place(&pic->x, x);
}

/* ---- parts ---- */

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
            snprintf(text, sizeof text, "all at once");
        else
            snprintf(text, sizeof text, "%.6g", pic->p->x[i]);
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

/* From the right to the left, above the plot. */
static void put_legend(struct picture *pic, const struct td_svgplot_panel *panel, double y)
{
    double x = WIDTH - RIGHT;

    if (panel->n_series < 2)
        return;
    for (size_t s = panel->n_series; s-- > 0;) {
        const struct td_svgplot_series *series = &panel->series[s];

        x -= 7.2 * (double)strlen(series->name); /* about the width of the text */
        put_label(pic, x, y, "start", "legend", series->name);
        PUT(pic,
            "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" "
            "stroke-width=\"2\"%s/>\n",
            x - 30.0, y - 4.0, x - 6.0, y - 4.0, colours[s],
            series->dashed ? " stroke-dasharray=\"6 4\"" : "");
        x -= 44.0;
    }
}

static void put_panel(struct picture *pic, size_t index)
{
    const struct td_svgplot_panel *panel = &pic->p->panels[index];
    double start = HEAD + (double)index * PANEL, top = start + PANEL_HEAD;
    double bottom = start + PANEL - GAP;
    struct axis a = axis_of(panel, pic->p->n, bottom, top);

    put_y_ticks(pic, &a);
    put_x_ticks(pic, top, bottom, index + 1 == pic->p->n_panels);
    PUT(pic, "<rect class=\"frame\" x=\"%d\" y=\"%.1f\" width=\"%d\" height=\"%.1f\"/>\n", LEFT,
        top, WIDTH - RIGHT - LEFT, bottom - top);
    put_label(pic, LEFT, top - 9.0, "start", "panel", panel->title);
    put_legend(pic, panel, top - 9.0);
    for (size_t s = 0; s < panel->n_series; s++)
        put_series(pic, &a, &panel->series[s], colours[s]);
}

enum td_status td_svgplot_write(const struct td_svgplot *p, struct td_bytes *out)
{
    struct picture pic = {.p = p, .out = out};
    int height = HEAD + (int)p->n_panels * PANEL + FOOT;

    set_x(&pic);
    PUT(&pic,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d "
        "%d\" "
        "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\">\n<style>\n"
        ".title { font-size: 18px; font-weight: bold; fill: #111111 }\n"
        ".sub { font-size: 12px; fill: #555555 }\n"
        ".panel { font-size: 13px; font-weight: bold; fill: #222222 }\n"
        ".legend, .tick { font-size: 12px; fill: #333333 }\n"
        ".axis { font-size: 13px; fill: #222222 }\n"
        ".grid { stroke: #e4e4e4; stroke-width: 1 }\n"
        ".frame { fill: none; stroke: #999999; stroke-width: 1 }\n"
        "</style>\n<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n",
        WIDTH, height, WIDTH, height, WIDTH, height);
    put_label(&pic, LEFT, 28.0, "start", "title", p->title);
    put_label(&pic, LEFT, 48.0, "start", "sub", p->subtitle);
    for (size_t i = 0; i < p->n_panels; i++)
        put_panel(&pic, i);
    put_label(&pic, (LEFT + WIDTH - RIGHT) / 2.0, height - 12.0, "middle", "axis", p->x_title);
    PUT(&pic, "</svg>\n");
    return pic.failed;
}
