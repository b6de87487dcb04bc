#include "daemon/engine/hostfacts.h"

#include "daemon/engine/hostshare.h"

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { PATH_BYTES = 512 };

_Static_assert(TD_HOSTFACTS_CPU_WORDS * 64 == CPU_SETSIZE, "a bit for every hardware thread");

/* The first line of root + path without its newline; "" where there is none. */
static void read_line(const char *root, const char *path, char *out, size_t out_bytes)
{
    char whole[PATH_BYTES];
    FILE *f;

    out[0] = '\0';
    if ((size_t)snprintf(whole, sizeof whole, "%s%s", root, path) >= sizeof whole)
        return;
    f = fopen(whole, "re");
    if (!f)
        return;
    if (!fgets(out, (int)out_bytes, f))
        out[0] = '\0';
    out[strcspn(out, "\n")] = '\0';
    fclose(f);
}

/* MemTotal and MemAvailable of proc_meminfo(5). */
static void read_memory(const char *root, struct td_hostfacts *out)
{
    char path[PATH_BYTES], line[128];
    unsigned long long kib;
    FILE *f;

    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "MemTotal: %llu kB", &kib) == 1)
            out->memory_bytes = kib * 1024;
        else if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            out->memory_free_bytes = kib * 1024;
    }
    if (f)
        fclose(f);
}

/* "always [madvise] never": the word in brackets. */
static void read_huge_pages(const char *root, struct td_hostfacts *out)
{
    char text[64], *open, *close;

    read_line(root, "/sys/kernel/mm/transparent_hugepage/enabled", text, sizeof text);
    open = strchr(text, '[');
    close = open ? strchr(open, ']') : NULL;
    if (close)
        snprintf(out->huge_pages, sizeof out->huge_pages, "%.*s", (int)(close - open - 1),
                 open + 1);
}

static void read_cpus(const cpu_set_t *mask, struct td_hostfacts *out)
{
    long online = sysconf(_SC_NPROCESSORS_ONLN);

    out->n_online = online > 0 ? (uint32_t)online : 0;
    for (unsigned cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, mask))
            out->cpus[cpu / 64] |= (uint64_t)1 << cpu % 64;
}

static void read_governor(const char *root, struct td_hostfacts *out)
{
    char path[96];
    unsigned first = 0;

    while (first + 1 < CPU_SETSIZE && !(out->cpus[first / 64] >> first % 64 & 1))
        first++;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%u/cpufreq/scaling_governor", first);
    read_line(root, path, out->governor, sizeof out->governor);
}

static uint64_t limit_of(int resource)
{
    struct rlimit limit;

    if (getrlimit((__rlimit_resource_t)resource, &limit) != 0)
        return 0;
    return limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : (uint64_t)limit.rlim_cur;
}

static bool has_entry(const char *root, const char *path)
{
    char whole[PATH_BYTES];
    const struct dirent *entry;
    bool found = false;
    DIR *dir;

    snprintf(whole, sizeof whole, "%s%s", root, path);
    dir = opendir(whole);
    while (dir && !found && (entry = readdir(dir)) != NULL)
        found = entry->d_name[0] != '.';
    if (dir)
        closedir(dir);
    return found;
}

void td_hostfacts_read(const char *root, const cpu_set_t *mask, struct td_hostfacts *out)
{
    char path[PATH_BYTES], cgroup[PATH_BYTES];
    struct statvfs shm;

    memset(out, 0, sizeof *out);
    read_cpus(mask, out);
    read_memory(root, out);
    read_huge_pages(root, out);
    read_governor(root, out);
    snprintf(path, sizeof path, "%s/dev/shm", root);
    if (statvfs(path, &shm) == 0) {
        out->shm_bytes = (uint64_t)shm.f_blocks * shm.f_frsize;
        out->shm_free_bytes = (uint64_t)shm.f_bavail * shm.f_frsize;
    }
    snprintf(path, sizeof path, "%s/sys/fs/cgroup", root);
    snprintf(cgroup, sizeof cgroup, "%s/proc/self/cgroup", root);
    out->n_quota = td_hostshare_quota(path, cgroup);
    out->memory_limit_bytes = td_hostshare_memory_limit(path, cgroup);
    out->memlock_bytes = limit_of(RLIMIT_MEMLOCK);
    out->n_files = limit_of(RLIMIT_NOFILE);
    out->has_rdma = has_entry(root, "/sys/class/infiniband");
}

uint32_t td_hostfacts_n_cpus(const struct td_hostfacts *f)
{
    return td_hostfacts_n_common(f, f);
}

uint32_t td_hostfacts_n_common(const struct td_hostfacts *a, const struct td_hostfacts *b)
{
    uint32_t n = 0;

    for (unsigned w = 0; w < TD_HOSTFACTS_CPU_WORDS; w++)
        n += (uint32_t)__builtin_popcountll(a->cpus[w] & b->cpus[w]);
    return n;
}
