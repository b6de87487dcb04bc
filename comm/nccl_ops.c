/* The operations on device memory: arguments checked once, enqueued, settled. */
#include "comm/commargs.h"
#include "comm/nccl.h"
#include "comm/nccl_impl.h"

/* At most one message in each direction. */
static enum td_status exchange(struct td_nccl *n, const char *op, uint32_t to, const void *data,
                               size_t bytes, uint32_t from, void *recv, size_t recv_bytes,
                               void *stream, struct td_err *err)
{
    enum td_status status = bytes ? td_commargs_peer(op, to, n->rank, n->n_ranks, err) : TD_OK;

    if (status == TD_OK && recv_bytes)
        status = td_commargs_peer(op, from, n->rank, n->n_ranks, err);
    if (status == TD_OK)
        status = td_commargs_data(op, "data", data, bytes, err);
    if (status == TD_OK)
        status = td_commargs_data(op, "recv", recv, recv_bytes, err);
    if (status == TD_OK && bytes == 0 && recv_bytes == 0)
        return td_nccl_check_usable(n, op, err);
    if (status == TD_OK)
        status = td_nccl_begin(n, op, stream, err);
    if (status != TD_OK)
        return status;
    status = n->plug->group_begin(n->end, err);
    if (status == TD_OK) {
        if (recv_bytes)
            n->plug->recv(n->end, from, recv, recv_bytes, stream);
        if (bytes)
            n->plug->send(n->end, to, data, bytes, stream);
        status = n->plug->group_end(n->end, err);
    }
    return td_nccl_finish(n, op, status, err);
}

enum td_status td_nccl_send(struct td_nccl *n, uint32_t to, const void *data, size_t bytes,
                            void *stream, struct td_err *err)
{
    return exchange(n, "send", to, data, bytes, 0, NULL, 0, stream, err);
}

enum td_status td_nccl_recv(struct td_nccl *n, uint32_t from, void *data, size_t bytes,
                            void *stream, struct td_err *err)
{
    return exchange(n, "recv", 0, NULL, 0, from, data, bytes, stream, err);
}

enum td_status td_nccl_sendrecv(struct td_nccl *n, uint32_t to, const void *data, size_t bytes,
                                uint32_t from, void *recv, size_t recv_bytes, void *stream,
                                struct td_err *err)
{
    return exchange(n, "sendrecv", to, data, bytes, from, recv, recv_bytes, stream, err);
}

enum td_status td_nccl_bcast(struct td_nccl *n, uint32_t root, void *data, size_t bytes,
                             void *stream, struct td_err *err)
{
    enum td_status status = td_commargs_root("bcast", root, n->n_ranks, err);

    if (status == TD_OK)
        status = td_commargs_data("bcast", "data", data, bytes, err);
    if (status == TD_OK && bytes == 0)
        return td_nccl_check_usable(n, "bcast", err);
    if (status == TD_OK)
        status = td_nccl_begin(n, "bcast", stream, err);
    if (status != TD_OK)
        return status;
    return td_nccl_finish(n, "bcast", n->plug->bcast(n->end, root, data, bytes, stream, err), err);
}

static bool all_equal(const size_t *bytes, uint32_t n)
{
    for (uint32_t r = 1; r < n; r++)
        if (bytes[r] != bytes[0])
            return false;
    return true;
}

static enum td_status check_gather(const struct td_nccl *n, const char *op, const void *send,
                                   const size_t *bytes, bool receives, const void *recv,
                                   size_t *total, struct td_err *err)
{
    enum td_status status = td_commargs_data(op, "send", send, bytes[n->rank], err);

    *total = 0;
    for (uint32_t r = 0; status == TD_OK && r < n->n_ranks; r++) {
        if (bytes[r] > SIZE_MAX - *total)
            status = td_err_set(err, TD_INVALID, "%s: bytes of %u ranks overflow a size", op,
                                n->n_ranks);
        *total += bytes[r];
    }
    if (status == TD_OK && receives)
        status = td_commargs_data(op, "recv", recv, *total, err);
    return status;
}

/* Messages of as many bytes as each rank has, the own ones too, to the ranks first_root .. last_root. */
static enum td_status gather_messages(struct td_nccl *n, uint32_t first_root, uint32_t last_root,
                                      const void *send, const size_t *bytes, char *recv,
                                      void *stream, struct td_err *err)
{
    const bool receives = n->rank >= first_root && n->rank <= last_root;
    enum td_status status = n->plug->group_begin(n->end, err);

    if (status != TD_OK)
        return status;
    for (uint32_t r = 0; receives && r < n->n_ranks; recv += bytes[r++])
        if (bytes[r])
            n->plug->recv(n->end, r, recv, bytes[r], stream);
    for (uint32_t r = first_root; bytes[n->rank] && r <= last_root; r++)
        n->plug->send(n->end, r, send, bytes[n->rank], stream);
    return n->plug->group_end(n->end, err);
}

