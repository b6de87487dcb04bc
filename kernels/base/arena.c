#include "kernels/base/arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64 };

struct td_arena_block {
    struct td_arena_block *next;
    size_t cap;  /* usable bytes after the header */
    size_t used; /* bytes handed out */
};

static size_t round_up(size_t n)
{
    return (n + ALIGN - 1) & ~(size_t)(ALIGN - 1);
}

void td_arena_init(struct td_arena *a, size_t block_bytes, size_t limit_bytes)
{
    *a = (struct td_arena){.block_bytes = block_bytes ? block_bytes : 65536,
                           .limit_bytes = limit_bytes};
}

void td_arena_deinit(struct td_arena *a)
{
    struct td_arena_block *b = a->first;

    while (b) {
        struct td_arena_block *next = b->next;

        free(b);
        b = next;
    }
    a->first = NULL;
    a->current = NULL;
    a->used_bytes = 0;
}

static struct td_arena_block *new_block(size_t cap)
{
    size_t head = round_up(sizeof(struct td_arena_block));
    struct td_arena_block *b;

    if (cap > SIZE_MAX / 2)
        return NULL;
    b = aligned_alloc(ALIGN, head + round_up(cap));
    if (b)
        *b = (struct td_arena_block){.cap = round_up(cap)};
    return b;
}

void *td_arena_alloc(struct td_arena *a, size_t n_bytes)
{
    size_t need;
    struct td_arena_block *b = a->current;
    char *p;

    if (n_bytes > SIZE_MAX / 4)
        return NULL;
    need = round_up(n_bytes ? n_bytes : 1);
    if (a->limit_bytes && a->used_bytes + need > a->limit_bytes) {
        a->is_full = true;
        return NULL;
    }
    while (b && b->cap - b->used < need)
        b = b->next;
    if (!b) {
        b = new_block(need > a->block_bytes ? need : a->block_bytes);
        if (!b)
            return NULL;
        if (a->current) {
            b->next = a->current->next;
            a->current->next = b;
        } else {
            a->first = b;
        }
    }
    a->current = b;
    p = (char *)b + round_up(sizeof *b) + b->used;
    b->used += need;
    a->used_bytes += need;
    return p;
}

char *td_arena_strndup(struct td_arena *a, const char *s, size_t len)
{
    char *p = td_arena_alloc(a, len + 1);

    if (p) {
        if (len)
            memcpy(p, s, len);
        p[len] = '\0';
    }
    return p;
}

void td_arena_rewind(struct td_arena *a)
{
    for (struct td_arena_block *b = a->first; b; b = b->next)
        b->used = 0;
    a->current = a->first;
    a->used_bytes = 0;
}
