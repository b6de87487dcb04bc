#include "proto/descriptors.h"

#include <stdint.h>
#include <string.h>

extern const char td_descriptors_data_begin[], td_descriptors_data_end[];

/* Field numbers of descriptor.proto that are used here. */
enum {
    SET_FILE = 1,
    FILE_NAME = 1,
    FILE_PACKAGE = 2,
    FILE_IMPORT = 3,
    FILE_MESSAGE = 4,
    FILE_ENUM = 5,
    FILE_SERVICE = 6,
    ANY_NAME = 1,
    MESSAGE_FIELD = 2,
    MESSAGE_NESTED = 3,
    MESSAGE_ENUM = 4,
    ENUM_VALUE = 2,
    SERVICE_METHOD = 2
};

struct td_str td_descriptors_set(void)
{
    return (struct td_str){td_descriptors_data_begin,
                           (size_t)(td_descriptors_data_end - td_descriptors_data_begin)};
}

static bool read_varint(struct td_str *s, uint64_t *value)
{
    *value = 0;
    for (unsigned shift = 0; shift < 64 && s->len > 0; shift += 7) {
        unsigned char c = (unsigned char)*s->ptr;
        s->ptr++;
        s->len--;
        *value |= (uint64_t)(c & 0x7f) << shift;
        if (!(c & 0x80))
            return true;
    }
    return false;
}

/* Takes one field from the front; `content` is set for length-delimited fields, else empty. */
static bool next_field(struct td_str *s, uint64_t *number, struct td_str *content)
{
    uint64_t key, n;
    if (s->len == 0 || !read_varint(s, &key))
        return false;
    *number = key >> 3;
    *content = (struct td_str){"", 0};
    switch (key & 7) {
    case 0:
        return read_varint(s, &n);
    case 1:
        n = 8;
        break;
    case 2:
        if (!read_varint(s, &n) || n > s->len)
            return false;
        *content = (struct td_str){s->ptr, (size_t)n};
        break;
    case 5:
        n = 4;
        break;
    default:
        return false;
    }
    if (n > s->len)
        return false;
    s->ptr += n;
    s->len -= (size_t)n;
    return true;
}

static struct td_str field_of(struct td_str message, uint64_t wanted)
{
    uint64_t number;
    struct td_str content;
    while (next_field(&message, &number, &content))
        if (number == wanted)
            return content;
    return (struct td_str){"", 0};
}

bool td_descriptors_next(struct td_str *rest, struct td_descriptors_file *file)
{
    uint64_t number;
    struct td_str content;
    while (next_field(rest, &number, &content)) {
        if (number != SET_FILE)
            continue;
        *file = (struct td_descriptors_file){content, field_of(content, FILE_NAME),
                                             field_of(content, FILE_PACKAGE)};
        return true;
    }
    return false;
}

bool td_descriptors_by_name(struct td_str name, struct td_descriptors_file *file)
{
    struct td_str rest = td_descriptors_set();
    while (td_descriptors_next(&rest, file))
        if (td_str_eq(file->name, name))
            return true;
    return false;
}

/* Takes "name" or "name." from the front of a dotted path. */
static bool strip_name(struct td_str *path, struct td_str name)
{
    if (name.len == 0 || !td_str_starts(*path, name) ||
        (path->len > name.len && path->ptr[name.len] != '.'))
        return false;
    size_t n = path->len > name.len ? name.len + 1 : name.len;
    path->ptr += n;
    path->len -= n;
    return true;
}

/* True when `parent` has, in field `kind`, an element with exactly this name. */
static bool has_child(struct td_str parent, uint64_t kind, struct td_str name)
{
    uint64_t number;
    struct td_str content;
    while (next_field(&parent, &number, &content))
        if (number == kind && td_str_eq(field_of(content, ANY_NAME), name))
            return true;
    return false;
}

/* An enum's values are siblings of the enum (C++ scoping). */
static bool enum_has(struct td_str type, struct td_str path)
{
    return td_str_eq(field_of(type, ANY_NAME), path) || has_child(type, ENUM_VALUE, path);
}

static bool message_has(struct td_str message, struct td_str path, bool only_messages)
{
    if (!strip_name(&path, field_of(message, ANY_NAME)))
        return false;
    if (path.len == 0)
        return true;
    if (!only_messages && has_child(message, MESSAGE_FIELD, path))
        return true;
    uint64_t number;
    struct td_str content;
    while (next_field(&message, &number, &content)) {
        if (number == MESSAGE_NESTED && message_has(content, path, only_messages))
            return true;
        if (number == MESSAGE_ENUM && !only_messages && enum_has(content, path))
            return true;
    }
    return false;
}

static bool file_has(const struct td_descriptors_file *file, struct td_str path, bool only_messages)
{
    if (file->package.len && !strip_name(&path, file->package))
        return false;
    if (path.len == 0)
        return false;
    uint64_t number;
    struct td_str content, rest = file->bytes;
    while (next_field(&rest, &number, &content)) {
        struct td_str inner = path;
        if (number == FILE_MESSAGE && message_has(content, path, only_messages))
            return true;
        if (only_messages)
            continue;
        if (number == FILE_ENUM && enum_has(content, path))
            return true;
        if (number == FILE_SERVICE && strip_name(&inner, field_of(content, ANY_NAME)) &&
            (inner.len == 0 || has_child(content, SERVICE_METHOD, inner)))
            return true;
    }
    return false;
}

bool td_descriptors_by_symbol(struct td_str symbol, struct td_descriptors_file *file)
{
    struct td_str rest = td_descriptors_set();
    while (td_descriptors_next(&rest, file))
        if (file_has(file, symbol, false))
            return true;
    return false;
}

void td_descriptors_imports(const struct td_descriptors_file *file, td_descriptors_name_fn *visit,
                            void *user)
{
    uint64_t number;
    struct td_str content, rest = file->bytes;
    while (next_field(&rest, &number, &content))
        if (number == FILE_IMPORT)
            visit(content, user);
}

bool td_descriptors_has_message(const struct td_descriptors_file *file, struct td_str type)
{
    return file_has(file, type, true);
}
