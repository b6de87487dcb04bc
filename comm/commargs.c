#include "comm/commargs.h"

enum td_status td_commargs_peer(const char *op, uint32_t peer, uint32_t rank, uint32_t n_ranks,
                                struct td_err *err)
{
    if (peer >= n_ranks || peer == rank)
        return td_err_set(err, TD_INVALID,
                          "%s: peer is rank %u, expected another rank than %u below %u", op, peer,
                          rank, n_ranks);
    return TD_OK;
}

enum td_status td_commargs_root(const char *op, uint32_t root, uint32_t n_ranks, struct td_err *err)
{
    if (root >= n_ranks)
        return td_err_set(err, TD_INVALID, "%s: root is rank %u, expected one below %u", op, root,
                          n_ranks);
    return TD_OK;
}

enum td_status td_commargs_data(const char *op, const char *name, const void *data, size_t bytes,
                                struct td_err *err)
{
    if (!data && bytes)
        return td_err_set(err, TD_INVALID, "%s: `%s` is NULL, expected %zu bytes", op, name, bytes);
    return TD_OK;
}

enum td_status td_commargs_layout(const struct td_tree_layout *layout, uint32_t n_ranks,
                                  struct td_err *err)
{
    uint32_t at = 0;

    if (!layout || !layout->runs)
        return td_err_set(err, TD_INVALID, "tree_sum: no layout given");
    if (layout->n_leaves < 1 || layout->n_leaves > TD_TREE_MAX_LEAVES)
        return td_err_set(err, TD_INVALID, "tree_sum: %u leaves, expected 1 to %d",
                          layout->n_leaves, TD_TREE_MAX_LEAVES);
    for (uint32_t r = 0; r < n_ranks; r++) {
        struct td_leaf_run run = layout->runs[r];

        if (run.begin == run.end)
            continue;
        if (run.begin != at || run.end < run.begin || run.end > layout->n_leaves)
            return td_err_set(err, TD_INVALID,
                              "tree_sum: rank %u owns leaves %u to %u, expected a run from %u on "
                              "that ends by %u",
                              r, run.begin, run.end, at, layout->n_leaves);
        at = run.end;
    }
    if (at != layout->n_leaves)
        return td_err_set(err, TD_INVALID, "tree_sum: runs end at leaf %u, expected %u", at,
                          layout->n_leaves);
    return TD_OK;
}

enum td_status td_commargs_sum(bool owns, const float *parts, size_t n_floats, const float *scratch,
                               const float *out, uint32_t n_ranks, struct td_err *err)
{
    static const char *const op = "tree_sum";
    size_t bytes = n_floats * sizeof(float);
    enum td_status status = TD_OK;

    if (n_floats > SIZE_MAX / sizeof(float) / TD_TREE_MAX_LEAVES)
        return td_err_set(err, TD_INVALID, "%s: %zu floats overflow a size", op, n_floats);
    if (owns)
        status = td_commargs_data(op, "parts", parts, bytes, err);
    if (status == TD_OK)
        status = td_commargs_data(op, "out", out, bytes, err);
    if (status == TD_OK && n_ranks > 1)
        status = td_commargs_data(op, "scratch", scratch, bytes, err);
    return status;
}
