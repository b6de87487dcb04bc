#include "daemon/api/http1_request.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

struct td_http_request *td_http_request_new(struct td_http_conn *owner, struct td_bytes *head)
{
    struct td_http_request *req = calloc(1, sizeof(*req));
    if (req == NULL) {
        return NULL;
    }
    req->owner = owner;
    req->head = *head;
    *head = (struct td_bytes){0};
    td_arena_init(&req->arena, 1024, 0);
    return req;
}

void td_http_request_free(struct td_http_request *req)
{
    td_bytes_deinit(&req->extra);
    td_bytes_deinit(&req->body);
    td_arena_deinit(&req->arena);
    td_bytes_deinit(&req->path);
    td_bytes_deinit(&req->head);
    free(req);
}

static bool name_is(struct td_str have, const char *want)
{
    return have.len == strlen(want) && strncasecmp(have.ptr, want, have.len) == 0;
}

size_t td_http_request_count(const struct td_http_request *req, const char *name)
{
    size_t n = 0;
    for (size_t i = 0; i < req->n_headers; i++) {
        n += name_is(req->headers[i].name, name);
    }
    return n;
}

uint32_t td_http_key(const struct td_http_request *req)
{
    return req->route->auth == NULL
               ? 0
               : td_auth_which(req->route->auth, td_http_header(req, "authorization"),
                               td_http_header(req, "x-api-key"));
}

struct td_str td_http_header(const struct td_http_request *req, const char *name)
{
    for (size_t i = 0; i < req->n_headers; i++) {
        if (name_is(req->headers[i].name, name)) {
            struct td_str v = req->headers[i].value;
            while (v.len > 0 && (v.ptr[v.len - 1] == ' ' || v.ptr[v.len - 1] == '\t')) {
                v.len--;
            }
            return v.ptr != NULL ? v : TD_STR("");
        }
    }
    return (struct td_str){NULL, 0};
}

bool td_http_request_value_is(const struct td_http_request *req, const char *name,
                              const char *value)
{
    return name_is(td_http_header(req, name), value);
}

static bool is_token_char(char c)
{
    return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') ||
           (c != '\0' && strchr("!#$%&'*+-.^_`|~", c) != NULL);
}

static bool has_control_byte(struct td_str s, bool tab_is_one)
{
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.ptr[i];
        if (c == 0x7f || (c < 0x20 && (c != '\t' || tab_is_one))) {
            return true;
        }
    }
    return false;
}

