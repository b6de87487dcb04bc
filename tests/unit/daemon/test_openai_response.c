#include "daemon/api/json.h"
#include "daemon/api/openai.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

static const struct td_openai_reply chat = {
    .kind = TD_OPENAI_CHAT,
    .id = {"chatcmpl-1", 10},
    .model = {"m\"1", 3},
    .created = 1700000000,
};
static const struct td_openai_reply text = {
    .kind = TD_OPENAI_COMPLETION,
    .id = {"cmpl-1", 6},
    .model = {"m", 1},
    .created = 1700000000,
};
static const struct td_openai_usage usage = {7, 5, 4};

static json_t *read_back(struct td_bytes *out)
{
    json_t *value = NULL;
    struct td_err err = {0};
    assert_true(td_str_is_utf8(td_bytes_str(out)));
    assert_int_equal(td_json_parse(td_bytes_str(out), 0, &value, &err), TD_OK);
    td_bytes_deinit(out);
    return value;
}

/* Follows a path such as "choices.0.message.content"; fails the test when it leads nowhere. */
static json_t *at(json_t *value, const char *path)
{
    char part[64];
    while (*path != '\0') {
        size_t n = strcspn(path, ".");
        memcpy(part, path, n);
        part[n] = '\0';
        value = json_is_array(value) ? json_array_get(value, (size_t)(part[0] - '0'))
                                     : json_object_get(value, part);
        if (value == NULL) {
            fail_msg("nothing at '%s'", part);
        }
        path += n + (path[n] == '.');
    }
    return value;
}

static void assert_text(json_t *value, const char *path, const char *expected)
{
    assert_true(json_is_string(at(value, path)));
    assert_string_equal(json_string_value(at(value, path)), expected);
}

static void test_openai_response_of_chat_has_the_required_fields(void **state)
{
    (void)state;
    struct td_bytes out = {0};
    struct td_openai_choice c = {.text = TD_STR("hi \"you\"\n\xff"), .finish = TD_FINISH_LENGTH};
    assert_int_equal(td_openai_response_write(&chat, &c, 1, &usage, &out), TD_OK);
    json_t *v = read_back(&out);
    assert_text(v, "id", "chatcmpl-1");
    assert_text(v, "object", "chat.completion");
    assert_text(v, "model", "m\"1");
    assert_int_equal(json_integer_value(at(v, "created")), 1700000000);
    assert_int_equal(json_integer_value(at(v, "choices.0.index")), 0);
    assert_text(v, "choices.0.message.role", "assistant");
    assert_text(v, "choices.0.message.content", "hi \"you\"\n\xef\xbf\xbd");
    assert_true(json_is_null(at(v, "choices.0.message.refusal")));
    assert_true(json_is_null(at(v, "choices.0.logprobs")));
    assert_text(v, "choices.0.finish_reason", "length");
    assert_int_equal(json_integer_value(at(v, "usage.prompt_tokens")), 7);
    assert_int_equal(json_integer_value(at(v, "usage.completion_tokens")), 5);
    assert_int_equal(json_integer_value(at(v, "usage.total_tokens")), 12);
    assert_int_equal(json_integer_value(at(v, "usage.prompt_tokens_details.cached_tokens")), 4);
    json_decref(v);
}

