/* The file of a cluster: what it becomes, what is refused and in which words, and that no cut or changed byte does harm. */
#include "daemon/cli/clusterfile.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct td_machine machine; /* too large for the stack */

static const char GOOD[] = "# two kinds of hosts\n"
                           "hosts:\n"
                           "  - name: small\n"
                           "    count: 2\n"
                           "    ranks: 1\n"
                           "    memory_gib: 4\n"
                           "    memory_gb_per_s: 17.5\n"
                           "    int8_tops: 0.25\n"
                           "  - {name: large, count: 1, ranks: 2, memory_gib: 0.5,\n"
                           "     memory_gb_per_s: 20, shared_memory_gb_per_s: 30,\n"
                           "     bf16_tflops: 2, f32_tflops: 1e0, tiles: true}\n"
                           "links:\n"
                           "  intra_host: {latency_us: 2, bandwidth_gb_per_s: 7}\n"
                           "  inter_host:\n"
                           "    latency_us: 50\n"
                           "    gbit_per_s: 10\n"
                           "host_time_us: 0\n";

static enum td_status parse(const char *text, struct td_err *err)
{
    return td_clusterfile_parse(td_str_from(text), "c.yaml", &machine, err);
}

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-9 * fabs(b);
}

static void test_clusterfile_becomes_ranks_host_by_host(void **state)
{
    struct td_err err;

    (void)state;
    if (parse(GOOD, &err))
        fail_msg("%s", err.cause);
    assert_int_equal(machine.n_hosts, 3);
    assert_int_equal(machine.n_ranks, 4);
    assert_int_equal(machine.rank[1].host, 1);
    assert_int_equal(machine.rank[2].host, 2);
    assert_int_equal(machine.rank[3].host, 2);
    assert_int_equal(machine.rank[0].memory_bytes, (uint64_t)4 << 30);
    assert_int_equal(machine.rank[3].memory_bytes, (uint64_t)1 << 29);
    assert_true(near(machine.rank[1].memory_bytes_per_s, 17.5e9));
    assert_true(near(machine.rank[0].ops_per_s[TD_RATE_INT8], 0.25e12));
    assert_true(machine.rank[0].ops_per_s[TD_RATE_BF16] == 0.0 && !machine.rank[0].has_tiles);
    assert_true(near(machine.rank[2].ops_per_s[TD_RATE_BF16], 2e12));
    assert_true(near(machine.rank[2].ops_per_s[TD_RATE_F32], 1e12) && machine.rank[2].has_tiles);
    assert_true(machine.host_bytes_per_s[0] == 0.0);
    assert_true(near(machine.host_bytes_per_s[2], 30e9));
    assert_true(near(machine.intra.latency_s, 2e-6) && near(machine.intra.bytes_per_s, 7e9));
    assert_true(near(machine.inter.latency_s, 50e-6) && near(machine.inter.bytes_per_s, 1.25e9));
    assert_int_equal(td_predict_check(&machine, &err), TD_OK);
}

/* GOOD with one piece of text in the place of another. */
static char *change(const char *from, const char *to)
{
    const char *at = strstr(GOOD, from);
    size_t bytes = sizeof GOOD + strlen(to);
    char *text = malloc(bytes);

    assert_non_null(at);
    assert_non_null(text);
    snprintf(text, bytes, "%.*s%s%s", (int)(at - GOOD), GOOD, to, at + strlen(from));
    return text;
}

