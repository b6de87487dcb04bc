/* What `bench --json` prints as another process reads it: whole, cut off at every byte, with members missing or of another kind. */
#include "daemon/cli/benchread.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define RATES "\"ops_per_second\":{\"int8\":4e11,\"bf16\":null,\"f32\":1e11}"
#define RANK(host)                                                                                 \
    "{\"host\":" #host                                                                             \
    ",\"memory_bytes_per_second\":2e10,\"host_memory_bytes_per_second\":3e10," RATES               \
    ",\"tiles\":false,\"memory_bytes\":1000,\"host_seconds_per_step\":2e-5}"
#define MACHINE(latency)                                                                           \
    "{\"source\":\"here\",\"ranks\":[" RANK(0) "," RANK(1) "],\"inter_host\":{"                    \
                                                           "\"latency_seconds\":" #latency         \
                                                           ",\"bytes_per_second\":1e9}}"
#define SPLIT(n)                                                                                   \
    "\"split_seconds\":{\"compute\":" #n ",\"exchange\":0.5,\"wait\":0.25,\"host\":0.125}"

/* Two ranks on two hosts with three threads; ten tokens, the faster of two runs the second. */
static const char GOOD[] =
    "{\"layout\":{\"tensor_parallel\":2,\"pipeline_parallel\":1},"
    "\"ranks\":[{\"host\":\"a\",\"threads\":2},{\"host\":\"b\",\"threads\":1}],"
    "\"cases\":{\"decode\":{\"best\":5.0,\"median\":4,\"depth\":132.5,\"tokens\":10,"
    "\"sent_bytes_per_token\":2048,\"exchanges_per_token\":9.5,\"runs\":["
    "{\"rate\":3,\"steady\":false," SPLIT(4) "},{\"rate\":5,\"steady\":true," SPLIT(
        1) "}]},"
           "\"prefill\":{\"best\":50,\"median\":50,\"depth\":64.5,\"tokens\":128,"
           "\"sent_bytes_per_token\":0,\"exchanges_per_token\":0,\"runs\":["
           "{\"rate\":50,\"steady\":true," SPLIT(2) "}]}},"
                                                    "\"machine\":{\"before\":" MACHINE(
                                                        5e-5) ",\"after\":" MACHINE(6e-5) "}}";

static struct td_benchread r; /* too large for the stack */

static enum td_status parse(const char *text, struct td_err *err)
{
    return td_benchread_parse(td_str_from(text), "decode", &r, err);
}

static void test_benchread_takes_figures_of_the_fastest_run(void **state)
{
    struct td_err err;

    (void)state;
    if (parse(GOOD, &err))
        fail_msg("%s", err.cause);
    assert_int_equal(r.n_ranks, 2);
    assert_int_equal(r.tp, 2);
    assert_int_equal(r.pp, 1);
    assert_int_equal(r.n_threads, 3);
    assert_int_equal(r.n_hosts, 2);
    assert_true(r.decode.best == 5.0 && r.decode.median == 4.0 && r.decode.depth == 132.5);
    assert_int_equal(r.decode.n_tokens, 10);
    assert_true(fabs(r.decode.part_s[TD_BENCHREAD_COMPUTE] - 0.1) < 1e-15);
    assert_true(fabs(r.decode.part_s[TD_BENCHREAD_EXCHANGE] - 0.05) < 1e-15);
    assert_true(fabs(r.decode.part_s[TD_BENCHREAD_WAIT] - 0.025) < 1e-15);
    assert_true(fabs(r.decode.part_s[TD_BENCHREAD_HOST] - 0.0125) < 1e-15);
    assert_int_equal(r.decode.n_runs, 2);
    assert_int_equal(r.decode.n_unsteady, 1);
    assert_true(r.decode.sent_bytes == 2048.0 && r.decode.n_exchanges == 9.5);
    assert_int_equal(r.prefill.n_tokens, 128);
    assert_true(fabs(r.prefill.part_s[TD_BENCHREAD_COMPUTE] - 2.0 / 128.0) < 1e-15);
    assert_true(r.has_machine);
    assert_true(r.before.inter.latency_s == 5e-5 && r.after.inter.latency_s == 6e-5);
    assert_int_equal(r.before.n_hosts, 2);
    td_benchread_deinit(&r);
}

static void test_benchread_refuses_every_cut(void **state)
{
    (void)state;
    for (size_t len = 0; len < sizeof GOOD - 1; len++) {
        char *cut = malloc(len ? len : 1); /* so that a byte too far is seen */
        struct td_err err;

        assert_non_null(cut);
        memcpy(cut, GOOD, len);
        assert_int_equal(td_benchread_parse((struct td_str){cut, len}, "decode", &r, &err),
                         TD_PEER_PROTOCOL);
        assert_true(err.cause[0]);
        assert_null(r.root);
        free(cut);
    }
}

/* GOOD with the first `from` behind `after` replaced. Owned. */
static char *change(const char *after, const char *from, const char *to)
{
    const char *start = strstr(GOOD, after), *at = start ? strstr(start, from) : NULL;
    char *text = malloc(sizeof GOOD + strlen(to));

    assert_non_null(at);
    assert_non_null(text);
    sprintf(text, "%.*s%s%s", (int)(at - GOOD), GOOD, to, at + strlen(from));
    return text;
}

