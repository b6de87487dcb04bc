#include "daemon/cli/doctor.h"
#include "daemon/cli/term.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

enum { MOST_COLUMNS = 8 }; /* of ranks, in a matrix for people */

static const char *transport_of(const struct td_doctor *d, uint32_t a, uint32_t b)
{
    return d->facts[a].first == d->facts[b].first ? "shared memory" : d->transport;
}

/* ---- For people ---- */

static int widest(const struct td_verdict_report *r, size_t column, size_t least)
{
    size_t most = least;

    for (uint32_t i = 0; i < r->n; i++) {
        size_t len = strlen(column ? r->lines[i].where : r->lines[i].check);

        most = len > most ? len : most;
    }
    return (int)most;
}

static void print_lines(const struct td_verdict_report *r)
{
    int check = widest(r, 0, strlen("check")), where = widest(r, 1, strlen("where"));

    printf("%-7s  %-*s  %-*s  %s\n", "verdict", check, "check", where, "where", "found");
    for (uint32_t i = 0; i < r->n; i++)
        printf("%-7s  %-*s  %-*s  %s\n", td_verdict_name(r->lines[i].verdict), check,
               r->lines[i].check, where, r->lines[i].where, r->lines[i].text);
}

static void print_matrix(const struct td_doctor *d, bool is_latency)
{
    uint32_t n = d->n_ranks;

    printf("\n%s\nrank", is_latency ? "latency, microseconds one way (1 byte, median)"
                                    : "bandwidth, GB/s from the rank of the row (large messages)");
    for (uint32_t b = 0; b < n; b++)
        printf("  %8u", b);
    putchar('\n');
    for (uint32_t a = 0; a < n; a++) {
        printf("%4u", a);
        for (uint32_t b = 0; b < n; b++) {
            const struct td_linkprobe_link *l = &d->links[(size_t)a * n + b];

            if (l->latency_ns == 0)
                printf("  %8s", "-");
            else if (is_latency)
                printf("  %8.1f", (double)l->latency_ns * 1e-3);
            else
                printf("  %8.3f", l->bytes_per_second * 1e-9);
        }
        putchar('\n');
    }
}

static void print_host(const struct td_doctor *d, uint32_t first)
{
    const struct td_netpath_host *host = &d->paths.hosts[first];
    char name[96], ranks[64], text[TD_NETPATH_TEXT];
    uint32_t n = 0, last = first;

    for (uint32_t r = first; r < d->n_ranks; r++)
        if (d->facts[r].first == first) {
            last = r;
            n++;
        }
    if (n == 1)
        snprintf(ranks, sizeof ranks, "%u", first);
    else if (last - first + 1 == n)
        snprintf(ranks, sizeof ranks, "%u-%u", first, last);
    else
        snprintf(ranks, sizeof ranks, "%u of %u-%u", n, first, last);
    td_preflight_host_name(d->facts, d->n_ranks, first, name, sizeof name);
    for (uint32_t i = 0; i < host->n; i++) {
        const struct td_netpath_address *a = &host->addresses[i];

        printf("%-16s  %-10s  %-15s  %-26s  ", name, ranks, a->interface,
               td_netpath_text(&a->ip, text));
        if (a->speed_mbits)
            printf("%u Mbit/s\n", a->speed_mbits);
        else
            printf("unknown\n");
    }
    if (host->n == 0)
        printf("%-16s  %-10s  %-15s  %-26s  -\n", name, ranks, "none", "-");
}

static void print_hosts(const struct td_doctor *d)
{
    printf("\n%-16s  %-10s  %-15s  %-26s  %s\n", "host", "ranks", "interface", "address", "speed");
    for (uint32_t r = 0; r < d->n_ranks; r++)
        if (d->facts[r].first == r)
            print_host(d, r);
}

/* Which ways the links of both tables go. */
static void print_transports(const struct td_doctor *d)
{
    bool is_local = false, is_remote = false;

    for (uint32_t r = 1; r < d->n_ranks; r++) {
        is_local = is_local || d->facts[r].first != r;
        is_remote = is_remote || d->facts[r].first != 0;
    }
    if (d->n_ranks > 1)
        printf("\ntransport: %s%s%s%s\n",
               is_local ? "shared memory between the ranks of a host" : "",
               is_local && is_remote ? ", " : "", is_remote ? d->transport : "",
               is_remote ? " between hosts" : "");
}

