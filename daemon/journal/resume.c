#include "daemon/journal/resume.h"

#include "daemon/engine/wire.h"
#include "proto/rpc.h"

static bool says_nothing(const struct td_token_event *e)
{
    return e->token.logprob == 0.0f && e->token.rank == 0 && e->token.n_top == 0 &&
           e->state.mu == 0.0 && e->cached_tokens == 0 && e->queue_ns == 0;
}

enum td_status td_resume_detail(const struct td_token_event *event, struct td_bytes *out,
                                struct td_err *err)
{
    struct td_token_event e = *event;
    Tensord__Worker__V1__TokenEvent *m;
    struct td_arena arena;
    enum td_status st;

    td_bytes_clear(out);
    if (says_nothing(event))
        return TD_OK;
    e.request_id = 0;
    e.index = 0;
    e.finish = TD_FINISH_NONE;
    e.error = NULL;
    td_arena_init(&arena, 4096, 0);
    m = td_wire_token_make(&e, &arena);
    st = m ? td_rpc_pack(&m->base, out, err)
           : td_err_set(err, TD_NO_MEMORY, "no memory for the details of a token");
    td_arena_deinit(&arena);
    return st;
}

static enum td_status read_detail(struct td_str detail, struct td_token_event *event,
                                  struct td_err *err)
{
    ProtobufCMessage *m = NULL;
    struct td_err error;
    enum td_status st =
        td_rpc_unpack(&tensord__worker__v1__token_event__descriptor, detail, 0, &m, err);

    st = st ? st
            : td_wire_token_read((const Tensord__Worker__V1__TokenEvent *)m, event, &error, err);
    td_rpc_free(m);
    return st;
}

enum td_status td_resume_event(const struct td_stored_tokens *tokens, bool is_prompt, uint32_t i,
                               struct td_token_event *event, struct td_err *err)
{
    struct td_str detail = td_stored_detail(tokens, i);
    struct td_token_event e = {0};
    enum td_status st = detail.len ? read_detail(detail, &e, err) : TD_OK;

    if (st)
        return td_err_set(err, TD_CORRUPT, "the details of token %u of a request are damaged", i);
    e.request_id = 0;
    e.index = i + is_prompt;
    e.is_prompt = is_prompt;
    e.has_token = !is_prompt;
    e.token.id = tokens->ids[i];
    e.finish = TD_FINISH_NONE;
    e.error = NULL;
    *event = e;
    return TD_OK;
}

enum td_status td_resume_request(const struct td_stored *stored, uint32_t part,
                                 struct td_request *request, struct td_err *err)
{
    const struct td_record *record = &stored->record;
    const struct td_stored_part *p = &stored->parts[part];
    struct td_request r;
    enum td_status st = td_request_copy(&record->prompts[part / record->n_choices], &r);

    if (st)
        return td_err_set(err, st, "no memory for a request");
    r.sampling.choice = part % record->n_choices;
    if (r.sampling.choice > 0 || p->prompt.n + 1 >= r.n_prompt)
        r.prompt_logprobs = -1;
    for (uint32_t i = 0; !st && i < p->output.n; i++) {
        struct td_token_event e = {0};

        st = td_resume_event(&p->output, false, i, &e, err);
        st = st ? st : td_request_emit(&r, e.token.id, e.state, err);
    }
    if (st) {
        td_request_deinit(&r);
        return st;
    }
    *request = r;
    return TD_OK;
}
