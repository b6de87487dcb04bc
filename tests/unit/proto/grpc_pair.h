/* A client and a server connection that talk through buffers cut at random places, with one
 * small application on each side. For tests only. */
#ifndef TD_TESTS_UNIT_PROTO_GRPC_PAIR_H
#define TD_TESTS_UNIT_PROTO_GRPC_PAIR_H

#include "proto/grpc.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* What happened to one call, on either side. */
struct call {
    struct td_grpc_stream *s; /* NULL after on_close */
    struct pair *pair;
    char path[64];
    size_t n_messages, n_bytes, n_headers, n_half_closes, n_closes, n_drains;
    uint32_t sum; /* over all message bytes, order counts */
    struct td_bytes last;
    enum td_grpc_code code;
    char text[1200];
    bool hold;              /* does not acknowledge */
    char note[32], raw[32]; /* trailers of Bidi, as seen in on_close */
    size_t n_raw;
    size_t to_send, send_bytes;
    uint32_t sent_sum;
};

enum { PAIR_MAX_CALLS = 512 };

struct pair {
    struct td_grpc *client, *server;
    uint64_t now_ns;
    uint32_t random;
    size_t max_cut; /* bytes of one piece between the ends */
    size_t n_client, n_server;
    struct call client_calls[PAIR_MAX_CALLS], server_calls[PAIR_MAX_CALLS];
    size_t n_outputs;        /* on_output calls */
    struct td_grpc *corrupt; /* flip bytes on the way to this side; NULL: none */
};

static inline uint32_t pair_random(struct pair *p)
{
    p->random = p->random * 1664525u + 1013904223u;
    return p->random >> 8;
}

static inline uint32_t pair_sum(uint32_t sum, struct td_str s)
{
    for (size_t i = 0; i < s.len; i++)
        sum = sum * 31u + (unsigned char)s.ptr[i];
    return sum * 31u + (uint32_t)s.len;
}

static inline void pair_note_message(struct call *c, struct td_grpc_stream *s,
                                     struct td_str message)
{
    c->n_messages++;
    c->n_bytes += message.len;
    c->sum = pair_sum(c->sum, message);
    td_bytes_clear(&c->last);
    assert_int_equal(td_bytes_append_str(&c->last, message), TD_OK);
    if (!c->hold)
        td_grpc_stream_ack(s, message.len);
}

static inline void pair_note_close(struct call *c, enum td_grpc_code code, struct td_str text)
{
    c->n_closes++;
    c->code = code;
    snprintf(c->text, sizeof c->text, "%.*s", (int)text.len, text.len ? text.ptr : "");
    c->s = NULL;
}

/* Sends as much of what is left as the queue takes; the server finishes then. */
static inline void pair_send_more(struct call *c)
{
    char *data = malloc(c->send_bytes + 1);
    assert_non_null(data);
    while (c->s && c->to_send > 0) {
        struct td_str message = {data, c->send_bytes};
        memset(data, (int)(c->to_send & 0xff), c->send_bytes);
        if (td_grpc_stream_send(c->s, message, NULL) != TD_OK)
            break;
        c->sent_sum = pair_sum(c->sent_sum, message);
        c->to_send--;
    }
    free(data);
    if (c->s && c->to_send == 0 && strcmp(c->path, "/t.T/Stream") == 0)
        td_grpc_stream_finish(c->s, TD_GRPC_OK, TD_STR(""));
}

