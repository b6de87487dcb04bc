#include "daemon/engine/radix.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BUCKETS = 1 << 30 };

static bool open_tiers(struct td_radix *t, const uint32_t n_slots[TD_OFFLOAD_TIERS])
{
    uint32_t number = 0;

    for (uint32_t i = 0; i < TD_RADIX_TIERS; i++) {
        struct td_radix_tier *tier = &t->tier[i];

        tier->first = tier->last = TD_RADIX_NONE;
        if (i == TD_RADIX_DEVICE)
            continue;
        tier->n_slots = tier->n_free = n_slots[i - 1];
        tier->free_slots = calloc(tier->n_slots + 1, sizeof *tier->free_slots);
        if (!tier->free_slots)
            return false;
        for (uint32_t k = tier->n_slots; k-- > 0;)
            tier->free_slots[k] = number++;
    }
    return true;
}

enum td_status td_radix_init(struct td_radix *t, struct td_blocks *blocks, uint32_t block_tokens,
                             const uint32_t n_slots[TD_OFFLOAD_TIERS])
{
    *t = (struct td_radix){.blocks = blocks,
                           .block_tokens = block_tokens,
                           .n_blocks = td_blocks_n_total(blocks, TD_RADIX_KIND)};
    t->n_nodes = t->n_free = t->n_blocks + n_slots[0] + n_slots[1];
    for (t->n_buckets = 1; t->n_buckets < t->n_nodes && t->n_buckets < MOST_BUCKETS;
         t->n_buckets *= 2)
        ;
    t->nodes = calloc(t->n_nodes, sizeof *t->nodes);
    t->free_nodes = calloc(t->n_nodes, sizeof *t->free_nodes);
    t->node_of_block = malloc(t->n_blocks * sizeof *t->node_of_block);
    t->node_of_slot = malloc((n_slots[0] + n_slots[1] + 1) * sizeof *t->node_of_slot);
    t->tokens = calloc((size_t)t->n_nodes * block_tokens, sizeof *t->tokens);
    t->bucket = malloc(t->n_buckets * sizeof *t->bucket);
    if (!open_tiers(t, n_slots) || !t->nodes || !t->free_nodes || !t->node_of_block ||
        !t->node_of_slot || !t->tokens || !t->bucket)
        return TD_NO_MEMORY;
    for (uint32_t i = 0; i < t->n_nodes; i++)
        t->free_nodes[i] = t->n_nodes - 1 - i;
    memset(t->node_of_block, 0xff, t->n_blocks * sizeof *t->node_of_block);
    memset(t->node_of_slot, 0xff, (n_slots[0] + n_slots[1]) * sizeof *t->node_of_slot);
    memset(t->bucket, 0xff, t->n_buckets * sizeof *t->bucket);
    return TD_OK;
}

void td_radix_deinit(struct td_radix *t)
{
    for (uint32_t i = 0; i < TD_RADIX_TIERS; i++)
        free(t->tier[i].free_slots);
    free(t->nodes);
    free(t->free_nodes);
    free(t->node_of_block);
    free(t->node_of_slot);
    free(t->tokens);
    free(t->bucket);
}

/* ---- leaves of a tier ---- */

static void leaf_unlink(struct td_radix *t, uint32_t id)
{
    struct td_radix_node *n = &t->nodes[id];
    struct td_radix_tier *own = &t->tier[n->tier];

    *(n->prev == TD_RADIX_NONE ? &own->first : &t->nodes[n->prev].next) = n->next;
    *(n->next == TD_RADIX_NONE ? &own->last : &t->nodes[n->next].prev) = n->prev;
    n->is_listed = false;
}

/* Puts a leaf where its last use belongs. The search begins at the end where it is expected. */
static void leaf_link(struct td_radix *t, uint32_t id, bool old)
{
    struct td_radix_node *n = &t->nodes[id];
    struct td_radix_tier *own = &t->tier[n->tier];
    uint32_t after = own->last;

    if (old) {
        uint32_t before = own->first;

        while (before != TD_RADIX_NONE && t->nodes[before].used < n->used)
            before = t->nodes[before].next;
        after = before == TD_RADIX_NONE ? own->last : t->nodes[before].prev;
    } else {
        while (after != TD_RADIX_NONE && t->nodes[after].used > n->used)
            after = t->nodes[after].prev;
    }
    n->prev = after;
    n->next = after == TD_RADIX_NONE ? own->first : t->nodes[after].next;
    *(n->prev == TD_RADIX_NONE ? &own->first : &t->nodes[n->prev].next) = id;
    *(n->next == TD_RADIX_NONE ? &own->last : &t->nodes[n->next].prev) = id;
    n->is_listed = true;
}

