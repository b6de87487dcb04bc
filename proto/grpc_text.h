/* The text forms inside gRPC headers: percent-encoded messages, timeouts and base64 of "-bin"
 * values. As in the public specification "gRPC over HTTP2". Pure. */
#ifndef TD_PROTO_GRPC_TEXT_H
#define TD_PROTO_GRPC_TEXT_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stdint.h>

enum { TD_GRPC_TEXT_TIMEOUT_BYTES = 12 };

/* Appends `s` with every byte outside 0x20..0x7e, and '%', as %XX. */
enum td_status td_grpc_text_percent_encode(struct td_str s, struct td_bytes *out);
/* Appends the decoded form; a '%' without two hex digits stays as it is. */
enum td_status td_grpc_text_percent_decode(struct td_str s, struct td_bytes *out);
/* "100m" to nanoseconds, saturating at UINT64_MAX. TD_INVALID unless it is 1 to 8 digits and one
 * of H M S m u n. */
enum td_status td_grpc_text_timeout_parse(struct td_str s, uint64_t *timeout_ns,
                                          struct td_err *err);
/* The finest unit that holds it in 8 digits, rounded up. NUL-terminated. */
void td_grpc_text_timeout_format(uint64_t timeout_ns, char out[TD_GRPC_TEXT_TIMEOUT_BYTES]);
/* RFC 4648 base64 without padding; the decoder takes both forms, and refuses every other byte
 * with TD_INVALID. */
enum td_status td_grpc_text_base64_encode(struct td_str s, struct td_bytes *out);
enum td_status td_grpc_text_base64_decode(struct td_str s, struct td_bytes *out);
/* True for "application/grpc", "application/grpc+proto", each maybe with parameters. */
bool td_grpc_text_is_content_type(struct td_str s);

#endif
