#include "tests/unit/proto/grpc_pair.h"

static void test_grpc_unary_call_is_answered_through_any_cut(void **state)
{
    (void)state;
    for (uint32_t seed = 1; seed <= 30; seed++) {
        struct pair *p = pair_open(NULL, NULL, seed);
        p->max_cut = seed % 3 == 0 ? 1 : 200;
        struct call *c = pair_call(p, "/t.T/Echo", 0);
        pair_say(c, "hello");
        td_grpc_stream_half_close(c->s);
        pair_pump(p);
        assert_int_equal(c->n_messages, 1);
        assert_string_equal(c->last.data, "hello");
        assert_int_equal(c->n_closes, 1);
        assert_int_equal(c->code, TD_GRPC_OK);
        assert_int_equal(p->server_calls[0].n_closes, 1);
        assert_int_equal(p->server_calls[0].code, TD_GRPC_OK);
        assert_int_equal(td_grpc_n_streams(p->client), 0);
        assert_int_equal(td_grpc_n_streams(p->server), 0);
        pair_close(p);
    }
}

static void test_grpc_metadata_and_deadline_reach_the_server(void **state)
{
    (void)state;
    struct pair *p = pair_open(NULL, NULL, 5);
    struct call *c = pair_call(p, "/t.T/Hang", 250000000);
    pair_pump(p);
    struct td_grpc_stream *s = p->server_calls[0].s;
    struct td_str value;
    assert_true(td_grpc_stream_metadata(s, "authorization", 0, &value));
    assert_true(td_str_eq(value, TD_STR("Bearer k")));
    assert_false(td_grpc_stream_metadata(s, "authorization", 1, &value));
    assert_true(td_grpc_stream_metadata(s, "x-raw-bin", 0, &value));
    assert_int_equal(value.len, 4);
    assert_memory_equal(value.ptr, "\x01\0\xfe\xff", 4);
    assert_true(td_grpc_stream_metadata(s, ":authority", 0, &value));
    assert_int_equal(td_grpc_stream_deadline_ns(s), p->now_ns + 250000000);
    assert_int_equal(td_grpc_next_tick_ns(p->server), p->now_ns + 250000000);
    td_grpc_tick(p->server, p->now_ns + 249999999);
    pair_pump(p);
    assert_int_equal(c->n_closes, 0);
    td_grpc_tick(p->server, p->now_ns + 250000000);
    pair_pump(p);
    assert_int_equal(c->n_closes, 1);
    assert_int_equal(c->code, TD_GRPC_DEADLINE_EXCEEDED);
    assert_int_equal(p->server_calls[0].code, TD_GRPC_DEADLINE_EXCEEDED);
    pair_close(p);
}

static void test_grpc_client_keeps_its_own_deadline(void **state)
{
    (void)state;
    struct pair *p = pair_open(NULL, NULL, 6);
    struct call *c = pair_call(p, "/t.T/Hang", 1000);
    pair_pump(p);
    td_grpc_tick(p->client, p->now_ns + 1000);
    pair_pump(p);
    assert_int_equal(c->code, TD_GRPC_DEADLINE_EXCEEDED);
    assert_int_equal(c->n_closes, 1);
    assert_int_equal(p->server_calls[0].n_closes, 1);
    assert_int_equal(p->server_calls[0].code, TD_GRPC_CANCELLED);
    pair_close(p);
}

