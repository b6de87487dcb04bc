#include "api_server.h"

#include "daemon/api/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <unistd.h>

static char dir[64];
static char cert[96];
static char key[96];
static char other_key[96];
static struct td_tls *tls;
static struct td_route_table *routes;
static struct api_server *server;

static void handle_echo(struct td_http_request *req, void *user)
{
    (void)user;
    td_http_respond(req, 200, "text/plain", td_http_body(req));
}

static int make_certificates(void **state)
{
    (void)state;
    char command[512];
    snprintf(dir, sizeof(dir), "/tmp/td_test_tls_XXXXXX");
    if (mkdtemp(dir) == NULL) {
        return -1;
    }
    snprintf(cert, sizeof(cert), "%s/cert.pem", dir);
    snprintf(key, sizeof(key), "%s/key.pem", dir);
    snprintf(other_key, sizeof(other_key), "%s/other.pem", dir);
    snprintf(
        command, sizeof(command),
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout %s -out %s "
        "2>/dev/null && openssl genrsa -out %s 2048 2>/dev/null",
        key, cert, other_key);
    return system(command);
}

static int remove_certificates(void **state)
{
    (void)state;
    unlink(cert);
    unlink(key);
    unlink(other_key);
    return rmdir(dir);
}

static void start(bool allow_plaintext, bool with_tls)
{
    struct td_conn_config config;
    td_conn_config_default(&config);
    config.header_timeout_ms = 1000;
    config.linger_ms = 300;
    tls = NULL;
    if (with_tls) {
        assert_int_equal(td_tls_open(cert, key, &tls, NULL), TD_OK);
    }
    assert_int_equal(td_route_table_open(&routes, NULL), TD_OK);
    const struct td_route route = {.method = "POST", .path = "/echo", .handler = handle_echo};
    assert_int_equal(td_route_add(routes, &route, NULL), TD_OK);
    server = api_server_start(&config, &(struct td_conn_service){.tls = tls,
                                                                 .allow_plaintext = allow_plaintext,
                                                                 .routes = routes});
}

static int setup_strict(void **state)
{
    (void)state;
    start(false, true);
    return 0;
}

static int setup_both(void **state)
{
    (void)state;
    start(true, true);
    return 0;
}

static int setup_plain(void **state)
{
    (void)state;
    start(false, false);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    api_server_stop(server);
    td_route_table_close(routes);
    td_tls_close(tls);
    return 0;
}

struct client {
    SSL_CTX *ctx;
    SSL *ssl;
    int fd;
};

/* Connects; false when the handshake fails. `alpn` in wire form, may be empty. */
static bool tls_dial(struct client *c, int max_version, const char *alpn)
{
    c->fd = api_dial(server);
    c->ctx = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_max_proto_version(c->ctx, max_version);
    SSL_CTX_set_security_level(c->ctx, 0);
    c->ssl = SSL_new(c->ctx);
    if (alpn[0] != '\0') {
        SSL_set_alpn_protos(c->ssl, (const unsigned char *)alpn, (unsigned)strlen(alpn));
    }
    SSL_set_fd(c->ssl, c->fd);
    return SSL_connect(c->ssl) == 1;
}

static void tls_close(struct client *c)
{
    SSL_free(c->ssl);
    SSL_CTX_free(c->ctx);
    close(c->fd);
    ERR_clear_error();
}

static void alpn_of(const struct client *c, char out[16])
{
    const unsigned char *name = NULL;
    unsigned n = 0;
    SSL_get0_alpn_selected(c->ssl, &name, &n);
    memcpy(out, n > 0 ? (const char *)name : "", n);
    out[n] = '\0';
}

static void test_tls_serves_http_in_1_3(void **state)
{
    (void)state;
    size_t n = 300000;
    struct client c;
    assert_true(tls_dial(&c, TLS1_3_VERSION, ""));
    assert_int_equal(SSL_version(c.ssl), TLS1_3_VERSION);
    char head[128];
    int head_bytes = snprintf(head, sizeof(head),
                              "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: %zu\r\n"
                              "Connection: close\r\n\r\n",
                              n);
    char *body = malloc(n);
    char *out = calloc(1, n + 4096);
    for (size_t k = 0; k < n; k++) {
        body[k] = (char)('a' + k % 23);
    }
    assert_int_equal(SSL_write(c.ssl, head, head_bytes), head_bytes);
    assert_int_equal(SSL_write(c.ssl, body, (int)n), (int)n);
    size_t total = 0;
    int got;
    while ((got = SSL_read(c.ssl, out + total, (int)(n + 4095 - total))) > 0) {
        total += (size_t)got;
    }
    assert_int_equal(SSL_get_error(c.ssl, got), SSL_ERROR_ZERO_RETURN); /* close_notify came */
    assert_int_equal(api_status_of(out), 200);
    const char *echoed = strstr(out, "\r\n\r\n") + 4;
    assert_int_equal(total - (size_t)(echoed - out), n);
    assert_memory_equal(echoed, body, n);
    free(out);
    free(body);
    tls_close(&c);
    assert_true(api_wait_conns(server, 0));
}

