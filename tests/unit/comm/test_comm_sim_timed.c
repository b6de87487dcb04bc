#include "comm/comm_sim.h"

#include "tests/unit/comm/sim_group.h"

#include <sched.h>
#include <time.h>

enum { MAX = SIM_MAX_RANKS };

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static void expect_status(struct sim_rank *r, enum td_status got, enum td_status expected,
                          uint64_t at_ns)
{
    if (got != expected)
        check_fail(&r->check, "status (got, expected)", got, expected);
    expect_now(r, at_ns);
}

/* Deadlines, losses, silence. */

static void deadline(struct sim_rank *r)
{
    struct td_comm *c = r->check.comm;
    char data[100] = {0};
    struct td_err err;

    if (td_comm_rank(c) == 0) {
        check_ok(&r->check, td_comm_send(c, 1, data, sizeof data, &err), &err);
        check_ok(&r->check, td_comm_send(c, 1, data, sizeof data, &err), &err);
        return;
    }
    td_comm_set_deadline(c, D(100) + A);
    expect_status(r, td_comm_recv(c, 0, data, sizeof data, &err), TD_OK, D(100) + A);
    td_comm_set_deadline(c, D(100) - 1);
    expect_status(r, td_comm_recv(c, 0, data, sizeof data, &err), TD_PEER_TIMED_OUT,
                  2 * D(100) + A - 1);
    if (!strstr(err.cause, "rank 0 did not answer within"))
        check_fail(&r->check, err.cause, 0, 0);
    expect_status(r, td_comm_barrier(c, &err), TD_PEER_TIMED_OUT, 2 * D(100) + A - 1);
}

static void test_comm_sim_a_message_after_the_deadline_is_too_late(void **state)
{
    struct td_comm *comms[2];
    struct sim_rank ranks[2];

    (void)state;
    sim_open(2, &flat, comms);
    sim_run(2, comms, deadline, NULL, ranks);
}

/* Rank 0 is lost while its second message leaves, or rank 1 just after it came. */
static void kill_between(struct sim_rank *r)
{
    const uint64_t lost_ns = 2 * D(100); /* the second has not left before this */
    struct td_comm *c = r->check.comm;
    char data[100] = {0};
    struct td_err err;

    if (td_comm_rank(c) == 0) {
        td_comm_sim_kill_at(c, lost_ns);
        expect_status(r, td_comm_send(c, 1, data, sizeof data, &err), TD_OK, D(100));
        expect_status(r, td_comm_send(c, 1, data, sizeof data, &err), TD_PEER_LOST, lost_ns);
        expect_status(r, td_comm_send(c, 1, data, sizeof data, &err), TD_PEER_LOST, lost_ns);
        return;
    }
    expect_status(r, td_comm_recv(c, 0, data, sizeof data, &err), TD_OK, D(100) + A);
    expect_status(r, td_comm_recv(c, 0, data, sizeof data, &err), TD_PEER_LOST, lost_ns + A);
    if (!strstr(err.cause, "rank 0 is gone"))
        check_fail(&r->check, err.cause, 0, 0);
    td_comm_sim_advance(c, 100); /* a clock stops with its rank */
    expect_now(r, lost_ns + A);
}

static void test_comm_sim_what_left_before_the_loss_arrives_and_nothing_after(void **state)
{
    struct td_comm *comms[2];
    struct sim_rank ranks[2];

    (void)state;
    sim_open(2, &flat, comms);
    sim_run(2, comms, kill_between, NULL, ranks);
}

/* 1 is lost while it computes; 2 waits for it, 3 for 2, and 0 for a message that 1 has sent before. */
static void loss_goes_on(struct sim_rank *r)
{
    struct td_comm *c = r->check.comm;
    char data[10] = {0};
    struct td_err err;

    switch (td_comm_rank(c)) {
    case 0:
        expect_status(r, td_comm_recv(c, 1, data, sizeof data, &err), TD_OK, D(10) + A);
        break;
    case 1:
        td_comm_sim_kill_at(c, 500000);
        check_ok(&r->check, td_comm_send(c, 0, data, sizeof data, &err), &err);
        td_comm_sim_advance(c, 400000);
        expect_now(r, D(10) + 400000);
        td_comm_sim_advance(c, 400000);
        expect_status(r, td_comm_send(c, 2, data, sizeof data, &err), TD_PEER_LOST, 500000);
        break;
    case 2:
        expect_status(r, td_comm_recv(c, 1, data, sizeof data, &err), TD_PEER_LOST, 500000 + A);
        break;
    default:
        expect_status(r, td_comm_recv(c, 2, data, sizeof data, &err), TD_PEER_LOST, 500000 + 2 * A);
        break;
    }
}

