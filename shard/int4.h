/* Matrices of GPTQ and AWQ in Hugging Face directories: 4-bit integers, each with a scale and a zero for runs of columns, in tensors
 * whose rows are the matrix's columns. weight = (integer - zero) * scale (Frantar et al. 2022; Lin et al. 2023). Of a matrix
 * [n_rows x n_cols] in runs of `group` columns there are
 *   qweight  int32; GPTQ [n_cols / 8 x n_rows], the first of eight columns in the lowest bits; AWQ [n_cols x n_rows / 8], of eight
 *            rows 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on
 *   qzeros   int32 [n_cols / group x n_rows / 8]; GPTQ in order, less 1 in every field of a word (gptq_v2: as they are); AWQ as above
 *   scales   F16 [n_cols / group x n_rows]
 *   g_idx    int32 [n_cols] GPTQ's: the run of each column; absent where they are in order
 * as AutoGPTQ, GPTQModel, AutoAWQ (version gemm) and vLLM write and read them. Stateless, any thread. */
#ifndef TD_SHARD_INT4_H
#define TD_SHARD_INT4_H

#include "kernels/base/err.h"
#include "kernels/base/tensor.h"

#include <stdbool.h>
#include <stdint.h>

enum td_int4_form { TD_INT4_NONE, TD_INT4_GPTQ, TD_INT4_GPTQ_V2, TD_INT4_AWQ };

struct td_int4 {
    enum td_int4_form form;
    uint32_t n_rows, n_cols;
    uint32_t group; /* columns under one scale; 0: as `runs` says */
    uint32_t n_groups;
    /* Borrowed from the checkpoint; may be unaligned, words and halves little-endian. */
    const uint8_t *words, *zeros, *scales, *runs;
};

/* The tensors as the files have them; `runs` n_dims 0: absent. A type is that of the file, "I32". */
struct td_int4_tensors {
    struct td_tensor words, zeros, scales, runs;
    const char *word_type, *zero_type, *scale_type, *run_type;
};

/* Fills `m` for a matrix [n_rows x n_cols] that messages call `name`. TD_CORRUPT or TD_UNSUPPORTED for types and shapes that are not as
 * above, a run that there is not, and a group of columns that is no multiple of 32. */
enum td_status td_int4_open(struct td_int4 *m, enum td_int4_form form,
                            const struct td_int4_tensors *tensors, uint32_t n_rows, uint32_t n_cols,
                            const char *name, struct td_err *err);

/* How its rows are made: TD_INT4, exactly, where runs of columns are in order; else (GPTQ's desc_act) TD_F16, each weight rounded once, as
 * the programs do that unpack it. */
enum td_dtype td_int4_type(const struct td_int4 *m);

/* Whether the scales of rows [row0, row0 + n_rows) are finite, and in TD_F16 their weights. TD_CORRUPT. */
enum td_status td_int4_check_scales(const struct td_int4 *m, uint32_t row0, uint32_t n_rows,
                                    struct td_err *err);
/* Rows [row0, row0 + n_rows) and columns [col0, col0 + n_cols) as td_int4_type has them, one row behind the other. Of TD_INT4, columns are
 * whole blocks. */
void td_int4_rows(const struct td_int4 *m, uint32_t row0, uint32_t n_rows, uint32_t col0,
                  uint32_t n_cols, uint8_t *out);

#endif
