#include "fake_coord.h"

#include "daemon/coordinator/inference_call.h"
#include "daemon/log.h"

/* One client and one server connection in memory; the server's calls go to Generate's callbacks, as grpc_serve.c passes
 * them on. */
struct fixture {
    uv_loop_t loop;
    struct td_coord *coord;
    struct td_inference_service service;
    struct td_grpc *client, *server;
    struct td_grpc_stream *s; /* the client's */
    size_t n_events;
    bool is_right; /* every event had the next index */
    struct td_bytes text;
    char order
        [256]; /* of the events: 'p' for log probabilities of the prompt, else the choice's digit, 'E' behind its end */
    struct td_bytes choice[8]; /* texts */
    size_t n_tokens[8];
    uint32_t n_prompt, n_ids; /* positions that were told; prompt_ids of the first event */
    uint32_t n_usages, completion_tokens;
    int n_closes;
    enum td_grpc_code code;
    char message[256];
    uint64_t seed;
};

static enum td_status on_call(void *user, struct td_grpc_stream *s, struct td_str path,
                              struct td_err *err)
{
    struct fixture *f = user;
    (void)path;
    td_grpc_stream_set_unary(s);
    return td_inference_call_open_generate(&f->service, s, err);
}

static void on_server_message(void *user, struct td_grpc_stream *s, struct td_str message)
{
    td_inference_call_message(&((struct fixture *)user)->service, s, message);
}

static void on_server_drain(void *user, struct td_grpc_stream *s)
{
    td_inference_generate_drain(&((struct fixture *)user)->service, s);
}

static void on_server_close(void *user, struct td_grpc_stream *s, enum td_grpc_code code,
                            struct td_str text)
{
    (void)text;
    td_inference_call_closed(&((struct fixture *)user)->service, s, code);
}

static void note_prompt(struct fixture *f, const Tensord__V1__GenerateEvent *event)
{
    for (size_t i = 0; i < event->n_prompt_logprobs; i++, f->n_prompt++) {
        const Tensord__V1__PromptLogprob *p = event->prompt_logprobs[i];
        bool has = p->has_logprob_case == TENSORD__V1__PROMPT_LOGPROB__HAS_LOGPROB_LOGPROB;
        assert_int_equal(p->position, f->n_prompt);
        assert_int_equal(p->id, f->n_prompt); /* as fake_coord_encoded has it */
        assert_int_equal(has, p->position > 0);
        assert_true(p->logprob == -(float)p->position);
        assert_int_equal(p->rank, has ? p->position + 1 : 0);
        assert_int_equal(p->n_top_logprobs, has ? 2 : 0);
        assert_true(!has || (p->top_logprobs[1]->id == 1 && p->top_logprobs[1]->logprob == -1));
    }
}

/* What the tests of several choices look at. */
static void note_choice(struct fixture *f, const Tensord__V1__GenerateEvent *event)
{
    size_t at = strlen(f->order);
    if (event->n_prompt_ids > 0) {
        assert_int_equal(f->n_events, 0);
        f->n_ids = (uint32_t)event->n_prompt_ids;
    }
    if (event->choice >= 8 || at + 3 > sizeof(f->order)) {
        return;
    }
    if (event->n_prompt_logprobs > 0) {
        f->order[at] = 'p';
        note_prompt(f, event);
        return;
    }
    f->order[at++] = (char)('0' + event->choice);
    f->order[at] = event->finish_reason != TENSORD__V1__FINISH_REASON__FINISH_REASON_NONE ? 'E' : 0;
    assert_int_equal(event->index, f->n_tokens[event->choice]);
    f->n_tokens[event->choice]++;
    assert_int_equal(td_bytes_append_str(&f->choice[event->choice], td_rpc_str(event->text)),
                     TD_OK);
}

static void on_client_message(void *user, struct td_grpc_stream *s, struct td_str message)
{
    struct fixture *f = user;
    ProtobufCMessage *m;
    td_grpc_stream_ack(s, message.len);
    assert_int_equal(td_rpc_unpack(&tensord__v1__generate_event__descriptor, message, 0, &m, NULL),
                     TD_OK);
    const Tensord__V1__GenerateEvent *event = (const void *)m;
    note_choice(f, event);
    f->is_right = f->is_right && event->index == f->n_events;
    f->n_events++;
    assert_int_equal(td_bytes_append_str(&f->text, td_rpc_str(event->text)), TD_OK);
    if (event->usage != NULL) {
        f->seed = event->usage->seed;
        f->n_usages++;
        f->completion_tokens = event->usage->completion_tokens;
    }
    td_rpc_free(m);
}

