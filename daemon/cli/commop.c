#include "daemon/cli/commop.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A call may take this long, and in addition as long as a link of 10 MB/s needs for all ranks' bytes. */
static const uint64_t least_limit_ns = 30000000000u, slowest_ns_per_byte = 100;

enum { ALIGNMENT = 4096, SPOILT = 0xff }; /* four bytes of these are no number */

/* ---- memory ---- */

static void *take(size_t bytes)
{
    return aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT);
}

enum td_status td_commop_open(struct td_commop_bench *b, size_t most_bytes, struct td_err *err)
{
    b->rank = td_comm_rank(b->world);
    b->size = td_comm_size(b->world);
    b->runs = calloc(b->size, sizeof *b->runs);
    b->counts = calloc(b->size, sizeof *b->counts);
    b->send = take(most_bytes);
    b->recv = take(most_bytes * b->size);
    b->out = take(most_bytes);
    if (!b->runs || !b->counts || !b->send || !b->recv || !b->out)
        return td_err_set(err, TD_NO_MEMORY, "no memory for messages of %zu bytes of %u ranks",
                          most_bytes, b->size);
    b->layout.n_leaves = b->size < TD_TREE_MAX_LEAVES ? b->size : TD_TREE_MAX_LEAVES;
    b->layout.runs = b->runs;
    for (uint32_t r = 0; r < b->size; r++)
        b->runs[r] = r < TD_TREE_MAX_LEAVES
                         ? (struct td_leaf_run){r, r + 1}
                         : (struct td_leaf_run){b->layout.n_leaves, b->layout.n_leaves};
    return TD_OK;
}

void td_commop_close(struct td_commop_bench *b)
{
    free(b->runs);
    free(b->counts);
    free(b->send);
    free(b->recv);
    free(b->out);
}

/* ---- contenders ---- */

static const char *transport_of(const struct td_comm *comm)
{
    const char *name = td_comm_transport(comm);

    return strcmp(name, "mpi") == 0 ? "messages" : name;
}

static size_t add_ours(struct td_comm *comm, enum td_commset_op op, struct td_commop *list)
{
    const char *transport = transport_of(comm);
    size_t n = 0;

    if (op != TD_COMMSET_TREE_SUM) {
        list[0] = (struct td_commop){.op = op, .comm = comm, .transport = transport};
        snprintf(list[0].name, sizeof list[0].name, "%s", transport);
        return 1;
    }
    for (int a = TD_SUM_AUTO + 1; a < TD_N_SUM_ALGORITHMS; a++) {
        struct td_commop *c = &list[n];

        if (!td_comm_sum_supports(comm, (enum td_sum_algorithm)a))
            continue;
        *c = (struct td_commop){
            .op = op, .comm = comm, .transport = transport, .algorithm = (enum td_sum_algorithm)a};
        snprintf(c->name, sizeof c->name, "%s %s", transport, td_comm_sum_name(c->algorithm));
        n++;
    }
    return n;
}

size_t td_commop_list(const struct td_commop_bench *b, enum td_commset_op op,
                      struct td_commop list[TD_COMMOP_MAX])
{
    static const char *const calls[] = {"MPI_Allreduce", "MPI_Bcast", "MPI_Allgather",
                                        "MPI_Sendrecv", "MPI_Barrier"};
    _Static_assert(sizeof calls / sizeof calls[0] == TD_COMMSET_N_OPS, "a call for each");
    size_t n = add_ours(b->world, op, list);

    if (b->messages)
        n += add_ours(b->messages, op, list + n);
    list[n] = (struct td_commop){.op = op, .kind = TD_COMMOP_MPI};
    snprintf(list[n++].name, sizeof list->name, "%s", calls[op]);
    if (op == TD_COMMSET_TREE_SUM && !td_yardstick_no_bare(b->yardstick)) {
        list[n] = (struct td_commop){.op = op, .kind = TD_COMMOP_BARE};
        snprintf(list[n++].name, sizeof list->name, "bare exchange");
    }
    return n;
}

bool td_commop_is_auto(const struct td_commop *c, size_t bytes)
{
    if (c->kind != TD_COMMOP_OURS || c->op != TD_COMMSET_TREE_SUM)
        return false;
    td_comm_set_sum_algorithm(c->comm, TD_SUM_AUTO);
    return td_comm_sum_algorithm(c->comm, bytes / sizeof(float)) == c->algorithm;
}

/* ---- what is moved ---- */

/* Rank r's float i. Whole numbers: sums of those of all ranks stay below 2^24, so every order gives the same. Ranks without a
 * leaf have zeros, which only MPI's sum sees. */
static float given(uint32_t r, size_t i)
{
    float weight = r < TD_TREE_MAX_LEAVES ? (float)(r + 1) : 0.0f;

    return weight * ((float)(i % 1009) - 504.0f);
}

/* Their sum over the ranks: of weights 1 + 2 + .. */
static float expected_sum(uint32_t n_leaves, size_t i)
{
    return (float)(n_leaves * (n_leaves + 1) / 2) * ((float)(i % 1009) - 504.0f);
}

/* Rank r's byte i; 251 is prime, so a shift by a slice or a page is seen. */
static unsigned char byte_of(uint32_t r, size_t i)
{
    return (unsigned char)((i % 251) ^ (r * 37 + 1));
}

