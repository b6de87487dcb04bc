/* The plan as people and programs read it (declared in plan.h). */
#include "shard/plan.h"

#include "shard/jsonalloc.h"

#include <jansson.h>
#include <stdlib.h>

static const char *human(size_t bytes, char out[32])
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    int i = 0;

    for (; v >= 1024.0 && i < 4; i++)
        v /= 1024.0;
    snprintf(out, 32, i ? "%.2f %s" : "%.0f %s", v, unit[i]);
    return out;
}

/* Leaves of a layer whose split the table shows: the first of the rank's stage. */
enum td_status td_plan_print(const struct td_plan *plan, const struct td_plan_model *model,
                             struct td_bytes *out)
{
    const struct td_spec *s = model->spec;
    char a[32], b[32], c[32], d[32];
    enum td_status st = td_bytes_appendf(
        out,
        "model     %s (%s, %u layers, d_model %u, %u/%u heads, ffn %u, vocabulary %u), %s of "
        "weights\n"
        "layout    %u rank%s on %s: tensor parallel %u x pipeline parallel %u\n"
        "context   %u tokens per sequence, %u sequences, %u KV blocks of %u tokens in %s: %llu "
        "tokens in all\n"
        "exchange  %s per decoded token over all ranks\n\n"
        "rank stage  layers     heads      kv       ffn            vocabulary       weights     "
        "replicated  KV cache    "
        "buffers     sent/token\n",
        model->name, s->name, s->n_layers, s->d_model, s->n_heads, s->n_kv_heads, s->d_ff,
        s->n_vocab, human(plan->model_bytes, a), plan->n_ranks, plan->n_ranks == 1 ? "" : "s",
        plan->device == TD_ON_CUDA ? "GPUs" : "CPUs", plan->tp, plan->pp, plan->max_model_len,
        plan->max_num_seqs, plan->n_blocks, plan->block_tokens, td_dtype_info(plan->kv_dtype)->name,
        (unsigned long long)plan->n_blocks * plan->block_tokens,
        human(td_plan_exchanged_bytes(plan), b));

    for (uint32_t i = 0; !st && i < plan->n_ranks; i++) {
        const struct td_plan_rank *r = &plan->rank[i];
        struct td_plan_slice slice = td_plan_slice(plan, model, i, r->layer_begin);
        char layers[24], heads[24], kv[24], ff[24], vocab[24], e[32];

        snprintf(layers, sizeof layers, "%u-%u", r->layer_begin, r->layer_end - 1);
        snprintf(heads, sizeof heads, slice.head_end > slice.head_begin ? "%u-%u" : "none",
                 slice.head_begin, slice.head_end - 1);
        snprintf(kv, sizeof kv, slice.kv_end > slice.kv_begin ? "%u-%u" : "none", slice.kv_begin,
                 slice.kv_end - 1);
        snprintf(ff, sizeof ff, slice.ff_end > slice.ff_begin ? "%u-%u" : "none", slice.ff_begin,
                 slice.ff_end - 1);
        snprintf(vocab, sizeof vocab, r->vocab_end > r->vocab_begin ? "%u-%u" : "none",
                 r->vocab_begin, r->vocab_end - 1);
        st = td_bytes_appendf(
            out, "%4u %5u  %-9s  %-9s  %-7s  %-13s  %-15s  %-10s  %-10s  %-10s  %-10s  %s\n", i,
            r->stage, layers, heads, kv, ff, vocab, human(r->weight_bytes, a),
            human(r->replicated_bytes, b), human(r->kv_bytes, c), human(r->buffer_bytes, d),
            human(r->exchanged_bytes_per_token, e));
    }
    if (!st && plan->lead_bytes)
        st = td_bytes_appendf(
            out, "\ndraft model on rank 0: %s of weights and buffers, %s of KV cache\n",
            human(plan->lead_bytes, a), human(plan->lead_kv_bytes, b));
    if (!st && plan->n_slots[TD_OFFLOAD_MEMORY] + plan->n_slots[TD_OFFLOAD_FILE])
        st = td_bytes_appendf(
            out,
            "\nblocks outside of the device: %u in host memory (%s on rank 0), %u in a file (%s)\n",
            plan->n_slots[TD_OFFLOAD_MEMORY],
            human(plan->rank[0].offload_bytes[TD_OFFLOAD_MEMORY], a),
            plan->n_slots[TD_OFFLOAD_FILE], human(plan->rank[0].offload_bytes[TD_OFFLOAD_FILE], b));
    return st;
}

