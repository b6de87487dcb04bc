#include "shard/exchange.h"

#include "comm/sumthread.h"
#include "shard/plan.h"

#include <stdlib.h>

struct td_exchange {
    struct td_exchange_params p;
    struct td_comm *tp;                  /* ranks of this stage */
    struct td_comm *pipe;                /* all; NULL for one stage */
    struct td_nccl *tp_nccl, *pipe_nccl; /* NULL: one rank, one stage, or not direct */
    bool is_direct;
    char refused[320];
    char chosen_sums[640];
    struct td_sumthread *sums; /* NULL before it is needed */
    struct td_comm_stats direct;
};

/* ---- opening ---- */

static void drop_graphs(void *user)
{
    td_kern_forget(user);
}

static enum td_status open_nccl(struct td_exchange *x, struct td_err *err)
{
    struct td_nccl_config config = *x->p.nccl;
    enum td_status st = TD_OK;

    config.drop_graphs = drop_graphs;
    config.user = x->p.kern;
    if (x->p.pp > 1)
        st = td_nccl_open(x->pipe, &config, &x->pipe_nccl, err);
    return st || x->p.tp == 1 ? st : td_nccl_open(x->tp, &config, &x->tp_nccl, err);
}

static void close_nccl(struct td_exchange *x)
{
    td_nccl_close(x->tp_nccl);
    td_nccl_close(x->pipe_nccl);
    x->tp_nccl = x->pipe_nccl = NULL;
}

/* The stages' groups answer for themselves alone: all ranks agree. `err` of a rank that could not says what it found itself. */
static enum td_status open_direct(struct td_exchange *x, struct td_err *err)
{
    struct td_err own = {.status = TD_OK}, others;
    enum td_status mine = open_nccl(x, &own), all = TD_OK, st;

    others = own;
    st = td_comm_agree(x->p.world, mine, &all, &others);
    x->is_direct = !st && !all;
    if (x->is_direct)
        return TD_OK;
    if (!mine)
        own = others;
    close_nccl(x);
    if (st || x->p.needs_nccl) {
        if (err)
            *err = own;
        return own.status;
    }
    td_err_format(&own, x->refused, sizeof x->refused);
    return TD_OK;
}

enum td_status td_exchange_open(const struct td_exchange_params *params, struct td_exchange **out,
                                struct td_err *err)
{
    struct td_exchange *x = calloc(1, sizeof *x);
    enum td_status st;

    if (!x)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the exchange of ranks");
    x->p = *params;
    st = td_comm_split(params->world, (int)params->stage, (int)params->tp_index, &x->tp, err);
    if (!st && params->pp > 1)
        st = td_comm_split(params->world, 0, (int)td_comm_rank(params->world), &x->pipe, err);
    if (!st && params->nccl && td_comm_size(params->world) > 1)
        st = open_direct(x, err);
    x->p.nccl = NULL;
    if (st) {
        td_exchange_close(x);
        return st;
    }
    *out = x;
    return TD_OK;
}

void td_exchange_close(struct td_exchange *x)
{
    if (!x)
        return;
    td_sumthread_close(x->sums);
    close_nccl(x);
    td_comm_close(x->pipe);
    td_comm_close(x->tp);
    free(x);
}

/* ---- what it is ---- */

bool td_exchange_is_direct(const struct td_exchange *x)
{
    return x->is_direct;
}

bool td_exchange_records(const struct td_exchange *x)
{
    return x->p.tp == 1 || (x->tp_nccl && x->p.in_step && td_nccl_captures(x->tp_nccl));
}

const char *td_exchange_refused(const struct td_exchange *x)
{
    return x->refused;
}

const char *td_exchange_transport(const struct td_exchange *x)
{
    return x->is_direct ? "nccl" : td_comm_transport(x->tp);
}

struct td_comm *td_exchange_stage(struct td_exchange *x)
{
    return x->tp;
}

void td_exchange_set_deadline(struct td_exchange *x, uint64_t op_limit_ns)
{
    td_comm_set_deadline(x->tp, op_limit_ns);
    if (x->pipe)
        td_comm_set_deadline(x->pipe, op_limit_ns);
    if (x->tp_nccl)
        td_nccl_set_limit(x->tp_nccl, op_limit_ns);
    if (x->pipe_nccl)
        td_nccl_set_limit(x->pipe_nccl, op_limit_ns);
}

void td_exchange_stats(const struct td_exchange *x, struct td_comm_stats *out)
{
    struct td_comm_stats pipe = {0};
    const uint64_t hidden_ns = x->sums ? td_sumthread_hidden_ns(x->sums) : 0;

    td_comm_stats(x->tp, out);
    out->wait_ns -= hidden_ns < out->wait_ns ? hidden_ns : out->wait_ns;
    if (x->pipe)
        td_comm_stats(x->pipe, &pipe);
    out->sent_bytes += pipe.sent_bytes + x->direct.sent_bytes;
    out->wait_ns += pipe.wait_ns;
    out->n_ops += pipe.n_ops + x->direct.n_ops;
}

static enum td_status count(struct td_exchange *x, enum td_status st, size_t sent_bytes)
{
    if (st == TD_OK) {
        x->direct.n_ops++;
        x->direct.sent_bytes += sent_bytes;
    }
    return st;
}

/* ---- operations ---- */

