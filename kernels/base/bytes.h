/* Borrowed slices of text and growable byte buffers.
 * A slice never owns and may hold any byte, NUL included. A buffer owns its memory and has a cap. */
#ifndef TD_KERNELS_BASE_BYTES_H
#define TD_KERNELS_BASE_BYTES_H

#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Borrowed text: not NUL-terminated, lives as long as what it points into. */
struct td_str {
    const char *ptr;
    size_t len; /* bytes */
};

#define TD_STR(literal) ((struct td_str){"" literal, sizeof(literal) - 1})

struct td_str td_str_from(const char *nul_terminated); /* NULL gives the empty slice */
bool td_str_eq(struct td_str a, struct td_str b);
bool td_str_starts(struct td_str s, struct td_str prefix);
/* True when the bytes are well-formed UTF-8 (Unicode 15, table 3-7: no surrogates, no overlong forms). */
bool td_str_is_utf8(struct td_str s);

/* Growable bytes. Zero-initialise; `cap_limit` 0 means no limit but memory. After an append that succeeded,
 * data[len] is a NUL that is not counted. */
struct td_bytes {
    char *data; /* owned; NULL while empty */
    size_t len;
    size_t cap;
    size_t cap_limit; /* bytes; appending past it fails with TD_TOO_LARGE */
};

void td_bytes_deinit(struct td_bytes *b); /* frees and zeroes, keeps cap_limit */
void td_bytes_clear(struct td_bytes *b);  /* len = 0, memory kept */
enum td_status td_bytes_reserve(struct td_bytes *b,
                                size_t extra_bytes); /* TD_NO_MEMORY, TD_TOO_LARGE */
enum td_status td_bytes_append(struct td_bytes *b, const void *data, size_t n_bytes);
enum td_status td_bytes_append_str(struct td_bytes *b, struct td_str s);
enum td_status td_bytes_appendf(struct td_bytes *b, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void td_bytes_consume(struct td_bytes *b, size_t n_bytes); /* drops the first n_bytes */
struct td_str td_bytes_str(const struct td_bytes *b);      /* borrows until the next change */

#endif
