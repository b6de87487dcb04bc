/* The client of `status` and `chat` against a thread that plays a server with canned bytes. */
#include "daemon/cli/client.h"

#include "tests/unit/check.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct canned {
    int listener;
    char url[64];
    const char *answer;
    size_t piece;    /* bytes per write */
    bool stay;       /* keeps the connection open and silent after the answer */
    char seen[4096]; /* what the client sent */
    pthread_t thread;
};

static void *play(void *user)
{
    struct canned *s = user;
    int fd = accept(s->listener, NULL, NULL);
    size_t len = strlen(s->answer), got = 0;

    while (!strstr(s->seen, "\r\n\r\n")) {
        ssize_t n = recv(fd, s->seen + got, sizeof s->seen - 1 - got, 0);

        if (n <= 0)
            break;
        got += (size_t)n;
    }
    for (size_t at = 0; at < len; at += s->piece) {
        size_t n = len - at < s->piece ? len - at : s->piece;

        if (send(fd, s->answer + at, n, MSG_NOSIGNAL) < 0)
            break;
    }
    if (s->stay) {
        char rest[64];

        while (recv(fd, rest, sizeof rest, 0) > 0)
            ;
    }
    close(fd);
    return NULL;
}

static void start(struct canned *s, const char *answer, size_t piece)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;

    memset(s, 0, sizeof *s);
    s->answer = answer;
    s->piece = piece;
    s->listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(s->listener, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(s->listener, 1), 0);
    getsockname(s->listener, (struct sockaddr *)&at, &size);
    snprintf(s->url, sizeof s->url, "http://127.0.0.1:%u/base/", ntohs(at.sin_port));
}

static void finish(struct canned *s)
{
    pthread_join(s->thread, NULL);
    close(s->listener);
}

static enum td_status call(struct canned *s, struct td_client_request *r, int *http_status,
                           struct td_bytes *body, struct td_err *err)
{
    enum td_status status;

    pthread_create(&s->thread, NULL, play, s);
    r->url = s->url;
    r->method = r->method ? r->method : "GET";
    r->path = "/path";
    status = td_client_call(r, http_status, body, err);
    finish(s);
    return status;
}

static void test_client_reads_urls(void **state)
{
    static const struct {
        const char *url, *host, *port, *prefix;
        bool tls;
    } good[] = {{"http://127.0.0.1:8000", "127.0.0.1", "8000", "", false},
                {"HTTPS://example.org", "example.org", "443", "", true},
                {"http://h/", "h", "80", "", false},
                {"http://h:00080/a/b//", "h", "80", "/a/b", false},
                {"https://[::1]:9", "::1", "9", "", true},
                {"http://[fe80::1]/x", "fe80::1", "80", "/x", false}};
    static const char *const bad[] = {"",
                                      "h:8000",
                                      "ftp://h",
                                      "http://",
                                      "http://:80",
                                      "http://h:",
                                      "http://h:0",
                                      "http://h:65536",
                                      "http://h:-1",
                                      "http://h:8x",
                                      "http://h:99999999999999999999",
                                      "http://[::1",
                                      "http://[::1]x",
                                      "http://[]:1",
                                      "http://a b",
                                      "http://u@h",
                                      "http://h/?q",
                                      "http://h/#f",
                                      "http://h/a\r\nX: y"};
    struct td_client_url u;
    struct td_err err;

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        assert_int_equal(td_client_parse_url(good[i].url, &u, &err), TD_OK);
        assert_string_equal(u.host, good[i].host);
        assert_string_equal(u.port, good[i].port);
        assert_string_equal(u.prefix, good[i].prefix);
        assert_int_equal(u.tls, good[i].tls);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(td_client_parse_url(bad[i], &u, &err), TD_INVALID);
}

static void test_client_sends_key_path_and_body(void **state)
{
    struct canned s;
    struct td_client_request r = {.method = "POST", .api_key = "k1", .body = TD_STR("{\"a\":1}")};
    struct td_bytes body = {0};
    struct td_err err;
    int code = 0;

    (void)state;
    start(&s, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 1);
    assert_int_equal(call(&s, &r, &code, &body, &err), TD_OK);
    assert_int_equal(code, 200);
    assert_string_equal(body.data, "ok");
    assert_ptr_equal(strstr(s.seen, "POST /base/path HTTP/1.1\r\nHost: 127.0.0.1:"), s.seen);
    assert_non_null(strstr(s.seen, "\r\nAuthorization: Bearer k1\r\n"));
    assert_non_null(strstr(s.seen, "\r\nContent-Length: 7\r\n\r\n{\"a\":1}"));
    td_bytes_deinit(&body);
}

/* Joins the events with '|'. */
static bool join(struct td_str data, void *user)
{
    struct td_bytes *all = user;

    td_bytes_append_str(all, data);
    td_bytes_append_str(all, TD_STR("|"));
    return !td_str_eq(data, TD_STR("stop"));
}

#define EVENTS                                                                                     \
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: "     \
    "chunked\r\n\r\n"

