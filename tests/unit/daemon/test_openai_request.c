#include "daemon/api/openai.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HELLO "\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]"

static void parse_ok(enum td_openai_kind kind, const char *body, struct td_openai_request *req)
{
    struct td_openai_error e = {0};
    enum td_status status = td_openai_request_parse(kind, td_str_from(body), NULL, req, &e);
    if (status != TD_OK) {
        print_message("%s: %s\n", body, e.message);
    }
    assert_int_equal(status, TD_OK);
}

static void chat_ok(const char *fields, struct td_openai_request *req)
{
    char body[4096];
    snprintf(body, sizeof(body), "{\"model\":\"m\"," HELLO "%s%s}", fields[0] ? "," : "", fields);
    parse_ok(TD_OPENAI_CHAT, body, req);
}

static void refused(enum td_openai_kind kind, const char *body, const char *param, const char *code)
{
    struct td_openai_request req;
    struct td_openai_error e = {0};
    assert_int_equal(td_openai_request_parse(kind, td_str_from(body), NULL, &req, &e), TD_INVALID);
    if (strcmp(e.param, param) != 0 || (code != NULL && strcmp(e.code, code) != 0)) {
        print_message("%s\n  param '%s' code '%s': %s\n", body, e.param, e.code, e.message);
    }
    assert_string_equal(e.param, param);
    assert_int_equal(e.http_status, 400);
    assert_string_equal(e.type, "invalid_request_error");
    assert_true(e.message[0] != '\0');
    if (code != NULL) {
        assert_string_equal(e.code, code);
    }
}

static void chat_refused(const char *fields, const char *param, const char *code)
{
    char body[8192];
    snprintf(body, sizeof(body), "{\"model\":\"m\"," HELLO ",%s}", fields);
    refused(TD_OPENAI_CHAT, body, param, code);
}

static void completion_refused(const char *fields, const char *param, const char *code)
{
    char body[8192];
    snprintf(body, sizeof(body), "{\"model\":\"m\",%s}", fields);
    refused(TD_OPENAI_COMPLETION, body, param, code);
}

static void assert_str(struct td_str s, const char *expected)
{
    assert_int_equal(s.len, strlen(expected));
    assert_memory_equal(s.ptr, expected, s.len);
}

static void test_openai_request_has_the_official_defaults(void **state)
{
    (void)state;
    struct td_openai_request req;
    chat_ok("", &req);
    assert_str(req.model, "m");
    assert_int_equal(req.n_messages, 1);
    assert_str(req.messages[0].role, "user");
    assert_str(req.messages[0].content, "hello");
    assert_true(req.sampling.temperature == 1 && req.sampling.top_p == 1);
    assert_int_equal(req.sampling.n_logprobs, -1);
    assert_false(req.stream || req.include_usage || req.want_logprobs || req.has_seed ||
                 req.has_max_tokens || req.ignore_eos || req.include_stop);
    td_openai_request_deinit(&req);
    parse_ok(TD_OPENAI_COMPLETION, "{\"prompt\":\"once\"}", &req);
    assert_true(req.has_max_tokens);
    assert_int_equal(req.max_tokens, 16);
    assert_int_equal(req.n_prompts, 1);
    assert_str(req.prompts[0].text, "once");
    assert_str(req.model, "");
    td_openai_request_deinit(&req);
}

static void test_openai_request_takes_the_models_own_defaults(void **state)
{
    (void)state;
    struct td_sampling defaults;
    struct td_openai_request req;
    struct td_openai_error e;
    td_sampling_default(&defaults);
    defaults.temperature = 0.6f;
    defaults.top_k = 20;
    struct td_str body = TD_STR("{\"prompt\":\"x\",\"top_k\":5}");
    assert_int_equal(td_openai_request_parse(TD_OPENAI_COMPLETION, body, &defaults, &req, &e),
                     TD_OK);
    assert_true(req.sampling.temperature == 0.6f);
    assert_int_equal(req.sampling.top_k, 5);
    td_openai_request_deinit(&req);
}

