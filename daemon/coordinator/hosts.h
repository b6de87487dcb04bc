/* The hosts of a hostfile: which of them a launch may use after some have failed. Knows names, places and deaths; reads one file and
 * writes one for mpirun. The caller brings the time. Loop thread only. */
#ifndef TD_DAEMON_COORDINATOR_HOSTS_H
#define TD_DAEMON_COORDINATOR_HOSTS_H

#include "kernels/base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct td_hosts;

/* How long a host stands aside: at once when it fell silent, else after so many deaths within this time. */
#define TD_HOSTS_ASIDE_NS 60000000000u
enum { TD_HOSTS_MAX_DEATHS = 2 };

/* Reads an Open MPI hostfile: a name, perhaps `slots=N`, per line; `#` begins a comment. TD_IO, TD_INVALID without a host,
 * TD_NO_MEMORY. */
enum td_status td_hosts_open(const char *hostfile, struct td_hosts **hosts, struct td_err *err);
void td_hosts_close(struct td_hosts *hosts); /* NULL is legal */

/* A rank on the host named `name` (as the host calls itself) was lost, and its group with it. `silent`: nothing of it was heard any
 * more, so the host may be gone. True: the host stands aside from now on. A name that is not in the file counts for nothing. */
bool td_hosts_blame(struct td_hosts *hosts, const char *name, bool silent, uint64_t now_ns);

/* A launch of `n_wished` ranks: *hostfile is the file for mpirun (borrowed until the next call), *n_ranks as many of them as have a
 * place. Hosts that stand aside are left out, unless nobody else is left. A line without `slots` has room for any number. */
enum td_status td_hosts_choose(struct td_hosts *hosts, uint32_t n_wished, uint64_t now_ns,
                               const char **hostfile, uint32_t *n_ranks, struct td_err *err);

#endif
