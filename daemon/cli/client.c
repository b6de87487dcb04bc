#include "daemon/cli/client.h"

#include "daemon/api/json.h"
#include "kernels/base/clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <llhttp.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SLICE_MS = 100, READ_BYTES = 16384 };

/* One request under way. */
struct exchange {
    const struct td_client_request *r;
    struct td_client_url url;
    struct td_err *err;
    int fd;
    SSL_CTX *tls_context;
    SSL *tls; /* NULL: plain TCP */

    llhttp_t parser;
    struct td_bytes *body;
    struct td_bytes field, value; /* of the header that is arriving */
    struct td_bytes line, event;  /* server-sent events: the line and the data that are arriving */
    bool is_events, is_complete;
    enum td_status failed; /* decided inside a callback of the parser */
};

/* ---- the url ---- */

static enum td_status url_error(const char *url, const char *what, struct td_err *err)
{
    return td_err_set(err, TD_INVALID,
                      "the url '%.120s' %s: expected http://host:port or https://host:port", url,
                      what);
}

enum td_status td_client_parse_url(const char *url, struct td_client_url *out, struct td_err *err)
{
    struct td_client_url u = {.tls = strncasecmp(url, "https://", 8) == 0};
    const char *at = url + (u.tls ? 8 : 7), *end, *rest, *port = NULL;
    size_t len;

    if (!u.tls && strncasecmp(url, "http://", 7) != 0)
        return url_error(url, "begins with neither http:// nor https://", err);
    for (const char *c = url; *c; c++)
        if ((unsigned char)*c <= ' ' || *c == 0x7f || *c == '?' || *c == '#' || *c == '@')
            return url_error(url, "holds a character that does not belong there", err);
    rest = at + strcspn(at, "/");
    if (*at == '[') {
        at++;
        end = memchr(at, ']', (size_t)(rest - at));
        if (!end || (end + 1 != rest && end[1] != ':'))
            return url_error(url, "has no address between [ and ]", err);
        port = end + 1 == rest ? NULL : end + 2;
    } else {
        end = memchr(at, ':', (size_t)(rest - at));
        port = end ? end + 1 : NULL;
        end = end ? end : rest;
    }
    len = (size_t)(end - at);
    if (len == 0 || len >= sizeof u.host)
        return url_error(url, "names no host", err);
    memcpy(u.host, at, len);
    if (port) {
        char *stop;
        unsigned long n = strtoul(port, &stop, 10);

        if (stop == port || stop != rest || *port < '0' || *port > '9' || n == 0 || n > 65535)
            return url_error(url, "has a port that is no number from 1 to 65535", err);
        snprintf(u.port, sizeof u.port, "%lu", n);
    } else {
        strcpy(u.port, u.tls ? "443" : "80");
    }
    len = strlen(rest);
    while (len > 0 && rest[len - 1] == '/')
        len--;
    if (len >= sizeof u.prefix)
        return url_error(url, "is too long", err);
    memcpy(u.prefix, rest, len);
    *out = u;
    return TD_OK;
}

/* ---- the connection ---- */

static uint64_t deadline(const struct exchange *x)
{
    return td_clock_now_ns() + (x->r->patience_ns ? x->r->patience_ns : 60000000000u);
}

/* Waits until the socket is ready for `events`, in slices, so that a signal between two of them is seen. */
static enum td_status wait_for(const struct exchange *x, short events, uint64_t until_ns)
{
    struct pollfd p = {.fd = x->fd, .events = events};

    for (;;) {
        if (x->r->stop && *x->r->stop)
            return td_err_set(x->err, TD_CANCELLED, "stopped");
        if (poll(&p, 1, SLICE_MS) > 0)
            return TD_OK;
        if (td_clock_now_ns() >= until_ns)
            return td_err_set(x->err, TD_TIMED_OUT, "the server at %s said nothing for too long",
                              x->r->url);
    }
}

static enum td_status connect_to(struct exchange *x, const struct addrinfo *a)
{
    int code = 0, one = 1;
    socklen_t size = sizeof code;
    enum td_status s;

    x->fd = socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol);
    if (x->fd < 0)
        return td_err_set(x->err, TD_IO, "no socket: %s", strerror(errno));
    setsockopt(x->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(x->fd, a->ai_addr, a->ai_addrlen) != 0) {
        code = errno;
        if (code == EINPROGRESS || code == EINTR) {
            s = wait_for(x, POLLOUT, deadline(x));
            if (s)
                return s;
            code = 0;
            getsockopt(x->fd, SOL_SOCKET, SO_ERROR, &code, &size);
        }
    }
    return code ? td_err_set(x->err, TD_UNAVAILABLE, "no server answers at %s: %s", x->r->url,
                             strerror(code))
                : TD_OK;
}

