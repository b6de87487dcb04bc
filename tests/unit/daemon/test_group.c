/* A coordinator and its one worker in this process, over a real listener, on a real model: registration, loading, jobs, cancel,
 * unload and load again, drain, shutdown. */
#include "tests/unit/check.h"

#include "daemon/api/grpc_serve.h"
#include "daemon/api/listener.h"
#include "daemon/api/metrics.h"
#include "daemon/coordinator/group.h"
#include "daemon/engine/worker.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODEL TD_SHARED "/data/models/stories260K/hf"

#define STORY ", there was a little girl named Lily. She loved to play outside in the park."

struct rig {
    uv_loop_t loop;
    uv_timer_t limit;
    struct td_metrics *metrics;
    struct td_conn_pool *pool;
    struct td_grpc_serve_table *rpc;
    struct td_listener *listener;
    struct td_coord *coord;
    struct td_comm *world;
    struct td_worker *worker;
    struct td_auth key;
    bool worker_ended;
    enum td_status worker_status;
    struct td_err worker_err;
    /* One job's story. */
    struct td_bytes text;
    uint32_t n_tokens, n_ends;
    enum td_finish finish;
    struct td_err error;
    bool drained, unloaded, loaded;
    enum td_status load_status;
};

static void on_limit(uv_timer_t *timer)
{
    (void)timer;
    fail_msg("nothing happened within 20 s");
}

static void on_worker_end(enum td_status status, const struct td_err *err, void *user)
{
    struct rig *r = user;

    r->worker_ended = true;
    r->worker_status = status;
    if (err)
        r->worker_err = *err;
}

static void setup_limited(struct rig *r, const char *worker_key,
                          const struct td_coord_limits *limits)
{
    struct td_conn_config config;
    struct td_coord_params p = {
        .loop = &r->loop,
        .model = MODEL,
        .n_ranks = 1,
        .kv_dtype_auto = true,
        .limits = *limits,
        .wish = {.block_tokens = 16, .max_num_seqs = 4, .max_batched_tokens = 64}};
    struct td_listener_config listen = {.host = "127.0.0.1"};
    struct td_worker_params w = {
        .loop = &r->loop, .host = "127.0.0.1", .connect_limit_ns = 2000000000u};
    struct td_err err;

    memset(r, 0, sizeof *r);
    uv_loop_init(&r->loop);
    uv_timer_init(&r->loop, &r->limit);
    uv_timer_start(&r->limit, on_limit, 20000, 0);
    td_conn_config_default(&config);
    assert_int_equal(td_auth_add(&r->key, TD_STR("secret"), &err), TD_OK);
    assert_int_equal(td_metrics_open(&r->metrics, &err), TD_OK);
    p.metrics = r->metrics;
    assert_int_equal(td_coord_open(&p, &r->coord, &err), TD_OK);
    assert_int_equal(td_grpc_serve_table_open(NULL, &r->rpc, &err), TD_OK);
    td_coord_serve_workers(r->coord, r->rpc, &r->key);
    assert_int_equal(td_conn_pool_open(&r->loop, &config, &r->pool, &err), TD_OK);
    listen.service.rpc = r->rpc;
    assert_int_equal(td_listener_open(r->pool, &r->loop, &listen, &r->listener, &err), TD_OK);
    assert_int_equal(td_coord_start(r->coord, &err), TD_OK);
    assert_int_equal(td_comm_self_open(&r->world, &err), TD_OK);
    w.world = r->world;
    w.port = td_listener_port(r->listener);
    w.key = td_str_from(worker_key);
    w.node.n_threads = 1;
    assert_int_equal(td_worker_start(&w, on_worker_end, r, &r->worker, &err), TD_OK);
}

static void setup(struct rig *r, const char *worker_key)
{
    setup_limited(r, worker_key, &(struct td_coord_limits){.max_queue = 4});
}

static void teardown(struct rig *r)
{
    td_coord_stop(r->coord);
    while (!r->worker_ended)
        uv_run(&r->loop, UV_RUN_ONCE);
    td_worker_close(r->worker);
    td_listener_close(r->listener);
    td_conn_pool_close(r->pool, NULL, NULL);
    uv_close((uv_handle_t *)&r->limit, NULL);
    uv_run(&r->loop, UV_RUN_DEFAULT);
    td_coord_close(r->coord);
    td_grpc_serve_table_close(r->rpc);
    td_metrics_close(r->metrics);
    td_comm_close(r->world);
    td_bytes_deinit(&r->text);
    assert_int_equal(uv_loop_close(&r->loop), 0);
}

static void wait_ready(struct rig *r)
{
    while (!td_coord_ready(r->coord))
        uv_run(&r->loop, UV_RUN_ONCE);
}

