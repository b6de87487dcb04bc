/* Compute threads of a group of one to four ranks on the shipped model, in one process over a simulated group: loading, requests,
 * idling, unloading and loading again, a lost rank. */
#include "tests/unit/check.h"

#include "comm/comm_sim.h"
#include "daemon/engine/compute.h"
#include "kernels/base/clock.h"

#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MODEL TD_SOURCE "/tests/models/tensord-tiny"

enum { MAX_RANKS = 4, N_TOKENS = 12 };

struct group {
    uint32_t n;
    struct td_comm *world[MAX_RANKS];
    struct td_compute *rank[MAX_RANKS];
    sem_t events;
    uint64_t n_submits;
};

static void notify(void *user)
{
    sem_post(&((struct group *)user)->events);
}

static void nap(void)
{
    struct timespec t = {0, 1000000};

    nanosleep(&t, NULL);
}

static void start(struct group *g, uint32_t n)
{
    struct td_node_params node = {.n_threads = 1};
    struct td_err err;

    memset(g, 0, sizeof *g);
    g->n = n;
    sem_init(&g->events, 0, 0);
    assert_int_equal(td_comm_sim_open(n, g->world, &err), TD_OK);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(td_compute_start(g->world[i], &node, notify, g, &g->rank[i], &err), TD_OK);
}

static void post(struct group *g, uint32_t rank, struct td_compute_command command)
{
    assert_int_equal(td_compute_post(g->rank[rank], &command), TD_OK);
}

static void post_all(struct group *g, enum td_compute_verb verb)
{
    for (uint32_t i = 0; i < g->n; i++)
        post(g, i, (struct td_compute_command){.verb = verb});
}

/* The next event of `rank` that is of that kind; others are passed over, but for failures. */
static struct td_compute_event await(struct group *g, uint32_t rank, enum td_compute_kind kind)
{
    uint64_t until = td_clock_now_ns() + 20000000000u;
    struct td_compute_event e;

    while (td_clock_now_ns() < until) {
        while (td_compute_take(g->rank[rank], &e)) {
            /* The requests of a group that fails are those of the next one. */
            if (kind == TD_COMPUTE_FAILED && e.kind == TD_COMPUTE_TOKEN)
                assert_int_not_equal(e.token.finish, TD_FINISH_ERROR);
            if (e.kind == kind)
                return e;
            if (e.kind == TD_COMPUTE_FAILED)
                fail_msg("rank %u failed: %s", rank, e.err.cause);
        }
        nap();
    }
    fail_msg("rank %u told nothing of kind %d within 20 s", rank, (int)kind);
    return e;
}

static void load(struct group *g)
{
    for (uint32_t i = 0; i < g->n; i++) {
        struct td_compute_load *l = calloc(1, sizeof *l);

        l->path = strdup(MODEL);
        l->max_queue = 4;
        l->op_limit_ns = 20000000000u;
        l->plan = (struct td_plan_params){.n_ranks = g->n,
                                          .kv_dtype = TD_F16,
                                          .block_tokens = 16,
                                          .max_model_len = 256,
                                          .max_num_seqs = 4,
                                          .max_batched_tokens = 64};
        post(g, i, (struct td_compute_command){.verb = TD_COMPUTE_LOAD, .load = l});
    }
    g->n_submits = 0;
}

static void await_loaded(struct group *g)
{
    for (uint32_t i = 0; i < g->n; i++)
        (void)await(g, i, TD_COMPUTE_LOADED);
}

/* As the coordinator does: to rank 0, and the count to the others. */
static void submit(struct group *g, uint64_t id, uint32_t first_token)
{
    struct td_request *r = calloc(1, sizeof *r);

    td_request_init(r);
    r->id = id;
    r->prompt = calloc(3, sizeof *r->prompt);
    r->prompt[0] = first_token;
    r->n_prompt = 3;
    r->max_tokens = N_TOKENS;
    r->ignore_eos = true;
    r->sampling.temperature = 0.0f;
    g->n_submits++;
    post(g, 0,
         (struct td_compute_command){
             .verb = TD_COMPUTE_SUBMIT, .request = r, .number = g->n_submits});
    for (uint32_t i = 1; i < g->n; i++)
        post(g, i, (struct td_compute_command){.verb = TD_COMPUTE_WAKE, .number = g->n_submits});
}

