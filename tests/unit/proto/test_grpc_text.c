#include "proto/grpc_code.h"
#include "proto/grpc_frame.h"
#include "proto/grpc_text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void test_grpc_text_percent_round_trip_of_every_byte(void **state)
{
    (void)state;
    char all[256];
    for (int i = 0; i < 256; i++)
        all[i] = (char)i;
    struct td_bytes coded = {0}, back = {0};
    assert_int_equal(td_grpc_text_percent_encode((struct td_str){all, 256}, &coded), TD_OK);
    for (size_t i = 0; i < coded.len; i++)
        assert_in_range((unsigned char)coded.data[i], 0x20, 0x7e);
    assert_int_equal(td_grpc_text_percent_decode(td_bytes_str(&coded), &back), TD_OK);
    assert_int_equal(back.len, 256);
    assert_memory_equal(back.data, all, 256);
    td_bytes_clear(&coded);
    td_grpc_text_percent_encode(TD_STR("50% \xc3\xa9\n"), &coded);
    assert_string_equal(coded.data, "50%25 %C3%A9%0A");
    td_bytes_clear(&back);
    td_grpc_text_percent_decode(TD_STR("a%zz%4%41%"), &back);
    assert_string_equal(back.data, "a%zz%4A%");
    td_bytes_deinit(&coded);
    td_bytes_deinit(&back);
}

static void test_grpc_text_timeouts(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t ns;
    } good[] = {{"1n", 1},    {"100m", 100000000},       {"99999999S", 99999999000000000},
                {"0S", 0},    {"2M", 120000000000},      {"3H", 10800000000000},
                {"5u", 5000}, {"99999999H", UINT64_MAX}, {"00000001S", 1000000000}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        uint64_t ns = 7;
        assert_int_equal(td_grpc_text_timeout_parse(td_str_from(good[i].text), &ns, NULL), TD_OK);
        assert_int_equal(ns, good[i].ns);
    }
    static const char *const bad[] = {"",    "S",   "1",   "123456789S", "1s",
                                      "-1S", "1 S", "1SS", "0x1S"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint64_t ns = 7;
        assert_int_equal(td_grpc_text_timeout_parse(td_str_from(bad[i]), &ns, NULL), TD_INVALID);
        assert_int_equal(ns, 7);
    }
    static const uint64_t values[] = {
        1, 99999999, 100000000, 123456789012, 1000000000000000, UINT64_MAX / 2};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        char text[TD_GRPC_TEXT_TIMEOUT_BYTES];
        uint64_t ns;
        td_grpc_text_timeout_format(values[i], text);
        assert_true(strlen(text) <= 9);
        assert_int_equal(td_grpc_text_timeout_parse(td_str_from(text), &ns, NULL), TD_OK);
        assert_true(ns >= values[i]);
        assert_true((double)(ns - values[i]) <= 1e-4 * (double)values[i]);
    }
}

static void test_grpc_text_base64_vectors_of_rfc_4648(void **state)
{
    (void)state;
    static const struct {
        const char *plain, *padded, *bare;
    } v[] = {{"", "", ""},
             {"f", "Zg==", "Zg"},
             {"fo", "Zm8=", "Zm8"},
             {"foo", "Zm9v", "Zm9v"},
             {"foob", "Zm9vYg==", "Zm9vYg"},
             {"fooba", "Zm9vYmE=", "Zm9vYmE"},
             {"foobar", "Zm9vYmFy", "Zm9vYmFy"}};
    for (size_t i = 0; i < sizeof v / sizeof *v; i++) {
        struct td_bytes out = {0};
        assert_int_equal(td_grpc_text_base64_encode(td_str_from(v[i].plain), &out), TD_OK);
        assert_int_equal(out.len, strlen(v[i].bare));
        assert_memory_equal(td_bytes_str(&out).ptr, v[i].bare, out.len);
        td_bytes_clear(&out);
        assert_int_equal(td_grpc_text_base64_decode(td_str_from(v[i].padded), &out), TD_OK);
        assert_int_equal(out.len, strlen(v[i].plain));
        assert_memory_equal(td_bytes_str(&out).ptr, v[i].plain, out.len);
        td_bytes_clear(&out);
        assert_int_equal(td_grpc_text_base64_decode(td_str_from(v[i].bare), &out), TD_OK);
        assert_int_equal(out.len, strlen(v[i].plain));
        td_bytes_deinit(&out);
    }
    static const char *const bad[] = {"Z", "Zg=", "Zg===", "Z=g=", "Zm9*", "Zm9v=", "====", "Zm 9"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct td_bytes out = {0};
        assert_int_equal(td_grpc_text_base64_decode(td_str_from(bad[i]), &out), TD_INVALID);
        td_bytes_deinit(&out);
    }
}

