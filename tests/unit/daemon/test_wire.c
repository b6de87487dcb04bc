/* Control messages: there and back through their bytes, and what a peer must not send. */
#include "daemon/engine/wire.h"

#include "proto/rpc.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* `m` through its bytes; owned (td_rpc_free). */
static void *through_bytes(const ProtobufCMessage *m)
{
    struct td_bytes bytes = {0};
    ProtobufCMessage *out = NULL;

    assert_int_equal(td_rpc_pack(m, &bytes, NULL), TD_OK);
    assert_int_equal(td_rpc_unpack(m->descriptor, td_bytes_str(&bytes), 0, &out, NULL), TD_OK);
    td_bytes_deinit(&bytes);
    return out;
}

static void make_request(struct td_request *r)
{
    static const uint32_t prompt[] = {5, 0, 7};

    td_request_init(r);
    r->id = 77;
    r->prompt = malloc(sizeof prompt);
    assert_non_null(r->prompt);
    memcpy(r->prompt, prompt, sizeof prompt);
    r->n_prompt = 3;
    r->stops[0] = strdup("\n\n");
    r->stop_bytes[0] = 2;
    r->n_stops = 1;
    r->stop_ids[0] = 9;
    r->n_stop_ids = 1;
    r->cache_salt = UINT64_MAX - 1;
    r->no_prefix_cache = true;
    r->priority = -3;
    r->prompt_logprobs = 4;
    r->sampling.seed = UINT64_MAX;
    r->sampling.temperature = 0.5f;
    r->sampling.top_k = -1;
    r->sampling.typical_p = 0.75f;
    r->sampling.top_n_sigma = 1.5f;
    r->sampling.xtc_probability = 0.25f;
    r->sampling.xtc_threshold = 0.125f;
    r->sampling.dynatemp_range = 0.375f;
    r->sampling.dynatemp_exponent = 2.5f;
    r->sampling.repeat_last_n = 64;
    r->sampling.dry_multiplier = 0.8f;
    r->sampling.dry_base = 1.5f;
    r->sampling.dry_allowed_length = 3;
    r->sampling.dry_penalty_last_n = -1;
    r->sampling.mirostat = 2;
    r->sampling.mirostat_tau = 4.5f;
    r->sampling.mirostat_eta = 0.2f;
    assert_int_equal(td_request_set_breakers(r, (const uint8_t *)"\0\x80", 2, NULL), TD_OK);
    r->sampling.n_bias = 1;
    r->sampling.bias[0] = (struct td_logit_bias){3, -1.5f};
    for (uint32_t i = 0; i < 40; i++)
        assert_int_equal(td_request_emit(r, 1000 + i, (struct td_sampler_state){4.25}, NULL),
                         TD_OK);
}

static void test_wire_submit_comes_back_equal(void **state)
{
    struct td_request r, back;
    struct td_arena arena;
    Tensord__Worker__V1__Submit *m;

    (void)state;
    make_request(&r);
    td_arena_init(&arena, 0, 0);
    m = through_bytes(&td_wire_submit_make(&r, 4, &arena)->base);
    assert_int_equal(m->number, 4);
    assert_int_equal(td_wire_submit_read(m, &back, NULL), TD_OK);
    assert_int_equal(back.id, 77);
    assert_int_equal(back.n_prompt, 3);
    assert_memory_equal(back.prompt, r.prompt, 3 * sizeof *r.prompt);
    assert_int_equal(back.n_stops, 1);
    assert_string_equal(back.stops[0], "\n\n");
    assert_int_equal(back.stop_bytes[0], 2);
    assert_int_equal(back.stop_ids[0], 9);
    assert_true(back.cache_salt == UINT64_MAX - 1 && back.no_prefix_cache);
    assert_int_equal(back.priority, -3);
    assert_int_equal(back.prompt_logprobs, 4);
    assert_int_equal(back.n_emitted, 40);
    assert_memory_equal(back.emitted, r.emitted, 40 * sizeof *r.emitted);
    assert_true(back.state.mu == 4.25);
    assert_true(back.sampling.seed == UINT64_MAX);
    assert_true(back.sampling.temperature == 0.5f);
    assert_int_equal(back.sampling.bias[0].id, 3);
    assert_true(back.sampling.bias[0].bias == -1.5f);
    assert_memory_equal(back.dry_breakers, "\0\x80", 2);
    assert_ptr_equal(back.sampling.dry_breakers, back.dry_breakers);
    /* All else of the struct, whose bytes were all set by td_sampling_default's memset. */
    back.sampling.dry_breakers = r.sampling.dry_breakers;
    assert_memory_equal(&back.sampling, &r.sampling, sizeof r.sampling);
    back.sampling.dry_breakers = back.dry_breakers;
    td_request_deinit(&back);
    td_rpc_free(&m->base);
    td_arena_deinit(&arena);
    td_request_deinit(&r);
}

