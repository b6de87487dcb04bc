#include "daemon/engine/prefix.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define NONE UINT32_MAX
#define KIND TD_LAYER_ATTENTION

enum state { OUT = 0, PROMISED, READY };

/* What is known of one block; its index is the block's id. */
struct node {
    uint64_t hash;
    uint64_t salt;
    uint64_t used; /* when a sequence last took or left it */
    enum state state;
    uint32_t parent; /* NONE: a first block */
    uint32_t n_children;
    uint32_t next_in_bucket;
    uint32_t prev, next; /* leaves, least recently used first */
};

/* The leading blocks of one sequence that are in the tree: n_ready filled ones, then promises. */
struct chain {
    uint32_t n_ready, n_known;
    bool
        closed; /* another sequence has promised what this one fills: no more of it enters the tree */
};

struct td_prefix {
    struct td_blocks *blocks; /* borrowed */
    uint32_t block_tokens;
    uint32_t n_nodes; /* blocks of the pool */
    uint32_t n_in_tree;
    uint32_t n_buckets; /* a power of two */
    uint32_t max_seqs;
    uint64_t clock;
    struct node *nodes;   /* owned [n_nodes] */
    uint32_t *tokens;     /* owned [n_nodes x block_tokens] */
    uint32_t *bucket;     /* owned [n_buckets] */
    struct chain *chain;  /* owned [max_seqs] */
    uint32_t first, last; /* leaf */
};

enum td_status td_prefix_open(struct td_blocks *blocks, uint32_t block_tokens, uint32_t max_seqs,
                              struct td_prefix **out, struct td_err *err)
{
    struct td_prefix *p = calloc(1, sizeof *p);

    if (!p)
        goto no_memory;
    p->blocks = blocks;
    p->block_tokens = block_tokens;
    p->n_nodes = td_blocks_n_total(blocks, KIND);
    p->max_seqs = max_seqs;
    p->first = p->last = NONE;
    for (p->n_buckets = 1; p->n_buckets < p->n_nodes; p->n_buckets *= 2)
        ;
    p->nodes = calloc(p->n_nodes, sizeof *p->nodes);
    p->tokens = calloc((size_t)p->n_nodes * block_tokens, sizeof *p->tokens);
    p->bucket = malloc(p->n_buckets * sizeof *p->bucket);
    p->chain = calloc(max_seqs, sizeof *p->chain);
    if (!p->nodes || !p->tokens || !p->bucket || !p->chain)
        goto no_memory;
    for (uint32_t i = 0; i < p->n_buckets; i++)
        p->bucket[i] = NONE;
    *out = p;
    return TD_OK;

no_memory:
    td_prefix_close(p);
    return td_err_set(err, TD_NO_MEMORY, "no memory for a prefix cache of %u blocks",
                      td_blocks_n_total(blocks, KIND));
}

void td_prefix_close(struct td_prefix *p)
{
    if (!p)
        return;
    free(p->nodes);
    free(p->tokens);
    free(p->bucket);
    free(p->chain);
    free(p);
}

uint64_t td_prefix_hash(const struct td_prefix *p, uint64_t before, const uint32_t *ids)
{
    return XXH3_64bits_withSeed(ids, p->block_tokens * sizeof *ids, before);
}

/* ---- the list of leaves ---- */

static void leaf_unlink(struct td_prefix *p, uint32_t id)
{
    struct node *n = &p->nodes[id];

    *(n->prev == NONE ? &p->first : &p->nodes[n->prev].next) = n->next;
    *(n->next == NONE ? &p->last : &p->nodes[n->next].prev) = n->prev;
}

/* Puts a leaf where its last use belongs. The search begins at the end where it is expected. */
static void leaf_link(struct td_prefix *p, uint32_t id, bool old)
{
    struct node *n = &p->nodes[id];
    uint32_t after = p->last;

    if (old) {
        uint32_t before = p->first;

        while (before != NONE && p->nodes[before].used < n->used)
            before = p->nodes[before].next;
        after = before == NONE ? p->last : p->nodes[before].prev;
    } else {
        while (after != NONE && p->nodes[after].used > n->used)
            after = p->nodes[after].prev;
    }
    n->prev = after;
    n->next = after == NONE ? p->first : p->nodes[after].next;
    *(n->prev == NONE ? &p->first : &p->nodes[n->prev].next) = id;
    *(n->next == NONE ? &p->last : &p->nodes[n->next].prev) = id;
}

/* ---- nodes ---- */

static uint32_t *bucket_of(const struct td_prefix *p, uint64_t hash)
{
    return &p->bucket[hash & (p->n_buckets - 1)];
}

