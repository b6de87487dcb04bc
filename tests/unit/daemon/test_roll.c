/* A new group takes the place of another: a coordinator whose launches are workers in this process, over a real listener, on the model
 * that ships. Who is told what, what is refused, and that a sequence goes on with the same ids. */
#include "tests/unit/check.h"

#include "daemon/api/grpc_serve.h"
#include "daemon/api/listener.h"
#include "daemon/api/metrics.h"
#include "daemon/coordinator/group.h"
#include "daemon/engine/worker.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODEL TD_SOURCE "/tests/models/tensord-tiny"

enum { MAX_LAUNCHES = 4, MAX_IDS = 1200, BLOCK = 16 };

struct rig;

/* A launch of a group of one, by its generation. */
struct launch {
    struct rig *rig;
    struct td_comm *world;
    struct td_worker *worker; /* NULL: none */
    uint64_t memory_bytes;    /* 0: what the machine has */
    bool ended;
    enum td_status status;
};

struct story {
    uint32_t id[MAX_IDS];
    uint32_t n;
    enum td_finish finish;
};

struct rig {
    uv_loop_t loop;
    uv_timer_t limit;
    struct td_metrics *metrics;
    struct td_conn_pool *pool;
    struct td_grpc_serve_table *rpc;
    struct td_listener *listener;
    struct td_coord *coord;
    struct launch launches[MAX_LAUNCHES + 1];
    bool stopping;
    uint32_t n_told;
    enum td_status told;
    uint64_t told_generation;
    struct td_err told_err;
};

static void on_limit(uv_timer_t *timer)
{
    (void)timer;
    fail_msg("nothing happened within 60 s");
}

static void on_worker_end(enum td_status status, const struct td_err *err, void *user)
{
    struct launch *l = user;
    struct td_err ended;

    l->ended = true;
    l->status = status;
    td_err_set(&ended, TD_PEER_LOST, "the worker ended: %.200s", err ? err->cause : "");
    if (!l->rig->stopping)
        td_coord_launch_ended(l->rig->coord, (uint32_t)(l - l->rig->launches), &ended);
}

static enum td_status launch_start(void *user, uint32_t generation, uint32_t n_ranks,
                                   const char *hostfile, struct td_err *err)
{
    struct rig *r = user;
    struct launch *l = &r->launches[generation];
    struct td_worker_params w = {.loop = &r->loop,
                                 .host = "127.0.0.1",
                                 .port = td_listener_port(r->listener),
                                 .generation = generation,
                                 .connect_limit_ns = 2000000000u};

    assert_in_range(generation, 1, MAX_LAUNCHES);
    assert_int_equal(n_ranks, 1);
    assert_null(hostfile);
    l->rig = r;
    assert_int_equal(td_comm_self_open(&l->world, err), TD_OK);
    w.world = l->world;
    w.node.n_threads = 1;
    w.node.memory_bytes = l->memory_bytes;
    return td_worker_start(&w, on_worker_end, l, &l->worker, err);
}

static void launch_stop(void *user, uint32_t generation)
{
    struct launch *l = &((struct rig *)user)->launches[generation];
    struct td_err why;

    td_err_set(&why, TD_CANCELLED, "the launch was ended");
    if (l->worker && !l->ended)
        td_worker_leave(l->worker, &why);
}

static void setup(struct rig *r, bool launches)
{
    struct td_conn_config config;
    struct td_coord_params p = {
        .loop = &r->loop,
        .model = MODEL,
        .n_ranks = 1,
        .kv_dtype_auto = true,
        .limits = {.max_queue = 4},
        .wish = {.block_tokens = BLOCK, .max_num_seqs = 2, .max_batched_tokens = 64}};
    struct td_listener_config listen = {.host = "127.0.0.1"};
    struct td_err err;

    memset(r, 0, sizeof *r);
    uv_loop_init(&r->loop);
    uv_timer_init(&r->loop, &r->limit);
    uv_timer_start(&r->limit, on_limit, 60000, 0);
    td_conn_config_default(&config);
    assert_int_equal(td_metrics_open(&r->metrics, &err), TD_OK);
    p.metrics = r->metrics;
    if (launches)
        p.launcher = (struct td_group_launcher){launch_start, launch_stop, r};
    assert_int_equal(td_coord_open(&p, &r->coord, &err), TD_OK);
    assert_int_equal(td_grpc_serve_table_open(NULL, &r->rpc, &err), TD_OK);
    td_coord_serve_workers(r->coord, r->rpc, NULL);
    assert_int_equal(td_conn_pool_open(&r->loop, &config, &r->pool, &err), TD_OK);
    listen.service.rpc = r->rpc;
    assert_int_equal(td_listener_open(r->pool, &r->loop, &listen, &r->listener, &err), TD_OK);
    assert_int_equal(td_coord_start(r->coord, &err), TD_OK);
}