static void test_grpc_bidi_echoes_every_message_and_gives_trailers(void **state)
{
    (void)state;
    struct pair *p = pair_open(NULL, NULL, 7);
    struct call *c = pair_call(p, "/t.T/Bidi", 0);
    uint32_t sum = 0;
    for (int i = 0; i < 300; i++) {
        char text[64];
        int n = snprintf(text, sizeof text, "%.*s", (int)(pair_random(p) % 40),
                         "abcdefghijklmnopqrstuvwxyz0123456789ABCD");
        sum = pair_sum(sum, (struct td_str){text, (size_t)n});
        pair_say(c, text);
        if (i % 7 == 0)
            pair_pump(p);
    }
    td_grpc_stream_half_close(c->s);
    assert_int_equal(td_grpc_stream_send(c->s, TD_STR("late"), NULL), TD_CANCELLED);
    pair_pump(p);
    assert_string_equal(c->note, "seen all");
    assert_int_equal(c->n_raw, 3);
    assert_memory_equal(c->raw, "\0\xff\x10", 3);
    assert_int_equal(c->n_messages, 300);
    assert_int_equal(c->sum, sum);
    assert_int_equal(c->n_headers, 1);
    assert_int_equal(c->code, TD_GRPC_OK);
    assert_string_equal(c->text, "done");
    assert_int_equal(p->server_calls[0].n_half_closes, 1);
    pair_close(p);
}

static void test_grpc_server_stream_respects_back_pressure(void **state)
{
    (void)state;
    struct td_grpc_limits limits;
    td_grpc_limits_default(&limits);
    limits.max_queued_bytes = 40000;
    limits.drain_mark_bytes = 8000;
    limits.window_bytes = 20000;
    struct pair *p = pair_open(&limits, &limits, 8);
    struct call *c = pair_call(p, "/t.T/Stream", 0);
    c->hold = true;
    pair_say(c, "400 3000");
    td_grpc_stream_half_close(c->s);
    pair_pump(p);
    /* The client acknowledges nothing: one window came, the queue is full, the rest is not even
     * built. */
    struct call *served = &p->server_calls[0];
    assert_true(c->n_bytes <= 20000);
    assert_true(c->n_bytes >= 15000);
    assert_true(served->to_send > 300);
    assert_true(td_grpc_stream_queued_bytes(served->s) <= 40000);
    size_t seen = 0;
    while (c->s) {
        size_t n = c->n_bytes - seen;
        assert_true(n > 0);
        seen = c->n_bytes;
        td_grpc_stream_ack(c->s, n);
        pair_pump(p);
    }
    assert_int_equal(c->n_messages, 400);
    assert_int_equal(c->n_bytes, 400 * 3000);
    assert_int_equal(c->sum, served->sent_sum);
    assert_true(served->n_drains > 10);
    assert_int_equal(c->code, TD_GRPC_OK);
    pair_close(p);
}

static void test_grpc_slow_server_application_stops_the_client_but_not_other_calls(void **state)
{
    (void)state;
    struct td_grpc_limits limits;
    td_grpc_limits_default(&limits);
    limits.window_bytes = 10000;
    struct pair *p = pair_open(NULL, &limits, 9);
    pair_pump(p); /* The settings, so that the window counts. */
    struct call *slow = pair_call(p, "/t.T/Slow", 0);
    slow->to_send = 500;
    slow->send_bytes = 900;
    pair_send_more(slow);
    pair_pump(p);
    assert_true(p->server_calls[0].n_bytes <= 10000);
    assert_true(td_grpc_stream_queued_bytes(slow->s) > 400000);
    struct call *quick = pair_call(p, "/t.T/Echo", 0);
    pair_say(quick, "still alive");
    td_grpc_stream_half_close(quick->s);
    pair_pump(p);
    assert_int_equal(quick->n_closes, 1);
    assert_int_equal(quick->code, TD_GRPC_OK);
    p->server_calls[0].hold = false;
    td_grpc_stream_ack(p->server_calls[0].s, p->server_calls[0].n_bytes);
    pair_pump(p);
    assert_int_equal(p->server_calls[0].n_messages, 500);
    pair_close(p);
}

static void test_grpc_message_larger_than_the_window_passes(void **state)
{
    (void)state;
    struct td_grpc_limits limits;
    td_grpc_limits_default(&limits);
    limits.window_bytes = 1000;
    struct pair *p = pair_open(&limits, &limits, 10);
    pair_pump(p);
    struct call *c = pair_call(p, "/t.T/Bidi", 0);
    c->to_send = 3;
    c->send_bytes = 70000;
    pair_send_more(c);
    td_grpc_stream_half_close(c->s);
    pair_pump(p);
    assert_int_equal(c->n_messages, 3);
    assert_int_equal(c->sum, c->sent_sum);
    assert_int_equal(c->code, TD_GRPC_OK);
    pair_close(p);
}