static void test_comm_sim_a_loss_is_known_one_latency_later(void **state)
{
    struct td_comm *comms[4];
    struct sim_rank ranks[4];

    (void)state;
    sim_open(4, &flat, comms);
    sim_run(4, comms, loss_goes_on, NULL, ranks);
}

/* Who closes its end or is killed from outside, is lost at its present time. */
static void leaves(struct sim_rank *r)
{
    struct td_comm *c = r->check.comm;
    char data[10] = {0};
    struct td_err err;

    if (td_comm_rank(c) == 0) {
        td_comm_sim_advance(c, 300000);
        if (r->shared) {
            td_comm_sim_kill(c);
            expect_status(r, td_comm_barrier(c, &err), TD_PEER_LOST, 300000);
        }
        return;
    }
    expect_status(r, td_comm_recv(c, 0, data, sizeof data, &err), TD_PEER_LOST, 300000 + A);
}

static void test_comm_sim_a_rank_that_leaves_is_lost_at_its_time(void **state)
{
    struct td_comm *comms[2];
    struct sim_rank ranks[2];

    (void)state;
    sim_open(2, &flat, comms);
    sim_run(2, comms, leaves, NULL, ranks);
    sim_open(2, &flat, comms);
    sim_run(2, comms, leaves, comms, ranks);
}

/* Rank 0 hangs. 1 waits for it until its deadline, 2 for 1 with a longer or a shorter one. */
static void silence(struct sim_rank *r)
{
    bool longer = r->shared != NULL;
    struct td_comm *c = r->check.comm;
    char data[10] = {0};
    struct td_err err;

    switch (td_comm_rank(c)) {
    case 0:
        td_comm_sim_advance(c, UINT64_MAX);
        if (td_comm_barrier(c, &err) != TD_PEER_TIMED_OUT)
            check_fail(&r->check, "a silent rank went on", 0, 0);
        break;
    case 1:
        td_comm_set_deadline(c, 700000);
        expect_status(r, td_comm_recv(c, 0, data, sizeof data, &err), TD_PEER_TIMED_OUT, 700000);
        break;
    default:
        td_comm_set_deadline(c, longer ? 700001 + A : 700000 + A);
        expect_status(r, td_comm_recv(c, 1, data, sizeof data, &err),
                      longer ? TD_PEER_LOST : TD_PEER_TIMED_OUT, 700000 + A);
        break;
    }
}

static void test_comm_sim_a_silent_rank_is_waited_for_until_the_deadline(void **state)
{
    struct td_comm *comms[3];
    struct sim_rank ranks[3];

    (void)state;
    sim_open(3, &flat, comms);
    sim_run(3, comms, silence, NULL, ranks);
    sim_open(3, &flat, comms);
    sim_run(3, comms, silence, comms, ranks);
}

/* Everybody waits for the next one. With deadlines the shortest ends first; the loss then goes round. */
static void ring_of_waits(struct sim_rank *r)
{
    bool limited = r->shared != NULL;
    struct td_comm *c = r->check.comm;
    uint32_t me = td_comm_rank(c);
    char data[10] = {0};
    struct td_err err;
    enum td_status got;

    if (limited)
        td_comm_set_deadline(c, me == 2 ? 1000 : 1000000);
    got = td_comm_recv(c, (me + 1) % 4, data, sizeof data, &err);
    if (limited) { /* 2 gives up, then 1, 0 and 3 */
        expect_status(r, got, me == 2 ? TD_PEER_TIMED_OUT : TD_PEER_LOST,
                      1000 + (2 + 4 - me) % 4 * (uint64_t)A);
    } else {
        expect_status(r, got, TD_PEER_TIMED_OUT, UINT64_MAX);
        if (!strstr(err.cause, "never answers"))
            check_fail(&r->check, err.cause, 0, 0);
    }
}

