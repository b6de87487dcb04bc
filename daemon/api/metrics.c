#include "daemon/api/metrics.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const double td_metrics_seconds_buckets[] = {
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300};
const size_t td_metrics_n_seconds_buckets =
    sizeof(td_metrics_seconds_buckets) / sizeof(td_metrics_seconds_buckets[0]);

struct family {
    enum td_metrics_kind kind;
    char *name;
    char *help;
    double *buckets; /* [n_buckets] */
    size_t n_buckets;
    struct td_metric *first; /* in order of registration */
    struct td_metric *last;
    struct family *next;
};

struct td_metric {
    const struct family *family;
    char *labels; /* `a="b",c="d"`, escaped; empty when there are none */
    double value; /* counter, gauge; histogram: sum of observations */
    uint64_t count;
    uint64_t *in_bucket; /* [n_buckets], not cumulative */
    struct td_metric *next;
};

struct td_metrics {
    struct family *first;
    struct family *last;
    size_t n_series;
    td_metrics_refresh_fn refresh;
    void *refresh_user;
};

enum td_status td_metrics_open(struct td_metrics **m, struct td_err *err)
{
    struct td_metrics *registry = calloc(1, sizeof(*registry));
    if (registry == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for the metrics registry");
    }
    *m = registry;
    return TD_OK;
}

static void free_series(struct td_metric *s)
{
    if (s != NULL) {
        free(s->in_bucket);
        free(s->labels);
        free(s);
    }
}

static void free_family(struct family *f)
{
    if (f != NULL) {
        for (struct td_metric *s = f->first, *next; s != NULL; s = next) {
            next = s->next;
            free_series(s);
        }
        free(f->buckets);
        free(f->help);
        free(f->name);
        free(f);
    }
}

void td_metrics_close(struct td_metrics *m)
{
    if (m == NULL) {
        return;
    }
    for (struct family *f = m->first, *next; f != NULL; f = next) {
        next = f->next;
        free_family(f);
    }
    free(m);
}