static inline enum td_status pair_on_call(void *user, struct td_grpc_stream *s, struct td_str path,
                                          struct td_err *err)
{
    struct pair *p = user;
    assert_true(p->n_server < PAIR_MAX_CALLS);
    struct call *c = &p->server_calls[p->n_server];
    if (td_str_eq(path, TD_STR("/t.T/Deny")))
        return td_err_set(err, TD_DENIED, "the key is wrong: 100%% of \xc3\xa9");
    if (!td_str_starts(path, TD_STR("/t.T/")))
        return td_err_set(err, TD_UNSUPPORTED, "no method '%.*s'", (int)path.len, path.ptr);
    p->n_server++;
    *c = (struct call){.s = s, .pair = p};
    snprintf(c->path, sizeof c->path, "%.*s", (int)path.len, path.ptr);
    c->hold = strcmp(c->path, "/t.T/Slow") == 0;
    if (strcmp(c->path, "/t.T/Echo") == 0 || strcmp(c->path, "/t.T/Stream") == 0)
        td_grpc_stream_set_unary(s);
    if (strcmp(c->path, "/t.T/Started") == 0)
        td_grpc_stream_start(s);
    td_grpc_stream_set_user(s, c);
    return TD_OK;
}

static inline void pair_server_message(void *user, struct td_grpc_stream *s, struct td_str message)
{
    (void)user;
    struct call *c = td_grpc_stream_user(s);
    pair_note_message(c, s, message);
    if (strcmp(c->path, "/t.T/Bidi") == 0)
        assert_int_equal(td_grpc_stream_send(s, message, NULL), TD_OK);
    if (strcmp(c->path, "/t.T/Early") == 0)
        td_grpc_stream_finish(s, TD_GRPC_OK, TD_STR("enough"));
}

static inline void pair_server_half_close(void *user, struct td_grpc_stream *s)
{
    (void)user;
    struct call *c = td_grpc_stream_user(s);
    c->n_half_closes++;
    if (strcmp(c->path, "/t.T/Echo") == 0) {
        assert_int_equal(td_grpc_stream_send(s, td_bytes_str(&c->last), NULL), TD_OK);
        td_grpc_stream_finish(s, TD_GRPC_OK, TD_STR(""));
    } else if (strcmp(c->path, "/t.T/Bidi") == 0) {
        struct td_grpc_meta text = {TD_STR("x-note"), TD_STR("seen all")};
        struct td_grpc_meta bin = {TD_STR("x-raw-bin"), {"\0\xff\x10", 3}};
        assert_int_equal(td_grpc_stream_add_trailer(s, text, NULL), TD_OK);
        assert_int_equal(td_grpc_stream_add_trailer(s, bin, NULL), TD_OK);
        td_grpc_stream_finish(s, TD_GRPC_OK, TD_STR("done"));
    } else if (strcmp(c->path, "/t.T/Stream") == 0) {
        unsigned n = 0, bytes = 0;
        assert_int_equal(sscanf(c->last.data, "%u %u", &n, &bytes), 2);
        c->to_send = n;
        c->send_bytes = bytes;
        pair_send_more(c);
    } else if (strcmp(c->path, "/t.T/Fail") == 0) {
        struct td_err err;
        td_err_set(&err, TD_NOT_FOUND,
                   "no 100%% gr\xc3\xb6\xc3\x9f"
                   "e\nhere");
        td_grpc_stream_fail(s, &err);
    }
}

static inline void pair_server_close(void *user, struct td_grpc_stream *s, enum td_grpc_code code,
                                     struct td_str text)
{
    (void)user;
    pair_note_close(td_grpc_stream_user(s), code, text);
}

static inline void pair_on_drain(void *user, struct td_grpc_stream *s)
{
    (void)user;
    struct call *c = td_grpc_stream_user(s);
    c->n_drains++;
    pair_send_more(c);
}

static inline void pair_client_close(void *user, struct td_grpc_stream *s, enum td_grpc_code code,
                                     struct td_str text)
{
    (void)user;
    struct call *c = td_grpc_stream_user(s);
    struct td_str value;
    if (td_grpc_stream_metadata(s, "x-note", 0, &value))
        snprintf(c->note, sizeof c->note, "%.*s", (int)value.len, value.ptr);
    if (td_grpc_stream_metadata(s, "x-raw-bin", 0, &value) && value.len <= sizeof c->raw) {
        memcpy(c->raw, value.ptr, value.len);
        c->n_raw = value.len;
    }
    pair_note_close(c, code, text);
}