static void test_grpc_many_streams_at_once(void **state)
{
    (void)state;
    struct pair *p = pair_open(NULL, NULL, 11);
    struct call *calls[200];
    for (int i = 0; i < 200; i++) {
        calls[i] = pair_call(p, i % 2 ? "/t.T/Echo" : "/t.T/Stream", 0);
        pair_say(calls[i], i % 2 ? "abc" : "20 500");
        td_grpc_stream_half_close(calls[i]->s);
        if (i % 20 == 0)
            pair_move(p, p->client, p->server);
    }
    pair_pump(p);
    for (int i = 0; i < 200; i++) {
        assert_int_equal(calls[i]->n_closes, 1);
        assert_int_equal(calls[i]->code, TD_GRPC_OK);
        assert_int_equal(calls[i]->n_messages, i % 2 ? 1 : 20);
    }
    assert_int_equal(td_grpc_n_streams(p->server), 0);
    pair_close(p);
}

static void test_grpc_more_calls_than_max_streams_wait_for_a_place(void **state)
{
    (void)state;
    struct td_grpc_limits limits;
    td_grpc_limits_default(&limits);
    limits.max_streams = 4;
    struct pair *p = pair_open(NULL, &limits, 12);
    pair_pump(p);
    struct call *calls[20];
    for (int i = 0; i < 20; i++)
        calls[i] = pair_call(p, "/t.T/Hang", 0);
    pair_pump(p);
    assert_int_equal(p->n_server, 4);
    size_t finished = 0;
    while (finished < 20) {
        td_grpc_stream_finish(p->server_calls[finished].s, TD_GRPC_OK, TD_STR(""));
        finished++;
        pair_pump(p);
    }
    for (int i = 0; i < 20; i++)
        assert_int_equal(calls[i]->code, TD_GRPC_OK);
    pair_close(p);
}

static void test_grpc_errors_carry_code_and_text(void **state)
{
    (void)state;
    struct pair *p = pair_open(NULL, NULL, 13);
    struct call *fail = pair_call(p, "/t.T/Fail", 0);
    struct call *deny = pair_call(p, "/t.T/Deny", 0);
    struct call *none = pair_call(p, "/x.Y/Z", 0);
    td_grpc_stream_half_close(fail->s);
    td_grpc_stream_half_close(deny->s);
    pair_say(none, "payload that nobody reads");
    pair_pump(p);
    assert_int_equal(fail->code, TD_GRPC_NOT_FOUND);
    assert_string_equal(fail->text, "no 100% gr\xc3\xb6\xc3\x9f"
                                    "e\nhere");
    assert_int_equal(deny->code, TD_GRPC_UNAUTHENTICATED);
    assert_string_equal(deny->text, "the key is wrong: 100% of \xc3\xa9");
    assert_int_equal(none->code, TD_GRPC_UNIMPLEMENTED);
    assert_string_equal(none->text, "no method '/x.Y/Z'");
    assert_int_equal(p->n_server, 1);
    assert_int_equal(td_grpc_n_streams(p->server), 0);
    pair_close(p);
}

static void test_grpc_start_sends_headers_before_any_message(void **state)
{
    (void)state;
    struct pair *p = pair_open(NULL, NULL, 14);
    struct call *started = pair_call(p, "/t.T/Started", 0);
    struct call *silent = pair_call(p, "/t.T/Hang", 0);
    pair_pump(p);
    assert_int_equal(started->n_headers, 1);
    assert_int_equal(silent->n_headers, 0);
    td_grpc_stream_finish(p->server_calls[0].s, TD_GRPC_ABORTED, TD_STR("over"));
    pair_pump(p);
    assert_int_equal(started->code, TD_GRPC_ABORTED);
    assert_string_equal(started->text, "over");
    pair_close(p);
}