static bool is_name(const char *s)
{
    if (s == NULL || !((*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z') || *s == '_')) {
        return false;
    }
    for (; *s != '\0'; s++) {
        if (!((*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z') || *s == '_' ||
              (*s >= '0' && *s <= '9'))) {
            return false;
        }
    }
    return true;
}

/* Backslash and newline are escaped everywhere, the quote only in label values. */
static enum td_status append_escaped(struct td_bytes *out, const char *s, bool in_label)
{
    enum td_status status = TD_OK;
    for (; *s != '\0' && status == TD_OK; s++) {
        if (*s == '\\') {
            status = td_bytes_append(out, "\\\\", 2);
        } else if (*s == '\n') {
            status = td_bytes_append(out, "\\n", 2);
        } else if (*s == '"' && in_label) {
            status = td_bytes_append(out, "\\\"", 2);
        } else {
            status = td_bytes_append(out, s, 1);
        }
    }
    return status;
}

static enum td_status check_desc(const struct td_metrics_desc *d, struct td_err *err)
{
    if (!is_name(d->name) || strncmp(d->name, "tensord_", 8) != 0) {
        return td_err_set(err, TD_INVALID, "metric name '%s' is not tensord_[a-zA-Z0-9_]*",
                          d->name != NULL ? d->name : "");
    }
    if (d->help == NULL || !td_str_is_utf8(td_str_from(d->help))) {
        return td_err_set(err, TD_INVALID, "metric '%s' has no help text in UTF-8", d->name);
    }
    for (size_t i = 0; i < d->n_labels; i++) {
        const struct td_metrics_label *label = &d->labels[i];
        if (!is_name(label->name) || strncmp(label->name, "__", 2) == 0 ||
            strcmp(label->name, "le") == 0) {
            return td_err_set(err, TD_INVALID, "metric '%s': label name '%s' is not allowed",
                              d->name, label->name != NULL ? label->name : "");
        }
        if (label->value == NULL || !td_str_is_utf8(td_str_from(label->value))) {
            return td_err_set(err, TD_INVALID, "metric '%s': label '%s' has no value in UTF-8",
                              d->name, label->name);
        }
    }
    bool is_histogram = d->kind == TD_METRICS_HISTOGRAM;
    if (is_histogram != (d->n_buckets > 0) || d->n_buckets > TD_METRICS_MAX_BUCKETS) {
        return td_err_set(err, TD_INVALID, "metric '%s' has %zu buckets, expected %s", d->name,
                          d->n_buckets, is_histogram ? "1 to 64" : "0");
    }
    for (size_t i = 0; i < d->n_buckets; i++) {
        if (!isfinite(d->buckets[i]) || (i > 0 && !(d->buckets[i] > d->buckets[i - 1]))) {
            return td_err_set(err, TD_INVALID, "metric '%s': bucket %zu (%g) does not rise",
                              d->name, i, d->buckets[i]);
        }
    }
    return TD_OK;
}

static struct family *make_family(const struct td_metrics_desc *d)
{
    struct family *f = calloc(1, sizeof(*f));
    if (f == NULL) {
        return NULL;
    }
    f->kind = d->kind;
    f->name = strdup(d->name);
    f->help = strdup(d->help);
    f->n_buckets = d->n_buckets;
    f->buckets = malloc((d->n_buckets + 1) * sizeof(double));
    if (f->name == NULL || f->help == NULL || f->buckets == NULL) {
        free_family(f);
        return NULL;
    }
    if (d->n_buckets > 0) {
        memcpy(f->buckets, d->buckets, d->n_buckets * sizeof(double));
    }
    return f;
}

static struct td_metric *make_series(const struct td_metrics_desc *d)
{
    struct td_bytes text = {0};
    struct td_metric *s = calloc(1, sizeof(*s));
    if (s == NULL) {
        return NULL;
    }
    enum td_status status = td_bytes_append(&text, "", 0);
    for (size_t i = 0; i < d->n_labels && status == TD_OK; i++) {
        status = td_bytes_appendf(&text, "%s%s=\"", i > 0 ? "," : "", d->labels[i].name);
        if (status == TD_OK) {
            status = append_escaped(&text, d->labels[i].value, true);
        }
        if (status == TD_OK) {
            status = td_bytes_append(&text, "\"", 1);
        }
    }
    s->labels = status == TD_OK ? strdup(text.data != NULL ? text.data : "") : NULL;
    s->in_bucket = calloc(d->n_buckets + 1, sizeof(uint64_t));
    td_bytes_deinit(&text);
    if (s->labels == NULL || s->in_bucket == NULL) {
        free_series(s);
        return NULL;
    }
    return s;
}

enum td_status td_metrics_register(struct td_metrics *m, const struct td_metrics_desc *desc,
                                   struct td_metric **series, struct td_err *err)
{
    enum td_status status = check_desc(desc, err);
    if (status != TD_OK) {
        return status;
    }
    if (m->n_series == TD_METRICS_MAX_SERIES) {
        return td_err_set(err, TD_TOO_LARGE, "metric '%s' is over the limit of %d series",
                          desc->name, TD_METRICS_MAX_SERIES);
    }
    struct family *f = m->first;
    while (f != NULL && strcmp(f->name, desc->name) != 0) {
        f = f->next;
    }
    if (f != NULL && (f->kind != desc->kind || strcmp(f->help, desc->help) != 0 ||
                      f->n_buckets != desc->n_buckets ||
                      (f->n_buckets > 0 &&
                       memcmp(f->buckets, desc->buckets, f->n_buckets * sizeof(double)) != 0))) {
        return td_err_set(err, TD_INVALID,
                          "metric '%s' is registered with another kind, help or buckets",
                          desc->name);
    }
    struct td_metric *s = make_series(desc);
    if (s == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for metric '%s'", desc->name);
    }
    for (struct td_metric *other = f != NULL ? f->first : NULL; other != NULL;
         other = other->next) {
        if (strcmp(other->labels, s->labels) == 0) {
            status = td_err_set(err, TD_INVALID, "metric '%s{%s}' is registered already",
                                desc->name, s->labels);
            free_series(s);
            return status;
        }
    }
    if (f == NULL) {
        f = make_family(desc);
        if (f == NULL) {
            free_series(s);
            return td_err_set(err, TD_NO_MEMORY, "no memory for metric '%s'", desc->name);
        }
        if (m->last != NULL) {
            m->last->next = f;
        } else {
            m->first = f;
        }
        m->last = f;
    }
    s->family = f;
    if (f->last != NULL) {
        f->last->next = s;
    } else {
        f->first = s;
    }
    f->last = s;
    m->n_series++;
    *series = s;
    return TD_OK;
}

void td_metrics_set_refresh(struct td_metrics *m, td_metrics_refresh_fn fn, void *user)
{
    m->refresh = fn;
    m->refresh_user = user;
}

void td_metrics_add(struct td_metric *series, double amount)
{
    if (series->family->kind == TD_METRICS_GAUGE ||
        (series->family->kind == TD_METRICS_COUNTER && amount >= 0)) {
        series->value += amount;
    }
}

void td_metrics_set(struct td_metric *series, double value)
{
    if (series->family->kind == TD_METRICS_GAUGE) {
        series->value = value;
    }
}

void td_metrics_observe(struct td_metric *series, double value)
{
    const struct family *f = series->family;
    if (f->kind != TD_METRICS_HISTOGRAM || isnan(value)) {
        return;
    }
    size_t i = 0;
    while (i < f->n_buckets && value > f->buckets[i]) {
        i++;
    }
    series->in_bucket[i]++; /* [n_buckets] counts what is above the last bound */
    series->count++;
    series->value += value;
}

double td_metrics_value(const struct td_metric *series)
{
    return series->family->kind == TD_METRICS_HISTOGRAM ? (double)series->count : series->value;
}

static enum td_status append_number(struct td_bytes *out, double value)
{
    if (isnan(value)) {
        return td_bytes_append(out, "NaN", 3);
    }
    if (isinf(value)) {
        return td_bytes_append_str(out, value > 0 ? TD_STR("+Inf") : TD_STR("-Inf"));
    }
    char text[40];
    snprintf(text, sizeof(text), "%.15g", value);
    char *comma = strchr(text, ','); /* the decimal point of some locales */
    if (comma != NULL) {
        *comma = '.';
    }
    return td_bytes_append(out, text, strlen(text));
}

static enum td_status append_sample(struct td_bytes *out, const char *name, const char *suffix,
                                    const char *labels, double value)
{
    enum td_status status = labels[0] != '\0'
                                ? td_bytes_appendf(out, "%s%s{%s} ", name, suffix, labels)
                                : td_bytes_appendf(out, "%s%s ", name, suffix);
    if (status == TD_OK) {
        status = append_number(out, value);
    }
    return status == TD_OK ? td_bytes_append(out, "\n", 1) : status;
}

static enum td_status append_histogram(struct td_bytes *out, const struct td_metric *s)
{
    const struct family *f = s->family;
    enum td_status status = TD_OK;
    uint64_t below = 0;
    for (size_t i = 0; i <= f->n_buckets && status == TD_OK; i++) {
        below += s->in_bucket[i];
        status = td_bytes_appendf(out, "%s_bucket{%s%sle=\"", f->name, s->labels,
                                  s->labels[0] != '\0' ? "," : "");
        if (status == TD_OK) {
            status = append_number(out, i < f->n_buckets ? f->buckets[i] : INFINITY);
        }
        if (status == TD_OK) {
            status = td_bytes_appendf(out, "\"} %" PRIu64 "\n", below);
        }
    }
    if (status == TD_OK) {
        status = append_sample(out, f->name, "_sum", s->labels, s->value);
    }
    if (status == TD_OK) {
        status = append_sample(out, f->name, "_count", s->labels, (double)s->count);
    }
    return status;
}

enum td_status td_metrics_write(struct td_metrics *m, struct td_bytes *out)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    if (m->refresh != NULL) {
        m->refresh(m->refresh_user);
    }
    enum td_status status = TD_OK;
    for (const struct family *f = m->first; f != NULL && status == TD_OK; f = f->next) {
        status = td_bytes_appendf(out, "# HELP %s ", f->name);
        if (status == TD_OK) {
            status = append_escaped(out, f->help, false);
        }
        if (status == TD_OK) {
            status = td_bytes_appendf(out, "\n# TYPE %s %s\n", f->name, kinds[f->kind]);
        }
        for (const struct td_metric *s = f->first; s != NULL && status == TD_OK; s = s->next) {
            status = f->kind == TD_METRICS_HISTOGRAM
                         ? append_histogram(out, s)
                         : append_sample(out, f->name, "", s->labels, s->value);
        }
    }
    return status;
}
