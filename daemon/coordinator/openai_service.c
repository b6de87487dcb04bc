#include "daemon/coordinator/openai_service.h"

#include "daemon/coordinator/openai_call.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- The probes ---- */

static void respond_json(struct td_http_request *req, int http_status, enum td_status written,
                         struct td_bytes *body)
{
    if (written == TD_OK) {
        td_http_respond(req, http_status, "application/json", td_bytes_str(body));
    } else {
        struct td_openai_error e;
        td_openai_error_from(&(struct td_err){.status = written}, &e);
        td_http_respond_error(req, &e);
    }
    td_bytes_deinit(body);
}

static void handle_root(struct td_http_request *req, void *user)
{
    (void)user;
    td_http_respond(req, 200, "application/json",
                    TD_STR("{\"name\":\"tensord\",\"version\":\"" TD_VERSION "\"}"));
}

static void handle_healthz(struct td_http_request *req, void *user)
{
    (void)user;
    td_http_respond(req, 200, "application/json", TD_STR("{\"status\":\"ok\"}"));
}

static void handle_readyz(struct td_http_request *req, void *user)
{
    struct td_openai_service *service = user;
    struct td_coord_status status;
    struct td_bytes body = {0};
    uint32_t n_loaded = 0;
    bool ready = td_coord_is_well(service->coord);
    td_coord_status(service->coord, &status);
    for (uint32_t i = 0; i < status.n_ranks; i++) {
        n_loaded +=
            status.members[i].attached && status.members[i].loaded && !status.members[i].lost;
    }
    enum td_status written = td_bytes_appendf(
        &body, "{\"ready\":%s,\"state\":\"%s\",\"ranks\":%" PRIu32 ",\"ranks_ready\":%" PRIu32 "}",
        ready ? "true" : "false", td_group_state_name(status.state), status.n_ranks, n_loaded);
    if (!ready) {
        td_http_set_header(req, "Retry-After", "1");
    }
    respond_json(req, ready ? 200 : 503, written, &body);
}

static void handle_metrics(struct td_http_request *req, void *user)
{
    struct td_openai_service *service = user;
    struct td_bytes body = {0};
    enum td_status written = td_metrics_write(td_coord_metrics(service->coord), &body);
    if (written == TD_OK) {
        td_http_respond(req, 200, TD_METRICS_CONTENT_TYPE, td_bytes_str(&body));
        td_bytes_deinit(&body);
    } else {
        respond_json(req, 500, written, &body);
    }
}

/* ---- Models ---- */

static struct td_openai_model model_of(const struct td_served *served, struct td_str name)
{
    return (struct td_openai_model){
        .id = name, .created = served->created, .max_model_len = served->max_model_len};
}

static void handle_models(struct td_http_request *req, void *user)
{
    struct td_openai_service *service = user;
    struct td_openai_model models[TD_COORD_MAX_NAMES];
    struct td_served *served = NULL;
    struct td_bytes body = {0};
    size_t n = 0;
    if (td_coord_find_model(service->coord, TD_STR(""), &served, NULL) == TD_OK) {
        for (; n < served->n_names; n++) {
            models[n] = model_of(served, td_str_from(served->names[n]));
        }
    }
    enum td_status written = td_openai_models_write(models, n, &body);
    respond_json(req, 200, written, &body);
}

static void handle_model(struct td_http_request *req, void *user)
{
    struct td_openai_service *service = user;
    struct td_served *served = NULL;
    struct td_err err = {0};
    struct td_openai_error e;
    struct td_str name = td_http_tail(req);
    enum td_status status = name.len > 0
                                ? td_coord_find_model(service->coord, name, &served, &err)
                                : td_err_set(&err, TD_NOT_FOUND, "the path names no model");
    if (status == TD_OK) {
        const struct td_openai_model model = model_of(served, name);
        struct td_bytes body = {0};
        enum td_status written = td_openai_model_write(&model, &body);
        respond_json(req, 200, written, &body);
        return;
    }
    td_openai_error_from(&err, &e);
    if (status == TD_NOT_FOUND) {
        e.code = "model_not_found";
        snprintf(e.param, sizeof(e.param), "model");
    }
    td_http_respond_error(req, &e);
}

/* ---- Generation ---- */

static void handle_generation(struct td_http_request *req, void *user)
{
    td_openai_call_start(user, req);
}

enum td_status td_openai_service_open(const struct td_openai_service_params *params,
                                      struct td_openai_service **service, struct td_err *err)
{
    struct td_openai_service *s = calloc(1, sizeof(*s));
    if (s == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for the OpenAI service");
    }
    s->coord = params->coord;
    s->auth = params->auth;
    s->chat =
        (struct td_openai_endpoint){.service = s, .coord = params->coord, .kind = TD_OPENAI_CHAT};
    s->completion = (struct td_openai_endpoint){
        .service = s, .coord = params->coord, .kind = TD_OPENAI_COMPLETION};
    const struct td_route routes[] = {
        {"GET", "/", NULL, TD_AUTH_CLIENT, handle_root, s},
        {"GET", "/healthz", NULL, TD_AUTH_CLIENT, handle_healthz, s},
        {"GET", "/readyz", NULL, TD_AUTH_CLIENT, handle_readyz, s},
        {"GET", "/metrics", params->metrics_auth, TD_AUTH_CLIENT, handle_metrics, s},
        {"GET", "/v1/models", params->auth, TD_AUTH_CLIENT, handle_models, s},
        {"GET", "/v1/models/*", params->auth, TD_AUTH_CLIENT, handle_model, s},
        {"POST", "/v1/chat/completions", params->auth, TD_AUTH_CLIENT, handle_generation, &s->chat},
        {"POST", "/v1/completions", params->auth, TD_AUTH_CLIENT, handle_generation,
         &s->completion},
        {"GET", "/v1/requests/*", params->auth, TD_AUTH_CLIENT, td_openai_resume_handle, s},
    };
    struct td_metrics *metrics = td_coord_metrics(params->coord);
    enum td_status status =
        td_service_metrics_init(&s->chat.metrics, metrics, "/v1/chat/completions", err);
    if (status == TD_OK) {
        status = td_service_metrics_init(&s->completion.metrics, metrics, "/v1/completions", err);
    }
    for (size_t i = 0; i < sizeof(routes) / sizeof(routes[0]) && status == TD_OK; i++) {
        status = td_route_add(params->routes, &routes[i], err);
    }
    if (status != TD_OK) {
        td_openai_service_close(s);
        return status;
    }
    *service = s;
    return TD_OK;
}

void td_openai_service_close(struct td_openai_service *service)
{
    free(service);
}
