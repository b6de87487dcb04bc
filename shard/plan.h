/* Who holds what: a pure function from (model, ranks) to slices, and the bytes that follow from it.
 * Every rank computes the same plan from the same input; nothing here reads a file, a clock or the network. The unit of every
 * split is a run of leaves (README, "Exactness"), so any number of ranks works and a rank may own none of a matrix. */
#ifndef TD_SHARD_PLAN_H
#define TD_SHARD_PLAN_H

#include "comm/tree.h"
#include "kernels/base/bytes.h"
#include "kernels/base/err.h"
#include "kernels/devicekind.h"
#include "shard/checkpoint.h"
#include "shard/offload.h"
#include "shard/spec.h"

#include <stdbool.h>
#include <stdint.h>

enum { TD_PLAN_MAX_RANKS = TD_TREE_MAX_RANKS, TD_PLAN_MAX_LEAVES = 16, TD_PLAN_VOCAB_UNIT = 32 };

/* What planning needs to know of a model: its spec and the type of every matrix. */
struct td_plan_model {
    const struct td_spec *spec; /* borrows */
    char name[128];             /* for print-outs */
    enum td_dtype embed;
    enum td_dtype head; /* equal to embed when tied */
    struct td_plan_layer_types {
        enum td_dtype q, k, v, o, gate, up, down;
    } layer[TD_SPEC_MAX_LAYERS];
};

/* Fills it from an open checkpoint, which must outlive the model. */
enum td_status td_plan_model_read(const struct td_checkpoint *ck, struct td_plan_model *model,
                                  struct td_err *err);

struct td_plan_params {
    uint32_t n_ranks;
    uint32_t tp; /* 0: n_ranks / pp */
    uint32_t pp; /* 0: 1 */
    /* Per rank; NULL: all equal. Shares steer the split (3:1:1), memory bounds it. */
    const uint64_t *share;        /* [n_ranks], > 0 */
    const uint64_t *memory_bytes; /* [n_ranks], 0: unknown, not checked */
    enum td_devicekind device;    /* of every rank */
    enum td_dtype kv_dtype;
    uint32_t block_tokens;
    uint32_t max_model_len; /* tokens of one sequence; 0: the model's, or what fits */
    uint32_t max_num_seqs;
    uint32_t max_batched_tokens;
    uint64_t
        kv_bytes; /* per rank for KV; 0: up to max_num_seqs full sequences within 90 % of what is free */
    uint64_t offload_bytes[TD_OFFLOAD_TIERS]; /* per rank for KV blocks that leave the device */
    uint32_t n_blocks;                        /* KV blocks; 0: as many as the above gives */
    uint64_t lead_bytes;       /* that rank 0 needs besides (a draft model's weights and buffers) */
    uint64_t lead_block_bytes; /* and for each KV block (a draft model's) */
};

/* A sum's leaves over columns: the last leaf may be shorter. */
struct td_plan_leaves {
    uint32_t n_cols;
    uint32_t leaf_cols;
    uint32_t n_leaves;
};

/* One rank's slice of one layer. */
struct td_plan_slice {
    struct td_leaf_run attn_run; /* leaves of the attention output */
    uint32_t head_begin, head_end;
    uint32_t kv_begin, kv_end; /* KV heads those query heads use */
    struct td_leaf_run ffn_run;
    uint32_t ff_begin, ff_end; /* rows of gate and up, columns of down */
};

struct td_plan_rank {
    uint32_t stage, tp_index;
    uint32_t layer_begin, layer_end;
    uint32_t vocab_begin, vocab_end; /* rows of embedding and head; stage 0 only */
    uint64_t share;
    uint64_t memory_bytes;
    size_t weight_bytes;     /* matrices and norms */
    size_t replicated_bytes; /* of those, held by another rank too (norms, shared KV heads) */
    size_t kv_bytes;
    size_t kv_bytes_per_token;
    size_t offload_bytes[TD_OFFLOAD_TIERS];
    size_t buffer_bytes; /* activations of one step */
    size_t
        exchanged_bytes_per_token; /* sent in a decode step of one row; the embedding row is counted apart */
};

struct td_plan {
    uint32_t n_ranks, tp, pp;
    enum td_devicekind device;
    size_t model_bytes;                 /* of all tensors once, as the device holds them */
    uint32_t n_blocks;                  /* KV blocks, equal on all ranks */
    uint32_t n_slots[TD_OFFLOAD_TIERS]; /* for blocks outside of the device, equal on all ranks */
    uint32_t block_tokens;
    uint32_t max_model_len;
    uint32_t max_num_seqs;
    uint32_t max_batched_tokens;
    size_t lead_bytes, lead_kv_bytes; /* of a draft model on rank 0 */
    enum td_dtype kv_dtype;
    size_t
        embed_bytes_per_token; /* sent in a decode step of one row by the owner of the token's embedding row */
    struct td_plan_rank rank[TD_PLAN_MAX_RANKS];
};

/* Makes the plan. TD_INVALID names an impossible layout, TD_TOO_LARGE says what does not fit and how much is missing. */
enum td_status td_plan_make(const struct td_plan_model *model, const struct td_plan_params *params,
                            struct td_plan *plan, struct td_err *err);

/* Leaves of a sum over n_cols columns whose weights come in blocks of `unit` columns: at most TD_PLAN_MAX_LEAVES. */
struct td_plan_leaves td_plan_cut(uint32_t n_cols, uint32_t unit);
struct td_plan_leaves td_plan_attn_leaves(const struct td_plan_model *model, uint32_t layer);
struct td_plan_leaves td_plan_ffn_leaves(const struct td_plan_model *model, uint32_t layer);
/* The slice of `rank` in `layer` (of its stage). */
struct td_plan_slice td_plan_slice(const struct td_plan *plan, const struct td_plan_model *model,
                                   uint32_t rank, uint32_t layer);
/* First unit of part i when n units are dealt out over the shares: cumulative rounding, so parts are runs and the last ends
 * at n. `i` may equal n_shares. */
uint32_t td_plan_deal(uint32_t n, const uint64_t *share, uint32_t n_shares, uint32_t i);
/* Sent bytes per decoded token over all ranks. */
size_t td_plan_exchanged_bytes(const struct td_plan *plan);
/* Widest row of each activation over the layers of a rank's stage, in floats, and the most subtrees of one sum. */
struct td_plan_widths {
    size_t q, kv, ff;
    size_t own_parts; /* of this rank */
    size_t all_parts; /* of all ranks of the stage */
};
struct td_plan_widths td_plan_widths(const struct td_plan *plan, const struct td_plan_model *model,
                                     uint32_t rank);

/* The plan as a table for people, or as one JSON object. */
enum td_status td_plan_print(const struct td_plan *plan, const struct td_plan_model *model,
                             struct td_bytes *out);
enum td_status td_plan_print_json(const struct td_plan *plan, const struct td_plan_model *model,
                                  struct td_bytes *out);

#endif