static void on_client_close(void *user, struct td_grpc_stream *s, enum td_grpc_code code,
                            struct td_str text)
{
    struct fixture *f = user;
    (void)s;
    f->n_closes++;
    f->code = code;
    snprintf(f->message, sizeof(f->message), "%.*s", (int)text.len, text.len > 0 ? text.ptr : "");
}

static int setup(void **state)
{
    static const struct td_grpc_callbacks server = {.on_call = on_call,
                                                    .on_message = on_server_message,
                                                    .on_drain = on_server_drain,
                                                    .on_close = on_server_close};
    static const struct td_grpc_callbacks client = {.on_message = on_client_message,
                                                    .on_close = on_client_close};
    struct fixture *f = calloc(1, sizeof(*f));
    struct td_grpc_limits limits;
    td_log_set_level(TD_LOG_ERROR);
    assert_int_equal(uv_loop_init(&f->loop), 0);
    f->coord = fake_coord_current = fake_coord_open(&f->loop);
    f->service.coord = f->coord;
    assert_int_equal(td_service_metrics_init(&f->service.metrics, f->coord->metrics, "g", NULL),
                     TD_OK);
    td_grpc_limits_default(&limits);
    limits.max_queued_bytes = 2000;
    limits.drain_mark_bytes = 500;
    limits.window_bytes = 65535;
    assert_int_equal(td_grpc_server_open(&server, &limits, f, &f->server, NULL), TD_OK);
    assert_int_equal(td_grpc_client_open(&client, &limits, f, &f->client, NULL), TD_OK);
    f->is_right = true;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    td_grpc_close(f->client);
    td_grpc_close(f->server);
    td_bytes_deinit(&f->text);
    for (int i = 0; i < 8; i++) {
        td_bytes_deinit(&f->choice[i]);
    }
    fake_coord_close(f->coord);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    td_log_set_level(TD_LOG_INFO);
    free(f);
    return 0;
}

static size_t move(struct td_grpc *from, struct td_grpc *to)
{
    char buf[1000];
    size_t n = td_grpc_pull(from, buf, sizeof(buf));
    if (n > 0) {
        assert_int_equal(td_grpc_feed(to, 1, buf, n, NULL), TD_OK);
    }
    return n;
}

static void pump(struct fixture *f)
{
    while (move(f->client, f->server) + move(f->server, f->client) > 0) {
    }
}

static void call(struct fixture *f, const Tensord__V1__GenerateRequest *m)
{
    struct td_bytes packed = {0};
    const struct td_grpc_call_params params = {.path = TD_STR("/tensord.v1.Inference/Generate")};
    assert_int_equal(td_grpc_client_call(f->client, 1, &params, &f->s, NULL), TD_OK);
    assert_int_equal(td_rpc_pack(&m->base, &packed, NULL), TD_OK);
    assert_int_equal(td_grpc_stream_send(f->s, td_bytes_str(&packed), NULL), TD_OK);
    td_grpc_stream_half_close(f->s);
    td_bytes_deinit(&packed);
    pump(f);
}

static Tensord__V1__GenerateRequest text_request(void)
{
    Tensord__V1__GenerateRequest m = TENSORD__V1__GENERATE_REQUEST__INIT;
    m.prompt_case = TENSORD__V1__GENERATE_REQUEST__PROMPT_TEXT;
    m.text = td_rpc_data(TD_STR("hello"));
    return m;
}

static struct td_job *begin(struct fixture *f)
{
    Tensord__V1__GenerateRequest m = text_request();
    call(f, &m);
    fake_coord_encoded(f->coord, 3);
    assert_int_equal(f->coord->n_jobs, 1);
    assert_int_equal(f->coord->jobs[0]->request.max_tokens, 0); /* all that the context holds */
    return f->coord->jobs[0];
}

