#include "comm/shm.h"

#include <linux/futex.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    LINE = 64,
    PAGE = 4096,
    MAX_RING_BYTES = 64 * 1024,
    MIN_RING_BYTES = 8 * 1024,
    ALL_RINGS_BYTES = 4 * 1024 * 1024,
    UNIT = 16,         /* messages begin and end on multiples of it */
    CHUNK = 16 * 1024, /* of a long message: the reader begins while the writer goes on */
    BLIND_SLEEP_NS =
        1000000 /* longest sleep on a kernel without that barrier, where a ring may be missed */
};

/* "Publish, then look who sleeps" and "say that I sleep, then look what is published" must not miss each other. Who publishes
 * is in a hurry and has no barrier between the two; who goes to sleep has one for all processes (membarrier). */
struct head {
    _Alignas(LINE) atomic_uint bell; /* futex: counts rings */
    atomic_uint asleep;
    _Alignas(LINE) atomic_uint gone;
    atomic_int pid; /* 0: not a process of its own */
};

struct ring {
    _Alignas(LINE) _Atomic uint64_t written; /* bytes, by the sender */
    _Alignas(LINE) _Atomic uint64_t taken;   /* bytes, by the owner of the segment */
    _Alignas(LINE) char data[];              /* [ring_bytes] */
};

/* Stands before every message in a ring. */
struct header {
    uint32_t tag;
    uint32_t zero;
    uint64_t bytes;
};
_Static_assert(sizeof(struct header) == UNIT, "a header is one unit");

/* A message that came before it was asked for, because its sender and this rank use two groups in another order. */
struct early {
    struct early *next;
    uint32_t tag;
    bool complete;
    size_t bytes;
    char data[];
};

/* What this end knows of one other member. */
struct peer {
    struct head *head;
    struct ring *to;              /* in the other's segment */
    struct ring *from;            /* in this rank's */
    uint64_t written, taken_seen; /* of `to` */
    uint64_t taken, written_seen; /* of `from` */
    /* The message that is coming in. */
    bool under_way;
    char *dst;
    size_t left;
    struct td_comm_xfer *xfer; /* that it is for; NULL: `early` */
    struct early *early;
    struct early *first_early;
    bool sends; /* in the look under way: an earlier message to it is not through yet */
    int pidfd;  /* -1: not watched */
};

/* The group that uses a place, or used it last. */
struct use {
    uint64_t first_count;
    uint32_t n;
    uint32_t *members; /* [n] */
};

struct td_shm {
    uint32_t n, me;
    uint32_t free_places;
    struct use uses[TD_SHM_PLACES];
    uint32_t *words; /* that uses[].members point to */
    size_t ring_bytes;
    bool has_barrier;
    char *const *segments; /* [n] */
    struct peer *peers;    /* [n] */
};

static long membarrier(int command)
{
    return syscall(SYS_membarrier, command, 0, 0);
}

static size_t ring_bytes_of(uint32_t n)
{
    size_t bytes = MAX_RING_BYTES;

    while (bytes > MIN_RING_BYTES && bytes * n > ALL_RINGS_BYTES)
        bytes /= 2;
    return bytes;
}

static size_t places_at(uint32_t n)
{
    size_t bytes = sizeof(struct head) + n * (sizeof(struct ring) + ring_bytes_of(n));

    return (bytes + PAGE - 1) / PAGE * PAGE;
}

size_t td_shm_segment_bytes(uint32_t n)
{
    return places_at(n) + TD_SHM_PLACES * sizeof(struct td_shm_place);
}

static struct ring *ring_at(const struct td_shm *shm, uint32_t owner, uint32_t from)
{
    return (struct ring *)(shm->segments[owner] + sizeof(struct head) +
                           from * (sizeof(struct ring) + shm->ring_bytes));
}

struct td_shm_place *td_shm_place_of(const struct td_shm *shm, uint32_t place, uint32_t member)
{
    return (struct td_shm_place *)(shm->segments[member] + places_at(shm->n)) + place;
}

enum td_status td_shm_open(uint32_t n, uint32_t me, void *const *segments, struct td_shm **shm,
                           struct td_err *err)
{
    struct td_shm *s = calloc(1, sizeof *s);
    struct peer *peers = calloc(n, sizeof *peers);
    char **copy = calloc(n, sizeof *copy);
    uint32_t *words = calloc((size_t)TD_SHM_PLACES * n, sizeof *words);

