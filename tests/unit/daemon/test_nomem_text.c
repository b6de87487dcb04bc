/* Text on its way with every allocation failing in turn: tokenizers in both formats, encoding, templates, breakers, streamed text, stop
 * strings, patterns. Each time an error that says so and nothing kept, or the same ids and text as undisturbed. */
#include "tests/unit/alloc_fault.h"

#include "daemon/text/breakers.h"
#include "daemon/text/chat.h"
#include "daemon/text/detok.h"
#include "daemon/text/regex.h"
#include "daemon/text/stop.h"
#include "daemon/text/tokenizer.h"
#include "daemon/text/tokexport.h"
#include "shard/ggufwrite.h"
#include "shard/spec.h"

/* The pattern that GGUF calls qwen2, as JSON text. */
#define QWEN2                                                                                      \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| "              \
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"

static const char BYTE_LEVEL[] =
    "{\"added_tokens\":[{\"id\":7,\"content\":\"<|im_start|>\",\"single_word\":false,\"lstrip\":"
    "false,"
    "\"rstrip\":false,\"normalized\":false,\"special\":true},{\"id\":8,\"content\":\"<|im_end|>\","
    "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}"
    "],"
    "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" QWEN2 "\"},"
    "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":"
    "false,"
    "\"trim_offsets\":false,\"use_regex\":false}]},\"post_processor\":null,"
    "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":false,"
    "\"use_regex\":false},\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
    "\"continuing_subword_prefix\":\"\",\"end_of_word_suffix\":\"\",\"fuse_unk\":false,"
    "\"byte_fallback\":false,\"vocab\":{\"H\":0,\"e\":1,\"l\":2,\"o\":3,\"He\":4,\"ll\":5,"
    "\"\xc4\xa0\":6,\"\xc4\x8a\":9},\"merges\":[\"H e\",\"l l\"]}}";
static const char CONFIG[] = "{\"eos_token\":\"<|im_end|>\",\"add_bos_token\":false}";
static const char CHATML[] =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ "
    "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' "
    "}}{% endif %}";

static const uint32_t HELLO[] = {4, 5, 3}; /* "Hello": He ll o, by the merges in their order */

static struct td_tokenizer *opened(void)
{
    struct td_tokenizer *tok = NULL;
    struct td_err err;

    if (td_tokenizer_open_json(td_str_from(BYTE_LEVEL), td_str_from(CONFIG), &tok, &err))
        fail_msg("%s", err.cause);
    return tok;
}

static enum td_status encode_hello(const struct td_tokenizer *tok, struct td_err *err)
{
    struct td_ids ids = {0};
    enum td_status s = td_tokenizer_encode(tok, TD_STR("Hello"), 0, &ids, err);

    if (!s) {
        assert_int_equal(ids.len, 3);
        assert_memory_equal(ids.data, HELLO, sizeof HELLO);
    }
    td_ids_deinit(&ids);
    return s;
}

static enum td_status open_json(void *arg, struct td_err *err)
{
    struct td_tokenizer *tok = NULL;
    enum td_status s =
        td_tokenizer_open_json(td_str_from(BYTE_LEVEL), td_str_from(CONFIG), &tok, err);

    (void)arg;
    if (s) {
        assert_null(tok);
        return s;
    }
    assert_int_equal(td_tokenizer_eos(tok), 8);
    assert_true(td_tokenizer_is_special(tok, 7));
    s = encode_hello(tok, err);
    td_tokenizer_close(tok);
    return s;
}

static void test_tokenizer_opens_from_json_or_says_that_memory_is_short(void **state)
{
    (void)state;
    (void)alloc_sweep("tokenizer.json", open_json, NULL);
}

/* Through metadata and back. */
static enum td_status export(void *arg, struct td_err *err) {
    struct td_tokenizer *tok = arg, *again = NULL;
    struct td_spec spec = {.bos_id = -1, .n_vocab = td_tokenizer_n_vocab(tok)};
    struct td_ggufwrite *w = NULL;
    struct td_bytes notes = {0}, head = {0};
    struct td_gguf *g = NULL;
    enum td_status s = td_ggufwrite_open(&w, err);

    if (s) return s;
    s = td_tokexport_gguf(tok, td_str_from(BYTE_LEVEL), &spec, w, &notes, err);
    s = s ? s : td_ggufwrite_head(w, &head, err);
    s = s ? s : td_gguf_open_memory(head.data, head.len, &g, err);
    s = s ? s : td_tokenizer_open_gguf(g, &again, err);
    s = s ? s : encode_hello(again, err);
    td_tokenizer_close(again);
    td_gguf_close(g);
    td_ggufwrite_close(w);
    td_bytes_deinit(&head);
    td_bytes_deinit(&notes);
    return s;
}

static void test_tokenizer_goes_through_metadata_or_says_that_memory_is_short(void **state)
{
    struct td_tokenizer *tok = opened();

    (void)state;
    (void)alloc_sweep("an export", export, tok);
    td_tokenizer_close(tok);
}

static enum td_status encode_segments(void *arg, struct td_err *err)
{
    const struct td_text_segment parts[] = {{TD_STR("<|im_start|>"), true},
                                            {TD_STR("Hello Hello"), false},
                                            {TD_STR("<|im_end|>"), true}};
    struct td_ids ids = {0};
    enum td_status s = td_tokenizer_encode_segments(arg, parts, 3, 0, &ids, err);

