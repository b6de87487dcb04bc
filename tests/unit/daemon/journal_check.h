/* Records that tests write into a journal and know again: every field of request number i follows from i alone. */
#ifndef TD_TESTS_UNIT_DAEMON_JOURNAL_CHECK_H
#define TD_TESTS_UNIT_DAEMON_JOURNAL_CHECK_H

#include "daemon/journal/journal.h"

#include "tests/unit/check.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct journal_request {
    struct td_record record;
    struct td_request prompts[3];
    char id[64], idempotency[64], service[64];
};

/* Token t of part p of request i. */
static inline uint32_t journal_token_id(uint32_t i, uint32_t p, uint32_t t)
{
    return (i * 7919u + p * 104729u + t * 31u) % 151000u;
}

static inline void journal_make_prompt(struct td_request *r, uint32_t i, uint32_t p)
{
    td_request_init(r);
    r->n_prompt = 5 + (i * 3 + p) % 50;
    r->prompt = malloc(r->n_prompt * sizeof *r->prompt);
    assert_non_null(r->prompt);
    for (uint32_t k = 0; k < r->n_prompt; k++)
        r->prompt[k] = i * 1000 + p * 100 + k;
    r->max_tokens = 100 + i;
    r->min_tokens = i % 7;
    r->ignore_eos = i % 2;
    r->include_stop = i % 3 == 0;
    r->cache_salt = (uint64_t)i << 40 | p;
    r->priority = (int32_t)(i % 5) - 2;
    r->prompt_logprobs = (int32_t)(i % 4) - 1;
    r->no_prefix_cache = i % 5 == 1;
    r->n_stops = i % 3;
    for (uint32_t s = 0; s < r->n_stops; s++) {
        r->stop_bytes[s] = 3 + s;
        r->stops[s] = calloc(1, r->stop_bytes[s] + 1);
        assert_non_null(r->stops[s]);
        memset(r->stops[s], (int)('a' + (i + s) % 26), r->stop_bytes[s]);
        r->stops[s][1] = '\0'; /* a stop string may hold any byte */
    }
    r->n_stop_ids = i % 4;
    for (uint32_t s = 0; s < r->n_stop_ids; s++)
        r->stop_ids[s] = i + s;
    r->sampling.temperature = 0.25f * (float)(i % 8);
    r->sampling.top_k = (int32_t)(i % 100);
    r->sampling.top_p = 1.0f - 0.001f * (float)(i % 500);
    r->sampling.mirostat = (int32_t)(i % 3);
    r->sampling.dry_multiplier = 0.5f * (float)(i % 3);
    r->sampling.seed = 0x9e3779b97f4a7c15u * (i + 1);
    r->sampling.n_logprobs = (int32_t)(i % 6) - 1;
    r->sampling.n_bias = i % 3;
    for (uint32_t s = 0; s < r->sampling.n_bias; s++)
        r->sampling.bias[s] = (struct td_logit_bias){i + s, -0.5f * (float)(s + 1)};
    if (i % 3) {
        uint8_t set[32];

        memset(set, (int)(i & 0xff), sizeof set);
        assert_int_equal(td_request_set_breakers(r, set, sizeof set, NULL), TD_OK);
    }
}

/* Ids of another `life` differ; all else is the same. Free with journal_free. */
static inline void journal_make(struct journal_request *q, uint32_t life, uint32_t i)
{
    struct td_record *r = &q->record;

    memset(q, 0, sizeof *q);
    r->prompts = q->prompts;
    r->n_prompts = 1 + i % 3;
    r->n_choices = 1 + i % 2;
    for (uint32_t p = 0; p < r->n_prompts; p++)
        journal_make_prompt(&q->prompts[p], i, p);
    snprintf(q->id, sizeof q->id, "cmpl-%u-%u", life, i);
    r->id = td_str_from(q->id);
    r->owner = i % 4 ? 0xfedcba9876543210u + i % 4 : 0;
    if (i % 2) {
        snprintf(q->idempotency, sizeof q->idempotency, "try \xc3\xa4 %u-%u", life, i);
        r->idempotency = td_str_from(q->idempotency);
    }
    for (int k = 0; k < TD_RECORD_BODY_HASH_BYTES; k++)
        r->body_hash[k] = (uint8_t)(i * 17 + (uint32_t)k);
    r->model_hash = TD_STR("0123456789abcdef0123456789abcdef");
    r->api = (enum td_record_api)(TD_RECORD_CHAT + i % 3);
    snprintf(q->service, sizeof q->service, "%c\x01\x02 blob of %u", '\0', i);
    r->service = (struct td_str){q->service, 12};
    r->accepted_ms = 1790000000000 + i;
    r->deadline_ms = i % 2 ? 1790000600000 + i : 0;
}