static enum td_status open_socket(struct exchange *x)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list = NULL;
    int code = getaddrinfo(x->url.host, x->url.port, &hints, &list);
    enum td_status s = TD_UNAVAILABLE;

    if (code)
        return td_err_set(x->err, TD_UNAVAILABLE, "the host '%s' of --url: %s", x->url.host,
                          gai_strerror(code));
    for (const struct addrinfo *a = list; a && s && s != TD_CANCELLED; a = a->ai_next) {
        if (x->fd >= 0)
            close(x->fd);
        s = connect_to(x, a);
    }
    freeaddrinfo(list);
    return s;
}

/* The topmost reason that OpenSSL noted, for people. */
static const char *tls_reason(void)
{
    const char *reason = ERR_reason_error_string(ERR_peek_last_error());

    return reason ? reason : "the connection was closed";
}

static enum td_status open_tls(struct exchange *x)
{
    X509_VERIFY_PARAM *verify;
    struct in6_addr address;
    bool is_address = inet_pton(AF_INET, x->url.host, &address) == 1 ||
                      inet_pton(AF_INET6, x->url.host, &address) == 1;

    x->tls_context = SSL_CTX_new(TLS_client_method());
    if (!x->tls_context)
        return td_err_set(x->err, TD_IO, "no TLS: %s", tls_reason());
    SSL_CTX_set_min_proto_version(x->tls_context, TLS1_2_VERSION);
    SSL_CTX_set_verify(x->tls_context, SSL_VERIFY_PEER, NULL);
    if (x->r->ca_file ? !SSL_CTX_load_verify_file(x->tls_context, x->r->ca_file)
                      : !SSL_CTX_set_default_verify_paths(x->tls_context))
        return td_err_set(x->err, TD_INVALID, "--ssl-certfile '%.120s': %s",
                          x->r->ca_file ? x->r->ca_file : "", tls_reason());
    verify = SSL_CTX_get0_param(x->tls_context);
    /* What is trusted may be the server's own certificate, whoever signed it. */
    X509_VERIFY_PARAM_set_flags(verify, X509_V_FLAG_PARTIAL_CHAIN);
    if (is_address ? !X509_VERIFY_PARAM_set1_ip_asc(verify, x->url.host)
                   : !X509_VERIFY_PARAM_set1_host(verify, x->url.host, 0))
        return td_err_set(x->err, TD_NO_MEMORY, "no memory for TLS");
    x->tls = SSL_new(x->tls_context);
    if (!x->tls || !SSL_set_fd(x->tls, x->fd) ||
        (!is_address && !SSL_set_tlsext_host_name(x->tls, x->url.host)))
        return td_err_set(x->err, TD_NO_MEMORY, "no memory for TLS");
    return TD_OK;
}

/* After an operation of OpenSSL that did not succeed: waits for what it wants and returns TD_OK to try again. *ended is set
 * when the peer has closed. */
static enum td_status tls_again(struct exchange *x, int result, bool *ended)
{
    long verified = SSL_get_verify_result(x->tls);

    switch (SSL_get_error(x->tls, result)) {
    case SSL_ERROR_WANT_READ:
        return wait_for(x, POLLIN, deadline(x));
    case SSL_ERROR_WANT_WRITE:
        return wait_for(x, POLLOUT, deadline(x));
    case SSL_ERROR_ZERO_RETURN:
        *ended = true;
        return TD_OK;
    default:
        if (verified != X509_V_OK)
            return td_err_set(
                x->err, TD_DENIED,
                "the certificate of %s is not trusted: %s (--ssl-certfile names one that is)",
                x->r->url, X509_verify_cert_error_string(verified));
        return td_err_set(x->err, TD_PEER_LOST, "TLS with %s failed: %s%s", x->r->url, tls_reason(),
                          SSL_is_init_finished(x->tls) ? "" : " (is it an http:// server?)");
    }
}

static enum td_status handshake(struct exchange *x)
{
    bool ended = false;
    enum td_status s = TD_OK;

    while (!s && !ended) {
        int result;

        ERR_clear_error();
        result = SSL_connect(x->tls);
        if (result == 1)
            return TD_OK;
        s = tls_again(x, result, &ended);
    }
    return s ? s
             : td_err_set(x->err, TD_PEER_LOST, "%s closed the connection during the TLS handshake",
                          x->r->url);
}

static enum td_status send_all(struct exchange *x, struct td_str data)
{
    bool ended = false;
    enum td_status s = TD_OK;

    while (!s && !ended && data.len > 0) {
        ssize_t n;

        if (x->tls) {
            ERR_clear_error();
            n = SSL_write(x->tls, data.ptr, data.len > 1 << 20 ? 1 << 20 : (int)data.len);
            if (n <= 0)
                s = tls_again(x, (int)n, &ended);
        } else {
            n = send(x->fd, data.ptr, data.len, MSG_NOSIGNAL);
            if (n < 0 && (errno == EAGAIN || errno == EINTR))
                s = wait_for(x, POLLOUT, deadline(x));
            else if (n < 0)
                /* The server may have refused the request before it was whole: its answer can still be read. */
                ended = true;
        }
        if (n > 0) {
            data.ptr += n;
            data.len -= (size_t)n;
        }
    }
    return s;
}

