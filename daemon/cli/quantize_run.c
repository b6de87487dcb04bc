#include "daemon/cli/quantize.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

enum { MAX_THREADS = 256 };

/* One run over all pieces. */
struct run {
    struct td_quantize *q;
    td_quantize_fn *fn;
    void *user;
    size_t n_pieces;
    atomic_size_t next;
    atomic_bool stop;
    _Atomic uint64_t done_bytes; /* of the source */
    pthread_mutex_t lock;        /* guards the two below */
    enum td_status failed;
    struct td_err err;
};

struct worker {
    struct run *run;
    struct td_quantize_buffers b;
    pthread_t thread;
};

static size_t n_pieces_of(const struct td_quantize_item *item)
{
    return (item->n_rows + item->piece_rows - 1) / item->piece_rows;
}

static struct td_quantize_item *find_item(const struct td_quantize *q, size_t piece)
{
    size_t low = 0, high = q->n_items;

    while (high - low > 1) { /* the last item that begins at or before the piece */
        size_t mid = (low + high) / 2;

        if (q->items[mid].first_piece <= piece)
            low = mid;
        else
            high = mid;
    }
    return &q->items[low];
}

static enum td_status run_piece(struct worker *me, size_t piece, struct td_err *err)
{
    struct run *run = me->run;
    struct td_quantize_item *item = find_item(run->q, piece);
    size_t row0 = (piece - item->first_piece) * item->piece_rows;
    size_t left = item->n_rows - row0, n = left < item->piece_rows ? left : item->piece_rows;
    struct td_tensor t;
    enum td_status s = run->fn(run->user, item, row0, n, &me->b, err);

    if (s ||
        (s = td_checkpoint_weight(run->q->ck, item->convert.role, item->convert.layer, &t, err)))
        return s;
    if (t.data)
        td_checkpoint_release(run->q->ck, (const char *)t.data + row0 * (t.bytes / item->n_rows),
                              n * (t.bytes / item->n_rows));
    atomic_fetch_add(&run->done_bytes, n * (t.bytes / item->n_rows));
    return TD_OK;
}

static void *work(void *arg)
{
    struct worker *me = arg;
    struct run *run = me->run;
    struct td_err err;
    size_t piece;

    while (!atomic_load(&run->stop) && (piece = atomic_fetch_add(&run->next, 1)) < run->n_pieces) {
        enum td_status s = run_piece(me, piece, &err);

        if (!s)
            continue;
        pthread_mutex_lock(&run->lock);
        if (!run->failed)
            run->err = err;
        run->failed = run->failed ? run->failed : s;
        pthread_mutex_unlock(&run->lock);
        atomic_store(&run->stop, true);
    }
    return NULL;
}

static size_t thread_count(const struct td_quantize *q, size_t n_pieces)
{
    size_t n = (size_t)q->opts->threads;
    cpu_set_t set;

    if (n == 0)
        n = sched_getaffinity(0, sizeof set, &set) == 0 ? (size_t)CPU_COUNT(&set) : 1;
    n = n > MAX_THREADS ? MAX_THREADS : n;
    return n < n_pieces ? n : n_pieces ? n_pieces : 1;
}

/* Bytes of the largest piece: values and result. */
static void measure(const struct td_quantize *q, size_t value_rows, size_t *n_values,
                    size_t *out_bytes)
{
    *n_values = *out_bytes = 1;
    for (size_t i = 0; i < q->n_items; i++) {
        const struct td_quantize_item *item = &q->items[i];
        size_t rows = value_rows ? value_rows : item->piece_rows;
        size_t values = rows * item->n_cols + (item->n_cols + 127) / 128;
        size_t bytes = item->piece_rows * td_dtype_row_bytes(item->convert.type, item->n_cols);

        *n_values = values > *n_values ? values : *n_values;
        *out_bytes = bytes > *out_bytes ? bytes : *out_bytes;
    }
}

/* The main thread's share of the work, with the progress. */
static void watch(struct run *run, struct worker *me, const char *label, uint64_t total)
{
    struct td_term *term = &run->q->term;
    size_t piece;

    while (!atomic_load(&run->stop) && (piece = atomic_fetch_add(&run->next, 1)) < run->n_pieces) {
        struct td_err err;
        enum td_status s = run_piece(me, piece, &err);
        uint64_t done = atomic_load(&run->done_bytes);

        if (s) {
            pthread_mutex_lock(&run->lock);
            if (!run->failed)
                run->err = err;
            run->failed = run->failed ? run->failed : s;
            pthread_mutex_unlock(&run->lock);
            atomic_store(&run->stop, true);
        } else if (done < total) {
            td_term_progress(term, label, done, total, "B");
        }
    }
}

enum td_status td_quantize_run(struct td_quantize *q, const char *label, size_t value_rows,
                               td_quantize_fn *fn, void *user, struct td_err *err)
{
    struct run run = {.q = q, .fn = fn, .user = user, .lock = PTHREAD_MUTEX_INITIALIZER};
    size_t n_values, out_bytes, n = 0, n_threads;
    struct worker *workers;
    uint64_t total = 0;
    enum td_status s = TD_OK;

    for (size_t i = 0; i < q->n_items; i++) {
        struct td_tensor t;

        q->items[i].first_piece = run.n_pieces;
        run.n_pieces += n_pieces_of(&q->items[i]);
        s = s ? s
              : td_checkpoint_weight(q->ck, q->items[i].convert.role, q->items[i].convert.layer, &t,
                                     err);
        total += s ? 0 : t.bytes / q->items[i].n_rows * q->items[i].n_rows;
    }
    if (s)
        return s;
    measure(q, value_rows, &n_values, &out_bytes);
    n_threads = thread_count(q, run.n_pieces);
    workers = calloc(n_threads, sizeof *workers);
    for (size_t i = 0; workers && i < n_threads; i++) {
        workers[i].run = &run;
        workers[i].b.values = malloc(n_values * sizeof(float));
        workers[i].b.out = malloc(out_bytes);
        if (!workers[i].b.values || !workers[i].b.out)
            s = TD_NO_MEMORY;
    }
    if (!workers || s) {
        s = td_err_set(err, TD_NO_MEMORY, "no memory for the buffers of %zu threads", n_threads);
        goto free_workers;
    }
    while (n + 1 < n_threads &&
           pthread_create(&workers[n + 1].thread, NULL, work, &workers[n + 1]) == 0)
        n++; /* fewer threads than asked for are enough */
    watch(&run, &workers[0], label, total);
    for (size_t i = 1; i <= n; i++)
        pthread_join(workers[i].thread, NULL);
    s = run.failed;
    if (s)
        *err = run.err;
    else
        td_term_progress(&q->term, label, total, total, "B");
    td_term_end(&q->term);
free_workers:
    for (size_t i = 0; workers && i < n_threads; i++) {
        free(workers[i].b.values);
        free(workers[i].b.out);
    }
    free(workers);
    pthread_mutex_destroy(&run.lock);
    return s;
}
