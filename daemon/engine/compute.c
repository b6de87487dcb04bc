#include "daemon/engine/compute.h"

#include "daemon/engine/preflight.h"
#include "daemon/engine/steplimit.h"
#include "daemon/text/tokenizer.h"
#include "kernels/base/clock.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    PROGRESS_BYTES = 4 << 20, /* between two reports of loading */
    REST_NS = 100 * 1000000   /* longest sleep without a look around */
};

/* Planning a step, drawing from its logits: what rank 0 does between two of them, at most. */
static const uint64_t BETWEEN_LIMIT_NS = 60000000000u;

/* A ring that grows; guarded by the owner's mutex. */
struct queue {
    uint8_t *items;
    size_t item_bytes, cap, head, n;
};

struct td_compute {
    struct td_comm *world;
    struct td_node_params node_params;
    td_compute_notify_fn *notify;
    void *user;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* a command came */
    struct queue down, up;
    atomic_bool has_commands; /* down is not empty: read without the lock between steps */
    pthread_mutex_t gauge_lock;
    struct td_compute_gauges gauges;
    struct td_node_facts facts; /* a copy, for the other thread */
    struct td_recorder recorder;

    /* Compute thread only. */
    struct td_node node;
    struct td_engine *engine;     /* rank 0 */
    struct td_tokenizer *tok;     /* rank 0; NULL when the model has none */
    struct td_step step;          /* rank 0 */
    struct td_compute_load *load; /* being served */
    struct td_compute_load *next; /* to be served after it */
    uint64_t n_submits;           /* rank 0: taken in; others: heard of */
    struct td_steplimit limit;    /* rank 0 */
    uint64_t reported_bytes;
    bool stop, exit;
    struct td_err err;
};

static bool queue_push(struct queue *q, const void *item)
{
    if (q->n == q->cap) {
        size_t cap = q->cap ? q->cap * 2 : 64;
        uint8_t *items = malloc(cap * q->item_bytes);

        if (!items)
            return false;
        for (size_t i = 0; i < q->n; i++)
            memcpy(items + i * q->item_bytes, q->items + (q->head + i) % q->cap * q->item_bytes,
                   q->item_bytes);
        free(q->items);
        q->items = items;
        q->cap = cap;
        q->head = 0;
    }
    memcpy(q->items + (q->head + q->n) % q->cap * q->item_bytes, item, q->item_bytes);
    q->n++;
    return true;
}

static bool queue_pop(struct queue *q, void *item)
{
    if (q->n == 0)
        return false;
    memcpy(item, q->items + q->head * q->item_bytes, q->item_bytes);
    q->head = (q->head + 1) % q->cap;
    q->n--;
    return true;
}

static void command_free(struct td_compute_command *command)
{
    td_compute_load_free(command->load);
    if (command->request)
        td_request_deinit(command->request);
    free(command->request);
}

void td_compute_load_free(struct td_compute_load *load)
{
    if (load) {
        free(load->path);
        free(load->offload_dir);
        free(load->draft_path);
    }
    free(load);
}

/* Events are small and bounded by the tokens of open requests; without memory for one the thread cannot go on. */
static void tell(struct td_compute *c, const struct td_compute_event *event)
{
    bool ok;

    pthread_mutex_lock(&c->lock);
    ok = queue_push(&c->up, event);
    pthread_mutex_unlock(&c->lock);
    if (!ok) {
        td_err_set(&c->err, TD_NO_MEMORY, "no memory for an event of the compute thread");
        c->stop = c->exit = true;
    }
    c->notify(c->user);
}

static void tell_kind(struct td_compute *c, enum td_compute_kind kind)
{
    struct td_compute_event event = {.kind = kind, .err = c->err};

    tell(c, &event);
}

static void on_token(const struct td_token_event *token, void *user)
{
    struct td_compute_event event = {
        .kind = TD_COMPUTE_TOKEN, .token = *token, .request_id = token->request_id};

    if (token->error)
        event.err = *token->error;
    tell(user, &event);
}

