/* Requests in, steps out, tokens out: ties the scheduler, the samplers and the stop rules together for rank 0.
 * Owns every request from submit to its final event. One thread: rank 0's compute thread. Knows no sockets, no MPI,
 * no device and no clock; someone else runs the step and brings the logits.
 *
 * Planning and completing are separate calls: as many steps as max_flights may be in flight (stages of a pipeline work on different
 * ones), and complete in the order in which they were planned. */
#ifndef TD_DAEMON_ENGINE_ENGINE_H
#define TD_DAEMON_ENGINE_ENGINE_H

#include "daemon/engine/drafter.h"
#include "daemon/engine/request.h"
#include "kernels/base/err.h"
#include "shard/spec.h"
#include "shard/step.h"

#include <stdbool.h>
#include <stdint.h>

struct td_engine;
struct td_tokenizer;

/* Receives every event, in order per request, exactly one of them final (finish != NONE). Called only from within
 * td_engine_plan_step, td_engine_complete_step and td_engine_fail_all, never from submit or cancel. It may call submit
 * and cancel, nothing else of the engine. The event is borrowed during the call. */
typedef void td_engine_event_fn(const struct td_token_event *event, void *user);

struct td_engine_params {
    uint32_t n_vocab;
    uint32_t max_model_len;      /* prompt + output tokens of one request */
    uint32_t max_num_seqs;       /* sequences in one step */
    uint32_t max_batched_tokens; /* rows in one step; >= max_num_seqs */
    uint32_t max_chunk_tokens; /* prefill rows of one sequence in one step; 0: max_batched_tokens */
    uint32_t max_flights;      /* steps that may be planned and not complete; 0: 1 */
    uint32_t max_queue;        /* waiting requests; more are refused with TD_BUSY */
    uint32_t block_tokens;     /* positions in one KV block */
    uint32_t n_blocks;         /* KV blocks; must hold one request of max_model_len */
    uint32_t
        max_draft_tokens; /* that a step may verify for one sequence; at most TD_SCHED_MAX_DRAFT; 0: no speculation */
    /* Runs steps of a draft model, which then guesses in the place of prompt lookup (drafter.h); NULL: there is none. */
    td_drafter_run_fn *run_draft;
    void *run_draft_user;
    uint32_t draft_vocab, draft_positions; /* that it has */
    bool prefix_cache; /* keep filled blocks for requests that begin with the same tokens */
    uint32_t
        n_slots[TD_OFFLOAD_TIERS]; /* for those that the pool has no room for (shard/offload.h) */
    uint32_t
        max_stretch_percent; /* of a step by prompts beside running answers (pace.h); 0: no limit */
    bool draws;              /* a step gives ids where td_sampling_draws_row (td_shard_draws) */
    uint32_t n_eos;
    uint32_t eos_ids[TD_SPEC_MAX_EOS];
    const enum td_layer_kind *layer_kinds; /* [n_layers], borrowed during open */
    uint32_t n_layers;
    const struct td_tokenizer
        *tokenizer; /* borrowed until close; NULL: requests with stop strings are refused */
    td_engine_event_fn *on_event;
    void *user;
    /* Calls task(arg, 0 .. n - 1), each once, on any threads, and returns when all have ended: tokens of different sequences are drawn
     * at the same time. NULL: one after the other. */
    void (*parallel)(void *parallel_user, uint32_t n, void (*task)(void *arg, uint32_t i),
                     void *arg);
    void *parallel_user;
};

/* TD_INVALID for sizes that do not fit together, TD_UNSUPPORTED for a layer kind without memory, TD_NO_MEMORY. */
enum td_status td_engine_open(const struct td_engine_params *params, struct td_engine **e,
                              struct td_err *err);
void td_engine_close(
    struct td_engine *e); /* NULL is legal. Requests that are left end without an event. */