static void test_inference_service_keeps_what_a_slow_client_does_not_take(void **state)
{
    struct fixture *f = *state;
    struct td_job *job = begin(f);
    for (int i = 0; i < 2000; i++) { /* the client takes nothing meanwhile */
        fake_coord_emit(job, "0123456789", TD_FINISH_NONE, NULL);
    }
    assert_true(job->paused);
    pump(f); /* it takes all: the job may go on */
    assert_false(job->paused);
    assert_int_equal(job->n_pauses, 1);
    uint64_t seed = td_job_seed(job);
    fake_coord_emit(job, "end", TD_FINISH_STOP, NULL);
    pump(f);
    assert_int_equal(f->n_events, 2001);
    assert_int_equal(f->completion_tokens, 2001);
    assert_true(f->is_right);
    assert_int_equal(f->text.len, 20003);
    assert_memory_equal(f->text.data + 20000, "end", 3);
    assert_int_equal(f->seed, seed);
    assert_int_equal(f->n_closes, 1);
    assert_int_equal(f->code, TD_GRPC_OK);
}

static void test_inference_service_tells_a_loss_after_what_was_generated(void **state)
{
    struct fixture *f = *state;
    struct td_err err = {0};
    struct td_job *job = begin(f);
    for (int i = 0; i < 500; i++) {
        fake_coord_emit(job, "0123456789", TD_FINISH_NONE, NULL);
    }
    td_err_set(&err, TD_PEER_LOST, "rank 1 is gone");
    fake_coord_emit(job, "", TD_FINISH_ERROR, &err);
    pump(f);
    assert_int_equal(f->n_events, 500);
    assert_int_equal(f->code, TD_GRPC_UNAVAILABLE);
    assert_string_equal(f->message, "rank 1 is gone");
}

static void call_at(struct fixture *f, const Tensord__V1__GenerateRequest *m, uint64_t now_ns,
                    uint64_t timeout_ns)
{
    struct td_bytes packed = {0};
    const struct td_grpc_call_params params = {.path = TD_STR("/tensord.v1.Inference/Generate"),
                                               .timeout_ns = timeout_ns};
    char buf[1000];
    assert_int_equal(td_grpc_client_call(f->client, now_ns, &params, &f->s, NULL), TD_OK);
    assert_int_equal(td_rpc_pack(&m->base, &packed, NULL), TD_OK);
    assert_int_equal(td_grpc_stream_send(f->s, td_bytes_str(&packed), NULL), TD_OK);
    td_grpc_stream_half_close(f->s);
    td_bytes_deinit(&packed);
    for (size_t n; (n = td_grpc_pull(f->client, buf, sizeof(buf))) > 0;) {
        assert_int_equal(td_grpc_feed(f->server, now_ns, buf, n, NULL), TD_OK);
    }
    pump(f);
}

static void test_inference_service_gives_the_job_the_calls_deadline(void **state)
{
    struct fixture *f = *state;
    struct td_err err = {0};
    Tensord__V1__GenerateRequest m = text_request();
    call_at(f, &m, 1000, 5000000);
    fake_coord_encoded(f->coord, 3);
    assert_int_equal(f->coord->jobs[0]->deadline_ns, 1000 + 5000000);
    fake_coord_emit(f->coord->jobs[0], "x", TD_FINISH_NONE, NULL);
    td_err_set(&err, TD_TIMED_OUT, "the time was up");
    fake_coord_emit(f->coord->jobs[0], "", TD_FINISH_ERROR, &err);
    pump(f);
    assert_int_equal(f->n_events, 1);
    assert_int_equal(f->code, TD_GRPC_DEADLINE_EXCEEDED);
    assert_string_equal(f->message, "the time was up");
    assert_true(td_metrics_value(f->service.metrics.requests[TD_SERVICE_TIMED_OUT]) == 1);
}

static void test_inference_service_cancels_the_job_when_the_call_expires(void **state)
{
    struct fixture *f = *state;
    Tensord__V1__GenerateRequest m = text_request();
    call_at(f, &m, 1000, 5000000);
    fake_coord_encoded(f->coord, 3);
    fake_coord_emit(f->coord->jobs[0], "x", TD_FINISH_NONE, NULL);
    pump(f);
    td_grpc_tick(f->server, 1000 + 5000000);
    pump(f);
    assert_int_equal(f->coord->n_cancelled, 1);
    assert_int_equal(f->code, TD_GRPC_DEADLINE_EXCEEDED);
    assert_true(td_metrics_value(f->service.metrics.requests[TD_SERVICE_TIMED_OUT]) == 1);
}

