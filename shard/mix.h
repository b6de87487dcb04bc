/* Which type each matrix of a file gets when a model is quantised to one type: the rules of llama.cpp's plain mixes,
 * without its finer steps by layer. A pure table; any thread. */
#ifndef TD_SHARD_MIX_H
#define TD_SHARD_MIX_H

#include "kernels/base/dtype.h"

#include <stdint.h>

/* The type for a matrix with rows of n_cols. The head (or the embedding that is the head too) gets q6_k unless the rest
 * is no smaller, or `pure`. Rows that are no whole number of blocks fall back to the type of blocks of 32 that is next in
 * size, and to f16 where 32 does not divide them either. */
enum td_dtype td_mix_type(enum td_dtype wanted, bool is_head, bool pure, size_t n_cols);

/* GGUF's number for a file of mostly that type (general.file_type). */
uint32_t td_mix_file_type(enum td_dtype type);

#endif