/* *n 0: the server has closed. */
static enum td_status receive(struct exchange *x, char *out, size_t cap, size_t *n)
{
    bool ended = false;
    enum td_status s = TD_OK;

    while (!s && !ended) {
        ssize_t got;

        if (x->tls) {
            ERR_clear_error();
            got = SSL_read(x->tls, out, (int)cap);
            if (got <= 0)
                s = tls_again(x, (int)got, &ended);
        } else {
            got = recv(x->fd, out, cap, 0);
            if (got == 0)
                ended = true;
            else if (got < 0 && (errno == EAGAIN || errno == EINTR))
                s = wait_for(x, POLLIN, deadline(x));
            else if (got < 0)
                s = td_err_set(x->err, TD_PEER_LOST, "the connection to %s broke: %s", x->r->url,
                               strerror(errno));
        }
        if (got > 0) {
            *n = (size_t)got;
            return TD_OK;
        }
    }
    *n = 0;
    return s;
}

/* ---- the answer ---- */

static int fail(struct exchange *x, enum td_status s)
{
    x->failed = s;
    return HPE_USER;
}

static int keep(struct exchange *x, struct td_bytes *where, const char *at, size_t n)
{
    enum td_status s = td_bytes_append(where, at, n);

    return s ? fail(x, td_err_set(x->err, s, "the answer of %s is too large: %d bytes at most",
                                  x->r->url, TD_CLIENT_MAX_BODY_BYTES))
             : 0;
}

static int on_field(llhttp_t *parser, const char *at, size_t n)
{
    struct exchange *x = parser->data;

    return keep(x, &x->field, at, n);
}

static int on_value(llhttp_t *parser, const char *at, size_t n)
{
    struct exchange *x = parser->data;

    return keep(x, &x->value, at, n);
}

static int on_value_complete(llhttp_t *parser)
{
    struct exchange *x = parser->data;
    struct td_str type = TD_STR("text/event-stream");

    if (x->field.len == 12 && strncasecmp(x->field.data, "content-type", 12) == 0 &&
        x->value.len >= type.len && strncasecmp(x->value.data, type.ptr, type.len) == 0)
        x->is_events = x->r->on_event != NULL;
    td_bytes_clear(&x->field);
    td_bytes_clear(&x->value);
    return 0;
}

/* An empty line ends an event; of its fields only "data" is used (WHATWG HTML, section 9.2.6). */
static int take_line(struct exchange *x)
{
    struct td_str line = td_bytes_str(&x->line), data = TD_STR("data:");
    bool go_on = true;

    if (line.len > 0 && line.ptr[line.len - 1] == '\r')
        line.len--;
    if (line.len == 0) {
        struct td_str event = td_bytes_str(&x->event);

        if (event.len > 0 && event.ptr[event.len - 1] == '\n') {
            event.len--;
            go_on = x->r->on_event(event, x->r->user);
        }
        td_bytes_clear(&x->event);
    } else if (td_str_starts(line, data)) {
        size_t skip = data.len + (line.len > data.len && line.ptr[data.len] == ' ' ? 1 : 0);

        if (keep(x, &x->event, line.ptr + skip, line.len - skip) || keep(x, &x->event, "\n", 1))
            return HPE_USER;
    }
    td_bytes_clear(&x->line);
    return go_on ? 0 : fail(x, td_err_set(x->err, TD_CANCELLED, "stopped"));
}

static int on_body(llhttp_t *parser, const char *at, size_t n)
{
    struct exchange *x = parser->data;
    int code = 0;

    if (!x->is_events)
        return keep(x, x->body, at, n);
    while (n > 0 && !code) {
        const char *end = memchr(at, '\n', n);
        size_t len = end ? (size_t)(end - at) : n;

        code = keep(x, &x->line, at, len);
        if (end && !code)
            code = take_line(x);
        at += end ? len + 1 : len;
        n -= end ? len + 1 : len;
    }
    return code;
}

/* 100 (Continue) and its like come before the answer. */
static int on_complete(llhttp_t *parser)
{
    struct exchange *x = parser->data;

    x->is_complete = llhttp_get_status_code(parser) >= 200;
    return x->is_complete ? HPE_PAUSED : 0;
}

static enum td_status read_answer(struct exchange *x)
{
    llhttp_settings_t settings;
    char in[READ_BYTES];
    enum td_status s = TD_OK;

