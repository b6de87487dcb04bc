#include "shard/gpusums.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Sums in a row, as layers make them: what one alone would wait for is not what a step waits for. */
enum { IN_A_ROW = 8, MAX_TRIALS = 16 };

struct choice {
    const struct td_gpusums_params *p;
    uint32_t n_rows;
    bool peers;                 /* the way that is tried */
    float *host, *other;        /* [most floats] results */
    uint64_t ns[2][MAX_TRIALS]; /* of one sum by NCCL, between peers */
};

static void fill_parts(const struct choice *c, size_t n_floats)
{
    const struct td_gpusums_params *p = c->p;
    const uint32_t rank = td_comm_rank(p->stage);
    const uint32_t n_own = (uint32_t)(p->sum->first[rank + 1] - p->sum->first[rank]);

    for (uint32_t k = 0; k < n_own; k++) {
        for (size_t i = 0; i < n_floats; i++) {
            const uint32_t mixed = ((uint32_t)i * 2654435761u) ^ ((rank * 64 + k + 1) * 40503u);

            c->host[i] = ((float)(mixed * 2246822519u >> 8) - 0x1p23f) * 0x1p-23f;
        }
        td_kern_copy(p->kern, p->parts + k * n_floats, c->host, n_floats * sizeof(float));
    }
}

/* One sum of the way that is tried. */
static enum td_status sum_rows(const struct choice *c, struct td_err *err)
{
    const struct td_gpusums_params *p = c->p;

    return td_nccl_tree_sum(p->nccl, p->sum, p->parts, c->n_rows * p->row_floats, p->scratch,
                            p->out, td_kern_stream(p->kern), err);
}

static enum td_status sums_in_a_row(void *user, struct td_err *err)
{
    const struct choice *c = user;
    struct td_kern *kern = c->p->kern;
    const uint64_t key = (uint64_t)c->n_rows * 4 + (c->peers ? 2 : 0); /* those of layers are odd */
    enum td_status st = TD_OK;

    if (c->p->records && td_kern_replay(kern, key))
        return TD_OK;
    if (c->p->records)
        td_kern_record(kern, key);
    for (uint32_t i = 0; !st && i < IN_A_ROW; i++)
        st = sum_rows(c, err);
    if (c->p->records)
        td_kern_record_end(kern, st == TD_OK);
    return st;
}

/* What the sum gives, into `host`; and, unless ns is NULL, how long it takes. */
static enum td_status try_way(struct choice *c, bool peers, float *host, uint64_t *ns,
                              struct td_err *err)
{
    const struct td_gpusums_params *p = c->p;
    const size_t n_floats = c->n_rows * p->row_floats;
    void *stream = td_kern_stream(p->kern);
    enum td_status st;

    c->peers = peers;
    td_nccl_set_peer_sums(p->nccl, peers ? n_floats : 0);
    st = sum_rows(c, err);
    st = st ? st : td_nccl_wait(p->nccl, stream, 0, err);
    if (!st) {
        td_kern_copy(p->kern, host, p->out, n_floats * sizeof(float));
        st = td_kern_sync(p->kern, err);
    }
    if (st || !ns)
        return st;
    st = td_nccl_time(p->nccl, stream, sums_in_a_row, c, ns, err);
    *ns /= IN_A_ROW;
    return st;
}

/* What a rank has found; the first one's choice counts. */
struct finding {
    uint32_t n_rows;   /* up to which peers are faster, or all that can; 0: none */
    uint32_t wrong_at; /* rows of a sum that came out otherwise; 0: none */
};

static enum td_status agree(const struct td_gpusums_params *p, struct finding *mine,
                            struct td_err *err)
{
    struct finding all[TD_TREE_MAX_RANKS];
    size_t bytes[TD_TREE_MAX_RANKS];
    const uint32_t n = td_comm_size(p->stage);
    enum td_status st;

    for (uint32_t r = 0; r < n; r++)
        bytes[r] = sizeof *mine;
    st = td_comm_all_gather(p->stage, mine, bytes, all, err);
    if (st)
        return st;
    mine->n_rows = all[0].n_rows;
    mine->wrong_at = 0;
    for (uint32_t r = 0; r < n; r++)
        mine->wrong_at = all[r].wrong_at ? all[r].wrong_at : mine->wrong_at;
    return TD_OK;
}

/* One row, two, four and so on up to most_rows. */
static enum td_status try_all(struct choice *c, uint32_t most_rows, struct finding *found,
                              struct td_err *err)
{
    const bool is_timed = c->p->how == TD_GPUSUMS_AUTO;
    bool is_faster = true;
    enum td_status st = TD_OK;
    uint32_t i = 0;

