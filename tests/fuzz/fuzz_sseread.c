/* The streamed answer of a foreign server, as `bench serve` reads it: events, and what they say of a request. The first byte says
 * how the input is cut: events, times and the record must not depend on it. */
#include "tests/fuzz/fuzz.h"

#include "daemon/cli/loadrecord.h"
#include "daemon/cli/sseread.h"

enum { MAX_BYTES = 1 << 12 };

struct reading {
    struct td_loadrecord record;
    struct td_bytes seen; /* the events, each behind its length */
    bool finished;
};

static bool on_event(void *user, struct td_str data, uint64_t first_ns)
{
    struct reading *r = user;
    bool go_on;

    FUZZ_CHECK(data.len <= MAX_BYTES && first_ns > 0);
    FUZZ_CHECK(memchr(data.ptr, '\r', data.len) == NULL);
    fuzz_touch(data);
    FUZZ_CHECK(td_bytes_appendf(&r->seen, "%zu:", data.len) == TD_OK);
    FUZZ_CHECK(td_bytes_append_str(&r->seen, data) == TD_OK);
    go_on = td_loadrecord_take_event(&r->record, data, 1, &r->finished);
    FUZZ_CHECK(go_on == (r->record.end == TD_LOADRECORD_OK));
    FUZZ_CHECK(go_on || r->record.reason != NULL);
    FUZZ_CHECK(r->record.n_gaps == (r->record.n_events ? r->record.n_events - 1 : 0));
    FUZZ_CHECK((r->record.n_events > 0) == (r->record.first_ns > 0));
    return go_on;
}

static enum td_status read_all(struct td_str in, size_t cut, struct reading *r)
{
    struct td_sseread reader;
    enum td_status s = TD_OK;
    uint64_t now = 1;

    memset(r, 0, sizeof *r);
    td_sseread_init(&reader, MAX_BYTES);
    while (!s && in.len > 0) {
        size_t n = in.len < cut ? in.len : cut;

        s = td_sseread_feed(&reader, (struct td_str){in.ptr, n}, now++, on_event, r);
        in = (struct td_str){in.ptr + n, in.len - n};
    }
    FUZZ_CHECK(s == TD_OK || s == TD_CANCELLED || s == TD_TOO_LARGE);
    td_sseread_deinit(&reader);
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t choice;
    struct td_str in = fuzz_split(data, size, &choice);
    struct reading whole, cut;
    enum td_status a = read_all(in, SIZE_MAX, &whole);
    enum td_status b = read_all(in, (size_t)choice + 1, &cut);

    FUZZ_CHECK(a == b);
    FUZZ_CHECK(td_str_eq(td_bytes_str(&whole.seen), td_bytes_str(&cut.seen)));
    FUZZ_CHECK(whole.record.end == cut.record.end && whole.finished == cut.finished);
    FUZZ_CHECK(whole.record.n_events == cut.record.n_events);
    FUZZ_CHECK(whole.record.n_output == cut.record.n_output);
    td_loadrecord_deinit(&whole.record);
    td_loadrecord_deinit(&cut.record);
    td_bytes_deinit(&whole.seen);
    td_bytes_deinit(&cut.seen);
    return 0;
}
