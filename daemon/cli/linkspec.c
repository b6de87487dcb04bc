#include "daemon/cli/linkspec.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A kind of value, and what the lab's shapes take of it. */
struct kind {
    const char *name;
    struct {
        const char *suffix;
        double factor;
    } units[3];
    double least, most; /* of a value that is not 0 */
    const char *expected;
};

static const struct kind DELAY = {"delay",
                                  {{"us", 1e-6}, {"ms", 1e-3}, {"s", 1.0}},
                                  0.0,
                                  10.0,
                                  "0 or a number with us, ms or s, at most 10s"};
static const struct kind RATE = {"rate",
                                 {{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}},
                                 1e3,
                                 1e12,
                                 "0 or a number with kbit, mbit or gbit, 1kbit to 1000gbit"};

/* "1.5ms": up to nine digits before the point and behind it. */
static bool parse_value(const struct kind *kind, const char *text, double *out)
{
    size_t whole = strspn(text, "0123456789"), digits = whole;

    if (strcmp(text, "0") == 0) {
        *out = 0.0;
        return true;
    }
    if (text[digits] == '.') {
        size_t part = strspn(text + digits + 1, "0123456789");

        if (part == 0 || part > 9)
            return false;
        digits += 1 + part;
    }
    if (whole == 0 || whole > 9)
        return false;
    for (size_t i = 0; i < sizeof kind->units / sizeof kind->units[0]; i++)
        if (strcmp(text + digits, kind->units[i].suffix) == 0) {
            *out = strtod(text, NULL) * kind->units[i].factor;
            return *out == 0.0 || (*out >= kind->least && *out <= kind->most * (1.0 + 1e-12));
        }
    return false;
}

/* "0,50us,1ms" of `len` bytes. */
static enum td_status parse_values(const struct kind *kind, const char *text, size_t len,
                                   struct td_linkspec_value *values, uint32_t *n,
                                   struct td_err *err)
{
    for (const char *p = text, *end = text + len;; p++) {
        size_t one = strcspn(p, ",;");
        struct td_linkspec_value *v = &values[*n];

        if (*n == TD_LINKSPEC_MAX)
            return td_err_set(err, TD_INVALID, "%s: got more values, expected at most %d",
                              kind->name, TD_LINKSPEC_MAX);
        snprintf(v->text, sizeof v->text, "%.*s",
                 (int)(one < sizeof v->text ? one : sizeof v->text - 1), p);
        if (one >= sizeof v->text || !parse_value(kind, v->text, &v->value))
            return td_err_set(err, TD_INVALID, "%s: got '%s', expected %s", kind->name, v->text,
                              kind->expected);
        for (uint32_t i = 0; i < *n; i++)
            if (values[i].value == v->value)
                return td_err_set(err, TD_INVALID, "%s: got '%s' after '%s', expected it once",
                                  kind->name, v->text, values[i].text);
        (*n)++;
        p += one;
        if (p >= end)
            return TD_OK;
    }
}

enum td_status td_linkspec_parse(const char *text, struct td_linkspec *out, struct td_err *err)
{
    struct td_linkspec spec = {0};

    for (const char *p = text;; p++) {
        size_t part = strcspn(p, ";"), name = strcspn(p, "=;");
        bool is_delay = name == 5 && strncmp(p, "delay", name) == 0;
        bool is_rate = name == 4 && strncmp(p, "rate", name) == 0;
        uint32_t *n = is_delay ? &spec.n_delays : &spec.n_rates;
        enum td_status s;

        if ((!is_delay && !is_rate) || p[name] != '=')
            return td_err_set(err, TD_INVALID,
                              "got '%.*s', expected delay=VALUES, rate=VALUES or both with ';' "
                              "between them",
                              part < 60 ? (int)part : 60, p);
        if (*n)
            return td_err_set(err, TD_INVALID, "%s: got it twice, expected it once",
                              is_delay ? "delay" : "rate");
        s = parse_values(is_delay ? &DELAY : &RATE, p + name + 1, part - name - 1,
                         is_delay ? spec.delay : spec.rate, n, err);
        if (s)
            return s;
        p += part;
        if (!*p)
            break;
    }
    if (!spec.n_delays)
        spec.delay[spec.n_delays++] = (struct td_linkspec_value){"0", 0.0};
    if (!spec.n_rates)
        spec.rate[spec.n_rates++] = (struct td_linkspec_value){"0", 0.0};
    *out = spec;
    return TD_OK;
}