static void test_comm_sim_ranks_that_wait_for_each_other_end(void **state)
{
    struct td_comm *comms[4];
    struct sim_rank ranks[4];

    (void)state;
    sim_open(4, &flat, comms);
    sim_run(4, comms, ring_of_waits, NULL, ranks);
    sim_open(4, &flat, comms);
    sim_run(4, comms, ring_of_waits, comms, ranks);
}

/* Two large sends against each other, which the real transports may hang in. */
static void head_on(struct sim_rank *r)
{
    static const char data[5000];
    struct td_err err;

    td_comm_set_deadline(r->check.comm, 1000000);
    expect_status(
        r, td_comm_send(r->check.comm, 1 - td_comm_rank(r->check.comm), data, sizeof data, &err),
        TD_PEER_TIMED_OUT, 1000000);
}

static void test_comm_sim_large_sends_against_each_other_time_out(void **state)
{
    struct td_comm *comms[2];
    struct sim_rank ranks[2];

    (void)state;
    sim_open(2, &flat, comms);
    sim_run(2, comms, head_on, NULL, ranks);
}

static void other_length(struct sim_rank *r)
{
    static char data[6000];
    size_t bytes = *(const size_t *)r->shared;
    struct td_err err;

    if (td_comm_rank(r->check.comm) == 0) {
        enum td_status got = td_comm_send(r->check.comm, 1, data, bytes, &err);

        /* A large one is never asked for, and its receiver fails when it has come. */
        if (bytes > TD_COMM_SIM_EAGER_BYTES)
            expect_status(r, got, TD_PEER_LOST, D(bytes) + 2 * A);
        else
            expect_status(r, got, TD_OK, D(bytes));
        return;
    }
    {
        char in[16];

        expect_status(r, td_comm_recv(r->check.comm, 0, in, sizeof in, &err), TD_PEER_PROTOCOL,
                      D(bytes) + A);
    }
    if (!strstr(err.cause, bytes > 100 ? "rank 0 sent 6000 bytes, expected 16"
                                       : "rank 0 sent 8 bytes, expected 16"))
        check_fail(&r->check, err.cause, 0, 0);
}

static void test_comm_sim_finds_another_length_in_virtual_time(void **state)
{
    static size_t sizes[] = {8, 6000};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct td_comm *comms[2];
        struct sim_rank ranks[2];

        sim_open(2, &flat, comms);
        sim_run(2, comms, other_length, &sizes[i], ranks);
    }
}

static void given_up(struct sim_rank *r)
{
    char data[10] = {0};
    struct td_err err;

    if (td_comm_rank(r->check.comm) == 0) { /* never calls again */
        td_comm_abort(r->check.comm);
        return;
    }
    expect_status(r, td_comm_recv(r->check.comm, 0, data, sizeof data, &err), TD_PEER_LOST, A);
}

static void test_comm_sim_an_aborted_end_is_gone_in_virtual_time(void **state)
{
    struct td_comm *comms[2];
    struct sim_rank ranks[2];

    (void)state;
    sim_open(2, &flat, comms);
    sim_run(2, comms, given_up, NULL, ranks);
}

/* Rank 0 neither closes its end nor does anything: a bug of the test, which ends all the same. */
static void stalled(struct sim_rank *r)
{
    char data[10] = {0};
    struct td_err err;

    if (td_comm_recv(r->check.comm, 0, data, sizeof data, &err) != TD_INTERNAL ||
        !strstr(err.cause, "without closing"))
        check_fail(&r->check, "a wait for an idle thread", 0, 0);
}

static void test_comm_sim_a_wait_for_an_idle_thread_ends(void **state)
{
    struct td_comm_simtime_model model = flat;
    struct td_comm *comms[2];
    struct sim_rank rank;

    (void)state;
    model.stall_ns = 20000000;
    sim_open(2, &model, comms);
    sim_run(1, comms + 1, stalled, NULL, &rank);
    td_comm_close(comms[0]);
}

static void test_comm_sim_a_model_comes_before_the_first_operation(void **state)
{
    struct td_comm *comms[2];
    struct td_err err;
    char data[4] = {0};
    uint64_t before_ns;

    (void)state;
    assert_int_equal(td_comm_sim_open(2, comms, &err), TD_OK);
    before_ns = td_comm_sim_now(comms[0]);
    assert_int_equal(td_comm_send(comms[0], 1, data, sizeof data, &err), TD_OK);
    assert_true(before_ns > 0 && td_comm_sim_now(comms[1]) >= before_ns); /* the real clock */
    assert_int_equal(td_comm_sim_set_model(comms[1], &flat, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "in use, expected an unused one"));
    td_comm_close(comms[0]);
    td_comm_close(comms[1]);
}

