/* How far the client of a stream has come, as the id of the last event that it has: "12", "12f" when the end was among it, "-" when
 * nothing was; of several parts joined by dots, and ".u" behind them when the usage was told. Chunks differ with the pace of a
 * reader, so it is tokens that are counted. */
#include "daemon/coordinator/openai_call.h"

#include <inttypes.h>
#include <stdlib.h>

static bool has_begun(const struct td_openai_part *part)
{
    return part->role_sent || part->n_sent > 0 || part->finish_sent;
}

enum td_status td_openai_position_write(const struct td_openai_call *call, struct td_bytes *out)
{
    enum td_status status = TD_OK;
    td_bytes_clear(out);
    for (size_t i = 0; i < call->n_parts && status == TD_OK; i++) {
        const struct td_openai_part *part = &call->parts[i];
        const char *dot = i > 0 ? "." : "";
        status = has_begun(part) ? td_bytes_appendf(out, "%s%" PRIu32 "%s", dot, part->n_sent,
                                                    part->finish_sent ? "f" : "")
                                 : td_bytes_appendf(out, "%s-", dot);
    }
    if (status == TD_OK && call->usage_sent) {
        status = td_bytes_append_str(out, TD_STR(".u"));
    }
    return status;
}

/* What stands before the next dot, which is passed by. */
static struct td_str next_word(struct td_str *rest)
{
    struct td_str word = *rest;
    for (word.len = 0; word.len < rest->len && rest->ptr[word.len] != '.'; word.len++) {
    }
    size_t n = word.len + (word.len < rest->len);
    *rest = (struct td_str){rest->ptr + n, rest->len - n};
    return word;
}

static bool read_part(struct td_str word, struct td_openai_part *part)
{
    uint64_t n = 0;
    if (td_str_eq(word, TD_STR("-"))) {
        return true;
    }
    bool is_over = word.len > 1 && word.ptr[word.len - 1] == 'f';
    word.len -= is_over;
    for (size_t i = 0; i < word.len && n <= UINT32_MAX; i++) {
        if (word.ptr[i] < '0' || word.ptr[i] > '9') {
            return false;
        }
        n = 10 * n + (uint64_t)(word.ptr[i] - '0');
    }
    part->n_known = (uint32_t)n;
    part->finish_sent = is_over;
    part->role_sent = true;
    return word.len > 0 && n <= UINT32_MAX;
}

enum td_status td_openai_position_read(struct td_openai_call *call, struct td_str id,
                                       struct td_err *err)
{
    struct td_str rest = id;
    bool is_good = id.len == 0 || id.ptr[id.len - 1] != '.';
    if (id.len == 0) {
        return TD_OK;
    }
    for (size_t i = 0; i < call->n_parts && is_good; i++) {
        is_good = read_part(next_word(&rest), &call->parts[i]);
    }
    call->usage_sent = td_str_eq(rest, TD_STR("u"));
    if (!is_good || (rest.len > 0 && !call->usage_sent)) {
        return td_err_set(err, TD_INVALID,
                          "'%.*s' is no id of an event of this request: expected the last one that "
                          "came, as \"12\", with one number for each of its %zu answers",
                          (int)(id.len < 64 ? id.len : 64), id.ptr, call->n_parts);
    }
    return TD_OK;
}
