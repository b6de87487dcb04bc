/* Verdicts on a group's facts: equal, differing in each field, missing and absurd. The facts are written here; what a line must
 * say follows from them. */
#include "tests/unit/check.h"

#include "comm/comm.h"
#include "comm/linkprobe.h"
#include "daemon/cli/clockskew.h"
#include "daemon/engine/preflight.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { N = 4 };
static const uint64_t MIB = (uint64_t)1 << 20, GIB = (uint64_t)1 << 30;

/* Four good ranks on two hosts of two cores: 0 and 1 on "a", 2 and 3 on "b", each with a hardware thread of its own. */
static void good(struct td_preflight_facts *all)
{
    memset(all, 0, N * sizeof *all);
    for (uint32_t r = 0; r < N; r++) {
        struct td_preflight_facts *f = &all[r];

        snprintf(f->node.version, sizeof f->node.version, "0.1.0");
        snprintf(f->node.host, sizeof f->node.host, "%s", r < 2 ? "a" : "b");
        snprintf(f->node.device, sizeof f->node.device, "cpu avx512");
        snprintf(f->node.numerics, sizeof f->node.numerics, "cpu-2");
        snprintf(f->node.mpi, sizeof f->node.mpi, "Open MPI v4.1.4");
        snprintf(f->nccl, sizeof f->nccl, "none");
        snprintf(f->driver, sizeof f->driver, "none");
        f->node.n_cores = f->node.n_threads = 1;
        f->first = r / 2 * 2;
        f->host = (struct td_hostfacts){.cpus = {(uint64_t)1 << r % 2},
                                        .n_online = 2,
                                        .shm_bytes = GIB,
                                        .shm_free_bytes = GIB,
                                        .memory_bytes = 16 * GIB,
                                        .memory_free_bytes = 8 * GIB,
                                        .memlock_bytes = 8 * MIB,
                                        .n_files = 65536,
                                        .huge_pages = "madvise",
                                        .governor = "performance"};
    }
}

static void judge_all(const struct td_preflight_facts *all, uint32_t n,
                      struct td_verdict_report *report)
{
    td_preflight_judge_equal(all, n, report);
    td_preflight_judge_cores(all, n, report);
    td_preflight_judge_hosts(all, n, report);
}

/* The line of a check, and of a host where there are several. */
static const struct td_verdict_line *find(const struct td_verdict_report *report, const char *check,
                                          const char *where)
{
    for (uint32_t i = 0; i < report->n; i++)
        if (strcmp(report->lines[i].check, check) == 0 &&
            (!where || strcmp(report->lines[i].where, where) == 0))
            return &report->lines[i];
    fail_msg("no line '%s' of '%s'", check, where ? where : "");
    return NULL;
}

/* All facts are good but for what was changed: exactly the line that is asked for is `verdict`, and its text names `words`. */
static void expect_one(const struct td_preflight_facts *all, const char *check, const char *where,
                       enum td_verdict verdict, const char *const *words)
{
    struct td_verdict_report report = {0};
    const struct td_verdict_line *line;
    uint32_t n_bad = 0;

    judge_all(all, N, &report);
    line = find(&report, check, where);
    if (line->verdict != verdict)
        fail_msg("%s of %s is '%s': %s", check, where, td_verdict_name(line->verdict), line->text);
    for (; *words; words++)
        if (!strstr(line->text, *words))
            fail_msg("'%s' does not name '%s'", line->text, *words);
    for (uint32_t i = 0; i < report.n; i++)
        n_bad += report.lines[i].verdict != TD_VERDICT_OK;
    assert_int_equal(n_bad, verdict != TD_VERDICT_OK);
    assert_int_equal(td_verdict_worst(&report), verdict);
    td_verdict_deinit(&report);
}
#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void test_preflight_finds_nothing_wrong_with_equal_ranks(void **state)
{
    struct td_preflight_facts all[N];
    struct td_verdict_report report = {0};

    (void)state;
    good(all);
    judge_all(all, N, &report);
    assert_int_equal(td_verdict_worst(&report), TD_VERDICT_OK);
    assert_string_equal(find(&report, "tensord", "all ranks")->text, "0.1.0");
    assert_string_equal(find(&report, "MPI library", NULL)->text, "Open MPI v4.1.4");
    assert_string_equal(find(&report, "NCCL", NULL)->text, "none");
    find(&report, "shared memory", "a");
    find(&report, "shared memory", "b");
    for (uint32_t i = 0; i < report.n; i++)
        assert_string_not_equal(report.lines[i].check, "model hash"); /* none was opened */
    td_verdict_deinit(&report);
    td_verdict_deinit(&report); /* again is legal */
}

