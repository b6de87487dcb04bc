/* A request on its way from a body to the engine, with every allocation failing in turn: OpenAI bodies and answers, JSON, control
 * messages, metrics, the engine. Each time an error that says so and nothing kept, or the same as undisturbed. */
#include "tests/unit/alloc_fault.h"

#include "daemon/api/json.h"
#include "daemon/api/metrics.h"
#include "daemon/api/openai.h"
#include "daemon/api/route.h"
#include "daemon/engine/engine.h"
#include "daemon/engine/wire.h"
#include "proto/rpc.h"
#include "proto/rpc_health.h"
#include "proto/rpc_reflection.h"

/* ---- bodies ---- */

static const char CHAT[] =
    "{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":\"be "
    "brief\"},{\"role\":\"user\","
    "\"content\":[{\"type\":\"text\",\"text\":\"hello\"},{\"type\":\"text\",\"text\":\"there\"}],"
    "\"name\":\"ann\"}],\"stop\":[\"\\n\\n\",\"end\"],\"stop_token_ids\":[1,2],\"max_tokens\":5,"
    "\"logit_bias\":{\"3\":1.5,\"4\":-2},\"seed\":7,\"temperature\":0.5,\"stream\":true,"
    "\"stream_options\":{\"include_usage\":true},\"cache_salt\":\"s\",\"user\":\"u\","
    "\"dry_multiplier\":1,\"dry_sequence_breakers\":[\"x\"]}";
static const char COMPLETION[] =
    "{\"prompt\":[[1,2,3],[4]],\"echo\":true,\"logprobs\":2,\"n\":2,\"best_of\":3}";

struct body {
    enum td_openai_kind kind;
    const char *text;
};

static enum td_status read_body(void *arg, struct td_err *err)
{
    const struct body *body = arg;
    struct td_openai_request req;
    struct td_openai_error e = {0};
    struct td_request r, copy;
    enum td_status s = td_openai_request_parse(body->kind, td_str_from(body->text), NULL, &req, &e);

    if (s) {
        struct td_bytes out = {0};

        /* A client never hears that it is to blame. */
        assert_int_equal(e.http_status, 503);
        if (td_openai_error_write(&e, &out) == TD_OK)
            assert_non_null(strstr(out.data, "\"error\""));
        td_bytes_deinit(&out);
        return td_err_set(err, s, "%s", e.message);
    }
    td_request_init(&r);
    s = td_openai_request_fill(&req, 100, &r, err);
    if (!s) {
        s = td_request_copy(&r, &copy);
        if (s)
            td_err_set(err, s, "a copy has no error of its own");
    }
    if (!s) {
        if (body->kind == TD_OPENAI_CHAT) {
            assert_true(td_str_eq(req.messages[1].content, TD_STR("hello\nthere")));
            assert_int_equal(copy.n_stops, 2);
            assert_string_equal(copy.stops[1], "end");
            assert_int_equal(copy.sampling.n_bias, 2);
            assert_int_equal(copy.max_tokens, 5);
        } else {
            assert_int_equal(req.n_prompts, 2);
            assert_int_equal(req.prompts[0].ids[2], 3);
            assert_int_equal(req.best_of, 3);
        }
        td_request_deinit(&copy);
    }
    td_request_deinit(&r);
    td_openai_request_deinit(&req);
    return s;
}

static void test_openai_bodies_are_read_or_memory_is_short(void **state)
{
    struct body chat = {TD_OPENAI_CHAT, CHAT}, completion = {TD_OPENAI_COMPLETION, COMPLETION};

    (void)state;
    (void)alloc_sweep("a chat", read_body, &chat);
    (void)alloc_sweep("a completion", read_body, &completion);
}