    if (!s || !peers || !copy || !words) {
        free(words);
        free(copy);
        free(peers);
        free(s);
        return td_err_set(err, TD_NO_MEMORY, "no memory for %u ranks of one host", n);
    }
    for (uint32_t r = 0; r < n; r++)
        copy[r] = segments[r];
    s->n = n;
    s->me = me;
    s->free_places = (1u << TD_SHM_PLACES) - 1;
    s->ring_bytes = ring_bytes_of(n);
    s->has_barrier = membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED) == 0;
    s->segments = copy;
    s->peers = peers;
    s->words = words;
    for (uint32_t p = 0; p < TD_SHM_PLACES; p++)
        s->uses[p].members = words + (size_t)p * n;
    for (uint32_t r = 0; r < n; r++) {
        s->peers[r].head = (struct head *)copy[r];
        s->peers[r].to = ring_at(s, r, me);
        s->peers[r].from = ring_at(s, me, r);
        s->peers[r].pidfd = -1;
    }
    *shm = s;
    return TD_OK;
}

void td_shm_say_pid(struct td_shm *shm)
{
    atomic_store(&shm->peers[shm->me].head->pid, (int)getpid());
}

void td_shm_watch(struct td_shm *shm)
{
    for (uint32_t r = 0; r < shm->n; r++) {
        int pid = atomic_load(&shm->peers[r].head->pid);

        if (r != shm->me && pid > 0)
            shm->peers[r].pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    }
}

void td_shm_leave(struct td_shm *shm)
{
    atomic_store(&shm->peers[shm->me].head->gone, 1);
    for (uint32_t r = 0; r < shm->n; r++) {
        if (r != shm->me)
            td_shm_ring_bell(shm, r);
    }
}

void td_shm_close(struct td_shm *shm)
{
    if (!shm)
        return;
    for (uint32_t r = 0; r < shm->n; r++) {
        while (shm->peers[r].first_early) {
            struct early *next = shm->peers[r].first_early->next;

            free(shm->peers[r].first_early);
            shm->peers[r].first_early = next;
        }
        if (shm->peers[r].pidfd >= 0)
            close(shm->peers[r].pidfd);
    }
    free(shm->words);
    free(shm->peers);
    free((void *)(uintptr_t)shm->segments);
    free(shm);
}

bool td_shm_is_gone(struct td_shm *shm, uint32_t member)
{
    struct pollfd ended = {.fd = shm->peers[member].pidfd, .events = POLLIN};

    return atomic_load(&shm->peers[member].head->gone) ||
           (ended.fd >= 0 && poll(&ended, 1, 0) == 1);
}

/* ---- messages ---- */

static size_t whole_units(size_t bytes)
{
    return (bytes + UNIT - 1) / UNIT * UNIT;
}

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Bytes that are free in the ring to `p`, whole units. */
static size_t room(struct td_shm *shm, struct peer *p)
{
    size_t used = (size_t)(p->written - p->taken_seen);

    if (used + CHUNK > shm->ring_bytes || used == shm->ring_bytes) {
        p->taken_seen = atomic_load_explicit(&p->to->taken, memory_order_acquire);
        used = (size_t)(p->written - p->taken_seen);
    }
    return shm->ring_bytes - used;
}

static void publish_written(struct td_shm *shm, struct peer *p)
{
    atomic_store_explicit(&p->to->written, p->written, memory_order_release);
    td_shm_ring_bell(shm, (uint32_t)(p - shm->peers));
}

static void publish_taken(struct td_shm *shm, struct peer *p)
{
    atomic_store_explicit(&p->from->taken, p->taken, memory_order_release);
    td_shm_ring_bell(shm, (uint32_t)(p - shm->peers));
}

/* Puts into the ring what has room there. */
static void push(struct td_shm *shm, struct peer *p, struct td_comm_xfer *x, uint32_t tag)
{
    uint64_t before = p->written;
    size_t free_bytes = room(shm, p);

    if (!x->begun && free_bytes >= UNIT) {
        struct header h = {.tag = tag, .bytes = x->bytes};

        memcpy(p->to->data + p->written % shm->ring_bytes, &h, sizeof h);
        p->written += UNIT;
        free_bytes -= UNIT;
        x->begun = true;
    }
    while (x->begun && x->moved < x->bytes && free_bytes > 0) {
        size_t at = p->written % shm->ring_bytes;
        size_t n = min_size(min_size(x->bytes - x->moved, free_bytes),
                            min_size(CHUNK, shm->ring_bytes - at));

        memcpy(p->to->data + at, (const char *)x->src + x->moved, n);
        x->moved += n;
        p->written += whole_units(n);
        free_bytes -= whole_units(n);
        if (p->written - before >= CHUNK && x->moved < x->bytes) {
            publish_written(shm, p);
            before = p->written;
        }
    }
    x->done = x->begun && x->moved == x->bytes;
    if (p->written != before)
        publish_written(shm, p);
}

