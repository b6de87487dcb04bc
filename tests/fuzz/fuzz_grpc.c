/* A gRPC connection that is fed what the peer sends. The first byte chooses: bit 0 the client side instead of the server's,
 * bit 1 that the preface and an empty SETTINGS frame come first by themselves, the other bits how the input is cut.
 * Whatever comes, every call that was accepted ends exactly once. */
#include "tests/fuzz/fuzz.h"

#include "proto/grpc.h"

static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0";

struct peer {
    int n_open;   /* accepted and not yet closed */
    int n_queued; /* sent to us and not acknowledged by slow calls */
};

/* The method's last letter says how the server deals with the call. */
static char letter(const struct td_grpc_stream *s)
{
    struct td_str path;

    return td_grpc_stream_metadata(s, ":path", 0, &path) && path.len ? path.ptr[path.len - 1] : 'E';
}

static enum td_status on_call(void *user, struct td_grpc_stream *s, struct td_str path,
                              struct td_err *err)
{
    struct peer *p = user;
    struct td_str value;

    fuzz_touch(path);
    if (td_grpc_stream_metadata(s, "authorization", 0, &value))
        fuzz_touch(value);
    if (td_grpc_stream_metadata(s, "x-raw-bin", 0, &value))
        fuzz_touch(value);
    if (!td_str_starts(path, TD_STR("/t.T/")))
        return td_err_set(err, TD_UNSUPPORTED, "no method '%.*s'", (int)path.len, path.ptr);
    p->n_open++;
    if (letter(s) == 'U')
        td_grpc_stream_set_unary(s);
    if (letter(s) == 'S')
        td_grpc_stream_start(s);
    if (letter(s) == 'F')
        td_grpc_stream_finish(s, TD_GRPC_OK, TD_STR("at once"));
    return TD_OK;
}

static void on_http(void *user, struct td_grpc_stream *s, struct td_str method, struct td_str path,
                    struct td_str body)
{
    ((struct peer *)user)->n_open++;
    fuzz_touch(method);
    fuzz_touch(path);
    fuzz_touch(body);
    td_grpc_stream_http_reply(s, 200, TD_STR("text/plain"), body);
}

static void on_message(void *user, struct td_grpc_stream *s, struct td_str message)
{
    struct td_err err = {0};

    fuzz_touch(message);
    if (letter(s) == 'W')
        ((struct peer *)user)->n_queued++; /* never acknowledged */
    else
        td_grpc_stream_ack(s, message.len);
    if (letter(s) == 'B')
        (void)td_grpc_stream_send(s, message, &err);
    if (letter(s) == 'X')
        td_grpc_stream_cancel(s);
}

static void on_half_close(void *user, struct td_grpc_stream *s)
{
    struct td_grpc_meta meta = {TD_STR("x-raw-bin"), {"\0\xff", 2}};

    (void)user;
    if (letter(s) == 'B')
        (void)td_grpc_stream_add_trailer(s, meta, NULL);
    td_grpc_stream_finish(s, TD_GRPC_OK, TD_STR("done"));
}

static void on_close(void *user, struct td_grpc_stream *s, enum td_grpc_code code,
                     struct td_str text)
{
    struct peer *p = user;

    (void)s;
    (void)code;
    fuzz_touch(text);
    p->n_open--;
    FUZZ_CHECK(p->n_open >= 0);
}

static void on_headers(void *user, struct td_grpc_stream *s)
{
    struct td_str value;

    (void)user;
    if (td_grpc_stream_metadata(s, "content-type", 0, &value))
        fuzz_touch(value);
}

static void pull_all(struct td_grpc *conn)
{
    char buf[512];

    for (int i = 0; i < 1000 && td_grpc_pull(conn, buf, sizeof buf) > 0; i++)
        continue;
}

static struct td_grpc *open_client(struct peer *p, const struct td_grpc_limits *limits)
{
    static const struct td_grpc_callbacks callbacks = {
        .on_headers = on_headers, .on_message = on_message, .on_close = on_close};
    struct td_grpc_call_params params = {.path = TD_STR("/t.T/B"), .timeout_ns = 5000000000};
    struct td_grpc *conn = NULL;
    struct td_grpc_stream *s;

    FUZZ_CHECK(td_grpc_client_open(&callbacks, limits, p, &conn, NULL) == TD_OK);
    for (int i = 0; i < 2; i++) {
        FUZZ_CHECK(td_grpc_client_call(conn, 1, &params, &s, NULL) == TD_OK);
        p->n_open++;
        FUZZ_CHECK(td_grpc_stream_send(s, TD_STR("hello"), NULL) == TD_OK);
        td_grpc_stream_half_close(s);
    }
    pull_all(conn);
    return conn;
}

static struct td_grpc *open_server(struct peer *p, const struct td_grpc_limits *limits)
{
    static const struct td_grpc_callbacks callbacks = {.on_call = on_call,
                                                       .on_http = on_http,
                                                       .on_message = on_message,
                                                       .on_half_close = on_half_close,
                                                       .on_close = on_close};
    struct td_grpc *conn = NULL;

    FUZZ_CHECK(td_grpc_server_open(&callbacks, limits, p, &conn, NULL) == TD_OK);
    return conn;
}

/* False when the connection is over. */
static bool feed_all(struct td_grpc *conn, struct td_str in, size_t cut, uint64_t *now_ns)
{
    struct td_err err = {0};

    while (in.len > 0) {
        size_t n = in.len < cut ? in.len : cut;
        enum td_status status = td_grpc_feed(conn, *now_ns, in.ptr, n, &err);

        fuzz_check_err(status, &err);
        pull_all(conn);
        if (status || td_grpc_wants_close(conn))
            return false;
        in = (struct td_str){in.ptr + n, in.len - n};
        *now_ns += 100000000;
        if (*now_ns >= td_grpc_next_tick_ns(conn))
            td_grpc_tick(conn, *now_ns);
    }
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct peer p = {0};
    struct td_grpc_limits limits;
    uint8_t choice;
    struct td_str in = fuzz_split(data, size, &choice);
    size_t cut = choice >> 2 ? (size_t)(choice >> 2) * 3 : SIZE_MAX;

    td_grpc_limits_default(&limits);
    limits.max_message_bytes = 4096; /* small, so that they are reached */
    limits.max_queued_bytes = 2048;
    limits.drain_mark_bytes = 256;
    limits.max_header_list_bytes = 2048;
    limits.max_http_body_bytes = 1024;
    limits.max_streams = 8;
    limits.max_resets = 8;
    limits.keepalive_ns = 1000000000;
    struct td_grpc *conn = choice & 1 ? open_client(&p, &limits) : open_server(&p, &limits);
    struct td_str first = {preface + (choice & 1 ? 24 : 0),
                           sizeof preface - 1 - (choice & 1 ? 24 : 0)};

    uint64_t now_ns = 1;

    if ((!(choice & 2) || feed_all(conn, first, SIZE_MAX, &now_ns)) &&
        feed_all(conn, in, cut, &now_ns)) {
        td_grpc_drain(conn);
        pull_all(conn);
        td_grpc_tick(conn, now_ns + 60000000000);
        pull_all(conn);
    }
    td_grpc_close(conn);
    FUZZ_CHECK(p.n_open == 0);
    return 0;
}
