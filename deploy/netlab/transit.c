#include "deploy/netlab/transit.h"

#include <stdlib.h>
#include <string.h>

struct td_transit {
    struct td_transit_rules rules;
    struct td_frame **heap; /* the least (due_ns, number) first */
    size_t n, cap;
    uint64_t n_added;
    uint64_t random;                                          /* state of the generator */
    uint64_t last_due_ns[TD_TRANSIT_PORTS][TD_TRANSIT_PORTS]; /* [from][to] of the last frame */
    uint64_t free_at_ns[TD_TRANSIT_PORTS];                    /* when a port has taken what waits */
    size_t held_bytes[TD_TRANSIT_PORTS];
    size_t all_bytes;
    struct td_transit_count counts[TD_TRANSIT_PORTS];
};

enum td_status td_transit_open(uint64_t seed, struct td_transit **transit, struct td_err *err)
{
    struct td_transit *t = calloc(1, sizeof *t);

    if (!t)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a switch");
    t->random = seed;
    *transit = t;
    return TD_OK;
}

void td_transit_close(struct td_transit *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n; i++)
        free(t->heap[i]);
    free(t->heap);
    free(t);
}

/* ---- Numbers ---- */

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t draw(struct td_transit *t)
{
    uint64_t z = t->random += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static bool draw_loss(struct td_transit *t, uint32_t loss_ppm)
{
    return loss_ppm > 0 && (draw(t) >> 32) * 1000000 >> 32 < loss_ppm;
}

/* How long so many bytes take at that rate, rounded up. Both are small enough: 64 MiB, 1 bit/s. */
static uint64_t wire_ns(size_t bytes, uint64_t rate_bps)
{
    uint64_t bits = (uint64_t)bytes * 8;

    return bits / rate_bps * 1000000000u +
           ((bits % rate_bps) * 1000000000u + rate_bps - 1) / rate_bps;
}

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* ---- The heap ---- */

static bool is_before(const struct td_frame *a, const struct td_frame *b)
{
    return a->due_ns != b->due_ns ? a->due_ns < b->due_ns : a->number < b->number;
}

static void sift_up(struct td_transit *t, size_t at)
{
    struct td_frame *f = t->heap[at];

    for (; at > 0 && is_before(f, t->heap[(at - 1) / 2]); at = (at - 1) / 2)
        t->heap[at] = t->heap[(at - 1) / 2];
    t->heap[at] = f;
}

static void sift_down(struct td_transit *t, size_t at)
{
    struct td_frame *f = t->heap[at];

    for (size_t next; (next = 2 * at + 1) < t->n; at = next) {
        if (next + 1 < t->n && is_before(t->heap[next + 1], t->heap[next]))
            next++;
        if (!is_before(t->heap[next], f))
            break;
        t->heap[at] = t->heap[next];
    }
    t->heap[at] = f;
}

static bool make_room(struct td_transit *t)
{
    size_t cap = t->cap ? 2 * t->cap : 256;
    struct td_frame **grown;

    if (t->n < t->cap)
        return true;
    grown = realloc(t->heap, cap * sizeof *grown);
    if (!grown)
        return false;
    t->heap = grown;
    t->cap = cap;
    return true;
}

static size_t footprint(const struct td_frame *f)
{
    return sizeof *f + f->len;
}

static void forget(struct td_transit *t, const struct td_frame *f)
{
    t->held_bytes[f->to] -= footprint(f);
    t->all_bytes -= footprint(f);
}

/* ---- Rules ---- */

/* A frame that came in now would be due no later than that. */
static uint64_t latest_due(const struct td_transit *t, size_t from, size_t to, uint64_t now_ns)
{
    const struct td_transit_link *link = &t->rules.links[from][to];

    return max_u64(now_ns, t->free_at_ns[to]) + link->delay_ns + link->jitter_ns;
}

void td_transit_set_rules(struct td_transit *t, const struct td_transit_rules *rules,
                          uint64_t now_ns)
{
    size_t kept = 0;

    if (rules->rate_bps != t->rules.rate_bps)
        memset(t->free_at_ns, 0, sizeof t->free_at_ns);
    t->rules = *rules;
    for (size_t i = 0; i < t->n; i++) {
        struct td_frame *f = t->heap[i];

        if (rules->links[f->from][f->to].blocked) {
            t->counts[f->to].blocked++;
            forget(t, f);
            free(f);
            continue;
        }
        f->due_ns = min_u64(f->due_ns, latest_due(t, f->from, f->to, now_ns));
        t->heap[kept++] = f;
    }
    t->n = kept;
    for (size_t i = kept / 2; i-- > 0;)
        sift_down(t, i);
    for (size_t from = 0; from < TD_TRANSIT_PORTS; from++)
        for (size_t to = 0; to < TD_TRANSIT_PORTS; to++)
            t->last_due_ns[from][to] =
                min_u64(t->last_due_ns[from][to], latest_due(t, from, to, now_ns));
}

/* ---- Frames ---- */

/* Whether a frame fits into what waits for the port and into what is held. */
static bool fits(const struct td_transit *t, uint32_t to, size_t bytes, uint64_t wait_ns)
{
    return bytes <= TD_TRANSIT_PORT_BYTES - t->held_bytes[to] &&
           bytes <= TD_TRANSIT_ALL_BYTES - t->all_bytes &&
           (t->rules.rate_bps == 0 ||
            wait_ns <= wire_ns(TD_TRANSIT_QUEUE_BYTES, t->rules.rate_bps));
}

void td_transit_add(struct td_transit *t, uint32_t from, uint32_t to, const void *data, size_t len,
                    size_t wire_bytes, uint64_t at_ns)
{
    const struct td_transit_link *link = &t->rules.links[from][to];
    struct td_transit_count *count = &t->counts[to];
    uint64_t start_ns = max_u64(at_ns, t->free_at_ns[to]), sent_ns = at_ns;
    struct td_frame *f;

    if (link->blocked) {
        count->blocked++;
        return;
    }
    if (draw_loss(t, link->loss_ppm)) {
        count->lost++;
        return;
    }
    if (!fits(t, to, sizeof *f + len, start_ns - at_ns) || !make_room(t) ||
        !(f = malloc(sizeof *f + len))) {
        count->full++;
        return;
    }
    if (t->rules.rate_bps > 0)
        t->free_at_ns[to] = sent_ns = start_ns + wire_ns(wire_bytes, t->rules.rate_bps);
    *f = (struct td_frame){.number = t->n_added++, .from = from, .to = to, .len = len};
    memcpy(f->data, data, len);
    f->due_ns = sent_ns + link->delay_ns;
    if (link->jitter_ns > 0)
        f->due_ns += draw(t) % (link->jitter_ns + 1);
    f->due_ns = t->last_due_ns[from][to] = max_u64(f->due_ns, t->last_due_ns[from][to]);
    t->held_bytes[to] += footprint(f);
    t->all_bytes += footprint(f);
    t->heap[t->n++] = f;
    sift_up(t, t->n - 1);
}

uint64_t td_transit_next_ns(const struct td_transit *t)
{
    return t->n > 0 ? t->heap[0]->due_ns : UINT64_MAX;
}

struct td_frame *td_transit_take(struct td_transit *t, uint64_t now_ns)
{
    struct td_frame *first;

    if (td_transit_next_ns(t) > now_ns)
        return NULL;
    first = t->heap[0];
    t->heap[0] = t->heap[--t->n];
    if (t->n > 0)
        sift_down(t, 0);
    forget(t, first);
    t->counts[first->to].passed++;
    return first;
}

const struct td_transit_count *td_transit_count(const struct td_transit *t, uint32_t to)
{
    return &t->counts[to];
}

size_t td_transit_held_bytes(const struct td_transit *t)
{
    return t->all_bytes;
}
