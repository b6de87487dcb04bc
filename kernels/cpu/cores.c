#include "kernels/cpu/cores.h"

#include <hwloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One hardware thread. */
struct cpu {
    uint32_t node, core, cpu; /* in this order the table is sorted */
};

struct td_cores {
    uint32_t n_cpus;
    struct cpu cpus[TD_CORES_MAX_CPUS];
};

static int compare_cpus(const void *a, const void *b)
{
    const struct cpu *x = a, *y = b;

    if (x->node != y->node)
        return x->node < y->node ? -1 : 1;
    if (x->core != y->core)
        return x->core < y->core ? -1 : 1;
    return x->cpu < y->cpu ? -1 : x->cpu > y->cpu;
}

static void read_topology(struct td_cores *cores, hwloc_topology_t topology)
{
    hwloc_obj_t pu = NULL;

    while ((pu = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_PU, pu)) != NULL) {
        hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(topology, HWLOC_OBJ_CORE, pu);
        int node = pu->nodeset ? hwloc_bitmap_first(pu->nodeset) : 0;

        if (pu->os_index >= TD_CORES_MAX_CPUS)
            continue;
        cores->cpus[cores->n_cpus++] =
            (struct cpu){.node = node < 0 ? 0 : (uint32_t)node,
                         .core = core ? core->logical_index : pu->logical_index,
                         .cpu = pu->os_index};
    }
}

enum td_status td_cores_open(const char *synthetic, struct td_cores **out, struct td_err *err)
{
    struct td_cores *cores = calloc(1, sizeof *cores);
    hwloc_topology_t topology;

    if (!cores)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the list of cores");
    if (hwloc_topology_init(&topology)) {
        free(cores);
        return td_err_set(err, TD_NO_MEMORY, "no memory for the machine's topology");
    }
    /* Devices and caches are not asked for; asking the processor itself would bind this thread to every core in turn. */
    (void)hwloc_topology_set_io_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_NONE);
    (void)hwloc_topology_set_cache_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_NONE);
    (void)hwloc_topology_set_components(topology, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, "x86");
    if (synthetic && hwloc_topology_set_synthetic(topology, synthetic)) {
        hwloc_topology_destroy(topology);
        free(cores);
        return td_err_set(err, TD_INVALID, "machine '%s': expected a form as 'numa:2 core:4 pu:2'",
                          synthetic);
    }
    if (hwloc_topology_load(topology) == 0)
        read_topology(cores, topology);
    hwloc_topology_destroy(topology);
    for (uint32_t i = 0; cores->n_cpus == 0 && i < TD_CORES_MAX_CPUS; i++)
        cores->cpus[i] = (struct cpu){0, i, i};
    cores->n_cpus = cores->n_cpus ? cores->n_cpus : TD_CORES_MAX_CPUS;
    qsort(cores->cpus, cores->n_cpus, sizeof cores->cpus[0], compare_cpus);
    *out = cores;
    return TD_OK;
}

void td_cores_close(struct td_cores *cores)
{
    free(cores);
}

/* ---- the physical cores of a mask ---- */

/* A core's allowed hardware threads are the entries first .. first + n - 1 of the list `cpus`. */
struct core {
    uint32_t first, n, node;
};

struct core_list {
    uint32_t n;
    uint32_t n_cpus;
    struct core cores[TD_CORES_MAX_CPUS];
    uint32_t cpus[TD_CORES_MAX_CPUS];
};

static void list_cores(const struct td_cores *all, const cpu_set_t *mask, struct core_list *list)
{
    uint32_t last = UINT32_MAX;

    list->n = list->n_cpus = 0;
    for (uint32_t i = 0; i < all->n_cpus; i++) {
        const struct cpu *c = &all->cpus[i];

        if (!CPU_ISSET(c->cpu, mask))
            continue;
        if (c->core != last)
            list->cores[list->n++] = (struct core){list->n_cpus, 0, c->node};
        last = c->core;
        list->cores[list->n - 1].n++;
        list->cpus[list->n_cpus++] = c->cpu;
    }
}