static void test_grpc_long_status_text_is_cut_between_characters(void **state)
{
    (void)state;
    struct pair *p = pair_open(NULL, NULL, 15);
    struct call *c = pair_call(p, "/t.T/Hang", 0);
    pair_pump(p);
    char text[3000];
    for (size_t i = 0; i < sizeof text; i += 3)
        memcpy(text + i, "\xe2\x82\xac", 3);
    td_grpc_stream_finish(p->server_calls[0].s, TD_GRPC_INTERNAL,
                          (struct td_str){text, sizeof text});
    pair_pump(p);
    assert_int_equal(c->code, TD_GRPC_INTERNAL);
    assert_int_equal(strlen(c->text), 1023);
    assert_true(td_str_is_utf8(td_str_from(c->text)));
    pair_close(p);
}

static void test_grpc_cancel_by_client_closes_both_sides_once(void **state)
{
    (void)state;
    struct pair *p = pair_open(NULL, NULL, 16);
    struct call *c = pair_call(p, "/t.T/Hang", 0);
    pair_say(c, "x");
    pair_pump(p);
    td_grpc_stream_cancel(c->s);
    td_grpc_stream_cancel(c->s);
    pair_pump(p);
    assert_int_equal(c->n_closes, 1);
    assert_int_equal(c->code, TD_GRPC_CANCELLED);
    assert_int_equal(p->server_calls[0].n_closes, 1);
    assert_int_equal(p->server_calls[0].code, TD_GRPC_CANCELLED);
    pair_close(p);
}

static void test_grpc_cancel_by_server_reaches_the_client(void **state)
{
    (void)state;
    struct pair *p = pair_open(NULL, NULL, 17);
    struct call *c = pair_call(p, "/t.T/Hang", 0);
    pair_pump(p);
    struct td_grpc_stream *s = p->server_calls[0].s;
    td_grpc_stream_cancel(s);
    assert_int_equal(td_grpc_stream_send(s, TD_STR("x"), NULL), TD_CANCELLED);
    pair_pump(p);
    assert_int_equal(c->code, TD_GRPC_CANCELLED);
    assert_int_equal(p->server_calls[0].n_closes, 1);
    pair_close(p);
}

static void test_grpc_server_may_finish_before_the_client_has(void **state)
{
    (void)state;
    struct pair *p = pair_open(NULL, NULL, 18);
    struct call *c = pair_call(p, "/t.T/Early", 0);
    c->to_send = 1000;
    c->send_bytes = 2000;
    pair_send_more(c);
    pair_pump(p);
    assert_int_equal(c->n_closes, 1);
    assert_int_equal(c->code, TD_GRPC_OK);
    assert_string_equal(c->text, "enough");
    assert_int_equal(p->server_calls[0].n_messages, 1);
    assert_int_equal(td_grpc_n_streams(p->server), 0);
    struct call *next = pair_call(p, "/t.T/Echo", 0);
    pair_say(next, "the connection lives");
    td_grpc_stream_half_close(next->s);
    pair_pump(p);
    assert_int_equal(next->code, TD_GRPC_OK);
    pair_close(p);
}

static void test_grpc_unary_call_needs_exactly_one_message(void **state)
{
    (void)state;
    struct pair *p = pair_open(NULL, NULL, 19);
    struct call *none = pair_call(p, "/t.T/Echo", 0);
    td_grpc_stream_half_close(none->s);
    struct call *two = pair_call(p, "/t.T/Echo", 0);
    pair_say(two, "a");
    pair_say(two, "b");
    td_grpc_stream_half_close(two->s);
    struct call *empty = pair_call(p, "/t.T/Echo", 0);
    pair_say(empty, "");
    td_grpc_stream_half_close(empty->s);
    pair_pump(p);
    assert_int_equal(none->code, TD_GRPC_UNIMPLEMENTED);
    assert_string_equal(none->text, "the call has no message, expected one");
    assert_int_equal(two->code, TD_GRPC_UNIMPLEMENTED);
    assert_int_equal(empty->code, TD_GRPC_OK);
    assert_int_equal(empty->n_messages, 1);
    assert_int_equal(empty->n_bytes, 0);
    pair_close(p);
}