static void test_openai_request_reads_every_field(void **state)
{
    (void)state;
    struct td_openai_request req;
    chat_ok(
        "\"temperature\":0.5,\"top_p\":0.9,\"top_k\":40,\"min_p\":0.05,\"repetition_penalty\":1.1,"
        "\"presence_penalty\":-2,\"frequency_penalty\":2,\"seed\":-7,\"max_tokens\":5,"
        "\"max_completion_tokens\":9,\"min_tokens\":3,\"ignore_eos\":true,\"stop\":[\"a\",\"bc\"],"
        "\"stop_token_ids\":[1,2],\"include_stop_str_in_output\":true,\"logprobs\":true,"
        "\"top_logprobs\":20,\"logit_bias\":{\"5\":-100,\"77\":0.5},\"stream\":true,"
        "\"stream_options\":{\"include_usage\":true},\"user\":\"u\",\"n\":1,\"unknown\":{\"x\":[]},"
        "\"response_format\":{\"type\":\"text\"},\"tools\":[],\"tool_choice\":\"auto\","
        "\"store\":false,\"metadata\":{},\"modalities\":[\"text\"]",
        &req);
    const struct td_sampling *s = &req.sampling;
    assert_true(s->temperature == 0.5f && s->top_p == 0.9f && s->min_p == 0.05f);
    assert_true(s->repetition_penalty == 1.1f && s->presence_penalty == -2 &&
                s->frequency_penalty == 2);
    assert_int_equal(s->top_k, 40);
    assert_true(req.has_seed && s->seed == (uint64_t)-7);
    assert_int_equal(req.max_tokens, 9);
    assert_int_equal(req.min_tokens, 3);
    assert_true(req.ignore_eos && req.include_stop && req.stream && req.include_usage);
    assert_int_equal(req.n_stops, 2);
    assert_str(req.stops[1], "bc");
    assert_int_equal(req.n_stop_ids, 2);
    assert_int_equal(req.stop_ids[1], 2);
    assert_true(req.want_logprobs);
    assert_int_equal(s->n_logprobs, 20);
    assert_int_equal(s->n_bias, 2);
    assert_true((s->bias[0].id == 5 && s->bias[0].bias == -100) ||
                (s->bias[1].id == 5 && s->bias[1].bias == -100));
    assert_str(req.user, "u");
    struct td_request r;
    td_request_init(&r);
    assert_int_equal(td_openai_request_fill(&req, 512, &r, NULL), TD_OK);
    td_openai_request_deinit(&req);
    assert_int_equal(r.max_tokens, 9);
    assert_int_equal(r.min_tokens, 3);
    assert_int_equal(r.n_stops, 2);
    assert_string_equal(r.stops[1], "bc");
    assert_int_equal(r.stop_bytes[1], 2);
    assert_int_equal(r.stop_ids[0], 1);
    assert_true(r.include_stop && r.ignore_eos && r.sampling.top_k == 40);
    td_request_deinit(&r);
}

