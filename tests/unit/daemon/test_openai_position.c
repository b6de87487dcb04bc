#include "../check.h"

#include "daemon/coordinator/openai_call.h"

#include <stdlib.h>
#include <string.h>

enum { N_MAX = 4 };

struct fixture {
    struct td_openai_call call;
    struct td_openai_part part[N_MAX];
};

static struct td_openai_call *call_of(struct fixture *f, size_t n)
{
    memset(f, 0, sizeof(*f));
    f->call.parts = f->part;
    f->call.n_parts = n;
    return &f->call;
}

static void expect_written(const struct td_openai_call *call, const char *id)
{
    struct td_bytes out = {0};
    assert_int_equal(td_openai_position_write(call, &out), TD_OK);
    assert_int_equal(out.len, strlen(id));
    assert_memory_equal(out.data, id, out.len);
    td_bytes_deinit(&out);
}

static void test_an_id_tells_how_far_each_answer_is(void **state)
{
    struct fixture f;
    struct td_openai_call *call = call_of(&f, 3);
    (void)state;
    expect_written(call, "-.-.-");
    f.part[0].role_sent = true;
    expect_written(call, "0.-.-");
    f.part[0].n_sent = 12;
    f.part[1].n_sent = UINT32_MAX;
    f.part[1].finish_sent = true;
    expect_written(call, "12.4294967295f.-");
    call->usage_sent = true;
    expect_written(call, "12.4294967295f.-.u");
    call = call_of(&f, 1);
    f.part[0].n_sent = 7;
    expect_written(call, "7");
}

static void test_an_id_becomes_the_state_that_it_tells(void **state)
{
    struct fixture f;
    struct td_openai_call *call = call_of(&f, 4);
    (void)state;
    assert_int_equal(td_openai_position_read(call, TD_STR("12.4294967295f.-.0.u"), NULL), TD_OK);
    assert_int_equal(f.part[0].n_known, 12);
    assert_true(f.part[0].role_sent && !f.part[0].finish_sent);
    assert_int_equal(f.part[1].n_known, UINT32_MAX);
    assert_true(f.part[1].role_sent && f.part[1].finish_sent);
    assert_int_equal(f.part[2].n_known, 0);
    assert_true(!f.part[2].role_sent && !f.part[2].finish_sent);
    assert_true(f.part[3].role_sent);
    assert_true(call->usage_sent);
    call = call_of(&f, 1);
    assert_int_equal(td_openai_position_read(call, TD_STR(""), NULL), TD_OK);
    assert_true(!f.part[0].role_sent && !call->usage_sent);
}

static void test_what_is_no_id_of_such_a_request_is_refused(void **state)
{
    static const char *const wrong[] = {
        "1",     "1.",    "1.2.3",        "1.2.u.u", "1.2.",
        "x.1",   "1.f",   "1.-f",         "+1.2",    " 1.2",
        "1.2ff", "1.2 ",  "4294967296.1", "..",      "1.2.U",
        "-.",    "-1.-1", "1,2",          "--.-",    "99999999999999999999999999999999999.1"};
    struct fixture f;
    struct td_err err;
    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct td_openai_call *call = call_of(&f, 2);
        if (td_openai_position_read(call, td_str_from(wrong[i]), &err) != TD_INVALID) {
            fail_msg("'%s' was read", wrong[i]);
        }
        assert_non_null(strstr(err.cause, wrong[i]));
    }
}

/* Any state survives being written and read, and any bytes are read or refused. */
static void test_ids_and_states_are_the_same(void **state)
{
    (void)state;
    srand(7);
    for (int round = 0; round < 20000; round++) {
        struct fixture a;
        struct fixture b;
        const size_t n = 1 + (size_t)rand() % N_MAX;
        struct td_openai_call *from = call_of(&a, n);
        struct td_openai_call *to = call_of(&b, n);
        struct td_bytes id = {0};
        for (size_t i = 0; i < n; i++) {
            a.part[i].role_sent = rand() % 2;
            a.part[i].n_sent = a.part[i].role_sent ? (uint32_t)rand() % 3000 : 0;
            a.part[i].finish_sent = a.part[i].role_sent && rand() % 2;
        }
        from->usage_sent = rand() % 2;
        assert_int_equal(td_openai_position_write(from, &id), TD_OK);
        assert_int_equal(td_openai_position_read(to, td_bytes_str(&id), NULL), TD_OK);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(b.part[i].n_known, a.part[i].n_sent);
            assert_int_equal(b.part[i].role_sent, a.part[i].role_sent);
            assert_int_equal(b.part[i].finish_sent, a.part[i].finish_sent);
        }
        assert_int_equal(to->usage_sent, from->usage_sent);
        id.data[(size_t)rand() % id.len] = (char)rand();
        (void)td_openai_position_read(call_of(&b, n), td_bytes_str(&id), NULL);
        td_bytes_deinit(&id);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_id_tells_how_far_each_answer_is),
        cmocka_unit_test(test_an_id_becomes_the_state_that_it_tells),
        cmocka_unit_test(test_what_is_no_id_of_such_a_request_is_refused),
        cmocka_unit_test(test_ids_and_states_are_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