void td_doctor_print(const struct td_doctor *d)
{
    uint32_t n[3] = {0};

    print_lines(&d->report);
    print_transports(d);
    if (d->n_ranks > 1 && d->n_ranks <= MOST_COLUMNS) {
        print_matrix(d, true);
        print_matrix(d, false);
    }
    print_hosts(d);
    for (uint32_t i = 0; i < d->report.n; i++)
        n[d->report.lines[i].verdict]++;
    printf("\n%u ok, %u warning%s, %u error%s\n", n[TD_VERDICT_OK], n[TD_VERDICT_WARNING],
           n[TD_VERDICT_WARNING] == 1 ? "" : "s", n[TD_VERDICT_ERROR],
           n[TD_VERDICT_ERROR] == 1 ? "" : "s");
    if (d->report.lacks_memory)
        printf("lines are missing: no memory for them\n");
}

/* ---- JSON ---- */

/* Numbers that nobody measured are null, and limits that are none. */
static json_t *number_or_null(bool is_known, uint64_t x)
{
    return is_known ? json_integer((json_int_t)x) : json_null();
}

static json_t *rate_or_null(bool is_known, double x)
{
    return is_known ? json_real(x) : json_null();
}

static json_t *checks_json(const struct td_verdict_report *r)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < r->n; i++)
        json_array_append_new(list, json_pack("{s:s,s:s,s:s,s:s}", "check", r->lines[i].check,
                                              "where", r->lines[i].where, "verdict",
                                              td_verdict_name(r->lines[i].verdict), "text",
                                              r->lines[i].text));
    return list;
}

static json_t *cpus_json(const struct td_hostfacts *f)
{
    json_t *list = json_array();

    for (unsigned cpu = 0; cpu < TD_HOSTFACTS_CPU_WORDS * 64; cpu++)
        if (f->cpus[cpu / 64] >> cpu % 64 & 1)
            json_array_append_new(list, json_integer(cpu));
    return list;
}

static json_t *ranks_json(const struct td_doctor *d)
{
    json_t *list = json_array();

    for (uint32_t r = 0; r < d->n_ranks; r++) {
        const struct td_preflight_facts *f = &d->facts[r];

        json_array_append_new(
            list, json_pack("{s:i,s:s,s:i,s:I,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:i,s:i,s:o}", "rank",
                            (int)r, "host", f->node.host, "first_rank_of_host", (int)f->first,
                            "pid", (json_int_t)f->node.pid, "version", f->node.version, "mpi",
                            f->node.mpi, "nccl", f->nccl, "nvidia_driver", f->driver, "device",
                            f->node.device, "numerics", f->node.numerics, "model_hash",
                            f->node.model_hash, "threads", (int)f->node.n_threads, "cores",
                            (int)f->node.n_cores, "hardware_threads", cpus_json(&f->host)));
    }
    return list;
}

static json_t *interfaces_json(const struct td_netpath_host *host)
{
    json_t *list = json_array();
    char text[TD_NETPATH_TEXT];

    for (uint32_t i = 0; i < host->n; i++) {
        const struct td_netpath_address *a = &host->addresses[i];

        json_array_append_new(list, json_pack("{s:s,s:s,s:i,s:o}", "interface", a->interface,
                                              "address", td_netpath_text(&a->ip, text),
                                              "prefix_bits", (int)a->prefix_bits, "speed_mbits",
                                              number_or_null(a->speed_mbits > 0, a->speed_mbits)));
    }
    return list;
}

