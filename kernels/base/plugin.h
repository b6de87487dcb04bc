/* Opens a plug-in of this program: a shared library beside it, or in the folder that an installation has them in. */
#ifndef TD_KERNELS_BASE_PLUGIN_H
#define TD_KERNELS_BASE_PLUGIN_H

#include "kernels/base/err.h"

/* `path` NULL: the file `name` beside the program, else in TD_PLUGIN_FROM_BIN from there. *handle is for dlsym and dlclose; the file
 * stays loaded. TD_NOT_FOUND says why. */
enum td_status td_plugin_open(const char *path, const char *name, void **handle,
                              struct td_err *err);

#endif