static void test_openai_response_shows_chat_logprobs_with_bytes(void **state)
{
    (void)state;
    struct td_bytes out = {0};
    const struct td_openai_top top[] = {{5, TD_STR("a"), -0.5f},
                                        {6, TD_STR("\xe2\x82"), -INFINITY}};
    const struct td_openai_logprob lp[] = {
        {.token = TD_STR("a"), .logprob = -0.5f, .n_top = 2, .top = top},
        {.token = TD_STR("b"), .logprob = -1.25f}};
    struct td_openai_choice c = {.text = TD_STR("ab"),
                                 .has_logprobs = true,
                                 .logprobs = lp,
                                 .n_logprobs = 2,
                                 .finish = TD_FINISH_STOP};
    assert_int_equal(td_openai_response_write(&chat, &c, 1, &usage, &out), TD_OK);
    json_t *v = read_back(&out);
    assert_true(json_is_null(at(v, "choices.0.logprobs.refusal")));
    assert_int_equal(json_array_size(at(v, "choices.0.logprobs.content")), 2);
    assert_text(v, "choices.0.logprobs.content.0.token", "a");
    assert_int_equal(json_integer_value(at(v, "choices.0.logprobs.content.0.bytes.0")), 97);
    assert_text(v, "choices.0.logprobs.content.0.top_logprobs.1.token", "\xef\xbf\xbd\xef\xbf\xbd");
    assert_int_equal(
        json_integer_value(at(v, "choices.0.logprobs.content.0.top_logprobs.1.bytes.1")), 0x82);
    assert_true(json_number_value(at(v, "choices.0.logprobs.content.0.top_logprobs.1.logprob")) ==
                -9999);
    assert_true(json_number_value(at(v, "choices.0.logprobs.content.1.logprob")) == -1.25);
    assert_int_equal(json_array_size(at(v, "choices.0.logprobs.content.1.top_logprobs")), 0);
    json_decref(v);
}

static void test_openai_response_of_completion_has_its_logprobs(void **state)
{
    (void)state;
    struct td_bytes out = {0};
    const struct td_openai_top top[] = {
        {1, TD_STR("x"), -0.1f}, {2, TD_STR("x"), -2}, {3, TD_STR("\xe2\x82"), -3}};
    const struct td_openai_logprob lp[] = {
        {.token = TD_STR("q"), .logprob = -4, .text_offset = 3, .n_top = 3, .top = top},
        {.token = TD_STR("\xff"), .logprob = -5, .text_offset = 4}};
    struct td_openai_choice c[2] = {{.text = TD_STR("q"),
                                     .has_logprobs = true,
                                     .logprobs = lp,
                                     .n_logprobs = 2,
                                     .finish = TD_FINISH_STOP},
                                    {.index = 1, .text = TD_STR(""), .finish = TD_FINISH_LENGTH}};
    assert_int_equal(td_openai_response_write(&text, c, 2, &usage, &out), TD_OK);
    json_t *v = read_back(&out);
    assert_text(v, "object", "text_completion");
    assert_text(v, "choices.0.text", "q");
    assert_text(v, "choices.0.logprobs.tokens.0", "q");
    assert_text(v, "choices.0.logprobs.tokens.1", "bytes:\\xff");
    assert_int_equal(json_integer_value(at(v, "choices.0.logprobs.text_offset.1")), 4);
    json_t *first = at(v, "choices.0.logprobs.top_logprobs.0");
    assert_int_equal(json_object_size(first), 3); /* x once, the bytes, and the chosen token */
    assert_true(json_number_value(at(first, "x")) > -0.2);
    assert_true(json_number_value(at(first, "bytes:\\xe2\\x82")) == -3);
    assert_true(json_number_value(at(first, "q")) == -4);
    assert_int_equal(json_object_size(at(v, "choices.0.logprobs.top_logprobs.1")), 1);
    assert_true(json_is_null(at(v, "choices.1.logprobs")));
    assert_text(v, "choices.1.finish_reason", "length");
    json_decref(v);
}

