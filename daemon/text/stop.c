#include "daemon/text/stop.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_BYTES = 65535 };

/* One stop string as a Knuth-Morris-Pratt automaton. */
struct needle {
    const char *text; /* in the handle's block */
    const uint32_t
        *fail; /* [len]: the longest proper prefix of text[0..i] that is also its suffix */
    uint32_t len;
    uint32_t state; /* bytes of `text` that the input ends with */
};

struct td_stop {
    size_t n;
    bool include;
    bool matched;
    size_t
        longest; /* index of the needle with the longest state; that prefix of it is the tail held back */
    struct needle needles[];
};

static void build_fail(const char *text, uint32_t len, uint32_t *fail)
{
    uint32_t k = 0;

    fail[0] = 0;
    for (uint32_t i = 1; i < len; i++) {
        while (k && text[i] != text[k])
            k = fail[k - 1];
        if (text[i] == text[k])
            k++;
        fail[i] = k;
    }
}

enum td_status td_stop_open(const struct td_str *strings, size_t n, bool include,
                            struct td_stop **stop, struct td_err *err)
{
    size_t total = 0, tables;
    struct td_stop *s;
    uint32_t *fail;
    char *text;

    for (size_t i = 0; i < n; i++) {
        if (strings[i].len == 0 || strings[i].len > MAX_BYTES)
            return td_err_set(err, TD_INVALID, "stop string %zu has %zu bytes, expected 1 to %d", i,
                              strings[i].len, MAX_BYTES);
        total += strings[i].len;
    }
    tables = sizeof *s + n * sizeof *s->needles;
    s = calloc(1, tables + total * (sizeof *fail + 1));
    if (!s)
        return td_err_set(err, TD_NO_MEMORY, "no memory for %zu stop strings", n);
    s->n = n;
    s->include = include;
    fail = (uint32_t *)(void *)((char *)s + tables);
    text = (char *)(fail + total);
    for (size_t i = 0; i < n; i++) {
        uint32_t len = (uint32_t)strings[i].len;

        memcpy(text, strings[i].ptr, len);
        build_fail(text, len, fail);
        s->needles[i] = (struct needle){.text = text, .fail = fail, .len = len};
        text += len;
        fail += len;
    }
    *stop = s;
    return TD_OK;
}

void td_stop_close(struct td_stop *stop)
{
    free(stop);
}

size_t td_stop_held_bytes(const struct td_stop *stop)
{
    return stop->n && !stop->matched ? stop->needles[stop->longest].state : 0;
}

/* Feeds one byte to every automaton. The index of the longest string that ends here, -1 when none does. */
static int64_t step(struct td_stop *stop, char byte)
{
    int64_t hit = -1;

    stop->longest = 0;
    for (size_t i = 0; i < stop->n; i++) {
        struct needle *d = &stop->needles[i];

        while (d->state && d->text[d->state] != byte)
            d->state = d->fail[d->state - 1];
        if (d->text[d->state] == byte)
            d->state++;
        if (d->state == d->len) {
            if (hit < 0 || d->len > stop->needles[hit].len)
                hit = (int64_t)i;
            d->state = 0; /* nothing more is fed after a hit */
        } else if (d->state > stop->needles[stop->longest].state) {
            stop->longest = i;
        }
    }
    return hit;
}

enum td_status td_stop_push(struct td_stop *stop, struct td_str text, struct td_bytes *out,
                            bool *matched)
{
    /* The tail held back so far is a prefix of this needle, whatever the states become. */
    const char *held = stop->n ? stop->needles[stop->longest].text : "";
    size_t n_held = td_stop_held_bytes(stop), keep, from_held;
    int64_t hit = -1;
    size_t at = 0;
    enum td_status s = TD_OK;

    *matched = stop->matched;
    if (stop->matched)
        return TD_OK;
    if (out)
        s = td_bytes_reserve(out, n_held + text.len);
    if (s)
        return s;
    while (at < text.len && hit < 0 && stop->n)
        hit = step(stop, text.ptr[at++]);
    if (hit >= 0) {
        stop->matched = *matched = true;
        keep = n_held + at - (stop->include ? 0 : stop->needles[hit].len);
    } else {
        keep = n_held + text.len - td_stop_held_bytes(stop);
    }
    from_held = keep < n_held ? keep : n_held;
    if (out) {
        td_bytes_append(out, held, from_held);
        td_bytes_append(out, text.ptr, keep - from_held);
    }
    return TD_OK;
}

enum td_status td_stop_flush(struct td_stop *stop, struct td_bytes *out)
{
    size_t n_held = td_stop_held_bytes(stop);
    enum td_status s = TD_OK;

    if (n_held && out)
        s = td_bytes_append(out, stop->needles[stop->longest].text, n_held);
    if (!s)
        for (size_t i = 0; i < stop->n; i++)
            stop->needles[i].state = 0;
    return s;
}

bool td_stop_matched(const struct td_stop *stop)
{
    return stop->matched;
}

void td_stop_reset(struct td_stop *stop)
{
    stop->matched = false;
    stop->longest = 0;
    for (size_t i = 0; i < stop->n; i++)
        stop->needles[i].state = 0;
}
