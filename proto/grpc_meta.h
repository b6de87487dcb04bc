/* The received metadata of one stream: pairs in order of arrival, in one arena that dies with
 * the stream. Decodes "-bin" values. Knows no HTTP/2. */
#ifndef TD_PROTO_GRPC_META_H
#define TD_PROTO_GRPC_META_H

#include "kernels/base/arena.h"
#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>

struct td_grpc_meta_pair;

struct td_grpc_meta_list {
    struct td_arena arena;
    struct td_grpc_meta_pair *first, *last;
    size_t list_bytes; /* as RFC 9113 6.5.2 counts: name + value + 32 each */
    size_t max_bytes;
};

void td_grpc_meta_init(struct td_grpc_meta_list *list, size_t max_bytes);
void td_grpc_meta_deinit(struct td_grpc_meta_list *list);
/* Forgets all pairs (an informational response came before the real one). */
void td_grpc_meta_clear(struct td_grpc_meta_list *list);
/* Copies one pair; a "-bin" value becomes one pair per comma-separated part. TD_TOO_LARGE,
 * TD_NO_MEMORY, TD_INVALID (no base64). */
enum td_status td_grpc_meta_add(struct td_grpc_meta_list *list, struct td_str name,
                                struct td_str value, struct td_err *err);
/* The nth (0 first) value of `name`, or the last one; borrowed until deinit. */
bool td_grpc_meta_get(const struct td_grpc_meta_list *list, struct td_str name, size_t nth,
                      struct td_str *value);
bool td_grpc_meta_last(const struct td_grpc_meta_list *list, struct td_str name,
                       struct td_str *value);
/* True for a name that may be sent as metadata (lower case, digits, "_-."). */
bool td_grpc_meta_is_name(struct td_str name);
bool td_grpc_meta_is_bin(struct td_str name); /* ends in "-bin" */
/* True for a value that may be sent as it is (0x20..0x7e). */
bool td_grpc_meta_is_value(struct td_str value);

#endif
