#include "daemon/journal/eventlog.h"
#include "daemon/journal/stored.h"

#include "tests/unit/daemon/journal_check.h"

/* What a visitor saw, as a line of text. */
static enum td_status note(uint64_t number, const struct td_batch *b, void *user,
                           struct td_err *err)
{
    struct td_bytes *out = user;

    (void)err;
    if (!b)
        return td_bytes_appendf(out, "%llu drop\n", (unsigned long long)number);
    td_bytes_appendf(out, "%llu.%u %s%u:", (unsigned long long)number, b->part,
                     b->is_prompt ? "p" : "", b->first);
    for (uint32_t i = 0; i < b->n; i++)
        td_bytes_appendf(out, " %u%.*s", b->ids[i], b->detail ? (int)b->detail[i].len : 0,
                         b->detail ? b->detail[i].ptr : "");
    if (b->has_end)
        td_bytes_appendf(out, " end %d of %u %.*s %.*s", (int)b->end.finish, b->end.n_tokens,
                         (int)b->end.error_text.len, b->end.error_text.ptr, (int)b->end.details.len,
                         b->end.details.ptr);
    return td_bytes_append_str(out, TD_STR("\n"));
}

static void add(struct td_eventlog *log, uint64_t number, uint32_t part, uint32_t index,
                uint32_t id, const char *detail)
{
    const struct td_eventlog_token t = {.index = index, .id = id, .detail = td_str_from(detail)};

    assert_int_equal(td_eventlog_token(log, number, part, &t), TD_OK);
}

static void test_eventlog_gives_the_events_of_each_part_together(void **state)
{
    const struct td_batch_end stop = {.finish = TD_FINISH_STOP, .n_tokens = 3};
    const struct td_batch_end error = {.finish = TD_FINISH_ERROR,
                                       .n_tokens = 1,
                                       .error_status = TD_PEER_LOST,
                                       .error_text = TD_STR("rank 1"),
                                       .details = TD_STR("[d]")};
    const struct td_eventlog_token prompt = {.is_prompt = true, .index = 1, .id = 70};
    struct td_eventlog log = {0}, ends = {0};
    struct td_bytes seen = {0};
    struct td_err err;

    (void)state;
    add(&log, 8, 1, 0, 50, "");
    assert_int_equal(td_eventlog_token(&log, 7, 0, &prompt), TD_OK);
    add(&log, 7, 0, 0, 10, "a");
    add(&log, 8, 0, 0, 60, "");
    add(&log, 7, 0, 1, 11, "");
    add(&log, 8, 1, 1, 51, "");
    assert_int_equal(td_eventlog_end(&log, 8, 0, &error), TD_OK);
    add(&log, 7, 0, 2, 12, "bcd");
    assert_int_equal(td_eventlog_end(&log, 7, 0, &stop), TD_OK);
    add(&log, 8, 1, 3, 53, ""); /* a gap */
    assert_int_equal(td_eventlog_drop(&log, 9), TD_OK);
    assert_int_equal(td_eventlog_each(&log, note, &seen, &err), TD_OK);
    assert_string_equal(seen.data, "7.0 p1: 70\n"
                                   "7.0 0: 10a 11 12bcd end 1 of 3  \n"
                                   "8.0 0: 60 end 4 of 1 rank 1 [d]\n"
                                   "8.1 0: 50 51\n"
                                   "8.1 3: 53\n"
                                   "9 drop\n");
    td_bytes_clear(&seen);
    td_eventlog_keep_ends(&log, &ends, 1 << 20);
    assert_int_equal(ends.n, 3);
    assert_int_equal(td_eventlog_each(&ends, note, &seen, &err), TD_OK);
    assert_string_equal(seen.data, "7.0 0: end 1 of 3  \n"
                                   "8.0 0: end 4 of 1 rank 1 [d]\n"
                                   "9 drop\n");
    td_eventlog_keep_ends(&log, &ends, ends.bytes.len + 10); /* none of them has room */
    assert_int_equal(ends.n, 3);
    td_bytes_deinit(&seen);
    td_eventlog_deinit(&ends);
    td_eventlog_deinit(&log);
}

