/* How many connections each address holds: IPv4 addresses one by one, IPv6 by the 64 bits of their network, since one
 * customer has all of those. Pure accounting, memory only for addresses that hold something; loop thread. */
#ifndef TD_DAEMON_API_ADDRCOUNT_H
#define TD_DAEMON_API_ADDRCOUNT_H

#include <stdint.h>
#include <sys/socket.h>

enum { TD_ADDRCOUNT_BUCKETS = 1024 };

struct td_addrcount_entry;

struct td_addrcount {
    uint64_t seed; /* of the hash, so that nobody chooses addresses that fall together */
    struct td_addrcount_entry *buckets[TD_ADDRCOUNT_BUCKETS];
};

/* Nothing is counted. Draws the seed. */
void td_addrcount_init(struct td_addrcount *a);
/* One more of the address; returns its entry, NULL without memory. */
struct td_addrcount_entry *td_addrcount_add(struct td_addrcount *a, const struct sockaddr *addr);
uint32_t td_addrcount_held(const struct td_addrcount_entry *entry);
/* One less; the last one frees the entry. NULL is legal. */
void td_addrcount_release(struct td_addrcount *a, struct td_addrcount_entry *entry);

#endif