enum td_status td_nccl_all_gather(struct td_nccl *n, const void *send, const size_t *bytes,
                                  void *recv, void *stream, struct td_err *err)
{
    size_t total;
    enum td_status status = check_gather(n, "all_gather", send, bytes, true, recv, &total, err);

    if (status == TD_OK && total == 0)
        return td_nccl_check_usable(n, "all_gather", err);
    if (status == TD_OK)
        status = td_nccl_begin(n, "all_gather", stream, err);
    if (status != TD_OK)
        return status;
    status = all_equal(bytes, n->n_ranks)
                 ? n->plug->all_gather(n->end, send, recv, bytes[0], stream, err)
                 : gather_messages(n, 0, n->n_ranks - 1, send, bytes, recv, stream, err);
    return td_nccl_finish(n, "all_gather", status, err);
}

enum td_status td_nccl_gather(struct td_nccl *n, uint32_t root, const void *send,
                              const size_t *bytes, void *recv, void *stream, struct td_err *err)
{
    size_t total = 0;
    enum td_status status = td_commargs_root("gather", root, n->n_ranks, err);

    if (status == TD_OK)
        status = check_gather(n, "gather", send, bytes, root == n->rank, recv, &total, err);
    if (status == TD_OK && total == 0)
        return td_nccl_check_usable(n, "gather", err);
    if (status == TD_OK)
        status = td_nccl_begin(n, "gather", stream, err);
    if (status != TD_OK)
        return status;
    return td_nccl_finish(n, "gather",
                          gather_messages(n, root, root, send, bytes, recv, stream, err), err);
}

enum td_status td_nccl_all_reduce_inexact(struct td_nccl *n, const void *in, void *out,
                                          size_t count, enum td_dtype type, void *stream,
                                          struct td_err *err)
{
    size_t bytes = td_dtype_row_bytes(type, count);
    enum td_status status;

    if (type != TD_F32 && type != TD_F16 && type != TD_BF16)
        return td_err_set(err, TD_INVALID, "all_reduce: type %d, expected f32, f16 or bf16",
                          (int)type);
    status = td_commargs_data("all_reduce", "in", in, bytes, err);
    if (status == TD_OK)
        status = td_commargs_data("all_reduce", "out", out, bytes, err);
    if (status == TD_OK && count == 0)
        return td_nccl_check_usable(n, "all_reduce", err);
    if (status == TD_OK)
        status = td_nccl_begin(n, "all_reduce", stream, err);
    if (status != TD_OK)
        return status;
    return td_nccl_finish(n, "all_reduce",
                          n->plug->all_reduce(n->end, in, out, count, type, stream, err), err);
}

/* ---- the exact sum ---- */

/* One call. */
struct sum {
    const struct td_ncclsum *plan;
    const float *parts;
    size_t n_floats;
    float *scratch;
    float *out;
    void *stream;
};

static const char *const tree_sum = "tree_sum";

static uint32_t n_own(const struct sum *s, uint32_t rank)
{
    return (uint32_t)(s->plan->first[rank + 1] - s->plan->first[rank]);
}

/* Everybody's parts go to everybody's scratch. Where all have as many, one all-gather; else messages of exactly the parts:
 * an all-gather padded to the largest would send up to 12 parts for none, and a rank without parts sends nothing. */
static enum td_status gather_parts(struct td_nccl *n, const struct sum *s, struct td_err *err)
{
    const struct td_ncclsum *p = s->plan;
    size_t own_bytes = n_own(s, n->rank) * s->n_floats * sizeof(float);
    enum td_status status;

    if (p->is_even)
        return n->plug->all_gather(n->end, s->parts, s->scratch, own_bytes, s->stream, err);
    status = n->plug->group_begin(n->end, err);
    if (status != TD_OK)
        return status;
    for (uint32_t i = 1; i < n->n_ranks; i++) {
        uint32_t to = (n->rank + i) % n->n_ranks, from = (n->rank + n->n_ranks - i) % n->n_ranks;

        if (n_own(s, from))
            n->plug->recv(n->end, from, s->scratch + p->first[from] * s->n_floats,
                          n_own(s, from) * s->n_floats * sizeof(float), s->stream);
        if (own_bytes)
            n->plug->send(n->end, to, s->parts, own_bytes, s->stream);
    }
    return n->plug->group_end(n->end, err);
}

/* Two shots, the first: rank r gets its slice of everybody's parts, at the slice's place in the scratch. */
static enum td_status scatter_slices(struct td_nccl *n, const struct sum *s, struct td_err *err)
{
    const struct td_ncclsum *p = s->plan;
    size_t mine = td_ncclsum_slice(p, s->n_floats, n->rank);
    size_t count = td_ncclsum_slice(p, s->n_floats, n->rank + 1) - mine;
    enum td_status status = n->plug->group_begin(n->end, err);

