/* Inside of a shard: shared by shard.c (opening) and forward.c (one step). */
#ifndef TD_SHARD_SHARD_IMPL_H
#define TD_SHARD_SHARD_IMPL_H

#include "shard/exchange.h"
#include "shard/shard.h"

/* Buffers of one step; n is at most max_batched_tokens. Those of the device alone are in one allocation, and in another those that the
 * host sees too: results, and what ranks exchange through its memory. A step in parts uses x, sum, angles, parts and
 * all_parts one behind the other, each part of the step as if it had buffers of that many rows, and the others by turns. */
struct td_shard_buffers {
    float *x;         /* [n x d_model] residual stream */
    float *h;         /* [n x d_model] embedding rows that this rank owns */
    float *sum;       /* [n x d_model] joined sum of a row-parallel matrix; also rows on the way */
    float *q;         /* [n x heads * head_dim] */
    float *attn;      /* [n x heads * head_dim] */
    float *k, *v;     /* [n x kv heads * head_dim] */
    float *ff;        /* [n x ff] */
    float *angles;    /* [n x 2 x head_dim] of td_kern_rope_angles */
    float *parts;     /* [own_parts x n x d_model] */
    float *all_parts; /* [n_parts x n x d_model] of all ranks; NULL for tp 1 */
    float *head_in;   /* [max_num_seqs x d_model]; stage 0 */
    float *head_out;  /* [max_num_seqs x vocab slice]; stage 0 */
    float *slice;     /* the same for the host to see; stage 0 with tp > 1 where it sees no other */
    float *gathered;  /* [max_num_seqs x n_vocab] slices in rank order; rank 0 with tp > 1 */
    float *whole;     /* [max_num_seqs x n_vocab] the device's; rank 0 where ranks exchange on it */
    float *logits;    /* [max_num_seqs x n_vocab]; rank 0 */
    struct td_top
        *top; /* [max_num_seqs x TD_TOP_MAX] of the slice; of all slices on rank 0; stage 0 */
    struct td_top
        *all_top;    /* [tp x max_num_seqs x TD_TOP_MAX] slices in rank order; rank 0 with tp > 1 */
    uint32_t *drawn; /* [max_num_seqs]; rank 0 where a device gets all logits, as the next */
    struct td_measure *measure; /* [max_num_seqs] */
    size_t own_parts, n_parts;  /* most subtrees of one sum: of this rank, of all ranks */
    float *memory[2];           /* the device's, both's */
    size_t bytes[2];
};

/* Per row: [max_batched_tokens] each. */
struct td_shard_rows {
    uint32_t *position;
    uint32_t *first_block;
    uint32_t *owner;            /* tp index that holds the token's embedding row */
    uint32_t *id;               /* rows to look up or to gather */
    uint32_t most_keys, n_seqs; /* as td_kv_rows has them */
    /* What of it the device reads, with the step's block table. */
    struct {
        uint32_t *position, *first_block, *id, *table;
        size_t bytes;
    } device;
};

/* The sums of a layer. */
enum td_shard_sum { TD_SHARD_ATTENTION, TD_SHARD_FEED_FORWARD, TD_SHARD_SUMS };

struct td_shard {
    struct td_shard_params p;
    uint32_t rank;
    const struct td_plan_rank *me;
    struct td_exchange *exchange;
    struct td_weights weights;
    struct td_kv kv;
    struct td_offload *offload; /* NULL: every block stays on the device */
    struct td_shard_buffers buf;
    struct td_shard_rows rows;
    uint32_t **kv_of_head;        /* [n_layers][heads of the slice] */
    struct td_exchange_sum *sums; /* [n_layers x TD_SHARD_SUMS] */
    struct td_leaf_run
        *sum_runs; /* [n_layers x TD_SHARD_SUMS x tp] leaves of every rank of the stage */
    double *freq;  /* [head_dim / 2], the device's */
    double rope_scale;
    size_t *counts; /* [tp] scratch for gathers */
    /* What is in the pipeline: the step that began k turns ago is ring[(n_turns - 1 - k) % pp]; without rows: none. One stage: NULL. */
    struct td_step *ring; /* [pp] */
    uint64_t n_turns;
};

#endif
