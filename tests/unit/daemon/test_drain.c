/* Drains of a coordinator with nothing open: who is told what, what may be taken back, and what the limits say. That open requests
 * end whole or at the limit is for tests/e2e/test_serve_drain.py. */
#include "tests/unit/check.h"

#include "daemon/api/metrics.h"
#include "daemon/coordinator/group.h"

#include <string.h>

struct rig {
    uv_loop_t loop;
    struct td_metrics *metrics;
    struct td_coord *coord;
    uint32_t n_told;
    enum td_status told;
    struct td_coord_drain_status status;
};

static void setup(struct rig *r)
{
    struct td_coord_params p = {.loop = &r->loop};
    struct td_err err;

    memset(r, 0, sizeof *r);
    uv_loop_init(&r->loop);
    assert_int_equal(td_metrics_open(&r->metrics, &err), TD_OK);
    p.metrics = r->metrics;
    assert_int_equal(td_coord_open(&p, &r->coord, &err), TD_OK);
    assert_int_equal(td_coord_start(r->coord, &err), TD_OK);
}

static void teardown(struct rig *r)
{
    td_coord_stop(r->coord);
    uv_run(&r->loop, UV_RUN_DEFAULT);
    td_coord_close(r->coord);
    td_metrics_close(r->metrics);
    assert_int_equal(uv_loop_close(&r->loop), 0);
}

static void look(struct rig *r)
{
    struct td_coord_status status;

    td_coord_status(r->coord, &status);
    r->status = status.drain;
}

static void on_told(enum td_status status, const struct td_err *err, uint64_t n_finished,
                    uint64_t n_ended, void *user)
{
    struct rig *r = user;

    (void)err;
    assert_int_equal(n_finished, 0);
    assert_int_equal(n_ended, 0);
    r->n_told++;
    r->told = status;
}

static void test_drain_ends_at_once_where_nothing_is_open_and_stays(void **state)
{
    struct rig r;

    (void)state;
    setup(&r);
    look(&r);
    assert_false(r.status.is_on);
    td_coord_drain(r.coord, 0, on_told, &r);
    assert_int_equal(r.n_told, 0); /* never from inside */
    look(&r);
    assert_true(r.status.is_on);
    assert_false(r.status.is_over);
    assert_false(r.status.has_limit);
    assert_false(r.status.is_last);
    while (!r.n_told)
        uv_run(&r.loop, UV_RUN_ONCE);
    assert_int_equal(r.told, TD_OK);
    look(&r);
    assert_true(r.status.is_on);
    assert_true(r.status.is_over);
    teardown(&r);
    assert_int_equal(r.n_told, 1);
}

static void test_drain_is_joined_with_the_new_limit(void **state)
{
    struct rig r;

    (void)state;
    setup(&r);
    td_coord_drain(r.coord, 1000000000000u, on_told, &r);
    look(&r);
    assert_true(r.status.has_limit);
    assert_in_range(r.status.left_ns, 900000000000u, 1000000000000u);
    td_coord_drain(r.coord, 2000000000000u, on_told, &r);
    look(&r);
    assert_in_range(r.status.left_ns, 1900000000000u, 2000000000000u);
    td_coord_drain(r.coord, UINT64_MAX, NULL, NULL);
    look(&r);
    assert_false(r.status.has_limit);
    while (r.n_told < 2)
        uv_run(&r.loop, UV_RUN_ONCE);
    assert_int_equal(r.told, TD_OK);
    teardown(&r);
    assert_int_equal(r.n_told, 2);
}

static void test_drain_that_is_taken_back_tells_who_waits(void **state)
{
    struct rig r;
    struct td_err err;

    (void)state;
    setup(&r);
    assert_int_equal(td_coord_drain_cancel(r.coord, &err), TD_OK); /* none is: nothing happens */
    td_coord_drain(r.coord, 0, on_told, &r);
    assert_int_equal(td_coord_drain_cancel(r.coord, &err), TD_OK);
    assert_int_equal(r.n_told, 1);
    assert_int_equal(r.told, TD_CANCELLED);
    look(&r);
    assert_false(r.status.is_on);
    td_coord_drain(r.coord, 0, on_told, &r); /* and another one */
    while (r.n_told < 2)
        uv_run(&r.loop, UV_RUN_ONCE);
    assert_int_equal(r.told, TD_OK);
    teardown(&r);
}

static void test_drain_before_the_end_is_neither_taken_back_nor_prolonged(void **state)
{
    struct rig r;
    struct td_err err;

    (void)state;
    setup(&r);
    td_coord_drain_last(r.coord, 1000000000000u, on_told, &r);
    td_coord_drain(r.coord, 0, NULL, NULL);
    td_coord_drain(r.coord, 2000000000000u, NULL, NULL);
    look(&r);
    assert_true(r.status.is_last);
    assert_true(r.status.has_limit);
    assert_in_range(r.status.left_ns, 900000000000u, 1000000000000u);
    td_coord_drain(r.coord, 500000000000u, NULL, NULL); /* sooner is allowed */
    look(&r);
    assert_in_range(r.status.left_ns, 400000000000u, 500000000000u);
    assert_int_equal(td_coord_drain_cancel(r.coord, &err), TD_UNAVAILABLE);
    assert_non_null(strstr(err.cause, "stopping"));
    look(&r);
    assert_true(r.status.is_on);
    teardown(&r);
    assert_int_equal(r.n_told, 1);
}

static void test_drain_has_room_for_so_many_who_wait_and_for_the_process(void **state)
{
    struct rig r;
    uint32_t n = 0;

    (void)state;
    setup(&r);
    while (r.n_told == 0 && n < 100) {
        td_coord_drain(r.coord, 0, on_told, &r);
        n++;
    }
    assert_int_equal(r.told, TD_BUSY);
    r.n_told = 0;
    td_coord_drain_last(r.coord, 0, on_told, &r);
    assert_int_equal(r.n_told, 0);
    while (r.n_told == 0)
        uv_run(&r.loop, UV_RUN_ONCE);
    assert_int_equal(r.n_told, n); /* all but the refused one, and the process */
    assert_int_equal(r.told, TD_OK);
    teardown(&r);
}

static void test_drain_tells_who_waits_when_the_server_stops(void **state)
{
    struct rig r;

    (void)state;
    setup(&r);
    td_coord_drain(r.coord, 0, on_told, &r);
    teardown(&r);
    assert_int_equal(r.n_told, 1);
    assert_int_equal(r.told, TD_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_drain_ends_at_once_where_nothing_is_open_and_stays),
        cmocka_unit_test(test_drain_is_joined_with_the_new_limit),
        cmocka_unit_test(test_drain_that_is_taken_back_tells_who_waits),
        cmocka_unit_test(test_drain_before_the_end_is_neither_taken_back_nor_prolonged),
        cmocka_unit_test(test_drain_has_room_for_so_many_who_wait_and_for_the_process),
        cmocka_unit_test(test_drain_tells_who_waits_when_the_server_stops),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
