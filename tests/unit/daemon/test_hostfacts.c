/* What a host gives a process: files as the kernel writes them, below a folder of the test's own, and the calls' answers held
 * to those of the same calls here. */
#include "tests/unit/check.h"

#include "daemon/engine/gpulibs.h"
#include "daemon/engine/hostfacts.h"
#include "daemon/engine/hostshare.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static const uint64_t GIB = (uint64_t)1 << 30;

/* A root with files; every folder on the way is made. */
static void put(const char *root, const char *path, const char *text)
{
    char whole[512];
    FILE *f;

    snprintf(whole, sizeof whole, "%s%s", root, path);
    for (char *slash = strchr(whole + strlen(root) + 1, '/'); slash;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(whole, 0700);
        *slash = '/';
    }
    f = fopen(whole, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void remove_root(const char *root)
{
    char command[256];

    snprintf(command, sizeof command, "rm -r '%s'", root);
    assert_int_equal(system(command), 0);
}

static void test_hostfacts_reads_what_the_files_say(void **state)
{
    char root[] = "/tmp/tensord-hostfactsXXXXXX";
    struct td_hostfacts f;
    cpu_set_t mask;

    (void)state;
    assert_non_null(mkdtemp(root));
    put(root, "/proc/meminfo",
        "MemTotal:       16777216 kB\nMemFree:         1000 kB\nMemAvailable:    4194304 kB\n");
    put(root, "/proc/self/cgroup", "4:memory:/old\n0::/job\n");
    put(root, "/sys/fs/cgroup/job/memory.max", "8589934592\n");
    put(root, "/sys/fs/cgroup/job/cpu.max", "300000 100000\n");
    put(root, "/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
    put(root, "/sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "powersave\n");
    put(root, "/sys/class/infiniband/mlx5_0/node_type", "1: CA\n");
    CPU_ZERO(&mask);
    CPU_SET(3, &mask);
    CPU_SET(70, &mask);
    td_hostfacts_read(root, &mask, &f);
    assert_int_equal(f.memory_bytes, 16 * GIB);
    assert_int_equal(f.memory_free_bytes, 4 * GIB);
    assert_int_equal(f.memory_limit_bytes, 8 * GIB);
    assert_int_equal(f.n_quota, 3);
    assert_string_equal(f.huge_pages, "never");
    assert_string_equal(f.governor, "powersave");
    assert_true(f.has_rdma);
    assert_int_equal(f.shm_bytes, 0); /* this root has no /dev/shm */
    assert_int_equal(f.cpus[0], 8);
    assert_int_equal(f.cpus[1], 1 << 6);
    assert_int_equal(td_hostfacts_n_cpus(&f), 2);
    remove_root(root);
}

static void test_hostfacts_has_nothing_where_the_files_are_missing_or_nonsense(void **state)
{
    char root[] = "/tmp/tensord-hostfactsXXXXXX";
    struct td_hostfacts f;
    cpu_set_t none;

    (void)state;
    assert_non_null(mkdtemp(root));
    CPU_ZERO(&none);
    for (int filled = 0; filled < 2; filled++) {
        td_hostfacts_read(root, &none, &f);
        assert_int_equal(f.memory_bytes, 0);
        assert_int_equal(f.memory_free_bytes, 0);
        assert_int_equal(f.memory_limit_bytes, 0);
        assert_int_equal(f.n_quota, 0);
        assert_string_equal(f.huge_pages, "");
        assert_string_equal(f.governor, "");
        assert_false(f.has_rdma);
        assert_int_equal(td_hostfacts_n_cpus(&f), 0);
        put(root, "/proc/meminfo", "MemTotal: many kB\n\n:\n");
        put(root, "/proc/self/cgroup", "0\n0:\n::\nxyz:memory:relative\n");
        put(root, "/sys/fs/cgroup/memory.max", "max\n");
        put(root, "/sys/kernel/mm/transparent_hugepage/enabled", "]always[\n");
    }
    remove_root(root);
}

static void test_hostfacts_asks_this_machine(void **state)
{
    struct td_hostfacts f;
    struct rlimit files;
    cpu_set_t mask;

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof mask, &mask), 0);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &files), 0);
    td_hostfacts_read("", &mask, &f);
    assert_int_equal(td_hostfacts_n_cpus(&f), CPU_COUNT(&mask));
    assert_int_equal(f.n_online, sysconf(_SC_NPROCESSORS_ONLN));
    assert_int_equal(f.n_files, files.rlim_cur == RLIM_INFINITY ? UINT64_MAX : files.rlim_cur);
    assert_int_equal(f.memory_bytes / 1024 / 1024, (uint64_t)sysconf(_SC_PHYS_PAGES) *
                                                       (uint64_t)sysconf(_SC_PAGESIZE) / 1024 /
                                                       1024);
    assert_in_range(f.memory_free_bytes, 1, f.memory_bytes);
}