uint32_t td_cores_count(const struct td_cores *cores, const cpu_set_t *mask)
{
    uint32_t n = 0, last = UINT32_MAX;

    for (uint32_t i = 0; i < cores->n_cpus; i++)
        if (CPU_ISSET(cores->cpus[i].cpu, mask) && cores->cpus[i].core != last) {
            last = cores->cpus[i].core;
            n++;
        }
    return n;
}

uint32_t td_cores_count_mine(const struct td_cores *cores)
{
    cpu_set_t mask;
    uint32_t n = sched_getaffinity(0, sizeof mask, &mask) ? 0 : td_cores_count(cores, &mask);

    return n ? n : 1;
}

/* ---- division ---- */

static uint32_t node_end(const struct core_list *list, uint32_t first)
{
    uint32_t end = first;

    while (end < list->n && list->cores[end].node == list->cores[first].node)
        end++;
    return end;
}

/* Deals `n` slots of `size` cores: as many as fit inside NUMA nodes, always to the node with most cores left, so that few slots
 * share a node's memory; the rest from what is left, across nodes. Fills `slot` [size] with the cores of slot `me`; slots
 * count from the first node on, then the rest. n * size <= cores. */
static void place_slot(const struct core_list *list, uint32_t n, uint32_t size, uint32_t me,
                       uint32_t *slot)
{
    uint32_t slots_of[TD_CORES_MAX_CPUS] = {0}; /* by the index of a node's first core */
    uint32_t n_inside = 0, before = 0, skip;

    for (bool found = true; found && n_inside < n;) {
        uint32_t best = 0, most = 0;

        for (uint32_t i = 0; i < list->n; i = node_end(list, i)) {
            uint32_t left = node_end(list, i) - i - slots_of[i] * size;

            if (left > most) {
                best = i;
                most = left;
            }
        }
        found = most >= size;
        if (found) {
            slots_of[best]++;
            n_inside++;
        }
    }
    skip = me < n_inside ? 0 : (me - n_inside) * size; /* cores left over by nodes */
    for (uint32_t i = 0, k = 0; i < list->n && k < size; i = node_end(list, i)) {
        uint32_t used = slots_of[i] * size;

        if (me < n_inside && me - before < slots_of[i])
            while (k < size) {
                slot[k] = i + (me - before) * size + k;
                k++;
            }
        before += slots_of[i];
        for (uint32_t c = i + used; me >= n_inside && c < node_end(list, i) && k < size; c++) {
            if (skip)
                skip--;
            else
                slot[k++] = c;
        }
    }
}

/* Seats `n` threads on a slot: one per core, then a second one on each core that has another hardware thread, and so on. */
static bool seat_threads(const struct core_list *list, const uint32_t *slot, uint32_t size,
                         uint32_t n, struct td_cores_seat *seats)
{
    uint32_t threads_of[TD_CORES_MAX_CPUS] = {0}, left = n, k = 0;

    for (uint32_t round = 0, placed = 1; left && placed; round++) {
        placed = 0;
        for (uint32_t c = 0; c < size && left; c++)
            if (list->cores[slot[c]].n > round) {
                threads_of[c]++;
                placed++;
                left--;
            }
    }
    for (uint32_t c = 0; c < size; c++)
        for (uint32_t i = 0; i < threads_of[c]; i++) {
            const struct core *core = &list->cores[slot[c]];

            seats[k++] =
                (struct td_cores_seat){.cpu = list->cpus[core->first + i], .node = core->node};
        }
    return left == 0;
}

/* Who else may use the cores of `me`. */
struct sharers {
    uint32_t n_equal; /* processes with its mask, itself included */
    uint32_t before;  /* of those, before it */
    uint32_t
        n_touching; /* processes whose masks have something in common with its, itself included */
    uint32_t most;  /* threads that one of the equals wants; UINT32_MAX: all that it can have */
};

