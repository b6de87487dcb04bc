#include "daemon/coordinator/flight.h"

#include "daemon/engine/wireflight.h"
#include "tests/unit/check.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct td_flight *make(void)
{
    struct td_flight *f = td_flight_open(3, 2);

    assert_non_null(f);
    for (uint32_t r = 0; r < 2; r++) {
        struct td_flight_rank *rank = &f->ranks[r];

        snprintf(rank->host, sizeof rank->host, "node-%u", r);
        rank->pid = 100 + r;
        rank->at = (struct td_whereabouts){.stage = TD_RECORDER_STEP,
                                           .number = 812,
                                           .n_rows = 4,
                                           .elapsed_ns = 2100000000u,
                                           .n_ops = 4 - r,
                                           .op_ns = 2000000000u};
        strcpy(rank->at.op, r == 0 ? "tree_sum" : "");
    }
    td_err_set(&f->cause, TD_PEER_LOST, "rank 1 on node-1 (process 101) closed its control stream");
    return f;
}

static void expect_verdict(const struct td_flight *f, const char *start)
{
    char text[700];

    td_flight_verdict(f, text, sizeof text);
    if (strncmp(text, start, strlen(start)) != 0)
        fail_msg("the verdict is '%s', expected '%s...'", text, start);
}

static void test_flight_blames_the_rank_that_vanished_first(void **state)
{
    struct td_flight *f = make();

    (void)state;
    /* Rank 0 says that its neighbour is gone before that one's stream closes. */
    td_flight_end_rank(f, 0, TD_FLIGHT_FAILED);
    td_flight_end_rank(f, 1, TD_FLIGHT_VANISHED);
    expect_verdict(f, "rank 1 on node-1 (process 101) ended without a word; it was last heard of "
                      "in step 812 (4 rows) for 2.1 s, computing behind exchange 2");
    td_flight_close(f);
    f = make();
    td_flight_end_rank(f, 1, TD_FLIGHT_VANISHED);
    td_flight_end_rank(f, 0, TD_FLIGHT_VANISHED); /* the launcher's doing */
    expect_verdict(f, "rank 1 on node-1 (process 101) ended without a word");
    td_flight_close(f);
}

static void test_flight_names_each_kind_of_end(void **state)
{
    struct td_flight *f = make();

    (void)state;
    expect_verdict(f, "no rank is known to be at fault: rank 1 on node-1");
    f->ranks[1].silence_ns = 1050000000u;
    td_flight_end_rank(f, 1, TD_FLIGHT_SILENT);
    expect_verdict(f, "rank 1 on node-1 (process 101) fell silent 1.1 s before; it was last heard "
                      "of in step 812");
    td_flight_close(f);
    f = make();
    td_flight_end_rank(f, 1, TD_FLIGHT_BLAMED);
    td_err_set(&f->cause, TD_PEER_TIMED_OUT, "step 812 did not end within 2 s");
    expect_verdict(f, "rank 1 on node-1 (process 101) is at fault: step 812 did not end");
    td_flight_close(f);
    f = make();
    td_flight_end_rank(f, 0, TD_FLIGHT_FAILED);
    strcpy(f->ranks[0].error, "no memory for a step");
    expect_verdict(f, "rank 0 on node-0 (process 100) failed: no memory for a step");
    td_flight_end_rank(f, 1, TD_FLIGHT_VANISHED);
    strcpy(f->launcher, "mpirun was killed by signal 9 (Killed)");
    expect_verdict(f, "mpirun ended first, and the ranks with it: mpirun was killed by signal 9");
    td_flight_close(f);
}

static void test_flight_report_says_what_is_known_and_how(void **state)
{
    struct td_flight *f = make();
    struct td_bytes out = {0};

    (void)state;
    f->ranks[0].has_record = true;
    f->ranks[0].record_ns = 9000000000u;
    f->ranks[0].n_steps = 1;
    f->ranks[0].steps = calloc(1, sizeof *f->ranks[0].steps);
    f->ranks[0].steps[0] = (struct td_recorder_step){.number = 811,
                                                     .hash = 0xabcdef,
                                                     .kind = 1,
                                                     .n_rows = 4,
                                                     .n_seqs = 3,
                                                     .begin_ns = 6000000000u,
                                                     .told_ns = 6002000000u,
                                                     .end_ns = 6500000000u,
                                                     .exchange_ns = 125000000u};
    td_flight_end_rank(f, 1, TD_FLIGHT_VANISHED);
    assert_int_equal(td_flight_write(f, "2026-11-22T12:00:00Z", &out), TD_OK);
    assert_non_null(strstr(out.data, "generation  3 of 2 ranks"));
    assert_non_null(strstr(out.data, "rank 0 on node-0, process 100: told its record"));
    assert_non_null(strstr(out.data, "in its exchange 3, tree_sum, for 2.0 s"));
    assert_non_null(strstr(out.data, "811 run        4     3 0000000000abcdef     3000.000      "
                                     "2.000    125.000    500.000  ok"));
    assert_non_null(strstr(out.data, "rank 1 on node-1, process 101: ended without a word"));
    assert_non_null(strstr(out.data, "its last heartbeat, all that is known of it: in step 812"));
    td_bytes_deinit(&out);
    td_flight_close(f);
}