static void test_preflight_names_who_differs_and_in_what(void **state)
{
    struct td_preflight_facts all[N];

    (void)state;
    good(all);
    snprintf(all[2].node.version, sizeof all[2].node.version, "0.0.9");
    expect_one(all, "tensord", "all ranks", TD_VERDICT_ERROR,
               WORDS("rank 2 on b has 0.0.9", "rank 0 on a has 0.1.0", "1 of 4"));
    good(all);
    snprintf(all[1].node.numerics, sizeof all[1].node.numerics, "cpu-3");
    expect_one(all, "numerics class", "all ranks", TD_VERDICT_ERROR, WORDS("cpu-3", "cpu-2"));
    good(all);
    for (int r = 0; r < N; r++)
        snprintf(all[r].node.model_hash, sizeof all[r].node.model_hash, "%d", r < 2 ? 11 : 22);
    expect_one(all, "model hash", "all ranks", TD_VERDICT_ERROR, WORDS("rank 2", "22", "2 of 4"));
    good(all);
    snprintf(all[0].node.mpi, sizeof all[0].node.mpi, "Open MPI v5.0.1");
    expect_one(all, "MPI library", "all ranks", TD_VERDICT_ERROR,
               WORDS("rank 1 on a has Open MPI v4.1.4", "v5.0.1", "3 of 4"));
    good(all);
    snprintf(all[3].node.device, sizeof all[3].node.device, "cpu avx2");
    expect_one(all, "device", "all ranks", TD_VERDICT_WARNING, WORDS("rank 3", "cpu avx2"));
    good(all);
    snprintf(all[3].nccl, sizeof all[3].nccl, "2.18.3");
    expect_one(all, "NCCL", "all ranks", TD_VERDICT_ERROR, WORDS("2.18.3", "none"));
    good(all);
    snprintf(all[2].driver, sizeof all[2].driver, "550.54");
    expect_one(all, "NVIDIA driver", "all ranks", TD_VERDICT_WARNING, WORDS("550.54", "none"));
}

static void test_preflight_tells_of_a_fact_that_a_rank_lacks(void **state)
{
    struct td_preflight_facts all[N];

    (void)state;
    good(all);
    all[3].node.version[0] = '\0';
    expect_one(all, "tensord", "all ranks", TD_VERDICT_ERROR, WORDS("rank 3 on b has nothing"));
    good(all);
    all[0].node.mpi[0] = '\0';
    expect_one(all, "MPI library", "all ranks", TD_VERDICT_ERROR, WORDS("rank 0 on a has nothing"));
}

static void test_preflight_judges_what_a_host_gives(void **state)
{
    struct td_preflight_facts all[N];

    (void)state;
    good(all);
    all[2].host.shm_free_bytes = 15 * MIB; /* two ranks need 16 */
    expect_one(all, "shared memory", "b", TD_VERDICT_ERROR,
               WORDS("15.0 MiB", "16.0 MiB", "1.0 GiB"));
    all[2].host.shm_free_bytes = 16 * MIB;
    expect_one(all, "shared memory", "b", TD_VERDICT_OK, WORDS("16.0 MiB"));
    all[0].host.shm_bytes = all[0].host.shm_free_bytes = 0;
    expect_one(all, "shared memory", "a", TD_VERDICT_WARNING, WORDS("no /dev/shm"));
    good(all);
    all[0].host.memory_free_bytes = 1 * GIB;
    expect_one(all, "memory", "a", TD_VERDICT_WARNING, WORDS("1.0 GiB of 16.0 GiB"));
    all[0].host.memory_bytes = 0;
    expect_one(all, "memory", "a", TD_VERDICT_WARNING, WORDS("no size"));
    good(all);
    all[0].host.memory_limit_bytes = 4 * GIB;
    expect_one(all, "memory limit", "a", TD_VERDICT_WARNING, WORDS("4.0 GiB", "16.0 GiB"));
    all[0].host.memory_limit_bytes = 16 * GIB;
    expect_one(all, "memory limit", "a", TD_VERDICT_OK, WORDS("none"));
    good(all);
    all[2].host.n_files = 79; /* 64 and 4 for each of 4 ranks is 80 */
    expect_one(all, "open files", "b", TD_VERDICT_ERROR, WORDS("79", "80"));
    all[2].host.n_files = 80;
    expect_one(all, "open files", "b", TD_VERDICT_WARNING, WORDS("80"));
    all[2].host.n_files = UINT64_MAX;
    expect_one(all, "open files", "b", TD_VERDICT_OK, WORDS("unlimited"));
    good(all);
    all[0].host.has_rdma = 1;
    expect_one(all, "locked memory", "a", TD_VERDICT_WARNING, WORDS("8.0 MiB", "RDMA"));
    all[0].host.memlock_bytes = UINT64_MAX;
    expect_one(all, "locked memory", "a", TD_VERDICT_OK, WORDS("unlimited"));
    good(all);
    snprintf(all[0].host.huge_pages, sizeof all[0].host.huge_pages, "never");
    expect_one(all, "huge pages", "a", TD_VERDICT_WARNING, WORDS("never", "madvise"));
    good(all);
    snprintf(all[0].host.governor, sizeof all[0].host.governor, "powersave");
    expect_one(all, "frequency governor", "a", TD_VERDICT_WARNING, WORDS("powersave"));
    all[0].host.governor[0] = '\0';
    expect_one(all, "frequency governor", "a", TD_VERDICT_OK, WORDS("does not tell"));
}

