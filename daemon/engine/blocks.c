#include "daemon/engine/blocks.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct pool {
    uint32_t n_total;
    uint32_t n_free;
    uint32_t n_idle;
    uint32_t table_cap; /* of one sequence */
    uint32_t *
        free_ids; /* owned [n_total], a stack; the top n_free entries' order is the order of reuse */
    uint32_t *refs;    /* owned [n_total] */
    uint32_t *outside; /* owned [n_total]; of `refs`, those that no sequence holds */
    uint32_t *table;   /* owned [max_seqs x table_cap] */
    uint32_t *n_held;  /* owned [max_seqs] */
};

struct td_blocks {
    struct td_blocks_params params;
    struct pool pool[TD_BLOCKS_N_KINDS];
};

static const char *const kind_names[TD_BLOCKS_N_KINDS] = {
    [TD_LAYER_ATTENTION] = "attention KV blocks",
    [TD_LAYER_WINDOW] = "a sliding-window ring",
    [TD_LAYER_LATENT] = "latent (MLA) rows",
    [TD_LAYER_RECURRENT] = "a recurrent state",
};

static bool is_paged(uint32_t kind)
{
    return kind == TD_LAYER_ATTENTION || kind == TD_LAYER_LATENT;
}

uint32_t td_blocks_for_tokens(const struct td_blocks *b, uint32_t n_tokens)
{
    return n_tokens / b->params.block_tokens + (n_tokens % b->params.block_tokens != 0);
}

static uint32_t needed(const struct td_blocks *b, uint32_t kind, uint32_t n_tokens)
{
    if (b->pool[kind].n_total == 0)
        return 0;
    return is_paged(kind) ? td_blocks_for_tokens(b, n_tokens) : 1;
}

static bool open_pool(struct pool *p, uint32_t max_seqs)
{
    p->free_ids = calloc(p->n_total, sizeof(*p->free_ids));
    p->refs = calloc(p->n_total, sizeof(*p->refs));
    p->outside = calloc(p->n_total, sizeof(*p->outside));
    p->table = calloc((size_t)max_seqs * p->table_cap, sizeof(*p->table));
    p->n_held = calloc(max_seqs, sizeof(*p->n_held));
    if (!p->free_ids || !p->refs || !p->outside || !p->table || !p->n_held)
        return false;
    for (uint32_t i = 0; i < p->n_total; i++)
        p->free_ids[i] = p->n_total - 1 - i; /* low ids first */
    p->n_free = p->n_total;
    return true;
}

enum td_status td_blocks_open(const struct td_blocks_params *params, struct td_blocks **out,
                              struct td_err *err)
{
    struct td_blocks *b;

    if (params->block_tokens == 0 || params->max_seqs == 0 || params->max_tokens_per_seq == 0)
        return td_err_set(err, TD_INVALID,
                          "block size %u tokens, %u sequences of %u tokens: expected all above 0",
                          params->block_tokens, params->max_seqs, params->max_tokens_per_seq);
    b = calloc(1, sizeof(*b));
    if (!b)
        goto no_memory;
    b->params = *params;
    for (uint32_t k = 0; k < TD_BLOCKS_N_KINDS; k++) {
        struct pool *p = &b->pool[k];
        uint32_t need;

        p->n_total = params->pool[k];
        if (p->n_total == 0)
            continue;
        need = p->table_cap = needed(b, k, params->max_tokens_per_seq);
        if (need > p->n_total) {
            td_err_set(err, TD_INVALID,
                       "the cache has %u blocks of %u tokens, one sequence of %u tokens needs %u",
                       p->n_total, params->block_tokens, params->max_tokens_per_seq, need);
            td_blocks_close(b);
            return TD_INVALID;
        }
        if (!open_pool(p, params->max_seqs))
            goto no_memory;
    }
    *out = b;
    return TD_OK;

no_memory:
    td_blocks_close(b);
    return td_err_set(err, TD_NO_MEMORY, "no memory for the tables of %u sequences",
                      params->max_seqs);
}

void td_blocks_close(struct td_blocks *b)
{
    if (!b)
        return;
    for (uint32_t k = 0; k < TD_BLOCKS_N_KINDS; k++) {
        free(b->pool[k].free_ids);
        free(b->pool[k].refs);
        free(b->pool[k].outside);
        free(b->pool[k].table);
        free(b->pool[k].n_held);
    }
    free(b);
}

