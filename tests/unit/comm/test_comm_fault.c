/* A rank is lost before, in the middle of, or after every operation. Who must notice, and when, is worked out here from
 * the shape of each operation: who hears from whom, in which order. */
#include "comm/comm.h"

#include "tests/unit/comm/sim_group.h"

enum { MAX = 8, SMALL = 100, LARGE = 6000, LIMIT_NS = 50000000, N_RANDOM = 150 };
enum {
    SLICED_FLOATS = 840 * 16 * 5
}; /* over 256 KB; a slice on 3, 5 and 8 ranks is of equal length */

enum op { PAIRS, RING, BCAST, GATHER, ALL_GATHER, SUM, SPLIT, BARRIER, SLICES };

static const struct op_case {
    enum op op;
    size_t bytes; /* of a message */
    uint32_t n_min;
} op_cases[] = {
    {PAIRS, SMALL, 2},      {PAIRS, LARGE, 2},      {RING, SMALL, 2},   {RING, LARGE, 2},
    {BCAST, SMALL, 2},      {BCAST, LARGE, 2},      {GATHER, SMALL, 2}, {GATHER, LARGE, 2},
    {ALL_GATHER, SMALL, 2}, {ALL_GATHER, LARGE, 2}, {SUM, SMALL, 2},    {SUM, LARGE, 2},
    {SPLIT, 16, 2},         {BARRIER, 0, 2},        {SLICES, 0, 3},
};
enum { N_OP_CASES = sizeof op_cases / sizeof op_cases[0] };

/* What happens to the victim. */
struct fault {
    struct op_case op;
    uint32_t n;
    uint32_t victim;
    bool silent; /* before the operation, and nobody is told */
    bool
        posted; /* it has begun its part of the operation (as far as it is one exchange, all of it) */
    uint32_t n_sent;  /* of its messages that have left */
    uint64_t lost_ns; /* UINT64_MAX: silent */
};

/* What a rank left. */
struct result {
    enum td_status status;
    uint64_t at_ns;
    enum td_status later;
};

struct run {
    struct op_case op;
    uint64_t limit_ns;
    uint64_t lost_ns[MAX];
    bool silent[MAX];
    struct result results[MAX];
};

/* Made once. All floats of parts[r] are r + 1; the others are written by the thread with that number. */
static float parts[MAX][SLICED_FLOATS];
static float scratch[MAX][MAX * SLICED_FLOATS];
static float sums[MAX][SLICED_FLOATS];

/* The operations. Each checks what it got when it succeeds. */

static bool all_equal(const uint8_t *data, size_t bytes, uint8_t value)
{
    for (size_t i = 0; i < bytes; i++) {
        if (data[i] != value)
            return false;
    }
    return true;
}

/* Even ranks send to the next one; a last one without a partner does nothing. */
static enum td_status do_pairs(struct td_comm *c, size_t bytes, bool *right)
{
    uint32_t me = td_comm_rank(c);
    uint8_t data[LARGE];
    enum td_status status;

    *right = true;
    memset(data, (int)me + 1, sizeof data);
    if (me % 2 == 0)
        return me + 1 < td_comm_size(c) ? td_comm_send(c, me + 1, data, bytes, NULL) : TD_OK;
    status = td_comm_recv(c, me - 1, data, bytes, NULL);
    *right = status != TD_OK || all_equal(data, bytes, (uint8_t)me);
    return status;
}

static enum td_status do_ring(struct td_comm *c, size_t bytes, bool *right)
{
    uint32_t me = td_comm_rank(c);
    uint32_t n = td_comm_size(c);
    uint32_t previous = (me + n - 1) % n;
    uint8_t out[LARGE];
    uint8_t in[LARGE];
    enum td_status status;

    memset(out, (int)me + 1, sizeof out);
    status = td_comm_sendrecv(c, (me + 1) % n, out, bytes, previous, in, bytes, NULL);
    *right = status != TD_OK || all_equal(in, bytes, (uint8_t)(previous + 1));
    return status;
}

enum { BCAST_ROOT = 1 };

static enum td_status do_bcast(struct td_comm *c, size_t bytes, bool *right)
{
    uint8_t data[LARGE];
    enum td_status status;

