#include "daemon/api/metrics.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct td_metric *add(struct td_metrics *m, const struct td_metrics_desc *desc)
{
    struct td_metric *series = NULL;
    struct td_err err = {0};
    assert_int_equal(td_metrics_register(m, desc, &series, &err), TD_OK);
    return series;
}

static void refresh(void *user)
{
    td_metrics_set(user, 0.25);
}

/* The expected text follows the exposition format's own page: HELP, TYPE, samples of a family together. */
static void test_metrics_writes_the_exposition_format(void **state)
{
    (void)state;
    struct td_metrics *m = NULL;
    assert_int_equal(td_metrics_open(&m, NULL), TD_OK);
    const struct td_metrics_label ok[] = {{"outcome", "ok"}};
    const struct td_metrics_label odd[] = {{"outcome", "a\"b\\c\nd"}, {"model", "m"}};
    const double buckets[] = {0.1, 1};
    struct td_metric *n_ok = add(m, &(struct td_metrics_desc){.kind = TD_METRICS_COUNTER,
                                                              .name = "tensord_requests_total",
                                                              .help = "Requests\nby outcome.",
                                                              .labels = ok,
                                                              .n_labels = 1});
    struct td_metric *used = add(m, &(struct td_metrics_desc){.kind = TD_METRICS_GAUGE,
                                                              .name = "tensord_kv_used_ratio",
                                                              .help = "KV blocks in use."});
    struct td_metric *n_odd = add(m, &(struct td_metrics_desc){.kind = TD_METRICS_COUNTER,
                                                               .name = "tensord_requests_total",
                                                               .help = "Requests\nby outcome.",
                                                               .labels = odd,
                                                               .n_labels = 2});
    struct td_metric *ttft = add(m, &(struct td_metrics_desc){.kind = TD_METRICS_HISTOGRAM,
                                                              .name = "tensord_ttft_seconds",
                                                              .help = "Time to first token.",
                                                              .labels = ok,
                                                              .n_labels = 1,
                                                              .buckets = buckets,
                                                              .n_buckets = 2});
    td_metrics_set_refresh(m, refresh, used);
    td_metrics_add(n_ok, 2);
    td_metrics_add(n_ok, -1); /* a counter never falls */
    td_metrics_add(n_odd, 9007199254740991.0);
    td_metrics_observe(ttft, 0.1);
    td_metrics_observe(ttft, 0.5);
    td_metrics_observe(ttft, 7);
    struct td_bytes out = {0};
    assert_int_equal(td_metrics_write(m, &out), TD_OK);
    assert_string_equal(out.data, "# HELP tensord_requests_total Requests\\nby outcome.\n"
                                  "# TYPE tensord_requests_total counter\n"
                                  "tensord_requests_total{outcome=\"ok\"} 2\n"
                                  "tensord_requests_total{outcome=\"a\\\"b\\\\c\\nd\",model=\"m\"} "
                                  "9.00719925474099e+15\n"
                                  "# HELP tensord_kv_used_ratio KV blocks in use.\n"
                                  "# TYPE tensord_kv_used_ratio gauge\n"
                                  "tensord_kv_used_ratio 0.25\n"
                                  "# HELP tensord_ttft_seconds Time to first token.\n"
                                  "# TYPE tensord_ttft_seconds histogram\n"
                                  "tensord_ttft_seconds_bucket{outcome=\"ok\",le=\"0.1\"} 1\n"
                                  "tensord_ttft_seconds_bucket{outcome=\"ok\",le=\"1\"} 2\n"
                                  "tensord_ttft_seconds_bucket{outcome=\"ok\",le=\"+Inf\"} 3\n"
                                  "tensord_ttft_seconds_sum{outcome=\"ok\"} 7.6\n"
                                  "tensord_ttft_seconds_count{outcome=\"ok\"} 3\n");
    assert_true(td_metrics_value(ttft) == 3);
    const char *path = getenv("TD_METRICS_OUT"); /* for a check with promtool by hand */
    FILE *f = path != NULL ? fopen(path, "w") : NULL;
    if (f != NULL) {
        fwrite(out.data, 1, out.len, f);
        fclose(f);
    }
    td_bytes_deinit(&out);
    td_metrics_close(m);
}

static void check_refused(struct td_metrics *m, struct td_metrics_desc desc)
{
    struct td_metric *series = NULL;
    struct td_err err = {0};
    assert_int_equal(td_metrics_register(m, &desc, &series, &err), TD_INVALID);
    assert_null(series);
    assert_true(err.cause[0] != '\0');
}

static void test_metrics_refuses_what_the_format_cannot_hold(void **state)
{
    (void)state;
    struct td_metrics *m = NULL;
    assert_int_equal(td_metrics_open(&m, NULL), TD_OK);
    const struct td_metrics_label le[] = {{"le", "1"}};
    const struct td_metrics_label dash[] = {{"a-b", "1"}};
    const struct td_metrics_label latin[] = {{"a", "\xe9"}};
    const double falling[] = {1, 1};
    add(m, &(struct td_metrics_desc){.name = "tensord_x", .help = "h"});
    check_refused(m, (struct td_metrics_desc){.name = "tensord_x", .help = "h"});
    check_refused(m,
                  (struct td_metrics_desc){
                      .kind = TD_METRICS_GAUGE, .name = "tensord_x", .help = "h", .labels = NULL});
    check_refused(m, (struct td_metrics_desc){.name = "other_x", .help = "h"});
    check_refused(m, (struct td_metrics_desc){.name = "tensord_a:b", .help = "h"});
    check_refused(m, (struct td_metrics_desc){.name = "tensord_y"});
    check_refused(
        m, (struct td_metrics_desc){.name = "tensord_y", .help = "h", .labels = le, .n_labels = 1});
    check_refused(m, (struct td_metrics_desc){
                         .name = "tensord_y", .help = "h", .labels = dash, .n_labels = 1});
    check_refused(m, (struct td_metrics_desc){
                         .name = "tensord_y", .help = "h", .labels = latin, .n_labels = 1});
    check_refused(m, (struct td_metrics_desc){
                         .kind = TD_METRICS_HISTOGRAM, .name = "tensord_y", .help = "h"});
    check_refused(m, (struct td_metrics_desc){.kind = TD_METRICS_HISTOGRAM,
                                              .name = "tensord_y",
                                              .help = "h",
                                              .buckets = falling,
                                              .n_buckets = 2});
    struct td_bytes out = {0};
    assert_int_equal(td_metrics_write(m, &out), TD_OK);
    assert_string_equal(out.data, "# HELP tensord_x h\n# TYPE tensord_x counter\ntensord_x 0\n");
    td_bytes_deinit(&out);
    td_metrics_close(m);
    td_metrics_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_metrics_writes_the_exposition_format),
        cmocka_unit_test(test_metrics_refuses_what_the_format_cannot_hold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