static json_t *hosts_json(const struct td_doctor *d)
{
    json_t *list = json_array();

    for (uint32_t r = 0; r < d->n_ranks; r++) {
        const struct td_hostfacts *f = &d->facts[r].host;
        json_t *host;

        if (d->facts[r].first != r)
            continue;
        host = json_pack(
            "{s:s,s:i,s:i,s:I,s:I,s:I,s:I,s:o,s:o,s:o,s:o}", "host", d->facts[r].node.host,
            "first_rank", (int)r, "hardware_threads", (int)f->n_online, "shm_bytes",
            (json_int_t)f->shm_bytes, "shm_free_bytes", (json_int_t)f->shm_free_bytes,
            "memory_bytes", (json_int_t)f->memory_bytes, "memory_free_bytes",
            (json_int_t)f->memory_free_bytes, "memory_limit_bytes",
            number_or_null(f->memory_limit_bytes > 0, f->memory_limit_bytes), "processor_limit",
            number_or_null(f->n_quota > 0, f->n_quota), "locked_memory_bytes",
            number_or_null(f->memlock_bytes != UINT64_MAX, f->memlock_bytes), "open_files",
            number_or_null(f->n_files != UINT64_MAX, f->n_files));
        json_object_set_new(host, "huge_pages", json_string(f->huge_pages));
        json_object_set_new(host, "frequency_governor", json_string(f->governor));
        json_object_set_new(host, "interfaces", interfaces_json(&d->paths.hosts[r]));
        json_array_append_new(list, host);
    }
    return list;
}

static json_t *links_json(const struct td_doctor *d)
{
    json_t *list = json_array();
    uint32_t n = d->n_ranks;

    for (uint32_t a = 0; a < n; a++) {
        for (uint32_t b = 0; b < n; b++) {
            const struct td_linkprobe_link *l = &d->links[(size_t)a * n + b];
            bool known = l->latency_ns > 0;

            if (a != b)
                json_array_append_new(
                    list, json_pack("{s:i,s:i,s:s,s:o,s:o}", "from", (int)a, "to", (int)b,
                                    "transport", transport_of(d, a, b), "latency_us",
                                    rate_or_null(known, (double)l->latency_ns * 1e-3),
                                    "bytes_per_second", rate_or_null(known, l->bytes_per_second)));
        }
    }
    return list;
}

static json_t *end_json(const struct td_doctor *d, uint32_t rank, uint32_t address)
{
    const struct td_netpath_address *a = &d->paths.hosts[rank].addresses[address];
    char text[TD_NETPATH_TEXT];

    return json_pack("{s:i,s:s,s:s,s:s}", "rank", (int)rank, "host", d->facts[rank].node.host,
                     "interface", a->interface, "address", td_netpath_text(&a->ip, text));
}

static json_t *networks_json(const struct td_doctor *d)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < d->paths.n_pairs; i++) {
        const struct td_hostpaths_pair *pair = &d->paths.pairs[i];

        for (uint32_t p = 0; p < pair->n; p++) {
            const struct td_netpath *path = &pair->paths[p];

            json_array_append_new(
                list,
                json_pack("{s:o,s:o,s:b,s:o,s:o,s:o}", "a", end_json(d, pair->a, path->a), "b",
                          end_json(d, pair->b, path->b), "used_by_mpi", (int)path->is_used,
                          "answers", path->is_measured ? json_boolean(path->answers) : json_null(),
                          "latency_us",
                          rate_or_null(path->answers, (double)path->latency_ns * 1e-3),
                          "bytes_per_second", rate_or_null(path->answers, path->bytes_per_second)));
        }
    }
    return list;
}

enum td_status td_doctor_print_json(const struct td_doctor *d, struct td_err *err)
{
    json_t *root = json_pack("{s:s,s:s,s:o,s:o,s:o,s:o,s:o}", "version", TD_VERSION, "verdict",
                             td_verdict_name(td_verdict_worst(&d->report)), "checks",
                             checks_json(&d->report), "ranks", ranks_json(d), "hosts",
                             hosts_json(d), "links", links_json(d), "networks", networks_json(d));
    bool ok = root && json_dumpf(root, stdout, JSON_COMPACT) == 0;

    putchar('\n');
    json_decref(root);
    return ok ? TD_OK
              : td_err_set(err, TD_NO_MEMORY, "no memory for the JSON of %u ranks", d->n_ranks);
}