/* The receive that a message with `tag` from this peer is for: the first that is not served yet. */
static struct td_comm_xfer *asked_for(struct td_comm *comm, uint32_t member, uint32_t tag,
                                      uint32_t current_tag)
{
    if (tag != current_tag)
        return NULL;
    for (uint32_t i = 0; i < comm->n_xfers; i++) {
        struct td_comm_xfer *x = &comm->xfers[i];

        if (!x->is_send && x->local == (int32_t)member && !x->begun)
            return x;
    }
    return NULL;
}

static enum td_status begin_message(struct td_shm *shm, struct td_comm *comm, struct peer *p,
                                    uint32_t current_tag, struct td_err *err)
{
    uint32_t member = (uint32_t)(p - shm->peers);
    struct header h;
    struct early **link = &p->first_early;

    memcpy(&h, p->from->data + p->taken % shm->ring_bytes, sizeof h);
    p->taken += UNIT;
    p->under_way = true;
    p->left = h.bytes;
    p->xfer = asked_for(comm, member, h.tag, current_tag);
    if (p->xfer) {
        if (h.bytes != p->xfer->bytes)
            return td_comm_report_length(comm, p->xfer->peer, h.bytes, p->xfer->bytes, err);
        p->xfer->begun = true;
        p->dst = p->xfer->dst;
        return TD_OK;
    }
    p->early = malloc(sizeof *p->early + h.bytes);
    if (!p->early)
        return td_err_set(err, TD_NO_MEMORY,
                          "%s: no memory for a message of %llu bytes that is for later", comm->op,
                          (unsigned long long)h.bytes);
    *p->early = (struct early){.tag = h.tag, .bytes = h.bytes};
    p->dst = p->early->data;
    while (*link)
        link = &(*link)->next;
    *link = p->early;
    return TD_OK;
}

static void end_message(struct peer *p)
{
    if (p->xfer)
        p->xfer->done = true;
    else
        p->early->complete = true;
    p->under_way = false;
    p->xfer = NULL;
    p->early = NULL;
}

/* Serves a receive from what came early. */
static enum td_status take_early(struct td_comm *comm, struct peer *p, struct td_comm_xfer *x,
                                 uint32_t tag, struct td_err *err)
{
    if (x->begun)
        return TD_OK;
    for (struct early **link = &p->first_early; *link; link = &(*link)->next) {
        struct early *e = *link;

        if (e->tag != tag)
            continue;
        if (!e->complete)
            return TD_OK;
        if (e->bytes != x->bytes)
            return td_comm_report_length(comm, x->peer, e->bytes, x->bytes, err);
        if (e->bytes)
            memcpy(x->dst, e->data, e->bytes);
        x->begun = x->done = true;
        *link = e->next;
        free(e);
        return TD_OK;
    }
    return TD_OK;
}

/* Takes out of the ring what is there, until every receive from this peer is served. */
static enum td_status pull(struct td_shm *shm, struct td_comm *comm, struct peer *p, uint32_t tag,
                           struct td_comm_xfer *x, struct td_err *err)
{
    uint64_t before = p->taken;

    for (;;) {
        enum td_status status = p->first_early ? take_early(comm, p, x, tag, err) : TD_OK;
        size_t there = (size_t)(p->written_seen - p->taken);
        size_t at, n;

        if (there == 0) {
            p->written_seen = atomic_load_explicit(&p->from->written, memory_order_acquire);
            there = (size_t)(p->written_seen - p->taken);
        }
        if (status == TD_OK && (x->done || there == 0))
            break;
        if (status == TD_OK && !p->under_way) {
            status = begin_message(shm, comm, p, tag, err);
            there -= UNIT;
        }
        if (status != TD_OK)
            return status;
        at = p->taken % shm->ring_bytes;
        n = min_size(min_size(p->left, there), shm->ring_bytes - at);
        if (n)
            memcpy(p->dst, p->from->data + at, n);
        p->dst += n;
        p->left -= n;
        p->taken += whole_units(n);
        if (p->left == 0)
            end_message(p);
        else if (p->taken - before >= CHUNK) {
            publish_taken(shm, p);
            before = p->taken;
        }
    }
    if (p->taken != before) {
        publish_taken(shm, p);
    }
    return TD_OK;
}