/* After a change of its children. `old`: it was used long ago. */
static void relist(struct td_radix *t, uint32_t id, bool old)
{
    const struct td_radix_node *n = &t->nodes[id];
    bool is_leaf = true;

    for (uint32_t i = 0; i <= n->tier; i++)
        is_leaf = is_leaf && n->n_children[i] == 0;
    if (n->is_listed && !is_leaf)
        leaf_unlink(t, id);
    else if (!n->is_listed && is_leaf)
        leaf_link(t, id, old);
}

void td_radix_touch(struct td_radix *t, uint32_t id)
{
    struct td_radix_node *n = &t->nodes[id];

    n->used = t->clock;
    if (!n->is_listed)
        return;
    leaf_unlink(t, id);
    leaf_link(t, id, false);
}

/* ---- slots ---- */

static uint32_t tier_of_slot(const struct td_radix *t, uint32_t slot)
{
    return 1 + (slot >= t->tier[1].n_slots);
}

static void release_slot(struct td_radix *t, uint32_t slot)
{
    struct td_radix_tier *own = &t->tier[tier_of_slot(t, slot)];

    own->free_slots[own->n_free++] = slot;
}

/* ---- nodes ---- */

static uint32_t *bucket_of(const struct td_radix *t, uint64_t hash)
{
    return &t->bucket[hash & (t->n_buckets - 1)];
}

/* The child of `parent` (TD_RADIX_NONE: the first block of a sequence) that holds block i of `key`. */
uint32_t td_radix_child(const struct td_radix *t, uint32_t parent, const struct td_prefix_key *key,
                        uint32_t i)
{
    const uint32_t *ids = key->ids + (size_t)i * t->block_tokens;
    uint32_t id = *bucket_of(t, key->hashes[i]);

    for (; id != TD_RADIX_NONE; id = t->nodes[id].next_in_bucket) {
        const struct td_radix_node *n = &t->nodes[id];

        if (n->hash == key->hashes[i] && n->parent == parent && n->salt == key->salt &&
            memcmp(t->tokens + (size_t)id * t->block_tokens, ids, t->block_tokens * sizeof *ids) ==
                0)
            return id;
    }
    return TD_RADIX_NONE;
}

static void take_place(struct td_radix *t, uint32_t id, uint32_t tier, uint32_t place)
{
    struct td_radix_node *n = &t->nodes[id];

    n->tier = tier;
    n->place = place;
    if (tier != TD_RADIX_DEVICE) {
        t->node_of_slot[place] = id;
        return;
    }
    t->node_of_block[place] = id;
    td_blocks_ref(t->blocks, TD_RADIX_KIND, place);
}

static void leave_place(struct td_radix *t, uint32_t id)
{
    const struct td_radix_node *n = &t->nodes[id];

    if (n->tier != TD_RADIX_DEVICE) {
        t->node_of_slot[n->place] = TD_RADIX_NONE;
        release_slot(t, n->place);
        return;
    }
    t->node_of_block[n->place] = TD_RADIX_NONE;
    td_blocks_unref(t->blocks, TD_RADIX_KIND, n->place);
}

void td_radix_insert(struct td_radix *t, uint32_t block, uint32_t parent,
                     const struct td_prefix_key *key, uint32_t i, enum td_radix_state state)
{
    uint32_t *bucket = bucket_of(t, key->hashes[i]), id = t->free_nodes[--t->n_free];
    struct td_radix_node *up = parent == TD_RADIX_NONE ? NULL : &t->nodes[parent];

    assert(t->nodes[id].state == TD_RADIX_OUT && t->node_of_block[block] == TD_RADIX_NONE);
    t->nodes[id] = (struct td_radix_node){.hash = key->hashes[i],
                                          .salt = key->salt,
                                          .used = t->clock,
                                          .state = state,
                                          .source = TD_RADIX_NONE,
                                          .parent = parent,
                                          .first_child = TD_RADIX_NONE,
                                          .prev_sibling = TD_RADIX_NONE,
                                          .next_sibling = up ? up->first_child : TD_RADIX_NONE,
                                          .next_in_bucket = *bucket};
    *bucket = id;
    memcpy(t->tokens + (size_t)id * t->block_tokens, key->ids + (size_t)i * t->block_tokens,
           t->block_tokens * sizeof *t->tokens);
    take_place(t, id, TD_RADIX_DEVICE, block);
    if (up) {
        if (up->first_child != TD_RADIX_NONE)
            t->nodes[up->first_child].prev_sibling = id;
        up->first_child = id;
        up->n_children[TD_RADIX_DEVICE]++;
        relist(t, parent, false);
    }
    leaf_link(t, id, false);
}

