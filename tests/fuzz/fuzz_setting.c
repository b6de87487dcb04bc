/* The small languages inside of option values, as the first byte chooses: links of --netlab, lengths and bounds of a load, sizes
 * and operations of bench comm, a url, and every row of the table of options. */
#include "tests/fuzz/fuzz.h"

#include "daemon/cli/client.h"
#include "daemon/cli/commset.h"
#include "daemon/cli/linkspec.h"
#include "daemon/cli/load.h"
#include "daemon/cli/loadstat.h"
#include "daemon/cli/option_value.h"

static void read_links(const char *text)
{
    struct td_linkspec spec;
    struct td_err err = {0};
    enum td_status status = td_linkspec_parse(text, &spec, &err);

    fuzz_check_err(status, &err);
    if (status)
        return;
    FUZZ_CHECK(spec.n_delays >= 1 && spec.n_delays <= TD_LINKSPEC_MAX);
    FUZZ_CHECK(spec.n_rates >= 1 && spec.n_rates <= TD_LINKSPEC_MAX);
    for (uint32_t i = 0; i < spec.n_delays; i++)
        FUZZ_CHECK(spec.delay[i].value >= 0.0 && spec.delay[i].value <= 10.001);
    for (uint32_t i = 0; i < spec.n_rates; i++)
        FUZZ_CHECK(spec.rate[i].value == 0.0 ||
                   (spec.rate[i].value >= 999.0 && spec.rate[i].value <= 1.001e12));
}

static void read_lengths(const char *text)
{
    struct td_load load = {.seed = 1, .prefix_share = 0.5, .prefix_groups = 3};
    struct td_load_request request;
    struct td_err err = {0};
    enum td_status status = td_load_dist_parse("--input-len", text, &load.input, &err);

    fuzz_check_err(status, &err);
    if (status)
        return;
    load.output = load.input;
    for (uint64_t i = 0; i < 4; i++) {
        td_load_request(&load, i, &request);
        FUZZ_CHECK(request.n_input >= 1 && request.n_input <= TD_LOAD_MAX_TOKENS);
        FUZZ_CHECK(request.n_output >= 1 && request.n_output <= TD_LOAD_MAX_TOKENS);
        FUZZ_CHECK(request.n_prefix <= request.n_input && request.group < 3);
    }
}

static void read_bounds(const char *text)
{
    struct td_option_list list = {&text, 1};
    struct td_loadstat_slo slo;
    struct td_err err = {0};
    enum td_status status = td_loadstat_slo_parse(&list, &slo, &err);

    fuzz_check_err(status, &err);
    FUZZ_CHECK(status || slo.ttft + slo.itl + slo.tpot + slo.e2e > 0.0);
}

static void read_sizes(const char *text)
{
    struct td_option_list list = {&text, 1}, none = {0};
    struct td_commset set;
    struct td_err err = {0};
    enum td_status status = td_commset_read(&list, &none, 3, &set, &err);

    fuzz_check_err(status, &err);
    if (!status) {
        char again[TD_COMMSET_SIZE_BYTES];
        size_t bytes = 0;

        FUZZ_CHECK(set.n_sizes == 1 && set.bytes[0] % 4 == 0 && set.bytes[0] > 0);
        td_commset_format_size(set.bytes[0], again);
        FUZZ_CHECK(td_commset_parse_size(again, &bytes, NULL) == TD_OK && bytes == set.bytes[0]);
    }
    status = td_commset_read(&none, &list, 3, &set, &err);
    fuzz_check_err(status, &err);
    FUZZ_CHECK(status || set.ops != 0);
}

static void read_url(const char *text)
{
    struct td_client_url url;
    struct td_err err = {0};
    enum td_status status = td_client_parse_url(text, &url, &err);

    fuzz_check_err(status, &err);
    if (status)
        return;
    FUZZ_CHECK(url.host[0] != '\0' && strlen(url.host) < sizeof url.host);
    FUZZ_CHECK(atoi(url.port) >= 1 && atoi(url.port) <= 65535);
    FUZZ_CHECK(url.prefix[0] == '\0' || url.prefix[0] == '/');
}

/* A value of one row, as the row has it and as a command has it that takes several. */
static void read_value(const struct td_option *row, const char *text)
{
    static union {
        int64_t i;
        struct td_option_list list;
        struct td_option_shares shares;
        struct td_option_enums enums;
        struct td_option_address address;
        struct td_option_ids ids;
    } field;
    struct td_option_ints several;
    struct td_arena arena;
    enum td_status status;

    memset(&field, 0, sizeof field);
    td_arena_init(&arena, 0, 0);
    status = td_option_value_parse(row, text, &arena, &field);
    FUZZ_CHECK(status == TD_OK || status == TD_INVALID);
    if (!status && row->type == TD_OPTION_ADDRESS)
        FUZZ_CHECK(field.address.host[0] != '\0' && field.address.port > 0);
    if (!status && row->type == TD_OPTION_SHARES)
        FUZZ_CHECK(field.shares.n >= 1 && field.shares.n <= TD_OPTION_MAX_SHARES);
    if (row->sweeps && td_option_value_parse_ints(row, text, &several) == TD_OK)
        for (uint32_t i = 0; i < several.n; i++)
            FUZZ_CHECK(several.value[i] >= row->sweep_min && several.value[i] <= row->max);
    td_arena_deinit(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t choice;
    struct td_str in = fuzz_split(data, size, &choice);
    size_t n_rows;
    const struct td_option *rows = td_options_table(&n_rows);
    char *text = malloc(in.len + 1);

    FUZZ_CHECK(text != NULL);
    memcpy(text, in.ptr, in.len);
    text[in.len] = '\0';
    switch (choice) {
    case 'n':
        read_links(text);
        break;
    case 'l':
        read_lengths(text);
        break;
    case 'b':
        read_bounds(text);
        break;
    case 's':
        read_sizes(text);
        break;
    case 'u':
        read_url(text);
        break;
    default:
        read_value(&rows[choice % n_rows], text);
    }
    free(text);
    return 0;
}