static bool all_ended(const struct rig *r)
{
    for (int i = 1; i <= MAX_LAUNCHES; i++)
        if (r->launches[i].worker && !r->launches[i].ended)
            return false;
    return true;
}

static void teardown(struct rig *r)
{
    r->stopping = true;
    td_coord_stop(r->coord);
    while (!all_ended(r))
        uv_run(&r->loop, UV_RUN_ONCE);
    for (int i = 1; i <= MAX_LAUNCHES; i++) {
        td_worker_close(r->launches[i].worker);
        td_comm_close(r->launches[i].world);
    }
    td_listener_close(r->listener);
    td_conn_pool_close(r->pool, NULL, NULL);
    uv_close((uv_handle_t *)&r->limit, NULL);
    uv_run(&r->loop, UV_RUN_DEFAULT);
    td_coord_close(r->coord);
    td_grpc_serve_table_close(r->rpc);
    td_metrics_close(r->metrics);
    assert_int_equal(uv_loop_close(&r->loop), 0);
}

static void wait_ready(struct rig *r)
{
    while (!td_coord_ready(r->coord))
        uv_run(&r->loop, UV_RUN_ONCE);
}

static struct td_coord_status status_of(struct rig *r)
{
    struct td_coord_status status;

    td_coord_status(r->coord, &status);
    return status;
}

static void wait_phase(struct rig *r, enum td_roll_phase phase)
{
    while (status_of(r).roll.phase != phase)
        uv_run(&r->loop, UV_RUN_ONCE);
}

static void on_told(enum td_status status, const struct td_err *err, uint64_t generation,
                    uint64_t load_ns, void *user)
{
    struct rig *r = user;

    (void)load_ns;
    r->n_told++;
    r->told = status;
    r->told_generation = generation;
    if (err)
        r->told_err = *err;
}

static void on_event(struct td_job *job, const struct td_job_event *event, void *user)
{
    struct story *s = user;

    (void)job;
    if (event->has_token) {
        assert_int_equal(event->index, s->n);
        assert_true(s->n < MAX_IDS);
        s->id[s->n++] = event->token->id;
    }
    s->finish = event->finish;
}

static void submit(struct rig *r, struct story *s)
{
    static const uint32_t prompt[] = {5, 9, 14, 20, 33};
    struct td_request request;
    struct td_served *served;
    struct td_job *job;
    struct td_err err;

    memset(s, 0, sizeof *s);
    td_request_init(&request);
    request.sampling.temperature = 0.9f;
    request.sampling.seed = 11;
    request.prompt = malloc(sizeof prompt);
    assert_non_null(request.prompt);
    memcpy(request.prompt, prompt, sizeof prompt);
    request.n_prompt = 5;
    request.max_tokens = MAX_IDS;
    request.ignore_eos = true;
    assert_int_equal(td_coord_find_model(r->coord, TD_STR(""), &served, &err), TD_OK);
    if (td_coord_submit(r->coord,
                        &(struct td_coord_submit){
                            .served = served, .request = &request, .on_event = on_event, .user = s},
                        &job, &err))
        fail_msg("%s", err.cause);
}

static void wait_tokens(struct rig *r, const struct story *s, uint32_t n)
{
    while (s->n < n && s->finish == TD_FINISH_NONE)
        uv_run(&r->loop, UV_RUN_ONCE);
}

static void check_equal(const struct story *s, const struct story *golden)
{
    assert_int_equal(s->finish, TD_FINISH_LENGTH);
    assert_int_equal(s->n, MAX_IDS);
    assert_memory_equal(s->id, golden->id, sizeof golden->id);
}

