/* make_seeds FOLDER: writes the seeds that no text file can hold, FOLDER/<target>/<name>, with the project's own encoders
 * where there are some. */
#include "daemon/engine/wire.h"
#include "daemon/journal/batch.h"
#include "daemon/journal/record.h"
#include "proto/grpc.h"
#include "proto/rpc.h"
#include "shard/gguf.h"
#include "shard/step.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char *folder;

static void need(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "make_seeds: %s\n", what);
        exit(1);
    }
}

static void append(struct td_bytes *b, const void *data, size_t n)
{
    need(td_bytes_append(b, data, n) == TD_OK, "no memory");
}

/* Writes and empties `b`. */
static void save(const char *target, const char *name, struct td_bytes *b)
{
    char path[4096];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", folder, target);
    need(mkdir(path, 0777) == 0 || errno == EEXIST, path);
    snprintf(path, sizeof path, "%s/%s/%s", folder, target, name);
    f = fopen(path, "wb");
    need(f != NULL, path);
    need(fwrite(b->data, 1, b->len, f) == b->len, path);
    need(fclose(f) == 0, path);
    td_bytes_clear(b);
}

/* ---- GGUF ---- */

static void put32(struct td_bytes *b, uint32_t v)
{
    append(b, &v, sizeof v);
}

static void put64(struct td_bytes *b, uint64_t v)
{
    append(b, &v, sizeof v);
}

static void put_str(struct td_bytes *b, const char *s)
{
    put64(b, strlen(s));
    append(b, s, strlen(s));
}

static void kv_u32(struct td_bytes *b, const char *key, uint32_t v)
{
    put_str(b, key);
    put32(b, TD_GGUF_U32);
    put32(b, v);
}

static void kv_f32(struct td_bytes *b, const char *key, float v)
{
    put_str(b, key);
    put32(b, TD_GGUF_F32);
    append(b, &v, sizeof v);
}

static void kv_str(struct td_bytes *b, const char *key, const char *v)
{
    put_str(b, key);
    put32(b, TD_GGUF_STRING);
    put_str(b, v);
}

static void kv_strs(struct td_bytes *b, const char *key, const char *const *v, size_t n)
{
    put_str(b, key);
    put32(b, TD_GGUF_ARRAY);
    put32(b, TD_GGUF_STRING);
    put64(b, n);
    for (size_t i = 0; i < n; i++)
        put_str(b, v[i]);
}

static void head(struct td_bytes *b, uint64_t n_tensors, uint64_t n_kv)
{
    append(b, "GGUF", 4);
    put32(b, 3);
    put64(b, n_tensors);
    put64(b, n_kv);
}

/* A model of one layer's sizes with two tensors. */
static void gguf_model(void)
{
    struct td_bytes b = {0};

    head(&b, 2, 11);
    kv_str(&b, "general.architecture", "llama");
    kv_u32(&b, "general.alignment", 32);
    kv_u32(&b, "llama.block_count", 2);
    kv_u32(&b, "llama.embedding_length", 64);
    kv_u32(&b, "llama.feed_forward_length", 96);
    kv_u32(&b, "llama.attention.head_count", 4);
    kv_u32(&b, "llama.attention.head_count_kv", 2);
    kv_u32(&b, "llama.context_length", 128);
    kv_u32(&b, "llama.vocab_size", 40);
    kv_f32(&b, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    kv_f32(&b, "llama.rope.freq_base", 10000.0f);
    put_str(&b, "token_embd.weight");
    put32(&b, 2);
    put64(&b, 32);
    put64(&b, 2);
    put32(&b, 8); /* Q8_0 */
    put64(&b, 0);
    put_str(&b, "output_norm.weight");
    put32(&b, 1);
    put64(&b, 4);
    put32(&b, 0); /* F32 */
    put64(&b, 96);
    while (b.len % 32)
        append(&b, "", 1);
    for (int i = 0; i < 96 + 32; i++)
        append(&b, &i, 1);
    save("fuzz_gguf", "model", &b);
    td_bytes_deinit(&b);
}

/* A byte-level and a SentencePiece-style tokenizer. */
static void gguf_tokenizers(void)
{
    static const char *const bytes[] = {"H", "e", "l", "o", "He", "ll", "\xc4\xa0", "<s>", "</s>"};
    static const char *const merges[] = {"H e", "l l"};
    static const char *const pieces[] = {"<unk>",         "<s>", "</s>", "<0x0A>", "\xe2\x96\x81",
                                         "\xe2\x96\x81H", "H",   "e",    "l",      "ll"};
    struct td_bytes b = {0};

    head(&b, 0, 6);
    kv_str(&b, "tokenizer.ggml.model", "gpt2");
    kv_str(&b, "tokenizer.ggml.pre", "qwen2");
    kv_strs(&b, "tokenizer.ggml.tokens", bytes, sizeof bytes / sizeof *bytes);
    kv_strs(&b, "tokenizer.ggml.merges", merges, sizeof merges / sizeof *merges);
    kv_u32(&b, "tokenizer.ggml.bos_token_id", 7);
    kv_u32(&b, "tokenizer.ggml.eos_token_id", 8);
    save("fuzz_tokgguf", "byte-level", &b);

    head(&b, 0, 6);
    kv_str(&b, "tokenizer.ggml.model", "llama");
    kv_strs(&b, "tokenizer.ggml.tokens", pieces, sizeof pieces / sizeof *pieces);
    put_str(&b, "tokenizer.ggml.scores");
    put32(&b, TD_GGUF_ARRAY);
    put32(&b, TD_GGUF_F32);
    put64(&b, sizeof pieces / sizeof *pieces);
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        float score = -(float)i;

        append(&b, &score, sizeof score);
    }
    put_str(&b, "tokenizer.ggml.token_type");
    put32(&b, TD_GGUF_ARRAY);
    put32(&b, TD_GGUF_I32);
    put64(&b, sizeof pieces / sizeof *pieces);
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++)
        put32(&b, i == 0 ? 2 : i < 3 ? 3 : i == 3 ? 6 : 1);
    kv_u32(&b, "tokenizer.ggml.bos_token_id", 1);
    kv_u32(&b, "tokenizer.ggml.eos_token_id", 2);
    save("fuzz_tokgguf", "sentencepiece", &b);
    td_bytes_deinit(&b);
}

