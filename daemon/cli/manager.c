#include "daemon/cli/manager.h"

#include "daemon/cli/term.h"
#include "daemon/coordinator/coordinator.h"
#include "daemon/log.h"

#include <stdio.h>
#include <string.h>

static const uint64_t second_ns = 1000000000u;

/* A start that makes no progress for so long is given up by the manager. */
enum { START_MORE_S = 120, ASK_EVERY_S = 5, STOP_MORE_S = 10 };

static void ask_for_time(struct td_manager *m)
{
    char text[64];

    snprintf(text, sizeof text, "EXTEND_TIMEOUT_USEC=%llu",
             (unsigned long long)START_MORE_S * 1000000u);
    td_sdnotify_send(&m->notify, text);
}

void td_manager_open(struct td_manager *m, bool waits_for_group)
{
    struct td_err err;

    *m = (struct td_manager){.waits_for_group = waits_for_group};
    if (td_sdnotify_open(&m->notify, &err))
        td_log_warn("no service manager is told anything error=\"%s\"", err.cause);
    if (m->notify.is_open && !waits_for_group)
        ask_for_time(m);
}

void td_manager_close(struct td_manager *m)
{
    td_sdnotify_close(&m->notify);
}

/* ---- the start ---- */

/* Grows whenever the start gets on: bytes read, ranks that registered or loaded, launches, states. */
static uint64_t progress_of(const struct td_coord_status *st)
{
    uint64_t sum = st->generation + (uint64_t)st->state;

    for (uint32_t i = 0; i < st->n_ranks; i++)
        sum += st->members[i].load_done_bytes + st->members[i].attached + st->members[i].loaded;
    return sum;
}

static void ask_while_it_gets_on(struct td_manager *m, const struct td_coord_status *st,
                                 uint64_t now_ns)
{
    uint64_t progress = progress_of(st);

    if (m->asked_ns && (progress == m->progress || now_ns - m->asked_ns < ASK_EVERY_S * second_ns))
        return;
    m->progress = progress;
    m->asked_ns = now_ns;
    ask_for_time(m);
}

/* ---- the state in words ---- */

static void describe_load(const struct td_coord_status *st, char *out, size_t out_bytes)
{
    uint64_t done = 0, total = 0;
    char size[32];

    for (uint32_t i = 0; i < st->n_ranks; i++) {
        done += st->members[i].load_done_bytes;
        total += st->members[i].load_total_bytes;
    }
    if (total)
        snprintf(out, out_bytes, "loading on %u ranks: %.0f %% of %s", st->n_ranks,
                 100.0 * (double)done / (double)total, td_term_bytes(total, size, sizeof size));
    else
        snprintf(out, out_bytes, "loading on %u ranks", st->n_ranks);
}

static void describe(const struct td_coord_status *st, char *out, size_t out_bytes)
{
    const char *state = td_group_state_name(st->state);

    if (st->drain.is_on && st->drain.has_limit && !st->drain.is_over)
        snprintf(out, out_bytes, "draining: %u requests are open, %.0f s left", st->n_open,
                 (double)st->drain.left_ns * 1e-9);
    else if (st->drain.is_on)
        snprintf(out, out_bytes, "draining: %u requests are open", st->n_open);
    else if (st->state == TD_GROUP_READY)
        snprintf(out, out_bytes, "serving %.60s: %u requests are open", st->served->names[0],
                 st->n_open);
    else if (st->state == TD_GROUP_LOADING)
        describe_load(st, out, out_bytes);
    else if (*st->last_error)
        snprintf(out, out_bytes, "%s: %.120s", state, st->last_error);
    else
        snprintf(out, out_bytes, "%s", state);
    for (char *c = out; *c; c++) /* one line of the protocol */
        if (*c == '\n')
            *c = ' ';
}

static void tell_status(struct td_manager *m, const struct td_coord_status *st, uint64_t now_ns)
{
    char text[sizeof m->status], line[sizeof m->status + 16];

    describe(st, text, sizeof text);
    if (strcmp(text, m->status) == 0 || (m->told_ns && now_ns - m->told_ns < second_ns))
        return;
    m->told_ns = now_ns;
    memcpy(m->status, text, sizeof m->status);
    snprintf(line, sizeof line, "STATUS=%s", text);
    td_sdnotify_send(&m->notify, line);
}

/* ---- the watchdog ---- */

static void feed(struct td_manager *m, const struct td_coord *coord, uint64_t now_ns)
{
    struct td_err err;

    if (!m->notify.watchdog_ns || (m->fed_ns && now_ns - m->fed_ns < m->notify.watchdog_ns / 2))
        return;
    if (!td_coord_is_sound(coord, now_ns, &err)) {
        if (!m->is_unsound)
            td_log_error("the watchdog is told nothing any more error=\"%s\"", err.cause);
        m->is_unsound = true;
        return;
    }
    m->is_unsound = false;
    m->fed_ns = now_ns;
    td_sdnotify_send(&m->notify, "WATCHDOG=1");
}

void td_manager_tick(struct td_manager *m, struct td_coord *coord, uint64_t now_ns)
{
    struct td_coord_status st;

    if (!m->notify.is_open)
        return;
    td_coord_status(coord, &st);
    if (!m->is_ready && (m->waits_for_group || st.state == TD_GROUP_READY)) {
        m->is_ready = true;
        td_sdnotify_send(&m->notify, "READY=1");
    }
    if (!m->is_ready)
        ask_while_it_gets_on(m, &st, now_ns);
    tell_status(m, &st, now_ns);
    feed(m, coord, now_ns);
}

void td_manager_stopping(struct td_manager *m, uint64_t left_ns)
{
    char text[96];

    snprintf(text, sizeof text, "STOPPING=1\nEXTEND_TIMEOUT_USEC=%llu",
             (unsigned long long)(left_ns / 1000 + STOP_MORE_S * 1000000u));
    td_sdnotify_send(&m->notify, text);
}