static void test_openai_request_reads_every_parameter_of_the_sampler(void **state)
{
    (void)state;
    struct td_openai_request req;
    chat_ok("\"typical_p\":0.75,\"top_n_sigma\":1.5,\"xtc_probability\":0.25,"
            "\"xtc_threshold\":0.125,\"dynatemp_range\":0.5,\"dynatemp_exponent\":2,"
            "\"repeat_last_n\":64,\"repeat_penalty\":1.5,\"dry_multiplier\":0.8,\"dry_base\":1.5,"
            "\"dry_allowed_length\":3,\"dry_penalty_last_n\":0,"
            "\"dry_sequence_breakers\":[\"\\n\",\"\\u0000ab\"]",
            &req);
    const struct td_sampling *s = &req.sampling;
    assert_true(s->typical_p == 0.75f && s->top_n_sigma == 1.5f);
    assert_true(s->xtc_probability == 0.25f && s->xtc_threshold == 0.125f);
    assert_true(s->dynatemp_range == 0.5f && s->dynatemp_exponent == 2);
    assert_true(s->repeat_last_n == 64 && s->repetition_penalty == 1.5f);
    assert_true(s->dry_multiplier == 0.8f && s->dry_base == 1.5f);
    assert_true(s->dry_allowed_length == 3 && s->dry_penalty_last_n == 0);
    assert_true(req.has_dry_breakers);
    assert_int_equal(req.n_dry_breakers, 2);
    assert_str(req.dry_breakers[0], "\n");
    assert_int_equal(req.dry_breakers[1].len, 3);
    assert_memory_equal(req.dry_breakers[1].ptr, "\0ab", 3);
    td_openai_request_deinit(&req);
    chat_ok("\"mirostat\":2,\"mirostat_tau\":4.5,\"mirostat_eta\":0.25,\"top_k\":40,"
            "\"dry_sequence_breakers\":[],\"repetition_penalty\":1.25,\"repeat_penalty\":1.5",
            &req);
    assert_true(s->mirostat == 2 && s->mirostat_tau == 4.5f && s->mirostat_eta == 0.25f);
    assert_true(s->repetition_penalty == 1.25f); /* the name that vLLM has, too, wins */
    assert_true(req.has_dry_breakers && req.n_dry_breakers == 0);
    td_openai_request_deinit(&req);
    chat_ok("\"dry_sequence_breakers\":null", &req);
    assert_false(req.has_dry_breakers);
    td_openai_request_deinit(&req);
}

static void test_openai_request_refuses_parameters_that_contradict(void **state)
{
    (void)state;
    chat_refused("\"mirostat\":2,\"typical_p\":0.5", "typical_p", "invalid_value");
    chat_refused("\"mirostat\":1,\"xtc_probability\":1", "xtc_probability", "invalid_value");
    chat_refused("\"mirostat\":2,\"temperature\":0", "temperature", "invalid_value");
    chat_refused("\"dynatemp_range\":1,\"temperature\":0", "temperature", "invalid_value");
}

static void test_openai_request_takes_null_as_absent(void **state)
{
    (void)state;
    struct td_openai_request req;
    chat_ok(
        "\"temperature\":null,\"stop\":null,\"stream\":null,\"stream_options\":null,\"seed\":null,"
        "\"logit_bias\":null,\"max_tokens\":null,\"tools\":null,\"logprobs\":null,\"n\":null,"
        "\"response_format\":null,\"user\":null,\"max_tokens\":12.0",
        &req);
    assert_int_equal(req.max_tokens, 12);
    assert_true(req.sampling.temperature == 1);
    td_openai_request_deinit(&req);
}

static void test_openai_request_joins_text_parts(void **state)
{
    (void)state;
    struct td_openai_request req;
    parse_ok(
        TD_OPENAI_CHAT,
        "{\"messages\":[{\"role\":\"developer\",\"content\":\"a\\u0000b\",\"name\":\"n\"},"
        "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"one\"},"
        "{\"type\":\"text\",\"text\":\"tw\\u00f6\"}]},{\"role\":\"assistant\",\"content\":[]}]}",
        &req);
    assert_int_equal(req.n_messages, 3);
    assert_int_equal(req.messages[0].content.len, 3);
    assert_memory_equal(req.messages[0].content.ptr, "a\0b", 4);
    assert_str(req.messages[0].name, "n");
    assert_str(req.messages[1].content, "one\ntw\xc3\xb6");
    assert_str(req.messages[2].content, "");
    td_openai_request_deinit(&req);
}

