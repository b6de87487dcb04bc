/* A rank of an MPI job is killed or stops answering, before or inside an operation between hosts: what the others' waits say,
 * and that their processes end. This program starts itself under mpirun, a job per case. Its ranks also run over a link that
 * another test cuts: mpirun ... test_comm_mpi_fault link DIR DEADLINE_MS, see run_link. */
#include "comm/comm_mpi.h"

#include "kernels/base/clock.h"
#include "tests/unit/comm/comm_check.h"
#include "tests/unit/comm/mpi_job.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/prctl.h>

enum {
    MS = 1000 * 1000,
    DEADLINE_MS = 300,        /* of an operation in which a rank may be lost */
    WARM_UP_MS = 15 * 1000,   /* of one before: the machine may have other work */
    HUNG_S = 20,              /* a rank that does one thing as long as this hangs */
    JOB_LIMIT_MS = 60 * 1000, /* of one case */
    SMALL = 1000,             /* goes with its envelope */
    LARGE = 1 << 20,          /* waits for its receiver, and fills its socket */
    MAX = 8,                  /* ranks */
    N_WHOLE = 3,              /* rounds before the first in which a rank may be lost */
    ROOT = 1
};

enum op { PAIRS, RING, BCAST, ALL_GATHER, GATHER, BARRIER, SUM };
enum moment { FIRST, BETWEEN, WITHIN }; /* before the first operation; between two; from a thread */
enum link { TCP, MEMORY };              /* what Open MPI takes between ranks here */

static const struct fault_case {
    enum op op;
    enum td_sum_algorithm algorithm;
    size_t bytes;
    uint32_t n;
    uint32_t per_host; /* these share our memory; 0: all by messages */
    uint32_t victim;
    int how; /* the signal: SIGSTOP is a peer that says nothing more */
    enum moment moment;
    enum link link;
} cases[] = {
    {PAIRS, TD_SUM_AUTO, SMALL, 2, 0, 0, SIGKILL, WITHIN, TCP},
    {PAIRS, TD_SUM_AUTO, SMALL, 2, 0, 1, SIGSTOP, FIRST, TCP},
    {PAIRS, TD_SUM_AUTO, LARGE, 2, 0, 1, SIGKILL, BETWEEN, TCP},
    {PAIRS, TD_SUM_AUTO, LARGE, 4, 0, 2, SIGSTOP, WITHIN, TCP},
    {RING, TD_SUM_AUTO, SMALL, 3, 0, 1, SIGKILL, BETWEEN, MEMORY},
    {RING, TD_SUM_AUTO, LARGE, 4, 0, 3, SIGKILL, WITHIN, TCP},
    {BCAST, TD_SUM_AUTO, SMALL, 3, 0, 2, SIGSTOP, WITHIN, TCP},
    {BCAST, TD_SUM_AUTO, LARGE, 3, 0, ROOT, SIGKILL, WITHIN, MEMORY},
    {ALL_GATHER, TD_SUM_AUTO, SMALL, 4, 0, 1, SIGKILL, FIRST, TCP},
    {ALL_GATHER, TD_SUM_AUTO, LARGE, 3, 0, 0, SIGSTOP, WITHIN, MEMORY},
    {GATHER, TD_SUM_AUTO, SMALL, 3, 0, ROOT, SIGKILL, WITHIN, TCP},
    {GATHER, TD_SUM_AUTO, LARGE, 4, 0, 3, SIGSTOP, BETWEEN, TCP},
    {BARRIER, TD_SUM_AUTO, 0, 2, 0, 1, SIGKILL, FIRST, TCP},
    {BARRIER, TD_SUM_AUTO, 0, 4, 0, 0, SIGSTOP, WITHIN, TCP},
    {SUM, TD_SUM_ONE_SHOT, SMALL, 2, 0, 1, SIGKILL, WITHIN, TCP},
    {SUM, TD_SUM_ONE_SHOT, LARGE, 4, 0, 2, SIGSTOP, BETWEEN, TCP},
    {SUM, TD_SUM_TWO_SHOT, SMALL, 3, 0, 0, SIGSTOP, WITHIN, TCP},
    {SUM, TD_SUM_TWO_SHOT, LARGE, 3, 0, 2, SIGKILL, WITHIN, TCP},
    {SUM, TD_SUM_DOUBLING, SMALL, 3, 0, 2, SIGKILL, BETWEEN, TCP},
    {SUM, TD_SUM_DOUBLING, LARGE, 4, 0, 1, SIGKILL, WITHIN, TCP},
    {SUM, TD_SUM_LEADERS, SMALL, 4, 2, 2, SIGKILL, WITHIN, TCP},
    {SUM, TD_SUM_LEADERS, LARGE, 3, 2, 2, SIGSTOP, WITHIN, TCP},
    {SUM, TD_SUM_LANES, SMALL, 4, 2, 3, SIGSTOP, BETWEEN, TCP},
    {SUM, TD_SUM_LANES, LARGE, 4, 2, 1, SIGKILL, WITHIN, TCP},
    {SUM, TD_SUM_LEADERS_DOUBLING, LARGE, 5, 2, 4, SIGKILL, WITHIN, TCP},
    {SUM, TD_SUM_LANES_DOUBLING, SMALL, 6, 2, 0, SIGKILL, BETWEEN, TCP},
};
enum { N_CASES = sizeof cases / sizeof cases[0] };

