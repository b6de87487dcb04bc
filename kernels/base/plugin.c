#include "kernels/base/plugin.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { FLAGS = RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE };

/* Opens FOLDER of this program / `below` / name; NULL where there is none. */
static void *open_near(const char *below, const char *name)
{
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    char *slash;

    if (n < 0)
        return NULL;
    path[n] = '\0';
    slash = strrchr(path, '/');
    if (!slash || (size_t)(slash - path) + strlen(below) + strlen(name) + 2 > sizeof path)
        return NULL;
    snprintf(slash, sizeof path - (size_t)(slash - path), "%s/%s", below, name);
    return access(path, F_OK) == 0 ? dlopen(path, FLAGS) : NULL;
}

enum td_status td_plugin_open(const char *path, const char *name, void **handle, struct td_err *err)
{
    const char *why;

    dlerror();
    *handle = path ? dlopen(path, FLAGS) : open_near("", name);
    if (!*handle && !path)
        *handle = open_near("/" TD_PLUGIN_FROM_BIN, name);
    if (*handle)
        return TD_OK;
    why = dlerror();
    return td_err_set(err, TD_NOT_FOUND, "the plug-in %s does not open: %s", path ? path : name,
                      why ? why
                          : "it is neither beside the program nor in " TD_PLUGIN_FROM_BIN
                            " from there; was tensord built with CUDA?");
}