static void test_preflight_finds_hardware_threads_that_two_ranks_have(void **state)
{
    struct td_preflight_facts all[N];

    (void)state;
    good(all);
    for (int r = 0; r < N; r++)
        all[r].host.n_online = 4;
    all[1].host.cpus[0] = 1; /* as rank 0's */
    all[0].node.n_threads = 0;
    expect_one(all, "binding", "a", TD_VERDICT_WARNING, WORDS("ranks 0 and 1", "1 of 4"));
    all[0].host.cpus[0] = all[1].host.cpus[0] = 3; /* two threads for two ranks: they divide them */
    expect_one(all, "binding", "a", TD_VERDICT_OK, WORDS("2 bound"));
    all[1].host.cpus[0] = 6; /* {0, 1} and {1, 2} */
    expect_one(all, "binding", "a", TD_VERDICT_WARNING, WORDS("1 of 4"));
    all[1].host.cpus[0] = 15; /* not bound */
    expect_one(all, "binding", "a", TD_VERDICT_OK, WORDS("1 bound"));
    all[0].host.cpus[0] = 15;
    expect_one(all, "binding", "a", TD_VERDICT_OK, WORDS("0 bound"));
    good(all);
    for (int r = 0; r < N; r++)
        all[r].host.cpus[0] = 1; /* hosts share nothing, whatever their numbers */
    all[1].host.cpus[0] = all[3].host.cpus[0] = 2;
    expect_one(all, "binding", "b", TD_VERDICT_OK, WORDS("2 bound"));
}

static void test_preflight_finds_more_threads_than_cores(void **state)
{
    struct td_preflight_facts all[N];

    (void)state;
    good(all);
    all[3].node.n_threads = 2;
    expect_one(all, "threads", "b", TD_VERDICT_WARNING, WORDS("2 ranks with 3 threads", "2 cores"));
    good(all);
    for (int r = 0; r < N; r++) { /* not bound: all see the same two cores */
        all[r].host.cpus[0] = 3;
        all[r].node.n_cores = 2;
    }
    expect_one(all, "threads", "a", TD_VERDICT_OK, WORDS("2 threads", "2 cores"));
    good(all);
    all[2].host.n_quota = 1; /* warns of the limit too */
    {
        struct td_verdict_report report = {0};

        judge_all(all, N, &report);
        assert_int_equal(find(&report, "threads", "b")->verdict, TD_VERDICT_WARNING);
        assert_non_null(strstr(find(&report, "threads", "b")->text, "on 1 core"));
        assert_int_equal(find(&report, "processor limit", "b")->verdict, TD_VERDICT_WARNING);
        assert_int_equal(find(&report, "processor limit", "a")->verdict, TD_VERDICT_OK);
        td_verdict_deinit(&report);
    }
}

