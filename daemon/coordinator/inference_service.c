#include "daemon/coordinator/inference_service.h"

#include "daemon/coordinator/inference_call.h"

#include <stdlib.h>
#include <string.h>

/* ---- ModelInfo ---- */

static void count_parameters(const struct td_checkpoint_entry *entry, void *user)
{
    uint64_t *total = user;
    uint64_t n = 1;
    for (int i = 0; i < entry->n_dims; i++) {
        n *= entry->dim[i];
    }
    *total += n;
}

static void fill_ranks(struct td_coord *coord, const struct td_served *served,
                       Tensord__V1__ModelInfoResponse *m)
{
    struct td_coord_status status;
    td_coord_status(coord, &status);
    if (status.served != served) {
        return;
    }
    for (uint32_t i = 0; i < status.n_ranks; i++) {
        m->weight_bytes += status.members[i].weight_bytes;
    }
    if (status.n_ranks > 0) {
        m->numerics_class = (char *)status.members[0].numerics;
    }
}

static enum td_status model_info(struct td_coord *coord, struct td_str message,
                                 struct td_bytes *reply, struct td_err *err)
{
    ProtobufCMessage *request;
    struct td_served *served;
    enum td_status status = td_rpc_unpack(&tensord__v1__model_info_request__descriptor, message,
                                          64 * 1024, &request, err);
    if (status != TD_OK) {
        return status;
    }
    status = td_coord_find_model(
        coord, td_str_from(((Tensord__V1__ModelInfoRequest *)(void *)request)->model), &served,
        err);
    td_rpc_free(request);
    if (status != TD_OK) {
        return status;
    }
    Tensord__V1__ModelInfoResponse m = TENSORD__V1__MODEL_INFO_RESPONSE__INIT;
    const struct td_spec *spec = served->spec;
    uint32_t eos[TD_SPEC_MAX_EOS];
    memcpy(eos, spec->eos_ids, sizeof(eos));
    m.model = served->names[0];
    m.architecture = (char *)spec->name;
    m.dtype = (char *)td_dtype_info(spec->dtype)->name;
    m.n_layers = spec->n_layers;
    m.d_model = spec->d_model;
    m.n_heads = spec->n_heads;
    m.n_kv_heads = spec->n_kv_heads;
    m.head_dim = spec->head_dim;
    m.d_ff = spec->d_ff;
    m.n_vocab = spec->n_vocab;
    m.max_model_len = served->max_model_len;
    m.max_positions = spec->max_positions;
    m.model_hash = served->hash;
    m.n_eos_ids = spec->n_eos;
    m.eos_ids = eos;
    m.bos_id = spec->bos_id;
    m.has_chat_template = served->chat != NULL;
    td_checkpoint_visit(served->ck, count_parameters, &m.n_parameters);
    fill_ranks(coord, served, &m);
    return td_rpc_pack(&m.base, reply, err);
}

static void on_model_info(void *user, struct td_grpc_stream *s, struct td_str message)
{
    struct td_inference_service *service = user;
    struct td_bytes reply = {0};
    struct td_err err = {0};
    td_grpc_stream_ack(s, message.len);
    enum td_status status = model_info(service->coord, message, &reply, &err);
    if (status == TD_OK) {
        status = td_grpc_stream_send(s, td_bytes_str(&reply), &err);
    }
    if (status == TD_OK) {
        td_grpc_stream_finish(s, TD_GRPC_OK, TD_STR(""));
    } else {
        td_grpc_stream_fail(s, &err);
    }
    td_bytes_deinit(&reply);
}

/* ---- The service ---- */

enum td_status td_inference_service_open(struct td_coord *coord, struct td_grpc_serve_table *table,
                                         const struct td_auth *auth,
                                         struct td_inference_service **service, struct td_err *err)
{
    struct td_inference_service *s = calloc(1, sizeof(*s));
    if (s == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for the Inference service");
    }
    s->coord = coord;
    s->auth = auth;
    enum td_status status = td_service_metrics_init(&s->metrics, td_coord_metrics(coord),
                                                    td_rpc_method(TD_RPC_GENERATE)->path, err);
    if (status != TD_OK) {
        free(s);
        return status;
    }
    struct td_grpc_serve_handler handler = {
        .auth = auth,
        .user = s,
        .on_call = td_inference_call_open_generate,
        .on_message = td_inference_call_message,
        .on_drain = td_inference_generate_drain,
        .on_close = td_inference_call_closed,
    };
    td_grpc_serve_add(table, TD_RPC_GENERATE, &handler);
    handler.on_call = td_inference_call_open_resume;
    td_grpc_serve_add(table, TD_RPC_RESUME, &handler);
    handler.on_call = td_inference_call_open_tokenize;
    handler.on_drain = NULL;
    td_grpc_serve_add(table, TD_RPC_TOKENIZE, &handler);
    const struct td_grpc_serve_handler info = {
        .auth = auth, .user = s, .on_message = on_model_info};
    td_grpc_serve_add(table, TD_RPC_MODEL_INFO, &info);
    *service = s;
    return TD_OK;
}

void td_inference_service_close(struct td_inference_service *service)
{
    free(service);
}