/* ---- safetensors ---- */

static void safetensors(void)
{
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"a.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
        "\"b.weight\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[24,32]}}";
    struct td_bytes b = {0};

    put64(&b, sizeof header - 1);
    append(&b, header, sizeof header - 1);
    for (int i = 0; i < 32; i++)
        append(&b, &i, 1);
    save("fuzz_safetensors", "two", &b);
    td_bytes_deinit(&b);
}

/* ---- Steps ---- */

static void save_step(const char *name, struct td_step *step)
{
    struct td_bytes b = {0};
    size_t n = td_step_encoded_bytes(step);

    append(&b, "\1", 1);
    need(td_bytes_reserve(&b, n) == TD_OK, "no memory");
    td_step_encode(step, b.data + 1);
    b.len += n;
    save("fuzz_step", name, &b);
    td_bytes_deinit(&b);
}

static void steps(void)
{
    static const uint32_t blocks[] = {3, 1, 4};
    const struct td_draw draw = {.inv_t = 1.25, .top_p = 0.9f, .min_p = 0.1f, .u = 0.75f};
    struct td_step step;

    need(td_step_open(&step, 32, 8, 64, NULL) == TD_OK, "no memory");
    save_step("idle", &step);
    td_step_reset(&step, TD_STEP_RUN, 7);
    need(td_step_add_seq(&step, blocks, 3, UINT32_MAX), "a sequence");
    for (uint32_t i = 0; i < 4; i++)
        need(td_step_add_row(&step, i, 10 + i, i == 3 ? TD_WANT_LOGITS : TD_WANT_NONE), "a row");
    need(td_step_add_seq(&step, blocks, 1, 2), "a sequence");
    need(td_step_add_row(&step, 9, 0, TD_WANT_LOGITS), "a row");
    need(td_step_add_top_row(&step, 9, 1, 40), "a row");
    need(td_step_add_draw_row(&step, 9, 2, &draw), "a row");
    save_step("run", &step);
    step.part_rows = 2;
    save_step("cut", &step);
    td_step_reset(&step, TD_STEP_STOP, 8);
    save_step("stop", &step);
    td_step_close(&step);
}

/* ---- gRPC: what our own client and server say to each other ---- */

static enum td_status accept_call(void *user, struct td_grpc_stream *s, struct td_str path,
                                  struct td_err *err)
{
    (void)user;
    (void)s;
    (void)path;
    (void)err;
    return TD_OK;
}

static void echo(void *user, struct td_grpc_stream *s, struct td_str message)
{
    (void)user;
    td_grpc_stream_ack(s, message.len);
    need(td_grpc_stream_send(s, message, NULL) == TD_OK, "an answer");
}

static void end_call(void *user, struct td_grpc_stream *s)
{
    (void)user;
    td_grpc_stream_finish(s, TD_GRPC_OK, TD_STR("100% done"));
}