static void test_preflight_tells_hosts_of_one_name_apart(void **state)
{
    struct td_preflight_facts all[N];
    struct td_verdict_report report = {0};
    char name[96];

    (void)state;
    good(all);
    assert_string_equal(td_preflight_host_name(all, N, 2, name, sizeof name), "b");
    for (int r = 0; r < N; r++)
        snprintf(all[r].node.host, sizeof all[r].node.host, "node");
    judge_all(all, N, &report);
    find(&report, "binding", "node (rank 0)");
    find(&report, "binding", "node (rank 2)");
    td_verdict_deinit(&report);
}

static void test_preflight_survives_absurd_facts(void **state)
{
    struct td_preflight_facts all[N];
    struct td_verdict_report report = {0};
    const int64_t offsets[N] = {INT64_MAX, INT64_MIN, INT64_MAX, 0};

    (void)state;
    for (int fill = 0; fill < 2; fill++) {
        memset(all, fill ? 0xff : 0, sizeof all);
        for (uint32_t r = 0; r < N; r++) {
            memset(all[r].node.host, 'x', sizeof all[r].node.host - 1);
            memset(all[r].node.version, '%', sizeof all[r].node.version - 1);
            all[r].node.host[sizeof all[r].node.host - 1] = '\0';
            all[r].node.version[sizeof all[r].node.version - 1] = '\0';
            all[r].node.device[0] = all[r].node.numerics[0] = all[r].node.model_hash[0] =
                all[r].node.mpi[0] = all[r].nccl[0] = all[r].driver[0] = '\0';
            all[r].host.huge_pages[0] = all[r].host.governor[0] = '\0';
            all[r].first = r; /* four hosts of one long name */
            all[r].node.n_threads = fill ? UINT32_MAX : 0;
        }
        judge_all(all, N, &report);
        td_preflight_judge_clocks(all, offsets, N, &report);
        assert_int_equal(strlen(find(&report, "tensord", NULL)->text),
                         sizeof all[0].node.version - 1);
        td_verdict_deinit(&report);
    }
}

static void test_preflight_warns_of_clocks_beyond_50_ms(void **state)
{
    static const struct {
        int64_t offset_ns;
        enum td_verdict verdict;
        const char *text;
    } cases[] = {{0, TD_VERDICT_OK, "0.000 ms"},
                 {50000000, TD_VERDICT_OK, "50.000 ms ahead of a"},
                 {50000001, TD_VERDICT_WARNING, "ahead of a"},
                 {-50000001, TD_VERDICT_WARNING, "behind a"},
                 {-3600000000000, TD_VERDICT_WARNING, "3600000.000 ms behind a"}};
    struct td_preflight_facts all[N];

    (void)state;
    good(all);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const int64_t offsets[N] = {0, 7, cases[i].offset_ns, 1000000000000}; /* firsts: 0 and 2 */
        struct td_verdict_report report = {0};

        td_preflight_judge_clocks(all, offsets, N, &report);
        assert_int_equal(report.n, 1);
        assert_string_equal(report.lines[0].where, "b");
        assert_int_equal(report.lines[0].verdict, cases[i].verdict);
        assert_non_null(strstr(report.lines[0].text, cases[i].text));
        td_verdict_deinit(&report);
    }
    {
        struct td_verdict_report report = {0};

        td_preflight_judge_clocks(all, (const int64_t[]){0, 0}, 2, &report); /* one host alone */
        assert_int_equal(report.n, 1);
        assert_int_equal(report.lines[0].verdict, TD_VERDICT_OK);
        td_verdict_deinit(&report);
    }
}

/* Within a host 1 us and 8 GB/s, between hosts 20 us and 1 GB/s. */
static void good_links(struct td_linkprobe_link *links)
{
    for (uint32_t a = 0; a < N; a++)
        for (uint32_t b = 0; b < N; b++)
            links[a * N + b] = a == b           ? (struct td_linkprobe_link){0}
                               : a / 2 == b / 2 ? (struct td_linkprobe_link){1000, 8e9}
                                                : (struct td_linkprobe_link){20000, 1e9};
}

