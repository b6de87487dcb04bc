/* What the parts of `tensord quantize` share: the tensors of the result, and the threads that convert their rows.
 * quantize.c is the command and its GGUF output, quantize_fp8.c the directory with FP8 weights. */
#ifndef TD_DAEMON_CLI_QUANTIZE_H
#define TD_DAEMON_CLI_QUANTIZE_H

#include "daemon/cli/options.h"
#include "daemon/cli/term.h"
#include "shard/convert.h"

#include <stdatomic.h>

/* A tensor of the result that comes from a weight. */
struct td_quantize_item {
    struct td_convert convert;
    char name[128]; /* in the result */
    size_t n_rows, n_cols;
    size_t
        piece_rows; /* rows that are converted in one go; whole heads where rows are interleaved */
    size_t tensor;  /* the writer's index */
    size_t scale_tensor;         /* the same of an FP8 weight's scales */
    _Atomic uint32_t scale_bits; /* of FP8 with one scale: its F32 so far */
    size_t first_piece;          /* set by the run */
};

struct td_quantize {
    const struct td_options *opts;
    struct td_checkpoint *ck;
    enum td_dtype type;
    struct td_quantize_item *items; /* [n_items] owned */
    size_t n_items;
    struct td_term term; /* notes and progress */
    size_t n_tables;     /* tensors of f32 beside the items */
    size_t n_fallbacks;
    uint64_t file_bytes; /* of the result */
};

/* What one thread works with. */
struct td_quantize_buffers {
    float *values; /* [value_rows of the run x widest row + its scales] */
    void *out;     /* [most bytes of a piece] */
};
typedef enum td_status td_quantize_fn(void *user, struct td_quantize_item *item, size_t row0,
                                      size_t n_rows, const struct td_quantize_buffers *b,
                                      struct td_err *err);

/* Calls `fn` for every piece of every item with --threads threads, in no order, and shows the progress. `value_rows`: rows of
 * F32 that a piece needs, 0: all of it. Gives back the read pages. The first error ends the run. */
enum td_status td_quantize_run(struct td_quantize *q, const char *label, size_t value_rows,
                               td_quantize_fn *fn, void *user, struct td_err *err);

/* Adds the weight of a role as an item of n_rows x n_cols; room is there. The types and indices are the caller's. */
struct td_quantize_item *td_quantize_add(struct td_quantize *q, enum td_role role, uint32_t layer);
/* Calls `visit` for every weight that the model has, in the order of the layers. */
typedef enum td_status td_quantize_visit_fn(void *user, enum td_role role, uint32_t layer,
                                            const struct td_tensor *t, struct td_err *err);
enum td_status td_quantize_visit(const struct td_quantize *q, td_quantize_visit_fn *visit,
                                 void *user, struct td_err *err);

/* Writes the directory with FP8 weights. */
enum td_status td_quantize_fp8(struct td_quantize *q, struct td_err *err);

#endif
