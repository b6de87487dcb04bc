#include "daemon/cli/latency.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

enum { FIRST_CAP = 256 };

enum td_status td_latency_add(struct td_latency *l, double ms)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : FIRST_CAP;
        double *wider =
            cap <= SIZE_MAX / sizeof *wider ? realloc(l->ms, cap * sizeof *wider) : NULL;

        if (!wider)
            return TD_NO_MEMORY;
        l->ms = wider;
        l->cap = cap;
    }
    l->ms[l->n++] = ms;
    l->sorted = false;
    return TD_OK;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void sort(struct td_latency *l)
{
    if (!l->sorted && l->n > 1)
        qsort(l->ms, l->n, sizeof *l->ms, by_value);
    l->sorted = true;
}

double td_latency_percentile(struct td_latency *l, double percent)
{
    double at, whole;
    size_t low;

    if (l->n == 0)
        return 0.0;
    sort(l);
    at = percent / 100.0 * (double)(l->n - 1);
    whole = floor(at);
    low = (size_t)whole;
    if (low + 1 >= l->n)
        return l->ms[l->n - 1];
    return l->ms[low] + (at - whole) * (l->ms[low + 1] - l->ms[low]);
}

void td_latency_summarise(struct td_latency *l, struct td_latency_summary *out)
{
    double sum = 0.0, squares = 0.0;

    *out = (struct td_latency_summary){.n = l->n};
    if (l->n == 0)
        return;
    sort(l);
    for (size_t i = 0; i < l->n; i++)
        sum += l->ms[i];
    out->mean = sum / (double)l->n;
    for (size_t i = 0; i < l->n; i++)
        squares += (l->ms[i] - out->mean) * (l->ms[i] - out->mean);
    out->sd = sqrt(squares / (double)l->n);
    out->min = l->ms[0];
    out->p50 = td_latency_percentile(l, 50.0);
    out->p90 = td_latency_percentile(l, 90.0);
    out->p95 = td_latency_percentile(l, 95.0);
    out->p99 = td_latency_percentile(l, 99.0);
    out->max = l->ms[l->n - 1];
}

void td_latency_deinit(struct td_latency *l)
{
    free(l->ms);
    *l = (struct td_latency){0};
}