bool td_http_request_is_clean(const struct td_http_request *req)
{
    for (size_t i = 0; i < req->n_headers; i++) {
        struct td_str name = req->headers[i].name;
        for (size_t j = 0; j < name.len; j++) {
            if (!is_token_char(name.ptr[j])) {
                return false;
            }
        }
        if (name.len == 0 || has_control_byte(req->headers[i].value, false)) {
            return false;
        }
    }
    return !has_control_byte(req->url, true) && memchr(req->url.ptr, ' ', req->url.len) == NULL;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Decodes %XX in place of `out` [text.len + 1]; false for a broken escape or a NUL. */
static bool percent_decode(struct td_str text, bool plus_is_space, char *out, size_t *n_out)
{
    size_t n = 0;
    for (size_t i = 0; i < text.len; i++) {
        char c = text.ptr[i];
        if (c == '%') {
            int hi = i + 1 < text.len ? hex_digit(text.ptr[i + 1]) : -1;
            int lo = i + 2 < text.len ? hex_digit(text.ptr[i + 2]) : -1;
            if (hi < 0 || lo < 0 || (hi == 0 && lo == 0)) {
                return false;
            }
            c = (char)(hi * 16 + lo);
            i += 2;
        } else if (c == '+' && plus_is_space) {
            c = ' ';
        }
        out[n++] = c;
    }
    out[n] = '\0';
    *n_out = n;
    return true;
}

static const char *find_byte(struct td_str s, char c)
{
    return s.len > 0 ? memchr(s.ptr, c, s.len) : NULL;
}

enum td_status td_http_request_split_url(struct td_http_request *req)
{
    struct td_str url = req->url;
    const char *schemes[] = {"http://", "https://"};
    for (size_t i = 0; i < 2; i++) { /* the absolute form, RFC 9112 3.2.2 */
        size_t n = strlen(schemes[i]);
        if (url.len > n && strncasecmp(url.ptr, schemes[i], n) == 0) {
            url.ptr += n;
            url.len -= n;
            const char *slash = find_byte(url, '/');
            url = slash != NULL ? (struct td_str){slash, (size_t)(url.ptr + url.len - slash)}
                                : TD_STR("/");
            break;
        }
    }
    const char *hash = find_byte(url, '#');
    if (hash != NULL) {
        url.len = (size_t)(hash - url.ptr);
    }
    const char *mark = find_byte(url, '?');
    if (mark != NULL) {
        req->query = (struct td_str){mark + 1, (size_t)(url.ptr + url.len - mark - 1)};
        url.len = (size_t)(mark - url.ptr);
    }
    bool is_star = req->is_options && td_str_eq(url, TD_STR("*"));
    if (url.len == 0 || (url.ptr[0] != '/' && !is_star)) {
        return TD_INVALID;
    }
    if (td_bytes_reserve(&req->path, url.len + 1) != TD_OK) {
        return TD_NO_MEMORY;
    }
    return percent_decode(url, false, req->path.data, &req->path.len) ? TD_OK : TD_INVALID;
}

bool td_http_query(struct td_http_request *req, const char *name, struct td_str *value)
{
    struct td_str rest = req->query;
    struct td_str wanted = td_str_from(name);
    while (rest.len > 0) {
        const char *amp = find_byte(rest, '&');
        struct td_str pair = {rest.ptr, amp != NULL ? (size_t)(amp - rest.ptr) : rest.len};
        size_t step = pair.len + (amp != NULL ? 1 : 0);
        rest.ptr += step;
        rest.len -= step;
        const char *equals = find_byte(pair, '=');
        struct td_str key = {pair.ptr, equals != NULL ? (size_t)(equals - pair.ptr) : pair.len};
        if (!td_str_eq(key, wanted)) {
            continue;
        }
        struct td_str raw = TD_STR("");
        if (equals != NULL) {
            raw = (struct td_str){equals + 1, pair.len - key.len - 1};
        }
        char *text = td_arena_alloc(&req->arena, raw.len + 1);
        size_t n = 0;
        if (text == NULL || !percent_decode(raw, true, text, &n)) {
            return false;
        }
        *value = (struct td_str){text, n};
        return true;
    }
    return false;
}

struct td_str td_http_method(const struct td_http_request *req)
{
    return req->method;
}

struct td_str td_http_path(const struct td_http_request *req)
{
    return td_bytes_str(&req->path);
}

struct td_str td_http_tail(const struct td_http_request *req)
{
    struct td_str pattern = td_str_from(req->route->path);
    struct td_str path = td_bytes_str(&req->path);
    if (pattern.ptr[pattern.len - 1] != '*') {
        return TD_STR("");
    }
    return (struct td_str){path.ptr + pattern.len - 1, path.len - (pattern.len - 1)};
}

struct td_str td_http_body(const struct td_http_request *req)
{
    return td_bytes_str(&req->body);
}

void td_http_on_close(struct td_http_request *req, td_http_notify_fn on_close, void *user)
{
    req->on_close = on_close;
    req->on_close_user = user;
}

void td_http_set_header(struct td_http_request *req, const char *name, const char *value)
{
    for (const char *p = name; *p != '\0'; p++) {
        if ((unsigned char)*p <= 0x20 || *p == ':' || (unsigned char)*p >= 0x7f) {
            return;
        }
    }
    for (const char *p = value; *p != '\0'; p++) {
        if (((unsigned char)*p < 0x20 && *p != '\t') || *p == 0x7f) {
            return; /* a line break would begin another header */
        }
    }
    size_t n = strlen(name) + strlen(value) + 4;
    if (n > TD_HTTP_MAX_EXTRA_BYTES - req->extra.len ||
        td_bytes_reserve(&req->extra, n + 1) != TD_OK) {
        return;
    }
    td_bytes_appendf(&req->extra, "%s: %s\r\n", name, value);
}

void td_http_request_add_preflight(struct td_http_request *req, const char *origin,
                                   const char *methods)
{
    struct td_str wanted = td_http_header(req, "access-control-request-headers");
    if (origin == NULL || td_http_header(req, "access-control-request-method").len == 0) {
        return;
    }
    td_http_set_header(req, "Access-Control-Allow-Methods", methods);
    td_http_set_header(req, "Access-Control-Max-Age", "600");
    char *names = td_arena_strndup(&req->arena, wanted.ptr != NULL ? wanted.ptr : "", wanted.len);
    if (names != NULL && wanted.len > 0 && wanted.len <= 1024) {
        td_http_set_header(req, "Access-Control-Allow-Headers", names);
    }
}

static const char *reason_of(int http_status)
{
    static const struct {
        int status;
        const char *reason;
    } reasons[] = {{200, "OK"},
                   {201, "Created"},
                   {202, "Accepted"},
                   {204, "No Content"},
                   {400, "Bad Request"},
                   {401, "Unauthorized"},
                   {403, "Forbidden"},
                   {404, "Not Found"},
                   {405, "Method Not Allowed"},
                   {408, "Request Timeout"},
                   {409, "Conflict"},
                   {413, "Content Too Large"},
                   {415, "Unsupported Media Type"},
                   {417, "Expectation Failed"},
                   {422, "Unprocessable Content"},
                   {429, "Too Many Requests"},
                   {431, "Request Header Fields Too Large"},
                   {500, "Internal Server Error"},
                   {501, "Not Implemented"},
                   {503, "Service Unavailable"},
                   {504, "Gateway Timeout"},
                   {505, "HTTP Version Not Supported"}};
    for (size_t i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++) {
        if (reasons[i].status == http_status) {
            return reasons[i].reason;
        }
    }
    return "Status";
}

enum td_status td_http_request_format_head(const struct td_http_request *req, int http_status,
                                           const char *content_type, size_t length,
                                           const char *cors_origin, struct td_bytes *out)
{
    char date[40];
    struct tm utc;
    time_t now = time(NULL);
    gmtime_r(&now, &utc);
    strftime(date, sizeof(date), "%a, %d %b %Y %H:%M:%S GMT", &utc); /* RFC 9110 5.6.7 */
    enum td_status status = td_bytes_appendf(out, "HTTP/1.1 %d %s\r\nDate: %s\r\n", http_status,
                                             reason_of(http_status), date);
    if (status == TD_OK && content_type != NULL) {
        status = td_bytes_appendf(out, "Content-Type: %s\r\n", content_type);
    }
    if (status == TD_OK && length != SIZE_MAX && http_status != 204 && http_status != 304) {
        status = td_bytes_appendf(out, "Content-Length: %zu\r\n", length);
    } else if (status == TD_OK && length == SIZE_MAX && req->is_chunked) {
        status = td_bytes_append_str(out, TD_STR("Transfer-Encoding: chunked\r\n"));
    }
    if (status == TD_OK && !req->keep_alive) {
        status = td_bytes_append_str(out, TD_STR("Connection: close\r\n"));
    } else if (status == TD_OK && req->http_minor == 0) {
        status = td_bytes_append_str(out, TD_STR("Connection: keep-alive\r\n"));
    }
    if (status == TD_OK && cors_origin != NULL) {
        status = td_bytes_appendf(out, "Access-Control-Allow-Origin: %s\r\n%s", cors_origin,
                                  strcmp(cors_origin, "*") != 0 ? "Vary: Origin\r\n" : "");
    }
    if (status == TD_OK) {
        status = td_bytes_append_str(out, td_bytes_str(&req->extra));
    }
    return status == TD_OK ? td_bytes_append(out, "\r\n", 2) : status;
}
