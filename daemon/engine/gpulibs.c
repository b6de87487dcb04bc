#include "daemon/engine/gpulibs.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* A function of a library; C has no cast from an object's pointer, so the bits are copied. */
#define FIND(lib, name, fn)                                                                        \
    do {                                                                                           \
        void *symbol = dlsym(lib, name);                                                           \
        memcpy(&(fn), &symbol, sizeof(fn));                                                        \
    } while (0)

void td_gpulibs_nccl_text(int code, char *out, size_t out_bytes)
{
    int major = code < 10000 ? code / 1000 : code / 10000;
    int minor = code < 10000 ? code / 100 % 10 : code / 100 % 100;

    snprintf(out, out_bytes, "%d.%d.%d", major, minor, code % 100);
}

void td_gpulibs_nccl(char *out, size_t out_bytes)
{
    void *lib = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    int (*version)(int *) = NULL;
    int code = 0;

    snprintf(out, out_bytes, lib ? "unknown" : "none");
    if (!lib)
        return;
    FIND(lib, "ncclGetVersion", version);
    if (version && version(&code) == 0 && code > 0)
        td_gpulibs_nccl_text(code, out, out_bytes);
    dlclose(lib);
}

void td_gpulibs_driver(char *out, size_t out_bytes)
{
    void *lib = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    int (*init)(void) = NULL, (*shutdown)(void) = NULL, (*version)(char *, unsigned) = NULL;
    char text[80] = "";

    snprintf(out, out_bytes, lib ? "unknown" : "none");
    if (!lib)
        return;
    FIND(lib, "nvmlInit_v2", init);
    FIND(lib, "nvmlShutdown", shutdown);
    FIND(lib, "nvmlSystemGetDriverVersion", version);
    if (init && shutdown && version && init() == 0) {
        if (version(text, sizeof text) == 0 && *text)
            snprintf(out, out_bytes, "%.*s", (int)(out_bytes - 1), text);
        shutdown();
    }
    dlclose(lib);
}