/* Takes a node without children out of the tree; `old`: it was used long ago. */
static void remove_node(struct td_radix *t, uint32_t id, bool old)
{
    struct td_radix_node *n = &t->nodes[id];
    uint32_t *at = bucket_of(t, n->hash);

    assert(n->first_child == TD_RADIX_NONE && n->source == TD_RADIX_NONE);
    while (*at != id)
        at = &t->nodes[*at].next_in_bucket;
    *at = n->next_in_bucket;
    leaf_unlink(t, id);
    if (n->next_sibling != TD_RADIX_NONE)
        t->nodes[n->next_sibling].prev_sibling = n->prev_sibling;
    if (n->prev_sibling != TD_RADIX_NONE)
        t->nodes[n->prev_sibling].next_sibling = n->next_sibling;
    if (n->parent != TD_RADIX_NONE) {
        struct td_radix_node *up = &t->nodes[n->parent];

        up->first_child = up->first_child == id ? n->next_sibling : up->first_child;
        up->n_children[n->tier]--;
        relist(t, n->parent, old);
    }
    leave_place(t, id);
    n->state = TD_RADIX_OUT;
    t->free_nodes[t->n_free++] = id;
}

/* The same with all that is below it. */
static void remove_tree(struct td_radix *t, uint32_t id, bool old)
{
    for (uint32_t at = id;;) {
        uint32_t next = t->nodes[at].first_child;

        if (next == TD_RADIX_NONE) {
            next = at == id ? TD_RADIX_NONE : t->nodes[at].parent;
            remove_node(t, at, old);
        }
        if (next == TD_RADIX_NONE)
            return;
        at = next;
    }
}

/* Puts a node elsewhere; its old place is the caller's business. */
static void relocate(struct td_radix *t, uint32_t id, uint32_t tier, uint32_t place)
{
    struct td_radix_node *n = &t->nodes[id];

    if (n->tier != TD_RADIX_DEVICE)
        t->node_of_slot[n->place] = TD_RADIX_NONE;
    if (n->is_listed)
        leaf_unlink(t, id);
    if (n->parent != TD_RADIX_NONE) {
        t->nodes[n->parent].n_children[n->tier]--;
        t->nodes[n->parent].n_children[tier]++;
    }
    take_place(t, id, tier, place);
    relist(t, id, false);
    if (n->parent != TD_RADIX_NONE)
        relist(t, n->parent, true);
}

/* ---- blocks leave the device and come back ---- */

/* A free slot of this tier, or below it where it has none at all. If need be the least recently used node goes further down, or
 * away. TD_RADIX_NONE: all hold what is being read. */
static uint32_t take_slot(struct td_radix *t, uint32_t tier, struct td_step *step)
{
    struct td_radix_tier *own = &t->tier[tier];
    bool is_last = tier + 1 == TD_RADIX_TIERS;
    uint32_t id = own->first, lower;

    if (own->n_slots == 0)
        return is_last ? TD_RADIX_NONE : take_slot(t, tier + 1, step);
    if (own->n_free == 0 && id != TD_RADIX_NONE) {
        lower = is_last ? TD_RADIX_NONE : take_slot(t, tier + 1, step);
        if (lower == TD_RADIX_NONE) {
            remove_tree(t, id, true);
        } else {
            uint32_t slot = t->nodes[id].place;

            td_step_add_move(step, TD_MOVE_DOWN, slot, lower);
            relocate(t, id, tier + 1, lower);
            release_slot(t, slot);
        }
    }
    return own->n_free ? own->free_slots[--own->n_free] : TD_RADIX_NONE;
}

