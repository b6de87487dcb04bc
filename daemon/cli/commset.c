#include "daemon/cli/commset.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const size_t usual[] = {8, 8 << 10, 64 << 10, 1 << 20, 16 << 20};
static const size_t most_gathered = (size_t)2 << 30; /* bytes, of all ranks */

const char *td_commset_op_name(enum td_commset_op op)
{
    static const char *const names[] = {"tree_sum", "bcast", "all_gather", "sendrecv", "barrier"};
    _Static_assert(sizeof names / sizeof names[0] == TD_COMMSET_N_OPS, "a name for each");

    return names[op];
}

enum td_status td_commset_parse_size(const char *text, size_t *bytes, struct td_err *err)
{
    static const struct {
        const char *suffix;
        int shift;
    } units[] = {{"", 0}, {"K", 10}, {"KiB", 10}, {"M", 20}, {"MiB", 20}, {"G", 30}, {"GiB", 30}};
    size_t digits = strspn(text, "0123456789");
    unsigned long long value = digits > 0 && digits <= 10 ? strtoull(text, NULL, 10) : 0;

    for (size_t i = 0; value > 0 && i < sizeof units / sizeof units[0]; i++) {
        if (strcmp(text + digits, units[i].suffix) != 0)
            continue;
        value <<= units[i].shift; /* below 10^10 * 2^30 < 2^64 */
        if (value % 4 == 0 && value <= TD_COMMSET_MAX_BYTES) {
            *bytes = value;
            return TD_OK;
        }
        break;
    }
    return td_err_set(
        err, TD_INVALID,
        "--sizes: got '%.40s', expected bytes that make whole floats, a multiple of 4 "
        "up to 1G (8, 8K, 64K, 1M)",
        text);
}

const char *td_commset_format_size(size_t bytes, char out[TD_COMMSET_SIZE_BYTES])
{
    static const char *const units[] = {"", "K", "M", "G"};
    size_t i = 0;

    for (; bytes && bytes % 1024 == 0 && i < 3; i++)
        bytes /= 1024;
    snprintf(out, TD_COMMSET_SIZE_BYTES, "%zu%s", bytes, units[i]);
    return out;
}

/* Keeps the sizes rising and different. */
static enum td_status add_size(struct td_commset *set, size_t bytes, struct td_err *err)
{
    size_t at = 0;

    while (at < set->n_sizes && set->bytes[at] < bytes)
        at++;
    if (at < set->n_sizes && set->bytes[at] == bytes)
        return TD_OK;
    if (set->n_sizes == TD_COMMSET_MAX_SIZES)
        return td_err_set(err, TD_INVALID, "--sizes: more than %d different sizes, expected fewer",
                          TD_COMMSET_MAX_SIZES);
    memmove(set->bytes + at + 1, set->bytes + at, (set->n_sizes - at) * sizeof set->bytes[0]);
    set->bytes[at] = bytes;
    set->n_sizes++;
    return TD_OK;
}

static enum td_status add_operation(struct td_commset *set, const char *name, struct td_err *err)
{
    char all[96] = "";

    for (int op = 0; op < TD_COMMSET_N_OPS; op++) {
        size_t len = strlen(all);

        if (strcmp(name, td_commset_op_name((enum td_commset_op)op)) == 0) {
            set->ops |= 1u << op;
            return TD_OK;
        }
        snprintf(all + len, sizeof all - len, "%s%s", op ? ", " : "",
                 td_commset_op_name((enum td_commset_op)op));
    }
    return td_err_set(err, TD_INVALID, "--operations: got '%.40s', expected some of %s", name, all);
}

enum td_status td_commset_read(const struct td_option_list *sizes,
                               const struct td_option_list *operations, uint32_t n_ranks,
                               struct td_commset *set, struct td_err *err)
{
    struct td_commset s = {0};
    enum td_status status = TD_OK;

    for (size_t i = 0; sizes->n == 0 && i < sizeof usual / sizeof usual[0]; i++)
        if (usual[i] <= most_gathered / n_ranks)
            s.bytes[s.n_sizes++] = usual[i];
    for (uint32_t i = 0; !status && i < sizes->n; i++) {
        size_t bytes = 0;

        status = td_commset_parse_size(sizes->items[i], &bytes, err);
        if (!status && bytes > most_gathered / n_ranks)
            status = td_err_set(err, TD_INVALID,
                                "--sizes: %.40s of each of %u ranks are more than 2 GiB, expected "
                                "at most %zu bytes",
                                sizes->items[i], n_ranks, most_gathered / n_ranks);
        status = status ? status : add_size(&s, bytes, err);
    }
    if (operations->n == 0)
        s.ops = (1u << TD_COMMSET_N_OPS) - 1;
    for (uint32_t i = 0; !status && i < operations->n; i++)
        status = add_operation(&s, operations->items[i], err);
    if (!status)
        *set = s;
    return status;
}
