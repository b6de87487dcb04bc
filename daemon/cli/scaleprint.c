#include "daemon/cli/scaleprint.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const part_names[TD_BENCHREAD_N_PARTS] = {"compute", "exchange", "wait", "host"};

const char *td_scaleprint_name(const struct td_scale_point *p, char out[TD_SCALEPRINT_NAME_BYTES])
{
    const struct td_scale_layout *l = &p->layout;
    int n = snprintf(out, TD_SCALEPRINT_NAME_BYTES, "%u rank%s, tp %u x pp %u, prompt %u, depth %u",
                     l->ranks, l->ranks == 1 ? "" : "s", l->tp, l->pp, p->prompt_tokens, p->depth);

    if (p->delay)
        snprintf(out + n, (size_t)(TD_SCALEPRINT_NAME_BYTES - n), ", delay %s, rate %s",
                 p->delay->text, p->rate->text);
    return out;
}

/* ---- text ---- */

/* A number as wide as its column, "-" where there is none. */
static void show(int width, int digits, double value, const char *unit)
{
    char text[32] = "-";

    if (isfinite(value))
        snprintf(text, sizeof text, "%.*f%s", digits, value, unit);
    printf("  %*s", width, text);
}

static int digits_of(double value)
{
    return value < 10.0 ? 2 : value < 1000.0 ? 1 : 0;
}

static void print_layout(const struct td_scaleprint *p, const struct td_scale_point *point)
{
    printf("%5u  %3u  %3u", point->layout.ranks, point->layout.tp, point->layout.pp);
    if (p->lab)
        printf("  %7s  %8s", point->delay ? point->delay->text : "-",
               point->rate ? point->rate->text : "-");
}

static void print_phase(const struct td_scaleprint *p, const struct td_scale_point *point,
                        const char *name, const struct td_benchread_case *measured,
                        const struct td_scale_phase *phase)
{
    char error[16] = "-";

    print_layout(p, point);
    printf("  %7u  %-13s", point->read->n_threads, name);
    show(9, digits_of(measured->best), measured->best, "");
    show(9, digits_of(measured->median), measured->median, "");
    show(8, phase->speed_up < 0.1 ? 3 : 2, phase->speed_up, "");
    show(10, 0, phase->efficiency * 100.0, " %");
    show(9, digits_of(phase->predicted.tokens_per_s),
         isfinite(phase->error) ? phase->predicted.tokens_per_s : NAN, "");
    if (isfinite(phase->error))
        snprintf(error, sizeof error, "%+.0f %%", phase->error * 100.0);
    printf("  %7s", error);
    for (int i = 0; i < TD_BENCHREAD_N_PARTS; i++)
        show(8, 3, measured->part_s[i] * 1e3, "");
    if (td_scale_has_drifted(point->drift))
        printf("  drift %.0f %%", point->drift * 100.0);
    if (measured->n_unsteady)
        printf("  %u of %u unsteady", measured->n_unsteady, measured->n_runs);
    putchar('\n');
}

static void print_point(const struct td_scaleprint *p, const struct td_scale_point *point)
{
    char name[32];

    if (!point->read) {
        print_layout(p, point);
        printf("  failed: %s\n", point->failure);
        return;
    }
    snprintf(name, sizeof name, "decode @%.0f", point->read->decode.depth);
    print_phase(p, point, name, &point->read->decode, &point->decode);
    snprintf(name, sizeof name, "prefill %llu", (unsigned long long)point->read->prefill.n_tokens);
    print_phase(p, point, name, &point->read->prefill, &point->prefill);
}

void td_scaleprint_text(const struct td_scaleprint *p)
{
    const struct td_spec *spec = p->model->spec;

    printf("model     %s (%s, %u layers), most weights %s\n", p->model->name, spec->name,
           spec->n_layers, td_dtype_info(spec->dtype)->name);
    printf("host      %s, %u core%s\n\n", p->cpu, p->n_cores, p->n_cores == 1 ? "" : "s");
    printf("%5s  %3s  %3s", "ranks", "tp", "pp");
    if (p->lab)
        printf("  %7s  %8s", "delay", "rate");
    printf("  %7s  %-13s  %9s  %9s  %8s  %10s  %9s  %7s", "threads", "case", "tokens/s", "median",
           "speed-up", "efficiency", "predicted", "error");
    for (int i = 0; i < TD_BENCHREAD_N_PARTS; i++)
        printf("  %8s", part_names[i]);
    putchar('\n');
    for (uint32_t i = 0; i < p->n; i++)
        print_point(p, &p->points[i]);
    printf(
        "\nthreads are of all ranks; tokens/s is the best of %lld runs, the four columns on the "
        "right are that run's ms per token.\n"
        "speed-up is against one rank, efficiency is it by how many times as many threads worked; "
        "predicted (plan --predict) is from the\n"
        "memory, arithmetic and links that the ranks measured before and after the same runs.\n",
        (long long)p->opts->repetitions);
}

/* ---- JSON ---- */

