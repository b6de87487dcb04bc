#include "api_server.h"
#include "fake_coord.h"

#include "daemon/coordinator/openai_service.h"

static struct td_auth keys;
static struct td_route_table *routes;
static struct td_coord *coord;
static struct td_openai_service *service;
static struct api_server *server;
static atomic_int n_jobs, n_encodes, n_cancelled;
static size_t encode_ids; /* what encode_one answers */
static char answer[1 << 20];

static int setup(void **state)
{
    (void)state;
    struct td_conn_config config;
    struct td_err err = {0};
    td_log_set_level(TD_LOG_ERROR);
    td_conn_config_default(&config);
    config.sndbuf_bytes = 4096;
    config.write_queue_bytes = 4096;
    memset(&keys, 0, sizeof(keys));
    assert_int_equal(td_auth_add(&keys, TD_STR("k"), &err), TD_OK);
    assert_int_equal(td_route_table_open(&routes, &err), TD_OK);
    coord = fake_coord_current = fake_coord_open(NULL);
    const struct td_openai_service_params params = {
        .coord = coord, .routes = routes, .auth = &keys};
    assert_int_equal(td_openai_service_open(&params, &service, &err), TD_OK);
    const struct td_conn_service serve = {.routes = routes};
    server = api_server_start(&config, &serve);
    coord->loop = &server->loop;
    encode_ids = 3;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    api_server_stop(server);
    td_openai_service_close(service);
    td_route_table_close(routes);
    fake_coord_close(coord);
    td_log_set_level(TD_LOG_INFO);
    return 0;
}

/* ---- On the loop thread ---- */

static void look(struct api_server *s)
{
    (void)s;
    atomic_store(&n_jobs, (int)coord->n_jobs);
    atomic_store(&n_encodes, (int)coord->n_encodes);
    atomic_store(&n_cancelled, (int)coord->n_cancelled);
}

static void encode_one(struct api_server *s)
{
    (void)s;
    fake_coord_encoded(coord, encode_ids);
}

static void one_token_each(struct api_server *s)
{
    (void)s;
    for (size_t i = 0; i < coord->n_jobs; i++) {
        if (!coord->jobs[i]->ended) {
            fake_coord_emit(coord->jobs[i], i % 2 == 0 ? "ab" : "\xc3\xa9", TD_FINISH_NONE, NULL);
        }
    }
}

static void end_all(struct api_server *s)
{
    (void)s;
    for (size_t i = 0; i < coord->n_jobs; i++) {
        if (!coord->jobs[i]->ended) {
            fake_coord_emit(coord->jobs[i], "!", TD_FINISH_LENGTH, NULL);
        }
    }
}

static void lose_first(struct api_server *s)
{
    struct td_err err = {0};
    (void)s;
    td_err_set(&err, TD_PEER_LOST, "rank 1 is gone");
    fake_coord_emit(coord->jobs[0], "", TD_FINISH_ERROR, &err);
}

static void many_tokens(struct api_server *s)
{
    (void)s;
    for (int i = 0; i < 20000; i++) {
        fake_coord_emit(coord->jobs[0], "0123456789", TD_FINISH_NONE, NULL);
    }
    fake_coord_emit(coord->jobs[0], "end", TD_FINISH_STOP, NULL);
}

static void be_late(struct api_server *s)
{
    struct td_err err = {0};
    (void)s;
    td_err_set(&err, TD_TIMED_OUT, "the time was up");
    fake_coord_emit(coord->jobs[coord->n_jobs - 1], "", TD_FINISH_ERROR, &err);
}

static void get_ready(struct api_server *s)
{
    (void)s;
    coord->ready = true;
}

/* ---- On the test's thread ---- */

static bool wait_for(atomic_int *value, int wanted)
{
    for (uint64_t end = api_now_ms() + 5000; api_now_ms() < end; usleep(1000)) {
        api_server_call(server, look);
        if (atomic_load(value) == wanted) {
            return true;
        }
    }
    return false;
}

