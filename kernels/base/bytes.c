#include "kernels/base/bytes.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct td_str td_str_from(const char *nul_terminated)
{
    struct td_str s = {nul_terminated, nul_terminated ? strlen(nul_terminated) : 0};

    return s;
}

bool td_str_eq(struct td_str a, struct td_str b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

bool td_str_starts(struct td_str s, struct td_str prefix)
{
    return s.len >= prefix.len && (prefix.len == 0 || memcmp(s.ptr, prefix.ptr, prefix.len) == 0);
}

bool td_str_is_utf8(struct td_str s)
{
    const unsigned char *p = (const unsigned char *)s.ptr;
    size_t i = 0;

    while (i < s.len) {
        unsigned char c = p[i];
        unsigned char lo = 0x80, hi = 0xBF; /* bounds of the second byte */
        size_t extra;

        if (c < 0x80) {
            i++;
            continue;
        }
        if (c >= 0xC2 && c <= 0xDF) {
            extra = 1;
        } else if (c >= 0xE0 && c <= 0xEF) {
            extra = 2;
            lo = c == 0xE0 ? 0xA0 : 0x80;
            hi = c == 0xED ? 0x9F : 0xBF;
        } else if (c >= 0xF0 && c <= 0xF4) {
            extra = 3;
            lo = c == 0xF0 ? 0x90 : 0x80;
            hi = c == 0xF4 ? 0x8F : 0xBF;
        } else {
            return false;
        }
        if (extra >= s.len - i || p[i + 1] < lo || p[i + 1] > hi)
            return false;
        for (size_t k = 2; k <= extra; k++)
            if ((p[i + k] & 0xC0) != 0x80)
                return false;
        i += extra + 1;
    }
    return true;
}

void td_bytes_deinit(struct td_bytes *b)
{
    free(b->data);
    b->data = NULL;
    b->len = 0;
    b->cap = 0;
}

void td_bytes_clear(struct td_bytes *b)
{
    b->len = 0;
    if (b->data)
        b->data[0] = '\0';
}

enum td_status td_bytes_reserve(struct td_bytes *b, size_t extra_bytes)
{
    size_t need, cap;
    char *data;

    if (extra_bytes > SIZE_MAX / 2 - b->len - 1)
        return TD_TOO_LARGE;
    if (b->cap_limit && b->len + extra_bytes > b->cap_limit)
        return TD_TOO_LARGE;
    need = b->len + extra_bytes + 1;
    if (need <= b->cap)
        return TD_OK;
    cap = b->cap ? b->cap : 64;
    while (cap < need)
        cap *= 2;
    data = realloc(b->data, cap);
    if (!data)
        return TD_NO_MEMORY;
    b->data = data;
    b->cap = cap;
    b->data[b->len] = '\0';
    return TD_OK;
}

enum td_status td_bytes_append(struct td_bytes *b, const void *data, size_t n_bytes)
{
    enum td_status s = td_bytes_reserve(b, n_bytes);

    if (s)
        return s;
    if (n_bytes)
        memcpy(b->data + b->len, data, n_bytes);
    b->len += n_bytes;
    b->data[b->len] = '\0';
    return TD_OK;
}

enum td_status td_bytes_append_str(struct td_bytes *b, struct td_str s)
{
    return td_bytes_append(b, s.ptr, s.len);
}

enum td_status td_bytes_appendf(struct td_bytes *b, const char *fmt, ...)
{
    va_list ap;
    enum td_status s;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0)
        return TD_INVALID;
    s = td_bytes_reserve(b, (size_t)n);
    if (s)
        return s;
    va_start(ap, fmt);
    vsnprintf(b->data + b->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->len += (size_t)n;
    return TD_OK;
}

void td_bytes_consume(struct td_bytes *b, size_t n_bytes)
{
    if (n_bytes >= b->len) {
        td_bytes_clear(b);
        return;
    }
    memmove(b->data, b->data + n_bytes, b->len - n_bytes);
    b->len -= n_bytes;
    b->data[b->len] = '\0';
}

struct td_str td_bytes_str(const struct td_bytes *b)
{
    struct td_str s = {b->data ? b->data : "", b->len};

    return s;
}