static void test_grpc_message_over_the_limit_is_refused_on_either_side(void **state)
{
    (void)state;
    struct td_grpc_limits limits;
    td_grpc_limits_default(&limits);
    limits.max_message_bytes = 1000;
    struct pair *p = pair_open(NULL, &limits, 20);
    struct call *c = pair_call(p, "/t.T/Hang", 0);
    c->to_send = 1;
    c->send_bytes = 1001;
    pair_send_more(c);
    pair_pump(p);
    assert_int_equal(c->code, TD_GRPC_RESOURCE_EXHAUSTED);
    assert_string_equal(c->text, "a message of 1001 bytes is over the limit of 1000");
    assert_int_equal(p->server_calls[0].n_closes, 1);
    pair_close(p);

    p = pair_open(&limits, NULL, 21);
    c = pair_call(p, "/t.T/Stream", 0);
    pair_say(c, "1 1001");
    td_grpc_stream_half_close(c->s);
    pair_pump(p);
    assert_int_equal(c->code, TD_GRPC_RESOURCE_EXHAUSTED);
    assert_int_equal(c->n_messages, 0);
    pair_close(p);
}

static void test_grpc_metadata_over_the_limit_is_refused(void **state)
{
    (void)state;
    struct td_grpc_limits limits;
    td_grpc_limits_default(&limits);
    limits.max_header_list_bytes = 100;
    struct pair *p = pair_open(NULL, &limits, 22);
    struct call *c = pair_call(p, "/t.T/Echo", 0);
    td_grpc_stream_half_close(c->s);
    pair_pump(p);
    assert_int_equal(c->code, TD_GRPC_RESOURCE_EXHAUSTED);
    assert_string_equal(c->text, "the metadata is over the limit of 100 bytes");
    assert_int_equal(p->n_server, 0);
    pair_close(p);
}

static void test_grpc_lost_connection_closes_every_call_once(void **state)
{
    (void)state;
    struct pair *p = pair_open(NULL, NULL, 23);
    struct call *a = pair_call(p, "/t.T/Hang", 0);
    struct call *b = pair_call(p, "/t.T/Bidi", 0);
    pair_pump(p);
    td_grpc_close(p->client);
    p->client = NULL;
    assert_int_equal(a->n_closes + b->n_closes, 2);
    assert_int_equal(a->code, TD_GRPC_UNAVAILABLE);
    td_grpc_close(p->server);
    p->server = NULL;
    assert_int_equal(p->server_calls[0].n_closes, 1);
    assert_int_equal(p->server_calls[1].n_closes, 1);
    assert_int_equal(p->server_calls[1].code, TD_GRPC_CANCELLED);
    pair_close(p);
}

static void test_grpc_drain_lets_running_calls_end_and_refuses_new_ones(void **state)
{
    (void)state;
    struct pair *p = pair_open(NULL, NULL, 24);
    struct call *c = pair_call(p, "/t.T/Hang", 0);
    pair_pump(p);
    td_grpc_drain(p->server);
    pair_pump(p);
    assert_false(td_grpc_wants_close(p->server));
    struct td_grpc_stream *s;
    struct td_grpc_call_params params = {.path = TD_STR("/t.T/Echo")};
    assert_int_equal(td_grpc_client_call(p->client, p->now_ns, &params, &s, NULL), TD_UNAVAILABLE);
    td_grpc_stream_finish(p->server_calls[0].s, TD_GRPC_OK, TD_STR(""));
    pair_pump(p);
    assert_int_equal(c->code, TD_GRPC_OK);
    assert_true(td_grpc_wants_close(p->server));
    assert_true(td_grpc_wants_close(p->client));
    pair_close(p);
}