static void on_progress(size_t done, size_t total, void *user)
{
    struct td_compute *c = user;
    struct td_compute_event event = {
        .kind = TD_COMPUTE_PROGRESS, .done_bytes = done, .total_bytes = total};

    if (done < total && done < c->reported_bytes + PROGRESS_BYTES)
        return;
    c->reported_bytes = done;
    tell(c, &event);
}

static void refresh_gauges(struct td_compute *c)
{
    struct td_shard_stats shard, draft = {0};
    struct td_engine_stats engine = {0};

    td_shard_stats(c->node.shard, &shard);
    if (c->node.draft)
        td_draftmodel_stats(c->node.draft, &draft);
    if (c->engine)
        td_engine_stats(c->engine, 0, &engine);
    pthread_mutex_lock(&c->gauge_lock);
    c->gauges.n_steps = c->node.n_steps;
    c->gauges.gap_ns = c->node.gap_ns;
    c->gauges.n_gaps = c->node.n_gaps;
    c->gauges.step_ns = c->node.run_ns;
    c->gauges.progress++;
    c->gauges.exchanged_bytes = shard.exchanged_bytes;
    c->gauges.wait_ns = shard.wait_ns;
    c->gauges.weight_bytes = shard.weight_bytes + draft.weight_bytes;
    c->gauges.kv_bytes = shard.kv_bytes + draft.kv_bytes;
    c->gauges.buffer_bytes = shard.buffer_bytes + draft.buffer_bytes;
    c->gauges.n_running = engine.n_running;
    c->gauges.n_waiting = engine.n_waiting;
    c->gauges.kv_blocks_used = engine.n_blocks_used - engine.n_blocks_idle;
    c->gauges.kv_blocks_idle = engine.n_blocks_idle;
    memcpy(c->gauges.kv_blocks_outside, engine.n_blocks_outside,
           sizeof c->gauges.kv_blocks_outside);
    c->gauges.kv_blocks_read = engine.n_blocks_read;
    c->gauges.kv_failed_reads = engine.n_failed_reads;
    c->gauges.kv_blocks = c->node.plan->n_blocks;
    c->gauges.prompt_tokens = engine.n_prompt_tokens;
    c->gauges.generated_tokens = engine.n_output_tokens;
    c->gauges.draft_tokens = engine.n_draft_tokens;
    c->gauges.right_drafts = engine.n_right_drafts;
    c->gauges.device_draws = engine.n_device_draws;
    pthread_mutex_unlock(&c->gauge_lock);
}

/* What the other thread is told of the device and of the model that was loaded; without one, what has gone. */
/* Of all ranks: stages of one rank each exchange by it too. */
static const char *node_transport(const struct td_node *node)
{
    const char *transport = td_shard_transport(node->shard);

    return strcmp(transport, "nccl") == 0 ? transport : td_comm_transport(node->world);
}

static void publish(struct td_compute *c, uint64_t load_ns)
{
    const struct td_plan *plan = c->node.plan;

    pthread_mutex_lock(&c->gauge_lock);
    c->facts = c->node.facts;
    c->gauges.load_ns = load_ns;
    if (plan) {
        c->gauges.place = plan->rank[td_comm_rank(c->world)];
        c->gauges.kv_block_tokens = plan->block_tokens;
        c->gauges.max_model_len = plan->max_model_len;
        c->gauges.transport = node_transport(&c->node);
    }
    if (!c->engine) {
        c->gauges.n_running = c->gauges.n_waiting = c->gauges.kv_blocks_used =
            c->gauges.kv_blocks_idle = 0;
        memset(c->gauges.kv_blocks_outside, 0, sizeof c->gauges.kv_blocks_outside);
    }
    pthread_mutex_unlock(&c->gauge_lock);
}