static bool no_model(void)
{
    if (access(MODEL "/model.safetensors", R_OK) == 0)
        return false;
    print_message("skipped: shared: the weights of %s are absent\n", MODEL);
    return true;
}

static void test_roll_at_once_goes_on_with_the_same_ids(void **state)
{
    struct td_coord_status other;
    struct story golden, cut;
    struct td_err err;
    struct rig r;
    bool was_cut;

    (void)state;
    if (no_model())
        skip();
    setup(&r, true);
    wait_ready(&r);
    submit(&r, &golden);
    wait_tokens(&r, &golden, MAX_IDS + 1);
    assert_int_equal(golden.n, MAX_IDS);
    submit(&r, &cut);
    wait_tokens(&r, &cut, 5);
    if (td_coord_replace(r.coord, 0, true, on_told, &r, &err))
        fail_msg("%s", err.cause);
    assert_int_equal(r.n_told, 0);
    assert_true(td_coord_status_other(r.coord, &other));
    assert_int_equal(other.role, TD_ROLE_NEXT);
    assert_int_equal(other.generation, 2);
    assert_int_equal(other.n_here, 0);
    assert_int_equal(status_of(&r).n_here, 1);
    while (!status_of(&r).roll.has_taken_over && !r.n_told)
        uv_run(&r.loop, UV_RUN_ONCE);
    was_cut = cut.finish == TD_FINISH_NONE; /* else it had ended, perhaps before the takeover */
    while (!r.n_told)
        uv_run(&r.loop, UV_RUN_ONCE);
    assert_int_equal(r.told, TD_OK);
    assert_int_equal(r.told_generation, 2);
    assert_true(r.launches[1].ended);
    assert_int_equal(r.launches[1].status, TD_OK); /* it was told to leave, and did */
    assert_false(td_coord_status_other(r.coord, &other));
    assert_int_equal(status_of(&r).generation, 2);
    wait_tokens(&r, &cut, MAX_IDS + 1);
    check_equal(&cut, &golden);
    assert_in_range(status_of(&r).roll.n_replayed + status_of(&r).roll.n_finished, was_cut, 1);
    assert_int_equal(status_of(&r).n_rolls_done, 1);
    teardown(&r);
    assert_int_equal(r.n_told, 1);
}

static void test_roll_tells_at_the_takeover_and_leaves_what_runs_where_it_is(void **state)
{
    struct td_coord_status other;
    struct story golden, running, young;
    struct td_err err;
    struct rig r;

    (void)state;
    if (no_model())
        skip();
    setup(&r, true);
    wait_ready(&r);
    submit(&r, &golden);
    wait_tokens(&r, &golden, MAX_IDS + 1);
    submit(&r, &running);
    wait_tokens(&r, &running, 5);
    assert_int_equal(td_coord_replace(r.coord, UINT64_MAX, false, on_told, &r, &err), TD_OK);
    while (!r.n_told)
        uv_run(&r.loop, UV_RUN_ONCE);
    assert_int_equal(r.told, TD_OK);
    assert_true(status_of(&r).roll.has_taken_over);
    if (td_coord_status_other(r.coord, &other) && other.n_here) { /* it has not ended meanwhile */
        assert_int_equal(other.role, TD_ROLE_LEAVING);
        assert_int_equal(other.state, TD_GROUP_DRAINING);
        assert_int_equal(td_coord_replace(r.coord, 0, false, on_told, &r, &err), TD_BUSY);
        assert_non_null(strstr(err.cause, "launch 1 still leaves"));
    }
    submit(&r, &young);
    wait_tokens(&r, &running, MAX_IDS + 1);
    wait_tokens(&r, &young, MAX_IDS + 1);
    check_equal(&running, &golden);
    check_equal(&young, &golden);
    wait_phase(&r, TD_ROLL_DONE);
    assert_int_equal(status_of(&r).roll.n_replayed, 0);
    assert_int_equal(r.n_told, 1);
    teardown(&r);
}