static void test_grpc_drain_does_not_wait_for_a_peer_that_answers_no_ping(void **state)
{
    (void)state;
    struct pair *p = pair_open(NULL, NULL, 25);
    pair_pump(p);
    td_grpc_drain(p->server);
    char buf[256];
    while (td_grpc_pull(p->server, buf, sizeof buf)) {
    }
    assert_false(td_grpc_wants_close(p->server));
    assert_int_equal(td_grpc_next_tick_ns(p->server), p->now_ns + 1000000000);
    td_grpc_tick(p->server, p->now_ns + 1000000000);
    while (td_grpc_pull(p->server, buf, sizeof buf)) {
    }
    assert_true(td_grpc_wants_close(p->server));
    pair_close(p);
}

static void test_grpc_keepalive_notices_a_silent_peer(void **state)
{
    (void)state;
    struct td_grpc_limits limits;
    td_grpc_limits_default(&limits);
    limits.keepalive_ns = 1000;
    limits.keepalive_limit_ns = 500;
    struct pair *p = pair_open(NULL, &limits, 26);
    pair_pump(p);
    td_grpc_tick(p->server, p->now_ns + 1000);
    p->now_ns += 1100;
    pair_pump(p); /* The client answers. */
    td_grpc_tick(p->server, p->now_ns + 900);
    assert_false(td_grpc_wants_close(p->server));
    td_grpc_tick(p->server, p->now_ns + 1000);
    assert_int_equal(td_grpc_next_tick_ns(p->server), p->now_ns + 1500);
    td_grpc_tick(p->server, p->now_ns + 1499);
    assert_false(td_grpc_wants_close(p->server));
    td_grpc_tick(p->server, p->now_ns + 1500);
    assert_true(td_grpc_wants_close(p->server));
    pair_close(p);
}

static void test_grpc_tells_of_output_once_until_it_is_pulled(void **state)
{
    (void)state;
    struct pair *p = pair_open(NULL, NULL, 27);
    struct call *c = pair_call(p, "/t.T/Bidi", 0);
    assert_int_equal(p->n_outputs, 1);
    pair_say(c, "a");
    assert_int_equal(p->n_outputs, 1);
    assert_true(td_grpc_wants_write(p->client));
    pair_pump(p);
    assert_false(td_grpc_wants_write(p->client));
    size_t before = p->n_outputs;
    pair_say(c, "b");
    pair_say(c, "c");
    assert_int_equal(p->n_outputs, before + 1);
    pair_pump(p);
    assert_int_equal(c->n_messages, 3);
    pair_close(p);
}

static void test_grpc_full_queue_refuses_but_an_empty_one_takes_any_message(void **state)
{
    (void)state;
    struct td_grpc_limits limits;
    td_grpc_limits_default(&limits);
    limits.max_queued_bytes = 100;
    struct pair *p = pair_open(&limits, NULL, 28);
    struct call *c = pair_call(p, "/t.T/Bidi", 0);
    char big[500] = {0};
    assert_int_equal(td_grpc_stream_send(c->s, (struct td_str){big, sizeof big}, NULL), TD_OK);
    struct td_err err;
    assert_int_equal(td_grpc_stream_send(c->s, TD_STR("x"), &err), TD_BUSY);
    pair_pump(p);
    assert_int_equal(td_grpc_stream_queued_bytes(c->s), 0);
    pair_say(c, "x");
    pair_pump(p);
    assert_int_equal(c->n_messages, 2);
    pair_close(p);
}

static void test_grpc_rapid_resets_close_the_connection(void **state)
{
    (void)state;
    struct td_grpc_limits limits;
    td_grpc_limits_default(&limits);
    limits.max_resets = 50;
    struct pair *p = pair_open(NULL, &limits, 29);
    for (int i = 0; i < 60 && !td_grpc_wants_close(p->server); i++) {
        struct call *c = pair_call(p, "/t.T/Hang", 0);
        pair_pump(p);
        td_grpc_stream_cancel(c->s);
        pair_pump(p);
        assert_true(i <= 50);
    }
    assert_true(td_grpc_wants_close(p->server));
    pair_close(p);

    /* As many, but slowly: no offence. */
    p = pair_open(NULL, &limits, 30);
    for (int i = 0; i < 120; i++) {
        struct call *c = pair_call(p, "/t.T/Hang", 0);
        pair_pump(p);
        td_grpc_stream_cancel(c->s);
        p->now_ns += 1000000000;
        pair_pump(p);
    }
    assert_false(td_grpc_wants_close(p->server));
    pair_close(p);
}