/* One command on the compute thread. */
static void obey(struct td_compute *c, struct td_compute_command *command)
{
    switch (command->verb) {
    case TD_COMPUTE_LOAD:
        td_compute_load_free(c->next);
        c->next = command->load;
        command->load = NULL;
        break;
    case TD_COMPUTE_SUBMIT:
        c->n_submits = command->number;
        if (!c->engine ||
            td_engine_submit(c->engine, command->request, td_clock_now_ns(), &c->err)) {
            struct td_compute_event refused = {.kind = TD_COMPUTE_REFUSED,
                                               .request_id = command->request->id};

            if (c->engine)
                refused.err = c->err;
            else
                td_err_set(&refused.err, TD_UNAVAILABLE, "the group serves no model");
            tell(c, &refused);
        }
        break;
    case TD_COMPUTE_CANCEL:
        if (c->engine)
            td_engine_cancel(c->engine, command->number);
        break;
    case TD_COMPUTE_PAUSE:
        if (c->engine)
            td_engine_pause(c->engine, command->number, true);
        break;
    case TD_COMPUTE_RESUME:
        c->n_submits = command->n_submits;
        if (c->engine)
            td_engine_pause(c->engine, command->number, false);
        break;
    case TD_COMPUTE_WAKE:
        c->n_submits = command->number > c->n_submits ? command->number : c->n_submits;
        break;
    case TD_COMPUTE_UNLOAD: /* without a model it means nothing, least of all for the next one */
        c->stop = c->stop || c->load || c->next;
        break;
    case TD_COMPUTE_EXIT:
        c->stop = c->exit = true;
        break;
    }
}

/* Takes in what has come; with `wait`, sleeps until something does. */
static void obey_all(struct td_compute *c, bool wait)
{
    struct td_compute_command command;

    if (!wait && !atomic_load_explicit(&c->has_commands, memory_order_acquire))
        return;
    pthread_mutex_lock(&c->lock);
    while (wait && c->down.n == 0)
        pthread_cond_wait(&c->changed, &c->lock);
    while (queue_pop(&c->down, &command)) {
        pthread_mutex_unlock(&c->lock);
        obey(c, &command);
        command_free(&command);
        pthread_mutex_lock(&c->lock);
    }
    atomic_store_explicit(&c->has_commands, false, memory_order_release);
    pthread_mutex_unlock(&c->lock);
}

/* A step without rows. */
static enum td_status lead_kind(struct td_compute *c, enum td_step_kind kind)
{
    const struct td_steplimit_shape no_rows = {0};
    struct td_step_result none;
    uint64_t start = td_clock_now_ns();
    enum td_status s;

    td_step_reset(&c->step, kind, td_engine_take_number(c->engine));
    c->step.n_submits_seen = c->n_submits;
    c->node.step_limit_ns = td_steplimit_begin(&c->limit, &no_rows);
    s = td_node_lead(&c->node, &c->step, &none, &c->err);
    if (!s)
        td_steplimit_learn(&c->limit, &no_rows, td_clock_now_ns() - start);
    return s;
}

/* After the last step ranks stay in touch for a moment, so that a request that follows at once finds them awake. */
static bool linger(struct td_compute *c)
{
    uint64_t until = td_clock_now_ns() + 2000000;

    while (td_clock_now_ns() < until)
        if (atomic_load_explicit(&c->has_commands, memory_order_acquire))
            return true;
    return false;
}

/* Tells the others that there is nothing to do, unless they know; then sleeps until something comes. *told: submits that they sleep
 * on; UINT64_MAX: they are awake. */
static enum td_status rest(struct td_compute *c, uint64_t *told)
{
    bool owns_cores = td_comm_size(c->world) > 1 && c->node.owns_cores;
    enum td_status s;

    /* A submit wakes them even when it gives no step, because it was refused or cancelled at once. */
    if (td_comm_size(c->world) > 1 && *told != c->n_submits) {
        if (owns_cores && linger(c))
            return TD_OK;
        s = lead_kind(c, TD_STEP_IDLE);
        if (s)
            return s;
        *told = c->step.n_submits_seen;
    }
    td_node_rest(&c->node);
    refresh_gauges(c);
    td_recorder_rest(&c->recorder);
    obey_all(c, true);
    td_recorder_await(&c->recorder);
    return TD_OK;
}