static void test_client_gives_events_however_they_are_cut(void **state)
{
    static const char answer[] = "HTTP/1.1 100 Continue\r\n\r\n" EVENTS "e\r\ndata: one\n\n: p\r\n"
                                 "22\r\ning\n\ndata:two\r\ndata:  three\nid: 7\n\r\n"
                                 "19\r\n\ndata: \n\nevent: x\n\ndata: \r\n"
                                 "a\r\nlast\n\ndata\r\n0\r\n\r\n";

    (void)state;
    for (size_t piece = 1; piece <= sizeof answer; piece += piece < 8 ? 1 : 40) {
        struct canned s;
        struct td_bytes all = {0}, body = {0};
        struct td_client_request r = {.on_event = join, .user = &all};
        struct td_err err = {0};
        int code = 0;

        start(&s, answer, piece);
        assert_int_equal(call(&s, &r, &code, &body, &err), TD_OK);
        assert_string_equal(all.data, "one|two\n three||last|");
        assert_int_equal(body.len, 0);
        td_bytes_deinit(&all);
    }
}

static void test_client_ends_when_its_event_says_so(void **state)
{
    struct canned s;
    struct td_bytes all = {0}, body = {0};
    struct td_client_request r = {.on_event = join, .user = &all};
    struct td_err err;
    int code = 0;

    (void)state;
    start(&s, EVENTS "22\r\ndata: go\n\ndata: stop\n\ndata: more\n\n\r\n", 4096);
    s.stay = true;
    assert_int_equal(call(&s, &r, &code, &body, &err), TD_CANCELLED);
    assert_string_equal(all.data, "go|stop|");
    td_bytes_deinit(&all);
}

static void test_client_tells_answers_that_break(void **state)
{
    static const struct {
        const char *answer;
        enum td_status status;
    } cases[] = {{"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", TD_PEER_LOST},
                 {"HTTP/1.1 200 OK\r\nContent-Le", TD_PEER_LOST},
                 {"", TD_PEER_LOST},
                 {EVENTS "9\r\ndata: a\n\n\r\n", TD_PEER_LOST},
                 {"SSH-2.0-OpenSSH_9.2\r\n\r\n", TD_PEER_PROTOCOL},
                 {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", TD_PEER_PROTOCOL}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct canned s;
        struct td_bytes body = {0}, all = {0};
        struct td_client_request r = {.on_event = join, .user = &all};
        struct td_err err;
        int code = 0;

        start(&s, cases[i].answer, 4096);
        assert_int_equal(call(&s, &r, &code, &body, &err), cases[i].status);
        assert_int_equal(code, 0);
        td_bytes_deinit(&body);
        td_bytes_deinit(&all);
    }
}

static void test_client_does_not_wait_for_ever(void **state)
{
    struct canned s;
    struct td_bytes body = {0};
    struct td_client_request r = {.patience_ns = 50000000u};
    volatile sig_atomic_t stop = 1;
    struct td_err err;
    int code = 0;

    (void)state;
    start(&s, "HTTP/1.1 200 OK\r\n", 4096);
    s.stay = true;
    assert_int_equal(call(&s, &r, &code, &body, &err), TD_TIMED_OUT);
    start(&s, "HTTP/1.1 200 OK\r\n", 4096);
    s.stay = true;
    r.stop = &stop;
    assert_int_equal(call(&s, &r, &code, &body, &err), TD_CANCELLED);
    td_bytes_deinit(&body);
}

static void test_client_names_a_server_that_is_not_there(void **state)
{
    struct canned s;
    struct td_bytes body = {0};
    struct td_client_request r = {.method = "GET", .path = "/"};
    struct td_err err;
    int code = 0;

    (void)state;
    start(&s, "", 1);
    close(s.listener);
    r.url = s.url;
    assert_int_equal(td_client_call(&r, &code, &body, &err), TD_UNAVAILABLE);
    assert_non_null(strstr(err.cause, s.url));
    r.url = "http://no-such-host.invalid";
    assert_int_equal(td_client_call(&r, &code, &body, &err), TD_UNAVAILABLE);
    assert_non_null(strstr(err.cause, "no-such-host.invalid"));
}

static void test_client_tells_the_servers_words(void **state)
{
    struct td_err err;

    (void)state;
    assert_int_equal(td_client_check(200, TD_STR(""), &err), TD_OK);
    assert_int_equal(td_client_check(404, TD_STR("{\"error\":{\"message\":\"no 'x'\"}}"), &err),
                     TD_NOT_FOUND);
    assert_string_equal(err.cause, "the server answered 404: no 'x'");
    assert_int_equal(td_client_check(429, TD_STR("[]"), &err), TD_BUSY);
    assert_int_equal(td_client_check(503, TD_STR("<html>"), &err), TD_UNAVAILABLE);
    assert_non_null(strstr(err.cause, "503"));
    assert_int_equal(td_client_check(302, TD_STR(""), &err), TD_PEER_PROTOCOL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_client_reads_urls),
        cmocka_unit_test(test_client_sends_key_path_and_body),
        cmocka_unit_test(test_client_gives_events_however_they_are_cut),
        cmocka_unit_test(test_client_ends_when_its_event_says_so),
        cmocka_unit_test(test_client_tells_answers_that_break),
        cmocka_unit_test(test_client_does_not_wait_for_ever),
        cmocka_unit_test(test_client_names_a_server_that_is_not_there),
        cmocka_unit_test(test_client_tells_the_servers_words),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