static void test_clusterfile_refuses_with_line_key_and_what_was_expected(void **state)
{
    static const struct {
        const char *from, *to, *says;
    } cases[] = {
        {"count: 2", "counts: 2",
         "'c.yaml' line 4: hosts[0]: unknown key 'counts', expected name, "},
        {"count: 2", "count: many", "line 4: hosts[0].count: got 'many', expected a whole number"},
        {"count: 2", "count: 0", "line 4: hosts[0].count: got '0', expected a whole number from 1"},
        {"count: 2", "count: 1.5", "line 4: hosts[0].count: got '1.5'"},
        {"count: 2", "count: 257", "line 4: hosts[0].count: got '257'"},
        {"count: 2", "count: 256", "line 9: hosts[1].count: 1 hosts of 2 ranks make 258 ranks"},
        {"count: 2", "count: \"2\"", "line 4: hosts[0].count: got '2', expected a whole number"},
        {"count: 2", "count:", "line 4: hosts[0].count: got '', expected"},
        {"    count: 2\n", "", "line 3: hosts[0].count: missing, expected a whole number"},
        {"    count: 2\n", "    count: 2\n    count: 2\n", "line 5: hosts[0].count: occurs twice"},
        {"name: small", "name: [small]", "line 3: hosts[0].name: got 'a list', expected a text"},
        {"17.5", "-17.5",
         "line 7: hosts[0].memory_gb_per_s: got '-17.5', expected a number above 0"},
        {"17.5", "0", "line 7: hosts[0].memory_gb_per_s: got '0', expected a number above 0"},
        {"17.5", ".nan", "line 7: hosts[0].memory_gb_per_s: got '.nan'"},
        {"17.5", ".inf", "line 7: hosts[0].memory_gb_per_s: got '.inf'"},
        {"17.5", "1e999", "line 7: hosts[0].memory_gb_per_s: got '1e999'"},
        {"17.5", "17.5x", "line 7: hosts[0].memory_gb_per_s: got '17.5x'"},
        {"17.5", "0x11", "line 7: hosts[0].memory_gb_per_s: got '0x11'"},
        {"17.5", "{}", "line 7: hosts[0].memory_gb_per_s: got 'a map'"},
        {"    int8_tops: 0.25\n", "", "line 3: hosts[0]: missing int8_tops, bf16_tflops or f32"},
        {"tiles: true", "tiles: maybe",
         "line 11: hosts[1].tiles: got 'maybe', expected true or false"},
        {"latency_us: 50", "latency_us: -1", "line 15: links.inter_host.latency_us: got '-1'"},
        {"    latency_us: 50\n", "", "line 15: links.inter_host.latency_us: missing"},
        {"gbit_per_s: 10", "gbit: 10", "line 16: links.inter_host: unknown key 'gbit'"},
        {"    gbit_per_s: 10\n", "", "line 15: links.inter_host: has neither, expected one of"},
        {"bandwidth_gb_per_s: 7", "bandwidth_gb_per_s: 7, gbit_per_s: 1",
         "line 13: links.intra_host: has both"},
        {"  intra_host: {latency_us: 2, bandwidth_gb_per_s: 7}\n", "",
         "line 13: links.intra_host: missing, expected a map"},
        {"host_time_us: 0\n", "",
         "line 2: cluster.host_time_us: missing, expected a number from 0"},
        {"host_time_us: 0\n", "host_time_us: 0\nmore: 1\n", "line 18: cluster: unknown key 'more'"},
        {"host_time_us: 0\n", "host_time_us: 0\n---\na: 1\n", "line 19: a second document"},
        {"host_time_us: 0\n", "host_time_us: [\n", "no valid YAML"},
        {"{latency_us: 2,", "{[latency_us]: 2,", "unknown key 'a list'"},
        {"{latency_us: 2, bandwidth_gb_per_s: 7}", "3",
         "links.intra_host: got '3', expected a map"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = change(cases[i].from, cases[i].to);
        struct td_err err = {0};
        enum td_status s;

        memset(&machine, 0x5a, sizeof machine);
        s = parse(text, &err);
        if (s != TD_INVALID || !strstr(err.cause, cases[i].says))
            fail_msg("'%s' for '%s': status %d, '%s'; expected '%s'", cases[i].to, cases[i].from, s,
                     err.cause, cases[i].says);
        assert_int_equal(machine.n_ranks, 0x5a5a5a5a); /* written on success only */
        free(text);
    }
}

static void test_clusterfile_refuses_what_is_no_map_of_hosts(void **state)
{
    static const char *const texts[] = {"",
                                        "# nothing\n",
                                        "3\n",
                                        "[]\n",
                                        "{}\n",
                                        "hosts\n",
                                        "hosts: []\nlinks: {}\nhost_time_us: 1\n",
                                        "hosts: {}\nlinks: {}\nhost_time_us: 1\n",
                                        "hosts: [3]\nlinks: {}\nhost_time_us: 1\n",
                                        "hosts: &a [*a]\nlinks: {}\nhost_time_us: 1\n",
                                        "&a {hosts: [*a], links: *a, host_time_us: 1}\n"};

    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct td_err err = {0};

        if (parse(texts[i], &err) != TD_INVALID || !strstr(err.cause, "expected"))
            fail_msg("'%s' gave '%s'", texts[i], err.cause);
    }
}