static size_t move(struct td_grpc *from, struct td_grpc *to, struct td_bytes *log)
{
    char buf[4096];
    size_t n = td_grpc_pull(from, buf, sizeof buf);

    append(log, buf, n);
    need(n == 0 || td_grpc_feed(to, 1, buf, n, NULL) == TD_OK, "a connection");
    return n;
}

static void grpc(const char *name, const char *path)
{
    static const struct td_grpc_callbacks server_calls = {
        .on_call = accept_call, .on_message = echo, .on_half_close = end_call};
    static const struct td_grpc_callbacks client_calls = {0};
    struct td_grpc_meta meta[] = {{TD_STR("authorization"), TD_STR("Bearer k")},
                                  {TD_STR("x-raw-bin"), {"\x01\0\xfe\xff", 4}}};
    struct td_grpc_call_params params = {
        .path = td_str_from(path), .timeout_ns = 1000000000, .meta = meta, .n_meta = 2};
    struct td_grpc *client = NULL, *server = NULL;
    struct td_bytes to_server = {0}, to_client = {0};
    struct td_grpc_stream *s = NULL;

    need(td_grpc_client_open(&client_calls, NULL, NULL, &client, NULL) == TD_OK, "a client");
    need(td_grpc_server_open(&server_calls, NULL, NULL, &server, NULL) == TD_OK, "a server");
    for (int i = 0; i < 2; i++) {
        need(td_grpc_client_call(client, 1, &params, &s, NULL) == TD_OK, "a call");
        need(td_grpc_stream_send(s, TD_STR("hello"), NULL) == TD_OK, "a message");
        td_grpc_stream_half_close(s);
    }
    append(&to_server, "\0", 1); /* the choices of fuzz_grpc.c */
    append(&to_client, "\1", 1);
    while (move(client, server, &to_server) + move(server, client, &to_client) > 0)
        continue;
    save("fuzz_grpc", name, &to_server);
    to_server.len = 0;
    if (strcmp(path, "/t.T/B") == 0)
        save("fuzz_grpc", "to-client", &to_client);
    td_grpc_close(client);
    td_grpc_close(server);
    td_bytes_deinit(&to_server);
    td_bytes_deinit(&to_client);
}

/* ---- HTTP/1.1 ---- */