/* As many steps are under way as the pipeline has stages; the oldest ends first. */
static enum td_status serve_lead(struct td_compute *c)
{
    uint64_t told = UINT64_MAX;
    uint32_t n_under_way = 0;
    enum td_status s = TD_OK;

    td_recorder_await(&c->recorder);
    while (!s) {
        struct td_steplimit_shape shape;
        struct td_step_result result;
        uint64_t start, step_ns;
        bool begins;

        obey_all(c, false);
        if (c->stop)
            break;
        begins = td_engine_plan_step(c->engine, td_clock_now_ns(), &c->step);
        if (!begins && n_under_way == 0) {
            s = rest(c, &told);
            continue;
        }
        if (!begins)
            td_step_reset(&c->step, TD_STEP_FLUSH, td_engine_take_number(c->engine));
        n_under_way += begins;
        told = UINT64_MAX;
        shape = (struct td_steplimit_shape){.n_rows = c->step.n_rows,
                                            .n_seqs = c->step.n_seqs,
                                            .n_table = c->step.n_table,
                                            .n_moves = c->step.n_moves};
        c->node.step_limit_ns = td_steplimit_begin(&c->limit, &shape);
        start = td_clock_now_ns();
        s = td_node_lead(&c->node, &c->step, &result, &c->err);
        step_ns = td_clock_now_ns() - start;
        if (!s)
            td_steplimit_learn(&c->limit, &shape, step_ns);
        if (!s && result.is_complete) {
            s = td_engine_complete_step(c->engine, result.number, &result, step_ns, &c->err);
            n_under_way--;
        }
        if (!s)
            refresh_gauges(c);
    }
    return s ? s : lead_kind(c, TD_STEP_STOP);
}

/* Sleeps until rank 0 has a step: on its host it rings in their memory; elsewhere its submit comes over the control stream as
 * well, as a wake. */
static void rest_until_called(struct td_compute *c)
{
    struct td_comm *ear = td_node_ear(&c->node);
    bool can_rest = td_comm_can_rest(ear, 0), called = false;

    while (!called && c->n_submits <= c->node.step.n_submits_seen && !c->stop) {
        if (can_rest)
            called = td_comm_rest(ear, 0, REST_NS, &c->has_commands);
        obey_all(c, !can_rest);
    }
}

static enum td_status serve_follow(struct td_compute *c)
{
    enum td_status s;

    td_recorder_await(&c->recorder);
    for (;;) {
        s = td_node_follow(&c->node, &c->err);
        if (s)
            return s;
        refresh_gauges(c);
        obey_all(c, false);
        if (c->node.step.kind == TD_STEP_STOP)
            return TD_OK;
        if (c->node.step.kind != TD_STEP_IDLE)
            continue;
        td_recorder_rest(&c->recorder);
        rest_until_called(c);
        td_recorder_await(&c->recorder);
    }
}

static void run_parallel(void *user, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg)
{
    td_kern_run(user, n, task, arg);
}

static enum td_status open_engine(struct td_compute *c)
{
    const struct td_plan *plan = c->node.plan;
    const struct td_spec *spec = c->node.model->spec;
    struct td_engine_params p = {.n_vocab = spec->n_vocab,
                                 .max_model_len = plan->max_model_len,
                                 .max_num_seqs = plan->max_num_seqs,
                                 .max_batched_tokens = plan->max_batched_tokens,
                                 .max_flights = plan->pp,
                                 .max_queue = c->load->max_queue,
                                 .prefix_cache = c->load->prefix_cache,
                                 .n_slots = {plan->n_slots[0], plan->n_slots[1]},
                                 .max_draft_tokens = c->load->max_draft_tokens,
                                 .max_stretch_percent = c->load->max_stretch_percent,
                                 .block_tokens = plan->block_tokens,
                                 .draws = td_shard_draws(c->node.shard),
                                 .n_blocks = plan->n_blocks,
                                 .n_eos = spec->n_eos,
                                 .layer_kinds = spec->layer_kind,
                                 .n_layers = spec->n_layers,
                                 .on_event = on_token,
                                 .user = c,
                                 .parallel = run_parallel,
                                 .parallel_user = c->node.kern};
    uint32_t rows, seqs, table;
    enum td_status s = td_tokenizer_open(c->node.ck, &c->tok, &c->err);

