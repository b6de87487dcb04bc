#include "daemon/engine/gpuhealth.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

/* NVML's names and numbers (its API reference); CUDA's toolkit does not always bring its header. */
typedef struct nvml_device *nvml_device;
enum {
    NVML_SUCCESS = 0,
    NVML_TEMPERATURE_GPU = 0,
    NVML_CLOCK_SM = 1,
    NVML_CLOCK_MEM = 2,
    NVML_ERRORS_CORRECTED = 0,
    NVML_ERRORS_UNCORRECTED = 1,
    NVML_VOLATILE_ECC = 0,
    NVML_LINKS = 18,
    NVML_LINK_ERROR_KINDS = 4 /* replays, recoveries, checksums of flits, of data */
};

#define FUNCTIONS(X)                                                                               \
    X(init, "nvmlInit_v2", int, (void))                                                            \
    X(shutdown, "nvmlShutdown", int, (void))                                                       \
    X(error_string, "nvmlErrorString", const char *, (int))                                        \
    X(find, "nvmlDeviceGetHandleByPciBusId_v2", int, (const char *, nvml_device *))                \
    X(power, "nvmlDeviceGetPowerUsage", int, (nvml_device, unsigned *))                            \
    X(energy, "nvmlDeviceGetTotalEnergyConsumption", int, (nvml_device, unsigned long long *))     \
    X(temperature, "nvmlDeviceGetTemperature", int, (nvml_device, int, unsigned *))                \
    X(clock, "nvmlDeviceGetClockInfo", int, (nvml_device, int, unsigned *))                        \
    X(ecc, "nvmlDeviceGetTotalEccErrors", int, (nvml_device, int, int, unsigned long long *))      \
    X(link, "nvmlDeviceGetNvLinkState", int, (nvml_device, unsigned, int *))                       \
    X(link_errors, "nvmlDeviceGetNvLinkErrorCounter", int,                                         \
      (nvml_device, unsigned, int, unsigned long long *))

struct td_gpuhealth {
    void *lib;
    nvml_device device;
#define X(name, symbol, result, args) result(*name) args;
    FUNCTIONS(X)
#undef X
};

static enum td_status find_functions(struct td_gpuhealth *h, struct td_err *err)
{
    const char *missing = NULL;

    /* A function is no object for C, so its address is copied. */
#define X(name, symbol, result, args)                                                              \
    {                                                                                              \
        void *found = dlsym(h->lib, symbol);                                                       \
                                                                                                   \
        memcpy(&h->name, &found, sizeof found);                                                    \
        missing = missing || found ? missing : symbol;                                             \
    }
    FUNCTIONS(X)
#undef X
    return missing ? td_err_set(err, TD_CORRUPT, "libnvidia-ml.so.1 has no %s", missing) : TD_OK;
}

enum td_status td_gpuhealth_open(const char *bus_id, struct td_gpuhealth **out, struct td_err *err)
{
    struct td_gpuhealth *h = calloc(1, sizeof *h);
    enum td_status s;
    int code;

    if (!h)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a GPU's health");
    h->lib = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    s = h->lib ? find_functions(h, err)
               : td_err_set(err, TD_NOT_FOUND, "there is no libnvidia-ml.so.1 here");
    if (!s && (code = h->init()) != NVML_SUCCESS)
        s = td_err_set(err, TD_DEVICE, "NVML does not begin: %s", h->error_string(code));
    if (s) {
        if (h->lib)
            dlclose(h->lib);
        free(h);
        return s;
    }
    code = h->find(bus_id, &h->device);
    if (code != NVML_SUCCESS) {
        s = td_err_set(err, TD_DEVICE, "NVML knows no GPU %s: %s", bus_id, h->error_string(code));
        td_gpuhealth_close(h);
        return s;
    }
    *out = h;
    return TD_OK;
}

void td_gpuhealth_close(struct td_gpuhealth *h)
{
    if (!h)
        return;
    h->shutdown();
    dlclose(h->lib);
    free(h);
}

static void note(struct td_gpuhealth_sample *s, enum td_gpu_figure figure, int code, uint64_t value)
{
    if (code != NVML_SUCCESS)
        return;
    s->has |= 1u << figure;
    s->value[figure] = value;
}

static void read_links(const struct td_gpuhealth *h, struct td_gpuhealth_sample *s)
{
    int is_up;

    for (unsigned link = 0; link < NVML_LINKS; link++) {
        if (h->link(h->device, link, &is_up) != NVML_SUCCESS)
            continue;
        note(s, TD_GPU_NVLINKS, NVML_SUCCESS, s->value[TD_GPU_NVLINKS] + (is_up != 0));
        for (int kind = 0; is_up && kind < NVML_LINK_ERROR_KINDS; kind++) {
            unsigned long long n = 0;
            int code = h->link_errors(h->device, link, kind, &n);

            note(s, TD_GPU_NVLINK_ERRORS, code, s->value[TD_GPU_NVLINK_ERRORS] + n);
        }
    }
}

void td_gpuhealth_read(struct td_gpuhealth *h, struct td_gpuhealth_sample *s)
{
    unsigned n = 0;
    unsigned long long many = 0;
    int code;

    memset(s, 0, sizeof *s);
    code = h->power(h->device, &n);
    note(s, TD_GPU_POWER, code, n);
    code = h->energy(h->device, &many);
    note(s, TD_GPU_ENERGY, code, many);
    code = h->temperature(h->device, NVML_TEMPERATURE_GPU, &n);
    note(s, TD_GPU_TEMPERATURE, code, n);
    code = h->clock(h->device, NVML_CLOCK_SM, &n);
    note(s, TD_GPU_SM_CLOCK, code, n);
    code = h->clock(h->device, NVML_CLOCK_MEM, &n);
    note(s, TD_GPU_MEMORY_CLOCK, code, n);
    code = h->ecc(h->device, NVML_ERRORS_CORRECTED, NVML_VOLATILE_ECC, &many);
    note(s, TD_GPU_ECC_CORRECTED, code, many);
    code = h->ecc(h->device, NVML_ERRORS_UNCORRECTED, NVML_VOLATILE_ECC, &many);
    note(s, TD_GPU_ECC_UNCORRECTED, code, many);
    read_links(h, s);
}