static void test_openai_request_names_what_is_wrong_with_messages(void **state)
{
    (void)state;
    const enum td_openai_kind chat = TD_OPENAI_CHAT;
    refused(chat, "{}", "messages", "missing_required_parameter");
    refused(chat, "{\"messages\":null}", "messages", NULL);
    refused(chat, "{\"messages\":\"hi\"}", "messages", "invalid_type");
    refused(chat, "{\"messages\":[]}", "messages", "invalid_value");
    refused(chat, "{\"messages\":[1]}", "messages[0]", "invalid_type");
    refused(chat, "{\"messages\":[{\"content\":\"x\"}]}", "messages[0].role", NULL);
    refused(chat, "{\"messages\":[{\"role\":\"king\",\"content\":\"x\"}]}", "messages[0].role",
            "invalid_value");
    refused(chat, "{\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}", "messages[0].role",
            "unsupported_parameter");
    refused(chat, "{\"messages\":[{\"role\":\"user\"}]}", "messages[0].content", NULL);
    refused(chat, "{\"messages\":[{\"role\":\"user\",\"content\":null}]}", "messages[0].content",
            "invalid_type");
    refused(chat, "{\"messages\":[{\"role\":\"user\",\"content\":[\"x\"]}]}",
            "messages[0].content[0]", "invalid_type");
    refused(chat,
            "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{"
            "}}]}]}",
            "messages[0].content[0]", "unsupported_content");
    refused(chat, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}",
            "messages[0].content[0]", NULL);
    refused(chat, "{\"messages\":[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{}]}]}",
            "messages[0].tool_calls", "unsupported_parameter");
    refused(chat, "[]", "", "invalid_type");
    refused(chat, "{\"messages\":", "", "invalid_json");
    refused(chat, "{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}", "", "invalid_json");
}

static void test_openai_request_names_the_field_of_a_wrong_type(void **state)
{
    (void)state;
    const char *const fields[] = {"temperature",
                                  "top_p",
                                  "top_k",
                                  "min_p",
                                  "repetition_penalty",
                                  "presence_penalty",
                                  "frequency_penalty",
                                  "typical_p",
                                  "top_n_sigma",
                                  "xtc_probability",
                                  "xtc_threshold",
                                  "dynatemp_range",
                                  "dynatemp_exponent",
                                  "repeat_last_n",
                                  "repeat_penalty",
                                  "dry_multiplier",
                                  "dry_base",
                                  "dry_allowed_length",
                                  "dry_penalty_last_n",
                                  "dry_sequence_breakers",
                                  "mirostat",
                                  "mirostat_tau",
                                  "mirostat_eta",
                                  "seed",
                                  "max_tokens",
                                  "max_completion_tokens",
                                  "min_tokens",
                                  "stop_token_ids",
                                  "stop",
                                  "logit_bias",
                                  "stream",
                                  "stream_options",
                                  "logprobs",
                                  "top_logprobs",
                                  "ignore_eos",
                                  "include_stop_str_in_output",
                                  "n",
                                  "response_format"};
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        const char *const wrong[] = {"\"x\"", "1.5", "[[]]", "true", "7"};
        size_t n_refused = 0;
        for (size_t j = 0; j < sizeof(wrong) / sizeof(wrong[0]); j++) {
            char body[512];
            struct td_openai_request req;
            struct td_openai_error e = {0};
            snprintf(body, sizeof(body), "{" HELLO ",\"%s\":%s}", fields[i], wrong[j]);
            if (td_openai_request_parse(TD_OPENAI_CHAT, td_str_from(body), NULL, &req, &e) ==
                TD_OK) {
                td_openai_request_deinit(&req);
                continue;
            }
            assert_int_equal(strncmp(e.param, fields[i], strlen(fields[i])), 0);
            n_refused++;
        }
        assert_true(n_refused >= 2);
    }
    refused(TD_OPENAI_CHAT, "{\"model\":1," HELLO "}", "model", "invalid_type");
    refused(TD_OPENAI_CHAT, "{\"user\":{}," HELLO "}", "user", "invalid_type");
}

