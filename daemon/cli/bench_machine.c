/* `tensord bench machine`: what this machine, or all hosts of an MPI job, can do at most: reading memory and multiplying, with
 * one thread per rank and with all. */
#include "comm/comm_mpi.h"
#include "daemon/cli/bench.h"
#include "daemon/cli/command.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_COLUMNS = 2, N_ROUNDS = 3 };

struct machine {
    char cpu[128], huge_pages[64], nodes[64];
    uint32_t n_ranks, n_columns;
    uint32_t n_threads[MAX_COLUMNS];
    struct td_bench_limits limits[MAX_COLUMNS];
    struct td_node_facts facts; /* of rank 0 */
};

/* First line of a file, without its newline; `absent` where there is none. */
static void read_line(const char *path, const char *absent, char *out, size_t out_bytes)
{
    FILE *f = fopen(path, "re");

    if (!f || !fgets(out, (int)out_bytes, f))
        snprintf(out, out_bytes, "%s", absent);
    out[strcspn(out, "\n")] = '\0';
    if (f)
        fclose(f);
}

void td_bench_cpu_name(char *out, size_t out_bytes)
{
    FILE *f = fopen("/proc/cpuinfo", "re");
    char line[256];

    snprintf(out, out_bytes, "unknown");
    while (f && fgets(line, sizeof line, f)) {
        const char *colon = strchr(line, ':');

        if (colon && strncmp(line, "model name", 10) == 0) {
            snprintf(out, out_bytes, "%s", colon + 1 + strspn(colon + 1, " \t"));
            out[strcspn(out, "\n")] = '\0';
            break;
        }
    }
    if (f)
        fclose(f);
}

static void describe(struct machine *m)
{
    char text[64], *open, *close;

    td_bench_cpu_name(m->cpu, sizeof m->cpu);
    read_line("/sys/devices/system/node/online", "0", m->nodes, sizeof m->nodes);
    /* "always [madvise] never" */
    read_line("/sys/kernel/mm/transparent_hugepage/enabled", "[none]", text, sizeof text);
    open = strchr(text, '[');
    close = open ? strchr(open, ']') : NULL;
    if (close)
        *close = '\0';
    snprintf(m->huge_pages, sizeof m->huge_pages, "%s", close ? open + 1 : text);
}

/* Everything, the best of a few takes. */
static enum td_status measure_column(struct td_comm *world, uint32_t n_threads, uint64_t memory,
                                     const struct td_cores_share *cores,
                                     struct td_bench_limits *out, struct td_err *err)
{
    struct td_bench_probe_params params = {
        .world = world, .n_threads = n_threads, .most_memory = memory, .cores = cores};
    struct td_bench_probe *probe;
    enum td_status s = td_bench_probe_open(&params, &probe, err);

    if (s)
        return s;
    for (int i = 0; !s && i < N_ROUNDS; i++) {
        struct td_bench_limits now = {0};

        s = td_bench_probe_take(probe, TD_BENCH_ALL, &now, err);
        out->memory = now.memory > out->memory ? now.memory : out->memory;
        for (int k = 0; k < TD_N_PEAKS; k++)
            out->peak[k] = now.peak[k] > out->peak[k] ? now.peak[k] : out->peak[k];
    }
    td_bench_probe_close(probe);
    return s;
}

static void print_row(const struct machine *m, const char *name, const double *rate,
                      const char *unit, const char *how)
{
    printf("%-10s", name);
    for (uint32_t c = 0; c < m->n_columns; c++)
        if (rate[c] > 0.0)
            printf("  %10.1f %-5s", rate[c] * 1e-9, unit);
        else
            printf("  %10s %-5s", "none", "");
    printf("%s%s\n", *how ? "  " : "", how);
}

