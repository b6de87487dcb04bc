/* The plug-in and the NCCL library behind it: found, opened, checked. */
#include "comm/nccl.h"
#include "comm/nccl_impl.h"
#include "kernels/base/plugin.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char NAME[] = "tensord-nccl.so";

/* Before it, an abort from another thread does not reach an operation of a communicator that does not block (the state of
 * a group call was the calling thread's own). */
enum { OLDEST = 21901 };

const char *td_nccl_number(int version, char *out, size_t out_bytes)
{
    /* NCCL_VERSION of nccl.h: 2708 is 2.7.8, from 2.9 on X * 10000 + Y * 100 + Z. */
    if (version < 10000)
        snprintf(out, out_bytes, "%d.%d.%d", version / 1000, version / 100 % 10, version % 100);
    else
        snprintf(out, out_bytes, "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
    return out;
}

enum td_status td_nccl_load(const char *plugin, const char *library, struct td_nccl_lib **out,
                            struct td_err *err)
{
    struct td_nccl_lib *lib = calloc(1, sizeof *lib);
    enum td_status status;

    if (!lib)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the NCCL plug-in");
    status = td_plugin_open(plugin, NAME, &lib->handle, err);
    if (status != TD_OK)
        goto fail;
    lib->plug = dlsym(lib->handle, TD_NCCLPLUG_SYMBOL);
    if (!lib->plug) {
        status = td_err_set(err, TD_CORRUPT, "'%s' has no %s: expected tensord's NCCL plug-in",
                            plugin ? plugin : NAME, TD_NCCLPLUG_SYMBOL);
        goto fail_handle;
    }
    if (lib->plug->abi != TD_NCCLPLUG_ABI) {
        status =
            td_err_set(err, TD_UNSUPPORTED,
                       "the plug-in '%s' has interface %u, expected %d: it is of another build",
                       plugin ? plugin : NAME, lib->plug->abi, TD_NCCLPLUG_ABI);
        goto fail_handle;
    }
    status = lib->plug->load(library, &lib->nccl, &lib->version, err);
    if (status != TD_OK)
        goto fail_handle;
    *out = lib;
    return TD_OK;

fail_handle:
    dlclose(lib->handle);
fail:
    free(lib);
    return status;
}

void td_nccl_unload(struct td_nccl_lib *lib)
{
    if (!lib)
        return;
    lib->plug->unload(lib->nccl);
    dlclose(lib->handle);
    free(lib);
}

int td_nccl_version(const struct td_nccl_lib *lib)
{
    return lib->version;
}

const char *td_nccl_version_text(const struct td_nccl_lib *lib, char *out, size_t out_bytes)
{
    char runs[32], built[32];

    snprintf(out, out_bytes, "NCCL %s (built against %s, CUDA %d.%d)",
             td_nccl_number(lib->version, runs, sizeof runs),
             td_nccl_number(lib->plug->header_version, built, sizeof built),
             lib->plug->cuda_version / 1000, lib->plug->cuda_version / 10 % 100);
    return out;
}

enum td_status td_nccl_judge_versions(const int *versions, uint32_t n_ranks, struct td_err *err)
{
    char text[32], other[32];

    for (uint32_t r = 1; r < n_ranks; r++) {
        if (versions[r] != versions[0])
            return td_err_set(err, TD_PEER_MISMATCH,
                              "rank %u has NCCL %s and rank 0 has %s: expected one version on all "
                              "ranks",
                              r, td_nccl_number(versions[r], text, sizeof text),
                              td_nccl_number(versions[0], other, sizeof other));
    }
    if (versions[0] < OLDEST)
        return td_err_set(err, TD_UNSUPPORTED, "NCCL %s, expected %s or newer",
                          td_nccl_number(versions[0], text, sizeof text),
                          td_nccl_number(OLDEST, other, sizeof other));
    return TD_OK;
}
