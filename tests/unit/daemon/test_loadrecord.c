#include "daemon/cli/loadrecord.h"
#include "tests/unit/check.h"

#include <math.h>
#include <string.h>

static bool take(struct td_loadrecord *r, const char *data, uint64_t at, bool *finished)
{
    return td_loadrecord_take_event(r, td_str_from(data), at, finished);
}

static void test_loadrecord_times_a_chat_from_its_first_text_to_its_end(void **state)
{
    struct td_loadrecord r = {0};
    bool finished = false;

    (void)state;
    assert_true(take(&r, "{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}",
                     1000000, &finished));
    assert_int_equal(r.first_ns, 0); /* a role is no token */
    assert_true(
        take(&r, "{\"choices\":[{\"delta\":{\"reasoning_content\":\"h\"}}]}", 3000000, &finished));
    assert_true(take(&r, "{\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}", 5000000,
                     &finished));
    assert_true(take(&r, "{\"choices\":[{\"delta\":{\"content\":\"b\"},\"finish_reason\":null}]}",
                     8500000, &finished));
    assert_false(finished);
    assert_true(take(&r, "{\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}", 9000000,
                     &finished));
    assert_true(finished);
    assert_true(take(&r,
                     "{\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":3,"
                     "\"prompt_tokens_details\":{\"cached_tokens\":4}}}",
                     9500000, &finished));
    assert_true(take(&r, "[DONE]", 9600000, &finished));
    assert_int_equal(r.end, TD_LOADRECORD_OK);
    assert_int_equal(r.first_ns, 3000000);
    assert_int_equal(r.last_text_ns, 8500000);
    assert_int_equal(r.last_ns, 9000000);
    assert_int_equal(r.n_events, 3);
    assert_int_equal(r.n_gaps, 2);
    assert_true(fabsf(r.gap_ms[0] - 2.0f) < 1e-6f && fabsf(r.gap_ms[1] - 3.5f) < 1e-6f);
    assert_true(r.has_usage);
    assert_int_equal(r.n_input, 11);
    assert_int_equal(r.n_output, 3);
    assert_int_equal(r.n_cached, 4);
    td_loadrecord_deinit(&r);
}

static void test_loadrecord_reads_completions(void **state)
{
    struct td_loadrecord r = {0};
    bool finished = false;

    (void)state;
    for (uint64_t i = 1; i <= 100; i++)
        assert_true(
            take(&r, "{\"choices\":[{\"text\":\"x\",\"index\":0}]}", i * 1000000, &finished));
    assert_true(take(&r, "{\"choices\":[{\"text\":\"\",\"finish_reason\":\"stop\"}]}", 200000000,
                     &finished));
    assert_true(finished);
    assert_int_equal(r.n_events, 100);
    assert_int_equal(r.n_gaps, 99);
    assert_int_equal(r.first_ns, 1000000);
    assert_int_equal(r.last_ns, 200000000);
    assert_false(r.has_usage);
    td_loadrecord_deinit(&r);
}

static void test_loadrecord_takes_a_token_without_text_for_one(void **state)
{
    static const struct {
        const char *event;
        uint32_t n_events;
    } cases[] = {
        {"{\"choices\":[{\"text\":\"\",\"finish_reason\":null}]}", 1},
        {"{\"choices\":[{\"text\":\"\",\"finish_reason\":\"stop\"}]}", 0},
        {"{\"choices\":[{\"text\":\"x\",\"finish_reason\":\"stop\"}]}", 1},
        {"{\"choices\":[{\"delta\":{\"content\":\"\"}}]}", 1},
        {"{\"choices\":[{\"delta\":{\"content\":null}}]}", 0},
        {"{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}", 0},
        {"{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"x\"}}]}", 1},
        {"{\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}", 0},
        {"{\"choices\":[]}", 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct td_loadrecord r = {0};
        bool finished = false;

        assert_true(take(&r, cases[i].event, 5, &finished));
        assert_int_equal(r.n_events, cases[i].n_events);
        assert_int_equal(r.first_ns, cases[i].n_events ? 5 : 0);
        assert_int_equal(finished, strstr(cases[i].event, "stop") != NULL);
        td_loadrecord_deinit(&r);
    }
}

static void test_loadrecord_tells_an_error_from_a_broken_stream(void **state)
{
    static const struct {
        const char *data, *reason;
        enum td_loadrecord_end end;
    } cases[] = {
        {"{\"error\":{\"message\":\"the group was lost\"}}", "the group was lost",
         TD_LOADRECORD_ERROR},
        {"{\"error\":\"no object\"}", "without a message", TD_LOADRECORD_ERROR},
        {"{\"choices\":", "no JSON", TD_LOADRECORD_BROKEN},
        {"[]", "no JSON object", TD_LOADRECORD_BROKEN},
        {"", "no JSON", TD_LOADRECORD_BROKEN},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct td_loadrecord r = {0};
        bool finished = false;

        assert_false(take(&r, cases[i].data, 1, &finished));
        assert_int_equal(r.end, cases[i].end);
        assert_non_null(strstr(r.reason, cases[i].reason));
        td_loadrecord_deinit(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loadrecord_times_a_chat_from_its_first_text_to_its_end),
        cmocka_unit_test(test_loadrecord_reads_completions),
        cmocka_unit_test(test_loadrecord_takes_a_token_without_text_for_one),
        cmocka_unit_test(test_loadrecord_tells_an_error_from_a_broken_stream),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