static void test_inference_service_hands_on_priority_and_salt(void **state)
{
    struct fixture *f = *state;
    Tensord__V1__GenerateRequest m = text_request();
    m.priority = -1000;
    m.cache_salt = td_rpc_data(TD_STR("s"));
    call(f, &m);
    fake_coord_encoded(f->coord, 3);
    assert_int_equal(f->coord->jobs[0]->request.priority, -1000);
    assert_int_equal(f->coord->jobs[0]->request.cache_salt, td_request_salt(0, TD_STR("s")));
    assert_int_equal(f->coord->jobs[0]->deadline_ns, 0);
    td_grpc_stream_cancel(f->s);
    pump(f);
}

static void test_inference_service_frees_the_job_of_a_client_that_cancels(void **state)
{
    struct fixture *f = *state;
    struct td_job *job = begin(f);
    fake_coord_emit(job, "x", TD_FINISH_NONE, NULL);
    td_grpc_stream_cancel(f->s);
    pump(f);
    assert_int_equal(f->coord->n_cancelled, 1);
}

static void test_inference_service_survives_a_cancel_while_the_text_is_encoded(void **state)
{
    struct fixture *f = *state;
    Tensord__V1__GenerateRequest m = text_request();
    call(f, &m);
    td_grpc_stream_cancel(f->s);
    pump(f);
    fake_coord_encoded(f->coord, 3);
    assert_int_equal(f->coord->n_jobs, 0);
}

static void test_inference_service_unpacks_long_messages_elsewhere(void **state)
{
    struct fixture *f = *state;
    static char text[200000];
    Tensord__V1__GenerateRequest m = text_request();
    memset(text, 'a', sizeof(text));
    m.text = td_rpc_data((struct td_str){text, sizeof(text)});
    td_grpc_close(f->client); /* one with room for the message */
    static const struct td_grpc_callbacks client = {.on_message = on_client_message,
                                                    .on_close = on_client_close};
    assert_int_equal(td_grpc_client_open(&client, NULL, f, &f->client, NULL), TD_OK);
    call(f, &m);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(f->coord->n_encodes, 1);
    assert_int_equal(f->coord->encodes[0].what.text.len, sizeof(text));
    fake_coord_encoded(f->coord, 100);
    pump(f);
    assert_int_equal(f->code, TD_GRPC_OUT_OF_RANGE);
}

/* ---- Several choices ---- */

static void begin_choices(struct fixture *f, uint32_t n, uint32_t best_of, bool with_prompt,
                          size_t n_prompt)
{
    Tensord__V1__GenerateRequest m = text_request();
    m.has_n_case = TENSORD__V1__GENERATE_REQUEST__HAS_N_N;
    m.n = n;
    m.echo_prompt_ids = true;
    if (best_of > 0) {
        m.has_best_of_case = TENSORD__V1__GENERATE_REQUEST__HAS_BEST_OF_BEST_OF;
        m.best_of = best_of;
    }
    if (with_prompt) {
        m.has_prompt_logprobs_case =
            TENSORD__V1__GENERATE_REQUEST__HAS_PROMPT_LOGPROBS_PROMPT_LOGPROBS;
        m.prompt_logprobs = 2;
    }
    call(f, &m);
    fake_coord_encoded(f->coord, n_prompt);
    pump(f);
    assert_int_equal(f->n_closes, 0);
    assert_int_equal(f->coord->n_jobs, best_of > 0 ? best_of : n);
}

static void check_choice(const struct fixture *f, uint32_t choice, const char *text)
{
    assert_int_equal(f->choice[choice].len, strlen(text));
    assert_memory_equal(f->choice[choice].data, text, strlen(text));
}