static void test_grpc_corrupted_traffic_never_breaks_the_rules_of_callbacks(void **state)
{
    (void)state;
    for (uint32_t seed = 1; seed <= 400; seed++) {
        struct pair *p = pair_open(NULL, NULL, seed);
        for (int i = 0; i < 6; i++) {
            static const char *const paths[] = {"/t.T/Fail", "/t.T/Slow", "/t.T/Early"};
            struct call *c = pair_call(p, paths[i % 3], 0);
            pair_say(c, "some bytes to be damaged");
            if (i % 2)
                td_grpc_stream_half_close(c->s);
        }
        /* The preface and the settings pass, what follows is hit. */
        p->max_cut = 60;
        pair_move(p, p->client, p->server);
        p->corrupt = seed % 2 ? p->server : p->client;
        pair_pump(p);
        size_t n = p->n_server;
        td_grpc_close(p->client);
        p->client = NULL;
        for (size_t i = 0; i < p->n_client; i++)
            if (p->client_calls[i].n_closes != 1)
                fail_msg("seed %u: call %zu was closed %zu times at the client", seed, i,
                         p->client_calls[i].n_closes);
        td_grpc_close(p->server);
        p->server = NULL;
        for (size_t i = 0; i < n; i++)
            if (p->server_calls[i].n_closes != 1)
                fail_msg("seed %u: call %zu was closed %zu times", seed, i,
                         p->server_calls[i].n_closes);
        pair_close(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grpc_unary_call_is_answered_through_any_cut),
        cmocka_unit_test(test_grpc_metadata_and_deadline_reach_the_server),
        cmocka_unit_test(test_grpc_client_keeps_its_own_deadline),
        cmocka_unit_test(test_grpc_bidi_echoes_every_message_and_gives_trailers),
        cmocka_unit_test(test_grpc_server_stream_respects_back_pressure),
        cmocka_unit_test(test_grpc_slow_server_application_stops_the_client_but_not_other_calls),
        cmocka_unit_test(test_grpc_message_larger_than_the_window_passes),
        cmocka_unit_test(test_grpc_many_streams_at_once),
        cmocka_unit_test(test_grpc_more_calls_than_max_streams_wait_for_a_place),
        cmocka_unit_test(test_grpc_errors_carry_code_and_text),
        cmocka_unit_test(test_grpc_start_sends_headers_before_any_message),
        cmocka_unit_test(test_grpc_long_status_text_is_cut_between_characters),
        cmocka_unit_test(test_grpc_cancel_by_client_closes_both_sides_once),
        cmocka_unit_test(test_grpc_cancel_by_server_reaches_the_client),
        cmocka_unit_test(test_grpc_server_may_finish_before_the_client_has),
        cmocka_unit_test(test_grpc_unary_call_needs_exactly_one_message),
        cmocka_unit_test(test_grpc_message_over_the_limit_is_refused_on_either_side),
        cmocka_unit_test(test_grpc_metadata_over_the_limit_is_refused),
        cmocka_unit_test(test_grpc_lost_connection_closes_every_call_once),
        cmocka_unit_test(test_grpc_drain_lets_running_calls_end_and_refuses_new_ones),
        cmocka_unit_test(test_grpc_drain_does_not_wait_for_a_peer_that_answers_no_ping),
        cmocka_unit_test(test_grpc_keepalive_notices_a_silent_peer),
        cmocka_unit_test(test_grpc_tells_of_output_once_until_it_is_pulled),
        cmocka_unit_test(test_grpc_full_queue_refuses_but_an_empty_one_takes_any_message),
        cmocka_unit_test(test_grpc_rapid_resets_close_the_connection),
        cmocka_unit_test(test_grpc_corrupted_traffic_never_breaks_the_rules_of_callbacks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