    memset(data, td_comm_rank(c) == BCAST_ROOT ? 77 : 0, sizeof data);
    status = td_comm_bcast(c, BCAST_ROOT, data, bytes, NULL);
    *right = status != TD_OK || all_equal(data, bytes, 77);
    return status;
}

/* The last rank is the root, or all are. */
static enum td_status do_gather(struct td_comm *c, size_t bytes, bool all, uint32_t thread,
                                bool *right)
{
    uint32_t me = td_comm_rank(c);
    uint32_t n = td_comm_size(c);
    size_t shares[MAX];
    uint8_t out[LARGE];
    uint8_t *in = (uint8_t *)scratch[thread];
    enum td_status status;

    for (uint32_t r = 0; r < n; r++)
        shares[r] = bytes;
    memset(out, (int)me + 1, sizeof out);
    memset(in, 0, n * bytes);
    status = all ? td_comm_all_gather(c, out, shares, in, NULL)
                 : td_comm_gather(c, n - 1, out, shares, in, NULL);
    *right = true;
    for (uint32_t r = 0; r < n && status == TD_OK && (all || me == n - 1); r++)
        *right = *right && all_equal(in + r * bytes, bytes, (uint8_t)(r + 1));
    return status;
}

/* Rank r owns leaf r, whose floats are all r + 1. */
static enum td_status do_sum(struct td_comm *c, size_t n_floats, uint32_t thread, bool *right)
{
    uint32_t me = td_comm_rank(c);
    uint32_t n = td_comm_size(c);
    struct td_leaf_run runs[MAX];
    struct td_tree_layout layout = {n, runs};
    enum td_status status;

    for (uint32_t r = 0; r < n; r++)
        runs[r] = (struct td_leaf_run){r, r + 1};
    memset(sums[thread], 0, n_floats * sizeof(float));
    status = td_comm_tree_sum(c, &layout, parts[me], n_floats, scratch[thread], sums[thread], NULL);
    *right = true;
    for (size_t i = 0; i < n_floats && status == TD_OK; i++)
        *right = *right && sums[thread][i] == (float)(n * (n + 1) / 2);
    return status;
}

static enum td_status do_split(struct td_comm *c, bool *right)
{
    uint32_t me = td_comm_rank(c);
    struct td_comm *half = NULL;
    enum td_status status = td_comm_split(c, (int)(me % 2), 0, &half, NULL);

    *right = status == TD_OK ? td_comm_rank(half) == me / 2 &&
                                   td_comm_size(half) == (td_comm_size(c) + 1 - me % 2) / 2
                             : half == NULL;
    td_comm_close(half);
    return status;
}

static enum td_status do_op(struct td_comm *c, const struct op_case *op, uint32_t thread,
                            bool *right)
{
    *right = true;
    switch (op->op) {
    case PAIRS:
        return do_pairs(c, op->bytes, right);
    case RING:
        return do_ring(c, op->bytes, right);
    case BCAST:
        return do_bcast(c, op->bytes, right);
    case GATHER:
        return do_gather(c, op->bytes, false, thread, right);
    case ALL_GATHER:
        return do_gather(c, op->bytes, true, thread, right);
    case SUM:
        return do_sum(c, op->bytes / sizeof(float), thread, right);
    case SPLIT:
        return do_split(c, right);
    case BARRIER:
        return td_comm_barrier(c, NULL);
    case SLICES:
        return do_sum(c, SLICED_FLOATS, thread, right);
    }
    return TD_INTERNAL;
}

