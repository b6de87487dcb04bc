/* Memory of sequences on this rank, per layer kind (README, "Memory of a sequence"). Knows no policy: which block belongs to
 * whom is the engine's business. Only attention layers have memory today; a model with other kinds is refused by name. */
#ifndef TD_SHARD_KV_H
#define TD_SHARD_KV_H

#include "kernels/kern.h"
#include "shard/plan.h"

struct td_kv {
    struct td_kern *kern;     /* borrows */
    uint32_t n_layers;        /* of this stage */
    struct td_kv_view *layer; /* [n_layers]; empty where this rank has no KV head */
    void *memory;
    size_t bytes;
};

enum td_status td_kv_open(struct td_kv *kv, struct td_kern *kern, const struct td_plan *plan,
                          const struct td_plan_model *model, uint32_t rank, struct td_err *err);
void td_kv_close(struct td_kv *kv);

#endif
