/* The matrix of group operations, run on every rank of a group and checked there against values computed on the spot.
 * Shared by the tests of all transports; because the expected values come from the seed alone, transports that pass
 * give the same bits. A rank says what failed in `fail` instead of asserting, since it may be a thread or a process. */
#ifndef TD_TESTS_UNIT_COMM_COMM_CHECK_H
#define TD_TESTS_UNIT_COMM_COMM_CHECK_H

#include "comm/comm.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct comm_check {
    struct td_comm *comm;
    uint64_t seed;
    bool
        two_levels; /* or another algorithm than usual: sums send other bytes than td_comm_tree_sum_bytes says */
    char fail[512]; /* empty: all well */
};

static inline uint64_t check_mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static inline bool check_fail(struct comm_check *k, const char *what, size_t a, size_t b)
{
    if (!k->fail[0])
        snprintf(k->fail, sizeof k->fail, "rank %u of %u, seed %llu: %s (%zu, %zu)",
                 td_comm_rank(k->comm), td_comm_size(k->comm), (unsigned long long)k->seed, what, a,
                 b);
    return false;
}

static inline bool check_ok(struct comm_check *k, enum td_status status, const struct td_err *err)
{
    char text[400];

    if (status == TD_OK)
        return true;
    if (!k->fail[0])
        snprintf(k->fail, sizeof k->fail, "rank %u: status %d: %s", td_comm_rank(k->comm),
                 (int)status, td_err_format(err, text, sizeof text));
    return false;
}

static inline void check_fill(void *out, size_t bytes, uint64_t key)
{
    uint8_t *p = out;

    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t word = check_mix(key + i);

        memcpy(p + i, &word, bytes - i < 8 ? bytes - i : 8);
    }
}

static inline bool check_same(struct comm_check *k, const char *what, const void *got, size_t bytes,
                              uint64_t key)
{
    const uint8_t *p = got;

    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t word = check_mix(key + i);

        if (memcmp(p + i, &word, bytes - i < 8 ? bytes - i : 8) != 0)
            return check_fail(k, what, i, bytes);
    }
    return true;
}

/* One past the end must stay as it was. */
enum { CHECK_GUARD = 0x5a };

static inline void *check_alloc(size_t bytes)
{
    uint8_t *p = malloc(bytes + 1);

    if (!p)
        abort();
    memset(p, 0xee, bytes);
    p[bytes] = CHECK_GUARD;
    return p;
}

static inline bool check_guard(struct comm_check *k, const void *p, size_t bytes)
{
    if (((const uint8_t *)p)[bytes] != CHECK_GUARD)
        return check_fail(k, "wrote past the end", bytes, 0);
    return true;
}

static inline bool check_bcast(struct comm_check *k, uint32_t root, size_t bytes)
{
    uint64_t key = check_mix(k->seed + root) + bytes;
    uint8_t *data = check_alloc(bytes);
    struct td_err err;
    bool ok;

    if (td_comm_rank(k->comm) == root)
        check_fill(data, bytes, key);
    ok = check_ok(k, td_comm_bcast(k->comm, root, data, bytes, &err), &err) &&
         check_same(k, "bcast", data, bytes, key) && check_guard(k, data, bytes);
    free(data);
    return ok;
}

/* Uneven shares of about `bytes` in total; some are empty. */
static inline bool check_gather(struct comm_check *k, size_t bytes, uint32_t root, bool all)
{
    uint32_t n = td_comm_size(k->comm);
    uint32_t me = td_comm_rank(k->comm);
    uint64_t key = check_mix(k->seed ^ bytes);
    size_t share[TD_TREE_MAX_RANKS];
    size_t total = 0;
    size_t at = 0;
    uint8_t *send;
    uint8_t *recv;
    struct td_err err;
    bool ok;

    for (uint32_t r = 0; r < n; r++) {
        uint64_t dice = check_mix(key + r);

        share[r] = dice % 4 == 0 ? 0 : bytes / n + (bytes ? dice % 9 : 0);
        total += share[r];
    }
    send = check_alloc(share[me]);
    recv = check_alloc(total);
    check_fill(send, share[me], check_mix(key ^ me));
    ok = check_ok(k,
                  all ? td_comm_all_gather(k->comm, send, share, recv, &err)
                      : td_comm_gather(k->comm, root, send, share, recv, &err),
                  &err);
    for (uint32_t r = 0; r < n && ok && (all || me == root); r++) {
        ok = check_same(k, all ? "all_gather" : "gather", recv + at, share[r], check_mix(key ^ r));
        at += share[r];
    }
    ok = ok && check_guard(k, recv, total);
    free(send);
    free(recv);
    return ok;
}

