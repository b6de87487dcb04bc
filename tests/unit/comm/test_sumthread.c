/* Sums that a thread runs beside its owner: several under way, errors, deadlines, aborts and the end. The numbers are small whole
 * ones, so that their sums are exact and known beforehand. */
#include "comm/sumthread.h"

#include "comm/comm_sim.h"
#include "tests/unit/comm/comm_threads.h"

enum { N_LEAVES = 8, MAX_FLOATS = 100000, N_ROUNDS = 6, LIMIT_MS = 50 };

/* Float i of a leaf's part in round `round`. */
static float value(uint32_t leaf, uint32_t round, size_t i)
{
    return (float)(leaf + 1 + round + i % 5);
}

/* Of all leaves: 1 + .. + 8, and eight times what they have in common. */
static float whole(uint32_t round, size_t i)
{
    return 36.0f + 8.0f * (float)(round + i % 5);
}

/* Leaves in runs as equal as they can be; with nine ranks or more some own none. */
struct sums {
    struct td_leaf_run runs[MAX_RANKS];
    struct td_tree_layout layout;
    float *parts[TD_SUMTHREAD_DEPTH], *scratch[TD_SUMTHREAD_DEPTH], *out[TD_SUMTHREAD_DEPTH];
};

static void open_sums(struct sums *s, uint32_t n, uint32_t first_owner)
{
    s->layout = (struct td_tree_layout){N_LEAVES, s->runs};
    for (uint32_t r = 0; r < n; r++) {
        uint32_t n_owners = n - first_owner, i = r < first_owner ? 0 : r - first_owner;

        s->runs[r] = r < first_owner ? (struct td_leaf_run){0, 0}
                                     : (struct td_leaf_run){N_LEAVES * i / n_owners,
                                                            N_LEAVES * (i + 1) / n_owners};
    }
    for (uint32_t k = 0; k < TD_SUMTHREAD_DEPTH; k++) {
        s->parts[k] = calloc((size_t)TD_TREE_MAX_PARTS * MAX_FLOATS, sizeof(float));
        s->scratch[k] = calloc((size_t)N_LEAVES * MAX_FLOATS, sizeof(float));
        s->out[k] = calloc(MAX_FLOATS, sizeof(float));
    }
}

static void close_sums(struct sums *s)
{
    for (uint32_t k = 0; k < TD_SUMTHREAD_DEPTH; k++) {
        free(s->parts[k]);
        free(s->scratch[k]);
        free(s->out[k]);
    }
}

static void fill_parts(const struct sums *s, uint32_t me, uint32_t k, uint32_t round, size_t n)
{
    struct td_leaf_run cut[TD_TREE_MAX_PARTS];
    uint32_t n_parts =
        s->runs[me].begin == s->runs[me].end ? 0 : td_tree_parts(N_LEAVES, s->runs[me], cut);

    for (uint32_t p = 0; p < n_parts; p++)
        for (size_t i = 0; i < n; i++) {
            float *at = s->parts[k] + p * n + i;

            *at = 0.0f;
            for (uint32_t leaf = cut[p].begin; leaf < cut[p].end; leaf++)
                *at += value(leaf, round, i);
        }
}

static uint64_t begin_sum(const struct sums *s, struct td_sumthread *t, uint32_t k, size_t n)
{
    return td_sumthread_begin(t, &s->layout, s->parts[k], n, s->scratch[k], s->out[k]);
}

/* Four sums of different lengths at once, again and again, with operations of the owner between. */
static void many_sums(struct comm_check *k, void *shared)
{
    static const size_t lengths[TD_SUMTHREAD_DEPTH] = {3, MAX_FLOATS, 1000, 40000};
    const uint32_t *first_owner = shared;
    uint32_t me = td_comm_rank(k->comm);
    struct td_sumthread *t = NULL;
    struct sums s;
    struct td_err err;

    open_sums(&s, td_comm_size(k->comm), *first_owner);
    if (!check_ok(k, td_sumthread_open(k->comm, NULL, &t, &err), &err))
        return;
    for (uint32_t round = 0; round < N_ROUNDS && !k->fail[0]; round++) {
        uint64_t number[TD_SUMTHREAD_DEPTH];

        for (uint32_t i = 0; i < TD_SUMTHREAD_DEPTH; i++) {
            fill_parts(&s, me, i, round, lengths[i]);
            number[i] = begin_sum(&s, t, i, lengths[i]);
        }
        for (uint32_t i = 0; i < TD_SUMTHREAD_DEPTH && !k->fail[0]; i++) {
            check_ok(k, td_sumthread_wait(t, number[i], &err), &err);
            for (size_t j = 0; j < lengths[i]; j++)
                if (s.out[i][j] != whole(round, j)) {
                    check_fail(k, "wrong sum", i, j);
                    break;
                }
        }
        check_ok(k, td_sumthread_wait_all(t, &err), &err);
        check_ok(k, td_comm_barrier(k->comm, &err), &err);
    }
    td_sumthread_close(t);
    check_ok(k, td_comm_barrier(k->comm, &err), &err); /* it is the owner's again */
    close_sums(&s);
}

static void test_sumthread_gives_every_sum_on_every_transport(void **state)
{
    static const uint32_t two_hosts[MAX_RANKS] = {0, 0, 1, 1, 1, 1, 1, 1};

    (void)state;
    for (uint32_t n = 1; n <= 5; n++)
        for (uint32_t transport = 0; transport < 3; transport++) {
            struct td_comm *comms[MAX_RANKS];
            struct td_err err;
            uint32_t first_owner = n == 4 ? 1 : 0; /* rank 0 then owns no leaf */
            enum td_status s =
                transport == 0
                    ? td_comm_sim_open(n, comms, &err)
                    : td_comm_shm_open(n, transport == 1 ? NULL : two_hosts, comms, &err);

            assert_int_equal(s, TD_OK);
            run_ends(n, comms, n, false, many_sums, &first_owner, NULL);
        }
}

