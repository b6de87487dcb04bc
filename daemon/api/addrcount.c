#include "daemon/api/addrcount.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

struct td_addrcount_entry {
    struct td_addrcount_entry *next;
    size_t bucket;
    uint32_t n;
    unsigned char prefix[8]; /* of an IPv6 address, or the IPv4 address behind four zero bytes */
};

void td_addrcount_init(struct td_addrcount *a)
{
    memset(a, 0, sizeof(*a));
    if (getrandom(&a->seed, sizeof(a->seed), GRND_NONBLOCK) != sizeof(a->seed)) {
        a->seed = (uint64_t)(uintptr_t)a;
    }
}

static void prefix_of(const struct sockaddr *addr, unsigned char prefix[8])
{
    memset(prefix, 0, 8);
    if (addr->sa_family == AF_INET) {
        memcpy(prefix + 4, &((const struct sockaddr_in *)(const void *)addr)->sin_addr, 4);
    } else if (addr->sa_family == AF_INET6) {
        const struct in6_addr *in6 = &((const struct sockaddr_in6 *)(const void *)addr)->sin6_addr;
        if (IN6_IS_ADDR_V4MAPPED(in6)) {
            memcpy(prefix + 4, in6->s6_addr + 12, 4);
        } else {
            memcpy(prefix, in6->s6_addr, 8);
        }
    }
}

struct td_addrcount_entry *td_addrcount_add(struct td_addrcount *a, const struct sockaddr *addr)
{
    unsigned char prefix[8];
    prefix_of(addr, prefix);
    size_t bucket = XXH64(prefix, sizeof(prefix), a->seed) % TD_ADDRCOUNT_BUCKETS;
    struct td_addrcount_entry *e = a->buckets[bucket];
    while (e != NULL && memcmp(e->prefix, prefix, sizeof(prefix)) != 0) {
        e = e->next;
    }
    if (e == NULL) {
        e = calloc(1, sizeof(*e));
        if (e == NULL) {
            return NULL;
        }
        memcpy(e->prefix, prefix, sizeof(prefix));
        e->bucket = bucket;
        e->next = a->buckets[bucket];
        a->buckets[bucket] = e;
    }
    e->n++;
    return e;
}

uint32_t td_addrcount_held(const struct td_addrcount_entry *entry)
{
    return entry->n;
}

void td_addrcount_release(struct td_addrcount *a, struct td_addrcount_entry *entry)
{
    if (entry == NULL || --entry->n > 0) {
        return;
    }
    struct td_addrcount_entry **link = &a->buckets[entry->bucket];
    while (*link != entry) {
        link = &(*link)->next;
    }
    *link = entry->next;
    free(entry);
}
