/* tree_sum through a host's shared memory: what each rank holds is written once, and read where it is. For groups with a place
 * there (share.h). Included by the files of tree_sum only. */
#ifndef TD_COMM_SUMSHARE_H
#define TD_COMM_SUMSHARE_H

#include "comm/share.h"
#include "comm/sumparts.h"

/* Floats that go at a time: those of the rank with most parts fill a buffer. */
size_t td_sumshare_chunk(const struct td_sumcall *s);
/* Of a chunk from float `at` on, those that there are. */
size_t td_sumshare_piece(const struct td_sumcall *s, size_t at, size_t chunk);

/* Gives floats at .. at + count - 1 of this rank's parts to the others of its host; sent_floats of them count as sent. */
enum td_status td_sumshare_give(struct td_sumcall *s, size_t at, size_t count, size_t sent_floats);
/* Points where[] of the parts of all ranks of this host to floats at + begin .., of the `count` from `at` on that were given in
 * the last publish, or one `back`. `where` [parts of the group]. */
enum td_status td_sumshare_find(struct td_sumcall *s, uint32_t back, size_t at, size_t begin,
                                size_t count, const float **where);
/* Copies the slices that lanes 0 .. n_lanes - 1 have shared to `out` [count]. */
enum td_status td_sumshare_collect(struct td_sumcall *s, uint32_t n_lanes, float *out,
                                   size_t count);

/* All ranks on one host: each reads the parts of all others where they wrote them, and joins all floats. In pieces, so that
 * writing one overlaps with reading the one before. */
enum td_status td_sumshare_one_shot(struct td_sumcall *s);
/* The same, but each joins a slice only and shares it in turn. */
enum td_status td_sumshare_two_shot(struct td_sumcall *s);

#endif
