#include "daemon/engine/overlapchoice.h"

#include <string.h>

enum { ROW_TILE = 16, LEAST_GAIN_PERCENT = 2 };

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

static bool is_learnt(const struct td_overlapchoice *o, uint32_t n_rows)
{
    return o->mode == TD_OVERLAP_AUTO && o->may_help && n_rows >= TD_OVERLAPCHOICE_LEAST_ROWS;
}

/* Rows behind one another mostly cost more and more, since a prompt grows: in this order of the trials (Thue and Morse's) what
 * grows evenly, or with the square, weighs alike on both ways. */
static bool is_cut_in_trial(uint32_t trial)
{
    static const bool order[TD_OVERLAPCHOICE_TRIALS] = {false, true,  true,  false,
                                                        true,  false, false, true};

    return order[trial];
}

bool td_overlapchoice_tries(const struct td_overlapchoice *o, uint32_t n_rows)
{
    return is_learnt(o, n_rows) && o->by_rows[class_of(n_rows)].n_steps <
                                       TD_OVERLAPCHOICE_WARM_UPS + TD_OVERLAPCHOICE_TRIALS;
}

static bool cuts(const struct td_overlapchoice *o, uint32_t n_rows)
{
    const struct td_overlapchoice_class *c = &o->by_rows[class_of(n_rows)];

    if (o->mode != TD_OVERLAP_AUTO)
        return o->mode == TD_OVERLAP_ON && n_rows > 1;
    if (!is_learnt(o, n_rows))
        return false;
    if (c->n_steps < TD_OVERLAPCHOICE_WARM_UPS)
        return c->n_steps == 1;
    if (c->n_steps < TD_OVERLAPCHOICE_WARM_UPS + TD_OVERLAPCHOICE_TRIALS)
        return is_cut_in_trial(c->n_steps - TD_OVERLAPCHOICE_WARM_UPS);
    return c->cuts;
}

uint32_t td_overlapchoice_first_rows(const struct td_overlapchoice *o, uint32_t n_rows)
{
    if (!cuts(o, n_rows))
        return 0;
    /* Kernels take rows in tiles: of many rows, the part that is cut off has whole ones. */
    return n_rows < TD_OVERLAPCHOICE_LEAST_ROWS ? n_rows / 2
                                                : (n_rows / 2 + ROW_TILE / 2) / ROW_TILE * ROW_TILE;
}

/* The mean without the longest: what disturbs a step makes it longer. */
static uint64_t typical(const uint64_t *ps, uint32_t n)
{
    uint64_t sum = 0, most = 0;

    for (uint32_t i = 0; i < n; i++) {
        sum += ps[i];
        most = ps[i] > most ? ps[i] : most;
    }
    return n > 1 ? (sum - most) / (n - 1) : sum;
}

static void choose(struct td_overlapchoice_class *c)
{
    c->whole_ps = typical(c->row_ps[0], c->n_tried[0]);
    c->cut_ps = typical(c->row_ps[1], c->n_tried[1]);
    c->cuts = c->cut_ps < c->whole_ps - c->whole_ps / 100 * LEAST_GAIN_PERCENT;
    c->n_tried[0] = c->n_tried[1] = 0;
}

const struct td_overlapchoice_class *
td_overlapchoice_learn(struct td_overlapchoice *o, uint32_t n_rows, uint32_t n_first, uint64_t ns)
{
    struct td_overlapchoice_class *c = &o->by_rows[class_of(n_rows)];
    uint32_t way = n_first > 0;

    if (!is_learnt(o, n_rows))
        return NULL;
    if (c->n_steps >= TD_OVERLAPCHOICE_WARM_UPS && td_overlapchoice_tries(o, n_rows))
        c->row_ps[way][c->n_tried[way]++] = ns * 1000 / n_rows;
    c->n_steps++;
    if (c->n_steps == TD_OVERLAPCHOICE_WARM_UPS + TD_OVERLAPCHOICE_TRIALS) {
        choose(c);
        return c;
    }
    if (c->n_steps == TD_OVERLAPCHOICE_WARM_UPS + TD_OVERLAPCHOICE_TRIALS + TD_OVERLAPCHOICE_HOLD)
        c->n_steps = TD_OVERLAPCHOICE_WARM_UPS; /* once more: load and links change */
    return NULL;
}