static const char *self_path;

static const char *describe(const struct fault_case *c, char *out, size_t out_bytes)
{
    static const char *const ops[] = {"send and recv", "sendrecv", "bcast",   "all_gather",
                                      "gather",        "barrier",  "tree_sum"};
    static const char *const moments[] = {"before the first", "between two", "within"};
    static const char *const links[] = {"TCP", "Open MPI's memory"};

    snprintf(out, out_bytes, "%s%s%s of %zu bytes, %u ranks, %u to a host, over %s: rank %u %s %s",
             ops[c->op], c->op == SUM ? " " : "",
             c->op == SUM ? td_comm_sum_name(c->algorithm) : "", c->bytes, c->n,
             c->per_host ? c->per_host : 1, links[c->link], c->victim,
             c->how == SIGKILL ? "killed" : "stopped", moments[c->moment]);
    return out;
}

/* ---- one rank ---- */

/* Buffers of failed operations stay the transport's, so all live as long as the process. */
static uint8_t out[LARGE];
static uint8_t in[MAX * LARGE];
static float parts[LARGE / sizeof(float)];
static float total[LARGE / sizeof(float)];
static float scratch[MAX * LARGE / sizeof(float)];

/* For the handler: where the verdict goes, and which operation hangs. */
static char verdict_path[512];
static const char *volatile doing = "opening the group";
static atomic_uint n_done;