/* One rank: the operation, then a barrier, which fails for all, then whatever: at once and in the same way. */
static void run_rank(struct sim_rank *r)
{
    struct run *run = r->shared;
    struct td_comm *c = r->check.comm;
    uint32_t me = td_comm_rank(c);
    struct result *result = &run->results[me];
    bool right;
    uint64_t now_ns;

    td_comm_set_deadline(c, run->limit_ns);
    if (run->lost_ns[me] != UINT64_MAX)
        td_comm_sim_kill_at(c, run->lost_ns[me]);
    if (run->silent[me])
        td_comm_sim_advance(c, UINT64_MAX);
    result->status = do_op(c, &run->op, me, &right);
    result->at_ns = td_comm_sim_now(c);
    if (!right)
        check_fail(&r->check, "wrong data (operation, status)", run->op.op, result->status);
    if (run->lost_ns[me] != UINT64_MAX) /* a victim whose time has not come */
        td_comm_sim_advance(c, 1000000000000u);
    result->later = td_comm_barrier(c, NULL);
    now_ns = td_comm_sim_now(c);
    if (result->later != TD_PEER_LOST && result->later != TD_PEER_TIMED_OUT)
        check_fail(&r->check, "a barrier without all ranks (operation, status)", run->op.op,
                   result->later);
    if (result->status != TD_OK && (result->later != result->status || now_ns != result->at_ns))
        check_fail(&r->check, "an operation after a failure (operation, status)", run->op.op,
                   result->later);
    if (run->op.op != PAIRS && do_op(c, &run->op, me, &right) != result->later)
        check_fail(&r->check, "a third operation (operation, status)", run->op.op, result->later);
    if (td_comm_sim_now(c) != now_ns)
        check_fail(&r->check, "a third operation took time (operation, ns)", run->op.op,
                   td_comm_sim_now(c) - now_ns);
}

static void run_all(uint32_t n, struct run *run)
{
    struct td_comm *comms[MAX];
    struct sim_rank ranks[MAX];

    sim_open(n, &flat, comms);
    sim_run(n, comms, run_rank, run, ranks);
}

/* When the victim's messages leave, if nobody is lost. */

static uint32_t rounds(uint32_t n)
{
    uint32_t k = 0;

    while (1u << k < n)
        k++;
    return k;
}

/* In a broadcast, ranks count from the root, and r hears from r without its lowest bit. */
static uint32_t from_root(uint32_t r, uint32_t n)
{
    return (r + n - BCAST_ROOT) % n;
}

static uint32_t lowest_bit(uint32_t r, uint32_t n)
{
    return r ? r & -r : 1u << rounds(n);
}

/* How many of r's sends in a broadcast go to a child at a distance above `bit`; the farthest is first. */
static uint32_t sends_above(uint32_t r, uint32_t bit, uint32_t n)
{
    uint32_t count = 0;

    for (uint32_t b = lowest_bit(r, n) / 2; b > bit; b /= 2)
        count += r + b < n;
    return count;
}

static uint64_t heard_ns(uint32_t r, uint32_t n, size_t bytes)
{
    uint32_t bit = r & -r;

    if (r == 0)
        return 0;
    return heard_ns(r - bit, n, bytes) + (sends_above(r - bit, bit, n) + 1) * D(bytes) + A;
}

static size_t message_bytes(const struct fault *f)
{
    return f->op.op == SLICES ? SLICED_FLOATS * sizeof(float) / f->n : f->op.bytes;
}

static uint32_t n_messages(const struct fault *f)
{
    switch (f->op.op) {
    case PAIRS:
        return f->victim % 2 == 0 && f->victim + 1 < f->n;
    case RING:
        return 1;
    case BCAST:
        return sends_above(from_root(f->victim, f->n), 0, f->n);
    case GATHER:
        return f->victim != f->n - 1;
    case ALL_GATHER:
    case SUM:
    case SPLIT:
        return f->n - 1;
    case BARRIER:
        return rounds(f->n);
    case SLICES:
        return 2 * (f->n - 1);
    }
    return 0;
}

/* When the victim's message k begins to leave. */
static uint64_t begins_ns(const struct fault *f, uint32_t k)
{
    uint64_t d = D(message_bytes(f));

    switch (f->op.op) {
    case BARRIER:
        return k * (d + A);
    case BCAST:
        return heard_ns(from_root(f->victim, f->n), f->n, f->op.bytes) + k * d;
    case SLICES:
        return k * d + (k >= f->n - 1 ? A : 0);
    default:
        return k * d;
    }
}

/* Who gets what it needs. */

static bool pairs_ok(const struct fault *f, uint32_t r, bool large)
{
    if ((r ^ 1) != f->victim)
        return true;
    return r % 2 ? f->n_sent > 0 : f->posted || !large;
}

