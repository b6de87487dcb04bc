/* What the next step computes: a pure core that is told everything. Owns the waiting queue, the running set and the
 * choice of rows; borrows the sequences and the block manager. Does no I/O, reads no clock, decides by no floats and sees
 * neither logits nor requests. One writer: rank 0's compute thread. Nothing is allocated after open. */
#ifndef TD_DAEMON_ENGINE_SCHED_H
#define TD_DAEMON_ENGINE_SCHED_H

#include "daemon/engine/blocks.h"
#include "daemon/engine/prefix.h"
#include "kernels/base/err.h"
#include "shard/sampling.h"
#include "shard/step.h"

#include <stdbool.h>
#include <stdint.h>

enum { TD_SCHED_MAX_DRAFT = 15 };

enum td_sched_state { TD_SCHED_OUT = 0, TD_SCHED_WAITING, TD_SCHED_RUNNING };

/* One sequence, in its owner's storage from submit until remove. The owner sets the first group and appends output
 * through td_sched_append; the rest is the scheduler's. */
struct td_sched_seq {
    uint32_t *ids; /* borrowed [cap_ids]: the prompt, then the output */
    uint32_t n_ids;
    uint32_t cap_ids; /* prompt + output at most */
    uint32_t
        n_top; /* this many of the last row's largest logits are enough; 0: all are wanted, or a draw */
    const struct td_sampling *draws; /* borrowed: a draw by these is enough; NULL: it is not */
    uint32_t logprobs; /* that a row with one of both asks for (td_step_ask_logprobs) */
    uint64_t *hashes;  /* borrowed [cap_ids / block_tokens]; NULL: it passes by the prefix cache */
    uint64_t salt;     /* sequences of different salts share no block */
    int32_t priority;  /* a lower one goes first */
    uint32_t want_from, want_to; /* positions whose logits are wanted too */
    /* What these ask for where they only ask about the next id (td_step_ask_logprobs); 0: all logits; then n_top is 0, draws NULL. */
    uint32_t prompt_logprobs;
    /* Guesses at what follows ids, for the next plan, which may take fewer: its rows are computed and want what the last one wants.
     * td_sched_append says which were right. */
    uint32_t n_draft;
    uint32_t draft[TD_SCHED_MAX_DRAFT];
    uint32_t
        n_drafted; /* positions that a draft model has in its cache (drafter.h); 0 again when the blocks are gone */

    enum td_sched_state state;
    uint64_t ticket;     /* order of submission; a larger one is younger */
    uint64_t arrival_ns; /* as told at submit */
    uint64_t
        queue_ns;  /* from then until it was first admitted, by the times that the caller told */
    uint32_t slot; /* of the block manager while running */
    uint32_t n_computed;  /* positions 0 .. n_computed - 1 are in the cache */
    uint32_t n_scheduled; /* the same when the steps in flight are complete; guesses do not count */
    uint32_t n_flying;    /* steps in flight that have rows of it; of its last token one at most */
    uint32_t n_reads;     /* blocks to be read back before it goes on */
    uint32_t n_reading;   /* of them, by a step in flight */
    uint32_t first_move;  /* of these in that step */
    uint64_t read_flight; /* which one it is */
    uint32_t n_right;     /* drafts of the last step that were as drawn */
    uint32_t n_hashes;    /* blocks that are hashed */
    uint32_t n_cached; /* tokens whose KV was there, or was read back, when it was first admitted */
    uint32_t n_passed; /* younger sequences that were admitted before it */
    bool was_admitted;
    bool is_first;                    /* that admission lasts */
    struct td_sched_seq *prev, *next; /* in the waiting queue */
};

/* What a step has of one sequence. */
struct td_sched_part {
    struct td_sched_seq
        *seq; /* NULL: it has left the running set since; what its rows bring is dropped */
    uint32_t n_rows;
    uint32_t n_draft;  /* of them, guesses */
    uint32_t n_asked;  /* of them, those that ask about the next id */
    uint32_t n_wanted; /* of them, those that want something else */
    enum td_want want; /* what of them */
    bool reaches_end;  /* its last token is among them, behind which only guesses stand */
};

/* Waiting sequences among which the one with the most cached tokens goes first, and how many may go before one. */
enum { TD_SCHED_WINDOW = 16, TD_SCHED_MAX_PASSED = 32 };

struct td_sched_params {
    uint32_t max_num_seqs;       /* running at once; the block manager's max_seqs */
    uint32_t max_batched_tokens; /* rows of a step; >= max_num_seqs, so that every decode fits */
    uint32_t
        max_chunk_tokens; /* prefill rows of one sequence in a step; 0: only the line above limits */
    uint32_t max_queue;   /* waiting sequences; preempted ones come on top */
    uint32_t block_tokens;       /* the block manager's */
    uint32_t max_tokens_per_seq; /* likewise */
    uint32_t max_flights;        /* steps that may be in flight at once; 0: 1 */
    bool prefix_cache;
    uint32_t n_slots[TD_OFFLOAD_TIERS]; /* for blocks that the prefix cache evicts, see prefix.h */
    uint32_t max_stretch_percent;       /* see pace.h */
};

struct td_sched;
struct td_pace;