static void on_event(struct td_job *job, const struct td_job_event *event, void *user)
{
    struct rig *r = user;

    (void)job;
    r->n_tokens += event->has_token;
    assert_int_equal(td_bytes_append_str(&r->text, event->text), TD_OK);
    if (event->finish != TD_FINISH_NONE) {
        r->n_ends++;
        r->finish = event->finish;
        if (event->error)
            r->error = *event->error;
    }
}

/* The prompt "Once upon a time" with BOS, as the reference gives its ids. */
static enum td_status try_submit(struct rig *r, uint32_t key, uint32_t max_tokens,
                                 uint64_t deadline_ns, struct td_job **job, struct td_err *err)
{
    static const uint32_t prompt[] = {1, 403, 407, 261, 378};
    struct td_request request;
    struct td_served *served;
    enum td_status s;

    td_request_init(&request);
    request.sampling.temperature = 0.0f;
    request.prompt = malloc(sizeof prompt);
    memcpy(request.prompt, prompt, sizeof prompt);
    request.n_prompt = 5;
    request.max_tokens = max_tokens;
    assert_int_equal(td_coord_find_model(r->coord, TD_STR("hf"), &served, err), TD_OK);
    const struct td_coord_submit what = {.served = served,
                                         .request = &request,
                                         .key = key,
                                         .deadline_ns = deadline_ns,
                                         .on_event = on_event,
                                         .user = r};

    s = td_coord_submit(r->coord, &what, job, err);
    td_request_deinit(&request); /* empty when it was taken */
    return s;
}

static struct td_job *submit(struct rig *r, uint32_t max_tokens)
{
    struct td_job *job;
    struct td_err err;

    assert_int_equal(try_submit(r, 0, max_tokens, 0, &job, &err), TD_OK);
    return job;
}

static void wait_end(struct rig *r, uint32_t n_ends)
{
    while (r->n_ends < n_ends)
        uv_run(&r->loop, UV_RUN_ONCE);
}

static bool no_model(void)
{
    if (access(MODEL "/config.json", R_OK) == 0)
        return false;
    print_message("skipped: shared: %s is not there\n", MODEL);
    return true;
}

static void test_group_of_one_gives_the_published_text(void **state)
{
    struct rig r;

    (void)state;
    if (no_model())
        skip();
    setup(&r, "secret");
    wait_ready(&r);
    submit(&r, 20);
    wait_end(&r, 1);
    assert_int_equal(r.finish, TD_FINISH_LENGTH);
    assert_int_equal(r.n_tokens, 20);
    assert_true(r.text.len >
                40); /* 20 tokens of the story in published-output.md beside the model */
    assert_memory_equal(r.text.data, STORY, r.text.len);
    for (int i = 0; i < 3;
         i++) /* three at once give the same text each, so three times as many tokens */
        submit(&r, 20);
    wait_end(&r, 4);
    assert_int_equal(r.n_tokens, 80);
    teardown(&r);
    assert_int_equal(r.worker_status, TD_OK);
}

static void test_group_cancelled_job_tells_nothing_more_and_frees_its_sequence(void **state)
{
    struct td_coord_status status;
    struct td_job *job;
    struct rig r;

    (void)state;
    if (no_model())
        skip();
    setup(&r, "secret");
    wait_ready(&r);
    job = submit(&r, 400);
    while (r.n_tokens < 3)
        uv_run(&r.loop, UV_RUN_ONCE);
    td_job_cancel(job);
    r.n_tokens = 0;
    do {
        uv_run(&r.loop, UV_RUN_ONCE);
        td_coord_status(r.coord, &status);
    } while (status.n_running || status.kv_blocks_used);
    assert_int_equal(r.n_tokens, 0);
    assert_int_equal(r.n_ends, 0);
    assert_int_equal(status.n_open, 0);
    teardown(&r);
}