static void test_inference_service_streams_choices_as_they_come(void **state)
{
    struct fixture *f = *state;
    begin_choices(f, 3, 0, false, 3);
    struct td_job **jobs = f->coord->jobs;
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(jobs[i]->request.sampling.choice, i);
        assert_true(td_job_seed(jobs[i]) == td_job_seed(jobs[0]));
        assert_int_equal(jobs[i]->request.n_prompt, 3);
    }
    fake_coord_emit(jobs[1], "b", TD_FINISH_NONE, NULL);
    fake_coord_emit(jobs[0], "a", TD_FINISH_NONE, NULL);
    fake_coord_emit(jobs[0], "A", TD_FINISH_STOP, NULL);
    fake_coord_emit(jobs[2], "c", TD_FINISH_LENGTH, NULL);
    pump(f);
    assert_int_equal(f->n_usages, 0);
    assert_int_equal(f->n_closes, 0);
    fake_coord_emit(jobs[1], "B", TD_FINISH_STOP, NULL);
    pump(f);
    assert_string_equal(f->order, "100E2E1E");
    check_choice(f, 0, "aA");
    check_choice(f, 1, "bB");
    check_choice(f, 2, "c");
    assert_int_equal(f->n_ids, 3);
    assert_int_equal(f->n_usages, 1);
    assert_int_equal(f->completion_tokens, 5);
    assert_int_equal(f->code, TD_GRPC_OK);
    assert_true(td_metrics_value(f->service.metrics.requests[TD_SERVICE_OK]) == 1);
}

static void test_inference_service_sends_the_best_first_when_all_have_ended(void **state)
{
    struct fixture *f = *state;
    static const float worth[] = {-3, -1, -2, -0.5f};
    begin_choices(f, 2, 4, true, 20);
    for (uint32_t i = 0; i < 4; i++) {
        struct td_job *job = f->coord->jobs[i];
        char text[] = {(char)('a' + i), '\0'};
        assert_int_equal(job->request.sampling.n_logprobs, 0);
        assert_int_equal(job->request.prompt_logprobs, i == 0 ? 2 : -1);
        for (uint32_t k = 1; i == 0 && k < 20; k++) {
            fake_coord_emit_prompt(job, k);
        }
        job->logprob = worth[i];
        fake_coord_emit(job, text, TD_FINISH_NONE, NULL);
        pump(f);
        assert_string_equal(f->order, "pp"); /* 16 positions and 4; the rest waits */
        fake_coord_emit(job, "!", TD_FINISH_STOP, NULL);
    }
    pump(f);
    assert_string_equal(f->order, "pp00E11E");
    check_choice(f, 0, "d!");
    check_choice(f, 1, "b!");
    assert_int_equal(f->n_prompt, 20);
    assert_int_equal(f->n_usages, 1);
    assert_int_equal(f->completion_tokens, 8); /* of all four */
    assert_int_equal(f->code, TD_GRPC_OK);
}

static void test_inference_service_tells_the_prompt_before_any_choice(void **state)
{
    struct fixture *f = *state;
    begin_choices(f, 2, 0, true, 3);
    struct td_job **jobs = f->coord->jobs;
    for (int i = 0; i < 200; i++) { /* far ahead */
        fake_coord_emit(jobs[1], "0123456789", TD_FINISH_NONE, NULL);
    }
    pump(f);
    assert_int_equal(f->n_events, 0);
    assert_true(jobs[1]->paused);
    assert_false(jobs[0]->paused);
    fake_coord_emit_prompt(jobs[0], 1);
    fake_coord_emit_prompt(jobs[0], 2);
    fake_coord_emit(jobs[0], "a", TD_FINISH_LENGTH, NULL);
    pump(f);
    assert_false(jobs[1]->paused);
    assert_int_equal(f->n_prompt, 3);
    assert_int_equal(f->n_events, 1 + 200 + 1);
    assert_memory_equal(f->order, "p1111", 5);
    fake_coord_emit(jobs[1], "b", TD_FINISH_STOP, NULL);
    pump(f);
    check_choice(f, 0, "a");
    assert_int_equal(f->choice[1].len, 2001);
    assert_int_equal(f->n_usages, 1);
    assert_int_equal(f->completion_tokens, 202);
    assert_int_equal(f->code, TD_GRPC_OK);
}

static void test_inference_service_one_failure_ends_all_choices(void **state)
{
    struct fixture *f = *state;
    struct td_err err = {0};
    begin_choices(f, 3, 0, false, 3);
    fake_coord_emit(f->coord->jobs[0], "a", TD_FINISH_STOP, NULL);
    fake_coord_emit(f->coord->jobs[1], "b", TD_FINISH_NONE, NULL);
    td_err_set(&err, TD_TIMED_OUT, "the time was up");
    fake_coord_emit(f->coord->jobs[1], "", TD_FINISH_ERROR, &err);
    pump(f);
    assert_int_equal(f->coord->n_cancelled, 1); /* the third */
    assert_string_equal(f->order, "0E1");
    assert_int_equal(f->n_usages, 0);
    assert_int_equal(f->code, TD_GRPC_DEADLINE_EXCEEDED);
}