/* What is left of the memory of the second launch holds 100 blocks: nine tenths of what weights and buffers leave. */
static void test_roll_names_both_contexts_when_the_new_group_would_have_less(void **state)
{
    const struct td_plan_rank *rank;
    struct story golden, running;
    struct td_err err;
    size_t block_bytes;
    struct rig r;

    (void)state;
    if (no_model())
        skip();
    setup(&r, true);
    wait_ready(&r);
    submit(&r, &golden);
    wait_tokens(&r, &golden, MAX_IDS + 1);
    assert_int_equal(status_of(&r).plan->max_model_len, 2048);
    rank = &status_of(&r).plan->rank[0];
    block_bytes = rank->kv_bytes_per_token * BLOCK;
    r.launches[2].memory_bytes =
        rank->weight_bytes + rank->buffer_bytes + (100 * block_bytes + block_bytes / 2) / 9 * 10;
    submit(&r, &running);
    wait_tokens(&r, &running, 5);
    assert_int_equal(td_coord_replace(r.coord, 0, false, on_told, &r, &err), TD_OK);
    while (!r.n_told)
        uv_run(&r.loop, UV_RUN_ONCE);
    assert_int_equal(r.told, TD_TOO_LARGE);
    assert_non_null(strstr(r.told_err.cause, "a context of 1600 tokens"));
    assert_non_null(strstr(r.told_err.cause, "serves 2048"));
    assert_true(r.launches[2].ended); /* and nobody is told before */
    assert_int_equal(status_of(&r).generation, 1);
    assert_int_equal(status_of(&r).plan->max_model_len, 2048);
    assert_int_equal(status_of(&r).roll.phase, TD_ROLL_FAILED);
    assert_int_equal(status_of(&r).n_rolls_failed, 1);
    assert_string_equal(status_of(&r).last_error, "");
    wait_tokens(&r, &running, MAX_IDS + 1);
    check_equal(&running, &golden);
    assert_int_equal(td_coord_replace(r.coord, 0, true, on_told, &r, &err), TD_OK);
    while (r.n_told < 2)
        uv_run(&r.loop, UV_RUN_ONCE);
    assert_int_equal(r.told, TD_OK);
    assert_int_equal(r.told_generation, 3);
    teardown(&r);
}

static void on_unloaded(enum td_status status, const struct td_err *err, uint64_t a, uint64_t b,
                        void *user)
{
    (void)err;
    (void)a;
    (void)b;
    *(enum td_status *)user = status;
}

static void test_roll_refuses_another_and_tells_who_waits_when_the_server_stops(void **state)
{
    enum td_status unloaded = TD_OK;
    struct td_err err;
    struct rig r;

    (void)state;
    if (no_model())
        skip();
    setup(&r, true);
    assert_int_equal(td_coord_replace(r.coord, 0, true, on_told, &r, &err), TD_UNAVAILABLE);
    assert_non_null(strstr(err.cause, "the group is launching"));
    wait_ready(&r);
    assert_int_equal(td_coord_replace(r.coord, 0, true, on_told, &r, &err), TD_OK);
    assert_int_equal(td_coord_replace(r.coord, 0, true, on_told, &r, &err), TD_BUSY);
    assert_non_null(strstr(err.cause, "launch 2 is to take the place of launch 1"));
    td_coord_unload_model(r.coord, TD_STR(""), on_unloaded, &unloaded);
    assert_int_equal(unloaded, TD_BUSY);
    assert_int_equal(r.n_told, 0);
    teardown(&r);
    assert_int_equal(r.n_told, 1);
    assert_int_equal(r.told, TD_UNAVAILABLE);
}

static void test_roll_wants_a_launcher(void **state)
{
    struct td_err err;
    struct rig r;

    (void)state;
    if (no_model())
        skip();
    setup(&r, false);
    assert_int_equal(td_coord_replace(r.coord, 0, true, on_told, &r, &err), TD_UNSUPPORTED);
    assert_non_null(strstr(err.cause, "does not launch its group"));
    assert_int_equal(status_of(&r).roll.phase, TD_ROLL_NONE);
    teardown(&r);
    assert_int_equal(r.n_told, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_roll_at_once_goes_on_with_the_same_ids),
        cmocka_unit_test(test_roll_tells_at_the_takeover_and_leaves_what_runs_where_it_is),
        cmocka_unit_test(test_roll_names_both_contexts_when_the_new_group_would_have_less),
        cmocka_unit_test(test_roll_refuses_another_and_tells_who_waits_when_the_server_stops),
        cmocka_unit_test(test_roll_wants_a_launcher),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