static int ask(const char *path, const char *body)
{
    char head[256];
    int fd = api_dial(server);
    snprintf(head, sizeof(head),
             "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\nConnection: close\r\n"
             "Content-Length: %zu\r\n\r\n",
             path, strlen(body));
    api_send_text(fd, head);
    api_send_text(fd, body);
    answer[0] = '\0';
    return fd;
}

static const char *finish(int fd)
{
    assert_true(api_recv(fd, answer, sizeof(answer), NULL, 5000));
    close(fd);
    return answer;
}

static size_t count(const char *text, const char *needle)
{
    size_t n = 0;
    for (const char *p = text; (p = strstr(p, needle)) != NULL; p += strlen(needle)) {
        n++;
    }
    return n;
}

static const char *get(const char *path, const char *header)
{
    static char request[256];
    snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\nHost: x\r\n%sConnection: close\r\n\r\n",
             path, header);
    return api_exchange(server, request, strlen(request));
}

/* The fake coordinator takes the model that ships, whose tokenizer has a token for the newline. */
static void test_openai_service_sends_the_breakers_of_dry_as_tokens(void **state)
{
    static const char *const bodies[] = {
        "{\"prompt\":[1]}",
        "{\"prompt\":[1],\"dry_multiplier\":1}",
        "{\"prompt\":[1],\"dry_multiplier\":1,\"dry_sequence_breakers\":[]}",
        "{\"prompt\":[1],\"dry_multiplier\":1,\"dry_sequence_breakers\":[\"\\n\"]}",
    };
    uint32_t n_marked[4] = {0};
    int fds[4];
    (void)state;
    for (int i = 0; i < 4; i++) {
        fds[i] = ask("/v1/completions", bodies[i]);
        assert_true(wait_for(&n_jobs, i + 1));
        const struct td_sampling *s = &coord->jobs[i]->request.sampling;
        assert_int_equal(s->n_dry_breaker_bytes,
                         i == 0 ? 0 : td_breakers_set_bytes(coord->served.breakers));
        for (uint32_t id = 0; id < 8 * s->n_dry_breaker_bytes; id++) {
            if (s->dry_breakers[id / 8] >> id % 8 & 1) {
                const struct td_str piece = td_tokenizer_piece(coord->served.tok, id);
                assert_true(i != 3 || memchr(piece.ptr, '\n', piece.len) != NULL);
                n_marked[i]++;
            }
        }
    }
    assert_true(n_marked[1] > n_marked[3] && n_marked[3] > 0);
    assert_int_equal(n_marked[2], 0);
    api_server_call(server, end_all);
    for (int i = 0; i < 4; i++) {
        finish(fds[i]);
    }
}

static void test_openai_service_answers_several_prompts_as_choices_in_order(void **state)
{
    (void)state;
    int fd = ask("/v1/completions", "{\"prompt\":[\"a\",\"b\"],\"logprobs\":1}");
    assert_true(wait_for(&n_encodes, 1));
    api_server_call(server, encode_one);
    assert_true(wait_for(&n_encodes, 1)); /* one after the other */
    api_server_call(server, encode_one);
    assert_true(wait_for(&n_jobs, 2));
    assert_true(coord->jobs[0]->request.sampling.seed != coord->jobs[1]->request.sampling.seed);
    assert_int_equal(coord->jobs[0]->request.max_tokens, 16);
    api_server_call(server, one_token_each);
    api_server_call(server, end_all);
    finish(fd);
    assert_int_equal(api_status_of(answer), 200);
    const char *first = strstr(answer, "\"index\":0,\"text\":\"ab!\"");
    const char *second = strstr(answer, "\"index\":1,\"text\":\"\xc3\xa9!\"");
    assert_non_null(first);
    assert_non_null(second);
    assert_true(first < second);
    assert_non_null(strstr(answer, "\"prompt_tokens\":6,\"completion_tokens\":4"));
    assert_int_equal(count(answer, "\"token_logprobs\":[-0.5,-0.5]"), 2);
}

