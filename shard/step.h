/* One step of the model over all running sequences, as rank 0's scheduler decides it and every rank executes it.
 * A flat value: it can be sent as bytes. Knows no requests and no policy; block ids are opaque page numbers. */
#ifndef TD_SHARD_STEP_H
#define TD_SHARD_STEP_H

#include "kernels/base/err.h"
#include "kernels/draw.h"
#include "kernels/top.h"
#include "shard/offload.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a row wants back: nothing, all its logits, the step's n_top largest of them, the id that its draw gives, or what the log
 * probability of an id needs. */
enum td_want {
    TD_WANT_NONE = 0,
    TD_WANT_LOGITS,
    TD_WANT_TOP,
    TD_WANT_DRAW,
    TD_WANT_MEASURE,
    TD_WANTS
};

/* One token of one sequence. Rows of a sequence are adjacent, in ascending position. */
struct td_step_row {
    uint32_t token;
    uint32_t position; /* absolute, 0 is the first token of the sequence */
    uint32_t seq;      /* index into the step's sequences */
    uint32_t want;     /* enum td_want */
};

/* One sequence that has rows in this step. */
struct td_step_seq {
    uint32_t first_block; /* index into the block table */
    uint32_t n_blocks;    /* covers positions 0 .. n_blocks * block_tokens - 1 */
    uint32_t state_slot;  /* of a recurrent state or window ring; UINT32_MAX: none */
    uint32_t n_rows;
};

/* A KV block's contents go to another place, before the step's rows are computed and in the order given. A slot is a place
 * outside of the device (offload.h). Each place is a block's id or a slot's number. */
enum td_move_kind {
    TD_MOVE_OUT = 1 /* block to slot */,
    TD_MOVE_IN,
    TD_MOVE_DOWN /* slot to slot */
};
enum { TD_STEP_MAX_MOVES = 2048, TD_STEP_MAX_PARTS = 4 };

struct td_step_move {
    uint32_t kind; /* enum td_move_kind */
    uint32_t from, to;
};

/* FLUSH: nothing begins, what is in the pipeline goes on. */
enum td_step_kind { TD_STEP_RUN = 1, TD_STEP_IDLE, TD_STEP_STOP, TD_STEP_FLUSH };

/* Storage is owned by the step and kept between uses: reset, then add. */
struct td_step {
    uint32_t kind;   /* enum td_step_kind */
    uint64_t number; /* every rank runs the same number in the same order */
    uint64_t hash;   /* XXH3-64 over the encoded content, checked by every rank */
    uint64_t
        n_submits_seen; /* TD_STEP_IDLE: requests that rank 0 has taken in; a follower sleeps until it hears of more */
    uint32_t n_top; /* for TD_WANT_TOP: 1 to TD_TOP_MAX; 0 without such rows */
    /* Rows with TD_WANT_TOP, TD_WANT_DRAW and TD_WANT_MEASURE are measured for log probabilities (td_shard_draws), the last two get the
     * logprobs - 1 largest logits too. 1 to TD_TOP_MAX + 1; 0: nobody asks. */
    uint32_t logprobs;
    /* Rows of each part but the last, which has the rest, where a step is computed in several so that the sums of some travel while
     * others are computed; 2 to TD_STEP_MAX_PARTS come of it. 0: in one. */
    uint32_t part_rows;
    uint32_t n_rows, n_seqs, n_table, n_moves, n_draws, n_asked;
    uint32_t cap_rows, cap_seqs, cap_table; /* fixed at open */
    struct td_step_row *rows;               /* [cap_rows] */
    struct td_step_seq *seqs;               /* [cap_seqs] */
    uint32_t *table;                        /* [cap_table] block ids */
    struct td_step_move *moves;             /* [TD_STEP_MAX_MOVES] */
    struct td_draw *draws; /* [cap_rows] of rows with TD_WANT_DRAW, in their order */
    uint32_t *asked; /* [cap_rows] ids that rows with TD_WANT_MEASURE ask about, in their order */
};

/* Table entries that a step of so many sequences may have; a block that several share counts for each. */
uint32_t td_step_table_cap(uint32_t max_num_seqs, uint32_t max_tokens_per_seq,
                           uint32_t block_tokens);
enum td_status td_step_open(struct td_step *step, uint32_t cap_rows, uint32_t cap_seqs,
                            uint32_t cap_table, struct td_err *err);