static bool bcast_ok(const struct fault *f, uint32_t r, bool large)
{
    uint32_t rank = from_root(r, f->n);
    uint32_t victim = from_root(f->victim, f->n);
    uint32_t bit = 1;

    if (victim && rank == victim - (victim & -victim))
        return f->posted || !large; /* its message is never asked for */
    if (rank < victim || rank >= victim + lowest_bit(victim, f->n))
        return true;
    while (2 * bit <= rank - victim)
        bit *= 2;
    return sends_above(victim, bit, f->n) < f->n_sent;
}

/* A rank that misses a round's message sends nothing in the rounds after it. */
static bool barrier_ok(const struct fault *f, uint32_t r)
{
    uint32_t failed_in[MAX];

    for (uint32_t i = 0; i < f->n; i++)
        failed_in[i] = UINT32_MAX;
    for (uint32_t k = 0; k < rounds(f->n); k++) {
        for (uint32_t i = 0; i < f->n; i++) {
            uint32_t from = (i + f->n - (1u << k)) % f->n;
            bool sends = from == f->victim ? k < f->n_sent : failed_in[from] >= k;

            if (!sends && failed_in[i] == UINT32_MAX)
                failed_in[i] = k;
        }
    }
    return failed_in[r] == UINT32_MAX;
}

static bool expect_ok(const struct fault *f, uint32_t r)
{
    bool large = f->op.bytes > TD_COMM_SIM_EAGER_BYTES;
    uint32_t ahead = (r + f->n - f->victim) % f->n;

    switch (f->op.op) {
    case PAIRS:
        return pairs_ok(f, r, large);
    case RING:
        return (ahead != 1 || f->n_sent) && (ahead != f->n - 1 || f->posted || !large);
    case BCAST:
        return bcast_ok(f, r, large);
    case GATHER:
        return f->victim == f->n - 1 ? f->posted || !large : r != f->n - 1 || f->n_sent;
    case ALL_GATHER:
    case SUM:
    case SPLIT:
        return ahead <= f->n_sent;
    case BARRIER:
        return barrier_ok(f, r);
    case SLICES:
        return ahead + f->n - 1 <= f->n_sent;
    }
    return false;
}

/* When rank r notices; 0 where only bounds are worked out here. */
static uint64_t expect_noticed_ns(const struct fault *f, uint32_t r)
{
    uint32_t rank = from_root(r, f->n);
    uint32_t victim = from_root(f->victim, f->n);

    switch (f->op.op) {
    case BARRIER:
    case SLICES:
        return 0;
    case BCAST:
        if (rank > victim) /* from rank to rank, down the tree */
            return f->lost_ns + (uint64_t)__builtin_popcount(rank - victim) * A;
        return heard_ns(rank, f->n, f->op.bytes) > f->lost_ns + A
                   ? heard_ns(rank, f->n, f->op.bytes)
                   : f->lost_ns + A;
    default:
        return f->lost_ns + A;
    }
}

static void describe(const struct fault *f, uint32_t r, const struct result *got)
{
    fail_msg("operation %d of %zu bytes, %u ranks, rank %u %s at %llu after %u messages: rank %u: "
             "status %d at %llu, expected %s (at %llu)",
             (int)f->op.op, f->op.bytes, f->n, f->victim, f->silent ? "silent" : "lost",
             (unsigned long long)f->lost_ns, f->n_sent, r, (int)got->status,
             (unsigned long long)got->at_ns, expect_ok(f, r) ? "success" : "failure",
             (unsigned long long)expect_noticed_ns(f, r));
}

static void check_result(const struct fault *f, uint32_t r, const struct result *got,
                         uint64_t whole_ns)
{
    uint64_t noticed_ns = expect_noticed_ns(f, r);
    bool ok;

    if (expect_ok(f, r)) {
        ok = got->status == TD_OK && got->at_ns <= whole_ns;
    } else if (f->silent) {
        ok = got->status == TD_PEER_TIMED_OUT && got->at_ns == LIMIT_NS;
    } else if (noticed_ns) {
        ok = got->status == TD_PEER_LOST && got->at_ns == noticed_ns;
    } else { /* not before it can know, and at most one latency per rank later */
        uint64_t latest_ns = f->lost_ns > whole_ns ? f->lost_ns : whole_ns;

        ok = got->status == TD_PEER_LOST && got->at_ns >= f->lost_ns + A &&
             got->at_ns <= latest_ns + (f->n - 1) * (uint64_t)A;
    }
    if (!ok)
        describe(f, r, got);
}

