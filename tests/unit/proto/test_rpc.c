#include "proto/descriptors.h"
#include "proto/inference.pb-c.h"
#include "proto/reflection.pb-c.h"
#include "proto/rpc.h"
#include "proto/rpc_health.h"
#include "proto/rpc_reflection.h"
#include "proto/worker.pb-c.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_rpc_table_agrees_with_the_descriptors(void **state)
{
    (void)state;
    for (int i = 0; i < TD_N_RPCS; i++) {
        const struct td_rpc_method *m = td_rpc_method((enum td_rpc_id)i);
        char symbol[128];
        struct td_descriptors_file file;
        assert_int_equal(m->id, i);
        assert_ptr_equal(td_rpc_find(td_str_from(m->path)), m);
        snprintf(symbol, sizeof symbol, "%s", m->path + 1);
        *strchr(symbol, '/') = '\0';
        assert_string_equal(symbol, td_rpc_service_name(m->service));
        assert_true(td_descriptors_by_symbol(td_str_from(symbol), &file));
        symbol[strlen(symbol)] = '.';
        assert_true(td_descriptors_by_symbol(td_str_from(symbol), &file));
        assert_true(td_descriptors_by_symbol(td_str_from(m->request->name), &file));
        assert_true(td_descriptors_by_symbol(td_str_from(m->reply->name), &file));
    }
    assert_null(td_rpc_find(TD_STR("/tensord.v1.Inference/Nothing")));
    assert_null(td_rpc_find(TD_STR("")));
}

static void test_rpc_messages_keep_presence_and_nul(void **state)
{
    (void)state;
    Tensord__V1__GenerateRequest out = TENSORD__V1__GENERATE_REQUEST__INIT;
    Tensord__V1__Sampling sampling = TENSORD__V1__SAMPLING__INIT;
    sampling.has_temperature_case = TENSORD__V1__SAMPLING__HAS_TEMPERATURE_TEMPERATURE;
    sampling.temperature = 0;
    out.sampling = &sampling;
    out.prompt_case = TENSORD__V1__GENERATE_REQUEST__PROMPT_TEXT;
    out.text = td_rpc_data(TD_STR("a\0b"));
    struct td_bytes bytes = {0};
    assert_int_equal(td_rpc_pack(&out.base, &bytes, NULL), TD_OK);
    ProtobufCMessage *m;
    assert_int_equal(td_rpc_unpack(out.base.descriptor, td_bytes_str(&bytes), 0, &m, NULL), TD_OK);
    Tensord__V1__GenerateRequest *in = (Tensord__V1__GenerateRequest *)m;
    assert_int_equal(in->prompt_case, TENSORD__V1__GENERATE_REQUEST__PROMPT_TEXT);
    assert_true(td_str_eq(td_rpc_str(in->text), TD_STR("a\0b")));
    assert_int_equal(in->sampling->has_temperature_case,
                     TENSORD__V1__SAMPLING__HAS_TEMPERATURE_TEMPERATURE);
    assert_int_equal(in->sampling->has_top_p_case, TENSORD__V1__SAMPLING__HAS_TOP_P__NOT_SET);
    assert_int_equal(in->has_max_tokens_case,
                     TENSORD__V1__GENERATE_REQUEST__HAS_MAX_TOKENS__NOT_SET);
    td_rpc_free(m);
    struct td_err err;
    assert_int_equal(td_rpc_unpack(out.base.descriptor, td_bytes_str(&bytes), 3, &m, &err),
                     TD_TOO_LARGE);
    assert_int_equal(td_rpc_unpack(out.base.descriptor, TD_STR("\x0a\x7f"), 0, &m, &err),
                     TD_INVALID);
    assert_non_null(strstr(err.cause, "tensord.v1.GenerateRequest"));
    struct td_bytes small = {.cap_limit = 2};
    assert_int_equal(td_rpc_pack(&out.base, &small, &err), TD_TOO_LARGE);
    td_bytes_deinit(&bytes);
    td_bytes_deinit(&small);
}

static void test_rpc_unpack_survives_random_bytes(void **state)
{
    (void)state;
    uint32_t r = 20240607;
    for (int round = 0; round < 20000; round++) {
        unsigned char bytes[64];
        for (size_t i = 0; i < sizeof bytes; i++) {
            r = r * 1664525u + 1013904223u;
            bytes[i] = (unsigned char)(r >> (r >> 30 ? 24 : 28));
        }
        const struct td_rpc_method *method = td_rpc_method((enum td_rpc_id)(r % TD_N_RPCS));
        ProtobufCMessage *m = NULL;
        struct td_str s = {(const char *)bytes, (r >> 8) % sizeof bytes};
        enum td_status st = td_rpc_unpack(method->request, s, 0, &m, NULL);
        assert_true(st == TD_INVALID || (st == TD_OK && m->descriptor == method->request));
        td_rpc_free(m);
    }
}

static void test_rpc_health_answers_known_and_unknown_services(void **state)
{
    (void)state;
    const struct td_rpc_health_entry entries[] = {{TD_STR(""), true},
                                                  {TD_STR("tensord.v1.Inference"), false}};
    struct td_bytes reply = {0};
    struct td_err err;
    assert_int_equal(td_rpc_health_check(TD_STR(""), entries, 2, &reply, &err), TD_OK);
    assert_true(td_str_eq(td_bytes_str(&reply), TD_STR("\x08\x01")));
    struct td_str asked = TD_STR("\x0a\x14tensord.v1.Inference");
    assert_int_equal(td_rpc_health_check(asked, entries, 2, &reply, &err), TD_OK);
    assert_true(td_str_eq(td_bytes_str(&reply), TD_STR("\x08\x02")));
    enum td_rpc_serving serving;
    assert_int_equal(td_rpc_health_check(TD_STR("\x0a\x01x"), entries, 2, &reply, &err),
                     TD_NOT_FOUND);
    assert_int_equal(td_rpc_health_lookup(TD_STR("\x0a\x01x"), entries, 2, &serving, &err), TD_OK);
    assert_int_equal(serving, TD_RPC_SERVICE_UNKNOWN);
    assert_int_equal(td_rpc_health_check(TD_STR("\x0a\x7f"), entries, 2, &reply, &err), TD_INVALID);
    td_bytes_deinit(&reply);
}

