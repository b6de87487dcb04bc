/* A sequence that goes on elsewhere: rebuilt behind every one of its tokens from ids alone (and mirostat's number), it ends exactly as
 * the one that was never interrupted. The model is a hash of the ids, so nothing but the engine decides. */
#include "tests/unit/daemon/letters.h"

#include "daemon/engine/engine.h"

#include <stdlib.h>
#include <string.h>

enum { N_VOCAB = 61, EOS = 3, N_PROMPT = 9, MAX_TOKENS = 40, BLOCK = 4, N_BLOCKS = 32 };

struct story {
    uint32_t id[MAX_TOKENS];
    float logprob[MAX_TOKENS];
    uint32_t top[MAX_TOKENS][4];
    struct td_sampler_state state[MAX_TOKENS];
    uint32_t n;
    enum td_finish finish;
    struct td_err error;
};

static void on_event(const struct td_token_event *event, void *user)
{
    struct story *s = user;

    if (event->has_token) {
        assert_int_equal(event->index, s->n);
        s->id[s->n] = event->token.id;
        s->logprob[s->n] = event->token.logprob;
        for (uint32_t i = 0; i < event->token.n_top; i++)
            s->top[s->n][i] = event->token.top[i].id;
        s->state[s->n++] = event->state;
    }
    s->finish = event->finish;
    if (event->error)
        s->error = *event->error;
}

/* Peaked now and then, so that every cut has something to cut. */
static void toy_logits(const uint32_t *ids, uint32_t n, float logits[N_VOCAB])
{
    uint64_t h = 0xcbf29ce484222325u;

    for (uint32_t i = n > 3 ? n - 3 : 0; i < n; i++)
        h = (h ^ ids[i]) * 0x100000001b3u;
    for (uint32_t v = 0; v < N_VOCAB; v++) {
        uint64_t z = (h ^ (v * 0x9e3779b97f4a7c15u)) * 0xbf58476d1ce4e5b9u;

        z ^= z >> 29;
        z *= 0x94d049bb133111ebu;
        logits[v] = (float)(z >> 40) * 0x1p-24f * 5;
    }
}

/* Runs `r` to its end in an engine of its own, behind what it has emitted; the story gets what is told from there on. */
static void run(const struct td_request *r, const struct td_tokenizer *tok, struct story *story)
{
    static const enum td_layer_kind kinds[] = {TD_LAYER_ATTENTION};
    struct td_engine_params p = {.n_vocab = N_VOCAB,
                                 .max_model_len = N_PROMPT + MAX_TOKENS,
                                 .max_num_seqs = 2,
                                 .max_batched_tokens = 8,
                                 .max_queue = 4,
                                 .block_tokens = BLOCK,
                                 .n_blocks = N_BLOCKS,
                                 .prefix_cache = true,
                                 .n_eos = 1,
                                 .eos_ids = {EOS},
                                 .layer_kinds = kinds,
                                 .n_layers = 1,
                                 .tokenizer = tok,
                                 .on_event = on_event,
                                 .user = story};
    uint32_t rows, seqs, table, ids[N_PROMPT + MAX_TOKENS + 1] = {0};
    float logits[2 * N_VOCAB];
    struct td_engine *e;
    struct td_step step;
    struct td_err err;

    assert_int_equal(td_engine_open(&p, &e, &err), TD_OK);
    td_engine_step_caps(e, &rows, &seqs, &table);
    assert_int_equal(td_step_open(&step, rows, seqs, table, NULL), TD_OK);
    if (td_engine_submit(e, r, 0, &err))
        fail_msg("%s", err.cause);
    while (td_engine_plan_step(e, 0, &step)) {
        struct td_step_result result = {.logits = logits};
        struct td_top top[2 * TD_TOP_MAX];

        result.top = top;
        result.n_top = step.n_top;
        for (uint32_t i = 0; i < step.n_rows; i++) {
            const struct td_step_row *row = &step.rows[i];
            float all[N_VOCAB];

            ids[row->position] = row->token;
            toy_logits(ids, row->position + 1, all);
            if (row->want == TD_WANT_LOGITS)
                memcpy(logits, all, sizeof all);
            for (uint32_t k = 0; row->want == TD_WANT_TOP && k < step.n_top; k++) {
                top[k] = TD_TOP_NONE;
                for (uint32_t v = 0; v < N_VOCAB; v++)
                    if (all[v] > top[k].value)
                        top[k] = (struct td_top){all[v], v};
                all[top[k].id] = -INFINITY;
            }
        }
        assert_int_equal(td_engine_complete_step(e, step.number, &result, 0, &err), TD_OK);
    }
    assert_int_equal(td_engine_check(e, &err), TD_OK);
    td_step_close(&step);
    td_engine_close(e);
}

static void make_request(struct td_request *r)
{
    td_request_init(r);
    r->prompt = malloc(N_PROMPT * sizeof *r->prompt);
    assert_non_null(r->prompt);
    r->n_prompt = N_PROMPT;
    for (uint32_t i = 0; i < N_PROMPT; i++)
        r->prompt[i] = (7 * i + 5) % N_VOCAB;
    r->max_tokens = MAX_TOKENS;
    r->sampling.seed = 42;
    r->sampling.temperature = 0.9f;
}

