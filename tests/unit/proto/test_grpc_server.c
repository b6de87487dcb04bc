/* The server against requests that the client object would never send: a bare nghttp2 session
 * plays the client. */
#include "proto/grpc.h"

#include <nghttp2/nghttp2.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

struct bare {
    nghttp2_session *client;
    struct td_grpc *server;
    struct td_bytes headers; /* "name=value\n" of everything that came */
    struct td_bytes body;
    uint32_t reset_code;
    bool closed, was_reset;
    struct td_str to_send;
    size_t n_calls, n_messages, n_closes, n_http;
};

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t n_name, const uint8_t *value, size_t n_value, uint8_t flags, void *user)
{
    (void)session;
    (void)frame;
    (void)flags;
    struct bare *b = user;
    assert_int_equal(td_bytes_appendf(&b->headers, "%.*s=%.*s\n", (int)n_name, (const char *)name,
                                      (int)n_value, (const char *)value),
                     TD_OK);
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data,
                   size_t n, void *user)
{
    (void)session;
    (void)flags;
    (void)id;
    return (int)td_bytes_append(&((struct bare *)user)->body, data, n);
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    (void)session;
    struct bare *b = user;
    if (frame->hd.type == NGHTTP2_RST_STREAM) {
        b->was_reset = true;
        b->reset_code = frame->rst_stream.error_code;
    }
    return 0;
}

static int on_closed(nghttp2_session *session, int32_t id, uint32_t code, void *user)
{
    (void)session;
    (void)id;
    (void)code;
    ((struct bare *)user)->closed = true;
    return 0;
}

static enum td_status accept_call(void *user, struct td_grpc_stream *s, struct td_str path,
                                  struct td_err *err)
{
    (void)s;
    (void)path;
    (void)err;
    ((struct bare *)user)->n_calls++;
    return TD_OK;
}

static void take_message(void *user, struct td_grpc_stream *s, struct td_str message)
{
    ((struct bare *)user)->n_messages++;
    td_grpc_stream_ack(s, message.len);
}

static void half_close(void *user, struct td_grpc_stream *s)
{
    (void)user;
    td_grpc_stream_finish(s, TD_GRPC_OK, TD_STR(""));
}

static void count_close(void *user, struct td_grpc_stream *s, enum td_grpc_code code,
                        struct td_str text)
{
    (void)s;
    (void)code;
    (void)text;
    ((struct bare *)user)->n_closes++;
}

static void answer_http(void *user, struct td_grpc_stream *s, struct td_str method,
                        struct td_str path, struct td_str body)
{
    ((struct bare *)user)->n_http++;
    struct td_bytes text = {0};
    td_bytes_appendf(&text, "%.*s %.*s %zu", (int)method.len, method.ptr, (int)path.len, path.ptr,
                     body.len);
    td_grpc_stream_http_reply(s, 200, TD_STR("text/plain"), td_bytes_str(&text));
    td_bytes_deinit(&text);
}

