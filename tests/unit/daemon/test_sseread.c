#include "daemon/cli/sseread.h"
#include "tests/unit/check.h"

#include <string.h>

enum { MAX_EVENTS = 16 };

struct seen {
    char data[MAX_EVENTS][64];
    uint64_t first_ns[MAX_EVENTS];
    size_t n, stop_after; /* 0: never */
};

static bool see(void *user, struct td_str data, uint64_t first_ns)
{
    struct seen *s = user;

    assert_true(s->n < MAX_EVENTS && data.len < sizeof s->data[0]);
    memcpy(s->data[s->n], data.ptr, data.len);
    s->data[s->n][data.len] = '\0';
    s->first_ns[s->n++] = first_ns;
    return s->n != s->stop_after;
}

/* '^' marks the first byte of an event that is expected; it is taken out. */
static const char stream[] = "\xef\xbb\xbf"
                             "data: ignored mark\n\n"
                             ": a comment\n\n"
                             "^data: one\n\n"
                             "^data:two\r\n\r\n"
                             ":keep\r\n^event: x\r\ndata:  three\rid: 7\rdata\rdata: more\r\r"
                             ": between\n^data: {\"a\":\"b: c\"}\n\n\n\n"
                             "datax: not data\n\n"
                             "^data:\n\n"
                             "^data: [DONE]\r\n\r\n"
                             "data: cut off";
static const char *const expected[] = {"ignored mark",     "one", "two",   " three\n\nmore",
                                       "{\"a\":\"b: c\"}", "",    "[DONE]"};
enum { N_EXPECTED = sizeof expected / sizeof expected[0] };

static size_t clean_stream(char *out, size_t first[N_EXPECTED])
{
    size_t n = 0, event = 1;

    first[0] = 0;
    for (const char *c = stream; *c; c++)
        if (*c == '^')
            first[event++] = n;
        else
            out[n++] = *c;
    assert_int_equal(event, N_EXPECTED);
    return n;
}

static void check_seen(const struct seen *s)
{
    assert_int_equal(s->n, N_EXPECTED);
    for (size_t i = 0; i < N_EXPECTED; i++)
        assert_string_equal(s->data[i], expected[i]);
}

static void test_sseread_gives_the_same_events_however_they_are_cut(void **state)
{
    char text[sizeof stream];
    size_t first[N_EXPECTED], n = clean_stream(text, first);
    struct td_sseread r;

    (void)state;
    td_sseread_init(&r, 1024);
    for (size_t cut = 0; cut <= n; cut++) { /* in two pieces */
        struct seen s = {0};

        td_sseread_reset(&r);
        assert_int_equal(td_sseread_feed(&r, (struct td_str){text, cut}, 1, see, &s), TD_OK);
        assert_int_equal(td_sseread_feed(&r, (struct td_str){text + cut, n - cut}, 2, see, &s),
                         TD_OK);
        check_seen(&s);
        for (size_t i = 0; i < N_EXPECTED; i++)
            assert_int_equal(s.first_ns[i], first[i] < cut ? 1 : 2);
    }
    td_sseread_deinit(&r);
}

static void test_sseread_knows_when_the_first_byte_of_an_event_came(void **state)
{
    char text[sizeof stream];
    size_t first[N_EXPECTED], n = clean_stream(text, first);
    struct td_sseread r;
    struct seen s = {0};

    (void)state;
    td_sseread_init(&r, 1024);
    for (size_t i = 0; i < n; i++) /* byte by byte, each at its own time */
        assert_int_equal(td_sseread_feed(&r, (struct td_str){text + i, 1}, 1000 + i, see, &s),
                         TD_OK);
    check_seen(&s);
    for (size_t i = 0; i < N_EXPECTED; i++)
        assert_int_equal(s.first_ns[i], 1000 + first[i]);
    td_sseread_deinit(&r);
}

static void test_sseread_stops_when_told_and_refuses_what_is_too_long(void **state)
{
    struct td_str two = TD_STR("data: a\n\ndata: b\n\n");
    struct seen s = {.stop_after = 1};
    struct td_sseread r;

    (void)state;
    td_sseread_init(&r, 32);
    assert_int_equal(td_sseread_feed(&r, two, 1, see, &s), TD_CANCELLED);
    assert_int_equal(s.n, 1);
    td_sseread_reset(&r);
    for (int i = 0; i < 6; i++) /* a line that does not end */
        if (td_sseread_feed(&r, TD_STR("data: x"), 1, see, &s))
            break;
    assert_int_equal(td_sseread_feed(&r, TD_STR("data: x"), 1, see, &s), TD_TOO_LARGE);
    td_sseread_reset(&r);
    assert_int_equal(
        td_sseread_feed(&r, TD_STR("data: 0123456789\ndata: 0123456789\n"), 1, see, &s), TD_OK);
    assert_int_equal(td_sseread_feed(&r, TD_STR("data: 0123456789\n"), 1, see, &s), TD_TOO_LARGE);
    td_sseread_deinit(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sseread_gives_the_same_events_however_they_are_cut),
        cmocka_unit_test(test_sseread_knows_when_the_first_byte_of_an_event_came),
        cmocka_unit_test(test_sseread_stops_when_told_and_refuses_what_is_too_long),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