    llhttp_settings_init(&settings);
    settings.on_header_field = on_field;
    settings.on_header_value = on_value;
    settings.on_header_value_complete = on_value_complete;
    settings.on_body = on_body;
    settings.on_message_complete = on_complete;
    llhttp_init(&x->parser, HTTP_RESPONSE, &settings);
    x->parser.data = x;
    while (!s && !x->is_complete) {
        size_t n;
        llhttp_errno_t code;

        s = receive(x, in, sizeof in, &n);
        if (s)
            break;
        code = n ? llhttp_execute(&x->parser, in, n) : llhttp_finish(&x->parser);
        if (x->failed)
            s = x->failed;
        else if (n == 0 && !x->is_complete)
            s = td_err_set(x->err, TD_PEER_LOST, "the server at %s ended its answer too early",
                           x->r->url);
        else if (code != HPE_OK && !x->is_complete)
            s = td_err_set(x->err, TD_PEER_PROTOCOL, "what %s answers is not HTTP/1.1: %s",
                           x->r->url, llhttp_get_error_reason(&x->parser));
    }
    return s;
}

/* ---- the request ---- */

static enum td_status send_request(struct exchange *x)
{
    const struct td_client_request *r = x->r;
    const struct td_client_url *u = &x->url;
    bool bracket = strchr(u->host, ':') != NULL;
    struct td_bytes out = {0};
    enum td_status s;

    s = td_bytes_appendf(&out,
                         "%s %s%s HTTP/1.1\r\nHost: %s%s%s:%s\r\nUser-Agent: tensord/" TD_VERSION
                         "\r\nAccept: application/json, text/event-stream\r\nConnection: close\r\n",
                         r->method, u->prefix, r->path, bracket ? "[" : "", u->host,
                         bracket ? "]" : "", u->port);
    if (!s && r->api_key)
        s = td_bytes_appendf(&out, "Authorization: Bearer %s\r\n", r->api_key);
    if (!s && r->body.len)
        s = td_bytes_appendf(&out, "Content-Type: application/json\r\nContent-Length: %zu\r\n",
                             r->body.len);
    s = s ? s : td_bytes_append_str(&out, TD_STR("\r\n"));
    s = s ? s : td_bytes_append_str(&out, r->body);
    s = s ? td_err_set(x->err, s, "no memory for the request") : send_all(x, td_bytes_str(&out));
    td_bytes_deinit(&out);
    return s;
}

enum td_status td_client_call(const struct td_client_request *request, int *http_status,
                              struct td_bytes *body, struct td_err *err)
{
    struct exchange x = {.r = request, .err = err, .fd = -1, .body = body};
    struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
    enum td_status s = td_client_parse_url(request->url, &x.url, err);

    if (s)
        return s;
    sigaction(SIGPIPE, &ignore, &before);
    body->cap_limit = x.field.cap_limit = x.value.cap_limit = TD_CLIENT_MAX_BODY_BYTES;
    x.line.cap_limit = x.event.cap_limit = TD_CLIENT_MAX_BODY_BYTES;
    s = open_socket(&x);
    if (!s && x.url.tls) {
        s = open_tls(&x);
        s = s ? s : handshake(&x);
    }
    s = s ? s : send_request(&x);
    s = s ? s : read_answer(&x);
    if (!s)
        *http_status = llhttp_get_status_code(&x.parser);
    SSL_free(x.tls);
    SSL_CTX_free(x.tls_context);
    if (x.fd >= 0)
        close(x.fd);
    td_bytes_deinit(&x.field);
    td_bytes_deinit(&x.value);
    td_bytes_deinit(&x.line);
    td_bytes_deinit(&x.event);
    sigaction(SIGPIPE, &before, NULL);
    return s;
}

enum td_status td_client_check(int http_status, struct td_str body, struct td_err *err)
{
    static const struct {
        int http_status;
        enum td_status status;
    } known[] = {{400, TD_INVALID},     {401, TD_DENIED},   {403, TD_DENIED},
                 {404, TD_NOT_FOUND},   {405, TD_INVALID},  {408, TD_TIMED_OUT},
                 {413, TD_TOO_LARGE},   {429, TD_BUSY},     {501, TD_UNSUPPORTED},
                 {503, TD_UNAVAILABLE}, {504, TD_TIMED_OUT}};
    enum td_status status = TD_PEER_PROTOCOL;
    json_t *root = NULL;
    const char *message = NULL;

    if (http_status >= 200 && http_status < 300)
        return TD_OK;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (known[i].http_status == http_status)
            status = known[i].status;
    if (td_json_parse(body, 0, &root, NULL) == TD_OK)
        message = json_string_value(json_object_get(json_object_get(root, "error"), "message"));
    if (message)
        td_err_set(err, status, "the server answered %d: %s", http_status, message);
    else
        td_err_set(err, status, "the server answered %d without an error that can be read",
                   http_status);
    json_decref(root);
    return status;
}