static void http(void)
{
    static const struct {
        const char *name, *text;
    } seeds[] = {
        {"get", "\4GET /a?q=a%20b&r HTTP/1.1\r\nHost: x\r\n\r\n"
                "GET /t/some%2Fthing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"},
        {"post",
         "\6POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
         "POST /l HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhiGET /a HTTP/1.0\r\n\r\n"},
        {"chunked", "\10POST /s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                    "5;a=b\r\nhello\r\n0\r\n\r\nHEAD /a HTTP/1.1\r\nHost: x\r\n\r\n"},
        {"expect", "\3POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
                   "Content-Length: 3\r\n\r\nabcGET /none HTTP/1.1\r\nHost: x\r\n\r\n"},
        {"options", "\2OPTIONS /a HTTP/1.1\r\nHost: x\r\nOrigin: http://y\r\n"
                    "Access-Control-Request-Method: POST\r\n\r\n"
                    "GET /k HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key\r\n\r\n"},
        {"smuggle", "\12POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
                    "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /a HTTP/1.1\r\n\r\n"},
    };
    struct td_bytes b = {0};

    for (size_t i = 0; i < sizeof seeds / sizeof *seeds; i++) {
        append(&b, seeds[i].text, strlen(seeds[i].text));
        save("fuzz_http1", seeds[i].name, &b);
    }
    td_bytes_deinit(&b);
}

/* ---- Control messages ---- */

static void save_message(const char *name, unsigned char choice, const ProtobufCMessage *message)
{
    struct td_bytes b = {0}, text = {0};

    need(td_rpc_pack(message, &b, NULL) == TD_OK, "a message");
    append(&text, &choice, 1);
    append(&text, b.data, b.len);
    save("fuzz_wire", name, &text);
    td_bytes_deinit(&text);
    td_bytes_deinit(&b);
}

static void wire(void)
{
    enum { FROM_WORKER = TD_RPC_ATTACH << 1, FROM_COORDINATOR = FROM_WORKER | 1 };
    uint32_t prompt[] = {1, 2, 3};
    char stop[] = "\n\n", path[] = "/model";
    struct td_request r;
    struct td_token_event event = {.request_id = 5, .index = 1, .has_token = true};
    struct td_err error;
    struct td_compute_load load = {.path = path, .plan = {.n_ranks = 3, .tp = 3, .pp = 1}};
    struct td_arena arena;
    td_wire_coordinator_message down;
    td_wire_worker_message up;
    Tensord__Worker__V1__Tokens tokens;
    Tensord__Worker__V1__TokenEvent *events[2];

    td_arena_init(&arena, 0, 0);
    td_request_init(&r);
    r.prompt = prompt;
    r.n_prompt = 3;
    r.stops[0] = stop;
    r.stop_bytes[0] = 2;
    r.n_stops = 1;
    r.sampling.dry_multiplier = 1;
    r.sampling.dry_breakers = (const uint8_t *)"\x02\x80";
    r.sampling.n_dry_breaker_bytes = 2;
    r.sampling.n_bias = 1;
    tensord__worker__v1__coordinator_message__init(&down);
    down.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_SUBMIT;
    down.submit = td_wire_submit_make(&r, 1, &arena);
    save_message("submit", FROM_COORDINATOR, &down.base);
    load.plan.share = load.share;
    down.body_case = TENSORD__WORKER__V1__COORDINATOR_MESSAGE__BODY_ASSIGN;
    down.assign = td_wire_assign_make(&load, 1, &arena);
    save_message("assign", FROM_COORDINATOR, &down.base);

    td_err_set(&error, TD_INTERNAL, "broken");
    event.token.n_top = 2;
    events[0] = td_wire_token_make(&event, &arena);
    event = (struct td_token_event){.request_id = 6, .finish = TD_FINISH_ERROR, .error = &error};
    events[1] = td_wire_token_make(&event, &arena);
    tensord__worker__v1__tokens__init(&tokens);
    tokens.n_events = 2;
    tokens.events = events;
    tensord__worker__v1__worker_message__init(&up);
    up.body_case = TENSORD__WORKER__V1__WORKER_MESSAGE__BODY_TOKENS;
    up.tokens = &tokens;
    save_message("tokens", FROM_WORKER, &up.base);
    td_arena_deinit(&arena);
}

/* ---- the journal ---- */

static void save_chosen(const char *name, char choice, const struct td_bytes *body)
{
    struct td_bytes b = {0};

    append(&b, &choice, 1);
    append(&b, body->data, body->len);
    save("fuzz_journal", name, &b);
    td_bytes_deinit(&b);
}

static void journal_batches(void)
{
    const uint32_t ids[] = {7, 8};
    const struct td_str details[] = {TD_STR("a"), TD_STR("bc")};
    const struct td_batch batch = {.part = 2,
                                   .n = 2,
                                   .ids = ids,
                                   .detail = details,
                                   .has_end = true,
                                   .end = {.finish = TD_FINISH_STOP, .n_tokens = 2}};
    struct td_bytes packed = {0}, framed = {0};
    char len;

    need(td_batch_encode(&batch, &packed, NULL) == TD_OK, "a batch");
    len = (char)packed.len;
    append(&framed, &len, 1);
    append(&framed, packed.data, packed.len);
    save_chosen("batches", 1, &framed);
    td_bytes_deinit(&framed);
    td_bytes_deinit(&packed);
}

static void journal(void)
{
    uint32_t prompt[] = {1, 2, 3};
    struct td_request r;
    struct td_record record = {.id = TD_STR("cmpl-1"),
                               .owner = 9,
                               .idempotency = TD_STR("again"),
                               .model_hash = TD_STR("0123456789abcdef0123456789abcdef"),
                               .api = TD_RECORD_COMPLETIONS,
                               .prompts = &r,
                               .n_prompts = 1,
                               .n_choices = 2,
                               .service = TD_STR("blob"),
                               .accepted_ms = 1790000000000};
    struct td_bytes packed = {0};

    td_request_init(&r);
    r.prompt = prompt;
    r.n_prompt = 3;
    need(td_record_encode(&record, &packed, NULL) == TD_OK, "a record");
    save_chosen("record", 0, &packed);
    td_bytes_clear(&packed);
    append(&packed, "\0\0\x2c\0\0\x10\x20\1", 8); /* no change, and one in the second page */
    save_chosen("changes", 2, &packed);
    td_bytes_deinit(&packed);
    journal_batches();
}

int main(int argc, char **argv)
{
    need(argc == 2, "usage: make_seeds FOLDER");
    folder = argv[1];
    need(mkdir(folder, 0777) == 0 || errno == EEXIST, folder);
    gguf_model();
    gguf_tokenizers();
    safetensors();
    steps();
    grpc("bidi", "/t.T/B");
    grpc("unary", "/t.T/U");
    grpc("slow", "/t.T/W");
    http();
    wire();
    journal();
    return 0;
}
