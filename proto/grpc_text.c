#include "proto/grpc_text.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

static const char base64_digits[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

enum td_status td_grpc_text_percent_encode(struct td_str s, struct td_bytes *out)
{
    static const char hex[] = "0123456789ABCDEF";
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.ptr[i];
        char coded[3] = {(char)c};
        size_t n = 1;
        if (c < 0x20 || c > 0x7e || c == '%') {
            coded[0] = '%';
            coded[1] = hex[c >> 4];
            coded[2] = hex[c & 15];
            n = 3;
        }
        enum td_status st = td_bytes_append(out, coded, n);
        if (st)
            return st;
    }
    return TD_OK;
}

enum td_status td_grpc_text_percent_decode(struct td_str s, struct td_bytes *out)
{
    for (size_t i = 0; i < s.len; i++) {
        char c = s.ptr[i];
        if (c == '%' && i + 2 < s.len) {
            int high = hex_value(s.ptr[i + 1]), low = hex_value(s.ptr[i + 2]);
            if (high >= 0 && low >= 0) {
                c = (char)(unsigned char)(high * 16 + low);
                i += 2;
            }
        }
        enum td_status st = td_bytes_append(out, &c, 1);
        if (st)
            return st;
    }
    return TD_OK;
}

static const struct {
    char unit;
    uint64_t ns;
} timeout_units[] = {{'n', 1},          {'u', 1000},        {'m', 1000000},
                     {'S', 1000000000}, {'M', 60000000000}, {'H', 3600000000000}};

enum { N_TIMEOUT_UNITS = sizeof timeout_units / sizeof *timeout_units };

enum td_status td_grpc_text_timeout_parse(struct td_str s, uint64_t *timeout_ns, struct td_err *err)
{
    uint64_t value = 0;
    size_t n = 0;
    while (n < s.len && n <= 8 && s.ptr[n] >= '0' && s.ptr[n] <= '9')
        value = value * 10 + (uint64_t)(s.ptr[n++] - '0');
    if (n >= 1 && n <= 8 && n + 1 == s.len) {
        for (int u = 0; u < N_TIMEOUT_UNITS; u++) {
            if (timeout_units[u].unit != s.ptr[n])
                continue;
            uint64_t scale = timeout_units[u].ns;
            *timeout_ns = value > UINT64_MAX / scale ? UINT64_MAX : value * scale;
            return TD_OK;
        }
    }
    return td_err_set(err, TD_INVALID,
                      "grpc-timeout '%.*s' is not 1 to 8 digits and one of H M S m u n",
                      (int)(s.len < 32 ? s.len : 32), s.len ? s.ptr : "");
}

void td_grpc_text_timeout_format(uint64_t timeout_ns, char out[TD_GRPC_TEXT_TIMEOUT_BYTES])
{
    uint64_t value = 99999999;
    char unit = 'H';
    for (int u = 0; u < N_TIMEOUT_UNITS; u++) {
        uint64_t scale = timeout_units[u].ns;
        uint64_t rounded = timeout_ns / scale + (timeout_ns % scale != 0);
        if (rounded <= 99999999) {
            value = rounded;
            unit = timeout_units[u].unit;
            break;
        }
    }
    snprintf(out, TD_GRPC_TEXT_TIMEOUT_BYTES, "%u%c", (unsigned)value, unit);
}

enum td_status td_grpc_text_base64_encode(struct td_str s, struct td_bytes *out)
{
    for (size_t i = 0; i < s.len; i += 3) {
        size_t n = s.len - i < 3 ? s.len - i : 3;
        unsigned char b[3] = {0};
        memcpy(b, s.ptr + i, n);
        unsigned bits = (unsigned)b[0] << 16 | (unsigned)b[1] << 8 | b[2];
        char quad[4];
        for (int d = 0; d < 4; d++)
            quad[d] = base64_digits[bits >> (18 - 6 * d) & 63];
        enum td_status st = td_bytes_append(out, quad, n + 1);
        if (st)
            return st;
    }
    return TD_OK;
}

enum td_status td_grpc_text_base64_decode(struct td_str s, struct td_bytes *out)
{
    if (s.len > 0 && s.len % 4 == 0 && s.ptr[s.len - 1] == '=') {
        s.len--;
        if (s.ptr[s.len - 1] == '=')
            s.len--;
    }
    if (s.len % 4 == 1)
        return TD_INVALID;
    for (size_t i = 0; i < s.len; i += 4) {
        size_t n = s.len - i < 4 ? s.len - i : 4;
        unsigned bits = 0;
        for (size_t d = 0; d < 4; d++) {
            const char *at = d < n && s.ptr[i + d] ? strchr(base64_digits, s.ptr[i + d]) : NULL;
            if (d < n && !at)
                return TD_INVALID;
            bits = bits << 6 | (at ? (unsigned)(at - base64_digits) : 0);
        }
        unsigned char b[3] = {(unsigned char)(bits >> 16), (unsigned char)(bits >> 8),
                              (unsigned char)bits};
        enum td_status st = td_bytes_append(out, b, n - 1);
        if (st)
            return st;
    }
    return TD_OK;
}

bool td_grpc_text_is_content_type(struct td_str s)
{
    static const char base[] = "application/grpc", proto[] = "+proto";
    size_t n = sizeof base - 1;
    if (s.len < n || strncasecmp(s.ptr, base, n) != 0)
        return false;
    if (s.len >= n + sizeof proto - 1 && strncasecmp(s.ptr + n, proto, sizeof proto - 1) == 0)
        n += sizeof proto - 1;
    return s.len == n || s.ptr[n] == ';' || s.ptr[n] == ' ';
}
