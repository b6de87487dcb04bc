/* The table of HTTP/1.1 routes of a listener: method and path to handler and key set. Filled before the loop starts,
 * read by the connections. Knows no socket. */
#ifndef TD_DAEMON_API_ROUTE_H
#define TD_DAEMON_API_ROUTE_H

#include "daemon/api/auth.h"

struct td_http_request;
struct td_route_table;

/* Called on the loop thread when a whole request is there; answers now or later (http1.h). */
typedef void (*td_http_handler_fn)(struct td_http_request *req, void *user);

struct td_route {
    const char *method; /* "GET" (serves HEAD too), "POST", "DELETE", "PUT"; static */
    const char *path;   /* "/v1/models", or "/v1/models/" and "*" for everything below it; static */
    const struct td_auth *auth; /* keys that may call it; NULL: open. Borrowed */
    enum td_auth_role role;     /* whose keys of these */
    td_http_handler_fn handler;
    void *user;
};

enum { TD_ROUTE_MAX = 64 };

enum td_status td_route_table_open(struct td_route_table **table, struct td_err *err);
void td_route_table_close(struct td_route_table *table);
/* TD_INVALID for a path without a leading slash or a route that exists already; TD_TOO_LARGE beyond TD_ROUTE_MAX. */
enum td_status td_route_add(struct td_route_table *table, const struct td_route *route,
                            struct td_err *err);

/* The route of a method and decoded path; NULL when there is none. Exact paths win over patterns. *path_known tells 405
 * from 404. */
const struct td_route *td_route_find(const struct td_route_table *table, struct td_str method,
                                     struct td_str path, bool *path_known);
/* "GET, HEAD, OPTIONS": the methods of a path. Writes at most `cap` bytes with the NUL. */
void td_route_allow(const struct td_route_table *table, struct td_str path, char *out, size_t cap);
/* Writes every route to the log, at debug level, with who may call it. */
void td_route_log(const struct td_route_table *table);
/* The nth route, NULL past the end: lets a test ask every one of them without a key. */
const struct td_route *td_route_at(const struct td_route_table *table, size_t nth);

#endif