/* How long the operation takes at most, if nobody is lost. */
static uint64_t whole_ns(const struct fault *f)
{
    uint64_t d = D(message_bytes(f));

    if (f->op.op == SLICES)
        return 2 * ((f->n - 1) * d + A);
    if (f->op.op == BARRIER || f->op.op == BCAST)
        return rounds(f->n) * (d + A);
    return (f->n - 1) * d + A;
}

static void check_fault(const struct fault *f)
{
    struct run run = {.op = f->op, .limit_ns = f->silent ? LIMIT_NS : 0};

    for (uint32_t r = 0; r < f->n; r++)
        run.lost_ns[r] = r == f->victim ? f->lost_ns : UINT64_MAX;
    run.silent[f->victim] = f->silent;
    run_all(f->n, &run);
    for (uint32_t r = 0; r < f->n; r++) {
        const struct result *got = &run.results[r];

        if (r != f->victim)
            check_result(f, r, got, whole_ns(f));
        else if (f->silent              ? got->status != TD_PEER_TIMED_OUT
                 : got->status == TD_OK ? f->n_sent < n_messages(f)
                                        : got->status != TD_PEER_LOST || got->at_ns != f->lost_ns)
            describe(f, r, got);
    }
}

static void check_victim(const struct op_case *op, uint32_t n, uint32_t victim)
{
    struct fault f = {.op = *op, .n = n, .victim = victim};
    uint64_t d = D(message_bytes(&f));

    if (op->op == PAIRS && victim % 2 == 0 && victim + 1 == n)
        return; /* has no part */
    check_fault(&f);
    f.silent = true;
    f.lost_ns = UINT64_MAX;
    check_fault(&f);
    f.silent = false;
    f.posted = true;
    for (f.n_sent = 0; f.n_sent <= n_messages(&f); f.n_sent++) {
        if (f.n_sent < n_messages(&f))
            f.lost_ns = begins_ns(&f, f.n_sent) + d / 2;
        else if (f.n_sent > 0)
            f.lost_ns = begins_ns(&f, f.n_sent - 1) + d + d / 2;
        else
            f.lost_ns = d / 2;
        check_fault(&f);
    }
}

static void check_ranks(uint32_t n)
{
    for (uint32_t i = 0; i < N_OP_CASES; i++) {
        for (uint32_t victim = 0; victim < n && n >= op_cases[i].n_min; victim++)
            check_victim(&op_cases[i], n, victim);
    }
}

static void test_comm_fault_any_moment_of_any_operation_on_2_ranks(void **state)
{
    (void)state;
    check_ranks(2);
}

static void test_comm_fault_any_moment_of_any_operation_on_3_ranks(void **state)
{
    (void)state;
    check_ranks(3);
}

static void test_comm_fault_any_moment_of_any_operation_on_5_ranks(void **state)
{
    (void)state;
    check_ranks(5);
}

static void test_comm_fault_any_moment_of_any_operation_on_8_ranks(void **state)
{
    (void)state;
    check_ranks(8);
}

/* Several ranks are lost or silent, each at a moment of its own: everybody returns, nobody before it can know, and a
 * second run says the same. */