static void test_openai_request_reads_priority_timeout_and_salt(void **state)
{
    (void)state;
    struct td_openai_request req;
    struct td_request r;
    char long_salt[400] = "\"cache_salt\":\"";
    chat_ok("\"priority\":-1000,\"timeout\":0.25,\"cache_salt\":\"a b\"", &req);
    assert_int_equal(req.priority, -1000);
    assert_true(req.timeout_s == 0.25f);
    assert_str(req.cache_salt, "a b");
    td_request_init(&r);
    assert_int_equal(td_openai_request_fill(&req, 10, &r, NULL), TD_OK);
    assert_int_equal(r.priority, -1000);
    td_request_deinit(&r);
    td_openai_request_deinit(&req);
    chat_ok("\"priority\":null,\"timeout\":86400,\"cache_salt\":null", &req);
    assert_int_equal(req.priority, 0);
    assert_true(req.timeout_s == 86400);
    assert_str(req.cache_salt, "");
    td_openai_request_deinit(&req);
    chat_ok("", &req);
    assert_true(req.timeout_s == 0 && req.priority == 0);
    td_openai_request_deinit(&req);
    chat_refused("\"priority\":1.5", "priority", "invalid_type");
    chat_refused("\"priority\":\"high\"", "priority", "invalid_type");
    chat_refused("\"timeout\":\"5\"", "timeout", "invalid_type");
    chat_refused("\"timeout\":true", "timeout", "invalid_type");
    chat_refused("\"cache_salt\":7", "cache_salt", "invalid_type");
    size_t n = strlen(long_salt);
    memset(long_salt + n, 's', 257);
    strcpy(long_salt + n + 257, "\"");
    chat_refused(long_salt, "cache_salt", "invalid_value");
    strcpy(long_salt + n + 256, "\"");
    chat_ok(long_salt, &req);
    td_openai_request_deinit(&req);
}

static void test_openai_request_names_the_field_out_of_range(void **state)
{
    (void)state;
    const struct {
        const char *field;
        const char *value;
    } cases[] = {{"temperature", "-0.1"},
                 {"temperature", "2.1"},
                 {"temperature", "1e300"},
                 {"top_p", "0"},
                 {"top_p", "1e-60"},
                 {"top_p", "1.01"},
                 {"top_k", "-2"},
                 {"top_k", "99999999999"},
                 {"min_p", "-0.1"},
                 {"min_p", "1.1"},
                 {"repetition_penalty", "0"},
                 {"repetition_penalty", "-1"},
                 {"presence_penalty", "2.5"},
                 {"frequency_penalty", "-2.5"},
                 {"max_tokens", "0"},
                 {"max_tokens", "-1"},
                 {"max_tokens", "4294967296"},
                 {"min_tokens", "-1"},
                 {"n", "0"},
                 {"n", "129"},
                 {"stop", "\"\""},
                 {"typical_p", "0"},
                 {"typical_p", "1.1"},
                 {"top_n_sigma", "-1.5"},
                 {"xtc_probability", "1.5"},
                 {"xtc_threshold", "-0.5"},
                 {"dynatemp_range", "-1"},
                 {"dynatemp_exponent", "101"},
                 {"repeat_last_n", "-2"},
                 {"repeat_last_n", "1048577"},
                 {"repeat_penalty", "0"},
                 {"dry_multiplier", "-1"},
                 {"dry_base", "0.9"},
                 {"dry_allowed_length", "0"},
                 {"dry_penalty_last_n", "-2"},
                 {"mirostat", "3"},
                 {"mirostat", "-1"},
                 {"mirostat_tau", "0"},
                 {"mirostat_eta", "0"},
                 {"logit_bias", "{\"x\":1}"},
                 {"logit_bias", "{\"-1\":1}"},
                 {"logit_bias", "{\"1\":101}"},
                 {"logit_bias", "{\"1\":\"1\"}"},
                 {"logit_bias", "{\"99999999999999999999\":1}"},
                 {"priority", "-1001"},
                 {"priority", "1001"},
                 {"timeout", "0"},
                 {"timeout", "-1"},
                 {"timeout", "86401"},
                 {"timeout", "1e-60"},
                 {"cache_salt", "\"\""},
                 {"stop_token_ids", "[-1]"},
                 {"stop_token_ids", "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]"}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char fields[256];
        snprintf(fields, sizeof(fields), "\"%s\":%s", cases[i].field, cases[i].value);
        chat_refused(fields, cases[i].field, NULL);
    }
    chat_refused("\"stop\":[\"a\",\"\"]", "stop[1]", "invalid_value");
    chat_refused("\"dry_sequence_breakers\":[\"a\",\"\"]", "dry_sequence_breakers[1]",
                 "invalid_value");
    chat_refused("\"dry_sequence_breakers\":[1]", "dry_sequence_breakers[0]", "invalid_type");
    chat_refused("\"dry_sequence_breakers\":[[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[]]",
                 "dry_sequence_breakers", "array_above_max_length");
    chat_refused("\"stop\":[\"a\",1]", "stop[1]", "invalid_type");
    chat_refused("\"top_logprobs\":21,\"logprobs\":true", "top_logprobs", "invalid_value");
    chat_refused("\"top_logprobs\":2", "top_logprobs", "invalid_value");
    chat_refused("\"max_tokens\":3,\"min_tokens\":4", "min_tokens", "invalid_value");
    chat_refused("\"stream_options\":{}", "stream_options", "invalid_value");
    chat_refused("\"stream\":true,\"stream_options\":{\"include_usage\":1}",
                 "stream_options.include_usage", "invalid_type");
    char stops[8192] = "\"stop\":[";
    for (int i = 0; i < 17; i++) {
        strcat(stops, i > 0 ? ",\"s\"" : "\"s\"");
    }
    strcat(stops, "]");
    chat_refused(stops, "stop", "array_above_max_length");
    char bias[8000] = "\"logit_bias\":{";
    for (int i = 0; i <= TD_SAMPLER_MAX_BIAS; i++) {
        char entry[32];
        snprintf(entry, sizeof(entry), "%s\"%d\":1", i > 0 ? "," : "", i);
        strcat(bias, entry);
    }
    strcat(bias, "}");
    chat_refused(bias, "logit_bias", "object_above_max_properties");
}