static struct sharers find_sharers(const struct td_cores_ask *ask)
{
    const cpu_set_t *mine = &ask->masks[ask->me];
    struct sharers s = {0};

    for (uint32_t i = 0; i < ask->n; i++) {
        cpu_set_t both;
        bool equal = CPU_EQUAL(&ask->masks[i], mine);
        uint32_t want = ask->threads[i] ? ask->threads[i] : UINT32_MAX;

        CPU_AND(&both, &ask->masks[i], mine);
        s.n_touching += i == ask->me || CPU_COUNT(&both) > 0;
        s.n_equal += equal;
        s.before += equal && i < ask->me;
        s.most = equal && want > s.most ? want : s.most;
    }
    return s;
}

static uint32_t at_least_one(uint32_t n)
{
    return n ? n : 1;
}

void td_cores_divide(const struct td_cores *cores, const struct td_cores_ask *ask,
                     struct td_cores_share *share)
{
    struct sharers s = find_sharers(ask);
    struct core_list list;
    uint32_t slot[TD_CORES_MAX_CPUS], size, own, wish = ask->threads[ask->me];
    uint32_t quota = ask->n_quota ? ask->n_quota / ask->n : UINT32_MAX;

    list_cores(cores, &ask->masks[ask->me], &list);
    /* With k processes at a core, a k-th part of it is each one's: parts of unlike masks never sum to more than there is. */
    own = list.n / s.n_touching;
    share->n_cores = list.n;
    share->n_threads = wish ? wish : at_least_one(own < quota ? own : quota);
    share->owned = own > 0 && s.n_touching == s.n_equal;
    /* A wish may be for fewer threads than cores, on a slot of the largest wish of all, or for the cores' other hardware threads. */
    size = s.most < own ? s.most : own;
    if (share->owned && share->n_threads <= TD_CORES_MAX_CPUS) {
        place_slot(&list, s.n_equal, size, s.before, slot);
        share->owned = seat_threads(&list, slot, size, share->n_threads, share->seats);
    } else {
        share->owned = false;
    }
    share->seated = share->owned && list.n_cpus <= (ask->n_quota ? ask->n_quota : UINT32_MAX);
    share->owned = share->owned && share->n_threads <= at_least_one(quota) && quota > 0;
}

static size_t append(char *text, size_t bytes, size_t len, uint32_t first, uint32_t last)
{
    int n = first == last ? snprintf(text + len, bytes - len, "%u", first)
                          : snprintf(text + len, bytes - len, "%u-%u", first, last);

    return len + (size_t)n < bytes ? len + (size_t)n : bytes - 1;
}

void td_cores_describe(const struct td_cores_share *share, char *text, size_t bytes)
{
    const struct td_cores_seat *seats = share->seats;
    uint32_t n_nodes = 1, first = 0;
    size_t len;

    snprintf(text, bytes, "threads %u on %s", share->n_threads,
             share->seated  ? share->n_threads == 1 ? "core " : "cores "
             : share->owned ? "any core"
                            : "shared cores");
    if (!share->seated)
        return;
    len = strlen(text);
    for (uint32_t i = 1; i <= share->n_threads; i++) {
        bool end = i == share->n_threads;

        if (!end && seats[i].cpu == seats[i - 1].cpu + 1 && seats[i].node == seats[i - 1].node)
            continue;
        len = append(text, bytes, len, seats[first].cpu, seats[i - 1].cpu);
        if (!end && len + 1 < bytes) {
            text[len++] = ',';
            text[len] = 0;
        }
        first = i;
        n_nodes += !end && seats[i].node != seats[i - 1].node;
    }
    snprintf(text + len, bytes - len, " (%u NUMA node%s)", n_nodes, n_nodes == 1 ? "" : "s");
}
