#include "daemon/journal/journalpath.h"

#include "tests/unit/check.h"

#include <string.h>

static void expect(bool is_root, const char *state_home, const char *home, const char *want)
{
    const struct td_journalpath_facts facts = {is_root, state_home, home, 8000};
    struct td_err err;
    char path[64];

    assert_int_equal(td_journalpath_choose(&facts, path, sizeof path, &err), TD_OK);
    assert_string_equal(path, want);
}

static void test_journalpath_is_the_users_state_or_the_systems(void **state)
{
    (void)state;
    expect(true, NULL, "/root", "/var/lib/tensord/journal-8000.db");
    expect(true, "", NULL, "/var/lib/tensord/journal-8000.db");
    expect(true, "/state", "/root", "/state/tensord/journal-8000.db");
    expect(false, "/state", "/u", "/state/tensord/journal-8000.db");
    expect(false, "relative", "/u", "/u/.local/state/tensord/journal-8000.db");
    expect(false, NULL, "/u", "/u/.local/state/tensord/journal-8000.db");
}

static void test_journalpath_says_when_there_is_none(void **state)
{
    struct td_journalpath_facts facts = {.port = 1};
    struct td_err err;
    char path[64];

    (void)state;
    assert_int_equal(td_journalpath_choose(&facts, path, sizeof path, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "neither XDG_STATE_HOME nor HOME"));
    facts.home = "/a/long/folder";
    assert_int_equal(td_journalpath_choose(&facts, path, 20, &err), TD_TOO_LARGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_journalpath_is_the_users_state_or_the_systems),
        cmocka_unit_test(test_journalpath_says_when_there_is_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
