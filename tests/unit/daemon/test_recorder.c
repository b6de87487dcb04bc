#include "daemon/engine/recorder.h"

#include "kernels/base/clock.h"
#include "tests/unit/check.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static void run_step(struct td_recorder *r, uint64_t number, uint64_t hash)
{
    const struct td_recorder_step step = {
        .number = number, .kind = 1, .n_rows = (uint32_t)number + 3, .n_seqs = 2};

    td_recorder_begin(r, &step, 77);
    td_recorder_told(r, hash, 10);
    td_recorder_end(r, 0, 5);
}

static void test_recorder_tells_what_is_under_way(void **state)
{
    struct td_recorder *r = calloc(1, sizeof *r);
    const struct td_recorder_step step = {.number = 9, .kind = 1, .n_rows = 4, .n_seqs = 2};
    struct td_recorder_now now;
    uint64_t before;

    (void)state;
    td_recorder_reset(r, 500);
    assert_true(td_recorder_look(r, &now));
    assert_int_equal(now.stage, TD_RECORDER_REST);
    assert_int_equal(now.limit_ns, 0);
    td_recorder_await(r);
    assert_true(td_recorder_look(r, &now));
    assert_int_equal(now.stage, TD_RECORDER_BETWEEN);
    assert_int_equal(now.limit_ns, 500);
    before = td_clock_now_ns();
    td_recorder_begin(r, &step, 1234);
    assert_true(td_recorder_look(r, &now));
    assert_int_equal(now.stage, TD_RECORDER_STEP);
    assert_int_equal(now.limit_ns, 1234);
    assert_int_equal(now.step.number, 9);
    assert_int_equal(now.step.n_rows, 4);
    assert_true(now.since_ns >= before && now.step.begin_ns >= before);
    assert_true(now.base_ops == UINT64_MAX); /* not told */
    td_recorder_told(r, 0xabc, 21);
    assert_true(td_recorder_look(r, &now));
    assert_int_equal(now.base_ops, 21);
    assert_int_equal(now.step.hash, 0xabc);
    td_recorder_begin(r, &step, 1); /* again: nothing changes */
    assert_true(td_recorder_look(r, &now));
    assert_int_equal(now.base_ops, 21);
    assert_int_equal(now.limit_ns, 1234);
    td_recorder_end(r, 0, 55);
    assert_true(td_recorder_look(r, &now));
    assert_int_equal(now.stage, TD_RECORDER_BETWEEN);
    assert_int_equal(now.step.number, 10); /* the next one */
    free(r);
}

static void test_recorder_keeps_the_last_steps_in_order(void **state)
{
    struct td_recorder *r = calloc(1, sizeof *r);
    struct td_recorder_step steps[TD_RECORDER_STEPS];

    (void)state;
    td_recorder_reset(r, 0);
    assert_int_equal(td_recorder_steps(r, steps, TD_RECORDER_STEPS), 0);
    for (uint64_t i = 0; i < 1000; i++)
        run_step(r, i, i * i);
    assert_int_equal(td_recorder_steps(r, steps, TD_RECORDER_STEPS), 256);
    for (uint64_t i = 0; i < 256; i++) {
        assert_int_equal(steps[i].number, 744 + i);
        assert_int_equal(steps[i].hash, (744 + i) * (744 + i));
        assert_int_equal(steps[i].n_rows, 747 + i);
        assert_int_equal(steps[i].exchange_ns, 5);
        assert_true(steps[i].end_ns >= steps[i].told_ns && steps[i].told_ns >= steps[i].begin_ns);
    }
    assert_int_equal(td_recorder_steps(r, steps, 3), 3);
    assert_int_equal(steps[0].number, 997);
    td_recorder_reset(r, 0); /* another model */
    assert_int_equal(td_recorder_steps(r, steps, TD_RECORDER_STEPS), 0);
    free(r);
}

static void test_recorder_shows_the_step_that_failed(void **state)
{
    struct td_recorder *r = calloc(1, sizeof *r);
    struct td_recorder_step steps[4], step = {.number = 1, .kind = 1, .n_rows = 8};
    struct td_recorder_now now;

    (void)state;
    td_recorder_reset(r, 0);
    run_step(r, 0, 1);
    td_recorder_begin(r, &step, 0);
    td_recorder_end(r, 201, 9);
    assert_true(td_recorder_look(r, &now));
    assert_int_equal(now.stage, TD_RECORDER_STEP);
    assert_int_equal(now.step.number, 1);
    assert_int_equal(now.step.status, 201);
    assert_int_equal(td_recorder_steps(r, steps, 4), 2);
    assert_int_equal(steps[1].status, 201);
    free(r);
}