static enum td_status write_answer(void *arg, struct td_err *err)
{
    static char expected[4096];
    struct td_openai_top top[] = {{1, TD_STR("a"), -0.5f}, {2, TD_STR("\xff"), -1.5f}};
    struct td_openai_logprob logprob = {
        .token = TD_STR("a"), .id = 1, .logprob = -0.5f, .rank = 1, .n_top = 2, .top = top};
    struct td_openai_choice choice = {.text = TD_STR("a \"quoted\"\n text"),
                                      .has_logprobs = true,
                                      .logprobs = &logprob,
                                      .n_logprobs = 1,
                                      .finish = TD_FINISH_STOP};
    struct td_openai_usage usage = {3, 4, 0};
    struct td_openai_reply reply = {.id = TD_STR("cmpl-1"), .model = TD_STR("m"), .created = 1};
    struct td_bytes out = {0};
    enum td_status s = TD_OK;

    (void)arg;
    for (int kind = TD_OPENAI_CHAT; !s && kind <= TD_OPENAI_COMPLETION; kind++) {
        reply.kind = (enum td_openai_kind)kind;
        s = td_openai_response_write(&reply, &choice, 1, &usage, &out);
        s = s ? s : td_openai_chunk_role_write(&reply, 0, true, &out);
        s = s ? s : td_openai_chunk_write(&reply, &choice, true, &out);
        s = s ? s : td_openai_chunk_usage_write(&reply, &usage, &out);
    }
    if (s)
        td_err_set(err, s, "a buffer has no error of its own");
    if (!s && !expected[0])
        memcpy(expected, out.data, out.len + 1);
    if (!s)
        assert_string_equal(out.data, expected);
    td_bytes_deinit(&out);
    return s;
}

static void test_openai_answers_are_written_whole_or_not_at_all(void **state)
{
    (void)state;
    (void)alloc_sweep("answers", write_answer, NULL);
}

/* ---- control messages ---- */

static enum td_status through_wire(void *arg, struct td_err *err)
{
    struct td_request *r = arg, back;
    struct td_arena arena;
    struct td_bytes bytes = {0};
    ProtobufCMessage *message = NULL;
    Tensord__Worker__V1__Submit *m;
    enum td_status s;

    td_arena_init(&arena, 0, 0);
    m = td_wire_submit_make(r, 3, &arena);
    s = m ? td_rpc_pack(&m->base, &bytes, err) : alloc_no_memory(err);
    s = s ? s
          : td_rpc_unpack(&tensord__worker__v1__submit__descriptor, td_bytes_str(&bytes), 0,
                          &message, err);
    s = s ? s : td_wire_submit_read((const void *)message, &back, err);
    if (!s) {
        assert_int_equal(back.n_prompt, r->n_prompt);
        assert_memory_equal(back.prompt, r->prompt, r->n_prompt * sizeof *r->prompt);
        assert_string_equal(back.stops[0], r->stops[0]);
        assert_int_equal(back.sampling.n_bias, 2);
        assert_int_equal(back.sampling.n_dry_breaker_bytes, 2);
        td_request_deinit(&back);
    }
    td_rpc_free(message);
    td_bytes_deinit(&bytes);
    td_arena_deinit(&arena);
    return s;
}

static enum td_status token_through_wire(void *arg, struct td_err *err)
{
    struct td_err told, back_err = {0};
    struct td_token_event e = {.request_id = 5, .index = 1, .has_token = true}, back;
    struct td_arena arena;
    struct td_bytes bytes = {0};
    ProtobufCMessage *message = NULL;
    Tensord__Worker__V1__TokenEvent *m;
    enum td_status s;

    (void)arg;
    td_err_set(&told, TD_DEVICE, "it broke");
    e.token.n_top = 2;
    e.finish = TD_FINISH_ERROR;
    e.error = &told;
    td_arena_init(&arena, 0, 0);
    m = td_wire_token_make(&e, &arena);
    s = m ? td_rpc_pack(&m->base, &bytes, err) : alloc_no_memory(err);
    s = s ? s
          : td_rpc_unpack(&tensord__worker__v1__token_event__descriptor, td_bytes_str(&bytes), 0,
                          &message, err);
    s = s ? s : td_wire_token_read((const void *)message, &back, &back_err, err);
    if (!s) {
        assert_int_equal(back.error->status, TD_DEVICE);
        assert_string_equal(back.error->cause, "it broke");
    }
    td_rpc_free(message);
    td_bytes_deinit(&bytes);
    td_arena_deinit(&arena);
    return s;
}