bool td_radix_evict(struct td_radix *t, struct td_step *step, bool save)
{
    uint32_t id = t->tier[TD_RADIX_DEVICE].first, slot = TD_RADIX_NONE, block;

    while (id != TD_RADIX_NONE && !td_blocks_is_idle(t->blocks, TD_RADIX_KIND, t->nodes[id].place))
        id = t->nodes[id].next;
    if (id == TD_RADIX_NONE)
        return false;
    /* One move for the block, one for who gives it the place. */
    if (save && step->n_moves + 2 <= TD_STEP_MAX_MOVES)
        slot = take_slot(t, TD_RADIX_DEVICE + 1, step);
    if (slot == TD_RADIX_NONE) {
        remove_tree(t, id, true);
        return true;
    }
    block = t->nodes[id].place;
    td_step_add_move(step, TD_MOVE_OUT, block, slot);
    leave_place(t, id);
    relocate(t, id, tier_of_slot(t, slot), slot);
    return true;
}

void td_radix_lose(struct td_radix *t, uint32_t slot)
{
    if (t->node_of_slot[slot] != TD_RADIX_NONE)
        remove_tree(t, t->node_of_slot[slot], true);
}

void td_radix_bring(struct td_radix *t, uint32_t id, uint32_t block, bool read)
{
    struct td_radix_node *n = &t->nodes[id];

    assert(n->tier != TD_RADIX_DEVICE && n->source == TD_RADIX_NONE);
    n->source = read ? n->place : TD_RADIX_NONE;
    if (!read)
        release_slot(t, n->place);
    n->state = TD_RADIX_PROMISED;
    n->used = t->clock;
    relocate(t, id, TD_RADIX_DEVICE, block);
}

/* The promise is not kept: what is still in its slot stays there, all else goes. */
void td_radix_take_back(struct td_radix *t, uint32_t id)
{
    struct td_radix_node *n = &t->nodes[id];
    uint32_t source = n->source;

    if (source == TD_RADIX_NONE) {
        remove_tree(t, id, false);
        return;
    }
    leave_place(t, id);
    n->source = TD_RADIX_NONE;
    n->state = TD_RADIX_READY;
    relocate(t, id, tier_of_slot(t, source), source);
}

void td_radix_drop_source(struct td_radix *t, uint32_t id)
{
    if (t->nodes[id].source != TD_RADIX_NONE)
        release_slot(t, t->nodes[id].source);
    t->nodes[id].source = TD_RADIX_NONE;
}

/* ---- for tests ---- */

static enum td_status check_node(const struct td_radix *t, uint32_t id, struct td_err *err)
{
    const struct td_radix_node *n = &t->nodes[id],
                               *up = n->parent == TD_RADIX_NONE ? NULL : &t->nodes[n->parent];
    uint32_t in_bucket = 0, n_children[TD_RADIX_TIERS] = {0}, n_linked = 0;
    bool is_leaf = true;

    for (uint32_t i = *bucket_of(t, n->hash); i != TD_RADIX_NONE; i = t->nodes[i].next_in_bucket)
        in_bucket += i == id;
    for (uint32_t i = 0; i < t->n_nodes; i++)
        if (t->nodes[i].state != TD_RADIX_OUT && t->nodes[i].parent == id)
            n_children[t->nodes[i].tier]++;
    for (uint32_t i = n->first_child; i != TD_RADIX_NONE; i = t->nodes[i].next_sibling)
        n_linked += t->nodes[i].parent == id;
    for (uint32_t i = 0; i <= n->tier; i++)
        is_leaf = is_leaf && n_children[i] == 0;
    if (in_bucket != 1 || memcmp(n_children, n->n_children, sizeof n_children) != 0 ||
        n_linked != n_children[0] + n_children[1] + n_children[2] || n->is_listed != is_leaf)
        return td_err_set(err, TD_INTERNAL,
                          "node %u is %u times in its bucket, has %u+%u+%u children, %u linked, %s",
                          id, in_bucket, n_children[0], n_children[1], n_children[2], n_linked,
                          n->is_listed ? "listed" : "not listed");
    if (up &&
        (up->state == TD_RADIX_OUT || up->salt != n->salt || up->tier > n->tier ||
         (n->state == TD_RADIX_READY && n->tier == TD_RADIX_DEVICE && up->state != TD_RADIX_READY)))
        return td_err_set(err, TD_INTERNAL, "node %u follows node %u, which is not filled", id,
                          n->parent);
    if (n->tier != TD_RADIX_DEVICE)
        return n->state == TD_RADIX_READY && n->source == TD_RADIX_NONE &&
                       tier_of_slot(t, n->place) == n->tier && t->node_of_slot[n->place] == id
                   ? TD_OK
                   : td_err_set(err, TD_INTERNAL, "node %u in slot %u is in state %d", id, n->place,
                                (int)n->state);
    if (t->node_of_block[n->place] != id ||
        (n->state == TD_RADIX_READY && n->source != TD_RADIX_NONE))
        return td_err_set(err, TD_INTERNAL, "node %u is not that of its block %u", id, n->place);
    if (up && td_blocks_is_idle(t->blocks, TD_RADIX_KIND, up->place) &&
        !td_blocks_is_idle(t->blocks, TD_RADIX_KIND, n->place))
        return td_err_set(err, TD_INTERNAL, "block %u is in use, block %u before it is not",
                          n->place, up->place);
    if (n->state == TD_RADIX_PROMISED && td_blocks_is_idle(t->blocks, TD_RADIX_KIND, n->place))
        return td_err_set(err, TD_INTERNAL, "block %u is promised by nobody", n->place);
    return TD_OK;
}