static void test_hostfacts_counts_common_hardware_threads(void **state)
{
    struct td_hostfacts a = {.cpus = {0xf0, [15] = 1}}, b = {.cpus = {0x3c, [15] = 3}};

    (void)state;
    assert_int_equal(td_hostfacts_n_cpus(&a), 5);
    assert_int_equal(td_hostfacts_n_cpus(&b), 6);
    assert_int_equal(td_hostfacts_n_common(&a, &b), 3);
    assert_int_equal(td_hostfacts_n_common(&a, &(struct td_hostfacts){0}), 0);
}

/* The least of the group's and those above it, of either version; version 1's largest number is none. */
static void test_hostfacts_finds_the_smallest_memory_limit(void **state)
{
    char root[] = "/tmp/tensord-hostfactsXXXXXX", cgroup[256], self[256];

    (void)state;
    assert_non_null(mkdtemp(root));
    snprintf(cgroup, sizeof cgroup, "%s/cg", root);
    snprintf(self, sizeof self, "%s/self", root);
    put(root, "/self", "9:name=systemd:/\n4:memory:/a/b\n0::/x/y\n");
    put(root, "/cg/x/y/memory.max", "max\n");
    assert_int_equal(td_hostshare_memory_limit(cgroup, self), 0);
    put(root, "/cg/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
    assert_int_equal(td_hostshare_memory_limit(cgroup, self), 0);
    put(root, "/cg/memory/a/memory.limit_in_bytes", "7000000000\n");
    assert_int_equal(td_hostshare_memory_limit(cgroup, self), 7000000000);
    put(root, "/cg/x/memory.max", "5000000000\n");
    assert_int_equal(td_hostshare_memory_limit(cgroup, self), 5000000000);
    put(root, "/cg/x/y/memory.max", "6000000000\n");
    assert_int_equal(td_hostshare_memory_limit(cgroup, self), 5000000000);
    assert_int_equal(td_hostshare_memory_limit(cgroup, "/nonexistent"), 0);
    remove_root(root);
}

/* NCCL_VERSION of nccl.h: 2.7.8 is 2708, and from 2.9 on X * 10000 + Y * 100 + Z. */
static void test_gpulibs_reads_nccls_number(void **state)
{
    char text[32];

    (void)state;
    td_gpulibs_nccl_text(2708, text, sizeof text);
    assert_string_equal(text, "2.7.8");
    td_gpulibs_nccl_text(20905, text, sizeof text);
    assert_string_equal(text, "2.9.5");
    td_gpulibs_nccl_text(21803, text, sizeof text);
    assert_string_equal(text, "2.18.3");
    td_gpulibs_nccl(text, sizeof text);
    assert_true(strcmp(text, "none") == 0 || strchr(text, '.'));
    td_gpulibs_driver(text, sizeof text);
    assert_true(strcmp(text, "none") == 0 || strcmp(text, "unknown") == 0 || strchr(text, '.'));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostfacts_reads_what_the_files_say),
        cmocka_unit_test(test_hostfacts_has_nothing_where_the_files_are_missing_or_nonsense),
        cmocka_unit_test(test_hostfacts_asks_this_machine),
        cmocka_unit_test(test_hostfacts_counts_common_hardware_threads),
        cmocka_unit_test(test_hostfacts_finds_the_smallest_memory_limit),
        cmocka_unit_test(test_gpulibs_reads_nccls_number),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
