/* A simulated group with virtual time, driven by a thread per rank. The threads close their own ends, as virtual time
 * asks. Closed forms in the tests are in these units: A the latency, D(b) what a message of b bytes costs a port. */
#ifndef TD_TESTS_UNIT_COMM_SIM_GROUP_H
#define TD_TESTS_UNIT_COMM_SIM_GROUP_H

#include "comm/comm_sim.h"
#include "comm/comm_simtime.h"
#include "tests/unit/check.h"
#include "tests/unit/comm/comm_check.h"

#include <pthread.h>

enum { SIM_MAX_RANKS = 16 };

/* Numbers without common factors, so that no wrong sum of them is right by chance. */
enum { A = 10007, G = 211, PS = 3000, NEAR_A = 101, NEAR_G = 13, NEAR_PS = 1000 };

static const struct td_comm_simtime_model flat
    __attribute__((unused)) = {.net = {A, G, PS}, .host = {A, G, PS}};
static const struct td_comm_simtime_model two_level
    __attribute__((unused)) = {.net = {A, G, PS}, .host = {NEAR_A, NEAR_G, NEAR_PS}};

/* 3 ns per byte between hosts, 1 ns within one. */
static inline uint64_t D(uint64_t bytes)
{
    return G + 3 * bytes;
}

static inline uint64_t near_D(uint64_t bytes)
{
    return NEAR_G + bytes;
}

struct sim_rank {
    struct comm_check check; /* check.comm may be closed, and is NULL then */
    void *shared;
    pthread_t thread;
    void (*fn)(struct sim_rank *r);
    enum td_status status; /* what fn left here */
    uint64_t end_ns;       /* this rank's clock when fn had returned, unless fn closed the end */
};

static inline void *sim_run_rank(void *arg)
{
    struct sim_rank *r = arg;

    r->fn(r);
    if (r->check.comm)
        r->end_ns = td_comm_sim_now(r->check.comm);
    td_comm_close(r->check.comm);
    r->check.comm = NULL;
    return NULL;
}

/* Opens n ranks with `model`. */
static inline void sim_open(uint32_t n, const struct td_comm_simtime_model *model,
                            struct td_comm **comms)
{
    struct td_err err;

    assert_int_equal(td_comm_sim_open(n, comms, &err), TD_OK);
    assert_int_equal(td_comm_sim_set_model(comms[0], model, &err), TD_OK);
}

/* Runs fn on every rank, each in its thread; `ranks` holds what they left. The ends are closed. */
static inline void sim_run(uint32_t n, struct td_comm **comms, void (*fn)(struct sim_rank *r),
                           void *shared, struct sim_rank *ranks)
{
    for (uint32_t r = 0; r < n; r++) {
        ranks[r] = (struct sim_rank){.check = {.comm = comms[r]}, .shared = shared, .fn = fn};
        assert_int_equal(pthread_create(&ranks[r].thread, NULL, sim_run_rank, &ranks[r]), 0);
    }
    for (uint32_t r = 0; r < n; r++)
        pthread_join(ranks[r].thread, NULL);
    for (uint32_t r = 0; r < n; r++) {
        if (ranks[r].check.fail[0])
            fail_msg("%s", ranks[r].check.fail);
    }
}

static inline bool send_to(struct sim_rank *r, uint32_t to, size_t bytes)
{
    uint8_t *data = check_alloc(bytes);
    struct td_err err;
    bool ok;

    check_fill(data, bytes, bytes);
    ok = check_ok(&r->check, td_comm_send(r->check.comm, to, data, bytes, &err), &err);
    free(data);
    return ok;
}

static inline bool recv_from(struct sim_rank *r, uint32_t from, size_t bytes)
{
    uint8_t *data = check_alloc(bytes);
    struct td_err err;
    bool ok = check_ok(&r->check, td_comm_recv(r->check.comm, from, data, bytes, &err), &err) &&
              check_same(&r->check, "recv", data, bytes, bytes);

    free(data);
    return ok;
}

static inline void expect_now(struct sim_rank *r, uint64_t expected_ns)
{
    uint64_t got_ns = td_comm_sim_now(r->check.comm);

    if (got_ns != expected_ns)
        check_fail(&r->check, "virtual time (got, expected)", got_ns, expected_ns);
}

#endif
