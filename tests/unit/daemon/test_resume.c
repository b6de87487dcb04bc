#include "daemon/journal/resume.h"

#include "tests/unit/daemon/journal_check.h"

/* Token t as rank 0 would tell it: every third without anything but its id. */
static struct td_token_event event_of(uint32_t t)
{
    struct td_token_event e = {
        .request_id = 77, .index = t, .has_token = true, .token.id = 100 + t};

    if (t % 3 == 0)
        return e;
    e.token.logprob = -0.5f * (float)t;
    e.token.rank = t;
    e.token.n_top = t % 3;
    for (uint32_t k = 0; k < e.token.n_top; k++)
        e.token.top[k] = (struct td_token_logprob){t + k, -1.0f - (float)k};
    e.state.mu = 10.0 / t;
    e.cached_tokens = t == 1 ? 6 : 0;
    e.queue_ns = t == 1 ? 12345 : 0;
    return e;
}

/* A request of which N tokens of part 3 were kept, and an entry of the prompt of part 2. */
static void make(struct journal_request *q, struct td_stored *s, uint32_t n)
{
    struct td_bytes bytes = {0};
    struct td_err err;

    journal_make(q, 1, 1); /* two prompts, two choices */
    q->prompts[0].prompt_logprobs = q->prompts[1].prompt_logprobs = 2;
    assert_int_equal(td_record_encode(&q->record, &bytes, &err), TD_OK);
    assert_int_equal(td_stored_init(s, 1, td_bytes_str(&bytes), &err), TD_OK);
    for (uint32_t t = 0; t < n; t++) {
        const struct td_token_event e = event_of(t);
        struct td_str detail;

        assert_int_equal(td_resume_detail(&e, &bytes, &err), TD_OK);
        assert_int_equal(bytes.len == 0, t % 3 == 0);
        detail = td_bytes_str(&bytes);
        const struct td_batch b = {
            .part = 3, .first = t, .n = 1, .ids = &e.token.id, .detail = &detail};
        assert_int_equal(td_stored_add(s, &b, &err), TD_OK);
    }
    td_bytes_deinit(&bytes);
}

static void test_resume_gives_back_every_token_as_it_was_told(void **state)
{
    struct journal_request q;
    struct td_token_event got;
    struct td_stored s;
    struct td_err err;

    (void)state;
    make(&q, &s, 9);
    for (uint32_t t = 0; t < 9; t++) {
        struct td_token_event want = event_of(t);

        assert_int_equal(td_resume_event(&s.parts[3].output, false, t, &got, &err), TD_OK);
        assert_true(got.has_token && !got.is_prompt && got.finish == TD_FINISH_NONE);
        assert_int_equal(got.index, t);
        assert_int_equal(got.token.id, want.token.id);
        assert_true(got.token.logprob == want.token.logprob && got.state.mu == want.state.mu);
        assert_int_equal(got.token.rank, want.token.rank);
        assert_int_equal(got.token.n_top, want.token.n_top);
        for (uint32_t k = 0; k < got.token.n_top; k++) {
            assert_int_equal(got.token.top[k].id, want.token.top[k].id);
            assert_true(got.token.top[k].logprob == want.token.top[k].logprob);
        }
        assert_int_equal(got.cached_tokens, want.cached_tokens);
        assert_int_equal(got.queue_ns, want.queue_ns);
    }
    td_stored_deinit(&s);
    journal_free(&q);
}

static void test_resume_makes_a_replay_of_each_part(void **state)
{
    struct journal_request q;
    struct td_stored s;
    struct td_err err;

    (void)state;
    make(&q, &s, 9);
    for (uint32_t part = 0; part < 4; part++) {
        struct td_request r, want;

        assert_int_equal(td_resume_request(&s, part, &r, &err), TD_OK);
        assert_int_equal(td_request_copy(&q.prompts[part / 2], &want), TD_OK);
        want.sampling.choice = part % 2;
        want.prompt_logprobs = part % 2 ? -1 : 2;
        journal_assert_prompt(&r, &want);
        assert_int_equal(r.n_emitted, part == 3 ? 9 : 0);
        for (uint32_t t = 0; t < r.n_emitted; t++)
            assert_int_equal(r.emitted[t], 100 + t);
        if (part == 3)
            assert_true(r.state.mu == 10.0 / 8);
        td_request_deinit(&want);
        td_request_deinit(&r);
    }
    td_stored_deinit(&s);
    journal_free(&q);
}

static void test_resume_refuses_damaged_details(void **state)
{
    const struct td_str bad = TD_STR("\xff\xff");
    const uint32_t id = 5;
    const struct td_batch b = {.part = 0, .n = 1, .ids = &id, .detail = &bad};
    struct journal_request q;
    struct td_request r;
    struct td_stored s;
    struct td_err err;

    (void)state;
    make(&q, &s, 0);
    assert_int_equal(td_stored_add(&s, &b, &err), TD_OK);
    assert_int_equal(td_resume_request(&s, 0, &r, &err), TD_CORRUPT);
    assert_string_equal(err.cause, "the details of token 0 of a request are damaged");
    td_stored_deinit(&s);
    journal_free(&q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resume_gives_back_every_token_as_it_was_told),
        cmocka_unit_test(test_resume_makes_a_replay_of_each_part),
        cmocka_unit_test(test_resume_refuses_damaged_details),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