static int is_name(const struct dirent *e)
{
    return e->d_name[0] != '.';
}

static void test_flight_keeps_the_newest_reports(void **state)
{
    char folder[] = "/tmp/td-flight-XXXXXX", path[160], sub[64];
    struct dirent **list;
    struct td_err err;
    int n;

    (void)state;
    assert_non_null(mkdtemp(folder));
    snprintf(sub, sizeof sub, "%s/state", folder); /* is made */
    for (int i = 0; i < 20; i++) {
        char name[48];

        snprintf(name, sizeof name, "20261122T1200%02d.000Z-g1", i);
        assert_int_equal(td_flight_save(sub, name, TD_STR("a report\n"), path, sizeof path, &err),
                         TD_OK);
    }
    n = scandir(sub, &list, is_name, alphasort);
    assert_int_equal(n, 16);
    assert_string_equal(list[0]->d_name, "flight-20261122T120004.000Z-g1.txt");
    assert_string_equal(list[15]->d_name, "flight-20261122T120019.000Z-g1.txt");
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof path, "%.60s/%.60s", sub, list[i]->d_name);
        unlink(path);
        free(list[i]);
    }
    free(list);
    assert_int_equal(rmdir(sub), 0); /* and no draft was left */
    assert_int_equal(td_flight_save("/nowhere/at/all", "x", TD_STR("y"), path, sizeof path, &err),
                     TD_IO);
    assert_non_null(strstr(err.cause, "/nowhere/at/all"));
    assert_int_equal(rmdir(folder), 0);
}

static void test_flight_travels_whole(void **state)
{
    struct td_recorder_step steps[300], read[TD_RECORDER_STEPS];
    struct td_whereabouts at = {.stage = TD_RECORDER_BETWEEN,
                                .number = 7,
                                .elapsed_ns = 8,
                                .limit_ns = 9,
                                .n_ops = 10,
                                .op_ns = 11,
                                .n_rows = 12,
                                .op = "all_gather"},
                          back;
    Tensord__Worker__V1__Flight *m;
    struct td_arena arena;

    (void)state;
    td_arena_init(&arena, 0, 0);
    for (uint32_t i = 0; i < 300; i++)
        steps[i] = (struct td_recorder_step){.number = i,
                                             .hash = i + 1,
                                             .kind = 2,
                                             .n_rows = i + 3,
                                             .n_seqs = i + 4,
                                             .status = 5,
                                             .begin_ns = i + 6,
                                             .told_ns = i + 7,
                                             .end_ns = i + 8,
                                             .exchange_ns = i + 9};
    m = td_wireflight_make(&at, 99, steps, 300, &arena);
    assert_non_null(m);
    td_wireflight_at_read(m->at, &back);
    assert_memory_equal(&back, &at, sizeof at);
    assert_int_equal(td_wireflight_steps_read(m, read), 256); /* a peer may say more */
    assert_memory_equal(read, steps + 44, sizeof read);
    m->at->operation = (char *)"a\"b\nc and far more than there is room for";
    m->at->stage = (Tensord__Worker__V1__Stage)77;
    td_wireflight_at_read(m->at, &back);
    assert_string_equal(back.op, "a?b?c?and?far?m");
    assert_int_equal(back.stage, TD_RECORDER_REST);
    td_wireflight_at_read(NULL, &back);
    assert_int_equal(back.number, 0);
    td_arena_deinit(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flight_blames_the_rank_that_vanished_first),
        cmocka_unit_test(test_flight_names_each_kind_of_end),
        cmocka_unit_test(test_flight_report_says_what_is_known_and_how),
        cmocka_unit_test(test_flight_keeps_the_newest_reports),
        cmocka_unit_test(test_flight_travels_whole),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
