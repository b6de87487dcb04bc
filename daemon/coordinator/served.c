/* The served model's text side (declared in coordinator.h and served.h). */
#include "daemon/coordinator/served.h"

#include "daemon/engine/draftmodel.h"
#include "shard/checkpoint.h"
#include "shard/jsonalloc.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* generation_config.json's sampling over OpenAI's defaults, as other servers of these files do. */
static enum td_status read_defaults(struct td_str json, struct td_sampling *s, struct td_err *err)
{
    json_error_t why;
    json_t *root = td_jsonalloc_parse(json, 0, &why), *v;
    struct td_sampling wish = *s;

    if (!root && json_error_code(&why) == json_error_out_of_memory)
        return td_err_set(err, TD_NO_MEMORY, "no memory for generation_config.json");
    if (!json_is_object(root)) {
        json_decref(root);
        return TD_OK;
    }
    if (json_is_number(v = json_object_get(root, "temperature")))
        wish.temperature = (float)json_number_value(v);
    if (json_is_number(v = json_object_get(root, "top_p")))
        wish.top_p = (float)json_number_value(v);
    v = json_object_get(root, "top_k");
    if (json_is_integer(v) && json_integer_value(v) >= -1 && json_integer_value(v) <= INT32_MAX)
        wish.top_k = (int32_t)json_integer_value(v);
    if (json_is_number(v = json_object_get(root, "min_p")))
        wish.min_p = (float)json_number_value(v);
    if (json_is_number(v = json_object_get(root, "typical_p")))
        wish.typical_p = (float)json_number_value(v);
    if (json_is_number(v = json_object_get(root, "repetition_penalty")))
        wish.repetition_penalty = (float)json_number_value(v);
    if (json_is_false(json_object_get(root, "do_sample")))
        wish.temperature = 0.0f;
    if (td_sampling_validate(&wish, 0, NULL) == TD_OK)
        *s = wish;
    json_decref(root);
    return TD_OK;
}

/* "llama-3" of "/models/llama-3/" and "m" of "m.gguf". */
static char *name_of(const char *path)
{
    size_t len = strlen(path), begin;
    char *name;

    while (len > 1 && path[len - 1] == '/')
        len--;
    begin = len;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    name = strndup(path + begin, len - begin);
    if (name && len - begin > 5 && strcmp(name + (len - begin) - 5, ".gguf") == 0)
        name[len - begin - 5] = '\0';
    return name;
}

static enum td_status open_draft(struct td_served *s, const char *path, struct td_err *err)
{
    enum td_status st;

    s->draft_path = strdup(path);
    if (!s->draft_path)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a path");
    st = td_draftmodel_open(path, &s->draft, err);
    return st ? st : td_draftmodel_check(s->draft, s->tok, err);
}

enum td_status td_served_open(const char *path, const char *const *names, uint32_t n_names,
                              const char *draft_path, bool verify, struct td_served **out,
                              struct td_err *err)
{
    struct td_served *s = calloc(1, sizeof *s);
    enum td_status st;