static void test_wire_refuses_a_stop_string_that_is_empty_or_too_long(void **state)
{
    static char text[TD_REQUEST_MAX_STOP_BYTES + 2];
    const size_t bytes[] = {0, TD_REQUEST_MAX_STOP_BYTES + 1};
    struct td_request r, back;
    struct td_arena arena;

    (void)state;
    make_request(&r);
    memset(text, 'x', sizeof text - 1);
    free(r.stops[0]);
    r.stops[0] = strdup(text);
    td_arena_init(&arena, 0, 0);
    for (size_t i = 0; i < 2; i++) {
        struct td_err err = {0};
        Tensord__Worker__V1__Submit *m;

        r.stop_bytes[0] = bytes[i];
        m = through_bytes(&td_wire_submit_make(&r, 1, &arena)->base);
        assert_int_equal(td_wire_submit_read(m, &back, &err), TD_PEER_PROTOCOL);
        assert_non_null(strstr(err.cause, i == 0 ? "0 bytes" : "257 bytes"));
        td_rpc_free(&m->base);
    }
    td_arena_deinit(&arena);
    td_request_deinit(&r);
}

static void test_wire_refuses_a_set_of_breakers_over_the_limit(void **state)
{
    struct td_request r, back;
    struct td_arena arena;
    struct td_err err = {0};
    Tensord__Worker__V1__Submit *m;
    uint8_t *set = calloc(1, TD_SAMPLING_MAX_BREAKER_BYTES + 1);

    (void)state;
    assert_non_null(set);
    make_request(&r);
    td_arena_init(&arena, 0, 0);
    r.sampling.dry_breakers = set;
    for (uint32_t over = 0; over < 2; over++) {
        r.sampling.n_dry_breaker_bytes = TD_SAMPLING_MAX_BREAKER_BYTES + over;
        m = through_bytes(&td_wire_submit_make(&r, 1, &arena)->base);
        assert_int_equal(td_wire_submit_read(m, &back, &err), over ? TD_PEER_PROTOCOL : TD_OK);
        if (!over)
            td_request_deinit(&back);
        td_rpc_free(&m->base);
    }
    assert_non_null(strstr(err.cause, "524289 bytes of breakers"));
    td_arena_deinit(&arena);
    td_request_deinit(&r);
    free(set);
}

