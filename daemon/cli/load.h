/* The load that is offered to a server, as a pure function of a seed: when requests come, how long prompts and answers are, and
 * what the prompts say. Equal settings give every server the same requests. Any thread; opens nothing, sends nothing. */
#ifndef TD_DAEMON_CLI_LOAD_H
#define TD_DAEMON_CLI_LOAD_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdint.h>

struct td_loadtrace;

enum { TD_LOAD_MAX_TOKENS = 1 << 20 };

enum td_load_shape { TD_LOAD_CONSTANT, TD_LOAD_UNIFORM, TD_LOAD_NORMAL, TD_LOAD_LOGNORMAL };

/* A distribution of lengths in tokens. What is drawn is rounded, and held between 1 and TD_LOAD_MAX_TOKENS. */
struct td_load_dist {
    enum td_load_shape shape;
    double a,
        b; /* constant: a; uniform: from a to b, both included; else mean and standard deviation of the values */
};

/* Reads "N", "A:B", "uniform:A:B", "normal:MEAN:SD" or "lognormal:MEAN:SD". TD_INVALID names `flag` and what it must be. */
enum td_status td_load_dist_parse(const char *flag, const char *text, struct td_load_dist *out,
                                  struct td_err *err);

struct td_load {
    uint64_t seed;
    struct td_load_dist input, output;
    double prefix_share;    /* 0 to 1: part of a prompt that it shares with its group */
    uint32_t prefix_groups; /* at least 1; request i is of group i % prefix_groups */
    const struct td_loadtrace
        *trace; /* borrowed; NULL: lengths are drawn. Its rows win over all but the seed */
};

/* The prompts of one run differ from those of another, so that no cache of the server knows them before: a run is a number of its
 * own per point of a sweep. Warm-up requests are the run TD_LOAD_WARMUP. */
enum { TD_LOAD_WARMUP = 0xffff };

struct td_load_request {
    uint32_t n_input;  /* words of the prompt, about as many tokens; 0: the trace gives the text */
    uint32_t n_prefix; /* of these, shared with the group */
    uint32_t group;
    uint32_t n_output; /* tokens asked for */
};

/* Lengths of request `index` (of a trace: of its rows), the same in every run. */
void td_load_request(const struct td_load *l, uint64_t index, struct td_load_request *out);
/* Time between request `index` - 1 and `index` of Poisson arrivals at one request per second, in seconds: exponential with mean
 * 1. Divided by the rate for others, so that a sweep keeps its pattern. */
double td_load_gap(const struct td_load *l, uint64_t index);
/* Appends the prompt: common English words, drawn anew for each run, or the text of the trace.
 * TD_NO_MEMORY, TD_TOO_LARGE. */
enum td_status td_load_prompt(const struct td_load *l, uint32_t run, uint64_t index,
                              struct td_bytes *out);

#endif
