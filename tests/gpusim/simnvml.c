/* NVML for the simulated device: a GPU of 250 W whose counters rise with the host's clock. Some of what a real one is asked it does not
 * tell, as older GPUs do not. */
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, WATTS = 250 };

int nvmlInit_v2(void);
int nvmlShutdown(void);
const char *nvmlErrorString(int code);
int nvmlSystemGetDriverVersion(char *out, unsigned bytes);
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **device);
int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts);
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules);
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius);
int nvmlDeviceGetClockInfo(void *device, int domain, unsigned *megahertz);
int nvmlDeviceGetTotalEccErrors(void *device, int kind, int counter, unsigned long long *n);
int nvmlDeviceGetNvLinkState(void *device, unsigned link, int *is_up);
int nvmlDeviceGetNvLinkErrorCounter(void *device, unsigned link, int kind, unsigned long long *n);

int nvmlInit_v2(void)
{
    return SUCCESS;
}

int nvmlShutdown(void)
{
    return SUCCESS;
}

const char *nvmlErrorString(int code)
{
    return code == NOT_FOUND ? "Not Found" : "Not Supported";
}

int nvmlSystemGetDriverVersion(char *out, unsigned bytes)
{
    strncpy(out, "580.0", bytes);
    return SUCCESS;
}

/* As the simulated runtime names its devices. */
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **device)
{
    static char one;

    *device = &one;
    return strncmp(bus_id, "0000:", 5) == 0 ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts)
{
    (void)device;
    *milliwatts = WATTS * 1000;
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules)
{
    struct timespec now;

    (void)device;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *millijoules =
        ((unsigned long long)now.tv_sec * 1000 + (unsigned long long)now.tv_nsec / 1000000) * WATTS;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius)
{
    (void)device;
    *celsius = 61;
    return sensor == 0 ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetClockInfo(void *device, int domain, unsigned *megahertz)
{
    (void)device;
    *megahertz = domain == 1 ? 1980 : 3201;
    return domain == 1 || domain == 2 ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetTotalEccErrors(void *device, int kind, int counter, unsigned long long *n)
{
    (void)device;
    *n = 7;
    return kind == 0 && counter == 0 ? SUCCESS : NOT_SUPPORTED;
}

/* Two links, of which one is up. */
int nvmlDeviceGetNvLinkState(void *device, unsigned link, int *is_up)
{
    (void)device;
    *is_up = link == 0;
    return link < 2 ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetNvLinkErrorCounter(void *device, unsigned link, int kind, unsigned long long *n)
{
    (void)device;
    *n = 1;
    return link == 0 && kind < 3 ? SUCCESS : NOT_SUPPORTED;
}
