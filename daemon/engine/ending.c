#include "daemon/engine/ending.h"

#include "daemon/text/stop.h"

#include <string.h>

enum { TEXT_RESERVE = 4096 }; /* a byte becomes at most three, U+FFFD */

static enum td_status open_stop(struct td_ending *end, const struct td_request *r,
                                struct td_err *err)
{
    struct td_str strings[TD_REQUEST_MAX_STOPS];

    for (uint32_t i = 0; i < r->n_stops; i++)
        strings[i] = (struct td_str){r->stops[i], r->stop_bytes[i]};
    return td_stop_open(strings, r->n_stops, r->include_stop, &end->stop, err);
}

enum td_status td_ending_init(struct td_ending *out, const struct td_request *r,
                              const uint32_t *eos_ids, uint32_t n_eos,
                              const struct td_tokenizer *tokenizer, struct td_err *err)
{
    struct td_ending end = {.min_tokens = r->min_tokens,
                            .max_tokens = r->max_tokens,
                            .include_stop = r->include_stop,
                            .has_text = tokenizer != NULL};
    enum td_status st;

    for (uint32_t i = 0; i < n_eos && !r->ignore_eos; i++)
        end.ids[end.n_ids++] = eos_ids[i];
    for (uint32_t i = 0; i < r->n_stop_ids; i++)
        end.ids[end.n_ids++] = r->stop_ids[i];
    if (r->n_stops > 0 && !tokenizer)
        return td_err_set(err, TD_UNSUPPORTED,
                          "stop has %u strings; they need a tokenizer, and this model has none",
                          r->n_stops);
    if (tokenizer) {
        td_detok_init(&end.detok, tokenizer, TD_ENDING_DETOK_FLAGS);
        if ((st = td_bytes_reserve(&end.text, TEXT_RESERVE)))
            return td_err_set(err, st, "no memory for the text of a request");
    }
    if (r->n_stops > 0 && (st = open_stop(&end, r, err))) {
        td_ending_deinit(&end);
        return st;
    }
    *out = end;
    return TD_OK;
}

void td_ending_deinit(struct td_ending *end)
{
    td_stop_close(end->stop);
    end->stop = NULL;
    td_bytes_deinit(&end->text);
}

const uint32_t *td_ending_banned(const struct td_ending *end, uint32_t n_output, uint32_t *n_banned)
{
    *n_banned = n_output < end->min_tokens ? end->n_ids : 0;
    return end->ids;
}

static bool ends_by_id(const struct td_ending *end, uint32_t id)
{
    for (uint32_t i = 0; i < end->n_ids; i++)
        if (end->ids[i] == id)
            return true;
    return false;
}

/* Sends `end->text` on: to the stop strings where they count, else straight to `shown`. */
static enum td_status show(struct td_ending *end, bool look_for_stops, bool *matched,
                           struct td_bytes *shown)
{
    if (end->stop && look_for_stops)
        return td_stop_push(end->stop, td_bytes_str(&end->text), shown, matched);
    return shown ? td_bytes_append_str(shown, td_bytes_str(&end->text)) : TD_OK;
}

enum td_status td_ending_judge(struct td_ending *end, uint32_t id, uint32_t n_output,
                               enum td_finish *finish, struct td_bytes *shown)
{
    bool by_id = ends_by_id(end, id), matched = false;
    enum td_status st;

    if (end->has_text && (!by_id || end->include_stop)) {
        td_bytes_clear(&end->text);
        if ((st = td_detok_push(&end->detok, id, &end->text)) ||
            (st = show(end, n_output > end->min_tokens, &matched, shown)))
            return st;
    }
    if (by_id || matched)
        *finish = TD_FINISH_STOP;
    else
        *finish = n_output >= end->max_tokens ? TD_FINISH_LENGTH : TD_FINISH_NONE;
    return TD_OK;
}

enum td_status td_ending_flush(struct td_ending *end, struct td_bytes *shown)
{
    bool matched = end->stop && td_stop_matched(end->stop);
    enum td_status st;

    if (!end->has_text || matched)
        return TD_OK;
    if (end->stop && (st = td_stop_flush(end->stop, shown)))
        return st;
    td_bytes_clear(&end->text);
    if ((st = td_detok_flush(&end->detok, &end->text)))
        return st;
    return td_bytes_append_str(shown, td_bytes_str(&end->text));
}
