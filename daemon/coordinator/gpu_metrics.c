#include "daemon/coordinator/gpu_metrics.h"

#include "daemon/api/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    enum td_metrics_kind kind;
    const char *name, *help;
    struct td_metrics_label label; /* name NULL: none */
    double unit;                   /* of the figure, in the metric's */
    const char *json;
} TABLE[TD_GPU_N_FIGURES] = {
    [TD_GPU_POWER] = {TD_METRICS_GAUGE,
                      "tensord_gpu_power_watts",
                      "What the rank's GPU draws",
                      {0},
                      1e-3,
                      "power_watts"},
    [TD_GPU_ENERGY] = {TD_METRICS_COUNTER,
                       "tensord_gpu_energy_joules_total",
                       "What the rank's GPU has drawn since its driver was loaded",
                       {0},
                       1e-3,
                       "energy_joules"},
    [TD_GPU_TEMPERATURE] = {TD_METRICS_GAUGE,
                            "tensord_gpu_temperature_celsius",
                            "Temperature of the rank's GPU",
                            {0},
                            1.0,
                            "temperature_celsius"},
    [TD_GPU_SM_CLOCK] = {TD_METRICS_GAUGE,
                         "tensord_gpu_clock_hertz",
                         "Clocks of the rank's GPU",
                         {"domain", "sm"},
                         1e6,
                         "sm_clock_hertz"},
    [TD_GPU_MEMORY_CLOCK] = {TD_METRICS_GAUGE,
                             "tensord_gpu_clock_hertz",
                             "Clocks of the rank's GPU",
                             {"domain", "memory"},
                             1e6,
                             "memory_clock_hertz"},
    [TD_GPU_ECC_CORRECTED] = {TD_METRICS_COUNTER,
                              "tensord_gpu_ecc_errors_total",
                              "Memory errors of the rank's GPU since its driver was loaded",
                              {"kind", "corrected"},
                              1.0,
                              "ecc_errors_corrected"},
    [TD_GPU_ECC_UNCORRECTED] = {TD_METRICS_COUNTER,
                                "tensord_gpu_ecc_errors_total",
                                "Memory errors of the rank's GPU since its driver was loaded",
                                {"kind", "uncorrected"},
                                1.0,
                                "ecc_errors_uncorrected"},
    [TD_GPU_NVLINKS] = {TD_METRICS_GAUGE,
                        "tensord_gpu_nvlinks_up",
                        "NVLinks of the rank's GPU that are up",
                        {0},
                        1.0,
                        "nvlinks_up"},
    [TD_GPU_NVLINK_ERRORS] = {TD_METRICS_COUNTER,
                              "tensord_gpu_nvlink_errors_total",
                              "Replays, recoveries and bad checksums on those links",
                              {0},
                              1.0,
                              "nvlink_errors"},
};

struct td_gpu_metrics {
    struct td_metrics *metrics;
    struct td_metric *per_token;
    struct td_metric *series[TD_PLAN_MAX_RANKS][TD_GPU_N_FIGURES]; /* NULL: not told yet */
};

enum td_status td_gpu_metrics_open(struct td_metrics *metrics, struct td_gpu_metrics **out,
                                   struct td_err *err)
{
    static const struct td_metrics_desc PER_TOKEN = {
        .kind = TD_METRICS_GAUGE,
        .name = "tensord_gpu_joules_per_token",
        .help =
            "What the group's GPUs have drawn since its model was loaded, idle or not, for each "
            "token it has generated since; 0: unknown"};
    struct td_gpu_metrics *m = calloc(1, sizeof *m);
    enum td_status s = m ? TD_OK : td_err_set(err, TD_NO_MEMORY, "no memory for metrics");

    s = s ? s : td_metrics_register(metrics, &PER_TOKEN, &m->per_token, err);
    if (s) {
        free(m);
        return s;
    }
    m->metrics = metrics;
    *out = m;
    return TD_OK;
}

void td_gpu_metrics_close(struct td_gpu_metrics *m)
{
    free(m);
}

static struct td_metric *series_of(struct td_gpu_metrics *m, uint32_t rank, uint32_t figure)
{
    char number[12];
    const struct td_metrics_label labels[] = {{"rank", number}, TABLE[figure].label};
    const struct td_metrics_desc desc = {.kind = TABLE[figure].kind,
                                         .name = TABLE[figure].name,
                                         .help = TABLE[figure].help,
                                         .labels = labels,
                                         .n_labels = TABLE[figure].label.name ? 2 : 1};

    snprintf(number, sizeof number, "%u", rank);
    if (!m->series[rank][figure])
        (void)td_metrics_register(m->metrics, &desc, &m->series[rank][figure], NULL);
    return m->series[rank][figure];
}

/* Of all GPUs, each once, although ranks may share it. */
static double joules(const struct td_coord_status *s)
{
    double sum = 0.0;

    for (uint32_t i = 0; i < s->n_ranks; i++) {
        const struct td_member *m = &s->members[i];
        bool is_first = m->gpu_energy_before && td_gpuhealth_has(&m->gpu, TD_GPU_ENERGY);

        for (uint32_t k = 0; is_first && k < i; k++)
            is_first = strcmp(s->members[k].host, m->host) != 0 ||
                       strcmp(s->members[k].bus_id, m->bus_id) != 0;
        if (is_first && m->gpu.value[TD_GPU_ENERGY] > m->gpu_energy_before)
            sum += (double)(m->gpu.value[TD_GPU_ENERGY] - m->gpu_energy_before) * 1e-3;
    }
    return sum;
}

void td_gpu_metrics_refresh(struct td_gpu_metrics *m, const struct td_coord_status *s)
{
    for (uint32_t i = 0; i < s->n_ranks && i < TD_PLAN_MAX_RANKS; i++)
        for (uint32_t f = 0; f < TD_GPU_N_FIGURES; f++) {
            const struct td_gpuhealth_sample *gpu = &s->members[i].gpu;
            struct td_metric *series =
                td_gpuhealth_has(gpu, (enum td_gpu_figure)f) ? series_of(m, i, f) : NULL;
            const double value = (double)gpu->value[f] * TABLE[f].unit;

            if (series && TABLE[f].kind == TD_METRICS_GAUGE)
                td_metrics_set(series, value);
            else if (series && value > td_metrics_value(series))
                td_metrics_add(series, value - td_metrics_value(series));
        }
    td_metrics_set(m->per_token, s->n_ranks && s->members[0].n_generated
                                     ? joules(s) / (double)s->members[0].n_generated
                                     : 0.0);
}

enum td_status td_gpu_metrics_json(const struct td_member *m, struct td_bytes *out)
{
    enum td_status s = td_bytes_append_str(out, TD_STR("{\"bus_id\":"));

    s = s ? s : td_json_append_string(out, td_str_from(m->bus_id));
    for (uint32_t f = 0; !s && f < TD_GPU_N_FIGURES; f++)
        if (td_gpuhealth_has(&m->gpu, (enum td_gpu_figure)f))
            s = td_bytes_appendf(out, ",\"%s\":%.10g", TABLE[f].json,
                                 (double)m->gpu.value[f] * TABLE[f].unit);
    return s ? s : td_bytes_append_str(out, TD_STR("}"));
}
