/* What a group's ranks and hosts should be like before they are used: the facts of every rank, and verdicts on them as lines for
 * people. Gathering is collective; the verdicts are pure: facts in, lines out. `tensord doctor` shows all of them, the start of
 * every group logs those that warn. */
#ifndef TD_DAEMON_ENGINE_PREFLIGHT_H
#define TD_DAEMON_ENGINE_PREFLIGHT_H

#include "daemon/engine/hostfacts.h"
#include "daemon/engine/node.h"
#include "daemon/engine/verdict.h"
#include "kernels/base/err.h"

#include <stdint.h>

struct td_linkprobe_link;

/* What one rank brings: plain bytes. */
struct td_preflight_facts {
    struct td_node_facts node;
    struct td_hostfacts host;
    uint32_t first;  /* the lowest rank of this rank's host: it names the host */
    char nccl[32];   /* version, "none"; "" where nobody looked */
    char driver[32]; /* NVIDIA's, the same */
};

/* This rank's facts but for the GPU's libraries. Reads the system's files. Local. */
void td_preflight_read(const struct td_node *node, struct td_preflight_facts *out);
/* Everyone's, all [size of the group], the same on all ranks. Collective. */
enum td_status td_preflight_gather(struct td_comm *world, const struct td_preflight_facts *mine,
                                   struct td_preflight_facts *all, struct td_err *err);

/* Verdicts on all [n] ranks. Equality: versions, numerics, device, model (where one was opened: its hash is not ""). */
void td_preflight_judge_equal(const struct td_preflight_facts *all, uint32_t n,
                              struct td_verdict_report *report);
/* Per host: shared memory, memory, control group's limits, locked memory, open files, huge pages, frequency governor. */
void td_preflight_judge_hosts(const struct td_preflight_facts *all, uint32_t n,
                              struct td_verdict_report *report);
/* Per host: hardware threads that two bound ranks share, more threads than cores. */
void td_preflight_judge_cores(const struct td_preflight_facts *all, uint32_t n,
                              struct td_verdict_report *report);
/* Of these the ones that the start of a group has: /dev/shm, shared hardware threads, the MPI library. */
void td_preflight_judge_start(const struct td_preflight_facts *all, uint32_t n,
                              struct td_verdict_report *report);
/* Clocks of the hosts against rank 0's: offset_ns [n], positive: ahead; only those of the hosts' first ranks are read. */
void td_preflight_judge_clocks(const struct td_preflight_facts *all, const int64_t *offset_ns,
                               uint32_t n, struct td_verdict_report *report);

/* Links [n x n] as td_linkprobe_run gives them: between ranks of a host and between hosts, the median and the worst of each;
 * warns of those between hosts that are far behind the others, and of pairs that were not measured. */
void td_preflight_judge_links(const struct td_preflight_facts *all,
                              const struct td_linkprobe_link *links, uint32_t n,
                              struct td_verdict_report *report);

/* "a", or "a (rank 3)" where another host has the same name. Returns out. */
const char *td_preflight_host_name(const struct td_preflight_facts *all, uint32_t n, uint32_t first,
                                   char *out, size_t out_bytes);

/* The short form, for a node that has opened: rank 0 logs what warns. Nobody is stopped by it. Collective. */
enum td_status td_preflight_start(struct td_node *node, struct td_err *err);

#endif