/* Loop thread: candidates of different worth, the longer the better for each token. */
static void end_with_worth(struct api_server *s)
{
    static const float worth[] = {-2, -1, -3, -0.5f, -4, -0.25f};
    (void)s;
    for (size_t i = 0; i < coord->n_jobs; i++) {
        coord->jobs[i]->logprob = worth[i % 6];
        for (size_t k = 0; k < i; k++) {
            fake_coord_emit(coord->jobs[i], "-", TD_FINISH_NONE, NULL);
        }
        char text[] = {(char)('a' + i), '\0'};
        fake_coord_emit(coord->jobs[i], text, TD_FINISH_STOP, NULL);
    }
}

static void test_openai_service_answers_with_the_best_of_the_candidates(void **state)
{
    (void)state;
    int fd =
        ask("/v1/completions", "{\"prompt\":[[7,8],[9]],\"n\":2,\"best_of\":3,\"temperature\":1}");
    assert_true(wait_for(&n_jobs, 6));
    for (size_t i = 0; i < 6; i++) {
        const struct td_request *r = &coord->jobs[i]->request;
        assert_int_equal(r->sampling.choice, i % 3);
        assert_true(r->sampling.seed == coord->jobs[i / 3 * 3]->request.sampling.seed);
        assert_int_equal(r->n_prompt, i < 3 ? 2 : 1);
        assert_int_equal(r->prompt[0], i < 3 ? 7 : 9);
        assert_int_equal(r->sampling.n_logprobs, 0);
    }
    assert_true(coord->jobs[0]->request.sampling.seed != coord->jobs[3]->request.sampling.seed);
    api_server_call(server, end_with_worth);
    finish(fd);
    assert_int_equal(api_status_of(answer), 200);
    /* By log probability per token: -1 (b), -2 (a); -0.25 (f), -0.5 (d). */
    assert_non_null(strstr(answer, "\"index\":0,\"text\":\"-b\",\"logprobs\":null"));
    assert_non_null(strstr(answer, "\"index\":1,\"text\":\"a\""));
    assert_non_null(strstr(answer, "\"index\":2,\"text\":\"-----f\""));
    assert_non_null(strstr(answer, "\"index\":3,\"text\":\"---d\""));
    assert_null(strstr(answer, "\"index\":4"));
    /* Prompts count once, candidates all. */
    assert_non_null(strstr(answer, "\"prompt_tokens\":3,\"completion_tokens\":21"));
}

static void test_openai_service_streams_several_choices_of_a_prompt(void **state)
{
    (void)state;
    int fd = ask("/v1/completions", "{\"prompt\":[7],\"n\":2,\"stream\":true}");
    assert_true(wait_for(&n_jobs, 2));
    assert_int_equal(coord->jobs[0]->request.sampling.n_logprobs, -1);
    api_server_call(server, one_token_each);
    api_server_call(server, end_all);
    finish(fd);
    assert_non_null(strstr(answer, "\"index\":0"));
    assert_non_null(strstr(answer, "\"index\":1"));
    assert_int_equal(count(answer, "\"finish_reason\":\"length\""), 2);
    assert_int_equal(count(answer, "[DONE]"), 1);
}

/* Loop thread: the second candidate is ahead of the first, which has the log probabilities of the prompt to compute. */
static void one_token_of_second(struct api_server *s)
{
    (void)s;
    fake_coord_emit(coord->jobs[1], "late", TD_FINISH_NONE, NULL);
}

static void rest_of_prompt(struct api_server *s)
{
    (void)s;
    for (uint32_t i = 1; i < coord->jobs[0]->request.n_prompt; i++) {
        fake_coord_emit_prompt(coord->jobs[0], i);
    }
}

static void check_only_first_computes_the_prompt(int32_t n_alternatives)
{
    assert_int_equal(coord->jobs[0]->request.prompt_logprobs, n_alternatives);
    for (size_t i = 1; i < coord->n_jobs; i++) {
        assert_int_equal(coord->jobs[i]->request.prompt_logprobs, -1);
    }
}

