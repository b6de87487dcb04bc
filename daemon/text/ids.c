#include "daemon/text/ids.h"

#include <stdlib.h>
#include <string.h>

void td_ids_deinit(struct td_ids *ids)
{
    free(ids->data);
    *ids = (struct td_ids){0};
}

void td_ids_clear(struct td_ids *ids)
{
    ids->len = 0;
}

enum td_status td_ids_reserve(struct td_ids *ids, size_t extra)
{
    size_t cap = ids->cap ? ids->cap : 32;
    uint32_t *data;

    if (extra <= ids->cap - ids->len)
        return TD_OK;
    if (extra > SIZE_MAX / 8 - ids->len)
        return TD_NO_MEMORY;
    while (cap < ids->len + extra)
        cap *= 2;
    data = realloc(ids->data, cap * sizeof *data);
    if (!data)
        return TD_NO_MEMORY;
    ids->data = data;
    ids->cap = cap;
    return TD_OK;
}

enum td_status td_ids_append(struct td_ids *ids, uint32_t id)
{
    return td_ids_append_n(ids, &id, 1);
}

enum td_status td_ids_append_n(struct td_ids *ids, const uint32_t *data, size_t n)
{
    enum td_status s = td_ids_reserve(ids, n);

    if (s)
        return s;
    if (n)
        memcpy(ids->data + ids->len, data, n * sizeof *data);
    ids->len += n;
    return TD_OK;
}
