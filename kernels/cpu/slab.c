#include "kernels/cpu/slab.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

/* Each mapping is twice the one before, so that a large model leaves few ends unused and a small one takes little. */
static const size_t HUGE_PAGE = (size_t)2 << 20, FIRST = (size_t)64 << 20, MOST = (size_t)512 << 20;

struct td_slab {
    uint8_t *memory; /* on a huge page */
    size_t bytes, used;
    size_t n_pieces;
};

static size_t round_up(size_t bytes, size_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

/* A mapping that begins on a huge page. */
static uint8_t *map_huge(size_t bytes)
{
    uint8_t *p =
        mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_t before;

    if (p == MAP_FAILED)
        return NULL;
    before = round_up((uintptr_t)p, HUGE_PAGE) - (uintptr_t)p;
    if (before)
        munmap(p, before);
    if (before < HUGE_PAGE)
        munmap(p + before + bytes, HUGE_PAGE - before);
    (void)madvise(p + before, bytes, MADV_HUGEPAGE);
    return p + before;
}

static struct td_slab *open_slab(size_t bytes)
{
    struct td_slab *slab = malloc(sizeof *slab);

    if (!slab)
        return NULL;
    *slab = (struct td_slab){.bytes = round_up(bytes, HUGE_PAGE)};
    slab->memory = map_huge(slab->bytes);
    if (!slab->memory) {
        free(slab);
        return NULL;
    }
    return slab;
}

void *td_slab_take(struct td_slab **current, size_t bytes, struct td_slab **owner)
{
    struct td_slab *slab = *current;
    void *piece;

    bytes = round_up(bytes, 64);
    if (!slab || slab->bytes - slab->used < bytes) {
        size_t next = !slab ? FIRST : slab->bytes < MOST / 2 ? 2 * slab->bytes : MOST;

        slab = open_slab(bytes > next ? bytes : next);
        if (!slab)
            return NULL;
        *current = slab;
    }
    piece = slab->memory + slab->used;
    slab->used += bytes;
    slab->n_pieces++;
    *owner = slab;
    return piece;
}

void td_slab_give(struct td_slab **current, struct td_slab *owner)
{
    if (--owner->n_pieces)
        return;
    munmap(owner->memory, owner->bytes);
    if (*current == owner)
        *current = NULL;
    free(owner);
}