static enum td_status assign_through_wire(void *arg, struct td_err *err)
{
    char path[] = "/m";
    struct td_compute_load load = {.path = path, .plan = {.n_ranks = 3, .tp = 3, .pp = 1}}, *back;
    struct td_arena arena;
    struct td_bytes bytes = {0};
    ProtobufCMessage *message = NULL;
    Tensord__Worker__V1__Assign *m;
    enum td_status s;

    (void)arg;
    load.plan.share = load.share;
    load.share[0] = load.share[1] = load.share[2] = 2;
    td_arena_init(&arena, 0, 0);
    m = td_wire_assign_make(&load, 1, &arena);
    s = m ? td_rpc_pack(&m->base, &bytes, err) : alloc_no_memory(err);
    s = s ? s
          : td_rpc_unpack(&tensord__worker__v1__assign__descriptor, td_bytes_str(&bytes), 0,
                          &message, err);
    s = s ? s : td_wire_assign_read((const void *)message, &back, err);
    if (!s) {
        assert_string_equal(back->path, "/m");
        assert_int_equal(back->plan.share[2], 2);
        td_compute_load_free(back);
    }
    td_rpc_free(message);
    td_bytes_deinit(&bytes);
    td_arena_deinit(&arena);
    return s;
}

static enum td_status standard_services(void *arg, struct td_err *err)
{
    /* list_services "": field 7, no bytes. */
    const struct td_rpc_health_entry entries[] = {{TD_STR(""), true}};
    struct td_bytes out = {0};
    enum td_status s = td_rpc_reflection_answer((struct td_str){"\x3a\x00", 2}, &out, err);

    (void)arg;
    if (!s)
        assert_non_null(memmem(out.data, out.len, "tensord.v1", 10));
    td_bytes_clear(&out);
    s = s ? s : td_rpc_health_check(TD_STR(""), entries, 1, &out, err);
    if (!s)
        assert_memory_equal(out.data, "\x08\x01", 2); /* SERVING */
    td_bytes_deinit(&out);
    return s;
}

static void make_request(struct td_request *r)
{
    static const uint8_t breakers[] = {2, 128};

    td_request_init(r);
    r->id = 1;
    r->n_prompt = 3;
    r->prompt = calloc(3, sizeof *r->prompt);
    assert_non_null(r->prompt);
    r->prompt[1] = 7;
    r->max_tokens = 4;
    r->stops[0] = strdup("end");
    r->stop_bytes[0] = 3;
    r->n_stops = 1;
    r->sampling.n_bias = 2;
    r->sampling.bias[0] = r->sampling.bias[1] = (struct td_logit_bias){3, 1.0f};
    assert_int_equal(td_request_set_breakers(r, breakers, 2, NULL), TD_OK);
}

static void test_wire_brings_messages_over_or_memory_is_short(void **state)
{
    struct td_request r;

    (void)state;
    make_request(&r);
    (void)alloc_sweep("a submit", through_wire, &r);
    (void)alloc_sweep("a token", token_through_wire, NULL);
    (void)alloc_sweep("an assignment", assign_through_wire, NULL);
    (void)alloc_sweep("reflection and health", standard_services, NULL);
    td_request_deinit(&r);
}

/* ---- metrics, routes ---- */