static void test_openai_service_computes_the_prompt_once_and_shows_it_with_each_choice(void **state)
{
    (void)state;
    int fd = ask("/v1/completions", "{\"prompt\":[7,8,9],\"n\":3,\"prompt_logprobs\":0}");
    assert_true(wait_for(&n_jobs, 3));
    check_only_first_computes_the_prompt(0);
    api_server_call(server, one_token_of_second);
    api_server_call(server, rest_of_prompt);
    api_server_call(server, end_all);
    finish(fd);
    assert_int_equal(count(answer, "\"prompt_logprobs\":[null,{\"8\":"), 3);
    assert_int_equal(count(answer, "\"logprob\":-1,\"rank\":2"), 3);
    assert_int_equal(count(answer, "\"logprob\":-2,\"rank\":3"), 3);
}

static void test_openai_service_echoes_the_prompt_before_each_choice(void **state)
{
    static const char lps[] = "\"token_logprobs\":[null,-1,-2,-0.5";
    (void)state;
    int fd = ask("/v1/completions", "{\"prompt\":[7,8,9],\"n\":2,\"echo\":true,\"logprobs\":0}");
    assert_true(wait_for(&n_jobs, 2));
    check_only_first_computes_the_prompt(0);
    api_server_call(server, one_token_of_second);
    api_server_call(server, rest_of_prompt);
    api_server_call(server, end_all);
    finish(fd);
    assert_int_equal(count(answer, lps), 2);
    assert_int_equal(count(answer, "late!\""), 1);
}

static void test_openai_service_streams_no_echo_before_it_knows_the_prompt(void **state)
{
    static const char lps[] = "\"token_logprobs\":[null,-1,-2,-0.5";
    (void)state;
    int fd = ask("/v1/completions", "{\"prompt\":[7,8,9],\"n\":2,\"echo\":true,\"logprobs\":0,"
                                    "\"stream\":true}");
    assert_true(wait_for(&n_jobs, 2));
    api_server_call(server, one_token_of_second);
    api_server_call(server, rest_of_prompt);
    api_server_call(server, one_token_each);
    api_server_call(server, end_all);
    finish(fd);
    assert_int_equal(count(answer, lps), 2); /* once for each choice, in its first chunk */
    assert_int_equal(count(answer, "null,-1"), 2);
    assert_int_equal(count(answer, "late"), 1);
    assert_int_equal(count(answer, "\"finish_reason\":\"length\""), 2);
}

static void test_openai_service_a_slow_reader_gets_every_byte_in_fewer_chunks(void **state)
{
    (void)state;
    int fd = ask("/v1/completions", "{\"prompt\":[1,2],\"stream\":true,\"max_tokens\":20001}");
    assert_true(wait_for(&n_jobs, 1));
    api_server_call(server, many_tokens); /* nobody reads yet */
    static char text[8 << 20];
    text[0] = '\0';
    assert_true(api_recv(fd, text, sizeof(text), NULL, 20000));
    close(fd);
    assert_int_equal(count(text, "0123456789"), 20000);
    assert_non_null(strstr(text, "end\",\"logprobs\":null,\"finish_reason\":null"));
    assert_int_equal(count(text, "\"finish_reason\":\"stop\""), 1);
    assert_non_null(strstr(text, "data: [DONE]\n\n"));
    assert_true(count(text, "data: ") < 10000);
}

static void test_openai_service_tells_a_loss_in_mid_stream_and_ends(void **state)
{
    (void)state;
    int fd = ask("/v1/completions", "{\"prompt\":[[1],[2]],\"stream\":true}");
    assert_true(wait_for(&n_jobs, 2));
    api_server_call(server, one_token_each);
    api_server_call(server, lose_first);
    finish(fd);
    assert_int_equal(api_status_of(answer), 200);
    assert_int_equal(count(answer, "data: {\"error\":{"), 1);
    assert_non_null(strstr(answer, "rank 1 is gone"));
    assert_null(strstr(answer, "[DONE]"));
    assert_non_null(strstr(answer, "\r\n0\r\n\r\n")); /* ended, not cut */
    assert_int_equal(coord->n_cancelled, 1);          /* the other one */
}

