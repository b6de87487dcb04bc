#include "daemon/cli/term.h"

#include "kernels/base/clock.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <utf8proc.h>

void td_term_init(struct td_term *t, FILE *out)
{
    const char *term = getenv("TERM");

    *t = (struct td_term){.out = out};
    t->is_tty = isatty(fileno(out)) && term && strcmp(term, "dumb") != 0;
    t->interval_ns = t->is_tty ? 100000000u : 2000000000u;
}

static unsigned columns(const struct td_term *t)
{
    struct winsize size;

    if (t->fixed_columns)
        return t->fixed_columns;
    if (ioctl(fileno(t->out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        return size.ws_col;
    return 80;
}

/* Bytes of `text` that fit into `width` columns; a wide character is not cut in half. */
static size_t fitting_bytes(const char *text, unsigned width)
{
    size_t len = strlen(text), at = 0;
    unsigned used = 0;

    while (at < len) {
        utf8proc_int32_t code;
        utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)text + at,
                                              (utf8proc_ssize_t)(len - at), &code);
        unsigned w = n > 0 ? (unsigned)utf8proc_charwidth(code) : 1;

        if (used + w > width)
            break;
        used += w;
        at += n > 0 ? (size_t)n : 1;
    }
    return at;
}

const char *td_term_bytes(uint64_t bytes, char *out, size_t out_bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    size_t unit = 0;

    while (value >= 1024 && unit + 1 < sizeof units / sizeof units[0]) {
        value /= 1024;
        unit++;
    }
    snprintf(out, out_bytes, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return out;
}

static void format(const char *label, uint64_t done, uint64_t total, const char *unit, char *out,
                   size_t out_bytes)
{
    char amount[32], whole[32] = "";

    if (strcmp(unit, "B") == 0) {
        td_term_bytes(done, amount, sizeof amount);
        td_term_bytes(total, whole, sizeof whole);
        unit = "";
    } else {
        snprintf(amount, sizeof amount, "%llu", (unsigned long long)done);
        snprintf(whole, sizeof whole, "%llu", (unsigned long long)total);
    }
    if (total)
        snprintf(out, out_bytes, "%s  %3.0f %%  %s of %s%s%s", label,
                 100.0 * (double)(done < total ? done : total) / (double)total, amount, whole,
                 *unit ? " " : "", unit);
    else
        snprintf(out, out_bytes, "%s  %s%s%s", label, amount, *unit ? " " : "", unit);
}

void td_term_progress(struct td_term *t, const char *label, uint64_t done, uint64_t total,
                      const char *unit)
{
    uint64_t now = td_clock_now_ns();
    bool final = total && done >= total;
    char text[512];

    if (!final && t->last_ns && now - t->last_ns < t->interval_ns)
        return;
    t->last_ns = now;
    format(label, done, total, unit, text, sizeof text);
    if (!t->is_tty) {
        fprintf(t->out, "%s\n", text);
    } else {
        /* The last column stays free: some terminals wrap as soon as it is written. */
        fprintf(t->out, "\r%.*s\033[K%s", (int)fitting_bytes(text, columns(t) - 1), text,
                final ? "\n" : "");
        t->line_open = !final;
    }
    fflush(t->out);
}

void td_term_line(struct td_term *t, const char *fmt, ...)
{
    va_list ap;

    if (t->line_open)
        fputs("\r\033[K", t->out);
    t->line_open = false;
    va_start(ap, fmt);
    vfprintf(t->out, fmt, ap);
    va_end(ap);
    fputc('\n', t->out);
    fflush(t->out);
}

void td_term_end(struct td_term *t)
{
    if (t->line_open)
        fputc('\n', t->out);
    t->line_open = false;
    fflush(t->out);
}