/* Every slot is free, holds a node, or is the source of one; once. */
static enum td_status check_slots(const struct td_radix *t, uint32_t tier, struct td_err *err)
{
    uint32_t n_used = 0;

    for (uint32_t id = 0; id < t->n_nodes; id++) {
        const struct td_radix_node *n = &t->nodes[id];
        uint32_t slot = n->tier == TD_RADIX_DEVICE ? n->source : n->place;

        n_used +=
            n->state != TD_RADIX_OUT && slot != TD_RADIX_NONE && tier_of_slot(t, slot) == tier;
    }
    if (n_used + t->tier[tier].n_free != t->tier[tier].n_slots)
        return td_err_set(err, TD_INTERNAL, "%u slots of tier %u are in use and %u free, of %u",
                          n_used, tier, t->tier[tier].n_free, t->tier[tier].n_slots);
    return TD_OK;
}

static enum td_status check_leaves(const struct td_radix *t, uint32_t tier, uint32_t n_leaves,
                                   struct td_err *err)
{
    uint32_t listed = 0;

    for (uint32_t id = t->tier[tier].first; id != TD_RADIX_NONE; id = t->nodes[id].next) {
        uint32_t next = t->nodes[id].next;

        listed++;
        if (t->nodes[id].tier != tier ||
            (next != TD_RADIX_NONE &&
             (t->nodes[next].prev != id || t->nodes[next].used < t->nodes[id].used)))
            return td_err_set(err, TD_INTERNAL, "node %u is at a wrong place among the leaves", id);
    }
    if (listed != n_leaves)
        return td_err_set(err, TD_INTERNAL, "%u leaves of tier %u are listed, %u exist", listed,
                          tier, n_leaves);
    return tier == TD_RADIX_DEVICE ? TD_OK : check_slots(t, tier, err);
}

enum td_status td_radix_check(const struct td_radix *t, struct td_err *err)
{
    uint32_t n = 0, n_leaves[TD_RADIX_TIERS] = {0}, idle = 0;
    enum td_status st = TD_OK;

    for (uint32_t id = 0; id < t->n_nodes && !st; id++) {
        const struct td_radix_node *node = &t->nodes[id];

        if (node->state == TD_RADIX_OUT)
            continue;
        n++;
        n_leaves[node->tier] += node->is_listed;
        idle += node->tier == TD_RADIX_DEVICE &&
                td_blocks_is_idle(t->blocks, TD_RADIX_KIND, node->place);
        st = check_node(t, id, err);
    }
    for (uint32_t i = 0; i < TD_RADIX_TIERS && !st; i++)
        st = check_leaves(t, i, n_leaves[i], err);
    if (!st && (n != t->n_nodes - t->n_free || idle != td_blocks_n_idle(t->blocks, TD_RADIX_KIND)))
        st =
            td_err_set(err, TD_INTERNAL, "%u nodes of %u, %u idle blocks of %u",
                       t->n_nodes - t->n_free, n, idle, td_blocks_n_idle(t->blocks, TD_RADIX_KIND));
    return st;
}
