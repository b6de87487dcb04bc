/* Inside of the group seam: what comm.c and the collectives share with the transports. Included by comm/ only.
 * A transport moves bytes between the ranks of its world and knows no collective; the collectives (collective.c) are
 * written once on top of it, so every transport gives the same bits and counts the same bytes. */
#ifndef TD_COMM_COMM_IMPL_H
#define TD_COMM_COMM_IMPL_H

#include "comm/comm.h"
#include "comm/topology.h"
#include "kernels/base/ticks.h"

#include <stdatomic.h>

struct td_comm_world;

/* A tag is (context << TD_COMM_SLOT_BITS) | slot: the context tells groups apart, the slot successive collectives;
 * slot 0 is send and recv. */
enum { TD_COMM_SLOT_BITS = 15, TD_COMM_MAX_RANKS = TD_TREE_MAX_RANKS };

/* One message of an exchange. Buffers are borrowed until the exchange has returned. */
struct td_comm_xfer {
    uint32_t peer; /* rank in the world, never this one */
    bool is_send;
    const void *src; /* [bytes], sends */
    void *dst;       /* [bytes], receives */
    size_t bytes;    /* 0 is a message too */
    /* Of the transport: */
    int32_t
        local; /* the peer's index among the ranks that share memory with this one; -1: it does not */
    bool begun, done;
    size_t moved;
};

struct td_shm;

struct td_comm_transport {
    const char *name; /* of messages between ranks that share no memory */
    /* Starts every message of comm->xfers (receives stand first) and waits until all are done, the world has failed,
     * or comm->deadline_ns has passed. Messages between two ranks with one tag stay in order. A received length
     * that differs from the expected one is TD_PEER_PROTOCOL. Never called for no messages. */
    enum td_status (*exchange)(struct td_comm *comm, uint32_t tag, struct td_err *err);
    /* Makes a sleeping wait look at world->failed. NULL when waits poll. Any thread. */
    void (*wake)(struct td_comm_world *world);
    /* The time in which operations are measured and their deadlines count; NULL: td_clock_now_ns. */
    uint64_t (*now_ns)(struct td_comm_world *world);
    /* After the last group of this end was closed; frees the world. */
    void (*close)(struct td_comm_world *world);
};

/* This process's end of one transport's ranks. The groups split from one another share it, so that giving up one of
 * them gives up all. A transport's own struct begins with this one. */
struct td_comm_world {
    const struct td_comm_transport *transport;
    uint32_t rank;
    uint32_t size;
    uint32_t *hosts; /* [size] equal for the ranks of one host; each transport fills it */
    bool shares;     /* on every host with two ranks or more they share memory */
    struct td_shm *
        shm; /* that this rank shares with others of its host; NULL: it is alone there, or does not */
    int32_t *local; /* [size] index in `shm` of each rank, -1: it is not there. Owned, as `hosts` */
    uint32_t next_context; /* not used yet by any group of this end */
    uint32_t n_contexts;   /* how many the transport's tags have room for, at most 65536 */
    uint32_t n_groups;     /* open ones */
    uint64_t spin_ns;      /* first value for its groups */
    atomic_int failed;     /* enum td_status; TD_OK while usable. Set once, by any thread */
    /* For td_comm_look_at; written by the owner thread. */
    _Atomic(const char *) op_now;
    atomic_uint_fast64_t n_begun;
};

