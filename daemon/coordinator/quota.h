/* Who may have how much: requests that are open at once and tokens per minute, counted for each API key, and for everybody
 * together where the server has no keys. Pure accounting in its owner's storage: the time is passed in. Knows no job and
 * no protocol. */
#ifndef TD_DAEMON_COORDINATOR_QUOTA_H
#define TD_DAEMON_COORDINATOR_QUOTA_H

#include "daemon/api/auth.h"

#include <stdbool.h>
#include <stdint.h>

enum { TD_QUOTA_KEYS = TD_AUTH_MAX_KEYS + 1 }; /* 0: the server is open */

struct td_quota_limits {
    uint32_t max_open;          /* 0: no limit */
    uint32_t tokens_per_minute; /* 0: no limit; also what a bucket holds when it is full */
};

struct td_quota_account {
    uint32_t n_open;
    double tokens;     /* in the bucket at level_ns; below 0: a debt */
    uint64_t level_ns; /* when that was so */
};

struct td_quota {
    struct td_quota_limits limits;
    struct td_quota_account account[TD_QUOTA_KEYS];
};

enum td_quota_verdict {
    TD_QUOTA_FITS = 0,
    TD_QUOTA_CONCURRENCY, /* over max_open */
    TD_QUOTA_TOKENS,      /* the bucket must fill first */
    TD_QUOTA_NEVER        /* more requests at once than max_open: no wait helps */
};

/* Nothing is open and every bucket is full. */
void td_quota_init(struct td_quota *q, const struct td_quota_limits *limits, uint64_t now_ns);

/* Whether `n_requests` more with `n_tokens` in all fit. A bucket fills evenly, by tokens_per_minute in a minute and up to
 * that. Who asks for more than a full bucket holds waits until it is full and then makes a debt, so that a request of any
 * size gets its turn and the average stays what it is. On TD_QUOTA_TOKENS *wait_ns is how long the bucket needs. */
enum td_quota_verdict td_quota_check(const struct td_quota *q, uint32_t key, uint32_t n_requests,
                                     uint64_t n_tokens, uint64_t now_ns, uint64_t *wait_ns);
/* One request was accepted: `n_tokens` (its prompt and all that it may generate) leave the bucket. */
void td_quota_take(struct td_quota *q, uint32_t key, uint64_t n_tokens, uint64_t now_ns);
/* It has ended: what it did not use goes back, up to a full bucket. */
void td_quota_give_back(struct td_quota *q, uint32_t key, uint64_t n_unused, uint64_t now_ns);

uint32_t td_quota_n_open(const struct td_quota *q, uint32_t key);
/* Tokens in the bucket, 0 for a debt; *full_ns: how long until it is full. */
uint64_t td_quota_tokens(const struct td_quota *q, uint32_t key, uint64_t now_ns,
                         uint64_t *full_ns);

#endif
