/* gRPC calls with every allocation of one side failing in turn, nghttp2's too. Every call that was begun ends, once; one that ends well
 * brought what was sent; a connection that is not broken serves the next call. */
#include "tests/unit/alloc_fault.h"

#include "proto/grpc.h"

#include <stdio.h>

enum { N_CALLS = 3, TIMEOUT_NS = 1000000000 };

struct call {
    struct td_grpc_stream *s; /* NULL once it has ended */
    int n_closes;
    enum td_grpc_code code;
    char got[64];
    size_t n_got;
    char note[16];
};

struct pair {
    struct td_grpc *client, *server;
    struct call calls[N_CALLS + 1]; /* the client's */
    int n_accepted, n_server_closes;
    bool faults_at_server;
    bool broken;
    uint64_t now_ns;
};

/* What follows is done by one side: only the one that has faults to bear allocates in vain. */
static void turn(const struct pair *p, bool server)
{
    if (server == p->faults_at_server)
        alloc_fault_resume();
    else
        alloc_fault_pause();
}

/* ---- the server: sends back what it gets, and a trailer ---- */

static enum td_status on_call(void *user, struct td_grpc_stream *s, struct td_str path,
                              struct td_err *err)
{
    struct pair *p = user;
    struct td_str key;

    if (td_str_eq(path, TD_STR("/t.T/Deny")))
        return td_err_set(err, TD_DENIED, "no");
    assert_true(td_grpc_stream_metadata(s, "x-raw-bin", 0, &key) && key.len == 2);
    p->n_accepted++;
    return TD_OK;
}

static void on_request(void *user, struct td_grpc_stream *s, struct td_str message)
{
    struct td_err err;

    (void)user;
    td_grpc_stream_ack(s, message.len);
    if (td_grpc_stream_send(s, message, &err))
        td_grpc_stream_fail(s, &err);
}

static void on_half_close(void *user, struct td_grpc_stream *s)
{
    struct td_grpc_meta note = {TD_STR("x-note"), TD_STR("all seen")};
    struct td_err err;

    (void)user;
    if (td_grpc_stream_add_trailer(s, note, &err))
        td_grpc_stream_fail(s, &err);
    td_grpc_stream_finish(s, TD_GRPC_OK, TD_STR(""));
}

static void on_server_close(void *user, struct td_grpc_stream *s, enum td_grpc_code code,
                            struct td_str text)
{
    struct pair *p = user;

    (void)s;
    (void)code;
    (void)text;
    p->n_server_closes++;
}

/* ---- the client ---- */

static void on_reply(void *user, struct td_grpc_stream *s, struct td_str message)
{
    struct call *c = td_grpc_stream_user(s);

    (void)user;
    assert_true(c->n_got + message.len < sizeof c->got);
    memcpy(c->got + c->n_got, message.ptr, message.len);
    c->n_got += message.len;
    td_grpc_stream_ack(s, message.len);
}

static void on_client_close(void *user, struct td_grpc_stream *s, enum td_grpc_code code,
                            struct td_str text)
{
    struct call *c = td_grpc_stream_user(s);
    struct td_str note;

    (void)user;
    (void)text;
    if (td_grpc_stream_metadata(s, "x-note", 0, &note))
        snprintf(c->note, sizeof c->note, "%.*s", (int)note.len, note.ptr);
    c->n_closes++;
    c->code = code;
    c->s = NULL;
}

static const struct td_grpc_callbacks server_calls = {.on_call = on_call,
                                                      .on_message = on_request,
                                                      .on_half_close = on_half_close,
                                                      .on_close = on_server_close};
static const struct td_grpc_callbacks client_calls = {.on_message = on_reply,
                                                      .on_close = on_client_close};

/* ---- the path ---- */

static bool move(struct pair *p, bool to_server)
{
    struct td_grpc *from = to_server ? p->client : p->server;
    struct td_grpc *to = to_server ? p->server : p->client;
    char buf[4096];
    size_t n;

    turn(p, !to_server);
    n = td_grpc_pull(from, buf, sizeof buf);
    turn(p, to_server);
    if (n && td_grpc_feed(to, p->now_ns, buf, n, NULL))
        p->broken = true;
    return n > 0;
}

static void pump(struct pair *p)
{
    bool moved = true;

    for (int i = 0; moved && !p->broken && i < 1000; i++) {
        moved = move(p, true);
        moved = !p->broken && move(p, false) ? true : moved;
    }
    if (moved && !p->broken)
        fail_msg("the two sides never fall silent");
}