static void test_benchread_names_what_is_missing_or_wrong(void **state)
{
    static const char *const cases[][4] = {
        {"layout", "\"tensor_parallel\":2", "\"x\":2", "layout.tensor_parallel"},
        {"layout", "\"tensor_parallel\":2", "\"tensor_parallel\":0", "layout.tensor_parallel"},
        {"layout", "\"tensor_parallel\":2", "\"tensor_parallel\":2.5", "layout.tensor_parallel"},
        {"\"ranks\"", "\"a\"", "7", "ranks.host"},
        {"\"ranks\"", "\"threads\":1", "\"threads\":-1", "ranks.threads"},
        {"cases", "\"decode\"", "\"depth\"", "cases.decode"},
        {"decode", "\"best\":5.0", "\"best\":\"5\"", "decode.best: expected a number above 0"},
        {"decode", "\"best\":5.0", "\"best\":-5", "decode.best"},
        {"decode", "\"median\":4", "\"median\":null", "decode.median"},
        {"decode", "\"tokens\":10", "\"tokens\":0", "decode.tokens"},
        {"decode", "\"tokens\":10", "\"tokens\":99999999999", "decode.tokens"},
        {"decode", "\"runs\":[", "\"runs\":[1,", "decode.rate"},
        {"decode", "\"rate\":5", "\"rate\":0", "decode.rate"},
        {"\"rate\":5", "\"exchange\":0.5", "\"exchange\":-0.5", "decode.exchange"},
        {"\"rate\":5", "\"wait\":0.25,", "", "decode.wait"},
        {"cases", "\"prefill\":{", "\"prefil\":{", "cases.prefill"},
        {"machine", "\"int8\":4e11", "\"int8\":true", "'int8'"},
        {"machine", "\"memory_bytes_per_second\":2e10", "\"memory_bytes_per_second\":0", "bytes/s"},
        {"machine", "\"host\":1", "\"host\":256", "'host'"},
        {"machine", "\"inter_host\"", "\"intra_host\"", "'latency_seconds'"},
        {"machine", "\"before\"", "\"befor\"", "'ranks'"},
        {"machine", RANK(0) ",", "", "machine.ranks: expected as many as the job has"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *text = change(cases[i][0], cases[i][1], cases[i][2]);
        struct td_err err;

        assert_int_equal(parse(text, &err), TD_PEER_PROTOCOL);
        if (!strstr(err.cause, cases[i][3]))
            fail_msg("'%s' for '%s' is refused with '%s', without '%s'", cases[i][2], cases[i][1],
                     err.cause, cases[i][3]);
        free(text);
    }
}

static void test_benchread_takes_a_group_that_could_not_be_measured(void **state)
{
    const char *at = strstr(GOOD, "\"machine\"");
    char text[sizeof GOOD + 64];
    struct td_err err;

    (void)state;
    snprintf(text, sizeof text, "%.*s\"machine\":{\"before\":null,\"after\":null}}",
             (int)(at - GOOD), GOOD);
    assert_int_equal(parse(text, &err), TD_OK);
    assert_false(r.has_machine);
    td_benchread_deinit(&r);
}

static void test_benchread_refuses_garbage(void **state)
{
    static const char *const texts[] = {
        "",
        "\n",
        "null",
        "[]",
        "7",
        "{}",
        "mpirun: error",
        "{\"cases\":[]}",
        "{\"ranks\":{}}",
        "{\"layout\":{\"tensor_parallel\":1,\"pipeline_parallel\":1},\"ranks\":[7]}",
        "\xff\xfe\x00"};

    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct td_err err;

        assert_int_equal(parse(texts[i], &err), TD_PEER_PROTOCOL);
        assert_non_null(strstr(err.cause, "bench's JSON"));
    }
}

/* Any byte may be anything: it is read or refused, and what is read is whole. */
static void test_benchread_survives_every_change_of_a_byte(void **state)
{
    static const char bytes[] = "0-9e.,:{}[]\"nt \x80";
    char text[sizeof GOOD];

    (void)state;
    for (size_t i = 0; i < sizeof GOOD - 1; i++)
        for (size_t k = 0; k < sizeof bytes - 1; k++) {
            struct td_err err;

            memcpy(text, GOOD, sizeof GOOD);
            text[i] = bytes[k];
            if (parse(text, &err))
                continue;
            assert_true(r.n_ranks == 2 && r.n_threads >= 2 && r.decode.best > 0.0);
            assert_true(r.decode.n_tokens > 0 && isfinite(r.decode.part_s[0]));
            td_benchread_deinit(&r);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_benchread_takes_figures_of_the_fastest_run),
        cmocka_unit_test(test_benchread_refuses_every_cut),
        cmocka_unit_test(test_benchread_names_what_is_missing_or_wrong),
        cmocka_unit_test(test_benchread_takes_a_group_that_could_not_be_measured),
        cmocka_unit_test(test_benchread_refuses_garbage),
        cmocka_unit_test(test_benchread_survives_every_change_of_a_byte),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