enum td_status td_blocks_admit_model(const struct td_blocks *b, const enum td_layer_kind *kinds,
                                     uint32_t n_layers, struct td_err *err)
{
    for (uint32_t i = 0; i < n_layers; i++) {
        uint32_t k = (uint32_t)kinds[i];

        if (k >= TD_BLOCKS_N_KINDS)
            return td_err_set(err, TD_UNSUPPORTED, "layer %u has memory kind %u, expected 0 to %d",
                              i, k, TD_BLOCKS_N_KINDS - 1);
        if (b->pool[k].n_total == 0)
            return td_err_set(err, TD_UNSUPPORTED,
                              "layer %u needs %s, and there is no memory of that kind", i,
                              kind_names[k]);
    }
    return TD_OK;
}

static uint32_t *table_of(const struct pool *p, uint32_t seq)
{
    return p->table + (size_t)seq * p->table_cap;
}

bool td_blocks_reserve(struct td_blocks *b, uint32_t seq, uint32_t n_tokens)
{
    assert(seq < b->params.max_seqs && n_tokens <= b->params.max_tokens_per_seq);
    for (uint32_t k = 0; k < TD_BLOCKS_N_KINDS; k++) {
        uint32_t need = needed(b, k, n_tokens);

        if (need > 0 && need > b->pool[k].n_held[seq] + b->pool[k].n_free)
            return false;
    }
    for (uint32_t k = 0; k < TD_BLOCKS_N_KINDS; k++) {
        struct pool *p = &b->pool[k];
        uint32_t need = needed(b, k, n_tokens);

        while (need > 0 && p->n_held[seq] < need) {
            uint32_t id = p->free_ids[--p->n_free];

            assert(p->refs[id] == 0);
            p->refs[id] = 1;
            table_of(p, seq)[p->n_held[seq]++] = id;
        }
    }
    return true;
}

uint32_t td_blocks_n_short(const struct td_blocks *b, uint32_t seq, uint32_t n_tokens)
{
    const struct pool *p = &b->pool[TD_LAYER_ATTENTION];
    uint32_t have = p->n_held[seq] + p->n_free, need = needed(b, TD_LAYER_ATTENTION, n_tokens);

    return need > have ? need - have : 0;
}

static bool is_idle(const struct pool *p, uint32_t id)
{
    return p->refs[id] > 0 && p->refs[id] == p->outside[id];
}

/* A reference of a sequence comes or goes. */
static void take(struct pool *p, uint32_t id)
{
    assert(id < p->n_total && p->refs[id] > 0);
    p->n_idle -= is_idle(p, id);
    p->refs[id]++;
}

static void drop(struct pool *p, uint32_t id)
{
    assert(id < p->n_total && p->refs[id] > p->outside[id]);
    p->refs[id]--;
    p->n_idle += is_idle(p, id);
    if (p->refs[id] == 0)
        p->free_ids[p->n_free++] = id;
}

void td_blocks_adopt(struct td_blocks *b, enum td_layer_kind kind, uint32_t seq, uint32_t id)
{
    struct pool *p = &b->pool[kind];

    assert(seq < b->params.max_seqs && p->n_held[seq] < p->table_cap);
    take(p, id);
    table_of(p, seq)[p->n_held[seq]++] = id;
}

void td_blocks_replace(struct td_blocks *b, enum td_layer_kind kind, uint32_t seq, uint32_t i,
                       uint32_t id)
{
    struct pool *p = &b->pool[kind];
    uint32_t old = table_of(p, seq)[i];

    assert(seq < b->params.max_seqs && i < p->n_held[seq]);
    take(p, id);
    table_of(p, seq)[i] = id;
    drop(p, old);
}

void td_blocks_release(struct td_blocks *b, uint32_t seq)
{
    assert(seq < b->params.max_seqs);
    for (uint32_t k = 0; k < TD_BLOCKS_N_KINDS; k++) {
        struct pool *p = &b->pool[k];

        while (p->n_total > 0 && p->n_held[seq] > 0)
            drop(p, table_of(p, seq)[--p->n_held[seq]]);
    }
}

void td_blocks_ref(struct td_blocks *b, enum td_layer_kind kind, uint32_t id)
{
    struct pool *p = &b->pool[kind];

    assert(id < p->n_total && p->refs[id] > 0);
    p->refs[id]++;
    p->outside[id]++; /* who was idle stays so, who was not too */
}

