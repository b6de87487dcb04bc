#include "daemon/cli/option_value.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void td_options_expected(const struct td_option *row, char *out, size_t out_bytes)
{
    size_t n = 0;

    switch (row->type) {
    case TD_OPTION_STRING:
        snprintf(out, out_bytes, "a text that is not empty");
        break;
    case TD_OPTION_LIST:
        snprintf(out, out_bytes,
                 row->commas ? "texts separated by commas, none empty"
                             : "a text that is not empty");
        break;
    case TD_OPTION_INT:
        if (row->max == INT64_MAX)
            snprintf(out, out_bytes, "an integer from %lld to 2^63-1", (long long)row->min);
        else
            snprintf(out, out_bytes, "an integer from %lld to %lld", (long long)row->min,
                     (long long)row->max);
        break;
    case TD_OPTION_FLOAT:
        snprintf(out, out_bytes, "a number %s %g to %g", row->above_low ? "above" : "from",
                 row->low, row->high);
        break;
    case TD_OPTION_SIZE:
        if (row->min > 1)
            snprintf(out, out_bytes,
                     "a number of bytes from %lld to %lld, alone or with KiB, MiB, GiB or TiB",
                     (long long)row->min, (long long)row->max);
        else
            snprintf(out, out_bytes,
                     "a number of bytes above 0, alone or with KiB, MiB, GiB or TiB");
        break;
    case TD_OPTION_FLAG:
        snprintf(out, out_bytes, "true or false");
        break;
    case TD_OPTION_ENUM:
    case TD_OPTION_ENUMS:
        n = (size_t)snprintf(out, out_bytes, "one of");
        for (size_t i = 0; row->values[i] && n < out_bytes; i++)
            n += (size_t)snprintf(out + n, out_bytes - n, "%s %s", i ? "," : "", row->values[i]);
        break;
    case TD_OPTION_ADDRESS:
        snprintf(out, out_bytes, "HOST:PORT or [IPV6]:PORT with a port from 1 to 65535");
        break;
    case TD_OPTION_SHARES:
        snprintf(out, out_bytes,
                 "integers from 0 to 1000000 separated by ':', not all 0, at most %d",
                 TD_OPTION_MAX_SHARES);
        break;
    case TD_OPTION_IDS:
        snprintf(out, out_bytes, "token ids from 0 to 4294967295 separated by commas, at most %d",
                 TD_OPTION_MAX_IDS);
        break;
    }
}

/* A decimal integer and nothing else. */
static bool parse_int(const char *text, int64_t min, int64_t max, int64_t *out)
{
    char *end;
    long long value;

    if (!(*text >= '0' && *text <= '9') && !(*text == '-' && text[1] >= '0' && text[1] <= '9'))
        return false;
    errno = 0;
    value = strtoll(text, &end, 10);
    if (*end || errno || value < min || value > max)
        return false;
    *out = value;
    return true;
}

static bool parse_float(const struct td_option *row, const char *text, double *out)
{
    char *end;
    double value;

    if (!*text || text[strspn(text, "0123456789+-.eE")])
        return false;
    value = strtod(text, &end);
    if (*end || !(value >= row->low && value <= row->high) ||
        (row->above_low && !(value > row->low)))
        return false;
    *out = value;
    return true;
}

static bool parse_size(const struct td_option *row, const char *text, uint64_t *out)
{
    static const struct {
        const char *suffix;
        int shift;
    } units[] = {{"", 0}, {"B", 0}, {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}};
    size_t digits = strspn(text, "0123456789.");
    double value;
    char *end;

    if (digits == 0 || digits > 24)
        return false;
    value = strtod(text, &end); /* a fraction is allowed: 1.5GiB */
    if (end != text + digits)
        return false;
    while (*end == ' ')
        end++;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        double bytes = value * (double)(1ull << units[i].shift);

        if (strcmp(end, units[i].suffix) != 0)
            continue;
        /* 2^53: beyond it a double no longer holds every whole number of bytes. */
        if (!(bytes >= (double)row->min && bytes <= (double)row->max &&
              bytes <= 9007199254740992.0))
            return false;
        *out = (uint64_t)bytes;
        return true;
    }
    return false;
}

