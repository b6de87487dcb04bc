/* Which hosts of a hostfile a launch may use, as they die and come again. */
#include "tests/unit/check.h"

#include "daemon/coordinator/hosts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SECOND 1000000000u

static char path[64];

static struct td_hosts *open_hosts(const char *text)
{
    struct td_hosts *h;
    struct td_err err;
    FILE *f;

    snprintf(path, sizeof path, "/tmp/test_hosts_%d", (int)getpid());
    f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    if (td_hosts_open(path, &h, &err))
        fail_msg("%s", err.cause);
    return h;
}

static void expect(struct td_hosts *h, uint32_t n_wished, uint64_t now, uint32_t n_ranks,
                   const char *text)
{
    const char *file;
    char got[512] = {0};
    uint32_t n;
    struct td_err err;
    FILE *f;

    assert_int_equal(td_hosts_choose(h, n_wished, now, &file, &n, &err), TD_OK);
    assert_int_equal(n, n_ranks);
    f = fopen(file, "r");
    assert_non_null(f);
    assert_true(fread(got, 1, sizeof got - 1, f) > 0);
    fclose(f);
    assert_string_equal(got, text);
}

#define ALL "# ours\nn1 slots=2\nuser@n2.cluster slots = 2 max_slots=4\n\nn3\n"

static void test_hosts_stand_aside_and_come_again(void **state)
{
    struct td_hosts *h = open_hosts(ALL);
    const uint64_t t = 7 * SECOND, end = t + TD_HOSTS_ASIDE_NS;

    (void)state;
    expect(h, 4, t, 4, ALL); /* the file itself */
    assert_true(td_hosts_blame(h, "n1", true, t));
    expect(h, 4, t, 4, "user@n2.cluster slots = 2 max_slots=4\nn3\n");
    assert_true(td_hosts_blame(h, "n3", true, t + 1)); /* then there are two places */
    expect(h, 4, t + 2, 2, "user@n2.cluster slots = 2 max_slots=4\n");
    expect(h, 1, t + 2, 1, "user@n2.cluster slots = 2 max_slots=4\n");
    assert_true(td_hosts_blame(h, "n2", true, t + 2)); /* nobody is left: all are tried */
    expect(h, 4, t + 3, 4, ALL);
    expect(h, 4, end, 2, "n1 slots=2\n");
    expect(h, 4, end + 3, 4, ALL);
    td_hosts_close(h);
    unlink(path);
}

static void test_hosts_count_deaths_within_a_minute(void **state)
{
    struct td_hosts *h = open_hosts("n1 slots=1\nn2.a slots=1\nn2.b slots=1\n");

    (void)state;
    assert_false(td_hosts_blame(h, "n1", false, SECOND));
    assert_false(
        td_hosts_blame(h, "n1", false, SECOND + TD_HOSTS_ASIDE_NS + 1)); /* the first is old */
    assert_false(td_hosts_blame(h, "other", true, SECOND));
    assert_false(td_hosts_blame(h, "n2.a", false, SECOND)); /* and not n2.b */
    assert_false(td_hosts_blame(h, "n2.b", false, SECOND));
    expect(h, 3, SECOND, 3, "n1 slots=1\nn2.a slots=1\nn2.b slots=1\n");
    assert_true(td_hosts_blame(h, "N2.A", false, 2 * SECOND));
    expect(h, 3, 3 * SECOND, 2, "n1 slots=1\nn2.b slots=1\n");
    td_hosts_close(h);
    unlink(path);
}

static void test_hosts_refuses_a_file_without_hosts(void **state)
{
    struct td_hosts *h;
    struct td_err err;

    (void)state;
    h = open_hosts("a\n");
    td_hosts_close(h);
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(td_hosts_open(path, &h, &err), TD_INVALID);
    unlink(path);
    assert_int_equal(td_hosts_open(path, &h, &err), TD_IO);
    assert_non_null(strstr(err.cause, path));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hosts_stand_aside_and_come_again),
        cmocka_unit_test(test_hosts_count_deaths_within_a_minute),
        cmocka_unit_test(test_hosts_refuses_a_file_without_hosts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
