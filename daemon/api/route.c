#include "daemon/api/route.h"

#include "daemon/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct td_route_table {
    size_t n;
    struct td_route routes[TD_ROUTE_MAX];
};

enum td_status td_route_table_open(struct td_route_table **table, struct td_err *err)
{
    *table = calloc(1, sizeof(**table));
    return *table != NULL ? TD_OK : td_err_set(err, TD_NO_MEMORY, "no memory for the route table");
}

void td_route_table_close(struct td_route_table *table)
{
    free(table);
}

enum td_status td_route_add(struct td_route_table *table, const struct td_route *route,
                            struct td_err *err)
{
    if (route->path[0] != '/' || route->handler == NULL) {
        return td_err_set(err, TD_INVALID, "route '%s %s' has no leading slash or no handler",
                          route->method, route->path);
    }
    for (size_t i = 0; i < table->n; i++) {
        if (strcmp(table->routes[i].method, route->method) == 0 &&
            strcmp(table->routes[i].path, route->path) == 0) {
            return td_err_set(err, TD_INVALID, "route '%s %s' exists already", route->method,
                              route->path);
        }
    }
    if (table->n == TD_ROUTE_MAX) {
        return td_err_set(err, TD_TOO_LARGE, "route '%s %s' is over the limit of %d", route->method,
                          route->path, TD_ROUTE_MAX);
    }
    table->routes[table->n++] = *route;
    return TD_OK;
}

static bool matches(const struct td_route *route, struct td_str path, bool exact)
{
    struct td_str pattern = td_str_from(route->path);
    if (pattern.ptr[pattern.len - 1] != '*') {
        return exact && td_str_eq(pattern, path);
    }
    pattern.len--;
    return !exact && path.len > pattern.len && td_str_starts(path, pattern);
}

const struct td_route *td_route_find(const struct td_route_table *table, struct td_str method,
                                     struct td_str path, bool *path_known)
{
    struct td_str wanted = td_str_eq(method, TD_STR("HEAD")) ? TD_STR("GET") : method;
    *path_known = false;
    for (int exact = 1; exact >= 0 && !*path_known; exact--) {
        for (size_t i = 0; i < table->n; i++) {
            const struct td_route *route = &table->routes[i];
            if (!matches(route, path, exact != 0)) {
                continue;
            }
            *path_known = true;
            if (td_str_eq(td_str_from(route->method), wanted)) {
                return route;
            }
        }
    }
    return NULL;
}

void td_route_allow(const struct td_route_table *table, struct td_str path, char *out, size_t cap)
{
    static const char *const methods[] = {"GET", "POST", "PUT", "PATCH", "DELETE"};
    size_t n = 0;
    bool path_known;
    out[0] = '\0';
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        if (td_route_find(table, td_str_from(methods[i]), path, &path_known) != NULL && n < cap) {
            n += (size_t)snprintf(out + n, cap - n, "%s%s, ", methods[i], i == 0 ? ", HEAD" : "");
        }
    }
    if (n < cap) {
        snprintf(out + n, cap - n, "OPTIONS");
    }
}

void td_route_log(const struct td_route_table *table)
{
    for (size_t i = 0; i < table->n; i++) {
        td_log_debug("route method=%s path=%s for=%s", table->routes[i].method,
                     table->routes[i].path,
                     table->routes[i].auth == NULL               ? "everybody"
                     : table->routes[i].role == TD_AUTH_OPERATOR ? "operators"
                                                                 : "clients");
    }
}

const struct td_route *td_route_at(const struct td_route_table *table, size_t nth)
{
    return nth < table->n ? &table->routes[nth] : NULL;
}
