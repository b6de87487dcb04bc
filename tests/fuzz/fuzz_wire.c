/* A protobuf message of the control stream or of a public call, as the first byte chooses: unpacked, packed again, and
 * what the coordinator and the worker read out of it. */
#include "tests/fuzz/fuzz.h"

#include "daemon/engine/wire.h"
#include "proto/rpc.h"
#include "proto/rpc_health.h"
#include "proto/rpc_reflection.h"

enum { MAX_BYTES = 1 << 20 };

static void read_submit(const Tensord__Worker__V1__Submit *m)
{
    struct td_request r, copy;
    struct td_arena arena;
    struct td_err err = {0};
    enum td_status status = td_wire_submit_read(m, &r, &err);

    fuzz_check_err(status, &err);
    if (status)
        return;
    FUZZ_CHECK(r.n_stops <= TD_REQUEST_MAX_STOPS && r.n_stop_ids <= TD_REQUEST_MAX_STOP_IDS);
    FUZZ_CHECK(r.sampling.n_bias <= TD_SAMPLER_MAX_BIAS && r.n_prompt > 0);
    FUZZ_CHECK(r.sampling.n_dry_breaker_bytes <= TD_SAMPLING_MAX_BREAKER_BYTES);
    FUZZ_CHECK(td_request_copy(&r, &copy) == TD_OK);
    fuzz_check_err(td_request_validate(&copy, 1000, 512, &err), &err);
    td_request_deinit(&copy);
    td_arena_init(&arena, 0, 0);
    Tensord__Worker__V1__Submit *again = td_wire_submit_make(&r, m->number, &arena);

    FUZZ_CHECK(again && again->n_prompt == m->n_prompt && again->n_stops == m->n_stops);
    FUZZ_CHECK(protobuf_c_message_get_packed_size(&again->base) > 0);
    td_arena_deinit(&arena);
    td_request_deinit(&r);
}

static void read_tokens(const Tensord__Worker__V1__Tokens *m)
{
    for (size_t i = 0; i < m->n_events; i++) {
        struct td_token_event e;
        struct td_err error = {0}, err = {0};
        enum td_status status = td_wire_token_read(m->events[i], &e, &error, &err);

        fuzz_check_err(status, &err);
        if (status)
            continue;
        FUZZ_CHECK(e.finish <= TD_FINISH_ERROR && e.token.n_top <= TD_SAMPLER_MAX_LOGPROBS);
        FUZZ_CHECK((e.error != NULL) == (e.finish == TD_FINISH_ERROR));
        if (e.error)
            fuzz_touch(td_str_from(e.error->cause));
    }
}

static void read_assign(const Tensord__Worker__V1__Assign *m)
{
    struct td_compute_load *load = NULL;
    struct td_err err = {0};
    enum td_status status = td_wire_assign_read(m, &load, &err);

    fuzz_check_err(status, &err);
    if (!status) {
        FUZZ_CHECK(load->plan.n_ranks >= 1 && load->plan.n_ranks <= TD_PLAN_MAX_RANKS);
        fuzz_touch(td_str_from(load->path));
        td_compute_load_free(load);
    }
}

static void read_worker_message(const ProtobufCMessage *message)
{
    const td_wire_worker_message *m = (const void *)message;

    if (m->body_case == TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_TOKENS && m->tokens)
        read_tokens(m->tokens);
}

static void read_coordinator_message(const ProtobufCMessage *message)
{
    const td_wire_coordinator_message *m = (const void *)message;

    if (m->body_case == TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_SUBMIT && m->submit)
        read_submit(m->submit);
    if (m->body_case == TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_ASSIGN && m->assign)
        read_assign(m->assign);
}

/* The standard services answer bytes with bytes. */
static void answer(enum td_rpc_id id, struct td_str bytes)
{
    const struct td_rpc_health_entry entries[] = {{TD_STR(""), true}, {TD_STR("a.B"), false}};
    struct td_bytes reply = {0};
    struct td_err err = {0};

    if (id == TD_RPC_REFLECTION)
        fuzz_check_err(td_rpc_reflection_answer(bytes, &reply, &err), &err);
    if (id == TD_RPC_HEALTH_CHECK)
        fuzz_check_err(td_rpc_health_check(bytes, entries, 2, &reply, &err), &err);
    td_bytes_deinit(&reply);
}

/* Packing what was unpacked gives bytes that mean the same. protobuf-c keeps unknown fields, also some that it refuses to
 * read again (a field of number 0). */
static void check_pack(const ProtobufCMessage *message)
{
    struct td_bytes first = {0}, second = {0};
    ProtobufCMessage *again = NULL;
    struct td_err err = {0};

    FUZZ_CHECK(td_rpc_pack(message, &first, &err) == TD_OK);
    if (td_rpc_unpack(message->descriptor, td_bytes_str(&first), 0, &again, &err) == TD_OK) {
        FUZZ_CHECK(td_rpc_pack(again, &second, &err) == TD_OK);
        FUZZ_CHECK(td_str_eq(td_bytes_str(&first), td_bytes_str(&second)));
    }
    td_rpc_free(again);
    td_bytes_deinit(&second);
    td_bytes_deinit(&first);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t choice;
    struct td_str bytes = fuzz_split(data, size, &choice);
    enum td_rpc_id id = (enum td_rpc_id)((choice >> 1) % TD_N_RPCS);
    const struct td_rpc_method *method = td_rpc_method(id);
    const ProtobufCMessageDescriptor *type = choice & 1 ? method->reply : method->request;
    ProtobufCMessage *message = NULL;
    struct td_err err = {0};
    enum td_status status = td_rpc_unpack(type, bytes, MAX_BYTES, &message, &err);

    fuzz_check_err(status, &err);
    if (!(choice & 1))
        answer(id, bytes);
    if (status)
        return 0;
    check_pack(message);
    if (id == TD_RPC_ATTACH && type == method->request)
        read_worker_message(message);
    if (id == TD_RPC_ATTACH && type == method->reply)
        read_coordinator_message(message);
    td_rpc_free(message);
    return 0;
}
