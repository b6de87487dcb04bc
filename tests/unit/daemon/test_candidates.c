#include "fake_coord.h"

#include "daemon/coordinator/candidates.h"

static struct td_coord *coord;
static uv_loop_t loop;

static void on_event(struct td_job *job, const struct td_job_event *event, void *user)
{
    (void)job;
    td_candidates_event(user, event);
}

static int setup(void **state)
{
    (void)state;
    assert_int_equal(uv_loop_init(&loop), 0);
    coord = fake_coord_current = fake_coord_open(&loop);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    fake_coord_close(coord);
    return uv_loop_close(&loop);
}

static struct td_request prompt_of(uint32_t n)
{
    struct td_request r;
    td_request_init(&r);
    r.prompt = calloc(n, sizeof(*r.prompt));
    r.n_prompt = n;
    r.max_tokens = 0;
    return r;
}

static enum td_status submit(struct td_request *r, struct td_candidate *list, uint32_t n,
                             uint32_t n_wanted, struct td_err *err)
{
    const struct td_coord_submit what = {
        .served = &coord->served, .request = r, .key = 3, .on_event = on_event};
    for (uint32_t i = 0; i < n; i++) {
        list[i] = (struct td_candidate){.user = &list[i]};
    }
    td_candidates_prepare(r, n, n_wanted);
    return td_candidates_submit(coord, &what, list, n, err);
}

static void test_candidates_are_copies_that_differ_by_their_number(void **state)
{
    struct td_candidate list[3];
    struct td_request r = prompt_of(5);
    (void)state;
    r.prompt[4] = 9;
    r.sampling.seed = 11;
    r.prompt_logprobs = 4;
    r.max_tokens = 7;
    assert_int_equal(submit(&r, list, 3, 3, NULL), TD_OK);
    assert_null(r.prompt); /* taken */
    for (uint32_t i = 0; i < 3; i++) {
        const struct td_request *of = &list[i].job->request;
        assert_ptr_equal(list[i].job, coord->jobs[i]);
        assert_int_equal(of->sampling.choice, i);
        assert_int_equal(of->sampling.seed, 11);
        assert_int_equal(of->sampling.n_logprobs, -1);
        assert_int_equal(of->prompt_logprobs, i == 0 ? 4 : -1);
        assert_int_equal(of->n_prompt, 5);
        assert_int_equal(of->prompt[4], 9);
    }
    assert_int_equal(coord->asked.n_jobs, 3);
    assert_int_equal(coord->asked.n_tokens, 3 * (5 + 7));
    assert_int_equal(coord->asked.key, 3);
    td_candidates_cancel(list, 3);
    assert_int_equal(coord->n_cancelled, 3);
    td_candidates_cancel(list, 3); /* none is open */
}

static void test_candidates_are_accepted_together_or_not_at_all(void **state)
{
    struct td_candidate list[4];
    struct td_request r = prompt_of(100);
    struct td_err err = {0};
    (void)state;
    assert_int_equal(submit(&r, list, 4, 4, &err), TD_TOO_LARGE);
    td_request_deinit(&r);
    r = prompt_of(5);
    coord->retry_after_s = 1;
    assert_int_equal(submit(&r, list, 4, 4, &err), TD_BUSY);
    assert_int_equal(coord->asked.n_tokens, 4 * 100); /* all that the context holds */
    assert_int_equal(coord->n_jobs, 0);
    coord->retry_after_s = 0;
    coord->max_jobs = 2; /* not what was promised: who began is given up by the caller */
    assert_int_equal(submit(&r, list, 4, 4, &err), TD_BUSY);
    assert_non_null(r.prompt);
    td_request_deinit(&r);
    td_candidates_cancel(list, 4);
    assert_int_equal(coord->n_cancelled, 2);
}

static void test_candidates_have_places_by_log_probability_per_token(void **state)
{
    static const struct {
        float logprob; /* of each token */
        uint32_t n;    /* tokens */
        uint32_t place;
    } rows[] = {{-1.0f, 1, 2}, {-0.5f, 9, 0}, {-2.0f, 1, 4}, {-0.5f, 2, 1}, {-1.0f, 6, 3}};
    struct td_candidate list[5];
    struct td_request r = prompt_of(5);
    (void)state;
    assert_int_equal(submit(&r, list, 5, 1, NULL), TD_OK);
    for (uint32_t i = 0; i < 5; i++) {
        struct td_job *job = list[i].job;
        assert_int_equal(job->request.sampling.n_logprobs, 0); /* choosing needs them */
        job->logprob = rows[i].logprob;
        for (uint32_t k = 1; k < rows[i].n; k++) {
            fake_coord_emit(job, "", TD_FINISH_NONE, NULL);
        }
        fake_coord_emit(job, "", TD_FINISH_STOP, NULL);
        assert_null(list[i].job);
    }
    for (uint32_t i = 0; i < 5; i++) {
        assert_int_equal(td_candidates_place(list, 5, i), rows[i].place);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_candidates_are_copies_that_differ_by_their_number),
        TEST(test_candidates_are_accepted_together_or_not_at_all),
        TEST(test_candidates_have_places_by_log_probability_per_token),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
