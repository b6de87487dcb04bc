/* A bump allocator for things that die together: one request, one step.
 * Freed or rewound whole; one writer. Blocks never move, so pointers stay valid until rewind or deinit. */
#ifndef TD_KERNELS_BASE_ARENA_H
#define TD_KERNELS_BASE_ARENA_H

#include <stdbool.h>
#include <stddef.h>

struct td_arena_block;

struct td_arena {
    struct td_arena_block *first; /* owned chain; kept over a rewind */
    struct td_arena_block *current;
    size_t block_bytes; /* size of a new block, default 64 KiB */
    size_t used_bytes;
    size_t limit_bytes; /* 0: no limit but memory */
    bool is_full;       /* something was refused because of the limit */
};

void td_arena_init(struct td_arena *a, size_t block_bytes, size_t limit_bytes);
void td_arena_deinit(struct td_arena *a);
/* Memory of `n_bytes`, aligned to 64, not cleared; NULL when the limit or memory is reached. */
void *td_arena_alloc(struct td_arena *a, size_t n_bytes);
/* A NUL-terminated copy of `len` bytes, NULL as above. */
char *td_arena_strndup(struct td_arena *a, const char *s, size_t len);
/* Forgets everything allocated; keeps the blocks for the next use. */
void td_arena_rewind(struct td_arena *a);

#endif