static enum td_status count(void *arg, struct td_err *err)
{
    static char expected[4096];
    const struct td_metrics_label label = {"kind", "a\"b"};
    const struct td_metrics_desc desc[] = {
        {.kind = TD_METRICS_COUNTER,
         .name = "tensord_a_total",
         .help = "A.",
         .labels = &label,
         .n_labels = 1},
        {.kind = TD_METRICS_HISTOGRAM,
         .name = "tensord_b_seconds",
         .help = "B.",
         .buckets = td_metrics_seconds_buckets,
         .n_buckets = td_metrics_n_seconds_buckets},
    };
    struct td_metrics *m = NULL;
    struct td_metric *a = NULL, *b = NULL;
    struct td_bytes out = {0};
    enum td_status s = td_metrics_open(&m, err);

    (void)arg;
    if (s)
        return s;
    s = td_metrics_register(m, &desc[0], &a, err);
    s = s ? s : td_metrics_register(m, &desc[1], &b, err);
    if (!s) {
        td_metrics_add(a, 2);
        td_metrics_observe(b, 0.5);
        s = td_metrics_write(m, &out);
        if (s)
            td_err_set(err, s, "a buffer has no error of its own");
    }
    if (!s && !expected[0])
        memcpy(expected, out.data, out.len + 1);
    if (!s)
        assert_string_equal(out.data, expected);
    td_bytes_deinit(&out);
    td_metrics_close(m);
    return s;
}

static void no_answer(struct td_http_request *req, void *user)
{
    (void)req;
    (void)user;
}

static enum td_status add_routes(void *arg, struct td_err *err)
{
    char path[20][16];
    struct td_route route = {.method = "GET", .handler = no_answer};
    struct td_route_table *t = NULL;
    enum td_status s = td_route_table_open(&t, err);

    (void)arg;
    for (int i = 0; !s && i < 20; i++) {
        snprintf(path[i], sizeof path[i], "/a/%d", i);
        route.path = path[i];
        s = td_route_add(t, &route, err);
    }
    td_route_table_close(t);
    return s;
}

static void test_metrics_and_routes_are_there_or_memory_is_short(void **state)
{
    (void)state;
    (void)alloc_sweep("metrics", count, NULL);
    (void)alloc_sweep("routes", add_routes, NULL);
}

/* ---- the engine ---- */

enum { N_VOCAB = 16, N_REQUESTS = 3, N_TOKENS = 3 };

struct ends {
    uint32_t n_tokens[N_REQUESTS + 1], n_final[N_REQUESTS + 1];
    enum td_finish finish[N_REQUESTS + 1];
    enum td_status why[N_REQUESTS + 1];
};

static void on_event(const struct td_token_event *event, void *user)
{
    struct ends *ends = user;

    assert_true(event->request_id <= N_REQUESTS);
    assert_int_equal(ends->n_final[event->request_id], 0);
    ends->n_tokens[event->request_id] += event->has_token;
    ends->n_final[event->request_id] += event->finish != TD_FINISH_NONE;
    ends->finish[event->request_id] = event->finish;
    ends->why[event->request_id] = event->error ? event->error->status : TD_OK;
}

/* Runs steps until nothing is left to do. The model likes token 5 best. */
static enum td_status run_engine(struct td_engine *e, struct td_step *step, struct td_err *err)
{
    static float logits[16 * N_VOCAB];
    const struct td_step_result result = {.logits = logits};
    enum td_status s = TD_OK;

    for (size_t i = 0; i < 16 * N_VOCAB; i++)
        logits[i] = i % N_VOCAB == 5 ? 1.0f : 0.0f;
    for (int i = 0; !s && i < 64 && td_engine_plan_step(e, 0, step); i++)
        s = td_engine_complete_step(e, step->number, &result, 0, err);
    return s;
}

static enum td_status submit(struct td_engine *e, uint64_t id, bool plain, struct td_err *err)
{
    uint32_t prompt[] = {1, 2, 3, 4, 1, 2, 3, 4};
    struct td_request r;

