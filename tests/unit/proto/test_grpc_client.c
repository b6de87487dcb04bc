/* The client against answers that the server object would never give: a bare nghttp2 session plays the server. */
#include "proto/grpc.h"

#include <nghttp2/nghttp2.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* What the server answers to every request: header pairs, a body, trailer pairs; each may be absent. */
struct answer {
    const char *const *headers;
    struct td_str body;
    const char *const *trailers;
    uint32_t reset; /* HTTP/2 error code sent instead of, or after, the headers; 0: none */
};

struct bare {
    nghttp2_session *server;
    struct td_grpc *client;
    const struct answer *answer;
    struct td_str rest; /* of the body */
    size_t n_messages, n_headers, n_closes;
    enum td_grpc_code code;
    char text[256];
};

static size_t fill(nghttp2_nv *nv, const char *const *pairs)
{
    size_t n = 0;
    for (; pairs[0]; pairs += 2)
        nv[n++] = (nghttp2_nv){(uint8_t *)(uintptr_t)pairs[0], (uint8_t *)(uintptr_t)pairs[1],
                               strlen(pairs[0]), strlen(pairs[1]), 0};
    return n;
}

static ssize_t read_body(nghttp2_session *session, int32_t id, uint8_t *buf, size_t cap,
                         uint32_t *flags, nghttp2_data_source *source, void *user)
{
    struct bare *b = user;
    (void)source;
    size_t n = b->rest.len < cap ? b->rest.len : cap;
    if (n)
        memcpy(buf, b->rest.ptr, n);
    b->rest.ptr += n;
    b->rest.len -= n;
    if (b->rest.len == 0) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        if (b->answer->trailers) {
            nghttp2_nv nv[8];
            *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
            nghttp2_submit_trailer(session, id, nv, fill(nv, b->answer->trailers));
        }
    }
    return (ssize_t)n;
}

static int on_request(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct bare *b = user;
    if (frame->hd.type != NGHTTP2_HEADERS)
        return 0;
    nghttp2_nv nv[8];
    const struct answer *a = b->answer;
    b->rest = a->body;
    nghttp2_data_provider provider = {.read_callback = read_body};
    if (a->headers)
        nghttp2_submit_response(session, frame->hd.stream_id, nv, fill(nv, a->headers),
                                a->body.ptr ? &provider : NULL);
    if (a->reset)
        nghttp2_submit_rst_stream(session, 0, frame->hd.stream_id, a->reset);
    return 0;
}

static void on_headers(void *user, struct td_grpc_stream *s)
{
    (void)s;
    ((struct bare *)user)->n_headers++;
}

static void on_message(void *user, struct td_grpc_stream *s, struct td_str message)
{
    ((struct bare *)user)->n_messages++;
    td_grpc_stream_ack(s, message.len);
}

static void on_close(void *user, struct td_grpc_stream *s, enum td_grpc_code code,
                     struct td_str text)
{
    (void)s;
    struct bare *b = user;
    b->n_closes++;
    b->code = code;
    snprintf(b->text, sizeof b->text, "%.*s", (int)text.len, text.ptr);
}

/* One call that gets this answer. */
static void expect(struct answer answer, enum td_grpc_code code, const char *text,
                   size_t n_messages)
{
    struct bare b = {.answer = &answer};
    struct td_grpc_callbacks callbacks = {
        .on_headers = on_headers, .on_message = on_message, .on_close = on_close};
    assert_int_equal(td_grpc_client_open(&callbacks, NULL, &b, &b.client, NULL), TD_OK);
    nghttp2_session_callbacks *cb;
    assert_int_equal(nghttp2_session_callbacks_new(&cb), 0);
    nghttp2_session_callbacks_set_on_frame_recv_callback(cb, on_request);
    assert_int_equal(nghttp2_session_server_new(&b.server, cb, &b), 0);
    nghttp2_session_callbacks_del(cb);
    nghttp2_submit_settings(b.server, 0, NULL, 0);
    struct td_grpc_call_params params = {.path = TD_STR("/a.B/C")};
    struct td_grpc_stream *s;
    assert_int_equal(td_grpc_client_call(b.client, 1, &params, &s, NULL), TD_OK);
    for (bool moved = true; moved;) {
        moved = false;
        char buf[500];
        size_t n;
        while ((n = td_grpc_pull(b.client, buf, sizeof buf)) > 0) {
            assert_int_equal(nghttp2_session_mem_recv(b.server, (const uint8_t *)buf, n), n);
            moved = true;
        }
        const uint8_t *data;
        ssize_t m;
        while ((m = nghttp2_session_mem_send(b.server, &data)) > 0) {
            assert_int_equal(td_grpc_feed(b.client, 1, data, (size_t)m, NULL), TD_OK);
            moved = true;
        }
    }
    if (b.code != code || !strstr(b.text, text))
        fail_msg("expected %s '%s', got %s '%s'", td_grpc_code_name(code), text,
                 td_grpc_code_name(b.code), b.text);
    assert_int_equal(b.n_closes, 1);
    assert_int_equal(b.n_messages, n_messages);
    assert_int_equal(td_grpc_n_streams(b.client), 0);
    td_grpc_close(b.client);
    nghttp2_session_del(b.server);
}