static bool parse_flag(const char *text, bool *out)
{
    static const char *const yes[] = {"true", "1", "yes", "on"};
    static const char *const no[] = {"false", "0", "no", "off"};

    for (size_t i = 0; i < 4; i++) {
        if (strcasecmp(text, yes[i]) == 0 || strcasecmp(text, no[i]) == 0) {
            *out = strcasecmp(text, yes[i]) == 0;
            return true;
        }
    }
    return false;
}

static bool parse_enum(const struct td_option *row, const char *text, int *out)
{
    for (int i = 0; row->values[i]; i++) {
        if (strcasecmp(row->values[i], text) == 0) {
            *out = i;
            return true;
        }
    }
    return false;
}

static bool parse_enums(const struct td_option *row, const char *text, struct td_option_enums *out)
{
    struct td_option_enums all = {0};

    for (const char *p = text;;) {
        size_t len = strcspn(p, ",");
        char one[32];

        if (len >= sizeof one || all.n == TD_OPTION_MAX_ENUMS)
            return false;
        memcpy(one, p, len);
        one[len] = '\0';
        if (!parse_enum(row, one, &all.value[all.n++]))
            return false;
        if (!p[len])
            break;
        p += len + 1;
    }
    *out = all;
    return true;
}

enum td_status td_option_value_parse_ints(const struct td_option *row, const char *value,
                                          struct td_option_ints *out)
{
    struct td_option_ints all = {0};

    for (const char *p = value;;) {
        size_t len = strcspn(p, ",");
        char number[24];

        if (len >= sizeof number || all.n == TD_OPTION_MAX_INTS)
            return TD_INVALID;
        memcpy(number, p, len);
        number[len] = '\0';
        if (!parse_int(number, row->sweep_min, row->max, &all.value[all.n++]))
            return TD_INVALID;
        if (!p[len])
            break;
        p += len + 1;
    }
    *out = all;
    return TD_OK;
}

static bool parse_shares(const char *text, struct td_option_shares *out)
{
    struct td_option_shares shares = {0};
    uint64_t total = 0;

    for (const char *p = text;;) {
        size_t len = strcspn(p, ":,");
        char number[16];
        int64_t value;

        if (len >= sizeof number || shares.n == TD_OPTION_MAX_SHARES)
            return false;
        memcpy(number, p, len);
        number[len] = '\0';
        if (!parse_int(number, 0, 1000000, &value))
            return false;
        shares.share[shares.n++] = (uint32_t)value;
        total += (uint64_t)value;
        if (!p[len])
            break;
        p += len + 1;
    }
    if (total == 0)
        return false;
    *out = shares;
    return true;
}

/* Room for one more element of `size` bytes in an array that grows by doubling inside the arena. */
static void *grow(struct td_arena *arena, void *items, uint32_t n, size_t size)
{
    void *wider;

    if (n & (n - 1) || (n == 0 && items))
        return items; /* room is left until n reaches a power of two */
    wider = td_arena_alloc(arena, (n ? 2 * (size_t)n : 1) * size);
    if (wider && n)
        memcpy(wider, items, n * size);
    return wider;
}

/* Token ids, separated by commas or white space; brackets around them as in JSON are allowed. */
static enum td_status parse_ids(struct td_arena *arena, const char *text, struct td_option_ids *out)
{
    struct td_option_ids ids = {0};
    const char *p = text;

