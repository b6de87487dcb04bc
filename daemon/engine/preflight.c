#include "daemon/engine/preflight.h"

#include "comm/linkprobe.h"
#include "daemon/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Open MPI's segment of 4 MiB per rank, with what it keeps for messages between two. */
static const uint64_t SHM_BYTES_PER_RANK = (uint64_t)8 << 20;
static const int64_t CLOCK_LIMIT_NS = 50000000;
enum { FILES_WANTED = 1024, FILES_PER_RANK = 4, FILES_NEEDED = 64 };

/* ---- The facts ---- */

void td_preflight_read(const struct td_node *node, struct td_preflight_facts *out)
{
    memset(out, 0, sizeof *out);
    out->node = node->facts;
    out->first = node->host;
    td_hostfacts_read("", &node->mask, &out->host);
}

enum td_status td_preflight_gather(struct td_comm *world, const struct td_preflight_facts *mine,
                                   struct td_preflight_facts *all, struct td_err *err)
{
    size_t bytes[TD_PLAN_MAX_RANKS];

    for (uint32_t r = 0; r < td_comm_size(world) && r < TD_PLAN_MAX_RANKS; r++)
        bytes[r] = sizeof *mine;
    return td_comm_all_gather(world, mine, bytes, all, err);
}

const char *td_preflight_host_name(const struct td_preflight_facts *all, uint32_t n, uint32_t first,
                                   char *out, size_t out_bytes)
{
    bool is_unique = true;

    for (uint32_t r = 0; r < n; r++)
        is_unique = is_unique &&
                    (all[r].first == first || strcmp(all[r].node.host, all[first].node.host) != 0);
    if (is_unique)
        snprintf(out, out_bytes, "%s", all[first].node.host);
    else
        snprintf(out, out_bytes, "%s (rank %u)", all[first].node.host, first);
    return out;
}

/* ---- Equal on all ranks ---- */

typedef const char *text_fn(const struct td_preflight_facts *f, int which);

static const char *node_text(const struct td_preflight_facts *f, int which)
{
    return td_node_fact_text(&f->node, (enum td_node_fact)which);
}

enum { OTHER_NCCL, OTHER_DRIVER, OTHER_DEVICE };

static const char *other_text(const struct td_preflight_facts *f, int which)
{
    return which == OTHER_NCCL ? f->nccl : which == OTHER_DRIVER ? f->driver : f->node.device;
}

/* One line: what all have, or who differs first and how many do. A text that rank 0 and all others lack is none of the checks. */
static void judge_text(const struct td_preflight_facts *all, uint32_t n, const char *check,
                       text_fn *text, int which, enum td_verdict verdict,
                       struct td_verdict_report *report)
{
    const char *want = text(&all[0], which);
    uint32_t n_differ = 0, differs = 0;

    for (uint32_t r = n; r-- > 1;) {
        if (strcmp(text(&all[r], which), want) == 0)
            continue;
        differs = r;
        n_differ++;
    }
    if (n_differ > 0) {
        const char *have = text(&all[differs], which);

        td_verdict_add(report, verdict, check, "all ranks",
                       "rank %u on %s has %s, rank 0 on %s has %s; %u of %u ranks differ from "
                       "rank 0",
                       differs, all[differs].node.host, *have ? have : "nothing", all[0].node.host,
                       *want ? want : "nothing", n_differ, n);
    } else if (*want) {
        td_verdict_add(report, TD_VERDICT_OK, check, "all ranks", "%s", want);
    }
}

/* Open MPI and NCCL promise nothing between versions. Ranks with other instruction sets give the same bits: only slower. */
void td_preflight_judge_equal(const struct td_preflight_facts *all, uint32_t n,
                              struct td_verdict_report *report)
{
    for (int fact = 0; fact < TD_NODE_N_FACTS; fact++)
        judge_text(all, n, td_node_fact_name((enum td_node_fact)fact), node_text, fact,
                   TD_VERDICT_ERROR, report);
    judge_text(all, n, "device", other_text, OTHER_DEVICE, TD_VERDICT_WARNING, report);
    judge_text(all, n, "NCCL", other_text, OTHER_NCCL, TD_VERDICT_ERROR, report);
    judge_text(all, n, "NVIDIA driver", other_text, OTHER_DRIVER, TD_VERDICT_WARNING, report);
}

/* ---- Per host ---- */