static void test_inference_service_cancels_all_choices_with_the_call(void **state)
{
    struct fixture *f = *state;
    begin_choices(f, 2, 5, true, 3);
    fake_coord_emit(f->coord->jobs[3], "x", TD_FINISH_STOP, NULL);
    fake_coord_emit(f->coord->jobs[4], "x", TD_FINISH_NONE, NULL);
    td_grpc_stream_cancel(f->s);
    pump(f);
    assert_int_equal(f->coord->n_cancelled, 4);
    assert_true(td_metrics_value(f->service.metrics.requests[TD_SERVICE_CANCELLED]) == 1);
}

static void test_inference_service_accepts_all_choices_or_none(void **state)
{
    struct fixture *f = *state;
    Tensord__V1__GenerateRequest m = text_request();
    m.has_n_case = TENSORD__V1__GENERATE_REQUEST__HAS_N_N;
    m.n = 4;
    f->coord->retry_after_s = 2;
    call(f, &m);
    fake_coord_encoded(f->coord, 3);
    pump(f);
    assert_int_equal(f->coord->asked.n_jobs, 4);
    assert_int_equal(f->coord->n_jobs, 0);
    assert_int_equal(f->code, TD_GRPC_RESOURCE_EXHAUSTED);
    f->coord->retry_after_s = 0;
    f->coord->max_jobs = 2; /* those that began are given up */
    call(f, &m);
    fake_coord_encoded(f->coord, 3);
    pump(f);
    assert_int_equal(f->coord->n_cancelled, 2);
    assert_int_equal(f->code, TD_GRPC_RESOURCE_EXHAUSTED);
}

static void check_refused(struct fixture *f, const Tensord__V1__GenerateRequest *m,
                          enum td_grpc_code code, const char *words)
{
    int before = f->n_closes;
    call(f, m);
    if (f->coord->n_encodes > 0) {
        fake_coord_encoded(f->coord, 3);
    }
    pump(f);
    assert_int_equal(f->n_closes, before + 1);
    assert_int_equal(f->code, code);
    assert_non_null(strstr(f->message, words));
}