static inline void journal_free(struct journal_request *q)
{
    for (uint32_t p = 0; p < q->record.n_prompts; p++)
        td_request_deinit(&q->prompts[p]);
}

static inline void journal_assert_prompt(const struct td_request *a, const struct td_request *b)
{
    assert_int_equal(a->n_prompt, b->n_prompt);
    assert_memory_equal(a->prompt, b->prompt, a->n_prompt * sizeof *a->prompt);
    assert_int_equal(a->max_tokens, b->max_tokens);
    assert_int_equal(a->min_tokens, b->min_tokens);
    assert_int_equal(a->ignore_eos, b->ignore_eos);
    assert_int_equal(a->include_stop, b->include_stop);
    assert_int_equal(a->cache_salt, b->cache_salt);
    assert_int_equal(a->priority, b->priority);
    assert_int_equal(a->prompt_logprobs, b->prompt_logprobs);
    assert_int_equal(a->no_prefix_cache, b->no_prefix_cache);
    assert_int_equal(a->n_stops, b->n_stops);
    for (uint32_t s = 0; s < a->n_stops; s++) {
        assert_int_equal(a->stop_bytes[s], b->stop_bytes[s]);
        assert_memory_equal(a->stops[s], b->stops[s], a->stop_bytes[s]);
    }
    assert_int_equal(a->n_stop_ids, b->n_stop_ids);
    assert_memory_equal(a->stop_ids, b->stop_ids, a->n_stop_ids * sizeof *a->stop_ids);
    assert_int_equal(a->sampling.n_dry_breaker_bytes, b->sampling.n_dry_breaker_bytes);
    if (a->sampling.n_dry_breaker_bytes)
        assert_memory_equal(a->sampling.dry_breakers, b->sampling.dry_breakers,
                            a->sampling.n_dry_breaker_bytes);

    /* All other numbers of the sampling at once: the pointer is put aside. Both began as zeroes. */
    struct td_sampling x = a->sampling, y = b->sampling;
    x.dry_breakers = y.dry_breakers = NULL;
    assert_memory_equal(&x, &y, sizeof x);
}

static inline void journal_assert_str(struct td_str a, struct td_str b)
{
    assert_int_equal(a.len, b.len);
    if (a.len)
        assert_memory_equal(a.ptr, b.ptr, a.len);
}

static inline void journal_assert_record(const struct td_record *got, const struct td_record *want)
{
    journal_assert_str(got->id, want->id);
    assert_true(got->owner == want->owner);
    journal_assert_str(got->idempotency, want->idempotency);
    assert_memory_equal(got->body_hash, want->body_hash, sizeof got->body_hash);
    journal_assert_str(got->model_hash, want->model_hash);
    assert_int_equal(got->api, want->api);
    assert_int_equal(got->n_choices, want->n_choices);
    journal_assert_str(got->service, want->service);
    assert_true(got->accepted_ms == want->accepted_ms && got->deadline_ms == want->deadline_ms);
    assert_int_equal(got->n_prompts, want->n_prompts);
    for (uint32_t p = 0; p < got->n_prompts; p++)
        journal_assert_prompt(&got->prompts[p], &want->prompts[p]);
}

/* An empty folder of its own; gone with journal_rmdir. */
static inline void journal_mkdir(char *path)
{
    strcpy(path, "/tmp/tensord-journal-XXXXXX");
    assert_non_null(mkdtemp(path));
}

static inline void journal_rmdir(const char *path)
{
    char command[512];

    snprintf(command, sizeof command, "rm -rf '%s'", path);
    assert_int_equal(system(command), 0);
}

#endif