static const char *const good[] = {":status", "200", "content-type", "application/grpc", NULL};
static const char *const ok[] = {"grpc-status", "0", NULL};

static void test_grpc_client_takes_statuses_from_trailers_and_from_headers(void **state)
{
    (void)state;
    const struct td_str two = {"\0\0\0\0\1x\0\0\0\0\0", 11};
    expect((struct answer){.headers = good, .body = two, .trailers = ok}, TD_GRPC_OK, "", 2);
    expect((struct answer){.headers = good,
                           .body = two,
                           .trailers = (const char *const[]){"grpc-status", "9", "grpc-message",
                                                             "a%20b%C3%A9", NULL}},
           TD_GRPC_FAILED_PRECONDITION, "a b\xc3\xa9", 2);
    expect((struct answer){.headers = (const char *const[]){":status", "200", "content-type",
                                                            "application/grpc", "grpc-status", "5",
                                                            "grpc-message", "none", NULL}},
           TD_GRPC_NOT_FOUND, "none", 0);
}

static void test_grpc_client_makes_sense_of_bad_answers(void **state)
{
    (void)state;
    const struct td_str none = {"", 0}, half = {"\0\0\0\0\5x", 6};
    static const char *const not_found[] = {":status", "404", NULL};
    static const char *const busy[] = {":status", "503", "content-type", "text/html", NULL};
    static const char *const html[] = {":status", "200", "content-type", "text/html", NULL};
    static const char *const odd[] = {"grpc-status", "42", NULL};
    static const char *const word[] = {"grpc-status", "x", NULL};
    expect((struct answer){.headers = not_found}, TD_GRPC_UNIMPLEMENTED, "HTTP status 404", 0);
    expect((struct answer){.headers = busy, .body = half}, TD_GRPC_UNAVAILABLE, "503", 0);
    expect((struct answer){.headers = html, .body = half}, TD_GRPC_UNKNOWN, "content-type", 0);
    expect((struct answer){.headers = good, .body = none}, TD_GRPC_UNKNOWN, "without a grpc-status",
           0);
    expect((struct answer){.headers = good}, TD_GRPC_UNKNOWN, "without a grpc-status", 0);
    expect((struct answer){.headers = good, .body = none, .trailers = odd}, TD_GRPC_UNKNOWN, "", 0);
    expect((struct answer){.headers = good, .body = none, .trailers = word}, TD_GRPC_UNKNOWN, "",
           0);
    expect((struct answer){.headers = good, .body = half, .trailers = ok}, TD_GRPC_INTERNAL,
           "inside a message", 0);
    expect((struct answer){.headers = good, .body = {"\1\0\0\0\0", 5}, .trailers = ok},
           TD_GRPC_UNIMPLEMENTED, "compressed", 0);
}

static void test_grpc_client_maps_resets(void **state)
{
    (void)state;
    expect((struct answer){.reset = NGHTTP2_REFUSED_STREAM}, TD_GRPC_UNAVAILABLE, "REFUSED", 0);
    expect((struct answer){.reset = NGHTTP2_CANCEL}, TD_GRPC_CANCELLED, "CANCEL", 0);
    expect((struct answer){.reset = NGHTTP2_ENHANCE_YOUR_CALM}, TD_GRPC_RESOURCE_EXHAUSTED, "CALM",
           0);
    expect((struct answer){.reset = NGHTTP2_INTERNAL_ERROR}, TD_GRPC_INTERNAL, "INTERNAL", 0);
}

static void test_grpc_client_refuses_metadata_that_cannot_be_sent(void **state)
{
    (void)state;
    static const struct td_grpc_meta bad[] = {{{"Upper", 5}, {"x", 1}},
                                              {{"grpc-timeout", 12}, {"1S", 2}},
                                              {{"", 0}, {"x", 1}},
                                              {{"a", 1}, {"line\nfeed", 9}}};
    struct td_grpc *client;
    struct td_grpc_callbacks callbacks = {.on_close = NULL};
    assert_int_equal(td_grpc_client_open(&callbacks, NULL, NULL, &client, NULL), TD_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct td_grpc_call_params params = {
            .path = TD_STR("/a.B/C"), .meta = &bad[i], .n_meta = 1};
        struct td_grpc_stream *s;
        struct td_err err;
        assert_int_equal(td_grpc_client_call(client, 1, &params, &s, &err), TD_INVALID);
    }
    assert_int_equal(td_grpc_n_streams(client), 0);
    td_grpc_close(client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grpc_client_takes_statuses_from_trailers_and_from_headers),
        cmocka_unit_test(test_grpc_client_makes_sense_of_bad_answers),
        cmocka_unit_test(test_grpc_client_maps_resets),
        cmocka_unit_test(test_grpc_client_refuses_metadata_that_cannot_be_sent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
