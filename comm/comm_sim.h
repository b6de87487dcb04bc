/* What a test can do to a simulated group besides using it. The group itself is comm.h's.
 * A message of at most TD_COMM_SIM_EAGER_BYTES is buffered, so that its send does not wait; a larger one waits until
 * its receiver takes it, as on the real transports. Results do not depend on the threads' timing.
 *
 * A group has real time or, with a link model (comm_simtime.h), virtual time: then each rank has a clock that starts at
 * 0 and is moved by its operations and by td_comm_sim_advance only, deadlines and statistics count in it, and every
 * status and every time is the same in each run, whatever the threads do. A wait ends when its outcome is certain: its
 * peers have sent, have gone, or wait themselves for what never comes. So a rank that is done closes its end, from its
 * own thread, or goes silent; and ranks tell each other nothing past the group. An end that failed in any way is gone for
 * the others; they learn of it one latency later. */
#ifndef TD_COMM_COMM_SIM_H
#define TD_COMM_COMM_SIM_H

#include "kernels/base/err.h"

#include <stdint.h>

struct td_comm;
struct td_comm_simtime_model;

enum { TD_COMM_SIM_EAGER_BYTES = 2048 };

/* This rank is gone, as if its process had been killed: its own operations return TD_PEER_LOST, and so does every wait
 * of another rank for it or for a rank that was lost by it in turn. Messages that it sent before still arrive. Any
 * thread. */
void td_comm_sim_kill(struct td_comm *comm);
/* Puts this rank on simulated host `host` (all start on 0). Before td_comm_split_host, on every rank alike; with a
 * model, before the first operation of any rank. */
void td_comm_sim_set_host(struct td_comm *comm, uint32_t host);

/* Gives the whole group, to which `comm` belongs, virtual time by this model (copied). TD_INVALID after the first
 * operation of any rank. */
enum td_status td_comm_sim_set_model(struct td_comm *comm,
                                     const struct td_comm_simtime_model *model, struct td_err *err);
/* This rank's clock. Without a model: the real one. */
uint64_t td_comm_sim_now(struct td_comm *comm);

/* The following need a model, and the rank's own thread. */

/* The rank computes for `ns`. UINT64_MAX: it goes silent, as a process that hangs: it does nothing more, its own
 * operations return TD_PEER_TIMED_OUT, and nobody is told. */
void td_comm_sim_advance(struct td_comm *comm, uint64_t ns);
/* The rank is lost, as by td_comm_sim_kill, at this time of its clock, at once if that has come. What has not left its
 * port before is cut off, and no operation of its own ends then or later. Also before the rank's thread starts. */
void td_comm_sim_kill_at(struct td_comm *comm, uint64_t at_ns);

#endif
