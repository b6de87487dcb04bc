#include "daemon/engine/ending.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { A = 1, B = 2, C = 3, AB = 4, DOT = 5, EOS = 6 };

static const uint32_t eos[1] = {EOS};

static struct td_tokenizer *open_tokenizer(void)
{
    static const char json[] =
        "{\"model\":{\"type\":\"BPE\",\"merges\":[[\"a\",\"b\"]],"
        "\"vocab\":{\"a\":1,\"b\":2,\"c\":3,\"ab\":4,\".\":5}},"
        "\"added_tokens\":[{\"id\":6,\"content\":\"<end>\",\"special\":true}]}";
    struct td_tokenizer *tok = NULL;
    struct td_err err = {0};

    if (td_tokenizer_open_json((struct td_str){json, sizeof(json) - 1}, (struct td_str){NULL, 0},
                               &tok, &err))
        fail_msg("%s", err.cause);
    return tok;
}

static struct td_request make_request(char *stop)
{
    struct td_request r;

    td_request_init(&r);
    r.max_tokens = 10;
    if (stop) {
        r.n_stops = 1;
        r.stops[0] = stop; /* borrowed: the request is not deinitialised */
        r.stop_bytes[0] = strlen(stop);
    }
    return r;
}

/* Feeds ids until the end; checks where it came, how, and what was shown. */
static void check(const struct td_request *r, const uint32_t *ids, uint32_t n, uint32_t want_n,
                  enum td_finish want, const char *text)
{
    struct td_tokenizer *tok = open_tokenizer();
    struct td_bytes shown = {0};
    struct td_ending end;
    enum td_finish finish = TD_FINISH_NONE;
    uint32_t i = 0;

    assert_int_equal(td_ending_init(&end, r, eos, 1, tok, NULL), TD_OK);
    while (i < n && finish == TD_FINISH_NONE) {
        assert_int_equal(td_ending_judge(&end, ids[i], i + 1, &finish, &shown), TD_OK);
        i++;
    }
    assert_int_equal(td_ending_flush(&end, &shown), TD_OK);
    assert_int_equal(i, want_n);
    assert_int_equal(finish, want);
    assert_string_equal(shown.data ? shown.data : "", text);
    td_ending_deinit(&end);
    td_ending_deinit(&end);
    td_bytes_deinit(&shown);
    td_tokenizer_close(tok);
}

static void test_ending_cuts_before_the_stop_string(void **state)
{
    const uint32_t ids[6] = {A, C, AB, C, A, B};
    struct td_request r = make_request("bc");

    (void)state;
    check(&r, ids, 6, 4, TD_FINISH_STOP, "aca");
    r.include_stop = true;
    check(&r, ids, 6, 4, TD_FINISH_STOP, "acabc");
    r = make_request("b..");
    check(&r, ids, 6, 6, TD_FINISH_NONE, "acabcab"); /* the tail held back comes with the flush */
}

static void test_ending_looks_for_stops_after_min_tokens_only(void **state)
{
    const uint32_t ids[6] = {AB, C, AB, C, AB, C};
    struct td_request r = make_request("bc");

    (void)state;
    r.min_tokens = 2;
    check(&r, ids, 6, 4, TD_FINISH_STOP, "abca");
    r.min_tokens = 3; /* "b" of token 3 does not count towards a stop string either */
    check(&r, ids, 6, 6, TD_FINISH_STOP, "abcabca");
}

static void test_ending_hides_end_tokens_and_stop_ids(void **state)
{
    const uint32_t ids[4] = {A, DOT, C, EOS};
    struct td_request r = make_request(NULL);

    (void)state;
    check(&r, ids, 4, 4, TD_FINISH_STOP, "a.c");
    r.ignore_eos = true;
    check(&r, ids, 4, 4, TD_FINISH_NONE, "a.c"); /* a special token writes nothing anyway */
    r.n_stop_ids = 1;
    r.stop_ids[0] = DOT;
    check(&r, ids, 4, 2, TD_FINISH_STOP, "a");
    r.include_stop = true;
    check(&r, ids, 4, 2, TD_FINISH_STOP, "a.");
    r = make_request(NULL);
    r.max_tokens = 3;
    check(&r, ids, 4, 3, TD_FINISH_LENGTH, "a.c");
}

static void test_ending_bans_ids_before_min_tokens(void **state)
{
    struct td_request r = make_request(NULL);
    struct td_ending end;
    const uint32_t *banned;
    uint32_t n;

    (void)state;
    r.min_tokens = 2;
    r.n_stop_ids = 1;
    r.stop_ids[0] = DOT;
    assert_int_equal(td_ending_init(&end, &r, eos, 1, NULL, NULL), TD_OK);
    banned = td_ending_banned(&end, 1, &n);
    assert_int_equal(n, 2);
    assert_int_equal(banned[0], EOS);
    assert_int_equal(banned[1], DOT);
    td_ending_banned(&end, 2, &n);
    assert_int_equal(n, 0);
    td_ending_deinit(&end);
    r.ignore_eos = true;
    assert_int_equal(td_ending_init(&end, &r, eos, 1, NULL, NULL), TD_OK);
    banned = td_ending_banned(&end, 0, &n);
    assert_int_equal(n, 1);
    assert_int_equal(banned[0], DOT);
    td_ending_deinit(&end);
}

static void test_ending_refuses_stop_strings_without_a_tokenizer(void **state)
{
    struct td_request r = make_request("bc");
    struct td_ending end;
    struct td_err err;

    (void)state;
    assert_int_equal(td_ending_init(&end, &r, eos, 1, NULL, &err), TD_UNSUPPORTED);
    assert_non_null(strstr(err.cause, "stop has 1 strings"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ending_cuts_before_the_stop_string),
        cmocka_unit_test(test_ending_looks_for_stops_after_min_tokens_only),
        cmocka_unit_test(test_ending_hides_end_tokens_and_stop_ids),
        cmocka_unit_test(test_ending_bans_ids_before_min_tokens),
        cmocka_unit_test(test_ending_refuses_stop_strings_without_a_tokenizer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