    if (status != TD_OK)
        return status;
    for (uint32_t i = 1; i < n->n_ranks; i++) {
        uint32_t to = (n->rank + i) % n->n_ranks, from = (n->rank + n->n_ranks - i) % n->n_ranks;
        size_t theirs = td_ncclsum_slice(p, s->n_floats, to);
        size_t bytes = (td_ncclsum_slice(p, s->n_floats, to + 1) - theirs) * sizeof(float);

        for (uint32_t k = p->first[from]; k < p->first[from + 1] && count; k++)
            n->plug->recv(n->end, from, s->scratch + k * s->n_floats + mine, count * sizeof(float),
                          s->stream);
        for (uint32_t k = 0; k < n_own(s, n->rank) && bytes; k++)
            n->plug->send(n->end, to, s->parts + k * s->n_floats + theirs, bytes, s->stream);
    }
    return n->plug->group_end(n->end, err);
}

/* The second: the joined slices go to everybody. */
static enum td_status gather_slices(struct td_nccl *n, const struct sum *s, struct td_err *err)
{
    const struct td_ncclsum *p = s->plan;
    size_t mine = td_ncclsum_slice(p, s->n_floats, n->rank);
    size_t bytes = (td_ncclsum_slice(p, s->n_floats, n->rank + 1) - mine) * sizeof(float);
    enum td_status status = n->plug->group_begin(n->end, err);

    if (status != TD_OK)
        return status;
    for (uint32_t i = 1; i < n->n_ranks; i++) {
        uint32_t to = (n->rank + i) % n->n_ranks, from = (n->rank + n->n_ranks - i) % n->n_ranks;
        size_t theirs = td_ncclsum_slice(p, s->n_floats, from);
        size_t their_bytes = (td_ncclsum_slice(p, s->n_floats, from + 1) - theirs) * sizeof(float);

        if (their_bytes)
            n->plug->recv(n->end, from, s->out + theirs, their_bytes, s->stream);
        if (bytes)
            n->plug->send(n->end, to, s->out + mine, bytes, s->stream);
    }
    return n->plug->group_end(n->end, err);
}

/* Joins `count` floats from `begin` on into `out`. */
static enum td_status join_parts(struct td_nccl *n, const struct sum *s, size_t begin, size_t count,
                                 struct td_err *err)
{
    struct td_treestack join;

    td_ncclsum_join(s->plan, s->parts, s->scratch, s->n_floats, begin, &join);
    return td_nccl_with_context(n, tree_sum,
                                n->plug->join(&join, s->out + begin, count, s->stream, err), err);
}

static enum td_status check_sum(const struct td_nccl *n, const struct sum *s, struct td_err *err)
{
    if (s->plan->n_ranks != n->n_ranks || s->plan->rank != n->rank)
        return td_err_set(err, TD_INVALID,
                          "tree_sum: the sum is that of rank %u of %u, expected rank %u of %u",
                          s->plan->rank, s->plan->n_ranks, n->rank, n->n_ranks);
    return td_commargs_sum(n_own(s, n->rank) > 0, s->parts, s->n_floats, s->scratch, s->out,
                           n->n_ranks, err);
}

/* One exchange by `move`, with all that stands around it. */
static enum td_status step(struct td_nccl *n, const struct sum *s,
                           enum td_status (*move)(struct td_nccl *, const struct sum *,
                                                  struct td_err *),
                           struct td_err *err)
{
    enum td_status status = td_nccl_begin(n, tree_sum, s->stream, err);

    return status == TD_OK ? td_nccl_finish(n, tree_sum, move(n, s, err), err) : status;
}

enum td_status td_nccl_tree_sum(struct td_nccl *n, const struct td_ncclsum *sum, const float *parts,
                                size_t n_floats, float *scratch, float *out, void *stream,
                                struct td_err *err)
{
    struct sum s = {sum, parts, n_floats, scratch, out, stream};
    bool in_slices = td_ncclsum_goes_in_slices(sum, n_floats);
    size_t begin_at = in_slices ? td_ncclsum_slice(sum, n_floats, n->rank) : 0;
    size_t end_at = in_slices ? td_ncclsum_slice(sum, n_floats, n->rank + 1) : n_floats;
    enum td_status status = check_sum(n, &s, err);

    if (status == TD_OK)
        status = td_nccl_check_usable(n, tree_sum, err);
    if (status != TD_OK || n_floats == 0)
        return status;
    if (td_ncclpeers_takes(n->peers, sum, n_floats)) {
        status = td_nccl_with_context(
            n, tree_sum, td_ncclpeers_sum(n->peers, sum, parts, n_floats, out, stream, err), err);
        return status == TD_OK ? TD_OK : td_nccl_give_up(n, tree_sum, status, err);
    }
    if (n->n_ranks > 1)
        status = step(n, &s, in_slices ? scatter_slices : gather_parts, err);
    if (status == TD_OK) {
        status = join_parts(n, &s, begin_at, end_at - begin_at, err);
        if (status != TD_OK)
            return td_nccl_give_up(n, tree_sum, status, err);
    }
    if (status == TD_OK && in_slices)
        status = step(n, &s, gather_slices, err);
    return status;
}