static void test_grpc_text_content_types(void **state)
{
    (void)state;
    assert_true(td_grpc_text_is_content_type(TD_STR("application/grpc")));
    assert_true(td_grpc_text_is_content_type(TD_STR("Application/gRPC+proto")));
    assert_true(td_grpc_text_is_content_type(TD_STR("application/grpc; charset=utf-8")));
    assert_false(td_grpc_text_is_content_type(TD_STR("application/grpc-web")));
    assert_false(td_grpc_text_is_content_type(TD_STR("application/grpc+json")));
    assert_false(td_grpc_text_is_content_type(TD_STR("application/json")));
    assert_false(td_grpc_text_is_content_type(TD_STR("")));
}

static void test_grpc_code_maps_every_status_both_ways(void **state)
{
    (void)state;
    static const enum td_status faithful[] = {
        TD_OK,        TD_INVALID,       TD_NOT_FOUND, TD_UNSUPPORTED, TD_TOO_LARGE,
        TD_BUSY,      TD_CANCELLED,     TD_CORRUPT,   TD_DENIED,      TD_UNAVAILABLE,
        TD_TIMED_OUT, TD_PEER_MISMATCH, TD_INTERNAL};
    for (size_t i = 0; i < sizeof faithful / sizeof *faithful; i++)
        assert_int_equal(td_grpc_code_to_status(td_grpc_code_from_status(faithful[i])),
                         faithful[i]);
    for (int code = 1; code <= TD_GRPC_UNAUTHENTICATED; code++)
        assert_int_not_equal(td_grpc_code_to_status((enum td_grpc_code)code), TD_OK);
    assert_string_equal(td_grpc_code_name(TD_GRPC_UNAUTHENTICATED), "UNAUTHENTICATED");
    assert_string_equal(td_grpc_code_name(TD_GRPC_RESOURCE_EXHAUSTED), "RESOURCE_EXHAUSTED");
    assert_string_equal(td_grpc_code_name((enum td_grpc_code)99), "UNKNOWN");
}

static void test_grpc_frame_reads_messages_from_any_cut(void **state)
{
    (void)state;
    struct td_bytes wire = {0};
    size_t total = 0;
    char text[300];
    memset(text, 'q', sizeof text);
    for (size_t i = 0; i < 40; i++) {
        size_t n = i * 7 % 290;
        text[0] = (char)i;
        assert_int_equal(td_grpc_frame_append(&wire, (struct td_str){text, n}), TD_OK);
        total += n;
    }
    for (size_t cut = 1; cut < 700; cut += cut < 20 ? 1 : 37) {
        struct td_grpc_frame f;
        size_t n_messages = 0, n_bytes = 0;
        td_grpc_frame_init(&f, 300);
        for (size_t at = 0; at < wire.len; at += cut) {
            struct td_str in = {wire.data + at, wire.len - at < cut ? wire.len - at : cut};
            bool complete = true;
            while (in.len > 0 || (complete && td_grpc_frame_is_partial(&f))) {
                struct td_str message;
                assert_int_equal(td_grpc_frame_read(&f, &in, &message, &complete, NULL), TD_OK);
                if (!complete)
                    continue;
                assert_int_equal(message.len, n_messages * 7 % 290);
                if (message.len)
                    assert_int_equal(message.ptr[0], (char)n_messages);
                n_messages++;
                n_bytes += message.len;
            }
        }
        assert_int_equal(n_messages, 40);
        assert_int_equal(n_bytes, total);
        assert_false(td_grpc_frame_is_partial(&f));
        td_grpc_frame_deinit(&f);
    }
    td_bytes_deinit(&wire);
}

static void test_grpc_frame_does_not_trust_the_announced_length(void **state)
{
    (void)state;
    struct td_grpc_frame f;
    td_grpc_frame_init(&f, 1u << 30);
    struct td_str in = {"\0\x3f\xff\xff\xff"
                        "abc",
                        8},
                  message;
    bool complete;
    assert_int_equal(td_grpc_frame_read(&f, &in, &message, &complete, NULL), TD_OK);
    assert_false(complete);
    assert_true(f.body.cap < 4096);
    td_grpc_frame_deinit(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grpc_text_percent_round_trip_of_every_byte),
        cmocka_unit_test(test_grpc_text_timeouts),
        cmocka_unit_test(test_grpc_text_base64_vectors_of_rfc_4648),
        cmocka_unit_test(test_grpc_text_content_types),
        cmocka_unit_test(test_grpc_code_maps_every_status_both_ways),
        cmocka_unit_test(test_grpc_frame_reads_messages_from_any_cut),
        cmocka_unit_test(test_grpc_frame_does_not_trust_the_announced_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