static void test_openai_request_takes_choices_and_candidates(void **state)
{
    struct td_openai_request req;
    (void)state;
    chat_ok("", &req);
    assert_int_equal(req.n, 1);
    assert_int_equal(req.best_of, 1);
    td_openai_request_deinit(&req);
    chat_ok("\"n\":128,\"best_of\":3", &req); /* chats know no best_of */
    assert_int_equal(req.n, 128);
    assert_int_equal(req.best_of, 128);
    td_openai_request_deinit(&req);
    parse_ok(TD_OPENAI_COMPLETION, "{\"prompt\":\"x\",\"n\":2,\"stream\":true}", &req);
    assert_int_equal(req.best_of, 2);
    assert_int_equal(req.sampling.n_logprobs, -1);
    td_openai_request_deinit(&req);
    parse_ok(TD_OPENAI_COMPLETION, "{\"prompt\":\"x\",\"n\":2,\"best_of\":5}", &req);
    assert_int_equal(req.n, 2);
    assert_int_equal(req.best_of, 5);
    assert_false(req.want_logprobs);
    assert_int_equal(req.sampling.n_logprobs, -1); /* who submits it asks for what choosing needs */
    td_openai_request_deinit(&req);
    parse_ok(TD_OPENAI_COMPLETION, "{\"prompt\":\"x\",\"best_of\":2,\"logprobs\":4}", &req);
    assert_int_equal(req.sampling.n_logprobs, 4);
    td_openai_request_deinit(&req);
    completion_refused("\"prompt\":\"x\",\"n\":3,\"best_of\":2", "best_of", "invalid_value");
    completion_refused("\"prompt\":\"x\",\"best_of\":2,\"stream\":true", "best_of",
                       "invalid_value");
    completion_refused("\"prompt\":\"x\",\"best_of\":129", "best_of", NULL);
    completion_refused("\"prompt\":\"x\",\"best_of\":0", "best_of", NULL);
}