static void test_openai_service_tells_a_loss_before_the_answer_as_503(void **state)
{
    (void)state;
    int fd = ask("/v1/completions", "{\"prompt\":[1]}");
    assert_true(wait_for(&n_jobs, 1));
    api_server_call(server, one_token_each);
    api_server_call(server, lose_first);
    finish(fd);
    assert_int_equal(api_status_of(answer), 503);
    assert_non_null(strstr(answer, "Retry-After: 1"));
}

static void test_openai_service_frees_jobs_of_a_client_that_left(void **state)
{
    (void)state;
    int whole = ask("/v1/completions", "{\"prompt\":[[1],[2]]}");
    int stream = ask("/v1/completions", "{\"prompt\":[3],\"stream\":true}");
    assert_true(wait_for(&n_jobs, 3));
    close(whole);
    assert_true(wait_for(&n_cancelled, 2));
    close(stream);
    assert_true(wait_for(&n_cancelled, 3));
}

static void test_openai_service_survives_a_client_that_left_while_its_text_was_encoded(void **state)
{
    (void)state;
    int fd = ask("/v1/completions", "{\"prompt\":\"text\"}");
    assert_true(wait_for(&n_encodes, 1));
    close(fd);
    assert_true(api_wait_conns(server, 0));
    api_server_call(server, encode_one);
    assert_true(wait_for(&n_jobs, 0));
}

static void test_openai_service_takes_back_what_was_submitted_when_the_queue_is_full(void **state)
{
    (void)state;
    coord->max_jobs = 1;
    int fd = ask("/v1/completions", "{\"prompt\":[[1],[2]]}");
    finish(fd);
    assert_int_equal(api_status_of(answer), 429);
    assert_non_null(strstr(answer, "prompt 2 of 2"));
    assert_int_equal(coord->n_cancelled, 1);
}

static void
test_openai_service_asks_for_all_prompts_at_once_and_says_when_to_come_again(void **state)
{
    (void)state;
    coord->retry_after_s = 23;
    coord->limits.max_open_per_key = 4;
    coord->limits.tokens_per_minute_per_key = 1000;
    coord->standing = (struct td_coord_standing){3, 2, 17, UINT64_C(1500000000)};
    finish(ask("/v1/completions", "{\"prompt\":[[1,2],[3]],\"max_tokens\":7}"));
    assert_int_equal(api_status_of(answer), 429);
    assert_non_null(strstr(answer, "\r\nRetry-After: 23\r\n"));
    assert_null(strstr(answer, "Retry-After: 1\r\n"));
    assert_non_null(strstr(answer, "\"type\":\"rate_limit_error\""));
    assert_non_null(strstr(answer, "key 1 asks too much"));
    assert_non_null(strstr(answer, "\r\nx-ratelimit-limit-requests: 4\r\n"));
    assert_non_null(strstr(answer, "\r\nx-ratelimit-remaining-requests: 1\r\n"));
    assert_non_null(strstr(answer, "\r\nx-ratelimit-reset-requests: 2.000s\r\n"));
    assert_non_null(strstr(answer, "\r\nx-ratelimit-limit-tokens: 1000\r\n"));
    assert_non_null(strstr(answer, "\r\nx-ratelimit-remaining-tokens: 17\r\n"));
    assert_non_null(strstr(answer, "\r\nx-ratelimit-reset-tokens: 1.500s\r\n"));
    assert_int_equal(coord->asked.key, 1);
    assert_int_equal(coord->asked.n_jobs, 2);
    assert_int_equal(coord->asked.n_tokens, 3 + 2 * 7);
    assert_int_equal(coord->n_jobs, 0);
    /* More than the context holds is not counted; a prompt that it cannot hold is no matter of limits. */
    finish(ask("/v1/completions", "{\"prompt\":[1,2],\"max_tokens\":70000}"));
    assert_int_equal(coord->asked.n_tokens, coord->served.max_model_len);
    char text[1024] = "{\"prompt\":[[1],[1";
    for (int i = 0; i < 120; i++) {
        strcat(text, ",1");
    }
    strcat(text, "]]}");
    finish(ask("/v1/completions", text));
    assert_int_equal(api_status_of(answer), 400);
    assert_non_null(strstr(answer, "prompt 2 of 2"));
    assert_null(strstr(answer, "Retry-After"));
}