static json_t *range(uint32_t begin, uint32_t end)
{
    return json_pack("[I,I]", (json_int_t)begin, (json_int_t)end);
}

static json_t *rank_json(const struct td_plan *plan, const struct td_plan_model *model, uint32_t i)
{
    const struct td_plan_rank *r = &plan->rank[i];
    json_t *layers = json_array();

    for (uint32_t l = r->layer_begin; l < r->layer_end; l++) {
        struct td_plan_slice s = td_plan_slice(plan, model, i, l);

        json_array_append_new(layers, json_pack("{s:I,s:o,s:o,s:o}", "layer", (json_int_t)l,
                                                "heads", range(s.head_begin, s.head_end),
                                                "kv_heads", range(s.kv_begin, s.kv_end), "ffn",
                                                range(s.ff_begin, s.ff_end)));
    }
    return json_pack(
        "{s:I,s:I,s:I,s:o,s:o,s:o,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "rank", (json_int_t)i, "stage",
        (json_int_t)r->stage, "tp_index", (json_int_t)r->tp_index, "layers",
        range(r->layer_begin, r->layer_end), "vocabulary", range(r->vocab_begin, r->vocab_end),
        "slices", layers, "weight_bytes", (json_int_t)r->weight_bytes, "replicated_bytes",
        (json_int_t)r->replicated_bytes, "kv_bytes", (json_int_t)r->kv_bytes, "kv_bytes_per_token",
        (json_int_t)r->kv_bytes_per_token, "offload_memory_bytes",
        (json_int_t)r->offload_bytes[TD_OFFLOAD_MEMORY], "offload_file_bytes",
        (json_int_t)r->offload_bytes[TD_OFFLOAD_FILE], "buffer_bytes", (json_int_t)r->buffer_bytes,
        "exchanged_bytes_per_token", (json_int_t)r->exchanged_bytes_per_token);
}

enum td_status td_plan_print_json(const struct td_plan *plan, const struct td_plan_model *model,
                                  struct td_bytes *out)
{
    uint64_t failures = td_jsonalloc_failures();
    json_t *ranks = json_array(), *root;
    char *text;
    enum td_status st = TD_NO_MEMORY;

    for (uint32_t i = 0; i < plan->n_ranks; i++)
        json_array_append_new(ranks, rank_json(plan, model, i));
    root = json_pack(
        "{s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:s,s:I,s:I,s:I,s:I,s:I,s:o}", "model",
        model->name, "device", td_devicekind_name(plan->device), "architecture", model->spec->name,
        "ranks", (json_int_t)plan->n_ranks, "tensor_parallel", (json_int_t)plan->tp,
        "pipeline_parallel", (json_int_t)plan->pp, "model_bytes", (json_int_t)plan->model_bytes,
        "max_model_len", (json_int_t)plan->max_model_len, "max_num_seqs",
        (json_int_t)plan->max_num_seqs, "kv_blocks", (json_int_t)plan->n_blocks, "block_tokens",
        (json_int_t)plan->block_tokens, "kv_dtype", td_dtype_info(plan->kv_dtype)->name,
        "kv_tokens", (json_int_t)plan->n_blocks * (json_int_t)plan->block_tokens,
        "embed_bytes_per_token", (json_int_t)plan->embed_bytes_per_token,
        "exchanged_bytes_per_token", (json_int_t)td_plan_exchanged_bytes(plan), "draft_bytes",
        (json_int_t)plan->lead_bytes, "draft_kv_bytes", (json_int_t)plan->lead_kv_bytes, "per_rank",
        ranks);
    text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    if (text && td_jsonalloc_failures() == failures)
        st = td_bytes_appendf(out, "%s\n", text);
    free(text);
    json_decref(root);
    return st;
}
