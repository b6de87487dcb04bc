/* What a contender delivers is held to what it must deliver: two ranks as threads over shared memory. */
#include "daemon/cli/commop.h"

#include "tests/unit/check.h"

#include <pthread.h>
#include <string.h>

enum { BYTES = 4000, SECOND_NS = 1000 * 1000 * 1000 };

/* One rank's part. */
struct rank {
    struct td_comm *comm;
    enum td_commset_op op;
    size_t spoilt;         /* byte that this rank gives wrong; BYTES: none */
    enum td_status status; /* what verify said */
    struct td_err err;
    struct td_commop contender;
};

static void *run(void *arg)
{
    struct rank *r = arg;
    struct td_commop_bench b = {.world = r->comm};
    enum td_status s = td_commop_open(&b, BYTES, &r->err);

    if (s == TD_OK) {
        td_commop_begin(&b, r->op, r->op == TD_COMMSET_BARRIER ? 0 : BYTES);
        td_comm_set_deadline(r->comm, 20ull * SECOND_NS);
        if (r->spoilt < BYTES)
            b.send[r->spoilt] ^= 0x40;
        s = td_commop_verify(&b, &r->contender, &r->err);
    }
    r->status = s;
    td_commop_close(&b);
    return NULL;
}

/* Rank 1 gives `spoilt` wrong. */
static void verify(struct rank ranks[2], enum td_commset_op op, size_t spoilt)
{
    struct td_comm *comms[2];
    pthread_t threads[2];
    struct td_err err;

    assert_int_equal(td_comm_shm_open(2, NULL, comms, &err), TD_OK);
    for (int r = 0; r < 2; r++) {
        ranks[r] = (struct rank){
            .comm = comms[r],
            .op = op,
            .spoilt = r == 1 ? spoilt : BYTES,
            .contender = {.op = op,
                          .comm = comms[r],
                          .algorithm = op == TD_COMMSET_TREE_SUM ? TD_SUM_ONE_SHOT : TD_SUM_AUTO,
                          .name = "ours"}};
        assert_int_equal(pthread_create(&threads[r], NULL, run, &ranks[r]), 0);
    }
    for (int r = 0; r < 2; r++)
        pthread_join(threads[r], NULL);
    for (int r = 0; r < 2; r++)
        td_comm_close(comms[r]);
}

static void test_commop_takes_what_arrived_as_it_was_given(void **state)
{
    (void)state;
    for (int op = 0; op < TD_COMMSET_N_OPS; op++) {
        struct rank ranks[2];

        verify(ranks, (enum td_commset_op)op, BYTES);
        for (int r = 0; r < 2; r++) {
            if (ranks[r].status != TD_OK)
                fail_msg("%s: %s", td_commset_op_name((enum td_commset_op)op), ranks[r].err.cause);
        }
    }
}

static void test_commop_names_the_first_wrong_float_and_byte(void **state)
{
    (void)state;
    for (int op = 0; op < TD_COMMSET_BARRIER; op++) {
        struct rank ranks[2];
        size_t at = 2022; /* of float 505: rank 1 gives 2, its third byte is 0 */

        verify(ranks, (enum td_commset_op)op, at);
        assert_int_equal(ranks[0].status, TD_CORRUPT);
        assert_non_null(strstr(ranks[0].err.cause, "rank 0 of 2"));
        assert_non_null(strstr(ranks[0].err.cause, "ours of 4000 bytes"));
        assert_non_null(strstr(ranks[0].err.cause,
                               op == TD_COMMSET_TREE_SUM ? "float 505" : "byte 2022 from rank 1"));
    }
}

static void test_commop_marks_one_algorithm_as_the_one_that_is_taken(void **state)
{
    struct td_comm *comms[3];
    struct td_err err;

    (void)state;
    assert_int_equal(td_comm_shm_open(3, NULL, comms, &err), TD_OK);
    for (size_t floats = 2; floats < 1 << 22; floats *= 8) {
        size_t n_auto = 0;

        for (int a = TD_SUM_ONE_SHOT; a <= TD_SUM_DOUBLING; a++) {
            struct td_commop c = {
                .op = TD_COMMSET_TREE_SUM, .comm = comms[0], .algorithm = (enum td_sum_algorithm)a};

            n_auto += td_commop_is_auto(&c, floats * sizeof(float));
        }
        assert_int_equal(n_auto, 1);
    }
    for (int r = 0; r < 3; r++)
        td_comm_close(comms[r]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_commop_takes_what_arrived_as_it_was_given),
        cmocka_unit_test(test_commop_names_the_first_wrong_float_and_byte),
        cmocka_unit_test(test_commop_marks_one_algorithm_as_the_one_that_is_taken),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