    for (;;) {
        size_t len;
        char number[16];
        int64_t value;

        p += strspn(p, "[], \t\r\n");
        if (!*p)
            break;
        len = strspn(p, "0123456789");
        if (len == 0 || len >= sizeof number || ids.n == TD_OPTION_MAX_IDS)
            return TD_INVALID;
        memcpy(number, p, len);
        number[len] = '\0';
        p += len;
        if (!parse_int(number, 0, UINT32_MAX, &value) || (*p && !strchr("], \t\r\n", *p)))
            return TD_INVALID;
        ids.ids = grow(arena, ids.ids, ids.n, sizeof *ids.ids);
        if (!ids.ids)
            return TD_NO_MEMORY;
        ids.ids[ids.n++] = (uint32_t)value;
    }
    if (ids.n == 0)
        return TD_INVALID;
    *out = ids;
    return TD_OK;
}

static enum td_status parse_address(struct td_arena *arena, const char *text,
                                    struct td_option_address *out)
{
    const char *colon = strrchr(text, ':');
    const char *host = text;
    size_t len;
    int64_t port;

    if (!colon || !parse_int(colon + 1, 1, 65535, &port))
        return TD_INVALID;
    len = (size_t)(colon - text);
    if (len >= 2 && host[0] == '[' && host[len - 1] == ']') {
        host++;
        len -= 2;
    } else if (memchr(host, ':', len)) {
        return TD_INVALID; /* an IPv6 address needs brackets */
    }
    if (len == 0)
        return TD_INVALID;
    out->host = td_arena_strndup(arena, host, len);
    out->port = (uint16_t)port;
    return out->host ? TD_OK : TD_NO_MEMORY;
}

static enum td_status append_list(struct td_arena *arena, const struct td_option *row,
                                  const char *text, struct td_option_list *list)
{
    for (const char *p = text;;) {
        size_t len = row->commas ? strcspn(p, ",") : strlen(p);

        if (len == 0 || list->n == TD_OPTION_MAX_LIST)
            return TD_INVALID;
        list->items = grow(arena, (void *)list->items, list->n, sizeof *list->items);
        if (!list->items)
            return TD_NO_MEMORY;
        list->items[list->n] = td_arena_strndup(arena, p, len);
        if (!list->items[list->n])
            return TD_NO_MEMORY;
        list->n++;
        if (!p[len])
            return TD_OK;
        p += len + 1;
    }
}

/* Keys travel in HTTP headers: visible ASCII only. */
static bool is_key(const char *text)
{
    for (; *text; text++)
        if (*text <= 0x20 || *text >= 0x7f)
            return false;
    return true;
}

enum td_status td_option_value_parse(const struct td_option *row, const char *value,
                                     struct td_arena *arena, void *field)
{
    switch (row->type) {
    case TD_OPTION_STRING:
        if (!*value)
            return TD_INVALID;
        *(const char **)field = td_arena_strndup(arena, value, strlen(value));
        return *(const char **)field ? TD_OK : TD_NO_MEMORY;
    case TD_OPTION_LIST:
        if (row->secret && !is_key(value))
            return TD_INVALID;
        return append_list(arena, row, value, field);
    case TD_OPTION_INT:
        return parse_int(value, row->min, row->max, field) ? TD_OK : TD_INVALID;
    case TD_OPTION_FLOAT:
        return parse_float(row, value, field) ? TD_OK : TD_INVALID;
    case TD_OPTION_SIZE:
        return parse_size(row, value, field) ? TD_OK : TD_INVALID;
    case TD_OPTION_FLAG:
        return parse_flag(value, field) ? TD_OK : TD_INVALID;
    case TD_OPTION_ENUM:
        return parse_enum(row, value, field) ? TD_OK : TD_INVALID;
    case TD_OPTION_ENUMS:
        return parse_enums(row, value, field) ? TD_OK : TD_INVALID;
    case TD_OPTION_ADDRESS:
        return parse_address(arena, value, field);
    case TD_OPTION_SHARES:
        return parse_shares(value, field) ? TD_OK : TD_INVALID;
    case TD_OPTION_IDS:
        return parse_ids(arena, value, field);
    }
    return TD_INVALID;
}
