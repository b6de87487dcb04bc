#include "daemon/engine/gpuwatch.h"

#include "daemon/log.h"

#include <stdio.h>
#include <stdlib.h>

static const uint64_t EVERY_NS = 1000000000u;

struct td_gpuwatch {
    uv_loop_t *loop;
    uv_work_t work;
    char bus_id[32];
    uint64_t last_ns; /* when the last reading began; 0: none did */
    bool busy, given_up;
    struct td_gpuhealth_sample last;
    void (*on_closed)(void *user); /* NULL: it is open */
    void *user;
    /* The reading's, while it is under way. */
    struct td_gpuhealth *health;
    struct td_gpuhealth_sample next;
    struct td_err err;
};

enum td_status td_gpuwatch_open(uv_loop_t *loop, const char *bus_id, struct td_gpuwatch **out,
                                struct td_err *err)
{
    struct td_gpuwatch *g = calloc(1, sizeof *g);

    if (!g)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a GPU's health");
    g->loop = loop;
    g->work.data = g;
    snprintf(g->bus_id, sizeof g->bus_id, "%s", bus_id);
    *out = g;
    return TD_OK;
}

static void end(struct td_gpuwatch *g)
{
    void (*on_closed)(void *) = g->on_closed;
    void *user = g->user;

    td_gpuhealth_close(g->health);
    free(g);
    on_closed(user);
}

static void read_it(uv_work_t *work)
{
    struct td_gpuwatch *g = work->data;

    if (!g->health && td_gpuhealth_open(g->bus_id, &g->health, &g->err))
        return;
    td_gpuhealth_read(g->health, &g->next);
}

static void on_read(uv_work_t *work, int status)
{
    struct td_gpuwatch *g = work->data;

    (void)status;
    g->busy = false;
    if (g->health) {
        g->last = g->next;
    } else {
        g->given_up = true;
        td_log_info("gpu health=unknown gpu=%s because=\"%s\"", g->bus_id, g->err.cause);
    }
    if (g->on_closed)
        end(g);
}

const struct td_gpuhealth_sample *td_gpuwatch_look(struct td_gpuwatch *g)
{
    const uint64_t now = uv_hrtime();

    if (!g->busy && !g->given_up && (!g->last_ns || now - g->last_ns >= EVERY_NS)) {
        g->last_ns = now;
        g->busy = uv_queue_work(g->loop, &g->work, read_it, on_read) == 0;
    }
    return &g->last;
}

void td_gpuwatch_close(struct td_gpuwatch *g, void (*on_closed)(void *user), void *user)
{
    g->on_closed = on_closed;
    g->user = user;
    if (!g->busy)
        end(g);
}
