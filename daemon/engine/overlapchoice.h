/* Whether a step is computed in two parts, so that the sums of one travel while the other is computed (shard/step.h, n_first): as
 * its user says, or as was faster when steps of about as many rows were tried both ways. Pure; reads no clock. One writer: rank 0's
 * compute thread. */
#ifndef TD_DAEMON_ENGINE_OVERLAPCHOICE_H
#define TD_DAEMON_ENGINE_OVERLAPCHOICE_H

#include <stdbool.h>
#include <stdint.h>

enum td_overlap_mode { TD_OVERLAP_AUTO, TD_OVERLAP_ON, TD_OVERLAP_OFF };

enum {
    TD_OVERLAPCHOICE_LEAST_ROWS = 64, /* of a step that is tried: each part reads all weights */
    TD_OVERLAPCHOICE_WARM_UPS = 2,    /* one of each way */
    TD_OVERLAPCHOICE_TRIALS = 8,      /* four of each way */
    TD_OVERLAPCHOICE_HOLD = 512,      /* steps between two rounds of trials */
    TD_OVERLAPCHOICE_CLASSES = 32
};

/* Steps of 2^c to 2^(c+1) - 1 rows. */
struct td_overlapchoice_class {
    uint32_t n_steps;                            /* so far in this round */
    uint32_t n_tried[2];                         /* of this round: in one part, in two */
    uint64_t row_ps[2][TD_OVERLAPCHOICE_TRIALS]; /* picoseconds per row; [n_tried] */
    uint64_t whole_ps, cut_ps;                   /* of the last choice; 0: none */
    bool cuts;                                   /* the last choice */
};

struct td_overlapchoice {
    enum td_overlap_mode mode;
    bool may_help;
    struct td_overlapchoice_class by_rows[TD_OVERLAPCHOICE_CLASSES];
};

/* `is_parallel`: several ranks share a layer. `by_messages`: some of them do not share a host's memory; where all do, an
 * exchange is over before another thread could help, so nothing is tried. */
void td_overlapchoice_init(struct td_overlapchoice *o, enum td_overlap_mode mode, bool is_parallel,
                           bool by_messages);
/* Rows of the first part of a step of n_rows: its half; 0: in one part. TD_OVERLAP_ON cuts every step of two rows or more. */
uint32_t td_overlapchoice_first_rows(const struct td_overlapchoice *o, uint32_t n_rows);
/* Whether steps of n_rows are being tried. */
bool td_overlapchoice_tries(const struct td_overlapchoice *o, uint32_t n_rows);
/* Such a step, with so many rows in its first part, took `ns`. Whether that made a choice for its class, which is returned then;
 * else NULL. */
const struct td_overlapchoice_class *
td_overlapchoice_learn(struct td_overlapchoice *o, uint32_t n_rows, uint32_t n_first, uint64_t ns);

#endif