enum td_status td_shm_progress(struct td_shm *shm, struct td_comm *comm, uint32_t tag,
                               uint32_t *n_left, uint32_t *awaited, struct td_err *err)
{
    *n_left = 0;
    for (uint32_t i = 0; i < comm->n_xfers; i++) {
        if (comm->xfers[i].local >= 0)
            shm->peers[comm->xfers[i].local].sends = false;
    }
    for (uint32_t i = 0; i < comm->n_xfers; i++) { /* sends first: the others wait for them */
        struct td_comm_xfer *x = &comm->xfers[i];

        if (x->local < 0 || !x->is_send || x->done || shm->peers[x->local].sends)
            continue;
        push(shm, &shm->peers[x->local], x, tag);
        shm->peers[x->local].sends = !x->done;
    }
    for (uint32_t i = 0; i < comm->n_xfers; i++) {
        struct td_comm_xfer *x = &comm->xfers[i];
        enum td_status status = TD_OK;

        if (x->local < 0 || x->done)
            continue;
        if (!x->is_send)
            status = pull(shm, comm, &shm->peers[x->local], tag, x, err);
        if (status != TD_OK)
            return status;
        if (!x->done && (*n_left)++ == 0)
            *awaited = x->peer;
    }
    return TD_OK;
}

/* ---- places ---- */

/* A member may be an operation behind, and read there what others of the group have given. */
static bool all_have_left(const struct td_shm *shm, uint32_t place)
{
    const struct use *use = &shm->uses[place];

    for (uint32_t i = 0; i < use->n; i++) {
        if (atomic_load_explicit(&td_shm_place_of(shm, place, use->members[i])->left,
                                 memory_order_acquire) < use->first_count)
            return false;
    }
    return true;
}

uint32_t td_shm_free_places(const struct td_shm *shm)
{
    uint32_t places = shm->free_places;

    for (uint32_t p = 0; p < TD_SHM_PLACES; p++) {
        if (!all_have_left(shm, p))
            places &= ~(1u << p);
    }
    return places;
}

void td_shm_take_place(struct td_shm *shm, uint32_t place, uint64_t count, const uint32_t *members,
                       uint32_t n)
{
    struct use *use = &shm->uses[place];

    shm->free_places &= ~(1u << place);
    use->first_count = count;
    use->n = n;
    memcpy(use->members, members, n * sizeof *members);
    atomic_store(&td_shm_place_of(shm, place, shm->me)->count, count);
}

void td_shm_free_place(struct td_shm *shm, uint32_t place)
{
    shm->free_places |= 1u << place;
    atomic_store_explicit(&td_shm_place_of(shm, place, shm->me)->left, shm->uses[place].first_count,
                          memory_order_release);
}

void td_shm_publish(struct td_shm *shm, uint32_t place, uint64_t count, const uint32_t *members,
                    uint32_t n)
{
    atomic_store_explicit(&td_shm_place_of(shm, place, shm->me)->count, count,
                          memory_order_release);
    for (uint32_t i = 0; i < n; i++) {
        if (members[i] != shm->me)
            td_shm_ring_bell(shm, members[i]);
    }
}

/* ---- sleep ---- */

static long futex(atomic_uint *word, int op, uint32_t value, const struct timespec *limit)
{
    return syscall(SYS_futex, word, op, value, limit, NULL, 0);
}

uint32_t td_shm_arm(struct td_shm *shm)
{
    struct head *own = shm->peers[shm->me].head;

    atomic_store(&own->asleep, 1);
    if (!shm->has_barrier || membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED) != 0)
        shm->has_barrier = false;
    return atomic_load(&own->bell);
}

void td_shm_sleep(struct td_shm *shm, uint32_t bell, uint64_t limit_ns)
{
    struct timespec limit;

    if (!shm->has_barrier && limit_ns > BLIND_SLEEP_NS)
        limit_ns = BLIND_SLEEP_NS;
    limit = (struct timespec){.tv_sec = (time_t)(limit_ns / 1000000000u),
                              .tv_nsec = (long)(limit_ns % 1000000000u)};
    futex(&shm->peers[shm->me].head->bell, FUTEX_WAIT, bell, &limit);
}

void td_shm_disarm(struct td_shm *shm)
{
    atomic_store_explicit(&shm->peers[shm->me].head->asleep, 0, memory_order_relaxed);
}

void td_shm_ring_bell(struct td_shm *shm, uint32_t member)
{
    struct head *head = shm->peers[member].head;

    atomic_signal_fence(
        memory_order_seq_cst); /* what was published stands before this in the program */
    if (!atomic_load_explicit(&head->asleep, memory_order_relaxed))
        return;
    atomic_fetch_add(&head->bell, 1);
    futex(&head->bell, FUTEX_WAKE, 1, NULL);
}