/* "1.5 GiB"; "unlimited". Returns out. */
static const char *bytes_text(uint64_t bytes, char *out, size_t out_bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double x = (double)bytes;
    unsigned u = 0;

    if (bytes == UINT64_MAX) {
        snprintf(out, out_bytes, "unlimited");
        return out;
    }
    for (; x >= 1024.0 && u + 1 < sizeof units / sizeof units[0]; u++)
        x /= 1024.0;
    snprintf(out, out_bytes, u ? "%.1f %s" : "%.0f %s", x, units[u]);
    return out;
}

/* One host: its first rank's facts speak for it. */
struct host {
    const struct td_preflight_facts *all; /* [n] */
    uint32_t n, first, n_ranks;
    const struct td_hostfacts *facts; /* of the first rank */
    char name[96];
};

/* The next host from rank *r on; false when there is none. */
static bool next_host(const struct td_preflight_facts *all, uint32_t n, uint32_t *r,
                      struct host *host)
{
    while (*r < n && all[*r].first != *r)
        ++*r;
    if (*r >= n)
        return false;
    *host = (struct host){.all = all, .n = n, .first = *r, .facts = &all[*r].host};
    for (uint32_t i = 0; i < n; i++)
        host->n_ranks += all[i].first == *r;
    td_preflight_host_name(all, n, *r, host->name, sizeof host->name);
    ++*r;
    return true;
}

static void judge_shm(const struct host *h, struct td_verdict_report *report)
{
    uint64_t need = h->n_ranks * SHM_BYTES_PER_RANK;
    char free_text[32], size_text[32], need_text[32];

    if (h->n_ranks < 2) {
        td_verdict_add(report, TD_VERDICT_OK, "shared memory", h->name, "one rank: it needs none");
        return;
    }
    if (h->facts->shm_bytes == 0) {
        td_verdict_add(report, TD_VERDICT_WARNING, "shared memory", h->name,
                       "no /dev/shm: the ranks of this host need another folder on memory, or "
                       "messages go through a disk's files");
        return;
    }
    td_verdict_add(report, h->facts->shm_free_bytes < need ? TD_VERDICT_ERROR : TD_VERDICT_OK,
                   "shared memory", h->name, "%s of /dev/shm's %s are free, %u ranks need %s%s",
                   bytes_text(h->facts->shm_free_bytes, free_text, sizeof free_text),
                   bytes_text(h->facts->shm_bytes, size_text, sizeof size_text), h->n_ranks,
                   bytes_text(need, need_text, sizeof need_text),
                   h->facts->shm_free_bytes < need
                       ? ": without, a rank is killed when it first writes there (containers: "
                         "raise --shm-size)"
                       : "");
}

static void judge_memory(const struct host *h, struct td_verdict_report *report)
{
    const struct td_hostfacts *f = h->facts;
    bool is_limited = f->memory_limit_bytes && f->memory_limit_bytes < f->memory_bytes;
    bool is_low = f->memory_free_bytes < f->memory_bytes / 10;
    char free_text[32], size_text[32], limit_text[32];

    if (f->memory_bytes == 0) {
        td_verdict_add(report, TD_VERDICT_WARNING, "memory", h->name,
                       "/proc/meminfo tells no size");
        return;
    }
    td_verdict_add(report, is_low ? TD_VERDICT_WARNING : TD_VERDICT_OK, "memory", h->name,
                   "%s of %s are free%s", bytes_text(f->memory_free_bytes, free_text, 32),
                   bytes_text(f->memory_bytes, size_text, 32), is_low ? ", less than a tenth" : "");
    if (is_limited)
        td_verdict_add(report, TD_VERDICT_WARNING, "memory limit", h->name,
                       "the control group allows %s of the machine's %s: its ranks are killed "
                       "beyond that",
                       bytes_text(f->memory_limit_bytes, limit_text, 32), size_text);
    else
        td_verdict_add(report, TD_VERDICT_OK, "memory limit", h->name,
                       "none below the machine's memory");
}

static void judge_quota(const struct host *h, struct td_verdict_report *report)
{
    const struct td_hostfacts *f = h->facts;

    if (f->n_quota && f->n_quota < f->n_online)
        td_verdict_add(report, TD_VERDICT_WARNING, "processor limit", h->name,
                       "the control group allows the time of %u of the machine's %u hardware "
                       "threads",
                       f->n_quota, f->n_online);
    else
        td_verdict_add(report, TD_VERDICT_OK, "processor limit", h->name,
                       "none below the machine's %u hardware threads", f->n_online);
}