static void test_group_holds_the_limits_of_each_key(void **state)
{
    struct td_coord_limits limits = {
        .max_queue = 3, .max_open_per_key = 2, .tokens_per_minute_per_key = 600};
    struct td_coord_standing standing;
    struct td_coord_status status;
    struct td_coord_ask ask = {.key = 1, .n_jobs = 3};
    struct td_job *jobs[8];
    struct td_err err;
    uint32_t retry_after_s = 0;
    struct rig r;

    (void)state;
    if (no_model())
        skip();
    setup_limited(&r, "secret", &limits);
    assert_int_equal(td_coord_admit(r.coord, &ask, &retry_after_s, &err), TD_UNAVAILABLE);
    assert_int_equal(retry_after_s, 1);
    wait_ready(&r);
    retry_after_s = 0;
    assert_int_equal(td_coord_admit(r.coord, &ask, &retry_after_s, &err), TD_INVALID);
    assert_int_equal(retry_after_s, 0); /* no waiting helps */
    for (int i = 0; i < 2; i++)         /* 5 + 95 each */
        assert_int_equal(try_submit(&r, 1, 95, 0, &jobs[i], &err), TD_OK);
    assert_int_equal(try_submit(&r, 1, 1, 0, &jobs[2], &err), TD_BUSY);
    assert_non_null(strstr(err.cause, "the limit is 2 at a time"));
    td_coord_standing(r.coord, 1, &standing);
    assert_int_equal(standing.n_open, 2);
    assert_true(standing.tokens_left >= 400 && standing.tokens_left <= 450);
    assert_int_equal(try_submit(&r, 2, 395, 0, &jobs[2], &err), TD_OK); /* 400 of another's 600 */
    assert_int_equal(try_submit(&r, 2, 395, 0, &jobs[3], &err), TD_BUSY);
    assert_non_null(strstr(err.cause, "the limit is 600 tokens per minute"));
    for (uint32_t i = 0; i < 4; i++) /* 4 run and 3 wait */
        assert_int_equal(try_submit(&r, 3 + i, 20, 0, &jobs[3 + i], &err), TD_OK);
    ask = (struct td_coord_ask){.key = 9, .n_jobs = 1};
    assert_int_equal(td_coord_admit(r.coord, &ask, &retry_after_s, &err), TD_BUSY);
    assert_true(retry_after_s >= 1 && retry_after_s <= 60);
    assert_non_null(strstr(err.cause, "7 requests are open"));
    td_coord_status(r.coord, &status);
    assert_int_equal(status.n_refused[TD_REFUSAL_NOT_READY], 1);
    assert_int_equal(status.n_refused[TD_REFUSAL_CONCURRENCY], 1);
    assert_int_equal(status.n_refused[TD_REFUSAL_TOKENS], 1);
    assert_int_equal(status.n_refused[TD_REFUSAL_QUEUE], 1);
    td_job_cancel(jobs[2]); /* what it did not generate comes back */
    wait_end(&r, 6);        /* everybody else is served */
    assert_int_equal(r.n_tokens >= 2 * 95 + 4 * 20, 1);
    td_coord_standing(r.coord, 2, &standing);
    assert_true(standing.n_open == 0 && standing.tokens_left >= 500);
    td_coord_standing(r.coord, 1, &standing);
    assert_true(standing.n_open == 0 && standing.tokens_left < 595);
    teardown(&r);
}

static void test_group_ends_a_job_at_its_deadline_and_frees_its_sequence(void **state)
{
    struct td_coord_limits limits = {.max_queue = 10, .request_timeout_ns = 400000000u};
    struct td_coord_status status;
    struct td_job *job, *first;
    struct td_err err;
    uint64_t now;
    struct rig r;

    (void)state;
    if (no_model())
        skip();
    setup_limited(&r, "secret", &limits);
    wait_ready(&r);
    now = uv_hrtime();
    assert_int_equal(try_submit(&r, 0, 400, now, &job, &err), TD_TIMED_OUT);
    /* One whose reader takes nothing holds no place and still ends; one that would run longer than the server allows. */
    assert_int_equal(try_submit(&r, 0, 400, now + 100000000u, &first, &err), TD_OK);
    td_job_pause(first, true);
    assert_int_equal(try_submit(&r, 0, 400, now + 3600000000000u, &job, &err), TD_OK);
    td_job_pause(job, true);
    wait_end(&r, 1);
    assert_true(uv_hrtime() >= now + 100000000u);
    assert_int_equal(r.finish, TD_FINISH_ERROR);
    assert_int_equal(r.error.status, TD_TIMED_OUT);
    td_coord_status(r.coord, &status);
    assert_int_equal(status.n_open, 1);
    wait_end(&r, 2);
    assert_true(uv_hrtime() >= now + 400000000u);
    do {
        uv_run(&r.loop, UV_RUN_ONCE);
        td_coord_status(r.coord, &status);
    } while (status.n_running || status.n_waiting || status.kv_blocks_used);
    assert_int_equal(status.n_open, 0);
    assert_int_equal(status.n_deadlines, 2);
    assert_int_equal(status.n_failed, 0);
    teardown(&r);
}

static void on_unloaded(enum td_status status, const struct td_err *err, uint64_t a, uint64_t b,
                        void *user)
{
    (void)err;
    (void)a;
    (void)b;
    assert_int_equal(status, TD_OK);
    ((struct rig *)user)->unloaded = true;
}

static void on_loaded(enum td_status status, const struct td_err *err, uint64_t a, uint64_t b,
                      void *user)
{
    struct rig *r = user;

    (void)err;
    (void)a;
    (void)b;
    r->loaded = true;
    r->load_status = status;
}

static void on_drained(enum td_status status, const struct td_err *err, uint64_t a, uint64_t b,
                       void *user)
{
    (void)err;
    assert_int_equal(status, TD_OK);
    assert_int_equal(a, 1);
    assert_int_equal(b, 0);
    ((struct rig *)user)->drained = true;
}

