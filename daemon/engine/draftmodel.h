/* A small model beside the served one, which guesses what that will say (speculative decoding): its files, plan and shard. Whole on
 * rank 0, with the same device; its cache has the served model's blocks. Knows no sequences; drafter.h decides what it computes.
 * One thread at a time. */
#ifndef TD_DAEMON_ENGINE_DRAFTMODEL_H
#define TD_DAEMON_ENGINE_DRAFTMODEL_H

#include "shard/plan.h"
#include "shard/shard.h"

struct td_draftmodel;
struct td_tokenizer;

/* Headers only. */
enum td_status td_draftmodel_open(const char *path, struct td_draftmodel **d, struct td_err *err);
void td_draftmodel_close(struct td_draftmodel *d); /* NULL is legal */
/* Both models must mean the same by every id that both have; TD_INVALID names the first that differs. Reads the tokenizer. */
enum td_status td_draftmodel_check(const struct td_draftmodel *d, const struct td_tokenizer *served,
                                   struct td_err *err);
/* Adds to the served model's plan params what rank 0 needs for this one. Pure. */
enum td_status td_draftmodel_reserve(const struct td_draftmodel *d, struct td_plan_params *served,
                                     struct td_err *err);
/* Loads the weights, with a cache for the blocks of the served model's plan. Borrows `kern` until close. */
enum td_status td_draftmodel_load(struct td_draftmodel *d, struct td_kern *kern,
                                  const struct td_plan *served, struct td_err *err);
/* After load: runs one step. *result as td_shard_step gives it. */
enum td_status td_draftmodel_step(struct td_draftmodel *d, const struct td_step *step,
                                  struct td_step_result *result, struct td_err *err);

uint32_t td_draftmodel_n_vocab(const struct td_draftmodel *d);
uint32_t td_draftmodel_positions(const struct td_draftmodel *d); /* after load */
void td_draftmodel_stats(const struct td_draftmodel *d, struct td_shard_stats *out);

#endif
