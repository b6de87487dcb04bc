#include "daemon/engine/overlapchoice.h"

#include <string.h>

enum { ROW_TILE = 16, LEAST_GAIN_PERCENT = 2 };

static const uint32_t parts_of[TD_N_OVERLAP_WAYS] = {1, 2, 4};

const char *td_overlapchoice_name(enum td_overlap_way way)
{
    static const char *const names[TD_N_OVERLAP_WAYS] = {"whole", "halves", "quarters"};

    return names[way];
}

void td_overlapchoice_init(struct td_overlapchoice *o, enum td_overlap_mode mode, bool is_parallel,
                           bool by_messages)
{
    memset(o, 0, sizeof *o);
    o->mode = is_parallel ? mode : TD_OVERLAP_OFF;
    o->may_help = by_messages;
}

static uint32_t class_of(uint32_t n_rows)
{
    uint32_t c = 0;

    while (n_rows >> (c + 1))
        c++;
    return c;
}

/* That steps of n_rows are tried in; alike in all of a class. */
static uint32_t ways_of(uint32_t n_rows)
{
    uint32_t n = 1;

    while (n < TD_N_OVERLAP_WAYS && n_rows >= parts_of[n] * TD_OVERLAPCHOICE_LEAST_ROWS)
        n++;
    return n;
}

static bool is_learnt(const struct td_overlapchoice *o, uint32_t n_rows)
{
    return o->mode == TD_OVERLAP_AUTO && o->may_help && ways_of(n_rows) > 1;
}

bool td_overlapchoice_tries(const struct td_overlapchoice *o, uint32_t n_rows)
{
    return is_learnt(o, n_rows) &&
           o->by_rows[class_of(n_rows)].n_steps < ways_of(n_rows) * (1 + TD_OVERLAPCHOICE_TRIALS);
}

/* Each way once, then there and back by turns: a prompt's rows cost more and more, and what grows evenly weighs alike on all ways
 * so. */
static enum td_overlap_way way_in_trial(uint32_t step, uint32_t n_ways)
{
    uint32_t turn = step / n_ways, at = step % n_ways;

    return (enum td_overlap_way)(turn % 2 ? n_ways - 1 - at : at);
}

static enum td_overlap_way way_of(const struct td_overlapchoice *o, uint32_t n_rows)
{
    const struct td_overlapchoice_class *c = &o->by_rows[class_of(n_rows)];
    uint32_t n_ways = ways_of(n_rows);

    if (o->mode == TD_OVERLAP_ON && n_rows > 1)
        return n_ways > 1 ? (enum td_overlap_way)(n_ways - 1) : TD_OVERLAP_HALVES;
    if (!is_learnt(o, n_rows))
        return TD_OVERLAP_WHOLE;
    return td_overlapchoice_tries(o, n_rows) ? way_in_trial(c->n_steps, n_ways) : c->best;
}

uint32_t td_overlapchoice_part_rows(const struct td_overlapchoice *o, uint32_t n_rows)
{
    enum td_overlap_way way = way_of(o, n_rows);
    uint32_t each;

    if (way == TD_OVERLAP_WHOLE)
        return 0;
    each = (n_rows - 1) / parts_of[way] + 1;
    /* Kernels take rows in tiles: of many rows, all parts but the last have whole ones. */
    return each < TD_OVERLAPCHOICE_LEAST_ROWS ? each : (each + ROW_TILE - 1) / ROW_TILE * ROW_TILE;
}

/* The mean without the longest: what disturbs a step makes it longer. */
static uint64_t typical(const uint64_t *ps)
{
    uint64_t sum = 0, most = 0;

    for (uint32_t i = 0; i < TD_OVERLAPCHOICE_TRIALS; i++) {
        sum += ps[i];
        most = ps[i] > most ? ps[i] : most;
    }
    return (sum - most) / (TD_OVERLAPCHOICE_TRIALS - 1);
}

static void choose(struct td_overlapchoice_class *c, uint32_t n_ways)
{
    uint64_t limit;

    for (uint32_t w = 0; w < n_ways; w++)
        c->typical_ps[w] = typical(c->row_ps[w]);
    limit = c->typical_ps[TD_OVERLAP_WHOLE] / 100 * (100 - LEAST_GAIN_PERCENT);
    c->best = TD_OVERLAP_WHOLE;
    for (uint32_t w = 1; w < n_ways; w++)
        if (c->typical_ps[w] < limit) {
            c->best = (enum td_overlap_way)w;
            limit = c->typical_ps[w];
        }
}

const struct td_overlapchoice_class *td_overlapchoice_learn(struct td_overlapchoice *o,
                                                            uint32_t n_rows, uint64_t ns)
{
    struct td_overlapchoice_class *c = &o->by_rows[class_of(n_rows)];
    uint32_t n_ways = ways_of(n_rows), n_trials = n_ways * (1 + TD_OVERLAPCHOICE_TRIALS);
    bool tries = td_overlapchoice_tries(o, n_rows);

    if (!is_learnt(o, n_rows))
        return NULL;
    if (tries && c->n_steps >= n_ways)
        c->row_ps[way_in_trial(c->n_steps, n_ways)][c->n_steps / n_ways - 1] = ns * 1000 / n_rows;
    c->n_steps++;
    if (c->n_steps == n_trials) {
        choose(c, n_ways);
        return c;
    }
    if (c->n_steps == n_trials + TD_OVERLAPCHOICE_HOLD)
        c->n_steps = n_ways; /* once more: load and links change */
    return NULL;
}
