#include "daemon/cli/credentials.h"

#include "daemon/api/metrics.h"
#include "daemon/cli/config.h"
#include "daemon/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* ---- API keys ---- */

/* A file of keys that is being read. */
struct key_file {
    struct td_auth *auth;
    enum td_auth_role role;
    const char *option, *path;
};

static enum td_status take_line(void *user, const char *key, const char *value, size_t line,
                                struct td_err *err)
{
    const struct key_file *f = user;
    struct td_err why;
    enum td_status s = td_auth_add_line(f->auth, td_str_from(value), f->role, &why);

    (void)key;
    return s ? td_err_set(err, s, "%s: '%.120s' line %zu: %s", f->option, f->path, line, why.cause)
             : TD_OK;
}

static enum td_status read_keys(const struct td_options *o, struct td_auth *auth,
                                struct td_err *err)
{
    struct key_file clients = {auth, TD_AUTH_CLIENT, "--api-key-file", o->api_key_file};
    struct key_file operators = {auth, TD_AUTH_OPERATOR, "--admin-key-file", o->admin_key_file};
    enum td_status s = TD_OK;

    for (uint32_t i = 0; !s && i < o->n_own_api_keys; i++)
        s = td_auth_add(auth, td_str_from(o->api_key.items[i]), err);
    if (!s && clients.path)
        s = td_config_read_keys(clients.path, clients.option, take_line, &clients, err);
    if (!s && operators.path)
        s = td_config_read_keys(operators.path, operators.option, take_line, &operators, err);
    return s;
}

static enum td_status register_counters(struct td_credentials *c, struct td_err *err)
{
    enum td_status s = TD_OK;

    for (size_t i = 0; !s && c->metrics && i < c->api.n_keys; i++) {
        const struct td_metrics_label label = {"key", c->api.key[i].name};
        const struct td_metrics_desc desc = {
            .kind = TD_METRICS_COUNTER,
            .name = "tensord_key_requests_total",
            .help = "Requests and calls that a key was let in for, by the key's name.",
            .labels = &label,
            .n_labels = 1};

        if (!c->requests[i])
            s = td_metrics_register(c->metrics, &desc, &c->requests[i], err);
    }
    return s;
}

enum td_status td_credentials_count(struct td_credentials *c, struct td_metrics *metrics,
                                    struct td_err *err)
{
    c->metrics = metrics;
    c->api.requests = c->requests;
    return register_counters(c, err);
}

/* ---- the workers' key ---- */

/* From its file, else drawn for a group that we start; a group that dials in needs the file, or certificates. */
static enum td_status open_cluster_key(struct td_credentials *c, bool starts_group,
                                       struct td_rank_dial *dial, struct td_err *err)
{
    const struct td_options *o = c->opts;
    unsigned char random[24];
    enum td_status s = TD_OK;

    if (o->cluster_key_file) {
        s = td_rank_read_key(o->cluster_key_file, dial, err);
    } else if (starts_group) {
        if (getrandom(random, sizeof random, 0) != sizeof random)
            return td_err_set(err, TD_IO, "the system gave no random bytes for a key");
        for (size_t i = 0; i < sizeof random; i++)
            dial->key_bytes += (uint32_t)sprintf(dial->key + 2 * i, "%02x", random[i]);
    } else if (!o->cluster_ssl_ca) {
        td_log_warn("workers need no key: neither --cluster-key-file nor --cluster-ssl-ca is set");
    }
    if (!s && dial->key_bytes)
        s = td_auth_add(&c->cluster, (struct td_str){dial->key, dial->key_bytes}, err);
    return s;
}

/* ---- all of it ---- */

enum td_status td_credentials_open(struct td_credentials *c, const struct td_options *opts,
                                   bool starts_group, struct td_rank_dial *dial, struct td_err *err)
{
    const struct td_tls_files cluster = {opts->cluster_ssl_certfile, opts->cluster_ssl_keyfile,
                                         opts->cluster_ssl_ca};
    enum td_status s;

    c->opts = opts;
    s = read_keys(opts, &c->api, err);
    s = s ? s : open_cluster_key(c, starts_group, dial, err);
    if (!s && opts->ssl_certfile)
        s = td_tls_open(opts->ssl_certfile, opts->ssl_keyfile, &c->tls, err);
    if (!s && opts->cluster_ssl_ca)
        s = td_tls_open_mutual(&cluster, false, &c->cluster_tls, err);
    return s;
}

void td_credentials_close(struct td_credentials *c)
{
    td_tls_close(c->tls);
    td_tls_close(c->cluster_tls);
}

bool td_credentials_can_reload(const struct td_options *opts)
{
    return opts->api_key_file || opts->admin_key_file || opts->ssl_certfile || opts->cluster_ssl_ca;
}

static void reload_keys(struct td_credentials *c)
{
    struct td_auth *fresh = calloc(1, sizeof *fresh);
    struct td_err err;
    enum td_status s =
        fresh ? read_keys(c->opts, fresh, &err)
              : td_err_set(&err, TD_NO_MEMORY, "no memory for %d keys", TD_AUTH_MAX_KEYS);

    s = s ? s : td_auth_replace(&c->api, fresh, &err);
    s = s ? s : register_counters(c, &err);
    if (s)
        td_log_error("keys not reloaded, the old ones stay error=\"%s\"", err.cause);
    else
        td_log_info("keys reloaded clients=%zu operators=%zu", c->api.n_clients,
                    c->api.n_operators);
    free(fresh);
}

static void reload_tls(struct td_tls *tls, const char *what)
{
    struct td_err err;

    if (!tls)
        return;
    if (td_tls_reload(tls, &err))
        td_log_error("certificate not reloaded, the old one stays of=%s error=\"%s\"", what,
                     err.cause);
    else
        td_log_info("certificate reloaded of=%s", what);
}

void td_credentials_reload(struct td_credentials *c)
{
    if (c->opts->api_key_file || c->opts->admin_key_file)
        reload_keys(c);
    reload_tls(c->tls, "clients");
    reload_tls(c->cluster_tls, "workers");
}
