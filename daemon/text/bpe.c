#include "daemon/text/bpe.h"

#include "daemon/text/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NO_ID = -1 };

/* A node of the doubly linked list over the pre-token. A symbol joined into its left neighbour has len 0. */
struct td_bpe_symbol {
    uint32_t at, len; /* bytes of the pre-token */
    int32_t prev, next;
    int32_t id; /* NO_ID: this text is no token */
};

/* A pair that may be joined. It is stale when its two symbols do not span `len` bytes any more: a symbol only grows,
 * and only by taking a whole neighbour, so equal length means an unchanged pair. */
struct td_bpe_entry {
    uint64_t order; /* priority << 32 | index of the left symbol: leftmost first among equals */
    uint32_t id;    /* of the joined token */
    uint32_t len;
};

static size_t merge_slot(const struct td_bpe *b, uint64_t pair)
{
    size_t i = (size_t)((pair * 0x9E3779B97F4A7C15U) >> 20) & (b->n_merge_slots - 1);

    while (b->merges[i].pair != UINT64_MAX && b->merges[i].pair != pair)
        i = (i + 1) & (b->n_merge_slots - 1);
    return i;
}

enum td_status td_bpe_init_merges(struct td_bpe *b, size_t n_merges, struct td_err *err)
{
    size_t n_slots = 16;

    while (n_slots < n_merges * 2)
        n_slots *= 2;
    b->merges = malloc(n_slots * sizeof *b->merges);
    if (!b->merges)
        return td_err_set(err, TD_NO_MEMORY, "no memory for %zu merge rules", n_merges);
    b->n_merge_slots = n_slots;
    for (size_t i = 0; i < n_slots; i++)
        b->merges[i].pair = UINT64_MAX;
    return TD_OK;
}

void td_bpe_add_merge(struct td_bpe *b, uint32_t left, uint32_t right, uint32_t rank, uint32_t id)
{
    uint64_t pair = (uint64_t)left << 32 | right;

    b->merges[merge_slot(b, pair)] = (struct td_bpe_merge){pair, rank, id};
}

enum td_status td_bpe_init_scores(struct td_bpe *b, const float *scores, struct td_err *err)
{
    b->priority = malloc(((size_t)b->vocab->n + 1) * sizeof *b->priority);
    if (!b->priority)
        return td_err_set(err, TD_NO_MEMORY, "no memory for %u scores", b->vocab->n);
    for (uint32_t id = 0; id < b->vocab->n; id++) {
        float score = scores[id] + 0.0F; /* turns -0 into 0 */
        uint32_t bits;

        if (isnan(score))
            return td_err_set(err, TD_CORRUPT, "the score of token %u is not a number", id);
        memcpy(&bits, &score, sizeof bits);
        /* Orders IEEE floats as integers, then turns them round: the highest score is lowest. */
        bits = bits & 0x80000000U ? bits : ~(bits | 0x80000000U);
        b->priority[id] = bits;
    }
    return TD_OK;
}

void td_bpe_deinit(struct td_bpe *b)
{
    free(b->priority);
    free(b->merges);
    b->priority = NULL;
    b->merges = NULL;
}

void td_bpe_work_deinit(struct td_bpe_work *work)
{
    free(work->heap);
    free(work->symbols);
    *work = (struct td_bpe_work){0};
}

static enum td_status reserve(struct td_bpe_work *w, size_t n_symbols)
{
    if (n_symbols > w->symbols_cap) {
        size_t cap = n_symbols + n_symbols / 2 + 64;
        struct td_bpe_symbol *symbols = realloc(w->symbols, cap * sizeof *symbols);

        if (!symbols)
            return TD_NO_MEMORY;
        w->symbols = symbols;
        w->symbols_cap = cap;
    }
    /* n - 1 pairs at first; each of at most n - 1 joins takes one out and puts at most two in. */
    if (n_symbols * 2 > w->heap_cap) {
        size_t cap = n_symbols * 3 + 64;
        struct td_bpe_entry *heap = realloc(w->heap, cap * sizeof *heap);

        if (!heap)
            return TD_NO_MEMORY;
        w->heap = heap;
        w->heap_cap = cap;
    }
    return TD_OK;
}