static void take_answer(struct group *g, uint64_t id, uint32_t ids[N_TOKENS])
{
    uint32_t n = 0;

    for (;;) {
        struct td_compute_event e = await(g, 0, TD_COMPUTE_TOKEN);

        if (e.token.request_id != id)
            continue;
        assert_true(e.token.has_token && n < N_TOKENS);
        ids[n++] = e.token.token.id;
        if (e.token.finish == TD_FINISH_NONE)
            continue;
        assert_int_equal(e.token.finish, TD_FINISH_LENGTH);
        assert_int_equal(n, N_TOKENS);
        return;
    }
}

static uint64_t steps_of(struct group *g, uint32_t rank)
{
    struct td_compute_gauges gauges;

    td_compute_gauges(g->rank[rank], &gauges);
    return gauges.n_steps;
}

/* All ranks have done the same steps, none is in the middle of one, and rank 0 has nothing to do: the followers sleep. */
static bool comes_to_rest(struct group *g)
{
    uint64_t until = td_clock_now_ns() + 3000000000u;
    uint32_t n_still = 0;
    uint64_t last = 0;

    while (n_still < 30 && td_clock_now_ns() < until) {
        uint64_t steps = steps_of(g, 0);
        bool same = steps == last;

        for (uint32_t i = 1; i < g->n; i++)
            same = same && steps_of(g, i) == steps;
        n_still = same ? n_still + 1 : 0;
        last = steps;
        nap();
    }
    return n_still == 30;
}

static void stop(struct group *g)
{
    post_all(g, TD_COMPUTE_EXIT);
    for (uint32_t i = 0; i < g->n; i++)
        (void)await(g, i, TD_COMPUTE_EXITED);
    for (uint32_t i = 0; i < g->n; i++)
        td_compute_close(g->rank[i]);
    for (uint32_t i = 0; i < g->n; i++)
        td_comm_close(g->world[i]);
    sem_destroy(&g->events);
}

static void test_compute_gives_the_same_ids_on_1_to_4_ranks_and_after_loading_again(void **state)
{
    uint32_t want[N_TOKENS], got[N_TOKENS];

    (void)state;
    for (uint32_t n = 1; n <= MAX_RANKS; n++) {
        struct group g;

        start(&g, n);
        load(&g);
        await_loaded(&g);
        submit(&g, 1, 5);
        take_answer(&g, 1, n == 1 ? want : got);
        if (n > 1)
            assert_memory_equal(got, want, sizeof want);
        post_all(&g, TD_COMPUTE_UNLOAD);
        for (uint32_t i = 0; i < n; i++)
            (void)await(&g, i, TD_COMPUTE_UNLOADED);
        post_all(&g, TD_COMPUTE_UNLOAD); /* one too many: nothing is loaded */
        load(&g);
        await_loaded(&g);
        submit(&g, 2, 5);
        take_answer(&g, 2, got);
        assert_memory_equal(got, want, sizeof want);
        stop(&g);
    }
}

static void
test_compute_puts_followers_back_to_sleep_after_a_request_that_gives_no_step(void **state)
{
    struct td_compute_event e;
    uint32_t ids[N_TOKENS];
    struct group g;
    uint64_t idle;

    (void)state;
    start(&g, 3);
    load(&g);
    await_loaded(&g);
    assert_true(comes_to_rest(&g));
    for (uint64_t id = 1; id < 4; id++) {
        idle = steps_of(&g, 0);
        submit(&g, id, UINT32_MAX); /* no such token: refused */
        e = await(&g, 0, TD_COMPUTE_REFUSED);
        assert_int_equal(e.request_id, id);
        assert_non_null(strstr(e.err.cause, "4294967295"));
        assert_true(comes_to_rest(&g));
        assert_int_equal(steps_of(&g, 2), idle + 1); /* told to sleep again */
    }
    submit(&g, 9, 5);
    take_answer(&g, 9, ids);
    assert_true(comes_to_rest(&g));
    stop(&g);
}

