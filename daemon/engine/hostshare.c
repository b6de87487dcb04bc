#include "daemon/engine/hostshare.h"

#include "comm/comm.h"
#include "kernels/cpu/cores.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A number in a file of the control group (cgroups(7), version 2); `absent` when there is none or it says "max". */
static uint64_t read_number(const char *path, uint64_t absent)
{
    FILE *f = fopen(path, "re");
    unsigned long long v;
    bool ok = f && fscanf(f, "%llu", &v) == 1;

    if (f)
        fclose(f);
    return ok ? v : absent;
}

uint64_t td_hostshare_memory_bytes(void)
{
    uint64_t limit = read_number("/sys/fs/cgroup/memory.max", UINT64_MAX), free_bytes;
    uint64_t used = read_number("/sys/fs/cgroup/memory.current", 0);
    FILE *f = fopen("/proc/meminfo", "re"); /* MemAvailable of proc_meminfo(5) */
    char line[128];
    unsigned long long kib = 0;

    if (!f)
        return 0;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    fclose(f);
    free_bytes = (uint64_t)kib * 1024;
    limit = limit > used ? limit - used : 1;
    return free_bytes < limit ? free_bytes : limit;
}

/* The quota of one group's cpu.max, "QUOTA PERIOD" in microseconds; `most` where there is none. */
static uint64_t group_quota(const char *group, uint64_t most)
{
    char path[4200];
    unsigned long long quota, period;
    FILE *f;

    snprintf(path, sizeof path, "%s/cpu.max", group);
    f = fopen(path, "re");
    if (!f)
        return most;
    if (fscanf(f, "%llu %llu", &quota, &period) == 2 && period > 0) {
        quota = quota / period ? quota / period : 1;
        most = quota < most ? quota : most;
    }
    fclose(f);
    return most;
}

/* The path of the process's group below the root of its hierarchy, "/" where `self` does not say: the line of version 2
 * (controller ""), or of version 1's `controller`. A container sees its own group as /. */
static void find_group(const char *self, const char *controller, char *out, size_t out_bytes)
{
    char line[2048];
    FILE *f = fopen(self, "re");

    snprintf(out, out_bytes, "/");
    while (f && fgets(line, sizeof line, f)) {
        char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;

        if (!path || path[1] != '/')
            continue;
        *path++ = '\0';
        path[strcspn(path, "\n")] = '\0';
        if (strcmp(names + 1, controller) == 0)
            snprintf(out, out_bytes, "%s", path);
    }
    if (f)
        fclose(f);
}

typedef uint64_t limit_fn(const char *group, uint64_t most);

/* The least of a limit over the group at root + path and those above it. */
static uint64_t least_limit(const char *root, const char *path, limit_fn *limit)
{
    char group[4096];
    uint64_t most = UINT64_MAX;
    size_t root_len = strlen(root);

    snprintf(group, sizeof group, "%s%s", root, path);
    for (;;) {
        char *slash = strrchr(group, '/');

        most = limit(group, most);
        if (!slash || strlen(group) <= root_len)
            break;
        *slash = 0;
    }
    return most;
}

uint32_t td_hostshare_quota(const char *root, const char *self)
{
    char path[2048];
    uint64_t most;

    find_group(self, "", path, sizeof path);
    most = least_limit(root, path, group_quota);
    return most == UINT64_MAX ? 0 : most < UINT32_MAX ? (uint32_t)most : UINT32_MAX;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t group_memory(const char *group, uint64_t most)
{
    char path[4200];

    snprintf(path, sizeof path, "%s/memory.max", group);
    return smaller(most, read_number(path, UINT64_MAX));
}

/* Version 1 says "no limit" with the largest number of whole pages. */
static uint64_t group_memory_v1(const char *group, uint64_t most)
{
    char path[4200];
    uint64_t limit;

    snprintf(path, sizeof path, "%s/memory.limit_in_bytes", group);
    limit = read_number(path, UINT64_MAX);
    return smaller(most, limit < (uint64_t)INT64_MAX >> 1 ? limit : UINT64_MAX);
}

uint64_t td_hostshare_memory_limit(const char *root, const char *self)
{
    char path[2048], root_v1[2048];
    uint64_t most;

    find_group(self, "", path, sizeof path);
    most = least_limit(root, path, group_memory);
    find_group(self, "memory", path, sizeof path);
    snprintf(root_v1, sizeof root_v1, "%s/memory", root);
    most = smaller(most, least_limit(root_v1, path, group_memory_v1));
    return most == UINT64_MAX ? 0 : most;
}

/* What a process tells its neighbours. */
struct claim {
    cpu_set_t mask;
    uint32_t n_threads;
};

enum td_status td_hostshare_cores(struct td_comm *host, uint32_t n_threads,
                                  struct td_cores_share *share, struct td_err *err)
{
    uint32_t n = td_comm_size(host);
    struct td_cores_ask ask = {.n = n, .me = td_comm_rank(host)};
    struct claim mine, *all = calloc(n, sizeof *all);
    size_t *bytes = calloc(n, sizeof *bytes);
    cpu_set_t *masks = calloc(n, sizeof *masks);
    uint32_t *threads = calloc(n, sizeof *threads);
    struct td_cores *cores = NULL;
    enum td_status s;

    if (!all || !bytes || !masks || !threads) {
        s = td_err_set(err, TD_NO_MEMORY, "no memory for the cores of %u ranks", n);
        goto done;
    }
    memset(&mine, 0, sizeof mine);
    mine.n_threads = n_threads;
    (void)sched_getaffinity(0, sizeof mine.mask, &mine.mask); /* on failure no core is its own */
    for (uint32_t r = 0; r < n; r++)
        bytes[r] = sizeof mine;
    s = td_comm_all_gather(host, &mine, bytes, all, err);
    s = s ? s : td_cores_open(NULL, &cores, err);
    if (s)
        goto done;
    for (uint32_t r = 0; r < n; r++) {
        masks[r] = all[r].mask;
        threads[r] = all[r].n_threads;
    }
    ask.masks = masks;
    ask.threads = threads;
    ask.n_quota = td_hostshare_quota("/sys/fs/cgroup", "/proc/self/cgroup");
    td_cores_divide(cores, &ask, share);

done:
    td_cores_close(cores);
    free(threads);
    free(masks);
    free(bytes);
    free(all);
    return s;
}
