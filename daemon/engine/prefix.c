#include "daemon/engine/prefix.h"

#include "daemon/engine/radix.h"

#include <assert.h>
#include <stdlib.h>
#include <xxhash.h>

#define NONE TD_RADIX_NONE
#define KIND TD_RADIX_KIND

/* The leading blocks of one sequence that are in the tree: n_ready filled ones, then promises. */
struct chain {
    uint32_t n_ready, n_known;
    bool
        closed; /* another sequence has promised what this one fills: no more of it enters the tree */
};

struct td_prefix {
    struct td_radix tree;
    struct chain *chain; /* owned [max_seqs] */
};

enum td_status td_prefix_open(struct td_blocks *blocks, uint32_t block_tokens, uint32_t max_seqs,
                              const uint32_t n_slots[TD_OFFLOAD_TIERS], struct td_prefix **out,
                              struct td_err *err)
{
    struct td_prefix *p = calloc(1, sizeof *p);

    if (p)
        p->chain = calloc(max_seqs, sizeof *p->chain);
    if (!p || !p->chain || td_radix_init(&p->tree, blocks, block_tokens, n_slots)) {
        td_prefix_close(p);
        return td_err_set(err, TD_NO_MEMORY, "no memory for a prefix cache of %u blocks",
                          td_blocks_n_total(blocks, KIND));
    }
    *out = p;
    return TD_OK;
}

void td_prefix_close(struct td_prefix *p)
{
    if (!p)
        return;
    td_radix_deinit(&p->tree);
    free(p->chain);
    free(p);
}

uint64_t td_prefix_hash(const struct td_prefix *p, uint64_t before, const uint32_t *ids)
{
    return XXH3_64bits_withSeed(ids, p->tree.block_tokens * sizeof *ids, before);
}

struct td_prefix_match td_prefix_find(const struct td_prefix *p, const struct td_prefix_key *key)
{
    struct td_prefix_match m = {0};

    for (uint32_t i = 0, id = NONE; i < key->n_blocks; i++) {
        const struct td_radix_node *n;

        id = td_radix_child(&p->tree, id, key, i);
        if (id == NONE)
            break;
        n = &p->tree.nodes[id];
        if (n->tier != TD_RADIX_DEVICE) {
            m.n_outside[n->tier - 1]++;
            continue;
        }
        m.n_blocks++;
        m.n_ready += n->state == TD_RADIX_READY;
        m.n_idle += n->state == TD_RADIX_READY && td_blocks_is_idle(p->tree.blocks, KIND, n->place);
    }
    return m;
}

void td_prefix_take(struct td_prefix *p, uint32_t slot, const struct td_prefix_key *key,
                    uint32_t n_ready)
{
    uint32_t id = NONE;

    p->tree.clock++;
    for (uint32_t i = 0; i < n_ready; i++) {
        id = td_radix_child(&p->tree, id, key, i);
        assert(id != NONE && p->tree.nodes[id].state == TD_RADIX_READY &&
               p->tree.nodes[id].tier == TD_RADIX_DEVICE);
        td_blocks_adopt(p->tree.blocks, KIND, slot, p->tree.nodes[id].place);
        td_radix_touch(&p->tree, id);
    }
    for (uint32_t i = n_ready; i < key->n_blocks; i++) { /* what lies outside is wanted too */
        id = td_radix_child(&p->tree, id, key, i);
        if (id == NONE)
            break;
        td_radix_touch(&p->tree, id);
    }
    p->chain[slot] = (struct chain){.n_ready = n_ready, .n_known = n_ready};
}

static uint32_t node_at(const struct td_prefix *p, uint32_t slot, uint32_t i)
{
    uint32_t n;

    return p->tree.node_of_block[td_blocks_table(p->tree.blocks, KIND, slot, &n)[i]];
}

/* The sequence's last block in the tree: the parent of its next. */
static uint32_t parent_of_next(const struct td_prefix *p, uint32_t slot)
{
    uint32_t known = p->chain[slot].n_known;

    return known ? node_at(p, slot, known - 1) : NONE;
}

