#include "daemon/cli/loadstat.h"

#include <stdlib.h>
#include <string.h>

/* The samples that the summaries are made of. */
struct samples {
    struct td_latency ttft, tpot, itl, e2e, lag;
};

enum td_status td_loadstat_slo_parse(const struct td_option_list *list, struct td_loadstat_slo *out,
                                     struct td_err *err)
{
    struct td_loadstat_slo slo = {0};
    const struct {
        const char *word;
        double *bound;
    } known[] = {
        {"ttft:", &slo.ttft}, {"itl:", &slo.itl}, {"tpot:", &slo.tpot}, {"e2e:", &slo.e2e}};

    for (uint32_t i = 0; i < list->n; i++) {
        const char *item = list->items[i];
        size_t k = 0, n_known = sizeof known / sizeof known[0];
        char *end = NULL;
        double ms = 0.0;

        while (k < n_known && strncmp(item, known[k].word, strlen(known[k].word)) != 0)
            k++;
        if (k < n_known) {
            const char *number = item + strlen(known[k].word);

            if (*number && !number[strspn(number, "0123456789.")])
                ms = strtod(number, &end);
        }
        if (!end || *end || !(ms > 0.0 && ms <= 1e9))
            return td_err_set(
                err, TD_INVALID,
                "--slo: got '%.60s', expected ttft:MS, itl:MS, tpot:MS or e2e:MS with "
                "milliseconds above 0",
                item);
        *known[k].bound = ms;
    }
    *out = slo;
    return TD_OK;
}

static double ms_between(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) * 1e-6 : 0.0;
}

double td_loadstat_ttft(const struct td_loadrecord *r)
{
    return ms_between(r->sent_ns, r->first_ns);
}

double td_loadstat_e2e(const struct td_loadrecord *r)
{
    return ms_between(r->sent_ns, r->last_ns);
}

uint32_t td_loadstat_output(const struct td_loadrecord *r)
{
    return r->has_usage ? r->n_output : r->n_events;
}

double td_loadstat_tpot(const struct td_loadrecord *r)
{
    uint32_t n = td_loadstat_output(r);

    return n > 1 ? ms_between(r->first_ns, r->last_ns) / (double)(n - 1) : 0.0;
}

static bool is_good(const struct td_loadrecord *r, const struct td_loadstat_slo *slo)
{
    for (uint32_t i = 0; slo->itl > 0.0 && i < r->n_gaps; i++)
        if ((double)r->gap_ms[i] > slo->itl)
            return false;
    return (slo->ttft <= 0.0 || td_loadstat_ttft(r) <= slo->ttft) &&
           (slo->tpot <= 0.0 || td_loadstat_tpot(r) <= slo->tpot) &&
           (slo->e2e <= 0.0 || td_loadstat_e2e(r) <= slo->e2e);
}

static enum td_status take_done(const struct td_loadrecord *r, const struct td_loadstat_slo *slo,
                                struct samples *all, struct td_loadstat *out)
{
    uint32_t n_output = td_loadstat_output(r);
    enum td_status s = td_latency_add(&all->ttft, td_loadstat_ttft(r));

    s = s ? s : td_latency_add(&all->e2e, td_loadstat_e2e(r));
    if (!s && n_output > 1)
        s = td_latency_add(&all->tpot, td_loadstat_tpot(r));
    for (uint32_t i = 0; !s && i < r->n_gaps; i++)
        s = td_latency_add(&all->itl, (double)r->gap_ms[i]);
    out->n_done++;
    out->n_good += is_good(r, slo);
    out->n_without_usage += !r->has_usage;
    out->n_short += n_output < r->n_asked;
    out->n_input += r->has_usage ? r->n_input : r->n_words;
    out->n_output += n_output;
    out->n_cached += r->n_cached;
    out->n_words += r->n_words;
    out->n_events += r->n_events;
    out->mean_under_way += td_loadstat_e2e(r) * 1e-3;
    return s;
}

enum td_status td_loadstat_take(const struct td_loadrun *run, const struct td_loadstat_slo *slo,
                                struct td_loadstat *out, struct td_err *err)
{
    struct td_loadstat st = {.n_sent = run->n_records,
                             .busy = run->busy,
                             .most_under_way = run->most_under_way,
                             .interrupted = run->interrupted};
    struct samples all = {0};
    enum td_status s = TD_OK;

    st.duration_s = ms_between(run->start_ns, run->end_ns) * 1e-3;
    for (size_t i = 0; !s && i < run->n_records; i++) {
        const struct td_loadrecord *r = run->records[i];

        s = td_latency_add(&all.lag, ms_between(r->due_ns, r->sent_ns));
        if (st.n_ends[r->end]++ == 0)
            st.reasons[r->end] = r->reason;
        if (!s && r->end == TD_LOADRECORD_OK)
            s = take_done(r, slo, &all, &st);
    }
    st.n_failed = st.n_sent - st.n_done - st.n_ends[TD_LOADRECORD_CANCELLED];
    if (st.duration_s > 0.0) {
        st.request_throughput = (double)st.n_done / st.duration_s;
        st.input_throughput = (double)st.n_input / st.duration_s;
        st.output_throughput = (double)st.n_output / st.duration_s;
        st.goodput = (double)st.n_good / st.duration_s;
        st.mean_under_way /= st.duration_s;
    }
    td_latency_summarise(&all.ttft, &st.ttft);
    td_latency_summarise(&all.tpot, &st.tpot);
    td_latency_summarise(&all.itl, &st.itl);
    td_latency_summarise(&all.e2e, &st.e2e);
    td_latency_summarise(&all.lag, &st.lag);
    td_latency_deinit(&all.ttft);
    td_latency_deinit(&all.tpot);
    td_latency_deinit(&all.itl);
    td_latency_deinit(&all.e2e);
    td_latency_deinit(&all.lag);
    if (s)
        return td_err_set(err, s, "no memory for the statistics of %zu requests", run->n_records);
    *out = st;
    return TD_OK;
}