/* Begins a call that says "hello" twice. */
static void begin(struct pair *p, struct call *c, const char *path)
{
    struct td_grpc_meta meta = {TD_STR("x-raw-bin"), {"\x01\xff", 2}};
    struct td_grpc_call_params params = {
        .path = td_str_from(path), .timeout_ns = TIMEOUT_NS, .meta = &meta, .n_meta = 1, .user = c};

    turn(p, false);
    if (td_grpc_client_call(p->client, p->now_ns, &params, &c->s, NULL)) {
        c->s = NULL;
        return;
    }
    for (int i = 0; c->s && i < 2; i++)
        if (td_grpc_stream_send(c->s, TD_STR("hello"), NULL))
            td_grpc_stream_cancel(c->s);
    if (c->s)
        td_grpc_stream_half_close(c->s);
}

static bool went_well(const struct call *c, bool denied)
{
    if (denied || c->code != TD_GRPC_OK)
        return denied && c->code == TD_GRPC_UNAUTHENTICATED;
    assert_int_equal(c->n_got, 10);
    assert_memory_equal(c->got, "hellohello", 10);
    assert_string_equal(c->note, "all seen");
    return true;
}

/* Time passes: what has not ended by then ends now. */
static void run_out(struct pair *p)
{
    p->now_ns += 2 * (uint64_t)TIMEOUT_NS;
    turn(p, false);
    td_grpc_tick(p->client, p->now_ns);
    turn(p, true);
    td_grpc_tick(p->server, p->now_ns);
    pump(p);
}

static enum td_status exchange(void *arg, struct td_err *err)
{
    struct pair p = {.faults_at_server = *(bool *)arg, .now_ns = 1000};
    bool begun[N_CALLS], all_well = true;
    enum td_status s;

    turn(&p, true);
    s = td_grpc_server_open(&server_calls, NULL, &p, &p.server, err);
    turn(&p, false);
    s = s ? s : td_grpc_client_open(&client_calls, NULL, &p, &p.client, err);
    for (int i = 0; !s && i < N_CALLS; i++) {
        begin(&p, &p.calls[i], i == 2 ? "/t.T/Deny" : "/t.T/Echo");
        begun[i] = p.calls[i].s || p.calls[i].n_closes;
        all_well &= begun[i];
    }
    if (!s) {
        pump(&p);
        run_out(&p);
        for (int i = 0; i < N_CALLS; i++) {
            if (!p.broken)
                assert_int_equal(p.calls[i].n_closes, begun[i]);
            all_well = all_well && p.calls[i].n_closes && went_well(&p.calls[i], i == 2);
        }
        alloc_fault_pause();
        p.faults_at_server =
            !p.faults_at_server; /* from now on nothing fails: neither side resumes */
        if (!p.broken && !td_grpc_wants_close(p.client) && !td_grpc_wants_close(p.server)) {
            struct call *c = &p.calls[N_CALLS];
            struct td_grpc_meta meta = {TD_STR("x-raw-bin"), {"\x01\xff", 2}};
            struct td_grpc_call_params params = {.path = TD_STR("/t.T/Echo"),
                                                 .timeout_ns = TIMEOUT_NS,
                                                 .meta = &meta,
                                                 .n_meta = 1,
                                                 .user = c};
            char buf[4096];

            if (td_grpc_client_call(p.client, p.now_ns, &params, &c->s, NULL) == TD_OK) {
                assert_int_equal(td_grpc_stream_send(c->s, TD_STR("hello"), NULL), TD_OK);
                assert_int_equal(td_grpc_stream_send(c->s, TD_STR("hello"), NULL), TD_OK);
                td_grpc_stream_half_close(c->s);
                for (int i = 0; i < 100; i++) {
                    size_t n = td_grpc_pull(p.client, buf, sizeof buf);

                    if (n)
                        assert_int_equal(td_grpc_feed(p.server, p.now_ns, buf, n, NULL), TD_OK);
                    n = td_grpc_pull(p.server, buf, sizeof buf);
                    if (n)
                        assert_int_equal(td_grpc_feed(p.client, p.now_ns, buf, n, NULL), TD_OK);
                }
                assert_int_equal(c->n_closes, 1);
                assert_true(went_well(c, false));
            }
        }
    }
    alloc_fault_pause();
    td_grpc_close(p.client);
    td_grpc_close(p.server);
    assert_int_equal(p.n_server_closes, p.n_accepted);
    for (int i = 0; !s && i < N_CALLS; i++)
        assert_int_equal(p.calls[i].n_closes, begun[i]);
    alloc_fault_resume();
    if (!s && !all_well)
        s = td_err_set(err, TD_NO_MEMORY, "a call went wrong");
    return s;
}

static void test_grpc_ends_every_call_when_the_server_is_short_of_memory(void **state)
{
    bool at_server = true;

    (void)state;
    (void)alloc_sweep("a server", exchange, &at_server);
}

static void test_grpc_ends_every_call_when_the_client_is_short_of_memory(void **state)
{
    bool at_server = false;

    (void)state;
    (void)alloc_sweep("a client", exchange, &at_server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grpc_ends_every_call_when_the_server_is_short_of_memory),
        cmocka_unit_test(test_grpc_ends_every_call_when_the_client_is_short_of_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
