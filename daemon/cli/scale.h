/* A sweep over ranks, layouts and links: which points it has, and what is made of their figures. Pure; runs nothing. */
#ifndef TD_DAEMON_CLI_SCALE_H
#define TD_DAEMON_CLI_SCALE_H

#include "daemon/cli/benchread.h"
#include "daemon/cli/linkspec.h"

/* Kinds of layouts, as bits. */
enum td_scale_kind {
    TD_SCALE_TP = 1 << 0,   /* all ranks share every layer */
    TD_SCALE_PP = 1 << 1,   /* every rank has layers of its own */
    TD_SCALE_BOTH = 1 << 2, /* stages of more than one rank */
    TD_SCALE_ALL = (1 << 3) - 1
};

enum { TD_SCALE_MAX_POINTS = 512, TD_SCALE_FAILURE_BYTES = 400 };

struct td_scale_layout {
    uint32_t ranks, tp, pp;
};

/* What one phase came to. */
struct td_scale_phase {
    double speed_up;   /* times the speed of one rank; NAN: that was not measured */
    double efficiency; /* speed-up by how many times as many threads worked; NAN alike */
    struct td_predict_phase predicted;
    double error; /* of the prediction: 0.1 is 10 % too fast; NAN: there is none */
};

/* One layout at one prompt and depth over one link. */
struct td_scale_point {
    struct td_scale_layout layout;
    uint32_t prompt_tokens, depth;                /* depth 0: behind the prompt */
    const struct td_linkspec_value *delay, *rate; /* borrowed; NULL: over what there is */
    char failure[TD_SCALE_FAILURE_BYTES]; /* why there are no figures; "": not run, or there are */
    struct td_benchread *read;            /* owned; NULL: no figures */
    uint32_t n_tries;
    struct td_machine_link
        link;     /* what its prediction took for it: between hosts if it has several;
                                    latency NAN: one rank, or not measured */
    double drift; /* of the memory probes before and after; NAN: they could not be taken */
    struct td_scale_phase decode, prefill;
};

/* Every layout of these kinds for each count of ranks: tensor parallel, pipeline parallel, then mixtures by growing stages; of
 * one rank the only one. Writes up to `most` to `out`. TD_INVALID for a count that comes twice, when no count has such a layout,
 * and for more than `most`. */
enum td_status td_scale_layouts(const int64_t *ranks, uint32_t n_ranks, unsigned kinds,
                                uint32_t n_layers, struct td_scale_layout *out, uint32_t most,
                                uint32_t *n, struct td_err *err);
/* Of one rank: tensor parallel. */
enum td_scale_kind td_scale_kind_of(const struct td_scale_layout *layout);

/* How far apart two takes of the same machine's memory are, as a part of the larger: all its hosts together. */
double td_scale_drift(const struct td_machine *before, const struct td_machine *after);
/* Whether that is more than 5 %: such a point is measured again, or marked. */
bool td_scale_has_drifted(double drift);
/* Bytes of the messages that links are judged by: of one row and of a prompt's rows. small < large. */
struct td_scale_sizes {
    double small, large;
};
/* The better of two takes, as shares in `bench` are of the better probe: every rate by itself, of a link the better time of each
 * size. */
void td_scale_join(const struct td_machine *before, const struct td_machine *after,
                   const struct td_scale_sizes *sizes, struct td_machine *out);
/* What a prediction for the point is asked: the mean depth of its decode, its prompt. */
struct td_predict_load td_scale_load(const struct td_benchread *read, uint32_t prefill_chunk);

/* Speed-up and efficiency of all points with figures, against the one with one rank, the same prompt and the same depth. */
void td_scale_compare(struct td_scale_point *points, uint32_t n);
/* Takes the prediction over and sets the errors; NULL: there is none. */
void td_scale_predict(struct td_scale_point *point, const struct td_prediction *prediction);

#endif