    td_request_init(&r);
    r.id = id;
    r.prompt = prompt;
    r.n_prompt = 8;
    r.max_tokens = N_TOKENS;
    r.ignore_eos = true;
    r.sampling.n_logprobs = 1; /* whole rows */
    r.sampling.temperature = plain ? 0.0f : 0.7f;
    r.sampling.repetition_penalty = plain ? 1.0f : 1.2f;
    r.sampling.dry_multiplier = plain ? 0.0f : 1.0f;
    r.prompt_logprobs = plain ? -1 : 1;
    return td_engine_submit(e, &r, 0, err);
}

/* Three requests of which one is cancelled; then, with all the memory there is, one more, which must have all its tokens. */
static enum td_status serve(void *arg, struct td_err *err)
{
    static const enum td_layer_kind kinds[] = {TD_LAYER_ATTENTION};
    struct ends ends = {0};
    struct td_engine_params p = {.n_vocab = N_VOCAB,
                                 .max_model_len = 32,
                                 .max_num_seqs = 4,
                                 .max_batched_tokens = 16,
                                 .max_queue = 8,
                                 .block_tokens = 4,
                                 .n_blocks = 24,
                                 .prefix_cache = true,
                                 .max_draft_tokens = 2,
                                 .layer_kinds = kinds,
                                 .n_layers = 1,
                                 .on_event = on_event,
                                 .user = &ends};
    struct td_engine *e = NULL;
    struct td_step step = {0};
    struct td_err late = {0};
    bool submitted[N_REQUESTS] = {false};
    uint32_t rows, seqs, table;
    enum td_status s = td_engine_open(&p, &e, err), worst = TD_OK, st;

    (void)arg;
    if (s)
        return s;
    td_engine_step_caps(e, &rows, &seqs, &table);
    s = td_step_open(&step, rows, seqs, table, err);
    for (uint64_t i = 0; !s && i < N_REQUESTS; i++) {
        st = submit(e, i, i == 0, err);
        submitted[i] = st == TD_OK;
        worst = worst ? worst : st;
    }
    if (!s && submitted[2])
        assert_true(td_engine_cancel(e, 2));
    s = s ? s : run_engine(e, &step, err);
    alloc_fault_pause();
    for (uint64_t i = 0; !s && i < N_REQUESTS; i++) {
        assert_int_equal(ends.n_final[i], submitted[i]); /* each that was taken has ended, once */
        if (!submitted[i])
            continue;
        if (i == 2)
            assert_int_equal(ends.finish[i], TD_FINISH_CANCELLED);
        else if (ends.finish[i] == TD_FINISH_ERROR)
            assert_int_equal(worst = ends.why[i], TD_NO_MEMORY);
        else
            assert_int_equal(ends.n_tokens[i], N_TOKENS);
        if (ends.finish[i] == TD_FINISH_ERROR)
            td_err_set(err, TD_NO_MEMORY, "told by the event");
    }
    if (!s) {
        assert_int_equal(td_engine_check(e, &late), TD_OK);
        assert_int_equal(submit(e, N_REQUESTS, false, &late), TD_OK);
        assert_int_equal(run_engine(e, &step, &late), TD_OK);
        assert_int_equal(ends.finish[N_REQUESTS], TD_FINISH_LENGTH);
        assert_int_equal(ends.n_tokens[N_REQUESTS], N_TOKENS);
    }
    alloc_fault_resume();
    td_step_close(&step);
    td_engine_close(e);
    return s ? s : worst;
}

static void test_engine_serves_the_others_when_memory_is_short(void **state)
{
    (void)state;
    (void)alloc_sweep("an engine", serve, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_openai_bodies_are_read_or_memory_is_short),
        cmocka_unit_test(test_openai_answers_are_written_whole_or_not_at_all),
        cmocka_unit_test(test_wire_brings_messages_over_or_memory_is_short),
        cmocka_unit_test(test_metrics_and_routes_are_there_or_memory_is_short),
        cmocka_unit_test(test_engine_serves_the_others_when_memory_is_short),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
