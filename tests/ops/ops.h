/* What the op matrix shares: random weights of every type in file format, the devices of every instruction set, and the
 * products that float64 says. Made for tests: whatever goes wrong here fails the test that runs. One thread. */
#ifndef TD_TESTS_OPS_OPS_H
#define TD_TESTS_OPS_OPS_H

#include "tests/unit/check.h"

#include "kernels/kern.h"

enum {
    TD_OPS_ISAS = 5,
    TD_OPS_MAX_LEAVES = 16,
    TD_OPS_MAX_PARTS = 3,
    TD_OPS_TOKENS = 14, /* counts of td_ops_tokens */
    TD_OPS_ROWS = 7
};

/* "ref" first: the others must give its bits. */
extern const char *const td_ops_isa[TD_OPS_ISAS];
/* Tokens of a call around a tile's and a pass's size, and rows around a group's. */
extern const uint32_t td_ops_tokens[TD_OPS_TOKENS];
extern const uint32_t td_ops_rows[TD_OPS_ROWS];

/* ---- random numbers ---- */

/* Begins the sequence at `seed`, or at TD_OPS_SEED where the environment has it, and prints it. */
void td_ops_seed(uint64_t seed);
uint32_t td_ops_below(uint32_t n); /* 0 .. n - 1 */
float td_ops_normal(void);         /* mean 0, deviation 1, at most 3.5 */
/* n values of td_ops_normal, in runs of 32 of different magnitudes. Free with free(). */
float *td_ops_activations(size_t n);

/* ---- devices ---- */

/* NULL, with a line that says so, where this CPU has no such instruction set. */
struct td_kern *td_ops_open(uint32_t isa, uint32_t threads);
struct td_ops_devices {
    struct td_kern *kern[TD_OPS_ISAS][2]; /* of 1 and of 3 threads */
};
void td_ops_open_all(struct td_ops_devices *devices);
void td_ops_close_all(struct td_ops_devices *devices);

/* ---- weights ---- */

/* A matrix as a file has it. `file` and `scales` end where their last row ends, so that a reader that goes on is found. */
struct td_ops_weights {
    enum td_dtype dtype;
    uint32_t rows, cols;
    uint8_t *file; /* rows of td_dtype_row_bytes, `stride` apart, from an odd address */
    size_t stride;
    float *scales;   /* F8_E4M3: [rows x ceil(cols / 128)], else NULL */
    float *values;   /* [rows x cols] what is stored */
    float *original; /* [rows x cols] F32 that were quantised */
};
void td_ops_weights_init(struct td_ops_weights *w, enum td_dtype dtype, uint32_t rows,
                         uint32_t cols);
/* The same with random bytes for blocks: any scale, NaN and infinity too. No originals. */
void td_ops_weights_init_bytes(struct td_ops_weights *w, enum td_dtype dtype, uint32_t rows,
                               uint32_t cols);
/* F8_E4M3 with one scale in every block of so many rows and columns instead; columns are a multiple of 128. */
void td_ops_weights_rescale(struct td_ops_weights *w, uint32_t block_rows, uint32_t block_cols);
void td_ops_weights_deinit(struct td_ops_weights *w);

/* How the columns of a matrix are cut. */
struct td_ops_cut {
    uint32_t n_leaves, leaf_end[TD_OPS_MAX_LEAVES];
    uint32_t n_parts, part_begin[TD_OPS_MAX_PARTS + 1];
};
/* At most n_leaves leaves of random sizes, in at most n_parts parts of random sizes. */
struct td_ops_cut td_ops_cut_random(enum td_dtype dtype, uint32_t cols, uint32_t n_leaves,
                                    uint32_t n_parts);

/* Opens the columns [cut's first .. last] = [0, cols) as a matrix of the device, packed in pieces of random size. */
struct td_matrix *td_ops_pack(struct td_kern *kern, const struct td_ops_weights *w,
                              const struct td_ops_cut *cut);
/* The same of rows [row0, row0 + rows) and columns [col0, col0 + cols); col0 is a multiple of the type's sum_cols. The cut is
 * of the slice. */
struct td_matrix *td_ops_pack_slice(struct td_kern *kern, const struct td_ops_weights *w,
                                    uint32_t row0, uint32_t rows, uint32_t col0, uint32_t cols,
                                    const struct td_matrix_shape *cut);

/* ---- float64 ---- */

/* out [n x cols]: x rounded as the matrices of `dtype` round their activations (kernels/cpu/cpu.h), in float64. */
double *td_ops_rounded(enum td_dtype dtype, const float *x, uint32_t n, uint32_t cols);

/* Squared differences over squares. */
struct td_ops_error {
    double difference, square;
};
double td_ops_nmse(struct td_ops_error e);
/* Adds got - want of one value. */
void td_ops_count(struct td_ops_error *e, double got, double want);

/* Whether n values have the same bits; NaN equals NaN. `at` gets the first that differs. */
bool td_ops_same(const float *a, const float *b, size_t n, size_t *at);
#define td_ops_assert_same(a, b, n, ...)                                                           \
    do {                                                                                           \
        size_t td_ops_at;                                                                          \
                                                                                                   \
        if (!td_ops_same(a, b, n, &td_ops_at)) {                                                   \
            print_message(__VA_ARGS__);                                                            \
            fail_msg("value %zu is %a, expected %a", td_ops_at, (double)(a)[td_ops_at],            \
                     (double)(b)[td_ops_at]);                                                      \
        }                                                                                          \
    } while (0)

#endif