/* Caps with which the caller opens the step that it hands to td_engine_plan_step. */
void td_engine_step_caps(const struct td_engine *e, uint32_t *rows, uint32_t *seqs,
                         uint32_t *table);
/* The number of the next step that is not planned here (idle, stop); plan_step takes its numbers from the same
 * count, so that they ascend by one over all kinds. */
uint64_t td_engine_take_number(struct td_engine *e);

/* Copies and queues a request; `r` stays the caller's. No event before this returns, and none at all when it fails:
 * TD_INVALID and TD_TOO_LARGE by td_request_validate or for an id that is in use, TD_UNSUPPORTED for stop strings
 * without a tokenizer, TD_BUSY when the queue is full, TD_NO_MEMORY. All buffers for its tokens are allocated here,
 * its sampler when its first step is planned. */
enum td_status td_engine_submit(struct td_engine *e, const struct td_request *r, uint64_t now_ns,
                                struct td_err *err);
/* Ends a request: its memory is free and its final event (TD_FINISH_CANCELLED) is sent by the next plan_step or
 * complete_step; tokens of a step in flight are dropped. False when no such request is open. */
bool td_engine_cancel(struct td_engine *e, uint64_t request_id);

/* Takes an open request out of the steps until it is resumed (its reader is slow): it keeps its tokens and gives up its
 * blocks; a token of the only step in flight is still told, of one of several perhaps later. Takes effect with the next plan_step. False when no such request is open. */
bool td_engine_pause(struct td_engine *e, uint64_t request_id, bool paused);

/* Sends what is due from cancellations, then fills `step` (reset here). False, with `step` untouched but for that reset, when
 * there is nothing to run now, or max_flights steps are in flight: with none in flight, sleep until the next submit or cancel. */
bool td_engine_plan_step(struct td_engine *e, uint64_t now_ns, struct td_step *step);
/* Step `number`, the oldest in flight, has run in `step_ns` (0: not known) and gave `result`. Draws a token for each row that wanted
 * one, sends the events and frees what ended. TD_INVALID when it is another. */
enum td_status td_engine_complete_step(struct td_engine *e, uint64_t number,
                                       const struct td_step_result *result, uint64_t step_ns,
                                       struct td_err *err);
/* Ends every open request with TD_FINISH_ERROR and `cause` (a rank is lost, the shard failed, a deadline of a drain passed). Steps
 * in flight are forgotten, and nothing that they should have computed is kept. */
void td_engine_fail_all(struct td_engine *e, const struct td_err *cause);

struct td_engine_stats {
    uint32_t n_running;
    uint32_t n_waiting;
    uint32_t n_paused;
    uint32_t n_blocks_used;
    uint32_t n_blocks;
    uint64_t oldest_wait_ns; /* of the head of the queue */
    uint64_t n_steps;
    uint64_t n_rows; /* computed, with those computed again after a preemption */
    uint64_t n_preemptions;
    uint32_t n_blocks_idle; /* of n_blocks_used: only the prefix cache holds them */
    uint32_t n_blocks_outside[TD_OFFLOAD_TIERS]; /* in slots */
    uint64_t n_blocks_read;                      /* back from there */
    uint64_t n_failed_reads;  /* times that this failed, so that blocks were computed again */
    uint64_t n_draft_tokens;  /* verified */
    uint64_t n_right_drafts;  /* of them, as drawn */
    uint64_t n_device_draws;  /* tokens that a device drew */
    uint64_t n_cached_tokens; /* of n_prompt_tokens: their KV was there */
    uint64_t n_prompt_tokens; /* of requests that have got their first token */
    uint64_t n_output_tokens;
    uint64_t n_finished[TD_FINISH_ERROR + 1]; /* by enum td_finish */
};

void td_engine_stats(const struct td_engine *e, uint64_t now_ns, struct td_engine_stats *stats);
/* For tests: the block manager's own check. */
enum td_status td_engine_check(const struct td_engine *e, struct td_err *err);

#endif