static void heap_push(struct td_bpe_work *w, struct td_bpe_entry e)
{
    size_t i = w->heap_len++;

    while (i > 0 && w->heap[(i - 1) / 2].order > e.order) {
        w->heap[i] = w->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    w->heap[i] = e;
}

static struct td_bpe_entry heap_pop(struct td_bpe_work *w)
{
    struct td_bpe_entry top = w->heap[0], last = w->heap[--w->heap_len];
    size_t i = 0;

    for (;;) {
        size_t child = 2 * i + 1;

        if (child >= w->heap_len)
            break;
        if (child + 1 < w->heap_len && w->heap[child + 1].order < w->heap[child].order)
            child++;
        if (w->heap[child].order >= last.order)
            break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return top;
}

/* Puts the pair (l, its right neighbour) into the heap if it may be joined. */
static void offer(const struct td_bpe *b, const char *text, struct td_bpe_work *w, int32_t l)
{
    const struct td_bpe_symbol *left, *right;
    struct td_bpe_entry e;
    uint32_t priority;

    if (l < 0 || w->symbols[l].next < 0)
        return;
    left = &w->symbols[l];
    right = &w->symbols[left->next];
    e.len = left->len + right->len;
    if (b->priority) {
        int64_t id = td_vocab_find(b->vocab, (struct td_str){text + left->at, e.len});

        if (id < 0)
            return;
        e.id = (uint32_t)id;
        priority = b->priority[id];
    } else {
        const struct td_bpe_merge *m;

        if (left->id < 0 || right->id < 0)
            return;
        m = &b->merges[merge_slot(b, (uint64_t)left->id << 32 | (uint32_t)right->id)];
        if (m->pair == UINT64_MAX)
            return;
        e.id = m->id;
        priority = m->rank;
    }
    e.order = (uint64_t)priority << 32 | (uint32_t)l;
    heap_push(w, e);
}

static void join_all(const struct td_bpe *b, const char *text, struct td_bpe_work *w, int32_t n)
{
    w->heap_len = 0;
    for (int32_t i = 0; i + 1 < n; i++)
        offer(b, text, w, i);
    while (w->heap_len) {
        struct td_bpe_entry e = heap_pop(w);
        int32_t l = (int32_t)(e.order & 0x7FFFFFFF);
        struct td_bpe_symbol *left = &w->symbols[l], *right;

        if (left->len == 0 || left->next < 0)
            continue;
        right = &w->symbols[left->next];
        if (left->len + right->len != e.len)
            continue;
        left->id = (int32_t)e.id;
        left->len = e.len;
        left->next = right->next;
        right->len = 0;
        if (left->next >= 0)
            w->symbols[left->next].prev = l;
        offer(b, text, w, left->prev);
        offer(b, text, w, l);
    }
}

/* A symbol that is no token: its bytes' tokens when all have one, else the unknown token. */
static enum td_status emit_unknown(const struct td_bpe *b, struct td_str text, bool *in_unknown,
                                   struct td_ids *out)
{
    bool bytes = true;

    for (size_t i = 0; i < text.len; i++)
        bytes = bytes && b->byte_ids[(unsigned char)text.ptr[i]] >= 0;
    if (bytes) {
        *in_unknown = false;
        for (size_t i = 0; i < text.len; i++)
            if (td_ids_append(out, (uint32_t)b->byte_ids[(unsigned char)text.ptr[i]]))
                return TD_NO_MEMORY;
        return TD_OK;
    }
    if (b->unknown_id < 0 || (*in_unknown && b->fuse_unknown))
        return TD_OK;
    *in_unknown = true;
    return td_ids_append(out, (uint32_t)b->unknown_id);
}

enum td_status td_bpe_encode(const struct td_bpe *b, struct td_str word, struct td_bpe_work *work,
                             struct td_ids *out)
{
    bool in_unknown = false;
    size_t at = 0;
    int32_t n = 0;

    if (b->whole_first) {
        int64_t id = td_vocab_find(b->vocab, word);

        if (id >= 0)
            return td_ids_append(out, (uint32_t)id);
    }
    if (reserve(work, word.len))
        return TD_NO_MEMORY;
    while (at < word.len) {
        struct td_str rest = {word.ptr + at, word.len - at};
        size_t len = 1;
        uint32_t cp;

        if (!b->byte_level)
            td_utf8_decode(rest, &cp, &len);
        rest.len = len;
        work->symbols[n] = (struct td_bpe_symbol){
            .at = (uint32_t)at,
            .len = (uint32_t)len,
            .prev = n - 1,
            .next = n + 1,
            .id = (int32_t)(b->byte_level ? b->byte_ids[(unsigned char)*rest.ptr]
                                          : td_vocab_find(b->vocab, rest)),
        };
        at += len;
        n++;
    }
    if (n == 0)
        return TD_OK;
    work->symbols[n - 1].next = -1;
    join_all(b, word.ptr, work, n);
    for (int32_t i = 0; i >= 0; i = work->symbols[i].next) {
        const struct td_bpe_symbol *s = &work->symbols[i];
        struct td_str text = {word.ptr + s->at, s->len};

        if (s->id != NO_ID) {
            in_unknown = false;
            if (td_ids_append(out, (uint32_t)s->id))
                return TD_NO_MEMORY;
        } else if (emit_unknown(b, text, &in_unknown, out)) {
            return TD_NO_MEMORY;
        }
    }
    return TD_OK;
}
