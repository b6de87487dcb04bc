/* What a test can do to a simulated group besides using it. The group itself is comm.h's.
 * A message of at most TD_COMM_SIM_EAGER_BYTES is buffered, so that its send does not wait; a larger one waits until
 * its receiver takes it, as on the real transports. Results do not depend on the threads' timing. */
#ifndef TD_COMM_COMM_SIM_H
#define TD_COMM_COMM_SIM_H

#include <stdint.h>

struct td_comm;

enum { TD_COMM_SIM_EAGER_BYTES = 2048 };

/* This rank is gone, as if its process had been killed: its own operations return TD_PEER_LOST, and so does every wait
 * of another rank for it or for a rank that was lost by it in turn. Messages that it sent before still arrive. Any
 * thread. */
void td_comm_sim_kill(struct td_comm *comm);
/* Puts this rank on simulated host `host` (all start on 0). Before td_comm_split_host, on every rank alike. */
void td_comm_sim_set_host(struct td_comm *comm, uint32_t host);

#endif
