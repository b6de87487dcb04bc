/* Every .proto file of this folder as one serialised google.protobuf.FileDescriptorSet, built
 * into the program, and a look into it. Read-only, any thread. */
#ifndef TD_PROTO_DESCRIPTORS_H
#define TD_PROTO_DESCRIPTORS_H

#include "kernels/base/bytes.h"

#include <stdbool.h>

struct td_str td_descriptors_set(void);

/* One file of the set, as its FileDescriptorProto. Views into the program. */
struct td_descriptors_file {
    struct td_str bytes;
    struct td_str name; /* "proto/inference.proto" */
    struct td_str package;
};

/* Steps through the files: *rest begins as the set, false at the end. */
bool td_descriptors_next(struct td_str *rest, struct td_descriptors_file *file);
bool td_descriptors_by_name(struct td_str name, struct td_descriptors_file *file);
/* The file that declares a service, method, message, field, enum or enum value by its full name. */
bool td_descriptors_by_symbol(struct td_str symbol, struct td_descriptors_file *file);
/* Calls `visit` with the name of each imported file. */
typedef void td_descriptors_name_fn(struct td_str name, void *user);
void td_descriptors_imports(const struct td_descriptors_file *file, td_descriptors_name_fn *visit,
                            void *user);
/* True when `type` (full name) is a message of the file. */
bool td_descriptors_has_message(const struct td_descriptors_file *file, struct td_str type);

#endif
