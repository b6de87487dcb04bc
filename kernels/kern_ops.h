/* The table that a backend fills. Seen by kern.c and the backends only. */
#ifndef TD_KERNELS_KERN_OPS_H
#define TD_KERNELS_KERN_OPS_H

#include "kernels/kern.h"

/* Arguments are those of td_kern_*, already checked. */
struct td_kern_ops {
    void (*close)(struct td_kern *kern);
    bool (*supports_matrix)(const struct td_kern *kern, enum td_dtype type);
    bool (*supports_kv)(const struct td_kern *kern, enum td_dtype type);
    void *(*alloc)(struct td_kern *kern, size_t bytes);
    void (*release)(struct td_kern *kern, void *ptr, size_t bytes);
    void *(*alloc_shared)(struct td_kern *kern, size_t bytes);
    void (*release_shared)(struct td_kern *kern, void *ptr, size_t bytes);
    void (*copy)(struct td_kern *kern, void *to, const void *from, size_t bytes);
    void (*copy_rows)(struct td_kern *kern, void *to, size_t to_step, const void *from,
                      size_t from_step, uint32_t n, size_t bytes);
    size_t (*free_bytes)(struct td_kern *kern); /* NULL: its memory is the host's */
    void (*run)(struct td_kern *kern, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg);
    enum td_status (*sync)(struct td_kern *kern, struct td_err *err);
    /* All four NULL: beginning an operation costs nothing to speak of. */
    bool (*replay)(struct td_kern *kern, uint64_t key);
    void (*record)(struct td_kern *kern, uint64_t key);
    void (*record_end)(struct td_kern *kern, bool keep);
    void (*forget)(struct td_kern *kern);
    enum td_status (*matrix_open)(struct td_kern *kern, const struct td_matrix_shape *shape,
                                  struct td_matrix **m, struct td_err *err);
    void (*matrix_close)(struct td_kern *kern, struct td_matrix *m);
    void (*matrix_pack)(struct td_kern *kern, struct td_matrix *m, uint32_t row0, uint32_t n_rows,
                        const void *src, size_t stride_bytes, const float *scales);
    enum td_status (*linear)(struct td_kern *kern, const struct td_kern_input *in, uint32_t n,
                             const struct td_kern_output *outs, uint32_t n_outs,
                             struct td_err *err);
    void (*rows)(struct td_kern *kern, const struct td_matrix *m, const uint32_t *ids, uint32_t n,
                 float *out);
    void (*gather)(struct td_kern *kern, const float *x, const uint32_t *rows, uint32_t n,
                   uint32_t dim, float *out);
    void (*rmsnorm)(struct td_kern *kern, const float *x, const float *weight, uint32_t n,
                    uint32_t dim, float eps, float *out);
    void (*silu_mul)(struct td_kern *kern, const float *gate, const float *up, size_t n,
                     float *out);
    void (*add)(struct td_kern *kern, float *x, const float *y, size_t n);
    void (*top)(struct td_kern *kern, const float *x, uint32_t n, uint32_t width, uint32_t n_top,
                struct td_top *out);
    /* Both NULL: it draws none. */
    void (*draw)(struct td_kern *kern, const float *x, uint32_t n, uint32_t width,
                 const struct td_draw *draws, uint32_t *ids);
    void (*measure)(struct td_kern *kern, const float *x, uint32_t n, uint32_t width,
                    const uint32_t *ids, struct td_measure *out);
    void (*rope_angles)(struct td_kern *kern, const double *freq, uint32_t dim, double scale,
                        bool interleaved, const uint32_t *positions, uint32_t n, float *angles);
    void (*rope_kv)(struct td_kern *kern, const struct td_kv_view *kv,
                    const struct td_kv_rows *rows, uint32_t n, const struct td_rope_kv *in);
    enum td_status (*attention)(struct td_kern *kern, const struct td_kv_view *kv,
                                const struct td_kv_rows *rows, uint32_t n,
                                const struct td_attention *how, struct td_err *err);
    void (*kv_save)(struct td_kern *kern, const struct td_kv_view *kv, uint32_t block, void *bytes);
    void (*kv_restore)(struct td_kern *kern, const struct td_kv_view *kv, uint32_t block,
                       const void *bytes);
};

/* First member of every backend's handle. */
struct td_kern {
    const struct td_kern_ops *ops;
    char name[32];
    const char *numerics;
    bool is_host;    /* its memory is the host's: ids and tables can be checked */
    char bus_id[32]; /* empty: it is on none */
    void *stream;    /* of the device's own kind; NULL: it has none */
    uint32_t n_threads;
    size_t weight_bytes;
};

/* First member of every backend's matrix. The arrays are owned by the matrix. */
struct td_matrix {
    enum td_dtype dtype;
    uint32_t n_rows;
    uint32_t n_cols;
    uint32_t n_leaves;
    uint32_t *leaf_end; /* [n_leaves] */
    uint32_t n_parts;
    uint32_t part_begin[TD_KERN_MAX_PARTS + 1];
    size_t bytes;
};

#endif