/* Every rank passes a message to the next one. The odd ones listen first, so that no two wait for each other. */
static inline bool check_ring(struct comm_check *k, size_t bytes)
{
    uint32_t n = td_comm_size(k->comm);
    uint32_t me = td_comm_rank(k->comm);
    uint32_t next = (me + 1) % n;
    uint32_t previous = (me + n - 1) % n;
    uint8_t *out = check_alloc(bytes);
    uint8_t *in = check_alloc(bytes);
    struct td_err err;
    bool ok = n > 1;

    if (ok) {
        check_fill(out, bytes, check_mix(k->seed - me));
        if (me % 2 == 0)
            ok = check_ok(k, td_comm_send(k->comm, next, out, bytes, &err), &err);
        ok = ok && check_ok(k, td_comm_recv(k->comm, previous, in, bytes, &err), &err);
        if (me % 2 == 1)
            ok = ok && check_ok(k, td_comm_send(k->comm, next, out, bytes, &err), &err);
        ok = ok && check_same(k, "ring", in, bytes, check_mix(k->seed - previous)) &&
             check_guard(k, in, bytes);
    }
    if (ok) { /* the same, all at once */
        check_fill(out, bytes, check_mix(k->seed + me));
        ok = check_ok(k, td_comm_sendrecv(k->comm, next, out, bytes, previous, in, bytes, &err),
                      &err) &&
             check_same(k, "sendrecv", in, bytes, check_mix(k->seed + previous)) &&
             check_guard(k, in, bytes);
    }
    free(out);
    free(in);
    return ok || n == 1;
}