/* The child of `parent` (NONE: the first block of a sequence) that holds block i of `key`. */
static uint32_t find_child(const struct td_prefix *p, uint32_t parent,
                           const struct td_prefix_key *key, uint32_t i)
{
    const uint32_t *ids = key->ids + (size_t)i * p->block_tokens;
    uint32_t id = *bucket_of(p, key->hashes[i]);

    for (; id != NONE; id = p->nodes[id].next_in_bucket) {
        const struct node *n = &p->nodes[id];

        if (n->hash == key->hashes[i] && n->parent == parent && n->salt == key->salt &&
            memcmp(p->tokens + (size_t)id * p->block_tokens, ids, p->block_tokens * sizeof *ids) ==
                0)
            return id;
    }
    return NONE;
}

static void insert(struct td_prefix *p, uint32_t id, uint32_t parent,
                   const struct td_prefix_key *key, uint32_t i, enum state state)
{
    uint32_t *bucket = bucket_of(p, key->hashes[i]);

    assert(p->nodes[id].state == OUT);
    p->nodes[id] = (struct node){.hash = key->hashes[i],
                                 .salt = key->salt,
                                 .used = p->clock,
                                 .state = state,
                                 .parent = parent,
                                 .next_in_bucket = *bucket};
    *bucket = id;
    memcpy(p->tokens + (size_t)id * p->block_tokens, key->ids + (size_t)i * p->block_tokens,
           p->block_tokens * sizeof *p->tokens);
    if (parent != NONE && p->nodes[parent].n_children++ == 0)
        leaf_unlink(p, parent);
    leaf_link(p, id, false);
    td_blocks_ref(p->blocks, KIND, id);
    p->n_in_tree++;
}

/* Takes a leaf out of the tree; `old`: it was used long ago. */
static void remove_leaf(struct td_prefix *p, uint32_t id, bool old)
{
    struct node *n = &p->nodes[id];
    uint32_t *at = bucket_of(p, n->hash);

    assert(n->n_children == 0);
    while (*at != id)
        at = &p->nodes[*at].next_in_bucket;
    *at = n->next_in_bucket;
    leaf_unlink(p, id);
    if (n->parent != NONE && --p->nodes[n->parent].n_children == 0)
        leaf_link(p, n->parent, old);
    n->state = OUT;
    p->n_in_tree--;
    td_blocks_unref(p->blocks, KIND, id);
}

static void touch(struct td_prefix *p, uint32_t id)
{
    struct node *n = &p->nodes[id];

    n->used = p->clock;
    if (n->n_children)
        return;
    leaf_unlink(p, id);
    leaf_link(p, id, false);
}

/* ---- what sequences do ---- */

struct td_prefix_match td_prefix_find(const struct td_prefix *p, const struct td_prefix_key *key)
{
    struct td_prefix_match m = {0};

    for (uint32_t id = NONE; m.n_blocks < key->n_blocks; m.n_blocks++) {
        id = find_child(p, id, key, m.n_blocks);
        if (id == NONE)
            break;
        m.n_ready += p->nodes[id].state == READY;
        m.n_idle += p->nodes[id].state == READY && td_blocks_is_idle(p->blocks, KIND, id);
    }
    return m;
}

void td_prefix_take(struct td_prefix *p, uint32_t slot, const struct td_prefix_key *key,
                    uint32_t n_ready)
{
    uint32_t id = NONE;

    p->clock++;
    for (uint32_t i = 0; i < n_ready; i++) {
        id = find_child(p, id, key, i);
        assert(id != NONE && p->nodes[id].state == READY);
        td_blocks_adopt(p->blocks, KIND, slot, id);
        touch(p, id);
    }
    p->chain[slot] = (struct chain){.n_ready = n_ready, .n_known = n_ready};
}

/* The sequence's last block in the tree: the parent of its next. */
static uint32_t parent_of_next(const struct td_prefix *p, uint32_t slot)
{
    uint32_t n, known = p->chain[slot].n_known;
    const uint32_t *table = td_blocks_table(p->blocks, KIND, slot, &n);

    return known ? table[known - 1] : NONE;
}

void td_prefix_promise(struct td_prefix *p, uint32_t slot, const struct td_prefix_key *key)
{
    struct chain *c = &p->chain[slot];
    uint32_t n;
    const uint32_t *table = td_blocks_table(p->blocks, KIND, slot, &n);

    assert(key->n_blocks <= n);
    p->clock++;
    for (; c->n_known < key->n_blocks; c->n_known++) {
        uint32_t parent = parent_of_next(p, slot);

        if (find_child(p, parent, key, c->n_known) != NONE)
            return;
        insert(p, table[c->n_known], parent, key, c->n_known, PROMISED);
    }
}

