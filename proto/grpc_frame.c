#include "proto/grpc_frame.h"

#include <string.h>

void td_grpc_frame_init(struct td_grpc_frame *f, size_t max_message_bytes)
{
    *f = (struct td_grpc_frame){.max_bytes = max_message_bytes};
}

void td_grpc_frame_limit(struct td_grpc_frame *f, size_t max_message_bytes)
{
    if (max_message_bytes < f->max_bytes)
        f->max_bytes = max_message_bytes;
}

void td_grpc_frame_deinit(struct td_grpc_frame *f)
{
    td_bytes_deinit(&f->body);
}

static enum td_status check_head(struct td_grpc_frame *f, struct td_err *err)
{
    const unsigned char *h = f->head;
    size_t length = (size_t)h[1] << 24 | (size_t)h[2] << 16 | (size_t)h[3] << 8 | h[4];
    if (h[0] == 1)
        return td_err_set(
            err, TD_UNSUPPORTED,
            "a message has the compressed flag, only grpc-encoding identity is supported");
    if (h[0] != 0)
        return td_err_set(err, TD_PEER_PROTOCOL, "a message begins with flag %u, expected 0 or 1",
                          (unsigned)h[0]);
    if (length > f->max_bytes)
        return td_err_set(err, TD_TOO_LARGE, "a message of %zu bytes is over the limit of %zu",
                          length, f->max_bytes);
    f->message_bytes = length;
    return TD_OK;
}

enum td_status td_grpc_frame_read(struct td_grpc_frame *f, struct td_str *in,
                                  struct td_str *message, bool *complete, struct td_err *err)
{
    *complete = false;
    if (f->given) {
        /* The memory of an unusually large message is not kept for the life of the stream. */
        if (f->body.cap > 65536)
            td_bytes_deinit(&f->body);
        td_bytes_clear(&f->body);
        f->given = false;
    }
    if (f->n_head < TD_GRPC_FRAME_HEAD_BYTES) {
        size_t n = TD_GRPC_FRAME_HEAD_BYTES - f->n_head;
        n = n < in->len ? n : in->len;
        if (n)
            memcpy(f->head + f->n_head, in->ptr, n);
        f->n_head += n;
        in->ptr += n;
        in->len -= n;
        if (f->n_head < TD_GRPC_FRAME_HEAD_BYTES)
            return TD_OK;
        enum td_status st = check_head(f, err);
        if (st)
            return st;
    }
    size_t missing = f->message_bytes - f->body.len;
    if (f->body.len == 0 && in->len >= missing) {
        *message = (struct td_str){in->ptr, missing};
    } else {
        size_t n = missing < in->len ? missing : in->len;
        if (td_bytes_append(&f->body, in->ptr, n))
            return td_err_set(err, TD_NO_MEMORY, "no memory for a message of %zu bytes",
                              f->message_bytes);
        if (f->body.len < f->message_bytes) {
            in->ptr += n;
            in->len -= n;
            return TD_OK;
        }
        missing = n;
        *message = td_bytes_str(&f->body);
        f->given = true;
    }
    in->ptr += missing;
    in->len -= missing;
    f->n_head = 0;
    *complete = true;
    return TD_OK;
}

bool td_grpc_frame_is_partial(const struct td_grpc_frame *f)
{
    return f->n_head > 0;
}

enum td_status td_grpc_frame_append(struct td_bytes *out, struct td_str message)
{
    if (message.len > UINT32_MAX)
        return TD_TOO_LARGE;
    enum td_status st = td_bytes_reserve(out, TD_GRPC_FRAME_HEAD_BYTES + message.len);
    if (st)
        return st;
    size_t n = message.len;
    unsigned char head[TD_GRPC_FRAME_HEAD_BYTES] = {0, (unsigned char)(n >> 24),
                                                    (unsigned char)(n >> 16),
                                                    (unsigned char)(n >> 8), (unsigned char)n};
    st = td_bytes_append(out, head, sizeof head);
    return st ? st : td_bytes_append_str(out, message);
}