static inline void pair_client_headers(void *user, struct td_grpc_stream *s)
{
    (void)user;
    ((struct call *)td_grpc_stream_user(s))->n_headers++;
}

static inline void pair_client_message(void *user, struct td_grpc_stream *s, struct td_str message)
{
    (void)user;
    pair_note_message(td_grpc_stream_user(s), s, message);
}

static inline void pair_on_output(void *user)
{
    ((struct pair *)user)->n_outputs++;
}

static const struct td_grpc_callbacks pair_server_callbacks = {
    .on_call = pair_on_call,
    .on_message = pair_server_message,
    .on_half_close = pair_server_half_close,
    .on_drain = pair_on_drain,
    .on_close = pair_server_close,
    .on_output = pair_on_output,
};

static const struct td_grpc_callbacks pair_client_callbacks = {
    .on_headers = pair_client_headers,
    .on_message = pair_client_message,
    .on_drain = pair_on_drain,
    .on_close = pair_client_close,
    .on_output = pair_on_output,
};

static inline struct pair *pair_open(const struct td_grpc_limits *client,
                                     const struct td_grpc_limits *server, uint32_t seed)
{
    struct pair *p = calloc(1, sizeof *p);
    assert_non_null(p);
    p->random = seed;
    p->max_cut = 3000;
    p->now_ns = 1000000000;
    assert_int_equal(td_grpc_client_open(&pair_client_callbacks, client, p, &p->client, NULL),
                     TD_OK);
    assert_int_equal(td_grpc_server_open(&pair_server_callbacks, server, p, &p->server, NULL),
                     TD_OK);
    return p;
}

static inline void pair_close(struct pair *p)
{
    td_grpc_close(p->client);
    td_grpc_close(p->server);
    for (size_t i = 0; i < PAIR_MAX_CALLS; i++) {
        td_bytes_deinit(&p->client_calls[i].last);
        td_bytes_deinit(&p->server_calls[i].last);
    }
    free(p);
}

/* Moves one piece; returns its size. */
static inline size_t pair_move(struct pair *p, struct td_grpc *from, struct td_grpc *to)
{
    char buf[4096];
    size_t cut = 1 + pair_random(p) % p->max_cut;
    size_t n = td_grpc_pull(from, buf, cut < sizeof buf ? cut : sizeof buf);
    if (p->corrupt == to)
        for (size_t i = 0; i < n; i++)
            if (pair_random(p) % 97 == 0)
                buf[i] = (char)pair_random(p);
    if (n)
        td_grpc_feed(to, p->now_ns, buf, n, NULL);
    return n;
}

/* Until both sides are silent. */
static inline void pair_pump(struct pair *p)
{
    size_t moved = 1;
    while (moved) {
        moved = pair_move(p, p->client, p->server);
        moved += pair_move(p, p->server, p->client);
    }
}

static inline struct call *pair_call(struct pair *p, const char *path, uint64_t timeout_ns)
{
    assert_true(p->n_client < PAIR_MAX_CALLS);
    struct call *c = &p->client_calls[p->n_client++];
    *c = (struct call){.pair = p};
    struct td_grpc_meta meta[] = {{TD_STR("authorization"), TD_STR("Bearer k")},
                                  {TD_STR("x-raw-bin"), {"\x01\0\xfe\xff", 4}}};
    struct td_grpc_call_params params = {
        .path = td_str_from(path), .timeout_ns = timeout_ns, .meta = meta, .n_meta = 2, .user = c};
    assert_int_equal(td_grpc_client_call(p->client, p->now_ns, &params, &c->s, NULL), TD_OK);
    return c;
}

static inline void pair_say(struct call *c, const char *text)
{
    assert_int_equal(td_grpc_stream_send(c->s, td_str_from(text), NULL), TD_OK);
}

#endif