static void test_openai_request_asks_for_the_prompt_again(void **state)
{
    struct td_openai_request req;
    struct td_request r;
    (void)state;
    parse_ok(TD_OPENAI_COMPLETION,
             "{\"prompt\":\"x\",\"echo\":true,\"max_tokens\":0,\"logprobs\":2}", &req);
    assert_true(req.echo);
    td_request_init(&r);
    assert_int_equal(td_openai_request_fill(&req, 0, &r, NULL), TD_OK);
    assert_int_equal(r.prompt_logprobs, 2);
    assert_int_equal(r.max_tokens, 1);
    td_request_deinit(&r);
    td_openai_request_deinit(&req);
    parse_ok(TD_OPENAI_COMPLETION, "{\"prompt\":\"x\",\"echo\":true}", &req);
    td_request_init(&r);
    assert_int_equal(td_openai_request_fill(&req, 0, &r, NULL), TD_OK);
    assert_int_equal(r.prompt_logprobs, -1);
    td_request_deinit(&r);
    td_openai_request_deinit(&req);
    chat_ok("\"prompt_logprobs\":0", &req);
    assert_int_equal(req.prompt_logprobs, 0);
    td_openai_request_deinit(&req);
    chat_refused("\"prompt_logprobs\":21", "prompt_logprobs", NULL);
    chat_refused("\"prompt_logprobs\":1,\"stream\":true", "prompt_logprobs", "invalid_value");
    completion_refused("\"prompt\":\"x\",\"max_tokens\":0", "max_tokens", NULL);
    completion_refused("\"prompt\":\"x\",\"echo\":1", "echo", NULL);
}

static void test_openai_request_refuses_by_name_what_is_not_built(void **state)
{
    (void)state;
    const char *code = "unsupported_parameter";
    chat_refused("\"tools\":[{\"type\":\"function\"}]", "tools", code);
    chat_refused("\"tools\":[{\"type\":\"function\"}],\"tool_choice\":\"none\"", "tools", code);
    chat_refused("\"tool_choice\":\"required\"", "tool_choice", code);
    chat_refused("\"tool_choice\":{\"type\":\"function\"}", "tool_choice", code);
    chat_refused("\"functions\":[{}]", "functions", code);
    chat_refused("\"response_format\":{\"type\":\"json_object\"}", "response_format", code);
    chat_refused("\"modalities\":[\"text\",\"audio\"]", "modalities", code);
    chat_refused("\"guided_regex\":\"a+\"", "guided_regex", code);
    chat_refused("\"use_beam_search\":true", "use_beam_search", code);
    completion_refused("\"prompt\":\"x\",\"suffix\":\"y\"", "suffix", code);
    struct td_openai_request req;
    parse_ok(
        TD_OPENAI_COMPLETION,
        "{\"prompt\":\"x\",\"best_of\":1,\"echo\":false,\"suffix\":\"\",\"use_beam_search\":false}",
        &req);
    td_openai_request_deinit(&req);
}