static void test_comm_fault_several_ranks_at_random_moments(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < N_RANDOM; seed++) {
        uint64_t dice = check_mix(seed);
        struct fault f = {.op = op_cases[dice % N_OP_CASES], .n = 3 + (uint32_t)(dice >> 8) % 6};
        struct run runs[2] = {{.op = f.op, .limit_ns = LIMIT_NS}};
        uint64_t first_ns = UINT64_MAX;
        bool any_silent = false;

        for (uint32_t r = 0; r < f.n; r++) {
            uint64_t d = check_mix(dice + 1 + r);

            runs[0].lost_ns[r] = r == 0 || d % 3 == 0 ? (d >> 8) % (whole_ns(&f) + A) : UINT64_MAX;
            runs[0].silent[r] = d % 8 == 0;
            any_silent = any_silent || runs[0].silent[r];
            if (runs[0].lost_ns[r] < first_ns)
                first_ns = runs[0].lost_ns[r];
        }
        runs[1] = runs[0];
        run_all(f.n, &runs[0]);
        run_all(f.n, &runs[1]);
        for (uint32_t r = 0; r < f.n; r++) {
            const struct result *a = &runs[0].results[r];
            const struct result *b = &runs[1].results[r];
            bool own = runs[0].lost_ns[r] != UINT64_MAX || runs[0].silent[r];

            if (a->status != b->status || a->at_ns != b->at_ns || a->later != b->later)
                fail_msg("seed %llu, rank %u: status %d at %llu, then %d at %llu",
                         (unsigned long long)seed, r, (int)a->status, (unsigned long long)a->at_ns,
                         (int)b->status, (unsigned long long)b->at_ns);
            if (!own && a->status == TD_PEER_LOST &&
                (a->at_ns < first_ns + A || (a->at_ns > LIMIT_NS)))
                fail_msg("seed %llu, rank %u: lost at %llu, the first at %llu",
                         (unsigned long long)seed, r, (unsigned long long)a->at_ns,
                         (unsigned long long)first_ns);
            if (!own && a->status == TD_PEER_TIMED_OUT && (!any_silent || a->at_ns != LIMIT_NS))
                fail_msg("seed %llu, rank %u: timed out at %llu", (unsigned long long)seed, r,
                         (unsigned long long)a->at_ns);
        }
    }
}

/* Two halves of a group. A rank of the odd one is lost; the even one goes on, until it needs all. */
static void halves(struct sim_rank *r)
{
    struct td_comm *c = r->check.comm;
    uint32_t me = td_comm_rank(c);
    struct td_comm *half = NULL;
    struct td_err err;
    enum td_status status;
    bool right;

    if (me == 3)
        td_comm_sim_kill_at(c, 1000000);
    if (!check_ok(&r->check, td_comm_split(c, (int)(me % 2), 0, &half, &err), &err))
        return;
    td_comm_sim_advance(c, 2000000);
    for (uint32_t i = 0; i < N_OP_CASES; i++) {
        const struct op_case *op = &op_cases[i];

        status = do_op(half, op, me, &right);
        /* In the odd half, whoever does not hear from the lost rank at first does so from here on. */
        if (!right || (me % 2 && op->op >= ALL_GATHER ? status != TD_PEER_LOST
                                                      : me % 2 == 0 && status != TD_OK))
            check_fail(&r->check, "in a half (operation, status)", op->op, status);
    }
    status = td_comm_barrier(c, &err);
    if (status != TD_PEER_LOST)
        check_fail(&r->check, "in the whole", me, status);
    td_comm_close(half);
}

static void test_comm_fault_a_group_without_the_lost_rank_goes_on(void **state)
{
    struct td_comm *comms[MAX];
    struct sim_rank ranks[MAX];

    (void)state;
    sim_open(8, &flat, comms);
    sim_run(8, comms, halves, NULL, ranks);
}

static int fill_parts(void **state)
{
    (void)state;
    for (uint32_t r = 0; r < MAX; r++) {
        for (size_t i = 0; i < SLICED_FLOATS; i++)
            parts[r][i] = (float)(r + 1);
    }
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comm_fault_any_moment_of_any_operation_on_2_ranks),
        cmocka_unit_test(test_comm_fault_any_moment_of_any_operation_on_3_ranks),
        cmocka_unit_test(test_comm_fault_any_moment_of_any_operation_on_5_ranks),
        cmocka_unit_test(test_comm_fault_any_moment_of_any_operation_on_8_ranks),
        cmocka_unit_test(test_comm_fault_several_ranks_at_random_moments),
        cmocka_unit_test(test_comm_fault_a_group_without_the_lost_rank_goes_on),
    };

    return cmocka_run_group_tests(tests, fill_parts, NULL);
}