void td_prefix_fill(struct td_prefix *p, uint32_t slot, const struct td_prefix_key *key)
{
    struct chain *c = &p->chain[slot];

    p->clock++;
    for (; c->n_ready < key->n_blocks && !c->closed; c->n_ready++) {
        uint32_t n, i = c->n_ready, other;
        const uint32_t *table = td_blocks_table(p->blocks, KIND, slot, &n);

        if (i < c->n_known) {
            p->nodes[table[i]].state = READY;
            continue;
        }
        other = find_child(p, parent_of_next(p, slot), key, i);
        if (other == NONE) {
            insert(p, table[i], parent_of_next(p, slot), key, i, READY);
        } else if (p->nodes[other].state == READY) {
            td_blocks_replace(p->blocks, KIND, slot, i, other);
            touch(p, other);
        } else {
            c->closed = true;
            return;
        }
        c->n_known++;
    }
}

void td_prefix_leave(struct td_prefix *p, uint32_t slot)
{
    struct chain *c = &p->chain[slot];
    uint32_t n;
    const uint32_t *table = td_blocks_table(p->blocks, KIND, slot, &n);

    p->clock++;
    for (uint32_t i = 0; i < c->n_known; i++)
        touch(p, table[i]);
    while (c->n_known > c->n_ready)
        remove_leaf(p, table[--c->n_known], false);
    *c = (struct chain){0};
}

bool td_prefix_evict(struct td_prefix *p)
{
    for (uint32_t id = p->first; id != NONE; id = p->nodes[id].next)
        if (td_blocks_is_idle(p->blocks, KIND, id)) {
            remove_leaf(p, id, true);
            return true;
        }
    return false;
}

uint32_t td_prefix_n_blocks(const struct td_prefix *p)
{
    return p->n_in_tree;
}

/* ---- for tests ---- */

static enum td_status check_node(const struct td_prefix *p, uint32_t id, struct td_err *err)
{
    const struct node *n = &p->nodes[id];
    uint32_t in_bucket = 0, n_children = 0;

    for (uint32_t i = *bucket_of(p, n->hash); i != NONE; i = p->nodes[i].next_in_bucket)
        in_bucket += i == id;
    for (uint32_t i = 0; i < p->n_nodes; i++)
        n_children += p->nodes[i].state != OUT && p->nodes[i].parent == id;
    if (in_bucket != 1 || n_children != n->n_children)
        return td_err_set(err, TD_INTERNAL,
                          "block %u is %u times in its bucket, has %u of %u children", id,
                          in_bucket, n_children, n->n_children);
    if (n->parent != NONE &&
        (p->nodes[n->parent].state == OUT || p->nodes[n->parent].salt != n->salt ||
         (n->state == READY && p->nodes[n->parent].state != READY)))
        return td_err_set(err, TD_INTERNAL, "block %u follows block %u, which is not filled", id,
                          n->parent);
    if (n->parent != NONE && td_blocks_is_idle(p->blocks, KIND, n->parent) &&
        !td_blocks_is_idle(p->blocks, KIND, id))
        return td_err_set(err, TD_INTERNAL, "block %u is in use, block %u before it is not", id,
                          n->parent);
    if (n->state == PROMISED && td_blocks_is_idle(p->blocks, KIND, id))
        return td_err_set(err, TD_INTERNAL, "block %u is promised by nobody", id);
    return TD_OK;
}

enum td_status td_prefix_check(const struct td_prefix *p, struct td_err *err)
{
    uint32_t n = 0, n_leaves = 0, listed = 0, idle = 0;
    enum td_status st = TD_OK;

    for (uint32_t id = 0; id < p->n_nodes && !st; id++) {
        if (p->nodes[id].state == OUT)
            continue;
        n++;
        n_leaves += p->nodes[id].n_children == 0;
        idle += td_blocks_is_idle(p->blocks, KIND, id);
        st = check_node(p, id, err);
    }
    for (uint32_t id = p->first; id != NONE && !st; id = p->nodes[id].next) {
        uint32_t next = p->nodes[id].next;

        listed++;
        if (p->nodes[id].n_children || (next != NONE && (p->nodes[next].prev != id ||
                                                         p->nodes[next].used < p->nodes[id].used)))
            st = td_err_set(err, TD_INTERNAL, "block %u is at a wrong place among the leaves", id);
    }
    if (!st &&
        (n != p->n_in_tree || listed != n_leaves || idle != td_blocks_n_idle(p->blocks, KIND)))
        st = td_err_set(err, TD_INTERNAL, "%u blocks of %u, %u leaves of %u, %u idle blocks of %u",
                        p->n_in_tree, n, listed, n_leaves, idle, td_blocks_n_idle(p->blocks, KIND));
    return st;
}