static void test_compute_ends_requests_that_are_open_when_the_model_goes(void **state)
{
    struct td_compute_gauges gauges;
    uint32_t n_ended = 0;
    struct group g;

    (void)state;
    start(&g, 2);
    load(&g);
    await_loaded(&g);
    for (uint64_t id = 1; id <= 4; id++)
        submit(&g, id, 5);
    post_all(&g, TD_COMPUTE_UNLOAD);
    while (n_ended < 4) {
        struct td_compute_event e = await(&g, 0, TD_COMPUTE_TOKEN);

        if (e.token.finish == TD_FINISH_NONE)
            continue;
        n_ended++;
        if (e.token.finish == TD_FINISH_ERROR) {
            assert_ptr_not_equal(e.token.error, NULL);
            assert_string_equal(e.err.cause, "the model was unloaded");
        }
    }
    (void)await(&g, 0, TD_COMPUTE_UNLOADED);
    td_compute_gauges(g.rank[0], &gauges);
    assert_int_equal(gauges.n_running + gauges.n_waiting + gauges.kv_blocks_used, 0);
    stop(&g);
}

static void test_compute_fails_on_every_rank_when_one_is_lost(void **state)
{
    struct group g;

    (void)state;
    start(&g, 3);
    load(&g);
    await_loaded(&g);
    for (uint64_t id = 1; id <= 3; id++)
        submit(&g, id, 5);
    (void)await(&g, 0, TD_COMPUTE_TOKEN);
    td_comm_sim_kill(g.world[1]);
    submit(&g, 4, 5); /* whoever was asleep finds out now */
    for (uint32_t i = 0; i < g.n; i++) {
        struct td_compute_event e = await(&g, i, TD_COMPUTE_FAILED);

        assert_int_equal(e.err.status, TD_PEER_LOST);
        td_compute_close(g.rank[i]);
    }
    for (uint32_t i = 0; i < g.n; i++)
        td_comm_close(g.world[i]);
    sem_destroy(&g.events);
}

static void test_compute_names_what_is_wrong_with_a_model(void **state)
{
    static const char *const words[] = {"/nowhere", "model hash"};

    (void)state;
    for (int round = 0; round < 2; round++) {
        struct group g;

        start(&g, 2);
        for (uint32_t i = 0; i < g.n; i++) {
            struct td_compute_load *l = calloc(1, sizeof *l);

            l->path = strdup(round == 0 && i == 1 ? "/nowhere" : MODEL); /* on one host only */
            if (round == 1)
                strcpy(l->model_hash, "00000000000000000000000000000000");
            l->plan = (struct td_plan_params){.n_ranks = 2,
                                              .kv_dtype = TD_F16,
                                              .block_tokens = 16,
                                              .max_num_seqs = 1,
                                              .max_batched_tokens = 8};
            post(&g, i, (struct td_compute_command){.verb = TD_COMPUTE_LOAD, .load = l});
        }
        for (uint32_t i = 0; i < g.n; i++) {
            struct td_compute_event e = await(&g, i, TD_COMPUTE_FAILED);

            assert_non_null(strstr(e.err.cause, words[round]));
            td_compute_close(g.rank[i]);
        }
        for (uint32_t i = 0; i < g.n; i++)
            td_comm_close(g.world[i]);
        sem_destroy(&g.events);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_compute_gives_the_same_ids_on_1_to_4_ranks_and_after_loading_again),
        cmocka_unit_test(
            test_compute_puts_followers_back_to_sleep_after_a_request_that_gives_no_step),
        cmocka_unit_test(test_compute_ends_requests_that_are_open_when_the_model_goes),
        cmocka_unit_test(test_compute_fails_on_every_rank_when_one_is_lost),
        cmocka_unit_test(test_compute_names_what_is_wrong_with_a_model),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