static void test_tls_refuses_old_versions(void **state)
{
    (void)state;
    struct client c;
    assert_false(tls_dial(&c, TLS1_1_VERSION, ""));
    tls_close(&c);
    assert_false(tls_dial(&c, TLS1_2_VERSION, ""));
    tls_close(&c);
    assert_true(api_wait_conns(server, 0));
}

static void test_tls_prefers_http_1_1_and_gives_h2_to_who_has_nothing_else(void **state)
{
    (void)state;
    struct client c;
    char name[16];
    assert_true(tls_dial(&c, TLS1_3_VERSION, "\x02h2\x08http/1.1"));
    alpn_of(&c, name);
    assert_string_equal(name, "http/1.1");
    tls_close(&c);
    assert_true(tls_dial(&c, TLS1_3_VERSION, "\x02h2"));
    alpn_of(&c, name);
    assert_string_equal(name, "h2");
    tls_close(&c);
    assert_false(tls_dial(&c, TLS1_3_VERSION, "\x04spdy"));
    tls_close(&c);
}

static const char plain_request[] = "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n"
                                    "Connection: close\r\n\r\nhi";
static const char plain_get[] = "GET /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

static void test_tls_refuses_plaintext(void **state)
{
    (void)state;
    const char *r = api_exchange(server, plain_get, sizeof(plain_get) - 1);
    assert_int_equal(api_status_of(r), 400);
    assert_non_null(strstr(r, "\"tls_required\""));
    r = api_exchange(server, plain_request, sizeof(plain_request) - 1);
    assert_int_equal(api_status_of(r), 400);
    static const char h2[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    assert_string_equal(api_exchange(server, h2, sizeof(h2) - 1), "");
}

static void test_tls_and_plaintext_share_a_port_when_allowed(void **state)
{
    (void)state;
    const char *r = api_exchange(server, plain_request, sizeof(plain_request) - 1);
    assert_int_equal(api_status_of(r), 200);
    struct client c;
    char out[4096] = "";
    assert_true(tls_dial(&c, TLS1_3_VERSION, ""));
    SSL_write(c.ssl, plain_request, sizeof(plain_request) - 1);
    assert_true(SSL_read(c.ssl, out, sizeof(out) - 1) > 0);
    assert_int_equal(api_status_of(out), 200);
    tls_close(&c);
}

static void test_tls_without_a_certificate_is_answered_by_an_alert(void **state)
{
    (void)state;
    struct client c;
    assert_false(tls_dial(&c, TLS1_3_VERSION, ""));
    assert_int_equal(ERR_GET_REASON(ERR_peek_error()), SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE);
    tls_close(&c);
}

static void test_tls_gives_up_on_a_stalled_or_broken_handshake(void **state)
{
    (void)state;
    int fd = api_dial(server);
    char out[256] = "";
    api_send(fd, "\x16\x03\x01\x02", 4);
    assert_true(api_recv(fd, out, sizeof(out), NULL, 4000));
    close(fd);
    fd = api_dial(server);
    char junk[600];
    memset(junk, 0x55, sizeof(junk));
    memcpy(junk, "\x16\x03\x01\x02\x00", 5);
    api_send(fd, junk, sizeof(junk));
    assert_true(api_recv(fd, out, sizeof(out), NULL, 4000));
    close(fd);
    uint32_t seed = 7;
    print_message("seed %u\n", seed);
    for (int round = 0; round < 50; round++) {
        for (size_t i = 1; i < sizeof(junk); i++) {
            seed = seed * 1664525u + 1013904223u;
            junk[i] = (char)(seed >> 24);
        }
        fd = api_dial(server);
        api_send(fd, junk, sizeof(junk));
        shutdown(fd, SHUT_WR);
        assert_true(api_recv(fd, out, sizeof(out), NULL, 4000));
        close(fd);
    }
    assert_true(api_wait_conns(server, 0));
}

static void test_tls_names_the_file_that_is_wrong(void **state)
{
    (void)state;
    struct td_tls *t = NULL;
    struct td_err err = {0};
    assert_int_equal(td_tls_open("/nonexistent/cert.pem", key, &t, &err), TD_IO);
    assert_non_null(strstr(err.cause, "'/nonexistent/cert.pem'"));
    assert_int_equal(td_tls_open(key, key, &t, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, key));
    assert_int_equal(td_tls_open(cert, cert, &t, &err), TD_INVALID);
    assert_int_equal(td_tls_open(cert, other_key, &t, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, other_key));
    assert_null(t);
    td_tls_close(NULL);
}

#define WITH(test, up) cmocka_unit_test_setup_teardown(test, up, teardown)

int main(void)
{
    td_log_set_level(TD_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        WITH(test_tls_serves_http_in_1_3, setup_strict),
        WITH(test_tls_refuses_old_versions, setup_strict),
        WITH(test_tls_prefers_http_1_1_and_gives_h2_to_who_has_nothing_else, setup_strict),
        WITH(test_tls_refuses_plaintext, setup_strict),
        WITH(test_tls_and_plaintext_share_a_port_when_allowed, setup_both),
        WITH(test_tls_without_a_certificate_is_answered_by_an_alert, setup_plain),
        WITH(test_tls_gives_up_on_a_stalled_or_broken_handshake, setup_strict),
        cmocka_unit_test(test_tls_names_the_file_that_is_wrong),
    };
    return cmocka_run_group_tests(tests, make_certificates, remove_certificates);
}
