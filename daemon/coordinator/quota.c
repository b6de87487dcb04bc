#include "daemon/coordinator/quota.h"

#include <math.h>
#include <string.h>

static double per_ns(const struct td_quota *q)
{
    return (double)q->limits.tokens_per_minute / 60e9;
}

static double level(const struct td_quota *q, uint32_t key, uint64_t now_ns)
{
    const struct td_quota_account *a = &q->account[key];
    double full = q->limits.tokens_per_minute;
    double tokens = a->tokens;

    if (now_ns > a->level_ns)
        tokens += (double)(now_ns - a->level_ns) * per_ns(q);
    return tokens < full ? tokens : full;
}

static void add(struct td_quota *q, uint32_t key, double tokens, uint64_t now_ns)
{
    double full = q->limits.tokens_per_minute;
    double sum = level(q, key, now_ns) + tokens;

    q->account[key].tokens = sum < full ? sum : full;
    q->account[key].level_ns = now_ns;
}

void td_quota_init(struct td_quota *q, const struct td_quota_limits *limits, uint64_t now_ns)
{
    memset(q, 0, sizeof *q);
    q->limits = *limits;
    for (int i = 0; i < TD_QUOTA_KEYS; i++)
        q->account[i] = (struct td_quota_account){0, limits->tokens_per_minute, now_ns};
}

enum td_quota_verdict td_quota_check(const struct td_quota *q, uint32_t key, uint32_t n_requests,
                                     uint64_t n_tokens, uint64_t now_ns, uint64_t *wait_ns)
{
    double full = q->limits.tokens_per_minute, wanted = (double)n_tokens;
    double missing;

    if (q->limits.max_open && n_requests > q->limits.max_open)
        return TD_QUOTA_NEVER;
    if (q->limits.max_open && q->account[key].n_open > q->limits.max_open - n_requests)
        return TD_QUOTA_CONCURRENCY;
    if (!q->limits.tokens_per_minute)
        return TD_QUOTA_FITS;
    missing = (wanted < full ? wanted : full) - level(q, key, now_ns);
    /* What a sum of fractions lacks to a whole token is no reason to refuse. */
    if (missing <= 1e-6)
        return TD_QUOTA_FITS;
    *wait_ns = (uint64_t)ceil(missing / per_ns(q));
    return TD_QUOTA_TOKENS;
}

void td_quota_take(struct td_quota *q, uint32_t key, uint64_t n_tokens, uint64_t now_ns)
{
    q->account[key].n_open++;
    add(q, key, -(double)n_tokens, now_ns);
}

void td_quota_give_back(struct td_quota *q, uint32_t key, uint64_t n_unused, uint64_t now_ns)
{
    q->account[key].n_open--;
    add(q, key, (double)n_unused, now_ns);
}

uint32_t td_quota_n_open(const struct td_quota *q, uint32_t key)
{
    return q->account[key].n_open;
}

uint64_t td_quota_tokens(const struct td_quota *q, uint32_t key, uint64_t now_ns, uint64_t *full_ns)
{
    double tokens = level(q, key, now_ns);

    *full_ns = 0;
    if (q->limits.tokens_per_minute)
        *full_ns = (uint64_t)((q->limits.tokens_per_minute - tokens) / per_ns(q));
    return tokens > 0 ? (uint64_t)(tokens + 1e-6) : 0;
}
