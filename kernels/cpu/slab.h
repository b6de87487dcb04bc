/* Memory of packed matrices: large mappings on huge pages that matrices are cut from, so that the small ones have huge pages
 * too. Single-threaded, as td_kern is. */
#ifndef TD_KERNELS_CPU_SLAB_H
#define TD_KERNELS_CPU_SLAB_H

#include <stddef.h>

struct td_slab;

/* `bytes` cleared bytes, on a cache line; `*current` (NULL at first) is the mapping that the next ones are cut from. `*owner`
 * is what td_slab_give takes. NULL when there is no memory left. */
void *td_slab_take(struct td_slab **current, size_t bytes, struct td_slab **owner);
/* Gives one piece back; the mapping goes with its last piece, `*current` too. */
void td_slab_give(struct td_slab **current, struct td_slab *owner);

#endif