static void test_openai_service_sends_limits_with_every_answer_of_a_limited_server(void **state)
{
    (void)state;
    int fd = ask("/v1/completions", "{\"prompt\":[1],\"stream\":true}");
    assert_true(wait_for(&n_jobs, 1));
    api_server_call(server, end_all);
    finish(fd);
    assert_null(strstr(answer, "x-ratelimit"));
    coord->limits.max_open_per_key = 4;
    fd = ask("/v1/completions", "{\"prompt\":[1],\"stream\":true}");
    assert_true(wait_for(&n_jobs, 2));
    api_server_call(server, end_all);
    finish(fd);
    assert_non_null(strstr(answer, "x-ratelimit-remaining-requests: 4\r\n"));
    assert_null(strstr(answer, "x-ratelimit-limit-tokens"));
}

static void test_openai_service_hands_on_priority_salt_and_deadline(void **state)
{
    static const char *const bodies[] = {
        "{\"prompt\":[1]}",
        "{\"prompt\":[1],\"priority\":-7,\"timeout\":2.5,\"cache_salt\":\"s\"}"};
    int fds[2];
    (void)state;
    uint64_t before = uv_hrtime();
    for (int i = 0; i < 2; i++) {
        fds[i] = ask("/v1/completions", bodies[i]);
        assert_true(wait_for(&n_jobs, i + 1));
    }
    const struct td_job *plain = coord->jobs[0];
    const struct td_job *given = coord->jobs[1];
    assert_int_equal(plain->key, 1);
    assert_int_equal(plain->deadline_ns, 0);
    assert_int_equal(plain->request.priority, 0);
    assert_int_equal(plain->request.cache_salt, td_request_salt(1, TD_STR("")));
    assert_int_equal(given->request.priority, -7);
    assert_int_equal(given->request.cache_salt, td_request_salt(1, TD_STR("s")));
    assert_true(given->deadline_ns > before + 2500000000u);
    assert_true(given->deadline_ns < uv_hrtime() + 2500000000u);
    api_server_call(server, end_all);
    finish(fds[0]);
    finish(fds[1]);
}

static void test_openai_service_tells_that_the_time_is_up(void **state)
{
    (void)state;
    int fd = ask("/v1/completions", "{\"prompt\":[1],\"timeout\":1}");
    assert_true(wait_for(&n_jobs, 1));
    api_server_call(server, be_late);
    finish(fd);
    assert_int_equal(api_status_of(answer), 504);
    assert_non_null(strstr(answer, "\"type\":\"timeout_error\""));
    assert_non_null(strstr(answer, "\"code\":\"timeout\""));
    fd = ask("/v1/completions", "{\"prompt\":[1],\"timeout\":1,\"stream\":true}");
    assert_true(wait_for(&n_jobs, 2));
    api_server_call(server, one_token_each);
    api_server_call(server, be_late);
    finish(fd);
    assert_int_equal(api_status_of(answer), 200);
    const char *text = strstr(answer, "\"text\":\"\xc3\xa9\"");
    assert_non_null(text); /* what was generated stays sent */
    assert_non_null(strstr(text, "data: {\"error\":{\"message\":\"the time was up\""));
    assert_null(strstr(answer, "[DONE]"));
    assert_non_null(strstr(get("/metrics", ""), "outcome=\"timed_out\"} 2\n"));
}

static void test_openai_service_says_that_a_prompt_is_too_long(void **state)
{
    (void)state;
    int fd = ask("/v1/completions", "{\"prompt\":\"long\"}");
    assert_true(wait_for(&n_encodes, 1));
    encode_ids = 100;
    api_server_call(server, encode_one);
    finish(fd);
    assert_int_equal(api_status_of(answer), 400);
    assert_non_null(strstr(answer, "\"code\":\"context_length_exceeded\""));
}