struct td_comm {
    struct td_comm_world *world;
    uint32_t rank;
    uint32_t size;
    uint32_t context;
    uint32_t sequence; /* of collectives, equal on all ranks */
    uint64_t op_limit_ns;
    uint64_t spin_ns;
    bool naps;            /* waits sleep from the start: others need the core */
    const char *op;       /* name of the operation under way, for errors */
    uint64_t start;       /* of it: ns of the transport's own time, else ticks */
    uint64_t deadline_ns; /* of it; UINT64_MAX: none, 0: nobody has asked td_comm_deadline yet */
    uint64_t inside;      /* operations so far, as `start` counts */
    struct td_ticks_base ticks_base;
    struct td_comm_stats stats;
    uint32_t n_xfers;
    uint32_t cap_xfers;
    struct td_comm_xfer *xfers; /* [cap_xfers] */
    struct td_share {           /* of the members on this host (share.h) */
        int32_t place;          /* in the shared memory; -1: none */
        uint64_t count;  /* of what was shared last, from (context << 48) + TD_SHM_BUFFERS on */
        uint32_t *local; /* [members here] by lane: index in the shared memory */
        struct td_shm_place **at; /* [members here] by lane: their places */
        uint64_t *seen; /* [members here] what they had shared when this rank last looked */
    } share;
    struct td_topology topology;
    uint32_t *words; /* that topology and share.local point to */
    bool is_shared;  /* every host with two members or more has a place in its memory for them */
    enum td_sum_algorithm sum_override; /* TD_SUM_AUTO: none */
    struct td_sum_choices sums;
    enum td_exchange_dtype exchange;
    char *narrow; /* [narrow_bytes] packed parts, owned; grows with the largest sum */
    size_t narrow_bytes;
    uint32_t members[]; /* [size] group rank -> world rank */
};

/* Fills the common part of a world that the transport has allocated: all ranks on host 0, no shared memory. TD_NO_MEMORY. */
enum td_status td_comm_world_init(struct td_comm_world *world,
                                  const struct td_comm_transport *transport, uint32_t rank,
                                  uint32_t size, struct td_err *err);
/* Frees what init took. */
void td_comm_world_deinit(struct td_comm_world *world);
/* A group over `world` whose rank r is members[r]; NULL means all of the world in order. `place`: in the shared memory
 * of each host, free with all its members there; -1: none. TD_TOO_LARGE, TD_NO_MEMORY. */
enum td_status td_comm_group_open(struct td_comm_world *world, const uint32_t *members,
                                  uint32_t size, uint32_t rank, uint32_t context, int32_t place,
                                  struct td_comm **comm, struct td_err *err);
/* Gives the world up for `status` unless it was already; returns what it is given up for. */
enum td_status td_comm_world_fail(struct td_comm_world *world, enum td_status status);

/* How an exchange ends early. Each writes the error, with the peer that is still awaited. */
enum td_status td_comm_report_failed(struct td_comm *comm, struct td_err *err);
enum td_status td_comm_report_timeout(struct td_comm *comm, uint32_t awaited, struct td_err *err);
enum td_status td_comm_report_lost(struct td_comm *comm, uint32_t awaited, struct td_err *err);
enum td_status td_comm_report_length(struct td_comm *comm, uint32_t peer, size_t bytes,
                                     size_t expected, struct td_err *err);

/* Queue one message for td_comm_exchange; peers are ranks of the group. Receives first. */
void td_comm_queue_recv(struct td_comm *comm, uint32_t from, void *dst, size_t bytes);
void td_comm_queue_send(struct td_comm *comm, uint32_t to, const void *src, size_t bytes);
/* Each collective takes as many slots as it has exchanges, on all ranks alike; they repeat after 32766, and messages
 * of one pair and slot stay in order. */
uint32_t td_comm_next_slot(struct td_comm *comm);
/* When the operation under way must end. It counts from the first question, which a wait asks some microseconds after it
 * began; a transport with a time of its own has it from the beginning in comm->deadline_ns. */
uint64_t td_comm_deadline(struct td_comm *comm, uint64_t now_ns);
/* Runs and empties the queue under `slot` (none: returns at once) and counts what was sent. */
enum td_status td_comm_exchange(struct td_comm *comm, uint32_t slot, struct td_err *err);

/* The collectives: arguments are checked already. */
enum td_status td_collective_bcast(struct td_comm *comm, uint32_t root, void *data, size_t bytes,
                                   struct td_err *err);
enum td_status td_collective_all_gather(struct td_comm *comm, const void *send, const size_t *bytes,
                                        void *recv, struct td_err *err);
enum td_status td_collective_gather(struct td_comm *comm, uint32_t root, const void *send,
                                    const size_t *bytes, void *recv, struct td_err *err);
enum td_status td_collective_barrier(struct td_comm *comm, struct td_err *err);
enum td_status td_collective_tree_sum(struct td_comm *comm, const struct td_tree_layout *layout,
                                      const float *parts, size_t n_floats, float *scratch,
                                      float *out, struct td_err *err);

#endif