enum td_status td_exchange_sync(struct td_exchange *x, struct td_err *err)
{
    struct td_nccl *nccl = x->tp_nccl ? x->tp_nccl : x->pipe_nccl;
    enum td_status st = nccl ? td_nccl_wait(nccl, td_kern_stream(x->p.kern), 0, err) : TD_OK;

    return st ? st : td_kern_sync(x->p.kern, err);
}

enum td_status td_exchange_all_gather(struct td_exchange *x, const void *send, const size_t *bytes,
                                      void *recv, struct td_err *err)
{
    enum td_status st;

    if (x->tp_nccl) {
        st = td_nccl_all_gather(x->tp_nccl, send, bytes, recv, td_kern_stream(x->p.kern), err);
        return count(x, st, (x->p.tp - 1) * bytes[x->p.tp_index]);
    }
    st = td_kern_sync(x->p.kern, err);
    return st ? st : td_comm_all_gather(x->tp, send, bytes, recv, err);
}

enum td_status td_exchange_gather(struct td_exchange *x, const void *send, const size_t *bytes,
                                  void *recv, struct td_err *err)
{
    enum td_status st;

    if (x->tp_nccl) {
        st = td_nccl_gather(x->tp_nccl, 0, send, bytes, recv, td_kern_stream(x->p.kern), err);
        return count(x, st, x->p.tp_index ? bytes[x->p.tp_index] : 0);
    }
    st = td_kern_sync(x->p.kern, err);
    return st ? st : td_comm_gather(x->tp, 0, send, bytes, recv, err);
}

enum td_status td_exchange_sendrecv(struct td_exchange *x, uint32_t to, const void *data,
                                    size_t bytes, uint32_t from, void *recv, size_t recv_bytes,
                                    struct td_err *err)
{
    enum td_status st = td_exchange_sync(x, err); /* stages keep step with each other */

    if (st || !x->pipe_nccl)
        return st ? st : td_comm_sendrecv(x->pipe, to, data, bytes, from, recv, recv_bytes, err);
    st = td_nccl_sendrecv(x->pipe_nccl, to, data, bytes, from, recv, recv_bytes,
                          td_kern_stream(x->p.kern), err);
    return count(x, st, bytes);
}

enum td_status td_exchange_sum_make(const struct td_exchange *x,
                                    const struct td_tree_layout *layout,
                                    struct td_exchange_sum *sum, struct td_err *err)
{
    sum->layout = *layout;
    return x->tp_nccl ? td_ncclsum_make(layout, x->p.tp, x->p.tp_index, &sum->on_device, err)
                      : TD_OK;
}

enum td_status td_exchange_choose_sums(struct td_exchange *x, enum td_gpusums how,
                                       const struct td_exchange_sum *sum, size_t row_floats,
                                       uint32_t max_rows, float *parts, float *scratch, float *out,
                                       struct td_err *err)
{
    const struct td_gpusums_params params = {.how = how,
                                             .nccl = x->tp_nccl,
                                             .stage = x->tp,
                                             .kern = x->p.kern,
                                             .sum = &sum->on_device,
                                             .row_floats = row_floats,
                                             .max_rows = max_rows,
                                             .records = td_exchange_records(x),
                                             .parts = parts,
                                             .scratch = scratch,
                                             .out = out};

    if (!x->tp_nccl)
        return TD_OK;
    return td_gpusums_choose(&params, x->chosen_sums, sizeof x->chosen_sums, err);
}

const char *td_exchange_chosen_sums(const struct td_exchange *x)
{
    return x->chosen_sums;
}

void td_exchange_count(struct td_exchange *x, const struct td_exchange_sum *sum, size_t n_floats)
{
    if (x->tp_nccl)
        (void)count(x, TD_OK, td_ncclsum_sent_bytes(&sum->on_device, n_floats));
}

enum td_status td_exchange_tree_sum(struct td_exchange *x, const struct td_exchange_sum *sum,
                                    const float *parts, size_t n_floats, float *scratch, float *out,
                                    bool meanwhile, uint64_t *number, struct td_err *err)
{
    enum td_status st;

    *number = 0;
    if (x->tp_nccl) {
        st = td_nccl_tree_sum(x->tp_nccl, &sum->on_device, parts, n_floats, scratch, out,
                              td_kern_stream(x->p.kern), err);
        if (st == TD_OK)
            td_exchange_count(x, sum, n_floats);
        return st;
    }
    st = td_kern_sync(x->p.kern, err);
    if (st)
        return st;
    if (meanwhile &&
        !x->sums) /* without a thread for it each sum is waited for, in the same order */
        (void)td_sumthread_open(x->tp, x->p.sum_cpus, &x->sums, NULL);
    if (!meanwhile || !x->sums)
        return td_comm_tree_sum(x->tp, &sum->layout, parts, n_floats, scratch, out, err);
    *number = td_sumthread_begin(x->sums, &sum->layout, parts, n_floats, scratch, out);
    return TD_OK;
}

enum td_status td_exchange_await(struct td_exchange *x, uint64_t number, struct td_err *err)
{
    return number ? td_sumthread_wait(x->sums, number, err) : TD_OK;
}

void td_exchange_await_all(struct td_exchange *x)
{
    if (x->sums)
        (void)td_sumthread_wait_all(x->sums, NULL);
}
