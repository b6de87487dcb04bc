/* gRPC server reflection (v1 and v1alpha have the same bytes) over the descriptor set that is
 * built into the program. A function of one request to one response; read-only, any thread. */
#ifndef TD_PROTO_RPC_REFLECTION_H
#define TD_PROTO_RPC_REFLECTION_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

/* Answers one ServerReflectionRequest; replaces `reply`. What is not found is answered inside
 * the reply (error_response); TD_INVALID only for bytes that are no request. */
enum td_status td_rpc_reflection_answer(struct td_str request, struct td_bytes *reply,
                                        struct td_err *err);

#endif