static void test_clusterfile_one_rank_needs_no_link(void **state)
{
    struct td_err err;

    (void)state;
    if (parse("hosts: [{name: a, count: 1, ranks: 1, memory_gib: 1, memory_gb_per_s: 1,\n"
              "         f32_tflops: 1}]\nlinks: {}\nhost_time_us: 1\n",
              &err))
        fail_msg("%s", err.cause);
    assert_int_equal(machine.n_ranks, 1);
    assert_int_equal(td_predict_check(&machine, &err), TD_OK);
}

/* Whatever comes of it is a machine or an error that says something. */
static void check_any(const char *text, size_t len)
{
    struct td_err err = {0};
    char *copy =
        malloc(len ? len : 1); /* no byte more, so that a sanitizer sees a read past the end */
    enum td_status s;

    assert_non_null(copy);
    memcpy(copy, text, len);
    s = td_clusterfile_parse((struct td_str){copy, len}, "c.yaml", &machine, &err);
    if (s ? s != TD_INVALID || !*err.cause : td_predict_check(&machine, &err) != TD_OK)
        fail_msg("%zu bytes: status %d, '%s'", len, s, err.cause);
    free(copy);
}

static void test_clusterfile_survives_every_cut_and_many_changes(void **state)
{
    static const char bytes[] = "{}[]:,&*-'\"#\n 019.e\xff|>!%"; /* and the NUL */
    char text[sizeof GOOD];
    uint64_t x = 11;

    (void)state;
    for (size_t len = 0; len < sizeof GOOD; len++)
        check_any(GOOD, len);
    for (uint32_t i = 0; i < 20000; i++) {
        memcpy(text, GOOD, sizeof GOOD);
        for (uint32_t k = 0; k <= i % 3; k++) {
            x = x * 6364136223846793005u + 1442695040888963407u;
            text[(x >> 33) % (sizeof GOOD - 1)] = bytes[(x >> 20) % sizeof bytes];
        }
        check_any(text, sizeof GOOD - 1);
    }
}

static void test_clusterfile_reads_the_examples(void **state)
{
    struct td_err err;

    (void)state;
    if (td_clusterfile_read(TD_SOURCE "/deploy/clusters/8x8-h200.yaml", &machine, &err))
        fail_msg("%s", err.cause);
    assert_int_equal(machine.n_ranks, 64);
    assert_int_equal(machine.n_hosts, 8);
    assert_true(near(machine.rank[63].memory_bytes_per_s, 4.8e12));
    assert_true(near(machine.inter.bytes_per_s, 50e9)); /* 400 Gb/s */
    if (td_clusterfile_read(TD_SOURCE "/deploy/clusters/4-arm-boards.yaml", &machine, &err))
        fail_msg("%s", err.cause);
    assert_int_equal(machine.n_ranks, 4);
    assert_int_equal(machine.n_hosts, 4);
    assert_true(near(machine.inter.bytes_per_s, 125e6)); /* 1 Gb/s */
    assert_int_equal(td_clusterfile_read("/no/such.yaml", &machine, &err), TD_NOT_FOUND);
    assert_non_null(strstr(err.cause, "--cluster: cannot open '/no/such.yaml'"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clusterfile_becomes_ranks_host_by_host),
        cmocka_unit_test(test_clusterfile_refuses_with_line_key_and_what_was_expected),
        cmocka_unit_test(test_clusterfile_refuses_what_is_no_map_of_hosts),
        cmocka_unit_test(test_clusterfile_one_rank_needs_no_link),
        cmocka_unit_test(test_clusterfile_survives_every_cut_and_many_changes),
        cmocka_unit_test(test_clusterfile_reads_the_examples),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