static void test_group_unloads_loads_again_and_drains(void **state)
{
    struct td_coord_load load = {.path = MODEL, .served_name = "hf"}, bad = {.path = "/nowhere"};
    struct rig r;

    (void)state;
    if (no_model())
        skip();
    setup(&r, "secret");
    wait_ready(&r);
    td_coord_unload_model(r.coord, TD_STR("hf"), on_unloaded, &r);
    assert_true(r.unloaded);
    assert_false(td_coord_ready(r.coord));
    td_coord_load_model(r.coord, &bad, on_loaded, &r);
    while (!r.loaded)
        uv_run(&r.loop, UV_RUN_ONCE);
    assert_int_not_equal(r.load_status, TD_OK);
    r.loaded = false;
    td_coord_load_model(r.coord, &load, on_loaded, &r);
    while (!r.loaded)
        uv_run(&r.loop, UV_RUN_ONCE);
    assert_int_equal(r.load_status, TD_OK);
    assert_true(td_coord_ready(r.coord));
    submit(&r, 20);
    td_coord_drain(r.coord, 0, on_drained, &r);
    assert_false(td_coord_ready(r.coord));
    while (!r.drained)
        uv_run(&r.loop, UV_RUN_ONCE);
    assert_int_equal(r.finish, TD_FINISH_LENGTH);
    assert_int_equal(r.n_tokens, 20);
    td_coord_unload_model(r.coord, TD_STR("hf"), on_unloaded, &r);
    r.loaded = false;
    td_coord_load_model(r.coord, &load, on_loaded, &r); /* which ends the drain */
    while (!r.loaded)
        uv_run(&r.loop, UV_RUN_ONCE);
    assert_true(td_coord_ready(r.coord));
    submit(&r, 20);
    wait_end(&r, 2);
    teardown(&r);
}

static void test_group_stops_while_a_model_is_being_opened(void **state)
{
    struct td_coord_load load = {.path = MODEL, .served_name = "hf"};
    struct rig r;

    (void)state;
    if (no_model())
        skip();
    setup(&r, "secret");
    wait_ready(&r);
    td_coord_unload_model(r.coord, TD_STR("hf"), on_unloaded, &r);
    td_coord_load_model(r.coord, &load, on_loaded, &r); /* on the pool now */
    teardown(&r);
    assert_true(r.loaded);
    assert_int_equal(r.load_status, TD_UNAVAILABLE);
    assert_int_equal(r.worker_status, TD_OK);
}

/* A LoadModel that its ranks fail at, not for what was asked: answered, and the group is not used up by it. */
static void test_group_answers_a_load_whose_worker_is_lost(void **state)
{
    struct td_coord_load load = {.path = MODEL, .served_name = "hf"};
    struct td_coord_status status;
    struct rig r;

    (void)state;
    if (no_model())
        skip();
    setup(&r, "secret");
    wait_ready(&r);
    td_coord_unload_model(r.coord, TD_STR("hf"), on_unloaded, &r);
    td_coord_load_model(r.coord, &load, on_loaded, &r);
    do {
        uv_run(&r.loop, UV_RUN_ONCE);
        td_coord_status(r.coord, &status);
    } while (status.state != TD_GROUP_LOADING);
    td_comm_abort(r.world);
    uv_sleep(2000); /* and the coordinator was away meanwhile: nobody is silent for that */
    while (!r.loaded && !td_coord_ready(r.coord))
        uv_run(&r.loop, UV_RUN_ONCE);
    td_coord_status(r.coord, &status);
    assert_true(r.loaded);
    assert_true(r.load_status == TD_OK ? status.served != NULL : status.served == NULL);
    teardown(&r);
}

static void test_group_refuses_a_worker_with_the_wrong_key(void **state)
{
    struct rig r;

    (void)state;
    if (no_model())
        skip();
    setup(&r, "guess");
    while (!r.worker_ended)
        uv_run(&r.loop, UV_RUN_ONCE);
    assert_int_equal(r.worker_status, TD_DENIED);
    assert_false(td_coord_ready(r.coord));
    teardown(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_group_of_one_gives_the_published_text),
        cmocka_unit_test(test_group_cancelled_job_tells_nothing_more_and_frees_its_sequence),
        cmocka_unit_test(test_group_holds_the_limits_of_each_key),
        cmocka_unit_test(test_group_ends_a_job_at_its_deadline_and_frees_its_sequence),
        cmocka_unit_test(test_group_unloads_loads_again_and_drains),
        cmocka_unit_test(test_group_stops_while_a_model_is_being_opened),
        cmocka_unit_test(test_group_answers_a_load_whose_worker_is_lost),
        cmocka_unit_test(test_group_refuses_a_worker_with_the_wrong_key),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
