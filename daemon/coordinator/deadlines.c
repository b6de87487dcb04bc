#include "daemon/coordinator/deadlines.h"

#include <stdlib.h>

static void put(struct td_deadlines *d, uint32_t place, struct td_deadline *item)
{
    d->heap[place - 1] = item;
    item->place = place;
}

/* Moves what stands at `place` to where it belongs. */
static void settle(struct td_deadlines *d, uint32_t place)
{
    struct td_deadline *item = d->heap[place - 1];

    for (; place > 1 && d->heap[place / 2 - 1]->at_ns > item->at_ns; place /= 2)
        put(d, place, d->heap[place / 2 - 1]);
    while (2 * place <= d->n) {
        uint32_t next = 2 * place;

        if (next < d->n && d->heap[next]->at_ns < d->heap[next - 1]->at_ns)
            next++;
        if (d->heap[next - 1]->at_ns >= item->at_ns)
            break;
        put(d, place, d->heap[next - 1]);
        place = next;
    }
    put(d, place, item);
}

void td_deadlines_deinit(struct td_deadlines *d)
{
    for (uint32_t i = 0; i < d->n; i++)
        d->heap[i]->place = 0;
    free(d->heap);
    *d = (struct td_deadlines){0};
}

enum td_status td_deadlines_add(struct td_deadlines *d, struct td_deadline *item)
{
    if (d->n == d->cap) {
        uint32_t cap = d->cap ? 2 * d->cap : 16;
        struct td_deadline **grown = realloc(d->heap, cap * sizeof *grown);

        if (!grown)
            return TD_NO_MEMORY;
        d->heap = grown;
        d->cap = cap;
    }
    put(d, ++d->n, item);
    settle(d, d->n);
    return TD_OK;
}

void td_deadlines_remove(struct td_deadlines *d, struct td_deadline *item)
{
    uint32_t place = item->place;

    if (!place)
        return;
    item->place = 0;
    d->n--;
    if (place <= d->n) {
        put(d, place, d->heap[d->n]);
        settle(d, place);
    }
}

struct td_deadline *td_deadlines_passed(const struct td_deadlines *d, uint64_t now_ns)
{
    return d->n && d->heap[0]->at_ns <= now_ns ? d->heap[0] : NULL;
}
