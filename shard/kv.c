#include "shard/kv.h"

#include <stdlib.h>
#include <string.h>

static const char *kind_name(enum td_layer_kind kind)
{
    static const char *const names[] = {"attention", "sliding window", "latent attention",
                                        "recurrent"};

    return names[kind];
}

enum td_status td_kv_open(struct td_kv *kv, struct td_kern *kern, const struct td_plan *plan,
                          const struct td_plan_model *model, uint32_t rank, struct td_err *err)
{
    const struct td_plan_rank *r = &plan->rank[rank];
    uint8_t *next;

    *kv = (struct td_kv){.kern = kern, .n_layers = r->layer_end - r->layer_begin};
    for (uint32_t l = r->layer_begin; l < r->layer_end; l++)
        if (model->spec->layer_kind[l] != TD_LAYER_ATTENTION)
            return td_err_set(
                err, TD_UNSUPPORTED,
                "layer %u of '%s' is a %s layer: only attention layers have memory here", l,
                model->name, kind_name(model->spec->layer_kind[l]));
    if (model->spec->head_dim > TD_KERN_MAX_HEAD_DIM)
        return td_err_set(err, TD_UNSUPPORTED,
                          "'%s' has heads of %u dimensions: %s computes up to %d", model->name,
                          model->spec->head_dim, td_kern_name(kern), TD_KERN_MAX_HEAD_DIM);
    if (!td_kern_supports_kv(kern, plan->kv_dtype))
        return td_err_set(err, TD_UNSUPPORTED, "%s has no KV cache of type %s", td_kern_name(kern),
                          td_dtype_info(plan->kv_dtype)->name);
    kv->layer = calloc(kv->n_layers, sizeof *kv->layer);
    if (!kv->layer)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the KV views of %u layers",
                          kv->n_layers);
    for (uint32_t i = 0; i < kv->n_layers; i++) {
        struct td_plan_slice slice = td_plan_slice(plan, model, rank, r->layer_begin + i);

        kv->layer[i] = (struct td_kv_view){.dtype = plan->kv_dtype,
                                           .n_blocks = plan->n_blocks,
                                           .n_kv_heads = slice.kv_end - slice.kv_begin,
                                           .block_tokens = plan->block_tokens,
                                           .head_dim = model->spec->head_dim};
        kv->bytes += td_kern_kv_bytes(&kv->layer[i]);
    }
    kv->memory = td_kern_alloc(kern, kv->bytes);
    if (!kv->memory) {
        enum td_status s =
            td_err_set(err, TD_NO_MEMORY, "no memory for %zu bytes of KV cache", kv->bytes);

        kv->bytes = 0;
        td_kv_close(kv);
        return s;
    }
    next = kv->memory;
    for (uint32_t i = 0; i < kv->n_layers; i++) {
        kv->layer[i].data = next;
        next += td_kern_kv_bytes(&kv->layer[i]);
    }
    return TD_OK;
}

void td_kv_close(struct td_kv *kv)
{
    td_kern_free(kv->kern, kv->memory, kv->bytes);
    free(kv->layer);
    memset(kv, 0, sizeof *kv);
}