    if (c->node.draft) {
        p.run_draft = td_node_run_draft;
        p.run_draft_user = &c->node;
        p.draft_vocab = td_draftmodel_n_vocab(c->node.draft);
        p.draft_positions = td_draftmodel_positions(c->node.draft);
    }

    if (s)
        return s;
    p.tokenizer = c->tok;
    memcpy(p.eos_ids, spec->eos_ids, sizeof p.eos_ids);
    s = td_engine_open(&p, &c->engine, &c->err);
    if (s)
        return s;
    td_engine_step_caps(c->engine, &rows, &seqs, &table);
    return td_step_open(&c->step, rows, seqs, table, &c->err);
}

static uint64_t largest_weights(const struct td_plan *plan)
{
    uint64_t most = 0;

    for (uint32_t r = 0; r < plan->n_ranks; r++)
        most = plan->rank[r].weight_bytes > most ? plan->rank[r].weight_bytes : most;
    return most;
}

/* Loads what c->load says, serves it until told to stop, frees it. */
static enum td_status load_and_serve(struct td_compute *c)
{
    const struct td_compute_load *load = c->load;
    bool is_lead = td_comm_rank(c->world) == 0;
    uint64_t start = td_clock_now_ns();
    enum td_status s;

    c->reported_bytes = 0;
    s = td_node_open_model(&c->node, load->path, load->verify, &c->err);

    if (!s && load->model_hash[0] && strcmp(load->model_hash, c->node.facts.model_hash) != 0)
        s = td_err_set(&c->err, TD_PEER_MISMATCH,
                       "'%.120s' has model hash %s on %s, the coordinator's has %s", load->path,
                       c->node.facts.model_hash, c->node.facts.host, load->model_hash);
    s = td_node_agree(c->world, s, &c->err);
    s = s ? s : td_node_load(&c->node, &load->plan, load->offload_dir, load->draft_path, &c->err);
    if (s)
        return s;
    s = td_node_agree(c->world, is_lead ? open_engine(c) : TD_OK, &c->err);
    if (s)
        return s;
    td_shard_set_deadline(c->node.shard, load->op_limit_ns);
    c->n_submits = 0;
    td_recorder_reset(&c->recorder, is_lead ? BETWEEN_LIMIT_NS : 0);
    td_steplimit_init(&c->limit, largest_weights(c->node.plan), c->node.plan->pp);
    publish(c, td_clock_now_ns() - start);
    refresh_gauges(c);
    tell_kind(c, TD_COMPUTE_LOADED);
    s = is_lead ? serve_lead(c) : serve_follow(c);
    return s;
}

static void unload(struct td_compute *c, enum td_status status)
{
    struct td_err cause;

    td_err_set(&cause, TD_UNAVAILABLE, "the model was unloaded");
    if (c->engine &&
        !status) /* of a group that failed nobody hears: the next one goes on with its requests */
        td_engine_fail_all(c->engine, &cause);
    td_engine_close(c->engine);
    c->engine = NULL;
    td_step_close(&c->step);
    td_tokenizer_close(c->tok);
    c->tok = NULL;
    td_compute_load_free(c->load);
    c->load = NULL;
    td_node_unload(&c->node);
    if (!status)
        td_recorder_rest(&c->recorder);
    publish(c, 0);
}