static void test_openai_response_shows_the_prompt_with_its_logprobs(void **state)
{
    (void)state;
    struct td_bytes out = {0};
    const struct td_openai_top top[] = {{7, TD_STR("x"), -0.5f}, {8, TD_STR("y"), -1}};
    const struct td_openai_logprob lp[] = {{.token = TD_STR("a"), .id = 3, .is_first = true},
                                           {.token = TD_STR("y"),
                                            .id = 8,
                                            .logprob = -1,
                                            .rank = 2,
                                            .text_offset = 1,
                                            .n_top = 2,
                                            .top = top},
                                           {.token = TD_STR("z"),
                                            .id = 9,
                                            .logprob = -4,
                                            .rank = 17,
                                            .text_offset = 2,
                                            .n_top = 2,
                                            .top = top}};
    struct td_openai_choice c = {.text = TD_STR("ayz"),
                                 .has_logprobs = true,
                                 .logprobs = lp,
                                 .n_logprobs = 3,
                                 .has_prompt_logprobs = true,
                                 .prompt_logprobs = lp,
                                 .n_prompt_logprobs = 3,
                                 .finish = TD_FINISH_LENGTH};
    assert_int_equal(td_openai_response_write(&text, &c, 1, &usage, &out), TD_OK);
    json_t *v = read_back(&out);
    assert_text(v, "choices.0.logprobs.tokens.0", "a");
    assert_true(json_is_null(at(v, "choices.0.logprobs.token_logprobs.0")));
    assert_true(json_is_null(at(v, "choices.0.logprobs.top_logprobs.0")));
    assert_true(json_number_value(at(v, "choices.0.logprobs.token_logprobs.2")) == -4);
    assert_int_equal(json_array_size(at(v, "choices.0.prompt_logprobs")), 3);
    assert_true(json_is_null(at(v, "choices.0.prompt_logprobs.0")));
    assert_int_equal(json_object_size(at(v, "choices.0.prompt_logprobs.1")), 2);
    assert_true(json_number_value(at(v, "choices.0.prompt_logprobs.1.8.logprob")) == -1);
    assert_int_equal(json_integer_value(at(v, "choices.0.prompt_logprobs.1.8.rank")), 2);
    assert_int_equal(json_object_size(at(v, "choices.0.prompt_logprobs.2")), 3);
    assert_text(v, "choices.0.prompt_logprobs.2.9.decoded_token", "z");
    assert_int_equal(json_integer_value(at(v, "choices.0.prompt_logprobs.2.9.rank")), 17);
    json_decref(v);
}

static void test_openai_response_streams_role_content_finish_and_usage(void **state)
{
    (void)state;
    struct td_bytes out = {0};
    assert_int_equal(td_openai_chunk_role_write(&chat, 0, true, &out), TD_OK);
    json_t *v = read_back(&out);
    assert_text(v, "object", "chat.completion.chunk");
    assert_text(v, "choices.0.delta.role", "assistant");
    assert_text(v, "choices.0.delta.content", "");
    assert_true(json_is_null(at(v, "choices.0.finish_reason")));
    assert_true(json_is_null(at(v, "usage")));
    json_decref(v);
    struct td_openai_choice c = {.text = TD_STR("x")};
    assert_int_equal(td_openai_chunk_write(&chat, &c, false, &out), TD_OK);
    v = read_back(&out);
    assert_text(v, "choices.0.delta.content", "x");
    assert_null(json_object_get(v, "usage"));
    assert_null(json_object_get(at(v, "choices.0.delta"), "role"));
    json_decref(v);
    c = (struct td_openai_choice){.text = TD_STR(""), .finish = TD_FINISH_STOP};
    assert_int_equal(td_openai_chunk_write(&chat, &c, true, &out), TD_OK);
    v = read_back(&out);
    assert_int_equal(json_object_size(at(v, "choices.0.delta")), 0);
    assert_text(v, "choices.0.finish_reason", "stop");
    json_decref(v);
    assert_int_equal(td_openai_chunk_usage_write(&chat, &usage, &out), TD_OK);
    v = read_back(&out);
    assert_int_equal(json_array_size(at(v, "choices")), 0);
    assert_int_equal(json_integer_value(at(v, "usage.total_tokens")), 12);
    json_decref(v);
    assert_int_equal(td_openai_chunk_write(&text, &c, false, &out), TD_OK);
    v = read_back(&out);
    assert_text(v, "object", "text_completion");
    assert_text(v, "choices.0.text", "");
    json_decref(v);
}

