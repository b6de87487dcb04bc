/* One step of the model over simulated groups: small random checkpoints written here, run in every layout, with the rows cut
 * and batched in any way and the instruction sets mixed, against each sequence alone, token by token, on one rank of ref.c. */
#include "tests/unit/check.h"

#include "comm/comm_sim.h"
#include "comm/comm_simtime.h"
#include "kernels/base/half.h"
#include "shard/shard.h"

#include <fenv.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    MAX_RANKS = 8,
    MAX_STEPS = 512,
    N_SEQS = 5,
    BLOCK_TOKENS = 16,
    MAX_ROWS = 24,
    MAX_LEN = 150,
    MAX_VOCAB = 100,
    BLOCKS_PER_SEQ = (MAX_LEN + BLOCK_TOKENS - 1) / BLOCK_TOKENS,
    N_BLOCKS = N_SEQS * BLOCKS_PER_SEQ
};

static uint64_t seed;

static uint32_t rnd(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

static float rnd_float(float scale)
{
    return scale * (float)((double)rnd() / 1073741824.0 - 1.0);
}

/* ---- a checkpoint ---- */

struct shape {
    const char *arch;
    enum td_dtype matrix, down, embed;
    uint32_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, n_vocab;
    bool tied;
};

static const struct shape SHAPES[] = {
    {"llama", TD_F32, TD_F32, TD_F32, 3, 32, 4, 2, 8, 96, 40, true},
    {"qwen3", TD_BF16, TD_F16, TD_BF16, 4, 40, 6, 3, 6, 20, 100, false},
    {"llama", TD_Q8_0, TD_Q8_0, TD_Q8_0, 2, 64, 4, 4, 16, 96, 70, false},
    {"qwen3", TD_Q4_0, TD_Q8_0, TD_F16, 2, 64, 5, 1, 32, 160, 33, true},
    {"llama", TD_F16, TD_F16, TD_F32, 1, 18, 1, 1, 18, 7, 3, true},
};

enum { N_SHAPES = sizeof SHAPES / sizeof SHAPES[0] };

static void put(FILE *f, const void *data, size_t n)
{
    assert_int_equal(fwrite(data, 1, n, f), n);
}

static void put32(FILE *f, uint32_t v)
{
    put(f, &v, sizeof v);
}

static void put64(FILE *f, uint64_t v)
{
    put(f, &v, sizeof v);
}

static void put_str(FILE *f, const char *s)
{
    put64(f, strlen(s));
    put(f, s, strlen(s));
}

static void put_u32_kv(FILE *f, const struct shape *s, const char *key, uint32_t v)
{
    char name[64];

    snprintf(name, sizeof name, "%s.%s", s->arch, key);
    put_str(f, name);
    put32(f, 4);
    put32(f, v);
}

struct tensor {
    char name[80];
    enum td_dtype type;
    uint32_t rows, cols; /* rows 0: a vector */
};

static uint32_t list_tensors(const struct shape *s, struct tensor *t)
{
    uint32_t n = 0, q = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim;

    t[n++] = (struct tensor){"token_embd.weight", s->embed, s->n_vocab, s->d_model};
    if (!s->tied)
        t[n++] = (struct tensor){"output.weight", s->matrix, s->n_vocab, s->d_model};
    t[n++] = (struct tensor){"output_norm.weight", TD_F32, 0, s->d_model};
    for (uint32_t l = 0; l < s->n_layers; l++) {
        const struct tensor layer[] = {
            {"attn_norm", TD_F32, 0, s->d_model},
            {"attn_q", s->matrix, q, s->d_model},
            {"attn_k", s->matrix, kv, s->d_model},
            {"attn_v", s->matrix, kv, s->d_model},
            {"attn_output", s->matrix, s->d_model, q},
            {"ffn_norm", TD_F32, 0, s->d_model},
            {"ffn_gate", s->matrix, s->d_ff, s->d_model},
            {"ffn_up", s->matrix, s->d_ff, s->d_model},
            {"ffn_down", s->down, s->d_model, s->d_ff},
            {"attn_q_norm", TD_F32, 0, s->head_dim},
            {"attn_k_norm", TD_F32, 0, s->head_dim},
        };

        for (size_t i = 0; i < (strcmp(s->arch, "qwen3") == 0 ? 11 : 9); i++) {
            t[n] = layer[i];
            snprintf(t[n++].name, sizeof t->name, "blk.%u.%.40s.weight", l, layer[i].name);
        }
    }
    return n;
}

static size_t tensor_bytes(const struct tensor *t)
{
    return (t->rows ? t->rows : 1) * td_dtype_row_bytes(t->type, t->cols);
}

static void put_tensor(FILE *f, const struct tensor *t)
{
    size_t n = (size_t)(t->rows ? t->rows : 1) * t->cols;
    size_t block = td_dtype_info(t->type)->block_elems;
    float scale = t->rows ? 2.0f / sqrtf((float)t->cols) : 1.0f;

    for (size_t i = 0; i < n; i += block) {
        float x = t->rows ? rnd_float(scale) : 1.0f + rnd_float(0.5f);
        uint16_t half = td_f32_to_f16(scale / (t->type == TD_Q8_0 ? 100.0f : 6.0f));

        if (t->type == TD_F32) {
            put(f, &x, 4);
        } else if (block == 1) {
            half = t->type == TD_F16 ? td_f32_to_f16(x) : td_f32_to_bf16(x);
            put(f, &half, 2);
        } else {
            put(f, &half, 2);
            for (size_t k = 2; k < td_dtype_info(t->type)->block_bytes; k++)
                fputc((int)(rnd() & 255), f);
        }
    }
}

/* A GGUF file (version 3, little-endian) at `path`. */
static void write_model(const struct shape *s, const char *path)
{
    static const uint32_t type_id[TD_N_DTYPES] = {
        [TD_F32] = 0, [TD_F16] = 1, [TD_BF16] = 30, [TD_Q8_0] = 8, [TD_Q4_0] = 2};
    struct tensor t[64];
    uint32_t n = list_tensors(s, t);
    uint64_t offset = 0;
    float eps = 1e-5f;
    FILE *f = fopen(path, "wb");
    char name[64];

    assert_non_null(f);
    put(f, "GGUF", 4);
    put32(f, 3);
    put64(f, n);
    put64(f, 9);
    put_str(f, "general.architecture");
    put32(f, 8);
    put_str(f, s->arch);
    put_u32_kv(f, s, "block_count", s->n_layers);
    put_u32_kv(f, s, "embedding_length", s->d_model);
    put_u32_kv(f, s, "feed_forward_length", s->d_ff);
    put_u32_kv(f, s, "attention.head_count", s->n_heads);
    put_u32_kv(f, s, "attention.head_count_kv", s->n_kv_heads);
    put_u32_kv(f, s, "attention.key_length", s->head_dim);
    put_u32_kv(f, s, "context_length", MAX_LEN);
    snprintf(name, sizeof name, "%s.attention.layer_norm_rms_epsilon", s->arch);
    put_str(f, name);
    put32(f, 6);
    put(f, &eps, 4);
    for (uint32_t i = 0; i < n; i++) {
        put_str(f, t[i].name);
        put32(f, t[i].rows ? 2 : 1);
        put64(f, t[i].cols);
        if (t[i].rows)
            put64(f, t[i].rows);
        put32(f, type_id[t[i].type]);
        put64(f, offset);
        offset = (offset + tensor_bytes(&t[i]) + 31) / 32 * 32;
    }
    for (uint32_t i = 0; i < n; i++) {
        while (ftell(f) % 32)
            fputc(0, f);
        put_tensor(f, &t[i]);
    }
    while (ftell(f) % 32)
        fputc(0, f);
    assert_int_equal(fclose(f), 0);
}

struct model {
    struct td_checkpoint *ck;
    struct td_plan_model plan;
    char path[64];
};

static void open_model(const struct shape *s, struct model *m)
{
    struct td_err err = {0};
    int fd;

    snprintf(m->path, sizeof m->path, "/tmp/test_forward.XXXXXX");
    fd = mkstemp(m->path);
    assert_true(fd >= 0);
    close(fd);
    write_model(s, m->path);
    if (td_checkpoint_open(m->path, &m->ck, &err))
        fail_msg("%s: %s", err.context, err.cause);
    assert_int_equal(td_plan_model_read(m->ck, &m->plan, &err), TD_OK);
}

static void close_model(struct model *m)
{
    td_checkpoint_close(m->ck);
    unlink(m->path);
}

/* ---- what is run ---- */

/* What the ranks exchange through. */
enum transport { SIM, ONE_HOST, TWO_HOSTS, N_TRANSPORTS };

/* Sequences and the steps that compute them. The logits of every position are wanted, of some only the largest. */
struct script {
    uint32_t len[N_SEQS];
    uint32_t token[N_SEQS][MAX_LEN];
    uint32_t block[N_SEQS][BLOCKS_PER_SEQ];
    uint32_t n_steps;
    struct td_step step[MAX_STEPS];
    bool some_top;
    enum transport transport;
    bool is_timed;    /* in virtual time */
    uint64_t lost_ns; /* in it, when the victim is lost; 0: before a step */
    bool is_cut;      /* steps with two rows or more go in two to four parts */
};

static void begin_step(struct script *s)
{
    struct td_err err;

    assert_true(s->n_steps < MAX_STEPS);
    assert_int_equal(td_step_open(&s->step[s->n_steps], MAX_ROWS, N_SEQS, N_BLOCKS, &err), TD_OK);
    td_step_reset(&s->step[s->n_steps], TD_STEP_RUN, s->n_steps);
    s->n_steps++;
}

static void add_rows(struct script *s, uint32_t seq, uint32_t from, uint32_t n)
{
    struct td_step *step = &s->step[s->n_steps - 1];

    assert_true(td_step_add_seq(step, s->block[seq], BLOCKS_PER_SEQ, UINT32_MAX));
    for (uint32_t i = from; i < from + n; i++)
        if (s->some_top && rnd() % 3 == 0)
            assert_true(td_step_add_top_row(step, s->token[seq][i], i, 1 + rnd() % TD_TOP_MAX));
        else
            assert_true(td_step_add_row(step, s->token[seq][i], i, TD_WANT_LOGITS));
}

static void make_sequences(struct script *s, const struct shape *shape)
{
    static const uint32_t len[N_SEQS] = {9, 70, 1, MAX_LEN, 33};
    uint32_t all[N_BLOCKS];

    memset(s, 0, sizeof *s);
    for (uint32_t i = 0; i < N_BLOCKS; i++) { /* pages lie anywhere */
        uint32_t at = rnd() % (i + 1);

        all[i] = all[at];
        all[at] = i;
    }
    for (uint32_t q = 0; q < N_SEQS; q++) {
        s->len[q] = len[q];
        memcpy(s->block[q], all + q * BLOCKS_PER_SEQ, sizeof s->block[q]);
        for (uint32_t i = 0; i < len[q]; i++)
            s->token[q][i] = rnd() % shape->n_vocab;
    }
}

static void steps_alone(struct script *s)
{
    for (uint32_t q = 0; q < N_SEQS; q++)
        for (uint32_t i = 0; i < s->len[q]; i++) {
            begin_step(s);
            add_rows(s, q, i, 1);
        }
}

/* Random chunks of random sequences, until all are done. */
static void steps_mixed(struct script *s)
{
    uint32_t done[N_SEQS] = {0}, left = N_SEQS;

    s->some_top = true;
    while (left) {
        uint32_t room = MAX_ROWS, first = rnd() % N_SEQS;
        bool begun = false;

        for (uint32_t k = 0; k < N_SEQS; k++) {
            uint32_t q = (first + k) % N_SEQS, todo = s->len[q] - done[q], n;

            if (!todo || !room || rnd() % 4 == 0)
                continue;
            n = rnd() % 3 ? 1 + rnd() % MAX_ROWS : 1;
            n = n < todo ? n : todo;
            n = n < room ? n : room;
            if (!begun)
                begin_step(s);
            begun = true;
            add_rows(s, q, done[q], n);
            done[q] += n;
            room -= n;
            left -= done[q] == s->len[q];
        }
        if (begun && s->is_cut) {
            struct td_step *step = &s->step[s->n_steps - 1];

            step->part_rows = step->n_rows > 1 ? (step->n_rows + 3) / 4 +
                                                     rnd() % (step->n_rows - (step->n_rows + 3) / 4)
                                               : 0;
        }
    }
    s->some_top = false;
}

static void drop_steps(struct script *s)
{
    while (s->n_steps)
        td_step_close(&s->step[--s->n_steps]);
}

/* Logits by sequence and position. */
static float *at(const struct shape *shape, float *logits, uint32_t seq, uint32_t position)
{
    return logits + ((size_t)seq * MAX_LEN + position) * shape->n_vocab;
}

static size_t logits_bytes(const struct shape *shape)
{
    return (size_t)N_SEQS * MAX_LEN * shape->n_vocab * sizeof(float);
}

/* ---- groups ---- */

struct layout {
    uint32_t n, tp, pp;
    uint64_t share[MAX_RANKS]; /* share[0] 0: equal */
};

static const struct layout LAYOUTS[] = {
    {1, 1, 1, {0}},
    {2, 2, 1, {0}},
    {3, 3, 1, {0}},
    {4, 4, 1, {0}},
    {5, 5, 1, {0}},
    {8, 8, 1, {0}},
    {3, 3, 1, {3, 1, 1}},
    {4, 4, 1, {1, 1000, 1, 30}},
    {2, 2, 1, {1, 100000}},
    {2, 1, 2, {0}},
    {4, 2, 2, {0}},
    {6, 3, 2, {1, 1, 5, 4, 1, 1}},
    {3, 1, 3, {0}},
    {8, 2, 4, {0}},
    {8, 4, 2, {9, 1, 1, 1, 1, 1, 1, 9}},
};

struct rank {
    pthread_t thread;
    const struct shape *shape;
    const struct model *model;
    const struct layout *layout;
    struct script *script;
    struct td_comm *world;
    const char *isa;
    float *logits;    /* rank 0: by sequence and position */
    float *expected;  /* rank 0: the same from another run; NULL: none */
    bool overlaps;    /* stages work on different steps */
    uint32_t kill_at; /* this rank is lost before that step; UINT32_MAX: never */
    enum td_dtype kv;
    enum td_status status;
    struct td_err err;
    struct td_plan *plan;
    struct td_shard_stats stats;
    uint64_t one_row_bytes; /* sent by the last step of one row */
    uint64_t end_ns;        /* in virtual time */
};

static enum td_status open_rank(struct rank *r, struct td_kern **kern, struct td_shard **shard)
{
    const struct layout *l = r->layout;
    struct td_plan_params p = {.n_ranks = l->n,
                               .tp = l->tp,
                               .pp = l->pp,
                               .share = l->share[0] ? l->share : NULL,
                               .kv_dtype = r->kv,
                               .block_tokens = BLOCK_TOKENS,
                               .max_model_len = MAX_LEN,
                               .max_num_seqs = MAX_ROWS,
                               .max_batched_tokens = MAX_ROWS};
    struct td_shard_params s = {.ck = r->model->ck, .model = &r->model->plan, .world = r->world};
    struct td_kern_cpu_params k = {.n_threads = 1 + td_comm_rank(r->world) % 2, .isa = r->isa};
    enum td_status st = td_kern_cpu_open(&k, kern, &r->err);

    r->plan = calloc(1, sizeof *r->plan);
    st = st ? st : td_plan_make(&r->model->plan, &p, r->plan, &r->err);
    s.plan = r->plan;
    s.kern = *kern;
    st = st ? st : td_shard_open(&s, shard, &r->err);
    if (!st)
        td_shard_set_deadline(*shard, 20000000000u); /* a bug fails instead of hanging */
    return st;
}

/* Whether `top` lists the largest of a row, found one after the other. */
static bool is_top_of(const float *row, uint32_t n_vocab, const struct td_top *top, uint32_t n_top)
{
    bool taken[MAX_VOCAB] = {false};

    for (uint32_t k = 0; k < n_top; k++) {
        uint32_t best = UINT32_MAX;

        for (uint32_t v = 0; v < n_vocab; v++)
            if (!taken[v] && (best == UINT32_MAX || row[v] > row[best]))
                best = v;
        if (top[k].id != best)
            return false;
        if (best == UINT32_MAX)
            continue;
        if (memcmp(&top[k].value, &row[best], sizeof row[best]) != 0)
            return false;
        taken[best] = true;
    }
    return true;
}

/* A row of which only the largest logits came is compared here, and then stands as expected. */
static void keep_result(struct rank *r, const struct td_step *step,
                        const struct td_step_result *result)
{
    const float *logits = result->logits;
    const struct td_top *top = result->top;
    const uint32_t n_vocab = r->shape->n_vocab;
    uint32_t row = 0;

    for (uint32_t q = 0; q < step->n_seqs; q++) {
        uint32_t seq = 0;

        while (r->script->block[seq][0] != step->table[step->seqs[q].first_block])
            seq++;
        for (uint32_t i = 0; i < step->seqs[q].n_rows; i++, row++) {
            uint32_t position = step->rows[row].position;
            float *kept = at(r->shape, r->logits, seq, position);

            if (step->rows[row].want == TD_WANT_LOGITS) {
                memcpy(kept, logits, n_vocab * sizeof *kept);
                logits += n_vocab;
                continue;
            }
            if (r->expected) {
                const float *want = at(r->shape, r->expected, seq, position);

                if (!is_top_of(want, n_vocab, top, result->n_top))
                    r->status = td_err_set(&r->err, TD_CORRUPT,
                                           "the %u largest logits of position %u are wrong",
                                           result->n_top, position);
                memcpy(kept, want, n_vocab * sizeof *kept);
            }
            top += result->n_top;
        }
    }
}

/* Turn by turn, as many steps under way as there are stages. */
static enum td_status run_turns(struct rank *r, struct td_shard *shard)
{
    uint32_t n_turns = r->script->n_steps + r->layout->pp - 1, n_complete = 0;
    enum td_status st = TD_OK;

    for (uint32_t turn = 0; !st && turn < n_turns; turn++) {
        struct td_step *step = turn < r->script->n_steps ? &r->script->step[turn] : NULL;
        struct td_step_result result;

        st = step ? td_shard_front(shard, step, &r->err) : TD_OK;
        st = st ? st : td_shard_shift(shard, step, &result, &r->err);
        st = st ? st : td_shard_back(shard, &r->err);
        if (st || !result.is_complete)
            continue;
        if (turn + 1 < r->layout->pp || result.number != r->script->step[n_complete].number)
            return td_err_set(&r->err, TD_INTERNAL, "turn %u completes step %llu", turn,
                              (unsigned long long)result.number);
        if (r->logits)
            keep_result(r, &r->script->step[n_complete], &result);
        n_complete++;
    }
    return st || n_complete == r->script->n_steps
               ? st
               : td_err_set(&r->err, TD_INTERNAL, "%u steps are complete", n_complete);
}

static void *run_rank(void *arg)
{
    struct rank *r = arg;
    struct td_kern *kern = NULL;
    struct td_shard *shard = NULL;
    struct td_shard_stats before, after;

    td_comm_set_deadline(r->world, 20000000000u);
    fesetround(FE_UPWARD); /* as a library may leave it: what is computed must not depend on it */
    r->status = open_rank(r, &kern, &shard);
    if (!r->status && r->overlaps)
        r->status = run_turns(r, shard);
    for (uint32_t i = 0; !r->overlaps && !r->status && i < r->script->n_steps; i++) {
        const struct td_step *step = &r->script->step[i];
        struct td_step_result result;

        if (i == r->kill_at)
            td_comm_sim_kill(r->world);
        td_shard_stats(shard, &before);
        r->status = td_shard_step(shard, step, &result, &r->err);
        td_shard_stats(shard, &after);
        if (step->n_rows == 1)
            r->one_row_bytes = after.exchanged_bytes - before.exchanged_bytes;
        if (!r->status && r->logits)
            keep_result(r, step, &result);
    }
    if (shard)
        td_shard_stats(shard, &r->stats);
    r->end_ns = r->script->is_timed ? td_comm_sim_now(r->world) : 0;
    td_shard_close(shard);
    td_kern_close(kern);
    td_comm_close(r->world);
    return NULL;
}

static const char *isa_of(uint32_t i)
{
    static const char *const names[] = {"ref", "avx2", "avx512"};
    struct td_kern_cpu_params p = {.n_threads = 1, .isa = names[i % 3]};
    struct td_kern *kern;

    if (i % 3 == 0 || td_kern_cpu_open(&p, &kern, NULL))
        return "ref";
    td_kern_close(kern);
    return names[i % 3];
}

static const struct td_comm_simtime_model model_of_links = {
    .net = {.latency_ns = 1000, .message_ns = 100, .byte_ps = 1000},
    .host = {.latency_ns = 1000, .message_ns = 100, .byte_ps = 1000}};

static void open_world(enum transport transport, uint32_t n, struct td_comm **comms)
{
    static const uint32_t hosts[MAX_RANKS] = {0, 0, 1, 1, 1, 1, 1, 1};
    struct td_err err;

    if (transport == SIM)
        assert_int_equal(td_comm_sim_open(n, comms, &err), TD_OK);
    else
        assert_int_equal(td_comm_shm_open(n, transport == TWO_HOSTS ? hosts : NULL, comms, &err),
                         TD_OK);
}

/* Runs the script on every rank; `ranks` keeps what came of it, with the plans, which the caller frees. */
static void run_group(const struct shape *shape, const struct model *model,
                      const struct layout *layout, struct script *script, uint32_t first_isa,
                      enum td_dtype kv, float *logits, float *expected, uint32_t victim,
                      struct rank *ranks)
{
    struct td_comm *comms[MAX_RANKS];

    open_world(script->transport, layout->n, comms);
    if (script->is_timed)
        assert_int_equal(td_comm_sim_set_model(comms[0], &model_of_links, NULL), TD_OK);
    if (script->lost_ns && victim < layout->n)
        td_comm_sim_kill_at(comms[victim], script->lost_ns);
    for (uint32_t i = 0; i < layout->n; i++) {
        ranks[i] = (struct rank){.shape = shape,
                                 .model = model,
                                 .layout = layout,
                                 .script = script,
                                 .world = comms[i],
                                 .isa = isa_of(first_isa ? first_isa + i : 0),
                                 .logits = i == 0 ? logits : NULL,
                                 .expected = i == 0 ? expected : NULL,
                                 .overlaps = expected && layout->pp > 1,
                                 .kill_at = i == victim && !script->lost_ns ? 2 : UINT32_MAX,
                                 .kv = kv};
        assert_int_equal(pthread_create(&ranks[i].thread, NULL, run_rank, &ranks[i]), 0);
    }
    for (uint32_t i = 0; i < layout->n; i++)
        pthread_join(ranks[i].thread, NULL);
}

static void free_plans(struct rank *ranks, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        free(ranks[i].plan);
}

/* ---- tests ---- */

static void check_equal(const struct shape *shape, const struct script *script, float *want,
                        float *got, const char *what)
{
    for (uint32_t q = 0; q < N_SEQS; q++)
        for (uint32_t i = 0; i < script->len[q]; i++)
            for (uint32_t v = 0; v < shape->n_vocab; v++) {
                float a = at(shape, want, q, i)[v], b = at(shape, got, q, i)[v];

                if (!isfinite(a) || memcmp(&a, &b, sizeof a) != 0)
                    fail_msg("%s: sequence %u, position %u, token %u: %a, expected %a", what, q, i,
                             v, (double)b, (double)a);
            }
}

/* The ranks' bytes are those of the plan, and without what is held twice those of the model. */
static void check_bytes(const struct layout *layout, const struct rank *ranks)
{
    size_t held = 0;

    for (uint32_t i = 0; i < layout->n; i++) {
        const struct td_plan_rank *r = &ranks[0].plan->rank[i];

        assert_memory_equal(ranks[i].plan, ranks[0].plan, sizeof *ranks[0].plan);
        assert_int_equal(ranks[i].stats.weight_bytes, r->weight_bytes);
        assert_int_equal(ranks[i].stats.kv_bytes, r->kv_bytes);
        held += r->weight_bytes - r->replicated_bytes;
    }
    assert_int_equal(held, ranks[0].plan->model_bytes);
}

/* Every layout over the transport against one rank of ref.c, token by token; in every step of several rows, if so asked, two to four
 * parts. */
static void check_layouts(uint64_t first_seed, enum transport transport, bool is_cut)
{
    static struct script script;
    struct rank ranks[MAX_RANKS];
    char what[160];

    seed = first_seed;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (uint32_t k = 0; k < N_SHAPES; k++) {
        const struct shape *shape = &SHAPES[k];
        float *want = calloc(1, logits_bytes(shape)), *got = calloc(1, logits_bytes(shape));
        enum td_dtype kv = k % 3 == 0 ? TD_F32 : k % 3 == 1 ? TD_F16 : TD_BF16;
        struct model model;

        open_model(shape, &model);
        make_sequences(&script, shape);
        script.transport = transport;
        script.is_cut = is_cut;
        steps_alone(&script);
        run_group(shape, &model, &LAYOUTS[0], &script, 0, kv, want, NULL, UINT32_MAX, ranks);
        if (ranks[0].status)
            fail_msg("shape %u: %s", k, ranks[0].err.cause);
        free_plans(ranks, 1);
        for (uint32_t l = 0; l < sizeof LAYOUTS / sizeof LAYOUTS[0]; l++) {
            const struct layout *layout = &LAYOUTS[l];

            if (layout->pp > shape->n_layers)
                continue;
            drop_steps(&script);
            steps_mixed(&script);
            memset(got, 0xff, logits_bytes(shape));
            run_group(shape, &model, layout, &script, 1 + l, kv, got, want, UINT32_MAX, ranks);
            snprintf(what, sizeof what,
                     "transport %u, shape %u, layout %u (tp %u, pp %u), isa from %s", transport, k,
                     l, layout->tp, layout->pp, isa_of(1 + l));
            for (uint32_t i = 0; i < layout->n; i++)
                if (ranks[i].status)
                    fail_msg("%s: rank %u: %s", what, i, ranks[i].err.cause);
            check_equal(shape, &script, want, got, what);
            check_bytes(layout, ranks);
            free_plans(ranks, layout->n);
        }
        drop_steps(&script);
        close_model(&model);
        free(want);
        free(got);
    }
}

static void test_forward_gives_equal_logits_in_every_layout_batch_and_isa(void **state)
{
    (void)state;
    check_layouts(20240501, SIM, false);
}

static void test_forward_gives_equal_logits_in_parts(void **state)
{
    (void)state;
    for (enum transport t = 0; t < N_TRANSPORTS; t++)
        check_layouts(20240601 + (uint64_t)t, t, true);
}

static void test_forward_sends_for_one_row_what_the_plan_says(void **state)
{
    static struct script script;
    struct rank ranks[MAX_RANKS];

    (void)state;
    seed = 7;
    for (uint32_t k = 0; k < 4; k++) {
        const struct shape *shape = &SHAPES[k];
        float *logits = calloc(1, logits_bytes(shape));
        struct model model;

        open_model(shape, &model);
        make_sequences(&script, shape);
        begin_step(&script);
        add_rows(&script, 2, 0, 1);
        for (uint32_t l = 0; l < sizeof LAYOUTS / sizeof LAYOUTS[0]; l++) {
            size_t sent = 0;

            if (LAYOUTS[l].pp > shape->n_layers)
                continue;
            run_group(shape, &model, &LAYOUTS[l], &script, 1, TD_F16, logits, NULL, UINT32_MAX,
                      ranks);
            for (uint32_t i = 0; i < LAYOUTS[l].n; i++) {
                assert_int_equal(ranks[i].status, TD_OK);
                sent += ranks[i].one_row_bytes;
            }
            assert_int_equal(sent, td_plan_exchanged_bytes(ranks[0].plan));
            free_plans(ranks, LAYOUTS[l].n);
        }
        drop_steps(&script);
        close_model(&model);
        free(logits);
    }
}

static void test_forward_ends_on_every_rank_when_one_is_lost(void **state)
{
    static struct script script;
    const struct shape *shape = &SHAPES[0];
    float *logits = calloc(1, logits_bytes(shape));
    struct rank ranks[MAX_RANKS];
    struct model model;

    (void)state;
    seed = 99;
    open_model(shape, &model);
    make_sequences(&script, shape);
    steps_mixed(&script);
    for (uint32_t victim = 0; victim < 4; victim++) {
        const struct layout *layout = victim % 2 ? &LAYOUTS[10] : &LAYOUTS[3];

        run_group(shape, &model, layout, &script, 1, TD_F32, logits, NULL, victim, ranks);
        for (uint32_t i = 0; i < layout->n; i++) {
            assert_int_equal(ranks[i].status, TD_PEER_LOST);
            assert_true(strlen(ranks[i].err.cause) > 10);
        }
        free_plans(ranks, layout->n);
    }
    drop_steps(&script);
    close_model(&model);
    free(logits);
}

/* At many moments of a few steps in parts; most of them lie inside of the sums. */
static void test_forward_in_parts_ends_on_every_rank_when_one_is_lost(void **state)
{
    enum { N_MOMENTS = 40 };
    static struct script script;
    const struct shape *shape = &SHAPES[0];
    const struct layout *layout = &LAYOUTS[2];
    struct rank ranks[MAX_RANKS];
    struct model model;
    uint64_t end_ns;
    uint32_t n_in_sums = 0;

    (void)state;
    seed = 98;
    open_model(shape, &model);
    make_sequences(&script, shape);
    script.is_timed = script.is_cut = true;
    steps_mixed(&script);
    while (script.n_steps > 4)
        td_step_close(&script.step[--script.n_steps]);
    run_group(shape, &model, layout, &script, 1, TD_F32, NULL, NULL, UINT32_MAX, ranks);
    end_ns = ranks[0].end_ns;
    assert_true(end_ns > N_MOMENTS);
    free_plans(ranks, layout->n);
    for (uint32_t k = 1; k < N_MOMENTS; k++) {
        uint32_t victim = k % layout->n;

        script.lost_ns = end_ns * k / N_MOMENTS;
        run_group(shape, &model, layout, &script, 1, TD_F32, NULL, NULL, victim, ranks);
        for (uint32_t i = 0; i < layout->n; i++) {
            assert_int_equal(ranks[i].status, TD_PEER_LOST);
            n_in_sums += i != victim && strstr(ranks[i].err.cause, "tree_sum: rank") != NULL;
        }
        free_plans(ranks, layout->n);
    }
    assert_true(n_in_sums > N_MOMENTS / 2);
    drop_steps(&script);
    close_model(&model);
}

/* Two sums per layer and part. */
static void test_forward_exchanges_in_parts_what_the_step_says(void **state)
{
    static struct script script;
    const struct shape *shape = &SHAPES[1];
    struct rank ranks[MAX_RANKS];
    struct model model;
    uint64_t n_whole;

    (void)state;
    seed = 11;
    open_model(shape, &model);
    make_sequences(&script, shape);
    begin_step(&script);
    add_rows(&script, 1, 0, 20);
    for (uint32_t l = 1; l < 4; l++) {
        script.step[0].part_rows = 0;
        run_group(shape, &model, &LAYOUTS[l], &script, 1, TD_F16, NULL, NULL, UINT32_MAX, ranks);
        n_whole = ranks[0].stats.n_exchanges;
        free_plans(ranks, LAYOUTS[l].n);
        script.step[0].part_rows = 7;
        run_group(shape, &model, &LAYOUTS[l], &script, 1, TD_F16, NULL, NULL, UINT32_MAX, ranks);
        for (uint32_t i = 0; i < LAYOUTS[l].n; i++)
            assert_int_equal(ranks[i].status, TD_OK);
        assert_int_equal(ranks[0].stats.n_exchanges, n_whole + 2 * 2 * shape->n_layers);
        free_plans(ranks, LAYOUTS[l].n);
    }
    drop_steps(&script);
    close_model(&model);
}

/* Opens `shape` on one rank; the error that came of it. */
static enum td_status refused(const struct shape *shape, struct td_err *err)
{
    static struct script script;
    struct rank rank;
    struct model model;

    open_model(shape, &model);
    memset(&script, 0, sizeof script);
    run_group(shape, &model, &LAYOUTS[0], &script, 0, TD_F16, NULL, NULL, UINT32_MAX, &rank);
    free_plans(&rank, 1);
    close_model(&model);
    *err = rank.err;
    return rank.status;
}

static void test_forward_refuses_heads_wider_than_the_device_has_when_it_opens(void **state)
{
    struct shape shape = SHAPES[0];
    struct td_err err;

    (void)state;
    shape.head_dim = 2 * TD_KERN_MAX_HEAD_DIM;
    assert_int_equal(refused(&shape, &err), TD_UNSUPPORTED);
    assert_non_null(strstr(err.cause, "512"));
    shape.head_dim = TD_KERN_MAX_HEAD_DIM;
    assert_int_equal(refused(&shape, &err), TD_OK);
}

static void test_forward_refuses_a_bad_step_and_goes_on(void **state)
{
    static struct script script;
    struct td_kern_cpu_params k = {.n_threads = 1};
    struct td_plan_params p = {.n_ranks = 1,
                               .kv_dtype = TD_F16,
                               .block_tokens = BLOCK_TOKENS,
                               .max_num_seqs = 2,
                               .max_batched_tokens = 4};
    struct td_plan *plan = calloc(1, sizeof *plan);
    struct td_shard_params params = {.plan = plan};
    struct td_shard *shard;
    struct td_step_result result;
    struct td_step step;
    struct model model;
    struct td_err err;

    (void)state;
    seed = 5;
    open_model(&SHAPES[0], &model);
    make_sequences(&script, &SHAPES[0]);
    params.ck = model.ck;
    params.model = &model.plan;
    assert_int_equal(td_kern_cpu_open(&k, &params.kern, &err), TD_OK);
    assert_int_equal(td_comm_self_open(&params.world, &err), TD_OK);
    assert_int_equal(td_plan_make(&model.plan, &p, plan, &err), TD_OK);
    assert_int_equal(td_shard_open(&params, &shard, &err), TD_OK);
    assert_int_equal(td_step_open(&step, 8, 2, 32, &err), TD_OK);

    td_step_reset(&step, TD_STEP_RUN, 0);
    assert_int_equal(td_shard_step(shard, &step, &result, &err), TD_INVALID); /* no row */
    td_step_add_seq(&step, (const uint32_t[]){0}, 1, UINT32_MAX);
    td_step_add_row(&step, SHAPES[0].n_vocab, 0, TD_WANT_LOGITS);
    assert_int_equal(td_shard_step(shard, &step, &result, &err), TD_INVALID); /* no such token */
    assert_non_null(strstr(err.cause, "token 40"));
    step.rows[0].token = 1;
    step.part_rows = 1;
    assert_int_equal(td_shard_step(shard, &step, &result, &err), TD_INVALID); /* nothing behind */
    assert_non_null(strstr(err.cause, "cut after every 1"));
    step.part_rows = 0;
    step.rows[0].position = BLOCK_TOKENS;
    assert_int_equal(td_shard_step(shard, &step, &result, &err), TD_INVALID); /* past its blocks */
    step.rows[0].position = 0;
    step.table[0] = plan->n_blocks;
    assert_int_equal(td_shard_step(shard, &step, &result, &err), TD_INVALID); /* no such block */
    step.table[0] = 0;
    for (uint32_t i = 1; i < 3; i++)
        td_step_add_row(&step, 1, i, TD_WANT_LOGITS);
    assert_int_equal(td_shard_step(shard, &step, &result, &err), TD_INVALID); /* 3 > 2 logits */
    step.rows[1].want = TD_WANT_TOP;
    assert_int_equal(td_shard_step(shard, &step, &result, &err), TD_INVALID); /* 3 > 2 results */
    step.rows[2].want = TD_WANT_NONE;
    assert_int_equal(td_shard_step(shard, &step, &result, &err), TD_INVALID); /* n_top 0 */
    step.n_top = TD_TOP_MAX + 1;
    assert_int_equal(td_shard_step(shard, &step, &result, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "65 largest"));
    assert_null(result.logits);
    step.n_top = 2;
    assert_int_equal(td_shard_step(shard, &step, &result, &err), TD_OK);
    assert_true(isfinite(result.logits[0]));
    assert_true(result.top[0].value >= result.top[1].value);
    assert_int_equal(result.n_top, 2);

    td_step_close(&step);
    td_shard_close(shard);
    td_comm_close(params.world);
    td_kern_close(params.kern);
    close_model(&model);
    free(plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forward_gives_equal_logits_in_every_layout_batch_and_isa),
        cmocka_unit_test(test_forward_gives_equal_logits_in_parts),
        cmocka_unit_test(test_forward_sends_for_one_row_what_the_plan_says),
        cmocka_unit_test(test_forward_ends_on_every_rank_when_one_is_lost),
        cmocka_unit_test(test_forward_in_parts_ends_on_every_rank_when_one_is_lost),
        cmocka_unit_test(test_forward_exchanges_in_parts_what_the_step_says),
        cmocka_unit_test(test_forward_refuses_heads_wider_than_the_device_has_when_it_opens),
        cmocka_unit_test(test_forward_refuses_a_bad_step_and_goes_on),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