    if (s) {
        assert_int_equal(ids.len, 0);
    } else {
        assert_int_equal(ids.len, 9);
        assert_int_equal(ids.data[0], 7);
        assert_memory_equal(ids.data + 1, HELLO, sizeof HELLO);
        assert_int_equal(ids.data[8], 8);
    }
    td_ids_deinit(&ids);
    return s ? s : encode_hello(arg, err);
}

static enum td_status stream(void *arg, struct td_err *err)
{
    struct td_detok d;
    struct td_bytes out = {0};
    enum td_status s = TD_OK;

    td_detok_init(&d, arg, 0);
    for (int i = 0; !s && i < 60; i++)
        s = td_detok_push(&d, HELLO[i % 3], &out);
    s = s ? s : td_detok_flush(&d, &out);
    if (!s)
        assert_int_equal(out.len, 100);
    else
        td_err_set(err, s, "a buffer has no error of its own");
    for (size_t i = 0; i < out.len; i++)
        assert_int_equal(out.data[i], "Hello"[i % 5]); /* nothing is lost in the middle */
    td_bytes_deinit(&out);
    return s;
}

static void test_text_becomes_ids_and_text_again_or_memory_is_short(void **state)
{
    struct td_tokenizer *tok = opened();

    (void)state;
    (void)alloc_sweep("segments", encode_segments, tok);
    (void)alloc_sweep("streamed text", stream, tok);
    td_tokenizer_close(tok);
}

static enum td_status render(void *arg, struct td_err *err)
{
    const struct td_chat_message messages[] = {{TD_STR("o"), TD_STR("He")},
                                               {TD_STR("e"), TD_STR("<|im_end|>")}};
    struct td_chat *chat = NULL;
    struct td_bytes out = {0};
    struct td_ids ids = {0};
    enum td_status s = td_chat_open(td_str_from(CHATML), &chat, err);

    if (s)
        return s;
    s = td_chat_render(chat, messages, 1, true, &out, err);
    if (!s)
        assert_string_equal(out.data, "<|im_start|>o\nHe<|im_end|>\n<|im_start|>assistant\n");
    s = s ? s : td_chat_encode(chat, arg, messages, 1, false, &ids, err);
    if (!s) {
        static const uint32_t expected[] = {7, 3, 9, 4, 8, 9};

        assert_int_equal(ids.len, 6);
        assert_memory_equal(ids.data, expected, sizeof expected);
    }
    td_ids_deinit(&ids);
    td_bytes_deinit(&out);
    td_chat_close(chat);
    return s;
}

static void test_chat_renders_or_says_that_memory_is_short(void **state)
{
    struct td_tokenizer *tok = opened();

    (void)state;
    (void)alloc_sweep("a chat", render, tok);
    td_tokenizer_close(tok);
}

static enum td_status mark(void *arg, struct td_err *err)
{
    struct td_str texts[] = {TD_STR("l"), TD_STR("He")};
    uint8_t set[8] = {0};
    struct td_breakers *b = NULL;
    enum td_status s = td_breakers_open(arg, &b, err);

    if (s)
        return s;
    s = td_breakers_mark(b, texts, 2, set, err);
    if (!s)
        assert_int_equal(set[0] & 0x34, 0x34); /* l, He, ll */
    td_breakers_close(b);
    return s;
}

static enum td_status stop(void *arg, struct td_err *err)
{
    struct td_str strings[] = {TD_STR("aab"), TD_STR("abc")};
    struct td_stop *stop = NULL;
    struct td_bytes out = {0};
    bool matched = false;
    enum td_status s = td_stop_open(strings, 2, false, &stop, err);

    (void)arg;
    if (s)
        return s;
    s = td_stop_push(stop, TD_STR("xxaa"), &out, &matched);
    s = s ? s : td_stop_push(stop, TD_STR("bcyy"), &out, &matched);
    if (!s) {
        assert_true(matched);
        assert_string_equal(out.data, "xx");
    } else {
        td_err_set(err, s, "a buffer has no error of its own");
    }
    td_bytes_deinit(&out);
    td_stop_close(stop);
    return s;
}

static void test_breakers_and_stops_are_found_or_memory_is_short(void **state)
{
    struct td_tokenizer *tok = opened();

    (void)state;
    (void)alloc_sweep("breakers", mark, tok);
    (void)alloc_sweep("stop strings", stop, NULL);
    td_tokenizer_close(tok);
}

static enum td_status match(void *arg, struct td_err *err)
{
    struct td_regex *re = NULL;
    struct td_regex_work work = {0};
    bool found = false;
    size_t start = 0, end = 0;
    enum td_status s = td_regex_open(TD_STR("(?i:a+)(?!b)|\\s+$"), false, &re, err);

    (void)arg;
    if (s)
        return s;
    s = td_regex_next(re, &work, TD_STR("xAab aa"), 0, &found, &start, &end, err);
    if (!s)
        assert_true(found && start == 1 && end == 2);
    td_regex_work_deinit(&work);
    td_regex_close(re);
    return s;
}

static void test_regex_matches_or_says_that_memory_is_short(void **state)
{
    (void)state;
    (void)alloc_sweep("a pattern", match, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer_opens_from_json_or_says_that_memory_is_short),
        cmocka_unit_test(test_tokenizer_goes_through_metadata_or_says_that_memory_is_short),
        cmocka_unit_test(test_text_becomes_ids_and_text_again_or_memory_is_short),
        cmocka_unit_test(test_chat_renders_or_says_that_memory_is_short),
        cmocka_unit_test(test_breakers_and_stops_are_found_or_memory_is_short),
        cmocka_unit_test(test_regex_matches_or_says_that_memory_is_short),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