    fill_parts(c, most_rows * c->p->row_floats);
    for (c->n_rows = 1; !st && c->n_rows <= most_rows && i < MAX_TRIALS; c->n_rows *= 2, i++) {
        const size_t bytes = c->n_rows * c->p->row_floats * sizeof(float);

        st = try_way(c, false, c->host, is_timed ? &c->ns[0][i] : NULL, err);
        st = st ? st : try_way(c, true, c->other, is_timed ? &c->ns[1][i] : NULL, err);
        if (!st && memcmp(c->host, c->other, bytes) != 0 && found->wrong_at == 0)
            found->wrong_at = c->n_rows;
        is_faster = is_faster && (!is_timed || c->ns[1][i] < c->ns[0][i]);
        if (!st && is_faster)
            found->n_rows = c->n_rows;
    }
    td_nccl_set_peer_sums(c->p->nccl, 0);
    td_kern_forget(c->p->kern); /* what was recorded: it is not asked for again */
    return st;
}

static void tell_times(const struct choice *c, uint32_t most_rows, char *said, size_t said_bytes)
{
    size_t at = strlen(said);

    for (uint32_t i = 0, rows = 1; rows <= most_rows && i < MAX_TRIALS && at < said_bytes;
         rows *= 2, i++)
        at += (size_t)snprintf(said + at, said_bytes - at, "%s %u: %.1f us, NCCL %.1f",
                               i ? "," : "; rows", rows, (double)c->ns[1][i] * 1e-3,
                               (double)c->ns[0][i] * 1e-3);
}

static enum td_status decide(struct choice *c, char *said, size_t said_bytes, struct td_err *err)
{
    const struct td_gpusums_params *p = c->p;
    const size_t limit = td_nccl_peer_limit(p->nccl, p->sum) / p->row_floats;
    const uint32_t most_rows = limit < p->max_rows ? (uint32_t)limit : p->max_rows;
    struct finding found = {0};
    enum td_status st = TD_OK;

    c->host = calloc(most_rows ? most_rows : 1, p->row_floats * sizeof(float));
    c->other = calloc(most_rows ? most_rows : 1, p->row_floats * sizeof(float));
    if (!c->host || !c->other)
        return td_err_set(err, TD_NO_MEMORY, "no memory to try sums of %u rows", most_rows);
    st = try_all(c, most_rows, &found, err);
    if (p->how == TD_GPUSUMS_PEER)
        found.n_rows = most_rows;
    st = st ? st : agree(p, &found, err);
    if (st)
        return st;
    if (found.wrong_at && p->how == TD_GPUSUMS_PEER)
        return td_err_set(err, TD_DEVICE,
                          "a sum of %u rows between GPUs that read each other's memory is not what "
                          "NCCL gives: this host's GPUs do not see what others have written",
                          found.wrong_at);
    if (found.wrong_at)
        snprintf(said, said_bytes, "by NCCL: between peers a sum of %u rows came out otherwise",
                 found.wrong_at);
    else if (found.n_rows == 0)
        snprintf(said, said_bytes, "by NCCL");
    else
        snprintf(said, said_bytes, "between peers up to %u rows of %zu", found.n_rows,
                 p->row_floats);
    if (p->how == TD_GPUSUMS_AUTO)
        tell_times(c, most_rows, said, said_bytes);
    td_nccl_set_peer_sums(p->nccl, found.wrong_at ? 0 : found.n_rows * p->row_floats);
    return TD_OK;
}

enum td_status td_gpusums_choose(const struct td_gpusums_params *params, char *said,
                                 size_t said_bytes, struct td_err *err)
{
    struct choice c = {.p = params};
    struct td_err own = {.status = TD_OK};
    enum td_status st;

    snprintf(said, said_bytes, "by NCCL");
    if (params->how == TD_GPUSUMS_NCCL)
        return TD_OK;
    st = td_nccl_open_peers(params->nccl, &own);
    if (st == TD_UNSUPPORTED && params->how == TD_GPUSUMS_AUTO) {
        char cause[sizeof own.cause + sizeof own.context];

        snprintf(said, said_bytes, "by NCCL: %s", td_err_format(&own, cause, sizeof cause));
        return TD_OK;
    }
    if (st) {
        if (err)
            *err = own;
        return st;
    }
    st = decide(&c, said, said_bytes, err);
    free(c.host);
    free(c.other);
    return st;
}
