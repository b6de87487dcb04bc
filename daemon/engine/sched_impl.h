/* Inside of the scheduler: shared by sched.c and moves.c. */
#ifndef TD_DAEMON_ENGINE_SCHED_IMPL_H
#define TD_DAEMON_ENGINE_SCHED_IMPL_H

#include "daemon/engine/pace.h"
#include "daemon/engine/sched.h"

/* A step that is planned and not complete. */
struct td_sched_flight {
    struct td_sched_part *parts; /* owned [max_num_seqs] */
    uint32_t n_parts;
    uint32_t n_decode, n_prompt; /* rows */
    uint32_t n_moves;
    uint32_t written
        [TD_STEP_MAX_MOVES]; /* [n_moves] the slot that a move fills; UINT32_MAX: it fills none */
};

struct td_sched {
    struct td_sched_params params;
    struct td_blocks *blocks;         /* borrowed */
    struct td_prefix *prefix;         /* owned; NULL: none */
    struct td_sched_seq *head, *tail; /* waiting, oldest first */
    struct td_sched_seq **running;    /* owned [max_num_seqs], oldest first */
    struct td_sched_flight
        *flights; /* owned [max_flights], a ring; the newest is being planned, or has been */
    uint64_t first_flight; /* the oldest; flight i is flights[i % max_flights] */
    uint32_t n_flights;
    uint32_t *free_slots; /* owned [max_num_seqs], a stack */
    uint32_t n_waiting, n_running;
    struct td_pace pace;
    uint32_t
        n_answers; /* running sequences whose prompts are computed or in flight, as the step began */
    uint32_t draft_room; /* rows that drafts may still have in this step */
    uint32_t want_room;  /* rows that may still want logits */
    uint32_t n_reads;    /* blocks that this step reads back */
    uint64_t now_ns;     /* as told when the step began */
    uint64_t next_ticket;
    uint64_t n_preemptions;
    uint64_t n_read, n_failed_reads;
};

/* What a sequence has computed by now, the prefix cache may keep. */
void td_sched_fill_prefix(struct td_sched *s, struct td_sched_seq *seq);

/* Frees an idle block of the prefix cache, of n_short that are lacking; what it holds is saved outside of the device where there is room
 * and time for that. False when nothing is idle. */
bool td_moves_evict(struct td_sched *s, struct td_step *step, uint32_t n_short);
/* Reads back what a running sequence waits for: as much as there are moves and time for, and one block of a step in any case, so that
 * nobody waits for ever. The rest comes with later steps. */
void td_moves_read(struct td_sched *s, struct td_step *step, struct td_sched_seq *seq);
/* How many of the blocks that lie outside are worth reading: the first ones. */
uint32_t td_moves_worth(struct td_sched *s, const struct td_prefix_match *match);
/* The step is planned: flight `f` keeps which slots its moves fill. */
void td_moves_note(struct td_sched_flight *f, const struct td_step *step);
/* What became of the moves of the oldest flight; NULL: all failed. */
void td_moves_complete(struct td_sched *s, const struct td_move_result *moves);

#endif