enum td_status td_sched_open(const struct td_sched_params *params, struct td_blocks *blocks,
                             struct td_sched **s,
                             struct td_err *err); /* borrows `blocks` until close */
void td_sched_close(struct td_sched *s);          /* NULL is legal; forgets its sequences */

/* Queues a sequence. TD_BUSY when the queue is full. */
enum td_status td_sched_submit(struct td_sched *s, struct td_sched_seq *seq, uint64_t now_ns,
                               struct td_err *err);
/* Takes a sequence out, wherever it is, and frees its blocks. What a step in flight brings for it is dropped; steps run in order, so
 * who gets the blocks writes them later. */
void td_sched_remove(struct td_sched *s, struct td_sched_seq *seq);
/* Puts one that was removed back into the queue, where its submission had it; it goes on with the same tokens. */
void td_sched_resume(struct td_sched *s, struct td_sched_seq *seq);

/* After td_sched_begin. Fills `step`, which the caller has reset and whose caps are at least td_sched_caps: first one row for each running
 * sequence that lacks one position, oldest first; then prefill of running sequences, oldest first; then waiting ones
 * in the order of priority, then of submission, while there are a slot, rows and blocks for all their tokens plus one block. What the prefix cache holds of a sequence is
 * not computed again. Among the first TD_SCHED_WINDOW waiting ones of one priority that with the most cached tokens goes first, the oldest among
 * equals; one whose beginning a running sequence computes waits for it. Nobody is passed over more than
 * TD_SCHED_MAX_PASSED times, nor by one that needs blocks which the oldest lacks. What of it lies outside of the device is read back
 * by moves of this and later steps, where that is faster than computing it; until then it has no rows.
 * When a decode finds no block, idle blocks of the cache are evicted; then the last running sequence in the order of priority
 * and submission gives up its blocks and waits again in that order; it goes on later with the same tokens. The first running one
 * is never held up. A waiting sequence that finds neither slot nor blocks takes them from running ones of lower priority.
 * Drafts are verified while neither running nor waiting sequences could want their rows.
 * Beside decodes the rows of prompts, and the blocks that are read back, are limited, so that the step takes at most max_stretch_percent longer than one without.
 * The last row of a sequence that reaches its last token wants logits.
 * Where several steps may be in flight, each takes its share of the running answers and of a long prompt, so that all are of use; what
 * depends on a token of a step in flight waits for it.
 * False: there is nothing to do now. Not while max_flights are in flight. */
bool td_sched_plan(struct td_sched *s, struct td_step *step);
/* The first part of planning: every running sequence has the blocks for its next token and as many of its drafts as can be
 * verified, n_draft by now. Between the two calls the owner may choose the tokens of these drafts, and fewer of them. */
void td_sched_begin(struct td_sched *s, uint64_t now_ns, struct td_step *step);
/* Running sequences, in the order of everything. */
struct td_sched_seq *td_sched_running(const struct td_sched *s, uint32_t i);
/* The blocks of a running one; borrowed until the next change. */
const uint32_t *td_sched_table(const struct td_sched *s, const struct td_sched_seq *seq,
                               uint32_t *n_blocks);
struct td_pace *td_sched_pace(struct td_sched *s);
/* Steps in flight, and the parts of the newest and of the oldest, in the order of their td_step_seq entries. */
uint32_t td_sched_n_flights(const struct td_sched *s);
const struct td_sched_part *td_sched_newest(const struct td_sched *s, uint32_t *n);
const struct td_sched_part *td_sched_oldest(const struct td_sched *s, uint32_t *n);
/* Whether the sequence decodes: of its tokens only the last is neither computed nor in flight. Then a draft can be verified. */
bool td_sched_is_decoding(const struct td_sched_seq *seq);
/* The oldest step in flight has run, its rows in `step_ns` (0: not known): they are in the cache. `moves`: what became of its moves;
 * NULL: none succeeded. A block that could not be read is computed. After it that step is forgotten. */
void td_sched_complete(struct td_sched *s, uint64_t step_ns, const struct td_move_result *moves);
/* The steps in flight will never be complete: nothing of them counts. */
void td_sched_abandon(struct td_sched *s);
/* One output token. Only after the step that gave its logits is complete. True: a draft of that step was this token, so the
 * next row's logits are those of the sequence with it. */
bool td_sched_append(struct td_sched_seq *seq, uint32_t id);

void td_sched_caps(const struct td_sched *s, uint32_t *rows, uint32_t *seqs, uint32_t *table);
const struct td_prefix *td_sched_prefix(const struct td_sched *s); /* NULL: there is none */
uint32_t td_sched_n_running(const struct td_sched *s);
uint32_t td_sched_n_waiting(const struct td_sched *s);
uint64_t td_sched_n_preemptions(const struct td_sched *s);
uint64_t td_sched_n_read(const struct td_sched *s);         /* blocks that were read back */
uint64_t td_sched_n_failed_reads(const struct td_sched *s); /* and those that could not be */
/* How long the head of the queue has been in the system; 0 when nothing waits. */
uint64_t td_sched_oldest_wait_ns(const struct td_sched *s, uint64_t now_ns);

#endif
