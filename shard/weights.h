/* This rank's slices of the weights, packed for the device. Owned by the shard; read-only after loading. */
#ifndef TD_SHARD_WEIGHTS_H
#define TD_SHARD_WEIGHTS_H

#include "kernels/kern.h"
#include "shard/plan.h"

/* Matrices are NULL where this rank owns none of them. Norm vectors are replicated on every rank of the stage. */
struct td_layer_weights {
    struct td_plan_slice slice;
    float *attn_norm;        /* [d_model] */
    float *ffn_norm;         /* [d_model] */
    float *q_norm, *k_norm;  /* [head_dim]; NULL without q/k norm */
    struct td_matrix *q;     /* [heads * head_dim x d_model] */
    struct td_matrix *k, *v; /* [kv heads * head_dim x d_model] */
    struct td_matrix *o;     /* [d_model x heads * head_dim], parts of the attention leaves */
    struct td_matrix *gate;  /* [ff x d_model] */
    struct td_matrix *up;    /* [ff x d_model] */
    struct td_matrix *down;  /* [d_model x ff], parts of the FFN leaves */
};

struct td_weights {
    struct td_kern *kern;    /* borrows */
    struct td_matrix *embed; /* [vocab slice x d_model]; stage 0 */
    struct td_matrix *head;  /* the same matrix when tied */
    float *final_norm;       /* [d_model]; stage 0 */
    float *norms;            /* owns all norm vectors */
    size_t norm_bytes;
    uint32_t layer_begin, n_layers;
    struct td_layer_weights *layer; /* [n_layers], from layer_begin */
};

/* Progress of loading, from the thread that loads: bytes of this rank's slice. */
typedef void td_weights_progress_fn(size_t done_bytes, size_t total_bytes, void *user);

/* Packs the slices of `rank` straight from the mapped files and gives the read pages back. TD_NO_MEMORY, TD_UNSUPPORTED. */
enum td_status td_weights_load(struct td_weights *w, struct td_kern *kern,
                               const struct td_checkpoint *ck, const struct td_plan *plan,
                               const struct td_plan_model *model, uint32_t rank,
                               td_weights_progress_fn *progress, void *user, struct td_err *err);
void td_weights_unload(struct td_weights *w);
/* Bytes held, from the allocator. */
size_t td_weights_bytes(const struct td_weights *w);

#endif
