#include "daemon/coordinator/health_service.h"

#include "daemon/coordinator/coordinator.h"
#include "proto/rpc_health.h"

#include <stdlib.h>

/* A Watch call. */
struct watcher {
    struct td_health_service *service;
    struct td_grpc_stream *s;
    bool has_asked;
    struct td_str
        follows; /* the name asked for, static: one of the entries'; empty pointer: unknown for ever */
    enum td_rpc_serving told;
    bool behind; /* the client did not take the last change */
    struct watcher *prev, *next;
};

struct td_health_service {
    struct td_coord *coord;
    struct watcher *first;
};

enum { N_ENTRIES = 3 };

static void fill_entries(const struct td_health_service *service,
                         struct td_rpc_health_entry entries[N_ENTRIES])
{
    bool ready = td_coord_is_well(service->coord);
    entries[0] = (struct td_rpc_health_entry){TD_STR(""), ready};
    entries[1] = (struct td_rpc_health_entry){
        td_str_from(td_rpc_service_name(TD_RPC_SERVICE_INFERENCE)), ready};
    entries[2] = (struct td_rpc_health_entry){
        td_str_from(td_rpc_service_name(TD_RPC_SERVICE_CLUSTER)), true};
}

/* ---- Check ---- */

static void on_check(void *user, struct td_grpc_stream *s, struct td_str message)
{
    struct td_health_service *service = user;
    struct td_rpc_health_entry entries[N_ENTRIES];
    struct td_bytes reply = {0};
    struct td_err err = {0};
    fill_entries(service, entries);
    td_grpc_stream_ack(s, message.len);
    enum td_status status = td_rpc_health_check(message, entries, N_ENTRIES, &reply, &err);
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

/* ---- Watch ---- */

static void tell(struct watcher *w, enum td_rpc_serving serving)
{
    struct td_bytes reply = {0};
    struct td_err err = {0};
    enum td_status status = td_rpc_health_encode(serving, &reply, &err);
    if (status == TD_OK) {
        status = td_grpc_stream_send(w->s, td_bytes_str(&reply), &err);
    }
    td_bytes_deinit(&reply);
    w->told = serving;
    w->behind = status == TD_BUSY;
    if (status != TD_OK && status != TD_BUSY && status != TD_CANCELLED) {
        td_grpc_stream_fail(w->s, &err);
    }
}

static enum td_rpc_serving state_of(const struct watcher *w)
{
    struct td_rpc_health_entry entries[N_ENTRIES];
    fill_entries(w->service, entries);
    for (size_t i = 0; w->follows.ptr != NULL && i < N_ENTRIES; i++) {
        if (td_str_eq(entries[i].service, w->follows)) {
            return entries[i].serving ? TD_RPC_SERVING : TD_RPC_NOT_SERVING;
        }
    }
    return TD_RPC_SERVICE_UNKNOWN;
}

static enum td_status on_watch_call(void *user, struct td_grpc_stream *s, struct td_err *err)
{
    struct td_health_service *service = user;
    struct watcher *w = calloc(1, sizeof(*w));
    if (w == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for a watcher");
    }
    w->service = service;
    w->s = s;
    w->next = service->first;
    if (w->next != NULL) {
        w->next->prev = w;
    }
    service->first = w;
    td_grpc_stream_set_user(s, w);
    return TD_OK;
}

static void on_watch_message(void *user, struct td_grpc_stream *s, struct td_str message)
{
    struct watcher *w = td_grpc_stream_user(s);
    struct td_rpc_health_entry entries[N_ENTRIES];
    enum td_rpc_serving serving = TD_RPC_SERVICE_UNKNOWN;
    struct td_err err = {0};
    fill_entries(user, entries);
    td_grpc_stream_ack(s, message.len);
    /* Which of the names is it? Each is asked for alone. */
    for (size_t i = 0; i < N_ENTRIES && w->follows.ptr == NULL; i++) {
        if (td_rpc_health_lookup(message, &entries[i], 1, &serving, &err) != TD_OK) {
            td_grpc_stream_fail(s, &err);
            return;
        }
        if (serving != TD_RPC_SERVICE_UNKNOWN) {
            w->follows = entries[i].service;
        }
    }
    w->has_asked = true;
    tell(w, state_of(w));
}

static void on_watch_drain(void *user, struct td_grpc_stream *s)
{
    struct watcher *w = td_grpc_stream_user(s);
    (void)user;
    if (w->behind) {
        tell(w, state_of(w));
    }
}

static void on_watch_close(void *user, struct td_grpc_stream *s, enum td_grpc_code code)
{
    struct td_health_service *service = user;
    struct watcher *w = td_grpc_stream_user(s);
    (void)code;
    *(w->prev != NULL ? &w->prev->next : &service->first) = w->next;
    if (w->next != NULL) {
        w->next->prev = w->prev;
    }
    free(w);
}

static void on_ready(bool ready, void *user)
{
    struct td_health_service *service = user;
    (void)ready;
    for (struct watcher *w = service->first; w != NULL; w = w->next) {
        if (w->has_asked && !w->behind && state_of(w) != w->told) {
            tell(w, state_of(w));
        }
    }
}

enum td_status td_health_service_open(struct td_coord *coord, struct td_grpc_serve_table *table,
                                      const struct td_auth *auth,
                                      struct td_health_service **service, struct td_err *err)
{
    struct td_health_service *s = calloc(1, sizeof(*s));
    if (s == NULL) {
        return td_err_set(err, TD_NO_MEMORY, "no memory for the health service");
    }
    s->coord = coord;
    const struct td_grpc_serve_handler check = {.auth = auth, .user = s, .on_message = on_check};
    const struct td_grpc_serve_handler watch = {
        .auth = auth,
        .user = s,
        .on_call = on_watch_call,
        .on_message = on_watch_message,
        .on_drain = on_watch_drain,
        .on_close = on_watch_close,
    };
    td_grpc_serve_add(table, TD_RPC_HEALTH_CHECK, &check);
    td_grpc_serve_add(table, TD_RPC_HEALTH_WATCH, &watch);
    td_coord_on_ready(coord, on_ready, s);
    *service = s;
    return TD_OK;
}

void td_health_service_stop(struct td_health_service *service)
{
    for (struct watcher *w = service->first; w != NULL; w = w->next) {
        td_grpc_stream_finish(w->s, TD_GRPC_UNAVAILABLE, TD_STR("the server is stopping"));
    }
}

void td_health_service_close(struct td_health_service *service)
{
    free(service);
}