void td_commop_begin(struct td_commop_bench *b, enum td_commset_op op, size_t bytes)
{
    b->bytes = bytes;
    b->limit_ns = least_limit_ns + (uint64_t)bytes * b->size * slowest_ns_per_byte;
    td_comm_set_deadline(b->world, b->limit_ns);
    if (b->messages)
        td_comm_set_deadline(b->messages, b->limit_ns);
    for (uint32_t r = 0; r < b->size; r++)
        b->counts[r] = bytes;
    for (size_t i = 0; op == TD_COMMSET_TREE_SUM && i < bytes / sizeof(float); i++)
        ((float *)(void *)b->send)[i] = given(b->rank, i);
    for (size_t i = 0; op != TD_COMMSET_TREE_SUM && i < bytes; i++)
        b->send[i] = (char)byte_of(b->rank, i);
}

static enum td_status call_ours(struct td_commop_bench *b, const struct td_commop *c, uint32_t root,
                                struct td_err *err)
{
    uint32_t right = (b->rank + 1) % b->size, left = (b->rank + b->size - 1) % b->size;

    switch (c->op) {
    case TD_COMMSET_TREE_SUM:
        td_comm_set_sum_algorithm(c->comm, c->algorithm);
        return td_comm_tree_sum(c->comm, &b->layout, (const float *)(void *)b->send,
                                b->bytes / sizeof(float), (float *)(void *)b->recv,
                                (float *)(void *)b->out, err);
    case TD_COMMSET_BCAST:
        return td_comm_bcast(c->comm, root, b->out, b->bytes, err);
    case TD_COMMSET_ALL_GATHER:
        return td_comm_all_gather(c->comm, b->send, b->counts, b->recv, err);
    case TD_COMMSET_SENDRECV:
        return td_comm_sendrecv(c->comm, right, b->send, b->bytes, left, b->out, b->bytes, err);
    default:
        return td_comm_barrier(c->comm, err);
    }
}

static enum td_status call_mpi(struct td_commop_bench *b, const struct td_commop *c, uint32_t root,
                               struct td_err *err)
{
    uint32_t right = (b->rank + 1) % b->size, left = (b->rank + b->size - 1) % b->size;

    switch (c->op) {
    case TD_COMMSET_TREE_SUM:
        return td_yardstick_sum(b->yardstick, (const float *)(void *)b->send,
                                b->bytes / sizeof(float), (float *)(void *)b->out, err);
    case TD_COMMSET_BCAST:
        return td_yardstick_bcast(b->yardstick, root, b->out, b->bytes, err);
    case TD_COMMSET_ALL_GATHER:
        return td_yardstick_all_gather(b->yardstick, b->send, b->bytes, b->recv, err);
    case TD_COMMSET_SENDRECV:
        return td_yardstick_sendrecv(b->yardstick, right, b->send, left, b->out, b->bytes, err);
    default:
        return td_yardstick_barrier(b->yardstick, err);
    }
}

enum td_status td_commop_call(struct td_commop_bench *b, const struct td_commop *c, uint64_t number,
                              struct td_err *err)
{
    uint32_t root = (uint32_t)(number % b->size);

    if (c->kind == TD_COMMOP_OURS)
        return call_ours(b, c, root, err);
    if (c->kind == TD_COMMOP_MPI)
        return call_mpi(b, c, root, err);
    return td_yardstick_bare_sum(b->yardstick, (const float *)(void *)b->send,
                                 b->bytes / sizeof(float), (float *)(void *)b->out, b->limit_ns,
                                 err);
}

/* ---- whether it arrived ---- */

static enum td_status check_sum(const struct td_commop_bench *b, const struct td_commop *c,
                                struct td_err *err)
{
    const float *out = (const float *)(void *)b->out;

    for (size_t i = 0; i < b->bytes / sizeof(float); i++) {
        float want = expected_sum(b->layout.n_leaves, i);

        if (!(out[i] == want)) /* not a number is wrong too */
            return td_err_set(
                err, TD_CORRUPT,
                "rank %u of %u: %s of %zu bytes: float %zu of the sum is %g, expected "
                "%g",
                b->rank, b->size, c->name, b->bytes, i, (double)out[i], (double)want);
    }
    return TD_OK;
}

/* `got` must be what rank `from` gave. */
static enum td_status check_bytes(const struct td_commop_bench *b, const struct td_commop *c,
                                  const char *got, uint32_t from, struct td_err *err)
{
    for (size_t i = 0; i < b->bytes; i++)
        if ((unsigned char)got[i] != byte_of(from, i))
            return td_err_set(err, TD_CORRUPT,
                              "rank %u of %u: %s %s of %zu bytes: byte %zu from rank %u is %d, "
                              "expected %d",
                              b->rank, b->size, td_commset_op_name(c->op), c->name, b->bytes, i,
                              from, (unsigned char)got[i], byte_of(from, i));
    return TD_OK;
}

enum td_status td_commop_verify(struct td_commop_bench *b, const struct td_commop *c,
                                struct td_err *err)
{
    const uint64_t number = 1; /* a root that is not rank 0 */
    uint32_t root = (uint32_t)(number % b->size), left = (b->rank + b->size - 1) % b->size;
    enum td_status s;

    memset(b->recv, SPOILT, b->bytes * b->size);
    memset(b->out, SPOILT, b->bytes);
    if (c->op == TD_COMMSET_BCAST && b->rank == root)
        memcpy(b->out, b->send, b->bytes);
    s = td_commop_call(b, c, number, err);
    if (s)
        return s;
    switch (c->op) {
    case TD_COMMSET_TREE_SUM:
        return check_sum(b, c, err);
    case TD_COMMSET_BCAST:
        return check_bytes(b, c, b->out, root, err);
    case TD_COMMSET_ALL_GATHER:
        for (uint32_t r = 0; !s && r < b->size; r++)
            s = check_bytes(b, c, b->recv + r * b->bytes, r, err);
        return s;
    case TD_COMMSET_SENDRECV:
        return check_bytes(b, c, b->out, left, err);
    default:
        return TD_OK;
    }
}