static void test_openai_request_reads_every_form_of_prompt(void **state)
{
    (void)state;
    struct td_openai_request req;
    parse_ok(TD_OPENAI_COMPLETION, "{\"prompt\":[\"a\",\"\"],\"logprobs\":0}", &req);
    assert_int_equal(req.n_prompts, 2);
    assert_str(req.prompts[0].text, "a");
    assert_str(req.prompts[1].text, "");
    assert_true(req.want_logprobs);
    assert_int_equal(req.sampling.n_logprobs, 0);
    td_openai_request_deinit(&req);
    parse_ok(TD_OPENAI_COMPLETION, "{\"prompt\":[5,6,7]}", &req);
    assert_int_equal(req.n_prompts, 1);
    assert_true(req.prompts[0].is_ids);
    assert_int_equal(req.prompts[0].n_ids, 3);
    assert_int_equal(req.prompts[0].ids[2], 7);
    td_openai_request_deinit(&req);
    parse_ok(TD_OPENAI_COMPLETION, "{\"prompt\":[[1],[2,3]]}", &req);
    assert_int_equal(req.n_prompts, 2);
    assert_int_equal(req.prompts[1].ids[1], 3);
    td_openai_request_deinit(&req);
    completion_refused("\"max_tokens\":1", "prompt", "missing_required_parameter");
    completion_refused("\"prompt\":[]", "prompt", "invalid_value");
    completion_refused("\"prompt\":{}", "prompt", "invalid_type");
    completion_refused("\"prompt\":[[]]", "prompt[0]", "invalid_value");
    completion_refused("\"prompt\":[1,\"a\"]", "prompt", "invalid_type");
    completion_refused("\"prompt\":[\"a\",1]", "prompt[1]", "invalid_type");
    completion_refused("\"prompt\":[1,-2]", "prompt", "invalid_value");
    completion_refused("\"prompt\":[1,4294967296]", "prompt", "invalid_value");
    completion_refused("\"prompt\":\"x\",\"logprobs\":true", "logprobs", "invalid_type");
    completion_refused("\"prompt\":\"x\",\"logprobs\":21", "logprobs", "invalid_value");
}

static void test_openai_request_survives_random_bodies(void **state)
{
    (void)state;
    static const char seed_body[] =
        "{\"model\":\"m\"," HELLO ",\"stop\":[\"a\"],\"logit_bias\":{\"5\":1},\"stream\":true,"
        "\"temperature\":0.5,\"max_tokens\":5,\"prompt\":[[1,2],[3]],\"logprobs\":1}";
    uint32_t seed = 4242;
    size_t n_ok = 0;
    print_message("seed %u\n", seed);
    for (int round = 0; round < 20000; round++) {
        char body[sizeof(seed_body)];
        memcpy(body, seed_body, sizeof(body));
        for (int k = 0; k < 1 + round % 3; k++) {
            static const char bytes[] = "{}[]\",:0123456789-e.tfn\\u\xc3 ";
            seed = seed * 1664525u + 1013904223u;
            body[(seed >> 8) % (sizeof(body) - 1)] = bytes[(seed >> 24) % (sizeof(bytes) - 1)];
        }
        struct td_openai_request req;
        struct td_openai_error e = {0};
        enum td_openai_kind kind = round % 2 ? TD_OPENAI_CHAT : TD_OPENAI_COMPLETION;
        struct td_str text = {body, sizeof(body) - 1};
        if (td_openai_request_parse(kind, text, NULL, &req, &e) == TD_OK) {
            td_openai_request_deinit(&req);
            n_ok++;
        } else {
            assert_int_equal(e.http_status, 400);
            assert_true(e.message[0] != '\0');
        }
    }
    assert_true(n_ok > 0 && n_ok < 20000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_openai_request_has_the_official_defaults),
        cmocka_unit_test(test_openai_request_takes_the_models_own_defaults),
        cmocka_unit_test(test_openai_request_reads_every_field),
        cmocka_unit_test(test_openai_request_reads_every_parameter_of_the_sampler),
        cmocka_unit_test(test_openai_request_refuses_parameters_that_contradict),
        cmocka_unit_test(test_openai_request_takes_null_as_absent),
        cmocka_unit_test(test_openai_request_joins_text_parts),
        cmocka_unit_test(test_openai_request_names_what_is_wrong_with_messages),
        cmocka_unit_test(test_openai_request_names_the_field_of_a_wrong_type),
        cmocka_unit_test(test_openai_request_reads_priority_timeout_and_salt),
        cmocka_unit_test(test_openai_request_names_the_field_out_of_range),
        cmocka_unit_test(test_openai_request_takes_choices_and_candidates),
        cmocka_unit_test(test_openai_request_asks_for_the_prompt_again),
        cmocka_unit_test(test_openai_request_refuses_by_name_what_is_not_built),
        cmocka_unit_test(test_openai_request_reads_every_form_of_prompt),
        cmocka_unit_test(test_openai_request_survives_random_bodies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
