/* Virtual time of a simulated group: what a link costs, and when and how an exchange ends. Pure arithmetic on
 * nanoseconds; knows no threads, no queues and no bytes of a message. Sums stop at UINT64_MAX, which is "never".
 *
 * The model. Every rank has one port out and one port in, whatever the link; ranks of one host share none. A message of
 * b bytes occupies a port for d = message_ns + b * byte_ps / 1000 (rounded up). An exchange that starts at t sends its
 * messages one after another in the order in which they were queued: the k-th has left at t + d_1 + ... + d_k. It
 * arrives latency_ns later. The port in takes the messages of one exchange one after another too: a message whose first
 * byte arrives while another comes in waits for it. Messages that nobody has asked for yet are not taken into account:
 * which of them come first is known only when all ranks have got that far. A message of more than
 * TD_COMM_SIM_EAGER_BYTES has left, besides, only when the receiver has started an exchange that asks for it; the word
 * of that takes no time, and it arrives no later for it. The exchange ends when everything has left and come in, at t
 * at the earliest. */
#ifndef TD_COMM_COMM_SIMTIME_H
#define TD_COMM_COMM_SIMTIME_H

#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* L, g and G of LogGP (Alexandrov, Ionescu, Schauser, Scheiman 1995); its overhead o is 0. */
struct td_comm_simtime_link {
    uint64_t latency_ns; /* from the last byte's leaving to its arrival */
    uint64_t message_ns; /* of both ports, per message */
    uint64_t byte_ps; /* of both ports, per byte, in picoseconds: 8000 is 1 Gbit/s; 0: no limit */
};

struct td_comm_simtime_model {
    struct td_comm_simtime_link net;  /* between ranks of two hosts */
    struct td_comm_simtime_link host; /* between ranks of one host */
    uint64_t stall_ns; /* of real time that a wait sees nothing happen before it fails; 0: 60 s */
};

/* What is known of one message of an exchange. */
struct td_comm_simtime_msg {
    bool is_send;
    bool known; /* came or left, or never will */
    enum td_status status;
    uint64_t
        at_ns; /* left, or the last byte comes to a port that is free; not TD_OK: when that is noticed */
    uint64_t port_ns; /* d, of a receive */
};

struct td_comm_simtime_exchange {
    uint64_t start_ns;
    uint64_t deadline_ns; /* UINT64_MAX: none */
    uint64_t lost_ns;     /* when this rank itself is lost; UINT64_MAX: never */
    uint32_t n_msgs;
    const struct td_comm_simtime_msg *msgs; /* [n_msgs] */
};

enum td_comm_simtime_end {
    TD_COMM_SIMTIME_DONE,
    TD_COMM_SIMTIME_LATE,  /* at the deadline; `msg` is the first one that is late */
    TD_COMM_SIMTIME_LOST,  /* this rank was lost */
    TD_COMM_SIMTIME_FAILED /* by `msg` */
};

struct td_comm_simtime_verdict {
    enum td_comm_simtime_end end;
    uint64_t at_ns;
    uint32_t msg;
};

/* How long a message of `bytes` occupies a port. */
uint64_t td_comm_simtime_port_ns(const struct td_comm_simtime_link *link, size_t bytes);
uint64_t td_comm_simtime_add(uint64_t a_ns, uint64_t b_ns);
/* How the exchange ends when what is not known yet never happens. Done needs an end before lost_ns and not after the
 * deadline. Of several failures the earliest counts; at one time this rank's own loss goes first, then the deadline. */
struct td_comm_simtime_verdict
td_comm_simtime_decide(const struct td_comm_simtime_exchange *exchange);

#endif
