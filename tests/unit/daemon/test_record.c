#include "daemon/journal/record.h"

#include "tests/unit/daemon/journal_check.h"

static void test_record_round_trips_every_field(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 60; i++) {
        struct journal_request q;
        struct td_bytes bytes = {0};
        struct td_record got;
        struct td_err err;

        journal_make(&q, 1, i);
        assert_int_equal(td_record_encode(&q.record, &bytes, &err), TD_OK);
        assert_int_equal(td_record_decode(td_bytes_str(&bytes), &got, &err), TD_OK);
        journal_assert_record(&got, &q.record);
        td_record_deinit(&got);
        td_bytes_deinit(&bytes);
        journal_free(&q);
    }
}

/* A record is written once and read after a restart: what is cut or changed is refused or read, and never more than that. */
static void test_record_refuses_every_beginning_of_one(void **state)
{
    struct journal_request q;
    struct td_bytes bytes = {0};
    struct td_record got;
    struct td_err err;
    size_t n_read = 0;

    (void)state;
    journal_make(&q, 1, 5);
    assert_int_equal(td_record_encode(&q.record, &bytes, &err), TD_OK);
    for (size_t n = 0; n < bytes.len; n++) {
        char *copy = malloc(n + 1);

        memcpy(copy, bytes.data, n);
        if (td_record_decode((struct td_str){copy, n}, &got, &err) == TD_OK) {
            n_read++;
            td_record_deinit(&got);
        } else {
            assert_int_equal(err.status, TD_CORRUPT);
        }
        free(copy);
    }
    /* Fields stand in the order of their numbers; without a deadline, or what stands before it, it is a record still. */
    assert_in_range(n_read, 1, 3);
    td_bytes_deinit(&bytes);
    journal_free(&q);
}

static void test_record_names_the_field_that_is_out_of_its_limits(void **state)
{
    struct journal_request q;
    struct td_bytes bytes = {0};
    struct td_err err;
    char id[200];

    (void)state;
    memset(id, 'x', sizeof id);
    journal_make(&q, 1, 3);
    q.record.id = (struct td_str){id, 129};
    assert_int_equal(td_record_encode(&q.record, &bytes, &err), TD_INVALID);
    assert_string_equal(err.cause, "a request's id has 129 bytes, expected 1 to 128");
    q.record.id = TD_STR("a b");
    assert_int_equal(td_record_encode(&q.record, &bytes, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "printable"));
    q.record.id = TD_STR("ok");
    q.record.idempotency = (struct td_str){id, 0};
    q.record.model_hash = TD_STR("00");
    assert_int_equal(td_record_encode(&q.record, &bytes, &err), TD_INVALID);
    assert_string_equal(err.cause, "a model's hash has 2 digits, expected 32");
    q.record.model_hash = TD_STR("0123456789abcdef0123456789abcdef");
    q.record.n_choices = 129;
    assert_int_equal(td_record_encode(&q.record, &bytes, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "129 answers to each"));
    q.record.n_choices = 1;
    q.record.api = (enum td_record_api)9;
    assert_int_equal(td_record_encode(&q.record, &bytes, &err), TD_INVALID);
    assert_string_equal(err.cause, "a request's API is 9, expected 1 to 3");
    td_bytes_deinit(&bytes);
    journal_free(&q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_record_round_trips_every_field),
        cmocka_unit_test(test_record_refuses_every_beginning_of_one),
        cmocka_unit_test(test_record_names_the_field_that_is_out_of_its_limits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
