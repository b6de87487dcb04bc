/* Blocks of the prefix cache leave the device and come back (declared in sched_impl.h). */
#include "daemon/engine/sched_impl.h"

/* Moves of a step that evictions leave for blocks that are read back. */
enum { KEPT_MOVES = 32 };

/* How many of the blocks that are evicted now can be saved: each takes two moves at most, and its time. Some moves are left for those
 * that come back. */
static uint32_t most_saved(const struct td_sched *s, const struct td_step *step)
{
    const uint32_t *n_slots = s->params.n_slots;
    uint32_t moves = TD_STEP_MAX_MOVES - KEPT_MOVES, most;
    uint64_t ns = 0;

    for (uint32_t t = 0; t < TD_OFFLOAD_TIERS; t++)
        ns += n_slots[t] ? s->pace.write_ns[t] : 0;
    most = (moves - (moves < step->n_moves ? moves : step->n_moves)) / 2;
    moves = td_pace_moves(&s->pace, ns);
    most = most < moves ? most : moves;
    return most < n_slots[0] + n_slots[1] ? most : n_slots[0] + n_slots[1];
}

bool td_moves_evict(struct td_sched *s, struct td_step *step, uint32_t n_short)
{
    uint32_t before = step->n_moves;

    if (!s->prefix || !td_prefix_evict(s->prefix, step, n_short <= most_saved(s, step)))
        return false;
    for (uint32_t i = before; i < step->n_moves; i++)
        td_pace_spend(&s->pace,
                      s->pace.write_ns[td_offload_tier_of(s->params.n_slots, step->moves[i].to)]);
    return true;
}

void td_moves_read(struct td_sched *s, struct td_step *step, struct td_sched_seq *seq)
{
    uint32_t n, first = seq->n_computed / s->params.block_tokens;
    const uint32_t *table = td_blocks_table(s->blocks, TD_LAYER_ATTENTION, seq->slot, &n);

    if (seq->n_reading) /* a step in flight is at it */
        return;
    seq->first_move = step->n_moves;
    seq->read_flight = s->first_flight + s->n_flights - 1;
    while (seq->n_reading < seq->n_reads) {
        uint32_t i = first + seq->n_reading, slot = td_prefix_source(s->prefix, seq->slot, i);
        uint64_t ns = s->pace.read_ns[td_offload_tier_of(s->params.n_slots, slot)];
        uint32_t room = td_pace_moves(&s->pace, ns);

        /* What is known has been spent; of the unknown as many as may be tried. */
        if ((s->n_reads > 0 && room <= (ns ? 0 : s->n_reads)) ||
            !td_step_add_move(step, TD_MOVE_IN, slot, table[i]))
            return;
        td_pace_spend(&s->pace, ns);
        seq->n_reading++;
        s->n_reads++;
    }
}

uint32_t td_moves_worth(struct td_sched *s, const struct td_prefix_match *match)
{
    uint32_t n = 0;

    for (uint32_t t = 0; t < TD_OFFLOAD_TIERS; t++) {
        if (match->n_outside[t] && !td_pace_reads(&s->pace, t, s->params.block_tokens))
            break;
        n += match->n_outside[t];
    }
    return n;
}

void td_moves_note(struct td_sched_flight *f, const struct td_step *step)
{
    for (f->n_moves = 0; f->n_moves < step->n_moves; f->n_moves++) {
        const struct td_step_move *m = &step->moves[f->n_moves];

        f->written[f->n_moves] = m->kind == TD_MOVE_IN ? UINT32_MAX : m->to;
    }
}

static void complete_reads(struct td_sched *s, struct td_sched_seq *seq,
                           const struct td_move_result *moves)
{
    uint32_t n = 0;

    while (n < seq->n_reading && moves && !moves->failed[seq->first_move + n])
        n++;
    s->n_read += n;
    seq->n_computed += n * s->params.block_tokens;
    seq->n_scheduled = seq->n_computed;
    seq->n_cached += seq->is_first ? n * s->params.block_tokens : 0;
    seq->n_reads -= n;
    td_sched_fill_prefix(s, seq);
    if (n < seq->n_reading) { /* then the sequence computes this block and those behind it */
        s->n_failed_reads++;
        seq->n_reads = 0;
        td_prefix_forget_sources(s->prefix, seq->slot);
    }
    seq->n_reading = 0;
}

void td_moves_complete(struct td_sched *s, const struct td_move_result *moves)
{
    const struct td_sched_flight *f = &s->flights[s->first_flight % s->params.max_flights];

    for (uint32_t t = 0; moves && t < TD_OFFLOAD_TIERS; t++) {
        td_pace_learn_reads(&s->pace, t, moves->n_read[t], moves->read_ns[t]);
        td_pace_learn_writes(&s->pace, t, moves->n_written[t], moves->write_ns[t]);
    }
    for (uint32_t i = 0; i < f->n_moves; i++)
        if (f->written[i] != UINT32_MAX && (!moves || moves->failed[i]))
            td_prefix_lose(s->prefix, f->written[i]);
    for (uint32_t i = 0; i < s->n_running; i++)
        if (s->running[i]->n_reading && s->running[i]->read_flight == s->first_flight)
            complete_reads(s, s->running[i], moves);
}