uint32_t td_prefix_promise(struct td_prefix *p, uint32_t slot, const struct td_prefix_key *key,
                           uint32_t n_reads)
{
    struct chain *c = &p->chain[slot];
    uint32_t n, n_read = 0;
    const uint32_t *table = td_blocks_table(p->tree.blocks, KIND, slot, &n);

    assert(key->n_blocks <= n);
    p->tree.clock++;
    for (; c->n_known < key->n_blocks; c->n_known++) {
        uint32_t parent = parent_of_next(p, slot),
                 id = td_radix_child(&p->tree, parent, key, c->n_known);

        if (id != NONE && p->tree.nodes[id].tier == TD_RADIX_DEVICE)
            break;
        if (id == NONE) {
            td_radix_insert(&p->tree, table[c->n_known], parent, key, c->n_known,
                            TD_RADIX_PROMISED);
        } else {
            td_radix_bring(&p->tree, id, table[c->n_known], n_read < n_reads);
            n_read += n_read < n_reads;
        }
    }
    return n_read;
}

uint32_t td_prefix_source(const struct td_prefix *p, uint32_t slot, uint32_t i)
{
    uint32_t source = p->tree.nodes[node_at(p, slot, i)].source;

    assert(i >= p->chain[slot].n_ready && i < p->chain[slot].n_known && source != NONE);
    return source;
}

void td_prefix_forget_sources(struct td_prefix *p, uint32_t slot)
{
    for (uint32_t i = p->chain[slot].n_ready; i < p->chain[slot].n_known; i++)
        td_radix_drop_source(&p->tree, node_at(p, slot, i));
}

/* Block i of the sequence, which is filled, enters the tree. False: another sequence has promised it. */
static bool enter(struct td_prefix *p, uint32_t slot, const struct td_prefix_key *key, uint32_t i,
                  uint32_t *replaced)
{
    uint32_t n, parent = parent_of_next(p, slot), id = td_radix_child(&p->tree, parent, key, i);
    const uint32_t *table = td_blocks_table(p->tree.blocks, KIND, slot, &n);

    if (id == NONE) {
        td_radix_insert(&p->tree, table[i], parent, key, i, TD_RADIX_READY);
    } else if (p->tree.nodes[id].tier != TD_RADIX_DEVICE) {
        td_radix_bring(&p->tree, id, table[i], false);
        p->tree.nodes[id].state = TD_RADIX_READY;
    } else if (p->tree.nodes[id].state == TD_RADIX_READY) {
        td_blocks_replace(p->tree.blocks, KIND, slot, i, p->tree.nodes[id].place);
        *replaced = *replaced < i ? *replaced : i;
        td_radix_touch(&p->tree, id);
    } else {
        return false;
    }
    p->chain[slot].n_known++;
    return true;
}

uint32_t td_prefix_fill(struct td_prefix *p, uint32_t slot, const struct td_prefix_key *key)
{
    struct chain *c = &p->chain[slot];
    uint32_t replaced = NONE;

    p->tree.clock++;
    for (; c->n_ready < key->n_blocks && !c->closed; c->n_ready++) {
        if (c->n_ready < c->n_known) {
            uint32_t id = node_at(p, slot, c->n_ready);

            td_radix_drop_source(&p->tree, id);
            p->tree.nodes[id].state = TD_RADIX_READY;
        } else if (!enter(p, slot, key, c->n_ready, &replaced)) {
            c->closed = true;
            break;
        }
    }
    return replaced;
}

void td_prefix_leave(struct td_prefix *p, uint32_t slot)
{
    struct chain *c = &p->chain[slot];

    p->tree.clock++;
    for (uint32_t i = 0; i < c->n_known; i++)
        td_radix_touch(&p->tree, node_at(p, slot, i));
    while (c->n_known > c->n_ready)
        td_radix_take_back(&p->tree, node_at(p, slot, --c->n_known));
    *c = (struct chain){0};
}

bool td_prefix_evict(struct td_prefix *p, struct td_step *step, bool save)
{
    return td_radix_evict(&p->tree, step, save);
}

void td_prefix_lose(struct td_prefix *p, uint32_t slot)
{
    td_radix_lose(&p->tree, slot);
}

uint32_t td_prefix_n_blocks(const struct td_prefix *p)
{
    return p->tree.n_nodes - p->tree.n_free;
}

uint32_t td_prefix_n_outside(const struct td_prefix *p, enum td_offload_tier tier)
{
    return p->tree.tier[1 + tier].n_slots - p->tree.tier[1 + tier].n_free;
}

enum td_status td_prefix_check(const struct td_prefix *p, struct td_err *err)
{
    return td_radix_check(&p->tree, err);
}
