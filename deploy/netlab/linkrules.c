#include "deploy/netlab/linkrules.h"

#include <string.h>

#define MAX_SPAN_NS 60000000000u    /* a minute */
#define MAX_RATE_BPS 1000000000000u /* 1 Tbit/s */

enum { MAX_WORDS = 6 };

struct statement {
    struct td_str line;
    struct td_str words[MAX_WORDS];
    size_t n_words; /* MAX_WORDS + 1: there are more */
    size_t number;  /* of the line, from 1 */
};

static enum td_status fail(const struct statement *s, const char *expected, struct td_err *err)
{
    return td_err_set(err, TD_INVALID, "line %zu: got '%.*s', expected %s", s->number,
                      (int)(s->line.len < 100 ? s->line.len : 100), s->line.ptr, expected);
}

static void split(struct statement *s)
{
    size_t at = 0;

    for (s->n_words = 0; s->n_words <= MAX_WORDS; s->n_words++) {
        size_t from;

        while (at < s->line.len && s->line.ptr[at] == ' ')
            at++;
        if (at == s->line.len)
            return;
        for (from = at; at < s->line.len && s->line.ptr[at] != ' ';)
            at++;
        if (s->n_words < MAX_WORDS)
            s->words[s->n_words] = (struct td_str){s->line.ptr + from, at - from};
    }
}

/* Decimal digits only, at most `max`. */
static bool read_number(struct td_str word, uint64_t max, uint64_t *out)
{
    uint64_t n = 0;

    for (size_t i = 0; i < word.len; i++) {
        unsigned digit = (unsigned)(unsigned char)word.ptr[i] - '0';

        if (digit > 9 || digit > max || n > (max - digit) / 10)
            return false;
        n = n * 10 + digit;
    }
    *out = n;
    return word.len > 0;
}

static bool read_port(struct td_str word, size_t *out)
{
    uint64_t n;

    if (!read_number(word, TD_TRANSIT_PORTS - 1, &n))
        return false;
    *out = (size_t)n;
    return true;
}

/* DELAY_NS JITTER_NS LOSS_PPM; whether the link is blocked stays as it is. */
static bool read_link(const struct td_str *words, struct td_transit_link *out)
{
    uint64_t delay_ns, jitter_ns, loss_ppm;

    if (!read_number(words[0], MAX_SPAN_NS, &delay_ns) ||
        !read_number(words[1], MAX_SPAN_NS, &jitter_ns) ||
        !read_number(words[2], 1000000, &loss_ppm))
        return false;
    out->delay_ns = delay_ns;
    out->jitter_ns = jitter_ns;
    out->loss_ppm = (uint32_t)loss_ppm;
    return true;
}

static bool is(const struct statement *s, const char *verb)
{
    return td_str_eq(s->words[0], td_str_from(verb));
}

static enum td_status read_port_name(const struct statement *s, struct td_linkrules *out,
                                     struct td_err *err)
{
    size_t port;

    if (s->n_words != 3 || !read_port(s->words[1], &port) ||
        s->words[2].len >= TD_LINKRULES_NAME_BYTES ||
        memchr(s->words[2].ptr, '\0', s->words[2].len) != NULL)
        return fail(s, "'port K NAME', K from 0 to 15, a name of at most 15 bytes", err);
    memset(out->ports[port], 0, sizeof out->ports[port]);
    memcpy(out->ports[port], s->words[2].ptr, s->words[2].len);
    return TD_OK;
}

static enum td_status read_statement(const struct statement *s, struct td_linkrules *out,
                                     struct td_err *err)
{
    struct td_transit_rules *rules = &out->rules;
    size_t from, to;

    if (is(s, "port"))
        return read_port_name(s, out, err);
    if (is(s, "rate")) {
        if (s->n_words != 2 || !read_number(s->words[1], MAX_RATE_BPS, &rules->rate_bps))
            return fail(s, "'rate N', N bits per second from 0 to 10^12", err);
    } else if (is(s, "all")) {
        if (s->n_words != 4 || !read_link(s->words + 1, &rules->links[0][0]))
            return fail(s, "'all DELAY_NS JITTER_NS LOSS_PPM', at most a minute and 1000000", err);
        for (from = 0; from < TD_TRANSIT_PORTS; from++)
            for (to = 0; to < TD_TRANSIT_PORTS; to++)
                (void)read_link(s->words + 1, &rules->links[from][to]);
    } else if (is(s, "link")) {
        if (s->n_words != 6 || !read_port(s->words[1], &from) || !read_port(s->words[2], &to) ||
            !read_link(s->words + 3, &rules->links[from][to]))
            return fail(s, "'link FROM TO DELAY_NS JITTER_NS LOSS_PPM', ports from 0 to 15", err);
    } else if (is(s, "block")) {
        if (s->n_words != 3 || !read_port(s->words[1], &from) || !read_port(s->words[2], &to))
            return fail(s, "'block FROM TO', ports from 0 to 15", err);
        rules->links[from][to].blocked = true;
    } else {
        return fail(s, "a statement that begins with port, rate, all, link or block", err);
    }
    return TD_OK;
}

enum td_status td_linkrules_parse(struct td_str text, struct td_linkrules *out, struct td_err *err)
{
    struct td_linkrules made = {.rules.rate_bps = 0};
    struct statement s = {.number = 0};

    for (size_t at = 0; at < text.len;) {
        const char *end = memchr(text.ptr + at, '\n', text.len - at);
        enum td_status status;

        s.line =
            (struct td_str){text.ptr + at, end ? (size_t)(end - text.ptr) - at : text.len - at};
        s.number++;
        at += s.line.len + 1;
        split(&s);
        if (s.n_words == 0)
            continue;
        status = read_statement(&s, &made, err);
        if (status)
            return status;
    }
    *out = made;
    return TD_OK;
}
