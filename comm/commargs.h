/* What may be given to the operations of a group, of ranks or of GPUs alike. Each returns TD_INVALID with the operation, what it
 * got and what was expected. */
#ifndef TD_COMM_COMMARGS_H
#define TD_COMM_COMMARGS_H

#include "comm/comm.h"

/* Another rank than `rank`, of n_ranks. */
enum td_status td_commargs_peer(const char *op, uint32_t peer, uint32_t rank, uint32_t n_ranks,
                                struct td_err *err);
enum td_status td_commargs_root(const char *op, uint32_t root, uint32_t n_ranks,
                                struct td_err *err);
/* A buffer, unless it has no bytes. */
enum td_status td_commargs_data(const char *op, const char *name, const void *data, size_t bytes,
                                struct td_err *err);
/* A layout for n_ranks ranks (td_comm_tree_sum says what one is). */
enum td_status td_commargs_layout(const struct td_tree_layout *layout, uint32_t n_ranks,
                                  struct td_err *err);
/* The buffers of a tree_sum over n_ranks, on a rank that owns leaves or not. */
enum td_status td_commargs_sum(bool owns, const float *parts, size_t n_floats, const float *scratch,
                               const float *out, uint32_t n_ranks, struct td_err *err);

#endif