static void test_openai_service_parses_long_bodies_elsewhere(void **state)
{
    (void)state;
    static char body[200000];
    int n = snprintf(body, sizeof(body), "{\"prompt\":[1],\"user\":\"");
    memset(body + n, 'u', 150000);
    snprintf(body + n + 150000, 16, "\"}");
    int fd = ask("/v1/completions", body);
    assert_true(wait_for(&n_jobs, 1));
    api_server_call(server, end_all);
    finish(fd);
    assert_int_equal(api_status_of(answer), 200);
    body[n + 150000] = '\0'; /* the string has no end */
    finish(ask("/v1/completions", body));
    assert_int_equal(api_status_of(answer), 400);
}

static void test_openai_service_refuses_chat_without_template_and_unknown_models(void **state)
{
    (void)state;
    finish(ask("/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}"));
    assert_int_equal(api_status_of(answer), 400);
    assert_non_null(strstr(answer, "there is no template"));
    finish(ask("/v1/completions", "{\"prompt\":[1],\"model\":\"other\"}"));
    assert_int_equal(api_status_of(answer), 404);
    assert_non_null(strstr(answer, "\"code\":\"model_not_found\""));
}

static void test_openai_service_probes_are_open_and_models_are_not(void **state)
{
    (void)state;
    assert_int_equal(api_status_of(get("/healthz", "")), 200);
    assert_int_equal(api_status_of(get("/metrics", "")), 200);
    assert_int_equal(api_status_of(get("/", "")), 200);
    const char *red = get("/readyz", "");
    assert_int_equal(api_status_of(red), 503);
    assert_non_null(strstr(red, "\"state\":\"loading\""));
    api_server_call(server, get_ready);
    assert_int_equal(api_status_of(get("/readyz", "")), 200);
    assert_int_equal(api_status_of(get("/v1/models", "")), 401);
    assert_non_null(strstr(get("/v1/models", "X-Api-Key: k\r\n"), "\"id\":\"m\""));
    assert_int_equal(api_status_of(get("/v1/models/m", "X-Api-Key: k\r\n")), 200);
    assert_int_equal(api_status_of(get("/v1/models/n", "X-Api-Key: k\r\n")), 404);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_openai_service_sends_the_breakers_of_dry_as_tokens),
        TEST(test_openai_service_answers_several_prompts_as_choices_in_order),
        TEST(test_openai_service_answers_with_the_best_of_the_candidates),
        TEST(test_openai_service_streams_several_choices_of_a_prompt),
        TEST(test_openai_service_computes_the_prompt_once_and_shows_it_with_each_choice),
        TEST(test_openai_service_echoes_the_prompt_before_each_choice),
        TEST(test_openai_service_streams_no_echo_before_it_knows_the_prompt),
        TEST(test_openai_service_a_slow_reader_gets_every_byte_in_fewer_chunks),
        TEST(test_openai_service_tells_a_loss_in_mid_stream_and_ends),
        TEST(test_openai_service_tells_a_loss_before_the_answer_as_503),
        TEST(test_openai_service_frees_jobs_of_a_client_that_left),
        TEST(test_openai_service_survives_a_client_that_left_while_its_text_was_encoded),
        TEST(test_openai_service_takes_back_what_was_submitted_when_the_queue_is_full),
        TEST(test_openai_service_asks_for_all_prompts_at_once_and_says_when_to_come_again),
        TEST(test_openai_service_sends_limits_with_every_answer_of_a_limited_server),
        TEST(test_openai_service_hands_on_priority_salt_and_deadline),
        TEST(test_openai_service_tells_that_the_time_is_up),
        TEST(test_openai_service_says_that_a_prompt_is_too_long),
        TEST(test_openai_service_parses_long_bodies_elsewhere),
        TEST(test_openai_service_refuses_chat_without_template_and_unknown_models),
        TEST(test_openai_service_probes_are_open_and_models_are_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