static void test_wire_assign_comes_back_equal(void **state)
{
    char path[] = "/a model", dir[] = "/scratch", draft[] = "/small";
    struct td_compute_load load = {.path = path,
                                   .offload_dir = dir,
                                   .draft_path = draft,
                                   .plan = {.n_ranks = 2, .tp = 2, .pp = 1}};
    struct td_compute_load *back = NULL;
    Tensord__Worker__V1__Assign *m;
    struct td_arena arena;

    (void)state;
    load.share[0] = 3;
    load.share[1] = 1;
    load.plan.share = load.share;
    load.plan.kv_bytes = 12345;
    load.prefix_cache = true;
    load.max_draft_tokens = 7;
    load.max_stretch_percent = 60;
    load.plan.offload_bytes[TD_OFFLOAD_MEMORY] = (uint64_t)5 << 40;
    load.plan.offload_bytes[TD_OFFLOAD_FILE] = 77;
    load.plan.lead_bytes = (uint64_t)3 << 40;
    load.plan.lead_block_bytes = 4096;
    td_arena_init(&arena, 0, 0);
    m = through_bytes(&td_wire_assign_make(&load, 1, &arena)->base);
    assert_int_equal(m->rank, 1);
    assert_int_equal(td_wire_assign_read(m, &back, NULL), TD_OK);
    assert_string_equal(back->path, "/a model");
    assert_int_equal(back->plan.n_ranks, 2);
    assert_int_equal(back->plan.kv_bytes, 12345);
    assert_true(back->prefix_cache);
    assert_int_equal(back->max_draft_tokens, 7);
    assert_int_equal(back->max_stretch_percent, 60);
    assert_string_equal(back->offload_dir, "/scratch");
    assert_string_equal(back->draft_path, "/small");
    assert_true(back->plan.lead_bytes == (uint64_t)3 << 40);
    assert_int_equal(back->plan.lead_block_bytes, 4096);
    assert_true(back->plan.offload_bytes[TD_OFFLOAD_MEMORY] == (uint64_t)5 << 40);
    assert_int_equal(back->plan.offload_bytes[TD_OFFLOAD_FILE], 77);
    {
        struct td_compute_load *none;

        m->offload_dir[0] = '\0';
        assert_int_equal(td_wire_assign_read(m, &none, NULL), TD_PEER_PROTOCOL);
        m->offload_dir[0] = '/';
        m->max_draft_tokens = 16;
        assert_int_equal(td_wire_assign_read(m, &none, NULL), TD_PEER_PROTOCOL);
        m->max_draft_tokens = 15;
        m->offload_memory_bytes = UINT64_MAX;
        assert_int_equal(td_wire_assign_read(m, &none, NULL), TD_PEER_PROTOCOL);
    }
    assert_non_null(back->plan.share);
    assert_int_equal(back->plan.share[0], 3);
    assert_int_equal(back->plan.share[1], 1);
    td_compute_load_free(back);
    td_rpc_free(&m->base);
    td_arena_deinit(&arena);
}

static void test_wire_refuses_a_share_that_is_no_count(void **state)
{
    const double bad[] = {-1.0, 1e300, INFINITY, NAN};
    char path[] = "/m";
    struct td_compute_load load = {.path = path, .plan = {.n_ranks = 2, .tp = 2, .pp = 1}};
    struct td_arena arena;

    (void)state;
    td_arena_init(&arena, 0, 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Tensord__Worker__V1__Assign *m = td_wire_assign_make(&load, 0, &arena);
        struct td_compute_load *back = NULL;
        struct td_err err = {0};

        m->ranks[1]->share = bad[i];
        assert_int_equal(td_wire_assign_read(m, &back, &err), TD_PEER_PROTOCOL);
        assert_non_null(strstr(err.cause, "rank 1"));
        assert_null(back);
    }
    td_arena_deinit(&arena);
}

static void test_wire_error_event_carries_its_text(void **state)
{
    struct td_token_event e = {.request_id = 6, .finish = TD_FINISH_ERROR}, back;
    struct td_err error, text = {0};
    Tensord__Worker__V1__TokenEvent *made, *m;
    struct td_arena arena;

    (void)state;
    td_err_set(&error, TD_DEVICE, "the device is gone");
    e.error = &error;
    e.cached_tokens = 48;
    e.queue_ns = 123456789012;
    e.is_prompt = true;
    e.token.rank = 9;
    td_arena_init(&arena, 0, 0);
    made = td_wire_token_make(&e, &arena);
    assert_non_null(made);
    td_err_set(&error, TD_INTERNAL, "the next event of this turn");
    m = through_bytes(&made->base);
    assert_int_equal(td_wire_token_read(m, &back, &text, NULL), TD_OK);
    assert_false(back.has_token);
    assert_int_equal(back.cached_tokens, 48);
    assert_true(back.queue_ns == 123456789012);
    assert_true(back.is_prompt);
    assert_int_equal(back.token.rank, 9);
    assert_ptr_equal(back.error, &text);
    assert_int_equal(text.status, TD_DEVICE);
    assert_string_equal(text.cause, "the device is gone");
    td_rpc_free(&m->base);
    td_arena_deinit(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wire_submit_comes_back_equal),
        cmocka_unit_test(test_wire_refuses_a_stop_string_that_is_empty_or_too_long),
        cmocka_unit_test(test_wire_refuses_a_set_of_breakers_over_the_limit),
        cmocka_unit_test(test_wire_assign_comes_back_equal),
        cmocka_unit_test(test_wire_refuses_a_share_that_is_no_count),
        cmocka_unit_test(test_wire_error_event_carries_its_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