static void test_inference_service_refuses_what_is_wrong_by_name(void **state)
{
    struct fixture *f = *state;
    static char other[] = "other";
    static char long_id[200];
    Tensord__V1__GenerateRequest m = TENSORD__V1__GENERATE_REQUEST__INIT;
    check_refused(f, &m, TD_GRPC_INVALID_ARGUMENT, "expected text, token_ids or chat");
    m = text_request();
    m.model = other;
    check_refused(f, &m, TD_GRPC_NOT_FOUND, "only 'm'");
    m = text_request();
    m.has_max_tokens_case = TENSORD__V1__GENERATE_REQUEST__HAS_MAX_TOKENS_MAX_TOKENS;
    check_refused(f, &m, TD_GRPC_INVALID_ARGUMENT, "max_tokens is 0");
    m = text_request();
    memset(long_id, 'r', sizeof(long_id) - 1);
    m.request_id = long_id;
    check_refused(f, &m, TD_GRPC_INVALID_ARGUMENT, "request_id has 199 bytes");
    m = text_request();
    ProtobufCBinaryData stops[17];
    for (int i = 0; i < 17; i++) {
        stops[i] = td_rpc_data(TD_STR("stop"));
    }
    m.n_stop = 17;
    m.stop = stops;
    check_refused(f, &m, TD_GRPC_INVALID_ARGUMENT, "17 stop strings");
    m.n_stop = 1;
    stops[0] = td_rpc_data(TD_STR(""));
    check_refused(f, &m, TD_GRPC_INVALID_ARGUMENT, "stop[0] has 0 bytes");
    Tensord__V1__Sampling sampling = TENSORD__V1__SAMPLING__INIT;
    m = text_request();
    m.sampling = &sampling;
    sampling.has_n_logprobs_case = TENSORD__V1__SAMPLING__HAS_N_LOGPROBS_N_LOGPROBS;
    sampling.n_logprobs = 21;
    check_refused(f, &m, TD_GRPC_INVALID_ARGUMENT, "n_logprobs is 21");
    m = text_request();
    m.has_n_case = TENSORD__V1__GENERATE_REQUEST__HAS_N_N;
    check_refused(f, &m, TD_GRPC_INVALID_ARGUMENT, "n is 0, expected 1 to 128");
    m.n = 129;
    check_refused(f, &m, TD_GRPC_INVALID_ARGUMENT, "n is 129, expected 1 to 128");
    m.n = 3;
    m.has_best_of_case = TENSORD__V1__GENERATE_REQUEST__HAS_BEST_OF_BEST_OF;
    m.best_of = 2;
    check_refused(f, &m, TD_GRPC_INVALID_ARGUMENT, "best_of is 2, expected n (3) to 128");
    m.best_of = 129;
    check_refused(f, &m, TD_GRPC_INVALID_ARGUMENT, "best_of is 129");
    m = text_request();
    m.has_prompt_logprobs_case = TENSORD__V1__GENERATE_REQUEST__HAS_PROMPT_LOGPROBS_PROMPT_LOGPROBS;
    m.prompt_logprobs = 21;
    check_refused(f, &m, TD_GRPC_INVALID_ARGUMENT, "prompt_logprobs is 21, expected 0 to 20");
    m = text_request();
    Tensord__V1__DryBreakers breakers = TENSORD__V1__DRY_BREAKERS__INIT;
    sampling = (Tensord__V1__Sampling)TENSORD__V1__SAMPLING__INIT;
    sampling.has_dry_multiplier_case = TENSORD__V1__SAMPLING__HAS_DRY_MULTIPLIER_DRY_MULTIPLIER;
    sampling.dry_multiplier = 1;
    m.sampling = &sampling;
    sampling.dry_sequence_breakers = &breakers;
    breakers.n_texts = 17;
    breakers.texts = stops;
    check_refused(f, &m, TD_GRPC_INVALID_ARGUMENT, "dry_sequence_breakers has 17 texts");
    breakers.n_texts = 1; /* stops[0] has none */
    check_refused(f, &m, TD_GRPC_INVALID_ARGUMENT, "dry_sequence_breakers[0] has 0 bytes");
    static char salt[257];
    m = text_request();
    m.priority = 1001;
    check_refused(f, &m, TD_GRPC_INVALID_ARGUMENT, "priority is 1001, expected -1000 to 1000");
    m = text_request();
    m.cache_salt = td_rpc_data((struct td_str){salt, sizeof(salt)});
    check_refused(f, &m, TD_GRPC_INVALID_ARGUMENT,
                  "cache_salt has 257 bytes, expected at most 256");
    Tensord__V1__ChatPrompt chat = TENSORD__V1__CHAT_PROMPT__INIT;
    m = text_request();
    m.prompt_case = TENSORD__V1__GENERATE_REQUEST__PROMPT_CHAT;
    m.chat = &chat;
    check_refused(f, &m, TD_GRPC_UNIMPLEMENTED, "there is no template");
    f->coord->max_jobs = 0;
    m = text_request();
    check_refused(f, &m, TD_GRPC_RESOURCE_EXHAUSTED, "requests are open");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_inference_service_keeps_what_a_slow_client_does_not_take),
        TEST(test_inference_service_tells_a_loss_after_what_was_generated),
        TEST(test_inference_service_gives_the_job_the_calls_deadline),
        TEST(test_inference_service_cancels_the_job_when_the_call_expires),
        TEST(test_inference_service_hands_on_priority_and_salt),
        TEST(test_inference_service_frees_the_job_of_a_client_that_cancels),
        TEST(test_inference_service_survives_a_cancel_while_the_text_is_encoded),
        TEST(test_inference_service_unpacks_long_messages_elsewhere),
        TEST(test_inference_service_streams_choices_as_they_come),
        TEST(test_inference_service_sends_the_best_first_when_all_have_ended),
        TEST(test_inference_service_tells_the_prompt_before_any_choice),
        TEST(test_inference_service_one_failure_ends_all_choices),
        TEST(test_inference_service_cancels_all_choices_with_the_call),
        TEST(test_inference_service_accepts_all_choices_or_none),
        TEST(test_inference_service_refuses_what_is_wrong_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