static void test_openai_response_lists_models(void **state)
{
    (void)state;
    struct td_bytes out = {0};
    const struct td_openai_model models[] = {{TD_STR("a"), 5, 512}, {TD_STR("b"), 6, 0}};
    assert_int_equal(td_openai_models_write(models, 2, &out), TD_OK);
    json_t *v = read_back(&out);
    assert_text(v, "object", "list");
    assert_text(v, "data.0.id", "a");
    assert_text(v, "data.0.object", "model");
    assert_text(v, "data.0.owned_by", "tensord");
    assert_int_equal(json_integer_value(at(v, "data.0.max_model_len")), 512);
    assert_null(json_object_get(at(v, "data.1"), "max_model_len"));
    json_decref(v);
    assert_int_equal(td_openai_model_write(&models[0], &out), TD_OK);
    v = read_back(&out);
    assert_text(v, "id", "a");
    json_decref(v);
}

static void test_openai_response_has_the_error_form(void **state)
{
    (void)state;
    struct td_bytes out = {0};
    struct td_openai_error e;
    td_openai_error_set(&e, 400, "invalid_request_error", "invalid_value", "stop[1]", "bad \"%s\"",
                        "x");
    assert_int_equal(td_openai_error_write(&e, &out), TD_OK);
    json_t *v = read_back(&out);
    assert_text(v, "error.message", "bad \"x\"");
    assert_text(v, "error.type", "invalid_request_error");
    assert_text(v, "error.param", "stop[1]");
    assert_text(v, "error.code", "invalid_value");
    json_decref(v);
    td_openai_error_set(&e, 500, "server_error", NULL, NULL, "x");
    assert_int_equal(td_openai_error_write(&e, &out), TD_OK);
    v = read_back(&out);
    assert_true(json_is_null(at(v, "error.param")));
    assert_true(json_is_null(at(v, "error.code")));
    json_decref(v);
}

static void test_openai_response_maps_statuses_and_hides_what_is_internal(void **state)
{
    (void)state;
    struct td_err err = {0};
    struct td_openai_error e;
    td_err_set(&err, TD_BUSY, "the queue holds 64 requests");
    td_openai_error_from(&err, &e);
    assert_int_equal(e.http_status, 429);
    assert_non_null(strstr(e.message, "64 requests"));
    td_err_set(&err, TD_PEER_LOST, "rank 2 is gone");
    td_openai_error_from(&err, &e);
    assert_int_equal(e.http_status, 503);
    td_err_set(&err, TD_IO, "/secret/path: permission denied");
    td_openai_error_from(&err, &e);
    assert_int_equal(e.http_status, 500);
    assert_null(strstr(e.message, "secret"));
}

static void test_openai_response_ids_are_hex_of_their_kind(void **state)
{
    (void)state;
    char id[TD_OPENAI_ID_BYTES];
    td_openai_id(TD_OPENAI_CHAT, 0x1, 0xffffffffffffffffu, id);
    assert_string_equal(id, "chatcmpl-0000000000000001ffffffffffffffff");
    td_openai_id(TD_OPENAI_COMPLETION, 0xab, 0, id);
    assert_string_equal(id, "cmpl-00000000000000ab0000000000000000");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_openai_response_of_chat_has_the_required_fields),
        cmocka_unit_test(test_openai_response_shows_chat_logprobs_with_bytes),
        cmocka_unit_test(test_openai_response_of_completion_has_its_logprobs),
        cmocka_unit_test(test_openai_response_shows_the_prompt_with_its_logprobs),
        cmocka_unit_test(test_openai_response_streams_role_content_finish_and_usage),
        cmocka_unit_test(test_openai_response_lists_models),
        cmocka_unit_test(test_openai_response_has_the_error_form),
        cmocka_unit_test(test_openai_response_maps_statuses_and_hides_what_is_internal),
        cmocka_unit_test(test_openai_response_ids_are_hex_of_their_kind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
