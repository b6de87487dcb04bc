#include "daemon/coordinator/stepwatch.h"

const uint64_t *td_stepwatch_hash(const struct td_stepwatch *w, uint64_t number)
{
    for (uint32_t i = 0; i < w->n_marks; i++)
        if (w->marks[i].number == number)
            return &w->marks[i].hash;
    return NULL;
}

void td_stepwatch_note(struct td_stepwatch *w, const struct td_whereabouts *at,
                       const struct td_recorder_mark *marks, uint32_t n)
{
    w->at = *at;
    for (uint32_t i = 0; i < n; i++) {
        if (td_stepwatch_hash(w, marks[i].number))
            continue;
        w->marks[w->next] = marks[i];
        w->next = (w->next + 1) % TD_STEPWATCH_MARKS;
        w->n_marks += w->n_marks < TD_STEPWATCH_MARKS;
    }
}

bool td_stepwatch_is_late(const struct td_stepwatch *lead)
{
    return lead->at.limit_ns && lead->at.elapsed_ns > lead->at.limit_ns;
}

/* Negative when `a` is behind `b`. A step of which not all ranks know yet is one that they wait for. */
static int compare(const struct td_whereabouts *a, const struct td_whereabouts *b,
                   bool counts_agree)
{
    bool in_a = a->stage == TD_RECORDER_STEP && a->n_ops;
    bool in_b = b->stage == TD_RECORDER_STEP && b->n_ops;

    if (a->number != b->number)
        return a->number < b->number ? -1 : 1;
    if (in_a != in_b)
        return in_a ? 1 : -1;
    if (counts_agree && in_a && a->n_ops != b->n_ops)
        return a->n_ops < b->n_ops ? -1 : 1;
    return 0;
}

uint32_t td_stepwatch_blame(const struct td_stepwatch *const *ranks, uint32_t n, bool counts_agree,
                            bool *blamed)
{
    const struct td_whereabouts *last = NULL;
    uint32_t n_busy = 0, n_blamed = 0;

    if (ranks[0]->at.stage != TD_RECORDER_STEP) { /* nobody else has anything to do */
        for (uint32_t r = 0; r < n; r++)
            blamed[r] = r == 0;
        return 1;
    }
    for (uint32_t r = 0; r < n; r++)
        n_busy += ranks[r]->at.op[0] == '\0';
    for (uint32_t r = 0; r < n; r++)
        if ((!n_busy || !ranks[r]->at.op[0]) &&
            (!last || compare(&ranks[r]->at, last, counts_agree) < 0))
            last = &ranks[r]->at;
    for (uint32_t r = 0; r < n; r++) {
        blamed[r] =
            (!n_busy || !ranks[r]->at.op[0]) && compare(&ranks[r]->at, last, counts_agree) == 0;
        n_blamed += blamed[r];
    }
    return n_blamed;
}

/* How many ranks have the hash that rank r has after that step; 0 when it told none. */
static uint32_t count_equal(const struct td_stepwatch *const *ranks, uint32_t n, uint32_t r,
                            uint64_t number)
{
    const uint64_t *mine = td_stepwatch_hash(ranks[r], number), *other;
    uint32_t count = 0;

    for (uint32_t i = 0; mine && i < n; i++) {
        other = td_stepwatch_hash(ranks[i], number);
        count += other && *other == *mine;
    }
    return count;
}

/* Sets who stands against most of those that told: all, where there is no most. */
static void split(const struct td_stepwatch *const *ranks, uint32_t n, uint64_t number,
                  bool *blamed)
{
    uint32_t most = 0, n_most = 0;

    for (uint32_t r = 0; r < n; r++) {
        uint32_t equal = count_equal(ranks, n, r, number);

        most = equal > most ? equal : most;
    }
    for (uint32_t r = 0; r < n; r++)
        n_most += count_equal(ranks, n, r, number) == most;
    for (uint32_t r = 0; r < n; r++) {
        uint32_t equal = count_equal(ranks, n, r, number);

        blamed[r] = equal > 0 && (equal < most || n_most > most);
    }
}

bool td_stepwatch_differ(const struct td_stepwatch *const *ranks, uint32_t n, uint32_t rank,
                         uint64_t *number, bool *blamed)
{
    const struct td_stepwatch *mine = ranks[rank];
    bool found = false;

    for (uint32_t i = 0; i < mine->n_marks; i++) {
        const struct td_recorder_mark *mark = &mine->marks[i];
        const uint64_t *lead = td_stepwatch_hash(ranks[0], mark->number);

        if (lead && *lead != mark->hash && (!found || mark->number < *number)) {
            *number = mark->number;
            found = true;
        }
    }
    if (found)
        split(ranks, n, *number, blamed);
    return found;
}