/* Only a fabric's adapter, or a GPU's copies, pin memory: nothing else here is locked. */
static void judge_limits(const struct host *h, struct td_verdict_report *report)
{
    const struct td_hostfacts *f = h->facts;
    bool is_short = f->has_rdma && f->memlock_bytes != UINT64_MAX;
    uint64_t need = FILES_NEEDED + (uint64_t)FILES_PER_RANK * h->n;
    char text[32];

    bytes_text(f->memlock_bytes, text, sizeof text);
    td_verdict_add(report, is_short ? TD_VERDICT_WARNING : TD_VERDICT_OK, "locked memory", h->name,
                   is_short ? "at most %s, and there is an RDMA adapter, which wants 'unlimited' "
                              "(ulimit -l)"
                   : f->memlock_bytes == UINT64_MAX ? "%s"
                                                    : "at most %s; no RDMA adapter wants more",
                   text);
    if (f->n_files == UINT64_MAX)
        td_verdict_add(report, TD_VERDICT_OK, "open files", h->name, "unlimited");
    else
        td_verdict_add(report,
                       f->n_files < need           ? TD_VERDICT_ERROR
                       : f->n_files < FILES_WANTED ? TD_VERDICT_WARNING
                                                   : TD_VERDICT_OK,
                       "open files", h->name,
                       f->n_files < need ? "at most %llu, and a group of %u rank%s needs %llu "
                                           "(ulimit -n)"
                       : f->n_files < FILES_WANTED
                           ? "at most %llu; a group of %u rank%s needs %llu, and a server one for "
                             "each client (ulimit -n)"
                           : "at most %llu; a group of %u rank%s needs %llu",
                       (unsigned long long)f->n_files, h->n, h->n == 1 ? "" : "s",
                       (unsigned long long)need);
}

static void judge_tuning(const struct host *h, struct td_verdict_report *report)
{
    const char *pages = h->facts->huge_pages, *governor = h->facts->governor;
    bool never = strcmp(pages, "never") == 0;
    bool slow = strcmp(governor, "powersave") == 0 || strcmp(governor, "conservative") == 0;

    td_verdict_add(report, never ? TD_VERDICT_WARNING : TD_VERDICT_OK, "huge pages", h->name,
                   "%s%s", *pages ? pages : "the system does not tell",
                   never ? ": reading weights is slower; 'madvise' suffices "
                           "(/sys/kernel/mm/transparent_hugepage/enabled)"
                         : "");
    td_verdict_add(report, slow ? TD_VERDICT_WARNING : TD_VERDICT_OK, "frequency governor", h->name,
                   "%s%s", *governor ? governor : "the system does not tell",
                   slow ? ": steps are short, and the clock follows late; 'performance' does not "
                          "have to"
                        : "");
}

void td_preflight_judge_hosts(const struct td_preflight_facts *all, uint32_t n,
                              struct td_verdict_report *report)
{
    struct host h;

    for (uint32_t r = 0; next_host(all, n, &r, &h);) {
        judge_shm(&h, report);
        judge_memory(&h, report);
        judge_quota(&h, report);
        judge_limits(&h, report);
        judge_tuning(&h, report);
    }
}

/* ---- Cores ---- */

static bool is_bound(const struct td_hostfacts *f)
{
    return td_hostfacts_n_cpus(f) < f->n_online;
}

/* Ranks with one mask divide it among themselves, which is no fault unless it has fewer hardware threads than ranks. */
static bool clash(const struct host *h, uint32_t a, uint32_t b)
{
    const struct td_hostfacts *x = &h->all[a].host, *y = &h->all[b].host;
    uint32_t n_same = 0;

    if (!is_bound(x) || !is_bound(y) || td_hostfacts_n_common(x, y) == 0)
        return false;
    if (memcmp(x->cpus, y->cpus, sizeof x->cpus) != 0)
        return true;
    for (uint32_t r = 0; r < h->n; r++)
        n_same += h->all[r].first == h->first &&
                  memcmp(h->all[r].host.cpus, x->cpus, sizeof x->cpus) == 0;
    return n_same > td_hostfacts_n_cpus(x);
}

static void judge_binding(const struct host *h, struct td_verdict_report *report)
{
    uint32_t n_clashes = 0, a = 0, b = 0, n_bound = 0;

    for (uint32_t y = h->n; y-- > 0;) {
        if (h->all[y].first != h->first)
            continue;
        n_bound += is_bound(&h->all[y].host);
        for (uint32_t x = y; x-- > 0;) {
            if (h->all[x].first != h->first || !clash(h, x, y))
                continue;
            n_clashes++;
            a = x;
            b = y;
        }
    }
    if (h->n_ranks == 1)
        td_verdict_add(report, TD_VERDICT_OK, "binding", h->name,
                       "one rank, with %u of %u hardware threads", td_hostfacts_n_cpus(h->facts),
                       h->facts->n_online);
    else if (n_clashes)
        td_verdict_add(report, TD_VERDICT_WARNING, "binding", h->name,
                       "ranks %u and %u are bound to the same %u of %u hardware threads%s: start "
                       "them with --bind-to none, or one job on a host",
                       a, b, td_hostfacts_n_common(&h->all[a].host, &h->all[b].host),
                       h->facts->n_online, n_clashes > 1 ? ", and others are too" : "");
    else
        td_verdict_add(report, TD_VERDICT_OK, "binding", h->name,
                       "no two of %u ranks are bound to the same hardware threads (%u bound)",
                       h->n_ranks, n_bound);
}

