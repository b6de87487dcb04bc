#include "comm/tune.h"

#include "kernels/base/clock.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_TRIES = 12 };

static const size_t sizes[] = {1u << 10, 1u << 13, 1u << 15, 1u << 17, 1u << 20};
enum { N_SIZES = sizeof sizes / sizeof sizes[0] };
_Static_assert((int)N_SIZES <= (int)TD_TUNE_MAX_TRIALS, "a trial for each size");

/* Sums as a tensor-parallel layer makes them: a part per rank, as far as there are leaves. */
struct bed {
    struct td_comm *comm;
    struct td_leaf_run runs[TD_TREE_MAX_RANKS];
    struct td_tree_layout layout;
    float *parts, *scratch, *out; /* of the largest sum */
};

bool td_tune_has_choice(const struct td_comm *comm)
{
    uint32_t n = 0;

    for (int a = TD_SUM_ONE_SHOT; a < TD_N_SUM_ALGORITHMS; a++)
        n += td_comm_sum_supports(comm, (enum td_sum_algorithm)a);
    return n > 1;
}

static enum td_status open_bed(struct bed *bed, struct td_comm *comm, struct td_err *err)
{
    uint32_t n = td_comm_size(comm);
    uint32_t n_leaves = n < TD_TREE_MAX_LEAVES ? n : TD_TREE_MAX_LEAVES;
    size_t most = sizes[N_SIZES - 1] / sizeof(float);

    memset(bed, 0, sizeof *bed);
    bed->comm = comm;
    for (uint32_t r = 0; r < n; r++)
        bed->runs[r] = r < n_leaves ? (struct td_leaf_run){r, r + 1}
                                    : (struct td_leaf_run){n_leaves, n_leaves};
    bed->layout = (struct td_tree_layout){n_leaves, bed->runs};
    bed->parts = calloc(most, sizeof(float));
    bed->scratch = calloc(most * n_leaves, sizeof(float));
    bed->out = calloc(most, sizeof(float));
    return bed->parts && bed->scratch && bed->out
               ? TD_OK
               : td_err_set(err, TD_NO_MEMORY, "no memory to try sums of %zu bytes over %u ranks",
                            sizes[N_SIZES - 1], n);
}

static void close_bed(struct bed *bed)
{
    free(bed->parts);
    free(bed->scratch);
    free(bed->out);
}

/* Seconds of the slowest rank's view are rank 0's here: a sum ends on all ranks at nearly the same time. */
static enum td_status time_sum(struct bed *bed, size_t bytes, double *seconds, struct td_err *err)
{
    uint64_t start;
    enum td_status s = td_comm_barrier(bed->comm, err);

    start = td_clock_now_ns();
    for (int i = 0; i < 2 && s == TD_OK; i++)
        s = td_comm_tree_sum(bed->comm, &bed->layout, bed->parts, bytes / sizeof(float),
                             bed->scratch, bed->out, err);
    *seconds = (double)(td_clock_now_ns() - start) * 1e-9 / 2.0;
    return s;
}

/* The best of as many tries as rank 0 finds time for until `end_ns`; at least one. */
static enum td_status try_algorithm(struct bed *bed, enum td_sum_algorithm algorithm, size_t bytes,
                                    uint64_t end_ns, double *best, struct td_err *err)
{
    uint32_t n_tries = 1;
    enum td_status s = TD_OK;

    td_comm_set_sum_algorithm(bed->comm, algorithm);
    for (uint32_t i = 0; i <= n_tries && s == TD_OK; i++) {
        double seconds;

        s = time_sum(bed, bytes, &seconds, err);
        if (s == TD_OK &&
            i == 0) { /* the first one warms up, and says how many there is time for */
            uint64_t now_ns = td_clock_now_ns();
            double n = now_ns < end_ns ? (double)(end_ns - now_ns) * 1e-9 / (2.0 * seconds) : 1.0;

            n_tries = n < 1.0 ? 1 : n > MOST_TRIES ? MOST_TRIES : (uint32_t)n;
            s = td_comm_bcast(bed->comm, 0, &n_tries, sizeof n_tries, err);
        } else if (s == TD_OK && (i == 1 || seconds < *best)) {
            *best = seconds;
        }
    }
    return s;
}

/* Each size takes what its nearest trial found. */
static void choose(struct td_tune_result *r)
{
    for (uint32_t c = 0; c < TD_SUM_CLASSES && r->n; c++) {
        uint32_t i = 0;

        /* The bound between two trials is the geometric mean. */
        while (i + 1 < r->n && ((uint64_t)1 << c) * ((uint64_t)1 << c) >=
                                   (uint64_t)r->trial[i].bytes * r->trial[i + 1].bytes)
            i++;
        r->choices.by_class[c] = r->trial[i].best;
    }
}

enum td_status td_tune_sums(struct td_comm *comm, uint64_t budget_ns, struct td_tune_result *result,
                            struct td_err *err)
{
    struct bed bed;
    uint64_t begin_ns = td_clock_now_ns();
    uint32_t n_cells = 0, cell = 0;
    enum td_status s;

    memset(result, 0, sizeof *result);
    if (!td_tune_has_choice(comm))
        return TD_OK;
    for (int a = TD_SUM_ONE_SHOT; a < TD_N_SUM_ALGORITHMS; a++)
        n_cells += td_comm_sum_supports(comm, (enum td_sum_algorithm)a) ? N_SIZES : 0;
    s = open_bed(&bed, comm, err);
    for (uint32_t i = 0; i < N_SIZES && s == TD_OK; i++) {
        struct td_tune_trial *trial = &result->trial[result->n];
        uint32_t is_late = i > 0 && td_clock_now_ns() - begin_ns > budget_ns;

        s = td_comm_bcast(comm, 0, &is_late, sizeof is_late, err);
        if (s != TD_OK || is_late)
            break;
        trial->bytes = sizes[i];
        for (int a = TD_SUM_ONE_SHOT; a < TD_N_SUM_ALGORITHMS && s == TD_OK; a++) {
            if (!td_comm_sum_supports(comm, (enum td_sum_algorithm)a))
                continue;
            cell++;
            s = try_algorithm(&bed, (enum td_sum_algorithm)a, trial->bytes,
                              begin_ns + budget_ns / n_cells * cell, &trial->seconds[a], err);
            if (trial->best == TD_SUM_AUTO || trial->seconds[a] < trial->seconds[trial->best])
                trial->best = (enum td_sum_algorithm)a;
        }
        result->n++;
    }
    td_comm_set_sum_algorithm(comm, TD_SUM_AUTO);
    if (s == TD_OK)
        s = td_comm_bcast(comm, 0, result, sizeof *result, err);
    if (s == TD_OK)
        choose(result);
    close_bed(&bed);
    return s;
}
