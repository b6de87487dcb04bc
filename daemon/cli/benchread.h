/* What `tensord bench --json` printed, read by another process. Pure but for memory. The text comes from a process that may have
 * been ended anywhere in it, so nothing of it is taken on trust. */
#ifndef TD_DAEMON_CLI_BENCHREAD_H
#define TD_DAEMON_CLI_BENCHREAD_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"
#include "shard/predict.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Where a token's time went. */
enum td_benchread_part {
    TD_BENCHREAD_COMPUTE,
    TD_BENCHREAD_EXCHANGE,
    TD_BENCHREAD_WAIT, /* for other ranks */
    TD_BENCHREAD_HOST, /* outside of the steps */
    TD_BENCHREAD_N_PARTS
};

/* One case. */
struct td_benchread_case {
    double best, median;                 /* tokens per second */
    double part_s[TD_BENCHREAD_N_PARTS]; /* per token, of the best run */
    double depth;                        /* tokens before and with the row, in the mean */
    uint64_t n_tokens;                   /* of a run */
    double sent_bytes, n_exchanges;      /* per token: by all ranks, by one */
    uint32_t n_runs, n_unsteady;
};

struct td_benchread {
    uint32_t n_ranks, tp, pp;
    uint32_t n_threads, n_hosts;              /* of all ranks; that they are on */
    struct td_benchread_case decode, prefill; /* decode: at a depth, or behind the prompt */
    bool has_machine;                         /* not where it could not be measured */
    struct td_machine before, after;
    json_t *root; /* owned: all of it */
};

/* Reads one run of the case named `decode` ("decode" or "depth") and of "prefill". TD_PEER_PROTOCOL names what is missing or
 * wrong. *out is large: not for the stack. td_benchread_deinit frees. */
enum td_status td_benchread_parse(struct td_str text, const char *decode, struct td_benchread *out,
                                  struct td_err *err);
void td_benchread_deinit(struct td_benchread *read); /* zeroed is legal */

#endif
