#include "daemon/cli/watchdog.h"

#include "daemon/cli/command.h"
#include "kernels/base/clock.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const uint64_t look_ns = 1000 * 1000 * 1000;

struct td_watchdog {
    pthread_t thread;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    bool closing;
    const char *what; /* borrowed */
    uint64_t limit_ns;
    uint64_t deadline_ns; /* 0: not armed */
    char name[64];
};

/* write, because the thread that is watched may hold stderr's lock. */
static void bite(const struct td_watchdog *w)
{
    char text[256];
    int n = snprintf(text, sizeof text, "%s: %.80s did not end within %.4g s: given up\n", w->name,
                     w->what, (double)w->limit_ns * 1e-9);

    if (n > 0 && write(STDERR_FILENO, text, (size_t)n) < 0)
        n = 0; /* nobody listens: the exit status tells it as well */
    _exit(TD_EXIT_FAILURE);
}

static void *watch(void *arg)
{
    struct td_watchdog *w = arg;

    pthread_mutex_lock(&w->lock);
    while (!w->closing) {
        uint64_t now_ns = td_clock_now_ns(), until_ns = now_ns + look_ns;
        struct timespec until;

        if (w->deadline_ns && now_ns >= w->deadline_ns)
            bite(w);
        if (w->deadline_ns && w->deadline_ns < until_ns)
            until_ns = w->deadline_ns;
        until = (struct timespec){.tv_sec = (time_t)(until_ns / look_ns),
                                  .tv_nsec = (long)(until_ns % look_ns)};
        pthread_cond_timedwait(&w->changed, &w->lock, &until);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

enum td_status td_watchdog_open(const char *name, struct td_watchdog **watchdog, struct td_err *err)
{
    struct td_watchdog *w = calloc(1, sizeof *w);
    pthread_condattr_t attr;
    int rc;

    if (!w)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a watchdog");
    snprintf(w->name, sizeof w->name, "%s", name);
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC); /* that of td_clock_now_ns */
    pthread_cond_init(&w->changed, &attr);
    pthread_condattr_destroy(&attr);
    rc = pthread_create(&w->thread, NULL, watch, w);
    if (rc != 0) {
        pthread_cond_destroy(&w->changed);
        pthread_mutex_destroy(&w->lock);
        free(w);
        return td_err_set(err, TD_IO, "no thread for a watchdog: %s", strerror(rc));
    }
    *watchdog = w;
    return TD_OK;
}

void td_watchdog_arm(struct td_watchdog *w, const char *what, uint64_t limit_ns)
{
    pthread_mutex_lock(&w->lock);
    w->what = what;
    w->limit_ns = limit_ns;
    w->deadline_ns = td_clock_now_ns() + limit_ns;
    pthread_mutex_unlock(&w->lock);
}

void td_watchdog_disarm(struct td_watchdog *w)
{
    pthread_mutex_lock(&w->lock);
    w->deadline_ns = 0;
    pthread_mutex_unlock(&w->lock);
}

void td_watchdog_close(struct td_watchdog *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    w->closing = true;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w);
}
