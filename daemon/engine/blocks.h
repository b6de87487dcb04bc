/* Which block of which cache belongs to which sequence: ids and reference counts, one pool per layer kind.
 * Owned by the scheduler, on rank 0's compute thread. Knows no memory (that lives in shard/) and no policy.
 * Nothing is allocated after open. */
#ifndef TD_DAEMON_ENGINE_BLOCKS_H
#define TD_DAEMON_ENGINE_BLOCKS_H

#include "kernels/base/err.h"
#include "shard/spec.h"

#include <stdbool.h>
#include <stdint.h>

/* Pools are indexed by enum td_layer_kind. Attention and latent layers are paged: a sequence of n tokens holds
 * ceil(n / block_tokens) blocks. Window rings and recurrent states are one slot per sequence, whatever its length. */
enum { TD_BLOCKS_N_KINDS = TD_LAYER_RECURRENT + 1 };

struct td_blocks_params {
    uint32_t
        pool[TD_BLOCKS_N_KINDS]; /* blocks or slots of each kind; 0: this build or model has none */
    uint32_t block_tokens;       /* > 0 */
    uint32_t max_seqs;
    uint32_t max_tokens_per_seq; /* bounds the length of a block table */
};

struct td_blocks;

/* TD_INVALID when the pools cannot hold one sequence of max_tokens_per_seq; TD_NO_MEMORY. */
enum td_status td_blocks_open(const struct td_blocks_params *params, struct td_blocks **b,
                              struct td_err *err);
void td_blocks_close(struct td_blocks *b); /* NULL is legal */

/* TD_UNSUPPORTED, naming the layer and what it needs, when a layer's kind has a pool of size 0. */
enum td_status td_blocks_admit_model(const struct td_blocks *b, const enum td_layer_kind *kinds,
                                     uint32_t n_layers, struct td_err *err);

/* Makes sequence `seq` (0 .. max_seqs - 1) hold what `n_tokens` tokens need in every pool; keeps what it has.
 * False, with nothing changed, when a pool is short. */
bool td_blocks_reserve(struct td_blocks *b, uint32_t seq, uint32_t n_tokens);
/* Attention blocks that the pool lacks for that; 0 where reserve would not fail for them. */
uint32_t td_blocks_n_short(const struct td_blocks *b, uint32_t seq, uint32_t n_tokens);
/* Gives the sequence a block that is in use elsewhere as its next one. Only blocks that are written full may be shared;
 * the caller sees to that. Slots are never shared. */
void td_blocks_adopt(struct td_blocks *b, enum td_layer_kind kind, uint32_t seq, uint32_t id);
/* Puts block `id`, which is in use elsewhere and holds the same, in the place of the sequence's i-th one. */
void td_blocks_replace(struct td_blocks *b, enum td_layer_kind kind, uint32_t seq, uint32_t i,
                       uint32_t id);
/* Drops every reference of the sequence. Legal when it holds nothing. */
void td_blocks_release(struct td_blocks *b, uint32_t seq);

/* A reference that no sequence holds (a prefix cache's). unref frees the block when it was the last one. */
void td_blocks_ref(struct td_blocks *b, enum td_layer_kind kind, uint32_t id);
void td_blocks_unref(struct td_blocks *b, enum td_layer_kind kind, uint32_t id);

/* The blocks of a sequence in order of position; borrowed until its next change. */
const uint32_t *td_blocks_table(const struct td_blocks *b, enum td_layer_kind kind, uint32_t seq,
                                uint32_t *n_blocks);
/* The slot for td_step_seq.state_slot: the recurrent state's, else the ring's; UINT32_MAX when the model has neither. */
uint32_t td_blocks_state_slot(const struct td_blocks *b, uint32_t seq);

uint32_t td_blocks_for_tokens(const struct td_blocks *b, uint32_t n_tokens); /* of a paged kind */
uint32_t td_blocks_n_free(const struct td_blocks *b, enum td_layer_kind kind);
/* Blocks that no sequence holds, only references from outside. */
uint32_t td_blocks_n_idle(const struct td_blocks *b, enum td_layer_kind kind);
bool td_blocks_is_idle(const struct td_blocks *b, enum td_layer_kind kind, uint32_t id);
uint32_t td_blocks_n_total(const struct td_blocks *b, enum td_layer_kind kind);
/* Whether td_blocks_reserve would succeed for a sequence that holds nothing, with `spare` paged blocks left over, if
 * `n_more` attention blocks more were free. */
bool td_blocks_fits(const struct td_blocks *b, uint32_t n_tokens, uint32_t spare, uint32_t n_more);

/* For tests: the counts equal the tables plus the outside references, and each block without one is in the free list
 * exactly once. TD_INTERNAL with the first block that is not. Allocates. */
enum td_status td_blocks_check(const struct td_blocks *b, struct td_err *err);

#endif
