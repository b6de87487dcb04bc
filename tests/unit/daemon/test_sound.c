/* Whether a coordinator whose loop does not turn is seen to be late. */
#include "tests/unit/check.h"

#include "daemon/api/metrics.h"
#include "daemon/coordinator/group.h"

#include <string.h>

static void test_sound_names_a_look_that_is_overdue(void **state)
{
    uv_loop_t loop;
    struct td_coord_params p = {.loop = &loop};
    struct td_coord *coord;
    struct td_err err;
    uint64_t start;

    (void)state;
    uv_loop_init(&loop);
    assert_int_equal(td_metrics_open(&p.metrics, &err), TD_OK);
    assert_int_equal(td_coord_open(&p, &coord, &err), TD_OK);
    assert_true(td_coord_is_sound(coord, uv_hrtime(), &err)); /* not begun: nothing is due */
    assert_int_equal(td_coord_start(coord, &err), TD_OK);
    start = uv_hrtime();
    assert_true(td_coord_is_sound(coord, start, &err));
    assert_true(td_coord_is_sound(coord, start + 4000000000u, &err));
    assert_false(td_coord_is_sound(coord, start + 60000000000u, &err));
    assert_non_null(strstr(err.cause, "60.0 s ago"));
    td_coord_drain(coord, 1, NULL, NULL);
    assert_true(td_coord_is_sound(coord, uv_hrtime(), &err));
    for (int i = 0; i < 3; i++)
        uv_run(&loop, UV_RUN_ONCE);
    assert_true(td_coord_is_sound(coord, uv_hrtime(), &err));
    td_coord_stop(coord);
    assert_true(td_coord_is_sound(coord, start + 60000000000u, &err)); /* it has nothing to do */
    uv_run(&loop, UV_RUN_DEFAULT);
    td_coord_close(coord);
    td_metrics_close(p.metrics);
    assert_int_equal(uv_loop_close(&loop), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sound_names_a_look_that_is_overdue),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