static void hung(int number)
{
    const char *words[] = {"hung in ", doing};
    int f = open(verdict_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    bool ok = f >= 0;

    (void)number;
    for (size_t i = 0; i < 2 && ok; i++)
        ok = write(f, words[i], strlen(words[i])) > 0;
    _exit(ok ? 4 : 5);
}

/* Begins what may take HUNG_S. */
static void begin(const char *what)
{
    doing = what;
    alarm(HUNG_S);
}

/* Rank r's bytes and floats, the same in every round. */
static uint64_t key_of(uint32_t r)
{
    return check_mix(7000 + r);
}

static float given(uint32_t r, size_t i)
{
    return (float)(r + 1) * ((float)(i % 1009) - 504.0f);
}

static void fill(const struct comm_check *k)
{
    check_fill(out, sizeof out, key_of(td_comm_rank(k->comm)));
    for (size_t i = 0; i < sizeof parts / sizeof(float); i++)
        parts[i] = given(td_comm_rank(k->comm), i);
}

/* An even rank sends to the next one, which answers with a byte. A last one without a partner does nothing. */
static enum td_status do_pairs(struct comm_check *k, size_t bytes, struct td_err *err)
{
    uint32_t me = td_comm_rank(k->comm), partner = me ^ 1;
    enum td_status status;

    if (partner >= td_comm_size(k->comm))
        return TD_OK;
    if (me % 2 == 0) {
        status = td_comm_send(k->comm, partner, out, bytes, err);
        if (status == TD_OK)
            status = td_comm_recv(k->comm, partner, in, 1, err);
        if (status == TD_OK)
            check_same(k, "the answer", in, 1, key_of(partner));
        return status;
    }
    status = td_comm_recv(k->comm, partner, in, bytes, err);
    if (status != TD_OK)
        return status;
    check_same(k, "the message", in, bytes, key_of(partner));
    return td_comm_send(k->comm, partner, out, 1, err);
}

static enum td_status do_ring(struct comm_check *k, size_t bytes, struct td_err *err)
{
    uint32_t me = td_comm_rank(k->comm), n = td_comm_size(k->comm), previous = (me + n - 1) % n;
    enum td_status status =
        td_comm_sendrecv(k->comm, (me + 1) % n, out, bytes, previous, in, bytes, err);

    if (status == TD_OK)
        check_same(k, "sendrecv", in, bytes, key_of(previous));
    return status;
}

static enum td_status do_bcast(struct comm_check *k, size_t bytes, struct td_err *err)
{
    bool sends = td_comm_rank(k->comm) == ROOT;
    enum td_status status = td_comm_bcast(k->comm, ROOT, sends ? out : in, bytes, err);

    if (status == TD_OK && !sends)
        check_same(k, "bcast", in, bytes, key_of(ROOT));
    return status;
}

static enum td_status do_gather(struct comm_check *k, size_t bytes, bool all, struct td_err *err)
{
    size_t shares[MAX];
    enum td_status status;

    for (uint32_t r = 0; r < td_comm_size(k->comm); r++)
        shares[r] = bytes;
    status = all ? td_comm_all_gather(k->comm, out, shares, in, err)
                 : td_comm_gather(k->comm, ROOT, out, shares, in, err);
    for (uint32_t r = 0;
         status == TD_OK && (all || td_comm_rank(k->comm) == ROOT) && r < td_comm_size(k->comm);
         r++)
        check_same(k, "gathered", in + r * bytes, bytes, key_of(r));
    return status;
}

/* Rank r owns leaf r. The numbers are whole and their sums below 2^24, so that they come out in any order. */
static enum td_status do_sum(struct comm_check *k, size_t bytes, struct td_err *err)
{
    uint32_t n = td_comm_size(k->comm);
    struct td_leaf_run runs[MAX];
    struct td_tree_layout layout = {n, runs};
    enum td_status status;

    for (uint32_t r = 0; r < n; r++)
        runs[r] = (struct td_leaf_run){r, r + 1};
    status = td_comm_tree_sum(k->comm, &layout, parts, bytes / sizeof(float), scratch, total, err);
    for (size_t i = 0; status == TD_OK && i < bytes / sizeof(float); i++) {
        float weight = (float)(n * (n + 1) / 2);

        if (total[i] != weight * ((float)(i % 1009) - 504.0f)) {
            check_fail(k, "float of a sum", i, bytes / sizeof(float));
            break;
        }
    }
    return status;
}

static enum td_status do_op(struct comm_check *k, const struct fault_case *c, struct td_err *err)
{
    memset(in, 0xee, c->n * c->bytes);
    memset(total, 0xee, c->bytes);
    switch (c->op) {
    case PAIRS:
        return do_pairs(k, c->bytes, err);
    case RING:
        return do_ring(k, c->bytes, err);
    case BCAST:
        return do_bcast(k, c->bytes, err);
    case ALL_GATHER:
        return do_gather(k, c->bytes, true, err);
    case GATHER:
        return do_gather(k, c->bytes, false, err);
    case BARRIER:
        return td_comm_barrier(k->comm, err);
    case SUM:
        return do_sum(k, c->bytes, err);
    }
    return TD_INTERNAL;
}

static void *lose_it(void *user)
{
    const struct fault_case *c = user;

    while (atomic_load(&n_done) <= N_WHOLE)
        job_pause_ms(1);
    job_pause_ms(3);
    kill(getpid(), c->how);
    return NULL;
}

/* What every later operation must do: say the same, without a wait. There is no deadline that could end one. */
static void check_later(struct comm_check *k, const struct fault_case *c, enum td_status lost)
{
    struct td_err err = {0};

    td_comm_set_deadline(k->comm, 0);
    for (int i = 0; i < 3 && !k->fail[0]; i++) {
        enum td_status status;

        begin("an operation after the failure");
        status = i == 1 ? td_comm_barrier(k->comm, &err) : do_op(k, c, &err);
        if (status == TD_OK && c->op == PAIRS && (td_comm_rank(k->comm) ^ 1) >= c->n)
            continue; /* it has nobody to talk to */
        if (status != lost || !strstr(err.cause, "the group was given up"))
            check_fail(k, err.cause, (size_t)status, (size_t)lost);
    }
}

/* Goes round until an operation fails; returns how. A barrier stands in every round, so that whoever does not need the lost rank
 * itself waits for somebody who does. *took_ns: of what failed. */
static enum td_status go_round(struct comm_check *k, const struct fault_case *c, bool is_victim,
                               uint64_t *took_ns, struct td_err *err)
{
    for (uint32_t round = 0;; round++) {
        bool warm_up = c->moment != FIRST && round < N_WHOLE;
        uint64_t start_ns = td_clock_now_ns();
        enum td_status status;

        td_comm_set_deadline(k->comm, (warm_up ? WARM_UP_MS : DEADLINE_MS) * (uint64_t)MS);
        if (is_victim && c->moment != WITHIN && round == (c->moment == FIRST ? 0 : N_WHOLE + 1))
            return TD_OK;
        begin("the operation");
        status = do_op(k, c, err);
        if (status == TD_OK && !k->fail[0]) {
            atomic_fetch_add(&n_done, 1);
            begin("the barrier");
            start_ns = td_clock_now_ns();
            status = td_comm_barrier(k->comm, err);
        }
        *took_ns = td_clock_now_ns() - start_ns;
        if (status != TD_OK || k->fail[0])
            return status;
    }
}

/* Does not return on the rank that is to be lost. */
static void run_rounds(struct comm_check *k, const struct fault_case *c)
{
    bool is_victim = td_comm_rank(k->comm) == c->victim;
    struct td_err err = {0};
    uint64_t took_ns = 0;
    enum td_status status;
    pthread_t thread;

    if (is_victim && c->moment == WITHIN &&
        pthread_create(&thread, NULL, lose_it, (void *)(uintptr_t)c) != 0)
        exit(3);
    status = go_round(k, c, is_victim, &took_ns, &err);
    if (k->fail[0])
        return;
    if (is_victim)
        raise(c->how); /* its own operation may have failed first, where the machine is busy */
    if (status != TD_PEER_LOST && status != TD_PEER_TIMED_OUT)
        check_fail(k, err.cause, (size_t)status, 0);
    else if (status == TD_PEER_TIMED_OUT && took_ns < DEADLINE_MS * (uint64_t)MS)
        check_fail(k, "timed out before the deadline (us)", took_ns / 1000, 0);
    else if (c->moment != FIRST && atomic_load(&n_done) < N_WHOLE)
        check_fail(k, "failed before a rank was lost", atomic_load(&n_done), 0);
    else
        check_later(k, c, status);
}

/* Names this process to the parent, and sees to it that it cannot hang unnoticed. */
static bool enter(const char *dir)
{
    struct td_comm_mpi_place place = {0};
    char number[16];

    if (!td_comm_mpi_place(&place))
        return false;
    job_path(verdict_path, sizeof verdict_path, dir, "rank", place.rank);
    signal(SIGALRM, hung);
    snprintf(number, sizeof number, "%d", (int)getpid());
    job_leave(dir, "pid", place.rank, number);
    begin("opening the group");
    return true;
}

static int run_rank(const struct fault_case *c, const char *dir)
{
    struct comm_check k = {.seed = 1};
    struct td_comm *again = NULL;
    struct td_err err = {0};
    uint32_t rank;

    if (!enter(dir))
        return 3;
    td_comm_mpi_configure(c->per_host == 0, c->per_host);
    if (td_comm_mpi_open(&k.comm, &err) != TD_OK) {
        fprintf(stderr, "%s\n", err.cause);
        return 3;
    }
    raise(SIGPIPE); /* as a write to a rank that is gone does, if it comes at the right time */
    rank = td_comm_rank(k.comm);
    fill(&k);
    if (td_comm_size(k.comm) != c->n ||
        strcmp(td_comm_transport(k.comm), c->per_host ? "shm+mpi" : "mpi") != 0)
        check_fail(&k, td_comm_transport(k.comm), td_comm_size(k.comm), c->n);
    if (c->op == SUM && !td_comm_sum_supports(k.comm, c->algorithm))
        check_fail(&k, "the group has no such algorithm", (size_t)c->algorithm, 0);
    td_comm_set_sum_algorithm(k.comm, c->algorithm);
    if (!k.fail[0])
        run_rounds(&k, c);
    begin("closing the group");
    td_comm_abort(k.comm); /* where a check failed nobody may wait for this rank */
    td_comm_close(k.comm);
    if (td_comm_mpi_open(&again, &err) != TD_UNSUPPORTED && !k.fail[0])
        snprintf(k.fail, sizeof k.fail, "MPI was opened after its end");
    job_leave(dir, "rank", rank, k.fail);
    begin("the end of the process");
    return 0; /* through all that the libraries do at exit */
}

/* Sums over whatever link mpirun was given, small and large by turns, until one fails or the file DIR/stop is there. Leaves
 * how many were right as DIR/round.RANK, and at the end DIR/rank.RANK: "well", or a status by name and what it says. */
static int run_link(const char *dir, const char *deadline_ms)
{
    struct comm_check k = {.seed = 1};
    struct td_err err = {0};
    enum td_status status;
    uint32_t rank, round = 0;
    uint8_t is_over = 0;
    char text[600], stop[512];

    snprintf(stop, sizeof stop, "%s/stop", dir);
    if (!enter(dir) || td_comm_mpi_open(&k.comm, &err) != TD_OK)
        return 3;
    rank = td_comm_rank(k.comm);
    fill(&k);
    td_comm_set_deadline(k.comm, strtoull(deadline_ms, NULL, 10) * MS);
    do {
        begin("a sum");
        status = do_sum(&k, round % 2 ? LARGE : SMALL, &err);
        is_over = access(stop, F_OK) == 0;
        if (status == TD_OK)
            status = td_comm_bcast(k.comm, 0, &is_over, sizeof is_over, &err);
        round += status == TD_OK;
        snprintf(text, sizeof text, "%u", round);
        job_leave(dir, "round", rank, text);
    } while (status == TD_OK && !is_over && !k.fail[0]);
    begin("closing the group");
    td_comm_close(k.comm);
    snprintf(text, sizeof text, "%s: %s", td_status_name(status), err.cause);
    job_leave(dir, "rank", rank, k.fail[0] ? k.fail : status == TD_OK ? "well" : text);
    begin("the end of the process");
    return 0;
}

/* ---- the parent ---- */

/* A stopped rank ends when all others have said what they saw. */
static void await_case(struct mpi_job *job, const struct fault_case *c, char *fail,
                       size_t fail_bytes)
{
    char text[32];
    bool there = false;

    for (int waited = 0; c->how == SIGSTOP && !there && waited < JOB_LIMIT_MS; waited += 5) {
        uint32_t n = 0;

        if (job_has_ended(job))
            break;
        for (uint32_t r = 0; r < c->n; r++)
            n += job_has_left(job->dir, "rank", r);
        there = n == c->n - 1;
        job_pause_ms(5);
    }
    if (c->how == SIGSTOP && job_read(job, "pid", c->victim, text, sizeof text))
        kill((pid_t)atoi(text), SIGKILL);
    if (!job_await(job, JOB_LIMIT_MS))
        snprintf(fail, fail_bytes, "mpirun did not end");
}

/* All that the job started and did not end has become a child of this process. */
static void check_nothing_left(char *fail, size_t fail_bytes)
{
    for (int waited = 0; waited < 2000; waited += 5) {
        pid_t pid = waitpid(-1, NULL, WNOHANG);

        if (pid < 0)
            return;
        if (pid == 0)
            job_pause_ms(5);
    }
    if (!fail[0])
        snprintf(fail, fail_bytes, "a process of the job lives on");
}

static void run_case(const struct fault_case *c)
{
    char n[16], number[16], what[256], fail[1024] = "";
    const char *words[] = {"mpirun", "--enable-recovery", "-n", n, self_path, number, "DIR", NULL};
    struct mpi_job job;

    snprintf(n, sizeof n, "%u", c->n);
    snprintf(number, sizeof number, "%zu", (size_t)(c - cases));
    describe(c, what, sizeof what);
    setenv("OMPI_MCA_btl", c->link == TCP ? "self,tcp" : "self,vader", 1);
    setenv("OMPI_MCA_btl_tcp_if_include", "lo", 1);
    job_start(&job, words);
    await_case(&job, c, fail, sizeof fail);
    for (uint32_t r = 0; r < c->n && !fail[0]; r++) {
        bool there = job_read(&job, "rank", r, fail, sizeof fail);

        if (there == (r == c->victim))
            snprintf(fail, sizeof fail, "rank %u left %s verdict", r, there ? "a" : "no");
    }
    check_nothing_left(fail, sizeof fail);
    if (fail[0])
        job_print_log(&job);
    job_remove(&job);
    if (fail[0])
        fail_msg("%s: %s", what, fail);
}

static void run_cases(enum op first, enum op last)
{
    job_need_mpirun();
    for (size_t i = 0; i < N_CASES; i++) {
        if (cases[i].op >= first && cases[i].op <= last)
            run_case(&cases[i]);
    }
}

static void test_comm_mpi_fault_ends_sends_and_receives(void **state)
{
    (void)state;
    run_cases(PAIRS, RING);
}

static void test_comm_mpi_fault_ends_broadcasts_gathers_and_barriers(void **state)
{
    (void)state;
    run_cases(BCAST, BARRIER);
}

static void test_comm_mpi_fault_ends_sums_by_every_algorithm(void **state)
{
    (void)state;
    run_cases(SUM, SUM);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comm_mpi_fault_ends_sends_and_receives),
        cmocka_unit_test(test_comm_mpi_fault_ends_broadcasts_gathers_and_barriers),
        cmocka_unit_test(test_comm_mpi_fault_ends_sums_by_every_algorithm),
    };

    if (argc == 4 && strcmp(argv[1], "link") == 0)
        return run_link(argv[2], argv[3]);
    if (argc == 3)
        return run_rank(&cases[(size_t)atoi(argv[1]) % N_CASES], argv[2]);
    self_path = argv[0];
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    job_set_environment();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
