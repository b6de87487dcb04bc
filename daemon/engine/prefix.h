/* The prefix cache: which KV blocks hold the beginning of which token sequences. A radix tree over whole blocks; a node is
 * found by the hash of all tokens up to its end and checked against the tokens themselves.
 * Owned by the scheduler, on rank 0's compute thread; knows ids and tokens, neither requests nor memory. Nothing is allocated
 * after open.
 *
 * The tree holds a reference on each of its blocks. A block that also belongs to a running sequence is in use, and so are all
 * before it; the others are idle and may be evicted, leaves first, the least recently used before others. A block enters the
 * tree as soon as a sequence that will fill it is admitted ("promised"), so that a second sequence with the same beginning can
 * wait for it instead of computing it too.
 *
 * What is evicted goes to a slot outside of the device, where there are any (offload.h): to memory first, from there to the file, from
 * there away, in each the least recently used first. A sequence that wants it promises it again in a block of its own, to be read
 * from the slot, which is free once that is done. The contents follow by moves of the step that is being planned. */
#ifndef TD_DAEMON_ENGINE_PREFIX_H
#define TD_DAEMON_ENGINE_PREFIX_H

#include "daemon/engine/blocks.h"
#include "kernels/base/err.h"
#include "shard/step.h"

#include <stdbool.h>
#include <stdint.h>

struct td_prefix;

/* Borrows `blocks` until close. `max_seqs` as the block manager has it; `n_slots` as the plan has it. */
enum td_status td_prefix_open(struct td_blocks *blocks, uint32_t block_tokens, uint32_t max_seqs,
                              const uint32_t n_slots[TD_OFFLOAD_TIERS], struct td_prefix **p,
                              struct td_err *err);
void td_prefix_close(struct td_prefix *p); /* NULL is legal; its blocks stay referenced */

/* A token sequence as the tree sees it: borrowed, hashes[i] is that of block i's end. Sequences of different salts share
 * nothing. */
struct td_prefix_key {
    uint64_t salt;
    const uint32_t *ids;
    const uint64_t *hashes;
    uint32_t n_blocks; /* whole blocks to look for */
};
/* Hash of a block's end: `before` is that of the block before it, of the first one the salt. ids [block_tokens]. */
uint64_t td_prefix_hash(const struct td_prefix *p, uint64_t before, const uint32_t *ids);

/* The longest beginning of a sequence that the tree has. */
struct td_prefix_match {
    uint32_t n_blocks;                    /* on the device, with those promised */
    uint32_t n_ready;                     /* filled; the first ones of n_blocks */
    uint32_t n_idle;                      /* of n_ready; the last ones */
    uint32_t n_outside[TD_OFFLOAD_TIERS]; /* that follow, by where they are */
};
struct td_prefix_match td_prefix_find(const struct td_prefix *p, const struct td_prefix_key *key);

/* Gives sequence `slot`, which holds nothing, the first n_ready blocks of `key`, which td_prefix_find has just found. */
void td_prefix_take(struct td_prefix *p, uint32_t slot, const struct td_prefix_key *key,
                    uint32_t n_ready);
/* Promises the blocks of `slot` up to key->n_blocks, which it holds by now, or up to the first that the device has already. Those
 * behind n_ready that lie outside are to be read from there, n_reads of them at most; returns how many. */
uint32_t td_prefix_promise(struct td_prefix *p, uint32_t slot, const struct td_prefix_key *key,
                           uint32_t n_reads);
/* The slot from which block i of the sequence is to be read. */
uint32_t td_prefix_source(const struct td_prefix *p, uint32_t slot, uint32_t i);
/* What the sequence has not read yet it will compute: its slots are free. */
void td_prefix_forget_sources(struct td_prefix *p, uint32_t slot);
/* The first key->n_blocks blocks of `slot` are filled, by reading or computing. Those not in the tree yet enter it; where it has one with the same
 * tokens already, that one takes the place of the sequence's own: returns the first such place, or UINT32_MAX. */
uint32_t td_prefix_fill(struct td_prefix *p, uint32_t slot, const struct td_prefix_key *key);
/* The sequence stops: what it promised and did not fill leaves the tree or stays in its slot. Before its blocks are released. */
void td_prefix_leave(struct td_prefix *p, uint32_t slot);

/* Frees the block of the least recently used idle leaf; false when nothing is idle. With `save`, what it holds goes to a slot by moves
 * of `step`; it is lost without, or when there is none or the step can take no more. Who needs more blocks than can be saved lets the
 * first of them go, which are ends: an end without its beginning is of no use. */
bool td_prefix_evict(struct td_prefix *p, struct td_step *step, bool save);
/* A move to this slot has failed. */
void td_prefix_lose(struct td_prefix *p, uint32_t slot);

uint32_t td_prefix_n_blocks(const struct td_prefix *p); /* with those outside */
uint32_t td_prefix_n_outside(const struct td_prefix *p, enum td_offload_tier tier);
/* For tests: the tree, its lists and the block manager's counts agree. */
enum td_status td_prefix_check(const struct td_prefix *p, struct td_err *err);

#endif
