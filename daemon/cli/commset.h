/* What `tensord bench comm` is asked to measure: sizes and operations, from text. Pure. */
#ifndef TD_DAEMON_CLI_COMMSET_H
#define TD_DAEMON_CLI_COMMSET_H

#include "daemon/cli/options.h"
#include "kernels/base/err.h"

#include <stddef.h>

/* In the order in which they are shown. */
enum td_commset_op {
    TD_COMMSET_TREE_SUM,
    TD_COMMSET_BCAST,
    TD_COMMSET_ALL_GATHER,
    TD_COMMSET_SENDRECV,
    TD_COMMSET_BARRIER, /* has no size */
    TD_COMMSET_N_OPS
};

enum { TD_COMMSET_MAX_SIZES = 32, TD_COMMSET_MAX_BYTES = 1 << 30, TD_COMMSET_SIZE_BYTES = 24 };

struct td_commset {
    unsigned ops; /* bits, 1 << enum td_commset_op */
    size_t bytes
        [TD_COMMSET_MAX_SIZES]; /* [n_sizes] rising, multiples of 4: of one rank's message or sum */
    size_t n_sizes;
};

const char *td_commset_op_name(enum td_commset_op op); /* "tree_sum" */
/* "8", "8K", "64KiB", "1M", "1G": bytes, in powers of 1024; a multiple of 4 up to TD_COMMSET_MAX_BYTES. TD_INVALID. */
enum td_status td_commset_parse_size(const char *text, size_t *bytes, struct td_err *err);
/* The shortest such text of a size. Returns out. */
const char *td_commset_format_size(size_t bytes, char out[TD_COMMSET_SIZE_BYTES]);
/* From --sizes and --operations; empty lists: 8, 8K, 64K, 1M, 16M, and all. Sorts sizes; what is said twice counts once. Every
 * rank holds the messages of all `n_ranks`: where those of a size would take more than 2 GiB it is left out of the usual ones
 * and refused when asked for. TD_INVALID. */
enum td_status td_commset_read(const struct td_option_list *sizes,
                               const struct td_option_list *operations, uint32_t n_ranks,
                               struct td_commset *set, struct td_err *err);

#endif