static void *compute_main(void *arg)
{
    struct td_compute *c = arg;
    enum td_status s;

    pthread_setname_np(pthread_self(), "compute");
    c->node_params.recorder = &c->recorder;
    c->node_params.progress = on_progress;
    c->node_params.user = c;
    s = td_node_open(&c->node, c->world, &c->node_params, &c->err);
    s = s ? s : td_preflight_start(&c->node, &c->err);
    if (!s) {
        publish(c, 0);
        tell_kind(c, TD_COMPUTE_DEVICE);
    }
    while (!s && !c->exit) {
        c->stop = false;
        while (!c->next && !c->exit)
            obey_all(c, true);
        if (c->exit)
            break;
        c->load = c->next;
        c->next = NULL;
        s = load_and_serve(c);
        unload(c, s);
        if (!s && !c->exit)
            tell_kind(c, TD_COMPUTE_UNLOADED);
    }
    td_compute_load_free(c->next);
    c->next = NULL;
    td_node_close(&c->node);
    tell_kind(c, s ? TD_COMPUTE_FAILED : TD_COMPUTE_EXITED);
    return NULL;
}

enum td_status td_compute_start(struct td_comm *world, const struct td_node_params *node,
                                td_compute_notify_fn *notify, void *user, struct td_compute **out,
                                struct td_err *err)
{
    struct td_compute *c = calloc(1, sizeof *c);

    if (!c)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the compute thread");
    c->world = world;
    c->node_params = *node;
    c->notify = notify;
    c->user = user;
    c->down.item_bytes = sizeof(struct td_compute_command);
    c->up.item_bytes = sizeof(struct td_compute_event);
    pthread_mutex_init(&c->lock, NULL);
    pthread_mutex_init(&c->gauge_lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    if (pthread_create(&c->thread, NULL, compute_main, c)) {
        free(c);
        return td_err_set(err, TD_NO_MEMORY, "cannot start the compute thread");
    }
    *out = c;
    return TD_OK;
}

enum td_status td_compute_post(struct td_compute *c, const struct td_compute_command *command)
{
    struct td_compute_command copy = *command;
    bool ok;

    if (copy.load) { /* the arrays travel inside the load */
        copy.load->plan.share = copy.load->plan.share ? copy.load->share : NULL;
        copy.load->plan.memory_bytes = copy.load->plan.memory_bytes ? copy.load->memory : NULL;
    }
    pthread_mutex_lock(&c->lock);
    ok = queue_push(&c->down, &copy);
    atomic_store_explicit(&c->has_commands, true, memory_order_release);
    pthread_cond_signal(&c->changed);
    td_comm_ring(c->world);
    pthread_mutex_unlock(&c->lock);
    if (!ok)
        command_free(&copy);
    return ok ? TD_OK : TD_NO_MEMORY;
}

bool td_compute_take(struct td_compute *c, struct td_compute_event *event)
{
    bool some;

    pthread_mutex_lock(&c->lock);
    some = queue_pop(&c->up, event);
    pthread_mutex_unlock(&c->lock);
    if (some)
        event->token.error = event->token.finish == TD_FINISH_ERROR ? &event->err : NULL;
    return some;
}

void td_compute_gauges(const struct td_compute *c, struct td_compute_gauges *out)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&c->gauge_lock;

    pthread_mutex_lock(lock);
    *out = c->gauges;
    pthread_mutex_unlock(lock);
}

bool td_compute_is_called(const struct td_compute *c)
{
    return atomic_load_explicit(&c->has_commands, memory_order_acquire);
}

const struct td_recorder *td_compute_recorder(const struct td_compute *c)
{
    return &c->recorder;
}

void td_compute_facts(const struct td_compute *c, struct td_node_facts *out)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&c->gauge_lock;

    pthread_mutex_lock(lock);
    *out = c->facts;
    pthread_mutex_unlock(lock);
}

void td_compute_abort(struct td_compute *c)
{
    td_comm_abort(c->world); /* the groups split from it share its fate */
}

void td_compute_close(struct td_compute *c)
{
    struct td_compute_command command;

    if (!c)
        return;
    pthread_join(c->thread, NULL);
    while (queue_pop(&c->down, &command))
        command_free(&command);
    free(c->down.items);
    free(c->up.items);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->gauge_lock);
    pthread_mutex_destroy(&c->lock);
    free(c);
}
