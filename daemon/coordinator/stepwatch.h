/* What the ranks say of their steps, held against each other: a step that takes too long and who keeps it, ranks that ran
 * different steps. Pure. */
#ifndef TD_DAEMON_COORDINATOR_STEPWATCH_H
#define TD_DAEMON_COORDINATOR_STEPWATCH_H

#include "daemon/engine/whereabouts.h"

enum { TD_STEPWATCH_MARKS = 32 };

/* One rank, by its heartbeats; zero-initialise. */
struct td_stepwatch {
    struct td_whereabouts at;
    struct td_recorder_mark marks[TD_STEPWATCH_MARKS]; /* a ring */
    uint32_t n_marks, next;
};

/* A heartbeat. `marks` [n]. */
void td_stepwatch_note(struct td_stepwatch *w, const struct td_whereabouts *at,
                       const struct td_recorder_mark *marks, uint32_t n);
/* Whether what rank 0 is at takes longer than it says it may. */
bool td_stepwatch_is_late(const struct td_stepwatch *lead);
/* Who keeps the others waiting: rank 0, where it has begun no step; of the ranks that are in no exchange those that are furthest behind; where all are in one, those
 * furthest behind of all. With `counts_agree` the ranks' exchanges are the same ones, so that their counts tell too (one stage).
 * `ranks`, `blamed` [n]. Returns how many are blamed: at least one. */
uint32_t td_stepwatch_blame(const struct td_stepwatch *const *ranks, uint32_t n, bool counts_agree,
                            bool *blamed);
/* True when that rank and rank 0 have different hashes after the same step: *number of the first one known, and who differs from
 * most ranks (all, where there is no most). `ranks`, `blamed` [n]. */
bool td_stepwatch_differ(const struct td_stepwatch *const *ranks, uint32_t n, uint32_t rank,
                         uint64_t *number, bool *blamed);
/* The hash of a rank after that step; NULL when it told none. */
const uint64_t *td_stepwatch_hash(const struct td_stepwatch *w, uint64_t number);

#endif