static void bare_open(struct bare *b, bool with_http)
{
    *b = (struct bare){0};
    struct td_grpc_callbacks callbacks = {.on_call = accept_call,
                                          .on_message = take_message,
                                          .on_half_close = half_close,
                                          .on_close = count_close,
                                          .on_http = with_http ? answer_http : NULL};
    struct td_grpc_limits limits;
    td_grpc_limits_default(&limits);
    limits.max_http_body_bytes = 1000;
    limits.max_message_bytes = 100000;
    limits.max_resets = 20;
    assert_int_equal(td_grpc_server_open(&callbacks, &limits, b, &b->server, NULL), TD_OK);
    nghttp2_session_callbacks *cb;
    assert_int_equal(nghttp2_session_callbacks_new(&cb), 0);
    nghttp2_session_callbacks_set_on_header_callback(cb, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(cb, on_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(cb, on_closed);
    assert_int_equal(nghttp2_session_client_new(&b->client, cb, b), 0);
    nghttp2_session_callbacks_del(cb);
    nghttp2_submit_settings(b->client, 0, NULL, 0);
}

static void bare_close(struct bare *b)
{
    td_grpc_close(b->server);
    nghttp2_session_del(b->client);
    td_bytes_deinit(&b->headers);
    td_bytes_deinit(&b->body);
}

static void bare_pump(struct bare *b)
{
    for (bool moved = true; moved;) {
        moved = false;
        const uint8_t *data;
        ssize_t n;
        while ((n = nghttp2_session_mem_send(b->client, &data)) > 0) {
            td_grpc_feed(b->server, 1, data, (size_t)n, NULL);
            moved = true;
        }
        char buf[1000];
        size_t m;
        while ((m = td_grpc_pull(b->server, buf, sizeof buf)) > 0) {
            assert_int_equal(nghttp2_session_mem_recv(b->client, (const uint8_t *)buf, m), m);
            moved = true;
        }
    }
}

static ssize_t read_body(nghttp2_session *session, int32_t id, uint8_t *buf, size_t cap,
                         uint32_t *flags, nghttp2_data_source *source, void *user)
{
    (void)session;
    (void)id;
    (void)user;
    struct td_str *rest = source->ptr;
    size_t n = rest->len < cap ? rest->len : cap;
    if (n)
        memcpy(buf, rest->ptr, n);
    rest->ptr += n;
    rest->len -= n;
    if (rest->len == 0)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)n;
}

/* One request with these header pairs ("name", "value", ..., NULL) on top of scheme and
 * authority. */
static int32_t bare_request(struct bare *b, struct td_str body, const char *const *pairs)
{
    nghttp2_nv nv[16];
    size_t n = 0;
    const char *const fixed[] = {":scheme", "http", ":authority", "h", NULL};
    const char *const *lists[] = {fixed, pairs};
    for (int l = 0; l < 2; l++)
        for (const char *const *p = lists[l]; p[0]; p += 2)
            nv[n++] = (nghttp2_nv){(uint8_t *)p[0], (uint8_t *)p[1], strlen(p[0]), strlen(p[1]), 0};
    b->to_send = body;
    nghttp2_data_provider provider = {.source.ptr = &b->to_send, .read_callback = read_body};
    int32_t id = nghttp2_submit_request(b->client, NULL, nv, n, body.ptr ? &provider : NULL, NULL);
    assert_true(id > 0);
    return id;
}

static const struct td_str no_body = {NULL, 0};
static const char *const grpc_call[] = {
    ":method", "POST", ":path", "/a.B/C", "content-type", "application/grpc", NULL};

static bool has(const struct bare *b, const char *line)
{
    return b->headers.data && strstr(b->headers.data, line);
}

/* Sends one call with this body and expects this status. */
static void expect_status(struct td_str body, const char *status, const char *text, size_t n_calls)
{
    struct bare b;
    bare_open(&b, false);
    bare_request(&b, body, grpc_call);
    bare_pump(&b);
    if (!has(&b, status) || !has(&b, text))
        fail_msg("expected '%s' and '%s' in '%s'", status, text, b.headers.data);
    assert_true(b.closed);
    assert_int_equal(b.n_calls, n_calls);
    assert_int_equal(b.n_closes, n_calls);
    assert_int_equal(td_grpc_n_streams(b.server), 0);
    bare_close(&b);
}

static void test_grpc_server_answers_malformed_message_streams(void **state)
{
    (void)state;
    expect_status((struct td_str){"\1\0\0\0\1x", 6}, "grpc-status=12\n", "compressed", 1);
    expect_status((struct td_str){"\7\0\0\0\1x", 6}, "grpc-status=13\n", "flag 7", 1);
    expect_status((struct td_str){"\0\0\0\0\5x", 6}, "grpc-status=13\n", "inside a message", 1);
    expect_status((struct td_str){"\0\0\0", 3}, "grpc-status=13\n", "inside a message", 1);
    expect_status((struct td_str){"\0\xff\xff\xff\xff", 5}, "grpc-status=8\n", "4294967295 bytes",
                  1);
    expect_status((struct td_str){"\0\0\0\0\0\0\0\0\0\1y", 11}, "grpc-status=0\n", "", 1);
    expect_status((struct td_str){"", 0}, "grpc-status=0\n", "", 1);
    expect_status(no_body, "grpc-status=0\n", "", 1);
}

static void test_grpc_server_refuses_bad_call_headers(void **state)
{
    (void)state;
    struct bare b;
    bare_open(&b, true);
    bare_request(&b, no_body,
                 (const char *const[]){":method", "POST", ":path", "/a.B/C", "content-type",
                                       "application/grpc", "grpc-timeout", "12345678x", NULL});
    bare_pump(&b);
    assert_true(has(&b, "grpc-status=3\n"));
    assert_true(has(&b, "grpc-timeout '12345678x'"));
    td_bytes_clear(&b.headers);
    bare_request(&b, no_body,
                 (const char *const[]){":method", "POST", ":path", "/a.B/C", "content-type",
                                       "application/grpc+proto", "k-bin", "not*base64", NULL});
    bare_pump(&b);
    assert_true(has(&b, "grpc-status=3\n"));
    assert_true(has(&b, "'k-bin'"));
    td_bytes_clear(&b.headers);
    bare_request(&b, no_body,
                 (const char *const[]){":method", "GET", ":path", "/a.B/C", "content-type",
                                       "application/grpc", NULL});
    bare_pump(&b);
    assert_true(has(&b, ":status=405\n"));
    assert_int_equal(b.n_calls + b.n_http + b.n_closes, 0);
    bare_close(&b);
}

static void test_grpc_server_answers_plain_requests_through_the_hook(void **state)
{
    (void)state;
    struct bare b;
    bare_open(&b, true);
    bare_request(&b, no_body, (const char *const[]){":method", "GET", ":path", "/healthz", NULL});
    bare_pump(&b);
    assert_true(has(&b, ":status=200\n"));
    assert_true(has(&b, "content-length=14\n"));
    assert_string_equal(b.body.data, "GET /healthz 0");
    assert_true(b.closed);
    assert_false(b.was_reset);

    td_bytes_clear(&b.body);
    td_bytes_clear(&b.headers);
    bare_request(&b, TD_STR("{\"a\":1}"),
                 (const char *const[]){":method", "POST", ":path", "/v1", "content-type",
                                       "application/json", NULL});
    bare_pump(&b);
    assert_string_equal(b.body.data, "POST /v1 7");

    td_bytes_clear(&b.body);
    td_bytes_clear(&b.headers);
    bare_request(&b, no_body, (const char *const[]){":method", "HEAD", ":path", "/x", NULL});
    bare_pump(&b);
    assert_true(has(&b, "content-length=9\n"));
    assert_int_equal(b.body.len, 0);
    assert_int_equal(b.n_http, 3);
    assert_int_equal(b.n_closes, 3);

    char big[5000] = {0};
    td_bytes_clear(&b.headers);
    b.closed = false;
    bare_request(&b, (struct td_str){big, sizeof big},
                 (const char *const[]){":method", "POST", ":path", "/v1", NULL});
    bare_pump(&b);
    assert_true(has(&b, ":status=413\n"));
    assert_true(b.closed);
    assert_int_equal(b.n_http, 3);
    assert_int_equal(b.n_closes, 3);
    bare_close(&b);
}

static void test_grpc_server_without_hook_answers_415(void **state)
{
    (void)state;
    struct bare b;
    bare_open(&b, false);
    bare_request(&b, TD_STR("{}"),
                 (const char *const[]){":method", "POST", ":path", "/a.B/C", "content-type",
                                       "application/grpc-web", NULL});
    bare_pump(&b);
    assert_true(has(&b, ":status=415\n"));
    assert_non_null(strstr(b.body.data, "application/grpc"));
    assert_true(b.closed);
    bare_close(&b);
}

static void test_grpc_server_answers_ping_and_large_messages(void **state)
{
    (void)state;
    struct bare b;
    bare_open(&b, false);
    static char body[90005];
    memcpy(body, "\0\0\1\x5f\x90", 5); /* 90000 */
    nghttp2_submit_ping(b.client, 0, NULL);
    bare_request(&b, (struct td_str){body, sizeof body}, grpc_call);
    bare_pump(&b);
    assert_int_equal(b.n_messages, 1);
    assert_true(has(&b, "grpc-status=0\n"));
    bare_close(&b);
}

static void test_grpc_server_refuses_a_wrong_preface(void **state)
{
    (void)state;
    struct bare b;
    struct td_err err;
    bare_open(&b, false);
    assert_int_equal(td_grpc_feed(b.server, 1, "GET / HTTP/1.1\r\n\r\n", 18, &err),
                     TD_PEER_PROTOCOL);
    char buf[4096];
    while (td_grpc_pull(b.server, buf, sizeof buf) > 0) {
    }
    assert_true(td_grpc_wants_close(b.server));
    assert_int_equal(td_grpc_feed(b.server, 1, "x", 1, &err), TD_PEER_PROTOCOL);
    bare_close(&b);
}

static void test_grpc_server_closes_on_a_flood_of_empty_data(void **state)
{
    (void)state;
    struct bare b;
    bare_open(&b, false);
    static char body[6] = "\0\0\0\0\1";
    int32_t id = bare_request(&b, (struct td_str){body, 5}, grpc_call);
    const uint8_t *data;
    ssize_t n;
    while ((n = nghttp2_session_mem_send(b.client, &data)) > 0) {
        /* The end flag of the DATA frame (RFC 9113 6.1) is taken away, so that the stream stays
         * open. */
        uint8_t frame[16384];
        memcpy(frame, data, (size_t)n);
        if (n == 14 && frame[3] == NGHTTP2_DATA)
            frame[4] = 0;
        td_grpc_feed(b.server, 1, frame, (size_t)n, NULL);
    }
    assert_int_equal(b.n_calls, 1);
    uint8_t empty[9] = {0, 0, 0, NGHTTP2_DATA, 0, 0, 0, 0, (uint8_t)id};
    char buf[4096];
    for (int i = 0; i < 20; i++)
        td_grpc_feed(b.server, 1, empty, sizeof empty, NULL);
    while (td_grpc_pull(b.server, buf, sizeof buf) > 0) {
    }
    assert_false(td_grpc_wants_close(b.server));
    td_grpc_feed(b.server, 1, empty, sizeof empty, NULL);
    while (td_grpc_pull(b.server, buf, sizeof buf) > 0) {
    }
    assert_true(td_grpc_wants_close(b.server));
    bare_close(&b);
}

/* Valid frame heads with random types, flags, streams and contents after a good preface. */
static void test_grpc_server_survives_random_frames(void **state)
{
    (void)state;
    for (uint32_t seed = 1; seed <= 3000; seed++) {
        struct bare b;
        uint32_t r = seed * 2654435761u;
        bare_open(&b, seed % 2);
        bare_request(&b, (struct td_str){"\0\0\0\0\1x", 6}, grpc_call);
        const uint8_t *data;
        ssize_t n;
        while ((n = nghttp2_session_mem_send(b.client, &data)) > 0)
            td_grpc_feed(b.server, 1, data, (size_t)n, NULL);
        for (int i = 0; i < 20; i++) {
            uint8_t frame[9 + 64];
            for (size_t k = 0; k < sizeof frame; k++) {
                r = r * 1664525u + 1013904223u;
                frame[k] = (uint8_t)(r >> 16);
            }
            size_t len = frame[2] % 64;
            frame[0] = frame[1] = 0;
            frame[2] = (uint8_t)len;
            frame[3] = (uint8_t)(frame[3] % 11);
            frame[5] = frame[6] = frame[7] = 0;
            frame[8] = (uint8_t)(frame[8] % 8);
            if (td_grpc_feed(b.server, 1, frame, 9 + len, NULL))
                break;
            char buf[512];
            td_grpc_pull(b.server, buf, 1 + r % 511);
        }
        td_grpc_close(b.server);
        b.server = NULL;
        if (b.n_calls + b.n_http != b.n_closes)
            fail_msg("seed %u: %zu calls, %zu closes", seed, b.n_calls + b.n_http, b.n_closes);
        bare_close(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grpc_server_answers_malformed_message_streams),
        cmocka_unit_test(test_grpc_server_refuses_bad_call_headers),
        cmocka_unit_test(test_grpc_server_answers_plain_requests_through_the_hook),
        cmocka_unit_test(test_grpc_server_without_hook_answers_415),
        cmocka_unit_test(test_grpc_server_answers_ping_and_large_messages),
        cmocka_unit_test(test_grpc_server_refuses_a_wrong_preface),
        cmocka_unit_test(test_grpc_server_closes_on_a_flood_of_empty_data),
        cmocka_unit_test(test_grpc_server_survives_random_frames),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