static const struct td_recorder_mark *mark_of(const struct td_recorder_mark *marks, uint32_t n,
                                              uint64_t number)
{
    for (uint32_t i = 0; i < n; i++)
        if (marks[i].number == number)
            return &marks[i];
    return NULL;
}

static void test_recorder_has_equal_marks_where_equal_steps_ran(void **state)
{
    struct td_recorder *a = calloc(1, sizeof *a), *b = calloc(1, sizeof *b),
                       *c = calloc(1, sizeof *c);
    struct td_recorder_mark ma[TD_RECORDER_MARKS], mb[TD_RECORDER_MARKS], mc[TD_RECORDER_MARKS];
    uint32_t na, nb, nc;

    (void)state;
    td_recorder_reset(a, 0);
    td_recorder_reset(b, 0);
    td_recorder_reset(c, 0);
    assert_int_equal(td_recorder_marks(a, ma), 0);
    for (uint64_t i = 0; i < 70; i++)
        run_step(a, i, i + 1);
    for (uint64_t i = 0; i < 67; i++) /* a rank that is three steps behind */
        run_step(b, i, i + 1);
    for (uint64_t i = 0; i < 70; i++) /* one that ran another step 5 */
        run_step(c, i, i == 5 ? 1000 : i + 1);
    na = td_recorder_marks(a, ma);
    nb = td_recorder_marks(b, mb);
    nc = td_recorder_marks(c, mc);
    assert_int_equal(na, 3); /* 69, and below 64: twice, by 8 and by 64 */
    assert_non_null(mark_of(ma, na, 69));
    assert_null(mark_of(mb, nb, 69));
    assert_int_equal(mark_of(ma, na, 63)->hash, mark_of(mb, nb, 63)->hash);
    assert_int_not_equal(mark_of(ma, na, 63)->hash, mark_of(mc, nc, 63)->hash);
    assert_int_not_equal(mark_of(ma, na, 69)->hash, mark_of(mc, nc, 69)->hash);
    free(a);
    free(b);
    free(c);
}

struct pair {
    struct td_recorder recorder;
    atomic_bool stop;
};

static void *write_on(void *arg)
{
    struct pair *p = arg;

    for (uint64_t i = 0; !atomic_load(&p->stop); i++)
        run_step(&p->recorder, i, i * 31 + 7);
    return NULL;
}

/* Whatever is read was once written whole: every field follows from the number. */
static void test_recorder_is_read_whole_while_it_is_written(void **state)
{
    struct pair *p = calloc(1, sizeof *p);
    struct td_recorder_step steps[TD_RECORDER_STEPS];
    struct td_recorder_now now;
    uint32_t n_steps = 0;
    pthread_t thread;

    (void)state;
    td_recorder_reset(&p->recorder, 0);
    assert_int_equal(pthread_create(&thread, NULL, write_on, p), 0);
    /* The writer may get the processor late. */
    for (int i = 0; i < 2000 || (n_steps == 0 && i < 20000000); i++) {
        uint32_t n = td_recorder_steps(&p->recorder, steps, TD_RECORDER_STEPS);

        for (uint32_t k = 0; k < n; k++) {
            assert_int_equal(steps[k].hash, steps[k].number * 31 + 7);
            assert_int_equal(steps[k].n_rows, (uint32_t)steps[k].number + 3);
            assert_true(k == 0 || steps[k].number > steps[k - 1].number);
        }
        n_steps += n;
        if (td_recorder_look(&p->recorder, &now) && now.stage == TD_RECORDER_STEP) {
            assert_int_equal(now.step.n_rows, (uint32_t)now.step.number + 3);
            assert_int_equal(now.limit_ns, 77);
        }
    }
    atomic_store(&p->stop, true);
    pthread_join(thread, NULL);
    assert_true(n_steps > 0);
    free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recorder_tells_what_is_under_way),
        cmocka_unit_test(test_recorder_keeps_the_last_steps_in_order),
        cmocka_unit_test(test_recorder_shows_the_step_that_failed),
        cmocka_unit_test(test_recorder_has_equal_marks_where_equal_steps_ran),
        cmocka_unit_test(test_recorder_is_read_whole_while_it_is_written),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