typedef Grpc__Reflection__V1__ServerReflectionRequest request_msg;
typedef Grpc__Reflection__V1__ServerReflectionResponse response_msg;

static response_msg *ask(int kind, const char *text)
{
    request_msg q = GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;
    q.message_request_case =
        (Grpc__Reflection__V1__ServerReflectionRequest__MessageRequestCase)kind;
    q.file_by_filename =
        (char *)(uintptr_t)text; /* every kind that is asked here is a string of the same union */
    struct td_bytes bytes = {0}, reply = {0};
    ProtobufCMessage *m;
    assert_int_equal(td_rpc_pack(&q.base, &bytes, NULL), TD_OK);
    assert_int_equal(td_rpc_reflection_answer(td_bytes_str(&bytes), &reply, NULL), TD_OK);
    assert_int_equal(td_rpc_unpack(&grpc__reflection__v1__server_reflection_response__descriptor,
                                   td_bytes_str(&reply), 0, &m, NULL),
                     TD_OK);
    td_bytes_deinit(&bytes);
    td_bytes_deinit(&reply);
    return (response_msg *)m;
}

static void test_rpc_reflection_lists_services_and_gives_files(void **state)
{
    (void)state;
    response_msg *r =
        ask(GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES, "");
    assert_int_equal(r->list_services_response->n_service, TD_N_RPC_SERVICES);
    assert_string_equal(r->list_services_response->service[0]->name, "tensord.v1.Inference");
    td_rpc_free(&r->base);

    static const struct {
        const char *symbol, *file;
    } found[] = {{"tensord.v1.Inference", "proto/inference.proto"},
                 {"tensord.v1.Inference.Generate", "proto/inference.proto"},
                 {"tensord.v1.Sampling.top_k", "proto/inference.proto"},
                 {"tensord.v1.FINISH_REASON_STOP", "proto/inference.proto"},
                 {"tensord.v1.FinishReason", "proto/inference.proto"},
                 {"tensord.v1.Layout", "proto/cluster.proto"},
                 {"grpc.health.v1.HealthCheckResponse.ServingStatus", "proto/health.proto"},
                 {"grpc.health.v1.HealthCheckResponse.SERVING", "proto/health.proto"},
                 {"grpc.reflection.v1alpha.ServerReflection", "proto/reflection_alpha.proto"}};
    for (size_t i = 0; i < sizeof found / sizeof *found; i++) {
        r = ask(
            GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL,
            found[i].symbol);
        if (r->message_response_case !=
            GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE)
            fail_msg("symbol %s was not found", found[i].symbol);
        struct td_descriptors_file file;
        assert_true(td_descriptors_by_name(td_str_from(found[i].file), &file));
        assert_true(td_str_eq(td_rpc_str(r->file_descriptor_response->file_descriptor_proto[0]),
                              file.bytes));
        td_rpc_free(&r->base);
    }
    r = ask(GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME,
            "proto/worker.proto");
    assert_int_equal(r->file_descriptor_response->n_file_descriptor_proto, 1);
    td_rpc_free(&r->base);
    r = ask(
        GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_ALL_EXTENSION_NUMBERS_OF_TYPE,
        "tensord.v1.Usage");
    assert_string_equal(r->all_extension_numbers_response->base_type_name, "tensord.v1.Usage");
    td_rpc_free(&r->base);
}

static void test_rpc_reflection_answers_what_is_unknown_with_not_found(void **state)
{
    (void)state;
    static const char *const symbols[] = {"tensord.v1",
                                          "tensord.v1.",
                                          "tensord.v1.Nothing",
                                          "tensord.v1.Inference.X",
                                          "tensord.v1.Inferenc",
                                          "tensord.v1.Sampling.top_k.x",
                                          "",
                                          "x",
                                          "tensord.v2.Inference"};
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        response_msg *r = ask(
            GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL,
            symbols[i]);
        if (r->message_response_case !=
            GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE)
            fail_msg("symbol '%s' was found", symbols[i]);
        assert_int_equal(r->error_response->error_code, 5);
        assert_string_equal(r->original_request->file_containing_symbol, symbols[i]);
        td_rpc_free(&r->base);
    }
    struct td_bytes reply = {0};
    assert_int_equal(td_rpc_reflection_answer(TD_STR("\x1a\x7f"), &reply, NULL), TD_INVALID);
    /* No kind at all is a request that can be read, so it is answered inside. */
    assert_int_equal(td_rpc_reflection_answer(TD_STR(""), &reply, NULL), TD_OK);
    td_bytes_deinit(&reply);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rpc_table_agrees_with_the_descriptors),
        cmocka_unit_test(test_rpc_messages_keep_presence_and_nul),
        cmocka_unit_test(test_rpc_unpack_survives_random_bytes),
        cmocka_unit_test(test_rpc_health_answers_known_and_unknown_services),
        cmocka_unit_test(test_rpc_reflection_lists_services_and_gives_files),
        cmocka_unit_test(test_rpc_reflection_answers_what_is_unknown_with_not_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