/* Any thread schedule. A random program: messages in one order, of which each rank does its own in turn, with pauses of
 * virtual time, deadlines and losses. What must come out is computed here message by message. */

enum { N_STEPS = 60, N_PROGRAMS = 60, N_RUNS = 4 };

struct step {
    uint32_t from;
    uint32_t to;
    size_t bytes;
    uint64_t pause_ns; /* of the sender, before */
};

struct outcome {
    enum td_status status;
    uint64_t now_ns;
};

struct program {
    uint32_t n;
    uint64_t limit_ns;
    uint64_t lost_ns[MAX];
    struct step steps[N_STEPS];
    uint64_t jitter; /* of the threads, another one in each run */
};

static void make_program(struct program *p, uint64_t seed)
{
    uint64_t dice = check_mix(seed);

    *p = (struct program){.n = 2 + (uint32_t)(dice % 5)};
    if (dice >> 8 & 1)
        p->limit_ns = 40000 + (dice >> 16) % 40000;
    for (uint32_t r = 0; r < p->n; r++) {
        uint64_t d = check_mix(dice + r);

        p->lost_ns[r] = d % 3 ? UINT64_MAX : (d >> 8) % 300000;
    }
    for (uint32_t i = 0; i < N_STEPS; i++) {
        uint64_t d = check_mix(dice + 1000 + i);
        struct step *s = &p->steps[i];

        s->from = (uint32_t)(d % p->n);
        s->to = (s->from + 1 + (uint32_t)((d >> 8) % (p->n - 1))) % p->n;
        s->bytes = d >> 16 & 1 ? 1 + (d >> 20) % 200 : 2000 + (d >> 20) % 3000;
        s->pause_ns = d >> 17 & 3 ? 0 : (d >> 40) % 30000;
    }
}

/* One rank's side of a message: it is over at end_ns, UINT64_MAX for never, or fails by its peer at peer_ns. */
static void settle_side(const struct program *p, struct outcome *o, uint64_t lost_ns,
                        uint64_t end_ns, uint64_t peer_ns)
{
    uint64_t limit_ns = p->limit_ns ? o->now_ns + p->limit_ns : UINT64_MAX;

    peer_ns = max_u64(peer_ns, o->now_ns);
    if (end_ns < lost_ns && end_ns <= limit_ns) {
        o->now_ns = end_ns;
    } else if (lost_ns <= limit_ns && lost_ns <= peer_ns) {
        *o = (struct outcome){TD_PEER_LOST, lost_ns};
    } else if (limit_ns <= peer_ns) {
        *o = (struct outcome){TD_PEER_TIMED_OUT, limit_ns};
    } else {
        *o = (struct outcome){TD_PEER_LOST, peer_ns};
    }
}

static void work_out(const struct program *p, struct outcome *o)
{
    for (uint32_t r = 0; r < p->n; r++)
        o[r] = (struct outcome){p->lost_ns[r] == 0 ? TD_PEER_LOST : TD_OK, 0};
    for (uint32_t i = 0; i < N_STEPS; i++) {
        const struct step *s = &p->steps[i];
        struct outcome *from = &o[s->from];
        struct outcome *to = &o[s->to];
        bool near = s->from / 2 == s->to / 2;
        uint64_t latency_ns = near ? NEAR_A : A;
        bool asked = to->status == TD_OK;
        uint64_t asked_ns = to->now_ns;
        uint64_t arrives_ns = UINT64_MAX;

        if (from->status == TD_OK) {
            from->now_ns += s->pause_ns;
            if (from->now_ns >= p->lost_ns[s->from])
                *from = (struct outcome){TD_PEER_LOST, p->lost_ns[s->from]};
        }
        if (from->status == TD_OK) {
            uint64_t left_ns = from->now_ns + (near ? near_D(s->bytes) : D(s->bytes));
            uint64_t end_ns = left_ns;
            uint64_t peer_ns = UINT64_MAX;

            if (left_ns < p->lost_ns[s->from])
                arrives_ns = left_ns + latency_ns;
            if (s->bytes > 2048 && asked) {
                end_ns = max_u64(left_ns, asked_ns);
            } else if (s->bytes > 2048 && left_ns < p->lost_ns[s->from]) {
                end_ns = UINT64_MAX;
                peer_ns = asked_ns + latency_ns;
            }
            settle_side(p, from, p->lost_ns[s->from], end_ns, peer_ns);
        }
        if (asked)
            settle_side(p, to, p->lost_ns[s->to],
                        arrives_ns == UINT64_MAX ? arrives_ns : max_u64(asked_ns, arrives_ns),
                        arrives_ns == UINT64_MAX ? from->now_ns + latency_ns : UINT64_MAX);
    }
}