    if (!s)
        return td_err_set(err, TD_NO_MEMORY, "no memory for a model");
    s->refs = 1;
    s->created = (int64_t)time(NULL);
    s->path = strdup(path);
    for (uint32_t i = 0; i < n_names && i < TD_COORD_MAX_NAMES; i++)
        s->names[s->n_names++] = strdup(names[i]);
    if (n_names == 0)
        s->names[s->n_names++] = name_of(path);
    s->plan_model = calloc(1, sizeof *s->plan_model);
    st = s->path && s->plan_model ? TD_OK : TD_NO_MEMORY;
    for (uint32_t i = 0; i < s->n_names; i++)
        st = s->names[i] ? st : TD_NO_MEMORY;
    if (st)
        td_err_set(err, st, "no memory for a model");
    st = st ? st : td_checkpoint_open(path, &s->ck, err);
    st = st ? st : td_plan_model_read(s->ck, s->plan_model, err);
    st = st ? st : td_checkpoint_hash(s->ck, verify, s->hash, err);
    st = st ? st : td_tokenizer_open(s->ck, &s->tok, err);
    st = st ? st : td_breakers_open(s->tok, &s->breakers, err);
    if (!st && draft_path)
        st = open_draft(s, draft_path, err);
    if (st)
        goto fail;
    s->spec = td_checkpoint_spec(s->ck);
    if (td_tokenizer_n_vocab(s->tok) > s->spec->n_vocab) {
        st = td_err_set(err, TD_CORRUPT,
                        "the tokenizer of '%s' has %u ids, its embedding has %u rows", path,
                        td_tokenizer_n_vocab(s->tok), s->spec->n_vocab);
        goto fail;
    }
    td_sampling_default(&s->defaults);
    st = read_defaults(td_checkpoint_generation_config(s->ck), &s->defaults, err);
    if (st)
        goto fail;
    /* Without a template that is built the rest is served, and chats are refused with what was wrong. */
    if (td_chat_open(td_checkpoint_chat_template(s->ck), &s->chat, &s->chat_err))
        s->chat = NULL;
    if (!s->chat && s->chat_err.status == TD_NO_MEMORY) {
        st = td_err_set(err, TD_NO_MEMORY, "%s", s->chat_err.cause);
        goto fail;
    }
    *out = s;
    return TD_OK;
fail:
    td_served_release(s);
    return st;
}

void td_served_retain(struct td_served *s)
{
    __atomic_add_fetch(&s->refs, 1, __ATOMIC_RELAXED);
}

void td_served_release(struct td_served *s)
{
    if (!s || __atomic_sub_fetch(&s->refs, 1, __ATOMIC_ACQ_REL))
        return;
    td_chat_close(s->chat);
    td_breakers_close(s->breakers);
    td_tokenizer_close(s->tok);
    td_draftmodel_close(s->draft);
    free(s->draft_path);
    free(s->plan_model);
    td_checkpoint_close(s->ck);
    for (uint32_t i = 0; i < s->n_names; i++)
        free(s->names[i]);
    free(s->path);
    free(s);
}

/* ---- text into ids, on the pool ---- */

struct encode_work {
    uv_work_t work;
    struct td_coord_encode what;
    td_coord_encode_fn *done;
    void *user;
    struct td_ids ids;
    enum td_status status;
    struct td_err err;
};

static void encode_run(uv_work_t *work)
{
    struct encode_work *e = work->data;
    struct td_served *s = e->what.served;

    if (!e->what.messages)
        e->status = td_tokenizer_encode(s->tok, e->what.text,
                                        TD_ENCODE_SPECIAL | (e->what.with_bos ? TD_ENCODE_BOS : 0),
                                        &e->ids, &e->err);
    else if (s->chat)
        e->status = td_chat_encode(s->chat, s->tok, e->what.messages, e->what.n_messages,
                                   e->what.add_generation_prompt, &e->ids, &e->err);
    else {
        e->err = s->chat_err;
        e->status = s->chat_err.status;
    }
}

static void encode_done(uv_work_t *work, int status)
{
    struct encode_work *e = work->data;

    if (status == UV_ECANCELED)
        e->status = td_err_set(&e->err, TD_CANCELLED, "the server is stopping");
    e->done(e->status, &e->ids, e->status ? &e->err : NULL, e->user);
    td_ids_deinit(&e->ids);
    td_served_release(e->what.served);
    free(e);
}

enum td_status td_coord_encode(struct td_coord *c, const struct td_coord_encode *what,
                               td_coord_encode_fn *done, void *user, struct td_err *err)
{
    struct encode_work *e = calloc(1, sizeof *e);

    if (!e)
        return td_err_set(err, TD_NO_MEMORY, "no memory to tokenise a prompt");
    e->what = *what;
    e->done = done;
    e->user = user;
    e->work.data = e;
    td_served_retain(what->served);
    uv_queue_work(td_coord_loop(c), &e->work, encode_run, encode_done);
    return TD_OK;
}
