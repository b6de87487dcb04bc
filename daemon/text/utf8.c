#include "daemon/text/utf8.h"

enum td_utf8_front td_utf8_decode(struct td_str s, uint32_t *cp, size_t *n_bytes)
{
    const unsigned char *p = (const unsigned char *)s.ptr;
    unsigned char lo = 0x80, hi = 0xBF; /* bounds of the second byte */
    size_t len;
    uint32_t v;

    *n_bytes = 1;
    if (p[0] < 0x80) {
        *cp = p[0];
        return TD_UTF8_CHAR;
    }
    if (p[0] >= 0xC2 && p[0] <= 0xDF) {
        len = 2;
        v = p[0] & 0x1FU;
    } else if (p[0] >= 0xE0 && p[0] <= 0xEF) {
        len = 3;
        v = p[0] & 0x0FU;
        lo = p[0] == 0xE0 ? 0xA0 : 0x80;
        hi = p[0] == 0xED ? 0x9F : 0xBF;
    } else if (p[0] >= 0xF0 && p[0] <= 0xF4) {
        len = 4;
        v = p[0] & 0x07U;
        lo = p[0] == 0xF0 ? 0x90 : 0x80;
        hi = p[0] == 0xF4 ? 0x8F : 0xBF;
    } else {
        return TD_UTF8_BAD;
    }
    for (size_t i = 1; i < len; i++) {
        *n_bytes = i;
        if (i == s.len)
            return TD_UTF8_PARTIAL;
        if (p[i] < lo || p[i] > hi)
            return TD_UTF8_BAD;
        v = v << 6 | (p[i] & 0x3FU);
        lo = 0x80;
        hi = 0xBF;
    }
    *n_bytes = len;
    *cp = v;
    return TD_UTF8_CHAR;
}

size_t td_utf8_encode(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xC0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if ((cp >= 0xD800 && cp <= 0xDFFF) || cp > 0x10FFFF)
        return 0;
    if (cp < 0x10000) {
        out[0] = (char)(0xE0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        out[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3F));
    out[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}

bool td_utf8_is_space(uint32_t cp)
{
    return (cp >= 0x09 && cp <= 0x0D) || cp == 0x20 || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F ||
           cp == 0x205F || cp == 0x3000;
}

size_t td_utf8_space_prefix(struct td_str s)
{
    size_t at = 0;

    while (at < s.len) {
        struct td_str rest = {s.ptr + at, s.len - at};
        uint32_t cp;
        size_t n;

        if (td_utf8_decode(rest, &cp, &n) != TD_UTF8_CHAR || !td_utf8_is_space(cp))
            break;
        at += n;
    }
    return at;
}

size_t td_utf8_space_suffix(struct td_str s)
{
    size_t end = s.len;

    while (end > 0) {
        size_t at = end - 1;
        struct td_str last;
        uint32_t cp;
        size_t n;

        while (at > 0 && ((unsigned char)s.ptr[at] & 0xC0) == 0x80)
            at--;
        last = (struct td_str){s.ptr + at, end - at};
        if (td_utf8_decode(last, &cp, &n) != TD_UTF8_CHAR || !td_utf8_is_space(cp))
            break;
        end = at;
    }
    return s.len - end;
}
