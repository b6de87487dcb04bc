/* A model small enough for its bytes and operations to be counted by hand, and machines around it. Shared by test_predict.c and
 * test_layouts.c. */
#ifndef TD_TESTS_UNIT_SHARD_PREDICT_CHECK_H
#define TD_TESTS_UNIT_SHARD_PREDICT_CHECK_H

#include "shard/predict.h"
#include "tests/unit/check.h"

#include <string.h>

/* Per layer q and o are 64 x 64, k and v 32 x 64, gate and up 128 x 64, down 64 x 128: 36864 weights. The head, which is the embedding
 * too, has 256 x 64 = 16384. A token has keys and values of 2 x 2 heads x 16 = 64 floats in each layer. */
enum {
    N_LAYERS = 2,
    LAYER_WEIGHTS = 36864,
    HEAD_WEIGHTS = 16384,
    KV_BYTES = 256, /* of a token in a layer, F32 */
    ROW_BYTES = 256 /* of an activation: 64 floats */
};

/* Faster than anything: what it does costs nothing. */
static const double ENDLESS = 1e30;

struct small_model {
    struct td_spec spec;
    struct td_plan_model model;
    struct td_plan_params params;
};

static inline void set_model(struct small_model *m, uint32_t tp, uint32_t pp)
{
    memset(m, 0, sizeof *m);
    m->spec = (struct td_spec){.name = "small",
                               .n_layers = N_LAYERS,
                               .d_model = 64,
                               .n_heads = 4,
                               .n_kv_heads = 2,
                               .head_dim = 16,
                               .d_ff = 128,
                               .n_vocab = 256,
                               .max_positions = 4096,
                               .tied_head = true};
    m->model = (struct td_plan_model){.spec = &m->spec, .name = "small"};
    m->params = (struct td_plan_params){.n_ranks = tp * pp,
                                        .tp = tp,
                                        .pp = pp,
                                        .kv_dtype = TD_F32,
                                        .block_tokens = 16,
                                        .max_num_seqs = 64,
                                        .max_batched_tokens = 512};
}

/* `n_hosts` hosts of `per_host` ranks that do everything at no cost. */
static inline void set_machine(struct td_machine *m, uint32_t n_hosts, uint32_t per_host)
{
    memset(m, 0, sizeof *m);
    m->n_hosts = n_hosts;
    m->n_ranks = n_hosts * per_host;
    for (uint32_t i = 0; i < m->n_ranks; i++) {
        m->rank[i].host = i / per_host;
        m->rank[i].memory_bytes_per_s = ENDLESS;
        for (int k = 0; k < TD_N_RATES; k++)
            m->rank[i].ops_per_s[k] = ENDLESS;
    }
    m->intra = m->inter = (struct td_machine_link){0.0, ENDLESS};
}

#endif