/* What rank 0 sees where rank 1 stays away from the second of three sums. */
struct absence {
    enum td_status want;
    const char *cause;
    uint64_t limit_ns;
};

static void sum_without_other(struct comm_check *k, void *shared)
{
    const struct absence *a = shared;
    struct td_sumthread *t = NULL;
    uint64_t number[3];
    struct sums s;
    struct td_err err = {0};

    open_sums(&s, 2, 0);
    if (a->limit_ns)
        td_comm_set_deadline(k->comm, a->limit_ns);
    if (!check_ok(k, td_sumthread_open(k->comm, NULL, &t, &err), &err))
        return;
    if (td_comm_rank(k->comm) == 1) {
        check_ok(k, td_sumthread_wait(t, begin_sum(&s, t, 0, 1000), &err), &err);
        atomic_fetch_add(&n_ready, 1);
    } else {
        for (uint32_t i = 0; i < 3; i++)
            number[i] = begin_sum(&s, t, i, 1000);
        atomic_fetch_add(&n_ready, 1);
        if (td_sumthread_wait(t, number[1], &err) != a->want || !strstr(err.cause, a->cause))
            check_fail(k, "the second sum", (size_t)err.status, 0);
        memset(&err, 0, sizeof err);
        if (td_sumthread_wait_all(t, &err) != a->want || !strstr(err.cause, a->cause))
            check_fail(k, "the third sum", (size_t)err.status, 0);
        if (td_comm_barrier(k->comm, &err) != a->want)
            check_fail(k, "the owner's barrier", (size_t)err.status, 0);
        if (begin_sum(&s, t, 0, 1000) != 4 || td_sumthread_wait_all(t, &err) != a->want)
            check_fail(k, "a sum after that", (size_t)err.status, 0);
    }
    td_sumthread_close(t);
    close_sums(&s);
}

static void when_ready(void)
{
    for (int i = 0; i < 20000 && atomic_load(&n_ready) < 2; i++)
        pause_ms(1);
    pause_ms(5);
}

static void kill_other(struct td_comm **comms)
{
    when_ready();
    td_comm_sim_kill(comms[1]);
}

static void abort_first(struct td_comm **comms)
{
    when_ready();
    td_comm_abort(comms[0]);
}

static void two_ranks(bool over_shm, struct absence *a, void (*meanwhile)(struct td_comm **))
{
    struct td_comm *comms[MAX_RANKS];
    struct td_err err;

    assert_int_equal(over_shm ? td_comm_shm_open(2, NULL, comms, &err)
                              : td_comm_sim_open(2, comms, &err),
                     TD_OK);
    run_ends(2, comms, 1, false, sum_without_other, a, meanwhile);
}

static void test_sumthread_tells_of_a_lost_rank_at_every_wait(void **state)
{
    (void)state;
    two_ranks(false, &(struct absence){.want = TD_PEER_LOST, .cause = "tree_sum"}, kill_other);
}

static void test_sumthread_ends_at_the_deadline_of_a_sum(void **state)
{
    struct absence a = {.want = TD_PEER_TIMED_OUT,
                        .cause = "tree_sum: rank 1 did not answer within 0.050 s",
                        .limit_ns = (uint64_t)LIMIT_MS * MS};

    (void)state;
    two_ranks(false, &a, NULL);
    two_ranks(true, &a, NULL);
}

static void test_sumthread_ends_when_the_group_is_aborted(void **state)
{
    struct absence a = {.want = TD_PEER_LOST, .cause = "tree_sum: the group was given up"};

    (void)state;
    two_ranks(false, &a, abort_first);
    two_ranks(true, &a, abort_first);
}

/* A group of one: what was begun is done when close returns. */
static void test_sumthread_close_waits_for_what_was_begun(void **state)
{
    struct td_sumthread *t;
    struct td_comm *comm;
    struct sums s;
    struct td_err err;

    (void)state;
    td_sumthread_close(NULL);
    assert_int_equal(td_comm_self_open(&comm, &err), TD_OK);
    assert_int_equal(td_sumthread_open(comm, NULL, &t, &err), TD_OK);
    td_sumthread_close(t); /* nothing was begun */
    open_sums(&s, 1, 0);
    assert_int_equal(td_sumthread_open(comm, NULL, &t, &err), TD_OK);
    for (uint32_t k = 0; k < TD_SUMTHREAD_DEPTH; k++) {
        fill_parts(&s, 0, k, k, MAX_FLOATS);
        assert_true(begin_sum(&s, t, k, MAX_FLOATS) == k + 1);
    }
    td_sumthread_close(t);
    for (uint32_t k = 0; k < TD_SUMTHREAD_DEPTH; k++)
        for (size_t i = 0; i < MAX_FLOATS; i++)
            assert_true(s.out[k][i] == whole(k, i));
    close_sums(&s);
    td_comm_close(comm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sumthread_gives_every_sum_on_every_transport),
        cmocka_unit_test(test_sumthread_tells_of_a_lost_rank_at_every_wait),
        cmocka_unit_test(test_sumthread_ends_at_the_deadline_of_a_sum),
        cmocka_unit_test(test_sumthread_ends_when_the_group_is_aborted),
        cmocka_unit_test(test_sumthread_close_waits_for_what_was_begun),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