static void test_preflight_names_the_worst_link_of_each_kind(void **state)
{
    struct td_preflight_facts all[N];
    struct td_linkprobe_link links[N * N];
    struct td_verdict_report report = {0};
    const struct td_verdict_line *line;

    (void)state;
    good(all);
    good_links(links);
    links[1 * N + 3].latency_ns = links[3 * N + 1].latency_ns = 60000;
    links[2 * N + 1].bytes_per_second = 0.5e9;
    td_preflight_judge_links(all, links, N, &report);
    assert_int_equal(report.n, 4);
    assert_int_equal(td_verdict_worst(&report), TD_VERDICT_OK); /* three times is no outlier */
    line = find(&report, "latency", "between hosts");
    assert_non_null(
        strstr(line->text, "median 20 us, best 20 us, worst 60 us (ranks 1 - 3 on a - b)"));
    line = find(&report, "bandwidth", "between hosts");
    assert_non_null(strstr(line->text, "median 1 GB/s, best 1 GB/s, worst 0.5 GB/s (ranks 2 - 1"));
    line = find(&report, "latency", "ranks of a host");
    assert_non_null(strstr(line->text, "median 1 us"));
    td_verdict_deinit(&report);

    links[1 * N + 3].latency_ns = links[3 * N + 1].latency_ns = 81000;
    links[2 * N + 1].bytes_per_second = 0.2e9;
    links[0 * N + 1].bytes_per_second = 0.2e9; /* of one host: the cores were busy */
    td_preflight_judge_links(all, links, N, &report);
    assert_int_equal(find(&report, "latency", "between hosts")->verdict, TD_VERDICT_WARNING);
    assert_int_equal(find(&report, "bandwidth", "between hosts")->verdict, TD_VERDICT_WARNING);
    assert_int_equal(find(&report, "bandwidth", "ranks of a host")->verdict, TD_VERDICT_OK);
    td_verdict_deinit(&report);
}

static void test_preflight_tells_of_links_that_nobody_measured(void **state)
{
    struct td_preflight_facts all[N];
    struct td_linkprobe_link links[N * N] = {{0}};
    struct td_verdict_report report = {0};

    (void)state;
    good(all);
    td_preflight_judge_links(all, links, N, &report);
    assert_int_equal(report.n, 4);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(report.lines[i].verdict, TD_VERDICT_WARNING);
    td_verdict_deinit(&report);
    good_links(links);
    links[1] = links[N] = (struct td_linkprobe_link){0};
    td_preflight_judge_links(all, links, N, &report);
    assert_int_equal(find(&report, "latency", "ranks of a host")->verdict, TD_VERDICT_WARNING);
    assert_non_null(strstr(find(&report, "latency", "ranks of a host")->text, "not measured"));
    assert_int_equal(find(&report, "latency", "between hosts")->verdict, TD_VERDICT_OK);
    td_verdict_deinit(&report);
    td_preflight_judge_links(all, links, 1, &report);
    assert_int_equal(report.n, 0); /* one rank has no links */
}

static void test_preflight_at_the_start_has_only_the_cheap_checks(void **state)
{
    struct td_preflight_facts all[N];
    struct td_verdict_report report = {0};

    (void)state;
    good(all);
    snprintf(all[3].node.mpi, sizeof all[3].node.mpi, "Open MPI v4.0.3");
    all[2].host.shm_free_bytes = 1;
    all[1].host.cpus[0] = 1;
    td_preflight_judge_start(all, N, &report);
    assert_int_equal(report.n, 5);
    assert_int_equal(find(&report, "MPI library", NULL)->verdict, TD_VERDICT_WARNING);
    assert_int_equal(find(&report, "shared memory", "b")->verdict, TD_VERDICT_ERROR);
    assert_int_equal(find(&report, "shared memory", "a")->verdict, TD_VERDICT_OK);
    assert_int_equal(find(&report, "binding", "a")->verdict, TD_VERDICT_WARNING);
    td_verdict_deinit(&report);
}