void td_step_close(struct td_step *step);
void td_step_reset(struct td_step *step, enum td_step_kind kind, uint64_t number);
/* Makes `to`, whose caps are large enough, equal to `from`. */
void td_step_copy(struct td_step *to, const struct td_step *from);
/* Appends a sequence with its block table; false when a cap is reached. Its rows follow by td_step_add_row. */
bool td_step_add_seq(struct td_step *step, const uint32_t *blocks, uint32_t n_blocks,
                     uint32_t state_slot);
bool td_step_add_row(struct td_step *step, uint32_t token, uint32_t position, enum td_want want);
/* The same for a row that wants its n_top largest logits at least; it gets as many as the row that wants most. */
bool td_step_add_top_row(struct td_step *step, uint32_t token, uint32_t position, uint32_t n_top);
/* The same for a row that wants the id that a draw gives (td_shard_draws). */
bool td_step_add_draw_row(struct td_step *step, uint32_t token, uint32_t position,
                          const struct td_draw *draw);
/* The same for a row that asks for the log probability of an id (td_shard_draws); the step's `logprobs` is to be asked too. */
bool td_step_add_asked_row(struct td_step *step, uint32_t token, uint32_t position, uint32_t id);
/* Somebody asks for log probabilities: `logprobs` as the step has it. */
void td_step_ask_logprobs(struct td_step *step, uint32_t logprobs);
/* False when there are TD_STEP_MAX_MOVES already. */
bool td_step_add_move(struct td_step *step, enum td_move_kind kind, uint32_t from, uint32_t to);
/* How many parts a step of n_rows has; UINT32_MAX where part_rows is none that such a step may have. */
uint32_t td_step_n_parts(uint32_t n_rows, uint32_t part_rows);
uint32_t td_step_n_want(const struct td_step *step, enum td_want want); /* rows that want it */
uint32_t td_step_n_wanted(const struct td_step *step);                  /* that want anything */

/* What became of a step's moves, on all ranks together. */
struct td_move_result {
    uint64_t ns; /* of all, on the slowest rank */
    uint64_t read_ns
        [TD_OFFLOAD_TIERS]; /* of those with TD_MOVE_IN that succeeded, by the tier of the slot */
    uint32_t n_read[TD_OFFLOAD_TIERS];
    uint64_t write_ns[TD_OFFLOAD_TIERS]; /* of the others, by the tier that they went to */
    uint32_t n_written[TD_OFFLOAD_TIERS];
    uint32_t n;
    bool failed[TD_STEP_MAX_MOVES]; /* [n] on any rank: the place it went to holds nothing now */
};

/* What a step gives back. Rows stand in the order of the step. */
struct td_step_result {
    const float *logits;      /* [rows with TD_WANT_LOGITS x n_vocab] */
    const struct td_top *top; /* [rows with TD_WANT_TOP x n_top] */
    uint32_t n_top;           /* the step's */
    const uint32_t *drawn;    /* [rows with TD_WANT_DRAW]; UINT32_MAX: nothing can follow */
    /* Where the step has `logprobs`: */
    const struct td_measure *top_measure;  /* [rows with TD_WANT_TOP], of no id */
    const struct td_measure *draw_measure; /* [rows with TD_WANT_DRAW], of the drawn id */
    const struct td_top *draw_top;         /* [rows with TD_WANT_DRAW x n_draw_top] */
    const struct td_measure
        *asked_measure;             /* [rows with TD_WANT_MEASURE], of the ids asked about */
    const struct td_top *asked_top; /* [rows with TD_WANT_MEASURE x n_draw_top] */
    uint32_t n_draw_top;
    const struct td_move_result *moves; /* NULL for a step without moves */
    bool is_complete; /* a step is; with a pipeline not the one that was handed over last */
    uint64_t number;  /* of the step that is */
};

/* Flat little-endian form. encode needs td_step_encoded_bytes(); decode checks every length against the caps. */
size_t td_step_encoded_bytes(const struct td_step *step);
size_t td_step_max_bytes(const struct td_step *step); /* of any step with these caps */
void td_step_encode(struct td_step *step, void *out); /* also sets step->hash */
enum td_status td_step_decode(struct td_step *step, const void *in, size_t bytes,
                              struct td_err *err);

#endif