static void judge_threads(const struct host *h, struct td_verdict_report *report)
{
    uint64_t cpus[TD_HOSTFACTS_CPU_WORDS] = {0};
    uint32_t n_threads = 0, n_cores = 0, n_sum = 0;
    struct td_hostfacts all_masks = {0};

    for (uint32_t r = 0; r < h->n; r++) {
        const struct td_preflight_facts *f = &h->all[r];
        bool is_new = false;

        if (f->first != h->first)
            continue;
        n_threads += f->node.n_threads;
        for (unsigned w = 0; w < TD_HOSTFACTS_CPU_WORDS; w++) {
            is_new = is_new || (f->host.cpus[w] & ~cpus[w]);
            cpus[w] |= f->host.cpus[w];
        }
        /* Cores of masks that were not seen before; overlapping masks count once, by the larger. */
        n_sum += is_new ? f->node.n_cores : 0;
        n_cores = f->node.n_cores > n_cores ? f->node.n_cores : n_cores;
    }
    memcpy(all_masks.cpus, cpus, sizeof cpus);
    n_cores = n_sum > n_cores ? n_sum : n_cores;
    if (n_cores > td_hostfacts_n_cpus(&all_masks))
        n_cores = td_hostfacts_n_cpus(&all_masks);
    if (h->facts->n_quota && h->facts->n_quota < n_cores)
        n_cores = h->facts->n_quota;
    td_verdict_add(report, n_threads > n_cores ? TD_VERDICT_WARNING : TD_VERDICT_OK, "threads",
                   h->name, "%u rank%s with %u thread%s in all on %u core%s%s", h->n_ranks,
                   h->n_ranks == 1 ? "" : "s", n_threads, n_threads == 1 ? "" : "s", n_cores,
                   n_cores == 1 ? "" : "s",
                   n_threads > n_cores ? ": they take turns, and every step waits for the last; "
                                         "fewer ranks or --threads"
                                       : "");
}

void td_preflight_judge_cores(const struct td_preflight_facts *all, uint32_t n,
                              struct td_verdict_report *report)
{
    struct host h;

    for (uint32_t r = 0; next_host(all, n, &r, &h);) {
        judge_binding(&h, report);
        judge_threads(&h, report);
    }
}

void td_preflight_judge_start(const struct td_preflight_facts *all, uint32_t n,
                              struct td_verdict_report *report)
{
    struct host h;

    judge_text(all, n, td_node_fact_name(TD_NODE_MPI), node_text, TD_NODE_MPI, TD_VERDICT_WARNING,
               report);
    for (uint32_t r = 0; next_host(all, n, &r, &h);) {
        judge_shm(&h, report);
        judge_binding(&h, report);
    }
}

void td_preflight_judge_clocks(const struct td_preflight_facts *all, const int64_t *offset_ns,
                               uint32_t n, struct td_verdict_report *report)
{
    struct host h, zero;

    for (uint32_t r = 0; next_host(all, n, &r, &h);) {
        int64_t offset = offset_ns[h.first];
        bool is_off = offset > CLOCK_LIMIT_NS || offset < -CLOCK_LIMIT_NS;

        if (h.first == 0) {
            zero = h;
            if (h.n_ranks == n)
                td_verdict_add(report, TD_VERDICT_OK, "clock", h.name, "one host, one clock");
            continue;
        }
        td_verdict_add(report, is_off ? TD_VERDICT_WARNING : TD_VERDICT_OK, "clock", h.name,
                       "%.3f ms %s %s%s", (offset < 0 ? -1e-6 : 1e-6) * (double)offset,
                       offset < 0 ? "behind" : "ahead of", zero.name,
                       is_off ? ": logs of the two cannot be held together beyond 50 ms; let NTP "
                                "set them"
                              : "");
    }
}

/* ---- Links ---- */