/* Batches in any order and number that a restart could leave: what is read is the run of tokens from the first on. */
static void test_stored_takes_what_follows_and_leaves_what_stands_behind_a_gap(void **state)
{
    const uint32_t ids[] = {100, 101, 102, 103, 104, 105};
    const struct td_str details[] = {TD_STR("a"), TD_STR(""),  TD_STR("ccc"),
                                     TD_STR("d"), TD_STR("e"), TD_STR("f")};
    const struct td_batch first = {.part = 1, .n = 2, .ids = ids, .detail = details};
    const struct td_batch again = {
        .part = 1, .first = 1, .n = 3, .ids = ids + 1, .detail = details + 1};
    const struct td_batch gap = {
        .part = 1, .first = 5, .n = 1, .ids = ids + 5, .detail = details + 5};
    const struct td_batch end6 = {
        .part = 1, .has_end = true, .end = {.finish = TD_FINISH_STOP, .n_tokens = 6}};
    const struct td_batch end4 = {.part = 1,
                                  .has_end = true,
                                  .end = {.finish = TD_FINISH_ERROR,
                                          .n_tokens = 4,
                                          .error_status = TD_IO,
                                          .error_text = TD_STR("why"),
                                          .details = TD_STR("more")}};
    const struct td_batch foreign = {.part = 4, .n = 1, .ids = ids};
    struct journal_request q;
    struct td_bytes bytes = {0};
    struct td_stored s;
    struct td_err err;

    (void)state;
    journal_make(&q, 1, 1); /* two prompts, two choices */
    assert_int_equal(td_record_encode(&q.record, &bytes, &err), TD_OK);
    assert_int_equal(td_stored_init(&s, 42, td_bytes_str(&bytes), &err), TD_OK);
    assert_int_equal(td_stored_add(&s, &first, &err), TD_OK);
    assert_int_equal(td_stored_add(&s, &gap, &err), TD_OK);
    assert_int_equal(td_stored_add(&s, &again, &err), TD_OK);
    assert_int_equal(td_stored_add(&s, &end6, &err), TD_OK);
    assert_int_equal(s.parts[1].output.n, 4);
    assert_memory_equal(s.parts[1].output.ids, ids, 4 * sizeof *ids);
    journal_assert_str(td_stored_detail(&s.parts[1].output, 0), TD_STR("a"));
    journal_assert_str(td_stored_detail(&s.parts[1].output, 1), TD_STR(""));
    journal_assert_str(td_stored_detail(&s.parts[1].output, 2), TD_STR("ccc"));
    assert_false(s.parts[1].has_end); /* two of its six tokens are not there */
    assert_int_equal(td_stored_add(&s, &end4, &err), TD_OK);
    assert_true(s.parts[1].has_end);
    assert_int_equal(s.parts[1].end.error_status, TD_IO);
    journal_assert_str(s.parts[1].end.error_text, TD_STR("why"));
    journal_assert_str(s.parts[1].end.details, TD_STR("more"));
    assert_int_equal(td_stored_add(&s, &foreign, &err), TD_CORRUPT);
    assert_string_equal(err.cause, "a batch is of part 4 of a request that has 4");
    assert_int_equal(s.parts[0].output.n, 0);
    td_stored_deinit(&s);
    td_bytes_deinit(&bytes);
    journal_free(&q);
}

static void test_batch_round_trips_and_refuses_what_contradicts_itself(void **state)
{
    const uint32_t ids[] = {0, 4000000000u, 7};
    const struct td_str details[] = {TD_STR(""), TD_STR("\0x"), TD_STR("yy")};
    struct td_batch b = {
        .part = 9,
        .is_prompt = true,
        .first = 3,
        .n = 3,
        .ids = ids,
        .detail = details,
        .has_end = true,
        .end = {.finish = TD_FINISH_LENGTH, .n_tokens = 6, .details = TD_STR("z")}};
    struct td_bytes bytes = {0};
    struct td_batch got;
    struct td_err err;

    (void)state;
    assert_int_equal(td_batch_encode(&b, &bytes, &err), TD_OK);
    assert_int_equal(td_batch_decode(td_bytes_str(&bytes), &got, &err), TD_OK);
    assert_true(got.part == 9 && got.is_prompt && got.first == 3 && got.n == 3 && got.has_end);
    assert_memory_equal(got.ids, ids, sizeof ids);
    for (int i = 0; i < 3; i++)
        journal_assert_str(got.detail[i], details[i]);
    assert_int_equal(got.end.finish, TD_FINISH_LENGTH);
    assert_int_equal(got.end.n_tokens, 6);
    assert_int_equal(got.end.error_status, TD_OK);
    journal_assert_str(got.end.details, TD_STR("z"));
    td_batch_deinit(&got);
    b.end.error_status = TD_IO;
    assert_int_equal(td_batch_encode(&b, &bytes, &err), TD_INVALID);
    b.end.error_status = TD_OK;
    b.first = UINT32_MAX - 1;
    assert_int_equal(td_batch_encode(&b, &bytes, &err), TD_TOO_LARGE);
    b.first = 0;
    b.part = TD_RECORD_MAX_PARTS;
    assert_int_equal(td_batch_encode(&b, &bytes, &err), TD_INVALID);
    assert_int_equal(td_batch_decode(TD_STR("\xff\xff\xff"), &got, &err), TD_CORRUPT);
    td_bytes_deinit(&bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_eventlog_gives_the_events_of_each_part_together),
        cmocka_unit_test(test_stored_takes_what_follows_and_leaves_what_stands_behind_a_gap),
        cmocka_unit_test(test_batch_round_trips_and_refuses_what_contradicts_itself),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
