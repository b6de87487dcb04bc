/* How a group's sums travel: said, tried, kept. */
#include "daemon/engine/sumchoice.h"

#include "tests/unit/check.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { N = 3 };

struct rank {
    pthread_t thread;
    struct td_comm *comm;
    struct td_sumchoice_params params;
    struct td_sum_choices choices;
    struct td_err err;
    enum td_status status;
};

static void *run(void *arg)
{
    struct rank *r = arg;

    td_comm_set_deadline(r->comm, 20000000000u);
    r->status = td_sumchoice_make(r->comm, "here", &r->params, &r->choices, &r->err);
    return NULL;
}

/* All ranks agree, although one of them may not measure; returns rank 0's. */
static struct rank make_with(uint32_t n, struct td_sumchoice_params params, uint32_t may_not)
{
    struct td_comm *comms[N];
    struct rank ranks[N] = {0};

    assert_int_equal(td_comm_shm_open(n, NULL, comms, NULL), TD_OK);
    for (uint32_t r = 0; r < n; r++) {
        ranks[r].comm = comms[r];
        ranks[r].params = params;
        ranks[r].params.may_measure = params.may_measure && r != may_not;
        assert_int_equal(pthread_create(&ranks[r].thread, NULL, run, &ranks[r]), 0);
    }
    for (uint32_t r = 0; r < n; r++)
        pthread_join(ranks[r].thread, NULL);
    for (uint32_t r = 0; r < n; r++) {
        assert_int_equal(ranks[r].status, ranks[0].status);
        assert_memory_equal(&ranks[r].choices, &ranks[0].choices, sizeof ranks[0].choices);
        td_comm_close(comms[r]);
    }
    return ranks[0];
}

static struct rank make(uint32_t n, struct td_sumchoice_params params)
{
    return make_with(n, params, n);
}

static char cache[] = "/tmp/tensord-sums-XXXXXX";

static int count_files(char *path, size_t path_bytes)
{
    char command[128], line[256];
    int n = 0;
    FILE *f;

    snprintf(command, sizeof command, "find %s -type f", cache);
    f = popen(command, "r");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        snprintf(path, path_bytes, "%s", line);
        n++;
    }
    if (f)
        pclose(f);
    return n;
}

static void test_sumchoice_takes_what_is_said_and_refuses_what_the_group_has_not(void **state)
{
    struct rank r = make(3, (struct td_sumchoice_params){.algorithm = TD_SUM_DOUBLING});

    (void)state;
    assert_int_equal(r.status, TD_OK);
    for (int c = 0; c < TD_SUM_CLASSES; c++)
        assert_int_equal(r.choices.by_class[c], TD_SUM_DOUBLING);
    r = make(3, (struct td_sumchoice_params){.algorithm = TD_SUM_LANES});
    assert_int_equal(r.status, TD_INVALID);
    assert_string_equal(r.err.cause, "--sum-algorithm lanes: 3 ranks over 'shm' have auto, "
                                     "one-shot, two-shot, doubling");
}

static void test_sumchoice_does_not_try_where_cores_are_shared(void **state)
{
    struct rank r = make(3, (struct td_sumchoice_params){.may_measure = false});

    (void)state;
    assert_int_equal(r.status, TD_OK);
    for (int c = 0; c < TD_SUM_CLASSES; c++)
        assert_int_equal(r.choices.by_class[c], TD_SUM_AUTO);
}

/* As on hosts of which one has too few cores. */
static void test_sumchoice_does_not_try_where_one_rank_shares_its_cores(void **state)
{
    (void)state;
    for (uint32_t may_not = 0; may_not < 3; may_not++) {
        struct rank r = make_with(3, (struct td_sumchoice_params){.may_measure = true}, may_not);

        assert_int_equal(r.status, TD_OK);
        for (int c = 0; c < TD_SUM_CLASSES; c++)
            assert_int_equal(r.choices.by_class[c], TD_SUM_AUTO);
    }
}

static void test_sumchoice_keeps_what_it_found_and_ignores_a_damaged_file(void **state)
{
    struct rank first = make(3, (struct td_sumchoice_params){.may_measure = true}), again;
    char path[256] = "";
    FILE *f;

    (void)state;
    assert_int_equal(first.status, TD_OK);
    assert_true(first.choices.by_class[10] != TD_SUM_AUTO);
    assert_int_equal(count_files(path, sizeof path), 1);
    again = make(3, (struct td_sumchoice_params){.may_measure = true});
    assert_memory_equal(&again.choices, &first.choices, sizeof first.choices);

    /* What the file says is believed: all sums by doubling. */
    {
        char line[256], text[4096] = "";

        f = fopen(path, "r");
        assert_non_null(fgets(line, sizeof line, f));
        fclose(f);
        strcat(text, line);
        for (int c = 0; c < TD_SUM_CLASSES; c++)
            strcat(text, "doubling\n");
        f = fopen(path, "w");
        fputs(text, f);
        fclose(f);
        again = make(3, (struct td_sumchoice_params){.may_measure = true});
        assert_int_equal(again.choices.by_class[0], TD_SUM_DOUBLING);
        assert_int_equal(again.choices.by_class[TD_SUM_CLASSES - 1], TD_SUM_DOUBLING);

        /* Cut short: tried anew and written again. */
        f = fopen(path, "w");
        fwrite(text, 1, strlen(line) + 12, f);
        fclose(f);
    }
    again = make(3, (struct td_sumchoice_params){.may_measure = true});
    assert_int_equal(again.status, TD_OK);
    assert_int_equal(count_files(path, sizeof path), 1);
    f = fopen(path, "r");
    fseek(f, 0, SEEK_END);
    assert_true(ftell(f) > 100);
    fclose(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sumchoice_takes_what_is_said_and_refuses_what_the_group_has_not),
        cmocka_unit_test(test_sumchoice_does_not_try_where_cores_are_shared),
        cmocka_unit_test(test_sumchoice_does_not_try_where_one_rank_shares_its_cores),
        cmocka_unit_test(test_sumchoice_keeps_what_it_found_and_ignores_a_damaged_file),
    };
    char command[128];
    int failed;

    if (!mkdtemp(cache))
        return 1;
    setenv("XDG_CACHE_HOME", cache, 1);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    snprintf(command, sizeof command, "rm -r %s", cache);
    return system(command) != 0 ? 1 : failed;
}
