/* The flight recorder of one rank: what it is at, its last steps, and a running hash over all of them. Written by the compute
 * thread as steps go by, read at any time by another thread, which never makes the writer wait: so a rank can tell where it
 * stands while its compute thread hangs. Knows no socket and no other rank. */
#ifndef TD_DAEMON_ENGINE_RECORDER_H
#define TD_DAEMON_ENGINE_RECORDER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum { TD_RECORDER_STEPS = 256, TD_RECORDER_MARKS = 5 };

enum td_recorder_stage {
    TD_RECORDER_REST = 0, /* asleep until there is something to do; no model, or loading one */
    TD_RECORDER_BETWEEN,  /* rank 0: plans the next step; others: wait to be told of it */
    TD_RECORDER_STEP
};

/* A step that is over, or the one under way. Times of td_clock_now_ns. */
struct td_recorder_step {
    uint64_t number;
    uint64_t hash; /* of its content; 0 in a group of one, which encodes none */
    uint32_t kind; /* enum td_step_kind */
    uint32_t n_rows, n_seqs;
    uint32_t status; /* enum td_status that it ended with */
    uint64_t begin_ns;
    uint64_t told_ns;     /* all ranks knew of it, the exchanges begin; 0: not yet */
    uint64_t end_ns;      /* 0: not yet */
    uint64_t exchange_ns; /* inside exchanges */
};

/* What the rank is at. */
struct td_recorder_now {
    enum td_recorder_stage stage;
    uint64_t since_ns; /* td_clock_now_ns */
    uint64_t limit_ns; /* rank 0: how long that may take; 0: for ever */
    uint64_t
        base_ops; /* operations of the rank's world when the step was told; UINT64_MAX: it was not */
    struct td_recorder_step
        step; /* the one under way; BETWEEN and REST: `number` is of the one that comes */
};

/* The running hash after all steps up to `number`: ranks that ran the same steps have the same. */
struct td_recorder_mark {
    uint64_t number;
    uint64_t hash;
};

enum { TD_RECORDER_STEP_WORDS = 8, TD_RECORDER_NOW_WORDS = 4 + TD_RECORDER_STEP_WORDS };

/* A value of whole words with its version, which is odd while it is being written. */
struct td_recorder_slot {
    atomic_uint_fast64_t version;
    atomic_uint_fast64_t words[TD_RECORDER_NOW_WORDS];
};

struct td_recorder {
    struct td_recorder_slot now;
    struct td_recorder_slot steps[TD_RECORDER_STEPS]; /* by number */
    atomic_uint_fast64_t n_ended;
    struct td_recorder_slot marks;
    /* Of the compute thread: */
    struct td_recorder_now at;
    uint64_t between_ns; /* limit of what is between steps */
    uint64_t history;
    struct td_recorder_mark mark[TD_RECORDER_MARKS];
};

/* A model is loaded: nothing has run. What is between steps may take `between_ns`, 0: for ever. Compute thread, as all that
 * writes. */
void td_recorder_reset(struct td_recorder *r, uint64_t between_ns);
/* There is nothing to do until somebody calls. */
void td_recorder_rest(struct td_recorder *r);
/* The next step is planned, or waited for. So it is after each that ended well. */
void td_recorder_await(struct td_recorder *r);
/* A step begins; its number, hash, kind and sizes count. A second begin of the same number changes nothing. */
void td_recorder_begin(struct td_recorder *r, const struct td_recorder_step *step,
                       uint64_t limit_ns);
/* All ranks know of it; this rank's world has begun `n_ops` operations until now. */
void td_recorder_told(struct td_recorder *r, uint64_t hash, uint64_t n_ops);
/* It is over, well or not. */
void td_recorder_end(struct td_recorder *r, uint32_t status, uint64_t exchange_ns);

/* Any thread. False when the writer was in the way every time it was tried: ask again later. */
bool td_recorder_look(const struct td_recorder *r, struct td_recorder_now *out);
/* The last steps that have ended, oldest first, at most `cap`; returns how many. One that is overwritten meanwhile is left out.
 * Any thread. */
uint32_t td_recorder_steps(const struct td_recorder *r, struct td_recorder_step *out, uint32_t cap);
/* After the last step, and after the last whose number is one below a multiple of 8, 64, 512, 4096: some of them are equal on
 * ranks that are asked at slightly different times. Returns how many there are. Any thread. */
uint32_t td_recorder_marks(const struct td_recorder *r,
                           struct td_recorder_mark out[TD_RECORDER_MARKS]);

#endif
