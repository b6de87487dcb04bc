/* Every way to cut a model over the ranks of a machine, each with its predicted speed, and which to take. Pure but for the
 * memory of the list; one owner. */
#ifndef TD_SHARD_LAYOUTS_H
#define TD_SHARD_LAYOUTS_H

#include "kernels/base/bytes.h"
#include "shard/predict.h"

/* One row. */
struct td_layout {
    uint32_t n_ranks, tp, pp;
    bool fits;
    bool batch_fits;     /* and the keys and values of the whole batch at the depth */
    char obstacle[256];  /* why it does not */
    size_t weight_bytes; /* of the fullest rank */
    struct td_prediction speed;
};

struct td_layouts_params {
    const struct td_plan_model *model; /* borrows until close */
    const struct td_machine *machine;  /* the same */
    const struct td_plan_params
        *plan; /* borrows during the call; tp and pp other than 0 keep only layouts with those. Its
                                           shares hold for n_ranks ranks, and its memory is the machine's */
    const struct td_predict_load *load; /* the same */
    uint64_t most_memory_bytes;         /* of a rank; 0: all that the machine gives it */
};

struct td_layouts {
    const struct td_plan_model *model;
    const struct td_machine *machine;
    struct td_predict_load load;
    struct td_layout *row; /* [n] by ranks, then tensor parallel size from large to small */
    uint32_t n;
    /* Fastest for one sequence, for the batch, for the prompt; n where nothing fits. One with more ranks must be faster by
     * 3 %, else they are not worth it. */
    uint32_t best, best_batch, best_prefill;
};

/* Tries plan->n_ranks ranks and fewer: every count up to 8, else those that divide it and the powers of two; all tensor parallel
 * x pipeline parallel sizes of each. A layout that does not fit is a row that says why; other errors end it. td_layouts_close
 * frees. */
enum td_status td_layouts_open(const struct td_layouts_params *params, struct td_layouts *layouts,
                               struct td_err *err);
void td_layouts_close(struct td_layouts *layouts);
/* Which layout to take, and whether more ranks would be slower and why, in sentences, one per line. */
enum td_status td_layouts_advise(const struct td_layouts *layouts, struct td_bytes *out);

/* Who says what the machine can do: "measured here", or a file. */
struct td_layouts_source {
    const char *machine, *links;
};
/* The machine's figures, the table, the advice; or all of it as one JSON object. */
enum td_status td_layouts_print(const struct td_layouts *layouts,
                                const struct td_layouts_source *source, struct td_bytes *out);
enum td_status td_layouts_print_json(const struct td_layouts *layouts,
                                     const struct td_layouts_source *source, struct td_bytes *out);

#endif