static void test_preflight_cuts_a_text_that_is_too_long(void **state)
{
    struct td_verdict_report report = {0};
    char text[1000];

    (void)state;
    memset(text, 'y', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    for (int i = 0; i < 100; i++)
        td_verdict_add(&report, TD_VERDICT_OK, text, text, "%s", text);
    assert_int_equal(report.n, 100);
    assert_int_equal(strlen(report.lines[99].text), sizeof report.lines[99].text - 1);
    assert_int_equal(td_verdict_worst(&report), TD_VERDICT_OK);
    report.lacks_memory = true;
    assert_int_equal(td_verdict_worst(&report), TD_VERDICT_ERROR);
    td_verdict_deinit(&report);
}

static void test_preflight_lines_are_whole_utf8(void **state)
{
    struct td_verdict_report report = {0};
    char text[1000];

    (void)state;
    td_verdict_add(&report, TD_VERDICT_OK, "c", "h\x80", "a\tb\xff\xc3\xa9\x1b[1m \xe2\x82");
    assert_string_equal(report.lines[0].where, "h?");
    assert_string_equal(report.lines[0].text, "a?b?\xc3\xa9?[1m ??");
    for (size_t i = 0; i + 3 < sizeof text;
         i += 3) /* 383 bytes are 127 of these and two of the next */
        memcpy(text + i, "\xe2\x82\xac", 4);
    td_verdict_add(&report, TD_VERDICT_OK, "c", "h", "%s", text);
    assert_string_equal(report.lines[1].text + 378, "\xe2\x82\xac??");
    td_verdict_deinit(&report);
}

/* ---- Clocks over a group ---- */

/* The shortest round trip, 10 to 30 by the asker's clock, has the answer at 120: ahead by 120 - 20. */
static void test_clockskew_takes_the_shortest_round_trip(void **state)
{
    const struct td_clockskew_sample samples[] = {{0, 500, 100}, {10, 120, 30}, {40, 90, 70}};
    const struct td_clockskew_sample late = {1000, 900, 1100};

    (void)state;
    assert_int_equal(td_clockskew_best(samples, 3), 100);
    assert_int_equal(td_clockskew_best(samples, 1), 450);
    assert_int_equal(td_clockskew_best(&late, 1), -150);
}

struct clock_rank {
    pthread_t thread;
    struct td_comm *comm;
    int64_t offsets[N];
    enum td_status status;
};

static void *measure_clocks(void *arg)
{
    const bool is_asked[N] = {true, true, false, true};
    struct clock_rank *r = arg;

    td_comm_set_deadline(r->comm, 60000000000u);
    r->status = td_clockskew_measure(r->comm, is_asked, r->offsets, NULL);
    return NULL;
}

/* Ranks of one process have one clock: what is measured is at most half a round trip off, and the same everywhere. */
static void test_clockskew_finds_one_clock_in_one_process(void **state)
{
    struct clock_rank ranks[N];
    struct td_comm *comms[N];
    struct td_err err;

    (void)state;
    assert_int_equal(td_comm_sim_open(N, comms, &err), TD_OK);
    for (int r = 0; r < N; r++) {
        ranks[r].comm = comms[r];
        memset(ranks[r].offsets, 0xff, sizeof ranks[r].offsets);
        assert_int_equal(pthread_create(&ranks[r].thread, NULL, measure_clocks, &ranks[r]), 0);
    }
    for (int r = 0; r < N; r++)
        pthread_join(ranks[r].thread, NULL);
    for (int r = 0; r < N; r++) {
        assert_int_equal(ranks[r].status, TD_OK);
        assert_memory_equal(ranks[r].offsets, ranks[0].offsets, sizeof ranks[0].offsets);
        td_comm_close(comms[r]);
    }
    assert_int_equal(ranks[0].offsets[0], 0);
    assert_int_equal(ranks[0].offsets[2], 0);
    for (int r = 0; r < N; r++)
        assert_in_range(ranks[0].offsets[r] + 1000000000, 0, 2000000000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_preflight_finds_nothing_wrong_with_equal_ranks),
        cmocka_unit_test(test_preflight_names_who_differs_and_in_what),
        cmocka_unit_test(test_preflight_tells_of_a_fact_that_a_rank_lacks),
        cmocka_unit_test(test_preflight_judges_what_a_host_gives),
        cmocka_unit_test(test_preflight_finds_hardware_threads_that_two_ranks_have),
        cmocka_unit_test(test_preflight_finds_more_threads_than_cores),
        cmocka_unit_test(test_preflight_tells_hosts_of_one_name_apart),
        cmocka_unit_test(test_preflight_survives_absurd_facts),
        cmocka_unit_test(test_preflight_warns_of_clocks_beyond_50_ms),
        cmocka_unit_test(test_preflight_names_the_worst_link_of_each_kind),
        cmocka_unit_test(test_preflight_tells_of_links_that_nobody_measured),
        cmocka_unit_test(test_preflight_at_the_start_has_only_the_cheap_checks),
        cmocka_unit_test(test_preflight_cuts_a_text_that_is_too_long),
        cmocka_unit_test(test_preflight_lines_are_whole_utf8),
        cmocka_unit_test(test_clockskew_takes_the_shortest_round_trip),
        cmocka_unit_test(test_clockskew_finds_one_clock_in_one_process),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
