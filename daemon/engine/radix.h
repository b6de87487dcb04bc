/* The tree under the prefix cache: one node for each KV block that is known, by the tokens in it and before it, and where it lies:
 * on the device or in a slot outside (shard/offload.h). Keeps the leaves of each place in the order of their last use, and the free
 * slots. Knows nothing of sequences; prefix.c decides who enters. Not for other callers. Nothing is allocated after open. */
#ifndef TD_DAEMON_ENGINE_RADIX_H
#define TD_DAEMON_ENGINE_RADIX_H

#include "daemon/engine/prefix.h"

#define TD_RADIX_NONE UINT32_MAX

/* The layer kind whose blocks these are. */
#define TD_RADIX_KIND TD_LAYER_ATTENTION

enum td_radix_state { TD_RADIX_OUT = 0, TD_RADIX_PROMISED, TD_RADIX_READY };

/* Where a block lies: on the device, or in a slot of tier - 1. Nobody lies above its parent. */
enum { TD_RADIX_DEVICE = 0, TD_RADIX_TIERS = 1 + TD_OFFLOAD_TIERS };

struct td_radix_node {
    uint64_t hash; /* of all tokens up to its end */
    uint64_t salt;
    uint64_t used; /* when a sequence last took or left it, by the tree's clock */
    enum td_radix_state state;
    uint32_t tier;
    uint32_t place; /* id of the block or number of the slot */
    uint32_t
        source; /* the slot that a promised block will be read from; NONE: it will be computed */
    uint32_t parent;                     /* NONE: a first block */
    uint32_t n_children[TD_RADIX_TIERS]; /* by where they lie */
    uint32_t first_child, prev_sibling, next_sibling;
    uint32_t next_in_bucket;
    bool is_listed;      /* among the leaves of its tier: it has no child there or above */
    uint32_t prev, next; /* there, least recently used first */
};

struct td_radix {
    struct td_blocks *blocks; /* borrowed */
    uint32_t block_tokens;
    uint32_t n_blocks; /* of the pool */
    uint32_t n_nodes;  /* one for each block and slot */
    uint32_t n_free;
    uint32_t n_buckets;          /* a power of two */
    uint64_t clock;              /* the caller's */
    struct td_radix_node *nodes; /* owned [n_nodes] */
    uint32_t *free_nodes;        /* owned [n_nodes], a stack */
    uint32_t *node_of_block;     /* owned [n_blocks]; NONE: not in the tree */
    uint32_t *node_of_slot;      /* owned [all slots]; NONE: free, or the source of a promise */
    uint32_t *tokens;            /* owned [n_nodes x block_tokens] */
    uint32_t *bucket;            /* owned [n_buckets] */
    struct td_radix_tier {
        uint32_t first, last; /* leaf */
        uint32_t n_slots, n_free;
        uint32_t *free_slots; /* owned [n_slots], a stack; NULL for the device */
    } tier[TD_RADIX_TIERS];
};

/* Parameters as those of td_prefix_open. TD_NO_MEMORY; then, too, deinit is due. */
enum td_status td_radix_init(struct td_radix *t, struct td_blocks *blocks, uint32_t block_tokens,
                             const uint32_t n_slots[TD_OFFLOAD_TIERS]);
void td_radix_deinit(struct td_radix *t); /* legal on zeroes */

/* The child of node `parent` (NONE: the first block of a sequence) that holds block i of `key`; NONE. */
uint32_t td_radix_child(const struct td_radix *t, uint32_t parent, const struct td_prefix_key *key,
                        uint32_t i);
/* A new child in `block` of the device, of which the tree takes a reference. */
void td_radix_insert(struct td_radix *t, uint32_t block, uint32_t parent,
                     const struct td_prefix_key *key, uint32_t i, enum td_radix_state state);
/* It is used now. */
void td_radix_touch(struct td_radix *t, uint32_t id);
/* Frees the block of the least recently used idle leaf, as td_prefix_evict. */
bool td_radix_evict(struct td_radix *t, struct td_step *step, bool save);
/* What should be in a slot is not there: its node goes, with all below it. */
void td_radix_lose(struct td_radix *t, uint32_t slot);
/* A node outside becomes one that is promised in `block`: to be read from where it is, or to be computed. */
void td_radix_bring(struct td_radix *t, uint32_t id, uint32_t block, bool read);
/* A promise is not kept: what is still in its slot stays there, all else goes. */
void td_radix_take_back(struct td_radix *t, uint32_t id);
/* The slot that a promised node would be read from is free. */
void td_radix_drop_source(struct td_radix *t, uint32_t id);
/* For tests, as td_prefix_check. */
enum td_status td_radix_check(const struct td_radix *t, struct td_err *err);

#endif
