/* The networks between two hosts: their addresses, which of them reach each other by what they say, and which a process's own
 * connections use. Reads the system's tables (getifaddrs(3), proc_net(5)); finding and judging are pure. Sends nothing
 * (pathtest.h does). */
#ifndef TD_DAEMON_CLI_NETPATH_H
#define TD_DAEMON_CLI_NETPATH_H

#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct td_verdict_report;

enum {
    TD_NETPATH_MAX_ADDRESSES = 16, /* of a host */
    TD_NETPATH_MAX_PATHS = 16,     /* between two hosts */
    TD_NETPATH_MAX_CONNECTIONS = 256,
    TD_NETPATH_TEXT = 48 /* bytes of an address as text */
};

struct td_netpath_ip {
    uint8_t family;    /* 4 or 6 */
    uint8_t bytes[16]; /* network order; of family 4 the first four, the rest 0 */
};

/* Interfaces that are up, without loopback and without addresses of one link only (RFC 4291 section 2.5.6). Plain bytes. */
struct td_netpath_address {
    char interface[16];
    struct td_netpath_ip ip;
    uint8_t prefix_bits;
    uint32_t speed_mbits; /* as the driver says; 0: it does not */
};
struct td_netpath_host {
    uint32_t n;
    struct td_netpath_address addresses[TD_NETPATH_MAX_ADDRESSES];
};

/* This host's, in the order of the system; more than there is room for are left out. TD_IO. */
enum td_status td_netpath_read_host(struct td_netpath_host *out, struct td_err *err);
/* "10.0.0.1", "fd00::1". Returns out. */
const char *td_netpath_text(const struct td_netpath_ip *ip, char out[TD_NETPATH_TEXT]);

/* A line of /proc/net/tcp or tcp6. IPv4 in IPv6 (::ffff:0:0/96) is given as IPv4. False for the heading and for what is none. */
struct td_netpath_socket {
    struct td_netpath_ip local, remote;
    uint64_t inode;
    bool is_established;
};
bool td_netpath_parse_socket(const char *line, struct td_netpath_socket *out);

/* The two ends of this process's established TCP connections; two with the same addresses are one. */
struct td_netpath_connection {
    struct td_netpath_ip local, remote;
};
uint32_t td_netpath_connections(struct td_netpath_connection *out, uint32_t cap);

/* From an address of one host to an address of another. */
struct td_netpath {
    uint32_t a, b;       /* indices into the hosts' addresses */
    bool is_used;        /* MPI has a connection there */
    bool is_measured;    /* pathtest was tried */
    bool answers;        /* and came through */
    uint64_t latency_ns; /* half a round trip of one byte */
    double bytes_per_second;
};

/* The paths between hosts `a` and `b`: networks that both have an address of, one for two interfaces (IPv4 before IPv6), and
 * those of `used` [n_used] connections from a to b. At most TD_NETPATH_MAX_PATHS; returns how many. */
uint32_t td_netpath_find(const struct td_netpath_host *a, const struct td_netpath_host *b,
                         const struct td_netpath_connection *used, uint32_t n_used,
                         struct td_netpath *paths);

/* "10.0.0.0/24": the network of an address, as Open MPI takes it. Returns out. */
const char *td_netpath_network(const struct td_netpath_address *a, char out[TD_NETPATH_TEXT + 4]);

/* What one process set for the networks that MPI may use, "OMPI_MCA_btl_tcp_if_include=eth0"; NULL: nothing. Returns out. */
const char *td_netpath_choice(char *out, size_t out_bytes);

/* Two hosts and what is known of the paths between them. */
struct td_netpath_case {
    const char *where; /* "a - b" */
    const struct td_netpath_host *a, *b;
    const struct td_netpath *paths; /* [n] */
    uint32_t n;
    const char *choice; /* as td_netpath_choice */
};
/* Lines for two hosts: what MPI uses, whether it is the fastest that answers, which networks do not answer. */
void td_netpath_judge(const struct td_netpath_case *c, struct td_verdict_report *report);

#endif
