/* The CUDA plug-in: found, opened, checked. */
#include "kernels/base/plugin.h"
#include "kernels/cuda/cudaplug.h"

#include <dlfcn.h>
#include <stddef.h>

static const char NAME[] = "libtensord_cuda.so";

static enum td_status load(const char *plugin, const struct td_cudaplug **plug, struct td_err *err)
{
    void *handle;
    enum td_status s = td_plugin_open(plugin, NAME, &handle, err);

    if (s)
        return s;
    *plug = dlsym(handle, TD_CUDAPLUG_SYMBOL);
    if (!*plug)
        s = td_err_set(err, TD_CORRUPT, "'%s' has no %s: expected tensord's CUDA plug-in",
                       plugin ? plugin : NAME, TD_CUDAPLUG_SYMBOL);
    else if ((*plug)->abi != TD_CUDAPLUG_ABI)
        s = td_err_set(err, TD_CORRUPT, "'%s' is of another build: it has version %u, expected %d",
                       plugin ? plugin : NAME, (*plug)->abi, TD_CUDAPLUG_ABI);
    if (s)
        dlclose(handle);
    return s;
}

enum td_status td_kern_cuda_count(const char *plugin, uint32_t *n, struct td_err *err)
{
    const struct td_cudaplug *plug;
    enum td_status s = load(plugin, &plug, err);

    return s ? s : plug->count(n, err);
}

enum td_status td_kern_cuda_open(const struct td_kern_cuda_params *params, struct td_kern **kern,
                                 struct td_err *err)
{
    const struct td_cudaplug *plug;
    enum td_status s = load(params->plugin, &plug, err);

    return s ? s : plug->open(params, kern, err);
}
