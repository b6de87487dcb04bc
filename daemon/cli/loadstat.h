/* What a finished run of load says about the server: counts, throughput, latencies, goodput. The names and definitions are those
 * of vLLM's `bench serve`. Pure; knows no output.
 *
 *   TTFT  time to first token: from handing the request to a socket (a new connection included) to the first event with text
 *   ITL   inter-token latency: each gap between two events with text, of all requests together
 *   TPOT  time per output token of a request: (E2E - TTFT) / (output tokens - 1); of requests with two tokens or more
 *   E2E   end-to-end latency: to the event that ends the text
 *
 * An event with text is one that stands for a token, even if its text is empty. A request that failed is counted by kind, and is in no latency and no token count. */
#ifndef TD_DAEMON_CLI_LOADSTAT_H
#define TD_DAEMON_CLI_LOADSTAT_H

#include "daemon/cli/latency.h"
#include "daemon/cli/loadrun.h"
#include "daemon/cli/options.h"

/* Bounds in ms that a good request keeps; 0: none. */
struct td_loadstat_slo {
    double ttft, tpot, e2e;
    double itl; /* of every single gap of the request */
};

struct td_loadstat {
    size_t n_sent, n_done, n_failed; /* n_sent: done, failed and cancelled */
    size_t n_ends[TD_LOADRECORD_N_ENDS];
    const char
        *reasons[TD_LOADRECORD_N_ENDS]; /* the first one's; borrowed from the run; may be NULL */
    double duration_s;
    uint64_t n_input, n_output, n_cached, n_words, n_events; /* of requests that are done */
    size_t n_without_usage; /* whose tokens are counted as words sent and events with text */
    size_t n_short;         /* with fewer tokens than asked for */
    double request_throughput, input_throughput, output_throughput; /* per second */
    size_t n_good; /* within the bounds; all that are done when there are none */
    double goodput;
    double mean_under_way; /* requests at the same time: the sum of their E2E over the duration */
    uint32_t most_under_way;
    struct td_latency_summary ttft, tpot, itl, e2e;
    struct td_latency_summary lag; /* sent after it was due; of all that were sent */
    double busy;                   /* part of the time in which the generator did not wait */
    bool interrupted;
};

/* "ttft:200", "itl:50", "tpot:50" or "e2e:5000" each. TD_INVALID names what is wrong. */
enum td_status td_loadstat_slo_parse(const struct td_option_list *list, struct td_loadstat_slo *out,
                                     struct td_err *err);
/* TD_NO_MEMORY. */
enum td_status td_loadstat_take(const struct td_loadrun *run, const struct td_loadstat_slo *slo,
                                struct td_loadstat *out, struct td_err *err);

/* One request in ms; 0 where there is none. */
double td_loadstat_ttft(const struct td_loadrecord *r);
double td_loadstat_e2e(const struct td_loadrecord *r);
double td_loadstat_tpot(const struct td_loadrecord *r);
uint32_t
td_loadstat_output(const struct td_loadrecord *r); /* the server's count, else events with text */

#endif
