#include "proto/grpc_meta.h"

#include "proto/grpc_text.h"

#include <string.h>

struct td_grpc_meta_pair {
    struct td_grpc_meta_pair *next;
    struct td_str name;
    struct td_str value;
};

void td_grpc_meta_init(struct td_grpc_meta_list *list, size_t max_bytes)
{
    *list = (struct td_grpc_meta_list){.max_bytes = max_bytes};
    td_arena_init(&list->arena, 2048, 0);
}

void td_grpc_meta_deinit(struct td_grpc_meta_list *list)
{
    td_arena_deinit(&list->arena);
    list->first = list->last = NULL;
}

void td_grpc_meta_clear(struct td_grpc_meta_list *list)
{
    td_arena_rewind(&list->arena);
    list->first = list->last = NULL;
}

static enum td_status append(struct td_grpc_meta_list *list, struct td_str name,
                             struct td_str value, struct td_err *err)
{
    struct td_grpc_meta_pair *pair =
        td_arena_alloc(&list->arena, sizeof *pair + name.len + value.len);
    if (!pair)
        return td_err_set(err, TD_NO_MEMORY, "no memory for metadata of %zu bytes", value.len);
    char *text = (char *)(pair + 1);
    if (name.len)
        memcpy(text, name.ptr, name.len);
    if (value.len)
        memcpy(text + name.len, value.ptr, value.len);
    *pair =
        (struct td_grpc_meta_pair){.name = {text, name.len}, .value = {text + name.len, value.len}};
    if (list->last)
        list->last->next = pair;
    else
        list->first = pair;
    list->last = pair;
    return TD_OK;
}

static enum td_status append_bin(struct td_grpc_meta_list *list, struct td_str name,
                                 struct td_str value, struct td_err *err)
{
    struct td_bytes decoded = {0};
    enum td_status st = TD_OK;
    while (!st) {
        const char *comma = value.len ? memchr(value.ptr, ',', value.len) : NULL;
        struct td_str part = {value.ptr, comma ? (size_t)(comma - value.ptr) : value.len};
        while (part.len && part.ptr[0] == ' ') {
            part.ptr++;
            part.len--;
        }
        td_bytes_clear(&decoded);
        if (td_grpc_text_base64_decode(part, &decoded))
            st = td_err_set(err, TD_INVALID, "the value of metadata '%.*s' is no base64",
                            (int)(name.len < 64 ? name.len : 64), name.ptr);
        else
            st = append(list, name, td_bytes_str(&decoded), err);
        if (!comma)
            break;
        value.len -= (size_t)(comma + 1 - value.ptr);
        value.ptr = comma + 1;
    }
    td_bytes_deinit(&decoded);
    return st;
}

enum td_status td_grpc_meta_add(struct td_grpc_meta_list *list, struct td_str name,
                                struct td_str value, struct td_err *err)
{
    list->list_bytes += name.len + value.len + 32;
    if (list->list_bytes > list->max_bytes)
        return td_err_set(err, TD_TOO_LARGE, "the metadata is over the limit of %zu bytes",
                          list->max_bytes);
    if (td_grpc_meta_is_bin(name))
        return append_bin(list, name, value, err);
    return append(list, name, value, err);
}

bool td_grpc_meta_get(const struct td_grpc_meta_list *list, struct td_str name, size_t nth,
                      struct td_str *value)
{
    for (const struct td_grpc_meta_pair *pair = list->first; pair; pair = pair->next) {
        if (td_str_eq(pair->name, name) && nth-- == 0) {
            *value = pair->value;
            return true;
        }
    }
    return false;
}

bool td_grpc_meta_last(const struct td_grpc_meta_list *list, struct td_str name,
                       struct td_str *value)
{
    bool found = false;
    for (const struct td_grpc_meta_pair *pair = list->first; pair; pair = pair->next) {
        if (td_str_eq(pair->name, name)) {
            *value = pair->value;
            found = true;
        }
    }
    return found;
}

bool td_grpc_meta_is_name(struct td_str name)
{
    for (size_t i = 0; i < name.len; i++) {
        char c = name.ptr[i];
        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.'))
            return false;
    }
    return name.len > 0;
}

bool td_grpc_meta_is_bin(struct td_str name)
{
    return name.len > 4 && memcmp(name.ptr + name.len - 4, "-bin", 4) == 0;
}

bool td_grpc_meta_is_value(struct td_str value)
{
    for (size_t i = 0; i < value.len; i++)
        if (value.ptr[i] < 0x20 || value.ptr[i] > 0x7e)
            return false;
    return true;
}