static void check_every_place(const struct td_request *r, const struct td_tokenizer *tok)
{
    struct story whole = {0};

    run(r, tok, &whole);
    assert_true(whole.n > 4 && whole.finish != TD_FINISH_NONE && whole.finish != TD_FINISH_ERROR);
    for (uint32_t at = 1; at < whole.n; at++) {
        struct story rest = {.n = at};
        struct td_request again;

        assert_int_equal(td_request_copy(r, &again), TD_OK);
        for (uint32_t i = 0; i < at; i++)
            assert_int_equal(td_request_emit(&again, whole.id[i], whole.state[i], NULL), TD_OK);
        run(&again, tok, &rest);
        assert_int_equal(rest.n, whole.n);
        assert_int_equal(rest.finish, whole.finish);
        assert_memory_equal(rest.id + at, whole.id + at, (whole.n - at) * sizeof *rest.id);
        assert_memory_equal(rest.top + at, whole.top + at, (whole.n - at) * sizeof *rest.top);
        assert_memory_equal(rest.logprob + at, whole.logprob + at, (whole.n - at) * sizeof(float));
        assert_memory_equal(rest.state + at, whole.state + at, (whole.n - at) * sizeof *rest.state);
        td_request_deinit(&again);
    }
}

static void test_replay_rebuilds_every_sampler(void **state)
{
    (void)state;
    for (uint32_t kind = 0; kind < 9; kind++) {
        struct td_sampling *s;
        struct td_request r;

        make_request(&r);
        r.ignore_eos = true;
        s = &r.sampling;
        if (kind == 0)
            s->temperature = 0;
        if (kind == 1)
            s->top_k = 5;
        if (kind == 2) {
            s->repetition_penalty = 1.3f;
            s->presence_penalty = 0.7f;
            s->frequency_penalty = 0.4f;
            s->repeat_last_n = 6;
        }
        if (kind == 3) {
            s->dry_multiplier = 0.9f;
            s->dry_allowed_length = 1;
        }
        if (kind == 4 || kind == 5) {
            s->mirostat = (int32_t)kind - 3;
            s->mirostat_tau = 3;
            s->mirostat_eta = 0.4f;
        }
        if (kind == 6) {
            s->xtc_probability = 0.5f;
            s->typical_p = 0.8f;
        }
        if (kind == 7)
            s->n_logprobs = 4;
        if (kind == 8)
            r.prompt_logprobs = -1, s->n_bias = 1, s->bias[0] = (struct td_logit_bias){17, 2.5f};
        check_every_place(&r, NULL);
        td_request_deinit(&r);
    }
}

static void test_replay_rebuilds_what_ends_a_sequence(void **state)
{
    struct td_tokenizer *tok = open_letters(N_VOCAB, EOS);
    struct td_request r;
    struct story whole = {0};

    (void)state;
    make_request(&r);
    r.min_tokens = 12; /* banned until then: the end token */
    check_every_place(&r, tok);
    r.ignore_eos = true;
    r.min_tokens = 0;
    run(&r, tok, &whole);
    assert_int_equal(whole.n, MAX_TOKENS);
    /* A stop string of three tokens that the text has: every place within it is one of those that are tried. */
    r.stops[0] = malloc(4);
    assert_non_null(r.stops[0]);
    for (uint32_t i = 0; i < 3; i++)
        r.stops[0][i] = letter(whole.id[20 + i]);
    r.stops[0][3] = '\0';
    for (uint32_t i = 0; i < 3; i++)
        assert_int_not_equal(whole.id[20 + i], EOS);
    r.stop_bytes[0] = 3;
    r.n_stops = 1;
    check_every_place(&r, tok);
    td_request_deinit(&r);
    td_tokenizer_close(tok);
}

static void test_replay_refuses_what_cannot_have_been(void **state)
{
    const struct td_sampler_state none = {0};
    struct td_request r;
    struct td_err err;

    (void)state;
    make_request(&r);
    r.max_tokens = 3;
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(td_request_emit(&r, 5, none, &err), TD_OK);
    assert_int_equal(td_request_validate(&r, N_VOCAB, N_PROMPT + 3, &err), TD_OK);
    /* Its end may not move: a smaller context is no place for it. */
    assert_int_equal(td_request_validate(&r, N_VOCAB, N_PROMPT + 2, &err), TD_TOO_LARGE);
    assert_int_equal(r.max_tokens, 3);
    r.emitted[1] = N_VOCAB;
    assert_int_equal(td_request_validate(&r, N_VOCAB, N_PROMPT + 3, &err), TD_INVALID);
    r.emitted[1] = 5;
    r.sampling.mirostat = 2;
    r.state.mu = (double)INFINITY;
    assert_int_equal(td_request_validate(&r, N_VOCAB, N_PROMPT + 3, &err), TD_INVALID);
    r.sampling.mirostat = 0;
    assert_int_equal(td_request_emit(&r, 5, none, &err), TD_OK);
    assert_int_equal(td_request_validate(&r, N_VOCAB, N_PROMPT + 3, &err), TD_INVALID);
    td_request_deinit(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replay_rebuilds_every_sampler),
        cmocka_unit_test(test_replay_rebuilds_what_ends_a_sequence),
        cmocka_unit_test(test_replay_refuses_what_cannot_have_been),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
