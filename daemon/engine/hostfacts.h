/* What a host gives one of its processes, as the system's files and calls say it: shared memory, memory, limits, hardware
 * threads. Plain data, read once; decides nothing about it (preflight.h does). Any thread. */
#ifndef TD_DAEMON_ENGINE_HOSTFACTS_H
#define TD_DAEMON_ENGINE_HOSTFACTS_H

#include <sched.h>
#include <stdint.h>

enum { TD_HOSTFACTS_CPU_WORDS = 16 }; /* 1024 hardware threads, as cpu_set_t has them */

/* UINT64_MAX: unlimited. A number or a text that the system does not tell is 0 or "". */
struct td_hostfacts {
    uint64_t cpus[TD_HOSTFACTS_CPU_WORDS]; /* bit set: hardware threads that the process may use */
    uint32_t n_online;                     /* hardware threads of the machine */
    uint32_t n_quota;                      /* as td_hostshare_quota */
    uint64_t shm_bytes, shm_free_bytes;    /* /dev/shm; 0: there is none */
    uint64_t memory_bytes, memory_free_bytes; /* of the machine; free: MemAvailable */
    uint64_t memory_limit_bytes;              /* as td_hostshare_memory_limit */
    uint64_t memlock_bytes, n_files;          /* soft limits: locked memory, open files */
    char huge_pages[16];                      /* transparent ones: "always", "madvise", "never" */
    char governor[24]; /* of the frequency of the first hardware thread that it may use */
    uint8_t has_rdma;  /* 1: there is a device in /sys/class/infiniband */
};

/* Reads all of it. `root` stands before every path of a file ("" but in tests); calls ask this very machine. `mask`: what the
 * process was given before its threads took seats of their own. */
void td_hostfacts_read(const char *root, const cpu_set_t *mask, struct td_hostfacts *out);

/* Hardware threads in the mask, and in both. */
uint32_t td_hostfacts_n_cpus(const struct td_hostfacts *f);
uint32_t td_hostfacts_n_common(const struct td_hostfacts *a, const struct td_hostfacts *b);

#endif
