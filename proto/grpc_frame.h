/* gRPC's length-prefixed messages: one flag byte, a big-endian 32-bit length, the message. Puts
 * messages together from any cut of bytes, under a size limit; grows with what came, not with
 * what was announced. Knows no stream. */
#ifndef TD_PROTO_GRPC_FRAME_H
#define TD_PROTO_GRPC_FRAME_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TD_GRPC_FRAME_HEAD_BYTES = 5 };

struct td_grpc_frame {
    unsigned char head[TD_GRPC_FRAME_HEAD_BYTES];
    size_t n_head;        /* bytes of head that came */
    size_t message_bytes; /* announced; valid when the head is whole */
    size_t max_bytes;     /* of one message */
    struct td_bytes body; /* owned: what came of a message that was cut */
    bool given;           /* body holds a message that was given out: clear it before going on */
};

void td_grpc_frame_init(struct td_grpc_frame *f, size_t max_message_bytes);
/* Lowers the limit for messages whose head is still to come. */
void td_grpc_frame_limit(struct td_grpc_frame *f, size_t max_message_bytes);
void td_grpc_frame_deinit(struct td_grpc_frame *f);
/* Takes bytes from the front of *in. *complete tells whether a whole message was found; then
 * `message` borrows, from the input or from the frame, until the next call. TD_TOO_LARGE,
 * TD_UNSUPPORTED (compressed), TD_PEER_PROTOCOL (bad flag), TD_NO_MEMORY: the stream of messages
 * is unusable from then on. */
enum td_status td_grpc_frame_read(struct td_grpc_frame *f, struct td_str *in,
                                  struct td_str *message, bool *complete, struct td_err *err);
/* True inside a message: an end of stream here is an error. */
bool td_grpc_frame_is_partial(const struct td_grpc_frame *f);
/* Appends head and message to `out`; all or nothing. TD_TOO_LARGE over 4 GiB or out's cap,
 * TD_NO_MEMORY. */
enum td_status td_grpc_frame_append(struct td_bytes *out, struct td_str message);

#endif
