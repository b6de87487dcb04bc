/* Into how many parts a step is cut, so that the sums of some travel while others are computed (shard/step.h, part_rows): as its
 * user says, or as was fastest when steps of about as many rows were tried in every way. Pure; reads no clock. One writer: rank 0's
 * compute thread. */
#ifndef TD_DAEMON_ENGINE_OVERLAPCHOICE_H
#define TD_DAEMON_ENGINE_OVERLAPCHOICE_H

#include <stdbool.h>
#include <stdint.h>

enum td_overlap_mode { TD_OVERLAP_AUTO, TD_OVERLAP_ON, TD_OVERLAP_OFF };

/* In one part, in two, in four. */
enum td_overlap_way { TD_OVERLAP_WHOLE, TD_OVERLAP_HALVES, TD_OVERLAP_QUARTERS, TD_N_OVERLAP_WAYS };

enum {
    TD_OVERLAPCHOICE_LEAST_ROWS = 32, /* of a part: each part reads all weights */
    TD_OVERLAPCHOICE_TRIALS = 4,      /* of each way, after one that is not counted */
    TD_OVERLAPCHOICE_MOST_STEPS = TD_N_OVERLAP_WAYS * (1 + TD_OVERLAPCHOICE_TRIALS),
    TD_OVERLAPCHOICE_HOLD = 512, /* steps between two rounds of trials */
    TD_OVERLAPCHOICE_CLASSES = 32
};

/* Steps of 2^c to 2^(c+1) - 1 rows. */
struct td_overlapchoice_class {
    uint32_t n_steps;                                            /* so far in this round */
    uint64_t row_ps[TD_N_OVERLAP_WAYS][TD_OVERLAPCHOICE_TRIALS]; /* picoseconds per row */
    uint64_t typical_ps[TD_N_OVERLAP_WAYS]; /* in the last round; 0: not tried */
    enum td_overlap_way best;               /* of the last round */
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
/* A step of n_rows: its part_rows. TD_OVERLAP_ON cuts every step of two rows or more, into as many parts as are tried of it. */
uint32_t td_overlapchoice_part_rows(const struct td_overlapchoice *o, uint32_t n_rows);
/* Whether steps of n_rows are being tried. */
bool td_overlapchoice_tries(const struct td_overlapchoice *o, uint32_t n_rows);
/* A step of n_rows, cut as the last call of part_rows said, took `ns`. Where that ends a round of trials, its class; else
 * NULL. */
const struct td_overlapchoice_class *td_overlapchoice_learn(struct td_overlapchoice *o,
                                                            uint32_t n_rows, uint64_t ns);
const char *td_overlapchoice_name(enum td_overlap_way way); /* "whole", "halves" */

#endif
