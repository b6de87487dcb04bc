/* The host's part of a tree sum on devices: who has which parts, and in which order they are joined. Made once per layout,
 * then used by every sum over it. Pure arithmetic; knows no device. */
#ifndef TD_COMM_NCCLSUM_H
#define TD_COMM_NCCLSUM_H

#include "comm/comm.h"
#include "comm/treestack.h"

/* Plain data; copied and freed as such. */
struct td_ncclsum {
    uint32_t n_ranks;
    uint32_t rank;
    uint32_t n_leaves;
    bool is_even; /* every rank has as many parts, and one at least */
    /* [n_ranks + 1] rank r has parts first[r] .. first[r + 1] - 1 of all, in leaf order */
    uint8_t first[TD_TREE_MAX_RANKS + 1];
    struct td_tree_program program;
};

/* Fills `sum` for one rank of n_ranks. TD_INVALID when the layout is none (td_comm_tree_sum says what one is). */
enum td_status td_ncclsum_make(const struct td_tree_layout *layout, uint32_t n_ranks, uint32_t rank,
                               struct td_ncclsum *sum, struct td_err *err);

/* Parts of all ranks, so n_parts * n_floats floats of scratch. */
static inline uint32_t td_ncclsum_parts(const struct td_ncclsum *sum)
{
    return sum->program.n_parts;
}
/* Whether a sum of so many floats goes in two shots: every rank joins a slice for all, which sends less and takes one more
 * delay. Else all parts go to all ranks. The bits are the same. */
bool td_ncclsum_goes_in_slices(const struct td_ncclsum *sum, size_t n_floats);
/* Rank r joins floats slice(r) .. slice(r + 1) - 1, r <= n_ranks: multiples of 4 floats but for the end. */
size_t td_ncclsum_slice(const struct td_ncclsum *sum, size_t n_floats, uint32_t r);
/* Payload bytes that this rank sends in one such sum. */
size_t td_ncclsum_sent_bytes(const struct td_ncclsum *sum, size_t n_floats);

/* The join of floats begin .. of all parts: this rank's lie in `parts`, the others' in `scratch`, each [n_floats]. */
void td_ncclsum_join(const struct td_ncclsum *sum, const float *parts, const float *scratch,
                     size_t n_floats, size_t begin, struct td_treestack *join);

#endif
