/* Rows of a checkpoint's weights in another type: dequantised to F32, then quantised by the one definition of the type
 * (kernels/quant). Stateless, any thread. */
#ifndef TD_SHARD_CONVERT_H
#define TD_SHARD_CONVERT_H

#include "shard/checkpoint.h"

struct td_convert {
    const struct td_checkpoint *ck; /* borrows */
    enum td_role role;
    uint32_t layer;
    enum td_dtype type; /* of the result */
    /* head_dim: the rows of each head are put into the interleaved rotary order that GGUF's llama files have (row 2i + half
     * is row half * head_dim / 2 + i here). 0: rows stay where they are. */
    uint32_t interleave;
};

/* Row `row` of the result as F32; out has room for its columns and one float per 128 of them behind. Norms are one row.
 * TD_UNSUPPORTED for a value that is not finite. */
enum td_status td_convert_row(const struct td_convert *c, size_t row, float *out,
                              struct td_err *err);
/* Rows [row0, row0 + n_rows) in `type`, one behind the other; copied where they have it already. `scratch` as `out` above.
 * The result has whole blocks. */
enum td_status td_convert_rows(const struct td_convert *c, size_t row0, size_t n_rows,
                               float *scratch, void *out, struct td_err *err);

#endif