/* Magnitudes from 2^-30 to 2^30 of both signs: any other order of additions gives other bits. */
static inline float check_leaf(uint64_t seed, uint32_t leaf, size_t i)
{
    uint64_t dice = check_mix(check_mix(seed + leaf * 0x10001u) + i);
    uint32_t exponent = 127u - 30u + (uint32_t)((dice >> 32) % 61);
    uint32_t bits = (uint32_t)(dice & 0x807fffffu) | exponent << 23;
    float value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The specification: the sum of the leaves that are present below a node, left + right. */
static inline float check_node(uint64_t seed, uint32_t n_leaves, uint32_t at, uint32_t size,
                               size_t i)
{
    float left;

    if (size == 1)
        return check_leaf(seed, at, i);
    left = check_node(seed, n_leaves, at, size / 2, i);
    if (at + size / 2 >= n_leaves)
        return left;
    return left + check_node(seed, n_leaves, at + size / 2, size / 2, i);
}

static inline uint32_t check_span(uint32_t n_leaves)
{
    uint32_t span = 1;

    while (span < n_leaves)
        span *= 2;
    return span;
}

/* Cuts n_leaves in n random runs, some empty. */
static inline void check_runs(uint64_t seed, uint32_t n_leaves, uint32_t n,
                              struct td_leaf_run *runs)
{
    uint32_t cuts[TD_TREE_MAX_RANKS + 1] = {0};

    for (uint32_t r = 1; r < n; r++) {
        uint32_t cut = (uint32_t)(check_mix(seed * 31 + r) % (n_leaves + 1));
        uint32_t at = r;

        for (; at > 1 && cuts[at - 1] > cut; at--)
            cuts[at] = cuts[at - 1];
        cuts[at] = cut;
    }
    cuts[n] = n_leaves;
    for (uint32_t r = 0; r < n; r++)
        runs[r] = (struct td_leaf_run){cuts[r], cuts[r + 1]};
}

enum check_place { CHECK_APART, CHECK_OUT_IN_PARTS };

static inline bool check_tree_sum(struct comm_check *k, uint64_t seed, uint32_t n_leaves,
                                  size_t n_floats, enum check_place place)
{
    uint32_t n = td_comm_size(k->comm);
    uint32_t me = td_comm_rank(k->comm);
    struct td_leaf_run runs[TD_TREE_MAX_RANKS];
    struct td_leaf_run cut[TD_TREE_MAX_PARTS];
    struct td_tree_layout layout = {n_leaves, runs};
    uint32_t n_all = 0;
    uint32_t n_own;
    float *scratch;
    float *parts;
    float *separate;
    float *out;
    struct td_comm_stats before;
    struct td_comm_stats after;
    struct td_err err;
    bool exact, ok;

    check_runs(seed, n_leaves, n, runs);
    for (uint32_t r = 0; r < n; r++)
        n_all += td_tree_parts(n_leaves, runs[r], cut);
    n_own = td_tree_parts(n_leaves, runs[me], cut);
    scratch = check_alloc(n_all * n_floats * sizeof(float));
    parts = check_alloc(n_own * n_floats * sizeof(float));
    separate = check_alloc(n_floats * sizeof(float));
    out = place == CHECK_OUT_IN_PARTS && n_own > 0 ? parts + (n_own - 1) * n_floats : separate;
    for (uint32_t p = 0; p < n_own; p++) {
        uint32_t size = 1;

        while (cut[p].begin + size < cut[p].end)
            size *= 2;
        for (size_t i = 0; i < n_floats; i++)
            parts[p * n_floats + i] = check_node(seed, n_leaves, cut[p].begin, size, i);
    }
    td_comm_stats(k->comm, &before);
    ok = check_ok(k, td_comm_tree_sum(k->comm, &layout, parts, n_floats, scratch, out, &err), &err);
    td_comm_stats(k->comm, &after);
    exact =
        n_floats * sizeof(float) <= 256 * 1024 || strcmp(td_comm_transport(k->comm), "shm") != 0;
    if (ok && !k->two_levels && exact &&
        after.sent_bytes - before.sent_bytes != td_comm_tree_sum_bytes(&layout, n, me, n_floats))
        ok = check_fail(k, "tree_sum sent other bytes than said",
                        (size_t)(after.sent_bytes - before.sent_bytes),
                        td_comm_tree_sum_bytes(&layout, n, me, n_floats));
    for (size_t i = 0; i < n_floats && ok; i++) {
        float expected = check_node(seed, n_leaves, 0, check_span(n_leaves), i);

        if (memcmp(&expected, &out[i], sizeof expected) != 0)
            ok = check_fail(k, "tree_sum has other bits (float, leaves)", i, n_leaves);
    }
    ok = ok && check_guard(k, scratch, n_all * n_floats * sizeof(float)) &&
         check_guard(k, separate, n_floats * sizeof(float)) &&
         check_guard(k, parts, n_own * n_floats * sizeof(float));
    free(scratch);
    free(parts);
    free(separate);
    return ok;
}

/* The first two ranks of `half` use three groups in turn: what was sent first is taken last. In the group before the
 * split the other one has rank `other`. */
static inline bool check_groups_apart(struct comm_check *k, struct td_comm *half,
                                      struct td_comm *again, uint32_t other)
{
    struct td_comm *const groups[3] = {k->comm, half, again};
    uint32_t me = td_comm_rank(half);
    struct td_err err;

    for (uint32_t i = 0; i < 3; i++) {
        struct td_comm *group = groups[me == 0 ? i : 2 - i];
        uint32_t peer = group == k->comm ? other : 1 - me;
        uint32_t word = me == 0 ? i : 99;

        if (!check_ok(k,
                      me == 0 ? td_comm_send(group, peer, &word, sizeof word, &err)
                              : td_comm_recv(group, peer, &word, sizeof word, &err),
                      &err))
            return false;
        if (me == 1 && word != 2 - i)
            return check_fail(k, "a message came through another group", word, 2 - i);
    }
    return true;
}

/* Splits in two by parity with the ranks turned round, uses both groups in turn with the old one, and splits again. */
static inline bool check_split(struct comm_check *k)
{
    uint32_t n = td_comm_size(k->comm);
    uint32_t me = td_comm_rank(k->comm);
    struct td_comm *half = NULL;
    struct td_comm *none = k->comm;
    struct td_comm *again = NULL;
    struct comm_check sub;
    struct td_err err;
    bool ok;

    if (!check_ok(k, td_comm_split(k->comm, (int)(me % 2), -(int)me, &half, &err), &err))
        return false;
    sub = (struct comm_check){
        .comm = half, .seed = k->seed + 100 + me % 2, .two_levels = k->two_levels};
    ok = td_comm_size(half) == (n + 1 - me % 2) / 2 ||
         check_fail(k, "split size", td_comm_size(half), n);
    ok = ok && (td_comm_rank(half) == (n - 1 - me) / 2 ||
                check_fail(k, "split rank", td_comm_rank(half), me));
    ok = ok && check_bcast(&sub, 0, 5000) && check_bcast(k, n - 1, 100) &&
         check_tree_sum(&sub, sub.seed, 13, 777, CHECK_APART) && check_gather(&sub, 3000, 0, true);
    ok = ok && check_ok(k, td_comm_split(k->comm, me == 0 ? 0 : -1, 0, &none, &err), &err) &&
         ((none != NULL) == (me == 0) || check_fail(k, "a negative colour joined", me, 0));
    ok = ok && check_ok(k, td_comm_split(half, 7, 0, &again, &err), &err) &&
         (td_comm_rank(again) == td_comm_rank(half) ||
          check_fail(k, "second split", td_comm_rank(again), me));
    if (ok) {
        sub.comm = again;
        ok = check_ring(&sub, 100) && check_bcast(&sub, td_comm_size(again) - 1, 10);
        if (ok && td_comm_size(half) > 1 && td_comm_rank(half) < 2)
            ok = check_groups_apart(k, half, again, td_comm_rank(half) == 0 ? me - 2 : me + 2);
    }
    if (sub.fail[0])
        memcpy(k->fail, sub.fail, sizeof k->fail);
    td_comm_close(again);
    if (none != k->comm)
        td_comm_close(none);
    td_comm_close(half);
    return ok;
}

static inline bool check_sizes(struct comm_check *k, const size_t *sizes, size_t n_sizes)
{
    uint32_t n = td_comm_size(k->comm);
    struct td_err err;
    bool ok = true;

    for (size_t i = 0; i < n_sizes && ok; i++) {
        ok = check_bcast(k, (uint32_t)i % n, sizes[i]) && check_gather(k, sizes[i], 0, true) &&
             check_gather(k, sizes[i], (uint32_t)(i + 1) % n, false) && check_ring(k, sizes[i]) &&
             check_ok(k, td_comm_barrier(k->comm, &err), &err);
    }
    return ok;
}

static inline bool check_sums(struct comm_check *k, uint32_t n_random, bool large)
{
    static const size_t floats[] = {1, 7, 256, 511, 512, 513, 2048, 5000};
    bool ok = check_tree_sum(k, k->seed, 1, 33, CHECK_APART) &&
              check_tree_sum(k, k->seed, 64, 0, CHECK_APART) &&
              check_tree_sum(k, k->seed, TD_TREE_MAX_LEAVES, 100, CHECK_OUT_IN_PARTS);

    for (uint32_t i = 0; i < n_random && ok; i++) {
        uint64_t dice = check_mix(k->seed + 1000 + i);

        ok = check_tree_sum(k, dice, 1 + (uint32_t)(dice % TD_TREE_MAX_LEAVES),
                            floats[(dice >> 8) % 8], (enum check_place)((dice >> 16) % 2));
    }
    /* Past the bound from which sums go in slices, and just at it. */
    if (large)
        ok = ok && check_tree_sum(k, k->seed + 1, 11, 65536, CHECK_APART) &&
             check_tree_sum(k, k->seed + 2, 5, 65537, CHECK_OUT_IN_PARTS) &&
             check_tree_sum(k, k->seed + 3, 9, 70001, CHECK_APART);
    return ok;
}

/* The same sums by every algorithm that the group has. */
static inline bool check_algorithms(struct comm_check *k, uint32_t n_random, bool large)
{
    bool usual = k->two_levels;
    bool ok = true;

    k->two_levels = true;
    for (int a = TD_SUM_ONE_SHOT; a < TD_N_SUM_ALGORITHMS && ok; a++) {
        if (!td_comm_sum_supports(k->comm, (enum td_sum_algorithm)a))
            continue;
        td_comm_set_sum_algorithm(k->comm, (enum td_sum_algorithm)a);
        ok = check_sums(k, n_random, large);
        if (!ok) {
            size_t at = strlen(k->fail);

            snprintf(k->fail + at, sizeof k->fail - at, " (algorithm %s)",
                     td_comm_sum_name((enum td_sum_algorithm)a));
        }
    }
    td_comm_set_sum_algorithm(k->comm, TD_SUM_AUTO);
    k->two_levels = usual;
    return ok;
}

#endif