void td_blocks_unref(struct td_blocks *b, enum td_layer_kind kind, uint32_t id)
{
    struct pool *p = &b->pool[kind];

    assert(id < p->n_total && p->outside[id] > 0);
    p->n_idle -= is_idle(p, id);
    p->outside[id]--;
    p->refs[id]--;
    p->n_idle += is_idle(p, id);
    if (p->refs[id] == 0)
        p->free_ids[p->n_free++] = id;
}

const uint32_t *td_blocks_table(const struct td_blocks *b, enum td_layer_kind kind, uint32_t seq,
                                uint32_t *n_blocks)
{
    const struct pool *p = &b->pool[kind];

    assert(seq < b->params.max_seqs);
    *n_blocks = p->n_total ? p->n_held[seq] : 0;
    return p->n_total ? table_of(p, seq) : NULL;
}

uint32_t td_blocks_state_slot(const struct td_blocks *b, uint32_t seq)
{
    static const enum td_layer_kind kinds[2] = {TD_LAYER_RECURRENT, TD_LAYER_WINDOW};

    for (int i = 0; i < 2; i++) {
        const struct pool *p = &b->pool[kinds[i]];

        if (p->n_total > 0 && p->n_held[seq] > 0)
            return table_of(p, seq)[0];
    }
    return UINT32_MAX;
}

uint32_t td_blocks_n_free(const struct td_blocks *b, enum td_layer_kind kind)
{
    return b->pool[kind].n_free;
}

uint32_t td_blocks_n_idle(const struct td_blocks *b, enum td_layer_kind kind)
{
    return b->pool[kind].n_idle;
}

bool td_blocks_is_idle(const struct td_blocks *b, enum td_layer_kind kind, uint32_t id)
{
    return is_idle(&b->pool[kind], id);
}

uint32_t td_blocks_n_total(const struct td_blocks *b, enum td_layer_kind kind)
{
    return b->pool[kind].n_total;
}

bool td_blocks_fits(const struct td_blocks *b, uint32_t n_tokens, uint32_t spare, uint32_t n_more)
{
    for (uint32_t k = 0; k < TD_BLOCKS_N_KINDS; k++) {
        uint64_t need = needed(b, k, n_tokens);

        if (need > 0 && is_paged(k))
            need += spare;
        if (need > b->pool[k].n_free + (k == TD_LAYER_ATTENTION ? (uint64_t)n_more : 0))
            return false;
    }
    return true;
}

static enum td_status check_pool(const struct td_blocks *b, const struct pool *p, uint32_t *count,
                                 struct td_err *err)
{
    uint32_t n_idle = 0;

    for (uint32_t i = 0; i < p->n_total; i++) {
        count[i] = p->outside[i];
        n_idle += is_idle(p, i);
    }
    for (uint32_t seq = 0; seq < b->params.max_seqs; seq++)
        for (uint32_t i = 0; i < p->n_held[seq]; i++)
            count[table_of(p, seq)[i]]++;
    if (n_idle != p->n_idle)
        return td_err_set(err, TD_INTERNAL, "%u idle blocks are counted, %u exist", p->n_idle,
                          n_idle);
    for (uint32_t i = 0; i < p->n_total; i++)
        if (count[i] != p->refs[i])
            return td_err_set(err, TD_INTERNAL, "block %u counts %u references, %u exist", i,
                              p->refs[i], count[i]);
    for (uint32_t i = 0; i < p->n_free; i++)
        if (count[p->free_ids[i]]++ != 0)
            return td_err_set(err, TD_INTERNAL, "block %u is free and also in use or free twice",
                              p->free_ids[i]);
    for (uint32_t i = 0; i < p->n_total; i++)
        if (count[i] == 0)
            return td_err_set(err, TD_INTERNAL, "block %u has no reference and is not free", i);
    return TD_OK;
}

enum td_status td_blocks_check(const struct td_blocks *b, struct td_err *err)
{
    for (uint32_t k = 0; k < TD_BLOCKS_N_KINDS; k++) {
        const struct pool *p = &b->pool[k];
        uint32_t *count;
        enum td_status st;

        if (p->n_total == 0)
            continue;
        count = calloc(p->n_total, sizeof(*count));
        if (!count)
            return td_err_set(err, TD_NO_MEMORY, "no memory to check %u blocks", p->n_total);
        st = check_pool(b, p, count, err);
        free(count);
        if (st)
            return st;
    }
    return TD_OK;
}
