#include "comm/sumthread.h"

#include "comm/comm_impl.h"
#include "kernels/base/clock.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>

/* The arguments of one sum. */
struct call {
    struct td_tree_layout layout;
    const float *parts;
    size_t n_floats;
    float *scratch, *out;
};

struct td_sumthread {
    struct td_comm *comm;
    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t begun, ended;
    struct call calls[TD_SUMTHREAD_DEPTH]; /* sum n is calls[n % TD_SUMTHREAD_DEPTH] */
    uint64_t n_begun, n_ended;
    bool stop;
    enum td_status status; /* of the first sum that failed */
    struct td_err err;     /* its error */
    uint64_t inside_ns, waited_ns;
};

/* Outside of the lock: the group is this thread's. */
static enum td_status run(struct td_comm *comm, const struct call *call, struct td_err *err)
{
    uint64_t spin_ns = comm->spin_ns;
    enum td_status status;

    comm->spin_ns = 0;
    comm->naps = true;
    status = td_comm_tree_sum(comm, &call->layout, call->parts, call->n_floats, call->scratch,
                              call->out, err);
    comm->naps = false;
    comm->spin_ns = spin_ns;
    return status;
}

static void *thread_main(void *arg)
{
    struct td_sumthread *t = arg;

    pthread_mutex_lock(&t->lock);
    for (;;) {
        struct call call;
        struct td_err err = {0};
        enum td_status status;
        uint64_t start;

        while (t->n_ended == t->n_begun && !t->stop)
            pthread_cond_wait(&t->begun, &t->lock);
        if (t->n_ended == t->n_begun)
            break;
        call = t->calls[(t->n_ended + 1) % TD_SUMTHREAD_DEPTH];
        status = t->status;
        if (!status) {
            pthread_mutex_unlock(&t->lock);
            start = td_clock_now_ns();
            status = run(t->comm, &call, &err);
            start = td_clock_now_ns() - start;
            pthread_mutex_lock(&t->lock);
            t->inside_ns += start;
            if (status)
                t->err = err;
            t->status = status;
        }
        t->n_ended++;
        pthread_cond_signal(&t->ended);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

enum td_status td_sumthread_open(struct td_comm *comm, const cpu_set_t *cpus,
                                 struct td_sumthread **thread, struct td_err *err)
{
    struct td_sumthread *t = calloc(1, sizeof *t);

    if (!t)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a thread that sums");
    t->comm = comm;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->begun, NULL);
    pthread_cond_init(&t->ended, NULL);
    if (pthread_create(&t->thread, NULL, thread_main, t)) {
        pthread_cond_destroy(&t->ended);
        pthread_cond_destroy(&t->begun);
        pthread_mutex_destroy(&t->lock);
        free(t);
        return td_err_set(err, TD_NO_MEMORY, "cannot start a thread that sums");
    }
    if (cpus) /* where the system refuses, it stays beside its owner */
        (void)pthread_setaffinity_np(t->thread, sizeof *cpus, cpus);
    *thread = t;
    return TD_OK;
}

void td_sumthread_close(struct td_sumthread *t)
{
    if (!t)
        return;
    pthread_mutex_lock(&t->lock);
    t->stop = true;
    pthread_cond_signal(&t->begun);
    pthread_mutex_unlock(&t->lock);
    pthread_join(t->thread, NULL);
    pthread_cond_destroy(&t->ended);
    pthread_cond_destroy(&t->begun);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

uint64_t td_sumthread_begin(struct td_sumthread *t, const struct td_tree_layout *layout,
                            const float *parts, size_t n_floats, float *scratch, float *out)
{
    uint64_t number;

    pthread_mutex_lock(&t->lock);
    assert(t->n_begun - t->n_ended < TD_SUMTHREAD_DEPTH);
    number = ++t->n_begun;
    t->calls[number % TD_SUMTHREAD_DEPTH] = (struct call){*layout, parts, n_floats, scratch, out};
    pthread_cond_signal(&t->begun);
    pthread_mutex_unlock(&t->lock);
    return number;
}

enum td_status td_sumthread_wait(struct td_sumthread *t, uint64_t number, struct td_err *err)
{
    enum td_status status;

    pthread_mutex_lock(&t->lock);
    if (t->n_ended < number) {
        uint64_t start = td_clock_now_ns();

        while (t->n_ended < number)
            pthread_cond_wait(&t->ended, &t->lock);
        t->waited_ns += td_clock_now_ns() - start;
    }
    status = t->status;
    if (status && err)
        *err = t->err;
    pthread_mutex_unlock(&t->lock);
    return status;
}

enum td_status td_sumthread_wait_all(struct td_sumthread *t, struct td_err *err)
{
    return td_sumthread_wait(t, t->n_begun, err);
}

uint64_t td_sumthread_hidden_ns(const struct td_sumthread *t)
{
    return t->inside_ns > t->waited_ns ? t->inside_ns - t->waited_ns : 0;
}