/* The pairs of one kind. A latency counts where it is long, a bandwidth where it is small. */
struct links {
    const struct td_linkprobe_link *all; /* [n x n] */
    uint32_t n;
    double *x; /* of the pairs that were measured, sorted */
    uint32_t n_pairs, n_measured, worst_a, worst_b;
    double worst;
};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void take_links(const struct td_preflight_facts *facts, bool is_local, bool is_latency,
                       struct links *l)
{
    l->n_pairs = l->n_measured = 0;
    for (uint32_t a = 0; a < l->n; a++) {
        for (uint32_t b = is_latency ? a + 1 : 0; b < l->n; b++) {
            const struct td_linkprobe_link *link = &l->all[(size_t)a * l->n + b];
            double x = is_latency ? (double)link->latency_ns * 1e-3 : link->bytes_per_second * 1e-9;

            if (a == b || (facts[a].first == facts[b].first) != is_local)
                continue;
            l->n_pairs++;
            if (link->latency_ns == 0)
                continue;
            if (l->n_measured == 0 || (is_latency ? x > l->worst : x < l->worst)) {
                l->worst = x;
                l->worst_a = a;
                l->worst_b = b;
            }
            l->x[l->n_measured++] = x;
        }
    }
    qsort(l->x, l->n_measured, sizeof *l->x, compare);
}

/* A link between hosts that is four times worse than the middle one, among enough to tell, has something of its own. Ranks of
 * one host have the same memory: what differs there is who else had the cores. */
static void judge_kind(const struct td_preflight_facts *facts, bool is_local, bool is_latency,
                       struct links *l, struct td_verdict_report *report)
{
    enum { LEAST_PAIRS = 3, FAR_BEHIND = 4 };
    const char *check = is_latency ? "latency" : "bandwidth", *unit = is_latency ? "us" : "GB/s";
    const char *where = is_local ? "ranks of a host" : "between hosts";
    bool is_far;
    double middle;

    take_links(facts, is_local, is_latency, l);
    if (l->n_pairs == 0)
        return;
    if (l->n_measured == 0) {
        td_verdict_add(report, TD_VERDICT_WARNING, check, where,
                       "none of %u pairs was measured: there was no time left", l->n_pairs);
        return;
    }
    middle = l->x[l->n_measured / 2];
    is_far = !is_local && l->n_measured >= LEAST_PAIRS &&
             (is_latency ? l->worst > FAR_BEHIND * middle : FAR_BEHIND * l->worst < middle);
    td_verdict_add(
        report, is_far || l->n_measured < l->n_pairs ? TD_VERDICT_WARNING : TD_VERDICT_OK, check,
        where, "median %.4g %s, best %.4g %s, worst %.4g %s (ranks %u - %u on %s - %s)%s", middle,
        unit, l->x[is_latency ? 0 : l->n_measured - 1], unit, l->worst, unit, l->worst_a,
        l->worst_b, facts[l->worst_a].node.host, facts[l->worst_b].node.host,
        is_far                       ? ": far behind the others"
        : l->n_measured < l->n_pairs ? "; some pairs were not measured, for time"
                                     : "");
}

void td_preflight_judge_links(const struct td_preflight_facts *all,
                              const struct td_linkprobe_link *links, uint32_t n,
                              struct td_verdict_report *report)
{
    struct links l = {.all = links, .n = n, .x = calloc((size_t)n * n, sizeof(double))};

    report->lacks_memory = report->lacks_memory || !l.x;
    for (int local = 1; l.x && local >= 0; local--) {
        judge_kind(all, local, true, &l, report);
        judge_kind(all, local, false, &l, report);
    }
    free(l.x);
}

/* ---- The start ---- */

enum td_status td_preflight_start(struct td_node *node, struct td_err *err)
{
    uint32_t n = td_comm_size(node->world);
    struct td_preflight_facts mine, *all = NULL;
    struct td_verdict_report report = {0};
    enum td_status s = TD_OK;

    if (n == 1)
        return TD_OK;
    all = calloc(n, sizeof *all);
    if (!all)
        s = td_err_set(err, TD_NO_MEMORY, "no memory for the facts of %u ranks", n);
    s = td_node_agree(node->world, s, err);
    td_preflight_read(node, &mine);
    s = s ? s : td_preflight_gather(node->world, &mine, all, err);
    if (!s && td_comm_rank(node->world) == 0)
        td_preflight_judge_start(all, n, &report);
    for (uint32_t i = 0; i < report.n; i++)
        if (report.lines[i].verdict != TD_VERDICT_OK)
            td_log_warn("preflight check=\"%s\" where=\"%s\" found=\"%s\"", report.lines[i].check,
                        report.lines[i].where, report.lines[i].text);
    td_verdict_deinit(&report);
    free(all);
    return s;
}