static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *prediction_json(const struct td_scale_phase *phase)
{
    static const char *const keys[TD_N_PARTS] = {"memory", "arithmetic", "exchange_latency",
                                                 "exchange_bandwidth", "host"};
    json_t *parts;

    if (!isfinite(phase->error))
        return json_null();
    parts = json_object();
    for (int i = 0; i < TD_N_PARTS; i++)
        json_object_set_new(parts, keys[i], json_real(phase->predicted.part_s[i]));
    return json_pack("{s:f,s:f,s:s,s:o}", "tokens_per_second", phase->predicted.tokens_per_s,
                     "error", phase->error, "bottleneck", keys[phase->predicted.bottleneck],
                     "seconds_per_token_by_part", parts);
}

static json_t *phase_json(const struct td_benchread_case *c, const struct td_scale_phase *phase)
{
    json_t *parts = json_object();

    for (int i = 0; i < TD_BENCHREAD_N_PARTS; i++)
        json_object_set_new(parts, part_names[i], json_real(c->part_s[i]));
    return json_pack("{s:f,s:f,s:o,s:o,s:o,s:o,s:f,s:f,s:f,s:I,s:I}", "tokens_per_second", c->best,
                     "median_tokens_per_second", c->median, "speed_up", number(phase->speed_up),
                     "efficiency", number(phase->efficiency), "seconds_per_token_by_part", parts,
                     "prediction", prediction_json(phase), "mean_depth", c->depth,
                     "sent_bytes_per_token", c->sent_bytes, "exchanges_per_token", c->n_exchanges,
                     "runs", (json_int_t)c->n_runs, "unsteady_runs", (json_int_t)c->n_unsteady);
}

static json_t *link_json(const struct td_scale_point *p)
{
    return p->delay ? json_pack("{s:s,s:f,s:s,s:f}", "delay", p->delay->text, "delay_seconds",
                                p->delay->value, "rate", p->rate->text, "bits_per_second",
                                p->rate->value)
                    : json_null();
}

static json_t *point_json(const struct td_scale_point *p)
{
    json_t *j = json_pack("{s:I,s:I,s:I,s:o,s:I,s:I,s:I}", "ranks", (json_int_t)p->layout.ranks,
                          "tensor_parallel", (json_int_t)p->layout.tp, "pipeline_parallel",
                          (json_int_t)p->layout.pp, "link", link_json(p), "prompt_tokens",
                          (json_int_t)p->prompt_tokens, "depth", (json_int_t)p->depth, "tries",
                          (json_int_t)p->n_tries);

    json_object_set_new(j, "failure", p->read ? json_null() : json_string(p->failure));
    if (!p->read)
        return j;
    json_object_set_new(j, "threads", json_integer((json_int_t)p->read->n_threads));
    json_object_set_new(j, "hosts", json_integer((json_int_t)p->read->n_hosts));
    if (isfinite(p->link.latency_s))
        json_object_set_new(j, "exchange_link",
                            json_pack("{s:f,s:f}", "latency_seconds", p->link.latency_s,
                                      "bytes_per_second", p->link.bytes_per_s));
    else
        json_object_set_new(j, "exchange_link", json_null());
    json_object_set_new(j, "memory_drift", number(p->drift));
    json_object_set_new(j, "drifted", json_boolean(td_scale_has_drifted(p->drift)));
    json_object_set_new(j, "decode", phase_json(&p->read->decode, &p->decode));
    json_object_set_new(j, "prefill", phase_json(&p->read->prefill, &p->prefill));
    json_object_set(j, "bench", p->read->root);
    return j;
}

static json_t *values_json(const struct td_linkspec_value *values, uint32_t n)
{
    json_t *j = json_array();

    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(j, json_string(values[i].text));
    return j;
}

static json_t *settings_json(const struct td_scaleprint *p)
{
    const struct td_options *o = p->opts;

    return json_pack("{s:I,s:I,s:I,s:I,s:f,s:s?,s:o}", "gen_tokens", (json_int_t)o->gen_tokens,
                     "repetitions", (json_int_t)o->repetitions, "retries", (json_int_t)o->retries,
                     "threads_per_rank", (json_int_t)o->threads, "run_timeout_seconds",
                     o->run_timeout, "hostfile", o->hostfile, "netlab",
                     p->lab ? json_pack("{s:o,s:o}", "delay",
                                        values_json(p->lab->delay, p->lab->n_delays), "rate",
                                        values_json(p->lab->rate, p->lab->n_rates))
                            : json_null());
}

json_t *td_scaleprint_json(const struct td_scaleprint *p)
{
    json_t *points = json_array();

    for (uint32_t i = 0; i < p->n; i++)
        json_array_append_new(points, point_json(&p->points[i]));
    return json_pack("{s:s,s:s,s:s,s:I,s:s,s:I,s:o,s:o}", "tool", "tensord bench scale", "version",
                     TD_VERSION, "model", p->model->name, "layers",
                     (json_int_t)p->model->spec->n_layers, "cpu", p->cpu, "cores",
                     (json_int_t)p->n_cores, "settings", settings_json(p), "points", points);
}