static void run_program(struct sim_rank *r)
{
    const struct program *p = r->shared;
    struct td_comm *c = r->check.comm;
    uint32_t me = td_comm_rank(c);
    char data[5000] = {0};

    r->status = TD_OK;
    td_comm_set_deadline(c, p->limit_ns);
    if (p->lost_ns[me] != UINT64_MAX)
        td_comm_sim_kill_at(c, p->lost_ns[me]);
    if (p->lost_ns[me] == 0)
        r->status = TD_PEER_LOST;
    for (uint32_t i = 0; i < N_STEPS && r->status == TD_OK; i++) {
        const struct step *s = &p->steps[i];
        uint64_t dice = check_mix(p->jitter + me * 1000 + i);

        if (s->from != me && s->to != me)
            continue;
        if (dice % 16 == 0)
            nanosleep(&(struct timespec){.tv_nsec = (long)(dice >> 32) % 50000}, NULL);
        else if (dice % 4 == 0)
            sched_yield();
        if (s->from == me && s->pause_ns)
            td_comm_sim_advance(c, s->pause_ns);
        r->status = s->from == me ? td_comm_send(c, s->to, data, s->bytes, NULL)
                                  : td_comm_recv(c, s->from, data, s->bytes, NULL);
    }
}

static void test_comm_sim_times_do_not_depend_on_the_threads(void **state)
{
    uint32_t n_failed = 0;

    (void)state;
    for (uint64_t seed = 0; seed < N_PROGRAMS; seed++) {
        struct program p;
        struct outcome expected[MAX];

        make_program(&p, seed);
        work_out(&p, expected);
        for (uint32_t run = 0; run < N_RUNS; run++) {
            struct td_comm *comms[MAX];
            struct sim_rank ranks[MAX];

            p.jitter = seed * N_RUNS + run;
            sim_open(p.n, &two_level, comms);
            for (uint32_t r = 0; r < p.n; r++)
                td_comm_sim_set_host(comms[r], r / 2);
            sim_run(p.n, comms, run_program, &p, ranks);
            for (uint32_t r = 0; r < p.n; r++) {
                if (ranks[r].status != expected[r].status || ranks[r].end_ns != expected[r].now_ns)
                    fail_msg("program %u, run %u, rank %u: status %d at %llu, expected %d at %llu",
                             (unsigned)seed, run, r, (int)ranks[r].status,
                             (unsigned long long)ranks[r].end_ns, (int)expected[r].status,
                             (unsigned long long)expected[r].now_ns);
                n_failed += expected[r].status != TD_OK;
            }
        }
    }
    assert_true(n_failed > N_PROGRAMS * N_RUNS / 2); /* the programs do lose ranks */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comm_sim_a_message_after_the_deadline_is_too_late),
        cmocka_unit_test(test_comm_sim_what_left_before_the_loss_arrives_and_nothing_after),
        cmocka_unit_test(test_comm_sim_a_loss_is_known_one_latency_later),
        cmocka_unit_test(test_comm_sim_a_rank_that_leaves_is_lost_at_its_time),
        cmocka_unit_test(test_comm_sim_a_silent_rank_is_waited_for_until_the_deadline),
        cmocka_unit_test(test_comm_sim_ranks_that_wait_for_each_other_end),
        cmocka_unit_test(test_comm_sim_large_sends_against_each_other_time_out),
        cmocka_unit_test(test_comm_sim_finds_another_length_in_virtual_time),
        cmocka_unit_test(test_comm_sim_an_aborted_end_is_gone_in_virtual_time),
        cmocka_unit_test(test_comm_sim_a_wait_for_an_idle_thread_ends),
        cmocka_unit_test(test_comm_sim_a_model_comes_before_the_first_operation),
        cmocka_unit_test(test_comm_sim_times_do_not_depend_on_the_threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
