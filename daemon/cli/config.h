/* Small files that configure a command: a flat YAML map, and keys one per line.
 * Stateless, main thread, blocking reads with a cap on the size. Knows neither the options nor what a key means. */
#ifndef TD_DAEMON_CLI_CONFIG_H
#define TD_DAEMON_CLI_CONFIG_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stddef.h>

enum { TD_CONFIG_MAX_BYTES = 1 << 20 };

/* One scalar of the map; a list gives one call per element. `value` is NUL-terminated and borrowed during the call,
 * `line` counts from 1. Anything but TD_OK ends the reading with that status. */
typedef enum td_status td_config_fn(void *user, const char *key, const char *value, size_t line,
                                    struct td_err *err);

/* Reads a YAML 1.1 file that holds one flat map of scalars and lists of scalars. Refuses deeper nesting, anchors,
 * aliases, a key twice, an empty value and a second document (TD_INVALID with path and line); an empty file is an empty
 * map. TD_IO when the file cannot be read, TD_TOO_LARGE past TD_CONFIG_MAX_BYTES. */
enum td_status td_config_read(const char *path, td_config_fn *fn, void *user, struct td_err *err);
/* The same from memory; `path` is only for messages. */
enum td_status td_config_parse(struct td_str text, const char *path, td_config_fn *fn, void *user,
                               struct td_err *err);

/* A whole regular file or pipe into *out (appended). `what` names it in errors ("--api-key-file"). */
enum td_status td_config_read_file(const char *path, const char *what, size_t max_bytes,
                                   struct td_bytes *out, struct td_err *err);

/* Calls `fn` (key NULL) for each line that is neither blank nor begins with '#', without the white space around it.
 * TD_INVALID when there is none or a line holds a control character; errors never show a line's text. */
enum td_status td_config_read_keys(const char *path, const char *what, td_config_fn *fn, void *user,
                                   struct td_err *err);

#endif