static void print_text(const struct machine *m)
{
    double rate[MAX_COLUMNS];
    char cache[32];
    long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);

    printf("cpu         %s\n", m->cpu);
    printf("cores       %u for this process, NUMA nodes %s\n", m->facts.n_cores, m->nodes);
    printf("last cache  %s\n",
           bytes > 0 ? td_term_bytes((uint64_t)bytes, cache, sizeof cache) : "unknown");
    printf("huge pages  %s\n", m->huge_pages);
    printf("kernels     %s, numerics class %s\n", m->facts.device, m->facts.numerics);
    if (m->n_ranks > 1)
        printf("ranks       %u, summed over their hosts\n", m->n_ranks);
    printf("\n%-10s", "");
    for (uint32_t c = 0; c < m->n_columns; c++)
        printf("  %7u thread%-2s", m->n_threads[c], m->n_threads[c] == 1 ? "" : "s");
    printf("\n");
    for (uint32_t c = 0; c < m->n_columns; c++)
        rate[c] = m->limits[c].memory;
    print_row(m, "memory", rate, "GB/s", "read");
    for (int k = 0; k < TD_N_PEAKS; k++) {
        const char *instruction = td_probe_peak_instruction((enum td_peak)k);

        for (uint32_t c = 0; c < m->n_columns; c++)
            rate[c] = m->limits[c].peak[k];
        print_row(m, td_probe_peak_name((enum td_peak)k), rate, "Gop/s",
                  instruction ? instruction : "");
    }
}

static json_t *column_json(const struct machine *m, uint32_t c)
{
    json_t *ops = json_object();

    for (int k = 0; k < TD_N_PEAKS; k++)
        json_object_set_new(ops, td_probe_peak_name((enum td_peak)k),
                            m->limits[c].peak[k] > 0.0 ? json_real(m->limits[c].peak[k])
                                                       : json_null());
    return json_pack("{s:I,s:f,s:o}", "threads", (json_int_t)m->n_threads[c],
                     "memory_bytes_per_second", m->limits[c].memory, "ops_per_second", ops);
}

static enum td_status print_json(const struct machine *m, struct td_err *err)
{
    json_t *columns = json_array(), *instructions = json_object(), *root;
    bool ok;

    for (uint32_t c = 0; c < m->n_columns; c++)
        json_array_append_new(columns, column_json(m, c));
    for (int k = 0; k < TD_N_PEAKS; k++) {
        const char *text = td_probe_peak_instruction((enum td_peak)k);

        json_object_set_new(instructions, td_probe_peak_name((enum td_peak)k),
                            text ? json_string(text) : json_null());
    }
    root = json_pack("{s:s,s:I,s:s,s:I,s:s,s:s,s:s,s:I,s:o,s:o}", "cpu", m->cpu, "cores",
                     (json_int_t)m->facts.n_cores, "numa_nodes", m->nodes, "last_cache_bytes",
                     (json_int_t)sysconf(_SC_LEVEL3_CACHE_SIZE), "huge_pages", m->huge_pages,
                     "device", m->facts.device, "numerics", m->facts.numerics, "ranks",
                     (json_int_t)m->n_ranks, "instructions", instructions, "probes", columns);
    ok = root && json_dumpf(root, stdout, JSON_COMPACT) == 0;
    putchar('\n');
    json_decref(root);
    return ok ? TD_OK : td_err_set(err, TD_NO_MEMORY, "no memory for the JSON of the machine");
}

int td_bench_machine(const struct td_options *opts)
{
    struct td_err err;
    struct td_spmd s = {0};
    struct td_node_params node;
    struct machine m = {0};
    enum td_status st = td_comm_mpi_launched() ? td_comm_mpi_open(&s.world, &err)
                                               : td_comm_self_open(&s.world, &err);

    if (!st) {
        s.rank = td_comm_rank(s.world);
        m.n_ranks = td_comm_size(s.world);
        td_term_init(&s.term, stderr);
        td_spmd_node_params(opts, &node);
        st = td_node_open(&s.node, s.world, &node,
                          &err); /* says how many threads a rank would have */
    }
    m.facts = s.node.facts;
    m.n_threads[m.n_columns++] = 1;
    if (m.facts.n_threads > 1 || m.n_ranks > 1) /* ranks may differ, and all take part in both */
        m.n_threads[m.n_columns++] = m.facts.n_threads;
    for (uint32_t c = 0; !st && c < m.n_columns; c++)
        st = measure_column(s.world, m.n_threads[c], m.facts.memory_bytes / 8, &s.node.cores,
                            &m.limits[c], &err);
    describe(&m);
    if (!st && s.rank == 0 && opts->json)
        st = print_json(&m, &err);
    else if (!st && s.rank == 0)
        print_text(&m);
    return td_spmd_end(&s, opts, st, &err);
}
