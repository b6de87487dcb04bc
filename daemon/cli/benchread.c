#include "daemon/cli/benchread.h"

#include "daemon/api/json.h"
#include "shard/machinejson.h"

#include <string.h>

static enum td_status refuse(struct td_err *err, const char *name, const char *member,
                             const char *expected)
{
    return td_err_set(err, TD_PEER_PROTOCOL, "bench's JSON: %s%s%s: expected %s", name,
                      *member ? "." : "", member, expected);
}

/* Numbers of a run are finite (JSON has no others) and not below 0; rates and times that are divided by are above. */
static enum td_status read_number(const json_t *object, const char *name, const char *member,
                                  bool above, double *out, struct td_err *err)
{
    const json_t *j = json_object_get(object, member);
    double value = json_number_value(j);

    if (!json_is_number(j) || value < 0.0 || (above && !(value > 0.0)))
        return refuse(err, name, member, above ? "a number above 0" : "a number from 0 on");
    *out = value;
    return TD_OK;
}

static enum td_status read_count(const json_t *object, const char *name, const char *member,
                                 uint32_t *out, struct td_err *err)
{
    const json_t *j = json_object_get(object, member);

    if (!json_is_integer(j) || json_integer_value(j) < 1 || json_integer_value(j) > INT32_MAX)
        return refuse(err, name, member, "a whole number from 1 on");
    *out = (uint32_t)json_integer_value(j);
    return TD_OK;
}

/* Parts of the fastest run, and how many runs were not steady. */
static enum td_status read_runs(const json_t *runs, const char *name, struct td_benchread_case *c,
                                struct td_err *err)
{
    static const char *const parts[] = {"compute", "exchange", "wait", "host"};
    const json_t *split = NULL;
    double most = 0.0;
    enum td_status s = TD_OK;

    if (json_array_size(runs) == 0 || json_array_size(runs) > INT32_MAX)
        return refuse(err, name, "runs", "a list that is not empty");
    c->n_runs = (uint32_t)json_array_size(runs);
    for (uint32_t i = 0; !s && i < c->n_runs; i++) {
        const json_t *run = json_array_get(runs, i);
        double rate = 0.0;

        s = read_number(run, name, "rate", true, &rate, err);
        c->n_unsteady += json_is_false(json_object_get(run, "steady"));
        if (rate > most)
            split = json_object_get(run, "split_seconds");
        most = rate > most ? rate : most;
    }
    for (int i = 0; !s && i < TD_BENCHREAD_N_PARTS; i++) {
        s = read_number(split, name, parts[i], false, &c->part_s[i], err);
        c->part_s[i] /= (double)c->n_tokens;
    }
    return s;
}

static enum td_status read_case(const json_t *cases, const char *name, struct td_benchread_case *c,
                                struct td_err *err)
{
    const json_t *j = json_object_get(cases, name);
    uint32_t n_tokens = 0;
    enum td_status s;

    if (!json_is_object(j))
        return refuse(err, "cases", name, "an object");
    s = read_number(j, name, "best", true, &c->best, err);
    s = s ? s : read_number(j, name, "median", true, &c->median, err);
    s = s ? s : read_number(j, name, "depth", true, &c->depth, err);
    s = s ? s : read_number(j, name, "sent_bytes_per_token", false, &c->sent_bytes, err);
    s = s ? s : read_number(j, name, "exchanges_per_token", false, &c->n_exchanges, err);
    s = s ? s : read_count(j, name, "tokens", &n_tokens, err);
    c->n_tokens = n_tokens;
    return s ? s : read_runs(json_object_get(j, "runs"), name, c, err);
}

/* Threads of all ranks together, and on how many hosts. */
static enum td_status read_ranks(const json_t *ranks, struct td_benchread *out, struct td_err *err)
{
    enum td_status s = TD_OK;

    if (json_array_size(ranks) == 0 || json_array_size(ranks) > TD_PLAN_MAX_RANKS)
        return refuse(err, "ranks", "", "a list of 1 to 256");
    out->n_ranks = (uint32_t)json_array_size(ranks);
    for (uint32_t i = 0; !s && i < out->n_ranks; i++) {
        const json_t *rank = json_array_get(ranks, i);
        const char *host = json_string_value(json_object_get(rank, "host"));
        uint32_t n_threads = 0, k = 0;

        s = host ? read_count(rank, "ranks", "threads", &n_threads, err)
                 : refuse(err, "ranks", "host", "a text");
        while (!s && k < i &&
               strcmp(json_string_value(json_object_get(json_array_get(ranks, k), "host")), host))
            k++;
        out->n_hosts += k == i;
        out->n_threads += n_threads;
    }
    return s;
}

static enum td_status read_machine(const json_t *j, struct td_benchread *out, struct td_err *err)
{
    const json_t *before = json_object_get(j, "before"), *after = json_object_get(j, "after");
    struct td_err why;

    if (json_is_null(before) && json_is_null(after))
        return TD_OK;
    if (td_machinejson_decode(before, &out->before, &why) ||
        td_machinejson_decode(after, &out->after, &why))
        return td_err_set(err, TD_PEER_PROTOCOL, "bench's JSON: %.250s", why.cause);
    if (out->before.n_ranks != out->n_ranks || out->after.n_ranks != out->n_ranks)
        return refuse(err, "machine", "ranks", "as many as the job has");
    out->has_machine = true;
    return TD_OK;
}

static enum td_status read_all(struct td_str text, const char *decode, struct td_benchread *out,
                               struct td_err *err)
{
    const json_t *layout, *cases;
    struct td_err why;
    enum td_status s;

    if (td_json_parse(text, 0, &out->root, &why)) {
        out->root = NULL;
        return td_err_set(err, TD_PEER_PROTOCOL, "bench's JSON of %zu bytes: %.200s", text.len,
                          why.cause);
    }
    layout = json_object_get(out->root, "layout");
    cases = json_object_get(out->root, "cases");
    s = read_count(layout, "layout", "tensor_parallel", &out->tp, err);
    s = s ? s : read_count(layout, "layout", "pipeline_parallel", &out->pp, err);
    s = s ? s : read_ranks(json_object_get(out->root, "ranks"), out, err);
    s = s ? s : read_case(cases, decode, &out->decode, err);
    s = s ? s : read_case(cases, "prefill", &out->prefill, err);
    return s ? s : read_machine(json_object_get(out->root, "machine"), out, err);
}

enum td_status td_benchread_parse(struct td_str text, const char *decode, struct td_benchread *out,
                                  struct td_err *err)
{
    enum td_status s;

    memset(out, 0, sizeof *out);
    s = read_all(text, decode, out, err);
    if (s)
        td_benchread_deinit(out);
    return s;
}

void td_benchread_deinit(struct td_benchread *read)
{
    json_decref(read->root);
    read->root = NULL;
}
