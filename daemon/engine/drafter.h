/* Guesses of a draft model for the sequences that decode: what its next steps compute, and which tokens come of them. Keeps the draft
 * model's cache in the blocks of the served model's: the same ids and places, other memory. Knows neither the device nor the
 * samplers: whoever opens it runs the steps and draws. Rank 0's compute thread. Nothing is allocated after open.
 *
 * A guess is drawn as the real token will be (same sampler, position and random number) from the draft model's logits, so that
 * guesses are right as often as the two models agree, at any temperature. */
#ifndef TD_DAEMON_ENGINE_DRAFTER_H
#define TD_DAEMON_ENGINE_DRAFTER_H

#include "daemon/engine/sched.h"

struct td_drafter;

/* Runs a step of the draft model and tells its time in *ns (0: not known). False: there are no guesses this time. */
typedef bool td_drafter_run_fn(const struct td_step *step, struct td_step_result *result,
                               uint64_t *ns, void *user);
/* The token that follows the sequence's ids and `n_guessed` guesses, drawn from whole logits [the served model's vocabulary], or from
 * the n_top largest where they are NULL. UINT32_MAX: none. */
typedef uint32_t td_drafter_draw_fn(struct td_sched_seq *seq, uint32_t n_guessed,
                                    const float *logits, const struct td_top *top, uint32_t n_top,
                                    void *user);

struct td_drafter_params {
    uint32_t n_vocab; /* of the served model */
    uint32_t
        draft_vocab; /* rows of the draft model's logits; ids above it are never drafted behind */
    uint32_t max_model_len;          /* positions that the draft model has */
    uint32_t n_blocks, block_tokens; /* the block manager's */
    uint32_t max_num_seqs, max_batched_tokens, max_tokens_per_seq; /* the scheduler's */
    td_drafter_run_fn *run;
    void *run_user;
    td_drafter_draw_fn *draw;
    void *draw_user;
};

enum td_status td_drafter_open(const struct td_drafter_params *params, struct td_drafter **d,
                               struct td_err *err);
void td_drafter_close(struct td_drafter *d); /* NULL is legal */

/* Between td_sched_begin and td_sched_plan: fills the drafts of all sequences that have n_draft, or lowers it. A sequence whose
 * beginning the draft model does not know yet gets it computed first, some rows a step, and no drafts until then. */
void td_drafter_guess(struct td_drafter *d, struct td_sched *sched);
/* The step that verified a sequence's drafts is complete and its tokens are appended; before the next td_sched_begin. */
void td_drafter_judge(struct td_sched_seq *seq);

#endif
